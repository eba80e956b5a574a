"""The breaker against a model that is written differently, on random histories.

The model counts nothing and has no states: it keeps a list of every call and every change there ever was, and works out
from those lists, each time anew, what the breaker's policy says about them. Both get the same history, drawn from
a seed; its times and rates are multiples of powers of two, which floats add up exactly.
"""

import random
import types
from collections import Counter
from collections.abc import Coroutine, Generator
from dataclasses import dataclass, field
from math import inf
from typing import Any

from orchestra.errors import BreakerOpen, ProviderOverloaded
from orchestra.events import BreakerChanged
from orchestra.limits import RETRY_AFTER_SECONDS_MAX
from orchestra.model import Tally
from orchestra.policies import BreakerPolicy
from orchestra.resilience.breaker import Breaker, Permit

HISTORIES = 10_000
STEPS = 32
START = 1000.0
MODES = {"force_open": "forced_open", "disable": "disabled", "observe_only": "observing", "reset": "automatic"}


class Failure(Exception):
    def __init__(self, retry_after_seconds: float | None) -> None:
        self.retry_after_seconds = retry_after_seconds


@dataclass
class Call:
    era: int | None  # how many changes there had been; None where it was let through only because nothing is rejected
    admitted_at: float
    responded_at: float | None = None
    ended_at: float = inf
    outcome: str = "none"
    slow: bool = False


@dataclass
class Change:
    at: float
    before: str
    after: str
    mode: str
    until: float = 0.0  # of an OPEN that is none by order
    ordered: bool = False


@dataclass
class Reference:
    """Everything that ever happened, and what follows from it."""

    policy: BreakerPolicy
    draws: list[float]
    calls: list[Call] = field(default_factory=list)  # in order of admission
    ended: list[Call] = field(default_factory=list)  # in order of their ends
    changes: list[Change] = field(default_factory=list)
    rejected: int = 0
    late: int = 0

    @property
    def now_is(self) -> Change:
        return self.changes[-1] if self.changes else Change(START, "", "CLOSED", "automatic")

    def change(self, at: float, after: str, until: float = 0.0) -> None:
        self.changes.append(Change(at, self.now_is.after, after, self.now_is.mode, until))

    def order(self, at: float, mode: str) -> None:
        after = "OPEN" if mode == "forced_open" else "CLOSED"
        self.changes.append(Change(at, self.now_is.after, after, mode, ordered=True))

    def look(self, now: float) -> str:
        if self.now_is.mode != "forced_open" and self.now_is.after == "OPEN" and now >= self.now_is.until:
            self.change(now, "HALF_OPEN")
        return self.now_is.after

    # --- admission

    def wait(self, now: float) -> float:
        state = self.look(now)
        if self.now_is.mode == "forced_open":
            return self.policy.open_seconds
        if state == "OPEN":
            return self.now_is.until - now
        taken = self.slots(now)
        if state == "HALF_OPEN" and len(taken) >= self.policy.probes_max:
            return min(taken) + self.policy.probe_seconds_max - now
        return 0.0

    def slots(self, now: float) -> list[float]:
        probes = [call for call in self.calls if call.era == len(self.changes) and call.outcome == "none"]
        starts = [call.admitted_at for call in probes]
        return [start for start in starts if now - start < self.policy.probe_seconds_max]

    def admit(self, now: float) -> Call | float:
        """Return the call, or after how many seconds to come again."""
        wait = self.wait(now)
        self.rejected += wait > 0
        if wait > 0 and self.now_is.mode != "observing":
            return wait
        self.calls.append(Call(len(self.changes) if wait <= 0 else None, now))
        return self.calls[-1]

    # --- outcomes

    def respond(self, call: Call, now: float) -> None:
        if call.outcome != "none" or call.responded_at is not None:
            return
        call.responded_at = now
        if self.is_current(call) and self.now_is.after == "HALF_OPEN" and self.is_slow(call, now):
            self.open(now, 0.0)

    def settle(self, call: Call, outcome: str, now: float, retry_after: float | None) -> None:
        if call.outcome != "none":
            return
        call.outcome, call.ended_at, call.slow = outcome, now, self.is_slow(call, now)
        if outcome == "dropped":
            return
        if not self.is_current(call):
            self.late += call.era is not None
            return
        self.ended.append(call)
        asked = min(retry_after or 0.0, RETRY_AFTER_SECONDS_MAX) if outcome == "failure" else 0.0
        if self.now_is.mode == "disabled":
            return
        if self.now_is.after == "CLOSED" and self.trips(now):
            self.open(now, asked)
        elif self.now_is.after == "HALF_OPEN":
            probes = [each for each in self.ended if each.era == len(self.changes)]
            if any(each.outcome == "failure" or each.slow for each in probes):
                self.open(now, asked)
            elif len(probes) >= self.policy.successes_min:
                self.change(now, "CLOSED")

    def is_current(self, call: Call) -> bool:
        return call.era == len(self.changes)

    def is_slow(self, call: Call, now: float) -> bool:
        answered = now if call.responded_at is None else call.responded_at
        return self.policy.slow_seconds is not None and answered - call.admitted_at >= self.policy.slow_seconds

    # --- rates

    def window(self, now: float) -> list[Call]:
        calls = [each for each in self.ended if each.era == len(self.changes)]
        if self.policy.window == "count":
            return calls[-self.policy.window_calls :]
        width, since = self.policy.window_seconds / 10, self.now_is.at
        bucket = (now - since) // width
        return [each for each in calls if (each.ended_at - since) // width > bucket - 10]

    def row(self) -> int:
        calls = [each.outcome for each in self.ended if each.era == len(self.changes)]
        return next((length for length, each in enumerate(reversed(calls)) if each != "failure"), len(calls))

    def trips(self, now: float) -> bool:
        calls = self.window(now)
        failures, slow = sum(each.outcome == "failure" for each in calls), sum(each.slow for each in calls)
        return self.row() >= self.policy.failures_max or self.rates_trip(len(calls), failures, slow)

    def rates_trip(self, calls: int, failures: int, slow: int) -> bool:
        policy = self.policy
        slow_counts = policy.slow_seconds is not None and slow >= policy.slow_rate_max * calls
        return calls >= policy.calls_min and (failures >= policy.failure_rate_max * calls or slow_counts)

    def learn(self, fleet: Tally, now: float) -> None:
        if self.look(now) != "CLOSED" or self.now_is.mode == "disabled":
            return
        trusted = not self.changes or now - self.now_is.at >= self.policy.window_seconds
        if trusted and self.rates_trip(fleet.calls, fleet.failures, fleet.slow):
            self.open(now, 0.0)

    # --- how long OPEN lasts

    def relapses(self, now: float) -> int:
        """Walk through all changes since the last order of an operator, and look at what a change now would find."""
        orders = [place for place, each in enumerate(self.changes) if each.ordered]
        since = self.changes[orders[-1]].at if orders else START
        steps = 0
        for change in [*self.changes[orders[-1] + 1 if orders else 0 :], Change(now, self.now_is.after, "", "")]:
            if change.before == "CLOSED":
                steps = max(0, steps - int((change.at - since) / self.policy.recovery_seconds))
            if change.after == "OPEN" and self.grown(steps) < self.policy.open_seconds_max:
                steps += 1
            since = change.at
        return steps

    def grown(self, steps: int) -> float:
        return min(self.policy.open_seconds * self.policy.open_growth**steps, self.policy.open_seconds_max)

    def open(self, now: float, asked: float) -> None:
        opened = sum(each.until > 0 for each in self.changes)
        jittered = self.grown(self.relapses(now)) * (1 + self.policy.open_jitter * self.draws[opened])
        self.change(now, "OPEN", now + max(asked, min(jittered, self.policy.open_seconds_max)))

    def status(self, now: float) -> dict[str, Any]:
        """Return what `BreakerStatus` should be."""
        state = self.look(now)
        own = [each for each in self.ended if each.era == len(self.changes)]
        closed = self.window(now) if state == "CLOSED" and self.now_is.mode != "disabled" else []
        failures, slow = sum(each.outcome == "failure" for each in closed), sum(each.slow for each in closed)
        return {
            "name": "it",
            "state": state,
            "mode": self.now_is.mode,
            "calls": len(closed),
            "failures": failures,
            "slow": slow,
            "failure_rate": failures / len(closed) if closed else None,
            "slow_rate": slow / len(closed) if closed else None,
            "consecutive_failures": self.row() if state == "CLOSED" and self.now_is.mode != "disabled" else 0,
            "probes": len(self.slots(now)) if state == "HALF_OPEN" else 0,
            "successes": len(own) if state == "HALF_OPEN" else 0,
            "retry_after_seconds": self.wait(now),
            "relapses": self.relapses(now),
            "rejected": self.rejected,
            "late": self.late,
        }


@types.coroutine
def told() -> Generator[None, BaseException | str, BaseException | str]:
    return (yield)


async def work() -> str:
    end = await told()
    if isinstance(end, BaseException):
        raise end
    return end


Running = tuple[Call, Permit | Coroutine[Any, Any, str]]


class History:
    """One history, told to the breaker and to the model step by step."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now = START
        self.draws = [self.chance.randrange(8) / 8 for _ in range(STEPS + 1)]
        self.told: list[BreakerChanged] = []
        self.running: list[Running] = []
        self.seen = Tally()
        self.by_result = self.chance.random() < 0.5
        policy = self.policy()
        self.breaker = Breaker(
            "it",
            policy,
            lambda: self.now,
            self.told.append,
            iter(self.draws).__next__,
            failed_result=(lambda result: bool(result == "failure")) if self.by_result else None,
        )
        self.reference = Reference(policy, self.draws)

    def policy(self) -> BreakerPolicy:
        pick = self.chance.choice
        window_calls = pick([1, 2, 4, 6])
        return BreakerPolicy(
            failures_max=pick([1, 2, 3, 100, 100]),
            failure_rate_max=pick([0.25, 0.5, 0.75, 1.0]),
            slow_rate_max=pick([0.25, 0.5, 1.0]),
            slow_seconds=pick([None, 0.5, 2.0]),
            calls_min=pick([each for each in (1, 2, 3, 5) if each <= window_calls]),
            window=pick(["time", "count"]),
            window_seconds=pick([2.5, 5.0, 20.0]),
            window_calls=window_calls,
            open_seconds=pick([1.0, 1.5, 2.0]),
            open_growth=pick([1.0, 1.5, 2.0]),
            open_seconds_max=pick([2.0, 4.0, 32.0]),
            open_jitter=pick([0.0, 0.25, 1.0]),
            recovery_seconds=pick([1.0, 4.0, 16.0]),
            probes_max=pick([1, 2, 3]),
            successes_min=pick([1, 2, 3]),
            probe_seconds_max=pick([0.5, 1.0, 4.0]),
        )

    def step(self) -> None:
        kinds = ["call"] * 6 + ["end"] * 6 + ["wait"] * 3 + ["respond", "learn", "order"]
        kind = self.chance.choice(kinds)
        if kind in ("end", "respond") and not self.running:
            kind = "call"
        if kind == "order" and self.chance.random() < 0.7:
            kind = "wait"
        getattr(self, kind)()

    def call(self) -> None:
        expected = self.reference.admit(self.now)
        held: Permit | Coroutine[Any, Any, str]
        try:
            if self.chance.random() < 0.5:
                held = self.breaker.acquire()
            else:
                held = self.breaker.call(work)
                held.send(None)
        except BreakerOpen as rejection:
            answer = rejection.retry_after_seconds
        else:
            answer = None
        assert answer == (None if isinstance(expected, Call) else expected)
        if isinstance(expected, Call):
            self.running.append((expected, held))

    def end(self) -> None:
        call, held = self.running.pop(self.chance.randrange(len(self.running)))
        outcome = self.chance.choice(["success", "failure", "failure", "dropped"])
        if not isinstance(held, Permit) and outcome == "failure" and self.by_result and self.chance.random() < 0.5:
            self.reference.settle(call, "failure", self.now, None)
            self.resume(held, "failure")
            return
        asked = self.chance.choice([None, None, None, 0.25, 8.0, 1e9, -1.0])
        failure = Failure(asked)
        error = {"success": None, "failure": failure, "dropped": self.neutral()}[outcome]
        self.reference.settle(call, outcome, self.now, max(asked or 0.0, 0.0))
        if not isinstance(held, Permit):
            self.resume(held, error or "success")
        elif self.chance.random() < 0.5:
            held.settle(error)
        else:
            {"success": held.success, "failure": lambda: held.failure(failure), "dropped": held.drop}[outcome]()
        if isinstance(held, Permit) and self.chance.random() < 0.25:
            self.running.append((call, held))  # to be settled again, which does nothing

    def neutral(self) -> BaseException:
        return self.chance.choice([GeneratorExit(), KeyboardInterrupt(), ProviderOverloaded("429")])

    def resume(self, held: Coroutine[Any, Any, str], end: BaseException | str) -> None:
        try:
            held.send(end)
        except StopIteration as stop:
            came = stop.value
        except BaseException as error:
            came = error
        assert came is end  # whatever the breaker makes of it

    def respond(self) -> None:
        call, held = self.chance.choice(self.running)
        if isinstance(held, Permit):
            self.reference.respond(call, self.now)
            held.responded()

    def wait(self) -> None:
        self.now += self.chance.choice([0.25, 0.25, 0.5, 1.0, 2.0, 7.25])

    def learn(self) -> None:
        calls = self.chance.randrange(6)
        fleet = Tally(calls, self.chance.randint(0, calls), self.chance.randint(0, calls))
        self.reference.learn(fleet, self.now)
        self.breaker.learn(fleet)

    def order(self) -> None:
        order = self.chance.choice([*MODES, "reset", "observe_only"])
        self.reference.order(self.now, MODES[order])
        getattr(self.breaker, order)("a test")

    def compare(self) -> None:
        status = self.breaker.describe()
        expected = self.reference.status(self.now)
        assert {name: getattr(status, name) for name in status.__struct_fields__} == expected
        assert self.breaker.mode == expected["mode"]
        moves = [(each.at, each.before, each.after) for each in self.told]
        assert moves == [(each.at, each.before, each.after) for each in self.reference.changes]
        taken = self.breaker.take_tally()
        self.seen = Tally(
            self.seen.calls + taken.calls, self.seen.failures + taken.failures, self.seen.slow + taken.slow
        )
        ended = self.reference.ended
        failures = sum(each.outcome == "failure" for each in ended)
        assert self.seen == Tally(len(ended), failures, sum(each.slow for each in ended))

    def run(self) -> None:
        for _ in range(STEPS):
            self.step()
            if self.chance.random() < 0.5:  # looking ends an OPEN, so that it must not always be looked at
                self.compare()
        self.compare()
        for _, held in self.running:
            if not isinstance(held, Permit):
                held.close()


def test_breaker_and_model_agree_on_ten_thousand_histories() -> None:
    seen: Counter[str] = Counter()
    agreed = 0
    for seed in range(HISTORIES):
        history = History(seed)
        try:
            history.run()
        except AssertionError as error:
            raise AssertionError(f"they disagree on the history of seed {seed}: {error}") from error
        agreed += 1
        seen.update(f"{each.before} -> {each.after}" for each in history.told)
        seen["rejected"] += history.reference.rejected
        seen["late"] += history.reference.late
        seen["relapse"] += history.reference.relapses(history.now) > 1
        seen["fleet"] += sum("in the whole fleet" in each.reason for each in history.told)
    assert agreed == 10_000
    # an agreement on histories where nothing happens would be none
    for rare in ("CLOSED -> OPEN", "OPEN -> HALF_OPEN", "HALF_OPEN -> OPEN", "HALF_OPEN -> CLOSED", "late", "relapse"):
        assert seen[rare] > 1_000, rare
    assert seen["rejected"] > 10_000
    assert seen["fleet"] > 500
