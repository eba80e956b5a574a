"""Which points of a space to try: a grid, a Latin hypercube, or a Sobol sequence over some paths of a scenario.

An axis is written as a path and its values, each as a scenario's file has it::

    world.provider.capacity=16,32,64          these
    guards.unified.fallbacks=[],[alternate]   these, lists and mappings in YAML's short form
    workload.open_loop.rate=5/s..50/s         from, to; a grid takes 5 of them, ends included
    faults[0].factor=2.0..10.0:9              from, to; a grid takes 9
    world.provider.capacity=16..64            between whole numbers without a unit: whole numbers

A point is a mapping of path to text, which `sim.paths.changed` puts into the scenario.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from sim.paths import PathRefused, changed, plain
from sim.scenario import Scenario

DesignName = Literal["grid", "lhs", "sobol"]
DESIGNS: tuple[DesignName, ...] = ("grid", "lhs", "sobol")
GRID_LEVELS = 5
POINTS_MAX = 10_000
LEVELS_MAX = 1_000
AXES_MAX = 20

Point = dict[str, str]

_NUMBER = r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+"
_END = rf"({_NUMBER})\s*([a-z/%]*)"
_RANGE = re.compile(rf"\s*{_END}\s*\.\.\s*{_END}\s*(?::\s*([0-9]+))?\s*")


class DesignRefused(Exception):
    """No points can be made of this; the message names the axis or option and the cure."""


class Listed(NamedTuple):
    """An axis whose values are these."""

    path: str
    texts: tuple[str, ...]

    @property
    def ends(self) -> tuple[str, ...]:
        """What to check before anything runs."""
        return self.texts

    def at(self, place: float) -> str:
        """Return the value at a place from 0 to (not including) 1."""
        return self.texts[min(int(place * len(self.texts)), len(self.texts) - 1)]

    def levels(self) -> tuple[str, ...]:
        """Return the values that a grid takes."""
        return self.texts


class Range(NamedTuple):
    """An axis from one number to another, both included, in one unit."""

    path: str
    low: float
    high: float
    unit: str = ""
    whole: bool = False
    steps: int | None = None

    @property
    def ends(self) -> tuple[str, ...]:
        """What to check before anything runs."""
        return self.written(self.low), self.written(self.high)

    def at(self, place: float) -> str:
        """Return the value at a place from 0 to (not including) 1."""
        if self.whole:
            return self.written(self.low + int(place * (self.high - self.low + 1)))
        return self.written(self.low + place * (self.high - self.low))

    def levels(self) -> tuple[str, ...]:
        """Return the values that a grid takes."""
        values = np.linspace(self.low, self.high, self.steps or GRID_LEVELS)
        return tuple(dict.fromkeys(self.written(round(each) if self.whole else float(each)) for each in values))

    def written(self, value: float) -> str:
        """Write a value as a scenario's file has it."""
        return f"{round(value)}{self.unit}" if self.whole else f"{value:.6g}{self.unit}"


Axis = Listed | Range


def axis(text: str) -> Axis:
    """Read an axis, such as ``world.provider.capacity=16,32,64``.

    Raises
    ------
    DesignRefused
        Saying what is wrong and the cure.
    """
    path, equals, values = text.partition("=")
    path = path.strip()
    if not (path and equals and values.strip()):
        raise DesignRefused(f"{text!r} is no axis: write a path and its values, such as world.provider.capacity=16,32")
    if (match := _RANGE.fullmatch(values)) is None:
        texts = tuple(each.strip() for each in _parts(values))
        if not all(texts) or len(set(texts)) < len(texts):
            raise DesignRefused(f"{path}: {values.strip()!r} has empty or equal values: write each once, with commas")
        return Listed(path, texts)
    low, low_unit, high, high_unit, count = match.groups()
    if low_unit != high_unit:
        raise DesignRefused(f"{path}: {values.strip()} has two units: write both ends in the same one")
    if not float(low) < float(high):
        raise DesignRefused(f"{path}: {values.strip()} is empty: write the lower end first")
    if count is not None and not 2 <= int(count) <= LEVELS_MAX:
        raise DesignRefused(f"{path}: {count} values are out of bounds: write 2 to {LEVELS_MAX}")
    whole = not low_unit and "." not in low + high
    return Range(path, float(low), float(high), low_unit, whole, None if count is None else int(count))


def axes(texts: Sequence[str], scenario: Scenario) -> tuple[Axis, ...]:
    """Read axes and check them against the scenario that they are to vary.

    Raises
    ------
    DesignRefused, sim.paths.PathRefused
    """
    found = tuple(axis(text) for text in texts)
    if not 1 <= len(found) <= AXES_MAX:
        raise DesignRefused(f"{len(found)} axes are out of bounds: vary 1 to {AXES_MAX} paths")
    paths = [each.path for each in found]
    for path in paths:
        if paths.count(path) > 1:
            raise DesignRefused(f"{path} is varied twice: write all its values in one axis")
    for each in found:
        for text in each.ends:
            plain(scenario, each.path, text)
    return found


def points(
    varied: Sequence[Axis], design: DesignName = "grid", count: int | None = None, seed: int = 0
) -> tuple[Point, ...]:
    """Return the points of a design.

    Parameters
    ----------
    varied : sequence of Axis
    design : str
        ``grid`` takes every combination. ``lhs`` (Latin hypercube; McKay, Beckman and Conover, Technometrics 21, 1979)
        and ``sobol`` (scrambled; Owen, Journal of Complexity 14, 1998) spread `count` points over the whole space.
    count : int, optional
        How many points; a power of two for ``sobol``, whose balance needs that. A grid's count follows from its axes.
    seed : int
        Of the chance in ``lhs`` and ``sobol``.

    Raises
    ------
    DesignRefused
    """
    if design == "grid":
        if count is not None:
            raise DesignRefused("a grid has as many points as its axes: leave --points out, or take lhs or sobol")
        levels = [each.levels() for each in varied]
        total = int(np.prod([len(each) for each in levels]))
        if total > POINTS_MAX:
            raise DesignRefused(f"a grid of {total:,} points: at most {POINTS_MAX:,}; take --design lhs or sobol")
        return tuple(
            {each.path: text for each, text in zip(varied, texts, strict=True)} for texts in itertools.product(*levels)
        )
    if count is None or not 2 <= count <= POINTS_MAX:
        raise DesignRefused(f"--design {design} needs --points, 2 to {POINTS_MAX:,}, such as 64")
    if design == "sobol" and count & (count - 1):
        nearest = 1 << count.bit_length() - 1
        raise DesignRefused(f"--points {count} is no power of two, which sobol needs: take {nearest} or {2 * nearest}")
    from scipy.stats import qmc  # noqa: PLC0415 - takes a second to import

    if design == "lhs":
        places = qmc.LatinHypercube(len(varied), rng=seed).random(count)
    else:
        places = qmc.Sobol(len(varied), rng=seed).random_base2(count.bit_length() - 1)
    return tuple({each.path: each.at(float(place)) for each, place in zip(varied, row, strict=True)} for row in places)


def placed(scenario: Scenario, point: Point) -> Scenario | PathRefused:
    """Return `scenario` at `point`, or why there is none: values may each be fine and not fit together."""
    try:
        return changed(scenario, point)
    except PathRefused as refusal:
        return refusal


def _parts(text: str) -> list[str]:
    """Split at commas that stand in no bracket or brace."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign in "[{") - (sign in "]}")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return parts
