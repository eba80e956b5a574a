"""The README's `curl` examples, run as written against a live service."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.processes import LiveService
from orchestra.config import Settings

README = Path(__file__).parents[2] / "README.md"
BLOCKS = [block for block in re.findall(r"```bash\n(.*?)```", README.read_text(), re.DOTALL) if "curl" in block]
DEFAULT = f"http://{Settings().host}:{Settings().port}"


def run(service: LiveService, block: str) -> str:
    """Run a block in a shell; only the port is another, since the default one may be taken here."""
    assert DEFAULT in block, f"the examples speak to the default address, {DEFAULT}"
    script = "set -eu\n" + block.replace(DEFAULT, service.url)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def outputs(service: LiveService) -> list[str]:
    """What each block prints, in the order of the README."""
    return [run(service, block) for block in BLOCKS]


def test_the_examples_do_what_the_text_around_them_says(outputs: list[str]) -> None:
    first, second, mistake, probes, streamed = outputs
    assert json.loads(first)["session_id"]
    recalled = json.loads(second)
    assert [each["text"] for each in recalled["recalled"]] == ["Hello, my name is Ada and I sail on Lake Geneva"]
    assert recalled["session_id"] != json.loads(first)["session_id"]
    assert recalled["correlation_id"] == "readme-2"
    problem = json.loads(mistake)
    assert (problem["status"], problem["field"]) == (400, "$.message")
    assert probes.startswith('{"status":"ready"')
    assert "orchestra_turns_total" in probes
    names = [line.removeprefix("event: ") for line in streamed.splitlines() if line.startswith("event: ")]
    assert (names[0], names[-1]) == ("started", "done")
    assert "delta" in names


def test_the_sdk_does_what_the_examples_show(service: LiveService) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    script = "\n".join(block for block in blocks if "chat" in block).replace(DEFAULT, service.url)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.count("I have noted") == 3


def test_the_readme_opens_with_its_two_commands() -> None:
    commands = [line.split()[:2] for line in README.read_text().splitlines() if line.startswith("    make ")]
    assert commands[:2] == [["make", "demo"], ["make", "test"]]
