"""What a million made-up pairs cost `ingest` and `screen`: seconds, memory, bytes kept and bytes on the way.

`python -m tests.bench.scale --pairs 1_000_000`: the figures of docs/scale.md.
"""

import argparse
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.store.dataset import Dataset
from tests.bench.measured import Measured, pairmill
from tests.bench.text_rules import FOLDER, align, dataset_of, rules_text

LOOK = 0.2


def size_of(folder: Path) -> int:
    """Bytes of all files under a folder, some of which may vanish meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def on_the_way(run: Callable[[], Measured], staging: Path) -> tuple[Measured, int]:
    """The run, and the greatest size that a folder had meanwhile."""
    greatest, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(LOOK):
            greatest[0] = max(greatest[0], size_of(staging))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        return run(), greatest[0]
    finally:
        ended.set()
        watcher.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    pairs = parser.parse_args().pairs
    made, _ = dataset_of(pairs, align(pairs))
    files = [path for path in made.pairs.paths(".parquet") if not path.name.startswith("repeated")]
    dataset = Dataset(FOLDER / f"scale-{pairs}")
    shutil.rmtree(dataset.root, ignore_errors=True)
    lists = []
    for path in files:
        lists.append(dataset.root / "lists" / path.name)
        lists[-1].parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pq.read_table(path, columns=["url", "text"]), lists[-1])
    recipe = dataset.root / "recipe.toml"
    shards = max(2, pairs // 1_000_000)
    recipe.write_text(
        f'name = "scale"\n[ingest]\ninputs = {[str(path) for path in lists]!r}\nshards = {shards}\n'
        + rules_text(align(pairs))
    )
    print("| stage | seconds | of processor | peak MB | MB kept | MB on the way |\n|---|---|---|---|---|---|")
    for stage, kept in (("ingest", ("pairs",)), ("screen", ("signals", "verdicts"))):
        run, staged = on_the_way(partial(pairmill, stage, dataset.root, recipe), dataset.root / ".staging")
        cells = run.seconds, run.processor, run.peak / 1e6, sum(size_of(dataset.root / name) for name in kept) / 1e6
        print(f"| {stage} | " + " | ".join(f"{cell:.1f}" for cell in (*cells, staged / 1e6)) + " |", flush=True)


if __name__ == "__main__":
    main()
