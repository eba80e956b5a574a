"""Server-sent events, parsed incrementally from bytes as they arrive."""

from typing import NamedTuple

from orchestra.errors import ProviderFailed

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class ServerSentEvent(NamedTuple):
    """One event: its name (``message`` where the stream gives none) and its data lines, joined by newlines."""

    name: str
    data: str


class EventStreamParser:
    """Parses ``text/event-stream`` however the network cuts it: within a line, a CRLF or a character.

    Fields other than `event` and `data` are ignored; an event that no empty line ends is discarded, as the standard
    asks. Source: WHATWG HTML, section 9.2.6 "Interpreting an event stream".

    Parameters
    ----------
    event_bytes_max : int
        Bound of one line, and of one event's data, in bytes: a server that never ends either cannot fill the memory.
    """

    def __init__(self, *, event_bytes_max: int) -> None:
        self._event_bytes_max = event_bytes_max
        self._pending = bytearray()  # the line that has not ended yet
        self._after_cr = False  # an LF that comes next belongs to a CR already taken as the line's end
        self._at_start = True
        self._name = ""
        self._data: list[bytes] = []
        self._data_bytes = 0

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """Take the next bytes and return the events that they complete.

        Raises
        ------
        ProviderFailed
            A line or an event is over its bound.
        """
        if self._after_cr and chunk:
            self._after_cr = False
            chunk = chunk.removeprefix(b"\n")
        if not chunk:
            return []
        self._after_cr = chunk.endswith(b"\r")
        if b"\n" not in chunk and b"\r" not in chunk:  # nothing ends: append only, so that a long line costs O(n)
            self._keep(chunk)
            return []
        lines = chunk.splitlines()
        rest = b"" if chunk.endswith((b"\n", b"\r")) else lines.pop()
        lines[0] = bytes(self._pending) + lines[0]
        self._pending.clear()
        events = [event for line in lines if (event := self._take(line)) is not None]
        self._keep(rest)
        return events

    def _keep(self, piece: bytes) -> None:
        self._pending += piece
        self._check(len(self._pending))

    def _check(self, size: int) -> None:
        if size > self._event_bytes_max:
            raise ProviderFailed(f"the provider's stream has an event of more than {self._event_bytes_max} bytes")

    def _take(self, line: bytes) -> ServerSentEvent | None:
        """Interpret one whole line; the empty one dispatches what has been gathered."""
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line:
            return self._dispatch()
        self._check(len(line))
        field, _, value = line.partition(b":")  # a comment is a line whose field has no name
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._data_bytes += len(value) + 1
            self._check(self._data_bytes)
        elif field == b"event":
            self._name = value.decode("utf-8", "replace")
        return None

    def _dispatch(self) -> ServerSentEvent | None:
        name, lines = self._name, self._data
        self._name, self._data, self._data_bytes = "", [], 0
        if not lines:
            return None
        return ServerSentEvent(name or "message", b"\n".join(lines).decode("utf-8", "replace"))
