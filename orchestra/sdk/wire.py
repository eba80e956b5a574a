"""What both clients share of how bytes are sent: addresses, headers, bounds, and the failures of connections."""

import ssl
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

NOT_TLS = "; is it http?"
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
    wrong = InvalidRequest(f"{url!r} is no address of a service: give one such as {URL}", field="url")
    if not isinstance(url, str):
        raise wrong
    try:
        parts = urlsplit(url)
        port = parts.port  # a ValueError where it is none
        httpx2.URL(url)
    except (ValueError, httpx2.InvalidURL) as error:
        raise wrong from error
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0 or parts.query or parts.fragment:
        raise wrong
    return url.rstrip("/")


def socket_url(url: str, client_id: str, session_id: str) -> str:
    """Return where the session's WebSocket is."""
    return f"ws{url.removeprefix('http')}/chat/ws/{client_id}/{session_id}"


class Entrance:
    """Whether a conversation is entered, and that one at a time iterates over it."""

    def __init__(self) -> None:
        self._is_entered = False
        self._was_entered = False
        self._is_iterated = False

    def enter(self) -> None:
        """Take that the conversation is entered.

        Raises
        ------
        InvalidRequest
            It was before.
        """
        if self._was_entered:
            raise InvalidRequest("a conversation is entered once: `connect` again for another")
        self._is_entered = self._was_entered = True

    def leave(self) -> None:
        """Take that the conversation is left."""
        self._is_entered = False

    def check(self) -> None:
        """See that the conversation is entered.

        Raises
        ------
        InvalidRequest
            It is not yet, or not any more.
        """
        if not self._is_entered:
            cure = "it was left: `connect` again" if self._was_entered else "enter it first, by `with` or `async with`"
            raise InvalidRequest(f"the conversation has no connection; {cure}")

    @contextmanager
    def iterated(self) -> Iterator[None]:
        """Iterate, alone.

        Raises
        ------
        InvalidRequest
            Somebody does, or the conversation is not entered.
        """
        self.check()
        if self._is_iterated:
            raise InvalidRequest(
                "somebody iterates over the conversation, or waits in `say`: one at a time does; `send` meanwhile, or "
                "open a conversation for each"
            )
        self._is_iterated = True
        try:
            yield
        finally:
            self._is_iterated = False


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
        raise _unreachable(error) from error
    except (OSError, EOFError, UnicodeError, ConnectionClosed) as error:
        # a TimeoutError is an OSError; a name that is none cannot be encoded
        raise _unreachable(error) from error


def _unreachable(error: Exception) -> Unreachable:
    hint = NOT_TLS if _has_no_tls(error) else ""
    return Unreachable(f"no service can be reached: {str(error) or type(error).__name__}{hint}")


def _has_no_tls(error: BaseException | None) -> bool:
    """Whether what answers does not speak TLS."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error is not None and not isinstance(error, ssl.SSLCertVerificationError)
