"""Sessions over HTTP: made with a profile, described, changed and deleted."""

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from orchestra import limits
from orchestra.chat.turns import LiveTurns
from orchestra.errors import ProviderFailed
from orchestra.events import StoreFinished
from orchestra.gateway.sessions import ProfilePatch
from orchestra.model import Delta, Finish, Profile, Turn
from orchestra.resilience.degradation import Degradation, Level
from sim import asgi
from sim.faults import StoreDown

SESSIONS = "/chat/v2/sessions"
CHAT = "/chat/v2/chat"
HOUR = 3600.0


async def hi(_prompt: Any) -> Any:
    yield Delta("hi")
    yield Finish("stop", "scripted")


async def asked(client: Any, status: int, method: str, path: str, body: object = None, **headers: str) -> Any:
    """Return what is answered, with that status, and never to be stored."""
    answer = await client.ask(method, path, body, **headers)
    assert answer.status == status, answer.text
    assert status >= 400 or path == CHAT or answer.header("Cache-Control") == "no-store"
    return json.loads(answer.body) if answer.body else None


async def said(client: Any, message: str, session_id: str, status: int = 200) -> Any:
    return await asked(client, status, "POST", CHAT, {"message": message, "session_id": session_id})


def test_a_session_is_made_with_a_profile_that_prompts_have(visit: Any) -> None:
    prompts: list[str] = []

    async def listens(prompt: Any) -> Any:
        prompts.append(" | ".join(each.content for each in prompt.messages))
        async for chunk in hi(prompt):
            yield chunk

    async def story(client: Any) -> None:
        body = {"session_id": "trip-1", "user_id": "u", "system": "Be kind.", "context": {"language": "German"}}
        answer = await client.ask("POST", SESSIONS, body | {"metadata": {"title": "Rome"}})
        assert (answer.status, answer.header("Location")) == (201, "/chat/v2/sessions/trip-1")
        made = json.loads(answer.body)
        profile = {"system": "Be kind.", "context": {"language": "German"}, "metadata": {"title": "Rome"}}
        assert (made["session_id"], made["version"], made["profile"], made["live"]) == ("trip-1", 0, profile, [])
        await said(client, "hello", "trip-1")
        assert "Be kind." in prompts[0]
        assert "German" in prompts[0]
        assert "Rome" not in prompts[0]
        assert await asked(client, 404, "POST", CHAT, body={"message": "x", "session_id": "trip-1", "user_id": "v"})

    visit(story, listens)


def test_a_session_made_without_anything_gets_an_id_and_is_there(visit: Any) -> None:
    async def story(client: Any) -> None:
        made = await asked(client, 201, "POST", SESSIONS, {})
        assert len(made["session_id"]) == 32
        read = await asked(client, 200, "GET", f"{SESSIONS}/{made['session_id']}")
        assert (read["version"], read["turns"], read["state"], read["profile"]) == (0, [], "active", {})
        assert (await said(client, "hello", made["session_id"]))["session_id"] == made["session_id"]

    visit(story, hi)


def test_an_id_that_is_or_was_a_session_s_is_a_conflict(visit: Any) -> None:
    async def story(client: Any) -> None:
        async def refused(session_id: str) -> None:
            problem = await asked(client, 409, "POST", SESSIONS, {"session_id": session_id, "system": "mine"})
            assert problem["type"] == "urn:ai-orchestra:problem:session-exists"
            assert (problem["field"], "choose another" in problem["detail"]) == ("$.session_id", True)

        for body in ({"session_id": "s-1"}, {"session_id": "s-2", "user_id": "u"}):
            await asked(client, 201, "POST", SESSIONS, body)
            await refused(body["session_id"])
        begun = (await asked(client, 200, "POST", CHAT, {"message": "hello"}))["session_id"]
        await refused(begun)
        assert (await asked(client, 200, "GET", f"{SESSIONS}/{begun}"))["profile"] == {}
        await asked(client, 204, "DELETE", f"{SESSIONS}/s-1")
        await refused("s-1")

    visit(story, hi)


def test_of_two_who_make_one_session_at_once_one_does(visit: Any) -> None:
    async def story(client: Any) -> None:
        bodies = [{"session_id": "s-1", "system": text} for text in ("mine", "yours")]
        answers = await asyncio.gather(*(client.ask("POST", SESSIONS, body) for body in bodies))
        assert [answer.status for answer in answers] == [201, 409]
        assert (await asked(client, 200, "GET", f"{SESSIONS}/s-1"))["profile"] == {"system": "mine"}

    visit(story, hi)


def test_the_session_is_described_along_its_life(visit: Any) -> None:
    async def story(client: Any) -> None:
        session_id = (await asked(client, 200, "POST", CHAT, {"message": "hello"}))["session_id"]
        path = f"{SESSIONS}/{session_id}"
        begun = await asked(client, 200, "GET", path)
        assert (begun["state"], begun["version"], begun["messages"], len(begun["turns"])) == ("active", 1, 2, 1)
        assert begun["expires_at"] - begun["updated_at"] == limits.SESSION_TTL_SECONDS
        assert 0 < begun["tokens"] < 50
        assert 0 < begun["bytes"] < 2_000
        now = client.service.ports.clock.now()
        for unused_seconds, state in (
            (limits.SESSION_IDLE_SECONDS - 1, "active"),
            (limits.SESSION_IDLE_SECONDS + 1, "idle"),
            (limits.SESSION_TTL_SECONDS - 1, "idle"),
            (limits.SESSION_TTL_SECONDS + 1, "expired"),
        ):
            old = Turn("", "", 1, "c", "hello", "hi", "unified", "scripted", at=now - unused_seconds)
            await client.keep(f"s-{unused_seconds}", old)
            for _ in range(2):  # looking at it is no use of it
                read = await asked(client, 200, "GET", f"{SESSIONS}/s-{unused_seconds}")
                assert (read["state"], read["version"], len(read["turns"])) == (state, 1, 1)
                assert read["updated_at"] == read["created_at"] == old.at
            await said(client, "still there?", read["session_id"], status=404 if state == "expired" else 200)

    visit(story, hi)


def test_live_turns_are_told_and_end_with_the_session(visit: Any) -> None:
    async def talks_on(_prompt: Any) -> Any:
        yield Delta("well ")
        await asyncio.sleep(HOUR / 2)

    async def story(client: Any) -> None:
        await asked(client, 201, "POST", SESSIONS, {"session_id": "s-1"})
        asking = asyncio.create_task(said(client, "hello", "s-1", status=409))
        waiting = asyncio.create_task(said(client, "and", "s-1", status=409))
        await asyncio.sleep(1)
        assert client.provider.running == 1
        live = (await asked(client, 200, "GET", f"{SESSIONS}/s-1"))["live"]
        assert [each["seq"] for each in live] == [2, 1]
        await asked(client, 204, "DELETE", f"{SESSIONS}/s-1")
        assert client.provider.running == 0
        assert (await asking)["type"].endswith("turn-cancelled")
        assert (await waiting)["type"].endswith("turn-cancelled")
        assert await (await client.resolve(LiveTurns)).running("s-1") == ()

    visit(story, talks_on, turn_seconds_max=HOUR)


def test_a_deleted_session_is_gone_with_its_turns_and_memories(visit: Any) -> None:
    recalled: list[int] = []

    async def remembers(prompt: Any) -> Any:
        recalled.append(len(prompt.recalled))
        async for chunk in hi(prompt):
            yield chunk

    async def story(client: Any) -> None:
        about = {"message": "my cat is called Mia", "user_id": "u"}
        session_id = (await asked(client, 200, "POST", CHAT, about))["session_id"]
        await asked(client, 200, "POST", CHAT, about)
        assert recalled == [0, 1]
        path = f"{SESSIONS}/{session_id}"
        await asked(client, 204, "DELETE", path)
        for method, target in (("GET", path), ("DELETE", path), ("GET", f"{path}/export"), ("PATCH", path)):
            problem = await asked(client, 404, method, target, {} if method == "PATCH" else None)
            assert (problem["type"], problem["field"]) == ("urn:ai-orchestra:problem:session-unknown", "session_id")
        await said(client, "hello", session_id, status=404)
        await asked(client, 200, "POST", CHAT, about)
        assert recalled == [0, 1, 1]  # of the session that is left

    visit(story, remembers)


def test_nothing_of_a_deleted_session_is_told_from_memory(visit: Any) -> None:
    """Neither the log of a turn that ended a moment ago, nor its answer to whoever asks the same."""
    working = [True]

    async def once(prompt: Any) -> Any:
        if not working[0]:
            raise ProviderFailed("it is gone")
        async for chunk in hi(prompt):
            yield chunk

    async def story(client: Any) -> None:
        body, key = {"message": "my pin is 7", "session_id": "s-1", "stream": True}, "k-1"
        await asked(client, 201, "POST", SESSIONS, {"session_id": "s-1"})
        answer = await client.ask("POST", CHAT, body, Idempotency_Key=key)
        (_, turn_id, _) = re.findall(r"id: (.*)/(.*)/(.*)", answer.text)[0]
        events = f"{SESSIONS}/s-1/turns/{turn_id}/events"
        assert (await client.ask("GET", events)).status == 200
        working[0] = False
        cached = await asked(client, 200, "POST", CHAT, {"message": "my pin is 7"})
        assert cached["engine"] == "cache"
        await asked(client, 204, "DELETE", f"{SESSIONS}/s-1")
        problem = await asked(client, 404, "GET", events)
        assert problem["type"].endswith("turn-unknown")
        assert (await client.ask("POST", CHAT, body, Idempotency_Key=key)).status == 404
        await asked(client, 502, "POST", CHAT, {"message": "my pin is 7"})

    visit(story, once, guards={"unified": {"retry": {"attempts_max": 1}, "fallbacks": ("cache",)}})


def test_a_profile_is_changed_as_a_merge_patch(visit: Any) -> None:
    async def story(client: Any) -> None:
        await asked(client, 201, "POST", SESSIONS, {"session_id": "s-1", "system": "Be kind.", "context": {"a": "1"}})
        await said(client, "hello", "s-1")
        path = f"{SESSIONS}/s-1"

        async def patched(patch: object, **headers: str) -> Any:
            changed = await asked(client, 200, "PATCH", path, patch, **headers)
            assert (await asked(client, 200, "GET", path))["profile"] == changed["profile"]
            return changed["profile"]

        kind = {"system": "Be kind."}
        assert await patched({"context": {"a": None, "b": "2"}}) == kind | {"context": {"b": "2"}}
        assert await patched({"metadata": {"title": "Rome"}, "context": None}) == kind | {"metadata": {"title": "Rome"}}
        assert await patched({"pinned": [1], "metadata": None}) == kind | {"pinned": [1]}
        assert await patched({}) == kind | {"pinned": [1]}
        assert await patched({"system": None}) == {"pinned": [1]}
        assert await patched({"pinned": None}) == {}

    visit(story, hi)


def test_a_merge_patch_may_say_what_it_is(visit: Any) -> None:
    async def story(client: Any) -> None:
        await asked(client, 201, "POST", SESSIONS, {"session_id": "s-1"})
        path = f"{SESSIONS}/s-1"

        async def sent(method: str, path: str, body: bytes, media_type: str) -> Any:
            return await asgi.call(client.app, method, path, {"Content-Type": media_type}, body)

        for media_type, status in (
            ("application/merge-patch+json", 200),
            ("application/merge-patch+json; charset=utf-8", 200),
            ("application/json", 200),
            ("application/json-patch+json", 415),
        ):
            answer = await sent("PATCH", path, b'{"system": "x"}', media_type)
            assert answer.status == status, media_type
        assert "application/merge-patch+json" in json.loads(answer.body)["detail"]
        assert (await sent("POST", SESSIONS, b"{}", "application/merge-patch+json")).status == 415

    visit(story, hi)


def test_changes_at_the_same_time_are_all_kept(visit: Any) -> None:
    async def story(client: Any) -> None:
        await asked(client, 201, "POST", SESSIONS, {"session_id": "s-1"})
        changes = [
            asked(client, 200, "PATCH", f"{SESSIONS}/s-1", {"metadata": {f"k{number}": "v"}}) for number in range(4)
        ]
        await asyncio.gather(*changes, said(client, "hello", "s-1"))
        read = await asked(client, 200, "GET", f"{SESSIONS}/s-1")
        assert read["profile"]["metadata"] == {f"k{number}": "v" for number in range(4)}
        assert read["version"] == 1

    visit(story, hi)


def test_bad_bodies_are_refused_by_field(visit: Any) -> None:
    async def story(client: Any) -> None:
        await asked(client, 201, "POST", SESSIONS, {"session_id": "s-1"})
        for method, body, status, field in (
            ("POST", {"session_id": "-"}, 400, "$.session_id"),
            ("POST", {"session_id": "a" * 129}, 400, "$.session_id"),
            ("POST", {"user_id": ""}, 400, "$.user_id"),
            ("POST", {"pinned": [1]}, 400, "$.pinned"),
            ("POST", {"system": 7}, 400, "$.system"),
            ("POST", {"context": {"a": None}}, 400, "$.context[...]"),
            ("POST", [], 400, "$"),
            ("POST", {"system": "x" * limits.PROFILE_BYTES_MAX}, 413, "$"),
            ("PATCH", {"session_id": "s-2"}, 400, "$.session_id"),
            ("PATCH", {"pinned": [1]}, 400, "$.pinned"),
            ("PATCH", {"pinned": [0]}, 400, "$.pinned"),
            ("PATCH", {"pinned": 1}, 400, "$.pinned"),
            ("PATCH", {"context": {"a": 1}}, 400, "$.context[...]"),
            ("PATCH", {"metadata": {"": "x"}}, 400, "$.metadata"),
            ("PATCH", {"system": "a\0b"}, 400, "$.system"),
            ("PATCH", None, 415, None),
        ):
            path = SESSIONS if method == "POST" else f"{SESSIONS}/s-1"
            problem = await asked(client, status, method, path, body)
            assert problem.get("field") == field, (method, body)
        assert (await asked(client, 200, "GET", f"{SESSIONS}/s-1"))["profile"] == {}

    visit(story, hi)


def test_in_maintenance_sessions_are_read_and_not_changed(visit: Any) -> None:
    async def story(client: Any) -> None:
        await asked(client, 201, "POST", SESSIONS, {"session_id": "s-1", "system": "x"})
        (await client.resolve(Degradation)).latch(Level.MAINTENANCE, "test")
        path = f"{SESSIONS}/s-1"
        for method, target, body in (("POST", SESSIONS, {}), ("PATCH", path, {"system": None}), ("DELETE", path, None)):
            answer = await client.ask(method, target, body)
            assert (answer.status, answer.header("Retry-After")) == (503, "30"), method
            assert json.loads(answer.body)["type"].endswith("maintenance")
        assert (await asked(client, 200, "GET", path))["profile"] == {"system": "x"}
        assert (await client.ask("GET", f"{path}/export")).status == 200

    visit(story, hi)


def test_a_session_store_that_is_away_is_a_503_for_who_changes(visit: Any) -> None:
    async def story(client: Any) -> None:
        await asked(client, 201, "POST", SESSIONS, {"session_id": "s-1"})
        path = f"{SESSIONS}/s-1"
        with client.faults.injected(StoreDown(at=0.0, lasts=60.0, store="sessions")):
            for method, body in (("PATCH", {"system": "x"}), ("DELETE", None)):
                refused = await client.ask(method, path, body)
                assert (refused.status, refused.header("Retry-After")) == (503, "1")
        assert {event.error for event in client.told(StoreFinished)} == {"", "store-unavailable"}
        assert (await asked(client, 200, "PATCH", path, {"system": "x"}))["profile"] == {"system": "x"}
        assert (await asked(client, 200, "GET", path))["profile"] == {"system": "x"}

    visit(story, hi)


def test_without_the_session_store_a_session_is_read_from_its_conversation(visit: Any) -> None:
    """As it is with the store: page, profile and all."""

    async def story(client: Any) -> None:
        await asked(client, 201, "POST", SESSIONS, {"session_id": "s-1", "system": "Be brief."})
        for message in ("hello", "and now?", "and then?"):
            await said(client, message, "s-1")
        await asked(client, 200, "PATCH", f"{SESSIONS}/s-1", {"pinned": [1], "metadata": {"a": "b"}})
        path = f"{SESSIONS}/s-1?before=end&limit=2"
        with_store = await asked(client, 200, "GET", path)
        assert ([turn["number"] for turn in with_store["turns"]], with_store["messages"]) == ([2, 3], 6)
        with client.faults.injected(StoreDown(at=0.0, lasts=60.0, store="sessions")):
            assert await asked(client, 200, "GET", path) == with_store
            assert (await client.ask("GET", f"{SESSIONS}/unknown")).status == 404
            await client.keep("old", Turn("", "", 1, "c", "hello", "hi", "unified", "scripted", at=1.0))
            assert (await asked(client, 200, "GET", f"{SESSIONS}/old"))["state"] == "expired"
        with client.faults.injected(StoreDown(at=0.0, lasts=60.0, store="conversations")):
            await asked(client, 503, "GET", path)

    visit(story, hi)


def test_the_document_describes_the_routes(visit: Any) -> None:
    async def story(client: Any) -> None:
        document = await client.ask("GET", "/docs/openapi.json")
        paths = json.loads(document.body)["paths"]
        one = paths["/chat/v2/sessions/{session_id}"]
        assert sorted(one) == ["delete", "get", "patch"]
        assert {each["name"] for each in one["get"]["parameters"]} == {"session_id", "after", "before", "limit"}
        assert list(one["patch"]["requestBody"]["content"]) == ["application/merge-patch+json"]
        assert "204" in one["delete"]["responses"]
        assert "201" in paths["/chat/v2/sessions"]["post"]["responses"]
        export = paths["/chat/v2/sessions/{session_id}/export"]["get"]
        assert sorted(export["responses"]["200"]["content"]) == ["application/json", "text/markdown"]

    visit(story, hi)


def merged(target: Any, patch: Any) -> Any:
    """RFC 7396, section 2, as it stands there."""
    if not isinstance(patch, dict):
        return patch
    target = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        else:
            target[name] = merged(target.get(name), value)
    return target


ENTRIES: Callable[..., Any] = lambda values: st.dictionaries(st.sampled_from("abc"), values, max_size=3)  # noqa: E731
PATCHES = st.fixed_dictionaries(
    {},
    optional={
        "system": st.none() | st.text(max_size=3),
        "pinned": st.none() | st.lists(st.integers(1, 9), max_size=3),
        "context": st.none() | ENTRIES(st.none() | st.text(max_size=3)),
        "metadata": st.none() | ENTRIES(st.none() | st.text(max_size=3)),
    },
)
PROFILES = st.builds(
    Profile,
    system=st.none() | st.text(max_size=3),
    pinned=st.lists(st.integers(1, 9), max_size=3).map(tuple),
    context=ENTRIES(st.text(max_size=3)),
    metadata=ENTRIES(st.text(max_size=3)),
)


@given(profile=PROFILES, patch=PATCHES)
def test_a_patch_is_a_json_merge_patch(profile: Profile, patch: Any) -> None:
    expected = msgspec.convert(merged(msgspec.to_builtins(profile), patch), Profile)
    assert msgspec.convert(patch, ProfilePatch).applied_to(profile) == expected
