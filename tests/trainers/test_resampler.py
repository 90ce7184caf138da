"""The perceiver resampler, against loops and against the one of transformers."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.model_recipe import Encoder
from pipeline.model_recipe import Resampler as ResamplerRecipe
from trainers.network.resampler import PerceiverAttention, Resampler

HIDDEN, HEADS = 12, 3


def encoder(**over: object) -> Encoder:
    row = {"attention": [["text-text", "vision-vision"]], "weights": "separate"}
    values = {"hidden": HIDDEN, "heads": HEADS, "feedforward": 20, "initializer": 0.3, "blocks": [row]}
    return Encoder.model_validate(values | over)


def resampler(queries: int = 4, layers: int = 2, **over: object) -> Resampler:
    torch.manual_seed(0)
    module = Resampler(ResamplerRecipe(queries=queries, layers=layers), encoder(**over))
    for name, parameter in module.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.3)
    return module.eval()


def inputs(seed: int = 0, length: int = 7) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([length, 1, 4])
    return torch.randn(3, length, HIDDEN, generator=random), torch.arange(length) < lengths[:, None]


def slow_attention(module: PerceiverAttention, latents: Tensor, states: Tensor) -> Tensor:
    """Of one image without padding: (Q, hidden), (L, hidden) -> (Q, hidden), one head and one query after the other."""
    latents = module.latents_norm(latents)
    seen = torch.cat([module.input_norm(states), latents])
    size = HIDDEN // HEADS
    out = []
    for latent in latents:
        parts = []
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            query = module.query.weight[part] @ latent
            keys = [module.key_value.weight[:HIDDEN][part] @ other for other in seen]
            values = [module.key_value.weight[HIDDEN:][part] @ other for other in seen]
            shares = torch.stack([query @ key / size**0.5 for key in keys]).softmax(0)
            parts.append(sum(share * value for share, value in zip(shares, values, strict=True)))
        out.append(module.out.weight @ torch.cat(parts))
    return torch.stack(out)


def test_against_loops_with_padding() -> None:
    module, (states, present) = resampler(), inputs()
    found = module(states, present)
    assert found.shape == (3, 4, HIDDEN)
    for row in range(3):
        latents = module.latents
        for attention, feedforward in zip(module.attention, module.feedforward, strict=True):
            latents = latents + slow_attention(attention, latents, states[row][present[row]])
            norm, first, _, second = feedforward
            latents = latents + functional.gelu(norm(latents) @ first.weight.t()) @ second.weight.t()
        torch.testing.assert_close(found[row], module.norm(latents))


def test_the_attention_is_that_of_transformers() -> None:
    """IdeficsPerceiverAttention: weights copied, the same output."""
    peer = pytest.importorskip("transformers.models.idefics.perceiver")
    theirs = peer.IdeficsPerceiverAttention(HIDDEN, HEADS, HIDDEN // HEADS, qk_layer_norms=False)
    mine = resampler().attention[0]
    assert isinstance(mine, PerceiverAttention)
    with torch.no_grad():
        theirs.context_layer_norm.weight.copy_(mine.input_norm.weight)
        theirs.context_layer_norm.bias.copy_(mine.input_norm.bias)
        theirs.latents_layer_norm.weight.copy_(mine.latents_norm.weight)
        theirs.latents_layer_norm.bias.copy_(mine.latents_norm.bias)
        theirs.q_proj.weight.copy_(mine.query.weight)
        theirs.k_proj.weight.copy_(mine.key_value.weight[:HIDDEN])
        theirs.v_proj.weight.copy_(mine.key_value.weight[HIDDEN:])
        theirs.output_proj.weight.copy_(mine.out.weight)
    states, _ = inputs(1)
    latents = torch.randn(3, 4, HIDDEN)
    everything = torch.ones(3, 7, dtype=torch.bool)
    torch.testing.assert_close(mine(latents, states, everything), theirs(states, latents), rtol=1e-3, atol=1e-4)


def test_padding_changes_nothing_and_no_input_does_not_break_it() -> None:
    module, (states, present) = resampler(), inputs(2)
    other = torch.where(present[..., None], states, states + 50)
    torch.testing.assert_close(module(states, present), module(other, present))
    empty = module(states, torch.zeros_like(present))
    assert torch.isfinite(empty).all()
    torch.testing.assert_close(empty[0], empty[1])


def test_it_has_the_vision_streams_width() -> None:
    own = {"hidden": 8, "heads": 2, "feedforward": 10}
    module = resampler(queries=5, layers=1, vision=own)
    assert module(torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.bool)).shape == (2, 5, 8)
    count = sum(parameter.numel() for parameter in module.parameters())
    assert count == 5 * 8 + 4 * 8 * 8 + 2 * 8 * 10 + 4 * 2 * 8


def test_each_latent_and_each_input_gets_a_gradient() -> None:
    module, (states, present) = resampler(), inputs(3)
    states.requires_grad_()
    module(states, present).square().sum().backward()
    assert (module.latents.grad.abs().sum(1) > 0).all()
    assert states.grad is not None
    assert torch.equal(states.grad.abs().sum(-1) > 0, present)
