"""A sweep on a Dask cluster of processes, one of which is killed midway: nothing lost, nothing twice, nothing else."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pandas as pd
import pytest

from sim.design import axes
from sim.executors import ClusterUnreachable, cluster
from sim.scenario import parse
from sim.sweep import sweep

ROOT = Path(__file__).resolve().parents[2]
TINY = """
name: tiny
duration: 5s
workload: {open_loop: {rate: 4/s, users: 20, turns_per_session: 3, generated_tokens: 50, context_tokens: 100}}
world: {provider: {capacity: 2, first_token: {exponential: {mean: 100ms}}, per_token: 5ms}}
"""


@contextmanager
def process(*arguments):
    """A process of Dask's command line, ended with the scope."""
    started = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "60s"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield started
    finally:
        if started.poll() is None:
            started.terminate()
        started.wait(timeout=60)


def written(path):
    """Wait for a file that a process writes when it is ready, and return its path."""
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} was never written"
        time.sleep(0.05)
    return path


@pytest.fixture
def dask(tmp_path):
    """A scheduler and two workers, as (address, workers); each has a thread, and no nanny that would start it anew."""
    file = tmp_path / "scheduler.json"
    with ExitStack() as stack:
        listening = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        stack.enter_context(process("distributed.cli.dask_scheduler", *listening, "--scheduler-file", str(file)))
        known = ("--scheduler-file", str(written(file)), "--no-nanny", "--nthreads", "1", "--no-dashboard")
        folder = ("--local-directory", str(tmp_path))
        workers = [stack.enter_context(process("distributed.cli.dask_worker", *known, *folder)) for _ in range(2)]
        yield json.loads(file.read_text())["address"], workers


@pytest.mark.timeout(300)  # four processes have to start, beside whatever else the machine does
def test_a_worker_killed_midway_loses_no_run_and_makes_none_twice(dask, tmp_path):
    address, workers = dask
    scenario = parse(TINY)
    varied = axes(["world.provider.capacity=1,2,4", "workload.rate=3/s,6/s"], scenario)
    told = []

    def kill_one(progress):
        told.append(progress.done)
        if progress.done == 3:
            workers[0].send_signal(signal.SIGKILL)

    with cluster(address) as executor:
        found = sweep(scenario, varied, tmp_path / "far.parquet", runs=2, executor=executor, watch=kill_one)
    assert workers[0].wait(timeout=60) == -signal.SIGKILL
    assert workers[1].poll() is None
    assert told == list(range(13))
    assert not found.duplicated(["point", "seed"]).any()
    here = sweep(scenario, varied, tmp_path / "here.parquet", runs=2)
    assert (found["error"] == "").all()
    pd.testing.assert_frame_equal(
        found.drop(columns="wall_seconds"), here.drop(columns="wall_seconds"), check_exact=True
    )


def test_an_address_without_a_scheduler_is_refused():
    with (
        pytest.raises(ClusterUnreachable, match=r"no Dask scheduler answers at tcp://127.0.0.1:9"),
        cluster("tcp://127.0.0.1:9", connect_s_max=1),
    ):
        pass
