"""The lists of a recipe: which files there are, what each is by its name, how it is opened and cut into parts.

A part is what one worker reads: a whole file, or some row groups of a large Parquet file.
"""

import io
import shutil
import tempfile
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import PairmillError

FORMATS = {".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

SPLIT_BYTES = 256_000_000
ROWS_PER_PART = 1_000_000


@dataclass(frozen=True)
class Part:
    """One input file, or a range of its row groups, and how the file looked when the stage began."""

    path: str
    size: int | None
    modified: str
    first_group: int = 0
    groups: int | None = None
    """How many row groups; None for all of them, and for files without any."""
    first_row: int = 0
    """How many of the file's rows stand before this part."""

    @property
    def format(self) -> str:
        return formats_of(self.path)[0]

    def open(self) -> IO[bytes]:
        """The file's decompressed bytes. Raises what `unreadable` names."""
        filesystem, path = fsspec.core.url_to_fs(self.path)
        opened = filesystem.open(path, "rb")
        compression = formats_of(self.path)[1]
        if compression is None:
            return opened
        # Arrow's streams, since they go on behind the first member and say so where the last one is cut off.
        return pa.CompressedInputStream(pa.PythonFile(opened, "r"), compression)

    def open_anywhere(self) -> IO[bytes]:
        """As `open`, at any position: a server that sends whole files only has this one copied first."""
        file = self.open()
        try:
            file.seek(0, io.SEEK_END)
            file.seek(0)
            return file
        except (ValueError, OSError):
            copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
            with file, self.open() as again:
                shutil.copyfileobj(again, copy, 1 << 20)
            copy.seek(0)
            return copy  # type: ignore[return-value]


def formats_of(path: str) -> tuple[str, str | None]:
    """(format, compression) by the file's name. Raises PairmillError for a name that says neither."""
    name = (urlsplit(path).path if _is_http(path) else path).lower()
    compression = next((kind for suffix, kind in COMPRESSIONS.items() if name.endswith(suffix)), None)
    stem = name.rpartition(".")[0] if compression else name
    kind = next((kind for suffix, kind in FORMATS.items() if stem.endswith(suffix)), None)
    if kind is None or (kind == "parquet" and compression):
        raise PairmillError(
            f"{path} is neither .csv, .tsv, .jsonl (nor .gz or .zst of these) nor .parquet",
            "convert or rename it, or correct [ingest] inputs",
        )
    return kind, compression


def parts_of(inputs: tuple[str, ...]) -> list[Part]:
    """The parts of all files that match now, in order of path, whatever the order of `inputs`."""
    files = [part for pattern in inputs for part in _matching(pattern)]
    return [part for file in sorted(files, key=lambda part: part.path) for part in _split(file)]


def _is_http(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def _matching(pattern: str) -> list[Part]:
    try:
        filesystem, path = fsspec.core.url_to_fs(pattern)
        filesystem.invalidate_cache()
        # Names may hold what globs are made of: a file of that very name comes first; in http "?" begins a query.
        is_glob = any(letter in path for letter in ("*" if _is_http(pattern) else "*?["))
        is_glob = is_glob and (_is_http(pattern) or not filesystem.exists(path))
        infos = [filesystem.info(name) for name in (filesystem.glob(path) if is_glob else [path])]
    except unreadable(pattern) as error:
        raise PairmillError(f"cannot read the list {pattern}: {_said(error)}", "correct [ingest] inputs") from None
    if is_glob:
        infos = [info for info in infos if info["type"] == "file"]
    if not infos:
        raise PairmillError(f"no file matches {pattern}", "correct [ingest] inputs")
    parts = []
    for info in infos:
        name = filesystem.unstrip_protocol(info["name"]) if "://" in pattern else info["name"]
        if info["type"] != "file":
            raise PairmillError(f"the list {name} is a folder", f"name its files: {name}/*.parquet")
        formats_of(name)
        parts.append(Part(name, info.get("size"), _version(info)))
    return parts


def _version(info: dict[str, Any]) -> str:
    """What tells this state of a file from another; file systems call it by different names."""
    names = ("mtime", "ETag", "LastModified", "Last-Modified", "Content-MD5", "updated", "created")
    return next((str(info[name]) for name in names if info.get(name)), "")


def _split(file: Part) -> list[Part]:
    """Ranges of row groups, for a large Parquet file."""
    if file.format != "parquet" or (file.size or 0) < SPLIT_BYTES:
        return [file]
    try:
        with file.open_anywhere() as opened:
            metadata = pq.ParquetFile(opened).metadata
    except unreadable(file.path) as error:
        raise broken(file.path, error) from None
    parts, first_group, first_row, row = [], 0, 0, 0
    for group in range(metadata.num_row_groups):
        row += metadata.row_group(group).num_rows
        if row - first_row >= ROWS_PER_PART or group == metadata.num_row_groups - 1:
            parts.append(
                Part(file.path, file.size, file.modified, first_group, group + 1 - first_group, first_row),
            )
            first_group, first_row = group + 1, row
    return parts or [file]


def unreadable(path: str) -> tuple[type[Exception], ...]:
    """What finding, opening and reading a file may raise; a remote file system's package raises what it likes."""
    return (Exception,) if "://" in path else (OSError, EOFError, ValueError, ImportError, pa.ArrowException)


def broken(path: str, error: BaseException) -> PairmillError:
    return PairmillError(f"cannot read the list {path}: {_said(error)}", "repair it or leave it out")


def _said(error: BaseException) -> str:
    said = (str(error).splitlines() or [""])[0][:300]
    return said or type(error).__name__
