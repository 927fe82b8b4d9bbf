"""Optimizers that see the selected weights alone, and the bit masks that select them."""
