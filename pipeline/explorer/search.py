"""Spaces in which pictures lie near what is like them: those of runs, of the recipe's CLIP, and of patch extractors.

What is asked is one query over vectors on disk; nothing of them is held in memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock

from pipeline.clip_model import ClipModel, LoadedClip, extractors_clip, load_clip
from pipeline.errors import PairmillError
from pipeline.recipe import Clip, Patch, Recipe
from pipeline.signals.clip import Embeddings, Model, find_model
from pipeline.signals.extracted import EMBEDDING, POOLED, tars, texts_table
from pipeline.store.atomic import digest
from pipeline.store.dataset import Dataset
from pipeline.store.sql import parquet
from pipeline.store.views.features import nearest_pictures, vector_width
from pipeline.weights import find

Encode = Callable[[str], Sequence[float]]
"""A text -> its vector (D,) in a space; may raise PairmillError, and takes seconds at its first call."""


@dataclass(frozen=True)
class Space:
    """Where pictures are vectors. `source` is SQL of (key, embedding FLOAT[width])."""

    name: str
    source: str
    width: int
    encode: Encode | None
    note: str = ""
    """Why a text cannot be looked for, or how much the space is worth."""


def by_vector(space: Space) -> str:
    """SQL of (key, cosine, uid, text) of the pictures nearest to a vector; parameters: the vector, how many."""
    return nearest_pictures(
        f"SELECT key, array_cosine_similarity(embedding, $1::FLOAT[{space.width}])::DOUBLE AS cosine "
        f"FROM ({space.source})",
        "$2",
    )


def by_picture(space: Space) -> str:
    """SQL of (key, cosine, uid, text) of the pictures nearest to another; parameters: that one's key, how many."""
    return nearest_pictures(
        f"WITH space AS ({space.source}) "
        "SELECT key, array_cosine_similarity(embedding, picture)::DOUBLE AS cosine FROM space, "
        "(SELECT any_value(embedding) AS picture FROM space WHERE key = $1) WHERE picture IS NOT NULL",
        "$2",
    )


PLACE = """
SELECT key FROM (
    SELECT key, 1 AS choice FROM kept WHERE uid = $1 UNION ALL
    SELECT contents.key, 2 FROM images JOIN contents USING (sha256) WHERE images.key = $1 UNION ALL
    SELECT contents.key, 3 FROM (SELECT url FROM pairs WHERE uid = $1) JOIN images USING (url)
        JOIN contents USING (sha256)
) ORDER BY choice LIMIT 1"""
"""SQL of the key under which a pair's (by uid) or a picture's (by key) content has its vectors."""


def spaces(
    dataset: Dataset, recipe: Recipe | None, encode: Callable[[str, str], Sequence[float]] | None
) -> list[Space]:
    """The spaces that a dataset has: runs', then CLIP's, then patch extractors'. `encode`: (run, text) -> vector.

    None while it is not known which pictures are kept.
    """
    if not (dataset.images.exists and dataset.knows_kept):
        return []
    found = [_of_run(run, path, encode) for run, path in dataset.embeddings().items()]
    found.append(_of_filter(dataset, recipe))
    found += [_of_extractor(dataset, name, recipe) for name in dataset.extractors()]
    return [space for space in found if space]


def without(dataset: Dataset, recipe: Recipe | None) -> list[str]:
    """What else there could be a space of, each with what to do for it."""
    there = dataset.embeddings()
    trained = recipe.train if recipe else {}
    return [f"{table.folder.name} is not finished: make {table.made_by}" for table in dataset.gaps] + [
        f"the run {run} has no embeddings: make embed ONLY={run}"
        for run in dataset.runs()
        if run not in there and run in trained and any((trained[run].objectives.itc, trained[run].objectives.vse))
    ]


def _of_run(run: str, path: Path, encode: Callable[[str, str], Sequence[float]] | None) -> Space | None:
    width = vector_width(path, EMBEDDING)
    if width is None:
        return None
    source = (
        f"SELECT key, embedding::FLOAT[{width}] AS embedding FROM {parquet([path.resolve()])} WHERE modality = 'image'"
    )
    return Space(f"run {run}", source, width, encode and partial(encode, run))


def _of_filter(dataset: Dataset, recipe: Recipe | None) -> Space | None:
    table = dataset.signals("embeddings", "filter")
    if not table.exists or not (paths := table.paths(".parquet")):
        return None
    width = vector_width(paths[0], EMBEDDING)
    if width is None:
        return None
    files = parquet([path.resolve() for path in paths])
    source = (
        f"SELECT key, {EMBEDDING}::FLOAT[{width}] AS embedding FROM {files} SEMI JOIN contents USING (key) "
        f"WHERE {EMBEDDING} IS NOT NULL"
    )
    encode, note = None, "its pictures were embedded by another CLIP than the recipe's [filter.clip]: make filter"
    if recipe and recipe.filter.clip:
        model = _filters_model(recipe.filter.clip)
        sources = tars(dataset)
        made = {shard.name: shard.key for shard in table.manifest.shards}
        if made == {shard: digest(Embeddings(model).identity, sha256, None) for shard, sha256 in sources.items()}:
            encode, note = partial(_clip_text, model.clip), ""
    return Space("CLIP of [filter.clip]", source, width, encode, note)


def _of_extractor(dataset: Dataset, name: str, recipe: Recipe | None) -> Space | None:
    features = dataset.features(name)
    identity = features.manifest.info["identity"]
    paths = dataset.feature_files(name)
    if identity["kind"] != "patch" or POOLED not in identity["columns"] or not paths:
        return None
    width = vector_width(paths[0], POOLED)
    if width is None:
        return None
    section = recipe.extract.get(name) if recipe else None
    source = f"SELECT key, {POOLED}::FLOAT[{width}] AS embedding FROM {parquet([path.resolve() for path in paths])}"
    encode, note = None, "it has no text tower: pictures find pictures"
    texts = texts_table(features)
    if isinstance(section, Patch) and section.library == "open_clip" and texts.exists:
        clip = _extractors_model(section)
        same = (
            texts.manifest.info["model"] == clip.digest and texts.manifest.info["features"] == features.manifest.digest
        )
        encode = partial(_clip_text, clip) if same else None
        note = "" if same else f"its texts were embedded by another model: make extract ONLY={name}"
    if not identity["trained"]:
        note = f"UNTRAINED: near here means little. {note}".rstrip()
    return Space(f"features {name}", source, width, encode, note)


@lru_cache(maxsize=8)
def _filters_model(section: Clip) -> Model:
    """Found once: a digest of its weights takes seconds."""
    return find_model(section)


@lru_cache(maxsize=8)
def _extractors_model(section: Patch) -> ClipModel:
    """Likewise."""
    return extractors_clip(section, find(section))


_loading = Lock()


@lru_cache(maxsize=2)
def _loaded(clip: ClipModel) -> LoadedClip:
    return load_clip(clip)


def _clip_text(clip: ClipModel, text: str) -> list[float]:
    with _loading:  # a model is loaded once, however many ask
        return [float(value) for value in _loaded(clip).texts([text])[0]]


def checked(vector: Sequence[float], space: Space) -> list[float]:
    """The vector, if it can be one of the space's; else PairmillError: another model stands in the run's place."""
    if len(vector) != space.width:
        raise PairmillError(
            f"{space.name}: a text has {len(vector)} dimensions there, and pictures {space.width}", "make embed"
        )
    return list(vector)
