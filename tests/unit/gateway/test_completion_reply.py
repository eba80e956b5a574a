"""What OpenAI's clients are answered, byte for byte, and what they must not take for an answer."""

import json
from typing import Any

import msgspec
import pytest

from orchestra.chat.turns import error_frame
from orchestra.engines.apology import TEXT
from orchestra.errors import ProviderFailed, TurnCancelled, TurnLost
from orchestra.frames import DeltaFrame, Done, LogFrame, Started
from orchestra.gateway.completion_reply import CompletionStream, NoAnswer, completion_of, error_event
from orchestra.gateway.completion_request import Asked, asked_of
from orchestra.model import ChatReply, Usage

STARTED = Started("s1", "t1", 1, "hello")


def asked(*, usage: bool = False) -> Asked:
    return asked_of(
        {
            "model": "orchestra",
            "messages": [{"role": "user", "content": "hello"}],
            "stream": True,
            "stream_options": {"include_usage": usage},
        }
    )


def reply(text: str, *, engine: str = "unified", finish_reason: str = "stop", degraded: tuple[str, ...] = ()) -> Done:
    whole = ChatReply("t1", "s1", "c1", text, engine, "m-2026", finish_reason, Usage(11, 2), degraded=degraded)
    return Done("t1", 9, whole)


def delta(text: str) -> DeltaFrame:
    return DeltaFrame("t1", 2, text)


def told(*frames: LogFrame, usage: bool = False) -> Any:
    """Return the bytes of a stream of these frames, or what it failed with."""
    stream = CompletionStream(asked(usage=usage), "t1", 1_700_000_000)
    data = b""
    for number, frame in enumerate(frames, 1):
        assert not stream.ended
        said = stream.feed(frame)
        if not isinstance(said, bytes):
            assert stream.ended
            return said
        assert stream.ended == (number == len(frames))
        data += said
    return data


def content(data: bytes) -> list[str]:
    """Return the pieces of text, as a client reads them."""
    events = [json.loads(line[6:]) for line in data.decode().split("\n\n") if line.startswith("data: {")]
    return [text for each in events for choice in each["choices"] if (text := choice["delta"].get("content"))]


HEAD = '"id":"chatcmpl-t1","object":"chat.completion.chunk","created":1700000000,"model":"orchestra",'
BEHIND = '"x_orchestra":{"turn_id":"t1","session_id":"s1","engine":"unified","model":"m-2026","degraded":["memory"]}'
ROLE = '{"role":"assistant","content":""}'


def event(delta: str, rest: str, finish: str = "null") -> str:
    choice = '{"index":0,"delta":' + delta + ',"logprobs":null,"finish_reason":' + finish + "}"
    return "data: {" + HEAD + '"choices":[' + choice + '],"system_fingerprint":null' + rest + "}\n\n"


def test_a_whole_stream_byte_for_byte() -> None:
    done = reply("Grüezi \n", degraded=("memory",))
    assert told(STARTED, delta("Grüezi "), delta("\n"), done).decode() == "".join(
        (
            event(ROLE, ""),
            event('{"content":"Grüezi "}', ""),
            event(r'{"content":"\n"}', ""),
            event("{}", "," + BEHIND, '"stop"'),
            "data: [DONE]\n\n",
        )
    )


def test_with_usage_every_chunk_has_it_and_the_last_one_no_choices() -> None:
    usage = '"usage":{"prompt_tokens":11,"completion_tokens":2,"total_tokens":13}'
    done = reply("Hi", finish_reason="length", degraded=("memory",))
    assert told(STARTED, delta("Hi"), done, usage=True).decode() == "".join(
        (
            event(ROLE, ',"usage":null'),
            event('{"content":"Hi"}', ',"usage":null'),
            event("{}", ',"usage":null,' + BEHIND, '"length"'),
            "data: {" + HEAD + '"choices":[],"system_fingerprint":null,' + usage + "}\n\n",
            "data: [DONE]\n\n",
        )
    )


def test_the_whole_object() -> None:
    done = completion_of(reply("Hi", degraded=("memory",)).reply, asked(), 1_700_000_000)
    assert msgspec.json.encode(done).decode() == (
        '{"id":"chatcmpl-t1","object":"chat.completion","created":1700000000,"model":"orchestra","choices":[{"index":0,'
        '"message":{"role":"assistant","content":"Hi","refusal":null},"logprobs":null,"finish_reason":"stop"}],'
        f'"usage":{{"prompt_tokens":11,"completion_tokens":2,"total_tokens":13}},{BEHIND},"system_fingerprint":null}}'
    )


@pytest.mark.parametrize(
    ("reason", "told_as"),
    [("stop", "stop"), ("length", "length"), ("content_filter", "content_filter"), ("eos", "stop"), ("", "stop")],
)
def test_only_reasons_that_strict_clients_know_are_told(reason: str, told_as: str) -> None:
    done = reply("Hi", finish_reason=reason)
    assert completion_of(done.reply, asked(), 0).choices[0].finish_reason == told_as


def test_a_reply_of_which_no_piece_came_is_told_whole() -> None:
    """Where the level allows no streaming, or the turn was answered before."""
    data = told(STARTED, reply("all of it"))
    assert content(data) == ["all of it"]
    assert data.count(b'"role"') == 1
    assert data.endswith(b"data: [DONE]\n\n")


def test_what_pieces_left_out_is_told_before_the_end() -> None:
    assert content(told(STARTED, delta("all "), reply("all of it"))) == ["all ", "of it"]


def test_an_empty_answer_has_its_role_and_its_end() -> None:
    data = told(STARTED, reply("", finish_reason="length"))
    assert content(data) == []
    assert (data.count(b'"role"'), data.count(b'"length"'), data.count(b"[DONE]")) == (1, 1, 1)


def test_an_apology_is_no_answer() -> None:
    done = reply(TEXT, engine="apology", finish_reason="apology")
    with pytest.raises(NoAnswer) as caught:
        completion_of(done.reply, asked(), 0)
    assert (caught.value.status, caught.value.retryable) == (503, True)
    assert isinstance(told(STARTED, delta(TEXT), done), NoAnswer)
    assert CompletionStream(asked(), "t1", 0).feed(delta(TEXT)) == b""  # nothing of it is sent before that is known


def test_an_answer_that_begins_like_an_apology_is_one_all_the_same() -> None:
    assert content(told(STARTED, delta(TEXT), delta(" Or can I?"), reply(TEXT + " Or can I?"))) == [TEXT + " Or can I?"]
    assert content(told(STARTED, delta(TEXT), reply(TEXT))) == [TEXT]


def test_a_turn_that_begins_anew_goes_on_only_where_nothing_was_sent() -> None:
    assert content(told(STARTED, STARTED, delta("Hi"), reply("Hi"))) == ["Hi"]
    assert isinstance(told(STARTED, delta("Hi"), STARTED), TurnLost)
    assert isinstance(told(STARTED, delta("Hi"), reply("Good day")), TurnLost)


def test_an_error_ends_a_stream_with_what_is_known_of_it() -> None:
    failed = error_frame(ProviderFailed("it broke"), turn_id="t1", seq=3)
    fault = told(STARTED, delta("half an"), failed)
    assert fault is failed
    assert error_event(fault) == (
        b'data: {"error":{"message":"it broke","type":"api_error","param":null,"code":"provider_failed"}}\n\n'
    )
    assert b'"turn_cancelled"' in error_event(TurnCancelled("stopped"))
