"""A campaign: many seeds over all stories, modes and doors, in all the processes there are. What did not hold, and how
is it seen again?

As a script, `python -m tests.scenarios.campaign FIRST LAST` prints a line of JSON a case, in the order they end, and
then what did not hold. Each process has a hash seed of its own; every eleventh case is lived through again in another
one, and must give the same digest.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, as_completed
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import NamedTuple

from sim.executors import processes
from sim.isolation import Leak
from sim.loop import Deadlock, Livelock
from sim.verdict import Status, Verdict
from sim.world import rehearse
from tests.scenarios.cases import OTHER_DOOR_EVERY, Case, cases

AGAIN_EVERY = 11
HASH_SEED = "PYTHONHASHSEED"


class Found(NamedTuple):
    """What one run gave."""

    case: Case
    digest: str
    violations: tuple[str, ...]
    cpu_s: float
    hash_seed: str

    def __str__(self) -> str:
        case = self.case
        told = {"story": case.story.stem, "seed": case.seed, "mode": case.mode, "door": case.door}
        told |= {"shaken": case.shaken, "digest": self.digest[:16], "cpu_s": round(self.cpu_s, 1)}
        return json.dumps(told | {"hash_seed": self.hash_seed, "violations": self.violations})


def live(case: Case) -> Found:
    """Live through `case` here."""
    started = time.process_time()
    digest = ""
    try:
        run = rehearse(case.scenario, seed=case.seed, door=case.door, mode=case.mode)
        digest, violations = run.journal.digest, _violations(run.verdict, case.shaken)
    except (Leak, Deadlock, Livelock) as defect:
        violations = (f"{type(defect).__name__}: {defect}",)
    return Found(case, digest, violations, time.process_time() - started, os.environ.get(HASH_SEED, ""))


def _violations(verdict: Verdict, shaken: bool) -> tuple[str, ...]:
    """Tell what did not hold. Of a shaken orchestra a fault may touch nothing: it may refuse all that would meet it."""
    told = [f"{result.text}: {result.measured}" for result in verdict.results if not result.held]
    told += [f"left behind: {each}" for each in verdict.left_behind]
    told += [f"Little's law: {verdict.unbalanced}"] if verdict.unbalanced else []
    told += [] if verdict.accounting.adds_up else [f"accounting: {verdict.accounting}"]
    if not shaken and verdict.status is not Status.PASSED and not told:
        told = [f"{verdict.status.name}: {verdict.meaning}"]
    return tuple(told)


def campaign(chosen: Iterable[Case], told: Callable[[Found], object] = lambda found: None) -> list[str]:
    """Live through the chosen cases, as many at once as there are cores, and return what did not hold.

    Parameters
    ----------
    chosen : iterable of Case
    told : callable
        Told of each run when it ends.
    """
    first: dict[Case, Found] = {}
    wrong: list[str] = []
    with _pools() as pools:
        runs = []
        for place, case in enumerate(chosen):
            pool = place // OTHER_DOOR_EVERY  # the service costs twice as much: to each its share
            runs.append(pools[pool % len(pools)].submit(live, case))
            if place % AGAIN_EVERY == 0:
                runs.append(pools[(pool + 1) % len(pools)].submit(live, case))
        for run in as_completed(runs):
            found = run.result()
            told(found)
            wrong += judged(found, first.setdefault(found.case, found))
    return wrong


def judged(found: Found, first: Found) -> list[str]:
    """Return what is wrong with a run, or with it beside the `first` of its case, and the command that shows it."""
    told = list(found.violations)
    if found is not first:
        told = []
        if found.hash_seed == first.hash_seed:
            told.append(f"lived through twice with hash seed {found.hash_seed}, which proves nothing")
        elif found.digest != first.digest:
            told.append(f"with hash seed {found.hash_seed} another journal than with {first.hash_seed}")
    return [f"{each}\n  again: {found.case.again}" for each in told]


@contextmanager
def _pools() -> Iterator[list[Executor]]:
    """Open executors of one process each, at least two, which hash differently."""
    before = os.environ.get(HASH_SEED)
    with ExitStack() as stack:
        pools: list[Executor] = []
        try:
            for number in range(max(2, os.cpu_count() or 2)):
                os.environ[HASH_SEED] = str(number + 1)
                pool = stack.enter_context(processes(1))
                pool.submit(int).result()  # a process starts with its first work, and takes the environment of then
                pools.append(pool)
        finally:
            os.environ.pop(HASH_SEED, None)
            if before is not None:
                os.environ[HASH_SEED] = before
        yield pools


def main(first: str, last: str) -> None:
    """Live through the cases from `first` up to `last`, and print all there is to know."""
    for each in campaign(islice(cases(), int(first), int(last)), lambda found: print(found, flush=True)):
        print(each, flush=True)


if __name__ == "__main__":
    from tests.scenarios import campaign as itself  # workers know no `__main__`

    itself.main(*sys.argv[1:])
