"""SOHO's visual dictionary: features become the nearest of a few learnt entries (Huang et al. 2021, section 3.2).

A feature v is looked up as the entry d_h with h = argmin |v - d_j|, by Euclidean distance. In the backward pass the
gradient of d_h goes to v, as if nothing had been replaced (straight through). The entries are no parameters: after
each look-up of a training step an entry that was somebody's nearest moves towards the mean of those features,

    d_j <- decay * d_j + (1 - decay) * mean of {v : h(v) = j},

and the others stay. The decay is a tenth of the number of updates so far, at most the recipe's: the first update puts
an entry where its features are, and from the tenth on it moves slowly (the authors' code ramps alike). The
entries begin as standard normal numbers; features are brought to that scale first, by a LayerNorm without weights where
the authors have a BatchNorm, so that a look-up does not depend on what else is in the batch.
"""

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from pipeline.model_recipe import Dictionary

RAMP = 0.1
"""By how much an update raises the decay, until it is the recipe's."""
NOWHERE = -1
"""The index of a position that is not looked up."""


class VisualDictionary(nn.Module):
    """The entries are a buffer: a checkpoint carries them, and the optimizer does not see them."""

    entries: Tensor
    """(entries, width) float32"""
    updates: Tensor
    """() int64: how many so far."""

    def __init__(self, settings: Dictionary, width: int) -> None:
        super().__init__()
        self.decay = settings.decay
        self.register_buffer("entries", torch.randn(settings.entries, width))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, features: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """(B, V, width) features -> the nearest entries in their place, and their numbers: (B, V) int64.

        Where (B, V) bool `present` is False (padding, masked) a feature is normalised and no more, its number is -1,
        and it moves no entry. In training mode the entries are updated, after the look-up.
        """
        features = self._normalised(features)
        indices = self._nearest(features, present)
        found = torch.where(present[..., None], self.entries[indices.clamp(min=0)].to(features.dtype), features)
        if self.training:
            self._update(features.detach()[present].float(), indices[present])
        return features + (found - features).detach(), indices

    @torch.no_grad()
    def nearest(self, features: Tensor, present: Tensor) -> Tensor:
        """Only the numbers: (B, V) int64, -1 where `present` is False. Nothing is updated."""
        return self._nearest(self._normalised(features), present)

    def _normalised(self, features: Tensor) -> Tensor:
        return functional.layer_norm(features, features.shape[-1:])

    @torch.no_grad()
    def _nearest(self, features: Tensor, present: Tensor) -> Tensor:
        wanted = features[present].float()
        # |v - d|^2 without |v|^2, which is the same for all entries.
        with torch.autocast(features.device.type, enabled=False):
            distances = torch.addmm(self.entries.square().sum(1), wanted, self.entries.t(), alpha=-2)
        indices = torch.full(present.shape, NOWHERE, dtype=torch.int64, device=present.device)
        indices[present] = distances.argmin(1)
        return indices

    @torch.no_grad()
    def _update(self, features: Tensor, indices: Tensor) -> None:
        """One step of the moving average by (N, width) features of all ranks, whose entries are (N,)."""
        counts = torch.bincount(indices, minlength=len(self.entries)).float()
        sums = torch.zeros_like(self.entries).index_add_(0, indices, features)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(counts)
            distributed.all_reduce(sums)
        decay = (RAMP * self.updates).clamp(max=self.decay)
        moved = torch.lerp(sums / counts.clamp(min=1)[:, None], self.entries, decay.float())
        self.entries.copy_(torch.where(counts[:, None] > 0, moved, self.entries))
        self.updates.add_(1)
