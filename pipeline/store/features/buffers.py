"""Memory for batches, used again as soon as nobody holds the arrays that were made of it.

Fresh memory costs a page fault every 4 KB, as much as the copy into it. An array from here may be kept as long as one
likes; its memory comes back when the array, its views and the tensors made of it are gone.
"""

import contextlib
import mmap
import threading
import weakref
from typing import Protocol

import numpy as np

SMALL = 1 << 20
"""Bytes below which numpy's own allocation is as good."""
KEPT = 4
"""How many free pieces are kept at most: as many as a loader has under way."""


class Room(Protocol):
    """Where a batch's arrays come from."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype, name: str) -> np.ndarray:
        """An array for the column `name`, whose content is whatever was there."""
        ...


class Pinned:
    """Page-locked memory. torch keeps it for the next batch, and waits for copies from it that are under way."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype, name: str) -> np.ndarray:
        import torch

        return torch.empty(shape, dtype=getattr(torch, dtype.name), pin_memory=True).numpy()


class Overwritten:
    """The same memory for a column's every batch."""

    def __init__(self) -> None:
        self._pieces: dict[str, np.ndarray] = {}

    def empty(self, shape: tuple[int, ...], dtype: np.dtype, name: str) -> np.ndarray:
        count = int(np.prod(shape, dtype=np.int64))
        if name not in self._pieces or len(self._pieces[name]) < count:
            self._pieces[name] = np.empty(count + count // 4, dtype)
        return self._pieces[name][:count].reshape(shape)


class Buffers:
    """A pool of page-aligned memory. Threads may share it."""

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []
        self._lock = threading.Lock()

    def empty(self, shape: tuple[int, ...], dtype: np.dtype, name: str) -> np.ndarray:
        count = int(np.prod(shape, dtype=np.int64))
        size = count * dtype.itemsize
        if size < SMALL:
            return np.empty(shape, dtype)
        piece = self._take(size)
        # Views of an array hold on to the array that lies over a foreign buffer, which is this one.
        owner = np.frombuffer(piece, dtype, count)
        weakref.finalize(owner, self._give_back, piece).atexit = False
        return owner.reshape(shape)

    def _take(self, size: int) -> mmap.mmap:
        with self._lock:
            fitting = [piece for piece in self._free if size <= len(piece) <= 2 * size]
            if fitting:
                piece = min(fitting, key=len)
                self._free.remove(piece)
                return piece
        piece = mmap.mmap(-1, size + size // 4)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without them
                piece.madvise(mmap.MADV_HUGEPAGE)
        return piece

    def _give_back(self, piece: mmap.mmap) -> None:
        with self._lock:
            self._free.append(piece)
            if len(self._free) > KEPT:
                self._free.pop(0)
