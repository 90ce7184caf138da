"""Plans: what must hold of any; how little is padding, for lengths as they are; the division against a slow one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.model_recipe import Batches
from trainers.data.bucketing import divide
from trainers.data.plan import MIXED_SHARDS, Step, epoch_batches, padding_share, plan_epoch
from trainers.data.samples import Catalogue, Partners, Samples
from trainers.data.sequences import Sequences
from trainers.data.text import Pieces, SpecialTokens

SHARD = 5
"""Row groups a shard."""


def samples(
    texts: np.ndarray, images: np.ndarray, captions: int = 1, choices: bool = False, group: int = 64
) -> Samples:
    """Items with texts and images of these lengths; `captions` items an image, in random order; `group` images a row
    group."""
    places = np.arange(len(images), dtype=np.int32)
    groups = places // group
    shards = np.arange(groups.max(initial=-1) + 1, dtype=np.int32) // SHARD
    image_of = np.random.default_rng(3).permutation(np.repeat(places, captions))
    starts = np.concatenate([[0], np.cumsum(texts)])
    return Samples(
        uids=np.array([str(row) for row in range(len(texts))], np.bytes_),
        pieces=Pieces(SpecialTokens(), np.zeros(9, bool)),
        partners=Partners(image_of, image_of),
        texts=Sequences(np.full(starts[-1], 7, np.uint8), starts),
        images=Catalogue(np.array([f"{place:06}" for place in places], np.bytes_), images, groups, shards),
        image_of=image_of,
        choices=image_of if choices else None,
    )


def even(count: int, captions: int = 1, choices: bool = False, group: int = 64, seed: int = 0) -> Samples:
    """5 to 40 tokens, 10 to 100 boxes, evenly spread."""
    random = np.random.default_rng(seed)
    images = random.integers(10, 101, -(-count // captions)).astype(np.int32)
    return samples(random.integers(5, 41, len(images) * captions), images, captions, choices, group)


def lifelike(count: int, captions: int = 1, seed: int = 0) -> Samples:
    """Captions of about a dozen pieces, seldom over 25; detections of about 35 boxes with a long tail."""
    random = np.random.default_rng(seed)
    images = random.lognormal(3.5, 0.45, count // captions).round().clip(10, 100).astype(np.int32)
    return samples(random.lognormal(2.5, 0.3, len(images) * captions).round().clip(5, 40).astype(int), images, captions)


def planned_rows(some: Samples, batches: Batches, seed: int, epoch: int) -> list[list[int]]:
    return [rows.tolist() for rows in epoch_batches(some, batches, seed, epoch)]


@given(
    st.integers(1, 300),
    st.one_of(st.builds(Batches, size=st.integers(2, 64)), st.builds(Batches, tokens=st.integers(64, 3000))),
    st.integers(1, 20),
    st.integers(0, 5),
    st.integers(1, 3),
)
@settings(max_examples=80, deadline=None)
def test_every_item_comes_once_an_epoch(count: int, batches: Batches, pool: int, epoch: int, captions: int) -> None:
    batches = batches.model_copy(update={"pool_groups": pool})
    some = even(count, captions, group=8)
    planned = planned_rows(some, batches, 7, epoch)
    assert sorted(row for rows in planned for row in rows) == list(range(len(some)))
    assert planned == planned_rows(some, batches, 7, epoch)
    text, image = some.lengths
    assert some.image_of is not None
    for rows in planned:
        assert some.image_of[rows].tolist() == sorted(some.image_of[rows].tolist())
        if batches.size:
            assert len(rows) <= batches.size
        elif len(rows) > 1:
            assert len(rows) * (text[rows].max() + image[rows].max()) <= (batches.tokens or 0)


def test_an_epoch_of_one_caption_an_image_draws_it_anew() -> None:
    some = even(600, captions=3, choices=True)
    assert some.image_of is not None
    epochs = [np.concatenate([*epoch_batches(some, Batches(size=16), 1, epoch)]) for epoch in range(60)]
    for rows in epochs:
        assert sorted(some.image_of[rows].tolist()) == list(range(200))
    counts = np.bincount(np.concatenate(epochs), minlength=600)
    assert (counts > 0).all()
    assert abs(counts - 20).max() < 20  # 20 of 60 on average; 5 standard deviations are 18


def test_seed_and_epoch_change_the_order() -> None:
    some, batches = even(200), Batches(size=16)
    orders = [planned_rows(some, batches, seed, epoch) for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


def test_batches_of_a_size_are_nearly_equal() -> None:
    assert {len(rows) for rows in epoch_batches(even(100), Batches(size=33), 0, 0)} == {25}
    sizes = [len(rows) for rows in epoch_batches(even(1000), Batches(size=64), 0, 0)]
    assert len(sizes) == 16
    assert min(sizes) >= 56


@pytest.mark.parametrize("batches", [Batches(size=64), Batches(tokens=5000)])
def test_large_batches_divide_by_eight(batches: Batches) -> None:
    sizes = np.array([len(rows) for rows in epoch_batches(even(3001), batches, 0, 0)])
    assert sizes.sum() == 3001
    assert (sizes % 8 > 0).sum() <= 1


def test_a_pool_is_of_neighbouring_shards_and_holds_some_batches() -> None:
    """Which shards are open at once changes only now and then."""
    some = even(256 * SHARD * 8, group=8)
    plan = plan_epoch(some, Batches(size=2, pool_groups=16), 0, 0)
    shard_of = some.shards[some.groups]
    # 256 batches a pool; a window of 64 shards of 40 images is five of these.
    windows = [set(shard_of[plan.rows[first : first + 2560]].tolist()) for first in range(0, 10240, 2560)]
    assert [len(window) for window in windows] == [MIXED_SHARDS] * 4
    assert set.union(*windows) == set(range(256))
    pools = [set(shard_of[plan.rows[first : first + 512]].tolist()) for first in range(0, 2560, 512)]
    assert min(map(len, pools)) > 40  # of 64 row groups, from 64 shards


@pytest.mark.parametrize(
    ("some", "batches", "most"),
    [
        (even(30_000), Batches(tokens=10_240), 0.05),
        (even(30_000), Batches(tokens=5000), 0.03),
        (even(30_000), Batches(size=64), 0.03),
        (lifelike(30_000), Batches(tokens=10_240), 0.05),
        (lifelike(30_000), Batches(size=64), 0.03),
        (lifelike(30_000, captions=5), Batches(tokens=10_240), 0.05),
        # Few choices are left to a small corpus, whose two lengths do not go together.
        (even(2000), Batches(size=64), 0.13),
        (lifelike(2000, captions=2), Batches(tokens=5000), 0.14),
    ],
)
def test_little_is_padding(some: Samples, batches: Batches, most: float) -> None:
    planned = list(epoch_batches(some, batches, 0, 0))
    assert 0 < padding_share(some, planned) <= most
    if batches.tokens:  # and the budget is made use of
        text, image = some.lengths
        used = [len(rows) * (text[rows].max() + image[rows].max()) for rows in planned]
        assert np.mean(used) > 0.65 * batches.tokens


def test_padding_is_counted() -> None:
    some = samples(np.array([5, 10]), np.array([20, 30], np.int32))
    assert padding_share(some, [np.array([0, 1])]) == pytest.approx(1 - 65 / 80)
    assert padding_share(some, [np.array([0]), np.array([1])]) == 0


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 30)), min_size=1, max_size=60),
    st.integers(0, 20),
    st.integers(8, 200),
    st.sampled_from([1, 2, 4]),
)
@settings(max_examples=300, deadline=None)
def test_division_is_as_the_slow_one(lengths: list[tuple[int, int]], size: int, tokens: int, unit: int) -> None:
    one, other = np.array(lengths, np.int32).T.copy()
    order = np.random.default_rng(len(lengths)).permutation(len(lengths)).astype(np.int32)
    expected = slow_division(order.tolist(), one.tolist(), other.tolist(), size, tokens, unit)
    stops = np.empty(len(order), np.int64)
    count = divide(order, one, other, size, tokens, unit, stops)
    assert [part.tolist() for part in np.split(order, stops[: count - 1])] == expected


def slow_division(
    items: list[int], one: list[int], other: list[int], size: int, tokens: int, unit: int
) -> list[list[int]]:
    def padded(batch: list[int]) -> int:
        return len(batch) * (max(one[item] for item in batch) + max(other[item] for item in batch))

    filled = sum(one[item] + other[item] for item in items)
    if size:
        parts = -(-len(items) // size)
    else:
        parts = 1 if padded(items) <= tokens else max(2, int(np.ceil(1.04 * filled / tokens)))
    if parts == 1 or len(items) == 1:
        return [items]
    left = len(items) * (parts // 2) / parts
    middle = unit * round(left / unit)
    middle = middle if 0 < middle < len(items) else max(1, int(left))
    # Python's sorts are stable, as the compiled ones: what is equal keeps the order of the sorts before.
    by_one = sorted(sorted(items, key=other.__getitem__), key=one.__getitem__)
    by_other = sorted(by_one, key=other.__getitem__)
    costs = [padded(ordered[:middle]) + padded(ordered[middle:]) for ordered in (by_one, by_other)]
    chosen = sorted(by_other, key=one.__getitem__) if costs[0] < costs[1] else by_other
    halves = (chosen[:middle], chosen[middle:])
    return [batch for half in halves for batch in slow_division(half, one, other, size, tokens, unit)]


@given(st.integers(1, 40), st.integers(1, 9))
def test_ranks_get_equal_parts_that_make_the_whole(rows: int, ranks: int) -> None:
    step = Step(3, 0, 1, np.arange(100, 100 + rows))
    parts = [step.part(rank, ranks) for rank in range(ranks)]
    assert {len(part.rows) for part in parts} == {-(-rows // ranks)}
    assert {row for part in parts for row in part.rows.tolist()} == set(step.rows.tolist())
    assert all((np.diff(part.rows) == 1).all() and (part.number, part.epoch) == (3, 1) for part in parts)
    if rows % ranks == 0:
        assert np.concatenate([part.rows for part in parts]).tolist() == step.rows.tolist()
