"""WAGLE: unlearning by updating only the weights that matter."""
