"""`pairmill export-features`: an extractor's features, in a format that others read.

Only images of kept pairs go out. `images.csv` beside them names the url of each (id, url), which is what
`pairmill import-features --match` takes.
"""

import shutil
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from pipeline.engine import Engine
from pipeline.errors import PairmillError
from pipeline.store.atomic import replacing
from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureStore
from pipeline.store.features.exchange import lxmert_tsv, uniter_npz, webdataset
from pipeline.store.sql import condition, literal, parquet, write_parquet
from pipeline.store.table import Table

FORMATS = ("webdataset", "uniter-npz", "lxmert-tsv")
IMAGES = "images.csv"


def export_features(dataset: Dataset, engine: Engine, extractor: str, to: str, out: Path, where: str = "true") -> str:
    """Write the features to the new folder `out`, in one of FORMATS; returns a line that says what was done.

    `where`: SQL over the view `kept`. Raises PairmillError for SQL that is wrong, a folder that is not empty, features
    that the format cannot hold.
    """
    store, table = FeatureStore.open(dataset.root, extractor), dataset.features(extractor)
    if to != "webdataset" and "boxes" not in store.columns:
        raise PairmillError(f"{to} holds regions, and {extractor} has no boxes", "export to webdataset")
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise PairmillError(f"{out} is not empty", "name another folder")
    staging = dataset.root / ".staging" / "export"
    staged = staging / "images.parquet"
    try:
        counts = _stage(dataset, staged, out / IMAGES, where)
        if to == "webdataset":
            webdataset.write_identity(store, out)
        work = partial(
            _export_shard,
            folder=table.folder.absolute(),
            digest=table.manifest.digest,
            to=to,
            out=out.absolute(),
            staged=staged.absolute(),
        )
        written = sum(engine.map(work, sorted(counts), f"export to {to}", counts))
    except BaseException:
        # The folder was empty; so it is again, and the next call may write there.
        for path in out.iterdir():
            path.unlink()
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    lacking = sum(counts.values()) - written
    note = f"; {lacking:,} kept images have no features" if lacking else ""
    return f"{written:,} images in {out}{note}"


def _stage(dataset: Dataset, staged: Path, listed: Path, where: str) -> Mapping[str, int]:
    """Write the wanted images (shard, key, width, height) and their urls (id, url); returns shard -> how many."""
    dataset.images.manifest  # noqa: B018 - says that `download` must run first
    source = parquet(dataset.images.paths(".parquet"), ", filename = true")
    with dataset.connect() as connection:
        try:
            chosen = f"SELECT DISTINCT key, url FROM kept WHERE {condition(where)}"
            connection.execute(f"CREATE TEMP TABLE wanted AS {chosen}")
        except duckdb.Error as error:
            raise PairmillError(f"--where: {str(error).splitlines()[0]}", "it is SQL over the view `kept`") from None
        with replacing(staged) as path:
            query = (
                "SELECT parse_filename(filename, true) AS shard, key, coalesce(width, 1) AS width, "
                f"coalesce(height, 1) AS height FROM {source} SEMI JOIN wanted USING (key) ORDER BY shard, key"
            )
            write_parquet(connection, query, path)
        with replacing(listed) as path:
            rows = "SELECT key AS id, url FROM wanted ORDER BY key, url"
            connection.execute(f"COPY ({rows}) TO {literal(path)} (FORMAT csv, HEADER)")
        query = f"SELECT shard, count(*) FROM {parquet([staged])} GROUP BY shard"
        return dict(connection.execute(query).fetchall())


@lru_cache(maxsize=1)
def _store(folder: Path, digest: str) -> FeatureStore:
    """A worker exports many shards, and opening a store looks at each of its files. `digest`: its content's."""
    return FeatureStore(Table(folder, "extract"))


def _export_shard(shard: str, *, folder: Path, digest: str, to: str, out: Path, staged: Path) -> int:
    """Write one image shard's features; returns the images."""
    store = _store(folder, digest)
    table = pq.read_table(staged, columns=["key", "width", "height"], filters=[("shard", "=", shard)])
    images = [row for row in table.to_pylist() if row["key"] in store]
    keys = [row["key"] for row in images]
    if to == "webdataset":
        return webdataset.write(store, out, keys, name=shard)
    if to == "uniter-npz":
        return uniter_npz.write(store, out, keys)
    return lxmert_tsv.write(store, out / f"{shard}.tsv", keys, [(row["width"], row["height"]) for row in images])
