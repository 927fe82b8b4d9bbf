"""Data sets by name: the registry, a family of data sets a file, and one's own."""

from wagle.dataset.sources.encoders import refusal_encoder, row_encoder
from wagle.dataset.sources.registry import find_source, load_rows

__all__ = ["find_source", "load_rows", "refusal_encoder", "row_encoder"]
