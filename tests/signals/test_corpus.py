"""The signals that bring the corpus' counts back to each text."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.signals.corpus import _rarest


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=20), st.integers(0, 2**32 - 1))
def test_the_rarest_ngram_and_the_rarest_word_of_each_text(words: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    ngrams = [max(0, 2 * count - 1) for count in words]
    frequencies = rng.integers(1, 2**32, sum(ngrams)).astype(np.uint32)
    parts = np.split(frequencies, np.cumsum(ngrams)[:-1]) if words else []
    rarest, rarest_word = _rarest(frequencies, np.array(words, np.int32))
    assert rarest.tolist() == [min(part.tolist(), default=1) for part in parts]
    assert rarest_word.tolist() == [min(part.tolist()[::2], default=1) for part in parts]
