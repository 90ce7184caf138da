"""Extraction beside the bare forward of the same model on a batch that is there, and several kinds in one pass beside
one pass a kind.

`python -m tests.bench.extraction [--quick]`. A side is as many processes as the stage would start (one a core of a
CPU, one a GPU), which run what the stage's workers run, `extract_shard`, over a shard each: tar to Parquet, from a
common start after a warm-up. So no import and no loading of a model counts, on either side.
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.extractors import BUILDERS
from pipeline.extractors.memory import fitting
from pipeline.extractors.one_pass import extract_shard
from pipeline.extractors.plans import Images, Plan, Task
from pipeline.extractors.precision import autocast
from pipeline.gpus import own_device, visible_gpus
from pipeline.recipe import Backbone, Extractor, Grid, Patch, Pixel, Region
from pipeline.signals.pictures import decoded
from pipeline.store.dataset import Dataset
from pipeline.weights import find
from tests.bench.feature_streams import FOLDER
from tests.bench.made_collection import make_collection, photograph
from tests.bench.table import Row, write

LIMIT = {"cpu": 0.95, "cuda": 0.90}
DETECTORS = ("yolo11n.pt", "yolo11n-seg.pt")
SINGLE: Mapping[str, Extractor] = {
    "yolo11n at 640": Region(kind="region", weights=DETECTORS),
    "efficientnet_lite0 at 224": Grid(kind="grid"),
    "ViT-Ti/16 at 224": Patch(kind="patch", library="timm", model="vit_tiny_patch16_224"),
}
LIGHT = "light grid, patch and pixel"
# Three kinds in one pass: the demo's, of which two are much work; and three that are little beside the decoding.
TOGETHER: Mapping[str, Mapping[str, Extractor]] = {
    "the demo's region, grid and pixel": {
        "region": Region(kind="region", weights=DETECTORS, image_size=384, max_boxes=36, cnn=Backbone()),
        "grid": Grid(kind="grid"),
        "pixel": Pixel(kind="pixel", image_size=192),
    },
    LIGHT: {
        "grid": Grid(kind="grid", image_size=96, cells=3),
        "patch": Patch(kind="patch", library="timm", model="vit_tiny_patch16_224", image_size=96),
        "pixel": Pixel(kind="pixel", image_size=192),
    },
}
WARM_UP = 16  # images


GPUS = len(visible_gpus())
CORES = len(os.sched_getaffinity(0))
PROCESSES = GPUS or CORES


@dataclass(frozen=True)
class Work:
    """What a process of a side does: extract the features of a shard, or only run the model as often."""

    dataset: Path
    shard: int
    sections: Mapping[str, Extractor]
    threads: int
    bare: bool = False

    def keys(self, shard: int | None = None) -> list[str]:
        name = f"{self.shard if shard is None else shard:05d}.parquet"
        return pq.read_table(Dataset(self.dataset).images.folder / name, columns=["key"])["key"].to_pylist()


def photographs(images: int, longest: int) -> Path:
    """A dataset of photographs: for each process a shard of so many, and in the last a few to warm up with."""
    root = FOLDER / f"photographs-{longest}-{images}"
    make_collection(root, PROCESSES * images + WARM_UP, partial(photograph, longest=longest), images)
    return root


def extract(work: Work, shard: int) -> None:
    """What a worker of the stage does with one shard. Raises AssertionError where an image is left out."""
    images, name, keys = Dataset(work.dataset).images, f"{shard:05d}", work.keys(shard)
    tars = {one.name: next(file for file in one.files if file.name.endswith(".tar")) for one in images.manifest.shards}
    folder = work.dataset / "extracted" / str(work.shard)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = folder / "wanted.parquet"
    pq.write_table(pa.table({"shard": [name] * len(keys), "key": keys}), wanted)
    made = extract_shard(
        name,
        plans={kind: Plan(section, find(section), folder / kind) for kind, section in work.sections.items()},
        tasks={name: {kind: Task("bench") for kind in work.sections}},
        images=Images(images.folder, tars, wanted),
        threads=work.threads,
    )
    if any(done.counts["rows"] != len(keys) for done, _ in made.values()):
        raise AssertionError(f"of {len(keys)} images came {[done.counts for done, _ in made.values()]}")


def forward(work: Work, images: int) -> Callable[[], None]:
    """The model of the one section on a batch that is on its device, as often as so many images take."""
    (section,) = work.sections.values()
    device = own_device()
    extractor: Any = BUILDERS[section.kind](section, find(section), device)
    size = fitting(extractor, section.batch_size, device).size
    picture = decoded(photograph(0, 384))
    assert picture is not None
    prepared = [extractor.prepare(picture)] * size
    if isinstance(section, Region):
        model, batch = extractor.detector, extractor._pixels([one.square for one in prepared])
    elif isinstance(section, Grid):
        model, batch = extractor.maps._maps, extractor.maps._normalised(prepared)
    else:
        model, batch = extractor._tower.forward, extractor._tower.batch(prepared)
    torch.set_num_threads(work.threads)

    @torch.inference_mode()
    def run() -> None:
        with autocast(section, device):
            for first in range(0, images, size):
                model(batch[: images - first])
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def _work(connection: Any, number: int) -> None:
    """A worker: makes ready for the work that it is sent, says so, begins when it is told, and tells the seconds."""
    if GPUS:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_gpus()[number]
    while (work := connection.recv()) is not None:
        if work.bare:
            forward(work, WARM_UP)()
            run = forward(work, len(work.keys()))
        else:
            extract(work, PROCESSES)
            run = partial(extract, work, work.shard)
        connection.send("ready")
        connection.recv()
        began = time.perf_counter()
        run()
        connection.send(time.perf_counter() - began)


class Crew:
    """Worker processes that begin at the same time. They live as long as this object: an import takes seconds."""

    def __init__(self, size: int = PROCESSES) -> None:
        context = multiprocessing.get_context("spawn")
        self._lines: list[Any] = []
        for number in range(size):
            ours, theirs = context.Pipe()
            context.Process(target=_work, args=(theirs, number), daemon=True).start()
            theirs.close()  # so that a worker's end is heard
            self._lines.append(ours)

    def dismiss(self) -> None:
        """Let the workers end."""
        for line in self._lines:
            line.send(None)

    def images_a_second(self, works: list[Work]) -> float:
        """Of the first workers together, one for each work. Raises EOFError where one fails; it has said why."""
        lines = self._lines[: len(works)]
        for line, work in zip(lines, works, strict=True):
            line.send(work)
        for line in lines:
            line.recv()
        for line in lines:
            line.send("go")
        seconds = max(line.recv() for line in lines)
        shutil.rmtree(works[0].dataset / "extracted", ignore_errors=True)
        return float(sum(len(work.keys()) for work in works) / seconds)

    def extracting(self, dataset: Path, sections: Mapping[str, Extractor]) -> float:
        """Images a second of the stage's workers, one a core or a GPU, each with its share of the cores to decode."""
        threads = max(1, CORES // PROCESSES)
        return self.images_a_second([Work(dataset, shard, sections, threads) for shard in range(PROCESSES)])

    def bare(self, dataset: Path, section: Extractor, processes: int) -> float:
        """Images a second of the bare model in so many processes, which share the cores."""
        threads = max(1, CORES // processes)
        return self.images_a_second(
            [Work(dataset, shard, {"bare": section}, threads, bare=True) for shard in range(processes)]
        )


def in_turns(rounds: int, sides: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """The median of each side's images a second."""
    taken: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name, run in sides.items():
            taken[name].append(run())
            print(f"  {name}: {taken[name][-1]:.1f} images/s", file=sys.stderr, flush=True)
    return {name: statistics.median(each) for name, each in taken.items()}


def against_forward(crew: Crew, images: int, rounds: int) -> list[Row]:
    """Each kind by itself, from tar to Parquet, and its bare forward: in processes and, on a CPU, threads."""
    dataset = photographs(images, 384)
    rows = []
    for name, section in SINGLE.items():
        # The bare model may run whichever way is the faster: a process a core, or one with a thread a core.
        ways = {
            f"{number} x {max(1, CORES // number)} threads": partial(crew.bare, dataset, section, number)
            for number in sorted({PROCESSES, GPUS or 1})
        }
        speeds = in_turns(rounds, {"extract": partial(crew.extracting, dataset, {section.kind: section}), **ways})
        best = max(ways, key=speeds.__getitem__)
        rows.append(
            Row.of(
                f"extraction, {section.kind} by {name}, 384 px pictures: {speeds['extract']:.1f}/s",
                f"bare forward, {best}: {speeds[best]:.1f}/s",
                speeds["extract"] / speeds[best],
                "x its speed",
                f">= {LIMIT['cuda' if GPUS else 'cpu']}",
            )
        )
    return rows


def together(crew: Crew, images: int, rounds: int) -> list[Row]:
    """Three kinds in one pass, and a pass for each. Where models are nearly all the work, it is not to be slower."""
    rows = []
    for longest in (384, 1600):
        dataset = photographs(images if longest == 384 else images // 2, longest)
        for name, sections in TOGETHER.items():
            passes = {kind: partial(crew.extracting, dataset, {kind: section}) for kind, section in sections.items()}
            speeds = in_turns(rounds, {"one pass": partial(crew.extracting, dataset, sections), **passes})
            seconds = sum(1 / speeds[kind] for kind in passes)
            rows.append(
                Row.of(
                    f"{name} in one pass, {longest} px pictures: {1000 / speeds['one pass']:.1f} ms an image",
                    f"three passes: {1000 * seconds:.1f} ms",
                    1 / speeds["one pass"] / seconds,
                    "x the time",
                    "<= 0.75" if name == LIGHT or longest > 384 else "<= 1",
                )
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few pictures, one round")
    parser.add_argument("--images", type=int, help="a process: 256")
    options = parser.parse_args()
    images, rounds = (options.images or 16, 1) if options.quick else (options.images or 256, 3)
    crew = Crew()
    rows = against_forward(crew, images, rounds) + together(crew, images, rounds)
    crew.dismiss()
    write("extraction", rows)


if __name__ == "__main__":
    main()
