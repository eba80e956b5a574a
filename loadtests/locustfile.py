"""Smoke profile: a few users chat with the service at `--host`; the exit code is gated (see `loadtests.gates`).

locust -f loadtests/locustfile.py --headless --users 10 --run-time 20s --host http://127.0.0.1:8000
"""

import logging
from typing import Any

from locust import events
from locust.runners import WorkerRunner

from loadtests import gates
from loadtests.users import ChatUser

__all__ = ["ChatUser"]

log = logging.getLogger("loadtests")


def _arguments(parser: Any, **_: Any) -> None:
    gates.add_arguments(parser)


def _verdict(environment: Any, **_: Any) -> None:
    if isinstance(environment.runner, WorkerRunner):
        return  # the master has the sums
    found = gates.judge(environment)
    for each in found:
        log.error("gate: %s", each)
    log.info("gates: %s", "failed" if found else "passed")


events.init_command_line_parser.add_listener(_arguments)  # type: ignore[no-untyped-call]
events.quitting.add_listener(_verdict)  # type: ignore[no-untyped-call]
