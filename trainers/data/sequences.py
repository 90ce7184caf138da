"""Token sequences of a whole corpus as two arrays, and batches of them without a loop over tokens."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa


@dataclass(frozen=True, eq=False)
class Sequences:
    """Sequences of numbers, one after the other in one array."""

    tokens: np.ndarray
    """All of them: the smallest unsigned integers that hold them."""
    starts: np.ndarray
    """(sequences + 1,) int64: where each begins."""

    @classmethod
    def of(cls, sequences: Iterable[Sequence[int]], dtype: np.dtype | type = np.int64) -> "Sequences":
        there = sequences if isinstance(sequences, Sequence) else list(sequences)
        lengths = np.fromiter(map(len, there), np.int64, len(there))
        return cls(np.fromiter(chain.from_iterable(there), dtype, int(lengths.sum())), _starts(lengths))

    @classmethod
    def together(cls, parts: Sequence["Sequences"]) -> "Sequences":
        """One after another; the parts may be empty, and there is at least one."""
        lengths = np.concatenate([part.lengths for part in parts])
        return cls(np.concatenate([part.tokens for part in parts]), _starts(lengths))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        tokens: np.ndarray = self.tokens[self.starts[row] : self.starts[row + 1]]
        return tokens

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """(sequences,) int64."""
        lengths: np.ndarray = np.diff(self.starts)
        return lengths

    def at(self, rows: np.ndarray) -> "Sequences":
        """The sequences at `rows` (N,), in that order; a row may come more than once."""
        lengths = self.starts[rows + 1] - self.starts[rows]
        starts = _starts(lengths)
        places = np.arange(starts[-1]) + np.repeat(self.starts[rows] - starts[:-1], lengths)
        return Sequences(self.tokens[places], starts)

    def before(self, others: "Sequences") -> "Sequences":
        """Each with the one of the same row of `others` behind it."""
        lengths, more = self.lengths, others.lengths
        starts = _starts(lengths + more)
        tokens = np.empty(starts[-1], np.promote_types(self.tokens.dtype, others.tokens.dtype))
        first = np.arange(len(self.tokens)) + np.repeat(starts[:-1] - self.starts[:-1], lengths)
        second = np.arange(len(others.tokens)) + np.repeat(starts[:-1] + lengths - others.starts[:-1], more)
        tokens[first], tokens[second] = self.tokens, others.tokens
        return Sequences(tokens, starts)

    def padded(self, filling: int) -> np.ndarray:
        """(sequences, longest) int64."""
        lengths = self.lengths
        padded = np.full((len(self), int(lengths.max(initial=0))), filling, np.int64)
        padded[np.arange(padded.shape[1]) < lengths[:, None]] = self.tokens
        return padded

    def numbered(self) -> np.ndarray:
        """(sequences,) int32: equal sequences have equal numbers, from 0 on in order of appearance."""
        offsets = pa.py_buffer(np.ascontiguousarray(self.starts * self.tokens.itemsize, dtype=np.int64))
        values = pa.py_buffer(np.ascontiguousarray(self.tokens))
        binary = pa.Array.from_buffers(pa.large_binary(), len(self), [None, offsets, values])
        return np.asarray(binary.dictionary_encode().indices, dtype=np.int32)


def _starts(lengths: np.ndarray) -> np.ndarray:
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts
