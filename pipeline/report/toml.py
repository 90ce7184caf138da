"""A recipe as TOML text that reads back as the same values. Tables inside of lists are written inline."""

import json
import re
from collections.abc import Mapping
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def toml(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> str:
    """Values first, then one `[section]` after another. None has no TOML: leave it out beforehand."""
    lines = [f"{_key(key)} = {_value(value)}" for key, value in values.items() if not isinstance(value, Mapping)]
    blocks = ["\n".join(([f"[{'.'.join(map(_key, path))}]"] if path else []) + lines)] if lines or not values else []
    blocks += [toml(value, (*path, key)).rstrip() for key, value in values.items() if isinstance(value, Mapping)]
    return "\n\n".join(blocks) + "\n"


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_value(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list | tuple):
        inner = [_value(item) for item in value]
        flat = f"[{', '.join(inner)}]"
        return flat if len(flat) <= 80 else "[\n" + "".join(f"  {item},\n" for item in inner) + "]"
    return repr(value)
