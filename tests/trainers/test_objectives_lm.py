"""Language modelling: what is predicted from what, by every kind of model that can write."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scenes import VOCABULARY, grid_model, scene_batch
from synthetic import FUSED
from torch import Tensor

from trainers.data.batch import Batch, TextInput
from trainers.network.model import VisionLanguageModel
from trainers.network.towers import Towers
from trainers.objectives.lm import NextTokens, caption

CO_ATTENTION = [["text-text", "vision-vision"], ["text-vision", "vision-text"]]


def encoder(**over: Any) -> dict[str, Any]:
    blocks = [{"repeat": 2, "attention": [FUSED], "weights": "shared"}]
    return {"hidden": 16, "heads": 2, "feedforward": 24, "initializer": 0.3, "blocks": blocks} | over


WRITERS: dict[str, dict[str, Any]] = {
    "one stream": {"encoder": encoder()},
    "one stream, pre-norm": {"encoder": encoder(norm="pre")},
    "two streams": {"encoder": encoder(blocks=[{"attention": CO_ATTENTION, "weights": "separate"}])},
    "text looks at vision": {  # BLIP
        "encoder": encoder(
            blocks=[
                {"attention": [["vision-vision"]], "weights": "separate"},
                {"attention": [["text-text"], ["text-vision"]], "weights": "separate", "decoding": "own"},
            ]
        )
    },
    "causal over a resampler": {  # KOSMOS-1
        "encoder": encoder(causal=True),
        "vision": {"kind": "grid", "resampler": {"queries": 3, "layers": 1}},
    },
    "decoder": {
        "encoder": encoder(),
        "decoder": {"layers": 2},
        "objectives": {"lm": {"by": "decoder"}},
    },
    "decoder of the image alone": {
        "encoder": encoder(blocks=[{"attention": [["text-text", "vision-vision"]], "weights": "separate"}]),
        "decoder": {"layers": 1, "memory": ["vision"]},
        "objectives": {"lm": {"by": "decoder"}},
    },
}


def writer(kind: str, **settings: Any) -> VisionLanguageModel:
    over = dict(WRITERS[kind])
    objectives = over.pop("objectives", {"lm": {}})
    return grid_model({"lm": objectives["lm"] | settings}, **over)


def lm(model: VisionLanguageModel) -> NextTokens:
    objective = model.objective("lm")
    assert isinstance(objective, NextTokens)
    return objective


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits(model: VisionLanguageModel, batch: Batch, prefix: int = 1) -> Tensor:
    """(B, T, vocabulary) of the text's own tokens."""
    assert batch.text is not None
    text = replace(batch.text, prefix=torch.full((len(batch),), prefix))
    return lm(model).logits(model, lm(model).states(Towers(model, batch), text, torch.ones_like(text.present)))


def with_tokens(batch: Batch, tokens: Tensor) -> Batch:
    assert batch.text is not None
    return replace(batch, text=replace(batch.text, tokens=tokens))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_later_token_never_changes_an_earlier_prediction(kind: str) -> None:
    model, batch = writer(kind), scene_batch(1, size=3)
    assert batch.text is not None
    before = logits(model, batch)
    for place in range(1, batch.text.tokens.shape[1]):
        tokens = batch.text.tokens.clone()
        tokens[:, place] = 5 + (tokens[:, place] + 3) % (VOCABULARY - 5)
        after = logits(model, with_tokens(batch, tokens))
        torch.testing.assert_close(after[:, :place], before[:, :place])
        assert not torch.allclose(after[0, place], before[0, place]), "and its own does"


@pytest.mark.parametrize("kind", WRITERS)
def test_the_image_changes_every_prediction(kind: str) -> None:
    model, batch = writer(kind), scene_batch(2, size=3)
    assert batch.vision is not None
    before = logits(model, batch)
    after = logits(model, replace(batch, vision=replace(batch.vision, features=batch.vision.features + 1)))
    for place in range(3):
        assert not torch.allclose(before[:, place], after[:, place], atol=1e-6)


@pytest.mark.parametrize("kind", ["one stream", "two streams", "decoder"])
def test_a_prefix_attends_freely_and_what_follows_does_not_leak_into_it(kind: str) -> None:
    """A change inside the prefix is seen by its first token; one behind it changes only what stands behind."""
    model, batch = writer(kind, prefix="random"), scene_batch(3, size=3)
    assert batch.text is not None
    before = logits(model, batch, prefix=3)
    for place, first in ((2, 0), (3, 3)):
        tokens = batch.text.tokens.clone()
        tokens[:, place] = 5 + (tokens[:, place] + 3) % (VOCABULARY - 5)
        after = logits(model, with_tokens(batch, tokens), prefix=3)
        torch.testing.assert_close(after[:, :first], before[:, :first])
        assert not torch.allclose(after[0, first], before[0, first], atol=1e-6)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_mean_cross_entropy_of_the_next_tokens(kind: str, smoothing: float) -> None:
    """Each text by itself, without padding, and each prediction without what comes later."""
    model, batch = writer(kind, smoothing=smoothing), scene_batch(4, size=3)
    assert batch.text is not None
    assert batch.vision is not None
    loss = lm(model)(Towers(model, batch), generator()).loss
    terms = []
    for row in range(3):
        tokens = batch.text.tokens[row][batch.text.present[row]].tolist()
        for length in range(1, len(tokens)):
            so_far = TextInput(torch.tensor([tokens[:length]]), torch.ones(1, length, dtype=torch.bool))
            alone = Batch(("x",), so_far, batch.vision.select(torch.tensor([row])), torch.ones(1, 1, dtype=torch.bool))
            scores = logits(model, alone)[0, -1].tolist()
            total = math.log(sum(map(math.exp, scores)))
            right = total - scores[tokens[length]]
            terms.append((1 - smoothing) * right + smoothing * sum(total - score for score in scores) / VOCABULARY)
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)


@pytest.mark.parametrize("kind", ["one stream", "decoder"])
def test_a_random_prefix_is_given_and_not_predicted(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = writer(kind, prefix="random"), scene_batch(5, size=60)
    assert batch.text is not None
    objective, prefixes, counts = lm(model), [], []
    states, head = objective.states, objective.logits
    monkeypatch.setattr(objective, "states", lambda t, text, at: prefixes.append(text.prefix) or states(t, text, at))
    monkeypatch.setattr(objective, "logits", lambda m, s: counts.append(len(s)) or head(m, s))
    for seed in range(5):
        objective(Towers(model, batch), generator(seed))
    lengths = batch.text.present.sum(1)
    for prefix, count in zip(prefixes, counts, strict=True):
        assert int((lengths - prefix).sum()) == count
        assert (prefix >= 1).all()
        assert (prefix < lengths).all()
    share = torch.cat([(prefix - 1) / (lengths - 2) for prefix in prefixes]).mean()
    assert abs(share.item() - 0.5) < 0.06


def test_tags_are_not_written_and_padding_is_not_predicted() -> None:
    text = TextInput(
        torch.tensor([[2, 9, 8, 3, 7, 3], [2, 9, 3, 0, 0, 0]]),
        torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]).bool(),
        segments=torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0]]),
    )
    assert caption(text).sum(1).tolist() == [4, 3]
    model = grid_model({"lm": {}}, text={"vocabulary": 200, "max_tokens": 20, "tags": 4})
    batch = replace(scene_batch(6, size=2), text=text)
    outcome = lm(model)(Towers(model, batch), generator())
    other = replace(text, tokens=text.tokens.masked_fill(text.segments == 1, 11))
    again = lm(model)(Towers(model, replace(batch, text=other)), generator())
    assert outcome.loss.item() == again.loss.item()


def test_an_encoder_writes_without_an_image_and_a_decoder_does_not() -> None:
    batch = replace(scene_batch(7), vision=None, objects=None)
    for kind in ("one stream", "causal over a resampler"):
        model = writer(kind)
        assert lm(model).needs <= batch.parts
        assert lm(model)(Towers(model, batch), generator()).loss.item() > 0
    assert not lm(writer("decoder")).needs <= batch.parts


def test_the_logits_are_tied_to_the_word_embedding() -> None:
    model = writer("one stream")
    size = sum(parameter.numel() for parameter in lm(model).parameters())
    assert size == 16 * 16 + 16 + 2 * 16 + VOCABULARY
