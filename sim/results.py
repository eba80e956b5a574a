"""The rows of a sweep in one Parquet file that is whole at every moment, and loses nothing when its writer is killed.

A finished run is at once appended to a log beside the file (``NAME.log``, one line of JSON a run); when a good part has
gathered, and at the end, the log's rows are merged into the Parquet file, which is written anew under another name and
then renamed, and the log is emptied. So whoever is killed, at whatever instant, leaves every finished run in one of the
two, or in both, which counts once; a line cut in half is a run that was not finished. Opening goes on from there. A
Parquet file to which row groups are appended was rejected: until it is closed it has no footer, and cannot be read; a
file for each run, too: 10,000 of them take longer to open than to compute.

What was planned stands in the file's metadata (`PLAN_KEY`) and in the log's first line; other results are refused.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import pandas as pd

from sim.executors import LabMissing
from sim.observe import TEXT_COLUMNS, Row

PLAN_KEY = b"orchestra.sweep"
MERGE_MIN = 64
MERGE_SHARE = 8
KEY = ("point", "seed")

Plan = Mapping[str, Any]
Id = tuple[int, int]


class ResultsRefused(Exception):
    """A file cannot take these results; the message names it and the cure."""


class Results:
    """The results of one plan, as far as they are.

    Parameters
    ----------
    path : Path
        The Parquet file, there or not.
    plan : mapping
        What makes results comparable, as plain JSON values.
    columns : sequence of str
        In order; `KEY` among them.
    texts : sequence of str
        Those of them that are text; the others are numbers.

    Raises
    ------
    ResultsRefused
        Something else is there, or somebody writes there now.
    LabMissing
        `pyarrow` is not installed.

    Attributes
    ----------
    done : set of (int, int)
        Point and seed of every run that the file or the log has.
    """

    def __init__(self, path: Path, plan: Plan, columns: Sequence[str], texts: Sequence[str]) -> None:
        self.path = path
        self._plan = json.dumps(plan, sort_keys=True)
        self._columns = list(columns)
        self._texts = [*TEXT_COLUMNS, *texts]
        self._log = path.with_name(f"{path.name}.log")
        self._merged()  # refuses what is not ours before a log stands beside it
        self._file = self._locked()
        try:
            self._fresh = self._logged()
            merged = self._merged()
        except ResultsRefused:
            self._file.close()
            raise
        self.done: set[Id] = {*zip(merged["point"], merged["seed"], strict=True)} | {_id(row) for row in self._fresh}
        self.merge()

    def add(self, row: Row) -> None:
        """Keep the row of a run that is finished."""
        self._fresh.append(row)
        self._append(row)
        self.done.add(_id(row))
        if len(self._fresh) >= max(MERGE_MIN, len(self.done) // MERGE_SHARE):
            self.merge()

    def merge(self) -> None:
        """Move what the log has to the Parquet file."""
        merged = self._merged()
        fresh = pd.DataFrame(self._fresh, columns=self._columns).astype(self._types())
        frame = pd.concat([merged, fresh], ignore_index=True) if len(merged) else fresh
        frame = frame.drop_duplicates(list(KEY)).sort_values(list(KEY), ignore_index=True)
        if len(fresh) or not self.path.exists():
            self._replace(frame)
        self._file.truncate(0)
        self._append(json.loads(self._plan))
        self._fresh = []

    def close(self) -> None:
        """Merge, and leave no log behind."""
        self.merge()
        self._log.unlink()
        self._file.close()

    def _locked(self) -> BinaryIO:
        try:
            file = self._log.open("a+b")
        except OSError as wrong:
            raise ResultsRefused(f"{self.path} cannot be written ({wrong.strerror}): choose another place") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise ResultsRefused(f"another sweep writes {self.path} now: wait for it, or choose another file") from None
        return file

    def _append(self, record: Mapping[str, Any]) -> None:
        self._file.write(msgspec.json.encode(record) + b"\n")  # NaN becomes null
        self._file.flush()

    def _types(self) -> dict[str, str]:
        return {name: "str" if name in self._texts else "int64" if name in KEY else "float64" for name in self._columns}

    def _replace(self, frame: pd.DataFrame) -> None:
        arrow, parquet = _arrow()
        table = arrow.Table.from_pandas(frame, preserve_index=False)
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), PLAN_KEY: self._plan.encode()})
        beside = self.path.with_name(f".{self.path.name}.new")
        with beside.open("wb") as file:
            parquet.write_table(table, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)

    def _merged(self) -> pd.DataFrame:
        if not self.path.exists():
            _arrow()
            return pd.DataFrame(columns=self._columns).astype(self._types())
        arrow, parquet = _arrow()
        try:
            table = parquet.read_table(self.path)
        except (arrow.ArrowInvalid, OSError):
            raise ResultsRefused(f"{self.path} is no Parquet file: choose another one for the results") from None
        self._refuse_other((table.schema.metadata or {}).get(PLAN_KEY, b"null"), self.path)
        frame: pd.DataFrame = table.to_pandas()
        return frame.astype(self._types())

    def _logged(self) -> list[Row]:
        """Return the log's rows, but for what was cut off while it was written."""
        self._file.seek(0)
        lines = self._file.read().splitlines()
        rows: list[Row] = []
        for line in lines[1:]:
            with suppress(msgspec.DecodeError, KeyError):
                found = msgspec.json.decode(line)
                rows.append({name: math.nan if found[name] is None else found[name] for name in self._columns})
        if rows:
            self._refuse_other(lines[0], self._log)
        return rows

    def _refuse_other(self, plan: bytes, where: Path) -> None:
        try:
            other = json.dumps(json.loads(plan), sort_keys=True)
        except ValueError:
            other = ""
        if other != self._plan:
            raise ResultsRefused(f"{where} has the results of something else: choose another file, or remove that one")


def read(path: Path) -> pd.DataFrame:
    """Return the rows of a sweep, finished or not, as its file has them."""
    _, parquet = _arrow()
    frame: pd.DataFrame = parquet.read_table(path).to_pandas()
    return frame


def _id(row: Row) -> Id:
    return int(row["point"]), int(row["seed"])


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow  # noqa: PLC0415 - an extra
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError:
        raise LabMissing("pyarrow") from None
    return pyarrow, parquet
