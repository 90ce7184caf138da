"""Thresholds, live: a slider a rule, what it would keep, the pictures on the border, and the choice as a recipe."""

import asyncio
import math
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from nicegui import ui

from pipeline.errors import PairmillError
from pipeline.explorer.explorer import Explorer
from pipeline.explorer.grid import picture_grid, said
from pipeline.explorer.latest import Latest, ending_with_page
from pipeline.explorer.margins import Margin, Outcome, caveat, joint_query
from pipeline.explorer.thresholds import fragment, held_margin, histogram, stops, unchanged
from pipeline.explorer.thresholds_chart import chart_of, draw, shown
from pipeline.store.views.thresholds import RULES_QUERY, VIEWS, Setting, borders_query, settings_of

PATH = "/rules"
BORDER = 8
"""Pairs shown on either side of a threshold."""
_STILL = 0.25
"""Seconds without a move after which pictures are asked for."""
_UNDECIDED = "{:,} that fall by screen now would pass it, and no later stage has judged them"
_STAGES = {"screen": "by its text and url, before the download", "filter": "by its picture"}


async def page(explorer: Explorer) -> None:
    ui.label("Move a threshold and see what it would keep, all else as it is. Nothing is run or written.")
    body = ui.column().classes("w-full gap-2")
    given = dict(ui.context.client.request.query_params)
    await ui.context.client.connected()
    state = explorer.querying.state()
    rules, views = (await explorer.ask(RULES_QUERY)).rows, await explorer.views()
    unchanged(explorer, state)
    settings = [setting for setting in settings_of(rules) if setting.view in views]
    with body:
        if not settings:
            ui.label("No rule that compares numbers has judged yet: run make screen, then make filter.")
            return
        if explorer.current.unjudged:
            ui.label(f"The numbers are not exact: {explorer.current.unjudged}.").props('role="status"')
        _Page(explorer, settings, rules, set(views), state).build(given)


class _Page:
    """One user's choice of thresholds."""

    def __init__(
        self,
        explorer: Explorer,
        settings: Sequence[Setting],
        rules: Sequence[dict[str, Any]],
        views: set[str],
        state: tuple[int, int],
    ) -> None:
        self.explorer, self.settings, self.rules, self.views, self.state = explorer, settings, rules, views, state
        self.unjudged = explorer.current.unjudged
        self.chosen: dict[str, tuple[Setting, float, Outcome]] = {}
        self.latest = Latest()

    def build(self, given: dict[str, str]) -> None:
        sliders = {}
        for stage in VIEWS:
            of_stage = [setting for setting in self.settings if setting.rule.stage == stage]
            if of_stage:
                ui.label(f"{stage}: {_STAGES[stage]}").classes("text-lg font-medium pt-2")
            for setting in of_stage:
                sliders[setting.rule.name] = _Slider(self, setting, _number(given.get(setting.rule.name)))
        self.summary = ui.column().classes("explorer-card w-full")
        self.summary.set_visibility(False)
        wanted = [name for name in given if name in sliders] or [self.settings[0].rule.name]
        for name in wanted:
            sliders[name].expansion.open()

    def choose(self, setting: Setting, threshold: float, outcome: Outcome) -> None:
        if threshold == setting.threshold:
            self.chosen.pop(setting.rule.name, None)
        else:
            self.chosen[setting.rule.name] = (setting, threshold, outcome)
        self.latest.start(self._sum_up)

    async def _sum_up(self) -> None:
        """Say what holds for each alone and for all together, and write the recipe."""
        await asyncio.sleep(_STILL)
        chosen = list(self.chosen.values())
        query = urlencode({setting.rule.name: f"{threshold:.17g}" for setting, threshold, _ in chosen})
        ui.navigate.history.replace(f"{PATH}?{query}" if query else PATH)
        self.summary.set_visibility(bool(chosen))
        if not chosen:
            return
        told = [
            f"{setting.rule.name} {shown(setting.threshold)} -> {shown(threshold)}: keeps {outcome.kept:,} alone"
            + (f", and {_UNDECIDED.format(outcome.undecided)}" if outcome.undecided else "")
            for setting, threshold, outcome in chosen
        ]
        if len(chosen) > 1:
            told.append(await self._together([(setting, outcome.cutoff) for setting, _, outcome in chosen]))
        doubt = caveat([(setting, threshold) for setting, threshold, _ in chosen], self.rules, self.unjudged)
        path = self.explorer.recipe_path
        recipe = fragment(
            path.name if path else None,
            [(setting, threshold) for setting, threshold, _ in chosen],
            [*told, *([f"Not known for sure: {doubt}"] if doubt else [])],
        )
        self.summary.clear()
        with self.summary:
            ui.label("Your thresholds").classes("text-lg font-medium")
            for line in told:
                ui.label(line)
            if doubt:
                ui.label(f"Not known for sure: {doubt}.").classes("explorer-soft")
            where = f"a file beside {path}" if path else "your recipe"
            ui.label(f"As a recipe, for {where}:")
            ui.label(recipe).classes("whitespace-pre-wrap font-mono text-sm w-full break-words")
            with ui.row():
                ui.button("Copy", icon="content_copy", on_click=lambda: ui.clipboard.write(recipe)).props("flat")
                ui.button(
                    "Download", icon="download", on_click=lambda: ui.download.content(recipe, "thresholds.toml")
                ).props("flat")

    async def _together(self, cutoffs: list[tuple[Setting, float]]) -> str:
        try:
            row = (await self.explorer.ask(joint_query(cutoffs, "filtered" in self.views))).rows[0]
            unchanged(self.explorer, self.state)
        except PairmillError as error:
            return f"together: not known, {error}"
        more = f", and {_UNDECIDED.format(row['undecided'])}" if row["undecided"] else ""
        return f"all together: keep {row['kept']:,}{more}"


class _Slider:
    """One rule: its slider, its histogram and its border, read when it is first opened."""

    def __init__(self, page: _Page, setting: Setting, threshold: float | None) -> None:
        self.page, self.setting = page, setting
        self.threshold = threshold if threshold is not None and _fits(setting, threshold) else setting.threshold
        self.latest = Latest()
        self.margin: Margin | None = None
        self.moving = False
        rule = setting.rule
        self.expansion = ui.expansion(rule.name, caption=self._caption(), on_value_change=self._opened)
        self.expansion.classes("explorer-rule w-full").props(f"data-rule={rule.name}")
        with self.expansion:
            ui.label(f"Drops a pair where {rule.meaning}.")
            ui.label(f"{rule.source}. It measures {rule.measure}.").classes("explorer-soft")
            self.body = ui.column().classes("w-full gap-1")
            with self.body:
                ui.spinner()

    def _caption(self) -> str:
        now = shown(self.setting.threshold)
        return now if self.threshold == self.setting.threshold else f"{now} → {shown(self.threshold)}"

    async def _opened(self) -> None:
        with ending_with_page():
            await self._read()

    async def _read(self) -> None:
        if not self.expansion.value or self.margin is not None:
            return
        try:
            unchanged(self.page.explorer, self.page.state)
            margin = await held_margin(self.page.explorer, self.setting)
            unchanged(self.page.explorer, self.page.state)
            found = await asyncio.to_thread(stops, margin)
            self.bars = await asyncio.to_thread(histogram, margin)
            self.places, self.margin = [float(stop) for stop in found], margin
            self.body.clear()
            with self.body:
                self._build()
            self.move(self.threshold)
        except PairmillError as error:
            self._say(error)
        except Exception as error:
            self._say(PairmillError(f"this rule cannot be shown ({error!r})", "ask would_keep() of the Query page"))
            raise  # to the log: it is a fault of ours

    def _say(self, error: PairmillError) -> None:
        self.margin = None
        self.body.clear()
        with self.body:
            said(error)

    def _build(self) -> None:
        name = self.setting.rule.name
        with ui.row().classes("w-full items-center gap-4 no-wrap"):
            self.number = ui.number(
                value=self.threshold, format="%.6g", on_change=lambda event: self._typed(event.value)
            ).classes("w-28")
            self.number.props(f'dense outlined aria-label="threshold of {name}"')
            ui.button("As it is", icon="undo", on_click=lambda: self.move(self.setting.threshold)).props("flat dense")
        self.chart = ui.echart(chart_of(self.bars)).classes("w-full h-40")
        self.slider = ui.slider(
            min=0,
            max=max(len(self.places) - 1, 1),
            step=1,
            value=self._nearest(self.threshold),
            on_change=lambda event: self._slid(event.value),
        ).classes("px-2")
        self.slider.props(f'aria-label="{name}"')
        self.kept = ui.label().classes("explorer-count text-lg")
        self.detail = ui.label().classes("text-sm")
        self.doubt = ui.label().classes("explorer-soft")
        with ui.grid().classes("w-full grid-cols-1 md:grid-cols-2 gap-4"):
            self.sides = [ui.column().classes("w-full min-w-0") for _ in range(2)]

    def _nearest(self, threshold: float) -> int:
        return min(range(len(self.places)), key=lambda place: abs(self.places[place] - threshold))

    def _slid(self, place: float | None) -> None:
        if not self.moving and place is not None:
            self.move(self.places[int(place)])

    def _typed(self, value: float | None) -> None:
        if self.moving or value is None or not math.isfinite(value):
            return
        if _fits(self.setting, value):
            self.move(value)

    def move(self, threshold: float) -> None:
        """Show what this threshold would keep, at once; the pictures follow when it rests."""
        assert self.margin is not None
        self.threshold = threshold
        found, now = self.margin.at(threshold), self.margin.at(self.setting.threshold)
        self.moving = True  # what is set here must not be taken for a move of the user's
        self.slider.value = self._nearest(threshold)
        self.number.value = threshold
        self.moving = False
        self.expansion.props["caption"] = self._caption()
        change = found.kept - now.kept
        self.kept.text = f"{found.kept:,} pairs kept" + (f" ({change:+,})" if change else "")
        lines = [f"now {now.kept:,}"]
        if self.setting.rule.stage == "screen":
            lines.append(f"{found.passing:,} would pass screen (now {now.passing:,})")
        if found.undecided:
            lines.append(f"{_UNDECIDED.format(found.undecided)}: whether they would be kept is not known")
        if self.setting.rule.takes == "fraction":
            lines.append(f"the threshold would be {shown(found.cutoff)}")
        self.detail.text = "; ".join(lines)
        doubt = caveat([(self.setting, threshold)], self.page.rules, self.page.unjudged) if found != now else ""
        self.doubt.text = f"Not known for sure: {doubt}." if doubt else ""
        draw(self.chart.options, self.bars, self.margin, found.cutoff)
        self.chart.update()
        self.page.choose(self.setting, threshold, found)
        self.latest.start(self._border, found.cutoff)

    async def _border(self, cutoff: float) -> None:
        await asyncio.sleep(_STILL)
        query = borders_query([(self.setting, cutoff)], 6 * BORDER, "images" in self.page.views)
        try:
            rows = (await self.page.explorer.ask(query)).rows
            unchanged(self.page.explorer, self.page.state)
        except PairmillError as error:
            self.detail.text = str(error)
            return
        passed = "just kept" if self.setting.rule.stage == "filter" else "just passes screen"
        for side, passes, title in zip(self.sides, (True, False), (passed, "just dropped"), strict=True):
            one_each = {row["content"] or row["uid"]: row for row in reversed(rows) if row["passes"] is passes}
            found = list(reversed(one_each.values()))[:BORDER]
            side.clear()
            with side:
                ui.label(title if found else f"{title}: nothing").classes("font-medium")
                if found:
                    named = {row["uid"]: {self.setting.rule.measure: row["value"]} for row in found}
                    wanted = ("uid", "key", "text", "url")
                    rows_shown = [{name: row[name] for name in wanted} | named[row["uid"]] for row in found]
                    await picture_grid(self.page.explorer, rows_shown)


def _fits(setting: Setting, threshold: float) -> bool:
    return setting.rule.takes != "fraction" or 0 <= threshold <= 1


def _number(given: str | None) -> float | None:
    try:
        value = float(given) if given else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None
