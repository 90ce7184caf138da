"""Stage filter against a slow count, over made-up image metadata: nothing is fetched, and no image is read."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ingest import Here

from pipeline import filter, ingest, screen
from pipeline.download import _METADATA
from pipeline.job import UP_TO_DATE, Job
from pipeline.recipe import Recipe
from pipeline.store.dataset import Dataset
from pipeline.store.table import Shard

RULES = {"min_side": 200, "max_aspect": 3, "max_texts_per_image": 2, "max_copies": 1}


def recipe_of(path: Path, rules: dict[str, float], **more: object) -> Recipe:
    ingest = {"inputs": [str(path)], "shards": 2}
    screen = {"rules": {"min_words": 2}}
    return Recipe.model_validate({"name": "t", "ingest": ingest, "screen": screen, "filter": {"rules": rules}, **more})


def filtered(
    folder: Path,
    pairs: list[tuple[str, str]],
    images: dict[str, tuple[str, str, int, int]],
    rules: dict[str, float],
    **extra: Any,
) -> Dataset:
    """`images`: url -> (status, digest, width, height)."""
    folder.mkdir(exist_ok=True)
    path = folder / "list.parquet"
    urls, texts = zip(*pairs, strict=True)
    pq.write_table(pa.table({"url": urls, "text": texts, **extra}), path)
    dataset = Dataset(folder / "data")
    recipe = recipe_of(path, rules)
    for stage in (ingest, screen):
        stage.run(Job(stage.__name__.rpartition(".")[2], recipe, dataset, Here()))
    rows = []
    for index, (url, (status, digest, width, height)) in enumerate(images.items()):
        ok = status == "ok"
        rows.append(
            dict.fromkeys(_METADATA.names)
            | {"key": f"{index:09d}", "url": url, "status": status, "sha256": digest if ok else None}
            | {"original_width": width if ok else None, "original_height": height if ok else None}
        )
    with dataset.images.writing("key", {"00000": "key"}) as writing:
        pq.write_table(pa.Table.from_pylist(rows, _METADATA), dataset.images.folder / "00000.parquet")
        writing.add(Shard.of(dataset.images.folder, "00000", "key", ["00000.parquet"], {}))
        writing.commit()
    filter.run(Job("filter", recipe, dataset, Here()))
    return dataset


def verdicts(dataset: Dataset) -> dict[tuple[str, str], list[tuple[str, float]]]:
    """(url, text) -> its verdicts, in order."""
    with dataset.connect() as connection:
        pairs = {
            uid: (url, text) for uid, url, text in connection.execute("SELECT uid, url, text FROM pairs").fetchall()
        }
    found = defaultdict(list)
    for path in dataset.filtered.paths(".parquet"):
        for row in pq.read_table(path).to_pylist():
            found[pairs[row["uid"]]].append((row["rule"], row["value"]))
    return dict(found)


def one(folder: Path, width: int, height: int, rules: dict[str, float]) -> list[tuple[str, float]]:
    image = {"http://a/1": ("ok", "aa", width, height)}
    return verdicts(filtered(folder, [("http://a/1", "one two")], image, rules)).get(("http://a/1", "one two"), [])


@pytest.mark.parametrize(("side", "fails"), [(199, True), (200, True), (201, False)])
def test_the_shorter_side_must_be_above_the_threshold(tmp_path: Path, side: int, fails: bool) -> None:
    expected = [("min_side", float(side))] if fails else []
    assert one(tmp_path, side, 300, {"min_side": 200}) == expected


@pytest.mark.parametrize(
    ("width", "height", "fails"), [(599, 200, False), (600, 200, True), (200, 600, True), (200, 200, False)]
)
def test_the_aspect_must_be_below_the_threshold(tmp_path: Path, width: int, height: int, fails: bool) -> None:
    assert [rule for rule, _ in one(tmp_path, width, height, {"max_aspect": 3})] == ["max_aspect"] * fails


def test_every_failed_rule_is_told_in_order(tmp_path: Path) -> None:
    assert one(tmp_path, 900, 100, {"max_aspect": 3, "min_side": 200}) == [("max_aspect", 9.0), ("min_side", 100.0)]


def test_a_copy_is_the_same_text_on_the_same_bytes(tmp_path: Path) -> None:
    images = {f"http://a/{i}": ("ok", digest, 300, 300) for i, digest in enumerate(["aa", "aa", "bb"])}
    pairs = [("http://a/0", "x y"), ("http://a/1", "x y"), ("http://a/1", "x z"), ("http://a/2", "x y")]
    dataset = filtered(tmp_path, pairs, images, {"max_copies": 1})
    found = verdicts(dataset)
    assert len(found) == 1
    ((pair, said),) = found.items()
    assert pair in pairs[:2]
    assert said == [("max_copies", 2.0)]


def test_texts_of_an_image_are_counted_over_all_its_copies(tmp_path: Path) -> None:
    images = {"http://a/0": ("ok", "aa", 300, 300), "http://a/1": ("ok", "aa", 300, 300)}
    pairs = [("http://a/0", "x 1"), ("http://a/0", "x 2"), ("http://a/1", "x 2"), ("http://a/1", "x 3")]
    assert verdicts(filtered(tmp_path / "a", pairs, images, {"max_texts_per_image": 3})) == {}
    found = verdicts(filtered(tmp_path / "b", pairs, images, {"max_texts_per_image": 2}))
    assert found == {pair: [("max_texts_per_image", 3.0)] for pair in pairs}


def test_pairs_that_fell_out_before_are_not_judged_and_do_not_count(tmp_path: Path) -> None:
    images = {
        "http://a/0": ("ok", "aa", 10, 10),
        "http://a/1": ("http_404", "", 0, 0),
        "http://a/2": ("ok", "aa", 10, 10),
    }
    pairs = [("http://a/0", "x y"), ("http://a/0", "single"), ("http://a/1", "x y"), ("http://a/2", "word")]
    dataset = filtered(tmp_path, pairs, images, {"min_side": 200, "max_copies": 1, "max_texts_per_image": 1})
    assert verdicts(dataset) == {("http://a/0", "x y"): [("min_side", 10.0)]}
    assert dataset.filtered.manifest.counts() == {"pairs": 1, "kept": 0, "dropped": 1}


image = st.tuples(
    st.sampled_from(["ok", "ok", "ok", "timeout"]), st.sampled_from("abcd"), st.integers(1, 700), st.integers(1, 700)
)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(image, min_size=1, max_size=6),
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["x 1", "x 2", "x 3", "x 4", "single"])), min_size=1, max_size=20
    ),
    st.permutations(list(RULES)),
)
def test_any_corpus_is_judged_as_by_the_slow_count(
    tmp_path_factory: pytest.TempPathFactory, images: list[Any], pairs: list[tuple[int, str]], order: list[str]
) -> None:
    sizes: dict[str, tuple[str, str, int, int]] = {}
    by_digest: dict[str, tuple[int, int]] = {}
    for index, (status, digest, width, height) in enumerate(images):
        sizes[f"http://a/{index}"] = status, digest * 64, *by_digest.setdefault(digest, (width, height))
    rows = sorted({(f"http://a/{number % len(images)}", text) for number, text in pairs})
    rules = {rule: RULES[rule] for rule in order}
    dataset = filtered(tmp_path_factory.mktemp("any"), rows, sizes, rules)
    found = verdicts(dataset)
    judged = [(url, text) for url, text in rows if text != "single" and sizes[url][0] == "ok"]
    copies: dict[tuple[str, str], int] = defaultdict(int)
    for url, text in judged:
        _, digest, width, height = sizes[url]
        failed = dict(found.get((url, text), []))
        low, high = sorted((width, height))
        number = len({t for u, t in judged if sizes[u][1] == digest})
        assert failed.get("min_side") == (low if low <= 200 else None)
        assert failed.get("max_aspect") == (pytest.approx(high / low) if high >= 3 * low else None)
        assert failed.get("max_texts_per_image") == (number if number > 2 else None)
        assert [rule for rule, _ in found.get((url, text), [])] == [rule for rule in order if rule in failed]
        copies[digest, text] += "max_copies" not in failed
    assert set(copies.values()) <= {1}
    assert set(found) <= set(judged)
    with dataset.connect() as connection:
        (kept,) = connection.execute("SELECT count(*) FROM kept").fetchone()
        (all_pairs,) = connection.execute("SELECT sum(pairs) FROM funnel").fetchone()
    assert kept + all_pairs == len(rows)
    assert kept == len(judged) - len(found)


def test_extra_columns_of_any_name_do_not_disturb(tmp_path: Path) -> None:
    names = [*_METADATA.names, "split", "copy", "stage", "rule", "value", "shorter_side", "aspect", "texts_per_image"]
    extra = {name: ["x"] for name in names if name != "url"}
    images = {"http://a/0": ("ok", "aa", 10, 10)}
    dataset = filtered(tmp_path, [("http://a/0", "x y")], images, RULES, **extra)
    assert verdicts(dataset) == {("http://a/0", "x y"): [("min_side", 10.0)]}
    with dataset.connect() as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)
        assert connection.execute("SELECT sum(pairs) FROM funnel").fetchone() == (1,)


def test_another_threshold_or_split_is_made_again_and_nothing_else(tmp_path: Path) -> None:
    images = {"http://a/0": ("ok", "aa", 10, 10)}
    dataset = filtered(tmp_path, [("http://a/0", "x y")], images, {"min_side": 200})

    def again(rules: dict[str, float], **more: object) -> str:
        return filter.run(Job("filter", recipe_of(tmp_path / "list.parquet", rules, **more), dataset, Here()))

    assert again({"min_side": 200}) == UP_TO_DATE
    assert again({"min_side": 9}) != UP_TO_DATE
    assert verdicts(dataset) == {}
    assert again({"min_side": 9}, split={"train": 0.5, "validation": 0.25, "test": 0.25}) != UP_TO_DATE
    assert again({"min_side": 9}) != UP_TO_DATE  # the split is back at its default
    assert again({"min_side": 9}, train={}, download={"threads": 3}) == UP_TO_DATE
