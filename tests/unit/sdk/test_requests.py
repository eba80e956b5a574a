"""What is sent, and that what comes back is what the service sends."""

import asyncio
import json

import msgspec
import pytest

from orchestra import limits, sdk
from orchestra.errors import InvalidRequest, PayloadTooLarge
from orchestra.gateway import sessions
from orchestra.model import Profile
from orchestra.sdk import AsyncClient, Client, Retries, Unreachable, requests, wire
from orchestra.sdk.failures import Answer, UnexpectedAnswer


@pytest.mark.parametrize("name", ["SessionStatus", "History"])
def test_a_session_is_read_as_the_service_writes_it(name):
    assert getattr(sdk, name) is getattr(sessions, name)


def test_a_change_of_a_profile_says_what_is_changed_and_no_more():
    change = requests.ProfileChange(system=None, context={"language": "German", "mood": None})
    sent = json.loads(requests.change("s", change).body)
    assert sent == {"system": None, "context": {"language": "German", "mood": None}}
    patch = msgspec.convert(sent, sessions.ProfilePatch)
    assert patch.applied_to(Profile(system="x", pinned=(1,), context={"mood": "good"})) == Profile(
        pinned=(1,), context={"language": "German"}
    )


def test_a_session_is_made_as_the_service_reads_it():
    ask = requests.create("s", "ada", Profile(system="Be kind.", metadata={"title": "t"}))
    made = msgspec.json.decode(ask.body, type=sessions.NewSession)
    assert made == sessions.NewSession("s", "ada", "Be kind.", {}, {"title": "t"})


def test_an_answer_that_is_something_else_says_so():
    with pytest.raises(UnexpectedAnswer, match="check that the URL"):
        requests.reply_of(Answer(200, {}, b"<html>"))


WRONG_URLS = ("", "localhost:8000", "ws://a", "http://", "http://a?b", "ftp://a", "http://127.0.0.1:abc", "http://[::1")


@pytest.mark.parametrize(
    "url",
    [*WRONG_URLS, "http://127.0.0.1:65536", "http://127.0.0.1:0", "http://:80", "http://\ud800", "http://a\x01b", 1],
)
def test_an_address_that_is_none_is_refused_with_an_example(url):
    with pytest.raises(InvalidRequest, match="http://127"):
        wire.checked_url(url)


def test_addresses_of_web_sockets():
    assert wire.socket_url(wire.checked_url("https://a.example/chat/"), "c", "s") == "wss://a.example/chat/chat/ws/c/s"
    assert wire.socket_url(wire.checked_url("http://a:1/"), "c", "s") == "ws://a:1/chat/ws/c/s"


@pytest.mark.parametrize("value", ["", "-a", "a b", "a/b", "x" * 129, 1])
def test_a_wrong_id_is_refused_before_it_is_sent(value):
    with pytest.raises(InvalidRequest) as raised:
        requests.checked_id("session_id", value)
    assert raised.value.field == "session_id"


@pytest.mark.parametrize("message", ["\ud800", "nul\0", 1, None, b"x"])
def test_what_cannot_be_said_is_refused_before_it_is_sent(message):
    with pytest.raises(InvalidRequest) as raised:
        requests.chat(message, None, None, "k", stream=False)
    assert raised.value.field == "message"


def test_a_message_may_be_so_long():
    assert requests.checked_message("x" * limits.MESSAGE_CHARS_MAX)
    with pytest.raises(PayloadTooLarge):
        requests.checked_message("x" * (limits.MESSAGE_CHARS_MAX + 1))


@pytest.mark.parametrize("system", ["\ud800", object()])
def test_what_is_no_json_is_refused(system):
    with pytest.raises(InvalidRequest, match="JSON"):
        requests.create("s", None, Profile(system=system))


@pytest.mark.parametrize("make", [Client, AsyncClient])
def test_who_does_not_enter_a_conversation_is_told_to(make):
    conversation = make("http://127.0.0.1:1").session().connect()
    with pytest.raises(InvalidRequest, match="enter it first"):
        asyncio.run(conversation.send("hello"))


def test_a_name_that_cannot_be_is_not_reached():
    with Client(f"http://{'a' * 70}.example", retries=Retries(attempts_max=1)) as client, pytest.raises(Unreachable):
        client.session().say("hello")
