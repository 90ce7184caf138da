"""Weights that a model begins with: checkpoints of `transformers`, by weight maps. A family's map is one file."""

from trainers.weights.initial import checkpoint_digest, initialise, tokenizer_file

__all__ = ["checkpoint_digest", "initialise", "tokenizer_file"]
