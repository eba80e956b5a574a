"""The scenario file: workload, world, faults and what must hold, in one YAML document with units."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Struct, structs
from pydantic import ValidationError

from orchestra.config import FIELDS, Settings, nested
from sim import bounds
from sim.client_faults import ClientsDisconnected
from sim.clients import DOORS, DoorName
from sim.deployment import DeploymentModel, needs_hosts
from sim.evidence import ALL_FAULTS
from sim.expectations import PROPERTIES, Expectation
from sim.faults import Fault, kind_of
from sim.forms import (
    Json,
    OneOrMany,
    Plain,
    Problem,
    Table,
    Unreadable,
    decoded,
    json_schema,
    nearest,
    plain,
    read_yaml,
    write_yaml,
)
from sim.network_faults import LinkFault
from sim.provider import ProviderModel
from sim.quantities import DURATION, show_duration
from sim.store_faults import StoreDown
from sim.stores import StoresModel
from sim.workload import (
    KINDS,
    Population,
    Replay,
    Requests,
    TraceBroken,
    WebSockets,
    Workload,
    populations,
    problems_of,
    recorded,
    resolved,
)

CALM_CAPACITY = 512

IDLE_SETTINGS = (
    *("host", "port", "workers", "data_dir", "redis_url", "database_url", "operator_key"),
    *(f"{which}_{part}" for which in ("provider", "alternate") for part in ("url", "key", "model")),
)
"""Settings that name what a simulated world does not have."""


class WorldModel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What surrounds the orchestra."""

    provider: ProviderModel = ProviderModel()
    alternate: Annotated[
        ProviderModel | None, "a second provider, which answers where the first does not (guards.unified.fallbacks)"
    ] = None
    stores: StoresModel = StoresModel()
    deployment: DeploymentModel = DeploymentModel()
    wire: Annotated[
        bool, "whether the real adapters reach provider and Redis over a simulated network, which costs time"
    ] = False


def settings_of(chosen: Mapping[str, Plain]) -> Settings:
    """Return the settings of the orchestra in which those `chosen`, by their paths, are not the defaults.

    Raises
    ------
    pydantic.ValidationError
        One is unknown or out of bounds, or some contradict each other.
    """
    return Settings.model_validate(nested(chosen))


def _settings_problems(chosen: dict[str, Plain]) -> Iterator[tuple[str, str]]:
    known = [path for path in FIELDS if path not in IDLE_SETTINGS]
    for path in chosen:
        if path in IDLE_SETTINGS:
            yield path, "has no meaning in a simulated world: remove it"
        elif any(each.startswith(f"{path}.") for each in known):
            yield path, "is a table of settings: write its keys below it"
        elif path not in known:
            yield path, f"is no setting: {nearest(path, known)}"
    try:
        settings_of({path: value for path, value in chosen.items() if path in known})
    except ValidationError as refusal:
        for error in refusal.errors(include_url=False):
            yield ".".join(map(str, error["loc"])), str(error["msg"])


def _settings_schema() -> Json:
    whole = Settings.model_json_schema()
    properties = {name: each for name, each in whole["properties"].items() if name not in IDLE_SETTINGS}
    return {"type": "object", "properties": properties, "additionalProperties": False, "$defs": whole["$defs"]}


class Scenario(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A story and its moral: what happens, and what must hold."""

    name: Annotated[str, "short, for reports"]
    description: Annotated[str, "what it rehearses, and why"] = ""
    duration: Annotated[float, DURATION, "how long turns arrive; those under way are waited for"]
    workload: Annotated[Workload, OneOrMany(KINDS, Population), "who asks what, when: clients, or a list of named ones"]
    door: Annotated[DoorName, "where clients come in: the orchestrator itself, or the whole service"] = DOORS[0]
    world: WorldModel = WorldModel()
    settings: Annotated[
        dict[str, Plain],
        Table(_settings_problems, _settings_schema),
        "settings of the orchestra, policies as tables in tables; kept by their paths, as in `orchestra config`",
    ] = {}
    limits: Annotated[
        dict[str, Plain],
        Table(bounds.problems, bounds.schema),
        "bounds of `orchestra.limits` for this run, such as SESSION_MESSAGES_MAX: 4",
    ] = {}
    faults: tuple[Fault, ...] = ()
    expectations: tuple[Expectation, ...] = ()

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        if self.duration == 0:
            yield "duration", "0 leaves no time: write how long turns arrive, such as 10min"
        for path, message in problems_of(self.workload):
            yield f"workload{path}", message
        yield from self._without_sockets()
        for index, fault in enumerate(self.faults):
            yield from self._outside(f"faults[{index}].{kind_of(fault)}", fault)
            for path, message in self.world.deployment.problems_of(fault):
                yield f"faults[{index}].{kind_of(fault)}.{path}", message
        yield from self._without_alternate()
        yield from self._around_the_wire()
        kinds = [kind_of(fault) for fault in self.faults]
        for index, expectation in enumerate(self.expectations):
            window, subject = expectation.window
            if window != "always" and subject not in (ALL_FAULTS, *kinds):
                cure = nearest(subject, [ALL_FAULTS, *dict.fromkeys(kinds)])
                yield f"expectations[{index}].{window}", f"{subject!r} is no fault of this scenario: {cure}"
            elif window != "always" and not kinds:
                yield f"expectations[{index}].{window}", "this scenario has no faults: add one, or expect it `always`"

    def _without_sockets(self) -> Iterator[tuple[str, str]]:
        """Yield what needs WebSockets and has none."""
        has_sockets = any(isinstance(each, WebSockets) for _, each in populations(self.workload))
        if has_sockets and self.door != "service":
            yield "door", f"WebSockets end at the service, not at the {self.door}: write `door: service`"
        if has_sockets and needs_hosts(self.world.deployment, self.world.stores, self.faults):
            yield "workload", "WebSockets to instances that crash or are several are not simulated: use requests"
        for index, fault in enumerate(self.faults):
            if isinstance(fault, ClientsDisconnected) and not has_sockets:
                path = f"faults[{index}].{kind_of(fault)}"
                yield path, "nobody has a connection to lose: add clients with `websockets` to the workload"

    def _without_alternate(self) -> Iterator[tuple[str, str]]:
        """Yield what needs a second provider and has none, or the other way round."""
        if self.world.alternate is None:
            for index, fault in enumerate(self.faults):
                if getattr(fault, "provider", "main") == "alternate":
                    path = f"faults[{index}].{kind_of(fault)}.provider"
                    yield path, "there is no alternate: describe it in `world.alternate`, or write main"
        elif "alternate" not in settings_of(self.settings).guards.unified.fallbacks:
            yield "world.alternate", "is never asked: name alternate in guards.unified.fallbacks, or remove it"

    def _around_the_wire(self) -> Iterator[tuple[str, str]]:
        """Yield what needs a simulated network and has none, or cannot be where there is one."""
        world = self.world
        if world.wire and needs_hosts(world.deployment, world.stores, self.faults):
            yield "world.wire", "instances that crash or are several, and stores that do, have none: remove it"
        for index, fault in enumerate(self.faults):
            path = f"faults[{index}].{kind_of(fault)}"
            if isinstance(fault, LinkFault):
                if not world.wire:
                    yield path, "there is no network: write `wire: true` in `world`"
                if fault.to == "alternate" and world.alternate is None:
                    yield f"{path}.to", "there is no alternate: describe it in `world.alternate`"
            elif world.wire and isinstance(fault, StoreDown) and fault.store == "sessions":
                yield path, "these sessions are a Redis at the end of a network: use `link_reset` with `to: redis`"

    def _outside(self, path: str, fault: Fault) -> Iterator[tuple[str, str]]:
        end = fault.at + fault.lasts
        if fault.at >= self.duration:
            yield f"{path}.at", f"{show_duration(fault.at)} is after the run's {show_duration(self.duration)}"
        elif end > self.duration:
            yield (
                f"{path}.for",
                f"ends at {show_duration(end)}, after the run's {show_duration(self.duration)}: shorten it",
            )


def entering(scenario: Scenario, door: DoorName) -> Scenario:
    """Return `scenario` with its clients coming in at `door`.

    Raises
    ------
    Unreadable
        They cannot: there are WebSockets among them.
    """
    moved = structs.replace(scenario, door=door)
    if problems := [Problem(1, 1, path, message) for path, message in moved.problems()]:
        raise Unreadable(problems, f"{scenario.name} at the door {door}")
    return moved


def parse(text: str, source: str = "scenario", folder: Path = Path()) -> Scenario:
    """Read a scenario from YAML text, and the traces that it names, as seen from `folder`.

    Raises
    ------
    Unreadable
        With every problem: line, column, path and cure.
    """

    def with_traces(made: Scenario, report: Callable[[str, str], object]) -> Scenario:
        try:
            return structs.replace(made, workload=resolved(made.workload, folder))
        except TraceBroken as broken:
            report(f"workload{broken.place}", str(broken))
            return made

    made: Scenario = read_yaml(text, Scenario, source, with_traces)
    return made


def load(path: Path) -> Scenario:
    """Read a scenario file. Raises like `parse`."""
    try:
        data = path.read_bytes()
    except OSError as wrong:
        raise Unreadable([Problem(1, 1, "", f"cannot be read ({wrong.strerror}): check the path")], str(path)) from None
    return parse(decoded(data, str(path)), str(path), path.parent)


def write(scenario: Scenario) -> str:
    """Return a scenario's file: what `parse` reads it from.

    Raises
    ------
    ValueError
        No file says this: its workload is a trace that was not named in one.
    """
    return write_yaml(structs.replace(scenario, workload=recorded(scenario.workload)))


def digest(scenario: Scenario) -> str:
    """Return a digest of all that makes a run what it is: neither what is expected of it, nor its description."""
    story = structs.replace(scenario, description="", expectations=())
    traces = [clients.rows for _, clients in populations(scenario.workload) if isinstance(clients, Replay)]
    try:
        said: object = plain(story)
    except ValueError:
        said = story
    return hashlib.sha256(msgspec.json.encode([said, traces] if traces else said, order="sorted")).hexdigest()


def schema() -> Json:
    """Return the JSON Schema of a scenario file, for editors."""
    return json_schema(Scenario, "AI Orchestra scenario")


def replaying(trace: Replay, story: Scenario | None = None) -> Scenario:
    """Return `story`, or a calm world of ample capacity, with the arrivals of `trace` as its workload.

    Raises
    ------
    Unreadable
        Something of the story lies outside of the trace's time.
    """
    duration = math.floor(trace.duration_s) + 1.0
    if story is None:
        return Scenario(
            name=trace.source,
            description="Recorded arrivals in a calm world.",
            duration=duration,
            workload=trace,
            world=WorldModel(provider=ProviderModel(capacity=CALM_CAPACITY)),
            expectations=tuple(Expectation(always=each) for each in PROPERTIES),
        )
    clients = populations(story.workload)[0][1]
    if isinstance(clients, Requests):
        trace = structs.replace(trace, patience=clients.patience, retries=clients.retries, stream=clients.stream)
    replayed = structs.replace(story, workload=trace, duration=duration)
    if problems := [Problem(1, 1, path, message) for path, message in replayed.problems()]:
        raise Unreadable(problems, f"{story.name} with the trace {trace.source}")
    return replayed
