"""Made-up datasets of millions of pairs to look at: what the benchmarks of SQL and of the explorer stand on.

`screen` and `filter` are the real stages, over the pairs of `generated`. In between stands what `download` would have
left, written as it writes it: metadata and the log of every url, and, where pictures are to be seen, tars in which a
few hundred small JPEGs come again and again under other keys (the metadata give each its own sha256 and size, as if
they were all different). Region features go through the store's own writer, of every kept image and with as many boxes
as a detector leaves, but narrower than real ones.
"""

import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store.atomic import digest, replacing
from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureWriter, ImageFeatures
from pipeline.store.table import Shard
from pipeline.web.image_shard import FETCHES, METADATA, counted
from tests.bench.feature_tables import identity_of, regions
from tests.bench.flat_features import TOP_K
from tests.bench.generated import make_pairs
from tests.bench.made_collection import COLOURS, THINGS, photograph
from tests.bench.measured import pairmill
from tests.bench.text_rules import FOLDER, rules_text

IMAGES_A_SHARD = 10_000
JPEGS, LONGEST = 300, 64
"""How many different pictures there are, and their longer side in pixels. Real ones, of 30 kB each, would be 15 GB."""
CLASSES = ("dog", *(f"{colour} {thing}" for colour in COLOURS for thing in THINGS))
FEWEST, MOST = 10, 36
WIDTH = 32
"""Of a region's features: real ones are 2048 or so wide, and of ten million pairs would be 170 GB."""
POOL = 2000
"""Different rows of regions, which come again under other keys."""
SCREEN = {
    "max_images_per_text": 10,
    "min_words": 4,
    "max_words": 12,
    "min_characters": 20,
    "max_characters": 100,
    "max_repetition": 0.3,
}
FILTER = {"side_above": 200, "aspect_below": 3, "max_texts_per_image": 1000, "max_copies": 1}

# What `download` finds at a url, as a function of the url: one in nine is dead, one in forty is a copy of another, and
# sizes and shapes spread widely enough for the rules on them to bite.
_METADATA = """
SELECT lpad((place // {shard})::VARCHAR, 5, '0') || lpad((place % {shard})::VARCHAR, 4, '0') AS key, url, text,
    CASE WHEN draw < 0.89 THEN 'ok' WHEN draw < 0.94 THEN 'http_404' WHEN draw < 0.97 THEN 'timeout'
         ELSE 'undecodable' END AS status,
    CASE WHEN draw < 0.89 THEN 200 WHEN draw < 0.94 THEN 404 WHEN draw < 0.97 THEN NULL ELSE 200 END::INT
        AS http_status,
    width, height, draw < 0.89 AS ok, place,
    sha256(CASE WHEN hash(url, 4) % 40 = 0 THEN (hash(url, 5) % {copied})::VARCHAR ELSE url END) AS content
FROM (
    SELECT *, (100 * exp(2.5 * hash(url, 1) / 18446744073709551616))::INT AS width,
        (width * exp(2.6 * hash(url, 2) / 18446744073709551616 - 1.3))::INT AS height,
        hash(url, 3) / 18446744073709551616 AS draw, row_number() OVER (ORDER BY uid) - 1 AS place
    FROM pairs SEMI JOIN (SELECT uid FROM screened WHERE failures = 0) USING (uid)
) ORDER BY place
"""


@dataclass(frozen=True)
class Made:
    """A dataset to look at, and the recipe that it was made by."""

    dataset: Dataset
    recipe: Path


def make(pairs: int, folder: Path = FOLDER, pictures: bool = True) -> Made:
    """The dataset of so many pairs, made where it is not there; without `pictures` no tars."""
    made = Made(Dataset(folder / f"explore-{pairs}"), folder / f"explore-{pairs}" / "recipe.toml")
    dataset = made.dataset
    make_pairs(dataset, pairs)
    rules = rules_text(SCREEN) + rules_text(FILTER).replace("[screen.", "[filter.")
    made.recipe.write_text(f'name = "explore-{pairs}"\n{rules}')
    pairmill("screen", dataset.root, made.recipe)
    write_images(dataset, pictures)
    pairmill("filter", dataset.root, made.recipe)
    write_regions(dataset)
    return made


def write_images(dataset: Dataset, pictures: bool) -> None:
    """What `download` leaves of the pairs that passed `screen`, each of which has a url of its own."""
    key = digest("explore images", dataset.screened.manifest.digest, pictures and [JPEGS, LONGEST])
    if dataset.images.is_current(key):
        return
    fetches = dataset.root / "logs" / "fetches"
    shutil.rmtree(fetches, ignore_errors=True)
    fetches.mkdir(parents=True)
    with dataset.connect() as connection:
        copied = max(1, dataset.screened.manifest.count("pairs") // 200)
        query = _METADATA.format(shard=IMAGES_A_SHARD, copied=copied)
        rows = connection.sql(query).to_arrow_table()
    names = [f"{first // IMAGES_A_SHARD:05d}" for first in range(0, len(rows), IMAGES_A_SHARD)]
    with dataset.images.writing(key, {name: digest(key, name) for name in names}) as writing:
        for name in writing.todo:
            part = rows.slice(int(name) * IMAGES_A_SHARD, IMAGES_A_SHARD)
            writing.add(_image_shard(dataset, name, writing.shard_keys[name], part, pictures))
        writing.commit()


def _image_shard(dataset: Dataset, name: str, key: str, rows: pa.Table, pictures: bool) -> Shard:
    folder, ok = dataset.images.folder, rows["ok"].to_numpy()

    def where_ok(values: np.ndarray, kind: pa.DataType) -> pa.Array:
        return pa.array(values, kind, mask=~ok)

    width, height = (rows[side].to_numpy() for side in ("width", "height"))
    scale = np.minimum(1, LONGEST / np.maximum(width, height))
    columns = {
        "key": rows["key"],
        "url": rows["url"],
        "status": rows["status"],
        "http_status": rows["http_status"],
        "content_type": where_ok(np.full(len(rows), "image/jpeg"), pa.string()),
        "format": where_ok(np.full(len(rows), "JPEG"), pa.string()),
        "final_url": rows["url"],
        "bytes": where_ok(width.astype(np.int64) * height // 6, pa.int64()),
        "sha256": where_ok(rows["content"].to_numpy(), pa.string()),
        "width": where_ok((width * scale).astype(np.int32), pa.int32()),
        "height": where_ok((height * scale).astype(np.int32), pa.int32()),
        "original_width": where_ok(width, pa.int32()),
        "original_height": where_ok(height, pa.int32()),
        "blurred": pa.nulls(len(rows), METADATA.field("blurred").type),
    }
    pq.write_table(pa.table(columns, METADATA), folder / f"{name}.parquet", compression="zstd")
    numbers = rows["place"].to_numpy()
    log = {
        "url": rows["url"],
        "status": rows["status"],
        "http_status": rows["http_status"],
        "attempts": np.where(ok, 1, 3).astype(np.int32),
        "seconds": 0.05 + numbers % 97 / 40,
        "time": 1.7e9 + numbers / 100,
    }
    pq.write_table(pa.table(log, FETCHES), dataset.root / "logs" / "fetches" / f"{name}.parquet", compression="zstd")
    counts = counted(rows["status"].to_pylist())
    (folder / f"{name}_stats.json").write_text(json.dumps(counts))
    files = [f"{name}.parquet", f"{name}_stats.json"]
    if pictures:
        _write_tar(folder / f"{name}.tar", rows.filter(rows["ok"]))
        files.insert(0, f"{name}.tar")
    return Shard.of(folder, name, key, files, counts)


def _write_tar(path: Path, rows: pa.Table) -> None:
    """A WebDataset shard: of each image its JPEG, its text and what is known of it."""
    jpegs = _jpegs()
    with replacing(path) as partial, open(partial, "wb") as tar:
        for row in rows.select(["key", "url", "text", "place"]).to_pylist():
            known = json.dumps({"key": row["key"], "url": row["url"], "caption": row["text"]}).encode()
            members = {"jpg": jpegs[row["place"] % JPEGS], "txt": row["text"].encode(), "json": known}
            for suffix, content in members.items():
                entry = tarfile.TarInfo(f"{row['key']}.{suffix}")
                entry.size = len(content)
                tar.write(entry.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE))
        tar.write(bytes(tarfile.RECORDSIZE))


@cache
def _jpegs() -> list[bytes]:
    return [photograph(number, LONGEST) for number in range(JPEGS)]


def write_regions(dataset: Dataset) -> None:
    """Features `region` of every kept image, a shard for each shard of images."""
    with dataset.connect() as connection:
        keys = connection.sql("SELECT DISTINCT key FROM kept ORDER BY key").to_arrow_table()["key"].to_pylist()
    by_shard: dict[str, list[str]] = {}
    for image in keys:
        by_shard.setdefault(image[:5], []).append(image)
    table, columns, described = dataset.features("region"), regions(WIDTH), identity()
    key = digest("explore regions", dataset.filtered.manifest.digest, described)
    if table.is_current(key):
        return
    pool = list(rows_of_regions(POOL))
    with table.writing(key, {shard: digest(key, shard) for shard in by_shard}) as writing:
        for shard in writing.todo:
            path = table.folder / f"{shard}.parquet"
            with FeatureWriter(path, columns, described) as writer:
                for image in by_shard[shard]:
                    row = pool[int(image) * 7919 % POOL]
                    writer.add(ImageFeatures(image, row.n, row.arrays))
            counts = {"rows": writer.rows}
            writing.add(Shard.of(table.folder, shard, writing.shard_keys[shard], [path.name], counts))
        writing.commit({"identity": described})


def identity() -> dict[str, object]:
    """Of the region features."""
    return identity_of("region", regions(WIDTH), classes=list(CLASSES))


def rows_of_regions(number: int) -> Iterator[ImageFeatures]:
    """Rows of regions: the whole image first, then boxes of Zipf-distributed classes."""
    random = np.random.default_rng(0)
    often = 1 / np.arange(1, len(CLASSES) + 1)
    for row in range(number):
        n = int(random.integers(FEWEST, MOST + 1))
        corners = np.sort(random.random((n, 2, 2), np.float32), 1)
        corners[0] = [[0, 0], [1, 1]]
        classes = random.choice(len(CLASSES), n, p=often / often.sum()).astype(np.int32)
        confidences = random.random(n, np.float32)
        classes[0], confidences[0] = -1, 1
        ids = np.argsort(random.random((n, len(CLASSES))), 1)[:, :TOP_K].astype(np.int32)
        arrays = {
            "boxes": corners.reshape(n, 4),
            "classes": classes,
            "confidences": confidences,
            "topk_ids": ids,
            "topk_values": -np.sort(-random.random((n, TOP_K), np.float32)),
            "features": np.maximum(random.standard_normal((n, WIDTH), np.float32), 0).astype(np.float16),
        }
        yield ImageFeatures(f"{row:09d}", n, arrays)
