"""Texts to token sequences: a WordPiece vocabulary trained on the corpus.

The special tokens' numbers are fixed, so that models and objectives need not carry the tokenizer with them.
"""

from collections.abc import Iterable, Mapping, Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNKNOWN, CLS, SEP, MASK = range(5)
INSIDE = "##"
"""What marks a piece that does not begin a word."""


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Lower-cased, accent-stripped WordPiece (BERT's) of about `vocabulary` pieces, trained on distinct `texts`.

    The same texts give the same vocabulary, in any order and on any machine.
    """
    distinct = sorted(set(texts))
    learner = _wordpiece({})
    # The library numbers the pieces inside words as a hash map happens to yield them, and breaks ties between merges
    # by number. Naming these pieces up front, in order, leaves nothing to chance; the tokenizer is then built anew,
    # without them as special tokens.
    inside = sorted({INSIDE + character for text in distinct for character in learner.normalizer.normalize_str(text)})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=[*SPECIAL_TOKENS, *inside], min_frequency=2, show_progress=False
    )
    learner.train_from_iterator(distinct, trainer)
    return _wordpiece(learner.get_vocab())


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
