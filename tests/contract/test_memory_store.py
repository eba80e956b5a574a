"""What every MemoryStore does."""

import asyncio
import math

import pytest

from orchestra import limits
from orchestra.errors import ConfigurationError
from orchestra.model import Memory


def at_angle(degrees: float) -> tuple[float, ...]:
    """A unit vector whose cosine to `at_angle(0)` is that of the angle."""
    radians = math.radians(degrees)
    return (math.cos(radians), math.sin(radians)) + (0.0,) * (limits.EMBEDDING_DIMENSIONS - 2)


def memory(memory_id: str, degrees: float, owner: str = "user:ada") -> Memory:
    return Memory(memory_id, owner, f"text of {memory_id} ☎", at_angle(degrees), 1.5)


async def recalled(store, owner: str = "user:ada", limit: int = 10) -> list[str]:
    return [each.text.split()[2] for each in await store.recall(owner, at_angle(0), limit=limit)]


def test_an_owner_without_memories_recalls_nothing(memories):
    async def scenario(store):
        assert await store.recall("nobody", at_angle(0), limit=5) == ()

    memories.holds(scenario)


def test_the_nearest_come_first_with_their_similarity(memories):
    async def scenario(store):
        angles = [90, 10, 180, 0, 45, 60]
        for angle in angles:
            await store.remember(memory(f"m{angle}", angle))
        recollections = await store.recall("user:ada", at_angle(0), limit=10)
        assert [each.text for each in recollections] == [f"text of m{angle} ☎" for angle in sorted(angles)]
        for each, angle in zip(recollections, sorted(angles), strict=True):
            assert each.similarity == pytest.approx(math.cos(math.radians(angle)), abs=1e-6)
            assert -1 <= each.similarity <= 1
        assert await recalled(store, limit=2) == ["m0", "m10"]
        assert await recalled(store, limit=0) == []

    memories.holds(scenario)


def test_ties_are_ordered_by_id(memories):
    async def scenario(store):
        for memory_id in ("b", "a", "C", "d", "10", "9"):
            await store.remember(memory(memory_id, 30))
        assert await recalled(store) == ["10", "9", "C", "a", "b", "d"]
        assert await recalled(store, limit=3) == ["10", "9", "C"]

    memories.holds(scenario)


def test_recall_never_crosses_owners(memories):
    async def scenario(store):
        await store.remember(memory("m1", 80))
        await store.remember(memory("m2", 0, owner="user:eve"))
        await store.remember(memory("m3", 0, owner="session:user:ada"))
        assert await recalled(store) == ["m1"]
        assert await recalled(store, "user:eve") == ["m2"]

    memories.holds(scenario)


def test_a_memory_is_kept_once(memories):
    async def scenario(store):
        await store.remember(memory("m1", 0))
        await store.remember(memory("m1", 0))
        await asyncio.gather(*(store.remember(memory("m2", 10)) for _ in range(5)))
        assert await recalled(store) == ["m1", "m2"]

    memories.holds(scenario)


def test_what_is_forgotten_is_not_recalled(memories):
    async def scenario(store):
        for memory_id, owner in (("m1", "user:ada"), ("m2", "user:ada"), ("m3", "user:eve"), ("m4", "user:ada")):
            await store.remember(memory(memory_id, 0, owner))
        await store.forget(["m1", "m3", "unknown"])
        await store.forget([])
        assert await recalled(store) == ["m2", "m4"]
        assert await recalled(store, "user:eve") == []
        await store.remember(memory("m1", 0))
        assert await recalled(store) == ["m1", "m2", "m4"]

    memories.holds(scenario)


@pytest.mark.parametrize("dimensions", [0, 255, 257])
def test_an_embedding_of_other_dimensions_is_refused_with_the_cure(memories, dimensions):
    embedding = (1.0,) * dimensions

    async def scenario(store):
        with pytest.raises(ConfigurationError, match=f"{dimensions} components .* embedder of 256"):
            await store.remember(Memory("m1", "user:ada", "text", embedding, 1.0))
        with pytest.raises(ConfigurationError, match=f"{dimensions} components"):
            await store.recall("user:ada", embedding, limit=1)
        assert await recalled(store) == []

    memories.holds(scenario)


def test_a_zero_vector_resembles_nothing(memories):
    async def scenario(store):
        await store.remember(memory("m1", 0))
        [recollection] = await store.recall("user:ada", (0.0,) * limits.EMBEDDING_DIMENSIONS, limit=1)
        assert recollection.similarity == 0

    memories.holds(scenario)


def test_it_answers_a_ping(memories):
    async def scenario(store):
        await store.ping()

    memories.holds(scenario)
