import subprocess
import sys

from trainers.text import CLS, SEP, SPECIAL_TOKENS, encode, train_tokenizer

TEXTS = ["A red cat", "a red house, naïve", "the cat's house", "red ##a [MASK]"] * 3


def test_special_tokens_have_fixed_numbers_and_frame_a_text() -> None:
    tokenizer = train_tokenizer(TEXTS, 200)
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(5))
    (tokens,) = encode(tokenizer, ["A RED cat"], 20)
    assert (tokens[0], tokens[-1]) == (CLS, SEP)
    assert tokenizer.decode(list(tokens)) == "a red cat"
    assert len(encode(tokenizer, ["red cat " * 50], 20)[0]) == 20


def test_the_same_texts_give_the_same_vocabulary_in_another_process() -> None:
    """The library's own trainer numbers pieces as a hash map yields them."""
    program = f"from trainers.text import train_tokenizer; print(train_tokenizer({TEXTS[::-1]!r}, 200).to_str())"
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert there.stdout.strip() == train_tokenizer(TEXTS, 200).to_str()
