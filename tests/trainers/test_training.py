"""Whole trainings on made-up data: resume, reproducibility, the stages `train` and `evaluate`."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from synthetic import CROSS, OWN, make_dataset, model_recipe

from pipeline.engine import engine
from pipeline.errors import PairmillError
from pipeline.job import UP_TO_DATE, Job
from pipeline.model_recipe import ModelRecipe
from pipeline.recipe import Recipe
from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureStore
from trainers import evaluate, train
from trainers.checkpoint import Checkpoint
from trainers.metrics import Metrics
from trainers.optimizer import learning_rate, make_optimizer
from trainers.samples import image_lengths, prepare, read_pairs
from trainers.text import train_tokenizer
from trainers.train import new_model
from trainers.training import Training

ALL = {"mlm": {}, "mrc_kl": {}, "mrfr": {}, "itm": {}}


def training(dataset: Dataset, recipe: ModelRecipe, folder: Path, every: float = 1e9) -> Training:
    features = dataset.features(recipe.features)
    store = FeatureStore(features)
    pairs = read_pairs(dataset, store, "train", "1GB")
    tokenizer = train_tokenizer(pairs.texts, recipe.text.vocabulary)
    samples = prepare(pairs, tokenizer, recipe, store, image_lengths(features))
    model = new_model(recipe, tokenizer, store, pairs.keys)
    return Training(
        recipe, model, store, samples, None, Checkpoint(folder, "key"), torch.device("cpu"), checkpoint_seconds=every
    )


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
        steps=150,
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

    # Features with another identity: the run's own are gone, so it must not be evaluated.
    manifest = dataset.features("grid").folder / "manifest.json"
    value = json.loads(manifest.read_text())
    value["info"]["identity"]["model"] = "another"
    value["digest"] = "another"
    manifest.write_text(json.dumps(value))
    with pytest.raises(PairmillError, match="trained on other features"):
        evaluate.run(job(dataset, "evaluate", "dual"))


def test_the_same_run_is_the_same_file(tmp_path: Path) -> None:
    digests = []
    for place in ("one", "two"):
        dataset = make_dataset(tmp_path / place, images=60)
        train.run(job(dataset, "train", "co"))
        digests.append([file.sha256 for shard in dataset.run("co").manifest.shards for file in shard.files])
    assert digests[0] == digests[1]
