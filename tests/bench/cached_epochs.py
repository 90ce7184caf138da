"""A training epoch from cached features beside one that extracts them anew from the pictures, as every epoch of an
end-to-end model does: the same model, the same batches, seconds a step.

`python -m tests.bench.cached_epochs [--quick]`. Both sides have all cores, and a thread that makes batches ahead.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.extractors import BUILDERS, Extractor
from pipeline.extractors.memory import CPU_BATCH
from pipeline.gpus import own_device
from pipeline.recipe import load
from pipeline.signals.pictures import decoded, members
from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureStore, Padded
from pipeline.weights import find
from tests.bench.extraction import photographs
from tests.bench.made_training import tiny, training
from tests.bench.measured import pairmill
from tests.bench.table import Row, write
from trainers.data.mixture import Mixture
from trainers.loop.training import Training

# Kind of features -> the model that reads them, and how many times faster the cached epoch is to be.
KINDS = {"region": ("uniter", 20), "grid": ("clip", 3)}
BATCH = 32
RECIPE = """
name = "photographs"
[extract.region]
kind = "region"
weights = ["yolo11n.pt", "yolo11n-seg.pt"]
[extract.grid]
kind = "grid"
"""


class Extracting:
    """In a store's place: makes an image's features each time that somebody asks for them.

    The pictures' files are in memory, decoded and prepared one after the other; the model runs on `CPU_BATCH` at once.
    """

    def __init__(self, store: FeatureStore, extractor: Extractor, files: dict[str, bytes]) -> None:
        self.identity, self.columns = store.identity, store.columns
        self._extractor, self._files = extractor, files
        self._last: tuple[tuple[str, ...], list[dict[str, np.ndarray]]] = ((), [])

    def gather(
        self,
        keys: Sequence[str],
        columns: Iterable[str] | None = None,
        positions: Sequence[np.ndarray] | None = None,
        pin: bool = False,
    ) -> Padded:
        """As a store's."""
        rows = self._rows(tuple(keys))
        there = [len(row["features"]) for row in rows]
        taken = [np.arange(n) for n in there] if positions is None else positions
        n = np.array([len(at) for at in taken])
        arrays = {}
        for name in self.columns if columns is None else columns:
            column = self.columns[name]
            padded = np.zeros((len(rows), *column.row_shape(int(n.max()))), column.dtype)
            for place, (row, at) in enumerate(zip(rows, taken, strict=True)):
                padded[place, : len(at)] = row[name][at]
            arrays[name] = padded
        return Padded(tuple(keys), n, arrays)

    def _rows(self, keys: tuple[str, ...]) -> list[dict[str, np.ndarray]]:
        if self._last[0] != keys:  # a loader asks for the lengths first, and then for the features
            pictures = [decoded(self._files[key]) for key in keys]
            prepared = [self._extractor.prepare(picture) for picture in pictures if picture is not None]
            parts = [prepared[first : first + CPU_BATCH] for first in range(0, len(prepared), CPU_BATCH)]
            self._last = keys, [row for part in parts for row in self._extractor(part)]
        return self._last[1]


def epochs(dataset: Dataset, kind: str, extracting_steps: int) -> Row:
    """The first steps of an epoch on each side, from the same start."""
    model, target = KINDS[kind]
    recipe = tiny(model, features=kind, steps=1000, batch={"size": BATCH})
    cached, extracted = training(dataset, recipe), training(dataset, recipe)
    section = load(dataset.root / "recipe.toml").extract[kind]
    extractor = BUILDERS[kind](section, find(section), own_device())
    files = {key: content for tar in dataset.images.paths(".tar") for key, content in members(tar)}
    assert isinstance(extracted.train, Mixture)
    (corpus,) = extracted.train.corpora
    assert corpus.reader is not None
    store: Any = Extracting(corpus.reader.store, extractor, files)
    extracted.train = replace(extracted.train, corpora=[replace(corpus, reader=replace(corpus.reader, store=store))])
    fast, slow = _seconds_a_step(cached, 20 * extracting_steps), _seconds_a_step(extracted, extracting_steps)
    _agree(cached, extracted)
    return Row.of(
        f"training step on {BATCH} images' cached {kind} features: {1000 * fast:.1f} ms",
        f"the step that extracts them: {1000 * slow:,.0f} ms",
        slow / fast,
        "x faster",
        f">= {target}",
    )


def _seconds_a_step(trained: Training, steps: int) -> float:
    trained.run(steps)
    return (trained.speed.waited + trained.speed.worked) / steps


def _agree(cached: Training, extracted: Training) -> None:
    """Raise AssertionError where the first losses differ: then the features do, by more than another order of sums."""
    first, other = (
        next(value for _, name, value in each.metrics.rows if name == "loss") for each in (cached, extracted)
    )
    if abs(first - other) > 0.01 * abs(first):
        raise AssertionError(f"the two sides did different work: the first loss is {first} and {other}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few pictures and steps")
    options = parser.parse_args()
    root = photographs(32 if options.quick else 256, 384)
    recipe = root / "recipe.toml"
    recipe.write_text(RECIPE)
    pairmill("extract", root, recipe)
    write("cached_epochs", [epochs(Dataset(root), kind, 2 if options.quick else 10) for kind in KINDS])


if __name__ == "__main__":
    main()
