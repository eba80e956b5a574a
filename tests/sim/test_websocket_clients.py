"""Clients with WebSockets: they idle, chat, read slowly, lose their connections, come back, and lose no turn."""

import asyncio
import math
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from orchestra import limits
from orchestra.events import ConnectionClosed, ConnectionOpened, TurnResumed
from orchestra.frames import ErrorFrame
from orchestra.model import ChatReply, Usage
from orchestra.sdk.events import Answered, Text
from sim import asgi
from sim.connectivity import Connectivity
from sim.entropy import Stream
from sim.evidence import Evidence
from sim.expectations import Expectation
from sim.journal import ClientConnected, ClientFinished
from sim.loop import run as run_in_virtual_time
from sim.quantities import Comparison
from sim.scenario import load, parse
from sim.tally import Tally
from sim.verdict import Status
from sim.websocket_clients import TOLD_TWICE, TOLD_WRONG, SocketClient
from sim.workload import Retries, WebSockets
from sim.world import rehearse

HERD = Path(__file__).parents[2] / "chaos" / "scenarios" / "reconnect_herd.yaml"
WORLD = """
name: sockets
duration: 60s
door: service
world:
  provider: {capacity: 32, first_token: {exponential: {mean: 100ms}}, per_token: 20ms}
expectations: [{always: accounted}, {always: durable}, {always: no_defects}]
"""
TOKENS = "generated_tokens: 50, context_tokens: 100"


def world(websockets, more="", tokens=TOKENS):
    return parse(f"{WORLD}workload: {{websockets: {{start: 5s, {tokens}, {websockets}}}}}\n{more}")


def of(run, kind):
    return [entry for entry in run.journal if isinstance(entry, kind)]


def closes(run):
    return Counter(entry.code for entry in of(run, ConnectionClosed))


def test_idle_clients_are_closed_and_come_back_but_those_that_ping_stay():
    idle = "settings: {connection_idle_seconds_max: 20}\n"
    quiet = rehearse(world("connections: 5", idle))
    assert closes(quiet)[1001] >= 10
    assert len(of(quiet, ConnectionOpened)) == 5 + closes(quiet)[1001]
    assert quiet.verdict.status is Status.PASSED
    pinging = rehearse(world("connections: 5, ping_every: 8s", idle))
    assert closes(pinging) == {1000: 5}
    assert all(entry.received == entry.sent - 1 >= 5 for entry in of(pinging, ConnectionClosed))  # `ready`, and pongs


def test_clients_connect_spread_over_the_start():
    run = rehearse(world("connections: 10"))
    opened = sorted(entry.at for entry in of(run, ConnectionOpened))
    assert all(0.5 * number <= at < 0.5 * (number + 1) + 0.1 for number, at in enumerate(opened))
    assert all((entry.connected, entry.again, entry.attempts) == (True, False, 1) for entry in of(run, ClientConnected))


def test_they_see_the_first_piece_of_an_answer_before_the_whole():
    run = rehearse(world("connections: 5, rate: 2/s"))
    ended = of(run, ClientFinished)
    assert len(ended) > 80
    assert all(entry.first_token_seconds < entry.seconds - 0.5 for entry in ended)


CUT = "faults: [{clients_disconnected: {at: 20s, for: 5s, share: 100%}}]\n"


def test_whoever_was_cut_comes_back_and_goes_on_where_the_answer_was():
    run = rehearse(world("connections: 10, rate: 2/s", CUT, tokens="generated_tokens: 150"))
    assert run.verdict.status is Status.PASSED, run.verdict
    assert run.verdict.accounting.answered == run.verdict.accounting.arrivals
    back = [entry for entry in of(run, ClientConnected) if entry.again]
    assert len(back) == 10
    assert all(entry.connected and 5 <= entry.seconds < 14 for entry in back)
    assert run.verdict.faults[0].touched == 10
    assert len(of(run, TurnResumed)) > 2
    waited = [entry for entry in of(run, ClientFinished) if 17 < entry.at - entry.seconds < 20]
    assert max(entry.seconds for entry in waited) > 5


def test_naive_clients_ask_every_so_often_and_polite_ones_more_rarely_each_time():
    attempts = {}
    for style in ("naive", "polite"):
        story = world(f"connections: 20, retries: {{attempts: 5, wait: 200ms, style: {style}}}", CUT)
        back = [entry for entry in of(rehearse(story), ClientConnected) if entry.again]
        attempts[style] = [entry.attempts for entry in back]
        moments = [entry.at for entry in back]
        spread = max(moments) - min(moments)
        assert spread < 0.01 if style == "naive" else spread > 0.5  # the herd
    assert set(attempts["naive"]) == {25}  # 5 s by 200 ms
    assert max(attempts["polite"]) < 12


def test_a_connection_that_is_dead_keeps_its_place_until_the_service_notices():
    dead = CUT.replace("100%", "100%, noticed: 15s")
    run = rehearse(world("connections: 10", dead + "settings: {connections_max: 12}\n"))
    assert Evidence(run.journal).connections.open_max(0, 60) == 12
    back = [entry for entry in of(run, ClientConnected) if entry.again]
    assert sum(entry.refused for entry in back) > 8
    assert sum(entry.seconds < 15 for entry in back) == 2  # for whom there was room
    assert all(entry.connected for entry in back)
    noticed = [entry.at for entry in of(run, ConnectionClosed) if entry.code == 1006]
    assert noticed == pytest.approx([35.0] * 10)


def test_only_the_polite_heed_when_they_are_told_to_come_again():
    dead = CUT.replace("100%", "100%, noticed: 15s") + "settings: {connections_max: 10}\n"
    refused = {}
    for style in ("naive", "polite"):
        run = rehearse(world(f"connections: 10, retries: {{attempts: 5, wait: 200ms, style: {style}}}", dead))
        refused[style] = [entry.refused for entry in of(run, ClientConnected) if entry.again]
    assert min(refused["naive"]) >= 49  # ten seconds by 200 ms
    assert max(refused["polite"]) <= 3  # ten seconds by five and more


def test_who_gives_up_says_so_and_its_turns_fail():
    story = world("connections: 6, rate: 1/s, reconnects_for: 3s", CUT)
    run = rehearse(story)
    gone = [entry for entry in of(run, ClientConnected) if not entry.connected]
    assert len(gone) == 6
    assert all(entry.again and entry.seconds < 3.1 for entry in gone)
    assert run.verdict.failures == {"unreachable": run.verdict.accounting.shed + run.verdict.accounting.failed}
    assert Evidence(run.journal).connections.within(0, 60)[-1].seconds == math.inf


def test_who_reads_slowly_holds_the_service_back_until_it_closes_the_connection(monkeypatch):
    monkeypatch.setattr(limits, "OUTBOX_FRAMES_MAX", 20)
    slow = "connections: 3, rate: 10/s, patience: 30s, reads: "
    brisk = rehearse(replace(world(slow + "200/s"), duration=25.0))
    assert closes(brisk) == {1000: 3}
    run = rehearse(replace(world(slow + "1/s"), duration=25.0))
    assert closes(run)[1008] >= 3
    assert "too slow" in next(entry.reason for entry in of(run, ConnectionClosed) if entry.code == 1008)
    assert run.verdict.status is Status.PASSED, run.verdict  # and for all that, no turn is lost or told twice
    assert any(entry.again and entry.connected for entry in of(run, ClientConnected))


def test_the_herd_passes_and_fails_where_clients_are_naive_or_nothing_bounds_connections():
    """The shipped story with a third of its clients; `tests/scenarios` runs all of it."""
    told = load(HERD)
    limit = Expectation(always="run", connections_max=Comparison("<=", 66))
    story = replace(
        told,
        workload=replace(told.workload, connections=60, rate=1.0),
        settings={"connections_max": 66},
        expectations=(*(each for each in told.expectations if each.connections_max is None), limit),
    )
    assert rehearse(story).verdict.status is Status.PASSED
    naive = replace(story, workload=replace(story.workload, retries=Retries(attempts=5, wait=0.5)))
    broken = []
    for changed in (naive, replace(story, settings={})):
        verdict = rehearse(changed).verdict
        assert verdict.status is Status.FAILED
        broken.append([result.text.partition(": ")[2] for result in verdict.results if not result.held])
    assert broken == [
        ["attempts a reconnection <= 12.00x"],
        ["connections refused >= 1", "connections at once <= 66"],
    ]


def test_what_is_told_twice_or_wrong_is_a_violation():
    told = []

    async def main():
        client = SocketClient(None, WebSockets(connections=1), "s", "198.18.0.1", Stream(0), Tally(told.append))
        reply = ChatReply("t1", "s", "c", "hello", "unified", "m", "stop", Usage(1, 1))
        client._waiting["7"] = ended = asyncio.get_running_loop().create_future()
        client._dialogue.events += [Text("t1", "hel"), Text("t1", "lo"), Answered("t1", "7", reply)]
        client._tell()
        assert ended.result().outcome == "answered"
        client._dialogue.events += [Text("t1", "hello"), Answered("t1", "7", reply)]
        client._tell()
        client._waiting["8"] = ended = asyncio.get_running_loop().create_future()
        client._dialogue.events += [Text("t2", "hullo"), Answered("t2", "8", reply)]
        client._tell()
        assert (ended.result().outcome, ended.result().error) == ("failed", TOLD_WRONG)

    run_in_virtual_time(main())
    assert [(entry.arrival, entry.error) for entry in told] == [(7, TOLD_TWICE)]


def test_the_naive_do_not_read_when_to_send_again_what_was_refused():
    frame = ErrorFrame("overloaded", "Overloaded", 503, "later", True, id="7", retry_after_seconds=9.0)
    data = msgspec.json.encode(frame).decode()

    async def heard(style):
        clients = WebSockets(connections=1, retries=Retries(style=style))
        client = SocketClient(None, clients, "s", "198.18.0.1", Stream(0), Tally(None))
        return msgspec.json.decode(client._unheeded(data), type=ErrorFrame)

    assert run_in_virtual_time(heard("polite")) == frame
    assert run_in_virtual_time(heard("naive")) == replace(frame, retry_after_seconds=None)


def test_what_is_sent_into_a_connection_that_was_cut_arrives_nowhere():
    """A slow reader says something before it has read as far as the cut."""

    async def main():
        client = SocketClient(None, WebSockets(connections=1), "s", "198.18.0.1", Stream(0), Tally(None))
        assert not client.cut(5.0)  # there is none yet
        socket = client._socket = asgi.Socket()
        client._dialogue.outgoing.append(b"first")
        client._flush()
        assert (client.cut(5.0), client.cut(5.0)) == (True, False)
        client._dialogue.outgoing.append(b"second")
        client._flush()
        return socket.outbox.get_nowait()["text"], socket.outbox.empty()

    assert run_in_virtual_time(main()) == ("first", True)


def test_connections_are_counted_over_windows():
    seen = Connectivity()
    for at, entry in ((1.0, seen.opened), (2.0, seen.opened), (5.0, seen.closed), (6.0, seen.opened)):
        kind = ConnectionClosed if entry == seen.closed else ConnectionOpened
        more = (1006, "", 1.0, 0, 0) if kind is ConnectionClosed else ()
        entry(kind(at, "c", "c", "s", "x", *more))
    assert [seen.open_max(*window) for window in ((0, 10), (0, 1.5), (5, 5.5), (5, 10), (0, 1))] == [2, 1, 1, 2, 0]
    seen.connected(ClientConnected(9.0, "c", True, True, 3, 1, 4.0))
    seen.connected(ClientConnected(9.0, "d", True, False, 3, 0, 2.0))
    assert [(each.since, each.seconds) for each in seen.within(5, 8)] == [(5.0, 4.0), (7.0, math.inf)]
    assert seen.words == "2 at once at most, 2 lost and asked for again 6 times, 1 refused, 1 never had again"
    assert Connectivity().words == ""
