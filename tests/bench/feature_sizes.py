"""int8 features beside fp16: bytes an image, how alike they are, and what it costs a trained model in retrieval.

`python -m tests.bench.feature_sizes [--quick] [--data data/demo]`. With a dataset whose models are trained, each of
its fp16 stores that a model reads is stored as int8 as well, and the model evaluated on both.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureStore
from tests.bench.feature_streams import FOLDER, workload
from tests.bench.feature_tables import write_converted
from tests.bench.table import Row, write
from trainers.evaluate import evaluate
from trainers.saved import RECIPE

DATA = Path("data/demo")


def compared(root: Path, extractor: str, target: Path, what: str) -> tuple[FeatureStore, FeatureStore, list[Row]]:
    """An fp16 store, the same as int8 in the dataset `target`, and rows of their bytes and their vectors."""
    stores = original, smaller = FeatureStore.open(root, extractor), _as_int8(root, extractor, target)
    before, after = (
        sum(path.stat().st_size for path in Dataset(folder).features(extractor).paths(".parquet")) / len(store)
        for folder, store in zip((root, target), stores, strict=True)
    )
    least, mean = cosines(original, smaller)
    return *stores, [
        Row.of(f"{what} as int8: {after:,.0f} B an image", f"as fp16: {before:,.0f} B", after / before, "x", "<= 0.52"),
        Row.of(f"{what} as int8, mean of all vectors: {mean:.6f}", "as fp16", mean, "cosine", ">= 0.999"),
        Row.of(f"{what} as int8, least of all vectors: {least:.6f}", "as fp16", least, "cosine", ">= 0.999"),
    ]


def _as_int8(root: Path, extractor: str, target: Path) -> FeatureStore:
    write_converted(Dataset(root).features(extractor), target, extractor, "int8")
    return FeatureStore.open(target, extractor)


def cosines(original: FeatureStore, other: FeatureStore) -> tuple[float, float]:
    """Least and mean cosine of the two stores' vectors; one of zeros must be zeros in both, and counts as alike."""
    least, total, count = 1.0, 0.0, 0
    for key, _ in original.lengths():
        ours, theirs = (store[key]["features"].astype(np.float64) for store in (original, other))
        lengths = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
        if ((lengths == 0) & (np.abs(ours - theirs).max(-1) > 0)).any():
            raise AssertionError(f"image {key}: a vector is zero in one store only")
        found = np.where(lengths > 0, (ours * theirs).sum(-1) / np.where(lengths > 0, lengths, 1), 1.0)
        least, total, count = min(least, float(found.min())), total + float(found.sum()), count + found.size
    return least, total / count


def retrieval(data: Path) -> list[Row]:
    """R@10 of a dataset's trained models on int8 features, beside the fp16 features that they were trained on."""
    dataset = Dataset(data)
    rows: list[Row] = []
    for run in dataset.runs():
        extractor = json.loads((dataset.run(run).folder / RECIPE).read_text())["features"]
        store = FeatureStore.open(data, extractor)
        if store.columns["features"].dtype != "float16":
            print(f"{run} reads no fp16 features: left out", file=sys.stderr)
            continue
        target = FOLDER / "int8" / data.name
        original, smaller, sizes = compared(data, extractor, target, f"{data.name}'s {extractor} features")
        rows += [row for row in sizes if row not in rows]  # two models may read the same features
        before, after = (evaluate(dataset, run, store, storage=False)["retrieval"] for store in (original, smaller))
        for way, name in (("t2i_r10", "text to image"), ("i2t_r10", "image to text")):
            rows.append(
                Row.of(
                    f"{run}, R@10 {name} on int8: {after[way]:.1%}",
                    f"on fp16: {before[way]:.1%}",
                    100 * abs(after[way] - before[way]),
                    "points apart",
                    "<= 0.5",
                )
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1 000 made-up images")
    parser.add_argument("--data", type=Path, default=DATA, help="a dataset with trained models")
    options = parser.parse_args()
    _, made_up = workload(1_000 if options.quick else 12_000)
    _, _, rows = compared(made_up, "region", made_up / "int8", "made-up regions of 2048 numbers")
    if Dataset(options.data).runs():
        rows += retrieval(options.data)
    else:
        print(f"no models are trained in {options.data} (`make demo`): no retrieval", file=sys.stderr)
    write("feature_sizes", rows)


if __name__ == "__main__":
    main()
