"""The batches of all ranks as one, so that a contrast has the negatives of the whole step. Alone, nothing is done.

Each rank computes the same loss of the same rows; then the mean of the ranks' gradients, which is what
DistributedDataParallel takes, is that loss's gradient.
"""

from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional

from trainers.data.batch import Batch
from trainers.loop.randomness import seed_of


class Everyone:
    """The rows of a step, rank by rank, each pair once: where a step's rows cannot be divided, two ranks have some."""

    def __init__(self, batch: Batch) -> None:
        self.partners = batch.partners
        """(B, B) bool: who is whose partner, as in `Batch`."""
        self._sizes = _sizes_of_ranks(len(batch), batch.partners.device)
        if len(self._sizes) > 1:
            assert batch.everywhere is not None
            numbers = torch.tensor([seed_of(uid) for uid in batch.uids], device=batch.partners.device)
            everyone = gathered(numbers, self._sizes)
            first = (everyone[:, None] == everyone).byte().argmax(1)
            self._kept = (first == torch.arange(len(first), device=first.device)).nonzero()[:, 0]
            partners = gathered(batch.everywhere.byte(), self._sizes).bool()
            self.partners = partners[self._kept][:, self._kept]

    def rows(self, own: Tensor) -> Tensor:
        """(b, ...) of this rank -> (B, ...) of all, with gradients."""
        return own if len(self._sizes) == 1 else gathered(own, self._sizes)[self._kept]


def gathered(rows: Tensor, sizes: list[int]) -> Tensor:
    """(b, ...) of this rank -> one rank's after the other's, which are as long as `sizes` says; with gradients."""
    whole: Tensor = _Gather.apply(rows, sizes)
    return whole


def _sizes_of_ranks(size: int, device: torch.device) -> list[int]:
    if not (distributed.is_available() and distributed.is_initialized()):
        return [size]
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(sizes, torch.tensor([size], device=device))
    return [int(size) for size in torch.cat(sizes).tolist()]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        # Collectives take equal shapes: shorter parts are padded, and cut again.
        longest = max(sizes)
        padded = functional.pad(rows, (0, 0) * (rows.ndim - 1) + (0, longest - len(rows))).contiguous()
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        summed = gradients[0].contiguous().clone()
        distributed.all_reduce(summed)
        rank = distributed.get_rank()
        first = sum(ctx.sizes[:rank])
        return summed[first : first + ctx.sizes[rank]], None
