"""Telemetry: logs, traces and metrics, all fed by the one event hook."""

import sys
from dataclasses import dataclass
from typing import Protocol

from orchestra.config import Settings
from orchestra.events import Hook, fan_out
from orchestra.telemetry.logs import Logs, correlation
from orchestra.telemetry.metrics import Metrics
from orchestra.telemetry.traces import Traces

__all__ = ["Logs", "Metrics", "Telemetry", "Traces", "correlation", "telemetry"]


class _Clock(Protocol):
    """The port `Clock`, of which telemetry knows no more than this."""

    def now(self) -> float: ...


@dataclass(frozen=True)
class Telemetry:
    """Where events go: give `hook` to whatever tells them, serve `metrics.render()`, and `close` at the end."""

    hook: Hook
    logs: Logs
    metrics: Metrics
    traces: Traces | None

    def close(self) -> None:
        """Send the traces that wait, and give Python's root logger back."""
        if self.traces is not None:
            self.traces.close()
        self.logs.close()


def telemetry(settings: Settings, clock: _Clock) -> Telemetry:
    """Set up logs on standard error, metrics, and traces where `settings.otlp_endpoint` says where to.

    Parameters
    ----------
    settings : Settings
        `log_level`, `log_format` (``auto`` means JSON unless standard error is a terminal) and `otlp_endpoint`.
    clock : Clock
        Wall time for lines and spans.
    """
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    logs = Logs(level=settings.log_level, as_json=as_json, now=clock.now, stream=sys.stderr)
    metrics = Metrics()
    traces = Traces(settings.otlp_endpoint, clock.now) if settings.otlp_endpoint else None
    hooks = [logs.hook, metrics.hook] + ([traces.hook] if traces else [])
    return Telemetry(fan_out(*hooks), logs, metrics, traces)
