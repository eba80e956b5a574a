"""What a request says outside its body, in its query and its headers: each fault with its place and its cure."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from orchestra.errors import InvalidRequest

TIMEOUT_HEADER = "X-Request-Timeout"
TIMEOUT_SECONDS_MAX = 3600.0
EVENT_STREAM = "text/event-stream"
SHOWN_CHARS_MAX = 40

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
                f"there is no parameter {_shown(name)}: use {' and '.join(known)}, or leave it out",
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
        f"{name} is {_shown(text)}: send a whole number from {least} to {most}, or leave it out", field=name
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
    raise InvalidRequest(f"{name} is {_shown(query[name][0])}: send {' or '.join(among)}, or leave it out", field=name)


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
        f"{TIMEOUT_HEADER} is {_shown(text)}: send seconds above 0 and up to {TIMEOUT_SECONDS_MAX:g}, such as 2.5, "
        "or leave it out",
        field=TIMEOUT_HEADER,
    )


def wants_events(headers: Headers) -> bool:
    """Tell whether the caller asks for server-sent events by name (RFC 9110, 12.5.1); ``*/*`` does not."""
    ranges = ",".join(headers.getall("accept", [])).lower().split(",")
    return any(each.partition(";")[0].strip() == EVENT_STREAM for each in ranges)


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN_CHARS_MAX else text[:SHOWN_CHARS_MAX] + "...")
