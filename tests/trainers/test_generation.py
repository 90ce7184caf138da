"""Captions: greedy and by beam search, against a search through every text there is."""

import itertools
from typing import Any

import pytest
import torch
from scenes import grid_model, scene_batch
from test_objectives_lm import WRITERS, writer
from tokenizers import Tokenizer
from torch import Tensor

from pipeline.errors import PairmillError
from trainers.data.batch import VisionInput
from trainers.data.loader import text_input
from trainers.data.text import CLS, MASK, PAD, SEP, UNKNOWN, encode, train_tokenizer
from trainers.loop.mixing import outcomes
from trainers.network.model import VisionLanguageModel
from trainers.tasks.generation import Writer, caption

NEVER = {PAD, UNKNOWN, CLS, MASK}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["a red cat", "a blue house", "red house"] * 3, 100)


def images(size: int = 3, seed: int = 1) -> VisionInput:
    vision = scene_batch(seed, size=size).vision
    assert vision is not None
    return vision


def next_scores(model: VisionLanguageModel, image: VisionInput, tokens: tuple[int, ...]) -> Tensor:
    """Log-probabilities after [CLS] and `tokens`, by a fresh look at the one image."""
    with torch.inference_mode():
        return Writer(model, image).log_probabilities(torch.tensor([[CLS, *tokens]]), torch.tensor([0]))[0]


def slow_greedy(model: VisionLanguageModel, image: VisionInput, most: int) -> tuple[int, ...]:
    tokens: tuple[int, ...] = ()
    while len(tokens) < most:
        best = int(next_scores(model, image, tokens).argmax())
        if best == SEP:
            break
        tokens = (*tokens, best)
    return tokens


def slow_beam(
    model: VisionLanguageModel, image: VisionInput, beam: int, most: int, penalty: float
) -> tuple[tuple[int, ...], float]:
    running: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    finished: list[tuple[float, tuple[int, ...]]] = []
    for length in range(1, most + 1):
        grown = [
            (score + float(more), tokens, token)
            for score, tokens in running
            for token, more in enumerate(next_scores(model, image, tokens).tolist())
            if token not in NEVER
        ]
        best = sorted(grown, reverse=True)[: beam - len(finished)]
        finished += [(score / length**penalty, tokens) for score, tokens, token in best if token == SEP]
        running = [(score, (*tokens, token)) for score, tokens, token in best if token != SEP]
        if not running:
            break
    for score, tokens in running:
        finished.append(((score + float(next_scores(model, image, tokens)[SEP])) / (most + 1) ** penalty, tokens))
    score, tokens = max(finished)
    return tokens, score


@pytest.mark.parametrize("kind", WRITERS)
def test_greedy_takes_the_likeliest_token_at_each_step(kind: str, tokenizer: Tokenizer) -> None:
    model, vision = writer(kind), images()
    found = caption(model, vision, tokenizer, max_tokens=5)
    for row, written in enumerate(found):
        assert written.tokens == slow_greedy(model, vision.select(torch.tensor([row])), 5)


@pytest.mark.parametrize("kind", ["one stream", "text looks at vision", "decoder"])
@pytest.mark.parametrize(("beam", "penalty"), [(2, 0.0), (3, 1.0), (5, 0.7)])
def test_beam_search_equals_a_slow_one(kind: str, beam: int, penalty: float, tokenizer: Tokenizer) -> None:
    model, vision = writer(kind), images()
    found = caption(model, vision, tokenizer, beam=beam, max_tokens=4, length_penalty=penalty)
    for row, written in enumerate(found):
        tokens, score = slow_beam(model, vision.select(torch.tensor([row])), beam, 4, penalty)
        assert written.tokens == tokens
        assert written.score == pytest.approx(score, rel=1e-4)


def test_a_beam_as_wide_as_the_language_finds_the_best_text_of_all(tokenizer: Tokenizer) -> None:
    """Of all texts of at most two pieces; and no narrower beam finds a likelier one."""
    model, vision = writer("decoder"), images(2)
    pieces = [token for token in range(40) if token not in NEVER | {SEP}]
    for row in range(2):
        image = vision.select(torch.tensor([row]))
        every = {}
        firsts = next_scores(model, image, ())
        every[()] = float(firsts[SEP])
        with torch.inference_mode():
            pairs = torch.tensor([[CLS, piece] for piece in pieces])
            after = Writer(model, image).log_probabilities(pairs, torch.zeros(len(pieces), dtype=torch.int64))
            texts = list(itertools.product(pieces, pieces))
            triples = torch.tensor([[CLS, *text] for text in texts])
            ends = Writer(model, image).log_probabilities(triples, torch.zeros(len(texts), dtype=torch.int64))[:, SEP]
        for place, piece in enumerate(pieces):
            every[(piece,)] = float(firsts[piece] + after[place, SEP])
        for (first, second), end in zip(texts, ends.tolist(), strict=True):
            every[first, second] = float(firsts[first] + after[pieces.index(first), second]) + end
        best = max(every, key=every.__getitem__)
        (written,) = caption(model, image, tokenizer, beam=2000, max_tokens=2)
        assert written.tokens == best
        assert written.score == pytest.approx(every[best], rel=1e-4)
        assert sum(torch.tensor(list(every.values())).exp()) <= 1 + 1e-4
        for beam in (1, 2, 4):
            (narrow,) = caption(model, image, tokenizer, beam=beam, max_tokens=2)
            assert narrow.score <= written.score + 1e-5
            assert narrow.score == pytest.approx(every[narrow.tokens], rel=1e-4)


def test_a_batch_is_written_as_its_images_one_by_one(tokenizer: Tokenizer) -> None:
    model, vision = writer("one stream"), images(4)
    together = caption(model, vision, tokenizer, beam=3, max_tokens=5)
    for row, written in enumerate(together):
        (alone,) = caption(model, vision.select(torch.tensor([row])), tokenizer, beam=3, max_tokens=5)
        assert (alone.tokens, alone.text) == (written.tokens, written.text)


@pytest.mark.parametrize("by", ["encoder", "decoder"])
def test_a_model_that_has_learnt_captions_writes_them(by: str, tokenizer: Tokenizer) -> None:
    """Four images and their texts by heart."""
    over: dict[str, Any] = {"decoder": {"layers": 1}} if by == "decoder" else {}
    model = grid_model({"lm": {"by": by}}, **over)
    texts = ["a red cat", "a blue house", "red house", "a cat"]
    batch = scene_batch(2, size=4)
    batch = type(batch)(batch.uids, text_input(encode(tokenizer, texts, 20)), batch.vision, batch.partners)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(120):
        loss = outcomes(model, batch, ["lm"], lambda name: torch.Generator())["lm"].loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.train()
    for beam in (1, 3):
        assert [written.text for written in caption(model, batch.vision, tokenizer, beam=beam)] == texts
    assert model.training, "it is left as it was"


def test_a_model_that_cannot_write_says_so(tokenizer: Tokenizer) -> None:
    with pytest.raises(PairmillError, match="has not learnt to write"):
        caption(grid_model({"mlm": {}}), images(), tokenizer)
    for most in (0, 19, -1):
        with pytest.raises(PairmillError, match="writes 1 to 18 tokens"):
            caption(writer("one stream"), images(), tokenizer, max_tokens=most)
