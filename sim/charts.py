"""Pictures of many runs, or of what was fitted to records: fits, load curves, fronts, differences between policies.

As `sim.plots`, which draws one run: plain `Figure` objects, never pyplot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from sim.calibrate import QUANTILES, Calibration, Fitted, quantile
from sim.evidence import LEVELS
from sim.ink import (
    BLUE,
    INK,
    LABEL_CHARS_MAX,
    LINES,
    MUTED,
    ORANGE,
    SKY,
    TICKS_MAX,
    VERMILLION,
    WIDTH_IN,
    YELLOW,
    duration_scale,
    headline,
    legend,
    short,
    tidy,
)
from sim.measures import MEASURES, Measure, known, show_number
from sim.quantities import show_duration
from sim.statistics import Estimate, mean
from sim.tune import AS_IT_IS, front

MEASURES_DRAWN = ("p95", "goodput_per_second", "availability")
SHOWN_AS_SERIES = len(LINES)
MARKERS = ("o", "s", "^", "D")
PANEL_IN, ROW_IN = 1.9, 0.42
NARROW_BAR = 0.72
BEYOND_MAX = 300.0  # per cent: what differs by more is drawn up to there, its number beside it
LEVEL_LOOKS: dict[str, dict[str, Any]] = {
    "NORMAL": {"facecolor": SKY},
    "LIMITED": {"facecolor": YELLOW, "hatch": "///", "edgecolor": "#7a6f00"},
    "ESSENTIAL": {"facecolor": ORANGE, "hatch": "xx", "edgecolor": "#7a4f00"},
    "EMERGENCY": {"facecolor": VERMILLION},
    "MAINTENANCE": {"facecolor": INK},
}
VERDICT_LOOKS: dict[str, dict[str, Any]] = {
    "better": {"color": BLUE, "marker": "o"},
    "worse": {"color": VERMILLION, "marker": "s"},
    "different": {"color": INK, "marker": "D"},
    "no difference shown": {"color": MUTED, "marker": "o", "markerfacecolor": "white"},
}


class NothingToDraw(Exception):
    """A frame does not say what a chart needs; the message names what is missing."""


def load_curve(
    frame: pd.DataFrame,
    x: str,
    measures: Sequence[str] = MEASURES_DRAWN,
    *,
    by: str | None = None,
    width: float = WIDTH_IN,
) -> Figure:
    """Draw how measures depend on what was varied: the mean over the seeds of each point, with its 95 % interval.

    Parameters
    ----------
    frame : DataFrame
        A sweep's (`sim.sweep.sweep`): one row a run.
    x : str
        The varied path on the horizontal axis.
    measures : sequence of str
        One panel each.
    by : str, optional
        Another varied path; each of its values is a line of its own, at most four.
    width : float
        Inches.

    Returns
    -------
    Figure
        Its axes are labelled by their measures. Where `x` is a rate, a dotted line is what arrives. Runs with an error
        are left out.

    Raises
    ------
    NothingToDraw
    sim.measures.MeasureUnknown
    """
    names = [known(name) for name in measures]
    points = _points(frame, x, by)
    places, ticks = _places(points, x)
    figure = Figure(figsize=(width, PANEL_IN * len(names) + 0.7), layout="constrained")
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(panels, names, strict=True):
        axes.set_label(name)
        if name == "goodput_per_second" and _last(x) == "rate" and not ticks:
            axes.plot(places, places, color=MUTED, linestyle=":", linewidth=1.5, label="all that arrives")
        for number, (value, rows) in enumerate(points.groupby(by, sort=True) if by else [("", points)]):
            _draw_means(axes, rows, x, name, number, _named(by, value))
        _measure_axis(axes, MEASURES[name])
    _varied_axis(panels[-1], x, places, ticks)
    if by or any(axes.get_legend_handles_labels()[1] for axes in panels):
        legend(next(axes for axes in panels if axes.get_legend_handles_labels()[1]), columns=SHOWN_AS_SERIES + 1)
    return figure


def time_in_levels(frame: pd.DataFrame, x: str, *, width: float = WIDTH_IN) -> Figure:
    """Draw for each value of what was varied which share of its runs the service spent in each degradation level.

    Parameters
    ----------
    frame : DataFrame
        A sweep's (`sim.sweep.sweep`): one row a run.
    x : str
        The varied path.
    width : float
        Inches.

    Raises
    ------
    NothingToDraw
    """
    points = _points(frame, x, None)
    columns = {level: f"level_{level.lower()}_seconds" for level in LEVELS}
    means = points.groupby(x, sort=True)[list(columns.values())].mean()
    shares = means.div(means.sum(axis=1), axis=0)
    figure = Figure(figsize=(width, 3.2), layout="constrained")
    axes = figure.add_subplot(label="levels")
    places = np.arange(len(shares))
    floor = np.zeros(len(shares))
    for level, column in columns.items():
        share = shares[column].to_numpy(float)
        if share.any():
            axes.bar(places, share, NARROW_BAR, bottom=floor, label=level, linewidth=0, **LEVEL_LOOKS[level])
        floor += share
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
    axes.set_xticks(places, [_value_shown(value, x) for value in shares.index])
    axes.set_xlabel(x)
    tidy(axes, "Share of the time in each degradation level")
    legend(axes, columns=len(columns))
    return figure


def pareto(frame: pd.DataFrame, x: str, y: str, *, width: float = 7.0) -> Figure:
    """Draw what a search has found: which points nothing beats in both of two measures, and where today's stands.

    Parameters
    ----------
    frame : DataFrame
        A search's (`sim.tune.tune`): one row a trial.
    x, y : str
        Measures with a better way.
    width : float
        Inches.

    Returns
    -------
    Figure
        Points of the search's front are filled and bear their trial's number, and the front of these two measures is
        joined; what broke a constraint is hollow. Intervals are drawn on the front where the search judged by them, but
        for those that are longer than all points are apart.
    """
    for name in (x, y):
        if not MEASURES[known(name)].better:
            raise NothingToDraw(f"{name} has no better way, so nothing can be a front in it: take an objective")
    tried = frame[frame["error"] == ""]
    figure = Figure(figsize=(width, 0.62 * width), layout="constrained")
    axes = figure.add_subplot(label="pareto")
    today = (tried["trial"] == AS_IT_IS).to_numpy(bool)
    feasible, good = (tried[name].to_numpy(bool) for name in ("feasible", "front"))
    sets: tuple[tuple[str, Any, dict[str, Any]], ...] = (
        ("breaks a constraint", ~feasible & ~today, {"marker": "o", "color": VERMILLION, "markerfacecolor": "none"}),
        ("is beaten by another", feasible & ~good & ~today, {"marker": "o", "color": MUTED, "markersize": 4}),
    )
    for label, chosen, look in sets:
        if chosen.any():
            axes.plot(tried[x][chosen], tried[y][chosen], linestyle="", label=label, **look)
    best = tried[front(tried, (x, y))].sort_values(by=[x, y])
    axes.plot(best[x], best[y], color=BLUE, linewidth=1, linestyle="--", zorder=2)
    found = tried[good & ~today]
    errors = {f"{way}err": _half_widths(tried, found, name) for way, name in (("x", x), ("y", y))}
    filled: dict[str, Any] = {
        "color": BLUE,
        "marker": "s",
        "markersize": 6,
        "linestyle": "",
        "elinewidth": 0.8,
        "ecolor": MUTED,
    }
    axes.errorbar(found[x], found[y], label="front (trial)", zorder=3, **errors, **filled)
    for _, row in found.iterrows():
        axes.annotate(str(row["trial"]), (row[x], row[y]), xytext=(5, 4), textcoords="offset points", color=INK, size=8)
    words = "as it is" if feasible[today].all() else "as it is, breaks a constraint"
    fill = INK if feasible[today].all() else "white"
    star: dict[str, Any] = {"marker": "*", "markersize": 15, "color": INK, "markerfacecolor": fill, "linestyle": ""}
    axes.plot(tried[x][today], tried[y][today], label=words, zorder=4, **star)
    _pareto_axes(axes, tried, x, y)
    return figure


def differences(summary: pd.DataFrame, labels: tuple[str, str] = ("first", "second"), *, width: float = 8.5) -> Figure:
    """Draw by how much the second of two policies differs from the first, measure by measure, and what that shows.

    Parameters
    ----------
    summary : DataFrame
        A comparison's (`sim.replicate.compare`): one row a measure.
    labels : (str, str)
        What the two are called.
    width : float
        Inches.

    Returns
    -------
    Figure
        One row a measure: the difference in per cent of the first, with its interval, its verdict in a word, and both
        means. What is 0 in the first has no per cent and is left out; intervals end at `BEYOND_MAX`.
    """
    shown = summary[(summary["first"] != 0) & summary["difference"].notna()]
    if shown.empty:
        raise NothingToDraw("nothing differs in per cent: every measure of the first is 0, or no pair of runs has one")
    figure = Figure(figsize=(width, ROW_IN * len(shown) + 1.25), layout="constrained")
    axes = figure.add_subplot(label="differences")
    axes.axvline(0, color=INK, linewidth=1)
    for row, (name, each) in enumerate(shown.iterrows()):
        scale = 100 / abs(each["first"])
        low, middle, high = np.clip(
            [each[column] * scale for column in ("low", "difference", "high")], -BEYOND_MAX, BEYOND_MAX
        )
        look = VERDICT_LOOKS[each["verdict"]]
        axes.errorbar(middle, row, xerr=[[middle - low], [high - middle]], capsize=3, markersize=7, **look)
        show = MEASURES[str(name)].show
        told = f"{each['verdict']}   {show(each['first'])} → {show(each['second'])}"
        axes.annotate(
            told,
            (1.01, row),
            xycoords=("axes fraction", "data"),
            va="center",
            color=INK if look["color"] == MUTED else look["color"],
            size=9,
            parse_math=False,
        )
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_yticks(range(len(shown)), [_directed(MEASURES[str(name)]) for name in shown.index])
    axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda percent, _: f"{percent:+.0f} %" if percent else "0"))
    axes.set_xlabel(f"difference in per cent of the first, over {int(shown['runs'].max()):,} seeds")
    tidy(axes, f"{short(labels[1], LABEL_CHARS_MAX)}, against {short(labels[0], LABEL_CHARS_MAX)}")
    axes.grid(axis="x", color=MUTED, alpha=0.35, linewidth=0.6)
    return figure


def fits(calibration: Calibration, *, width: float = WIDTH_IN) -> Figure:
    """Draw what was recorded of each quantity, as shares of calls below a value, and what was fitted to it.

    Returns
    -------
    Figure
        One panel a quantity, labelled by its name: the records as a broad line, what was chosen as a narrow one on it,
        and the family that came next.
    """
    fitted = (calibration.first_token, calibration.per_token, calibration.context_tokens, calibration.generated_tokens)
    figure = Figure(figsize=(width, 6.0), layout="constrained")
    grid = figure.add_gridspec(2, 2)
    for index, each in enumerate(fitted):
        _draw_fit(figure.add_subplot(grid[index // 2, index % 2], label=each.name), each)
    return figure


def _draw_fit(axes: Axes, fitted: Fitted) -> None:
    shares = (np.arange(QUANTILES - 1) + 0.5) / (QUANTILES - 1)
    recorded = np.interp(shares, np.linspace(0, 1, QUANTILES), fitted.recorded)
    axes.plot(recorded, shares, color=MUTED, linewidth=6, alpha=0.6, solid_capstyle="butt", label="recorded")
    others = [each for each in fitted.tried if each.family not in (fitted.chosen.family, "empirical")][:1]
    for each, (colour, dash) in zip((fitted.chosen, *others), ((BLUE, "-"), LINES[1]), strict=False):
        values = [quantile(each.distribution, share) for share in shares]
        chosen = each is fitted.chosen
        label = f"{each.family}, off by {each.distance:.1%}"
        axes.plot(values, shares, color=colour, linestyle=dash, linewidth=1.8 if chosen else 1.0, label=label)
    if fitted.unit == "s":
        duration_scale(axes, "x", [recorded])
    else:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
    tidy(axes, f"{fitted.name[0].upper()}{fitted.name[1:]}")
    axes.legend(loc="upper left", frameon=False, fontsize=9, labelcolor=INK)


# --- what was varied ----------------------------------------------------------------------------------------------


def _points(frame: pd.DataFrame, x: str, by: str | None) -> pd.DataFrame:
    """Return the runs that went on, if `x` and `by` tell their points apart."""
    for path in (x, by):
        if path is not None and path not in frame.columns:
            raise NothingToDraw(f"{path} was not varied: take one of {', '.join(_varied(frame))}")
    runs = frame[frame["error"] == ""]
    if runs.empty:
        raise NothingToDraw("no run went on: the column `error` says why")
    keys = [x] if by is None else [x, by]
    if (runs.groupby(keys)["point"].nunique() > 1).any():
        others = [path for path in _varied(frame) if path not in keys]
        raise NothingToDraw(f"{', '.join(others)} was varied as well: name it as `by`, or keep one value of it")
    if by is not None and runs[by].nunique() > SHOWN_AS_SERIES:
        raise NothingToDraw(f"{by} has {runs[by].nunique()} values: at most {SHOWN_AS_SERIES} can be told apart")
    return runs


def _varied(frame: pd.DataFrame) -> list[str]:
    """Return a sweep's paths: they stand between its seeds and the verdicts."""
    columns = list(frame.columns)
    return columns[columns.index("seed") + 1 : columns.index("verdict")]


def _places(points: pd.DataFrame, x: str) -> tuple[np.ndarray[Any, Any], list[str]]:
    """Return where values stand on the axis, and what to write there if they are words."""
    values = sorted(points[x].unique())
    if pd.api.types.is_numeric_dtype(points[x]):
        return np.array(values, dtype=np.float64), []
    return np.arange(len(values)), [str(value) for value in values]


def _draw_means(axes: Axes, rows: pd.DataFrame, x: str, name: str, number: int, label: str) -> None:
    found: list[Estimate] = [mean(each.to_numpy(float)) for _, each in rows.groupby(x, sort=True)[name]]
    numeric = pd.api.types.is_numeric_dtype(rows[x])
    places = sorted(rows[x].unique()) if numeric else list(range(rows[x].nunique()))
    values = np.array([each.value for each in found])
    most = 1.0 if MEASURES[name].unit == "share" else np.inf
    bounds = np.array([(max(each.low, 0.0), min(each.high, most)) for each in found])
    known_well = np.array([np.isfinite(each.half_width) for each in found])
    low, high = (np.where(known_well, bounds[:, side], values) for side in (0, 1))
    colour, dash = LINES[number]
    axes.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.errorbar(
        places,
        values,
        yerr=[values - low, high - values],
        color=colour,
        linestyle=dash,
        linewidth=1.8,
        marker=MARKERS[number],
        markersize=5,
        capsize=3,
        elinewidth=1,
        label=label,
    )


def _named(by: str | None, value: object) -> str:
    return "" if by is None else short(f"{_last(by)} {_value_shown(value, by)}", LABEL_CHARS_MAX)


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _value_shown(value: object, path: str) -> str:
    """Write a varied value; a rate's is per second."""
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:g}/s" if _last(path) == "rate" else f"{value:g}"


def _varied_axis(axes: Axes, x: str, places: np.ndarray[Any, Any], ticks: list[str]) -> None:
    if ticks:
        axes.set_xticks(range(len(ticks)), ticks)
    else:
        axes.xaxis.set_major_locator(FixedLocator(places.tolist()) if len(places) <= TICKS_MAX else MaxNLocator(9))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _value_shown(value, x)))
    axes.set_xlabel(x)


def _measure_axis(axes: Axes, measure: Measure) -> None:
    tidy(axes, f"{measure.label[0].upper() if measure.unit != 'seconds' else measure.label[0]}{measure.label[1:]}")
    low, high = axes.get_ylim()
    if measure.unit == "share":
        axes.set_ylim(max(0.0, low), min(1.02, max(high, 1.0)))
    else:
        axes.set_ylim(0, high)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(_formatted(measure)))


def _formatted(measure: Measure) -> Any:
    if measure.unit == "seconds":
        return lambda value, _: show_duration(value) if value > 0 else "0"
    if measure.unit == "share":
        return lambda value, _: f"{value * 100:.4g} %"
    return lambda value, _: show_number(value)


# --- what was searched and compared -------------------------------------------------------------------------------


def _half_widths(tried: pd.DataFrame, found: pd.DataFrame, name: str) -> Any:
    """Return intervals of a measure if the search judged by it, and its seeds were enough to tell points apart."""
    column = f"{name}_half_width"
    if column not in found.columns:
        return None
    widths = found[column].to_numpy(float)
    return np.where(2 * widths <= np.ptp(tried[name].to_numpy(float)), widths, 0.0)


def _pareto_axes(axes: Axes, tried: pd.DataFrame, x: str, y: str) -> None:
    """Label the axes; they span the points, not their intervals, which few seeds make long."""
    tidy(axes, "")
    for name, limit in ((x, axes.set_xlim), (y, axes.set_ylim)):
        values = tried[name].to_numpy(float)
        low, high = np.nanmin(values), np.nanmax(values)
        room = 0.09 * (high - low) or 0.05 * abs(high) or 0.05
        limit(low - room, high + room)
    axes.grid(axis="x", color=MUTED, alpha=0.35, linewidth=0.6)
    for axis, name in ((axes.xaxis, x), (axes.yaxis, y)):
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(FuncFormatter(_formatted(MEASURES[name])))
    axes.set_xlabel(_directed(MEASURES[x]))
    headline(axes, _directed(MEASURES[y]))
    legend(axes, columns=2)


def _directed(measure: Measure) -> str:
    """Say what a measure is, and which way is better."""
    return f"{measure.label} ({measure.better} is better)" if measure.better else measure.label
