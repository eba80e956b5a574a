"""The provider model against theory: waits, queues, blocking and sharing that queueing theory has solved.

Seeds are fixed, so nothing here can flake; they were chosen before the first run (`tests.sim.theory.SEED`).
"""

import pytest
from scipy.stats import binom

from tests.sim.theory import (
    COVERAGE,
    COVERAGE_EXPERIMENTS,
    FULL,
    SAMPLE,
    SEED,
    erlang_b,
    erlang_c,
    everything,
    findings,
    jointly,
    page,
    pollaczek_khinchine,
    queues,
    slower,
)

JOINTLY = jointly(sum(len(queue.checks) for queue in queues()))


@pytest.mark.parametrize("queue", queues(), ids=lambda queue: queue.name.partition(",")[0])
def test_a_sample_agrees_with_theory_at_the_joint_level(queue):
    for finding in findings(queue, SAMPLE):
        assert finding.covers(JOINTLY), (finding.check.what, finding.check.truth, finding.estimate(JOINTLY))


def test_a_sample_notices_a_model_that_is_a_fifth_too_slow():
    first, *_ = queues()
    noticed = [finding.check.what for finding in findings(slower(first, 1.2), SAMPLE) if not finding.covers(JOINTLY)]
    assert "probability of waiting" in noticed
    assert "mean stay, s" in noticed


def covering(experiments: int) -> int:
    """How many of so many small experiments have the true mean stay of an M/M/1 within their interval at 95 %."""
    first, *_ = queues()
    quiet = first._replace(rate=0.3, checks=tuple(first.checks[2:3]))
    stay = quiet.checks[0]._replace(truth=1 / 0.7)
    quiet = quiet._replace(checks=(stay,))
    return sum(findings(quiet, COVERAGE, SEED + number)[0].covers() for number in range(1, experiments + 1))


@pytest.mark.parametrize("experiments", [25, pytest.param(COVERAGE_EXPERIMENTS, marks=pytest.mark.nightly)])
def test_as_many_intervals_hold_the_truth_as_they_promise(experiments):
    low, high = binom.interval(0.998, experiments, 0.95)
    assert low <= covering(experiments) <= high


@pytest.mark.nightly
def test_every_truth_lies_in_its_interval_and_the_page_says_what_was_found(pytestconfig):
    found = everything(FULL)
    assert [finding.check.what for finding in found if not finding.covers(JOINTLY)] == []
    misses = sum(not finding.covers() for finding in found)
    assert misses <= binom.ppf(0.999, len(found), 0.05)
    written = (pytestconfig.rootpath / "docs" / "fidelity.md").read_text(encoding="utf-8")
    assert page(found) == written, "docs/fidelity.md is not what is found now: run make fidelity"


@pytest.mark.nightly
@pytest.mark.parametrize("queue", queues(), ids=lambda queue: queue.name.partition(",")[0])
def test_every_row_notices_a_model_that_is_five_percent_too_slow(queue):
    for finding in findings(slower(queue), FULL):
        assert not finding.covers(), (finding.check.what, finding.check.truth, finding.estimate())


def test_the_page_has_a_row_for_every_check(pytestconfig):
    written = (pytestconfig.rootpath / "docs" / "fidelity.md").read_text(encoding="utf-8")
    rows = [line for line in written.splitlines() if line.startswith("| M/")]
    assert len(rows) == sum(len(queue.checks) for queue in queues())
    for row, check in zip(rows, (check for queue in queues() for check in queue.checks), strict=True):
        assert f"| {check.what} | {check.truth:.4f} |" in row
    assert "**no**" not in written


def test_formulas_are_those_of_the_tables():
    """Erlang's tables: 5 servers at 4 erlangs lose 19.91 %, and with a queue 55.41 % wait; M/M/1 is M/G/1's case."""
    assert erlang_b(5, 4.0) == pytest.approx(0.1991, abs=5e-5)
    assert erlang_c(5, 4.0) == pytest.approx(0.5541, abs=5e-5)
    assert erlang_c(1, 0.6) == pytest.approx(0.6)
    assert pollaczek_khinchine(0.6, 1.0, 1.0) == pytest.approx(1.5)
