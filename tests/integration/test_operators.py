"""Operators of a real service: an order given to one instance counts in the other, and outlives a restart."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chaos.processes import LiveService, live_service
from orchestra.adapters.embedded import EmbeddedStores

KEY = "key-of-the-tests"
SECONDS_MAX = 20.0


def ask(service: LiveService, method: str, path: str, body: Any = None, key: str | None = KEY) -> tuple[int, Any, Any]:
    """Return status, headers and JSON of an answer."""
    headers = {"Content-Type": "application/json"} | ({} if key is None else {"Authorization": f"Bearer {key}"})
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(service.url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=SECONDS_MAX) as answer:
            return answer.status, answer.headers, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.headers, json.loads(error.read())


def level(service: LiveService) -> str:
    return str(ask(service, "GET", "/status", key=None)[2]["level"])


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until `holds`; instances look at orders every second."""
    end = time.monotonic() + SECONDS_MAX
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def instance(own_stores: EmbeddedStores, tmp_path: Path) -> Callable[[str], Any]:
    """Make a service, as a context, on stores that all those of the test share."""
    environ = {
        "DATABASE_URL": own_stores.database_url,
        "REDIS_URL": own_stores.redis_url,
        "ORCHESTRA_OPERATOR_KEY": KEY,
    }
    return lambda name: live_service(tmp_path / name, environ)


def test_an_order_counts_in_every_instance_and_after_a_restart(instance: Callable[[str], Any]) -> None:
    with instance("one") as one:
        with instance("two") as two:
            _, _, reply = ask(one, "POST", "/chat/v2/chat", {"message": "hello"})
            order = {"action": "latch", "level": "MAINTENANCE", "reason": "the database moves"}
            status, _, ordered = ask(one, "POST", "/operator/level", order)
            assert (status, ordered["shared"]) == (200, True)
            assert level(one) == "MAINTENANCE"
            eventually(lambda: level(two) == "MAINTENANCE")

            status, headers, problem = ask(two, "POST", "/chat/v2/chat", {"message": "hello", "stream": True})
            assert (status, problem["type"]) == (503, "urn:ai-orchestra:problem:maintenance")
            assert int(headers["Retry-After"]) >= 1
            status, _, history = ask(two, "GET", f"/chat/v2/sessions/{reply['session_id']}")
            assert (status, [turn["message"] for turn in history["turns"]]) == (200, ["hello"])
            view = ask(two, "GET", "/operator")[2]
            assert (view["level"]["level"], view["level"]["latched"]) == ("MAINTENANCE", "the database moves")
            assert len(view["level"]["transitions"]) == 4

        with instance("two again") as two:
            eventually(lambda: level(two) == "MAINTENANCE")
            ask(two, "POST", "/operator/level", {"action": "release", "reason": "it has moved"})
            eventually(lambda: ask(one, "GET", "/operator")[2]["level"]["latched"] is None)


def test_a_breaker_held_open_degrades_the_turn_and_says_so(instance: Callable[[str], Any]) -> None:
    asked = {"message": "hello", "user_id": "ann"}  # of whom other sessions may have told something
    with instance("one") as one:
        status, _, problem = ask(one, "POST", "/operator/breakers/nope", {"action": "open", "reason": "test"})
        assert status == 404
        assert "memory" in problem["detail"]
        ordered = ask(one, "POST", "/operator/breakers/memory", {"action": "open", "reason": "test"})[2]
        assert (ordered["target"], ordered["shared"]) == ("breaker:memory", True)
        assert "memory" in ask(one, "POST", "/chat/v2/chat", asked)[2]["degraded"]
        view = ask(one, "GET", "/operator")[2]
        assert {each["name"]: each["mode"] for each in view["breakers"]}["memory"] == "forced_open"
        ask(one, "POST", "/operator/breakers/memory", {"action": "reset", "reason": "test"})
        assert ask(one, "POST", "/chat/v2/chat", asked)[2]["degraded"] == []


def test_nobody_operates_a_service_without_a_key(service: LiveService) -> None:
    status, _, problem = ask(service, "GET", "/operator")
    assert (status, problem["type"]) == (403, "urn:ai-orchestra:problem:forbidden")
    assert "operator_key" in problem["detail"]
