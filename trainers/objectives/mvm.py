"""Masked vision modelling over a visual dictionary (SOHO, Huang et al. 2021, section 3.3).

Each position of an image has the number of its nearest entry in the dictionary (see `trainers/network/dictionary.py`).
Of the entries that an image has, each is chosen with probability 0.15, at least one; all of the image's positions that
have a chosen entry are masked together, since the image's neighbouring cells look alike and would give it away. From
the last state of a masked position a transform and a linear layer predict the number: loss = cross-entropy, averaged
over the masked positions of matching rows. Only these M positions go through the head: (M, hidden) -> (M, entries).

The authors' code compares the state with the entries by their cosine, without a scale, and masks one entry an image in
1.5 % of the images; the head of its own and the share of 15 % (of the paper's MLM) are ours.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.model_recipe import MaskedVision
from trainers.network.dictionary import NOWHERE
from trainers.network.streams import Streams, Wanted
from trainers.network.view import View
from trainers.objectives.objective import OBJECTIVES, Outcome, Reading, Sizes
from trainers.objectives.regions import prediction_head

if TYPE_CHECKING:
    from trainers.network.model import VisionLanguageModel


@OBJECTIVES.add("mvm")
class MaskedVisionModelling(Reading):
    settings: MaskedVision
    needs = frozenset({"vision"})

    def __init__(self, settings: MaskedVision, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.head = prediction_head(sizes.vision, sizes.entries, sizes.epsilon)

    def ready(self, model: "VisionLanguageModel") -> None:
        # In a tuple, so that it is not registered as a part of this objective as well.
        self._embedding = (model.vision,)

    def corrupt(self, view: View, random: torch.Generator) -> View:
        vision, original = view.vision, view.original_vision
        assert vision is not None
        assert original is not None
        entries = self._embedding[0].indices(original)
        chosen = choose_entries(entries, self.settings.probability, random).to(entries.device)
        if vision.masked is not None:
            chosen = chosen | vision.masked
        hidden = replace(vision, features=vision.features.masked_fill(chosen[..., None], 0), masked=chosen)
        return replace(view, vision=hidden, regions=chosen & view.true_rows, entries=entries)

    def wanted(self, view: View) -> Wanted:
        assert view.regions is not None
        return Wanted({"vision": view.regions})

    def loss(self, model: "VisionLanguageModel", view: View, streams: Streams) -> Outcome:
        assert view.regions is not None
        assert view.entries is not None
        targets = view.entries[view.regions]
        logits = self.head(streams["vision"].inputs[view.regions]).float()
        # A sum over none is zero and not NaN, should no row match.
        loss = functional.cross_entropy(logits, targets, reduction="sum") / max(len(targets), 1)
        right = (logits.argmax(-1) == targets).float().sum() / max(len(targets), 1)
        return Outcome(loss, {"accuracy": right.detach(), "perplexity": perplexity(view.entries)})


def perplexity(entries: Tensor) -> Tensor:
    """exp(entropy) of the numbers in (B, V): as if so many entries were in equal use. Its log is the loss of chance."""
    counts = entries[entries != NOWHERE].unique(return_counts=True)[1]
    shares = counts / counts.sum()
    return (-torch.xlogy(shares, shares).sum()).exp()


def choose_entries(entries: Tensor, probability: float, random: torch.Generator) -> Tensor:
    """Of the numbers that stand in a row of (B, V) int64 each with this probability, at least one; where they stand.

    (B, V) bool on the CPU; a position that is `NOWHERE` is not chosen.
    """
    entries = entries.cpu()
    there = entries != NOWHERE
    # One draw for each number of an image: all positions with the same one have the same draw.
    draws = torch.rand(len(entries), max(int(entries.max()), 0) + 1, generator=random)
    draws = draws.gather(1, entries.clamp(min=0)).masked_fill(~there, 2.0)
    return ((draws < probability) | (draws == draws.min(1, keepdim=True).values)) & there
