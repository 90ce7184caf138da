"""Tokenizers, trained and given; token sequences as arrays, against Python's lists."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pipeline.errors import PairmillError
from trainers.data import text
from trainers.data.loader import text_input
from trainers.data.sequences import Sequences
from trainers.data.text import (
    CLS,
    SEP,
    SPECIAL_TOKENS,
    Pieces,
    SpecialTokens,
    encode,
    load_tokenizer,
    sequences,
    special_tokens,
    train_tokenizer,
)

TEXTS = ["A red cat", "a red house, naïve", "the cat's house", "red ##a [MASK]"] * 3
LISTS = st.lists(st.lists(st.integers(0, 300), max_size=6), max_size=8)


def bert(path: Path, **pieces: int) -> Path:
    """A tokenizer.json whose special tokens have the numbers that BERT's have."""
    words = ["[PAD]", *(f"[unused{number}]" for number in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {piece: number for number, piece in enumerate([*words, "red", "cat", "##s", "##y", "a", ","])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary | pieces, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(path))
    return path


def roberta(path: Path) -> Path:
    """Byte-level pieces, each blank the beginning of a word, as RoBERTa has them."""
    pieces = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "<mask>",
        "a",
        "c",
        "t",
        "s",
        "\u0120",
        "\u0120c",
        "\u0120ca",
        "\u0120cat",
    ]
    merges = [("\u0120", "c"), ("\u0120c", "a"), ("\u0120ca", "t")]
    model = models.BPE({piece: number for number, piece in enumerate(pieces)}, merges, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(pieces[:5])
    tokenizer.save(str(path))
    return path


def test_special_tokens_have_fixed_numbers_and_frame_a_text() -> None:
    tokenizer = train_tokenizer(TEXTS, 200)
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(5))
    assert special_tokens(tokenizer) == SpecialTokens(0, 1, 2, 3, 4) == SpecialTokens()
    (tokens,) = encode(tokenizer, ["A RED cat"], 20)
    assert (tokens[0], tokens[-1]) == (CLS, SEP)
    assert tokenizer.decode(list(tokens)) == "a red cat"
    assert len(encode(tokenizer, ["red cat " * 50], 20)[0]) == 20


def test_the_same_texts_give_the_same_vocabulary_in_another_process() -> None:
    """The library's own trainer numbers pieces as a hash map yields them."""
    program = f"from trainers.data.text import train_tokenizer; print(train_tokenizer({TEXTS[::-1]!r}, 200).to_str())"
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert there.stdout.strip() == train_tokenizer(TEXTS, 200).to_str()


def test_a_given_tokenizer_keeps_its_numbers(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(bert(tmp_path / "tokenizer.json"), 30522)
    special = special_tokens(tokenizer)
    assert special == SpecialTokens(pad=0, unknown=100, cls=101, sep=102, mask=103)
    assert encode(tokenizer, ["red cats", "a dog"], 20) == [(101, 104, 105, 106, 102), (101, 108, 100, 102)]
    assert encode(tokenizer, ["red cats"], 4) == [(101, 104, 105, 102)]
    tokens = torch.tensor([[101, 104, 106, 102, 0], [1, 100, 103, 5, 99]])
    assert special.among(tokens).tolist() == [[True, False, False, True, True], [False, True, True, False, False]]
    batch = text_input(encode(tokenizer, ["red cats", "a"], 20), Pieces.of(tokenizer))
    assert batch.tokens.tolist() == [[101, 104, 105, 106, 102], [101, 108, 102, 0, 0]]
    assert batch.present.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert batch.continues is not None
    assert batch.continues.nonzero().tolist() == [[0, 3]]


def test_words_of_a_byte_level_tokenizer_go_on_where_no_blank_begins_them(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(roberta(tmp_path / "tokenizer.json"), 100)
    assert special_tokens(tokenizer) == SpecialTokens(pad=1, unknown=3, cls=0, sep=2, mask=4)
    batch = text_input(encode(tokenizer, ["cat cats", "cat"], 20), Pieces.of(tokenizer))
    pieces = [[tokenizer.id_to_token(token) for token in row] for row in batch.tokens.tolist()]
    assert pieces == [
        ["<s>", "\u0120cat", "\u0120cat", "s", "</s>"],
        ["<s>", "\u0120cat", "</s>", "<pad>", "<pad>"],
    ]
    assert batch.continues is not None
    assert batch.continues.nonzero().tolist() == [[0, 3]]


@pytest.mark.parametrize(
    ("content", "vocabulary", "said"),
    [
        (None, 200, "cannot read"),
        ('{"model": 5', 200, "cannot read"),
        ({}, 109, "has 110 pieces, and text.vocabulary is 109"),
        ({"far": 4000}, 200, "without holes"),
    ],
)
def test_a_tokenizer_that_will_not_do_is_refused(
    tmp_path: Path, content: str | dict[str, int] | None, vocabulary: int, said: str
) -> None:
    path = tmp_path / "tokenizer.json"
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        bert(path, **content)
    with pytest.raises(PairmillError, match=said):
        load_tokenizer(path, vocabulary)


def test_a_tokenizer_without_special_tokens_or_marks_is_refused(tmp_path: Path) -> None:
    words = {"cat": 0, "dog": 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="cat"))
    tokenizer.save(str(tmp_path / "bare.json"))
    with pytest.raises(PairmillError, match="PAD"):
        load_tokenizer(tmp_path / "bare.json", 200)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(tmp_path / "unmarked.json"))
    with pytest.raises(PairmillError, match="where a word begins"):
        load_tokenizer(tmp_path / "unmarked.json", 200)


def test_a_corpus_is_encoded_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "TEXTS_AT_ONCE", 5)
    tokenizer = train_tokenizer(TEXTS, 200)
    found = sequences(tokenizer, pa.array(TEXTS, pa.large_string()), 6)
    assert [tuple(row.tolist()) for row in found] == encode(tokenizer, TEXTS, 6)
    assert found.tokens.dtype == np.uint8
    assert len(sequences(tokenizer, pa.array([], pa.large_string()), 6)) == 0


@given(LISTS, LISTS, st.lists(st.integers(0, 7), max_size=12), st.integers(0, 9))
def test_sequences_are_as_lists(one: list[list[int]], other: list[list[int]], places: list[int], fill: int) -> None:
    some, more = Sequences.of(one), Sequences.of(other)
    assert [row.tolist() for row in some] == one
    assert some.lengths.tolist() == [len(row) for row in one]
    assert [row.tolist() for row in Sequences.together([some, more])] == one + other
    rows = [place for place in places if place < len(one)]
    assert [row.tolist() for row in some.at(np.array(rows, np.int64))] == [one[row] for row in rows]
    longest = max(map(len, one), default=0)
    assert some.padded(fill).tolist() == [row + [fill] * (longest - len(row)) for row in one]
    numbers = some.numbered().tolist()
    assert numbers == [list(dict.fromkeys(map(tuple, one))).index(tuple(row)) for row in one]
    both = min(len(one), len(other))
    behind = some.at(np.arange(both)).before(more.at(np.arange(both)))
    assert [row.tolist() for row in behind] == [a + b for a, b in zip(one, other, strict=False)]
