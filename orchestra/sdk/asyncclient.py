"""The client for an event loop: the same names as in `orchestra.sdk.client`, with `await`."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from orchestra.errors import InvalidRequest, OrchestraError
from orchestra.model import END, ChatReply, History, Profile, SessionStatus, Turn
from orchestra.sdk import flows, requests, wire
from orchestra.sdk.dialogue import Connect, Dialogue, Leave, Wait
from orchestra.sdk.events import Answered, Event, Failed, Restarted, Text
from orchestra.sdk.failures import Answer
from orchestra.sdk.flows import Flow, Open, Pause, Piece, Read, Send, StreamedTurn, Tell
from orchestra.sdk.requests import Format, ProfileChange
from orchestra.sdk.retries import Attempts, Retries
from orchestra.sdk.system import System

T = TypeVar("T")


class AsyncClient(AbstractAsyncContextManager["AsyncClient"]):
    """A client of one AI Orchestra, of one event loop; parameters as of `Client`.

    >>> async with AsyncClient("http://127.0.0.1:8000") as client:
    ...     reply = await client.session().say("hello")
    """

    def __init__(
        self,
        url: str = wire.URL,
        *,
        timeout_seconds: float = wire.TIMEOUT_SECONDS,
        retries: Retries = wire.RETRIES,
        reconnect_seconds_max: float = wire.RECONNECT_SECONDS,
        transport: httpx2.AsyncBaseTransport | None = None,
        system: System = wire.SYSTEM,
    ) -> None:
        self.url = wire.checked_url(url)
        self._timeout_seconds = timeout_seconds
        self._retries = retries
        self._reconnect_seconds_max = reconnect_seconds_max
        self._system = system
        self._http = httpx2.AsyncClient(base_url=self.url, headers=wire.HEADERS, transport=transport)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    def session(self, session_id: str | None = None, *, user_id: str | None = None) -> "AsyncSession":
        """Return a session to talk in, as `Client.session` does."""
        return AsyncSession(self, session_id, user_id)

    async def create_session(
        self,
        session_id: str | None = None,
        *,
        user_id: str | None = None,
        system: str | None = None,
        context: dict[str, str] | None = None,
        metadata: dict[str, str] | None = None,
    ) -> "AsyncSession":
        """Make a session that has a profile, or an id of your own, as `Client.create_session` does."""
        made = requests.checked_id("session_id", session_id or self._system.new_id())
        ask = requests.create(made, user_id, Profile(system=system, context=context or {}, metadata=metadata or {}))
        await self._run(flows.created(ask, self._attempts(), is_new=session_id is None))
        return AsyncSession(self, made, user_id)

    def _attempts(self, seconds: float | None = None) -> Attempts:
        return Attempts(self._retries, self._system, self._timeout_seconds if seconds is None else seconds)

    async def _run(self, flow: Flow[T]) -> T:
        """Carry out a flow that tells nothing on its way."""
        carrier = _Carrier(self._http, self._system)
        try:
            async with aclosing(carrier.told(flow)) as told:
                async for _ in told:
                    pass
        finally:
            await carrier.aclose()
        result: T = carrier.result
        return result


class _Carrier:
    """Carries out one flow, step by step."""

    def __init__(self, http: httpx2.AsyncClient, system: System) -> None:
        self.result: Any = None
        self._http = http
        self._system = system
        self._response: httpx2.Response | None = None
        self._pieces: AsyncIterator[httpx2.ServerSentEvent] | None = None

    async def told(self, flow: Flow[Any]) -> AsyncGenerator[Text | Restarted, None]:
        """Yield what the flow tells, until it ends with `result`."""
        got: Any = None
        failure: OrchestraError | None = None
        while True:
            try:
                step = flow.send(got) if failure is None else flow.throw(failure)
            except StopIteration as stop:
                self.result = stop.value
                return
            got = failure = None
            if isinstance(step, Tell):
                yield step.event
                continue
            try:
                got = await self._do(step)
            except OrchestraError as error:
                failure = error

    async def aclose(self) -> None:
        """Close the stream that is open."""
        response, self._response = self._response, None
        if response is not None:
            await response.aclose()

    async def _do(self, step: flows.Step) -> Answer | Piece | None:
        match step:
            case Send() | Open():
                return await self._sent(step)
            case Read():
                assert self._pieces is not None
                with wire.translated(wire.QUIET_SECONDS_MAX):
                    return wire.piece_of(await anext(self._pieces, None))
            case Pause():
                await self.aclose()
                await self._system.pause_async(step.seconds)
        return None

    async def _sent(self, step: Send | Open) -> Answer:
        await self.aclose()
        ask = step.ask
        if self._http.is_closed:
            raise InvalidRequest("the client is closed: make another")
        with wire.translated(step.seconds):
            request = self._http.build_request(
                ask.method,
                ask.target,
                headers=dict(ask.headers),
                content=ask.body,
                timeout=wire.timeout(step),
            )
            response = self._response = await self._http.send(request, stream=True)
            answer = Answer(response.status_code, response.headers)
            if isinstance(step, Open) and answer.is_events:
                self._pieces = aiter(wire.event_source(response))
                return answer
            body = await response.aread()
        await self.aclose()
        return Answer(answer.status, answer.headers, body)


class AsyncSession:
    """One conversation, over HTTP; `connect` opens a WebSocket to it. As `Session`."""

    def __init__(self, client: AsyncClient, session_id: str | None, user_id: str | None) -> None:
        self.id = None if session_id is None else requests.checked_id("session_id", session_id)
        self._client = client
        self._user_id = None if user_id is None else requests.checked_id("user_id", user_id)

    async def say(self, message: str, *, timeout_seconds: float | None = None) -> ChatReply:
        """Say `message`, and return the whole reply once it is durable, as `Session.say` does."""
        client = self._client
        ask = requests.chat(message, self.id, self._user_id, client._system.new_id(), stream=False)
        answer = await client._run(flows.exchange(ask, client._attempts(timeout_seconds), timed=True))
        reply = requests.reply_of(answer)
        self.id = reply.session_id
        return reply

    def stream(self, message: str, *, timeout_seconds: float | None = None) -> "AsyncTurnStream":
        """Say `message`, and get the answer in pieces; see `TurnStream`."""
        turn = StreamedTurn(message, self.id, self._user_id, self._client._system.new_id())
        return AsyncTurnStream(self, turn, self._client._attempts(timeout_seconds))

    def connect(self, *, client_id: str | None = None) -> "AsyncConversation":
        """Return a conversation over a WebSocket, to be entered, as `Session.connect` does."""
        client = self._client
        self.id = self.id or client._system.new_id()
        return AsyncConversation(client, self.id, self._user_id, client_id or client._system.new_id())

    async def read(self, *, after: int | None = None, before: int | None = None, limit: int | None = None) -> History:
        """Return how the session stands, and a page of its turns, as `Session.read` does."""
        page = END if after is None and before is None else before
        ask = requests.read(self._known_id(), after=after, before=page, limit=limit)
        return requests.decoded(await self._exchange(ask), History)

    async def turns(self) -> AsyncIterator[Turn]:
        """Yield every turn of the conversation, the first one first, a page at a time."""
        after: int | None = 0
        while after is not None:
            page = await self.read(after=after)
            for turn in page.turns:
                yield turn
            after = page.next_after

    async def change(self, **changes: Any) -> SessionStatus:
        """Change the session's profile: `system`, `pinned`, `context` and `metadata`, as `ProfileChange` has them."""
        ask = requests.change(self._known_id(), ProfileChange(**changes))
        return requests.decoded(await self._exchange(ask), SessionStatus)

    async def export(self, document: Format = "json") -> str:
        """Return the whole conversation as a document, ``json`` or ``markdown``."""
        return (await self._exchange(requests.export(self._known_id(), document))).body.decode()

    async def delete(self) -> None:
        """Delete the session for good: its turns, its profile, and what memory keeps of them."""
        await self._client._run(flows.deleted(requests.delete(self._known_id()), self._client._attempts()))

    async def _exchange(self, ask: requests.Ask) -> Answer:
        return await self._client._run(flows.exchange(ask, self._client._attempts()))

    def _known_id(self) -> str:
        return wire.known_id(self.id)


class AsyncTurnStream(AbstractAsyncContextManager["AsyncTurnStream"]):
    """One turn whose answer comes in pieces, as `TurnStream`.

    >>> async with chat.stream("hello") as turn:
    ...     async for event in turn:
    ...         print(event, end="")
    >>> turn.reply
    """

    def __init__(self, session: AsyncSession, turn: StreamedTurn, attempts: Attempts) -> None:
        client = session._client
        self._session = session
        self._turn = turn
        self._carrier = _Carrier(client._http, client._system)
        self._events = self._carrier.told(flows.streamed(turn, attempts))
        self._is_under_way = False

    @property
    def text(self) -> str:
        """The answer as far as it came."""
        return self._turn.text

    @property
    def reply(self) -> ChatReply:
        """The whole reply, at the end; before it, `InvalidRequest` is raised."""
        return wire.ended(self._turn.reply)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Text | Restarted:
        self._is_under_way = True
        try:
            return await anext(self._events)
        except (OrchestraError, StopAsyncIteration):
            self._is_under_way = False
            raise
        finally:
            if self._turn.reply is not None:  # a session of which the first turn was stopped was none
                self._session.id = self._turn.reply.session_id

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._events.aclose()
        await self._carrier.aclose()
        turn, client = self._turn, self._session._client
        if self._is_under_way and turn.reply is None and turn.session_id and turn.turn_id:
            attempts = Attempts(Retries(attempts_max=1), client._system, wire.CANCEL_SECONDS_MAX)
            with suppress(OrchestraError):  # then it ends by itself, as nobody follows it
                await client._run(flows.exchange(requests.cancel(turn.session_id, turn.turn_id), attempts))


class AsyncConversation(AbstractAsyncContextManager["AsyncConversation"]):
    """A conversation over a WebSocket that is connected again whenever it is lost, as `Conversation`.

    One task iterates, any may `send` and `cancel` meanwhile.

    >>> async with chat.connect() as conversation:
    ...     await conversation.send("hello")
    ...     async for event in conversation:
    ...         print(event, end="")
    """

    def __init__(self, client: AsyncClient, session_id: str, user_id: str | None, client_id: str) -> None:
        self.session_id = session_id
        self.client_id = requests.checked_id("client_id", client_id)
        self._user_id = user_id
        self._system = client._system
        self._entrance = wire.Entrance()
        self._target = wire.socket_url(client.url, self.client_id, self.session_id)
        self._dialogue = Dialogue(
            client._retries,
            client._system,
            answer_seconds_max=client._timeout_seconds,
            reconnect_seconds_max=client._reconnect_seconds_max,
        )
        self._socket: ClientConnection | None = None

    async def __aenter__(self) -> Self:
        self._entrance.enter()
        try:
            while not self._dialogue.is_ready:
                await self._go_on()
        except BaseException:
            self._entrance.leave()
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entrance.leave()
        await self._close()

    async def send(self, message: str, *, message_id: str | None = None) -> str:
        """Say `message`, now or once there is a connection again; return its id, which its events bear."""
        self._entrance.check()
        message_id = requests.checked_id("message_id", message_id or self._system.new_id())
        self._dialogue.send(message, message_id, self._user_id)
        await self._flush()
        return message_id

    async def cancel(self, message_id: str) -> None:
        """Stop a turn, named by the id of its message, or by its own: it ends with `Failed` (`TurnCancelled`)."""
        self._entrance.check()
        self._dialogue.cancel(message_id)
        await self._flush()

    async def say(self, message: str) -> ChatReply:
        """Say `message`, and return the whole reply. Whatever else happens meanwhile goes by."""
        with self._entrance.iterated():
            message_id = await self.send(message)
            while True:
                event = await self._next()
                if isinstance(event, Answered) and event.id == message_id:
                    return event.reply
                if isinstance(event, Failed) and event.id == message_id:
                    raise event.error

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Return what happens next; raises `OrchestraError` where the connection could not be had again."""
        with self._entrance.iterated():
            return await self._next()

    async def _next(self) -> Event:
        while not self._dialogue.events:
            self._entrance.check()  # it may be left meanwhile
            await self._go_on()
        return self._dialogue.events.popleft()

    async def _go_on(self) -> None:
        """Do one step."""
        step = self._dialogue.step()
        match step:
            case Connect():
                await self._open()
            case Wait():
                await self._system.pause_async(step.seconds)
            case Leave():
                await self._close()
                self._dialogue.lost(1000, step.reason)
            case _:
                await self._flush()
                await self._receive(step.seconds)

    async def _open(self) -> None:
        try:
            with wire.translated(wire.OPEN_SECONDS_MAX):
                self._socket = await connect(self._target, **wire.SOCKET_OPTIONS)
        except OrchestraError as error:
            self._dialogue.refused(error)
        else:
            self._dialogue.opened()

    async def _receive(self, seconds: float | None) -> None:
        assert self._socket is not None
        try:
            async with asyncio.timeout(seconds):
                data = await self._socket.recv()
        except TimeoutError:
            if not self._dialogue.is_ready:
                await self._close()
                self._dialogue.lost(1006, "the service did not get ready")
        except ConnectionClosed as closed:
            await self._close()
            self._dialogue.lost(*wire.close_of(closed))
        else:
            self._dialogue.received(data)
            await self._flush()

    async def _flush(self) -> None:
        outgoing = self._dialogue.outgoing
        while outgoing and self._socket is not None:
            try:
                await self._socket.send(outgoing.popleft(), text=True)
            except ConnectionClosed:
                return  # whoever receives learns it as well, and sends what is to be sent again

    async def _close(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket.close()
