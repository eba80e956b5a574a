"""Who asks what, when: arrivals from a seeded open loop, or from a recorded trace.

An open loop sends at its own rate whatever the service does, as the public does; a closed one slows down with the
service and so hides its stalls ("coordinated omission"). Light on purpose: Locust drives real servers with the same
arrivals, so nothing here knows SimPy, pandas or the orchestra.
"""

from __future__ import annotations

import csv
import io
import math
import random
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from msgspec import Struct

from sim.distributions import Distribution, Lognormal
from sim.quantities import COUNT, DURATION, RATE, Spread, Whole

TRACE_HEADER = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
TRACE_BYTES_MAX = 200_000_000
TRACE_ROWS_MAX = 2_000_000
TOKENS_MAX = 10_000_000
PATIENCE_S = 60.0
POLITE_WAIT_S_MAX = 60.0

SUBJECTS = (
    "plan a week in Kyoto",
    "explain a bloom filter",
    "draft a polite reminder",
    "why is the sky blue",
    "summarise the minutes",
    "name a bakery",
    "compare two phones",
    "fix this SQL query",
)


class Arrival(NamedTuple):
    """One turn that a client wants, at a time that does not depend on how the service fares.

    Parameters
    ----------
    at : float
        Seconds from the run's start.
    number : int
        Counts a run's arrivals from 1.
    session : str
        Arrivals of one key continue one conversation.
    user : str or None
        Whose memories the turn uses.
    message : str
        Unique in its run, since it begins with its number: a modelled provider looks up by it what the turn costs.
    context_tokens, generated_tokens : int
        What the provider reads and writes for it.
    """

    at: float
    number: int
    session: str
    user: str | None
    message: str
    context_tokens: int
    generated_tokens: int


class Retries(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a client asks again where it got no answer: after an error, a refusal, an apology, or out of patience.

    A ``naive`` one waits for the same short time whatever it is told. A ``polite`` one waits as long as Retry-After
    asks it to, and then for a time drawn from 0 to `wait`, doubled with each attempt and at most `POLITE_WAIT_S_MAX`:
    exponential backoff with full jitter (AWS Architecture Blog, 2015), so that not all come back at once.
    """

    attempts: Annotated[int, Whole(2, 100), "how often one asks in all"] = 3
    wait: Annotated[float, DURATION, "how long one waits before it asks again; the polite draw from it"] = 0.5
    style: Annotated[Literal["naive", "polite"], "whether one comes back at once, or backs off"] = "naive"

    def wait_s(self, attempt: int, retry_after_s: float | None, chance: random.Random) -> float:
        """Return how long to wait after attempt number `attempt` (from 1) failed; one draw, whatever the style."""
        luck = chance.random()
        if self.style == "naive":
            return self.wait
        return (retry_after_s or 0.0) + luck * min(POLITE_WAIT_S_MAX, self.wait * 2.0 ** (attempt - 1))


class OpenLoop(Struct, frozen=True, kw_only=True, tag="open_loop", forbid_unknown_fields=True):
    """Poisson arrivals from a population of users who hold conversations of several turns."""

    rate: Annotated[float, RATE, "mean arrivals of the whole population"]
    users: Annotated[int, Whole(1, 1_000_000), "how many people take part"] = 200
    turns_per_session: Annotated[int, Whole(1, 100), "turns before a user starts a new conversation"] = 5
    context_tokens: Annotated[Distribution, Spread(COUNT), "tokens the provider reads a turn"] = Lognormal(400, 2000)
    generated_tokens: Annotated[Distribution, Spread(COUNT), "tokens the provider writes a turn"] = Lognormal(130, 600)
    patience: Annotated[float, DURATION, "how long a client waits for an answer before it goes away, or asks again"] = (
        PATIENCE_S
    )
    retries: Annotated[Retries | None, "how clients ask again; without it they do not"] = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        if self.patience == 0:
            yield "patience", "0 is out of bounds: a client waits for some time, such as 60s"

    def arrivals(self, duration_s: float, chance: random.Random) -> Iterator[Arrival]:
        """Yield arrivals up to `duration_s`; five draws from `chance` each, whatever the parameters."""
        turns = [0] * self.users
        at = 0.0
        number = 0
        while True:
            at += -math.log(1.0 - chance.random()) / self.rate
            if at >= duration_s:
                return
            number += 1
            user = int(chance.random() * self.users)
            session = turns[user] // self.turns_per_session
            turns[user] += 1
            subject = SUBJECTS[int(chance.random() * len(SUBJECTS))]
            yield Arrival(
                at=at,
                number=number,
                session=f"user-{user}/{session}",
                user=f"user-{user}",
                message=f"arrival {number}: {subject}",
                context_tokens=max(1, round(self.context_tokens.draw(chance))),
                generated_tokens=max(1, round(self.generated_tokens.draw(chance))),
            )


class Row(NamedTuple):
    """One row of a trace: seconds from its first row, tokens read, tokens written."""

    at: float
    context_tokens: int
    generated_tokens: int


class Replay(Struct, frozen=True, tag="replay"):
    """Recorded arrivals, each a conversation of its own: a trace does not say which belong together."""

    source: str
    rows: tuple[Row, ...]
    patience: float = PATIENCE_S
    retries: Retries | None = None

    @property
    def duration_s(self) -> float:
        """Time from the first arrival to the last."""
        return self.rows[-1].at

    def arrivals(self, duration_s: float, chance: random.Random) -> Iterator[Arrival]:
        """Yield the recorded arrivals up to and including `duration_s`; nothing is drawn."""
        for number, row in enumerate(self.rows, 1):
            if row.at > duration_s:
                return
            yield Arrival(row.at, number, f"trace/{number}", None, f"arrival {number}: recorded", *row[1:])


Workload = OpenLoop | Replay


class TraceBroken(Exception):
    """A trace cannot be replayed; the message names the row (the file's line, header 1) and the cure."""

    def __init__(self, source: str, message: str, row: int | None = None) -> None:
        self.row = row
        super().__init__(f"{source}: row {row}: {message}" if row is not None else f"{source}: {message}")


def read_trace(path: Path) -> Replay:
    """Read a trace in the format of the Azure LLM inference traces.

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
    with path.open("rb") as file:
        data = file.read(TRACE_BYTES_MAX + 1)
    source = path.name
    if len(data) > TRACE_BYTES_MAX:
        raise TraceBroken(source, f"is over {TRACE_BYTES_MAX // 1_000_000} MB: cut it into parts")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as wrong:
        row = data.count(b"\n", 0, wrong.start) + 1
        raise TraceBroken(source, "is not UTF-8: save the file as UTF-8 (plain CSV)", row) from None
    if "\0" in text:
        row = text.count("\n", 0, text.index("\0")) + 1
        raise TraceBroken(source, "contains a NUL: save the file as UTF-8 (plain CSV)", row)
    return Replay(source, tuple(_rows(text, source)))


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
