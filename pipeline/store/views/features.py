"""The views over extracted features and embeddings."""

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store.sql import double, literal, parquet
from pipeline.store.table import FAILED_SUFFIX

if TYPE_CHECKING:
    from pipeline.store.dataset import Dataset


def create_feature_views(connection: duckdb.DuckDBPyConnection, dataset: "Dataset") -> None:
    """`unextracted`, `embeddings_<run>` and `embeddings`. A damaged file leaves out its view and stops no stage."""
    failed = [
        f"SELECT {literal(name)} AS extractor, key, cause, detail FROM {parquet(paths)}"
        for name in dataset.extractors()
        if (paths := [path for path in dataset.features(name).paths(FAILED_SUFFIX) if path.exists()])
    ]
    if failed:
        with suppress(duckdb.Error):
            connection.execute(f"CREATE OR REPLACE VIEW unextracted AS {' UNION ALL '.join(failed)}")
    embedded = []
    for run, path in dataset.embeddings().items():
        with suppress(duckdb.Error):
            # Parquet knows no lists of a fixed size, and DuckDB's functions of vectors take nothing else.
            connection.execute(
                f"CREATE OR REPLACE VIEW {embeddings_of(run)} AS "
                f"SELECT * REPLACE (embedding::FLOAT[{vector_width(path)}] AS embedding) FROM {parquet([path])}"
            )
            embedded.append(f"SELECT {literal(run)} AS run, * FROM {parquet([path])}")
    if embedded:
        connection.execute(f"CREATE OR REPLACE VIEW embeddings AS {' UNION ALL BY NAME '.join(embedded)}")


def vector_width(path: Path, column: str = "embedding") -> int | None:
    """Of the vectors in a file's column; None where the file is cut off or holds none of a fixed width."""
    try:
        kind = pq.read_schema(path).field(column).type
    except (pa.ArrowException, OSError, KeyError):
        return None
    return kind.list_size if pa.types.is_fixed_size_list(kind) else None


def embeddings_of(run: str) -> str:
    """The name of the view of a run's embeddings."""
    return f"embeddings_{re.sub(r'[^0-9A-Za-z]', '_', run)}"


def nearest_pictures(cosines: str, limit: str) -> str:
    """SQL of (key, cosine, uid, text): the first `limit` of (key, cosine), each with its first kept pair if it has one.

    Vectors that have no cosine come last; equal ones by key.
    """
    return (
        f"WITH nearest AS MATERIALIZED (FROM ({cosines}) ORDER BY cosine DESC NULLS LAST, key LIMIT {limit}), "
        "named AS (SELECT key, min(uid) AS uid, min_by(text, uid) AS text FROM kept SEMI JOIN nearest USING (key) "
        "GROUP BY key) "
        "SELECT key, cosine, uid, text FROM nearest LEFT JOIN named USING (key) ORDER BY cosine DESC NULLS LAST, key"
    )


def create_region_views(connection: duckdb.DuckDBPyConnection, dataset: "Dataset") -> None:
    """`features`, one row an extractor, and `regions`, one row a box of any of them."""
    described, regions = [], []
    for name in dataset.extractors():
        manifest = dataset.features(name).manifest
        identity = manifest.info["identity"]
        size = sum(file.bytes for shard in manifest.shards for file in shard.files)
        failed = sum(n for count, n in manifest.counts().items() if count.startswith("failed/"))
        words = [name, identity["kind"], identity.get("model") or identity.get("weights") or ""]
        dtype = identity.get("settings", {}).get("dtype", "")
        counts = [manifest.count("rows"), failed, len(manifest.shards), size]
        numbers = [*(f"{count}::BIGINT" for count in counts), double(manifest.seconds)]
        described.append(
            f"({', '.join(map(literal, words))}, {bool(identity.get('trained', True))}, {literal(dtype)}, "
            f"{literal(identity.get('weights_sha256') or '')}, {', '.join(numbers)})"
        )
        if identity["kind"] == "region" and "boxes" in identity["columns"]:
            files = dataset.feature_files(name)
            regions.append(_regions(name, files, identity))
    if described:
        columns = "extractor, kind, model, trained, dtype, weights_sha256, images, failed, shards, bytes, seconds"
        connection.execute(
            f"CREATE OR REPLACE VIEW features AS FROM (VALUES {', '.join(described)}) AS features({columns})"
        )
    if regions:
        # GROUP BY lets DuckDB drop the join where no uid is asked for; HAVING, which holds of all, makes it hash this
        # side and not the boxes, so that a LIMIT ends it. While there are no images, kept pairs have no keys.
        firsts = "SELECT key, min(uid) AS uid FROM kept GROUP BY key HAVING min(uid) IS NOT NULL"
        if not (dataset.images.exists and dataset.knows_kept):
            firsts = "SELECT NULL::VARCHAR AS key, NULL::VARCHAR AS uid WHERE false"
        connection.execute(
            "CREATE OR REPLACE VIEW regions AS SELECT extractor, uid, key, box, label, confidence, area "
            f"FROM ({' UNION ALL '.join(regions)}) AS boxes LEFT JOIN ({firsts}) AS firsts USING (key)"
        )


def _regions(extractor: str, files: list[Path], identity: dict) -> str:
    """SQL of one extractor's boxes. Published features that were imported may have no classes or no confidences."""
    there = identity["columns"]
    names = ", ".join(map(literal, identity.get("classes") or []))
    label = f"[{names}][class + 1]" if names and "classes" in there else "NULL::VARCHAR"
    classes = "unnest(classes) AS class, " if "classes" in there else "NULL AS class, "
    confidences = "unnest(confidences) AS confidence" if "confidences" in there else "NULL::FLOAT AS confidence"
    place = "generate_subscripts(classes, 1)" if "classes" in there else "unnest(range(1, n + 1))"
    box = "{'x1': boxes[4 * i - 3], 'y1': boxes[4 * i - 2], 'x2': boxes[4 * i - 1], 'y2': boxes[4 * i]}"
    area = "(boxes[4 * i - 1] - boxes[4 * i - 3]) * (boxes[4 * i] - boxes[4 * i - 2])"
    return (
        f"SELECT {literal(extractor)} AS extractor, key, {box} AS box, {label} AS label, confidence, {area} AS area "
        f"FROM (SELECT key, boxes, {classes}{confidences}, {place} AS i FROM {parquet(files)})"
    )
