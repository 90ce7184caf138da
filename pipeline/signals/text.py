"""Signals of the text by itself."""

from collections.abc import Mapping

import pyarrow as pa

from pipeline.signals import Block, Column, Counted, Found
from pipeline.texts.words import repetition_ratios


class _Local:
    """A group that needs no counts of the whole corpus."""

    streams: tuple[str, ...] = ()
    identity = None
    columns: tuple[str, ...]

    def gather(self, found: pa.Table, counted: Mapping[str, Counted]) -> dict[str, Column]:
        return {name: found[name] for name in self.columns}


class Text(_Local):
    """words, characters; repetition: the share of the words that repeat an earlier one of the text."""

    name = "text"
    columns = ("words", "characters", "repetition")
    reads = ("text",)
    version = 1

    def find(self, block: Block) -> Found:
        return Found({name: getattr(block.measured, name) for name in self.columns})


class Repetition(_Local):
    """Data-Juicer's ratios: the share of the runs of 10 characters, or words, that occur more than once in the text."""

    name = "repetition"
    columns = ("character_repetition", "word_repetition")
    reads = ("text",)
    version = 1

    def find(self, block: Block) -> Found:
        characters, words = repetition_ratios(block["text"])
        return Found({"character_repetition": characters, "word_repetition": words})
