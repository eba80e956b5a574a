"""`orchestra sim replicate`, `compare`, `sweep` and `tune`: many runs, and numbers that an engineer decides by.

Exit codes: 0 done, 1 some run could not go on, 2 invalid input, 6 interrupted (what is done is kept where it is kept).
"""

from __future__ import annotations

import io
import math
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from sim import executors
from sim import scenario as scenarios
from sim.cli_words import chosen, fail
from sim.clients import DOORS
from sim.design import DESIGNS, DesignName, DesignRefused, Point, axes
from sim.entropy import SEED_MAX
from sim.executors import ClusterUnreachable, LabMissing
from sim.forms import Unreadable
from sim.measures import MEASURES, MeasureUnknown, known, show_number
from sim.observe import WorkersLost
from sim.paths import PathRefused, changed
from sim.quantities import duration, show_duration
from sim.replicate import COMPARED, RUNS, Comparison, Replications, Until, compare, replicate
from sim.results import ResultsRefused
from sim.scenario import Scenario
from sim.statistics import RUNS_MAX, Precision
from sim.sweep import Progress as Swept
from sim.sweep import sweep
from sim.timeline import COLUMNS_MAX
from sim.tune import (
    AS_IT_IS,
    OBJECTIVES,
    READERS,
    SAMPLERS,
    SamplerName,
    Search,
    constraint,
    settings_toml,
    settings_yaml,
    tune,
)
from sim.verdict import Status

WORKERS_MAX = 512
PASTED_MAX = 3
SWEPT_MAX = 40
VERDICTS_SHOWN = {
    "better": ("bold green", "better"),
    "worse": ("bold red", "worse"),
    "different": ("yellow", "different"),
    "no difference shown": ("dim", "not shown"),
}
REFUSALS = (
    Unreadable,
    PathRefused,
    DesignRefused,
    ResultsRefused,
    MeasureUnknown,
    LabMissing,
    ClusterUnreachable,
)

app = typer.Typer()

Story = Annotated[Path, typer.Argument(help="Scenario file (YAML).")]
Seed = Annotated[
    int, typer.Option(min=0, max=SEED_MAX - RUNS_MAX, help="The first seed; runs take it and those after it.")
]
Entry = Annotated[str | None, typer.Option(help="Where clients come in, if not as the scenario says.")]
WarmUp = Annotated[str, typer.Option(help="What happens in the first so long of each run does not count: 30s.")]
Workers = Annotated[
    int | None, typer.Option(min=1, max=WORKERS_MAX, help="Processes here; as many as cores if not given.")
]
Cluster = Annotated[str | None, typer.Option(help="A Dask scheduler to run on instead: tcp://10.0.0.1:8786.")]
Vary = Annotated[
    list[str],
    typer.Option(help="A path and its values: world.provider.capacity=16,32 or workload.open_loop.rate=5/s..50/s."),
]


@app.command("replicate")
def replicate_command(
    scenario: Story,
    runs: Annotated[
        int | None, typer.Option(min=1, max=RUNS_MAX, help=f"How many seeds ({RUNS}); with --until, the most.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="Until a mean is known so well: 'p95 +-5%' or 'p95 +-200ms'.")
    ] = None,
    seed: Seed = 0,
    door: Entry = None,
    warm_up: WarmUp = "0",
    workers: Workers = None,
    cluster: Cluster = None,
    out: Annotated[Path | None, typer.Option(help="Write one row a run here (CSV).")] = None,
) -> None:
    """Run a scenario under many seeds: every measure with its 95 % confidence interval."""
    with _explained("the runs are gone"):
        story, skipped = _story(scenario, door), _seconds(warm_up)
        wanted = None if until is None else _until(until)
        most = runs or (RUNS if wanted is None else RUNS_MAX)
        with _executor(workers, cluster) as executor, _progress(None if wanted else most) as step:
            done = replicate(
                story, most, until=wanted, first_seed=seed, warm_up_s=skipped, executor=executor, told=step
            )
        if out is not None:
            _write(done.frame, out)
    _show_replications(story, done, wanted)
    _exit_for(done.frame)


@app.command("compare")
def compare_command(
    scenario: Story,
    other: Annotated[
        list[str], typer.Option("--with", help="What the second policy has: PATH=VALUE; can be repeated.")
    ],
    runs: Annotated[int, typer.Option(min=2, max=RUNS_MAX, help="Seeds, the same for both.")] = RUNS,
    measure: Annotated[
        list[str] | None, typer.Option(help="Judge these instead; the fewer, the narrower their intervals.")
    ] = None,
    seed: Seed = 0,
    door: Entry = None,
    warm_up: WarmUp = "0",
    workers: Workers = None,
    cluster: Cluster = None,
    out: Annotated[Path | None, typer.Option(help="Write one row a run here (CSV).")] = None,
) -> None:
    """Compare a scenario with itself under other settings, on the same seeds: better, worse, or not shown."""
    with _explained("the runs are gone"):
        story, skipped = _story(scenario, door), _seconds(warm_up)
        second = changed(story, dict(_assignment(each) for each in other))
        judged = tuple(known(each) for each in measure or COMPARED)
        with _executor(workers, cluster) as executor, _progress(2 * runs) as step:
            done = compare(
                story,
                second,
                runs,
                labels=("as it is", "changed"),
                measures=judged,
                first_seed=seed,
                warm_up_s=skipped,
                executor=executor,
                told=step,
            )
        if out is not None:
            _write(done.frame, out)
    _show_comparison(story, other, done)
    _exit_for(done.frame)


@app.command("sweep")
def sweep_command(
    scenario: Story,
    vary: Vary,
    out: Annotated[Path, typer.Option(help="The results (Parquet); what is there already is not run again.")],
    design: Annotated[str, typer.Option(help="Which points: grid (every combination), lhs or sobol.")] = DESIGNS[0],
    points: Annotated[int | None, typer.Option(help="How many points of lhs or sobol.")] = None,
    design_seed: Annotated[int, typer.Option(min=0, max=SEED_MAX, help="Of the chance in lhs and sobol.")] = 0,
    runs: Annotated[int, typer.Option(min=1, max=RUNS_MAX, help="Seeds a point, the same for all.")] = 5,
    seed: Seed = 0,
    door: Entry = None,
    warm_up: WarmUp = "0",
    workers: Workers = None,
    cluster: Cluster = None,
) -> None:
    """Run a scenario at many points of its settings and parameters, into one Parquet file that can be gone on with."""
    with _explained(f"{out} has what is done; the same command goes on"):
        story, skipped = _story(scenario, door), _seconds(warm_up)
        varied = axes(vary, story)
        laid_out: DesignName = chosen("design", design, DESIGNS)
        with _executor(workers, cluster) as executor, _sweeping() as watch:
            frame = sweep(
                story,
                varied,
                out,
                design=laid_out,
                count=points,
                design_seed=design_seed,
                runs=runs,
                first_seed=seed,
                warm_up_s=skipped,
                executor=executor,
                watch=watch,
            )
    _show_sweep(story, frame, [each.path for each in varied], out)
    _exit_for(frame)


@app.command("tune")
def tune_command(
    scenario: Story,
    vary: Vary,
    objective: Annotated[str, typer.Option(help="Measures to make better, with commas.")] = ",".join(OBJECTIVES),
    constraint_: Annotated[
        list[str] | None, typer.Option("--constraint", help="What must hold: 'availability >= 99%'; can be repeated.")
    ] = None,
    trials: Annotated[int, typer.Option(help="How many points to try.")] = 50,
    runs: Annotated[int, typer.Option(min=1, max=RUNS_MAX, help="Seeds a point, the same for all.")] = 5,
    sampler: Annotated[str, typer.Option(help="tpe, or nsga2 for many trials.")] = SAMPLERS[0],
    storage: Annotated[Path | None, typer.Option(help="Keep trials here, and go on with those that are there.")] = None,
    seed: Seed = 0,
    sampler_seed: Annotated[int, typer.Option(min=0, max=2**31, help="Of the sampler's chance.")] = 0,
    door: Entry = None,
    warm_up: WarmUp = "0",
    workers: Workers = None,
    cluster: Cluster = None,
    out: Annotated[Path | None, typer.Option(help="Write one row a trial here (CSV).")] = None,
) -> None:
    """Search for the best settings under constraints: the Pareto front, and what to paste."""
    kept = "the trials are gone" if storage is None else f"{storage} has what is done; the same command goes on"
    with _explained(kept):
        story, skipped = _story(scenario, door), _seconds(warm_up)
        drawn_by: SamplerName = chosen("sampler", sampler, SAMPLERS)
        search = Search(
            axes(vary, story),
            tuple(known(each.strip()) for each in objective.split(",")),
            tuple(constraint(each) for each in constraint_ or ()),
            runs,
            seed,
            skipped,
            drawn_by,
            sampler_seed,
        )
        with _executor(workers, cluster) as executor, _progress(trials) as step:
            frame = tune(
                story, search, trials, storage=storage, executor=executor, watch=lambda done, total: step(done)
            )
        if out is not None:
            _write(frame, out)
    _show_front(story, frame, search)


# --- what is asked for


def _story(path: Path, door: str | None) -> Scenario:
    story = scenarios.load(path)
    return story if door is None else scenarios.entering(story, chosen("door", door, DOORS))


def _seconds(text: str) -> float:
    try:
        return duration(text)
    except ValueError as wrong:
        raise DesignRefused(f"--warm-up {wrong}") from None


def _assignment(text: str) -> tuple[str, str]:
    path, equals, value = text.partition("=")
    if not (path.strip() and equals and value.strip()):
        raise DesignRefused(
            f"{text!r} changes nothing: write PATH=VALUE, such as guards.unified.breaker.open_seconds=30"
        )
    return path.strip(), value.strip()


def _until(text: str) -> Until:
    match = re.fullmatch(r"\s*(\w+)\s*(?:\+-|±)\s*(\S+)\s*", text)
    if match is None:
        raise DesignRefused(f"--until {text!r} cannot be read: write a measure and a half-width, such as 'p95 +-5%'")
    name, width = known(match[1]), match[2]
    try:
        if width.endswith("%"):
            precision = Precision(float(width[:-1]) / 100, relative=True)
        else:
            precision = Precision(READERS.get(MEASURES[name].unit, float)(width), relative=False)
    except ValueError as wrong:
        raise DesignRefused(f"--until {name}: {wrong}") from None
    if not 0 < precision.half_width < math.inf:
        raise DesignRefused(f"--until {name}: {width} is no half-width: write one above 0, such as 5%")
    return Until(name, precision)


def _write(frame: pd.DataFrame, out: Path) -> None:
    try:
        frame.to_csv(out, index=False)
    except OSError as wrong:
        raise ResultsRefused(f"{out} cannot be written ({wrong.strerror}): choose another place") from None


# --- where it is done, and how it ends


@contextmanager
def _executor(workers: int | None, cluster: str | None) -> Iterator[Executor]:
    if workers is not None and cluster is not None:
        raise DesignRefused("--workers are processes here, --cluster is elsewhere: leave one of them out")
    with executors.processes(workers) if cluster is None else executors.cluster(cluster) as executor:
        yield executor


@contextmanager
def _explained(kept: str) -> Iterator[None]:
    """Tell in a sentence why it ended early, with the status that says so; SIGTERM counts as Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except REFUSALS as refusal:
        fail(str(refusal))
    except KeyboardInterrupt:
        fail(f"interrupted: {kept}", Status.ABORTED)
    except WorkersLost as lost:
        fail(f"{lost}: {kept}", Status.ABORTED)
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit_for(frame: pd.DataFrame) -> None:
    """Show the first errors of runs that could not go on, and end with the status that says so."""
    failed = frame[frame["error"] != ""]
    for error, seeds in failed.groupby("error", sort=False)["seed"]:
        where = ", ".join(map(str, sorted(seeds.unique())[:5]))
        Console(stderr=True).print(
            f"{len(seeds)} runs could not go on (seeds {where}): {error}", style="red", markup=False, soft_wrap=True
        )
    if len(failed):
        raise typer.Exit(Status.FAILED.value)


@contextmanager
def _bar(total: int | None) -> Iterator[Callable[[int, int | None, str], None]]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting workers", total=total)

        def step(done: int, of: int | None, words: str) -> None:
            bar.update(task, completed=done, total=of, description=words)

        yield step


@contextmanager
def _progress(total: int | None) -> Iterator[Callable[[int], None]]:
    with _bar(total) as bar:
        yield lambda done: bar(done, total, f"{done:,} done" if total is None else f"{done:,} of {total:,}")


@contextmanager
def _sweeping() -> Iterator[Callable[[Swept], None]]:
    with _bar(None) as bar:

        def watch(progress: Swept) -> None:
            words = f"{progress.done:,} of {progress.total:,} runs"
            words += f", {progress.resumed:,} of them before" if progress.resumed else ""
            words += f", {progress.failed:,} with an error" if progress.failed else ""
            if progress.seconds_left is not None and progress.done < progress.total:
                words += f", about {show_duration(math.ceil(progress.seconds_left))} left"
            bar(progress.done, progress.total, words)

        yield watch


# --- what is shown


def _console() -> Console:
    """Return where results go: a page of `COLUMNS_MAX`, or a narrower terminal."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a scenario's words may be beyond what a terminal knows
    console = Console(highlight=False)
    console.width = min(console.width, COLUMNS_MAX) if console.is_terminal else COLUMNS_MAX
    return console


def _shows(name: str) -> Callable[[float], str]:
    """Return how to write means of a measure: a mean of counts has a fraction that means nothing."""
    measure = MEASURES[name]
    return show_number if measure.unit in ("turns", "tokens") else measure.show


def _headed(paths: Sequence[str]) -> list[str]:
    """Return the ends of paths that are long enough to tell them apart."""
    for length in range(1, max(path.count(".") for path in paths) + 2):
        ends = [".".join(path.split(".")[-length:]) for path in paths]
        if len(set(ends)) == len(ends):
            return ends
    return list(paths)


def _table(title: str, *headers: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for index, header in enumerate(headers):
        table.add_column(header, justify="left" if index == 0 else "right", header_style="dim", no_wrap=index == 0)
    return table


def _show_replications(story: Scenario, done: Replications, until: Until | None) -> None:
    console = _console()
    table = _table(f"{story.name}: {len(done.frame):,} seeds", "measure", "mean", "95 % interval", "half-width")
    for name, row in done.summary.iterrows():
        if _worth_showing(str(name), row["mean"]):
            show = _shows(str(name))
            table.add_row(MEASURES[str(name)].label, show(row["mean"]), _interval(row, show), _width(row))
    console.print(table)
    counts = done.frame["verdict"].value_counts()
    for verdict, count in counts[counts.index != ""].items():
        seeds = done.frame.loc[done.frame["verdict"] == verdict, "seed"].tolist()
        named = "" if verdict == Status.PASSED.name else f": seeds {', '.join(map(str, seeds[:10]))}"
        console.print(f"{verdict} {count} times{named}", markup=False)
    if until is not None:
        of = abs(float(done.frame[until.measure].mean())) if until.precision.relative else 1.0
        reached = done.summary["half_width"][until.measure] <= until.precision.half_width * of
        told = "is known as well as wanted" if reached else "is not yet known as well as wanted: allow more --runs"
        console.print(f"{MEASURES[until.measure].label} {told}")


def _worth_showing(name: str, mean: float) -> bool:
    """Leave out what was never measured, and states that nothing was ever in, or that all is in on a calm day."""
    calm = name.endswith("_closed_seconds") or name == "level_normal_seconds"
    state = name.startswith(("breaker_", "level_"))
    return not (math.isnan(mean) or (state and (calm or mean == 0)) or (name == "cost" and mean == 0))


def _interval(row: pd.Series, show: Callable[[float], str]) -> str:
    low, high = row["low"], row["high"]
    return "one run tells none" if math.isinf(low) else f"{_signed(low, show)} to {_signed(high, show)}"


def _signed(value: float, show: Callable[[float], str]) -> str:
    return f"-{show(-value)}" if value < 0 else show(value)


def _points(value: float) -> str:
    """Write a difference of two shares in percentage points."""
    return f"{value * 100:.1f} pp"


def _width(row: pd.Series) -> str:
    """Write a half-width as a share of the mean."""
    if math.isinf(row["half_width"]) or row["mean"] == 0:
        return "-"
    return f"{row['half_width'] / abs(row['mean']):.1%}"


def _show_comparison(story: Scenario, other: list[str], done: Comparison) -> None:
    console = _console()
    runs = int(done.summary["runs"].max()) if len(done.summary) else 0
    title = f"{story.name}, and with {', '.join(other)}: {runs:,} seeds"
    table = _table(title, "measure", "as it is", "changed", "difference", "interval", "changed is")
    for name, row in done.summary.iterrows():
        show = _shows(str(name))
        apart = _points if MEASURES[str(name)].unit == "share" else show
        cells = show(row["first"]), show(row["second"]), _signed(row["difference"], apart), _interval(row, apart)
        colour, word = VERDICTS_SHOWN[row["verdict"]]
        table.add_row(MEASURES[str(name)].label, *cells, f"[{colour}]{word}[/]")
    console.print(table)
    console.print(
        f"Intervals of the difference hold all together with 95 % confidence (Bonferroni); where they include 0, no "
        f"difference is shown at this many seeds. {_without_pairs(done.summary)}",
        style="dim",
    )


def _without_pairs(summary: pd.DataFrame) -> str:
    """Tell what the common random numbers were good for."""
    ratios = summary["variance_ratio"].replace(math.inf, math.nan).dropna()
    if ratios.empty:
        return ""
    return f"With seeds of their own, both would have taken {ratios.min():.1f} to {ratios.max():.1f} times as many."


def _show_sweep(story: Scenario, frame: pd.DataFrame, paths: list[str], out: Path) -> None:
    console = _console()
    shown = ["availability", "goodput_per_second", "p95", "retry_amplification", "cost"]
    shown = [name for name in shown if _worth_showing(name, frame[name].mean())]
    total = frame["point"].nunique()
    table = _table(f"{story.name}: {total:,} points, means", *_headed(paths), *(MEASURES[name].label for name in shown))
    for _, rows in list(frame.groupby("point"))[:SWEPT_MAX]:
        values = [f"{value:g}" if isinstance(value, float) else str(value) for value in rows[paths].iloc[0]]
        table.add_row(*values, *(MEASURES[name].show(rows[name].mean()) for name in shown))
    console.print(table)
    rest = f"; {total - SWEPT_MAX:,} more points are not shown" if total > SWEPT_MAX else ""
    console.print(f"{len(frame):,} runs in {out}{rest}", markup=False)


def _show_front(story: Scenario, frame: pd.DataFrame, search: Search) -> None:
    console = _console()
    tried, paths = frame[frame["trial"] != AS_IT_IS], [each.path for each in search.varied]
    title = f"{story.name}: {len(tried):,} points, {int(tried['feasible'].sum()):,} of them keep what must hold"
    table = _table(title, "trial", *(MEASURES[name].label for name in search.judged), *_headed(paths))
    found = tried[tried["front"]]
    ascending = [MEASURES[name].better == "lower" for name in search.objectives]
    best = found.sort_values(by=list(search.objectives), ascending=ascending)
    for _, row in pd.concat([frame[frame["trial"] == AS_IT_IS], best]).iterrows():
        values = [_with_width(row, name) for name in search.judged]
        today = row["trial"] == AS_IT_IS
        label = "as it is" + ("" if row["feasible"] else ", infeasible") if today else str(row["trial"])
        table.add_row(label, *values, *row[paths], style="dim" if today else "")
    console.print(table)
    if best.empty:
        console.print("No point that was tried keeps all constraints: loosen one, or widen what is varied.")
    for _, row in best.head(PASTED_MAX).iterrows():
        point: Point = {path: row[path] for path in paths}
        console.print(f"\nTrial {row['trial']}, for a scenario:", style="bold")
        console.print(settings_yaml(point), markup=False)
        if toml := settings_toml(point):
            console.print("and for orchestra.toml:", style="bold")
            console.print(toml, markup=False)


def _with_width(row: pd.Series, name: str) -> str:
    show, width = _shows(name), row[f"{name}_half_width"]
    if math.isnan(width) or math.isinf(width) or width == 0:
        return show(row[name])
    return f"{show(row[name])} +-{_points(width) if MEASURES[name].unit == 'share' else show(width)}"
