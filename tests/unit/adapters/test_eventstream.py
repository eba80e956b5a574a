"""Server-sent events, however the network cuts them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.adapters.eventstream import EventStreamParser, ServerSentEvent
from orchestra.errors import ProviderFailed

STREAM = (
    "\ufeff: a comment\r\n\r\nevent: greeting\r\ndata: Grüezi 🌊\r\ndata:  two\r\n\r\n"
    "id: 7\rretry: 3\rdata\r\rdata:x:y\n\nevent: lost\n\nunknown: z\ndata: [DONE]\n\ndata: never ended"
).encode()
EVENTS = [
    ServerSentEvent("greeting", "Grüezi 🌊\n two"),
    ServerSentEvent("message", ""),
    ServerSentEvent("message", "x:y"),
    ServerSentEvent("message", "[DONE]"),
]


@given(st.lists(st.integers(0, len(STREAM)), max_size=60))
def test_every_way_of_cutting_the_stream_gives_the_same_events(cuts):
    parser = EventStreamParser(event_bytes_max=1000)
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[start:end] for start, end in itertools.pairwise(edges)]
    assert [event for piece in pieces for event in parser.feed(piece)] == EVENTS


def test_one_byte_at_a_time_gives_the_same_events():
    parser = EventStreamParser(event_bytes_max=1000)
    assert [event for byte in STREAM for event in parser.feed(bytes([byte]))] == EVENTS


def test_broken_utf_8_is_replaced_not_raised():
    assert EventStreamParser(event_bytes_max=1000).feed(b"data: a\xffb\n\n")[0].data == "a\ufffdb"


@pytest.mark.parametrize(
    "pieces",
    [[b"data: " + b"x" * 100], [b"x" * 60, b"x" * 60], [b"data: " + b"x" * 50 + b"\n"] * 3, [b"y" * 101 + b"\n"]],
)
def test_a_line_or_event_over_the_bound_fails(pieces):
    parser = EventStreamParser(event_bytes_max=100)
    with pytest.raises(ProviderFailed, match="100 bytes"):
        [parser.feed(piece) for piece in pieces]
