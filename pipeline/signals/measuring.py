"""Which groups of signals `filter`'s rules need, and measuring those that are not at hand.

Every group that needs pixels shares one pass over the images. A group whose columns the lists bring is not measured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pipeline.errors import PairmillError
from pipeline.job import Job
from pipeline.signals import named_in
from pipeline.signals.images import AtHand, PictureSignals, Source, image_shards, measure_pictures
from pipeline.store.sql import identifier, number
from pipeline.store.table import Table

if TYPE_CHECKING:
    from pipeline.signals.clip import Model

_COLUMNS = {
    "phash": ("phash",),
    "duplicates": ("duplicate_distance", "duplicate_of"),
    "evaluation_distance": ("evaluation_distance", "evaluation_of"),
    "evaluation_cosine": ("evaluation_cosine", "evaluation_like"),
    "semdedup": ("semantic_cosine", "semantic_duplicate_of"),
    "clip_score": ("clip_score",),
    "nsfw": ("nsfw",),
    "alignment": ("alignment",),
}
_READ_HASHES = {"phash", "duplicates", "evaluation_distance"}
_READ_EMBEDDINGS = {"evaluation_cosine", "semdedup", "clip_score"}
_OF_PAIRS = {"clip_score", "alignment"}
_RADIUS = 4
"""Of the search for near ones, where only a rule of the recipe's own asks for it and not `near_...`."""


@dataclass(frozen=True)
class Measured:
    """A group's table, its columns and what it is joined by; `note` is for the stage's summary."""

    name: str
    table: Table
    note: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        return _COLUMNS[self.name]

    @property
    def joins(self) -> Literal["key", "uid"]:
        return "uid" if self.name in _OF_PAIRS else "key"


def measured(job: Job, expressions: Sequence[str]) -> list[Measured]:
    """Bring the tables of every group that the SQL expressions name up to date.

    Raises PairmillError where a stage before `filter` has not finished, or the recipe lacks what a group is measured
    with.
    """
    job.dataset.check_finished(job.dataset.pairs, job.dataset.screened, job.dataset.images)
    named = {group: set(named_in(expressions, columns)) for group, columns in _COLUMNS.items()}
    listed = _listed(job, sorted(set().union(*named.values())))
    return _Measuring(job, {group for group, columns in named.items() if columns - listed}).run()


def _listed(job: Job, columns: Sequence[str]) -> set[str]:
    """Those of the columns that the lists bring, with numbers: words such as LAION's "UNLIKELY" are no score."""
    if not columns:
        return set()
    score = "SELECT count(*) FROM (FROM pairs WHERE TRY_CAST({} AS DOUBLE) IS NOT NULL LIMIT 1)"
    with job.dataset.connect(job.recipe.engine.memory_limit, job.engine.workers) as connection:
        there = {row[0].lower() for row in connection.execute("DESCRIBE pairs").fetchall()}
        return {name for name in there.intersection(columns) if number(connection, score.format(identifier(name)))}


@dataclass
class _Measuring:
    """One call's work on the groups in `wanted`."""

    job: Job
    wanted: set[str]
    pictures: dict[str, PictureSignals] = field(default_factory=dict)
    clip: "Model | None" = None
    evaluation: dict[str, Source] = field(default_factory=dict)

    def run(self) -> list[Measured]:
        if not self.wanted:
            return []
        self._check()
        self._measure_images()
        notes = self._measure_evaluation_pictures()
        for group in _COLUMNS:
            if group in self.wanted:
                self._derive(group)
        return [Measured(group, self._table(group), notes.get(group, "")) for group in _COLUMNS if group in self.wanted]

    def _table(self, group: str) -> Table:
        return self.job.dataset.signals(group, "align" if group == "alignment" else "filter")

    def _check(self) -> None:
        """Find what the recipe gets wrong now, and not after hours of measuring."""
        for rule in ("near_duplicates", "near_evaluation"):
            self._radius(rule)
        if self.wanted & set(_EVALUATION_NEEDS):
            from pipeline.signals.evaluation import evaluation_shards

            self.evaluation = evaluation_shards(self.job.recipe.filter.evaluation)
        if "alignment" in self.wanted:
            table, dataset = self._table("alignment"), self.job.dataset
            info = table.manifest.info
            if (info["pairs"], info["images"]) != (dataset.pairs.manifest.digest, dataset.images.manifest.digest):
                raise PairmillError(f"{table.folder} holds the scores of other pairs", "run `make align` again")

    def _measure_images(self) -> None:
        at_hand: dict[str, AtHand] = {}
        if self.wanted & _READ_HASHES:
            from pipeline.signals.phash import PerceptualHash

            self.pictures["phash"] = PerceptualHash()
        if self.wanted & _READ_EMBEDDINGS:
            from pipeline.signals.clip import Embeddings, find_model
            from pipeline.signals.extracted import find_extracted

            self.clip = find_model(self.job.recipe.filter.clip)
            self.pictures["embeddings"] = Embeddings(self.clip)
            if extracted := find_extracted(self.job.dataset, self.clip.clip.digest):
                at_hand["embeddings"] = extracted.of_images
        groups = list(self.pictures.values())
        if "nsfw" in self.wanted:
            from pipeline.signals.nsfw import Nsfw

            groups.append(Nsfw())
        tables = {group: self._table(group.name) for group in groups}
        if tables:
            measure_pictures(self.job.engine, tables, image_shards(self.job), "filter: images", at_hand=at_hand)

    def _measure_evaluation_pictures(self) -> dict[str, str]:
        """Returns group -> what is to be said of its evaluation pictures."""
        wanted = [group for group, needs in _EVALUATION_NEEDS.items() if group in self.wanted]
        if not wanted:
            return {}
        from pipeline.signals.evaluation import unreadable

        tables = {
            self.pictures[_EVALUATION_NEEDS[group]]: self._table(f"evaluation_{_EVALUATION_NEEDS[group]}")
            for group in wanted
        }
        side = self.job.recipe.download.image_size
        measure_pictures(self.job.engine, tables, self.evaluation, "filter: evaluation sets", side)
        names = unreadable(next(iter(tables.values())))
        if not names:
            return {}
        self.job.log("unreadable evaluation pictures", names=names)
        told = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
        return {wanted[0]: f"WARNING: {len(names):,} evaluation pictures cannot be decoded: {told}"}

    def _derive(self, group: str) -> None:
        """What is found in the tables of pictures, over the whole corpus or with the pairs' texts."""
        job, table = self.job, self._table(group)
        if group == "duplicates":
            from pipeline.signals.duplicates import find_duplicates

            find_duplicates(job, self._table("phash"), self._radius("near_duplicates"), table)
        elif group == "evaluation_distance":
            from pipeline.signals.evaluation import find_evaluation_hashes

            hashes, pictures = self._table("phash"), self._table("evaluation_phash")
            find_evaluation_hashes(job, hashes, pictures, self._radius("near_evaluation"), table)
        elif group == "evaluation_cosine":
            from pipeline.signals.evaluation import compare_with_evaluation

            compare_with_evaluation(job, self._table("embeddings"), self._table("evaluation_embeddings"), table)
        elif group == "semdedup":
            from pipeline.signals.semdedup import find_semantic_duplicates

            find_semantic_duplicates(job, self._table("embeddings"), job.recipe.filter.semdedup, table)
        elif group == "clip_score":
            from pipeline.signals.clip import score_pairs

            assert self.clip is not None
            score_pairs(job, self.clip, self._table("embeddings"), table)

    def _radius(self, rule: str) -> int:
        from pipeline.signals.hamming import MOST

        threshold = self.job.recipe.filter.rules.get(rule, _RADIUS)
        radius = max(0, math.floor(float(threshold)))  # type: ignore[arg-type]
        if radius > MOST:
            raise PairmillError(
                f"[filter.rules] {rule} = {radius}: unrelated images differ in no more bits", f"take 0 to {MOST}"
            )
        return radius


_EVALUATION_NEEDS = {"evaluation_distance": "phash", "evaluation_cosine": "embeddings"}
