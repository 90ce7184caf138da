"""From a plan to batches: pairs' features read, sampled, padded and stacked, a few batches ahead, in one thread."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
import torch

from pipeline.store.features import FeatureStore, ImageFeatures
from trainers.batch import Batch, TextInput, VisionInput
from trainers.samples import Samples
from trainers.text import PAD

Item = TypeVar("Item")
Made = TypeVar("Made")


def text_input(sequences: list[tuple[int, ...]]) -> TextInput:
    """Token sequences -> padded to the longest."""
    tokens = torch.full((len(sequences), max(map(len, sequences))), PAD)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = torch.tensor(sequence)
    return TextInput(tokens, tokens != PAD)


def vision_input(
    images: list[ImageFeatures], grid: tuple[int, int], sample: int = 0, random: np.random.Generator | None = None
) -> VisionInput:
    """Images' features -> padded to the longest. With `sample`, only that many positions of each, drawn evenly."""
    taken = [_positions(image.n, sample, random) for image in images]
    longest = max(map(len, taken))
    present = torch.zeros((len(images), longest), dtype=torch.bool)
    for row, positions in enumerate(taken):
        present[row, : len(positions)] = True

    def stacked(column: str, dtype: type[np.generic]) -> torch.Tensor:
        out = np.zeros((len(images), longest, *images[0][column].shape[1:]), dtype)
        for row, (image, positions) in enumerate(zip(images, taken, strict=True)):
            out[row, : len(positions)] = image[column][positions]
        return torch.from_numpy(out)

    features = stacked("features", np.float16)
    if "boxes" in images[0].arrays:
        return VisionInput(
            features,
            present,
            boxes=stacked("boxes", np.float32),
            class_ids=stacked("topk_ids", np.int64),
            class_values=stacked("topk_values", np.float32),
        )
    cells = torch.zeros((len(images), longest, 2), dtype=torch.int64)
    for row, positions in enumerate(taken):
        cells[row, : len(positions)] = torch.from_numpy(np.stack(np.divmod(positions, grid[1]), axis=1))
    return VisionInput(features, present, cells=cells)


def make_batch(
    samples: Samples,
    store: FeatureStore,
    rows: list[int],
    grid: tuple[int, int],
    sample: int = 0,
    random: np.random.Generator | None = None,
) -> Batch:
    """The pairs at `rows`, as one batch on the CPU."""
    return Batch(
        uids=tuple(samples.pairs.uids[row] for row in rows),
        text=text_input([samples.tokens[row] for row in rows]),
        vision=vision_input([store[samples.pairs.keys[row]] for row in rows], grid, sample, random),
        partners=torch.from_numpy(samples.partners(rows)),
    )


def _positions(n: int, sample: int, random: np.random.Generator | None) -> np.ndarray:
    """All of n positions, or `sample` of them in order."""
    if not sample or sample >= n or random is None:
        return np.arange(n)
    return np.sort(random.choice(n, sample, replace=False))


def prefetched(make: Callable[[Item], Made], items: Iterable[Item], ahead: int = 4) -> Iterator[Made]:
    """`make` of each item, in order, made by one thread up to `ahead` items early. An error there is raised here."""
    made: queue.Queue[tuple[Made | None, BaseException | None]] = queue.Queue(ahead)
    stopped = threading.Event()

    def put(value: Made | None, error: BaseException | None) -> None:
        while not stopped.is_set():
            try:
                made.put((value, error), timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                if stopped.is_set():
                    return
                put(make(item), None)
            put(None, StopIteration())
        except BaseException as error:
            put(None, error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            value, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            assert value is not None
            yield value
    finally:
        stopped.set()
        thread.join()
