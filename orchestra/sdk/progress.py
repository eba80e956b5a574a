"""How far the log of one turn was seen, so that each piece of its text is told once, and the text is exact."""

from orchestra.frames import DeltaFrame, Done, LogFrame, Started
from orchestra.sdk.events import Restarted, Text


class Progress:
    """What came of one turn.

    Attributes
    ----------
    seq : int
        Number of the last frame that came.
    has_begun : bool
    """

    def __init__(self) -> None:
        self.seq = 0
        self.has_begun = False
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """What was told since the turn last began."""
        return "".join(self._pieces)

    def sent_again(self) -> None:
        """Expect another run, whose numbers may begin anew where nobody remembers those of the first."""
        self.seq = 0

    def take(self, turn_id: str, frame: LogFrame) -> list[Text | Restarted] | None:
        """Return what `frame` changes of the text; None where it came before."""
        assert frame.seq is not None
        # a reply that was kept is told under the number behind the one that it was asked for, whatever the log had
        if frame.seq <= self.seq and not isinstance(frame, Done):
            return None
        self.seq = max(self.seq, frame.seq)
        match frame:
            case Started():
                self.has_begun = True
                return self._void(turn_id)
            case DeltaFrame():
                return self._say(turn_id, frame.text)
            case Done():
                return self.complete(turn_id, frame.reply.reply)
            case _:
                return []

    def complete(self, turn_id: str, reply: str) -> list[Text | Restarted]:
        """Return what is missing of the whole reply: all of it where it was not told in pieces."""
        told = self.text
        if reply.startswith(told):
            return self._say(turn_id, reply[len(told) :])
        return [*self._void(turn_id), *self._say(turn_id, reply)]

    def _void(self, turn_id: str) -> list[Text | Restarted]:
        if not self._pieces:
            return []
        self._pieces.clear()
        return [Restarted(turn_id)]

    def _say(self, turn_id: str, text: str) -> list[Text | Restarted]:
        if not text:
            return []
        self._pieces.append(text)
        return [Text(turn_id, text)]
