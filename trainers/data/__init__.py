"""What a recipe trains on: its sources as arrays, and batches as functions of (seed, step)."""
