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
from itertools import islice
from pathlib import Path

from sim.tape import Recording, Tape
from sim.world import rehearse
from tests.scenarios.cases import Case, cases, shortened

SECONDS = 12.0


def _digest(case: Case, recording: Recording) -> str:
    story = shortened(case.scenario, SECONDS)
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
