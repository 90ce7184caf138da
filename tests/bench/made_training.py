"""Trainings of the recipes' models on any dataset, in this process."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.model_recipe import ModelRecipe
from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureStore
from trainers.checkpoint import Checkpoint
from trainers.samples import prepare, read_pairs
from trainers.text import train_tokenizer
from trainers.train import new_model
from trainers.training import Training, best_device

MODELS = Path("recipes/models")
MEMORY = "2GB"


def tiny(model: str, **over: Any) -> ModelRecipe:
    """A model of `recipes/models` at its tiny scale, without validations."""
    values: Mapping[str, Any] = tomllib.loads((MODELS / f"{model}.toml").read_text())
    return ModelRecipe.model_validate({**values, "scale": "tiny", "validations": 0, **over})


def training(dataset: Dataset, recipe: ModelRecipe) -> Training:
    """As the stage `train` makes it, with nothing saved before or after."""
    store = FeatureStore.open(dataset.root, recipe.features)
    pairs, others = (read_pairs(dataset, store, split, MEMORY) for split in ("train", "validation"))
    tokenizer = train_tokenizer(pairs.texts.to_pylist(), recipe.text.vocabulary)
    model = new_model(recipe, tokenizer, store, pairs.keys)
    samples, validation = (prepare(some, tokenizer, recipe, store) for some in (pairs, others))
    checkpoint = Checkpoint(dataset.root / "no checkpoint", "none")
    return Training(recipe, model, store, samples, validation, checkpoint, best_device(), checkpoint_seconds=1e9)
