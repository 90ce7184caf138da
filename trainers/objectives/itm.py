"""Image-text matching: does this text belong to this image? Label 1 is a match, 0 a mismatch, always.

Half of what the head judges is mismatched (UNITER, section 3.2; ViLT; METER). A mismatch pairs a text with an image
of the batch that is no true partner of it: not its own image, and no image that has the same text. Where a batch
holds none, the pair stays matched. The head is linear, (N, width) -> (N, 2), mostly on a layer with an activation; what
it sees is the recipe's `pool`. The loss is cross-entropy.
With `mismatches` = k every pair stays and brings k mismatches more, the other image and the other text by turns, and
the loss is the mean of the matches' and the mismatches' means, so that the halves weigh the same.
With `hard` every pair stays and brings one other image and one other text, each drawn with a probability in proportion
to softmax(itc's logits) + 1e-4 (ALBEF, section 3.2 and the authors' code), and the loss is the mean over all 3 B.
With `alignment` = a the loss gets a (sum of the matches' - sum of the mismatches' transport distances) / N more, see
`wra`: words that belong to the image are to be near it, others far.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import PairmillError
from pipeline.model_recipe import Matching
from trainers.data.batch import TextInput
from trainers.network.streams import Streams, Wanted
from trainers.network.view import View
from trainers.objectives.itc import ImageTextContrast
from trainers.objectives.objective import OBJECTIVES, Outcome, Reading, Sizes
from trainers.objectives.strangers import random_half, strangers
from trainers.objectives.wra import distances

if TYPE_CHECKING:
    from trainers.network.model import VisionLanguageModel
    from trainers.network.towers import Towers

LEAST_WEIGHT = 1e-4
"""What a stranger's similarity is raised by, so that a draw of hard mismatches cannot fail."""


@dataclass(frozen=True)
class Judged:
    """N combinations: rows of the batch's texts and images, and whether they match; each (N,) int64 on the CPU."""

    texts: Tensor
    images: Tensor
    labels: Tensor


@OBJECTIVES.add("itm")
class ImageTextMatching(Reading):
    settings: Matching
    recombines = True

    def __init__(self, settings: Matching, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.special = sizes.special
        self.dense, width = _dense(settings, sizes)
        self.head = nn.Linear(width, 2)

    def corrupt(self, view: View, random: torch.Generator) -> View:
        judged = combinations(view.batch.partners.cpu(), self.settings.mismatches, random)
        return view.combined(*_on_device(judged, view.batch.partners.device))

    def forward(self, towers: "Towers", random: torch.Generator) -> Outcome:
        """The towers are those of the batch; only the fusion sees the combinations."""
        batch = towers.batch
        assert batch.text is not None
        partners = batch.partners.cpu()
        if self.settings.hard:
            judged = hard_combinations(partners, self._similarities(towers), random)
        else:
            judged = combinations(partners, self.settings.mismatches, random)
        texts, images, matched = _on_device(judged, batch.partners.device)
        if batch.text.segments is not None:  # the tags behind a caption change with the image: no tower is as it was
            view = View.of(batch).combined(texts, images, matched)
            return self.loss(towers.model, view, towers.encode(view, self.wanted(view)))
        return self._outcome(towers.cross(texts, images, self._wanted), self._words(batch.text)[texts], matched)

    def wanted(self, view: View) -> Wanted | None:
        return self._wanted

    def loss(self, model: "VisionLanguageModel", view: View, streams: Streams) -> Outcome:
        assert view.original_text is not None
        assert view.matched is not None
        return self._outcome(streams, self._words(view.original_text), view.matched)

    def logits(self, streams: Streams) -> Tensor:
        """The encoder's last states of N combinations -> (N, 2): mismatch, match."""
        text, vision = streams["text"], streams["vision"]
        pool, each = self.settings.pool, self.settings.dense == "each"
        states = [text.mean(), vision.mean()] if pool == "product" else [text.pooled(), vision.pooled()]
        states = states[: 1 if pool == "text" else 2]
        if each:
            states = [self._activated(dense(state)) for dense, state in zip(self.dense, states, strict=True)]
        whole = torch.cat(states, -1) if pool == "concat" else states[0] if len(states) == 1 else states[0] * states[1]
        if self.settings.dense == "together":
            whole = self._activated(self.dense[0](whole))
        logits: Tensor = self.head(whole)
        return logits

    def _outcome(self, streams: Streams, words: Tensor, matched: Tensor) -> Outcome:
        """`words` (N, T) bool, `matched` (N,) bool."""
        logits, labels = self.logits(streams), matched.long()
        losses = functional.cross_entropy(logits.float(), labels, reduction="none")
        loss = _mean_of_halves(losses, matched) if self.settings.mismatches else losses.mean()
        scalars = {"accuracy": (logits.argmax(-1) == labels).float().mean().detach()}
        if self.settings.alignment:
            vision = streams["vision"]
            present = vision.present[:, vision.leading :]
            moved = distances(streams["text"].inputs, words, vision.inputs, present)
            aligned = torch.where(matched, moved, -moved).mean()
            loss = loss + self.settings.alignment * aligned
            scalars["alignment"] = aligned.detach()
        return Outcome(loss, scalars)

    def _activated(self, states: Tensor) -> Tensor:
        return torch.tanh(states) if self.settings.activation == "tanh" else functional.relu(states)

    @property
    def _wanted(self) -> Wanted | None:
        if self.settings.alignment or self.settings.pool == "product":
            return None
        return Wanted(pooled=frozenset({"text"} if self.settings.pool == "text" else {"text", "vision"}))

    def _words(self, text: TextInput) -> Tensor:
        return text.present & (text.tokens != self.special.cls) & (text.tokens != self.special.sep)

    @staticmethod
    def _similarities(towers: "Towers") -> Tensor:
        contrast = towers.model.objective("itc")
        assert isinstance(contrast, ImageTextContrast)
        return contrast.similarities(towers).cpu()


def combinations(partners: Tensor, mismatches: int, random: torch.Generator) -> Judged:
    """Which texts and images of a batch are judged together; `partners` (B, B) bool as in `Batch`."""
    rows = torch.arange(len(partners))
    if mismatches == 0:
        others, found = strangers(~partners, random)
        swapped = random_half(rows, random) & found
        return Judged(rows, torch.where(swapped, others, rows), (~swapped).long())
    drawn = [strangers(~partners if number % 2 == 0 else ~partners.t(), random) for number in range(mismatches)]
    return _with_mismatches(rows, drawn)


def hard_combinations(partners: Tensor, similarities: Tensor, random: torch.Generator) -> Judged:
    """Every pair, its text with a hard other image, and its image with a hard other text.

    `partners` (B, B) bool as in `Batch`; `similarities` (B, B), of text i and image j, as logits.
    """
    drawn = []
    for logits, allowed in ((similarities, ~partners), (similarities.t(), ~partners.t())):
        # The loss of a diverged model stops the training and says so; the draw must not fail before it.
        weights = logits.float().softmax(1).nan_to_num(0.0) + LEAST_WEIGHT
        found = allowed.any(1)
        weights = torch.where(found[:, None], weights * allowed, 1.0)
        drawn.append((torch.multinomial(weights, 1, generator=random)[:, 0], found))
    return _with_mismatches(torch.arange(len(partners)), drawn)


def _with_mismatches(rows: Tensor, drawn: list[tuple[Tensor, Tensor]]) -> Judged:
    """Every pair, and what was drawn for it, the other image and the other text by turns, where there was any."""
    texts, images, labels = [rows], [rows], [torch.ones_like(rows)]
    for number, (others, found) in enumerate(drawn):
        swaps_image = number % 2 == 0
        texts.append(rows[found] if swaps_image else others[found])
        images.append(others[found] if swaps_image else rows[found])
        labels.append(torch.zeros(int(found.sum()), dtype=torch.int64))
    return Judged(torch.cat(texts), torch.cat(images), torch.cat(labels))


def _on_device(judged: Judged, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    return judged.texts.to(device), judged.images.to(device), judged.labels.to(device).bool()


def _mean_of_halves(losses: Tensor, matched: Tensor) -> Tensor:
    halves = [losses[half] for half in (~matched, matched)]
    return torch.stack([half.mean() for half in halves if len(half)]).mean()


def _dense(settings: Matching, sizes: Sizes) -> tuple[nn.ModuleList, int]:
    """The layers before the head, and how wide what it sees is."""
    widths = [sizes.hidden] if settings.pool == "text" else [sizes.hidden, sizes.vision]
    inner = settings.width or sizes.hidden
    multiplied = settings.pool in ("firsts", "product")
    if multiplied and settings.dense != "each" and sizes.hidden != sizes.vision:
        raise PairmillError(
            f"itm.pool = {settings.pool!r} multiplies states of {sizes.hidden} and {sizes.vision} dimensions",
            'set itm.dense = "each", which makes them equally wide',
        )
    if settings.dense == "each":
        layers = nn.ModuleList(nn.Linear(width, inner) for width in widths)
        return layers, inner if multiplied else inner * len(widths)
    put_together = sizes.hidden if multiplied else sum(widths)
    if settings.dense == "none":
        return nn.ModuleList(), put_together
    return nn.ModuleList([nn.Linear(put_together, inner)]), inner
