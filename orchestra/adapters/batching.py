"""Requests that arrive while a round trip is under way share the next one.

This is group commit (DeWitt et al., "Implementation techniques for main memory database systems", SIGMOD 1984) without
its timer: a lone request is sent at once, and the busier the store, the more requests share a round trip. It also
keeps a caller's cancellation away from the connection, where it would leave a reply that nobody reads.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Generic, TypeVar

from orchestra.errors import StoreUnavailable

Item = TypeVar("Item")
Result = TypeVar("Result")

CLOSE_SECONDS = 10.0


class Batcher(Generic[Item, Result]):
    """One sender that takes all that is waiting whenever its last batch is done.

    Parameters
    ----------
    store : str
        What the store is called in errors.
    send : callable
        Sends one batch and gives one outcome an item, in order: a result, or the exception that its caller gets.
    batch_max : int
        Most items in a batch.
    waiting_max : int
        Most items that wait for a batch; more are refused.

    Attributes
    ----------
    batches, items : int
        How many of each were sent.
    """

    def __init__(
        self,
        store: str,
        send: Callable[[list[Item]], Awaitable[Sequence[Result | Exception]]],
        *,
        batch_max: int,
        waiting_max: int,
    ) -> None:
        self.batches = 0
        self.items = 0
        self._store = store
        self._send = send
        self._batch_max = batch_max
        self._waiting_max = waiting_max
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._sender: asyncio.Task[None] | None = None
        self._closed = False

    async def submit(self, item: Item) -> Result:
        """Return the outcome of `item`, which is sent with the next batch.

        A caller that is cancelled takes its item back where it has not been sent yet; else the outcome is dropped.

        Raises
        ------
        StoreUnavailable
            The batcher is closed, or too many items wait.
        """
        return await self.put(item)

    def put(self, item: Item) -> asyncio.Future[Result]:
        """Take `item` for the next batch, and return the future of its outcome; as `submit`, which waits for it."""
        if self._closed:
            raise StoreUnavailable(f"the connection to {self._store} is closed: the service is shutting down")
        if len(self._waiting) >= self._waiting_max:
            raise StoreUnavailable(
                f"{self._waiting_max} requests wait for {self._store} already: try again later", retry_after_seconds=1.0
            )
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((item, outcome))
        if self._sender is None:
            # A task of its own, which starts after all that is ready now has run: what is submitted in this tick
            # shares its first batch. An empty context, lest it carry the first caller's correlation id for ever.
            self._sender = loop.create_task(self._drain(), context=Context())
        return outcome

    async def close(self) -> None:
        """Send what waits, for `CLOSE_SECONDS` at most, then refuse the rest."""
        self._closed = True
        sender = self._sender
        if sender is not None:
            await asyncio.wait([sender], timeout=CLOSE_SECONDS)
            if not sender.done():
                sender.cancel()
                await asyncio.wait([sender])
        self._refuse(self._take_all())

    async def _drain(self) -> None:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        try:
            while batch := self._take():
                self._settle(batch, await self._outcomes([item for item, _ in batch]))
        except BaseException:  # cancelled: nobody may wait for ever
            self._refuse(batch + self._take_all())
            raise
        finally:
            self._sender = None

    async def _outcomes(self, items: list[Item]) -> Sequence[Result | Exception]:
        self.batches += 1
        self.items += len(items)
        try:
            return await self._send(items)
        except Exception as defect:  # of `send`, which is to return exceptions: who waits must hear of it
            return [defect] * len(items)

    def _take(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        while self._waiting and len(batch) < self._batch_max:
            item, outcome = self._waiting.popleft()
            if not outcome.done():  # done already: its caller was cancelled
                batch.append((item, outcome))
        return batch

    def _take_all(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        everything = list(self._waiting)
        self._waiting.clear()
        return everything

    def _settle(self, batch: list[tuple[Item, asyncio.Future[Result]]], outcomes: Sequence[Result | Exception]) -> None:
        for (_, waiter), outcome in zip(batch, outcomes, strict=True):
            if waiter.done():
                continue
            if isinstance(outcome, Exception):
                waiter.set_exception(outcome)
            else:
                waiter.set_result(outcome)

    def _refuse(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        self._settle(batch, [StoreUnavailable(f"the connection to {self._store} is closing") for _ in batch])
