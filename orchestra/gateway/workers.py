"""Several processes on one socket: started together, replaced when one dies, stopped together.

Sanic has a worker manager of its own. It was tried and rejected: told to stop while a worker starts it waits for that
worker for ever, which would leave the embedded stores running; and its last resort kills the whole process group, the
shell that started us included.
"""

import asyncio
import multiprocessing
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

from sanic import Sanic

from orchestra.errors import ConfigurationError
from orchestra.events import Hook, Lifecycle
from orchestra.gateway.app import App
from orchestra.gateway.arrival import TimedProtocol

MakeApp = Callable[[], App]

KILL_AFTER_SECONDS = 5.0
"""How much longer than its own bound a worker may take to stop."""

DEATHS_MAX = 10
DEATHS_WITHIN_SECONDS = 300.0
"""So many workers that die within so long are too many to replace: something is wrong that a new one cannot mend."""

ASK_AGAIN_SECONDS = 1.0
START_SETTLES_SECONDS = 0.1
"""From the last start listener to the loop that runs for good."""


class WorkersFailed(ConfigurationError):
    """Workers die again and again."""

    kind, title = "workers-failed", "Workers failed"


def listening(host: str, port: int) -> socket.socket:
    """Return a listening TCP socket.

    Raises
    ------
    ConfigurationError
        The address cannot be listened on; names it and the cure.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host} port {port} ({error.strerror}): set ORCHESTRA_HOST and ORCHESTRA_PORT to an "
            f"address of this machine and a port that is free"
        ) from error


def run_one(
    make_app: MakeApp, listener: socket.socket, signals: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
) -> None:
    """Serve in this process until one of `signals` comes."""
    app = make_app()
    _stop_on(app, signals)
    app.prepare(
        sock=listener,
        protocol=TimedProtocol,
        single_process=True,
        register_sys_signals=False,
        motd=False,
        access_log=False,
    )
    Sanic.serve_single(primary=app)


def _stop_on(app: App, signals: tuple[signal.Signals, ...]) -> None:
    """Make `app` stop on a signal, whenever it comes.

    Sanic's own handlers forget one that comes while it starts, or fail half-way through the start. Here one that comes
    too early is kept until the loop runs for good, which is a moment after the last start listener. Sanic ignores
    signals once it listens, whoever handled them before; so the handlers are set again by the first listener after
    that. What comes in the few instructions between is lost, and so the supervisor asks again.
    """
    asked: list[signal.Signals] = []
    serving: list[bool] = []

    def ask(number: signal.Signals) -> None:
        asked.append(number)
        if serving and len(asked) == 1:  # who asks again must not break off the stop that is under way
            app.stop()

    def serve() -> None:
        serving.append(True)
        if asked:
            app.stop()

    async def listen(_app: App) -> None:
        loop = asyncio.get_running_loop()
        for number in signals:
            loop.add_signal_handler(number, ask, number)

    async def started(app: App) -> None:
        await listen(app)
        asyncio.get_running_loop().call_later(START_SETTLES_SECONDS, serve)

    app.register_listener(listen, "before_server_start")
    app.register_listener(started, "after_server_start")


def run_many(make_app: MakeApp, listener: socket.socket, count: int, *, stop_seconds_max: float, tell: Hook) -> None:
    """Serve in `count` processes until this one is interrupted or told to exit.

    Parameters
    ----------
    make_app : callable
        Importable, for it is called in the workers.
    listener : socket
        Shared by all workers.
    count : int
    stop_seconds_max : float
        How long a worker may take to end its turns before it is killed.
    tell : Hook
        Told when a worker is replaced.

    Raises
    ------
    WorkersFailed
        `DEATHS_MAX` workers died within `DEATHS_WITHIN_SECONDS`.
    """
    spawn = multiprocessing.get_context("spawn")

    def started() -> BaseProcess:
        process = spawn.Process(target=_work, args=(make_app, listener), daemon=False)
        process.start()
        return process

    workers: list[BaseProcess] = []
    try:
        workers += (started() for _ in range(count))
        died: deque[float] = deque(maxlen=DEATHS_MAX)
        while len(died) < DEATHS_MAX or died[-1] - died[0] > DEATHS_WITHIN_SECONDS:
            ended = wait([worker.sentinel for worker in workers])
            dead = next(worker for worker in workers if worker.sentinel in ended)
            dead.join()
            died.append(time.monotonic())
            tell(Lifecycle(died[-1], f"worker {dead.pid}", "died", f"status {dead.exitcode}"))
            workers[workers.index(dead)] = started()
        raise WorkersFailed(f"{DEATHS_MAX} workers died within {DEATHS_WITHIN_SECONDS:g} s: see the log for why")
    finally:
        _stop(workers, stop_seconds_max + KILL_AFTER_SECONDS)


def _stop(workers: list[BaseProcess], seconds_max: float) -> None:
    """Terminate all, again until they have heard it, wait for them together, kill what is left."""
    end = time.monotonic() + seconds_max
    while (alive := [worker for worker in workers if worker.is_alive()]) and (left := end - time.monotonic()) > 0:
        for worker in alive:
            worker.terminate()
        wait([worker.sentinel for worker in alive], min(left, ASK_AGAIN_SECONDS))
    for worker in workers:
        worker.kill()
        worker.join()


def _work(make_app: MakeApp, listener: socket.socket) -> None:
    """Be a worker. Ctrl-C reaches the whole group: the parent passes it on in its own time."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run_one(lambda: _orphan_stops(make_app()), listener, (signal.SIGTERM,))


def _orphan_stops(app: App) -> App:
    """Make `app` stop when the parent is gone, by `kill -9` for instance: an orphan would keep the port."""
    parent = multiprocessing.parent_process()
    assert parent, "a worker has a parent"

    async def watch(app: App) -> None:
        asyncio.get_running_loop().add_reader(parent.sentinel, app.stop)

    app.register_listener(watch, "before_server_start")
    return app
