"""The prompt, at a real pseudo-terminal; whether a statement is complete, against DuckDB's own parser; completion."""

import codecs
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_dataset import Image, jpeg, made_dataset

from pipeline.sql_shell.completion import Names
from pipeline.sql_shell.prompt import FIRST, FURTHER
from pipeline.sql_shell.session import is_complete
from pipeline.store.dataset import Dataset

REPOSITORY = Path(__file__).parents[2]
FRAGMENTS = ["'", '"', ";", "--", "\n", "/*", "*/", "$$", "$a$", " ", "x", "1", "''"]
HOSTILE = "a\x1b[31mb\u202ec"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    picture = jpeg(np.zeros((8, 8, 3), np.uint8))
    pairs = [(f"http://h/{number}", HOSTILE) for number in range(5)]
    return made_dataset(tmp_path_factory.mktemp("data"), pairs, [[Image(url, picture) for url, _ in pairs]])


class Terminal:
    """`pairmill sql` as a user at a terminal of 100 columns sees it."""

    def __init__(self, dataset: Dataset, home: Path, path: str = "/usr/bin:/bin", **environment: str) -> None:
        here, there = pty.openpty()
        fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self.terminal, self.seen = here, ""
        self.decode = codecs.getincrementaldecoder("utf-8")().decode
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "sql", "--data", str(dataset.root)],
            cwd=REPOSITORY,
            stdin=there,
            stdout=there,
            stderr=there,
            preexec_fn=lambda: (os.setsid(), fcntl.ioctl(0, termios.TIOCSCTTY, 0)),
            env={**os.environ, "TERM": "dumb", "PATH": path, "XDG_DATA_HOME": str(home), **environment},
        )
        os.close(there)

    def until(self, text: str, seconds: float = 60) -> str:
        """What appears up to and with `text`."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            if select.select([self.terminal], [], [], max(0.0, end - time.monotonic()))[0]:
                self.seen += self.decode(os.read(self.terminal, 1 << 16)).replace("\r", "")
            assert time.monotonic() < end, f"no {text!r} in {self.seen!r}"
        found, _, self.seen = self.seen.partition(text)
        return found + text

    def says(self, typed: str, prompt: str = f"\n{FIRST}") -> str:
        """What appears between what is typed, and Enter, and the next prompt."""
        os.write(self.terminal, typed.encode() + b"\n")
        self.until(typed.rpartition("\n")[2].rpartition("\t")[2])
        return self.until(prompt).removesuffix(prompt).strip("\n")

    def presses(self, control: str) -> None:
        time.sleep(0.5)  # as a hand does: Python's input() overlooks a signal that comes along with a letter
        os.write(self.terminal, bytes([ord(control) - 64]))

    def ends(self) -> int:
        try:
            while select.select([self.terminal], [], [], 20)[0] and (more := os.read(self.terminal, 1 << 16)):
                self.seen += self.decode(more)
        except OSError:  # the other end is closed
            pass
        os.close(self.terminal)
        return self.process.wait(timeout=20)


@pytest.fixture
def terminal(dataset: Dataset, tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(dataset, tmp_path)
    opened.until(FIRST)
    yield opened
    if opened.process.poll() is None:
        opened.process.kill()
        opened.process.wait()


def test_a_conversation(terminal: Terminal, tmp_path: Path) -> None:
    assert "│    42 │" in terminal.says("SELECT 6 * 7 AS n;")
    assert terminal.says("SELECT ';' AS a, -- not yet;", FURTHER) == ""
    assert "│ ;       │     7 │" in terminal.says("7 AS b;")
    assert terminal.says(";") == ""
    assert {"position", "double", "what values are compared with"} <= set(
        re.split(r" *│ *|\n", terminal.says(".describe funnel"))
    )
    assert "one row for each rule, with what it costs" in terminal.says(".views")
    wrong = terminal.says("SELECT 1 +\nnowhere;")
    assert re.search(r"LINE 2: nowhere\n +\^{7}$", wrong), wrong
    assert "there is no view 'nowhere'" in terminal.says(".describe nowhere")
    assert ".views lists them" in terminal.says(".describe x' OR '1'='1")
    assert ".views" in terminal.says(".nonsense")
    assert ".timer on" in terminal.says(".help")
    assert terminal.says(".timer on") == ""
    assert re.search(r"\n\d+\.\d{3} s$", terminal.says("SELECT 1;"))
    assert terminal.says(".timer off") == ""
    assert terminal.says(".mode csv") == ""
    assert terminal.says("SELECT 1 AS a, 'x,y' AS b;") == 'a,b\n1,"x,y"'
    assert terminal.says("FROM range(500);").splitlines() == ["range", *map(str, range(200))]
    assert "one of table, csv, json, jsonl" in terminal.says(".mode parquet")
    assert terminal.says(".mode json") == ""
    assert '{"a":1}' in terminal.says("SELECT 1 AS a;")
    terminal.presses("D")
    assert terminal.ends() == 0
    history = (tmp_path / "pairmill" / "sql_history").read_text().splitlines()
    assert history[0].startswith("SELECT 6 * 7")
    assert history[-1] == "SELECT 1 AS a;"


@pytest.mark.parametrize("mode", ["table", "csv", "json"])
def test_the_texts_of_the_web_do_not_command_the_terminal(terminal: Terminal, mode: str) -> None:
    assert terminal.says(f".mode {mode}") == ""
    shown = terminal.says("SELECT text FROM pairs;")
    assert "31mb" in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown


def test_ctrl_c_gives_up_a_query_or_a_line_and_nothing_else(terminal: Terminal) -> None:
    for mode in ("table", "csv"):
        terminal.says(f".mode {mode}")
        os.write(terminal.terminal, b"SELECT count(*) AS n FROM range(1000000000000) AS a, range(100000) AS b;\n")
        terminal.until("AS b;")
        terminal.presses("C")
        terminal.until(FIRST, seconds=10)
    os.write(terminal.terminal, b"SELECT half")
    terminal.until("half")
    terminal.presses("C")
    terminal.until(FIRST)
    assert terminal.says("SELECT 5 AS five;") == "five\n5"
    assert terminal.says("SELECT", FURTHER) == ""
    terminal.presses("C")
    terminal.until(FIRST)
    assert terminal.says("SELECT 6 AS six;") == "six\n6"
    os.write(terminal.terminal, b".quit\n")
    assert terminal.ends() == 0
    assert "Traceback" not in terminal.seen


def test_tab_completes_and_the_arrow_calls_back(terminal: Terminal) -> None:
    os.write(terminal.terminal, b"SELECT count(*) AS n FROM quar\t")
    terminal.until("quarantine")
    assert "│     0 │" in terminal.says(";")
    os.write(terminal.terminal, b"SELECT funnel.thr\t")
    terminal.until("funnel.threshold")
    assert "│" in terminal.says(" FROM funnel;")
    os.write(terminal.terminal, b"\x10")  # Ctrl-P, as the arrow
    terminal.until("funnel.threshold FROM funnel;")
    os.write(terminal.terminal, b"\n")
    assert "│" in terminal.until(FIRST)


def test_what_stages_write_meanwhile_is_seen_after_refresh(terminal: Terminal, dataset: Dataset) -> None:
    assert "│     5 │" in terminal.says("SELECT count(*) AS n FROM pairs;")
    dataset.catalog.with_name("catalog.duckdb.key.json").unlink()
    before = dataset.catalog.stat().st_ino
    assert terminal.says(".refresh") == ""
    assert dataset.catalog.stat().st_ino != before
    assert "│     5 │" in terminal.says("SELECT count(*) AS n FROM pairs;")


def test_a_home_that_cannot_be_written_to_is_no_reason_to_fail(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    opened = Terminal(dataset, tmp_path / "file")
    opened.until(FIRST)
    opened.presses("D")
    assert opened.ends() == 0
    assert "Error" not in opened.seen


@pytest.mark.parametrize(
    ("version_fits", "expected"), [(True, "DUCKDB -readonly"), (False, "cannot open this catalog")]
)
def test_duckdbs_own_shell_is_opened_if_it_can(
    dataset: Dataset, tmp_path: Path, version_fits: bool, expected: str
) -> None:
    program = tmp_path / "bin" / "duckdb"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n[ "$1" = -init ] && exit {int(not version_fits)}\necho "DUCKDB $@"\n')
    program.chmod(0o755)
    opened = Terminal(dataset, tmp_path, path=f"{program.parent}:/usr/bin:/bin")
    opened.until(expected)
    if version_fits:
        opened.until(f" {dataset.catalog}")
    else:
        opened.until(FIRST)
        opened.presses("D")
    assert opened.ends() == 0


def test_a_script_on_standard_input_is_answered(dataset: Dataset) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "sql", "--data", str(dataset.root)]
    script = "SELECT 11 AS a;\nSELECT 22 AS b;"
    process = subprocess.run(command, cwd=REPOSITORY, input=script, capture_output=True, text=True, timeout=60)
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.index("11") < process.stdout.index("22")
    one = subprocess.run([*command, "--format", "csv"], cwd=REPOSITORY, input=b"SELECT 1 AS a", capture_output=True)
    assert one.stdout == b"a\n1\n"
    nothing = subprocess.run(command, cwd=REPOSITORY, input="", capture_output=True, text=True, timeout=60)
    assert (nothing.returncode, "make sql Q=" in nothing.stderr) == (1, True)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join))
def test_a_statement_is_complete_where_its_semicolon_is_one(text: str) -> None:
    """DuckDB's tokens are the judge: what is put behind a complete text is a token of its own."""
    assume(text.count("/*") < 2)  # DuckDB's comments nest
    probe = f"SELECT 1 {text}"
    tokens = duckdb.tokenize(f"{probe}\n42424")
    apart = any(start == len(f"{probe}\n") for start, _ in tokens)
    kinds = [kind for start, kind in duckdb.tokenize(probe) if kind != duckdb.token_type.comment]
    last = max((start for start, kind in duckdb.tokenize(probe) if kind != duckdb.token_type.comment), default=-1)
    assert kinds
    assert is_complete(probe) == (apart and probe[last] == ";" and kinds[-1] == duckdb.token_type.operator)


def test_completion_offers_what_there_is() -> None:
    names = Names(
        ["kept", "odd view"], ["why"], [("kept", "uid"), ("kept", "Key"), ("odd view", "uid")], ["select", "where"]
    )
    assert names.candidates("FROM ", "ke") == ["kept", '"Key"']
    assert names.candidates("FROM ", "od") == ['"odd view"']
    assert names.candidates("", "WH") == ["why(", "WHERE"]
    assert names.candidates("SELECT ", "kept.") == ["kept.uid", 'kept."Key"']
    assert names.candidates("SELECT ", "k.U") == ["k.uid"]
    assert names.candidates("", ".he", [".help", ".mode"]) == [".help"]
    assert names.candidates("SELECT ", ".he", [".help"]) == []


def test_ctrl_c_ends_the_program_where_duckdb_cannot_end_the_query(terminal: Terminal) -> None:
    terminal.says("SELECT 1;")
    os.write(terminal.terminal, b"SELECT levenshtein(repeat('a', 1000000), repeat('b', 1000000)) AS far;\n")
    terminal.until("AS far;")
    terminal.presses("C")
    terminal.until("Ctrl-C ends this program")
    terminal.presses("C")
    assert terminal.ends() == 130
    assert "ended, and the query with it" in terminal.seen
    assert "Traceback" not in terminal.seen
