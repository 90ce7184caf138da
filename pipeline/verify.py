"""`make verify`: reads every file of every finished table again and compares it with its manifest. Changes nothing.

What a file must be and hold: `pipeline.store.checking`.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path

from tqdm import tqdm

from pipeline.errors import PairmillError
from pipeline.job import Job
from pipeline.store.checking import DamagedError, check_file, is_features
from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureStore
from pipeline.store.table import JOURNAL, MANIFEST, Manifest, Table

TABLES = ("pairs", "signals", "verdicts", "images", "features", "runs")


@dataclass(frozen=True)
class Fault:
    """A damaged file, what is wrong with it, and what to do."""

    path: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}\n  -> {self.remedy}"


def run(job: Job) -> str:
    """Verify the whole dataset. Raises PairmillError that lists every damaged file with its remedy."""
    faults: list[Fault] = []
    _manifest.cache_clear()
    finished, unfinished = _found(job.dataset)
    if not finished and not unfinished:
        raise PairmillError(f"{job.dataset.root} holds no table", "run `make ingest` first, or name another folder")
    manifests: dict[Path, Manifest] = {}
    tasks: list[str] = []
    files = size = 0
    for folder in finished:
        try:
            manifest = _manifest(folder)
        except PairmillError as error:
            faults.append(_fault(folder / MANIFEST, str(error).splitlines()[0], "the stage that makes the table"))
            continue
        manifests[folder] = manifest
        tasks += [f"{folder.relative_to(job.dataset.root)}/{shard.name}" for shard in manifest.shards]
        files += sum(len(shard.files) for shard in manifest.shards)
        size += sum(file.bytes for shard in manifest.shards for file in shard.files)
    with tqdm(total=size, desc="verify", unit="B", unit_scale=True, disable=None) as bar:
        for checked in job.engine.map(partial(check_shard, root=job.dataset.root), tasks, "verify"):
            faults += checked.faults
            bar.update(checked.bytes)
    damaged = {Path(fault.path).parent for fault in faults}
    for folder in manifests.keys() - damaged:
        faults += _order_faults(folder, manifests[folder])
    faults.sort(key=lambda fault: fault.path)
    for fault in faults:
        job.log("damaged", **asdict(fault))
    counted = f"{len(finished):,} tables, {files:,} files, {_size(size)}"
    going_on = [f"{folder.relative_to(job.dataset.root)} is not finished" for folder in unfinished]
    if faults:
        listed = "\n".join(map(str, faults))
        raise PairmillError("; ".join([f"{counted}: {len(faults):,} damaged", *going_on]) + f"\n{listed}")
    return "; ".join([f"{counted}: all whole", *going_on])


def _found(dataset: Dataset) -> tuple[list[Path], list[Path]]:
    """The folders of finished tables, and of those under way or gone that finished ones were made from."""
    finished, under_way = (
        {path.parent for table in TABLES for path in (dataset.root / table).rglob(name)} for name in (MANIFEST, JOURNAL)
    )
    lacking = {table.folder for table in dataset.gaps}
    return sorted(finished), sorted((under_way | lacking) - finished)


@lru_cache(maxsize=64)
def _manifest(folder: Path) -> Manifest:
    return Manifest.read(folder / MANIFEST)


def _fault(path: Path, what: str, made_by: str) -> Fault:
    return Fault(str(path), what, f"{'remove it, then ' if path.exists() else ''}run {made_by} again")


def _made_by(manifest: Manifest) -> str:
    """What makes a table, as a user calls it."""
    return "`pairmill import-features`" if "imported" in manifest.info else f"`make {manifest.stage}`"


def _order_faults(folder: Path, manifest: Manifest) -> Iterator[Fault]:
    """What is wrong between shards of features that are each whole."""
    if is_features(manifest):
        try:
            FeatureStore(Table(folder, manifest.stage))
        except PairmillError as error:
            yield _fault(folder, _told(error, folder), _made_by(manifest))


@dataclass(frozen=True)
class Checked:
    """A shard that was looked at: what is wrong with it, and how large it is by its manifest."""

    faults: list[Fault]
    bytes: int


def check_shard(task: str, root: Path) -> Checked:
    """Look at the files of one shard, named by its table's folder and itself."""
    folder, _, name = task.rpartition("/")
    manifest = _manifest(root / folder)
    shard = next(shard for shard in manifest.shards if shard.name == name)
    faults = []
    for file in shard.files:
        path = root / folder / file.name
        try:
            check_file(path, file, manifest, shard)
        except PairmillError as error:
            faults.append(_fault(path, _told(error, path), _made_by(manifest)))
        except DamagedError as error:
            faults.append(_fault(path, str(error), _made_by(manifest)))
        except Exception as error:  # whatever damaged bytes bring a reader to
            faults.append(_fault(path, f"it cannot be read ({str(error) or type(error).__name__})", _made_by(manifest)))
    return Checked(faults, sum(file.bytes for file in shard.files))


def _told(error: PairmillError, path: Path) -> str:
    """What a reader said of a file, without its name and its remedy."""
    return str(error).splitlines()[0].removeprefix(f"{path} ").removeprefix("is damaged: ")


def _size(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"
