"""The one page that wires everything: ports and settings in, a container with the running orchestra out.

It names no adapter: the live service gives it real ports, the simulated world modelled ones, and the rest is the same.
"""

import asyncio

from orchestra.chat.guarded import GuardedCommands, GuardedEngine, GuardedMemory
from orchestra.chat.orchestrator import ChatOrchestrator, TurnLimits
from orchestra.chat.sessions import Sessions
from orchestra.chat.stores import StoreCalls
from orchestra.config import Settings
from orchestra.container import DIContainer
from orchestra.engines.commands import CommandDispatcher
from orchestra.engines.engine import ICommandDispatcher, IMemorySystem, IOrchestraManager
from orchestra.engines.memory import MemorySystem, RecallPolicy
from orchestra.engines.unified import UnifiedOrchestrator
from orchestra.policies import BreakerPolicy
from orchestra.ports import Ports
from orchestra.resilience.breaker import Breaker
from orchestra.resilience.guard import AttemptLimits, Guard


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
        `ChatOrchestrator` is what a request resolves from it, in a scope of its own.
    """
    container = DIContainer()
    container.register_singleton(Ports, instance=ports)
    container.register_singleton(Settings, instance=settings)
    container.register_singleton(Sessions, factory=_sessions)
    container.register_singleton(ICommandDispatcher, factory=_command_dispatcher)
    container.register_singleton(IOrchestraManager, factory=_orchestra_manager)
    container.register_singleton(IMemorySystem, factory=_memory_system)
    container.register_singleton(ChatOrchestrator, factory=_chat_orchestrator)
    return container


def _sessions(ports: Ports, settings: Settings) -> Sessions:
    calls = StoreCalls(ports.hook, settings.store_seconds_max)
    return Sessions(ports.sessions, ports.conversations, calls, ports.clock, ports.entropy)


def _command_dispatcher(ports: Ports, settings: Settings) -> ICommandDispatcher:
    return GuardedCommands(CommandDispatcher(), _guard(CommandDispatcher.name, ports, settings))


def _orchestra_manager(ports: Ports, settings: Settings) -> IOrchestraManager:
    limits = settings.guards.unified.attempt
    attempt = AttemptLimits(limits.first_seconds_max, limits.total_seconds_max)
    return GuardedEngine(
        UnifiedOrchestrator(ports.provider), _guard(UnifiedOrchestrator.name, ports, settings, attempt)
    )


def _memory_system(ports: Ports, settings: Settings) -> IMemorySystem:
    policy = RecallPolicy(settings.memory_recalled_max, settings.memory_similarity_min)
    memory = MemorySystem(ports.memories, ports.embedder, policy)
    return GuardedMemory(memory, _guard(MemorySystem.name, ports, settings))


def _chat_orchestrator(
    commands: ICommandDispatcher,
    manager: IOrchestraManager,
    memory: IMemorySystem,
    sessions: Sessions,
    ports: Ports,
    settings: Settings,
) -> ChatOrchestrator:
    turn_limits = TurnLimits(settings.turn_seconds_max, settings.turns_inflight_max)
    return ChatOrchestrator(commands, manager, memory, sessions, ports.clock, ports.entropy, turn_limits, ports.hook)


def _guard(name: str, ports: Ports, settings: Settings, attempt: AttemptLimits | None = None) -> Guard:
    policy = BreakerPolicy(
        failures_max=settings.guards.unified.breaker.failures_max,
        open_seconds=settings.guards.unified.breaker.open_seconds,
        probes_max=settings.guards.unified.breaker.probes_max,
        successes_min=settings.guards.unified.breaker.successes_min,
    )
    breaker = Breaker(name, policy, now=_loop_time, on_change=ports.hook, random=ports.entropy.random)
    return Guard(breaker, attempt or AttemptLimits(settings.store_seconds_max, settings.store_seconds_max), ports.hook)


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
