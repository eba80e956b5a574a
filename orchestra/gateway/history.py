"""What a conversation has said so far, page by page. Nothing here takes a turn, so MAINTENANCE lets it be."""

from typing import Any

from msgspec import Struct
from sanic import HTTPResponse, Request, Sanic
from sanic_ext import openapi

from orchestra.chat.stores import StoreCalls
from orchestra.errors import SessionUnknown
from orchestra.gateway import apidoc
from orchestra.gateway.parameters import refuse_unknown, whole_number
from orchestra.gateway.wire import NO_STORE, json_response
from orchestra.model import Turn
from orchestra.ports import ConversationStore, Ports
from orchestra.security.validation import validate_id

TURNS_MAX = 100
TURN_NUMBER_MAX = 2**31 - 1
"""As large as the conversation's numbers are stored."""

PAGE_CHARS_MAX = 2_000_000
READ_AT_ONCE = 20


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
    "The turns numbered above `after`, lowest first, at most `limit`, fewer where they are long; `next_after` brings "
    "the next page. Every acknowledged turn is here, also those of a session that is too old to be continued, and also "
    "while the service takes no new turns (MAINTENANCE)."
)
async def history(request: Request, session_id: str) -> HTTPResponse:
    """Return a page of the session's turns."""
    validate_id("session_id", session_id, "send one that a reply named")
    query = request.get_args(keep_blank_values=True)
    refuse_unknown(query, ("after", "limit"))
    after = whole_number(query, "after", default=0, least=0, most=TURN_NUMBER_MAX)
    limit = whole_number(query, "limit", default=TURNS_MAX, least=1, most=TURNS_MAX)
    ports: Ports = request.app.ctx.service.ports
    calls: StoreCalls = await request.app.ctx.service.container.resolve(StoreCalls)
    reading = Reading(ports.conversations, calls, request.ctx.correlation_id)
    return json_response(await reading.page(session_id, after, limit), NO_STORE)


class Reading:
    """Reads conversations for one request, a few turns at a time, so that a page of long ones fills no memory."""

    def __init__(self, conversations: ConversationStore, calls: StoreCalls, correlation_id: str) -> None:
        self._conversations = conversations
        self._calls = calls
        self._correlation_id = correlation_id

    async def page(self, session_id: str, after: int, limit: int) -> History:
        """Return at most `limit` turns, fewer where they are long.

        Raises
        ------
        SessionUnknown
            No turn of the session is stored.
        """
        turns: list[Turn] = []
        chars = 0
        while True:
            wanted = min(READ_AT_ONCE, limit + 1 - len(turns))  # one more tells whether there is another page
            found = await self._turns(session_id, turns[-1].number if turns else after, wanted)
            for turn in found:
                chars += len(turn.message) + len(turn.reply)
                if len(turns) == limit or (turns and chars > PAGE_CHARS_MAX):
                    return History(session_id, tuple(turns), turns[-1].number)
                turns.append(turn)
            if len(found) < wanted:
                break
        if not turns:
            await self._refuse_unknown(session_id)
        return History(session_id, tuple(turns), None)

    async def _turns(self, session_id: str, after: int, limit: int) -> tuple[Turn, ...]:
        found = self._conversations.turns(session_id, after=after, limit=limit)
        return await self._calls("conversations", self._correlation_id, found)

    async def _refuse_unknown(self, session_id: str) -> None:
        owner = await self._calls("conversations", self._correlation_id, self._conversations.owner(session_id))
        if owner is None:
            raise SessionUnknown(
                f"there is no session {session_id!r}: send the session_id of a reply that was given", field="session_id"
            )
