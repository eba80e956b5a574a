"""Run, rerun and replay: the same journal in processes with different hash seeds, in another order of runs.

As a script, `python -m tests.sim.reruns FOLDER LAST STEP record|again` lives through every STEPth of the first LAST
`cases`, recording tapes to FOLDER, or again, from the last to the first, each by its seed and by its tape. It prints
one line of JSON a case. `differences` has both done in processes of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from msgspec import structs

from sim.clients import DOORS, DoorName
from sim.scenario import Scenario, load
from sim.schedule import MODES, Mode
from sim.tape import Recording, Tape
from sim.world import rehearse

STORIES = sorted((Path(__file__).parents[2] / "chaos" / "scenarios").glob("*.yaml"))
SECONDS = 12.0


class Case(NamedTuple):
    """One run: of a story, shortened; the seed is the case's number."""

    seed: int
    story: Path
    door: DoorName
    mode: Mode


def cases() -> Iterator[Case]:
    """Yield cases without end, spread over stories, doors and modes."""
    ways = [(story, door, mode) for door in DOORS for mode in MODES for story in STORIES]
    seed = 0
    while True:
        for story, door, mode in ways:
            if not any(structs.replace(load(story), door=door).problems()):
                yield Case(seed, story, door, mode)
                seed += 1


def shortened(story: Scenario, seconds: float = SECONDS) -> Scenario:
    """Return the story told in a few seconds, each fault in its turn."""
    pace = seconds / story.duration
    faults = [structs.replace(fault, at=fault.at * pace, lasts=fault.lasts * pace) for fault in story.faults]
    return structs.replace(story, duration=seconds, faults=tuple(faults), expectations=())


def _digest(case: Case, recording: Recording) -> str:
    story = shortened(load(case.story))
    return rehearse(story, seed=case.seed, door=case.door, mode=case.mode, tape=recording).journal.digest


def main(folder: str, last: str, step: str, what: str) -> None:
    """Do one process's part."""
    chosen = _chosen(int(last), int(step))
    for case in chosen if what == "record" else reversed(chosen):
        path = Path(folder) / f"{case.seed}.tape"
        recording = Recording()
        found = {"seed": case.seed, "run": _digest(case, recording)}
        if what == "record":
            recording.tape.write(path)
        else:
            replaying = Recording.replaying(Tape.read(path))
            found["replay"] = _digest(case, replaying)
            found["divergence"] = str(replaying.divergence or "")
        print(json.dumps(found), flush=True)


def _chosen(last: int, step: int) -> list[Case]:
    return list(islice(cases(), 0, last, step))


def differences(folder: Path, last: int, step: int = 1) -> list[str]:
    """Return what differs among run, rerun and replay of every `step`th of the first `last` cases."""
    recorded, again = (
        _process(folder, last, step, what, hash_seed) for what, hash_seed in (("record", "1"), ("again", "2"))
    )
    told = []
    for case in _chosen(last, step):
        one, other = recorded[case.seed], again[case.seed]
        if not one["run"] == other["run"] == other["replay"] or other["divergence"]:
            told.append(f"{case.story.stem}, {case.door}, {case.mode}, seed {case.seed}: {one} {other}")
    return told


def _process(folder: Path, last: int, step: int, what: str, hash_seed: str) -> dict[int, dict[str, str]]:
    command = [sys.executable, "-m", "tests.sim.reruns", str(folder), str(last), str(step), what]
    environ = {**os.environ, "PYTHONHASHSEED": hash_seed, "TZ": "Asia/Kolkata" if hash_seed == "2" else "UTC"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ, cwd=root)
    assert done.returncode == 0, done.stderr
    return {line["seed"]: line for line in map(json.loads, done.stdout.splitlines())}


if __name__ == "__main__":
    main(*sys.argv[1:])
