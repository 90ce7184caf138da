"""Which phrases of a long list a text holds, as MetaCLIP's substring matching has it (metaclip/substr_matching.py).

A text is cut at blanks, tabs and the ends of lines; each of , . ; : ? ! and the backtick is a token by itself. A
phrase, cut at blanks alone, is held where its tokens stand in the text one after another: with their case, never inside
a word. Two blanks in a row, or a blank beside a mark, have an empty token between them, so no phrase reaches across;
one with a mark inside a token ("st. louis") is never held. There as here.

Half a million phrases make a trie over tokens in a few flat arrays; a text is walked once from each of its tokens.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numba import njit

from pipeline.errors import PairmillError
from pipeline.signals.entries import EntryFile

_BLANKS = b" \t\n\r"
_MARKS = b",.;:?!`"
_IS_BLANK, _IS_MARK = 1, 2
_KIND = np.zeros(256, np.uint8)
_KIND[list(_BLANKS)] = _IS_BLANK
_KIND[list(_MARKS)] = _IS_MARK

Integer = Any
"""One of numba's, of 32 or 64 bits."""
_FNV_OFFSET, _FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)


@dataclass(frozen=True)
class Phrases:
    """A trie over tokens. Nodes are numbers, 0 the root; both tables are open-addressed, -1 where empty."""

    keys: np.ndarray
    """uint64[phrases]: a key of each phrase, by its words alone."""
    phrase_of_node: np.ndarray
    """int32[nodes]: the phrase that ends there, or -1."""
    tokens: np.ndarray
    """uint8: the UTF-8 of all distinct tokens, one after another."""
    token_starts: np.ndarray
    """int64[tokens + 1]"""
    token_slots: np.ndarray
    """int32[power of two]: a token's number, by the hash of its bytes."""
    step_from: np.ndarray
    """int64[power of two]: node << 32 | token, by its hash."""
    step_to: np.ndarray
    """int32, parallel to `step_from`: the node that the step leads to."""


@dataclass(frozen=True)
class Matches:
    """Which phrases the texts hold, each once a text, text after text."""

    per_text: np.ndarray
    """int64[texts]: how many."""
    keys: np.ndarray
    """uint64[sum of per_text]: the phrases' keys."""


@lru_cache(maxsize=1)
def phrases_of(file: EntryFile) -> Phrases:
    """The phrases of a file, one a line, made once a process."""
    lines = [line for _, line in file.lines()]
    if not lines:
        raise PairmillError(f"{file.path} holds no query", f"name the file you mean in the recipe's {file.key}")
    return phrases(lines)


def phrases(lines: Iterable[str]) -> Phrases:
    """The trie of some phrases; those that are there twice count once."""
    numbers: dict[str, int] = {}
    steps: dict[int, int] = {}
    distinct = list(dict.fromkeys(lines))
    ends = np.empty(len(distinct), np.int64)
    for number, phrase in enumerate(distinct):
        node = 0
        for token in phrase.split(" "):
            step = node << 32 | numbers.setdefault(token, len(numbers))
            node = steps.setdefault(step, len(steps) + 1)
        ends[number] = node
    phrase_of_node = np.full(len(steps) + 1, -1, np.int32)
    phrase_of_node[ends] = np.arange(len(distinct))
    encoded = [token.encode() for token in numbers]
    tokens = np.frombuffer(b"".join(encoded), np.uint8)
    token_starts = np.concatenate([[0], np.cumsum([len(token) for token in encoded], dtype=np.int64)])
    step_from = np.full(_slots(len(steps)), -1, np.int64)
    step_to = np.zeros(len(step_from), np.int32)
    taken = np.fromiter(steps, np.int64, len(steps))
    _place_steps(step_from, step_to, taken, np.fromiter(steps.values(), np.int32, len(steps)))
    return Phrases(
        keys=np.array(
            [int.from_bytes(hashlib.blake2b(p.encode(), digest_size=8).digest()) for p in distinct], np.uint64
        ),
        phrase_of_node=phrase_of_node,
        tokens=tokens,
        token_starts=token_starts,
        token_slots=_placed_tokens(tokens, token_starts, _slots(len(encoded))),
        step_from=step_from,
        step_to=step_to,
    )


def find_phrases(texts: pa.Array, known: Phrases) -> Matches:
    """The phrases that each text holds. `texts` is an array of strings without nulls."""
    texts = texts.cast(pa.large_string())
    _, offsets, data = texts.buffers()
    starts = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1] if len(texts) else _NO_TEXTS
    content = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    per_text, found = _find(
        content,
        starts,
        _KIND,
        known.phrase_of_node,
        known.tokens,
        known.token_starts,
        known.token_slots,
        known.step_from,
        known.step_to,
        len(known.keys),
    )
    return Matches(per_text, known.keys[found])


_NO_TEXTS = np.zeros(1, np.int64)


def _slots(entries: int) -> int:
    """A power of two of which at most half is taken, so that an empty slot ends every search soon."""
    return 1 << max(1, (2 * entries).bit_length())


@njit(cache=True, nogil=True)
def _hash_bytes(content: np.ndarray, start: Integer, end: Integer) -> Integer:
    """FNV-1a, 64 bits, with its high half folded in: the table takes the low bits."""
    value = _FNV_OFFSET
    for position in range(start, end):
        value = (value ^ np.uint64(content[position])) * _FNV_PRIME
    return value ^ (value >> np.uint64(32))


@njit(cache=True, nogil=True)
def _hash_step(step: Integer) -> Integer:
    value = np.uint64(step) * np.uint64(0x9E3779B97F4A7C15)
    return value ^ (value >> np.uint64(32))


@njit(cache=True, nogil=True)
def _placed_tokens(tokens: np.ndarray, token_starts: np.ndarray, size: Integer) -> np.ndarray:
    slots = np.full(size, -1, np.int32)
    for token in range(len(token_starts) - 1):
        slot = _hash_bytes(tokens, token_starts[token], token_starts[token + 1]) & np.uint64(size - 1)
        while slots[slot] >= 0:
            slot = (slot + np.uint64(1)) & np.uint64(size - 1)
        slots[slot] = token
    return slots


@njit(cache=True, nogil=True)
def _place_steps(step_from: np.ndarray, step_to: np.ndarray, steps: np.ndarray, targets: np.ndarray) -> None:
    mask = np.uint64(len(step_from) - 1)
    for index in range(len(steps)):
        slot = _hash_step(steps[index]) & mask
        while step_from[slot] >= 0:
            slot = (slot + np.uint64(1)) & mask
        step_from[slot] = steps[index]
        step_to[slot] = targets[index]


@njit(cache=True, nogil=True)
def _token_number(
    content: np.ndarray,
    start: Integer,
    end: Integer,
    tokens: np.ndarray,
    token_starts: np.ndarray,
    token_slots: np.ndarray,
) -> Integer:
    """The number of the token whose bytes are content[start:end], or -1 where no phrase has it."""
    mask = np.uint64(len(token_slots) - 1)
    slot = _hash_bytes(content, start, end) & mask
    while token_slots[slot] >= 0:
        token = token_slots[slot]
        first = token_starts[token]
        if token_starts[token + 1] - first == end - start:
            same = True
            for position in range(end - start):
                if tokens[first + position] != content[start + position]:
                    same = False
                    break
            if same:
                return token
        slot = (slot + np.uint64(1)) & mask
    return np.int32(-1)


@njit(cache=True, nogil=True)
def _step(node: Integer, token: Integer, step_from: np.ndarray, step_to: np.ndarray) -> Integer:
    """The node that a token leads to, or -1."""
    step = np.int64(node) << 32 | np.int64(token)
    mask = np.uint64(len(step_from) - 1)
    slot = _hash_step(step) & mask
    while step_from[slot] >= 0:
        if step_from[slot] == step:
            return step_to[slot]
        slot = (slot + np.uint64(1)) & mask
    return np.int32(-1)


@njit(cache=True, nogil=True)
def _find(
    content: np.ndarray,
    starts: np.ndarray,
    kind: np.ndarray,
    phrase_of_node: np.ndarray,
    tokens: np.ndarray,
    token_starts: np.ndarray,
    token_slots: np.ndarray,
    step_from: np.ndarray,
    step_to: np.ndarray,
    phrases: Integer,
) -> tuple[np.ndarray, np.ndarray]:
    texts = len(starts) - 1
    longest = np.int64(0)
    for text in range(texts):
        longest = max(longest, starts[text + 1] - starts[text])
    line = np.empty(2 * longest + 1, np.int32)  # each byte ends at most two tokens
    last_text = np.full(phrases, -1, np.int64)  # of each phrase: the last text in which it was found
    per_text = np.zeros(texts, np.int64)
    found = np.empty(max(16, 4 * texts), np.int32)
    total = 0
    for text in range(texts):
        count = 0
        start = starts[text]
        for position in range(starts[text], starts[text + 1]):
            what = kind[content[position]]
            if what == 0:
                continue
            line[count] = _token_number(content, start, position, tokens, token_starts, token_slots)
            count += 1
            if what == 2:
                line[count] = _token_number(content, position, position + 1, tokens, token_starts, token_slots)
                count += 1
            start = position + 1
        line[count] = _token_number(content, start, starts[text + 1], tokens, token_starts, token_slots)
        count += 1
        for first in range(count):
            node: Integer = np.int32(0)
            for index in range(first, count):
                if line[index] < 0:
                    break
                node = _step(node, line[index], step_from, step_to)
                if node < 0:
                    break
                phrase = phrase_of_node[node]
                if phrase >= 0 and last_text[phrase] != text:
                    last_text[phrase] = text
                    if total == len(found):
                        grown = np.empty(2 * total, np.int32)
                        grown[:total] = found
                        found = grown
                    found[total] = phrase
                    total += 1
                    per_text[text] += 1
    return per_text, found[:total]
