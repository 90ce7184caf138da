"""Made-up pairs in any number, as the table `pairs` that `ingest` would leave: what the text rules are measured on.

The words are Zipf-distributed over a million spellings, the numbers of words log-normal; separators, capitals and
letters beyond ASCII are about as frequent as in captions of the web (9.4 words, 58 characters, 6 % of the texts not
ASCII in 10 000 of them). One text in ten is boilerplate: drawn, by Zipf again, from a pool that many pairs share. A row
is a function of the seed and its number, so any part can be made by itself and is the same in every run.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.store.atomic import digest, replacing
from pipeline.store.dataset import Dataset
from pipeline.store.table import Shard

WORDS = 1_000_000
BOILERPLATE = 0.1
POOL = 200  # one boilerplate text for so many pairs: on average shared by 20, by Zipf from 3 to a hundred thousand
SAID_TWICE = 0.01
MAX_WORDS = 60
ROWS_PER_SHARD = 1_000_000
ROW_GROUP = 122_880

# Words are syllables, their number's digits: what is frequent is short, and no two are spelt alike, since a syllable is
# consonants and then vowels.
_ONSETS = ("b", "d", "k", "l", "m", "n", "s", "t", "st", "tr")
_SYLLABLES = [onset + rime for onset in _ONSETS for rime in ("a", "e", "i", "o", "ou")]
_RARE_SYLLABLE = "né"
_SEPARATORS = [" "] * 47 + [", "] * 2 + [" - "]


def _flat(strings: list[str]) -> tuple[np.ndarray, np.ndarray]:
    encoded = [string.encode() for string in strings]
    offsets = np.cumsum([0, *map(len, encoded)]).astype(np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8), offsets


@cache
def _spellings() -> tuple[np.ndarray, np.ndarray]:
    words = []
    for rank in range(WORDS):
        digits, rest = [], rank
        while True:
            digits.append(_SYLLABLES[rest % len(_SYLLABLES)])
            rest = rest // len(_SYLLABLES) - 1
            if rest < 0:
                break
        if len(digits) > 2 and rank % 64 == 63:
            digits.append(_RARE_SYLLABLE)
        words.append("".join(reversed(digits)))
    return _flat(words)


@numba.njit(cache=True, nogil=True)
def _mixed(value: np.uint64) -> np.uint64:
    """SplitMix64's finaliser."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@numba.njit(cache=True, nogil=True)
def _draw(state: np.ndarray) -> float:
    """The next number in [0, 1) of a stream."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    return (_mixed(state[0]) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@numba.njit(cache=True, nogil=True)
def _zipf(state: np.ndarray, size: int) -> int:
    """A rank from 0, with a probability of about 1 / (rank + 1): the logarithm of a Zipf rank is uniform."""
    return min(int(np.exp(_draw(state) * np.log(size + 1.0))) - 1, size - 1)


@numba.njit(cache=True, nogil=True)
def _write_texts(
    first: int,
    rows: int,
    seed: int,
    pool: int,
    words: np.ndarray,
    word_offsets: np.ndarray,
    separators: np.ndarray,
    separator_offsets: np.ndarray,
    text: np.ndarray,
    offsets: np.ndarray,
) -> int:
    """Write the texts of rows `first`.. to `text`; returns the bytes written, or -1 where they do not fit."""
    state = np.empty(1, np.uint64)
    end = 0
    for row in range(rows):
        state[0] = _mixed(np.uint64(seed + 1) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(first + row))
        if _draw(state) < BOILERPLATE:
            state[0] = _mixed(np.uint64(seed) ^ ~np.uint64(_zipf(state, pool)))
        # Log-normal with mean 9.5, by a normal number after Box and Muller.
        normal = np.sqrt(-2.0 * np.log(1.0 - _draw(state))) * np.cos(2.0 * np.pi * _draw(state))
        number = min(max(round(np.exp(2.05 + 0.63 * normal)), 1), MAX_WORDS)
        in_title_case = _draw(state) < 0.4
        said_twice = _draw(state) < SAID_TWICE
        start = end
        for position in range(number):
            if end + 64 > len(text):
                return -1
            if position:
                separator = int(_draw(state) * (len(separator_offsets) - 1))
                for at in range(separator_offsets[separator], separator_offsets[separator + 1]):
                    text[end] = separators[at]
                    end += 1
            word = _zipf(state, len(word_offsets) - 1)
            for at in range(word_offsets[word], word_offsets[word + 1]):
                text[end] = words[at]
                if at == word_offsets[word] and (in_title_case or position == 0):
                    text[end] -= 32
                end += 1
        if said_twice:
            if 2 * end - start + 1 > len(text):
                return -1
            length = end - start
            text[end] = 32
            for at in range(length):
                text[end + 1 + at] = text[start + at]
            end += length + 1
        offsets[row + 1] = end
    return end


@numba.njit(cache=True, nogil=True)
def _write_uids(first: int, rows: int, lowest: np.uint64, step: np.uint64, seed: int, uid: np.ndarray) -> None:
    """Hex digits that rise from row to row: the front half spread over the shard's range, the back half a hash."""
    hexadecimal = np.array([48 + digit if digit < 10 else 87 + digit for digit in range(16)], np.uint8)
    for row in range(rows):
        back = _mixed(np.uint64(seed) + np.uint64(first + row + 1) * np.uint64(0xD1342543DE82EF95))
        front = lowest + np.uint64(row) * step + back % step
        for digit in range(16):
            shift = np.uint64(60 - 4 * digit)
            uid[row, digit] = hexadecimal[(front >> shift) & np.uint64(15)]
            uid[row, 16 + digit] = hexadecimal[(back >> shift) & np.uint64(15)]


def texts(first: int, rows: int, pairs: int, seed: int) -> pa.Array:
    """The texts of rows `first` .. `first + rows` of a corpus of `pairs`."""
    room = 100 * rows + 100_000
    while True:
        text, offsets = np.empty(room, np.uint8), np.zeros(rows + 1, np.int32)
        pool = max(1, pairs // POOL)
        written = _write_texts(first, rows, seed, pool, *_spellings(), *_flat(_SEPARATORS), text, offsets)
        if written >= 0:
            return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(text[:written]))
        room *= 2


def _write_shard(name: str, folder: Path, shards: int, pairs: int, seed: int) -> Shard:
    position = int(name)
    first, end = (pairs * edge // shards for edge in (position, position + 1))
    rows = end - first
    # The shard's part of the uids, cut where `ingest` cuts it: by the first four digits.
    lowest, highest = (-(-65_536 * edge // shards) << 48 for edge in (position, position + 1))
    uid = np.empty((rows, 32), np.uint8)
    _write_uids(first, rows, np.uint64(lowest), np.uint64((highest - lowest) // max(rows, 1)), seed, uid)
    uids = pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), rows, [None, pa.py_buffer(uid)])
    numbers = np.arange(first, end)
    table = pa.table(
        {
            "uid": uids.cast(pa.binary()).cast(pa.string()),
            "url": _urls(numbers),
            "text": texts(first, rows, pairs, seed),
            "original": pa.nulls(rows, pa.string()),
            "file": pa.repeat("generated", rows),
            "row": numbers,
        }
    )
    names = [f"{name}.parquet", f"repeated-{name}.parquet"]
    for file_name, content in zip(names, (table, table.select(["uid", "file", "row"]).slice(0, 0)), strict=True):
        with replacing(folder / file_name) as path:
            pq.write_table(content, path, ROW_GROUP, compression="zstd", use_dictionary=["file"])
    return Shard.of(folder, name, digest("generated", name), names, {"pairs": rows, "repeated": 0})


def _urls(numbers: np.ndarray) -> pa.Array:
    """One url a row, a thousand or so on each host."""
    hosts, images = (pa.array(part).cast(pa.string()) for part in (numbers * 7919 % (numbers[-1] // 1000 + 1), numbers))
    return pc.binary_join_element_wise("https://host", hosts, ".example/images/", images, ".jpg", "")


def make_pairs(dataset: Dataset, pairs: int, seed: int = 0) -> None:
    """Fill the dataset's `pairs` with so many, a shard for each million; nothing is done where they are there."""
    shards = max(2, -(-pairs // ROWS_PER_SHARD))
    names = [f"{position:05d}" for position in range(shards)]
    key = digest("generated", pairs, seed)
    if dataset.pairs.is_current(key):
        return
    with dataset.quarantine.writing(key, {"00000": key}) as quarantine:
        with replacing(dataset.quarantine.folder / "00000.parquet") as path:
            columns = ("file", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("content", pa.string())
            pq.write_table(pa.schema(columns).empty_table(), path)
        counts = {"rows_in": pairs, "quarantined": 0}
        quarantine.add(Shard.of(dataset.quarantine.folder, "00000", key, ["00000.parquet"], counts))
        quarantine.commit()
    with dataset.pairs.writing(key, {name: digest("generated", name) for name in names}) as writing:
        write = partial(_write_shard, folder=dataset.pairs.folder, shards=shards, pairs=pairs, seed=seed)
        _spellings()  # before the threads, which would each make them
        with ThreadPoolExecutor(2) as pool:
            for shard in pool.map(write, writing.todo):
                writing.add(shard)
        writing.commit()
