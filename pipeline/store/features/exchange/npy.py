"""NumPy's .npy out of files from outside: no pickle, and no byte is set aside that the file does not hold."""

import ast
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.store.features.exchange.published import UnreadableError

_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 10_000


def parse_npy(content: bytes) -> NDArray[Any]:
    """The array in the bytes of a .npy file (numpy.lib.format, versions 1 to 3). Raises UnreadableError.

    `numpy.load` makes room for the shape that the header states before it has read anything.
    """
    if content[:6] != _MAGIC or len(content) < 12:
        raise UnreadableError("it is no .npy")
    start, length = (10, "<H") if content[6] == 1 else (12, "<I")
    (size,) = struct.unpack_from(length, content, 8)
    if size > min(_LONGEST_HEADER, len(content) - start):
        raise UnreadableError("its .npy header is cut short")
    try:
        header = ast.literal_eval(content[start : start + size].decode())
        shape, fortran, dtype = tuple(header["shape"]), bool(header["fortran_order"]), np.dtype(header["descr"])
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError) as error:
        raise UnreadableError(f"its .npy header cannot be read ({error})") from None
    if dtype.hasobject or dtype.kind not in "biufSU":
        raise UnreadableError(f"it holds {dtype}, which is neither numbers nor text")
    if not all(isinstance(side, int) and side >= 0 for side in shape):
        raise UnreadableError(f"its .npy header states the shape {shape}")
    count = 1
    for side in shape:
        count *= side
    if count * dtype.itemsize != len(content) - start - size:
        raise UnreadableError(f"it states {shape} of {dtype}, and holds {len(content) - start - size:,} bytes")
    try:
        return np.frombuffer(content, dtype, offset=start + size).reshape(shape, order="F" if fortran else "C")
    except ValueError as error:  # sides beyond what numpy counts in
        raise UnreadableError(f"its .npy header states the shape {shape} ({error})") from None
