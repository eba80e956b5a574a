"""Live turns on two instances through all orders of starts, resumes, stops, losses, crashes and outages of Redis.

Each client follows the log of one turn and drops at any moment; whoever comes back goes on behind what it saw. An
instance that crashes falls silent: nothing that it does afterwards is seen by anybody, and another takes its place.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from hypothesis import event, settings, target
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from orchestra import compose
from orchestra.adapters.embedding import HashingEmbedder
from orchestra.adapters.inprocess import InProcessConversations, InProcessFleet, InProcessMemories, InProcessSessions
from orchestra.adapters.inprocess_relay import InProcessHub
from orchestra.chat.turnlog import SEQS_PER_RUN
from orchestra.chat.turns import Entry, LiveTurns, Watch, turn_id_of
from orchestra.config import Settings
from orchestra.container import DIContainer
from orchestra.errors import ProviderFailed, StoreUnavailable, TurnInFlight, TurnLost, TurnUnknown
from orchestra.frames import Done, Started
from orchestra.model import ChatRequest, Chunk, Delta, Finish, Prompt
from orchestra.ports import Ports
from sim.clock import SimClock
from sim.distributions import Constant
from sim.entropy import Streams
from sim.faults import Faults, StoreDown, StoreName
from sim.loop import SimEnvironment
from sim.stores import ModelledConversations, ModelledRelay, ModelledSessions, Wire

KEYS = ("k1", "k2", "k3")
SESSION = "s"
GRACE_SECONDS = 3.0
PIECES = 6
HERE = st.integers(0, 1)
PICK = st.integers(0, 99)
STORES: tuple[StoreName, ...] = ("sessions", "conversations")
REFUSALS = (StoreUnavailable, TurnInFlight, TurnLost, TurnUnknown)


class Provider:
    """Says a few pieces, half a second each; every third call breaks off."""

    name = "pieces"
    external = False

    def __init__(self) -> None:
        self.calls = 0
        self.running = 0

    async def complete(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        self.calls += 1
        number = self.calls
        self.running += 1
        try:
            for piece in range(PIECES):
                await asyncio.sleep(0.5)
                if number % 3 == 0 and piece == 2:
                    raise ProviderFailed("it broke off")
                yield Delta(f"{number}.{piece} ")
            yield Finish("stop", "pieces")
        finally:
            self.running -= 1


@dataclass(eq=False)
class Instance:
    container: DIContainer
    turns: LiveTurns
    relay: ModelledRelay
    redis: Faults
    postgres: Faults
    provider: Provider


@dataclass(eq=False)
class Client:
    """Who follows one log on one instance."""

    turn_id: str
    instance: Instance
    after: int
    entries: list[Entry] = field(default_factory=list)
    refused: Exception | None = None
    dropped: bool = False
    task: asyncio.Task[None] = field(init=False)

    @property
    def ended(self) -> bool:
        return bool(self.entries) and self.entries[-1].ends

    @property
    def seen(self) -> int:
        return self.entries[-1].seq if self.entries else self.after


class TurnsMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.env = SimEnvironment(1000.0)
        self.loop = self.env.loop
        self.clock = SimClock(self.loop)
        self.streams = Streams(7)
        self.hub = InProcessHub()
        self.sessions = InProcessSessions(self.clock)
        self.conversations = InProcessConversations()
        self.clients: list[Client] = []
        self.crashes = 0
        self.heard: list[list[Entry]] = []  # by each that listened
        self.outage, self.ruin = ExitStack(), ExitStack()
        self.lost = self.joined = self.resumed = 0
        self.made = 0
        self.instances = [self.do(self.new()) for _ in range(2)]

    def do(self, acts: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(acts)

    async def new(self) -> Instance:
        self.made += 1
        name = f"i{self.made}"
        redis, postgres, provider = Faults(), Faults(), Provider()

        def wire(store: StoreName, faults: Faults) -> Wire:
            return Wire(store, Constant(0.001), self.streams.stream(f"{name}.{store}"), faults)

        # Redis' outage is that of what it relays: without sessions nothing would run that could be followed
        sessions = ModelledSessions(self.clock, wire("sessions", postgres))
        sessions.store = self.sessions
        conversations = ModelledConversations(wire("conversations", postgres))
        conversations.store = self.conversations
        relay = ModelledRelay(self.hub.join(name), wire("sessions", redis))
        ports = Ports(
            clock=self.clock,
            entropy=self.streams.stream(name),
            sessions=sessions,
            conversations=conversations,
            memories=InProcessMemories(),
            embedder=HashingEmbedder(),
            provider=provider,
            hook=lambda event: None,
            fleet=InProcessFleet(self.clock),
            relay=relay,
        )
        guards = {"unified": {"retry": {"attempts_max": 1}, "fallbacks": (), "breaker": {"failures_max": 1000}}}
        chosen = Settings.model_validate({"guards": guards, "resume_grace_seconds": GRACE_SECONDS})
        container = compose.build(ports, chosen)
        return Instance(container, await container.resolve(LiveTurns), relay, redis, postgres, provider)

    # --- what clients do

    @rule(here=HERE, key=st.sampled_from(KEYS), join=st.booleans(), grace=st.booleans())
    def start(self, here: int, key: str, join: bool, grace: bool) -> None:
        instance = self.instances[here]
        client = Client(turn_id_of(SESSION, None, key), instance, 0)
        request = ChatRequest(f"message of {key}", SESSION)
        self.follow(client, lambda: instance.turns.start(request, key=key, create=True, join=join, grace=grace))

    @precondition(lambda self: any(each.entries for each in self.clients))
    @rule(here=HERE, pick=PICK)
    def resume(self, here: int, pick: int) -> None:
        """Come back, to any instance, behind what was seen."""
        seen = [each for each in self.clients if each.entries]
        before = seen[pick % len(seen)]
        instance = self.instances[here]
        client = Client(before.turn_id, instance, before.seen)
        self.resumed += 1
        self.follow(client, lambda: instance.turns.resume(SESSION, before.turn_id, after=client.after))

    def follow(self, client: Client, ask: Callable[[], Coroutine[Any, Any, Watch]]) -> None:
        async def following() -> None:
            try:
                watch = await ask()
            except REFUSALS as refusal:
                client.refused = refusal
                return
            self.joined += watch.replayed and not watch._log.ended
            async with watch:
                async for entry in watch:
                    client.entries.append(entry)

        client.task = self.loop.create_task(following())
        self.clients.append(client)

    @precondition(lambda self: self.following())
    @rule(pick=PICK)
    def drop(self, pick: int) -> None:
        following = self.following()
        self.cut(following[pick % len(following)])

    @rule(here=HERE, key=st.sampled_from(KEYS))
    def cancel(self, here: int, key: str) -> None:
        async def cancelling() -> None:
            try:
                await self.instances[here].turns.cancel(SESSION, turn_id_of(SESSION, None, key))
            except REFUSALS:
                event("nothing to stop")

        self.do(cancelling())

    @rule(here=HERE)
    def listen(self, here: int) -> None:
        instance = self.instances[here]

        async def listening() -> None:
            heard: list[Entry] = []
            self.heard.append(heard)
            stop = instance.turns.listen(SESSION, heard.append)
            self.loop.call_later(5.0, stop)

        self.do(listening())

    # --- what happens to it

    @rule(seconds=st.sampled_from([0.001, 0.1, 0.6, 2.0, 5.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.env.run(until=self.env.now + seconds)

    @rule(iterations=st.integers(1, 4))
    def let_run(self, iterations: int) -> None:
        for _ in range(iterations):
            if self.env.peek() <= self.env.now:
                self.env.step()

    @rule(here=HERE)
    def crash(self, here: int) -> None:
        instance = self.instances[here]

        async def vanishing() -> None:
            instance.relay.relay.vanish()

        self.do(vanishing())
        for store in STORES:
            self.ruin.enter_context(instance.postgres.injected(_down(store)))
        for client in self.following():
            if client.instance is instance:
                self.cut(client)
        self.crashes += 1
        self.instances[here] = self.do(self.new())

    @rule(here=st.integers(0, 2))
    def lose_redis(self, here: int) -> None:
        for instance in self.instances[:here] if here == 2 else [self.instances[here]]:
            self.outage.enter_context(instance.redis.injected(_down("sessions")))
        self.lost += 1

    @rule()
    def find_redis(self) -> None:
        self.outage.close()

    # --- what holds

    def following(self) -> list[Client]:
        return [each for each in self.clients if not each.task.done()]

    def cut(self, client: Client) -> None:
        client.dropped = True
        client.task.cancel()

    def check(self, client: Client) -> None:
        """See that the client was told what is behind its number, in order, once, to an end."""
        numbers = [each.seq for each in client.entries]
        if numbers:
            first = numbers[0]
            anew = isinstance(client.entries[0].frame, Started) and (first - 1) % SEQS_PER_RUN == 0
            assert first == client.after + 1 or anew or first > client.after, (client.after, numbers)
            assert numbers == list(range(first, first + len(numbers)))
        assert not any(each.ends for each in client.entries[:-1])
        assert not any(isinstance(each.frame, Started) for each in client.entries[1:])
        if client.task.done() and not client.task.cancelled():
            assert client.task.exception() is None
            if client.refused is None and not client.dropped:
                # who had seen the end already is told no more
                assert client.ended or client.after, "it was left without an end"

    def teardown(self) -> None:
        if not hasattr(self, "env"):
            return
        target(float(self.lost), label="outages of Redis")
        target(float(self.joined), label="turns joined")
        target(float(self.resumed), label="resumed")
        target(float(self.crashes), label="crashes")
        self.wait(40.0)
        assert not self.following(), "somebody was left to wait"
        self.outage.close()
        self.wait(120.0)
        self.ruin.close()  # what those that crashed would mend in the background, which here goes on, ends
        self.wait(60.0)
        for client in self.clients:
            self.check(client)
        told = [each.entries for each in self.clients] + self.heard
        self.check_conversation([entry for entries in told for entry in entries])
        for heard in self.heard:
            for turn_id in {entry.frame.turn_id: None for entry in heard}:
                numbers = [entry.seq for entry in heard if entry.frame.turn_id == turn_id]
                assert numbers == sorted(set(numbers))
        for instance in self.instances:
            assert instance.provider.running == 0
            turns = instance.turns
            left = (turns._runs, turns._sessions, turns._openings, turns._replicas, turns._listeners, turns._kept)
            assert [len(each) for each in left] == [0] * len(left)
        assert self.env.peek() == float("inf"), "something is left to run"
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    def check_conversation(self, told: list[Entry]) -> None:
        """See that it has each turn once, and that whoever was told something was told the same."""
        turns = self.do(self.conversations.turns(SESSION))
        by_id = {turn.id: turn for turn in turns}
        assert len(by_id) == len(turns) <= len(KEYS)
        assert [turn.number for turn in turns] == list(range(1, len(turns) + 1))
        first: dict[tuple[str | None, int], bytes] = {}
        for entry in told:
            if isinstance(entry.frame, Done):
                assert entry.frame.reply == by_id[entry.frame.turn_id].as_reply
            elif not self.lost and not entry.ends:  # without Redis, two runs may have the same numbers
                assert first.setdefault((entry.frame.turn_id, entry.seq), entry.data) == entry.data


def _down(store: StoreName) -> StoreDown:
    return StoreDown(at=0.0, lasts=1e9, store=store)


TestTurns = TurnsMachine.TestCase
TestTurns.settings = settings(stateful_step_count=30)
