"""How much memory a command will take, worked out from the model's configuration alone."""
