"""Contrast of object tags: are they those of the image, or another's? (Oscar, section 3.3, equation 4.)

For half of the rows, to within one, the tags are those of another image of the batch, one that is no true partner of
the row's text. A head on [CLS] (a tanh layer, then linear) says whether they are the image's own (class 1) or not
(class 0). With three classes (VinVL, section 3.2) half of the polluted rows keep their tags and get the caption of
another image instead (class 2). (N, hidden) -> (N, classes); the loss is cross-entropy. Where a batch holds no
stranger, the row stays as it is. Other objectives that share the input predict only where all is the image's own.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model_recipe import TagContrast
from trainers.data.batch import spliced
from trainers.network.streams import Streams, Wanted
from trainers.network.view import View
from trainers.objectives.objective import OBJECTIVES, Outcome, Reading, Sizes
from trainers.objectives.strangers import random_half, strangers

if TYPE_CHECKING:
    from trainers.network.model import VisionLanguageModel

OTHER_TAGS, OWN, OTHER_CAPTION = range(3)


@OBJECTIVES.add("tag_contrast")
class ObjectTagContrast(Reading):
    settings: TagContrast
    needs = frozenset({"text", "vision", "tags"})
    recombines = True

    def __init__(self, settings: TagContrast, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.dense = nn.Linear(sizes.hidden, sizes.hidden)
        self.head = nn.Linear(sizes.hidden, settings.classes)

    def corrupt(self, view: View, random: torch.Generator) -> View:
        assert view.text is not None
        classes = draw_classes(view.batch.partners.cpu(), self.settings.classes, random)
        device = view.text.tokens.device
        text = spliced(view.text, classes.captions.to(device), classes.tags.to(device))
        labels = classes.labels.to(device)
        return replace(
            view, text=text, original_text=text, own_tags=labels != OTHER_TAGS, matched=labels != OTHER_CAPTION
        )

    def wanted(self, view: View) -> Wanted:
        return Wanted(pooled=frozenset({"text"}))

    def loss(self, model: "VisionLanguageModel", view: View, streams: Streams) -> Outcome:
        assert view.own_tags is not None
        assert view.matched is not None
        labels = torch.where(view.matched, view.own_tags.long(), OTHER_CAPTION)
        logits = self.logits(streams)
        loss = functional.cross_entropy(logits.float(), labels)
        return Outcome(loss, {"accuracy": (logits.argmax(-1) == labels).float().mean().detach()})

    def logits(self, streams: Streams) -> Tensor:
        """The encoder's last states of N rows -> (N, classes): the tags are another's, all is well, the caption is."""
        logits: Tensor = self.head(torch.tanh(self.dense(streams["text"].pooled())))
        return logits


@dataclass(frozen=True)
class Classes:
    """N rows: whose caption and whose tags each gets, and its class; each (N,) int64 on the CPU."""

    captions: Tensor
    tags: Tensor
    labels: Tensor


def draw_classes(partners: Tensor, classes: int, random: torch.Generator) -> Classes:
    """`partners` (B, B) bool as in `Batch`."""
    rows = torch.arange(len(partners))
    polluted = random_half(rows, random)
    # The caption's turn comes for half of the polluted rows; with two classes it never does.
    of_caption = torch.zeros(len(rows), dtype=torch.bool)
    if classes == 3:
        of_caption[rows[polluted][random_half(rows[polluted], random)]] = True
    images, image_found = strangers(~partners, random)
    texts, text_found = strangers(~partners.t(), random)
    other_tags = polluted & ~of_caption & image_found
    other_caption = polluted & of_caption & text_found
    labels = torch.full_like(rows, OWN).masked_fill(other_tags, OTHER_TAGS).masked_fill(other_caption, OTHER_CAPTION)
    return Classes(torch.where(other_caption, texts, rows), torch.where(other_tags, images, rows), labels)
