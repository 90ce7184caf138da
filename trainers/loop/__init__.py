"""The loop: steps, their losses and draws, checkpoints, curves."""
