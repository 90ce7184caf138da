"""What goes out under `metadata`: the lists' own columns, and where in the lists a pair stood.

A value keeps its type where JSON, Parquet and MongoDB all have it; every other becomes text. What has names inside
(structs, maps) becomes JSON text: those names may be anything, and each would be a column of a kind.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, cast

import duckdb
from duckdb.sqltypes import DuckDBPyType

from pipeline.store.sql import identifier

_OF_THE_PAIR = frozenset({"uid", "url", "text"})
"""Columns of `pairs` that a caption has itself."""
_COMMAND = re.compile(r"_type|(.*_)?file_names?", re.DOTALL)
"""Names by which `datasets` knows the types of its features, and the files of a folder of pictures."""

Kind = Literal["text", "json", "boolean", "whole", "number"]


@dataclass(frozen=True)
class Field:
    """A field of `metadata`. `kind`: of a value; json: text that holds JSON. `lists`: how deep in lists values are."""

    name: str
    kind: Kind
    lists: int


def fields_of_pairs(connection: duckdb.DuckDBPyConnection, scores: Collection[str]) -> dict[Field, str]:
    """The fields, in the order of the columns of the view `pairs`, and the SQL of each over it.

    `scores`: columns that go out as scores. The connection's time zone must be UTC.
    """
    pairs = connection.sql("FROM pairs LIMIT 0")
    kinds = {
        name: kind
        for name, kind in zip(pairs.columns, pairs.types, strict=True)
        if name not in _OF_THE_PAIR and name not in scores
    }
    values = {name: f"pairs.{identifier(name)}" for name in kinds}
    if "original" in kinds:  # which `pairs` has only where cleaning changed it
        values["original"] = "coalesce(pairs.original, pairs.text)"
    if "file" in kinds:
        files = [str(file) for (file,) in connection.execute("SELECT DISTINCT file FROM pairs").fetchall()]
        public = public_names(files)
        connection.execute(
            "CREATE OR REPLACE TEMP TABLE lists AS SELECT unnest(?::VARCHAR[]) AS file, unnest(?::VARCHAR[]) AS name",
            [list(public), list(public.values())],
        )
        values["file"] = "(SELECT name FROM lists WHERE lists.file = pairs.file)"
    return {
        Field(safe, _kind(kinds[name]), _depth(kinds[name])): _plain(values[name], kinds[name])
        for name, safe in safe_names(kinds).items()
    }


def safe_names(names: Iterable[str]) -> dict[str, str]:
    """Name -> the name under which it goes out, which no reader takes for a command or cuts off; each once, whatever
    its case.
    """
    found: dict[str, str] = {}
    names = list(names)
    taken = {name.lower() for name in names}
    for name in names:
        safe = name.replace("\0", "_")
        while _COMMAND.fullmatch(safe) or (safe != name and safe.lower() in taken):
            safe += "_"
        taken.add(safe.lower())
        found[name] = safe
    return found


def public_names(files: Iterable[str]) -> dict[str, str]:
    """List -> its name from the folder on that all lists are in.

    An export may be published: where the lists lay on this machine, and the passwords and signatures of their urls,
    stay here.
    """
    paths = {file: _without_secrets(file) for file in sorted(files)}
    shared = os.path.commonprefix(list(paths.values()))  # noqa: RUF071 - of characters, and cut at a slash
    folder = shared[: shared.rfind("/") + 1]
    return {file: path.removeprefix(folder) for file, path in paths.items()}


def _without_secrets(file: str) -> str:
    scheme, _, rest = file.rpartition("://")
    if not scheme:
        return file
    host, slash, path = re.split("[?#]", rest, maxsplit=1)[0].partition("/")
    return host.rpartition("@")[2] + slash + path


_KINDS: Mapping[str, Kind] = {
    "boolean": "boolean",
    **dict.fromkeys(("tinyint", "smallint", "integer", "bigint", "utinyint", "usmallint", "uinteger"), "whole"),
    **dict.fromkeys(("float", "double"), "number"),
    **dict.fromkeys(("struct", "map", "union", "variant"), "json"),
}


def _is_list(kind: DuckDBPyType) -> bool:
    return kind.id in ("list", "array")


def _of(kind: DuckDBPyType) -> DuckDBPyType:
    """What a list is of."""
    return cast(DuckDBPyType, dict(kind.children)["child"])


def _kind(kind: DuckDBPyType) -> Kind:
    return _kind(_of(kind)) if _is_list(kind) else _KINDS.get(kind.id, "text")


def _depth(kind: DuckDBPyType) -> int:
    """0 for what is one JSON text, lists and all."""
    return 1 + _depth(_of(kind)) if _is_list(kind) and _kind(kind) != "json" else 0


def _plain(value: str, kind: DuckDBPyType) -> str:
    """SQL of a value as its `Field` has it."""
    if _kind(kind) == "json":
        return f"to_json({value})::VARCHAR"
    if _is_list(kind):
        element = f"element_{_depth(kind)}"
        return f"list_transform({value}, lambda {element}: {_plain(element, _of(kind))})"
    match _KINDS.get(kind.id, kind.id):
        case "boolean":
            return value
        case "whole":
            return f"{value}::BIGINT"
        case "number":  # JSON has neither NaN nor infinity
            return f"CASE WHEN isfinite({value}) THEN {value}::DOUBLE END"
        case "blob":  # old writers of Parquet do not mark texts as such
            return f"coalesce(TRY(decode({value})), {value}::VARCHAR)"
        case "timestamp" | "timestamp_s" | "timestamp_ms" | "timestamp_ns":
            return rf"regexp_replace({value}::VARCHAR, '^(\d{{4}}-\d\d-\d\d) (\d)', '\1T\2')"
        case "timestamp with time zone":
            return rf"regexp_replace({value}::VARCHAR, '^(\d{{4}}-\d\d-\d\d) (\d.*)\+00$', '\1T\2Z')"
        case _:
            return f"{value}::VARCHAR"
