"""One encoder: a stack of blocks whose attention switches say which modality looks at which.

Single-stream (all four switches, shared weights), dual-stream co-attention (own modality first, then the other), merged
attention, modality experts and dual encoders are rows of the recipe's table, after VOLTA (Bugliarello et al. 2021):
they differ only in which attention maps are on in which layer, and in which weights the modalities share. A decoder is
such a table as well: its target stands where the text does, its memory where the vision does.
"""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.model_recipe import ALL_SWITCHES, Blocks
from pipeline.model_recipe import Encoder as EncoderRecipe
from trainers.network.dropping import attention, dropped
from trainers.network.streams import JOINED, Masks, Reads, Streams, joined, scattered, split

MODALITIES = ("text", "vision")
SHARED, BOTH, WRITING = "shared", "both", "writing"
"""Owners of weights beside the modalities: both of them; both at once, in experts; a text that is being written."""


class Projections(nn.Module):
    """Query, key, value and output weights of one owner in one attention sub-layer, as far as they are needed."""

    def __init__(self, hidden: int, width: int, queries: bool, keys: bool) -> None:
        super().__init__()
        self.queries, self.keys = queries, keys
        self.project = nn.Linear(hidden, width * (queries + 2 * keys))
        self.out = nn.Linear(width, hidden) if queries else None

    def forward(self, states: Tensor, heads: int) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """(B, L, hidden) -> queries, keys, values, each (B, heads, L, width / heads) or None."""
        batch, length, _ = states.shape
        projected = self.project(states)
        parts = list(projected.view(batch, length, self.queries + 2 * self.keys, heads, -1).transpose(1, 3).unbind(2))
        query = parts.pop(0) if self.queries else None
        key, value = parts if self.keys else (None, None)
        return query, key, value


class Attention(nn.Module):
    """One attention sub-layer with its residual sum and LayerNorm."""

    def __init__(self, recipe: EncoderRecipe, row: Blocks, number: int) -> None:
        super().__init__()
        switches = row.attention[number]
        self.looks = _looks_at(switches)
        self.pre = (row.norm or recipe.norm) == "pre"
        self.shared = row.attention_owned(number) == "shared"
        self.crosses = any(query not in keys or len(keys) > 1 for query, keys in self.looks.items())
        self.full = self.shared and set(switches) == ALL_SWITCHES
        self.dropout = recipe.dropout
        self.attention_dropout = recipe.dropout if recipe.attention_dropout is None else recipe.attention_dropout
        meeting = recipe.cross if self.crosses else None
        self.heads = {modality: meeting.heads if meeting else recipe.of(modality).heads for modality in MODALITIES}
        self.heads[JOINED] = recipe.heads
        asked = {key for keys in self.looks.values() for key in keys}
        self.projections, self.norms = nn.ModuleDict(), nn.ModuleDict()
        for owner, modalities in _owners(self.shared).items():
            queries, keys = any(m in self.looks for m in modalities), any(m in asked for m in modalities)
            if queries or keys:
                hidden = recipe.of(owner).hidden
                width = meeting.width if meeting else hidden
                self.projections[owner] = Projections(hidden, width, queries, keys)
                if queries or self.pre:
                    self.norms[owner] = nn.LayerNorm(hidden, recipe.epsilon)
        self.writes = row.decoding == "own" and "text" in self.looks.get("text", ())
        if self.writes:
            hidden = recipe.hidden
            self.projections[WRITING] = Projections(hidden, hidden, True, True)
            self.norms[WRITING] = nn.LayerNorm(hidden, recipe.epsilon)

    def forward(self, streams: Streams, masks: Masks, reads: Reads) -> Streams:
        """A stream of `reads` becomes the (M, hidden) states that are read of it; all others are whole."""
        looks = _present(self.looks, streams)
        owners = {name: self._owner(name, streams) for name in streams}
        projected = {
            name: self._projected(owners[name], streams[name].states, self.heads[name])
            for name in {*looks, *(key for keys in looks.values() for key in keys)}
        }
        updated = dict(streams)
        for name, keys in looks.items():
            seen = attention(
                _whole([projected[name][0]]),
                _whole([projected[key][1] for key in keys]),
                _whole([projected[key][2] for key in keys]),
                masks.of(name, keys),
                self.attention_dropout,
                self.training,
            )
            seen, states, owner = seen.transpose(1, 2).flatten(2), streams[name].states, owners[name]
            if name in reads:
                seen, states = seen[reads[name]], states[reads[name]]
            out = self._of(owner).out
            assert out is not None
            states = states + dropped(out(seen), self.dropout, self.training)
            updated[name] = streams[name].with_states(states if self.pre else self.norms[owner](states))
        return updated

    def attending(self, streams: Streams) -> set[str]:
        """Which of the streams look at something here."""
        return set(_present(self.looks, streams))

    def involved(self, streams: Streams) -> set[str]:
        """Which of the streams look, or are looked at."""
        return {name for query, keys in _present(self.looks, streams).items() for name in (query, *keys)}

    def _owner(self, name: str, streams: Streams) -> str:
        if self.writes and name == "text" and streams["text"].order is not None:
            return WRITING
        return SHARED if self.shared else name

    def _of(self, owner: str) -> Projections:
        projections = self.projections[owner]
        assert isinstance(projections, Projections)
        return projections

    def _projected(self, owner: str, states: Tensor, heads: int) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        parts: tuple[Tensor | None, Tensor | None, Tensor | None] = self._of(owner)(
            self.norms[owner](states) if self.pre else states, heads
        )
        return parts


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, residual sum and LayerNorm, for the streams that have attended."""

    def __init__(self, recipe: EncoderRecipe, row: Blocks) -> None:
        super().__init__()
        self.pre = (row.norm or recipe.norm) == "pre"
        self.dropout = recipe.dropout
        owned = row.feedforward_weights or row.weights
        self.shared, self.experts = owned == "shared", owned == "experts"
        asking = {switch.split("-")[0] for switches in row.attention for switch in switches}
        owners = {owner: modalities for owner, modalities in _owners(self.shared).items() if asking & set(modalities)}
        if self.experts:
            owners[BOTH] = MODALITIES
        self.layers, self.norms = nn.ModuleDict(), nn.ModuleDict()
        for owner in owners:
            size = recipe.of(owner)
            self.layers[owner] = nn.Sequential(
                nn.Linear(size.hidden, size.feedforward), nn.GELU(), nn.Linear(size.feedforward, size.hidden)
            )
            self.norms[owner] = nn.LayerNorm(size.hidden, recipe.epsilon)

    def forward(self, streams: Streams, attended: set[str]) -> Streams:
        updated = dict(streams)
        # In the streams' order, not the set's, which hangs on the process: each draws its dropout.
        for name in [name for name in streams if name in attended]:
            owner = SHARED if self.shared else BOTH if self.experts and len(streams) == 2 else name
            states = streams[name].states
            fed = self.layers[owner](self.norms[owner](states) if self.pre else states)
            states = states + dropped(fed, self.dropout, self.training)
            updated[name] = streams[name].with_states(states if self.pre else self.norms[owner](states))
        return updated


class Block(nn.Module):
    """A sequence of attention sub-layers, then a feed-forward layer."""

    def __init__(self, recipe: EncoderRecipe, row: Blocks) -> None:
        super().__init__()
        self.attention = nn.ModuleList(Attention(recipe, row, number) for number in range(len(row.attention)))
        self.feedforward = FeedForward(recipe, row)
        self.pre = (row.norm or recipe.norm) == "pre"
        self.updates = {switch.split("-")[0] for switches in row.attention for switch in switches}
        self.crosses = any(sublayer.crosses for sublayer in self.sublayers)
        # Both streams one behind the other: half as many, twice as large matrix products.
        self.joins = (
            self.feedforward.shared and row.decoding == "same" and all(sublayer.full for sublayer in self.sublayers)
        )

    @property
    def sublayers(self) -> list[Attention]:
        return [sublayer for sublayer in self.attention if isinstance(sublayer, Attention)]

    def forward(self, streams: Streams, masks: Masks, reads: Reads) -> Streams:
        """`reads`, in the last block: what works position by position does so only for what is read; the rest is 0."""
        attended: set[str] = set()
        whole = streams
        flat: set[str] = set()
        for number, sublayer in enumerate(self.sublayers):
            asking = sublayer.attending(streams)
            later = set().union(*(after.involved(streams) for after in self.sublayers[number + 1 :]))
            reading = {name: reads[name] for name in asking - later if name in reads}
            streams = sublayer(streams, masks, reading)
            attended, flat = attended | asking, flat | set(reading)
        streams = dict(streams)
        for name in (attended & set(reads)) - flat:
            streams[name] = streams[name].with_states(streams[name].states[reads[name]])
        streams = dict(self.feedforward(streams, attended))
        for name in attended & set(reads):
            streams[name] = scattered(streams[name], reads[name], like=whole[name])
        return streams


class Encoder(nn.Module):
    """The stack. Blocks before `first_crossing` work on each modality alone, so their output can be kept and reused."""

    def __init__(self, recipe: EncoderRecipe) -> None:
        super().__init__()
        self.checkpointing = recipe.checkpointing
        self.blocks = nn.ModuleList(Block(recipe, row) for row in recipe.blocks for _ in range(row.repeat))
        crossing = [number for number, block in enumerate(self.stack) if block.crosses]
        self.first_crossing = crossing[0] if crossing else len(self.blocks)
        self.closing = nn.ModuleDict()
        """The LayerNorms that end a modality's run of pre-norm blocks, by the number of the run's last block."""
        for number, modalities in _run_ends(self.stack).items():
            shares = self.stack[number].joins and len(modalities) == 2
            owners = (SHARED,) if shares else modalities
            self.closing[str(number)] = nn.ModuleDict(
                {owner: nn.LayerNorm(recipe.of(owner).hidden, recipe.epsilon) for owner in owners}
            )

    @property
    def stack(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def forward(self, streams: Streams) -> Streams:
        return self.crossing(self.alone(streams))

    def alone(self, streams: Streams) -> Streams:
        """The blocks before the first in which a modality looks at the other; each modality may be passed by itself."""
        return self._run(0, self.first_crossing, streams)

    def crossing(self, streams: Streams, reads: Reads | None = None) -> Streams:
        """The blocks after those of `alone`.

        `reads` says which positions of each stream somebody will read; the last block leaves out what it can of the
        others, whose states mean nothing. A stream that is not named there is read whole.
        """
        return self._run(self.first_crossing, len(self.blocks), streams, reads or {})

    def _run(self, first: int, stop: int, streams: Streams, reads: Reads | None = None) -> Streams:
        masks, stack = Masks(streams), self.stack
        both = dict(streams)
        for number in range(first, stop):
            block = stack[number]
            if len(both) == 2 and block.joins and JOINED not in streams:
                streams = joined(streams)
            elif not block.joins and JOINED in streams:
                streams = split(streams, both)
            reading = _joined_reads(reads, both, JOINED in streams) if reads and number == len(self.blocks) - 1 else {}
            if self.checkpointing and self.training and torch.is_grad_enabled():
                streams = checkpoint(block, streams, masks, reading, use_reentrant=False)
            else:
                streams = block(streams, masks, reading)
            if str(number) in self.closing:
                streams = self._closed(number, split(streams, both) if JOINED in streams else streams)
        return split(streams, both) if JOINED in streams else streams

    def _closed(self, number: int, streams: Streams) -> Streams:
        norms = self.closing[str(number)]
        assert isinstance(norms, nn.ModuleDict)
        closed = dict(streams)
        for name, stream in streams.items():
            owner = SHARED if SHARED in norms else name
            if owner in norms:
                closed[name] = stream.with_states(norms[owner](stream.states))
        return closed


def _run_ends(blocks: list[Block]) -> dict[int, tuple[str, ...]]:
    """Block numbers -> the modalities whose run of pre-norm blocks ends there."""
    ends: dict[int, tuple[str, ...]] = {}
    for modality in MODALITIES:
        updating = [number for number, block in enumerate(blocks) if modality in block.updates]
        for number, after in pairwise([*updating, None]):
            if number is not None and blocks[number].pre and (after is None or not blocks[after].pre):
                ends[number] = (*ends.get(number, ()), modality)
    return ends


def _owners(shared: bool) -> dict[str, tuple[str, ...]]:
    return {SHARED: MODALITIES} if shared else {modality: (modality,) for modality in MODALITIES}


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


def _joined_reads(reads: Reads, streams: Streams, joins: bool) -> Reads:
    """As the last block's streams are: one behind the other, or each by itself."""
    if not joins:
        return {name: read for name, read in reads.items() if name in streams}
    parts = [reads.get(name, torch.ones_like(streams[name].present)) for name in MODALITIES]
    return {JOINED: torch.cat(parts, 1)}


def _whole(parts: list[Tensor | None]) -> Tensor:
    tensors = [part for part in parts if part is not None]
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, 2)
