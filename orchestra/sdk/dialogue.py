"""A conversation over WebSockets that come and go, without input or output: frames in, events and frames out.

    contract: `Dialogue.send`, `cancel`; `step` says what to do next, `opened`, `received`, `lost`, `refused` what came
    state:    `_Message` for each message of ours that has no answer yet, `_Followed` for each turn that goes on
    behaviour: after `ready`, what is unfinished is picked up: turns are resumed behind the last number that was seen,
               messages that were not accepted, or whose turn was lost, are sent again under the same id

So each piece of text is told once, whatever is cut where, and a turn that had to begin again is told as `Restarted`.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from orchestra import limits
from orchestra.errors import (
    InvalidRequest,
    OrchestraError,
    ShuttingDown,
    TurnCancelled,
    TurnLost,
    TurnUnknown,
)
from orchestra.frames import (
    Accepted,
    Cancel,
    ClientFrame,
    DeltaFrame,
    Done,
    ErrorFrame,
    Goodbye,
    LevelFrame,
    Ready,
    Resume,
    SendMessage,
    ServerFrame,
    Started,
)
from orchestra.sdk.events import Answered, Began, Connected, Disconnected, Event, Failed, Level
from orchestra.sdk.failures import OUTCOME_UNKNOWN, Unreachable, error_of_frame
from orchestra.sdk.progress import Progress
from orchestra.sdk.requests import checked_message
from orchestra.sdk.retries import Attempts, Retries
from orchestra.sdk.system import System

READY_SECONDS_MAX = 30.0
FINISHED_MAX = 4 * limits.READY_TURNS_MAX
OUR_FAULTS = {1003: "binary", 1007: "not UTF-8", 1009: "too large"}
"""Close codes of what another connection would not make better."""

_FRAMES: msgspec.json.Decoder[Any] = msgspec.json.Decoder(ServerFrame)


@dataclass(frozen=True)
class Connect:
    """Open a connection, and say `opened` or `refused`."""


@dataclass(frozen=True)
class Wait:
    """Wait so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Receive:
    """Receive a frame, for at most so many seconds, and say `received` or `lost`."""

    seconds: float | None


@dataclass(frozen=True)
class Leave:
    """Close the connection, and say `lost`."""

    reason: str


@dataclass
class _Message:
    """A message of ours that has no answer yet."""

    frame: SendMessage
    attempts: Attempts
    due_at: float
    turn_id: str | None = None
    is_sent: bool = False
    is_cancelled: bool = False


@dataclass
class _Followed:
    """A turn that goes on, ours or another's."""

    turn_id: str
    progress: Progress = field(default_factory=Progress)
    message: _Message | None = None
    attempts: Attempts | None = None
    due_at: float = 0.0
    is_asked: bool = False

    @property
    def message_id(self) -> str | None:
        """Our own id of the message, where it is ours."""
        return None if self.message is None else self.message.frame.id


class Dialogue:
    """The client's side of one session's conversation.

    Parameters
    ----------
    retries : Retries
        For messages that are refused for now, and for the first connection.
    system : System
    answer_seconds_max : float
        How long a message is sent again for.
    reconnect_seconds_max : float
        How long a connection that was lost is tried again for.

    Attributes
    ----------
    events : deque of Event
        To be told to the user, and taken away by whoever does.
    outgoing : deque of bytes
        To be sent in order, and taken away by whoever does, while the connection stands.
    """

    def __init__(
        self, retries: Retries, system: System, *, answer_seconds_max: float, reconnect_seconds_max: float
    ) -> None:
        self.events: deque[Event] = deque()
        self.outgoing: deque[bytes] = deque()
        self._retries = retries
        self._system = system
        self._answer_seconds_max = answer_seconds_max
        self._reconnect_seconds_max = reconnect_seconds_max
        self._messages: dict[str, _Message] = {}  # by their own ids
        self._turns: dict[str, _Followed] = {}
        self._state = "away"  # then "opening", until the service says ready, then "ready"
        self._connecting: Attempts | None = None
        self._connect_at = 0.0
        self._leave_at: float | None = None  # the instance is going: nothing new is begun on it
        self._version: int | None = None  # of the session when it was last ready
        self._finished: deque[str] = deque(maxlen=FINISHED_MAX)  # turns that ended since then
        self._told: OrchestraError | None = None  # what the service said before it closes

    @property
    def is_ready(self) -> bool:
        """Whether the connection stands, and the service said `ready` on it."""
        return self._state == "ready"

    # what the user does

    def send(self, message: str, message_id: str, user_id: str | None) -> None:
        """Say `message`, now or as soon as there is a connection.

        Raises
        ------
        PayloadTooLarge
            It is over `limits.MESSAGE_CHARS_MAX`.
        InvalidRequest
            It is no text that can be stored, or the id was used already.
        """
        checked_message(message)
        if message_id in self._messages:
            raise InvalidRequest("a message of this id has no answer yet: give each a new one", field="message_id")
        attempts = Attempts(self._retries, self._system, self._answer_seconds_max)
        frame = SendMessage(message_id, message, user_id)
        self._messages[message_id] = _Message(frame, attempts, self._system.now())
        self._begin_what_is_due()

    def cancel(self, name: str) -> None:
        """Stop a turn, named by its own id or by that of the message; one that has ended stays as it is."""
        message = self._messages.get(name) or next((m for m in self._messages.values() if m.turn_id == name), None)
        if message is None:
            if name in self._turns and self._state == "ready":
                self._put(Cancel(name))
            return
        message.is_cancelled = True
        if message.turn_id is None and not message.is_sent:  # it was not asked for yet, or was lost
            self._fail(message, TurnCancelled("you stopped it before it was accepted"))
        elif message.turn_id is not None and self._state == "ready":
            self._put(Cancel(message.turn_id))

    # what the connection does

    def step(self) -> Connect | Wait | Receive | Leave:
        """Return what to do next.

        Raises
        ------
        OrchestraError
            There is no connection, and there will be none.
        """
        now = self._system.now()
        if self._state == "away":
            if self._connecting is None:
                self._connecting = Attempts(self._retries, self._system, self._reconnect_seconds_max)
            return Wait(self._connect_at - now) if self._connect_at > now else Connect()
        if self._state == "opening":
            return Receive(READY_SECONDS_MAX)
        self._begin_what_is_due()
        if self._leave_at is not None and now >= self._leave_at and not self._awaits_this_instance():
            return Leave("it is going, and said so")
        due = [each for each in self._due_times() if each > now]
        return Receive(min(due) - now if due else None)

    def opened(self) -> None:
        """Take that a connection stands; the service is to say `ready` on it."""
        self._state = "opening"

    def refused(self, error: OrchestraError) -> None:
        """Take that there is no connection.

        Raises
        ------
        OrchestraError
            `error`, where it is not tried again.
        """
        attempts, self._connecting = self._connecting, None
        assert attempts is not None
        wait = attempts.failed(error)  # what raises ends this; whoever goes on begins to count anew
        self._connecting = attempts
        self._connect_at = self._system.now() + wait
        self.events.append(Disconnected(error.detail, wait))

    def lost(self, code: int, reason: str) -> None:
        """Take that the connection is gone.

        Raises
        ------
        OrchestraError
            It makes no sense to come back.
        """
        was_ready, self._state = self._state == "ready", "away"
        self.outgoing.clear()
        for message in self._messages.values():
            message.is_sent = message.turn_id is not None
        for turn in self._turns.values():
            turn.is_asked = False
        told, self._told = self._told, None
        leave_at, self._leave_at = self._leave_at, None
        if code in OUR_FAULTS:
            raise InvalidRequest(f"the service closed the connection ({OUR_FAULTS[code]}): {reason}")
        if not was_ready:
            self.refused(told or Unreachable(f"the connection closed before it was ready ({code} {reason})"))
            return
        # a service that restarts is away for longer than a few attempts take
        patient = replace(self._retries, attempts_max=10**9)
        self._connecting = Attempts(patient, self._system, self._reconnect_seconds_max)
        now = self._system.now()
        wait = self._system.random() * self._retries.first_seconds if leave_at is None else max(0.0, leave_at - now)
        self._connect_at = now + wait
        self.events.append(Disconnected(reason or f"closed ({code})", wait))

    def received(self, data: str | bytes) -> None:
        """Take a frame."""
        try:
            frame: ServerFrame = _FRAMES.decode(data)
        except msgspec.ValidationError:
            return  # of a newer service
        match frame:
            case Ready():
                self._ready(frame)
            case Accepted():
                self._accepted(frame)
            case Started():
                self._started(frame)
            case ErrorFrame():
                self._error(frame)
            case DeltaFrame() | Done():
                self._grown(frame)
            case LevelFrame():
                self.events.append(Level(frame.level, frame.off))
            case Goodbye():
                self._leave_at = self._system.now() + frame.reconnect_after_seconds
            case _:
                pass

    def _ready(self, ready: Ready) -> None:
        version, self._version = self._version, ready.version
        finished = tuple(self._finished)
        self._finished.clear()
        missed = (
            ()
            if version is None
            else tuple(
                turn
                for turn in ready.history
                if turn.number > version and turn.id not in finished and turn.id not in self._turns
            )
        )
        self._state, self._connecting = "ready", None
        self.events.append(Connected(ready, version is not None, missed))
        self._begin_what_is_due()  # messages first: one that was accepted unheard is joined as ours
        for live in ready.live:
            self._turns.setdefault(live.turn_id, _Followed(live.turn_id))
        self._resume_what_is_due()
        for message in self._messages.values():
            if message.is_cancelled and message.turn_id is not None:
                self._put(Cancel(message.turn_id))

    def _accepted(self, frame: Accepted) -> None:
        message = self._messages.get(frame.id)
        if message is None:
            return
        message.turn_id = frame.turn_id
        turn = self._turns.setdefault(frame.turn_id, _Followed(frame.turn_id))
        turn.message, turn.is_asked = message, True
        if message.is_cancelled:
            self._put(Cancel(frame.turn_id))

    def _started(self, frame: Started) -> None:
        turn = self._turns.setdefault(frame.turn_id, _Followed(frame.turn_id))
        turn.is_asked = True
        is_again = turn.progress.has_begun
        told = turn.progress.take(frame.turn_id, frame)
        if told is None:
            return
        self.events.extend(told)
        if not is_again:
            self.events.append(Began(frame.turn_id, turn.message_id, frame.message, frame.client_id))

    def _grown(self, frame: DeltaFrame | Done) -> None:
        turn = self._turns.get(frame.turn_id)
        if turn is None:
            return
        self.events.extend(turn.progress.take(frame.turn_id, frame) or ())
        if isinstance(frame, Done):
            self._forget(turn)
            self.events.append(Answered(frame.turn_id, turn.message_id, frame.reply))

    # what goes wrong

    def _error(self, frame: ErrorFrame) -> None:
        error = error_of_frame(frame)
        turn = self._turns.get(frame.turn_id or "")
        if frame.id is not None:
            if (message := self._messages.get(frame.id)) is not None:
                self._refused_message(message, error)
        elif frame.turn_id is None:
            self._told = error
            if self._state == "ready":
                self.events.append(Failed(None, None, error))
        elif turn is not None and frame.seq is not None:
            if turn.progress.take(frame.turn_id, frame) is not None:
                self._ended_badly(turn, error)
        elif turn is not None:
            self._not_resumed(turn, error)

    def _refused_message(self, message: _Message, error: OrchestraError) -> None:
        """Send a message again that was not accepted, where that may help."""
        if isinstance(error, ShuttingDown):
            self._await_another_instance(error)
            message.is_sent = False
        else:
            self._send_again(message, error)

    def _ended_badly(self, turn: _Followed, error: OrchestraError) -> None:
        """Send a message again whose turn was lost, may be durable for all that, or failed before anything was told."""
        message = turn.message
        if message is None:
            self._forget(turn)
            self.events.append(Failed(turn.turn_id, None, error))
        elif message.is_cancelled or (turn.progress.text and not isinstance(error, OUTCOME_UNKNOWN)):
            self._fail(message, error)
        else:
            self._send_again(message, error)

    def _not_resumed(self, turn: _Followed, error: OrchestraError) -> None:
        """Ask for a turn again that could not be followed for now; one that is unknown is lost."""
        if turn.message is not None and turn.message.is_cancelled and isinstance(error, TurnUnknown):
            error = TurnCancelled("you stopped it: nothing of it is kept")
        elif isinstance(error, TurnUnknown):
            error = TurnLost("the turn is not known any more: it was stopped, or its instance is gone")
        if isinstance(error, TurnLost) or not error.retryable:
            self._ended_badly(turn, error)
            return
        turn.attempts = turn.attempts or Attempts(self._retries, self._system, self._answer_seconds_max)
        try:
            turn.due_at = self._system.now() + turn.attempts.failed(error)
            turn.is_asked = False
        except OrchestraError:
            self._ended_badly(turn, error)

    def _send_again(self, message: _Message, error: OrchestraError) -> None:
        try:
            message.due_at = self._system.now() + message.attempts.failed(error)
        except OrchestraError:
            self._fail(message, error)
            return
        if isinstance(error, ShuttingDown):
            self._await_another_instance(error)
        if message.turn_id is not None:
            self._turns[message.turn_id].progress.sent_again()
        message.turn_id, message.is_sent = None, False

    def _await_another_instance(self, error: OrchestraError) -> None:
        if self._leave_at is None:
            self._leave_at = self._system.now() + (error.retry_after_seconds or 0.0)

    def _fail(self, message: _Message, error: OrchestraError) -> None:
        del self._messages[message.frame.id]
        turn = next((each for each in self._turns.values() if each.message is message), None)
        if turn is not None:
            self._forget(turn)
        self.events.append(Failed(None if turn is None else turn.turn_id, message.frame.id, error))

    def _forget(self, turn: _Followed) -> None:
        del self._turns[turn.turn_id]
        self._finished.append(turn.turn_id)
        if turn.message is not None:
            self._messages.pop(turn.message.frame.id, None)

    # what is to be sent

    def _put(self, frame: ClientFrame) -> None:
        self.outgoing.append(msgspec.json.encode(frame))

    def _begin_what_is_due(self) -> None:
        """Send the messages whose time has come, and resume the turns whose time has."""
        if self._state != "ready":
            return
        now = self._system.now()
        for message in self._messages.values():
            if not message.is_sent and message.due_at <= now and self._leave_at is None:
                message.is_sent = True
                self._put(message.frame)
        self._resume_what_is_due()

    def _resume_what_is_due(self) -> None:
        now = self._system.now()
        for turn in self._turns.values():
            if not turn.is_asked and turn.due_at <= now and (turn.message is None or turn.message.turn_id is not None):
                turn.is_asked = True
                self._put(Resume(turn.turn_id, turn.progress.seq))

    def _awaits_this_instance(self) -> bool:
        """Whether a turn of ours runs here, which is seen to its end."""
        return any(turn.is_asked and turn.message is not None and turn.message.turn_id for turn in self._turns.values())

    def _due_times(self) -> Iterator[float]:
        """Yield when there is something to do besides receiving."""
        if self._leave_at is not None:
            yield self._leave_at
        else:
            yield from (message.due_at for message in self._messages.values() if not message.is_sent)
        yield from (turn.due_at for turn in self._turns.values() if not turn.is_asked)
