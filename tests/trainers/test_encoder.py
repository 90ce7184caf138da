from itertools import product

import pytest
import torch
from synthetic import CROSS, FUSED, OWN, model_recipe
from torch import Tensor

from pipeline.model_recipe import Blocks
from pipeline.model_recipe import Encoder as EncoderRecipe
from trainers.encoder import Block, Encoder, Stream, Streams

HIDDEN = 16


def recipe(*blocks: dict[str, object], norm: str = "pre") -> EncoderRecipe:
    return EncoderRecipe.model_validate(
        {"hidden": HIDDEN, "heads": 2, "feedforward": 24, "dropout": 0.1, "norm": norm, "blocks": blocks}
    )


def encoder(*blocks: dict[str, object], norm: str = "pre") -> Encoder:
    torch.manual_seed(0)
    return Encoder(recipe(*blocks, norm=norm)).eval().double()


def streams(seed: int = 0, text: int = 5, vision: int = 7, batch: int = 3) -> dict[str, Stream]:
    random = torch.Generator().manual_seed(seed)

    def stream(length: int) -> Stream:
        states = torch.randn(batch, length, HIDDEN, generator=random, dtype=torch.float64)
        lengths = torch.randint(1, length + 1, (batch,), generator=random)
        lengths[0] = length
        return Stream(states, torch.arange(length) < lengths[:, None])

    return {"text": stream(text), "vision": stream(vision)}


SHAPES = {
    "single stream": [{"repeat": 2, "attention": [FUSED], "weights": "shared"}],
    "co-attention": [{"repeat": 2, "attention": [OWN, CROSS], "weights": "separate"}],
    "merged, separate weights": [{"repeat": 2, "attention": [FUSED], "weights": "separate"}],
    "dual encoder": [{"repeat": 2, "attention": [OWN], "weights": "separate"}],
    "towers, then fusion": [
        {"repeat": 1, "attention": [["text-text"]], "weights": "separate"},
        {"repeat": 1, "attention": [CROSS, OWN], "weights": "shared"},
        {"repeat": 1, "attention": [FUSED], "weights": "shared"},
    ],
}


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("shape", SHAPES)
def test_padding_changes_nothing(shape: str, norm: str) -> None:
    model, padded = encoder(*SHAPES[shape], norm=norm), streams()
    together = model(padded)
    for row in range(3):
        alone = {
            name: Stream(s.states[row : row + 1, s.present[row]], s.present[row : row + 1, s.present[row]])
            for name, s in padded.items()
        }
        for name, stream in model(alone).items():
            torch.testing.assert_close(together[name].states[row][padded[name].present[row]], stream.states[0])


@pytest.mark.parametrize("weights", ["shared", "separate"])
@pytest.mark.parametrize("on", list(product([False, True], repeat=4)))
def test_switches_cut_the_flow(on: tuple[bool, ...], weights: str) -> None:
    """A gradient runs from one modality's input to another's output exactly if the switch is on."""
    switches = [switch for switch, is_on in zip(FUSED, on, strict=True) if is_on]
    if not switches:
        with pytest.raises(ValueError, match="at least one switch"):
            Blocks.model_validate({"attention": [switches], "weights": weights})
        return
    model, inputs = encoder({"attention": [switches], "weights": weights}), streams()
    for query, key in product(("text", "vision"), repeat=2):
        states: dict[str, Tensor] = {name: s.states.clone().requires_grad_() for name, s in inputs.items()}
        out = model({name: Stream(states[name], s.present) for name, s in inputs.items()})
        weight = torch.randn(HIDDEN, dtype=torch.float64)
        # What the first position gives away of the second's input: its own residual path does not count.
        (out[query].states[0, 0] @ weight).backward()
        gradient = states[key].grad
        flows = gradient is not None and bool((gradient[0, 1].abs() > 1e-12).any())
        assert flows == (f"{query}-{key}" in switches)


def test_a_modality_without_a_query_passes_unchanged() -> None:
    model, inputs = encoder({"attention": [["text-vision"]], "weights": "separate"}, norm="post"), streams()
    out = model(inputs)
    assert torch.equal(out["vision"].states, inputs["vision"].states)
    assert not torch.equal(out["text"].states, inputs["text"].states)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_fused_path_equals_the_general_one(norm: str) -> None:
    model, inputs = encoder(*SHAPES["single stream"], norm=norm), streams()
    fused = model(inputs)
    for block in model.blocks:
        assert isinstance(block, Block)
        assert block.fused
        block.fused = False
    general = model(inputs)
    for name in inputs:
        present = inputs[name].present
        torch.testing.assert_close(fused[name].states[present], general[name].states[present])


def test_attention_equals_a_slow_one() -> None:
    """One post-norm single-stream block, written out again with loops over heads and positions."""
    model, inputs = encoder({"attention": [FUSED], "weights": "shared"}, norm="post"), streams()
    block = model.blocks[0]
    assert isinstance(block, Block)
    weights = block.of("text")
    out = model(inputs)
    projections = weights.attention[0]
    for row in range(3):
        states = torch.cat([inputs[name].states[row][inputs[name].present[row]] for name in ("text", "vision")])
        query, key, value = (states @ projections.project.weight.t() + projections.project.bias).split(HIDDEN, 1)
        size = HIDDEN // 2
        seen = torch.zeros_like(states)
        for head in range(2):
            part = slice(head * size, (head + 1) * size)
            for position in range(len(states)):
                scores = torch.stack([query[position, part] @ other for other in key[:, part]]) / size**0.5
                seen[position, part] = sum(s * v for s, v in zip(scores.softmax(0), value[:, part], strict=True))
        states = weights.attention_norm[0](states + projections.out(seen))
        states = weights.feedforward_norm(states + weights.feedforward(states))
        lengths = [int(inputs[name].present[row].sum()) for name in ("text", "vision")]
        for name, expected in zip(("text", "vision"), states.split(lengths), strict=True):
            torch.testing.assert_close(out[name].states[row][inputs[name].present[row]], expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_modalities_alone_then_crossing_equal_the_whole(shape: str) -> None:
    model, inputs = encoder(*SHAPES[shape]), streams()
    apart: Streams = {name: model.alone({name: stream})[name] for name, stream in inputs.items()}
    for name, stream in model.crossing(apart).items():
        torch.testing.assert_close(stream.states, model(inputs)[name].states)


def test_sizes_of_the_recipe_are_checked() -> None:
    with pytest.raises(ValueError, match="multiple of heads"):
        EncoderRecipe.model_validate(model_recipe().encoder.model_dump() | {"heads": 3})
