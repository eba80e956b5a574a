"""Where many runs are done: processes of this machine, or a Dask cluster, both as `concurrent.futures.Executor`.

A run must not depend on where it is done. So worker processes are spawned, not forked, and do not import the main
module of whoever started them, which may be a notebook, or a script without a guard.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection, context
from types import ModuleType
from typing import Any

CURE = "pip install 'ai-orchestra[lab]'"
CONNECT_S_MAX = 30


class LabMissing(Exception):
    """A library of the extra `lab` is not installed; the message names the cure."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is not installed: {CURE}")


class ClusterUnreachable(Exception):
    """No Dask scheduler answers at an address."""


class Here(Executor):
    """Does each run at once, in this process: for a few short ones, and where processes cannot be started."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call `fn` and return a future that is done."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as failure:
            future.set_exception(failure)
        return future


@contextmanager
def processes(workers: int | None = None) -> Iterator[Executor]:
    """Open an executor of worker processes on this machine.

    Leaving the scope waits for runs under way; leaving it by an exception, as Ctrl-C does, ends the workers at once. A
    worker whose parent is gone, however that came, ends itself.

    Parameters
    ----------
    workers : int, optional
        How many; as many as the cores that this process may use, if not given.
    """
    spawn = _Spawn()
    pool = ProcessPoolExecutor(workers or _cores(), mp_context=spawn, initializer=_follow_parent)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in spawn.started:
            worker.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def cluster(address: str, *, connect_s_max: float = CONNECT_S_MAX) -> Iterator[Executor]:
    """Open an executor on an existing Dask cluster.

    Runs that a lost worker had under way, or whose results it still held, are done again by another.

    Parameters
    ----------
    address : str
        Of the scheduler, such as ``tcp://10.0.0.1:8786``. Its workers need this project at the same version.

    Raises
    ------
    LabMissing
        `distributed` is not installed.
    ClusterUnreachable
        Nothing answers there.
    """
    try:
        from distributed import Client  # noqa: PLC0415 - an extra
    except ImportError:
        raise LabMissing("distributed") from None
    try:
        client = Client(  # type: ignore[no-untyped-call]
            address, timeout=connect_s_max, set_as_default=False
        )
    except (OSError, ValueError, TypeError) as wrong:
        raise ClusterUnreachable(f"no Dask scheduler answers at {address}: start one, or check the address") from wrong
    try:
        # not pure: equal calls are not one call; a run tells its own errors, so what fails here is lost workers
        yield client.get_executor(pure=False, retries=3)  # type: ignore[no-untyped-call]
    finally:
        client.close()  # type: ignore[no-untyped-call]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Worker(context.SpawnProcess):
    """A process that leaves Ctrl-C to its parent, and does not import its parent's main module."""

    def start(self) -> None:
        """Start with SIGINT blocked, which children inherit, and with an empty main module to prepare from."""
        main = sys.modules["__main__"]
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            super().start()
        finally:
            sys.modules["__main__"] = main
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


class _Spawn(context.SpawnContext):
    """Starts workers, and remembers them."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[_Worker] = []

    def Process(self, *args: Any, **kwargs: Any) -> _Worker:  # type: ignore[override]  # noqa: N802 - theirs
        worker = _Worker(*args, **kwargs)
        self.started.append(worker)
        return worker


def _follow_parent() -> None:
    """End this worker when its parent has ended: one that was killed leaves workers that wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True, name="follow-parent").start()
