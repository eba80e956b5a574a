"""Many seeds of a scenario: the same rows wherever they are run, and comparisons that show what is there."""

import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import Executor, Future
from pathlib import Path

import pandas as pd
import pytest

from sim import observe as observing
from sim.executors import Here, processes
from sim.measures import COLUMNS, measured
from sim.observe import ROW_COLUMNS, Job, WorkersLost, observe, observed
from sim.paths import changed
from sim.replicate import Until, compare, differences, replicate, summary
from sim.scenario import parse
from sim.statistics import Precision, mean
from sim.world import rehearse

ROOT = Path(__file__).resolve().parents[2]
TINY = """
name: tiny
duration: 6s
workload: {open_loop: {rate: 4/s, users: 20, turns_per_session: 3, generated_tokens: 50, context_tokens: 100}}
world: {provider: {capacity: 2, first_token: {exponential: {mean: 100ms}}, per_token: 5ms}}
"""


@pytest.fixture(scope="module")
def tiny():
    return parse(TINY)


@pytest.fixture(scope="module")
def four(tiny):
    return replicate(tiny, 4, first_seed=3)


def same(one, two):
    pd.testing.assert_frame_equal(one.drop(columns="wall_seconds"), two.drop(columns="wall_seconds"), check_exact=True)


def test_a_row_has_what_the_run_was(tiny, four):
    run = rehearse(tiny, seed=4)
    row = four.frame.iloc[1]
    assert tuple(four.frame.columns) == ROW_COLUMNS
    assert four.frame["seed"].tolist() == [3, 4, 5, 6]
    assert row[list(COLUMNS)].to_dict() == pytest.approx(measured(run.journal), nan_ok=True)
    assert (row["verdict"], row["error"], row["digest"]) == ("PASSED", "", run.journal.digest[:16])


def test_the_summary_has_an_interval_for_each_measure(four):
    row = four.summary.loc["p95"]
    estimate = mean(four.frame["p95"])
    assert (row["mean"], row["half_width"], row["runs"]) == (estimate.value, estimate.half_width, 4)
    assert (row["unit"], row["low"], row["high"]) == ("seconds", max(0, estimate.low), estimate.high)
    assert four.summary.loc["recovery_seconds", "runs"] == 0
    assert list(four.summary.index) == list(COLUMNS)


def test_intervals_end_where_measures_do():
    frame = pd.DataFrame([{**dict.fromkeys(COLUMNS, math.nan), "availability": each} for each in (0.2, 1.0)])
    row = summary(frame).loc["availability"]
    assert (row["low"], row["high"]) == (0.0, 1.0)
    assert row["half_width"] > 1


def test_worker_processes_make_the_same_rows(tiny, four):
    with processes(1) as executor:
        same(replicate(tiny, 4, first_seed=3, executor=executor).frame, four.frame)


def test_it_stops_when_a_mean_is_known_well_enough(tiny):
    told = []
    done = replicate(tiny, 40, until=Until("turns", Precision(0.2, relative=True)), told=told.append)
    count = len(done.frame)
    assert told == list(range(1, count + 1))
    assert 10 <= count < 40
    assert done.summary.loc["turns", "half_width"] <= 0.2 * done.summary.loc["turns", "mean"]
    assert done.frame["seed"].tolist() == list(range(count))


def test_a_run_that_cannot_go_on_is_a_row_with_its_error(tiny, monkeypatch):
    def burst(scenario, **options):
        if options["seed"] == 1:
            raise RuntimeError("burst\nin two")
        return rehearse(scenario, **options)

    monkeypatch.setattr(observing, "rehearse", burst)
    done = replicate(tiny, 3)
    assert done.frame["error"].tolist() == ["", "RuntimeError: burst in two", ""]
    assert math.isnan(done.frame.loc[1, "p95"])
    assert done.summary.loc["turns", "runs"] == 2


class TestCompare:
    def test_more_capacity_is_better_and_both_had_the_same_luck(self, tiny):
        done = compare(tiny, changed(tiny, {"world.provider.capacity": "8"}), 4, measures=("p95", "turns"))
        assert done.frame["policy"].tolist() == ["first", "second"] * 4
        assert done.frame["seed"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        assert done.summary.loc["turns", "difference"] == 0
        assert done.summary.loc["turns", "verdict"] == "no difference shown"
        by_policy = done.frame.groupby("policy")["p95"].mean()
        row = done.summary.loc["p95"]
        assert (row["first"], row["second"]) == (by_policy["first"], by_policy["second"])
        assert row["difference"] == pytest.approx(row["second"] - row["first"])
        assert row["difference"] < 0

    def frame(self, **measures):
        rows = []
        for name, (first, second) in measures.items():
            for policy, values in (("a", first), ("b", second)):
                rows += [{"policy": policy, "seed": seed, name: value} for seed, value in enumerate(values)]
        return pd.DataFrame(rows).groupby(["policy", "seed"], as_index=False).first()

    def verdicts(self, **measures):
        return differences(self.frame(**measures), ("a", "b"), tuple(measures))["verdict"].to_dict()

    def test_verdicts_know_which_way_is_better(self):
        low, high = [1.0, 1.1, 0.9, 1.0], [2.0, 2.1, 1.9, 2.05]
        assert self.verdicts(p95=(high, low), availability=(low, high), openings=(low, high), cost=(low, high)) == {
            "p95": "better",
            "availability": "better",
            "openings": "different",
            "cost": "worse",
        }

    def test_a_difference_is_not_claimed_where_chance_could_have_made_it(self):
        assert self.verdicts(p95=([1, 2, 3, 4.0], [2, 1, 4, 3.5])) == {"p95": "no difference shown"}
        assert self.verdicts(p95=([1.0], [9.0])) == {"p95": "no difference shown"}

    def test_more_measures_make_wider_intervals_so_that_all_hold_together(self):
        values = ([1.0, 1.1, 0.9, 1.0], [2.0, 2.2, 1.9, 2.1])
        alone = differences(self.frame(p95=values), ("a", "b"), ("p95",)).loc["p95"]
        beside = differences(self.frame(p95=values, p50=values), ("a", "b"), ("p95", "p50")).loc["p95"]
        assert beside["high"] - beside["low"] > alone["high"] - alone["low"]

    def test_what_no_pair_of_runs_has_is_left_out(self):
        frame = self.frame(p95=([1.0, 2.0], [1.0, 2.5])).assign(recovery_seconds=math.nan)
        frame = frame.assign(cost=0.0)  # nothing has a price
        assert list(differences(frame, ("a", "b"), ("p95", "recovery_seconds", "cost")).index) == ["p95"]


class TestExecutors:
    def test_runs_are_handed_out_as_they_are_done(self, tiny):
        asked = []
        jobs = ((asked.append(seed) or seed, Job(tiny, seed)) for seed in range(10**9))
        rows = observed(jobs, Here())
        assert [next(rows)[1]["seed"] for _ in range(2)] == asked == [0, 1]
        rows.close()

    def test_a_lost_worker_is_told_and_not_taken_for_a_run(self, tiny):
        with processes(1) as executor:
            executor.submit(os.kill, executor.submit(os.getpid).result(), signal.SIGKILL)
            with pytest.raises(WorkersLost, match="a worker process died"):
                list(observed([(0, Job(tiny, 0))], executor))

    def test_what_an_executor_says_of_a_run_is_its_error(self, tiny):
        class Failing(Executor):
            def submit(self, fn, /, *args, **kwargs):
                future = Future()
                future.set_exception(ValueError("lost three times"))
                return future

        ((_, row),) = observed([(0, Job(tiny, 7))], Failing())
        assert (row["seed"], row["error"]) == (7, "ValueError: lost three times")

    def test_two_threads_of_a_process_live_through_one_world_at_a_time(self, tiny, four):
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(2) as executor:
            same(replicate(tiny, 4, first_seed=3, executor=executor).frame, four.frame)

    def test_a_script_without_a_guard_or_a_file_may_use_processes_and_a_kill_leaves_none_behind(self):
        script = textwrap.dedent(
            """
            from sim.executors import processes
            import os, time
            with processes(1) as executor:
                print(executor.submit(os.getpid).result(), flush=True)
                time.sleep(60)
            """
        )
        parent = subprocess.Popen(
            [sys.executable, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
        )
        parent.stdin.write(script)
        parent.stdin.close()
        worker = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        parent.stdout.close()
        deadline = time.monotonic() + 60
        while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not Path(f"/proc/{worker}").exists()


def test_a_run_keeps_no_history(tiny):
    row = observe(Job(tiny, 3))
    assert row["digest"] == rehearse(tiny, seed=3).journal.digest[:16]
