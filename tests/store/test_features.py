"""The feature store: what is written comes back, in every way of reading, and what cannot be right is refused."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import PairmillError
from pipeline.store.features import (
    ROWS_PER_GROUP,
    SCALES,
    Column,
    FeatureStore,
    FeatureWriter,
    ImageFeatures,
    NotFiniteError,
    identity_digest,
    write_features,
)
from pipeline.store.features.columns import dequantised, quantised
from pipeline.store.table import Shard, Table

DTYPES = ["float16", "float32", "float64", "uint8", "int16", "int32", "int64", "uint64"]


def identity(columns: dict[str, Column], **more: Any) -> dict[str, Any]:
    return {"kind": "made up", "columns": {name: column.described for name, column in columns.items()}, **more}


def store(folder: Path, shards: list[list[ImageFeatures]], columns: dict[str, Column], **more: Any) -> FeatureStore:
    table = Table(folder, "extract")
    made_by = identity(columns, **more)
    keys = {f"{index:05d}": "key" for index in range(len(shards))}
    with table.writing("key", keys) as writing:
        for name, rows in zip(keys, shards, strict=True):
            written = write_features(folder / f"{name}.parquet", rows, columns, made_by)
            writing.add(Shard.of(folder, name, "key", [f"{name}.parquet"], {"rows": written}))
        writing.commit({"identity": made_by})
    return FeatureStore(table)


shapes = st.sampled_from([(), (1,), (3,), (2, 3)])
any_column = st.one_of(
    st.builds(Column, st.sampled_from(DTYPES), shapes, st.booleans(), st.booleans()),
    st.builds(Column, st.just("int8"), st.sampled_from([(1,), (4,), (2, 3)]), st.just(True)),
)
columns_of = st.fixed_dictionaries(
    {"features": any_column}, optional={"boxes": any_column, "classes": any_column, "pooled": any_column}
)


def rows_of(columns: dict[str, Column], sizes: Iterable[Iterable[int]], seed: int) -> list[list[ImageFeatures]]:
    draw = np.random.default_rng(seed)
    shards: list[list[ImageFeatures]] = []
    number = 0
    for shard in sizes:
        shards.append([])
        for n in shard:
            arrays = {
                name: draw.standard_normal(column.row_shape(n)).astype(np.float32)
                if column.quantised
                else draw.integers(0, 200, column.row_shape(n)).astype(column.dtype)
                for name, column in columns.items()
            }
            shards[-1].append(ImageFeatures(f"{number:09d}", n, arrays))
            number += int(draw.integers(1, 4))
    return shards


@settings(max_examples=60, deadline=None)
@given(columns_of, st.lists(st.lists(st.integers(0, 4), max_size=140), min_size=1, max_size=3), st.integers(0, 99))
def test_what_is_written_comes_back_in_every_way_of_reading(
    tmp_path_factory: pytest.TempPathFactory, columns: dict[str, Column], sizes: list[list[int]], seed: int
) -> None:
    shards = rows_of(columns, sizes, seed)
    read = store(tmp_path_factory.mktemp("any"), [list(reversed(rows)) for rows in shards], columns)
    wanted = {row.key: row for rows in shards for row in rows}
    assert list(read.keys()) == list(wanted)
    assert list(read.lengths()) == [(key, row.n) for key, row in wanted.items()]
    assert len(read) == len(wanted)
    for key, row in reversed(wanted.items()):
        found = read[key]
        assert (found.key, found.n) == (key, row.n)
        for name, column in columns.items():
            if column.quantised:
                slack = np.abs(row[name]).max(-1, initial=0, keepdims=True) / 127 / 2
                assert (np.abs(found[name] - row[name]) <= slack * (1 + 1e-5)).all()
            else:
                assert found[name].dtype == column.dtype
                np.testing.assert_array_equal(found[name], row[name])

    draw = np.random.default_rng(seed)
    for batch in [*read.stream(7), *read.stream(5, seed=seed, pool_groups=2)]:
        assert_is_padded(read, batch)
    for given_seed in (None, seed):
        streamed = [key for batch in read.stream(7, seed=given_seed, pool_groups=2) for key in batch.keys]
        assert sorted(streamed) == list(wanted)
        assert given_seed is not None or streamed == list(wanted)
    if wanted:
        keys = draw.choice(list(wanted), 9).tolist()
        assert_is_padded(read, read.gather(keys))
        positions = [draw.permutation(wanted[key].n)[: draw.integers(0, 3)] for key in keys]
        assert_is_padded(read, read.gather(keys, positions=positions), positions)


def assert_is_padded(read: FeatureStore, batch: Any, positions: list[np.ndarray] | None = None) -> None:
    """Row by row what `store[key]` gives, and zeros after it."""
    for at, key in enumerate(batch.keys):
        row = read[key]
        for name, column in read.columns.items():
            found = batch[name][at]
            if column.quantised:
                found = dequantised(found, batch[name + SCALES][at])
            wanted = row[name] if positions is None or column.per_image else row[name][positions[at]]
            if column.per_image:
                np.testing.assert_array_equal(found, wanted)
                continue
            assert batch.n[at] == len(wanted)
            np.testing.assert_array_equal(found[: len(wanted)], wanted)
            assert not found[len(wanted) :].any()


REGION = {
    "boxes": Column("float32", (4,)),
    "classes": Column("int16"),
    "topk_values": Column("float16", (3,)),
    "pooled": Column("float32", (5,), per_image=True),
    "features": Column("float16", (8,), tensor=True),
}


@pytest.fixture
def region(tmp_path: Path) -> FeatureStore:
    return store(tmp_path / "features" / "region", rows_of(REGION, [[3] * 70, [1, 2, 5]], 0), REGION)


def test_other_programs_read_the_same_numbers(region: FeatureStore, tmp_path: Path) -> None:
    """pyarrow and DuckDB are independent readers: the file is plain Parquet."""
    paths = sorted(str(path) for path in tmp_path.glob("features/region/*.parquet"))
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    sql = duckdb.sql(f"SELECT key, n, boxes, pooled, topk_values FROM read_parquet({paths}) ORDER BY key").fetchall()
    assert [row["key"] for row in rows] == [row[0] for row in sql] == list(region.keys())
    for row, (key, n, boxes, pooled, values) in zip(rows, sql, strict=True):
        features = region[key]
        np.testing.assert_array_equal(np.frombuffer(row["features"], "<f2").reshape(n, 8), features["features"])
        np.testing.assert_array_equal(np.reshape(boxes, (n, 4)), features["boxes"])
        np.testing.assert_array_equal(pooled, features["pooled"])
        np.testing.assert_array_equal(np.reshape(values, (n, 3)), features["topk_values"])


def test_every_bit_counts(region: FeatureStore, tmp_path: Path) -> None:
    """A flipped bit anywhere in the values is found when they are read, and named; nowhere is it taken for features."""
    path = tmp_path / "features" / "region" / "00000.parquet"
    whole = path.read_bytes()
    right = {key: region[key] for key in region}
    draw = np.random.default_rng(0)
    refused = 0
    for place in draw.integers(4, len(whole) - 8, 300).tolist():
        bad = bytearray(whole)
        bad[place] ^= 1 << int(draw.integers(8))
        path.write_bytes(bad)
        try:
            read = FeatureStore(Table(path.parent, "extract"))
            found = {key: read[key] for key in read}
        except PairmillError as error:
            refused += "00000.parquet" in str(error) and "make extract" in str(error)
            continue
        assert found.keys() == right.keys()
        for key, row in found.items():
            for name in REGION:
                np.testing.assert_array_equal(row[name], right[key][name])
    assert refused > 150  # the others hit page headers, statistics and names, which no feature hangs on


def test_a_bit_that_flips_in_a_tensor_is_named_with_its_image(region: FeatureStore, tmp_path: Path) -> None:
    path = tmp_path / "features" / "region" / "00000.parquet"
    content = bytearray(path.read_bytes())
    key = list(region.keys())[67]
    at = content.index(region[key]["features"].tobytes())
    content[at + 5] ^= 4
    path.write_bytes(content)
    read = FeatureStore(Table(path.parent, "extract"))
    with pytest.raises(PairmillError, match=rf"00000\.parquet is damaged: features of image {key}"):
        read.gather([key])
    with pytest.raises(PairmillError, match=rf"features of image {key}"):
        read.check()
    unchecked = FeatureStore(Table(path.parent, "extract"), verify=False)
    assert unchecked[key].n == 3  # who asks for it gets what is there


def test_a_sound_store_passes_its_check(region: FeatureStore) -> None:
    region.check()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\0" * path.stat().st_size),
        lambda path: path.unlink(),
        lambda path: pq.write_table(pq.read_table(path), path),
    ],
    ids=["no-footer", "head", "empty", "zeros", "missing", "foreign"],
)
def test_a_damaged_shard_is_named_with_the_remedy(region: FeatureStore, tmp_path: Path, damage: Any) -> None:
    damage(tmp_path / "features" / "region" / "00001.parquet")
    with pytest.raises(PairmillError, match=r"00001\.parquet.*\n.*make extract"):
        FeatureStore.open(tmp_path, "region")


def test_a_shard_that_is_cut_short_while_it_is_open_is_named(region: FeatureStore, tmp_path: Path) -> None:
    keys = list(region.keys())
    region.gather(keys)
    os.truncate(tmp_path / "features" / "region" / "00000.parquet", 1000)
    with pytest.raises(PairmillError, match=r"00000\.parquet is damaged: it ends too early"):
        region.gather(keys)


def test_a_shard_of_another_identity_is_refused(region: FeatureStore, tmp_path: Path) -> None:
    other = store(tmp_path / "other", rows_of(REGION, [[3] * 70, [1, 2, 5]], 0), REGION, weights_sha256="another")
    assert len(other) == len(region)
    theirs, ours = tmp_path / "other" / "00001.parquet", tmp_path / "features" / "region" / "00001.parquet"
    ours.write_bytes(theirs.read_bytes())
    with pytest.raises(PairmillError, match=r"00001\.parquet holds features of another extractor"):
        FeatureStore.open(tmp_path, "region")


def test_library_versions_are_no_part_of_the_meaning() -> None:
    assert identity_digest({"a": 1, "libraries": {"torch": "2"}}) == identity_digest({"a": 1, "libraries": {}})
    assert identity_digest({"a": 1}) != identity_digest({"a": 2})


def test_a_store_goes_out_as_webdataset_and_comes_back(region: FeatureStore, tmp_path: Path) -> None:
    assert region.to_webdataset(tmp_path / "tars") == 73
    back = FeatureStore.from_webdataset(tmp_path / "tars", tmp_path / "back")
    assert back.identity == region.identity
    for key in region:
        for name in REGION:
            np.testing.assert_array_equal(back[key][name], region[key][name])
    with pytest.raises(PairmillError, match="webdataset, uniter-npz, lxmert-tsv"):
        region.export("coco", tmp_path / "out")


def test_a_store_from_webdataset_harms_no_folder(region: FeatureStore, tmp_path: Path) -> None:
    region.to_webdataset(tmp_path / "tars")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").write_text("mine")
    for into in ("own", "tars"):
        with pytest.raises(PairmillError, match=r"not empty|new folder"):
            FeatureStore.from_webdataset(tmp_path / "tars", tmp_path / into)
    assert (tmp_path / "own" / "thesis.txt").exists()
    assert list((tmp_path / "tars").glob("*.tar"))


@pytest.mark.parametrize("key", ["", "..", "a/b", "/etc/x", "a\\b", "a\nb", "a\0b", "x" * 300])
def test_a_key_that_is_no_file_name_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="is no key"):
        write_features(tmp_path / "0.parquet", [row(key=key)], {"features": Column("float16", (3,))}, {})


def test_a_shard_copied_over_its_neighbour_is_noticed(tmp_path: Path) -> None:
    one = rows_of(REGION, [[3] * 5], 0)[0]
    with pytest.raises(PairmillError, match="do not follow one another"):
        store(tmp_path / "features" / "region", [one, one], REGION)


def test_a_manifest_with_a_wrong_letter_is_refused(region: FeatureStore, tmp_path: Path) -> None:
    path = tmp_path / "features" / "region" / "manifest.json"
    right = path.read_bytes()
    draw = np.random.default_rng(0)
    for place in draw.integers(0, len(right), 200).tolist():
        path.write_bytes(right[:place] + bytes([right[place] ^ (1 << int(draw.integers(7)))]) + right[place + 1 :])
        try:
            found = len(FeatureStore.open(tmp_path, "region"))
        except PairmillError:
            continue
        assert found == len(region)  # what was hit says nothing of the content: a space, the key, the seconds


def test_arguments_that_mean_nothing_are_refused(region: FeatureStore) -> None:
    for arguments in ({"batch_size": 0}, {"batch_size": 8, "keys": "000000000"}, {"batch_size": 8, "pool_groups": 0}):
        with pytest.raises(PairmillError):
            next(region.stream(**arguments))  # type: ignore[arg-type]
    once = (name for name in ["boxes"])
    assert all(list(batch.arrays) == ["boxes"] for batch in region.stream(8, columns=once))


def test_what_is_not_there_says_what_to_do(region: FeatureStore, tmp_path: Path) -> None:
    assert "999999999" not in region
    with pytest.raises(KeyError):
        region.gather(["999999999"])
    with pytest.raises(PairmillError, match="finished are: region"):
        FeatureStore.open(tmp_path, "grid")
    with pytest.raises(PairmillError, match="no column attributes"):
        region.gather([], columns=["attributes"])
    with pytest.raises(PairmillError, match="make filter"):
        list(region.stream(2, where="split = 'train'"))


def test_a_store_without_one_image_is_read(tmp_path: Path) -> None:
    read = store(tmp_path / "empty", [[], []], REGION)
    assert (len(read), list(read.keys()), list(read.stream(4)), "0" in read) == (0, [], [], False)
    assert read.gather([])["features"].shape == (0, 0, 8)


def test_a_shuffle_is_that_of_its_seed_and_mixes_shards(region: FeatureStore) -> None:
    def order(seed: int) -> list[str]:
        return [key for batch in region.stream(10, seed=seed) for key in batch.keys]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1) != sorted(order(1))


def test_batches_may_be_kept(region: FeatureStore, tmp_path: Path) -> None:
    """Recycled memory is given out again only when nobody holds it, tensors and slices included."""
    import torch

    large = {"features": Column("float16", (4096,), tensor=True)}
    read = store(tmp_path / "large", rows_of(large, [[8] * 200], 0), large)
    kept = [torch.from_numpy(batch["features"])[3:5, 1:] for batch in read.stream(20)]
    for number, part in enumerate(kept):
        keys = list(read.keys())[number * 20 + 3 : number * 20 + 5]
        np.testing.assert_array_equal(part.numpy(), np.stack([read[key]["features"][1:] for key in keys]))


def row(value: float = 1.0, n: int = 2, key: str = "000000000") -> ImageFeatures:
    return ImageFeatures(key, n, {"features": np.full((2, 3), value, np.float32)})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 70_000.0])
@pytest.mark.parametrize("column", [Column("float16", (3,), True), Column("float16", (3,)), Column("int8", (3,), True)])
def test_what_is_not_finite_as_stored_is_refused_and_the_others_are_written(
    tmp_path: Path, value: float, column: Column
) -> None:
    if column.quantised and np.isfinite(value):
        pytest.skip("a scale holds it")
    columns = {"features": column}
    with FeatureWriter(tmp_path / "0.parquet", columns, identity(columns)) as writer:
        writer.add(row())
        with pytest.raises(NotFiniteError, match="image 000000001 holds NaN"):
            writer.add(row(value, key="000000001"))
        writer.add(row(2.0, key="000000002"))
    assert writer.rows == 2
    assert pq.read_table(tmp_path / "0.parquet")["key"].to_pylist() == ["000000000", "000000002"]


@pytest.mark.parametrize("shape", [(), (2,), (3, 1)])
def test_another_shape_is_refused_and_leaves_no_file(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="has shape"):
        write_features(tmp_path / "0.parquet", [row()], {"features": Column("float16", shape)}, {})
    with pytest.raises(ValueError, match="has shape"):
        write_features(tmp_path / "0.parquet", [row(n=3)], {"features": Column("float16", (3,))}, {})
    with pytest.raises(ValueError, match="comes after"):
        write_features(tmp_path / "0.parquet", [row(), row()], {"features": Column("float16", (3,))}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_file(tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys, numpy as np\n"
        "from pathlib import Path\n"
        "from pipeline.store.features import Column, ImageFeatures, write_features\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "rows = [ImageFeatures(f'{n:09d}', 9, {'features': np.ones((9, 500))}) for n in range(int(sys.argv[2]))]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "write_features(Path(sys.argv[1]), rows, {'features': Column('float16', (500,), True)}, {})\n"
    )
    for rows in (40, 400):  # too many for the last row group, and for the first
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "0.parquet"), str(rows)], capture_output=True, text=True
        )
        assert "OSError" in done.stderr
        assert list(tmp_path.iterdir()) == []


def test_numbers_that_a_column_cannot_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no int16"):
        write_features(tmp_path / "0.parquet", [row(40_000)], {"features": Column("int16", (3,))}, {})


def test_the_bytes_do_not_depend_on_the_order_of_rows_or_on_the_byte_order_of_arrays(tmp_path: Path) -> None:
    columns = {"features": Column("float16", (3,), tensor=True), "boxes": Column("float32", (4,))}
    rows = rows_of(columns, [[1, 2, 3] * 50], 0)[0]
    swapped = [
        ImageFeatures(row.key, row.n, {name: row[name].astype(row[name].dtype.newbyteorder(">")) for name in columns})
        for row in rows
    ]
    write_features(tmp_path / "a.parquet", rows, columns, {})
    write_features(tmp_path / "b.parquet", reversed(swapped), columns, {})
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_the_file_names_no_place_and_no_machine(region: FeatureStore, tmp_path: Path) -> None:
    for path in tmp_path.glob("features/region/*"):
        assert str(tmp_path).encode() not in path.read_bytes()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-6e4, 6e4, width=16), min_size=1, max_size=12),
    st.sampled_from([1.0, 1e-30, 1e30, 1e-44, 0.0]),
)
def test_int8_is_within_half_a_scale(values: list[float], factor: float) -> None:
    floats = np.array([values], np.float32) * np.float32(factor)
    whole, scales = quantised(floats)
    assert whole.dtype == np.int8
    bound = np.abs(floats.astype(np.float64)).max() / 127 / 2
    error = np.abs(whole.astype(np.float64) * scales.astype(np.float64)[:, None] - floats)
    assert error.max() <= max(bound * 1.001, 127 * 2**-149)


def test_rows_are_groups_of_64_on_the_disk(region: FeatureStore, tmp_path: Path) -> None:
    footer = pq.read_metadata(tmp_path / "features" / "region" / "00000.parquet")
    assert [footer.row_group(group).num_rows for group in range(footer.num_row_groups)] == [ROWS_PER_GROUP, 6]
    assert region.place(list(region.keys())[69]) == (0, 1)
    assert region.place(list(region.keys())[70]) == (1, 0)


MEMORY = """
import resource, sys
from pipeline.store.features import FeatureStore
store = FeatureStore.open(sys.argv[1], "wide")
next(store.stream(32, seed=0))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for epoch in range(2):
    for batch in store.stream(32, seed=epoch, pool_groups=2):
        pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_is_that_of_batches_and_not_of_the_store(tmp_path: Path) -> None:
    columns = {"features": Column("float16", (4096,), tensor=True)}
    features = {"features": np.ones((16, 4096), np.float16)}
    rows = [ImageFeatures(f"{number:09d}", 16, features) for number in range(1500)]  # 196 MB
    store(tmp_path / "features" / "wide", [rows[:500], rows[500:1000], rows[1000:]], columns)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True, env=os.environ
    )
    assert int(done.stdout) < 60_000  # kilobytes
