"""A table: a folder of shards and the manifest that vouches for them.

While a table is written, each finished shard adds a line to `manifest.partial.jsonl`; at the end the lines are sorted
into `manifest.json` and the journal goes. A shard is reused, in this run or a later one, when its key (the digest of
everything it was made from) is still the one asked for and its files still have their recorded sizes.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.errors import PairmillError
from pipeline.store.atomic import digest, file_sha256, replacing, write_json

MANIFEST = "manifest.json"
JOURNAL = "manifest.partial.jsonl"
FAILED_SUFFIX = ".failed.parquet"
"""What the name of a shard's file ends in that says which images have no features, and why."""


@contextmanager
def naming_damage(path: Path, made_by: str) -> Iterator[None]:
    """What pyarrow says of damaged bytes in the block becomes a PairmillError that names the file."""
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise PairmillError(f"{path} is damaged ({error})", f"remove it and run `make {made_by}` again") from None


@dataclass(frozen=True)
class ShardFile:
    """One file of a shard: its name in the table's folder, size in bytes and sha256."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Shard:
    """One finished shard. `key` is the digest of its inputs and settings; `counts` add up over shards."""

    name: str
    key: str
    files: tuple[ShardFile, ...]
    counts: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, name: str, key: str, file_names: Iterable[str], counts: dict[str, int]) -> "Shard":
        """Describe files that were just written to `folder`."""
        paths = [folder / file_name for file_name in file_names]
        files = tuple(ShardFile(path.name, path.stat().st_size, file_sha256(path)) for path in paths)
        return cls(name, key, files, counts)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Shard":
        files = tuple(ShardFile(**file) for file in value["files"])
        return cls(value["name"], value["key"], files, value["counts"])

    def broken(self, folder: Path) -> Path | None:
        """A file that is missing, or has another size than when it was made; None where all are whole."""
        for file in self.files:
            path = folder / file.name
            if not path.exists() or path.stat().st_size != file.bytes:
                return path
        return None

    def is_whole(self, folder: Path) -> bool:
        """Whether every file is there with its recorded size."""
        return self.broken(folder) is None


@dataclass(frozen=True)
class Manifest:
    """What a committed table holds. `digest` covers the shards' contents and not the seconds it took."""

    stage: str
    key: str
    digest: str
    shards: tuple[Shard, ...]
    info: dict[str, Any]
    seconds: float

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        try:
            value = json.loads(path.read_text())
            shards = tuple(Shard.from_json(shard) for shard in value.pop("shards"))
            manifest = cls(shards=shards, **value)
            if manifest.digest != content_digest(shards, manifest.info):
                raise ValueError("its digest is not that of what it says")
            return manifest
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PairmillError(
                f"{path} is not a manifest ({error})", "remove the file; the stage will be made again"
            ) from error

    def count(self, name: str) -> int:
        return sum(shard.counts.get(name, 0) for shard in self.shards)

    def counts(self) -> dict[str, int]:
        names = dict.fromkeys(name for shard in self.shards for name in shard.counts)
        return {name: self.count(name) for name in names}


def content_digest(shards: Iterable[Shard], info: dict[str, Any]) -> str:
    """Of what a table holds, whatever it was made from."""
    return digest([asdict(shard) | {"key": None} for shard in shards], info)


class Table:
    """A folder of shards, read through its manifest and written through `writing`."""

    def __init__(self, folder: Path, made_by: str) -> None:
        self.folder = folder
        self.made_by = made_by

    @property
    def exists(self) -> bool:
        return (self.folder / MANIFEST).exists()

    @property
    def is_begun(self) -> bool:
        """Whether the table is being made, or was when its maker was cut off."""
        return (self.folder / JOURNAL).exists()

    @property
    def manifest(self) -> Manifest:
        """The committed manifest. Raises PairmillError where the stage that makes this table has not finished."""
        if not self.exists:
            raise PairmillError(f"{self.folder} is not there yet or not finished", f"run `make {self.made_by}` first")
        return Manifest.read(self.folder / MANIFEST)

    def is_current(self, key: str) -> bool:
        """Whether the table was committed under `key` and its files are all in place."""
        if not self.exists:
            return False
        manifest = self.manifest
        return manifest.key == key and all(shard.is_whole(self.folder) for shard in manifest.shards)

    def check_whole(self) -> None:
        """Raise PairmillError where a shard's file is missing or has another size than when it was made."""
        for shard in self.manifest.shards:
            if path := shard.broken(self.folder):
                raise PairmillError(f"{path} is missing or cut short", f"run `make {self.made_by}` again")

    def paths(self, suffix: str) -> list[Path]:
        """The table's files with this suffix, in shard order."""
        return [
            self.folder / file.name
            for shard in self.manifest.shards
            for file in shard.files
            if file.name.endswith(suffix)
        ]

    @contextmanager
    def writing(self, key: str, shard_keys: dict[str, str], keep: Iterable[str] = ()) -> Iterator["Writing"]:
        """Open the table for (re)making under `key`, out of the shards named in `shard_keys`.

        What else lies in the folder goes, but for files named in `keep`.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        writing = Writing(self, key, shard_keys, keep)
        try:
            yield writing
        finally:
            writing.close()


class Writing:
    """A table under way: which shards are done, which are still to do."""

    def __init__(self, table: Table, key: str, shard_keys: dict[str, str], keep: Iterable[str] = ()) -> None:
        self.table, self.key, self.shard_keys = table, key, shard_keys
        self._keep = frozenset((JOURNAL, *keep))
        self._journal_path = table.folder / JOURNAL
        self._done, self._seconds_before = self._recover()
        self._started = time.monotonic()
        # The journal is written anew, so that lines of another recipe, or cut off by a crash, do not stay;
        # the old manifest goes only once the journal vouches for what is kept of it.
        with replacing(self._journal_path) as partial:
            partial.write_text("".join(self._line(shard) for shard in self._done.values()))
        (table.folder / MANIFEST).unlink(missing_ok=True)
        self._journal = open(self._journal_path, "a")  # noqa: SIM115 - closed by close()
        self._sweep()

    def _recover(self) -> tuple[dict[str, Shard], float]:
        known: list[Shard] = list(self.table.manifest.shards) if self.table.exists else []
        seconds = 0.0
        if self._journal_path.exists():
            for line in self._journal_path.read_bytes().splitlines():
                try:
                    value = json.loads(line)
                    known.append(Shard.from_json(value))
                    seconds = value["elapsed"]
                except (ValueError, KeyError, TypeError):
                    break  # the line that was being written when the process died
        fresh = {
            shard.name: shard
            for shard in known
            if self.shard_keys.get(shard.name) == shard.key and shard.is_whole(self.table.folder)
        }
        if self.table.exists and len(fresh) == len(self.shard_keys):
            seconds = self.table.manifest.seconds  # nothing is to be made: what it took stands
        return fresh, seconds

    def _sweep(self) -> None:
        """Remove what no shard that stays accounts for: stale shards and half-written files."""
        keep = {file.name for shard in self._done.values() for file in shard.files} | self._keep
        for path in self.table.folder.iterdir():
            if path.is_file() and path.name not in keep:
                path.unlink()

    def _elapsed(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    def _line(self, shard: Shard) -> str:
        return json.dumps(asdict(shard) | {"elapsed": round(self._elapsed(), 3)}) + "\n"

    @property
    def todo(self) -> list[str]:
        """Names of the shards that are still to make, in order."""
        return [name for name in self.shard_keys if name not in self._done]

    @property
    def shards(self) -> tuple[Shard, ...]:
        """What is done so far."""
        return tuple(self._done[name] for name in sorted(self._done))

    def add(self, shard: Shard) -> None:
        """Record a shard whose files are already in place."""
        self._journal.write(self._line(shard))
        self._journal.flush()
        os.fsync(self._journal.fileno())
        self._done[shard.name] = shard

    def forget(self) -> None:
        """Take back what is done, so that the next call makes it anew."""
        self._journal.truncate(0)
        self._done.clear()

    def commit(self, info: dict[str, Any] | None = None, check: Callable[[Manifest], None] | None = None) -> Manifest:
        """Check the account, then let the manifest stand for the whole table."""
        if self.todo:
            raise PairmillError(f"{self.table.folder}: {len(self.todo)} shards are missing ({self.todo[0]} ...)")
        # Of what the shards hold, not of what they were made from: equal tables are equal to whoever reads them.
        content = content_digest(self.shards, info or {})
        manifest = Manifest(self.table.made_by, self.key, content, self.shards, info or {}, round(self._elapsed(), 3))
        if check:
            check(manifest)
        write_json(self.table.folder / MANIFEST, asdict(manifest))
        self._journal.close()
        self._journal_path.unlink(missing_ok=True)
        return manifest

    def close(self) -> None:
        self._journal.close()
