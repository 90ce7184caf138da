"""Which pairs stand in which batch: a pure function of (seed, epoch), so that a resumed run needs no sampler state."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.model_recipe import Batches
from trainers.randomness import numpy_generator
from trainers.samples import Samples


@dataclass(frozen=True)
class Step:
    """One step's place in the run and its pairs (positions in the samples)."""

    number: int
    epoch: int
    rows: list[int]


def epoch_batches(samples: Samples, batches: Batches, seed: int, epoch: int) -> list[list[int]]:
    """The batches of an epoch; every pair stands in exactly one.

    The store's row groups are shuffled and taken `pool_groups` at a time, so that reading stays local; a pool's pairs
    are shuffled, sorted by length, cut into batches, and these shuffled: a batch holds pairs of like lengths.
    """
    random = numpy_generator(seed, "epoch", epoch)
    members: dict[tuple[int, int], list[int]] = {}
    for row, group in enumerate(samples.groups):
        members.setdefault(group, []).append(row)
    groups = sorted(members)
    random.shuffle(groups)
    text, image = samples.text_lengths, samples.image_lengths
    planned: list[list[int]] = []
    for first in range(0, len(groups), batches.pool_groups):
        pool = np.concatenate([members[group] for group in groups[first : first + batches.pool_groups]])
        random.shuffle(pool)
        # Images first, in steps of 4 positions, then texts: both paddings stay small.
        pool = pool[np.lexsort((text[pool], image[pool] // 4))]
        cut = _by_size(pool, batches.size) if batches.size else _by_tokens(pool, text, image, batches.tokens or 0)
        random.shuffle(cut)
        planned += cut
    return planned


def steps(samples: Samples, batches: Batches, seed: int, first: int, stop: int) -> Iterator[Step]:
    """The steps `first` .. `stop` - 1 of a run that goes through as many epochs as it takes."""
    number, epoch = 0, 0
    while number < stop:
        planned = epoch_batches(samples, batches, seed, epoch)
        for rows in planned:
            if first <= number < stop:
                yield Step(number, epoch, rows)
            number += 1
        epoch += 1


def padding_share(samples: Samples, planned: list[list[int]]) -> float:
    """Which part of the batches' positions is padding."""
    text, image = samples.text_lengths, samples.image_lengths
    padded = sum(len(rows) * (int(text[rows].max()) + int(image[rows].max())) for rows in planned)
    return 1 - sum(int((text[rows] + image[rows]).sum()) for rows in planned) / padded


def _by_size(pool: np.ndarray, size: int) -> list[list[int]]:
    """Nearly equal batches of at most `size`: no small rest, in which a contrast would find no negatives."""
    return [part.tolist() for part in np.array_split(pool, -(-len(pool) // size))]


def _by_tokens(pool: np.ndarray, text: np.ndarray, image: np.ndarray, tokens: int) -> list[list[int]]:
    """Batches as large as fit into `tokens` positions, padding counted; a single pair may be longer."""
    cut: list[list[int]] = []
    longest_text = longest_image = 0
    for row in pool.tolist():
        longest_text, longest_image = max(longest_text, int(text[row])), max(longest_image, int(image[row]))
        if not cut or (len(cut[-1]) + 1) * (longest_text + longest_image) > tokens:
            cut.append([])
            longest_text, longest_image = int(text[row]), int(image[row])
        cut[-1].append(row)
    return cut
