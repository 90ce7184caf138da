"""Who is no true partner of whom, drawn at random; on the CPU."""

import torch
from torch import Tensor


def strangers(allowed: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """For each row of (B, B) bool one allowed column, evenly drawn, and whether there is any: (B,) int64, (B,) bool."""
    draws = torch.rand(allowed.shape, generator=random).masked_fill(~allowed, -1.0)
    return draws.argmax(1), allowed.any(1)


def random_half(rows: Tensor, random: torch.Generator) -> Tensor:
    """(N,) bool: half of them, to within one, and not a coin each: how many there are does not wander."""
    chosen = torch.zeros(len(rows), dtype=torch.bool)
    number = (len(rows) + int(torch.randint(2, (), generator=random))) // 2
    chosen[torch.randperm(len(rows), generator=random)[:number]] = True
    return chosen
