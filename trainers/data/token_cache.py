"""Tokenised corpora, kept by what they were made from: large ones take minutes, at every start of every run.

A run that is carried on, or another one on the same texts, finds them beside the dataset. The folder may be removed at
any time.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import tokenizers
import xxhash
from tokenizers import Tokenizer

from pipeline.errors import PairmillError
from pipeline.store.arrays import Arrays, write_arrays
from trainers.data.sequences import Sequences
from trainers.data.text import sequences, train_tokenizer

VERSION = 1
WORTHWHILE = 100_000
"""Fewer texts are tokenised anew."""
MOST_FILES = 32
"""The longest unused go when there are more."""


@dataclass(frozen=True)
class TokenCache:
    """What `train_tokenizer` and `sequences` give, from `folder` where it is there already."""

    folder: Path

    def tokenizer(self, columns: Sequence[pa.LargeStringArray], vocabulary: int) -> Tokenizer:
        """As `train_tokenizer`, on all texts of `columns`."""
        texts = pa.chunked_array(columns, pa.large_string()).combine_chunks()
        if len(texts) < WORTHWHILE:
            return train_tokenizer(texts, vocabulary)
        path = self._path(texts, vocabulary)
        found = self._read(path, np.dtype("u1"))
        if found is not None:
            return Tokenizer.from_buffer(found[0].tobytes())
        tokenizer = train_tokenizer(texts, vocabulary)
        self._write(path, np.frombuffer(tokenizer.to_str().encode(), "u1"))
        return tokenizer

    def sequences(self, tokenizer: Tokenizer, texts: pa.LargeStringArray, max_tokens: int) -> Sequences:
        if len(texts) < WORTHWHILE:
            return sequences(tokenizer, texts, max_tokens)
        path = self._path(texts, tokenizer.to_str(), max_tokens)
        found = self._read(path, np.min_scalar_type(tokenizer.get_vocab_size()), np.dtype("i8"))
        if found is not None:
            return Sequences(*found)
        made = sequences(tokenizer, texts, max_tokens)
        self._write(path, made.tokens, made.starts)
        return made

    def _path(self, texts: pa.LargeStringArray, *how: str | int) -> Path:
        digest = xxhash.xxh3_128(repr((VERSION, tokenizers.__version__, how)).encode())
        offsets, content = texts.buffers()[1:]
        starts = np.frombuffer(offsets, np.int64, len(texts) + 1, 8 * texts.offset)
        digest.update((starts - starts[0]).tobytes())
        digest.update(memoryview(content)[starts[0] : starts[-1]])
        return self.folder / digest.hexdigest()

    def _read(self, path: Path, *dtypes: np.dtype) -> list[np.ndarray] | None:
        """None where nothing is kept, or not all of it."""
        try:
            kept = Arrays(path)
            path.touch()
            return [kept.read(place, dtype) for place, dtype in enumerate(dtypes)]
        except PairmillError:
            return None

    def _write(self, path: Path, *arrays: np.ndarray) -> None:
        write_arrays(path, *arrays)
        with suppress(FileNotFoundError):  # other processes of the same run do the same
            by_use = sorted(self.folder.iterdir(), key=lambda other: other.stat().st_mtime, reverse=True)
            for unused in by_use[MOST_FILES:]:
                unused.unlink()
