"""Recorded arrivals: traces in the format of the Azure LLM inference traces, read strictly."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from sim.text_files import bounded_text

TRACE_HEADER = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
TRACE_BYTES_MAX = 200_000_000
TRACE_ROWS_MAX = 2_000_000
TOKENS_MAX = 10_000_000


class Row(NamedTuple):
    """One row of a trace: seconds from its first row, tokens read, tokens written."""

    at: float
    context_tokens: int
    generated_tokens: int


class TraceBroken(Exception):
    """A trace cannot be replayed; the message names the row (the file's line, header 1) and the cure.

    Attributes
    ----------
    row : int or None
    place : str
        Where a scenario names the trace, below its workload.
    """

    def __init__(self, source: str, message: str, row: int | None = None) -> None:
        self.row = row
        self.place = ""
        super().__init__(f"{source}: row {row}: {message}" if row is not None else f"{source}: {message}")


def read_rows(path: Path) -> tuple[Row, ...]:
    """Read a trace.

    A header ``TIMESTAMP,ContextTokens,GeneratedTokens``, then one row an arrival, in order of time, with up to nine
    fractional digits. A byte order mark and CRLF line ends are fine.

    Raises
    ------
    TraceBroken
        At the first thing that is wrong.
    OSError
        The file cannot be opened.

    References
    ----------
    Patel et al., "Splitwise: Efficient generative LLM inference using phase splitting", ISCA 2024.
    """
    source, text = path.name, bounded_text(path, TRACE_BYTES_MAX, TraceBroken, "save the file as UTF-8 (plain CSV)")
    if "\0" in text:
        row = text.count("\n", 0, text.index("\0")) + 1
        raise TraceBroken(source, "contains a NUL: save the file as UTF-8 (plain CSV)", row)
    return tuple(_rows(text, source))


def _rows(text: str, source: str) -> Iterator[Row]:
    lines = csv.reader(io.StringIO(text.rstrip(), newline=""))
    wanted = ",".join(TRACE_HEADER)
    header = next(lines, None)
    if not header:
        raise TraceBroken(source, f"is empty: its first line must be {wanted}")
    if tuple(name.strip() for name in header) != TRACE_HEADER:
        raise TraceBroken(source, f"the first line must be {wanted}, not {','.join(header)[:80]!r}: add that header", 1)
    first: tuple[datetime, float] | None = None
    before = -1.0
    for cells in lines:
        row = lines.line_num
        if len(cells) != len(TRACE_HEADER):
            raise TraceBroken(source, f"has {len(cells)} of 3 columns: complete it or remove it", row)
        if row > TRACE_ROWS_MAX:
            raise TraceBroken(source, f"is beyond the {TRACE_ROWS_MAX:,} rows that a replay takes: cut the trace", row)
        moment = _moment(cells[0].strip(), source, row)
        first = first or moment
        if (moment[0].tzinfo is None) != (first[0].tzinfo is None):
            raise TraceBroken(
                source, "has a time zone where the first row has none, or the reverse: make them agree", row
            )
        at = round((moment[0] - first[0]).total_seconds() + (moment[1] - first[1]), 9)
        if at < before:
            raise TraceBroken(source, f"TIMESTAMP {cells[0].strip()} is before the row above: sort the file by it", row)
        before = at
        yield Row(at, _tokens(cells[1], 1, source, row), _tokens(cells[2], 2, source, row))
    if first is None:
        raise TraceBroken(source, "has a header and no rows: give at least one arrival", 1)


def _moment(text: str, source: str, row: int) -> tuple[datetime, float]:
    """Return whole seconds and their fraction apart: a datetime holds six digits, the traces have seven."""
    head, dot, tail = text.partition(".")
    digits = tail[: len(tail) - len(tail.lstrip("0123456789"))]
    try:
        if not head[:4].isdigit() or (dot and not 1 <= len(digits) <= 9):
            raise ValueError
        return datetime.fromisoformat(head + tail[len(digits) :]), float(f"0.{digits or '0'}")
    except ValueError:
        cure = "write it as 2023-11-16 18:15:46.6805900"
        raise TraceBroken(source, f"TIMESTAMP {text[:60]!r} is no time: {cure}", row) from None


def _tokens(text: str, column: int, source: str, row: int) -> int:
    text = text.strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 12 and int(text) <= TOKENS_MAX):
        cure = f"write a whole number from 0 to {TOKENS_MAX:,}"
        raise TraceBroken(source, f"{TRACE_HEADER[column]} {text[:60]!r} is no count of tokens: {cure}", row)
    return int(text)
