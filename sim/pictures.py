"""Renders the documentation's pictures: ``python -m sim.pictures WHAT SCENARIO.yaml PICTURE.png`` (``make pictures``).

WHAT is ``timeline``, the run second by second, or ``metastability``, its goodput with and without guards.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from sim import plots, scenario
from sim.compare import unguarded
from sim.scenario import Scenario
from sim.world import rehearse

DOTS_PER_INCH = 110


def timeline(story: Scenario) -> Figure:
    """Rehearse `story` and draw it second by second."""
    return plots.timeline(rehearse(story))


def metastability(story: Scenario) -> Figure:
    """Rehearse `story` twice, with its own guards and with none, and draw what that does to its goodput."""
    return plots.goodput({"guarded": rehearse(story), "without guards": rehearse(unguarded(story))})


PICTURES: dict[str, Callable[[Scenario], Figure]] = {"timeline": timeline, "metastability": metastability}


def render(what: str, story: Path, picture: Path) -> None:
    """Draw `what`, one of `PICTURES`, of the scenario in `story` with seed 0, and write it to `picture` as PNG.

    Raises
    ------
    sim.forms.Unreadable
        `story` is no scenario.
    OSError
        `picture` cannot be written.
    """
    figure = PICTURES[what](scenario.load(story))
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=DOTS_PER_INCH, facecolor="white", metadata={"Software": None})


if __name__ == "__main__":
    render(sys.argv[1], *map(Path, sys.argv[2:]))
