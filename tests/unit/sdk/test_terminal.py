"""What a terminal is sent."""

from hypothesis import example, given
from hypothesis import strategies as st

from orchestra.errors import Overloaded, TurnCancelled
from orchestra.frames import Ready
from orchestra.model import ChatReply, Turn, Usage
from orchestra.sdk import Answered, Began, Connected, Disconnected, Failed, Level, Restarted, Text
from orchestra.sdk.terminal import View, cleaned


@given(st.text())
@example("\u202a\u202e\u2066 right to left \u2069")
@example("\x1b]0;title\x07\x9b2J\x7f\rok\n\tsaid")
def test_no_control_character_reaches_a_terminal(text):
    left = cleaned(text)
    assert not any((each < " " and each not in "\n\t") or "\x7f" <= each <= "\x9f" for each in left)
    assert not set(left) & {chr(each) for each in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
    assert [each for each in text if each in left] == list(left)  # and nothing else is taken or put


def test_what_people_write_stays():
    text = "Grüezi 🌊\n\tok - ‘ja’ \u00a0 日本"
    assert cleaned(text) == text


def ready(level="NORMAL", off=(), *turns):
    return Ready(1, "c", "anna", "lake", 0, level, off, turns, (), 900.0)


def test_what_happens_is_told_beside_the_answer(capsys):
    view = View()
    view.greet(ready("LIMITED", ("analytics",)), False)
    reply = ChatReply("t", "lake", "c", "One two", "unified", "m", "stop", Usage(), degraded=("memory", "streaming"))
    turn = Turn("t8", "lake", 8, "c", "Hi\n> there", "Hey", "unified", "m", 0.0)
    for event in (
        Began("t", "m1", "Hello", "anna"),
        Text("t", "One "),
        Restarted("t"),
        Text("t", "One two"),
        Answered("t", "m1", reply),
        Began("u", None, "Hi\x1b[2J\n> forged\r(note)", "ben"),
        Text("u", "Hey"),
        Level("NORMAL", ()),
        Disconnected("closed (1006)", 1.25),
        Disconnected("nobody answers", 2.0),
        Connected(ready("ESSENTIAL", ("memory",), turn), True, (turn,)),
        Failed("t", "m1", TurnCancelled("x")),
        Failed("t", "m1", Overloaded("busy")),
    ):
        view.show(event)
    shown = capsys.readouterr()
    assert shown.out == "One \nOne two\nHey\n> Hi\n    > there\nHey\n"
    assert shown.err.splitlines() == [
        "(session lake - /help, /export [file], /quit; Ctrl-C stops an answer)",
        "(the service is at level LIMITED, without analytics)",
        "(the answer begins again)",
        "(left out: memory, streaming)",
        "(ben says: Hi[2J",
        "    > forged",
        "    (note))",
        "(the service is at level NORMAL)",
        "(not connected: closed (1006); trying again in 1.2 s)",
        "(connected again)",
        "(the service is at level ESSENTIAL, without memory)",
        "(stopped)",
        "(busy)",
    ]
