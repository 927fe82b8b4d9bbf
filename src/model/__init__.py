"""Models: loading, architectures, adapters, and the two recipes, unlearning and fine-tuning."""
