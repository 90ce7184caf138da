"""Oscar's contrast between an image's tags and another's."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import CLASSES, WIDTH, model_recipe, random_batch

from trainers.data.batch import Batch, TextInput, spliced
from trainers.loop.mixing import applicable, outcomes
from trainers.network.embeddings import FeatureShape
from trainers.network.model import VisionLanguageModel
from trainers.network.towers import Towers
from trainers.network.view import View
from trainers.objectives.tag_contrast import (
    OTHER_CAPTION,
    OTHER_TAGS,
    OWN,
    ObjectTagContrast,
    draw_classes,
)


def tagged(seed: int, size: int) -> tuple[TextInput, list[list[int]], list[list[int]]]:
    """A padded input, and its captions and tags as lists: [CLS] ... [SEP], and ... [SEP]."""
    random = torch.Generator().manual_seed(seed)
    captions, tags = [], []
    for _ in range(size):
        lengths = torch.randint(1, 5, (2,), generator=random)
        captions.append([2, *torch.randint(5, 40, (int(lengths[0]),), generator=random).tolist(), 3])
        tags.append([*torch.randint(5, 40, (int(lengths[1]) - 1,), generator=random).tolist(), 3])
    longest = max(len(caption) + len(tag) for caption, tag in zip(captions, tags, strict=True))
    tokens = torch.zeros(size, longest, dtype=torch.int64)
    segments, present = torch.zeros_like(tokens), torch.zeros_like(tokens, dtype=torch.bool)
    for row, (caption, tag) in enumerate(zip(captions, tags, strict=True)):
        whole = [*caption, *tag]
        tokens[row, : len(whole)] = torch.tensor(whole)
        present[row, : len(whole)] = True
        segments[row, len(caption) : len(whole)] = 1
    continues = (tokens % 3 == 0) & (tokens >= 5)
    return TextInput(tokens, present, segments, continues), captions, tags


def tag_model(classes: int = 2, **over: Any) -> VisionLanguageModel:
    torch.manual_seed(1)
    text = {"vocabulary": 200, "max_tokens": 20, "tags": 10}
    recipe = model_recipe(text=text, **{"objectives": {"tag_contrast": {"classes": classes}}, **over})
    return VisionLanguageModel(recipe, 40, FeatureShape(WIDTH, CLASSES)).eval()


def tag_batch(seed: int, size: int = 6) -> Batch:
    return replace(random_batch(seed, size=size), text=tagged(seed, size)[0])


def partners(seed: int, size: int, density: float) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return (torch.rand(size, size, generator=random) < density) | torch.eye(size, dtype=torch.bool)


@given(st.integers(0, 10**6), st.integers(2, 14), st.sampled_from([2, 3]), st.floats(0, 1))
@settings(max_examples=120, deadline=None)
def test_classes_say_what_is_anothers(seed: int, size: int, classes: int, density: float) -> None:
    true = partners(seed, size, density)
    drawn = draw_classes(true, classes, torch.Generator().manual_seed(seed + 1))
    for row in range(size):
        caption, tags, label = (int(part[row]) for part in (drawn.captions, drawn.tags, drawn.labels))
        assert (caption != row) == (label == OTHER_CAPTION)
        assert (tags != row) == (label == OTHER_TAGS)
        if label == OTHER_CAPTION:
            assert not true[caption, row], "another's caption must not be one of this image as well"
        if label == OTHER_TAGS:
            assert not true[row, tags]
    if density == 0:
        assert abs(int((drawn.labels == OWN).sum()) - size / 2) <= 0.5
    assert classes == 3 or not (drawn.labels == OTHER_CAPTION).any()


def test_with_three_classes_half_is_own_and_a_quarter_each_polluted() -> None:
    drawn = [draw_classes(torch.eye(8, dtype=torch.bool), 3, torch.Generator().manual_seed(seed)) for seed in range(50)]
    labels = torch.cat([one.labels for one in drawn])
    assert torch.bincount(labels).tolist() == [100, 200, 100]


@given(st.integers(0, 10**6), st.integers(1, 8))
@settings(max_examples=80, deadline=None)
def test_captions_and_tags_are_spliced_as_lists_would_be(seed: int, size: int) -> None:
    text, captions, tags = tagged(seed, size)
    random = torch.Generator().manual_seed(seed)
    first, second = torch.randint(size, (2, 5), generator=random)
    made = spliced(text, first, second)
    for row, (caption, tag) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        whole = [*captions[caption], *tags[tag]]
        there = made.present[row]
        assert made.tokens[row][there].tolist() == whole
        assert there.tolist() == [at < len(whole) for at in range(len(there))]
        assert made.segments[row][there].tolist() == [0] * len(captions[caption]) + [1] * len(tags[tag])
        assert made.continues[row][there].tolist() == [token % 3 == 0 and token >= 5 for token in whole]
        assert not made.tokens[row][~there].any()
    assert made.present.any(0).all(), "no longer than its longest row"


@pytest.mark.parametrize("classes", [2, 3])
def test_tag_contrast_is_the_cross_entropy_of_the_classes(classes: int) -> None:
    model, batch = tag_model(classes), tag_batch(4, 8)
    objective = model.objective("tag_contrast")
    assert isinstance(objective, ObjectTagContrast)
    loss = objective(Towers(model, batch), torch.Generator().manual_seed(6)).loss
    drawn = draw_classes(batch.partners, classes, torch.Generator().manual_seed(6))
    total = 0.0
    for row in range(8):
        text = spliced(batch.text, drawn.captions[row : row + 1], drawn.tags[row : row + 1])
        states = model.encode(text, batch.vision.select(torch.tensor([row])))["text"].states[0, 0]
        scores = (objective.head.weight @ torch.tanh(objective.dense.weight @ states)).tolist()
        total += math.log(sum(math.exp(score) for score in scores)) - scores[int(drawn.labels[row])]
    assert loss.item() == pytest.approx(total / 8, rel=1e-4)


def test_words_that_share_the_input_count_only_where_all_is_the_images_own() -> None:
    objectives = {"mlm": {"probability": 0.6}, "tag_contrast": {"classes": 3}}
    model, batch = tag_model(objectives=objectives, mixing="joint"), tag_batch(4, 8)
    tags, words = model.objective("tag_contrast"), model.objective("mlm")
    assert isinstance(tags, ObjectTagContrast)
    found = outcomes(model, batch, ["mlm", "tag_contrast"], lambda name: torch.Generator().manual_seed(6), joint=True)
    assert all(torch.isfinite(outcome.loss) for outcome in found.values())
    view = tags.corrupt(View.of(batch), torch.Generator().manual_seed(6))
    view = words.corrupt(view, torch.Generator().manual_seed(6))
    drawn = draw_classes(batch.partners, 3, torch.Generator().manual_seed(6))
    assert view.tokens is not None
    assert torch.equal(view.tokens.any(1), drawn.labels == OWN)
    segments = view.text.segments[view.tokens]
    assert set(segments.tolist()) == {0, 1}, "tags are masked as words are"


def test_it_applies_where_there_are_tags_and_not_beside_matching_in_one_input() -> None:
    model = tag_model()
    assert applicable(model, tag_batch(0), ["tag_contrast"]) == ["tag_contrast"]
    assert applicable(model, random_batch(0), ["tag_contrast"]) == []
    with pytest.raises(ValueError, match="another mixing"):
        tag_model(objectives={"itm": {}, "tag_contrast": {}}, mixing="joint")
    with pytest.raises(ValueError, match=r"text\.tags"):
        model_recipe(objectives={"tag_contrast": {}})


def test_a_mismatch_has_the_tags_of_its_image() -> None:
    """As a model is asked later; the caption's own tags beside another image would tell the answer."""
    batch = tag_batch(4)
    assert batch.text is not None
    assert batch.text.segments is not None
    texts, images = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 2, 1, 3])
    view = View.of(batch).combined(texts, images, texts == images)
    assert view.text is not None
    assert view.text.segments is not None
    for row, (text, image) in enumerate(zip(texts.tolist(), images.tolist(), strict=True)):
        for owner, segment in ((text, 0), (image, 1)):
            own = batch.text.tokens[owner][batch.text.present[owner] & (batch.text.segments[owner] == segment)]
            made = view.text.tokens[row][view.text.present[row] & (view.text.segments[row] == segment)]
            assert made.tolist() == own.tolist()
