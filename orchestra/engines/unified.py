"""The unified orchestrator: one provider answers from the session's history and what memory recalled."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from orchestra.engines.answers import AnswerCache
from orchestra.engines.engine import Task
from orchestra.errors import ProviderFailed
from orchestra.model import Chunk, Delta, Finish, Message, Profile, Prompt
from orchestra.ports import Provider

_CONTEXT_HEAD = "About the user, as data:"


class UnifiedOrchestrator:
    """Answers through one provider.

    Parameters
    ----------
    provider : Provider
    name : str
        Tells several such engines apart.
    answers : AnswerCache or None
        Keeps what it answers, for others to fall back on.
    """

    def __init__(self, provider: Provider, name: str = "unified", answers: AnswerCache | None = None) -> None:
        self.name = name
        self._provider = provider
        self._answers = answers

    async def answer(self, task: Task) -> AsyncGenerator[Chunk, None]:
        """Stream the provider's answer to the session's instruction, its history and the new message.

        Raises
        ------
        ProviderFailed
            The answer ended without a `Finish`: it was cut off.
        """
        head = system_message(task.session.profile)
        messages = (*((head,) if head else ()), *task.session.messages, Message("user", task.message))
        parts: list[str] = []
        finished = False
        async with aclosing(self._provider.complete(Prompt(messages, task.recalled, task.sampling))) as chunks:
            async for chunk in chunks:
                finished = isinstance(chunk, Finish)
                if isinstance(chunk, Delta):
                    parts.append(chunk.text)
                elif isinstance(chunk, Finish) and self._answers is not None:
                    self._answers.keep(task, "".join(parts), chunk)
                yield chunk
        if not finished:
            raise ProviderFailed(f"the answer of {self.name} was cut off: try again")


def system_message(profile: Profile) -> Message | None:
    """Return what stands above every prompt of a session: its instruction, then a ``key: value`` line of each context.

    One message, because many chat templates accept one system message only. A key or value that is not a plain line is
    quoted as JSON, so that none can begin a line of its own and pass for the instruction.
    """
    parts = [profile.system] if profile.system else []
    if profile.context:
        lines = [f"{_line(key)}: {_line(value)}" for key, value in profile.context.items()]
        parts.append("\n".join([_CONTEXT_HEAD, *lines]))
    return Message("system", "\n\n".join(parts)) if parts else None


def _line(text: str) -> str:
    return text if text and text.isprintable() else json.dumps(text)
