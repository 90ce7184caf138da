"""Which positions are hidden. Nothing here changes its arguments: targets are read from what came in."""

import torch
from torch import Tensor

from trainers.text import MASK, SPECIAL_TOKENS


def choose(candidates: Tensor, probability: float, random: torch.Generator) -> Tensor:
    """Each True of (B, L) bool `candidates` with this probability, at least one a row that has any; on the CPU."""
    candidates = candidates.cpu()
    draws = torch.rand(candidates.shape, generator=random).masked_fill(~candidates, 2.0)
    # The smallest draw of a row is taken in any case; on average that adds nothing unless all of a row's draws fail.
    smallest = draws == draws.min(dim=1, keepdim=True).values
    return ((draws < probability) | smallest) & candidates


def corrupt_tokens(tokens: Tensor, chosen: Tensor, vocabulary: int, random: torch.Generator) -> Tensor:
    """BERT's corruption of the chosen (B, T) tokens: 80 % [MASK], 10 % a random piece, 10 % as is. A new tensor."""
    draws = torch.rand(tokens.shape, generator=random)
    pieces = torch.randint(len(SPECIAL_TOKENS), vocabulary, tokens.shape, generator=random)
    chosen = chosen.cpu()
    to_mask = (chosen & (draws < 0.8)).to(tokens.device)
    to_random = (chosen & (draws >= 0.8) & (draws < 0.9)).to(tokens.device)
    return torch.where(to_random, pieces.to(tokens.device), tokens.masked_fill(to_mask, MASK))


def overlap(boxes: Tensor) -> Tensor:
    """Intersection over union of each two of an image's boxes: (B, V, 4) corners -> (B, V, V)."""
    first, second = boxes[:, :, None], boxes[:, None]
    sides = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    shared = sides.clamp(min=0).prod(-1)
    area = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
    return shared / (area[:, :, None] + area[:, None] - shared).clamp(min=1e-9)


def choose_regions(
    present: Tensor, boxes: Tensor, probability: float, co_mask_iou: float, random: torch.Generator
) -> Tensor:
    """`choose`, and with a chosen region all that overlap it by more than `co_mask_iou` (InterBERT, section 3.2).

    (B, V) bool and (B, V, 4) -> (B, V) bool on the CPU. Without the second part a neighbour gives the answer away.
    """
    chosen = choose(present, probability, random)
    near = overlap(boxes.float().cpu()) > co_mask_iou
    return (chosen | (near & chosen[:, None]).any(-1)) & present.cpu()
