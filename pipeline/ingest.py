"""Stage `ingest`: URL lists (CSV, Parquet) -> `pairs/`, sorted by uid, each (url, text) once.

Two maps. Each input file is normalised and parted by the first digits of the uid; then each part is freed of repeated
pairs and sorted. The result depends on the lists alone, not on their order or on how many workers read them. A row that
cannot be read goes to `pairs/quarantine` with its file, row and reason; a further copy of a pair to `repeated`.
"""

import csv
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import duckdb
import fsspec

from pipeline.errors import PairmillError
from pipeline.job import UP_TO_DATE, Job
from pipeline.recipe import Ingest
from pipeline.store.atomic import digest, replacing, sync
from pipeline.store.sql import identifier, literal, number, write_parquet
from pipeline.store.table import Manifest, Shard

VERSION = 1
MAX_TEXT_CHARACTERS = 10_000
OWN_COLUMNS = ("uid", "url", "text", "file", "row", "bucket", "reason")


@dataclass(frozen=True)
class Source:
    """One input file and how it looked when the stage began."""

    path: str
    size: int
    modified: str


def run(job: Job) -> str:
    section = job.recipe.ingest
    if section is None:
        raise PairmillError("the recipe has no [ingest] section", 'add one with inputs = ["list.csv"]')
    sources = _sources(section)
    names = [f"{index:05d}" for index in range(len(sources))]
    file_keys = {
        name: digest(VERSION, section.url_column, section.text_column, section.shards, vars(source))
        for name, source in zip(names, sources, strict=True)
    }
    key = job.key(VERSION, section, list(file_keys.values()))
    staging = job.dataset.root / ".staging" / key
    if job.dataset.pairs.is_current(key) and job.dataset.quarantine.is_current(key):
        shutil.rmtree(staging, ignore_errors=True)  # where the last run was cut off at its very end
        return UP_TO_DATE

    for old in staging.parent.glob("*"):
        if old != staging:
            shutil.rmtree(old)
    bucket_keys = {f"{bucket:05d}": digest(key, bucket) for bucket in range(section.shards)}
    with (
        job.dataset.quarantine.writing(key, file_keys) as quarantine,
        job.dataset.pairs.writing(key, bucket_keys) as pairs,
    ):
        todo = quarantine.todo
        if pairs.todo:
            todo = [name for name in names if name in todo or not (staging / name).exists()]
        read = partial(
            _read_file,
            sources=dict(zip(names, sources, strict=True)),
            keys=file_keys,
            section=section,
            staging=staging,
            folder=job.dataset.quarantine.folder,
        )
        for shard in job.engine.map(read, todo, "ingest: reading"):
            quarantine.add(shard)
        part = partial(_write_bucket, keys=bucket_keys, staging=staging, folder=job.dataset.pairs.folder)
        for shard in job.engine.map(part, pairs.todo, "ingest: sorting"):
            pairs.add(shard)

        def account(manifest: Manifest) -> None:
            rows_in = sum(shard.counts["rows_in"] for shard in quarantine.shards)
            quarantined = sum(shard.counts["quarantined"] for shard in quarantine.shards)
            if rows_in != quarantined + manifest.count("repeated") + manifest.count("pairs"):
                raise AssertionError(f"{rows_in} rows in, but {quarantined} quarantined and {manifest.counts()}")

        made = pairs.commit(check=account)
        bad = quarantine.commit()
    shutil.rmtree(staging)
    return (
        f"{bad.count('rows_in'):,} rows = {made.count('pairs'):,} pairs + {made.count('repeated'):,} repeated "
        f"+ {bad.count('quarantined'):,} quarantined"
    )


def _sources(section: Ingest) -> list[Source]:
    """The input files that exist now, each glob expanded in order of names."""
    sources = []
    for pattern in section.inputs:
        try:
            filesystem, path = fsspec.core.url_to_fs(pattern)
            found = sorted(filesystem.glob(path)) if fsspec.utils.stringify_path(path) and "*" in path else [path]
            infos = [filesystem.info(name) for name in found]
        except (OSError, ValueError, ImportError) as error:
            raise PairmillError(f"cannot read the list {pattern}: {error}", "correct [ingest] inputs") from None
        if not infos:
            raise PairmillError(f"no file matches {pattern}", "correct [ingest] inputs")
        for info in infos:
            name = filesystem.unstrip_protocol(info["name"]) if "://" in pattern else info["name"]
            if info["type"] != "file":
                raise PairmillError(f"the list {name} is a folder", f"name its files: {name}/*.parquet")
            if not name.endswith((".csv", ".parquet")):
                raise PairmillError(f"{name} is neither .csv nor .parquet", "convert it, or correct [ingest] inputs")
            sources.append(
                Source(name, info["size"], str(info.get("mtime") or info.get("ETag") or info.get("LastModified")))
            )
    return sources


def _connect(path: str) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("SET threads = 1; SET enable_progress_bar = false")
    if "://" in path:
        connection.register_filesystem(fsspec.core.url_to_fs(path)[0])
    return connection


def _read_file(
    name: str, *, sources: dict[str, Source], keys: dict[str, str], section: Ingest, staging: Path, folder: Path
) -> Shard:
    """Normalise one input file into `staging/<name>/bucket=*/`; its bad rows become the quarantine shard."""
    path = sources[name].path
    target, unfinished = staging / name, staging / f"{name}.partial"
    for leftover in (target, unfinished):
        shutil.rmtree(leftover, ignore_errors=True)
    unfinished.mkdir(parents=True)
    with _connect(path) as connection:
        try:
            _scan(connection, path, section)
            connection.execute(_normalised(path))
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.Error as error:
            said = str(error).splitlines()[0]
            if "state machine" in said:
                said = "its line ends are mixed (some CRLF, some LF), or a quote stands where none may"
            raise PairmillError(f"cannot read the list {path}: {said}", "repair it or leave it out") from None
        bucket = f"(('0x' || left(uid, 4))::UINTEGER * {section.shards}) // 65536"
        connection.execute(
            f"COPY (SELECT * EXCLUDE (reason), {bucket} AS bucket FROM normalised WHERE reason IS NULL) "
            f"TO {literal(unfinished)} (FORMAT parquet, PARTITION_BY (bucket), OVERWRITE_OR_IGNORE)"
        )
        good = number(connection, "SELECT count(*) FROM normalised WHERE reason IS NULL")
        bad = number(connection, "SELECT count(*) FROM bad")
        with replacing(folder / f"{name}.parquet") as partial_path:
            write_parquet(connection, "FROM bad ORDER BY row, reason", partial_path)
    unfinished.rename(target)
    sync(staging)
    return Shard.of(folder, name, keys[name], [f"{name}.parquet"], {"rows_in": good + bad, "quarantined": bad})


def _scan(connection: duckdb.DuckDBPyConnection, path: str, section: Ingest) -> None:
    """Read the file into `scanned` (url, text, the other columns, row) and its unreadable rows into `bad`."""
    is_parquet = path.endswith(".parquet")
    if is_parquet:
        columns = [row[0] for row in connection.execute(f"DESCRIBE FROM read_parquet({literal(path)})").fetchall()]
        origin, row = f"read_parquet({literal(path)}, file_row_number = true)", "file_row_number + 1"
    else:
        columns = _header(path)
        types = ", ".join(f"{literal(column)}: 'VARCHAR'" for column in columns)
        origin = (
            f"read_csv({literal(path)}, auto_detect = false, header = true, delim = ',', quote = '\"', escape = '\"', "
            f"columns = {{{types}}}, store_rejects = true, rejects_limit = 0, max_line_size = 20000000)"
        )
        row = "row_number() OVER ()"
    for wanted in (section.url_column, section.text_column):
        if wanted not in columns:
            there = ", ".join(columns)
            raise PairmillError(
                f"{path} has no column {wanted!r}; it has {there}", "set url_column and text_column in [ingest]"
            )
    others = [column for column in columns if column not in (section.url_column, section.text_column)]
    lowered = [column.lower() for column in others]
    if len({*lowered, *OWN_COLUMNS}) < len(lowered) + len(OWN_COLUMNS) or len(others) + 2 < len(columns):
        raise PairmillError(f"{path}: a column repeats, or has one of the names {', '.join(OWN_COLUMNS)}", "rename it")
    chosen = [f"{identifier(section.url_column)} AS url", f"{identifier(section.text_column)} AS text"]
    listed = ", ".join([*chosen, *map(identifier, others)])
    # The scan is kept as a table, because the list of rejected rows is complete only after it.
    connection.execute(f"CREATE TEMP TABLE scanned AS SELECT {listed}, {row} AS row FROM {origin}")
    connection.execute("CREATE TEMP TABLE bad (file VARCHAR, row BIGINT, reason VARCHAR, content VARCHAR)")
    if not is_parquet:
        connection.execute(
            f"INSERT INTO bad SELECT {literal(path)}, line - 1, lower(any_value(error_type)::VARCHAR), "
            "left(any_value(csv_line), 500) FROM reject_errors GROUP BY line"
        )


def _normalised(path: str) -> str:
    """SQL that makes `normalised` out of `scanned`: one kind of blank, NFC, a uid; rows with a `reason` go to `bad`."""
    return rf"""
        CREATE TEMP TABLE normalised AS
        WITH cleaned AS (
            SELECT * REPLACE (
                trim(url::VARCHAR, chr(9) || chr(10) || chr(13) || ' ') AS url,
                trim(regexp_replace(nfc_normalize(text::VARCHAR), '[\s\pZ\x{{85}}]+', ' ', 'g')) AS text
            ) FROM scanned
        )
        SELECT left(sha256(url || chr(10) || text), 32) AS uid, url, text, * EXCLUDE (url, text, row),
            {literal(path)} AS file, row,
            CASE WHEN coalesce(url, '') = '' THEN 'no url'
                 WHEN coalesce(text, '') = '' THEN 'no text'
                 WHEN regexp_matches(url, '[\x00-\x20\x7f]') THEN 'blank or control character in the url'
                 WHEN length(text) > {MAX_TEXT_CHARACTERS} THEN 'text over {MAX_TEXT_CHARACTERS} characters'
            END AS reason
        FROM cleaned;
        INSERT INTO bad SELECT file, row, reason, left(concat_ws(' | ', url, text), 500)
        FROM normalised WHERE reason IS NOT NULL"""


def _header(path: str) -> list[str]:
    try:
        with fsspec.open(path, "rb") as file:
            line = file.readline(1_000_000).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise PairmillError(f"the header of {path} is not UTF-8", "convert the file to UTF-8") from None
    try:
        columns = next(csv.reader([line]), [])
    except csv.Error:
        raise PairmillError(f"{path}: its lines end in CR alone", "let them end in LF or CRLF") from None
    if not columns:
        raise PairmillError(f"{path} is empty", "leave it out of [ingest] inputs")
    # A column without a name is what pandas writes for its index.
    return [name or f"column{position}" for position, name in enumerate(columns)]


def _write_bucket(name: str, *, keys: dict[str, str], staging: Path, folder: Path) -> Shard:
    """One part of all files: each pair once, in order of uid; its further copies beside it."""
    pairs_name, repeated_name = f"{name}.parquet", f"repeated-{name}.parquet"
    with _connect("") as connection:
        try:
            connection.execute(
                "CREATE TEMP TABLE rows AS SELECT * EXCLUDE (bucket) FROM "
                f"read_parquet({literal(staging / '*/bucket=*/*.parquet')}, union_by_name = true, "
                "hive_partitioning = true) "
                f"WHERE bucket = {int(name)}"
            )
        except duckdb.IOException:
            raise PairmillError(
                "the lists hold no readable pair", "are they empty? pairs/quarantine says why rows were refused"
            ) from None
        copy = "row_number() OVER (PARTITION BY uid ORDER BY file, row)"
        with replacing(folder / pairs_name) as path:
            write_parquet(connection, f"FROM rows QUALIFY {copy} = 1 ORDER BY uid", path)
        with replacing(folder / repeated_name) as path:
            query = f"SELECT uid, file, row FROM rows QUALIFY {copy} > 1 ORDER BY uid, file, row"
            write_parquet(connection, query, path)
        pairs = number(connection, "SELECT count(DISTINCT uid) FROM rows")
        counts = {"pairs": pairs, "repeated": number(connection, "SELECT count(*) FROM rows") - pairs}
    return Shard.of(folder, name, keys[name], [pairs_name, repeated_name], counts)
