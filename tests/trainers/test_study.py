"""A study trains the same steps for all, says why some cannot, carries on where it was, and adds up its seeds."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_dataset import write_screened
from synthetic import make_dataset

from pipeline.engine import engine
from pipeline.errors import PairmillError
from pipeline.job import Job
from pipeline.recipe import Recipe
from pipeline.store.dataset import Dataset
from trainers import study
from trainers.study import Measured, Row, Study, chosen

MODELS = Path(__file__).parents[2] / "recipes" / "models"


def job(dataset: Dataset) -> Job:
    return Job("study", Recipe(name="t"), dataset, engine("local", 1))


@pytest.fixture(scope="module")
def dataset_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    dataset = make_dataset(tmp_path_factory.mktemp("study"), images=60)
    write_screened(dataset, {"only": pq.read_table(dataset.pairs.folder / "only.parquet")["uid"].to_pylist()})
    return dataset


def test_a_study_from_training_to_table(dataset_of_its_own: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that retrieves, one that cannot, one that cannot read the features."""
    dataset = dataset_of_its_own
    asked = Study(MODELS, ("vse", "bert", "uniter"), ("grid",), seeds=1, steps=4, batch=16)
    said = study.run(job(dataset), asked)
    vse, bert, uniter = pq.read_table(dataset.root / "study" / "table.parquet").to_pylist()
    assert 0 <= vse["t2i_r1"] <= vse["t2i_r10"] <= 1
    assert vse["t2i_r1_deviation"] is None, "one seed has no spread"
    assert 0 < vse["chance_r10"] < 1
    assert vse["peak_bytes"] > 1e8
    assert min(vse["milliseconds"], vse["parameters"]) > 0
    assert (bert["t2i_r10"], bert["seeds"]) == (None, 1)
    assert bert["milliseconds"] > 0
    assert bert["reason"]
    assert (uniter["seeds"], uniter["parameters"]) == (0, None)
    assert "need region features" in uniter["reason"]
    assert said == (dataset.root / "study" / "table.md").read_text()
    assert all(
        part in said for part in ("4 steps of 16 pairs", "need region features", bert["reason"], "| vse | grid |")
    )
    run = dataset.run(asked.name("vse", "grid", 0))
    assert (run.manifest.info["steps"], dataset.runs()) == (4, []), "a study's runs are not the recipe's"

    def no_process(*_: object) -> None:
        raise AssertionError("what is finished is not made again")

    monkeypatch.setattr(study, "ProcessPoolExecutor", no_process)
    assert study.run(job(dataset), asked) == said
    with pytest.raises(AssertionError):
        study.run(job(dataset), Study(MODELS, ("vse",), ("grid",), seeds=2, steps=4, batch=16))
    (run.folder / "evaluation.json").unlink()
    with pytest.raises(AssertionError):
        study.run(job(dataset), asked)


@pytest.mark.parametrize("model", ["uniter", "unimo", "albef", "mural"])
def test_all_take_the_same_steps_and_batches(model: str) -> None:
    recipes = [
        Study(MODELS, (model,), ("region",), steps=50, batch=24).recipe(model, "region", "region", n) for n in (0, 1)
    ]
    for seed, recipe in enumerate(recipes):
        assert (recipe.steps, recipe.batch.size, recipe.batch.tokens, recipe.seed) == (50, 24, None, seed)
        assert (recipe.features, recipe.vision.kind) == ("region", "region")
        assert recipe.optimizer.warmup <= 10
    assert recipes[0].model_copy(update={"seed": 1}) == recipes[1]
    base = Study(MODELS, (model,), ("region",), scale="base").recipe(model, "region", "region", 0)
    assert base.encoder.hidden >= 768


def test_what_is_not_there_is_named(dataset_of_its_own: Dataset) -> None:
    with pytest.raises(PairmillError, match="there is no model 'nobody'"):
        study.run(job(dataset_of_its_own), Study(MODELS, ("nobody",), ("grid",)))
    with pytest.raises(PairmillError, match="no features 'none'"):
        study.run(job(dataset_of_its_own), Study(MODELS, ("vse",), ("none",)))
    with pytest.raises(PairmillError, match="vse has no scale 'huge'"):
        study.run(job(dataset_of_its_own), Study(MODELS, ("vse",), ("grid",), scale="huge"))


def test_seeds_are_averaged_with_their_spread() -> None:
    scores = [{score: value for score in (*study.SCORES, "chance_r10")} for value in (0.2, 0.3, 0.7)]
    runs = [Measured(score, 100, 10.0 * n, math.nan if n else 5e6) for n, score in enumerate(scores)]
    values = Row("m", "grid", tuple(runs)).values()
    assert values["t2i_r5"] == pytest.approx(0.4)
    assert values["t2i_r5_deviation"] == pytest.approx(np.std([0.2, 0.3, 0.7], ddof=1))
    assert (values["milliseconds"], values["peak_bytes"], values["parameters"]) == (10.0, 5e6, 100.0)
    assert "40.0 ± 26.5 / 40.0 ± 26.5 / 40.0 ± 26.5" in Row("m", "grid", tuple(runs)).line()


def test_names_are_separated_by_spaces_or_commas() -> None:
    assert chosen("a b,c  a", ["x"]) == ("a", "b", "c")
    assert chosen(" ", ["x", "y"]) == ("x", "y")


def test_a_killed_training_is_one_message(dataset_of_its_own: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a model's name is no path."""
    monkeypatch.setattr(study, "_train_and_evaluate", _killed)
    asked = Study(MODELS, ("clip",), ("grid",), seeds=1, steps=4, batch=16)
    with pytest.raises(PairmillError, match="its process was killed"):
        study.run(job(dataset_of_its_own), asked)
    with pytest.raises(PairmillError, match="there is no model"):
        asked.check("../models/clip")


def _killed(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_a_study_that_is_killed_takes_its_training_along(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys; from trainers.study import _end_with_parent;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; from trainers.study import _end_with_parent;'"
        " ' _end_with_parent(); print(1, flush=True); time.sleep(60)'], stdout=subprocess.PIPE);"
        "child.stdout.readline(); print(child.pid, flush=True); child.wait()"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(100):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("the child still runs")
