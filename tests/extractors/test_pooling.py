"""Pooling by matrix products is RoIAlign; the level is that of FPN's equation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_regions import pooled
from torchvision.ops import roi_align

from pipeline.extractors.pooling import concatenated, from_suited, pool, suited


def maps_and_boxes(seed: int, images: int, channels: int, height: int, width: int, n: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    level = torch.randn(images, channels, height, width, generator=generator)
    ends = torch.rand(images, n, 2, 2, generator=generator)
    ends = torch.where(torch.rand(ends.shape, generator=generator) < 0.2, ends.round(), ends)  # at the very edges
    return [level, torch.cat([ends.amin(2), ends.amax(2)], 2)]


@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_pooling_is_torchvisions_roi_align(seed: int, images: int, height: int, width: int, n: int) -> None:
    level, boxes = maps_and_boxes(seed, images, 4, height, width, n)
    in_cells = [box * torch.tensor([width, height, width, height]) for box in boxes]
    wanted = roi_align(level, in_cells, 3, 1.0, sampling_ratio=2, aligned=True).mean((2, 3))
    np.testing.assert_allclose(pool(level, boxes).reshape(images * n, 4), wanted, atol=1e-5)


def test_pooling_is_reading_the_points_one_by_one() -> None:
    level, boxes = maps_and_boxes(0, 2, 3, 7, 5, 20)
    found = pool(level, boxes)
    for image in range(2):
        for index in range(20):
            box = (boxes[image, index] * torch.tensor([5, 7, 5, 7])).double().tolist()
            np.testing.assert_allclose(found[image, index], pooled(level[image].double().numpy(), box), atol=1e-5)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_the_order_in_memory_does_not_matter(memory: torch.memory_format) -> None:
    level, boxes = maps_and_boxes(1, 2, 3, 7, 5, 4)
    assert torch.allclose(pool(level.contiguous(memory_format=memory), boxes), pool(level, boxes))


def test_a_box_of_nothing_known_has_features_of_nothing_known_and_leaves_the_others_alone() -> None:
    level, boxes = maps_and_boxes(2, 1, 3, 7, 5, 4)
    clean = pool(level, boxes)
    boxes[0, 1, 2] = torch.nan
    found = pool(level, boxes)
    assert found[0, 1].isnan().all()
    assert torch.equal(found[0, [0, 2, 3]], clean[0, [0, 2, 3]])


@given(st.floats(1e-3, 5000), st.integers(2, 4))
def test_the_level_is_that_of_fpns_equation(side: float, coarsest: int) -> None:
    strides = [8 * 2**index for index in range(coarsest)]
    k = math.floor(4 + math.log2(side / 224))  # level k has stride 2 ** k
    wanted = min(max(k, 3), 2 + coarsest) - 3
    if abs(math.log2(side / 224) - round(math.log2(side / 224))) > 1e-6:
        assert suited(torch.tensor([[side]]), strides).item() == wanted


def test_the_level_changes_at_its_limit() -> None:
    sides = torch.tensor([[223.9, 224.0, 447.9, 448.0, 0.0]])
    assert suited(sides, [8, 16, 32]).tolist() == [[0, 1, 1, 2, 0]]


def test_features_of_one_level_are_its_part_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(2, channels, side, side, generator=generator) for channels, side in ((2, 8), (5, 4), (3, 2))]
    _, boxes = maps_and_boxes(3, 2, 1, 1, 1, 6)
    chosen = torch.tensor([[0, 1, 2, 2, 1, 0], [1, 1, 1, 0, 0, 2]])
    everything = concatenated(levels, boxes).split([2, 5, 3], 2)
    found = from_suited(levels, boxes, chosen)
    assert found.shape == (2, 6, 5)
    for image in range(2):
        for index in range(6):
            wanted = everything[chosen[image, index]][image, index]
            assert torch.equal(found[image, index, : len(wanted)], wanted)
            assert (found[image, index, len(wanted) :] == 0).all()
