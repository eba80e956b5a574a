"""The house rules of docs/decisions.md and CONTRIBUTING.md that a machine can hold, each with its cure.

A rule is a function of one file that yields violations. Every rule is itself shown a planted violation, and its
nearest innocent neighbour: a check that cannot fail proves nothing.
"""

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("orchestra", "sim", "chaos", "loadtests")
FUNCTION_LINES_MAX = 60


@dataclass(frozen=True)
class Source:
    """One file of the project: its path from the root, with forward slashes, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def parts(self) -> tuple[str, ...]:
        """The dotted module name in parts: ``orchestra/chat/__init__.py`` is ``("orchestra", "chat")``."""
        parts = Path(self.path).with_suffix("").parts
        return parts[:-1] if parts[-1] == "__init__" else parts

    @property
    def in_packages(self) -> bool:
        return self.path.endswith(".py") and self.path.split("/")[0] in PACKAGES


@dataclass(frozen=True)
class Violation:
    line: int
    what: str
    cure: str


Rule = Callable[[Source], Iterator[Violation]]


# --- import layers ------------------------------------------------------------------------------------------------

_GROUND = {"model", "errors", "limits", "events", "policies", "frames"}
_MIDDLE = {"engines", "resilience", "security"}
_BELOW_MIDDLE = _GROUND | {"ports", "config", "container"}

MAY_IMPORT: dict[str, set[str]] = {
    "model": {"limits"},
    "errors": {"limits"},
    "frames": {"model", "limits"},
    "limits": set(),
    "policies": {"limits", "errors"},
    "events": {"model", "errors", "limits"},
    "ports": _GROUND,
    "config": _GROUND,
    "container": _GROUND,
    "engines": _BELOW_MIDDLE,
    "resilience": _BELOW_MIDDLE,
    "security": _BELOW_MIDDLE,
    "chat": _BELOW_MIDDLE | _MIDDLE,
    "compose": _BELOW_MIDDLE | _MIDDLE | {"chat"},
    "gateway": _BELOW_MIDDLE | _MIDDLE | {"chat", "compose", "adapters", "telemetry"},
    "cli": _BELOW_MIDDLE | _MIDDLE | {"chat", "compose", "adapters", "telemetry", "gateway", "sdk"},
    "adapters": _GROUND | {"ports", "config"},
    "telemetry": {"model", "events", "config"},
    "sdk": {"model", "errors", "limits", "frames"},
    "__main__": {"cli"},
}
"""What each room of `orchestra` may import beside itself. A room is a module or a folder directly under it."""


def imported(source: Source) -> Iterator[tuple[int, str]]:
    """Yield line and absolute dotted name of everything a file imports, also inside functions and by name."""
    package = source.parts if source.path.endswith("__init__.py") else source.parts[:-1]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join((*base, *((node.module,) if node.module else ())))
            yield from ((node.lineno, f"{stem}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and _last_name(node.func) in {"import_module", "__import__"} and node.args:
            match node.args[0]:
                case ast.Constant(value=str() as name):
                    yield node.lineno, name


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def layers_between_packages(source: Source) -> Iterator[Violation]:
    """chaos -> sim -> orchestra; loadtests uses orchestra.sdk and sim.workload; nobody imports tests."""
    if not source.in_packages:
        return
    package = source.parts[0]
    below = {"orchestra": (), "sim": ("orchestra",), "chaos": ("sim", "orchestra")}
    for line, name in imported(source):
        head = name.split(".")[0]
        if head == package or head not in (*PACKAGES, "tests"):
            continue
        if package == "loadtests":
            if not re.match(r"(orchestra\.sdk|sim\.workload)(\.|$)", name):
                yield Violation(
                    line,
                    f"loadtests imports {name}",
                    "load tests see the service from outside: use orchestra.sdk or sim.workload, or plain HTTP",
                )
        elif head not in below[package]:
            yield Violation(
                line,
                f"{package} imports {name}",
                "imports point down only, chaos -> sim -> orchestra: move the shared part down, or pass it in "
                "(sub-commands come through the entry-point group orchestra.commands)",
            )


def layers_inside_orchestra(source: Source) -> Iterator[Violation]:
    """cli -> gateway -> compose -> chat -> engines | security | resilience -> ports ... -> model ..."""
    if not source.in_packages or source.parts[0] != "orchestra" or len(source.parts) == 1:
        return
    room = source.parts[1]
    if room not in MAY_IMPORT:
        yield Violation(1, f"orchestra/{room} has no place in the layers", "give it a line in MAY_IMPORT of this test")
        return
    for line, name in imported(source):
        head, _, rest = name.partition(".")
        other = rest.split(".")[0]
        if head == "orchestra" and other in MAY_IMPORT and other != room and other not in MAY_IMPORT[room]:
            yield Violation(line, f"orchestra.{room} imports orchestra.{other}", _layer_cure(room, other))


def _layer_cure(room: str, other: str) -> str:
    if other in {"adapters", "telemetry"}:
        return f"name a port (orchestra.ports) or the event hook instead; the callers of compose choose the {other}"
    if (room, other) == ("engines", "resilience"):
        return "an engine does its work and raises; compose wraps it in its guard"
    return "imports point down only: move what both need into a lower room, or have it passed in by compose"


# --- time, chance and ids are passed in ---------------------------------------------------------------------------

_BANNED_MODULES = {
    "time": "monotonic time is asyncio.get_running_loop().time(), sleeping asyncio.sleep, wall time the Clock port",
    "random": "chance is the Entropy port",
    "uuid": "ids are Entropy.hex",
    "secrets": "ids and tokens are Entropy.hex",
    "threading": "one event loop, no threads: await, or put the blocking part behind a port",
    "_thread": "one event loop, no threads: await, or put the blocking part behind a port",
    "concurrent": "one event loop, no executors: await, or put the blocking part behind a port",
    "multiprocessing": "processes are started by gateway/workers.py and adapters/embedded alone",
}
_BANNED_NAMES = {
    "datetime.datetime.now": "wall time is the Clock port",
    "datetime.datetime.utcnow": "wall time is the Clock port",
    "datetime.datetime.today": "wall time is the Clock port",
    "datetime.date.today": "wall time is the Clock port",
    "os.urandom": "chance is the Entropy port",
    "os.getrandom": "chance is the Entropy port",
    "asyncio.to_thread": "one event loop, no threads: await, or put the blocking part behind a port",
}
_BANNED_METHODS = {"run_in_executor": "one event loop, no executors: await, or put the blocking part behind a port"}


def _meets_the_outside(source: Source) -> bool:
    """Who is there to ask the machine for time and chance, here and at a client's, and who starts processes."""
    path = r"orchestra/(adapters/(system\.py|embedded)|gateway/workers\.py|sdk/system\.py$)"
    return re.match(path, source.path) is not None


def no_global_time_or_chance(source: Source) -> Iterator[Violation]:
    """Only adapters/system.py, adapters/embedded*, sdk/system.py and gateway/workers.py ask the machine for these."""
    if not source.in_packages or source.parts[0] != "orchestra" or _meets_the_outside(source):
        return
    for line, name in imported(source):
        for banned in (_BANNED_MODULES.get(name.split(".")[0]), _BANNED_NAMES.get(name)):
            if banned:
                yield Violation(line, f"imports {name}", banned)
    aliases = _aliases(source.tree)
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Attribute):
            continue
        name = _qualified(node, aliases)
        if cure := _BANNED_NAMES.get(name) or _BANNED_METHODS.get(node.attr):
            yield Violation(node.lineno, f"uses {name or node.attr}", cure)


def _aliases(tree: ast.Module) -> dict[str, str]:
    """Map every name that an import binds to what it stands for: ``from datetime import datetime as d``."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                head = alias.name.split(".")[0]  # `import os.path` binds os, `import os.path as p` binds the whole
                names[alias.asname or head] = alias.name if alias.asname else head
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _qualified(node: ast.expr, aliases: dict[str, str]) -> str:
    """Return the dotted name an attribute access stands for, or "" where it is one of a value."""
    if isinstance(node, ast.Attribute):
        stem = _qualified(node.value, aliases)
        return f"{stem}.{node.attr}" if stem else ""
    return aliases.get(node.id, "") if isinstance(node, ast.Name) else ""


# --- ordered iteration --------------------------------------------------------------------------------------------


def no_iteration_over_a_set(source: Source) -> Iterator[Violation]:
    """A set's order depends on the hash seed, so a run that iterates one cannot be reproduced."""
    if not source.in_packages or source.parts[0] != "orchestra" or _meets_the_outside(source):
        return
    known = _names_of_sets(source.tree)
    for line, iterated in _iterations(source.tree):
        if _is_set(iterated) or ast.unparse(iterated) in known:
            yield Violation(
                line,
                f"iterates the set {ast.unparse(iterated)}",
                "iterate sorted(...), or keep the members in a dict or tuple, which have an order",
            )


def _is_set(node: ast.expr | None) -> bool:
    if isinstance(node, ast.Set | ast.SetComp):
        return True
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"set", "frozenset"}


def _names_of_sets(tree: ast.Module) -> set[str]:
    """Return what the file itself shows to be a set: assigned from one, annotated as one, or given by asyncio.wait."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and _is_set(node.value):
            names |= {ast.unparse(target) for target in node.targets}
        elif isinstance(node, ast.AnnAssign) and re.match(r"(frozen)?set\b", ast.unparse(node.annotation)):
            names.add(ast.unparse(node.target))
        elif (
            isinstance(node, ast.arg) and node.annotation and re.match(r"(frozen)?set\b", ast.unparse(node.annotation))
        ):
            names.add(node.arg)
        elif isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("await asyncio.wait("):
            for target in node.targets:
                names |= {ast.unparse(each) for each in getattr(target, "elts", ())}
    return names


def _iterations(tree: ast.Module) -> Iterator[tuple[int, ast.expr]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.For | ast.AsyncFor):
            yield node.lineno, node.iter
        elif isinstance(node, ast.comprehension):
            yield node.iter.lineno, node.iter
        elif isinstance(node, ast.Starred):
            yield node.lineno, node.value
        elif isinstance(node, ast.Call) and _last_name(node.func) in {"list", "tuple", "enumerate", "iter", "join"}:
            yield from ((node.lineno, argument) for argument in node.args[:1])


# --- shape of the code --------------------------------------------------------------------------------------------


def module_docstring(source: Source) -> Iterator[Violation]:
    """A module opens with its purpose."""
    if source.in_packages and ast.get_docstring(source.tree) is None:
        yield Violation(1, "has no module docstring", "open the file with one sentence that says what it is for")


def function_fits_a_screen(source: Source) -> Iterator[Violation]:
    """No function is longer than FUNCTION_LINES_MAX lines, its docstring not counted."""
    if not source.in_packages:
        return
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.end_lineno is None:
            continue
        lines = node.end_lineno - node.lineno + 1
        if ast.get_docstring(node) is not None and node.body[0].end_lineno is not None:
            lines -= node.body[0].end_lineno - node.body[0].lineno + 1
        if lines > FUNCTION_LINES_MAX:
            yield Violation(
                node.lineno,
                f"{node.name} has {lines} lines, more than {FUNCTION_LINES_MAX}",
                "split it into steps that each have a name, so that it fits a screen",
            )


_UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX)\b(?!.*#\d+)")


def unfinished_names_its_issue(source: Source) -> Iterator[Violation]:
    """What is left for later names the issue that holds it."""
    if not source.path.endswith((".py", ".sql", ".sh", ".yaml", ".yml", ".toml", "Makefile", "Dockerfile", "run")):
        return
    for number, line in enumerate(source.text.splitlines(), 1):
        if match := _UNFINISHED.search(line):
            yield Violation(number, f"{match[1]} without an issue", "do it now, or name the issue that holds it (#12)")


def no_mocks(source: Source) -> Iterator[Violation]:
    """No test double that only a test knows."""
    if not source.path.startswith("tests/") or not source.path.endswith(".py"):
        return
    for line, name in imported(source):
        if re.match(r"(unittest\.mock|mock|pytest_mock|pytest_asyncio|freezegun|time_machine|fakeredis)(\.|$)", name):
            yield Violation(
                line,
                f"imports {name}",
                "use the in-process or modelled implementation of the port (it passes the contract suite), real "
                "servers, and asyncio.run",
            )


def no_locust_in_tests(source: Source) -> Iterator[Violation]:
    """Importing Locust patches sockets, threads and time of the whole test process for gevent."""
    if not source.path.startswith("tests/") or not source.path.endswith(".py"):
        return
    for line, name in imported(source):
        if re.match(r"(locust|gevent|loadtests\.(users|locustfile))(\.|$)", name):
            yield Violation(line, f"imports {name}", "run Locust as a process (python -m locust -f ...)")


_HYPOTHESIS = {"given", "rule", "invariant", "initialize", "precondition", "composite"}


def no_async_under_hypothesis(source: Source) -> Iterator[Violation]:
    """Hypothesis awaits nothing: an `async def` rule with a target passes silently, and others did before 6.170."""
    if not source.path.startswith("tests/") or not source.path.endswith(".py"):
        return
    aliases = _aliases(source.tree)
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.AsyncFunctionDef):
            continue
        for decorator in node.decorator_list:
            name = _qualified(decorator.func if isinstance(decorator, ast.Call) else decorator, aliases)
            last = name.rpartition(".")[2]
            if name.startswith("hypothesis.") and last in _HYPOTHESIS:
                yield Violation(
                    node.lineno,
                    f"async def {node.name} under @{last}",
                    "make it a plain def that runs its coroutine to the end itself: asyncio.run(...), or a loop that "
                    "the machine keeps (loop.run_until_complete, or sim.loop.run for virtual time)",
                )


# --- what must not be committed -----------------------------------------------------------------------------------

_MACHINE_PATH = re.compile(r"(?<![\w.$}/-])/(?:home|root|Users|work)/\w")
_REGISTRY = re.compile(
    # a bracket in each, so that this file keeps the rule that it holds
    r"py[p]i\.org|python[h]osted\.|npm[j]s\.|proxy\.go[l]ang"
    r"|(?<!no-)\b(?:extra-)?index-url\b|--find-links|--trusted-host"
)


def no_machine_paths(source: Source) -> Iterator[Violation]:
    """No committed file knows where it was written."""
    for number, line in enumerate(source.text.splitlines(), 1):
        if match := _MACHINE_PATH.search(line):
            yield Violation(
                number,
                f"names a path of one machine ({line[match.start() : match.start() + 40]})",
                "use a path relative to the project, a setting, or tmp_path",
            )


def no_registry_addresses(source: Source) -> Iterator[Violation]:
    """Where packages come from is each machine's own setting."""
    if source.path == "tests/test_tidy.py":
        return
    for number, line in enumerate(source.text.splitlines(), 1):
        if match := _REGISTRY.search(line):
            yield Violation(
                number,
                f"names a package registry ({match[0]})",
                "name the package and its version only; pip's own configuration says where from",
            )


# --- documents ----------------------------------------------------------------------------------------------------

_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(\s*<?([^)\s>]+)|^ {0,3}\[[^]\n]+\]:\s*<?([^\s>]+)", re.MULTILINE)


def links_lead_somewhere(source: Source) -> Iterator[Violation]:
    """A relative link of a document leads to a file of the project."""
    if not source.path.endswith(".md"):
        return
    # code shows links and is none; its lines still count
    text = _CODE.sub(lambda code: "\n" * code[0].count("\n"), source.text)
    for match in _LINK.finditer(text):
        target = match[1] or match[2]
        if re.match(r"[a-z][a-z0-9+.-]*:|#", target, re.IGNORECASE):  # of the web, or a place in the same document
            continue
        led = (ROOT / source.path).parent.joinpath(unquote(target.partition("#")[0])).resolve()
        if not led.is_relative_to(ROOT) or not led.exists():
            yield Violation(
                text.count("\n", 0, match.start()) + 1,
                f"links to {target}, which is not there",
                "correct the path, which starts from the document's own folder, or remove the link",
            )


RULES: tuple[Rule, ...] = (
    layers_between_packages,
    layers_inside_orchestra,
    no_global_time_or_chance,
    no_iteration_over_a_set,
    module_docstring,
    function_fits_a_screen,
    unfinished_names_its_issue,
    no_mocks,
    no_locust_in_tests,
    no_async_under_hypothesis,
    no_machine_paths,
    no_registry_addresses,
    links_lead_somewhere,
)


# --- the project ----------------------------------------------------------------------------------------------------


def committed_files() -> list[Path]:
    """Return what git tracks (staged files too), or every file of a copy that has no git."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode == 0:
        files = [ROOT / name for name in listing.stdout.decode().split("\0") if name]
    else:
        skipped = {".venv", ".git", ".orchestra", "__pycache__"}
        files = [path for path in ROOT.rglob("*") if not skipped & set(path.relative_to(ROOT).parts)]
    return sorted(path for path in files if path.is_file())


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    found = []
    for path in committed_files():
        try:
            found.append(Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue  # a picture or another binary
    return found


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_project_keeps(rule: Rule, sources: list[Source]) -> None:
    found = [
        f"{source.path}:{violation.line}: {violation.what}\n    cure: {violation.cure}"
        for source in sources
        for violation in rule(source)
    ]
    assert not found, f"{rule.__doc__}\n" + "\n".join(found)


def test_every_package_is_seen(sources: list[Source]) -> None:
    assert {source.path.split("/")[0] for source in sources if source.in_packages} == set(PACKAGES)


# --- the rules themselves -------------------------------------------------------------------------------------------

LONG = "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX
HOME = "/ho" + "me/someone/project"

PLANTED: list[tuple[Rule, str, str, str]] = [
    (layers_between_packages, "orchestra/chat/x.py", "import sim.world", "orchestra imports sim.world"),
    (layers_between_packages, "orchestra/cli.py", "import importlib\nimportlib.import_module('sim.cli')", "sim.cli"),
    (layers_between_packages, "sim/x.py", "def f():\n    from chaos import live", "sim imports chaos.live"),
    (layers_between_packages, "sim/x.py", "from tests import helper", "sim imports tests.helper"),
    (layers_between_packages, "loadtests/x.py", "from orchestra import model", "loadtests imports orchestra.model"),
    (layers_between_packages, "loadtests/x.py", "from sim.world import World", "loadtests imports sim.world.World"),
    (layers_inside_orchestra, "orchestra/model.py", "from orchestra.chat import sessions", "imports orchestra.chat"),
    (layers_inside_orchestra, "orchestra/engines/x.py", "from orchestra.resilience.breaker import B", "resilience"),
    (layers_inside_orchestra, "orchestra/engines/x.py", "from ..resilience import breaker", "orchestra.resilience"),
    (layers_inside_orchestra, "orchestra/chat/__init__.py", "from .. import gateway", "imports orchestra.gateway"),
    (layers_inside_orchestra, "orchestra/compose.py", "from orchestra.adapters import redis", "orchestra.adapters"),
    (layers_inside_orchestra, "orchestra/chat/x.py", "from orchestra.telemetry.logs import log", "orchestra.telemetry"),
    (layers_inside_orchestra, "orchestra/adapters/x.py", "import orchestra.compose", "imports orchestra.compose"),
    (layers_inside_orchestra, "orchestra/telemetry/x.py", "from orchestra.ports import Clock", "orchestra.ports"),
    (layers_inside_orchestra, "orchestra/attic/x.py", "", "orchestra/attic has no place"),
    (no_global_time_or_chance, "orchestra/chat/x.py", "import time as t", "imports time"),
    (no_global_time_or_chance, "orchestra/chat/x.py", "from time import monotonic as m", "imports time.monotonic"),
    (no_global_time_or_chance, "orchestra/chat/x.py", "from random import random", "imports random.random"),
    (no_global_time_or_chance, "orchestra/chat/x.py", "import uuid", "imports uuid"),
    (no_global_time_or_chance, "orchestra/adapters/redis.py", "import secrets", "imports secrets"),
    (no_global_time_or_chance, "orchestra/chat/x.py", "import threading", "imports threading"),
    (no_global_time_or_chance, "orchestra/sdk/client.py", "import time\ntime.sleep(1)", "imports time"),
    (no_global_time_or_chance, "orchestra/chat/x.py", "from concurrent.futures import Executor", "concurrent"),
    (no_global_time_or_chance, "orchestra/chat/x.py", "from datetime import datetime as d\nd.now()", "datetime.now"),
    (no_global_time_or_chance, "orchestra/chat/x.py", "import datetime\nf = datetime.date.today", "date.today"),
    (no_global_time_or_chance, "orchestra/chat/x.py", "import os\nos.urandom(8)", "uses os.urandom"),
    (no_global_time_or_chance, "orchestra/chat/x.py", "from os import urandom", "imports os.urandom"),
    (no_global_time_or_chance, "orchestra/chat/x.py", "import asyncio\nasyncio.to_thread(f)", "uses asyncio.to_thread"),
    (no_global_time_or_chance, "orchestra/chat/x.py", "loop.run_in_executor(None, f)", "uses run_in_executor"),
    (no_iteration_over_a_set, "orchestra/chat/x.py", "for x in {1, 2}: pass", "iterates the set {1, 2}"),
    (no_iteration_over_a_set, "orchestra/chat/x.py", "[x for x in set(y)]", "iterates the set set(y)"),
    (no_iteration_over_a_set, "orchestra/chat/x.py", "list({x for x in y})", "iterates the set {x for x in y}"),
    (no_iteration_over_a_set, "orchestra/chat/x.py", "self.t: set[T] = set()\nf(*self.t)", "iterates the set self.t"),
    (no_iteration_over_a_set, "orchestra/chat/x.py", "def f(t: frozenset[int]):\n    for x in t: pass", "the set t"),
    (no_iteration_over_a_set, "orchestra/x.py", "done, rest = await asyncio.wait(t)\nfor x in done: pass", "set done"),
    (module_docstring, "sim/x.py", "import simpy", "has no module docstring"),
    (function_fits_a_screen, "chaos/x.py", LONG, f"f has {FUNCTION_LINES_MAX + 1} lines"),
    (unfinished_names_its_issue, "sim/x.py", "x = 1  # TO" + "DO later", "without an issue"),
    (unfinished_names_its_issue, "Makefile", "# FIX" + "ME", "without an issue"),
    (no_mocks, "tests/unit/x.py", "from unittest import mock", "imports unittest.mock"),
    (no_mocks, "tests/unit/x.py", "import pytest_asyncio", "imports pytest_asyncio"),
    (no_locust_in_tests, "tests/unit/x.py", "from loadtests.users import ChatUser", "imports loadtests.users"),
    (
        no_async_under_hypothesis,
        "tests/x.py",
        "from hypothesis import given as g\n@g(x)\nasync def f(x): pass",
        "async def f under @given",
    ),
    (
        no_async_under_hypothesis,
        "tests/property/x.py",
        "from hypothesis.stateful import rule\nclass M:\n    @rule(target=b)\n    async def go(self): pass",
        "async def go under @rule",
    ),
    (
        no_async_under_hypothesis,
        "tests/property/x.py",
        "from hypothesis import stateful\nclass M:\n    @stateful.invariant()\n    async def holds(self): pass",
        "async def holds under @invariant",
    ),
    (
        no_async_under_hypothesis,
        "tests/x.py",
        "from hypothesis.stateful import initialize\nclass M:\n    @initialize()\n    async def start(self): pass",
        "async def start under @initialize",
    ),
    (
        no_async_under_hypothesis,
        "tests/x.py",
        "from hypothesis.stateful import precondition\nclass M:\n    @precondition(p)\n    async def f(self): pass",
        "async def f under @precondition",
    ),
    (
        no_async_under_hypothesis,
        "tests/x.py",
        "from hypothesis import strategies as st\n@st.composite\nasync def things(draw): pass",
        "async def things under @composite",
    ),
    (no_machine_paths, "docs/x.md", f"see {HOME}/x", "path of one machine"),
    (no_machine_paths, "sim/x.py", f"P = '{HOME}'", "path of one machine"),
    (no_registry_addresses, "constraints.txt", "--extra-index-url file:///x", "extra-index-url"),
    (no_registry_addresses, "constraints.txt", "x @ https://files." + "python" + "hosted.org/x.whl", "hosted"),
    (no_registry_addresses, "Dockerfile", "RUN pip install --find-links x", "find-links"),
    (links_lead_somewhere, "docs/x.md", "see [y](docs/decisions.md)", "links to docs/decisions.md"),
    (links_lead_somewhere, "x.md", "see [y](docs/nowhere.md#part)", "links to docs/nowhere.md#part"),
    (links_lead_somewhere, "x.md", "see ![y](<docs/nowhere.png> 'title')", "links to docs/nowhere.png"),
    (links_lead_somewhere, "x.md", "see [`y`](nowhere.md)", "links to nowhere.md"),
    (links_lead_somewhere, "x.md", "see [y][1]\n\n[1]: nowhere.md", "links to nowhere.md"),
    (links_lead_somewhere, "docs/x.md", "see [y](../..)", "links to ../.."),
]

INNOCENT: list[tuple[Rule, str, str]] = [
    (layers_between_packages, "chaos/x.py", "import sim.world, orchestra.model"),
    (
        layers_between_packages,
        "loadtests/x.py",
        "from orchestra.sdk import Client\nfrom sim import workload\nimport locust",
    ),
    (layers_between_packages, "tests/unit/x.py", "import orchestra, sim, chaos"),
    (layers_inside_orchestra, "orchestra/chat/x.py", "from orchestra.engines.memory import M\nfrom . import sessions"),
    (layers_inside_orchestra, "orchestra/gateway/x.py", "from orchestra.adapters.system import SystemClock"),
    (layers_inside_orchestra, "orchestra/adapters/x.py", "import redis.asyncio\nfrom orchestra.ports import Clock"),
    (no_global_time_or_chance, "orchestra/adapters/system.py", "import time, os\nos.urandom(8)"),
    (no_global_time_or_chance, "orchestra/gateway/workers.py", "import multiprocessing"),
    (no_global_time_or_chance, "orchestra/sdk/system.py", "import time\ntime.sleep(1)"),
    (no_global_time_or_chance, "orchestra/chat/x.py", "import asyncio\nasyncio.get_running_loop().time()\nclock.now()"),
    (
        no_global_time_or_chance,
        "orchestra/chat/x.py",
        "from datetime import UTC, datetime\ndatetime.fromtimestamp(0, UTC)",
    ),
    (no_global_time_or_chance, "sim/x.py", "import random"),
    (no_iteration_over_a_set, "orchestra/chat/x.py", "for x in sorted({1, 2}): pass\nif 1 in {1, 2}: pass"),
    (no_iteration_over_a_set, "orchestra/chat/x.py", "t = dict.fromkeys(y)\nfor x in t: pass\nlen(set(y))"),
    (module_docstring, "sim/x.py", '"""Models."""\n'),
    (
        function_fits_a_screen,
        "chaos/x.py",
        "def f():\n    '''Say.\n" + "\n" * FUNCTION_LINES_MAX + "    '''\n    return 1",
    ),
    (unfinished_names_its_issue, "sim/x.py", "x = 1  # TO" + "DO(#12) later"),
    (no_mocks, "tests/unit/x.py", "import asyncio, pytest"),
    (no_locust_in_tests, "tests/unit/x.py", "from loadtests.gates import Gates"),
    (
        no_async_under_hypothesis,
        "tests/x.py",
        "from hypothesis import given\n@given(x)\ndef f(x):\n    async def body(): pass\n    asyncio.run(body())",
    ),
    (no_async_under_hypothesis, "tests/x.py", "from spam import rule\n@rule\nasync def f(): pass"),
    (no_machine_paths, "Dockerfile", "WORKDIR /app\nCOPY ./home/x ../root/y ${X}/home/y"),
    (no_registry_addresses, "constraints.txt", "aiohttp==3.14.5"),
    (links_lead_somewhere, "docs/x.md", "[a](decisions.md#b) [b](../README.md) [c](#d) [d](<decisions.md> 'e') [e](.)"),
    (links_lead_somewhere, "x.md", "[a](https://example.org/nowhere.md) [b](mailto:a@example.org)\n\n[1]: docs/"),
    (links_lead_somewhere, "x.md", "`[a](nowhere)`\n```python\nx[a](nowhere)\n```\n"),
    (links_lead_somewhere, "sim/x.py", "x[a](nowhere)"),
]


@pytest.mark.parametrize(("rule", "path", "text", "fragment"), PLANTED)
def test_rule_sees_a_planted_violation(rule: Rule, path: str, text: str, fragment: str) -> None:
    found = list(rule(Source(path, text)))
    assert any(fragment in violation.what for violation in found), found
    assert all(violation.cure for violation in found)


@pytest.mark.parametrize(("rule", "path", "text"), INNOCENT)
def test_rule_lets_the_innocent_pass(rule: Rule, path: str, text: str) -> None:
    assert list(rule(Source(path, text))) == []


def test_no_rule_is_untested() -> None:
    assert {rule for rule, *_ in PLANTED} == set(RULES) == {rule for rule, *_ in INNOCENT}
