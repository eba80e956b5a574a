"""A client's machine whose time is the loop's, or is told, and whose chance is half a chance."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import pytest

from orchestra.sdk.system import System


@dataclass(frozen=True)
class Rehearsed(System):
    """Time stands still but for `passes`, or is the loop's where that is given; draws are 0.5; ids are counted."""

    at: list[float] = field(default_factory=lambda: [100.0])
    ids: "count[int]" = field(default_factory=lambda: count(1))
    chance: float = 0.5

    def now(self) -> float:
        return self.at[0]

    def passes(self, seconds: float) -> None:
        self.at[0] += seconds

    def random(self) -> float:
        return self.chance

    def new_id(self) -> str:
        return f"an-id-of-length-{next(self.ids)}"


class OnLoop(Rehearsed):
    """Time is the running loop's."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()


@pytest.fixture
def machine() -> Rehearsed:
    return Rehearsed()


@pytest.fixture
def on_loop() -> Callable[[], Rehearsed]:
    return OnLoop
