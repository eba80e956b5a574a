"""What a client sees happen in a conversation. `print(event, end="")` writes what a person would read."""

from msgspec import Struct

from orchestra.errors import OrchestraError
from orchestra.frames import Ready
from orchestra.model import ChatReply, Turn


class Text(Struct, frozen=True):
    """A piece of an answer's text, in order. Pieces since the last `Restarted` are the reply, to the letter."""

    turn_id: str
    text: str

    def __str__(self) -> str:
        return self.text


class Restarted(Struct, frozen=True):
    """The turn began again, as the instance that ran it was lost: the text that came of it so far is void."""

    turn_id: str

    def __str__(self) -> str:
        return "\n[the answer begins again]\n"


class Began(Struct, frozen=True):
    """Somebody said `message`; `id` is that of `send` where it was this client, else None."""

    turn_id: str
    id: str | None
    message: str
    client_id: str

    def __str__(self) -> str:
        return ""


class Answered(Struct, frozen=True):
    """The turn is durable, and this is its whole reply."""

    turn_id: str
    id: str | None
    reply: ChatReply

    def __str__(self) -> str:
        return "\n"


class Failed(Struct, frozen=True):
    """A message was refused for good, or its turn came to no end.

    Nothing of it is in the conversation, as far as is known. `StoreUnavailable`, `ShuttingDown` and `TurnLost` come
    only after it was sent again in vain, if it was ours and not stopped; they and `DeadlineExceeded` can end a turn
    that became durable all the same: `read` tells, or the message sent again under the same id.
    """

    turn_id: str | None
    id: str | None
    error: OrchestraError

    def __str__(self) -> str:
        return f"\n[{self.error.detail}]\n"


class Level(Struct, frozen=True):
    """The service's degradation level is now another one, and switches these features off."""

    level: str
    off: tuple[str, ...]

    def __str__(self) -> str:
        return ""


class Connected(Struct, frozen=True):
    """The connection stands.

    Parameters
    ----------
    ready : Ready
        The session as the service has it: its last turns, its level.
    again : bool
        Whether it stood before. Turns under way go on where they were.
    missed : tuple of Turn
        What others said, and was answered, meanwhile; of the last turns only.
    """

    ready: Ready
    again: bool
    missed: tuple[Turn, ...]

    def __str__(self) -> str:
        return ""


class Disconnected(Struct, frozen=True):
    """The connection is gone, and is tried again in so many seconds."""

    reason: str
    seconds: float

    def __str__(self) -> str:
        return ""


Event = Text | Restarted | Began | Answered | Failed | Level | Connected | Disconnected
