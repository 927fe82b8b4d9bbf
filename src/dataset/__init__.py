"""Data: rows from files and the hub, prompt templates, tokens and labels, pairs, padded batches."""
