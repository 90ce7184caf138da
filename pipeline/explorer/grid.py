"""Rows as pictures: each with its text, its url and what became of the pair, and all there is to know at a click."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from nicegui import ui

from pipeline.errors import PairmillError
from pipeline.explorer.explorer import Explorer
from pipeline.explorer.latest import Latest, ending_with_page

A_PAGE = 48
SIDE = 320
"""Pixels of a picture in the grid, twice as many as it is shown with."""
_FACTS = 4
"""How many of a row's other values stand under its picture."""


@dataclass
class Pair:
    """What a picture of the grid shows. `fell`: the rules that the pair failed, in order; None where not judged."""

    uid: str | None
    key: str | None
    url: str = ""
    text: str = ""
    extractor: str = ""
    fell: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)


def said(error: Exception) -> ui.label:
    """An error that a user can cause, in the place where it happened."""
    return ui.label(str(error)).classes("explorer-error").props('role="alert"')


def has_pictures(names: Iterable[str]) -> bool:
    """Whether rows of these columns can be shown as pictures."""
    return not {"uid", "key"}.isdisjoint(names)


async def picture_grid(explorer: Explorer, rows: Sequence[Mapping[str, Any]], a_page: int = A_PAGE) -> None:
    """Pictures of the rows that have a `uid` or a `key`, paged; further columns stand under them as facts.

    `extractor`, where a row has it, is the one whose boxes are drawn. What a row lacks (text, url, key) is looked up.
    """
    rows = [row for row in rows if row.get("uid") or row.get("key")]
    if not rows:
        ui.label("No row has a picture.").classes("explorer-soft")
        return

    async def turn(number: int) -> None:
        try:
            pairs = await looked_up(explorer, rows[(number - 1) * a_page : number * a_page])
        except PairmillError as error:
            place.clear()
            with place:
                said(error)
            return
        place.clear()
        with place:
            for pair in pairs:
                _item(explorer, pair)

    latest = Latest()
    place = ui.element("div").classes("explorer-grid")
    pages = -(-len(rows) // a_page)
    if pages > 1:
        ui.pagination(1, pages, direction_links=True, on_change=lambda change: latest.start(turn, int(change.value)))
    await turn(1)


async def looked_up(explorer: Explorer, rows: Sequence[Mapping[str, Any]]) -> list[Pair]:
    """The pairs behind the rows, with what became of them."""
    views = await explorer.views()
    pairs = [_pair(row) for row in rows]
    by_uid = [pair for pair in pairs if pair.uid and not (pair.key and pair.text)]
    by_key = [pair for pair in pairs if not pair.uid]
    images = "images" in views
    if by_uid:
        source = "LEFT JOIN (SELECT url, key FROM images WHERE status = 'ok') USING (url)" if images else ""
        select = f"SELECT uid, url, text, {'key' if images else 'NULL AS key'} FROM (SELECT uid, url, text FROM pairs)"
        uids = [pair.uid for pair in by_uid]
        found = await explorer.ask(f"{select} {source} WHERE uid IN {_list(uids)}", uids, rows=len(uids))
        _complete(by_uid, "uid", found.rows)
    if by_key and images:
        keys = [pair.key for pair in by_key]
        query = (
            f"WITH wanted AS (SELECT key, url FROM images WHERE key IN {_list(keys)}) "
            "SELECT key, any_value(url) AS url, min(uid) AS uid, arg_min(text, uid) AS text "
            "FROM wanted LEFT JOIN (SELECT uid, url, text FROM pairs) USING (url) GROUP BY key"
        )
        _complete(by_key, "key", (await explorer.ask(query, keys, rows=len(keys))).rows)
    if "verdicts" in views and (uids := [pair.uid for pair in pairs if pair.uid]):
        query = (
            "SELECT uid, stage, rule, value FROM verdicts JOIN rules USING (stage, rule) "
            f"WHERE uid IN {_list(uids)} ORDER BY position"
        )
        fell: dict[str, list[str]] = {}
        for row in (await explorer.ask(query, uids, rows=100 * len(uids))).rows:
            value = "" if row["value"] is None else f" {row['value']:g}"
            fell.setdefault(row["uid"], []).append(f"{row['stage']}: {row['rule']}{value}")
        for pair in pairs:
            pair.fell = fell.get(pair.uid or "", [])
    return pairs


def _pair(row: Mapping[str, Any]) -> Pair:
    named = {name: str(row[name]) for name in ("uid", "key", "url", "text", "extractor") if row.get(name) is not None}
    facts = {name: _short(value) for name, value in row.items() if name not in named and value is not None}
    return Pair(named.get("uid"), named.get("key"), named.get("url", ""), named.get("text", ""),
                named.get("extractor", ""), facts=dict(list(facts.items())[:_FACTS]))  # fmt: skip


def _short(value: object) -> str:
    said = f"{value:.4g}" if isinstance(value, float) else str(value)
    return said if len(said) <= 60 else said[:60] + "…"


def _complete(pairs: Sequence[Pair], by: str, rows: Sequence[Mapping[str, Any]]) -> None:
    found = {row[by]: row for row in rows}
    for pair in pairs:
        row = found.get(getattr(pair, by), {})
        for name in ("uid", "key", "url", "text"):
            if not getattr(pair, name) and row.get(name):
                setattr(pair, name, row[name])


def _list(values: Sequence[object]) -> str:
    return f"({', '.join('?' * len(values))})"


def _item(explorer: Explorer, pair: Pair) -> None:
    async def look() -> None:
        with ending_with_page():
            await show_pair(explorer, pair)

    with ui.element("button").classes("explorer-item").props('type="button"').on("click", look):
        picture(pair.key, SIDE, pair.extractor)
        with ui.element("div").classes("explorer-said"):
            ui.label(_shown(pair.text)).classes("explorer-text")
            for name, value in pair.facts.items():
                ui.label(f"{_shown(name)} {_shown(value)}").classes("explorer-fact")
            for rule in pair.fell:
                ui.label(rule).classes("explorer-fell")
            if pair.url:
                ui.label(_shown(pair.url)).classes("explorer-url")


def picture(key: str | None, side: int, extractor: str = "", classes: str = "explorer-picture") -> None:
    """A picture of the dataset, loaded when it comes into sight; `extractor`: whose boxes are drawn into it."""
    if not key:
        ui.label("no picture").classes(f"{classes} explorer-none")
        return
    shown = ui.element("img").classes(classes)
    boxes = f"&boxes={quote(extractor, safe='')}" if extractor else ""
    shown.props["src"] = f"/picture/{quote(key, safe='')}?side={side}{boxes}"
    shown.props["loading"] = "lazy"
    shown.props["alt"] = "picture not readable"


def _shown(text: str) -> str:
    """Without the characters that no page may hold; everything else is the browser's to escape."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


async def show_pair(explorer: Explorer, pair: Pair) -> None:
    """A dialog with all that is known of a pair and of its picture."""
    views = await explorer.views()
    dialog = ui.dialog()
    dialog.on("hide", dialog.delete)
    with dialog, ui.card().classes("explorer-dialog"):
        with ui.row().classes("w-full items-center justify-between no-wrap"):
            ui.label(_shown(pair.text) or "A picture").classes("text-subtitle1 explorer-text")
            ui.button(icon="close", on_click=dialog.close).props('flat round dense aria-label="close"')
        await _large(explorer, pair, "regions" in views)
        if pair.url:
            _url(pair.url)
        with ui.row().classes("explorer-bar"):
            if pair.key:
                ui.link("Find similar", f"/search?like={quote(pair.key, safe='')}").classes("explorer-out")
            if pair.uid:
                ui.link("Why, as SQL", f"/?q={quote(why_query(pair.uid))}").classes("explorer-out")
        try:
            if pair.uid:
                await _why(explorer, pair.uid)
            if pair.key and "images" in views:
                await _about(explorer, pair.key)
        except PairmillError as error:
            said(error)
    dialog.open()


def why_query(uid: str) -> str:
    return f"FROM why('{uid}')" if uid.isalnum() else "FROM why('')"


async def _large(explorer: Explorer, pair: Pair, regions: bool) -> None:
    place = ui.element("div").classes("w-full")

    def draw(extractor: str) -> None:
        place.clear()
        with place:
            picture(pair.key, 1024, extractor, "explorer-large")

    draw(pair.extractor)
    if pair.key and regions:
        query = "SELECT DISTINCT extractor FROM regions WHERE key = ? ORDER BY 1"
        names = [row["extractor"] for row in (await explorer.ask(query, [pair.key])).rows]
        if names:
            options = {"": "no boxes"} | {name: f"boxes: {name}" for name in names}
            chosen = pair.extractor if pair.extractor in names else ""
            ui.toggle(options, value=chosen, on_change=lambda change: draw(change.value)).props("dense no-caps")


def _url(url: str) -> None:
    with ui.row().classes("explorer-bar"):
        ui.label(_shown(url)).classes("explorer-soft")
        try:
            is_web = urlsplit(url).scheme.lower() in ("http", "https")
        except ValueError:
            is_web = False
        if is_web:
            link = ui.link("open", url, new_tab=True).classes("explorer-out")
            link.props('rel="noopener noreferrer nofollow"')


async def _why(explorer: Explorer, uid: str) -> None:
    answer = await explorer.ask("FROM why(?)", [uid])
    ui.label("Every rule, in order").classes("text-subtitle2")
    columns = [
        {"name": name, "label": label, "field": name, "align": "left"}
        for name, label in (("rule", "rule"), ("setting", "setting"), ("value", "value"), ("verdict", "verdict"))
    ]
    rows = [
        {
            "id": place,
            "rule": f"{row['stage']}: {row['rule']}",
            "setting": _short(row["setting"] or ""),
            "value": "" if row["value"] is None else _short(row["value"]),
            "verdict": " ".join(filter(None, (row["verdict"], _short(row["detail"] or "")))),
        }
        for place, row in enumerate(answer.rows)
    ]
    ui.table(columns=columns, rows=rows).classes("explorer-table").props("flat bordered dense wrap-cells")


async def _about(explorer: Explorer, key: str) -> None:
    query = (
        "SELECT uid, url, text FROM (SELECT uid, url, text FROM pairs) WHERE url IN (SELECT url FROM images "
        "WHERE sha256 = (SELECT sha256 FROM images WHERE key = ?) OR key = ?) ORDER BY uid"
    )
    texts = await explorer.ask(query, [key, key], rows=50)
    if len(texts.rows) > 1:
        more = ", and more" if texts.more else ""
        ui.label(f"All texts of this picture ({len(texts.rows)}{more})").classes("text-subtitle2")
        for row in texts.rows:
            ui.label(_shown(row["text"] or ""))
    stored = await explorer.ask("SELECT * FROM images WHERE key = ?", [key], rows=1)
    for row in stored.rows:
        facts = [f"{name} {_short(value)}" for name, value in row.items() if value is not None]
        ui.label(_shown(" · ".join(facts))).classes("explorer-soft")
