"""What a step works on: B pairs, T text and V vision positions, D feature dimensions, K kept classes a region."""

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Input = TypeVar("Input", "TextInput", "VisionInput")
Movable = TypeVar("Movable", "TextInput", "VisionInput", "Batch")


@dataclass(frozen=True)
class TextInput:
    """Padded token sequences, each [CLS] ... [SEP]."""

    tokens: Tensor
    """(B, T) int64; padding is 0."""
    present: Tensor
    """(B, T) bool; False where padded."""

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
    """Matching pairs: row i's text and row i's image belong together."""

    uids: tuple[str, ...]
    """The pairs' uids, B of them."""
    text: TextInput
    vision: VisionInput
    partners: Tensor
    """(B, B) bool; [i, j] says that text i is, somewhere in the split, a text of image j. The diagonal is True."""

    def __len__(self) -> int:
        return len(self.uids)

    def to(self, device: torch.device) -> "Batch":
        return _to(self, device)


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
