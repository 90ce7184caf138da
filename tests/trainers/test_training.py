"""Whole trainings on made-up data: resume, reproducibility, the stages `train` and `evaluate`."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from synthetic import CROSS, OWN, commit_features, make_dataset, model_recipe

from pipeline.engine import engine
from pipeline.errors import PairmillError
from pipeline.job import UP_TO_DATE, Job
from pipeline.model_recipe import ModelRecipe, Vision
from pipeline.recipe import Recipe
from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureStore
from trainers import evaluate, train
from trainers import training as training_module
from trainers.checkpoint import Checkpoint
from trainers.metrics import Metrics
from trainers.optimizer import learning_rate, make_optimizer
from trainers.samples import prepare, read_pairs
from trainers.text import train_tokenizer
from trainers.train import new_model
from trainers.training import Training

ALL = {"mlm": {}, "mrc_kl": {}, "mrfr": {}, "itm": {}}


def training(dataset: Dataset, recipe: ModelRecipe, folder: Path, every: float = 1e9) -> Training:
    store = FeatureStore(dataset.features(recipe.features))
    pairs = [read_pairs(dataset, store, split, "1GB") for split in ("train", "validation")]
    tokenizer = train_tokenizer(pairs[0].texts, recipe.text.vocabulary)
    train, validation = (prepare(some, tokenizer, recipe, store) for some in pairs)
    model = new_model(recipe, tokenizer, store, pairs[0].keys)
    checkpoint = Checkpoint(folder, "key")
    return Training(recipe, model, store, train, validation, checkpoint, torch.device("cpu"), checkpoint_seconds=every)


@pytest.mark.parametrize("mixing", ["draw", "sum"])
def test_a_resumed_run_equals_an_uninterrupted_one(dataset: Dataset, tmp_path: Path, mixing: str) -> None:
    recipe = model_recipe(
        objectives=ALL, mixing=mixing, steps=24, vision={"kind": "region", "standardize": True, "sample": 5}
    )
    whole = training(dataset, recipe, tmp_path / "whole")
    whole.run()
    # Checkpoints after every step; killed after 7 and, by a crash that lost the newest state, again after 15.
    training(dataset, recipe, tmp_path / "parts", every=-1).run(stop=7)
    middle = training(dataset, recipe, tmp_path / "parts", every=-1)
    middle.run(stop=15)
    resumed = training(dataset, recipe, tmp_path / "parts")
    resumed.run()
    assert resumed.metrics.rows == whole.metrics.rows
    for (name, one), other in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_curves_beyond_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    metrics = Metrics()
    for step in range(5):
        metrics.add(step, {"loss": step})
    metrics.append_new(tmp_path / "metrics.jsonl")
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('[5, "lo')
    again = Metrics()
    again.restore(tmp_path / "metrics.jsonl", 3)
    assert again.rows == [(0, "loss", 0.0), (1, "loss", 1.0), (2, "loss", 2.0)]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_checkpoint_of_another_key_counts_as_none(dataset: Dataset, tmp_path: Path) -> None:
    one = training(dataset, model_recipe(steps=4), tmp_path / "checkpoint", every=-1)
    one.run()
    assert Checkpoint(tmp_path / "checkpoint", "other").restore(one.model, one.optimizer, Metrics()) == 0
    assert not (tmp_path / "checkpoint").exists()


def test_a_loss_that_is_not_finite_stops_and_leaves_the_uids(dataset: Dataset, tmp_path: Path) -> None:
    broken = training(dataset, model_recipe(), tmp_path / "checkpoint")
    with torch.no_grad():
        broken.model.vision.project.weight[0, 0] = torch.nan
    with pytest.raises(PairmillError, match="not finite at step 0"):
        broken.run()
    assert len(json.loads((tmp_path / "failed-batch.json").read_text())["uids"]) >= 8


def test_edges_balance_the_objectives() -> None:
    metrics = Metrics()
    for step in range(40):
        name, value = ("mlm", 8.0 - step / 10) if step % 4 else ("itm", 1.0)
        metrics.add(step, {"loss": value, f"loss/{name}": value})
    metrics.add(39, {"loss/itm": 1.0})
    # First two steps: itm 1.0 and mlm 7.9; last two: mlm 4.2 and 4.1, itm 1.0.
    first, last = metrics.edges(40, {"mlm": 3.0, "itm": 1.0})
    assert first == pytest.approx((3 * 7.9 + 1.0) / 4)
    assert last == pytest.approx((3 * 4.15 + 1.0) / 4)


def test_the_rate_warms_up_and_decays() -> None:
    settings = model_recipe(optimizer={"learning_rate": 1.0, "warmup": 4}).optimizer
    rates = [learning_rate(settings, step, 12) for step in range(12)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[-1] == pytest.approx(1 / 8)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_no_decay_on_biases_and_norms_and_scaled_rates(dataset: Dataset, tmp_path: Path) -> None:
    run = training(dataset, model_recipe(), tmp_path)
    optimizer = make_optimizer(run.model, run.recipe.optimizer, [1.0, 5.0])
    seen = 0
    for group in optimizer.param_groups:
        seen += len(group["params"])
        for parameter in group["params"]:
            assert (group["weight_decay"] > 0) == (parameter.ndim > 1)
    assert seen == len(list(run.model.parameters()))
    scaled = {id(p) for group in optimizer.param_groups if group["scale"] == 5.0 for p in group["params"]}
    assert scaled == {id(parameter) for parameter in run.model.encoder.blocks[1].parameters()}


RUNS: dict[str, Any] = {
    "dual": model_recipe(
        "grid",
        [{"attention": [OWN], "weights": "separate"}],
        objectives={"itc": {"width": 16}},
        steps=80,
        optimizer={"learning_rate": 5e-3},
    ),
    "co": model_recipe(
        "grid", [{"attention": [OWN, CROSS], "weights": "separate"}], objectives={"mlm": {}, "itm": {"pool": "concat"}}
    ),
    "single": model_recipe(objectives=ALL, mixing="draw", steps=40),
}


def job(dataset: Dataset, stage: str, *only: str, runs: dict[str, Any] = RUNS) -> Job:
    return Job(stage, Recipe(name="made-up", train=runs), dataset, engine("local", 1), frozenset(only))


def test_train_and_evaluate(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data")
    assert "dual: loss" in train.run(job(dataset, "train"))
    assert train.run(job(dataset, "train")) == UP_TO_DATE
    for name, recipe in RUNS.items():
        table = dataset.run(name)
        info = table.manifest.info
        assert {"loss_first", "loss_last", "steps", "parameters", "features"} <= set(info)
        curves = pq.read_table(table.folder / "metrics.parquet")
        assert curves.column_names == ["step", "name", "value"]
        names = set(curves["name"].to_pylist())
        assert {"loss", "lr", "grad_norm"} | {
            f"validation/loss/{objective}" for objective in recipe.objectives.chosen
        } <= names
        assert info["pairs_without_features"] == 0
        speed = pq.read_table(table.folder / "speed.parquet")
        assert set(speed["name"].to_pylist()) == {"loader_wait", "samples/s"}
        assert not (table.folder / "checkpoint").exists()
    assert "R@10" in evaluate.run(job(dataset, "evaluate"))
    assert evaluate.run(job(dataset, "evaluate")) == UP_TO_DATE
    found = json.loads((dataset.run("dual").folder / "evaluation.json").read_text())
    assert found["retrieval"]["t2i_r10"] > found["retrieval"]["chance_t2i_r10"] + 0.1
    assert len(found["examples"][0]["top"]) == 5

    # Another seed makes another run, and its evaluation is made anew; the other runs stay.
    changed = RUNS | {"co": RUNS["co"].model_copy(update={"seed": 5})}
    assert train.run(job(dataset, "train", runs=changed)).startswith("co: ")
    assert evaluate.run(job(dataset, "evaluate", runs=changed)).startswith("co: ")

    # Extracted again by newer libraries: the run is as good as before.
    extract_again(dataset, "grid", libraries={"torch": "99"})
    assert evaluate.run(job(dataset, "evaluate", "dual")).startswith("dual: ")
    # By another model: the run's own features are gone, so it must not be evaluated.
    extract_again(dataset, "grid", model="another")
    with pytest.raises(PairmillError, match="trained on other features"):
        evaluate.run(job(dataset, "evaluate", "dual"))


def extract_again(dataset: Dataset, name: str, **identity: Any) -> None:
    """The same rows, made by something else."""
    store = FeatureStore(dataset.features(name))
    rows = [store[key] for key in store.keys()]  # noqa: SIM118 - a store is no dict
    shutil.rmtree(dataset.features(name).folder)
    commit_features(dataset.features(name), rows, store.columns, store.identity | identity)


def test_a_run_on_features_stored_otherwise(tmp_path: Path) -> None:
    """One trained on float16 answers on the same features as int8, where that is asked for, nearly the same."""
    dataset = make_dataset(tmp_path, images=100)
    runs = {"dual": RUNS["dual"].model_copy(update={"features": "patch", "vision": Vision(kind="patch"), "steps": 60})}
    train.run(job(dataset, "train", runs=runs))
    whole, small = (FeatureStore(dataset.features(name)) for name in ("patch", "patch8"))
    with pytest.raises(PairmillError, match="trained on other features"):
        evaluate.evaluate(dataset, "dual", small)
    with pytest.raises(PairmillError, match="trained on other features"):
        evaluate.evaluate(dataset, "dual", FeatureStore(dataset.features("grid")), storage=False)
    found = [evaluate.evaluate(dataset, "dual", store, storage=False)["retrieval"] for store in (whole, small)]
    assert found[0] == evaluate.evaluate(dataset, "dual", whole)["retrieval"]
    assert found[0]["t2i_r10"] > found[0]["chance_t2i_r10"] + 0.1
    assert found[1]["t2i_r10"] == pytest.approx(found[0]["t2i_r10"], abs=0.06)


@pytest.mark.parametrize("features", ["region8", "patch", "pixel"])
def test_each_kind_learns(dataset: Dataset, tmp_path: Path, features: str) -> None:
    """A dual encoder that sees nothing but these features finds a text's image far better than chance."""
    recipe = model_recipe(
        features,
        [{"attention": [OWN], "weights": "separate"}],
        objectives={"itc": {"width": 16}},
        steps=60,
        optimizer={"learning_rate": 5e-3},
    )
    run = training(dataset, recipe, tmp_path)
    metrics = run.run()
    first, last = metrics.edges(recipe.steps, run.weights)
    assert last < 0.7 * first
    (accuracy,) = [value for _, name, value in metrics.rows if name == "validation/accuracy/itc"]
    assert accuracy > 3 / 16


@pytest.mark.parametrize("features", ["region8", "patch", "pixel"])
def test_a_resumed_run_of_any_kind_equals_an_uninterrupted_one(dataset: Dataset, tmp_path: Path, features: str) -> None:
    kind = features.rstrip("8")
    vision = {"kind": kind, "sample": 3} | ({"augment": {}} if kind == "pixel" else {})
    recipe = model_recipe(features, steps=8, vision=vision)
    whole = training(dataset, recipe, tmp_path / "whole")
    whole.run()
    training(dataset, recipe, tmp_path / "parts", every=-1).run(stop=3)
    resumed = training(dataset, recipe, tmp_path / "parts")
    resumed.run()
    assert resumed.metrics.rows == whole.metrics.rows
    for (name, one), other in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_the_time_spent_waiting_is_measured(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a loader and a step that are slowed down by known amounts."""
    run = training(dataset, model_recipe(steps=4, validations=0), tmp_path)
    make, step = training_module.make_batch, run._step

    def slow_make(*arguments: Any) -> Any:
        time.sleep(0.3)
        return make(*arguments)

    def slow_step(*arguments: Any) -> Any:
        time.sleep(0.1)
        return step(*arguments)

    monkeypatch.setattr(training_module, "make_batch", slow_make)
    monkeypatch.setattr(run, "_step", slow_step)
    run.run()
    # At least 1.2 s until the last batch is there, most of which the steps of 0.1 s wait, whatever else is slow.
    assert 0.2 < run.speed.summary["loader_wait"] < 1
    shares = [value for _, name, value in run.speed.curve.rows if name == "loader_wait"]
    assert len(shares) == 4
    assert all(0.0 <= share < 1 for share in shares)
    assert max(shares) > 0.2
    seen = run.speed.samples
    assert run.speed.summary["samples_per_second"] == pytest.approx(seen / (run.speed.waited + run.speed.worked), 0.01)


def test_the_same_run_is_the_same_file(tmp_path: Path) -> None:
    digests = []
    for place in ("one", "two"):
        dataset = make_dataset(tmp_path / place, images=60)
        train.run(job(dataset, "train", "co"))
        digests.append([file.sha256 for shard in dataset.run("co").manifest.shards for file in shard.files])
    assert digests[0] == digests[1]
