"""A run of a dual encoder over a made-up dataset to look at: really trained, for two steps on a few made-up images of
the same features, so that it can be asked. To embed all that is kept would take an hour, and so its embeddings are
random directions, laid out as the stage `embed` lays them out.
"""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.engine import InlineEngine
from pipeline.job import Job, is_stamped, stamp
from pipeline.recipe import Recipe
from pipeline.store.atomic import replacing
from pipeline.store.dataset import EMBEDDINGS, Dataset
from tests.bench.explore_dataset import WIDTH, identity, rows_of_regions
from tests.bench.feature_tables import regions, write_store
from tests.bench.made_collection import make_collection
from tests.bench.made_training import tiny
from trainers import train
from trainers.embed import BLOCK, SPLITS, embeddings_key

RUN, SPACE = "clip", 128
STEPS, LEARNT_FROM = 2, 200
EMBEDDED = (
    "'text' AS modality, uid, key, text, split",
    "DISTINCT 'image' AS modality, NULL::VARCHAR AS uid, key, NULL::VARCHAR AS text, split",
)


def write_run(dataset: Dataset) -> None:
    """Fill the dataset's `runs/clip`, where it is not there and not about the pairs that are kept."""
    if not dataset.run(RUN).exists:
        little = make_collection(dataset.root / ".learnt-from", LEARNT_FROM)
        rows = list(rows_of_regions(LEARNT_FROM))
        write_store(little.root, "region", regions(WIDTH), len(rows), lambda image: rows[image], identity())
        space = {"itc": {"width": SPACE}}
        model = tiny("clip", features="region", vision={"kind": "region"}, objectives=space, steps=STEPS)
        train.run(Job("train", Recipe(name="explore", train={RUN: model}), little, InlineEngine()))
        shutil.copytree(little.run(RUN).folder, dataset.run(RUN).folder, dirs_exist_ok=True)
    job = Job("embed", Recipe(name="embed"), dataset, InlineEngine())
    path = dataset.run(RUN).folder / EMBEDDINGS
    key = embeddings_key(job, dataset.run(RUN), dataset.kept_digest(SPLITS), dataset.features("region"))
    if not is_stamped(path, key):
        _write_embeddings(dataset, path)
        stamp(path, key, 0.0)


def _write_embeddings(dataset: Dataset, path: Path) -> None:
    """The texts, then the images, in order of key."""
    columns = [(name, pa.string()) for name in ("modality", "uid", "key", "text", "split")]
    schema = pa.schema([*columns, ("embedding", pa.list_(pa.float32(), SPACE))])
    random = np.random.default_rng(0)
    with replacing(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as file:
        for selected in EMBEDDED:
            with dataset.connect() as connection:
                found = connection.sql(f"SELECT {selected} FROM kept ORDER BY key, uid")
                for batch in found.to_arrow_reader(100_000):
                    vectors = random.standard_normal((len(batch), SPACE), np.float32)
                    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
                    embedding = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), SPACE)
                    rows = pa.table({**{name: batch[name] for name, _ in columns}, "embedding": embedding})
                    file.write_table(rows.cast(schema), row_group_size=BLOCK)
