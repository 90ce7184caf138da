"""The read side of an extractor's table: images' features by key, in padded batches, streamed in order or shuffled."""

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
from pipeline.store.features.buffers import Buffers
from pipeline.store.features.columns import (
    SCALES,
    Column,
    ImageFeatures,
    dequantised,
    identity_digest,
    stored_columns,
)
from pipeline.store.features.shard import FeatureShard, damaged, read_footer
from pipeline.store.features.writing import ROWS_PER_GROUP
from pipeline.store.table import Table

OPEN_SHARDS = 128
POOL_GROUPS = 32
"""Row groups that are shuffled together: some two thousand images."""
AHEAD_GROUPS = 8
"""Row groups that the kernel is asked for early, in order."""


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


@dataclass(frozen=True)
class _Place:
    shard: int
    row: int


class FeatureStore:
    """One extractor's features of a dataset.

    `identity` says what made them (kind, model, sha256 of the weights, settings, columns), `columns` their form.
    Opening reads each shard's footer; a shard that is missing, short, damaged or of another identity is a PairmillError
    that names the file, now or, for its content, when that is first read. Holds some ten bytes an image of the
    shards in use and no feature.
    """

    def __init__(self, table: Table, verify: bool = True) -> None:
        manifest = table.manifest
        self.identity: dict[str, Any] = manifest.info["identity"]
        self.columns = {name: Column.of(described) for name, described in self.identity["columns"].items()}
        self._table, self._verify = table, verify
        self._digest = identity_digest(self.identity)
        sizes = {file.name: file.bytes for shard in manifest.shards for file in shard.files}
        self._paths: list[Path] = []
        self._sizes: list[int] = []
        self._counts: list[int] = []
        firsts: list[str] = []
        for path in table.paths(".parquet"):
            if path.name.endswith(".failed.parquet"):
                continue
            footer, _ = read_footer(path, self._digest, sizes[path.name])
            if footer.num_rows:
                self._paths.append(path)
                self._sizes.append(sizes[path.name])
                self._counts.append(footer.num_rows)
                firsts.append(footer.row_group(0).column(0).statistics.min)
        if any(second < first for first, second in pairwise(firsts)):
            raise damaged(table.folder, "its shards do not follow one another in order of key")
        self._firsts = np.array([first.encode() for first in firsts], np.bytes_)
        self._shard = lru_cache(maxsize=OPEN_SHARDS)(self._open)
        self._buffers = Buffers()

    @classmethod
    def open(cls, root: Path | str, extractor: str, verify: bool = True) -> "FeatureStore":
        """The features that `extractor` made of the dataset in the folder `root`. `verify`: compare checksums."""
        dataset = Dataset(root)
        table = dataset.features(extractor)
        if not table.exists:
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

    def place(self, key: str) -> tuple[int, int]:
        """(shard, row group) of an image: what a reader that wants few seeks groups its samples by."""
        place = self._locate(key)
        return place.shard, place.row // ROWS_PER_GROUP

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
        return self._gather(list(keys), [self._locate(key) for key in keys], columns, positions, pin)

    def stream(
        self,
        batch_size: int,
        *,
        columns: Iterable[str] | None = None,
        where: str | None = "true",
        keys: Iterable[str] | None = None,
        seed: int | None = None,
        pool_groups: int = POOL_GROUPS,
    ) -> Iterator[Padded]:
        """Batches of `batch_size` images, the last perhaps smaller; each image once.

        `where`: SQL over the view `kept`, such as "split = 'train'": pairs that were dropped yield no image, whatever
        features there are of it; None asks nobody. `keys`: of these only. `seed`: shuffled by it, row groups first and
        then the images of each `pool_groups` of them; without, in order of key.
        """
        wanted = self._wanted(where, keys)
        groups = [
            (shard, group) for shard, count in enumerate(self._counts) for group in range(-(-count // ROWS_PER_GROUP))
        ]
        random = None if seed is None else np.random.default_rng(seed)
        if random is not None:
            random.shuffle(groups)
        asked = self._asked(columns)
        pool = pool_groups if random is not None else AHEAD_GROUPS
        pools = [groups[first : first + pool] for first in range(0, len(groups), pool)]
        waiting: list[tuple[str, _Place]] = []
        with ThreadPoolExecutor(1, "readahead") as ahead:
            for number, members in enumerate(pools):
                if number == 0:
                    self._advise(members, asked)
                if number + 1 < len(pools):
                    ahead.submit(self._advise, pools[number + 1], asked)
                rows = [row for shard, group in members for row in self._rows(shard, group, wanted)]
                if random is not None:
                    random.shuffle(rows)
                waiting += rows
                whole = len(waiting) - len(waiting) % batch_size if number + 1 < len(pools) else len(waiting)
                for first in range(0, whole, batch_size):
                    batch = waiting[first : min(first + batch_size, whole)]
                    yield self._gather([key for key, _ in batch], [place for _, place in batch], columns)
                waiting = waiting[whole:]

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

    def _wanted(self, where: str | None, keys: Iterable[str] | None) -> np.ndarray | None:
        """The sorted keys that are to be yielded, or None for all."""
        dataset = Dataset(self._table.folder.parent.parent)
        wanted = None if keys is None else np.unique(np.array([key.encode() for key in keys], np.bytes_))
        if where is not None and dataset.filtered.exists and dataset.images.exists:
            with dataset.connect() as connection:
                query = f"SELECT DISTINCT key FROM kept WHERE {where} ORDER BY key"
                found = connection.execute(query).fetchnumpy()["key"]
            kept = np.array([key.encode() for key in found], np.bytes_)
            wanted = kept if wanted is None else np.intersect1d(wanted, kept)
        elif where not in (None, "true"):
            raise PairmillError(f"{dataset.root} has no verdicts to ask: {where}", "run `make filter` first")
        return wanted

    def _rows(self, shard: int, group: int, wanted: np.ndarray | None) -> list[tuple[str, _Place]]:
        opened = self._shard(shard)
        rows = opened.rows_of(group)
        keys = opened.keys[rows]
        chosen = range(len(keys)) if wanted is None else np.flatnonzero(np.isin(keys, wanted)).tolist()
        return [(keys[at].decode(), _Place(shard, rows.start + at)) for at in chosen]

    def _advise(self, groups: Sequence[tuple[int, int]], columns: dict[str, Column]) -> None:
        for shard, group in groups:
            self._shard(shard).advise(group, columns)

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

    def _gather(
        self,
        keys: list[str],
        places: list[_Place],
        columns: Iterable[str] | None,
        positions: Sequence[np.ndarray] | None = None,
        pin: bool = False,
    ) -> Padded:
        shards = [self._shard(place.shard) for place in places]
        spans = [shard.span(place.row) for shard, place in zip(shards, places, strict=True)]
        n = np.array([span.stop - span.start for span in spans] if positions is None else list(map(len, positions)))
        longest = int(n.max(initial=0))
        arrays: dict[str, np.ndarray] = {}
        for name, column in self._asked(columns).items():
            shape = (len(keys), *column.row_shape(longest))
            out = self._room(shape, np.dtype(column.dtype), pin)
            arrays[name] = out
            raw = out.reshape(-1).view(np.uint8)
            stride, target = len(raw) // max(1, len(keys)), raw.data
            for at, (shard, span) in enumerate(zip(shards, spans, strict=True)):
                start = at * stride
                if positions is not None and not column.per_image:
                    taken = _taken(shard.content(name, span), positions[at], n=span.stop - span.start)
                    end = start + len(taken)
                    target[start:end] = taken
                elif column.tensor:
                    end = start + shard.size(name, span)
                    shard.read_tensor(name, span, target[start:end])
                else:
                    content = shard.content(name, span)
                    end = start + len(content)
                    target[start:end] = content
                raw[end : start + stride] = 0
        return Padded(tuple(keys), n.astype(np.int64), arrays)

    def _room(self, shape: tuple[int, ...], dtype: np.dtype, pin: bool) -> np.ndarray:
        if not pin:
            return self._buffers.empty(shape, dtype)
        import torch

        # torch keeps such memory for the next batch, and waits for copies from it that are under way.
        return torch.empty(shape, dtype=getattr(torch, dtype.name), pin_memory=True).numpy()

    def _find(self, key: str) -> _Place | None:
        shard = int(np.searchsorted(self._firsts, key.encode(), side="right")) - 1
        row = None if shard < 0 else self._shard(shard).row(key)
        return None if row is None else _Place(shard, row)

    def _locate(self, key: str) -> _Place:
        place = self._find(key)
        if place is None:
            raise KeyError(key)
        return place

    def _open(self, shard: int) -> FeatureShard:
        return FeatureShard(self._paths[shard], self.columns, self._digest, self._sizes[shard], self._verify)


def _taken(content: memoryview, positions: np.ndarray, n: int) -> memoryview:
    """Of the bytes of n equal items those at these positions."""
    return np.frombuffer(content, np.uint8).reshape(n, len(content) // max(1, n))[positions].reshape(-1).data
