"""What an export holds, found by SQL before a picture is read: one row a pair, sorted by image shard, key and uid."""

import json
import re
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb

from pipeline.errors import PairmillError
from pipeline.store.atomic import write_json
from pipeline.store.dataset import Dataset
from pipeline.store.sql import condition, identifier, literal, number, parquet

PAIRS = "pairs.parquet"
_PLAN = "plan.json"
SCORE = "score:"
"""What the names of the staged columns of scores begin with."""
ROWS_PER_GROUP = 16_384
"""A worker reads its image shard's row groups: so many rows more than it needs, at most, on either side."""
_NOT_SCORES = frozenset({"uid", "url", "text", "original", "file", "row", "failures"})
_NUMERIC = re.compile(r"U?(TINY|SMALL|BIG|HUGE)INT|U?INTEGER|FLOAT|DOUBLE|DECIMAL\(.*\)")
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
_MEASURED = ("filtered", "screened", "pairs")


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
    extractors: tuple[str, ...]
    """Those whose boxes go out."""

    @classmethod
    def read(cls, staging: Path) -> "Plan":
        value = json.loads((staging / _PLAN).read_text())
        return cls(tuple(Part(**part) for part in value["parts"]), tuple(value["scores"]), tuple(value["extractors"]))

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

    The pairs' columns: shard, key, sha256, split, width, height, uid, url, text, and `score:<name>` for each score.
    Raises PairmillError where `filter` has not run, the SQL is wrong, or no pair is left.
    """
    dataset.filtered.manifest  # noqa: B018 - says that `filter` must run first: it says what is kept, and in which split
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
        scores = _scores(connection)
        columns = "".join(f", {score.sql} AS {identifier(SCORE + name)}" for name, score in scores.items())
        read = [name for name in _MEASURED if any(score.relation == name for score in scores.values())]
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
    plan = Plan(_parts(counted, list(dataset.filtered.manifest.info["split"])), tuple(scores), extractors)
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
    is more than a name. Of equal names `filter`'s hides `screen`'s, and that the lists', as they do in the rules.
    """
    measures = dict(connection.execute("SELECT rule, measure FROM rules").fetchall())
    found: dict[str, _Score] = {}
    for relation in _MEASURED:
        for column, kind in _columns(connection, relation):
            measure = measures.get(column, "") if relation != "pairs" else ""
            name = measure if _IDENTIFIER.fullmatch(measure) else column
            if column not in _NOT_SCORES and _NUMERIC.fullmatch(kind) and name.lower() not in map(str.lower, found):
                found[name] = _Score(relation, column)
    return dict(sorted(found.items()))


def _columns(connection: duckdb.DuckDBPyConnection, relation: str) -> list[tuple[str, str]]:
    try:
        return [(str(name), str(kind)) for name, kind, *_ in connection.execute(f"DESCRIBE {relation}").fetchall()]
    except duckdb.CatalogException:  # of a stage that has not run
        return []
