"""Text embeddings beside patch features; and `filter`, which takes both instead of measuring."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from made_dataset import Image, jpeg, made_dataset, run_filter, signal, uid_of, verdicts

sys.path.append(str(Path(__file__).parents[1] / "signals"))
from tiny_clip import write_tiny_clip

from pipeline import extract
from pipeline.clip_model import LoadedClip
from pipeline.engine import InlineEngine
from pipeline.extractors import one_pass, texts
from pipeline.job import UP_TO_DATE, Job
from pipeline.recipe import Recipe
from pipeline.signals import clip as clip_signals
from pipeline.signals.extracted import texts_table
from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureStore

WORDS = ["a cat", "a house by a river", "猫が窓から外を見る", "word " * 300]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(autouse=True)
def _nothing_is_left_from_another_test() -> Iterator[None]:
    yield
    for cached in (one_pass._at_hand, texts._loaded, clip_signals._loaded):
        cached.cache_clear()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What went through a CLIP's towers when `filter` measured, or `extract` embedded texts."""
    found: dict[str, list[Any]] = {"images": [], "texts": []}
    for name in found:
        whole = getattr(LoadedClip, name)

        def noted(self: Any, inputs: Sequence[Any], whole: Any = whole, name: str = name) -> np.ndarray:
            found[name] += list(inputs)
            return whole(self, inputs)

        monkeypatch.setattr(LoadedClip, name, noted)
    return found


def picture(seed: int) -> bytes:
    draw = np.random.default_rng(seed)
    return jpeg(np.kron(draw.integers(0, 256, (3, 4, 3)), np.ones((13, 17, 1))).astype(np.uint8))


SMALL = {3, 7}
"""These pictures' originals fall to `min_side`."""
CONTENTS = {f"http://a/{seed}": picture(seed) for seed in range(9)} | {"http://a/odd": b"no picture"}
PAIRS = [(url, text) for url in CONTENTS for text in WORDS]


def made(folder: Path, pairs: Sequence[tuple[str, str]] = PAIRS) -> Dataset:
    images = [
        Image(url, content, original=(10, 10) if number in SMALL else (300, 300))
        for number, (url, content) in enumerate(CONTENTS.items())
    ]
    dataset = made_dataset(folder, pairs, [images[:6], images[6:]])
    run_filter(dataset, {"min_side": 20})
    return dataset


def job_of(dataset: Dataset, clip: dict[str, Any], engine: Any = None, **more: Any) -> Job:
    section = {"kind": "patch", "model": clip["model"], "weights": clip["pretrained"], **more}
    recipe = Recipe.model_validate({"name": "t", "extract": {"vit": section}})
    return Job("extract", recipe, dataset, engine or InlineEngine())


def embedded(dataset: Dataset) -> dict[str, np.ndarray]:
    table = texts_table(dataset.features("vit"))
    rows = [row for path in table.paths(".parquet") for row in pq.read_table(path).to_pylist()]
    found = {row["uid"]: np.array(row["embedding"], np.float32) for row in rows}
    assert len(found) == len(rows)
    return found


KEPT = [(url, text) for number, url in enumerate(CONTENTS) if number not in SMALL for text in WORDS]


def test_each_kept_text_has_its_embedding(tmp_path: Path, clip: dict[str, Any]) -> None:
    dataset = made(tmp_path)
    assert f"{len(KEPT)} texts" in extract.run(job_of(dataset, clip))
    found = embedded(dataset)
    assert found.keys() == {uid_of(*pair) for pair in KEPT}
    open_clip.add_model_config(Path(clip["model"]))
    model, _, _ = open_clip.create_model_and_transforms("tiny", pretrained=clip["pretrained"])
    tokenizer = open_clip.get_tokenizer("tiny")
    for url, text in KEPT[:8]:
        with torch.inference_mode():
            own = model.eval().encode_text(tokenizer([text]), normalize=True)[0]
        np.testing.assert_allclose(found[uid_of(url, text)], own, atol=1e-6)
    with dataset.connect() as connection:
        query = "SELECT len(embedding), list_dot_product(embedding, embedding) FROM read_parquet(?)"
        paths = [str(path) for path in texts_table(dataset.features("vit")).paths(".parquet")]
        assert all(row == (16, pytest.approx(1, abs=1e-5)) for row in connection.execute(query, [paths]).fetchall())


def test_a_second_call_embeds_nothing_and_a_new_pair_alone(
    tmp_path: Path, clip: dict[str, Any], seen: dict[str, list[Any]]
) -> None:
    fewer = [pair for pair in PAIRS if pair[1] != "a cat"]
    dataset = made(tmp_path, fewer)
    extract.run(job_of(dataset, clip))
    assert sorted(set(seen["texts"])) == sorted(set(WORDS) - {"a cat"})
    assert len(seen["texts"]) == 2 * 3  # each text once a shard
    before = embedded(dataset)
    left = texts_table(dataset.features("vit")).folder / "before-left-by-a-call-that-was-killed-at-its-end"
    left.mkdir()
    assert extract.run(job_of(dataset, clip)) == UP_TO_DATE
    assert len(seen["texts"]) == 2 * 3
    assert not left.exists()
    seen["texts"].clear()
    made(tmp_path)
    extract.run(job_of(dataset, clip))
    assert seen["texts"] == ["a cat", "a cat"]
    after = embedded(dataset)
    assert all(np.array_equal(after[uid], vector) for uid, vector in before.items())
    assert after.keys() == {uid_of(*pair) for pair in KEPT}
    assert not list(texts_table(dataset.features("vit")).folder.glob("before*"))


def test_another_models_embeddings_are_not_kept(
    tmp_path: Path, clip: dict[str, Any], seen: dict[str, list[Any]]
) -> None:
    dataset = made(tmp_path)
    extract.run(job_of(dataset, clip))
    before = embedded(dataset)
    seen["texts"].clear()
    other = write_tiny_clip(tmp_path / "other", seed=1)
    extract.run(job_of(dataset, other | {"model": clip["model"]}))
    assert len(seen["texts"]) == 2 * len(WORDS)
    after = embedded(dataset)
    assert all(not np.allclose(after[uid], vector, atol=0.01) for uid, vector in before.items())


class Cut(InlineEngine):
    """Stops as it would be killed, in the texts' pass, after so many shards."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def map(self, function: Any, tasks: Any, label: str, images: Any = None) -> Any:
        for number, done in enumerate(super().map(function, tasks, label, images)):
            if "texts" in label and number == self.after:
                raise KeyboardInterrupt
            yield done


@pytest.mark.parametrize("after", [0, 1])
def test_cut_off_and_called_again_it_ends_as_an_undisturbed_run(
    tmp_path: Path, clip: dict[str, Any], after: int
) -> None:
    """The second call has more pairs than the first, so that files are replaced when it is cut off."""
    for name in ("whole", "cut"):
        dataset = made(tmp_path / name, [pair for pair in PAIRS if pair[1] != "a cat"])
        extract.run(job_of(dataset, clip))
        made(tmp_path / name)
        if name == "cut":
            with pytest.raises(KeyboardInterrupt):
                extract.run(job_of(dataset, clip, Cut(after)))
        extract.run(job_of(dataset, clip))
    ends = [tmp_path / name / "features" / "vit" / "texts" for name in ("whole", "cut")]
    files = [sorted(path.relative_to(end) for path in end.rglob("*")) for end in ends]
    assert files[0] == files[1]
    for path in files[0]:
        if path.suffix == ".parquet":
            assert (ends[0] / path).read_bytes() == (ends[1] / path).read_bytes()


def test_filter_takes_what_extract_has_and_measures_the_rest(
    tmp_path: Path, clip: dict[str, Any], seen: dict[str, list[Any]]
) -> None:
    rules = {"min_side": 20, "min_clip_score": 0.0}
    measured = made(tmp_path / "measured")
    run_filter(measured, rules, clip=clip)
    dataset = made(tmp_path / "extracted")
    extract.run(job_of(dataset, clip, batch_size=3))
    seen["images"].clear()
    seen["texts"].clear()
    run_filter(dataset, rules, clip=clip)
    assert len(seen["images"]) == len(SMALL)
    # The small ones' pairs are judged, and so their texts are embedded: each once a shard.
    assert len(seen["texts"]) == 2 * len(WORDS)
    for table, column in (("embeddings", "embedding"), ("clip_score", "clip_score")):
        wanted, found = signal(measured, table), signal(dataset, table)
        assert [row | {column: None} for row in found] == [row | {column: None} for row in wanted]
        for one, other in zip(wanted, found, strict=True):
            if one[column] is None:
                assert other[column] is None
            else:
                np.testing.assert_allclose(other[column], one[column], atol=1e-6)
    assert {pair: set(rules) for pair, rules in verdicts(dataset).items()} == {
        pair: set(rules) for pair, rules in verdicts(measured).items()
    }
    kinds = [
        table.manifest.counts() for data in (measured, dataset) for table in [data.signals("embeddings", "filter")]
    ]
    assert kinds[0] == kinds[1]
    assert run_filter(dataset, rules, clip=clip) == UP_TO_DATE


def test_kept_images_and_texts_cost_filter_nothing(
    tmp_path: Path, clip: dict[str, Any], seen: dict[str, list[Any]]
) -> None:
    contents = {url: content for number, (url, content) in enumerate(CONTENTS.items()) if number not in SMALL}
    dataset = made_dataset(tmp_path, KEPT, [[Image(url, content) for url, content in contents.items()]])
    run_filter(dataset, {})
    extract.run(job_of(dataset, clip))
    seen["texts"].clear()
    run_filter(dataset, {"min_clip_score": 0.0}, clip=clip)
    assert seen == {"images": [], "texts": []}
    store = FeatureStore(dataset.features("vit"))
    for row in signal(dataset, "embeddings"):
        if row["embedding"] is not None:
            np.testing.assert_array_equal(row["embedding"], store[row["key"]]["pooled"])


def change(what: str, dataset: Dataset, clip: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make what was extracted something else than what filter asks for; returns its [filter.clip]."""
    if what == "weights":
        return write_tiny_clip(folder / "other", seed=1) | {"model": clip["model"]}
    if what == "images":
        images = [Image(url, picture(100 + number)) for number, url in enumerate(CONTENTS)]
        other = made_dataset(folder / "data", PAIRS, [images[:6], images[6:]])
        run_filter(other, {"min_side": 20})
    elif what == "half":
        (dataset.features("vit").folder / "manifest.json").unlink()
    elif what == "texts":
        (texts_table(dataset.features("vit")).folder / "manifest.json").unlink()
    return clip


@pytest.mark.parametrize("what", ["weights", "images", "half", "texts"])
def test_what_is_not_the_same_is_measured(
    tmp_path: Path, clip: dict[str, Any], seen: dict[str, list[Any]], what: str
) -> None:
    dataset = made(tmp_path / "data")
    extract.run(job_of(dataset, clip))
    asked = change(what, dataset, clip, tmp_path)
    seen["images"].clear()
    run_filter(dataset, {"min_clip_score": 0.0}, clip=asked)
    assert len(seen["images"]) == (10 if what == "images" else 9)


def test_short_floats_of_a_gpu_are_not_taken_for_filters(
    tmp_path: Path, clip: dict[str, Any], seen: dict[str, list[Any]]
) -> None:
    dataset = made(tmp_path)
    extract.run(job_of(dataset, clip, autocast="bfloat16"))
    run_filter(dataset, {"min_clip_score": 0.0}, clip=clip)
    assert len(seen["images"]) == 9
