"""The report's charts: counts against slow ones, boxes that add up, and SVG that can stand in any page."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.report import boxes, histograms, icicle, samples, thresholds
from pipeline.report.distributions import bars_by_name
from pipeline.report.failures import failures
from pipeline.report.funnel import Step
from pipeline.report.histograms import Histogram, histogram
from pipeline.report.wording import quantity, shown, size
from pipeline.report.words import Term, log_odds, words
from pipeline.rules import RULES
from pipeline.texts.words import words_of

SVG = "{http://www.w3.org/2000/svg}"
NUMBERS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(-100, 100),
    st.integers(-5, 60).map(float),
    st.floats(0, 1e9).map(lambda number: round(number, 1)),
)
HARMLESS = {"svg", "g", "path", "line", "text", "title", "rect"}
HOSTILE = '</svg><script>alert(1)</script>]]>"\' onload="x" \u202e&amp; {{ 7 }}'


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        yield connection


def counted(edges: list[float], values: list[float], left_closed: bool) -> list[int]:
    """How many values each bar holds, one by one; the ends hold what lies beyond."""
    bars = [0] * (len(edges) - 1)
    for value in values:
        at = sum(edge <= value if left_closed else edge < value for edge in edges) - 1
        bars[min(max(at, 0), len(bars) - 1)] += 1
    return bars


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(NUMBERS, min_size=1, max_size=60),
    threshold=st.one_of(st.none(), st.floats(-1e6, 1e6), st.integers(-3, 30).map(float)),
    left_closed=st.booleans(),
)
@example([1e17], None, True)
@example([1e99, -1e99], 3.0, False)
@example([5.0, 5.0], 5.0, True)
@example([5.0, 5.0], 5.0, False)
@example([0.0, 0.0, 1.0, 5000.0], 1.0, True)
@example([1e-300, 1.0], None, True)
@example([0.1, 0.2, 1e6], 1e5, False)
@example([1.0, 200.0], 1e-205, False)
def test_bars_count_what_one_would_count(values: list[float], threshold: float | None, left_closed: bool) -> None:
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.register("measured", pa.table({"value": pa.array(values, pa.float64(), from_pandas=False)}))
        bars = histogram(connection, "measured", "value", ["value > 3", "true"], threshold, left_closed)
    numbers = [value for value in values if abs(value) < histograms.LARGEST]
    if not numbers:
        assert bars is None
        return
    assert bars is not None
    assert bars.missing == len(values) - len(numbers)
    assert all(left < right for left, right in pairwise(bars.edges))
    assert len(bars.edges) <= 2 * histograms.MOST_SINGLE + 4
    groups = [[value for value in numbers if value > 3], [value for value in numbers if not value > 3]]
    assert bars.counts == [counted(bars.edges, own, left_closed) for own in groups]
    before = [value < bars.edges[0] if left_closed else value <= bars.edges[0] for value in numbers]
    behind = [value >= bars.edges[-1] if left_closed else value > bars.edges[-1] for value in numbers]
    assert bars.beyond == (sum(before), sum(behind))
    if threshold is not None:
        at = bars.edges.index(threshold)
        lower = sum(value < threshold if left_closed else value <= threshold for value in numbers)
        assert sum(sum(own[:at]) for own in bars.counts) == lower


def test_rows_of_no_group_count_nowhere(connection: duckdb.DuckDBPyConnection) -> None:
    connection.register("measured", pa.table({"value": [1.0, 2.0, None, 9.0]}))
    bars = histogram(connection, "measured", "value", ["value < 5"])
    assert bars is not None
    assert bars.total == 2
    assert bars.missing == 0


def test_a_threshold_far_away_is_drawn_on_a_logarithmic_axis(connection: duckdb.DuckDBPyConnection) -> None:
    connection.register("measured", pa.table({"value": np.arange(1.0, 2000.0)}))
    bars = histogram(connection, "measured", "value", threshold=1e8, left_closed=False)
    assert bars is not None
    assert bars.log
    drawing = histograms.chart(bars, "far", ["var(--kept)"], [""])
    root = ElementTree.fromstring(drawing.svg)
    titles = [title.text for title in root.iter(f"{SVG}title")]
    assert "threshold 100,000,000" in titles
    assert len(titles) == 1 + sum(1 for count in bars.counts[0] if count)
    assert histograms.remarks(bars)[0] == "logarithmic axis"
    assert "1,999 pairs" in drawing.alternative


def test_bars_are_as_high_as_their_counts(connection: duckdb.DuckDBPyConnection) -> None:
    connection.register("measured", pa.table({"value": [1.0] * 8 + [2.0] * 4 + [3.0] * 2}))
    bars = histogram(connection, "measured", "value")
    assert bars is not None
    root = ElementTree.fromstring(histograms.chart(bars, "t", ["var(--kept)"], [""]).svg)
    heights = {}
    for path in root.iter(f"{SVG}path"):
        title = path.find(f"{SVG}title")
        if title is not None:
            heights[title.text] = float(path.attrib["d"].split("v")[1].split("h")[0])
    assert heights["1: 8 pairs"] == pytest.approx(2 * heights["2: 4 pairs"])
    assert heights["1: 8 pairs"] == pytest.approx(4 * heights["3: 2 pairs"])
    assert [text.text for text in root.iter(f"{SVG}text") if text.get("text-anchor") != "end"] == [
        "1",
        "2",
        "3",
        "pairs",
    ]


def _steps(draw: Any, pairs_in: int) -> tuple[list[Step], int]:
    left, steps = pairs_in, []
    for number in range(draw(st.integers(0, 12))):
        dropped = draw(st.integers(0, left))
        left -= dropped
        stage = ["ingest", "screen", "download", "filter"][number // 3]
        steps.append(Step(stage, f"rule {number}", dropped, left, pairs_in))
    return steps, left


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_boxes_of_the_icicle_add_up(data: st.DataObject) -> None:
    pairs_in = data.draw(st.integers(1, 10**9))
    steps, kept = _steps(data.draw, pairs_in)
    train = data.draw(st.integers(0, kept))
    root = icicle.tree(steps, kept, {"train": train, "test": kept - train})
    assert root.pairs == pairs_in

    def check(part: icicle.Part) -> None:
        assert part.pairs > 0
        if part.parts:
            assert part.pairs == sum(inner.pairs for inner in part.parts)
        for inner in part.parts:
            check(inner)

    check(root)
    height = 400
    placed = icicle.boxes(root, height)
    for level in range(3):
        own = sorted((box["top"], box["bottom"]) for box in placed if box["level"] == level)
        assert all(bottom <= top + 1e-6 for (_, bottom), (top, _) in pairwise(own))
        # Every pair is in one box of the second level, and of the third where splits are fixed.
        assert sum(bottom - top for top, bottom in own) == pytest.approx(height)
    assert sum(box["pairs"] for box in placed if box["level"] == 2 and box["kept"]) == kept


def test_the_icicle_fits_both_widths() -> None:
    steps = [Step("screen", "<b>" * 40, 600, 400, 1000), Step("filter", "tiny", 1, 399, 1000)]
    drawn = icicle.drawings(steps, 399, {"train": 399})
    assert list(drawn) == ["wide", "narrow"]
    for name, drawing in drawn.items():
        root = ElementTree.fromstring(drawing.svg)
        width, height = (float(number) for number in root.attrib["viewBox"].split()[2:])
        assert (width, height) == pytest.approx(icicle.SIZES[name], abs=1)
        assert len(list(root.iter(f"{SVG}title"))) == 7
        assert "tiny: 1 pairs, 0.1 %" in drawing.alternative
    assert not icicle.drawings([], 0, {})


def test_svg_holds_nothing_that_runs_or_reaches_out() -> None:
    drawing = bars_by_name([(shown(HOSTILE, 200), 3, 4), (shown("\x00\ud800\uffff"), 0, 1)], shown(HOSTILE), "things")
    root = ElementTree.fromstring(drawing.svg)
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= HARMLESS
    names = {name for element in root.iter() for name in element.attrib}
    assert not [name for name in names if name.startswith("on") or "href" in name or "font-family" in name]
    assert "<script" not in drawing.svg
    assert HOSTILE.replace("\u202e", "\ufffd") in [
        title.text.split(": 3 things")[0] for title in root.iter(f"{SVG}title")
    ]
    assert "#" not in "".join(
        value for element in root.iter() for value in (element.get("fill"), element.get("stroke")) if value
    )


def test_two_drawings_in_one_page_share_no_ids() -> None:
    from pipeline.report.curves import _line, _panel

    drawn = [
        _panel([_line(np.arange(3), np.array(values), "red", 1.0)], [0, 1], "t", "s")
        for values in ([0, 1, 0], [1, 0, 1])
    ]
    ids = [{element.get("id") for element in ElementTree.fromstring(chart.svg).iter()} - {None} for chart in drawn]
    assert ids[0]  # the lines are clipped
    assert not ids[0] & ids[1]
    again = _panel([_line(np.arange(3), np.array([0, 1, 0]), "red", 1.0)], [0, 1], "t", "s")
    assert again.svg == drawn[0].svg


def _pairs(connection: duckdb.DuckDBPyConnection, texts: list[str], kept: list[bool]) -> None:
    uids = [f"{number * 2**28 % 2**32:08x}{number:024x}" for number in range(len(texts))]
    connection.execute("CREATE OR REPLACE TEMP TABLE pairs (uid VARCHAR, text VARCHAR)")
    connection.executemany("INSERT INTO pairs VALUES (?, ?)", list(zip(uids, texts, strict=True)))
    connection.execute(f"CREATE OR REPLACE TEMP TABLE {samples.KEPT_UIDS} (uid VARCHAR)")
    connection.executemany(
        f"INSERT INTO {samples.KEPT_UIDS} VALUES (?)", [[uid] for uid, own in zip(uids, kept, strict=True) if own]
    )


def test_words_are_counted_as_one_would(connection: duckdb.DuckDBPyConnection) -> None:
    texts = ["a red red car", "a blue car", "Red sky at night", "", "!!!", "one 東京タワー red", "a a a a"] * 2
    kept = [True, False, True, True, False, False, False] * 2
    _pairs(connection, texts, kept)
    found = words(connection)
    assert found is not None
    assert (found.counted, found.pairs) == (14, 14)
    for terms, length in ((found.words, 1), (found.word_pairs, 2)):
        counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        for text, own in zip(texts, kept, strict=True):
            split = words_of(text)
            counts[own].update(" ".join(split[at : at + length]) for at in range(len(split) - length + 1))
        expected = {
            Term(term, 1000 * counts[True][term] / 6, 1000 * counts[False][term] / 8)
            for term in counts[True] | counts[False]
        }
        assert {(term.text, round(term.kept, 6), round(term.dropped, 6)) for term in terms.frequent} <= {
            (term.text, round(term.kept, 6), round(term.dropped, 6)) for term in expected
        }
        assert len(terms.frequent) == min(len(expected), 12)
        both = [term.kept * 6 + term.dropped * 8 for term in terms.frequent]
        assert both == sorted(both, reverse=True)
        assert all(term.kept > term.dropped for term in terms.of_kept)
        assert all(term.dropped > term.kept for term in terms.of_dropped)
    assert found.words.of_kept[0].text in ("red", "sky", "night", "at")
    assert found.words.of_dropped[0].text == "a"


def test_only_a_sample_is_counted_where_there_are_many(connection: duckdb.DuckDBPyConnection) -> None:
    _pairs(connection, [f"text number {number}" for number in range(64)], [number % 2 == 0 for number in range(64)])
    found = words(connection, sample=32)
    assert found is not None
    assert found.pairs == 64
    assert found.counted == 32
    _pairs(connection, ["one", "two"], [True, True])
    assert words(connection) is None


def test_log_odds_are_those_of_the_formula() -> None:
    one, other = [10.0, 0.0, 3.0], [2.0, 5.0, 3.0]
    total = sum(one) + sum(other)
    whole_prior = 0.1 * total
    for at, score in enumerate(log_odds(np.array(one), np.array(other))):
        prior = whole_prior * (one[at] + other[at]) / total
        a, b = one[at] + prior, other[at] + prior
        ratio = math.log(a / (sum(one) + whole_prior - a)) - math.log(b / (sum(other) + whole_prior - b))
        assert score == pytest.approx(ratio / math.sqrt(1 / a + 1 / b))
    assert log_odds(np.array([4.0]), np.array([1.0])).tolist() == [0.0]


def test_what_stands_on_one_side_alone_and_often_is_most_typical_of_it() -> None:
    # "the" is a little more frequent where texts were dropped, "magick" and "once" stand nowhere else.
    kept, dropped = np.array([9000.0, 0.0, 0.0, 50_000.0]), np.array([9800.0, 450.0, 1.0, 49_000.0])
    the, magick, once, _ = -log_odds(kept, dropped)
    assert magick > the > once > 0


def test_hosts_and_causes_add_up(connection: duckdb.DuckDBPyConnection) -> None:
    rows = []
    for host in range(30):
        for number in range(host + 1):
            status = "ok" if number % 3 == 0 else f"http_{400 + number % 2}"
            rows.append(
                (
                    f"{number}-{host}",
                    f"http://User@HOST{host}.example:80/{number}.jpg",
                    status,
                    number / 10,
                    1 + number % 2,
                )
            )
    rows.append(("none", "no url at all", "bad_url", 0.1, 0))
    connection.execute(
        "CREATE TABLE images (key VARCHAR, url VARCHAR, status VARCHAR, seconds DOUBLE, attempts INTEGER)"
    )
    connection.executemany("INSERT INTO images VALUES (?, ?, ?, ?, ?)", rows)
    connection.execute("CREATE VIEW fetches AS SELECT url, status, seconds, attempts FROM images")
    found = failures(connection)
    assert found is not None
    assert {cause: failure.urls for cause, failure in found.causes.items()} == Counter(
        row[2] for row in rows if row[2] != "ok"
    )
    assert found.all_hosts == 31
    assert [host.name for host in found.hosts[:2]] in (
        ["host29.example", "host28.example"],
        ["host28.example", "host29.example"],
    )
    for host in found.hosts:
        own = [row for row in rows if f"@{host.name}:".upper() in row[1].upper()]
        assert host.urls == len(own)
        assert host.causes == Counter(row[2] for row in own if row[2] != "ok")
        assert host.attempts == pytest.approx(np.mean([row[4] for row in own]))
        assert sorted(row[3] for row in own)[(len(own) - 1) // 2] == host.seconds
    assert found.seconds is not None
    connection.execute("DELETE FROM images WHERE status <> 'ok'")
    assert failures(connection) is None


def test_numbers_are_written_for_people() -> None:
    assert [quantity(number) for number in (3.0, 0.1234567, 12345.678, -0.5, 1e18)] == [
        "3",
        "0.1235",
        "12,346",
        "-0.5",
        "1,000,000,000,000,000,000",
    ]
    assert quantity(math.inf) == "inf"
    assert quantity(None) == ""
    assert quantity(1e-300) == "1e-300"
    assert [size(number) for number in (999, 1000, 999_999, 10**6, 5 * 10**12)] == [
        "999 bytes",
        "1.0 kB",
        "1,000.0 kB",
        "1.0 MB",
        "5.0 TB",
    ]


def test_an_empty_histogram_draws(connection: duckdb.DuckDBPyConnection) -> None:
    bars = Histogram([0.0, 1.0], [[0]], True, False, True, (0, 0), 0)
    assert "<svg" in histograms.chart(bars, "t", ["var(--kept)"], [""]).svg


def test_a_bar_that_towers_over_the_others_is_cut_and_said() -> None:
    bars = Histogram([0.0, 1.0, 2.0, 3.0], [[900, 3, 10], [100, 4, 0]], True, False, True, (0, 0), 0)
    assert bars.top == 20
    assert histograms.remarks(bars, "urls") == ["one bar is cut off: it holds 1,000 urls"]
    level = Histogram([0.0, 1.0, 2.0], [[30, 10]], True, False, True, (0, 0), 0)
    assert level.top == 30
    assert histograms.remarks(level) == []


@pytest.mark.parametrize("left_closed", [True, False])
@pytest.mark.parametrize("values", [range(1, 30), range(1, 1574)])
def test_whole_numbers_are_said_as_such(
    connection: duckdb.DuckDBPyConnection, values: range, left_closed: bool
) -> None:
    connection.register("measured", pa.table({"value": np.array(values, float)}))
    bars = histogram(connection, "measured", "value", threshold=9.0, left_closed=left_closed)
    drawing = histograms.chart(bars, "t", ["var(--kept)"], [""], measured="words of the text")
    assert drawing.alternative.startswith(f"{len(values):,} pairs from {values[0]} to {quantity(values[-1])}, ")
    assert "." not in drawing.alternative
    said = re.findall(r"<title>([\d,]+)(?: to ([\d,]+))?: ([\d,]+) pairs?</title>", drawing.svg)
    assert len(said) == sum(map(bool, bars.heights))
    held = 0
    for first, last, pairs in said:
        low, high = (int((end or first).replace(",", "")) for end in (first, last))
        held += int(pairs.replace(",", ""))
        assert len(set(range(low, high + 1)) & set(values)) == int(pairs.replace(",", ""))
    assert held == len(values)
    assert "words of the text" in drawing.svg


@given(
    st.lists(st.tuples(*[st.floats(0, 100)] * 4), max_size=boxes.BOXES),
    st.floats(0.02, 50),
)
def test_no_number_hides_another(corners: list[tuple[float, float, float, float]], aspect: float) -> None:
    drawn = [
        boxes.Box(min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1), "label", 0.5, True)
        for x1, y1, x2, y2 in corners
    ]
    badges = boxes.Region("key", drawn, len(drawn)).badges(aspect)
    assert len(badges) == len(drawn)
    for one, other in itertools.combinations(badges, 2):
        apart = max(abs(one.left - other.left) / boxes.BADGE, abs(one.top - other.top) / one.height)
        assert apart > 0.999
    for badge in badges:
        assert 0 <= badge.left <= 100 - boxes.BADGE
        assert 0 <= badge.top <= 100 - badge.height


def test_a_number_that_stands_alone_is_in_the_corner_of_its_box() -> None:
    apart = [boxes.Box(at, at, 20, 20, "label", 0.5, True) for at in (5, 50)]
    assert [(badge.left, badge.top) for badge in boxes.Region("key", apart, 2).badges(1.5)] == [(5, 5), (50, 50)]


def test_every_name_of_an_axis_is_a_measure() -> None:
    assert set(thresholds.MEASURED) <= {rule.measure for rule in RULES.values()}
