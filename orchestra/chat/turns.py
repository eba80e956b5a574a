"""Live turns: they run apart from whoever asked for them, so that a connection may drop and come back.

    contract: `Entry`, `Watch`;  state: `_LiveTurn`;  behaviour: `LiveTurns`

A turn that runs is a log of frames (`orchestra.frames`), which anybody may follow from any place in it: the client
that asked, the same client after it lost its connection, others in the session. Nothing is queued for a follower: one
that is slow reads the log later, so followers cost no memory. A turn that nobody follows any more is stopped when its
grace is over.
"""

import asyncio
from collections.abc import Callable
from hashlib import sha256
from types import TracebackType
from typing import NamedTuple, Self

import msgspec
from msgspec.structs import replace

from orchestra.chat.orchestrator import ChatOrchestrator
from orchestra.chat.stores import StoreCalls
from orchestra.errors import (
    KeyReused,
    OrchestraError,
    ShuttingDown,
    TurnCancelled,
    TurnInFlight,
    TurnUnknown,
    retry_after_of,
    unforeseen,
)
from orchestra.frames import DeltaFrame, Done, ErrorFrame, LiveTurnView, LogFrame, Started
from orchestra.model import ChatReply, ChatRequest, Given, TraceContext, Turn
from orchestra.ports import ConversationStore, Entropy
from orchestra.security.validation import validate

TURN_ID_BYTES = 16


class Entry(NamedTuple):
    """One frame of a turn's log, and the JSON that it is sent as."""

    frame: LogFrame
    data: bytes

    @property
    def ends(self) -> bool:
        """Whether it is the log's last."""
        return isinstance(self.frame, Done | ErrorFrame)


Deliver = Callable[[Entry], None]
"""Gets every entry of the turns of a session at once; must not block, raise or await."""


class Watch:
    """One who follows a turn's log: enter it, then iterate over its entries from behind number `after` to the end.

    Parameters
    ----------
    grace : bool
        Whether the turn, once nobody follows it any more, goes on for the grace that clients have to come back.
    replayed : bool
        Whether the turn had begun before it was asked for.
    """

    def __init__(self, turn: "_LiveTurn", after: int, *, grace: bool, replayed: bool = True) -> None:
        self.turn_id = turn.turn_id
        self.session_id = turn.session_id
        self.replayed = replayed
        self._turn = turn
        self._next = after
        self._grace = grace

    async def __aenter__(self) -> Self:
        self._turn.attach()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._turn.detach(grace=self._grace)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Entry:
        log = self._turn.log
        while self._next >= len(log):
            if self._turn.ended:
                raise StopAsyncIteration
            await self._turn.grown()
        self._next += 1
        return log[self._next - 1]

    async def reply(self) -> ChatReply:
        """Return the whole reply once the turn has ended.

        Raises
        ------
        OrchestraError
            What the turn failed with.
        """
        async for entry in self:
            if isinstance(entry.frame, Done):
                return entry.frame.reply
        assert self._turn.error is not None
        raise self._turn.error


class _LiveTurn:
    """A turn while it runs, and its log."""

    def __init__(self, session_id: str, turn_id: str, request: ChatRequest, grace_seconds: float) -> None:
        self.session_id = session_id
        self.turn_id = turn_id
        self.request = request
        self.log: list[Entry] = []
        self.error: OrchestraError | None = None
        self.stopped_by: OrchestraError | None = None
        self.task: asyncio.Task[None] | None = None
        self._grace_seconds = grace_seconds
        self._watchers = 0
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def seq(self) -> int:
        return len(self.log)

    @property
    def ended(self) -> bool:
        return bool(self.log) and self.log[-1].ends

    def add(self, frame: LogFrame) -> Entry:
        entry = Entry(frame, msgspec.json.encode(frame))
        self.log.append(entry)
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.done():
                each.set_result(None)
        return entry

    async def grown(self) -> None:
        """Return once the log has another entry."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await waiter

    def attach(self) -> None:
        self._watchers += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def detach(self, *, grace: bool) -> None:
        self._watchers -= 1
        if self._watchers or self.task is None or self.task.done():
            return
        if grace and self._grace_seconds:
            self._timer = asyncio.get_running_loop().call_later(self._grace_seconds, self._abandon)
            return
        self._abandon()
        await asyncio.wait((self.task,))  # when the request is over, so are its calls

    def _abandon(self) -> None:
        self.stop(TurnCancelled("nobody waits for the answer any more"))

    def stop(self, why: OrchestraError) -> None:
        """End the turn, unless it is ending: what it called is closed."""
        if self.task is not None and not self.task.done():
            self.stopped_by = self.stopped_by or why
            self.task.cancel()


class LiveTurns:
    """All turns that run in this process.

    Parameters
    ----------
    orchestrator : ChatOrchestrator
    conversations : ConversationStore
        Tells whether a turn that comes again is durable already.
    calls : StoreCalls
    entropy : Entropy
    grace_seconds : float
        How long a turn goes on that nobody follows, so that its client may come back; 0 stops it at once.
    """

    def __init__(
        self,
        orchestrator: ChatOrchestrator,
        conversations: ConversationStore,
        calls: StoreCalls,
        entropy: Entropy,
        grace_seconds: float,
    ) -> None:
        self._orchestrator = orchestrator
        self._conversations = conversations
        self._calls = calls
        self._entropy = entropy
        self._grace_seconds = grace_seconds
        self._turns: dict[str, _LiveTurn] = {}
        self._listeners: dict[str, list[Deliver]] = {}
        self._draining = False

    async def start(
        self,
        request: ChatRequest,
        *,
        key: str | None = None,
        create: bool = False,
        join: bool = True,
        grace: bool = True,
        client_id: str = "",
        correlation_id: str | None = None,
        trace: TraceContext | None = None,
        seconds_max: float | None = None,
        given: Given | None = None,
    ) -> Watch:
        """Start a turn, and return a watch of it that is yet to be entered.

        Parameters
        ----------
        request : ChatRequest
            Without a `session_id`, a session is begun.
        key : str or None
            The client's own name of the turn, unique within the session. A turn that runs under it is joined, one that
            is durable is answered from the conversation: nothing runs twice.
        create : bool
            Whether a session that does not exist is made under the id that the request names.
        join : bool
            Whether to follow a turn that already runs; else that is `TurnInFlight`.
        grace : bool
            As in `Watch`.
        client_id : str
            Who says it, for the others in the session.
        correlation_id, trace, seconds_max, given
            As `ChatOrchestrator.handle_chat` takes them.

        Raises
        ------
        KeyReused
            Under this key something else was said.
        TurnInFlight, ShuttingDown, StoreUnavailable, InvalidRequest
        """
        validate(request)
        turn_id = (
            self._entropy.hex(TURN_ID_BYTES) if key is None else turn_id_of(request.session_id, request.user_id, key)
        )
        if (running := self._turns.get(turn_id)) is not None:
            _check_same(running.request.message, request.message)
            if not join and not running.ended:
                raise TurnInFlight(
                    "this turn is under way: its reply can be had when it is done", retry_after_seconds=1
                )
            return Watch(running, 0, grace=grace)
        if key and (stored := await self._stored(turn_id, correlation_id)) is not None:
            _check_same(stored.message, request.message)
            return Watch(_ended(stored), 0, grace=False)
        if self._draining:
            raise ShuttingDown(
                "the instance is shutting down: connect again and send it once more", retry_after_seconds=1
            )
        session_id = request.session_id or self._entropy.hex(TURN_ID_BYTES)
        turn = _LiveTurn(session_id, turn_id, replace(request, session_id=session_id), self._grace_seconds)
        self._turns[turn_id] = turn
        self._add(turn, Started(session_id, turn_id, turn.seq + 1, request.message, client_id))
        create = create or request.session_id is None
        turn.task = asyncio.create_task(self._run(turn, create, correlation_id, trace, seconds_max, given))
        return Watch(turn, 0, grace=grace, replayed=False)

    async def resume(self, session_id: str, turn_id: str, *, after: int = 0, grace: bool = True) -> Watch:
        """Return a watch of a turn's log from behind number `after`, wherever the turn runs, or how it ended.

        Of a turn that ended too long ago, what the log had is gone, and `Done` with its whole reply is all that comes.

        Raises
        ------
        TurnUnknown
            No such turn runs in that session, and none is durable.
        """
        if (running := self._turns.get(turn_id)) is not None and running.session_id == session_id:
            return Watch(running, min(after, running.seq), grace=grace)
        stored = await self._stored(turn_id, None)
        if stored is None or stored.session_id != session_id:
            raise _unknown(turn_id)
        return Watch(_ended(stored), 1, grace=False)

    async def cancel(self, session_id: str, turn_id: str) -> None:
        """Stop the turn, wherever it runs; its log ends with `TurnCancelled`. One that has ended stays as it is.

        Raises
        ------
        TurnUnknown
        """
        running = self._turns.get(turn_id)
        if running is not None and running.session_id == session_id:
            running.stop(TurnCancelled("a client stopped the turn: nothing of it is kept"))
        elif await self._stored(turn_id, None) is None:
            raise _unknown(turn_id)

    async def running(self, session_id: str) -> tuple[LiveTurnView, ...]:
        """Return the turns of the session that run now, wherever they do."""
        return tuple(
            LiveTurnView(each.turn_id, each.seq)
            for each in self._turns.values()
            if each.session_id == session_id and not each.ended
        )

    def listen(self, session_id: str, deliver: Deliver) -> Callable[[], None]:
        """Let `deliver` get what is added to the logs of the session's turns from now on, and return how to end that.

        A listener counts as a follower of every turn of the session.
        """
        listeners = self._listeners.setdefault(session_id, [])
        listeners.append(deliver)

        def end() -> None:
            listeners.remove(deliver)
            if not listeners and self._listeners.get(session_id) is listeners:
                del self._listeners[session_id]

        return end

    async def drain(self, seconds_max: float) -> None:
        """Take no more turns, and return when all have ended; those that run longer are stopped with `ShuttingDown`."""
        self._draining = True
        tasks = [each.task for each in self._turns.values() if each.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds_max)
        for each in tuple(self._turns.values()):
            each.stop(ShuttingDown("the instance is shutting down: send it once more", retry_after_seconds=1))
        if tasks:
            await asyncio.wait(tasks)

    async def _run(
        self,
        turn: "_LiveTurn",
        create: bool,
        correlation_id: str | None,
        trace: TraceContext | None,
        seconds_max: float | None,
        given: Given | None,
    ) -> None:
        """Run the turn to its end, which is the last entry of its log."""

        async def sink(text: str) -> None:
            self._add(turn, DeltaFrame(turn.turn_id, turn.seq + 1, text))

        try:
            reply = await self._orchestrator.handle_chat(
                turn.request,
                correlation_id=correlation_id,
                trace=trace,
                seconds_max=seconds_max,
                sink=sink,
                turn_id=turn.turn_id,
                create=create,
                given=given,
            )
        except BaseException as raised:
            turn.error = turn.stopped_by or (raised if isinstance(raised, OrchestraError) else unforeseen())
            self._add(
                turn, error_frame(turn.error, turn_id=turn.turn_id, seq=turn.seq + 1, correlation_id=correlation_id)
            )
            if not isinstance(raised, Exception) and turn.stopped_by is None:
                raise
        else:
            self._add(turn, Done(turn.turn_id, turn.seq + 1, reply))
        finally:
            del self._turns[turn.turn_id]

    def _add(self, turn: "_LiveTurn", frame: LogFrame) -> None:
        entry = turn.add(frame)
        for deliver in tuple(self._listeners.get(turn.session_id, ())):
            deliver(entry)

    async def _stored(self, turn_id: str, correlation_id: str | None) -> Turn | None:
        found = self._conversations.find(turn_id)
        return await self._calls("conversations", correlation_id or turn_id, found)


def _ended(turn: Turn) -> "_LiveTurn":
    """Return a turn that was durable before anybody watched it, as a log of its beginning and its end."""
    ended = _LiveTurn(turn.session_id, turn.id, ChatRequest(turn.message, turn.session_id), 0)
    ended.add(Started(turn.session_id, turn.id, 1, turn.message))
    ended.add(Done(turn.id, 2, turn.as_reply))
    return ended


def _check_same(first: str, now: str) -> None:
    if first != now:
        raise KeyReused("this idempotency key was sent with another message: use a new key for a new message")


def _unknown(turn_id: str) -> TurnUnknown:
    return TurnUnknown(f"there is no turn {turn_id!r} in this session, running or durable", field="turn_id")


def error_frame(
    error: OrchestraError,
    *,
    turn_id: str | None = None,
    seq: int | None = None,
    id: str | None = None,  # noqa: A002 - the frame's own name for it
    correlation_id: str | None = None,
) -> ErrorFrame:
    """Return `error` as a frame."""
    return ErrorFrame(
        error.kind,
        error.title,
        error.status,
        error.detail,
        error.retryable,
        turn_id=turn_id,
        seq=seq,
        id=id,
        field=error.field,
        retry_after_seconds=retry_after_of(error),
        correlation_id=correlation_id,
    )


def turn_id_of(session_id: str | None, user_id: str | None, key: str) -> str:
    """Return the id of the turn that a client names `key`: the same for the same, on every instance."""
    named = "\0".join((session_id or "", user_id or "", key))
    return sha256(named.encode()).hexdigest()[: 2 * TURN_ID_BYTES]
