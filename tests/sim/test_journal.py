"""Journals: written, read back, digested and framed."""

import pandas as pd
import pytest

from orchestra.events import BreakerChanged, TurnFinished, UnexpectedError
from orchestra.model import TraceContext
from sim.journal import ClientArrived, ClientFinished, Journal, JournalBroken, RunStarted
from sim.world import rehearse

TURN = TurnFinished(
    1.23456789, "c", "s", "t", "answered", "", 0.5, None, "unified", 3, 4, ("memory", "x"), TraceContext("a", "b")
)


def journal() -> Journal:
    it = Journal()
    it.record(RunStarted(0.0, "größte", 2**63 - 1, "service", 10.0, {"breaker_failures_max": 3}))
    it.record(ClientArrived(0.1 + 0.2, 1, "c", "s", 10, 20))
    it.record(TURN)
    it.record(ClientFinished(2.0, 1, "c", "answered", "", 1.7))
    return it


def test_times_are_rounded_to_the_microsecond_so_that_the_last_bit_tells_nothing_apart():
    assert [entry.at for entry in journal()] == [0.0, 0.3, 1.234568, 2.0]
    one, other = Journal(), Journal()
    one.record(BreakerChanged(0.3, "b", "CLOSED", "OPEN", "r"))
    other.record(BreakerChanged(0.1 + 0.2, "b", "CLOSED", "OPEN", "r"))
    assert one.digest == other.digest


def test_minus_zero_is_zero():
    one, other = Journal(), Journal()
    one.record(ClientFinished(0.0, 1, "c", "answered", "", -1e-12))
    other.record(ClientFinished(0.0, 1, "c", "answered", "", 0.0))
    assert one.digest == other.digest


def test_the_digest_tells_different_histories_apart():
    it = journal()
    before = it.digest
    assert before == journal().digest
    it.record(TURN)
    assert it.digest != before


def test_lines_are_json_with_sorted_keys():
    lines = list(journal().lines())
    assert lines[1] == (
        b'{"arrival":1,"at":0.3,"context_tokens":10,"correlation_id":"c","generated_tokens":20,"session":"s",'
        b'"type":"client_arrived"}\n'
    )


def test_what_is_written_is_read_back(tmp_path):
    it = journal()
    it.write(tmp_path / "j.jsonl")
    again = Journal.read(tmp_path / "j.jsonl")
    assert list(again) == list(it)
    assert len(again) == 4
    assert again.digest == it.digest


@pytest.mark.parametrize(
    "line", [b"{}\n", b"x\n", b'{"type":"turn_started"}\n', b"\xff\n", b'{"type":"other","at":0}\n']
)
def test_a_file_that_is_no_journal_is_refused_by_line(tmp_path, line):
    path = tmp_path / "j.jsonl"
    journal().write(path)
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(JournalBroken, match=r"^j.jsonl: line 5 is no journal entry"):
        Journal.read(path)


def test_a_traceback_tells_nothing_of_the_machine():
    it = Journal()
    it.record(UnexpectedError(0.0, "c", "turn", 'File "/some/where/x.py", line 3\n  <Task at 0x7f1200ffee>\nE: no'))
    (entry,) = it
    assert entry.traceback == 'File "x.py", line 3\n  <Task at 0x…>\nE: no'


def test_a_frame_has_a_row_an_entry_and_typed_columns():
    frame = journal().frame()
    assert list(frame["event"]) == ["run_started", "client_arrived", "turn_finished", "client_finished"]
    assert frame["at"].dtype == "float64"
    assert frame["seconds"].dtype == "float64"
    assert isinstance(frame["arrival"].dtype, pd.Int64Dtype)
    assert isinstance(frame["outcome"].dtype, pd.CategoricalDtype)
    assert isinstance(frame["correlation_id"].dtype, pd.StringDtype)
    turn = frame.iloc[2]
    assert turn["degraded"] == "memory,x"
    assert turn["completion_tokens"] == 4
    assert pd.isna(turn["first_token_seconds"])
    assert pd.isna(turn["arrival"])
    assert frame["seed"].iloc[0] == 2**63 - 1


def test_the_frame_of_a_run_agrees_with_its_accounting(small):
    run = rehearse(small())
    frame = run.journal.frame()
    ended = frame[frame["event"] == "client_finished"]
    assert len(frame) == len(run.journal)
    assert (ended["outcome"] == "answered").sum() == run.verdict.accounting.answered == len(ended)


def test_an_empty_journal_has_an_empty_frame():
    assert len(Journal().frame()) == 0
