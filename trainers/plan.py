"""Which pairs stand in which batch: a pure function of (seed, epoch), so that a resumed run needs no sampler state."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.model_recipe import Batches
from trainers.randomness import numpy_generator
from trainers.samples import Samples


@dataclass(frozen=True, eq=False)
class Step:
    """One step's place in the run and its pairs."""

    number: int
    epoch: int
    rows: np.ndarray
    """(B,) int64, positions in the samples."""


def epoch_batches(samples: Samples, batches: Batches, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """The batches of an epoch, each (B,) int64; every pair stands in exactly one.

    The store's row groups are shuffled and taken `pool_groups` at a time, so that reading stays local; a pool's pairs
    are shuffled, sorted by length, cut into batches, and these shuffled: a batch holds pairs of like lengths.
    """
    random = numpy_generator(seed, "epoch", epoch)
    by_group = np.argsort(samples.groups, kind="stable")
    numbers, firsts = np.unique(samples.groups[by_group], return_index=True)
    members = dict(zip(numbers.tolist(), np.split(by_group, firsts[1:]), strict=True))
    groups = numbers.tolist()
    random.shuffle(groups)
    text, image = samples.text_lengths, samples.image_lengths
    for first in range(0, len(groups), batches.pool_groups):
        pool = np.concatenate([members[group] for group in groups[first : first + batches.pool_groups]])
        random.shuffle(pool)
        # Images first, in steps of 4 positions, then texts: both paddings stay small.
        pool = pool[np.lexsort((text[pool], image[pool] // 4))]
        cut = _by_size(pool, batches.size) if batches.size else _by_tokens(pool, text, image, batches.tokens or 0)
        random.shuffle(cut)
        yield from cut


def steps(samples: Samples, batches: Batches, seed: int, first: int, stop: int) -> Iterator[Step]:
    """The steps `first` .. `stop` - 1 of a run that goes through as many epochs as it takes."""
    number, epoch = 0, 0
    while True:
        for rows in epoch_batches(samples, batches, seed, epoch):
            if number == stop:
                return
            if number >= first:
                yield Step(number, epoch, rows)
            number += 1
        epoch += 1


def padding_share(samples: Samples, planned: Iterable[np.ndarray]) -> float:
    """Which part of the batches' positions is padding."""
    text, image = samples.text_lengths, samples.image_lengths
    padded = filled = 0
    for rows in planned:
        padded += len(rows) * (int(text[rows].max()) + int(image[rows].max()))
        filled += int((text[rows] + image[rows]).sum())
    return 1 - filled / padded


def _by_size(pool: np.ndarray, size: int) -> list[np.ndarray]:
    """Nearly equal batches of at most `size`: no small rest, in which a contrast would find no negatives."""
    return np.array_split(pool, -(-len(pool) // size))


def _by_tokens(pool: np.ndarray, text: np.ndarray, image: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Batches as large as fit into `tokens` positions, padding counted; a single pair may be longer."""
    cuts: list[int] = []
    first = longest_text = longest_image = 0
    for at, row in enumerate(pool.tolist()):
        longest_text, longest_image = max(longest_text, int(text[row])), max(longest_image, int(image[row]))
        if at > first and (at - first + 1) * (longest_text + longest_image) > tokens:
            cuts.append(at)
            first, longest_text, longest_image = at, int(text[row]), int(image[row])
    return np.split(pool, cuts)
