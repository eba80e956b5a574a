"""The wall clock of a simulated world: a fixed date plus virtual time."""

from __future__ import annotations

from typing import Protocol

EPOCH_UNIX_S = 1_767_225_600.0  # 2026-01-01T00:00:00Z


class _Timed(Protocol):
    def time(self) -> float: ...


class SimClock:
    """Implements the port `Clock` of `orchestra`.

    Parameters
    ----------
    loop
        Whose `time()` passes, in seconds.
    epoch_unix_s
        The wall time at which that loop's time is zero, in unix seconds.
    """

    def __init__(self, loop: _Timed, epoch_unix_s: float = EPOCH_UNIX_S) -> None:
        self._loop = loop
        self.epoch_unix_s = epoch_unix_s

    def now(self) -> float:
        """Return the virtual wall time in unix seconds."""
        return self.epoch_unix_s + self._loop.time()
