"""Several worker processes: one socket, one pair of stores, and nothing left over however they end."""

import asyncio
import multiprocessing
import multiprocessing.synchronize
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import psutil
import pytest

from chaos.processes import SERVICE, LiveService, ServiceFailed, free_port, live_service, start_service
from orchestra.gateway.workers import _stop

WORKERS = {"ORCHESTRA_WORKERS": "2"}
SECONDS_MAX = 30.0


def workers(service: LiveService) -> list[psutil.Process]:
    """Return the processes that serve."""
    found = []
    for child in psutil.Process(service.process.pid).children():
        with suppress(psutil.Error):  # it may have just ended
            if "--multiprocessing-fork" in child.cmdline():
                found.append(child)
    return found


def family(service: LiveService) -> list[psutil.Process]:
    """Return all processes of a service, its stores among them."""
    return psutil.Process(service.process.pid).children(recursive=True)


def at_work_in(folder: Path) -> list[psutil.Process]:
    """Return the processes whose working directory is in `folder`, as that of a private PostgreSQL is."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cwd().startswith(str(folder)):
                found.append(process)
    return found


def gone(processes: list[psutil.Process]) -> bool:
    """Wait until all have ended."""
    _, alive = psutil.wait_procs(processes, SECONDS_MAX)
    return not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def answers(service: LiveService, count: int) -> list[int]:
    """Return the status of `count` turns, each on a connection of its own."""

    async def asked() -> list[int]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as client:

            async def one(number: int) -> int:
                body = {"message": f"turn {number}"}
                async with client.post(f"{service.url}/chat/v2/chat", json=body) as response:
                    return response.status

            return await asyncio.gather(*(one(number) for number in range(count)))

    return asyncio.run(asked())


def test_workers_serve_together_and_a_dead_one_is_replaced(tmp_path: Path) -> None:
    with live_service(tmp_path, WORKERS) as service:
        assert answers(service, 20) == [200] * 20
        first, second = workers(service)
        first.kill()
        end = time.monotonic() + SECONDS_MAX
        while len(pids := {each.pid for each in workers(service)} - {first.pid}) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        assert second.pid in pids
        assert len(pids) == 2
        assert answers(service, 20) == [200] * 20
        everything = family(service)
        assert service.stop() in {0, 143}
    assert gone(everything)


def stores_begin(data_dir: Path) -> bool:
    return (data_dir / "postgres.lock").exists()


def app_begins(data_dir: Path) -> bool:
    log = data_dir / "service.log"
    return log.exists() and '"state":"up"' in log.read_text()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("moment", [stores_begin, app_begins])
def test_a_stop_amid_the_start_leaves_nothing(tmp_path: Path, count: int, moment: Callable[[Path], bool]) -> None:
    environ = {**os.environ, "ORCHESTRA_DATA_DIR": str(tmp_path), "ORCHESTRA_WORKERS": str(count)}
    environ["ORCHESTRA_PORT"] = str(free_port())
    with (tmp_path / "service.log").open("wb") as log:
        process = subprocess.Popen(SERVICE, env=environ, stdout=log, stderr=log, cwd=tmp_path)
    try:
        end = time.monotonic() + SECONDS_MAX
        while not moment(tmp_path) and time.monotonic() < end:
            time.sleep(0.002)
        everything = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        assert process.wait(SECONDS_MAX) in {0, 143}
    finally:
        process.kill()
    assert gone([*everything, *at_work_in(tmp_path)])


def test_a_stop_while_workers_start_leaves_nothing(tmp_path: Path) -> None:
    service = start_service(tmp_path, WORKERS)
    for worker in workers(service):
        worker.kill()  # both are started anew
    end = time.monotonic() + SECONDS_MAX
    while len(workers(service)) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    everything = family(service)
    assert service.stop() in {0, 143}
    assert gone(everything)


def test_killed_with_its_workers_serving_it_frees_its_port(tmp_path: Path) -> None:
    port = free_port()
    service = start_service(tmp_path, WORKERS, port=port)
    served = workers(service)
    service.kill()
    assert gone(served)
    again = start_service(tmp_path, WORKERS, port=port)
    everything = family(again)
    assert answers(again, 4) == [200] * 4
    assert again.stop() in {0, 143}
    assert gone(everything)


def test_a_taken_port_is_refused_by_name(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServiceFailed, match=f"cannot listen on 127.0.0.1 port {port}") as failure:
            start_service(tmp_path, port=port)
    assert "ORCHESTRA_PORT" in str(failure.value)
    assert "Traceback" not in str(failure.value)


def test_ctrl_c_stops_workers_and_stores(tmp_path: Path) -> None:
    # a shell starts its background jobs deaf to Ctrl-C, and the service would inherit that from these tests
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        service = start_service(tmp_path, WORKERS)
    finally:
        signal.signal(signal.SIGINT, heard)
    address = urlsplit(service.url)
    everything = family(service)
    service.process.send_signal(signal.SIGINT)
    service.process.wait(SECONDS_MAX)
    assert gone(everything)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address.hostname or "", address.port or 0), timeout=5)
    assert "Traceback" not in service.log_end()


def deaf_at_first(ready: multiprocessing.synchronize.Event) -> None:
    """Hear only the second SIGTERM, as a worker does that the first one meets in the wrong instruction of its start."""
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(0) if heard else heard.append(number))
    ready.set()
    while True:
        signal.pause()


def test_a_worker_that_did_not_hear_is_asked_again() -> None:
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    worker = fork.Process(target=deaf_at_first, args=(ready,))
    worker.start()
    assert ready.wait(SECONDS_MAX)
    _stop([worker], SECONDS_MAX)
    assert worker.exitcode == 0, "it ended by itself, and was not killed"
