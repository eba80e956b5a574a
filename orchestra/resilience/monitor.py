"""The health monitor: the async edge that looks at everything each interval, and lets the level follow.

A tick pings the stores, reads breakers and bulkheads, weighs them into health and lets the level observe it; beside
that it exchanges orders with the fleet and, where this is on, what breakers saw. All that waits is bounded, and a
defect in a tick is told and ends nothing but that tick.

In EMERGENCY and MAINTENANCE nothing of the service calls its dependencies any more, so *canaries* do: tiny real calls
through their guards, or recovery could not be seen. They cost money, so that there is a pause after each; and their
guards bound them, for a cut of ours would never reach the breaker. In the other levels the users' calls are the probes.

    contract: `Watched`;  state: `Overview`;  behaviour: `HealthMonitor`
"""

import asyncio
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from msgspec import Struct, structs

from orchestra.errors import OrchestraError, StoreUnavailable, kind_of
from orchestra.events import Hook, StoreFinished, UnexpectedError
from orchestra.model import Tally
from orchestra.policies import DegradationPolicy
from orchestra.ports import Clock, Fleet
from orchestra.resilience.breaker import Breaker, BreakerStatus, State
from orchestra.resilience.bulkhead import Bulkhead, BulkheadStatus
from orchestra.resilience.degradation import Degradation, Level, LevelStatus
from orchestra.resilience.health import Health, Reading, assess, reading_of
from orchestra.resilience.orders import BREAKER, Order, Orders

PINGS_KEPT = 5
PING_SECONDS_MAX = 1.0

Probe = Callable[[], Awaitable[object]]
_News = tuple[int, State, Order | None]
"""What changes where something new is known of a component: its calls that ended, its state, and what was ordered."""


@dataclass(frozen=True)
class Watched:
    """What health is read from, by name of the component.

    Parameters
    ----------
    breakers, bulkheads : mapping
        Those of the guarded dependencies.
    pings : mapping of str to async callable
        Returns once the store has answered, raises where it does not.
    canaries : mapping of str to async callable
        A tiny real call of an external dependency, through its guard, which ends it.
    """

    breakers: Mapping[str, Breaker] = field(default_factory=dict)
    bulkheads: Mapping[str, Bulkhead] = field(default_factory=dict)
    pings: Mapping[str, Probe] = field(default_factory=dict)
    canaries: Mapping[str, Probe] = field(default_factory=dict)


class Overview(Struct, frozen=True):
    """Everything an operator sees at one moment. `health` is that of the last tick, None before the first."""

    level: LevelStatus
    health: Health | None
    breakers: tuple[BreakerStatus, ...]
    bulkheads: tuple[BulkheadStatus, ...]
    orders: dict[str, Order]


class HealthMonitor:
    """Looks at what is watched every ``policy.interval_seconds``, from `start` to `aclose`.

    Parameters
    ----------
    policy : DegradationPolicy
    degradation : Degradation
        Observes the health of every tick, and obeys the orders.
    watched : Watched
    fleet : Fleet
        Where orders are shared; where it is away, everything here goes on without it.
    clock : Clock
        Dates the orders.
    now : callable
        Monotonic seconds: the running loop's `time`.
    hook : Hook
        Told of orders, of defects, and as a `StoreFinished` of ``fleet`` once when it goes away and once when it is
        back.
    fleet_view : bool
        Whether breakers also share what they saw, and learn what all instances saw.
    """

    def __init__(
        self,
        policy: DegradationPolicy,
        degradation: Degradation,
        watched: Watched,
        *,
        fleet: Fleet,
        clock: Clock,
        now: Callable[[], float],
        hook: Hook,
        fleet_view: bool = False,
    ) -> None:
        self._interval_seconds = policy.interval_seconds
        self._canary_seconds = policy.canary_seconds
        self._degradation = degradation
        self._watched = watched
        self._fleet = fleet
        self._fleet_view = fleet_view
        self._fleet_away = False
        self._now = now
        self._hook = hook
        self._orders = Orders(degradation, watched.breakers, clock.now, now, hook)
        self._pings: dict[str, deque[bool]] = {name: deque(maxlen=PINGS_KEPT) for name in watched.pings}
        self._refused: dict[str, int] = {}  # by a bulkhead, up to the last tick
        self._learned: dict[str, tuple[_News, BreakerStatus]] = {}  # of a component, when its news last changed
        self._canaries: dict[str, asyncio.Task[None]] = {}
        self._health: Health | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look, in the running loop."""
        assert self._task is None, "a monitor is started once"
        self._task = asyncio.create_task(self._run(), name="health monitor")

    async def aclose(self) -> None:
        """Stop looking, and wait until nothing of it runs any more."""
        tasks = [*self._canaries.values(), *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def order(self, target: str, action: str, reason: str) -> bool:
        """Carry out an operator's order here at once, and tell the fleet.

        Parameters
        ----------
        target, action : str
            ``level`` and ``latch EMERGENCY`` (any `Level`) or ``release``; or ``breaker:`` with its name, and ``open``,
            ``disable``, ``observe`` or ``reset``.

        Returns
        -------
        bool
            Whether the fleet knows; if not, it is told again each tick until it does.

        Raises
        ------
        InvalidRequest
            There is no such target or action, or no reason.
        """
        text = self._orders.give(target, action, reason)
        return await self._with_fleet(lambda: self._fleet.order(target, text))

    def describe(self) -> Overview:
        """Return what an operator sees."""
        return Overview(
            self._degradation.describe(),
            self._health,
            tuple(breaker.describe() for breaker in self._watched.breakers.values()),
            tuple(bulkhead.describe() for bulkhead in self._watched.bulkheads.values()),
            self._orders.standing,
        )

    async def _run(self) -> None:
        while True:
            started = self._now()
            try:
                await self._tick()
            except Exception:
                with suppress(Exception):  # where even telling fails, the next tick comes all the same
                    self._tell_defect("HealthMonitor.tick")
            await asyncio.sleep(max(0.0, started + self._interval_seconds - self._now()))

    async def _tick(self) -> None:
        if self._degradation.level >= Level.EMERGENCY:
            self._send_canaries()
        pings = [self._ping(name, ping) for name, ping in self._watched.pings.items()]
        ended = await asyncio.gather(*pings, self._with_fleet(self._exchange), return_exceptions=True)
        self._health = assess(self._readings())
        self._degradation.observe(self._health.score, self._health.reason)
        for each in ended:
            if isinstance(each, Exception):
                raise each  # a defect: what can be expected to fail is caught where it does

    def _readings(self) -> list[Reading]:
        orders = self._orders.standing
        readings = {
            name: self._read(name, breaker, orders.get(BREAKER + name))
            for name, breaker in self._watched.breakers.items()
        }
        for name, answers in self._pings.items():
            failed = answers.count(False) / len(answers) if answers else None
            readings[name] = structs.replace(readings.get(name, Reading(name)), pings=failed)
        return list(readings.values())

    def _read(self, name: str, breaker: Breaker, order: Order | None) -> Reading:
        """Read a component as it was when something was last learned of it: that calls grow old is no news of it."""
        status = breaker.describe()
        news = breaker.ended, status.state, order
        if name not in self._learned or self._learned[name][0] != news:
            self._learned[name] = news, status
        last = self._learned[name][1]
        past = last.calls > 0 and status.calls == 0
        return reading_of(last, breaker.policy, self._saturation(name), past=past)

    def _saturation(self, name: str) -> float | None:
        """Return what share of its places is taken: all of them where it has refused anybody since the last tick."""
        if name not in self._watched.bulkheads:
            return None
        status = self._watched.bulkheads[name].describe()
        before, self._refused[name] = self._refused.get(name, 0), status.refused
        return 1.0 if status.refused > before else status.saturation

    async def _ping(self, name: str, ping: Probe) -> None:
        answered = False
        try:
            async with asyncio.timeout(PING_SECONDS_MAX):
                await ping()
            answered = True
        except (OrchestraError, TimeoutError):
            pass  # health tells
        finally:
            self._pings[name].append(answered)

    def _send_canaries(self) -> None:
        for name, canary in self._watched.canaries.items():
            if name not in self._canaries or self._canaries[name].done():
                self._canaries[name] = asyncio.create_task(self._canary(name, canary), name=f"canary {name}")

    async def _canary(self, name: str, canary: Probe) -> None:
        try:
            await canary()
        except OrchestraError:
            pass  # its breaker knows
        except Exception:
            self._tell_defect(f"canary {name}")
        await asyncio.sleep(self._canary_seconds)

    async def _exchange(self) -> None:
        """Obey the fleet's orders, tell it ours that it does not know, and exchange what breakers saw."""
        # Taken first, so that what ended while the fleet is away is not told later, as though it had just happened.
        shares = self._take_tallies() if self._fleet_view else {}
        for target, text in self._orders.merge(await self._fleet.orders()).items():
            await self._fleet.order(target, text)
        for window_seconds, tallies in shares.items():
            seen = await self._fleet.share(tallies, window_seconds=window_seconds)
            for name, tally in seen.items():
                self._watched.breakers[name].learn(tally)

    def _take_tallies(self) -> dict[float, dict[str, Tally]]:
        """Return what ended since the last tick, by the length of the breakers' windows and then by breaker."""
        by_window: dict[float, dict[str, Tally]] = {}
        for name, breaker in self._watched.breakers.items():
            by_window.setdefault(breaker.policy.window_seconds, {})[name] = breaker.take_tally()
        return by_window

    async def _with_fleet(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Tell whether `work` with the fleet succeeded; that it went away or came back is told once."""
        started, error = self._now(), ""
        try:
            async with asyncio.timeout(PING_SECONDS_MAX):
                await work()
        except (StoreUnavailable, TimeoutError) as raised:
            error = kind_of(raised) if isinstance(raised, StoreUnavailable) else StoreUnavailable.kind
        if bool(error) is not self._fleet_away:
            self._fleet_away = bool(error)
            now = self._now()
            self._hook(StoreFinished(now, "", "fleet", error, now - started))
        return not error

    def _tell_defect(self, where: str) -> None:
        """Tell of the exception that is being handled."""
        self._hook(UnexpectedError(self._now(), "", where, traceback.format_exc()))
