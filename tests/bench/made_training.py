"""Trainings of the recipes' models on any dataset, in this process."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.model_recipe import ModelRecipe
from pipeline.store.dataset import Dataset
from trainers.data.sources import open_sources
from trainers.loop.checkpoint import Checkpoint
from trainers.loop.training import Training
from trainers.train import new_model

MODELS = Path("recipes/models")
MEMORY = "2GB"


def tiny(model: str, **over: Any) -> ModelRecipe:
    """A model of `recipes/models` at its tiny scale, without validations and checkpoints."""
    values: Mapping[str, Any] = tomllib.loads((MODELS / f"{model}.toml").read_text())
    fixed = {"scale": "tiny", "validations": 0, "checkpoints": {"seconds": 1e9}}
    return ModelRecipe.model_validate({**values, **fixed, **over})


def training(dataset: Dataset, recipe: ModelRecipe) -> Training:
    """As the stage `train` makes it, with nothing saved before or after."""
    corpora = open_sources(recipe, dataset, MEMORY)
    checkpoint = Checkpoint(dataset.root / "no checkpoint", "none")
    return Training(recipe, new_model(recipe, corpora), corpora.train, None, checkpoint)
