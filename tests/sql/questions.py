"""docs/sql.md: its questions, what they answer, and its table of views and macros.

`python -m tests.sql.questions FOLDER` asks the dataset in that folder and writes its answers into the document.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.catalog import refresh
from pipeline.sql_shell.output import table
from pipeline.sql_shell.session import Session
from pipeline.store.dataset import Dataset
from pipeline.store.views.comments import VIEWS

DOCUMENT = Path(__file__).parents[2] / "docs" / "sql.md"
_QUESTION = re.compile(r"(?<=```sql\n)(?P<sql>.*?)\n```\n\n```\n(?P<output>.*?)(?=\n```\n)", re.DOTALL)
_TITLE = re.compile(r"^## (\d+)\. (.+)$", re.MULTILINE)
_THERE = re.compile(r"(?<=<!-- what there is -->\n).*?(?=<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Question:
    title: str
    sql: str
    output: str

    @property
    def columns(self) -> list[list[str]]:
        """Of each table in the output."""
        return columns(self.output)


def columns(output: str) -> list[list[str]]:
    """The names of the columns of each drawn table."""
    lines = output.splitlines()
    heads = [lines[number + 1] for number, line in enumerate(lines) if line.startswith("┌")]
    return [[name.strip() for name in head.strip("│").split("│")] for head in heads]


def questions(document: str) -> list[Question]:
    """In order; the title is that of the section, or "" before the first question."""
    found = []
    for match in _QUESTION.finditer(document):
        titles = [title[2] for title in _TITLE.finditer(document, 0, match.start())]
        found.append(Question(titles[-1] if titles else "", match["sql"], match["output"]))
    return found


def answer(session: Session, sql: str) -> str:
    """What `make sql` prints for it."""
    tables = (table(session, statement) for statement in session.statements(sql))
    return "\n".join(text for text in tables if text is not None)


def there(session: Session) -> str:
    """The table of views and macros, out of the catalog's comments. Columns that hang on the recipe are not in it."""
    lines = ["| view | one row for | columns |", "|---|---|---|"]
    for view, comment in session.rows("SELECT view_name, comment FROM duckdb_views() WHERE NOT internal ORDER BY 1"):
        if view.startswith("embeddings_"):
            continue
        names = session.rows(
            "SELECT column_name FROM duckdb_columns() WHERE table_name = ? AND NOT internal ORDER BY column_index",
            [view],
        )
        fixed = [f"`{name}`" for (name,) in names if name in VIEWS[view][1]]
        more = ["one for each rule that compares numbers"] if view in ("screened", "filtered") else []
        said = comment.removeprefix("one row for ").replace("|", "\\|")
        lines.append(f"| `{view}` | {said} | {', '.join([*fixed, *more])} |")
    lines += ["", "| macro | what it gives |", "|---|---|"]
    macros = session.rows(
        "SELECT DISTINCT function_name, comment FROM duckdb_functions() "
        "WHERE NOT internal AND function_type = 'table_macro' ORDER BY 1"
    )
    for name, comment in macros:
        signature, found, said = comment.partition("): ")
        call, said = (f"{signature})", said) if found else (f"{name}()", comment)
        lines.append(f"| `{call}` | {said} |")
    return "\n".join(lines) + "\n"


def rewritten(document: str, session: Session, ask: Callable[[Session, str], str] = answer) -> str:
    """The document with this catalog's answers."""
    document = _THERE.sub(lambda _: there(session), document)
    return _QUESTION.sub(lambda match: f"{match['sql']}\n```\n\n```\n{ask(session, match['sql'])}", document)


if __name__ == "__main__":
    dataset = Dataset(sys.argv[1])
    refresh(dataset)
    with Session(dataset.catalog) as opened:
        DOCUMENT.write_text(rewritten(DOCUMENT.read_text(), opened))
