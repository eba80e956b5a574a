"""`orchestra sim run --tape`, `replay` and `shrink`, as somebody at a terminal sees them."""

import pytest
from typer.testing import CliRunner

from sim.cli import app
from sim.scenario import load, write
from sim.tape import Tape

FAILING = """
faults: [{provider_failing: {at: 10s, for: 8s, rate: 90%}}]
expectations: [{always: run, success_rate: ">= 99%"}]
"""


@pytest.fixture
def orchestra():
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def story(small, tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(write(small(FAILING)))
    return path


def test_a_run_is_recorded_and_replayed(orchestra, story, tmp_path):
    tape = tmp_path / "a.tape"
    ran = orchestra("run", story, "--seed", 3, "--mode", "adversarial", "--tape", tape)
    assert ran.exit_code == 1
    assert "adversarial order" in ran.output
    assert "which stock asyncio does not do" in ran.output
    assert " ".join(ran.output.split()).endswith("--seed 3 --mode adversarial")  # a long path folds the line
    for words in ((), (story,)):
        again = orchestra("replay", tape, *words)
        assert again.exit_code == 0, again.output
        assert again.output.startswith(
            "identical: small: seed 3, door orchestrator, adversarial order; FAILED, journal "
        )


def test_a_run_that_went_another_way(orchestra, story, tmp_path):
    tape = tmp_path / "a.tape"
    orchestra("run", story, "--tape", tape)
    recorded = tape.read_text()
    tape.write_text(recorded.replace('"seed":0', '"seed":1').replace('"source":"', '"source":"old-'))
    again = orchestra("replay", tape)
    assert again.exit_code == 1
    assert "first divergence at step " in again.output
    assert "on the tape: " in again.output
    assert "the code is another: the tape was recorded by orchestra " in again.output


def test_what_cannot_be_replayed(orchestra, story, small, tmp_path):
    tape = tmp_path / "a.tape"
    orchestra("run", story, "--tape", tape)
    other = tmp_path / "other.yaml"
    other.write_text(write(small()))
    for words, said in (
        ((tape, other), "give the one it was recorded from"),
        ((story,), "small.yaml: line 1 is none of a tape"),
        ((tmp_path / "none",), "cannot be read (No such file or directory)"),
        ((tape, tape), "a.tape: line "),
    ):
        refused = orchestra("replay", *words)
        assert refused.exit_code == 2, refused.output
        assert said in refused.output


def test_a_tape_of_a_trace_needs_the_trace(orchestra, tmp_path):
    trace, tape = tmp_path / "t.csv", tmp_path / "a.tape"
    rows = "".join(f"2023-11-16 18:15:{second:02}.0,10,5\n" for second in range(20))
    trace.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}")
    assert orchestra("run", "--trace", trace, "--tape", tape).exit_code == 0
    assert Tape.read(tape).header.story is None
    assert "name the scenario, or --trace FILE" in orchestra("replay", tape).output
    assert orchestra("replay", tape, "--trace", trace).output.startswith("identical: ")


def test_modes_are_named(orchestra, story):
    refused = orchestra("run", story, "--mode", "adverserial")
    assert refused.exit_code == 2
    assert "there is no mode 'adverserial': did you mean adversarial?" in refused.output


def test_shrink_writes_what_is_left(orchestra, story, tmp_path):
    out = tmp_path / "out.yaml"
    done = orchestra("shrink", story, "--seed", 3, "--mode", "adversarial", "--out", out, "--runs", 12)
    assert done.exit_code == 0, done.output
    assert "FAILED: always: success rate >= 99%, still so without" in done.output
    assert "what is left: 1 faults, 0 deviations from FIFO" in done.output
    assert load(out).faults[0].lasts < 8
    assert orchestra("replay", tmp_path / "out.tape", out).exit_code == 0
    assert orchestra("run", out, "--seed", 3).exit_code == 1


def test_shrink_of_what_passes(orchestra, small, tmp_path):
    path = tmp_path / "fine.yaml"
    path.write_text(write(small()))
    done = orchestra("shrink", path, "--out", tmp_path / "out.yaml")
    assert done.exit_code == 1
    assert "small passes with seed 0, faithful: there is nothing to shrink" in done.output
    assert not (tmp_path / "out.yaml").exists()


def test_a_place_for_what_is_left_is_looked_at_before_all_the_runs(orchestra, tmp_path):
    story = tmp_path / "s.yaml"
    story.write_text("name: small\nduration: 5s\nworkload: {open_loop: {rate: 1/s}}\n")
    for out, wanted in (
        (story, "is the scenario itself"),
        (tmp_path / "small.tape", "name the scenario otherwise, such as"),
        (tmp_path / "none" / "small.yaml", "there is no folder"),
    ):
        refused = orchestra("shrink", story, "--out", out)
        assert refused.exit_code == 2
        assert wanted in refused.stderr
