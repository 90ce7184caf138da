"""The Open Clip Art Library, all 17 771 pairs: screening before the download against screening after it, and what
another threshold costs.

`python -m tests.bench.clip_art`
"""

import argparse
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pyarrow.parquet as pq

from pipeline.demo import openclipart
from pipeline.demo.server import Faults, serving
from pipeline.recipe import load
from pipeline.store.dataset import Dataset
from pipeline.store.table import Manifest
from tests.bench.measured import Measured, pairmill
from tests.bench.table import Row, write

FOLDER = Path("data/bench/clip-art")
PICTURES = Path("data/openclipart")
DEMO = Path("recipes/demo.toml")


@dataclass(frozen=True)
class Web:
    """The pictures' server, in a process of its own: what it was asked for so far."""

    base_url: str
    requests: "Synchronized[int]"
    bytes: "Synchronized[int]"


@dataclass(frozen=True)
class _Counting(Faults):
    """No fault at all; every request is counted, with the size of the file."""

    folder: Path = Path()
    requests: "Synchronized[int] | None" = None
    bytes: "Synchronized[int] | None" = None

    def draw(self, path: str) -> float:
        assert self.requests is not None
        assert self.bytes is not None
        with self.requests.get_lock():
            self.requests.value += 1
            self.bytes.value += os.path.getsize(self.folder / unquote(path).lstrip("/"))
        return 1.0


def _serve(folder: Path, requests: "Synchronized[int]", size: "Synchronized[int]", talk: Connection) -> None:
    with serving(folder, 0, _Counting(folder=folder, requests=requests, bytes=size)) as base_url:
        talk.send(base_url)
        talk.recv()


@contextmanager
def web_of(folder: Path) -> Iterator[Web]:
    """Serve the folder without faults while the block runs."""
    spawn = multiprocessing.get_context("spawn")
    requests, size = spawn.Value("q", 0), spawn.Value("q", 0)
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(folder, requests, size, there), daemon=True)
    process.start()
    try:
        yield Web(here.recv(), requests, size)
    finally:
        here.send("stop")
        process.join()


def run_stages(name: str, stages: Sequence[tuple[str, Path]]) -> tuple[Dataset, list[Measured]]:
    """These (stage, recipe) one after the other, each in a process of its own, from an empty folder."""
    dataset = Dataset(FOLDER / name)
    shutil.rmtree(dataset.root, ignore_errors=True)
    return dataset, [_said(pairmill(stage, dataset.root, recipe)) for stage, recipe in stages]


def _said(run: Measured) -> Measured:
    print(f"  {run}", file=sys.stderr, flush=True)
    return run


def _recipe(name: str, lists: Path, sections: Mapping[str, Mapping[str, object]] | None = None) -> Path:
    """The demo's recipe over lists of our own; `sections` changes what else it says."""
    inputs = [str(lists / file) for file in ("titles.csv", "descriptions.csv", "keywords.parquet")]
    path = FOLDER / f"{name}.toml"
    lines = [f'extends = "{os.path.relpath(DEMO, FOLDER)}"', "[ingest]", f"inputs = {inputs!r}"]
    for section, values in (sections or {}).items():
        lines += [f"[{section}]", *(f"{key} = {str(value).lower()}" for key, value in values.items())]
    path.write_text("\n".join(lines) + "\n")
    return path


def _kept(dataset: Dataset) -> set[str]:
    with dataset.connect() as connection:
        return {uid for (uid,) in connection.execute("SELECT uid FROM kept").fetchall()}


def screen_first(web: Web, lists: Path, vocabulary: int | None) -> tuple[Dataset, list[Row]]:
    """The demo's rules, or with another vocabulary, asked before the download and after it. Returns the first's data.

    Raises AssertionError unless the same pairs are left.
    """
    rules = load(DEMO).screen.rules
    # Which near-duplicate stays hangs on what else was downloaded; without that rule both ways must keep the same.
    alike = {"filter.rules": {"near_duplicates": False}}
    asks = _recipe("asks", lists, {"screen.rules": {"vocabulary": vocabulary} if vocabulary else {}, **alike})
    asks_nothing = _recipe("asks-nothing", lists, {"screen.rules": dict.fromkeys(rules, False), **alike})

    def counted(name: str, stages: Sequence[tuple[str, Path]]) -> tuple[Dataset, float, int]:
        before = web.bytes.value
        dataset, runs = run_stages(name, stages)
        return dataset, sum(run.seconds for run in runs), web.bytes.value - before

    after, after_seconds, after_bytes = counted(
        "screened-after",
        [
            *((stage, asks_nothing) for stage in ("ingest", "screen", "download")),
            *((stage, asks) for stage in ("screen", "filter")),
        ],
    )
    first, first_seconds, first_bytes = counted(
        "screened-first", [(stage, asks) for stage in ("ingest", "screen", "download", "filter")]
    )
    if _kept(first) != _kept(after):
        raise AssertionError(f"{len(_kept(first))} pairs are kept, but {len(_kept(after))} by the other way")
    shutil.rmtree(after.root)
    pairs = f"{first.quarantine.manifest.count('rows_in'):,}".replace(",", " ")
    work = f"Open Clip Art, {pairs} pairs, screened before the download"
    work += f" (vocabulary {vocabulary})" if vocabulary else ""
    return first, [
        Row.of(
            f"{work}: {first_seconds:.1f} s",
            f"download everything, then filter: {after_seconds:.1f} s",
            after_seconds / first_seconds,
            "x less time",
            ">= 2",
        ),
        Row.of(
            f"{work}: {first_bytes / 1e6:.0f} MB",
            f"download everything, then filter: {after_bytes / 1e6:.0f} MB",
            first_bytes / after_bytes,
            "x the bytes",
            "<= 0.45",
        ),
    ]


def another_threshold(web: Web, lists: Path, dataset: Dataset) -> list[Row]:
    """COYO's image rules and near-duplicates by `filter`, then each with another threshold."""
    shutil.rmtree(dataset.filtered.folder)
    for path in dataset.root.glob("signals/*/manifest.json"):
        if Manifest.read(path).stage == "filter":
            shutil.rmtree(path.parent)
    others = dict.fromkeys(load(DEMO).filter.rules, False)
    first_rules = {"min_side": 200, "max_aspect": 3, "min_bytes": 5000, "max_nsfw": 0.5, "max_look_alikes": 1}
    other_rules = {"min_side": 250, "max_aspect": 2.5, "min_bytes": 6000, "max_nsfw": 0.4, "max_look_alikes": 2}
    recipes = [
        _recipe(name, lists, {"filter.rules": {**others, **rules, "near_duplicates": bits}})
        for name, rules, bits in (("coyo", first_rules, 4), ("coyo-otherwise", other_rules, 3))
    ]
    images = {path: path.stat().st_mtime_ns for path in dataset.images.folder.iterdir()}
    requests = web.requests.value
    first, second = (_said(pairmill("filter", dataset.root, recipe)) for recipe in recipes)
    if images != {path: path.stat().st_mtime_ns for path in dataset.images.folder.iterdir()}:
        raise AssertionError("an image shard was written anew")
    work = f"six other thresholds in `filter`: {second.seconds:.2f} s"
    return [
        Row.of(work, f"the first run: {first.seconds:.1f} s", second.seconds / first.seconds, "x its time", "<= 0.05"),
        Row.of(work, "requests that the server saw", web.requests.value - requests, "requests", "<= 0"),
    ]


def measured(quick: bool, vocabulary: int | None = None) -> list[Row]:
    """Both comparisons, over one web."""
    library = openclipart.get(PICTURES)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with web_of(library.png) as web:
        openclipart.write_lists(library, FOLDER, web.base_url)
        if quick:
            _shorten(FOLDER / "titles.csv", FOLDER / "descriptions.csv", FOLDER / "keywords.parquet")
        dataset, rows = screen_first(web, FOLDER, vocabulary)
        return rows + another_threshold(web, FOLDER, dataset)


def _shorten(*lists: Path, rows: int = 500) -> None:
    for path in lists:
        if path.suffix == ".parquet":
            pq.write_table(pq.read_table(path).slice(0, rows), path)
        else:
            pd.read_csv(path, nrows=rows).to_csv(path, index=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="500 rows of each list")
    parser.add_argument("--vocabulary", type=int, help="so many n-grams in place of the demo's, which are all")
    options = parser.parse_args()
    write("clip_art", measured(options.quick, options.vocabulary))


if __name__ == "__main__":
    main()
