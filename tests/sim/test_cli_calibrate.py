"""`orchestra sim calibrate`: what it prints and writes is part of a scenario, and the twin behaves as recorded."""

import random

import pytest
import yaml
from typer.testing import CliRunner

from sim.cli import app
from sim.distributions import Gamma, Lognormal
from sim.journal import ClientFinished
from sim.measures import percentile
from sim.scenario import parse
from sim.world import rehearse

HEAD = "at,first_token_seconds,seconds,prompt_tokens,completion_tokens,error\n"
PRODUCTION = """
name: production
duration: 200s
workload: {open_loop: {rate: 5/s, generated_tokens: {lognormal: {median: 130, p95: 400}}}}
world:
  provider:
    capacity: 64
    first_token: {gamma: {shape: 2, scale: 200ms}}
    per_prompt_token: 0.1ms
    per_token: {weibull: {shape: 4, scale: 10ms}}
"""


def calibrated(*arguments: str):
    return CliRunner().invoke(app, ["calibrate", *map(str, arguments)])


@pytest.fixture
def calls(tmp_path):
    chance = random.Random(1)
    path = tmp_path / "calls.csv"
    rows = []
    for number in range(300):
        first, rest = Gamma(2, 0.15).draw(chance), Lognormal(0.014, 0.022).draw(chance) * 99
        rows.append(f"{number / 5},{first},{first + rest},400,100,\n")
    path.write_text(HEAD + "".join(rows) + "60,,,,,overloaded\n")
    return path


def test_it_shows_what_was_tried_and_the_model_as_a_part_of_a_scenario(calls):
    done = calibrated(calls)
    assert done.exit_code == 0, done.output
    for words in ("gamma (chosen)", "lognormal", "recorded", "Put this into a scenario:"):
        assert words in done.output
    part = done.output.partition("Put this into a scenario:")[2]
    model = parse(f"name: twin\nduration: 10s\n{part}").world.provider
    assert isinstance(model.first_token, Gamma)
    assert model.first_token.mean == pytest.approx(0.3, rel=0.1)
    assert model.failure_rate == pytest.approx(1 / 301, abs=1e-5)


def test_it_writes_the_model_and_the_picture(calls, tmp_path):
    done = calibrated(calls, "--out", tmp_path / "twin.yaml", "--plot", tmp_path / "fits.png")
    assert done.exit_code == 0, done.output
    assert list(yaml.safe_load((tmp_path / "twin.yaml").read_text())) == ["world", "workload"]
    assert (tmp_path / "fits.png").read_bytes().startswith(b"\x89PNG")


def test_a_twin_made_from_a_journal_behaves_as_what_it_was_made_from(tmp_path):
    production = rehearse(parse(PRODUCTION), seed=1)
    production.journal.write(tmp_path / "production.jsonl")
    done = calibrated(tmp_path / "production.jsonl", "--out", tmp_path / "twin.yaml")
    assert done.exit_code == 0, done.output
    twin = parse("name: twin\nduration: 200s\n" + (tmp_path / "twin.yaml").read_text())
    assert twin.workload.rate == pytest.approx(5, rel=0.1)
    recorded, modelled = (
        [percentile([turn.seconds for turn in turns_of(run)], share) for share in (0.5, 0.95)]
        for run in (production, rehearse(twin, seed=2))
    )
    assert modelled == pytest.approx(recorded, rel=0.1)


def turns_of(run):
    return [entry for entry in run.journal if isinstance(entry, ClientFinished) and entry.outcome == "answered"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (HEAD + "1,x,2,3,4,\n", "line 2: first_token_seconds 'x' is no number"),
        (HEAD + "1,.1,2,3,4,\n", "1 answered calls are too few to fit: record at least 30"),
        (None, "No such file or directory: check the path"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, wanted):
    path = tmp_path / "calls.csv"
    if text is not None:
        path.write_text(text)
    done = calibrated(path)
    assert done.exit_code == 2
    assert wanted in done.stderr


def test_a_picture_of_no_known_kind_is_refused(calls, tmp_path):
    done = calibrated(calls, "--plot", tmp_path / "fits.docx")
    assert done.exit_code == 2
    assert "docx" in done.stderr
