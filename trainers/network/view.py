"""A batch's inputs as objectives corrupt them, beside what they were."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trainers.data.batch import Batch, TextInput, VisionInput, spliced


@dataclass(frozen=True)
class View:
    """N texts and images, row by row; targets are read from the originals, which nothing changes."""

    batch: Batch
    """What it was made of."""
    text: TextInput | None
    """As the encoder sees it."""
    vision: VisionInput | None
    original_text: TextInput | None
    original_vision: VisionInput | None
    tokens: Tensor | None = None
    """(N, T) bool: the tokens that are to be predicted."""
    regions: Tensor | None = None
    """(N, V) bool: the vision positions that are to be predicted."""
    matched: Tensor | None = None
    """(N,) bool: whether text and image belong together; None where all do."""
    own_tags: Tensor | None = None
    """(N,) bool: whether the tags are those of the image; None where all are."""
    entries: Tensor | None = None
    """(N, V) int64: which of the visual dictionary's entries each position was."""
    objects: VisionInput | None = None
    """The detector's regions of the same images, row by row."""
    hidden_object: Tensor | None = None
    """(N,) int64: which of its objects is masked in an image; -1 where none is."""

    @classmethod
    def of(cls, batch: Batch) -> "View":
        return cls(batch, batch.text, batch.vision, batch.text, batch.vision, objects=batch.objects)

    def combined(self, texts: Tensor, images: Tensor, matched: Tensor) -> "View":
        """Other rows of the batch together: (N,) int64 of its texts and images, (N,) bool whether they match.

        Object tags are the image's, as they are when a model is asked. Only before anything is masked.
        """
        assert self.text is not None
        assert self.vision is not None
        vision = self.vision.select(images)
        text = self.text.select(texts) if self.text.segments is None else spliced(self.text, texts, images)
        return replace(
            self,
            text=text,
            vision=vision,
            original_text=text,
            original_vision=vision,
            matched=matched.to(texts.device),
            objects=None if self.objects is None else self.objects.select(images),
        )

    @property
    def true_rows(self) -> Tensor:
        """(N, 1) bool: the rows in which everything belongs together; only there is what is masked predicted."""
        some = self.text or self.vision
        assert some is not None
        true = torch.ones(len(some.present), 1, dtype=torch.bool, device=some.present.device)
        for judged in (self.matched, self.own_tags):
            if judged is not None:
                true &= judged[:, None]
        return true
