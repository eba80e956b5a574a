"""`make conformance`: run every probe on every breaker, and print docs/conformance.md."""

import sys
from collections.abc import Iterator

from tests.conformance.breakers import LIBRARIES, OURS, Subject
from tests.conformance.probes import FAILURES, PROBES, Finding, run

PREAMBLE = f"""# Circuit breakers under the same probes

Written by `make conformance`, which runs `tests/conformance`; a test fails where the probes see anything else.

Every breaker opens at {FAILURES} failures in a row and is closed by one successful probe; other settings are defaults.
Each library is used as its own documentation shows for asynchronous code, at the edge that its column names (hyx has
two), and lives by a clock that only the probe moves. **Bold** is what was seen instead of what is right. A storm is of
{OURS[0].rejections:,} rejections for ours, {Subject.rejections:,} for the libraries. What a call costs: `make bench`.
"""


Findings = dict[str, dict[type[Subject], Finding]]


def main() -> None:
    """Print the page."""
    sys.stdout.write(page(findings()))


def findings() -> Findings:
    """Put every breaker through every probe."""
    return {name: {kind: run(probe, kind) for kind in (*OURS, *LIBRARIES)} for name, (_, probe) in PROBES.items()}


def page(found: Findings) -> str:
    """Return the page that tells what was found."""
    return "\n".join((PREAMBLE, *_rows(found), ""))


def _rows(found: Findings) -> Iterator[str]:
    kinds = (*OURS, *LIBRARIES)
    yield _row("probe", "right is", *(_heading(kind) for kind in kinds))
    yield "|---" * (len(kinds) + 2) + "|"
    for name, (right, _) in PROBES.items():
        yield _row(name, right, *(_cell(found[name][kind]) for kind in kinds))
    sums = (sum(by_kind[kind].right is True for by_kind in found.values()) for kind in kinds)
    yield _row(f"right, of {len(PROBES)}", "", *map(str, sums))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _heading(kind: type[Subject]) -> str:
    return f"{kind.library} {kind.version()}".strip() + f", `{kind.edge}`"


def _cell(finding: Finding) -> str:
    if finding.right:
        return f"ok ({finding.saw})" if finding.saw else "ok"
    return finding.saw if finding.right is None else f"**{finding.saw}**"


if __name__ == "__main__":
    main()
