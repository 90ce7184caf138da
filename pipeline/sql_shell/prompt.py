"""The prompt: SQL that may go over several lines and ends with `;`, and commands that begin with a dot."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.catalog import refresh
from pipeline.errors import PairmillError
from pipeline.sql_shell.completion import DELIMITERS, Names
from pipeline.sql_shell.output import MAX_ROWS, Format, quiet_when_nobody_reads, say, stream, table
from pipeline.sql_shell.session import Session, Statement, is_complete
from pipeline.store.dataset import Dataset
from pipeline.store.sql import literal

FIRST, FURTHER = "sql> ", "...> "
_HISTORY_LINES = 10_000
_MODES = (Format.TABLE, Format.CSV, Format.JSON, Format.JSONL)
_VIEWS = """
    SELECT view_name AS name, comment FROM duckdb_views() WHERE NOT internal
    UNION ALL BY NAME
    SELECT function_name || '(' || array_to_string(parameters, ', ') || ')' AS name, any_value(comment) AS comment
    FROM duckdb_functions() WHERE NOT internal AND function_type IN ('macro', 'table_macro') GROUP BY ALL
    ORDER BY contains(name, '('), name"""
_COLUMNS = """
    SELECT column_name AS "column", lower(data_type) AS type, comment FROM duckdb_columns()
    WHERE NOT internal AND table_name = {} ORDER BY column_index"""


class Prompt:
    """What a conversation remembers: its session, how rows are shown, whether times are."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.session = Session(dataset.catalog)
        self.names = Names.of(self.session)
        self.mode, self.timing = Format.TABLE, False
        self.commands: dict[str, Callable[[str], None]] = {
            ".help": self.help,
            ".views": self.views,
            ".describe": self.describe,
            ".mode": self.set_mode,
            ".timer": self.set_timer,
            ".refresh": self.refresh,
            ".quit": self.quit,
        }
        """The docstring of each is its line in `.help`."""

    def answer(self, text: str) -> None:
        """Run a command, or a script's statements; raises PairmillError for what is wrong."""
        if text.startswith("."):
            name, _, argument = text.partition(" ")
            if name not in self.commands:
                raise PairmillError(f"{name}: there is no such command", f"one of {', '.join(self.commands)}")
            self.commands[name](argument.strip().rstrip(";"))
            return
        for statement in self.session.statements(text):
            started = time.monotonic()
            self.show(statement)
            if self.timing:
                say(f"{time.monotonic() - started:.3f} s")

    def show(self, statement: Statement) -> None:
        if self.mode is Format.TABLE or not statement.gives_rows:
            text = table(self.session, statement)
            if text is not None:
                say(text)
        else:
            stream(self.session, statement, self.mode, MAX_ROWS)

    def help(self, _: str) -> None:
        """.help              this list"""
        say("SQL ends with ; and may go over several lines. Tab completes, Ctrl-C interrupts, Ctrl-D ends.")
        for command in self.commands.values():
            say(f"  {command.__doc__}")
        say(f'Tables, CSV and JSON are cut after {MAX_ROWS} rows here; all of them: make sql Q="..." FORMAT=csv')

    def views(self, _: str) -> None:
        """.views             the views and macros"""
        self.show(self.session.statements(_VIEWS)[0])

    def describe(self, view: str) -> None:
        """.describe VIEW     its columns"""
        if not self.session.rows("SELECT 1 FROM duckdb_views() WHERE NOT internal AND view_name = ?", [view]):
            raise PairmillError(f"there is no view {view!r}", ".views lists them")
        self.show(self.session.statements(_COLUMNS.format(literal(view)))[0])

    def set_mode(self, name: str) -> None:
        """.mode table|csv|json|jsonl"""
        if name not in _MODES:
            raise PairmillError(f".mode {name}: there is no such mode", f"one of {', '.join(_MODES)}")
        self.mode = Format(name)

    def set_timer(self, word: str) -> None:
        """.timer on|off      how long each statement took"""
        if word not in ("on", "off"):
            raise PairmillError(f".timer {word}: neither on nor off", ".timer on")
        self.timing = word == "on"

    def refresh(self, _: str) -> None:
        """.refresh           see what stages have written since"""
        refresh(self.dataset)
        self.session.close()
        self.session = Session(self.dataset.catalog)
        self.names = Names.of(self.session)

    def quit(self, _: str) -> None:
        """.quit              as Ctrl-D does"""
        raise EOFError


def run(dataset: Dataset) -> None:
    """Read, answer, and go on until the end; what is wrong with a statement does not end it."""
    prompt = Prompt(dataset)
    line = _Line(prompt)
    say(f"{dataset.catalog}, read-only. .help says what there is, .views what can be asked.")
    try:
        with suppress(EOFError), line.edited(), quiet_when_nobody_reads():
            while True:
                try:
                    prompt.answer(line.read())
                except PairmillError as error:
                    print(error, file=sys.stderr, flush=True)
                except KeyboardInterrupt:
                    say("")  # the line, or the query, is given up
    finally:
        prompt.session.close()


class _Line:
    """Lines typed at the terminal, with history and completion where Python has readline."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt
        self.history = _data_folder() / "sql_history"
        self.offered: list[str] = []

    @contextmanager
    def edited(self) -> Iterator[None]:
        """Lines can be edited, completed and called back until this ends."""
        try:
            import readline
        except ImportError:
            yield
            return

        def complete(word: str, state: int) -> str | None:
            if state == 0:
                before = readline.get_line_buffer()[: readline.get_begidx()]
                self.offered = self.prompt.names.candidates(before, word, list(self.prompt.commands))
            return self.offered[state] if state < len(self.offered) else None

        readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")
        readline.set_completer(complete)
        readline.set_completer_delims(DELIMITERS)
        readline.set_history_length(_HISTORY_LINES)
        with suppress(OSError):
            readline.read_history_file(self.history)
        try:
            yield
        finally:
            readline.set_completer(None)
            with suppress(OSError):  # a home that cannot be written to is no reason to fail
                self.history.parent.mkdir(parents=True, exist_ok=True)
                readline.write_history_file(self.history)

    def read(self) -> str:
        """A command, or lines up to one that ends a statement."""
        text = ""
        while not is_complete(text):
            line = input(FURTHER if text.strip() else FIRST)
            if not text.strip() and line.startswith("."):
                return line
            text += f"{line}\n"
        return text


def _data_folder() -> Path:
    """Where the XDG Base Directory Specification puts a program's own files."""
    named = Path(os.environ.get("XDG_DATA_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".local" / "share") / "pairmill"
