"""Stage filter: what it judges by, against slow counts; what it measures again, and what not."""

import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_dataset import Image, Inline, jpeg, made_dataset, run_filter, signal, verdicts

from pipeline import filter
from pipeline.engine import engine
from pipeline.errors import PairmillError
from pipeline.job import UP_TO_DATE
from pipeline.signals.phash import phashes
from pipeline.signals.pictures import decoded
from pipeline.store.dataset import Dataset
from pipeline.web.image_shard import METADATA

RULES = {"side_above": 200, "aspect_below": 3, "max_texts_per_image": 2, "max_copies": 1}
URL, TEXT = "http://a/0", "one two"


def one(folder: Path, width: int, height: int, rules: dict[str, Any], **more: Any) -> dict[str, float | None]:
    """The verdicts on a single pair."""
    dataset = made_dataset(folder, [(URL, TEXT)], [[Image(URL, original=(width, height), bytes=more.pop("bytes", 1))]])
    run_filter(dataset, rules, **more)
    return verdicts(dataset).get((URL, TEXT), {})


@pytest.mark.parametrize(
    ("rule", "threshold", "width", "height", "value"),
    [
        ("side_above", 200, 300, 200, 200),
        ("side_above", 200, 300, 201, None),
        ("min_side", 200, 199, 300, 199),
        ("min_side", 200, 200, 300, None),
        ("aspect_below", 3, 600, 200, 3),
        ("aspect_below", 3, 200, 599, None),
        ("max_aspect", 3, 200, 601, 3.005),
        ("max_aspect", 3, 600, 200, None),
        ("min_megapixels", 0.06, 200, 299, 0.0598),
        ("min_megapixels", 0.06, 200, 300, None),
        ("max_megapixels", 0.06, 200, 301, 0.0602),
        ("max_megapixels", 0.06, 200, 300, None),
        ("max_megapixels", 1, 60_000, 60_000, 3600),
    ],
)
def test_sizes_on_both_sides_of_a_threshold(
    tmp_path: Path, rule: str, threshold: float, width: int, height: int, value: float | None
) -> None:
    assert one(tmp_path, width, height, {rule: threshold}) == ({} if value is None else {rule: pytest.approx(value)})


@pytest.mark.parametrize(("size", "failed"), [(4999, ["min_bytes"]), (5000, []), (9000, []), (9001, ["max_bytes"])])
def test_bytes_are_those_of_the_file_that_was_fetched(tmp_path: Path, size: int, failed: list[str]) -> None:
    assert list(one(tmp_path, 9, 9, {"min_bytes": 5000, "max_bytes": 9000}, bytes=size)) == failed


def test_every_failed_rule_is_told_in_the_recipes_order(tmp_path: Path) -> None:
    found = one(tmp_path, 900, 100, {"aspect_below": 3, "min_bytes": 2, "side_above": 200})
    assert list(found.items()) == [("aspect_below", 9), ("min_bytes", 1), ("side_above", 100)]


def test_a_copy_is_the_same_text_on_the_same_bytes(tmp_path: Path) -> None:
    images = [Image(f"http://a/{i}", sha256=sha * 64) for i, sha in enumerate("aab")]
    pairs = [("http://a/0", "x y"), ("http://a/1", "x y"), ("http://a/1", "x z"), ("http://a/2", "x y")]
    dataset = made_dataset(tmp_path, pairs, [images[:1], images[1:]])
    run_filter(dataset, {"max_copies": 1})
    ((pair, said),) = verdicts(dataset).items()
    assert pair in pairs[:2]
    assert said == {"max_copies": 2}


def test_texts_of_an_image_are_counted_over_all_its_copies(tmp_path: Path) -> None:
    images = [[Image("http://a/0"), Image("http://a/1")]]
    pairs = [("http://a/0", "x 1"), ("http://a/0", "x 2"), ("http://a/1", "x 2"), ("http://a/1", "x 3")]
    dataset = made_dataset(tmp_path, pairs, images)
    run_filter(dataset, {"max_texts_per_image": 3})
    assert verdicts(dataset) == {}
    run_filter(dataset, {"max_texts_per_image": 2})
    assert verdicts(dataset) == {pair: {"max_texts_per_image": 3} for pair in pairs}


def test_pairs_that_fell_out_before_are_not_judged_and_do_not_count(tmp_path: Path) -> None:
    small = {"sha256": "aa", "original": (10, 10)}
    images = [Image("http://a/0", **small), Image("http://a/1", status="http_404"), Image("http://a/2", **small)]
    pairs = [("http://a/0", "x y"), ("http://a/0", "single"), ("http://a/1", "x y"), ("http://a/2", "word")]
    dataset = made_dataset(tmp_path, pairs, [images], screened=[pairs[1], pairs[3]])
    run_filter(dataset, {"side_above": 200, "max_copies": 1, "max_texts_per_image": 1})
    assert verdicts(dataset) == {("http://a/0", "x y"): {"side_above": 10}}
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
    tmp_path_factory: pytest.TempPathFactory, drawn: list[Any], rows: list[tuple[int, str]], order: list[str]
) -> None:
    size_of: dict[str, tuple[int, int]] = {}
    images = {
        f"http://a/{index}": Image(
            f"http://a/{index}", status=status, sha256=sha * 64, original=size_of.setdefault(sha, (width, height))
        )
        for index, (status, sha, width, height) in enumerate(drawn)
    }
    pairs = sorted({(f"http://a/{number % len(images)}", text) for number, text in rows})
    screened = [pair for pair in pairs if pair[1] == "single"]
    dataset = made_dataset(tmp_path_factory.mktemp("any"), pairs, [list(images.values())], screened)
    run_filter(dataset, {rule: RULES[rule] for rule in order})
    found = verdicts(dataset)
    judged = [pair for pair in pairs if pair not in screened and images[pair[0]].status == "ok"]
    stay = Counter[tuple[str, str]]()
    for url, text in judged:
        failed = found.get((url, text), {})
        low, high = sorted(images[url].original)
        number = len({t for u, t in judged if images[u].sha256 == images[url].sha256})
        assert failed.get("side_above") == (low if low <= 200 else None)
        assert failed.get("aspect_below") == (pytest.approx(high / low) if high >= 3 * low else None)
        assert failed.get("max_texts_per_image") == (number if number > 2 else None)
        assert list(failed) == [rule for rule in order if rule in failed]
        stay[str(images[url].sha256), text] += "max_copies" not in failed
    assert set(stay.values()) <= {1}
    assert set(found) <= set(judged)
    with dataset.connect() as connection:
        (kept,) = connection.execute("SELECT count(*) FROM kept").fetchone()
        (dropped,) = connection.execute("SELECT sum(pairs) FROM funnel").fetchone()
    assert kept + dropped == len(pairs)
    assert kept == len(judged) - len(found)


def test_columns_of_the_lists_do_not_disturb_facts(tmp_path: Path) -> None:
    names = [*METADATA.names, "split", "stage", "rule", "value", "detail", "phash", *filter._FACTS, "Aspect2", 'a"b']
    columns = {name: ["x"] for name in names if name != "url"}
    dataset = made_dataset(tmp_path, [(URL, TEXT)], [[Image(URL, original=(10, 10))]], **columns)
    run_filter(dataset, RULES)
    assert verdicts(dataset) == {(URL, TEXT): {"side_above": 10}}
    with dataset.connect() as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)
        assert connection.execute("SELECT sum(pairs) FROM funnel").fetchone() == (1,)


def test_a_score_in_the_lists_is_judged_and_not_measured(tmp_path: Path) -> None:
    """No CLIP is named, and the image is no picture: measuring would fail."""
    scores = ["0.31", "0.3", "0.29", "", "words"]
    pairs = [(URL, f"text {number}") for number in range(5)]
    dataset = made_dataset(
        tmp_path, pairs, [[Image(URL, b"no picture")]], Clip_Score=scores, nsfw=[0, 0.5, 0.6, None, 1]
    )
    run_filter(dataset, {"min_clip_score": 0.3, "max_nsfw": 0.5})
    assert verdicts(dataset) == {
        pairs[2]: {"min_clip_score": 0.29, "max_nsfw": 0.6},
        pairs[4]: {"max_nsfw": 1},
    }
    assert not (tmp_path / "signals").exists()


def test_words_are_no_score(tmp_path: Path) -> None:
    dataset = made_dataset(tmp_path, [(URL, TEXT)], [[Image(URL)]], clip_score=["UNLIKELY"])
    with pytest.raises(PairmillError, match=r"\[filter.clip\]"):
        run_filter(dataset, {"min_clip_score": 0.3})


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.34, 0.5, 0.99, 1.0])
def test_a_top_fraction_is_cut_as_datacomp_cuts(tmp_path: Path, fraction: float) -> None:
    draw = random.Random(3)
    pairs = [(URL, f"text {number}") for number in range(50)]
    scores = [draw.choice([0.1, 0.2, 0.25, 0.3, draw.random()]) for _ in pairs]
    dataset = made_dataset(tmp_path, pairs, [[Image(URL)]], clip_score=scores)
    run_filter(dataset, {"top_clip_fraction": fraction})
    descending = sorted(scores, reverse=True)
    rank = int(len(scores) * fraction)
    threshold = descending[rank] if rank < len(scores) else -1
    assert set(verdicts(dataset)) == {pair for pair, score in zip(pairs, scores, strict=True) if score < threshold}


def test_a_rule_of_the_recipes_own_sees_lists_metadata_and_facts(tmp_path: Path) -> None:
    pairs = [(URL, "one"), ("http://a/1", "two"), ("http://a/1", "three")]
    images = [Image(URL, original=(90, 90)), Image("http://a/1", original=(300, 10))]
    dataset = made_dataset(tmp_path, pairs, [images], licence=["by", "nc", "by"], Width=[1, 2, 3])
    own = {
        "free": {"keep_if": "licence <> 'nc'"},
        "wide": {"keep_if": "original_width < 100 OR text = 'three'"},
        "square": {"keep_if": "Aspect < 2"},
    }
    run_filter(dataset, own)
    assert {pair: list(said) for pair, said in verdicts(dataset).items()} == {
        pairs[1]: ["free", "wide", "square"],
        pairs[2]: ["square"],
    }
    with pytest.raises(PairmillError, match="keep_if"):
        run_filter(dataset, {"odd": {"keep_if": "no_such_column > 2"}})


def picture(seed: int, side: int = 96) -> bytes:
    draw = np.random.default_rng(seed)
    return jpeg(np.kron(draw.integers(0, 256, (8, 8, 3)), np.ones((side // 8, side // 8, 1))).astype(np.uint8))


def pictured(folder: Path) -> Dataset:
    """Three shards of pictures; of some, the second shard has smaller copies, and the third the first's text."""
    shards = [
        [Image(f"http://a/{shard}{n}", picture(n, side), original=(side, side)) for n in range(4 + shard)]
        for shard, side in enumerate((96, 80, 64))
    ]
    pairs = [(image.url, f"text {image.url[-1]}") for shard in shards for image in shard]
    return made_dataset(folder, pairs, [*shards, [Image("http://a/odd", b"no picture")]])


LOOKS = {"max_look_alikes": 1, "near_duplicates": 4, "side_above": 70}


def test_look_alikes_and_near_duplicates(tmp_path: Path) -> None:
    dataset = pictured(tmp_path)
    run_filter(dataset, LOOKS)
    found = verdicts(dataset)
    hashes = {row["key"]: row["phash"] for row in signal(dataset, "phash")}
    assert hashes.pop("000030000") is None
    for key, value in hashes.items():
        assert value == phashes([decoded(picture(int(key[-1]), (96, 80, 64)[int(key[4])]))])[0]
    near = {f"http://a/{shard}{n}" for shard in (1, 2) for n in range(4)} | {"http://a/24"}
    assert {url for (url, _), said in found.items() if "near_duplicates" in said} == near
    assert {url for (url, _), said in found.items() if "side_above" in said} == {f"http://a/2{n}" for n in range(6)}
    fallen = {row["key"]: row["duplicate_of"] for row in signal(dataset, "duplicates")}
    assert {key[4:5] + key[-1]: best[4:5] + best[-1] for key, best in fallen.items()} == {
        **{f"{shard}{n}": f"0{n}" for shard in (1, 2) for n in range(4)},
        "24": "14",
    }
    same: dict[tuple[int, str], list[str]] = defaultdict(list)
    with dataset.connect() as connection:
        rows = connection.execute(
            "SELECT url, text, key FROM pairs JOIN images USING (url) WHERE key < '00003' ORDER BY uid"
        ).fetchall()
    for url, text, key in rows:
        same[hashes[key], text].append(url)
    later = {url for urls in same.values() for url in urls[1:]}
    assert {url for (url, _), said in found.items() if "max_look_alikes" in said} == later


def test_another_threshold_measures_nothing_again(tmp_path: Path) -> None:
    dataset, counting = pictured(tmp_path), Inline()
    assert "pairs" in run_filter(dataset, LOOKS, counting)
    assert len(counting.done) == 4
    for path in dataset.images.paths(".tar"):
        path.write_bytes(bytes(path.stat().st_size))  # whoever reads an image now sees no tar
    assert run_filter(dataset, LOOKS, counting) == UP_TO_DATE
    before = verdicts(dataset)
    run_filter(dataset, LOOKS | {"near_duplicates": 0, "side_above": 90}, counting)
    assert verdicts(dataset) != before
    run_filter(dataset, {**LOOKS, "near_duplicates": 7}, counting)
    run_filter(dataset, LOOKS, counting)
    assert verdicts(dataset) == before
    assert len(counting.done) == 4


class Dying(Inline):
    """Stops after some shards, as a kill does."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def map(self, function: Any, tasks: Any, label: str) -> Any:
        for number, made in enumerate(super().map(function, tasks, label)):
            if number == self.after:
                raise KeyboardInterrupt
            yield made


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_killed_filter_carries_on_to_the_same_bytes(tmp_path: Path, after: int) -> None:
    whole, cut = pictured(tmp_path / "whole"), pictured(tmp_path / "cut")
    run_filter(whole, LOOKS)
    with pytest.raises(KeyboardInterrupt):
        run_filter(cut, LOOKS, Dying(after))
    assert not cut.filtered.exists
    counting = Inline()
    run_filter(cut, LOOKS, counting)
    assert len(counting.done) == 4 - after
    for table in ("signals/phash", "signals/duplicates", "verdicts/filter"):
        for path in (tmp_path / "whole" / table).glob("*.parquet"):
            assert path.read_bytes() == (tmp_path / "cut" / table / path.name).read_bytes()
    assert whole.filtered.manifest.digest == cut.filtered.manifest.digest


def test_worker_processes_give_the_same_bytes(tmp_path: Path) -> None:
    here, spawned, workers = pictured(tmp_path / "here"), pictured(tmp_path / "spawned"), engine("local", 2)
    run_filter(here, LOOKS | {"max_nsfw": 0.5})
    try:
        run_filter(spawned, LOOKS | {"max_nsfw": 0.5}, workers)
    finally:
        workers.close()
    for group in ("phash", "nsfw", "duplicates"):
        tables = [dataset.signals(group, "filter").manifest.digest for dataset in (here, spawned)]
        assert tables[0] == tables[1]
    assert verdicts(here) == verdicts(spawned) != {}


def test_a_tar_cut_short_is_named(tmp_path: Path) -> None:
    dataset = pictured(tmp_path)
    path = dataset.images.paths(".tar")[0]
    path.write_bytes(path.read_bytes()[:700].ljust(path.stat().st_size, b"\1"))
    with pytest.raises(PairmillError, match=r"00000\.tar"):
        run_filter(dataset, LOOKS)


def test_another_threshold_or_split_is_made_again_and_nothing_else(tmp_path: Path) -> None:
    dataset = made_dataset(tmp_path, [(URL, TEXT)], [[Image(URL, original=(10, 10))]])

    def again(side: float, **more: Any) -> str:
        return run_filter(dataset, {"side_above": side}, **more)

    assert again(200) != UP_TO_DATE
    assert again(200) == UP_TO_DATE
    assert again(9) != UP_TO_DATE
    assert verdicts(dataset) == {}
    assert again(9, split={"train": 0.5, "validation": 0.25, "test": 0.25}) != UP_TO_DATE
    assert again(9) != UP_TO_DATE  # the split is back at its default
    assert again(9, download={"threads": 3}) == UP_TO_DATE
    assert again(9, evaluation=["elsewhere"]) == UP_TO_DATE  # no rule asks for it


def test_a_radius_beyond_reason_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PairmillError, match="near_duplicates = 30"):
        run_filter(pictured(tmp_path), {"near_duplicates": 30})
    assert not (tmp_path / "signals").exists()


def test_copies_of_one_file_are_no_near_duplicates_of_each_other(tmp_path: Path) -> None:
    large, small = picture(1, 96), picture(1, 64)
    images = [Image("http://a/1", large), Image("http://a/2", large), Image("http://a/3", small)]
    dataset = made_dataset(tmp_path, [(image.url, f"text {image.url[-1]}") for image in images], [images])
    run_filter(dataset, {"near_duplicates": 4})
    assert {url for (url, _), said in verdicts(dataset).items() if "near_duplicates" in said} == {"http://a/3"}
