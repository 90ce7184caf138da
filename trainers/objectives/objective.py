"""What an objective is: a loss over a batch of matching pairs, with the heads that only it needs."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from trainers.batch import Batch
from trainers.embeddings import FeatureShape
from trainers.registry import Registry

if TYPE_CHECKING:
    from trainers.model import VisionLanguageModel


@dataclass(frozen=True)
class Sizes:
    """What the heads are built for."""

    hidden: int
    vocabulary: int
    features: FeatureShape


@dataclass(frozen=True)
class Outcome:
    """The loss (a scalar with a gradient) and what else is worth a curve (scalars without)."""

    loss: Tensor
    scalars: dict[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module):
    """One objective. It runs the model on its own corrupted copy of the batch and never changes the batch itself.

    All of its draws come from the generator that it is given, on the CPU, so that a step can be repeated.
    """

    columns: ClassVar[tuple[str, ...]] = ()
    """What it reads of the feature store beyond what the vision embedding does."""

    def __init__(self, settings: Any, sizes: Sizes) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, model: "VisionLanguageModel", batch: Batch, random: torch.Generator) -> Outcome:
        raise NotImplementedError


OBJECTIVES: Registry[type[Objective]] = Registry("objective")
