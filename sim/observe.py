"""One run of a scenario as a row of numbers, and many of them on any executor.

A row is what `ROW_COLUMNS` names: the seed; ``verdict`` (a name of `sim.verdict.Status`) and ``error`` (empty, or why
the run could not go on); every measure of `sim.measures.COLUMNS`; ``digest`` (of the journal, 16 digits: equal for
equal histories) and ``wall_seconds``, the one number that depends on where it was run. A run that could not go on is a
row as well, with its error and without numbers.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Hashable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from sim.journal import Entry, Journal, encode
from sim.measures import COLUMNS, measured
from sim.scenario import Scenario
from sim.world import rehearse

AHEAD = 256
"""Runs given to an executor before one of them has to be back: enough for a cluster, and soon taken back."""

DIGEST_DIGITS = 16
ERROR_CHARS_MAX = 500
TEXT_COLUMNS = ("verdict", "error", "digest")
ROW_COLUMNS = ("seed", "verdict", "error", *COLUMNS, "digest", "wall_seconds")

Row = dict[str, Any]
K = TypeVar("K", bound=Hashable)

_one_at_a_time = threading.Lock()  # a cluster's worker may have several threads, a process is one world


class WorkersLost(Exception):
    """Runs cannot go on: their workers are gone. What is done by then was handed out."""


class Job(NamedTuple):
    """One run to do.

    Parameters
    ----------
    scenario : Scenario
    seed : int
    warm_up_s : float
        What happens in the first so many seconds does not count.
    """

    scenario: Scenario
    seed: int
    warm_up_s: float = 0.0


class _Summed(Journal):
    """Keeps of a history its digest, so that a run takes little memory however long it is."""

    def __init__(self) -> None:
        super().__init__()
        self._sum = hashlib.sha256()

    def _take(self, entries: list[Entry]) -> None:
        self._sum.update(encode(entries))

    @property
    def digest(self) -> str:
        self.settle()
        return self._sum.hexdigest()


def observe(job: Job) -> Row:
    """Live through one run and return its row. Called in worker processes; never raises for what the run does."""
    nothing: Row = dict.fromkeys(COLUMNS, math.nan)
    row: Row = {"seed": job.seed, "verdict": "", "error": "", **nothing, "digest": "", "wall_seconds": math.nan}
    try:
        with _one_at_a_time:
            run = rehearse(job.scenario, seed=job.seed, journal=_Summed())
        numbers = measured(run.evidence, job.warm_up_s)
    except (Exception, BaseExceptionGroup) as failure:
        row["error"] = told(failure)
        return row
    row |= numbers
    row |= {"verdict": run.verdict.status.name, "digest": run.journal.digest[:DIGEST_DIGITS]}
    row["wall_seconds"] = round(run.wall_seconds, 3)
    return row


def observed(jobs: Iterable[tuple[K, Job]], executor: Executor) -> Iterator[tuple[K, Row]]:
    """Do `jobs`, each with a key of its own, and yield rows by their keys as they are done, in any order.

    Raises
    ------
    WorkersLost
        A worker process has died, and its executor with it.
    """
    waiting = iter(jobs)
    under_way: dict[Future[Row], tuple[K, Job]] = {}
    try:
        while True:
            for key, job in islice(waiting, AHEAD - len(under_way)):
                future = executor.submit(observe, job)
                under_way[future] = key, job
                if future.done():  # by an executor that does it here and now: hand it out before the next
                    break
            if not under_way:
                return
            done, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in [each for each in under_way if each in done]:
                key, job = under_way.pop(future)
                yield key, _row_of(future, job)
    except (BrokenExecutor, CancelledError) as broken:
        raise WorkersLost("a worker process died: out of memory? Fewer at a time may fit (--workers)") from broken
    finally:
        for future in under_way:
            future.cancel()


def told(failure: BaseException) -> str:
    """Say what went wrong in one bounded line."""
    text = " ".join(f"{type(failure).__name__}: {failure}".split())
    return text if len(text) <= ERROR_CHARS_MAX else f"{text[: ERROR_CHARS_MAX - 1]}…"


def _row_of(future: Future[Row], job: Job) -> Row:
    """Return a run's row; a run whose workers were lost again and again is one with an error."""
    failure = future.exception()
    if failure is None:
        return future.result()
    if isinstance(failure, BrokenExecutor | CancelledError):
        raise failure
    nothing: Row = dict.fromkeys(ROW_COLUMNS, math.nan)
    return nothing | {"seed": job.seed, "verdict": "", "error": told(failure), "digest": ""}
