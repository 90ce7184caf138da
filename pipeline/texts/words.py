"""What a word is, once for every rule: the words of texts, how many there are, and 64-bit keys to count them by.

A word is a segment between two word boundaries of Unicode's UAX #29 that holds a letter or a digit, lower-cased letter
by letter, without regard to its neighbours. Scripts written without spaces (Chinese, Japanese, Thai, Lao, Khmer,
Burmese) are divided by ICU's dictionaries, and Korean syllables join no other letters, as in ICU. One thing differs
from ICU's segments on purpose: an emoji is never part of a word, not even when a zero-width joiner glues it to a letter
(rule WB3c). Bytes that are not UTF-8 are read as U+FFFD.

Texts are read where Arrow keeps them, as bytes and offsets, by compiled loops: no Python object is made for a text,
save for those that ICU has to divide.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from icu4py.breakers import WordBreaker
from numba import njit
from numpy.typing import NDArray

from pipeline.texts.segments import SEED, decode, identify, letters, mix, step, tokenise


@dataclass(frozen=True)
class Measured:
    """One block of texts, in their order."""

    words: NDArray[np.int32]
    """Number of words, n."""
    characters: NDArray[np.int32]
    """Number of code points, n."""
    repetition: NDArray[np.float64]
    """Share of the words that repeat an earlier one, n: 1 - distinct / words, 0 where there is no word (CC12M)."""
    text_keys: NDArray[np.uint64]
    """Keys of the texts as they are, not lower-cased, n."""
    ngram_keys: NDArray[np.uint64]
    """Text by text, max(0, 2 words - 1) of each: first word, first pair, second word, second pair, ..., last word."""


def measure(texts: pa.Array) -> Measured:
    """Measure an array of strings without nulls.

    The keys are the same on every machine. Memory: about 8 bytes a key above the texts' own.
    """
    data, offsets = _buffers(texts)
    table = letters()
    characters, text_keys, continuous = identify(data, offsets, table.classes, table.unspaced)
    if continuous.any():
        data, offsets = _buffers(_divided(texts, continuous))
    words, ngram_keys, _ = tokenise(data, offsets, table.classes, table.lower, False)
    return Measured(words, characters, _repetition(words, ngram_keys), text_keys, ngram_keys)


def words_of(text: str) -> list[str]:
    """The words of one text, lower-cased: what `measure` counts."""
    texts = pa.array([text.encode("utf-8", "replace").decode()], pa.large_string())
    data, offsets = _buffers(texts)
    table = letters()
    _, _, continuous = identify(data, offsets, table.classes, table.unspaced)
    if continuous.any():
        data, offsets = _buffers(_divided(texts, continuous))
    _, _, spans = tokenise(data, offsets, table.classes, table.lower, True)
    found = [data[start:end].tobytes().decode("utf-8", "replace") for start, end in spans]
    return ["".join(chr(table.lower[ord(letter)]) for letter in word) for word in found]


def text_keys(texts: pa.Array) -> NDArray[np.uint64]:
    """64-bit keys of strings as they are: to count urls or other columns by. Equal to `Measured.text_keys`."""
    table = letters()
    _, keys, _ = identify(*_buffers(texts), table.classes, table.unspaced)
    return keys


def repetition_ratios(texts: pa.Array, n: int = 10) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Repetition of characters and of words in texts, by their runs of `n` (Data-Juicer's two repetition filters).

    For words: the share of the runs of n words that occur more than once. For characters (code points, as written):
    the share of the k most frequent runs of n, where k is the number of repeated runs, or the root of the number of
    distinct runs if that is less. 0 where a text is too short for a run. Unlike Data-Juicer's, words are those of
    this module, not what stands between blanks.
    """
    if n < 1:
        raise ValueError(f"runs of {n} cannot be counted")
    data, offsets = _buffers(texts)
    table = letters()
    characters, _, continuous = identify(data, offsets, table.classes, table.unspaced)
    symbols = _code_points(data, offsets, int(characters.sum()))
    by_character = _repeated_runs(symbols, characters.astype(np.int64), n, True)
    if continuous.any():
        data, offsets = _buffers(_divided(texts, continuous))
    words, keys, _ = tokenise(data, offsets, table.classes, table.lower, False)
    return by_character, _repeated_runs(_without_pairs(words, keys), words.astype(np.int64), n, False)


def _buffers(texts: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """An array's UTF-8 bytes and its n + 1 offsets into them."""
    if texts.null_count:
        raise ValueError("texts must not be null")
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        texts = texts.cast(pa.large_string())
    wide = pa.types.is_large_string(texts.type)
    _, offsets_buffer, data_buffer = texts.buffers()
    if not len(texts) or data_buffer is None:
        return np.empty(0, np.uint8), np.zeros(len(texts) + 1, np.int64)
    offsets: NDArray[Any] = np.frombuffer(offsets_buffer, np.int64 if wide else np.int32)
    offsets = offsets[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    return np.frombuffer(data_buffer, np.uint8), offsets


def _divided(texts: pa.Array, continuous: NDArray[np.bool_]) -> pa.Array:
    """The texts, with blanks between ICU's segments in those marked `continuous`."""
    chosen = texts.cast(pa.large_string()).filter(pa.array(continuous)).cast(pa.large_binary())
    divided = [" ".join(WordBreaker(text.decode("utf-8", "replace"), "")) for text in chosen.to_pylist()]
    everything = np.zeros(len(texts), np.int64)
    everything[continuous] = np.arange(len(texts), len(texts) + len(divided))
    everything[~continuous] = np.flatnonzero(~continuous)
    both = pa.concat_arrays([texts.cast(pa.large_string()), pa.array(divided, pa.large_string())])
    return both.take(pa.array(everything))


@njit(cache=True, nogil=True)
def _without_pairs(words: Any, ngram_keys: Any) -> Any:
    """The keys of the words alone."""
    keys = np.empty(words.astype(np.int64).sum(), np.uint64)
    start = used = 0
    for count in words:
        for word in range(count):
            keys[used] = ngram_keys[start + 2 * word]
            used += 1
        start += max(0, 2 * count - 1)
    return keys


@njit(cache=True, nogil=True)
def _repetition(words: Any, ngram_keys: Any) -> Any:
    shares = np.zeros(len(words), np.float64)
    longest = words.max() if len(words) else 0
    size = 16
    while size <= 2 * longest:
        size *= 2
    slots = np.empty(size, np.uint64)
    written = np.full(size, -1, np.int64)  # the text that wrote a slot: none has to be emptied between texts
    start = 0
    for row in range(len(words)):
        count = words[row]
        in_use = 16  # of the slots: a short text's stay in the cache
        while in_use <= 2 * count:
            in_use *= 2
        mask = np.uint64(in_use - 1)
        repeated = 0
        for word in range(count):
            key = ngram_keys[start + 2 * word]
            slot = key & mask
            while written[slot] == row and slots[slot] != key:
                slot = (slot + np.uint64(1)) & mask
            if written[slot] == row:
                repeated += 1
            else:
                written[slot] = row
                slots[slot] = key
        if count:
            shares[row] = repeated / count
        start += max(0, 2 * count - 1)
    return shares


@njit(cache=True, nogil=True)
def _code_points(data: Any, offsets: Any, total: Any) -> Any:
    points = np.empty(total, np.uint64)
    used = 0
    for row in range(len(offsets) - 1):
        at, end = offsets[row], offsets[row + 1]
        while at < end:
            code, at = decode(data, at, end)
            points[used] = code
            used += 1
    return points


@njit(cache=True, nogil=True)
def _repeated_runs(symbols: Any, lengths: Any, n: int, at_most_root: bool) -> Any:
    """The share of each text's runs of `n` symbols that are repeated; of the most frequent ones if `at_most_root`."""
    shares = np.zeros(len(lengths), np.float64)
    start = 0
    for row in range(len(lengths)):
        runs = lengths[row] - n + 1
        if runs > 1:
            keys = np.empty(runs, np.uint64)
            for run in range(runs):
                state = SEED
                for place in range(n):
                    state = step(state, symbols[start + run + place])
                keys[run] = mix(state)
            keys.sort()
            counts = np.empty(runs, np.int64)
            distinct = since = 0
            repeated: Any = 0
            for run in range(1, runs + 1):
                if run == runs or keys[run] != keys[since]:
                    counts[distinct] = run - since
                    repeated += run - since > 1
                    distinct += 1
                    since = run
            if at_most_root:
                repeated = min(repeated, np.int64(np.sqrt(distinct)))
            ordered = np.sort(counts[:distinct])
            shares[row] = ordered[distinct - repeated :].sum() / runs
        start += lengths[row]
    return shares
