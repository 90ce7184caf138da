"""Texts to token sequences: a WordPiece vocabulary trained on the corpus.

The special tokens' numbers are fixed, so that models and objectives need not carry the tokenizer with them.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import pyarrow as pa
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNKNOWN, CLS, SEP, MASK = range(5)
INSIDE = "##"
"""What marks a piece that does not begin a word."""


TEXTS_AT_ONCE = 10_000


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


def blocks(texts: pa.LargeStringArray) -> Iterator[list[str]]:
    """The texts in order, as Python's strings, some thousands at a time."""
    for first in range(0, len(texts), TEXTS_AT_ONCE):
        yield texts.slice(first, TEXTS_AT_ONCE).to_pylist()


def encode(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> list[tuple[int, ...]]:
    """Token numbers of each text, [CLS] and [SEP] included, at most `max_tokens` of them; not padded."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return [tuple(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]


def _wordpiece(vocabulary: Mapping[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(dict(vocabulary), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    if vocabulary:
        tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer
