"""Data sets by name: the registry, a family of data sets a file, and one's own."""

from wagle.dataset.sources.encoders import cut_into_pieces, refusal_encoder, row_encoder
from wagle.dataset.sources.registry import find_source, load_rows

__all__ = ["cut_into_pieces", "find_source", "load_rows", "refusal_encoder", "row_encoder"]
