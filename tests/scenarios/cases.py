"""Runs spread over all stories, modes and doors, as they are and shaken: any first so many of them are spread alike."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from functools import cache
from itertools import count
from pathlib import Path
from typing import NamedTuple

from msgspec import structs

from sim.clients import DOORS, DoorName
from sim.expectations import PROPERTIES
from sim.scenario import Scenario, load
from sim.schedule import Mode
from sim.shaking import shaken

FOLDER = Path("chaos", "scenarios")
ROOT = Path(__file__).parents[2]
STORIES = sorted((ROOT / FOLDER).glob("*.yaml"))

# Each of what follows has a period of its own, and no two periods share a factor with each other or with the number of
# stories as it is now, 9: so every combination comes, and none is in a hurry.
ORDERS: tuple[Mode, ...] = ("faithful", "adversarial", "faithful", "adversarial", "pct")
OTHER_DOOR_EVERY = 4
SHAKEN = (False, False, True, False, False, True, False)


class Case(NamedTuple):
    """One run, whose seed is the case's number."""

    seed: int
    story: Path
    door: DoorName
    mode: Mode
    shaken: bool

    @property
    def scenario(self) -> Scenario:
        """What is lived through: the story, or what shaking makes of it."""
        story = load(self.story)
        return shaken(story, self.seed) if self.shaken else story

    @property
    def again(self) -> str:
        """The command that shows it again."""
        path = str(FOLDER / self.story.name)
        shake = ""
        if self.shaken:
            shake, path = f"{shlex.join(['orchestra', 'sim', 'shake', path])} --seed {self.seed} >s.yaml && ", "s.yaml"
        run = ["orchestra", "sim", "run", path, "--seed", str(self.seed), "--mode", self.mode, "--door", self.door]
        return f"{shake}{shlex.join(run)}"


def cases() -> Iterator[Case]:
    """Yield cases without end. A story whose clients cannot come in at the other door is told at its own."""
    for number in count():
        path = STORIES[number % len(STORIES)]
        own, other = _doors(path)
        door = other if number % OTHER_DOOR_EVERY == OTHER_DOOR_EVERY - 1 else own
        yield Case(number, path, door, ORDERS[number % len(ORDERS)], SHAKEN[number % len(SHAKEN)])


@cache
def _doors(path: Path) -> tuple[DoorName, DoorName]:
    story = load(path)
    other = next(door for door in DOORS if door != story.door)
    return story.door, story.door if any(structs.replace(story, door=other).problems()) else other


def shortened(story: Scenario, seconds: float) -> Scenario:
    """Return the story told in so many seconds, each fault in its turn; what never may break is all it expects."""
    pace = seconds / story.duration
    faults = [structs.replace(fault, at=fault.at * pace, lasts=fault.lasts * pace) for fault in story.faults]
    kept = tuple(each for each in story.expectations if each.always in PROPERTIES)
    return structs.replace(story, duration=seconds, faults=tuple(faults), expectations=kept)
