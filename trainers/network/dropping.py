"""Dropout (Srivastava et al. 2014), and attention with it, at the speed of the device.

On a CPU torch draws one Bernoulli number after another, on one core, and its attention has no fast path with dropout;
sixteen bits of a number each, drawn in bulk, and two plain products take a third of that time.
"""

import torch
from torch import Tensor
from torch.nn import functional

STEPS = 1 << 16
"""A share is rounded to this many parts of 1 on a CPU."""


def dropped(states: Tensor, share: float, training: bool) -> Tensor:
    """While training, each number is 0 with probability `share`, and the others are scaled up by 1 / (1 - share).

    The draws come from torch's default generator, which a step seeds.
    """
    if not training or share == 0:
        return states
    return functional.dropout(states, share) if states.is_cuda else states * _factors(states, share)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, share: float, training: bool) -> Tensor:
    """Softmax attention of (B, heads, L, d) queries over (B, heads, K, d) keys and values -> (B, heads, L, d).

    `mask` is added to the logits; of the probabilities a `share` is dropped while training.
    """
    share = share if training else 0.0
    if query.is_cuda or share == 0:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=share)
    logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    probabilities = (logits if mask is None else logits + mask).softmax(-1)
    return (probabilities * _factors(probabilities, share)) @ value


def _factors(like: Tensor, share: float) -> Tensor:
    """0 or 1 / (1 - share), for each number of a tensor on the CPU."""
    cut = round(share * STEPS)
    words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = words.view(torch.int16)[: like.numel()].view(like.shape) >= cut - STEPS // 2
    return kept.to(like.dtype).mul_(STEPS / (STEPS - cut))
