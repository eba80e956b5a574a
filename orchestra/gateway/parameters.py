"""What a request says outside its body, in its query and its headers: each fault with its place and its cure."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from sanic.exceptions import InvalidHeader
from sanic.headers import parse_accept

from orchestra import limits
from orchestra.chat.turnlog import END_SEQ
from orchestra.errors import InvalidRequest

TIMEOUT_HEADER = "X-Request-Timeout"
TIMEOUT_SECONDS_MAX = 3600.0
KEY_HEADER = "Idempotency-Key"
REPLAYED_HEADER = "Idempotency-Replayed"
PLACE_HEADER = "Last-Event-ID"
PREFER_HEADER = "Prefer"
NO_RESUME = "no-resume"
EVENT_STREAM = "text/event-stream"
SHOWN_CHARS_MAX = 40
LONE_KEY_CHARS_MIN = 16

_WHOLE = re.compile(r"[0-9]{1,10}")
_DECIMAL = re.compile(r"[0-9]{1,10}(\.[0-9]{1,10})?")


class Headers(Protocol):
    """The one method of a multidict that is asked."""

    def getall(self, key: str, default: list[str]) -> list[str]:
        """Return every value of the header, or `default`."""
        ...


def refuse_unknown(query: Mapping[str, Sequence[str]], known: Collection[str]) -> None:
    """Refuse a query parameter that nobody reads, or that is there twice.

    Raises
    ------
    InvalidRequest
    """
    for name, values in query.items():
        if name not in known:
            raise InvalidRequest(
                f"there is no parameter {shown(name)}: use {' and '.join(known)}, or leave it out",
                field=name[:SHOWN_CHARS_MAX],
            )
        if len(values) > 1:
            raise InvalidRequest(f"{name} is there {len(values)} times: send it once", field=name)


def whole_number(query: Mapping[str, Sequence[str]], name: str, *, default: int, least: int, most: int) -> int:
    """Return the query parameter `name`.

    Raises
    ------
    InvalidRequest
        It is no whole number from `least` to `most`.
    """
    text = query[name][0] if name in query else str(default)
    if _WHOLE.fullmatch(text) and least <= int(text) <= most:
        return int(text)
    raise InvalidRequest(
        f"{name} is {shown(text)}: send a whole number from {least} to {most}, or leave it out", field=name
    )


def choice(query: Mapping[str, Sequence[str]], name: str, among: Collection[str]) -> str | None:
    """Return the query parameter `name`, or None where it is not there.

    Raises
    ------
    InvalidRequest
        It is none of `among`.
    """
    if name not in query or query[name][0] in among:
        return query[name][0] if name in query else None
    raise InvalidRequest(f"{name} is {shown(query[name][0])}: send {' or '.join(among)}, or leave it out", field=name)


def timeout_seconds(headers: Headers) -> float | None:
    """Return how long the caller waits for its answer, in seconds, or None where it does not say.

    Raises
    ------
    InvalidRequest
        `X-Request-Timeout` is no decimal above 0 and up to `TIMEOUT_SECONDS_MAX`.
    """
    values = headers.getall(TIMEOUT_HEADER, [])
    if not values:
        return None
    text = ", ".join(values)
    if _DECIMAL.fullmatch(text) and 0 < float(text) <= TIMEOUT_SECONDS_MAX:
        return float(text)
    raise InvalidRequest(
        f"{TIMEOUT_HEADER} is {shown(text)}: send seconds above 0 and up to {TIMEOUT_SECONDS_MAX:g}, such as 2.5, "
        "or leave it out",
        field=TIMEOUT_HEADER,
    )


class Place(NamedTuple):
    """A place in a turn's log, behind its entry `seq`: the `id` of a server-sent event."""

    session_id: str
    turn_id: str
    seq: int

    def __str__(self) -> str:
        return f"{self.session_id}/{self.turn_id}/{self.seq}"


def resumed_place(headers: Headers) -> Place | None:
    """Return the place that a client lost its stream at, or None where it does not say.

    Raises
    ------
    InvalidRequest
        `Last-Event-ID` is not the id of an event.
    """
    text = ", ".join(headers.getall(PLACE_HEADER, []))
    if not text:  # what an `EventSource` without an event has seen
        return None
    session_id, _, rest = text.partition("/")
    turn_id, _, seq = rest.partition("/")
    if limits.is_id(session_id) and limits.is_id(turn_id) and _WHOLE.fullmatch(seq) and int(seq) <= END_SEQ:
        return Place(session_id, turn_id, int(seq))
    raise InvalidRequest(
        f"{PLACE_HEADER} is {shown(text)}: send the id of the last event that came, or leave it out",
        field=PLACE_HEADER,
    )


def idempotency_key(headers: Headers, *, alone: bool) -> str | None:
    """Return the client's own name of the turn, or None where it gives none; it may stand in quotes.

    `alone` says that no session and no user is named: then all clients' keys are of one space, and one that another may
    choose, too, would give its turn away.

    Source: draft-ietf-httpapi-idempotency-key-header, in which it is a string of RFC 9651 and so in quotes, which most
    clients leave out.

    Raises
    ------
    InvalidRequest
        `Idempotency-Key` is no id, or too short to stand alone.
    """
    values = headers.getall(KEY_HEADER, [])
    if not values:
        return None
    text = ", ".join(values)
    key = text[1:-1] if len(text) >= 2 and text[0] == text[-1] == '"' else text
    if limits.is_id(key):
        if alone and len(key) < LONE_KEY_CHARS_MIN:
            raise InvalidRequest(
                f"{KEY_HEADER} is {shown(text)}, with which others may come, too: where neither a session nor a user "
                f"is named, send at least {LONE_KEY_CHARS_MIN} characters, such as a UUID",
                field=KEY_HEADER,
            )
        return key
    raise InvalidRequest(
        f"{KEY_HEADER} is {shown(text)}: send 1 to {limits.ID_CHARS_MAX} letters, digits, '.', '_', ':' or '-', "
        "starting with a letter or digit, a new one for each turn, or leave it out",
        field=KEY_HEADER,
    )


def can_resume(headers: Headers) -> bool:
    """Tell whether the client may come back to a stream that it lost: unless it says ``Prefer: no-resume``.

    Source: RFC 7240, of which the preference is one of our own.
    """
    preferences = ",".join(headers.getall(PREFER_HEADER, [])).lower().split(",")
    return all(each.partition(";")[0].strip() != NO_RESUME for each in preferences)


def wanted_type(headers: Headers, *types: str, by_name: bool = False) -> str | None:
    """Return which of the media `types` the caller wants most, the first where it is all the same to it.

    None where it wants none of them; `by_name`, ranges such as ``*/*`` want none. Source: RFC 9110, 12.5.1.

    Raises
    ------
    InvalidRequest
        `Accept` cannot be read.
    """
    text = ", ".join(headers.getall("accept", [])).lower()
    try:
        wanted = parse_accept(text).match(*types, accept_wildcards=not by_name)
    except InvalidHeader as error:
        raise InvalidRequest(
            f"Accept is no list of media types: send {' or '.join(types)}, or leave it out", field="Accept"
        ) from error
    return wanted.mime if wanted.mime and wanted.header is not None and wanted.header.q > 0 else None


def wants_events(headers: Headers) -> bool:
    """Tell whether the caller asks for server-sent events, by name, and wants JSON no more than them."""
    return wanted_type(headers, EVENT_STREAM, "application/json", by_name=True) == EVENT_STREAM


def shown(value: object) -> str:
    """Write what a client sent, shortened, for a message to it."""
    text = value if isinstance(value, str) else str(value)
    return repr(text if len(text) <= SHOWN_CHARS_MAX else text[:SHOWN_CHARS_MAX] + "...")
