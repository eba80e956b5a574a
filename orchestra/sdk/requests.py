"""What is sent for each thing that a client asks over HTTP, and what its answer says. Nothing here sends."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar
from urllib.parse import urlencode

import msgspec
from msgspec import UNSET, Struct, UnsetType

from orchestra import limits
from orchestra.errors import InvalidRequest, PayloadTooLarge
from orchestra.model import ChatReply, Profile
from orchestra.sdk.failures import Answer, UnexpectedAnswer

CHAT = "/chat/v2/chat"
SESSIONS = "/chat/v2/sessions"

Format = Literal["json", "markdown"]
T = TypeVar("T")


class ProfileChange(Struct, frozen=True, omit_defaults=True):
    """What to change in a session's profile, as a JSON Merge Patch (RFC 7396): what is not named stays.

    Parameters
    ----------
    system : str or None
        None removes it.
    pinned : sequence of int
        All of them, in place of those before.
    context, metadata : mapping of str to (str or None)
        Entries to set; None removes one.
    """

    system: str | UnsetType | None = UNSET
    pinned: tuple[int, ...] | UnsetType = UNSET
    context: Mapping[str, str | None] | UnsetType = UNSET
    metadata: Mapping[str, str | None] | UnsetType = UNSET


@dataclass(frozen=True)
class Ask:
    """One HTTP request: its target is a path, with a query where it has one."""

    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


def chat(message: str, session_id: str | None, user_id: str | None, key: str, *, stream: bool) -> Ask:
    """Say `message`; sent again under the same `key`, it is the same turn."""
    said = {"message": checked_message(message), "session_id": session_id, "user_id": user_id}
    body: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
    headers = {"Idempotency-Key": key}
    if stream:
        body["stream"] = True
        headers["Accept"] = "text/event-stream, application/json"
    return _with_body("POST", CHAT, body, headers)


def resume(session_id: str, turn_id: str, seq: int) -> Ask:
    """Let a turn's events go on behind number `seq`."""
    headers = {"Accept": "text/event-stream"}
    if seq:
        headers["Last-Event-ID"] = f"{session_id}/{turn_id}/{seq}"
    return Ask("GET", f"{_turn(session_id, turn_id)}/events", headers)


def cancel(session_id: str, turn_id: str) -> Ask:
    """Stop a turn."""
    return Ask("DELETE", _turn(session_id, turn_id))


def create(session_id: str, user_id: str | None, profile: Profile) -> Ask:
    """Make a session of that id."""
    named = {"session_id": session_id, **({"user_id": user_id} if user_id else {})}
    said = {name: value for name, value in msgspec.structs.asdict(profile).items() if value}
    return _with_body("POST", SESSIONS, named | said)


def read(session_id: str, *, after: int | None, before: int | str | None, limit: int | None) -> Ask:
    """Describe a session, and give a page of its turns."""
    query = {"after": after, "before": before, "limit": limit}
    given = urlencode({name: value for name, value in query.items() if value is not None})
    return Ask("GET", _session(session_id) + (f"?{given}" if given else ""))


def change(session_id: str, change: ProfileChange) -> Ask:
    """Change a session's profile."""
    return _with_body("PATCH", _session(session_id), change)


def delete(session_id: str) -> Ask:
    """Delete a session."""
    return Ask("DELETE", _session(session_id))


def export(session_id: str, document: Format) -> Ask:
    """Give the whole conversation as a file."""
    return Ask("GET", f"{_session(session_id)}/export?{urlencode({'format': document})}")


def reply_of(answer: Answer) -> ChatReply:
    """Return the reply that `answer` is."""
    return decoded(answer, ChatReply)


def decoded(answer: Answer, into: type[T]) -> T:
    """Return the body of `answer` as a value of type `into`.

    Raises
    ------
    UnexpectedAnswer
        It is none.
    """
    try:
        return msgspec.json.decode(answer.body, type=into)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnexpectedAnswer(
            f"the answer is no {into.__name__}: check that the URL is that of an AI Orchestra ({error})", status=502
        ) from error


def checked_id(field: str, value: str) -> str:
    """Return `value` where it may name a session, a user or a client.

    Raises
    ------
    InvalidRequest
    """
    if not isinstance(value, str) or not limits.is_id(value):
        raise InvalidRequest(
            f"{field} must be 1 to {limits.ID_CHARS_MAX} letters, digits, '.', '_', ':' or '-', starting with a letter "
            "or digit",
            field=field,
        )
    return value


def checked_message(message: str) -> str:
    """Return `message` where it may be said.

    Raises
    ------
    InvalidRequest
        It is no text, or one that cannot be stored.
    PayloadTooLarge
        It is over `limits.MESSAGE_CHARS_MAX`.
    """
    if not isinstance(message, str):
        raise InvalidRequest(f"message is {type(message).__name__}: give a str", field="message")
    if (fault := limits.text_fault(message)) is not None:
        raise InvalidRequest(f"message cannot be sent: {fault}", field="message")
    if len(message) > limits.MESSAGE_CHARS_MAX:
        raise PayloadTooLarge(
            f"message has {len(message)} characters, at most {limits.MESSAGE_CHARS_MAX} are allowed: shorten it",
            field="message",
        )
    return message


def _session(session_id: str) -> str:
    return f"{SESSIONS}/{session_id}"


def _turn(session_id: str, turn_id: str) -> str:
    return f"{_session(session_id)}/turns/{turn_id}"


def _with_body(method: str, target: str, body: Any, headers: Mapping[str, str] | None = None) -> Ask:
    try:
        content = msgspec.json.encode(body)
    except (TypeError, ValueError) as error:  # a UnicodeEncodeError is a ValueError
        raise InvalidRequest(f"this cannot be sent as JSON ({error}): give valid text and plain values") from error
    return Ask(method, target, {"Content-Type": "application/json", **(headers or {})}, content)
