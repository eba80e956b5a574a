"""What one connection's frames do: they become turns, and what is said in the session goes back, in order and once.

    contract: `ConnectionHandler.open`, `handle`, `close`;  state: how far each turn was sent;
    behaviour: `ConnectionHandlers` makes them, tells all of a new level, and drains

Entries of the session's turns come by two ways. A turn whose `started` arrives while the connection stands is
*listened* to: its entries are pushed as they come. One that is resumed, or joined on its way, is *watched*: a task
reads its log from where the client is, and what is pushed of it meanwhile is left alone. So nothing is missed or
repeated between the two. A turn that ran before the connection stood stays silent until it is resumed.
"""

import asyncio
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import msgspec

from orchestra import limits
from orchestra.chat.connections import Connection, ConnectionPool
from orchestra.chat.sessions import Sessions
from orchestra.chat.stores import StoreCalls
from orchestra.chat.timeouts import TimeoutManager
from orchestra.chat.turns import Entry, LiveTurns, Watch, error_frame, turn_id_of
from orchestra.errors import OrchestraError, Overloaded, unforeseen
from orchestra.events import Hook, LevelChanged, UnexpectedError
from orchestra.frames import (
    PROTOCOL,
    Accepted,
    Cancel,
    ClientFrame,
    Goodbye,
    LevelFrame,
    Ping,
    Pong,
    Ready,
    Resume,
    SendMessage,
    Started,
)
from orchestra.model import ChatRequest, Turn
from orchestra.ports import ConversationStore, Entropy
from orchestra.resilience.degradation import Degradation, Feature
from orchestra.security.validation import validate_id

TOLD_AT_ONCE = 100
"""Connections that are told something in one step of the loop, when all are told."""

CLOSED_SECONDS_MAX = 2.0
"""How long a drain waits for connections to be closed; who serves them drops those that are left."""

RECONNECT_SECONDS = 1.0
RECONNECT_SPREAD_SECONDS = 5.0
"""Clients of an instance that goes come back within this, each at its own time: not all at once."""


class ConnectionHandlers:
    """What all handlers share, and what concerns all connections at once.

    Parameters
    ----------
    pool : ConnectionPool
    timeouts : TimeoutManager
    sessions : Sessions
    conversations : ConversationStore
    calls : StoreCalls
    turns : LiveTurns
    degradation : Degradation
    entropy : Entropy
    hook : Hook
    idle_seconds_max : float
    """

    def __init__(
        self,
        pool: ConnectionPool,
        timeouts: TimeoutManager,
        sessions: Sessions,
        conversations: ConversationStore,
        calls: StoreCalls,
        turns: LiveTurns,
        degradation: Degradation,
        entropy: Entropy,
        hook: Hook,
        idle_seconds_max: float,
    ) -> None:
        self.pool = pool
        self.timeouts = timeouts
        self.sessions = sessions
        self.conversations = conversations
        self.calls = calls
        self.turns = turns
        self.degradation = degradation
        self.entropy = entropy
        self.hook = hook
        self.idle_seconds_max = idle_seconds_max
        self.now = asyncio.get_running_loop().time
        self._telling: asyncio.Task[None] | None = None
        degradation.listen(self._level_changed)

    def level_frame(self) -> LevelFrame:
        """Return what the level is now, and what it switches off."""
        described = self.degradation.describe()
        return LevelFrame(described.level, described.disabled)

    def _level_changed(self, _: LevelChanged) -> None:
        if self._telling is None and len(self.pool):
            self._telling = asyncio.create_task(self._tell_level())

    async def _tell_level(self) -> None:
        """Tell all connections of the level; of steps that follow each other at once only the last."""
        told = None
        while (level := self.level_frame()) != told:
            data = msgspec.json.encode(level)
            async for connection in self._all():
                connection.push(data)
            told = level
        self._telling = None

    async def _all(self) -> AsyncIterator[Connection]:
        """Yield all connections, a few in each step of the loop."""
        for number, connection in enumerate(self.pool.connections):
            if number % TOLD_AT_ONCE == 0:
                await asyncio.sleep(0)
            yield connection

    async def drain(self, seconds_max: float) -> None:
        """Admit no more connections and turns, send clients elsewhere, and close when the running turns have ended.

        Parameters
        ----------
        seconds_max : float
            How long running turns may go on; then they are stopped, and their clients may send them again.
        """
        self.pool.draining = True
        async for connection in self._all():
            connection.send(self._goodbye())
        await self.turns.drain(seconds_max)
        async for connection in self._all():
            connection.close(1012, "the instance is shutting down: connect again")
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSED_SECONDS_MAX):
                await self.pool.emptied()

    def _goodbye(self) -> Goodbye:
        after = RECONNECT_SECONDS + self.entropy.random() * RECONNECT_SPREAD_SECONDS
        return Goodbye("the instance is shutting down", round(after, 3))

    def aclose(self) -> None:
        """Stop what runs for all."""
        if self._telling is not None:
            self._telling.cancel()
        self.timeouts.close()


class ConnectionHandler:
    """Handles one connection, from its `ready` to its end."""

    __slots__ = ("_connection", "_held", "_own", "_sent", "_shared", "_starting", "_stop_listening", "_watching")

    def __init__(self, shared: ConnectionHandlers, connection: Connection) -> None:
        self._shared = shared
        self._connection = connection
        self._sent: dict[str, int] = {}  # the number of the last entry sent, of each turn that is listened to
        self._own: dict[str, None] = {}  # turns that this client asked for and that have not ended
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._starting: str | None = None  # the turn whose entries wait for its `accepted`
        self._held: list[Entry] | None = []  # entries that wait; None: none need to
        self._stop_listening: Callable[[], None] | None = None

    async def open(self) -> None:
        """Create or restore the session, and say `ready`.

        Raises
        ------
        OrchestraError
            The session cannot be had, or no more connections are wanted.
        """
        shared, connection = self._shared, self._connection
        session_id = connection.session_id
        self._stop_listening = shared.turns.listen(session_id, self._deliver)
        session = await shared.sessions.restore(session_id, None, connection.id, create=True)
        latest = shared.conversations.latest(session_id, limit=limits.READY_TURNS_MAX)
        history = _within(await shared.calls("conversations", connection.id, latest))
        live = await shared.turns.running(session_id)
        level = shared.level_frame()
        connection.send(
            Ready(
                PROTOCOL,
                connection.id,
                connection.client_id,
                session_id,
                max(session.version, history[-1].number if history else 0),
                level.level,
                level.off,
                history,
                live,
                shared.idle_seconds_max,
            )
        )
        known = {turn.id for turn in history}
        self._release(lambda entry: entry.frame.turn_id not in known)
        shared.pool.add(connection)
        shared.pool.check_open()

    async def handle(self, frame: ClientFrame) -> None:
        """Do what the client asks."""
        match frame:
            case SendMessage():
                await self._message(frame)
            case Resume():
                await self._resume(frame)
            case Cancel():
                _check_turn_id(frame.turn_id)
                await self._shared.turns.cancel(self._connection.session_id, frame.turn_id)
            case Ping():
                self._connection.send(Pong(frame.id))

    async def close(self) -> None:
        """Follow nothing any more, and let the session live a day from now."""
        if self._stop_listening is not None:
            self._stop_listening()
        tasks = tuple(self._watching.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._connection.received:
            with suppress(OrchestraError):  # it was saved with each of its turns; this only lets it live longer
                await self._shared.sessions.restore(self._connection.session_id, None, self._connection.id)

    async def _message(self, frame: SendMessage) -> None:
        validate_id("$.id", frame.id, "send an id of your own, new for each message")
        connection = self._connection
        request = ChatRequest(frame.message, connection.session_id, frame.user_id, stream=True)
        turn_id = turn_id_of(connection.session_id, frame.user_id, frame.id)
        fresh = turn_id not in self._own
        if fresh and len(self._own) >= limits.TURNS_PER_CONNECTION_MAX:
            raise Overloaded(
                f"{limits.TURNS_PER_CONNECTION_MAX} of your messages wait for their answers, as many as may: wait for "
                f"one",
                retry_after_seconds=1,
            )
        self._starting, self._held = turn_id, []
        self._own[turn_id] = None
        try:
            watch = await self._shared.turns.start(request, key=frame.id, create=True, client_id=connection.client_id)
        except BaseException:
            if fresh:
                self._own.pop(turn_id, None)
            raise
        else:
            connection.send(Accepted(frame.id, turn_id))
            begun = bool(self._held) and isinstance(self._held[0].frame, Started)
            if not begun and turn_id not in self._sent:
                self._watch(watch)
        finally:
            self._starting = None
            self._release(lambda _: True)

    async def _resume(self, frame: Resume) -> None:
        _check_turn_id(frame.turn_id)
        if frame.turn_id in self._watching:
            return
        _check_room(self._watching)
        session_id = self._connection.session_id
        watch = await self._shared.turns.resume(session_id, frame.turn_id, after=frame.after)
        if frame.turn_id not in self._sent:  # else all of it that there is was sent here, or will be
            self._watch(watch)

    def _watch(self, watch: Watch) -> None:
        if watch.turn_id not in self._watching:
            self._watching[watch.turn_id] = asyncio.create_task(self._follow(watch))

    async def _follow(self, watch: Watch) -> None:
        """Send the log of a turn to its end."""
        try:
            async with watch:
                async for entry in watch:
                    await self._connection.room()
                    self._connection.push(entry.data)
        except Exception as raised:
            self._connection.send(error_frame(self.boundary(raised), turn_id=watch.turn_id))
        finally:
            del self._watching[watch.turn_id]
            self._own.pop(watch.turn_id, None)

    def _deliver(self, entry: Entry) -> None:
        if self._held is not None and self._starting in (None, entry.frame.turn_id):
            self._held.append(entry)
        else:
            self._pass_on(entry)

    def _release(self, wanted: Callable[[Entry], bool]) -> None:
        """Hold entries no longer, and pass on those that were."""
        held, self._held = self._held or (), None
        for entry in held:
            if wanted(entry):
                self._pass_on(entry)

    def _pass_on(self, entry: Entry) -> None:
        """Send an entry where it is the next of its turn."""
        turn_id, seq = entry.frame.turn_id, entry.frame.seq
        assert turn_id is not None
        assert seq is not None
        if turn_id in self._watching:
            return
        last = self._sent.get(turn_id)
        if last is None:
            if not isinstance(entry.frame, Started) or not self._may_see(turn_id):
                return
        elif seq <= last:
            return
        self._connection.push(entry.data)
        if entry.ends:
            self._sent.pop(turn_id, None)
            self._own.pop(turn_id, None)
        else:
            self._sent[turn_id] = seq

    def _may_see(self, turn_id: str) -> bool:
        return turn_id in self._own or self._shared.degradation.allows(Feature.COLLABORATION)

    def boundary(self, raised: Exception) -> OrchestraError:
        """Return what the client may know of `raised`; a defect goes to the hook with its traceback."""
        if isinstance(raised, OrchestraError):
            return raised
        text = "".join(traceback.format_exception(raised))
        self._shared.hook(UnexpectedError(self._shared.now(), self._connection.id, "websocket", text))
        return unforeseen()


def _check_turn_id(turn_id: str) -> None:
    validate_id("$.turn_id", turn_id, "send the one that `accepted` or `started` named")


def _check_room(watching: dict[str, asyncio.Task[None]]) -> None:
    if len(watching) >= limits.TURNS_PER_CONNECTION_MAX:
        raise Overloaded("as many turns are being resumed as may be at once: wait for one", retry_after_seconds=1)


def _within(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """Return the last of `turns` that are within `limits.READY_BYTES_MAX` together."""
    left = limits.READY_BYTES_MAX
    for index in reversed(range(len(turns))):
        left -= len(msgspec.json.encode(turns[index]))
        if left < 0:
            return turns[index + 1 :]
    return turns
