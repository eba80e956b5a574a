"""`orchestra sim`: what it prints, writes and returns."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import jsonschema
import pytest
from typer.testing import CliRunner

from sim.cli import app
from sim.journal import Journal, RunFinished
from sim.timeline import ASCII, BUCKETS_MAX, COLUMNS_MAX, UNICODE, bucket_s

SMALL = """
name: small
duration: 40s
workload: {open_loop: {rate: 4/s, users: 20, turns_per_session: 3, generated_tokens: 50, context_tokens: 100}}
world:
  provider: {capacity: 8, first_token: {exponential: {mean: 100ms}}, per_prompt_token: 0.1ms, per_token: 5ms}
"""
PASSING = SMALL + "expectations: [{always: accounted}]\n"
TRACE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
)
COMMAND = [sys.executable, "-c", "from orchestra.cli import main; main()", "sim"]
"""The whole command line in a process of its own."""


@pytest.fixture
def cli(tmp_path):
    """Run a command with files of this text in the working folder."""

    def run(*arguments: str, **files: str):
        for name, text in files.items():
            (tmp_path / name.replace("_", ".")).write_text(text)
        before = os.getcwd()
        os.chdir(tmp_path)
        try:
            return CliRunner().invoke(app, list(arguments))
        finally:
            os.chdir(before)

    return run


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (("--journal", "s.yaml"), "s.yaml is named twice"),
        (("--tape", "x", "--report", "./x"), "x is named twice"),
        (("--journal", "j", "--sample", "1us"), "would be over 1,000,000 intervals: write a longer one"),
        (("--journal", "j", "--sample", "1s", "--tape", "t"), "leave --sample out, or --tape"),
    ],
)
def test_files_and_samples_that_would_lose_something_are_refused(cli, tmp_path, options, wanted):
    done = cli("run", "s.yaml", *options, s_yaml=PASSING)
    assert done.exit_code == 2
    assert wanted in done.stderr
    assert (tmp_path / "s.yaml").read_text() == PASSING


def test_a_shaken_scenario_is_printed_and_runs_as_any_other(cli):
    printed = cli("shake", "s.yaml", "--seed", "3", s_yaml=PASSING)
    assert printed.exit_code == 0, printed.output
    assert printed.stdout == cli("shake", "s.yaml", "--seed", "3").stdout != cli("shake", "s.yaml").stdout
    assert "guards" in printed.stdout
    done = cli("run", "shaken.yaml", shaken_yaml=printed.stdout)
    assert "always durable" in done.stdout, done.output


def test_a_run_prints_its_timeline_verdict_and_how_to_see_it_again(cli, tmp_path):
    done = cli("run", "s.yaml", "--seed", "3", "--journal", "j.jsonl", s_yaml=PASSING)
    assert done.exit_code == 0, done.output
    for words in ("small", "seed 3", "answered", "p95", "always accounted", "PASSED", "= 160 arrivals", "virtual time"):
        assert re.search(words.replace("160", r"\d+"), done.stdout), words
    assert "again: orchestra sim run s.yaml --seed 3" in done.stdout
    journal = Journal.read(tmp_path / "j.jsonl")
    assert journal.digest[:16] in done.stdout
    assert all(len(line) <= COLUMNS_MAX for line in done.stdout.splitlines())
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("more", "code", "word"),
    [
        ("expectations: [{always: accounted}]", 0, "PASSED"),
        ('expectations: [{always: run, p50: "< 1ms"}]', 1, "FAILED"),
        ("faults: [{provider_failing: {at: 1s, for: 2s, rate: 0.001%}}]", 4, "INCONCLUSIVE"),
        (
            "faults: [{store_down: {at: 10s, for: 5s, store: sessions}}]\n"
            'expectations: [{before: fault, p50: "< 1ms"}]',
            3,
            "BASELINE UNHEALTHY",
        ),
    ],
)
@pytest.mark.parametrize("door", ["orchestrator", "service"])
def test_the_exit_code_says_what_the_run_proved(cli, more, code, word, door):
    done = cli("run", "s.yaml", "--door", door, s_yaml=SMALL + more)
    assert done.exit_code == code, done.output
    assert f"{word}: " in done.stdout
    assert f"(exit code {code})" in done.stdout
    assert (f"--door {door}" in done.stdout) is (door != "orchestrator")


@pytest.mark.parametrize(
    ("arguments", "files", "says"),
    [
        (("run",), {}, "name a scenario file"),
        (("run", "none.yaml"), {}, "none.yaml: line 1, column 1: cannot be read (No such file or directory)"),
        (("run", "s.yaml"), {"s_yaml": SMALL + "fault: []"}, "column 1: fault: unknown key: did you mean faults?"),
        (
            ("run", "s.yaml", "--door", "servise"),
            {"s_yaml": PASSING},
            "there is no door 'servise': did you mean service?",
        ),
        (("run", "s.yaml", "--seed", "-1"), {"s_yaml": PASSING}, "--seed"),
        (("run", "s.yaml", "--journal", "no/where"), {"s_yaml": PASSING}, "cannot be written (No such file"),
        (("run", "s.yaml", "--report", "."), {"s_yaml": PASSING}, "cannot be written (Is a directory)"),
        (("run", "--trace", "none.csv"), {}, "none.csv: cannot be read (No such file or directory)"),
        (("run", "--trace", "t.csv"), {"t_csv": TRACE.replace("396", "x")}, "t.csv: row 3: ContextTokens 'x'"),
        (("walk",), {}, "walk"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence_with_status_2(cli, arguments, files, says):
    done = cli(*arguments, **files)
    assert done.exit_code == 2
    assert says in " ".join(done.stderr.split())
    assert "Traceback" not in done.output
    assert done.stdout == ""


def test_a_trace_is_replayed_without_a_scenario_or_in_its_world(cli):
    done = cli("run", "--trace", "t.csv", t_csv=TRACE)
    assert done.exit_code == 0, done.output
    assert "2 answered + 0 failed + 0 shed = 2 arrivals" in done.stdout
    assert "again: orchestra sim run --trace t.csv --seed 0" in done.stdout
    done = cli("run", "s.yaml", "--trace", "t.csv", t_csv=TRACE, s_yaml=PASSING)
    assert "2 answered + 0 failed + 0 shed = 2 arrivals" in done.stdout
    assert "again: orchestra sim run s.yaml --trace t.csv --seed 0" in done.stdout


def test_a_report_is_written(cli, tmp_path):
    pytest.importorskip("sim.report")
    done = cli("run", "s.yaml", "--report", "r.html", s_yaml=PASSING)
    assert done.exit_code == 0, done.output
    assert "<html" in (tmp_path / "r.html").read_text()


def test_the_schema_is_printed(cli):
    done = cli("schema")
    assert done.exit_code == 0
    jsonschema.Draft202012Validator.check_schema(json.loads(done.stdout))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_what_it_has(tmp_path, number):
    path = tmp_path / "j.jsonl"
    (tmp_path / "s.yaml").write_text(PASSING.replace("40s", "20h"))
    command = [*COMMAND, "run", "s.yaml", "--journal", str(path)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not path.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 6, err
    assert "ABORTED: the run was aborted" in out
    assert "Traceback" not in err
    assert not any(isinstance(entry, RunFinished) for entry in Journal.read(path))


def test_a_terminal_that_knows_only_ascii_gets_ascii(tmp_path):
    (tmp_path / "s.yaml").write_text(
        PASSING.replace("name: small", "name: größte ☎")
        + "faults: [{provider_failing: {at: 1s, for: 9s, rate: 90%}}]\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [*COMMAND, "run", "s.yaml"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode("ascii")
    assert f"{ASCII.answered} answered" in text
    assert f"{ASCII.fault}A" in text
    assert not set(text) & set("".join((UNICODE.answered, UNICODE.failed, UNICODE.held, UNICODE.fault)))


@pytest.mark.parametrize("duration_s", [1, 37, 600, 3511, 86_400, 30 * 86_400])
def test_a_timeline_fits_a_screen(duration_s):
    size = bucket_s(duration_s)
    assert BUCKETS_MAX / 3 <= duration_s / size <= BUCKETS_MAX
