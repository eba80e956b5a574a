"""Makes a failing run small: the fewest faults, the shortest, and the fewest deviations from FIFO that still fail.

Every candidate is lived through, and kept if it fails as the original did: by the same expectation, the same status or
the same error. First the order, whether it matters at all; then what the story can do without (expectations, faults,
time), scheduled by its seed; then the fewest choices of the schedule, and of timers whose ties are drawn. All of it is
deterministic, and bounded by a number of runs.

References
----------
Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input", IEEE TSE 28(2), 2002 (ddmin).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from msgspec import Struct, structs

from sim.clients import DoorName
from sim.expectations import Expectation
from sim.faults import Fault, kind_of
from sim.isolation import Leak
from sim.quantities import show_duration
from sim.scenario import Scenario, entering
from sim.schedule import Mode
from sim.tape import Plan, Recording, Tape
from sim.verdict import Status
from sim.world import rehearse

RUNS_MAX = 200
FAULT_S_MIN = 0.1
DURATION_S_MIN = 1.0
TIMERS_MAX = 1 << 40
FIFO = Plan(ties_first=1, ties_last=0)

T = TypeVar("T")


class Failure(Struct, frozen=True):
    """How a run failed.

    Parameters
    ----------
    kind : str
        The verdict's status, or the kind of error that ended it.
    what : str
        The first expectation that did not hold, or the error's first line.
    broken : tuple of Expectation
        All that did not hold.
    """

    kind: str
    what: str = ""
    broken: tuple[Expectation, ...] = ()

    def again(self, other: Failure | None) -> bool:
        """Tell whether `other` is this failure again: the same kind, by the same first expectation, if any broke."""
        return other is not None and other.kind == self.kind and (not self.broken or self.broken[0] in other.broken)


class NotFailing(Exception):
    """There is nothing to shrink: the run passes."""


class Shrunk(Struct, frozen=True):
    """What is left of a failing run.

    Parameters
    ----------
    scenario, tape
        What still fails; the tape has the seed, door and mode.
    failure : Failure
    removed : tuple of str
        What it does not take, in words.
    runs : int
        How many candidates were lived through.
    exhausted : bool
        Whether the bound on runs ended it: it might become smaller.
    """

    scenario: Scenario
    tape: Tape
    failure: Failure
    removed: tuple[str, ...]
    runs: int
    exhausted: bool


def shrink(
    scenario: Scenario,
    *,
    seed: int = 0,
    door: DoorName | None = None,
    mode: Mode = "faithful",
    runs_max: int = RUNS_MAX,
) -> Shrunk:
    """Return the smallest failing run that at most `runs_max` runs find.

    Raises
    ------
    NotFailing
        The run passes as it is.
    """
    if door is not None and door != scenario.door:
        scenario = entering(scenario, door)
    smallest = _Smallest(scenario, seed, mode, runs_max)
    before = smallest.tape
    exhausted = False
    try:
        smallest.shrink()
    except _Enough:
        exhausted = True
    removed = (*_left_out(scenario, smallest.scenario), *_ordered(before.plan, smallest.tape.plan))
    return Shrunk(smallest.scenario, smallest.tape, smallest.failure, removed, smallest.runs, exhausted)


def ddmin(whole: tuple[T, ...], fails: Callable[[tuple[T, ...]], bool]) -> tuple[T, ...]:
    """Return a part of `whole`, in its order, that still fails and of which no single one can be left out."""
    if whole and fails(()):
        return ()
    parts = 2
    while len(whole) > 1:
        size = -(-len(whole) // parts)
        cuts = [(start, start + size) for start in range(0, len(whole), size)]
        candidates = [whole[start:end] for start, end in cuts] if parts == 2 else []
        candidates += [whole[:start] + whole[end:] for start, end in cuts] if parts > 2 else []
        found = next((candidate for candidate in candidates if fails(candidate)), None)
        if found is not None:
            whole, parts = found, max(parts - 1, 2)
        elif size == 1:
            break
        else:
            parts = min(parts * 2, len(whole))
    return whole


class _Enough(Exception):
    """The bound on runs is reached."""


class _Smallest:
    """The smallest failing run so far."""

    def __init__(self, scenario: Scenario, seed: int, mode: Mode, runs_max: int) -> None:
        self.scenario = scenario
        self.mode = mode
        self.plan: Plan | None = None  # None: scheduled by its seed
        self.runs = 0
        self._seed = seed
        self._runs_max = runs_max
        failure, self.tape = self._live(scenario, mode, None)
        if failure is None:
            raise NotFailing(f"{scenario.name} passes with seed {seed}, {mode}: there is nothing to shrink")
        self.failure = failure

    def _live(self, scenario: Scenario, mode: Mode, plan: Plan | None) -> tuple[Failure | None, Tape]:
        if self.runs >= self._runs_max:
            raise _Enough
        self.runs += 1
        recording = Recording(plan)
        try:
            run = rehearse(scenario, seed=self._seed, mode=mode, tape=recording)
        except (Exception, Leak) as error:  # whatever ends a run is a failure of it
            return Failure(type(error).__name__, str(error).partition("\n")[0]), recording.tape
        verdict = run.verdict
        if verdict.status is Status.PASSED:
            return None, recording.tape
        unhealthy = verdict.status is Status.BASELINE_UNHEALTHY
        results = [each for each in verdict.results if not each.held and each.baseline >= unhealthy]
        broken = tuple(scenario.expectations[each.index] for each in results)
        return Failure(verdict.status.name, results[0].text if results else "", broken), recording.tape

    def _fails(self, scenario: Scenario | None = None, plan: Plan | None = None) -> bool:
        """Try a candidate, another scenario or another plan; keep it if it fails again."""
        scenario = scenario or self.scenario
        plan = plan or self.plan
        if any(scenario.problems()):
            return False
        mode = "faithful" if plan is not None and plan.is_fifo else self.mode
        failure, tape = self._live(scenario, mode, plan)
        if not self.failure.again(failure):
            return False
        self.scenario, self.plan, self.tape, self.mode = scenario, plan, tape, mode
        return True

    def _without(self, **parts: object) -> bool:
        return self._fails(structs.replace(self.scenario, **parts))

    def shrink(self) -> None:
        """Leave out what can be left out."""
        in_order = self._fails(plan=FIFO)
        if len(self.scenario.expectations) > 1:
            self._without(expectations=self.failure.broken[:1])
        ddmin(self.scenario.faults, lambda kept: self._without(faults=kept))
        for index in range(len(self.scenario.faults)):
            self._shorten(index)
        while self.scenario.duration / 2 >= DURATION_S_MIN and self._without(duration=self.scenario.duration / 2):
            pass
        if not in_order and not self._fails(plan=FIFO):
            self._order(self.tape.plan.choices)

    def _shorten(self, index: int) -> None:
        while self.scenario.faults[index].lasts / 2 >= FAULT_S_MIN:
            faults: list[Fault] = list(self.scenario.faults)
            faults[index] = structs.replace(faults[index], lasts=faults[index].lasts / 2)
            if not self._without(faults=tuple(faults)):
                return

    def _order(self, choices: tuple[tuple[int, int], ...]) -> None:
        """Find the fewest choices, then the fewest ties; cutting the end off changes nothing before it."""
        end = _least(0, len(choices), lambda count: self._fails(plan=Plan(choices[:count])))
        choices = ddmin(choices[:end], lambda kept: self._fails(plan=Plan(kept)))
        if self._fails(plan=Plan(choices, 1, 0)):
            return
        last = _least(1, TIMERS_MAX, lambda number: self._fails(plan=Plan(choices, 1, number)))
        _least(0, last - 1, lambda back: self._fails(plan=Plan(choices, last - back, last)))


def _least(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """Return the least number for which `holds`, where it does from there on to `high`."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return high


def _left_out(before: Scenario, after: Scenario) -> Iterator[str]:
    if gone := len(before.expectations) - len(after.expectations):
        yield f"{gone} expectations"
    left = list(after.faults)
    for fault in before.faults:
        same = next((each for each in left if structs.replace(each, lasts=fault.lasts) == fault), None)
        where = f"fault {kind_of(fault)} at {show_duration(fault.at)} ({fault.what})"
        if same is None:
            yield where
            continue
        left.remove(same)
        if same.lasts < fault.lasts:
            yield f"{where}: from {show_duration(fault.lasts)} to {show_duration(same.lasts)}"
    if after.duration < before.duration:
        yield f"time: from {show_duration(before.duration)} to {show_duration(after.duration)}"


def _ordered(before: Plan, after: Plan) -> Iterator[str]:
    if before.choices:
        yield f"{len(before.choices) - len(after.choices):,} of {len(before.choices):,} deviations from FIFO"
    if after.ties_last == 0:
        yield "all draws of ties of timers"
    elif after.ties_last is not None:
        yield f"draws of ties of timers, but for numbers {after.ties_first:,} to {after.ties_last:,}"
