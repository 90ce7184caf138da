"""Stage `extract`: kept images -> `features/<extractor>/`, one Parquet shard an image shard, once a model.

A shard's images are decoded once and go through every extractor that still lacks them. What is wanted may grow and
shrink: features that no pair needs any more stay where they are, and where a shard's file lacks wanted images, these
alone are computed and a new file is made of the old rows and theirs. An image without features stands beside them in
`<shard>.failed.parquet` with its cause.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import duckdb

from pipeline.errors import PairmillError
from pipeline.extractors.plans import IMPORTED_MARK, Images, Plan, Task
from pipeline.job import UP_TO_DATE, Job
from pipeline.recipe import Patch, Region
from pipeline.store.atomic import digest, replacing
from pipeline.store.sql import open_duckdb, parquet, write_parquet
from pipeline.store.table import FAILED_SUFFIX, Manifest, Shard, ShardFile, Table, Writing
from pipeline.weights import UNTRAINED, download, find

VERSION = 2


@dataclass(frozen=True)
class Wanted:
    """The images that some kept pair needs, one for each content: a Parquet of (shard, key), sorted."""

    path: Path
    digest: str
    images: Mapping[str, int]
    """Image shard -> how many of them it has."""


@dataclass(frozen=True)
class Part:
    """An extractor's part of the stage: what it runs, and the table that it fills."""

    plan: Plan
    table: Table
    shard_keys: dict[str, str]
    """Digests of what makes a row what it is, and not of which rows there are."""
    key: str

    @property
    def is_current(self) -> bool:
        return self.table.is_current(self.key)

    def known_identity(self) -> dict[str, Any] | None:
        """What the manifest says, where some of its shards were made as they would be now."""
        manifest = self.table.manifest if self.table.exists else None
        if manifest and any(self.shard_keys.get(shard.name) == shard.key for shard in manifest.shards):
            return dict(manifest.info["identity"])
        return None


def run(job: Job) -> str:
    job.dataset.filtered.manifest  # noqa: B018 - says that `filter` must run first
    job.dataset.images.check_whole()
    shards = job.dataset.images.manifest.shards
    tars = {shard.name: next(file for file in shard.files if file.name.endswith(".tar")) for shard in shards}
    with _wanted(job) as wanted:
        parts = {name: _part(job, name, tars, wanted) for name in job.selected(list(job.recipe.extract))}
        missing = {name: part for name, part in parts.items() if not part.is_current}
        for part in missing.values():
            _refuse_loss(part)
        said = _extract(job, missing, tars, wanted) if missing else []
    said += _embed_texts(job, parts)
    return "; ".join(said) or UP_TO_DATE


def _refuse_loss(part: Part) -> None:
    """Features that are there are given up only for others that can be made, and that were meant."""
    table, folder = part.table, part.table.folder
    if (folder / IMPORTED_MARK).exists():
        raise PairmillError(f"{folder} holds imported features", f"give [extract.{folder.name}] another name")
    if not table.exists or part.known_identity() is not None:
        return
    if table.manifest.info["identity"]["trained"] and part.plan.weights.sha256 == UNTRAINED:
        raise PairmillError(
            f"{folder} holds features of trained weights, and none are at hand now",
            f"bring them back (see PAIRMILL_WEIGHTS), or remove {folder}",
        )
    _built_identity(part.plan)  # what cannot be loaded says so before anything goes


@contextmanager
def _wanted(job: Job) -> Iterator[Wanted]:
    dataset = job.dataset
    staged = dataset.root / ".staging" / "extract" / "wanted.parquet"
    metadata = parquet(dataset.images.paths(".parquet"), ", filename = true")
    with dataset.connect(job.recipe.engine.memory_limit, job.engine.workers) as connection:
        kept = f"SELECT parse_filename(filename, true) AS shard, key FROM {metadata} SEMI JOIN kept USING (key)"
        with replacing(staged) as path:
            write_parquet(connection, f"{kept} ORDER BY shard, key", path)
        source = parquet([staged])
        counted = connection.execute(f"SELECT shard, count(*) FROM {source} GROUP BY shard").fetchall()
        content = connection.execute(f"SELECT bit_xor(md5_number(shard || '/' || key)) FROM {source}").fetchall()[0]
    try:
        yield Wanted(staged, digest(content), defaultdict(int, counted))
    finally:
        staged.unlink(missing_ok=True)


def _part(job: Job, name: str, tars: Mapping[str, ShardFile], wanted: Wanted) -> Part:
    """The extractor with the weights that can be had; nobody is asked for any where the features are there."""
    section, table = job.recipe.extract[name], job.dataset.features(name)

    def part(plan: Plan) -> Part:
        made_by = (VERSION, plan.settings(), plan.weights.name, plan.weights.digests)
        keys = {shard: digest(*made_by, tar.sha256) for shard, tar in tars.items()}
        return Part(plan, table, keys, digest("extract", keys, wanted.digest))

    found = part(Plan(section, find(section), table.folder))
    if found.plan.weights.sha256 == UNTRAINED and isinstance(section, Region | Patch) and not found.is_current:
        return part(Plan(section, download(section), table.folder))
    return found


def _extract(job: Job, parts: Mapping[str, Part], tars: Mapping[str, ShardFile], wanted: Wanted) -> list[str]:
    with ExitStack() as stack:
        identities = {name: part.known_identity() for name, part in parts.items()}
        writings = {
            name: stack.enter_context(part.table.writing(part.key, part.shard_keys)) for name, part in parts.items()
        }
        tasks: dict[str, dict[str, Task]] = defaultdict(dict)
        images: dict[str, int] = defaultdict(int)
        for name, writing in writings.items():
            for shard, (task, number) in _tasks(job, writing, wanted).items():
                tasks[shard][name] = task
                images[shard] = max(images[shard], number)
        engine = job.engine.on_gpus() if tasks else job.engine
        work = partial(
            _extract_shard,
            plans={name: part.plan for name, part in parts.items()},
            tasks=dict(tasks),
            images=Images(job.dataset.images.folder, tars, wanted.path),
            threads=engine.cores,
        )
        started = time.monotonic()
        for done in engine.map(work, sorted(tasks), "extract", images):
            for name, (made, identity) in done.items():
                writings[name].add(made)
                identities[name] = identity
                _remove(parts[name].table.folder, tasks[made.name][name].old)
        rate = sum(images.values()) / max(time.monotonic() - started, 1e-9)
        said = [
            _described(name, writing.commit({"identity": identities[name] or _built_identity(parts[name].plan)}))
            for name, writing in writings.items()
        ]
    return [*said, f"{rate:,.1f} images/s"] if images else said


def _tasks(job: Job, writing: Writing, wanted: Wanted) -> dict[str, tuple[Task, int]]:
    """Shard -> what is to be made of it, and of how many images: whole shards, and what is wanted of others as well."""
    keys, folder = writing.shard_keys, writing.table.folder
    tasks = {shard: (Task(keys[shard]), wanted.images[shard]) for shard in writing.todo}
    files = {shard.name: [folder / file.name for file in shard.files] for shard in writing.shards}
    if not files:
        return tasks
    paths = [path for of_shard in files.values() for path in of_shard]
    failed = [path for path in paths if path.name.endswith(FAILED_SUFFIX)]
    there = [path for path in paths if path not in set(failed)]
    query = (
        f"SELECT shard, count(*) FROM {parquet([wanted.path])} ANTI JOIN "
        f"(SELECT key FROM {parquet(there)} UNION ALL SELECT key FROM {parquet(failed)}) USING (key) GROUP BY shard"
    )
    with job.dataset.connect(job.recipe.engine.memory_limit, job.engine.workers) as connection:
        try:
            lacking = connection.execute(query).fetchall()
        except duckdb.Error as error:
            raise _damaged(paths, error) from None
    for shard, number in lacking:
        if shard in files:
            tasks[shard] = (Task(keys[shard], files[shard][0].name.removesuffix(".parquet")), number)
    return tasks


def _damaged(paths: Sequence[Path], error: duckdb.Error) -> Exception:
    """What DuckDB says of a damaged file, with the file's name."""
    for path in paths:
        try:
            open_duckdb().execute(f"SELECT max(length(key)) FROM {parquet([path])}")
        except duckdb.Error as said:
            what = str(said).splitlines()[0].strip()
            return PairmillError(f"{path} is damaged ({what})", "remove it and run `make extract` again")
    return error


def _extract_shard(shard: str, **task: Any) -> dict[str, tuple[Shard, dict[str, Any]]]:
    """What a worker runs; only there are torch and the models' libraries imported."""
    from pipeline.extractors.one_pass import extract_shard

    return extract_shard(shard, **task)


def _remove(folder: Path, stem: str | None) -> None:
    """The files in whose place others are recorded by now."""
    if stem is not None:
        for suffix in (".parquet", FAILED_SUFFIX):
            (folder / f"{stem}{suffix}").unlink(missing_ok=True)


def _built_identity(plan: Plan) -> dict[str, Any]:
    """Where no shard was to be made, and the last run was cut off before its manifest: what a worker has said."""
    import torch

    from pipeline.extractors import BUILDERS
    from pipeline.extractors.identity import identity_of

    return identity_of(plan, BUILDERS[plan.section.kind](plan.section, plan.weights, torch.device("cpu")))


def _described(name: str, manifest: Manifest) -> str:
    counts = manifest.counts()
    causes = [f"{cause.removeprefix('failed/')} {n:,}" for cause, n in counts.items() if cause.startswith("failed/")]
    failed = f", {counts['failed']:,} failed ({', '.join(causes)})" if causes else ""
    note = "" if manifest.info["identity"]["trained"] else " (UNTRAINED: no weights were found)"
    return f"{name}: {manifest.count('rows'):,} images{failed}{note}"


def _embed_texts(job: Job, parts: Mapping[str, Part]) -> list[str]:
    """Beside the images' embeddings those of the kept texts, where a model has both."""
    said = []
    for name, part in parts.items():
        if isinstance(part.plan.section, Patch) and part.plan.section.library == "open_clip":
            from pipeline.extractors.texts import embed_texts

            said.append((name, embed_texts(job, name, part.plan)))
    return [f"{name}: {what}" for name, what in said if what != UP_TO_DATE]
