"""Neighbours of 64-bit hashes within a Hamming radius, exactly, without comparing all pairs.

The 64 bits are cut into bands. Hashes that differ in at most `radius` bits agree in at least `bands - radius` whole
bands (pigeonhole), so it is enough to compare those that share a bucket in one of the choices of that many bands
(Manku et al. 2007, Detecting near-duplicates for web crawling, section 3).
"""

from dataclasses import dataclass
from itertools import combinations, pairwise
from math import comb
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

MOST = 16
"""The greatest radius: beyond it unrelated images come near each other by chance."""
ALWAYS, IF_ALONE, NEVER = 0, 1, 2
"""When a hash becomes one that later hashes are compared with: see `nearest_earlier`."""

_BITS = 64
_PLACING = 150  # placing one hash in one bucket costs as much time as so many comparisons, measured
_MOST_CHOICES = 128  # each holds 16 bytes a hash


@dataclass(frozen=True)
class Nearest:
    """For each hash, in order: the least distance to an earlier one within the radius (-1: none), and which it is."""

    distance: np.ndarray
    """(n,) int8."""
    position: np.ndarray
    """(n,) int64; of equally near ones the first."""


def nearest_earlier(hashes: np.ndarray, radius: int, joins: np.ndarray) -> Nearest:
    """The nearest neighbour of each hash among those before it that have joined; `hashes` is (n,) uint64, n < 2**31.

    `joins` (n,) uint8 says which hashes do so: ALWAYS; IF_ALONE, when none that has joined is within `radius`; NEVER.
    Raises ValueError for a radius outside 0..MOST.
    """
    if not 0 <= radius <= MOST:
        raise ValueError(f"the radius {radius} is not within 0..{MOST}")
    hashes = np.ascontiguousarray(hashes, dtype=np.uint64)
    masks = _choices(len(hashes), radius)
    starts = np.empty((len(hashes), len(masks)), np.int32)
    for choice, mask in enumerate(masks):
        order = np.argsort(hashes & mask, kind="stable")
        masked = (hashes & mask)[order]
        first = np.concatenate([[True], masked[1:] != masked[:-1]])[: len(hashes)]
        starts[order, choice] = np.flatnonzero(first)[np.cumsum(first) - 1]
    distance, position = _search(hashes, radius, np.ascontiguousarray(joins, dtype=np.uint8), starts)
    return Nearest(distance, position)


def _choices(n: int, radius: int) -> np.ndarray:
    """For each choice of bands the mask of its bits, with the number of bands that costs least."""

    def cost(bands: int) -> float:
        agreeing = bands - radius
        compared = n / 2 ** (agreeing * (_BITS // bands))  # hashes that share a bucket by chance
        return comb(bands, agreeing) * (compared + _PLACING)

    possible = [count for count in range(radius + 1, _BITS + 1) if comb(count, radius) <= _MOST_CHOICES]
    count = min(possible, key=cost)
    edges = np.linspace(0, _BITS, count + 1).round().astype(int)
    bands = [((1 << int(high)) - 1) ^ ((1 << int(low)) - 1) for low, high in pairwise(edges)]
    masks = [sum(chosen) for chosen in combinations(bands, count - radius)]
    return np.array(masks, np.uint64)


@intrinsic
def _ones(context: Any, value: Any) -> Any:
    """How many bits of a uint64 are set: the processor's own instruction, which Numba does not name."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@numba.njit(cache=True, nogil=True)
def _search(hashes: np.ndarray, radius: int, joins: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`starts` (n, choices): where each hash's bucket begins in an array that has room for all of its members.

    Only hashes that have joined are written to their buckets, so a million copies of one hash are compared with one.
    """
    n, choices = starts.shape
    members, places = np.empty((choices, n), np.uint64), np.empty((choices, n), np.int32)
    sizes = np.zeros((choices, n), np.int32)
    distance, position = np.full(n, -1, np.int8), np.full(n, -1, np.int64)
    for i in range(n):
        own, best, nearest = hashes[i], radius + 1, -1
        for choice in range(choices):
            start = starts[i, choice]
            for slot in range(start, start + sizes[choice, start]):
                apart = np.int64(_ones(members[choice, slot] ^ own))  # type: ignore[call-arg]
                if apart < best or (apart == best and nearest >= 0 and places[choice, slot] < nearest):
                    best, nearest = apart, places[choice, slot]
            if best == 0:
                break
        if nearest >= 0:
            distance[i], position[i] = best, nearest
        if joins[i] == ALWAYS or (joins[i] == IF_ALONE and nearest < 0):
            for choice in range(choices):
                start = starts[i, choice]
                slot = start + sizes[choice, start]
                members[choice, slot], places[choice, slot] = own, i
                sizes[choice, start] += 1
    return distance, position
