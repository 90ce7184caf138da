"""Texts as they come from web pages, made fit to count and to learn from: one spelling for what reads the same.

What is mended: mojibake (ftfy), HTML entities, control characters, invisible characters, blanks, canonical composition
(NFC). What is left as it is: quotes, ligatures, full-width letters, case, punctuation: they carry the writer's choice,
and a rule can still look at them. Cleaning is idempotent: clean(clean(text)) == clean(text).
"""

import re
import unicodedata

import ftfy
import pyarrow as pa
import pyarrow.compute as pc
from ftfy import fixes

# Printable ASCII without "&", single blanks inside: what `clean` gives back unchanged, told by one vectorised match.
PLAIN = r"^[!-%'-~]+( [!-%'-~]+)*$"

_ENCODING = ftfy.TextFixerConfig(explain=False)
# "&amp;amp;amp;..." would cost a pass for each level, and a hostile text has thousands.
_NESTED_AMPERSANDS = re.compile(r"&(?:(?:amp|AMP|#0{0,9}38|#[xX]0{0,9}26);)+")
_C1 = re.compile("[\x80-\x9f]")
_BLANKS = re.compile(r"\s+")

# Scripts whose letters join or stack, where U+200C and U+200D change what is read: Arabic, Syriac, N'Ko, Mandaic, the
# Indic family, Tibetan, Myanmar, Khmer, Mongolian, those of U+1A20..U+1CFF and U+A800..U+ABFF, Brahmi's kin above
# U+11000, Adlam; and what emoji sequences are made of.
_JOINING = (
    "\u0600-\u07ff\u0840-\u085f\u0860-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u18af\u1900-\u1cff\ua800-\uabff"
    "\ufb50-\ufdcf\ufdf0-\ufdff\ufe70-\ufefc\U00010a00-\U00010fff\U00011000-\U00011fff\U0001e900-\U0001e95f"
)
_EMOJI = "\u2190-\u2bff\u3030\u303d\u3297\u3299\ufe0f\U0001f000-\U0001faff\U000e007f"
_VIRAMAS = "\u094d\u09cd\u0a4d\u0acd\u0b4d\u0bcd\u0c4d\u0ccd\u0d4d\u0dca\u1039\u17d2"
_INVISIBLE = re.compile(
    # Controls that are no blanks, soft hyphen, zero-width blanks and marks of direction, the byte order mark,
    # annotation marks, the object replacement character, musical format controls, noncharacters.
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufdd0-\ufdef\ufeff"
    "\ufff9-\ufffc\ufffe\uffff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e001f"
    + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(1, 17))
    + "]"
    # A joiner stands between two letters that join or two parts of an emoji, or after a virama at a word's end.
    f"|(?<![{_JOINING}{_EMOJI}])[\u200c\u200d]"
    f"|(?<![{_VIRAMAS}])[\u200c\u200d](?![{_JOINING}{_EMOJI}])"
    # Tag letters spell the flag of a region behind a black flag, and nothing anywhere else.
    "|(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0020-\U000e007f]+"
)


def clean(text: str) -> str:
    """The text mended; "" if nothing readable is left. Expects no lone surrogates."""
    while True:
        mended = _mended(text)
        if mended == text:
            return text
        text = mended


def _mended(text: str) -> str:
    """One pass. What it uncovers (an entity behind a zero-width blank, mojibake behind an entity) is the next one's."""
    if "&" in text:
        text = fixes.unescape_html(_NESTED_AMPERSANDS.sub("&amp;", text))
    if not text.isascii():
        text = ftfy.fix_encoding(text, _ENCODING)
        if _C1.search(text):
            text = fixes.fix_c1_controls(text)
    if "\x1b" in text:
        text = fixes.remove_terminal_escapes(text)
    text = _BLANKS.sub(" ", _INVISIBLE.sub("", text)).strip(" ")
    return unicodedata.normalize("NFC", text)


def clean_column(texts: pa.StringArray) -> pa.StringArray:
    """`clean` of every text; a null stays one. Only texts that are not `PLAIN` pass through Python."""
    doubtful = pc.fill_null(pc.invert(pc.match_substring_regex(texts, PLAIN)), False)
    if not pc.any(doubtful).as_py():
        return texts
    mended = [clean(text) for text in texts.filter(doubtful).to_pylist()]
    return pc.replace_with_mask(texts, doubtful, pa.array(mended, pa.string()))
