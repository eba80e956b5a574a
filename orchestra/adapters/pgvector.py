"""Memories in PostgreSQL with pgvector, recalled by exact search among their owner's."""

from collections.abc import Sequence

from orchestra.adapters.postgres import Postgres
from orchestra.adapters.storing import check_embedding, similarity
from orchestra.model import Memory, Recollection

_RECALL = """
SELECT text, 1 - (embedding <=> $2) FROM memories WHERE owner = $1 ORDER BY embedding <=> $2, id LIMIT $3
"""

_FORGET = "DELETE FROM memories WHERE id = ANY($1::text[])"


class PgvectorMemories:
    """Memories in PostgreSQL; they share their commits with turns."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def remember(self, memory: Memory) -> None:
        """Store `memory` durably, once however often it comes.

        Raises
        ------
        StoreUnavailable
        ConfigurationError
            The embedding has not as many dimensions as the schema.
        InvalidRequest
            No text of PostgreSQL can hold it; `limits.text_fault` tells why.
        """
        check_embedding(memory.embedding)
        await self._postgres.writes.submit(memory)

    async def recall(self, owner: str, embedding: tuple[float, ...], *, limit: int) -> tuple[Recollection, ...]:
        """Return the `limit` memories of `owner` nearest to `embedding` by cosine, nearest first, ties by id.

        Raises
        ------
        StoreUnavailable
        ConfigurationError
            The embedding has not as many dimensions as the schema.
        """
        check_embedding(embedding)
        records = await self._postgres.fetch(_RECALL, owner, list(embedding), limit)
        return tuple(Recollection(text, similarity(cosine)) for text, cosine in records)

    async def forget(self, memory_ids: Sequence[str]) -> None:
        """Delete the memories of these ids, after all that was to be remembered before.

        Raises
        ------
        StoreUnavailable
        """
        await self._postgres.change((_FORGET, list(memory_ids)))

    async def ping(self) -> None:
        """Return once PostgreSQL has answered."""
        await self._postgres.ping()
