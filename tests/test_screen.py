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

from pipeline import ingest, screen
from pipeline.engine import InlineEngine
from pipeline.errors import PairmillError
from pipeline.job import UP_TO_DATE, Job
from pipeline.recipe import Recipe
from pipeline.store.dataset import Dataset

RULES = {"max_images_per_text": 2, "min_words": 2, "max_words": 4, "vocabulary": 6}


def screened(folder: Path, pairs: list[tuple[str, str]], rules: dict[str, Any], shards: int = 1) -> Dataset:
    """Run the two stages; the account that they keep is checked on the way."""
    path = folder / "list.parquet"
    urls, texts = zip(*pairs, strict=True)
    pq.write_table(pa.table({"url": pa.array(urls, pa.string()), "text": pa.array(texts, pa.string())}), path)
    dataset = Dataset(folder / "data")
    for stage in (ingest, screen):
        stage.run(Job(stage.__name__.rpartition(".")[2], recipe_of(path, rules, shards), dataset, InlineEngine()))
    return dataset


def recipe_of(path: Path, rules: dict[str, Any], shards: int = 1) -> Recipe:
    return Recipe.model_validate(
        {"name": "t", "ingest": {"inputs": [str(path)], "shards": shards}, "screen": {"rules": rules}}
    )


def verdicts(dataset: Dataset) -> dict[str, list[tuple[str, float]]]:
    found = defaultdict(list)
    for path in dataset.screened.paths(".verdicts.parquet"):
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
        ("A black cat sleeps on the mat", 7),
        ("Die Katze schläft, sagt's der Großmutter", 6),
        ("Чёрная кошка спит на коврике", 5),
        ("बिल्ली चटाई पर सो रही है", 6),
        ("قطة سوداء تنام على السجادة", 5),
        ("一只黑猫睡在垫子上", 6),
        ("黒い猫がマットの上で寝ている", 10),
        ("แมวสีดำนอนอยู่บนเสื่อ", 7),
        ("고양이가 매트 위에서 잔다", 4),
        ("...!? 😀 😀", 0),
    ],
)
def test_words_are_counted_in_every_language(tmp_path: Path, text: str, number: int) -> None:
    assert value(tmp_path, [text], "min_words", 99) == [float(number)]
    assert value(make_folder(tmp_path / "more"), [text], "min_words", number) == [None]


def make_folder(folder: Path) -> Path:
    folder.mkdir()
    return folder


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


def test_a_rule_of_the_recipes_own_is_sql_over_columns_and_signals(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    table = {"url": ["http://a/1", "http://a/2", "http://a/3"], "text": ["one two", "one", "one two three"]}
    pq.write_table(pa.table({**table, "score": [0.9, 0.9, None]}), path)
    rules = {"liked": {"keep_if": "score > 0.5 AND words = 2"}, "short": {"keep_if": "length(text) < 5"}}
    dataset = Dataset(tmp_path / "data")
    for stage in (ingest, screen):
        stage.run(Job(stage.__name__.rpartition(".")[2], recipe_of(path, rules), dataset, InlineEngine()))
    with dataset.connect() as connection:
        rows = connection.execute("SELECT text, rule FROM verdicts JOIN pairs USING (uid) ORDER BY ALL").fetchall()
    assert rows == [("one", "liked"), ("one two", "short"), ("one two three", "liked"), ("one two three", "short")]


@pytest.mark.parametrize(
    "condition",
    [
        "nonsense > 3",
        "text >",
        "1; DROP TABLE signals",
        "'x'::INT > 3",
        "foo(words)",
        "regexp_matches(text, '(')",
        "text = ?",
    ],
)
def test_broken_sql_of_the_recipes_own_is_named(tmp_path: Path, condition: str) -> None:
    with pytest.raises(PairmillError, match="mine"):
        screened(tmp_path, of_texts(["one two"]), {"mine": {"keep_if": condition}})


def test_another_threshold_measures_nothing_again(tmp_path: Path) -> None:
    dataset = screened(tmp_path, of_texts(["one two", "one two three"]), {"vocabulary": 2})
    before = {path: path.stat().st_mtime_ns for path in (dataset.root / "signals").rglob("*")}
    assert before
    screen.run(Job("screen", recipe_of(tmp_path / "list.parquet", {"vocabulary": 3}), dataset, InlineEngine()))
    assert {path: path.stat().st_mtime_ns for path in (dataset.root / "signals").rglob("*")} == before


def test_what_was_found_stands_in_the_verdict(tmp_path: Path) -> None:
    texts = ["mail me@example.org for prints", "IMG_1234.JPG", "a sunny day", "Ein schöner Tag am See in den Bergen"]
    rules = {"no_email": True, "no_boilerplate": True, "languages": ["en"], "blocked_extensions": ["gif"]}
    path = tmp_path / "list.parquet"
    urls = ["http://a/1.png", "http://a/2.png", "http://a/3.gif?x=1", "http://a/4"]
    pq.write_table(pa.table({"url": urls, "text": texts}), path)
    dataset = Dataset(tmp_path / "data")
    for stage in (ingest, screen):
        stage.run(Job(stage.__name__.rpartition(".")[2], recipe_of(path, rules), dataset, InlineEngine()))
    with dataset.connect() as connection:
        found = set(connection.execute("SELECT url, rule, detail FROM verdicts JOIN pairs USING (uid)").fetchall())
    assert found >= {
        ("http://a/1.png", "no_email", "me@example.org"),
        ("http://a/2.png", "no_boilerplate", "IMG_1234.JPG"),
        ("http://a/3.gif?x=1", "blocked_extensions", "gif"),
        ("http://a/4", "languages", "de"),
    }


def test_another_threshold_or_another_order_is_made_again(tmp_path: Path) -> None:
    dataset = screened(tmp_path, of_texts(["one two"]), {"min_words": 2, "max_words": 5})

    def again(rules: dict[str, float]) -> str:
        return screen.run(Job("screen", recipe_of(tmp_path / "list.parquet", rules), dataset, InlineEngine()))

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
        stage.run(Job(stage.__name__.rpartition(".")[2], recipe_of(path, RULES), dataset, InlineEngine()))
    assert list(verdicts(dataset).values()) == [[("min_words", 1.0)]]
