"""What a client of a session and the service say to each other, frame by frame: JSON objects told apart by `type`.

A turn is a log of frames, numbered from 1 by `seq`: `started`, then `delta`s, then one `done` or `error`. The pair
(turn_id, seq) is what a client that lost its connection resumes after, on any instance. A turn that an instance took
with it when it died, and that its client sent again under the same id, goes on in the same log with another
`started`, under a higher number that need not be the next: whatever text came before it is void. All other frames
concern the connection and have no `seq`.

Server-sent events are the same frames: `event` is the type, `id` is ``<session_id>/<turn_id>/<seq>``, `data` the rest.
"""

from typing import Annotated

from msgspec import Meta, Struct

from orchestra.model import ChatReply, LiveTurnView, Turn

PROTOCOL = 1
SEQ_MAX = 2**53 - 1
"""The largest whole number that every client's JSON has (RFC 8259, section 6)."""


class SendMessage(Struct, frozen=True, tag="message", forbid_unknown_fields=True):
    """Say something in the session.

    Parameters
    ----------
    id : str
        The client's own id of the message, new for each. The same id again is the same turn: it is joined while it
        runs, and answered from the conversation once it is durable; nothing runs twice.
    message : str
    user_id : str or None
        As in `model.ChatRequest`.
    """

    id: str
    message: str
    user_id: str | None = None


class Cancel(Struct, frozen=True, tag="cancel", forbid_unknown_fields=True):
    """Stop the turn: its provider's connection closes, and nothing of it is kept."""

    turn_id: str


class Resume(Struct, frozen=True, tag="resume", forbid_unknown_fields=True):
    """Send what the turn's log has behind number `after`, and what will come."""

    turn_id: str
    after: Annotated[int, Meta(ge=0, le=SEQ_MAX)] = 0


class Ping(Struct, frozen=True, tag="ping", forbid_unknown_fields=True):
    """Ask for a `pong` of the same id, which also counts as activity."""

    id: str | None = None


ClientFrame = SendMessage | Cancel | Resume | Ping


class Ready(Struct, frozen=True, tag="ready"):
    """The first frame: the connection stands, and the session is created or restored.

    Parameters
    ----------
    version : int
        Number of the session's last turn, 0 in a new one.
    history : tuple of Turn
        The most recent turns, lowest number first; earlier ones by ``GET /chat/v2/sessions/{id}``.
    live : tuple of LiveTurnView
        Turns that run now: `resume` each to see it.
    idle_seconds_max : float
        The connection is closed (1001) after so long without a frame from the client.
    """

    protocol: int
    connection_id: str
    client_id: str
    session_id: str
    version: int
    level: str
    off: tuple[str, ...]
    history: tuple[Turn, ...]
    live: tuple[LiveTurnView, ...]
    idle_seconds_max: float


class Accepted(Struct, frozen=True, tag="accepted"):
    """Acknowledges the client's message `id`: it is turn `turn_id`.

    The turn's log follows from its beginning; where this connection was sent a part of it already, as for an id that
    it repeats, only what comes after that follows.
    """

    id: str
    turn_id: str


class Started(Struct, frozen=True, tag="started"):
    """A turn begins: somebody in the session said `message`. Text that came before of the same turn is void.

    While the level switches `collaboration` off, turns that others begin are not shown, neither this nor what follows
    it, unless they are resumed. They are in the history.
    """

    session_id: str
    turn_id: str
    seq: int
    message: str
    client_id: str = ""


class DeltaFrame(Struct, frozen=True, tag="delta"):
    """A piece of the answer's text, in order."""

    turn_id: str
    seq: int
    text: str


class Done(Struct, frozen=True, tag="done"):
    """The turn is durable, and this is the whole reply: the last frame of its log."""

    turn_id: str
    seq: int
    reply: ChatReply


class ErrorFrame(Struct, frozen=True, tag="error", omit_defaults=True):
    """Something went wrong. With a `seq` it ends the log of `turn_id`; without, it answers the frame `id`, if any.

    `kind`, `title`, `status` and `detail` are those of the problem that HTTP would answer; `retryable` says whether
    sending the same again may help, not before `retry_after_seconds`.
    """

    kind: str
    title: str
    status: int
    detail: str
    retryable: bool
    turn_id: str | None = None
    seq: int | None = None
    id: str | None = None
    field: str | None = None
    retry_after_seconds: float | None = None
    correlation_id: str | None = None


class LevelFrame(Struct, frozen=True, tag="level"):
    """The service's degradation level, now, and the features that it switches off."""

    level: str
    off: tuple[str, ...]


class Pong(Struct, frozen=True, tag="pong"):
    """Answers the ping of that id."""

    id: str | None


class Goodbye(Struct, frozen=True, tag="goodbye"):
    """The instance is going: connect again after so many seconds; another one, or this one restarted, will answer."""

    reason: str
    reconnect_after_seconds: float


LogFrame = Started | DeltaFrame | Done | ErrorFrame
"""What the log of a turn consists of."""

ServerFrame = Ready | Accepted | Started | DeltaFrame | Done | ErrorFrame | LevelFrame | Pong | Goodbye
