"""Phrase-region alignment, against loops."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import CLASS_WORDS, grid_model, scene_batch, separate_widths, words
from torch import Tensor

from pipeline.errors import PairmillError
from trainers.data.batch import TextInput
from trainers.data.text import SpecialTokens
from trainers.network.model import VisionLanguageModel
from trainers.network.streams import Streams
from trainers.network.towers import Towers
from trainers.network.view import View
from trainers.objectives import Reading
from trainers.objectives.pra import phrases
from trainers.objectives.regions import cells_inside


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_phrases(text: TextInput, row: int, longest: int) -> set[tuple[int, ...]]:
    """Each phrase as the places of its tokens."""
    found: list[list[int]] = []
    for place, (token, there) in enumerate(zip(text.tokens[row].tolist(), text.present[row].tolist(), strict=True)):
        tag = text.segments is not None and bool(text.segments[row, place])
        if there and token >= 5 and not tag:
            before = found and found[-1][-1] == place - 1
            if before and text.continues is not None and text.continues[row, place]:
                found[-1].append(place)
            else:
                found.append([place])
    return {
        tuple(place for word in found[first : first + length] for place in word)
        for length in range(1, longest + 1)
        for first in range(len(found) - length + 1)
    }


@given(st.integers(0, 10**6), st.integers(1, 3), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_phrases_are_runs_of_whole_words_of_the_caption(seed: int, longest: int, pieces: bool, tags: bool) -> None:
    random = generator(seed)
    text = words(torch.randint(3, 10, (4,), generator=random), random)
    if not pieces:
        text = replace(text, continues=None)
    if tags:
        text = replace(text, segments=(torch.arange(text.tokens.shape[1]) > 4).long().expand_as(text.tokens))
    found = phrases(text, SpecialTokens(), longest)
    for row in range(4):
        mine = [tuple(phrase.nonzero().flatten().tolist()) for phrase in found[row] if phrase.any()]
        assert len(mine) == len(set(mine))
        assert set(mine) == slow_phrases(text, row, longest)


def test_a_batch_without_a_word_has_no_phrase() -> None:
    text = TextInput(torch.tensor([[2, 3], [2, 3]]), torch.ones(2, 2, dtype=torch.bool))
    assert not phrases(text, SpecialTokens(), 2).any()


def read(model: VisionLanguageModel, view: View) -> tuple[Reading, Streams]:
    objective = model.objective("pra")
    assert isinstance(objective, Reading)
    assert objective.corrupt(view, generator()) is view
    return objective, model.encode(view.text, view.vision)


def cosine(first: Tensor, second: Tensor) -> float:
    return (first @ second / (first.norm() * second.norm())).item()


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


@pytest.mark.parametrize("encoder", [None, separate_widths()])
def test_the_loss_against_loops(encoder: dict[str, object] | None) -> None:
    over = {"encoder": encoder} if encoder else {}
    model = grid_model({"pra": {"temperature": 0.2, "longest": 2}}, **over)
    batch = scene_batch(2, size=8, missing=True)
    objective, streams = read(model, View.of(batch))
    inside = cells_inside(batch.vision, (3, 4), batch.objects.boxes)
    vectors, terms = model.text.word.weight, []
    for row in range(8):
        there = [
            number
            for number in range(batch.objects.present.shape[1])
            if batch.objects.present[row, number] and inside[row, number].any()
        ]
        if len(there) < 2:
            continue
        regions, tags = [], []
        for number in there:
            regions.append(objective.region(streams["vision"].states[row][inside[row, number]].mean(0)))
            values = batch.objects.class_values[row, number].tolist()
            name = CLASS_WORDS[int(batch.objects.class_ids[row, number, values.index(max(values))])]
            tags.append(sum(vectors[piece] for piece in name) / len(name))
        for places in slow_phrases(batch.text, row, 2):
            phrase = objective.phrase(sum(streams["text"].states[row, place] for place in places) / len(places))
            meaning = sum(vectors[int(batch.text.tokens[row, place])] for place in places) / len(places)
            target = softmax([cosine(meaning, tag) / 0.2 for tag in tags])
            predicted = softmax([cosine(phrase, region) / 0.2 for region in regions])
            terms.append(sum(t * math.log(t / p) for t, p in zip(target, predicted, strict=True)))
    assert len(terms) > 10
    outcome = objective.loss(model, View.of(batch), streams)
    assert outcome.loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-3)


def test_no_gradient_goes_through_the_words_of_the_target() -> None:
    """Only through the states: with those held, the word embedding gets none."""
    model, batch = grid_model({"pra": {}}), scene_batch(3)
    objective, streams = read(model, View.of(batch))
    held = {name: stream.with_states(stream.states.detach()) for name, stream in streams.items()}
    objective.loss(model, View.of(batch), held).loss.backward()
    assert model.text.word.weight.grad is None
    assert objective.phrase.weight.grad.abs().sum() > 0


def test_it_learns_a_batch_by_heart() -> None:
    """The divergence of a batch whose captions begin with the class of one of the objects can be learnt."""
    model, batch = grid_model({"pra": {}}), scene_batch(8, size=8)
    tokens = batch.text.tokens.clone()
    classes = batch.objects.class_ids.gather(-1, batch.objects.class_values.argmax(-1, keepdim=True))[..., 0]
    tokens[:, 1] = torch.tensor([CLASS_WORDS[int(number)][0] for number in classes[:, 0]])
    batch = replace(batch, text=replace(batch.text, tokens=tokens, continues=None))
    optimizer, losses = torch.optim.Adam(model.parameters(), 3e-3), []
    for _ in range(120):
        loss = model.objective("pra")(Towers(model, batch), generator()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.35 * losses[0]


def test_rows_that_do_not_match_and_lonely_objects_take_no_part() -> None:
    model, batch = grid_model({"pra": {}}), scene_batch(4, size=4)
    matched = torch.tensor([True, False, True, True])
    view = View.of(batch).combined(torch.arange(4), torch.tensor([0, 3, 2, 3]), matched)
    objective, streams = read(model, view)
    lonely = view.objects.present.clone()
    lonely[1] = False
    whole = objective.loss(model, view, streams).loss
    only = replace(view, matched=None, objects=replace(view.objects, present=lonely))
    assert whole.item() == pytest.approx(objective.loss(model, only, streams).loss.item())
    nobody = replace(view, matched=torch.zeros(4, dtype=torch.bool))
    assert objective.loss(model, nobody, streams).loss.item() == 0.0


def test_classes_without_names_are_refused() -> None:
    with pytest.raises(PairmillError, match="there are 0 names for 9 classes"):
        grid_model({"pra": {}}, class_words=())


def test_a_class_whose_name_has_no_piece_is_like_nothing() -> None:
    model, batch = grid_model({"pra": {}}, class_words=((), *CLASS_WORDS[1:])), scene_batch(5)
    objective, streams = read(model, View.of(batch))
    assert torch.isfinite(objective.loss(model, View.of(batch), streams).loss)
