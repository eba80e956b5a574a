"""Any graph of services: it resolves exactly where it can, builds once, and disposes in reverse."""

import asyncio
import inspect
from collections import Counter
from dataclasses import dataclass
from typing import Any

from hypothesis import event, given, target
from hypothesis import strategies as st

from orchestra.container import DIContainer, ServiceLifecycle
from orchestra.errors import ConfigurationError

SINGLETON, SCOPED, TRANSIENT = ServiceLifecycle.SINGLETON, ServiceLifecycle.SCOPED, ServiceLifecycle.TRANSIENT


@dataclass(frozen=True)
class Graph:
    """Services 0..n-1: `needs[i]` are what i takes, `pauses[i]` how often its factory awaits (None: no factory)."""

    lifecycles: list[ServiceLifecycle]
    needs: list[list[int]]
    pauses: list[int | None]
    order: list[int]  # of registration; those left out are missing


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    size = draw(st.integers(1, 8))
    acyclic = draw(st.integers(0, 3)) > 0  # most graphs drawn at random have a circle and say nothing more
    needs = []
    for i in range(size):
        allowed = st.integers(0, i - 1 if acyclic else size - 1)
        needs.append(draw(st.lists(allowed, max_size=3, unique=True)) if i > 0 or not acyclic else [])
    order = draw(st.permutations(range(size)))
    missing = draw(st.integers(0, 1)) if draw(st.booleans()) else 0
    return Graph(
        draw(st.lists(st.sampled_from([SINGLETON, SCOPED, TRANSIENT]), min_size=size, max_size=size)),
        needs,
        draw(st.lists(st.sampled_from([None, 0, 1, 3]), min_size=size, max_size=size)),
        list(order)[missing:],
    )


def reach(graph: Graph, present: list[int], through: set[ServiceLifecycle]) -> list[list[bool]]:
    """Warshall's closure of "needs" among those present, on ways whose inner services have a lifecycle in `through`."""
    size = len(graph.needs)
    ways = [[i in present and j in present and j in graph.needs[i] for j in range(size)] for i in range(size)]
    for k in range(size):
        if graph.lifecycles[k] in through:
            for i in range(size):
                for j in range(size):
                    ways[i][j] = ways[i][j] or (ways[i][k] and ways[k][j])
    return ways


def sound(graph: Graph, present: list[int]) -> bool:
    """Tell whether those present have neither a circle nor a singleton that would hold a scoped service."""
    everywhere, transiently = reach(graph, present, {SINGLETON, SCOPED, TRANSIENT}), reach(graph, present, {TRANSIENT})
    of = graph.lifecycles
    captive = any(transiently[i][j] and of[i] is SINGLETON and of[j] is SCOPED for i in present for j in present)
    return not captive and not any(everywhere[i][i] for i in present)


class Workshop:
    """Classes for the services of one graph, which log their making and their end."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.made: list[Any] = []
        self.ended: list[Any] = []
        self.kinds = [self._kind(i) for i in range(len(graph.needs))]

    def register(self, container: DIContainer, i: int) -> None:
        register = {
            SINGLETON: container.register_singleton,
            SCOPED: container.register_scoped,
            TRANSIENT: container.register_transient,
        }[self.graph.lifecycles[i]]
        pauses = self.graph.pauses[i]
        kind = self.kinds[i]
        if pauses is None:
            self._annotate(kind.__init__, i, ["self"])
            register(kind)
            return

        async def factory(**needed: Any) -> Any:
            for _ in range(pauses):
                await asyncio.sleep(0)
            return kind(**needed)

        self._annotate(factory, i, [])
        register(kind, factory=factory)

    def _kind(self, i: int) -> Any:
        def init(self_: Any, **needed: Any) -> None:
            self_.number, self_.needed = i, needed
            self.made.append(self_)

        async def aclose(self_: Any) -> None:
            await asyncio.sleep(0)
            self.ended.append(self_)

        return type(f"Service{i}", (), {"__init__": init, "aclose": aclose})

    def _annotate(self, function: Any, i: int, first: list[str]) -> None:
        names = {f"need{j}": self.kinds[j] for j in self.graph.needs[i]}
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        function.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in [*first, *names]])
        function.__annotations__ = names


@given(graphs())
def test_a_graph_resolves_exactly_where_it_is_complete_and_neither_circular_nor_captive(graph: Graph) -> None:
    workshop, container = Workshop(graph), DIContainer()
    present: list[int] = []
    for i in graph.order:
        expected = sound(graph, [*present, i])
        try:
            workshop.register(container, i)
        except ConfigurationError:
            assert not expected
            event("refused at registration")
        else:
            assert expected
            present.append(i)
    assert set(container.configs) == {workshop.kinds[i] for i in present}
    asyncio.run(live(graph, workshop, container, present))


async def live(graph: Graph, workshop: Workshop, container: DIContainer, present: list[int]) -> None:
    everywhere = reach(graph, present, {SINGLETON, SCOPED, TRANSIENT})
    transiently = reach(graph, present, {TRANSIENT})
    of = graph.lifecycles

    def complete(i: int) -> bool:
        chain = [i, *(j for j in present if everywhere[i][j])]
        return i in present and all(needed in present for j in chain for needed in graph.needs[j])

    def at_root(i: int) -> bool:
        scoped = of[i] is SCOPED or (of[i] is TRANSIENT and any(transiently[i][j] and of[j] is SCOPED for j in present))
        return complete(i) and not scoped

    numbers = range(len(graph.needs))
    scopes = [container.create_scope() for _ in range(2)]
    results = await asyncio.gather(
        *(scope.resolve(workshop.kinds[i]) for i in numbers for scope in scopes), return_exceptions=True
    )
    rooted = await asyncio.gather(*(container.resolve(workshop.kinds[i]) for i in numbers), return_exceptions=True)
    for i in numbers:
        for result in results[2 * i : 2 * i + 2]:
            assert isinstance(result, workshop.kinds[i] if complete(i) else ConfigurationError)
        assert isinstance(rooted[i], workshop.kinds[i] if at_root(i) else ConfigurationError)
    target(float(len(workshop.made)))

    counts = Counter(each.number for each in workshop.made)
    for i in numbers:
        if of[i] is SINGLETON:
            assert counts[i] <= 1
            assert not complete(i) or results[2 * i] is results[2 * i + 1] is rooted[i]
        elif of[i] is SCOPED:
            assert counts[i] <= 2
            assert not complete(i) or results[2 * i] is not results[2 * i + 1]
    assert all(set(each.needed) == {f"need{j}" for j in graph.needs[each.number]} for each in workshop.made)

    for scope in scopes:
        before = len(workshop.ended)
        await scope.dispose()
        in_scope = workshop.ended[before:]
        assert_reversed(workshop, in_scope)
        assert {id(each) for each in scoped_of(graph, results, scopes.index(scope))} <= {id(each) for each in in_scope}
    before = len(workshop.ended)
    await container.dispose()
    assert_reversed(workshop, workshop.ended[before:])
    assert Counter(map(id, workshop.ended)) == Counter(map(id, workshop.made))  # all, each once


def scoped_of(graph: Graph, results: list[Any], scope: int) -> list[Any]:
    """Return the scoped services that were resolved in one scope."""
    found = results[scope::2]
    return [each for i, each in enumerate(found) if graph.lifecycles[i] is SCOPED and not isinstance(each, Exception)]


def assert_reversed(workshop: Workshop, ended: list[Any]) -> None:
    made = {id(each): position for position, each in enumerate(workshop.made)}
    positions = [made[id(each)] for each in ended]
    assert positions == sorted(positions, reverse=True)
