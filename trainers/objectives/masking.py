"""Which positions are hidden, and what stands there. Nothing here changes its arguments: targets are what came in.

All draws are made on the CPU, as many for a shape whatever is drawn, so that a GPU run hides the same positions.
"""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.model_recipe import MaskedRegions
from trainers.data.batch import TextInput, VisionInput
from trainers.data.text import SpecialTokens
from trainers.network.view import View

Unit = Literal["token", "word", "span"]


def choose(candidates: Tensor, probability: float, random: torch.Generator) -> Tensor:
    """Each True of (B, L) bool `candidates` with this probability, at least one a row that has any; on the CPU."""
    candidates = candidates.cpu()
    draws = torch.rand(candidates.shape, generator=random).masked_fill(~candidates, 2.0)
    # The smallest draw of a row is taken in any case; on average that adds nothing unless all of a row's draws fail.
    smallest = draws == draws.min(dim=1, keepdim=True).values
    return ((draws < probability) | smallest) & candidates


def choose_tokens(
    text: TextInput, special: SpecialTokens, unit: Unit, probability: float, random: torch.Generator
) -> Tensor:
    """The tokens that are to be predicted: (B, T) bool on the CPU, at least one where a text has any word.

    "token": each piece by itself. "word": all pieces of a word or none (`text.continues` says what belongs together).
    "span": one run of neighbouring words of the caption, `probability` of them, rounded up or down at random.
    """
    candidates = (text.present & ~special.among(text.tokens)).cpu()
    if unit == "token":
        return choose(candidates, probability, random)
    if unit == "span" and text.segments is not None:
        candidates &= text.segments.cpu() == 0
    starts = word_starts(text, candidates)
    words = choose(starts, probability, random) if unit == "word" else _choose_run(starts, probability, random)
    places = torch.arange(starts.shape[1]).expand_as(starts)
    own_start = torch.where(starts, places, 0).cummax(1).values
    return words.gather(1, own_start) & candidates


def word_starts(text: TextInput, candidates: Tensor) -> Tensor:
    """(B, T) bool: which of the candidates begin a word; a piece that goes on with none of them does as well."""
    if text.continues is None:
        return candidates
    before = functional.pad(candidates, (1, 0))[:, :-1]
    return candidates & ~(text.continues.cpu() & before)


def _choose_run(candidates: Tensor, probability: float, random: torch.Generator) -> Tensor:
    """A run of neighbouring candidates in each row of (B, L) bool."""
    number = candidates.sum(1)
    drawn = torch.rand(2, len(candidates), generator=random)
    length = (number * probability + drawn[0]).long().clamp(min=1)
    first = (drawn[1] * (number - length + 1)).long()
    rank = candidates.cumsum(1) - 1
    return candidates & (rank >= first[:, None]) & (rank < (first + length)[:, None])


def corrupt_tokens(
    tokens: Tensor, chosen: Tensor, vocabulary: int, special: SpecialTokens, random: torch.Generator
) -> Tensor:
    """BERT's corruption of the chosen (B, T) tokens: 80 % [MASK], 10 % a random piece, 10 % as is. A new tensor."""
    draws = torch.rand(tokens.shape, generator=random)
    pieces = torch.arange(vocabulary)
    pieces = pieces[~special.among(pieces)]
    drawn = pieces[torch.randint(len(pieces), tokens.shape, generator=random)]
    chosen = chosen.cpu()
    to_mask = (chosen & (draws < 0.8)).to(tokens.device)
    to_random = (chosen & (draws >= 0.8) & (draws < 0.9)).to(tokens.device)
    return torch.where(to_random, drawn.to(tokens.device), tokens.masked_fill(to_mask, special.mask))


def overlap(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of each box with each of the others: (N, n, 4), (N, m, 4) corners -> (N, n, m)."""
    # One coordinate at a time: a last dimension of 4 or 2 would keep the CPU from working on many numbers at once.
    left, top, right, bottom = boxes[..., None].unbind(2)
    other_left, other_top, other_right, other_bottom = others[:, None].unbind(-1)
    width = (torch.minimum(right, other_right) - torch.maximum(left, other_left)).clamp(min=0)
    height = (torch.minimum(bottom, other_bottom) - torch.maximum(top, other_top)).clamp(min=0)
    area = (right - left).clamp(min=0) * (bottom - top).clamp(min=0)
    other_area = (other_right - other_left).clamp(min=0) * (other_bottom - other_top).clamp(min=0)
    shared = width * height
    return shared / (area + other_area - shared).clamp(min=1e-9)


def choose_regions(
    present: Tensor, boxes: Tensor, probability: float, co_mask_iou: float, random: torch.Generator
) -> Tensor:
    """`choose`, and with a chosen region all that overlap it by more than `co_mask_iou` (InterBERT, section 3.2).

    (B, V) bool and (B, V, 4) -> (B, V) bool on the CPU. Without the second part a neighbour gives the answer away.
    """
    chosen = choose(present, probability, random)
    if co_mask_iou == 1:
        return chosen
    boxes = boxes.float().cpu()
    images, regions = chosen.nonzero(as_tuple=True)
    near = overlap(boxes[images, regions][:, None], boxes[images])[:, 0] > co_mask_iou
    found = torch.zeros(chosen.shape).index_add_(0, images, near.float()) > 0
    return (chosen | found) & present.cpu()


def corrupt_regions(view: View, settings: MaskedRegions, random: torch.Generator) -> View:
    """The view with some regions chosen (`view.regions`: those to predict) and corrupted as the settings say.

    Of the chosen, `zeroed` lose their feature, `swapped` get that of another region of the batch, drawn evenly, and the
    rest keep it. With `mask_embedding` the learnt one stands in for a feature that was lost; otherwise zeros do. Boxes
    stay. Every row is corrupted, so that this says nothing about which match, but only matching rows are predicted. A
    view whose regions are chosen comes back as it is: objectives that share it predict the same regions.
    """
    vision = view.vision
    assert vision is not None
    assert vision.boxes is not None
    if view.regions is not None:
        return view
    device = vision.present.device
    chosen = choose_regions(vision.present, vision.boxes, settings.probability, settings.co_mask_iou, random)
    draws = torch.rand(chosen.shape, generator=random)
    zeroed = (chosen & (draws < settings.zeroed)).to(device)
    swapped = (chosen & (draws >= settings.zeroed) & (draws < settings.zeroed + settings.swapped)).to(device)
    corrupted = _swapped(vision, swapped, random) if settings.swapped else vision
    hidden = replace(
        corrupted,
        features=corrupted.features.masked_fill(zeroed[..., None], 0),
        masked=zeroed if settings.mask_embedding else None,
    )
    return replace(view, vision=hidden, regions=chosen.to(device) & view.true_rows)


def _swapped(vision: VisionInput, where: Tensor, random: torch.Generator) -> VisionInput:
    """Features of regions drawn from the whole batch at the True positions of (B, V) bool `where`."""
    donors = vision.present.flatten().nonzero()[:, 0]
    drawn = donors[torch.randint(len(donors), where.shape, generator=random).to(donors.device)]

    def swapped(values: Tensor) -> Tensor:
        given = values.flatten(0, 1)[drawn]
        return torch.where(where.view(*where.shape, *[1] * (values.ndim - 2)), given, values)

    scales = None if vision.scales is None else swapped(vision.scales)
    return replace(vision, features=swapped(vision.features), scales=scales)
