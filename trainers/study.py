"""Systems side by side: each trained on the same pairs, with equal batches and steps, and evaluated in the same way.

Each training is a run like any other, `runs/study/<name>/`, made by the stages `train` and `evaluate`, which the study
drives as the command line does: one that was broken off carries on, and what is finished is only read again. Each has
a process to itself, so that memory is its own.
"""

import ctypes
import json
import multiprocessing
import resource
import signal
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import ValidationError

from pipeline import evaluations
from pipeline.engine import engine
from pipeline.errors import PairmillError
from pipeline.job import UP_TO_DATE, Job
from pipeline.model_recipe import ModelRecipe, laid_over
from pipeline.recipe import Recipe
from pipeline.store.atomic import digest, replacing, write_json
from pipeline.store.dataset import Dataset
from pipeline.store.table import Table
from trainers import evaluate, train
from trainers.data.sources import inputs_of
from trainers.saved import SPEED
from trainers.tasks.retrieval import CUTS
from trainers.tasks.scoring import why_not

_SET_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG."""
RUNS = "study"
"""The folder of the study's runs, below `runs`: out of the way of the recipe's own."""
MEASURED = "measured.json"
WARMUP = 0.2
"""The share of a short run that its warm-up has at most."""
SCORES = tuple(f"{way}_r{cut}" for way in ("t2i", "i2t") for cut in CUTS)
_RANKS = " / ".join(map(str, CUTS))
HEADER = f"""\
| system | features | seeds | text to image R@{_RANKS} | image to text R@{_RANKS} | parameters | a step | memory |
|---|---|--:|--:|--:|--:|--:|--:|"""


class KilledError(PairmillError):
    """A training's process is gone: that says nothing about the model, and ends the study."""


@dataclass(frozen=True)
class Study:
    """What is asked for: all `models` on all `features`, `seeds` times each."""

    recipes: Path
    """The folder of the models' files."""
    models: tuple[str, ...]
    features: tuple[str, ...]
    """Names of extractors."""
    seeds: int = 3
    steps: int = 300
    batch: int = 64
    """Pairs."""
    scale: str = "tiny"

    def recipe(self, model: str, features: str, kind: str, seed: int) -> ModelRecipe:
        """The model's, read on these features. Raises PairmillError with the reason where that cannot be."""
        path = self.check(model)
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        scaled = laid_over(values.pop("scales")[self.scale], values | {"scale": self.scale})
        optimizer = scaled.get("optimizer", {})
        same = {
            "features": features,
            "vision": {**scaled["vision"], "kind": kind},
            "seed": seed,
            "steps": self.steps,
            "batch": {"size": self.batch},
            "optimizer": {**optimizer, "warmup": min(optimizer.get("warmup", 0), int(WARMUP * self.steps))},
            "validations": 1,
        }
        try:
            return ModelRecipe.model_validate({**scaled, **same})
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"]))
            said = problem["msg"].removeprefix("Value error, ")
            raise PairmillError(f"{where}: {said}" if where else said) from None

    def check(self, model: str) -> Path:
        """The model's file. Raises PairmillError where there is none, or none at this scale."""
        paths = {path.stem: path for path in sorted(self.recipes.glob("*.toml"))}
        if model not in paths:
            raise PairmillError(f"there is no model {model!r}", f"name some of {', '.join(paths)}")
        path = paths[model]
        scales = tomllib.loads(path.read_text(encoding="utf-8"))["scales"]
        if self.scale not in scales:
            raise PairmillError(f"{model} has no scale {self.scale!r}", f"name one of {', '.join(scales)}")
        return path

    def name(self, model: str, features: str, seed: int) -> str:
        """Of a run; what makes it another run than that of another study is in it."""
        return f"{RUNS}/{model}-{features}-{self.scale}-{self.steps}x{self.batch}-{seed}"


@dataclass(frozen=True)
class Measured:
    """One training of the study."""

    scores: Mapping[str, float]
    """Recall both ways, in [0, 1], and what chance gives; empty where the model cannot retrieve."""
    parameters: int
    milliseconds: float
    """A step."""
    peak_bytes: float
    """Of the process on a CPU, of what is allocated on a GPU; NaN where it was broken off."""
    reason: str = ""
    """Why there are no scores."""


@dataclass(frozen=True)
class Row:
    """One system on one kind of features."""

    model: str
    features: str
    runs: tuple[Measured, ...] = ()
    reason: str = ""
    """Why there are no runs, or no scores."""

    def values(self) -> dict[str, Any]:
        """As a row of the Parquet table: means over the seeds, and deviations of the scores."""
        found: dict[str, Any] = {"model": self.model, "features": self.features, "seeds": len(self.runs)}
        for score in (*SCORES, "chance_r10"):
            each = [run.scores[score] for run in self.runs if score in run.scores]
            found[score] = float(np.mean(each)) if each else None
            found[f"{score}_deviation"] = float(np.std(each, ddof=1)) if len(each) > 1 else None
        for name in ("parameters", "milliseconds", "peak_bytes"):
            each = [number for run in self.runs if np.isfinite(number := float(getattr(run, name)))]
            found[name] = float(np.mean(each)) if each else None
        return found | {"reason": self.reason}

    def line(self) -> str:
        """As a row of the Markdown table."""
        if not self.runs:
            return f"| {self.model} | {self.features} | 0 | {self.reason} | | | | |"
        values = self.values()
        recalls = [" / ".join(_percent(values, f"{way}_r{cut}") for cut in CUTS) for way in ("t2i", "i2t")]
        if self.reason:
            recalls = [self.reason, ""]
        memory = "" if values["peak_bytes"] is None else f"{values['peak_bytes'] / 1e6:,.0f} MB"
        numbers = [f"{values['parameters'] / 1e6:.1f} M", f"{values['milliseconds']:.0f} ms", memory]
        return f"| {' | '.join([self.model, self.features, str(values['seeds']), *recalls, *numbers])} |"


def run(job: Job, study: Study) -> str:
    """Train and evaluate what is not up to date, then write `study/table.md` and `study/table.parquet`."""
    if not study.models:
        raise PairmillError("no model is named", 'name some: MODELS="uniter vilbert"')
    for features in study.features:
        if not job.dataset.features(features).exists:
            there = ", ".join(job.dataset.extractors()) or "none"
            raise PairmillError(f"the dataset has no features {features!r}", f"it has {there}")
    for model in study.models:
        study.check(model)
    rows = [_row(job, study, model, features) for model in study.models for features in study.features]
    folder = job.dataset.root / "study"
    folder.mkdir(parents=True, exist_ok=True)
    text = table(study, rows)
    with replacing(folder / "table.md") as partial:
        partial.write_text(text, encoding="utf-8")
    with replacing(folder / "table.parquet") as partial:
        pq.write_table(pa.Table.from_pylist([row.values() for row in rows]), partial, compression="zstd")
    return text


def table(study: Study, rows: Sequence[Row]) -> str:
    """Markdown."""
    chances = [run.scores["chance_r10"] for row in rows for run in row.runs if run.scores]
    chance = f", chance R@10 {np.mean(chances):.1%}" if chances else ""
    title = (
        f"{study.scale} scale, {study.steps} steps of {study.batch} pairs, mean ± standard deviation over "
        f"{study.seeds} seeds{chance}; {_machine()}"
    )
    return "\n".join([title, "", HEADER, *(row.line() for row in rows)]) + "\n"


def _row(job: Job, study: Study, model: str, features: str) -> Row:
    kind = job.dataset.features(features).manifest.info["identity"]["kind"]
    try:
        recipes = [study.recipe(model, features, kind, seed) for seed in range(study.seeds)]
        runs = tuple(_measured(job, study.name(model, features, seed), recipe) for seed, recipe in enumerate(recipes))
    except KilledError:
        raise
    except PairmillError as error:
        return Row(model, features, reason=_first_line(error))
    return Row(model, features, runs, reason=next((run.reason for run in runs if run.reason), ""))


def _measured(job: Job, name: str, recipe: ModelRecipe) -> Measured:
    table = job.dataset.run(name)
    key = digest(
        [train.VERSION, evaluate.VERSION, recipe.model_dump(mode="json")],
        inputs_of(recipe, job.dataset, job.recipe.engine.memory_limit),
    )
    reason = why_not(recipe.objectives) or ""
    if not (found := _finished(table, key, ranks=not reason)):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            work = alone.submit(_train_and_evaluate, job.dataset.root, job.recipe, name, recipe, key)
            try:
                found = work.result()
            except BrokenProcessPool:
                raise KilledError(
                    f"{name}: its process was killed, perhaps for want of memory",
                    "run the study again: what is finished stays, and this one carries on",
                ) from None
        job.log("measured", run=name, peak_bytes=found["peak_bytes"])
        print(f"measured  {name}", flush=True)
    assert recipe.batch.size
    speed = pq.read_table(table.folder / SPEED).to_pylist()
    rates = [row["value"] for row in speed if row["name"] == "samples/s"]
    evaluation = evaluations.read(table.folder / evaluations.FILE)
    return Measured(
        scores={} if reason or evaluation is None else evaluation.retrieval,
        parameters=table.manifest.info["parameters"],
        milliseconds=1000 * recipe.batch.size / float(np.median(rates)),
        peak_bytes=found["peak_bytes"] or float("nan"),
        reason=reason,
    )


def _finished(table: Table, key: str, ranks: bool) -> dict[str, Any]:
    """What was measured of a run that is still there and was asked for by `key`; empty where there is none."""
    try:
        found: dict[str, Any] = json.loads((table.folder / MEASURED).read_text())
        whole = not ranks or evaluations.read(table.folder / evaluations.FILE) is not None
        return found if whole and found["key"] == key and found["run"] == table.manifest.key else {}
    except (OSError, ValueError, KeyError, PairmillError):
        return {}


def _train_and_evaluate(root: Path, recipe: Recipe, name: str, model: ModelRecipe, key: str) -> dict[str, Any]:
    """In a process of its own; returns what was measured, which is also kept."""
    _end_with_parent()
    whole = recipe.model_copy(update={"train": {name: model}})
    job = Job("train", whole, Dataset(root), engine("local", 1))
    peak = None if train.run(job) == UP_TO_DATE else _peak_bytes()
    evaluate.run(replace(job, stage="evaluate"))
    table = job.dataset.run(name)
    found = {"key": key, "run": table.manifest.key, "peak_bytes": peak}
    write_json(table.folder / MEASURED, found)
    return found


def _end_with_parent() -> None:
    """A study that is killed takes its training along, which would go on writing beside the next one's."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says there begins with the parent's
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' if threads > 1 else ''} of a CPU"


def _percent(values: Mapping[str, Any], score: str) -> str:
    if values[score] is None:
        return "-"
    spread = values[f"{score}_deviation"]
    return f"{100 * values[score]:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def _first_line(error: PairmillError) -> str:
    return str(error).splitlines()[0].replace("|", "/")


def chosen(names: str, otherwise: Iterable[str]) -> tuple[str, ...]:
    """The names in a list that is separated by spaces or commas, each once; `otherwise` where there is none."""
    return tuple(dict.fromkeys(names.replace(",", " ").split() or otherwise))
