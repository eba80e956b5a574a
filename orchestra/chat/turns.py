"""Live turns: they run apart from whoever asked for them, so that a connection may drop and come back.

    contract: `LiveTurns`;  state: `_Run`;  behaviour: how a turn is opened, told, stopped and given up

A turn that runs is a log (`orchestra.chat.turnlog`), which anybody may follow from any place in it: the client that
asked, the same client after it lost its connection, others in the session, also on other instances
(`orchestra.chat.replicas`). A turn that nobody follows any more is stopped when its grace is over.

What a client names by a key of its own is one turn, whatever happens: it is claimed before it runs, so that no other
instance runs it meanwhile, and looked up in the conversation after that, so that nothing that is durable runs again.
Without the relay, or where an instance hangs for longer than its lease, a turn may run twice; it is in the
conversation once, and both runs tell what is there.

From the moment in which a turn begins to be written, it cannot be stopped any more. So a turn that is said to be
cancelled is in no conversation, and one that is in a conversation ends with its reply.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

import msgspec
from msgspec.structs import replace

from orchestra import limits
from orchestra.chat.orchestrator import ChatOrchestrator
from orchestra.chat.replicas import (
    ATTENDED_SECONDS,
    EVERYWHERE,
    MESSAGES,
    Attend,
    Begun,
    Deleted,
    Entries,
    Gone,
    Replicas,
    Stop,
    entries_of,
    entries_since,
    instance_address,
    lost,
    session_address,
)
from orchestra.chat.stores import StoreCalls
from orchestra.chat.turnlog import (
    END_SEQ,
    SEQS_PER_RUN,
    Entry,
    Followed,
    KeptLogs,
    TurnLog,
    Watch,
    ended_log,
    error_frame,
)
from orchestra.errors import (
    KeyReused,
    OrchestraError,
    SessionUnknown,
    ShuttingDown,
    StoreUnavailable,
    TurnCancelled,
    TurnInFlight,
    TurnUnknown,
    unforeseen,
)
from orchestra.events import Hook, TurnAbandoned, TurnResumed
from orchestra.frames import DeltaFrame, Done, LogFrame, Started
from orchestra.model import ChatReply, ChatRequest, Given, LiveTurnView, TraceContext, Turn
from orchestra.ports import Claim, ConversationStore, Entropy, Found, Relay
from orchestra.security.validation import validate

__all__ = ["Deliver", "Entry", "LiveTurns", "Watch", "error_frame", "turn_id_of"]

TURN_ID_BYTES = 16
ENTER_SECONDS = 1.0
"""How long a turn that has begun waits for its first follower."""
STOPPED_SECONDS_MAX = 5.0
"""How long a turn that is stopped, and is being written, may take to end when the service does."""

Deliver = Callable[[Entry], None]
"""Gets every entry of the turns of a session at once; must not block, raise or await."""


@dataclass(frozen=True)
class _Asked:
    """A turn as it was asked for."""

    request: ChatRequest
    turn_id: str
    about: str
    keyed: bool
    create: bool
    grace: bool
    client_id: str
    correlation_id: str
    trace: TraceContext | None
    seconds_max: float | None
    given: Given | None

    @property
    def private(self) -> bool:
        """Whether nobody can know of the turn before its whole reply, neither its id nor its session's."""
        return not (self.keyed or self.grace or self.request.stream or self.request.session_id)


class _Run(Followed):
    """A turn that runs here, and who follows it."""

    def __init__(
        self,
        log: TurnLog,
        asked: _Asked,
        grace_seconds: float,
        is_listened: Callable[[], bool],
        abandon: Callable[["_Run"], None],
    ) -> None:
        super().__init__(log)
        self.asked = asked
        self.task: asyncio.Task[ChatReply] | None = None
        self.stopped_by: OrchestraError | None = None
        self.is_written = False
        self.attended: dict[str, float] = {}  # until when each other instance follows it
        self._enter_by = 0.0  # by when the first follower has to be here
        self._back_by = 0.0  # by when one who left may come back
        self._grace_seconds = grace_seconds
        self._is_listened = is_listened
        self._abandon = abandon
        self._watchers = 0
        self._timer: asyncio.TimerHandle | None = None

    def attach(self) -> None:
        """Count one more follower."""
        self._watchers += 1
        self._enter_by = 0.0
        self.consider()

    async def detach(self, *, grace: bool) -> None:
        """Count one less; where the turn is given up at once, return when all that it called is closed."""
        self._watchers -= 1
        if grace:
            self.left()
        else:
            self.consider()
        if self.stopped_by is not None and self.task is not None:
            await asyncio.wait((self.task,))

    def attend(self, instance: str) -> None:
        """Count another instance as a follower, for a while."""
        self.attended[instance] = asyncio.get_running_loop().time() + ATTENDED_SECONDS
        self.left(ATTENDED_SECONDS)

    def enter(self, seconds: float) -> None:
        """Wait so long for the first follower."""
        self._enter_by = asyncio.get_running_loop().time() + seconds
        self.consider()

    def left(self, after_seconds: float = 0.0) -> None:
        """Give the grace to one who leaves, now or after so long; nobody else's leaving takes it away."""
        self._back_by = max(self._back_by, asyncio.get_running_loop().time() + after_seconds + self._grace_seconds)
        self.consider()

    def consider(self) -> None:
        """See whether anybody follows the turn; else let it be given up when its grace is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watchers or self._is_listened() or self.log.ended:
            return
        loop = asyncio.get_running_loop()
        until = max(self._enter_by, self._back_by)
        if until > loop.time():
            self._timer = loop.call_at(until, self._abandon, self)
        else:
            self._abandon(self)

    def stop(self, why: OrchestraError) -> None:
        """End the turn, and close what it called; one that is being written, or has ended, goes on as it is."""
        if self.is_written or self.stopped_by is not None or self.task is None or self.task.done():
            return
        self.stopped_by = why
        self.task.cancel()

    def write(self) -> None:
        """Begin to write the turn: from here on it cannot be stopped."""
        if self.stopped_by is not None:
            raise self.stopped_by
        self.is_written = True

    def close(self) -> None:
        """Consider nothing any more."""
        self._watchers += 1
        self.consider()


class _Opening:
    """A turn with a key that is being looked for, and begun where there is none; all who ask meanwhile share it."""

    def __init__(self, asked: _Asked) -> None:
        self.asked = asked
        self.askers = 0
        self.task: asyncio.Task[tuple[Followed, bool]] | None = None


class LiveTurns:
    """All turns that run in this process, and those elsewhere that are followed here.

    Parameters
    ----------
    orchestrator : ChatOrchestrator
    conversations : ConversationStore
        Tells whether a turn that comes again is durable already.
    calls : StoreCalls
    relay : Relay
    entropy : Entropy
    hook : Hook
    grace_seconds : float
        How long a turn goes on that nobody follows, so that its client may come back; 0 stops it at once.
    forget : callable
        Told the id of each session that was deleted, here or on another instance.
    """

    def __init__(
        self,
        orchestrator: ChatOrchestrator,
        conversations: ConversationStore,
        calls: StoreCalls,
        relay: Relay,
        entropy: Entropy,
        hook: Hook,
        grace_seconds: float,
        forget: Callable[[str], None],
    ) -> None:
        self._orchestrator = orchestrator
        self._conversations = conversations
        self._calls = calls
        self._relay = relay
        self._entropy = entropy
        self._hook = hook
        self._grace_seconds = grace_seconds
        self._forget = forget
        self._runs: dict[str, _Run] = {}
        self._sessions: dict[str, dict[str, _Run]] = {}  # the runs again, by their session
        self._openings: dict[str, _Opening] = {}
        self._kept = KeptLogs()
        self._listeners: dict[str, list[Deliver]] = {}
        self._unhear: dict[str, Callable[[], None]] = {}
        self._replicas = Replicas(
            relay, calls, self._stored, self._deliver, self._listeners.__contains__, self._kept.add
        )
        self._draining = False
        self._unhear_all = [relay.hear(each, self._receive) for each in (instance_address(relay.instance), EVERYWHERE)]

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
        """Start a turn, and return a watch of it that is yet to be entered, soon.

        Parameters
        ----------
        request : ChatRequest
            Without a `session_id`, a session is begun.
        key : str or None
            The client's own name of the turn, unique within the session and user. A turn that runs under it, on
            whichever instance, is joined; one that is durable is answered from the conversation: nothing runs twice.
            One that failed, or was stopped, runs again.
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
        correlation_id = correlation_id or self._entropy.hex(TURN_ID_BYTES)
        keyed = key is not None
        turn_id = turn_id_of(request.session_id, request.user_id, key) if key is not None else self._new_id()
        about = _about(request.message, given) if keyed else ""
        asked = _Asked(
            request, turn_id, about, keyed, create, grace, client_id, correlation_id, trace, seconds_max, given
        )
        followed: Followed | None = None
        replayed = True
        if not keyed:
            followed, replayed = self._begin(asked, 0), False
        elif (followed := self._at_hand(asked)) is None:
            followed, replayed = await self._opened(asked)
        if replayed and not join and not followed.log.ended:
            raise TurnInFlight("this turn is under way: its reply can be had when it is done", retry_after_seconds=1)
        return Watch(followed, 0, grace=grace, replayed=replayed)

    async def resume(self, session_id: str, turn_id: str, *, after: int = 0, grace: bool = True) -> Watch:
        """Return a watch of a turn's log from behind number `after`, wherever the turn runs, or how it ended.

        Of a turn that ended too long ago, what the log had is gone, and `Done` with its whole reply is all that comes,
        once: its number is `END_SEQ`, and behind that nothing comes.

        Raises
        ------
        TurnUnknown
            No such turn runs in that session, and none is durable.
        TurnLost
            The instance that ran it is gone: the client sends its message again, under the same key.
        StoreUnavailable
        """
        after = min(after, END_SEQ)
        followed, source = await self._sought(session_id, turn_id, after)
        at = asyncio.get_running_loop().time()
        self._hook(TurnResumed(at, "", session_id, turn_id, source))
        return Watch(followed, after, grace=grace)

    async def cancel(self, session_id: str, turn_id: str) -> None:
        """Stop the turn, wherever it runs; its log ends with `TurnCancelled`.

        One that is being written is not stopped, and one that has ended stays as it is.

        Raises
        ------
        TurnUnknown, StoreUnavailable
        """
        run = self._runs.get(turn_id)
        if run is not None and run.log.session_id == session_id:
            run.stop(_stopped())
            return
        replica = self._replicas.get(turn_id)
        if replica is None:
            kept = self._kept.get(turn_id)
            if kept is not None and kept.session_id == session_id:
                return
            found = await self._found(session_id, turn_id)
            if found is not None and found.alive and found.runs and found.holder != self._relay.instance:
                replica = self._replicas.follow(session_id, turn_id, found.holder)
        if replica is not None and replica.log.session_id == session_id:
            self._replicas.stop(replica)
        elif (stored := await self._stored(turn_id)) is None or stored.session_id != session_id:
            raise _unknown(turn_id)

    async def running(self, session_id: str) -> tuple[LiveTurnView, ...]:
        """Return the turns of the session that run now, wherever they do.

        Of one that runs elsewhere and is not followed here, the last number is not known and told as 0.
        """
        views = {turn_id: LiveTurnView(turn_id, run.log.seq) for turn_id, run in self._of(session_id).items()}
        try:
            elsewhere = await self._calls("relay", session_id, self._relay.running(session_id))
        except StoreUnavailable:
            elsewhere = {}
        for turn_id, holder in elsewhere.items():
            if holder != self._relay.instance and turn_id not in views:
                replica = self._replicas.get(turn_id)
                views[turn_id] = LiveTurnView(turn_id, replica.log.seq if replica else 0)
        return tuple(views.values())

    def listen(self, session_id: str, deliver: Deliver) -> Callable[[], None]:
        """Let `deliver` get what is added to the logs of the session's turns from now on, and return how to end that.

        A listener counts as a follower of every turn of the session that begins, and of those that run here.
        """
        listeners = self._listeners.get(session_id)
        if listeners is None:
            listeners = self._listeners[session_id] = []
            self._unhear[session_id] = self._relay.hear(session_address(session_id), self._receive)
        listeners.append(deliver)
        for run in self._of(session_id).values():
            run.consider()

        def end() -> None:
            if deliver not in listeners:
                return
            listeners.remove(deliver)
            if not listeners:
                del self._listeners[session_id]
                self._unhear.pop(session_id)()
                for run in tuple(self._of(session_id).values()):
                    run.left()

        return end

    def deleted(self, session_id: str) -> None:
        """Forget, here and on all instances, what is kept in memory of a session that was deleted."""
        self._relay.tell(EVERYWHERE, msgspec.msgpack.encode(Deleted(session_id)))
        self._forget_session(session_id)

    async def drain(self, seconds_max: float) -> None:
        """Take no more turns, and return when all have ended; those that run longer are stopped with `ShuttingDown`."""
        self._draining = True
        if (tasks := self._tasks()) and seconds_max > 0:
            await asyncio.wait(tasks, timeout=seconds_max)
        for run in tuple(self._runs.values()):
            run.stop(_shutting_down())
        if tasks := self._tasks():
            await asyncio.wait(tasks, timeout=STOPPED_SECONDS_MAX)
        await self._cut()

    async def aclose(self) -> None:
        """Stop everything: turns that run are cut off."""
        self._draining = True
        openings = [opening.task for opening in self._openings.values() if opening.task is not None]
        for task in openings:
            task.cancel()
        if openings:
            await asyncio.wait(openings)
        await self._cut()
        for unhear in (*self._unhear.values(), *self._unhear_all):
            unhear()
        await self._replicas.aclose()
        self._kept.close()

    # --- how a turn is opened

    def _at_hand(self, asked: _Asked) -> Followed | None:
        """Return the turn where it runs and is followed here already; one that has ended is the conversation's to tell.

        What history came with a turn that runs elsewhere, its claim tells and its log does not.
        """
        run = self._runs.get(asked.turn_id)
        if run is not None:
            _check_same(run.asked.about, asked.about)
            return run if run.stopped_by is None else None
        replica = self._replicas.get(asked.turn_id) if asked.given is None else None
        if replica is not None:
            _check_same(replica.log.message, asked.request.message)
        return replica

    async def _opened(self, asked: _Asked) -> tuple[Followed, bool]:
        """Return the turn, and whether it had begun before; who asks for one that is being opened shares it."""
        opening = self._openings.get(asked.turn_id)
        first = opening is None
        if opening is None:
            opening = self._openings[asked.turn_id] = _Opening(asked)
            opening.task = asyncio.create_task(self._open(opening))
            opening.task.add_done_callback(lambda task: task.cancelled() or task.exception())  # askers may be gone
        _check_same(opening.asked.about, asked.about)
        assert opening.task is not None
        opening.askers += 1
        try:
            followed, replayed = await asyncio.shield(opening.task)
        finally:
            opening.askers -= 1
        return followed, replayed or not first

    async def _open(self, opening: _Opening) -> tuple[Followed, bool]:
        """Find the turn, or begin it. To claim it comes first: what others committed before that is found after it."""
        asked = opening.asked
        turn_id, about = asked.turn_id, asked.about
        claim, begun = None, False
        try:
            if (stopped := self._runs.get(turn_id)) is not None and stopped.task is not None:
                await asyncio.wait((stopped.task,))
            claim = await self._claimed(turn_id, about)
            stored = await self._stored(turn_id, asked.correlation_id)
            if stored is not None:
                _check_same(stored.message, asked.request.message)
                if asked.given is not None:
                    _check_same(stored.session_id, _session_of(asked))
                return Followed(ended_log(stored)), True
            if claim is not None:  # of a turn that is durable, a claim may be younger, by who was refused just now
                _check_same(claim.about, about)
            if claim is not None and claim.holder is not None:
                session_id, message = asked.request.session_id or "", asked.request.message
                return self._replicas.follow(session_id, turn_id, claim.holder, message=message), True
            if not opening.askers:
                raise TurnCancelled("whoever asked is gone")
            run = self._begin(asked, self._number(claim, turn_id))
            begun = True
            return run, False
        finally:
            del self._openings[turn_id]
            if not begun and (claim is None or claim.holder is None):
                self._relay.end(asked.request.session_id or "", turn_id, kept=False)

    def _number(self, claim: Claim | None, turn_id: str) -> int:
        """Return how many runs of the turn there were, as far as anybody knows."""
        kept = self._kept.get(turn_id)
        return max(claim.number if claim else 0, kept.seq // SEQS_PER_RUN + 1 if kept else 0)

    def _begin(self, asked: _Asked, number: int) -> "_Run":
        if self._draining:
            raise _shutting_down()
        turn_id = asked.turn_id
        session_id = asked.request.session_id or (_session_of(asked) if asked.keyed and asked.given else self._new_id())
        log = TurnLog(session_id, turn_id, asked.request.message, number * SEQS_PER_RUN)
        run = _Run(log, asked, self._grace_seconds, lambda: session_id in self._listeners, self._abandoned)
        self._kept.drop(turn_id)
        self._runs[turn_id] = self._sessions.setdefault(session_id, {})[turn_id] = run
        if not asked.private:
            begun = msgspec.msgpack.encode(Begun(session_id, turn_id, self._relay.instance))
            self._relay.begin(session_id, turn_id, session_address(session_id), begun)
        self._add(run, Started(session_id, turn_id, log.seq + 1, asked.request.message, asked.client_id))
        run.task = asyncio.create_task(self._run(run))
        run.task.add_done_callback(lambda task: self._ended(run, task))
        run.enter(max(ENTER_SECONDS, self._grace_seconds if asked.grace else 0.0))
        return run

    # --- how it runs and ends

    async def _run(self, run: "_Run") -> ChatReply:
        async def sink(text: str) -> None:
            self._add(run, DeltaFrame(run.log.turn_id, run.log.seq + 1, text))

        asked = run.asked
        return await self._orchestrator.handle_chat(
            replace(asked.request, session_id=run.log.session_id),
            correlation_id=asked.correlation_id,
            trace=asked.trace,
            seconds_max=asked.seconds_max,
            sink=None if asked.private else sink,
            turn_id=asked.turn_id,
            create=asked.create,
            fresh=asked.request.session_id is None,
            given=asked.given,
            write=run.write,
        )

    def _ended(self, run: "_Run", task: asyncio.Task[ChatReply]) -> None:
        """End the log with how the turn ended. A task that is cancelled before its first step ends here, too."""
        log = run.log
        raised = None if task.cancelled() else task.exception()
        if task.cancelled() or raised is not None:
            known = raised if isinstance(raised, OrchestraError) else unforeseen() if raised else _shutting_down()
            log.error = run.stopped_by or known
            correlation_id = run.asked.correlation_id
            self._add(run, error_frame(log.error, turn_id=log.turn_id, seq=log.seq + 1, correlation_id=correlation_id))
        else:
            self._add(run, Done(log.turn_id, log.seq + 1, task.result()))
        run.close()
        del self._runs[log.turn_id]
        of_session = self._sessions[log.session_id]
        del of_session[log.turn_id]
        if not of_session:
            del self._sessions[log.session_id]
        kept = run.asked.keyed or run.asked.grace
        if kept:
            self._kept.add(log)
        if not run.asked.private:
            self._relay.end(log.session_id, log.turn_id, kept=kept)

    def _add(self, run: "_Run", frame: LogFrame) -> None:
        log = run.log
        entry = log.add(frame)
        if log.session_id in self._listeners:
            self._deliver(log, entry)
        if run.attended:
            now = asyncio.get_running_loop().time()
            told = msgspec.msgpack.encode(entries_since(log, entry))
            for instance, until in run.attended.items():
                if until > now:
                    self._relay.tell(instance_address(instance), told)

    def _deliver(self, log: TurnLog, entry: Entry) -> None:
        for deliver in tuple(self._listeners.get(log.session_id, ())):
            deliver(entry)

    def _abandoned(self, run: "_Run") -> None:
        run.stop(TurnCancelled("nobody waits for the answer any more"))
        if run.stopped_by is not None:
            at = asyncio.get_running_loop().time()
            self._hook(TurnAbandoned(at, run.asked.correlation_id, run.log.session_id, run.log.turn_id))

    def _tasks(self) -> list[asyncio.Task[ChatReply]]:
        return [run.task for run in self._runs.values() if run.task is not None]

    async def _cut(self) -> None:
        """End what still runs, whatever it does."""
        tasks = self._tasks()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # --- how others follow it

    def _receive(self, data: bytes) -> None:
        """Take a message of another instance."""
        try:
            message = MESSAGES.decode(data)
        except msgspec.DecodeError:
            return  # of another version: who sent it asks again, or gives up
        match message:
            case Begun():
                if message.holder != self._relay.instance and message.session_id in self._listeners:
                    self._replicas.follow(message.session_id, message.turn_id, message.holder)
            case Attend():
                self._attend(message)
            case Stop():
                run = self._runs.get(message.turn_id)
                if run is not None and run.log.session_id == message.session_id:
                    run.stop(_stopped())
            case Deleted():
                self._forget_session(message.session_id)
            case Entries() | Gone():
                self._replicas.receive(message)

    def _attend(self, asked: Attend) -> None:
        """Send what is behind the asked number, which also says that this instance lives."""
        answer: Entries | Gone = Gone(asked.turn_id)
        run = self._runs.get(asked.turn_id)
        log = run.log if run is not None else self._kept.get(asked.turn_id)
        if log is None:
            if asked.turn_id in self._openings:
                return  # it may be about to begin: who follows it asks again
            self._relay.end(asked.session_id, asked.turn_id, kept=False)  # whatever says that it is here
        elif asked.session_id in ("", log.session_id):  # whoever does not know the session has the key
            if run is not None:
                run.attend(asked.sender)
            answer = entries_of(log, asked.after, limits.RELAY_MESSAGE_BYTES_MAX)
        self._relay.tell(instance_address(asked.sender), msgspec.msgpack.encode(answer))

    async def _sought(self, session_id: str, turn_id: str, after: int) -> tuple[Followed, str]:
        """Return a turn's log, and where it was found."""
        here = self._runs.get(turn_id) or self._replicas.get(turn_id)
        if here is not None and here.log.session_id == session_id:
            return here, "here"
        kept = self._kept.get(turn_id)
        if kept is not None and kept.session_id == session_id and kept.error is None:
            await self._check_kept(session_id, turn_id)
            return Followed(kept), "kept"
        found = await self._found(session_id, turn_id)
        if found is not None and found.alive and found.holder != self._relay.instance:
            if not found.runs:
                await self._check_kept(session_id, turn_id)
            return self._replicas.follow(session_id, turn_id, found.holder, after=after), "elsewhere"
        if kept is not None and kept.session_id == session_id:
            await self._check_kept(session_id, turn_id)
            return Followed(kept), "kept"
        stored = await self._stored(turn_id)
        if stored is not None and stored.session_id == session_id:
            return Followed(ended_log(stored, after)), "stored"
        if found is not None and found.holder != self._relay.instance and stored is None:
            raise lost()
        raise _unknown(turn_id)

    async def _check_kept(self, session_id: str, turn_id: str) -> None:
        """Raise `TurnUnknown` where the session of a log that has ended was deleted: nothing of it is told any more."""
        try:
            await self._calls("conversations", turn_id, self._conversations.head(session_id))
        except SessionUnknown as error:
            raise _unknown(turn_id) from error

    def _forget_session(self, session_id: str) -> None:
        self._kept.drop_session(session_id)
        self._forget(session_id)

    def _of(self, session_id: str) -> dict[str, "_Run"]:
        return self._sessions.get(session_id, {})

    def _new_id(self) -> str:
        return self._entropy.hex(TURN_ID_BYTES)

    # --- what stores know

    async def _stored(self, turn_id: str, correlation_id: str | None = None) -> Turn | None:
        found = self._conversations.find(turn_id)
        return await self._calls("conversations", correlation_id or turn_id, found)

    async def _claimed(self, turn_id: str, about: str) -> Claim | None:
        """Claim the turn; where the relay is away, it has to be done without."""
        try:
            return await self._calls("relay", turn_id, self._relay.claim(turn_id, about))
        except StoreUnavailable:
            return None

    async def _found(self, session_id: str, turn_id: str) -> Found | None:
        try:
            return await self._calls("relay", turn_id, self._relay.find(session_id, turn_id))
        except StoreUnavailable:
            return None


def _check_same(first: str | None, now: str) -> None:
    if first not in (None, now):
        raise _reused()


def _reused() -> KeyReused:
    return KeyReused(
        "this idempotency key was sent with another message, or another history: use a new key for a new message"
    )


def _unknown(turn_id: str) -> TurnUnknown:
    return TurnUnknown(
        f"there is no turn {turn_id!r} in this session, running or durable: read the session, and where the message is "
        "not in it, send it again",
        field="turn_id",
    )


def _stopped() -> TurnCancelled:
    return TurnCancelled("a client stopped the turn: nothing of it is kept")


def _shutting_down() -> ShuttingDown:
    return ShuttingDown("the instance is shutting down: connect again and send it once more", retry_after_seconds=1)


def _about(message: str, given: Given | None) -> str:
    """Return a digest of all that must be the same when a key comes again."""
    said = message.encode() if given is None else msgspec.msgpack.encode((message, given))
    return sha256(said).hexdigest()[: 2 * TURN_ID_BYTES]


def _session_of(asked: _Asked) -> str:
    """Return the id of the session that a turn with a key and a history of its own begins.

    It follows from both, so that a durable turn tells by its session whether the same is asked again: the history
    itself is not stored.
    """
    return turn_id_of(asked.turn_id, None, asked.about)


def turn_id_of(session_id: str | None, user_id: str | None, key: str) -> str:
    """Return the id of the turn that a client names `key`: the same for the same, on every instance."""
    named = "\0".join((session_id or "", user_id or "", key))
    return sha256(named.encode()).hexdigest()[: 2 * TURN_ID_BYTES]
