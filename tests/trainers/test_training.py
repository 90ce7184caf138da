"""Whole trainings on made-up data: resume, reproducibility, the stages `train` and `evaluate`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from made_feed import rarely
from synthetic import CROSS, OWN, commit_features, make_dataset, model_recipe

from pipeline.engine import engine
from pipeline.errors import PairmillError
from pipeline.job import UP_TO_DATE, Job
from pipeline.model_recipe import ModelRecipe, Vision
from pipeline.recipe import Recipe
from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureStore
from trainers import evaluate, train
from trainers.data.loader import VisionReader
from trainers.data.samples import read_pairs
from trainers.data.sources import open_sources
from trainers.data.text import encode
from trainers.loop.checkpoint import Checkpoint
from trainers.loop.metrics import Metrics
from trainers.loop.ranking import ranking
from trainers.loop.training import Training
from trainers.tasks.retrieval import retrieval
from trainers.tasks.scoring import Scorer
from trainers.train import new_model

ALL = {"mlm": {}, "mrc_kl": {}, "mrfr": {}, "itm": {}}


def training(dataset: Dataset, recipe: ModelRecipe, folder: Path) -> Training:
    corpora = open_sources(recipe, dataset, "1GB")
    model = new_model(recipe, corpora)
    return Training(recipe, model, corpora.train, corpora.validation, Checkpoint(folder, "key"))


@pytest.mark.parametrize("mixing", ["draw", "sum", "joint"])
def test_a_resumed_run_equals_an_uninterrupted_one(dataset: Dataset, tmp_path: Path, mixing: str) -> None:
    """From features: cut off in the middle of an epoch, after 4 and again after 9 steps."""
    recipe = model_recipe(
        objectives=ALL,
        mixing=mixing,
        steps=18,
        vision={"kind": "region", "standardize": True, "sample": 5},
        checkpoints={"seconds": 0},
    )
    whole = training(dataset, rarely(recipe), tmp_path / "whole")
    whole.run()
    for stop in (4, 9, None):
        resumed = training(dataset, recipe if stop else rarely(recipe), tmp_path / "parts")
        resumed.run(stop)
    assert_same(resumed, whole)


def assert_same(one: Training, other: Training) -> None:
    assert one.metrics.rows == other.metrics.rows
    for (name, tensor), same in zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        assert torch.equal(tensor, same), name


def test_edges_that_drew_nothing_in_common_are_made_wider() -> None:
    metrics = Metrics()
    for step, name in enumerate(["mlm", "mlm", "itm", "itm"]):
        metrics.add(step, {f"loss/{name}": 4.0 - step})
    first, last = metrics.edges(4, {"mlm": 1.0, "itm": 1.0})
    assert (first, last) == (pytest.approx((3.5 + 1.5) / 2), pytest.approx((3.5 + 1.5) / 2))


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


def test_the_ranking_is_that_of_an_evaluation(dataset: Dataset, tmp_path: Path) -> None:
    """On the split's pairs, all of which are taken here, beside `truth` and `retrieval` of texts and not of tokens."""
    recipe = RUNS["dual"].model_copy(update={"steps": 30})
    corpora = open_sources(recipe, dataset, "1GB")
    model = new_model(recipe, corpora)
    Training(recipe, model, corpora.train, None, Checkpoint(tmp_path, "key")).run()
    ranked = ranking(model, recipe, corpora.validation)
    assert ranked is not None
    pairs = read_pairs(dataset, corpora.store, "validation", "1GB")
    texts, keys = sorted(set(pairs.texts.to_pylist())), [key.decode() for key in pairs.keys]
    tokens = encode(corpora.tokenizer, texts, recipe.text.max_tokens)
    scorer = Scorer(model, VisionReader(corpora.store, recipe.vision), torch.device("cpu"))
    right = evaluate.truth(texts, len(keys), pairs.texts.to_pylist(), pairs.image_of)
    wanted = retrieval(scorer.scores(tokens, keys), right)
    found = ranked()
    assert set(found) == {f"{way}_r{cut}" for way in ("t2i", "i2t") for cut in (1, 5, 10)}
    assert found == {name: wanted[name] for name in found}
    assert ranking(model, RUNS["co"], corpora.validation) is None


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
        assert set(speed["name"].to_pylist()) == {"loader_wait", "samples/s", "tokens/s", "padding"}
        assert len(list((table.folder / "tensorboard").iterdir())) == 1
        assert not (table.folder / "checkpoint").exists()
    assert "R@10" in evaluate.run(job(dataset, "evaluate"))
    assert evaluate.run(job(dataset, "evaluate")) == UP_TO_DATE
    found = json.loads((dataset.run("dual").folder / "evaluation.json").read_text())
    assert found["retrieval"]["t2i_r10"] > found["retrieval"]["chance_t2i_r10"] + 0.1
    assert len(found["examples"][0]["top"]) == 5
    texts = {example["text"] for example in found["examples"]}
    assert len(texts) == len({example["image"] for example in found["image_examples"]}) == 12
    assert {len(example["top"]) for example in found["image_examples"]} == {5}

    # One that lost what it must hold is made anew, though it was made of the same.
    path = dataset.run("dual").folder / "evaluation.json"
    path.write_text(json.dumps({"key": found["key"]}))
    assert evaluate.run(job(dataset, "evaluate")).startswith("dual: ")
    again = json.loads(path.read_text())
    assert again | {"seconds": 0} == found | {"seconds": 0}

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
    recipe = model_recipe(features, steps=8, vision=vision, checkpoints={"seconds": 0})
    whole = training(dataset, rarely(recipe), tmp_path / "whole")
    whole.run()
    for stop in (3, None):
        resumed = training(dataset, recipe if stop else rarely(recipe), tmp_path / "parts")
        resumed.run(stop)
    assert_same(resumed, whole)


def test_the_same_run_is_the_same_file(tmp_path: Path) -> None:
    digests = []
    for place in ("one", "two"):
        dataset = make_dataset(tmp_path / place, images=60)
        train.run(job(dataset, "train", "co"))
        digests.append([file.sha256 for shard in dataset.run("co").manifest.shards for file in shard.files])
    assert digests[0] == digests[1]
