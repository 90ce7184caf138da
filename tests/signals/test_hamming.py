"""Neighbours within a Hamming radius against comparing all with all."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.signals.hamming import ALWAYS, IF_ALONE, MOST, NEVER, nearest_earlier


def by_all_pairs(hashes: list[int], radius: int, joins: list[int]) -> list[tuple[int, int]]:
    joined: list[int] = []
    found = []
    for place, own in enumerate(hashes):
        near = [((own ^ hashes[other]).bit_count(), other) for other in joined]
        best = min((pair for pair in near if pair[0] <= radius), default=(-1, -1))
        found.append(best)
        if joins[place] == ALWAYS or (joins[place] == IF_ALONE and best == (-1, -1)):
            joined.append(place)
    return found


@st.composite
def crowds(draw: st.DrawFn) -> list[int]:
    """Hashes about a few centres, so that distances on both sides of a radius are there."""
    centres = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3))
    hashes = []
    for _ in range(draw(st.integers(1, 60))):
        flips = draw(st.lists(st.integers(0, 63), max_size=20, unique=True))
        hashes.append(draw(st.sampled_from(centres)) ^ sum(1 << bit for bit in flips))
    return hashes


@settings(max_examples=150, deadline=None)
@given(crowds(), st.integers(0, MOST), st.data())
def test_equals_comparing_all_with_all(hashes: list[int], radius: int, data: st.DataObject) -> None:
    kinds = st.sampled_from([ALWAYS, IF_ALONE, IF_ALONE, IF_ALONE, NEVER])
    joins = data.draw(st.lists(kinds, min_size=len(hashes), max_size=len(hashes)))
    found = nearest_earlier(np.array(hashes, np.uint64), radius, np.array(joins))
    assert list(zip(found.distance.tolist(), found.position.tolist(), strict=True)) == by_all_pairs(
        hashes, radius, joins
    )


@pytest.mark.parametrize("radius", [0, 3, 4, 7, 10])
def test_equals_comparing_all_with_all_where_other_bands_are_cheapest(radius: int) -> None:
    """The number of bands grows with the number of hashes."""
    draw = np.random.default_rng(radius)
    hashes = draw.integers(0, 2**64, 3000, dtype=np.uint64)
    for place in range(1000, 3000, 2):
        hashes[place] = hashes[place // 2]
        for bit in draw.choice(64, draw.integers(0, radius + 3), replace=False):
            hashes[place] ^= np.uint64(1 << int(bit))
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    stays = np.ones(len(hashes), bool)
    nearest = np.full(len(hashes), -1)
    for place in range(len(hashes)):
        before = np.where(stays[:place], apart[place, :place], 99)
        if place and before.min() <= radius:
            stays[place], nearest[place] = False, before.argmin()
    found = nearest_earlier(hashes, radius, np.full(len(hashes), IF_ALONE))
    assert (nearest >= 0).sum() > 300
    np.testing.assert_array_equal(found.position, nearest)
    np.testing.assert_array_equal(found.distance >= 0, ~stays)


def test_a_chain_does_not_collapse_into_its_first_link() -> None:
    found = nearest_earlier(np.array([0b0, 0b11, 0b1111], np.uint64), 2, np.full(3, IF_ALONE))
    assert found.distance.tolist() == [-1, 2, -1]


def test_no_hashes() -> None:
    assert nearest_earlier(np.empty(0, np.uint64), 4, np.empty(0)).distance.tolist() == []


@pytest.mark.parametrize("radius", [-1, MOST + 1])
def test_a_radius_that_finds_chance_is_refused(radius: int) -> None:
    with pytest.raises(ValueError, match="radius"):
        nearest_earlier(np.zeros(2, np.uint64), radius, np.zeros(2))


def test_a_bucket_of_a_hundred_thousand_equals_costs_no_more_than_others() -> None:
    draw = np.random.default_rng(0)
    nearest_earlier(np.zeros(2, np.uint64), 4, np.zeros(2))  # compiles
    started = time.monotonic()
    scattered = nearest_earlier(draw.integers(0, 2**64, 100_000, dtype=np.uint64), 4, np.full(100_000, IF_ALONE))
    middle = time.monotonic()
    equal = nearest_earlier(
        np.repeat(draw.integers(0, 2**64, 3, dtype=np.uint64), 33_334), 4, np.full(100_002, IF_ALONE)
    )
    ended = time.monotonic()
    assert (scattered.distance >= 0).sum() < 5
    assert (equal.distance == 0).sum() == 99_999
    assert ended - middle < 3 * (middle - started)
