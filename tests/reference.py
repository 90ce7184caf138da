"""What must come out, told once more in plain Python over the lists and the picture files."""

import csv
import hashlib
import html
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import ftfy
import pyarrow.parquet as pq
import regex
from icu4py.breakers import WordBreaker
from PIL import Image

Image.MAX_IMAGE_PIXELS = None

INVISIBLE = {0xAD, 0x61C, 0x200B, 0x200E, 0x200F, 0xFEFF, *range(0x202A, 0x202F), *range(0x2060, 0x2070)}


def clean(text: str) -> str:
    """What a reader sees of a text. Joiners and stranger invisible characters are left to the tests of cleaning."""
    before = None
    while text != before:
        before = text
        text = ftfy.fix_encoding(html.unescape(text))
        shown = (
            " " if c.isspace() else c
            for c in text
            if ord(c) not in INVISIBLE and (c.isspace() or unicodedata.category(c) != "Cc")
        )
        text = " ".join(unicodedata.normalize("NFC", "".join(shown)).split())
    return text


def uid_of(url: str, text: str) -> str:
    return hashlib.sha256(f"{url}\n{text}".encode()).hexdigest()[:32]


def lower(text: str) -> str:
    """Letter by letter, without regard to neighbours."""
    return "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


LETTER = regex.compile(r"[\p{L}\p{WB=ALetter}\p{WB=Katakana}\p{WB=Numeric}\p{LB=SA}--\p{WB=Extend}]", regex.V1)


def words_of(text: str) -> list[str]:
    """ICU's word segments that hold a letter or a digit."""
    return [lower(segment) for segment in WordBreaker(text, "en") if LETTER.search(segment)]


def rows_of(paths: Iterable[Path]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for path in paths:
        if path.suffix == ".csv":
            with open(path, newline="", encoding="utf-8-sig") as file:
                rows += [(row["url"] or "", row["text"] or "") for row in csv.DictReader(file)]
        else:
            table = pq.read_table(path).to_pydict()
            rows += [(url or "", text or "") for url, text in zip(table["url"], table["text"], strict=True)]
    return rows


@dataclass
class Pairs:
    """Lists, read: `pairs` maps uid to (url, text)."""

    rows_in: int
    quarantined: int
    repeated: int
    pairs: dict[str, tuple[str, str]]


def ingest(rows: Iterable[tuple[str, str]]) -> Pairs:
    result = Pairs(0, 0, 0, {})
    for raw_url, raw_text in rows:
        result.rows_in += 1
        url, text = raw_url.strip("\t\n\r "), clean(raw_text)
        if not url or not text or re.search(r"[\x00-\x20\x7f]", url) or len(raw_text) > 10_000:
            result.quarantined += 1
        elif (uid := uid_of(url, text)) in result.pairs:
            result.repeated += 1
        else:
            result.pairs[uid] = url, text
    return result


Verdicts = dict[str, list[tuple[str, float]]]


def screen(pairs: Mapping[str, tuple[str, str]], rules: Mapping[str, float]) -> Verdicts:
    """uid -> (rule, value) of every rule that it fails, in the rules' order."""
    sharing = Counter(text for _, text in pairs.values())
    words = {text: words_of(text) for text in sharing}
    frequency: Counter[str] = Counter()
    for _, text in pairs.values():
        frequency.update(words[text])
        frequency.update(" ".join(two) for two in zip(words[text], words[text][1:], strict=False))

    more_frequent = {n: sum(other > n for other in frequency.values()) for n in set(frequency.values())}

    def rarest_rank(text: str) -> int:
        grams = [*words[text], *(" ".join(two) for two in zip(words[text], words[text][1:], strict=False))]
        return 1 + more_frequent[min(frequency[gram] for gram in grams)] if grams else 0

    failed: Verdicts = defaultdict(list)
    for uid, (_, text) in pairs.items():
        measured = {
            "max_images_per_text": sharing[text],
            "min_words": -len(words[text]),
            "max_words": len(words[text]),
            "vocabulary": rarest_rank(text),
        }
        for rule, threshold in rules.items():
            limit = -threshold if rule == "min_words" else threshold
            if measured[rule] > limit:
                failed[uid].append((rule, float(abs(measured[rule]))))
    return failed


@dataclass
class Picture:
    """What came of a url: a cause of failure, or the picture's digest and size."""

    status: str
    sha256: str = ""
    width: int = 0
    height: int = 0
    size: int = field(default=0, compare=False)


def fault(seed: int, path: str) -> float:
    return int.from_bytes(hashlib.sha256(f"{seed}:{path}".encode()).digest()[:4], "big") / 2**32


def look(
    url: str,
    pictures: Path,
    faults: Mapping[str, float],
    max_megapixels: float,
    max_bytes: int,
    undecodable: Callable[[bytes], bool],
) -> Picture:
    path = urlsplit(url).path
    draw = fault(int(faults["seed"]), path)
    if draw < faults["missing"]:
        return Picture("http_404")
    if faults["missing"] + faults["slow"] <= draw < faults["missing"] + faults["slow"] + faults["stalled"]:
        return Picture("timeout")
    file = pictures / unquote(path).lstrip("/")
    if not file.is_file():
        return Picture("http_404")
    content = file.read_bytes()
    if len(content) > max_bytes:
        return Picture("max_bytes")
    try:
        with Image.open(file) as image:
            width, height = image.size
    except (OSError, ValueError, SyntaxError, ImportError):
        return Picture("not_image")
    if width * height > max_megapixels * 1e6:
        return Picture("max_pixels")
    if undecodable(content):
        return Picture("undecodable")
    return Picture("ok", hashlib.sha256(content).hexdigest(), width, height, len(content))


@dataclass(frozen=True)
class Stored:
    """A picture as the dataset holds it: its place, and ImageHash's hash of it."""

    key: str
    phash: int


def near_duplicates(looked: Mapping[str, Picture], stored: Mapping[str, Stored], radius: int) -> dict[str, int]:
    """sha256 -> least distance to a better picture that stays, of the pictures that have one within the radius."""
    first: dict[str, tuple[int, int, str, int]] = {}
    for url, picture in looked.items():
        if picture.status == "ok":
            at = stored[url]
            rank = (-picture.width * picture.height, -picture.size, at.key, at.phash)
            first[picture.sha256] = min(first.get(picture.sha256, rank), rank)
    staying: list[int] = []
    fallen = {}
    for sha256, (*_, phash) in sorted(first.items(), key=lambda item: item[1]):
        nearest = min(((phash ^ other).bit_count() for other in staying), default=99)
        if nearest <= radius:
            fallen[sha256] = nearest
        else:
            staying.append(phash)
    return fallen


@dataclass
class Outcome:
    """The whole chain's account, pair by pair."""

    ingested: Pairs
    screened: Verdicts
    pictures: dict[str, Picture]
    failed: dict[str, str] = field(default_factory=dict)
    filtered: Verdicts = field(default_factory=dict)

    @property
    def kept(self) -> set[str]:
        return set(self.ingested.pairs) - set(self.screened) - set(self.failed) - set(self.filtered)

    def first_causes(self) -> Counter[str]:
        return Counter(
            [rules[0][0] for rules in self.screened.values()]
            + list(self.failed.values())
            + [rules[0][0] for rules in self.filtered.values()]
        )


def chain(
    lists: Iterable[Path],
    pictures: Path,
    faults: Mapping[str, float],
    screen_rules: Mapping[str, float],
    filter_rules: Mapping[str, float],
    max_megapixels: float,
    max_bytes: int,
    undecodable: Callable[[bytes], bool] = lambda _: False,
    stored: Mapping[str, Stored] | None = None,
) -> Outcome:
    ingested = ingest(rows_of(lists))
    screened = screen(ingested.pairs, screen_rules)
    wanted = {uid: pair for uid, pair in ingested.pairs.items() if uid not in screened}
    looked = {
        url: look(url, pictures, faults, max_megapixels, max_bytes, undecodable)
        for url in {u for u, _ in wanted.values()}
    }
    outcome = Outcome(ingested, screened, looked)
    outcome.failed = {uid: looked[url].status for uid, (url, _) in wanted.items() if looked[url].status != "ok"}
    judged = {uid: (looked[url], text) for uid, (url, text) in sorted(wanted.items()) if looked[url].status == "ok"}
    texts: dict[str, set[str]] = defaultdict(set)
    for picture, text in judged.values():
        texts[picture.sha256].add(text)
    near = near_duplicates(looked, stored, int(filter_rules["near_duplicates"])) if stored else {}
    seen: Counter[tuple[str, str]] = Counter()
    for uid, (picture, text) in judged.items():
        seen[picture.sha256, text] += 1
        low, high = sorted((picture.width, picture.height))
        fails = {
            "side_above": (low, low <= filter_rules["side_above"]),
            "aspect_below": (high / low, high / low >= filter_rules["aspect_below"]),
            "max_texts_per_image": (
                len(texts[picture.sha256]),
                len(texts[picture.sha256]) > filter_rules["max_texts_per_image"],
            ),
            "max_copies": (seen[picture.sha256, text], seen[picture.sha256, text] > filter_rules["max_copies"]),
            "near_duplicates": (near.get(picture.sha256, 0), picture.sha256 in near),
        }
        verdicts = [(rule, float(fails[rule][0])) for rule in filter_rules if fails[rule][1]]
        if verdicts:
            outcome.filtered[uid] = verdicts
    return outcome
