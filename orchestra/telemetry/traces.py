"""Traces: OpenTelemetry spans built from finished events and sent as OTLP over HTTP.

A turn's span has the id that its `traceparent` told the client, which no tracer of the SDK would let us choose; so
finished spans are built here, and the SDK batches and sends them, on its own thread. A turn's calls and store
operations become its children; what took no time (a retry, a hedge, a fallback) becomes an event of its span.
"""

from collections import deque
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

from msgspec import structs
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event as SpanEvent
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from orchestra import __version__
from orchestra.events import (
    CallFinished,
    CallHedged,
    CallRetried,
    Event,
    FellBack,
    StoreFinished,
    TurnFinished,
    TurnStarted,
)
from orchestra.model import TraceContext

SPANS_QUEUED_MAX = 4096
SPANS_BATCHED_MAX = 2048
EXPORT_SECONDS_MAX = 2.0
"""With the queue's bound this bounds `close` where nothing answers: three batches, 6 s."""

CHILDREN_MAX = 128
"""Calls, store operations and moments that one turn may show; its earliest are dropped beyond it."""

Child = CallFinished | StoreFinished
Moment = CallRetried | CallHedged | FellBack


class Traces:
    """Sends a span for each finished turn, call and store operation of a turn.

    Parameters
    ----------
    endpoint : str
        Base URL of an OTLP/HTTP receiver, such as ``http://127.0.0.1:4318``; its full ``/v1/traces`` is taken as well.
    now : callable
        Wall time in Unix seconds.
    """

    def __init__(self, endpoint: str, now: Callable[[], float]) -> None:
        base = endpoint.rstrip("/")
        exporter = OTLPSpanExporter(
            endpoint=base if base.endswith("/v1/traces") else f"{base}/v1/traces", timeout=EXPORT_SECONDS_MAX
        )
        self._processor = BatchSpanProcessor(
            exporter, max_queue_size=SPANS_QUEUED_MAX, max_export_batch_size=SPANS_BATCHED_MAX
        )
        self._resource = Resource.create({"service.name": "orchestra", "service.version": __version__})
        self._scope = InstrumentationScope("orchestra", __version__)
        self._now = now
        self._running: dict[str, deque[Child | Moment]] = {}  # what turns in flight have done, by correlation id

    def hook(self, event: Event) -> None:
        """Keep what a turn does, and send it with the turn once that is over: only then is its span known.

        Turns in flight that a caller gave the same correlation id show their children under the one that ends first.
        """
        match event:
            case TurnStarted():
                self._running.setdefault(event.correlation_id, deque(maxlen=CHILDREN_MAX))
            case CallFinished() | StoreFinished() | CallRetried() | CallHedged() | FellBack():
                if (children := self._running.get(event.correlation_id)) is not None:
                    children.append(event)
            case TurnFinished():
                children = self._running.pop(event.correlation_id, deque())
                if event.trace is not None and event.trace.sampled:
                    self._send_turn(event, event.trace, children)

    def close(self) -> None:
        """Send what is queued, and stop the sending thread."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]

    def _send_turn(self, event: TurnFinished, trace: TraceContext, children: deque[Child | Moment]) -> None:
        offset = self._now() - event.at  # from the loop's monotonic time to wall time
        moments: list[SpanEvent] = []
        for number, child in enumerate(children):
            if isinstance(child, Moment):
                moments.append(_moment(child, offset))
            else:
                self._send_child(child, trace, _derived(trace, str(number)), offset)
        attributes = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": event.engine,
            "gen_ai.conversation.id": event.session_id,
            "gen_ai.usage.input_tokens": event.prompt_tokens,
            "gen_ai.usage.output_tokens": event.completion_tokens,
            "gen_ai.response.time_to_first_chunk": event.first_token_seconds,
            "orchestra.correlation_id": event.correlation_id,
            "orchestra.turn.id": event.turn_id,
            "orchestra.turn.outcome": event.outcome,
            "orchestra.turn.degraded": event.degraded,
            "error.type": event.error,
        }
        name = f"invoke_agent {event.engine}".rstrip()
        parent = _context(trace, trace.parent_id, is_remote=True) if trace.parent_id else None
        context = _context(trace, trace.span_id)
        self._send(
            name, event, attributes, moments, kind=SpanKind.SERVER, context=context, parent=parent, offset=offset
        )

    def _send_child(self, event: Child, trace: TraceContext, span_id: str, offset: float) -> None:
        attributes: dict[str, Any] = {"orchestra.target": event.target, "error.type": event.error}
        kind, name = SpanKind.CLIENT, f"store {event.target}"
        if isinstance(event, CallFinished):
            attributes |= {"orchestra.call.outcome": event.outcome, "orchestra.call.attempts": event.attempts}
            kind, name = SpanKind.INTERNAL, f"call {event.target}"
        context, parent = _context(trace, span_id), _context(trace, trace.span_id)
        self._send(name, event, attributes, kind=kind, context=context, parent=parent, offset=offset)

    def _send(
        self,
        name: str,
        event: TurnFinished | Child,
        attributes: dict[str, Any],
        moments: Sequence[SpanEvent] = (),
        *,
        kind: SpanKind,
        context: SpanContext,
        parent: SpanContext | None,
        offset: float,
    ) -> None:
        ended = event.at + offset
        self._processor.on_end(
            ReadableSpan(
                name,
                context=context,
                parent=parent,
                resource=self._resource,
                attributes=_known(attributes),
                events=moments,
                kind=kind,
                status=Status(StatusCode.ERROR, event.error) if event.error else Status(StatusCode.UNSET),
                start_time=_nanoseconds(ended - event.seconds),
                end_time=_nanoseconds(ended),
                instrumentation_scope=self._scope,
            )
        )


def _moment(event: Moment, offset: float) -> SpanEvent:
    told = structs.asdict(event)
    del told["at"], told["correlation_id"]
    attributes = {"error.type": told.pop("error", ""), **{f"orchestra.{key}": value for key, value in told.items()}}
    name = str(event.__struct_config__.tag)
    return SpanEvent(name, _known(attributes), timestamp=_nanoseconds(event.at + offset))


def _known(attributes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in attributes.items() if value not in ("", None, ())}


def _context(trace: TraceContext, span_id: str, *, is_remote: bool = False) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if trace.sampled else TraceFlags.DEFAULT)
    return SpanContext(int(trace.trace_id, 16), int(span_id, 16), is_remote, flags)


def _derived(trace: TraceContext, part: str) -> str:
    """Make a span id for a part of a turn from the turn's own: unique with it, and chance is not ours to ask for."""
    return blake2b(f"{trace.trace_id}-{trace.span_id}-{part}".encode(), digest_size=8).hexdigest()


def _nanoseconds(unix_seconds: float) -> int:
    return round(unix_seconds * 1e6) * 1000  # a float holds no finer than microseconds since 1970
