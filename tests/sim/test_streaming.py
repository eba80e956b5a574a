"""Journals of long runs: in a file, as a digest only, and sampled."""

import re

import pytest
from typer.testing import CliRunner

from orchestra.events import BreakerChanged, LevelChanged
from sim import plots
from sim.cli import app
from sim.evidence import Evidence
from sim.journal import (
    Audited,
    ClientArrived,
    ClientFinished,
    FaultEnded,
    FaultStarted,
    IntervalCounted,
    Journal,
    RunFinished,
    RunStarted,
    decoded,
)
from sim.streaming import OF_EVERY_TURN, DigestJournal, FileJournal, NotKept, Sample
from sim.world import Progress, rehearse

FAULT = "faults: [{store_down: {at: 10s, for: 5s, store: conversations}}]\n"


def test_a_journal_in_a_file_is_the_one_in_memory(small, tmp_path):
    path = tmp_path / "run.jsonl"
    plain, filed = rehearse(small(FAULT)), rehearse(small(FAULT), journal=FileJournal(path))
    assert filed.journal.digest == plain.journal.digest == Journal.read(path).digest
    assert len(filed.journal) == len(plain.journal)
    assert list(filed.journal) == list(plain.journal)
    assert filed.verdict == plain.verdict
    assert Evidence(filed.journal).sent == filed.evidence.sent == plain.evidence.sent


def test_a_journal_is_in_its_file_while_the_run_goes_on(small, tmp_path):
    path = tmp_path / "run.jsonl"
    sizes = []
    rehearse(small(), journal=FileJournal(path), watch=lambda progress: sizes.append(path.stat().st_size))
    assert 0 < sizes[len(sizes) // 2] < sizes[-1] < path.stat().st_size


def test_a_journal_that_keeps_nothing_has_the_digest_and_says_so_to_readers(small):
    plain, digested = rehearse(small()), rehearse(small(), journal=DigestJournal())
    assert digested.journal.digest == plain.journal.digest
    assert len(digested.journal) == len(plain.journal)
    assert digested.verdict == plain.verdict
    with pytest.raises(NotKept):
        list(digested.journal)


def test_a_sample_tells_of_turns_by_counts_that_add_up(small):
    plain, sampled = rehearse(small(FAULT)), rehearse(small(FAULT), journal=Journal(keep=Sample(8.0)))
    assert sampled.verdict == plain.verdict
    entries = list(sampled.journal)
    assert not [entry for entry in entries if type(entry) in OF_EVERY_TURN]
    kept = [entry for entry in plain.journal if type(entry) not in OF_EVERY_TURN]
    assert [entry for entry in entries if not isinstance(entry, IntervalCounted)] == kept
    counts = [entry for entry in entries if isinstance(entry, IntervalCounted)]
    sums = plain.verdict.accounting
    assert sum(count.arrivals for count in counts) == sums.arrivals
    assert [sum(getattr(count, name) for count in counts) for name in ("answered", "failed", "shed")] == [
        sums.answered,
        sums.failed,
        sums.shed,
    ]
    assert [count.at for count in counts[:5]] == [8.0, 16.0, 24.0, 32.0, 40.0]
    assert [entry.at for entry in entries] == sorted(entry.at for entry in entries)


def test_an_interval_has_what_ended_in_it_and_an_empty_one_is_told_too():
    journal = Journal(keep=Sample(10.0))
    journal.record(RunStarted(0.0, "s", 0, "orchestrator", 40.0, {}))
    for number, at in enumerate((1.0, 2.0, 3.0), 1):
        journal.record(ClientArrived(at, number, "c", "s", 1, 1))
    for number, seconds in enumerate((1.0, 3.0), 1):
        journal.record(ClientFinished(5.0, number, "c", "answered", "", seconds))
    journal.record(BreakerChanged(12.0, "b", "CLOSED", "OPEN", "r"))
    journal.record(ClientFinished(31.0, 3, "c", "shed", "overloaded", 28.0))
    journal.record(RunFinished(33.0, 3, 2, 0, 1))
    assert [entry for entry in journal if isinstance(entry, IntervalCounted)] == [
        IntervalCounted(10.0, 3, 0, 2, 0, 0, 2.0, 2.9),
        IntervalCounted(20.0, 0, 0, 0, 0, 0, None, None),
        IntervalCounted(30.0, 0, 0, 0, 0, 0, None, None),
        IntervalCounted(33.0, 0, 0, 0, 0, 1, None, None),
    ]


def test_what_a_sample_keeps_is_rare():
    assert not OF_EVERY_TURN & {BreakerChanged, LevelChanged, FaultStarted, FaultEnded, Audited, RunFinished}


@pytest.fixture
def scenario_file(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("name: s\nduration: 20s\nworkload: {open_loop: {rate: 2/s}}\n")
    return path


def test_the_command_writes_a_sample(scenario_file, tmp_path):
    path = tmp_path / "j.jsonl"
    done = CliRunner().invoke(app, ["run", str(scenario_file), "--sample", "10s", "--journal", str(path)])
    assert done.exit_code == 0, done.output
    kinds = [type(entry) for entry in Journal.read(path)]
    assert kinds[:2] == [RunStarted, IntervalCounted]
    assert ClientArrived not in kinds
    assert f"--journal {path} --sample 10s" in done.output.replace("\n", " ")


def test_a_report_of_a_sampled_run_has_its_turns_and_says_what_it_cannot_show(scenario_file, tmp_path):
    page = tmp_path / "r.html"
    options = ["--sample", "10s", "--journal", str(tmp_path / "j.jsonl"), "--report", str(page)]
    done = CliRunner().invoke(app, ["run", str(scenario_file), *options])
    assert done.exit_code == 0, done.output
    text = page.read_text()
    assert ": a sample." in text
    assert "--sample 10s" in text
    arrivals = re.search(r"= (\d+) arrivals", done.output)
    assert f"<dd>{arrivals[1]}</dd>" in text


def test_pictures_of_a_sampled_run_are_those_of_the_whole_but_for_the_provider(small):
    plain, sampled = rehearse(small(FAULT)), rehearse(small(FAULT), journal=DigestJournal(keep=Sample(8.0)))
    whole, part = plots.bucketed(plain.evidence), plots.bucketed(sampled.evidence)
    for name, counts in whole.counts.items():
        assert list(part.counts[name]) == list(counts)
    assert list(part.attempts) == list(whole.attempts)
    assert whole.serving.any()
    panels = [[axes.get_label() for axes in plots.timeline(run).axes] for run in (plain, sampled)]
    assert "provider" in panels[0]
    assert [name for name in panels[0] if name not in ("provider", "breakers")] == [
        name for name in panels[1] if name != "breakers"
    ]


def test_a_sample_alone_is_nothing_to_judge_or_to_draw_by(small):
    sampled = rehearse(small(), journal=Journal(keep=Sample(8.0)))
    with pytest.raises(ValueError, match=r"Run\.evidence"):
        plots.timeline(Journal(sampled.journal))


def test_whoever_is_killed_leaves_a_file_of_whole_entries(small, tmp_path):
    path = tmp_path / "run.jsonl"
    read = []

    def watch(progress: Progress) -> None:
        read.append(sum(1 for _ in decoded(path)))

    rehearse(small(), journal=FileJournal(path), watch=watch)
    assert 0 < read[len(read) // 2] < read[-1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sample", "10", "--journal", "j"], "--sample: "),
        (["--sample", "0s", "--journal", "j"], "0 is no interval"),
        (["--sample", "10s"], "--journal FILE"),
        (["--journal", "/dev/full"], "/dev/full cannot be written any more (No space left on device)"),
    ],
)
def test_a_sample_that_cannot_be_is_refused(scenario_file, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["run", str(scenario_file), *options])
    assert done.exit_code == 2
    assert words in done.output
