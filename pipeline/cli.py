"""The command line. `make help` lists the targets that call it."""

import argparse
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from types import FrameType

import duckdb
from filelock import FileLock, Timeout

from pipeline.engine import engine
from pipeline.errors import PairmillError
from pipeline.exports import TARGETS
from pipeline.job import Job
from pipeline.ranks import rank, ranks
from pipeline.recipe import Recipe, load
from pipeline.stages import ASIDE, NEEDS_NO_RECIPE, STAGES, run_stage
from pipeline.store.dataset import Dataset

DEMO_PORT = 8765
EXPLORE_PORT = 8080
RECIPES = Path("recipes")
RUN_STAGES = ("train", "evaluate", "embed")
"""Whose names in --only are runs."""
RESUMED = (*STAGES, *ASIDE, "demo", "study")
"""Commands that carry on where an earlier call of theirs stopped."""
DAMAGED = "\n  -> a table's file is damaged: `make verify` names it, and what makes it anew"
ROOM = "\n  -> make room, then run it again: what is done is kept"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status. What a user can cause ends in one message and no traceback."""
    options = _parser().parse_args(arguments)
    with _counting_interrupts() as interrupts:
        return _answered(options, interrupts)


def _answered(options: argparse.Namespace, interrupts: list[int]) -> int:
    try:
        if set("*?[]{}").intersection(str(options.data.absolute())):
            raise PairmillError(
                f"{options.data.absolute()}: DuckDB takes * ? [ ] {{ }} for a pattern", "rename the folder"
            )
        options.run(options)
    except PairmillError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _interrupted(options)
    except duckdb.IOException as error:
        said = str(error).splitlines()[0]
        return _fail(said + (ROOM if os.strerror(errno.ENOSPC) in said else ""))
    except OSError as error:
        if error.errno is None:  # of Arrow, about what is in a file
            return _fail(str(error) + DAMAGED)
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{os.strerror(error.errno)}{ROOM if error.errno == errno.ENOSPC else ''}")
    except Exception as error:
        if interrupts:  # an import that Ctrl-C broke off may fail in any way
            return _interrupted(options)
        if _is_of_a_file(error):
            return _fail(str(error).splitlines()[0] + DAMAGED)
        raise
    return 0


def _is_of_a_file(error: Exception) -> bool:
    """Whether DuckDB or Arrow could not make sense of a table's file."""
    if isinstance(error, duckdb.InvalidInputException):
        return ".parquet" in str(error)
    return type(error).__module__ == "pyarrow.lib" and "arquet" in str(error)


@contextmanager
def _counting_interrupts() -> Iterator[list[int]]:
    """Ctrl-C is noted in the list that is yielded, and then raised as ever."""
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        signal.default_int_handler(number, frame)

    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupted(options: argparse.Namespace) -> int:
    carries_on = getattr(options, "command", "") in RESUMED
    return _fail("interrupted" + ("; what is done is kept: run it again to carry on" if carries_on else ""), 130)


def _fail(message: str, status: int = 1) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pairmill", description="From noisy web image-text pairs to pretrained vision-language models."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help)
        sub.set_defaults(run=run, command=name)
        sub.add_argument("--data", type=Path, required=True, help="the dataset's folder")
        return sub

    def add_recipe(sub: argparse.ArgumentParser, required: bool = True) -> None:
        sub.add_argument("--recipe", type=Path, required=required)
        add_engine(sub)

    def add_engine(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--engine", default="local", help="local or ray")
        sub.add_argument("--workers", type=int, help="worker processes; the recipe's [engine] workers otherwise")

    rules = commands.add_parser("rules", help="every rule with what it takes and its source")
    rules.set_defaults(run=_rules, data=Path())
    for stage in (*STAGES, *ASIDE):
        sub = command(stage, _stage, f"run the stage {stage}")
        add_recipe(sub, required=stage not in NEEDS_NO_RECIPE)
        sub.add_argument("--only", default="", help="names of extractors or runs, separated by commas; all otherwise")
    demo = command("demo", _demo, "every stage on the Open Clip Art Library")
    add_recipe(demo)
    demo.add_argument("--port", type=int, default=DEMO_PORT, help="where the demo's web server listens on 127.0.0.1")
    sql = command("sql", _sql, "ask the catalog")
    sql.add_argument("query", nargs="?", help="SQL; a prompt opens otherwise")
    sql.add_argument("--format", help="table, csv, json, jsonl or parquet; as the suffix of --out says, or a table")
    sql.add_argument("--out", type=Path, help="a file; standard output otherwise")
    explore = command("explore", _explore, "serve a local web app to question the dataset and look at it")
    explore.add_argument("--recipe", type=Path, help="that of the dataset, for the pages that change thresholds")
    explore.add_argument("--port", type=int, default=EXPLORE_PORT, help="on 127.0.0.1; 0: any that is free")
    _add_exchange(command, add_engine)
    _add_models(commands, command, add_recipe)
    command("summary", _summary, "print the dataset's numbers and write summary.json")
    return parser


def _add_exchange(
    command: Callable[[str, Callable[[argparse.Namespace], None], str], argparse.ArgumentParser],
    add_engine: Callable[[argparse.ArgumentParser], None],
) -> None:
    out = command("export-features", _export_features, "write an extractor's features in a format that others read")
    out.add_argument("--extractor", required=True, help="whose features")
    out.add_argument("--to", required=True, choices=("webdataset", "uniter-npz", "lxmert-tsv"))
    out.add_argument("--out", type=Path, required=True, help="a new folder")
    out.add_argument("--where", default="true", help="SQL over the view `kept`: which images")
    add_engine(out)
    export = command("export", _export, "write what is kept, with all that is known of it, for other programs")
    export.add_argument("--to", required=True, choices=TARGETS)
    export.add_argument("--out", type=Path, required=True, help="a new folder")
    export.add_argument("--where", default="true", help="SQL over the view `kept`: which pairs")
    add_engine(export)
    into = command("import-features", _import_features, "make a table of features out of published ones")
    into.add_argument("--extractor", required=True, help="the name that they get")
    into.add_argument(
        "--from", dest="format", required=True, choices=("webdataset", "uniter-npz", "lxmert-tsv", "hdf5")
    )
    into.add_argument("files", type=Path, nargs="+", help="files, or folders of files")
    into.add_argument(
        "--match",
        help="what an id means: stem, the last part of the image's url; key, the image's key, the default for "
        "webdataset; or a CSV or Parquet with the columns id and url",
    )
    into.add_argument("--classes", type=Path, help="the classes' names, a line each")
    into.add_argument("--top-k", type=int, default=10, help="how many classes a region to keep")
    into.add_argument("--dtype", default="float16", choices=("float16", "int8"))
    add_engine(into)


def _add_models(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    command: Callable[[str, Callable[[argparse.Namespace], None], str], argparse.ArgumentParser],
    add_recipe: Callable[[argparse.ArgumentParser], None],
) -> None:
    models = commands.add_parser("models", help="the systems of recipes/models with their numbers of parameters")
    models.set_defaults(run=_models, data=Path())
    study = command("study", _study, "train systems side by side, and write one table")
    add_recipe(study)
    study.add_argument("--models", required=True, help="names in recipes/models, separated by spaces")
    study.add_argument("--features", default="", help="names of extractors; all that the dataset has otherwise")
    study.add_argument("--seeds", type=int, default=3, help="trainings of each")
    study.add_argument("--steps", type=int, default=300)
    study.add_argument("--batch", type=int, default=64, help="pairs a step")
    study.add_argument("--scale", default="tiny")
    out = command("export-model", _export_model, "save a trained dual encoder of pixels in open_clip's format")
    add_recipe(out)
    out.add_argument("--only", required=True, help="the run's name")
    out.add_argument("--out", type=Path, required=True, help="a new folder")


def _job(options: argparse.Namespace, stage: str, recipe: Recipe) -> Job:
    workers = recipe.engine.workers if options.workers is None else options.workers
    only = frozenset(filter(None, getattr(options, "only", "").split(",")))
    names = list(recipe.extract if stage == "extract" else recipe.train if stage in RUN_STAGES else ())
    for name in only:
        if name not in names:
            raise PairmillError(f"{stage}: the recipe has no {name!r}", f"it has {', '.join(names) or 'none'}")
    return Job(stage, recipe, Dataset(options.data), engine(options.engine, workers), only)


class _Locked:
    """One process at a time works in a dataset's folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.lock = folder, FileLock(folder / ".lock")

    def __enter__(self) -> None:
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise PairmillError(f"another process is working in {self.folder}", "wait for it to end") from None

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def _stage(options: argparse.Namespace) -> None:
    recipe = load(options.recipe) if options.recipe else Recipe(name=options.command)
    if ranks() > 1 and options.command != "train":
        raise PairmillError(f"torchrun has started {options.command}", "only `train` runs in several processes")
    with nullcontext() if rank() else _Locked(options.data):
        run_stage(_job(options, options.command, recipe))


def _export_features(options: argparse.Namespace) -> None:
    from pipeline.export_features import export_features

    with _Locked(options.data), closing(engine(options.engine, options.workers or 0)) as running:
        dataset = Dataset(options.data)
        print(export_features(dataset, running, options.extractor, options.to, options.out, options.where))


def _export(options: argparse.Namespace) -> None:
    from pipeline.exports.running import export

    with _Locked(options.data), closing(engine(options.engine, options.workers or 0)) as running:
        print(export(Dataset(options.data), running, options.to, options.out, options.where))


def _import_features(options: argparse.Namespace) -> None:
    from pipeline.import_features import Asked, import_features

    match = options.match or ("key" if options.format == "webdataset" else "stem")
    if options.top_k < 1:
        raise PairmillError(f"--top-k {options.top_k} keeps nothing", "1 or more")
    asked = Asked(options.format, options.files, match, options.top_k, options.classes, options.dtype)
    with _Locked(options.data), closing(engine(options.engine, options.workers or 0)) as running:
        print(import_features(Dataset(options.data), running, options.extractor, asked))


def _models(options: argparse.Namespace) -> None:
    from trainers.parameters import systems, table

    print(table(systems(RECIPES)))


def _study(options: argparse.Namespace) -> None:
    from trainers import study

    for name in ("seeds", "steps", "batch"):
        if getattr(options, name) < 1 + (name == "batch"):
            raise PairmillError(f"--{name} {getattr(options, name)} is too few", "name more")
    with _Locked(options.data):
        job = _job(options, "study", load(options.recipe))
        asked = study.Study(
            recipes=RECIPES / "models",
            models=study.chosen(options.models, ()),
            features=study.chosen(options.features, job.dataset.extractors()),
            seeds=options.seeds,
            steps=options.steps,
            batch=options.batch,
            scale=options.scale,
        )
        print(study.run(job, asked))


def _export_model(options: argparse.Namespace) -> None:
    from trainers.export_open_clip import export

    with _Locked(options.data):
        job = _job(options, "train", load(options.recipe))
        if len(job.only) != 1:
            raise PairmillError("one model is exported at a time", "name its run with ONLY=")
        (name,) = job.only
        print(export(job.dataset, name, job.recipe.train[name].features, options.out))


def _demo(options: argparse.Namespace) -> None:
    from pipeline import download, summary
    from pipeline.demo import openclipart
    from pipeline.demo.server import Faults, serving

    recipe = load(options.recipe)
    with _Locked(options.data):
        folder = Path("data/openclipart")
        library = openclipart.get(folder)
        openclipart.write_lists(library, folder, f"http://127.0.0.1:{options.port}")
        for stage in STAGES:
            job = _job(options, stage, recipe)
            if stage == "download" and not download.is_current(job):
                with serving(library.png, options.port, Faults()):
                    run_stage(job)
            else:
                run_stage(job)
        print("\n" + summary.table(summary.write(Dataset(options.data))))


def _rules(options: argparse.Namespace) -> None:
    from pipeline.rules import listing

    print(listing())


def _sql(options: argparse.Namespace) -> None:
    from pipeline.sql_shell import Format, ask, open_shell

    dataset, query = Dataset(options.data), options.query
    if query is None and not sys.stdin.isatty():
        query = sys.stdin.read()
    if query is None and options.format is None and options.out is None:
        open_shell(dataset)
    else:
        ask(dataset, query or "", Format.asked(options.format, options.out), options.out)


def _explore(options: argparse.Namespace) -> None:
    from pipeline.explorer.app import serve

    @cache
    def encoder() -> Callable[[str, str], list[float]]:
        from trainers.tasks.encoding import RunEncoder  # PyTorch takes seconds, and most come for something else

        return RunEncoder(Dataset(options.data))

    if not 0 <= options.port <= 65535:
        raise PairmillError(f"there is no port {options.port}", "1 to 65535, or 0 for any that is free")
    serve(options.data, options.recipe, options.port, lambda run, text: encoder()(run, text))


def _summary(options: argparse.Namespace) -> None:
    from pipeline import summary

    dataset = Dataset(options.data)
    dataset.pairs.manifest  # noqa: B018 - says that `ingest` must run first
    print(summary.table(summary.write(dataset)))


if __name__ == "__main__":
    sys.exit(main())
