"""The views over what the stages from `ingest` to `filter` write."""

from typing import TYPE_CHECKING, Any

import duckdb

from pipeline.errors import PairmillError
from pipeline.store.sql import double, literal, parquet
from pipeline.store.verdicts import DOWNLOADS, KEPT, MEASURED, VERDICTS

if TYPE_CHECKING:
    from pipeline.store.dataset import Dataset

# A split is a function of the image's bytes, so that no image and no copy of it stands in two splits.
SPLIT_POSITION = "(('0x' || left(sha256, 8))::UBIGINT / 4294967296.0)"

CONTENTS = "SELECT sha256, min(key) AS key, any_value(split) AS split FROM images WHERE status = 'ok' GROUP BY sha256"


def split_of(fractions: dict[str, float]) -> str:
    """The SQL expression of an image's split."""
    cases, upper = [], 0.0
    for name, fraction in fractions.items():
        upper += fraction
        cases.append(f"WHEN {SPLIT_POSITION} < {upper:.9f} THEN '{name}'")
    return f"CASE WHEN sha256 IS NULL THEN NULL {' '.join(cases)} END"


def places(fractions: dict[str, float]) -> str:
    """SQL of (url, key, split): where each url's image stands; the copies of a content stand where the first does."""
    contents = "SELECT sha256, min(key) AS key FROM images WHERE status = 'ok' GROUP BY sha256"
    return (
        f"SELECT images.url, contents.key, {split_of(fractions)} AS split FROM images JOIN ({contents}) AS contents "
        "USING (sha256)"
    )


def failed_downloads(pairs: str) -> str:
    """SQL of (uid, stage, rule, value, detail) for those of a relation's pairs whose image could not be had."""
    return (
        "SELECT uid, 'download' AS stage, status AS rule, http_status::DOUBLE AS value, NULL::VARCHAR AS detail "
        f"FROM (SELECT uid, url FROM {pairs}) JOIN images USING (url) WHERE status <> 'ok'"
    )


def create_chain_views(connection: duckdb.DuckDBPyConnection, dataset: "Dataset", images: bool) -> None:
    """Those of pairs, images and verdicts.

    Once `filter` has judged what the tables before it hold, it has settled what became of every pair, and `verdicts`,
    `drops` and `kept` are its files and those of `screen`. Before, and while its verdicts are about other tables than
    there are now, the same is worked out from all tables, which takes longer. Where the verdicts of `screen` are
    missing below later tables, nothing is said of what became of the pairs.
    """

    def view(name: str, query: str) -> None:
        connection.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")

    pair_files = dataset.pairs.paths(".parquet")
    view("pairs", f"FROM {parquet([path for path in pair_files if not path.name.startswith('repeated')])}")
    view("repeated", f"FROM {parquet([path for path in pair_files if path.name.startswith('repeated')])}")
    view("quarantine", f"FROM {parquet(dataset.quarantine.paths('.parquet'))}")
    fetches = dataset.root / "logs" / "fetches"
    if any(fetches.glob("*.parquet")):
        latest = "row_number() OVER (PARTITION BY url ORDER BY time DESC) = 1"
        view("fetches", f"FROM {parquet([fetches / '*.parquet'])} QUALIFY {latest}")
    if images:
        filtered = dataset.filtered.exists
        split = split_of(dataset.filtered.manifest.info["split"]) if filtered else "NULL::VARCHAR"
        view("images", f"SELECT *, {split} AS split FROM {parquet(dataset.images.paths('.parquet'))}")
        view("contents", CONTENTS)
    view("rules", _rules(connection, dataset, images))
    if not dataset.knows_kept:
        return
    if dataset.screened.exists and not dataset.screened.paths(MEASURED):
        raise PairmillError(f"{dataset.screened.folder} was made by an earlier version", "run `make screen` again")
    settled = images and dataset.is_settled
    for name, table in (("screened", dataset.screened), ("filtered", dataset.filtered)):
        if table.exists and table.paths(MEASURED):
            # What `filter` once judged and `screen` has since dropped is out of the question.
            passing = name == "filtered" and not settled
            still = " SEMI JOIN (SELECT uid FROM screened WHERE failures = 0) USING (uid)" if passing else ""
            view(name, f"FROM {parquet(table.paths(MEASURED))}{still}")
    if settled:
        verdicts = [(dataset.screened, VERDICTS), (dataset.filtered, DOWNLOADS), (dataset.filtered, VERDICTS)]
        view("verdicts", " UNION ALL BY NAME ".join(f"FROM {parquet(table.paths(kind))}" for table, kind in verdicts))
        view("kept", f"FROM {parquet(dataset.filtered.paths(KEPT))}")
    else:
        _work_out(connection, dataset, images)
    if images:
        view(
            "splits",
            "SELECT split, count(DISTINCT key) AS images, count(*) AS pairs FROM kept GROUP BY split ORDER BY split",
        )
    view("drops", "SELECT uid, stage, rule, value, detail FROM verdicts WHERE first")
    view(
        "funnel",
        """SELECT position, rules.stage, rules.rule, threshold, setting, coalesce(pairs, 0) AS pairs,
                  coalesce(failing, 0) AS failing
           FROM rules LEFT JOIN (SELECT stage, rule, count(*) AS failing, count(*) FILTER (first) AS pairs
                                 FROM verdicts GROUP BY ALL) USING (stage, rule)
           ORDER BY position""",
    )


def _work_out(connection: duckdb.DuckDBPyConnection, dataset: "Dataset", images: bool) -> None:
    """`verdicts` and `kept` while `filter` has not settled them."""
    found = [
        "SELECT NULL::VARCHAR AS uid, NULL::VARCHAR AS stage, NULL::VARCHAR AS rule, NULL::DOUBLE AS value, "
        "NULL::VARCHAR AS detail WHERE false"
    ]
    for table in (dataset.screened, dataset.filtered):
        if table.exists and table.paths(VERDICTS):
            found.append(f"SELECT * EXCLUDE first FROM {parquet(table.paths(VERDICTS))}")
    if images:
        found.append(failed_downloads("pairs"))
    first = "position = min(position) OVER (PARTITION BY uid) AS first"
    connection.execute(
        f"CREATE OR REPLACE VIEW verdicts AS SELECT uid, stage, rule, value, detail, {first} "
        f"FROM ({' UNION ALL BY NAME '.join(found)}) JOIN rules USING (stage, rule)"
    )
    columns, places = "uid, url, text", ""
    if images:
        columns, places = (
            "uid, pairs.url, text, contents.key, contents.split",
            ("JOIN images USING (url) JOIN contents USING (sha256)"),
        )
    connection.execute(
        f"CREATE OR REPLACE VIEW kept AS SELECT {columns} FROM (SELECT uid, url, text FROM pairs) AS pairs {places} "
        f"ANTI JOIN ({' UNION ALL BY NAME '.join(found)}) AS fallen USING (uid)"
    )


def _rules(connection: duckdb.DuckDBPyConnection, dataset: "Dataset", images: bool) -> str:
    """SQL of the rules of the stages that have run, in the order in which they are applied."""
    rows = ["('', '', 0.0::DOUBLE, '', '', '', -1)"]

    def add(stage: str, rules: dict[str, dict[str, Any]], first: int) -> None:
        for position, (rule, said) in enumerate(rules.items(), first):
            threshold = "NULL" if said["threshold"] is None else double(said["threshold"])
            words = ", ".join(literal(said[name]) for name in ("setting", "takes", "measure"))
            rows.append(f"('{stage}', {literal(rule)}, {threshold}, {words}, {position})")

    if dataset.screened.exists:
        add("screen", dataset.screened.manifest.info["rules"], 0)
    if images:
        statuses = "SELECT DISTINCT status FROM images WHERE status <> 'ok' ORDER BY status"
        cause = {"threshold": None, "setting": "", "takes": "", "measure": "status"}
        add("download", {status: cause for (status,) in connection.execute(statuses).fetchall()}, 100)
    if dataset.filtered.exists and dataset.filtered.paths(VERDICTS):
        add("filter", dataset.filtered.manifest.info["rules"], 200)
    return (
        f"SELECT * FROM (VALUES {', '.join(rows)}) AS t(stage, rule, threshold, setting, takes, measure, position) "
        "WHERE position >= 0"
    )
