"""The stages in the order in which data flows, and how one is run."""

import importlib
import time
from collections.abc import Callable

from pipeline.job import UP_TO_DATE, Job
from pipeline.ranks import rank

# Named by module path (and function, where that is not `run`), so that nothing is imported before it is needed, and
# nothing here depends on the trainers.
STAGES = {
    "ingest": "pipeline.ingest",
    "screen": "pipeline.screen",
    "download": "pipeline.download",
    "filter": "pipeline.filter",
    "extract": "pipeline.extract",
    "train": "trainers.train",
    "evaluate": "trainers.evaluate",
    "embed": "trainers.embed",
    "catalog": "pipeline.catalog",
    "report": "pipeline.report",
}
ASIDE = {
    "retry": "pipeline.download:retry",
    "align": "trainers.align",
    "verify": "pipeline.verify",
}
"""What is called by itself, beside the chain."""
NEEDS_NO_RECIPE = frozenset({"verify"})
"""What goes by the dataset alone."""


def run_stage(job: Job) -> None:
    """Run one stage and print its one-line summary."""
    module, _, function = (STAGES | ASIDE)[job.stage].partition(":")
    run: Callable[[Job], str] = getattr(importlib.import_module(module), function or "run")
    started = time.monotonic()
    job.log("start")
    try:
        said = run(job)
    finally:
        job.engine.close()
    seconds = time.monotonic() - started
    job.log("end", said=said, seconds=round(seconds, 3))
    timing = "" if said == UP_TO_DATE else f"  ({seconds:.1f} s)"
    if not rank():
        print(f"{job.stage:<9} {said}{timing}", flush=True)
