"""Stage `report`: `report/index.html`, one page that shows what became of the pairs, the pictures and the models.

The page stands alone: pictures and curves are inlined, nothing is fetched and nothing runs. The same dataset and recipe
give the same page, byte for byte. Sections whose stage has not run are left out.
"""

import time
from typing import Any

import duckdb

from pipeline import summary
from pipeline.job import UP_TO_DATE, Job, is_stamped, stamp
from pipeline.recipe import Recipe
from pipeline.report import boxes, curves, funnel, page, retrieval, samples
from pipeline.report.pictures import Pictures
from pipeline.report.toml import toml
from pipeline.store.atomic import replacing
from pipeline.store.dataset import Dataset

VERSION = 1


def run(job: Job) -> str:
    dataset = job.dataset
    dataset.pairs.manifest  # noqa: B018 - says that `ingest` must run first
    path = dataset.root / "report" / "index.html"
    evaluations = summary.evaluations(dataset)
    tables = dataset.data_tables() + [dataset.run(name) for name in dataset.runs()]
    key = job.key(VERSION, job.recipe, evaluations, *tables)
    if is_stamped(path, key):
        return UP_TO_DATE
    started = time.monotonic()
    numbers = summary.collect(dataset)
    with dataset.connect(job.recipe.engine.memory_limit, job.engine.workers) as connection:
        html = page.render(**_contents(dataset, job.recipe, numbers, evaluations, connection))
    with replacing(path) as partial:
        partial.write_text(html, encoding="utf-8")
    stamp(path, key, time.monotonic() - started)
    return f"{path}, {path.stat().st_size / 1e6:.1f} MB"


def _contents(
    dataset: Dataset,
    recipe: Recipe,
    numbers: dict[str, Any],
    evaluations: dict[str, Any],
    connection: duckdb.DuckDBPyConnection,
) -> dict[str, Any]:
    """What the template shows. The numbers are those of the summary; the rest is samples of what they count."""
    kept = samples.kept(connection, has_images=dataset.images.exists)
    dropped = samples.dropped(connection, has_images=dataset.images.exists)
    regions = boxes.collect(dataset, connection)
    comparisons = retrieval.comparisons(evaluations)
    wanted = {sample.key for group in (kept, *dropped.values()) for sample in group}
    wanted |= {region.key for drawn in regions.values() for region in drawn}
    wanted |= {key for comparison in comparisons for key in comparison.keys}
    return {
        "name": recipe.name,
        "summary": numbers,
        "balanced": summary.is_balanced(numbers),
        "funnel": funnel.steps(numbers, connection),
        "kept": kept,
        "dropped": dropped,
        "failures": samples.failures(connection) if dataset.images.exists else {},
        "quarantine": samples.quarantine(connection),
        "pictures": Pictures(dataset.images, connection, wanted) if dataset.images.exists else {},
        "features": {name: dataset.features(name).manifest.info["identity"] for name in dataset.extractors()},
        "regions": regions,
        "runs": {name: curves.of_run(dataset.run(name)) for name in dataset.runs()},
        "retrieval": retrieval.rows(evaluations),
        "comparisons": comparisons,
        # The time that an earlier report took is no fact about the data; with it, no two pages would be equal.
        "seconds": {stage: value for stage, value in numbers["seconds"].items() if stage != "report"},
        "recipe": toml(recipe.model_dump(mode="json", exclude_none=True)),
    }
