"""The memory system: what an owner said in earlier turns, recalled by meaning."""

from dataclasses import dataclass

from orchestra import limits
from orchestra.engines.engine import Task
from orchestra.model import Memory, Recollection, Turn
from orchestra.ports import Embedder, MemoryStore


@dataclass(frozen=True)
class RecallPolicy:
    """How much is recalled: at most `count_max` memories of cosine similarity `similarity_min` (-1 to 1) or more."""

    count_max: int
    similarity_min: float


class MemorySystem:
    """Recalls the memories nearest to a message, and remembers what the user said."""

    name = "memory"

    def __init__(self, store: MemoryStore, embedder: Embedder, policy: RecallPolicy) -> None:
        self._store = store
        self._embedder = embedder
        self._policy = policy

    async def recall(self, task: Task) -> tuple[Recollection, ...]:
        """Recall what helps with the task's message, leaving out what the history already says."""
        embedding = await self._embedder.embed(task.message)
        found = await self._store.recall(task.session.owner, embedding, limit=limits.MEMORIES_RECALLED_MAX)
        known = {message.content for message in task.session.messages}
        near = [each for each in found if each.similarity >= self._policy.similarity_min and each.text not in known]
        return tuple(near[: self._policy.count_max])

    async def remember(self, turn: Turn, owner: str) -> None:
        """Store the user's words of `turn` for later turns of `owner`."""
        text = turn.message[: limits.MEMORY_CHARS_MAX]
        embedding = await self._embedder.embed(text)
        await self._store.remember(Memory(id=turn.id, owner=owner, text=text, embedding=embedding, at=turn.at))
