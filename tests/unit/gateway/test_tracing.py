"""Ids that cross the gateway."""

import pytest

from orchestra.adapters.system import SystemEntropy
from orchestra.gateway.tracing import correlation_id_of, trace_of

ENTROPY = SystemEntropy()
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_a_well_formed_request_id_is_honoured() -> None:
    assert correlation_id_of({"x-request-id": "order-17:4"}, ENTROPY) == "order-17:4"


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "-starts-with-dash", "new\nline", "ünïcode"])
def test_any_other_request_id_is_replaced(given: str) -> None:
    made = correlation_id_of({"x-request-id": given}, ENTROPY)
    assert len(made) == 32
    assert made != given


@pytest.mark.parametrize("flags", ["00", "01", "03"])
def test_a_valid_traceparent_makes_a_child(flags: str) -> None:
    trace = trace_of({"traceparent": f"00-{TRACE}-{PARENT}-{flags}"}, ENTROPY)
    assert (trace.trace_id, trace.parent_id) == (TRACE, PARENT)
    assert trace.span_id != PARENT
    assert trace.sampled == (flags != "00")
    assert trace.traceparent == f"00-{TRACE}-{trace.span_id}-{'00' if flags == '00' else '01'}"


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    assert trace_of({"traceparent": f"01-{TRACE}-{PARENT}-01-more"}, ENTROPY).trace_id == TRACE


@pytest.mark.parametrize(
    "given",
    [
        "",
        "nonsense",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE.upper()}-{PARENT}-01",
    ],
)
def test_an_invalid_traceparent_starts_a_new_trace(given: str) -> None:
    trace = trace_of({"traceparent": given}, ENTROPY)
    assert trace.parent_id is None
    assert trace.trace_id != TRACE
