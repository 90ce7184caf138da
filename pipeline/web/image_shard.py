"""One shard of images: `NNNNN.tar` (WebDataset), `NNNNN.parquet` (one row a url) and `NNNNN_stats.json`.

A shard is atomic, in order of keys, and the same bytes whatever order the answers came in. What an earlier shard holds
already is copied from there. The stats are written last: a shard that has none is not finished.
"""

import io
import json
import math
import tarfile
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import PairmillError
from pipeline.recipe import Download
from pipeline.store.atomic import replacing, write_json
from pipeline.store.table import Shard
from pipeline.web.fetch import UNREACHABLE, Fetched

TELLING = 32  # a shard of so many urls, none of them reached, speaks of our network; a smaller one may just be dead
SUFFIXES = (".tar", ".parquet", "_stats.json")
MADE_WITH = b"made_with"
"""The key in the Parquet's metadata of the digest of the settings that a picture and its status depend on."""

_BOXES = pa.list_(pa.list_(pa.float64()))
METADATA = pa.schema(
    [
        ("key", pa.string()),
        ("url", pa.string()),
        ("status", pa.string()),
        ("http_status", pa.int32()),
        ("content_type", pa.string()),
        ("format", pa.string()),
        ("final_url", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("blurred", _BOXES),
    ]
)
FETCHES = pa.schema(
    [
        ("url", pa.string()),
        ("status", pa.string()),
        ("http_status", pa.int32()),
        ("attempts", pa.int32()),
        ("seconds", pa.float64()),
        ("time", pa.float64()),
    ]
)
"""The log of fetches: what differs from run to run, and so must not stand in the table, whose digest others go by.
`seconds` are those on the network over all attempts; `time` is when it was done, in seconds since 1970."""
LIST = pa.schema(
    [
        ("url", pa.string()),
        ("caption", pa.string()),
        ("boxes", _BOXES),
        ("had_in", pa.string()),
        ("had_key", pa.string()),
    ]
)
"""What a shard is to hold. `had_in` and `had_key` say where an earlier shard has the row, if one does."""

Row = dict[str, Any]


@dataclass(frozen=True)
class ShardMaker:
    """Makes the shards named in `keys` in `folder`, out of their LISTs in `lists` and of what is in `earlier`."""

    keys: dict[str, str]
    lists: Path
    earlier: Path
    folder: Path
    fetches: Path
    settings: Download
    made_with: str

    def __call__(self, name: str) -> Shard:
        with pa.memory_map(str(self.lists / f"{name}.arrow")) as source:
            listed = pa.ipc.open_file(source).read_all().to_pylist()
        with tempfile.TemporaryFile(dir=self.lists) as spool:
            pictures = _Pictures(spool)
            rows = self._copied(listed, pictures) | self._fetched(name, listed, pictures)
            self._write(name, listed, [rows[position] for position in range(len(listed))], pictures)
        _check_reached(name, rows.values())
        counts = counted([row["status"] for row in rows.values()])
        write_json(self.folder / f"{name}_stats.json", counts)
        return Shard.of(self.folder, name, self.keys[name], [f"{name}{suffix}" for suffix in SUFFIXES], counts)

    def _copied(self, listed: Sequence[Row], pictures: "_Pictures") -> dict[int, Row]:
        """Rows by position, of what earlier shards hold."""
        wanted: dict[str, dict[str, int]] = defaultdict(dict)
        for position, entry in enumerate(listed):
            if entry["had_in"] is not None:
                wanted[entry["had_in"]][entry["had_key"]] = position
        rows = {}
        for shard, positions in sorted(wanted.items()):
            for row in pq.read_table(self.earlier / f"{shard}.parquet").to_pylist():
                if row["key"] in positions:
                    rows[positions[row["key"]]] = row
            with tarfile.open(self.earlier / f"{shard}.tar") as tar:
                for member in tar:
                    key, _, kind = member.name.partition(".")
                    if kind == "jpg" and key in positions and (content := tar.extractfile(member)):
                        pictures.put(positions[key], content.read())
        return rows

    def _fetched(self, name: str, listed: Sequence[Row], pictures: "_Pictures") -> dict[int, Row]:
        """Rows by position, of what must be asked for; not for those whose boxes cannot be read, and so not blurred."""
        missing = [position for position, entry in enumerate(listed) if entry["had_in"] is None]
        asked = [position for position in missing if are_boxes(listed[position]["boxes"])]
        rows = {position: _row(listed[position], Fetched("bad_boxes"), {}) for position in missing}
        log: list[Row] = []

        def finish(index: int, fetched: Fetched, account: Row, picture: bytes | None) -> None:
            position = asked[index]
            row = rows[position] = _row(listed[position], fetched, account)
            if picture is not None:
                pictures.put(position, picture)
            log.append({**row, "attempts": fetched.attempts, "seconds": fetched.seconds, "time": time.time()})

        if asked:
            from pipeline.web.storing import store

            store(
                self.settings,
                [listed[position]["url"] for position in asked],
                [listed[position]["boxes"] for position in asked],
                finish,
            )
            with replacing(self.fetches / f"{name}-{self.keys[name][:12]}.parquet") as path:
                logged = [{column: entry[column] for column in FETCHES.names} for entry in log]
                pq.write_table(pa.Table.from_pylist(logged, FETCHES), path, compression="zstd")
        if len(log) != len(asked):
            raise PairmillError(f"shard {name}: {len(asked)} urls were asked for, but {len(log)} answers came back")
        return rows

    def _write(self, name: str, listed: Sequence[Row], rows: Sequence[Row], pictures: "_Pictures") -> None:
        places = max(1, math.ceil(math.log10(self.settings.images_per_shard)))
        with (
            replacing(self.folder / f"{name}.tar") as path,
            tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for position, (entry, row) in enumerate(zip(listed, rows, strict=True)):
                row["key"] = f"{name:0>5}{position:0{places}d}"
                if (picture := pictures.get(position)) is not None:
                    caption = entry["caption"] or ""
                    _add(tar, f"{row['key']}.jpg", picture)
                    _add(tar, f"{row['key']}.txt", caption.encode())
                    _add(tar, f"{row['key']}.json", json.dumps(row | {"caption": caption}, sort_keys=True).encode())
        schema = METADATA.with_metadata({MADE_WITH: self.made_with.encode()})
        with replacing(self.folder / f"{name}.parquet") as path:
            pq.write_table(pa.Table.from_pylist(list(rows), schema), path, compression="zstd")


class _Pictures:
    """The shard's pictures, in a file on disk until they can be written in order."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.places: dict[int, tuple[int, int]] = {}

    def put(self, position: int, content: bytes) -> None:
        self.places[position] = (self.file.seek(0, io.SEEK_END), len(content))
        self.file.write(content)

    def get(self, position: int) -> bytes | None:
        if position not in self.places:
            return None
        start, length = self.places[position]
        self.file.seek(start)
        return self.file.read(length)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o444
    member.uname = member.gname = "pairmill"
    tar.addfile(member, io.BytesIO(content))


def _row(entry: Row, fetched: Fetched, account: Row) -> Row:
    """A row of METADATA but for its key."""
    status = {"success": "ok", "failed_to_resize": "undecodable"}.get(account.get("status", ""), fetched.status)
    return {
        "key": None,
        "url": entry["url"],
        "status": status,
        **{name: getattr(fetched, name) for name in ("http_status", "content_type", "format", "final_url", "bytes")},
        **{name: account.get(name) for name in ("sha256", "width", "height", "original_width", "original_height")},
        "blurred": entry["boxes"] if status == "ok" else None,
    }


def are_boxes(value: object) -> bool:
    """Whether these are boxes to blur: none, or a list of [x1, y1, x2, y2] with 0 <= x1 <= x2 <= 1, and so for y."""
    return value is None or (
        isinstance(value, list)
        and all(
            isinstance(box, list)
            and len(box) == 4
            and all(isinstance(side, float) and 0 <= side <= 1 for side in box)
            and box[0] <= box[2]
            and box[1] <= box[3]
            for box in value
        )
    )


def _check_reached(name: str, rows: Iterable[Row]) -> None:
    statuses = Counter(row["status"] for row in rows)
    if statuses.total() >= TELLING and UNREACHABLE.issuperset(statuses):
        raise PairmillError(
            f"shard {name}: none of its {statuses.total()} urls could be reached ({', '.join(sorted(statuses))})",
            "check the network and the server, then run it again: what is done is kept",
        )


def counted(statuses: Sequence[str]) -> dict[str, int]:
    """A shard's account: requested = ok + those failed by each cause."""
    causes = Counter(status for status in statuses if status != "ok")
    counts = {"requested": len(statuses), "ok": len(statuses) - causes.total()}
    return counts | {f"failed/{cause}": number for cause, number in sorted(causes.items())}


def agrees(folder: Path, name: str) -> bool:
    """Whether a shard is finished, and its stats, its rows and its pictures tell the same."""
    try:
        counts = json.loads((folder / f"{name}_stats.json").read_text())
        statuses = pq.read_table(folder / f"{name}.parquet", columns=["status"])["status"].to_pylist()
        with tarfile.open(folder / f"{name}.tar") as tar:
            members = Counter(member.name.partition(".")[2] for member in tar)
    except (OSError, ValueError, KeyError, pa.ArrowException, tarfile.TarError):
        return False
    ok = statuses.count("ok")
    return bool(counts == counted(statuses)) and members == Counter({"jpg": ok, "txt": ok, "json": ok}) - Counter()
