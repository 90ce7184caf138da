"""Signals that need counts over the whole corpus (ALIGN, section 3)."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

from pipeline.signals import Block, Column, Counted, Found
from pipeline.texts.words import text_keys


class Sharing:
    """images_per_text: pairs with this text; texts_per_url: pairs with this url. (url, text) is unique."""

    name = "sharing"
    columns = ("images_per_text", "texts_per_url")
    reads = ("url", "text")
    streams = ("text", "url")
    version = 1
    identity = None

    def find(self, block: Block) -> Found:
        return Found({}, {"text": text_keys(block["text"]), "url": text_keys(block["url"])})

    def gather(self, found: pa.Table, counted: Mapping[str, Counted]) -> dict[str, Column]:
        return {"images_per_text": counted["text"].frequencies, "texts_per_url": counted["url"].frequencies}


class Ngrams:
    """How rare the rarest word or pair of neighbouring words of a text is in the raw corpus, and its rarest word.

    The rank of an n-gram is 1 + the number of n-grams more frequent than it, so equals share a rank and none is cut off
    by the alphabet. Both are NULL for a text without words.
    """

    name = "ngrams"
    columns = ("rarest_rank", "rarest_word_frequency")
    reads = ("text",)
    streams = ("ngram",)
    version = 1
    identity = None

    def find(self, block: Block) -> Found:
        return Found({"words": block.measured.words}, {"ngram": block.measured.ngram_keys})

    def gather(self, found: pa.Table, counted: Mapping[str, Counted]) -> dict[str, Column]:
        words = found["words"].to_numpy()
        grams = counted["ngram"]
        rarest, rarest_word = _rarest(grams.frequencies, words)
        wordless = words == 0
        return {
            "rarest_rank": pa.array(grams.histogram.ranks(rarest), mask=wordless),
            "rarest_word_frequency": pa.array(rarest_word, mask=wordless),
        }


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _rarest(frequencies: NDArray[np.uint32], words: NDArray[np.int32]) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """The least frequency among each text's words and pairs, and among its words alone; 1 where it has no word.

    `frequencies` follow `Measured.ngram_keys`: word, pair, word, ..., word.
    """
    rarest = np.ones(len(words), np.uint32)
    rarest_word = np.ones(len(words), np.uint32)
    at = 0
    for row in range(len(words)):
        for gram in range(2 * words[row] - 1):
            frequency = frequencies[at]
            if gram == 0 or frequency < rarest[row]:
                rarest[row] = frequency
            if gram == 0 or (gram % 2 == 0 and frequency < rarest_word[row]):
                rarest_word[row] = frequency
            at += 1
    return rarest, rarest_word
