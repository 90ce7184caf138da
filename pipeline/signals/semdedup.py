"""Semantic duplicates: SemDeDup (Abbas et al. 2023), section 3 and its public code.

The embeddings are clustered by k-means. In a cluster the images are taken farthest from the centre first (by cosine),
and each is compared with all those before it, whether they fall or not: the greatest cosine is the signal, and a rule
drops what exceeds its threshold. No threshold is part of it.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.job import Job
from pipeline.recipe import SemDeDup
from pipeline.signals.clip import read_embeddings
from pipeline.signals.whole import write_whole
from pipeline.store.table import Table

VERSION = 1
_ROWS = 2048  # of a cluster's matrix of cosines, so many rows at once


def find_semantic_duplicates(job: Job, embeddings: Table, section: SemDeDup, table: Table) -> None:
    """Bring `table` (key, semantic_cosine, semantic_duplicate_of) up to date: a row for each embedded image.

    The first of a cluster has NULL in both.
    """

    def rows() -> pa.Table:
        keys, vectors = _gathered(embeddings.paths(".parquet"))
        cosine, nearest = semantic_cosines(vectors, section.clusters, section.iterations, section.seed)
        alone = nearest < 0
        return pa.table(
            {
                "key": keys,
                "semantic_cosine": pa.array(cosine, mask=alone),
                "semantic_duplicate_of": keys.take(pa.array(nearest, mask=alone)),
            }
        )

    settings = section.model_dump(mode="json")
    write_whole(table, job.key(VERSION, "semdedup", settings, embeddings), rows)


def _gathered(paths: list[Path]) -> tuple[pa.Array, np.ndarray]:
    parts = [read_embeddings(path) for path in paths]
    keys = pa.array([key for names, _ in parts for key in names], pa.string())
    return keys, np.concatenate([vectors for _, vectors in parts])


def semantic_cosines(vectors: np.ndarray, clusters: int, iterations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,) float32 greatest cosine with an earlier one of its cluster, and (n,) int64 which that is, -1 for none.

    `vectors` are (n, D) float32 unit vectors, n > 0 or not. The order of equally far ones is theirs in `vectors`.
    """
    cosine, nearest = np.full(len(vectors), -2, np.float32), np.full(len(vectors), -1, np.int64)
    centres, cluster = clustered(vectors, min(clusters, len(vectors)), iterations, seed)
    by_cluster = np.argsort(cluster, kind="stable")
    for members in np.split(by_cluster, np.flatnonzero(np.diff(cluster[by_cluster])) + 1):
        if len(members):
            order = members[farthest_first(vectors[members], centres[cluster[members[0]]])]
            cosine[order], nearest[order] = _earlier(vectors[order], order)
    return cosine, nearest


def farthest_first(vectors: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """The order of a cluster's unit vectors by their cosine distance from its centre."""
    return np.argsort(vectors @ (centre / max(float(np.linalg.norm(centre)), 1e-12)), kind="stable")


def clustered(vectors: np.ndarray, clusters: int, iterations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres (clusters, D), and the nearest centre of each vector (n,). One thread: the same bits each time."""
    import faiss

    if not len(vectors):
        return vectors[:0], np.empty(0, np.int64)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        kmeans = faiss.Kmeans(vectors.shape[1], clusters, niter=iterations, seed=seed, min_points_per_centroid=1)
        kmeans.train(vectors)
        _, nearest = kmeans.index.search(vectors, 1)
    finally:
        faiss.omp_set_num_threads(threads)
    return np.asarray(kmeans.centroids), nearest[:, 0]


def _earlier(vectors: np.ndarray, names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each vector the greatest cosine with one before it, and that one's name; -2 and -1 for the first."""
    cosine, nearest = np.full(len(vectors), -2, np.float32), np.full(len(vectors), -1, np.int64)
    for first in range(0, len(vectors), _ROWS):
        rows = vectors[first : first + _ROWS]
        last = first + len(rows)
        cosines = rows @ vectors[:last].T
        cosines[np.arange(last)[None, :] >= np.arange(first, last)[:, None]] = -2
        best = cosines.argmax(axis=1)
        cosine[first:last] = cosines[np.arange(len(rows)), best]
        nearest[first:last] = np.where(cosine[first:last] > -2, names[best], -1)
    return cosine, nearest
