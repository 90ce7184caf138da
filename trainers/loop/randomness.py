"""Every random choice comes from a generator seeded by what it is for, so that none depends on what ran before."""

import hashlib

import numpy as np
import torch


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed, the same on every machine, for e.g. (recipe seed, "step", 17)."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(*parts: int | str) -> torch.Generator:
    """A CPU generator; draws are made on the CPU, so that a GPU run masks the same positions."""
    return torch.Generator().manual_seed(seed_of(*parts))


def numpy_generator(*parts: int | str) -> np.random.Generator:
    return np.random.default_rng(seed_of(*parts))
