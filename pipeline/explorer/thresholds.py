"""Choosing thresholds: where a slider stops, the histogram under it, and what is chosen as a piece of a recipe."""

import asyncio
import json
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import PairmillError
from pipeline.explorer.margins import Margin, margin_query
from pipeline.store.views.thresholds import Setting, side

if TYPE_CHECKING:
    from pipeline.explorer.explorer import Explorer

STOPS = 120
"""About how many places a slider has, where the values are not few whole numbers."""
_MOST_WHOLE = 200
_LARGEST = 1e100
"""What is larger in size has no place of its own: places are reckoned in floating point."""
_SKEWED = 100
"""From this ratio of the greatest to the least value on, places are spread by ratio and not by difference."""


def stops(margin: Margin) -> np.ndarray:
    """Thresholds that a slider stops at, ascending, as a recipe has them; the present one is among them."""
    if margin.setting.rule.takes == "fraction":
        return np.unique([*np.arange(101) / 100, margin.setting.threshold])
    return _value_stops(margin)


def _value_stops(margin: Margin) -> np.ndarray:
    """Values over the range of what was measured, among them the present cutoff.

    Whole numbers one by one where they are few. Of an outlier in a thousand at either end no notice is taken.
    """
    values = margin.values[np.abs(margin.values) < _LARGEST]
    # The cutoff of a top fraction may be infinite.
    present = [float(margin.setting.cutoff)] if math.isfinite(margin.setting.cutoff) else []
    outliers = len(values) // 1000
    ends = [now for now in present if abs(now) < _LARGEST]
    ends += [float(end) for end in values[outliers : len(values) - outliers][[0, -1]]] if len(values) else []
    if not ends:
        return np.array(present or [0.0])
    low, high = min(ends), max(ends)
    whole = bool(np.all(values == np.floor(values))) and all(now.is_integer() for now in present)
    if whole and high - low <= _MOST_WHOLE and max(-low, high) < 2**53:
        return np.unique([*np.arange(low - 1, high + 2), *present])
    if low > 0 and high / low > _SKEWED:
        rounded = [float(f"{place:.3g}") for place in np.geomspace(low, high, STOPS)]
    else:
        step = (high - low) / STOPS
        decimals = 1 - math.floor(math.log10(step)) if step > 0 else 6
        rounded = [round(float(place), decimals) for place in np.linspace(low, high, STOPS)]
    return np.unique([*(np.round(rounded) if whole else rounded), *present])


@dataclass(frozen=True)
class Histogram:
    """How many pairs, of those that fail no other rule of the stage, have a value at each of `stops`: (n,) int64.

    A bar holds the values from its stop up to the next one, or down to the one before: on whichever side the stop
    itself stands, so that a threshold at a stop passes each bar whole or not at all. The outer bars have what lies
    beyond.
    """

    stops: np.ndarray
    pairs: np.ndarray
    stop_is_upper: bool

    def edge(self, cutoff: float) -> int:
        """How many bars stand before the cutoff's line."""
        return min(int(np.searchsorted(self.stops, cutoff)) + self.stop_is_upper, len(self.stops))


def histogram(margin: Margin) -> Histogram:
    """Of what a rule measured. Its stops are those of the rule's slider, but for top fractions."""
    places = _value_stops(margin)
    upper = side(margin.setting.rule) in (">", "<=")
    inner = places[:-1] if upper else places[1:]
    cuts = np.searchsorted(margin.values, inner, side="right" if upper else "left")
    return Histogram(places, np.diff(margin.passing[np.concatenate([[0], cuts, [len(margin.values)]])]), upper)


def fragment(extends: str | None, chosen: Sequence[tuple[Setting, float]], told: Sequence[str] = ()) -> str:
    """These thresholds as TOML: a recipe that extends another one, or a part to put into one. `told`: comments."""
    lines = [f"# {' '.join(line.split())}" for line in told]
    lines += [f"extends = {_string(extends)}"] if extends else []
    for stage in ("screen", "filter"):
        rules = [
            f"{setting.rule.name} = {_number(threshold)}"
            for setting, threshold in chosen
            if setting.rule.stage == stage
        ]
        if rules:
            lines += ["", f"[{stage}.rules]", *rules]
    return "\n".join(lines) + "\n"


def _string(words: str) -> str:
    return json.dumps(words, ensure_ascii=False).replace("\x7f", "\\u007f")


def _number(value: float) -> str:
    if not math.isfinite(value):
        raise ValueError(f"{value} is no threshold")
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)


HELD = 32
"""Margins held for all users."""
_margins: OrderedDict[tuple[Path, tuple[int, int], Setting], Margin] = OrderedDict()


def unchanged(explorer: "Explorer", state: tuple[int, int]) -> None:
    """Raise PairmillError where the catalog is another one than it was in this state: counts of both do not mix."""
    if explorer.querying.state() != state:
        raise PairmillError("the dataset has changed since this page was opened", "load the page again")


async def held_margin(explorer: "Explorer", setting: Setting) -> Margin:
    """A rule's margin, read once for all users while the catalog is the same. Raises PairmillError as `ask` does."""
    state = explorer.querying.state()
    place = (explorer.dataset.catalog.resolve(), state, setting)
    if place not in _margins:
        columns = await explorer.arrays(margin_query(setting))
        margin = await asyncio.to_thread(Margin.of, setting, columns)
        unchanged(explorer, state)
        _margins[place] = margin
        while len(_margins) > HELD:
            _margins.popitem(last=False)
    _margins.move_to_end(place)
    return _margins[place]
