"""Scratch files of a few arrays each, which are read in slices: what tasks of one stage hand to each other.

A file holds the number of arrays and their sizes in bytes as int64, then the arrays one after another. It is renamed
into place when it is written, but not flushed to the disk: scratch that a power cut leaves short is recognised by its
length and made again.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PairmillError

INTEGER = np.dtype("<i8")


def write_arrays(path: Path, *arrays: NDArray[Any]) -> None:
    """Write arrays, in this machine's byte order, to a file that is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # An engine may start a task again while its lost worker still lives: each writes a file of its own.
    partial = path.with_name(f"{path.name}.{os.uname().nodename}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            np.array([len(arrays), *(array.nbytes for array in arrays)], INTEGER).tofile(file)
            for array in arrays:
                array.tofile(file)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class Arrays:
    """The arrays of one file, read in part. Raises PairmillError where the file is missing or cut short."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            count = int(np.fromfile(path, INTEGER, 1)[0])
            sizes = np.fromfile(path, INTEGER, count, offset=8)
            self._starts = np.cumsum([8 + 8 * count, *sizes])
            whole = len(sizes) == count >= 0 and path.stat().st_size == self._starts[-1]
        except (FileNotFoundError, IndexError, ValueError):
            whole = False
        if not whole:
            raise PairmillError(f"{path} is missing or cut short", "run it again: what is left is used")

    def read(self, place: int, dtype: np.dtype, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Items from `start` to before `stop` of the array at `place`."""
        first, end = int(self._starts[place]), int(self._starts[place + 1])
        stop = (end - first) // dtype.itemsize if stop is None else int(stop)
        return np.fromfile(self._path, dtype, stop - int(start), offset=first + int(start) * dtype.itemsize)


def is_whole(path: Path) -> bool:
    """Whether the file is there and as long as it was written."""
    try:
        Arrays(path)
    except PairmillError:
        return False
    return True
