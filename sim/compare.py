"""What if: the same scenario with other settings, and several runs side by side.

Runs of one seed have the same arrivals and the same luck (common random numbers), so what differs between them is what
was changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from msgspec import structs

from sim.evidence import ALL_FAULTS, WHOLE_RUN, Evidence
from sim.forms import Plain
from sim.measures import MEASURES
from sim.scenario import Scenario
from sim.world import Run

_NEVER = 1_000_000
"""The most that policies allow, which no run comes to."""


def what_if(scenario: Scenario, **settings: Any) -> Scenario:
    """Return `scenario` with other settings of the orchestra.

    Parameters
    ----------
    scenario : Scenario
    **settings : plain values, lists of words, and mappings of them
        As a scenario's file has them, such as ``guards={"unified": {"breaker": {"open_seconds": 30}}}``; what is not
        named stays as it is.
    """
    return structs.replace(scenario, settings={**scenario.settings, **dict(_by_path(settings))})


def unguarded(scenario: Scenario) -> Scenario:
    """Return `scenario` with an orchestra whose guard of the provider holds nothing back, and retries without a budget.

    Breakers never open, any number of calls may be under way, and every failed call is made again.
    """
    return what_if(
        scenario,
        guards={
            "unified": {
                "fallbacks": [],
                "breaker": {"failures_max": _NEVER, "window": "count", "window_calls": _NEVER, "calls_min": _NEVER},
                "bulkhead": {"concurrent_max": _NEVER, "queue_max": _NEVER, "limit": "fixed"},
                "retry": {"attempts_max": 3, "budget_ratio": 1.0, "budget_min": _NEVER},
            }
        },
    )


def _by_path(tables: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Plain]]:
    for key, value in tables.items():
        if isinstance(value, Mapping):
            yield from _by_path(value, f"{above}{key}.")
        else:
            yield above + key, ",".join(value) if isinstance(value, (list, tuple)) else value


def side_by_side(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Return one row a run, by its label.

    Parameters
    ----------
    runs : mapping of str to Run

    Returns
    -------
    DataFrame
        ``verdict``; ``success`` (share of all turns answered); ``failed`` and ``shed`` (turns); ``p95`` (seconds,
        answered turns); ``amplification`` (attempts of clients, by turns); ``openings`` (of any breaker);
        ``closed_after`` (seconds from the end of the last fault until every breaker was closed for good; NaN where one
        was not).
    """
    return pd.DataFrame.from_dict({label: _summary(run) for label, run in runs.items()}, orient="index")


def _summary(run: Run) -> dict[str, str | int | float]:
    evidence = run.evidence
    window = evidence.window("always", WHOLE_RUN)
    assert window is not None  # a whole run is never missing
    return {
        "verdict": run.verdict.status.name,
        "success": round(MEASURES["success_rate"].of(evidence, window), 4),
        "failed": run.verdict.accounting.failed,
        "shed": run.verdict.accounting.shed,
        "p95": round(MEASURES["p95"].of(evidence, window), 2),
        "amplification": round(MEASURES["retry_amplification"].of(evidence, window), 2),
        "openings": sum(change.after == "OPEN" for change in evidence.changes),
        "closed_after": round(_closed_after(evidence), 1),
    }


def _closed_after(evidence: Evidence) -> float:
    window = evidence.window("after", ALL_FAULTS)
    last = {change.breaker: change for change in evidence.changes}
    if window is None or any(change.after != "CLOSED" for change in last.values()):
        return math.nan
    return max([0.0, *(change.at - window.start for change in last.values())])
