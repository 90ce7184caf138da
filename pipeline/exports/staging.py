"""What an export holds, found by SQL before a picture is read: one row a pair, sorted by image shard, key and uid."""

import json
import re
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb

from pipeline.errors import PairmillError
from pipeline.exports.metadata import Field, fields_of_pairs, safe_names
from pipeline.store.atomic import write_json
from pipeline.store.dataset import Dataset
from pipeline.store.sql import condition, identifier, literal, number, parquet

PAIRS = "pairs.parquet"
_PLAN = "plan.json"
SCORE, METADATA = "score:", "metadata:"
"""What the names of the staged columns of scores and of metadata begin with."""
ROWS_PER_GROUP = 16_384
"""A worker reads its image shard's row groups: so many rows more than it needs, at most, on either side."""
_NOT_SCORES = frozenset({"uid", "url", "text", "original", "file", "row", "failures"})
_NUMERIC = re.compile(r"U?(TINY|SMALL|BIG|HUGE)INT|U?INTEGER|FLOAT|DOUBLE|DECIMAL\(.*\)")
_WIDE = re.compile(r"U?(BIG|HUGE)INT")
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
_MEASURED = ("filtered", "screened", "pairs")
_EXACT = 2**53
"""Up to here a double holds every whole number."""


@dataclass(frozen=True)
class Part:
    """The images that one image shard has of one split: the `number`th of that split's `of` parts, from 0."""

    split: str
    shard: str
    number: int
    of: int
    images: int
    pairs: int


@dataclass(frozen=True)
class Plan:
    """What is to be exported, split by split in the order train, validation, test."""

    parts: tuple[Part, ...]
    scores: tuple[str, ...]
    """Names of what was measured, in their order."""
    metadata: tuple[Field, ...]
    extractors: tuple[str, ...]
    """Those whose boxes go out."""

    @classmethod
    def read(cls, staging: Path) -> "Plan":
        value = json.loads((staging / _PLAN).read_text())
        return cls(
            parts=tuple(Part(**part) for part in value["parts"]),
            scores=tuple(value["scores"]),
            metadata=tuple(Field(**field) for field in value["metadata"]),
            extractors=tuple(value["extractors"]),
        )

    def of_shard(self, shard: str) -> list[Part]:
        return [part for part in self.parts if part.shard == shard]

    def of_splits(self) -> dict[str, list[Part]]:
        parts = defaultdict(list)
        for part in self.parts:
            parts[part.split].append(part)
        return dict(parts)

    def images_of_shards(self) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for part in self.parts:
            counts[part.shard] += part.images
        return dict(sorted(counts.items()))


def stage(dataset: Dataset, staging: Path, where: str) -> Plan:
    """Write the kept pairs that meet `where`, SQL over the view `kept`, and the plan to the folder `staging`.

    The pairs' columns: shard, key, sha256, split, width, height, uid, url, text, `score:<name>` for each score and
    `metadata:<name>` for each field of the metadata.
    Raises PairmillError where a stage up to `filter` has not finished, the SQL is wrong, or no pair is left.
    """
    dataset.check_finished(dataset.filtered, *dataset.chain)  # `filter` says what is kept, and in which split
    with dataset.connect() as connection:
        try:
            connection.execute(f"CREATE TEMP TABLE wanted AS FROM kept WHERE {condition(where)}")
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.Error as error:
            raise PairmillError(f"--where: {str(error).splitlines()[0]}", "it is SQL over the view `kept`") from None
        stored = parquet(dataset.images.paths(".parquet"), ", filename = true")
        placed = f"FROM wanted JOIN {stored} AS stored ON stored.key = wanted.key"
        shard = "parse_filename(stored.filename, true) AS shard"
        counted = connection.execute(
            f"SELECT wanted.split, {shard}, count(DISTINCT wanted.key), count(*) {placed} GROUP BY ALL ORDER BY shard"
        ).fetchall()
        if sum(pairs for *_, pairs in counted) != number(connection, "SELECT count(*) FROM wanted"):
            raise AssertionError("kept pairs have pictures that the table of images lacks")
        if not counted:
            raise PairmillError(
                "no kept pair is left to export", "name another condition, or loosen the recipe's rules"
            )
        connection.execute("SET TimeZone = 'UTC'")  # in which instants are written
        scores = _scores(connection)
        metadata = fields_of_pairs(connection, {score.column for score in scores.values() if score.relation == "pairs"})
        staged = {SCORE + name: score.sql for name, score in scores.items()}
        staged |= {METADATA + field.name: value for field, value in metadata.items()}
        columns = "".join(f", {value} AS {identifier(name)}" for name, value in staged.items())
        read = sorted({"pairs", *(score.relation for score in scores.values())})
        joins = " ".join(f"LEFT JOIN {name} ON {name}.uid = wanted.uid" for name in read)
        query = (
            f"SELECT {shard}, wanted.key, stored.sha256, wanted.split, stored.width, stored.height, wanted.uid, "
            f"wanted.url, wanted.text{columns} {placed} {joins} ORDER BY shard, wanted.key, wanted.uid"
        )
        staging.mkdir(parents=True, exist_ok=True)
        connection.execute(
            f"COPY ({query}) TO {literal(staging / PAIRS)} "
            f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROWS_PER_GROUP})"
        )
    extractors = tuple(
        name for name in dataset.extractors() if "boxes" in dataset.features(name).manifest.info["identity"]["columns"]
    )
    plan = Plan(
        parts=_parts(counted, list(dataset.filtered.manifest.info["split"])),
        scores=tuple(scores),
        metadata=tuple(metadata),
        extractors=extractors,
    )
    write_json(staging / _PLAN, asdict(plan))
    return plan


def _parts(counted: list[tuple[str, str, int, int]], splits: list[str]) -> tuple[Part, ...]:
    """Numbered without gaps, so that {00000..00012} names all of a split."""
    parts = []
    for split in splits:
        own = [row for row in counted if row[0] == split]
        parts += [Part(split, shard, at, len(own), images, pairs) for at, (_, shard, images, pairs) in enumerate(own)]
    return tuple(parts)


@dataclass(frozen=True)
class _Score:
    relation: str
    column: str

    @property
    def sql(self) -> str:
        return f"{self.relation}.{identifier(self.column)}::DOUBLE"


def _scores(connection: duckdb.DuckDBPyConnection) -> dict[str, _Score]:
    """Every number there is of a pair by its name: what rules measured, and the lists' own columns of numbers.

    A measured one has the name of what its rule measures (`clip_score`, not `min_clip_score`), or the rule's where that
    is more than a name. Of equal names `filter`'s hides `screen`'s, and that the lists', as they do in the rules. What
    the lists have of whole numbers too large for a score are metadata: ids and hashes, which must not be rounded.
    """
    measures = dict(connection.execute("SELECT rule, measure FROM rules").fetchall())
    found: dict[str, _Score] = {}
    for relation in _MEASURED:
        passed_over = _NOT_SCORES | (_too_large(connection) if relation == "pairs" else set())
        for column, kind in _columns(connection, relation):
            measure = measures.get(column, "") if relation != "pairs" else ""
            name = measure if _IDENTIFIER.fullmatch(measure) else column
            if column not in passed_over and _NUMERIC.fullmatch(kind) and name.lower() not in map(str.lower, found):
                found[name] = _Score(relation, column)
    return {safe: found[name] for name, safe in safe_names(sorted(found)).items()}


def _too_large(connection: duckdb.DuckDBPyConnection) -> set[str]:
    """The lists' columns of whole numbers that a score would round."""
    wide = [name for name, kind in _columns(connection, "pairs") if _WIDE.fullmatch(kind) and name not in _NOT_SCORES]
    if not wide:
        return set()
    largest = ", ".join(f"coalesce(max(abs({identifier(name)}::DOUBLE)), 0)" for name in wide)
    (found,) = connection.execute(f"SELECT {largest} FROM pairs").fetchall()
    return {name for name, value in zip(wide, found, strict=True) if value >= _EXACT}


def _columns(connection: duckdb.DuckDBPyConnection, relation: str) -> list[tuple[str, str]]:
    try:
        return [(str(name), str(kind)) for name, kind, *_ in connection.execute(f"DESCRIBE {relation}").fetchall()]
    except duckdb.CatalogException:  # of a stage that has not run
        return []
