"""Cutting a pool of items into batches with little padding, compiled: Python would take as long as the training.

Items have two lengths, those of the two sequences that a batch pads apart. A pool is halved again and again, each time
by that length of the two whose halves need less padding, until each part is a batch.
"""

import math

import numpy as np
from numba import njit

MARGIN = 1.04
"""How many more positions a batch has than its items, about: that many parts are aimed at."""


@njit("void(int32[::1], int32[::1], int64, int64, int32[::1])", nogil=True, cache=True)
def _sort(order: np.ndarray, lengths: np.ndarray, first: int, stop: int, scratch: np.ndarray) -> None:
    """Stable counting sort of order[first:stop] by length."""
    low = high = lengths[order[first]]
    for at in range(first + 1, stop):
        low, high = min(low, lengths[order[at]]), max(high, lengths[order[at]])
    ends = np.zeros(high - low + 2, np.int64)
    for at in range(first, stop):
        ends[lengths[order[at]] - low + 1] += 1
    for value in range(1, len(ends)):
        ends[value] += ends[value - 1]
    for at in range(first, stop):
        value = lengths[order[at]] - low
        scratch[ends[value]] = order[at]
        ends[value] += 1
    order[first:stop] = scratch[: stop - first]


@njit("int64(int32[::1], int32[::1], int64, int64)", nogil=True, cache=True)
def _longest(order: np.ndarray, lengths: np.ndarray, first: int, stop: int) -> int:
    longest = 0
    for at in range(first, stop):
        longest = max(longest, int(lengths[order[at]]))
    return longest


@njit("int64(int32[::1], int32[::1], int32[::1], int64, int64)", nogil=True, cache=True)
def _padded(order: np.ndarray, one: np.ndarray, other: np.ndarray, first: int, stop: int) -> int:
    """Positions of a batch, padding included."""
    return (stop - first) * (_longest(order, one, first, stop) + _longest(order, other, first, stop))


@njit("int64(int32[::1], int32[::1], int32[::1], int64, int64, int64, int64)", nogil=True, cache=True)
def _parts(order: np.ndarray, one: np.ndarray, other: np.ndarray, first: int, stop: int, size: int, tokens: int) -> int:
    """Into how many batches these items are to go; 1 if they may stay together."""
    if size:
        return -(-(stop - first) // size)
    if _padded(order, one, other, first, stop) <= tokens:
        return 1
    filled = 0
    for at in range(first, stop):
        filled += int(one[order[at]]) + int(other[order[at]])
    return max(2, math.ceil(MARGIN * filled / tokens))


@njit("int64(int32[::1], int32[::1], int32[::1], int64, int64, int64, int64[::1])", nogil=True, cache=True)
def divide(
    order: np.ndarray, one: np.ndarray, other: np.ndarray, size: int, tokens: int, unit: int, stops: np.ndarray
) -> int:
    """Order the items `order` (n,) in place so that batches follow one another; returns how many there are.

    `one`, `other`: every item's two lengths. A batch has at most `size` items, and all nearly equally many; or, where
    `size` is 0, at most `tokens` padded positions, unless a single item has more. Batches have multiples of `unit`
    items, as far as there are so many. `stops` (at least n,) int64 gets the place behind each batch.
    """
    n = len(order)
    scratch = np.empty(n, np.int32)
    waiting = np.empty((n + 1, 2), np.int64)
    waiting[0] = 0, n
    depth, batches = (1 if n else 0), 0
    while depth:
        depth -= 1
        first, stop = waiting[depth]
        count = stop - first
        parts = _parts(order, one, other, first, stop, size, tokens)
        if parts == 1 or count == 1:
            stops[batches] = stop
            batches += 1
            continue
        left = count * (parts // 2) / parts
        middle = unit * round(left / unit)
        if not 0 < middle < count:
            middle = max(1, int(left))
        middle += first
        # Sorted by one length, and by the other where that is equal; and the other way round.
        _sort(order, other, first, stop, scratch)
        _sort(order, one, first, stop, scratch)
        by_one = _padded(order, one, other, first, middle) + _padded(order, one, other, middle, stop)
        _sort(order, other, first, stop, scratch)
        if by_one < _padded(order, one, other, first, middle) + _padded(order, one, other, middle, stop):
            _sort(order, one, first, stop, scratch)
        waiting[depth] = middle, stop
        waiting[depth + 1] = first, middle
        depth += 2
    return batches
