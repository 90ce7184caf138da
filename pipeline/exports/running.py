"""An export from beginning to end: stage, write the parts, finish, and only then let the folder have its name."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import duckdb
from filelock import FileLock, Timeout

from pipeline.engine import Engine
from pipeline.errors import PairmillError
from pipeline.exports.fiftyone import FiftyOne
from pipeline.exports.huggingface import HuggingFace
from pipeline.exports.image_folder import ImageFolder
from pipeline.exports.parts import Target
from pipeline.exports.reading import read_images
from pipeline.exports.staging import Plan, stage
from pipeline.exports.tables import ParquetTables
from pipeline.exports.tars import OpenClip, WebDataset
from pipeline.store.atomic import sync
from pipeline.store.dataset import Dataset

TARGETS: dict[str, Target] = {
    "webdataset": WebDataset(),
    "parquet": ParquetTables(),
    "jsonl": ImageFolder(),
    "huggingface": HuggingFace(),
    "fiftyone": FiftyOne(),
    "open_clip": OpenClip(),
}
UNFINISHED = ".unfinished"
"""What the name of the folder ends in until all of it is there."""
_MARK = ".pairmill-export"
"""A file in there that is locked for as long as the folder is being filled."""
_STAGING = ".staging"


def export(dataset: Dataset, engine: Engine, to: str, out: Path, where: str = "true") -> str:
    """Write what is kept to the new folder `out`, in one of TARGETS; returns a line that says what was done.

    `where`: SQL over the view `kept`. The folder is whole or not there; the same dataset gives the same bytes. Raises
    PairmillError for SQL that is wrong, a folder that is not empty, nothing kept, damaged files, a full disk.
    """
    with _filling(out) as folder:
        plan = stage(dataset, folder / _STAGING, where)
        counts = plan.images_of_shards()
        work = partial(_export_shard, root=dataset.root.absolute(), to=to, folder=folder)
        for _ in engine.map(work, list(counts), f"export to {to}", counts):
            pass
        TARGETS[to].finish(folder, plan)
        shutil.rmtree(folder / _STAGING)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    images, pairs = sum(part.images for part in plan.parts), sum(part.pairs for part in plan.parts)
    return f"{images:,} images with {pairs:,} pairs in {out}: {size:,} bytes"


@contextmanager
def _filling(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name when the block ends well, and is gone when it does not."""
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PairmillError(f"{out} is not empty", "name another folder")
    folder = out.with_name(out.name + UNFINISHED)
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / _MARK
    if any(folder.iterdir()) and not mark.exists():
        raise PairmillError(f"{folder} is in the way and no export's", "move it, or name another folder")
    lock = FileLock(mark)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise PairmillError(f"another export is filling {folder}", "wait for it to end") from None
    try:
        _clear(folder)  # of what a call that was killed has left
        yield folder
        mark.unlink()
        os.sync()  # thousands of files: one by one it takes minutes
        folder.replace(out)
        sync(out.parent)
    except (OSError, duckdb.IOException) as error:
        if not any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
            raise
        raise PairmillError(f"{out}: there is no space left", "make room, or name a folder on another disk") from None
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


def _clear(folder: Path) -> None:
    """Remove all but the mark, which is locked."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _MARK:
            path.unlink()


def _export_shard(shard: str, *, root: Path, to: str, folder: Path) -> None:
    """Write one image shard's images, each to the part of its split."""
    staging = folder / _STAGING
    plan = Plan.read(staging)
    with ExitStack() as stack:
        parts = {part.split: stack.enter_context(TARGETS[to].part(folder, part, plan)) for part in plan.of_shard(shard)}
        for image in read_images(root, staging, shard, plan):
            parts[image.split](image)
