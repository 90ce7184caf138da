"""From a plan to batches: pairs' features read, sampled, padded and stacked, a few batches ahead, in one thread."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TypeVar

import numpy as np
import torch

from pipeline.model_recipe import Augmentation, Vision
from pipeline.store.features import SCALES, FeatureStore, Padded
from trainers.augmentation import augmented
from trainers.batch import Batch, TextInput, VisionInput
from trainers.embeddings import VISION_EMBEDDINGS
from trainers.features import feature_shape
from trainers.objectives import OBJECTIVES
from trainers.samples import Samples
from trainers.text import PAD

Item = TypeVar("Item")
Made = TypeVar("Made")

FIELDS = {
    "features": "features",
    "features" + SCALES: "scales",
    "boxes": "boxes",
    "topk_ids": "class_ids",
    "topk_values": "class_values",
    "positions": "cells",
}
"""The store's columns, as `VisionInput` names them."""


def text_input(sequences: Sequence[Sequence[int] | np.ndarray]) -> TextInput:
    """Token sequences -> padded to the longest."""
    tokens = np.full((len(sequences), max(map(len, sequences))), PAD, np.int64)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = sequence
    padded = torch.from_numpy(tokens)
    return TextInput(padded, padded != PAD)


@dataclass(frozen=True)
class VisionReader:
    """Images' features as a model takes them: the columns that it needs, copied once from the file to the batch."""

    store: FeatureStore
    vision: Vision
    """The model's: its kind, and how many positions a training step sees."""
    objectives: tuple[str, ...] = ()
    """Whose columns are read as well."""
    pin: bool = False
    """Whether batches go to a GPU, which copies from page-locked memory while it computes."""

    @cached_property
    def columns(self) -> list[str]:
        """The store's columns that are read: the embedding's and the objectives'."""
        read = [VISION_EMBEDDINGS[self.vision.kind].columns, *(OBJECTIVES[name].columns for name in self.objectives)]
        return list(dict.fromkeys(chain.from_iterable(read)))

    @cached_property
    def grid(self) -> tuple[int, int]:
        return feature_shape(self.store, self.vision.kind).grid

    def read(self, keys: Sequence[str], random: np.random.Generator | None = None) -> VisionInput:
        """These images, padded to the longest; a key may come more than once.

        With `random`, as a training step sees them: augmented, or some positions of each, where the recipe says so.
        """
        positions = None if random is None or not self.vision.sample else self._drawn(keys, random)
        if random is not None and self.vision.augment:
            padded = self._augmented(keys, positions, self.vision.augment, random)
        else:
            padded = self.store.gather(keys, self.columns, positions, self.pin)
        places = np.arange(padded.n.max(initial=0))
        fields = {FIELDS[name]: torch.from_numpy(array) for name, array in padded.arrays.items()}
        if "cells" not in fields and self.vision.kind != "region":
            index = places if positions is None else _stacked(positions, len(places))
            cells = np.stack(np.divmod(index, self.grid[1]), axis=-1)
            fields["cells"] = torch.from_numpy(np.broadcast_to(cells, (len(keys), *cells.shape[-2:])).copy())
        return VisionInput(present=torch.from_numpy(places < padded.n[:, None]), **fields)

    def _augmented(
        self,
        keys: Sequence[str],
        positions: list[np.ndarray] | None,
        how: Augmentation,
        random: np.random.Generator,
    ) -> Padded:
        """As `gather`, of pictures that are whole while they are augmented."""
        whole = self.store.gather(keys, self.columns, None, self.pin)
        padded = whole if positions is None else self.store.gather(keys, self.columns, positions, self.pin)
        for row, n in enumerate(whole.n):
            seen = augmented(whole["features"][row, :n], whole["positions"][row, :n], how, random)
            chosen = np.arange(n) if positions is None else positions[row]
            padded["features"][row, : len(chosen)] = seen[chosen]
        return padded

    def _drawn(self, keys: Sequence[str], random: np.random.Generator) -> list[np.ndarray]:
        """Of each image's positions `sample`, drawn evenly and in order; all where there are no more."""
        sample = self.vision.sample
        return [
            np.arange(n) if n <= sample else np.sort(random.choice(n, sample, replace=False))
            for n in self.store.gather(keys, columns=()).n.tolist()
        ]


def _stacked(positions: list[np.ndarray], longest: int) -> np.ndarray:
    """Of different lengths -> (B, longest), zero where there is none."""
    index = np.zeros((len(positions), longest), np.int64)
    for row, drawn in enumerate(positions):
        index[row, : len(drawn)] = drawn
    return index


def make_batch(
    samples: Samples, reader: VisionReader, rows: np.ndarray, random: np.random.Generator | None = None
) -> Batch:
    """The pairs at `rows` (B,), as one batch on the CPU; `random` as in `VisionReader.read`."""
    return Batch(
        uids=tuple(uid.decode() for uid in samples.uids[rows].tolist()),
        text=text_input([samples.sequence(row) for row in rows]),
        vision=reader.read(samples.keys_of(rows), random),
        partners=torch.from_numpy(samples.partners(rows)),
    )


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
