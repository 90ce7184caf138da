"""What the encoder is given: orders of a prefix, what stands before an image's positions, norms, the decoder's view."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from synthetic import CLASSES, FUSED, WIDTH, model_recipe, random_batch

from pipeline.model_recipe import ModelRecipe
from trainers.data.batch import Batch
from trainers.network.embeddings import FeatureShape
from trainers.network.model import VisionLanguageModel
from trainers.network.streams import Streams
from trainers.network.towers import Towers
from trainers.network.view import View

SHAPE = FeatureShape(WIDTH, CLASSES)


def model(**over: Any) -> VisionLanguageModel:
    recipe: ModelRecipe = model_recipe(**over)
    torch.manual_seed(0)
    return VisionLanguageModel(recipe, 40, SHAPE).eval()


def encoder(**over: Any) -> dict[str, Any]:
    values = model_recipe().encoder.model_dump()
    return values | {"blocks": [{"repeat": 2, "attention": [FUSED], "weights": "shared"}]} | over


def perturbed(batch: Batch, row: int, position: int) -> Batch:
    assert batch.text is not None
    tokens = batch.text.tokens.clone()
    tokens[row, position] = 5 + (tokens[row, position] + 1) % 35
    return replace(batch, text=replace(batch.text, tokens=tokens))


def moved(one: Streams, other: Streams, name: str) -> torch.Tensor:
    return (one[name].states - other[name].states).abs().amax(-1) > 1e-6


@pytest.mark.parametrize("prefix", [1, 2, 3])
def test_beyond_its_prefix_a_token_sees_only_what_stands_before_it(prefix: int) -> None:
    built, batch = model(), random_batch(0)
    assert batch.text is not None
    written = replace(batch.text, prefix=torch.full((len(batch),), prefix))
    before = built.encode(written, batch.vision)
    for position in range(3):
        other = perturbed(batch, 0, position)
        assert other.text is not None
        after = built.encode(replace(other.text, prefix=written.prefix), batch.vision)
        text, vision = moved(before, after, "text"), moved(before, after, "vision")
        free = position < prefix
        expected = [True] * 3 if free else [number >= position for number in range(3)]
        assert text[0, :3].tolist() == expected
        assert bool(vision[0, : int(batch.vision.present[0].sum())].all()) == free if batch.vision else False
        assert not text[1:].any()


def test_a_causal_stack_stands_the_image_before_the_text() -> None:
    """KOSMOS-1: each position sees itself and what stands before it, in either modality."""
    built, batch = model(encoder=encoder(causal=True)), random_batch(0)
    assert batch.text is not None
    assert batch.vision is not None
    before = built.encode(batch.text, batch.vision)
    after = built.encode(perturbed(batch, 0, 2).text, batch.vision)
    assert moved(before, after, "text")[0, :3].tolist() == [False, False, True]
    assert not moved(before, after, "vision").any()
    features = batch.vision.features.clone()
    features[0, 1] += 1
    after = built.encode(batch.text, replace(batch.vision, features=features))
    assert moved(before, after, "vision")[0, :2].tolist() == [False, True]
    assert moved(before, after, "text")[0, :3].all()
    towers = Towers(built, batch)
    for name, stream in towers.encode(View.of(batch)).items():
        torch.testing.assert_close(stream.states, before[name].states)


def test_clips_text_tower_is_causal_and_its_last_state_stands_for_the_text() -> None:
    built, batch = model(text={"causal": True, "pool": "last", "norm": False}), random_batch(1)
    assert batch.text is not None
    stream = built.encode(batch.text, None)["text"]
    last = batch.text.present.sum(1) - 1
    torch.testing.assert_close(stream.pooled(), torch.stack([stream.states[row, last[row]] for row in range(5)]))
    after = built.encode(perturbed(batch, 0, 2).text, None)["text"]
    assert ((stream.states - after.states).abs().amax(-1) > 1e-6)[0, :3].tolist() == [False, False, True]


@pytest.mark.parametrize("first", ["none", "token", "mean"])
def test_what_stands_before_the_positions(first: str) -> None:
    built, batch = model(vision={"kind": "region", "first": first}), random_batch(2)
    assert batch.vision is not None
    stream = built.embed(None, batch.vision)["vision"]
    leads = first != "none"
    assert stream.states.shape[1] == batch.vision.present.shape[1] + leads
    assert torch.equal(stream.present[:, int(leads) :], batch.vision.present)
    plain = model(vision={"kind": "region"})
    plain.load_state_dict(built.state_dict(), strict=False)
    torch.testing.assert_close(stream.inputs, plain.embed(None, batch.vision)["vision"].states)
    if first == "none":
        weights = batch.vision.present[..., None].float()
        torch.testing.assert_close(stream.pooled(), (stream.states * weights).sum(1) / weights.sum(1))
    else:
        assert torch.equal(stream.pooled(), stream.states[:, 0])
    if first == "mean":
        row = 3
        n = int(batch.vision.present[row].sum())
        whole = replace(
            batch.vision.select(torch.tensor([row])),
            features=batch.vision.features[row, :n].float().mean(0)[None, None],
            present=torch.ones(1, 1, dtype=torch.bool),
            boxes=torch.tensor([[[0.0, 0, 1, 1]]]),
        )
        expected = plain.embed(None, whole)["vision"].states[0, 0]
        torch.testing.assert_close(stream.states[row, 0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("norms", "modules"), [(("parts", "sum"), 3), (("parts",), 2), (("sum",), 1), ((), 0)])
def test_norms_of_the_vision_embedding(norms: tuple[str, ...], modules: int) -> None:
    built = model(vision={"kind": "region", "norms": norms})
    found = [module for module in built.vision.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(found) == modules
    assert not model(vision={"kind": "region", "box": 0}).vision.box


def test_a_decoder_sees_its_memory_and_what_it_has_written() -> None:
    decoder = {"layers": 2, "memory": ["vision"], "queries": 4}
    built, batch = model(decoder=decoder), random_batch(3)
    assert batch.text is not None
    assert batch.vision is not None
    memory = built.encode(None, batch.vision)
    before = built.decode(batch.text, memory)
    other = perturbed(batch, 0, 2)
    assert other.text is not None
    after = built.decode(other.text, memory)
    assert ((before.states - after.states).abs().amax(-1) > 1e-6)[0, :3].tolist() == [False, False, True]
    padding = ~memory["vision"].present
    noise = {"vision": memory["vision"].with_states(memory["vision"].states + 9 * padding[..., None])}
    torch.testing.assert_close(built.decode(batch.text, noise).states, before.states)
    changed = {"vision": memory["vision"].with_states(torch.randn_like(memory["vision"].states))}
    assert not torch.allclose(built.decode(batch.text, changed).states, before.states)
    queried = built.query(memory)
    assert queried.shape == (5, 4, 16)
    assert not torch.allclose(queried[:, 0], queried[:, 1])


def test_towers_are_computed_once_and_equal_the_whole() -> None:
    own = {"attention": [("text-text", "vision-vision")], "weights": "separate"}
    crossing = {"attention": [FUSED], "weights": "shared"}
    built, batch = model(encoder=encoder(blocks=[own, crossing])), random_batch(4)
    towers = Towers(built, batch)
    kept = towers.vision
    whole = built.encode(batch.text, batch.vision)
    for name, stream in towers.encode(View.of(batch)).items():
        torch.testing.assert_close(stream.states, whole[name].states)
    assert towers.vision is kept
    texts, images = torch.tensor([0, 0, 4]), torch.tensor([1, 2, 4])
    crossed = towers.cross(texts, images)
    assert batch.text is not None
    assert batch.vision is not None
    again = built.encode(batch.text.select(texts), batch.vision.select(images))
    for name, stream in crossed.items():
        torch.testing.assert_close(stream.states, again[name].states)
    torch.testing.assert_close(towers.apart("text").states, built.encode(batch.text, None)["text"].states)


def test_words_and_features_that_a_training_step_does_without() -> None:
    text = {"word_dropout": 0.5, "pool": "mean"}
    built, batch = model(text=text, vision={"kind": "region", "feature_dropout": 0.5}), random_batch(5, size=64)
    assert batch.text is not None
    seen = built.embed(batch.text, None)["text"].present
    assert torch.equal(seen, batch.text.present)
    torch.manual_seed(1)
    seen = built.train().embed(batch.text, None)["text"].present
    assert seen[:, 0].all()
    assert not (seen & ~batch.text.present).any()
    assert seen[:, 1:].sum() / batch.text.present[:, 1:].sum() == pytest.approx(0.5, abs=0.1)
    one, other = (built.embed(None, batch.vision)["vision"].states for _ in range(2))
    assert not torch.allclose(one, other)
    torch.testing.assert_close(
        built.eval().embed(None, batch.vision)["vision"].states, built.embed(None, batch.vision)["vision"].states
    )


def test_the_last_token_stands_for_the_text_whatever_words_are_dropped() -> None:
    built, batch = model(text={"word_dropout": 0.6, "pool": "last", "causal": True}), random_batch(6, size=32)
    assert batch.text is not None
    stream = built.train().embed(batch.text, None)["text"]
    last = batch.text.present.sum(1) - 1
    torch.testing.assert_close(stream.pooled(), stream.states[torch.arange(32), last])
