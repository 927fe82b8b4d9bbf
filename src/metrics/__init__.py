"""What is measured of a model: the benchmarks, and scores, generation and texts below them."""
