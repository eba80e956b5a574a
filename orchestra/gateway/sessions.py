"""Sessions as clients see them: made, described with a page of what was said, changed, and deleted.

Reading goes on while the service is read only (MAINTENANCE), also of sessions that are too old to be continued, and
while the session store is away: the conversation tells then what the session's record would. Making, changing and
deleting are refused in both cases.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from msgspec import UNSET, Struct, UnsetType, structs
from sanic import HTTPResponse, Request, Sanic
from sanic_ext import openapi

from orchestra import limits
from orchestra.chat.lifecycle import SessionView
from orchestra.chat.sessions import Sessions
from orchestra.chat.stores import StoreCalls
from orchestra.chat.turns import LiveTurns
from orchestra.errors import InvalidRequest, Maintenance, SessionExists, SessionUnknown, TurnUnknown
from orchestra.gateway import apidoc
from orchestra.gateway.history import (
    TURNS_MAX,
    Page,
    Reading,
    unknown,
    validate_session_id,
)
from orchestra.gateway.parameters import refuse_unknown, whole_number
from orchestra.gateway.routes import add_route
from orchestra.gateway.wire import NO_STORE, decoded, json_response
from orchestra.model import END, History, LiveTurnView, Profile, SessionStatus
from orchestra.ports import Ports
from orchestra.resilience.degradation import Degradation
from orchestra.security.validation import validate_id

PATH = "/chat/v2/sessions"
ONE = f"{PATH}/<session_id:str>"
MERGE_PATCH = "application/merge-patch+json"
SESSION_ID_BYTES = 16


class NewSession(Struct, frozen=True, forbid_unknown_fields=True):
    """A session to make, with what its profile shall hold.

    Parameters
    ----------
    session_id : str or None
        Its id, where the client has one that no session had yet; None makes one.
    user_id : str or None
        Whose memories its turns use and add to. None keeps memories within the session.
    system, context, metadata
        As in `Profile`.
    """

    session_id: str | None = None
    user_id: str | None = None
    system: str | None = None
    context: dict[str, str] = {}
    metadata: dict[str, str] = {}


class ProfilePatch(Struct, frozen=True, forbid_unknown_fields=True):
    """What to change in a session's profile, as a JSON Merge Patch (RFC 7396).

    What is left out stays, null removes: a field, or in `context` and `metadata` an entry. `pinned` is replaced whole.
    """

    system: str | UnsetType | None = UNSET
    pinned: tuple[int, ...] | UnsetType | None = UNSET
    context: dict[str, str | None] | UnsetType | None = UNSET
    metadata: dict[str, str | None] | UnsetType | None = UNSET

    def applied_to(self, profile: Profile) -> Profile:
        """Return `profile` with the changes."""
        return Profile(
            system=profile.system if self.system is UNSET else self.system,
            pinned=profile.pinned if self.pinned is UNSET else self.pinned or (),
            context=_merged(profile.context, self.context),
            metadata=_merged(profile.metadata, self.metadata),
        )


def _merged(entries: dict[str, str], patch: dict[str, str | None] | UnsetType | None) -> dict[str, str]:
    if patch is UNSET or patch is None:
        return {} if patch is None else entries
    return {key: text for key, text in {**entries, **patch}.items() if text is not None}


DOCUMENTED = (History, SessionStatus, NewSession, ProfilePatch)


def add_routes(app: Sanic[Any, Any]) -> None:
    """Add the routes to `app`."""
    add_route(app, create, PATH, "POST")
    add_route(app, read, ONE)
    add_route(app, change, ONE, "PATCH")
    add_route(app, delete, ONE, "DELETE")


@apidoc.route(SessionStatus, "The session was made: `Location` says where it is", status=201, takes=NewSession)
@openapi.summary("Make a session")
@openapi.description(
    "Only for a session that shall have a profile, an id of the client's own or a user from its beginning: the first "
    "message makes a session anyway. 409 where the id is, or was, another session's."
)
async def create(request: Request) -> HTTPResponse:
    """Make a session."""
    await _refuse_read_only(request)
    body = decoded(request.body, request.headers.get("content-type"), NewSession)
    validate_id("$.session_id", body.session_id, "leave it out to have one made")
    validate_id("$.user_id", body.user_id, "leave it out, or send your own stable name of the user")
    session_id = body.session_id or request.app.ctx.service.ports.entropy.hex(SESSION_ID_BYTES)
    profile = Profile(system=body.system, context=body.context, metadata=body.metadata)
    sessions: Sessions = await request.app.ctx.service.container.resolve(Sessions)
    try:
        view = await sessions.change_profile(
            session_id, body.user_id, request.ctx.correlation_id, lambda _: profile, create=True
        )
    except (SessionExists, SessionUnknown) as error:  # unknown is one that was deleted
        raise SessionExists(
            f"the id {session_id!r} is, or was, another session's: choose another, or leave it out to have one made",
            field="$.session_id",
        ) from error
    return json_response(_status(view, ()), {**NO_STORE, "Location": f"{PATH}/{session_id}"}, status=201)


@apidoc.route(History, "The session, and a page of its conversation")
@apidoc.parameter("limit", "How many turns at most.", type="integer", minimum=1, maximum=TURNS_MAX, default=TURNS_MAX)
@apidoc.parameter(
    "after",
    "Turns above which number, the lowest.",
    type="integer",
    minimum=0,
    maximum=limits.TURN_NUMBER_MAX,
    default=0,
)
@apidoc.parameter(
    "before",
    f"Turns below which number, the highest; `{END}` for the last ones. Goes without `after`.",
    type="string",
    pattern=f"^({END}|[0-9]{{1,10}})$",
)
@openapi.summary("Read a session and its conversation")
@openapi.description(
    "How the session stands, and a page of its turns, lowest number first: those above `after`, or the last ones below "
    "`before`; at most `limit`, fewer where they are long. `next_after` brings the turns that follow, `next_before` "
    "those that precede. Every acknowledged turn is here, also those of a session that is too old to be continued, and "
    "also while the service takes no new turns (MAINTENANCE) or Redis is away; then `updated_at`, `expires_at` and "
    "`state` count from the last turn or change of the profile, not from later connections."
)
async def read(request: Request, session_id: str) -> HTTPResponse:
    """Describe the session, and return a page of its turns."""
    validate_session_id(session_id)
    query = request.get_args(keep_blank_values=True)
    refuse_unknown(query, ("after", "before", "limit"))
    if "after" in query and "before" in query:
        raise InvalidRequest("after and before are both there: send one of them", field="before")
    limit = whole_number(query, "limit", default=TURNS_MAX, least=1, most=TURNS_MAX)
    after = whole_number(query, "after", default=0, least=0, most=limits.TURN_NUMBER_MAX)
    before = _before(query)
    service = request.app.ctx.service
    ports: Ports = service.ports
    sessions: Sessions = await service.container.resolve(Sessions)
    with _named_in_path(session_id):
        view = await sessions.describe(session_id, None, request.ctx.correlation_id, to_read=True)
    reading = Reading(ports.conversations, await service.container.resolve(StoreCalls), request.ctx.correlation_id)
    version = (await reading.head(session_id)).version  # may be ahead of the session after a crash
    if before is None:
        page = await reading.page_after(session_id, after, limit, version)
    else:
        page = await reading.page_before(session_id, before, limit, version)
    live = await (await service.container.resolve(LiveTurns)).running(session_id)
    return json_response(_history(_status(view, live), version, page), NO_STORE)


def _before(query: Any) -> int | None:
    if "before" not in query:
        return None
    if query["before"] == [END]:
        return limits.TURN_NUMBER_MAX
    return whole_number(query, "before", default=1, least=1, most=limits.TURN_NUMBER_MAX)


@apidoc.route(SessionStatus, "The session as it is now", takes=ProfilePatch, takes_as=MERGE_PATCH)
@openapi.summary("Change a session's profile")
@openapi.description(
    "The body is a JSON Merge Patch (RFC 7396) of `profile`: what is left out stays, null removes a field, or an entry "
    "of `context` and `metadata`; `pinned` is replaced whole. It counts as use of the session, and holds from the next "
    "turn on. 409 where others change it again and again at the same time."
)
async def change(request: Request, session_id: str) -> HTTPResponse:
    """Change the session's profile."""
    validate_session_id(session_id)
    await _refuse_read_only(request)
    patch = decoded(request.body, request.headers.get("content-type"), ProfilePatch, media_type=MERGE_PATCH)
    service = request.app.ctx.service
    sessions: Sessions = await service.container.resolve(Sessions)
    with _named_in_path(session_id):
        view = await sessions.change_profile(session_id, None, request.ctx.correlation_id, patch.applied_to)
    live = await (await service.container.resolve(LiveTurns)).running(session_id)
    return json_response(_status(view, live), NO_STORE)


@apidoc.route(None, "The session is gone", status=204)
@openapi.summary("Delete a session")
@openapi.description(
    "Its running turns are cancelled; its turns, its profile and what memory keeps of them are deleted for good. Only "
    "its id is kept, which no session gets again."
)
async def delete(request: Request, session_id: str) -> HTTPResponse:
    """Delete the session."""
    validate_session_id(session_id)
    await _refuse_read_only(request)
    container = request.app.ctx.service.container
    sessions: Sessions = await container.resolve(Sessions)
    turns: LiveTurns = await container.resolve(LiveTurns)
    with _named_in_path(session_id):
        await sessions.describe(session_id, None, request.ctx.correlation_id)  # before anything is cancelled
        for each in await turns.running(session_id):
            with suppress(TurnUnknown):  # it ended meanwhile
                await turns.cancel(session_id, each.turn_id)
        async with sessions.exclusive(session_id):  # when the cancelled have ended
            await sessions.delete(session_id, None, request.ctx.correlation_id)
        turns.deleted(session_id)
    return HTTPResponse(status=204, headers=NO_STORE)


async def _refuse_read_only(request: Request) -> None:
    degradation: Degradation = await request.app.ctx.service.container.resolve(Degradation)
    if degradation.read_only:
        raise Maintenance(
            "the service is read only for now: sessions can be read and exported, not made, changed or deleted",
            retry_after_seconds=limits.MAINTENANCE_RETRY_SECONDS,
        )


@contextmanager
def _named_in_path(session_id: str) -> Iterator[None]:
    """Let an unknown session be told as one that the path names."""
    try:
        yield
    except SessionUnknown as error:
        raise unknown(session_id) from error


def _status(view: SessionView, live: tuple[LiveTurnView, ...]) -> SessionStatus:
    return SessionStatus(
        session_id=view.session_id,
        state=view.state,
        version=view.turns,
        messages=view.messages,
        tokens=view.tokens,
        bytes=view.bytes,
        created_at=view.created_at,
        updated_at=view.updated_at,
        expires_at=view.expires_at,
        profile=view.profile,
        live=live,
    )


def _history(status: SessionStatus, version: int, page: Page) -> History:
    fields = structs.asdict(status) | {"version": version}
    return History(**fields, turns=page.turns, next_after=page.next_after, next_before=page.next_before)
