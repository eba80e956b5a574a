"""Clients that keep a WebSocket: they idle or chat, read as fast as they can, and come back when it is lost.

Each is the SDK's own state machine, `orchestra.sdk.dialogue`, with a modelled socket where the SDK has a real one. So
what is unfinished is resumed or sent again as the SDK does it; and what it tells its user is checked here: every
message ends once, and the pieces of an answer are the reply to the letter. A violation ends a turn as `TOLD_WRONG` or
`TOLD_TWICE`, which no scenario takes for answered.

    contract: `Sockets`, a population;  state and behaviour: `SocketClient`, one client and its connection
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from random import Random

import msgspec

from orchestra.errors import OrchestraError
from orchestra.frames import ErrorFrame, Ping
from orchestra.model import ChatReply
from orchestra.sdk.dialogue import Connect, Dialogue, Leave, Wait
from orchestra.sdk.events import Answered, Connected, Failed, Restarted, Text
from orchestra.sdk.failures import Answer, Unreachable, error_of
from orchestra.sdk.retries import Retries as SdkRetries
from orchestra.sdk.system import System
from sim import asgi
from sim.client_faults import ClientsDisconnected
from sim.doors import SocketDoor
from sim.entropy import Streams
from sim.journal import ClientConnected, ClientFinished
from sim.request_clients import CORRELATION_ID_BYTES
from sim.tally import TIMED_OUT, Attempt, Tally, refused
from sim.workload import Arrival, Part, WebSockets, stream_name

TOLD_WRONG = "told-wrong"
TOLD_TWICE = "told-twice"
OPEN_SECONDS_MAX = 10.0
UNREAD_MAX = 32
"""Frames between the service and a client that does not read: what the buffers of both sockets hold, about."""
ALMOST_ONE = 1.0 - 2.0**-53
PING = msgspec.json.encode(Ping()).decode()
_ERROR = b'"type":"error"'


@dataclass(frozen=True)
class _Machine(System):
    """What the SDK asks of the machine, in the world; `luck` is chance, or for the naive always the longest wait."""

    time: Callable[[], float]
    luck: Callable[[], float]

    def now(self) -> float:
        return self.time()

    def random(self) -> float:
        return self.luck()


def _dialogue(clients: WebSockets, chance: Random) -> Dialogue:
    """Return the SDK's machine: as it comes, or as somebody would write it who knows neither jitter nor backoff."""
    naive = clients.retries.style == "naive"
    wait_s = clients.retries.wait
    longest_s = wait_s if naive else max(wait_s, SdkRetries.longest_seconds)
    return Dialogue(
        SdkRetries(clients.retries.attempts, wait_s, longest_s),
        _Machine(asyncio.get_running_loop().time, (lambda: ALMOST_ONE) if naive else chance.random),
        answer_seconds_max=clients.reconnects_for,
        reconnect_seconds_max=clients.reconnects_for,
    )


class SocketClient:
    """One client, and its connection.

    Parameters
    ----------
    door : SocketDoor
    clients : WebSockets
    name : str
        Of the client and of its session.
    address : str
        Whence it comes.
    chance : Random
    tally : Tally
    """

    def __init__(
        self, door: SocketDoor, clients: WebSockets, name: str, address: str, chance: Random, tally: Tally
    ) -> None:
        self.outages = 0
        """How many faults keep it from connecting now."""
        self._door = door
        self._name = name
        self._address = address
        self._tally = tally
        self._naive = clients.retries.style == "naive"
        self._read_s = 0.0 if clients.reads is None else 1.0 / clients.reads
        self._ping_every = clients.ping_every
        self._ping_at = 0.0
        self._now = asyncio.get_running_loop().time
        self._dialogue = _dialogue(clients, chance)
        self._scope: AbstractAsyncContextManager[asgi.Socket] | None = None
        self._socket: asgi.Socket | None = None
        self._noticed_s: float | None = None  # how long the service takes to notice that the connection was cut
        self._dead: list[asyncio.Task[None]] = []
        self._waiting: dict[str, asyncio.Future[Attempt]] = {}
        self._told: set[str] = set()
        self._pieces: dict[str, list[str]] = {}
        self._first_at: dict[str, float] = {}
        self._since = 0.0
        self._attempts = self._refused = 0
        self._was_connected = False
        self._gave_up: OrchestraError | None = None

    # --- what its user does

    async def ask(self, arrival: Arrival) -> Attempt:
        """Say something, and return how it ended; at the end of the client's patience it is stopped."""
        message_id = str(arrival.number)
        try:
            async with asyncio.timeout(arrival.patience_s):
                return await self._said(arrival, message_id)
        except TimeoutError:
            self._dialogue.cancel(message_id)
            self._flush()
            return Attempt("failed", TIMED_OUT)
        except OrchestraError as error:
            return refused(error.kind, error.retry_after_seconds, None)
        finally:
            self._waiting.pop(message_id, None)

    async def _said(self, arrival: Arrival, message_id: str) -> Attempt:
        if self._gave_up is not None:
            raise self._gave_up
        ended: asyncio.Future[Attempt] = asyncio.get_running_loop().create_future()
        self._waiting[message_id] = ended
        self._dialogue.send(arrival.message, message_id, arrival.user)
        self._flush()
        return await ended

    # --- the connection

    def cut(self, noticed_s: float) -> bool:
        """Cut the connection, if there is one; the service learns it after `noticed_s`."""
        if self._socket is None or self._noticed_s is not None:
            return False
        self._noticed_s = noticed_s
        self._socket.inbox.put_nowait({"type": "websocket.close", "code": 1006, "reason": "cut"})
        return True

    async def live(self, start_s: float) -> None:
        """Connect after `start_s`, and stay connected until cancelled, or until it gives up."""
        await asyncio.sleep(start_s)
        self._since = self._now()
        try:
            while True:
                await self._go_on()
                self._tell()
        except OrchestraError as error:
            self._gave_up = error
            for ended in self._waiting.values():
                if not ended.done():
                    ended.set_result(refused(error.kind, error.retry_after_seconds, None))
        finally:
            if not self._dialogue.is_ready:
                self._record_connection(connected=False)
            await self._close()
            for dead in self._dead:
                await dead

    async def _go_on(self) -> None:
        """Do one step, as the SDK's own loop does (`orchestra.sdk.asyncclient`)."""
        step = self._dialogue.step()
        match step:
            case Connect():
                await self._open()
            case Wait():
                await asyncio.sleep(step.seconds)
            case Leave():
                await self._close()
                self._lost(1000, step.reason)
            case _:
                self._flush()
                await self._receive(step.seconds)

    async def _open(self) -> None:
        self._attempts += 1
        scope = self._door.connect(self._name, self._name, (self._address, 50_000), UNREAD_MAX)
        try:
            if self.outages:
                raise Unreachable("the network is away")
            async with asyncio.timeout(OPEN_SECONDS_MAX):
                self._socket = await scope.__aenter__()
        except asgi.Refused as refusal:
            self._refused += 1
            self._dialogue.refused(self._heard(_error_of(refusal.response)))
        except TimeoutError:
            self._dialogue.refused(Unreachable("the service did not accept"))
        except Unreachable as error:
            self._dialogue.refused(error)
        else:
            self._scope = scope
            self._ping_at = self._now() + (self._ping_every or 0.0)
            self._dialogue.opened()

    async def _receive(self, seconds: float | None) -> None:
        socket = self._socket
        assert socket is not None
        ping_s = None if self._ping_every is None else max(0.0, self._ping_at - self._now())
        wait_s = min((each for each in (seconds, ping_s) if each is not None), default=None)
        try:
            async with asyncio.timeout(wait_s):
                data = await socket.receive()
        except TimeoutError:
            if self._ping_every is not None and self._now() >= self._ping_at:
                self._ping_at = self._now() + self._ping_every
                if self._noticed_s is None:
                    socket.send(PING)
            elif not self._dialogue.is_ready:
                await self._close()
                self._lost(1006, "the service did not get ready")
        except asgi.Closed as closed:
            await self._close()
            self._lost(closed.code, closed.reason)
        else:
            self._dialogue.received(self._unheeded(data))
            self._flush()
            if self._read_s:
                self._tell()
                await asyncio.sleep(self._read_s)

    def _flush(self) -> None:
        outgoing = self._dialogue.outgoing
        while outgoing and self._socket is not None:
            data = outgoing.popleft().decode()
            if self._noticed_s is None:  # what is sent into a connection that was cut arrives nowhere
                self._socket.send(data)

    def _lost(self, code: int, reason: str) -> None:
        if self._dialogue.is_ready:
            self._since = self._now()
            self._attempts = self._refused = 0
        self._dialogue.lost(code, reason)

    async def _close(self) -> None:
        scope, self._scope = self._scope, None
        socket, self._socket = self._socket, None
        noticed_s, self._noticed_s = self._noticed_s, None
        if scope is None or socket is None:
            return
        if noticed_s is None:
            await scope.__aexit__(None, None, None)
        else:
            self._dead = [each for each in self._dead if not each.done()]
            self._dead.append(asyncio.create_task(_noticed(scope, socket, noticed_s)))

    # --- what it is told

    def _tell(self) -> None:
        """Take in what the SDK tells its user."""
        events = self._dialogue.events
        while events:
            match events.popleft():
                case Connected():
                    self._record_connection(connected=True)
                    self._was_connected = True
                case Text(turn_id, text):
                    self._first_at.setdefault(turn_id, self._now())
                    self._pieces.setdefault(turn_id, []).append(text)
                case Restarted(turn_id):
                    self._pieces.pop(turn_id, None)
                case Answered(turn_id, message_id, reply):
                    self._end(message_id, turn_id, reply)
                case Failed(turn_id, message_id, error):
                    self._end(message_id, turn_id, error)
                case _:
                    pass

    def _end(self, message_id: str | None, turn_id: str | None, result: ChatReply | OrchestraError) -> None:
        """End a turn of ours, with a reply or an error; one that ended before is a violation, and told as such."""
        pieces = self._pieces.pop(turn_id or "", [])
        first_at = self._first_at.pop(turn_id or "", None)
        if isinstance(result, OrchestraError):
            attempt = refused(result.kind, result.retry_after_seconds, first_at)
        elif "".join(pieces) != result.reply:
            attempt = Attempt("failed", TOLD_WRONG, None, first_at)
        else:
            attempt = self._tally.acknowledge(result, first_at)
        if message_id is None:
            return
        if message_id in self._told:
            self._tally.record(ClientFinished(self._now(), int(message_id), "", "failed", TOLD_TWICE, 0.0))
        self._told.add(message_id)
        ended = self._waiting.get(message_id)
        if ended is not None and not ended.done():
            ended.set_result(attempt)

    def _record_connection(self, *, connected: bool) -> None:
        counts = self._attempts, self._refused
        seconds = self._now() - self._since
        self._tally.record(ClientConnected(self._now(), self._name, self._was_connected, connected, *counts, seconds))

    def _heard(self, error: OrchestraError) -> OrchestraError:
        """Return `error` as the client heeds it: the naive do not read when to come back."""
        if self._naive:
            error.retry_after_seconds = None
        return error

    def _unheeded(self, data: str | bytes) -> str | bytes:
        """Return a frame as the client heeds it."""
        text = data.encode() if isinstance(data, str) else data
        if not self._naive or _ERROR not in text:
            return data
        frame = msgspec.json.decode(text, type=ErrorFrame)
        return msgspec.json.encode(msgspec.structs.replace(frame, retry_after_seconds=None))


def _error_of(response: asgi.Response) -> OrchestraError:
    answer = Answer(response.status, dict(response.headers), response.body)
    return error_of(answer) or Unreachable("the connection was closed before it stood")


async def _noticed(scope: AbstractAsyncContextManager[asgi.Socket], socket: asgi.Socket, noticed_s: float) -> None:
    """Let the service notice that a connection is gone."""
    await asyncio.sleep(noticed_s)
    socket.close(1006)
    await scope.__aexit__(None, None, None)


class Sockets:
    """A population with WebSockets.

    Parameters
    ----------
    door : SocketDoor
    clients : WebSockets
    part : Part
    streams : Streams
        `clients`: one draw a turn; `clients.sockets`: one generator a client; `clients.faults`: one draw a client and
        fault.
    tally : Tally
    """

    def __init__(self, door: SocketDoor, clients: WebSockets, part: Part, streams: Streams, tally: Tally) -> None:
        self._clients = clients
        self._part = part
        self._ids = streams.stream(stream_name("clients", part))
        self._luck = streams.stream(stream_name("clients.faults", part))
        self._tally = tally
        seeds = streams.stream(stream_name("clients.sockets", part))
        self._all = [
            SocketClient(
                door,
                clients,
                part.named(f"socket-{number}"),
                _address(part, number),
                Random(seeds.getrandbits(64)),
                tally,
            )
            for number in range(clients.connections)
        ]

    async def come(self, duration_s: float, chance: Random, expect: Callable[[Arrival], None]) -> None:
        """Let all connect and chat until `duration_s`; return when every turn has ended and all are gone."""
        clients = self._clients
        spread = [clients.start * (number + chance.random()) / len(self._all) for number in range(len(self._all))]
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as lives:
            living = [lives.create_task(each.live(start)) for each, start in zip(self._all, spread, strict=True)]
            async with asyncio.TaskGroup() as turns:
                for number, arrival in clients.coming(duration_s, chance, self._part):
                    expect(arrival)
                    if (wait_s := arrival.at - loop.time()) > 0:
                        await asyncio.sleep(wait_s)
                    turns.create_task(self._turn(self._all[number], arrival))
            await asyncio.sleep(max(0.0, duration_s - loop.time()))
            for each in living:
                each.cancel()

    async def _turn(self, client: SocketClient, arrival: Arrival) -> None:
        correlation_id = self._ids.randbytes(CORRELATION_ID_BYTES).hex()
        self._tally.arrive(arrival, correlation_id, self._part.name)
        last = await client.ask(arrival)
        self._tally.finish(arrival, correlation_id, last, asyncio.get_running_loop().time())

    def cut(self, fault: ClientsDisconnected) -> Iterator[SocketClient]:
        """Cut a share of the connections, and yield whose they were; one draw a client."""
        for client in self._all:
            if self._luck.random() < fault.share and client.cut(fault.noticed):
                yield client


def _address(part: Part, number: int) -> str:
    """Return an address of the network for measurements (RFC 2544); each client has its own."""
    return f"198.{18 + part.place % 2}.{number // 256}.{number % 256}"
