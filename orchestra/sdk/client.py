"""The client that waits: for scripts and notebooks, also where an event loop runs already."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

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


class Client(AbstractContextManager["Client"]):
    """A client of one AI Orchestra. Close it, or use it as a context, where many are made.

    >>> chat = Client("http://127.0.0.1:8000").session()
    >>> print(chat.say("hello").reply)

    Parameters
    ----------
    url : str
        Where the service answers.
    timeout_seconds : float
        How long one call may take in all, with its retries; a turn is told it, and ends by then.
    retries : Retries
    reconnect_seconds_max : float
        For how long a WebSocket that was lost is connected again.
    transport : httpx2.BaseTransport, optional
        How HTTP is sent, where it is to be in a way of your own.
    system : System
    """

    def __init__(
        self,
        url: str = wire.URL,
        *,
        timeout_seconds: float = wire.TIMEOUT_SECONDS,
        retries: Retries = wire.RETRIES,
        reconnect_seconds_max: float = wire.RECONNECT_SECONDS,
        transport: httpx2.BaseTransport | None = None,
        system: System = wire.SYSTEM,
    ) -> None:
        self.url = wire.checked_url(url)
        self._timeout_seconds = timeout_seconds
        self._retries = retries
        self._reconnect_seconds_max = reconnect_seconds_max
        self._system = system
        self._http = httpx2.Client(base_url=self.url, headers=wire.HEADERS, transport=transport)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    def session(self, session_id: str | None = None, *, user_id: str | None = None) -> "Session":
        """Return a session to talk in, without asking for it: one that exists, or one that its first message begins.

        Parameters
        ----------
        session_id : str, optional
            Of a session that exists; `create_session` makes one of an id of your own.
        user_id : str, optional
            Your own stable name of the user, whose memories the turns use and add to.
        """
        return Session(self, session_id, user_id)

    def create_session(
        self,
        session_id: str | None = None,
        *,
        user_id: str | None = None,
        system: str | None = None,
        context: dict[str, str] | None = None,
        metadata: dict[str, str] | None = None,
    ) -> "Session":
        """Make a session that has a profile, or an id of your own, from its beginning.

        Parameters
        ----------
        session_id, user_id, system, context, metadata
            As `session` and `orchestra.model.Profile` have them.

        Raises
        ------
        SessionExists
        """
        made = requests.checked_id("session_id", session_id or self._system.new_id())
        ask = requests.create(made, user_id, Profile(system=system, context=context or {}, metadata=metadata or {}))
        self._run(flows.created(ask, self._attempts(), is_new=session_id is None))
        return Session(self, made, user_id)

    def _attempts(self, seconds: float | None = None) -> Attempts:
        return Attempts(self._retries, self._system, self._timeout_seconds if seconds is None else seconds)

    def _run(self, flow: Flow[T]) -> T:
        """Carry out a flow that tells nothing on its way."""
        carrier = _Carrier(self._http, self._system)
        try:
            for _ in carrier.told(flow):
                pass
        finally:
            carrier.close()
        result: T = carrier.result
        return result


class _Carrier:
    """Carries out one flow, step by step."""

    def __init__(self, http: httpx2.Client, system: System) -> None:
        self.result: Any = None
        self._http = http
        self._system = system
        self._response: httpx2.Response | None = None
        self._pieces: Iterator[httpx2.ServerSentEvent] = iter(())

    def told(self, flow: Flow[Any]) -> Iterator[Text | Restarted]:
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
                got = self._do(step)
            except OrchestraError as error:
                failure = error

    def close(self) -> None:
        """Close the stream that is open."""
        if self._response is not None:
            self._response.close()
            self._response = None

    def _do(self, step: flows.Step) -> Answer | Piece | None:
        match step:
            case Send() | Open():
                return self._sent(step)
            case Read():
                with wire.translated(wire.QUIET_SECONDS_MAX):
                    return wire.piece_of(next(self._pieces, None))
            case Pause():
                self.close()
                self._system.pause(step.seconds)
        return None

    def _sent(self, step: Send | Open) -> Answer:
        self.close()
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
            response = self._response = self._http.send(request, stream=True)
            answer = Answer(response.status_code, response.headers)
            if isinstance(step, Open) and answer.is_events:
                self._pieces = iter(wire.event_source(response))
                return answer
            body = response.read()
        self.close()
        return Answer(answer.status, answer.headers, body)


class Session:
    """One conversation, over HTTP; `connect` opens a WebSocket to it.

    Attributes
    ----------
    id : str or None
        None until the first reply of a session that its first message begins.
    """

    def __init__(self, client: Client, session_id: str | None, user_id: str | None) -> None:
        self.id = None if session_id is None else requests.checked_id("session_id", session_id)
        self._client = client
        self._user_id = None if user_id is None else requests.checked_id("user_id", user_id)

    def say(self, message: str, *, timeout_seconds: float | None = None) -> ChatReply:
        """Say `message`, and return the whole reply once it is durable.

        It is tried again where that can help, and is one turn however often it is sent.

        Parameters
        ----------
        message : str
        timeout_seconds : float, optional
            In place of the client's.

        Raises
        ------
        OrchestraError
            The service's own error, by its class; `Unreachable` where none answers.
        """
        client = self._client
        ask = requests.chat(message, self.id, self._user_id, client._system.new_id(), stream=False)
        answer = client._run(flows.exchange(ask, client._attempts(timeout_seconds), timed=True))
        reply = requests.reply_of(answer)
        self.id = reply.session_id
        return reply

    def stream(self, message: str, *, timeout_seconds: float | None = None) -> "TurnStream":
        """Say `message`, and get the answer in pieces; see `TurnStream`. Parameters as for `say`."""
        turn = StreamedTurn(message, self.id, self._user_id, self._client._system.new_id())
        return TurnStream(self, turn, self._client._attempts(timeout_seconds))

    def connect(self, *, client_id: str | None = None) -> "Conversation":
        """Return a conversation over a WebSocket, to be entered; a session that does not exist is made.

        Parameters
        ----------
        client_id : str, optional
            Your own stable name of this client; others in the session see it.
        """
        client = self._client
        self.id = self.id or client._system.new_id()
        return Conversation(client, self.id, self._user_id, client_id or client._system.new_id())

    def read(self, *, after: int | None = None, before: int | None = None, limit: int | None = None) -> History:
        """Return how the session stands, and a page of its turns: the last ones, unless told otherwise.

        Parameters
        ----------
        after : int, optional
            The page begins with the turn behind that number.
        before : int, optional
            The page ends with the turn in front of that number.
        limit : int, optional
            Of turns, 1 to 100.
        """
        page = END if after is None and before is None else before
        ask = requests.read(self._known_id(), after=after, before=page, limit=limit)
        return requests.decoded(self._exchange(ask), History)

    def turns(self) -> Iterator[Turn]:
        """Yield every turn of the conversation, the first one first, a page at a time."""
        after: int | None = 0
        while after is not None:
            page = self.read(after=after)
            yield from page.turns
            after = page.next_after

    def change(self, **changes: Any) -> SessionStatus:
        """Change the session's profile: `system`, `pinned`, `context` and `metadata`, as `ProfileChange` has them."""
        ask = requests.change(self._known_id(), ProfileChange(**changes))
        return requests.decoded(self._exchange(ask), SessionStatus)

    def export(self, document: Format = "json") -> str:
        """Return the whole conversation as a document, ``json`` or ``markdown``."""
        return self._exchange(requests.export(self._known_id(), document)).body.decode()

    def delete(self) -> None:
        """Delete the session for good: its turns, its profile, and what memory keeps of them."""
        self._client._run(flows.deleted(requests.delete(self._known_id()), self._client._attempts()))

    def _exchange(self, ask: requests.Ask) -> Answer:
        return self._client._run(flows.exchange(ask, self._client._attempts()))

    def _known_id(self) -> str:
        return wire.known_id(self.id)


class TurnStream(AbstractContextManager["TurnStream"]):
    """One turn whose answer comes in pieces. Enter it, then iterate: it begins with the first piece that is asked for.

    >>> with chat.stream("hello") as turn:
    ...     for event in turn:
    ...         print(event, end="")
    >>> turn.reply

    Events are `Text`, and `Restarted` where all that came is void. A connection that is lost is taken up again where it
    was. A stream that is left before its end cancels the turn.

    Attributes
    ----------
    text : str
        The answer as far as it came.
    reply : ChatReply
        The whole reply, at the end.
    """

    def __init__(self, session: Session, turn: StreamedTurn, attempts: Attempts) -> None:
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
        """The whole reply.

        Raises
        ------
        InvalidRequest
            It is not there yet.
        """
        return wire.ended(self._turn.reply)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Text | Restarted:
        self._is_under_way = True
        try:
            return next(self._events)
        except (OrchestraError, StopIteration):
            self._is_under_way = False
            raise
        finally:
            if self._turn.reply is not None:  # a session of which the first turn was stopped was none
                self._session.id = self._turn.reply.session_id

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._carrier.close()
        turn, client = self._turn, self._session._client
        if self._is_under_way and turn.reply is None and turn.session_id and turn.turn_id:
            attempts = Attempts(Retries(attempts_max=1), client._system, wire.CANCEL_SECONDS_MAX)
            with suppress(OrchestraError):  # then it ends by itself, as nobody follows it
                client._run(flows.exchange(requests.cancel(turn.session_id, turn.turn_id), attempts))


class Conversation(AbstractContextManager["Conversation"]):
    """A conversation over a WebSocket that is connected again whenever it is lost. Enter it, then iterate.

    >>> with chat.connect() as conversation:
    ...     conversation.send("hello")
    ...     for event in conversation:
    ...         print(event, end="")

    Events are those of `orchestra.sdk.events`, of all turns of the session, also of what others say in it; they come,
    and the connection is looked after, while somebody iterates. Each piece of text comes once, whatever is cut where.

    Attributes
    ----------
    session_id, client_id : str
    """

    def __init__(self, client: Client, session_id: str, user_id: str | None, client_id: str) -> None:
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
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        self._entrance.enter()
        try:
            while not self._dialogue.is_ready:
                self._go_on()
        except BaseException:
            self._entrance.leave()
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entrance.leave()
        self._close()

    def send(self, message: str, *, message_id: str | None = None) -> str:
        """Say `message`, now or once there is a connection again; return its id, which its events bear.

        Parameters
        ----------
        message : str
        message_id : str, optional
            An id of your own, new for each message; the same again is the same turn.
        """
        self._entrance.check()
        message_id = requests.checked_id("message_id", message_id or self._system.new_id())
        self._dialogue.send(message, message_id, self._user_id)
        self._flush()
        return message_id

    def cancel(self, message_id: str) -> None:
        """Stop a turn, named by the id of its message, or by its own: it ends with `Failed` (`TurnCancelled`)."""
        self._entrance.check()
        self._dialogue.cancel(message_id)
        self._flush()

    def say(self, message: str) -> ChatReply:
        """Say `message`, and return the whole reply. Whatever else happens meanwhile goes by.

        Raises
        ------
        OrchestraError
            What the turn failed with.
        """
        with self._entrance.iterated():
            message_id = self.send(message)
            while True:
                event = self._next()
                if isinstance(event, Answered) and event.id == message_id:
                    return event.reply
                if isinstance(event, Failed) and event.id == message_id:
                    raise event.error

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        """Return what happens next.

        Raises
        ------
        InvalidRequest
            The conversation is not entered, or somebody else iterates.
        OrchestraError
            The connection is lost, and could not be had again.
        """
        with self._entrance.iterated():
            return self._next()

    def _next(self) -> Event:
        while not self._dialogue.events:
            self._entrance.check()  # it may be left meanwhile
            self._go_on()
        return self._dialogue.events.popleft()

    def _go_on(self) -> None:
        """Do one step."""
        step = self._dialogue.step()
        match step:
            case Connect():
                self._open()
            case Wait():
                self._system.pause(step.seconds)
            case Leave():
                self._close()
                self._dialogue.lost(1000, step.reason)
            case _:
                self._flush()
                self._receive(step.seconds)

    def _open(self) -> None:
        try:
            with wire.translated(wire.OPEN_SECONDS_MAX):
                self._socket = self._opened.enter_context(connect(self._target, **wire.SOCKET_OPTIONS))
        except OrchestraError as error:
            self._dialogue.refused(error)
        else:
            self._dialogue.opened()

    def _receive(self, seconds: float | None) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(seconds)
        except TimeoutError:
            if not self._dialogue.is_ready:
                self._close()
                self._dialogue.lost(1006, "the service did not get ready")
        except ConnectionClosed as closed:
            self._close()
            self._dialogue.lost(*wire.close_of(closed))
        else:
            self._dialogue.received(data)
            self._flush()

    def _flush(self) -> None:
        outgoing = self._dialogue.outgoing
        while outgoing and self._socket is not None:
            try:
                self._socket.send(outgoing.popleft(), text=True)
            except ConnectionClosed:
                return  # whoever receives learns it as well, and sends what is to be sent again

    def _close(self) -> None:
        self._socket = None
        self._opened.close()
