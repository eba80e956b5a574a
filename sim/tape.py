"""The choice tape of a run: what chance decided, so that it can be decided the same again, or found to differ.

A run is fixed by its scenario, its seed and what the schedule chose. The tape holds the choices as deviations from FIFO
(`sim.schedule`), and a check of everything else: one byte a step of the loop and one a draw of each named stream, each
the end of a running hash over (how many were ready, or what was drawn; virtual time). So a tape is replayed without the
schedule that made it, and a run that goes another way is told at its first other step, by the stream that drew
otherwise if one did.

A `Recording` is given to `sim.world.rehearse`; without one nothing is noted. Recording and making the tape was measured
to add a quarter to the CPU of a run of 500 turns, and to take 64 bytes a turn. A difference is found at its own step in
255 of 256 cases, else at one of the next.

The file is JSON lines: a header, deviations, steps, one line a stream, and an end that tells a file cut off.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import platform
import random
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

import orchestra
from sim import scenario as scenarios
from sim.clients import DoorName
from sim.entropy import Stream, Streams, derive
from sim.forms import Unreadable
from sim.loop import SimEnvironment, name_of
from sim.scenario import Scenario
from sim.schedule import Mode, Note, Ready, Schedule

FORMAT = 1
BYTES_MAX = 1_000_000_000
CHOICES_PER_LINE = 500
STEPS_PER_TIME = 256
READY_MAX = 255  # as a byte tells it
NAMED_MAX = 5


class TapeBroken(Exception):
    """A file is no tape; the message names the line and the cure."""


class OtherScenario(Exception):
    """A tape belongs to another scenario than the one it was given with."""


class Plan(Struct, frozen=True):
    """How a run's order deviates from FIFO.

    Parameters
    ----------
    choices : tuple of (int, int)
        Number of the choice, from 1, and the place in FIFO order that it took; choices left out took place 0.
    ties_first, ties_last : int, int or None
        Timers, by number from 1, whose order among others of one deadline the seed draws: these come first, the others
        in order of creation. (1, 0) is none of them, (1, None) all.
    """

    choices: tuple[tuple[int, int], ...] = ()
    ties_first: int = 1
    ties_last: int | None = None

    @property
    def is_fifo(self) -> bool:
        """Whether stock asyncio could run so: no choice but those of timers that tie."""
        return not self.choices


class Header(Struct, frozen=True, tag="tape", tag_field="line", kw_only=True):
    """What the tape is of.

    Parameters
    ----------
    version : int
        Of the format.
    scenario, digest, story : str, str, str or None
        Name; `sim.scenario.digest`; the file's text, where the scenario can be written as one.
    seed, door, mode
        As given to `sim.world.rehearse`.
    code : dict of str
        Versions of orchestra and Python, and a digest of the source.
    journal : str
        Digest of the run's journal.
    ties : tuple of int and (int or None)
        See `Plan`.
    """

    version: int
    scenario: str
    digest: str
    story: str | None
    seed: int
    door: DoorName
    mode: Mode
    code: dict[str, str]
    journal: str
    ties: tuple[int, int | None]


class Choices(Struct, frozen=True, tag="choices", tag_field="line"):
    """Some of the deviations: [number of the choice, place taken]."""

    took: tuple[tuple[int, int], ...]


class Steps(Struct, frozen=True, tag="steps", tag_field="line"):
    """The loop's steps: how many callbacks were ready at each (compressed), its hash, and the time at every 256th."""

    ready: bytes
    marks: bytes
    times: tuple[float, ...]


class Draws(Struct, frozen=True, tag="draws", tag_field="line"):
    """The hash at each draw of a stream."""

    stream: str
    marks: bytes


class End(Struct, frozen=True, tag="end", tag_field="line"):
    """The last line, with the number of those before it."""

    lines: int


class Tape(Struct, frozen=True):
    """A finished recording; see `Header`, `Plan`, `Steps` and `Draws`."""

    header: Header
    plan: Plan
    steps: Steps
    draws: dict[str, bytes]

    def write(self, path: Path) -> None:
        """Write the tape to `path`."""
        with path.open("wb") as file:
            for line in self._lines():
                file.write(_ENCODER.encode(line) + b"\n")

    def _lines(self) -> Iterator[Line]:
        took = self.plan.choices
        parts = [took[start : start + CHOICES_PER_LINE] for start in range(0, len(took), CHOICES_PER_LINE)]
        yield self.header
        yield from map(Choices, parts)
        yield msgspec.structs.replace(self.steps, ready=zlib.compress(self.steps.ready))
        yield from itertools.starmap(Draws, self.draws.items())
        yield End(2 + len(parts) + len(self.draws))

    @classmethod
    def read(cls, path: Path) -> Tape:
        """Read what `write` wrote.

        Raises
        ------
        TapeBroken
            It is no tape, of another format, or cut off.
        OSError
            It cannot be opened.
        """
        with path.open("rb") as file:
            data = file.read(BYTES_MAX + 1)
        if len(data) > BYTES_MAX:
            raise TapeBroken(f"{path.name}: is over {BYTES_MAX // 1_000_000} MB, no tape is: check the file")
        lines = [_decoded(line, number, path.name) for number, line in enumerate(data.splitlines(), 1)]
        if not lines or not isinstance(lines[0], Header):
            raise TapeBroken(f"{path.name}: is no tape: give a file that `orchestra sim run --tape FILE` wrote")
        if not isinstance(lines[-1], End) or lines[-1].lines != len(lines) - 1:
            raise TapeBroken(f"{path.name}: is cut off after line {len(lines)}: record it again")
        return cls._of(lines[0], lines, path.name)

    @classmethod
    def _of(cls, header: Header, lines: list[Line], source: str) -> Tape:
        choices = tuple(pair for line in lines if isinstance(line, Choices) for pair in line.took)
        steps = next((line for line in lines if isinstance(line, Steps)), None)
        try:
            if steps is None:
                raise ValueError
            limit = len(steps.marks)
            ready = zlib.decompressobj().decompress(steps.ready, limit + 1)
            if len(ready) != limit or any(before[0] >= after[0] for before, after in itertools.pairwise(choices)):
                raise ValueError
        except (ValueError, zlib.error):
            raise TapeBroken(f"{source}: its lines contradict each other: record it again") from None
        draws = {line.stream: line.marks for line in lines if isinstance(line, Draws)}
        return cls(header, Plan(choices, *header.ties), msgspec.structs.replace(steps, ready=ready), draws)


Line = Header | Choices | Steps | Draws | End
_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Line)
_VERSION = msgspec.json.Decoder(dict[str, Any])


def _decoded(line: bytes, number: int, source: str) -> Line:
    try:
        if number == 1 and (version := _VERSION.decode(line).get("version")) not in (FORMAT, None):
            raise TapeBroken(f"{source}: is of format {version}, this code reads {FORMAT}: use the code that wrote it")
        made: Line = _DECODER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as wrong:
        cure = "give a file that `orchestra sim run --tape FILE` wrote"
        raise TapeBroken(f"{source}: line {number} is none of a tape ({wrong}): {cure}") from None
    return made


class Divergence(NamedTuple):
    """Where a run first went another way than its tape."""

    step: int
    at: float
    what: str
    on_tape: str
    happened: str

    def __str__(self) -> str:
        where = f"first divergence at step {self.step:,}, {self.at:.6f} s of virtual time, in {self.what}"
        return f"{where}\n  on the tape: {self.on_tape}\n  happened:    {self.happened}"


class _Track:
    """The running hash of one kind of event, a byte each; told apart from what a tape has, if there is one."""

    def __init__(self, what: str, recording: Recording, expected: bytes | None) -> None:
        self.what = what
        self.marks = bytearray()
        self._recording = recording
        self._expected = expected
        self._mark = 0

    def note(self, value: object) -> None:
        self._mark = mark = hash((self._mark, value, self._recording.env._now))
        self.marks.append(mark & 255)
        if self._expected is not None:
            self._compare(self._expected, value)

    def _compare(self, expected: bytes, value: object) -> None:
        place = len(self.marks) - 1
        if place < len(expected) and expected[place] == self.marks[place]:
            return
        self._expected = None
        told = self.on_tape(place) if place < len(expected) else f"no more: it has {len(expected):,}"
        self._recording.diverged(f"{self.what} {place + 1:,}", told, self.happened(value))

    def on_tape(self, place: int) -> str:
        return "another draw, or the same at another time"

    def happened(self, value: object) -> str:
        return f"{value!r} was drawn"


class _StepTrack(_Track):
    """The loop's steps, with how many callbacks were ready at each, and the time now and then."""

    def __init__(self, recording: Recording, tape: Tape | None) -> None:
        super().__init__("the loop's step", recording, tape.steps.marks if tape else None)
        self._tape = tape
        self.ready = bytearray()
        self.times: list[float] = []

    def note(self, value: object) -> None:
        assert isinstance(value, int)
        if not len(self.ready) % STEPS_PER_TIME:
            self.times.append(self._recording.env._now)
        self.ready.append(value if value < READY_MAX else READY_MAX)
        super().note(value)

    def on_tape(self, place: int) -> str:
        assert self._tape is not None
        times = self._tape.steps.times[place // STEPS_PER_TIME :][:2]
        return f"{_count(self._tape.steps.ready[place])} ready, between {times[0]:.6f} s and {times[-1]:.6f} s" + (
            " or later" if len(times) == 1 else ""
        )

    def happened(self, value: object) -> str:
        loop = self._recording.env.loop
        named = ", ".join(name_of(handle) for handle in itertools.islice(loop._ready, NAMED_MAX))
        return f"{_count(len(loop._ready))} ready: {named}"


def _count(ready: int) -> str:
    return f"{ready} or more" if ready == READY_MAX else f"{ready}"


class _WatchedStream(Stream):
    """A stream whose draws are noted. Both of `random.Random`'s sources are, and all else is made of them."""

    def __init__(self, seed: int, name: str, note: Callable[[object], None]) -> None:
        self._note = note
        super().__init__(seed, name)

    def random(self) -> float:
        value = super().random()
        self._note(value)
        return value

    def getrandbits(self, k: int, /) -> int:
        value = super().getrandbits(k)
        self._note(value)
        return value


class Recording:
    """The choices of one run as they are made, by its schedule or as a plan says.

    Parameters
    ----------
    plan
        What to choose; the run's own schedule if left out.
    against
        The tape that the run is to be the same as.

    Attributes
    ----------
    divergence : Divergence or None
        Where the run first went another way than the tape.
    """

    env: SimEnvironment
    _run: tuple[Scenario, int, Mode]

    def __init__(self, plan: Plan | None = None, against: Tape | None = None) -> None:
        self.against = against
        self.divergence: Divergence | None = None
        self.plan = plan
        self._log: list[int] = []
        self._steps = _StepTrack(self, against)
        self._draws: dict[str, _Track] = {}
        self._tape: Tape | None = None

    @classmethod
    def replaying(cls, tape: Tape) -> Recording:
        """Return a recording that chooses as `tape` says, and notes where it cannot."""
        return cls(tape.plan, tape)

    @property
    def tape(self) -> Tape:
        """The tape, once the run is over."""
        if self._tape is None:
            raise ValueError("nothing was recorded yet: give the recording to rehearse(..., tape=recording)")
        return self._tape

    @property
    def over(self) -> bool:
        """Whether there was a run, and it ended."""
        return self._tape is not None

    @property
    def identical(self) -> bool:
        """Whether the run was the same as the tape's, step by step, draw by draw, and in its journal."""
        same = self.against is not None and self.tape.header.journal == self.against.header.journal
        return same and self.divergence is None

    def streams(self, seed: int) -> Streams:
        """Return the run's streams, watched."""
        return Streams(seed, self._stream)

    def _stream(self, seed: int, name: str) -> Stream:
        expected = self.against.draws.get(name, b"") if self.against else None
        track = self._draws[name] = _Track(f"stream {name!r}, draw", self, expected)
        return _WatchedStream(seed, name, track.note)

    def schedule(self, own: Schedule, seed: int) -> Schedule:
        """Return what schedules the run: its `own` schedule, or the plan; either way noted."""
        if self.plan is None:
            return _Noted(own, self._log.append)
        return _Planned(own.mode, self.plan, seed, self._log.append, self._impossible)

    def attach(self, env: SimEnvironment) -> None:
        """Watch the steps of `env`."""
        self.env = env
        env.loop.on_iteration = self._steps.note

    def _impossible(self, choice: int, place: int, ready: int) -> None:
        if self.against is not None:
            self.diverged(f"choice {choice:,}", f"place {place} taken", f"{ready} ready")

    def diverged(self, what: str, on_tape: str, happened: str) -> None:
        """Note a difference; the first one stays."""
        if self.divergence is None:
            at = self.env._now
            self.divergence = Divergence(len(self._steps.marks), at, what, on_tape, happened)

    def begin(self, scenario: Scenario, seed: int, mode: Mode) -> None:
        """Note what the run is of.

        Raises
        ------
        OtherScenario
            The tape to be replayed is of another one.
        """
        if self.against is not None:
            refuse_another(self.against, scenario)
        self._run = (scenario, seed, mode)

    def finish(self, journal: str) -> None:
        """Make the tape of a run that is over, however it ended, whose journal has the digest `journal`."""
        scenario, seed, mode = self._run
        if self.against is not None:
            self._compare_ends(self.against, journal)
        ties = (self.plan.ties_first, self.plan.ties_last) if self.plan else (1, None)
        choices = tuple((number, place) for number, place in enumerate(self._log, 1) if place)
        header = Header(
            version=FORMAT,
            scenario=scenario.name,
            digest=scenarios.digest(scenario),
            story=_story(scenario),
            seed=seed,
            door=scenario.door,
            mode=mode,
            code=code(),
            journal=journal,
            ties=ties,
        )
        steps = Steps(bytes(self._steps.ready), bytes(self._steps.marks), tuple(self._steps.times))
        draws = {name: bytes(track.marks) for name, track in sorted(self._draws.items()) if track.marks}
        self._tape = Tape(header, Plan(choices, *ties), steps, draws)

    def _compare_ends(self, tape: Tape, journal: str) -> None:
        done, all_steps = len(self._steps.marks), len(tape.steps.marks)
        if done < all_steps:
            self.diverged("its end", f"{all_steps:,} steps", f"the run was over after {done:,}")
        for name, marks in tape.draws.items():
            drawn = len(self._draws[name].marks) if name in self._draws else 0
            if drawn < len(marks):
                self.diverged(f"stream {name!r}, after its last draw", f"{len(marks):,} draws", f"{drawn:,} draws")
        if journal != tape.header.journal:
            self.diverged("the journal only", tape.header.journal, journal)


def refuse_another(tape: Tape, scenario: Scenario) -> None:
    """Raise `OtherScenario` unless `tape` was recorded from `scenario` (what it expects and describes aside)."""
    found = scenarios.digest(scenario)
    if found != tape.header.digest:
        raise OtherScenario(
            f"the tape is of the scenario {tape.header.scenario!r} ({tape.header.digest[:12]}), this is "
            f"{scenario.name!r} ({found[:12]}): give the one it was recorded from, or record this one anew"
        )


@cache
def code() -> dict[str, str]:
    """Return what tells one code from another: versions, and a digest of the source of `orchestra` and `sim`."""
    digest = hashlib.sha256()
    for package in (Path(orchestra.__file__).parent, Path(__file__).parent):
        for path in sorted(package.rglob("*.py")):
            digest.update(path.relative_to(package.parent).as_posix().encode() + b"\0" + path.read_bytes())
    return {
        "orchestra": orchestra.__version__,
        "python": platform.python_version(),
        "source": digest.hexdigest()[:16],
    }


def _story(scenario: Scenario) -> str | None:
    """Return the scenario's file, if one says all of it; one that names a trace does not."""
    try:
        text = scenarios.write(scenario)
        return text if scenarios.parse(text) == scenario else None
    except (ValueError, Unreadable):
        return None


class _Noted:
    """A schedule whose choices are noted."""

    def __init__(self, own: Schedule, note: Note) -> None:
        self.mode = own.mode
        self.tie = own.tie
        self._own = own
        self._note = note

    def ready(self, note: Note | None = None) -> Ready:
        return self._own.ready(self._note)


class _Planned:
    """A schedule that does as a plan says, and FIFO where that says nothing."""

    def __init__(self, mode: Mode, plan: Plan, seed: int, note: Note, impossible: Callable[[int, int, int], None]):
        self.mode = mode
        self.tie = _ties(plan, Stream(derive(seed, "schedule.ties")))
        self._ready = (dict(plan.choices), note, impossible)

    def ready(self, note: Note | None = None) -> Ready:
        return _PlannedReady(*self._ready)


def _ties(plan: Plan, chance: random.Random) -> Callable[[], float]:
    """Return what orders timers: below 1 as drawn, above in order of creation."""
    first, last = plan.ties_first, plan.ties_last
    draw, number = chance.random, itertools.count(1).__next__
    if last is None and first == 1:
        return draw

    def tie() -> float:
        drawn, timer = draw(), number()
        return drawn if first <= timer and (last is None or timer <= last) else timer

    return tie


class _PlannedReady(deque[asyncio.Handle]):
    """A queue in FIFO order, from which a choice of the plan takes another than the first."""

    def __init__(self, places: dict[int, int], note: Note, impossible: Callable[[int, int, int], None]) -> None:
        super().__init__()
        self._places = places
        self._note = note
        self._impossible = impossible
        self._choices = 0

    def popleft(self) -> asyncio.Handle:
        if len(self) < 2:
            return super().popleft()
        self._choices = number = self._choices + 1
        place = self._places.get(number, 0)
        if place >= len(self):
            self._impossible(number, place, len(self))
            place = 0
        self._note(place)
        handle = self[place]
        del self[place]
        return handle
