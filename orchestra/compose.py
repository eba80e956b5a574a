"""The one page that wires everything: ports and settings in, a container with the running orchestra out.

It names no adapter: the live service gives it real ports, the simulated world modelled ones, and the rest is the same.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from functools import partial

from orchestra.chat.connections import ConnectionPool, PoolLimits
from orchestra.chat.guarded import FallbackEngine, GatedEngine, GuardedCommands, GuardedEngine, GuardedMemory
from orchestra.chat.handlers import ConnectionHandlers
from orchestra.chat.orchestrator import ChatOrchestrator, TurnLimits
from orchestra.chat.sessions import Sessions
from orchestra.chat.stores import StoreCalls
from orchestra.chat.timeouts import TimeoutManager
from orchestra.chat.turns import LiveTurns
from orchestra.config import Settings
from orchestra.container import DIContainer
from orchestra.engines.answers import AnswerCache
from orchestra.engines.apology import Apology
from orchestra.engines.commands import CommandDispatcher
from orchestra.engines.engine import Engine, ICommandDispatcher, IMemorySystem, IOrchestraManager
from orchestra.engines.memory import MemorySystem, RecallPolicy
from orchestra.engines.unified import UnifiedOrchestrator
from orchestra.model import Chunk, Message, Prompt
from orchestra.policies import GuardPolicies
from orchestra.ports import Ports, Provider
from orchestra.resilience import fallback
from orchestra.resilience.degradation import Degradation, Feature
from orchestra.resilience.guard import Guard
from orchestra.resilience.monitor import HealthMonitor, Watched

CANARY = "canary"
"""What events call a canary's calls by, in place of a correlation id."""


def build(ports: Ports, settings: Settings) -> DIContainer:
    """Wire an orchestra.

    Parameters
    ----------
    ports : Ports
        Everything from outside. They stay the caller's: disposing of the container does not close them.
    settings : Settings

    Returns
    -------
    DIContainer
        `ChatOrchestrator` is what a request resolves from it, in a scope of its own. Whoever resolves `HealthMonitor`
        starts it.
    """
    container = DIContainer()
    container.register_singleton(Ports, instance=ports)
    container.register_singleton(Settings, instance=settings)
    container.register_singleton(Guards, factory=_guards)
    container.register_singleton(Degradation, factory=_degradation)
    container.register_singleton(HealthMonitor, factory=_health_monitor)
    container.register_singleton(StoreCalls, factory=_store_calls)
    container.register_singleton(Sessions, factory=_sessions)
    container.register_singleton(ICommandDispatcher, factory=_command_dispatcher)
    container.register_singleton(AnswerCache, factory=_answer_cache)
    container.register_singleton(IOrchestraManager, factory=_orchestra_manager)
    container.register_singleton(IMemorySystem, factory=_memory_system)
    container.register_singleton(ChatOrchestrator, factory=_chat_orchestrator)
    container.register_singleton(LiveTurns, factory=_live_turns)
    container.register_singleton(ConnectionHandlers, factory=_connection_handlers)
    return container


class Guards(dict[str, Guard]):
    """The guard of every dependency, by the name that its policy has in the settings."""


async def _guards(ports: Ports, settings: Settings) -> AsyncIterator[Guards]:
    now = asyncio.get_running_loop().time
    guards = Guards(
        (name, Guard(name, getattr(settings.guards, name), now, ports.entropy.random, ports.hook))
        for name in GuardPolicies.model_fields
    )
    yield guards
    for guard in guards.values():
        guard.close()


def _degradation(ports: Ports, settings: Settings) -> Degradation:
    return Degradation(settings.degradation, asyncio.get_running_loop().time, ports.hook)


async def _health_monitor(
    ports: Ports, settings: Settings, guards: Guards, degradation: Degradation
) -> AsyncIterator[HealthMonitor]:
    asked = {"unified": ports.provider, "alternate": ports.alternate}
    monitor = HealthMonitor(
        settings.degradation,
        degradation,
        Watched(
            breakers={name: guard.breaker for name, guard in guards.items()},
            bulkheads={name: guard.bulkhead for name, guard in guards.items()},
            pings=ports.pings,
            canaries={
                name: partial(_canary, guards[name], provider)
                for name, provider in asked.items()
                if provider is not None and provider.external
            },
        ),
        fleet=ports.fleet,
        clock=ports.clock,
        now=asyncio.get_running_loop().time,
        hook=ports.hook,
        fleet_view=settings.fleet_view == "on",
    )
    monitor.start()
    yield monitor
    await monitor.aclose()


async def _canary(guard: Guard, provider: Provider) -> None:
    """Ask for an answer and hang up as soon as it begins: to the guard a whole stream, bounded to its first item."""
    async with aclosing(guard.stream(CANARY, partial(_first_word, provider))) as words:
        async for _ in words:
            pass


async def _first_word(provider: Provider) -> AsyncGenerator[Chunk, None]:
    async with aclosing(provider.complete(Prompt((Message("user", "ping"),)))) as chunks:
        async for chunk in chunks:
            yield chunk
            return


def _store_calls(ports: Ports, settings: Settings) -> StoreCalls:
    return StoreCalls(ports.hook, settings.store_seconds_max)


def _sessions(ports: Ports, calls: StoreCalls) -> Sessions:
    return Sessions(ports.sessions, ports.conversations, calls, ports.clock, ports.entropy, ports.memories)


def _command_dispatcher(guards: Guards) -> ICommandDispatcher:
    return GuardedCommands(CommandDispatcher(), guards["commands"])


def _answer_cache() -> AnswerCache:
    return AnswerCache(asyncio.get_running_loop().time)


def _orchestra_manager(
    ports: Ports, settings: Settings, guards: Guards, degradation: Degradation, answers: AnswerCache
) -> IOrchestraManager:
    def asked(provider: Provider, name: str, kept: AnswerCache | None = None) -> Engine:
        """Return the engine that asks `provider`, behind the guard of that name and, out of the house, a gate."""
        engine = GuardedEngine(UnifiedOrchestrator(provider, name, kept), guards[name])
        return GatedEngine(engine, lambda: degradation.allows(Feature.EXTERNAL_APIS)) if provider.external else engine

    stand_ins: dict[str, tuple[Engine, Callable[[Exception], bool]]] = {
        "cache": (answers, fallback.failed),
        "apology": (Apology(), fallback.refused),
    }
    if ports.alternate is not None:
        stand_ins["alternate"] = asked(ports.alternate, "alternate"), fallback.failed
    if ports.offline is not None:
        stand_ins["offline"] = UnifiedOrchestrator(ports.offline, "offline"), fallback.failed
    chosen = [stand_ins[name] for name in settings.guards.unified.fallbacks if name in stand_ins]
    return FallbackEngine(asked(ports.provider, "unified", answers), chosen, ports.hook)


def _memory_system(ports: Ports, settings: Settings, guards: Guards) -> IMemorySystem:
    policy = RecallPolicy(settings.memory_recalled_max, settings.memory_similarity_min)
    return GuardedMemory(MemorySystem(ports.memories, ports.embedder, policy), guards["memory"])


def _chat_orchestrator(
    commands: ICommandDispatcher,
    manager: IOrchestraManager,
    memory: IMemorySystem,
    sessions: Sessions,
    degradation: Degradation,
    ports: Ports,
    settings: Settings,
) -> ChatOrchestrator:
    return ChatOrchestrator(
        commands,
        manager,
        memory,
        sessions,
        degradation,
        ports.clock,
        ports.entropy,
        TurnLimits(settings.turn_seconds_max, settings.turns_inflight_max),
        ports.hook,
    )


async def _live_turns(
    orchestrator: ChatOrchestrator, calls: StoreCalls, ports: Ports, settings: Settings, answers: AnswerCache
) -> AsyncIterator[LiveTurns]:
    turns = LiveTurns(
        orchestrator,
        ports.conversations,
        calls,
        ports.relay,
        ports.entropy,
        ports.hook,
        settings.resume_grace_seconds,
        answers.forget,
    )
    yield turns
    await turns.aclose()


async def _connection_handlers(
    turns: LiveTurns, sessions: Sessions, calls: StoreCalls, degradation: Degradation, ports: Ports, settings: Settings
) -> AsyncIterator[ConnectionHandlers]:
    most = PoolLimits(
        settings.connections_max, settings.connections_per_client_max, settings.connections_per_address_max
    )
    handlers = ConnectionHandlers(
        ConnectionPool(most),
        TimeoutManager(),
        sessions,
        ports.conversations,
        calls,
        turns,
        degradation,
        ports.entropy,
        ports.hook,
        settings.connection_idle_seconds_max,
    )
    yield handlers
    handlers.aclose()
