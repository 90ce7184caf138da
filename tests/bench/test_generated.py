"""The made-up pairs, the measuring and the pandas peer: what the benchmarks stand on."""

import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.store.dataset import Dataset
from tests.bench import generated
from tests.bench.measured import Measured, alternately, measure
from tests.bench.rule_peers import against_pandas
from tests.bench.table import Row
from tests.bench.text_rules import align, dataset_of, failing

PAIRS = 20_000


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    dataset = Dataset(tmp_path_factory.mktemp("generated"))
    generated.make_pairs(dataset, PAIRS)
    return dataset


@pytest.fixture(scope="module")
def pairs(dataset: Dataset) -> pa.Table:
    files = [path for path in dataset.pairs.paths(".parquet") if not path.name.startswith("repeated")]
    return pa.concat_tables(map(pq.read_table, files))


def test_pairs_are_those_that_ingest_would_leave(dataset: Dataset, pairs: pa.Table) -> None:
    uids = pairs["uid"].to_pylist()
    assert len(set(uids)) == PAIRS == dataset.pairs.manifest.count("pairs")
    assert uids == sorted(uids)
    assert all(re.fullmatch("[0-9a-f]{32}", uid) for uid in uids)
    shards = dataset.pairs.manifest.shards
    for position, shard in enumerate(shards):
        there = pq.read_table(dataset.pairs.folder / shard.files[0].name)["uid"].to_pylist()
        assert {int(uid[:4], 16) * len(shards) // 65_536 for uid in there} == {position}
    assert len(set(pairs["url"].to_pylist())) == PAIRS


def test_any_part_can_be_made_by_itself(pairs: pa.Table) -> None:
    part = generated.texts(7_000, 3_000, PAIRS, seed=0)
    assert part.equals(pairs["text"].combine_chunks().slice(7_000, 3_000))
    assert not part.equals(generated.texts(7_000, 3_000, PAIRS, seed=1))


def test_texts_are_about_as_captions_are(pairs: pa.Table) -> None:
    texts = pairs["text"].to_pylist()
    words = [re.findall(r"\w+", text.lower()) for text in texts]
    assert 9 < np.mean([len(row) for row in words]) < 10
    assert 55 < np.mean([len(text) for text in texts]) < 65
    assert 0.04 < np.mean([not text.isascii() for text in texts]) < 0.09
    assert all(text == text.strip() and "  " not in text for text in texts)
    _, numbers = np.unique(texts, return_counts=True)
    assert 0.06 < numbers[numbers > 10].sum() / PAIRS < 0.14
    # Zipf: the most frequent word stands about twice as often as the next, and ten times as often as the tenth.
    frequencies = np.sort(np.unique(np.concatenate(words), return_counts=True)[1])[::-1]
    assert frequencies[0] / frequencies[1] == pytest.approx(np.log(2) / np.log(1.5), rel=0.15)
    assert frequencies[0] / frequencies[9] == pytest.approx(np.log(2) / np.log(1.1), rel=0.25)


def test_screen_and_pandas_agree_on_every_rule(tmp_path: Path) -> None:
    # It raises where the two differ in how many pairs a rule fails.
    (row,) = against_pandas(PAIRS, 1, tmp_path)
    assert row.ratio > 0
    dataset, _ = dataset_of(PAIRS, align(PAIRS), tmp_path)
    failed = failing(dataset)
    assert set(failed) == set(align(PAIRS))
    assert min(failed.values()) > 100  # each rule bites


def test_memory_of_children_counts_and_faults_are_told() -> None:
    child = "import time; held = b'x' * 200_000_000; time.sleep(0.5)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True); print('done')"
    run = measure([sys.executable, "-c", parent])
    assert run.output == "done\n"
    assert 200_000_000 < run.peak < 400_000_000
    assert 0.5 < run.seconds < 10
    with pytest.raises(RuntimeError, match="no such thing"):
        measure([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_turns_give_the_middle_run_and_the_greatest_peak() -> None:
    said = iter([3.0, 9.0, 1.0, 8.0, 2.0, 7.0])
    order: list[str] = []

    def run(name: str) -> Measured:
        order.append(name)
        seconds = next(said)
        return Measured(seconds, seconds, int(seconds), name)

    ours, peer = alternately(3, lambda: run("ours"), lambda: run("peer"))
    assert order == ["ours", "peer"] * 3
    assert (ours.seconds, ours.peak, peer.seconds, peer.peak) == (2.0, 3, 8.0, 9)
    assert Row.of("", "", ours.seconds / peer.seconds, "", "<= 0.25").met
