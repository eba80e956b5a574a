"""A calibrated twin: a scenario whose provider and arrivals are as records have them, and how near it comes to them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from msgspec import structs

from sim.calibrate import Calibration, CannotFit
from sim.journal import Journal
from sim.measures import percentile
from sim.records import Call, read_calls
from sim.scenario import Scenario, replaying
from sim.workload import OpenLoop, Recording, Replay, populations

SHARES = (0.5, 0.9, 0.95, 0.99)


def traced(story: Scenario, trace: Path, lasts_s: float) -> Scenario:
    """Return `story` with the arrivals that the first part of a trace has; as it is where there is no such file.

    Parameters
    ----------
    story : Scenario
    trace : Path
        In the format of the Azure LLM inference traces (`sim.traces`).
    lasts_s : float
        How much of it, in seconds.

    Raises
    ------
    sim.traces.TraceBroken, sim.forms.Unreadable
    """
    if not trace.is_file():
        return story
    return replaying(Recording(file=trace.name, lasts=lasts_s).read(trace.parent), story)


def recorded(journal: Journal) -> tuple[Call, ...]:
    """Return the calls of a run as its records have them, as any file of records is read (`sim.records`)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calls.jsonl"
        journal.write(path)
        return read_calls(path)


def twin(story: Scenario, found: Calibration) -> Scenario:
    """Return `story` with the provider and the tokens of a calibration, and Poisson arrivals at its rate.

    A workload that replays a trace stays as it is, since nothing is nearer to what arrived.

    Raises
    ------
    CannotFit
        When the calls came was not recorded.
    """
    world = structs.replace(story.world, provider=found.model)
    if isinstance(story.workload, Replay):
        return structs.replace(story, name=f"{story.name}, twin", world=world)
    if found.rate is None:
        raise CannotFit("when the calls came was not recorded: give their `at`")
    tokens = {"context_tokens": found.context_tokens, "generated_tokens": found.generated_tokens}
    draws = {name: each.chosen.distribution for name, each in tokens.items()}
    clients = populations(story.workload)[0][1]
    base = clients if isinstance(clients, OpenLoop) else OpenLoop(rate=found.rate)
    workload = structs.replace(base, rate=found.rate, arrivals=None, **draws)
    return structs.replace(story, name=f"{story.name}, twin", world=world, workload=workload)


def percentiles(sources: Mapping[str, Sequence[Call]]) -> pd.DataFrame:
    """Return the percentiles of the answered calls of several sources, side by side.

    Returns
    -------
    DataFrame
        One row a quantity (``first token``, ``whole answer``; seconds) and percentile, one column a source; and
        ``apart``, by how much the last source differs from the first, as a share of the first.
    """
    rows = {}
    for name, field in (("first token", "first_token_seconds"), ("whole answer", "seconds")):
        for share in SHARES:
            rows[f"{name} p{share * 100:g}"] = {
                label: percentile([getattr(call, field) for call in calls if not call.failed], share)
                for label, calls in sources.items()
            }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    return frame.assign(apart=frame.iloc[:, -1] / frame.iloc[:, 0] - 1)
