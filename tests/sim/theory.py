"""`make fidelity`: queues that theory has solved, lived through by the very provider model that scenarios use.

Independent people (a Poisson process) call the modelled provider directly; nothing of the orchestra is in between. What
is measured comes from the events that a journal gets. Printed, it is docs/fidelity.md.
"""

import asyncio
import math
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from msgspec import structs

from orchestra.errors import ProviderFailed
from orchestra.model import Message, Prompt
from sim import statistics
from sim.distributions import Constant, Distribution, Exponential, Lognormal
from sim.entropy import Streams
from sim.injection import Faults
from sim.journal import ProviderCallEnded, ProviderCallStarted, WorldEvent
from sim.loop import SimEnvironment, run
from sim.provider import ModelledProvider, ProviderModel, Tokens
from sim.statistics import Estimate

SEED = 20_251_124
"""Chosen before the first run, and never changed: a seed that is picked for its results proves nothing."""

PROMPT = Prompt((Message("user", "a question"),))
TOKENS_WRITTEN = 20
AT_ONCE = Constant(0.0)


class Length(NamedTuple):
    """How long an experiment is: independent replications, and calls in each, of which the first are left out."""

    replications: int
    warm_up: int
    calls: int


FULL = Length(20, 500, 5_000)
SAMPLE = Length(10, 200, 1_000)


class Call(NamedTuple):
    """One call, as the journal has it: how many it found waiting, and how it fared."""

    found_waiting: int
    waited_s: float
    stayed_s: float
    refused: bool


def _share(test: Callable[[Call], bool]) -> Callable[[list[Call]], float]:
    return lambda calls: sum(map(test, calls)) / len(calls)


def _mean(value: Callable[[Call], float]) -> Callable[[list[Call]], float]:
    return lambda calls: sum(map(value, calls)) / len(calls)


MEAN_WAIT = _mean(lambda call: call.waited_s)
MEAN_STAY = _mean(lambda call: call.stayed_s)
MEAN_QUEUE = _mean(lambda call: call.found_waiting)  # arrivals of a Poisson process see time averages (Wolff, 1982)
WAITING = _share(lambda call: call.waited_s > 0)
BLOCKED = _share(lambda call: call.refused)


class Check(NamedTuple):
    """One number that theory knows: what it is, its true value, and how it is measured in a replication."""

    what: str
    truth: float
    of: Callable[[list[Call]], float]


class Queue(NamedTuple):
    """A queue in Kendall's notation: calls a second, the provider's model, and what is known of it."""

    name: str
    source: str
    rate: float
    model: ProviderModel
    checks: tuple[Check, ...]


def erlang_b(servers: int, load: float) -> float:
    """Return the share of calls that a system without a queue loses, by its recursion."""
    blocked = 1.0
    for number in range(1, servers + 1):
        blocked = load * blocked / (number + load * blocked)
    return blocked


def erlang_c(servers: int, load: float) -> float:
    """Return the probability of waiting in a system with an endless queue."""
    blocked = erlang_b(servers, load)
    return servers * blocked / (servers - load * (1 - blocked))


def pollaczek_khinchine(rate: float, mean_s: float, variance: float) -> float:
    """Return the mean wait for a single server."""
    return rate * (mean_s**2 + variance) / (2 * (1 - rate * mean_s))


def provider(first: Distribution, servers: int = 1, per_token: Distribution = AT_ONCE, **more: object) -> ProviderModel:
    """Return the model of a provider whose calls take `first`, and then `per_token` for all but one of 20 tokens."""
    parts = {"first_token": first, "per_prompt_token": AT_ONCE, "per_token": per_token, "capacity": servers}
    return ProviderModel(**parts, **more)  # type: ignore[arg-type]


def queues() -> tuple[Queue, ...]:
    """Return every queue that is checked; all calls take a second in the mean."""
    memoryless, written = Exponential(1.0), Lognormal(0.028, 0.055)
    first_s, rest_s = Exponential(1.0 - written.mean * (TOKENS_WRITTEN - 1)), written.mean * (TOKENS_WRITTEN - 1)
    rest_variance = rest_s**2 * (math.exp(written.sigma**2) - 1)
    general = pollaczek_khinchine(0.6, 1.0, first_s.mean**2 + rest_variance)
    return (
        Queue(
            "M/M/1, load 0.6",
            "Erlang 1909",
            0.6,
            provider(memoryless),
            (
                Check("mean wait, s", 0.6 / 0.4, MEAN_WAIT),
                Check("mean number waiting", 0.36 / 0.4, MEAN_QUEUE),
                Check("mean stay, s", 1 / 0.4, MEAN_STAY),
                Check("probability of waiting", 0.6, WAITING),
            ),
        ),
        Queue(
            "M/M/4, load 0.7 each",
            "Erlang C",
            2.8,
            provider(memoryless, 4),
            (
                Check("probability of waiting", erlang_c(4, 2.8), WAITING),
                Check("mean wait, s", erlang_c(4, 2.8) / (4 - 2.8), MEAN_WAIT),
                Check("mean number waiting", erlang_c(4, 2.8) * 2.8 / (4 - 2.8), MEAN_QUEUE),
            ),
        ),
        Queue(
            "M/M/5/5, load 0.8 each",
            "Erlang B",
            4.0,
            provider(memoryless, 5, queue_max=0),
            (Check("probability of blocking", erlang_b(5, 4.0), BLOCKED),),
        ),
        Queue(
            "M/D/1, load 0.6",
            "Pollaczek-Khinchine",
            0.6,
            provider(Constant(1.0)),
            (
                Check("mean wait, s", pollaczek_khinchine(0.6, 1.0, 0.0), MEAN_WAIT),
                Check("mean number waiting", 0.6 * pollaczek_khinchine(0.6, 1.0, 0.0), MEAN_QUEUE),
            ),
        ),
        Queue(
            "M/G/1, load 0.6: exponential to the first token, lognormal for 19 more",
            "Pollaczek-Khinchine",
            0.6,
            provider(first_s, per_token=written),
            (
                Check("mean wait, s", general, MEAN_WAIT),
                Check("mean number waiting", 0.6 * general, MEAN_QUEUE),
            ),
        ),
        Queue(
            "M/M/1 with processor sharing, load 0.6: a batch of 300, 300 times slower than alone",
            "Kleinrock 1967",
            0.6,
            provider(memoryless, 300, batch_slowdown=300.0),
            (Check("mean stay, s", 1 / 0.4, MEAN_STAY),),
        ),
        Queue(
            "M/G/1 with processor sharing, load 0.6: the same calls as above",
            "insensitivity: Sakata et al. 1969",
            0.6,
            provider(first_s, 300, per_token=written, batch_slowdown=300.0),
            (Check("mean stay, s", 1 / 0.4, MEAN_STAY),),
        ),
    )


def replication(queue: Queue, length: Length, streams: Streams) -> list[Call]:
    """Live through one replication, from an empty provider on, and return its calls without the warm-up."""
    env = SimEnvironment()
    told: list[WorldEvent] = []
    chance = streams.stream("arrivals")
    modelled = ModelledProvider(
        env,
        queue.model,
        streams.stream("provider"),
        Faults(),
        cost=lambda prompt: Tokens(1, TOKENS_WRITTEN),
        record=told.append,
    )

    async def call() -> None:
        try:
            async for _ in modelled.complete(PROMPT):
                pass
        except ProviderFailed:
            pass

    async def main() -> None:
        async with asyncio.TaskGroup() as calls:
            for _ in range(length.warm_up + length.calls):
                await asyncio.sleep(chance.expovariate(queue.rate))
                calls.create_task(call())

    run(main(), env=env)
    found = {each.call: each.queued for each in told if isinstance(each, ProviderCallStarted)}
    return [
        Call(found[each.call], each.queued_seconds, each.seconds, each.outcome == "refused")
        for each in told
        if isinstance(each, ProviderCallEnded) and each.call > length.warm_up
    ]


class Finding(NamedTuple):
    """What one check came to: one value a replication."""

    queue: Queue
    check: Check
    values: tuple[float, ...]

    def estimate(self, confidence: float = 0.95) -> Estimate:
        """Return the mean over the replications, with its interval."""
        return statistics.mean(self.values, confidence)

    def covers(self, confidence: float = 0.95) -> bool:
        """Tell whether the interval has the truth in it."""
        estimate = self.estimate(confidence)
        return estimate.low <= self.check.truth <= estimate.high


def findings(queue: Queue, length: Length, seed: int = SEED) -> list[Finding]:
    """Put one queue through all its replications."""
    streams = Streams(seed).fork(queue.name)
    lived = [replication(queue, length, streams.fork(f"{number}")) for number in range(length.replications)]
    return [Finding(queue, check, tuple(check.of(calls) for calls in lived)) for check in queue.checks]


def jointly(count: int, confidence: float = 0.95) -> float:
    """Return the confidence of each of `count` intervals with which all together are right so often (Bonferroni)."""
    return 1 - (1 - confidence) / count


COVERAGE = Length(10, 20, 100)
COVERAGE_EXPERIMENTS = 200
SLOWER = 1.05

PREAMBLE = f"""# The models against theory

Written by `make fidelity`, which runs `tests/sim/theory.py`. `make nightly` fails where the simulator finds anything
else, and `make test` takes a sample.

Poisson arrivals call the provider model of the scenarios directly. Each row is {FULL.replications} independent
replications of {FULL.calls:,} calls from fixed seeds, after {FULL.warm_up:,} calls of warm-up each, with Student's t
interval over the replications. Rows of one queue are measured on the same calls, so they hit and miss together.

Of intervals at 95 %, one in twenty misses the truth by chance, so of these rows one or two may; such a row is marked as
within *jointly*. What is asked of all is that every truth lies in its interval at the joint level of 95 % (Bonferroni),
that of {COVERAGE_EXPERIMENTS} small experiments as many intervals hold the truth as 95 % promises, and that every row
notices a model whose calls take {SLOWER - 1:.0%} longer than they should.

| queue | theory's | measure | theory | simulated | 95 % interval | truth within |
|---|---|---|---|---|---|---|
"""


def everything(length: Length) -> list[Finding]:
    """Put every queue through all its replications."""
    return [finding for queue in queues() for finding in findings(queue, length)]


def slower(queue: Queue, factor: float = SLOWER) -> Queue:
    """Return `queue` with a wrong model, whose calls take `factor` times longer, and the truths of the right one."""
    model = queue.model
    first, rest = _longer(model.first_token, factor), _longer(model.per_token, factor)
    return queue._replace(model=structs.replace(model, first_token=first, per_token=rest))


def _longer(spread: Distribution, factor: float) -> Distribution:
    scaled = {field.name: getattr(spread, field.name) * factor for field in structs.fields(spread)}
    return type(spread)(**scaled)


def page(found: list[Finding]) -> str:
    """Return docs/fidelity.md."""
    return PREAMBLE + "".join(f"| {' | '.join(_cells(finding, jointly(len(found))))} |\n" for finding in found)


def _cells(finding: Finding, level: float) -> Iterator[str]:
    queue, check, estimate = finding.queue, finding.check, finding.estimate()
    yield from (queue.name, queue.source, check.what, f"{check.truth:.4f}", f"{estimate.value:.4f}")
    yield f"{estimate.low:.4f} to {estimate.high:.4f}"
    yield "yes" if finding.covers() else "*jointly*" if finding.covers(level) else "**no**"


if __name__ == "__main__":
    sys.stdout.write(page(everything(FULL)))
