"""Bounds of the orchestra that a scenario sets are in force while it runs, and where the orchestra needs them."""

import ast
from pathlib import Path

import pytest

import orchestra
from orchestra import limits
from sim.bounds import BOUNDS, bounded
from sim.forms import Unreadable
from sim.scenario import parse
from sim.world import rehearse

SOURCES = [path.read_text() for path in Path(orchestra.__file__).parent.rglob("*.py")]
STORY = """
name: bounded
duration: 20s
workload: {{open_loop: {{rate: 4/s, users: 2, turns_per_session: 20, generated_tokens: 40, context_tokens: 100}}}}
limits: {{{}}}
"""


def test_they_are_as_they_were_afterwards_however_it_ends():
    usual = {name: getattr(limits, name) for name in BOUNDS}

    def break_off() -> None:
        with bounded({"SESSION_MESSAGES_MAX": 4, "LEASE_SECONDS": 1.0}):
            assert (limits.SESSION_MESSAGES_MAX, limits.LEASE_SECONDS) == (4, 1.0)
            raise KeyError

    with pytest.raises(KeyError):
        break_off()
    assert {name: getattr(limits, name) for name in BOUNDS} == usual


def test_a_run_has_those_of_its_scenario():
    """One turn may wait for its session instead of sixteen: of two impatient users, some are refused."""
    usual, strict = (rehearse(parse(STORY.format(text))) for text in ("", "SESSION_WAITING_MAX: 1"))
    assert usual.verdict.accounting.shed < strict.verdict.accounting.shed


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("LOGS_MAXX: 4", "LOGS_MAXX: is no bound: did you mean LOGS_MAX?"),
        ("LOGS_MAX: 0", "LOGS_MAX: 0 is out of bounds: write a number of 1 or more"),
        ("LOGS_MAX: 2.5", "LOGS_MAX: 2.5 is not whole"),
        ("LOGS_MAX: many", "LOGS_MAX: many is out of bounds"),
    ],
)
def test_what_is_wrong_is_named(text, wanted):
    with pytest.raises(Unreadable) as refusal:
        parse(STORY.format(text))
    assert wanted in str(refusal.value)


@pytest.mark.parametrize("name", BOUNDS)
def test_the_orchestra_reads_each_where_it_needs_it(name):
    """In a function, not once at import, where a run's value would come too late."""
    trees = [ast.parse(source) for source in SOURCES if f"limits.{name}" in source]
    functions = [
        each for tree in trees for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert any(f"attr='{name}'" in ast.dump(each) for each in functions)
    assert not any(f"import {name}" in source for source in SOURCES)
