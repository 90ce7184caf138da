"""One pass over region features in padded batches of 64, in this process: from our store, or from flat arrays, which
is the limit. Prints what `feature_peers` prints.

`python -m tests.bench.feature_sides store|flat FOLDER [--shuffled] [--warm]`. With `--warm` it goes through them once
before, uncounted, and tells of that pass the sum of each column's bits: the counted pass is then an epoch after the
first. Without, it is the first, and a store compares checksums.
"""

import argparse
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from pipeline.store.features import FeatureStore
from tests.bench.flat_features import BATCH, Flat, sums

Batch = Mapping[str, np.ndarray]


def from_store(folder: Path, seed: int | None) -> Iterator[Iterable[Batch]]:
    """Passes over the store `region` of the dataset `folder`, shuffled where there is a seed."""
    store = FeatureStore.open(folder, "region")
    next(store.keys())  # what pyarrow imports at its first read belongs to the start
    for epoch in range(2):
        # Like the limit's, a batch lies where the one before did.
        batches = store.stream(BATCH, seed=None if seed is None else seed + epoch, overwrite=True)
        yield ({"n": batch.n, **batch.arrays} for batch in batches)


def from_flat(folder: Path, seed: int | None) -> Iterator[Iterable[Batch]]:
    """Passes over flat arrays, in random order where there is a seed."""
    flat = Flat(folder)
    for epoch in range(2):
        order = range(len(flat)) if seed is None else np.random.default_rng(seed + epoch).permutation(len(flat))
        yield flat.batches([int(image) for image in order])


SIDES = {"store": from_store, "flat": from_flat}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shuffled", action="store_true")
    parser.add_argument("--warm", action="store_true")
    options = parser.parse_args()
    passes = SIDES[options.side](options.folder, 0 if options.shuffled else None)
    told = sums(next(passes)) if options.warm else None
    batches = next(passes)
    started = time.perf_counter()
    images = regions = 0
    for batch in batches:
        images += len(batch["n"])
        regions += int(batch["n"].sum())
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "images": images, "regions": regions, "sums": told}))


if __name__ == "__main__":
    main()
