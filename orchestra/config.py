"""What an operator may tune: every setting with its default, bounds, unit and meaning, merged once, then frozen.

A value comes from the environment (``ORCHESTRA_<NAME>``; a policy's key with its path, as in
``ORCHESTRA_GUARDS__UNIFIED__BREAKER__OPEN_SECONDS``; also the conventional ``REDIS_URL`` and ``DATABASE_URL``), else
from one TOML file, in which policies are tables, else it is the default. Anything unknown or impossible refuses the
start, all faults at once, each by its path. The model itself reads nothing: ``Settings(port=0)`` is the defaults with
one change, wherever it runs.
"""

import difflib
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from orchestra.errors import ConfigurationError
from orchestra.limits import MEMORIES_RECALLED_MAX
from orchestra.policies import DegradationPolicy, GuardPolicies, Policy, listed, setting

PREFIX = "ORCHESTRA_"
FILE_VARIABLE = "ORCHESTRA_CONFIG"
FILE_DEFAULT = "orchestra.toml"
CONVENTIONAL = {"REDIS_URL": "redis_url", "DATABASE_URL": "database_url"}

_SCHEMES = {
    "redis_url": ("redis", "rediss", "unix"),
    "database_url": ("postgresql", "postgres"),
    "provider_url": ("http", "https"),
    "alternate_url": ("http", "https"),
    "otlp_endpoint": ("http", "https"),
}
_MASK = "********"


class Settings(Policy):
    """All settings, valid one by one and together.

    Raises
    ------
    pydantic.ValidationError
        A name is unknown, a value is out of its bounds, or two values contradict each other.
    """

    host: str = setting("127.0.0.1", "address", "Where the service listens.", min_length=1)
    port: int = setting(8000, "port number", "The port it listens on; 0 takes a free one.", ge=0, le=65535)
    workers: int = setting(1, "processes", "Processes that serve.", ge=1, le=256)
    data_dir: Path = setting(
        Path(".orchestra"), "path", "Where the service's own PostgreSQL and Redis keep their data."
    )
    redis_url: str | None = setting(None, "URL", "Redis for sessions; none starts a private one.")
    database_url: str | None = setting(
        None, "URL", "PostgreSQL with pgvector for conversations and memories; none starts a private one."
    )
    provider_url: str | None = setting(
        None, "URL", "Base URL of an OpenAI-compatible endpoint; none answers with the built-in offline model."
    )
    provider_key: SecretStr | None = setting(None, "secret", "API key of the provider.")
    provider_model: str | None = setting(None, "name", "Model to ask the provider for.", min_length=1)
    provider_connections_max: int = setting(
        256, "connections", "Connections to the provider at once, in each process.", ge=1, le=65536
    )
    alternate_url: str | None = setting(
        None, "URL", "A second provider, which answers where the first does not (guards.unified.fallbacks)."
    )
    alternate_key: SecretStr | None = setting(None, "secret", "API key of the second provider.")
    alternate_model: str | None = setting(None, "name", "Model to ask the second provider for.", min_length=1)
    request_seconds_max: float = setting(
        30.0, "seconds", "How long a request may take to arrive, headers and body; then it is refused.", gt=0, le=3600
    )
    turn_seconds_max: float = setting(75.0, "seconds", "One turn, from admission to the durable reply.", gt=0, le=3600)
    turns_inflight_max: int = setting(
        1024, "turns", "Turns at once in each process; more are shed with status 503.", ge=1, le=1_000_000
    )
    resume_grace_seconds: float = setting(
        10.0, "seconds", "How long a streamed turn goes on whose client is gone, so that it may resume.", ge=0, le=600
    )
    connections_max: int = setting(
        10_000,
        "connections",
        "WebSockets at once in each process; more are refused with status 503.",
        ge=1,
        le=1_000_000,
    )
    connections_per_client_max: int = setting(
        20, "connections", "WebSockets of one client id at once in each process.", ge=1, le=1_000_000
    )
    connections_per_address_max: int = setting(
        1000, "connections", "WebSockets from one network address at once in each process.", ge=1, le=1_000_000
    )
    connection_idle_seconds_max: float = setting(
        900.0, "seconds", "A WebSocket from which no frame came for so long is closed.", gt=0, le=86400
    )
    origins_allowed: tuple[str, ...] = setting(
        (), "origins", "Web pages of other origins that may open WebSockets, such as https://chat.example."
    )
    store_seconds_max: float = setting(5.0, "seconds", "One operation of a store.", gt=0, le=3600)
    memory_recalled_max: int = setting(
        3, "memories", "Memories that one turn is given.", ge=0, le=MEMORIES_RECALLED_MAX
    )
    memory_similarity_min: float = setting(
        0.25, "cosine, -1 to 1", "How near a memory must be to the message to be recalled.", ge=-1, le=1
    )
    fleet_view: Literal["off", "on"] = setting(
        "off", "switch", "Whether the breakers of all instances share, through Redis, what they see."
    )
    operator_key: SecretStr | None = setting(
        None, "secret", "What an operator sends as a bearer token; none lets nobody operate."
    )
    guards: GuardPolicies = GuardPolicies()
    degradation: DegradationPolicy = DegradationPolicy()
    shutdown_seconds_max: float = setting(
        15.0, "seconds", "How long turns in flight may go on once the service is told to stop.", ge=0, le=3600
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "level", "The least severe line logged.")
    log_format: Literal["auto", "json", "console"] = setting(
        "auto", "format", "Form of the log; auto is console on a terminal, else json."
    )
    otlp_endpoint: str | None = setting(None, "URL", "Where traces are sent (OTLP over HTTP); none sends none.")

    @field_validator("*", mode="before")
    @classmethod
    def _printable(cls, value: object) -> object:
        if isinstance(value, str) and re.search(r"[\x00-\x1f\x7f]", value):
            raise PydanticCustomError("control", "it has a control character, such as a line break")
        return value

    @field_validator(*_SCHEMES)
    @classmethod
    def _url(cls, value: str | None, info: Any) -> str | None:
        if value is not None and (fault := _url_fault(value, _SCHEMES[info.field_name])):
            raise PydanticCustomError("url", "{fault}", {"fault": fault})
        return value

    _origins_listed = field_validator("origins_allowed", mode="before")(listed)

    @field_validator("origins_allowed")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not re.fullmatch(r"[a-z][a-z0-9+.\-]*://[^/\s]+", origin):
                raise PydanticCustomError("origin", "an origin is scheme, host and port only: https://chat.example")
        return value

    @field_validator("provider_key", "alternate_key", "operator_key")
    @classmethod
    def _key(cls, value: SecretStr | None) -> SecretStr | None:
        # it travels in a header
        if value is not None and not re.fullmatch(r"[\x21-\x7e]+", value.get_secret_value()):
            raise PydanticCustomError("key", "it is empty, or has a space or a letter outside of ASCII")
        return value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if conflicts := list(_conflicts(self)):
            message = "; ".join(f"{' and '.join(each.names)}: {each.fault}" for each in conflicts)
            raise PydanticCustomError("conflict", "{message}", {"message": message, "conflicts": conflicts})
        return self


class Conflict(NamedTuple):
    """Settings that are possible each, but not together."""

    names: tuple[str, ...]
    fault: str


class Row(NamedTuple):
    """One setting as `orchestra config` shows it; secrets are masked."""

    name: str
    value: str
    source: str
    unit: str
    meaning: str


@dataclass(frozen=True)
class Loaded:
    """Settings, and where each of them comes from.

    Parameters
    ----------
    settings : Settings
    sources : mapping of str to str
        By the setting's path: ``default``, ``environment ORCHESTRA_PORT``, ``file orchestra.toml``.
    """

    settings: Settings
    sources: Mapping[str, str]

    def rows(self) -> list[Row]:
        """Return every setting with its value, source, unit and meaning, in the order of `Settings`."""
        return [
            Row(name, _shown(value_of(self.settings, name)), self.sources[name], unit_of(name), field.description or "")
            for name, field in FIELDS.items()
        ]


def _names(model: type[Policy], above: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the path of every setting with its field, those of policies as well."""
    for name, field in model.model_fields.items():
        if (inner := _table_of(field)) is None:
            yield above + name, field
        else:
            yield from _names(inner, f"{above}{name}.")


def _table_of(field: FieldInfo) -> type[Policy] | None:
    inner = field.annotation
    return inner if isinstance(inner, type) and issubclass(inner, Policy) else None


FIELDS: dict[str, FieldInfo] = dict(_names(Settings))
"""Every setting by its path, such as ``port`` or ``guards.unified.breaker.open_seconds``."""


def _is_table(name: str) -> bool:
    return any(each.startswith(f"{name}.") for each in FIELDS)


def value_of(settings: Settings, name: str) -> object:
    """Return the value of the setting with the path `name`."""
    return attrgetter(name)(settings)


def unit_of(name: str) -> str:
    """Return the unit of the setting with the path `name`."""
    extra = FIELDS[name].json_schema_extra
    assert isinstance(extra, dict)
    return str(extra["unit"])


def load(environ: Mapping[str, str], *, cwd: Path) -> Loaded:
    """Merge environment, file and defaults.

    Parameters
    ----------
    environ : mapping of str to str
        An empty value is as good as none, since a compose file cannot leave a variable out.
    cwd : Path
        Where ``orchestra.toml`` is looked for, and what a relative ``ORCHESTRA_CONFIG`` starts from.

    Raises
    ------
    ConfigurationError
        Names every fault with its source and cure.
    """
    faults: list[str] = []
    values, sources = _from_file(environ, cwd, faults)
    for name, variable in _variables(environ, faults):
        values[name], sources[name] = environ[variable], f"environment {variable}"
    settings = _validated(values, sources, faults)
    faults += [_conflict_fault(each, sources) for each in _named_in_vain(values)]
    if settings is None or faults:
        count = "1 setting is" if len(faults) == 1 else f"{len(faults)} settings are"
        raise ConfigurationError("\n".join([f"{count} wrong:", *(f"- {fault}" for fault in faults)]))
    return Loaded(settings, {name: sources.get(name, "default") for name in FIELDS})


def _from_file(environ: Mapping[str, str], cwd: Path, faults: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    named = environ.get(FILE_VARIABLE)
    path = cwd / (named or FILE_DEFAULT)
    if not named and not path.exists():
        return {}, {}
    source = f"file {named or FILE_DEFAULT}"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        faults.append(
            f"{source}: cannot be read ({error.strerror}): correct {FILE_VARIABLE}, or the file's permissions"
        )
        return {}, {}
    except UnicodeDecodeError:
        faults.append(f"{source}: is not UTF-8: save it as UTF-8")
        return {}, {}
    except tomllib.TOMLDecodeError as error:
        faults.append(f"{source}: is not TOML: {error}: correct it there")
        return {}, {}
    values = dict(_flat(table, source, faults))
    return values, dict.fromkeys(values, source)


def _flat(table: Mapping[str, Any], source: str, faults: list[str], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield path and value of every setting in a table and the tables in it."""
    for key, value in table.items():
        name = above + key
        if isinstance(value, dict) and _is_table(name):
            yield from _flat(value, source, faults, f"{name}.")
        elif name in FIELDS:
            yield name, value
        else:
            faults.append(f"{name} ({source}): {_unknown(name)}")


def _variables(environ: Mapping[str, str], faults: list[str]) -> Iterator[tuple[str, str]]:
    """Yield setting and variable, the conventional names first: the service's own name has the last word."""
    for variable, name in CONVENTIONAL.items():
        if environ.get(variable):
            yield name, variable
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable == FILE_VARIABLE:
            continue
        name = variable.removeprefix(PREFIX).lower().replace("__", ".")
        if name not in FIELDS or variable != _variable(name):
            faults.append(f"{variable} (environment): {_unknown(name, _variable)}")
        elif environ[variable]:
            yield name, variable


def _variable(name: str) -> str:
    """Return the environment's name for a setting."""
    return PREFIX + name.upper().replace(".", "__")


def _unknown(name: str, write: Callable[[str], str] = str) -> str:
    if _is_table(name):
        return "is a table of settings: give one of its keys (see `orchestra config`)"
    depth = name.count(".") + 1
    beside = dict.fromkeys(".".join(each.split(".")[:depth]) for each in FIELDS)
    options = [*beside, *FIELDS, *(["config"] if write is _variable else [])]
    near = difflib.get_close_matches(name, options, n=1)
    return (
        f"is no setting: did you mean {write(near[0])}?"
        if near
        else "is no setting: remove it (see `orchestra config`)"
    )


def _validated(values: dict[str, Any], sources: dict[str, str], faults: list[str]) -> Settings | None:
    """Validate `values`; where some are wrong, see by the rest whether there are conflicts as well."""
    left = dict(values)
    while True:
        try:
            return Settings.model_validate(nested(left))
        except ValidationError as refusal:
            errors = refusal.errors(include_url=False)
        located = {_place(error["loc"]): error["msg"] for error in errors if error["loc"]}
        if not located:
            faults += [
                _conflict_fault(each, sources)
                for each in errors[0]["ctx"]["conflicts"]
                if not any(name in values and name not in left for name in each.names)
            ]
            return None
        for name, message in located.items():
            faults.append(_fault(name, message, values, sources))
        left = {name: value for name, value in left.items() if not any(_is_in(name, wrong) for wrong in located)}


def _place(location: tuple[int | str, ...]) -> str:
    """Return the path of the setting, or of the table of settings, that pydantic's location lies in."""
    name = ""
    for part in location:
        longer = f"{name}.{part}" if name else str(part)
        if longer not in FIELDS and not _is_table(longer):
            break
        name = longer
    return name


def _is_in(name: str, table: str) -> bool:
    return name == table or name.startswith(f"{table}.")


def _fault(name: str, message: str, values: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    if name in FIELDS:
        default = _shown(value_of(Settings(), name))
        return (
            f"{name} = {_quoted(name, values[name])} ({sources[name]}): {message}: "
            f"correct it, or remove it to have the default, {default}"
        )
    given = ", ".join(f"{each.removeprefix(name)[1:]} ({sources[each]})" for each in values if _is_in(each, name))
    return f"{name}: {message}: given are {given}"


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables that `values`, by their paths, make up."""
    tables: dict[str, Any] = {}
    for name, value in values.items():
        *above, last = name.split(".")
        table = tables
        for key in above:
            table = table.setdefault(key, {})
        table[last] = value
    return tables


def _conflicts(settings: Settings) -> Iterator[Conflict]:
    """Yield what cannot be together."""
    if settings.store_seconds_max > settings.turn_seconds_max:  # an attempt of a guard gets what is left of the turn
        yield Conflict(
            ("store_seconds_max", "turn_seconds_max"),
            f"{settings.store_seconds_max:g} s cannot end before {settings.turn_seconds_max:g} s do: "
            "lower the first or raise the second",
        )
    for which in ("provider", "alternate"):
        url, model, key = (f"{which}_{part}" for part in ("url", "model", "key"))
        if getattr(settings, url) is not None and getattr(settings, model) is None:
            yield Conflict((url, model), "a provider is asked for a model by name: set the second")
        for name in (key, model):
            if getattr(settings, url) is None and getattr(settings, name) is not None:
                yield Conflict((name, url), "the first has no effect without the second: set both or neither")


def _named_in_vain(values: Mapping[str, Any]) -> Iterator[Conflict]:
    """Yield what an operator asked for and cannot get, though `Settings` allow it: the default chain has the alternate
    too, for whoever sets its URL, and in a simulated world there is one without any.
    """
    fallbacks = "guards.unified.fallbacks"
    if "alternate" in str(values.get(fallbacks)) and "alternate_url" not in values:
        yield Conflict(
            (fallbacks, "alternate_url"), "alternate cannot answer without the second: set it, or leave alternate out"
        )


def _conflict_fault(conflict: Conflict, sources: Mapping[str, str]) -> str:
    where = " and ".join(f"{name} ({sources.get(name, 'default')})" for name in conflict.names)
    return f"{where}: {conflict.fault}"


def _url_fault(url: str, schemes: tuple[str, ...]) -> str | None:
    """Say what is wrong with `url`, without repeating it: it may hold a password."""
    if " " in url:
        return "it has a space"
    try:
        parts = urlsplit(url)
        several_hosts = "," in parts.netloc  # PostgreSQL's way, each with its own port
        port_fault = not several_hosts and parts.port == 0
    except ValueError:  # no number, or above 65535
        port_fault = True
    if port_fault:
        return "its host or port is not valid"
    if parts.scheme not in schemes:
        return f"it should begin with {' or '.join(f'{scheme}://' for scheme in schemes)}"
    if not parts.hostname and parts.scheme in ("http", "https", "redis", "rediss"):
        return "it names no host"
    return None


def _shown(value: object) -> str:
    """Write a value for people, with secrets masked."""
    if value is None:
        return "none"
    if isinstance(value, SecretStr):
        return _MASK
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return _masked(value) if isinstance(value, str) else str(value)


def _quoted(name: str, value: object) -> str:
    """Write a value that was refused."""
    if name.endswith("_key"):
        return _MASK
    return repr(_masked(value) if isinstance(value, str) else value)[:200]


def _masked(text: str) -> str:
    """Mask what is secret in a URL: the password, and for HTTP the user as well, which is often a token."""
    text = re.sub(r"^(https?://)[^/]*@", rf"\1{_MASK}@", text, flags=re.IGNORECASE)
    text = re.sub(
        r"^((?:[a-z][a-z0-9+.\-]*://)?[^:@/]*):(?!//).*@", rf"\1:{_MASK}@", text, flags=re.IGNORECASE | re.DOTALL
    )
    return re.sub(r"([?&][^=&]*(?:password|secret|token|key)[^=&]*=)[^&#]*", rf"\1{_MASK}", text, flags=re.IGNORECASE)
