"""Notebooks run as scripts from any folder, open as notebooks, and hold no logic of their own."""

import ast
import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

from sim.world import rehearse

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
SCENARIO = """
name: small
description: A moment of trouble.
duration: 40s
workload: {open_loop: {rate: 4/s, users: 20, generated_tokens: 50, context_tokens: 100}}
faults: [{provider_failing: {at: 10s, for: 10s, rate: 100%}}]
expectations: [{always: accounted}]
"""


def executed(notebook: Path, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, str(notebook)],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_brownout_runs_as_a_script():
    said = executed(ROOT / "notebooks/01_brownout.py", ROOT)
    assert "of virtual time in" in said
    assert "PASSED - every expectation held" in said
    rows = [line for line in said.splitlines() if line.startswith(("open for", "as it is"))]
    labels = dict.fromkeys(re.split(r"\s{2,}", row)[0] for row in rows)  # a wide table is printed in several parts
    assert list(labels) == ["open for 2 s", "as it is", "open for 60 s"]


SHORTER = {
    "02_breaker_thresholds.py": {"TRIALS": "3"},
    "03_capacity.py": {"RATES": "6/s,12/s"},
    "04_retry_storm.py": {},
    "05_calibrated_twin.py": {"TRACE_SECONDS": "100"},
    "06_two_policies.py": {"SEEDS": "3"},
}
SAID = {
    "02_breaker_thresholds.py": "[guards.unified.breaker]",
    "03_capacity.py": "level_normal_seconds",
    "04_retry_storm.py": "unguarded, polite clients",
    "05_calibrated_twin.py": "whole answer p95",
    "06_two_policies.py": "variance_ratio",
}


@pytest.mark.parametrize("name", SHORTER)
def test_a_notebook_runs_as_a_script_from_any_folder(tmp_path, name):
    """With fewer points and seeds than it takes by itself; `make nightly` runs it in full."""
    said = executed(ROOT / "notebooks" / name, tmp_path, **SHORTER[name])
    assert SAID[name] in said
    assert list(tmp_path.iterdir()) == []


def test_every_notebook_is_run():
    assert [path.name for path in NOTEBOOKS] == ["01_brownout.py", *SHORTER]


def as_notebooks(paths, folder: Path, **environment: str) -> str:
    for path in paths:
        jupytext.write(jupytext.read(path), folder / f"{path.stem}.ipynb")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbmake", "--nbmake-timeout=300", "-p", "no:cacheprovider", "."],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


@pytest.mark.nightly
def test_a_script_runs_as_a_notebook(tmp_path):
    small = tmp_path / "small.yaml"
    small.write_text(SCENARIO)
    assert "1 passed" in as_notebooks(NOTEBOOKS[:1], tmp_path, SCENARIO=str(small))


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_all_run_as_notebooks(tmp_path):
    assert f"{len(NOTEBOOKS)} passed" in as_notebooks(NOTEBOOKS, tmp_path)


def test_scenario_and_seed_are_parameters(tmp_path):
    (tmp_path / "mine.yaml").write_text(SCENARIO)
    runs = [
        executed(ROOT / "notebooks/01_brownout.py", tmp_path, SCENARIO=str(tmp_path / "mine.yaml"), SEED=seed)
        for seed in ("5", "5", "6")
    ]
    digests = [said.split("journal ")[1].split()[0] for said in runs]
    assert digests[0] == digests[1] != digests[2]
    assert "A moment of trouble." in runs[0]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_opens_with_its_parameters_first(path):
    notebook = jupytext.read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code[0].metadata["tags"] == ["parameters"]
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    assert any(cell.source.startswith("%matplotlib inline") for cell in code)  # or figures would show as text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_only_calls(path):
    logic = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.If, ast.While, ast.Try, ast.Lambda, ast.IfExp)
    found = [node.lineno for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, logic)]
    assert found == [], f"{path.name}: logic in lines {found}: move it into a module of sim and test it there"


def test_a_world_may_be_rehearsed_where_a_loop_already_runs(small):
    async def in_a_cell():
        return rehearse(small(), seed=4)

    assert asyncio.run(in_a_cell()).journal.digest == rehearse(small(), seed=4).journal.digest
