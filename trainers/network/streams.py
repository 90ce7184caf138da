"""What flows through the encoder: each modality's states, what is there of them, and who may see whom."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

JOINED = "text+vision"
"""The stream of both modalities one behind the other, on which blocks with all switches and shared weights run."""


@dataclass(frozen=True)
class Stream:
    """B sequences of L states."""

    states: Tensor
    """(B, L, hidden)."""
    present: Tensor
    """(B, L) bool; False where padded."""
    order: Tensor | None = None
    """(B, L) int64; a query sees the keys of its own order and of lower ones. None is order 0 everywhere."""
    leading: int = 0
    """How many positions stand before those of the input: a [CLS] of the image."""
    summary: Literal["first", "last", "mean"] = "mean"
    """Which state stands for the whole."""

    @property
    def inputs(self) -> Tensor:
        """(B, L - leading, hidden): the states of the input's own positions."""
        return self.states[:, self.leading :]

    def pooled(self) -> Tensor:
        """(B, hidden): the state that stands for the whole; the mean leaves padding and what leads out."""
        if self.summary == "first":
            return self.states[:, 0]
        return self.states[self.pooling] if self.summary == "last" else self.mean()

    @property
    def pooling(self) -> Tensor:
        """(B, L) bool: the positions of which the pooled state is made."""
        places = torch.arange(self.present.shape[1], device=self.present.device).expand_as(self.present)
        if self.summary == "first":
            return places == 0
        if self.summary == "last":
            return places == (places * self.present).amax(1, keepdim=True)
        return self.present & (places >= self.leading)

    def mean(self) -> Tensor:
        """(B, hidden): the mean of the input's states, padding left out."""
        weights = self.present[:, self.leading :].to(self.states.dtype)[..., None]
        return (self.inputs * weights).sum(1) / weights.sum(1).clamp(min=1)

    def with_states(self, states: Tensor) -> "Stream":
        return replace(self, states=states)

    def select(self, rows: Tensor) -> "Stream":
        """The rows (N,) int64, in that order; a row may come more than once."""
        order = None if self.order is None else self.order.index_select(0, rows)
        return replace(
            self, states=self.states.index_select(0, rows), present=self.present.index_select(0, rows), order=order
        )


@dataclass(frozen=True)
class Wanted:
    """What an objective reads of the last states."""

    positions: Mapping[str, Tensor] = field(default_factory=dict)
    """By modality: (B, L) bool, of the input's positions."""
    pooled: frozenset[str] = frozenset()
    """The modalities whose pooled state it reads."""

    def __or__(self, other: "Wanted") -> "Wanted":
        positions = dict(self.positions)
        for name, read in other.positions.items():
            positions[name] = positions[name] | read if name in positions else read
        return Wanted(positions, self.pooled | other.pooled)

    def of(self, streams: "Streams") -> "Reads":
        """The positions of these streams."""
        reads = {}
        for name, stream in streams.items():
            read = torch.zeros_like(stream.present)
            if name in self.positions:
                read[:, stream.leading :] = self.positions[name]
            reads[name] = read | stream.pooling if name in self.pooled else read
        return reads


Streams = Mapping[str, Stream]
"""By modality: "text", "vision", or both. A modality may be absent."""
Reads = Mapping[str, Tensor]
"""By modality: (B, L) bool, the positions whose last states somebody reads. A stream without is read whole."""
UNSEEN = -1e30
"""What is added to the logits of keys that a query does not see: a query that sees none stays finite."""


class Masks:
    """Which keys a stream's queries see, made once for all blocks: (B, 1, 1 or Lq, Lk), 0 or UNSEEN; None where all."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._made: dict[tuple[str, ...], Tensor | None] = {}

    def of(self, query: str, keys: Sequence[str]) -> Tensor | None:
        names = (query, *keys)
        if names not in self._made:
            self._made[names] = self._make(_parts(query), [part for key in keys for part in _parts(key)])
        return self._made[names]

    def _make(self, queries: Sequence[str], keys: Sequence[str]) -> Tensor | None:
        present = torch.cat([self._streams[key].present for key in keys], 1)
        ordered = any(self._streams[name].order is not None for name in (*queries, *keys))
        mask = present[:, None, None, :]
        if ordered:
            asking = torch.cat([self._order(name) for name in queries], 1)
            asked = torch.cat([self._order(name) for name in keys], 1)
            mask = mask & (asked[:, None, None, :] <= asking[:, None, :, None])
        elif not present.is_cuda and bool(present.all()):
            return None  # on a GPU looking would cost more than it saves: it would wait for all that was asked of it
        dtype = self._streams[queries[0]].states.dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, UNSEEN)

    def _order(self, name: str) -> Tensor:
        stream = self._streams[name]
        return torch.zeros_like(stream.present, dtype=torch.int64) if stream.order is None else stream.order


def joined(streams: Streams) -> Streams:
    both = [streams["text"], streams["vision"]]
    return {JOINED: Stream(torch.cat([s.states for s in both], 1), torch.cat([s.present for s in both], 1))}


def split(streams: Streams, like: Streams) -> Streams:
    """The joined stream as the two that it was made of."""
    text, vision = streams[JOINED].states.split([like[name].states.shape[1] for name in ("text", "vision")], 1)
    return {"text": like["text"].with_states(text), "vision": like["vision"].with_states(vision)}


def scattered(stream: Stream, read: Tensor, like: Stream) -> Stream:
    """(M, hidden) states back at the M positions that are read: (B, L, hidden), 0 elsewhere."""
    return stream.with_states(torch.zeros_like(like.states).index_put((read,), stream.states))


def _parts(name: str) -> tuple[str, ...]:
    return ("text", "vision") if name == JOINED else (name,)
