"""From a batch's inputs to the encoder's first states: text, region, grid, patch and pixel embeddings, by kind."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model_recipe import Encoder, Text, Vision
from trainers.data.batch import TextInput, VisionInput
from trainers.network.dictionary import VisualDictionary
from trainers.network.dropping import dropped
from trainers.network.resampler import Resampler
from trainers.network.streams import Stream
from trainers.registry import Registry


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
    """Word + position + segment, LayerNorm, dropout (BERT, section 3): (B, T) -> (B, T, hidden)."""

    def __init__(self, text: Text, encoder: Encoder, vocabulary: int, pad: int) -> None:
        super().__init__()
        self.causal = text.causal or encoder.causal
        self.pool = text.pool
        self.word = nn.Embedding(vocabulary, encoder.hidden, padding_idx=pad)
        self.position = nn.Embedding(text.max_tokens + text.tags, encoder.hidden)
        self.modality = nn.Parameter(torch.zeros(1 + (text.tags > 0), encoder.hidden))
        self.norm = nn.LayerNorm(encoder.hidden, encoder.epsilon) if text.norm else nn.Identity()
        self.dropout, self.word_dropout = encoder.dropout, text.word_dropout

    def forward(self, text: TextInput, before: int = 0) -> Stream:
        """`before`: how many positions of another stream stand before the text's where every order is causal."""
        words = self.word(text.tokens) + self.position.weight[: text.tokens.shape[1]]
        segments = self.modality[0] if text.segments is None else self.modality[text.segments]
        states = dropped(self.norm(words + segments), self.dropout, self.training)
        return Stream(states, self._seen(text), self._order(text, before), summary=self.pool)

    def _seen(self, text: TextInput) -> Tensor:
        """(B, T) bool: what is there, less the words that this step does without."""
        if not self.training or not self.word_dropout:
            return text.present
        kept = torch.rand(text.present.shape, device=text.present.device) >= self.word_dropout
        # The first and the last token stand for the text.
        kept[:, 0] = True
        kept.scatter_(1, text.present.long().sum(1, keepdim=True) - 1, True)
        return text.present & kept

    def _order(self, text: TextInput, before: int) -> Tensor | None:
        if text.prefix is None and not self.causal:
            return None
        places = torch.arange(text.tokens.shape[1], device=text.tokens.device).expand_as(text.tokens)
        if self.causal:
            return places + before
        assert text.prefix is not None
        # What lies in the prefix has the image's order, 0; [CLS] always does, so that no query is without a key.
        return (places - text.prefix.clamp(min=1)[:, None] + 1).clamp(min=0)


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
        hidden = encoder.of("vision").hidden
        self.first_kind, self.causal = vision.first, encoder.causal
        self.project = nn.Linear(shape.width, hidden)
        self.mask = nn.Parameter(torch.zeros(shape.width))
        self.modality = nn.Parameter(torch.zeros(hidden))
        self.first = nn.Parameter(torch.zeros(hidden)) if vision.first == "token" else None
        self.feature_norm = self.part_norm(vision, encoder)
        self.norm = nn.LayerNorm(hidden, encoder.epsilon) if "sum" in vision.norms else nn.Identity()
        self.dropout, self.feature_dropout = encoder.dropout, vision.feature_dropout
        self.dictionary = VisualDictionary(vision.dictionary, hidden) if vision.dictionary else None
        self.resampler = Resampler(vision.resampler, encoder) if vision.resampler else None
        # Buffers, so that a saved model carries the statistics that it was trained with.
        self.register_buffer("mean", torch.zeros(shape.width))
        self.register_buffer("deviation", torch.ones(shape.width))

    @staticmethod
    def part_norm(vision: Vision, encoder: Encoder) -> nn.Module:
        """The LayerNorm of one part of the sum, where the recipe has them."""
        return nn.LayerNorm(encoder.of("vision").hidden, encoder.epsilon) if "parts" in vision.norms else nn.Identity()

    def standardized(self, features: Tensor) -> Tensor:
        """(..., D) float32 features -> the same by the statistics that the model carries."""
        return (features - self.mean) / self.deviation

    def forward(self, vision: VisionInput) -> Stream:
        features, present = self.standardized(vision.values()), vision.present
        features = dropped(features, self.feature_dropout, self.training)
        if vision.masked is not None:
            # UNITER: the feature is zeroed and a learnt mask embedding added, before the projection.
            features = torch.where(vision.masked[..., None], self.mask, features)
        projected = self.project(features)
        if self.dictionary is not None:
            projected, _ = self.dictionary(projected, self._seen(vision))
        states = self.feature_norm(projected) + self.place(vision)
        leading = 0
        if self.first_kind != "none":
            states = torch.cat([self._first(features, vision)[:, None], states], 1)
            present = functional.pad(present, (1, 0), value=True)
            leading = 1
        states = dropped(self.norm(states + self.modality), self.dropout, self.training)
        if self.resampler is not None:
            states = self.resampler(states, present)
            present, leading = torch.ones_like(states[..., 0], dtype=torch.bool), 0
        order = torch.arange(states.shape[1], device=states.device).expand_as(present) if self.causal else None
        return Stream(states, present, order, leading, "first" if leading else "mean")

    def indices(self, vision: VisionInput) -> Tensor:
        """(B, V) int64: which of the dictionary's entries each position is; -1 where there is none."""
        assert self.dictionary is not None
        return self.dictionary.nearest(self.project(self.standardized(vision.values())), self._seen(vision))

    def place(self, vision: VisionInput) -> Tensor:
        """(B, V, hidden): where each position is."""
        raise NotImplementedError

    def whole(self, vision: VisionInput) -> Tensor:
        """(B or 1, hidden): the place of the whole image, for the mean of the features."""
        raise NotImplementedError

    def _first(self, features: Tensor, vision: VisionInput) -> Tensor:
        if self.first is not None:
            return self.first.expand(len(features), -1)
        weights = self._seen(vision).to(features.dtype)[..., None]
        mean = (features * weights).sum(1) / weights.sum(1).clamp(min=1)
        states: Tensor = self.feature_norm(self.project(mean)) + self.whole(vision)
        return states

    def _seen(self, vision: VisionInput) -> Tensor:
        """(B, V) bool: what is there and not hidden."""
        return vision.present if vision.masked is None else vision.present & ~vision.masked


VISION_EMBEDDINGS: Registry[type["VisionEmbedding"]] = Registry("vision embedding")


@VISION_EMBEDDINGS.add("region")
class RegionEmbedding(VisionEmbedding):
    """Regions with 4-, 5- or 7-d boxes (UNITER, section 3.1: feature and box each through a LayerNorm, then summed)."""

    columns = ("features", "boxes")

    def __init__(self, vision: Vision, encoder: Encoder, shape: FeatureShape) -> None:
        super().__init__(vision, encoder, shape)
        self.numbers = vision.box
        self.box = nn.Linear(vision.box, encoder.of("vision").hidden) if vision.box else None
        self.box_norm = self.part_norm(vision, encoder) if vision.box else None

    def place(self, vision: VisionInput) -> Tensor:
        assert vision.boxes is not None
        return self._placed(vision.boxes)

    def whole(self, vision: VisionInput) -> Tensor:
        return self._placed(self.modality.new_tensor([[0.0, 0.0, 1.0, 1.0]]))

    def _placed(self, boxes: Tensor) -> Tensor:
        if self.box is None or self.box_norm is None:
            return self.modality.new_zeros(())
        states: Tensor = self.box_norm(self.box(box_numbers(boxes, self.numbers)))
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
        hidden = encoder.of("vision").hidden
        self.row = nn.Embedding(rows, hidden)
        self.column = nn.Embedding(columns, hidden)

    def place(self, vision: VisionInput) -> Tensor:
        assert vision.cells is not None
        rows, columns = vision.cells.long().unbind(-1)
        states: Tensor = self.row(rows) + self.column(columns)
        return states

    def whole(self, vision: VisionInput) -> Tensor:
        return self.modality.new_zeros(1, len(self.modality))


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
