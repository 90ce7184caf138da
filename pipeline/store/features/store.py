"""The read side of an extractor's table: images' features by key, in padded batches, streamed in order or shuffled."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import PairmillError
from pipeline.store.dataset import Dataset
from pipeline.store.features.buffers import Buffers, Overwritten, Pinned, Room
from pipeline.store.features.columns import (
    SCALES,
    Column,
    ImageFeatures,
    dequantised,
    identity_digest,
    stored_columns,
)
from pipeline.store.features.kept import among, wanted_keys
from pipeline.store.features.rows import Rows
from pipeline.store.features.shard import FeatureShard, Footer, damaged
from pipeline.store.features.writing import ROWS_PER_GROUP
from pipeline.store.table import FAILED_SUFFIX, Table

OPEN_SHARDS = 128
MIXED_SHARDS = OPEN_SHARDS // 2
"""Shards whose row groups are shuffled together; those of the next are opened meanwhile."""
POOL_BYTES = 192 << 20
"""Row groups that are shuffled together: that many bytes of them, while as many are being read ahead."""
MOST_GROUPS = 256
MAPPED = 256 << 20
"""Bytes that are read until their pages are given back."""


@dataclass(frozen=True)
class Padded:
    """Features of B images. `arrays[column]` is (B, longest n, *shape), zero beyond an image's own n, or (B, *shape)
    for a column with one array an image. An int8 column `c` comes with its scales: `c_scales`."""

    keys: tuple[str, ...]
    n: np.ndarray
    """(B,) int64: how many positions of each image there are."""
    arrays: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, column: str) -> np.ndarray:
        return self.arrays[column]


class FeatureStore:
    """One extractor's features of a dataset.

    `identity` says what made them (kind, model, sha256 of the weights, settings, columns), `columns` their form.
    Opening reads each shard's footer; a shard that is missing, short, damaged or of another identity is a PairmillError
    that names the file, now or, for its content, when that is first read. Holds some ten bytes an image of the
    shards in use and no feature.
    """

    def __init__(self, table: Table, verify: bool = True) -> None:
        manifest = table.manifest
        try:
            self.identity: dict[str, Any] = manifest.info["identity"]
            self.columns = {name: Column.of(described) for name, described in self.identity["columns"].items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise PairmillError(f"{table.folder} holds no features", "run `make extract`") from None
        self._table, self._verify = table, verify
        self._digest = identity_digest(self.identity)
        sizes = {file.name: file.bytes for shard in manifest.shards for file in shard.files}
        self._paths: list[Path] = []
        self._sizes: list[int] = []
        self._counts: list[int] = []
        firsts: list[str] = []
        for path in table.paths(".parquet"):
            if path.name.endswith(FAILED_SUFFIX):
                continue
            footer = Footer.read(path, self._digest, sizes[path.name]).parquet
            if footer.num_rows:
                self._paths.append(path)
                self._sizes.append(sizes[path.name])
                self._counts.append(footer.num_rows)
                firsts.append(footer.row_group(0).column(0).statistics.min)
        if any(second <= first for first, second in pairwise(firsts)):
            raise damaged(table.folder, "its shards do not follow one another in order of key")
        self._firsts = np.array([first.encode() for first in firsts], np.bytes_)
        self._shard = lru_cache(maxsize=OPEN_SHARDS)(self._open)
        self._buffers = Buffers()
        self._open_shards: weakref.WeakSet[FeatureShard] = weakref.WeakSet()
        self._mapped = 0

    @classmethod
    def open(cls, root: Path | str, extractor: str, verify: bool = True) -> "FeatureStore":
        """The features that `extractor` made of the dataset in the folder `root`. `verify`: compare checksums."""
        dataset = Dataset(root)
        table = dataset.features(extractor)
        if not table.exists or extractor not in dataset.extractors():
            there = ", ".join(dataset.extractors()) or "none"
            raise PairmillError(
                f"{table.folder} holds no finished features; finished are: {there}", "run `make extract` first"
            )
        return cls(table, verify)

    def __len__(self) -> int:
        return sum(self._counts)

    def __contains__(self, key: str) -> bool:
        return self._find(key) is not None

    def keys(self) -> Iterator[str]:
        """The images' keys, in order."""
        return iter(self)

    def __iter__(self) -> Iterator[str]:
        for shard in range(len(self._paths)):
            for key in self._shard(shard).keys:
                yield key.decode()

    def lengths(self) -> Iterator[tuple[str, int]]:
        """(key, n) of each image, in order of key; reads no feature."""
        for shard in range(len(self._paths)):
            opened = self._shard(shard)
            yield from zip((key.decode() for key in opened.keys), opened.n.tolist(), strict=True)

    def shards(self) -> Iterator[FeatureShard]:
        """Its shards in order of key, open: their `keys` and `n` are arrays, which no loop over images need touch."""
        return (self._shard(shard) for shard in range(len(self._paths)))

    def place(self, key: str) -> tuple[int, int]:
        """(shard, row group) of an image: what a reader that wants few seeks groups its samples by."""
        shard, row = self._locate(key)
        return shard, row // ROWS_PER_GROUP

    def __getitem__(self, key: str) -> ImageFeatures:
        """One image's features, int8 made float32 again. Raises KeyError for an image that has none."""
        padded = self.gather([key])
        arrays = {name: padded[name][0] for name in self.columns}
        for name, column in self.columns.items():
            if column.quantised:
                arrays[name] = dequantised(arrays[name], padded[name + SCALES][0])
        return ImageFeatures(key, int(padded.n[0]), arrays)

    def gather(
        self,
        keys: Sequence[str],
        columns: Iterable[str] | None = None,
        positions: Sequence[np.ndarray] | None = None,
        pin: bool = False,
    ) -> Padded:
        """These images' features, padded; a key may come more than once. Raises KeyError for one that is not there.

        `columns`: which, by default all. `positions`: of each image only these of its n, in this order. `pin`: in
        page-locked memory, from which a GPU copies while it computes.
        """
        asked = self._asked(columns)
        members: dict[int, list[tuple[int, int]]] = {}
        for at, key in enumerate(keys):
            shard, row = self._locate(key)
            members.setdefault(shard, []).append((at, row))
        parts: list[Rows] = []
        order = np.empty(len(keys), np.int64)
        for shard, places in members.items():
            order[[at for at, _ in places]] = np.arange(len(places)) + sum(map(len, parts))
            parts.append(self._rows(shard, np.array([row for _, row in places]), asked))
        padded = self._read(
            Rows.together(parts).at(order) if parts else None, asked, positions, Pinned() if pin else None
        )
        self._mapped += sum(array.nbytes for array in padded.arrays.values())
        if self._mapped > MAPPED:
            self._mapped = 0
            for opened in list(self._open_shards):
                opened.forget_all()
        return padded

    def stream(
        self,
        batch_size: int,
        *,
        columns: Iterable[str] | None = None,
        where: str | None = "true",
        keys: Iterable[str] | None = None,
        seed: int | None = None,
        pool_groups: int | None = None,
        overwrite: bool = False,
    ) -> Iterator[Padded]:
        """Batches of `batch_size` images, the last perhaps smaller; each image once.

        `where`: SQL over the view `kept`, such as "split = 'train'": pairs that were dropped yield no image, whatever
        features there are of it; None asks nobody. `keys`: of these only. `seed`: shuffled by it, row groups first and
        then the images of each `pool_groups` of them, by default of some 200 MB; without, in order of key. `overwrite`:
        each batch is written over the one before, while that is in the processor's cache; so none may be kept.
        """
        if batch_size < 1 or isinstance(keys, str) or (pool_groups is not None and pool_groups < 1):
            raise PairmillError("batches and pools have at least one image, and keys are a list of them")
        asked = self._asked(columns)
        wanted = wanted_keys(Dataset(self._table.folder.parent.parent), where, keys)
        random = None if seed is None else np.random.default_rng(seed)
        groups = self._groups(random)
        if pool_groups is None:
            first = groups[:1]
            size = sum(self._shard(shard).bytes_of(group, asked) for shard, group in first)
            pool_groups = min(max(POOL_BYTES // max(1, size), 2), MOST_GROUPS)
        pools = [groups[first : first + pool_groups] for first in range(0, len(groups), pool_groups)]
        room: Room = Overwritten() if overwrite else self._buffers
        waiting: list[Rows] = []
        with ThreadPoolExecutor(1, "readahead") as ahead:
            for number, members in enumerate(pools):
                last = number + 1 == len(pools)
                for coming in pools[number + 1 : number + 2] if number else pools[:2]:
                    ahead.submit(self._read_ahead, coming, asked)
                left = sum(map(len, waiting))
                waiting += [self._rows(shard, self._chosen(shard, group, wanted), asked) for shard, group in members]
                rows = Rows.together(waiting)
                if random is not None:
                    rows = rows.at(np.concatenate([np.arange(left), left + random.permutation(len(rows) - left)]))
                whole = len(rows) if last else len(rows) - len(rows) % batch_size
                for first_row in range(0, whole, batch_size):
                    yield self._read(rows.at(slice(first_row, min(first_row + batch_size, whole))), asked, room=room)
                waiting = [rows.at(slice(whole, None))]
                ahead.submit(self._forget, members, asked)

    def to_webdataset(self, folder: Path | str, keys: Iterable[str] | None = None) -> int:
        """Write these images, by default all, as tars for WebDataset; returns how many (`exchange.webdataset`)."""
        return self.export("webdataset", folder, keys)

    @classmethod
    def from_webdataset(cls, folder: Path | str, into: Path | str) -> "FeatureStore":
        """Read what `to_webdataset` wrote in `folder`, and keep it as a store in the new folder `into`."""
        from pipeline.store.features.exchange import webdataset

        table = Table(Path(into), "extract")
        webdataset.restore(Path(folder), table)
        return cls(table)

    def export(self, to: str, path: Path | str, keys: Iterable[str] | None = None) -> int:
        """Write these images, by default all, in a format that others read; returns how many.

        `to`: "webdataset" or "uniter-npz", into a folder, or "lxmert-tsv", into a file.
        """
        from pipeline.store.features.exchange import lxmert_tsv, uniter_npz, webdataset

        writers: dict[str, Callable[..., int]] = {
            "webdataset": webdataset.write,
            "uniter-npz": uniter_npz.write,
            "lxmert-tsv": lxmert_tsv.write,
        }
        if to not in writers:
            raise PairmillError(f"there is no format {to!r}", f"name one of {', '.join(writers)}")
        return writers[to](self, Path(path), keys)

    def check(self) -> None:
        """Read everything and compare. Raises PairmillError that names the first damaged file."""
        for shard in range(len(self._paths)):
            self._open(shard).check()

    def _groups(self, random: np.random.Generator | None) -> list[tuple[int, int]]:
        """(shard, row group) of them all; shuffled among as many shards, drawn at random, as are open at once."""
        shards = np.arange(len(self._paths)) if random is None else random.permutation(len(self._paths))
        groups: list[tuple[int, int]] = []
        for first in range(0, len(shards), MIXED_SHARDS):
            part = [
                (shard, group)
                for shard in shards[first : first + MIXED_SHARDS].tolist()
                for group in range(-(-self._counts[shard] // ROWS_PER_GROUP))
            ]
            if random is not None:
                random.shuffle(part)
            groups += part
        return groups

    def _chosen(self, shard: int, group: int, wanted: np.ndarray | None) -> np.ndarray:
        """The rows of a row group that are wanted."""
        opened = self._shard(shard)
        rows = opened.rows_of(group)
        places = np.arange(rows.start, rows.stop)
        return places if wanted is None else places[among(opened.keys[rows], wanted)]

    def _rows(self, shard: int, rows: np.ndarray, columns: dict[str, Column]) -> Rows:
        opened = self._shard(shard)
        for group in np.unique(rows // ROWS_PER_GROUP).tolist():
            opened.compare_lists(group, columns)
        return Rows.of(opened, rows)

    def _read_ahead(self, groups: Sequence[tuple[int, int]], columns: dict[str, Column]) -> None:
        for shard, group in groups:
            self._shard(shard).read_ahead(group, columns)

    def _forget(self, groups: Sequence[tuple[int, int]], columns: dict[str, Column]) -> None:
        for shard, group in groups:
            self._shard(shard).forget(group, columns)

    def _asked(self, columns: Iterable[str] | None) -> dict[str, Column]:
        """The columns to read, those of scales included."""
        if columns is None:
            return stored_columns(self.columns)
        names = list(columns)
        for name in names:
            if name not in self.columns:
                raise PairmillError(
                    f"{self._table.folder} has no column {name}", f"there are {', '.join(self.columns)}"
                )
        return stored_columns({name: self.columns[name] for name in names})

    def _read(
        self,
        rows: Rows | None,
        columns: dict[str, Column],
        positions: Sequence[np.ndarray] | None = None,
        room: Room | None = None,
    ) -> Padded:
        room = room or self._buffers
        if rows is None:
            return Padded(
                (), np.empty(0, np.int64), {n: np.empty((0, *c.row_shape(0)), c.dtype) for n, c in columns.items()}
            )
        for shard in rows.shards:
            shard.compare_size()
        n = rows.n if positions is None else np.array([len(chosen) for chosen in positions], np.int64)
        arrays: dict[str, np.ndarray] = {}
        for name, column in columns.items():
            whole = positions is None or column.per_image
            out = (room if whole else self._buffers).empty(
                (len(rows), *column.row_shape(int(rows.n.max(initial=0)))), column.stored, name
            )
            self._fill(out, rows, name, column)
            if not whole:
                assert positions is not None
                part = room.empty((len(rows), *column.row_shape(int(n.max(initial=0)))), column.stored, name)
                part[...] = 0
                for padded, row, chosen in zip(part, out, positions, strict=True):
                    padded[: len(chosen)] = row[chosen]
                out = part
            arrays[name] = out.astype(column.dtype, copy=False)
        return Padded(tuple(key.decode() for key in rows.keys.tolist()), n, arrays)

    def _fill(self, out: np.ndarray, rows: Rows, name: str, column: Column) -> None:
        """Read a column of these rows into (rows, longest n, *shape), and compare what was not read before."""
        from pipeline.store.features.copying import copy_rows  # compiled code, which takes a moment to load

        at = list(rows.shards[0].columns).index(name) if rows.shards else 0
        sizes = np.full(len(rows), column.size, np.int64) if column.per_image else rows.n * column.size
        stride = out.nbytes // max(1, len(rows))
        copy_rows(np.ascontiguousarray(rows.places[:, at]), sizes, out.ctypes.data, stride)
        if column.tensor:
            content = out.reshape(-1).view(np.uint8).data
            for place, (shard, row, size) in enumerate(
                zip(rows.shard.tolist(), rows.row.tolist(), sizes.tolist(), strict=True)
            ):
                rows.shards[shard].compare_tensor(name, row, content[place * stride : place * stride + size])

    def _find(self, key: str) -> tuple[int, int] | None:
        """The shard of an image and its row there."""
        shard = int(np.searchsorted(self._firsts, key.encode(), side="right")) - 1
        row = None if shard < 0 else self._shard(shard).row(key)
        return None if row is None else (shard, row)

    def _locate(self, key: str) -> tuple[int, int]:
        place = self._find(key)
        if place is None:
            raise KeyError(key)
        return place

    def _open(self, shard: int) -> FeatureShard:
        opened = FeatureShard(self._paths[shard], self.columns, self._digest, self._sizes[shard], self._verify)
        self._open_shards.add(opened)
        return opened
