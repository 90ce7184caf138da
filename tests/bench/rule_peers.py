"""Text rules next to what people filter with today: pandas, and Data-Juicer's own operators. Both must agree with us.

`python -m tests.bench.rule_peers --pandas 1_000_000 --juicer 100_000`
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.store.dataset import Dataset
from tests.bench.environment import python_with
from tests.bench.measured import Measured, alternately, measure
from tests.bench.table import Row, write
from tests.bench.text_rules import FOLDER, align, dataset_of, failing, screen, stage_seconds, thousands

JUICER = ("py-data-juicer==1.6.1", "aiohttp")
JUICER_FOLDER = Path(".venv-bench")
JUICER_SCRIPT = Path(__file__).with_name("juicer_rules.py")
# It would install what it misses at its first use, look for updates, and draw bars.
JUICER_QUIET = {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1"}
# Data-Juicer's defaults but for limits that bite on captions.
JUICER_RULES = {
    "min_words": 3,
    "max_words": 20,
    "min_characters": 10,
    "max_characters": 120,
    "max_character_repetition": 0.2,
    "max_word_repetition": 0.2,
}


def against_pandas(pairs: int, rounds: int, folder: Path = FOLDER) -> list[Row]:
    """ALIGN's text rules, with pandas in one process."""
    rules = align(pairs)
    dataset, recipe = dataset_of(pairs, rules, folder)

    def pandas() -> Measured:
        kept = dataset.root / "pandas.npy"
        return measure([sys.executable, "-m", "tests.bench.pandas_rules", kept, json.dumps(rules), *_files(dataset)])

    ours, peer = alternately(rounds, partial(screen, dataset, recipe), pandas)
    counts = json.loads(peer.output)
    _agree(counts, failing(dataset) | {"kept": _kept(dataset)})
    return [
        Row.of(
            f"ALIGN's text rules on {thousands(pairs)} pairs: {ours.seconds:.1f} s",
            f"the same with pandas: {peer.seconds:.1f} s",
            peer.seconds / ours.seconds,
            "x faster",
            ">= 5",
        )
    ]


def against_juicer(pairs: int, rounds: int) -> list[Row]:
    """Word-count, character and repetition rules: as whole processes, and without either's start-up."""
    dataset, recipe = dataset_of(pairs, JUICER_RULES)
    python = _juicer_python()
    seconds: list[tuple[float, float]] = []

    def juicer() -> Measured:
        kept = dataset.root / "juicer.parquet"
        command = [python, JUICER_SCRIPT, kept, json.dumps(JUICER_RULES), *_files(dataset)]
        run = measure([*map(str, command)], JUICER_QUIET)
        seconds.append((stage_seconds(dataset), json.loads(run.output)["seconds"]))
        return run

    ours, peer = alternately(rounds, partial(screen, dataset, recipe), juicer)
    _agree({"kept": json.loads(peer.output)["kept"]}, {"kept": _kept(dataset)})
    our_seconds, peer_seconds = min(one for one, _ in seconds), min(other for _, other in seconds)
    work = f"word-count, character and repetition rules on {thousands(pairs)} pairs"
    return [
        Row.of(
            f"{work}: {our_seconds:.2f} s",
            f"Data-Juicer's operators: {peer_seconds:.1f} s",
            peer_seconds / our_seconds,
            "x faster",
            ">= 20",
        ),
        Row.of(
            f"{work}, start-up of Python and all imports included: {ours.seconds:.1f} s",
            f"Data-Juicer's operators, likewise: {peer.seconds:.1f} s",
            peer.seconds / ours.seconds,
            "x faster",
            ">= 20",
        ),
    ]


def _files(dataset: Dataset) -> list[str]:
    return [str(path) for path in dataset.pairs.paths(".parquet") if not path.name.startswith("repeated")]


def _kept(dataset: Dataset) -> int:
    return dataset.screened.manifest.count("kept")


def _agree(theirs: dict[str, int], ours: dict[str, int]) -> None:
    if theirs != ours:
        raise AssertionError(f"the two sides did different work: the peer says {theirs}, we say {ours}")


def _juicer_python() -> Path:
    """The Python of an environment of its own that has Data-Juicer, made where it is missing."""

    def first(python: Path) -> None:
        few = JUICER_FOLDER / "few.parquet"
        pq.write_table(pq.read_table(_files(dataset_of(1000, JUICER_RULES)[0])).select(["uid", "text"]), few)
        measure([python, JUICER_SCRIPT, JUICER_FOLDER / "kept.parquet", json.dumps(JUICER_RULES), few], JUICER_QUIET)

    return python_with(JUICER_FOLDER, JUICER, first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pandas", type=int, default=1_000_000)
    parser.add_argument("--juicer", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows = against_pandas(options.pandas, options.rounds) + against_juicer(options.juicer, options.rounds)
    write("rule_peers", rows)


if __name__ == "__main__":
    main()
