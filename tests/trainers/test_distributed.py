"""Two processes of torchrun on the CPU learn what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from made_feed import made_recipe, made_training
from synthetic import CROSS, OWN, make_dataset

from pipeline.cli import main
from pipeline.model_recipe import ModelRecipe
from trainers.loop.tensor_file import read_tensors

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DUAL = made_recipe(
    features="region",
    blocks=[{"attention": [OWN], "weights": "separate"}],
    objectives={"itc": {"width": 8}},
    steps=10,
    batch={"size": 8, "accumulate": 2},
    validations=5,
    ema=0.5,
    early_stop={"patience": 5},
    # An epsilon above the rounding, which is all the gradient that the keys' biases have.
    optimizer={"learning_rate": 1e-2, "weight_decay": 0.1, "epsilon": 1e-3},
)
DUAL = DUAL.model_copy(update={"encoder": DUAL.encoder.model_copy(update={"dropout": 0.0})})


def torchrun(*command: object, processes: int = 2) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", HERE))),
    }
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [*launcher, *map(str, command)], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200
    )


def in_two_ranks(folder: Path, recipe: ModelRecipe, stop: int | None = None) -> list[dict[str, object]]:
    """What each rank says of a training."""
    folder.mkdir(exist_ok=True)
    (folder / "recipe.json").write_text(recipe.model_dump_json())
    ended = torchrun(HERE / "ranked_training.py", folder, folder / "recipe.json", *([] if stop is None else [stop]))
    assert ended.returncode == 0, ended.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
def test_two_ranks_learn_what_one_process_does(tmp_path: Path) -> None:
    """A contrast over the gathered batch, with accumulation, an average, validation and its early stop."""
    said = in_two_ranks(tmp_path / "two", DUAL)
    alone = made_training(DUAL, tmp_path / "one")
    rows = alone.run().rows
    for one in said:
        assert one["ranks"] == 2
        assert one["samples"] == alone.speed.samples
        assert [tuple(row[:2]) for row in one["rows"]] == [row[:2] for row in rows]
        assert [row[2] for row in one["rows"]] == pytest.approx([row[2] for row in rows], rel=1e-3, abs=1e-5)
    weights = [read_tensors(tmp_path / "two" / f"{rank}.safetensors") for rank in (0, 1)]
    for name, tensor in alone.model.state_dict().items():
        assert torch.equal(weights[0][name], weights[1][name]), name
        assert torch.allclose(weights[0][name], tensor, atol=1e-4), name
    assert len(list((tmp_path / "two" / "board").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "over",
    [
        {"mixing": "draw"},
        {"mixing": "joint"},
        {
            "blocks": [{"attention": [OWN], "weights": "separate"}, {"attention": [OWN, CROSS], "weights": "separate"}],
            "objectives": {"itc": {"width": 8, "momentum": {"queue": 24}}, "itm": {"hard": True}, "mlm": {}},
        },
    ],
    ids=["draw", "joint", "momentum"],
)
def test_two_ranks_carry_on(tmp_path: Path, over: dict[str, Any]) -> None:
    """With draws of each rank's own, parameters that a step leaves out, and a cut in between."""
    recipe = made_recipe(steps=12, batch={"size": 8, "accumulate": 2}, **over)
    whole = in_two_ranks(tmp_path / "whole", recipe)
    in_two_ranks(tmp_path / "parts", recipe, 5)
    parts = in_two_ranks(tmp_path / "parts", recipe)
    assert parts[0]["rows"] == parts[1]["rows"]
    assert len(parts[0]["rows"]) == len(whole[0]["rows"])
    for one, other in zip(parts[0]["rows"], whole[0]["rows"], strict=True):
        assert one[:2] == other[:2]
        assert one[2] == pytest.approx(other[2], abs=1e-6)


RECIPE = """
name = "made-up"

[train.dual]
features = "grid"
steps = 12
validations = 2
ema = 0.5
early_stop = { patience = 2, metric = "t2i_r10", best = "highest" }
checkpoints = { seconds = 0 }
text = { vocabulary = 200, max_tokens = 20 }
vision = { kind = "grid", standardize = true }
objectives = { itc = { width = 16 } }
batch.size = 16
optimizer = { learning_rate = 5e-3, epsilon = 1e-3 }

[train.dual.encoder]
hidden = 16
heads = 2
feedforward = 24
dropout = 0.0
initializer = 0.2
norm = "pre"
blocks = [{ attention = [["text-text", "vision-vision"]], weights = "separate" }]

[train.single]
features = "region"
steps = 6
text = { vocabulary = 200, max_tokens = 20 }
vision = { kind = "region" }
objectives = { mlm = {}, mrfr = {}, itm = {} }
mixing = "draw"
batch = { tokens = 300, accumulate = 2 }
optimizer = { learning_rate = 1e-3 }

[train.single.encoder]
hidden = 16
heads = 2
feedforward = 24
blocks = [{ attention = [["text-text", "text-vision", "vision-text", "vision-vision"]], weights = "shared" }]
"""


def test_the_stage_under_torchrun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`train` in two processes: one lock, one line a run, one run's files, and the curves of one process."""
    (tmp_path / "recipe.toml").write_text(RECIPE)
    # The 64 pairs of 78 images are divided evenly by two ranks.
    two, one = (make_dataset(tmp_path / name, images=78) for name in ("two", "one"))
    command = ["train", "--recipe", str(tmp_path / "recipe.toml"), "--data"]
    ended = torchrun("-m", "pipeline.cli", *command, two.root)
    assert ended.returncode == 0, ended.stderr
    assert main([*command, str(one.root)]) == 0
    for dataset, said in ((two, ended.stdout), (one, capsys.readouterr().out)):
        assert said.count("dual: loss") == 1
        assert said.count("single: loss") == 1
        for name in ("dual", "single"):
            dataset.run(name).check_whole()
            assert len(list((dataset.run(name).folder / "tensorboard").iterdir())) == 1
            assert not (dataset.run(name).folder / "checkpoint").exists()
        log = (dataset.root / "logs" / "train.jsonl").read_text().splitlines()
        assert [json.loads(line)["event"] for line in log] == ["start", "start", "done", "start", "done", "end"]
    curves = (pq.read_table(dataset.run("dual").folder / "metrics.parquet").to_pylist() for dataset in (two, one))
    for ranked, alone in zip(*curves, strict=True):
        assert (ranked["step"], ranked["name"]) == (alone["step"], alone["name"])
        assert ranked["value"] == pytest.approx(alone["value"], rel=1e-3, abs=1e-4), ranked


def test_only_training_has_ranks(tmp_path: Path) -> None:
    environment = os.environ | {"RANK": "1", "WORLD_SIZE": "2"}
    (tmp_path / "recipe.toml").write_text(RECIPE)
    command = ["evaluate", "--data", str(tmp_path), "--recipe", str(tmp_path / "recipe.toml")]
    ended = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *command], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert "only `train` runs in several processes" in ended.stderr
