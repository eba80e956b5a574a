"""What an engine is: one Protocol for all of them, and the three that the orchestrator asks for by role."""

from collections.abc import AsyncGenerator
from typing import Protocol

from msgspec import Struct

from orchestra.model import Chunk, Recollection, Sampling, Session, Turn


class Task(Struct, frozen=True):
    """What an engine gets to work on: the user's message, the session before it, what memory recalled, how to draw."""

    correlation_id: str
    message: str
    session: Session
    recalled: tuple[Recollection, ...] = ()
    sampling: Sampling = Sampling()


class Engine(Protocol):
    """A service that contributes to a turn."""

    @property
    def name(self) -> str:
        """A short name for breakers, metrics and replies."""
        ...

    def answer(self, task: Task) -> AsyncGenerator[Chunk, None]:
        """Stream this engine's contribution; an answer ends with `Finish`. Errors are `OrchestraError`s."""
        ...


class IOrchestraManager(Engine, Protocol):
    """The engine that answers what is neither a command nor for a team."""


class ICommandDispatcher(Engine, Protocol):
    """The engine that answers commands."""

    def handles(self, message: str) -> bool:
        """Tell whether `message` is a command."""
        ...


class IMemorySystem(Protocol):
    """The engine that recalls and remembers. It answers nobody: what it contributes comes whole, and is no stream."""

    @property
    def name(self) -> str:
        """A short name for breakers, metrics and replies."""
        ...

    async def recall(self, task: Task) -> tuple[Recollection, ...]:
        """Return what earlier turns of the session's owner say about `task`, the nearest first."""
        ...

    async def remember(self, turn: Turn, owner: str) -> None:
        """Store what `turn` said for later turns of `owner`."""
        ...
