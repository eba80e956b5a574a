"""A schedule with all on: any ready callback may be next, drawn by seed, and each choice is written down."""

from __future__ import annotations

from array import array

from sim.entropy import Streams
from sim.schedule import Note, Ready, Shuffled


class Seeded(Shuffled):
    """`Shuffled` that writes its choices down.

    Attributes
    ----------
    choices : array of int
        The place in FIFO order of each pick among several.
    """

    def __init__(self, seed: int) -> None:
        streams = Streams(seed)
        super().__init__(streams.stream("schedule"), streams.stream("schedule.ties"))
        self.choices = array("I")

    def ready(self, note: Note | None = None) -> Ready:
        """Return the loop's ready queue."""
        return super().ready(note or self.choices.append)
