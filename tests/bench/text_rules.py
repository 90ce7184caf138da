"""ALIGN's text rules on made-up pairs, next to one DuckDB pass that only reads and tokenises the same texts.

`python -m tests.bench.text_rules --pairs 10_000_000`
"""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path

from pipeline.store.dataset import Dataset
from tests.bench.generated import make_pairs
from tests.bench.measured import Measured, alternately, measure, pairmill
from tests.bench.table import Row, write

FOLDER = Path("data/bench")
GB = 1e9

# All that the peer does: no counting, no rule, no output.
_TOKENISE = r"""
import duckdb, sys
with duckdb.connect() as connection:
    connection.execute("SET threads = 2")
    query = r"SELECT sum(len(regexp_extract_all(lower(text), '[\pL\pM\pN_]+'))) FROM read_parquet(?)"
    print(connection.execute(query, [sys.argv[1:]]).fetchone()[0])
"""


def align(pairs: int) -> dict[str, float]:
    """ALIGN's text rules. Its 100 M n-grams are of billions of pairs; here a tenth of them, so that the rule bites."""
    return {"max_images_per_text": 10, "min_words": 3, "max_words": 20, "vocabulary": pairs // 10}


def dataset_of(pairs: int, rules: Mapping[str, float], folder: Path = FOLDER) -> tuple[Dataset, Path]:
    """The dataset of so many made-up pairs, and a recipe that screens it by `rules`."""
    dataset = Dataset(folder / f"generated-{pairs}")
    make_pairs(dataset, pairs)
    recipe = dataset.root / "recipe.toml"
    recipe.write_text(f'name = "generated-{pairs}"\n{rules_text(rules)}')
    return dataset, recipe


def rules_text(rules: Mapping[str, float]) -> str:
    """A recipe's section of these rules."""
    return "\n".join(["[screen.rules]", *(f"{name} = {threshold}" for name, threshold in rules.items())]) + "\n"


def screen(dataset: Dataset, recipe: Path) -> Measured:
    """The stage `screen` from its beginning."""
    for folder in ("verdicts", "signals"):
        shutil.rmtree(dataset.root / folder, ignore_errors=True)
    return pairmill("screen", dataset.root, recipe)


def failing(dataset: Dataset) -> dict[str, int]:
    """How many pairs each rule of `screen` fails."""
    with dataset.connect() as connection:
        return dict(connection.execute("SELECT rule, count(*) FROM verdicts GROUP BY rule ORDER BY rule").fetchall())


def tokenise(dataset: Dataset) -> Measured:
    """The peer: a fresh process with two threads."""
    files = [path for path in dataset.pairs.paths(".parquet") if not path.name.startswith("repeated")]
    return measure([sys.executable, "-c", _TOKENISE, *files])


def stage_seconds(dataset: Dataset) -> float:
    """What the stage's last run took without the start of its process."""
    last = (dataset.root / "logs" / "screen.jsonl").read_text().splitlines()[-1]
    return float(json.loads(last)["seconds"])


def thousands(pairs: int) -> str:
    return f"{pairs / 1e6:g} M" if pairs >= 1_000_000 else f"{pairs / 1000:g} k"


def against_tokenising(pairs: int, rounds: int) -> list[Row]:
    """ALIGN's rules and DuckDB's pass, in turns."""
    dataset, recipe = dataset_of(pairs, align(pairs))
    ours, peer = alternately(rounds, partial(screen, dataset, recipe), partial(tokenise, dataset))
    work = f"ALIGN's text rules on {thousands(pairs)} pairs"
    return [
        Row.of(
            f"{work}: {ours.seconds:.1f} s",
            f"a DuckDB pass that only tokenises: {peer.seconds:.1f} s",
            ours.seconds / peer.seconds,
            "x its time",
            "<= 2.5",
        ),
        Row.of(work, "memory of all processes at once", ours.peak / GB, "GB", "<= 4"),
    ]


def growth(sizes: list[int]) -> list[Row]:
    """The same rules on ever more pairs: how the time of a pair grows, start-up included."""
    runs = []
    for pairs in sizes:
        dataset, recipe = dataset_of(pairs, align(pairs))
        runs += alternately(1, partial(screen, dataset, recipe))
    rows = [
        Row.of(
            f"ALIGN's text rules on {thousands(more)} pairs: {after.seconds:.1f} s",
            f"{thousands(fewer)} pairs, {before.seconds:.1f} s, in proportion",
            (after.seconds / more) / (before.seconds / fewer),
            "x linear",
            "<= 1.25",
        )
        for (fewer, before), (more, after) in pairwise(zip(sizes, runs, strict=True))
    ]
    peak = max(run.peak for run in runs)
    work = f"ALIGN's text rules on {thousands(sizes[-1])} pairs"
    return [*rows, Row.of(work, "memory of all processes at once", peak / GB, "GB", "<= 6")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--growth", type=int, nargs="*", default=[1_000_000, 10_000_000, 50_000_000], help="pairs, rising"
    )
    options = parser.parse_args()
    rows = against_tokenising(options.pairs, options.rounds)
    if len(options.growth) > 1:
        rows += growth(options.growth)
    write("text_rules", rows)


if __name__ == "__main__":
    main()
