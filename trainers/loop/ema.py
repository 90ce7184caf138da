"""A moving average of the weights (Polyak and Juditsky 1992), which is better than its last term."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """average <- k average + (1 - k) weights, after each step t from 0; k = min(decay, (1 + t) / (10 + t)).

    The first steps keep less, so that a short training's average does not consist of its first weights. Buffers, and
    parameters that are not learnt (an objective's momentum twins), are not averaged.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._learnt = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.weights: dict[str, Tensor] = {name: learnt.detach().clone() for name, learnt in self._learnt.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step number `step`."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.weights.values()), list(self._learnt.values()), share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the average for its weights in here; nothing is copied."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self) -> None:
        for name, parameter in self._learnt.items():
            parameter.data, self.weights[name] = self.weights[name], parameter.data
