"""A conversation's client, frame by frame: what it picks up again after what went wrong."""

import json

import msgspec
import pytest

from orchestra import limits
from orchestra.errors import (
    InvalidRequest,
    KeyReused,
    Maintenance,
    Overloaded,
    PayloadTooLarge,
    ProviderFailed,
    ShuttingDown,
    StoreUnavailable,
    TurnCancelled,
    TurnLost,
    TurnUnknown,
)
from orchestra.frames import Accepted, DeltaFrame, Done, Goodbye, LevelFrame, LiveTurnView, Pong, Ready, Started
from orchestra.gateway.problems import retry_after_of
from orchestra.model import ChatReply, Turn, Usage
from orchestra.sdk import Answered, Began, Connected, Disconnected, Failed, Level, Restarted, Retries, Text, Unreachable
from orchestra.sdk.dialogue import Connect, Dialogue, Leave, Receive, Wait


class Told:
    """A dialogue, and shorthands of what it is told and says."""

    def __init__(self, machine, **retries) -> None:
        self.machine = machine
        self.dialogue = Dialogue(
            Retries(**{"first_seconds": 1.0, **retries}), machine, answer_seconds_max=100, reconnect_seconds_max=300
        )

    def comes(self, *frames):
        for frame in frames:
            self.dialogue.received(msgspec.json.encode(frame))
        return self.happened()

    def happened(self):
        events = list(self.dialogue.events)
        self.dialogue.events.clear()
        return events

    def ready(self, *live, version=0, history=()):
        assert self.dialogue.step() == Connect()
        self.dialogue.opened()
        return self.comes(Ready(1, "c", "anna", "lake", version, "NORMAL", (), tuple(history), live, 900.0))

    def says(self):
        self.dialogue.step()
        frames = [json.loads(each) for each in self.dialogue.outgoing]
        self.dialogue.outgoing.clear()
        return [tuple(value for value in frame.values() if value is not None) for frame in frames]

    def later(self, seconds):
        self.machine.passes(seconds)
        return self.says()


def reply(turn_id, text):
    return ChatReply(turn_id, "lake", "c", text, "unified", "m", "stop", Usage())


def error(kind, **fields):
    raised = kind("it went wrong", retry_after_seconds=fields.pop("after", None))
    told = {"type": "error", "kind": kind.kind, "title": kind.title, "status": kind.status, "detail": raised.detail}
    return told | {"retryable": kind.retryable, "retry_after_seconds": retry_after_of(raised), **fields}


@pytest.fixture
def told(machine):
    return Told(machine)


def begun(told, text="One "):
    """Have one message on its way to its answer."""
    told.ready()
    told.dialogue.send("Hello", "m1", "ada")
    assert told.says() == [("message", "m1", "Hello", "ada")]
    return told.comes(Accepted("m1", "t1"), Started("lake", "t1", 1, "Hello", "anna"), DeltaFrame("t1", 2, text))


def test_a_message_is_answered(told):
    assert begun(told) == [Began("t1", "m1", "Hello", "anna"), Text("t1", "One ")]
    done = reply("t1", "One two")
    assert told.comes(Done("t1", 3, done)) == [Text("t1", "two"), Answered("t1", "m1", done)]
    assert told.dialogue.step() == Receive(None)


def test_a_connection_that_is_lost_is_taken_up_behind_what_was_seen(told):
    begun(told)
    told.dialogue.lost(1006, "")
    assert told.happened() == [Disconnected("closed (1006)", 0.5)]
    assert told.dialogue.step() == Wait(0.5)
    told.machine.passes(0.5)
    (connected,) = told.ready(LiveTurnView("t1", 4))
    assert isinstance(connected, Connected)
    assert connected.again
    assert told.says() == [("resume", "t1", 2)]
    assert told.comes(DeltaFrame("t1", 2, "One "), DeltaFrame("t1", 3, "two")) == [Text("t1", "two")]


def test_a_message_that_was_not_accepted_is_sent_again_before_its_turn_is_seen_as_anothers(told):
    told.ready()
    told.dialogue.send("Hello", "m1", None)
    told.says()
    told.dialogue.lost(1006, "")
    told.machine.passes(1)
    told.happened()
    told.ready(LiveTurnView("t1", 2))
    assert told.says() == [("message", "m1", "Hello"), ("resume", "t1", 0)]
    assert told.comes(Accepted("m1", "t1"), Started("lake", "t1", 1, "Hello", "anna")) == [
        Began("t1", "m1", "Hello", "anna")
    ]


@pytest.mark.parametrize("seq", [1, 1_000_001])
def test_a_turn_that_was_lost_is_sent_again_and_told_to_begin_again(told, seq):
    begun(told)
    assert told.comes(error(TurnLost, turn_id="t1", seq=3)) == []
    assert told.says() == []
    assert told.later(1.5) == [("message", "m1", "Hello", "ada")]
    again = told.comes(
        Accepted("m1", "t1"), Started("lake", "t1", seq, "Hello", "anna"), DeltaFrame("t1", seq + 1, "Uno")
    )
    assert again == [Restarted("t1"), Text("t1", "Uno")]
    assert told.comes(Done("t1", seq + 2, reply("t1", "Uno")))[-1].id == "m1"


@pytest.mark.parametrize("kind", [TurnLost, TurnUnknown])
def test_a_turn_that_cannot_be_resumed_is_sent_again(told, kind):
    begun(told)
    told.dialogue.lost(1006, "")
    told.machine.passes(1)
    told.ready()
    assert told.says() == [("resume", "t1", 2)]
    told.happened()
    assert told.comes(error(kind, turn_id="t1")) == []
    assert told.later(1.5) == [("message", "m1", "Hello", "ada")]


def test_a_reply_that_was_kept_says_what_is_missing_of_the_text(told):
    begun(told)
    told.dialogue.lost(1006, "")
    told.machine.passes(1)
    told.ready()
    told.happened()
    done = reply("t1", "One two three")
    assert told.comes(Done("t1", 3, done)) == [Text("t1", "two three"), Answered("t1", "m1", done)]


def test_a_reply_is_taken_under_whatever_number_it_comes(told):
    begun(told)
    done = reply("t1", "One two")
    assert told.comes(Done("t1", 1, done)) == [Text("t1", "two"), Answered("t1", "m1", done)]


def test_a_reply_that_is_another_than_what_came_voids_it(told):
    begun(told)
    done = reply("t1", "Uno")
    assert told.comes(Done("t1", 9, done)) == [Restarted("t1"), Text("t1", "Uno"), Answered("t1", "m1", done)]


def test_an_instance_that_goes_ends_what_it_runs_and_gets_nothing_new(told):
    begun(told)
    told.comes(Goodbye("restart", 3.0))
    told.dialogue.send("More", "m2", None)
    assert told.later(2) == []
    assert told.dialogue.step() == Receive(1.0)
    told.machine.passes(2)
    assert told.dialogue.step() == Receive(None)  # the answer is on its way
    told.comes(Done("t1", 3, reply("t1", "One ")))
    assert isinstance(told.dialogue.step(), Leave)
    told.dialogue.lost(1000, "it is going")
    assert told.happened() == [Disconnected("it is going", 0.0)]
    told.ready()
    assert told.says() == [("message", "m2", "More")]


def test_who_is_told_goodbye_comes_back_when_it_was_told(told):
    told.ready()
    told.happened()
    told.comes(Goodbye("restart", 3.0))
    told.machine.passes(1)
    told.dialogue.lost(1012, "restart")
    assert told.happened() == [Disconnected("restart", 2.0)]


def test_a_message_that_is_refused_by_an_instance_that_goes_is_another_ones(told):
    told.ready()
    told.dialogue.send("Hello", "m1", None)
    told.says()
    told.happened()
    for _ in range(9):  # it is no failed attempt
        assert told.comes(error(ShuttingDown, id="m1", after=1.0)) == []
        told.machine.passes(1)
        assert isinstance(told.dialogue.step(), Leave)
        told.dialogue.lost(1000, "")
        told.ready()
        told.happened()
        assert told.says() == [("message", "m1", "Hello")]


@pytest.mark.parametrize("kind", [Overloaded, Maintenance, StoreUnavailable])
def test_a_message_that_is_refused_for_now_is_sent_again_when_it_may(told, kind):
    told.ready()
    told.dialogue.send("Hello", "m1", None)
    told.says()
    told.happened()
    assert told.comes(error(kind, id="m1", after=4.0)) == []
    assert told.dialogue.step() == Receive(4.5)
    assert told.later(4.4) == []
    assert told.later(0.1) == [("message", "m1", "Hello")]


def test_a_message_that_is_refused_for_good_or_too_often_has_failed(machine):
    told = Told(machine, attempts_max=3)
    told.ready()
    told.happened()
    told.dialogue.send("Hello", "m1", None)
    (failed,) = told.comes(error(KeyReused, id="m1"))
    assert isinstance(failed, Failed)
    assert (failed.id, type(failed.error), failed.error.detail) == ("m1", KeyReused, "it went wrong")
    told.dialogue.send("Hello", "m2", None)
    for _ in range(2):
        assert told.comes(error(Overloaded, id="m2", after=1.0)) == []
        told.later(9)
    (failed,) = told.comes(error(Overloaded, id="m2", after=1.0))
    assert (failed.id, type(failed.error)) == ("m2", Overloaded)


def test_an_answer_that_broke_off_is_not_begun_again_silently(told):
    begun(told)
    (failed,) = told.comes(error(ProviderFailed, turn_id="t1", seq=3))
    assert (failed.turn_id, failed.id, type(failed.error)) == ("t1", "m1", ProviderFailed)
    assert told.later(99) == []


def test_a_turn_that_a_store_left_in_doubt_is_asked_for_again(told):
    begun(told)
    assert told.comes(error(StoreUnavailable, turn_id="t1", seq=3, after=1.0)) == []
    assert told.later(1.5) == [("message", "m1", "Hello", "ada")]
    done = reply("t1", "One two")  # it was durable: the conversation answers
    assert told.comes(Accepted("m1", "t1"), Done("t1", 1, done)) == [Text("t1", "two"), Answered("t1", "m1", done)]


def test_a_turn_that_stays_in_doubt_fails_in_the_end(machine):
    told = Told(machine, attempts_max=2)
    begun(told)
    assert told.comes(error(StoreUnavailable, turn_id="t1", seq=3)) == []
    assert told.later(9) == [("message", "m1", "Hello", "ada")]
    told.comes(Accepted("m1", "t1"))
    (failed,) = told.comes(error(StoreUnavailable, turn_id="t1", seq=4))
    assert (failed.id, type(failed.error)) == ("m1", StoreUnavailable)


def test_a_turn_that_failed_before_its_first_word_is_tried_again(told):
    begun(told, text="")
    assert told.comes(error(ProviderFailed, turn_id="t1", seq=3)) == []
    assert told.later(1) == [("message", "m1", "Hello", "ada")]


def test_a_turn_is_stopped_by_either_name_whenever_that_can_be(told):
    begun(told)
    told.dialogue.cancel("m1")
    assert told.says() == [("cancel", "t1")]
    told.dialogue.cancel("t1")
    assert told.says() == [("cancel", "t1")]
    (failed,) = told.comes(error(TurnCancelled, turn_id="t1", seq=3))
    assert (failed.id, type(failed.error)) == ("m1", TurnCancelled)
    told.dialogue.cancel("m1")
    told.dialogue.cancel("nobody")
    assert told.says() == []


def test_a_turn_that_is_stopped_while_nobody_is_connected_is_stopped_then(told):
    begun(told)
    told.dialogue.lost(1006, "")
    told.dialogue.cancel("m1")
    told.machine.passes(1)
    told.ready()
    assert told.says() == [("resume", "t1", 2), ("cancel", "t1")]
    told.happened()
    (failed,) = told.comes(error(TurnUnknown, turn_id="t1"))
    assert type(failed.error) is TurnCancelled
    assert told.later(99) == []


def test_a_message_that_is_stopped_before_it_was_sent_never_is(told):
    told.dialogue.send("Hello", "m1", None)
    told.dialogue.cancel("m1")
    (failed,) = told.happened()
    assert (failed.id, type(failed.error)) == ("m1", TurnCancelled)
    told.ready()
    assert told.says() == []


def test_a_message_that_is_stopped_before_it_is_accepted_is_stopped_when_it_is(told):
    told.ready()
    told.dialogue.send("Hello", "m1", None)
    told.says()
    told.dialogue.cancel("m1")
    assert told.says() == []
    told.comes(Accepted("m1", "t1"))
    assert told.says() == [("cancel", "t1")]


def test_others_are_heard_and_what_they_said_meanwhile_is_told_once(told):
    told.ready()
    told.happened()
    heard = told.comes(Started("lake", "t7", 1, "Hi", "ben"), DeltaFrame("t7", 2, "Hey"))
    assert heard == [Began("t7", None, "Hi", "ben"), Text("t7", "Hey")]
    told.comes(Done("t7", 3, reply("t7", "Hey")))
    told.dialogue.lost(1006, "")
    told.machine.passes(1)
    told.happened()
    past = [Turn(f"t{number}", "lake", number, "c", "Hi", "Hey", "unified", "m", 0.0) for number in (7, 8)]
    (connected,) = told.ready(version=8, history=past)
    assert [turn.id for turn in connected.missed] == ["t8"]


def test_others_turns_are_resumed_and_again_where_there_is_no_room(told):
    told.ready(LiveTurnView("t7", 3))
    told.happened()
    assert told.says() == [("resume", "t7", 0)]
    assert told.comes(error(Overloaded, turn_id="t7", after=1.0)) == []
    assert told.later(1.5) == [("resume", "t7", 0)]
    (failed,) = told.comes(error(TurnUnknown, turn_id="t7"))
    assert (failed.turn_id, failed.id) == ("t7", None)
    assert told.later(99) == []


def test_levels_are_told_and_what_nobody_knows_is_not(told):
    told.ready()
    told.happened()
    assert told.comes({"type": "from-the-future", "x": 1}, Pong("p"), LevelFrame("LIMITED", ("memory",))) == [
        Level("LIMITED", ("memory",))
    ]
    assert told.comes(DeltaFrame("nobody", 1, "x"), Accepted("nobody", "t"), Done("nobody", 1, reply("n", "x"))) == []


def test_a_first_connection_is_tried_so_often_and_a_lost_one_for_so_long(machine):
    told = Told(machine, attempts_max=3)
    gone = Unreachable("nobody there")
    for wait in (0.5, 1.0):
        assert told.dialogue.step() == Connect()
        told.dialogue.refused(gone)
        assert told.dialogue.step() == Wait(wait)
        machine.passes(wait)
    told.dialogue.step()
    with pytest.raises(Unreachable):
        told.dialogue.refused(gone)
    told.ready()
    told.dialogue.lost(1006, "")
    machine.passes(0.5)
    for _ in range(60):
        assert told.dialogue.step() == Connect()
        told.dialogue.refused(gone)
        machine.passes(told.dialogue.step().seconds)
    machine.passes(100)
    told.dialogue.step()
    with pytest.raises(Unreachable):
        told.dialogue.refused(gone)


def test_who_is_refused_for_good_is_told_why(told):
    told.dialogue.step()
    with pytest.raises(InvalidRequest):
        told.dialogue.refused(InvalidRequest("wrong id"))


def test_a_connection_that_closes_before_it_is_ready_says_what_the_service_said(told):
    told.dialogue.step()
    told.dialogue.opened()
    assert told.dialogue.step() == Receive(30.0)
    told.comes(error(StoreUnavailable))
    told.dialogue.lost(1013, "")
    assert told.happened() == [Disconnected("it went wrong", 1.5)]


@pytest.mark.parametrize("code", [1003, 1007, 1009])
def test_what_another_connection_would_not_mend_is_raised(told, code):
    told.ready()
    with pytest.raises(InvalidRequest):
        told.dialogue.lost(code, "no")


def test_a_message_that_is_too_long_or_comes_twice_is_refused_at_once(told):
    told.dialogue.send("x" * limits.MESSAGE_CHARS_MAX, "m1", None)
    with pytest.raises(PayloadTooLarge):
        told.dialogue.send("x" * (limits.MESSAGE_CHARS_MAX + 1), "m2", None)
    with pytest.raises(InvalidRequest):
        told.dialogue.send("x", "m1", None)


def test_a_message_that_is_no_text_is_not_registered(told):
    for message in ("\ud800", 1):
        with pytest.raises(InvalidRequest):
            told.dialogue.send(message, "m1", None)
    told.ready()
    assert told.says() == []
