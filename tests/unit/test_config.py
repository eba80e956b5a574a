"""Settings: where they come from, what is refused, and that nothing secret is shown."""

import os
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from orchestra.config import FIELDS, Loaded, Settings, load, unit_of, value_of
from orchestra.errors import ConfigurationError

NAMES = list(FIELDS)


def refused(environ: dict[str, str], cwd: Path) -> list[str]:
    """Return the faults that loading complains of, one a line."""
    with pytest.raises(ConfigurationError) as refusal:
        load(environ, cwd=cwd)
    headline, *faults = refusal.value.detail.splitlines()
    assert headline == ("1 setting is wrong:" if len(faults) == 1 else f"{len(faults)} settings are wrong:")
    return [fault.removeprefix("- ") for fault in faults]


def test_without_anything_all_is_default(tmp_path: Path) -> None:
    loaded = load({}, cwd=tmp_path)
    assert loaded == Loaded(Settings(), dict.fromkeys(NAMES, "default"))
    assert loaded.settings.port == 8000


def test_environment_beats_file_beats_default(tmp_path: Path) -> None:
    (tmp_path / "orchestra.toml").write_text('port = 1\nworkers = 2\nlog_level = "debug"\nturn_seconds_max = 100\n')
    loaded = load({"ORCHESTRA_PORT": "9000", "ORCHESTRA_STORE_SECONDS_MAX": "2.5", "PATH": "/bin"}, cwd=tmp_path)
    settings, sources = loaded.settings, loaded.sources
    assert (settings.port, sources["port"]) == (9000, "environment ORCHESTRA_PORT")
    assert (settings.store_seconds_max, sources["store_seconds_max"]) == (
        2.5,
        "environment ORCHESTRA_STORE_SECONDS_MAX",
    )
    assert (settings.workers, sources["workers"]) == (2, "file orchestra.toml")
    assert (settings.log_level, settings.turn_seconds_max) == ("debug", 100.0)
    assert (settings.host, sources["host"]) == ("127.0.0.1", "default")


def test_the_conventional_names_count_and_the_own_name_has_the_last_word(tmp_path: Path) -> None:
    environ = {"REDIS_URL": "redis://one/0", "DATABASE_URL": "postgresql://u@h1:5432,h2:5433/db"}
    loaded = load(environ, cwd=tmp_path)
    assert loaded.settings.redis_url == "redis://one/0"
    assert loaded.settings.database_url == "postgresql://u@h1:5432,h2:5433/db"
    assert loaded.sources["database_url"] == "environment DATABASE_URL"
    loaded = load(environ | {"ORCHESTRA_REDIS_URL": "redis://two/0"}, cwd=tmp_path)
    assert loaded.settings.redis_url == "redis://two/0"
    assert loaded.sources["redis_url"] == "environment ORCHESTRA_REDIS_URL"


def test_an_empty_variable_is_as_good_as_none(tmp_path: Path) -> None:
    empty = {"REDIS_URL": "", "ORCHESTRA_PORT": "", "ORCHESTRA_PROVIDER_URL": "", "ORCHESTRA_CONFIG": ""}
    assert load(empty, cwd=tmp_path) == load({}, cwd=tmp_path)


def test_the_file_may_be_named_relative_or_absolute(tmp_path: Path) -> None:
    (tmp_path / "orchestra.toml").write_text("port = 1\n")
    (tmp_path / "other.toml").write_text("port = 2\n")
    for named in ("other.toml", str(tmp_path / "other.toml")):
        loaded = load({"ORCHESTRA_CONFIG": named}, cwd=tmp_path)
        assert loaded.settings.port == 2
        assert loaded.sources["port"] == f"file {named}"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"port = \n", ["is not TOML", "line 1"]),
        (b"port = 1\nport = 2\n", ["is not TOML", "line 2"]),
        (b"host = '\xff'\n", ["is not UTF-8"]),
        (None, ["cannot be read", "No such file", "ORCHESTRA_CONFIG"]),
    ],
)
def test_a_broken_file_is_refused_and_the_rest_still_judged(
    tmp_path: Path, content: bytes | None, words: list[str]
) -> None:
    if content is not None:
        (tmp_path / "my.toml").write_bytes(content)
    fault, other = refused({"ORCHESTRA_CONFIG": "my.toml", "ORCHESTRA_PORT": "70000"}, tmp_path)
    assert fault.startswith("file my.toml: ")
    for word in words:
        assert word in fault
    assert other.startswith("port = '70000' (environment ORCHESTRA_PORT): ")


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "orchestra.toml").mkdir()
    assert "cannot be read" in refused({}, tmp_path)[0]


def test_unknown_names_are_refused_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "orchestra.toml").write_text("prot = 1\nzzz = 1\n[breaker]\nfailures_max = 1\n[quux]\n")
    environ = {"ORCHESTRA_PROT": "1", "ORCHESTRA_CONFG": "x", "ORCHESTRA_Port": "1", "ORCHESTRA_": "1"}
    assert refused(environ, tmp_path) == [
        "prot (file orchestra.toml): is no setting: did you mean port?",
        "zzz (file orchestra.toml): is no setting: remove it (see `orchestra config`)",
        "breaker (file orchestra.toml): is no setting: remove it (see `orchestra config`)",
        "quux (file orchestra.toml): is no setting: remove it (see `orchestra config`)",
        "ORCHESTRA_ (environment): is no setting: remove it (see `orchestra config`)",
        "ORCHESTRA_CONFG (environment): is no setting: did you mean ORCHESTRA_CONFIG?",
        "ORCHESTRA_PROT (environment): is no setting: did you mean ORCHESTRA_PORT?",
        "ORCHESTRA_Port (environment): is no setting: did you mean ORCHESTRA_PORT?",
    ]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("port", "65536", "less than or equal to 65535"),
        ("port", "-1", "greater than or equal to 0"),
        ("port", "http", "valid integer"),
        ("workers", "0", "greater than or equal to 1"),
        ("workers", "1.5", "valid integer"),
        ("turn_seconds_max", "0", "greater than 0"),
        ("store_seconds_max", "nan", "finite"),
        ("store_seconds_max", "inf", "finite"),
        ("memory_recalled_max", "6", "less than or equal to 5"),
        ("memory_similarity_min", "1.1", "less than or equal to 1"),
        ("guards.unified.breaker.probes_max", "0", "greater than or equal to 1"),
        ("log_level", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("log_format", "xml", "'auto', 'json' or 'console'"),
        ("host", "a\nb", "control character"),
        ("redis_url", "http://host", "redis:// or rediss:// or unix://"),
        ("redis_url", "redis://host:port", "host or port is not valid"),
        ("redis_url", "redis:///0", "no host"),
        ("database_url", "mysql://host/db", "postgresql:// or postgres://"),
        ("provider_url", "api.example.com/v1", "http:// or https://"),
        ("provider_url", "http://", "no host"),
        ("provider_url", "http://h:0/", "host or port is not valid"),
        ("provider_url", "http://[::1/", "host or port is not valid"),
        ("otlp_endpoint", "http://a host/", "a space"),
    ],
)
def test_an_impossible_value_is_refused_with_name_source_fault_and_cure(
    tmp_path: Path, name: str, value: str, words: str
) -> None:
    variable = f"ORCHESTRA_{name.upper().replace('.', '__')}"
    (fault,) = refused({variable: value}, tmp_path)
    assert fault.startswith(f"{name} = {value!r} (environment {variable}): ")
    assert words in fault
    assert "remove it to have the default" in fault


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("port = true", "truth value"),
        ('host = ""', "at least 1 character"),
        ("host = 5", "valid string"),
        ("port = [1]", "valid integer"),
        ("data_dir = 1979-05-27", "path"),
        ('host = "\\u0000"', "control character"),
    ],
)
def test_a_value_of_another_type_in_the_file_is_refused(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "orchestra.toml").write_text(line + "\n")
    (fault,) = refused({}, tmp_path)
    assert fault.startswith(line.split(" ", 1)[0])
    assert "(file orchestra.toml)" in fault
    assert words in fault


def test_settings_that_contradict_each_other_are_refused_together(tmp_path: Path) -> None:
    environ = {
        "ORCHESTRA_TURN_SECONDS_MAX": "4",
        "ORCHESTRA_PROVIDER_KEY": "k",
    }
    assert refused(environ, tmp_path) == [
        "store_seconds_max (default) and turn_seconds_max (environment ORCHESTRA_TURN_SECONDS_MAX): "
        "5 s cannot end before 4 s do: lower the first or raise the second",
        "provider_key (environment ORCHESTRA_PROVIDER_KEY) and provider_url (default): "
        "the first has no effect without the second: set both or neither",
    ]
    (fault,) = refused({"ORCHESTRA_PROVIDER_URL": "http://h/v1"}, tmp_path)
    assert "asked for a model by name" in fault


FALLBACKS = "ORCHESTRA_GUARDS__UNIFIED__FALLBACKS"


def test_an_alternate_that_is_asked_for_needs_its_url(tmp_path: Path) -> None:
    conflict = (
        f"guards.unified.fallbacks (environment {FALLBACKS}) and alternate_url (default): "
        "alternate cannot answer without the second: set it, or leave alternate out"
    )
    assert refused({FALLBACKS: "cache, alternate"}, tmp_path) == [conflict]
    wrong = {FALLBACKS: "cache, alternate", "ORCHESTRA_PORT": "x", "ORCHESTRA_STORE_SECONDS_MAX": "100"}
    assert refused(wrong, tmp_path)[-1] == conflict  # beside any other
    wrong = {FALLBACKS: "alternate", "ORCHESTRA_ALTERNATE_URL": "nonsense", "ORCHESTRA_ALTERNATE_MODEL": "m"}
    assert [fault.split(" ")[0] for fault in refused(wrong, tmp_path)] == ["alternate_url"]  # but not by a wrong one

    table = '[guards.unified]\nfallbacks = ["alternate"]\n'
    (tmp_path / "orchestra.toml").write_text(table)
    assert refused({}, tmp_path) == [conflict.replace(f"environment {FALLBACKS}", "file orchestra.toml")]
    (tmp_path / "orchestra.toml").write_text('alternate_url = "http://h/v1"\nalternate_model = "m"\n' + table)
    assert load({}, cwd=tmp_path).settings.guards.unified.fallbacks == ("alternate",)


def test_the_default_chain_and_one_without_an_alternate_need_no_url(tmp_path: Path) -> None:
    environ = {"ORCHESTRA_GUARDS__UNIFIED__RETRY__ATTEMPTS_MAX": "2"}
    assert "alternate" in load(environ, cwd=tmp_path).settings.guards.unified.fallbacks
    assert load({FALLBACKS: "cache, apology"}, cwd=tmp_path).settings.guards.unified.fallbacks == ("cache", "apology")


def test_what_would_do_nothing_is_refused_by_its_path_and_source(tmp_path: Path) -> None:
    environ = {
        "ORCHESTRA_GUARDS__UNIFIED__HEDGE__ATTEMPTS_MAX": "3",
        "ORCHESTRA_GUARDS__UNIFIED__BREAKER__SLOW_SECONDS": "30",
    }
    slow, hedge = sorted(refused(environ, tmp_path))
    assert slow.startswith("guards.unified.breaker.slow_seconds = '30' (environment ORCHESTRA_GUARDS__UNIFIED__BREAKER")
    assert hedge.startswith("guards.unified.hedge.attempts_max = '3' (environment ORCHESTRA_GUARDS__UNIFIED__HEDGE")


def test_conflicts_are_found_beside_impossible_values_but_not_because_of_them(tmp_path: Path) -> None:
    environ = {
        "ORCHESTRA_PROVIDER_URL": "nonsense",
        "ORCHESTRA_PROVIDER_KEY": "k",
        "ORCHESTRA_PROVIDER_MODEL": "m",
        "ORCHESTRA_STORE_SECONDS_MAX": "100",
    }
    first, second = refused(environ, tmp_path)
    assert first.startswith("provider_url = 'nonsense'")
    assert second.startswith(
        "store_seconds_max (environment ORCHESTRA_STORE_SECONDS_MAX) and turn_seconds_max (default)"
    )


def test_rows_show_every_setting_with_its_unit_and_meaning_and_no_secret(tmp_path: Path) -> None:
    environ = {
        "REDIS_URL": "rediss://:hush@redis:6379/0",
        "DATABASE_URL": "postgresql://me:hush%2F@hush@db/x?sslmode=require&password=hush",
        "ORCHESTRA_PROVIDER_URL": "https://hush@llm.example.com/v1?api-key=hush&version=2",
        "ORCHESTRA_PROVIDER_KEY": "hush",
        "ORCHESTRA_PROVIDER_MODEL": "m",
    }
    loaded = load(environ, cwd=tmp_path)
    rows = {row.name: row for row in loaded.rows()}
    assert list(rows) == NAMES
    assert all(row.unit and row.meaning.endswith(".") for row in rows.values())
    assert {name: rows[name].value for name in ("redis_url", "database_url", "provider_url", "provider_key")} == {
        "redis_url": "rediss://:********@redis:6379/0",
        "database_url": "postgresql://me:********@db/x?sslmode=require&password=********",
        "provider_url": "https://********@llm.example.com/v1?api-key=********&version=2",
        "provider_key": "********",
    }
    assert (rows["port"].value, rows["port"].unit, rows["otlp_endpoint"].value) == ("8000", "port number", "none")
    assert "hush" not in repr(loaded.settings.provider_key)
    assert loaded.settings.provider_key == SecretStr("hush")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("redis_url", "foo://:hush@redis"),
        ("redis_url", "redis://:hush@redis:port"),
        ("database_url", "me:hush@db/x"),
        ("database_url", "mysql://me:hu@sh:hush@db"),
        ("provider_url", "http://hush@:0"),
        ("provider_url", "http://me:hu@sh:hush@h:0"),
        ("provider_url", "http://me:hu/sh:hush@h"),
        ("provider_url", "ftp://h/?token=hush"),
        ("provider_key", "hush hush"),
        ("provider_key", "hush\n"),
        ("provider_key", "hüsh hush"),
    ],
)
def test_a_refusal_repeats_no_secret(tmp_path: Path, name: str, value: str) -> None:
    (fault,) = refused({f"ORCHESTRA_{name.upper()}": value}, tmp_path)
    assert fault.startswith(f"{name} = ")
    assert "hush" not in fault
    with pytest.raises(ValidationError) as refusal:
        Settings.model_validate({name: value})
    assert "hush" not in str(refusal.value)


def test_the_model_reads_neither_environment_nor_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "orchestra.toml").write_text("port = 1\n")
    monkeypatch.chdir(tmp_path)
    for name in ("ORCHESTRA_PORT", "PORT", "port"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("REDIS_URL", "redis://h")
    assert os.environ["ORCHESTRA_PORT"] == "2"
    assert Settings() == Settings(port=8000, redis_url=None)
    assert Settings(turns_inflight_max=10).turns_inflight_max == 10


def test_the_model_refuses_unknown_impossible_and_changed_values() -> None:
    with pytest.raises(ValidationError, match="prot"):
        Settings(prot=1)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="workers"):
        Settings(workers=0)
    with pytest.raises(ValidationError, match="store_seconds_max and turn_seconds_max: 80 s cannot end before 75 s do"):
        Settings(store_seconds_max=80)
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1


def test_times_and_counts_say_their_unit_in_their_name() -> None:
    assert [name for name in NAMES if unit_of(name) == "seconds"] == [name for name in NAMES if "_seconds" in name]


POLICIES = """
guards.memory.breaker = 3
[guards.unified]
breaker = {open_seconds = -1, probes_max = 0, failure_rate_max = 2, opensecs = 1}
retry = {base_seconds = 9}
bulkhead = {wait_seconds_max = true}
fallbacks = ["cache", "prayer"]
[guards.unifeid.breaker]
"""


def test_a_bad_policy_is_refused_by_its_keys_path(tmp_path: Path) -> None:
    (tmp_path / "orchestra.toml").write_text(POLICIES)
    environ = {"ORCHESTRA_GUARDS__MEMORY__BREAKER__CALLS_MIN": "0", "ORCHESTRA_GUARDS__MEMORY": "1"}
    source = "(file orchestra.toml)"
    assert refused(environ, tmp_path) == [
        f"guards.memory.breaker {source}: is a table of settings: give one of its keys (see `orchestra config`)",
        f"guards.unified.breaker.opensecs {source}: is no setting: did you mean guards.unified.breaker.open_seconds?",
        f"guards.unifeid {source}: is no setting: did you mean guards.unified?",
        "ORCHESTRA_GUARDS__MEMORY (environment): is a table of settings: give one of its keys (see `orchestra config`)",
        f"guards.unified.fallbacks = ['cache', 'prayer'] {source}: Input should be 'alternate', 'cache', 'offline' or "
        "'apology': correct it, or remove it to have the default, alternate, cache, apology",
        "guards.unified.retry: base_seconds is above cap_seconds: lower it or raise the other: "
        f"given are base_seconds {source}",
        f"guards.unified.breaker.failure_rate_max = 2 {source}: Input should be less than or equal to 1: "
        "correct it, or remove it to have the default, 0.5",
        f"guards.unified.breaker.open_seconds = -1 {source}: Input should be greater than 0: "
        "correct it, or remove it to have the default, 5.0",
        f"guards.unified.breaker.probes_max = 0 {source}: Input should be greater than or equal to 1: "
        "correct it, or remove it to have the default, 2",
        f"guards.unified.bulkhead.wait_seconds_max = True {source}: it is a truth value, which this setting is not: "
        "correct it, or remove it to have the default, 2.0",
        "guards.memory.breaker.calls_min = '0' (environment ORCHESTRA_GUARDS__MEMORY__BREAKER__CALLS_MIN): "
        "Input should be greater than or equal to 1: correct it, or remove it to have the default, 20",
    ]


def test_a_policy_may_be_set_in_part_and_its_environment_beats_its_file(tmp_path: Path) -> None:
    (tmp_path / "orchestra.toml").write_text("[guards.memory.attempt]\nfirst_seconds_max = 1\ntotal_seconds_max = 3\n")
    environ = {
        "ORCHESTRA_GUARDS__MEMORY__ATTEMPT__TOTAL_SECONDS_MAX": "4",
        "ORCHESTRA_GUARDS__UNIFIED__FALLBACKS": "offline, apology",
        "ORCHESTRA_GUARDS__UNIFIED__BREAKER__SLOW_SECONDS": "2",
    }
    loaded = load(environ, cwd=tmp_path)
    memory, unified = loaded.settings.guards.memory, loaded.settings.guards.unified
    assert (memory.attempt.first_seconds_max, memory.attempt.total_seconds_max) == (1.0, 4.0)
    assert memory.attempt.between_seconds_max == 5.0  # the default of this dependency, not of all
    assert unified.fallbacks == ("offline", "apology")
    assert unified.breaker.slow_seconds == 2.0
    assert loaded.sources["guards.memory.attempt.first_seconds_max"] == "file orchestra.toml"
    assert loaded.sources["guards.memory.attempt.between_seconds_max"] == "default"
    rows = {row.name: row for row in loaded.rows()}
    assert rows["guards.unified.fallbacks"].value == "offline, apology"
    assert rows["guards.unified.fallbacks"].source == "environment ORCHESTRA_GUARDS__UNIFIED__FALLBACKS"
    assert value_of(loaded.settings, "guards.memory.attempt.total_seconds_max") == 4.0


def test_origins_are_a_list_and_each_is_scheme_host_and_port(tmp_path: Path) -> None:
    loaded = load({"ORCHESTRA_ORIGINS_ALLOWED": "https://chat.example, http://localhost:3000"}, cwd=tmp_path)
    assert loaded.settings.origins_allowed == ("https://chat.example", "http://localhost:3000")
    for wrong in ("chat.example", "https://chat.example/", "https://", "*"):
        (fault,) = refused({"ORCHESTRA_ORIGINS_ALLOWED": wrong}, tmp_path)
        assert "an origin is scheme, host and port only" in fault
