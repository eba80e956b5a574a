"""When to try again: full jitter, never before the service said, within a number of attempts and a time in all.

Source: Marc Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.
"""

from dataclasses import dataclass

from orchestra.errors import DeadlineExceeded, OrchestraError, TurnInFlight
from orchestra.sdk.system import System


@dataclass(frozen=True)
class Retries:
    """How often to try, and how long to wait in between.

    Parameters
    ----------
    attempts_max : int
        How often one thing is tried; 1 tries nothing again.
    first_seconds, longest_seconds : float
        The wait before attempt n is drawn from 0 to ``first_seconds * 2**(n - 2)``, at most `longest_seconds`.
    retry_after_seconds_max : float
        Who asks for more patience than that is not asked again.
    """

    attempts_max: int = 5
    first_seconds: float = 0.5
    longest_seconds: float = 8.0
    retry_after_seconds_max: float = 60.0


class Attempts:
    """The attempts at one thing.

    Parameters
    ----------
    retries : Retries
    system : System
    seconds_max : float
        How long it may take in all.
    """

    def __init__(self, retries: Retries, system: System, seconds_max: float) -> None:
        self.failures = 0
        self.seconds_max = seconds_max
        self._retries = retries
        self._system = system
        self._until = system.now() + seconds_max

    @property
    def seconds_left(self) -> float:
        """How much of the time is left.

        Raises
        ------
        DeadlineExceeded
            None is.
        """
        left = self._until - self._system.now()
        if left <= 0:
            raise DeadlineExceeded(f"there was no answer in {self.seconds_max:g} s: give it more time, or try later")
        return left

    def failed(self, error: OrchestraError) -> float:
        """Return how many seconds to wait before the next attempt.

        Raises
        ------
        OrchestraError
            `error` itself, where another attempt cannot help or is not to be made any more.
        """
        if not isinstance(error, TurnInFlight):  # that is no failure: its reply is on the way
            self.failures += 1
        after = error.retry_after_seconds or 0.0
        if not error.retryable or self.failures >= self._retries.attempts_max:
            raise error
        if after > self._retries.retry_after_seconds_max:
            raise error
        most = min(self._retries.longest_seconds, self._retries.first_seconds * 2.0 ** max(0, self.failures - 1))
        wait = after + self._system.random() * most
        if self._system.now() + wait >= self._until:
            raise error
        return wait

    def progressed(self) -> None:
        """Begin to count anew: what came shows that trying helps."""
        self.failures = 0
