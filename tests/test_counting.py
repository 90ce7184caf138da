"""Corpus-wide counts against collections.Counter, on any blocks, in any layout, after any interruption."""

import os
import signal
import time
from collections import Counter
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.engine import engine
from pipeline.errors import PairmillError
from pipeline.texts.counting import Count

KEYS = st.one_of(
    st.integers(0, 3),
    st.integers(0, 2**64 - 1),
    st.sampled_from([0, 2**64 - 1, 2**63, 1 << 32]),
    st.integers(0, 50).map(lambda i: i << 56),
)
BLOCKS = st.lists(st.lists(KEYS, max_size=60).map(lambda keys: np.array(keys, np.uint64)), max_size=5)
LAYOUTS = st.sampled_from([(1, 1), (2, 1), (2, 2), (64, 4), (16, 16), (1024, 4)])


def check(count: Count, blocks: dict[str, NDArray[np.uint64]]) -> None:
    """The count's answers are those of a Counter over all blocks."""
    truth = Counter(key for keys in blocks.values() for key in keys.tolist())
    for name, keys in blocks.items():
        assert count.frequencies(name).tolist() == [truth[key] for key in keys.tolist()]
    histogram = count.histogram()
    assert dict(zip(histogram.frequency.tolist(), histogram.distinct.tolist(), strict=True)) == Counter(truth.values())
    wanted = sorted(set(truth.values()))
    more_frequent = [sum(other > frequency for other in truth.values()) for frequency in wanted]
    assert histogram.ranks(np.array(wanted, np.uint32)).tolist() == [1 + more for more in more_frequent]


def counted(count: Count, blocks: dict[str, NDArray[np.uint64]]) -> Count:
    for name, keys in blocks.items():
        count.add(name, keys)
    for task in count.tasks:
        count.merge(task)
    return count


@settings(max_examples=150, deadline=None)
@given(BLOCKS, LAYOUTS)
def test_counts_are_a_counters(
    tmp_path_factory: pytest.TempPathFactory, lists: list[NDArray[np.uint64]], layout: tuple[int, int]
) -> None:
    blocks = {f"{number:03d}": keys for number, keys in enumerate(lists)}
    check(counted(Count(tmp_path_factory.mktemp("count"), *layout), blocks), blocks)


@pytest.mark.parametrize(
    "keys",
    [
        np.zeros(200_000, np.uint64),
        np.arange(200_000, dtype=np.uint64),
        np.arange(200_000, dtype=np.uint64) << np.uint64(44),
        np.random.default_rng(0).zipf(1.3, 200_000).astype(np.uint64),
        np.repeat(np.array([1, 2, 3], np.uint64), [4095, 4096, 9000]),
    ],
    ids=["one key", "in a row", "high bits only", "zipf", "both sides of the tally's end"],
)
def test_large_and_lopsided_blocks(tmp_path: Path, keys: NDArray[np.uint64]) -> None:
    blocks = {"a": keys, "b": keys[::-3], "c": keys[:0]}
    check(counted(Count(tmp_path, 256, 4), blocks), blocks)


def test_both_engines_workers_count_in_parallel(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    blocks = {f"shard-{number}": rng.zipf(1.2, 30_000).astype(np.uint64) for number in range(4)}
    np.savez(tmp_path / "blocks.npz", **blocks)
    count = Count(tmp_path / "count", 64, 8)
    local = engine("local", 2)
    list(local.map(partial(add_saved, folder=tmp_path, count=count), list(blocks), "add"))
    list(local.map(count.merge, count.tasks, "merge"))
    check(count, blocks)


def add_saved(name: str, *, folder: Path, count: Count) -> None:
    with np.load(folder / "blocks.npz") as saved:
        count.add(name, saved[name])


@pytest.mark.parametrize("occurrences", [0, 1, 10**6, 2 * 10**8, 10**9, 2 * 10**10])
def test_the_layout_follows_from_the_corpus_size(tmp_path: Path, occurrences: int) -> None:
    count = Count.of(tmp_path, occurrences)
    assert count == Count.of(tmp_path, occurrences)
    assert count.partitions.bit_count() == 1
    assert count.partitions % count.groups == 0
    assert len(count.tasks) == count.groups
    assert occurrences / 2 / count.groups <= 2**24  # 12 bytes each: what a merge holds


def test_finished_work_is_not_done_again_and_unfinished_is(tmp_path: Path) -> None:
    blocks = {"a": np.arange(1000, dtype=np.uint64), "b": np.arange(500, 1500, dtype=np.uint64)}
    count = counted(Count(tmp_path, 8, 2), blocks)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    counted(count, blocks)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before

    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for name in whole:
        for size in (0, 8, 100, len(whole[name]) - 1):
            os.truncate(tmp_path / name, size)
            counted(count, blocks)
            assert (tmp_path / name).read_bytes() == whole[name]


def test_a_missing_or_short_file_is_named(tmp_path: Path) -> None:
    blocks = {"a": np.arange(1000, dtype=np.uint64), "b": np.arange(1000, dtype=np.uint64)}
    count = counted(Count(tmp_path, 8, 2), blocks)
    os.truncate(tmp_path / "00001.group", 50)
    with pytest.raises(PairmillError, match=r"00001\.group is missing or cut short"):
        count.frequencies("a")
    (tmp_path / "00001.group").unlink()
    os.truncate(tmp_path / "b.block", 50)
    with pytest.raises(PairmillError, match=r"b\.block is missing or cut short"):
        count.merge("00001")


def test_killed_at_any_moment_and_carried_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    blocks = {f"{number}": rng.zipf(1.1, 100_000).astype(np.uint64) for number in range(6)}
    count = Count(tmp_path / "killed", 64, 4)
    whole = counted(Count(tmp_path / "whole", 64, 4), blocks)
    for seconds in rng.uniform(0, 0.3, 4):
        worker = get_context("fork").Process(target=counted, args=(count, blocks))
        worker.start()
        time.sleep(seconds)
        assert worker.pid
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
    counted(count, blocks)
    for path in whole.folder.iterdir():
        assert (count.folder / path.name).read_bytes() == path.read_bytes()
    check(count, blocks)
