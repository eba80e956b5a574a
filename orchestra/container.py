"""Dependency injection: what each service needs is read from its constructor, and made once, per scope or anew.

A service is registered under a type and resolved by that type. The graph of dependencies is judged before anything is
built, so a missing, circular or captive dependency is refused with the whole chain in its message. The container and
each scope own what they made: on disposal it goes in the reverse order of its making.
"""

import asyncio
import enum
import inspect
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from types import NoneType, TracebackType, UnionType
from typing import Any, NamedTuple, Self, TypeVar, Union

from orchestra.errors import ConfigurationError, ShuttingDown

T = TypeVar("T")

Factory = Callable[..., T | Awaitable[T] | AsyncIterator[T]]
"""Makes a service: a plain or async function, or an async generator that yields it once and cleans up after."""

_Finalizer = Callable[[], object]

_DISPOSERS = ("aclose", "close", "dispose")
_ABSENT: Any = object()


class ServiceLifecycle(enum.Enum):
    """How long an instance lives: for one resolve, for the container, or for a scope."""

    TRANSIENT = "transient"
    SINGLETON = "singleton"
    SCOPED = "scoped"


class Dependency(NamedTuple):
    """A constructor or factory parameter that is a service; an optional one has a default for want of a service."""

    parameter: str
    service_type: Any
    optional: bool


@dataclass(frozen=True)
class ServiceConfig:
    """How one service is made: by `factory` where there is one, else by calling `implementation`."""

    service_type: Any
    implementation: type | None
    lifecycle: ServiceLifecycle
    factory: Callable[..., Any] | None
    dependencies: tuple[Dependency, ...]


class _Holder:
    """What one container or scope has made: instances by type, builds under way, and how to dispose, in order."""

    __slots__ = ("_building", "disposed", "finalizers", "instances")

    def __init__(self) -> None:
        self.instances: dict[Any, Any] = {}
        self.finalizers: list[_Finalizer] = []
        self.disposed = False
        self._building: dict[Any, tuple[asyncio.Future[Any], asyncio.Task[Any] | None]] = {}

    async def once(self, service_type: Any, build: Callable[[], Awaitable[Any]]) -> Any:
        """Return the one instance, building it where it is not there yet.

        The first caller builds in its own task; those who come meanwhile wait. They share an error of the build, but
        not the first caller's cancellation: then the next of them builds. Neither is kept for later callers.
        """
        while service_type not in self.instances:
            underway = self._building.get(service_type)
            if underway is None:
                return await self._first(service_type, build)
            done, builder = underway
            if builder is asyncio.current_task():
                raise ConfigurationError(
                    f"{_name(service_type)} is resolved again by what builds it: "
                    f"take it out of its own factory, or build one of the two later"
                )
            await asyncio.wait([done])  # not `await done`: our own cancellation would cancel it for everyone
            if not done.cancelled():
                return done.result()
        return self.instances[service_type]

    async def _first(self, service_type: Any, build: Callable[[], Awaitable[Any]]) -> Any:
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._building[service_type] = done, asyncio.current_task()
        try:
            instance = self.instances[service_type] = await build()
        except Exception as error:
            done.set_exception(error)
            done.exception()  # marks it as seen: there may be no one else who waits
            raise
        except BaseException:
            done.cancel()
            raise
        else:
            done.set_result(instance)
            return instance
        finally:
            del self._building[service_type]

    async def undo(self, made: list[_Finalizer], cause: BaseException) -> None:
        """Dispose what a failed build has made so far; failures on the way become notes of its cause."""
        self.finalizers = [each for each in self.finalizers if each not in made]
        for failure in await _finalize(made):
            cause.add_note(f"and while undoing the build: {failure!r}")

    async def dispose(self) -> list[BaseException]:
        """Dispose everything, last made first, and return what went wrong on the way."""
        self.disposed = True
        finalizers, self.finalizers = self.finalizers, []
        self.instances.clear()
        return await _finalize(finalizers)


class DIContainer:
    """Registers services and resolves them.

    Attributes
    ----------
    services : dict
        The singletons that exist, by service type.
    configs : dict of ServiceConfig
        How each registered service is made, by service type.
    scopes : dict of ServiceScope
        The scopes that are open, oldest first.

    Examples
    --------
    >>> container = DIContainer()
    >>> container.register_singleton(Database, factory=connect)
    >>> container.register_scoped(Conversation)  # its constructor says: database: Database
    >>> async with container.create_scope() as scope:
    ...     conversation = await scope.resolve(Conversation)
    >>> await container.dispose()
    """

    def __init__(self) -> None:
        self.configs: dict[Any, ServiceConfig] = {}
        self.scopes: dict[int, ServiceScope] = {}
        self._root = _Holder()
        self.services: dict[Any, Any] = self._root.instances
        self._complete: set[Any] = set()
        self._scopes_made = 0

    def register_singleton(
        self,
        service_type: type[T],
        implementation: type[T] | None = None,
        *,
        factory: Factory[T] | None = None,
        instance: T | None = None,
    ) -> None:
        """Register a service that is made once and shared by all scopes.

        Parameters
        ----------
        service_type : type
            What it is resolved by: a class, an abstract class or a Protocol.
        implementation : type, optional
            The class to make; `service_type` itself where neither this nor `factory` nor `instance` is given.
        factory : callable, optional
            Makes the service. Its annotated parameters are dependencies.
        instance : object, optional
            The service itself. It stays its giver's: the container never disposes it.

        Raises
        ------
        ConfigurationError
            It is registered already, cannot be made as described, or closes a circle or a captive chain.
        """
        if instance is None:
            self._register(ServiceLifecycle.SINGLETON, service_type, implementation, factory)
            return
        if implementation is not None or factory is not None:
            raise ConfigurationError(f"{_name(service_type)} has an instance and another way to make it: give one")
        self._accept(ServiceConfig(service_type, type(instance), ServiceLifecycle.SINGLETON, None, ()))
        self.services[service_type] = instance

    def register_transient(
        self, service_type: type[T], implementation: type[T] | None = None, *, factory: Factory[T] | None = None
    ) -> None:
        """Register a service that is made anew for every resolve and every dependant.

        Whoever resolves it in a scope gets it disposed with that scope; from the container, with the container.
        Parameters and errors as in `register_singleton`.
        """
        self._register(ServiceLifecycle.TRANSIENT, service_type, implementation, factory)

    def register_scoped(
        self, service_type: type[T], implementation: type[T] | None = None, *, factory: Factory[T] | None = None
    ) -> None:
        """Register a service that is made once in each scope. Parameters and errors as in `register_singleton`."""
        self._register(ServiceLifecycle.SCOPED, service_type, implementation, factory)

    async def resolve(self, service_type: type[T]) -> T:
        """Return the singleton, or a new transient, that is registered as `service_type`.

        Raises
        ------
        ConfigurationError
            It is unknown, or it is or holds a scoped service, or something that it needs is missing.
        ShuttingDown
            The container is disposed.
        """
        self._refuse_disposed(service_type)
        config = self._completed(service_type)
        if chain := self._way_to_scoped(config):
            raise ConfigurationError(
                f"{_name(service_type)} lives in a scope ({self._drawn(chain)}): "
                f"resolve it in `async with container.create_scope() as scope`"
            )
        instance: T = await self._provide(config, self._root)
        return instance

    def create_scope(self) -> "ServiceScope":
        """Open a scope; leaving it as an async context manager disposes what was made in it."""
        if self._root.disposed:
            raise ShuttingDown("the container is disposed: open scopes before that")
        self._scopes_made += 1
        scope = self.scopes[self._scopes_made] = ServiceScope(self, self._scopes_made)
        return scope

    async def dispose(self) -> None:
        """Dispose open scopes, youngest first, then singletons, last made first. Doing it again does nothing.

        A build that is under way is not waited for; its product is disposed as soon as it is there.

        Raises
        ------
        ExceptionGroup
            All failures, after everything was disposed.
        """
        self._root.disposed = True
        failures: list[BaseException] = []
        for scope in reversed(list(self.scopes.values())):
            failures += await scope._close()
        failures += await self._root.dispose()
        _report("container", failures)

    def _register(
        self,
        lifecycle: ServiceLifecycle,
        service_type: Any,
        implementation: type | None,
        factory: Callable[..., Any] | None,
    ) -> None:
        if factory is None:
            implementation = service_type if implementation is None else implementation
            _refuse_abstract(service_type, implementation)
        elif implementation is not None:
            raise ConfigurationError(f"{_name(service_type)} has an implementation and a factory: give one")
        make = implementation if factory is None else factory
        dependencies = tuple(_dependencies(service_type, make))
        self._accept(ServiceConfig(service_type, implementation, lifecycle, factory, dependencies))

    def _accept(self, config: ServiceConfig) -> None:
        """Add `config` unless the graph of services would be wrong with it."""
        self._refuse_disposed(config.service_type)
        if earlier := self.configs.get(config.service_type):
            raise ConfigurationError(
                f"{_name(config.service_type)} is registered already, as {earlier.lifecycle.value}: register it once"
            )
        self.configs[config.service_type] = config
        try:
            self._refuse_circle(config)
            for each in self.configs.values():
                self._refuse_captive(each)
        except ConfigurationError:
            del self.configs[config.service_type]
            raise

    def _needed(self, config: ServiceConfig) -> Iterator[ServiceConfig]:
        for dependency in config.dependencies:
            if needed := self.configs.get(dependency.service_type):
                yield needed

    def _refuse_circle(self, start: ServiceConfig) -> None:
        """Refuse a way from `start` to itself; there was no circle before, so a new one passes through it."""
        trail, seen = [(start, self._needed(start))], {start.service_type}
        while trail:
            needed = next(trail[-1][1], None)
            if needed is None:
                trail.pop()
            elif needed is start:
                chain = (*(config for config, _ in trail), start)
                raise ConfigurationError(
                    f"circular dependency: {self._drawn(chain)}; "
                    f"let one of them take what it needs later, as an argument of the call"
                )
            elif needed.service_type not in seen:
                seen.add(needed.service_type)
                trail.append((needed, self._needed(needed)))

    def _refuse_captive(self, config: ServiceConfig) -> None:
        if config.lifecycle is not ServiceLifecycle.SINGLETON:
            return
        for needed in self._needed(config):
            if chain := self._way_to_scoped(needed):
                raise ConfigurationError(
                    f"captive dependency: {self._drawn((config, *chain))}; a singleton would keep a scoped service "
                    f"beyond its scope: make {_name(config.service_type)} scoped, or pass the scoped one with each call"
                )

    def _way_to_scoped(self, config: ServiceConfig, clear: set[Any] | None = None) -> tuple[ServiceConfig, ...]:
        """Return the chain of transients that leads from `config` to a scoped service; empty where none does."""
        if config.lifecycle is ServiceLifecycle.SCOPED:
            return (config,)
        if config.lifecycle is ServiceLifecycle.TRANSIENT:
            clear = set() if clear is None else clear  # each transient is looked at once, however many need it
            for needed in self._needed(config):
                if needed.service_type not in clear and (chain := self._way_to_scoped(needed, clear)):
                    return (config, *chain)
            clear.add(config.service_type)
        return ()

    def _completed(self, service_type: Any) -> ServiceConfig:
        """Return the config of `service_type` once everything that it needs, near or far, is registered."""
        config = self.configs.get(service_type)
        if config is None:
            raise ConfigurationError(f"{_name(service_type)} is not registered: register it before it is resolved")
        if service_type in self._complete:
            return config
        ahead, seen = [config], {service_type}
        while ahead:
            current = ahead.pop()
            for parameter, needed, optional in current.dependencies:
                if needed not in self.configs and not optional:
                    raise ConfigurationError(
                        f"{_name(current.service_type)} needs {_name(needed)} for its parameter `{parameter}`, "
                        f"and that is not registered: register {_name(needed)}, or give the parameter a default"
                    )
                if needed in self.configs and needed not in seen:
                    seen.add(needed)
                    ahead.append(self.configs[needed])
        self._complete |= seen
        return config

    async def _provide(self, config: ServiceConfig, holder: _Holder, made: list[_Finalizer] | None = None) -> Any:
        """Return the instance of `config` for `holder`; `made` collects how to undo a dependant's transients."""
        if config.lifecycle is ServiceLifecycle.TRANSIENT:
            return await (self._attempt(config, holder) if made is None else self._build(config, holder, made))
        owner = self._root if config.lifecycle is ServiceLifecycle.SINGLETON else holder
        if config.service_type in owner.instances:
            return owner.instances[config.service_type]
        return await owner.once(config.service_type, partial(self._attempt, config, owner))

    async def _attempt(self, config: ServiceConfig, holder: _Holder) -> Any:
        made: list[_Finalizer] = []
        try:
            instance = await self._build(config, holder, made)
            if holder.disposed:
                self._refuse_disposed(config.service_type)
                raise ConfigurationError(f"{_name(config.service_type)} was ready only after its scope was disposed")
            return instance
        except BaseException as error:
            await holder.undo(made, error)
            raise

    async def _build(self, config: ServiceConfig, holder: _Holder, made: list[_Finalizer]) -> Any:
        arguments = {
            parameter: await self._provide(self.configs[needed], holder, made)
            for parameter, needed, _ in config.dependencies
            if needed in self.configs
        }
        instance, finalizer = await _make(config, arguments)
        # an alias gives out what another service owns: only its owner disposes it
        if finalizer is not None and not any(instance is each for each in arguments.values()):
            made.append(finalizer)
            holder.finalizers.append(finalizer)
        return instance

    def _refuse_disposed(self, service_type: Any) -> None:
        if self._root.disposed:
            raise ShuttingDown(f"the container is disposed: {_name(service_type)} came too late")

    def _drawn(self, chain: tuple[ServiceConfig, ...]) -> str:
        return " -> ".join(f"{_name(each.service_type)} ({each.lifecycle.value})" for each in chain)


class ServiceScope:
    """Instances that live together and end together, such as those of one request.

    Attributes
    ----------
    container : DIContainer
        Whose services it resolves.
    instances : dict
        The scoped services that exist in it, by service type.
    """

    __slots__ = ("_holder", "_number", "container", "instances")

    def __init__(self, container: DIContainer, number: int) -> None:
        self.container = container
        self._number = number
        self._holder = _Holder()
        self.instances: dict[Any, Any] = self._holder.instances

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._holder.finalizers:
            await self.dispose()
        else:  # nothing was made in it: what most scopes end with
            self.container.scopes.pop(self._number, None)
            self._holder.disposed = True
            self.instances.clear()

    async def resolve(self, service_type: type[T]) -> T:
        """Return the singleton, this scope's instance, or a new transient, as `service_type` is registered.

        Raises
        ------
        ConfigurationError
            It is unknown, something that it needs is missing, or the scope is disposed.
        ShuttingDown
            The container is disposed.
        """
        if self._holder.disposed:
            self.container._refuse_disposed(service_type)
            raise ConfigurationError(
                f"{_name(service_type)} was resolved in a disposed scope: resolve it before leaving `async with`"
            )
        instance: T = self.container.services.get(service_type, _ABSENT)
        if instance is _ABSENT:
            instance = self.instances.get(service_type, _ABSENT)
        if instance is _ABSENT:
            self.container._refuse_disposed(service_type)
            instance = await self.container._provide(self.container._completed(service_type), self._holder)
        return instance

    async def dispose(self) -> None:
        """Dispose what was made in this scope, last made first. Doing it again does nothing.

        Raises
        ------
        ExceptionGroup
            All failures, after everything was disposed.
        """
        _report("scope", await self._close())

    async def _close(self) -> list[BaseException]:
        self.container.scopes.pop(self._number, None)
        return await self._holder.dispose()


def _name(service_type: Any) -> str:
    return getattr(service_type, "__qualname__", None) or repr(service_type)


def _refuse_abstract(service_type: Any, implementation: Any) -> None:
    if not isinstance(implementation, type):
        raise ConfigurationError(f"{_name(service_type)} has no class to make: give an implementation or a factory")
    if inspect.isabstract(implementation) or getattr(implementation, "_is_protocol", False):
        raise ConfigurationError(
            f"{_name(implementation)} is abstract: give {_name(service_type)} an implementation or a factory"
        )
    nominal = isinstance(service_type, type) and not getattr(service_type, "_is_protocol", False)
    if nominal and not issubclass(implementation, service_type):
        raise ConfigurationError(
            f"{_name(implementation)} is no {_name(service_type)}: derive it, or register it as what it is"
        )


def _dependencies(service_type: Any, make: Any) -> Iterator[Dependency]:
    """Read the parameters of a class or a factory as dependencies."""
    if isinstance(make, type):
        target: Any = make.__init__  # type: ignore[misc]
        if target is object.__init__:
            return
    else:
        target = make if inspect.isroutine(make) else type(make).__call__
    try:
        parameters = inspect.signature(make).parameters.values()
        hints = typing.get_type_hints(target)
    except NameError as error:
        raise ConfigurationError(
            f"{_name(service_type)}: an annotation of {_name(make)} names `{error.name}`, which its module does not "
            f"know: import it there outside of `if TYPE_CHECKING`, or register with a factory"
        ) from error
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{_name(service_type)}: the parameters of {_name(make)} cannot be read ({error}): register with a factory"
        ) from error
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        optional = parameter.default is not parameter.empty
        if parameter.name in hints and parameter.kind is not parameter.POSITIONAL_ONLY:
            yield Dependency(parameter.name, _without_none(hints[parameter.name]), optional)
        elif not optional:
            fault = "is positional-only" if parameter.name in hints else "has no annotation"
            raise ConfigurationError(
                f"{_name(service_type)}: parameter `{parameter.name}` of {_name(make)} {fault}, so nothing can be "
                f"injected: annotate it with a service type, give it a default, or register with a factory"
            )


def _without_none(hint: Any) -> Any:
    """Return X for ``X | None``: what is registered is X."""
    if typing.get_origin(hint) in (Union, UnionType):
        members = [each for each in typing.get_args(hint) if each is not NoneType]
        if len(members) == 1:
            return members[0]
    return hint


async def _make(config: ServiceConfig, arguments: dict[str, Any]) -> tuple[Any, _Finalizer | None]:
    """Make the instance of `config` and say how it is disposed, None where it needs no disposal."""
    if config.factory is None:
        assert config.implementation is not None
        instance = config.implementation(**arguments)
    elif inspect.isasyncgenfunction(config.factory):
        manager = asynccontextmanager(config.factory)(**arguments)
        return await manager.__aenter__(), partial(manager.__aexit__, None, None, None)
    else:
        instance = config.factory(**arguments)
        if inspect.isawaitable(instance):
            instance = await instance
    for name in _DISPOSERS:
        if callable(getattr(type(instance), name, None)):
            return instance, getattr(instance, name)
    return instance, None


async def _finalize(finalizers: list[_Finalizer]) -> list[BaseException]:
    """Run `finalizers`, last first, whatever one of them does, and return what they raised."""
    failures: list[BaseException] = []
    for finalizer in reversed(finalizers):
        try:
            outcome = finalizer()
            if inspect.isawaitable(outcome):
                await outcome
        except BaseException as error:  # also a cancellation must not leave the rest open
            failures.append(error)
    return failures


def _report(what: str, failures: list[BaseException]) -> None:
    """Raise the failures of a disposal as one; a cancellation or an interrupt among them stays what it is."""
    errors = [each for each in failures if isinstance(each, Exception)]
    for interruption in (each for each in failures if not isinstance(each, Exception)):
        for error in errors:
            interruption.add_note(f"and while disposing the {what}: {error!r}")
        raise interruption
    if errors:
        raise ExceptionGroup(f"disposing the {what} failed in part", errors)
