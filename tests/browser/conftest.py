"""The page in a real browser, before a real service whose model says what a test tells it to, when it tells it to."""

import json
import os
import queue
import select
import shutil
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Route, expect, sync_playwright

from chaos.processes import LiveService, free_port, start_service
from orchestra.adapters.embedded import EmbeddedStores
from orchestra.gateway import web

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
ORIGIN = "http://chat.test"
OPERATOR_KEY = "key-of-the-tests"


class Model:
    """An OpenAI-compatible model on loopback. It echoes its last message, or waits for each piece that a test gives.

    A message that begins with "wait" is answered with what `say` gives, piece by piece, until `end`.
    """

    def __init__(self) -> None:
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

    def close(self) -> None:
        self.end()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler, message: str) -> None:
        pieces = self._pieces = queue.Queue()
        if message.startswith("wait"):
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


class Watch:
    """Sees all that a page must not do."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.faults: list[str] = []

    def over(self, context: BrowserContext) -> None:
        context.on("request", lambda request: self._see_address("request", request.url))
        context.on("page", self._see_page)
        context.on("dialog", lambda dialog: (self.faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        context.on("weberror", lambda error: self.faults.append(f"error: {error.error}"))

    def _see_page(self, page: Page) -> None:
        page.on("console", lambda line: self._see_line(line.type, line.text))
        page.on("websocket", lambda socket: self._see_address("socket", socket.url))

    def _see_address(self, what: str, url: str) -> None:
        if not url.replace("ws://", "http://").startswith(self.origin + "/"):
            self.faults.append(f"{what} to another origin: {url}")

    def _see_line(self, kind: str, text: str) -> None:
        # a socket that finds no service says so, which no page can prevent
        if kind == "error" and "WebSocket connection to" not in text:
            self.faults.append(f"console: {text}")


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's path; where there is none the tests are left out, but for CI, which must have one."""
    for name in CHROMIUM:
        if path := shutil.which(name):
            return path
    cure = "no chromium is found: install it (Debian: apt-get install chromium), or Google Chrome, and test again"
    if os.environ.get("CI"):
        pytest.fail(cure)
    pytest.skip(cure)


@pytest.fixture(scope="session")
def model() -> Iterator[Model]:
    model = Model()
    yield model
    model.close()


@pytest.fixture(scope="session")
def stand(
    chromium: str, stores: EmbeddedStores, model: Model, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stand]:
    """The service that all tests of the page share."""
    environ = {
        "DATABASE_URL": stores.database_url,
        "REDIS_URL": stores.redis_url,
        "ORCHESTRA_OPERATOR_KEY": OPERATOR_KEY,
        "ORCHESTRA_PROVIDER_URL": model.url,
        "ORCHESTRA_PROVIDER_MODEL": "told-1",
    }
    stand = Stand(tmp_path_factory.mktemp("stand"), environ)
    yield stand
    stand.stop()


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """One browser for a file's tests; not for all, since Playwright keeps the thread's event loop for itself."""
    expect.set_options(timeout=SECONDS_MAX * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def module_page(browser: Browser) -> Iterator[Page]:
    """An empty page without a service, which can import the page's modules, under the policy they are served with."""
    files = web.read_files(web.FOLDER)
    context = browser.new_context()

    def fulfil(route: Route) -> None:
        file = files.get(route.request.url.rpartition("/")[2].partition("?")[0])
        body, kind = (b"", "text/html") if file is None else (file.content, file.kind)
        route.fulfill(body=body, content_type=kind, headers=web.HEADERS)

    context.route("**/*", fulfil)
    page = context.new_page()
    page.goto(f"{ORIGIN}/")
    yield page
    context.close()


NewContext = Callable[..., BrowserContext]


@pytest.fixture
def new_context(browser: Browser, stand: Stand) -> Iterator[NewContext]:
    """Make a browser context, as another person's browser, watched: what no page may do fails the test at its end."""
    contexts: list[BrowserContext] = []
    watch = Watch(stand.url)

    def new(**options: Any) -> BrowserContext:
        context = browser.new_context(base_url=stand.url, **options)
        context.set_default_timeout(SECONDS_MAX * 1000)
        watch.over(context)
        contexts.append(context)
        return context

    yield new
    for context in contexts:
        context.close()
    assert watch.faults == []


@pytest.fixture
def page(new_context: NewContext) -> Page:
    """The chat, ready in a new conversation."""
    return open_chat(new_context())


def open_chat(context: BrowserContext, address: str = "/") -> Page:
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("body[data-link=ready]")
    return page


@pytest.fixture
def chat() -> Callable[..., Page]:
    """Open the chat in a context: ``chat(context, address)``."""
    return open_chat


@pytest.fixture
def ask() -> Callable[[Page, str], Locator]:
    """Say something as a user does, and return the turn as it appears."""

    def asked(page: Page, message: str) -> Locator:
        turns = page.locator(".turn")
        number = turns.count()
        page.get_by_label("Message", exact=True).fill(message)
        page.keyboard.press("Enter")
        return turns.nth(number)

    return asked
