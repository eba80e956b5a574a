"""How pictures look: colours, axes, legends and words that all of them share.

Colours are Okabe and Ito's (2008), told apart by the colour-blind; what must differ also differs in lightness, hatch or
dash, so that a grey print can be read too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MultipleLocator, NullLocator

from sim.quantities import show_duration

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDTH_IN = 10.0
NARROW_IN = 7.0
LEGEND_LINE_PT = 22
TICK_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200, 86400)
TICKS_MAX = 11
SHADES_MAX = 200
LABEL_CHARS_MAX = 32
INK = "#3b3b3b"
MUTED = "#8a8a8a"
SKY, BLUE, YELLOW, VERMILLION, ORANGE = "#56b4e9", "#0072b2", "#f0e442", "#d55e00", "#e69f00"
HATCH = {"hatch": "///", "edgecolor": "#7a6f00"}
LINES = ((BLUE, "-"), (VERMILLION, "--"), (ORANGE, "-."), (INK, ":"))
DURATIONS_S = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 3600)


def short(text: str, most: int) -> str:
    """Return `text` on one line of at most `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def headline(axes: Axes, text: str, pad: float | None = None) -> None:
    axes.set_title(text, loc="left", size=10, color=INK, pad=pad)


def tidy(axes: Axes, title: str) -> None:
    headline(axes, title)
    axes.tick_params(colors=INK, labelsize=9)
    axes.xaxis.label.set(color=INK, size=9)
    for side, spine in axes.spines.items():
        spine.set(visible=side == "bottom", color=MUTED)
    axes.grid(axis="y", color=MUTED, alpha=0.35, linewidth=0.6)
    axes.set_axisbelow(True)


def legend(axes: Axes, columns: int = 3, **what: Any) -> None:
    """Put the legend where it covers nothing: at the end of the title's line, or between title and panel if narrow."""
    place: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1.005, 1.0)}
    if narrow(axes):
        columns = min(columns, 3)
        place = {"loc": "lower left", "bbox_to_anchor": (-0.01, 1.0)}
        headline(axes, axes.get_title("left"), pad=LEGEND_LINE_PT)
    axes.legend(ncols=columns, **place, **LEGEND, **what)


LEGEND: dict[str, Any] = {
    "frameon": False,
    "fontsize": 9,
    "labelcolor": INK,
    "handlelength": 1.8,
    "borderaxespad": 0.1,
}


def narrow(axes: Axes) -> bool:
    figure = axes.get_figure(root=True)
    return figure is not None and figure.get_figwidth() < NARROW_IN


def duration_scale(axes: Axes, which: str, values: list[NDArray[np.float64]]) -> None:
    """Make an axis logarithmic in seconds, with ticks that a person would write."""
    found = np.concatenate([*values, np.empty(0)])
    found = found[found > 0]
    low, high = (found.min() / 1.3, found.max() * 1.3) if len(found) else (0.1, 10.0)
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}lim")(low, high)
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks([tick for tick in DURATIONS_S if low <= tick <= high])
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda seconds, _: show_duration(seconds)))


def time_axis(axes: Axes, end: float) -> None:
    """Label the shared axis in minutes and seconds, or hours and minutes for a long run."""
    ticks = TICKS_MAX // 2 if narrow(axes) else TICKS_MAX
    step = next((step for step in TICK_STEPS_S if end / step <= ticks), end / ticks)
    axes.set_xlim(0, end)
    axes.xaxis.set_major_locator(MultipleLocator(step))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: clock(seconds)))
    axes.set_xlabel("time from the run's start " + ("(minutes:seconds)" if end < 3600 else "(hours:minutes:seconds)"))


def clock(seconds: float) -> str:
    """Write a moment of a run: ``3:05``, from an hour on ``1:03:05``; ``the end`` where none is known."""
    if not np.isfinite(seconds):
        return "the end"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
