"""What a run proved: one word, one exit code, and how each expectation came out."""

from __future__ import annotations

import enum

from msgspec import Struct

from sim.expectations import Expectation, Result, judge
from sim.journal import ClientArrived, ClientFinished, FaultEnded, FaultStarted, Journal, RunFinished


class Status(enum.Enum):
    """How a run ended; the value is the process's exit code."""

    PASSED = 0
    FAILED = 1
    INVALID = 2
    BASELINE_UNHEALTHY = 3
    INCONCLUSIVE = 4
    CLEANUP_FAILED = 5
    ABORTED = 6


MEANINGS = {
    Status.PASSED: "every expectation held",
    Status.FAILED: "an expectation failed",
    Status.INVALID: "the scenario is invalid",
    Status.BASELINE_UNHEALTHY: "the baseline was unhealthy before any fault, so the run proves nothing about them",
    Status.INCONCLUSIVE: "a fault touched no operation, so the run proves nothing about it",
    Status.CLEANUP_FAILED: "something was left behind when the run was over",
    Status.ABORTED: "the run was aborted",
}


class FaultCount(Struct, frozen=True):
    """How many operations one fault changed."""

    fault: int
    kind: str
    what: str
    touched: int


class Accounting(Struct, frozen=True):
    """Where every arrival went."""

    arrivals: int
    answered: int
    failed: int
    shed: int

    @property
    def adds_up(self) -> bool:
        """Whether every arrival is accounted for."""
        return self.answered + self.failed + self.shed == self.arrivals


class Verdict(Struct, frozen=True):
    """The judgement of one run.

    Parameters
    ----------
    status : Status
    results : tuple of Result
        One a bound, in the scenario's order.
    faults : tuple of FaultCount
    accounting : Accounting
    failures : dict of int
        Turns that got no answer, by the kind of error, commonest first.
    left_behind : tuple of str
        What clean-up should have removed.
    """

    status: Status
    results: tuple[Result, ...]
    faults: tuple[FaultCount, ...]
    accounting: Accounting
    failures: dict[str, int]
    left_behind: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether everything held."""
        return self.status is Status.PASSED

    @property
    def exit_code(self) -> int:
        """What the process returns."""
        return self.status.value

    @property
    def meaning(self) -> str:
        """The status in words."""
        return MEANINGS[self.status]


def reach(expectations: tuple[Expectation, ...], journal: Journal, left_behind: tuple[str, ...] = ()) -> Verdict:
    """Judge a journal. One that was cut off is that of an aborted run."""
    results = judge(expectations, journal)
    faults = _fault_counts(journal)
    aborted = not any(isinstance(entry, RunFinished) for entry in journal)
    return Verdict(
        status=_status(results, faults, left_behind, aborted),
        results=results,
        faults=faults,
        accounting=_accounting(journal),
        failures=_failures(journal),
        left_behind=left_behind,
    )


def _status(
    results: tuple[Result, ...], faults: tuple[FaultCount, ...], left_behind: tuple[str, ...], aborted: bool
) -> Status:
    """Weigh from what makes the rest meaningless to what it means."""
    if aborted:
        return Status.ABORTED
    if any(result.baseline and not result.held for result in results):
        return Status.BASELINE_UNHEALTHY
    if any(fault.touched == 0 for fault in faults):
        return Status.INCONCLUSIVE
    if any(not result.held for result in results):
        return Status.FAILED
    return Status.CLEANUP_FAILED if left_behind else Status.PASSED


def _fault_counts(journal: Journal) -> tuple[FaultCount, ...]:
    started = {entry.fault: entry for entry in journal if isinstance(entry, FaultStarted)}
    touched = {entry.fault: entry.touched for entry in journal if isinstance(entry, FaultEnded)}
    return tuple(
        FaultCount(number, entry.kind, entry.what, touched.get(number, 0)) for number, entry in sorted(started.items())
    )


def _accounting(journal: Journal) -> Accounting:
    counts = {"answered": 0, "failed": 0, "shed": 0}
    arrivals = 0
    for entry in journal:
        if isinstance(entry, ClientArrived):
            arrivals += 1
        elif isinstance(entry, ClientFinished):
            counts[entry.outcome] += 1
    return Accounting(arrivals, **counts)


def _failures(journal: Journal) -> dict[str, int]:
    counts: dict[str, int] = {}
    for entry in journal:
        if isinstance(entry, ClientFinished) and entry.error:
            counts[entry.error] = counts.get(entry.error, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
