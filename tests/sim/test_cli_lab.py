"""`orchestra sim replicate`, `compare`, `sweep` and `tune`: what they print, write and return."""

import os
import re

import pandas as pd
import pytest
from typer.testing import CliRunner

from sim import cli_lab
from sim import observe as observing
from sim.cli import app
from sim.executors import Here
from sim.observe import WorkersLost
from sim.timeline import COLUMNS_MAX

TINY = """
name: tiny
duration: 5s
workload: {open_loop: {rate: 4/s, users: 20, turns_per_session: 3, generated_tokens: 50, context_tokens: 100}}
world: {provider: {capacity: 2, first_token: {exponential: {mean: 100ms}}, per_token: 5ms}}
"""


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """Run a command beside tiny.yaml, its runs in this process: starting others is tested with executors."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli_lab.executors, "processes", lambda workers: Here())
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def lines(done):
    assert all(len(line) <= COLUMNS_MAX for line in done.stdout.splitlines())
    assert "\x1b" not in done.stdout
    return done.stdout


def test_replicate_prints_intervals_and_writes_rows(cli, tmp_path):
    done = cli("replicate", "tiny.yaml", "--runs", "3", "--seed", "7", "--out", "runs.csv")
    assert done.exit_code == 0, done.output
    out = lines(done)
    assert "tiny: 3 seeds" in out
    assert re.search(r"^availability +100% +100% to 100% +0\.0%$", out, re.MULTILINE), out
    assert re.search(r"^p95 +\S+ +\S+ to \S+ +\S+%$", out, re.MULTILINE), out
    assert "PASSED 3 times" in out
    assert "closed" not in out
    assert pd.read_csv(tmp_path / "runs.csv")["seed"].tolist() == [7, 8, 9]


def test_replicate_until_a_mean_is_known(cli):
    done = cli("replicate", "tiny.yaml", "--until", "turns +-500%", "--runs", "2")
    assert "turns is known as well as wanted" in lines(done)
    done = cli("replicate", "tiny.yaml", "--until", "p95 ±1us", "--runs", "2")
    assert "p95 is not yet known as well as wanted: allow more --runs" in lines(done)


def test_compare_says_what_is_shown(cli):
    done = cli(
        *("compare", "tiny.yaml", "--with", "world.provider.capacity=1", "--with", "workload.rate=16/s"),
        *("--runs", "4", "--measure", "turns", "--measure", "p95", "--measure", "availability"),
    )
    assert done.exit_code == 0, done.output
    out = lines(done)
    assert "tiny, and with world.provider.capacity=1, workload.rate=16/s: 4 seeds" in out
    assert re.search(r"^turns .* different$", out, re.MULTILINE), out
    assert re.search(r"^p95 .* worse$", out, re.MULTILINE), out
    assert re.search(r"^availability +100% +\S+% +\S+ pp +\S+ pp to \S+ pp +(worse|not shown)$", out, re.MULTILINE), out
    assert "hold all together with 95 % confidence (Bonferroni)" in " ".join(out.split())


def test_sweep_fills_a_file_and_goes_on(cli, tmp_path):
    command = ("sweep", "tiny.yaml", "--vary", "world.provider.capacity=1,2", "--out", "s.parquet", "--runs")
    done = cli(*command, "1")
    assert done.exit_code == 0, done.output
    assert re.search(r"^capacity +availability", lines(done), re.MULTILINE)
    assert "2 runs in s.parquet" in done.stdout
    assert "4 runs in s.parquet" in cli(*command, "2").stdout
    assert len(pd.read_parquet(tmp_path / "s.parquet")) == 4
    spread = ("--vary", "workload.rate=1/s..9/s", "--design", "lhs", "--points", "2")
    done = cli("sweep", "tiny.yaml", *spread, "--runs", "1", "--out", "lhs.parquet")
    assert "2 points" in done.stdout


def test_tune_prints_the_front_and_what_to_paste(cli):
    done = cli(
        *("tune", "tiny.yaml", "--vary", "guards.unified.breaker.open_seconds=1.0..9.0"),
        *("--vary", "world.provider.capacity=2..4", "--constraint", "availability >= 50%"),
        *("--objective", "p95,cost", "--trials", "2", "--runs", "1", "--out", "trials.csv"),
    )
    assert done.exit_code == 0, done.output
    out = lines(done)
    assert "tiny: 2 points, 2 of them keep what must hold" in out
    assert "as it is" in out
    assert "# world.provider.capacity: " in out
    assert "    unified:\n      breaker:\n        open_seconds: " in out
    assert "[guards.unified.breaker]\nopen_seconds = " in out
    assert len(pd.read_csv("trials.csv")) == 3
    none = cli(
        *("tune", "tiny.yaml", "--vary", "world.provider.capacity=2..4", "--constraint", "p95 < 1us"),
        *("--trials", "1", "--runs", "1"),
    )
    assert "No point that was tried keeps all constraints" in none.stdout


def test_runs_that_could_not_go_on_are_named_and_make_the_status_1(cli, monkeypatch):
    rehearse = observing.rehearse

    def burst(scenario, **options):
        if options["seed"] in (1, 2):
            raise RuntimeError("burst")
        return rehearse(scenario, **options)

    monkeypatch.setattr(observing, "rehearse", burst)
    done = cli("replicate", "tiny.yaml", "--runs", "3")
    assert done.exit_code == 1
    assert "2 runs could not go on (seeds 1, 2): RuntimeError: burst" in done.stderr
    assert "tiny: 3 seeds" in done.stdout


@pytest.mark.parametrize(
    ("failure", "says"),
    [(KeyboardInterrupt(), "interrupted: "), (WorkersLost("a worker process died"), "a worker process died: ")],
)
def test_who_is_interrupted_says_what_is_kept(cli, monkeypatch, failure, says):
    def fail(*arguments, **options):
        raise failure

    for name in ("sweep", "replicate", "tune"):
        monkeypatch.setattr(cli_lab, name, fail)
    vary = ("--vary", "world.provider.capacity=1,2")
    done = cli("sweep", "tiny.yaml", *vary, "--out", "s.parquet")
    assert (done.exit_code, done.stderr) == (6, f"{says}s.parquet has what is done; the same command goes on\n")
    assert cli("replicate", "tiny.yaml").stderr == f"{says}the runs are gone\n"
    assert cli("tune", "tiny.yaml", *vary).stderr == f"{says}the trials are gone\n"
    assert "t.log has what is done" in cli("tune", "tiny.yaml", *vary, "--storage", "t.log").stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("replicate", "none.yaml"), "none.yaml: line 1, column 1: cannot be read"),
        (("replicate", "tiny.yaml", "--door", "servise"), "there is no door 'servise': did you mean service?"),
        (("replicate", "tiny.yaml", "--warm-up", "5"), "--warm-up 5 has no unit: write 5s"),
        (("replicate", "tiny.yaml", "--until", "p95"), "--until 'p95' cannot be read"),
        (("replicate", "tiny.yaml", "--until", "p96 +-5%"), "there is no measure 'p96': did you mean p9"),
        (("replicate", "tiny.yaml", "--until", "p95 +-5"), "--until p95: 5 has no unit: write 5s"),
        (("replicate", "tiny.yaml", "--until", "p95 +-0%"), "0% is no half-width: write one above 0"),
        (("replicate", "tiny.yaml", "--workers", "2", "--cluster", "tcp://a:1"), "leave one of them out"),
        (("replicate", "tiny.yaml", "--runs", "1", "--out", "no/where.csv"), "no/where.csv cannot be written"),
        (("compare", "tiny.yaml", "--with", "capacity"), "'capacity' changes nothing: write PATH=VALUE"),
        (("compare", "tiny.yaml", "--with", "duration=5"), "duration: 5 has no unit"),
        (("compare", "tiny.yaml", "--with", "duration=9s", "--measure", "x"), "there is no measure 'x'"),
        (("sweep", "tiny.yaml", "--vary", "duration=5s,5", "--out", "s"), "duration: 5 has no unit"),
        (("sweep", "tiny.yaml", "--vary", "duration=5s,6s", "--out", "no/s"), "no/s cannot be written"),
        (("sweep", "tiny.yaml", "--vary", "duration=5s,6s", "--design", "x", "--out", "s"), "there is no design 'x'"),
        (("tune", "tiny.yaml", "--vary", "duration=5s,6s", "--sampler", "x"), "there is no sampler 'x'"),
        (("tune", "tiny.yaml", "--vary", "duration=5s,6s", "--constraint", "p95"), "'p95' is no constraint"),
        (("tune", "tiny.yaml", "--vary", "duration=5s,6s", "--objective", "turns"), "turns has no better way"),
        (("tune", "tiny.yaml", "--vary", "duration=5s", "--storage", "no/t"), "no/t cannot keep trials"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence_with_status_2(cli, arguments, says):
    done = cli(*arguments)
    assert done.exit_code == 2, done.output
    assert says in " ".join(done.stderr.split())
    assert "Traceback" not in done.output
    assert done.stdout == ""
    assert os.listdir() == ["tiny.yaml"]
