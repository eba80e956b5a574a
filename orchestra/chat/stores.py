"""One way to call a store within a turn: bounded in time, and told to the hook."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from orchestra.errors import StoreUnavailable, kind_of
from orchestra.events import Hook, StoreFinished

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

    async def __call__(self, target: str, correlation_id: str, call: Coroutine[Any, Any, T]) -> T:
        """Await `call`.

        Raises
        ------
        StoreUnavailable
            The store did not answer in time, or said itself that it cannot.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        error = ""
        try:
            try:
                async with asyncio.timeout(self._seconds_max):
                    return await call
            except TimeoutError as timeout:
                raise StoreUnavailable(
                    f"the {target} store did not answer within {self._seconds_max:g} s: try again",
                    retry_after_seconds=1,
                ) from timeout
        except BaseException as raised:
            error = kind_of(raised)
            raise
        finally:
            now = loop.time()
            self._hook(StoreFinished(now, correlation_id, target, error, now - started))
