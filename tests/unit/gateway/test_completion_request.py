"""What OpenAI's clients ask for: what is honoured, ignored, refused, and by which parameter."""

import re
from typing import Any

import pytest

from orchestra import limits
from orchestra.errors import InvalidRequest
from orchestra.gateway.completion_request import (
    DEFAULTS,
    IGNORED,
    IGNORED_OF_MESSAGES,
    ContextTooLong,
    UnsupportedParameter,
    asked_of,
)
from orchestra.model import ChatRequest, Given, Message, Sampling

HELLO: dict[str, Any] = {"role": "user", "content": "hello"}


def body(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"model": "orchestra", "messages": list(messages) or [HELLO], **more}


def refusal(asked: object, kind: type[InvalidRequest] = InvalidRequest) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        asked_of(asked)
    assert type(caught.value) is kind
    return caught.value


def test_the_least_that_can_be_asked() -> None:
    asked = asked_of(body())
    assert asked == ("orchestra", False, False, ChatRequest("hello"), Given((), Sampling(), "orchestra"))


def test_history_is_what_was_given_with_the_systems_first_and_texts_joined() -> None:
    asked = asked_of(
        body(
            {"role": "user", "content": [{"type": "text", "text": "two"}, {"type": "text", "text": "parts"}]},
            {"role": "system", "content": "be brief"},
            {"role": "assistant", "content": "", "name": "x", "tool_calls": [], "refusal": None, "annotations": [1]},
            {"role": "developer", "content": "be kind"},
            {"role": "user", "content": [{"type": "text", "text": "now"}], "name": "ada"},
        )
    )
    assert asked.request.message == "now"
    assert asked.given.messages == (
        Message("system", "be brief"),
        Message("system", "be kind"),
        Message("user", "two\nparts"),
        Message("assistant", ""),
    )


def test_every_way_to_draw_is_passed_on() -> None:
    drawn = {
        "temperature": 0,
        "top_p": 0.5,
        "max_tokens": 7,
        "stop": ["a", "b"],
        "seed": -1,
        "presence_penalty": -2,
        "frequency_penalty": 2.0,
    }
    assert asked_of(body(**drawn)).given.sampling == Sampling(0.0, 0.5, 7, ("a", "b"), -1, -2.0, 2.0)
    assert asked_of(body(stop="end", max_completion_tokens=9)).given.sampling == Sampling(max_tokens=9, stop=("end",))
    assert asked_of(body(stop=[], max_tokens=None)).given.sampling == Sampling()


def test_how_it_is_sent() -> None:
    asked = asked_of(body(stream=True, stream_options={"include_usage": True, "include_obfuscation": False}))
    assert (asked.stream, asked.include_usage, asked.request.stream) == (True, True, True)
    asked = asked_of(body(stream=None, stream_options=None))
    assert (asked.stream, asked.include_usage, asked.request.stream) == (False, False, False)


@pytest.mark.parametrize(("user", "user_id"), [("ada", "ada"), ("ada@example.org", None), ("", None), (None, None)])
def test_a_user_that_can_be_one_is_whose_memories_count(user: str | None, user_id: str | None) -> None:
    assert asked_of(body(user=user)).request.user_id == user_id


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_what_cannot_change_the_answer_is_ignored(name: str) -> None:
    assert asked_of(body(**{name: {"any": "thing"}})) == asked_of(body())


@pytest.mark.parametrize("name", sorted(IGNORED_OF_MESSAGES))
def test_what_other_servers_answers_had_is_ignored(name: str) -> None:
    assert asked_of(body({**HELLO, name: "any"})) == asked_of(body())


UNSUPPORTED = {
    "audio": {"voice": "x"},
    "frobnicate": 0,
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "logit_bias": {"1": 1},
    "logprobs": True,
    "modalities": ["text", "audio"],
    "n": 2,
    "reasoning_effort": "high",
    "response_format": {"type": "json_object"},
    "tool_choice": "required",
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "top_k": 40,
    "top_logprobs": 3,
    "web_search_options": {"x": 1},
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_done_is_refused_by_name_and_fine_where_it_asks_for_nothing(name: str) -> None:
    error = refusal(body(**{name: UNSUPPORTED[name]}), UnsupportedParameter)
    assert (error.status, error.kind, error.field) == (400, "unsupported-parameter", name)
    assert name in error.detail
    for nothing in (None, [], {}, *DEFAULTS.get(name, ())):
        assert asked_of(body(**{name: nothing})) == asked_of(body())


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x", "tool_call_id": "1"}, "messages[1].role"),
        ({"role": "function", "content": "x", "name": "f"}, "messages[1].role"),
        ({"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}, "messages[1].tool_calls"),
        ({"role": "assistant", "content": None, "function_call": {"name": "f"}}, "messages[1].function_call"),
        ({"role": "assistant", "content": "x", "audio": {"id": "1"}}, "messages[1].audio"),
        ({"role": "assistant", "content": "", "refusal": "no"}, "messages[1].refusal"),
        (
            {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}]},
            "messages[1].content[1].type",
        ),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "messages[1].content[0].type"),
    ],
)
def test_tools_and_pictures_in_messages_are_refused_by_their_place(message: Any, param: str) -> None:
    assert refusal(body(HELLO, message, HELLO), UnsupportedParameter).field == param


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ([], None),
        ("x", None),
        ({}, "model"),
        ({"model": "orchestra"}, "messages"),
        ({"messages": [HELLO]}, "model"),
        ({"model": 1, "messages": [HELLO]}, "model"),
        ({"model": "orchestra", "messages": []}, "messages"),
        ({"model": "orchestra", "messages": "hello"}, "messages"),
        (body("hello"), "messages[0]"),
        (body({"role": "user"}), "messages[0].content"),
        (body({"content": "x"}), "messages[0].role"),
        (body({"role": "bishop", "content": "x"}), "messages[0].role"),
        (body(HELLO, {"role": "user", "content": None}, HELLO), "messages[1].content"),
        (body({"role": "user", "content": 5}), "messages[0].content"),
        (body({"role": "user", "content": ["x"]}), "messages[0].content[0]"),
        (body({"role": "user", "content": [{"type": "text"}]}), "messages[0].content[0].text"),
        (body({"role": "user", "content": [{"text": "x"}]}), "messages[0].content[0].type"),
        (body({"role": "user", "content": " \n"}), "messages[0].content"),
        (body({"role": "user", "content": []}), "messages[0].content"),
        (body({"role": "user", "content": "a\0b"}, HELLO), "messages[0].content"),
        (body(HELLO, {"role": "assistant", "content": "x"}), "messages[1].role"),
        (body({"role": "system", "content": "x"}), "messages[0].role"),
        (body(stream="yes"), "stream"),
        (body(stream_options={"include_usage": 1}), "stream_options.include_usage"),
        (body(user=5), "user"),
        (body(temperature="hot"), "temperature"),
        (body(temperature=True), "temperature"),
        (body(max_tokens=1.5), "max_tokens"),
        (body(max_tokens=5, max_completion_tokens=6), "max_tokens"),
        (body(stop="\0"), "stop"),
        (body(stop=["a", "b\0"]), "stop"),
        (body(stop=["a", ""]), "stop[1]"),
        (body(stop=["a", 1]), "stop[1]"),
        (body(stop=list("abcde")), "stop"),
        (body(stop="x" * 1001), "stop"),
        (body(seed=2**63), "seed"),
    ],
)
def test_what_is_wrong_is_named_by_its_parameter(asked: object, param: str | None) -> None:
    error = refusal(asked)
    assert error.field == param
    assert re.search(r"send|must be|say something|remove it", error.detail), error.detail


def test_what_is_refused_says_what_may_be_sent_instead() -> None:
    asked = body(HELLO, {"role": "user", "content": None}, HELLO)
    assert refusal(asked).detail == (
        "messages[1].content: Expected `str | array`, got `null`; send a text, or a list of parts such as "
        "{'type': 'text', 'text': 'Hello'}"
    )


def test_a_limit_that_is_said_twice_the_same_way_is_one() -> None:
    assert asked_of(body(max_tokens=5, max_completion_tokens=5)).given.sampling.max_tokens == 5


@pytest.mark.parametrize("asked", [{"n": True}, {"logprobs": 0}, {"top_logprobs": False}, {"n": 1.0}])
def test_true_is_not_one(asked: dict[str, Any]) -> None:
    assert refusal(body(**asked), UnsupportedParameter).field == next(iter(asked))


BOUNDS: dict[str, tuple[list[float], list[float]]] = {
    "temperature": ([0, 2], [-0.001, 2.001]),
    "top_p": ([0, 1], [-0.001, 1.001]),
    "max_tokens": ([1, limits.TOKENS_COUNTED_MAX], [0, limits.TOKENS_COUNTED_MAX + 1]),
    "max_completion_tokens": ([1, limits.TOKENS_COUNTED_MAX], [0, limits.TOKENS_COUNTED_MAX + 1]),
    "presence_penalty": ([-2, 2], [-2.001, 2.001]),
    "frequency_penalty": ([-2, 2], [-2.001, 2.001]),
    "seed": ([-(2**63), 2**63 - 1], [-(2**63) - 1, 2**63]),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds(name: str) -> None:
    within, beyond = BOUNDS[name]
    for value in within:
        asked_of(body(**{name: value}))
    for value in beyond:
        assert refusal(body(**{name: value})).field == name


def test_a_history_may_have_more_messages_than_a_session_and_is_never_cut() -> None:
    most = limits.GIVEN_MESSAGES_MAX
    assert most == 2_000
    assert len(asked_of(body(*[HELLO] * (most + 1))).given.messages) == most
    error = refusal(body(*[HELLO] * (most + 2)), ContextTooLong)
    assert (error.status, error.kind, error.field) == (400, "context-length-exceeded", "messages")
    assert f"{most + 1} messages, at most {most}" in error.detail


@pytest.mark.parametrize(
    ("unit", "most", "history"), [("tokens", 5, "we go to sea"), ("bytes", 9, "w\u00eb \U0001f30a!")]
)
def test_more_text_than_a_session_may_hold_is_refused(
    monkeypatch: pytest.MonkeyPatch, unit: str, most: int, history: str
) -> None:
    monkeypatch.setattr(limits, f"SESSION_{unit.upper()}_MAX", most)
    assert asked_of(body({**HELLO, "content": history}, HELLO))
    error = refusal(body({**HELLO, "content": f"{history} x"}, HELLO), ContextTooLong)
    assert (
        f"{unit} with the last message, at most {most}".replace("bytes with the last message", "bytes") in error.detail
    )


def test_the_last_message_counts_among_the_tokens() -> None:
    half = {**HELLO, "content": "\u6f22" * (limits.SESSION_TOKENS_MAX // 2)}
    assert asked_of(body(half, half))
    more = {**HELLO, "content": half["content"] + "\u6f22"}
    for messages in ((half, more), (more, half)):
        error = refusal(body(*messages), ContextTooLong)
        assert f"{limits.SESSION_TOKENS_MAX + 1} tokens with the last message" in error.detail


def test_the_last_message_is_bounded_as_everywhere() -> None:
    assert asked_of(body({"role": "user", "content": "x" * limits.MESSAGE_CHARS_MAX}))
    error = refusal(body(HELLO, {"role": "user", "content": "x" * (limits.MESSAGE_CHARS_MAX + 1)}), ContextTooLong)
    assert error.field == "messages[1].content"
