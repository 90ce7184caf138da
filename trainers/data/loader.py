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

from pipeline.errors import PairmillError
from pipeline.model_recipe import Augmentation, Vision
from pipeline.store.features import SCALES, FeatureStore, Padded
from trainers.data.augmentation import augmented
from trainers.data.batch import Batch, TextInput, VisionInput
from trainers.data.samples import Samples
from trainers.data.sequences import Sequences
from trainers.data.text import Pieces, SpecialTokens
from trainers.network.embeddings import VISION_EMBEDDINGS
from trainers.network.features import feature_shape
from trainers.objectives import OBJECTIVES

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


def text_input(
    sequences: Sequences | Sequence[Sequence[int]], pieces: Pieces | None = None, tags: Sequences | None = None
) -> TextInput:
    """Token sequences -> padded to the longest; with `tags`, each with the tags of the same row behind it.

    `pieces`: of their tokenizer; without, it is one of `train_tokenizer`, and nothing says where words go on.
    """
    captions = sequences if isinstance(sequences, Sequences) else Sequences.of(sequences)
    whole = captions if tags is None else captions.before(tags)
    special = SpecialTokens() if pieces is None else pieces.special
    tokens = whole.padded(special.pad)
    places = np.arange(tokens.shape[1])
    present = places < whole.lengths[:, None]
    segments = None if tags is None else present & (places >= captions.lengths[:, None])
    padded = torch.from_numpy(tokens)
    return TextInput(
        tokens=padded,
        present=torch.from_numpy(present),
        segments=None if segments is None else torch.from_numpy(segments.astype(np.int64)),
        continues=None if pieces is None else torch.from_numpy(continued(tokens, pieces)),
    )


def continued(tokens: np.ndarray, pieces: Pieces) -> np.ndarray:
    """(B, T) tokens -> (B, T) bool: which go on with the word of the one before; none does behind a special token."""
    continues = pieces.continues[tokens]
    continues[:, :1] = False
    continues[:, 1:] &= ~np.isin(tokens[:, :-1], pieces.special.numbers)
    return continues


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

    def objects(self, keys: Sequence[str]) -> VisionInput:
        """The detected regions of these images with their features and classes, without the one of the whole image.

        Raises PairmillError where the features are no detector's.
        """
        missing = {"boxes", "topk_ids", "topk_values"} - self.store.columns.keys()
        if missing:
            raise PairmillError(
                f"{self.store.identity['model']} made no boxes with classes", "name a region extractor in `objects`"
            )
        positions = None
        if "classes" in self.store.columns:
            found = self.store.gather(keys, ("classes",))
            positions = [np.flatnonzero(row[:n] >= 0) for row, n in zip(found["classes"], found.n, strict=True)]
        padded = self.store.gather(keys, ("features", "boxes", "topk_ids", "topk_values"), positions, self.pin)
        present = np.arange(padded.n.max(initial=0)) < padded.n[:, None]
        fields = {FIELDS[name]: torch.from_numpy(array) for name, array in padded.arrays.items()}
        return VisionInput(present=torch.from_numpy(present), **fields)

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
    samples: Samples,
    reader: VisionReader | None,
    rows: np.ndarray,
    random: np.random.Generator | None = None,
    objects: VisionReader | None = None,
    everywhere: np.ndarray | None = None,
) -> Batch:
    """The items at `rows` (B,), as one batch on the CPU; `random` as in `VisionReader.read`.

    `reader` may be None where the samples have no images; `objects` reads what a detector saw in these.
    `everywhere` (A,): the rows of all ranks, where this is one of several.
    """
    vision = text = None
    keys: list[str] = []
    if samples.images is not None:
        assert reader is not None
        keys = samples.keys_of(rows)
        vision = reader.read(keys, random)
    if samples.texts is not None:
        tags = None if samples.tags is None or samples.image_of is None else samples.tags.at(samples.image_of[rows])
        text = text_input(samples.texts.at(rows), samples.pieces, tags)
    return Batch(
        uids=tuple(uid.decode() for uid in samples.uids[rows].tolist()),
        text=text,
        vision=vision,
        partners=torch.from_numpy(samples.partners.among(rows)),
        everywhere=None if everywhere is None else torch.from_numpy(samples.partners.among(rows, everywhere)),
        objects=objects.objects(keys) if objects is not None and keys else None,
        translation=None if samples.translations is None else text_input(samples.translations.at(rows), samples.pieces),
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
