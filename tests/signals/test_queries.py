"""MetaCLIP's matching and balancing against slow ones in plain Python, pair by pair."""

import pickle
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b, md5
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.errors import PairmillError
from pipeline.signals import Block, Counted
from pipeline.signals.phrases import find_phrases, phrases
from pipeline.signals.queries import Queries


def held(text: str, queries: Sequence[str]) -> set[str]:
    """By the definition: a query between blanks is a substring of the text with its marks set apart."""
    spaced = f" {text} "
    for mark in ",.;:?!`":
        spaced = spaced.replace(mark, f" {mark} ")
    for blank in "\t\n\r":
        spaced = spaced.replace(blank, " ")
    return {query for query in queries if f" {query} " in spaced}


def matched(texts: list[str], queries: list[str], kind: pa.DataType | None = None) -> list[set[str]]:
    known = phrases(queries)
    found = find_phrases(pa.array(texts, kind or pa.string()), known)
    names = dict(zip(known.keys.tolist(), dict.fromkeys(queries), strict=True))
    ends = np.cumsum(found.per_text)
    sets = [
        [names[key] for key in found.keys[end - n : end].tolist()] for n, end in zip(found.per_text, ends, strict=True)
    ]
    assert all(len(names) == len(set(names)) for names in sets), "each (text, query) once"
    return [set(names) for names in sets]


letters = st.sampled_from(
    ["a", "b", "aa", "A", "é", "猫", " ", " ", " ", ",", ".", "`", "\t", "\n", "\r", "'", "-", "\u00a0"]
)
lines = st.lists(letters, max_size=12).map("".join)


@settings(max_examples=250, deadline=None)
@given(st.lists(lines, max_size=6), st.lists(lines.map(str.strip).filter(bool), max_size=8))
@example(["a b a b a"], ["a b a", "b a b", "a", "b", "a b a b a", "a b a b a b"])
@example(["a\rb\tb\na"], ["a b b a", "a", "b b"])
@example(["a,b"], ["a b", "a", ",", "a , b", "a  b", ", b"])
@example(["st. louis"], ["st. louis", "st", "louis", "st .", "st .  louis"])
@example(["new  york", "new york", "New York", "new yorker"], ["new york", "york", "New York"])
def test_matches_as_the_definition_has_it(texts: list[str], queries: list[str]) -> None:
    assert matched(texts, queries) == [held(text, queries) for text in texts]
    assert matched(texts, queries, pa.large_string()) == [held(text, queries) for text in texts]


def test_matches_in_real_sentences() -> None:
    queries = ["dog", "brown dog", "Dog", "hot dog", "the", "犬", "chien brun", "été"]
    texts = ["The brown dog, a dog.", "hotdog", "HOT DOG", "hot dog!", "un chien brun en été", "犬 と 猫", "犬と猫"]
    found = [{"dog", "brown dog"}, set(), set(), {"dog", "hot dog"}, {"chien brun", "été"}, {"犬"}, set()]
    assert matched(texts, queries) == found


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_reads_a_slice_of_a_column(kind: pa.DataType) -> None:
    column = pa.array(["x", "a", "a b", "b", "x"], kind)
    found = find_phrases(column[1:4], phrases(["a", "a b"]))
    assert found.per_text.tolist() == [1, 2, 0]
    assert find_phrases(column[5:], phrases(["a"])).per_text.tolist() == []


def test_nothing_matches_an_empty_list() -> None:
    assert matched(["a", "", " "], []) == [set(), set(), set()]


def test_a_hostile_text_is_read_in_good_time() -> None:
    # Quadratic ways: every place begins a long phrase; one text holds very many matches; one huge token.
    texts = ["a " * 1_000_000, "x" * 2_000_000, "," * 1_000_000]
    queries = [" ".join("a" * n) for n in range(1, 60)] + [","]
    found = find_phrases(pa.array(texts), phrases(queries))
    assert found.per_text.tolist() == [59, 0, 1]


def written(folder: Path, queries: Sequence[str], name: str = "queries.txt") -> str:
    path = folder / name
    path.write_text("\n".join(queries) + "\n", encoding="utf-8")
    return str(path)


def uid_of(name: object) -> str:
    return md5(str(name).encode()).hexdigest()


def draws_of(group: Queries, blocks: Sequence[Sequence[tuple[str, str]]]) -> dict[str, float]:
    """uid -> query_draw of blocks of (uid, text), counted over all of them, as the stage does it."""
    found = []
    for block in blocks:
        uids, texts = [uid for uid, _ in block], [text for _, text in block]
        rows = pa.record_batch({"uid": pa.array(uids, pa.string()), "text": pa.array(texts, pa.string())})
        found.append((uids, group.find(Block(rows))))
    counts = Counter(key for _, f in found for key in f.keys["entry"].tolist())
    result: dict[str, float] = {}
    for uids, f in found:
        frequencies = np.array([counts[key] for key in f.keys["entry"].tolist()], np.uint32)
        ranks: Any = None  # not looked at
        signals = group.gather(pa.table(dict(f.columns)), {"entry": Counted(frequencies, ranks)})
        result |= dict(zip(uids, signals["query_draw"].tolist(), strict=True))
    return result


def draw(uid: str, query: str, seed: int) -> float:
    """u of a (pair, query), in whole numbers of any size."""

    def mixed(state: int) -> int:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        return state ^ state >> 31

    key = int.from_bytes(blake2b(query.encode(), digest_size=8).digest())
    return ((mixed(mixed(int(uid, 16) >> 64 ^ seed % 2**64) ^ key) >> 11) + 0.5) / 2**53


words = st.sampled_from(["cat", "dog", "red", "big", "house"])
texts = st.lists(words, max_size=5).map(" ".join)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(texts, max_size=6), max_size=4), st.integers(-5, 2**70), st.sampled_from([0.5, 1, 2, 3.7, 20]))
def test_keeps_the_pairs_that_metaclip_keeps(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[list[str]], seed: int, t: float
) -> None:
    queries = ["cat", "red dog", "house", "dog", "zebra", "big big"]
    pairs = [[(uid_of((i, j)), text) for j, text in enumerate(block)] for i, block in enumerate(blocks)]
    group = Queries(written(tmp_path_factory.getbasetemp(), queries), seed)
    found = draws_of(group, pairs)

    pool = [(uid, held(text, queries)) for block in pairs for uid, text in block]
    counts = Counter(query for _, matches in pool for query in matches)
    least = {uid: min((draw(uid, q, seed) * counts[q] for q in matches), default=inf) for uid, matches in pool}
    assert found == pytest.approx(least, rel=1e-12)
    # Algorithm 1, with its own bookkeeping: counts below t are raised to it, any success keeps.
    probability = {query: t / max(count, t) for query, count in counts.items()}
    kept = {uid for uid, matches in pool if any(draw(uid, q, seed) < probability[q] for q in matches)}
    assert {uid for uid, value in found.items() if value <= t} == kept


def test_a_head_query_keeps_its_share_and_the_tail_everything(tmp_path: Path) -> None:
    # 20 000 pairs of one query, 300 of another, 5 000 that hold both a rare and the frequent one, 700 of none.
    texts = ["a cat"] * 15_000 + ["a zebra"] * 300 + [f"cat number{i // 10}" for i in range(5_000)] + ["nothing"] * 700
    queries = ["cat", "zebra", *(f"number{i}" for i in range(500))]
    pairs = [(uid_of(i), text) for i, text in enumerate(texts)]
    group = Queries(written(tmp_path, queries), 7)
    draws = np.array(list(draws_of(group, [pairs[:9_000], pairs[9_000:]]).values()))

    t = 2_000
    kept = draws <= t
    # The binomial's 5 standard deviations around t / count of each pair.
    assert abs(kept[:15_000].sum() - 15_000 * t / 20_000) < 5 * (15_000 * 0.1 * 0.9) ** 0.5
    assert kept[15_000:20_300].all()
    assert not kept[20_300:].any()
    assert np.isinf(draws[20_300:]).all()
    # u itself is uniform: a Kolmogorov-Smirnov distance that chance exceeds once in ten thousand.
    u = np.sort(draws[:15_000] / 20_000)
    steps = np.arange(15_000)
    assert max((u - steps / 15_000).max(), ((steps + 1) / 15_000 - u).max()) < 2.23 / 15_000**0.5
    assert ((u > 0) & (u < 1)).all()


def test_another_seed_draws_anew_and_another_query_changes_no_draw(tmp_path: Path) -> None:
    pairs = [(uid_of(i), "a cat") for i in range(200)]
    plain = draws_of(Queries(written(tmp_path, ["cat"], "1"), 1), [pairs])
    more = draws_of(Queries(written(tmp_path, ["aardvark", "cat", "dog"], "2"), 1), [pairs])
    other = draws_of(Queries(written(tmp_path, ["cat"], "3"), 2), [pairs])
    assert plain == more
    assert abs(np.corrcoef(list(plain.values()), list(other.values()))[0, 1]) < 0.3
    # Pinned: a dataset made elsewhere, or last year, was drawn the same way.
    assert plain[uid_of(0)] / 200 == pytest.approx(0.960684794906121, rel=1e-12)


def test_goes_to_workers(tmp_path: Path) -> None:
    group = Queries(written(tmp_path, ["cat"]), 3)
    again = pickle.loads(pickle.dumps(group))
    pairs = [(uid_of(0), "the cat"), (uid_of(1), "the dog")]
    assert draws_of(again, [pairs]) == draws_of(group, [pairs])
    assert again.identity == group.identity


def test_reads_the_file_as_it_may_come(tmp_path: Path) -> None:
    path = tmp_path / "q.txt"
    path.write_bytes("\ufeffcat\r\n\r\n  dog \r\ncat\r\n# no comment\n\x0bzebra\na\u2028b".encode())
    pairs = [(uid_of(i), text) for i, text in enumerate(["cat", "dog", "# no comment", "zebra", "a\u2028b", "nothing"])]
    draws = draws_of(Queries(str(path), 0), [pairs])
    assert [value < 1 for value in draws.values()] == [True] * 5 + [False]


def test_errors_name_the_file_the_line_and_the_key(tmp_path: Path) -> None:
    with pytest.raises(PairmillError, match=r"nowhere\.txt: No such file.*(?s:.)*screen\.queries"):
        Queries(str(tmp_path / "nowhere.txt"), 0)
    bad = tmp_path / "latin1.txt"
    bad.write_bytes("cat\nété\n".encode("latin-1"))
    group = Queries(str(bad), 0)
    with pytest.raises(PairmillError, match=r"latin1\.txt, line 2: not UTF-8"):
        draws_of(group, [[(uid_of(0), "cat")]])


def test_is_known_by_content_and_seed(tmp_path: Path) -> None:
    one = Queries(written(tmp_path, ["cat"], "1"), 0)
    assert one.identity == Queries(written(tmp_path, ["cat"], "2"), 0).identity
    assert one.identity != Queries(written(tmp_path, ["cat"], "1"), 1).identity
    assert one.identity != Queries(written(tmp_path, ["dog"], "3"), 0).identity
