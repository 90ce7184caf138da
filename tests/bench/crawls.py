"""One download of a list of urls, by PairMill or by plain img2dataset, in a process of its own and with one worker.

`python -m tests.bench.crawls pairmill|img2dataset SETTINGS.json` prints how it went as JSON.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.engine import engine
from pipeline.job import Job
from pipeline.recipe import Recipe
from pipeline.store.dataset import Dataset
from pipeline.store.table import Shard, Table


@dataclass(frozen=True)
class Settings:
    """What both are given: the same threads, limits, sizes and shards."""

    urls: list[str]
    threads: int
    timeout: float
    deadline: float
    retries: int
    images_per_shard: int
    image_size: int = 384


@dataclass(frozen=True)
class Crawled:
    """`seconds` from the call to its return, workers' start included; `peak` resident bytes of the largest process."""

    seconds: float
    peak: int
    ok: int
    requested: int

    def __str__(self) -> str:
        return (
            f"{self.seconds:7.1f} s, {self.requested / self.seconds:6.1f} urls/s, {self.ok:,} of {self.requested:,} "
            f"stored, worker {self.peak / 1e6:,.0f} MB"
        )


def crawl(by: str, settings: Settings) -> Crawled:
    """Run one in a fresh process and folder."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "settings.json"
        path.write_text(json.dumps(asdict(settings)))
        command = [sys.executable, "-m", "tests.bench.crawls", by, str(path)]
        said = subprocess.run(command, capture_output=True, text=True)
        if said.returncode:
            raise RuntimeError(f"{by} ended with {said.returncode}: {said.stderr[-3000:]}")
        crawled = Crawled(**json.loads(said.stdout.strip().splitlines()[-1]))
    print(f"{by:<12} {crawled}", flush=True)
    return crawled


def alternating(settings: Settings, rounds: int) -> tuple[Crawled, Crawled]:
    """PairMill's and img2dataset's run of median time, taken in turns."""
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(crawl("pairmill", settings))
        theirs.append(crawl("img2dataset", settings))
    middle = (rounds - 1) // 2
    return tuple(sorted(runs, key=lambda run: run.seconds)[middle] for runs in (ours, theirs))  # type: ignore[return-value]


def _commit(table: Table, shards: dict[str, pa.Table], info: dict[str, object]) -> None:
    with table.writing("made", dict.fromkeys(shards, "made")) as writing:
        for name, rows in shards.items():
            pq.write_table(rows, table.folder / f"{name}.parquet")
            writing.add(Shard.of(table.folder, name, "made", [f"{name}.parquet"], {}))
        writing.commit(info)


def _dataset(folder: Path, urls: list[str]) -> Dataset:
    """The urls as pairs that nothing was screened from."""
    dataset = Dataset(folder)

    def empty(*names: str) -> pa.Table:
        return pa.table({name: pa.array([], pa.float64() if name == "value" else pa.string()) for name in names})

    pairs = {"uid": [f"{index:032x}" for index in range(len(urls))], "url": urls, "text": ["a picture"] * len(urls)}
    _commit(dataset.pairs, {"0000": pa.table(pairs), "repeated0000": empty("uid")}, {})
    _commit(dataset.quarantine, {"0000": empty("file")}, {})
    _commit(dataset.screened, {"0000": empty("uid", "stage", "rule", "value", "detail")}, {"rules": {}})
    return dataset


def _pairmill(settings: Settings, folder: Path) -> tuple[float, int]:
    from pipeline import download

    dataset = _dataset(folder, settings.urls)
    values = {name: value for name, value in asdict(settings).items() if name != "urls"}
    section = {**values, "allow_hosts": ["127.0.0.0/8"], "max_per_host": settings.threads}
    job = Job("download", Recipe.model_validate({"name": "bench", "download": section}), dataset, engine("local", 1))
    started = time.perf_counter()
    download.run(job)
    seconds = time.perf_counter() - started
    job.engine.close()
    return seconds, dataset.images.manifest.count("ok")


def _img2dataset(settings: Settings, folder: Path) -> tuple[float, int]:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import img2dataset

    folder.mkdir()
    listed = folder / "list.parquet"
    pq.write_table(pa.table({"url": settings.urls, "caption": ["a picture"] * len(settings.urls)}), listed)
    started = time.perf_counter()
    img2dataset.download(
        url_list=str(listed),
        input_format="parquet",
        url_col="url",
        caption_col="caption",
        output_folder=str(folder / "images"),
        output_format="webdataset",
        processes_count=1,
        thread_count=settings.threads,
        timeout=settings.timeout,
        retries=settings.retries,
        image_size=settings.image_size,
        resize_mode="keep_ratio_largest",
        resize_only_if_bigger=True,
        encode_quality=92,
        number_sample_per_shard=settings.images_per_shard,
        enable_wandb=False,
    )
    seconds = time.perf_counter() - started
    stats = [json.loads(path.read_text()) for path in (folder / "images").glob("*_stats.json")]
    return seconds, sum(each["successes"] for each in stats)


def main(by: str, path: Path) -> None:
    settings = Settings(**json.loads(path.read_text()))
    folder = path.parent / "data"
    seconds, ok = {"pairmill": _pairmill, "img2dataset": _img2dataset}[by](settings, folder)
    shutil.rmtree(folder)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(json.dumps(asdict(Crawled(seconds, peak, ok, len(settings.urls)))))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
