"""Engines behind their guards, and engines themselves: what the orchestrator is given by `compose`."""

from collections.abc import AsyncGenerator

from orchestra.engines.engine import Engine, ICommandDispatcher, IMemorySystem, Task
from orchestra.model import Chunk, Turn
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
    """A memory system behind its guard."""

    def __init__(self, memory: IMemorySystem, guard: Guard) -> None:
        super().__init__(memory, guard)
        self._memory = memory

    async def remember(self, turn: Turn, owner: str) -> None:
        """Store what `turn` said."""
        await self.guard.call(turn.correlation_id, lambda: self._memory.remember(turn, owner))
