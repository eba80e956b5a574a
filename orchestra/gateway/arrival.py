"""How long a request may take to arrive: Sanic's HTTP, with an end for those that trickle.

Sanic's REQUEST_TIMEOUT starts anew with every byte, so a header that comes byte by byte never ends, nor does a body,
nor what is left of a body that nobody wants. Here one deadline stands over the whole arrival, from a request's first
byte on; what is not there by then is answered with 408 and its connection closed.

Source: RFC 9110, section 15.5.9; the attack is Slowloris (RSnake, 2009) and its sibling R-U-Dead-Yet.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from sanic.exceptions import RequestTimeout
from sanic.http import Http, Stage
from sanic.server.protocols.websocket_protocol import WebSocketProtocol

T = TypeVar("T")


class TimedHttp(Http):
    """A connection's requests, each of which has to arrive in time."""

    __slots__ = ("_arrives_by",)  # Sanic's metaclass makes every class of it slotted

    async def http1_request_header(self) -> None:
        """Receive and parse the header, which starts with its first byte in the buffer."""
        self._arrives_by = asyncio.get_running_loop().time() + self.protocol.request_timeout
        await self._in_time(super().http1_request_header())  # type: ignore[no-untyped-call]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over the body's pieces."""
        while self.request_body:
            try:
                data = await self._in_time(self.read())
            except RequestTimeout:
                self.request_body = None  # what is left of it is not waited for
                self.keep_alive = False
                if self.stage is not Stage.HANDLER:
                    return  # it was answered before: nobody wants the rest
                raise
            if data:
                yield data

    async def _in_time(self, arriving: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout_at(self._arrives_by):
                return await arriving
        except TimeoutError:
            raise RequestTimeout("Request Timeout") from None


class TimedProtocol(WebSocketProtocol):
    """Sanic's protocol with `TimedHttp`."""

    HTTP_CLASS = TimedHttp
