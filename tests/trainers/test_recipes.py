"""Every system of recipes/models learns at its tiny scale, and carries on from a checkpoint as if nothing had been."""

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.model_recipe import ModelRecipe, laid_over
from pipeline.store.dataset import Dataset
from trainers.data.sources import Corpora, open_sources
from trainers.loop.checkpoint import Checkpoint
from trainers.loop.training import Training
from trainers.train import new_model

MODELS = sorted((Path(__file__).parents[2] / "recipes" / "models").glob("*.toml"))
STEPS, BATCH = 30, 16
STOPPED, CARRIED_ON = 4, 8
END = 6
"""Steps at each end whose losses are compared."""


def mini(path: Path, steps: int = STEPS) -> ModelRecipe:
    """The tiny scale, cut short: few steps, small batches, and a queue that is full from the second step on."""
    values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    tiny = laid_over(values["scales"]["tiny"], {name: value for name, value in values.items() if name != "scales"})
    itc = tiny["objectives"].get("itc", {})
    if "momentum" in itc:
        itc["momentum"]["queue"] = BATCH
    short = {"steps": steps, "validations": 0, "optimizer": {"warmup": 3}, "checkpoints": {"seconds": 1e6}}
    return ModelRecipe.model_validate(laid_over(tiny, short) | {"batch": {"size": BATCH}})


def training(recipe: ModelRecipe, corpora: Corpora, folder: Path) -> Training:
    return Training(recipe, new_model(recipe, corpora), corpora.train, None, Checkpoint(folder, "key", 1))


def losses(done: Training) -> dict[str, list[float]]:
    """Each objective's, step by step, as far as it took part."""
    found: dict[str, list[float]] = {name: [] for name in done.weights}
    for _, name, value in done.metrics.rows:
        if name.removeprefix("loss/") in found:
            found[name.removeprefix("loss/")].append(value)
    return found


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_every_system_learns_and_resumes(path: Path, dataset: Dataset, tmp_path: Path) -> None:
    recipe = mini(path)
    corpora = open_sources(recipe, dataset, "1GB")
    whole = training(recipe, corpora, tmp_path / "whole")
    whole.run()
    found = losses(whole)
    assert all(found.values()), "an objective never took part"
    # The first step's is left out: a queue is still empty then. By weight, over what the two ends have seen.
    falls = {name: np.mean(values[-END:]) - np.mean(values[1:][:END]) for name, values in found.items()}
    assert sum(recipe.objectives.chosen[name].weight * fall for name, fall in falls.items()) < 0, falls

    broken_off = training(recipe, corpora, tmp_path / "broken")
    broken_off.run(STOPPED)
    broken_off.checkpoint.save(broken_off.state, STOPPED)
    carried_on = training(recipe, corpora, tmp_path / "broken")
    carried_on.run(CARRIED_ON)
    expected = [row for row in whole.metrics.rows if row[0] < CARRIED_ON]
    assert {step for step, *_ in expected} == set(range(CARRIED_ON))
    for (step, name, value), row in zip(expected, carried_on.metrics.rows, strict=True):
        assert row == (step, name, pytest.approx(value, abs=1e-6, nan_ok=True))
