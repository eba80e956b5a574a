"""A relay between instances in one process: what the simulated world's instances tell each other by.

state: `InProcessHub`, which the instances share;  behaviour: `InProcessRelay`, one for each
"""

import asyncio
from collections.abc import Callable
from functools import partial
from math import inf
from typing import NamedTuple

from orchestra import limits
from orchestra.errors import StoreUnavailable
from orchestra.ports import Claim, Found

Deliver = Callable[[bytes], None]


class _Record(NamedTuple):
    """A turn that was claimed, or whose log is kept."""

    holder: str
    number: int
    about: str
    runs: bool
    expires_at: float
    session_id: str = ""  # known once it has ended


class InProcessHub:
    """What the instances of one process share. Times are the running loop's."""

    def __init__(self) -> None:
        self.records: dict[str, _Record] = {}
        self.running: dict[str, dict[str, str]] = {}  # holders by turn, by session
        self.ears: dict[str, list[Deliver]] = {}
        self.leases: dict[str, float] = {}  # when they run out, inf for those who renew them

    def join(self, instance: str) -> "InProcessRelay":
        """Return the relay of one more instance."""
        self.leases[instance] = inf
        return InProcessRelay(self, instance)

    def lives(self, instance: str) -> bool:
        """Tell whether the instance holds a lease."""
        return self.leases.get(instance, 0.0) > _now()

    def record(self, turn_id: str) -> _Record | None:
        """Return what is known of a turn, and forget what is over."""
        now = _now()
        for each in [name for name, record in self.records.items() if record.expires_at <= now]:
            del self.records[each]
        return self.records.get(turn_id)


class InProcessRelay:
    """One instance's way to the others."""

    def __init__(self, hub: InProcessHub, instance: str) -> None:
        self._hub = hub
        self._instance = instance
        self._ears: list[Callable[[], None]] = []
        self._gone = False

    @property
    def instance(self) -> str:
        """The address of this instance."""
        return self._instance

    async def claim(self, turn_id: str, about: str) -> Claim:
        """Take the turn for this instance, unless another that lives has it."""
        self._check()
        before = self._hub.record(turn_id)
        if before is None:
            before = _Record("", -1, about, False, 0.0)
        elif before.runs and before.holder != self._instance and self._hub.lives(before.holder):
            return Claim(before.holder, before.number, before.about)
        number = before.number + 1
        expires_at = _now() + limits.CLAIM_SECONDS
        self._hub.records[turn_id] = _Record(self._instance, number, before.about, True, expires_at)
        return Claim(None, number, before.about)

    def begin(self, session_id: str, turn_id: str, address: str, message: bytes) -> None:
        """Let others know that the turn runs here, and tell those who hear `address`."""
        if not self._gone:
            self._hub.running.setdefault(session_id, {})[turn_id] = self._instance
            self.tell(address, message)

    def end(self, session_id: str, turn_id: str, *, kept: bool) -> None:
        """Let others know that the turn has ended, and whether its log is here."""
        if self._gone:
            return
        running = self._hub.running.get(session_id, {})
        if running.get(turn_id) == self._instance:
            del running[turn_id]
            if not running:
                del self._hub.running[session_id]
        record = self._hub.record(turn_id)
        if record is None:
            record = _Record(self._instance, 0, "", True, 0.0) if kept else None
        if record is not None and record.holder == self._instance:
            self._hub.records[turn_id] = record._replace(
                runs=False, expires_at=_now() + limits.LOG_SECONDS, session_id=session_id
            )

    async def find(self, session_id: str, turn_id: str) -> Found | None:
        """Return where the turn runs, or ran a moment ago and is kept."""
        self._check()
        holder = self._hub.running.get(session_id, {}).get(turn_id)
        if holder is not None:
            return Found(holder, self._hub.lives(holder), True)
        record = self._hub.record(turn_id)
        if record is None or record.session_id not in ("", session_id):
            return None
        return Found(record.holder, self._hub.lives(record.holder), record.runs)

    async def running(self, session_id: str) -> dict[str, str]:
        """Return the turns of the session that run on instances that live, and on which."""
        self._check()
        running = self._hub.running.get(session_id, {})
        return {turn_id: holder for turn_id, holder in running.items() if self._hub.lives(holder)}

    def tell(self, address: str, message: bytes) -> None:
        """Send `message` to all who hear `address` now."""
        if self._gone:
            return
        for deliver in self._hub.ears.get(address, ()):
            asyncio.get_running_loop().call_soon(self._arrive, address, deliver, message)

    def hear(self, address: str, deliver: Deliver) -> Callable[[], None]:
        """Let `deliver` get what is told to `address` from now on, and return how to end that."""
        unhear = partial(self._unhear, address, deliver)
        if not self._gone:
            self._hub.ears.setdefault(address, []).append(deliver)
            self._ears.append(unhear)
        return unhear

    def vanish(self) -> None:
        """Fall silent, as an instance does that crashed: its lease runs out, and nobody hears of it again."""
        self._gone = True
        self._hub.leases[self._instance] = _now() + limits.LEASE_SECONDS
        for unhear in self._ears:
            unhear()

    def _check(self) -> None:
        if self._gone:
            raise StoreUnavailable("this instance has vanished", retry_after_seconds=1)

    def _arrive(self, address: str, deliver: Deliver, message: bytes) -> None:
        if deliver in self._hub.ears.get(address, ()):
            deliver(message)

    def _unhear(self, address: str, deliver: Deliver) -> None:
        ears = self._hub.ears.get(address, [])
        if deliver in ears:
            ears.remove(deliver)
            if not ears:
                del self._hub.ears[address]


def _now() -> float:
    return asyncio.get_running_loop().time()
