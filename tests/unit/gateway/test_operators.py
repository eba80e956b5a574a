"""What everybody sees of the level, and what operators see and order."""

import asyncio
import json
from typing import Any

import pytest

from orchestra.adapters.inprocess import InProcessFleet
from orchestra.errors import StoreUnavailable
from orchestra.events import OperatorActed
from orchestra.model import Delta, Finish
from orchestra.resilience.degradation import DISABLED, Degradation, Level
from sim.clock import SimClock
from sim.faults import StoreDown

KEY = "s3cret-key"
BEARER = {"Authorization": f"Bearer {KEY}"}
LEVEL, UNIFIED = "/operator/level", "/operator/breakers/unified"


class AwayFleet(InProcessFleet):
    """A fleet that cannot be told anything."""

    async def order(self, target: str, order: str | None) -> None:
        raise StoreUnavailable("away")


async def hi(_prompt: Any) -> Any:
    yield Delta("hi")
    yield Finish("stop", "scripted")


async def operate(client: Any, path: str, **body: Any) -> Any:
    answer = await client.ask("POST", path, body, **BEARER)
    assert answer.status == 200, answer.text
    assert answer.header("Cache-Control") == "no-store"
    return json.loads(answer.body)


async def seen(client: Any) -> Any:
    answer = await client.ask("GET", "/operator", **BEARER)
    assert answer.status == 200, answer.text
    assert answer.header("Cache-Control") == "no-store"
    return json.loads(answer.body)


def test_the_status_is_the_level_since_when_and_what_it_switches_off(visit: Any) -> None:
    async def story(client: Any) -> None:
        wall = client.service.ports.clock.now()
        await asyncio.sleep(100)
        answer = await client.ask("GET", "/status")
        assert (answer.status, answer.header("Cache-Control")) == (200, "no-store")
        assert json.loads(answer.body) == {
            "level": "NORMAL",
            "since": pytest.approx(wall, abs=0.01),
            "degraded": [],
        }
        (await client.resolve(Degradation)).latch(Level.ESSENTIAL, "a secret reason")
        await asyncio.sleep(50)
        after = await client.ask("GET", "/status")
        assert json.loads(after.body) == {
            "level": "ESSENTIAL",
            "since": pytest.approx(wall + 100, abs=0.01),
            "degraded": [str(feature) for feature in DISABLED[Level.ESSENTIAL]],
        }
        assert "secret" not in after.text

    visit(story, hi)


ROUTES = (("GET", "/operator"), ("POST", LEVEL), ("POST", UNIFIED), ("POST", "/operator/breakers/nope"))
ORDER = {"action": "latch", "level": "LIMITED", "reason": "test"}


def test_nobody_may_operate_where_no_key_is_set(visit: Any) -> None:
    async def story(client: Any) -> None:
        for method, path in ROUTES:
            for headers in ({}, BEARER, {"Authorization": "Bearer "}):
                answer = await client.ask(method, path, ORDER, **headers)
                assert answer.status == 403
                assert "set operator_key (ORCHESTRA_OPERATOR_KEY)" in json.loads(answer.body)["detail"]
        assert client.told(OperatorActed) == []

    visit(story, hi)


def test_nobody_may_operate_without_the_key(visit: Any) -> None:
    wrong = ("", KEY, "Bearer", "Bearer ", f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer \xff\xfe")

    async def story(client: Any) -> None:
        for method, path in ROUTES:
            for headers in ({}, *({"Authorization": each} for each in wrong)):
                answer = await client.ask(method, path, ORDER, **headers)
                assert answer.status == 401
                assert answer.header("WWW-Authenticate") == "Bearer"
                problem = json.loads(answer.body)
                assert problem["type"] == "urn:ai-orchestra:problem:unauthorized"
                assert "Authorization: Bearer" in problem["detail"]
                assert KEY not in answer.text
        assert client.told(OperatorActed) == []

    visit(story, hi, operator_key=KEY)


def test_the_scheme_is_read_whatever_its_case(visit: Any) -> None:
    async def story(client: Any) -> None:
        assert (await client.ask("GET", "/operator", Authorization=f"bearer  {KEY} ")).status == 200

    visit(story, hi, operator_key=KEY)


def test_an_operator_sees_health_and_why(visit: Any) -> None:
    async def story(client: Any) -> None:
        await client.ask("POST", "/chat/v2/chat", {"message": "hello"})
        await seen(client)
        with client.faults.injected(StoreDown(at=0.0, lasts=60.0, store="conversations")):
            await asyncio.sleep(20)
            view = await seen(client)
        assert view["health"]["score"] == 55.0
        assert view["health"]["why"] == [
            {"component": "conversations", "what": "100% of its recent pings failed", "points": 45.0}
        ]
        assert {each["component"] for each in view["health"]["components"]} >= {"conversations", "unified", "memory"}
        assert view["level"]["level"] == "ESSENTIAL"
        assert view["level"]["latched"] is None
        assert [(each["before"], each["after"]) for each in view["level"]["transitions"]] == [
            ("NORMAL", "LIMITED"),
            ("LIMITED", "ESSENTIAL"),
        ]
        assert "pings failed" in view["level"]["transitions"][-1]["reason"]
        wall = client.service.ports.clock.now()
        assert wall - 20 < view["level"]["transitions"][-1]["at"] == view["level"]["since"] < wall
        assert {each["name"] for each in view["breakers"]} == {each["name"] for each in view["bulkheads"]}
        assert KEY not in json.dumps(view)

    visit(story, hi, operator_key=KEY)


def test_an_operator_latches_and_releases_the_level(visit: Any) -> None:
    async def story(client: Any) -> None:
        answered = await operate(client, LEVEL, action="latch", level="MAINTENANCE", reason="database moves")
        assert (answered["target"], answered["action"]) == ("level", "latch MAINTENANCE")
        assert (answered["reason"], answered["shared"]) == ("database moves", True)
        assert "follow within moments" in answered["detail"]
        assert (await client.ask("POST", "/chat/v2/chat", {"message": "hello"})).status == 503
        view = await seen(client)
        assert (view["level"]["level"], view["level"]["latched"]) == ("MAINTENANCE", "database moves")
        assert view["orders"]["level"]["action"] == "latch MAINTENANCE"
        assert (await operate(client, LEVEL, action="release", reason="it has moved"))["action"] == "release"
        assert (await seen(client))["level"]["latched"] is None
        assert [(each.target, each.action, each.reason) for each in client.told(OperatorActed)] == [
            ("level", "latch MAINTENANCE", "database moves"),
            ("level", "release", "it has moved"),
        ]

    visit(story, hi, operator_key=KEY)


def test_an_operator_sets_what_a_breaker_does(visit: Any) -> None:
    modes = {"open": "forced_open", "disable": "disabled", "observe": "observing", "reset": "automatic"}

    async def story(client: Any) -> None:
        for action, mode in modes.items():
            answered = await operate(client, UNIFIED, action=action, reason="test")
            assert (answered["target"], answered["action"]) == ("breaker:unified", action)
            (unified,) = [each for each in (await seen(client))["breakers"] if each["name"] == "unified"]
            assert unified["mode"] == mode

    visit(story, hi, operator_key=KEY)


def test_an_order_that_could_not_be_shared_counts_here_and_says_so(visit: Any) -> None:
    async def story(client: Any) -> None:
        answered = await operate(client, LEVEL, action="latch", level="LIMITED", reason="test")
        assert answered["shared"] is False
        assert "here only for now" in answered["detail"]
        assert (await seen(client))["level"]["level"] == "LIMITED"

    visit(story, hi, fleet=away, operator_key=KEY)


def away(clock: SimClock) -> AwayFleet:
    return AwayFleet(clock)


def test_an_unknown_breaker_is_answered_with_those_that_exist(visit: Any) -> None:
    async def story(client: Any) -> None:
        answer = await client.ask("POST", "/operator/breakers/nope", {"action": "open", "reason": "x"}, **BEARER)
        assert answer.status == 404
        detail = json.loads(answer.body)["detail"]
        assert all(name in detail for name in ("unified", "memory", "commands"))

    visit(story, hi, operator_key=KEY)


BAD: tuple[tuple[str, dict[str, Any], str, str], ...] = (
    (LEVEL, {"action": "hold", "reason": "x"}, "$.action", "latch or release"),
    (LEVEL, {"action": "latch", "level": "AWFUL", "reason": "x"}, "$.level", "NORMAL or LIMITED or ESSENTIAL"),
    (LEVEL, {"action": "latch", "reason": "x"}, "$.level", "such as EMERGENCY"),
    (LEVEL, {"action": "latch", "level": "LIMITED"}, "$", "reason"),
    (LEVEL, {"action": "latch", "level": "LIMITED", "reason": " "}, "$.reason", "reason"),
    (LEVEL, {"action": "release", "reason": "x" * 501}, "$.reason", "500"),
    (LEVEL, {"action": "release", "reason": "x", "for": 7}, "$.for", "unknown"),
    (UNIFIED, {"action": "close", "reason": "x"}, "$.action", "open or disable or observe or reset"),
    (UNIFIED, {"action": "open"}, "$", "reason"),
    (UNIFIED, {"action": "open", "reason": ""}, "$.reason", "reason"),
)


def test_a_bad_order_is_refused_by_its_field(visit: Any) -> None:
    async def story(client: Any) -> None:
        for path, body, field, words in BAD:
            answer = await client.ask("POST", path, body, **BEARER)
            problem = json.loads(answer.body)
            assert (answer.status, problem["field"]) == (400, field)
            assert words in problem["detail"]
        assert client.told(OperatorActed) == []

    visit(story, hi, operator_key=KEY)


def test_the_openapi_document_describes_the_routes(visit: Any) -> None:
    async def story(client: Any) -> None:
        document = json.loads((await client.ask("GET", "/docs/openapi.json")).body)
        paths, schemas = document["paths"], document["components"]["schemas"]
        assert document["components"]["securitySchemes"]["operator"]["scheme"] == "bearer"
        for path, method, takes, gives, secured in (
            ("/status", "get", None, "Status", False),
            ("/operator", "get", None, "Overview", True),
            (LEVEL, "post", "LevelOrder", "Ordered", True),
            ("/operator/breakers/{name}", "post", "BreakerOrder", "Ordered", True),
            ("/chat/v2/sessions/{session_id}", "get", None, "History", False),
            ("/chat/v2/chat", "post", "RequestV2", "ChatReply", False),
            ("/chat/v1/chat", "post", "RequestV1", "ReplyV1", False),
        ):
            operation = paths[path][method]
            content = operation["responses"]["200"]["content"]
            assert content["application/json"]["schema"]["$ref"] == f"#/components/schemas/{gives}"
            assert gives in schemas
            assert ("requestBody" in operation) is (takes is not None)
            assert takes is None or takes in schemas
            assert ("operator" in str(operation.get("security"))) is secured
            assert operation["summary"]
        assert "text/event-stream" in paths["/chat/v2/chat"]["post"]["responses"]["200"]["content"]
        parameters = {each["name"]: each for each in paths["/chat/v2/sessions/{session_id}"]["get"]["parameters"]}
        assert parameters["limit"]["schema"] == {"type": "integer", "minimum": 1, "maximum": 100, "default": 100}
        assert parameters["after"]["in"] == "query"
        header = {each["name"]: each for each in paths["/chat/v2/chat"]["post"]["parameters"]}["X-Request-Timeout"]
        assert (header["in"], header["required"]) == ("header", False)
        assert set(_references(document)) <= {f"#/components/schemas/{name}" for name in schemas}

    visit(story, hi)


def _references(node: Any) -> Any:
    if isinstance(node, list):
        for each in node:
            yield from _references(each)
    elif isinstance(node, dict):
        for key, each in node.items():
            if key == "$ref":
                yield each
            yield from _references(each)
