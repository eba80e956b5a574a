"""What a run proved: one word, one exit code, and how each expectation came out."""

from __future__ import annotations

import enum

from msgspec import Struct

from sim.evidence import Evidence
from sim.expectations import Expectation, Result, judge
from sim.journal import Journal
from sim.littles_law import Balance


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
    balances : tuple of Balance
        Little's law, which every run must keep without being asked to: one that breaks it has failed.
    """

    status: Status
    results: tuple[Result, ...]
    faults: tuple[FaultCount, ...]
    accounting: Accounting
    failures: dict[str, int]
    left_behind: tuple[str, ...] = ()
    balances: tuple[Balance, ...] = ()

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
        if self.status is Status.FAILED and self.unbalanced:
            return f"Little's law is broken, so events are missing or wrong: {self.unbalanced}"
        return MEANINGS[self.status]

    @property
    def unbalanced(self) -> str:
        """Where a whole journal does not add up by Little's law, with the numbers; empty where it does."""
        if self.status is Status.ABORTED:
            return ""
        return "; ".join(balance.text for balance in self.balances if not balance.held)


def reach(
    expectations: tuple[Expectation, ...], source: Journal | Evidence, left_behind: tuple[str, ...] = ()
) -> Verdict:
    """Judge a journal, or what was gathered from one. One that was cut off is that of an aborted run."""
    evidence = source if isinstance(source, Evidence) else Evidence(source)
    results = judge(expectations, evidence)
    faults = _fault_counts(evidence)
    balances = evidence.balances
    kept = all(result.held for result in results) and all(balance.held for balance in balances)
    return Verdict(
        status=_status(results, faults, left_behind, kept, aborted=not evidence.complete),
        results=results,
        faults=faults,
        accounting=Accounting(evidence.arrivals, **evidence.finished),
        failures=dict(sorted(evidence.failures.items(), key=lambda item: (-item[1], item[0]))),
        left_behind=left_behind,
        balances=balances,
    )


def _status(
    results: tuple[Result, ...],
    faults: tuple[FaultCount, ...],
    left_behind: tuple[str, ...],
    kept: bool,
    aborted: bool,
) -> Status:
    """Weigh from what makes the rest meaningless to what it means."""
    if aborted:
        return Status.ABORTED
    if any(result.baseline and not result.held for result in results):
        return Status.BASELINE_UNHEALTHY
    if any(fault.touched == 0 for fault in faults):
        return Status.INCONCLUSIVE
    if not kept:
        return Status.FAILED
    return Status.CLEANUP_FAILED if left_behind else Status.PASSED


def _fault_counts(evidence: Evidence) -> tuple[FaultCount, ...]:
    return tuple(
        FaultCount(number, kind, evidence.whats[number], evidence.touched.get(number, 0))
        for number, (kind, _, _) in sorted(evidence.faults.items())
    )
