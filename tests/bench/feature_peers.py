"""How others keep and read region features: peers, run by a Python of its own that has them (and none of this project).

`python tests/bench/feature_peers.py write LAYOUT FLAT FOLDER` makes a layout from a folder of flat arrays;
`python tests/bench/feature_peers.py read LAYOUT FOLDER --workers N [--warm]` goes through it once, shuffled, in padded
batches of 64, and prints how many images and regions it saw in how many seconds, its start not counted. With `--warm`
it goes through it once before, uncounted, and tells of that pass the sum of each column's bits.
"""

import argparse
import base64
import io
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

BATCH = 64
SHARD = 250
# LXMERT's names for what the flat arrays call otherwise; its features are float32.
TSV_COLUMNS = {
    "classes": "objects_id",
    "confidences": "objects_conf",
    "topk_ids": "attrs_id",
    "topk_values": "attrs_conf",
    "boxes": "boxes",
    "features": "features",
}
TSV_FIELDS = ["img_id", "img_h", "img_w", *list(TSV_COLUMNS.values())[:4], "num_boxes", "boxes", "features"]

Sample = Mapping[str, np.ndarray]


def samples(flat: str | Path) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """(key, column -> (n, ...) array) of each image."""
    folder = Path(flat)
    offsets = np.load(folder / "offsets.npy")
    columns = {
        path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy")) if path.stem != "offsets"
    }
    for image, (begin, end) in enumerate(pairwise(offsets)):
        yield f"{image:09d}", {name: np.array(column[begin:end]) for name, column in columns.items()}


def collate(batch: list[Sample]) -> dict[str, torch.Tensor]:
    """Padded to the longest, each column copied once."""
    counts = [len(sample["features"]) for sample in batch]
    padded = {"n": torch.tensor(counts)}
    for name, array in batch[0].items():
        out = np.zeros((len(batch), max(counts), *array.shape[1:]), array.dtype)
        for row, sample in enumerate(batch):
            out[row, : counts[row]] = sample[name]
        padded[name] = torch.from_numpy(out)
    return padded


def shuffled(dataset: Dataset, workers: int) -> Iterable[dict[str, torch.Tensor]]:
    """What most who train write: a DataLoader with `shuffle`."""
    return DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, collate_fn=collate)


class WebDatasetLayout:
    """Tars of .npy members, 250 images each, read with its own pipeline and a shuffle buffer of 1000."""

    def write(self, flat: Path, folder: Path) -> None:
        import webdataset as wds

        with wds.ShardWriter(f"{folder}/%05d.tar", maxcount=SHARD, maxsize=1 << 40, verbose=0) as writer:
            for key, arrays in samples(flat):
                writer.write({"__key__": key, **{f"{name}.npy": array for name, array in arrays.items()}})

    def read(self, folder: Path, workers: int) -> Iterable[dict[str, torch.Tensor]]:
        import webdataset as wds

        tars = sorted(map(str, folder.glob("*.tar")))
        dataset = wds.WebDataset(tars, shardshuffle=len(tars), seed=0).shuffle(1000).decode()
        dataset = dataset.batched(BATCH, collation_fn=self._collate)
        return wds.WebLoader(dataset, batch_size=None, num_workers=workers)

    @staticmethod
    def _collate(batch: list[dict]) -> dict[str, torch.Tensor]:
        return collate(
            [
                {name.removesuffix(".npy"): array for name, array in members.items() if name.endswith(".npy")}
                for members in batch
            ]
        )


class LmdbLayout(Dataset):
    """One npz an image, as a value of an LMDB, opened as UNITER opens it: with readahead, into buffers.

    UNITER's are compressed; these are not, since they load in a fraction of the time.
    """

    def write(self, flat: Path, folder: Path) -> None:
        import lmdb

        keys = []
        with lmdb.open(str(folder), map_size=1 << 40) as environment:
            for first in _chunks(samples(flat)):
                with environment.begin(write=True) as transaction:
                    for key, arrays in first:
                        value = io.BytesIO()
                        np.savez(value, **arrays)
                        transaction.put(key.encode(), value.getvalue())
                        keys.append(key)
        (folder / "keys.json").write_text(json.dumps(keys))

    def read(self, folder: Path, workers: int) -> Iterable[dict[str, torch.Tensor]]:
        self.folder, self.transaction = folder, None
        self.keys = json.loads((folder / "keys.json").read_text())
        return shuffled(self, workers)

    def _get(self, key: str) -> memoryview:
        import lmdb

        if self.transaction is None:  # each process opens its own
            environment = lmdb.open(str(self.folder), readonly=True, create=False, readahead=True, lock=False)
            self.transaction = environment.begin(buffers=True)
        return self.transaction.get(key.encode())

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, position: int) -> Sample:
        with np.load(io.BytesIO(self._get(self.keys[position])), allow_pickle=False) as arrays:
            return dict(arrays)


class TsvLayout(Dataset):
    """Lines of base64, as LXMERT's, with the lines' offsets beside them, as Oscar's."""

    def write(self, flat: Path, folder: Path) -> None:
        offsets = []
        with open(folder / "features.tsv", "wb") as file:
            for key, arrays in samples(flat):
                offsets.append(file.tell())
                arrays["features"] = arrays["features"].astype(np.float32)
                fields = {name: base64.b64encode(arrays[own]).decode() for own, name in TSV_COLUMNS.items()}
                fields |= {"img_id": key, "img_h": "600", "img_w": "800", "num_boxes": str(len(arrays["classes"]))}
                file.write(("\t".join(fields[name] for name in TSV_FIELDS) + "\n").encode())
        (folder / "features.lineidx").write_text("\n".join(map(str, offsets)))

    def read(self, folder: Path, workers: int) -> Iterable[dict[str, torch.Tensor]]:
        self.path = folder / "features.tsv"
        self.offsets = [int(line) for line in (folder / "features.lineidx").read_text().split()]
        self.file: io.BufferedReader | None = None
        return shuffled(self, workers)

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, position: int) -> Sample:
        if self.file is None:
            self.file = open(self.path, "rb")  # noqa: SIM115 - for as long as the process lasts
        self.file.seek(self.offsets[position])
        fields = dict(zip(TSV_FIELDS, self.file.readline().split(b"\t"), strict=True))
        n = int(fields["num_boxes"])

        def decoded(name: str, dtype: type, *shape: int) -> np.ndarray:
            return np.frombuffer(base64.b64decode(fields[TSV_COLUMNS[name]]), dtype).reshape(n, *shape)

        return {
            "boxes": decoded("boxes", np.float32, 4),
            "classes": decoded("classes", np.int32),
            "confidences": decoded("confidences", np.float32),
            "topk_ids": decoded("topk_ids", np.int32, -1),
            "topk_values": decoded("topk_values", np.float32, -1),
            "features": decoded("features", np.float32, -1),
        }


class LitDataLayout:
    """LitData's chunks of 64 MB, read by its own streaming dataset and loader."""

    def write(self, flat: Path, folder: Path) -> None:
        from litdata.streaming import Cache

        # What `litdata.optimize` writes with, without its processes and its look for a cloud.
        cache = Cache(str(folder), chunk_bytes="64MB")
        number = 0
        for number, (_, arrays) in enumerate(samples(flat), start=1):
            cache[number - 1] = arrays
        cache.done()
        cache.merge()

    def read(self, folder: Path, workers: int) -> Iterable[dict[str, torch.Tensor]]:
        from litdata import StreamingDataLoader, StreamingDataset

        dataset = StreamingDataset(str(folder), shuffle=True, seed=0)
        return StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=collate)


class MdsLayout:
    """Mosaic's shards of 64 MB, read by its own streaming dataset."""

    def write(self, flat: Path, folder: Path) -> None:
        from streaming import MDSWriter

        _, first = next(samples(flat))
        columns = {name: f"ndarray:{array.dtype}" for name, array in first.items()}
        with MDSWriter(out=str(folder), columns=columns, size_limit="64mb") as writer:
            for _, arrays in samples(flat):
                writer.write(arrays)

    def read(self, folder: Path, workers: int) -> Iterable[dict[str, torch.Tensor]]:
        from streaming import StreamingDataset
        from streaming.base.util import clean_stale_shared_memory

        clean_stale_shared_memory()
        dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
        return DataLoader(dataset, BATCH, num_workers=workers, collate_fn=collate)


LAYOUTS = {
    "webdataset": WebDatasetLayout,
    "lmdb": LmdbLayout,
    "tsv": TsvLayout,
    "litdata": LitDataLayout,
    "mds": MdsLayout,
}


def _chunks(items: Iterable) -> Iterator[list]:
    chunk: list = []
    for item in items:
        chunk.append(item)
        if len(chunk) == SHARD:
            yield chunk
            chunk = []
    yield chunk


def sums(batches: Iterable[Mapping[str, torch.Tensor]]) -> dict[str, int]:
    """Of each column the sum of its values' bits as whole numbers; features count as fp16."""
    totals: dict[str, int] = {}
    for batch in batches:
        for name, tensor in batch.items():
            values = tensor.numpy()
            if name == "features":
                values = values.astype(np.float16, copy=False)
            whole = values.view(f"u{values.itemsize}") if values.dtype.kind == "f" else values
            totals[name] = totals.get(name, 0) + int(whole.sum(dtype=np.uint64))
    return totals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("do", choices=["write", "read"])
    parser.add_argument("layout", choices=LAYOUTS)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--warm", action="store_true")
    options = parser.parse_args()
    layout = LAYOUTS[options.layout]()
    if options.do == "write":
        flat, folder = options.folders
        layout.write(flat, folder)
        return
    batches = layout.read(options.folders[0], options.workers)
    told = sums(batches) if options.warm else None
    started = time.perf_counter()
    images = regions = 0
    for batch in batches:
        images += len(batch["n"])
        regions += int(batch["n"].sum())
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "images": images, "regions": regions, "sums": told}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
