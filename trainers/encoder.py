"""One encoder: a stack of blocks whose attention switches say which modality looks at which.

Single-stream (all four switches, shared weights), dual-stream co-attention (own modality first, then the other), merged
attention and dual encoders are rows of the recipe's table, after VOLTA (Bugliarello et al. 2021): they differ only in
which attention maps are on in which layer, and in whether the modalities share weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model_recipe import ALL_SWITCHES, Blocks
from pipeline.model_recipe import Encoder as EncoderRecipe
from trainers.embeddings import EPSILON

JOINED = "text+vision"
"""The stream of both modalities one behind the other, on which blocks with all switches and shared weights run."""


@dataclass(frozen=True)
class Stream:
    """The states of one modality: (B, L, hidden), and where they are not padding: (B, L) bool."""

    states: Tensor
    present: Tensor


Streams = Mapping[str, Stream]
"""By modality: "text", "vision", or both. A modality may be absent."""


class Projections(nn.Module):
    """Query, key, value and output weights of one modality in one attention sub-layer, as far as they are needed."""

    def __init__(self, hidden: int, queries: bool, keys: bool) -> None:
        super().__init__()
        self.queries, self.keys = queries, keys
        self.project = nn.Linear(hidden, hidden * (queries + 2 * keys))
        self.out = nn.Linear(hidden, hidden) if queries else None

    def forward(self, states: Tensor, heads: int) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """(B, L, hidden) -> queries, keys, values, each (B, heads, L, hidden / heads) or None."""
        batch, length, hidden = states.shape
        parts = list(self.project(states).view(batch, length, -1, heads, hidden // heads).transpose(1, 3).unbind(2))
        query = parts.pop(0) if self.queries else None
        key, value = parts if self.keys else (None, None)
        return query, key, value


class Weights(nn.Module):
    """What a modality, or both where they share, owns in a block: projections, norms and feed-forward."""

    def __init__(self, recipe: EncoderRecipe, roles: list[tuple[bool, bool]]) -> None:
        super().__init__()
        self.attention = nn.ModuleList(
            Projections(recipe.hidden, *role) if any(role) else nn.Identity() for role in roles
        )
        self.attention_norm = nn.ModuleList(
            nn.LayerNorm(recipe.hidden, EPSILON) if any(role) and (role[0] or recipe.norm == "pre") else nn.Identity()
            for role in roles
        )
        self.updates = any(queries for queries, _ in roles)
        if self.updates:
            self.feedforward = nn.Sequential(
                nn.Linear(recipe.hidden, recipe.feedforward), nn.GELU(), nn.Linear(recipe.feedforward, recipe.hidden)
            )
            self.feedforward_norm = nn.LayerNorm(recipe.hidden, EPSILON)


class Block(nn.Module):
    """A sequence of attention sub-layers, then a feed-forward layer; each with a residual sum and a LayerNorm."""

    def __init__(self, recipe: EncoderRecipe, row: Blocks) -> None:
        super().__init__()
        self.heads = recipe.heads
        self.pre = recipe.norm == "pre"
        self.dropout = recipe.dropout
        self.sublayers = [_looks_at(switches) for switches in row.attention]
        self.shared = row.weights == "shared"
        self.crosses = any(len(set(switch.split("-"))) == 2 for switches in row.attention for switch in switches)
        self.fused = self.shared and all(set(switches) == ALL_SWITCHES for switches in row.attention)
        owners = {"shared": ("text", "vision")} if self.shared else {"text": ("text",), "vision": ("vision",)}
        self.weights = nn.ModuleDict()
        for owner, modalities in owners.items():
            roles = [
                (
                    any(query in modalities for query in looks),
                    any(key in modalities for keys in looks.values() for key in keys),
                )
                for looks in self.sublayers
            ]
            if any(queries or keys for queries, keys in roles):
                self.weights[owner] = Weights(recipe, roles)

    def of(self, modality: str) -> Weights:
        weights = self.weights["shared" if self.shared else modality]
        assert isinstance(weights, Weights)
        return weights

    def forward(self, streams: Streams) -> Streams:
        for number, looks in enumerate(self.sublayers):
            streams = self._attend(number, _present(looks, streams), streams)
        updated = {}
        for modality, stream in streams.items():
            updated[modality] = stream
            if modality == JOINED or any(modality in looks for looks in self.sublayers):
                weights = self.of(modality)
                states = stream.states
                fed = weights.feedforward(weights.feedforward_norm(states) if self.pre else states)
                states = states + self._drop(fed)
                updated[modality] = Stream(states if self.pre else weights.feedforward_norm(states), stream.present)
        return updated

    def _attend(self, number: int, looks: Mapping[str, list[str]], streams: Streams) -> Streams:
        projected: dict[str, tuple[Tensor | None, Tensor | None, Tensor | None]] = {}
        for modality in {*looks, *(key for keys in looks.values() for key in keys)}:
            weights, states = self.of(modality), streams[modality].states
            projections = weights.attention[number]
            assert isinstance(projections, Projections)
            projected[modality] = projections(
                weights.attention_norm[number](states) if self.pre else states, self.heads
            )
        updated = dict(streams)
        for modality, keys in looks.items():
            weights, states = self.of(modality), streams[modality].states
            seen = _attention(
                projected[modality][0],
                [projected[key][1] for key in keys],
                [projected[key][2] for key in keys],
                [streams[key].present for key in keys],
                self.dropout if self.training else 0.0,
            )
            projections = weights.attention[number]
            assert isinstance(projections, Projections)
            assert projections.out is not None
            states = states + self._drop(projections.out(seen))
            updated[modality] = Stream(
                states if self.pre else weights.attention_norm[number](states), streams[modality].present
            )
        return updated

    def _drop(self, states: Tensor) -> Tensor:
        return functional.dropout(states, self.dropout, self.training)


class Encoder(nn.Module):
    """The stack. Blocks before `first_crossing` work on each modality alone, so their output can be kept and reused."""

    def __init__(self, recipe: EncoderRecipe) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(recipe, row) for row in recipe.blocks for _ in range(row.repeat))
        crossing = [number for number, block in enumerate(self.blocks) if block.crosses]
        self.first_crossing = crossing[0] if crossing else len(self.blocks)
        norms = {modality: nn.LayerNorm(recipe.hidden, EPSILON) for modality in ("text", "vision")}
        self.last_norm = nn.ModuleDict(norms if recipe.norm == "pre" else {})

    def forward(self, streams: Streams) -> Streams:
        return self.crossing(self.alone(streams))

    def alone(self, streams: Streams) -> Streams:
        """The blocks before the first in which a modality looks at the other; each modality may be passed by itself."""
        return self._run(0, self.first_crossing, streams)

    def crossing(self, streams: Streams) -> Streams:
        """The blocks after those of `alone`, and the last norm."""
        streams = self._run(self.first_crossing, len(self.blocks), streams)
        if not self.last_norm:
            return streams
        return {name: Stream(self.last_norm[name](stream.states), stream.present) for name, stream in streams.items()}

    def _run(self, first: int, stop: int, streams: Streams) -> Streams:
        for fused, blocks in groupby(list(self.blocks)[first:stop], key=lambda block: block.fused):
            joins = fused and len(streams) == 2
            lengths = [streams[name].states.shape[1] for name in ("text", "vision")] if joins else []
            streams = _joined(streams) if joins else streams
            for block in blocks:
                streams = block(streams)
            streams = _split(streams[JOINED], lengths) if joins else streams
        return streams


def _looks_at(switches: tuple[str, ...]) -> dict[str, list[str]]:
    """Switches -> for each modality that asks, the modalities that it looks at."""
    looks: dict[str, list[str]] = {}
    for switch in sorted(set(switches)):
        query, key = switch.split("-")
        looks.setdefault(query, []).append(key)
    return looks


def _present(looks: Mapping[str, list[str]], streams: Streams) -> Mapping[str, list[str]]:
    """The part of `looks` for which there are streams."""
    if JOINED in streams:
        return {JOINED: [JOINED]}
    kept = {query: [key for key in keys if key in streams] for query, keys in looks.items() if query in streams}
    return {query: keys for query, keys in kept.items() if keys}


def _attention(
    query: Tensor | None, keys: list[Tensor | None], values: list[Tensor | None], present: list[Tensor], dropout: float
) -> Tensor:
    """Softmax attention of (B, heads, L, d) queries over the concatenated keys -> (B, L, heads * d)."""
    assert query is not None
    key, value = _concatenated(keys, 2), _concatenated(values, 2)
    mask = _concatenated(list(present), 1)[:, None, None, :]
    seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return seen.transpose(1, 2).flatten(2)


def _concatenated(parts: list[Tensor | None], dimension: int) -> Tensor:
    tensors = [part for part in parts if part is not None]
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dimension)


def _joined(streams: Streams) -> Streams:
    both = [streams["text"], streams["vision"]]
    return {JOINED: Stream(torch.cat([s.states for s in both], 1), torch.cat([s.present for s in both], 1))}


def _split(stream: Stream, lengths: list[int]) -> Streams:
    states, present = stream.states.split(lengths, 1), stream.present.split(lengths, 1)
    return {
        name: Stream(*pair) for name, pair in zip(("text", "vision"), zip(states, present, strict=True), strict=True)
    }
