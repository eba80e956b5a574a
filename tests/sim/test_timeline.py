"""The page for a terminal: levels in a lane of their own, and who helped themselves how."""

import pytest
from rich.console import Console

from orchestra.events import CallHedged, CallRetried, FellBack, OperatorActed
from sim.evidence import LEVELS
from sim.timeline import ACTS_SHOWN_MAX, ASCII, HELP_SHOWN_MAX, UNICODE, render
from sim.verdict import reach
from sim.world import Run

STEPS = [(20.0, "NORMAL", "LIMITED"), (40.0, "LIMITED", "ESSENTIAL"), (90.0, "ESSENTIAL", "LIMITED")]
HELP = [
    CallRetried(21.0, "c1", "unified", 2, 0.1, "provider-failed"),
    CallRetried(22.0, "c2", "unified", 2, 0.1, "provider-failed"),
    CallHedged(23.0, "c3", "memory"),
    FellBack(24.0, "c4", "unified", "apology", "breaker-open"),
]
ACT = OperatorActed(30.0, "level", "latch ESSENTIAL", "a drill")


class Terminal(Console):
    """A console of a given encoding."""

    def __init__(self, encoding: str, **options) -> None:
        super().__init__(**options)
        self._said = encoding

    @property
    def encoding(self) -> str:
        return self._said


@pytest.fixture
def shown(small, story):
    """Render a journal of the given parts in a terminal of 120 columns; by default one that knows Unicode."""

    def show(encoding="utf-8", width=120, **parts) -> str:
        journal = story(turns=[(float(at), "answered", 1.0) for at in range(100)], **parts)
        run = Run(small(), 0, "orchestrator", journal, reach((), journal), 0.0, 0.0)
        console = Terminal(encoding, width=width, record=True, force_terminal=False, legacy_windows=False)
        console.print(render(run, "again", console))
        return console.export_text()

    return show


def lane(text: str) -> str:
    """The level's lane, one sign a slot, whatever stands beside it."""
    lines = text.splitlines()
    head = next(index for index, line in enumerate(lines) if "level" in line and "time" in line)
    column = lines[head].index("level")
    rows = [line[column : column + 8] for line in lines[head + 1 : head + 21]]
    return "".join(rows)


@pytest.mark.parametrize(("encoding", "signs"), [("utf-8", UNICODE), ("ascii", ASCII)])
def test_the_level_has_a_lane(shown, encoding, signs):
    drawn = lane(shown(encoding, levels=STEPS))
    normal, limited, essential = (signs.levels[level] for level in LEVELS[:3])
    assert drawn == normal * 32 + limited * 32 + essential * 80 + limited * 16  # of 100 s, each row 5 s in 8 slots


def test_the_time_in_each_level_is_told(shown):
    text = shown(levels=STEPS)
    assert "level    · normal 20s  ░ limited 30s  ▒ essential 50s" in text


def test_without_levels_nothing_is_said_of_them(shown):
    text = shown()
    assert "level" not in text
    assert "clients" not in text
    assert "calls" not in text


def test_every_level_has_signs_of_its_own():
    for signs in (UNICODE, ASCII):
        assert list(signs.levels) == list(LEVELS)
        assert len(set(signs.levels.values())) == len(LEVELS)
    assert all(sign.isascii() for sign in ASCII.levels.values())


def test_it_is_told_how_often_clients_asked_again_and_what_was_done_for_calls(shown):
    text = shown(retries=[(3.0, 2), (4.0, 3)], more=[*HELP, ACT])
    assert "clients  asked again 2 times, in all 1.02x the turns" in text
    assert "calls    memory hedged 1, unified apology instead 1, unified retried 2" in text
    assert "operator 0:30 level: latch ESSENTIAL (a drill)" in text


def test_what_is_told_is_bounded(shown):
    help_of_many = [CallHedged(1.0, "c", f"engine{number}") for number in range(HELP_SHOWN_MAX + 3)]
    acts = [OperatorActed(float(number), "level", "latch", "x") for number in range(ACTS_SHOWN_MAX + 2)]
    text = shown(more=[*help_of_many, *acts])
    assert "and 3 more kinds" in " ".join(text.split())
    assert text.count("level: latch") == ACTS_SHOWN_MAX
    assert "operator and 2 more acts" in text


def test_a_narrow_terminal_keeps_the_lane_and_drops_the_bars(shown):
    text = shown(width=80, levels=STEPS)
    assert "answered " in text
    assert len(lane(text)) == 160
    assert all(len(line) <= 80 for line in text.splitlines())
