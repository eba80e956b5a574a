"""One way to call a store within a turn: bounded in time, and told to the hook."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from orchestra.errors import StoreUnavailable, kind_of
from orchestra.events import Hook, StoreFinished
from orchestra.resilience.deadline import Watchdog

T = TypeVar("T")


class StoreCalls:
    """Calls stores.

    Parameters
    ----------
    hook : Hook
        Gets one `StoreFinished` a call.
    seconds_max : float
        How long one call may take before it counts as unavailable.
    """

    def __init__(self, hook: Hook, seconds_max: float) -> None:
        self._hook = hook
        self._seconds_max = seconds_max
        self._watchdog = Watchdog()

    def close(self) -> None:
        """Leave no timer behind."""
        self._watchdog.close()

    async def __call__(self, target: str, correlation_id: str, call: Coroutine[Any, Any, T]) -> T:
        """Await `call`.

        Raises
        ------
        StoreUnavailable
            The store did not answer in time, or said itself that it cannot.
        """
        now = asyncio.get_running_loop().time
        started = now()
        watch = self._watchdog.enter(started + self._seconds_max)
        try:
            result = await call
        except BaseException as raised:
            late = self._watchdog.leave(watch, raised)
            error = self._too_slow(target) if late else raised
            ended = now()
            self._hook(StoreFinished(ended, correlation_id, target, kind_of(error), ended - started))
            if late:
                raise error from raised
            raise
        self._watchdog.leave(watch)
        ended = now()
        self._hook(StoreFinished(ended, correlation_id, target, "", ended - started))
        return result

    def _too_slow(self, target: str) -> StoreUnavailable:
        return StoreUnavailable(
            f"the {target} store did not answer within {self._seconds_max:g} s: try again", retry_after_seconds=1
        )
