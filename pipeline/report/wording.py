"""How the page writes numbers, and texts that come from outside."""

import math
import unicodedata

REPLACEMENT = "\ufffd"
# These would turn the direction of the text around them.
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_NONCHARACTERS = frozenset("\ufffe\uffff")


def shown(text: str | None, longest: int = 300) -> str:
    """A text from outside with its control characters made visible, cut off where it is longer than `longest`."""
    text = text or ""
    cut = text if len(text) <= longest else text[: longest - 1] + "…"
    return "".join(REPLACEMENT if _is_hidden(character) else character for character in cut)


def _is_hidden(character: str) -> bool:
    if character in _DIRECTIONS or character in _NONCHARACTERS:
        return True
    return character not in "\n\t" and unicodedata.category(character) in ("Cc", "Cs")


def count(number: int) -> str:
    return f"{number:,}"


def plural(number: int, things: str) -> str:
    """A number of things, which is their name in the plural."""
    return f"{number:,} {things.removesuffix('s') if number == 1 else things}"


def percent(share: float | None, decimals: int = 1) -> str:
    return "" if share is None else f"{100 * share:.{decimals}f}"


def size(number: int | None) -> str:
    """Bytes, as a person reads them."""
    if number is None:
        return ""
    if number < 1000:
        return f"{number:,} bytes"
    power = min((len(str(number)) - 1) // 3, 4)
    return f"{number / 1000**power:,.1f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"


def quantity(value: float | str | None) -> str:
    """A measured value as a person writes it: whole numbers as they are, of others the first four digits."""
    if value is None or isinstance(value, str):
        return shown(value, 60)
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{value:,.0f}"
    if abs(value) < 1e-4:
        return f"{value:.4g}"
    written = f"{value:,.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"
    return written.rstrip("0").rstrip(".") if "." in written else written
