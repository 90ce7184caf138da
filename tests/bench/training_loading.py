"""What batches do to a training: pairs of like lengths together, and the loader beside the step.

`python -m tests.bench.training_loading [--quick]`. Images have 10 to 100 regions of 2048 numbers, 36 on average, and
their texts 5 to 40 tokens, 13 on average, independently of each other; features are read from a store on the disk, with
its files in the page cache.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import islice

import numpy as np

from pipeline.model_recipe import Batches, ModelRecipe
from pipeline.store.features import FeatureStore
from tests.bench.feature_streams import workload
from tests.bench.table import Row, write
from tests.bench.training_sides import CLS, FIRST_WORD, SEP, TOKENS, VOCABULARY, Resident, stepping, system, training
from trainers.data.loader import VisionReader
from trainers.data.mixture import Corpus, Mixture
from trainers.data.plan import epoch_batches, padding_share
from trainers.data.samples import Catalogue, Partners, Samples
from trainers.data.sequences import Sequences
from trainers.data.text import Pieces, SpecialTokens
from trainers.loop.speed import Speed

SHORTEST, LONGEST, MEAN = 5, 40, 13
POSITIONS = 32 * (TOKENS + 36)
"""Of a batch, padding included: what the steps beside `transformers` have."""
PIECES = Pieces(SpecialTokens(), np.zeros(VOCABULARY, bool))


def made_texts(count: int) -> Sequences:
    """Random words between [CLS] and [SEP], of lengths that are skewed as captions' are."""
    random = np.random.default_rng(0)
    longer = random.gamma(2.0, (MEAN - SHORTEST) / 2, count).astype(np.int64)
    lengths = (SHORTEST + longer).clip(max=LONGEST)
    words = random.integers(FIRST_WORD, VOCABULARY, (count, LONGEST))
    return Sequences.of([[CLS, *row[: length - 2], SEP] for row, length in zip(words, lengths, strict=True)])


def made_corpus(images: int, recipe: ModelRecipe) -> Corpus:
    """A text for each image of a store."""
    _, root = workload(images)
    store = FeatureStore.open(root, "region")
    numbers = np.arange(images, dtype=np.int32)
    samples = Samples(
        uids=np.array([f"{number:032x}".encode() for number in range(images)]),
        pieces=PIECES,
        partners=Partners(numbers, numbers),
        texts=made_texts(images),
        images=Catalogue.of(store),
        image_of=numbers,
        sample=recipe.vision.sample,
    )
    return Corpus(samples, 1.0, VisionReader(store, recipe.vision, tuple(recipe.objectives.chosen)))


def random_batches(pairs: int, size: int) -> list[np.ndarray]:
    """An epoch cut as it falls."""
    order = np.random.default_rng(1).permutation(pairs)
    return np.array_split(order, -(-pairs // size))


def lengths(images: int, steps: int, model: str = "visualbert") -> list[Row]:
    """Batches of like lengths within a budget of positions, beside batches of as many pairs in random order."""
    cut = Batches(tokens=POSITIONS)
    recipe = system(model, batch=cut.model_dump())
    corpus = made_corpus(images, recipe)
    planned = list(epoch_batches(corpus.samples, cut, recipe.seed, 0))
    size = round(images / len(planned))
    fallen = random_batches(images, size)
    paddings = [padding_share(corpus.samples, batches) for batches in (planned, fallen)]
    speeds = _samples_per_second(corpus, recipe, [planned[:steps], fallen[:steps]])
    return [
        Row.of(
            f"10..100 regions, 5..40 tokens, batches of {POSITIONS:,} positions: {speeds[0]:.1f} pairs/s",
            f"the same model, {size} pairs in random order, padded to the longest: {speeds[1]:.1f} pairs/s",
            speeds[0] / speeds[1],
            "x the pairs a second",
            ">= 1.3",
        ),
        Row.of(
            f"padding, of all positions of an epoch: {paddings[0]:.1%}",
            f"in random order: {paddings[1]:.1%}",
            100 * paddings[0],
            "% of the positions",
            "<= 5",
        ),
    ]


def _samples_per_second(corpus: Corpus, recipe: ModelRecipe, plans: Sequence[Sequence[np.ndarray]]) -> list[float]:
    """Of the same training on the batches of each plan, in turns."""
    feeds = [[corpus.batch(rows) for rows in plan] for plan in plans]
    step = stepping(training(recipe, Resident([batch for pair in zip(*feeds, strict=True) for batch in pair])))
    seconds: list[list[float]] = [[] for _ in plans]
    pairs: list[list[int]] = [[] for _ in plans]
    for number in range(len(plans[0])):
        for side, plan in enumerate(plans):
            started = time.perf_counter()
            step()
            if number:  # the first one warms up
                seconds[side].append(time.perf_counter() - started)
                pairs[side].append(len(plan[number]))
    return [sum(pairs[side]) / sum(seconds[side]) for side in range(len(plans))]


def loader(images: int, name: str, recipe: ModelRecipe, steps: int, rounds: int) -> Row:
    """The loop with the store's files behind it, beside the same steps on batches that are in memory.

    The resident side has as many different batches as fit into a gigabyte or so, and takes them by turns.
    """
    corpus = made_corpus(images, recipe)
    mixture = Mixture([corpus], recipe.batch, recipe.seed)
    batches = [batch for _, batch in islice(mixture.batches(0, steps), steps)]
    resident = training(recipe.model_copy(update={"steps": rounds * steps + 1}), Resident(batches))
    step = stepping(resident)
    step()
    read = training(recipe.model_copy(update={"steps": steps}), mixture)
    on_batches, on_disk, waited = [], [], []
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(steps):
            step()
        on_batches.append((time.perf_counter() - started) / steps)
        read.speed = Speed()
        read.run()
        on_disk.append((read.speed.waited + read.speed.worked) / steps)
        waited.append(read.speed.waited / steps)
        print(f"  {name}: {on_batches[-1]:.4f} s, {on_disk[-1]:.4f} s with its loader", file=sys.stderr, flush=True)
    alone, beside, waiting = (1000 * statistics.median(each) for each in (on_batches, on_disk, waited))
    return Row.of(
        f"{name} with its loader: {beside:,.1f} ms, {waiting:.1f} of them waiting",
        f"the same step on batches that are in memory: {alone:,.1f} ms",
        alone / beside,
        "x its speed",
        ">= 0.95",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few images and steps, small models")
    options = parser.parse_args()
    small = system("uniter", "tiny", vision={"sample": 0})
    if options.quick:
        write("training_loading", [*lengths(300, 2), loader(300, "tiny UNITER's step", small, 4, 1)])
        return
    single = system("visualbert", batch={"size": None, "tokens": POSITIONS})
    rows = lengths(12_000, 16)
    rows.append(loader(12_000, "single-stream step", single, 6, 2))
    write("training_loading", [*rows, loader(12_000, "tiny UNITER's step of 64 pairs", small, 40, 3)])


if __name__ == "__main__":
    main()
