"""One turn by its id: its events, for a client that lost them, and its end, for one that has no more use for it."""

from typing import Any

from sanic import HTTPResponse, Request, Sanic
from sanic.response import empty
from sanic_ext import openapi

from orchestra import frames
from orchestra.chat.turnlog import END_SEQ
from orchestra.chat.turns import LiveTurns
from orchestra.errors import InvalidRequest
from orchestra.gateway import apidoc, sse
from orchestra.gateway.parameters import (
    EVENT_STREAM,
    PLACE_HEADER,
    PREFER_HEADER,
    can_resume,
    refuse_unknown,
    resumed_place,
    whole_number,
)
from orchestra.gateway.passage import answer_head
from orchestra.gateway.routes import add_route
from orchestra.security.validation import validate_id

DOCUMENTED = (frames.Started, frames.DeltaFrame, frames.Done, frames.ErrorFrame)
PATH = "/chat/v2/sessions/<session_id:str>/turns/<turn_id:str>"


def add_routes(app: Sanic[Any, Any]) -> None:
    """Add the routes to `app`."""
    add_route(app, events, f"{PATH}/events")
    add_route(app, cancel, PATH, "DELETE")


@apidoc.route(None, "The turn's events", also=EVENT_STREAM)
@openapi.response(204, description="There are no more: an `EventSource` stops to ask.")
@apidoc.parameter("after", "Behind which number.", type="integer", minimum=0, maximum=END_SEQ, default=0)
@apidoc.parameter(
    PLACE_HEADER, "The id of the last event that came; has precedence over `after`.", location="header", type="string"
)
@apidoc.parameter(PREFER_HEADER, "`no-resume`, as for a turn that is begun.", location="header", type="string")
@openapi.summary("Follow one turn")
@openapi.description(
    "The events of a turn that runs, on whichever instance, behind those that came already: `started`, `delta`, `done` "
    "or `error` with the frames of the same names. Of a turn that ended some time ago, `done` with the whole reply is "
    "all that comes; it is the last, so close an `EventSource` then."
)
async def events(request: Request, session_id: str, turn_id: str) -> HTTPResponse | None:
    """Stream what comes of the turn."""
    _validate(session_id, turn_id)
    query = request.get_args(keep_blank_values=True)
    refuse_unknown(query, ("after",))
    after = whole_number(query, "after", default=0, least=0, most=END_SEQ)
    if (place := resumed_place(request.headers)) is not None:
        if (place.session_id, place.turn_id) != (session_id, turn_id):
            raise InvalidRequest(
                f"{PLACE_HEADER} is of another turn than the path: ask for that turn, or leave it out",
                field=PLACE_HEADER,
            )
        after = place.seq
    if request.method == "HEAD":  # who does not read does not follow: the turn is not looked for
        await answer_head(request, sse.HEADERS, EVENT_STREAM)
        return None
    turns: LiveTurns = await request.app.ctx.service.container.resolve(LiveTurns)
    watch = await turns.resume(session_id, turn_id, after=after, grace=can_resume(request.headers))
    return await sse.answer(request, watch, {}, resumed=True)


@apidoc.route(None, "The turn is being stopped, unless it has ended", status=202)
@openapi.summary("Cancel one turn")
@openapi.description(
    "Stops the turn, on whichever instance it runs: its provider's connection closes, nothing of it is kept, and its "
    "events end with the error `turn-cancelled`. A turn that is durable stays so."
)
async def cancel(request: Request, session_id: str, turn_id: str) -> HTTPResponse:
    """Stop the turn."""
    _validate(session_id, turn_id)
    turns: LiveTurns = await request.app.ctx.service.container.resolve(LiveTurns)
    await turns.cancel(session_id, turn_id)
    return empty(202)


def _validate(session_id: str, turn_id: str) -> None:
    validate_id("session_id", session_id, "send the one that the turn's first event named")
    validate_id("turn_id", turn_id, "send the one that the turn's first event named")
