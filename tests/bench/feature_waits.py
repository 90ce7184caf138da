"""A training step with the loader's thread beside it, and the same step on batches that are there already.

`python -m tests.bench.feature_waits [--quick]`. The step has one thread, so that of two cores one is the loader's. The
model is small and its batches are wide: a larger model gives the loader more time.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from tests.bench.feature_streams import workload
from tests.bench.made_collection import make_collection
from tests.bench.made_training import tiny, training
from tests.bench.table import Row, write
from trainers.loop.speed import Speed

RESIDENT = 8  # batches


def waits(images: int, steps: int, rounds: int) -> Row:
    """UNITER's tiny model on all regions of a batch of 64."""
    torch.set_num_threads(1)
    _, features = workload(images)
    root = features.with_name(f"{images}-paired")  # the streams' own dataset has no pairs to ask for
    dataset = make_collection(root, images)
    if not (root / "features").exists():
        (root / "features").symlink_to(Path("..") / features.name / "features")
    recipe = tiny("uniter", steps=steps, vision={"sample": 0})
    trained = training(dataset, recipe)
    batches = list(trained.train.batches(0, RESIDENT, 0, 1, False))
    resident, waited, worked = [], [], []
    for _ in range(rounds):
        started = time.perf_counter()
        for number in range(steps):
            trained._step(number, iter([batches[number % RESIDENT]]))
        resident.append((time.perf_counter() - started) / steps)
        trained.speed = Speed()
        trained.run()
        waited.append(trained.speed.waited / steps)
        worked.append(trained.speed.worked / steps)
    step, wait, work = (1000 * statistics.median(each) for each in (resident, waited, worked))
    return Row.of(
        f"training step on 64 images' regions beside the loader's thread: {work:.1f} ms, and {wait:.2f} ms of waiting",
        f"the step on batches that are there: {step:.1f} ms",
        100 * wait / step,
        "% of the step",
        "<= 2",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1 000 images, 5 steps")
    options = parser.parse_args()
    write("feature_waits", [waits(1_000, 5, 1) if options.quick else waits(12_000, 60, 3)])


if __name__ == "__main__":
    main()
