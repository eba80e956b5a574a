"""Who asks what, when: populations of clients, each with its way to come and to bear what it is told.

An open loop sends at its own rate whatever the service does, as the public does; a closed one slows down with the
service and so hides its stalls ("coordinated omission"). Light on purpose: Locust drives real servers with the same
arrivals, so nothing here knows SimPy, pandas or the orchestra.

    contract: `Arrival`, one turn that somebody wants;  siblings: `OpenLoop`, `ClosedLoop`, `Recording` (a trace that a
    scenario names; `Replay` once it is read), `WebSockets`;  together: `Population`, one of several with a name
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from msgspec import Struct, field, structs

from sim.arrivals import Arriving, Daily, Modulated, OnOff, Poisson, Process, Profile, State
from sim.distributions import Constant, Distribution, Lognormal
from sim.quantities import COUNT, DURATION, RATE, SHARE, Spread, Whole
from sim.traces import TRACE_HEADER, Row, TraceBroken, read_rows

__all__ = [
    "TRACE_HEADER",
    "Arrival",
    "ClosedLoop",
    "Daily",
    "Modulated",
    "OnOff",
    "OpenLoop",
    "Part",
    "Population",
    "Profile",
    "Recording",
    "Replay",
    "Retries",
    "Row",
    "State",
    "TraceBroken",
    "WebSockets",
    "Workload",
    "populations",
    "read_trace",
    "stream_name",
]

PATIENCE_S = 60.0
POLITE_WAIT_S_MAX = 60.0
USERS_MAX = 1_000_000
CONNECTED_USERS_MAX = 10_000
"""Of users that are each an object of their own: those of a closed loop, and connections."""
SPEED_MAX = 100_000.0

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
    """One turn that a client wants.

    Parameters
    ----------
    at : float
        Seconds from the run's start.
    number : int
        Unique in its run; where there is one population, and it is an open loop, it counts arrivals from 1.
    session : str
        Arrivals of one key continue one conversation.
    user : str or None
        Whose memories the turn uses.
    message : str
        Unique in its run, since it begins with its number: a modelled provider looks up by it what the turn costs.
    context_tokens, generated_tokens : int
        What the provider reads and writes for it.
    patience_s : float
        How long its client waits for an answer.
    """

    at: float
    number: int
    session: str
    user: str | None
    message: str
    context_tokens: int
    generated_tokens: int
    patience_s: float = PATIENCE_S


class Part(NamedTuple):
    """Which population of a run this is, so that numbers and names of several do not meet."""

    name: str = ""
    place: int = 0
    among: int = 1

    def number(self, ordinal: int) -> int:
        """Return the number of this part's arrival number `ordinal`, from 1."""
        return (ordinal - 1) * self.among + self.place + 1

    def named(self, name: str) -> str:
        """Return `name`, told apart from the same in other parts."""
        return f"{self.name}.{name}" if self.name else name


WHOLE = Part()


def stream_name(purpose: str, part: Part) -> str:
    """Return the name of the stream of chance that a population has for a purpose."""
    return f"{purpose}.{part.name}" if part.name else purpose


class Retries(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a client asks again where it got no answer: after an error, a refusal, an apology, or out of patience.

    A ``naive`` one waits for the same short time whatever it is told. A ``polite`` one waits as long as Retry-After
    asks it to, and then for a time drawn from 0 to `wait`, doubled with each attempt and at most `POLITE_WAIT_S_MAX`:
    exponential backoff with full jitter (AWS Architecture Blog, 2015), so that not all come back at once.

    With a `budget` the clients of a population are one application that keeps count of its retries: each turn earns so
    much of a retry, and one that finds none earned is not made (Finagle's RetryBudget).
    """

    attempts: Annotated[int, Whole(2, 100), "how often one asks in all"] = 3
    wait: Annotated[float, DURATION, "how long one waits before it asks again; the polite draw from it"] = 0.5
    style: Annotated[Literal["naive", "polite"], "whether one comes back at once, or backs off"] = "naive"
    budget: Annotated[float | None, SHARE, "retries that all together may add, as a share of their turns"] = None

    def wait_s(self, attempt: int, retry_after_s: float | None, chance: random.Random) -> float:
        """Return how long to wait after attempt number `attempt` (from 1) failed; one draw, whatever the style."""
        luck = chance.random()
        if self.style == "naive":
            return self.wait
        return (retry_after_s or 0.0) + luck * min(POLITE_WAIT_S_MAX, self.wait * 2.0 ** (attempt - 1))


BUDGET_START = 10.0
BUDGET_MAX = 100.0


class RetryBudget:
    """How many retries a population has earned, from `BUDGET_START` on, and at most `BUDGET_MAX`.

    Parameters
    ----------
    share : float or None
        Retries that a turn earns; None bounds nothing.
    """

    def __init__(self, share: float | None) -> None:
        self._share = share
        self._left = BUDGET_START

    def earn(self) -> None:
        """Count one turn."""
        if self._share is not None:
            self._left = min(BUDGET_MAX, self._left + self._share)

    def take(self) -> bool:
        """Spend one retry, or return False where none is left."""
        if self._share is None:
            return True
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Asking(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all populations have: what their turns cost, and how long one waits for an answer."""

    context_tokens: Annotated[Distribution, Spread(COUNT), "tokens the provider reads a turn"] = Lognormal(400, 2000)
    generated_tokens: Annotated[Distribution, Spread(COUNT), "tokens the provider writes a turn"] = Lognormal(130, 600)
    patience: Annotated[
        Distribution, Spread(DURATION), "how long a client waits for an answer before it goes away, or asks again"
    ] = Constant(PATIENCE_S)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        if self.patience == Constant(0.0):
            yield "patience", "0 is out of bounds: a client waits for some time, such as 60s"

    def turn(
        self, ordinal: int, session: str, user: str, part: Part, chance: random.Random, at: float = 0.0
    ) -> Arrival:
        """Return a turn that somebody wants; four draws, whatever the parameters."""
        number = part.number(ordinal)
        subject = SUBJECTS[int(chance.random() * len(SUBJECTS))]
        return Arrival(
            at=at,
            number=number,
            session=session,
            user=user,
            message=f"arrival {number}: {subject}",
            context_tokens=max(1, round(self.context_tokens.draw(chance))),
            generated_tokens=max(1, round(self.generated_tokens.draw(chance))),
            patience_s=self.patience.draw(chance),
        )


class Requests(Asking, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all populations have that send requests, one a turn."""

    retries: Annotated[Retries | None, "how clients ask again; without it they do not"] = None
    stream: Annotated[bool, "whether answers are asked for in pieces, as a person reads them"] = False


class OpenLoop(Requests, frozen=True, kw_only=True, tag="open_loop", forbid_unknown_fields=True):
    """Users who hold conversations of several turns, and come at a rate of their own: `rate`, or `arrivals`."""

    rate: Annotated[float | None, RATE, "mean arrivals of the whole population, independent of each other"] = None
    arrivals: Annotated[Process | None, "arrivals that come in bursts, or by the hour, instead of at one rate"] = None
    users: Annotated[int, Whole(1, USERS_MAX), "how many people take part"] = 200
    turns_per_session: Annotated[int, Whole(1, 100), "turns before a user starts a new conversation"] = 5

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        yield from super().problems()
        if self.rate is None and self.arrivals is None:
            yield (
                "",
                "rate is missing: add it (mean arrivals of the whole population), or `arrivals` for bursts or hours",
            )
        elif self.rate is not None and self.arrivals is not None:
            yield "arrivals", "says how many come, as does `rate`: keep one of them"

    @property
    def process(self) -> Arriving:
        """How they arrive."""
        if self.arrivals is not None:
            return self.arrivals
        assert self.rate is not None  # else the form refuses it
        return Poisson(self.rate)

    def coming(self, duration_s: float, chance: random.Random, part: Part = WHOLE) -> Iterator[Arrival]:
        """Yield arrivals up to `duration_s`.

        Times have draws of their own, so what the n-th arrival asks is the same whatever the rate; five draws each.
        """
        times = self.process.times(duration_s, random.Random(chance.getrandbits(64)))
        turns = [0] * self.users
        for ordinal, at in enumerate(times, 1):
            number = int(chance.random() * self.users)
            session = turns[number] // self.turns_per_session
            turns[number] += 1
            user = part.named(f"user-{number}")
            yield self.turn(ordinal, f"{user}/{session}", user, part, chance, at)


class Visit(NamedTuple):
    """What a user of a closed loop does next: thinks for so long, then wants this turn (whose `at` is for who asks)."""

    pause_s: float
    turn: Arrival


class ClosedLoop(Requests, frozen=True, kw_only=True, tag="closed_loop", forbid_unknown_fields=True):
    """Users who each send, wait for the answer, think, and send again.

    Few services have such clients, and few load tests others: while the service stalls they do not ask, so what they
    measure leaves out most of what the public would have suffered (Tene, "How NOT to Measure Latency", 2013; Schroeder,
    Wierman and Harchol-Balter, "Open Versus Closed: A Cautionary Tale", NSDI 2006).
    """

    users: Annotated[int, Whole(1, CONNECTED_USERS_MAX), "how many people take part, each with one turn at a time"]
    think: Annotated[Distribution, Spread(DURATION), "from an answer to the same user's next turn"]
    turns_per_session: Annotated[int, Whole(1, 100), "turns before a user starts a new conversation"] = 5
    start: Annotated[float, DURATION, "they begin spread over so long, not all at once"] = 10.0

    def visits(self, user: int, chance: random.Random, part: Part = WHOLE) -> Iterator[Visit]:
        """Yield without end what user number `user` (from 0) does; five draws each.

        The first comes after a part of `start`, one user after the other, not after thinking.
        """
        name = part.named(f"user-{user}")
        pause_s = self.start * (user + chance.random()) / self.users
        turns = 0
        while True:
            session = f"{name}/{turns // self.turns_per_session}"
            yield Visit(pause_s, self.turn(turns * self.users + user + 1, session, name, part, chance))
            turns += 1
            pause_s = self.think.draw(chance)


class WebSockets(Asking, frozen=True, kw_only=True, tag="websockets", forbid_unknown_fields=True):
    """Clients that each keep a WebSocket to a session of their own, chat over it, and come back when it is lost.

    They are the SDK's own state machine (`orchestra.sdk.dialogue`): what is unfinished is resumed where it was cut. The
    ``polite`` come back as the SDK does: after a jittered backoff, and not before the service says. The ``naive`` come
    back every `wait`, whatever they are told.
    """

    connections: Annotated[int, Whole(1, CONNECTED_USERS_MAX), "how many clients there are, with one WebSocket each"]
    rate: Annotated[float | None, RATE, "mean messages of all clients together; without it they idle"] = None
    start: Annotated[float, DURATION, "they connect spread over so long, not all at once; then they chat"] = 10.0
    ping_every: Annotated[float | None, DURATION, "each sends a ping so often; without it idle ones say nothing"] = None
    reads: Annotated[float | None, RATE, "frames that each takes in; without it, all that come at once"] = None
    retries: Annotated[Retries, "how they connect again, and send again what was refused"] = Retries(
        attempts=5, style="polite"
    )
    reconnects_for: Annotated[float, DURATION, "how long a client tries before it gives up"] = 300.0

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        yield from super().problems()
        if self.ping_every == 0:
            yield "ping_every", "0 is no time: write how often, such as 30s, or leave it out"
        if self.retries.wait == 0:
            yield "retries.wait", "0 would try without a pause: write how long, such as 500ms"
        if self.retries.budget is not None:
            yield "retries.budget", "has no meaning for clients that each count for themselves: remove it"

    def coming(self, duration_s: float, chance: random.Random, part: Part = WHOLE) -> Iterator[tuple[int, Arrival]]:
        """Yield whose turn it is (from 0), and the turn, from `start` up to `duration_s`; five draws each."""
        if self.rate is None:
            return
        times = Poisson(self.rate).times(duration_s - self.start, random.Random(chance.getrandbits(64)))
        for ordinal, at in enumerate(times, 1):
            number = int(chance.random() * self.connections)
            name = part.named(f"socket-{number}")
            yield number, self.turn(ordinal, name, name, part, chance, self.start + at)


class Recording(Struct, frozen=True, kw_only=True, tag="replay", forbid_unknown_fields=True):
    """A trace, replayed: arrivals as they were recorded, of a part of the file, faster or slower."""

    file: Annotated[str, "a trace (TIMESTAMP,ContextTokens,GeneratedTokens), as seen from the scenario's folder"]
    speed: Annotated[float, COUNT, "how many times faster than recorded, such as 2 or 0.5"] = 1.0
    start: Annotated[float, DURATION, "how far into the trace it begins"] = field(default=0.0, name="from")
    lasts: Annotated[float | None, DURATION, "how much of the trace; without it, to its end"] = field(
        default=None, name="for"
    )
    patience: Annotated[Distribution, Spread(DURATION), "how long a client waits for an answer"] = Constant(PATIENCE_S)
    retries: Annotated[Retries | None, "how clients ask again; without it they do not"] = None
    stream: Annotated[bool, "whether answers are asked for in pieces, as a person reads them"] = False

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        if not 0 < self.speed <= SPEED_MAX:
            yield "speed", f"{self.speed:g} is out of bounds: write more than 0, such as 2, at most {SPEED_MAX:g}"
        if self.lasts == 0:
            yield "for", "0 is nothing of the trace: write how much, such as 10min"
        if self.patience == Constant(0.0):
            yield "patience", "0 is out of bounds: a client waits for some time, such as 60s"

    def read(self, folder: Path) -> Replay:
        """Read the part of the trace that is meant.

        Raises
        ------
        TraceBroken
            Something is wrong with the file, or nothing of it is in that part.
        """
        path = folder / self.file
        try:
            rows = read_rows(path)
        except OSError as wrong:
            raise TraceBroken(self.file, f"cannot be read ({wrong.strerror}): check the path") from None
        end = math.inf if self.lasts is None else self.start + self.lasts
        kept = tuple(row._replace(at=(row.at - self.start) / self.speed) for row in rows if self.start <= row.at < end)
        if not kept:
            raise TraceBroken(self.file, f"lasts {rows[-1].at:g}s, and has nothing in the part asked for: move `from`")
        given = {name: getattr(self, name) for name in Recording.__struct_fields__}
        return Replay(**given, rows=kept, is_named=True)


class Replay(Recording, frozen=True, tag="replayed"):
    """A trace that was read. Each arrival is a conversation of its own: a trace does not say which belong together.

    Parameters
    ----------
    file : str
        Where it was read.
    rows : tuple of Row
        Those to be replayed, their times as they are to be.
    is_named : bool
        Whether a scenario names it; else it came beside one.
    """

    file: str
    rows: tuple[Row, ...] = ()
    is_named: bool = False

    @property
    def source(self) -> str:
        """The file's name."""
        return Path(self.file).name

    @property
    def duration_s(self) -> float:
        """Time from the run's start to the last arrival."""
        return self.rows[-1].at

    def coming(self, duration_s: float, chance: random.Random, part: Part = WHOLE) -> Iterator[Arrival]:
        """Yield the recorded arrivals up to and including `duration_s`; one draw each."""
        for ordinal, row in enumerate(self.rows, 1):
            if row.at > duration_s:
                return
            number = part.number(ordinal)
            session, message = part.named(f"trace/{ordinal}"), f"arrival {number}: recorded"
            yield Arrival(row.at, number, session, None, message, *row[1:], self.patience.draw(chance))


class Population(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of several populations: its name, and one of the kinds."""

    name: Annotated[str, "short, such as public; journals tell by it who came"]
    open_loop: Annotated[OpenLoop | None, "users who come at a rate of their own"] = None
    closed_loop: Annotated[ClosedLoop | None, "users who wait for an answer, and think, before they ask again"] = None
    websockets: Annotated[WebSockets | None, "clients that keep a connection"] = None
    replay: Annotated[Recording | None, "recorded arrivals"] = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        if re.fullmatch("[a-z][a-z0-9_-]{0,31}", self.name) is None:
            yield "name", f"{self.name[:40]!r} is no name: write up to 32 lower-case letters, digits, - and _"
        kinds = [str(kind.__struct_config__.tag) for kind in KINDS]
        given = [kind for kind in kinds if getattr(self, kind) is not None]
        if len(given) != 1:
            yield "", f"name one kind of clients, not {' and '.join(given) or 'none'}: one of {', '.join(kinds)}"

    @property
    def clients(self) -> Single:
        """What they are."""
        return next(
            each for each in (self.open_loop, self.closed_loop, self.websockets, self.replay) if each is not None
        )


KINDS = (OpenLoop, ClosedLoop, Recording, WebSockets)
"""What a scenario may name as its only population."""

Single = OpenLoop | ClosedLoop | WebSockets | Recording
Workload = Single | tuple[Population, ...]


def populations(workload: Workload) -> list[tuple[Part, Single]]:
    """Return every population with its place among them; a single one has no name."""
    if not isinstance(workload, tuple):
        return [(WHOLE, workload)]
    return [(Part(each.name, index, len(workload)), each.clients) for index, each in enumerate(workload)]


def problems_of(workload: Workload) -> Iterator[tuple[str, str]]:
    """Yield (path below the workload, message) for what no population shows alone."""
    if not isinstance(workload, tuple):
        return
    if not workload:
        yield "", "is empty: name at least one population"
    names = [each.name for each in workload]
    for index, name in enumerate(names):
        if name in names[:index]:
            yield f"[{index}].name", f"{name!r} comes twice: give each population a name of its own"


def caveat_of(workload: Workload) -> str:
    """Return what to mind about what is measured with `workload`, for readers; empty where nothing is."""
    if not any(isinstance(clients, ClosedLoop) for _, clients in populations(workload)):
        return ""
    return (
        "Users of a closed loop do not ask while they wait: a stall hides the turns that the public would have sent "
        "meanwhile, so latencies here are too good (coordinated omission)."
    )


def resolved(workload: Workload, folder: Path) -> Workload:
    """Return `workload` with its recordings read, as seen from `folder`.

    Raises
    ------
    TraceBroken
        With the path below the workload in its `place`.
    """
    if not isinstance(workload, tuple):
        return _read(workload, folder, ".replay.file") if isinstance(workload, Recording) else workload
    return tuple(
        structs.replace(each, replay=_read(each.replay, folder, f"[{index}].replay.file"))
        if each.replay is not None
        else each
        for index, each in enumerate(workload)
    )


def recorded(workload: Workload) -> Workload:
    """Return `workload` as a scenario's file has it: with the names of its traces instead of what they say."""
    if not isinstance(workload, tuple):
        return _named(workload) if isinstance(workload, Replay) and workload.is_named else workload
    return tuple(
        structs.replace(each, replay=_named(each.replay)) if isinstance(each.replay, Replay) else each
        for each in workload
    )


def _named(replay: Replay) -> Recording:
    return Recording(**{name: getattr(replay, name) for name in Recording.__struct_fields__})


def _read(recording: Recording, folder: Path, place: str) -> Replay:
    if isinstance(recording, Replay):
        return recording
    try:
        return recording.read(folder)
    except TraceBroken as broken:
        broken.place = place
        raise


def read_trace(path: Path) -> Replay:
    """Read a whole trace. Raises like `sim.traces.read_rows`."""
    return Replay(str(path), read_rows(path))
