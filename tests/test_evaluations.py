"""`evaluation.json`: what its reader takes can be shown; and what the page compares."""

import copy
import json
import math
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluations import Evaluation, TextQuery, read
from pipeline.report.retrieval import QUERIES, RUNS, WAYS, comparisons, rows
from pipeline.report.wording import count, percent

RECALLS = {f"{way}_r{cut}": 0.5 for way in WAYS for cut in (1, 5, 10)}
WHOLE: dict[str, Any] = {
    "key": "0" * 32,
    "retrieval": RECALLS | {"chance_r10": 0.25, "chance_t2i_r1": 0.125, "texts": 178, "images": 118},
    "retrieval_by_cosine": RECALLS | {"chance_r10": 0.25},
    "examples": [{"text": "a cat", "top": ["00000001", "00000002"], "right": ["00000002"]}],
    "image_examples": [{"image": "00000002", "top": ["a dog", "a cat"], "right": ["a cat"]}],
    "seconds": 1.5,
}
OPTIONAL = [
    ("retrieval_by_cosine",),
    ("examples",),
    ("image_examples",),
    *(("retrieval", name) for name in ("chance_t2i_r1", "texts", "images")),
    *(("retrieval_by_cosine", name) for name in WHOLE["retrieval_by_cosine"]),
]
ODD = st.sampled_from([None, True, "", "0.5", 7, [], {}, -1, 10**400, 1e999, math.nan, 1.5, [[]], [None], {"": {}}])
JSON = st.recursive(
    ODD | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*WHOLE, "text"]), inner, max_size=4),
    max_leaves=8,
)


def _places(value: Any, *path: Any) -> list[tuple[Any, ...]]:
    """The ways to everything in a value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for name, inner in inside for place in _places(inner, *path, name))]


PLACES = [place for place in _places(WHOLE) if place]


def _read(content: bytes) -> Evaluation | None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "evaluation.json"
        path.write_bytes(content)
        return read(path)


def _inside(value: Any, place: tuple[Any, ...]) -> Any:
    """What holds the last name of a place."""
    for name in place[:-1]:
        value = value[name]
    return value


def _assert_can_be_shown(evaluation: Evaluation) -> None:
    """What the summary and the page make of an evaluation, they make of this one."""
    json.dumps(evaluation.model_dump(), allow_nan=False).encode()
    (row,) = rows({"run": evaluation})
    for way in WAYS:
        for cut in (1, 5, 10):
            assert 0 <= float(percent(row.recall[way, cut])) <= 100
            percent(row.chance[way, cut])
        assert (row.times_chance(way) or 0) >= 0
    assert int((count(row.texts) + count(row.images)).replace(",", "")) >= 0
    assert 0 <= 100 * evaluation.retrieval["chance_r10"] <= 100
    assert round(evaluation.seconds, 2) >= 0
    for way in comparisons({"run": evaluation}).values():
        for comparison in way:
            for text in (comparison.query, *comparison.answers):
                text.encode()


def test_a_whole_one_is_read() -> None:
    evaluation = _read(json.dumps(WHOLE).encode())
    assert evaluation is not None
    assert evaluation.model_dump() == WHOLE
    assert isinstance(evaluation.retrieval["texts"], int)
    _assert_can_be_shown(evaluation)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: "/".join(map(str, place)))
def test_one_that_lacks_something_is_read_where_that_is_optional(place: tuple[Any, ...]) -> None:
    lacking = copy.deepcopy(WHOLE)
    del _inside(lacking, place)[place[-1]]
    evaluation = _read(json.dumps(lacking).encode())
    in_a_list = isinstance(place[-1], int)
    assert (evaluation is not None) == (place in OPTIONAL or in_a_list)
    if evaluation is not None:
        _assert_can_be_shown(evaluation)


@given(st.sampled_from(PLACES), JSON)
@settings(max_examples=300, deadline=None)
def test_one_with_something_else_in_a_place_is_none_or_can_be_shown(place: tuple[Any, ...], other: Any) -> None:
    changed = copy.deepcopy(WHOLE)
    _inside(changed, place)[place[-1]] = other
    evaluation = _read(json.dumps(changed).encode())
    if evaluation is not None:
        _assert_can_be_shown(evaluation)


@given(st.binary(max_size=20) | JSON.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=200, deadline=None)
def test_anything_else_is_none(content: bytes) -> None:
    assert _read(content) is None


@given(st.integers(1, len(json.dumps(WHOLE)) - 1))
def test_a_part_is_none(length: int) -> None:
    assert _read(json.dumps(WHOLE).encode()[:length]) is None


def test_what_a_newer_version_added_is_passed_over() -> None:
    more = WHOLE | {"answers": {"accuracy": 0.5}, "examples": [WHOLE["examples"][0] | {"scores": [1, 2]}]}
    evaluation = _read(json.dumps(more).encode())
    assert evaluation is not None
    assert evaluation.model_dump() == WHOLE


def test_what_is_absent_is_none(tmp_path: Path) -> None:
    assert read(tmp_path / "evaluation.json") is None
    assert read(tmp_path) is None


def test_a_pipe_is_none_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "evaluation.json")
    assert read(tmp_path / "evaluation.json") is None


def _evaluation(texts: list[str], right: str = "1") -> Evaluation:
    queries = [TextQuery(text=text, top=[f"{text} found"], right=[right]) for text in texts]
    return Evaluation.model_validate(WHOLE).model_copy(update={"examples": queries})


def test_queries_that_more_runs_share_come_first_and_others_in_their_order() -> None:
    one, two = ["a", "b", "c"], ["c", "d", "a"]
    found = comparisons({"one": _evaluation(one), "two": _evaluation(two)})["t2i"]
    assert [comparison.query for comparison in found] == ["a", "c", "b", "d"]
    assert found[0].by_run == {"one": ["a found"], "two": ["a found"]}
    assert found[2].by_run == {"one": ["b found"]}


def test_runs_with_other_right_answers_are_not_compared() -> None:
    found = comparisons({"one": _evaluation(["a"], "1"), "two": _evaluation(["a"], "2")})["t2i"]
    assert [(comparison.right, list(comparison.by_run)) for comparison in found] == [(["1"], ["one"]), (["2"], ["two"])]


def test_of_many_some_are_shown() -> None:
    many = {f"run{number:03d}": _evaluation([f"text {query}" for query in range(40)]) for number in range(99)}
    found = comparisons(many)
    assert len(found["t2i"]) == QUERIES
    assert {tuple(comparison.by_run) for way in found.values() for comparison in way} == {tuple(list(many)[:RUNS])}
    assert len(rows(many)) == len(many)
