"""What a step works on: B pairs, T text and V vision positions, D feature dimensions, K kept classes a region."""

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Input = TypeVar("Input", "TextInput", "VisionInput")
Movable = TypeVar("Movable", "TextInput", "VisionInput", "Batch")


@dataclass(frozen=True)
class TextInput:
    """Padded token sequences, each [CLS] ... [SEP]; object tags and another [SEP] may follow."""

    tokens: Tensor
    """(B, T) int64; padding is the tokenizer's [PAD]."""
    present: Tensor
    """(B, T) bool; False where padded."""
    segments: Tensor | None = None
    """(B, T) int64: 0 in the caption, 1 in the object tags that follow it. None is 0 everywhere."""
    continues: Tensor | None = None
    """(B, T) bool: whether the token goes on with the word of the one before."""
    prefix: Tensor | None = None
    """(B,) int64, at least 1: how many tokens attend freely; each later one sees only those before it. None is all."""

    def select(self, rows: Tensor) -> "TextInput":
        """The rows (N,) int64 of the batch, in that order; a row may come more than once."""
        return _select(self, rows)

    def to(self, device: torch.device) -> "TextInput":
        return _to(self, device)


@dataclass(frozen=True)
class VisionInput:
    """Padded feature sequences of one kind; the fields of the other kinds are None."""

    features: Tensor
    """(B, V, D) as stored, so that no more bytes go to the device than were read: float16; int8, in units of `scales`;
    or, for pixels, uint8. Padding is 0. Who computes with them asks `values`."""
    present: Tensor
    """(B, V) bool; False where padded."""
    scales: Tensor | None = None
    """int8 features: (B, V) float32."""
    boxes: Tensor | None = None
    """Regions: (B, V, 4) float32, x1 y1 x2 y2 in [0, 1]."""
    class_ids: Tensor | None = None
    """Regions: (B, V, K) integers, the detector's most probable classes."""
    class_values: Tensor | None = None
    """Regions: (B, V, K) float32, their probabilities; they sum to at most 1."""
    cells: Tensor | None = None
    """Grids, patches, pixels: (B, V, 2) integers, row and column."""
    masked: Tensor | None = None
    """(B, V) bool; True where an objective has hidden the feature, and the mask embedding stands in."""

    def values(self, at: Tensor | None = None) -> Tensor:
        """The features as numbers: (B, V, D) float32; or only those at the True positions of (B, V) bool: (M, D)."""
        features, scales = (part if part is None or at is None else part[at] for part in (self.features, self.scales))
        assert features is not None
        return features.float() if scales is None else features.float() * scales[..., None]

    def select(self, rows: Tensor) -> "VisionInput":
        """The rows (N,) int64 of the batch, in that order; a row may come more than once."""
        return _select(self, rows)

    def to(self, device: torch.device) -> "VisionInput":
        return _to(self, device)


@dataclass(frozen=True)
class Batch:
    """Matching pairs: row i's text and row i's image belong together. What its source lacks is None."""

    uids: tuple[str, ...]
    """The pairs' uids, B of them."""
    text: TextInput | None
    vision: VisionInput | None
    partners: Tensor
    """(B, B) bool; [i, j] says that text i is, somewhere in the split, a text of image j. The diagonal is True."""
    everywhere: Tensor | None = None
    """(B, A) bool: as `partners`, with the images of all A rows of the step, rank by rank; None where all are here."""
    objects: VisionInput | None = None
    """A detector's regions of the same images, which supervise and are not shown."""
    translation: TextInput | None = None
    """The same said otherwise, row by row: in another language, or another caption of the image."""

    def __len__(self) -> int:
        return len(self.uids)

    @property
    def parts(self) -> frozenset[str]:
        """Which of its inputs are there, and "tags" where the texts have any."""
        there = {name for name in ("text", "vision", "objects", "translation") if getattr(self, name) is not None}
        return frozenset(there | {"tags"} if self.text is not None and self.text.segments is not None else there)

    def to(self, device: torch.device) -> "Batch":
        return _to(self, device)


def spliced(text: TextInput, captions: Tensor, tags: Tensor) -> TextInput:
    """The captions and the tags of the rows (N,) int64 each of a batch, side by side; padded to the longest, by 0."""
    assert text.segments is not None
    of_caption = (text.present & (text.segments == 0)).sum(1)
    first, second = of_caption[captions], (text.present.sum(1) - of_caption)[tags]
    places = torch.arange(int((first + second).max()), device=first.device).expand(len(first), -1)
    in_tags = places >= first[:, None]
    present = places < (first + second)[:, None]
    rows = torch.where(in_tags, tags[:, None], captions[:, None])
    columns = torch.where(in_tags, places - first[:, None] + of_caption[tags][:, None], places)
    columns = columns.clamp(max=text.tokens.shape[1] - 1)
    continues = None if text.continues is None else text.continues[rows, columns] & present
    return TextInput(
        tokens=text.tokens[rows, columns].masked_fill(~present, 0),
        present=present,
        segments=(in_tags & present).long(),
        continues=continues,
        prefix=None if text.prefix is None else text.prefix[captions],
    )


def _select(value: Input, rows: Tensor) -> Input:
    tensors = {field.name: getattr(value, field.name) for field in fields(value)}
    return replace(
        value, **{name: tensor.index_select(0, rows) for name, tensor in tensors.items() if tensor is not None}
    )


def _to(value: Movable, device: torch.device) -> Movable:
    moved: dict[str, Any] = {}
    for field in fields(value):
        part = getattr(value, field.name)
        if isinstance(part, Tensor):
            moved[field.name] = part.to(device, non_blocking=True)
        elif isinstance(part, TextInput | VisionInput):
            moved[field.name] = part.to(device)
    return replace(value, **moved)
