"""Stage screen against a slow count in plain Python: every verdict, with its value, in the rules' order."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ingest import Here

from pipeline import ingest, screen
from pipeline.job import UP_TO_DATE, Job
from pipeline.recipe import Recipe
from pipeline.store.dataset import Dataset

RULES = {"max_images_per_text": 2, "min_words": 2, "max_words": 4, "vocabulary": 6}


def screened(folder: Path, pairs: list[tuple[str, str]], rules: dict[str, float], shards: int = 1) -> Dataset:
    """Run the two stages; the account that they keep is checked on the way."""
    path = folder / "list.parquet"
    urls, texts = zip(*pairs, strict=True)
    pq.write_table(pa.table({"url": pa.array(urls, pa.string()), "text": pa.array(texts, pa.string())}), path)
    dataset = Dataset(folder / "data")
    for stage in (ingest, screen):
        stage.run(Job(stage.__name__.rpartition(".")[2], recipe_of(path, rules, shards), dataset, Here()))
    return dataset


def recipe_of(path: Path, rules: dict[str, float], shards: int = 1) -> Recipe:
    return Recipe.model_validate(
        {"name": "t", "ingest": {"inputs": [str(path)], "shards": shards}, "screen": {"rules": rules}}
    )


def verdicts(dataset: Dataset) -> dict[str, list[tuple[str, float]]]:
    found = defaultdict(list)
    for path in dataset.screened.paths(".parquet"):
        for row in pq.read_table(path).to_pylist():
            assert row["stage"] == "screen"
            found[row["uid"]].append((row["rule"], row["value"]))
    return dict(found)


def of_texts(texts: list[str]) -> list[tuple[str, str]]:
    return [(f"http://a/{index}", text) for index, text in enumerate(texts)]


def value(folder: Path, texts: list[str], rule: str, threshold: float) -> list[float | None]:
    """The value of `rule`'s verdict on each text, None where it passes."""
    pairs = of_texts(texts)
    found = verdicts(screened(folder, pairs, {rule: threshold}))
    return [dict(found.get(reference.uid_of(url, reference.clean(text)), [])).get(rule) for url, text in pairs]


words = st.sampled_from(
    [
        "cat",
        "Cat",
        "CAT",
        "дом",
        "ДОМ",
        "猫",
        "शब्द",
        "ß",
        "é",
        "e\u0301",
        "a_b",
        "7",
        "१२",
        "naïve",
        "ΣΑΣ",
        "\u0e01\u0e33",
    ]
)
gaps = st.sampled_from([" ", "  ", "-", ", ", "'", "/", "\u00a0", "\u200b", " – ", "…", "😀"])  # noqa: RUF001


@st.composite
def texts(draw: Any) -> str:
    parts = draw(st.lists(st.tuples(words, gaps), max_size=6))
    return (
        draw(st.sampled_from(["", "«"]))
        + "".join(word + gap for word, gap in parts)
        + draw(st.sampled_from(["", "x", "!"]))
    )


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([f"http://a/{i}" for i in range(6)]), texts()), min_size=1, max_size=25),
    st.permutations(list(RULES)),
    st.integers(1, 3),
)
def test_any_corpus_is_judged_as_by_the_slow_count(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]], order: list[str], shards: int
) -> None:
    pairs = [*pairs, ("http://a/x", "x y z")]
    rules = {rule: RULES[rule] for rule in order}
    dataset = screened(tmp_path_factory.mktemp("any"), pairs, rules, shards)
    expected = reference.screen(reference.ingest(pairs).pairs, rules)
    assert verdicts(dataset) == expected
    counts = dataset.screened.manifest.counts()
    assert counts["dropped"] == len(expected)
    assert counts["pairs"] == counts["kept"] + counts["dropped"] == dataset.pairs.manifest.count("pairs")


@pytest.mark.parametrize(("images", "expected"), [(3, None), (4, 4.0)])
def test_a_text_shared_by_more_images_than_the_threshold_fails(tmp_path: Path, images: int, expected: float) -> None:
    assert value(tmp_path, ["the same"] * images, "max_images_per_text", 3) == [expected] * images


def test_sharing_counts_images_and_not_repeated_rows(tmp_path: Path) -> None:
    dataset = screened(
        tmp_path, [("http://a/1", "the same")] * 9 + [("http://a/2", "the same")], {"max_images_per_text": 2}
    )
    assert verdicts(dataset) == {}


def test_sharing_is_by_the_text_as_written(tmp_path: Path) -> None:
    assert value(tmp_path, ["A cat", "a cat", "a  cat "], "max_images_per_text", 1) == [None, 2.0, 2.0]


def test_too_few_and_too_many_words_fail_on_their_sides_of_the_thresholds(tmp_path: Path) -> None:
    texts = ["one two", "one two three", "one two three four", "one two three four five"]
    assert value(tmp_path / "few", make(tmp_path / "few", texts), "min_words", 3) == [2.0, None, None, None]
    assert value(tmp_path / "many", make(tmp_path / "many", texts), "max_words", 4) == [None, None, None, 5.0]


def make(folder: Path, texts: list[str]) -> list[str]:
    folder.mkdir()
    return texts


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("...!?", 0), ("😀 😀", 0), ("don't", 2), ("a_b-c", 2), ("naïve café", 2), ("e\u0301 x\u0301y", 2)),
        *(
            ("дом дерева", 2),
            ("猫が好き", 1),
            ("शब्द क्षत्रिय", 2),
            ("3.14", 2),
            ("١٢ ½ ²", 3),
            ("a\u200bb", 2),
            ("สวัสดี", 1),
        ),
    ],
)
def test_words_are_runs_of_letters_marks_numbers_and_underscores(tmp_path: Path, text: str, number: int) -> None:
    assert value(tmp_path, [text], "min_words", 99) == [float(number)]


def test_equals_share_a_rank_in_the_vocabulary(tmp_path: Path) -> None:
    # a: 3, b: 2, "a b": 2, c: 1, d: 1, "c d": 1 - so the ranks are 1, 2, 2, 4, 4, 4.
    texts = ["a b", "a b.", "a", "c d"]
    assert value(tmp_path / "3", make(tmp_path / "3", texts), "vocabulary", 3) == [None, None, None, 4.0]
    assert value(tmp_path / "4", make(tmp_path / "4", texts), "vocabulary", 4) == [None] * 4
    assert value(tmp_path / "1", make(tmp_path / "1", texts), "vocabulary", 1) == [2.0, 2.0, None, 4.0]


def test_a_text_without_words_has_no_rank_and_does_not_fail(tmp_path: Path) -> None:
    assert value(tmp_path, ["!!!", "a b"], "vocabulary", 1) == [None, None]


def test_the_vocabulary_counts_a_text_once_for_each_of_its_images(tmp_path: Path) -> None:
    assert value(tmp_path, ["rare", "rare", "rare", "one", "two"], "vocabulary", 1) == [None, None, None, 2.0, 2.0]


def test_a_pair_gets_a_verdict_of_every_rule_that_it_fails(tmp_path: Path) -> None:
    dataset = screened(tmp_path, of_texts(["x"] * 3), {"min_words": 3, "max_images_per_text": 2})
    assert set(map(tuple, verdicts(dataset).values())) == {(("min_words", 1.0), ("max_images_per_text", 3.0))}


def test_no_rules_keep_everything(tmp_path: Path) -> None:
    dataset = screened(tmp_path, of_texts(["x", "y"]), {})
    assert dataset.screened.manifest.counts() == {"pairs": 2, "kept": 2, "dropped": 0}


def test_another_threshold_or_another_order_is_made_again(tmp_path: Path) -> None:
    dataset = screened(tmp_path, of_texts(["one two"]), {"min_words": 2, "max_words": 5})

    def again(rules: dict[str, float]) -> str:
        return screen.run(Job("screen", recipe_of(tmp_path / "list.parquet", rules), dataset, Here()))

    assert again({"min_words": 2, "max_words": 5}) == UP_TO_DATE
    assert again({"min_words": 3, "max_words": 5}) != UP_TO_DATE
    assert len(verdicts(dataset)) == 1
    assert again({"max_words": 5, "min_words": 3}) != UP_TO_DATE


def test_extra_columns_of_any_name_do_not_disturb(tmp_path: Path) -> None:
    names = [
        "n",
        "words",
        "images_per_text",
        "frequency",
        "rank",
        "rarest_rank",
        "stage",
        "rule",
        "value",
        "ngram",
        "position",
    ]
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"url": ["http://a/1"], "text": ["one"], **{name: ["x"] for name in names}}), path)
    dataset = Dataset(tmp_path / "data")
    for stage in (ingest, screen):
        stage.run(Job(stage.__name__.rpartition(".")[2], recipe_of(path, RULES), dataset, Here()))
    assert list(verdicts(dataset).values()) == [[("min_words", 1.0)]]
