"""Tables: shards that are whole or absent, journals that survive kills, manifests that vouch."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import until

from pipeline.errors import PairmillError
from pipeline.store.atomic import replacing, write_json
from pipeline.store.table import JOURNAL, MANIFEST, Shard, Table

KEYS = {f"{index:05d}": f"key{index}" for index in range(6)}

WRITER = """
import sys
from pathlib import Path
from pipeline.store.atomic import replacing
from pipeline.store.table import Shard, Table

table = Table(Path(sys.argv[1]), "test")
keys = {f"{index:05d}": f"key{index}" for index in range(6)}
with table.writing("whole", keys) as writing:
    for name in writing.todo:
        with replacing(table.folder / f"{name}.txt") as path:
            with open(path, "w") as file:
                for _ in range(200):
                    file.write(name * 100)
                    file.flush()
        writing.add(Shard.of(table.folder, name, keys[name], [f"{name}.txt"], {"rows": 1}))
    writing.commit({"said": "all"})
"""


def put(table: Table, name: str, content: str, key: str) -> Shard:
    with replacing(table.folder / f"{name}.txt") as path:
        path.write_text(content)
    return Shard.of(table.folder, name, key, [f"{name}.txt"], {"rows": len(content)})


def fill(table: Table, keys: dict[str, str] = KEYS, key: str = "whole") -> list[str]:
    """Make what is to do; returns the names of the shards made."""
    with table.writing(key, keys) as writing:
        made = list(writing.todo)
        for name in made:
            writing.add(put(table, name, keys[name] * 10, keys[name]))
        writing.commit()
    return made


def contents(folder: Path) -> dict[str, str]:
    """Every file, the manifest without its seconds."""
    found = {path.name: path.read_text() for path in folder.iterdir()}
    if MANIFEST in found:
        manifest = json.loads(found[MANIFEST])
        manifest.pop("seconds")
        found[MANIFEST] = json.dumps(manifest)
    return found


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path / "table", "test")


def test_a_table_is_made_once(table: Table) -> None:
    assert fill(table) == list(KEYS)
    assert table.is_current("whole")
    assert not table.is_current("other")
    assert fill(table) == []
    assert table.manifest.count("rows") == 6 * 40


def test_a_table_that_is_not_there_says_what_to_run(table: Table) -> None:
    with pytest.raises(PairmillError, match="make test"):
        _ = table.manifest


def test_only_shards_of_another_key_are_made_again(table: Table) -> None:
    fill(table)
    assert fill(table, KEYS | {"00002": "new"}, "other") == ["00002"]
    assert (table.folder / "00002.txt").read_text() == "new" * 10


def test_stale_shards_and_half_written_files_are_swept_away(table: Table) -> None:
    fill(table)
    (table.folder / "00009.txt.partial").write_text("half")
    (table.folder / "stray.txt").write_text("?")
    fewer = {name: key for name, key in KEYS.items() if name < "00003"}
    assert fill(table, fewer, "fewer") == []
    assert sorted(path.name for path in table.folder.iterdir()) == ["00000.txt", "00001.txt", "00002.txt", MANIFEST]


def test_a_truncated_or_missing_file_is_made_again(table: Table) -> None:
    fill(table)
    before = contents(table.folder)
    os.truncate(table.folder / "00001.txt", 3)
    (table.folder / "00004.txt").unlink()
    assert not table.is_current("whole")
    assert fill(table) == ["00001", "00004"]
    assert contents(table.folder) == before


def test_a_journal_whose_last_line_is_cut_off_keeps_the_lines_before(table: Table) -> None:
    with table.writing("whole", KEYS) as writing:
        for name in ("00000", "00001", "00002"):
            writing.add(put(table, name, KEYS[name] * 10, KEYS[name]))
    journal = table.folder / JOURNAL
    os.truncate(journal, journal.stat().st_size - 20)
    assert fill(table) == ["00002", "00003", "00004", "00005"]
    undisturbed = Table(table.folder.parent / "undisturbed", "test")
    fill(undisturbed)
    assert contents(table.folder) == contents(undisturbed.folder)


@pytest.mark.parametrize("tail", [b"\0" * 50, b"\xff\xfe\n", b"[]\n", b"{}\n", b"7\n", b'{"name": "00003"}\n'])
def test_rubbish_at_the_end_of_a_journal_is_passed_over(table: Table, tail: bytes) -> None:
    with table.writing("whole", KEYS) as writing:
        writing.add(put(table, "00000", "x", KEYS["00000"]))
    with open(table.folder / JOURNAL, "ab") as file:
        file.write(tail)
    assert "00000" not in fill(table)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b'"x"',
        b"{}",
        b'{"shards": 3}',
        b'{"shards": [1]}',
        b"\xff",
        b'{"shards": [], "more": 1}',
    ],
)
def test_a_corrupted_manifest_is_named(table: Table, content: bytes) -> None:
    fill(table)
    (table.folder / MANIFEST).write_bytes(content)
    with pytest.raises(PairmillError, match="is not a manifest"):
        _ = table.manifest
    (table.folder / MANIFEST).unlink()  # as the message says
    fill(table)
    assert table.is_current("whole")


def test_a_table_is_not_current_while_it_is_made_again(table: Table) -> None:
    fill(table)
    with table.writing("other", KEYS | {"00000": "new"}):
        assert not table.exists
    assert not table.exists


def test_a_commit_with_shards_missing_is_refused(table: Table) -> None:
    with pytest.raises(PairmillError, match="5 shards are missing"), table.writing("whole", KEYS) as writing:  # noqa: PT012
        writing.add(put(table, "00000", "x", KEYS["00000"]))
        writing.commit()
    assert not table.exists


def test_a_failed_account_leaves_no_manifest(table: Table) -> None:
    def check(_: object) -> None:
        raise AssertionError("does not add up")

    with pytest.raises(AssertionError, match="add up"), table.writing("whole", {}) as writing:
        writing.commit(check=check)
    assert not table.exists


def test_the_digest_is_of_the_contents_and_not_of_the_order_or_the_time(tmp_path: Path) -> None:
    tables = [Table(tmp_path / name, "test") for name in "ab"]
    for table, order in zip(tables, (list(KEYS), list(reversed(KEYS))), strict=True):
        with table.writing("whole", KEYS) as writing:
            for name in order:
                writing.add(put(table, name, KEYS[name], KEYS[name]))
            writing.commit()
    assert tables[0].manifest.digest == tables[1].manifest.digest
    assert contents(tables[0].folder) == contents(tables[1].folder)
    before = tables[0].manifest.digest
    with tables[0].writing("whole", KEYS | {"00000": "new"}) as writing:
        writing.add(put(tables[0], "00000", "else", "new"))
        writing.commit()
    assert tables[0].manifest.digest != before


def test_killed_at_random_moments_the_same_files_are_there_in_the_end(tmp_path: Path) -> None:
    folder, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", WRITER, str(undisturbed)], check=True)
    seconds = time.monotonic() - began
    draw = random.Random(0)
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)])
        until(lambda process=process: (folder / JOURNAL).exists() or process.poll() is not None)
        time.sleep(draw.random() * seconds / 20)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([sys.executable, "-c", WRITER, str(folder)], check=True)
    assert contents(folder) == contents(undisturbed)


def test_replacing_keeps_the_old_file_when_the_new_one_fails(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError, match="half way"), replacing(path) as partial:  # noqa: PT012
        partial.write_text("half")
        raise RuntimeError("half way")
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_table_that_was_carried_on_is_the_same_to_its_readers(tmp_path: Path) -> None:
    digests = []
    for interrupted in (False, True):
        table = Table(tmp_path / str(interrupted), "ingest")
        with table.writing("key", {"0": "k"}) as writing:
            (table.folder / "0.parquet").write_bytes(b"rows")
            # Counts in no order of the alphabet: they must come out of the journal as they went in.
            writing.add(Shard.of(table.folder, "0", "k", ["0.parquet"], {"requested": 2, "ok": 1, "failed/dns": 1}))
            if not interrupted:
                digests.append(writing.commit().digest)
        if interrupted:
            with table.writing("key", {"0": "k"}) as writing:
                digests.append(writing.commit().digest)
    assert digests[0] == digests[1]
