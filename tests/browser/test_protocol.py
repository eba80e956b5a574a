"""The page's state machine and its waits, frame by frame in the browser that runs them: no service, no clock."""

from collections.abc import Callable
from typing import Any

import pytest

FAILURES_MAX = 3
Frame = dict[str, Any]


class Talk:
    """A conversation in the page: what is done to it returns the frames that it sends."""

    def __init__(self, page: Any) -> None:
        self._conversation = page.evaluate_handle(
            "async () => new (await import('/web/protocol.js')).Conversation('me')"
        )

    def do(self, method: str, *values: Any) -> list[Frame]:
        """Call a method; a turn is named by its place."""
        sent: list[Frame] | None = self._conversation.evaluate(
            """(talk, [method, values]) => {
                const ofTurn = ['stop', 'again', 'retry'].includes(method);
                return talk[method](...values.map((each) => (ofTurn ? talk.turns.at(each) : each)));
            }""",
            [method, list(values)],
        )
        return sent or []

    def hear(self, *frames: Frame) -> list[Frame]:
        return [sent for frame in frames for sent in self.do("received", frame)]

    @property
    def turns(self) -> list[Any]:
        return list(self._conversation.evaluate("(talk) => talk.turns"))

    @property
    def turn(self) -> Any:
        (only,) = self.turns
        return only

    def see(self, name: str) -> Any:
        return self._conversation.evaluate("(talk, name) => talk[name]", name)


@pytest.fixture
def talk(module_page) -> Talk:
    return Talk(module_page)


def ready(*history: Frame, live: tuple[str, ...] = (), level: str = "NORMAL", version: int | None = None) -> Frame:
    return {
        "type": "ready",
        "protocol": 1,
        "level": level,
        "off": [],
        "version": len(history) if version is None else version,
        "history": list(history),
        "live": [{"turn_id": each, "seq": 1} for each in live],
    }


def accepted(key: str = "key", turn_id: str = "t1") -> Frame:
    return {"type": "accepted", "id": key, "turn_id": turn_id}


def started(seq: int = 1, turn_id: str = "t1", client_id: str = "me", message: str = "hello") -> Frame:
    return {"type": "started", "turn_id": turn_id, "seq": seq, "message": message, "client_id": client_id}


def delta(seq: int, text: str, turn_id: str = "t1") -> Frame:
    return {"type": "delta", "turn_id": turn_id, "seq": seq, "text": text}


def done(seq: int, reply: str, turn_id: str = "t1") -> Frame:
    return {"type": "done", "turn_id": turn_id, "seq": seq, "reply": {"reply": reply, "degraded": [], "engine": "e"}}


def stored(number: int, reply: str = "answer") -> Frame:
    fields = {"id": f"t{number}", "number": number, "message": "hello", "reply": reply}
    return {**fields, "degraded": [], "engine": "e"}


def error(kind: str, *, retryable: bool = True, **fields: Any) -> Frame:
    return {"type": "error", "kind": kind, "title": "Wrong", "detail": "it is", "retryable": retryable, **fields}


MESSAGE = {"type": "message", "id": "key", "message": "hello"}
LOG = (started(), delta(2, "one "), delta(3, "two"), done(4, "one two"))


def answered(sent: list[Frame], log: tuple[Frame, ...]) -> list[Frame]:
    """What a service says to frames, whose one turn has this log."""
    said: list[Frame] = []
    for frame in sent:
        if frame["type"] == "message":
            assert frame == MESSAGE
            said += [accepted(), *log]
        elif frame["type"] == "resume":
            said += [each for each in log if each["seq"] > frame["after"]]
    return said


def resumed_after(cut: int, durable: bool) -> list[int]:
    """The last number that was seen, where the turn was known, had not ended here, and runs still."""
    if durable or cut == len(LOG) + 1:
        return []
    return [max(0, cut - 1)]


@pytest.mark.parametrize("durable", [False, True], ids=["running", "durable"])
def test_wherever_the_line_is_cut_each_piece_is_taken_once(module_page, durable):
    script = (accepted(), *LOG)
    for cut in range(len(script) + 1):
        talk = Talk(module_page)
        talk.hear(ready())
        assert talk.do("say", "hello", "key") == [MESSAGE]
        talk.hear(*script[:cut])
        assert talk.do("lost") == []
        # another connection, whose `ready` knows the turn as one that runs, or has ended meanwhile
        back = ready(stored(1, "one two")) if durable else ready(live=("t1",))
        sent = talk.hear(back)
        assert [each["after"] for each in sent if each["type"] == "resume"] == resumed_after(cut, durable)
        talk.hear(*answered(sent, LOG))
        assert (talk.turn["state"], talk.turn["text"], talk.turn["message"]) == ("done", "one two", "hello")


def test_without_a_connection_nothing_is_sent_and_with_one_it_is(talk):
    assert talk.do("say", "hello", "key") == []
    assert talk.turn["state"] == "unsent"
    assert talk.hear(ready()) == [MESSAGE]
    assert talk.turn["state"] == "asked"


def test_text_before_another_started_is_void(talk):
    talk.hear(ready())
    talk.do("say", "hello", "key")
    talk.hear(accepted(), started(), delta(2, "half an ans"), started(seq=3), delta(4, "Whole"))
    assert talk.turn["text"] == "Whole"
    talk.hear(delta(4, "Whole"), started(), started(seq=3), delta(2, "half an ans"))  # seen already
    assert talk.turn["text"] == "Whole"


@pytest.mark.parametrize("how", ["its log ends", "unknown when resumed"])
def test_a_lost_turn_is_said_again_under_the_same_id_but_not_for_ever(talk, how):
    lost = error("turn-lost", turn_id="t1", seq=9) if how == "its log ends" else error("turn-unknown", turn_id="t1")
    talk.hear(ready())
    talk.do("say", "hello", "key")
    for _ in range(FAILURES_MAX):
        assert talk.hear(accepted(), started(), delta(2, "half"), lost) == [MESSAGE]
    assert talk.hear(accepted(), started(), lost) == []
    assert (talk.turn["state"], talk.turn["error"]) == (
        "failed",
        {"kind": lost["kind"], "title": "Wrong", "detail": "it is"},
    )
    assert talk.do("again", 0) == [MESSAGE]  # the user may say so
    assert talk.hear(accepted(), started(), lost) == [MESSAGE]


@pytest.mark.parametrize("where", [{"id": "key"}, {"turn_id": "t1", "seq": 2}], ids=["refused", "failed"])
def test_what_may_go_well_the_next_time_is_said_again_after_its_wait(talk, where):
    talk.hear(ready())
    talk.do("say", "hello", "key")
    until = () if "id" in where else (accepted(), started())
    waits = []
    for told in (7, None, None):
        asked = {} if told is None else {"retry_after_seconds": told}
        assert talk.hear(*until, error("overloaded", **where, **asked)) == []
        assert talk.turn["state"] == "waiting"
        waits.append(talk.turn["wait"])
        assert talk.do("retry", 0) == [MESSAGE]
    assert waits == [7, 2, 4]
    assert len(talk.see("postponed")) == FAILURES_MAX
    talk.hear(*until, error("overloaded", **where))
    assert talk.turn["state"] == "failed"


def test_a_turn_that_a_store_left_in_doubt_is_said_again_after_its_first_word(talk):
    talk.hear(ready())
    talk.do("say", "hello", "key")
    assert talk.hear(accepted(), *LOG[:2], error("store-unavailable", turn_id="t1", seq=3)) == []
    assert talk.turn["state"] == "waiting"
    assert talk.do("retry", 0) == [MESSAGE]
    talk.hear(accepted(), done(1, "one two"))  # it was durable
    assert (talk.turn["state"], talk.turn["text"]) == ("done", "one two")


def test_what_waits_can_be_stopped(talk):
    talk.hear(ready())
    talk.do("say", "hello", "key")
    talk.hear(error("overloaded", id="key"))
    assert talk.do("stop", 0) == []
    assert talk.do("retry", 0) == []
    assert talk.turn["state"] == "stopped"


@pytest.mark.parametrize(
    "frames",
    [
        (error("invalid-request", retryable=False, id="key"),),
        (accepted(), started(), delta(2, "A word"), error("provider-failed", turn_id="t1", seq=3)),
    ],
    ids=["what cannot go well", "what has begun to be told"],
)
def test_nothing_else_is_said_again(talk, frames):
    talk.hear(ready())
    talk.do("say", "hello", "key")
    assert talk.hear(*frames) == []
    assert talk.turn["state"] == "failed"
    assert talk.see("postponed") == []


@pytest.mark.parametrize("where", [{"id": "key"}, {"turn_id": "t1", "seq": 3}], ids=["refused", "broken off"])
def test_an_instance_that_goes_leaves_the_message_to_the_next(talk, where):
    talk.hear(ready())
    talk.do("say", "hello", "key")
    until = () if "id" in where else (accepted(), started(), delta(2, "A word"))
    assert talk.hear(*until, error("shutting-down", **where)) == []
    assert talk.turn["state"] == "unsent"
    talk.do("lost")
    assert talk.hear(ready()) == [MESSAGE]


def test_a_stop_before_acceptance_is_said_with_it(talk):
    cancel = {"type": "cancel", "turn_id": "t1"}
    talk.hear(ready())
    talk.do("say", "hello", "key")
    assert talk.do("stop", 0) == []
    assert talk.hear(accepted()) == [cancel]
    talk.do("lost")  # it was not heard: said again
    assert talk.hear(ready(live=("t1",))) == [{"type": "resume", "turn_id": "t1", "after": 0}, cancel]
    talk.hear(error("turn-cancelled", retryable=False, turn_id="t1", seq=2))
    assert talk.turn["state"] == "stopped"


def test_turns_of_others_are_seen_also_those_that_ran_before(talk):
    resume = {"type": "resume", "turn_id": "t7", "after": 0}
    assert talk.hear(ready(live=("t7",))) == [resume]
    talk.hear(started(turn_id="t7", client_id="you"), delta(2, "For you", "t7"), done(3, "For you.", "t7"))
    assert (talk.turn["isOurs"], talk.turn["text"], talk.turn["state"]) == (False, "For you.", "done")
    assert talk.see("open") is None  # it does not keep us from writing


def test_a_lost_turn_of_another_is_theirs_to_say_again(talk):
    talk.hear(ready(), started(turn_id="t7", client_id="you"))
    assert talk.hear(error("turn-lost", turn_id="t7", seq=2)) == []
    assert talk.turn["state"] == "failed"
    talk.hear(started(seq=1001, turn_id="t7", client_id="you"))
    assert talk.turn["state"] == "running"
    talk.do("lost")
    talk.hear(ready(), error("turn-unknown", turn_id="t7"))
    assert talk.turns == []


def test_a_resume_that_cannot_be_had_now_wants_a_new_connection(talk):
    talk.hear(ready())
    talk.do("say", "hello", "key")
    talk.hear(accepted(), started())
    talk.do("lost")
    talk.hear(ready(), error("store-unavailable", turn_id="t1"))
    assert talk.see("isStuck")
    talk.do("lost")
    assert not talk.see("isStuck")


@pytest.mark.parametrize("gone", ["turn-lost", "turn-unknown"])
def test_what_was_stopped_is_said_again_by_hand_only(talk, gone):
    talk.hear(ready())
    talk.do("say", "hello", "key")
    talk.hear(accepted(), started(), delta(2, "half"))
    assert talk.do("stop", 0) == [{"type": "cancel", "turn_id": "t1"}]
    talk.do("lost")
    assert talk.hear(ready())[0]["type"] == "resume"
    assert talk.hear(error(gone, turn_id="t1")) == []
    assert talk.turn["state"] == "stopped"
    assert talk.do("again", 0) == [MESSAGE]
    talk.hear(accepted(), started(), delta(2, "whole"))
    assert (talk.turn["state"], talk.turn["text"]) == ("running", "whole")


def test_turns_of_others_that_ended_meanwhile_stand_before_what_is_open(talk):
    talk.hear(ready(stored(1)))
    talk.do("lost")
    talk.do("say", "hello", "key")
    assert talk.hear(ready(stored(1), stored(2))) == [MESSAGE]
    assert [each["id"] for each in talk.turns] == ["t1", "t2", None]


def test_words_of_a_newer_service_are_let_be(talk):
    talk.hear(ready(), {"type": "something", "turn_id": "t1"}, {"type": "pong", "id": None})
    assert talk.turns == []
    talk.hear({**ready(), "protocol": 2})
    assert talk.see("isForeign")


def test_a_message_of_an_earlier_page_is_one_with_its_turn(talk):
    talk.do("restore", [{"key": "key", "message": "hello", "isFailed": False}])
    assert talk.hear(ready(stored(1))) == [MESSAGE]
    talk.hear(accepted())
    assert (talk.turn["key"], talk.turn["text"]) == ("key", "answer")


def test_where_turns_are_missing_between_the_page_begins_anew_with_the_last(talk):
    talk.hear(ready(stored(1), stored(2)))
    assert talk.see("first") == 1
    talk.do("lost")
    talk.hear(ready(stored(2), stored(3)))
    assert [each["id"] for each in talk.turns] == ["t1", "t2", "t3"]
    talk.do("lost")
    talk.hear(ready(stored(8), stored(9)))
    assert [each["id"] for each in talk.turns] == ["t8", "t9"]
    assert talk.see("first") == 8
    talk.do("preceded", [stored(6), stored(7)])
    assert [each["id"] for each in talk.turns] == ["t6", "t7", "t8", "t9"]
    assert talk.see("first") == 6


def test_a_level_is_what_the_service_said_last(talk):
    talk.hear(ready(level="LIMITED"))
    assert talk.see("level") == "LIMITED"
    talk.hear({"type": "level", "level": "MAINTENANCE", "off": ["swarm"]})
    assert (talk.see("level"), talk.see("off"), talk.see("isReadOnly")) == ("MAINTENANCE", ["swarm"], True)


def test_waits_grow_to_half_a_minute_and_differ(module_page):
    wait: Callable[[int, float], float] = lambda failures, random: module_page.evaluate(  # noqa: E731
        "async ([failures, random]) => (await import('/web/socket.js')).waitMs(failures, () => random)",
        [failures, random],
    )
    assert [wait(failures, 1.0) for failures in (0, 1, 2, 6, 60)] == [500, 1000, 2000, 30_000, 30_000]
    assert [wait(failures, 0.0) for failures in (0, 60)] == [250, 250]


def test_each_unanswered_message_is_kept_by_itself(module_page):
    kept = module_page.evaluate(
        """async () => {
            const one = await import('/web/storage.js');
            const other = await import('/web/storage.js?other-window');
            one.keepPending('lake', 'b', 'second');
            other.keepPending('lake', 'a', 'first', true);
            one.keepPending('hill', 'c', 'elsewhere');
            one.dropPending('lake', 'c');
            const both = one.pending('lake');
            one.dropPending('lake', 'b');
            return [both, other.pending('lake')];
        }"""
    )
    first = {"key": "a", "message": "first", "isFailed": True}
    assert kept == [[first, {"key": "b", "message": "second", "isFailed": False}], [first]]


def test_what_becomes_slow_is_shown_less_often(module_page):
    """A piece each ms; a block that grows is made anew in a time that grows with it: 0.02 ms for each piece of it."""
    spent, renders, is_whole = module_page.evaluate(
        """async () => {
            const { paced } = await import('/web/view.js');
            const FRAME = 16, PIECES = 10_000;
            let [now, pieces, spent, renders, seen] = [0, 0, 0, 0, 0];
            const due = [];
            const at = (time, does) => due.push([time, does]);
            const clock = {
                now: () => now,
                frame: (does) => at((Math.floor(now / FRAME) + 1) * FRAME, does),
                later: (does, ms) => at(now + ms, does),
            };
            const changed = paced(() => {
                seen = pieces;
                renders += 1;
                spent += 0.02 * pieces;
                now += 0.02 * pieces;
            }, clock);
            while (pieces < PIECES || due.length) {
                if (pieces < PIECES) {
                    pieces = Math.min(PIECES, Math.max(pieces + 1, Math.floor(now)));
                    changed();
                }
                now += 1;
                for (const each of due.filter(([time]) => time <= now)) {
                    due.splice(due.indexOf(each), 1);
                    each[1]();
                }
            }
            return [spent, renders, seen === PIECES];
        }"""
    )
    assert is_whole
    assert renders < 60
    assert spent < 10_000 / 4 + 2 * 0.02 * 10_000
