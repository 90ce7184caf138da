"""`make verify`: every way in which a finished dataset can be damaged is found and named, and nothing is changed."""

import hashlib
import io
import json
import re
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_dataset import Image, Inline, jpeg, made_dataset, write_table

from pipeline import verify
from pipeline.cli import main
from pipeline.errors import PairmillError
from pipeline.job import Job
from pipeline.recipe import Recipe
from pipeline.store.dataset import Dataset
from pipeline.store.table import JOURNAL, MANIFEST, Shard, Table, content_digest

sys.path.append(str(Path(__file__).parent / "store" / "exchange"))
import stores

SHARDS = 2
EACH = 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset with a table of every kind."""
    root = tmp_path_factory.mktemp("verify") / "data"
    random = np.random.default_rng(0)
    pictures = [
        [Image(f"http://x/{shard}{at}.jpg", jpeg(random.integers(0, 255, (8, 8, 3), np.uint8))) for at in range(EACH)]
        for shard in range(SHARDS)
    ]
    pictures[0].append(Image("http://x/gone.jpg", status="http_404"))
    pairs = [(image.url, "three words here") for shard in pictures for image in shard]
    dataset = made_dataset(root, pairs, pictures)
    write_table(dataset.signals("phash", "filter"), {"0": {"0": pa.table({"key": ["a"], "phash": [1]})}})
    rows = {
        f"{shard:05d}": [stores.region_row(random, f"{shard:05d}{at:04d}", 2 + at) for at in range(EACH)]
        for shard in range(SHARDS)
    }
    stores.write_table(dataset.features("region"), rows, stores.region_columns())
    run = dataset.run("uniter")
    with run.writing("key", {"model": "key"}) as writing:
        from safetensors.numpy import save_file

        save_file({"weight": np.ones(3, np.float32)}, run.folder / "model.safetensors")
        (run.folder / "tokenizer.json").write_text("{}")
        writing.add(Shard.of(run.folder, "model", "key", ["model.safetensors", "tokenizer.json"], {}))
        writing.commit({})
    return root


@pytest.fixture
def data(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "data"))


def verified(root: Path) -> str:
    return verify.run(Job("verify", Recipe(name="t"), Dataset(root), Inline()))


def faults(root: Path) -> str:
    with pytest.raises(PairmillError) as error:
        verified(root)
    return str(error.value)


def contents(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file() and "logs" not in path.parts
    }


def test_a_whole_dataset_is_whole_and_stays_as_it_is(data: Path) -> None:
    before = contents(data)
    files = sum(
        len(shard["files"]) for path in data.rglob(MANIFEST) for shard in json.loads(path.read_text())["shards"]
    )
    assert verified(data).startswith(f"7 tables, {files} files, ")
    assert verified(data).endswith(": all whole")
    assert contents(data) == before


def test_every_file_of_every_manifest_is_looked_at(data: Path) -> None:
    """A bit flipped in any file at all is found, and only that file is named."""
    for manifest in list(data.rglob(MANIFEST)):
        for shard in json.loads(manifest.read_text())["shards"]:
            for file in shard["files"]:
                path = manifest.parent / file["name"]
                content = path.read_bytes()
                harmed = bytearray(content)
                harmed[len(harmed) // 2] ^= 4
                path.write_bytes(harmed)
                said = faults(data)
                assert ": 1 damaged" in said, said
                assert f"\n{path}: " in said
                assert f"\n  -> remove it, then run `make {json.loads(manifest.read_text())['stage']}` again" in said
                path.write_bytes(content)
    assert verified(data).endswith("all whole")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: path.unlink(), "it is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, and was written with"),
        (lambda path: path.write_bytes(b""), "it has 0 bytes"),
    ],
)
@pytest.mark.parametrize("name", ["features/region/00001.parquet", "images/00001.tar", "runs/uniter/tokenizer.json"])
def test_missing_and_short_files_are_named(data: Path, harm: Callable[[Path], None], said: str, name: str) -> None:
    harm(data / name)
    assert f"{data / name}: " in faults(data)
    assert said in faults(data)


def test_a_flipped_bit_in_features_names_the_image(data: Path) -> None:
    path = data / "features" / "region" / "00001.parquet"
    content = bytearray(path.read_bytes())
    wanted = pq.read_table(path, columns=["features"])["features"][2].as_py()
    content[content.index(wanted) + 5] ^= 1
    path.write_bytes(content)
    assert f"{path}: features of image 000010002 has another checksum" in faults(data)


def rewritten(root: Path, **changes: Any) -> str:
    """Shard 00001 of the region features written as a wrong extractor would: its sums and sizes are all right."""
    table = Dataset(root).features("region")
    shutil.rmtree(table.folder)
    random = np.random.default_rng(1)
    rows = [stores.region_row(random, f"00001{at:04d}", 3) for at in range(EACH)]
    for name, value in changes.items():
        rows[1].arrays[name][2] = value  # type: ignore[index]
    stores.write_table(table, {"00001": rows}, stores.region_columns())
    return faults(root)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"boxes": [0, 0, 1.1, 1]}, "boxes of image 000010001 do not lie in"),
        ({"boxes": [-0.1, 0, 1, 1]}, "boxes of image 000010001 do not lie in"),
        ({"boxes": [0.5, 0, 0.4, 1]}, "boxes of image 000010001 do not lie in"),
        ({"boxes": [0, 0.5, 1, 0.4]}, "boxes of image 000010001 do not lie in"),
        ({"classes": 5}, "classes of image 000010001 are none of the detector's"),
        ({"classes": -2}, "classes of image 000010001 are none of the detector's"),
        ({"topk_ids": [0, 1, -1]}, "topk_ids of image 000010001 are none of the detector's"),
        ({"topk_values": [0.5, 0.4, -0.1]}, "topk_values of image 000010001 are not between"),
        ({"confidences": 1.5}, "confidences of image 000010001 are not between"),
    ],
)
def test_features_that_cannot_be_right_name_the_image(data: Path, changes: dict[str, Any], said: str) -> None:
    assert said in rewritten(data, **changes)


def test_sound_features_are_not_blamed(data: Path) -> None:
    with pytest.raises(pytest.fail.Exception):
        rewritten(data)


def recommitted(table: Table, contents: dict[str, bytes] | None = None, counts: dict[str, int] | None = None) -> None:
    """Let the manifest vouch for other contents of files, or other counts, as if so made."""
    manifest, shards = table.manifest, table.manifest.shards
    found = {file.name: (table.folder / file.name).read_bytes() for shard in shards for file in shard.files}
    with table.writing("other", {shard.name: "other" for shard in shards}) as writing:
        for shard in shards:
            for file in shard.files:
                (table.folder / file.name).write_bytes((contents or {}).get(file.name, found[file.name]))
            files = [file.name for file in shard.files]
            writing.add(Shard.of(table.folder, shard.name, "other", files, counts or shard.counts))
        writing.commit(manifest.info)


def test_rows_that_the_manifest_does_not_count_are_told(data: Path) -> None:
    recommitted(Dataset(data).features("region"), counts={"rows": 99})
    assert "it has 3 rows, and its manifest says 99" in faults(data)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda names: [name for name in names if "10001." not in name], "it lacks image 000010001, which its"),
        (lambda names: [name for name in names if "0001.txt" not in name], "it holds image 000010001 in part, or"),
        (lambda names: [*names, names[0]], "it holds image 000010000 in part, or twice"),
        (lambda names: [*names, "77.jpg"], "it holds image 77, which its metadata do not name"),
    ],
)
def test_a_tar_that_holds_not_what_its_metadata_name_is_found(
    data: Path, harm: Callable[[list[str]], list[str]], said: str
) -> None:
    table = Dataset(data).images
    with tarfile.open(table.folder / "00001.tar") as tar:
        names = tar.getnames()
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in harm(names):
            tar.addfile(tarfile.TarInfo(name))
    recommitted(table, {"00001.tar": file.getvalue()})
    assert re.search(r"00001\.tar: " + said, faults(data))


def test_a_tar_with_a_damaged_header_is_found(data: Path) -> None:
    table = Dataset(data).images
    content = bytearray((table.folder / "00001.tar").read_bytes())
    with tarfile.open(table.folder / "00001.tar") as tar:
        header = tar.getmembers()[4].offset
    content[header : header + 300] = b"\xff" * 300
    recommitted(table, {"00001.tar": bytes(content)})
    assert re.search(r"00001\.tar: (a header at byte [0-9,]+ is damaged|it cannot be read)", faults(data))


@pytest.mark.parametrize(
    ("name", "said"), [("tokenizer.json", "it is no JSON"), ("model.safetensors", "it is no safetensors")]
)
def test_what_a_run_could_not_read_is_found(data: Path, name: str, said: str) -> None:
    recommitted(Dataset(data).run("uniter"), {name: b"\0" * 100})
    assert f"{name}: {said}" in faults(data)


@pytest.mark.parametrize(("values", "sound"), [([0.1, 2.0], True), ([0.1, np.nan], False), ([0.1, -np.inf], False)])
def test_embeddings_are_to_be_finite(data: Path, values: list[float], sound: bool) -> None:
    vectors = pa.array([values, None, values], pa.list_(pa.float32()))
    table = Table(data / "features" / "patch" / "texts", "extract")
    write_table(table, {"0": {"0": pa.table({"uid": ["a", "b", "c"], "embedding": vectors})}})
    if sound:
        assert verified(data).endswith("all whole")
    else:
        assert "texts/0.parquet: embedding holds NaN or infinity" in faults(data)


def test_parquet_that_cannot_be_read_is_found(data: Path) -> None:
    recommitted(Dataset(data).signals("phash", "filter"), {"0.parquet": b"PAR1" + b"\0" * 50 + b"PAR1"})
    assert "0.parquet: it cannot be read" in faults(data)


def test_a_damaged_manifest_is_named(data: Path) -> None:
    path = data / "features" / "region" / MANIFEST
    path.write_text(path.read_text().replace('"trained": true', '"trained": false'))
    assert f"{path} is not a manifest (its digest is not that of what it says)" in faults(data)
    path.write_text("{")
    assert f"{path}: {path} is not a manifest" in faults(data)


def test_a_manifest_that_names_a_file_elsewhere_is_refused(data: Path) -> None:
    path = data / "signals" / "phash" / MANIFEST
    value = json.loads(path.read_text().replace('"0.parquet"', '"../../../secret"'))
    value["digest"] = content_digest([Shard.from_json(shard) for shard in value["shards"]], value["info"])
    path.write_text(json.dumps(value))
    assert "its manifest names a file outside of its folder" in faults(data)


def test_a_journal_is_mentioned(data: Path) -> None:
    folder = data / "features" / "grid"
    folder.mkdir()
    (folder / JOURNAL).write_text("")
    assert verified(data).endswith(": all whole; features/grid is not finished")


def test_nothing_at_all_is_an_error(tmp_path: Path) -> None:
    assert "holds no table" in faults(tmp_path)


def test_the_command_needs_no_recipe_and_ends_with_a_status(data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--data", str(data), "--workers", "2"]) == 0
    assert "all whole" in capfd.readouterr().out
    (data / "images" / "00000.tar").unlink()
    assert main(["verify", "--data", str(data), "--workers", "2"]) == 1
    said = capfd.readouterr().err
    assert f"{data}/images/00000.tar: it is missing\n  -> run `make download` again" in said
    assert "Traceback" not in said
