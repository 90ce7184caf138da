"""One shard of images through every extractor that lacks some of them, each image decoded once.

An extractor's batches are of the images that it lacks, in order of key: they are the same whichever others run beside
it. Rows are written as they come.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.errors import PairmillError
from pipeline.extractors import BUILDERS
from pipeline.extractors.decoding import Failure, prepared_pictures
from pipeline.extractors.growing import merge_features, read_features
from pipeline.extractors.identity import identity_of
from pipeline.extractors.memory import Fitting, fitting, is_out_of_memory
from pipeline.extractors.plans import FAILED, Images, Plan, Task
from pipeline.gpus import own_device
from pipeline.store.atomic import replacing
from pipeline.store.features import FeatureWriter, ImageFeatures, NotFiniteError
from pipeline.store.table import FAILED_SUFFIX, Shard, naming_damage

DETAIL = 300
"""Characters of an error's words that are kept."""


def extract_shard(
    shard: str, *, plans: Mapping[str, Plan], tasks: Mapping[str, Mapping[str, Task]], images: Images, threads: int
) -> dict[str, tuple[Shard, dict[str, Any]]]:
    """Run one shard through the extractors that have a task there. Returns extractor -> (shard, identity).

    `threads`: how many decode. Raises PairmillError for a damaged tar, OSError that names the folder for a full disk.
    """
    torch.set_num_threads(1)  # the order of sums, and with it the last bits, depends on the number of threads
    keys = images.keys(shard)
    with _naming(next(iter(plans.values())).folder.parent), ExitStack() as stack:
        at_work = {
            name: stack.enter_context(_working(plans[name], task.stem(shard), task.old))
            for name, task in tasks[shard].items()
        }
        wanted = {key: tuple(name for name, work in at_work.items() if key not in work.had) for key in keys}
        pictures = prepared_pictures(
            images.folder / images.tars[shard].name,
            images.tars[shard].sha256,
            {key: names for key, names in wanted.items() if names},
            {name: work.fitting.extractor.prepare for name, work in at_work.items()},
            threads,
            2 * max(work.fitting.size for work in at_work.values()),
        )
        with ThreadPoolExecutor(1, "write") as writing:  # while the model is at the next batch
            for picture in pictures:
                for name, prepared in picture.of.items():
                    at_work[name].take(picture.key, prepared, writing)
            for work in at_work.values():
                work.flush(writing)
                work.wait()
    return {
        name: (
            Shard.of(plans[name].folder, shard, tasks[shard][name].key, work.files, work.counts()),
            identity_of(plans[name], work.fitting.extractor),
        )
        for name, work in at_work.items()
    }


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """What fails while a file is written, such as a full disk, names no place by itself."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(folder)) from error


@lru_cache(maxsize=8)
def _at_hand(plan: Plan) -> Fitting:
    """Kept for a worker's next shard: a model takes seconds to load."""
    device = own_device()
    try:
        return fitting(BUILDERS[plan.section.kind](plan.section, plan.weights, device), plan.section.batch_size, device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise PairmillError(
            f"the model of [extract.{plan.folder.name}] does not fit the memory", "use fewer workers, or a smaller one"
        ) from error


@dataclass
class _Work:
    """One extractor in one shard: images in, rows and failures out."""

    fitting: Fitting
    writer: FeatureWriter
    had: frozenset[str]
    failures: list[dict[str, str]]
    files: tuple[str, ...]
    rows: int = 0
    _waiting: list[tuple[str, Any]] = field(default_factory=list)
    _writing: Future[None] | None = None

    def take(self, key: str, prepared: Any, writing: Executor) -> None:
        if isinstance(prepared, Failure):
            self._fail(key, prepared)
            return
        self._waiting.append((key, prepared))
        if len(self._waiting) >= self.fitting.size:
            self.flush(writing)

    def flush(self, writing: Executor) -> None:
        """Run the model on the images that wait for it, and have `writing` write what it gives."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        results = self.fitting([prepared for _, prepared in waiting])
        self.wait()  # so that no more than one batch of features is held
        self._writing = writing.submit(self._write, [key for key, _ in waiting], results)

    def wait(self) -> None:
        """Until what was given to be written is. Raises what went wrong there."""
        if self._writing is not None:
            self._writing.result()

    def _write(self, keys: Sequence[str], results: Sequence[dict[str, np.ndarray] | str]) -> None:
        columns = self.fitting.extractor.columns
        for key, arrays in zip(keys, results, strict=True):
            if isinstance(arrays, str):
                self._fail(key, Failure("out_of_memory", arrays))
                continue
            n = next(len(arrays[name]) for name, column in columns.items() if not column.per_image)
            try:
                self.writer.add(ImageFeatures(key, n, arrays))
            except NotFiniteError as error:
                self._fail(key, Failure("not_finite", str(error)))

    def _fail(self, key: str, failure: Failure) -> None:
        self.failures.append({"key": key, "cause": failure.cause, "detail": failure.detail[:DETAIL]})

    def counts(self) -> dict[str, int]:
        causes = Counter(failure["cause"] for failure in self.failures)
        failed = {f"failed/{cause}": number for cause, number in sorted(causes.items())}
        return {"rows": self.rows, "failed": causes.total(), **failed}


@contextmanager
def _working(plan: Plan, stem: str, old: str | None) -> Iterator[_Work]:
    """What goes on at the block's end, without an error: the files of the shard are there."""
    fitted, folder = _at_hand(plan), plan.folder
    columns, identity = fitted.extractor.columns, identity_of(plan, fitted.extractor)
    rows, failed = folder / f"{stem}.parquet", folder / f"{stem}{FAILED_SUFFIX}"
    failures, had = [], frozenset[str]()
    if old is not None:
        with naming_damage(folder / f"{old}{FAILED_SUFFIX}", "extract"):
            failures = pq.read_table(folder / f"{old}{FAILED_SUFFIX}").to_pylist()
        before = read_features(folder / f"{old}.parquet", identity)
        had = frozenset((*before.keys(), *(failure["key"] for failure in failures)))
    added = rows if old is None else folder / f"{stem}.added.parquet"
    with FeatureWriter(added, columns, identity) as writer:
        work = _Work(fitted, writer, had, failures, (rows.name, failed.name))
        yield work
    work.rows = writer.rows
    if old is not None:
        work.rows = merge_features(rows, (before, read_features(added, identity)))
        added.unlink()
    work.failures.sort(key=lambda failure: failure["key"])
    with replacing(failed) as path:
        pq.write_table(pa.Table.from_pylist(work.failures, FAILED), path, compression="zstd")
