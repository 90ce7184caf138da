"""Region features streamed into padded batches: our store beside the limit (flat memory maps and one copy), and beside
the layouts that others keep features in, each read as its own users read it.

`python -m tests.bench.feature_streams --images 12_000`. Warm is an epoch after the first, with the files in the page
cache; cold is the first one of a fresh process after the cache was dropped. Each side runs in processes of its own.
"""

import argparse
import ctypes
import json
import mmap
import os
import shutil
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.environment import python_with
from tests.bench.feature_tables import write_regions
from tests.bench.flat_features import Flat, make_flat
from tests.bench.measured import measure
from tests.bench.table import Row, write

FOLDER = Path("data/bench/features")
PEERS_FOLDER = Path(".venv-bench-features")
PEERS = ("webdataset==1.0.2", "lmdb==3.0.0", "litdata==0.2.76", "mosaicml-streaming==0.13.0")
PEERS_SCRIPT = Path(__file__).with_name("feature_peers.py")
SIDE = [sys.executable, "-m", "tests.bench.feature_sides"]
WORKERS = (0, 2)  # of a peer's DataLoader; the faster counts

# Layout of feature_peers.py -> how it is called, and how many times faster ours is to be.
LAYOUTS = {
    "webdataset": ("WebDataset, .npy members, buffer of 1000", 12),
    "lmdb": ("LMDB with npz (UNITER)", 6),
    "tsv": ("TSV, base64 of float32 (LXMERT), read by line offsets", 12),
    "litdata": ("LitData", 10),
    "mds": ("Mosaic streaming", 6),
}
LIMITS = {"sequential": 0.85, "shuffled": 0.75}

Pass = dict[str, Any]
_LIBC = ctypes.CDLL(None, use_errno=True)


def workload(images: int) -> tuple[Path, Path]:
    """The folder of flat arrays and the dataset with the store of the same samples, made where they are missing."""
    root = FOLDER / f"{images}"
    make_flat(root / "flat", images)
    write_regions(root, Flat(root / "flat"))
    return root / "flat", root


def drop_cache(folder: Path) -> None:
    """Take the folder's files, and nothing else, out of the page cache. Raises AssertionError where they stay."""
    os.sync()  # what is not on the disk yet cannot go
    for path in _files(folder):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if (share := cached(folder)) > 0.01:
        raise AssertionError(f"{share:.0%} of {folder} stays in the page cache: cold reads cannot be measured here")


def cached(folder: Path) -> float:
    """Which part of the folder's pages the page cache holds; asking brings none in."""
    there = pages = 0
    for path in _files(folder):
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            view = np.frombuffer(mapped, np.uint8)
            flags = np.zeros(-(-len(view) // mmap.PAGESIZE), np.uint8)
            address = view.ctypes.data
            del view  # else the map could not be closed
            if _LIBC.mincore(
                ctypes.c_void_p(address), ctypes.c_size_t(len(mapped)), ctypes.c_void_p(flags.ctypes.data)
            ):
                raise OSError(ctypes.get_errno(), f"mincore of {path}")
            there, pages = there + int((flags & 1).sum()), pages + len(flags)
    return there / max(pages, 1)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]


def fill_cache(folder: Path) -> None:
    """Read the folder's files once."""
    for path in _files(folder):
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def one_pass(command: list[str | Path], files: Path, warm: bool) -> Pass:
    """Run one side over `files`, out of the page cache or from the disk."""
    if warm:
        fill_cache(files)
    else:
        drop_cache(files)
    run: Pass = json.loads(measure([*command, *(["--warm"] if warm else [])]).output.splitlines()[-1])
    print(f"  {' '.join(map(str, command[1:]))} {'warm' if warm else 'cold'}: {run['seconds']:.2f} s", file=sys.stderr)
    return run


def in_turns(rounds: int, sides: dict[str, Callable[[], Pass]]) -> dict[str, float]:
    """Images a second of each side, the median of rounds in turns. Raises AssertionError where they saw other data."""
    taken: dict[str, list[Pass]] = defaultdict(list)
    for _ in range(rounds):
        for name, run in sides.items():
            taken[name].append(run())
    first = next(iter(taken.values()))[0]
    for name, runs in taken.items():
        for run in runs:
            if any(run[what] != first[what] for what in ("images", "regions", "sums")):
                raise AssertionError(f"the two sides did different work: {name} saw {run}, the first {first}")
    return {
        name: float(first["images"]) / statistics.median(run["seconds"] for run in runs) for name, runs in taken.items()
    }


def against_limit(images: int, rounds: int) -> list[Row]:
    """Ours and flat memory maps, in order and shuffled, warm and cold."""
    flat, dataset = workload(images)
    rows = []
    for order, limit in LIMITS.items():
        for warm in (True, False):
            flags = ["--shuffled"] if order == "shuffled" else []
            speeds = in_turns(
                rounds,
                {
                    "store": partial(one_pass, [*SIDE, "store", dataset, *flags], dataset / "features", warm),
                    "flat": partial(one_pass, [*SIDE, "flat", flat, *flags], flat, warm),
                },
            )
            rows.append(
                Row.of(
                    f"{_work(images)}, {order}, {_state(warm)}: {speeds['store']:,.0f}/s",
                    f"flat memory map, one copy: {speeds['flat']:,.0f}/s",
                    speeds["store"] / speeds["flat"],
                    "x its speed",
                    f">= {limit}",
                )
            )
    return rows


def against_peers(images: int, rounds: int, layouts: list[str], keep: bool) -> list[Row]:
    """Ours and the others' layouts, shuffled, warm and cold."""
    flat, dataset = workload(images)
    python = python_with(PEERS_FOLDER, PEERS)
    rows = []
    for layout in layouts:
        name, target = LAYOUTS[layout]
        folder = _written(layout, flat, dataset, python)
        for warm in (True, False):
            ours = partial(one_pass, [*SIDE, "store", dataset, "--shuffled"], dataset / "features", warm)
            read = [python, PEERS_SCRIPT, "read", layout, folder]
            theirs = {
                f"{layout} {workers}": partial(one_pass, [*read, "--workers", str(workers)], folder, warm)
                for workers in WORKERS
            }
            speeds = in_turns(rounds, {"store": ours, **theirs})
            best = max(theirs, key=speeds.__getitem__)
            rows.append(
                Row.of(
                    f"{_work(images)}, shuffled, {_state(warm)}: {speeds['store']:,.0f}/s",
                    f"{name}, {best.rpartition(' ')[2]} workers: {speeds[best]:,.0f}/s",
                    speeds["store"] / speeds[best],
                    "x its speed",
                    f">= {target}",
                )
            )
        if not keep:
            shutil.rmtree(folder)
    return rows


def _written(layout: str, flat: Path, dataset: Path, python: Path) -> Path:
    """The folder of the same samples in another layout, made where it is missing."""
    folder, partial_folder = dataset / layout, dataset / f"{layout}.partial"
    if not folder.exists():
        shutil.rmtree(partial_folder, ignore_errors=True)
        partial_folder.mkdir()
        measure([python, PEERS_SCRIPT, "write", layout, flat, partial_folder])
        partial_folder.rename(folder)
    return folder


def _work(images: int) -> str:
    return f"regions of {images:,} images in padded batches".replace(",", " ")


def _state(warm: bool) -> str:
    return "warm" if warm else "cold"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--rounds", type=int, default=5, help="beside the limit")
    parser.add_argument("--peer-rounds", type=int, default=1, help="beside each of the other layouts")
    parser.add_argument("--layouts", nargs="*", default=list(LAYOUTS), choices=LAYOUTS)
    parser.add_argument("--keep", action="store_true", help="the others' files, for another run")
    options = parser.parse_args()
    rows = against_limit(options.images, options.rounds)
    rows += against_peers(options.images, options.peer_rounds, options.layouts, options.keep)
    write("feature_streams", rows)


if __name__ == "__main__":
    main()
