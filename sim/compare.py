"""What if: the same scenario with other settings, and several runs side by side.

Runs of one seed have the same arrivals and the same luck (common random numbers), so what differs between them is what
was changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd
from msgspec import structs

from sim.expectations import ALL_FAULTS, MEASURES, Evidence
from sim.scenario import Plain, Scenario
from sim.world import Run


def what_if(scenario: Scenario, **settings: Plain) -> Scenario:
    """Return `scenario` with other settings of the orchestra.

    Parameters
    ----------
    scenario : Scenario
    **settings : str, int, float or bool
        As in `orchestra config`, such as ``breaker_open_seconds=30``.
    """
    return structs.replace(scenario, settings={**scenario.settings, **settings})


def side_by_side(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Return one row a run, by its label.

    Parameters
    ----------
    runs : mapping of str to Run

    Returns
    -------
    DataFrame
        ``verdict``; ``success`` (share of all turns answered); ``failed`` and ``shed`` (turns); ``p95`` (seconds,
        answered turns); ``openings`` (of any breaker); ``closed_after`` (seconds from the end of the last fault until
        every breaker was closed for good; NaN where one was not).
    """
    return pd.DataFrame.from_dict({label: _summary(run) for label, run in runs.items()}, orient="index")


def _summary(run: Run) -> dict[str, str | int | float]:
    evidence = Evidence(run.journal)
    turns = evidence.sent
    return {
        "verdict": run.verdict.status.name,
        "success": round(MEASURES["success_rate"].of(turns), 4),
        "failed": run.verdict.accounting.failed,
        "shed": run.verdict.accounting.shed,
        "p95": round(MEASURES["p95"].of(turns), 2),
        "openings": sum(change.after == "OPEN" for change in evidence.changes),
        "closed_after": round(_closed_after(evidence), 1),
    }


def _closed_after(evidence: Evidence) -> float:
    window = evidence.window("after", ALL_FAULTS)
    last = {change.breaker: change for change in evidence.changes}
    if window is None or any(change.after != "CLOSED" for change in last.values()):
        return math.nan
    return max([0.0, *(change.at - window.start for change in last.values())])
