"""Pictures of a run, drawn from its journal: second by second, and how long turns took before, during and after.

Others compare runs: by their goodput, whether they recover once a fault has ended, or by what their users saw.

Plain `Figure` objects, never pyplot: its global state would leak between notebooks, threads and tests. The number of
things drawn is bounded, whatever the number of turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from orchestra.events import BreakerChanged, CallFinished
from sim.evidence import ALL_FAULTS, LEVELS, Evidence, Window
from sim.evidence import OUTCOMES as ENDINGS
from sim.ink import (
    BLUE,
    HATCH,
    INK,
    LABEL_CHARS_MAX,
    LEGEND,
    LINES,
    MUTED,
    ORANGE,
    SHADES_MAX,
    SKY,
    VERMILLION,
    WIDTH_IN,
    YELLOW,
    duration_scale,
    legend,
    narrow,
    short,
    tidy,
    time_axis,
)
from sim.journal import Entry, Journal, ProviderCallEnded, ProviderCallOutlived
from sim.measures import MEASURES
from sim.quantities import show_duration, show_share

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.world import Run

BUCKETS_MAX = 120
GOODPUT_PARTS_MAX = 30
BUCKET_WIDTHS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600)
LANES_MAX = 8
CURVE_POINTS = 200
HEAT_PARTS_MAX, HEAT_ROWS = 80, 36
HEAT_FLOOR_S = 1e-4
HEAT_COLOURS = "Blues"  # one hue, told apart by lightness alone; dark is many
HEAT_PALEST = 0.5  # of one turn: what is drawn must stand out from white
ROUNDING_S = 5e-6

OUTCOMES: dict[str, dict[str, Any]] = {
    "answered": {"facecolor": SKY},
    "failed": {"facecolor": VERMILLION},
    "shed": {"facecolor": YELLOW, **HATCH},
}
LEVEL_COLOURS = dict(zip(LEVELS, (SKY, YELLOW, ORANGE, VERMILLION, INK), strict=True))
STATES = {"CLOSED": SKY, "HALF_OPEN": YELLOW, "OPEN": VERMILLION}
PHASES = {"before": (BLUE, "-"), "during": (VERMILLION, "--"), "after": (ORANGE, "-.")}
WORDS = {"before": "before the faults", "during": "during the faults", "after": "after the faults"}


class Buckets(NamedTuple):
    """A run cut into equal parts.

    Parameters
    ----------
    edges : array of float, shape (n + 1,)
        Seconds.
    counts : dict of array of int, shape (n,)
        Turns that arrived in each part, by outcome.
    attempts : array of int, shape (n,)
        How often clients asked in each part: the turns that arrived, and those asked again.
    helped : dict of array of int, shape (n,)
        Calls in each part that were retried, hedged, or answered by some fallback instead, by which of that.
    p50, p95 : array of float, shape (n,)
        Latency in seconds of the answered turns that arrived in each part; NaN where there were none.
    serving, queued : array of int, shape (n,)
        Most provider calls at once in each part, served and waiting; all 0 where the journal keeps a sample only.
    """

    edges: NDArray[np.float64]
    counts: dict[str, NDArray[np.int64]]
    attempts: NDArray[np.int64]
    helped: dict[str, NDArray[np.int64]]
    p50: NDArray[np.float64]
    p95: NDArray[np.float64]
    serving: NDArray[np.int64]
    queued: NDArray[np.int64]

    @property
    def width(self) -> float:
        """Seconds of one part."""
        return float(self.edges[1] - self.edges[0])


def timeline(source: Run | Journal, *, width: float = WIDTH_IN, heading: bool = True) -> Figure:
    """Draw a run second by second: faults, turns by outcome, latency, breakers, levels, retries, provider load.

    Parameters
    ----------
    source : Run or Journal
    width : float
        Inches.
    heading : bool
        Whether the scenario's name and the counts stand above.

    Returns
    -------
    Figure
        Its axes are labelled ``faults`` (where there were any), ``turns``, ``latency``, ``breakers`` (where any call
        was guarded), ``levels`` (where the level changed), ``helped`` (where calls were retried, hedged or answered by
        a fallback) and ``provider`` (where the journal keeps every call). A sampled journal knows of the breakers that
        changed only.
    """
    evidence = _evidence(source)
    buckets = bucketed(evidence)
    states = dict(breaker_states(evidence))
    shown = {
        "levels": len(evidence.levels),
        "helped": len(buckets.helped),
        "provider": not evidence.journal.sampled,
    }
    figure, panels = _panels(width, min(len(evidence.faults), LANES_MAX), len(states), shown)
    for panel in panels.values():
        for _, start, end in list(evidence.faults.values())[:SHADES_MAX]:
            panel.axvspan(start, min(end, buckets.edges[-1]), color=MUTED, alpha=0.16, linewidth=0, zorder=0)
    if "faults" in panels:
        _draw_faults(panels["faults"], evidence, buckets.edges[-1])
    _draw_turns(panels["turns"], buckets)
    _draw_latency(panels["latency"], buckets)
    if "breakers" in panels:
        _draw_breakers(panels["breakers"], states)
    if "levels" in panels:
        _draw_levels(panels["levels"], evidence, buckets.edges[-1])
    if "helped" in panels:
        _draw_helped(panels["helped"], buckets)
    if "provider" in panels:
        _draw_provider(panels["provider"], buckets)
    time_axis(list(panels.values())[-1], buckets.edges[-1])
    if heading:
        figure.suptitle(_heading(evidence), x=0.012, ha="left", color=INK, weight="bold", size=12, parse_math=False)
    return figure


def answered_within(source: Run | Journal, *, width: float = WIDTH_IN) -> Figure:
    """Draw the share of arrivals that had their answer within a time, before, during and after the faults.

    A curve ends at its phase's success rate, not at 100 %: a turn without an answer is never within any time.

    Parameters
    ----------
    source : Run or Journal
    width : float
        Inches.
    """
    evidence = _evidence(source)
    figure = Figure(figsize=(width, 3.6), layout="constrained")
    axes = figure.add_subplot(label="answered_within")
    curves = {name: latencies for name, latencies in phases(evidence).items() if len(latencies)}
    longest = max((curve[np.isfinite(curve)].max(initial=0.0) for curve in curves.values()), default=0.0) or 1.0
    for name, latencies in curves.items():
        colour, dash = PHASES.get(name, (BLUE, "-"))
        times, shares = _cumulative(latencies, longest)
        label = f"{WORDS.get(name, name)}: {show_share(float(np.isfinite(latencies).mean()))} answered"
        axes.plot(times, shares, color=colour, linestyle=dash, linewidth=2, label=label)
    duration_scale(axes, "x", [curve[np.isfinite(curve)] for curve in curves.values()])
    axes.set(ylim=(0, 1.02), xlabel="time from arrival to the whole answer")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
    tidy(axes, "Share of all arrivals answered within a time")
    if curves:
        figure.legend(loc="outside lower left", ncols=1 if narrow(axes) else 3, **LEGEND)
    return figure


def goodput(runs: Mapping[str, Run | Journal], *, width: float = WIDTH_IN) -> Figure:
    """Draw over time which share of what arrived was answered, and how often clients asked, in each of several runs.

    A service that stays down though its fault has ended is metastable (Bronson et al., "Metastable Failures in
    Distributed Systems", HotOS 2021): its clients' retries keep it where the fault had brought it.

    Parameters
    ----------
    runs : mapping of str to Run or Journal
        By their labels; faults are shaded as in the first one.
    width : float
        Inches.

    Returns
    -------
    Figure
        Its axes are labelled ``goodput`` and ``amplification``.
    """
    figure = _over_time(runs, {"goodput": "goodput", "amplification": "retry_amplification"}, width)
    top, below = figure.axes
    part = _part(top)
    top.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
    below.yaxis.set_major_locator(MaxNLocator(4))
    tidy(top, f"Goodput: turns answered, by turns that arrived, in each {part}")
    tidy(below, "Attempts of clients, by turns that arrived")
    legend(top)
    return figure


def compared(runs: Mapping[str, Run | Journal], *, width: float = WIDTH_IN) -> Figure:
    """Draw over time which share of the turns was answered, and how long that took, in each of several runs.

    Parameters
    ----------
    runs : mapping of str to Run or Journal
        By their labels; faults are shaded as in the first one.
    width : float
        Inches.

    Returns
    -------
    Figure
        Its axes are labelled ``availability`` and ``p95``; lines have gaps where no turn was answered.
    """
    figure = _over_time(runs, {"availability": "availability", "p95": "p95"}, width)
    top, below = figure.axes
    part = _part(top)
    top.set_ylim(0, 1.04)
    top.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
    drawn = [np.asarray(line.get_ydata(), dtype=np.float64) for line in below.lines]
    duration_scale(below, "y", [values[np.isfinite(values)] for values in drawn])
    tidy(top, f"Turns that were answered, of those that arrived in each {part}")
    tidy(below, "p95 of their latency")
    legend(top)
    return figure


def _over_time(runs: Mapping[str, Run | Journal], measures: Mapping[str, str], width: float) -> Figure:
    """Draw two measures of several runs in each part of their time, one panel a measure, by the panel's label."""
    found = {name: _evidence(source) for name, source in runs.items()}
    first = next(iter(found.values()))
    edges = _edges(_end(first), GOODPUT_PARTS_MAX)
    middle = (edges[:-1] + edges[1:]) / 2
    figure = Figure(figsize=(width, 4.6), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(2.1, 1.3))
    panels: list[Axes] = []
    for row, (label, measure) in enumerate(measures.items()):
        axes = figure.add_subplot(grid[row, 0], label=label, sharex=panels[0] if panels else None)
        for _, start, end in list(first.faults.values())[:SHADES_MAX]:
            axes.axvspan(start, min(end, edges[-1]), color=MUTED, alpha=0.16, linewidth=0, zorder=0)
        for index, (name, evidence) in enumerate(found.items()):
            colour, dash = LINES[index % len(LINES)]
            values = [MEASURES[measure].of(evidence, Window(*span)) for span in pairwise(edges)]
            axes.plot(middle, values, color=colour, linestyle=dash, linewidth=2, label=short(name, LABEL_CHARS_MAX))
        axes.set_ylim(bottom=0)
        panels.append(axes)
    panels[0].tick_params(bottom=False, labelbottom=False)
    time_axis(panels[-1], edges[-1])
    return figure


def _part(axes: Axes) -> str:
    """Say how long a part of the time is that one point of the panel's lines tells of."""
    return show_duration(2 * float(np.asarray(axes.lines[0].get_xdata(), dtype=np.float64)[0]))


def latency_heat(source: Run | Journal, *, width: float = WIDTH_IN) -> Figure:
    """Draw how many turns that arrived in each part of a run were answered after how long; those never answered on top.

    Percentiles hide that there are two kinds of turns, quick ones and slow ones; here they are two bands (Gregg,
    "Visualizing System Latency", ACM Queue 2010).

    Parameters
    ----------
    source : Run or Journal
    width : float
        Inches.

    Returns
    -------
    Figure
        Its axes are labelled ``unanswered`` and ``latency_heat``.
    """
    evidence = _evidence(source)
    edges = _edges(_end(evidence), HEAT_PARTS_MAX)
    at, seconds, outcomes = _ended(evidence)
    answered = outcomes == "answered"
    took = np.maximum(seconds[answered], HEAT_FLOOR_S)
    rows = np.geomspace(took.min(initial=1.0) / 1.05, took.max(initial=1.0) * 1.05, HEAT_ROWS + 1)
    counts, _, _ = np.histogram2d(at[answered], took, (edges, rows))
    figure = Figure(figsize=(width, 4.4), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(0.7, 3))
    top = figure.add_subplot(grid[0, 0], label="unanswered")
    axes = figure.add_subplot(grid[1, 0], label="latency_heat", sharex=top)
    top.tick_params(bottom=False, labelbottom=False)
    top.stairs(np.histogram(at[~answered], edges)[0], edges, fill=True, color=VERMILLION, linewidth=0)
    top.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    for _, start, end in list(evidence.faults.values())[:SHADES_MAX]:
        top.axvspan(start, min(end, edges[-1]), color=MUTED, alpha=0.16, linewidth=0, zorder=0)
        axes.axvspan(start, min(end, edges[-1]), facecolor="none", edgecolor=MUTED, linewidth=1, linestyle=":")
    shown = np.ma.masked_equal(counts.T, 0)
    norm = LogNorm(vmin=HEAT_PALEST, vmax=max(2, counts.max()))
    mesh = axes.pcolormesh(edges, rows, shown, cmap=HEAT_COLOURS, norm=norm)
    duration_scale(axes, "y", [took])
    axes.set_ylim(rows[0], rows[-1])
    part = show_duration(float(edges[1] - edges[0]))
    tidy(top, f"Turns in each {part} that got no answer")
    tidy(axes, f"Turns answered, by when they arrived and how long that took, in each {part}")
    bar = figure.colorbar(mesh, ax=axes, pad=0.01, aspect=30, format="%d", ticks=[1, 2, 5, 10, 20, 50, 100, 200, 500])
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=INK, labelsize=9)
    time_axis(axes, edges[-1])
    return figure


# --- what is drawn, as numbers ------------------------------------------------------------------------------------


def bucketed(evidence: Evidence) -> Buckets:
    """Cut a run into at most `BUCKETS_MAX` parts and count in each."""
    edges = _edges(_end(evidence))
    at, seconds, outcomes = _ended(evidence)
    counts = {name: np.histogram(at[outcomes == name], edges)[0] for name in OUTCOMES}
    answered = outcomes == "answered"
    last = len(edges) - 2
    parts = np.minimum(np.digitize(at[answered], edges) - 1, last)  # who arrives at the very end is of the last part
    p50, p95 = _quantiles(parts, seconds[answered], last + 1)
    attempts = np.histogram(evidence.attempted, edges)[0]
    helped: dict[str, list[float]] = {}
    for (_, what), times in evidence.helped.items():
        helped.setdefault(what, []).extend(times)
    helps = {name: np.histogram(helped[name], edges)[0] for name in sorted(helped)[: len(LINES)]}
    serving, queued = _provider_load(() if evidence.journal.sampled else evidence.journal, edges)
    return Buckets(edges, counts, attempts, helps, p50, p95, serving, queued)


def breaker_states(evidence: Evidence) -> Iterator[tuple[str, list[tuple[float, float, str]]]]:
    """Yield each guarded target and its states as (start, end, state) in seconds, without gaps, to the run's end."""
    end = _edges(_end(evidence))[-1]
    changes: dict[str, list[BreakerChanged]] = {}
    for entry in evidence.changes if evidence.journal.sampled else evidence.journal:
        if isinstance(entry, BreakerChanged):
            changes.setdefault(entry.breaker, []).append(entry)
        elif isinstance(entry, CallFinished):
            changes.setdefault(entry.target, [])
    for name, moves in sorted(changes.items(), key=lambda item: (-len(item[1]), item[0]))[:LANES_MAX]:
        starts = [0.0, *(move.at for move in moves)]
        states = [moves[0].before if moves else "CLOSED", *(move.after for move in moves)]
        yield name, list(zip(starts, [*starts[1:], float(end)], states, strict=True))


def phases(evidence: Evidence) -> dict[str, NDArray[np.float64]]:
    """Return the latencies of the turns that arrived before, during and after all faults; infinite without an answer.

    A run without faults is one phase, ``whole run``.
    """
    windows = {name: evidence.window(name, ALL_FAULTS) for name in PHASES}
    if not evidence.faults:
        windows = {"whole run": evidence.window("always", "run")}
    at, seconds, outcomes = _ended(evidence)
    took = np.where(outcomes == "answered", seconds, np.inf)
    return {
        name: took[(at >= window.start) & (at < window.end)] for name, window in windows.items() if window is not None
    }


def _evidence(source: Run | Journal) -> Evidence:
    """Return what was gathered of a run, also where its journal keeps a sample only."""
    return Evidence(source) if isinstance(source, Journal) else source.evidence


def _ended(evidence: Evidence) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[Any]]:
    """Return when the turns arrived that have ended, after how long they did, and how."""
    columns = evidence.arrived
    codes = np.frombuffer(bytes(columns.codes), dtype=np.uint8)
    ended = codes < len(ENDINGS)
    return np.array(columns.at)[ended], np.array(columns.seconds)[ended], np.array(ENDINGS)[codes[ended]]


def _end(evidence: Evidence) -> float:
    """Return when arrivals end, or the last change that matters if that is later."""
    moments = [evidence.duration_s, 1.0, *(change.at for change in evidence.changes)]
    return float(max([*moments, *_ended(evidence)[0][-1:]]))


def _edges(end: float, parts_max: int = BUCKETS_MAX) -> NDArray[np.float64]:
    width = next((width for width in BUCKET_WIDTHS_S if end / width <= parts_max), end / parts_max)
    return np.arange(np.ceil(end / width - 1e-9) + 1) * width


def _quantiles(
    parts: NDArray[np.int64], seconds: NDArray[np.float64], count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    p50, p95 = np.full(count, np.nan), np.full(count, np.nan)
    for part in np.unique(parts):
        p50[part], p95[part] = np.quantile(seconds[parts == part], (0.5, 0.95))
    return p50, p95


def _provider_load(journal: Iterable[Entry], edges: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the most calls served, and the most that waited, at once in each part.

    A call that a cut-off journal does not see end is left out; one that outlives its caller is served to its own end.
    Calls of an alternate provider are another's load.
    """
    ended, outlived = [], {}
    for entry in journal:
        if isinstance(entry, ProviderCallEnded) and entry.provider == "main":
            ended.append(entry)
        elif isinstance(entry, ProviderCallOutlived):
            outlived[entry.call] = entry.seconds
    left = np.array([entry.at for entry in ended])
    took = np.array([entry.seconds for entry in ended])
    queued = np.array([entry.queued_seconds for entry in ended])
    came, served = left - took, left - took + queued
    freed = left + np.array([outlived.get(entry.call, 0.0) for entry in ended])
    return _most_at_once(served, freed, edges), _most_at_once(came, served, edges)


def _most_at_once(
    starts: NDArray[np.float64], ends: NDArray[np.float64], edges: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return how many intervals overlap at most in each part.

    Ends are taken a little earlier than they are: times are rounded to the microsecond, and a call that takes over
    another one's slot must not seem to share it.
    """
    ends = ends - ROUNDING_S
    starts, ends = starts[starts < ends], ends[starts < ends]
    times = np.concatenate((ends, starts))
    steps = np.concatenate((np.full(len(ends), -1), np.full(len(starts), 1)))
    order = np.argsort(times, kind="stable")
    times, level = times[order], np.cumsum(steps[order])
    most = np.concatenate(([0], level))[np.searchsorted(times, edges[:-1])]
    parts = np.digitize(times, edges) - 1
    inside = (parts >= 0) & (parts < len(most))
    np.maximum.at(most, parts[inside], level[inside])
    return most


def _cumulative(latencies: NDArray[np.float64], longest: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a curve of at most `CURVE_POINTS`, drawn on to `longest` so that its level can be compared."""
    ordered = np.sort(latencies[np.isfinite(latencies)])
    if not len(ordered):
        return np.array([longest]), np.array([0.0])
    shares = np.arange(1, len(ordered) + 1) / len(latencies)
    picked = np.unique(np.linspace(0, len(ordered) - 1, CURVE_POINTS).astype(int))
    return np.append(ordered[picked], longest), np.append(shares[picked], shares[-1])


def _heading(evidence: Evidence) -> str:
    name = short(evidence.scenario, 60) or "run"
    answered, failed, shed = (evidence.arrived.count(outcome) for outcome in OUTCOMES)
    ended = answered + failed + shed
    return f"{name}: {answered:,} of {ended:,} turns answered, {failed:,} failed, {shed:,} shed"


# --- panels -------------------------------------------------------------------------------------------------------


def _panels(width: float, faults: int, breakers: int, others: dict[str, int]) -> tuple[Figure, dict[str, Axes]]:
    """Stack the panels that there is something to draw in, on one time axis."""
    heights = {
        "faults": 0.28 * faults + 0.1,
        "turns": 2.1,
        "latency": 1.7,
        "breakers": 0.28 * breakers + 0.1,
        "levels": 0.38,
        "helped": 1.1,
        "provider": 1.4,
    }
    absent = {"faults": not faults, "breakers": not breakers} | {name: not count for name, count in others.items()}
    shown = [name for name in heights if not absent.get(name)]
    ratios = [heights[name] for name in shown]
    figure = Figure(figsize=(width, sum(ratios) + 0.5 * len(shown) + 0.6), layout="constrained")
    grid = figure.add_gridspec(len(shown), 1, height_ratios=ratios)
    panels: dict[str, Axes] = {}
    for row, name in enumerate(shown):
        panels[name] = figure.add_subplot(grid[row, 0], label=name, sharex=next(iter(panels.values()), None))
        panels[name].tick_params(bottom=row == len(shown) - 1, labelbottom=row == len(shown) - 1)
    return figure, panels


def _draw_faults(axes: Axes, evidence: Evidence, end: float) -> None:
    lanes = list(evidence.faults.items())[:LANES_MAX]
    for lane, (number, (_, start, stop)) in enumerate(lanes):
        shown = min(stop, end)
        axes.broken_barh([(start, shown - start)], (lane - 0.4, 0.8), color=MUTED, linewidth=0)
        where, side = (shown, "left") if start + shown < 1.4 * end else (start, "right")
        axes.annotate(
            short(evidence.whats[number], LABEL_CHARS_MAX),
            (where, lane),
            xytext=(5 if side == "left" else -5, 0),
            textcoords="offset points",
            ha=side,
            va="center",
            color=INK,
            size=9,
            parse_math=False,
        )
    more = len(evidence.faults) - len(lanes)
    tidy(axes, "Faults" + (f" (and {more} more, shaded below)" if more else ""))
    axes.set_ylim(len(lanes) - 0.5, -0.5)
    axes.yaxis.set_major_locator(NullLocator())


def _draw_turns(axes: Axes, buckets: Buckets) -> None:
    floor = np.zeros(len(buckets.edges) - 1)
    for name, look in OUTCOMES.items():
        top = floor + buckets.counts[name]
        axes.stairs(top, buckets.edges, baseline=floor, fill=True, label=name, linewidth=0, **look)
        floor = top
    if (buckets.attempts > floor).any():
        axes.stairs(buckets.attempts, buckets.edges, color=INK, linewidth=1, label="attempts")
    axes.set_ylim(0, max(1.0, 1.25 * max(floor.max(initial=0), buckets.attempts.max(initial=0))))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    tidy(axes, f"Turns that arrived in each {show_duration(buckets.width)}, by how they ended")
    legend(axes)


def _draw_latency(axes: Axes, buckets: Buckets) -> None:
    middle = (buckets.edges[:-1] + buckets.edges[1:]) / 2
    for name, values, colour, dash in (("p95", buckets.p95, VERMILLION, "--"), ("p50", buckets.p50, BLUE, "-")):
        axes.plot(middle, values, color=colour, linestyle=dash, marker=".", markersize=4, linewidth=1.5, label=name)
    duration_scale(axes, "y", [buckets.p50[np.isfinite(buckets.p50)], buckets.p95[np.isfinite(buckets.p95)]])
    tidy(axes, "Latency of the answered turns, by when they arrived")
    legend(axes)


def _draw_breakers(axes: Axes, states: dict[str, list[tuple[float, float, str]]]) -> None:
    for lane, spans in enumerate(states.values()):
        for state, colour in STATES.items():
            bars = [(start, stop - start) for start, stop, each in spans if each == state]
            axes.broken_barh(bars, (lane - 0.4, 0.8), facecolor=colour, linewidth=0, label=f"{lane} {state}")
    axes.set_ylim(len(states) - 0.5, -0.5)
    axes.set_yticks(range(len(states)), [short(name, LABEL_CHARS_MAX) for name in states], parse_math=False)
    axes.tick_params(axis="y", length=0)
    tidy(axes, "Circuit breakers")
    legend(axes, handles=[Patch(facecolor=colour, label=state) for state, colour in STATES.items()])


def _draw_levels(axes: Axes, evidence: Evidence, end: float) -> None:
    """Draw the level as one lane, and what operators did as marks on it."""
    spans = evidence.level_spans(float(end))
    for level, colour in LEVEL_COLOURS.items():
        bars = [(start, stop - start) for start, stop, each in spans if each == level]
        axes.broken_barh(bars, (-0.4, 0.8), facecolor=colour, linewidth=0, label=level)
    acts = [act.at for act in evidence.operated][:SHADES_MAX]
    axes.plot(acts, [0.0] * len(acts), linestyle="", marker="v", color=INK, markeredgecolor="white", label="operator")
    axes.set_ylim(0.5, -0.5)
    axes.yaxis.set_major_locator(NullLocator())
    spent = evidence.time_in_levels()
    tidy(axes, "Degradation level")
    legend(
        axes,
        handles=[
            Patch(facecolor=LEVEL_COLOURS[level], label=f"{level} {show_duration(seconds)}")
            for level, seconds in spent.items()
        ],
        columns=len(spent),
    )


def _draw_helped(axes: Axes, buckets: Buckets) -> None:
    for (name, counts), (colour, dash) in zip(buckets.helped.items(), LINES, strict=False):
        axes.stairs(counts, buckets.edges, color=colour, linestyle=dash, linewidth=1.5, label=short(name, 20))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    tidy(axes, f"Retries, hedges and fallbacks in each {show_duration(buckets.width)}")
    legend(axes, columns=4)


def _draw_provider(axes: Axes, buckets: Buckets) -> None:
    top = buckets.serving + buckets.queued
    axes.stairs(buckets.serving, buckets.edges, fill=True, facecolor=SKY, linewidth=0, label="served")
    waiting: dict[str, Any] = {"facecolor": YELLOW, "label": "queued", **HATCH}
    axes.stairs(top, buckets.edges, baseline=buckets.serving, fill=True, linewidth=0, **waiting)
    axes.set_ylim(0, max(1.0, 1.25 * top.max(initial=0)))
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    tidy(axes, f"Calls at the provider, the most at once in each {show_duration(buckets.width)}")
    legend(axes)
