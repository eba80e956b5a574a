"""What both clients share of how bytes are sent: addresses, headers, bounds, and the failures of connections."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx2
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from orchestra import __version__, limits
from orchestra.errors import DeadlineExceeded, InvalidRequest
from orchestra.model import ChatReply
from orchestra.sdk.failures import Answer, Unreachable, error_of
from orchestra.sdk.flows import Open, Piece, Send
from orchestra.sdk.retries import Retries
from orchestra.sdk.system import System

URL = "http://127.0.0.1:8000"
TIMEOUT_SECONDS = 120.0
RECONNECT_SECONDS = 300.0
RETRIES = Retries()
SYSTEM = System()

OPEN_SECONDS_MAX = 10.0
QUIET_SECONDS_MAX = 45.0
"""A stream says something every 15 s: one that is silent for so long is lost."""
CANCEL_SECONDS_MAX = 3.0
MESSAGE_BYTES_MAX = 8 * limits.REPLY_CHARS_MAX
"""Of a frame of the service's, the longest of which holds a whole reply, each letter escaped at worst."""

AGENT = f"ai-orchestra-sdk/{__version__}"
HEADERS = {"User-Agent": AGENT, "Accept": "application/json"}
SOCKET_OPTIONS: Any = {
    "user_agent_header": AGENT,
    "max_size": MESSAGE_BYTES_MAX,
    "open_timeout": OPEN_SECONDS_MAX,
    "close_timeout": 2.0,
}


def checked_url(url: str) -> str:
    """Return `url` without a trailing slash.

    Raises
    ------
    InvalidRequest
        It is not that of a web server.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.netloc or parts.query or parts.fragment:
        raise InvalidRequest(f"{url!r} is no address of a service: give one such as {URL}", field="url")
    return url.rstrip("/")


def socket_url(url: str, client_id: str, session_id: str) -> str:
    """Return where the session's WebSocket is."""
    return f"ws{url.removeprefix('http')}/chat/ws/{client_id}/{session_id}"


def known_id(session_id: str | None) -> str:
    """Return the session's id.

    Raises
    ------
    InvalidRequest
        The session has none yet.
    """
    if session_id is None:
        raise InvalidRequest("the session begins with its first message: say something, or name one that exists")
    return session_id


def ended(reply: ChatReply | None) -> ChatReply:
    """Return the reply of a stream.

    Raises
    ------
    InvalidRequest
        It is not there yet.
    """
    if reply is None:
        raise InvalidRequest("the reply is there when the stream has ended: iterate over it first")
    return reply


def timeout(step: Send | Open) -> httpx2.Timeout:
    """Return how long each part of sending `step` may take: a stream has to say something now and then."""
    read = min(step.seconds, QUIET_SECONDS_MAX) if isinstance(step, Open) else step.seconds
    return httpx2.Timeout(step.seconds, connect=min(step.seconds, OPEN_SECONDS_MAX), read=read)


def event_source(response: httpx2.Response) -> httpx2.EventSource:
    """Return the events of a streamed response."""
    return httpx2.EventSource(response, max_event_size=MESSAGE_BYTES_MAX)


def piece_of(event: httpx2.ServerSentEvent | None) -> Piece | None:
    """Return an event of a stream, or None at its end."""
    return None if event is None else Piece(event.event, event.data)


def close_of(closed: ConnectionClosed) -> tuple[int, str]:
    """Return code and reason with which the other side closed; 1006 where it did not."""
    return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd is not None else (1006, "the connection broke off")


@contextmanager
def translated(seconds: float) -> Iterator[None]:
    """Raise what can go wrong with a connection as errors of ours.

    Raises
    ------
    DeadlineExceeded
        It was made, and nothing came for `seconds`.
    Unreachable
        It could not be made, or broke off.
    OrchestraError
        The service refuses the WebSocket.
    """
    try:
        yield
    except InvalidStatus as refused:
        response = refused.response
        headers = {name.lower(): value for name, value in response.headers.raw_items()}
        error = error_of(Answer(response.status_code, headers, bytes(response.body or b"")))
        raise error or Unreachable("the address speaks no WebSocket: check the URL") from refused
    except (httpx2.ReadTimeout, httpx2.WriteTimeout) as error:
        raise DeadlineExceeded(f"nothing came for {seconds:.3g} s") from error
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, InvalidHandshake, InvalidURI) as error:
        raise Unreachable(f"no service can be reached: {error or type(error).__name__}") from error
    except (OSError, EOFError, ConnectionClosed) as error:  # TimeoutError is an OSError
        raise Unreachable(f"no service can be reached: {error or type(error).__name__}") from error
