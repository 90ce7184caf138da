"""The feature store: what is written comes back, and what cannot be right is refused."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import PairmillError
from pipeline.store.features import Column, FeatureStore, ImageFeatures, write_features
from pipeline.store.table import Shard, Table

DTYPES = ["float16", "float32", "uint8", "int16", "int32"]


def store(folder: Path, shards: list[list[ImageFeatures]], columns: dict[str, Column]) -> FeatureStore:
    table = Table(folder, "extract")
    keys = {f"{index:05d}": "key" for index in range(len(shards))}
    with table.writing("key", keys) as writing:
        for name, rows in zip(keys, shards, strict=True):
            written = write_features(folder / f"{name}.parquet", rows, columns)
            writing.add(Shard.of(folder, name, "key", [f"{name}.parquet"], {"rows": written}))
        writing.commit({"identity": {"kind": "made up", "columns": {name: asdict(c) for name, c in columns.items()}}})
    return FeatureStore(table)


columns = st.dictionaries(
    st.sampled_from(["features", "boxes", "classes", "x"]),
    st.builds(Column, st.sampled_from(DTYPES), st.lists(st.integers(1, 3), max_size=2).map(tuple), st.booleans()),
    min_size=1,
)


@settings(max_examples=40, deadline=None)
@given(columns, st.lists(st.lists(st.integers(0, 4), max_size=90), min_size=1, max_size=3), st.integers(0, 99))
def test_what_is_written_comes_back(
    tmp_path_factory: pytest.TempPathFactory, columns: dict[str, Column], sizes: list[list[int]], seed: int
) -> None:
    draw = np.random.default_rng(seed)
    shards, number = [], 0
    for shard in sizes:
        rows = []
        for n in shard:
            arrays = {name: draw.integers(0, 200, (n, *c.shape)).astype(c.dtype) for name, c in columns.items()}
            rows.append(ImageFeatures(f"{number:09d}", n, arrays))
            number += 1
        shards.append(rows)
    read = store(tmp_path_factory.mktemp("any"), [list(reversed(rows)) for rows in shards], columns)
    wanted = [row for rows in shards for row in rows]
    assert read.keys == [row.key for row in wanted]
    assert len(read) == len(wanted)
    for row in reversed(wanted):
        found = read[row.key]
        assert (found.key, found.n) == (row.key, row.n)
        for name, column in columns.items():
            assert found[name].dtype == column.dtype
            np.testing.assert_array_equal(found[name], row[name])


def row(value: float = 1.0, n: int = 2) -> ImageFeatures:
    return ImageFeatures("000000000", n, {"features": np.full((2, 3), value, np.float32)})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 70_000.0])
@pytest.mark.parametrize("tensor", [True, False])
def test_what_is_not_finite_as_stored_is_refused(tmp_path: Path, value: float, tensor: bool) -> None:
    with pytest.raises(ValueError, match="image 000000000 holds NaN or infinity"):
        write_features(tmp_path / "0.parquet", [row(value)], {"features": Column("float16", (3,), tensor)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(), (2,), (3, 1)])
def test_another_shape_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="has shape"):
        write_features(tmp_path / "0.parquet", [row()], {"features": Column("float16", shape)})


def test_another_number_of_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has shape"):
        write_features(tmp_path / "0.parquet", [row(n=3)], {"features": Column("float16", (3,))})


def test_the_bytes_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = [ImageFeatures(f"{i:09d}", 1, {"features": np.full((1, 3), i, np.float16)}) for i in range(200)]
    columns = {"features": Column("float16", (3,), tensor=True)}
    write_features(tmp_path / "a.parquet", rows, columns)
    write_features(tmp_path / "b.parquet", reversed(rows), columns)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def damaged(tmp_path: Path, damage: Any) -> FeatureStore:
    columns = {"features": Column("float16", (3,), tensor=True)}
    store(tmp_path / "store", [[row()]], columns)
    damage(tmp_path / "store" / "00000.parquet")
    return FeatureStore(Table(tmp_path / "store", "extract"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\0" * path.stat().st_size),
        lambda path: path.unlink(),
    ],
    ids=["no-footer", "head", "empty", "zeros", "missing"],
)
def test_a_damaged_shard_is_named_with_the_remedy(tmp_path: Path, damage: Any) -> None:
    with pytest.raises(PairmillError, match=r"00000\.parquet.*\n.*make extract"):
        damaged(tmp_path, damage)


def test_features_that_are_not_there_say_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(PairmillError, match="make extract"):
        FeatureStore(Table(tmp_path / "store", "extract"))
