import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import random_batch

from pipeline.model_recipe import MaskedRegions
from trainers.data.batch import TextInput, VisionInput
from trainers.data.text import MASK, SPECIAL_TOKENS, SpecialTokens
from trainers.network.view import View
from trainers.objectives.masking import (
    Unit,
    choose,
    choose_regions,
    choose_tokens,
    corrupt_regions,
    corrupt_tokens,
    overlap,
)

OWN_NUMBERS = SpecialTokens()
BERTS = SpecialTokens(0, 100, 101, 102, 103)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def captions(seed: int, rows: int, length: int, tags: bool = False) -> TextInput:
    """[CLS] words [SEP], and perhaps tags [SEP]; two pieces of five go on with a word, a few are [UNK]."""
    random = generator(seed)
    ends = torch.randint(2, length + 1, (rows,), generator=random)
    present = torch.arange(length) < ends[:, None]
    tokens = torch.randint(4, 60, (rows, length), generator=random).clamp(min=5)
    tokens[torch.rand(tokens.shape, generator=random) < 0.1] = OWN_NUMBERS.unknown
    tokens[:, 0] = OWN_NUMBERS.cls
    tokens = tokens.scatter(1, ends[:, None] - 1, OWN_NUMBERS.sep).masked_fill(~present, 0)
    segments = None
    if tags:
        middle = (ends // 2).clamp(min=1)
        tokens = tokens.scatter(1, middle[:, None], OWN_NUMBERS.sep)
        segments = (present & (torch.arange(length) > middle[:, None])).long()
    before = torch.nn.functional.pad(tokens >= 5, (1, 0))[:, :-1]
    continues = (torch.rand(tokens.shape, generator=random) < 0.4) & (tokens >= 5) & before
    return TextInput(tokens, present, segments, continues)


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


def word_numbers(text: TextInput, row: int) -> list[int | None]:
    """Of each position of a text, which word it belongs to; None is no word. A slow reading of `continues`."""
    assert text.continues is not None
    numbers: list[int | None] = []
    count = -1
    for position in range(text.tokens.shape[1]):
        token = int(text.tokens[row, position])
        if token < 5 or not text.present[row, position]:
            numbers.append(None)
            continue
        if not (text.continues[row, position] and numbers[-1] is not None):
            count += 1
        numbers.append(count)
    return numbers


@given(st.integers(0, 10**6), st.integers(2, 25), st.sampled_from(["token", "word", "span"]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_units_are_chosen_whole(seed: int, length: int, unit: Unit, tags: bool) -> None:
    text = captions(seed, 6, length, tags)
    probability = 0.3
    chosen = choose_tokens(text, OWN_NUMBERS, unit, probability, generator(seed + 1))
    for row in range(6):
        numbers = word_numbers(text, row)
        if unit == "span" and text.segments is not None:
            numbers = [None if text.segments[row, at] else number for at, number in enumerate(numbers)]
        there = {number for number in numbers if number is not None}
        taken = {at for at in range(length) if chosen[row, at]}
        assert all(numbers[at] is not None for at in taken)
        assert bool(taken) == bool(there)
        if unit == "token":
            continue
        words = {numbers[at] for at in taken}
        assert taken == {at for at, number in enumerate(numbers) if number is not None and number in words}
        if unit == "span" and there:
            ranked = sorted(there)
            places = [ranked.index(word) for word in words if word is not None]
            assert max(places) - min(places) + 1 == len(places)
            assert len(places) in {max(1, int(probability * len(there))), max(1, int(probability * len(there)) + 1)}


def test_each_unit_takes_its_share() -> None:
    tokens = torch.full((2000, 42), 9)
    tokens[:, 0], tokens[:, -1] = OWN_NUMBERS.cls, OWN_NUMBERS.sep
    continues = torch.zeros_like(tokens, dtype=torch.bool)
    continues[:, 2:-1:2] = True  # words of two pieces
    text = TextInput(tokens, torch.ones_like(continues), None, continues)
    for unit in ("token", "word", "span"):
        chosen = choose_tokens(text, OWN_NUMBERS, unit, 0.15, generator(0))
        assert abs(chosen[:, 1:-1].float().mean().item() - 0.15) < 0.01
        if unit == "span":
            continue
        by_place = chosen[:, 1:-1].float().mean(0)
        assert (by_place - 0.15).abs().max() < 0.04, "no place is preferred"


def test_special_tokens_of_a_given_tokenizer_are_left_alone_and_never_drawn() -> None:
    tokens = torch.randint(0, 200, (200, 100), generator=generator(0))
    text = TextInput(tokens, torch.ones_like(tokens, dtype=torch.bool))
    chosen = choose_tokens(text, BERTS, "token", 0.5, generator(1))
    assert not chosen[BERTS.among(tokens)].any()
    corrupted = corrupt_tokens(tokens, chosen, 200, BERTS, generator(2))
    new = corrupted[chosen & (corrupted != tokens)]
    assert set(new[BERTS.among(new)].tolist()) == {BERTS.mask}
    assert set(new.tolist()) >= set(range(1, 100)), "all pieces that are no special ones are drawn"


def test_chosen_tokens_become_mask_random_or_stay_80_10_10() -> None:
    vocabulary = 1000
    tokens = torch.randint(len(SPECIAL_TOKENS), vocabulary, (300, 200), generator=generator(0))
    before = tokens.clone()
    chosen = torch.rand(tokens.shape, generator=generator(1)) < 0.5
    corrupted = corrupt_tokens(tokens, chosen, vocabulary, OWN_NUMBERS, generator(2))
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
    torch.testing.assert_close(overlap(boxes, boxes)[0], expected)
    torch.testing.assert_close(overlap(boxes[:, :1], boxes[:, 1:])[0], expected[:1, 1:])


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_what_overlaps_a_masked_region_is_masked_too(seed: int) -> None:
    boxes = torch.rand(3, 9, 2, 2, generator=generator(seed)).sort(2).values.flatten(2)
    present = torch.rand(3, 9, generator=generator(seed + 1)) < 0.8
    drawn = choose(present, 0.15, generator(seed + 2))
    chosen = choose_regions(present, boxes, 0.15, 0.4, generator(seed + 2))
    ious = overlap(boxes, boxes)
    for image in range(3):
        for region in range(9):
            near = any(bool(drawn[image, other]) and ious[image, region, other] > 0.4 for other in range(9))
            assert bool(chosen[image, region]) == (
                bool(present[image, region]) and (bool(drawn[image, region]) or near)
            )


def many_regions(rows: int = 400, length: int = 20) -> VisionInput:
    """int8 features, each region's its own number; a fifth of the places is padding."""
    present = torch.arange(length).expand(rows, length) < length * 4 // 5
    numbers = torch.arange(rows * length).view(rows, length)
    features = torch.stack([numbers % 101 + 1, numbers // 101 % 101 + 1], -1).to(torch.int8)
    boxes = torch.tensor([0.0, 0.0, 0.0, 0.0]).expand(rows, length, 4)
    scales = (1 + numbers).float().masked_fill(~present, 0)
    return VisionInput(features.masked_fill(~present[..., None], 0), present, scales, boxes)


def test_regions_are_corrupted_by_the_settings_shares_and_donors_are_whole() -> None:
    """LXMERT's 80 / 10 / 10, on features whose scales belong to them."""
    vision = many_regions()
    batch = random_batch(0, size=400)
    view = View(batch, None, vision, None, vision)
    how = MaskedRegions(zeroed=0.8, swapped=0.1, mask_embedding=False, probability=0.3, co_mask_iou=1.0)
    corrupted = corrupt_regions(view, how, generator(0))
    assert corrupted.vision is not None
    assert corrupted.regions is not None
    assert corrupted.original_vision is vision
    assert corrupted.vision.masked is None
    chosen, after = corrupted.regions, corrupted.vision
    assert not (chosen & ~vision.present).any()
    before_values, values = vision.values(), after.values()
    assert torch.equal(values[~chosen], before_values[~chosen])
    zeros = ~values[chosen].any(-1)
    same = (values[chosen] == before_values[chosen]).all(-1)
    assert abs(zeros.float().mean().item() - 0.8) < 0.03
    assert abs(same.float().mean().item() - 0.1) < 0.03
    known = {tuple(value) for value in before_values[vision.present].tolist()}
    donated = values[chosen][~zeros & ~same].tolist()
    assert len(donated) > 100
    assert all(tuple(value) in known for value in donated), "a feature moves with its scale"


def test_chosen_regions_are_shared_and_only_matching_rows_are_predicted() -> None:
    batch = random_batch(1, size=6)
    view = View.of(batch)
    matched = torch.tensor([True, False, True, True, False, True])
    view = view.combined(torch.arange(6), torch.arange(6), matched)
    first = corrupt_regions(view, MaskedRegions(), generator(0))
    assert first.regions is not None
    assert first.vision is not None
    assert first.vision.masked is not None
    assert first.vision.masked.any(1).all(), "rows that do not match are hidden alike: masks say nothing"
    assert torch.equal(first.regions.any(1), matched)
    assert corrupt_regions(first, MaskedRegions(probability=0.9), generator(1)) is first
