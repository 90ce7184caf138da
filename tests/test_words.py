"""Words against ICU's own segments, and every measure against a slow one in plain Python."""

# ruff: noqa: RUF001 - letters that look alike are the point here
import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st
from icu4py.breakers import WordBreaker

from pipeline.texts.words import measure, repetition_ratios, text_keys, words_of

LETTER_OR_DIGIT = regex.compile(
    r"[\p{L}\p{WB=ALetter}\p{WB=Hebrew_Letter}\p{WB=Katakana}\p{WB=Numeric}\p{Han}\p{Hiragana}\p{LB=SA}]"
)
NOT_EXTENDING = regex.compile(r"[^\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]")
SCRIPTS = (
    "ab",
    "zAZ",
    "éßİΣς",
    "жЖ",
    "אב",
    "عر",
    "हिन्दी",
    "한국",
    "我爱北京々〆",
    "ひらお",
    "カターｶﾞ",
    "ไทยที่",
    "ລາວ",
    "ខ្មែរ",
    "မြန်",
    "09٣๓",
    "_‿",
    ".,:;·’'\"״׳٬",
    " \t\n\r\u2028\u3000",
    "\u0301\u00ad\u200c\u200d\u200f\ufe0f",
    "😀©ⓐⅧ½²ᥣ𗀀𠀀𝐀🇩🇪-&!。、「",
)
TEXTS = st.lists(st.sampled_from([letter for script in SCRIPTS for letter in script] + list(SCRIPTS)), max_size=20).map(
    "".join
)


def lower(word: str) -> str:
    return "".join("i" if letter == "\u0130" else letter.lower() for letter in word)


def icu_words(text: str) -> list[str]:
    """ICU's segments that hold a letter or a digit that is no mark."""
    segments = list(WordBreaker(text, "en"))
    return [
        lower(segment)
        for segment in segments
        if any(NOT_EXTENDING.match(c) and LETTER_OR_DIGIT.match(c) for c in segment)
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("... -- !?", []),
        ("__", []),
        ("Don't stop, it's 3.14 o'clock: FOO_bar, e.g. www.Example.org", None),
        ("Don't stop at 3,000.50 FOO_bar-baz", ["don't", "stop", "at", "3,000.50", "foo_bar", "baz"]),
        ("Straße über ÄÖÜ, GROẞ", ["straße", "über", "äöü", "groß"]),
        ("ΟΔΥΣΣΕΥΣ", ["οδυσσευσ"]),
        ("DIYARBAKIR İstanbul", ["diyarbakir", "istanbul"]),
        ("Красная площадь в Москве, 1950-е", ["красная", "площадь", "в", "москве", "1950", "е"]),
        ("مسجد الفاتح ٣٫٥ في إسطنبول", ["مسجد", "الفاتح", "٣٫٥", "في", "إسطنبول"]),
        ("צה\"ל ג'ירפה", ['צה"ל', "ג'ירפה"]),
        ("ताज महल, आगरा", ["ताज", "महल", "आगरा"]),
        ("서울의 한강 다리", ["서울의", "한강", "다리"]),
        ("我爱北京天安门", ["我", "爱", "北京", "天安门"]),
        ("これはペンです。", ["これ", "は", "ペン", "です"]),
        ("ภาษาไทยง่ายมาก", ["ภาษา", "ไทย", "ง่าย", "มาก"]),
        ("iPhone用ケース 2個", ["iphone", "用", "ケース", "2", "個"]),
        ("cafe\u0301 co\u00adop", ["cafe\u0301", "co\u00adop"]),
    ],
)
def test_words_in_many_languages(text: str, words: list[str] | None) -> None:
    assert words_of(text) == icu_words(text)
    assert words is None or words_of(text) == words


@settings(max_examples=1000, deadline=None)
@given(TEXTS)
@example("a\u200d")
@example("\u0301a")
@example("ש'")
@example("ש'a")
@example('ש"ש"')
@example("a.'b")
@example("1.a")
@example("a\u0301.\u0301b")
@example("_a_1_ア_")
@example("ไทยabcไทย")
def test_words_are_icus_segments(text: str) -> None:
    # A vowel sign without its consonant: ICU's dictionaries may divide behind it what ICU's rules have joined before.
    text = regex.sub(r"(?<!\p{LB=SA})[\p{LB=SA}&&\p{M}]+", "", text, flags=regex.V1)
    text = regex.sub(r"\u200d+(?=\p{Extended_Pictographic})", "", text)  # glued emoji: a difference on purpose
    assert words_of(text) == icu_words(text)


def test_an_emoji_is_never_part_of_a_word() -> None:
    assert words_of("a\u200d😀b 👩\u200d👧") == ["a\u200d", "b"]


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXTS, max_size=8), st.sampled_from([pa.string(), pa.large_string()]), st.integers(0, 3))
def test_a_block_measures_each_of_its_texts(texts: list[str], kind: pa.DataType, cut: int) -> None:
    array = pa.array(["left out"] * cut + texts, kind).slice(cut)
    measured = measure(array)
    keys = {word: key for text in texts for word, key in zip(words_of(text), _word_keys(text), strict=True)}
    start = 0
    for row, text in enumerate(texts):
        words = words_of(text)
        assert measured.words[row] == len(words)
        assert measured.characters[row] == len(text)
        assert measured.repetition[row] == pytest.approx(1 - len(set(words)) / len(words) if words else 0)
        assert measured.text_keys[row] == measure(pa.array([text])).text_keys[0]
        found = measured.ngram_keys[start : start + max(0, 2 * len(words) - 1)]
        assert list(found[::2]) == [keys[word] for word in words]
        for first, second, pair in zip(words, words[1:], found[1::2], strict=False):
            assert pair == measure(pa.array([f"{first} {second}"])).ngram_keys[1] or "\u200d" in first + second
        start += len(found)
    assert start == len(measured.ngram_keys)
    assert np.array_equal(text_keys(array), measured.text_keys)


def _word_keys(text: str) -> list[int]:
    return list(measure(pa.array([text])).ngram_keys[::2])


def test_equal_words_and_texts_share_a_key_and_others_do_not() -> None:
    rng = np.random.default_rng(0)
    texts = list({f"{a:x} {b}" for a, b in rng.integers(0, 500, (20_000, 2))})
    texts += ["x", "x ", " x", "x\0", "X", "x x", "ab c", "a bc", "abc", "c ab", "é", "e\u0301", "", "\0", "\0\0"]
    measured = measure(pa.array(texts))
    assert len(set(measured.text_keys)) == len(texts)
    ngrams: dict[tuple[str, ...], set[int]] = {}
    start = 0
    for text in texts:
        words = words_of(text)
        occurrences = [gram for i in range(len(words)) for gram in [tuple(words[i : i + 1]), tuple(words[i : i + 2])]]
        for gram, key in zip(occurrences[: max(0, 2 * len(words) - 1)], measured.ngram_keys[start:], strict=False):
            ngrams.setdefault(gram, set()).add(int(key))
        start += max(0, 2 * len(words) - 1)
    assert all(len(keys) == 1 for keys in ngrams.values())
    assert len({key for keys in ngrams.values() for key in keys}) == len(ngrams)


def test_keys_do_not_change() -> None:
    """Tables on disk hold what these keys decided: another hash is another VERSION of a stage."""
    measured = measure(pa.array(["The cat", "naïve 北京"]))
    assert [hex(key) for key in measured.text_keys] == ["0xf97ab60505cb5216", "0xef45dff3e4a6539b"]
    assert [hex(key) for key in measured.ngram_keys] == [
        "0xf7b59afe4eaebcac",
        "0x96359ef058b859b1",
        "0x363f83ab285dadb8",
        "0x6101617afd07c531",
        "0xb39fee2b01b1a8d8",
        "0x28dd336c0b4c9737",
    ]


def test_half_of_a_keys_bits_change_with_one_letter() -> None:
    keys = measure(pa.array([f"word{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"])).ngram_keys
    apart = [(int(a) ^ int(b)).bit_count() for a in keys for b in keys if a != b]
    assert min(apart) > 12
    assert 31 < sum(apart) / len(apart) < 33


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=30), min_size=1, max_size=5))
def test_bytes_that_are_not_utf8_are_measured_and_harm_nothing(values: list[bytes]) -> None:
    offsets = np.cumsum([0, *map(len, values)]).astype(np.int32)
    array = pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(b"".join(values)))
    measured = measure(array)
    assert (measured.words <= measured.characters).all()
    assert (measured.characters <= [len(value) for value in values]).all()
    assert len(measured.ngram_keys) == np.maximum(0, 2 * measured.words - 1).sum()


def test_a_huge_text_is_measured() -> None:
    texts = ["a " * 3_000_000, "北京" * 20_000, "x" * 3_000_000, "b"]
    measured = measure(pa.array(texts))
    assert measured.words.tolist() == [3_000_000, len(icu_words(texts[1])), 1, 1]
    assert measured.repetition[0] == pytest.approx(1 - 1 / 3_000_000)


@pytest.mark.parametrize("texts", [pa.array([], pa.string()), pa.array([""]), pa.array(["", "", "..."])])
def test_texts_without_words(texts: pa.Array) -> None:
    measured = measure(texts)
    assert measured.words.tolist() == [0] * len(texts)
    assert measured.repetition.tolist() == [0] * len(texts)
    assert len(measured.ngram_keys) == 0


def test_nulls_are_refused() -> None:
    with pytest.raises(ValueError, match="null"):
        measure(pa.array(["a", None]))


def slow_repetition(symbols: list[str] | str, n: int, at_most_root: bool) -> float:
    runs = Counter(tuple(symbols[i : i + n]) for i in range(len(symbols) - n + 1))
    if not runs:
        return 0
    most_frequent = sorted(runs.values(), reverse=True)
    repeated = sum(count > 1 for count in most_frequent)
    if at_most_root:
        repeated = min(repeated, math.isqrt(len(runs)))
    return sum(most_frequent[:repeated]) / sum(most_frequent)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("ab 北é", max_size=40) | TEXTS, max_size=6), st.integers(1, 10))
@example(["na " * 30, "the same thing again and the same thing again"], 3)
@example([], 10)
def test_repetition_is_data_juicers(texts: list[str], n: int) -> None:
    characters, words = repetition_ratios(pa.array(texts, pa.string()), n)
    assert characters == pytest.approx([slow_repetition(text, n, True) for text in texts], abs=1e-6)
    assert words == pytest.approx([slow_repetition(words_of(text), n, False) for text in texts], abs=1e-6)
