"""Every row of the tables in docs/determinism.md names tests that there are."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTED = re.compile(r"`(test_\w+|Test\w+|(?:contract/)?test_\w+\.py)`")


def rows() -> list[tuple[str, str, str]]:
    """Return what each row is about, which tests it names, and the file they are in where it names none."""
    found, home = [], "test_isolation.py"
    for line in (ROOT / "docs" / "determinism.md").read_text().splitlines():
        if line == "## Crashes":
            home = "test_crash.py"
        if line.startswith("| ") and not line.startswith(("| leak |", "| what |")):
            leak, _, tested = line.strip("| ").split(" | ")
            found.append((leak, tested, home))
    return found


def test_the_page_has_its_rows() -> None:
    assert len(rows()) > 40


@pytest.mark.parametrize(("leak", "tested", "home"), rows(), ids=lambda cell: cell[:40])
def test_a_row_names_tests_that_there_are(leak: str, tested: str, home: str) -> None:
    names = [name for name in TESTED.findall(tested) if not name.endswith(".py")]
    files = [name for name in TESTED.findall(tested) if name.endswith(".py")]
    assert names or files, f"{leak}: names no test"
    folders = (ROOT / "tests", ROOT / "tests" / "sim")
    paths = [path for name in (*files, home) for folder in folders if (path := folder / name).exists()]
    assert len(paths) >= len(files), f"{leak}: {files} are not all there"
    text = "".join(path.read_text() for path in paths)
    missing = [name for name in names if not re.search(rf"(def|class) {name}\b", text)]
    assert not missing, f"{leak}: {missing} are not in {[path.name for path in paths]}"
