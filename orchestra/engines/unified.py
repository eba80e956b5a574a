"""The unified orchestrator: one provider answers from the session's history and what memory recalled."""

from collections.abc import AsyncGenerator

from orchestra.engines.engine import Task
from orchestra.model import Chunk, Message, Prompt
from orchestra.ports import Provider


class UnifiedOrchestrator:
    """Answers through one provider; `name` tells several such engines apart."""

    def __init__(self, provider: Provider, name: str = "unified") -> None:
        self.name = name
        self._provider = provider

    def answer(self, task: Task) -> AsyncGenerator[Chunk, None]:
        """Stream the provider's answer to the session's history and the new message."""
        messages = (*task.session.messages, Message("user", task.message))
        return self._provider.complete(Prompt(messages, task.recalled))
