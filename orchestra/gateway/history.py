"""What a conversation has said so far, page by page. Nothing here takes a turn, so MAINTENANCE lets it be."""

from typing import Any

from msgspec import Struct
from sanic import HTTPResponse, Request, Sanic
from sanic_ext import openapi

from orchestra.chat.stores import StoreCalls
from orchestra.config import Settings
from orchestra.errors import InvalidRequest, SessionUnknown
from orchestra.gateway import apidoc
from orchestra.gateway.parameters import refuse_unknown, whole_number
from orchestra.gateway.wire import json_response
from orchestra.limits import ID_CHARS_MAX, is_id
from orchestra.model import Turn
from orchestra.ports import Ports

TURNS_MAX = 100
TURN_NUMBER_MAX = 2**31 - 1
"""As large as the conversation's numbers are stored."""


class History(Struct, frozen=True):
    """Turns of one conversation, lowest number first.

    Parameters
    ----------
    session_id : str
    turns : tuple of Turn
    next_after : int or None
        The `after` that brings the next page; None where this is the last one.
    """

    session_id: str
    turns: tuple[Turn, ...]
    next_after: int | None


DOCUMENTED = (History,)


def add_routes(app: Sanic[Any, Any]) -> None:
    """Add the route to `app`."""
    app.add_route(history, "/chat/v2/sessions/<session_id:str>", methods=["GET"])


@apidoc.route(History, "A page of the conversation")
@apidoc.parameter("limit", "How many at most.", type="integer", minimum=1, maximum=TURNS_MAX, default=TURNS_MAX)
@apidoc.parameter("after", "Above which number.", type="integer", minimum=0, maximum=TURN_NUMBER_MAX, default=0)
@openapi.summary("Read a conversation")
@openapi.description(
    "The turns numbered above `after`, lowest first, at most `limit`. Every acknowledged turn is here, also those of a "
    "session that is too old to be continued, and also while the service takes no new turns (MAINTENANCE)."
)
async def history(request: Request, session_id: str) -> HTTPResponse:
    """Return a page of the session's turns."""
    if not is_id(session_id):
        raise InvalidRequest(
            f"session_id must be 1 to {ID_CHARS_MAX} letters, digits, '.', '_', ':' or '-', starting with a letter or "
            "digit: send one that a reply named",
            field="session_id",
        )
    query = request.get_args(keep_blank_values=True)
    refuse_unknown(query, ("after", "limit"))
    after = whole_number(query, "after", default=0, least=0, most=TURN_NUMBER_MAX)
    limit = whole_number(query, "limit", default=TURNS_MAX, least=1, most=TURNS_MAX)
    ports: Ports = request.app.ctx.service.ports
    settings = await request.app.ctx.service.container.resolve(Settings)
    calls = StoreCalls(ports.hook, settings.store_seconds_max)
    page = await _page(ports, calls, request.ctx.correlation_id, session_id, after, limit)
    return json_response(page, {"Cache-Control": "no-store"})


async def _page(
    ports: Ports, calls: StoreCalls, correlation_id: str, session_id: str, after: int, limit: int
) -> History:
    """Read one turn more than asked for, which tells whether there is another page."""
    found = await calls(
        "conversations", correlation_id, ports.conversations.turns(session_id, after=after, limit=limit + 1)
    )
    if not found and await calls("conversations", correlation_id, ports.conversations.owner(session_id)) is None:
        raise SessionUnknown(
            f"there is no session {session_id!r}: send the session_id of a reply that was given", field="session_id"
        )
    turns = found[:limit]
    return History(session_id, turns, turns[-1].number if len(found) > limit else None)
