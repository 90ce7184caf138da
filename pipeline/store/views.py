"""The SQL views over a dataset's Parquet files. Nothing is copied; a view exists once its stage has run.

| view        | one row for                                  | columns                                             |
|-------------|----------------------------------------------|-----------------------------------------------------|
| pairs       | a (url, text) pair                           | uid, url, text, original, the lists' own, file, row |
| quarantine  | an input row that could not be read          | file, row, reason, content                          |
| repeated    | a further copy of a pair in the input        | uid, file, row                                      |
| rules       | a rule of the recipe, in the order applied   | stage, rule, threshold, setting, position           |
| fetches     | a url that was asked for, its last time      | url, status, http_status, attempts, seconds, time   |
| images      | a url that was asked for                     | key, url, status, width, height, sha256, bytes, ... |
| verdicts    | a rule that a pair failed                    | uid, stage, rule, value, detail                     |
| drops       | a pair that fell out, by the first rule      | uid, stage, rule, value, detail                     |
| kept        | a pair that no rule dropped                  | uid, url, text, key, split                          |
| contents    | an image file's content (copies share a row) | sha256, key (of the first copy), split              |
| funnel      | a rule, with the pairs first dropped by it   | position, stage, rule, threshold, pairs, failing    |
| unextracted | an image that an extractor has no features of | extractor, key, cause, detail                      |
| embeddings_<run> | a kept text or image                     | modality, uid, key, text, split, embedding          |
"""

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store.sql import literal, parquet

if TYPE_CHECKING:
    from pipeline.store.dataset import Dataset

# A split is a function of the image's bytes, so that no image and no copy of it stands in two splits.
SPLIT_POSITION = "(('0x' || left(sha256, 8))::UBIGINT / 4294967296.0)"


def create_views(connection: duckdb.DuckDBPyConnection, dataset: "Dataset", images: bool = True) -> None:
    """Create every view whose table is finished; without `images`, none that reads those."""

    images = images and dataset.images.exists

    def view(name: str, query: str) -> None:
        connection.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")

    if not dataset.pairs.exists:
        return
    pair_files = dataset.pairs.paths(".parquet")
    view("pairs", f"FROM {parquet([path for path in pair_files if not path.name.startswith('repeated')])}")
    view("repeated", f"FROM {parquet([path for path in pair_files if path.name.startswith('repeated')])}")
    view("quarantine", f"FROM {parquet(dataset.quarantine.paths('.parquet'))}")

    verdicts = [
        "SELECT NULL::VARCHAR AS uid, NULL::VARCHAR AS stage, NULL::VARCHAR AS rule, NULL::DOUBLE AS value, "
        "NULL::VARCHAR AS detail WHERE false"
    ]
    rules = ["('', '', 0.0::DOUBLE, '', -1)"]
    if dataset.screened.exists:
        verdicts.append(f"FROM {parquet(dataset.screened.paths('.parquet'))}")
        rules += _rule_rows("screen", dataset.screened.manifest.info["rules"], 0)
    fetches = dataset.root / "logs" / "fetches"
    if any(fetches.glob("*.parquet")):
        latest = "row_number() OVER (PARTITION BY url ORDER BY time DESC) = 1"
        view("fetches", f"FROM {parquet([fetches / '*.parquet'])} QUALIFY {latest}")
    if images:
        view("images", f"SELECT *, {_split(dataset)} AS split FROM {parquet(dataset.images.paths('.parquet'))}")
        view(
            "contents",
            "SELECT sha256, min(key) AS key, any_value(split) AS split FROM images WHERE status = 'ok' GROUP BY sha256",
        )
        verdicts.append(
            "SELECT uid, 'download' AS stage, status AS rule, http_status::DOUBLE AS value, NULL AS detail "
            "FROM (SELECT uid, url FROM pairs) JOIN images USING (url) WHERE status <> 'ok'"
        )
        causes = connection.execute(
            "SELECT DISTINCT status FROM images WHERE status <> 'ok' ORDER BY status"
        ).fetchall()
        rules += _rule_rows("download", {cause: {} for (cause,) in causes}, 100)
    if dataset.filtered.exists:
        verdicts.append(f"FROM {parquet(dataset.filtered.paths('.parquet'))}")
        rules += _rule_rows("filter", dataset.filtered.manifest.info["rules"], 200)

    view(
        "rules",
        f"SELECT * FROM (VALUES {', '.join(rules)}) AS t(stage, rule, threshold, setting, position) "
        "WHERE position >= 0",
    )
    view("verdicts", " UNION ALL BY NAME ".join(verdicts))
    view(
        "drops",
        "SELECT uid, arg_min(stage, position) AS stage, arg_min(rule, position) AS rule, "
        "arg_min_null(value, position) AS value, arg_min_null(detail, position) AS detail "
        "FROM verdicts JOIN rules USING (stage, rule) GROUP BY uid",
    )
    view(
        "funnel",
        """SELECT position, rules.stage, rules.rule, threshold, setting, count(drops.uid) AS pairs,
                  (SELECT count(*) FROM verdicts v WHERE v.stage = rules.stage AND v.rule = rules.rule) AS failing
           FROM rules LEFT JOIN drops USING (stage, rule) GROUP BY ALL ORDER BY position""",
    )
    if images:
        view(
            "kept",
            "SELECT pairs.uid, pairs.url, pairs.text, contents.key, contents.split "
            "FROM (SELECT uid, url, text FROM pairs) AS pairs JOIN images USING (url) JOIN contents USING (sha256) "
            "ANTI JOIN verdicts USING (uid)",
        )
    else:
        view("kept", "SELECT uid, url, text FROM pairs ANTI JOIN verdicts USING (uid)")

    failed = [
        f"SELECT {literal(name)} AS extractor, key, cause, detail FROM {parquet(paths)}"
        for name in dataset.extractors()
        if (paths := [path for path in dataset.features(name).paths(".failed.parquet") if path.exists()])
    ]
    if failed:
        with suppress(duckdb.Error):  # a damaged file is `extract`'s to make again: no stage may stop over it here
            view("unextracted", " UNION ALL ".join(failed))
    for name, path in dataset.embeddings().items():
        with suppress(pa.ArrowException, OSError, KeyError, AttributeError, duckdb.Error):  # likewise, `embed`'s
            width = pq.read_schema(path).field("embedding").type.list_size
            # Parquet knows no lists of a fixed size, and DuckDB's functions of vectors take nothing else.
            view(
                f"embeddings_{re.sub(r'[^0-9A-Za-z]', '_', name)}",
                f"SELECT * REPLACE (embedding::FLOAT[{width}] AS embedding) FROM {parquet([path])}",
            )


def _split(dataset: "Dataset") -> str:
    """The SQL expression of an image's split, once `filter` has fixed the fractions."""
    if not dataset.filtered.exists:
        return "NULL::VARCHAR"
    cases, upper = [], 0.0
    for name, fraction in dataset.filtered.manifest.info["split"].items():
        upper += fraction
        cases.append(f"WHEN {SPLIT_POSITION} < {upper:.9f} THEN '{name}'")
    return f"CASE WHEN sha256 IS NULL THEN NULL {' '.join(cases)} END"


def _rule_rows(stage: str, rules: dict[str, dict[str, Any]], first: int) -> list[str]:
    rows = []
    for position, (rule, described) in enumerate(rules.items()):
        if not isinstance(described, dict):  # as earlier versions wrote it
            described = {"threshold": described}
        threshold = described.get("threshold")
        number = "NULL" if threshold is None else repr(float(threshold))
        rows.append(f"('{stage}', '{rule}', {number}, {literal(described.get('setting', ''))}, {first + position})")
    return rows
