"""The command line: one message and a status for whatever a user can cause; no traceback."""

import errno
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import corpus
import pytest
from command import call, committed_bytes, finish, start, until
from served import Web

from pipeline.cli import main
from pipeline.demo.server import Faults, serving

LIST = "url,text\nhttp://127.0.0.1:9/1.png,one two three\nhttp://127.0.0.1:9/2.png,four five six\n"


def recipe(folder: Path, more: str = "", inputs: str = "list.csv") -> Path:
    path = folder / "t.toml"
    path.write_text(
        f'name = "t"\n[ingest]\ninputs = ["{folder / inputs}"]\n[download]\nallow_hosts = ["127.0.0.1"]\n{more}'
    )
    (folder / "list.csv").write_text(LIST)
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What is said when a command fails as a user's mistake does. An exception would fail the test."""
    assert main([str(argument) for argument in arguments]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 2
    return said


@pytest.mark.parametrize(
    ("stage", "first"),
    [
        ("screen", "make ingest"),
        ("download", "make ingest"),
        ("filter", "make ingest"),
        ("extract", "make ingest"),
        ("catalog", "make ingest"),
    ],
)
def test_a_stage_without_anything_before_it_says_what_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str, first: str
) -> None:
    more = '[extract.pixel]\nkind = "pixel"\n'
    said = refused(capsys, stage, "--data", tmp_path / "data", "--recipe", recipe(tmp_path, more))
    assert "run `make " in said


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Datasets that have come as far as a stage, beside a recipe; read-only."""
    folder, arguments = tmp_path_factory.mktemp("begun"), ["--workers", "1"]
    path = recipe(folder, '[extract.pixel]\nkind = "pixel"\n')
    for stage in ("ingest", "screen"):
        assert main([stage, "--data", str(folder / "now"), "--recipe", str(path), *arguments]) == 0
        shutil.copytree(folder / "now", folder / stage)
    return {stage: folder / stage for stage in ("ingest", "screen")}


@pytest.mark.parametrize(
    ("done", "stage", "first"),
    [
        ("ingest", "download", "make screen"),
        ("ingest", "filter", "make screen"),
        ("ingest", "extract", "make filter"),
        ("screen", "filter", "make download"),
        ("screen", "extract", "make filter"),
    ],
)
def test_a_stage_before_its_predecessor_says_which_to_run(
    begun: dict[str, Path], capsys: pytest.CaptureFixture[str], done: str, stage: str, first: str
) -> None:
    data = begun[done]
    assert f"run `{first}` first" in refused(capsys, stage, "--data", data, "--recipe", data.parent / "t.toml")


def test_questions_before_there_is_an_answer_say_what_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "make ingest" in refused(capsys, "sql", "--data", tmp_path, "FROM pairs")
    assert "make ingest" in refused(capsys, "summary", "--data", tmp_path)


def test_a_wrong_query_gets_the_databases_own_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--data", str(tmp_path / "data"), "--recipe", str(recipe(tmp_path)))
    for stage in ("ingest", "catalog"):
        assert main([stage, *arguments]) == 0
    assert main(["sql", "--data", str(tmp_path / "data"), "FROM nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err
    assert main(["sql", "--data", str(tmp_path / "data"), "SELECT text FROM pairs ORDER BY text"]) == 0
    assert "four five six" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = ", "not TOML"),
        ("name = 't'\nbogus = 1", "unknown key; allowed here"),
        ("name = 't'\nextends = 't.toml'", "extends itself"),
        ("name = 't'\n[screen.rules]\nno = 1", "there is no rule 'no'"),
        ("name = 't'", "no [ingest] section"),
    ],
)
def test_a_wrong_recipe_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    path = tmp_path / "t.toml"
    path.write_text(text)
    assert said in refused(capsys, "ingest", "--data", tmp_path / "data", "--recipe", path)


def test_a_missing_recipe_is_one_message_also_from_the_shell(tmp_path: Path) -> None:
    status, _, err = call("ingest", "--data", tmp_path, "--recipe", tmp_path / "absent.toml", cwd=tmp_path)
    assert status == 1
    assert (
        err == f"error: cannot read the recipe {tmp_path / 'absent.toml'}: No such file or directory\n"
        "  -> name one with RECIPE=recipes/....toml\n"
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--engine", "cluster"], "there is no engine 'cluster'"),
        (["--workers", "-3"], "workers"),
        (["--only", "absent"], "no 'absent'"),
    ],
)
def test_a_wrong_option_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert said in refused(capsys, "ingest", "--data", tmp_path / "data", "--recipe", recipe(tmp_path), *more)


@pytest.mark.parametrize("content", [None, "", "no,header\n"])
def test_an_unreadable_list_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    path = recipe(tmp_path)
    (tmp_path / "list.csv").unlink()
    if content is not None:
        (tmp_path / "list.csv").write_text(content)
    assert "list.csv" in refused(capsys, "ingest", "--data", tmp_path / "data", "--recipe", path)


def test_a_list_that_may_not_be_read_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(tmp_path)
    os.chmod(tmp_path / "list.csv", 0)
    if os.access(tmp_path / "list.csv", os.R_OK):
        pytest.skip("this user may read everything")
    assert "list.csv" in refused(capsys, "ingest", "--data", tmp_path / "data", "--recipe", path)


def test_a_data_folder_that_is_a_file_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").write_text("")
    assert str(tmp_path / "data") in refused(
        capsys, "ingest", "--data", tmp_path / "data", "--recipe", recipe(tmp_path)
    )


def prepared(tmp_path: Path, more: str = "") -> tuple[str, ...]:
    arguments = ("--data", str(tmp_path / "data"), "--recipe", str(recipe(tmp_path, more)), "--workers", "1")
    for stage in ("ingest", "screen"):
        assert main([stage, *arguments]) == 0
    return arguments


def test_an_unreachable_server_is_one_message_and_can_be_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = prepared(tmp_path, "retries = 0\ntimeout = 2\n")
    for _ in range(2):
        assert "connect" in refused(capsys, "download", *arguments).lower()


@pytest.fixture
def pictures(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(5):
        (folder / f"{index}.png").write_bytes(corpus.pictures()[f"plain{index:02d}.png"])
    with serving(folder, 0, Faults(missing=0, slow=0, stalled=0)) as url:
        yield url


def test_a_server_that_had_nothing_is_asked_again_when_it_has(
    tmp_path: Path, pictures: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, "retries = 0\n")
    (tmp_path / "list.csv").write_text(f"url,text\n{pictures}/late.png,one two three\n")
    arguments = ("--data", str(tmp_path / "data"), "--recipe", str(path), "--workers", "1")
    for stage in ("ingest", "screen"):
        assert main([stage, *arguments]) == 0
    assert "http_404" in refused(capsys, "download", *arguments)
    shutil.copy(tmp_path / "pictures" / "0.png", tmp_path / "pictures" / "late.png")
    assert main(["download", *arguments]) == 0


def test_one_dead_host_in_the_last_small_shard_does_not_stop_the_others(tmp_path: Path, pictures: str) -> None:
    path = recipe(tmp_path, "retries = 0\ntimeout = 2\nimages_per_shard = 1\n")
    rows = [f"{pictures}/{index}.png,one two three" for index in range(3)]
    (tmp_path / "list.csv").write_text("url,text\n" + "\n".join(rows) + "\nhttp://127.0.0.1:9/dead.png,one two\n")
    arguments = ("--data", str(tmp_path / "data"), "--recipe", str(path), "--workers", "1")
    for stage in ("ingest", "screen", "download", "filter"):
        assert main([stage, *arguments]) == 0


@pytest.mark.parametrize("port", ["99999", "-1"])
def test_a_port_that_cannot_be_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str], port: str) -> None:
    with pytest.raises(Exception, match="port") as error, serving(tmp_path, int(port), Faults()):
        pass
    assert type(error.value).__name__ == "PairmillError"


def test_a_busy_port_is_one_message_with_the_way_out(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Exception, match=f"port {port}.*\n.*PORT=") as error, serving(tmp_path, port, Faults()):
            pass
    assert type(error.value).__name__ == "PairmillError"


def test_two_processes_at_once_are_refused(tmp_path: Path, web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(tmp_path, "retries = 0\ntimeout = 60\ndeadline = 60\n")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (tmp_path / "list.csv").write_text(f"url,text\nhttp://127.0.0.1:{silent.getsockname()[1]}/,one two three\n")
        arguments = ("--data", tmp_path / "data", "--recipe", path)
        for stage in ("ingest", "screen"):
            assert main([stage, *map(str, arguments)]) == 0
        process = start("download", *arguments, cwd=tmp_path)
        silent.accept()[0].close()  # so far it has come
        capsys.readouterr()
        try:
            assert "another process is working" in refused(capsys, "download", *arguments)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def test_ctrl_c_while_a_stage_starts_is_status_130_and_no_traceback(tmp_path: Path) -> None:
    arguments = prepared(tmp_path, "retries = 0\ntimeout = 60\n")
    (tmp_path / "data" / "logs" / "download.jsonl").unlink(missing_ok=True)
    process = start("download", *arguments, cwd=tmp_path)
    until((tmp_path / "data" / "logs" / "download.jsonl").exists)
    os.killpg(process.pid, signal.SIGINT)
    status, _, err = finish(process)
    assert (status, "Traceback" in err) == (130, False), err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    ).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


SLOW_STAGES = [pytest.param(stage, marks=pytest.mark.slow) for stage in ("screen", "filter", "extract", "catalog")]


@pytest.mark.parametrize("stage", ["ingest", "download", *SLOW_STAGES])
def test_a_full_disk_is_one_message_and_the_stage_carries_on_afterwards(
    tmp_path: Path, small_disk: Path, pictures: str, stage: str
) -> None:
    stages = ["ingest", "screen", "download", "filter", "extract", "catalog"]
    path = recipe(tmp_path, '[extract.pixel]\nkind = "pixel"\nimage_size = 64\n')
    rows = [f"{pictures}/{index}.png,the text {index} {word}" for index in range(5) for word in range(900)]
    (tmp_path / "list.csv").write_text("\n".join(["url,text", *rows, ""]))

    def arguments(data: Path) -> tuple[str, ...]:
        return ("--data", str(data), "--recipe", str(path), "--workers", "1")

    data = tmp_path / "data"
    for before in stages[: stages.index(stage)]:
        assert main([before, *arguments(data)]) == 0
    if data.exists():
        shutil.copytree(data, small_disk / "data")
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize
    filler = small_disk / "filler"
    filler.write_bytes(b"\0" * (free - 8192))
    status, _, err = call(stage, *arguments(small_disk / "data"), cwd=tmp_path)
    assert status == 1
    assert "Traceback" not in err
    assert os.strerror(errno.ENOSPC) in err or "spill space" in err
    assert "make room" in err
    filler.unlink()
    status, _, err = call(stage, *arguments(small_disk / "data"), cwd=tmp_path)
    assert status == 0, err
    assert main([stage, *arguments(data)]) == 0
    assert committed_bytes(small_disk / "data") == committed_bytes(data)
