"""`pairmill import-features`: published features become a table that trainers read like any extractor's.

Two passes, neither of which holds the features of more than one image. The first reads every file once: where each
image's features lie, under which id, and the files' sha256. The second writes one feature shard an image shard, in
order of key, reading each image from its place.

What has no id is counted and passed over; what means an image of the dataset, but cannot be read, goes to the shard's
`.failed.parquet` with its cause and its place in the files. Ids without an image, and images without features, are
counted.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from pipeline.engine import Engine
from pipeline.errors import PairmillError
from pipeline.extractors.plans import FAILED, IMPORTED, IMPORTED_MARK
from pipeline.job import UP_TO_DATE
from pipeline.recipe import Name
from pipeline.store.atomic import digest, replacing
from pipeline.store.dataset import Dataset
from pipeline.store.features import Column, FeatureWriter, ImageFeatures, NotFiniteError
from pipeline.store.features.exchange import webdataset
from pipeline.store.features.exchange.matching import digest_of, match_places
from pipeline.store.features.exchange.published import Place, UnreadableError, read_image, where
from pipeline.store.features.exchange.sources import Indexed, OpenFiles, Sources, index_chunk, list_files
from pipeline.store.features.exchange.uniter_npz import TOP_K
from pipeline.store.table import FAILED_SUFFIX, Manifest, Shard

VERSION = 1


@dataclass(frozen=True)
class Asked:
    """What to import: files of a format, what their ids mean (`exchange.matching`), and what to keep.

    `top_k`: how many classes a region, where the files have all; `classes`: a file of their names, a line each, without
    the background; `dtype`: "float16" or "int8".
    """

    format: str
    paths: Sequence[Path]
    match: str = "stem"
    top_k: int = TOP_K
    classes: Path | None = None
    dtype: str = "float16"


def import_features(dataset: Dataset, engine: Engine, name: str, asked: Asked) -> str:
    """Make the table `features/<name>`; returns a line that says what came of it, or UP_TO_DATE.

    Raises PairmillError for files that are not of the format, of which nothing can be read, or whose ids name no image
    of the dataset; and where the table is there and an extractor has made it.
    """
    dataset.images.manifest  # noqa: B018 - says that `download` must run first
    table = dataset.features(_checked(name))
    begun = not table.exists and table.is_begun and not (table.folder / IMPORTED_MARK).exists()
    if begun or (table.exists and not table.manifest.info.get(IMPORTED)):
        raise PairmillError(f"{table.folder} holds features that `make extract` made", "import under another name")
    if asked.format == "webdataset" and (asked.dtype != "float16" or asked.classes):
        raise PairmillError("a store's tars say themselves what they hold", "leave --dtype and --classes out")
    means = digest_of(asked.match)  # what is wrong with it is said before hours of reading
    classes = None if asked.classes is None else _class_names(asked.classes)
    staging = dataset.root / ".staging" / f"import-{name}"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        paths = list_files(asked.paths, asked.format)
        sources = Sources.stage(paths, asked.format, staging.absolute())
        places = staging.absolute() / "places"
        index = partial(index_chunk, sources=sources, folder=places, top_k=asked.top_k, dtype=asked.dtype)
        chunks = sources.chunks()
        if len(chunks) == 1:
            engine = engine.light()
        found = dict(zip(chunks, [Indexed()] * len(chunks), strict=True))
        for chunk, indexed in engine.map(partial(_named, function=index), chunks, f"import {name}: index"):
            found[chunk] = indexed
        identity = _identity(asked, paths, list(found.values()), classes)
        sums = [found[chunk].sha256 for chunk in chunks]
        key = digest(VERSION, identity, means, asked.top_k, sums, dataset.images.manifest.digest)
        if table.is_current(key):
            return UP_TO_DATE
        matched = match_places(dataset, asked.match, sorted(places.glob("*.parquet")), staging / "matched.parquet")
        if not matched.images:
            raise PairmillError(
                f"none of the {matched.without_image + matched.ambiguous:,} ids names an image of {dataset.root}",
                "say by --match which url each id means: a CSV with the columns id and url",
            )
        shard_keys = {shard.name: digest(key, shard.name) for shard in dataset.images.manifest.shards}
        table.folder.mkdir(parents=True, exist_ok=True)
        with table.writing(key, shard_keys, keep=(IMPORTED_MARK,)) as writing:
            (table.folder / IMPORTED_MARK).touch()
            write = partial(
                _write_shard,
                sources=sources,
                matched=(staging / "matched.parquet").absolute(),
                folder=table.folder.absolute(),
                identity=identity,
                keys=shard_keys,
                top_k=asked.top_k,
            )
            for shard in engine.map(write, writing.todo, f"import {name}"):
                writing.add(shard)
            counts = asdict(matched) | {"damaged": sum(indexed.damaged for indexed in found.values())}
            manifest = writing.commit({"identity": identity, IMPORTED: counts})
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    examples = [example for indexed in found.values() for example in indexed.examples]
    return "; ".join(
        filter(None, [f"{name}: {_described(manifest)}", str(matched), _damages(counts["damaged"], examples)])
    )


def _checked(name: str) -> str:
    try:
        return TypeAdapter(Name).validate_python(name)
    except ValidationError:
        raise PairmillError(f"{name!r} is no name for an extractor", "take a-z, 0-9, _ and -") from None


def _named(task: str, *, function: Any) -> tuple[str, Any]:
    """An engine gives results in any order."""
    return task, function(task)


def _described(manifest: Manifest) -> str:
    counts = manifest.counts()
    causes = [f"{cause.removeprefix('failed/')} {n:,}" for cause, n in counts.items() if cause.startswith("failed/")]
    return f"{counts['rows']:,} images" + (f", {counts['failed']:,} failed ({', '.join(causes)})" if causes else "")


def _damages(number: int, examples: Sequence[str]) -> str:
    return f"{number:,} damaged places, such as {examples[0]}" if number else ""


def _identity(
    asked: Asked, paths: Sequence[Path], found: Sequence[Indexed], classes: list[str] | None
) -> dict[str, Any]:
    """What made the features, as far as it is known: the files, by their content."""
    if asked.format == "webdataset":
        identities = [webdataset.read_identity(folder) for folder in sorted({path.parent for path in paths})]
        if any(identity != identities[0] for identity in identities):
            raise PairmillError("the tars hold features of more than one extractor", "import each under its own name")
        return identities[0]
    columns = next((indexed.columns for indexed in found if indexed.columns is not None), None)
    if columns is None:
        example = next((indexed.examples[0] for indexed in found if indexed.examples), "")
        raise PairmillError(
            f"no image can be read from {paths[0]}" + (f": {example}" if example else ""), f"is it {asked.format}?"
        )
    more = f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""
    identity: dict[str, Any] = {
        "kind": "region",
        "model": IMPORTED,
        "trained": True,
        "weights": f"{asked.format}: {paths[0].name}{more}",
        "weights_sha256": hashlib.sha256("".join(indexed.sha256 for indexed in found).encode()).hexdigest(),
        "settings": {"format": asked.format, "top_k": asked.top_k},
        "dtype": asked.dtype,
        "columns": columns,
        "libraries": {"numpy": version("numpy")},
    }
    return identity if classes is None else identity | {"classes": classes}


def _class_names(path: Path) -> list[str]:
    """A line a class; of synonyms, which commas divide in Visual Genome's vocabulary, the first."""
    try:
        names = [line.split(",")[0].strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise PairmillError(f"{path} cannot be read ({error})", "it is a text file with a line a class") from None
    if not names or not all(names):
        raise PairmillError(f"{path} has a line without a name", "it is a text file with a line a class")
    return names


def _check_classes(image: ImageFeatures, identity: dict[str, Any]) -> None:
    if "classes" in identity and "classes" in image.arrays:
        highest, known = int(image["classes"].max(initial=-1)), len(identity["classes"])
        if highest >= known:
            raise UnreadableError(f"it has the class {highest}, and only {known:,} have a name")


def _write_shard(
    shard: str,
    *,
    sources: Sources,
    matched: Path,
    folder: Path,
    identity: dict[str, Any],
    keys: dict[str, str],
    top_k: int,
) -> Shard:
    """Write the features of one image shard's images."""
    columns = {name: Column.of(described) for name, described in identity["columns"].items()}
    rows = pq.read_table(matched, filters=[("shard", "=", shard)]).to_pylist()
    failures: list[dict[str, str]] = []
    with (
        closing(OpenFiles(sources)) as files,
        FeatureWriter(folder / f"{shard}.parquet", columns, identity) as writer,
    ):
        for row in rows:
            place = Place(*(row[name] for name in ("id", "number", "unit", "start", "length")))
            try:
                image = read_image(files[row["file"]], place, top_k)
                if image.arrays.keys() != columns.keys():
                    raise UnreadableError(f"it has {', '.join(image.arrays)}, and others {', '.join(columns)}")
                _check_classes(image, identity)
                writer.add(ImageFeatures(row["key"], image.n, image.arrays))
            except ValueError as error:  # as UnreadableError and NotFiniteError are
                cause = "not_finite" if isinstance(error, NotFiniteError) else "unreadable"
                file = Path(sources.path(row["file"]).name)  # whoever moves the dataset has no use for our folders
                failures.append({"key": row["key"], "cause": cause, "detail": f"{where(file, place)}: {error}"})
    with replacing(folder / f"{shard}{FAILED_SUFFIX}") as path:
        pq.write_table(pa.Table.from_pylist(failures, FAILED), path, compression="zstd")
    causes = Counter(failure["cause"] for failure in failures)
    counts = {"rows": writer.rows, "failed": len(failures), **{f"failed/{cause}": n for cause, n in causes.items()}}
    return Shard.of(folder, shard, keys[shard], [f"{shard}.parquet", f"{shard}{FAILED_SUFFIX}"], counts)
