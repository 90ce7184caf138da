"""Batches of grid features with a detector's objects beside them, and models that read them."""

from typing import Any

import torch
from synthetic import CLASSES, TOP, WIDTH, model_recipe

from trainers.data.batch import Batch, TextInput, VisionInput
from trainers.network.embeddings import FeatureShape
from trainers.network.model import VisionLanguageModel

VOCABULARY = 40
GRID = (3, 4)
OBJECT_WIDTH = 7
OBJECTS = FeatureShape(OBJECT_WIDTH, CLASSES)
CLASS_WORDS = tuple((5 + number, 20 + number)[: 1 + number % 2] for number in range(CLASSES))
"""Each class's name as pieces."""


def grid_model(
    objectives: dict[str, Any],
    detector: FeatureShape | None = OBJECTS,
    class_words: tuple[tuple[int, ...], ...] = CLASS_WORDS,
    **over: Any,
) -> VisionLanguageModel:
    """A minute single-stream model of grid features, with whatever else the recipe says."""
    torch.manual_seed(1)
    recipe = model_recipe("grid", objectives=objectives, **{"objects": "region", **over})
    model = VisionLanguageModel(recipe, VOCABULARY, FeatureShape(WIDTH, 0, GRID), detector, class_words)
    return model.eval()


def dual_encoder() -> dict[str, Any]:
    """A recipe's encoder section in which the modalities never meet."""
    own = [{"repeat": 1, "attention": [["text-text", "vision-vision"]], "weights": "separate"}]
    return {"hidden": 16, "heads": 2, "feedforward": 24, "initializer": 0.2, "blocks": own}


def separate_widths() -> dict[str, Any]:
    """A recipe's encoder section whose vision stream is narrower than its text stream."""
    blocks = [
        {"attention": [["text-text", "vision-vision"], ["text-vision", "vision-text"]], "weights": "separate"},
    ]
    return {
        "hidden": 16,
        "heads": 2,
        "feedforward": 24,
        "initializer": 0.2,
        "vision": {"hidden": 12, "heads": 2, "feedforward": 20},
        "cross": {"width": 8, "heads": 2},
        "blocks": blocks,
    }


def words(lengths: torch.Tensor, random: torch.Generator) -> TextInput:
    """Texts of (B,) lengths, [CLS] and [SEP] included; about a third of the pieces go on with a word."""
    present = torch.arange(int(lengths.max())) < lengths[:, None]
    tokens = torch.randint(5, VOCABULARY, present.shape, generator=random)
    tokens[:, 0] = 2
    tokens = tokens.scatter(1, lengths[:, None] - 1, 3).masked_fill(~present, 0)
    continues = (torch.rand(present.shape, generator=random) < 0.3) & (tokens >= 5)
    continues[:, 1] = False
    return TextInput(tokens, present, continues=continues)


def detections(size: int, random: torch.Generator, most: int = 5) -> VisionInput:
    """Up to `most` objects an image, some images with none; features, boxes and class distributions."""
    counts = torch.randint(0, most + 1, (size,), generator=random)
    counts[0] = most
    present = torch.arange(most) < counts[:, None]
    shape = present.shape
    values = torch.rand((*shape, TOP), generator=random)
    ids = torch.stack([torch.randperm(CLASSES, generator=random)[:TOP] for _ in range(shape.numel())])
    return VisionInput(
        features=torch.randn((*shape, OBJECT_WIDTH), generator=random).masked_fill(~present[..., None], 0).half(),
        present=present,
        boxes=torch.rand((*shape, 2, 2), generator=random)
        .sort(2)
        .values.flatten(2)
        .masked_fill(~present[..., None], 0),
        class_ids=ids.view(*shape, TOP).masked_fill(~present[..., None], 0),
        class_values=(0.9 * values / values.sum(-1, keepdim=True)).masked_fill(~present[..., None], 0),
    )


def grid_input(size: int, random: torch.Generator, missing: bool = False) -> VisionInput:
    """All cells of each image; with `missing` only the first ones of some."""
    rows, columns = GRID
    counts = torch.randint(rows, rows * columns, (size,), generator=random) if missing else torch.full((size,), 12)
    counts[0] = rows * columns
    present = torch.arange(rows * columns) < counts[:, None]
    cells = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1).view(-1, 2)
    return VisionInput(
        features=torch.randn((*present.shape, WIDTH), generator=random).masked_fill(~present[..., None], 0).half(),
        present=present,
        cells=cells.expand(size, -1, -1).clone(),
    )


def scene_batch(seed: int, size: int = 5, missing: bool = False) -> Batch:
    """Texts, grids and objects, drawn anew for each seed."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 9, (size,), generator=random)
    return Batch(
        uids=tuple(map(str, range(size))),
        text=words(lengths, random),
        vision=grid_input(size, random, missing),
        partners=torch.eye(size, dtype=torch.bool),
        objects=detections(size, random),
    )
