"""The page of questions: SQL in, a table out, and pictures where rows stand for them."""

import asyncio
import json
from dataclasses import dataclass
from urllib.parse import quote

from nicegui import ui

from pipeline.errors import PairmillError
from pipeline.explorer.appearance import appearance
from pipeline.explorer.explorer import Explorer
from pipeline.explorer.grid import has_pictures, picture_grid, said
from pipeline.explorer.latest import Latest, ending_with_page
from pipeline.explorer.querying import ROWS, SECONDS, Answer, Macro, View

_CELL = 500
"""Characters of a value in the table."""
_NUMBERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT",
            "UHUGEINT", "FLOAT", "DOUBLE", "DECIMAL")  # fmt: skip


@dataclass(frozen=True)
class Example:
    """A question that people ask of any dataset which has these views and macros."""

    title: str
    needs: frozenset[str]
    sql: str


EXAMPLES = (
    Example("What is kept", frozenset({"kept"}), "FROM kept\nLIMIT 48"),
    Example(
        "Where pairs fall out",
        frozenset({"funnel"}),
        "SELECT stage, rule, setting, pairs, failing\nFROM funnel\nORDER BY position",
    ),
    Example(
        "What the busiest rule drops",
        frozenset({"drops", "funnel"}),
        "SELECT uid, rule, value, detail\nFROM drops\nWHERE rule = (SELECT arg_max(rule, pairs) FROM funnel)\nLIMIT 48",
    ),
    Example(
        "Why one pair fell out",
        frozenset({"drops", "why()"}),
        "SELECT stage, rule, setting, value, verdict\nFROM why((SELECT min(uid) FROM drops))",
    ),
    Example(
        "Fetches that failed, by host",
        frozenset({"images"}),
        "SELECT regexp_extract(url, '^[a-z]+://([^/:?#]+)', 1) AS host, status, count(*) AS urls\n"
        "FROM images\nWHERE status <> 'ok'\nGROUP BY ALL\nORDER BY urls DESC, host, status",
    ),
    Example(
        "The largest pictures",
        frozenset({"images"}),
        "SELECT key, original_width, original_height, bytes\nFROM images\nWHERE status = 'ok'\n"
        "ORDER BY original_width::BIGINT * original_height DESC, key\nLIMIT 48",
    ),
    Example(
        "Texts of more than one picture",
        frozenset({"kept"}),
        "SELECT text, count(*) AS pairs, min(uid) AS uid\nFROM kept\nGROUP BY text\nHAVING pairs > 1\n"
        "ORDER BY pairs DESC, text\nLIMIT 48",
    ),
    Example(
        "How long the texts are",
        frozenset({"pairs"}),
        "SELECT least(length(text) // 10 * 10, 200) AS characters_from, count(*) AS pairs\nFROM pairs\n"
        "GROUP BY ALL\nORDER BY ALL",
    ),
    Example(
        "What the detector sees",
        frozenset({"regions"}),
        "SELECT label, count(*) AS boxes, round(avg(confidence), 3) AS confidence, arg_max(key, confidence) AS key,\n"
        "       any_value(extractor) AS extractor\nFROM regions\nGROUP BY label\nORDER BY boxes DESC, label\nLIMIT 48",
    ),
    Example("Labels that stand together", frozenset({"label_cooccurrence()"}), "FROM label_cooccurrence()\nLIMIT 50"),
    Example(
        "How good the models are",
        frozenset({"evaluations"}),
        "SELECT run, task, metric, round(value, 4) AS value\nFROM evaluations\nORDER BY ALL",
    ),
)


async def page(explorer: Explorer) -> None:
    """`/?q=SQL`: the question, at once answered unless another site's page has led here."""
    request = ui.context.client.request
    asked = request.query_params.get("q", "")[:100_000]
    is_own = request.headers.get("sec-fetch-site", "none") in ("none", "same-origin")
    views, macros = await explorer.views(), await explorer.querying.macros()
    there = {*views, *(f"{macro.name}()" for macro in macros)}
    examples = [example for example in EXAMPLES if example.needs <= there]
    with ui.element("div").classes("explorer-query"):
        with ui.element("aside").classes("explorer-card explorer-side"):
            _listing(views, macros)
        with ui.element("div").classes("explorer-main"):
            box = _Box(explorer, asked or (examples[0].sql if examples else ""), examples)
    await ui.context.client.connected()
    await box.complete(views, macros)
    if is_own or not asked:
        await box.run()


class _Box:
    """The editor, what belongs to it, and the answer below."""

    def __init__(self, explorer: Explorer, sql: str, examples: list[Example]) -> None:
        self.explorer, self.who = explorer, str(ui.context.client.request.state.visitor)
        self.asking: asyncio.Task[Answer] | None = None
        self.editor = ui.codemirror(sql, language="SQL", keymap={"Mod-Enter": self.run}, line_wrapping=True)
        self.editor.classes("explorer-editor").props('aria-label="SQL"')
        appearance().on_change(lambda dark: self.editor.set_theme("vscodeDark" if dark else "vscodeLight"))
        with ui.element("div").classes("explorer-bar"):
            self.button = ui.button("Run", icon="play_arrow", on_click=self.run).props("no-caps unelevated dense")
            self.button.classes("q-px-md")
            self.cancel = ui.button("Cancel", icon="stop", on_click=self.stop).props("no-caps outline dense")
            self.cancel.classes("q-px-md")
            self.cancel.visible = False
            with ui.button("Examples", icon="lightbulb").props("no-caps flat dense").classes("q-px-sm"), ui.menu():
                for example in examples:
                    ui.menu_item(example.title, lambda example=example: self.try_out(example.sql))
            self.state = ui.label().classes("explorer-soft").props('role="status"')
            self.spinner = ui.spinner(size="sm")
            self.spinner.visible = False
        self.answer = ui.element("div").classes("explorer-main explorer-answer")
        ui.context.client.on_disconnect(self.stop)

    async def complete(self, views: dict[str, View], macros: list[Macro]) -> None:
        """Teach the editor the catalog's names."""
        options = [{"label": view.name, "type": "class", "detail": "view"} for view in views.values()]
        options += [
            {"label": macro.name, "apply": f"{macro.name}(", "type": "function", "detail": ", ".join(macro.parameters)}
            for macro in macros
        ]
        columns: dict[str, list[str]] = {}
        for view in views.values():
            for column in view.columns:
                columns.setdefault(column.name, []).append(view.name)
        for name, where in columns.items():
            detail = ", ".join(where[:3]) + (", …" if len(where) > 3 else "")
            options.append({"label": name, "type": "property", "detail": detail})
        ui.run_javascript(_COMPLETE % (self.editor.id, json.dumps(options).replace("</", "<\\/")))

    async def try_out(self, sql: str) -> None:
        self.editor.value = sql
        await self.run()

    def stop(self) -> None:
        if self.asking:
            self.asking.cancel()

    async def run(self) -> None:
        with ending_with_page():
            await self._run()

    async def _run(self) -> None:
        if self.asking:
            return
        sql = self.editor.value.strip()
        if not sql:
            return
        ui.navigate.history.replace(f"/?q={quote(sql)}")
        self._busy(True)
        self.asking = asyncio.create_task(self.explorer.show(sql, self.who))
        try:
            answer = await self.asking
        except asyncio.CancelledError:
            if ui.context.client.is_deleted:
                raise
            self._busy(False, "cancelled")
            self.answer.clear()
        except PairmillError as error:
            self._busy(False)
            self.answer.clear()
            with self.answer:
                said(error)
        else:
            number = len(answer.rows)
            rows = (
                f"the first {number:,} rows; there are more" if answer.more else f"{number:,} row{'s'[: number != 1]}"
            )
            self._busy(False, f"{rows} · {answer.seconds:.2f} s")
            self.answer.clear()
            with self.answer:
                await _show(self.explorer, answer)
        finally:
            self.asking = None

    def _busy(self, busy: bool, state: str = "") -> None:
        self.button.set_enabled(not busy)
        self.cancel.visible = self.spinner.visible = busy
        self.state.text = f"asking for at most {SECONDS:g} s and {ROWS:,} rows" if busy else state


async def _show(explorer: Explorer, answer: Answer) -> None:
    if not answer.rows or not has_pictures(answer.rows[0]):
        _table(answer)
        return

    async def change(form: str) -> None:
        place.clear()
        with place:
            if form == "Pictures":
                await picture_grid(explorer, answer.rows)
            else:
                _table(answer)

    toggle = ui.toggle(["Pictures", "Table"], value="Pictures").props("dense no-caps unelevated").classes("self-start")
    latest = Latest()
    toggle.on_value_change(lambda event: latest.start(change, event.value))
    place = ui.element("div").classes("explorer-main")
    await change("Pictures")


def _table(answer: Answer) -> None:
    columns = []
    for place, column in enumerate(answer.columns):
        is_number = column.type.partition("(")[0] in _NUMBERS
        name = f"c{place}"
        described = {"name": name, "field": name, "label": column.name, "sortable": True}
        described["align"] = "right" if is_number else "left"
        if is_number:
            described[":sort"] = "(a, b) => a - b"
        columns.append(described)
    rows = [
        {"id": number, **{f"c{place}": _cut(value) for place, value in enumerate(row.values())}}
        for number, row in enumerate(answer.rows)
    ]
    is_plan = [column.name for column in answer.columns] == ["explain_key", "explain_value"]
    table = ui.table(columns=columns, rows=rows, row_key="id", pagination=25 if len(rows) > 25 else None)
    table.classes("explorer-table explorer-plan" if is_plan else "explorer-table").props("flat bordered dense")


def _cut(value: str | None) -> str | None:
    return value if value is None or len(value) <= _CELL or value.startswith("╭") else value[:_CELL] + "…"


def _listing(views: dict[str, View], macros: list[Macro]) -> None:
    ui.label("Views").classes("text-subtitle2")
    for view in views.values():
        with ui.expansion(view.name).classes("explorer-view w-full").props("dense"):
            if view.comment:
                ui.label(view.comment).classes("explorer-soft")
            ui.link("look at it", f"/?q={quote(f'FROM {view.name} LIMIT 48')}").classes("explorer-out explorer-fact")
            for column in view.columns:
                with ui.element("div").classes("explorer-column"):
                    ui.label(column.name)
                    ui.label(column.type if len(column.type) < 24 else column.type[:24] + "…").classes("explorer-fact")
                if column.comment:
                    ui.label(column.comment).classes("explorer-fact")
    if macros:
        ui.label("Macros").classes("text-subtitle2 q-mt-sm")
        for macro in macros:
            ui.label(f"{macro.name}({', '.join(macro.parameters)})").classes("explorer-macro")
            if macro.comment:
                ui.label(macro.comment).classes("explorer-fact")


_COMPLETE = """
(async () => {
  const CM = await import("nicegui-codemirror");
  const editor = await getElement(%d).editorPromise;
  const options = %s;
  const complete = (context) => {
    const word = context.matchBefore(/\\w+/);
    return word || context.explicit ? { from: word ? word.from : context.pos, options, validFor: /^\\w*$/ } : null;
  };
  const data = CM.EditorState.languageData.of(() => [{ autocomplete: complete }]);
  editor.dispatch({ effects: CM.StateEffect.appendConfig.of(data) });
})()
"""
"""CodeMirror knows SQL's words; this adds the catalog's."""
