"""A run's sources, opened: which texts and images there are, the tokenizer, and both splits ready for batches."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from pipeline.errors import PairmillError
from pipeline.model_recipe import ModelRecipe, Source
from pipeline.store.atomic import file_sha256
from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureStore
from trainers.data.loader import VisionReader
from trainers.data.mixture import Corpus, Mixture
from trainers.data.samples import Catalogue, Pairs, Partners, Samples, pairs_in
from trainers.data.sequences import Sequences
from trainers.data.tags import image_tags
from trainers.data.text import Pieces, load_tokenizer
from trainers.data.text_files import read_texts, states_of
from trainers.data.token_cache import TokenCache
from trainers.network.features import features_digest
from trainers.weights import tokenizer_file

Split = Literal["train", "validation"]
TOKENS = ".tokens"
"""Folder of a dataset."""
SPLITS: tuple[Split, Split] = ("train", "validation")


@dataclass(frozen=True, eq=False)
class Corpora:
    """All that a training reads."""

    tokenizer: Tokenizer
    train: Mixture
    validation: Mixture
    """May be empty."""
    store: FeatureStore
    """The run's own features; those of other datasets are by the same model."""
    objects: FeatureStore | None
    image_keys: np.ndarray
    """(images,) bytes, ascending: images of `store` in the train split, or, where no source has any, all of them."""
    without_features: int
    """How many pairs of the train split are left out, because their image has no features."""
    skipped: dict[str, int]
    """How many rows of the sources' files are left out, by reason."""


def open_sources(recipe: ModelRecipe, dataset: Dataset, memory_limit: str) -> Corpora:
    """Open the recipe's sources. Raises PairmillError where one has nothing to train on, or other features."""
    reading = _Reading(recipe, dataset, memory_limit)
    items = {split: [reading.items(source, split) for source in recipe.sources] for split in SPLITS}
    for source, found in zip(recipe.sources, items["train"], strict=True):
        if not len(found.uids):
            skipped = "; ".join(f"{count:,} rows left out: {reason}" for reason, count in found.skipped.items())
            raise PairmillError(
                f"the source of {source.kind} of {', '.join(source.files) or source.dataset or dataset.root} has none"
                " to train on" + (f" ({skipped})" if skipped else ""),
                "repair or rename what its `files` name"
                if source.files
                else "enlarge [split], relax the recipe's rules, or leave the source out",
            )
    tokenizer = reading.tokenizer([column for found in items["train"] for column in found.texts])
    own = reading.images(None, recipe.features)
    keys = [found.keys for found in items["train"] if found.images is own]
    return Corpora(
        tokenizer=tokenizer,
        train=reading.mixture(items["train"], tokenizer),
        validation=reading.mixture(items["validation"], tokenizer),
        store=own.store,
        objects=own.objects,
        image_keys=np.unique(np.concatenate(keys)) if keys else own.catalogue.keys,
        without_features=sum(found.without_features for found in items["train"]),
        skipped=dict(sum((found.skipped for found in items["train"]), Counter())),
    )


def inputs_of(recipe: ModelRecipe, dataset: Dataset, memory_limit: str) -> list[Any]:
    """What a run's key covers beside its recipe: the contents of its sources and of its tokenizer's file."""
    inputs: list[Any] = []
    if file := tokenizer_file(recipe):
        try:
            inputs.append(file_sha256(Path(file)))
        except OSError as error:
            raise PairmillError(
                f"cannot read the tokenizer {file}: {error.strerror}", "correct text.tokenizer"
            ) from None
    inputs += [states_of(source.files) for source in recipe.sources if source.files]
    roots = dict.fromkeys(source.dataset for source in recipe.sources if not source.files)
    inputs += [_dataset_of(root, dataset).kept_digest(SPLITS, memory_limit) for root in roots]
    read = dict.fromkeys((source.dataset, source.features) for source in recipe.sources if source.has_vision)
    for root, features in {(None, None): None, **read}:
        for name in (features or recipe.features, recipe.objects):
            if name is not None:
                table = _dataset_of(root, dataset).features(name)
                table.check_whole()
                inputs.append(table.manifest.digest)
    return inputs


@dataclass(frozen=True, eq=False)
class _Images:
    """A dataset's features, and what a detector saw in the same images."""

    store: FeatureStore
    objects: FeatureStore | None
    detector: FeatureStore | None
    """Whose class names are the tags."""

    @cached_property
    def catalogue(self) -> Catalogue:
        return Catalogue.of(self.store)

    def tags(self, tokenizer: Tokenizer, limit: int) -> Sequences:
        """Of each image of the catalogue."""
        if self.detector is None:
            raise PairmillError("text.tags are a detector's class names", "name its extractor in `objects`")
        tags = image_tags(self.detector, tokenizer, limit)
        if self.detector is self.store:
            return tags
        # An image that the detector has not seen is in no pair.
        return tags.at(Catalogue.of(self.detector).find(self.catalogue.keys).clip(min=0))

    @cached_property
    def catalogues(self) -> list[Catalogue]:
        return [self.catalogue, *([Catalogue.of(self.objects)] if self.objects else [])]


@dataclass(frozen=True, eq=False)
class _Items:
    """A split of a source before its texts are tokens."""

    source: Source
    uids: np.ndarray
    texts: tuple[pa.LargeStringArray, ...] = ()
    """Columns: the texts, and their translations."""
    images: _Images | None = None
    keys: np.ndarray = field(default_factory=lambda: np.empty(0, "S1"))
    """(n,) bytes, ascending: the distinct images."""
    image_of: np.ndarray | None = None
    """(items,) int32: each item's place in `keys`."""
    without_features: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


class _Reading:
    """What the sources share while they are opened; each store and each split is read once."""

    def __init__(self, recipe: ModelRecipe, dataset: Dataset, memory_limit: str) -> None:
        self.recipe, self.dataset, self.memory_limit = recipe, dataset, memory_limit
        self.cache = TokenCache(dataset.root / TOKENS)
        self.images = cache(self._images)
        self.pairs = cache(self._pairs)
        self.files = cache(read_texts)
        self.tags = cache(lambda images, tokenizer: images.tags(tokenizer, recipe.text.tags))

    def items(self, source: Source, split: Split) -> _Items:
        if split == "validation":
            source = source.model_copy(update={"captions": "every"})
        if source.files:
            columns = (source.text_column, source.translation_column)[: 1 + (source.kind == "bitext")]
            found = self.files(source.files, columns, source.held_out).part(split == "validation")
            return _Items(source, found.uids, found.columns, skipped=found.skipped)
        if source.has_vision:
            images = self.images(source.dataset, source.features or self.recipe.features)
            pairs = self.pairs(source.dataset, images, split)
            if source.kind == "images":
                places = np.arange(len(pairs.keys), dtype=np.int32)
                return _Items(source, pairs.keys, (), images, pairs.keys, places)
            return _Items(
                source, pairs.uids, (pairs.texts,), images, pairs.keys, pairs.image_of, pairs.without_features
            )
        pairs = self.pairs(source.dataset, None, split)
        if source.kind == "texts":
            distinct = pairs.texts.dictionary_encode().indices
            _, firsts = np.unique(np.asarray(distinct), return_index=True)
            return _Items(source, pairs.uids[firsts], (pairs.texts.take(pa.array(firsts)),))
        one, other = neighbours(pairs.image_of)
        columns_of = (pairs.texts.take(pa.array(one)), pairs.texts.take(pa.array(other)))
        return _Items(source, pairs.uids[one], columns_of, None, pairs.keys, pairs.image_of[one])

    def tokenizer(self, columns: Sequence[pa.LargeStringArray]) -> Tokenizer:
        vocabulary = self.recipe.text.vocabulary
        if file := tokenizer_file(self.recipe):
            return load_tokenizer(file, vocabulary)
        return self.cache.tokenizer(columns, vocabulary)

    def mixture(self, items: Sequence[_Items], tokenizer: Tokenizer) -> Mixture:
        pieces = Pieces.of(tokenizer)
        corpora = [self._corpus(found, tokenizer, pieces) for found in items if len(found.uids)]
        return Mixture(corpora, self.recipe.batch, self.recipe.seed)

    def _corpus(self, items: _Items, tokenizer: Tokenizer, pieces: Pieces) -> Corpus:
        recipe, images = self.recipe, items.images
        tokens = [self.cache.sequences(tokenizer, texts, recipe.text.max_tokens) for texts in items.texts]
        numbers = [side.numbered() for side in tokens]
        if items.image_of is not None:  # also of two texts of one image, whatever they say
            numbers.insert(1, items.image_of)
        samples = Samples(
            uids=items.uids,
            pieces=pieces,
            partners=Partners(numbers[0], numbers[1 % len(numbers)]),
            texts=tokens[0] if tokens else None,
            translations=tokens[1] if len(tokens) > 1 else None,
            sample=recipe.vision.sample,
            choices=items.image_of if items.source.captions == "one" else None,
        )
        if images is None:
            return Corpus(samples, items.source.weight)
        objectives = tuple(recipe.objectives.chosen)
        reader = VisionReader(images.store, recipe.vision, objectives)
        objects = VisionReader(images.objects, recipe.vision) if images.objects else None
        samples = replace(
            samples,
            images=images.catalogue,
            image_of=images.catalogue.find(items.keys)[items.image_of],
            tags=self.tags(images, tokenizer) if recipe.text.tags and items.texts else None,
        )
        return Corpus(samples, items.source.weight, reader, objects)

    def _images(self, root: str | None, name: str) -> _Images:
        dataset = _dataset_of(root, self.dataset)
        store = FeatureStore.open(dataset.root, name)
        objects = None if self.recipe.objects is None else FeatureStore.open(dataset.root, self.recipe.objects)
        found = _Images(store, objects, store if self.recipe.vision.kind == "region" else objects)
        if (root, name) != (None, self.recipe.features):
            own = self.images(None, self.recipe.features)
            _check_same_model(store, own.store, f"{dataset.root}/features/{name}")
            if objects is not None and own.objects is not None:
                _check_same_model(objects, own.objects, f"{dataset.root}/features/{self.recipe.objects}")
        return found

    def _pairs(self, root: str | None, images: _Images | None, split: Split) -> Pairs:
        dataset = _dataset_of(root, self.dataset)
        return pairs_in(dataset, images.catalogues if images else [], split, self.memory_limit)


def neighbours(image_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each text of an image that has several, and the one after it, the first after the last: two of (n,) int64.

    `image_of` (texts,): the texts' images.
    """
    by_image = np.argsort(image_of, kind="stable")
    counts = np.bincount(image_of)
    starts = np.cumsum(counts) - counts
    images = image_of[by_image]
    after = starts[images] + (np.arange(len(images)) - starts[images] + 1) % np.maximum(counts[images], 1)
    several = counts[images] > 1
    return by_image[several], by_image[after[several]]


def _dataset_of(root: str | None, own: Dataset) -> Dataset:
    if root is None:
        return own
    dataset = Dataset(root)
    if not (dataset.images.exists and dataset.filtered.exists):
        raise PairmillError(
            f"{root} is no dataset with kept pairs", "name the folder of one that `make filter` finished"
        )
    return dataset


def _check_same_model(store: FeatureStore, own: FeatureStore, folder: str) -> None:
    """Whatever the dtype."""
    if features_digest(store, storage=False) != features_digest(own, storage=False):
        raise PairmillError(
            f"{folder} holds features of {store.identity['model']} that differ from the run's own, of "
            f"{own.identity['model']}: in model, weights or settings",
            "extract both with the same section of a recipe",
        )
