"""Small scenarios that run in a moment, and journals that say just what a test needs."""

from collections.abc import Callable

import pytest

from orchestra.events import BreakerChanged, LevelChanged
from sim.entropy import Streams
from sim.isolation import isolated
from sim.journal import (
    ClientArrived,
    ClientFinished,
    ClientRetried,
    FaultEnded,
    FaultStarted,
    Journal,
    RunFinished,
    RunStarted,
)
from sim.loop import SimEnvironment, run
from sim.network import Network
from sim.scenario import Scenario, parse
from sim.schedule import Fifo

SMALL = """
name: small
duration: 40s
workload: {open_loop: {rate: 4/s, users: 20, turns_per_session: 3, generated_tokens: 50, context_tokens: 100}}
world:
  provider: {capacity: 8, first_token: {exponential: {mean: 100ms}}, per_prompt_token: 0.1ms, per_token: 5ms}
"""


@pytest.fixture
def small() -> Callable[..., Scenario]:
    """Make a scenario of some 160 turns; text that is given is added to its file."""
    return lambda more="": parse(SMALL + more)


@pytest.fixture
def story() -> Callable[..., Journal]:
    """Make a journal of what a test names.

    Turns as (at, outcome, seconds), a fault's span, breaker changes as (at, breaker, state), levels as (at, before,
    after), retries of clients as (at, number of the turn), and any other entries.
    """

    def make(
        turns=(), fault=None, changes=(), levels=(), retries=(), more=(), duration=100.0, finished=True
    ) -> Journal:
        journal = Journal()
        journal.record(RunStarted(0.0, "story", 0, "orchestrator", duration, {}))
        entries = [
            entry
            for number, (at, outcome, seconds) in enumerate(turns, 1)
            for entry in (
                ClientArrived(at, number, f"c{number}", "s", 1, 1),
                ClientFinished(
                    at + seconds, number, f"c{number}", outcome, "" if outcome == "answered" else "x", seconds
                ),
            )
        ]
        entries += [BreakerChanged(at, breaker, "", after, "") for at, breaker, after in changes]
        entries += [LevelChanged(at, before, after, 50.0, "a test says so") for at, before, after in levels]
        entries += [ClientRetried(at, number, f"c{number}", 2, "x", 0.5) for at, number in retries]
        entries += more
        if fault is not None:
            entries += [FaultStarted(fault[0], 0, "store_down", "x"), FaultEnded(fault[1], 0, "store_down", 1)]
        for entry in sorted(entries, key=lambda entry: entry.at):
            journal.record(entry)
        if finished:
            counts = [sum(turn[1] == outcome for turn in turns) for outcome in ("answered", "failed", "shed")]
            journal.record(RunFinished(duration, len(turns), *counts))
        return journal

    return make


@pytest.fixture
def networked() -> Callable[..., object]:
    """Run ``story(network)`` cut off from reality in a world with a network, and return what it returns."""

    def lived(story, *, seed=1, **options):
        streams = Streams(seed)
        env = SimEnvironment(schedule=Fifo(streams.stream("schedule")))
        network = Network(env, streams, **options)
        with isolated(streams, env):
            return run(story(network), env=env)

    return lived
