"""A turn's answer as server-sent events, piece by piece as it comes.

    event: delta   data: {"text": "..."}     a piece of the answer, in order
    event: done    data: a `ChatReply`       the turn is durable; the last event
    event: error   data: a `Problem`         the turn failed; the last event
    : keep-alive                             nothing for `KEEP_ALIVE_SECONDS`, which balancers would cut

Status and headers wait for the first piece, the first keep-alive or the turn's end, whichever comes first: a turn that
is refused is an ordinary problem, and one that is answered whole, as where the level allows no streaming, is ordinary
JSON. A stream that ends with neither `done` nor `error` was cut off, and the turn may be durable or not.

Source: WHATWG HTML, section 9.2; the held headers and the early pings are those of LiteLLM and Bifrost, learnt from
streams that proxies cut and from SDKs that took a cut one for a finished answer.
"""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
from sanic import HTTPResponse, Request

from orchestra.chat.orchestrator import Sink
from orchestra.gateway.parameters import EVENT_STREAM
from orchestra.gateway.passage import error_of, tell_finished
from orchestra.gateway.problems import ClientGone, problem_of
from orchestra.gateway.wire import NO_STORE, json_response
from orchestra.model import ChatReply

KEEP_ALIVE_SECONDS = 15.0
PIECES_WAITING_MAX = 64
"""How far a turn may be ahead of a slow reader; then the turn waits."""

HEADERS = {**NO_STORE, "X-Accel-Buffering": "no"}

Turn = Callable[[Sink], Awaitable[ChatReply]]
_Item = str | ChatReply | Exception | None
"""A piece, how the turn ended, or None: nothing yet."""


async def answer(request: Request, turn: Turn) -> HTTPResponse | None:
    """Run `turn`, and answer `request` with what it gives its sink; a client that goes away cancels it.

    Returns
    -------
    HTTPResponse or None
        The whole reply where the turn ended before a piece came; None where the answer was streamed.
    """
    items: asyncio.Queue[_Item] = asyncio.Queue(PIECES_WAITING_MAX)
    running = asyncio.create_task(_run(turn, items))
    status = ClientGone.status
    try:
        first = await _next(items)
        if isinstance(first, Exception):
            raise first
        if isinstance(first, ChatReply):
            return json_response(first, NO_STORE)
        await _stream(request, first, items)
        status = 200
        return None
    finally:
        running.cancel()
        await asyncio.wait((running,))  # when the request is over, so are its calls
        if request.ctx.streams:
            tell_finished(request, status)


async def _run(turn: Turn, items: asyncio.Queue[_Item]) -> None:
    """Run the turn; its last item is how it ended."""
    try:
        ended: _Item = await turn(items.put)
    except Exception as error:
        ended = error
    await items.put(ended)


async def _next(items: asyncio.Queue[_Item]) -> _Item:
    try:
        async with asyncio.timeout(KEEP_ALIVE_SECONDS):
            return await items.get()
    except TimeoutError:
        return None


async def _stream(request: Request, item: _Item, items: asyncio.Queue[_Item]) -> None:
    """Send `item` and all that follow."""
    request.ctx.streams = True  # its end is told at its end, not when the headers go
    response = await request.respond(headers=HEADERS, content_type=EVENT_STREAM)
    while not isinstance(item, ChatReply | Exception):
        await response.send(_event(request, item))  # waits while the socket is full
        item = await _next(items)
    await response.send(_event(request, item), True)


def _event(request: Request, item: _Item) -> bytes:
    match item:
        case None:
            return b": keep-alive\n\n"
        case str():
            name, data = b"delta", msgspec.json.encode({"text": item})
        case ChatReply():
            name, data = b"done", msgspec.json.encode(item)
        case _:
            problem = problem_of(error_of(request, item), request.ctx.correlation_id)
            name, data = b"error", msgspec.json.encode(problem)
    return b"event: %b\ndata: %b\n\n" % (name, data)
