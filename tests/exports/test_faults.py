"""An export is whole or not there: killed, on a full disk, of a damaged dataset, in a folder that is somebody's."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import command
import made_dataset as made_dataset_module
import pytest
from filelock import FileLock
from kept_web import Web
from made_dataset import Image, made_dataset, run_filter
from test_exports import digests, picture_bytes

from pipeline.engine import InlineEngine
from pipeline.errors import PairmillError
from pipeline.exports import TARGETS
from pipeline.exports.images import file_name
from pipeline.exports.running import TARGETS as WRITERS
from pipeline.exports.running import export
from pipeline.store.dataset import Dataset

ROOT = Path(__file__).parents[2]


@pytest.fixture
def dataset(web: Web, tmp_path: Path) -> Dataset:
    """One that may be damaged."""
    return Dataset(shutil.copytree(web.dataset.root, tmp_path / "data"))


def refused(dataset: Dataset, out: Path, to: str = "webdataset", where: str = "true") -> str:
    """What is said; nothing may be left."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(PairmillError) as raised:
        export(dataset, InlineEngine(), to, out, where)
    assert sorted(out.parent.iterdir()) == before
    return str(raised.value)


@pytest.mark.parametrize("to", ["huggingface", pytest.param("fiftyone", marks=pytest.mark.slow)])
def test_killed_in_the_middle_and_called_again(dataset: Dataset, tmp_path: Path, to: str) -> None:
    out, tar = tmp_path / "out", dataset.images.folder / "00001.tar"
    aside = tar.rename(tmp_path / "aside.tar")
    os.mkfifo(tar)  # reading it never ends: the export stands there, after the first shard
    process = command.start("export", "--data", dataset.root, "--to", to, "--out", out, "--workers", 1, cwd=tmp_path)
    unfinished = tmp_path / "out.unfinished"
    command.until(lambda: process.poll() is not None or first_part_is_there(unfinished), 60, "no part was written")
    assert process.poll() is None, process.communicate()
    command.kill_hard(process)
    assert not out.exists()
    assert unfinished.exists()
    tar.unlink()
    aside.rename(tar)
    export(dataset, InlineEngine(), to, out)
    assert not unfinished.exists()
    export(dataset, InlineEngine(), to, tmp_path / "undisturbed")
    assert digests(out) == digests(tmp_path / "undisturbed")


def first_part_is_there(unfinished: Path) -> bool:
    """Whether a file of the export itself has its bytes."""
    parts = [path for path in unfinished.rglob("*") if path.suffix in (".tar", ".parquet", ".jpg")]
    return any(path.stat().st_size for path in parts if ".staging" not in path.parts)


def test_the_same_folder_again_for_another_part(web: Web, tmp_path: Path) -> None:
    """Nothing of the first export may be remembered by the process."""
    for split in ("train", "test"):
        export(web.dataset, InlineEngine(), "jsonl", tmp_path / "out", f"split = '{split}'")
        assert [path.name for path in (tmp_path / "out").iterdir()] == [split]
        shutil.rmtree(tmp_path / "out")


def test_a_folder_that_is_not_empty(web: Web, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("precious")
    assert "is not empty" in refused(web.dataset, out)
    assert "is not empty" in refused(web.dataset, out / "mine")
    assert (out / "mine").read_text() == "precious"


def test_a_folder_of_the_unfinished_name_that_is_no_exports(web: Web, tmp_path: Path) -> None:
    other = tmp_path / "out.unfinished"
    other.mkdir()
    (other / "mine").write_text("precious")
    assert "in the way" in refused(web.dataset, tmp_path / "out")
    assert (other / "mine").read_text() == "precious"


def test_two_exports_to_one_folder(web: Web, tmp_path: Path) -> None:
    unfinished = tmp_path / "out.unfinished"
    unfinished.mkdir()
    with FileLock(unfinished / ".pairmill-export"):
        (unfinished / "part").write_text("of the other")
        assert "another export" in refused(web.dataset, tmp_path / "out")
        assert (unfinished / "part").exists()


def test_a_tar_that_is_missing_or_another(dataset: Dataset, tmp_path: Path) -> None:
    tar = dataset.images.folder / "00002.tar"
    content = bytearray(tar.read_bytes())
    content[len(content) // 2] ^= 1
    tar.write_bytes(content)
    said = refused(dataset, tmp_path / "out")
    assert f"{tar} is damaged\n  -> remove it and run `make download` again" in said
    tar.unlink()
    assert f"{tar} is missing\n  -> run `make download` again" in refused(dataset, tmp_path / "out")


def test_features_that_are_damaged(dataset: Dataset, tmp_path: Path) -> None:
    path = dataset.features("region").folder / "00001.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    assert str(path) in refused(dataset, tmp_path / "out")


def test_conditions_that_are_wrong_or_leave_nothing(web: Web, tmp_path: Path) -> None:
    said = refused(web.dataset, tmp_path / "out", where="no_such_column = 1")
    assert "--where: Binder Error" in said
    assert "no_such_column" in said
    assert "--where" in refused(web.dataset, tmp_path / "out", where="split = ")
    assert "no kept pair" in refused(web.dataset, tmp_path / "out", where="false")
    injected = f"true); COPY (SELECT 1) TO '{tmp_path / 'injected'}'; SELECT (1"
    assert "not one condition" in refused(web.dataset, tmp_path / "out", where=injected)
    assert not (tmp_path / "injected").exists()


def test_before_filter_has_run(tmp_path: Path) -> None:
    pictures = [Image("http://x/a", picture_bytes(1))]
    dataset = made_dataset(tmp_path / "data", [("http://x/a", "one")], [pictures])
    assert "run `make filter` first" in refused(dataset, tmp_path / "out")
    assert "run `make filter` first" in refused(Dataset(tmp_path / "none"), tmp_path / "out")
    run_filter(dataset, {"min_side": 10_000})
    assert "no kept pair" in refused(dataset, tmp_path / "out")


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("when", ["part", "finish"])
def test_a_full_disk(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, when: str) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextmanager
    def part(*_: Any) -> Iterator[Callable[..., None]]:
        yield full

    monkeypatch.setattr(type(WRITERS[to]), when, part if when == "part" else full)
    assert "no space left\n  -> make room" in refused(web.dataset, tmp_path / "out", to)


def test_another_error_of_the_disk_is_said_as_it_is(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(type(WRITERS["jsonl"]), "finish", broken)
    with pytest.raises(OSError, match="Input/output error"):
        export(web.dataset, InlineEngine(), "jsonl", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == []


@pytest.mark.parametrize("to", TARGETS)
def test_a_uid_that_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str) -> None:
    monkeypatch.setattr(made_dataset_module, "uid_of", lambda url, text: "../../../evil")
    pictures = [Image("http://x/a", picture_bytes(1))]
    dataset = made_dataset(tmp_path / "data", [("http://x/a", "one")], [pictures])
    run_filter(dataset, {})
    assert "'../../../evil' cannot name a file" in refused(dataset, tmp_path / "out", to)
    assert not list(tmp_path.parent.glob("**/evil*"))


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "a.b", "", ".", "a\n", "a\0b", "é", "x" * 65])
def test_names_that_lead_out_of_the_folder(name: str) -> None:
    with pytest.raises(PairmillError):
        file_name(name)
    assert file_name("00000-aZ_9") == "00000-aZ_9"
