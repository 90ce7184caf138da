"""Where words end (Unicode's UAX #29): the rules as tables, and compiled loops that read texts by them.

The classes are those of Unicode's Word_Break property, as far as words can hold them. Three are added for what the
property leaves to dictionaries or to itself: IDEOGRAPH (Han and Hiragana) and COMPLEX (Thai and its like, which behave
as letters), both divided by ICU beforehand, and LONE, a letter that is a word of its own. HANGUL is taken out of the
letters, as ICU does: syllables join syllables only, so that a text's Korean words do not hang on what else it holds.

Tables and loops share this file because numba's cache looks at a loop's own file only to see whether it is still good.
"""

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import regex
from numba import njit
from numpy.typing import NDArray

SEED = np.uint64(0x9E3779B97F4A7C15)
_ODD = np.uint64(0xD6E8FEB86659FD93)
_PAIR = np.uint64(0xA0761D6478BD642F)
_REPLACEMENT = 0xFFFD
_NOT_ASCII = np.uint64(0x8080808080808080)

OTHER, LETTER, HEBREW, COMPLEX, DIGIT, KATAKANA, HANGUL, IDEOGRAPH, LONE, UNDERSCORE = range(10)
MID_LETTER, MID_NUMBER, MID_BOTH, QUOTE, DOUBLE_QUOTE, EXTEND = range(10, 16)
ENDS_HERE = 16
"""The class of what stands behind a text's last character: it joins nothing."""
_CLASSES = 17

_SCANNED = ((0, 0xD800), (0xE000, 0x34000), (0xE0000, 0xE1000))
"""Code points that have letters, digits or marks; the rest of Unicode is unassigned or private."""

_PATTERNS = (
    # The first that matches a code point counts.
    (r"[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]", EXTEND),
    (r"\p{WB=Katakana}", KATAKANA),
    (r"[\p{Script=Han}\p{Script=Hiragana}]", IDEOGRAPH),
    (r"[\uAC00-\uD7A3]", HANGUL),
    (r"\p{LB=SA}", COMPLEX),
    (r"\p{WB=Hebrew_Letter}", HEBREW),
    (r"\p{WB=ALetter}", LETTER),
    (r"\p{WB=Numeric}", DIGIT),
    (r"\p{WB=ExtendNumLet}", UNDERSCORE),
    (r"\p{WB=MidLetter}", MID_LETTER),
    (r"\p{WB=MidNum}", MID_NUMBER),
    (r"\p{WB=MidNumLet}", MID_BOTH),
    (r"\p{WB=Single_Quote}", QUOTE),
    (r"\p{WB=Double_Quote}", DOUBLE_QUOTE),
    (r"\p{L}", LONE),
)

_LETTERS = (LETTER, HEBREW, COMPLEX)
_ALPHANUMERIC = (*_LETTERS, DIGIT)


def _table(rank: int, *rules: tuple[tuple[int, ...], ...]) -> NDArray[np.bool_]:
    table = np.zeros((_CLASSES,) * rank, np.bool_)
    for rule in rules:
        for classes in product(*rule):
            table[classes] = True
    return table


JOINS: Any = _table(
    2,
    ((OTHER,), (*_ALPHANUMERIC, KATAKANA, HANGUL, IDEOGRAPH, LONE, UNDERSCORE)),  # what a segment may begin with
    (_ALPHANUMERIC, _ALPHANUMERIC),  # WB5, WB8, WB9, WB10
    ((KATAKANA, IDEOGRAPH), (KATAKANA, IDEOGRAPH)),  # WB13; ICU has put blanks where its dictionaries end a word
    ((HANGUL,), (HANGUL,)),
    ((*_ALPHANUMERIC, KATAKANA, UNDERSCORE), (UNDERSCORE,)),  # WB13a
    ((UNDERSCORE,), (*_ALPHANUMERIC, KATAKANA)),  # WB13b
)
"""[class, next class]: whether a segment goes on."""

BRIDGES: Any = _table(
    3,
    (_LETTERS, (MID_LETTER, MID_BOTH, QUOTE), _LETTERS),  # WB6, WB7
    ((HEBREW,), (DOUBLE_QUOTE,), (HEBREW,)),  # WB7b, WB7c
    ((DIGIT,), (MID_NUMBER, MID_BOTH, QUOTE), (DIGIT,)),  # WB11, WB12
)
"""[class, class between, class behind]: whether a segment goes on over the one between."""

OPENS: Any = BRIDGES.any(axis=2)
"""[class, class between]: whether it depends on the class behind."""


@dataclass(frozen=True)
class Letters:
    """Properties by code point, 0x110000 of them each."""

    classes: NDArray[np.uint8]
    lower: NDArray[np.uint32]
    """The lower-case letter, one for one; a character without one is its own."""
    unspaced: NDArray[np.bool_]
    """By class, 17 of them: whether ICU has to divide texts that hold it."""


@cache
def letters() -> Letters:
    """The tables, built once a process (about 0.2 s)."""
    scanned = np.concatenate([np.arange(start, end) for start, end in _SCANNED])
    text = scanned.astype("<u4").tobytes().decode("utf-32-le")
    classes = np.zeros(0x110000, np.uint8)
    for pattern, kind in reversed(_PATTERNS):
        for match in regex.finditer(f"{pattern}+", text):
            classes[scanned[match.start() : match.end()]] = kind
    lower = np.arange(0x110000, dtype=np.uint32)
    for match in regex.finditer(r"[\p{Lu}\p{Lt}\p{Uppercase}]", text):
        # U+0130 alone has two lower-case characters; the first is its simple mapping.
        lower[ord(match.group())] = ord(match.group().lower()[0])
    unspaced = np.zeros(_CLASSES, np.bool_)
    unspaced[[KATAKANA, IDEOGRAPH, COMPLEX]] = True
    return Letters(classes, lower, unspaced)


@njit(cache=True, nogil=True)
def step(state: Any, code: Any) -> Any:
    """One code point more into the state of a word's hash."""
    state = (state ^ np.uint64(code)) * _ODD
    return state ^ (state >> np.uint64(32))


@njit(cache=True, nogil=True)
def mix(state: Any) -> Any:
    """Spread a state over all 64 bits (the finaliser of MurmurHash3)."""
    state = (state ^ (state >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    state = (state ^ (state >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return state ^ (state >> np.uint64(33))


@njit(cache=True, nogil=True)
def _is_ascii_letter(byte: Any) -> Any:
    return np.uint8((byte | 0x20) - 0x61) < 26


@njit(cache=True, nogil=True)
def decode(data: Any, at: Any, end: Any) -> Any:
    """The code point at `at`, and where the next one starts. What is not UTF-8 is U+FFFD, a byte long."""
    lead = np.int64(data[at])
    if lead < 0x80:
        return lead, at + 1
    if lead < 0xC2 or lead > 0xF4:
        return _REPLACEMENT, at + 1
    more = 1 if lead < 0xE0 else 2 if lead < 0xF0 else 3
    if at + more >= end:
        return _REPLACEMENT, at + 1
    code = lead & (0x3F >> more)
    for following in range(at + 1, at + more + 1):
        byte = np.int64(data[following])
        if byte & 0xC0 != 0x80:
            return _REPLACEMENT, at + 1
        code = code << 6 | byte & 0x3F
    return code if code < 0x110000 else _REPLACEMENT, at + more + 1


@njit(cache=True, nogil=True)
def identify(data: Any, offsets: Any, classes: Any, unspaced: Any) -> Any:
    """Of each text: its code points, its key, and whether it holds letters that are written without spaces."""
    n = len(offsets) - 1
    characters = np.empty(n, np.int32)
    keys = np.empty(n, np.uint64)
    continuous = np.zeros(n, np.bool_)
    for row in range(n):
        start, end = offsets[row], offsets[row + 1]
        state = SEED + np.uint64(end - start)
        seen = np.uint64(0)
        at = start
        while at < end:
            eight = np.uint64(0)
            for place in range(min(8, end - at)):
                eight |= np.uint64(data[at + place]) << np.uint64(8 * place)
            seen |= eight
            state = (state ^ eight) * _ODD
            state ^= state >> np.uint64(32)
            at += 8
        keys[row] = mix(state)
        if seen & _NOT_ASCII == 0:
            characters[row] = end - start
            continue
        count = 0
        at = start
        while at < end:
            code, at = decode(data, at, end)
            count += 1
            if unspaced[classes[code]]:
                continuous[row] = True
        characters[row] = count
    return characters, keys, continuous


@njit(cache=True, nogil=True)
def tokenise(data: Any, offsets: Any, classes: Any, lower: Any, with_spans: bool) -> Any:
    """Words of each text, keys of words and neighbouring pairs, and (if asked for) where in `data` the words stand.

    A segment goes on while its last letter's class joins the next one's. A character such as an apostrophe or a
    decimal point is held back (`middle`) until the character behind it tells whether it bridges two letters.
    """
    n = len(offsets) - 1
    words = np.empty(n, np.int32)
    keys = np.empty(max(64, (offsets[n] - offsets[0]) // 3), np.uint64)
    spans: Any = np.empty((len(keys) if with_spans else 0, 2), np.int64)
    used = 0
    for row in range(n):
        at, end = offsets[row], offsets[row + 1]
        if used + end - at + 1 > len(keys):  # a text has no more words and pairs than it has bytes
            room = np.empty(2 * len(keys) + end - at, np.uint64)
            room[:used] = keys[:used]
            keys = room
            if with_spans:
                wider = np.empty((len(keys), 2), np.int64)
                wider[: len(spans)] = spans
                spans = wider
        count = 0
        previous = state = held = np.uint64(0)
        left = middle = OTHER
        is_word = False
        first = last = held_last = at
        while True:
            here = at
            code = np.int64(0)
            kind = ENDS_HERE
            if at < end:
                code = np.int64(data[at])
                if code < 0x80:
                    at += 1
                else:
                    code, at = decode(data, at, end)
                kind = classes[code]
            if left != OTHER:
                if kind == EXTEND:
                    if middle == OTHER:
                        state = step(state, lower[code])
                        last = at
                        if left == HANGUL:  # as in ICU, a syllable with a mark is the last of its run
                            left = LONE
                    else:
                        held = step(held, lower[code])
                        held_last = at
                    continue
                if middle == OTHER:
                    if JOINS[left, kind]:
                        state = step(state, lower[code])
                        left, last = kind, at
                        is_word |= kind != UNDERSCORE
                        continue
                    if OPENS[left, kind]:
                        held = step(state, lower[code])
                        middle, held_last = kind, at
                        continue
                else:
                    if BRIDGES[left, middle, kind]:
                        state = step(held, lower[code])
                        left, middle, last = kind, OTHER, at
                        continue
                    if left == HEBREW and middle == QUOTE:  # WB7a: the geresh stays with its letter
                        state, last = held, held_last
                if is_word:
                    key = mix(state)
                    if count:
                        keys[used] = mix(previous * _PAIR + key)
                        used += 1
                    keys[used] = previous = key
                    used += 1
                    if with_spans:
                        spans[count] = first, last
                    count += 1
            if here == end:
                break
            left, middle, is_word = OTHER, OTHER, False
            if JOINS[OTHER, kind]:
                state = step(SEED, lower[code])
                left, first = kind, here
                is_word = kind != UNDERSCORE
                if kind == LETTER:  # most characters of most texts: what follows would do the same, slower
                    while at < end and _is_ascii_letter(data[at]):
                        state = step(state, data[at] | 0x20)
                        at += 1
                last = at
        words[row] = count
    return words, keys[:used], spans[: count if with_spans and n else 0]
