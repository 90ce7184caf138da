"""Image-text retrieval: the ranks of right answers, and what chance alone would give."""

from dataclasses import dataclass
from math import comb

import numpy as np

CUTS = (1, 5, 10)


@dataclass(frozen=True)
class Recall:
    """Share of queries, in [0, 1], with a right answer among the first K: reached, and expected of a random ranking."""

    reached: dict[int, float]
    chance: dict[int, float]


def recall(scores: np.ndarray, right: np.ndarray) -> Recall:
    """R@1, R@5, R@10 of (queries, answers) scores, higher is better, with the right answers in (queries, answers) bool.

    A query is found at K if any of its right answers ranks among the first K. Ties count against it: an answer that is
    wrong and scores the same ranks before the right one, so that a constant score earns nothing.
    """
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    ahead = ((scores >= best) & ~right).sum(axis=1)
    answers = scores.shape[1]
    return Recall(
        {cut: float((ahead < cut).mean()) for cut in CUTS},
        {cut: float(np.mean([chance(int(number), answers, cut) for number in right.sum(axis=1)])) for cut in CUTS},
    )


def chance(right: int, answers: int, cut: int) -> float:
    """Probability that a random ranking of `answers` has one of `right` among its first `cut` (hypergeometric)."""
    return 1 - comb(answers - right, cut) / comb(answers, cut) if cut <= answers else float(right > 0)


def retrieval(scores: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Both ways for (texts, images) scores and truth: what `evaluation.json` holds under "retrieval"."""
    t2i, i2t = recall(scores, right), recall(scores.T, right.T)
    values = {f"t2i_r{cut}": t2i.reached[cut] for cut in CUTS} | {f"i2t_r{cut}": i2t.reached[cut] for cut in CUTS}
    values |= {f"chance_t2i_r{cut}": t2i.chance[cut] for cut in CUTS}
    values |= {f"chance_i2t_r{cut}": i2t.chance[cut] for cut in CUTS}
    values["chance_r10"] = (t2i.chance[10] + i2t.chance[10]) / 2
    return values | {"texts": scores.shape[0], "images": scores.shape[1]}
