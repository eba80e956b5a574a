"""Engines behind their guards, and engines themselves: what the orchestrator is given by `compose`."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from orchestra.engines.engine import Engine, ICommandDispatcher, IMemorySystem, Task
from orchestra.errors import FeatureOff, kind_of
from orchestra.events import FellBack, Hook
from orchestra.model import Answering, Chunk, Recollection, Turn
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
        return self.guard.stream(task.correlation_id, partial(self._engine.answer, task))


class GuardedCommands(GuardedEngine):
    """A command dispatcher behind its guard."""

    def __init__(self, commands: ICommandDispatcher, guard: Guard) -> None:
        super().__init__(commands, guard)
        self.handles = commands.handles


class GuardedMemory:
    """A memory system behind its guard. Both of what it does may be done twice, so both may be hedged."""

    def __init__(self, memory: IMemorySystem, guard: Guard) -> None:
        self.name = memory.name
        self.guard = guard
        self._memory = memory

    def recall(self, task: Task) -> Coroutine[Any, Any, tuple[Recollection, ...]]:
        """Recall what helps with `task`."""
        return self.guard.call(task.correlation_id, partial(self._memory.recall, task), idempotent=True)

    def remember(self, turn: Turn, owner: str) -> Coroutine[Any, Any, None]:
        """Store what `turn` said."""
        return self.guard.call(turn.correlation_id, partial(self._memory.remember, turn, owner), idempotent=True)


class GatedEngine:
    """An engine that calls out of the house, while that is allowed."""

    def __init__(self, engine: Engine, allowed: Callable[[], bool]) -> None:
        self.name = engine.name
        self._engine = engine
        self._allowed = allowed

    def answer(self, task: Task) -> AsyncGenerator[Chunk, None]:
        """Stream the engine's answer.

        Raises
        ------
        FeatureOff
            At once: the level has switched external APIs off.
        """
        if not self._allowed():
            raise FeatureOff(f"{self.name} calls an external API, and those are off for now: try again later")
        return self._engine.answer(task)


class FallbackEngine:
    """An engine, and who answers where it does not.

    Parameters
    ----------
    engine : Engine
    fallbacks : sequence of (Engine, callable)
        In order, each with the errors that it stands in for (`orchestra.resilience.fallback`).
    hook : Hook
        Gets a `FellBack` where another one answers.
    """

    def __init__(
        self, engine: Engine, fallbacks: Sequence[tuple[Engine, Callable[[Exception], bool]]], hook: Hook
    ) -> None:
        self.name = engine.name
        self._engine = engine
        self._fallbacks = fallbacks
        self._hook = hook

    def answer(self, task: Task) -> AsyncGenerator[Chunk, None]:
        """Stream the answer; an `Answering` before it tells that another engine gives it."""

        def on_fall(fallback: str, error: Exception) -> None:
            at = asyncio.get_running_loop().time()
            self._hook(FellBack(at, task.correlation_id, self.name, fallback, kind_of(error)))

        return with_fallbacks(
            partial(self._engine.answer, task),
            (Fallback(engine.name, partial(engine.answer, task), takes) for engine, takes in self._fallbacks),
            announce=Answering,
            on_fall=on_fall,
        )
