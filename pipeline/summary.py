"""The summary: every number of a dataset in one place, as JSON and as a table.

Pairs in = kept + dropped + failed + quarantined.
"""

import json
from pathlib import Path
from typing import Any

from pipeline import evaluations
from pipeline.job import stamped_seconds
from pipeline.store.atomic import write_json
from pipeline.store.dataset import Dataset
from pipeline.store.sql import number

REPEATED = "repeated_pair"


def collect(dataset: Dataset) -> dict[str, Any]:
    """The numbers of all finished stages; a stage that has not run leaves its keys out.

    `dropped` and `failed` count pairs, each at the first rule or cause that it met, so that
    pairs_in = quarantined + sum(dropped) + sum(failed) + kept. `images_failed` counts the urls themselves.
    """
    summary: dict[str, Any] = {}
    if not dataset.pairs.exists:
        return summary
    pairs = dataset.pairs.manifest
    summary["pairs_in"] = dataset.quarantine.manifest.count("rows_in")
    summary["quarantined"] = dataset.quarantine.manifest.count("quarantined")
    with dataset.connect() as connection:
        funnel = connection.execute("SELECT stage, rule, pairs FROM funnel ORDER BY position").fetchall()
        dropped = {REPEATED: pairs.count("repeated")} | {
            rule: n for stage, rule, n in funnel if stage in ("screen", "filter")
        }
        summary["dropped"] = dropped
        summary["kept"] = number(connection, "SELECT count(*) FROM kept")
        if dataset.images.exists:
            counts = dataset.images.manifest.counts()
            summary["images_requested"] = counts.get("requested", 0)
            summary["downloaded"] = counts.get("ok", 0)
            summary["failed"] = {rule: n for stage, rule, n in funnel if stage == "download"}
            summary["images_failed"] = {name[7:]: n for name, n in counts.items() if name.startswith("failed/")}
            summary["images_kept"] = number(connection, "SELECT count(DISTINCT key) FROM kept")
    summary["features"] = {name: _features(dataset, name) for name in dataset.extractors()}
    summary["seconds"] = _seconds(dataset)
    summary["training"] = {
        run: {name: dataset.run(run).manifest.info[name] for name in ("loss_first", "loss_last")}
        for run in dataset.runs()
    }
    summary["retrieval"] = {run: found.retrieval for run, found in evaluations.by_run(dataset).items()}
    report = dataset.root / "report" / "index.html"
    summary["report"] = str(report) if report.exists() else None
    summary["warnings"] = [
        f"{name}: the model is UNTRAINED, since no weights were found; {_meaningless(value['kind'])} mean nothing"
        for name, value in summary["features"].items()
        if not value["trained"]
    ]
    summary["warnings"] += [
        f"runs/{run}/{evaluations.FILE} cannot be read, so nothing is said of its retrieval: run make evaluate"
        for run in evaluations.unread(dataset)
    ]
    return summary


def _meaningless(kind: str) -> str:
    return "its boxes and classes" if kind == "region" else "its features"


def is_balanced(summary: dict[str, Any]) -> bool:
    """Whether every pair that came in is accounted for."""
    fallen = sum(summary["dropped"].values()) + sum(summary.get("failed", {}).values())
    return bool(summary["pairs_in"] == summary["quarantined"] + fallen + summary["kept"])


def _features(dataset: Dataset, name: str) -> dict[str, Any]:
    manifest = dataset.features(name).manifest
    rows = manifest.count("rows")
    size = sum(file.bytes for shard in manifest.shards for file in shard.files)
    identity = manifest.info["identity"]
    model = "the pixels themselves" if identity["kind"] == "pixel" else identity["model"]
    model = model if identity["trained"] else f"{model}, untrained"
    if "pooled_from" in identity:
        model += f", features from {identity['pooled_from']}"
    return {
        "kind": identity["kind"],
        "rows": rows,
        "failed": {name[7:]: n for name, n in manifest.counts().items() if name.startswith("failed/")},
        "bytes_per_image": round(size / max(rows, 1)),
        "extractor": model,
        "trained": identity["trained"],
    }


def _seconds(dataset: Dataset) -> dict[str, float]:
    tables = {
        "ingest": [dataset.pairs],
        "screen": [dataset.screened],
        "download": [dataset.images],
        "filter": [dataset.filtered],
    }
    seconds = {
        stage: max(t.manifest.seconds for t in there if t.exists) for stage, there in tables.items() if there[0].exists
    }
    for stage in ("screen", "filter"):  # what is measured, in one pass for all groups, comes before the judging
        measured = [dataset.signals(path.parent.name, stage) for path in dataset.root.glob("signals/*/manifest.json")]
        took = [table.manifest.seconds for table in measured if table.manifest.stage == stage]
        if stage in seconds and took:
            seconds[stage] += max(took)
    if dataset.extractors():  # one pass serves them all
        seconds["extract"] = max(dataset.features(name).manifest.seconds for name in dataset.extractors())
    if dataset.runs():
        seconds["train"] = sum(dataset.run(name).manifest.seconds for name in dataset.runs())
    evaluated = evaluations.by_run(dataset)
    if evaluated:
        seconds["evaluate"] = sum(evaluation.seconds for evaluation in evaluated.values())
    for stage, product in (("catalog", dataset.catalog), ("report", dataset.root / "report" / "index.html")):
        taken = stamped_seconds(product)
        if taken is not None:
            seconds[stage] = taken
    return {stage: round(value, 2) for stage, value in seconds.items()}


def _read_json(path: Path) -> dict[str, Any] | None:
    """None where the file is missing or broken: whoever wrote it writes it anew."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write(dataset: Dataset) -> dict[str, Any]:
    """Collect the summary and write `summary.json`, where it is not already there in these words."""
    summary = collect(dataset)
    path = dataset.root / "summary.json"
    if _read_json(path) != summary:
        write_json(path, summary)
    return summary


def table(summary: dict[str, Any]) -> str:
    """The summary as lines of text."""
    lines: list[tuple[str, str]] = [("pairs in", f"{summary['pairs_in']:,}")]
    lines.append(("  quarantined", f"{summary['quarantined']:,}"))
    lines += [(f"  dropped: {rule}", f"{n:,}") for rule, n in summary["dropped"].items()]
    lines += [(f"  failed: {cause}", f"{n:,}") for cause, n in summary.get("failed", {}).items()]
    lines.append(("  kept", f"{summary['kept']:,}" + ("" if is_balanced(summary) else "  DOES NOT ADD UP")))
    if "downloaded" in summary:
        failed = ", ".join(f"{cause} {n:,}" for cause, n in summary["images_failed"].items()) or "none"
        lines.append(
            (
                "images",
                f"{summary['images_requested']:,} requested, {summary['downloaded']:,} downloaded, failed: {failed}",
            )
        )
        lines.append(("  kept", f"{summary['images_kept']:,} (copies counted once)"))
    for name, value in summary["features"].items():
        size = f"{value['bytes_per_image']:,} bytes an image"
        lines.append((f"features: {name}", f"{value['rows']:,} images, {size}, by {value['extractor']}"))
        if value["failed"]:
            lines.append(("  failed", ", ".join(f"{cause} {n:,}" for cause, n in value["failed"].items())))
    for run, value in summary["training"].items():
        lines.append((f"training: {run}", f"loss {value['loss_first']:.3f} -> {value['loss_last']:.3f}"))
    for run, value in summary["retrieval"].items():
        t2i, i2t = (" / ".join(f"{100 * value[f'{way}_r{k}']:.1f}" for k in (1, 5, 10)) for way in ("t2i", "i2t"))
        lines.append(
            (
                f"retrieval: {run}",
                f"R@1/5/10 text->image {t2i} %, image->text {i2t} %, chance R@10 {100 * value['chance_r10']:.1f} %",
            )
        )
    lines.append(("seconds", ", ".join(f"{stage} {value:.1f}" for stage, value in summary["seconds"].items())))
    if summary["report"]:
        lines.append(("report", summary["report"]))
    lines += [("WARNING", warning) for warning in summary["warnings"]]
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(f"{name:<{width}}{value}" for name, value in lines)
