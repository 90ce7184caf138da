"""Two funnels side by side: the dataset's own, or that of any recipe's rules over what was measured."""

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from nicegui import ui

from pipeline.errors import PairmillError
from pipeline.explorer.explorer import Explorer
from pipeline.explorer.funnels import OWN, Funnel, Plan, Row, own_funnel, recipes, side_by_side
from pipeline.explorer.grid import said
from pipeline.explorer.latest import Latest
from pipeline.explorer.margins import caveat
from pipeline.recipe import load
from pipeline.store.views.thresholds import RULES_QUERY

PATH = "/funnels"
RECIPES = Path("recipes")
NOW = "as it is now"
_COLOURS = ("#4c78a8", "#e08d3c")
_TOTALS = "SELECT (SELECT count(*) FROM screened) AS total, (SELECT count(*) FROM kept) AS kept"


async def page(explorer: Explorer) -> None:
    ui.label(
        "What each rule drops, under the dataset's own rules and under another recipe's, by what was measured. "
        "Nothing is run."
    )
    given = dict(ui.context.client.request.query_params)
    _Funnels(explorer, given).start()


class _Funnels:
    """One user's comparison."""

    def __init__(self, explorer: Explorer, given: dict[str, str]) -> None:
        self.explorer, self.latest = explorer, Latest()
        self.files = offered(explorer.recipe_path)
        options = [NOW, *self.files]
        other = next((name for name in self.files if name.startswith("rules/")), options[-1])
        chosen = [given.get("left", NOW), given.get("right", other)]
        with ui.row().classes("w-full items-center gap-3"):
            self.selects = [
                ui.select(
                    options,
                    value=value if value in options else NOW,
                    label=label,
                    on_change=lambda: self.latest.start(self._compare),
                )
                .classes("w-64")
                .props("dense outlined")
                for label, value in zip(("left", "right"), chosen, strict=True)
            ]
        self.body = ui.column().classes("w-full")

    def start(self) -> None:
        self.latest.start(self._compare)

    async def _compare(self) -> None:
        await ui.context.client.connected()
        names = [str(select.value) for select in self.selects]
        ui.navigate.history.replace(f"{PATH}?{urlencode(dict(zip(('left', 'right'), names, strict=True)))}")
        try:
            if "screened" not in await self.explorer.views():
                raise PairmillError("no pair has been judged yet", "run make screen")
            rules = (await self.explorer.ask(RULES_QUERY)).rows
            left, right = [await self._funnel(name, rules) for name in names]
        except PairmillError as error:
            self.body.clear()
            with self.body:
                said(error)
            return
        self.body.clear()
        with self.body:
            if doubt := caveat([], rules, self.explorer.current.unjudged):
                ui.label(f"The numbers are not exact: {doubt}.").props('role="status"')
            for funnel in (left, right):
                ui.label(_summed_up(funnel))
            rows = side_by_side(left, right)
            ui.echart(_chart(left, right, rows)).classes("w-full").style(f"height: {70 + 34 * (len(rows) + 2)}px")
            _table(left, right, rows)

    async def _funnel(self, name: str, rules: list[dict[str, Any]]) -> Funnel:
        if name == NOW:
            totals = (await self.explorer.ask(_TOTALS)).rows[0]
            kept = totals["kept"] if any(row["stage"] == "filter" for row in rules) else 0
            return own_funnel((await self.explorer.ask(OWN)).rows, totals["total"], kept)
        path = offered(self.explorer.recipe_path).get(name)
        if path is None:
            raise PairmillError(f"the recipe {name} is not there any more")
        recipe = await asyncio.to_thread(load, path, path.stem)
        plan = Plan.of(name, recipe, rules, self.explorer.recipe)
        return plan.funnel((await self.explorer.ask(plan.query())).rows)


def offered(own: Path | None) -> dict[str, Path]:
    """The recipes that can be chosen: those in the folder `recipes`, and the one that was named at the start."""
    found = recipes(RECIPES) if RECIPES.is_dir() else {}
    if own is not None and own.resolve() not in {path.resolve() for path in found.values()}:
        found[own.name if own.name not in found else str(own)] = own
    return found


def _summed_up(funnel: Funnel) -> str:
    unknown = [step.rule for step in funnel.steps if step.pairs is None]
    parts = [f"{funnel.name}: {funnel.kept:,} of {funnel.total:,} pairs kept"]
    if funnel.undecided:
        parts.append(
            f"{funnel.undecided:,} more would pass screen, and no later stage has judged them "
            "(without those whose download is known to have failed)"
        )
    if unknown:
        parts.append(f"not measured here, and counted as if they dropped nothing: {', '.join(unknown)}")
    return "; ".join(parts)


def _chart(left: Funnel, right: Funnel, rows: list[Row]) -> dict[str, Any]:
    """Aligned bars, a rule below the other in the order of the left one."""
    steps = [
        [row.left.pairs if row.left else None for row in rows],
        [row.right.pairs if row.right else None for row in rows],
    ]
    names = [*(row.rule for row in rows), "not judged", "kept"]
    grey = {"color": "#888"}
    return {
        "animation": False,
        "grid": {"left": 4, "right": 60, "top": 30, "bottom": 4, "containLabel": True},
        "legend": {"textStyle": grey, "top": 0},
        "tooltip": {"trigger": "axis", "axisPointer": {"type": "shadow"}, "renderMode": "richText"}
        | {":valueFormatter": "value => value == null ? 'unknown' : value.toLocaleString('en')"},
        "xAxis": {"type": "value", "axisLabel": {"show": False}, "splitLine": {"lineStyle": {"color": "#8884"}}},
        "yAxis": {"type": "category", "inverse": True, "data": names, "axisLabel": grey},
        "series": [
            {
                "name": title,
                "type": "bar",
                "barGap": "0%",
                "barCategoryGap": "25%",
                "itemStyle": {"color": colour},
                "label": {"show": True, "position": "right", "color": "#888"}
                | {":formatter": "shown => shown.value == null ? '' : shown.value.toLocaleString('en')"},
                "data": [*pairs, funnel.undecided, funnel.kept],
            }
            for title, colour, funnel, pairs in zip(
                (f"left: {left.name}", f"right: {right.name}"), _COLOURS, (left, right), steps, strict=True
            )
        ],
    }


def _table(left: Funnel, right: Funnel, rows: list[Row]) -> None:
    numbers = {"align": "right"}
    columns = [
        {"name": "stage", "label": "stage", "field": "stage", "align": "left"},
        {"name": "rule", "label": "rule", "field": "rule", "align": "left"},
        {"name": "left", "label": "left", "field": "left"} | numbers,
        {"name": "left_setting", "label": "setting", "field": "left_setting", "align": "left"},
        {"name": "right", "label": "right", "field": "right"} | numbers,
        {"name": "right_setting", "label": "setting", "field": "right_setting", "align": "left"},
        {"name": "difference", "label": "difference", "field": "difference"} | numbers,
        {"name": "note", "label": "", "field": "note", "align": "left"},
    ]
    shown = [
        {
            "stage": row.stage,
            "rule": row.rule,
            "left": _pairs(row.left),
            "left_setting": _setting(row.left),
            "right": _pairs(row.right),
            "right_setting": _setting(row.right),
            "difference": "" if row.difference is None else f"{row.difference:+,}" if row.difference else "0",
            "note": "; ".join(dict.fromkeys(step.note for step in (row.left, row.right) if step and step.note)),
        }
        for row in rows
    ]
    for what, one, other in (("not judged", left.undecided, right.undecided), ("kept", left.kept, right.kept)):
        difference = f"{other - one:+,}" if other != one else "0"
        shown.append({"rule": what, "left": f"{one:,}", "right": f"{other:,}", "difference": difference})
    for place, row in enumerate(shown):
        row["id"] = str(place)
    table = ui.table(columns=columns, rows=shown, row_key="id").classes("explorer-numbers")
    table.props("flat bordered dense")


def _pairs(step: Any) -> str:
    return "" if step is None else "unknown" if step.pairs is None else f"{step.pairs:,}"


def _setting(step: Any) -> str:
    return "" if step is None else step.setting if len(step.setting) <= 60 else step.setting[:59] + "…"
