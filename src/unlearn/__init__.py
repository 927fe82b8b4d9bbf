"""Unlearning itself: objectives, masks, the reference model, and the training that joins them."""
