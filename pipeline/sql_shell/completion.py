"""What Tab offers: commands, views, macros, columns and SQL's words."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.sql_shell.session import Session
from pipeline.store.sql import identifier

DELIMITERS = " \t\n\"'`<>=;|&(),[]{}+-*/%!:"
"""A word ends at these; a dot is part of one, so that `view.column` is completed as one."""
_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")


@dataclass(frozen=True)
class Names:
    """What a query can name."""

    views: Sequence[str]
    macros: Sequence[str]
    columns: Sequence[tuple[str, str]]
    """(view, column)."""
    keywords: Sequence[str]

    @classmethod
    def of(cls, session: Session) -> "Names":
        return cls(
            [name for (name,) in session.rows("SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY 1")],
            [
                name
                for (name,) in session.rows(
                    "SELECT DISTINCT function_name FROM duckdb_functions() "
                    "WHERE NOT internal AND function_type IN ('macro', 'table_macro') ORDER BY 1"
                )
            ],
            [
                (view, column)
                for view, column in session.rows(
                    "SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal ORDER BY ALL"
                )
            ],
            [
                word  # without rare ones, which would stand in the way of names: QUARTER of quarantine
                for (word,) in session.rows(
                    "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category <> 'unreserved' ORDER BY 1"
                )
            ],
        )

    def candidates(self, before: str, word: str, commands: Sequence[str] = ()) -> list[str]:
        """How `word`, which `before` precedes on its line, could go on; names first, then SQL's words."""
        if word.startswith(".") and not before.strip():
            return [command for command in commands if command.startswith(word)]
        owner, dot, start = word.rpartition(".")
        if dot:  # `owner` is a view, or an alias of any
            of_view = [column for view, column in self.columns if view == owner]
            columns = of_view or [column for _, column in self.columns]
            return [f"{owner}.{name}" for name in _matching(columns, start)]
        relations = [*self.views, *(f"{macro}(" for macro in self.macros)]
        names = _matching([*relations, *(column for _, column in self.columns)], word)
        words = _matching(self.keywords, word)
        return list(dict.fromkeys([*names, *(w.upper() if word.isupper() else w for w in words)]))


def _matching(names: Sequence[str], start: str) -> list[str]:
    matching = [name for name in names if name.lower().startswith(start.lower())]
    return list(
        dict.fromkeys(name if _PLAIN.fullmatch(name.removesuffix("(")) else identifier(name) for name in matching)
    )
