"""How much memory a loader holds that streams a store, shuffled: a wide one, and one of very many images.

`python -m tests.bench.feature_memory [--quick]`
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from pipeline.store.dataset import Dataset
from pipeline.store.features import Column, FeatureStore, ImageFeatures
from tests.bench.feature_streams import FOLDER, workload
from tests.bench.feature_tables import identity_of, write_store
from tests.bench.flat_features import BATCH
from tests.bench.made_collection import make_collection
from tests.bench.measured import measure
from tests.bench.table import Row, write
from tests.bench.text_rules import thousands

TINY = Column("float16", (16,), tensor=True)
GB = 1e9

# What a trainer's loader does, and nothing else.
_STREAM = f"""
import sys
from pipeline.store.features import FeatureStore
store = FeatureStore.open(sys.argv[1], sys.argv[2])
print(sum(len(batch) for batch in store.stream({BATCH}, seed=0)))
"""


def tiny_store(images: int) -> Path:
    """A dataset of so many images, all kept, with 1 to 4 vectors of 16 numbers each."""
    root = FOLDER / f"tiny-{images}"
    make_collection(root, images)
    numbers = np.random.default_rng(0).standard_normal((1000, 4, 16)).astype(np.float16)

    def row(image: int) -> ImageFeatures:
        n = 1 + image % 4
        return ImageFeatures(f"{image:09d}", n, {"features": numbers[image % len(numbers), :n]})

    columns = {"features": TINY}
    write_store(root, "grid", columns, images, row, identity_of("grid", columns, grid=[2, 2]), rows_a_shard=10_000)
    return root


def streamed(root: Path, extractor: str) -> Row:
    """The peak of a process that goes through the whole store once."""
    table = Dataset(root).features(extractor)
    size = sum(path.stat().st_size for path in table.paths(".parquet"))
    run = measure([sys.executable, "-c", _STREAM, root, extractor])
    images = len(FeatureStore(table))
    if int(run.output) != images:
        raise AssertionError(f"{run.output.strip()} of {images} images came out of {root}")
    work = f"loader over {thousands(images)} images, {size / GB:.1f} GB, shuffled, {images / run.seconds:,.0f}/s"
    return Row.of(work, "memory of its process", run.peak / GB, "GB", "<= 1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1 000 wide images and 100 000 tiny ones")
    options = parser.parse_args()
    _, wide = workload(1_000 if options.quick else 12_000)
    tiny = tiny_store(100_000 if options.quick else 2_000_000)
    write("feature_memory", [streamed(wide, "region"), streamed(tiny, "grid")])


if __name__ == "__main__":
    main()
