"""From a batch's inputs to the encoder's first states: text, region, grid, patch and pixel embeddings, by kind."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pipeline.model_recipe import Encoder, Text, Vision
from trainers.batch import TextInput, VisionInput
from trainers.registry import Registry

EPSILON = 1e-12
"""LayerNorm's, as in BERT."""


@dataclass(frozen=True)
class FeatureShape:
    """What the features' identity says about them."""

    width: int
    """D, the feature's dimensions."""
    classes: int = 0
    """How many classes the detector knows; 0 where there is none."""
    grid: tuple[int, int] = (0, 0)
    """Rows and columns of a grid or of patches; for pixels, whose images differ in shape, the most there can be."""


class TextEmbedding(nn.Module):
    """Word + position + type (here `modality`), LayerNorm, dropout (BERT, section 3): (B, T) -> (B, T, hidden)."""

    def __init__(self, text: Text, encoder: Encoder, vocabulary: int) -> None:
        super().__init__()
        self.word = nn.Embedding(vocabulary, encoder.hidden, padding_idx=0)
        self.position = nn.Embedding(text.max_tokens, encoder.hidden)
        self.modality = nn.Parameter(torch.zeros(encoder.hidden))
        self.norm = nn.LayerNorm(encoder.hidden, EPSILON)
        self.dropout = nn.Dropout(encoder.dropout)

    def forward(self, text: TextInput) -> Tensor:
        positions = self.position.weight[: text.tokens.shape[1]]
        states: Tensor = self.dropout(self.norm(self.word(text.tokens) + positions + self.modality))
        return states


class VisionEmbedding(nn.Module):
    """Projected features, made comparable first, with the mask embedding where a feature is hidden.

    `place` adds what the kind knows of the position; all of it is (B, V, hidden).
    """

    columns: ClassVar[tuple[str, ...]] = ("features",)
    """What it reads of the feature store."""
    mean: Tensor
    deviation: Tensor

    def __init__(self, vision: Vision, encoder: Encoder, shape: FeatureShape) -> None:
        super().__init__()
        self.project = nn.Linear(shape.width, encoder.hidden)
        self.mask = nn.Parameter(torch.zeros(shape.width))
        self.modality = nn.Parameter(torch.zeros(encoder.hidden))
        self.feature_norm = nn.LayerNorm(encoder.hidden, EPSILON)
        self.norm = nn.LayerNorm(encoder.hidden, EPSILON)
        self.dropout = nn.Dropout(encoder.dropout)
        # Buffers, so that a saved model carries the statistics that it was trained with.
        self.register_buffer("mean", torch.zeros(shape.width))
        self.register_buffer("deviation", torch.ones(shape.width))

    def standardized(self, features: Tensor) -> Tensor:
        """(..., D) float32 features -> the same by the statistics that the model carries."""
        return (features - self.mean) / self.deviation

    def forward(self, vision: VisionInput) -> Tensor:
        features = self.standardized(vision.values())
        if vision.masked is not None:
            # UNITER: the feature is zeroed and a learnt mask embedding added, before the projection.
            features = torch.where(vision.masked[..., None], self.mask, features)
        states: Tensor = self.feature_norm(self.project(features)) + self.place(vision) + self.modality
        states = self.dropout(self.norm(states))
        return states

    def place(self, vision: VisionInput) -> Tensor:
        raise NotImplementedError


VISION_EMBEDDINGS: Registry[type["VisionEmbedding"]] = Registry("vision embedding")


@VISION_EMBEDDINGS.add("region")
class RegionEmbedding(VisionEmbedding):
    """Regions with 4-, 5- or 7-d boxes (UNITER, section 3.1: feature and box each through a LayerNorm, then summed)."""

    columns = ("features", "boxes")

    def __init__(self, vision: Vision, encoder: Encoder, shape: FeatureShape) -> None:
        super().__init__(vision, encoder, shape)
        self.numbers = vision.box
        self.box = nn.Linear(vision.box, encoder.hidden)
        self.box_norm = nn.LayerNorm(encoder.hidden, EPSILON)

    def place(self, vision: VisionInput) -> Tensor:
        assert vision.boxes is not None
        states: Tensor = self.box_norm(self.box(box_numbers(vision.boxes, self.numbers)))
        return states


@VISION_EMBEDDINGS.add("grid")
@VISION_EMBEDDINGS.add("patch")
class GridEmbedding(VisionEmbedding):
    """Grid cells or a ViT's patch tokens with a learnt embedding for the row and one for the column.

    As Pixel-BERT, section 3.1, does for its grid.
    """

    def __init__(self, vision: Vision, encoder: Encoder, shape: FeatureShape) -> None:
        super().__init__(vision, encoder, shape)
        rows, columns = shape.grid
        self.row = nn.Embedding(rows, encoder.hidden)
        self.column = nn.Embedding(columns, encoder.hidden)

    def place(self, vision: VisionInput) -> Tensor:
        assert vision.cells is not None
        rows, columns = vision.cells.long().unbind(-1)
        states: Tensor = self.row(rows) + self.column(columns)
        return states


@VISION_EMBEDDINGS.add("pixel")
class PixelEmbedding(GridEmbedding):
    """Patches of raw pixels, linearly projected (ViLT, section 3.1).

    Bytes become numbers in [-1, 1]: (x / 255 - 0.5) / 0.5, which is what the first statistics do.
    """

    columns = ("features", "positions")

    def __init__(self, vision: Vision, encoder: Encoder, shape: FeatureShape) -> None:
        super().__init__(vision, encoder, shape)
        self.mean.fill_(255 / 2)
        self.deviation.fill_(255 / 2)


def box_numbers(boxes: Tensor, numbers: int) -> Tensor:
    """(..., 4) corners in [0, 1] -> (..., 4|5|7): corners; then the area; or then width, height and area."""
    width = boxes[..., 2] - boxes[..., 0]
    height = boxes[..., 3] - boxes[..., 1]
    more = {4: [], 5: [width * height], 7: [width, height, width * height]}[numbers]
    return torch.cat([boxes, *(number[..., None] for number in more)], dim=-1)
