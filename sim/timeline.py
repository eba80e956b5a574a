"""A run on one screen: what came, how it ended and how long it took, bucket by bucket, with breakers and faults.

Made for a terminal of 100 columns, with colour and without: each meaning has a sign of its own. Turns stand in the
bucket in which they arrived, so a row's numbers add up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from orchestra.events import BreakerChanged, LevelChanged
from sim.evidence import LEVELS, Evidence, Window
from sim.measures import percentile
from sim.quantities import show_count, show_duration, show_factor
from sim.schedule import MODES, ORDERS
from sim.verdict import Status
from sim.workload import caveat_of
from sim.world import Run

COLUMNS_MAX = 100
BUCKETS_MAX = 24
BUCKETS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400, 172800)
BAR_COLUMNS = 24
LANE_SLOTS = 8
LANES_MAX = 2
ERRORS_SHOWN_MAX = 4
HELP_SHOWN_MAX = 6
ACTS_SHOWN_MAX = 5


class Signs(NamedTuple):
    """What marks each meaning, for a terminal that knows Unicode and for one that does not."""

    answered: str
    failed: str
    shed: str
    states: dict[str, str]
    levels: dict[str, str]
    held: str
    broken: str
    none: str
    fault: str


_BLOCKS, _LETTERS = (dict(zip(LEVELS, signs, strict=True)) for signs in ("·░▒▓█", ".LE!M"))
UNICODE = Signs("█", "╳", "░", {"CLOSED": "·", "HALF_OPEN": "▒", "OPEN": "█"}, _BLOCKS, "✔", "✘", "·", "▌")
ASCII = Signs("#", "x", "-", {"CLOSED": ".", "HALF_OPEN": "h", "OPEN": "O"}, _LETTERS, "ok", "NO", ".", "|")
COLOURS = {"answered": "green", "failed": "red", "shed": "yellow"}
STATE_COLOURS = {"CLOSED": "dim green", "HALF_OPEN": "yellow", "OPEN": "red"}
LEVEL_COLOURS = dict(zip(LEVELS, ("dim green", "yellow", "dark_orange", "red", "bold magenta"), strict=True))
STATUS_COLOURS = {Status.PASSED: "bold green", Status.INCONCLUSIVE: "bold yellow", Status.ABORTED: "bold yellow"}


class Bucket(NamedTuple):
    """What arrived in one stretch of a run (seconds), and how it ended."""

    start: float
    end: float
    answered: int
    failed: int
    shed: int
    p50: float
    p95: float

    @property
    def arrivals(self) -> int:
        """All that arrived and ended."""
        return self.answered + self.failed + self.shed


def bucket_s(duration_s: float) -> float:
    """Return the shortest round bucket of which `BUCKETS_MAX` cover `duration_s`."""
    return next((size for size in BUCKETS_S if duration_s / size <= BUCKETS_MAX), math.ceil(duration_s / BUCKETS_MAX))


def buckets(evidence: Evidence) -> list[Bucket]:
    """Return the run in buckets."""
    size = bucket_s(evidence.duration_s)
    made = []
    for index in range(max(1, math.ceil(evidence.duration_s / size - 1e-9))):
        window = Window(index * size, (index + 1) * size)
        turns = evidence.turns(window)
        ended = {outcome: [each.seconds for each in turns if each.outcome == outcome] for outcome in COLOURS}
        counts = {outcome: len(seconds) for outcome, seconds in ended.items()}
        p50, p95 = (percentile(ended["answered"], q) for q in (0.50, 0.95))
        made.append(Bucket(window.start, window.end, **counts, p50=p50, p95=p95))
    return made


def state_at(changes: Sequence[BreakerChanged | LevelChanged], moment: float, first: str = "CLOSED") -> str:
    """Return the state of the breaker (or the level) that `changes` are of, at `moment`; `first` before all of them."""
    state = first
    for change in changes:
        if change.at > moment:
            break
        state = change.after
    return state


def render(run: Run, again: str, console: Console) -> RenderableType:
    """Return the whole page: what was run, the timeline, the verdict, and how to see it again.

    Parameters
    ----------
    run : Run
    again : str
        The command that repeats the run.
    console : Console
        Where it will be shown; its width and its encoding decide on columns and signs.
    """
    signs = UNICODE if (console.encoding or "").lower().startswith("utf") else ASCII
    evidence = run.evidence
    return Group(
        _title(run),
        Padding(_table(evidence, signs, console.width), (1, 0)),
        *_legends(evidence, signs),
        *_faults(run, evidence, signs),
        *_notes(run, evidence),
        _expectations(run, signs),
        _verdict(run, again),
    )


def _title(run: Run) -> Text:
    text = Text(run.scenario.name, style="bold")
    told = f"seed {run.seed}, door {run.door}, {run.mode} order, {show_duration(run.scenario.duration)}"
    text.append(f"   {told}", style="not bold dim")
    if run.scenario.description:
        text.append(f"\n{run.scenario.description}", style="not bold")
    return text


def _clock(seconds: float, size: float) -> str:
    if size < 1:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _table(evidence: Evidence, signs: Signs, width: int) -> Table:
    rows = buckets(evidence)
    changed = list(dict.fromkeys(change.breaker for change in evidence.changes))[:LANES_MAX]
    lanes = {name: [change for change in evidence.changes if change.breaker == name] for name in changed}
    roomy = width >= 52 + BAR_COLUMNS + (LANE_SLOTS + 2) * (len(lanes) + bool(evidence.levels))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", collapse_padding=True)
    for header in ("time", "turns", "answered", "failed", "shed", "p50", "p95"):
        table.add_column(header, justify="right", no_wrap=True)
    if roomy:
        table.add_column(_legend(signs), no_wrap=True, min_width=BAR_COLUMNS)
    for name in lanes:
        table.add_column(name, no_wrap=True, min_width=LANE_SLOTS)
    if evidence.levels:
        table.add_column("level", no_wrap=True, min_width=LANE_SLOTS)
    if evidence.faults:
        table.add_column("fault", no_wrap=True)
    most = max((row.arrivals for row in rows), default=0)
    size = rows[0].end - rows[0].start
    for row in rows:
        active = _active(evidence, row)
        cells: list[RenderableType] = [
            Text(_clock(row.start, size), style="red" if active else ""),
            _number(row.arrivals, "", signs),
            *(_number(getattr(row, outcome), colour, signs) for outcome, colour in COLOURS.items()),
            *(Text(signs.none if math.isnan(q) else show_duration(q)) for q in (row.p50, row.p95)),
        ]
        if roomy:
            cells.append(_bar(row, most, signs))
        cells.extend(_lane(changes, row, signs.states, STATE_COLOURS) for changes in lanes.values())
        if evidence.levels:
            cells.append(_lane(evidence.levels, row, signs.levels, LEVEL_COLOURS))
        if active:
            cells.append(Text(signs.fault + active, style="red"))
        table.add_row(*cells)
    return table


def _legend(signs: Signs) -> Text:
    text = Text()
    for outcome, colour in COLOURS.items():
        text.append(getattr(signs, outcome), style=f"not dim {colour}")
        text.append(f" {outcome} ")
    return text


def _number(count: int, colour: str, signs: Signs) -> Text:
    return Text(show_count(count), style=colour) if count else Text(signs.none, style="dim")


def _active(evidence: Evidence, row: Bucket) -> str:
    """Return the letters of the faults in force in `row`."""
    spans = sorted(evidence.faults.items())
    return "".join(_letter(number) for number, (_, start, end) in spans if start < row.end and end > row.start)


def _letter(fault: int) -> str:
    return chr(ord("A") + fault % 26)


def _bar(row: Bucket, most: int, signs: Signs) -> Text:
    """Draw a row's turns by how they ended; what happened at all gets at least one sign."""
    text = Text()
    if not row.arrivals:
        return text
    length = max(1, round(BAR_COLUMNS * row.arrivals / most))
    sizes = {outcome: round(length * getattr(row, outcome) / row.arrivals) for outcome in COLOURS}
    sizes = {outcome: max(size, 1) if getattr(row, outcome) else 0 for outcome, size in sizes.items()}
    while sum(sizes.values()) > BAR_COLUMNS:
        sizes[max(sizes, key=lambda outcome: sizes[outcome])] -= 1
    for outcome, colour in COLOURS.items():
        text.append(getattr(signs, outcome) * sizes[outcome], style=colour)
    return text


def _lane(
    changes: Sequence[BreakerChanged | LevelChanged], row: Bucket, signs: dict[str, str], colours: dict[str, str]
) -> Text:
    """Draw a breaker's states, or the level, in a row, in `LANE_SLOTS` moments; the first of `signs` is the first."""
    text = Text()
    step = (row.end - row.start) / LANE_SLOTS
    for slot in range(LANE_SLOTS):
        state = state_at(changes, row.start + (slot + 0.5) * step, first=next(iter(signs)))
        text.append(signs[state], style=colours[state])
    return text


def _legends(evidence: Evidence, signs: Signs) -> list[RenderableType]:
    """Explain the signs of the lanes, and say how long each level was in force."""
    if evidence.changes:
        legend = Text("breaker  ", style="dim")
        for state, sign in signs.states.items():
            legend.append(sign, style=f"not dim {STATE_COLOURS[state]}")
            legend.append(f" {state.lower().replace('_', '-')}  ")
    else:
        legend = Text("breakers stayed closed", style="dim")
    lines: list[RenderableType] = [legend]
    if evidence.levels:
        levels = Text("level    ", style="dim")
        for level, seconds in evidence.time_in_levels().items():
            levels.append(signs.levels[level], style=f"not dim {LEVEL_COLOURS[level]}")
            levels.append(f" {level.lower()} {show_duration(seconds)}  ")
        lines.append(levels)
    return lines


def _faults(run: Run, evidence: Evidence, signs: Signs) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for fault in run.verdict.faults:
        _, start, end = evidence.faults[fault.fault]
        text = Text("fault    ", style="dim")
        text.append(f"{signs.fault}{_letter(fault.fault)} ", style="not dim red")
        ended = "…" if math.isinf(end) else _clock(end, 1)
        text.append(f"{_clock(start, 1)} to {ended}  {fault.what}, ", style="not dim")
        touched = f"touched {fault.touched:,} operations" if fault.touched else "touched nothing"
        text.append(touched, style="not dim" if fault.touched else "not dim bold yellow")
        lines.append(text)
    return lines


def _notes(run: Run, evidence: Evidence) -> list[RenderableType]:
    """Tell how clients, guards and operators tried to help themselves."""
    notes = [("clients", caveat)] if (caveat := caveat_of(run.scenario.workload)) else []
    if evidence.retried:
        factor = show_factor(len(evidence.attempted) / evidence.arrivals)
        notes.append(("clients", f"asked again {len(evidence.retried):,} times, in all {factor} the turns"))
    if words := evidence.connections.words:
        notes.append(("sockets", words))
    if counts := list(evidence.help_counts().items()):
        shown = ", ".join(f"{target} {what} {count:,}" for (target, what), count in counts[:HELP_SHOWN_MAX])
        more = len(counts) - HELP_SHOWN_MAX
        notes.append(("calls", f"{shown}{f' and {more} more kinds' if more > 0 else ''}"))
    notes += [
        ("operator", f"{_clock(act.at, 1)} {act.target}: {act.action} ({act.reason})")
        for act in evidence.operated[:ACTS_SHOWN_MAX]
    ]
    if (more := len(evidence.operated) - ACTS_SHOWN_MAX) > 0:
        notes.append(("operator", f"and {more:,} more acts"))
    return [Text(f"{who:<9}", style="dim").append(what, style="not dim") for who, what in notes]


def _expectations(run: Run, signs: Signs) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(ratio=None, overflow="fold")
    table.add_column(overflow="fold")
    for result in run.verdict.results:
        style = "green" if result.held else "bold red"
        sign = Text(signs.held if result.held else signs.broken, style=style)
        table.add_row(sign, Text(result.text), Text(result.measured, style="" if result.held else "bold red"))
    return Padding(table, (1, 0))


def _verdict(run: Run, again: str) -> RenderableType:
    verdict = run.verdict
    word = verdict.status.name.replace("_", " ")
    text = Text(f"{word}: {verdict.meaning}", style=STATUS_COLOURS.get(verdict.status, "bold red"))
    text.append(f" (exit code {verdict.exit_code})\n", style="not bold dim")
    if run.mode != MODES[0]:
        text.append(f"{ORDERS[run.mode]}\n", style="not bold yellow")
    for left in verdict.left_behind:
        text.append(f"left behind: {left}\n", style="not bold red")
    sums = verdict.accounting
    ended = f"{sums.answered:,} answered + {sums.failed:,} failed + {sums.shed:,} shed"
    relation = f"= {sums.arrivals:,} arrivals" if sums.adds_up else f"of {sums.arrivals:,} arrivals"
    text.append(f"{ended} {relation}\n", style="not bold default")
    if verdict.unbalanced:
        text.append(f"Little's law is broken: {verdict.unbalanced}\n", style="not bold red")
    if verdict.failures:
        kinds = list(verdict.failures.items())
        shown = ", ".join(f"{kind} {count:,}" for kind, count in kinds[:ERRORS_SHOWN_MAX])
        more = len(kinds) - ERRORS_SHOWN_MAX
        text.append(f"no answer: {shown}{f' and {more} other kinds' if more > 0 else ''}\n", style="not bold default")
    speed = run.virtual_seconds / run.wall_seconds if run.wall_seconds else math.inf
    text.append(
        f"{show_duration(run.virtual_seconds)} of virtual time in {show_duration(run.wall_seconds)} ({speed:,.0f}x)"
        f"   journal {run.journal.digest[:16]}\n",
        style="not bold default",
    )
    text.append(f"again: {again}", style="not bold dim")
    return text
