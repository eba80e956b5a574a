"""Engines behind their guards, and engines themselves: what the orchestrator is given by `compose`."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial

from orchestra.engines.answers import AnswerCache
from orchestra.engines.engine import Engine, ICommandDispatcher, IMemorySystem, Task
from orchestra.errors import FeatureOff, kind_of
from orchestra.events import FellBack, Hook
from orchestra.model import Answering, Chunk, Delta, Finish, Turn
from orchestra.resilience.fallback import Fallback, with_fallbacks
from orchestra.resilience.guard import Guard


class GuardedEngine:
    """An engine whose every answer passes its guard."""

    def __init__(self, engine: Engine, guard: Guard) -> None:
        self.name = engine.name
        self.guard = guard
        self._engine = engine

    def answer(self, task: Task) -> AsyncGenerator[Chunk, None]:
        """Stream the engine's answer."""
        return self.guard.stream(task.correlation_id, lambda: self._engine.answer(task))


class GuardedCommands(GuardedEngine):
    """A command dispatcher behind its guard."""

    def __init__(self, commands: ICommandDispatcher, guard: Guard) -> None:
        super().__init__(commands, guard)
        self.handles = commands.handles


class GuardedMemory(GuardedEngine):
    """A memory system behind its guard. Both of what it does may be done twice, so both may be hedged."""

    def __init__(self, memory: IMemorySystem, guard: Guard) -> None:
        super().__init__(memory, guard)
        self._memory = memory

    async def answer(self, task: Task) -> AsyncGenerator[Chunk, None]:
        """Recall, whole: a hedged call has no use for pieces."""
        for chunk in await self.guard.call(task.correlation_id, lambda: _whole(self._engine, task), idempotent=True):
            yield chunk

    async def remember(self, turn: Turn, owner: str) -> None:
        """Store what `turn` said."""
        await self.guard.call(turn.correlation_id, lambda: self._memory.remember(turn, owner), idempotent=True)


async def _whole(engine: Engine, task: Task) -> list[Chunk]:
    async with aclosing(engine.answer(task)) as chunks:
        return [chunk async for chunk in chunks]


class GatedEngine:
    """An engine that calls out of the house, while that is allowed."""

    def __init__(self, engine: Engine, allowed: Callable[[], bool]) -> None:
        self.name = engine.name
        self._engine = engine
        self._allowed = allowed

    async def answer(self, task: Task) -> AsyncGenerator[Chunk, None]:
        """Stream the engine's answer.

        Raises
        ------
        FeatureOff
            The level has switched external APIs off.
        """
        if not self._allowed():
            raise FeatureOff(f"{self.name} calls an external API, and those are off for now: try again later")
        async with aclosing(self._engine.answer(task)) as chunks:
            async for chunk in chunks:
                yield chunk


class FallbackEngine:
    """An engine, and who answers where it does not.

    Parameters
    ----------
    engine : Engine
    fallbacks : sequence of (Engine, callable)
        In order, each with the errors that it stands in for (`orchestra.resilience.fallback`).
    answers : AnswerCache
        Keeps what the engine answers, for others to fall back on.
    hook : Hook
        Gets a `FellBack` where another one answers.
    """

    def __init__(
        self,
        engine: Engine,
        fallbacks: Sequence[tuple[Engine, Callable[[Exception], bool]]],
        answers: AnswerCache,
        hook: Hook,
    ) -> None:
        self.name = engine.name
        self._engine = engine
        self._fallbacks = fallbacks
        self._answers = answers
        self._hook = hook

    async def answer(self, task: Task) -> AsyncGenerator[Chunk, None]:
        """Stream the answer; an `Answering` before it tells that another engine gives it."""

        def on_fall(fallback: str, error: Exception) -> None:
            at = asyncio.get_running_loop().time()
            self._hook(FellBack(at, task.correlation_id, self.name, fallback, kind_of(error)))

        chunks = with_fallbacks(
            lambda: self._kept(task),
            [Fallback(engine.name, partial(engine.answer, task), takes) for engine, takes in self._fallbacks],
            announce=Answering,
            on_fall=on_fall,
        )
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    async def _kept(self, task: Task) -> AsyncGenerator[Chunk, None]:
        parts: list[str] = []
        async with aclosing(self._engine.answer(task)) as chunks:
            async for chunk in chunks:
                if isinstance(chunk, Delta):
                    parts.append(chunk.text)
                elif isinstance(chunk, Finish):
                    self._answers.keep(task, "".join(parts), chunk)
                yield chunk
