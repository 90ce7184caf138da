"""What a row of features is: its columns, their form on the disk, and int8 with one scale a region or token.

Parquet's types are 4 bytes wide at the least but for FLOAT16: a column of int16 takes 4 bytes a number there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.store.atomic import digest

SCALES = "_scales"
CHECKSUM = "_checksum"


@dataclass(frozen=True)
class Column:
    """A column of features. A row is an array of (n, *shape), n being the image's number of boxes, cells or patches.

    `tensor`: stored as raw bytes, which SQL does not look into; else as a list, which it does. `per_image`: one array
    of `shape` an image. An "int8" tensor is quantised: it is written from floats and has a second column of scales.
    """

    dtype: str
    shape: tuple[int, ...] = ()
    tensor: bool = False
    per_image: bool = False

    def __post_init__(self) -> None:
        if np.dtype(self.dtype).kind not in "iuf":
            raise ValueError(f"a column of {self.dtype} cannot be stored: integers and floats can")
        if self.quantised and (self.per_image or not self.shape):
            raise ValueError("an int8 tensor has a row a region or token, each with its scale")

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> "Column":
        """From the identity's JSON; `described` gives it back."""
        return cls(
            described["dtype"], tuple(described["shape"]), described["tensor"], described.get("per_image", False)
        )

    @property
    def described(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "shape": list(self.shape), "tensor": self.tensor, "per_image": self.per_image}

    @property
    def quantised(self) -> bool:
        return self.tensor and self.dtype == "int8"

    @cached_property
    def stored(self) -> np.dtype:
        """The numbers' form in the file, little-endian."""
        dtype = np.dtype(self.dtype)
        if not self.tensor and dtype.kind in "iu" and dtype.itemsize < 4:
            dtype = np.dtype(np.int32)
        return dtype.newbyteorder("<")

    @cached_property
    def size(self) -> int:
        """Bytes in the file of one of the n, or of the image's one array."""
        return self.stored.itemsize * int(np.prod(self.shape, dtype=np.int64))

    def row_shape(self, n: int) -> tuple[int, ...]:
        return self.shape if self.per_image else (n, *self.shape)

    @property
    def field(self) -> pa.DataType:
        if self.tensor:
            return pa.large_binary()
        item = pa.field("element", pa.from_numpy_dtype(np.dtype(self.dtype)), nullable=False)
        return pa.list_(item, int(np.prod(self.shape, dtype=np.int64))) if self.per_image else pa.list_(item)


@dataclass(frozen=True)
class ImageFeatures:
    """The features of one image. `key` is the image's; `arrays` maps column names to arrays of their columns' form."""

    key: str
    n: int
    arrays: Mapping[str, np.ndarray]

    def __getitem__(self, column: str) -> np.ndarray:
        return self.arrays[column]


def is_key(key: str) -> bool:
    """Whether an image may have this key: it becomes a file's name wherever features go out."""
    return bool(key) and len(key) < 200 and key.isprintable() and not {"/", "\\"} & set(key) and key.strip(". ") != ""


class NotFiniteError(ValueError):
    """A row holds NaN or infinity, or numbers beyond what its dtype can hold."""


def stored_columns(columns: Mapping[str, Column]) -> dict[str, Column]:
    """The columns with those that the file has beside them: scales of int8 tensors."""
    stored: dict[str, Column] = {}
    for name, column in columns.items():
        stored[name] = column
        if column.quantised:
            stored[name + SCALES] = Column("float32", column.shape[:-1])
    return stored


def quantised(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(..., d) floats -> int8 of the same shape and (...) float32 scales; values ~ int8 * scale, to half a scale."""
    values = np.asarray(values, np.float32)
    scales = (np.abs(values).max(-1, initial=0) / 127).astype(np.float32)
    # A scale that underflowed to zero, or all zeros: the row is zero.
    safe = np.where(scales > 0, scales, 1)[..., None]
    with np.errstate(over="ignore", invalid="ignore"):
        return np.rint(values / safe).clip(-127, 127).astype(np.int8), scales


def dequantised(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The float32 that `quantised` made int8 of, to half a scale."""
    return values * scales[..., None]


def identity_digest(identity: Mapping[str, Any]) -> str:
    """Of all that the features' meaning hangs on: not of the versions of the libraries that computed them."""
    return digest({name: value for name, value in identity.items() if name != "libraries"})
