"""Made-up region features as flat arrays: what the other layouts are written from, and the limit that they are held to.

A folder holds `offsets.npy` (images + 1) and one array a column, `<column>.npy` (regions, *shape): image i's regions
are the rows offsets[i] to offsets[i + 1]. Reading a batch from it is one copy and nothing else.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

BATCH = 64
CLASSES = 1600  # Visual Genome's, as bottom-up attention's detector has them
TOP_K = 10
# As UNITER's, of which a mean image has 36.
FEWEST, MOST, MEAN = 10, 100, 36
_CHUNK = 1000


def make_flat(folder: Path, images: int, width: int = 2048, seed: int = 0) -> None:
    """Write the folder, unless it is there. The features are as sparse and as skewed as what a CNN's ReLU pools to."""
    done = folder / "offsets.npy"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    n = np.minimum(FEWEST + random.exponential(1.1 * (MEAN - FEWEST), images).astype(np.int64), MOST)
    offsets = np.concatenate([[0], np.cumsum(n)])
    columns = {
        "boxes": (np.float32, (4,)),
        "classes": (np.int32, ()),
        "confidences": (np.float32, ()),
        "topk_ids": (np.int32, (TOP_K,)),
        "topk_values": (np.float32, (TOP_K,)),
        "features": (np.float16, (width,)),
    }
    files = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, (int(offsets[-1]), *shape))
        for name, (dtype, shape) in columns.items()
    }
    for first in range(0, images, _CHUNK):
        rows = slice(offsets[first], offsets[min(first + _CHUNK, images)])
        regions = rows.stop - rows.start
        corners = random.random((2, regions, 2), np.float32)
        ids = random.integers(0, CLASSES, (regions, TOP_K), np.int32)
        values = -np.sort(-random.dirichlet([0.1] * (TOP_K + 1), regions)[:, :TOP_K].astype(np.float32))
        features = np.maximum(random.standard_exponential((regions, width), np.float32) - 0.5, 0)
        made = {
            "boxes": np.concatenate([corners.min(0), corners.max(0)], 1),
            "classes": ids[:, 0],
            "confidences": values[:, 0],
            "topk_ids": ids,
            "topk_values": values,
            "features": features,
        }
        for name, array in made.items():
            files[name][rows] = array
    for file in files.values():
        file.flush()
    np.save(done, offsets)


class Flat:
    """A folder of `make_flat`, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self.offsets = np.load(folder / "offsets.npy").tolist()
        names = (path.stem for path in sorted(folder.glob("*.npy")) if path.stem != "offsets")
        # As plain arrays: a slice of np.memmap costs ten times as much.
        self.columns = {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in names}

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def rows(self, image: int) -> dict[str, np.ndarray]:
        """One image's arrays, (n, ...) each: copies, so that no row keeps the file mapped and its pages cached."""
        begin, end = self.offsets[image], self.offsets[image + 1]
        return {name: column[begin:end].copy() for name, column in self.columns.items()}

    def batches(self, images: Iterable[int], size: int = BATCH) -> Iterator[dict[str, np.ndarray]]:
        """Padded batches of these images, in buffers that the next batch is written into: one copy, no allocation."""
        order = list(images)
        buffers = {
            name: np.empty(size * MOST * int(np.prod(column.shape[1:])), column.dtype)
            for name, column in self.columns.items()
        }
        for start in range(0, len(order), size):
            places = [(self.offsets[image], self.offsets[image + 1]) for image in order[start : start + size]]
            counts = [end - begin for begin, end in places]
            longest = max(counts)
            batch: dict[str, np.ndarray] = {"n": np.array(counts)}
            for name, column in self.columns.items():
                shape = (len(places), longest, *column.shape[1:])
                padded = buffers[name][: int(np.prod(shape))].reshape(shape)
                for row, (begin, end) in enumerate(places):
                    padded[row, : end - begin] = column[begin:end]
                    padded[row, end - begin :] = 0
                batch[name] = padded
            yield batch


def sums(batches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, int]:
    """What two ways of reading the same images must agree on: of each column the sum of its values' bits, as whole
    numbers of its width, so that neither the order nor the padding matters. Floats beyond fp16 count as fp16."""
    totals: dict[str, int] = {}
    for batch in batches:
        for name, array in batch.items():
            values = np.asarray(array)
            if name == "features":
                values = values.astype(np.float16, copy=False)
            whole = np.ascontiguousarray(values).view(f"u{values.itemsize}") if values.dtype.kind == "f" else values
            totals[name] = totals.get(name, 0) + int(whole.sum(dtype=np.uint64))
    return totals
