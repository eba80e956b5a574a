"""What the container promises, one promise a test."""

import abc
import asyncio
import contextlib
import functools
import gc
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Protocol

import pytest

from orchestra.container import DIContainer, ServiceConfig, ServiceLifecycle
from orchestra.errors import ConfigurationError, ShuttingDown


class Speaker(Protocol):
    def speak(self) -> str: ...


class Engine:
    def speak(self) -> str:
        return "engine"


class Session:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine


class Orchestrator:
    def __init__(self, session: Session, speaker: Speaker) -> None:
        self.session = session
        self.speaker = speaker


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(coroutine)


def closing(log: list[str], name: str, failure: BaseException | None = None) -> Callable[[], Any]:
    """Make a factory of something whose disposal shows in `log`."""

    class Resource:
        async def aclose(self) -> None:
            await asyncio.sleep(0)
            log.append(name)
            if failure is not None:
                raise failure

    return Resource


class First: ...


class Second: ...


class Third: ...


def test_each_lifecycle_lives_as_long_as_it_says() -> None:
    async def main() -> None:
        container = DIContainer()
        container.register_singleton(First)
        container.register_scoped(Second)
        container.register_transient(Third)
        async with container.create_scope() as one, container.create_scope() as two:
            assert await one.resolve(First) is await two.resolve(First) is await container.resolve(First)
            assert await one.resolve(Second) is await one.resolve(Second)
            assert await one.resolve(Second) is not await two.resolve(Second)
            assert await one.resolve(Third) is not await one.resolve(Third)
            assert one.instances == {Second: await one.resolve(Second)}
            assert list(container.scopes.values()) == [one, two]
        assert container.scopes == {}
        assert list(container.services) == [First]

    run(main())


def test_dependencies_come_from_the_constructor() -> None:
    async def main() -> None:
        container = DIContainer()
        container.register_scoped(Orchestrator)  # before what it needs: the order of registration is free
        container.register_scoped(Session)
        container.register_singleton(Engine)
        container.register_singleton(Speaker, Engine)
        async with container.create_scope() as scope:
            orchestrator = await scope.resolve(Orchestrator)
            assert orchestrator.session is await scope.resolve(Session)
            assert orchestrator.session.engine is await container.resolve(Engine)
            assert orchestrator.speaker.speak() == "engine"
        config = container.configs[Orchestrator]
        assert isinstance(config, ServiceConfig)
        assert config.implementation is Orchestrator
        assert config.lifecycle is ServiceLifecycle.SCOPED
        assert [(each.parameter, each.service_type) for each in config.dependencies] == [
            ("session", Session),
            ("speaker", Speaker),
        ]

    run(main())


def test_factories_are_plain_async_or_generators_and_take_dependencies() -> None:
    log: list[str] = []

    def plain() -> Engine:
        return Engine()

    async def later(engine: Engine) -> Session:
        await asyncio.sleep(0)
        return Session(engine)

    async def lent(session: Session) -> AsyncIterator[Orchestrator]:
        log.append("open")
        yield Orchestrator(session, session.engine)
        log.append("shut")

    async def main() -> None:
        container = DIContainer()
        container.register_singleton(Engine, factory=plain)
        container.register_scoped(Session, factory=later)
        container.register_scoped(Orchestrator, factory=lent)
        container.register_transient(First, factory=functools.partial(First))
        async with container.create_scope() as scope:
            orchestrator = await scope.resolve(Orchestrator)
            assert orchestrator.session.engine is await scope.resolve(Engine)
            assert isinstance(await scope.resolve(First), First)
            assert log == ["open"]
        assert log == ["open", "shut"]

    run(main())


def test_a_default_stands_in_for_a_service_that_is_not_registered() -> None:
    class Tuned:
        def __init__(self, engine: Engine | None = None, session: Session | None = None, *extra: int, n=3) -> None:  # type: ignore[no-untyped-def]
            self.engine, self.session, self.extra, self.n = engine, session, extra, n

    async def main() -> None:
        container = DIContainer()
        container.register_singleton(Engine)
        container.register_singleton(Tuned)
        tuned = await container.resolve(Tuned)
        assert tuned.engine is await container.resolve(Engine)
        assert (tuned.session, tuned.extra, tuned.n) == (None, (), 3)

    run(main())


class Untyped:
    def __init__(self, engine) -> None: ...  # type: ignore[no-untyped-def]


class Distant:
    def __init__(self, engine: "Elsewhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821


class PositionOnly:
    def __init__(self, engine: Engine, /) -> None: ...


class Abstract(abc.ABC):
    @abc.abstractmethod
    def speak(self) -> str: ...


@pytest.mark.parametrize(
    ("register", "words"),
    [
        (lambda c: c.register_singleton(Untyped), ["Untyped", "`engine`", "no annotation", "factory"]),
        (lambda c: c.register_singleton(Distant), ["Distant", "`Elsewhere`", "import it"]),
        (lambda c: c.register_singleton(PositionOnly), ["PositionOnly", "`engine`", "positional-only"]),
        (lambda c: c.register_singleton(Abstract), ["Abstract is abstract", "implementation or a factory"]),
        (lambda c: c.register_singleton(Speaker), ["Speaker is abstract", "implementation or a factory"]),
        (lambda c: c.register_singleton(Session, Engine), ["Engine is no Session"]),
        (lambda c: c.register_singleton(Engine, Engine, factory=Engine), ["Engine", "give one"]),
        (lambda c: c.register_singleton(Engine, factory=Engine, instance=Engine()), ["Engine", "give one"]),
        (lambda c: c.register_singleton("engine"), ["'engine'", "no class to make"]),
        (lambda c: c.register_singleton(Engine, factory=42), ["Engine", "cannot be read"]),
        (lambda c: c.register_scoped(First) or c.register_transient(First), ["First", "already, as scoped"]),
    ],
)
def test_what_cannot_be_made_is_refused_at_registration(
    register: Callable[[DIContainer], None], words: list[str]
) -> None:
    container = DIContainer()
    with pytest.raises(ConfigurationError) as refusal:
        register(container)
    for word in words:
        assert word in refusal.value.detail
    assert set(container.configs) <= {First}


def test_what_is_not_registered_is_named_with_who_needs_it() -> None:
    async def main() -> None:
        container = DIContainer()
        container.register_scoped(Orchestrator)
        container.register_scoped(Session)
        container.register_singleton(Speaker, Engine)
        async with container.create_scope() as scope:
            with pytest.raises(ConfigurationError, match="Session needs Engine for its parameter `engine`"):
                await scope.resolve(Orchestrator)
            with pytest.raises(ConfigurationError, match="First is not registered"):
                await scope.resolve(First)
            assert scope.instances == {}
            container.register_singleton(Engine)
            assert isinstance(await scope.resolve(Orchestrator), Orchestrator)

    run(main())


def test_a_circle_is_refused_with_its_chain_and_leaves_no_trace() -> None:
    def hen(egg: Second) -> First:
        raise NotImplementedError

    def egg(nest: Third) -> Second:
        raise NotImplementedError

    def nest(hen: First) -> Third:
        raise NotImplementedError

    def alone(me: Engine) -> Engine:
        raise NotImplementedError

    container = DIContainer()
    container.register_transient(First, factory=hen)
    container.register_scoped(Second, factory=egg)
    with pytest.raises(ConfigurationError) as refusal:
        container.register_transient(Third, factory=nest)
    chain = "Third (transient) -> First (transient) -> Second (scoped) -> Third (transient)"
    assert f"circular dependency: {chain}" in refusal.value.detail
    assert list(container.configs) == [First, Second]
    with pytest.raises(ConfigurationError, match=r"Engine \(singleton\) -> Engine \(singleton\)"):
        container.register_singleton(Engine, factory=alone)


def test_a_singleton_that_would_hold_a_scoped_service_is_refused_in_any_order() -> None:
    def keeper(middle: Second) -> First:
        raise NotImplementedError

    def middle(engine: Engine, scoped: Third) -> Second:
        raise NotImplementedError

    steps: list[Callable[[DIContainer], None]] = [
        lambda c: c.register_singleton(First, factory=keeper),
        lambda c: c.register_transient(Second, factory=middle),
        lambda c: c.register_scoped(Third),
    ]
    chain = "captive dependency: First (singleton) -> Second (transient) -> Third (scoped)"
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1)):
        container = DIContainer()
        container.register_singleton(Engine)
        first, second, closing_it = (steps[number] for number in order)
        first(container)
        second(container)
        with pytest.raises(ConfigurationError) as refusal:
            closing_it(container)
        assert chain in refusal.value.detail
        assert len(container.configs) == 3


def test_the_root_refuses_what_lives_in_a_scope() -> None:
    def holder(scoped: Second) -> Third:
        raise NotImplementedError

    async def main() -> None:
        container = DIContainer()
        container.register_scoped(Second)
        container.register_transient(Third, factory=holder)
        with pytest.raises(ConfigurationError, match=r"Second lives in a scope .*create_scope"):
            await container.resolve(Second)
        with pytest.raises(ConfigurationError, match=r"Third \(transient\) -> Second \(scoped\)"):
            await container.resolve(Third)

    run(main())


def test_concurrent_first_resolves_build_once() -> None:
    built: list[Engine] = []

    async def slowly() -> Engine:
        await asyncio.sleep(0.001)
        built.append(Engine())
        return built[-1]

    async def main() -> None:
        container = DIContainer()
        container.register_singleton(Engine, factory=slowly)
        container.register_scoped(Session)
        async with container.create_scope() as one, container.create_scope() as two:
            sessions = await asyncio.gather(*(scope.resolve(Session) for scope in (one, two, one, two)))
        assert len(built) == 1
        assert sessions[0] is sessions[2]
        assert sessions[1] is sessions[3]
        assert {id(session.engine) for session in sessions} == {id(built[0])}

    run(main())


def test_a_failed_build_is_told_to_all_who_wait_and_forgotten() -> None:
    attempts: list[int] = []

    async def fragile() -> Engine:
        attempts.append(len(attempts))
        await asyncio.sleep(0)
        if len(attempts) == 1:
            raise OSError("not yet")
        return Engine()

    async def main() -> None:
        container = DIContainer()
        container.register_singleton(Engine, factory=fragile)
        results = await asyncio.gather(*(container.resolve(Engine) for _ in range(3)), return_exceptions=True)
        assert [repr(each) for each in results] == ["OSError('not yet')"] * 3
        assert len(attempts) == 1
        assert isinstance(await container.resolve(Engine), Engine)

    run(main())


def test_an_error_that_its_only_caller_handled_is_not_reported_again() -> None:
    def failing() -> Engine:
        raise OSError("handled")

    async def main() -> None:
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        container = DIContainer()
        container.register_singleton(Engine, factory=failing)
        with contextlib.suppress(OSError):
            await container.resolve(Engine)
        gc.collect()
        assert complaints == []

    run(main())


def test_a_cancelled_first_resolver_hands_the_build_on() -> None:
    attempts: list[str] = []
    gate = asyncio.Event()

    async def slow() -> Engine:
        attempts.append("begun")
        await gate.wait()
        return Engine()

    async def main() -> None:
        container = DIContainer()
        container.register_singleton(Engine, factory=slow)
        first, second, third = (asyncio.create_task(container.resolve(Engine)) for _ in range(3))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await asyncio.sleep(0)
        third.cancel()  # one that only waits takes nobody along
        await asyncio.sleep(0)
        gate.set()
        assert isinstance(await second, Engine)
        assert third.cancelled()
        assert attempts == ["begun", "begun"]

    run(main())


def test_a_factory_that_resolves_itself_is_refused_instead_of_hanging() -> None:
    async def main() -> None:
        container = DIContainer()

        async def circular() -> Engine:
            return (await container.resolve(Session)).engine

        container.register_singleton(Engine, factory=circular)
        container.register_singleton(Session)
        with pytest.raises(ConfigurationError, match="Engine is resolved again by what builds it"):
            await asyncio.wait_for(container.resolve(Engine), 10)

    run(main())


def test_disposal_is_in_reverse_and_no_failure_stops_it() -> None:
    log: list[str] = []

    def second(first: First) -> Second:
        resource: Second = closing(log, "second", OSError("stuck"))()
        return resource

    def third(first: First, second: Second) -> Third:
        resource: Third = closing(log, "third", ValueError("bent"))()
        return resource

    async def main() -> None:
        container = DIContainer()
        container.register_singleton(First, factory=closing(log, "first"))
        container.register_singleton(Second, factory=second)
        container.register_singleton(Third, factory=third)
        await container.resolve(Third)
        with pytest.raises(ExceptionGroup, match="disposing the container failed in part") as failure:
            await container.dispose()
        assert log == ["third", "second", "first"]
        assert [repr(each) for each in failure.value.exceptions] == ["ValueError('bent')", "OSError('stuck')"]
        await container.dispose()
        assert log == ["third", "second", "first"]

    run(main())


def test_a_cancelled_disposal_still_disposes_the_rest() -> None:
    log: list[str] = []

    class Hanging:
        async def close(self) -> None:
            await asyncio.Event().wait()

    async def main() -> None:
        container = DIContainer()
        container.register_singleton(First, factory=closing(log, "first", OSError("stuck")))
        container.register_singleton(Hanging)
        await container.resolve(First)
        await container.resolve(Hanging)
        task = asyncio.create_task(container.dispose())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await task
        assert log == ["first"]
        assert "OSError('stuck')" in cancelled.value.__notes__[0]

    run(main())


def test_the_container_disposes_open_scopes_first() -> None:
    log: list[str] = []

    async def main() -> None:
        container = DIContainer()
        container.register_singleton(First, factory=closing(log, "singleton"))
        container.register_scoped(Second, factory=closing(log, "scoped", OSError("stuck")))
        container.register_transient(Third, factory=closing(log, "transient"))
        scope = container.create_scope()
        await scope.resolve(Second)
        await scope.resolve(First)
        await scope.resolve(Third)
        await container.resolve(Third)
        with pytest.raises(ExceptionGroup) as failure:
            await container.dispose()
        assert log == ["transient", "scoped", "transient", "singleton"]
        assert len(failure.value.exceptions) == 1
        assert container.services == scope.instances == container.scopes == {}

    run(main())


def test_scopes_go_youngest_first_and_none_opens_meanwhile() -> None:
    log: list[str] = []

    async def main() -> None:
        container = DIContainer()

        class Ending:
            def close(self) -> None:
                log.append(str(list(container.scopes)))
                with pytest.raises(ShuttingDown):
                    container.create_scope()

        container.register_scoped(Ending)
        for _ in range(3):
            await container.create_scope().resolve(Ending)
        await container.dispose()
        assert log == ["[1, 2]", "[1]", "[]"]

    run(main())


@pytest.mark.parametrize("method", ["aclose", "close", "dispose"])
@pytest.mark.parametrize("asynchronous", [True, False])
def test_any_usual_way_to_close_is_found(method: str, asynchronous: bool) -> None:
    log: list[str] = []

    async def later(self: object) -> None:
        log.append(method)

    def now(self: object) -> None:
        log.append(method)

    kind = type("Resource", (), {method: later if asynchronous else now})

    async def main() -> None:
        container = DIContainer()
        container.register_scoped(kind)
        async with container.create_scope() as scope:
            await scope.resolve(kind)
        assert log == [method]

    run(main())


def test_only_the_owner_disposes() -> None:
    log: list[str] = []

    def alias(first: First) -> Second:
        return first  # type: ignore[return-value]

    async def main() -> None:
        given: Third = closing(log, "given")()
        container = DIContainer()
        container.register_singleton(First, factory=closing(log, "first"))
        container.register_singleton(Second, factory=alias)
        container.register_singleton(Third, instance=given)
        assert await container.resolve(Second) is await container.resolve(First)  # type: ignore[comparison-overlap]
        assert await container.resolve(Third) is given
        await container.dispose()
        assert log == ["first"]

    run(main())


def test_nothing_resolves_after_disposal() -> None:
    async def main() -> None:
        container = DIContainer()
        container.register_singleton(First)
        container.register_scoped(Second)
        async with container.create_scope() as scope:
            await scope.resolve(First)
        with pytest.raises(ConfigurationError, match="First was resolved in a disposed scope"):
            await scope.resolve(First)
        other = container.create_scope()
        await container.dispose()
        for late in (container.resolve(First), scope.resolve(First), other.resolve(Second)):
            with pytest.raises(ShuttingDown, match="the container is disposed"):
                await late
        with pytest.raises(ShuttingDown):
            container.create_scope()
        with pytest.raises(ShuttingDown):
            container.register_singleton(Third)

    run(main())


def test_what_is_ready_only_after_disposal_is_disposed_at_once() -> None:
    log: list[str] = []

    async def main() -> None:
        gate = asyncio.Event()

        async def slow() -> Any:
            await gate.wait()
            return closing(log, "late")()

        container = DIContainer()
        container.register_singleton(First, factory=slow)
        container.register_scoped(Second, factory=slow)
        scope = container.create_scope()
        scoped = asyncio.create_task(scope.resolve(Second))
        singleton = asyncio.create_task(container.resolve(First))
        await asyncio.sleep(0)
        await scope.dispose()
        gate.set()
        with pytest.raises(ConfigurationError, match="ready only after its scope was disposed"):
            await scoped
        assert log == ["late"]
        assert isinstance(await singleton, object)
        gate.clear()

        other = DIContainer()
        other.register_singleton(First, factory=slow)
        late = asyncio.create_task(other.resolve(First))
        await asyncio.sleep(0)
        await other.dispose()
        gate.set()
        with pytest.raises(ShuttingDown):
            await late
        assert log == ["late", "late"]
        await container.dispose()
        assert log == ["late"] * 3

    run(main())


def test_a_failed_build_undoes_what_was_made_for_it() -> None:
    log: list[str] = []

    def failing(first: First, second: Second) -> Third:
        raise OSError("no")

    async def main() -> None:
        container = DIContainer()
        container.register_singleton(First, factory=closing(log, "shared"))
        container.register_transient(Second, factory=closing(log, "own", ValueError("bent")))
        container.register_singleton(Third, factory=failing)
        for attempt in (1, 2, 3):
            with pytest.raises(OSError, match="no") as failure:
                await container.resolve(Third)
            assert "ValueError('bent')" in failure.value.__notes__[0]
            assert log == ["own"] * attempt
        await container.dispose()
        assert log == ["own", "own", "own", "shared"]

    run(main())


def test_a_container_serves_more_than_one_loop() -> None:
    container = DIContainer()
    container.register_singleton(First)
    container.register_scoped(Second)

    async def main() -> None:
        async with container.create_scope() as scope:
            await scope.resolve(First)
            await scope.resolve(Second)

    run(main())
    run(main())


def test_a_ladder_of_transients_is_judged_in_no_time() -> None:
    """Each rung doubles the ways down: a walk over ways instead of services would not end."""
    container = DIContainer()
    kinds = [type(f"Rung{i}", (), {}) for i in range(60)]
    for i, kind in enumerate(kinds):

        def factory(left: Any = None, right: Any = None) -> Any:
            raise NotImplementedError

        factory.__annotations__ = dict.fromkeys(["left", "right"], kinds[i + 1]) if i + 1 < len(kinds) else {}
        container.register_transient(kind, factory=factory)

    def top(rung: Any) -> Any:
        raise NotImplementedError

    top.__annotations__ = {"rung": kinds[0]}
    container.register_singleton(First, factory=top)
    container.register_scoped(Second)
