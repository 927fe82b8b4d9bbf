"""One training loop for unlearning and for fine-tuning."""
