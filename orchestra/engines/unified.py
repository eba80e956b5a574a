"""The unified orchestrator: one provider answers from the session's history and what memory recalled."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from orchestra.engines.engine import Task
from orchestra.errors import ProviderFailed
from orchestra.model import Chunk, Finish, Message, Prompt
from orchestra.ports import Provider


class UnifiedOrchestrator:
    """Answers through one provider; `name` tells several such engines apart."""

    def __init__(self, provider: Provider, name: str = "unified") -> None:
        self.name = name
        self._provider = provider

    async def answer(self, task: Task) -> AsyncGenerator[Chunk, None]:
        """Stream the provider's answer to the session's history and the new message.

        Raises
        ------
        ProviderFailed
            The answer ended without a `Finish`: it was cut off.
        """
        messages = (*task.session.messages, Message("user", task.message))
        finished = False
        async with aclosing(self._provider.complete(Prompt(messages, task.recalled, task.sampling))) as chunks:
            async for chunk in chunks:
                finished = isinstance(chunk, Finish)
                yield chunk
        if not finished:
            raise ProviderFailed(f"the answer of {self.name} was cut off: try again")
