"""Traces: spans as a real OTLP receiver on loopback gets them."""

import asyncio
from typing import Any

import msgspec
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from orchestra.events import StoreFinished, TurnFinished
from orchestra.telemetry.traces import CHILDREN_MAX, Traces


def received(events: list[Any], clock: Any, path: str = "") -> list[tuple[Any, dict[str, Any]]]:
    """Feed `events` to traces that a receiver gets; return its resources' and spans' attributes and the spans."""
    bodies: list[bytes] = []

    async def take(request: web.Request) -> web.Response:
        bodies.append(await request.read())
        return web.Response(
            body=ExportTraceServiceResponse().SerializeToString(), content_type="application/x-protobuf"
        )

    async def main() -> None:
        app = web.Application()
        app.router.add_post("/v1/traces", take)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        traces = Traces(f"http://127.0.0.1:{runner.addresses[0][1]}{path}", clock.now)
        for event in events:
            traces.hook(event)
        await asyncio.to_thread(traces.close)
        await runner.cleanup()

    asyncio.run(main())
    spans = []
    for body in bodies:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            assert _attributes(resource.resource)["service.name"] == "orchestra"
            spans += [(span, _attributes(span)) for scope in resource.scope_spans for span in scope.spans]
    return spans


def _attributes(carrier: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in carrier.attributes}


def test_every_event_passes_and_a_turn_has_the_span_that_its_client_was_told(events, clock, trace):
    spans = received(events, clock)
    (turn, attributes) = next(each for each in spans if each[0].name == "invoke_agent unified")
    assert trace.traceparent == f"00-{turn.trace_id.hex()}-{turn.span_id.hex()}-01"
    assert turn.parent_span_id.hex() == trace.parent_id
    assert turn.kind == turn.SPAN_KIND_SERVER
    assert turn.end_time_unix_nano == 1_700_000_000_250_000_000
    assert turn.end_time_unix_nano - turn.start_time_unix_nano == 2_000_000_000
    assert turn.status.code == turn.status.STATUS_CODE_UNSET
    assert attributes["gen_ai.usage.input_tokens"] == 30
    assert attributes["gen_ai.usage.output_tokens"] == 12
    assert attributes["gen_ai.conversation.id"] == "s-1"
    assert attributes["gen_ai.response.time_to_first_chunk"] == 0.75
    assert [each.string_value for each in attributes["orchestra.turn.degraded"].values] == ["memory"]


def test_calls_and_store_operations_are_the_turns_children_in_their_time(events, clock, trace):
    spans = {span.name: (span, attributes) for span, attributes in received(events, clock, path="/v1/traces")}
    assert set(spans) == {"invoke_agent unified", "call memory", "call unified", "store conversations"}
    assert len({span.span_id for span, _ in spans.values()}) == 4
    turn, _ = spans.pop("invoke_agent unified")
    for span, _ in spans.values():
        assert span.trace_id == turn.trace_id
        assert span.parent_span_id == turn.span_id
        assert turn.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= turn.end_time_unix_nano
    memory, attributes = spans["call memory"]
    assert memory.status.code == memory.status.STATUS_CODE_ERROR
    assert attributes["error.type"] == "deadline-exceeded"
    assert attributes["orchestra.call.outcome"] == "failure"
    assert memory.start_time_unix_nano == turn.start_time_unix_nano
    store, _ = spans["store conversations"]
    assert store.kind == store.SPAN_KIND_CLIENT


def test_a_call_says_its_attempts_and_the_turn_what_happened_in_between(events, clock):
    spans = {span.name: (span, attributes) for span, attributes in received(events, clock)}
    assert spans["call unified"][1]["orchestra.call.attempts"] == 3
    assert spans["call memory"][1]["orchestra.call.attempts"] == 1
    turn, _ = spans["invoke_agent unified"]
    end = turn.end_time_unix_nano
    assert [(each.name, (each.time_unix_nano - end) / 1e9, _attributes(each)) for each in turn.events] == [
        (
            "call_retried",
            -1.25,
            {
                "orchestra.target": "unified",
                "orchestra.attempt": 2,
                "orchestra.wait_seconds": 0.25,
                "error.type": "provider-failed",
            },
        ),
        ("call_hedged", -0.75, {"orchestra.target": "unified"}),
        (
            "fell_back",
            -0.5,
            {"orchestra.target": "unified", "orchestra.fallback": "cache", "error.type": "breaker-open"},
        ),
    ]
    assert not any(span.events for span, _ in spans.values() if span is not turn)


def test_a_turn_that_was_not_sampled_sends_nothing(events, clock, trace):
    unsampled = msgspec.structs.replace(trace, sampled=False)
    events = [
        msgspec.structs.replace(event, trace=unsampled) if isinstance(event, TurnFinished) else event
        for event in events
    ]
    assert received(events, clock) == []


def test_a_turn_keeps_its_last_children_only(events, clock):
    operations = [StoreFinished(10.5, "c-1", f"store-{n}", "", 0.1) for n in range(CHILDREN_MAX + 3)]
    finished = next(event for event in events if isinstance(event, TurnFinished))
    spans = received([events[0], *operations, finished], clock)
    assert len(spans) == CHILDREN_MAX + 1
    assert "store store-2" not in {span.name for span, _ in spans}


def test_what_belongs_to_no_turn_in_flight_is_not_kept(events, clock):
    assert received([events[1], events[3]], clock) == []
