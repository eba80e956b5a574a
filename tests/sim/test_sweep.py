"""Sweeps: every point under the same seeds, into one file, from which a killed one goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from sim import results
from sim.design import DesignRefused, Listed, axes
from sim.executors import Here
from sim.paths import PathRefused
from sim.results import ResultsRefused
from sim.scenario import parse
from sim.sweep import Progress, sweep

ROOT = Path(__file__).resolve().parents[2]
TINY = """
name: tiny
duration: 5s
workload: {open_loop: {rate: 4/s, users: 20, generated_tokens: {lognormal: {median: 50, p95: 90}}}}
world: {provider: {capacity: 2, first_token: {exponential: {mean: 100ms}}, per_token: 5ms}}
"""
COMMAND = ["-c", "from orchestra.cli import main; main()", "sim"]


@pytest.fixture(scope="module")
def tiny():
    return parse(TINY)


class Counted(Here):
    """Does runs here, and counts them."""

    def __init__(self):
        self.seeds = []

    def submit(self, fn, /, *args, **kwargs):
        self.seeds.append(args[0].seed)
        return super().submit(fn, *args, **kwargs)


def without_wall(frame):
    return frame.drop(columns="wall_seconds")


def test_every_point_has_every_seed_and_its_values_in_base_units(tiny, tmp_path):
    varied = axes(["world.provider.capacity=1,2", "workload.rate=60/min,3/s", "guards.unified.fallbacks=[]"], tiny)
    told = []
    found = sweep(tiny, varied, tmp_path / "s.parquet", runs=2, first_seed=5, watch=told.append)
    assert found["point"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert found["seed"].tolist() == [5, 6] * 4
    assert found["world.provider.capacity"].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
    assert found["workload.rate"].tolist() == [1, 1, 3, 3] * 2
    assert set(found["guards.unified.fallbacks"]) == {"[]"}
    by_point = found.groupby(["workload.rate", "seed"])["turns"].nunique()
    assert (by_point == 1).all()  # the same luck whatever the capacity
    assert [(each.done, each.total) for each in told] == [(done, 8) for done in range(9)]
    assert told[0] == Progress(0, 8, 0, 0, None)
    assert told[-1].seconds_left == 0
    pd.testing.assert_frame_equal(results.read(tmp_path / "s.parquet"), found)


def test_what_is_done_is_not_run_again(tiny, tmp_path):
    varied = axes(["world.provider.capacity=1,2"], tiny)
    out = tmp_path / "s.parquet"

    def stop(progress):
        if progress.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(tiny, varied, out, runs=2, watch=stop)
    assert len(results.read(out)) == 2
    rest, told = Counted(), []
    found = sweep(tiny, varied, out, runs=3, executor=rest, watch=told.append)
    assert rest.seeds == [2, 0, 1, 2]
    assert (told[0].done, told[0].resumed, told[0].total) == (2, 2, 6)
    whole = sweep(tiny, varied, tmp_path / "whole.parquet", runs=3)
    pd.testing.assert_frame_equal(without_wall(found), without_wall(whole), check_exact=True)
    none = Counted()
    sweep(tiny, varied, out, runs=3, executor=none)
    assert none.seeds == []


def test_another_scenario_or_design_does_not_mix_in(tiny, tmp_path):
    varied = (Listed("world.provider.capacity", ("1",)),)
    sweep(tiny, varied, tmp_path / "s.parquet", runs=1)
    with pytest.raises(ResultsRefused, match="has the results of something else"):
        sweep(tiny, (Listed("world.provider.capacity", ("2",)),), tmp_path / "s.parquet", runs=1)
    with pytest.raises(ResultsRefused, match="has the results of something else"):
        sweep(parse(TINY.replace("4/s", "5/s")), varied, tmp_path / "s.parquet", runs=1)


def test_a_point_that_does_not_fit_together_is_a_row_with_its_error(tiny, tmp_path):
    medians = ("100", "50")
    found = sweep(tiny, (Listed("workload.generated_tokens.median", medians),), tmp_path / "s.parquet", runs=1)
    assert found["verdict"].tolist() == ["INVALID", "PASSED"]
    assert "is below the median" in found["error"][0]
    assert found["turns"].isna().tolist() == [True, False]
    with pytest.raises(PathRefused, match="is below the median"):
        sweep(tiny, (Listed("workload.generated_tokens.median", medians[:1]),), tmp_path / "none.parquet", runs=1)
    with pytest.raises(DesignRefused, match="200,000 runs are too many: at most 100,000"):
        sweep(tiny, (Listed("duration", ("5s", "6s")),), tmp_path / "none.parquet", runs=100_000)
    assert not (tmp_path / "none.parquet").exists()


KILLED = """
from pathlib import Path
from sim.design import axes
from sim.scenario import load
from sim.sweep import sweep
story = load(Path("tiny.yaml"))
sweep(story, axes(["world.provider.capacity=1..10:10"], story), Path("s.parquet"), runs=50)
"""


def begun(command, folder):
    """Start a sweep of 500 runs in a process of its own, and return that after three of them."""
    (folder / "tiny.yaml").write_text(TINY)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, *command], cwd=folder, env=environment, stderr=subprocess.PIPE)
    log = folder / "s.parquet.log"
    deadline = time.monotonic() + 100
    while not log.exists() or log.read_bytes().count(b"\n") < 4:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def goes_on(tiny, folder):
    """Tell how many runs a sweep of the same 500 found, having let it do two more."""
    told = []

    def stop(progress):
        told.append(progress)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(tiny, axes(["world.provider.capacity=1..10:10"], tiny), folder / "s.parquet", runs=50, watch=stop)
    found = results.read(folder / "s.parquet")
    assert len(found) == told[0].resumed + 2
    assert not found.duplicated(["point", "seed"]).any()
    assert (found["error"] == "").all()
    return told[0].resumed


def test_a_sweep_that_is_killed_goes_on_where_it_stopped(tiny, tmp_path):
    process = begun(["-c", KILLED], tmp_path)
    process.kill()
    process.communicate()
    assert goes_on(tiny, tmp_path) >= 3


@pytest.mark.nightly
def test_a_sweep_that_is_interrupted_says_so_and_leaves_what_is_done_and_no_workers(tiny, tmp_path):
    options = ["--vary", "world.provider.capacity=1..10:10", "--runs", "50", "--workers", "2", "--out", "s.parquet"]
    process = begun([*COMMAND, "sweep", "tiny.yaml", *options], tmp_path)
    workers = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 6
    assert told.strip() == "interrupted: s.parquet has what is done; the same command goes on"
    assert not (tmp_path / "s.parquet.log").exists()
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    assert goes_on(tiny, tmp_path) >= 3
