"""What the page is shown on: a browser, a model that says what it is told to, and a service that stops and starts."""

import json
import queue
import select
import shutil
import threading
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from chaos.processes import LiveService, free_port, start_service
from orchestra.adapters.embedded import EmbeddedStores
from tests.integration.loopback import redis_database, settings_on

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SECONDS_MAX = 15.0
FLEET_DATABASE = 13
OPERATOR_KEY = "key-of-the-tests"


class Model:
    """An OpenAI-compatible model on loopback. It echoes its last message, or waits for each piece that a test gives.

    A message that `waits`, by default one that begins with "wait", is answered with what `say` gives, piece by piece,
    until `end`.
    """

    def __init__(self, waits: Callable[[str], bool] = lambda message: message.startswith("wait")) -> None:
        self._waits = waits
        self.asked: queue.Queue[str] = queue.Queue()
        self.aborted: queue.Queue[str] = queue.Queue()
        self._pieces: queue.Queue[str | None] = queue.Queue()
        model = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                model._answer(self, str(asked["messages"][-1]["content"]))

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def await_question(self) -> str:
        """Return the next message that it is asked to answer."""
        return self.asked.get(timeout=SECONDS_MAX)

    def say(self, *pieces: str) -> None:
        """Give pieces of the answer that is waited for."""
        for piece in pieces:
            self._pieces.put(piece)

    def end(self) -> None:
        """End that answer."""
        self._pieces.put(None)

    def forget(self) -> None:
        """End what is waited for, and forget what was asked and aborted."""
        self.end()
        self.asked, self.aborted = queue.Queue(), queue.Queue()

    def close(self) -> None:
        self.end()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler, message: str) -> None:
        pieces = self._pieces = queue.Queue()
        if self._waits(message):
            self.asked.put(message)
        else:
            pieces.put(message)
            pieces.put(None)
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        while True:
            try:
                piece = pieces.get(timeout=0.05)
            except queue.Empty:
                if select.select([handler.connection], [], [], 0)[0]:  # the end: nobody listens any more
                    self.aborted.put(message)
                    return
                continue
            if piece is None:
                break
            _tell(handler, {"delta": {"content": piece}})
        _tell(handler, {"delta": {}, "finish_reason": "stop"})
        handler.wfile.write(b"data: [DONE]\n\n")


def _tell(handler: BaseHTTPRequestHandler, choice: dict[str, Any]) -> None:
    chunk = {"model": "told-1", "choices": [{"index": 0, **choice}]}
    handler.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())


class Stand:
    """A service on one address, which may stop and start again there."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self._folder = folder
        self._environ = environ
        self._port = free_port()
        self.running: LiveService
        self.start()

    @property
    def url(self) -> str:
        return self.running.url

    def start(self) -> None:
        self.running = start_service(self._folder, self._environ, port=self._port)

    def stop(self) -> None:
        self.running.stop()

    def kill(self) -> None:
        self.running.kill()

    def latch(self, level: str) -> None:
        """Hold the level, as an operator."""
        self._order({"action": "latch", "level": level, "reason": "a test"})

    def release(self) -> None:
        self.latch("NORMAL")
        self._order({"action": "release", "reason": "a test"})

    def _order(self, order: dict[str, str]) -> None:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {OPERATOR_KEY}"}
        request = urllib.request.Request(f"{self.url}/operator/level", json.dumps(order).encode(), headers)
        with urllib.request.urlopen(request, timeout=SECONDS_MAX):
            pass


def environ_of(stores: EmbeddedStores, model: Model) -> dict[str, str]:
    """Settings of a service on these stores, with that model, which may be operated, and so is a fleet of its own."""
    return {
        **settings_on(stores),
        "REDIS_URL": redis_database(stores.redis_url, FLEET_DATABASE),
        "ORCHESTRA_OPERATOR_KEY": OPERATOR_KEY,
        "ORCHESTRA_PROVIDER_URL": model.url,
        "ORCHESTRA_PROVIDER_MODEL": "told-1",
    }


def find_chromium() -> str | None:
    """Return the path of the system's browser, None where there is none."""
    return next(filter(None, map(shutil.which, CHROMIUM)), None)
