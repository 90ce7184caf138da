"""`export-features` and `import-features` over whole datasets, and what of them reaches the store."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_dataset import Image, jpeg, made_dataset
from stores import region_columns, region_row, write_table

from pipeline import verify
from pipeline.cli import main
from pipeline.engine import InlineEngine
from pipeline.errors import PairmillError
from pipeline.export_features import export_features
from pipeline.import_features import Asked, import_features
from pipeline.job import UP_TO_DATE, Job
from pipeline.model_recipe import Vision
from pipeline.recipe import Recipe
from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureStore
from pipeline.store.features.exchange import lxmert_tsv, sources
from pipeline.store.table import Table
from trainers.data.loader import VisionReader

NAMES = [f"COCO_val2014_{number:012d}" for number in (9, 25, 30, 34, 36, 42, 49)]


def dataset_of(root: Path, names: list[str], shards: int = 2, seed: int = 0) -> Dataset:
    """Images whose urls end in these names, over image shards in turn."""
    random = np.random.default_rng(seed)
    images = [
        Image(f"http://x/val2014/{name}.jpg?size=1", jpeg(random.integers(0, 255, (6, 6, 3), np.uint8)))
        for name in names
    ]
    parts = [images[shard::shards] for shard in range(shards)]
    return made_dataset(root, [(image.url, "some words here") for image in images], parts)


def keys_of(dataset: Dataset) -> dict[str, str]:
    """The last part of the url without its suffix -> key."""
    rows = [row for path in dataset.images.paths(".parquet") for row in pq.read_table(path).to_pylist()]
    return {re.sub(r".*/|\.jpg.*", "", row["url"]): row["key"] for row in rows if row["status"] == "ok"}


def regions(names: list[str], seed: int = 0) -> dict[str, foreign.Region]:
    random = np.random.default_rng(seed)
    return {name: foreign.region(random, n=4) for name in names}


def imported(dataset: Dataset, format: str, *paths: Path, **more: Any) -> str:
    return import_features(dataset, InlineEngine(), "old", Asked(format, paths, **more))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset_of(tmp_path_factory.mktemp("made") / "data", NAMES).root


@pytest.fixture
def dataset(made: Path, tmp_path: Path) -> Dataset:
    return Dataset(shutil.copytree(made, tmp_path / "data"))


def write_uniter(folder: Path, made: dict[str, foreign.Region]) -> Path:
    folder.mkdir()
    for name, found in made.items():
        foreign.write_uniter(folder / f"{name.lower()}.npz", found)
    return folder


def write_bottom_up(folder: Path, made: dict[str, foreign.Region]) -> Path:
    folder.mkdir()
    for name, found in made.items():
        foreign.write_bottom_up_npz(folder / f"{name}.npz", found)
    return folder


def write_lxmert(folder: Path, made: dict[str, foreign.Region]) -> Path:
    folder.mkdir()
    for at, (name, found) in enumerate(reversed(made.items())):
        foreign.write_tsv(folder / f"{at % 2}.tsv", {name: found})
    return folder


def write_volta(folder: Path, made: dict[str, foreign.Region]) -> Path:
    pytest.importorskip("h5py")
    folder.mkdir()
    foreign.write_volta(folder / "val.h5", made)
    return folder


def write_adaptive(folder: Path, made: dict[str, foreign.Region]) -> Path:
    pytest.importorskip("h5py")
    folder.mkdir()
    ids = foreign.write_adaptive(folder / "val.hdf5", made)
    (folder / "val_imgid2idx.json").write_text(json.dumps(ids))
    return folder


@pytest.mark.parametrize(
    ("format", "write", "labels"),
    [
        ("uniter-npz", write_uniter, True),
        ("uniter-npz", write_bottom_up, False),
        ("lxmert-tsv", write_lxmert, True),
        ("hdf5", write_volta, True),
        ("hdf5", write_adaptive, False),
    ],
)
def test_published_features_become_a_table_of_their_own(
    tmp_path: Path, dataset: Dataset, format: str, write: Callable[..., Path], labels: bool
) -> None:
    made = regions([*NAMES[1:], "no_such_image"])
    folder = write(tmp_path / "old", made)
    said = imported(dataset, format, folder)
    assert said == "old: 6 images; 1 ids name no image, 1 images have none"
    store, keys = FeatureStore.open(dataset.root, "old"), keys_of(dataset)
    assert list(store.keys()) == sorted(keys[name] for name in NAMES[1:])
    for name in NAMES[1:]:
        row, found = store[keys[name]], made[name]
        np.testing.assert_array_equal(row["features"], found["features"].astype(np.float16))
        np.testing.assert_allclose(row["boxes"], foreign.scaled(found), atol=1e-3)
        if labels:
            np.testing.assert_array_equal(row["classes"], found["objects_id"])
            np.testing.assert_allclose(row["topk_values"][:, 0], found["objects_conf"], atol=1e-3)
    # Trainers read them like any extractor's.
    reader = VisionReader(store, Vision(kind="region"), ("mrfr", "mrc_kl") if labels else ("mrfr",))
    seen = reader.read(list(store.keys()))
    assert seen.features.shape == (6, 4, 6)
    np.testing.assert_array_equal(seen.features[0].numpy(), next(iter(store.stream(1)))["features"][0])
    assert seen.boxes is not None
    assert (seen.class_ids is not None) == labels
    assert [path.name for path in dataset.features("old").paths(".parquet") if "failed" not in path.name] == [
        path.name for path in dataset.images.paths(".parquet")
    ]
    assert imported(dataset, format, folder) == UP_TO_DATE
    assert verify.run(Job("verify", Recipe(name="t"), dataset, InlineEngine())).endswith("all whole")


def test_an_identity_changes_with_the_files_and_tells_no_path(tmp_path: Path, dataset: Dataset) -> None:
    names = tmp_path / "names.txt"
    names.write_text("cat,kitty\ndog\n" + "more\n" * 5)
    identities = []
    for seed in (0, 1):
        folder = write_lxmert(tmp_path / f"old{seed}", regions(NAMES, seed))
        imported(dataset, "lxmert-tsv", folder, classes=names)
        identities.append(FeatureStore.open(dataset.root, "old").identity)
        for path in dataset.features("old").folder.iterdir():
            assert str(tmp_path).encode() not in path.read_bytes(), path
    assert [identity["classes"] for identity in identities] == [["cat", "dog", *["more"] * 5]] * 2
    assert identities[0]["weights_sha256"] != identities[1]["weights_sha256"]
    assert identities[0]["model"] == "imported"
    assert identities[0]["trained"] is True


@pytest.mark.parametrize("content", [None, b"", b"cat\n\ndog\n", b"\xff\xfe"])
def test_names_of_classes_that_are_none_are_refused(tmp_path: Path, dataset: Dataset, content: bytes | None) -> None:
    foreign.write_tsv(tmp_path / "old.tsv", regions(NAMES))
    if content is not None:
        (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(PairmillError, match=r"names\.txt"):
        imported(dataset, "lxmert-tsv", tmp_path / "old.tsv", classes=tmp_path / "names.txt")


def test_classes_beyond_the_names_are_refused(tmp_path: Path, dataset: Dataset) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    made = regions(NAMES)
    foreign.write_tsv(tmp_path / "old.tsv", made)
    imported(dataset, "lxmert-tsv", tmp_path / "old.tsv", classes=tmp_path / "names.txt")
    store, keys = FeatureStore.open(dataset.root, "old"), keys_of(dataset)
    for name, found in made.items():
        assert (keys[name] in store) == (found["objects_id"].max() < 2)


def test_ids_are_matched_by_a_table(tmp_path: Path, dataset: Dataset) -> None:
    made = regions(["9", "25"])
    write_lxmert(tmp_path / "old", made)
    keys = keys_of(dataset)
    urls = {str(int(name[-12:])): f"http://x/val2014/{name}.jpg?size=1" for name in NAMES}
    (tmp_path / "ids.csv").write_text("id,url\n" + "".join(f"{id},{url}\n" for id, url in urls.items()))
    table = pa.table({"url": list(urls.values()), "id": [int(id) for id in urls]})
    pq.write_table(table, tmp_path / "ids.parquet")
    for match in ("ids.csv", "ids.parquet"):
        said = imported(dataset, "lxmert-tsv", tmp_path / "old", match=str(tmp_path / match))
        assert said == "old: 2 images; 5 images have none"
        store = FeatureStore.open(dataset.root, "old")
        for name, id in ((NAMES[0], "9"), (NAMES[1], "25")):
            np.testing.assert_array_equal(store[keys[name]]["features"], made[id]["features"].astype(np.float16))
    with pytest.raises(PairmillError, match="none of the 2 ids names an image"):
        imported(dataset, "lxmert-tsv", tmp_path / "old")


@pytest.mark.parametrize(
    ("match", "content", "said"),
    [
        ("gone.csv", None, "there is no such file"),
        ("ids.csv", b"image,link\n1,2\n", "cannot be read"),
        ("ids.csv", b"\xff\xfe\x00", "cannot be read"),
        ("ids.parquet", b"no parquet", "cannot be read"),
    ],
)
def test_a_table_of_ids_that_is_none_is_named(
    tmp_path: Path, dataset: Dataset, match: str, content: bytes | None, said: str
) -> None:
    write_lxmert(tmp_path / "old", regions(NAMES))
    if content is not None:
        (tmp_path / match).write_bytes(content)
    with pytest.raises(PairmillError, match=said):
        imported(dataset, "lxmert-tsv", tmp_path / "old", match=str(tmp_path / match))
    assert not dataset.features("old").folder.exists()


def test_an_id_that_several_images_share_means_none_of_them(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = [
        Image(f"http://{host}/1.jpg", jpeg(random.integers(0, 255, (6, 6, 3), np.uint8))) for host in ("a", "b")
    ] + [Image("http://a/2.jpg", jpeg(random.integers(0, 255, (6, 6, 3), np.uint8)))]
    dataset = made_dataset(tmp_path / "data", [(image.url, "w w w") for image in images], [images])
    foreign.write_tsv(tmp_path / "old.tsv", regions(["1", "2"]))
    said = imported(dataset, "lxmert-tsv", tmp_path / "old.tsv")
    assert said == "old: 1 images; 1 ids are the stem of several images' urls, 2 images have none"


def test_copies_of_a_picture_are_one_image(tmp_path: Path) -> None:
    picture = jpeg(np.random.default_rng(0).integers(0, 255, (6, 6, 3), np.uint8))
    images = [Image(f"http://{host}/1.jpg", picture) for host in ("a", "b")]
    dataset = made_dataset(tmp_path / "data", [(image.url, "w w w") for image in images], [images])
    foreign.write_tsv(tmp_path / "old.tsv", regions(["1"]))
    assert imported(dataset, "lxmert-tsv", tmp_path / "old.tsv") == "old: 1 images"
    assert list(FeatureStore.open(dataset.root, "old").keys()) == ["000000000"]


def test_the_first_of_repeated_features_counts(tmp_path: Path, dataset: Dataset) -> None:
    first, second = regions(NAMES, 0), regions(NAMES[:2], 1)
    foreign.write_tsv(tmp_path / "a.tsv", first)
    foreign.write_tsv(tmp_path / "b.tsv", second)
    said = imported(dataset, "lxmert-tsv", tmp_path / "b.tsv", tmp_path / "a.tsv")
    assert said == "old: 7 images; 2 repeat an image"
    row = FeatureStore.open(dataset.root, "old")[keys_of(dataset)[NAMES[0]]]
    np.testing.assert_array_equal(row["features"], first[NAMES[0]]["features"].astype(np.float16))


def test_what_cannot_be_read_is_told_with_its_place(tmp_path: Path, dataset: Dataset) -> None:
    made = regions(NAMES)
    made[NAMES[2]]["features"] = made[NAMES[2]]["features"][:, :3]
    made[NAMES[3]]["features"] = made[NAMES[3]]["features"] * 1e6
    made[NAMES[4]]["boxes"] = made[NAMES[4]]["boxes"] + 5000
    foreign.write_tsv(tmp_path / "old.tsv", made)
    with open(tmp_path / "old.tsv", "ab") as file:
        file.write(b"no id here\n" * 2)
    said = imported(dataset, "lxmert-tsv", tmp_path / "old.tsv")
    assert re.fullmatch(
        r"old: 4 images, 3 failed \(.*\); 2 damaged places, such as .*old\.tsv, line 8: it has no id", said
    )
    table = dataset.features("old")
    failed = [row for path in table.paths(".failed.parquet") for row in pq.read_table(path).to_pylist()]
    keys = keys_of(dataset)
    told = {row["key"]: (row["cause"], row["detail"]) for row in failed}
    assert told.keys() == {keys[NAMES[at]] for at in (2, 3, 4)}
    assert told[keys[NAMES[2]]] == (
        "unreadable",
        f"old.tsv, line 3 ({NAMES[2]}): features of image {keys[NAMES[2]]} has shape (4, 3), not (4, 6)",
    )
    assert told[keys[NAMES[3]]][0] == "not_finite"
    assert "line 5" in told[keys[NAMES[4]]][1]
    assert table.manifest.counts() == {"rows": 4, "failed": 3, "failed/unreadable": 2, "failed/not_finite": 1}
    assert table.manifest.info["imported"]["damaged"] == 2


@pytest.mark.parametrize(
    ("format", "name", "content", "said"),
    [
        ("lxmert-tsv", "a.tsv", b"", "no image can be read from"),
        ("lxmert-tsv", "a.tsv", b"words\n", "a.tsv, line 1: it has no id"),
        ("lxmert-tsv", "a.tsv", b"1\t2\n", "no image can be read from"),
        ("hdf5", "a.h5", b"words", "a.h5 is no HDF5 file"),
        ("uniter-npz", "a.npz", b"words", "no image can be read from"),
        ("webdataset", "a.tar", b"words", "identity.json does not say"),
        ("uniter-npz", "a.zip", b"words", "there is no .npz in"),
    ],
)
def test_files_that_are_not_of_the_format_are_refused(
    tmp_path: Path, dataset: Dataset, format: str, name: str, content: bytes, said: str
) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / name).write_bytes(content)
    with pytest.raises(PairmillError, match=said):
        imported(dataset, format, tmp_path / "old")
    assert not dataset.features("old").folder.exists()
    assert not list(dataset.root.glob(".staging/*"))


def test_what_an_extractor_made_is_not_overwritten(tmp_path: Path, dataset: Dataset) -> None:
    rows = {"00000": [region_row(np.random.default_rng(0), "000000000", 2)]}
    write_table(dataset.features("old"), rows, region_columns())
    foreign.write_tsv(tmp_path / "old.tsv", regions(NAMES))
    with pytest.raises(PairmillError, match="under another name"):
        imported(dataset, "lxmert-tsv", tmp_path / "old.tsv")


class Stopping(InlineEngine):
    """Ends, as Ctrl-C does, before the second shard is written."""

    def map(self, function: Any, tasks: Any, label: str, images: Any = None) -> Iterator[Any]:
        for number, result in enumerate(super().map(function, tasks, label, images)):
            if number and label == "import old":
                raise KeyboardInterrupt
            yield result


def test_an_interrupted_import_carries_on_to_the_same_bytes(tmp_path: Path, dataset: Dataset) -> None:
    folder = write_uniter(tmp_path / "old", regions(NAMES))
    with pytest.raises(KeyboardInterrupt):
        import_features(dataset, Stopping(), "old", Asked("uniter-npz", [folder]))
    table = dataset.features("old")
    assert not table.exists
    first = (table.folder / "00000.parquet").stat()
    imported(dataset, "uniter-npz", folder)
    assert (table.folder / "00000.parquet").stat().st_ino == first.st_ino
    left = {path.name: path.read_bytes() for path in table.folder.glob("*.parquet")}
    shutil.rmtree(table.folder)
    imported(dataset, "uniter-npz", folder)
    assert {path.name: path.read_bytes() for path in table.folder.glob("*.parquet")} == left


def test_chunks_and_few_open_files_change_nothing(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_lxmert(tmp_path / "old", regions(NAMES))
    imported(dataset, "lxmert-tsv", folder)
    table = dataset.features("old")
    whole = {path.name: path.read_bytes() for path in table.folder.glob("*.parquet")}
    shutil.rmtree(table.folder)
    monkeypatch.setattr(sources, "_CHUNK_FILES", 1)
    monkeypatch.setattr(sources, "_BATCH", 2)
    monkeypatch.setattr(sources.OpenFiles.__init__, "__defaults__", (1,))
    imported(dataset, "lxmert-tsv", folder)
    parts = {path.name: path.read_bytes() for path in table.folder.glob("*.parquet")}
    assert {name: pq.read_table(pa.BufferReader(content)) for name, content in parts.items()} == {
        name: pq.read_table(pa.BufferReader(content)) for name, content in whole.items()
    }


def with_regions(dataset: Dataset, dtype: str = "float16") -> FeatureStore:
    """Features of all images but one, as an extractor leaves them."""
    random = np.random.default_rng(3)
    shards: dict[str, list[Any]] = {}
    for key in sorted(keys_of(dataset).values())[1:]:
        shards.setdefault(key[:5], []).append(region_row(random, key, 3))
    return write_table(dataset.features("region"), shards, region_columns(dtype=dtype))


@pytest.mark.parametrize("to", ["webdataset", "uniter-npz", "lxmert-tsv"])
def test_what_goes_out_comes_in_again_elsewhere(tmp_path: Path, dataset: Dataset, to: str) -> None:
    """Into another dataset, where the same pictures have other keys."""
    store = with_regions(dataset)
    out = tmp_path / "out"
    said = export_features(dataset, InlineEngine(), "region", to, out)
    assert said == f"6 images in {out}; 1 kept images have no features"
    other = dataset_of(tmp_path / "other", list(reversed(NAMES)), 3)
    said = imported(other, to, out, match=str(out / "images.csv"), top_k=3)
    assert said == "old: 6 images; 1 images have none"
    there, ours, theirs = FeatureStore.open(other.root, "old"), keys_of(dataset), keys_of(other)
    assert to != "webdataset" or there.identity == store.identity
    for name in NAMES:
        if ours[name] not in store:
            continue
        left, right = store[ours[name]], there[theirs[name]]
        np.testing.assert_array_equal(left["features"], right["features"])
        np.testing.assert_array_equal(left["classes"], right["classes"])
        np.testing.assert_allclose(left["boxes"], right["boxes"], atol=0 if to == "webdataset" else 1e-3)


def test_int8_comes_back_by_its_key(tmp_path: Path, dataset: Dataset) -> None:
    store = with_regions(dataset, "int8")
    export_features(dataset, InlineEngine(), "region", "webdataset", tmp_path / "out")
    imported(dataset, "webdataset", tmp_path / "out", match="key")
    there = FeatureStore.open(dataset.root, "old")
    assert list(there.keys()) == list(store.keys())
    for key in list(store.keys()):
        np.testing.assert_array_max_ulp(there[key]["features"], store[key]["features"], 1)


def test_where_chooses_the_images(tmp_path: Path, dataset: Dataset) -> None:
    with_regions(dataset)
    for path in dataset.images.paths(".parquet"):
        rows = pq.read_table(path).to_pylist()
        measured = [row | {"width": 640, "height": 480 + int(row["key"][-1])} for row in rows]
        pq.write_table(pa.Table.from_pylist(measured, pq.read_schema(path)), path)
    where = f"url LIKE '%{NAMES[3]}%' OR url LIKE '%{NAMES[5]}%' -- these"
    export_features(dataset, InlineEngine(), "region", "lxmert-tsv", tmp_path / "out", where)
    keys = keys_of(dataset)
    found = [row.key for path in sorted((tmp_path / "out").glob("*.tsv")) for row in lxmert_tsv.read([path])]
    assert found == sorted([keys[NAMES[3]], keys[NAMES[5]]])
    for path in (tmp_path / "out").glob("*.tsv"):
        for row in foreign.load_tsv(path):
            assert (row["img_w"], row["img_h"]) == (640, 480 + int(row["img_id"][-1]))
    listed = (tmp_path / "out" / "images.csv").read_text().splitlines()
    assert listed[0] == "id,url"
    assert sorted(line.split(",")[0] for line in listed[1:]) == found


def test_exports_that_cannot_be_say_why(tmp_path: Path, dataset: Dataset) -> None:
    with_regions(dataset)
    for where in ("nothing", "SELECT", "1 = 'x'"):
        with pytest.raises(PairmillError, match="--where: "):
            export_features(dataset, InlineEngine(), "region", "webdataset", tmp_path / "out", where)
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(PairmillError, match="is not empty"):
        export_features(dataset, InlineEngine(), "region", "webdataset", tmp_path / "out")
    with pytest.raises(PairmillError, match="no finished features"):
        export_features(dataset, InlineEngine(), "grid", "webdataset", tmp_path / "new")


def test_byte_swapped_arrays_are_stored_as_everybody_reads_them(tmp_path: Path) -> None:
    row = region_row(np.random.default_rng(0), "000000000", 4)
    for name, array in list(row.arrays.items()):
        row.arrays[name] = array.astype(array.dtype.newbyteorder(">"))  # type: ignore[index]
    for dtype in ("float16", "int8"):
        store = write_table(Table(tmp_path / dtype, "extract"), {"0": [row]}, region_columns(dtype=dtype))
        for name in ("boxes", "classes", "confidences", "topk_ids", "topk_values"):
            np.testing.assert_array_equal(store["000000000"][name], row[name])
        bound = 0.01 if dtype == "float16" else np.abs(row["features"]).max(1, keepdims=True) / 127 / 2 * 1.01
        assert (np.abs(store["000000000"]["features"] - row["features"]) <= bound).all()
        stored = pq.read_table(tmp_path / dtype / "0.parquet", columns=["features"])["features"][0].as_py()
        if dtype == "float16":
            np.testing.assert_array_equal(
                np.frombuffer(stored, "<f2").reshape(4, -1), row["features"].astype(np.float16)
            )


def test_the_commands(
    tmp_path: Path, dataset: Dataset, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_CHUNK_FILES", 3)  # more than one: in workers
    with_regions(dataset)
    data, out = ["--data", str(dataset.root), "--workers", "1"], str(tmp_path / "out")
    assert main(["export-features", *data, "--extractor", "region", "--to", "uniter-npz", "--out", out]) == 0
    assert capfd.readouterr().out == f"6 images in {out}; 1 kept images have no features\n"
    arguments = ["import-features", *data, "--extractor", "again", "--from", "uniter-npz", out, "--match", "key"]
    assert main(arguments) == 0
    assert capfd.readouterr().out == "again: 6 images; 1 images have none\n"
    assert main(arguments) == 0
    assert capfd.readouterr().out == f"{UP_TO_DATE}\n"
    assert main([*arguments[:-1], "gone.csv"]) == 1
    assert capfd.readouterr().err.startswith("error: --match gone.csv: there is no such file\n")
    assert main(["import-features", *data, "--extractor", "../x", "--from", "uniter-npz", out]) == 1
    assert capfd.readouterr().err.startswith("error: '../x' is no name for an extractor\n")
