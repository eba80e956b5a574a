"""`orchestra sim replay` and `shrink`: live through a recorded run again, and make a failing one small.

Exit codes of replay: 0 identical, 1 diverged, 2 invalid input; of shrink: 0 shrunk, 1 nothing fails, 2 invalid input.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sim import scenario as scenarios
from sim.cli_words import chosen, fail
from sim.clients import DOORS
from sim.entropy import SEED_MAX
from sim.forms import Unreadable
from sim.isolation import Leak
from sim.loop import Deadlock, Livelock
from sim.scenario import Scenario
from sim.schedule import MODES
from sim.shrink import RUNS_MAX, NotFailing, Shrunk, shrink
from sim.tape import OtherScenario, Recording, Tape, TapeBroken, code
from sim.workload import TraceBroken, read_trace
from sim.world import rehearse

RUNS_ASKED_MAX = 100_000

app = typer.Typer()


@app.command("replay")
def replay_command(
    tape: Annotated[Path, typer.Argument(help="What `orchestra sim run --tape FILE` wrote.")],
    scenario: Annotated[
        Path | None, typer.Argument(help="Its scenario file; the tape has one, unless of a trace.")
    ] = None,
    trace: Annotated[Path | None, typer.Option(help="The recorded arrivals it was run with, if any.")] = None,
) -> None:
    """Live through a recorded run again, and say whether it was the same, or where it first was not."""
    try:
        recorded = Tape.read(tape)
        recording = Recording.replaying(recorded)
        ended = _live(_story(recorded, scenario, trace), recording)
    except OSError as wrong:
        fail(f"{tape} cannot be read ({wrong.strerror}): check the path")
    except (TapeBroken, OtherScenario, Unreadable, TraceBroken) as wrong:
        fail(str(wrong))
    told = recorded.header
    what = f"{told.scenario}: seed {told.seed}, door {told.door}, {told.mode} order; {ended}"
    if recording.identical:
        typer.echo(f"identical: {what}, journal {told.journal[:16]}")
        return
    typer.echo(f"diverged: {what}\n{recording.divergence}")
    if told.code != code():
        typer.echo(f"the code is another: the tape was recorded by {_words(told.code)}, this is {_words(code())}")
    raise typer.Exit(1)


def _live(story: Scenario, recording: Recording) -> str:
    try:
        return rehearse(story, tape=recording).verdict.status.name
    except (Leak, Deadlock, Livelock) as error:
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _story(tape: Tape, scenario: Path | None, trace: Path | None) -> Scenario:
    if scenario is not None:
        story = scenarios.load(scenario)
    elif tape.header.story is not None:
        story = scenarios.parse(tape.header.story)
    elif trace is None:
        fail("the tape is of a scenario with a trace, which it does not hold: name the scenario, or --trace FILE")
    else:
        return scenarios.replaying(read_trace(trace))
    return story if trace is None else scenarios.replaying(read_trace(trace), story)


def _words(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


@app.command("shrink")
def shrink_command(
    scenario: Annotated[Path, typer.Argument(help="Scenario file (YAML) that fails.")],
    out: Annotated[Path, typer.Option(help="Write what is left here; its tape beside it, ending in .tape.")],
    seed: Annotated[int, typer.Option(min=0, max=SEED_MAX, help="The seed it fails with.")] = 0,
    door: Annotated[str | None, typer.Option(help="Where clients come in; as the scenario says.")] = None,
    mode: Annotated[str, typer.Option(help="faithful, adversarial or pct.")] = MODES[0],
    runs: Annotated[int, typer.Option(min=1, max=RUNS_ASKED_MAX, help="How often it may be tried.")] = RUNS_MAX,
) -> None:
    """Find a smaller scenario that still fails: fewer faults, shorter ones, fewer deviations from FIFO."""
    tape = out.with_suffix(".tape")
    _refuse_place(out, tape, scenario)
    try:
        story = scenarios.load(scenario)
        way_in = None if door is None else chosen("door", door, DOORS)
        found = shrink(story, seed=seed, door=way_in, mode=chosen("mode", mode, MODES), runs_max=runs)
        text = scenarios.write(found.scenario)
    except NotFailing as nothing:
        typer.echo(str(nothing))
        raise typer.Exit(1) from None
    except (Unreadable, ValueError) as wrong:
        fail(str(wrong))
    try:
        out.write_text(text, encoding="utf-8")
        found.tape.write(tape)
    except OSError as wrong:
        fail(f"{wrong.filename} cannot be written ({wrong.strerror}): choose another place")
    typer.echo(_told(found, out, tape))


def _refuse_place(out: Path, tape: Path, scenario: Path) -> None:
    """Find out before all the runs, not after them."""
    if out.resolve() == scenario.resolve():
        fail(f"{out} is the scenario itself: write what is left to another place")
    if out == tape:
        fail(f"{out} would be the tape's place: name the scenario otherwise, such as {out.with_suffix('.yaml')}")
    if not out.parent.is_dir():
        fail(f"there is no folder {out.parent}: make it, or choose another place")


def _told(found: Shrunk, out: Path, tape: Path) -> str:
    told = found.tape.header
    lines = [f"{found.failure.kind}: {found.failure.what}, still so without"]
    lines += [f"  {each}" for each in found.removed or ("nothing: all of it is needed",)]
    choices = found.tape.plan.choices
    lines.append(f"what is left: {len(found.scenario.faults)} faults, {len(choices):,} deviations from FIFO")
    if found.exhausted:
        lines.append(f"stopped after {found.runs} runs: --runs allows more, and it might become smaller")
    again = f"orchestra sim run {out} --seed {told.seed} --door {told.door} --mode {told.mode}"
    as_run = not choices and found.tape.plan.ties_last is None  # else only the tape has that order
    lines.append(f"again: {again}" if as_run else f"again: orchestra sim replay {tape}")
    return "\n".join(lines)
