"""Word-region alignment: what it costs to move a text's states onto an image's (UNITER and ViLT, sections 3.2).

cost[i, j] = 1 - cos(w_i, v_j) of the encoder's last states. The distance is min over plans T of sum(T * cost), where a
plan's rows sum to 1/n for each of n words and its columns to 1/m for each of m vision positions. The plan is found by
IPOT (Xie et al. 2018, algorithm 1), a proximal point method, in float32: beta 0.5, 50 iterations, one inner step. No
gradient goes through the plan, only through the cost (both authors' code). Padding has no share, nor have [CLS] and
[SEP] (as in ViLT's code; UNITER's counts them).
"""

import torch
from torch import Tensor
from torch.nn import functional

BETA = 0.5
ITERATIONS = 50


def distances(words: Tensor, texts: Tensor, positions: Tensor, images: Tensor) -> Tensor:
    """(N, T, hidden), (N, T) bool: which are words; (N, V, hidden), (N, V) bool: which are there -> (N,)."""
    with torch.autocast(words.device.type, enabled=False):
        ways = [functional.normalize(states.float(), dim=-1) for states in (words, positions)]
        cost = 1 - ways[0] @ ways[1].transpose(1, 2)
        return (plan(cost.detach(), texts, images) * cost).sum((1, 2))


@torch.no_grad()
def plan(cost: Tensor, rows: Tensor, columns: Tensor, beta: float = BETA, iterations: int = ITERATIONS) -> Tensor:
    """(N, n, m) costs, (N, n) and (N, m) bool: what takes part -> (N, n, m), near the cheapest plan.

    The more iterations, the nearer. All zero where a text or an image has nothing that takes part.
    """
    there = rows[:, :, None] & columns[:, None]
    kernel = torch.exp(-cost / beta).masked_fill(~there, 0)
    share = rows / rows.sum(1, keepdim=True).clamp(min=1), columns / columns.sum(1, keepdim=True).clamp(min=1)
    share = share[0].to(cost.dtype), share[1].to(cost.dtype)
    found, right = there.to(cost.dtype), share[1]
    for _ in range(iterations):
        weighed = kernel * found
        left = _over(share[0], (weighed @ right[:, :, None])[..., 0])
        right = _over(share[1], (left[:, None] @ weighed)[:, 0])
        found = left[:, :, None] * weighed * right[:, None]
    return found


def _over(share: Tensor, total: Tensor) -> Tensor:
    """share / total; where nothing takes part both are 0, and so is this."""
    return share / total.clamp(min=torch.finfo(total.dtype).tiny)
