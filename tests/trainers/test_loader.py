"""Batches against a slow reference that reads image by image and pads with loops."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from synthetic import PATCHES, model_recipe

from pipeline.model_recipe import Augmentation, ModelRecipe
from pipeline.store.dataset import Dataset
from pipeline.store.features import ImageFeatures
from trainers.data.augmentation import augmented
from trainers.data.batch import VisionInput
from trainers.data.loader import VisionReader, make_batch, prefetched
from trainers.data.samples import Samples
from trainers.data.sources import open_sources

GRIDS = {"grid": (3, 3), "patch": PATCHES}
ALL_REGION = {"mlm": {}, "mrc_kl": {}, "mrfr": {}}


def opened(dataset: Dataset, features: str, sample: int = 0, **over: Any) -> tuple[VisionReader, Samples]:
    recipe = model_recipe(features, **over)
    vision = recipe.vision.model_copy(update={"sample": sample})
    recipe = ModelRecipe.model_validate(recipe.model_dump() | {"vision": vision.model_dump()})
    (corpus,) = open_sources(recipe, dataset, "1GB").train.corpora
    assert corpus.reader is not None
    return corpus.reader, corpus.samples


def slow(images: list[ImageFeatures], kind: str, taken: list[list[int]]) -> dict[str, np.ndarray]:
    """Every field that the kind has, position by position; features are dequantised, as the store gives one image's."""
    longest = max(map(len, taken))
    filled: dict[str, Any] = {"present": np.zeros((len(images), longest), bool)}

    def put(field: str, row: int, place: int, value: Any) -> None:
        value = np.asarray(value)
        if field not in filled:
            filled[field] = np.zeros((len(images), longest, *value.shape), np.float64)
        filled[field][row, place] = value

    for row, (image, positions) in enumerate(zip(images, taken, strict=True)):
        for place, position in enumerate(positions):
            filled["present"][row, place] = True
            put("values", row, place, image["features"][position])
            if kind == "region":
                put("boxes", row, place, image["boxes"][position])
                put("class_ids", row, place, image["topk_ids"][position])
                put("class_values", row, place, image["topk_values"][position])
            elif kind == "pixel":
                put("cells", row, place, image["positions"][position])
            else:
                put("cells", row, place, [position // GRIDS[kind][1], position % GRIDS[kind][1]])
    return filled


def check(vision: VisionInput, expected: dict[str, np.ndarray]) -> None:
    present = expected["present"]
    assert np.array_equal(vision.present.numpy(), present)
    fields = {name: tensor for name, tensor in vars(vision).items() if tensor is not None}
    assert set(fields) - {"features", "scales"} == set(expected) - {"values"}
    for name in set(expected) - {"present"}:
        found = vision.values() if name == "values" else fields[name]
        assert np.array_equal(found.numpy()[present], expected[name][present].astype(found.numpy().dtype)), name
    assert not vision.values()[~vision.present].any()


@pytest.mark.parametrize("features", ["region", "region8", "grid", "patch", "patch8", "pixel"])
@pytest.mark.parametrize("sample", [0, 3])
def test_a_batch_is_what_the_store_holds(dataset: Dataset, features: str, sample: int) -> None:
    objectives = ALL_REGION if features.startswith("region") else {"mlm": {}}
    reader, samples = opened(dataset, features, sample, objectives=objectives)
    rows = np.array([5, 0, 33, 5, 61, 12])
    for number in range(3):
        batch = make_batch(samples, reader, rows, np.random.default_rng(number) if sample else None)
        assert batch.uids == tuple(samples.uids[row].decode() for row in rows)
        images = [reader.store[key] for key in samples.keys_of(rows)]
        taken = [list(range(image.n)) for image in images]
        if sample:
            random = np.random.default_rng(number)
            taken = [
                sorted(random.choice(image.n, sample, replace=False).tolist()) if image.n > sample else positions
                for image, positions in zip(images, taken, strict=True)
            ]
        check(batch.vision, slow(images, features.rstrip("8"), taken))
        text, image = samples.lengths
        assert batch.vision.present.sum(1).tolist() == image[rows].tolist()
        assert batch.text.present.sum(1).tolist() == text[rows].tolist()
        for place, row in enumerate(rows):
            present = batch.text.present[place]
            assert batch.text.tokens[place][present].tolist() == samples.texts[row].tolist()
            assert not batch.text.tokens[place][~present].any()


@pytest.mark.parametrize(
    ("features", "dtype", "bytes_a_number"),
    [("region", torch.float16, 2), ("region8", torch.int8, 1), ("pixel", torch.uint8, 1)],
)
def test_features_go_to_the_device_as_they_are_stored(
    dataset: Dataset, features: str, dtype: torch.dtype, bytes_a_number: int
) -> None:
    reader, samples = opened(dataset, features)
    vision = make_batch(samples, reader, np.arange(4)).vision
    assert vision.features.dtype == dtype
    assert vision.features.element_size() == bytes_a_number
    assert (vision.scales is not None) == (dtype == torch.int8)
    at = vision.present & (torch.rand(vision.present.shape) < 0.5)
    assert torch.equal(vision.values(at), vision.values()[at])


def test_int8_is_the_float_to_half_a_scale(dataset: Dataset) -> None:
    reader, samples = opened(dataset, "region8")
    rows = np.arange(20)
    small = make_batch(samples, reader, rows).vision
    reader, samples = opened(dataset, "region")
    whole = make_batch(samples, reader, rows).vision
    assert small.scales is not None
    assert (small.values() - whole.values()).abs().max() > 0
    assert ((small.values() - whole.values()).abs() <= 0.5001 * small.scales[..., None] + 1e-3).all()


def test_only_the_columns_of_the_kind_and_the_objectives_are_read(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {
        ("region", "mlm"): {"features", "boxes"},
        ("region", "mrc_kl"): {"features", "boxes", "topk_ids", "topk_values"},
        ("patch", "mlm"): {"features"},
        ("pixel", "mlm"): {"features", "positions"},
    }
    for (features, objective), columns in wanted.items():
        reader, samples = opened(dataset, features, sample=2, objectives={objective: {}})
        asked: set[str] = set()
        gather = reader.store.gather

        def watch(keys: Any, columns: Any = None, *more: Any, seen: set[str] = asked, through: Any = gather) -> Any:
            seen |= set(columns)
            return through(keys, columns, *more)

        monkeypatch.setattr(reader.store, "gather", watch)
        make_batch(samples, reader, np.arange(4), np.random.default_rng(0))
        assert asked == columns


def test_prefetching_keeps_order_and_hands_over_errors() -> None:
    assert list(prefetched(lambda n: n * n, range(50))) == [n * n for n in range(50)]
    with pytest.raises(ZeroDivisionError):
        list(prefetched(lambda n: 1 / n, [1, 0]))
    endless = prefetched(lambda n: torch.zeros(n), iter(lambda: 1, 0))
    assert len(next(endless)) == 1
    endless.close()


def test_batches_made_ahead_stay_as_they_were(dataset: Dataset) -> None:
    """The store uses its memory again: not while a batch that is kept still lies in it."""
    reader, samples = opened(dataset, "region")
    plan = [np.arange(first, first + 8) for first in range(0, 64, 8)]
    kept = list(prefetched(lambda rows: make_batch(samples, reader, rows), plan, ahead=2))
    for rows, batch in zip(plan, kept, strict=True):
        assert torch.equal(batch.vision.features, make_batch(samples, reader, rows).vision.features)


@pytest.mark.parametrize("sample", [0, 3])
def test_an_augmented_batch_is_of_augmented_pictures(dataset: Dataset, sample: int) -> None:
    """Whole pictures are augmented, and then sampled; the store's own bytes stay; without `random` nothing happens."""
    how = Augmentation(operations=2, magnitude=20)
    reader, samples = opened(dataset, "pixel")
    reader = replace(reader, vision=reader.vision.model_copy(update={"sample": sample, "augment": how}))
    rows = np.arange(12)
    vision = make_batch(samples, reader, rows, np.random.default_rng(3)).vision
    images = [reader.store[key] for key in samples.keys_of(rows)]
    random = np.random.default_rng(3)
    taken = [
        sorted(random.choice(image.n, sample, replace=False).tolist()) if image.n > sample > 0 else list(range(image.n))
        for image in images
    ]
    changed = [
        replace(
            image,
            arrays=image.arrays | {"features": augmented(image["features"], image["positions"], how, random)},
        )
        for image in images
    ]
    check(vision, slow(changed, "pixel", taken))
    assert any((new["features"] != old["features"]).any() for new, old in zip(changed, images, strict=True))
    check(make_batch(samples, reader, rows).vision, slow(images, "pixel", [list(range(image.n)) for image in images]))
