"""The words of what was kept against those of what was dropped: the most frequent, and those that set the two apart."""

from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.report.samples import KEPT_UIDS
from pipeline.texts.words import measure, words_of

SAMPLE = 200_000
"""Pairs whose words are counted. Of more, those with the lowest uids: uids are digests, so the draw is fair."""
LISTED = 12
PRIOR = 0.1
"""How much of what was counted the prior of the log-odds weighs."""


@dataclass(frozen=True)
class Term:
    """A word, or two neighbours: how often it stands in a thousand kept pairs, and in a thousand dropped ones."""

    text: str
    kept: float
    dropped: float


@dataclass(frozen=True)
class Terms:
    """`frequent`: of all pairs; `of_kept` and `of_dropped`: those by which the two differ most."""

    frequent: list[Term]
    of_kept: list[Term]
    of_dropped: list[Term]


@dataclass(frozen=True)
class Words:
    """`counted` of `pairs` were read."""

    counted: int
    pairs: int
    words: Terms
    word_pairs: Terms


def words(connection: duckdb.DuckDBPyConnection, sample: int = SAMPLE) -> Words | None:
    """Count the words of kept and of dropped texts; None where there are not both. After `samples.look_up_kept`."""
    ((pairs,),) = connection.execute("SELECT count(*) FROM pairs").fetchall()
    bound = f"{min(int(2**32 * sample / max(pairs, 1)), 2**32 - 1):08x}"
    where = "" if pairs <= sample else f"WHERE uid < '{bound}'"
    table = connection.sql(
        f"SELECT text, uid IN (FROM {KEPT_UIDS}) AS kept FROM (SELECT uid, text FROM pairs {where}) ORDER BY uid"
    ).to_arrow_table()
    kept = table["kept"].to_numpy()
    if not kept.any() or kept.all():
        return None
    texts = table["text"].combine_chunks()
    measured = measure(texts)
    lengths = np.maximum(0, 2 * measured.words.astype(np.int64) - 1)
    row_of = np.repeat(np.arange(len(texts)), lengths)
    starts = np.cumsum(lengths) - lengths
    place = np.arange(len(measured.ngram_keys)) - np.repeat(starts, lengths)
    found = []
    for parity in (0, 1):  # words and pairs of words stand by turns
        chosen = np.flatnonzero(place % 2 == parity)
        found.append(_terms(texts, kept, measured.ngram_keys[chosen], row_of[chosen], place[chosen]))
    return Words(len(texts), pairs, *found)


def _terms(
    texts: pa.Array,
    kept: NDArray[np.bool_],
    keys: NDArray[np.uint64],
    row_of: NDArray[np.int64],
    place: NDArray[np.int64],
) -> Terms:
    """`keys` (n,) of words or of pairs of words, each with its text and its place among that text's keys."""
    if not len(keys):
        return Terms([], [], [])
    distinct, first, number = np.unique(keys, return_index=True, return_inverse=True)
    in_kept = np.bincount(number, weights=kept[row_of], minlength=len(distinct))
    in_dropped = np.bincount(number, weights=~kept[row_of], minlength=len(distinct))
    per_kept, per_dropped = 1000 / kept.sum(), 1000 / (~kept).sum()
    apart = log_odds(in_kept, in_dropped)

    def term(at: int) -> Term:
        row, where = int(row_of[first[at]]), int(place[first[at]])
        spelled = words_of(texts[row].as_py())[where // 2 : where // 2 + 1 + where % 2]
        return Term(" ".join(spelled), float(in_kept[at] * per_kept), float(in_dropped[at] * per_dropped))

    def best(scores: NDArray[Any]) -> list[Term]:
        ranked = np.lexsort((distinct, -scores))[:LISTED]
        return [term(int(at)) for at in ranked if scores[at] > 0]

    return Terms(best(in_kept + in_dropped), best(apart), best(-apart))


def log_odds(one: NDArray[Any], other: NDArray[Any], prior: float = PRIOR) -> NDArray[np.float64]:
    """By how many standard deviations each term's log odds in one corpus differ from those in the other.

    The z-score with the informative Dirichlet prior of Monroe, Colaresi and Quinn (2008), "Fightin' Words", section
    3.5.1. Each term's prior is its frequency in both corpora together, scaled so that all priors sum to `prior` of the
    corpora's terms. A frequent term that one corpus lacks stands out, a rare one does not, and what is common
    everywhere must differ by much.

    `one` and `other`: occurrences (n,), of which each term has at least one on either side.
    """
    if len(one) < 2:  # there is nothing that a term could be more frequent than
        return np.zeros(len(one))
    priors = prior * (one + other)
    a, b = one + priors, other + priors
    ratio = np.log(a / (a.sum() - a)) - np.log(b / (b.sum() - b))
    scores: NDArray[np.float64] = ratio / np.sqrt(1 / a + 1 / b)
    return scores
