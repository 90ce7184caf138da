import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.objectives.masking import choose, choose_regions, corrupt_tokens, overlap
from trainers.text import MASK, SPECIAL_TOKENS


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 30), st.floats(0.01, 0.9))
@settings(max_examples=60, deadline=None)
def test_at_least_one_is_chosen_and_only_candidates(seed: int, rows: int, length: int, probability: float) -> None:
    candidates = torch.rand(rows, length, generator=generator(seed)) < 0.6
    chosen = choose(candidates, probability, generator(seed + 1))
    assert not (chosen & ~candidates).any()
    assert torch.equal(chosen.any(1), candidates.any(1))


def test_fifteen_percent_are_chosen() -> None:
    chosen = choose(torch.ones(400, 200, dtype=torch.bool), 0.15, generator(0))
    assert abs(chosen.float().mean().item() - 0.15) < 0.004


def test_chosen_tokens_become_mask_random_or_stay_80_10_10() -> None:
    vocabulary = 1000
    tokens = torch.randint(len(SPECIAL_TOKENS), vocabulary, (300, 200), generator=generator(0))
    before = tokens.clone()
    chosen = torch.rand(tokens.shape, generator=generator(1)) < 0.5
    corrupted = corrupt_tokens(tokens, chosen, vocabulary, generator(2))
    assert torch.equal(tokens, before)
    assert torch.equal(corrupted[~chosen], tokens[~chosen])
    masked = (corrupted[chosen] == MASK).float().mean().item()
    same = (corrupted[chosen] == tokens[chosen]).float().mean().item()
    assert abs(masked - 0.8) < 0.01
    assert abs(same - 0.1) < 0.01
    assert not (corrupted[chosen] < MASK).any()


def test_overlap_is_intersection_over_union() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.5], [0.25, 0.0, 0.75, 0.5], [0.6, 0.6, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]])
    expected = torch.tensor(
        [[1.0, 1 / 3, 0.0, 0.0], [1 / 3, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    )
    torch.testing.assert_close(overlap(boxes)[0], expected)


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_what_overlaps_a_masked_region_is_masked_too(seed: int) -> None:
    boxes = torch.rand(3, 9, 2, 2, generator=generator(seed)).sort(2).values.flatten(2)
    present = torch.rand(3, 9, generator=generator(seed + 1)) < 0.8
    drawn = choose(present, 0.15, generator(seed + 2))
    chosen = choose_regions(present, boxes, 0.15, 0.4, generator(seed + 2))
    ious = overlap(boxes)
    for image in range(3):
        for region in range(9):
            near = any(bool(drawn[image, other]) and ious[image, region, other] > 0.4 for other in range(9))
            assert bool(chosen[image, region]) == (
                bool(present[image, region]) and (bool(drawn[image, region]) or near)
            )
