"""Renders the README's picture: ``python -m sim.pictures SCENARIO.yaml PICTURE.png``, or ``make pictures``."""

from __future__ import annotations

import sys
from pathlib import Path

from sim import plots, scenario
from sim.world import rehearse

DOTS_PER_INCH = 110


def render(story: Path, picture: Path) -> None:
    """Rehearse the scenario in `story` with seed 0, and write its timeline to `picture` as PNG.

    Raises
    ------
    sim.forms.Unreadable
        `story` is no scenario.
    OSError
        `picture` cannot be written.
    """
    figure = plots.timeline(rehearse(scenario.load(story)))
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=DOTS_PER_INCH, facecolor="white", metadata={"Software": None})


if __name__ == "__main__":
    render(*map(Path, sys.argv[1:]))
