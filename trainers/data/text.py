"""Texts to token sequences: a WordPiece vocabulary trained on the corpus, or a given tokenizer.json."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from pipeline.errors import PairmillError
from trainers.data.sequences import Sequences

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""A trained tokenizer's own, with the numbers 0 to 4. A given one has others, which `SpecialTokens` tells."""
PAD, UNKNOWN, CLS, SEP, MASK = range(5)
INSIDE = "##"
"""What marks a piece that does not begin a word."""
BEGINNING = ("\u0120", "\u2581")
"""What marks one that does, in byte-level BPE (RoBERTa) and SentencePiece."""
TEXTS_AT_ONCE = 10_000


@dataclass(frozen=True)
class SpecialTokens:
    """The numbers of the pieces that are no text. Models and objectives carry these and not the tokenizer."""

    pad: int = PAD
    unknown: int = UNKNOWN
    cls: int = CLS
    sep: int = SEP
    mask: int = MASK

    @property
    def numbers(self) -> tuple[int, ...]:
        return astuple(self)

    def among(self, tokens: Tensor) -> Tensor:
        """Integers of any shape -> bool: which are no text."""
        return torch.isin(tokens, torch.tensor(self.numbers, device=tokens.device))


OWN_SPECIAL_TOKENS = SpecialTokens()
"""Those of a vocabulary that was trained here."""

_NAMES: dict[str, tuple[str, ...]] = {
    "pad": ("[PAD]", "<pad>"),
    "unknown": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
"""What BERT's family and RoBERTa's call them."""


def train_tokenizer(texts: Sequence[str] | pa.LargeStringArray, vocabulary: int) -> Tokenizer:
    """Lower-cased, accent-stripped WordPiece (BERT's) of about `vocabulary` pieces, trained on distinct `texts`.

    The same texts give the same vocabulary, in any order and on any machine.
    """
    # Sorted by Arrow, in order of the characters' numbers as Python does: a corpus is no list of Python's strings.
    distinct = (texts if isinstance(texts, pa.LargeStringArray) else pa.array(texts, pa.large_string())).unique().sort()
    learner = _wordpiece({})
    # The library numbers the pieces inside words as a hash map happens to yield them, and breaks ties between merges
    # by number. Naming these pieces up front, in order, leaves nothing to chance; the tokenizer is then built anew,
    # without them as special tokens.
    normalized = (learner.normalizer.normalize_str(text) for text in chain.from_iterable(blocks(distinct)))
    inside = sorted(INSIDE + character for character in set(chain.from_iterable(normalized)))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=[*SPECIAL_TOKENS, *inside], min_frequency=2, show_progress=False
    )
    learner.train_from_iterator(blocks(distinct), trainer)
    return _wordpiece(learner.get_vocab())


def load_tokenizer(path: Path | str, vocabulary: int) -> Tokenizer:
    """A tokenizer.json of BERT's or RoBERTa's family, made to write [CLS] text [SEP] in its own numbers.

    Raises PairmillError where it cannot be read, has more than `vocabulary` pieces, holes between their numbers, lacks
    a special token, or does not mark where words begin.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise PairmillError(f"cannot read the tokenizer {path}: {error}", "correct text.tokenizer") from None
    pieces = tokenizer.get_vocab()
    if len(pieces) > vocabulary:
        raise PairmillError(
            f"{path} has {len(pieces):,} pieces, and text.vocabulary is {vocabulary:,}",
            f"set text.vocabulary = {len(pieces)}",
        )
    if sorted(pieces.values()) != list(range(len(pieces))):
        raise PairmillError(f"the pieces of {path} are not numbered from 0 without holes", "name another tokenizer")
    special = special_tokens(tokenizer)
    continuing(tokenizer)
    names = {number: piece for piece, number in pieces.items()}
    ends = [(names[number], number) for number in (special.sep, special.cls)]
    tokenizer.post_processor = processors.BertProcessing(*ends)
    return tokenizer


def special_tokens(tokenizer: Tokenizer) -> SpecialTokens:
    """The numbers of its special tokens. Raises PairmillError where it lacks one."""
    found: dict[str, int] = {}
    for field, names in _NAMES.items():
        numbers = [number for name in names if (number := tokenizer.token_to_id(name)) is not None]
        if not numbers:
            raise PairmillError(
                f"the tokenizer has none of {', '.join(names)}", "name a tokenizer of BERT's or RoBERTa's family"
            )
        found[field] = numbers[0]
    return SpecialTokens(**found)


def continuing(tokenizer: Tokenizer) -> np.ndarray:
    """(vocabulary,) bool: which pieces go on with a word that one before began. Raises PairmillError if none says."""
    pieces = tokenizer.get_vocab()
    inside = str(json.loads(tokenizer.to_str())["model"].get("continuing_subword_prefix") or "")
    goes_on: Callable[[str], bool]
    if inside:
        goes_on = lambda piece: piece.startswith(inside)  # noqa: E731
    elif any(piece.startswith(BEGINNING) for piece in pieces):
        goes_on = lambda piece: not piece.startswith(BEGINNING)  # noqa: E731
    else:
        raise PairmillError(
            "the tokenizer's pieces mark neither where a word begins nor where it goes on",
            "name a WordPiece (##), byte-level or SentencePiece tokenizer",
        )
    marks = np.zeros(len(pieces), bool)
    marks[[number for piece, number in pieces.items() if goes_on(piece)]] = True
    marks[list(special_tokens(tokenizer).numbers)] = False
    return marks


@dataclass(frozen=True, eq=False)
class Pieces:
    """What a batch must know of its tokenizer."""

    special: SpecialTokens
    continues: np.ndarray
    """(vocabulary,) bool: which pieces go on with a word that one before began."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Pieces":
        return cls(special_tokens(tokenizer), continuing(tokenizer))


def blocks(texts: pa.LargeStringArray) -> Iterator[list[str]]:
    """The texts in order, as Python's strings, some thousands at a time."""
    for first in range(0, len(texts), TEXTS_AT_ONCE):
        yield texts.slice(first, TEXTS_AT_ONCE).to_pylist()


def encode(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> list[tuple[int, ...]]:
    """Token numbers of each text, [CLS] and [SEP] included, at most `max_tokens` of them; not padded."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return [tuple(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]


def sequences(tokenizer: Tokenizer, texts: pa.LargeStringArray, max_tokens: int) -> Sequences:
    """`encode` of a corpus; never more than some thousands of its texts are Python's."""
    dtype = np.min_scalar_type(tokenizer.get_vocab_size())
    parts = [Sequences.of(encode(tokenizer, block, max_tokens), dtype) for block in blocks(texts)]
    return Sequences.together([Sequences.of([], dtype), *parts])


def _wordpiece(vocabulary: Mapping[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(dict(vocabulary), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    if vocabulary:
        tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer
