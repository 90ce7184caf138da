"""A run's sources, from the recipe to batches, on made-up datasets."""

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic import CLASSES, REGION_COLUMNS, WIDTH, commit_features, make_dataset, model_recipe
from test_text import bert

from pipeline.errors import PairmillError
from pipeline.model_recipe import ModelRecipe
from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureStore, ImageFeatures
from pipeline.store.tags import tags
from trainers.data.batch import Batch
from trainers.data.mixture import Mixture
from trainers.data.sources import Corpora, inputs_of, neighbours, open_sources
from trainers.data.text import CLS, SEP, SpecialTokens, encode

EVERY_KIND = [
    {"kind": "pairs", "weight": 2},
    {"kind": "texts", "weight": 1},
    {"kind": "images", "weight": 1},
    {"kind": "bitext", "weight": 4},
]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Another dataset with the same extractors' features, and some of another model's."""
    dataset = make_dataset(tmp_path_factory.mktemp("other"), images=40)
    rows = [FeatureStore(dataset.features("region"))[key] for key in FeatureStore(dataset.features("region"))]
    commit_features(
        dataset.features("foreign"), rows, REGION_COLUMNS, {"kind": "region", "classes": [], "model": "another"}
    )
    return dataset


@pytest.fixture(scope="module")
def every_kind(dataset: Dataset) -> Corpora:
    return opened(dataset, sources=EVERY_KIND)


def opened(dataset: Dataset, features: str = "region", **over: Any) -> Corpora:
    return open_sources(model_recipe(features, **over), dataset, "1GB")


def kept(dataset: Dataset, split: str = "train") -> list[tuple[str, str, str]]:
    """(uid, text, key)"""
    with dataset.connect() as connection:
        return connection.execute("SELECT uid, text, key FROM kept WHERE split = ? ORDER BY uid", [split]).fetchall()


def texts_of(corpora: Corpora, batch: Batch) -> list[str]:
    assert batch.text is not None
    return [corpora.tokenizer.decode(row.tolist()) for row in batch.text.tokens]


def spoken(corpora: Corpora, text: str) -> str:
    """As it reads when it comes back from tokens."""
    return str(corpora.tokenizer.decode(corpora.tokenizer.encode(text).ids))


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    parts = {"text": batch.text, "vision": batch.vision, "objects": batch.objects, "translation": batch.translation}
    fields = {f"{name}.{field}": value for name, part in parts.items() if part for field, value in vars(part).items()}
    return {name: value for name, value in fields.items() if value is not None} | {"partners": batch.partners}


def same(one: Batch, other: Batch) -> bool:
    first, second = tensors(one), tensors(other)
    return one.uids == other.uids and first.keys() == second.keys() and all(first[k].equal(second[k]) for k in first)


def epoch(mixture: Mixture, source: int = 0) -> list[Batch]:
    """The first epoch of a source."""
    plan = [step for step in mixture.steps(0, 200) if (step.source, step.epoch) == (source, 0)]
    return [mixture.corpora[source].batch(step.rows) for step in plan]


def test_without_sources_a_run_reads_its_datasets_pairs(dataset: Dataset) -> None:
    corpora = opened(dataset)
    for mixture, split in ((corpora.train, "train"), (corpora.validation, "validation")):
        pairs = {uid: (text, key) for uid, text, key in kept(dataset, split)}
        seen: list[str] = []
        for batch in mixture.once():
            seen += batch.uids
            expected = [pairs[uid] for uid in batch.uids]
            assert texts_of(corpora, batch) == [spoken(corpora, text) for text, _ in expected]
            assert batch.vision is not None
            assert batch.vision.present.sum(1).tolist() == [corpora.store[key].n for _, key in expected]
            assert not batch.parts - {"text", "vision"}
            true = [[(text, key) in pairs.values() for _, key in expected] for text, _ in expected]
            assert batch.partners.tolist() == true
        assert sorted(seen) == list(pairs)
    assert corpora.image_keys.tolist() == sorted({key.encode() for _, _, key in kept(dataset)})
    assert (corpora.without_features, corpora.skipped, corpora.objects) == (0, {}, None)


def test_batches_lack_what_their_source_lacks(dataset: Dataset, every_kind: Corpora) -> None:
    parts = [{"text", "vision"}, {"text"}, {"vision"}, {"text", "translation"}]
    for step, batch in every_kind.train.batches(0, 60):
        assert batch.parts == parts[step.source]
        assert batch.partners.diagonal().all()
        assert len(batch) == len(step.rows)
    pairs = kept(dataset)
    seen = [{uid for batch in epoch(every_kind.train, source) for uid in batch.uids} for source in range(4)]
    assert seen[0] == {uid for uid, _, _ in pairs}
    texts = {uid: text for uid, text, _ in pairs}
    assert sorted(texts[uid] for uid in seen[1]) == sorted(set(texts.values()))
    assert seen[2] == {key for _, _, key in pairs}
    images = Counter(key for _, _, key in pairs)
    assert seen[3] == {uid for uid, _, key in pairs if images[key] > 1}


def test_without_files_a_translation_is_another_text_of_the_image(dataset: Dataset, every_kind: Corpora) -> None:
    texts = {uid: text for uid, text, _ in kept(dataset)}
    keys = {uid: key for uid, _, key in kept(dataset)}
    for batch in epoch(every_kind.train, 3):
        assert batch.translation is not None
        others = [every_kind.tokenizer.decode(row.tolist()) for row in batch.translation.tokens]
        for uid, other in zip(batch.uids, others, strict=True):
            theirs = [spoken(every_kind, text) for there, text in texts.items() if keys[there] == keys[uid]]
            assert other in theirs
            assert other != spoken(every_kind, texts[uid])
        same_image = [[keys[one] == keys[other] for other in batch.uids] for one in batch.uids]
        assert (batch.partners | ~torch.tensor(same_image)).all()


@given(st.lists(st.integers(0, 6), max_size=30))
def test_neighbours_are_of_one_image_and_each_text_is_some_ones(images: list[int]) -> None:
    one, other = (side.tolist() for side in neighbours(np.array(images, np.int32)))
    several = [text for text, image in enumerate(images) if images.count(image) > 1]
    assert sorted(one) == sorted(other) == several
    assert all(a != b and images[a] == images[b] for a, b in zip(one, other, strict=True))


def test_a_training_goes_on_at_any_step(every_kind: Corpora) -> None:
    whole = list(every_kind.train.batches(0, 50))
    assert [step.number for step, _ in whole] == list(range(50))
    assert max(step.epoch for step, _ in whole) >= 2
    for first, stop in ((17, 29), (49, 50), (5, 5)):
        again = list(every_kind.train.batches(first, stop))
        assert len(again) == stop - first
        for (step, batch), (expected, before) in zip(again, whole[first:stop], strict=True):
            assert (step.number, step.source, step.epoch) == (expected.number, expected.source, expected.epoch)
            assert same(batch, before)


def test_far_steps_are_those_that_one_comes_to(every_kind: Corpora, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.data.mixture.STEPS_AT_ONCE", 64)
    mixture = every_kind.train
    whole = [(step.number, step.source, step.epoch, step.rows.tolist()) for step in mixture.steps(0, 400)]
    later = [(step.number, step.source, step.epoch, step.rows.tolist()) for step in mixture.steps(300, 400)]
    assert later == whole[300:]


def test_sources_are_drawn_by_weight_and_go_through_their_own_epochs(every_kind: Corpora) -> None:
    steps = list(every_kind.train.steps(0, 4000))
    shares = np.bincount([step.source for step in steps]) / 4000
    assert np.abs(shares - np.array([2, 1, 1, 4]) / 8).max() < 5 * np.sqrt(0.25 / 4000)
    for source, corpus in enumerate(every_kind.train.corpora):
        of_source = [step for step in steps if step.source == source]
        assert [step.epoch for step in of_source] == sorted(step.epoch for step in of_source)
        for number in range(of_source[-1].epoch):
            rows = [row for step in of_source if step.epoch == number for row in step.rows.tolist()]
            assert sorted(rows) == list(range(len(corpus.samples)))


def test_another_seed_is_another_order(dataset: Dataset) -> None:
    orders = [[step.rows.tolist() for step in opened(dataset, seed=seed).train.steps(0, 8)] for seed in (0, 1)]
    assert orders[0] != orders[1]


def test_one_caption_of_an_image_an_epoch(dataset: Dataset) -> None:
    corpora = opened(dataset, sources=[{"captions": "one"}])
    keys = {uid: key for uid, _, key in kept(dataset)}
    uids = [uid for batch in epoch(corpora.train) for uid in batch.uids]
    assert sorted(keys[uid] for uid in uids) == sorted(set(keys.values()))
    assert sum(map(len, corpora.validation.once())) == len(kept(dataset, "validation"))


def test_an_item_is_some_hundred_bytes(every_kind: Corpora) -> None:
    def arrays(value: Any) -> list[np.ndarray]:
        if isinstance(value, np.ndarray):
            return [value]
        return [array for part in vars(value).values() for array in arrays(part)] if hasattr(value, "__dict__") else []

    for corpus in every_kind.train.corpora:
        held = arrays(replace(corpus.samples, pieces=SpecialTokens()))
        assert held
        assert all(array.dtype != object for array in held)
        assert sum(array.nbytes for array in held) < 130 * len(corpus.samples)


def test_another_datasets_pairs_are_mixed_in(dataset: Dataset, other: Dataset) -> None:
    corpora = opened(dataset, sources=[{}, {"dataset": str(other.root), "weight": 0.5}])
    assert {uid for batch in epoch(corpora.train, 1) for uid in batch.uids} == {uid for uid, _, _ in kept(other)}
    store = FeatureStore(other.features("region"))
    keys = {uid: key for uid, _, key in kept(other)}
    batch = epoch(corpora.train, 1)[0]
    assert batch.vision is not None
    for row, uid in enumerate(batch.uids):
        image = store[keys[uid]]
        assert np.array_equal(batch.vision.values()[row, : image.n].numpy(), image["features"])
    # The vocabulary is of all, and the statistics are of the run's own features.
    assert corpora.image_keys.tolist() == sorted({key.encode() for _, _, key in kept(dataset)})


def test_features_of_another_model_are_refused(dataset: Dataset, other: Dataset) -> None:
    source = {"dataset": str(other.root), "features": "foreign"}
    with pytest.raises(PairmillError, match=r"features/foreign .*another.*differ"):
        opened(dataset, sources=[{}, source])
    # The same model's, stored otherwise, are not another's.
    assert opened(dataset, sources=[{}, source | {"features": "region8"}]).train.batches(0, 1)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"dataset": "no/where"}, "no/where is no dataset"),
        ({"kind": "texts", "files": ["none.txt"]}, "none.txt"),
        ({"features": "absent"}, "absent holds no finished features"),
    ],
)
def test_a_source_that_is_not_there_is_named(dataset: Dataset, source: dict[str, Any], said: str) -> None:
    with pytest.raises(PairmillError, match=said):
        opened(dataset, sources=[{}, source])


def test_files_are_sources_too(dataset: Dataset, tmp_path: Path) -> None:
    lines = [f"the {number} tree" for number in range(300)]
    (tmp_path / "corpus.txt").write_text("\n".join([*lines, "", "  "]))
    (tmp_path / "pairs.tsv").write_text("text\ttranslation\n" + "\n".join(f"{line}\t{line[::-1]}" for line in lines))
    files = {"kind": "texts", "files": [str(tmp_path / "*.txt")], "held_out": 0.1}
    bitext = {"kind": "bitext", "files": [str(tmp_path / "pairs.tsv")], "held_out": 0.1}
    corpora = opened(dataset, sources=[files, bitext])
    assert corpora.skipped == {"no text": 2}
    seen = [[uid for batch in epoch(corpora.train, source) for uid in batch.uids] for source in (0, 1)]
    held = [len(corpus.samples) for corpus in corpora.validation.corpora]
    assert [len(uids) + number for uids, number in zip(seen, held, strict=True)] == [300, 300]
    assert held[0] == held[1] > 10
    batch = epoch(corpora.train, 1)[0]
    assert batch.uids[0].startswith("pairs.tsv:")
    rows = [int(uid.partition(":")[2]) - 1 for uid in batch.uids]
    assert texts_of(corpora, batch) == [lines[row] for row in rows]
    assert corpora.image_keys.tolist() == [key.encode() for key in corpora.store]


def test_a_source_without_anything_is_an_error(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(PairmillError, match=r"empty\.txt has none to train on"):
        opened(dataset, sources=[{"kind": "texts", "files": [str(tmp_path / "empty.txt")]}])


@pytest.mark.parametrize(("features", "objects"), [("region", None), ("grid", "region")])
def test_tags_follow_the_caption(dataset: Dataset, features: str, objects: str | None) -> None:
    text = {"vocabulary": 200, "max_tokens": 9, "tags": 7}
    corpora = opened(dataset, features, text=text, objects=objects)
    detector, pairs = FeatureStore(dataset.features("region")), {uid: row for uid, *row in kept(dataset)}
    labels = detector.identity["classes"]
    cut = 0
    for batch in epoch(corpora.train):
        assert batch.text is not None
        assert batch.text.segments is not None
        for row, uid in enumerate(batch.uids):
            caption, key = pairs[uid]
            present = batch.text.present[row]
            tokens, segments = batch.text.tokens[row][present].tolist(), batch.text.segments[row][present].tolist()
            assert not batch.text.segments[row][~present].any()
            ends = [place for place, token in enumerate(tokens) if token == SEP]
            assert (tokens[0], len(ends), ends[-1]) == (CLS, 2, len(tokens) - 1)
            assert segments == [0] * (ends[0] + 1) + [1] * (len(tokens) - ends[0] - 1)
            assert tuple(tokens[: ends[0] + 1]) == encode(corpora.tokenizer, [caption], 9)[0]
            assert ends[1] - ends[0] <= 7
            said = corpora.tokenizer.decode(tokens[ends[0] + 1 : ends[1]])
            expected = " ".join(tags(detector[key].arrays, labels))
            assert expected.startswith(said)
            assert said
            cut += said != expected
    assert cut
    assert batch.parts == {"text", "vision", "tags"} | ({"objects"} if objects else set())


def test_tags_without_a_detector_are_an_error(dataset: Dataset) -> None:
    with pytest.raises(PairmillError, match="names no objects"):
        opened(dataset, "grid", text={"vocabulary": 200, "max_tokens": 9, "tags": 7}, objects="grid")


def test_pieces_that_go_on_are_marked(dataset: Dataset) -> None:
    corpora = opened(dataset, text={"vocabulary": 100, "max_tokens": 20})
    marked = 0
    for batch in epoch(corpora.train):
        assert batch.text is not None
        assert batch.text.continues is not None
        pieces = [[corpora.tokenizer.id_to_token(token) for token in row] for row in batch.text.tokens.tolist()]
        assert batch.text.continues.tolist() == [[piece.startswith("##") for piece in row] for row in pieces]
        marked += int(batch.text.continues.sum())
    assert marked > 20


def test_objects_are_what_the_detector_saw_without_the_whole_image(dataset: Dataset, tmp_path: Path) -> None:
    own = make_dataset(tmp_path, images=30)
    random = np.random.default_rng(0)
    rows = []
    for number, key in enumerate(FeatureStore(own.features("region"))):
        n = 1 + number % 3  # for every third image the whole one is all there is
        arrays = {name: random.random((n, *column.shape)) for name, column in REGION_COLUMNS.items()}
        arrays |= {"classes": np.array([-1, *random.integers(0, CLASSES, n - 1)], np.int32)}
        arrays |= {"topk_ids": random.integers(0, CLASSES, (n, 4)).astype(np.int32)}
        rows.append(ImageFeatures(key, n, arrays))
    commit_features(own.features("seen"), rows, REGION_COLUMNS, {"kind": "region", "classes": ["x"] * CLASSES})
    corpora = opened(own, "grid", objects="seen")
    store = corpora.objects
    assert store is not None
    keys = {uid: key for uid, _, key in kept(own)}
    for batch in epoch(corpora.train):
        objects = batch.objects
        assert objects is not None
        assert objects.boxes is not None
        assert objects.class_ids is not None
        assert objects.class_values is not None
        assert objects.features.shape[2] == WIDTH
        for row, uid in enumerate(batch.uids):
            image = store[keys[uid]]
            n = image.n - 1
            assert objects.present[row].tolist() == [place < n for place in range(objects.present.shape[1])]
            for field, column in (
                (objects.boxes, "boxes"),
                (objects.values(), "features"),
                (objects.class_ids, "topk_ids"),
                (objects.class_values, "topk_values"),
            ):
                assert np.array_equal(field[row, :n].numpy(), image[column][1:])
                assert not field[row, n:].any()


def test_what_made_no_boxes_is_no_detector(dataset: Dataset) -> None:
    with pytest.raises(PairmillError, match="no boxes"):
        list(opened(dataset, objects="grid").train.batches(0, 1))


def test_pairs_need_the_detectors_features_too(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, images=40)
    store = FeatureStore(dataset.features("region"))
    rows = [store[key] for key in list(store)[::2]]
    commit_features(dataset.features("half"), rows, REGION_COLUMNS, {"kind": "region", "classes": ["x"] * CLASSES})
    corpora = opened(dataset, objects="half")
    there = [uid for uid, _, key in kept(dataset) if int(key) % 2 == 0]
    assert sorted(uid for batch in epoch(corpora.train) for uid in batch.uids) == there
    assert corpora.without_features == len(kept(dataset)) - len(there) > 0


def test_a_given_tokenizer_is_used(dataset: Dataset, tmp_path: Path) -> None:
    path = bert(tmp_path / "tokenizer.json")
    corpora = opened(dataset, text={"tokenizer": str(path), "max_tokens": 20})
    batch = epoch(corpora.train)[0]
    assert batch.text is not None
    assert batch.text.tokens[:, 0].unique().tolist() == [101]
    assert corpora.train.corpora[0].samples.pieces.special.mask == 103


def test_each_rank_gets_its_part_of_every_batch(every_kind: Corpora) -> None:
    whole = list(every_kind.train.batches(3, 20))
    parts = [list(every_kind.train.batches(3, 20, rank, 2)) for rank in (0, 1)]
    for (step, batch), one, two in zip(whole, *parts, strict=True):
        assert len(one[1]) == len(two[1]) == -(-len(batch) // 2)
        assert one[0].number == two[0].number == step.number
        together = one[1].uids + two[1].uids
        assert list(dict.fromkeys(together)) == list(batch.uids)
        places = torch.tensor([batch.uids.index(uid) for uid in together])
        for part in (one[1], two[1]):
            own = torch.tensor([batch.uids.index(uid) for uid in part.uids])
            assert part.partners.equal(batch.partners[own][:, own])
            assert part.everywhere is not None
            assert part.everywhere.equal(batch.partners[own][:, places])
        assert batch.everywhere is None
    seen = [[batch.uids for batch in every_kind.validation.once(rank, 3)] for rank in range(3)]
    for uids, *shares in zip([batch.uids for batch in every_kind.validation.once()], *seen, strict=True):
        assert list(dict.fromkeys(uid for share in shares for uid in share)) == list(uids)


def test_validation_sees_everything_once_and_whole(dataset: Dataset) -> None:
    corpora = opened(dataset, "pixel", vision={"kind": "pixel", "sample": 2, "augment": {}})
    first, second = list(corpora.validation.once()), list(corpora.validation.once())
    assert all(same(one, other) for one, other in zip(first, second, strict=True))
    assert sorted(uid for batch in first for uid in batch.uids) == [uid for uid, _, _ in kept(dataset, "validation")]
    keys = {uid: key for uid, _, key in kept(dataset, "validation")}
    for batch in first:
        assert batch.vision is not None
        assert batch.vision.present.sum(1).tolist() == [corpora.store[keys[uid]].n for uid in batch.uids]
    drawn = [batch for _, batch in islice(corpora.train.batches(0, 8), 8)]
    assert max(int(batch.vision.present.sum(1).max()) for batch in drawn if batch.vision) == 2


def test_a_runs_key_covers_what_its_sources_hold(dataset: Dataset, other: Dataset, tmp_path: Path) -> None:
    path, words = bert(tmp_path / "tokenizer.json"), tmp_path / "corpus.txt"
    words.write_text("one")
    recipes = [
        model_recipe(),
        model_recipe("grid"),
        model_recipe("grid", objects="region"),
        model_recipe(text={"tokenizer": str(path)}),
        model_recipe(sources=[{}, {"kind": "texts", "files": [str(words)]}]),
        model_recipe(sources=[{}, {"dataset": str(other.root)}]),
        model_recipe(sources=[{}, {"dataset": str(other.root), "features": "region8"}]),
        model_recipe(sources=[{}, {"kind": "texts", "dataset": str(other.root)}]),
    ]

    def keys() -> list[str]:
        return [str(inputs_of(recipe, dataset, "1GB")) for recipe in recipes]

    before = keys()
    assert len(set(before)) == len(before)
    words.write_text("one more")
    bert(path, tree=110)
    changed = [number for number, (old, new) in enumerate(zip(before, keys(), strict=True)) if old != new]
    assert changed == [3, 4]
    missing = ModelRecipe.model_validate(
        model_recipe().model_dump() | {"text": {"tokenizer": str(tmp_path / "no.json")}}
    )
    with pytest.raises(PairmillError, match=r"no\.json"):
        inputs_of(missing, dataset, "1GB")
