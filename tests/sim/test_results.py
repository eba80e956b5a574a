"""Results in one Parquet file: whole at every moment, and with every finished run whoever was killed when."""

import math

import pandas as pd
import pytest

from sim import results
from sim.observe import ROW_COLUMNS
from sim.results import MERGE_MIN, Results, ResultsRefused

COLUMNS = ("point", "seed", "where", "size", *ROW_COLUMNS[1:])
PLAN = {"scenario": "x"}


def row(point, seed, **more):
    empty = dict.fromkeys(COLUMNS, math.nan) | {"verdict": "PASSED", "error": "", "digest": "d", "where": "[a]"}
    return empty | {"point": point, "seed": seed, "size": 1.5, "p95": seed + 0.1} | more


@pytest.fixture
def opened(tmp_path):
    return lambda plan=PLAN, name="r.parquet": Results(tmp_path / name, plan, COLUMNS, ["where"])


def ids(frame):
    return list(zip(frame["point"], frame["seed"], strict=True))


def test_rows_come_back_in_order_with_their_types(opened, tmp_path):
    kept = opened()
    for key in ((1, 0), (0, 1), (0, 0)):
        kept.add(row(*key))
    kept.close()
    found = results.read(tmp_path / "r.parquet")
    assert list(found.columns) == list(COLUMNS)
    assert ids(found) == [(0, 0), (0, 1), (1, 0)]
    assert found["p95"].tolist() == [0.1, 1.1, 0.1]
    assert found["where"].tolist() == ["[a]"] * 3
    assert found["cost"].isna().all()
    assert {str(found[name].dtype) for name in ("point", "seed")} == {"int64"}
    assert [each.name for each in tmp_path.iterdir()] == ["r.parquet"]


def test_a_writer_that_just_stops_loses_no_finished_run(opened, tmp_path):
    kept = opened()
    kept.add(row(0, 0))
    assert (tmp_path / "r.parquet.log").read_bytes().count(b"\n") == 2  # at once, and not when the writer ends
    kept._file.close()  # which lets go of the lock, as a kill does
    assert len(results.read(tmp_path / "r.parquet")) == 0
    again = opened()
    assert again.done == {(0, 0)}
    assert ids(results.read(tmp_path / "r.parquet")) == [(0, 0)]
    again.add(row(0, 1))
    again.close()
    assert ids(results.read(tmp_path / "r.parquet")) == [(0, 0), (0, 1)]


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_line_cut_in_half_is_a_run_that_was_not_finished(opened, tmp_path, cut):
    kept = opened()
    kept.add(row(0, 0))
    kept.add(row(0, 1))
    kept._file.close()
    log = tmp_path / "r.parquet.log"
    log.write_bytes(log.read_bytes()[:-cut])
    again = opened()
    assert again.done == ({(0, 0), (0, 1)} if cut == 1 else {(0, 0)})  # of one, only the line's end is missing
    again.close()


def test_what_is_in_both_files_counts_once(opened, tmp_path):
    kept = opened()
    kept.add(row(0, 0))
    log = (tmp_path / "r.parquet.log").read_bytes()
    kept.close()
    (tmp_path / "r.parquet.log").write_bytes(log)  # killed after the merge, before the log was emptied
    again = opened()
    again.add(row(1, 0))
    again.close()
    assert ids(results.read(tmp_path / "r.parquet")) == [(0, 0), (1, 0)]


def test_the_file_can_be_read_while_it_grows(opened, tmp_path):
    kept = opened()
    for seed in range(MERGE_MIN):
        kept.add(row(0, seed))
    assert len(results.read(tmp_path / "r.parquet")) == MERGE_MIN
    assert kept.done == {(0, seed) for seed in range(MERGE_MIN)}
    kept.close()


def test_results_of_something_else_are_left_alone(opened, tmp_path):
    kept = opened()
    kept.add(row(0, 0))
    kept.close()
    before = (tmp_path / "r.parquet").read_bytes()
    with pytest.raises(ResultsRefused, match=r"r\.parquet has the results of something else: choose another file"):
        opened(plan={"scenario": "y"})
    assert (tmp_path / "r.parquet").read_bytes() == before
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ResultsRefused, match="has the results of something else"):
        opened(name="other.parquet")
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(ResultsRefused, match="is no Parquet file"):
        opened(name="text.parquet")
    with pytest.raises(ResultsRefused, match=r"cannot be written \(No such file"):
        opened(name="no/where.parquet")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["other.parquet", "r.parquet", "text.parquet"]


def test_a_log_of_something_else_is_left_alone(opened, tmp_path):
    kept = opened()
    kept.add(row(0, 0))
    kept._file.close()
    (tmp_path / "r.parquet").unlink()
    with pytest.raises(ResultsRefused, match=r"r\.parquet\.log has the results of something else"):
        opened(plan={"scenario": "y"})
    again = opened()
    assert again.done == {(0, 0)}
    again.close()


def test_two_writers_at_once_are_one_too_many(opened):
    kept = opened()
    with pytest.raises(ResultsRefused, match=r"another sweep writes .* now: wait for it"):
        opened()
    kept.close()
    opened().close()
