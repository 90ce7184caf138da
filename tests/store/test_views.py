"""The catalog's views and macros, against the slow way and against the stages themselves."""

from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_dataset import Image, jpeg, made_dataset, run_filter, uid_of, write_screened

from pipeline import catalog
from pipeline.store.dataset import Dataset
from pipeline.store.features import Column, FeatureStore, ImageFeatures, write_features
from pipeline.store.table import Shard
from pipeline.store.views.comments import MACROS, VIEWS

RULES = {
    "side_above": 100,
    "aspect_below": 3,
    "max_copies": 1,
    "max_bytes": 20_000,
    "no_red": {"keep_if": "text <> 'red'"},
}
LABELS = ["dog", "cat", "it's", '"quoted"']


def picture(seed: int) -> bytes:
    return jpeg(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def corpus(folder: Path, count: int = 60) -> Dataset:
    """Pairs of all fates: some without an image, some screened out, copies, sides and sizes of all kinds."""
    random = np.random.default_rng(5)
    images = [
        Image(
            f"http://h{n % 3}.example/{n}",
            picture(n % 50),
            status="http_404" if n % 11 == 3 else "ok",
            original=(int(random.integers(40, 400)), int(random.integers(40, 400))),
            bytes=int(random.integers(1, 30)) * 1000,
        )
        for n in range(count)
    ]
    pairs = [(image.url, text) for n, image in enumerate(images) for text in (f"text {n % 50}", "red")[: 1 + n % 2]]
    screened = [pair for n, pair in enumerate(pairs) if n % 7 == 0]
    return made_dataset(folder, pairs, [images[: count // 2], images[count // 2 :]], screened)


def add_regions(dataset: Dataset) -> dict[str, list[tuple[str | None, float, list[float]]]]:
    """Boxes of all images, the first that of the whole image; returns key -> (label, confidence, box)."""
    with dataset.connect() as connection:
        keys = [
            key for (key,) in connection.execute("SELECT key FROM images WHERE status = 'ok' ORDER BY key").fetchall()
        ]
    random, truth, rows = np.random.default_rng(3), {}, []
    for key in keys:
        n = int(random.integers(1, 5))
        boxes = np.sort(random.random((n, 2, 2)), axis=1).reshape(n, 4).astype(np.float32)
        classes = random.integers(0, len(LABELS), n).astype(np.int32)
        classes[0] = -1
        confidences = random.random(n).astype(np.float32)
        features = random.normal(size=(n, 3)).astype(np.float16)
        rows.append(
            ImageFeatures(
                key, n, {"boxes": boxes, "classes": classes, "confidences": confidences, "features": features}
            )
        )
        truth[key] = [
            (LABELS[label] if label >= 0 else None, float(confidence), [float(edge) for edge in box])
            for label, confidence, box in zip(classes, confidences, boxes, strict=True)
        ]
    columns = {
        "boxes": Column("float32", (4,)),
        "classes": Column("int32"),
        "confidences": Column("float32"),
        "features": Column("float16", (3,), tensor=True),
    }
    table = dataset.features("region")
    identity = {
        "kind": "region",
        "model": "made up",
        "trained": True,
        "classes": LABELS,
        "settings": {"dtype": "float16"},
    }
    identity |= {"columns": {name: column.described for name, column in columns.items()}}
    with table.writing("k", {"00000": "k"}) as writing:
        write_features(table.folder / "00000.parquet", rows, columns, identity)
        writing.add(Shard.of(table.folder, "00000", "k", ["00000.parquet"], {"rows": len(rows)}))
        writing.commit({"identity": identity})
    return truth


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    dataset = corpus(tmp_path_factory.mktemp("views"))
    run_filter(dataset, RULES)
    return dataset


@pytest.fixture(scope="module")
def truth(dataset: Dataset) -> dict[str, list[tuple[str | None, float, list[float]]]]:
    return add_regions(dataset)


@pytest.fixture
def connection(dataset: Dataset, truth: Any) -> Iterator[duckdb.DuckDBPyConnection]:
    catalog.refresh(dataset)
    with duckdb.connect(str(dataset.catalog), read_only=True) as connection:
        yield connection


def rows(dataset: Dataset, query: str) -> list[tuple[Any, ...]]:
    with dataset.connect() as connection:
        return connection.execute(query).fetchall()


@pytest.mark.parametrize("view", ["verdicts", "drops", "kept", "funnel", "splits"])
def test_what_filter_settled_is_what_all_tables_together_say(
    dataset: Dataset, view: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dataset.is_settled
    settled = rows(dataset, f"FROM {view} ORDER BY ALL")
    monkeypatch.setattr(Dataset, "is_settled", False)
    assert settled
    assert rows(dataset, f"FROM {view} ORDER BY ALL") == settled


def test_verdicts_of_other_pictures_settle_nothing(tmp_path: Path) -> None:
    dataset = corpus(tmp_path)
    assert not dataset.is_settled
    run_filter(dataset, RULES)
    assert dataset.is_settled
    (dataset.images.folder / "manifest.json").unlink()
    assert not dataset.is_settled
    corpus(tmp_path, count=40)
    assert not dataset.is_settled
    kept = {uid for (uid,) in rows(dataset, "SELECT uid FROM kept")}
    assert kept <= {uid for (uid,) in rows(dataset, "SELECT uid FROM pairs")}
    run_filter(dataset, RULES)
    assert dataset.is_settled


def test_every_pair_has_one_fate(dataset: Dataset) -> None:
    fates = Counter(uid for (uid,) in rows(dataset, "SELECT uid FROM drops UNION ALL SELECT uid FROM kept"))
    assert fates == Counter(uid for (uid,) in rows(dataset, "SELECT uid FROM pairs"))


def test_kept_pairs_stand_at_the_first_copy(dataset: Dataset) -> None:
    query = (
        "SELECT kept.key, contents.key, kept.split = contents.split FROM kept JOIN images USING (url) "
        "JOIN contents USING (sha256)"
    )
    assert all(key == first and same for key, first, same in rows(dataset, query))


NUMBERS = ["side_above", "aspect_below", "max_copies", "max_bytes"]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rule=st.sampled_from(NUMBERS), at=st.integers(0, 60))
def test_would_keep_is_what_filter_then_keeps(
    tmp_path_factory: pytest.TempPathFactory, dataset: Dataset, rule: str, at: int
) -> None:
    values = [value for (value,) in rows(dataset, f"SELECT DISTINCT {rule} FROM filtered ORDER BY 1")]
    threshold = float(values[at % len(values)])
    catalog.refresh(dataset)
    with duckdb.connect(str(dataset.catalog), read_only=True) as connection:
        query = f"FROM would_keep('{rule}', {threshold!r})"
        asked, then, now, kept, undecided, exact = connection.execute(query).fetchone()  # type: ignore[misc]
    again = corpus(tmp_path_factory.mktemp("again"))
    run_filter(again, RULES | {rule: threshold})
    assert (asked, then, undecided, exact) == (rule, threshold, 0, True)
    assert [(now,)] == rows(dataset, "SELECT count(*) FROM kept")
    assert [(kept,)] == rows(again, "SELECT count(*) FROM kept")


def test_would_keep_of_a_screen_rule_tells_what_was_never_downloaded(connection: duckdb.DuckDBPyConnection) -> None:
    ((now, screened),) = connection.execute(
        "SELECT (SELECT count(*) FROM kept), (SELECT count(*) FROM screened WHERE failures > 0)"
    ).fetchall()
    looser = connection.execute("SELECT now, kept, undecided, exact FROM would_keep('min_words', 1)").fetchall()
    assert looser == [(now, now, screened, False)]
    stricter = connection.execute("SELECT now, kept, undecided FROM would_keep('min_words', 6)").fetchall()
    assert stricter == [(now, 0, 0)]


def test_while_filter_is_behind_nothing_is_exact_and_only_what_passes_screen_counts(tmp_path: Path) -> None:
    dataset = corpus(tmp_path)
    run_filter(dataset, RULES)
    uids = [uid for (uid,) in rows(dataset, "SELECT uid FROM pairs ORDER BY uid")]
    shards = {"0000": uids[: len(uids) // 2], "0001": uids[len(uids) // 2 :]}
    write_screened(dataset, shards, uids[::2])
    catalog.refresh(dataset)
    with duckdb.connect(str(dataset.catalog), read_only=True) as connection:
        asked = connection.execute("SELECT now, kept, exact FROM would_keep('side_above', 100)").fetchall()
        now = connection.execute("SELECT count(*) FROM kept").fetchall()[0][0]
        judged = connection.execute(
            "SELECT count(*) FROM filtered WHERE uid IN (FROM unnest(?))", [uids[::2]]
        ).fetchall()
    assert judged == [(0,)]
    assert asked[0][0] == now
    assert asked[0][1] <= now
    assert not asked[0][2]


def test_the_present_threshold_changes_nothing(connection: duckdb.DuckDBPyConnection) -> None:
    for rule, threshold in connection.execute("SELECT rule, threshold FROM rules WHERE takes = 'number'").fetchall():
        query = f"SELECT now = kept, undecided, exact FROM would_keep('{rule}', {threshold!r})"
        assert connection.execute(query).fetchall() == [(True, 0, True)]


@pytest.mark.parametrize("call", ["would_keep('side_above', NULL)", "would_keep(NULL, 1)"])
def test_would_keep_of_nothing_is_an_error(connection: duckdb.DuckDBPyConnection, call: str) -> None:
    with pytest.raises(duckdb.Error, match="compares numbers"):
        connection.execute(f"FROM {call}").fetchall()


def test_would_keep_refuses_what_is_no_number(connection: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(duckdb.Error, match="compares numbers: min_words, side_above"):
        connection.execute("FROM would_keep('no_red', 1)").fetchall()


@pytest.mark.parametrize("threshold", ["'nan'", "'nan'::DOUBLE", "'three'", "[3]"])
def test_would_keep_refuses_a_threshold_that_is_no_number(
    connection: duckdb.DuckDBPyConnection, threshold: str
) -> None:
    with pytest.raises(duckdb.Error, match="the threshold must be a number"):
        connection.execute(f"FROM would_keep('side_above', {threshold})").fetchall()


def test_why_tells_each_rule_and_where_the_pair_fell(connection: duckdb.DuckDBPyConnection) -> None:
    drops = dict(connection.execute("SELECT uid, rule FROM drops").fetchall())
    for (uid,) in connection.execute("SELECT uid FROM pairs").fetchall():
        told = connection.execute("SELECT rule, verdict, value FROM why(?)", [uid]).fetchall()
        assert [rule for rule, verdict, _ in told if verdict == "failed: it fell here"] == (
            [drops[uid]] if uid in drops else []
        )
        passed = {rule for rule, verdict, _ in told if verdict == "passed"}
        assert uid in drops or passed == {"min_words", *RULES}
        failed = {rule for rule, verdict, _ in told if verdict.startswith("failed")}
        assert failed == {
            rule for (rule,) in connection.execute("SELECT rule FROM verdicts WHERE uid = ?", [uid]).fetchall()
        }
    assert connection.execute("FROM why('nobody')").fetchall() == []


def test_regions_are_the_stores_boxes(connection: duckdb.DuckDBPyConnection, dataset: Dataset, truth: Any) -> None:
    found: dict[str, list[Any]] = {}
    query = "SELECT key, label, confidence, box, area FROM regions"
    for key, label, confidence, box, area in connection.execute(query).fetchall():
        found.setdefault(key, []).append((label, confidence, list(box.values())))
        assert area == pytest.approx((box["x2"] - box["x1"]) * (box["y2"] - box["y1"]), abs=1e-6)
    assert found == truth
    assert len(FeatureStore.open(dataset.root, "region")) == len(found)
    uids = connection.execute("SELECT DISTINCT key, uid FROM regions").fetchall()
    kept = dict(connection.execute("SELECT key, min(uid) FROM kept GROUP BY key").fetchall())
    assert all(uid == kept.get(key) for key, uid in uids)


def test_labels_seen_together(connection: duckdb.DuckDBPyConnection, truth: Any) -> None:
    together: Counter[tuple[str, str]] = Counter()
    for boxes in truth.values():
        labels = sorted({label for label, confidence, _ in boxes if label and confidence >= 0.4})
        together.update(combinations(labels, 2))
    found = connection.execute("SELECT label, other, images, lift FROM label_cooccurrence(minimum := 0.4)").fetchall()
    assert {(label, other): images for label, other, images, _ in found} == dict(together)
    alone = Counter(
        label for boxes in truth.values() for label in {label for label, confidence, _ in boxes if confidence >= 0.4}
    )
    for label, other, images, lift in found:
        assert lift == pytest.approx(images * len(truth) / (alone[label] * alone[other]))


def test_each_view_column_and_macro_says_what_it_is(connection: duckdb.DuckDBPyConnection) -> None:
    views = connection.execute("SELECT view_name, comment FROM duckdb_views() WHERE NOT internal").fetchall()
    assert {name for name, _ in views} <= set(VIEWS)
    assert all(comment for _, comment in views)
    columns = connection.execute(
        "SELECT view_name, column_name, columns.comment FROM duckdb_columns() AS columns JOIN duckdb_views() AS views "
        "ON table_oid = view_oid WHERE NOT views.internal"
    ).fetchall()
    assert len(columns) > 50
    assert [(view, name) for view, name, comment in columns if not comment] == []
    macros = (
        "SELECT function_name, comment FROM duckdb_functions() WHERE function_type = 'table_macro' AND NOT internal"
    )
    assert dict(connection.execute(macros).fetchall()).items() <= MACROS.items()


def test_a_class_that_was_named_to_break_out_is_a_label(connection: duckdb.DuckDBPyConnection) -> None:
    labels = {label for (label,) in connection.execute("SELECT DISTINCT label FROM regions").fetchall()}
    assert labels == {*LABELS, None}


def test_measured_values_are_those_of_the_verdicts(dataset: Dataset) -> None:
    for stage, view in (("screen", "screened"), ("filter", "filtered")):
        columns = [name for (name, *_) in rows(dataset, f"DESCRIBE {view}") if name not in ("uid", "failures")]
        assert columns == [
            rule for rule in (["min_words"] if stage == "screen" else RULES) if rule in (*NUMBERS, "min_words")
        ]
        for rule in columns:
            query = (
                f'SELECT count(*), count(*) FILTER (verdicts.value = {view}."{rule}") '
                f"FROM verdicts JOIN {view} USING (uid) WHERE stage = '{stage}' AND rule = '{rule}'"
            )
            ((verdicts, equal),) = rows(dataset, query)
            assert verdicts == equal > 0
    failures = rows(dataset, "SELECT uid, count(*) FROM verdicts WHERE stage = 'filter' GROUP BY uid ORDER BY uid")
    assert failures == rows(dataset, "SELECT uid, failures FROM filtered WHERE failures > 0 ORDER BY uid")


def test_the_uid_is_the_pairs(dataset: Dataset) -> None:
    assert {uid for (uid,) in rows(dataset, "SELECT uid FROM pairs")} >= {uid_of("http://h0.example/0", "text 0")}
