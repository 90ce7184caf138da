"""The stages in the order in which data flows, and how one is run."""

import importlib
import time
from collections.abc import Callable

from pipeline.job import UP_TO_DATE, Job

# Named by module path, so that nothing is imported before it is needed, and nothing here depends on the trainers.
STAGES = {
    "ingest": "pipeline.ingest",
    "screen": "pipeline.screen",
    "download": "pipeline.download",
    "filter": "pipeline.filter",
    "extract": "pipeline.extract",
    "catalog": "pipeline.catalog",
    "train": "trainers.train",
    "evaluate": "trainers.evaluate",
    "report": "pipeline.report",
}


def run_stage(job: Job) -> None:
    """Run one stage and print its one-line summary."""
    run: Callable[[Job], str] = importlib.import_module(STAGES[job.stage]).run
    started = time.monotonic()
    job.log("start")
    try:
        said = run(job)
    finally:
        job.engine.close()
    seconds = time.monotonic() - started
    job.log("end", said=said, seconds=round(seconds, 3))
    timing = "" if said == UP_TO_DATE else f"  ({seconds:.1f} s)"
    print(f"{job.stage:<9} {said}{timing}", flush=True)
