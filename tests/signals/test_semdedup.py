"""Semantic duplicates against a slow reading of SemDeDup's code."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_dataset import Image, jpeg, made_dataset, run_filter, signal, verdicts
from tiny_clip import write_tiny_clip

from pipeline.job import UP_TO_DATE
from pipeline.signals import semdedup
from pipeline.signals.semdedup import clustered, farthest_first, semantic_cosines


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def slowly(vectors: np.ndarray, centres: np.ndarray, cluster: np.ndarray) -> list[float | None]:
    """Cluster by cluster, farthest from its centre first, each against every earlier one."""
    found: list[float | None] = [None] * len(vectors)
    for number, centre in enumerate(centres):
        members = [place for place in range(len(vectors)) if cluster[place] == number]
        # Two members are equally far but for their last bits: the order is checked, and not made again.
        members = [members[place] for place in farthest_first(vectors[members], centre)]
        distance = [1 - float(vectors[m] @ centre) / max(float(np.linalg.norm(centre)), 1e-12) for m in members]
        assert all(distance[place] >= distance[place + 1] - 1e-6 for place in range(len(members) - 1))
        for place, member in enumerate(members[1:], 1):
            found[member] = max(float(vectors[member] @ vectors[other]) for other in members[:place])
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 60), st.integers(1, 8), st.integers(2, 9))
def test_equals_the_slow_reading(seed: int, n: int, clusters: int, width: int) -> None:
    draw = np.random.default_rng(seed)
    vectors = unit(draw.normal(size=(n, width)))
    cosine, nearest = semantic_cosines(vectors, clusters, 5, seed)
    expected = slowly(vectors, *clustered(vectors, min(clusters, n), 5, seed))
    assert [place for place, value in enumerate(expected) if value is None] == np.flatnonzero(nearest < 0).tolist()
    for place, value in enumerate(expected):
        if value is not None:
            assert cosine[place] == pytest.approx(value, abs=1e-5)
            assert vectors[place] @ vectors[nearest[place]] == pytest.approx(value, abs=1e-5)


def test_a_cluster_larger_than_a_block_is_compared_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = unit(np.random.default_rng(1).normal(size=(200, 8)))
    whole = semantic_cosines(vectors, 2, 5, 0)
    monkeypatch.setattr(semdedup, "_ROWS", 7)
    for one, other in zip(whole, semantic_cosines(vectors, 2, 5, 0), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_of_duplicates_one_stays_and_the_order_of_rows_is_nothing_to_it() -> None:
    draw = np.random.default_rng(2)
    apart = unit(draw.normal(size=(30, 64)))
    vectors = unit(np.repeat(apart, 4, axis=0) + draw.normal(size=(120, 64)) * 0.005)
    cosine, _ = semantic_cosines(vectors, 3, 20, 0)
    stays = cosine <= 0.95
    assert np.add.reduceat(stays, np.arange(0, 120, 4)).tolist() == [1] * 30


def test_nothing_and_one() -> None:
    assert semantic_cosines(np.empty((0, 4), np.float32), 5, 3, 0)[1].tolist() == []
    assert semantic_cosines(unit(np.ones((1, 4))), 5, 3, 0)[1].tolist() == [-1]


def test_the_stage_drops_all_but_one_of_equal_pictures_under_any_threshold_of_one_measuring(tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    contents = [jpeg(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(5)]
    images = [Image(f"http://a/{place}", contents[place % 5]) for place in range(12)]
    pairs = [(image.url, "a text") for image in images]
    dataset = made_dataset(tmp_path / "data", pairs, [images[:7], [*images[7:], Image("http://a/odd", b"no picture")]])
    clip = write_tiny_clip(tmp_path)
    settings = {"clip": clip, "semdedup": {"clusters": 1}}
    run_filter(dataset, {"semantic_duplicates": 0.99999}, **settings)
    fell = {int(url.rpartition("/")[2]) for url, _ in verdicts(dataset)}
    stay = set(range(12)) - fell
    assert sorted(place % 5 for place in stay) == list(range(5))
    made = (tmp_path / "data" / "signals" / "semdedup" / "all.parquet").stat().st_mtime_ns
    rows = {row["key"]: row for row in signal(dataset, "semdedup")}
    for row in rows.values():
        if row["semantic_duplicate_of"]:
            assert row["semantic_cosine"] > -1
    run_filter(dataset, {"semantic_duplicates": -1}, **settings)
    assert len(verdicts(dataset)) == 11
    assert (tmp_path / "data" / "signals" / "semdedup" / "all.parquet").stat().st_mtime_ns == made
    assert run_filter(dataset, {"semantic_duplicates": -1}, **settings) == UP_TO_DATE
    assert run_filter(dataset, {"semantic_duplicates": -1}, **settings | {"semdedup": {"clusters": 2}}) != UP_TO_DATE
