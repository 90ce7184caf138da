"""A space in which texts and images lie and are compared: the part that contrasts have in common."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model_recipe import Joint
from trainers.network.streams import Stream
from trainers.objectives.objective import Objective, Sizes

if TYPE_CHECKING:
    from trainers.network.towers import Towers


class JointSpace(Objective):
    """Projects the state that stands for a text, and the one that stands for an image, to unit vectors."""

    settings: Joint

    def __init__(self, settings: Joint, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.text = nn.Linear(sizes.hidden, settings.width, settings.bias)
        self.vision = nn.Linear(sizes.vision, settings.width, settings.bias)

    def embed_text(self, stream: Stream) -> Tensor:
        """Text states, of the place that the recipe's `at` names -> (B, width), of length 1."""
        return unit(self.text, stream)

    def embed_vision(self, stream: Stream) -> Tensor:
        """Vision states, of the place that the recipe's `at` names -> (B, width), of length 1."""
        return unit(self.vision, stream)

    def embedded(self, towers: "Towers") -> tuple[Tensor, Tensor]:
        """A batch's texts and images: (B, width) each."""
        return self.embedded_text(towers), self.embed_vision(towers.apart("vision") if self.at_end else towers.vision)

    def embedded_text(self, towers: "Towers") -> Tensor:
        """A batch's texts: (B, width)."""
        return self.embed_text(towers.apart("text") if self.at_end else towers.text)

    @property
    def at_end(self) -> bool:
        """Whether a modality goes through the whole encoder by itself first."""
        return self.settings.at == "end"


def unit(projection: nn.Module, stream: Stream) -> Tensor:
    """(B, width) float32 of length 1, of the states that stand for the whole."""
    return functional.normalize(projection(stream.pooled()).float(), dim=-1)


def cosines(some: Tensor, others: Tensor) -> Tensor:
    """(N, width), (M, width) of length 1 -> (N, M), in float32 also where the model runs in less."""
    with torch.autocast(some.device.type, enabled=False):
        return some @ others.t()
