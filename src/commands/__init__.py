"""The commands: one module each, whose ``main`` takes a command line; ``wagle.cli`` lists them."""
