"""The chat orchestrator: one turn, read top to bottom in `ChatOrchestrator.handle_chat`."""

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field

from msgspec.structs import replace

from orchestra import limits
from orchestra.chat.sessions import SESSION, OpenSession, Sessions, remembers_itself
from orchestra.chat.trimming import is_kept, within_prompt
from orchestra.engines.apology import Apology
from orchestra.engines.engine import Engine, ICommandDispatcher, IMemorySystem, IOrchestraManager, Task
from orchestra.errors import (
    BreakerOpen,
    DeadlineExceeded,
    FeatureOff,
    Maintenance,
    OrchestraError,
    Overloaded,
    SessionUnknown,
    ShuttingDown,
    kind_of,
    unforeseen,
)
from orchestra.events import Hook, TurnFinished, TurnOutcome, TurnStarted, UnexpectedError
from orchestra.model import (
    Answering,
    ChatReply,
    ChatRequest,
    Delta,
    Finish,
    Given,
    Session,
    TraceContext,
    Turn,
)
from orchestra.ports import Clock, Entropy
from orchestra.resilience.deadline import TimeLimit, Watchdog, deadline_within
from orchestra.resilience.degradation import Degradation, Feature
from orchestra.security.validation import validate

SHED = (BreakerOpen, FeatureOff, Maintenance, Overloaded, ShuttingDown)
"""Errors that protect the service or a dependency: a turn that ends with one was shed, it did not fail."""

BACKSTOP_SECONDS = 0.1
"""How long behind its deadline a turn is cut off, for what of it is not guarded. At the same moment it would cancel a
guarded call that its guard is about to end with an error that says who was too slow."""
STREAMING = str(Feature.STREAMING)
HISTORY = "history"
"""What a turn did without whose exchange is too large for any prompt that follows."""

Sink = Callable[[str], Awaitable[None]]
"""Gets each piece of an answer's text as it comes."""


@dataclass(frozen=True)
class TurnLimits:
    """How long one turn may take (seconds), and how many may run at once."""

    seconds_max: float
    inflight_max: int


@dataclass
class Progress:
    """What is known of a running turn, for the events that tell of it."""

    correlation_id: str
    trace: TraceContext
    turn_id: str
    started: float
    session_id: str = ""
    engine: str = ""
    first_token_seconds: float | None = None
    finish: Finish | None = None
    degraded: list[str] = field(default_factory=list)
    has_memory: bool = True

    def without(self, part: str) -> None:
        """Note, once, what the turn has to do without."""
        if part not in self.degraded:
            self.degraded.append(part)


class ChatOrchestrator:
    """Answers chat turns.

    Parameters
    ----------
    command_dispatcher, orchestra_manager, memory_system : engines
        Each behind its guard.
    sessions : Sessions
    degradation : Degradation
        The gate that features are asked at.
    clock, entropy : ports
    turn_limits : TurnLimits
    hook : Hook
        Gets a `TurnStarted` for every admitted turn and a `TurnFinished` for every valid one.
    """

    def __init__(
        self,
        command_dispatcher: ICommandDispatcher,
        orchestra_manager: IOrchestraManager,
        memory_system: IMemorySystem,
        sessions: Sessions,
        degradation: Degradation,
        clock: Clock,
        entropy: Entropy,
        turn_limits: TurnLimits,
        hook: Hook,
    ) -> None:
        self._commands = command_dispatcher
        self._manager = orchestra_manager
        self._memory = memory_system
        self._sessions = sessions
        self._degradation = degradation
        self._clock = clock
        self._entropy = entropy
        self._limits = turn_limits
        self._hook = hook
        self._inflight = 0
        self._watchdog = Watchdog()

    def close(self) -> None:
        """Leave no timer behind."""
        self._watchdog.close()

    async def handle_chat(
        self,
        request: ChatRequest,
        *,
        correlation_id: str | None = None,
        trace: TraceContext | None = None,
        seconds_max: float | None = None,
        sink: Sink | None = None,
        turn_id: str | None = None,
        create: bool = False,
        fresh: bool = False,
        given: Given | None = None,
        write: Callable[[], None] = lambda: None,
    ) -> ChatReply:
        """Answer one turn; the reply is given only once the turn is durable in the conversation.

        Its `degraded` names what the turn did without: features, `session` where the session could not be saved with it
        yet (see `orchestra.chat.sessions`), and `history` where message and answer are too large together for any
        later prompt: they are in the conversation, and no model sees them again.

        Parameters
        ----------
        request : ChatRequest
        correlation_id : str or None
            Follows the turn through every event; made where None.
        trace : TraceContext or None
            The turn's span; made where None.
        seconds_max : float or None
            How long the caller waits for the turn, where that is shorter than the service's own limit. What it cuts
            short says nothing about who was called.
        sink : callable or None
            Awaited with each piece of the answer as it comes, where the level allows streaming; the reply is whole
            either way. A caller that was told pieces of an answer which then failed is told by the error.
        turn_id : str or None
            The turn's id; made where None. A turn of this id that is durable by the time this one would be is what the
            reply tells of: a turn is in a conversation once.
        create, fresh : bool
            Whether a session that does not exist is made under the id that the request names, and whether that id was
            made just now: no session has it, and none is looked for.
        given : Given or None
            The history and how to draw, from a client that keeps them itself: the turn is answered from exactly that.
            It begins a session of its own, which keeps the new exchange; to store what the client sends again with
            every message would fill the stores with copies. Nobody comes back to such a session by itself, so memory
            takes part only where a user is named.

        Raises
        ------
        OrchestraError
            `InvalidRequest` and its like name the field at fault; a turn that was shed or failed says what to do.
        """
        validate(request)
        progress = self._begin(request, correlation_id, trace, turn_id)
        own = self._limits.seconds_max
        asked = own if seconds_max is None else seconds_max
        backstop = TimeLimit(self._watchdog, progress.started + min(own, asked) + BACKSTOP_SECONDS)
        with (
            self._error_boundary(progress),
            self._admitted(progress, request),
            deadline_within(own),
            deadline_within(asked, ours=False),
            backstop,
        ):
            async with self._sessions.exclusive(request.session_id):
                opened = await self._sessions.open(
                    request.session_id, request.user_id, progress.correlation_id, create=create, fresh=fresh
                )
                task = _task(progress, request.message, opened.session, given)
                progress.session_id = opened.session.id
                engine = self._route(request)
                progress.has_memory = engine is not self._commands and (given is None or request.user_id is not None)
                task = await self._enrich(task, progress)
                text, finish = await self._execute(engine, task, progress, self._allowed(sink, request, progress))
                turn = self._aggregate(task, text, finish, progress)
                if given is None and not is_kept(opened.session, turn):
                    progress.without(HISTORY)
                    turn = replace(turn, degraded=tuple(progress.degraded))
                write()
                backstop.lift()  # nor does time: each of the writes is bounded by itself
                turn = await self._write(opened, turn, progress)
        return turn.as_reply

    def _begin(
        self, request: ChatRequest, correlation_id: str | None, trace: TraceContext | None, turn_id: str | None
    ) -> Progress:
        return Progress(
            correlation_id=correlation_id or self._entropy.hex(16),
            trace=trace or TraceContext(self._entropy.hex(16), self._entropy.hex(8)),
            turn_id=turn_id or self._entropy.hex(16),
            started=asyncio.get_running_loop().time(),
            session_id=request.session_id or "",
        )

    def _route(self, request: ChatRequest) -> Engine:
        return self._commands if self._commands.handles(request.message) else self._manager

    async def _enrich(self, task: Task, progress: Progress) -> Task:
        """Add what memory recalls; without memory the turn goes on and says so, unless it needs none."""
        if not progress.has_memory:
            return task
        if not self._degradation.allows(Feature.MEMORY):
            progress.without(self._memory.name)
            return task
        if remembers_itself(task.session):
            return task
        try:
            recalled = await self._memory.recall(task)
        except Exception as failure:
            self._without_memory(failure, progress)
            return task
        return replace(task, recalled=recalled) if recalled else task

    def _allowed(self, sink: Sink | None, request: ChatRequest, progress: Progress) -> Sink | None:
        """Return `sink` where the level allows streaming; a turn asked for in pieces says where it does not."""
        if self._degradation.allows(Feature.STREAMING):
            return sink
        if request.stream and sink is not None:
            progress.without(STREAMING)
        return None

    async def _execute(self, engine: Engine, task: Task, progress: Progress, sink: Sink | None) -> tuple[str, Finish]:
        """Collect the engine's answer, and pass it on as it comes."""
        progress.engine = engine.name
        parts: list[str] = []
        async with aclosing(engine.answer(task)) as chunks:
            async for chunk in chunks:
                if isinstance(chunk, Delta):
                    if progress.first_token_seconds is None:
                        progress.first_token_seconds = self._now() - progress.started
                    parts.append(chunk.text)
                    if sink is not None:
                        await sink(chunk.text)
                elif isinstance(chunk, Answering):
                    progress.without(engine.name)
                    progress.engine = chunk.engine
                elif isinstance(chunk, Finish):
                    progress.finish = chunk
        assert progress.finish is not None, f"the answer of {progress.engine} has no end"
        return "".join(parts), progress.finish

    def _aggregate(self, task: Task, text: str, finish: Finish, progress: Progress) -> Turn:
        return Turn(
            id=progress.turn_id,
            session_id=task.session.id,
            number=task.session.version + 1,
            correlation_id=progress.correlation_id,
            message=task.message,
            reply=text,
            engine=progress.engine,
            model=finish.model,
            at=self._clock.now(),
            usage=finish.usage,
            degraded=tuple(progress.degraded),
            finish_reason=finish.reason,
            recalled=task.recalled,
        )

    async def _write(self, opened: OpenSession, turn: Turn, progress: Progress) -> Turn:
        """Write conversation and session, which the reply waits for, and at the same time the memory.

        A session or memory that cannot be written degrades the turn; what begins in one step shares a commit.
        """
        remembering = None
        if progress.has_memory and self._memory.name not in progress.degraded:
            remembering = asyncio.create_task(self._remember(turn, opened.session.owner, progress))
        try:
            turn = await self._sessions.commit(opened, turn)
            if remembering is not None:
                await remembering
        except BaseException as error:
            if remembering is not None:
                remembering.cancel()
                await asyncio.wait((remembering,))
            if isinstance(error, SessionUnknown):  # deleted meanwhile, and so goes what memory was told just now
                await self._sessions.forget([turn.id], progress.correlation_id)
            raise
        if SESSION in turn.degraded:
            progress.without(SESSION)
        return turn

    async def _remember(self, turn: Turn, owner: str, progress: Progress) -> None:
        try:
            await self._memory.remember(turn, owner)
        except Exception as failure:
            self._without_memory(failure, progress)

    def _without_memory(self, failure: Exception, progress: Progress) -> None:
        """Note that the turn has to do without memory, be it out of order or defect."""
        progress.without(self._memory.name)
        if not isinstance(failure, OrchestraError):
            self._hook(UnexpectedError(self._now(), progress.correlation_id, self._memory.name, _traceback(failure)))

    @contextmanager
    def _admitted(self, progress: Progress, request: ChatRequest) -> Iterator[None]:
        """Count the turn among those that run, or shed it: of too many here or in its session, or while read only."""
        if self._degradation.read_only:
            raise Maintenance(
                "the service is read only for now: what is stored can be read, new turns are refused",
                retry_after_seconds=limits.MAINTENANCE_RETRY_SECONDS,
            )
        if self._inflight >= self._limits.inflight_max:
            raise Overloaded(
                f"{self._inflight} turns are running, which is all this instance takes: try again later",
                retry_after_seconds=1,
            )
        self._sessions.check_room(request.session_id)
        self._inflight += 1
        self._hook(TurnStarted(progress.started, progress.correlation_id, request.session_id))
        try:
            yield
        finally:
            self._inflight -= 1

    @contextmanager
    def _error_boundary(self, progress: Progress) -> Iterator[None]:
        """Let only `OrchestraError`s and cancellation out, and tell the hook how the turn ended, once."""
        try:
            yield
        except BaseException as raised:
            error = _translated(raised)
            if isinstance(error, Exception) and type(error) is OrchestraError:
                self._hook(UnexpectedError(self._now(), progress.correlation_id, "turn", _traceback(raised)))
            self._finish(progress, error)
            if error is raised:
                raise
            raise error from raised
        self._finish(progress, None)

    def _finish(self, progress: Progress, error: BaseException | None) -> None:
        outcome: TurnOutcome = "answered" if error is None else "shed" if isinstance(error, SHED) else "failed"
        if error is None and progress.engine == Apology.name:
            outcome = "shed"  # politely
        finish = progress.finish or Finish("", "")
        now = self._now()
        self._hook(
            TurnFinished(
                at=now,
                correlation_id=progress.correlation_id,
                session_id=progress.session_id,
                turn_id=progress.turn_id,
                outcome=outcome,
                error="" if error is None else kind_of(error),
                seconds=now - progress.started,
                first_token_seconds=progress.first_token_seconds,
                engine=progress.engine,
                prompt_tokens=finish.usage.prompt_tokens,
                completion_tokens=finish.usage.completion_tokens,
                degraded=tuple(progress.degraded),
                trace=progress.trace,
            )
        )

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _task(progress: Progress, message: str, session: Session, given: Given | None) -> Task:
    """Return what the engines get to work on: the history that fits into a prompt, or the one that was sent along."""
    if given is None:
        return Task(progress.correlation_id, message, within_prompt(session, message))
    session = replace(session, messages=given.messages)
    return Task(progress.correlation_id, message, session, sampling=given.sampling)


def _translated(raised: BaseException) -> BaseException:
    """Say what a client may know of `raised`: itself where it is ours, else that a defect was met."""
    while isinstance(raised, BaseExceptionGroup) and len(raised.exceptions) == 1:
        raised = raised.exceptions[0]
    if isinstance(raised, TimeoutError):
        return DeadlineExceeded("the turn took longer than it may: try again, or ask for less")
    if isinstance(raised, OrchestraError) or not isinstance(raised, Exception):
        return raised
    return unforeseen()


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))
