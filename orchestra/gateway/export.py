"""A whole conversation as a file, streamed: of however many turns, a few are in memory at a time.

Status and headers wait for the first piece, so that what fails before is an ordinary problem. What fails after it cuts
the connection without an end: to HTTP the body is incomplete, and the document itself shows it too
(`chat.transcript`). A reader that takes less than a piece in `PIECE_SECONDS_MAX` is cut the same way.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from sanic import HTTPResponse, Request, Sanic
from sanic.exceptions import RequestCancelled
from sanic_ext import openapi

from orchestra.chat.stores import StoreCalls
from orchestra.chat.transcript import FORMAT, FORMATS, JSON, MARKDOWN, Format, Transcript
from orchestra.errors import DeadlineExceeded
from orchestra.gateway import apidoc
from orchestra.gateway.history import Reading, validate_session_id
from orchestra.gateway.parameters import choice, refuse_unknown, wanted_type
from orchestra.gateway.passage import answer_head, error_of, tell_finished
from orchestra.gateway.problems import ClientGone
from orchestra.gateway.routes import add_route
from orchestra.gateway.wire import NO_STORE
from orchestra.model import ConversationHead
from orchestra.ports import Ports

TURNS_AT_ONCE = 5
"""Fewer than a page reads: a slow reader keeps them in memory for long."""

PIECE_BYTES = 64 * 1024
PIECE_SECONDS_MAX = 30.0

DOCUMENTED = (Transcript,)


def add_routes(app: Sanic[Any, Any]) -> None:
    """Add the route to `app`."""
    add_route(app, export, "/chat/v2/sessions/<session_id:str>/export")


@apidoc.route(Transcript, "The conversation, as a file", also=MARKDOWN.media_type)
@apidoc.parameter("format", "What to write; where it is left out, `Accept` decides.", type="string", enum=[*FORMATS])
@openapi.summary("Export a conversation")
@openapi.description(
    "The whole conversation as it is now, as JSON with every field of every turn, or as Markdown for people to read. "
    "A title may be given to it in the session's metadata, under `title`. A file that was cut off shows it: such JSON "
    "does not parse, and such Markdown lacks its last line, 'End of the conversation'."
)
async def export(request: Request, session_id: str) -> HTTPResponse | None:
    """Stream the session's conversation."""
    validate_session_id(session_id)
    document = _document(request)
    ports: Ports = request.app.ctx.service.ports
    calls: StoreCalls = await request.app.ctx.service.container.resolve(StoreCalls)
    reading = Reading(ports.conversations, calls, request.ctx.correlation_id)
    head = await reading.head(session_id)
    if request.method == "HEAD":
        await answer_head(request, _headers(document, session_id), document.content_type)
        return None
    transcript = _transcript(session_id, head, ports.clock.now())
    async with aclosing(_whole(_pieces(document, transcript, reading))) as pieces:
        await _send(request, document, session_id, await anext(pieces), pieces)
    return None


def _document(request: Request) -> Format:
    """Return the format that is asked for, by name or else by media type."""
    query = request.get_args(keep_blank_values=True)
    refuse_unknown(query, ("format",))
    name = choice(query, "format", tuple(FORMATS))
    if name is not None:
        return FORMATS[name]
    wanted = wanted_type(request.headers, JSON.media_type, MARKDOWN.media_type)
    return MARKDOWN if wanted == MARKDOWN.media_type else JSON


def _transcript(session_id: str, head: ConversationHead, now: float) -> Transcript:
    return Transcript(
        format=FORMAT,
        session_id=session_id,
        created_at=head.created_at,
        updated_at=head.updated_at,
        exported_at=now,
        version=head.version,
        profile=head.profile,
    )


async def _pieces(document: Format, transcript: Transcript, reading: Reading) -> AsyncGenerator[bytes]:
    """Write the turns up to the transcript's version: the conversation as it was when its head was read."""
    yield document.begin(transcript)
    after = 0
    while after < transcript.version:
        for turn in await reading.some(transcript.session_id, after, transcript.version, TURNS_AT_ONCE):
            yield document.turn(turn) if after == 0 else document.between + document.turn(turn)
            after = turn.number
    yield document.end(transcript)


async def _whole(pieces: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """Yield what `pieces` yield, in pieces of `PIECE_BYTES` and a last one of the rest."""
    waiting = bytearray()
    async with aclosing(pieces):
        async for piece in pieces:
            waiting += piece
            while len(waiting) > PIECE_BYTES:
                yield bytes(waiting[:PIECE_BYTES])
                del waiting[:PIECE_BYTES]
    yield bytes(waiting)


async def _send(request: Request, document: Format, session_id: str, first: bytes, more: AsyncGenerator[bytes]) -> None:
    """Send `first` and `more`; cut the connection where that fails."""
    request.ctx.streams = True  # its end is told at its end, not when the headers go
    status = ClientGone.status
    try:
        response = await request.respond(headers=_headers(document, session_id), content_type=document.content_type)
        await _within_time(response.send(first))
        async for piece in more:
            await _within_time(response.send(piece))
        await _within_time(response.send(b"", True))
        status = 200
    except Exception as raised:
        status = error_of(request, raised).status
        # An ordinary error would let Sanic end the body as if it were whole.
        raise RequestCancelled from raised
    finally:
        tell_finished(request, status)


async def _within_time(sending: Any) -> None:
    try:
        async with asyncio.timeout(PIECE_SECONDS_MAX):
            await sending
    except TimeoutError as error:
        raise DeadlineExceeded(f"the reader took less than a piece in {PIECE_SECONDS_MAX:g} s") from error


def _headers(document: Format, session_id: str) -> dict[str, str]:
    name = f"conversation-{session_id.replace(':', '-')}.{document.suffix}"  # no file of Windows has a colon
    return {**NO_STORE, "Content-Disposition": f'attachment; filename="{name}"'}
