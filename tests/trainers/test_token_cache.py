"""Kept tokens are those that would be made anew, whatever became of the files."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from trainers.data import token_cache
from trainers.data.text import sequences, train_tokenizer
from trainers.data.token_cache import TokenCache

TEXTS = pa.array(
    [f"text {number} of the {'red' if number % 2 else 'blue'} cat" for number in range(50)], pa.large_string()
)


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was made anew."""
    calls: list[str] = []

    def watched(name: str, made: Any) -> Any:
        return lambda *given: calls.append(name) or made(*given)

    monkeypatch.setattr(token_cache, "train_tokenizer", watched("tokenizer", train_tokenizer))
    monkeypatch.setattr(token_cache, "sequences", watched("sequences", sequences))
    monkeypatch.setattr(token_cache, "WORTHWHILE", 10)
    return calls


def used(folder: Path, texts: pa.LargeStringArray = TEXTS, vocabulary: int = 60, max_tokens: int = 6) -> None:
    """Ask for both, and compare."""
    cache = TokenCache(folder)
    tokenizer = cache.tokenizer([texts.slice(0, 20), texts.slice(20)], vocabulary)
    assert tokenizer.to_str() == train_tokenizer(texts, vocabulary).to_str()
    found, expected = cache.sequences(tokenizer, texts, max_tokens), sequences(tokenizer, texts, max_tokens)
    assert np.array_equal(found.tokens, expected.tokens)
    assert found.tokens.dtype == expected.tokens.dtype
    assert np.array_equal(found.starts, expected.starts)


def test_the_same_is_made_once(tmp_path: Path, made: list[str]) -> None:
    used(tmp_path)
    used(tmp_path)
    assert made == ["tokenizer", "sequences"]


def test_whatever_is_different_is_made_anew(tmp_path: Path, made: list[str]) -> None:
    used(tmp_path)
    used(tmp_path, max_tokens=7)
    assert made.count("tokenizer") == 1
    used(tmp_path, vocabulary=50)
    used(tmp_path, TEXTS.slice(1))
    joined = pa.array([TEXTS[0].as_py() + TEXTS[1].as_py(), "", *TEXTS[2:].to_pylist()], pa.large_string())
    used(tmp_path, joined)  # the same bytes, otherwise divided
    assert (made.count("tokenizer"), made.count("sequences")) == (4, 5)


@pytest.mark.parametrize("content", [b"", b"{", b"\x02" + bytes(40)], ids=["empty", "short", "other"])
def test_damaged_files_are_made_again(tmp_path: Path, made: list[str], content: bytes) -> None:
    used(tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(content)
    used(tmp_path)
    used(tmp_path)
    assert made == ["tokenizer", "sequences"] * 2


def test_what_is_long_unused_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[str]) -> None:
    monkeypatch.setattr(token_cache, "MOST_FILES", 4)
    for number, vocabulary in enumerate((60, 50)):
        used(tmp_path, vocabulary=vocabulary)
        for path in tmp_path.iterdir():
            if path.stat().st_mtime > 100:
                os.utime(path, (number, number))
    used(tmp_path, vocabulary=60)  # touches its files
    used(tmp_path, vocabulary=55)
    made.clear()
    used(tmp_path, vocabulary=60)
    assert made == []
    assert len(list(tmp_path.iterdir())) == 4


def test_small_corpora_are_not_kept(tmp_path: Path) -> None:
    few = TEXTS.slice(0, 9)
    cache = TokenCache(tmp_path / "tokens")
    cache.sequences(cache.tokenizer([few], 100), few, 6)
    assert not (tmp_path / "tokens").exists()
