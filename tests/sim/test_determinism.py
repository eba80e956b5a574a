"""Same scenario, seed and door: the same journal, byte for byte, in any process. Another seed: another journal."""

import os
import subprocess
import sys

import pytest

from tests.sim import reruns

STORY = """
name: shaken
duration: 60s
workload: {open_loop: {rate: 5/s, users: 20, turns_per_session: 3}}
world: {provider: {capacity: 16, failure_rate: 2%}}
settings: {guards: {unified: {breaker: {failures_max: 3, open_seconds: 3}}}}
faults:
  - provider_failing: {at: 15s, for: 10s, rate: 90%}
  - provider_slow: {at: 20s, for: 10s, factor: 4}
  - store_down: {at: 35s, for: 4s, store: sessions}
expectations: [{always: accounted}]
"""
RUN = """
import sys
from sim.scenario import parse
from sim.world import rehearse
from pathlib import Path
run = rehearse(parse(Path(sys.argv[1]).read_text()), seed=int(sys.argv[2]), door=sys.argv[3])
run.journal.write(Path(sys.argv[4]))
print(run.journal.digest, run.verdict.status.name, len(run.verdict.failures))
"""


@pytest.mark.parametrize("door", ["orchestrator", "service"])
def test_a_run_is_the_same_in_every_process_and_another_with_another_seed(tmp_path, door):
    (tmp_path / "s.yaml").write_text(STORY)

    def journal(seed: int, hash_seed: str) -> tuple[str, bytes]:
        path = tmp_path / f"{seed}-{hash_seed}.jsonl"
        command = [sys.executable, "-c", RUN, str(tmp_path / "s.yaml"), str(seed), door, str(path)]
        environ = {**os.environ, "PYTHONHASHSEED": hash_seed, "TZ": "Asia/Kolkata" if hash_seed == "2" else "UTC"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
        assert done.returncode == 0, done.stderr
        digest, status, kinds = done.stdout.split()
        assert status == "PASSED"
        assert int(kinds) >= 3
        return digest, path.read_bytes()

    first, second, other = journal(7, "1"), journal(7, "2"), journal(8, "1")
    if first != second:  # name the first divergence: two long journals side by side tell nobody anything
        lines = zip(first[1].splitlines(), second[1].splitlines(), strict=False)
        number, pair = next((n, pair) for n, pair in enumerate(lines, 1) if pair[0] != pair[1])
        pytest.fail(f"the journals part at line {number}: {pair[0]!r} and {pair[1]!r}")
    assert other[0] != first[0]
    assert str(tmp_path).encode() not in first[1]


def test_run_rerun_and_replay_are_one_in_stories_modes_and_doors(tmp_path):
    assert reruns.differences(tmp_path, 39, step=19) == []


@pytest.mark.nightly
def test_two_hundred_runs_rerun_and_replayed_are_one(tmp_path):
    assert reruns.differences(tmp_path, 200) == []
