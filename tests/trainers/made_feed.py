"""Trainings on made-up batches, which need no dataset: the loop by itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from synthetic import CLASSES, WIDTH, model_recipe, random_batch

from pipeline.model_recipe import ModelRecipe
from trainers.data.batch import Batch
from trainers.data.plan import Step
from trainers.loop.checkpoint import Checkpoint
from trainers.loop.training import Training
from trainers.network.embeddings import FeatureShape
from trainers.network.model import VisionLanguageModel

VOCABULARY = 40
SHAPE = FeatureShape(WIDTH, CLASSES)
ALL = {"mlm": {}, "mrc_kl": {}, "mrfr": {}, "itm": {}}


class MadeFeed:
    """`random_batch`es by their number; `distinct` of them, then the first again."""

    def __init__(self, distinct: int = 5, size: int = 8) -> None:
        self.distinct, self.size = distinct, size

    def batches(
        self, first: int, stop: int, rank: int = 0, ranks: int = 1, pin: bool = False
    ) -> Iterator[tuple[Step, Batch]]:
        for number in range(first, stop):
            yield made_step(number, self.distinct), self._part(number % self.distinct, rank, ranks)

    def once(self, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
        for number in range(2):
            yield self._part(1000 + number, rank, ranks)

    def _part(self, seed: int, rank: int, ranks: int) -> Batch:
        return part(random_batch(seed, self.size, VOCABULARY), rank, ranks)


def made_step(number: int, distinct: int) -> Step:
    return Step(number=number, source=0, epoch=number // distinct, rows=np.arange(0))


def part(batch: Batch, rank: int, ranks: int) -> Batch:
    """A rank's rows."""
    rows = torch.arange(len(batch)).chunk(ranks)[rank]
    assert batch.text is not None
    assert batch.vision is not None
    uids = tuple(batch.uids[row] for row in rows)
    partners = batch.partners[rows][:, rows]
    everywhere = batch.partners[rows] if ranks > 1 else None
    return Batch(uids, batch.text.select(rows), batch.vision.select(rows), partners, everywhere)


def made_recipe(**over: Any) -> ModelRecipe:
    """Checkpoints after every step."""
    return model_recipe(**({"objectives": ALL, "steps": 28, "checkpoints": {"seconds": 0}} | over))


def rarely(recipe: ModelRecipe) -> ModelRecipe:
    """The same without checkpoints: they are flushed to the disk, which takes its time."""
    return recipe.model_copy(update={"checkpoints": recipe.checkpoints.model_copy(update={"seconds": 1e9})})


def made_training(recipe: ModelRecipe, folder: Path, feed: MadeFeed | None = None, **more: Any) -> Training:
    torch.manual_seed(3)
    model = VisionLanguageModel(recipe, VOCABULARY, SHAPE)
    feed = feed or MadeFeed()
    return Training(recipe, model, feed, feed, Checkpoint(folder, "key", recipe.checkpoints.keep), **more)
