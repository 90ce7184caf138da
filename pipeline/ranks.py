"""Of the processes that torchrun has started for one call: which this is. One process alone is rank 0 of 1."""

import os


def rank() -> int:
    """Rank 0 writes, prints and holds the dataset's lock, for all of them."""
    return int(os.environ.get("RANK", "0"))


def ranks() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
