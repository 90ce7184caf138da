"""Corpora mixed by weight: which one each step draws from, and its batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.model_recipe import Batches
from trainers.data.batch import Batch
from trainers.data.loader import VisionReader, make_batch, prefetched
from trainers.data.plan import Epoch, Step, plan_epoch
from trainers.data.samples import Samples
from trainers.loop.randomness import numpy_generator, seed_of

STEPS_AT_ONCE = 4096
"""Steps whose sources are drawn together."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """A split of one source, ready for batches."""

    samples: Samples
    weight: float = 1.0
    reader: VisionReader | None = None
    """None where it has no images."""
    objects: VisionReader | None = None

    def batch(
        self,
        rows: np.ndarray,
        random: np.random.Generator | None = None,
        pin: bool = False,
        everywhere: np.ndarray | None = None,
    ) -> Batch:
        """The items at `rows` (B,); with `random` as a training step sees them, page-locked with `pin`.

        `everywhere` (A,): those of all ranks, where these are one's.
        """
        reader, objects = (
            reader if reader is None or reader.pin == pin else replace(reader, pin=pin)
            for reader in (self.reader, self.objects)
        )
        return make_batch(self.samples, reader, rows, random, objects, everywhere)


@dataclass(frozen=True, eq=False)
class Mixture:
    """Corpora of which each step draws one, by weight; each goes through epochs of its own.

    Everything is a function of (seed, step), so that a run may carry on at any step, on any number of ranks.
    """

    corpora: Sequence[Corpus]
    cut: Batches
    seed: int

    def __len__(self) -> int:
        """How many items there are."""
        return sum(len(corpus.samples) for corpus in self.corpora)

    def batches(
        self, first: int, stop: int, rank: int = 0, ranks: int = 1, pin: bool = False
    ) -> Iterator[tuple[Step, Batch]]:
        """The steps `first` .. `stop` - 1 with their batches, made ahead; of each this rank's rows."""

        def make(step: Step) -> tuple[Step, Batch]:
            random = numpy_generator(self.seed, "sample", step.number, rank)
            return step, self._batch(step, rank, ranks, random, pin)

        return prefetched(make, self.steps(first, stop))

    def once(self, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
        """Every item once, corpus by corpus, in the same order each time, whole and unchanged; this rank's rows."""

        def make(step: Step) -> Batch:
            return self._batch(step, rank, ranks, None, False)

        return prefetched(make, self._first_epochs())

    def steps(self, first: int, stop: int) -> Iterator[Step]:
        """The plan of the steps `first` .. `stop` - 1."""
        taken = np.bincount(self._drawn(0, first), minlength=len(self.corpora)).tolist()
        coming = [self._epochs(source, skipped) for source, skipped in enumerate(taken)]
        for number, source in zip(range(first, stop), self._drawn(first, stop).tolist(), strict=True):
            yield replace(next(coming[source]), number=number)

    def _drawn(self, first: int, stop: int) -> np.ndarray:
        """(stop - first,) int64: which source each of these steps draws from."""
        if len(self.corpora) == 1:
            return np.zeros(stop - first, np.int64)
        weights = np.array([corpus.weight for corpus in self.corpora])
        begin = first // STEPS_AT_ONCE
        parts = [
            numpy_generator(self.seed, "sources", block).choice(len(weights), STEPS_AT_ONCE, p=weights / weights.sum())
            for block in range(begin, -(-stop // STEPS_AT_ONCE))
        ]
        drawn: np.ndarray = np.concatenate([np.empty(0, np.int64), *parts])[first - begin * STEPS_AT_ONCE :]
        return drawn[: stop - first]

    def _epochs(self, source: int, skipped: int) -> Iterator[Step]:
        """A source's batches, epoch after epoch, without the first `skipped`; epochs among these are only planned."""
        epoch = 0
        while True:
            plan = self._plan(source, epoch)
            for number in range(skipped, len(plan)):
                yield Step(number, source, epoch, plan.batch(number))
            skipped, epoch = max(0, skipped - len(plan)), epoch + 1

    def _first_epochs(self) -> Iterator[Step]:
        for source in range(len(self.corpora)):
            plan = self._plan(source, 0)
            yield from (Step(number, source, 0, plan.batch(number)) for number in range(len(plan)))

    def _plan(self, source: int, epoch: int) -> Epoch:
        return plan_epoch(self.corpora[source].samples, self.cut, seed_of(self.seed, "source", source), epoch)

    def _batch(self, step: Step, rank: int, ranks: int, random: np.random.Generator | None, pin: bool) -> Batch:
        parts = [step.part(other, ranks).rows for other in range(ranks)]
        everywhere = np.concatenate(parts) if ranks > 1 else None
        return self.corpora[step.source].batch(parts[rank], random, pin, everywhere)
