"""What a client does over HTTP, step by step."""

import msgspec
import pytest

from orchestra.errors import (
    Overloaded,
    ProviderFailed,
    SessionExists,
    SessionUnknown,
    StoreUnavailable,
    TurnLost,
    TurnUnknown,
)
from orchestra.frames import DeltaFrame, Done, Started
from orchestra.gateway.problems import headers_of, problem_of
from orchestra.model import ChatReply, Usage
from orchestra.sdk import Restarted, Retries, Text, Unreachable, flows, requests
from orchestra.sdk.failures import Answer
from orchestra.sdk.flows import Open, Pause, Piece, Read, Send, StreamedTurn, Tell
from orchestra.sdk.requests import Ask
from orchestra.sdk.retries import Attempts

REPLY = ChatReply("t", "s", "c", "One two", "unified", "m", "stop", Usage())
STREAM = Answer(200, {"content-type": "text/event-stream"})
ASK = Ask("GET", "/x")


def problem(error):
    headers = {name.lower(): value for name, value in headers_of(error).items()}
    return Answer(error.status, headers, msgspec.json.encode(problem_of(error, "c")))


def piece(frame):
    return Piece("x", msgspec.json.encode(frame).decode())


def failure(kind, seq):
    told = {"type": "error", "kind": kind.kind, "title": "t", "status": kind.status, "detail": "d", "turn_id": "t"}
    return piece(told | {"retryable": kind.retryable, "seq": seq})


def carried(flow, *came):
    """Carry a flow out on what comes, and return what it did; it ends with its result or its error."""
    did = []
    left = list(came)
    step = next(flow)
    while True:
        did.append(step)
        try:
            if isinstance(step, Tell | Pause):
                step = flow.send(None)
            elif isinstance(got := left.pop(0), Exception):
                step = flow.throw(got)
            else:
                step = flow.send(got)
        except StopIteration as stop:
            assert not left
            return [*did, stop.value]


@pytest.fixture
def attempts(machine):
    return Attempts(Retries(first_seconds=1.0), machine, 100)


@pytest.fixture
def turn():
    return StreamedTurn("Hello", None, None, "k")


def targets(did):
    return [step.ask.method + " " + step.ask.target for step in did if isinstance(step, Open)]


def told(did):
    return [step.event for step in did if isinstance(step, Tell)]


def test_an_exchange_waits_as_it_is_told_and_sends_the_same_again(attempts):
    ok = Answer(200, {})
    did = carried(
        flows.exchange(ASK, attempts), problem(Overloaded("busy", retry_after_seconds=7)), Unreachable("x"), ok
    )
    assert did == [Send(ASK, 100), Pause(7.5), Send(ASK, 100), Pause(1.0), Send(ASK, 100), ok]


def test_a_turn_is_told_how_long_it_is_waited_for(attempts, machine):
    flow = flows.exchange(ASK, attempts, timed=True)
    assert next(flow).ask.headers == {"X-Request-Timeout": "100.000"}
    machine.passes(97.25)
    flow.throw(Unreachable("x"))
    assert flow.send(None).ask.headers == {"X-Request-Timeout": "2.750"}


def test_a_session_of_a_new_id_that_exists_was_made_by_the_attempt_before(attempts):
    exists = problem(SessionExists("it does"))
    assert carried(flows.created(ASK, attempts, is_new=True), Unreachable("x"), exists)[-1] is None
    with pytest.raises(SessionExists):
        carried(flows.created(ASK, attempts, is_new=False), exists)


def test_a_session_that_is_gone_was_deleted_by_the_attempt_before_if_there_was_one(attempts, machine):
    unknown = problem(SessionUnknown("gone"))
    assert carried(flows.deleted(ASK, attempts), Unreachable("x"), unknown)[-1] is None
    with pytest.raises(SessionUnknown):
        carried(flows.deleted(ASK, Attempts(Retries(), machine, 100)), unknown)


def test_a_stream_that_is_cut_goes_on_behind_what_came(attempts, turn):
    did = carried(
        flows.streamed(turn, attempts),
        *(STREAM, piece(Started("s", "t", 1, "Hello")), piece(DeltaFrame("t", 2, "One ")), None),
        *(STREAM, piece(DeltaFrame("t", 3, "two")), piece(Done("t", 4, REPLY))),
    )
    assert targets(did) == ["POST /chat/v2/chat", "GET /chat/v2/sessions/s/turns/t/events"]
    assert [step for step in did if isinstance(step, Open)][1].ask.headers["Last-Event-ID"] == "s/t/2"
    assert told(did) == [Text("t", "One "), Text("t", "two")]
    assert turn.reply == REPLY


def test_a_stream_may_be_cut_again_and_again_while_it_gets_on(machine, turn):
    did = carried(
        flows.streamed(turn, Attempts(Retries(attempts_max=2), machine, 100)),
        *(STREAM, piece(Started("s", "t", 1, "Hello")), piece(DeltaFrame("t", 2, "One ")), None),
        *(STREAM, piece(DeltaFrame("t", 3, "t")), None),
        *(STREAM, piece(DeltaFrame("t", 4, "w")), None),
        *(STREAM, piece(Done("t", 5, REPLY))),
    )
    assert "".join(str(each) for each in told(did)) == "One two"


@pytest.mark.parametrize(
    "end",
    [(STREAM, failure(TurnLost, 3)), (problem(TurnUnknown("gone")),), (problem(TurnLost("gone")),), (Answer(204, {}),)],
)
def test_a_turn_that_was_lost_is_sent_again_and_told_to_begin_again(attempts, turn, end):
    did = carried(
        flows.streamed(turn, attempts),
        *(STREAM, piece(Started("s", "t", 1, "Hello")), piece(DeltaFrame("t", 2, "One ")), None),
        *end,
        *(
            STREAM,
            piece(Started("s", "t", 1, "Hello")),
            piece(DeltaFrame("t", 2, "One two")),
            piece(Done("t", 3, REPLY)),
        ),
    )
    post, resumed, again = [step.ask for step in did if isinstance(step, Open)]
    assert (post, resumed.method) == (again, "GET")
    assert told(did) == [Text("t", "One "), Restarted("t"), Text("t", "One two")]


def test_an_answer_that_broke_off_in_the_middle_is_not_begun_again_silently(attempts, turn):
    with pytest.raises(ProviderFailed):
        carried(
            flows.streamed(turn, attempts),
            *(STREAM, piece(Started("s", "t", 1, "Hello")), piece(DeltaFrame("t", 2, "One "))),
            failure(ProviderFailed, 3),
        )


def test_an_answer_that_a_store_left_in_doubt_is_asked_for_again(attempts, turn):
    did = carried(
        flows.streamed(turn, attempts),
        *(STREAM, piece(Started("s", "t", 1, "Hello")), piece(DeltaFrame("t", 2, "One "))),
        *(failure(StoreUnavailable, 3), STREAM, piece(Done("t", 1, REPLY))),
    )
    assert targets(did) == ["POST /chat/v2/chat"] * 2
    assert told(did) == [Text("t", "One "), Text("t", "two")]


def test_an_answer_that_failed_before_its_first_piece_is_asked_for_again(attempts, turn):
    did = carried(
        flows.streamed(turn, attempts),
        *(STREAM, piece(Started("s", "t", 1, "Hello")), failure(ProviderFailed, 2)),
        Answer(200, {"content-type": "application/json"}, msgspec.json.encode(REPLY)),
    )
    assert targets(did) == ["POST /chat/v2/chat"] * 2
    assert told(did) == [Text("t", "One two")]


def test_a_whole_answer_is_one_piece(attempts, turn):
    did = carried(flows.streamed(turn, attempts), Answer(200, {}, msgspec.json.encode(REPLY)))
    assert told(did) == [Text("t", "One two")]
    assert (turn.session_id, turn.turn_id) == ("s", "t")


def test_an_event_of_a_newer_service_is_passed_over(attempts, turn):
    did = carried(
        flows.streamed(turn, attempts),
        *(STREAM, Piece("x", '{"type": "from-the-future"}'), piece(Done("t", 4, REPLY))),
    )
    assert [type(step) for step in did[:3]] == [Open, Read, Read]


def test_what_is_said_is_under_its_key_and_says_no_more_than_it_must():
    ask = requests.chat("Hello", None, None, "k", stream=False)
    assert (ask.body, ask.headers["Idempotency-Key"]) == (b'{"message":"Hello"}', "k")
