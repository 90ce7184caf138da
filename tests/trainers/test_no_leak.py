"""Nothing tells what is hidden but what is meant to: with the images shuffled no loss falls below chance.

In each made-up world something tells the answer, and a short training finds it: so the model and the steps suffice.
Without that the loss stays where the best guess is that knows nothing but how often each answer comes.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from synthetic import FUSED, WIDTH, model_recipe
from torch import Tensor

from trainers.data.batch import Batch, TextInput, VisionInput
from trainers.loop.mixing import outcomes
from trainers.network.embeddings import FeatureShape
from trainers.network.model import VisionLanguageModel

CLASSES, FIRST_WORD = 8, 5
ROWS, STEPS, LAST = 64, 150, 50
CODES = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(7)).sign()
"""The feature of each class: numbers of variance 1 over the classes, about."""


def world(classes: Tensor, words: Tensor, regions: int = 1) -> Batch:
    """Images of `regions` equal regions, in nearly the same place, of a class; and texts of one word. (B,) each."""
    size = len(classes)
    text = torch.stack([torch.full_like(words, 2), words, torch.full_like(words, 3)], 1)
    box = torch.tensor([[0.1, 0.1, 0.6, 0.6], [0.12, 0.1, 0.62, 0.6]])[:regions]
    vision = VisionInput(
        features=CODES[classes][:, None].expand(-1, regions, -1).clone(),
        present=torch.ones(size, regions, dtype=torch.bool),
        boxes=box.expand(size, -1, -1).clone(),
        class_ids=classes[:, None, None].expand(-1, regions, 1).clone(),
        class_values=torch.full((size, regions, 1), 0.9),
    )
    uids = tuple(map(str, range(size)))
    return Batch(uids, TextInput(text, torch.ones_like(text, dtype=torch.bool)), vision, torch.eye(size).bool())


def cell_world(classes: Tensor, words: Tensor, elsewhere: Tensor) -> Batch:
    """Images of three cells, of which an object of a class covers the first two; and texts of one word. (B,) each."""
    batch, size = world(classes, words), len(classes)
    shown = torch.stack([classes, classes, elsewhere], 1)
    cells = torch.tensor([[0, 0], [0, 1], [0, 2]]).expand(size, -1, -1).clone()
    assert batch.vision is not None
    objects = replace(batch.vision, boxes=torch.tensor([[0.0, 0.0, 0.66, 1.0]]).expand(size, -1, -1).clone())
    vision = VisionInput(CODES[shown], torch.ones(size, 3, dtype=torch.bool), cells=cells)
    return replace(batch, vision=vision, objects=objects)


def trained(
    objectives: dict[str, Any], draw: Callable[[torch.Generator], Batch], kind: str = "region"
) -> dict[str, float]:
    """Each objective's mean loss over the last steps of a short training on batches that never come again."""
    torch.manual_seed(1)
    encoder = {"hidden": 32, "heads": 2, "feedforward": 48, "dropout": 0.0, "initializer": 0.15, "norm": "pre"}
    blocks = [{"repeat": 2, "attention": [FUSED], "weights": "shared"}]
    over: dict[str, Any] = {"encoder": {**encoder, "blocks": blocks}, "vision": {"kind": kind}}
    recipe = model_recipe(kind, objectives=objectives, objects="region", **over)
    objects = FeatureShape(WIDTH, CLASSES)
    shape = objects if kind == "region" else FeatureShape(WIDTH, 0, (1, 3))
    model = VisionLanguageModel(recipe, FIRST_WORD + CLASSES, shape, objects).train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    random = torch.Generator().manual_seed(2)
    sums = dict.fromkeys(objectives, 0.0)
    for step in range(STEPS):
        found = outcomes(model, draw(random), list(objectives), lambda name: random)
        optimizer.zero_grad()
        torch.stack([outcome.loss for outcome in found.values()]).sum().backward()
        optimizer.step()
        if step >= STEPS - LAST:
            for name, outcome in found.items():
                sums[name] += outcome.loss.item() / LAST
    return sums


CHANCE = {
    "mrc": math.log(CLASSES),
    "mrc_kl": math.log(CLASSES),
    "mrfr": (CODES - CODES.mean(0)).square().mean().item(),
}


def drawn_classes(random: torch.Generator) -> Tensor:
    """Each as often as any other, so that the guess that knows nothing else is known."""
    return torch.randperm(ROWS, generator=random) % CLASSES


@pytest.mark.parametrize("name", CHANCE)
def test_with_the_images_shuffled_no_region_is_foretold(name: str) -> None:
    def matching(random: torch.Generator) -> Batch:
        classes = drawn_classes(random)
        return world(classes, FIRST_WORD + classes)

    def shuffled(random: torch.Generator) -> Batch:
        return world(drawn_classes(random), FIRST_WORD + drawn_classes(random))

    assert trained({name: {}}, matching)[name] < 0.5 * CHANCE[name], "the text says what the image shows"
    assert trained({name: {}}, shuffled)[name] > 0.97 * CHANCE[name]


def test_with_the_images_shuffled_no_object_is_foretold() -> None:
    """Nor by the other cells that it covers, which look alike: they are masked as well."""

    def matching(random: torch.Generator) -> Batch:
        classes = drawn_classes(random)
        return cell_world(classes, FIRST_WORD + classes, drawn_classes(random))

    def shuffled(random: torch.Generator) -> Batch:
        return cell_world(drawn_classes(random), FIRST_WORD + drawn_classes(random), drawn_classes(random))

    chance = CHANCE["mrc"] + CHANCE["mrfr"]
    assert trained({"omvm": {}}, matching, "grid")["omvm"] < 0.5 * chance
    assert trained({"omvm": {}}, shuffled, "grid")["omvm"] > 0.97 * chance


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANCE)
def test_a_neighbour_in_nearly_the_same_place_gives_nothing_away(name: str) -> None:
    """It is masked as well; where it is not, it tells."""

    def draw(random: torch.Generator) -> Batch:
        return world(drawn_classes(random), FIRST_WORD + drawn_classes(random), regions=2)

    assert trained({name: {"co_mask_iou": 1.0}}, draw)[name] < 0.75 * CHANCE[name]
    assert trained({name: {}}, draw)[name] > 0.97 * CHANCE[name]


def test_with_the_images_shuffled_a_word_is_foretold_only_where_it_shows() -> None:
    """A tenth of the chosen words stays, and a tenth becomes any: one that shows is right every other time."""

    def matching(random: torch.Generator) -> Batch:
        classes = drawn_classes(random)
        return world(classes, FIRST_WORD + classes)

    def shuffled(random: torch.Generator) -> Batch:
        return world(drawn_classes(random), FIRST_WORD + drawn_classes(random))

    same = 0.5 + 0.5 / CLASSES
    other = 0.5 / CLASSES
    where_it_shows = -same * math.log(same) - (CLASSES - 1) * other * math.log(other)
    chance = 0.8 * math.log(CLASSES) + 0.2 * where_it_shows
    assert trained({"mlm": {}}, matching)["mlm"] < 0.5 * chance
    assert trained({"mlm": {}}, shuffled)["mlm"] > 0.97 * chance
