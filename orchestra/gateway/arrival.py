"""How long a request may take to arrive: Sanic's HTTP, with an end for those that trickle.

Sanic's REQUEST_TIMEOUT starts anew with every byte, so a header that comes byte by byte never ends, nor does a body,
nor what is left of a body that nobody wants. Here one deadline stands over the whole arrival, from a request's first
byte on; what is not there by then is answered with 408 and its connection closed.

Source: RFC 9110, section 15.5.9; the attack is Slowloris (RSnake, 2009) and its sibling R-U-Dead-Yet.
"""

import asyncio
from collections.abc import AsyncIterator

from sanic.exceptions import PayloadTooLarge, RequestTimeout
from sanic.http import Http, Stage
from sanic.server.protocols.websocket_protocol import WebSocketProtocol

from orchestra.gateway.problems import HeadersTooLarge


class TimedHttp(Http):
    """A connection's requests, each of which has to arrive in time."""

    __slots__ = ("_arrives_by",)  # Sanic's metaclass makes every class of it slotted

    def __init__(self, protocol: "TimedProtocol") -> None:
        super().__init__(protocol)  # type: ignore[no-untyped-call]
        self._receive_more = self._receive_in_time  # what Sanic waits for bytes by, wherever it does

    async def http1_request_header(self) -> None:
        """Receive and parse the header, which starts with its first byte in the buffer."""
        self._arrives_by = asyncio.get_running_loop().time() + self.protocol.request_timeout
        try:
            await super().http1_request_header()  # type: ignore[no-untyped-call]
        except PayloadTooLarge as error:
            raise HeadersTooLarge(
                f"the request's line and headers are over {self.HEADER_MAX_SIZE} bytes: shorten the URL, or send fewer "
                "or shorter headers"
            ) from error

    async def head_response_ignored(self, data: bytes, end_stream: bool) -> None:  # type: ignore[override]
        """Leave out a piece of a body: Sanic's own cannot be awaited, so a streamed answer to HEAD fails by it."""
        super().head_response_ignored(data, end_stream)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over the body's pieces."""
        while self.request_body:
            try:
                data = await self.read()
            except RequestTimeout:
                self.request_body = None  # what is left of it is not waited for
                self.keep_alive = False
                if self.stage is not Stage.HANDLER:
                    return  # it was answered before: nobody wants the rest
                raise
            if data:
                yield data

    async def _receive_in_time(self) -> None:
        """Wait for more bytes; between two requests, for as long as Sanic's own timeout allows."""
        if self.stage is Stage.IDLE and not self.request_body:
            await self.protocol.receive_more()  # type: ignore[no-untyped-call]
            return
        try:
            async with asyncio.timeout_at(self._arrives_by):
                await self.protocol.receive_more()  # type: ignore[no-untyped-call]
        except TimeoutError:
            raise RequestTimeout("Request Timeout") from None


class TimedProtocol(WebSocketProtocol):
    """Sanic's protocol with `TimedHttp`."""

    HTTP_CLASS = TimedHttp
