"""What an operator may tune: every setting with its default, bounds, unit and meaning, merged once, then frozen.

A value comes from the environment (``ORCHESTRA_<NAME>``; also the conventional ``REDIS_URL`` and ``DATABASE_URL``),
else from one TOML file of flat keys, else it is the default. Anything unknown or impossible refuses the start, all
faults at once. The model itself reads nothing: ``Settings(port=0)`` is the defaults with one change, wherever it runs.
"""

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from orchestra.errors import ConfigurationError
from orchestra.limits import MEMORIES_RECALLED_MAX

PREFIX = "ORCHESTRA_"
FILE_VARIABLE = "ORCHESTRA_CONFIG"
FILE_DEFAULT = "orchestra.toml"
CONVENTIONAL = {"REDIS_URL": "redis_url", "DATABASE_URL": "database_url"}

_SCHEMES = {
    "redis_url": ("redis", "rediss", "unix"),
    "database_url": ("postgresql", "postgres"),
    "provider_url": ("http", "https"),
    "otlp_endpoint": ("http", "https"),
}
_MASK = "********"


def _setting(default: object, unit: str, meaning: str, **bounds: Any) -> Any:
    return Field(default, description=meaning, json_schema_extra={"unit": unit}, **bounds)


class Settings(BaseModel):
    """All settings, valid one by one and together.

    Raises
    ------
    pydantic.ValidationError
        A name is unknown, a value is out of its bounds, or two values contradict each other.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    host: str = _setting("127.0.0.1", "address", "Where the service listens.", min_length=1)
    port: int = _setting(8000, "port number", "The port it listens on; 0 takes a free one.", ge=0, le=65535)
    workers: int = _setting(1, "processes", "Processes that serve.", ge=1, le=256)
    data_dir: Path = _setting(
        Path(".orchestra"), "path", "Where the service's own PostgreSQL and Redis keep their data."
    )
    redis_url: str | None = _setting(None, "URL", "Redis for sessions; none starts a private one.")
    database_url: str | None = _setting(
        None, "URL", "PostgreSQL with pgvector for conversations and memories; none starts a private one."
    )
    provider_url: str | None = _setting(
        None, "URL", "Base URL of an OpenAI-compatible endpoint; none answers with the built-in offline model."
    )
    provider_key: SecretStr | None = _setting(None, "secret", "API key of the provider.")
    provider_model: str | None = _setting(None, "name", "Model to ask the provider for.", min_length=1)
    provider_timeout_seconds: float = _setting(60.0, "seconds", "One provider call, whole.", gt=0, le=3600)
    provider_first_token_seconds: float = _setting(
        20.0, "seconds", "One provider call, to the first piece of its answer.", gt=0, le=3600
    )
    provider_connections_max: int = _setting(
        256, "connections", "Connections to the provider at once, in each process.", ge=1, le=65536
    )
    turn_seconds_max: float = _setting(75.0, "seconds", "One turn, from admission to the durable reply.", gt=0, le=3600)
    turns_inflight_max: int = _setting(
        1024, "turns", "Turns at once in each process; more are shed with status 503.", ge=1, le=1_000_000
    )
    store_seconds_max: float = _setting(5.0, "seconds", "One operation of a store.", gt=0, le=3600)
    memory_recalled_max: int = _setting(
        3, "memories", "Memories that one turn is given.", ge=0, le=MEMORIES_RECALLED_MAX
    )
    memory_similarity_min: float = _setting(
        0.25, "cosine, -1 to 1", "How near a memory must be to the message to be recalled.", ge=-1, le=1
    )
    breaker_failures_max: int = _setting(5, "calls", "Consecutive failures that open a breaker.", ge=1, le=1_000_000)
    breaker_open_seconds: float = _setting(
        15.0, "seconds", "How long an open breaker rejects before it lets probes through.", gt=0, le=3600
    )
    breaker_probes_max: int = _setting(2, "calls", "Probes at once through a half-open breaker.", ge=1, le=1_000_000)
    breaker_successes_min: int = _setting(2, "calls", "Successful probes that close a breaker.", ge=1, le=1_000_000)
    shutdown_seconds_max: float = _setting(
        15.0, "seconds", "How long turns in flight may go on once the service is told to stop.", ge=0, le=3600
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "level", "The least severe line logged.")
    log_format: Literal["auto", "json", "console"] = _setting(
        "auto", "format", "Form of the log; auto is console on a terminal, else json."
    )
    otlp_endpoint: str | None = _setting(None, "URL", "Where traces are sent (OTLP over HTTP); none sends none.")

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: object) -> object:
        if isinstance(value, bool):  # which would pass for 0 or 1
            raise PydanticCustomError("flag", "it is a truth value, which this setting is not")
        if isinstance(value, str) and re.search(r"[\x00-\x1f\x7f]", value):
            raise PydanticCustomError("control", "it has a control character, such as a line break")
        return value

    @field_validator(*_SCHEMES)
    @classmethod
    def _url(cls, value: str | None, info: Any) -> str | None:
        if value is not None and (fault := _url_fault(value, _SCHEMES[info.field_name])):
            raise PydanticCustomError("url", "{fault}", {"fault": fault})
        return value

    @field_validator("provider_key")
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
        By setting: ``default``, ``environment ORCHESTRA_PORT``, ``file orchestra.toml``.
    """

    settings: Settings
    sources: Mapping[str, str]

    def rows(self) -> list[Row]:
        """Return every setting with its value, source, unit and meaning, in the order of `Settings`."""
        return [
            Row(name, _shown(getattr(self.settings, name)), self.sources[name], unit_of(name), field.description or "")
            for name, field in Settings.model_fields.items()
        ]


def unit_of(name: str) -> str:
    """Return the unit of the setting `name`."""
    extra = Settings.model_fields[name].json_schema_extra
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
    if settings is None or faults:
        count = "1 setting is" if len(faults) == 1 else f"{len(faults)} settings are"
        raise ConfigurationError("\n".join([f"{count} wrong:", *(f"- {fault}" for fault in faults)]))
    return Loaded(settings, {name: sources.get(name, "default") for name in Settings.model_fields})


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
    for name in [name for name in table if name not in Settings.model_fields]:
        faults.append(f"{name} ({source}): {_unknown(name, table.pop(name))}")
    return table, dict.fromkeys(table, source)


def _variables(environ: Mapping[str, str], faults: list[str]) -> Iterator[tuple[str, str]]:
    """Yield setting and variable, the conventional names first: the service's own name has the last word."""
    for variable, name in CONVENTIONAL.items():
        if environ.get(variable):
            yield name, variable
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable == FILE_VARIABLE:
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in Settings.model_fields or variable != PREFIX + name.upper():
            faults.append(f"{variable} (environment): {_unknown(name, None, PREFIX)}")
        elif environ[variable]:
            yield name, variable


def _unknown(name: str, value: object, prefix: str = "") -> str:
    if isinstance(value, dict):
        keys = [f"{name}_{key}" for key in value if f"{name}_{key}" in Settings.model_fields]
        return f"is a table, and settings are flat keys: write {keys[0] if keys else 'port'} = ... without a table"
    near = difflib.get_close_matches(name, [*Settings.model_fields, "config"] if prefix else Settings.model_fields, n=1)
    shown = [prefix + each.upper() if prefix else each for each in near]
    return f"is no setting: did you mean {shown[0]}?" if shown else "is no setting: remove it (see `orchestra config`)"


def _validated(values: dict[str, Any], sources: dict[str, str], faults: list[str]) -> Settings | None:
    """Validate `values`; where some are wrong, see by the rest whether there are conflicts as well."""
    wrong: set[str] = set()
    while True:
        try:
            return Settings.model_validate({name: value for name, value in values.items() if name not in wrong})
        except ValidationError as refusal:
            errors = refusal.errors(include_url=False)
        single = {str(error["loc"][0]): error["msg"] for error in errors if error["loc"]}
        if not single:
            faults += [
                _conflict_fault(each, sources) for each in errors[0]["ctx"]["conflicts"] if wrong.isdisjoint(each.names)
            ]
            return None
        for name, message in single.items():
            default = _shown(Settings.model_fields[name].default)
            faults.append(
                f"{name} = {_quoted(name, values[name])} ({sources[name]}): {message}: "
                f"correct it, or remove it to have the default, {default}"
            )
        wrong |= single.keys()


def _conflicts(settings: Settings) -> Iterator[Conflict]:
    """Yield what cannot be together."""
    for shorter, longer in (
        ("provider_first_token_seconds", "provider_timeout_seconds"),
        ("provider_timeout_seconds", "turn_seconds_max"),
        ("store_seconds_max", "turn_seconds_max"),
    ):
        if (inner := getattr(settings, shorter)) > (outer := getattr(settings, longer)):
            yield Conflict(
                (shorter, longer), f"{inner:g} s cannot end before {outer:g} s do: lower the first or raise the second"
            )
    if settings.provider_url is not None and settings.provider_model is None:
        yield Conflict(("provider_url", "provider_model"), "a provider is asked for a model by name: set the second")
    for name in ("provider_key", "provider_model"):
        if settings.provider_url is None and getattr(settings, name) is not None:
            yield Conflict((name, "provider_url"), "the first has no effect without the second: set both or neither")


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
    return _masked(value) if isinstance(value, str) else str(value)


def _quoted(name: str, value: object) -> str:
    """Write a value that was refused."""
    if name == "provider_key":
        return _MASK
    return repr(_masked(value) if isinstance(value, str) else value)[:200]


def _masked(text: str) -> str:
    """Mask what is secret in a URL: the password, and for HTTP the user as well, which is often a token."""
    text = re.sub(r"^(https?://)[^/]*@", rf"\1{_MASK}@", text, flags=re.IGNORECASE)
    text = re.sub(
        r"^((?:[a-z][a-z0-9+.\-]*://)?[^:@/]*):(?!//).*@", rf"\1:{_MASK}@", text, flags=re.IGNORECASE | re.DOTALL
    )
    return re.sub(r"([?&][^=&]*(?:password|secret|token|key)[^=&]*=)[^&#]*", rf"\1{_MASK}", text, flags=re.IGNORECASE)
