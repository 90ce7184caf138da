"""Stage `download`: kept urls -> WebDataset shards `images/NNNNN.tar` with a metadata Parquet beside each.

A url is fetched once, however many texts it has, and not again when the recipe or the lists change, unless a setting
does on which the picture depends: before the shards are made anew, those that are there are set aside, and what they
hold of the urls that are still wanted is copied. `retry` asks again for what failed for a cause that can change.
"""

import itertools
import os
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import PairmillError
from pipeline.job import UP_TO_DATE, Job
from pipeline.recipe import Download
from pipeline.store.atomic import digest, file_sha256, replacing
from pipeline.store.sql import identifier, parquet
from pipeline.store.table import Manifest, Writing
from pipeline.web.fetch import may_pass
from pipeline.web.image_shard import LIST, MADE_WITH, SUFFIXES, ShardMaker, agrees

VERSION = 2

PASSING = frozenset({"dns", "tls", "host_down", "unexpected"})
"""Causes that another day may change, though not another try at once: those are `may_pass`."""
_POLITENESS = {
    *("images_per_shard", "threads", "timeout", "deadline", "retries", "max_wait", "max_per_host", "host_delay"),
    *("give_up_after", "contact", "user_agent"),
}
"""Settings that change neither what is asked for nor what a picture looks like."""


def is_current(job: Job) -> bool:
    """Whether there is nothing to download."""
    return job.dataset.images.is_current(_key(job))


def _key(job: Job) -> str:
    section = job.recipe.download
    settings = [_made_with(section), section.images_per_shard]
    return job.key(VERSION, settings, job.dataset.pairs, job.dataset.screened)


def _made_with(settings: Download) -> str:
    return digest(VERSION, settings.model_dump(mode="json", exclude=_POLITENESS))


def run(job: Job) -> str:
    """Fetch what is wanted and not there yet."""
    if is_current(job):
        return UP_TO_DATE
    manifest = _make(job, _plan(job, again=False))
    requested, ok = manifest.count("requested"), manifest.count("ok")
    return f"{requested:,} urls = {ok:,} downloaded + {requested - ok:,} failed"


def retry(job: Job) -> str:
    """Fetch again what failed for a cause that can change; what is there stays. Needs a finished `download`."""
    job = replace(job, stage="download")
    if not is_current(job):
        raise PairmillError(
            f"{job.dataset.images.folder} is not finished, or was made by another recipe", "run `make download` first"
        )
    before = job.dataset.images.manifest
    plan = _plan(job, again=True)
    if not plan.asked:
        _tidy(job)
        return UP_TO_DATE
    # What needs nothing stays as it is; the others' keys are new ones, so that they are made again.
    keys = {shard.name: digest(shard.key, "again") if plan.asked[shard.name] else shard.key for shard in before.shards}
    manifest = _make(job, replace(plan, keys=keys))
    gained = manifest.count("ok") - before.count("ok")
    asked = plan.asked.total()
    return f"{asked:,} urls asked again = {gained:,} downloaded + {asked - gained:,} failed"


@dataclass(frozen=True)
class _Plan:
    """The shards' keys, and how many urls of each must be asked for."""

    keys: dict[str, str]
    asked: Counter[str]


def _staging(job: Job, name: str) -> Path:
    folder = job.dataset.root / ".staging" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _make(job: Job, plan: _Plan) -> Manifest:
    section, table = job.recipe.download, job.dataset.images
    lists, earlier = _staging(job, "urls"), _staging(job, "earlier")
    make = ShardMaker(
        plan.keys, lists, earlier, table.folder, job.dataset.root / "logs" / "fetches", section, _made_with(section)
    )
    with table.writing(_key(job), plan.keys) as writing:
        for shard in job.engine.map(make, writing.todo, "download"):
            writing.add(shard)
            job.log("shard", name=shard.name, **shard.counts)
        _check_any(writing, table.folder)
        manifest = writing.commit(check=_account)
    _tidy(job)
    return manifest


def _tidy(job: Job) -> None:
    """Remove what was staged: the lists, and the shards set aside."""
    shutil.rmtree(_staging(job, "urls"))
    shutil.rmtree(_staging(job, "earlier"))


def _account(manifest: Manifest) -> None:
    counts = manifest.counts()
    failed = sum(number for name, number in counts.items() if name.startswith("failed/"))
    if counts.get("requested", 0) != counts.get("ok", 0) + failed:
        raise AssertionError(f"the account of download does not add up: {counts}")


def _check_any(writing: Writing, folder: Path) -> None:
    totals = Counter[str]()
    for shard in writing.shards:
        totals.update(shard.counts)
    if totals["requested"] and not totals["ok"]:
        writing.forget()
        shutil.rmtree(folder)
        causes = ", ".join(f"{name[7:]} {number}" for name, number in totals.items() if name.startswith("failed/"))
        raise PairmillError(
            f"none of the {totals['requested']:,} images could be had ({causes})",
            "is the server up? [download] allow_hosts names hosts on private addresses that may be asked",
        )


def _plan(job: Job, again: bool) -> _Plan:
    """Set aside what is there, and write each shard's LIST; `again`: ask anew for what can change."""
    section = job.recipe.download
    made_with = _made_with(section)
    earlier = _set_aside(job, made_with)
    lists = _staging(job, "urls")
    keys, asked = {}, Counter[str]()
    with job.dataset.connect(job.recipe.engine.memory_limit, job.engine.workers, images=False) as connection:
        _create_wanted(connection, section.blur_column)
        _create_had(connection, earlier, again)
        # Hashing the urls spreads every host over all shards. What an earlier shard holds lies in the same order.
        reader = connection.sql(
            "SELECT wanted.url, caption, boxes, had_in, had_key FROM wanted LEFT JOIN had ON wanted.url = had.url "
            "AND (status <> 'ok' OR blurred IS NOT DISTINCT FROM boxes) ORDER BY sha256(wanted.url)"
        ).to_arrow_reader(section.images_per_shard)
        # Where nothing is wanted, one shard of nothing says so.
        nothing = pa.RecordBatch.from_pylist([], LIST)
        for index, batch in enumerate(itertools.chain([next(reader, nothing)], reader)):
            name = f"{index:05d}"
            keys[name] = digest(made_with, batch.select(["url", "caption", "boxes"]).to_pydict())
            if missing := batch["had_in"].null_count:
                asked[name] = missing
            with replacing(lists / f"{name}.arrow") as path, pa.OSFile(str(path), "wb") as file:
                with pa.ipc.new_file(file, LIST) as writer:
                    writer.write(batch.cast(LIST))
    return _Plan(keys, asked)


def _set_aside(job: Job, made_with: str) -> list[Path]:
    """Link every finished shard of these settings into the staging area; returns the links of the metadata.

    A shard whose files disagree is removed, so that it is made anew. The links are named by content: whatever comes in
    between, and how often, nothing that was fetched is lost before the table that needs it is committed.
    """
    folder, earlier = job.dataset.images.folder, _staging(job, "earlier")
    for stats in sorted(folder.glob(f"*{SUFFIXES[-1]}")):
        name = stats.name.removesuffix(SUFFIXES[-1])
        if not agrees(folder, name):
            job.log("disagrees", name=name)
            for suffix in SUFFIXES:
                (folder / f"{name}{suffix}").unlink(missing_ok=True)
            continue
        content = file_sha256(folder / f"{name}.parquet")[:32]
        for suffix in (".tar", ".parquet"):  # the metadata last: where it is, the pictures are
            _link(folder / f"{name}{suffix}", earlier / f"{content}{suffix}")
    usable = []
    for path in sorted(earlier.glob("*.parquet")):
        if (pq.read_schema(path).metadata or {}).get(MADE_WITH) == made_with.encode():
            usable.append(path)
        else:
            path.unlink()
            path.with_suffix(".tar").unlink(missing_ok=True)
    return usable


def _link(source: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        with replacing(target) as path:
            shutil.copyfile(source, path)


def _create_wanted(connection: duckdb.DuckDBPyConnection, blur_column: str | None) -> None:
    """The view `wanted`: (url, caption, boxes), one row for each url that `screen` left, with all its pairs' boxes."""
    # Only what `screen` says counts here: verdicts of an earlier download or filter may still lie about.
    connection.execute(
        "CREATE TEMP VIEW passed AS FROM pairs SEMI JOIN (SELECT uid FROM screened WHERE failures = 0) USING (uid)"
    )
    boxes = "NULL"
    if blur_column is not None:
        columns = {str(name): str(kind) for name, kind, *_ in connection.execute("DESCRIBE passed").fetchall()}
        if blur_column not in columns:
            raise PairmillError(
                f"[download] blur_column: the pairs have no column {blur_column!r}",
                f"name one of {', '.join(columns)}, or see that the lists have it",
            )
        quoted = identifier(blur_column)
        # What is there but is no list of lists of numbers becomes a box that is none, so that it is not passed over.
        read = f"coalesce(TRY_CAST({quoted} AS DOUBLE[][]), CASE WHEN {quoted} IS NOT NULL THEN [[-1.0]] END)"
        boxes = f"list_sort(list_distinct(flatten(list({read}) FILTER (WHERE {quoted} IS NOT NULL))))"
    connection.execute(
        f"CREATE TEMP VIEW wanted AS SELECT url, min_by(text, uid) AS caption, ({boxes})::DOUBLE[][] AS boxes "
        "FROM passed GROUP BY url"
    )


def _create_had(connection: duckdb.DuckDBPyConnection, earlier: list[Path], again: bool) -> None:
    """The view `had`: (url, status, blurred, had_in, had_key), where the row of a url is already had."""
    if not earlier:
        connection.execute(
            "CREATE TEMP VIEW had AS SELECT '' AS url, '' AS status, NULL::DOUBLE[][] AS blurred, '' AS had_in, "
            "'' AS had_key WHERE false"
        )
        return
    source = parquet(earlier, ", filename = true")
    statuses = [status for (status,) in connection.execute(f"SELECT DISTINCT status FROM {source}").fetchall()]
    left_out = [
        status for status in statuses if status == "bad_boxes" or (again and (status in PASSING or may_pass(status)))
    ]
    connection.execute("CREATE TEMP TABLE left_out AS SELECT unnest(?::VARCHAR[]) AS status", [left_out])
    connection.execute(
        "CREATE TEMP VIEW had AS SELECT url, status, blurred, parse_filename(filename, true) AS had_in, key AS had_key "
        f"FROM {source} ANTI JOIN left_out USING (status) "
        "QUALIFY row_number() OVER (PARTITION BY url ORDER BY status <> 'ok', filename) = 1"
    )
