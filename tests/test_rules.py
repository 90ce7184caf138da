"""The rules as data: their sides, their thresholds, and what the expressions over url and text catch."""

import math
import operator
import re
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from pipeline.rules import RULES, Rule, check_threshold, rule_of, rules_of

NUMERIC = [rule for rule in RULES.values() if rule.takes == "number"]


def measured(rule: str, **columns: str) -> Any:
    """The measure of a rule on one pair of a url and a text."""
    with duckdb.connect() as connection:
        pair = pa.table({name: [value] for name, value in {"url": "", "text": "", **columns}.items()})
        connection.register("pair", pair)
        (value,) = connection.execute(f"SELECT {RULES[rule].measure} FROM pair").fetchone() or (None,)
        return value


def failing(rule: Rule, threshold: Any, values: list[Any], kind: pa.DataType) -> list[Any]:
    """Which of the values, as those of the column that the rule measures, fail."""
    with duckdb.connect() as connection:
        connection.register("signals", pa.table({rule.measure: pa.array(values, kind)}))
        rows = connection.execute(f"SELECT {rule.measure} FROM signals WHERE {rule.predicate(threshold)}").fetchall()
        return [value for (value,) in rows]


def test_every_rule_has_a_source_and_a_meaning_and_its_own_name() -> None:
    for name, rule in RULES.items():
        assert name == rule.name
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
        assert re.search(r"\(.* \d{4}\)|PairMill", rule.source), name
        assert rule.meaning
        assert rule.meaning[0].islower()
        assert not rule.meaning.endswith(".")
    assert sorted(rules_of("screen") + rules_of("filter")) == sorted(RULES)


@pytest.mark.parametrize("rule", NUMERIC, ids=lambda rule: rule.name)
def test_a_name_says_on_which_side_its_threshold_is(rule: Rule) -> None:
    below, on, above = 2.5, 3.0, 3.5
    fails = failing(rule, 3, [below, on, above, None], pa.float64())
    if rule.name.startswith("min_"):
        assert fails == [below]
    elif rule.name.startswith("max_"):
        assert fails == [above]
    elif rule.name.endswith("_above"):
        assert fails == [below, on]
    elif rule.name.endswith("_below"):
        assert fails == [on, above]
    elif rule.name.startswith("near_"):  # a distance: as near as this, or nearer
        assert fails == [below, on]
    else:
        assert rule.name in {"vocabulary", "balanced_queries", "evaluation_similarity", "semantic_duplicates"}
        assert fails == [above]


@pytest.mark.parametrize("rule", NUMERIC, ids=lambda rule: rule.name)
def test_nothing_measured_never_fails_and_infinity_is_greater_than_all(rule: Rule) -> None:
    infinity = float("inf")
    assert failing(rule, 3, [None], pa.float64()) == []
    assert failing(rule, 3, [infinity], pa.float64()) == ([infinity] if rule.fails_if in (">", ">=") else [])


@pytest.mark.parametrize("rule", [*NUMERIC, RULES["top_clip_fraction"]], ids=lambda rule: rule.name)
def test_nan_is_not_measured_and_a_threshold_may_be_any_other_float(rule: Rule) -> None:
    compares = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "not in top": operator.lt}
    values = [-math.inf, -1.7e308, -0.0, 0.0, 5e-324, 0.3, 0.1 + 0.2, 1e308, math.inf]
    for threshold in values:
        expected = [value for value in values if compares[rule.fails_if](value, threshold)]
        assert failing(rule, threshold, [*values, math.nan, -math.nan, None], pa.float64()) == expected
    assert failing(rule, 3, ["nan", "-nan", "NaN"], pa.string()) == []


def test_a_whole_number_is_compared_without_loss() -> None:
    assert failing(RULES["vocabulary"], 100_000_000, [99_999_999, 100_000_000, 100_000_001], pa.int64()) == [
        100_000_001
    ]
    assert failing(RULES["min_clip_score"], 0.28, [0.2799999, 0.28, 0.2800001], pa.float64()) == [0.2799999]


def test_names_and_what_is_found() -> None:
    assert failing(RULES["languages"], ["en", "d'e"], ["en", "d'e", "fr", "und", None], pa.string()) == ["fr", "und"]
    assert failing(RULES["blocked_hosts"], True, ["evil.net", None], pa.string()) == ["evil.net"]
    blocked = RULES["blocked_extensions"].predicate(["png", "svg"])
    with duckdb.connect() as connection:
        urls = pa.table({"url": ["http://a/x.png", "http://a/x.SVG?v=1", "http://a/x.jpg", "http://a/x"]})
        connection.register("signals", urls)
        fails = connection.execute(f"SELECT url FROM signals WHERE {blocked}").fetchall()
    assert fails == [("http://a/x.png",), ("http://a/x.SVG?v=1",)]


@pytest.mark.parametrize(
    ("stage", "name", "threshold", "message"),
    [
        ("screen", "min_words", "3", "takes a number, not '3'"),
        ("screen", "min_words", True, "takes a number, not True"),
        ("screen", "min_words", [3], "takes a number"),
        ("screen", "languages", "en", "takes a list of names, not 'en'"),
        ("screen", "languages", [], "takes a list of names"),
        ("screen", "languages", [1], "takes a list of names"),
        ("screen", "no_email", 1, "takes true, not 1"),
        ("screen", "no_email", "yes", "takes true"),
        ("filter", "top_clip_fraction", 30, "takes a number from 0 to 1, not 30"),
        ("filter", "top_clip_fraction", -0.1, "takes a number from 0 to 1"),
        ("filter", "top_clip_fraction", True, "takes a number from 0 to 1"),
        ("filter", "min_words", 3, "there is no rule 'min_words' in this stage; allowed: side_above, "),
        ("screen", "min_side", 3, "there is no rule 'min_side' in this stage; allowed: max_images_per_text, "),
        ("screen", "minwords", 3, "there is no rule 'minwords'"),
        ("screen", "min_words", {"keep_if": "words > 3"}, "is the name of something that is there already"),
    ],
)
def test_refuses_a_threshold_that_does_not_fit(stage: str, name: str, threshold: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check_threshold(stage, name, threshold)


@pytest.mark.parametrize("name", RULES)
def test_takes_what_it_says_it_takes(name: str) -> None:
    fits = {"number": 3, "fraction": 0.3, "true": True, "names": ["a"]}
    for takes, threshold in fits.items():
        if takes == RULES[name].takes or (takes, RULES[name].takes) == ("fraction", "number"):
            check_threshold(RULES[name].stage, name, threshold)
            assert rule_of(RULES[name].stage, name, threshold) is RULES[name]
        else:
            with pytest.raises(ValueError, match=f"the rule '{name}' takes"):
                check_threshold(RULES[name].stage, name, threshold)


HOSTS = {
    "http://example.com/a.jpg": "example.com",
    "HTTPS://WWW.Example.COM": "www.example.com",
    "http://example.com:8080/": "example.com",
    "http://example.com./": "example.com",
    "http://example.com?x=http://other.net/": "example.com",
    "http://example.com#@other.net": "example.com",
    "http://user:pa@ss@example.com/x@y": "example.com",
    "http://[2001:DB8::1]:80/x": "[2001:db8::1]",
    "http://127.0.0.1/": "127.0.0.1",
    "http://bücher.de/x": "bücher.de",
    "ftp://files.net/x": "files.net",
    "http://good.net/http://example.com/": "good.net",
    "http://a.b:x/": "",
    "http:///x": "",
    "http://": "",
    "mailto:me@example.com": "",
    "//example.com/x": "",
    "example.com/x": "",
    "": "",
}


@pytest.mark.parametrize(("url", "host"), HOSTS.items())
def test_host(url: str, host: str) -> None:
    assert measured("hosts", url=url) == host


@pytest.mark.parametrize(
    ("url", "extension"),
    {
        "http://a.com/b.jpg": "jpg",
        "http://a.com/b.JPEG": "jpeg",
        "http://a.com/b.png?w=100": "png",
        "http://a.com/b.gif#top": "gif",
        "http://a.com/v1.2/b.webp": "webp",
        "http://a.com/b.tar.gz": "gz",
        "http://pbs.twimg.com/media/x.jpg:large": "jpg",
        "http://a.com/x.jpg;jsessionid=1": "jpg",
        "http://a.com/x.jpg!thumb": "jpg",
        "http://a.com/x.png&w=100": "png",
        "http://a.com/image.php?file=b.jpg": "php",
        "http://a.com/x.7": "7",
        "http://a.com/b": None,
        "http://a.com/b.jpg/": None,
        "http://a.com/v1.2/b": None,
        "http://a.com/b.": None,
        "http://a.com/b.superlong": None,
        "http://a.com/?f=b.jpg": None,
        "http://a.com/#b.jpg": None,
        "http://a.com": None,
        "http://a.com/": None,
        "http://a.com?b.jpg": None,
        "b.jpg": None,
        "": None,
    }.items(),
)
def test_extension(url: str, extension: str | None) -> None:
    assert measured("extensions", url=url) == extension
    assert measured("blocked_extensions", url=url) == extension


@pytest.mark.parametrize(
    ("url", "scheme"),
    {"http://a": "http", "HTTPS://a": "https", "data:image/png;base64,x": "data", "//a/b": "", "a/b:c": ""}.items(),
)
def test_scheme(url: str, scheme: str) -> None:
    assert measured("schemes", url=url) == scheme


@pytest.mark.parametrize(
    ("text", "address"),
    {
        "write to jane.doe+news@mail.example.co.uk, or call": "jane.doe+news@mail.example.co.uk",
        "<a@b.io>": "a@b.io",
        "mailto:ME@EXAMPLE.COM": "ME@EXAMPLE.COM",
        "qq 12345@163.com": "12345@163.com",
        "x@3m.com and y@z.org": "x@3m.com",
        "me@xn--bcher-kva.de": "me@xn--bcher-kva.de",
        "日本a@b.jp語": "a@b.jp",
        "Out Of Space Psytrance Club // Weberknecht@Weberknecht": None,
        "Celebrity Photo 4.2 mb @BestEyeCandy.com": None,
        "17.62€ @ Zavvi": None,
        "logo@2x.png": None,
        "icon-60@3x.png and icon@2X.jpg": None,
        "New York City@Night.The lights": None,
        "@paper_kawaii via @apriltwoeighty": None,
        "a@b": None,
        "a@.com": None,
        "http://flickr.com/photos/143546559@N02/4115502075": None,
    }.items(),
)
def test_email(text: str, address: str | None) -> None:
    assert measured("no_email", text=text) == address


@pytest.mark.parametrize(
    ("text", "number"),
    {
        "Computer Repair Bellevue Ne 402-505-6600": "402-505-6600",
        "call 1-800-555-0199 now": "1-800-555-0199",
        "(402) 505-6600": "(402) 505-6600",
        "(402)505-6600.": "(402)505-6600",
        "402.505.6600, ask for Jo": "402.505.6600",
        "Info: +30 697 435 0179 momixbar": "+30 697 435 0179",
        "+14025056600": "+14025056600",
        "+44 20 7946 0958": "+44 20 7946 0958",
        "+33 1 23 45 67 89": "+33 1 23 45 67 89",
        "Tel: +49 (30) 1234 5678": "+49 (30) 1234 5678",
        "Praxis (030) 1234 5678": "(030) 1234 5678",
        # article numbers, dates, years, sizes, coordinates
        "ISBN 978-0-306-40615-7": None,
        "9780340829752: Dark Tower I": None,
        "555088 688 - Best Online Sale": None,
        "2010-01-12 17:00:00": None,
        "12-07-1962-375.000": None,
        "For 99 00 01 02 03 04 Jeep": None,
        "Vogue (2015) 100-150 pages": None,
        "(1998) 200-300": None,
        "1-2-3-4-5-6-7-8-9-10-11-12-13-14-15 Lot": None,
        "123-456-7890 part": None,
        "1969/1970/1971/1972 CHEVELLE": None,
        "scale 402-505-66001": None,
        "part 978-402-505-6600": None,
        "v1.402.505.6600": None,
        "3/402-505-6600": None,
        "N+1 redund. 400V": None,
        "OffSet +48 17x7": None,
        "255/45-18 110/90-19 - 2000": None,
        "3.14159265358979": None,
        "192.168.100.1000": None,
    }.items(),
)
def test_phone(text: str, number: str | None) -> None:
    assert measured("no_phone", text=text) == number


@pytest.mark.parametrize(
    "text",
    [
        "IMG_1234",
        "img 20190824 0714.JPG",
        "DSC00361",
        "DSC_0042 (2)",
        "DSCN1034.jpg",
        "P1010042",
        "WP_20150403_14_22",
        "Screenshot 2020-05-01 at 10.11.12 PM",
        "Photo 15",
        "image #3 of 10",
        "Image",
        "photo_7",
        "7672-eco-cotton-culottes-87-lfs.jpg",
        "Фото_на_память.png",
        "Solomon_Islands.png",
        "deadbeef-0000-4000-8000-0123456789ab",
        "https://upload.wikimedia.org/a/b.jpg",
        "www.example.com",
        "Untitled",
        "[ no image available ]",
        "Image not available",
        "image coming soon!",
        "Loading...",
        "  Avatar ",
        "user avatar",
        "Profile photo",
        "Click to enlarge",
        "Click here to view larger image",
        "Tap to zoom in",
        "View larger image",
        "Share on Facebook",
        "Pin it on Pinterest",
        "Read more »",
        "Add to cart",
        "Embedded image permalink",
        "Added to wishlist",
    ],
)
def test_boilerplate(text: str) -> None:
    assert measured("no_boilerplate", text=text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A photo of a cat",
        "Photo 15: DOWNTOWN Condo for sale",
        "Image of Victorian Ottomans and Footstools",
        "Thumbnail 3 bed flat to rent in Vincent Square, London",
        "LOGONA Natural Nail Top Coat",
        "Logo Décompressing",
        "логотип logo завода",
        "日本 photo 3 日本",
        "Avatar: The Way of Water",
        "Loading dock at the harbour",
        "Banner of the king",
        "No image can do it justice",
        "Share this moment with grandma",
        "Read more books poster",
        "Click this cover for a(n) eBook sample of In the City of Bikes.",
        "Click here for more info about 'Boston - Boston'",
        "Fox Crochet Hat.jpg",
        "Shiseido Revital Set 20g.2pcs",
        "See www.example.com for the whole set",
        "Screenshot - Armello (PS4)",
        "Scan of a 3 week old baby",
        "P100 filter",
        "Add to the collection",
        "IMGA_41229 M31 Andromeda Galaxy",
        "1984",
    ],
)
def test_no_boilerplate(text: str) -> None:
    assert measured("no_boilerplate", text=text) is None


@pytest.mark.parametrize("rule", ["no_email", "no_phone", "no_boilerplate"])
def test_a_huge_text_is_searched_in_good_time(rule: str) -> None:
    for piece in ["a", "1", "+1 ", "a@", "img 1 ", ".", "( ", "402-505-"]:
        measured(rule, text=piece * 200_000)


def test_the_document_lists_every_rule_as_it_is() -> None:
    document = (Path(__file__).parent.parent / "docs" / "rules.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", document, re.MULTILINE)
    listed = [(name, takes.strip(), fails.strip(), source.strip()) for name, takes, fails, source in rows]
    assert listed == [(rule.name, rule.takes, rule.meaning, rule.source) for rule in RULES.values()]
