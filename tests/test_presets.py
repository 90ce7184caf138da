"""The ready-made sets of rules: each threshold of each, with pairs on both sides of it, before the real judge."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import ingest, screen
from pipeline.engine import InlineEngine
from pipeline.errors import PairmillError
from pipeline.job import Job
from pipeline.recipe import Recipe, load
from pipeline.store.dataset import Dataset
from pipeline.store.verdicts import asked_rules, with_cutoffs, write_shard

FOLDER = Path(__file__).parent.parent / "recipes" / "rules"


@dataclass(frozen=True)
class Edge:
    """One threshold of one paper: a measure that is just kept, and one that is just not."""

    threshold: Any
    column: str
    kept: Any
    dropped: Any


NSFW = Edge(0.5, "nsfw", 0.5, 0.5001)
ENGLISH = Edge(("en",), "language", "en", "de")

# The papers' numbers, written down a second time.
PRESETS: dict[str, dict[str, dict[str, Edge]]] = {
    "align": {
        "screen": {
            "max_images_per_text": Edge(10, "images_per_text", 10, 11),
            "min_words": Edge(3, "words", 3, 2),
            "max_words": Edge(20, "words", 20, 21),
            "vocabulary": Edge(100_000_000, "rarest_rank", 100_000_000, 100_000_001),
        },
        "filter": {
            "side_above": Edge(200, "shorter_side", 201, 200),
            "aspect_below": Edge(3, "aspect", 2.999, 3.0),
            "max_texts_per_image": Edge(1000, "texts_per_image", 1000, 1001),
            "max_nsfw": NSFW,
        },
    },
    "cc12m": {
        "screen": {
            "min_words": Edge(3, "words", 3, 2),
            "max_words": Edge(256, "words", 256, 257),
            "max_repetition": Edge(0.2, "repetition", 0.2, 0.2001),
            "min_word_frequency": Edge(20, "rarest_word_frequency", 20, 19),
            "blocked_extensions": Edge(
                ("png", "gif", "webp", "bmp", "tif", "tiff", "svg", "ico", "avif", "heic"),
                "url",
                "http://a.net/b.php?c=d.png",
                "http://a.net/b.PNG?c=d.jpg",
            ),
        },
        "filter": {
            "side_above": Edge(400, "shorter_side", 401, 400),
            "max_aspect": Edge(2.5, "aspect", 2.5, 2.501),
            "max_nsfw": NSFW,
        },
    },
    "laion": {
        "screen": {"languages": ENGLISH, "min_characters": Edge(5, "characters", 5, 4)},
        "filter": {
            "min_bytes": Edge(5000, "bytes", 5000, 4999),
            "min_clip_score": Edge(0.28, "clip_score", 0.28, 0.2799),
        },
    },
    "coyo": {
        "screen": {
            "languages": ENGLISH,
            "min_characters": Edge(6, "characters", 6, 5),
            "max_characters": Edge(1000, "characters", 1000, 1001),
            "min_words": Edge(3, "words", 3, 2),
            "max_words": Edge(256, "words", 256, 257),
            "max_images_per_text": Edge(10, "images_per_text", 10, 11),
        },
        "filter": {
            "min_bytes": Edge(5000, "bytes", 5000, 4999),
            "max_aspect": Edge(3.0, "aspect", 3.0, 3.001),
            "min_side": Edge(200, "shorter_side", 200, 199),
            "max_nsfw": NSFW,
            "max_look_alikes": Edge(1, "look_alike", 1, 2),
        },
    },
    "datacomp-basic": {
        "screen": {
            "languages": ENGLISH,
            "min_words": Edge(3, "words", 3, 2),
            "min_characters": Edge(6, "characters", 6, 5),
        },
        "filter": {"min_side": Edge(200, "shorter_side", 200, 199), "max_aspect": Edge(3.0, "aspect", 3.0, 3.001)},
    },
    "datacomp-clip30": {"screen": {}, "filter": {"top_clip_fraction": Edge(0.3, "clip_score", 0.7, 0.6)}},
    "metaclip": {
        "screen": {"languages": ENGLISH, "balanced_queries": Edge(20_000, "query_draw", 20_000.0, 20_000.1)},
        "filter": {},
    },
}
EDGES = [
    (preset, stage, name, edge)
    for preset, stages in PRESETS.items()
    for stage, edges in stages.items()
    for name, edge in edges.items()
    if name != "top_clip_fraction"  # it hangs on the pool: a test of its own below
]


def extended(folder: Path, preset: str, more: str = "") -> Recipe:
    """A recipe that takes the preset in."""
    path = folder / "recipe.toml"
    path.write_text(f'extends = "{FOLDER / preset}.toml"\nname = "t"\n{more}')
    return load(path)


def rules_of(recipe: Recipe, stage: str) -> dict[str, Any]:
    return dict((recipe.screen if stage == "screen" else recipe.filter).rules)


def judged(
    folder: Path, rules: dict[str, Any], stage: str, rows: list[dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """uid -> verdicts of pairs, whose uids are their places in `rows`."""
    with duckdb.connect() as connection:
        connection.register("signals", pa.Table.from_pylist([{"uid": str(n), **row} for n, row in enumerate(rows)]))
        asked = with_cutoffs(asked_rules(stage, rules), connection, "signals")
        shard = write_shard(connection, asked, "signals", folder, "0", "key")
    verdicts = pq.read_table(folder / "0.verdicts.parquet").to_pylist()
    assert shard.counts["pairs"] == len(rows) == shard.counts["kept"] + shard.counts["dropped"]
    return {str(n): [v for v in verdicts if v["uid"] == str(n)] for n in range(len(rows))}


def test_every_preset_is_here() -> None:
    assert {path.stem for path in FOLDER.glob("*.toml")} == set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_holds_its_papers_rules_and_no_other(tmp_path: Path, preset: str) -> None:
    recipe = extended(tmp_path, preset)
    for stage, edges in PRESETS[preset].items():
        assert rules_of(recipe, stage) == {name: edge.threshold for name, edge in edges.items()}
    assert recipe.ingest is None
    assert recipe.download == Recipe(name="t").download
    model = {"laion": "ViT-B-32-quickgelu", "datacomp-clip30": "ViT-L-14-quickgelu"}.get(preset)
    assert (recipe.filter.clip and recipe.filter.clip.model) == model


@pytest.mark.parametrize(
    ("preset", "stage", "name", "edge"), EDGES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_pair_on_each_side_of_each_threshold(tmp_path: Path, preset: str, stage: str, name: str, edge: Edge) -> None:
    edges = PRESETS[preset][stage]
    # Every rule of the preset judges every pair.
    good = {other.column: other.kept for other in edges.values()}
    rows = [{**good, edge.column: edge.kept}, {**good, edge.column: edge.dropped}, {**good, edge.column: None}]
    kept, dropped, unmeasured = judged(tmp_path, rules_of(extended(tmp_path, preset), stage), stage, rows).values()
    assert kept == []
    assert unmeasured == []
    (verdict,) = dropped
    assert (verdict["stage"], verdict["rule"]) == (stage, name)
    if isinstance(edge.dropped, str):
        assert (verdict["value"], verdict["detail"]) == (None, "png" if edge.column == "url" else edge.dropped)
    else:
        assert (verdict["value"], verdict["detail"]) == (pytest.approx(edge.dropped), None)


@pytest.mark.parametrize("preset", [preset for preset, stages in PRESETS.items() if len(stages["screen"]) > 1])
def test_a_pair_that_fails_everything_is_told_everything(tmp_path: Path, preset: str) -> None:
    for stage, edges in PRESETS[preset].items():
        bad = {edge.column: edge.dropped for edge in edges.values()}
        if not bad:
            continue
        rules = rules_of(extended(tmp_path, preset), stage)
        (verdicts,) = judged(tmp_path, rules, stage, [bad]).values()
        # words cannot be too few and too many
        told = [name for name, edge in edges.items() if bad[edge.column] == edge.dropped]
        assert [verdict["rule"] for verdict in verdicts] == told


def test_clip30_keeps_what_equals_the_score_at_its_rank(tmp_path: Path) -> None:
    rules = rules_of(extended(tmp_path, "datacomp-clip30"), "filter")

    def kept(scores: list[float | None]) -> list[float | None]:
        found = judged(tmp_path, rules, "filter", [{"clip_score": score} for score in scores])
        return [score for score, verdicts in zip(scores, found.values(), strict=True) if not verdicts]

    tenths = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert kept(tenths) == [0.7, 0.8, 0.9, 1.0]
    assert kept([0.5] * 7) == [0.5] * 7
    assert kept([0.9, 0.8, 0.8, 0.8, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]) == [0.9, 0.8, 0.8, 0.8]
    assert kept([0.3]) == [0.3]
    for n in (11, 100, 999):
        scores = [i / n for i in range(n)]
        cutoff = sorted(scores, reverse=True)[int(0.3 * n)]
        assert kept(scores) == [score for score in scores if score >= cutoff]


def screened(folder: Path, preset: str, pairs: list[tuple[str, str]], more: str = "") -> dict[str, list[str]]:
    """text -> the rules that it fails, through the stages `ingest` and `screen`."""
    urls, texts = zip(*pairs, strict=True)
    pq.write_table(pa.table({"url": urls, "text": texts}), folder / "list.parquet")
    recipe = extended(folder, preset, f'[ingest]\ninputs = ["{folder / "list.parquet"}"]\n{more}')
    dataset = Dataset(folder / "data")
    for stage in (ingest, screen):
        stage.run(Job(stage.__name__.rpartition(".")[2], recipe, dataset, InlineEngine()))
    with dataset.connect() as connection:
        rows = connection.execute(
            "SELECT text, list(rule ORDER BY rule) FILTER (rule IS NOT NULL) FROM pairs "
            "LEFT JOIN verdicts USING (uid) GROUP BY ALL"
        ).fetchall()
        return {text: rules or [] for text, rules in rows}


def words(n: int) -> str:
    """n words that no other text has, none twice."""
    return " ".join(f"word{n}x{i}" for i in range(n))


def shared(text: str, times: int) -> list[tuple[str, str]]:
    return [(f"http://a.net/{text.replace(' ', '-')}/{n}.jpg", text) for n in range(times)]


def alone(*texts: str) -> list[tuple[str, str]]:
    return [(f"http://b.net/{n}.jpg", text) for n, text in enumerate(texts)]


def test_align_on_texts(tmp_path: Path) -> None:
    pairs = [
        *alone(words(2), words(3), words(20), words(21)),
        *shared("on ten images", 10),
        *shared("on eleven images", 11),
    ]
    assert screened(tmp_path, "align", pairs) == {
        words(2): ["min_words"],
        words(3): [],
        words(20): [],
        words(21): ["max_words"],
        "on ten images": [],
        "on eleven images": ["max_images_per_text"] * 11,
    }


def test_cc12m_on_texts(tmp_path: Path) -> None:
    common = shared("very common words about something else", 20)
    texts = {
        "very common": ["min_words"],
        "very common words": [],
        "very common words about about": [],  # 1 of 5 repeats: 0.2 itself is kept
        "very common very common words about something else": ["max_repetition"],  # 2 of 8
        "very common words rarely": ["min_word_frequency"],
        "very": ["min_words"],
    }
    found = screened(tmp_path, "cc12m", [*common, *alone(*texts), ("http://c.net/x.PNG", "very common something")])
    assert found.pop("very common words about something else") == []
    assert found == {**texts, "very common something": ["blocked_extensions"]}


ENGLISH_TEXT = "A small brown dog runs across the green field after a ball"
GERMAN_TEXT = "Ein kleiner brauner Hund läuft über die grüne Wiese hinter einem Ball her"


@pytest.mark.parametrize("preset", ["laion", "coyo", "datacomp-basic"])
def test_english_on_texts(tmp_path: Path, preset: str) -> None:
    found = screened(tmp_path, preset, alone(ENGLISH_TEXT, GERMAN_TEXT))
    assert found == {ENGLISH_TEXT: [], GERMAN_TEXT: ["languages"]}


@pytest.mark.parametrize(
    ("preset", "texts"),
    [
        ("laion", {"四文字だ": ["min_characters"], "五文字です": [], "ab c": ["min_characters"], "ab cd": []}),
        ("coyo", {"a b c": ["min_characters"], "a b cd": [], "abc def": ["min_words"], words(256): ["max_characters"]}),
        (
            "coyo",
            {
                "a " * 255 + "a": [],
                "a " * 256 + "a": ["max_words"],
                "a b " + "c" * 996: [],
                "a b " + "c" * 997: ["max_characters"],
            },
        ),
        ("datacomp-basic", {"a b c": ["min_characters"], "a b cd": [], "abc def": ["min_words"]}),
    ],
)
def test_lengths_on_texts(tmp_path: Path, preset: str, texts: dict[str, list[str]]) -> None:
    assert screened(tmp_path, preset, alone(*texts), "[screen.rules]\nlanguages = false\n") == texts


def test_metaclip_on_texts(tmp_path: Path) -> None:
    (tmp_path / "queries.txt").write_text("brown dog\nzebra\n")
    pairs = [*alone(ENGLISH_TEXT, "A zebra stands on the plain, looking at us", "The cat is sleeping on the old sofa")]
    pairs += [(f"http://c.net/{n}", f"This brown dog is called number {n}") for n in range(400)]
    more = f'[screen]\nqueries = "{tmp_path / "queries.txt"}"\n'
    kept = screened(tmp_path, "metaclip", pairs, more)
    assert [text for text, rules in kept.items() if rules] == ["The cat is sleeping on the old sofa"]

    fewer = screened(tmp_path, "metaclip", pairs, more + "[screen.rules]\nbalanced_queries = 40\n")
    dogs = [rules for text, rules in fewer.items() if "brown dog" in text]
    assert all(rules in ([], ["balanced_queries"]) for rules in dogs)
    assert 40 - 5 * 6 < dogs.count([]) < 40 + 5 * 6  # five standard deviations of the binomial
    assert fewer["A zebra stands on the plain, looking at us"] == []
    assert fewer["The cat is sleeping on the old sofa"] == ["balanced_queries"]


def test_metaclip_asks_for_its_list(tmp_path: Path) -> None:
    with pytest.raises(PairmillError, match=r"balanced_queries needs \[screen\] queries"):
        screened(tmp_path, "metaclip", alone(ENGLISH_TEXT))


def test_the_documents_example_extends_changes_switches_off_and_adds(tmp_path: Path) -> None:
    document = (FOLDER.parent.parent / "docs" / "rules.md").read_text(encoding="utf-8")
    (example,) = [block for block in re.findall(r"```toml\n(.*?)```", document, re.DOTALL) if "extends" in block]
    shutil.copytree(FOLDER, tmp_path / "rules")
    (tmp_path / "mine.toml").write_text(example)
    rules = rules_of(load(tmp_path / "mine.toml"), "screen")
    assert list(rules.items()) == [("max_images_per_text", 10), ("min_words", 3), ("max_words", 30), ("no_email", True)]
    assert rules_of(load(tmp_path / "mine.toml"), "filter") == rules_of(extended(tmp_path, "align"), "filter")


def test_the_documents_own_rules_judge(tmp_path: Path) -> None:
    document = (FOLDER.parent.parent / "docs" / "rules.md").read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```toml\n(.*?)```", document, re.DOTALL) if "keep_if" in block]
    own = "\n".join(line for block in blocks for line in block.splitlines() if "keep_if" in line)
    more = f"[screen.rules]\nlanguages = false\nmin_words = false\nmin_characters = false\n{own}\n"
    pairs = alone(ENGLISH_TEXT, GERMAN_TEXT, "BUY NOW", "drei kleine Hunde", "Please buy now, it is very cheap")
    assert screened(tmp_path, "datacomp-basic", pairs, more) == {
        ENGLISH_TEXT: [],
        GERMAN_TEXT: ["short_or_english"],
        "BUY NOW": ["no_shouting", "polite"],
        "drei kleine Hunde": [],
        "Please buy now, it is very cheap": ["polite"],
    }
