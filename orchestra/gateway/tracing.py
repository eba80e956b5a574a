"""Ids that cross the gateway: `X-Request-ID`, and `traceparent` as in W3C Trace Context (level 1)."""

import re
from collections.abc import Mapping

from orchestra.limits import is_id
from orchestra.model import TraceContext
from orchestra.ports import Entropy

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


def correlation_id_of(headers: Mapping[str, str], entropy: Entropy) -> str:
    """Return the caller's `X-Request-ID` where it is fit for logs and headers, else a new id."""
    given = headers.get("x-request-id", "")
    return given if is_id(given) else entropy.hex(16)


def trace_of(headers: Mapping[str, str], entropy: Entropy) -> TraceContext:
    """Return a span of our own: a child of the caller's where `traceparent` is valid, else the root of a new trace."""
    span_id = entropy.hex(8)
    match = _TRACEPARENT.fullmatch(headers.get("traceparent", "").strip())
    if match:
        version, trace_id, parent_id, flags, more = match.groups()
        valid = version != "ff" and not (version == "00" and more) and int(trace_id, 16) and int(parent_id, 16)
        if valid:
            return TraceContext(trace_id, span_id, parent_id, sampled=bool(int(flags, 16) & 1))
    return TraceContext(entropy.hex(16), span_id)
