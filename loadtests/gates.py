"""The gates that a load run must pass, and the exit code that says whether it did.

Locust exits 0 after a run that sent nothing, and knows no percentile thresholds. Here a run without requests fails, as
do too many failures and a p95 over its bound. Thresholds are arguments of `locust` or environment variables.

Locust keeps latencies in buckets of two significant digits, so a p95 is exact to about 5 %.
"""

from argparse import ArgumentParser
from dataclasses import dataclass
from typing import Any

EXIT_GATE = 99
"""Status of a run that a gate failed, as k6 has it: tells a slow service from a broken load generator (1, 2)."""


@dataclass(frozen=True)
class Gates:
    """What a run must hold.

    Parameters
    ----------
    failure_percent_max : float
        Requests that may fail, in percent of all.
    p95_ms_max : float
        95th percentile of the latency of all requests, in milliseconds.
    requests_min : int
        Requests that must have ended, whatever their outcome.
    """

    failure_percent_max: float = 0.0
    p95_ms_max: float = 500.0
    requests_min: int = 1


@dataclass(frozen=True)
class Measured:
    """What a run saw."""

    requests: int
    failures: int
    p95_ms: float
    exceptions: int = 0


def violations(measured: Measured, gates: Gates) -> list[str]:
    """Return one sentence for each gate that `measured` fails; none means that the run passed."""
    found = []
    if measured.exceptions:
        found.append(f"{measured.exceptions} kinds of exception in the users' own code: see the summary above")
    if measured.requests < gates.requests_min:
        found.append(
            f"{measured.requests} requests ended, at least {gates.requests_min} must: is the service up at --host?"
        )
    if not measured.requests:
        return found
    percent = 100.0 * measured.failures / measured.requests
    if percent > gates.failure_percent_max:
        found.append(
            f"{measured.failures} of {measured.requests} requests failed ({percent:.2f} %), "
            f"at most {gates.failure_percent_max:g} % may"
        )
    if measured.p95_ms > gates.p95_ms_max:
        found.append(f"p95 is {measured.p95_ms:g} ms, at most {gates.p95_ms_max:g} ms is allowed")
    return found


def add_arguments(parser: ArgumentParser) -> None:
    """Add one argument of `locust` for each gate."""
    group: Any = parser.add_argument_group("gates", "what the run must hold, else it exits with 99")
    defaults = Gates()
    for name, kind, meaning in (
        ("failure_percent_max", float, "requests that may fail, in percent"),
        ("p95_ms_max", float, "95th percentile of the latency, in milliseconds"),
        ("requests_min", int, "requests that must have ended"),
    ):
        group.add_argument(
            f"--gate-{name.replace('_', '-')}",
            type=kind,
            default=getattr(defaults, name),
            env_var=f"LOCUST_GATE_{name.upper()}",
            help=f"{meaning} (default: %(default)s)",
        )


def judge(environment: Any) -> list[str]:
    """Judge a Locust environment at its end, set its exit code, and return what failed."""
    total, options = environment.stats.total, environment.parsed_options
    p95_ms = total.get_response_time_percentile(0.95) or 0.0
    measured = Measured(total.num_requests, total.num_failures, p95_ms, len(environment.runner.exceptions))
    gates = Gates(options.gate_failure_percent_max, options.gate_p95_ms_max, options.gate_requests_min)
    found = violations(measured, gates)
    # an explicit 0 as well: by itself Locust exits 1 after any failure, also one that the gate allows
    environment.process_exit_code = EXIT_GATE if found else 0
    return found
