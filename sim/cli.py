"""`orchestra sim`: rehearse a scenario on the real orchestrator in virtual time, and say what it proved.

Exit codes: 0 passed, 1 an expectation failed, 2 invalid input, 3 baseline unhealthy, 4 a fault touched nothing,
5 clean-up failed, 6 aborted.
"""

from __future__ import annotations

import io
import json
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from sim import cli_calibrate, cli_lab, cli_tape, timeline
from sim import scenario as scenarios
from sim.cli_words import chosen, fail
from sim.clients import DOORS, DoorName
from sim.entropy import SEED_MAX
from sim.forms import Unreadable
from sim.isolation import Leak
from sim.journal import Journal, Keep
from sim.loop import Deadlock, Livelock
from sim.quantities import duration, show_duration
from sim.scenario import Scenario
from sim.schedule import MODES
from sim.streaming import DigestJournal, FileJournal, Sample
from sim.tape import Recording
from sim.verdict import Status
from sim.workload import Replay, TraceBroken, read_trace
from sim.world import Aborted, Progress, Run, Watch, rehearse

INTERVALS_MAX = 1_000_000

app = typer.Typer(
    help="Rehearse scenarios on the real orchestrator, in virtual time.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("calibrate")(cli_calibrate.command)
app.add_typer(cli_lab.app)
app.add_typer(cli_tape.app)


@app.command()
def run(
    scenario: Annotated[Path | None, typer.Argument(help="Scenario file (YAML); optional with --trace.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=SEED_MAX, help="Same scenario and seed, same run.")] = 0,
    door: Annotated[
        str | None,
        typer.Option(help="Where clients come in: orchestrator, or service (the whole app), as scenarios say."),
    ] = None,
    mode: Annotated[str, typer.Option(help="Order of ready callbacks: faithful (FIFO), adversarial or pct.")] = MODES[
        0
    ],
    tape: Annotated[Path | None, typer.Option(help="Write the run's choices here, for `replay`.")] = None,
    journal: Annotated[Path | None, typer.Option(help="Write what happened here, as JSON lines, as it goes.")] = None,
    sample: Annotated[
        str | None,
        typer.Option(
            help="Journal levels, breakers and faults, and of turns their counts each so long, such as 10min; the "
            "verdict and the report still see every turn. Needs --journal."
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write a report with plots here, as one HTML file.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Replay recorded arrivals (TIMESTAMP,ContextTokens,GeneratedTokens).")
    ] = None,
) -> None:
    """Run a scenario and print its timeline and verdict."""
    story = _story(scenario, trace)
    way_in, order = story.door if door is None else chosen("door", door, DOORS), chosen("mode", mode, MODES)
    with _interruptible() as watch:
        _refuse_same((scenario, trace), (journal, report, tape))
        for path in (journal, report, tape):
            _refuse_unwritable(path)
        if sample is not None and tape is not None:
            fail("--tape holds the digest of a whole journal: leave --sample out, or --tape")
        recording = Recording() if tape is not None else None
        try:
            kept = _kept(journal, sample, story.duration, reported=report is not None)
            done = rehearse(story, seed=seed, door=way_in, mode=order, tape=recording, watch=watch, journal=kept)
        except Unreadable as wrong:
            fail(str(wrong))
        except OSError as wrong:
            fail(f"{journal} cannot be written any more ({wrong.strerror}): choose another place")
        except (Leak, Deadlock, Livelock) as defect:
            fail(f"the run cannot go on: {defect}", Status.FAILED)
        finally:
            if tape is not None and recording is not None and recording.over:
                recording.tape.write(tape)
    again = _again(scenario, trace, story.door, done)
    if sample is not None:  # the digest is that of the sample
        again = f"{again} {shlex.join(['--journal', str(journal), '--sample', sample])}"
    if report is not None:
        from sim import report as reports  # noqa: PLC0415 - draws with matplotlib, which takes a second to import

        reports.write(done, report, again)
    _show(done, again)
    raise typer.Exit(done.verdict.exit_code)


@app.command()
def shake(
    scenario: Annotated[Path, typer.Argument(help="Scenario file (YAML).")],
    seed: Annotated[int, typer.Option(min=0, max=SEED_MAX, help="Decides what is shaken, and how.")] = 0,
) -> None:
    """Print the scenario with unusual timeouts, windows and pools of the orchestra, to be run as any other."""
    from sim.shaking import shaken  # noqa: PLC0415 - nothing else needs it

    typer.echo(scenarios.write(shaken(_story(scenario, None), seed)))


@app.command()
def schema() -> None:
    """Print the JSON Schema of scenario files, for editors."""
    typer.echo(json.dumps(scenarios.schema(), indent=2))


def _story(path: Path | None, trace: Path | None) -> Scenario:
    try:
        story = scenarios.load(path) if path is not None else None
        if trace is not None:
            return scenarios.replaying(_recorded(trace), story)
    except (Unreadable, TraceBroken) as wrong:
        fail(str(wrong))
    if story is None:
        fail("name a scenario file, or arrivals to replay with --trace FILE")
    return story


def _recorded(path: Path) -> Replay:
    try:
        return read_trace(path)
    except OSError as wrong:
        raise TraceBroken(str(path), f"cannot be read ({wrong.strerror}): check the path") from None


def _kept(path: Path | None, sample: str | None, duration_s: float, *, reported: bool) -> Journal:
    """Return the journal to fill: one that holds no more in memory than somebody will ask for."""
    if sample is not None and path is None:
        fail("--sample says what the journal keeps: name its file, too, with --journal FILE")
    keep: Keep = list
    if sample is not None:
        try:
            interval_s = duration(sample)
        except ValueError as wrong:
            fail(f"--sample: {wrong}")
        if interval_s == 0:
            fail("--sample: 0 is no interval: write how long one is, such as 10min")
        if duration_s / interval_s > INTERVALS_MAX:
            fail(f"--sample: {sample} would be over {INTERVALS_MAX:,} intervals: write a longer one")
        keep = Sample(interval_s)
    if path is not None:
        return FileJournal(path, keep=keep)
    return Journal() if reported else DigestJournal(keep=keep)


def _refuse_same(read: Iterable[Path | None], written: Iterable[Path | None]) -> None:
    """Let no file be written over what is read, or over another one that is written."""
    taken = {path.resolve() for path in read if path is not None}
    for path in written:
        if path is None:
            continue
        if path.resolve() in taken:
            fail(f"{path} is named twice: give each file that is read or written its own place")
        taken.add(path.resolve())


def _refuse_unwritable(path: Path | None) -> None:
    """Find out before the run, not after it."""
    if path is None:
        return
    try:
        with path.open("ab"):
            pass
    except OSError as wrong:
        fail(f"{path} cannot be written ({wrong.strerror}): choose another place")


def _show(done: Run, again: str) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a scenario's words may be beyond what a terminal knows
    console = Console(highlight=False)
    console.width = min(console.width, timeline.COLUMNS_MAX) if console.is_terminal else timeline.COLUMNS_MAX
    with console.capture() as page:
        console.print(timeline.render(done, again, console))
    for line in page.get().splitlines():
        sys.stdout.write(f"{line.rstrip()}\n")  # not by click, which writes UTF-8 to what knows only ASCII


def _again(scenario: Path | None, trace: Path | None, door: DoorName, done: Run) -> str:
    words = ["orchestra", "sim", "run"]
    words += [str(scenario)] if scenario is not None else []
    words += ["--trace", str(trace)] if trace is not None else []
    words += ["--seed", str(done.seed)]
    words += ["--door", done.door] if done.door != door else []
    words += ["--mode", done.mode] if done.mode != MODES[0] else []
    return shlex.join(words)


@contextmanager
def _interruptible() -> Iterator[Watch]:
    """Yield a watch that draws progress on a terminal, and ends the run at the next stop after a signal.

    A signal only leaves a note: raised in the midst of simulated code, `KeyboardInterrupt` would be part of the story.
    Asked twice, it interrupts at once.
    """
    asked: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[counts]}"))
    # no refreshing thread, which a simulated world does not allow, and no times, which would be virtual
    bar = Bar(*columns, console=console, auto_refresh=False, transient=True, disable=not console.is_terminal)
    drawn = bar.add_task("", counts="")

    def watch(progress: Progress) -> None:
        if asked:
            raise Aborted
        if not bar.disable:
            counts = f"{progress.answered:,} answered  {progress.failed:,} failed  {progress.shed:,} shed"
            at = min(progress.virtual_seconds, progress.duration_seconds)
            where = f"{show_duration(round(at)):>9} of {show_duration(progress.duration_seconds)}"
            bar.update(drawn, description=where, completed=at, total=progress.duration_seconds, counts=counts)
            bar.refresh()

    try:
        with bar:
            yield watch
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
