"""A training that is interrupted and carried on by another process, beside one that is not: are the losses the same?

`python -m tests.bench.training_resume [--quick]`. The second process begins with other weights and other random state,
so that all it knows of the first is the checkpoint.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.model_recipe import ModelRecipe
from tests.bench.table import Row, write
from tests.bench.training_loading import made_corpus
from tests.bench.training_sides import system, training
from trainers.data.mixture import Mixture
from trainers.loop.checkpoint import Checkpoint

BEFORE, AFTER = 10, 20
SYSTEMS = ("visualbert", "lxmert")


def recipe_of(name: str) -> ModelRecipe:
    """At its tiny scale, with a checkpoint after each step."""
    return system(name, "tiny", steps=BEFORE + AFTER, checkpoints={"seconds": 0})


def losses(name: str, images: int, folder: Path, stop: int, seed: int) -> dict[int, float]:
    """Train up to step `stop` from where the folder's checkpoints stand; the losses so far, by step."""
    recipe = recipe_of(name)
    mixture = Mixture([made_corpus(images, recipe)], recipe.batch, recipe.seed)
    metrics = training(recipe, mixture, seed, Checkpoint(folder, "key")).run(stop)
    return {step: value for step, scalar, value in metrics.rows if scalar == "loss"}


def apart(name: str, images: int) -> Row:
    """The greatest difference between a loss of the run that was interrupted and one of the run that was not."""
    with tempfile.TemporaryDirectory() as scratch:
        whole = _in_its_own_process(name, images, Path(scratch, "whole"), BEFORE + AFTER, 0)
        folder = Path(scratch, "interrupted")
        _in_its_own_process(name, images, folder, BEFORE, 0)
        resumed = _in_its_own_process(name, images, folder, BEFORE + AFTER, 1)
    if not len(whole) == len(resumed) == BEFORE + AFTER:
        raise AssertionError(f"{len(whole)} and {len(resumed)} losses, not {BEFORE + AFTER}")
    difference = max(abs(whole[step] - resumed[step]) for step in range(BEFORE, BEFORE + AFTER))
    return Row.of(
        f"tiny {name}, interrupted after {BEFORE} steps: the next {AFTER} losses",
        f"the run that was not: losses of {min(whole.values()):.3f} to {max(whole.values()):.3f}",
        difference,
        "apart at most",
        "<= 1e-6",
    )


def _in_its_own_process(name: str, images: int, folder: Path, stop: int, seed: int) -> dict[int, float]:
    command = [sys.executable, "-m", "tests.bench.training_resume", "--run", name]
    arguments = [str(value) for value in (images, folder, stop, seed)]
    done = subprocess.run([*command, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return {int(step): loss for step, loss in json.loads(done.stdout.splitlines()[-1]).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few images")
    parser.add_argument("--run", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        name, images, folder, stop, seed = options.run
        print(json.dumps(losses(name, int(images), Path(folder), int(stop), int(seed))))
        return
    write("training_resume", [apart(name, 300 if options.quick else 12_000) for name in SYSTEMS])


if __name__ == "__main__":
    main()
