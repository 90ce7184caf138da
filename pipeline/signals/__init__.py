"""Signals: what is measured about every pair or image, once, so that rules can judge it under any threshold.

A group of signals is measured together and kept as a table `signals/<group>/`, one Parquet file a shard of what it
measures, in that shard's order of rows. In a rule's expression a signal of the text hides a column of the lists that
has the same name; a model's score of the image (clip_score, nsfw, alignment) is not measured where the lists bring it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import numpy as np
import pyarrow as pa

from pipeline.texts.counting import Histogram
from pipeline.texts.words import Measured, measure

Column: TypeAlias = Any
"""numpy array, or pyarrow Array or ChunkedArray."""


@dataclass(frozen=True)
class Block:
    """Some successive rows of a pairs shard, with the columns that the groups at work read."""

    rows: pa.RecordBatch

    def __getitem__(self, column: str) -> pa.Array:
        return self.rows.column(column)

    @cached_property
    def measured(self) -> Measured:
        """The texts' words, shared by the groups that ask for them."""
        return measure(self["text"])


@dataclass(frozen=True)
class Found:
    """What a group sees in one block: columns aligned with its rows, and keys to be counted over the whole corpus."""

    columns: dict[str, Column]
    keys: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Counted:
    """How often each key that `find` gave for a block occurs in the whole corpus, and what the corpus looks like."""

    frequencies: np.ndarray
    histogram: Histogram


class TextSignals(Protocol):
    """A group of signals of url and text. Instances go to worker processes."""

    @property
    def name(self) -> str: ...

    @property
    def columns(self) -> tuple[str, ...]: ...

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns of `pairs`."""

    @property
    def streams(self) -> tuple[str, ...]:
        """Streams of keys whose frequencies in the whole corpus it needs; each belongs to one group."""

    @property
    def version(self) -> int: ...

    @property
    def identity(self) -> Any:
        """What the signals hang on beside the pairs: settings, digests of what is looked up."""

    def find(self, block: Block) -> Found:
        """Measure what one block shows by itself."""

    def gather(self, found: pa.Table, counted: Mapping[str, Counted]) -> dict[str, Column]:
        """The signals of one block, out of the columns that `find` gave and the corpus' counts."""


def named_in(expressions: Iterable[str], columns: Sequence[str]) -> list[str]:
    """Those of the columns that the SQL expressions name, in upper or lower case."""
    text = "\n".join(expressions)
    return [column for column in columns if re.search(rf"(?i)(?<![\w]){re.escape(column)}(?![\w])", text)]
