"""A turn's log as server-sent events: the frames of `orchestra.frames` as they come, to whoever follows it.

    event: started   the turn begins: text that came before of the same turn is void
    event: delta     a piece of the answer, in order
    event: done      the turn is durable, and this is the whole reply; the last event
    event: error     the turn failed; the last event
    : keep-alive     nothing for `KEEP_ALIVE_SECONDS`, which balancers would cut

Every event has an `id`, ``<session_id>/<turn_id>/<seq>``, which is where a client that lost its connection resumes.

Status and headers wait for the first piece, the first keep-alive or the turn's end, whichever comes first: a turn that
is refused is an ordinary problem, and one that is answered whole, as where the level allows no streaming, is ordinary
JSON. Who resumes is in a stream already: it stands at once, and whatever comes is an event. A stream that ends with
neither `done` nor `error` was cut off, and the turn goes on for the grace that its client has to resume. Who leaves
before any of it went out knows no id: that ends the turn at once, unless the client named it by a key.

Nothing is queued for a slow reader: it reads the log when it can. One that takes nothing for Sanic's RESPONSE_TIMEOUT
is let go.

Source: WHATWG HTML, section 9.2; the held headers and the early pings are those of LiteLLM and Bifrost, learnt from
streams that proxies cut and from SDKs that took a cut one for a finished answer.
"""

import asyncio
from collections.abc import Mapping

from sanic import HTTPResponse, Request
from sanic.response import empty

from orchestra.chat.turns import Entry, Watch
from orchestra.frames import Done, ErrorFrame, Started
from orchestra.gateway.parameters import EVENT_STREAM, Place
from orchestra.gateway.passage import tell_finished
from orchestra.gateway.problems import ClientGone, problem_response
from orchestra.gateway.wire import NO_STORE, json_response

KEEP_ALIVE_SECONDS = 15.0
KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = {**NO_STORE, "X-Accel-Buffering": "no"}


async def answer(
    request: Request, watch: Watch, headers: Mapping[str, str], *, resumed: bool = False
) -> HTTPResponse | None:
    """Answer `request` with the log that `watch` follows.

    Parameters
    ----------
    headers : mapping of str to str
        What the answer says besides those of its own form.
    resumed : bool
        Whether the client has an earlier part of the stream: then nothing but events is of use to it.

    Returns
    -------
    HTTPResponse or None
        The whole reply, or a problem, where the turn ended before a piece came; None where the answer was streamed.
        204, at which an `EventSource` stops to ask, where nothing comes any more.
    """
    status = ClientGone.status
    try:
        async with watch:
            held, entry = (b"", await next_entry(watch, 0)) if resumed else await _begin(watch)
            if isinstance(entry, End):
                return empty(204, dict(headers))
            if entry is not None and entry.ends and not resumed:
                return _whole(request, entry, headers)
            await _stream(request, watch, headers, held, entry)
            status = 200
        return None
    finally:
        if request.ctx.streams:
            tell_finished(request, status)


class End:
    """There is no more."""


END = End()


async def next_entry(watch: Watch, seconds_max: float = KEEP_ALIVE_SECONDS) -> Entry | End | None:
    """Return the log's next entry, or None where it is time for a sign of life."""
    try:
        async with asyncio.timeout(seconds_max):
            return await anext(watch, END)
    except TimeoutError:
        return None


async def _begin(watch: Watch) -> tuple[bytes, Entry | End | None]:
    """Return the first entry that tells more than that the turn began, and the events before it."""
    held = b""
    entry = await next_entry(watch)
    while isinstance(entry, Entry) and isinstance(entry.frame, Started):
        held += event(watch, entry)
        entry = await next_entry(watch)
    return held, entry


def _whole(request: Request, entry: Entry, headers: Mapping[str, str]) -> HTTPResponse:
    """Return an answer that ended before a piece of it came."""
    if isinstance(entry.frame, Done):
        return json_response(entry.frame.reply, {**NO_STORE, **headers})
    assert isinstance(entry.frame, ErrorFrame)
    return problem_response(entry.frame, request.ctx.correlation_id)


async def begun(request: Request, headers: Mapping[str, str]) -> HTTPResponse:
    """Send status and headers of a stream."""
    request.ctx.streams = True  # its end is told at its end, not when the headers go
    response: HTTPResponse = await request.respond(headers={**HEADERS, **headers}, content_type=EVENT_STREAM)
    return response


async def _stream(
    request: Request, watch: Watch, headers: Mapping[str, str], held: bytes, entry: Entry | End | None
) -> None:
    """Send what was held, `entry`, and all that follow."""
    response = await begun(request, headers)
    while entry is None or (isinstance(entry, Entry) and not entry.ends):
        said = KEEP_ALIVE if entry is None else event(watch, entry)
        watch.named = watch.named or bool(held) or entry is not None  # an event's id goes out with it
        await response.send(held + said)  # waits while the socket is full
        held = b""
        entry = await next_entry(watch)
    await response.send(event(watch, entry) if isinstance(entry, Entry) else b"", True)


def event(watch: Watch, entry: Entry) -> bytes:
    """Return `entry` of the log that `watch` follows as an event."""
    frame = entry.frame
    place = str(Place(watch.session_id, watch.turn_id, frame.seq or 0))
    name = type(frame).__struct_config__.tag
    return b"event: %b\nid: %b\ndata: %b\n\n" % (str(name).encode(), place.encode(), entry.data)
