"""The answer cache: what was answered to the very same question, for when nobody can be asked.

The question is all that an answer depends on: the message, what memory recalled, the session's profile and how the
answer is drawn, at the start of a conversation. Later ones depend on their history too and hardly ever come twice, so
they are not kept. Nobody is told what was meant for another: where anything personal went into an answer, it is part
of the question.
"""

from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from hashlib import sha256
from typing import NamedTuple

import msgspec

from orchestra import limits
from orchestra.engines.engine import Task
from orchestra.errors import NotFound
from orchestra.model import Chunk, Delta, Finish


class _Entry(NamedTuple):
    session_id: str
    text: str
    finish: Finish
    expires_at: float


class AnswerCache:
    """Answers what was answered lately.

    Parameters
    ----------
    now : callable
        Monotonic seconds.
    """

    name = "cache"

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._chars = 0

    def keep(self, task: Task, text: str, finish: Finish) -> None:
        """Keep an answer for `limits.ANSWER_SECONDS_MAX`; the oldest go where there are too many or too long ones."""
        if task.session.messages or len(text) > limits.ANSWERS_CHARS_MAX:
            return
        question = _question(task)
        self._forget(question)
        self._entries[question] = _Entry(task.session.id, text, finish, self._now() + limits.ANSWER_SECONDS_MAX)
        self._chars += len(text)
        while len(self._entries) > limits.ANSWERS_MAX or self._chars > limits.ANSWERS_CHARS_MAX:
            self._forget(next(iter(self._entries)))

    async def answer(self, task: Task) -> AsyncGenerator[Chunk, None]:
        """Repeat the answer to the same question.

        Raises
        ------
        NotFound
            There is none that is recent enough.
        """
        question = _question(task)
        entry = None if task.session.messages else self._entries.get(question)
        if entry is not None and entry.expires_at <= self._now():
            self._forget(question)
            entry = None
        if entry is None:
            raise NotFound("nobody asked the same question lately")
        yield Delta(entry.text)
        yield entry.finish

    def forget(self, session_id: str) -> None:
        """Keep nothing that was answered in a session which was deleted."""
        for question in [each for each, entry in self._entries.items() if entry.session_id == session_id]:
            self._forget(question)

    def _forget(self, question: bytes) -> None:
        entry = self._entries.pop(question, None)
        if entry is not None:
            self._chars -= len(entry.text)


def _question(task: Task) -> bytes:
    """Return a digest, which bounds what a question takes."""
    profile = task.session.profile
    asked = (task.message, task.recalled, profile.system, profile.context, task.sampling)
    return sha256(msgspec.msgpack.encode(asked)).digest()
