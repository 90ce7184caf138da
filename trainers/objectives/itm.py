"""Image-text matching: does this text belong to this image? Label 1 is a match, 0 a mismatch, always.

Half of what the head judges is mismatched (UNITER, section 3.2; ViLT; METER). A mismatch pairs a text with an image
of the batch that is no true partner of it: not its own image, and no image that has the same text. Where a batch
holds none, the pair stays matched. The head is linear on a tanh layer: (N, hidden or 2 hidden) -> (N, 2); the loss is
cross-entropy.
With `mismatches` = k every pair stays and brings k mismatches more, the other image and the other text by turns, and
the loss is the mean of the matches' and the mismatches' means, so that the halves weigh the same.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model_recipe import Matching
from trainers.batch import Batch
from trainers.encoder import Stream, Streams
from trainers.objectives.objective import OBJECTIVES, Objective, Outcome, Sizes

if TYPE_CHECKING:
    from trainers.model import VisionLanguageModel


@dataclass(frozen=True)
class Judged:
    """N combinations: rows of the batch's texts and images, and whether they match; each (N,) int64 on the CPU."""

    texts: Tensor
    images: Tensor
    labels: Tensor


@OBJECTIVES.add("itm")
class ImageTextMatching(Objective):
    settings: Matching

    def __init__(self, settings: Matching, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        width = sizes.hidden * (2 if settings.pool == "concat" else 1)
        self.dense = nn.Linear(width, sizes.hidden)
        self.head = nn.Linear(sizes.hidden, 2)

    def forward(self, model: "VisionLanguageModel", batch: Batch, random: torch.Generator) -> Outcome:
        judged = combinations(batch.partners.cpu(), self.settings.mismatches, random)
        device = batch.partners.device
        text = batch.text.select(judged.texts.to(device))
        vision = batch.vision.select(judged.images.to(device))
        logits = self.logits(model.encode(text, vision))
        labels = judged.labels.to(device)
        losses = functional.cross_entropy(logits.float(), labels, reduction="none")
        if self.settings.mismatches:
            halves = [losses[labels == label] for label in (0, 1)]
            loss = torch.stack([half.mean() for half in halves if len(half)]).mean()
        else:
            loss = losses.mean()
        return Outcome(loss, {"accuracy": (logits.argmax(-1) == labels).float().mean().detach()})

    def logits(self, streams: Streams) -> Tensor:
        """The encoder's last states of N combinations -> (N, 2): mismatch, match."""
        logits: Tensor = self.head(torch.tanh(self.dense(self._pooled(streams["text"], streams["vision"]))))
        return logits

    def _pooled(self, text: Stream, vision: Stream) -> Tensor:
        if self.settings.pool == "text":
            return text.states[:, 0]
        average = mean_state(vision.states, vision.present)
        if self.settings.pool == "concat":
            return torch.cat([text.states[:, 0], average], -1)
        return mean_state(text.states, text.present) * average


def mean_state(states: Tensor, present: Tensor) -> Tensor:
    """(B, L, hidden), (B, L) bool -> (B, hidden), padding left out."""
    weights = present.to(states.dtype)[..., None]
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


def combinations(partners: Tensor, mismatches: int, random: torch.Generator) -> Judged:
    """Which texts and images of a batch are judged together; `partners` (B, B) bool as in `Batch`."""
    rows = torch.arange(len(partners))
    if mismatches == 0:
        others, found = _strangers(~partners, random)
        # A random half, to within one, and not a coin a pair: the labels' mean does not wander.
        half = torch.zeros(len(rows), dtype=torch.bool)
        half[
            torch.randperm(len(rows), generator=random)[
                : (len(rows) + int(torch.randint(2, (), generator=random))) // 2
            ]
        ] = True
        swapped = half & found
        return Judged(rows, torch.where(swapped, others, rows), (~swapped).long())
    texts, images, labels = [rows], [rows], [torch.ones_like(rows)]
    for number in range(mismatches):
        swaps_image = number % 2 == 0
        others, found = _strangers(~partners if swaps_image else ~partners.t(), random)
        texts.append(rows[found] if swaps_image else others[found])
        images.append(others[found] if swaps_image else rows[found])
        labels.append(torch.zeros(int(found.sum()), dtype=torch.int64))
    return Judged(torch.cat(texts), torch.cat(images), torch.cat(labels))


def _strangers(allowed: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """For each row of (B, B) bool one allowed column, evenly drawn, and whether there is any: (B,) int64, (B,) bool."""
    draws = torch.rand(allowed.shape, generator=random).masked_fill(~allowed, -1.0)
    return draws.argmax(1), allowed.any(1)
