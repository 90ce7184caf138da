"""What an objective is: a loss over a batch, with the heads that only it needs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from trainers.data.text import OWN_SPECIAL_TOKENS, SpecialTokens
from trainers.network.embeddings import FeatureShape
from trainers.network.streams import Streams, Wanted
from trainers.network.view import View
from trainers.registry import Registry

if TYPE_CHECKING:
    from trainers.network.model import VisionLanguageModel
    from trainers.network.towers import Towers


@dataclass(frozen=True)
class Sizes:
    """What the heads are built for."""

    hidden: int
    """The text stream's width, and the vision stream's where it has none of its own."""
    vision: int
    vocabulary: int
    features: FeatureShape
    epsilon: float = 1e-12
    """The LayerNorms'."""
    special: SpecialTokens = OWN_SPECIAL_TOKENS
    """The numbers of the pieces that are no text."""
    entries: int = 0
    """Of the visual dictionary; 0 where there is none."""
    objects: FeatureShape | None = None
    """The shape of the features in `Batch.objects`, where the recipe names their extractor."""
    class_words: tuple[tuple[int, ...], ...] = ()
    """The pieces of each class's name that the detector of `Batch.objects` knows."""


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
    needs: ClassVar[frozenset[str]] = frozenset({"text", "vision"})
    """The parts of a batch without which it does not apply."""

    def __init__(self, settings: Any, sizes: Sizes) -> None:
        super().__init__()
        self.settings = settings

    def ready(self, model: "VisionLanguageModel") -> None:
        """Called once, when the model is built and has its first weights."""

    def forward(self, towers: "Towers", random: torch.Generator) -> Outcome:
        raise NotImplementedError


class Reading(Objective):
    """An objective that reads the encoder's last states of one corrupted input, which it can share with others."""

    recombines: ClassVar[bool] = False
    """Whether it puts together texts and images that do not match; then it corrupts before those that mask."""

    def corrupt(self, view: View, random: torch.Generator) -> View:
        """The input with this objective's corruption, on top of what others have done to it."""
        raise NotImplementedError

    def wanted(self, view: View) -> Wanted | None:
        """What `loss` reads of the last states; None is all."""
        return None

    def loss(self, model: "VisionLanguageModel", view: View, streams: Streams) -> Outcome:
        """From the encoder's last states of the corrupted input, of which those that are not wanted mean nothing."""
        raise NotImplementedError

    def forward(self, towers: "Towers", random: torch.Generator) -> Outcome:
        view = self.corrupt(View.of(towers.batch), random)
        return self.loss(towers.model, view, towers.encode(view, self.wanted(view)))


def all_wanted(readers: Sequence[Reading], view: View) -> Wanted | None:
    """What any of them reads."""
    every = Wanted()
    for reader in readers:
        wanted = reader.wanted(view)
        if wanted is None:
            return None
        every = every | wanted
    return every


OBJECTIVES: Registry[type[Objective]] = Registry("objective")
