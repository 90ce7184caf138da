"""Masked words and matching, each against a slow reference that was written apart from it; see test_objectives_*.py."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import CLASSES, CROSS, FUSED, OWN, WIDTH, model_recipe, random_batch
from torch import Tensor

from pipeline.errors import PairmillError
from trainers.data.batch import Batch
from trainers.loop.mixing import outcomes
from trainers.network.embeddings import FeatureShape
from trainers.network.model import VisionLanguageModel
from trainers.network.streams import Streams
from trainers.network.towers import Towers
from trainers.network.view import View
from trainers.objectives import OBJECTIVES, Objective
from trainers.objectives.itm import ImageTextMatching, combinations, hard_combinations
from trainers.objectives.mlm import MaskedLanguageModelling

VOCABULARY = 40
TOWERS_THEN_FUSION = [
    {"attention": [OWN], "weights": "separate"},
    {"attention": [FUSED], "weights": "shared"},
]


def build(objectives: dict[str, dict[str, object]], **over: object) -> VisionLanguageModel:
    torch.manual_seed(1)
    recipe = model_recipe(objectives=objectives, **over)
    return VisionLanguageModel(recipe, VOCABULARY, FeatureShape(WIDTH, CLASSES)).eval()


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(objective: Objective, model: VisionLanguageModel, batch: Batch, seed: int = 0) -> Tensor:
    return objective(Towers(model, batch), generator(seed)).loss


def test_the_registry_and_the_recipe_name_the_same_objectives() -> None:
    chosen = model_recipe(objectives={"mlm": {}}).objectives
    assert set(OBJECTIVES) == set(type(chosen).model_fields)
    with pytest.raises(ValueError, match="two objectives named 'mlm'"):
        OBJECTIVES.add("mlm")(Objective)


def mean_cross_entropy(model: VisionLanguageModel, objective: MaskedLanguageModelling, view: View) -> float:
    """A word at a time, each scored by sums over the hidden units."""
    assert view.tokens is not None
    assert view.original_text is not None
    states = model.encode(view.text, view.vision)["text"].states
    terms = []
    for row, position in view.tokens.nonzero().tolist():
        hidden = objective.transform(states[row, position])
        scores = [(hidden @ model.text.word.weight[word] + objective.bias[word]).item() for word in range(VOCABULARY)]
        highest = max(scores)
        total = highest + math.log(sum(math.exp(score - highest) for score in scores))
        terms.append(total - scores[int(view.original_text.tokens[row, position])])
    return sum(terms) / len(terms)


@pytest.mark.parametrize("with_images", [True, False])
def test_mlm_is_the_mean_cross_entropy_of_the_chosen_words(with_images: bool) -> None:
    model, batch = build({"mlm": {"probability": 0.4}}), random_batch(0)
    if not with_images:
        batch = replace(batch, vision=None)
    objective = model.objective("mlm")
    assert isinstance(objective, MaskedLanguageModelling)
    kept = batch.text.tokens.clone()
    view = objective.corrupt(View.of(batch), generator(3))
    assert run(objective, model, batch, 3).item() == pytest.approx(mean_cross_entropy(model, objective, view), rel=1e-4)
    assert torch.equal(batch.text.tokens, kept), "the batch is as it was"
    changed = view.text.tokens != kept
    assert changed.any()
    assert not (changed & ~view.tokens).any()
    assert not (changed & (kept < 5)).any(), "special tokens and padding stay"


def test_mlm_of_a_batch_without_words_is_zero_and_has_a_gradient() -> None:
    model, batch = build({"mlm": {}}), random_batch(0)
    empty = replace(batch, text=replace(batch.text, tokens=batch.text.tokens.clamp(max=3)))
    loss = run(model.objective("mlm"), model, empty)
    assert loss.item() == 0
    loss.backward()


def test_in_a_joint_view_words_count_only_where_the_pair_matches() -> None:
    """ITM recombines first, whatever the recipe's order; every row is masked, and only matching ones are predicted."""
    model, batch = build({"mlm": {"probability": 0.5}, "itm": {}}, mixing="joint"), random_batch(2, size=8)
    words, matching = model.objective("mlm"), model.objective("itm")
    assert isinstance(words, MaskedLanguageModelling)
    assert isinstance(matching, ImageTextMatching)
    random = {"itm": 4, "mlm": 5}
    found = outcomes(model, batch, ["mlm", "itm"], lambda name: generator(random[name]), joint=True)
    view = words.corrupt(matching.corrupt(View.of(batch), generator(4)), generator(5))
    assert view.matched is not None
    assert view.tokens is not None
    assert (~view.matched).any()
    assert view.matched.any()
    assert not view.tokens[~view.matched].any()
    changed = view.text.tokens != view.original_text.tokens
    assert changed[~view.matched].any(), "a mask must not tell which rows match"
    assert found["mlm"].loss.item() == pytest.approx(mean_cross_entropy(model, words, view), rel=1e-4)
    streams = model.encode(view.text, view.vision)
    expected = matching_loss(matching.logits(streams), view.matched, halves=False)
    assert found["itm"].loss.item() == pytest.approx(expected, rel=1e-4)


@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(0, 3), st.floats(0, 1))
@settings(max_examples=120, deadline=None)
def test_a_mismatch_is_never_a_true_partner(seed: int, size: int, mismatches: int, density: float) -> None:
    random = generator(seed)
    partners = (torch.rand(size, size, generator=random) < density) | torch.eye(size, dtype=torch.bool)
    judged = combinations(partners, mismatches, random)
    assert torch.equal(partners[judged.texts, judged.images], judged.labels == 1)
    if mismatches:
        assert int(judged.labels.sum()) == size
    else:
        assert torch.equal(judged.texts, torch.arange(size))
        if not (partners & ~torch.eye(size, dtype=torch.bool)).any():
            assert abs(int(judged.labels.sum()) - size / 2) <= 0.5


@given(st.integers(0, 10**6), st.integers(2, 10), st.floats(0, 1), st.sampled_from([1.0, 100.0, math.inf, math.nan]))
@settings(max_examples=120, deadline=None)
def test_hard_mismatches_are_one_image_and_one_text_a_pair_and_strangers(
    seed: int, size: int, density: float, scale: float
) -> None:
    """Also where the similarities are no numbers any more, which the loop reports, and not the draw."""
    random = generator(seed)
    partners = (torch.rand(size, size, generator=random) < density) | torch.eye(size, dtype=torch.bool)
    judged = hard_combinations(partners, torch.randn(size, size, generator=random) * scale, random)
    assert torch.equal(partners[judged.texts, judged.images], judged.labels == 1)
    with_image, with_text = (~partners).any(1), (~partners).any(0)
    assert len(judged.labels) == size + int(with_image.sum()) + int(with_text.sum())
    second = size + int(with_image.sum())
    assert torch.equal(judged.texts[size:second], torch.arange(size)[with_image])
    assert torch.equal(judged.images[second:], torch.arange(size)[with_text])


def test_hard_mismatches_are_drawn_by_their_similarity() -> None:
    partners = torch.eye(4, dtype=torch.bool)
    partners[0, 1] = True
    similarities = torch.tensor(
        [[9.0, 8.0, 1.0, 2.0], [0.0, 9.0, 3.0, 0.0], [0.0, 0.0, 9.0, -40.0], [1.0, 1.0, 1.0, 9.0]]
    )
    images, texts = torch.zeros(4, 4), torch.zeros(4, 4)
    random, times = generator(0), 4000
    for _ in range(times):
        judged = hard_combinations(partners, similarities, random)
        images[judged.texts[4:8], judged.images[4:8]] += 1 / times
        texts[judged.texts[8:], judged.images[8:]] += 1 / times
    for row in range(4):
        for found, logits, barred in (
            (images[row], similarities[row], partners[row]),
            (texts[:, row], similarities[:, row], partners[:, row]),
        ):
            weights = [
                0.0
                if barred[other]
                else 1e-4 + math.exp(logits[other]) / sum(math.exp(logit) for logit in logits.tolist())
                for other in range(4)
            ]
            expected = torch.tensor(weights) / sum(weights)
            assert (found - expected).abs().max() < 0.04


def matching_loss(logits: Tensor, matched: Tensor, halves: bool) -> float:
    losses: dict[bool, list[float]] = {False: [], True: []}
    for (mismatch, match), label in zip(logits.tolist(), matched.tolist(), strict=True):
        right, wrong = (match, mismatch) if label else (mismatch, match)
        losses[label].append(math.log(1 + math.exp(wrong - right)))
    each = [sum(half) / len(half) for half in losses.values() if half]
    everything = losses[False] + losses[True]
    return sum(each) / len(each) if halves else sum(everything) / len(everything)


def slow_logits(objective: ImageTextMatching, streams: Streams) -> Tensor:
    """Of one combination, from the definition of what the head sees."""
    how = objective.settings
    text, vision = streams["text"], streams["vision"]
    if how.pool == "product":
        seen = [text.states[0][text.present[0]].mean(0), vision.states[0][vision.present[0]][vision.leading :].mean(0)]
    else:
        image = vision.states[0][0] if vision.leading else vision.states[0][vision.present[0]].mean(0)
        seen = [text.states[0][0], image]
    if how.pool == "text":
        seen = seen[:1]
    act = torch.tanh if how.activation == "tanh" else torch.relu
    if how.dense == "each":
        seen = [act(layer.weight @ state + layer.bias) for layer, state in zip(objective.dense, seen, strict=True)]
    whole = torch.cat(seen) if how.pool == "concat" else math.prod(seen[1:], start=seen[0])
    if how.dense == "together":
        whole = act(objective.dense[0].weight @ whole + objective.dense[0].bias)
    return objective.head.weight @ whole + objective.head.bias


HEADS: list[dict[str, Any]] = [
    {"pool": "text"},
    {"pool": "text", "dense": "none", "hard": True},
    {"pool": "concat"},
    {"pool": "concat", "dense": "each", "mismatches": 1},
    {"pool": "firsts", "dense": "each", "activation": "relu", "width": 24},
    {"pool": "product", "mismatches": 2},
    {"pool": "product", "dense": "none", "hard": True},
]


@pytest.mark.parametrize("how", HEADS, ids=str)
@pytest.mark.parametrize("first", ["none", "token"])
@pytest.mark.parametrize("blocks", [None, TOWERS_THEN_FUSION], ids=["single stream", "towers"])
def test_itm_is_the_cross_entropy_with_label_1_for_a_match(
    how: dict[str, Any], first: str, blocks: list[dict[str, Any]] | None
) -> None:
    vision = {"kind": "region", "standardize": True, "first": first}
    objectives = {"itm": how} | ({"itc": {"width": 8}} if how.get("hard") else {})
    model, batch = build(objectives, vision=vision, blocks=blocks), random_batch(5, size=6)
    objective = model.objective("itm")
    assert isinstance(objective, ImageTextMatching)
    loss = run(objective, model, batch, seed=9)
    if how.get("hard"):
        similarities = model.objective("itc").similarities(Towers(model, batch))
        judged = hard_combinations(batch.partners, similarities, generator(9))
        assert len(judged.labels) == 18
    else:
        judged = combinations(batch.partners, how.get("mismatches", 0), generator(9))
    logits = []
    for text, image in zip(judged.texts, judged.images, strict=True):
        streams = model.encode(batch.text.select(text[None]), batch.vision.select(image[None]))
        logits.append(slow_logits(objective, streams))
    expected = matching_loss(torch.stack(logits), judged.labels.bool(), halves="mismatches" in how)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_matching_reads_towers_that_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build({"itm": {"hard": True}, "itc": {"width": 8}}, blocks=TOWERS_THEN_FUSION)
    batch, asked = random_batch(5, size=6), []
    alone = model.encoder.alone
    monkeypatch.setattr(model.encoder, "alone", lambda streams: asked.append(set(streams)) or alone(streams))
    found = outcomes(model, batch, ["itm", "itc"], lambda name: generator(1))
    assert asked == [{"text"}, {"vision"}] or asked == [{"vision"}, {"text"}]
    sum(outcome.loss for outcome in found.values()).backward()
    assert all(parameter.grad is not None for parameter in model.objective("itc").parameters())


def test_states_of_two_widths_are_not_multiplied_unless_each_has_a_layer() -> None:
    encoder = {
        "hidden": 16,
        "heads": 2,
        "feedforward": 24,
        "vision": {"hidden": 12, "heads": 2, "feedforward": 20},
        "cross": {"width": 8, "heads": 2},
        "blocks": [{"attention": [OWN, CROSS], "weights": "separate"}],
    }
    with pytest.raises(PairmillError, match="16 and 12"):
        build({"itm": {"pool": "product"}}, encoder=encoder)
    model = build({"itm": {"pool": "firsts", "dense": "each"}}, encoder=encoder)
    assert torch.isfinite(run(model.objective("itm"), model, random_batch(1)))


def test_hard_mismatches_need_what_they_are_drawn_by() -> None:
    with pytest.raises(ValueError, match="name itc"):
        model_recipe(objectives={"itm": {"hard": True}})
    with pytest.raises(ValueError, match="leave mismatches out"):
        model_recipe(objectives={"itm": {"hard": True, "mismatches": 1}, "itc": {}})
    with pytest.raises(ValueError, match="another mixing"):
        model_recipe(objectives={"itm": {"hard": True}, "itc": {}}, mixing="joint")
