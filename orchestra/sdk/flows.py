"""What a client does over HTTP, step by step, for whoever can send and wait: a flow yields what to do, and gets what
came of it. The two clients of `orchestra.sdk` carry flows out, one in this thread, one on an event loop; tests do too.

    Send   -> Answer, its body read        Open -> Answer, the body of which is not read where it is a stream
    Read   -> Piece, or None at its end    Pause, Tell -> None

What goes wrong with the connection is thrown into the flow as `Unreachable`, or as `DeadlineExceeded` where it took too
long.
"""

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import msgspec

from orchestra.errors import OrchestraError, SessionExists, SessionUnknown, ShuttingDown, TurnLost, TurnUnknown
from orchestra.frames import Done, ErrorFrame, LogFrame, Started
from orchestra.model import ChatReply
from orchestra.sdk import requests
from orchestra.sdk.events import Restarted, Text
from orchestra.sdk.failures import OUTCOME_UNKNOWN, Answer, Unreachable, error_of, error_of_frame
from orchestra.sdk.progress import Progress
from orchestra.sdk.requests import Ask
from orchestra.sdk.retries import Attempts

T = TypeVar("T")


@dataclass(frozen=True)
class Send:
    """Send this, and read the answer within so many seconds."""

    ask: Ask
    seconds: float


@dataclass(frozen=True)
class Open:
    """Send this; where the answer is a stream, leave it to be read, in place of one that was opened before."""

    ask: Ask
    seconds: float


@dataclass(frozen=True)
class Read:
    """Read the next event of the stream."""


@dataclass(frozen=True)
class Pause:
    """Wait so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Tell:
    """Tell the caller."""

    event: Text | Restarted


class Piece(NamedTuple):
    """One server-sent event."""

    name: str
    data: str


Step = Send | Open | Read | Pause | Tell
Flow = Generator[Step, Any, T]

_FRAMES: msgspec.json.Decoder[LogFrame] = msgspec.json.Decoder(LogFrame)


def exchange(ask: Ask, attempts: Attempts, *, timed: bool = False) -> Flow[Answer]:
    """Send `ask` until it is answered; `timed` tells the service how long that is waited for.

    Raises
    ------
    OrchestraError
        What the last attempt met.
    """
    while True:
        try:
            seconds = attempts.seconds_left
            answer: Answer = yield Send(_timed(ask, seconds) if timed else ask, seconds)
            failure = error_of(answer)
        except Unreachable as error:
            failure = error
        if failure is None:
            return answer
        yield Pause(attempts.failed(failure))


def created(ask: Ask, attempts: Attempts, *, is_new: bool) -> Flow[None]:
    """Make a session. Where its id `is_new`, one that exists was made by an attempt whose answer was lost."""
    try:
        yield from exchange(ask, attempts)
    except SessionExists:
        if not is_new:
            raise


def deleted(ask: Ask, attempts: Attempts) -> Flow[None]:
    """Delete a session. One that is gone at a second attempt was deleted by one whose answer was lost."""
    try:
        yield from exchange(ask, attempts)
    except SessionUnknown:
        if attempts.failures == 1:
            raise


def streamed(turn: "StreamedTurn", attempts: Attempts) -> Flow[None]:
    """Follow a turn to its end, over however many connections that takes.

    Raises
    ------
    OrchestraError
        What the turn failed with, or what the last attempt at following it met.
    """
    while turn.reply is None:
        try:
            seconds = attempts.seconds_left
            answer: Answer = yield Open(turn.ask(seconds), seconds)
            for told in turn.answered(answer):
                yield Tell(told)
            while turn.reply is None:
                piece: Piece | None = yield Read()
                for told in turn.take(piece):
                    attempts.progressed()
                    yield Tell(told)
        except OrchestraError as error:
            yield Pause(attempts.failed(turn.excuse(error)))


class StreamedTurn:
    """A turn whose answer comes in pieces: what to ask next, and what came.

    Attributes
    ----------
    session_id, turn_id : str or None
        Known once the turn has begun.
    reply : ChatReply or None
        The whole reply, once it is there.
    """

    def __init__(self, message: str, session_id: str | None, user_id: str | None, key: str) -> None:
        self.session_id = session_id
        self.turn_id: str | None = None
        self.reply: ChatReply | None = None
        self._message = requests.chat(message, session_id, user_id, key, stream=True)
        self._progress = Progress()
        self._resumes = False
        self._has_failed = False

    @property
    def text(self) -> str:
        """The answer as far as it is told."""
        return self._progress.text

    def ask(self, seconds: float) -> Ask:
        """Return what to send: that the turn's events go on where they were known to be, else the message."""
        self._resumes = self.turn_id is not None
        if self.session_id is not None and self.turn_id is not None:
            return requests.resume(self.session_id, self.turn_id, self._progress.seq)
        return _timed(self._message, seconds)

    def answered(self, answer: Answer) -> list[Text | Restarted]:
        """Take an answer: nothing yet where it is a stream."""
        if (error := error_of(answer)) is not None:
            raise error
        if answer.is_events:
            return []
        if answer.status == 204:  # its log has no end behind what came, which no log has
            raise TurnLost("the turn's events ended without its end")
        return self._ends(requests.reply_of(answer))

    def take(self, piece: Piece | None) -> list[Text | Restarted]:
        """Take the next event of the stream, or its end.

        Raises
        ------
        Unreachable
            It ended before the turn did.
        OrchestraError
            The turn failed.
        """
        if piece is None:
            raise Unreachable("the connection broke off before the answer's end")
        try:
            frame = _FRAMES.decode(piece.data)
        except msgspec.ValidationError:
            return []  # of a newer service
        if isinstance(frame, Started):
            self.session_id, self.turn_id = frame.session_id, frame.turn_id
        if isinstance(frame, Done):
            return self._ends(frame.reply)
        told = self._progress.take(self.turn_id or "", frame)
        if isinstance(frame, ErrorFrame) and told is not None:
            self._has_failed = True
            raise error_of_frame(frame)
        return told or []

    def excuse(self, error: OrchestraError) -> OrchestraError:
        """Return `error` where another attempt may be made, and see to it that it is the right one.

        Raises
        ------
        OrchestraError
            `error`, where the answer broke off in the middle: what was told cannot be taken back silently.
        """
        has_failed, self._has_failed = self._has_failed, False
        lost = isinstance(error, TurnLost | ShuttingDown) or (self._resumes and isinstance(error, TurnUnknown))
        if has_failed and not lost and self.text and not isinstance(error, OUTCOME_UNKNOWN):
            raise error
        if has_failed or lost:  # then the message is sent again
            self.turn_id = None
            self._progress.sent_again()
        return TurnLost(error.detail) if isinstance(error, TurnUnknown) and lost else error

    def _ends(self, reply: ChatReply) -> list[Text | Restarted]:
        self.session_id, self.turn_id, self.reply = reply.session_id, reply.turn_id, reply
        return self._progress.complete(reply.turn_id, reply.reply)


def _timed(ask: Ask, seconds: float) -> Ask:
    """Return `ask` with how long its answer is waited for."""
    return replace(ask, headers={**ask.headers, "X-Request-Timeout": f"{max(0.001, min(seconds, 3600)):.3f}"})
