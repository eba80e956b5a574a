"""The AsyncAPI document of the WebSocket, at /docs/asyncapi.json: read off the very structs that the code uses.

Source: AsyncAPI 3.0.0. What it calls `receive` is what the service receives.
"""

from functools import cache
from typing import Any, get_args

import msgspec
from msgspec import Struct
from sanic import HTTPResponse, Request, Sanic
from sanic_ext import openapi

from orchestra import __version__, limits
from orchestra.frames import (
    Accepted,
    Cancel,
    ClientFrame,
    DeltaFrame,
    Done,
    ErrorFrame,
    Goodbye,
    LevelFrame,
    Ping,
    Pong,
    Ready,
    Resume,
    SendMessage,
    ServerFrame,
    Started,
)
from orchestra.gateway.routes import add_route
from orchestra.gateway.wire import JSON_TYPE
from orchestra.model import ChatReply, LiveTurnView, Turn, Usage

PATH = "/docs/asyncapi.json"
ADDRESS = "/chat/ws/{client_id}/{session_id}"
CHANNEL = "session"

REPLIES: dict[type[Struct], tuple[type[Struct], ...]] = {
    SendMessage: (Accepted, ErrorFrame),
    Cancel: (ErrorFrame,),
    Resume: (Started, DeltaFrame, Done, ErrorFrame),
    Ping: (Pong,),
}
"""What each frame of a client is answered with."""

_TURN = "5c0ffee05c0ffee05c0ffee05c0ffee0"
_REPLY = ChatReply(_TURN, "holiday", "req-1", "Fog, then sun.", "unified", "gpt", "stop", Usage(9, 5))
_STORED = Turn(
    "7ea7ea7ea7ea7ea7ea7ea7ea7ea7ea70", "holiday", 1, "req-0", "Hello", "Hi!", "unified", "gpt", 1767225600.0
)

EXAMPLES: tuple[Struct, ...] = (
    SendMessage("m-1", "What is the weather on the lake?"),
    SendMessage("m-2", "And tomorrow?", user_id="anna"),
    Cancel(_TURN),
    Resume(_TURN, after=2),
    Ping("p-1"),
    Ready(
        1, "0f1e2d3c4b5a6978", "tab-1", "holiday", 1, "LIMITED", ("analytics", "collaboration"), (_STORED,),
        (LiveTurnView(_TURN, 2),), 900.0,
    ),
    Accepted("m-1", _TURN),
    Started("holiday", _TURN, 1, "What is the weather on the lake?", "tab-1"),
    DeltaFrame(_TURN, 2, "Fog, "),
    Done(_TURN, 4, _REPLY),
    ErrorFrame("turn-cancelled", "Turn cancelled", 409, "a client stopped the turn", False, turn_id=_TURN, seq=3),
    ErrorFrame("overloaded", "Overloaded", 503, "8 of your messages wait", True, id="m-9", retry_after_seconds=1.0),
    LevelFrame("NORMAL", ()),
    Pong("p-1"),
    Goodbye("the instance is shutting down", 2.5),
)  # fmt: skip
"""At least one of every frame."""

_DESCRIPTION = f"""\
Frames are JSON objects in text messages of at most {limits.REQUEST_BYTES_MAX} bytes, told apart by `type`. Connect,
wait for `ready` (what you send before it waits its turn, in order), then send `message`s, of which
{limits.TURNS_PER_CONNECTION_MAX} of one connection may wait for their answers at once. Everybody in a session sees its
turns, each once and in order. While the level switches `collaboration` off, you see of the turns that begin your own
and those that you `resume`; others stay unseen to their end, and are in `GET /chat/v2/sessions/{{id}}`. A wrong frame
is answered with an `error` frame.
More than {limits.FRAMES_BURST_MAX} frames at once, or {limits.FRAMES_PER_SECOND_MAX:g} a second for longer, close the
connection.

So do fragments and control frames, and a message that takes longer to arrive than a request may.

Close codes: 1001 idle; 1003 a binary message; 1007 not UTF-8; 1008 a flood, or too slow; 1009 too large a message; 1011
a defect; 1012 the instance is going: connect again; 1013 busy, or the session cannot be had now. After 1006, 1008,
1011, 1012 and 1013 connect again, and `resume` each turn after the last `seq` you saw; but not where the last frame
before the close was an `error` without an `id` and a `turn_id` that is not `retryable`, such as of a deleted session:
it would be the same again. Refused before acceptance, with a problem (RFC 9457): a wrong id (400), a web page of
another origin (403), too many connections (503, with Retry-After)."""


def add_routes(app: Sanic[Any, Any]) -> None:
    """Add the document to `app`."""
    add_route(app, asyncapi, PATH)


@openapi.summary("The WebSocket's frames, as AsyncAPI 3.0 describes them")
async def asyncapi(_: Request) -> HTTPResponse:
    """Return the document."""
    return HTTPResponse(_encoded(), content_type=JSON_TYPE)


@cache
def _encoded() -> bytes:
    return msgspec.json.format(msgspec.json.encode(document()), indent=2)


def document() -> dict[str, Any]:
    """Return the document."""
    clients, servers = get_args(ClientFrame), get_args(ServerFrame)
    _, schemas = msgspec.json.schema_components((*clients, *servers), ref_template="#/components/schemas/{name}")
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "AI Orchestra: conversations", "version": __version__, "description": _DESCRIPTION},
        "defaultContentType": JSON_TYPE,
        "channels": {
            CHANNEL: {
                "address": ADDRESS,
                "description": "One client in one session, which is created where there is none.",
                "parameters": {
                    "client_id": {"description": f"The client's own name: at most {limits.ID_CHARS_MAX} characters."},
                    "session_id": {"description": "The session, as a reply named it, or of the client's choice."},
                },
                "messages": {_tag(each): {"$ref": f"#/components/messages/{_tag(each)}"} for each in clients + servers},
                "bindings": {"ws": {"method": "GET"}},
            }
        },
        "operations": {f"receive_{_tag(each)}": _received(each) for each in clients}
        | {f"send_{_tag(each)}": _operation("send", each) for each in servers},
        "components": {
            "messages": {_tag(each): _message(each) for each in clients + servers},
            "schemas": {name: _short(schema) for name, schema in schemas.items()},
        },
    }


def _tag(frame: type[Struct]) -> str:
    return str(frame.__struct_config__.tag)


def _operation(action: str, frame: type[Struct]) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{CHANNEL}"},
        "summary": _summary(frame),
        "messages": [_in_channel(frame)],
    }


def _received(frame: type[Struct]) -> dict[str, Any]:
    replies = [_in_channel(each) for each in REPLIES[frame]]
    return _operation("receive", frame) | {"reply": {"channel": {"$ref": f"#/channels/{CHANNEL}"}, "messages": replies}}


def _in_channel(frame: type[Struct]) -> dict[str, str]:
    return {"$ref": f"#/channels/{CHANNEL}/messages/{_tag(frame)}"}


def _message(frame: type[Struct]) -> dict[str, Any]:
    return {
        "name": _tag(frame),
        "title": frame.__name__,
        "summary": _summary(frame),
        "payload": {"$ref": f"#/components/schemas/{frame.__name__}"},
        "examples": [{"payload": msgspec.to_builtins(each)} for each in EXAMPLES if type(each) is frame],
    }


def _summary(frame: type[Struct]) -> str:
    return (frame.__doc__ or "").partition("\n")[0]


def _short(schema: dict[str, Any]) -> dict[str, Any]:
    """Leave of a docstring what a reader of the document wants: all but its part on parameters."""
    described = (
        {"description": schema["description"].partition("\n\nParameters\n")[0]} if "description" in schema else {}
    )
    return schema | described
