import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from synthetic import CROSS, FUSED, OWN, model_recipe
from torch import Tensor

from pipeline.model_recipe import Blocks
from pipeline.model_recipe import Encoder as EncoderRecipe
from trainers.network.encoder import Block, Encoder
from trainers.network.streams import Stream, Streams

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
        assert block.joins
        block.joins = False
    general = model(inputs)
    for name in inputs:
        present = inputs[name].present
        torch.testing.assert_close(fused[name].states[present], general[name].states[present])


def test_attention_equals_a_slow_one() -> None:
    """One post-norm single-stream block, written out again with loops over heads and positions."""
    model, inputs = encoder({"attention": [FUSED], "weights": "shared"}, norm="post"), streams()
    block = model.blocks[0]
    assert isinstance(block, Block)
    sublayer, feedforward = block.sublayers[0], block.feedforward
    out = model(inputs)
    projections = sublayer.projections["shared"]
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
        states = sublayer.norms["shared"](states + projections.out(seen))
        states = feedforward.norms["shared"](states + feedforward.layers["shared"](states))
        lengths = [int(inputs[name].present[row].sum()) for name in ("text", "vision")]
        for name, expected in zip(("text", "vision"), states.split(lengths), strict=True):
            torch.testing.assert_close(out[name].states[row][inputs[name].present[row]], expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_modalities_alone_then_crossing_equal_the_whole(shape: str) -> None:
    model, inputs = encoder(*SHAPES[shape]), streams()
    apart: Streams = {name: model.alone({name: stream})[name] for name, stream in inputs.items()}
    for name, stream in model.crossing(apart).items():
        torch.testing.assert_close(stream.states, model(inputs)[name].states)


def stream_of(states: Tensor, order: Tensor | None = None) -> Stream:
    return Stream(states, torch.ones(states.shape[:2], dtype=torch.bool), order)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("absent", ["text", "vision"])
def test_a_modality_may_be_absent(shape: str, absent: str) -> None:
    """As if the switches that look at it were off."""
    model, inputs = encoder(*SHAPES[shape]), streams()
    left = "text" if absent == "vision" else "vision"
    out = model({left: inputs[left]})
    assert set(out) == {left}
    padded = {left: inputs[left], absent: Stream(inputs[absent].states, torch.zeros_like(inputs[absent].present))}
    if shape in ("single stream", "merged, separate weights"):  # there, looking at nothing is not looking
        states = model(padded)[left].states
        present = inputs[left].present
        torch.testing.assert_close(out[left].states[present], states[present])


@pytest.mark.parametrize("weights", ["shared", "separate"])
def test_a_query_sees_only_keys_of_its_order_and_lower_ones(weights: str) -> None:
    """A prefix of the vision and two tokens attends freely; after it each token sees what stands before it."""
    model = encoder({"repeat": 2, "attention": [FUSED], "weights": weights})
    inputs = streams(text=6, vision=4, batch=1)
    order = torch.tensor([[0, 0, 1, 2, 3, 4]])
    text, vision = inputs["text"].states, inputs["vision"].states

    def run(text: Tensor, vision: Tensor) -> Streams:
        out: Streams = model({"text": stream_of(text, order), "vision": stream_of(vision)})
        return out

    before = run(text, vision)
    for changed in range(6):
        other = text.clone()
        other[0, changed] += torch.randn(HIDDEN, dtype=torch.float64)
        after = run(other, vision)
        moved = (after["text"].states - before["text"].states).abs().amax(-1)[0] > 1e-9
        expected = (order[0] >= order[0, changed]) | (torch.arange(6) == changed)
        assert moved.tolist() == expected.tolist()
        assert bool(((after["vision"].states - before["vision"].states).abs() > 1e-9).any()) == (order[0, changed] == 0)
    assert bool(
        (
            (run(text, vision + torch.randn_like(vision))["text"].states - before["text"].states).abs().amax(-1) > 1e-9
        ).all()
    )


def test_experts_are_the_modalities_alone_and_one_for_both() -> None:
    row = {"repeat": 2, "attention": [FUSED], "weights": "shared", "feedforward_weights": "experts"}
    model, inputs = encoder(row), streams()
    together, alone = model(inputs), {name: model({name: stream})[name] for name, stream in inputs.items()}
    used = {name: set() for name in ("both", "text", "vision")}
    for expert in used:
        changed = encoder(row)
        for block in changed.stack:
            torch.nn.init.normal_(block.feedforward.layers[expert][0].weight)
        if not torch.equal(changed(inputs)["text"].states, together["text"].states):
            used[expert].add("together")
        for name, stream in inputs.items():
            if not torch.equal(changed({name: stream})[name].states, alone[name].states):
                used[expert].add(name)
    assert used == {"both": {"together"}, "text": {"text"}, "vision": {"vision"}}


def test_cross_attention_may_be_shared_where_the_rest_is_not() -> None:
    """LXMERT's cross layers."""
    model = encoder({"attention": [CROSS, OWN], "weights": "separate", "attention_weights": ["shared", "separate"]})
    first, second = model.stack[0].sublayers
    assert set(first.projections) == {"shared"}
    assert set(second.projections) == {"text", "vision"}
    assert set(model.stack[0].feedforward.layers) == {"text", "vision"}
    both = encoder({"attention": [CROSS, OWN], "weights": "separate"})
    for name, projections in both.stack[0].sublayers[0].projections.items():
        projections.load_state_dict(first.projections["shared"].state_dict())
        both.stack[0].sublayers[0].norms[name].load_state_dict(first.norms["shared"].state_dict())
    both.stack[0].sublayers[1].load_state_dict(second.state_dict())
    both.stack[0].feedforward.load_state_dict(model.stack[0].feedforward.state_dict())
    both.closing.load_state_dict(model.closing.state_dict())
    for name, stream in model(streams()).items():
        torch.testing.assert_close(both(streams())[name].states, stream.states)


def test_streams_of_two_widths() -> None:
    """ViLBERT: the vision stream is wider, and both meet at a third width."""
    sizes = {"vision": {"hidden": 24, "heads": 3, "feedforward": 30}, "cross": {"width": 32, "heads": 4}}
    blocks = [{"attention": [CROSS], "weights": "separate"}, {"attention": [OWN], "weights": "separate"}]
    values = {"hidden": HIDDEN, "heads": 2, "feedforward": 24, "blocks": blocks}
    model = Encoder(EncoderRecipe.model_validate(values | sizes)).eval().double()
    inputs = streams()
    wide = Stream(torch.randn(3, 7, 24, dtype=torch.float64), inputs["vision"].present)
    out = model({"text": inputs["text"], "vision": wide})
    assert out["text"].states.shape == (3, 5, HIDDEN)
    assert out["vision"].states.shape == (3, 7, 24)
    assert model.stack[0].sublayers[0].projections["vision"].project.weight.shape == (3 * 32, 24)
    for wrong, match in (
        ([{"attention": [FUSED], "weights": "shared"}], "cannot share"),
        ([{"attention": [FUSED], "weights": "separate"}], "either at its own"),
    ):
        with pytest.raises(ValueError, match=match):
            EncoderRecipe.model_validate(values | sizes | {"blocks": wrong})
    with pytest.raises(ValueError, match="need `cross`"):
        EncoderRecipe.model_validate(values | {"vision": sizes["vision"]})


def test_a_text_that_is_written_has_self_attention_of_its_own() -> None:
    row = {"attention": [["text-text"], ["text-vision"]], "weights": "separate", "decoding": "own"}
    model, inputs = encoder(row), streams()
    read = model(inputs)["text"].states
    order = torch.arange(5).expand(3, -1)
    writing = {"text": Stream(inputs["text"].states, inputs["text"].present, order), "vision": inputs["vision"]}
    written = model(writing)["text"].states
    first, second = model.stack[0].sublayers
    assert set(first.projections) == {"text", "writing"}
    assert "writing" not in second.projections
    torch.nn.init.normal_(first.projections["writing"].project.weight)
    assert torch.equal(model(inputs)["text"].states, read)
    assert not torch.allclose(model(writing)["text"].states, written)


def test_each_run_of_pre_norm_blocks_ends_with_a_norm() -> None:
    """ALBEF: a ViT ends with a norm before a post-norm text looks at it."""
    model = encoder(
        {"repeat": 2, "attention": [["vision-vision"]], "weights": "separate", "norm": "pre"},
        {"repeat": 2, "attention": [["text-text"]], "weights": "separate"},
        {"repeat": 2, "attention": [["text-text"], ["text-vision"]], "weights": "separate"},
        norm="post",
    )
    assert {number: list(norms) for number, norms in model.closing.items()} == {"1": ["vision"]}
    vision = model(streams())["vision"].states
    torch.testing.assert_close(vision.mean(-1), torch.zeros_like(vision[..., 0]), atol=1e-6, rtol=0)
    mixed = encoder(*SHAPES["towers, then fusion"])
    assert {number: list(norms) for number, norms in mixed.closing.items()} == {"2": ["shared"]}


@pytest.mark.parametrize("shape", SHAPES)
def test_checkpointing_changes_no_gradient(shape: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = encoder(*SHAPES[shape]).train()
        model.checkpointing = checkpointing
        torch.manual_seed(1)
        out = model(streams())
        sum(stream.states.square().sum() for stream in out.values()).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


READ_SHAPES = SHAPES | {
    "LXMERT's": [{"attention": [CROSS, OWN], "weights": "separate", "attention_weights": ["shared", "separate"]}],
    "text looks at the image": [
        {"attention": [["vision-vision"]], "weights": "separate"},
        {"attention": [["text-text"], ["text-vision"]], "weights": "separate"},
    ],
    "experts": [{"attention": [FUSED], "weights": "shared", "feedforward_weights": "experts"}],
}


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("shape", READ_SHAPES)
def test_what_is_read_is_what_it_would_be_if_all_were(shape: str, norm: str) -> None:
    """States and gradients, where the last block leaves out what nobody reads."""
    random = torch.Generator().manual_seed(5)
    for named in (("text",), ("vision",), ("text", "vision")):
        model, inputs = encoder(*READ_SHAPES[shape], norm=norm), streams()
        reads = {name: torch.rand(inputs[name].present.shape, generator=random) < 0.4 for name in named}
        reads = {name: read & inputs[name].present for name, read in reads.items()}
        gradients = []
        for asked in ({}, reads):
            model.zero_grad()
            out = model.crossing(model.alone(inputs), asked)
            read = {name: out[name].states[reads.get(name, inputs[name].present)] for name in inputs}
            sum(states.square().sum() * (number + 1) for number, states in enumerate(read.values())).backward()
            gradients.append((read, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
        (whole, expected), (some, found) = gradients
        for name in inputs:
            torch.testing.assert_close(some[name], whole[name])
        assert set(found) == set(expected)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, msg=name)


HERE = (Path(__file__).parent, Path(__file__).parents[1], Path.cwd())
_TWO_STREAMS = """
import torch
from test_encoder import CROSS, OWN, encoder, streams
model = encoder({"repeat": 2, "attention": [CROSS, OWN], "weights": "separate"}).train()
torch.manual_seed(3)
print(*(float(stream.states.sum()) for stream in model(streams()).values()))
"""


def test_dropout_does_not_hang_on_the_process() -> None:
    """A resumed run is another process, in which sets are in another order."""
    found = {
        subprocess.run(
            [sys.executable, "-c", _TWO_STREAMS],
            env=os.environ | {"PYTHONHASHSEED": str(seed), "PYTHONPATH": os.pathsep.join(map(str, HERE))},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (0, 1, 2)
    }
    assert len(found) == 1


def test_sizes_of_the_recipe_are_checked() -> None:
    with pytest.raises(ValueError, match="multiple of heads"):
        EncoderRecipe.model_validate(model_recipe().encoder.model_dump() | {"heads": 3})
