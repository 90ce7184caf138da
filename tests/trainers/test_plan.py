import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.model_recipe import Batches
from trainers.plan import epoch_batches, padding_share, steps
from trainers.samples import Samples


def samples(count: int, seed: int = 0) -> Samples:
    random = np.random.default_rng(seed)
    names, rows = np.array([str(row) for row in range(count)], np.bytes_), np.arange(count, dtype=np.int32)
    starts = np.concatenate([[0], np.cumsum(random.integers(4, 30, count))])
    return Samples(
        uids=names,
        keys=names,
        image_of=rows,
        image_lengths=random.integers(10, 37, count),
        groups=rows // 8,
        tokens=np.full(starts[-1], 7, np.uint8),
        starts=starts,
        text_of=rows,
        images_of_texts=rows,
        text_starts=np.arange(count + 1),
    )


def planned_rows(some: Samples, batches: Batches, seed: int, epoch: int) -> list[list[int]]:
    return [rows.tolist() for rows in epoch_batches(some, batches, seed, epoch)]


@given(
    st.integers(1, 300),
    st.one_of(st.builds(Batches, size=st.integers(2, 64)), st.builds(Batches, tokens=st.integers(64, 3000))),
    st.integers(1, 20),
    st.integers(0, 5),
)
@settings(max_examples=80, deadline=None)
def test_every_pair_comes_once_an_epoch(count: int, batches: Batches, pool: int, epoch: int) -> None:
    batches = batches.model_copy(update={"pool_groups": pool})
    some = samples(count)
    planned = planned_rows(some, batches, 7, epoch)
    assert sorted(row for rows in planned for row in rows) == list(range(count))
    assert planned == planned_rows(some, batches, 7, epoch)
    text, image = some.text_lengths, some.image_lengths
    for rows in planned:
        if batches.size:
            assert len(rows) <= batches.size
        elif len(rows) > 1:
            assert len(rows) * (text[rows].max() + image[rows].max()) <= (batches.tokens or 0)


def test_seed_and_epoch_change_the_order() -> None:
    some, batches = samples(200), Batches(size=16)
    orders = [planned_rows(some, batches, seed, epoch) for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


def test_batches_of_a_size_are_nearly_equal() -> None:
    lengths = {len(rows) for rows in epoch_batches(samples(100), Batches(size=33), 0, 0)}
    assert lengths == {25}


def test_steps_go_through_the_epochs_and_start_anywhere() -> None:
    some, batches = samples(100), Batches(tokens=1000)
    whole = [(step.number, step.epoch, step.rows.tolist()) for step in steps(some, batches, 3, 0, 40)]
    assert [number for number, _, _ in whole] == list(range(40))
    assert whole[-1][1] >= 2
    later = [(step.number, step.epoch, step.rows.tolist()) for step in steps(some, batches, 3, 17, 29)]
    assert later == whole[17:29]
    assert not list(steps(some, batches, 3, 5, 5))


@pytest.mark.parametrize("batches", [Batches(size=32, pool_groups=500), Batches(tokens=2000, pool_groups=500)])
def test_little_is_padding(batches: Batches) -> None:
    some = samples(4000)
    assert padding_share(some, epoch_batches(some, batches, 0, 0)) < 0.08
