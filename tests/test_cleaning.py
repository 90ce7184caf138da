"""Text cleaning: what is mended, what is left alone, and that doing it twice changes nothing."""

import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.texts.cleaning import clean, clean_column

FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"
ENGLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"


@pytest.mark.parametrize(
    ("came", "cleaned"),
    [
        ("sch\u00c3\u00b6n", "schön"),
        ("l\u00e2\u20ac\u2122\u00e9t\u00e9", "l\u2019été"),
        (
            "\u00d0\u00bc\u00d0\u00b8\u00d1\u20ac \u00d0\u00b8 \u00d1\u2026\u00d0\u00bb\u00d0\u00b5\u00d0\u00b1",
            "мир и хлеб",
        ),
        ("AT&amp;T", "AT&T"),
        ("&amp;amp;amp;lt;b&gt;", "<b>"),
        ("&#38;#38;#x26;quot;x", '"x'),
        ("&nbsp;caf&eacute;&nbsp;&#8211;&#x2014;", "caf\u00e9 \u2013\u2014"),
        ("&am\u200bp;", "&"),
        ("R&D, Q & A, &nosuchthing; &#", "R&D, Q & A, &nosuchthing; &#"),
        ("e\u0301tude", "étude"),
        (" a\t\n b\u00a0\u2003c\u2028d ", "a b c d"),
        ("a\x01b\x7fc\ufeffd\u200be\u2060f\u00adg", "abcdefg"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("nul\x00s", "nuls"),
        ("\u202egpj.cat\u202c", "gpj.cat"),
        ("private \u0092 quote", "private \u2019 quote"),
        ("a\u200db\u200cc\u200d", "abc"),
        ("\u200b\ufeff &nbsp; \x02", ""),
        ("", ""),
    ],
)
def test_what_is_mended(came: str, cleaned: str) -> None:
    assert clean(came) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "\u201cCurly\u201d \u2018quotes\u2019 \u2014 and a \ufb01ligature",
        "\uff21\uff22\uff23\uff11 \uff76\uff85",
        "ПРИВЕТ мир",
        "我喜欢一只黑色的猫。",
        "私は猫が好きです",
        "แมวสีดำนั่งอยู่บนโต๊ะ",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian, with a non-joiner
        "\u0915\u094d\u200d\u0937 \u0930\u094d\u200d",  # Devanagari, with joiners after a virama, one at a word's end
        f"{FAMILY} {ENGLAND} \u2764\ufe0f\u200d\U0001f525",
        "São Paulo, Ångström, naïve, œuvre, Łódź",
        "a < b > c && d",
        "\ufffd stays: it says that something was lost",
    ],
)
def test_what_is_left_alone(text: str) -> None:
    assert clean(text) == unicodedata.normalize("NFC", text)


PIECES = st.sampled_from(
    [
        *"a &;#x26mlpt<>\t\n\r\x00\x1b[1\x80\x85\x92\x9f\u00a0\u00ad\u00c2\u00c3\u00a9",
        *"\u20ac\u2122\u00e2\u0301\u0915\u094d",
        *"\u0645\u06cc\u200b\u200c\u200d\u200e\u2028\u202e\ufe0f\ufeff\ufffc\ufffd\uac00\u1100\u1161猫👩🏴",
        *["&amp;", "&#38;", "&lt;", "&nbsp;", "\u00c3\u00a9", "\u00e2\u20ac\u0153", ENGLAND[1:], FAMILY, "\U000e0041"],
    ]
)
TEXTS = st.one_of(st.lists(PIECES, max_size=20).map("".join), st.text(max_size=30))


@settings(max_examples=1500, deadline=None)
@given(TEXTS)
def test_cleaning_is_idempotent_and_leaves_nothing_that_cannot_be_seen(text: str) -> None:
    cleaned = clean(text)
    assert clean(cleaned) == cleaned
    assert unicodedata.is_normalized("NFC", cleaned)
    assert cleaned == " ".join(cleaned.split())
    assert not [letter for letter in cleaned if unicodedata.category(letter) == "Cc"]
    assert not {*cleaned} & {"\u200b", "\ufeff", "\u00ad", "\u202e", "\u2060", "\ufffc"}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.none(), TEXTS, st.text(st.characters(min_codepoint=32, max_codepoint=126))), max_size=12))
def test_a_column_is_cleaned_as_its_texts_are(texts: list[str | None]) -> None:
    column = clean_column(pa.array(texts, pa.string()))
    assert column.to_pylist() == [None if text is None else clean(text) for text in texts]


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    [
        "&" + "amp;" * 2499,
        "&" + "#38;" * 2499,
        "&" + "#x26;amp;" * 1100,
        "\u00c3\u0192\u00c2\u00a9" * 2500,
        "\u00e2\u20ac" * 5000,
        "\u200d\u0915" * 5000,
        "\U000e0041" * 10_000,
        "\x1b[" * 5000,
        "\u0301" * 10_000,
        "&#" * 5000,
    ],
)
def test_hostile_texts_cost_no_more_than_long_ones(text: str) -> None:
    cleaned = clean(text)
    assert clean(cleaned) == cleaned


# Signs that show or steer how others show, and are no rubbish: Arabic and Syriac signs over numbers, the Mongolian
# vowel separator, Kaithi's number signs, what arranges Egyptian hieroglyphs.
KEPT_FORMATS = {
    *range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x180E, 0x110BD, 0x110CD, *range(0x13430, 0x13440),
}  # fmt: skip


def test_every_control_and_format_character_is_judged() -> None:
    controls = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) in ("Cc", "Cf")]
    between_letters = {ord(letter) for letter in controls if letter in clean(f"a{letter}b")}
    assert between_letters == KEPT_FORMATS & {*map(ord, controls)}  # an older Python knows fewer of them
