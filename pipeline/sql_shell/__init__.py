"""`make sql`: questions to a dataset's catalog, one by one or at a prompt.

`ask` writes a query's rows as a table for people, or as CSV, JSON or Parquet for programs, to standard output or to a
file. `open_shell` opens DuckDB's own shell where it is installed, and `prompt` otherwise. Both bring the catalog up to
date first and open it read-only. This is the user's own shell on the user's own machine: unlike the explorer, which
whoever reaches its port may use, it lets DuckDB read and write files (`COPY`, `ATTACH`, `read_csv`), which the user
could do without it.
"""

from pathlib import Path

from pipeline.catalog import refresh
from pipeline.sql_shell import program, prompt
from pipeline.sql_shell.output import Format, answer, quiet_when_nobody_reads
from pipeline.sql_shell.session import Session
from pipeline.store.dataset import Dataset

__all__ = ["Format", "ask", "open_shell"]


def ask(dataset: Dataset, sql: str, form: Format, out: Path | None = None) -> None:
    """Write what the statements of `sql` give to `out`, or to standard output.

    Raises PairmillError with DuckDB's own words where a statement is wrong, KeyboardInterrupt where Ctrl-C ended it.
    """
    refresh(dataset)
    with Session(dataset.catalog) as session, quiet_when_nobody_reads():
        answer(session, sql, form, out)


def open_shell(dataset: Dataset) -> None:
    """Answer at this terminal until the user has had enough."""
    refresh(dataset)
    if not program.replace_by_duckdb(dataset.catalog):
        prompt.run(dataset)
