"""The frame around the code: make verbs, pinned versions, CI command, container files, hooks."""

import copy
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from orchestra import config

ROOT = Path(__file__).resolve().parents[2]
VERBS = (
    "demo",
    "serve",
    "test",
    "check",
    "bench",
    "lab",
    "chaos",
    "load",
    "nightly",
    "format",
    "pictures",
    "conformance",
    "fidelity",
    "mutants",
    "constraints",
    "clean",
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _make(*arguments: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    # not as a part of the `make test` that may run this test
    environ = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    return subprocess.run(
        ["make", *arguments], cwd=cwd, env=environ, capture_output=True, text=True, check=False, timeout=60
    )


# --- make -----------------------------------------------------------------------------------------------------------


def test_help_lists_every_verb_and_is_the_default() -> None:
    shown = _make("help")
    assert shown.returncode == 0
    listed = re.findall(r"^  make (\w+) +(\S.*)$", shown.stdout, flags=re.MULTILINE)
    assert {verb for verb, _ in listed} == {"help", *VERBS}
    assert _make().stdout == shown.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_verb_has_a_recipe_and_no_file_can_hide_it(verb: str, tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / verb).mkdir()  # a folder of the verb's name makes a target that is not phony "up to date"
    planned = _make("--dry-run", verb, cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert "up to date" not in planned.stdout
    if verb not in {"constraints", "clean"}:
        assert "--constraint constraints.txt" in planned.stdout


def _script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a project whose installer is a script: it notes each install, and fails while a file `broken` exists."""
    (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    _script(
        tmp_path / ".venv/bin/python",
        'case "$*" in *--version*) exit 0;; esac; echo "$*" >> installs; test ! -e broken',
    )
    _script(tmp_path / ".venv/bin/orchestra", "echo ran orchestra $*")
    return tmp_path


def _installs(project: Path) -> list[str]:
    log = project / "installs"
    return log.read_text().splitlines() if log.exists() else []


def test_environment_is_installed_once_and_again_when_its_inputs_change(project: Path) -> None:
    for _ in range(2):
        assert "ran orchestra demo" in _make("demo", f"PYTHON={sys.executable}", cwd=project).stdout
    assert len(_installs(project)) == 1
    stamp = project / ".venv/.installed-run"
    os.utime(stamp, (0, 0))  # older than constraints.txt
    _make("demo", f"PYTHON={sys.executable}", cwd=project)
    assert len(_installs(project)) == 2


def test_development_environment_serves_the_other_verbs_too(project: Path) -> None:
    assert _make(".venv/.installed-dev", f"PYTHON={sys.executable}", cwd=project).returncode == 0
    assert _make("demo", f"PYTHON={sys.executable}", cwd=project).returncode == 0
    assert [re.search(r"\.\[(.*)\]", line)[1] for line in _installs(project)] == ["dev"]  # type: ignore[index]


def test_failed_install_is_not_taken_for_done(project: Path) -> None:
    (project / "broken").touch()
    assert _make("demo", f"PYTHON={sys.executable}", cwd=project).returncode != 0
    assert not (project / ".venv/.installed-run").exists()
    (project / "broken").unlink()
    assert "ran orchestra demo" in _make("demo", f"PYTHON={sys.executable}", cwd=project).stdout
    assert len(_installs(project)) == 2


@pytest.mark.parametrize("python", ["./old", "./missing"])
def test_unfit_python_is_refused_with_the_cure(project: Path, python: str) -> None:
    _script(project / "old", 'case "$1" in --version) echo Python 3.9.2;; *) exit 1;; esac')
    refused = _make("demo", f"PYTHON={python}", cwd=project)
    assert refused.returncode != 0
    assert f"Python 3.11 or later is needed, but '{python}' is" in refused.stderr
    assert "make demo PYTHON=" in refused.stderr
    assert _installs(project) == []


def test_chaos_runs_every_scenario_and_reports_a_failure(project: Path) -> None:
    scenarios = project / "chaos/scenarios"
    scenarios.mkdir(parents=True)
    for name in ("a", "b", "c"):
        (scenarios / f"{name}.yaml").touch()
    _script(project / ".venv/bin/orchestra", 'echo "$*"; case "$*" in *a.yaml) exit 4;; esac')
    ran = _make("chaos", f"PYTHON={sys.executable}", cwd=project)
    assert ran.stdout.splitlines()[-3:] == [f"sim run chaos/scenarios/{name}.yaml" for name in ("a", "b", "c")]
    assert ran.returncode != 0


# --- versions and CI ------------------------------------------------------------------------------------------------


def _requirements() -> list[Requirement]:
    extras = PROJECT["project"]["optional-dependencies"].values()
    lines = [*PROJECT["project"]["dependencies"], *(line for extra in extras for line in extra)]
    return [requirement for line in lines if (requirement := Requirement(line)).name != "ai-orchestra"]


def test_every_requirement_is_pinned_within_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", pin) for pin in pins), "names and versions only"
    versions = {canonicalize_name(name): version for name, version in (pin.split("==") for pin in pins)}
    for requirement in _requirements():
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not pinned: run `make constraints`"
        assert requirement.specifier.contains(version), f"{requirement} excludes the pinned {version}"


def test_ci_runs_the_two_commands() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    lines = script.read_text().splitlines()
    assert [line for line in lines if line.startswith("make ")] == ["make check", "make test"]
    assert "set -euo pipefail" in lines


def test_hooks_fetch_nothing_and_name_tools_of_the_environment() -> None:
    path = ROOT / ".pre-commit-config.yaml"
    checked = subprocess.run(
        [sys.executable, "-m", "pre_commit", "validate-config", path], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout
    repos = yaml.safe_load(path.read_text())["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    assert all(hook["language"] == "system" for hook in repos[0]["hooks"])
    assert all(hook["entry"].startswith(".venv/bin/") for hook in repos[0]["hooks"])


# --- containers -----------------------------------------------------------------------------------------------------


def _compose() -> Any:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


@pytest.fixture(scope="module")
def compose_schema() -> Any:
    """Return the JSON schema of the compose specification, as check-jsonschema ships it."""
    vendored = resources.files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json"
    return json.loads(vendored.read_text())


def test_compose_file_keeps_the_specification(compose_schema: Any) -> None:
    jsonschema.validate(_compose(), compose_schema)


def test_schema_would_see_a_mistake(compose_schema: Any) -> None:
    for mistake in ({"healtcheck": {}}, {"depends_on": {"redis": {"condition": "healthy"}}}, {"cap_drop": "ALL"}):
        broken = copy.deepcopy(_compose())
        broken["services"]["orchestra"] |= mistake
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, compose_schema)


def test_compose_services_fit_each_other() -> None:
    compose = _compose()
    services = compose["services"]
    for name, needed in services["orchestra"]["depends_on"].items():
        assert needed["condition"] == "service_healthy"
        assert services[name]["healthcheck"]["test"]
    named = {volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ())}
    assert named == set(compose["volumes"])
    postgres = services["postgres"]["environment"]
    user, password, database = (postgres[f"POSTGRES_{part}"] for part in ("USER", "PASSWORD", "DB"))
    environment = services["orchestra"]["environment"]
    assert environment["DATABASE_URL"] == f"postgresql://{user}:{password}@postgres:5432/{database}"
    assert environment["REDIS_URL"].startswith("redis://redis:6379")
    assert "--appendonly yes" in " ".join(services["redis"]["command"])


def test_containers_give_settings_that_exist(tmp_path: Path) -> None:
    environment = {name: str(value) for name, value in _compose()["services"]["orchestra"]["environment"].items()}
    environment["DATABASE_URL"] = re.sub(r"\$\{\w+:-(\w*)\}", r"\1", environment["DATABASE_URL"])
    baked = dict(re.findall(r"\b(ORCHESTRA_\w+)=(\S+)", (ROOT / "Dockerfile").read_text()))
    settings = config.load(baked | environment, cwd=tmp_path).settings
    assert (settings.host, settings.port) == ("0.0.0.0", 8000)
    assert settings.shutdown_seconds_max < float(_compose()["services"]["orchestra"]["stop_grace_period"].rstrip("s"))


def test_image_is_built_from_what_it_needs_and_runs_as_nobody_special() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    ]
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {"pyproject.toml", "constraints.txt", *packages} <= set(copied)
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == sent, "what .dockerignore lets through is what the Dockerfile copies"
    assert all((ROOT / name).exists() for name in copied)
    assert lines.index("USER orchestra") < lines.index('CMD ["orchestra", "serve"]')
    assert any("/livez" in line for line in lines)
