"""Rows' bytes from mapped files into an array, compiled: Python would take as long for a row as the copy itself."""

from typing import Any

import numpy as np
from numba import njit, types

# Symbols of the C library, which is in every process. Pointers are passed as integers.
_memcpy: Any = types.ExternalFunction("memcpy", types.uintp(types.uintp, types.uintp, types.uintp))
_memset: Any = types.ExternalFunction("memset", types.uintp(types.uintp, types.int32, types.uintp))


@njit("void(uint64[::1], int64[::1], uint64, int64)", nogil=True, cache=True)
def copy_rows(sources: np.ndarray, sizes: np.ndarray, target: int, stride: int) -> None:
    """Copy `sizes[i]` bytes from the address `sources[i]` to `target + i * stride`; zeros from there to the next."""
    for i in range(len(sources)):
        start, size = target + np.uint64(i * stride), np.uint64(sizes[i])
        _memcpy(start, sources[i], size)
        _memset(start + size, 0, np.uint64(stride) - size)
