"""MetaCLIP's balancing over a list of queries (Xu et al. 2024, section 3 and algorithm 1), as a number for each pair.

MetaCLIP keeps a pair if any query that its text holds is drawn, each with the probability t / count, where `count` is
the query's number of pairs in the raw pool, or 1 where that is below t. Here u is the draw of (pair, query), uniform in
(0, 1): u < t / count is u * count < t. So the least u * count over the pair's queries says under which t it is kept,
and t is an ordinary threshold.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from pipeline.signals import Block, Column, Counted, Found
from pipeline.signals.entries import EntryFile
from pipeline.signals.phrases import find_phrases, phrases_of

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Queries:
    """query_draw: the least u * count over the queries that the text holds; infinite where it holds none.

    The file holds a query a line, as MetaCLIP's metadata: matched with its case, between blanks (see
    `pipeline.signals.phrases`). The draw hangs on the pair's uid, the query's words and the seed alone, so it is the
    same on every machine, and another query in the list changes no other one's draws.
    """

    name = "queries"
    columns = ("query_draw",)
    reads = ("uid", "text")
    streams = ("entry",)
    version = 1

    def __init__(self, path: str, seed: int) -> None:
        self.file = EntryFile.named(path, "screen.queries")
        self.seed = seed

    @property
    def identity(self) -> tuple[str, int]:
        return self.file.digest, self.seed

    def find(self, block: Block) -> Found:
        matches = find_phrases(block["text"], phrases_of(self.file))
        uids = np.repeat(_keys_of(block["uid"]), matches.per_text)
        bounds = np.concatenate([[0], np.cumsum(matches.per_text)])
        draws = pa.LargeListArray.from_arrays(pa.array(bounds, pa.int64()), _draws(uids, matches.keys, self.seed))
        return Found({"draws": draws}, {"entry": matches.keys})

    def gather(self, found: pa.Table, counted: Mapping[str, Counted]) -> dict[str, Column]:
        draws = found["draws"].combine_chunks()
        matches = draws.value_lengths().to_numpy()
        least = np.full(len(draws), np.inf)
        scaled = draws.flatten().to_numpy() * counted["entry"].frequencies
        np.minimum.at(least, np.repeat(np.arange(len(draws)), matches), scaled)
        return {"query_draw": least}


def _keys_of(uids: pa.Array) -> np.ndarray:
    """64 bits of each uid, a hexadecimal digest."""
    return np.array([int(uid[:16], 16) for uid in uids.to_pylist()], np.uint64)


def _draws(uids: np.ndarray, queries: np.ndarray, seed: int) -> np.ndarray:
    """Uniform in (0, 1), float64, one for each (uid, query): splitmix64 (Steele et al. 2014) over their keys."""
    state = _mixed(_mixed(uids ^ np.uint64(seed % 2**64)) ^ queries)
    return ((state >> np.uint64(11)) + 0.5) * 2.0**-53


def _mixed(state: np.ndarray) -> np.ndarray:
    state = state + _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
