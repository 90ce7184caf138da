"""Stage `report`: `report/index.html`, one page that shows what became of the pairs, the pictures and the models.

The page stands alone: pictures and charts are inlined, nothing is fetched and nothing runs. It stays under 10 MB
however large the dataset is. The same dataset and recipe give the same page, byte for byte. Sections whose stage has
not run are left out.
"""

import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import duckdb

from pipeline import evaluations, summary
from pipeline.evaluations import Evaluation
from pipeline.job import UP_TO_DATE, Job, is_stamped, stamp
from pipeline.recipe import Recipe
from pipeline.report import (
    boxes,
    clusters,
    cost,
    curves,
    distributions,
    failures,
    funnel,
    icicle,
    labels,
    page,
    retrieval,
    samples,
    thresholds,
    words,
)
from pipeline.report.pictures import Album
from pipeline.report.toml import toml
from pipeline.store.atomic import replacing
from pipeline.store.dataset import Dataset
from pipeline.store.pictures import Pictures

VERSION = 5
LONGEST_RECIPE = 100_000
"""Characters: a recipe may list all hosts of the web."""


def run(job: Job) -> str:
    dataset = job.dataset
    dataset.pairs.manifest  # noqa: B018 - says that `ingest` must run first
    path = dataset.root / "report" / "index.html"
    evaluated = evaluations.by_run(dataset)
    told = {run: evaluation.model_dump() for run, evaluation in evaluated.items()}
    tables = dataset.data_tables() + [dataset.run(name) for name in dataset.runs()]
    key = job.key(VERSION, job.recipe, told, evaluations.unread(dataset), *tables)
    if is_stamped(path, key):
        return UP_TO_DATE
    started = time.monotonic()
    numbers = summary.collect(dataset)
    with dataset.connect(job.recipe.engine.memory_limit, job.engine.workers) as connection:
        html = page.render(**contents(dataset, job.recipe, numbers, evaluated, connection))
    with replacing(path) as partial:
        partial.write_text(html, encoding="utf-8")
    stamp(path, key, time.monotonic() - started)
    return f"{path}, {path.stat().st_size / 1e6:.1f} MB"


def contents(
    dataset: Dataset,
    recipe: Recipe,
    numbers: dict[str, Any],
    evaluated: dict[str, Evaluation],
    connection: duckdb.DuckDBPyConnection,
) -> dict[str, Any]:
    """What the template shows. The numbers are those of the summary; the rest is samples of what they count."""
    images = dataset.images.exists
    samples.look_up_kept(connection, images)
    steps = funnel.steps(numbers, connection)
    borders = thresholds.borders(connection, images)
    # Where nothing lies on the border, some of what fell out there at all is shown.
    unbordered = [
        (step.stage, step.rule)
        for step in steps
        if step.dropped and step.stage in ("screen", "filter") and not _has_dropped(borders, step)
    ]
    album = Album(Pictures(dataset.images)) if images else None
    comparisons = retrieval.comparisons(evaluated)
    # The time that an earlier report took is no fact about the data; with it, no two pages would be equal.
    seconds = {stage: value for stage, value in numbers["seconds"].items() if stage != "report"}
    return {
        "name": recipe.name,
        "version": _version(),
        "folder": dataset.root.resolve().name,
        "summary": numbers,
        "balanced": summary.is_balanced(numbers),
        "funnel": steps,
        "icicle": icicle.drawings(steps, numbers["kept"], _splits(connection) if images else {}),
        "kept": samples.kept(connection, images),
        "borders": borders,
        "dropped": samples.dropped(connection, images, unbordered),
        "failures": failures.failures(connection) if images else None,
        "quarantine": samples.quarantine(connection),
        "distributions": distributions.drawings(dataset, connection),
        "words": words.words(connection),
        "clusters": clusters.clusters(dataset, connection) if images else None,
        "album": album,
        "features": {name: dataset.features(name).manifest.info["identity"] for name in dataset.extractors()},
        "labels": labels.labels(dataset, connection),
        "regions": boxes.collect(dataset, connection),
        "runs": {
            name: curves.of_run(dataset.run(name), draw=place < curves.RUNS)
            for place, name in enumerate(dataset.runs())
        },
        "retrieval": retrieval.rows(evaluated),
        "comparisons": comparisons,
        "gallery": retrieval.Gallery(album, comparisons) if album else None,
        "costs": cost.costs(dataset, connection, seconds),
        "recipe": toml(recipe.model_dump(mode="json", exclude_none=True)),
        "longest_recipe": LONGEST_RECIPE,
    }


def _has_dropped(borders: dict[tuple[str, str], thresholds.Border], step: funnel.Step) -> bool:
    border = borders.get((step.stage, step.rule))
    return border is not None and bool(border.dropped)


def _splits(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Split -> kept pairs; nothing before `filter` has fixed the splits."""
    query = "SELECT split, count(*) FROM kept WHERE split IS NOT NULL GROUP BY split ORDER BY 2 DESC, split"
    return dict(connection.execute(query).fetchall())


def _version() -> str:
    try:
        return version("pairmill")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "of a checkout"
