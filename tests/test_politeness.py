"""Retry-After, back-off and X-Robots-Tag, case by case."""

import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.web.politeness import OPT_OUTS, back_off, opts_out, retry_after


@pytest.mark.parametrize(
    ("values", "out"),
    [
        ([], False),
        ([""], False),
        (["noai"], True),
        (["NoAI"], True),
        (["nofollow", "noimageai"], True),
        (["all, follow"], False),
        (["none"], True),
        (["googlebot: noindex, noai"], False),
        (["googlebot: noindex, pairmill: noai"], True),
        (["noai, googlebot: nofollow"], True),
        (["googlebot: nofollow", "noindex"], True),
        (["*: noindex"], True),
        (["PairMill: noindex"], True),
        (["pairmill-news: noindex"], False),
        (["unavailable_after: Wed, 3 Dec 2025 13:09:53 GMT, noai"], True),
        (["max-snippet: 0, noimageindex"], True),
        (["max-image-preview: none"], False),
        (["noindexing", "snoai"], False),
        ([" noai ,"], True),
    ],
)
def test_who_opts_out(values: list[str], out: bool) -> None:
    assert opts_out(values, "pairmill", OPT_OUTS) is out


@given(st.lists(st.text(alphabet="noaindex:, *-\u00e9\0", max_size=30), max_size=3))
def test_whatever_a_header_holds_it_is_yes_or_no(values: list[str]) -> None:
    assert opts_out(values, "pairmill", OPT_OUTS) in (True, False)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("0", 0),
        (" 7 ", 7),
        ("-7", 0),
        ("7.5", 0),
        ("soon", 0),
        ("\u0667", 0),
        ("9" * 400, 999_999_999),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 99 Oct 2015 07:28:00 GMT", 0),
    ],
)
def test_retry_after(value: str | None, seconds: float) -> None:
    assert retry_after(value) == seconds


def test_retry_after_as_a_date() -> None:
    assert 98 < retry_after(formatdate(time.time() + 100, usegmt=True)) <= 101


@given(st.text(), st.integers(1, 20))
def test_back_off_grows_differs_by_url_and_is_the_same_each_time(url: str, attempt: int) -> None:
    most = min(0.5 * 2 ** (attempt - 1), 30)
    assert most / 2 <= back_off(url, attempt) <= most
    assert back_off(url, attempt) == back_off(url, attempt)
    assert back_off(url, attempt) != back_off(url + "/", attempt)
