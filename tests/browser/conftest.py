"""The page in a real browser, before a real service whose model says what a test tells it to, when it tells it to."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Route, expect, sync_playwright

from orchestra.adapters.embedded import EmbeddedStores
from orchestra.gateway import web
from tests.browser.stage import ARGUMENTS, SECONDS_MAX, Model, Stand, environ_of, find_chromium

ORIGIN = "http://chat.test"


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
        # what finds no service, or is refused, says so, which no page can prevent
        if kind == "error" and "WebSocket connection to" not in text and "Failed to load resource" not in text:
            self.faults.append(f"console: {text}")


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's path; where there is none the tests are left out, but for CI, which must have one."""
    if path := find_chromium():
        return path
    cure = "no chromium is found: install it (Debian: apt-get install chromium), or Google Chrome, and test again"
    if os.environ.get("CI"):
        pytest.fail(cure)
    pytest.skip(cure)


@pytest.fixture(scope="session")
def shared_model() -> Iterator[Model]:
    model = Model()
    yield model
    model.close()


@pytest.fixture
def model(shared_model: Model) -> Model:
    """The model that the service asks, without what other tests left of it."""
    shared_model.forget()
    return shared_model


@pytest.fixture(scope="session")
def stand(
    chromium: str, stores: EmbeddedStores, shared_model: Model, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stand]:
    """The service that all tests of the page share."""
    stand = Stand(tmp_path_factory.mktemp("stand"), environ_of(stores, shared_model))
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


@pytest.fixture
def announced() -> Callable[[Page], None]:
    """Have a page write down what its live region says, into `window.announced`."""

    def see(page: Page) -> None:
        page.evaluate(
            """() => {
                window.announced = [];
                const region = document.getElementById('announcer');
                const see = () => window.announced.push(region.textContent);
                new MutationObserver(see).observe(region, { childList: true });
            }"""
        )

    return see
