"""Live turns on one instance and on several, in virtual time, on the modelled ports that the rehearsals use."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, suppress
from math import inf
from typing import Any

import pytest

from orchestra import compose, limits
from orchestra.adapters.embedding import HashingEmbedder
from orchestra.adapters.inprocess import InProcessConversations, InProcessFleet, InProcessSessions
from orchestra.adapters.inprocess_relay import InProcessHub
from orchestra.chat.turnlog import END_SEQ, SEQS_PER_RUN, KeptLogs, TurnLog
from orchestra.chat.turns import Entry, LiveTurns, Watch, turn_id_of
from orchestra.config import Settings
from orchestra.errors import (
    KeyReused,
    OrchestraError,
    ProviderFailed,
    ShuttingDown,
    TurnInFlight,
    TurnLost,
    TurnUnknown,
)
from orchestra.events import Event, TurnAbandoned, TurnFinished, TurnResumed
from orchestra.frames import DeltaFrame, Done, ErrorFrame, Started
from orchestra.model import ChatRequest, Chunk, Delta, Finish, Given, LiveTurnView, Message, Prompt, Sampling, Usage
from orchestra.ports import Ports
from sim import loop
from sim.clock import SimClock
from sim.distributions import Constant
from sim.entropy import Streams
from sim.faults import Faults, StoreDown, StoreName
from sim.stores import ModelledConversations, ModelledMemories, ModelledRelay, ModelledSessions, Wire

Step = float | str | Exception
SLOW: tuple[Step, ...] = (1.0, "one ", 1.0, "two ", 1.0, "three")
"""Takes three seconds and tells of each."""
ONCE = {"unified": {"retry": {"attempts_max": 1}, "fallbacks": ()}}


class Script:
    """A provider that says what a script says, another in each call, and the last in all that follow."""

    name = "script"
    external = False

    def __init__(self, *runs: tuple[Step, ...]) -> None:
        self.runs = runs
        self.calls = 0
        self.running = 0

    async def complete(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        steps = self.runs[min(self.calls, len(self.runs) - 1)]
        self.calls += 1
        self.running += 1
        try:
            for step in steps:
                if isinstance(step, float):
                    await asyncio.sleep(step)
                elif isinstance(step, str):
                    yield Delta(step)
                else:
                    raise step
            yield Finish("stop", "scripted", Usage(3, 2))
        finally:
            self.running -= 1


class Instance:
    """One of the instances of a service."""

    def __init__(self, house: "House", name: str, provider: Script, **settings: Any) -> None:
        self.events: list[Event] = []
        self.faults = Faults()
        self._faulty = ExitStack()
        self.provider = provider

        def wire(store: StoreName) -> Wire:
            return Wire(store, Constant(house.latency), house.streams.stream(f"{name}.{store}"), self.faults)

        self.sessions = ModelledSessions(house.clock, wire("sessions"))
        self.sessions.store = house.sessions
        self.conversations = ModelledConversations(wire("conversations"))
        self.conversations.store = house.conversations
        self.relay = ModelledRelay(house.hub.join(name), wire("sessions"))
        self.ports = Ports(
            clock=house.clock,
            entropy=house.streams.stream(name),
            sessions=self.sessions,
            conversations=self.conversations,
            memories=ModelledMemories(wire("memories")),
            embedder=HashingEmbedder(),
            provider=provider,
            hook=self.events.append,
            fleet=InProcessFleet(house.clock),
            relay=self.relay,
        )
        self.container = compose.build(self.ports, Settings(guards=ONCE, **settings))

    async def open(self) -> None:
        self.turns: LiveTurns = await self.container.resolve(LiveTurns)

    async def say(self, message: str = "hello", **more: Any) -> Watch:
        session_id = more.pop("session_id", "s")
        return await self.turns.start(ChatRequest(message, session_id, more.pop("user_id", None)), create=True, **more)

    def told(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def crash(self) -> None:
        """Let nothing that this instance does be seen any more."""
        self.relay.relay.vanish()
        self.lose("sessions")
        self.lose("conversations")

    def lose(self, store: StoreName) -> None:
        """Let this instance reach the store no more."""
        self._faulty.enter_context(self.faults.injected(StoreDown(at=0.0, lasts=1e6, store=store)))

    async def settle(self) -> None:
        turns = self.turns
        left = (turns._runs, turns._sessions, turns._openings, turns._replicas, turns._listeners, turns._kept)
        assert [len(each) for each in left] == [0] * len(left)


class House:
    """A service of several instances on one set of stores."""

    def __init__(self, env: loop.SimEnvironment, latency: float) -> None:
        self.latency = latency
        self.clock = SimClock(env.loop)
        self.streams = Streams(7)
        self.sessions = InProcessSessions(self.clock)
        self.conversations = InProcessConversations()
        self.hub = InProcessHub()
        self.instances: list[Instance] = []

    async def turns(self, session_id: str = "s") -> list[str]:
        return [turn.reply for turn in await self.conversations.turns(session_id)]


Story = Callable[..., Awaitable[None]]


def lived(
    story: Story,
    *runs: tuple[Step, ...],
    instances: int = 1,
    latency: float = 0.001,
    settled: bool = True,
    provider: Script | None = None,
    **settings: Any,
) -> House:
    """Live through `story` with so many instances, which all ask one provider."""
    env = loop.SimEnvironment()
    house = House(env, latency)
    provider = provider or Script(*(runs or (SLOW,)))

    async def live() -> None:
        async with AsyncExitStack() as stack:
            for number in range(instances):
                instance = Instance(house, "abc"[number], provider, **settings)
                await instance.open()
                stack.push_async_callback(instance.relay.aclose)
                stack.push_async_callback(instance.container.dispose)
                house.instances.append(instance)
            await story(house, *house.instances)
            if settled:
                await asyncio.sleep(120)
                for instance in house.instances:
                    await instance.settle()
                assert provider.running == 0

    loop.run(live(), env=env)
    return house


async def followed(watch: Watch, most: int | None = None) -> list[Entry]:
    """Follow a turn to its end, or for so many entries."""
    entries: list[Entry] = []
    async with watch:
        while most is None or len(entries) < most:
            try:
                entries.append(await anext(watch))
            except StopAsyncIteration:
                break
    return entries


def brief(entries: list[Entry]) -> list[tuple[int, str]]:
    """Return number and content of each entry."""
    return [(entry.seq, _content(entry)) for entry in entries]


def _content(entry: Entry) -> str:
    match entry.frame:
        case DeltaFrame(text=text):
            return text
        case Done(reply=reply):
            return f"done: {reply.reply}"
        case ErrorFrame(kind=kind):
            return f"error: {kind}"
        case Started(message=message):
            return f"started: {message}"


WHOLE = [(1, "started: hello"), (2, "one "), (3, "two "), (4, "three"), (5, "done: one two three")]


def test_the_log_of_a_turn_is_told_as_it_grows() -> None:
    async def story(house: House, here: Instance) -> None:
        watch = await here.say()
        times = []
        async with watch:
            async for _ in watch:
                times.append(round(house.clock.now() % 1000, 2))
        assert [round(each - times[0]) for each in times] == [0, 1, 2, 3, 3]
        again = await here.turns.resume("s", watch.turn_id)
        assert brief(await followed(again)) == WHOLE
        assert not watch.replayed
        assert again.replayed
        (finished,) = here.told(TurnFinished)
        assert len(finished.correlation_id) == 32
        assert await house.turns() == ["one two three"]

    lived(story)


def test_each_follower_reads_from_where_it_is() -> None:
    async def story(house: House, here: Instance) -> None:
        first = await here.say()
        others = [await here.turns.resume("s", first.turn_id, after=after) for after in range(8)]
        told = await asyncio.gather(followed(first), *map(followed, others))
        # who names a number that this log has not reached has it from another run, whose text is void
        assert [brief(each) for each in told] == [WHOLE, WHOLE, WHOLE[1:], *([WHOLE] * 6)]
        late = [await here.turns.resume("s", first.turn_id, after=after) for after in range(8)]
        told = await asyncio.gather(*map(followed, late))
        assert [brief(each) for each in told] == [*(WHOLE[after:] for after in range(6)), WHOLE, WHOLE]

    lived(story)


def test_who_stops_waiting_for_an_entry_misses_none_and_leaves_nothing() -> None:
    async def story(house: House, here: Instance) -> None:
        watch = await here.say()
        entries = []
        async with watch:
            while len(entries) < 5:
                try:
                    async with asyncio.timeout(0.3):
                        entries.append(await anext(watch))
                except TimeoutError:
                    assert not watch._log._waiting
        assert brief(entries) == WHOLE

    lived(story)


# --- keys


def test_of_two_starts_of_one_key_at_once_one_runs() -> None:
    async def story(house: House, here: Instance) -> None:
        watches = await asyncio.gather(*(here.say(key="k") for _ in range(3)))
        assert [each.replayed for each in watches] == [False, True, True]
        told = await asyncio.gather(*map(followed, watches))
        assert [brief(each) for each in told] == [WHOLE] * 3
        assert here.provider.calls == 1
        assert watches[0].turn_id == turn_id_of("s", None, "k")

    lived(story)


@pytest.mark.parametrize("wait", [0.0, limits.LOG_SECONDS + 1], ids=["kept", "stored"])
def test_a_repeated_key_gives_the_very_first_reply_again(wait: float) -> None:
    async def story(house: House, here: Instance, there: Instance) -> None:
        first = await followed(await here.say(key="k", correlation_id="c-1"))
        await asyncio.sleep(wait)
        for instance in (here, there):
            watch = await instance.say(key="k", join=False)
            again = await followed(watch)
            assert watch.replayed
            assert brief(again) == [(END_SEQ - 1, "started: hello"), (END_SEQ, "done: one two three")]
            assert again[-1].frame.reply == first[-1].frame.reply  # type: ignore[union-attr]
            assert again[-1].frame.reply.correlation_id == "c-1"  # type: ignore[union-attr]
        assert here.provider.calls == 1

    lived(story, instances=2)


def test_the_first_reply_says_no_more_than_the_later_ones() -> None:
    """A memory that could not be written degrades no answer, and is told of by the turn's event."""

    async def story(house: House, here: Instance) -> None:
        async with await here.say(key="k") as watch:
            await asyncio.sleep(1.5)
            here.lose("memories")
            first = await watch.reply()
        (finished,) = here.told(TurnFinished)
        assert (first.degraded, finished.degraded) == ((), ("memory",))
        await asyncio.sleep(limits.LOG_SECONDS + 1)
        async with await here.say(key="k") as watch:
            assert await watch.reply() == first

    lived(story)


def test_a_key_in_flight_is_a_conflict_for_who_wants_the_whole() -> None:
    async def story(house: House, here: Instance, there: Instance) -> None:
        first = asyncio.create_task(followed(await here.say(key="k")))
        for instance in (here, there):
            with pytest.raises(TurnInFlight) as raised:
                await instance.say(key="k", join=False)
            assert raised.value.retry_after_seconds == 1
        assert brief(await first) == WHOLE
        assert here.provider.calls == 1

    lived(story, instances=2)


def test_a_key_is_of_one_message_in_flight_and_durable_here_and_elsewhere() -> None:
    async def story(house: House, here: Instance, there: Instance) -> None:
        both = await asyncio.gather(here.say(key="k"), here.say("bye", key="k"), return_exceptions=True)
        assert isinstance(both[1], KeyReused)
        assert isinstance(both[0], Watch)
        first = asyncio.create_task(followed(both[0]))
        await asyncio.sleep(0)
        for wait in (1.0, 3.0, limits.LOG_SECONDS + 1):
            for instance in (here, there):
                with pytest.raises(KeyReused):
                    await instance.say("bye", key="k")
            await asyncio.sleep(wait)
        await first
        assert here.provider.calls == 1

    lived(story, instances=2)


def test_a_key_is_of_one_session_and_user() -> None:
    async def story(house: House, here: Instance) -> None:
        watches = [
            await here.say(key="k"),
            await here.say(key="k", session_id="t"),
            await here.say(key="k", session_id="u", user_id="ann"),
            await here.say(key="k2"),
        ]
        assert len({each.turn_id for each in watches}) == 4
        await asyncio.gather(*map(followed, watches))
        assert here.provider.calls == 4

    lived(story)


def test_a_turn_that_failed_runs_again_under_its_key_and_above_its_numbers() -> None:
    async def story(house: House, here: Instance, there: Instance) -> None:
        first = brief(await followed(await here.say(key="k")))
        assert first == [(1, "started: hello"), (2, "on"), (3, "error: provider-failed")]
        with pytest.raises(ProviderFailed):
            async with await here.turns.resume("s", turn_id_of("s", None, "k"), after=1) as watch:
                await watch.reply()
        second = brief(await followed(await there.say(key="k")))
        assert second == [(each + SEQS_PER_RUN, text) for each, text in first]
        await asyncio.sleep(1)  # until it has ended here, too, where it is followed
        third = await here.say(key="k")
        base = 2 * SEQS_PER_RUN
        assert brief(await followed(third)) == [(each + base, text) for each, text in WHOLE]
        back = await there.turns.resume("s", third.turn_id, after=3 + SEQS_PER_RUN)
        assert brief(await followed(back)) == [(each + base, text) for each, text in WHOLE]
        assert await house.turns() == ["one two three"]

    failing: tuple[Step, ...] = (0.5, "on", ProviderFailed("it broke"))
    lived(story, failing, failing, SLOW, instances=2)


# --- stopping


@pytest.mark.parametrize("way", ["cancel", "leave", "drain"])
def test_a_stop_at_any_moment_leaves_a_reply_and_a_turn_or_neither(way: str) -> None:
    """A stop before every single step of the loop in which the turn runs."""
    outcomes = []
    for steps in range(1000):
        outcome = stopped_after(steps, way)
        outcomes.append(outcome)
        if outcome == "too late":
            break
    assert outcomes[-1] == "too late"
    stopped = "error: shutting-down" if way == "drain" else "error: turn-cancelled"
    at = outcomes.index("done: hi")  # it was being written
    assert outcomes[:at] == [stopped] * at
    assert at > 3
    assert outcomes[at:-1] == ["done: hi"] * (len(outcomes) - at - 1)
    assert len(outcomes) - at > 3


def stopped_after(steps: int, way: str) -> str:
    told: list[str] = []

    async def story(house: House, here: Instance) -> None:
        watch = await here.say(key="k", grace=False)
        async with watch:
            for _ in range(steps):
                await asyncio.sleep(0)
            if watch._log.ended:
                told.append("too late")
            elif way == "cancel":
                await here.turns.cancel("s", watch.turn_id)
            elif way == "drain":
                await here.turns.drain(0)
        if way == "leave" and not told:
            assert here.provider.running == 0
        end = brief(await followed(await here.turns.resume("s", watch.turn_id)))[-1][1]
        told.append(end)
        await asyncio.sleep(10)
        assert await house.turns() == (["hi"] if end == "done: hi" else [])
        stored = await house.conversations.find(watch.turn_id)
        assert (stored is not None) == (end == "done: hi")

    lived(story, (0.0, "h", 0.0, "i", 0.0), latency=0.0)
    return told[0]


def test_a_stopped_turn_can_be_said_again_at_once() -> None:
    """Also while it is still closing what it called: nobody joins a turn that is on its end."""

    async def story(house: House, here: Instance) -> None:
        first = asyncio.create_task(followed(await here.say(key="k")))
        await asyncio.sleep(1.5)
        await here.turns.cancel("s", turn_id_of("s", None, "k"))
        again = await here.say(key="k")
        assert brief(await first)[-1] == (3, "error: turn-cancelled")
        assert brief(await followed(again)) == [(each + SEQS_PER_RUN, text) for each, text in WHOLE]

    lived(story)


def test_a_stopped_turn_is_not_written_by_a_provider_that_will_not_stop() -> None:
    class Stubborn(Script):
        async def complete(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
            yield Delta("on ")
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(5)
            yield Delta("and on")
            yield Finish("stop", "stubborn")

    async def story(house: House, here: Instance) -> None:
        watch = await here.say()
        following = asyncio.create_task(followed(watch))
        await asyncio.sleep(1)
        await here.turns.cancel("s", watch.turn_id)
        assert _content((await following)[-1]) == "error: turn-cancelled"
        assert await house.turns() == []

    lived(story, provider=Stubborn())


def test_a_turn_is_nobodys_to_see_or_stop_from_another_session() -> None:
    async def story(house: House, here: Instance, there: Instance) -> None:
        watch = await here.say(key="k")
        ours = asyncio.create_task(followed(watch))
        await asyncio.sleep(1.5)
        with pytest.raises(TurnUnknown):
            await here.turns.resume("t", watch.turn_id)
        with pytest.raises(TurnUnknown):
            await here.turns.cancel("t", watch.turn_id)
        other = await followed(await there.turns.resume("t", watch.turn_id))
        assert [_content(entry) for entry in other] == ["error: turn-lost"]
        await there.turns.cancel("t", watch.turn_id)
        assert brief(await ours) == WHOLE

    lived(story, instances=2)


def test_to_stop_what_has_ended_changes_nothing_and_what_there_is_not_is_unknown() -> None:
    async def story(house: House, here: Instance, there: Instance) -> None:
        watch = await here.say()
        await followed(watch)
        for wait in (0.0, limits.LOG_SECONDS + 1):
            await asyncio.sleep(wait)
            for instance in (here, there):
                await instance.turns.cancel("s", watch.turn_id)
                for session_id, turn_id in (("t", watch.turn_id), ("s", "x")):
                    with pytest.raises(TurnUnknown):
                        await instance.turns.cancel(session_id, turn_id)
                    with pytest.raises(TurnUnknown):
                        await instance.turns.resume(session_id, turn_id)
        assert await house.turns() == ["one two three"]

    lived(story, instances=2)


# --- following


@pytest.mark.parametrize(("grace_seconds", "grace", "lasts"), [(1.5, True, 1.5), (0.0, True, 0.0), (1.5, False, 0.0)])
def test_a_turn_that_nobody_follows_is_given_up_after_its_grace(
    grace_seconds: float, grace: bool, lasts: float
) -> None:
    async def story(house: House, here: Instance) -> None:
        started = asyncio.get_running_loop().time()
        watch = await here.say(grace=grace)
        await followed(watch, most=2)
        if not lasts:
            assert here.provider.running == 0  # when the request is over, so are its calls
        await asyncio.sleep(5)
        (abandoned,) = here.told(TurnAbandoned)
        assert abandoned.turn_id == watch.turn_id
        (finished,) = here.told(TurnFinished)
        assert (finished.outcome, finished.error) == ("failed", "cancelled")
        assert abandoned.correlation_id == finished.correlation_id
        assert finished.at - started == pytest.approx(1.0 + lasts, abs=0.01)
        assert await house.turns() == []

    lived(story, resume_grace_seconds=grace_seconds)


def test_who_comes_back_in_time_finds_all_that_was_told_meanwhile() -> None:
    async def story(house: House, here: Instance) -> None:
        watch = await here.say()
        seen = await followed(watch, most=2)
        await asyncio.sleep(1.4)
        back = await here.turns.resume("s", watch.turn_id, after=seen[-1].seq)
        assert brief(seen + await followed(back)) == WHOLE
        (resumed,) = here.told(TurnResumed)
        assert (resumed.turn_id, resumed.source) == (watch.turn_id, "here")

    lived(story, resume_grace_seconds=1.5)


def test_a_turn_whose_watch_is_never_entered_is_given_up() -> None:
    async def story(house: House, here: Instance) -> None:
        await here.say(grace=False)
        await asyncio.sleep(0.9)
        assert here.provider.running == 1
        await asyncio.sleep(0.2)
        assert here.provider.running == 0

    lived(story)


def test_who_stops_to_ask_while_the_turn_is_being_opened_begins_none() -> None:
    async def story(house: House, here: Instance) -> None:
        asking = asyncio.create_task(here.say(key="k"))
        await asyncio.sleep(0.0005)
        asking.cancel()
        await asyncio.wait((asking,))
        await asyncio.sleep(5)
        assert here.provider.calls == 0
        assert brief(await followed(await here.say(key="k")))[-1][1] == "done: one two three"

    lived(story)


def test_a_listener_hears_all_turns_of_its_session_and_keeps_them_going() -> None:
    async def story(house: House, here: Instance) -> None:
        heard: list[Entry] = []
        stop = here.turns.listen("s", heard.append)
        await here.say(grace=False)
        await followed(await here.say(session_id="t"))
        assert brief(heard) == WHOLE
        await followed(await here.say(grace=False), most=1)  # it lives without whoever asked
        await asyncio.sleep(1.5)
        stop()
        stop()
        await asyncio.sleep(0.4)
        assert here.provider.running == 1
        await asyncio.sleep(0.2)
        assert here.provider.running == 0
        assert brief(heard[5:]) == WHOLE[:2]

    lived(story, resume_grace_seconds=0.5)


def test_running_turns_are_told_wherever_they_run() -> None:
    async def story(house: House, here: Instance, there: Instance) -> None:
        watches = [await here.say(), await there.say(session_id="t")]
        following = [asyncio.create_task(followed(each)) for each in watches]
        await asyncio.sleep(1.5)
        assert await here.turns.running("s") == (LiveTurnView(watches[0].turn_id, 2),)
        assert await there.turns.running("s") == (LiveTurnView(watches[0].turn_id, 0),)
        assert await here.turns.running("t") == (LiveTurnView(watches[1].turn_id, 0),)
        assert await here.turns.running("u") == ()
        await asyncio.wait(following)
        await asyncio.sleep(0.01)
        assert await there.turns.running("s") == ()

    lived(story, instances=2)


# --- shutting down


def test_to_drain_lets_turns_end_and_stops_those_that_take_longer() -> None:
    async def story(house: House, here: Instance, there: Instance) -> None:
        quick, slow = await here.say(key="q"), await here.say("slow", key="k", session_id="t")
        watching = [asyncio.create_task(followed(each)) for each in (quick, slow)]
        await asyncio.sleep(0.1)
        began = house.clock.now()
        draining = asyncio.create_task(here.turns.drain(2.0))
        await asyncio.sleep(0)
        for key in (None, "new"):
            with pytest.raises(ShuttingDown) as raised:
                await here.say(key=key)
            assert raised.value.retry_after_seconds == 1
        await draining
        assert house.clock.now() - began == pytest.approx(2.0, abs=0.01)
        ends = [brief(await each)[-1][1] for each in watching]
        assert ends == ["done: hi", "error: shutting-down"]
        assert brief(await followed(await here.say(key="q")))[-1] == (END_SEQ, "done: hi")
        again = await there.say("slow", key="k", session_id="t")  # where its client sends it next
        assert brief(await followed(again))[-1][1] == "done: one two three"
        assert [turn.reply for turn in await house.conversations.turns("t")] == ["one two three"]

    lived(story, (0.5, "hi"), (5.0, "never"), SLOW, instances=2)


def test_the_end_of_the_service_ends_every_turn() -> None:
    logs = []

    async def story(house: House, here: Instance) -> None:
        logs.append((await here.say())._log)
        logs.append((await here.say(key="k"))._log)

    lived(story, settled=False)
    assert [brief(log.entries)[-1][1] for log in logs] == ["error: shutting-down"] * 2


# --- several instances


def test_a_turn_is_followed_on_another_instance_as_on_its_own() -> None:
    async def story(house: House, here: Instance, there: Instance) -> None:
        watch = await here.say(key="k")
        ours = asyncio.create_task(followed(watch))
        await asyncio.sleep(1.5)
        joined = await there.say(key="k")
        assert joined.replayed
        watches = [joined, await there.turns.resume("s", watch.turn_id, after=1)]
        told = await asyncio.gather(*map(followed, watches))
        assert [brief(each) for each in told] == [WHOLE, WHOLE[1:]]
        assert [each.data for each in told[0]] == [each.data for each in await ours]
        assert [each.source for each in there.told(TurnResumed)] == ["here"]  # where it was followed by then
        assert here.provider.calls == 1

    lived(story, instances=2)


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_a_log_that_ended_elsewhere_is_told_from_there_for_a_while(ends: str) -> None:
    async def story(house: House, here: Instance, there: Instance) -> None:
        watch = await here.say()
        whole = brief(await followed(watch))
        assert whole[-1][1] == ("done: one" if ends == "well" else "error: provider-failed")
        await asyncio.sleep(30)
        back = await there.turns.resume("s", watch.turn_id, after=1)
        assert brief(await followed(back)) == whole[1:]
        await asyncio.sleep(90)
        if ends == "well":
            back = await there.turns.resume("s", watch.turn_id, after=1)
            assert brief(await followed(back)) == [(END_SEQ, "done: one")]
        else:
            with pytest.raises(TurnUnknown):
                await there.turns.resume("s", watch.turn_id, after=1)

    steps: tuple[Step, ...] = ("one",) if ends == "well" else ("one", ProviderFailed("it broke"))
    lived(story, steps, instances=2)


def test_the_end_that_only_the_conversation_knows_has_one_place() -> None:
    async def story(house: House, here: Instance) -> None:
        watch = await here.say()
        await followed(watch)
        await asyncio.sleep(limits.LOG_SECONDS + 1)
        for after in (0, 1, 5, 57, END_SEQ - 1):
            told = brief(await followed(await here.turns.resume("s", watch.turn_id, after=after)))
            assert told[-1] == (END_SEQ, "done: one two three")
            assert len(told) == (2 if after == 0 else 1)
        for after in (END_SEQ, END_SEQ + 1, 10**15):
            assert await followed(await here.turns.resume("s", watch.turn_id, after=after)) == []

    lived(story)


@pytest.mark.parametrize("asked_of", ["here", "there"])
@pytest.mark.parametrize("ends", ["well", "cancelled"])
def test_what_is_kept_of_a_deleted_conversation_is_told_to_nobody(asked_of: str, ends: str) -> None:
    """Also where nobody told of the deletion: what another instance deletes, and the message of it is lost."""

    async def story(house: House, here: Instance, there: Instance) -> None:
        watch = await here.say(key="k")
        if ends == "well":
            await followed(watch)
        else:
            await followed(watch, most=3)
            await here.turns.cancel("s", watch.turn_id)
            await asyncio.sleep(0.1)
        instance = here if asked_of == "here" else there
        assert len(await followed(await instance.turns.resume("s", watch.turn_id))) >= 3
        await house.conversations.delete("s")
        await house.sessions.delete("s")
        with pytest.raises(TurnUnknown):
            await instance.turns.resume("s", watch.turn_id)
        again = await followed(await instance.say(key="k"))
        assert [_content(entry) for entry in again][-1] == "error: session-unknown"
        assert len(again) == 2

    lived(story, instances=2)


def test_a_deletion_is_told_to_all_instances() -> None:
    async def story(house: House, here: Instance, there: Instance) -> None:
        watch = await here.say(key="k")
        await followed(await there.turns.resume("s", watch.turn_id))
        await followed(await here.say(session_id="t", key="k"))
        assert [len(each.turns._kept) for each in (here, there)] == [2, 1]
        there.turns.deleted("s")
        await asyncio.sleep(0.1)
        assert [len(each.turns._kept) for each in (here, there)] == [1, 0]

    lived(story, instances=2)


GIVEN = Given((Message("user", "before"), Message("assistant", "so")), Sampling(temperature=0.5), "orchestra")
OTHERS = {
    "history": Given((Message("user", "before"), Message("assistant", "no")), GIVEN.sampling, GIVEN.model),
    "shorter": Given((), GIVEN.sampling, GIVEN.model),
    "sampling": Given(GIVEN.messages, Sampling(temperature=0.6), GIVEN.model),
    "model": Given(GIVEN.messages, GIVEN.sampling, "other"),
}


@pytest.mark.parametrize("wait", [0.0, 0.5, 10.0, limits.LOG_SECONDS + 10, limits.CLAIM_SECONDS + 10.0])
def test_a_key_that_comes_again_with_another_history_is_refused(wait: float) -> None:
    """While it is opened, while it runs, where its log is kept, where its claim is, and from the conversation alone."""

    async def story(house: House, here: Instance, there: Instance) -> None:
        say = {"session_id": None, "key": "k"}
        first = asyncio.create_task(here.say(given=GIVEN, **say))
        await asyncio.sleep(wait)
        for instance in (here, there):
            for other in OTHERS.values():
                with pytest.raises(KeyReused):
                    await instance.say(given=other, **say)
            again = await instance.say(given=GIVEN, **say)
            assert again.replayed
            assert (await again.reply()).session_id == (await first).session_id
        assert here.provider.calls == 1

    lived(story, instances=2)


def test_listeners_on_other_instances_hear_the_turns_of_their_session() -> None:
    async def story(house: House, here: Instance, there: Instance) -> None:
        heard: list[Entry] = []
        stop = there.turns.listen("s", heard.append)
        watch = await here.say(grace=False)
        await asyncio.gather(followed(watch, most=2), followed(await here.say(session_id="t")))
        await asyncio.sleep(5)  # who listens there keeps it going
        assert brief(heard) == WHOLE
        stop()

    lived(story, instances=2, resume_grace_seconds=0.5)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_one_who_cannot_come_back_takes_nobody_s_grace_away(elsewhere: bool) -> None:
    async def story(house: House, here: Instance, there: Instance) -> None:
        watch = await here.say()
        if elsewhere:
            other = await there.turns.resume("s", watch.turn_id)
            await asyncio.gather(followed(watch, most=2), followed(other, most=2))
        else:
            await followed(watch, most=2)
        glance = await here.turns.resume("s", watch.turn_id, grace=False)
        await followed(glance, most=1)
        await asyncio.sleep(0.9)
        assert len(await followed(await here.turns.resume("s", watch.turn_id))) == 5

    lived(story, instances=2, resume_grace_seconds=1.0)


def test_a_turn_goes_on_for_who_follows_it_elsewhere_and_no_longer() -> None:
    async def story(house: House, here: Instance, there: Instance) -> None:
        watch = await here.say()
        await followed(watch, most=1)
        await asyncio.sleep(0.01)
        back = await there.turns.resume("s", watch.turn_id)
        assert len(await followed(back, most=10)) == 10
        assert here.provider.running == 1
        assert not here.told(TurnAbandoned)
        await asyncio.sleep(6)
        assert here.provider.running == 0
        assert len(here.told(TurnAbandoned)) == 1

    lived(story, tuple(["piece", 1.0] * 100), instances=2, resume_grace_seconds=0.5)  # type: ignore[arg-type]


def test_a_turn_is_stopped_from_any_instance() -> None:
    async def story(house: House, here: Instance, there: Instance) -> None:
        watch = await here.say(key="k")
        ours = asyncio.create_task(followed(watch))
        await asyncio.sleep(1.5)
        await there.turns.cancel("s", watch.turn_id)
        assert brief(await ours)[-1] == (3, "error: turn-cancelled")
        assert await house.turns() == []

    lived(story, instances=2)


def test_what_is_lost_on_the_way_is_asked_for_as_soon_as_it_is_missed() -> None:
    async def story(house: House, here: Instance, there: Instance) -> None:
        began = house.clock.now()
        watch = await here.say()
        ours = asyncio.create_task(followed(watch))
        await asyncio.sleep(0.01)
        back = await there.turns.resume("s", watch.turn_id)
        theirs = asyncio.create_task(followed(back, most=4))
        await asyncio.sleep(1.5)
        with here.faults.injected(StoreDown(at=0.0, lasts=1.0, store="sessions")):
            await asyncio.sleep(0.6)  # the second piece is lost
        assert brief(await theirs) == WHOLE[:4]
        assert house.clock.now() - began == pytest.approx(2.3, abs=0.05)
        await ours

    lived(story, (1.0, "one ", 1.0, "two ", 0.3, "three", 5.0), instances=2)


def test_the_end_of_a_log_that_is_lost_on_the_way_is_asked_for() -> None:
    async def story(house: House, here: Instance, there: Instance) -> None:
        watch = await here.say()
        ours = asyncio.create_task(followed(watch))
        await asyncio.sleep(0.01)
        theirs = asyncio.create_task(followed(await there.turns.resume("s", watch.turn_id)))
        await asyncio.sleep(2.995)
        here.relay.tell = lambda address, message: None  # type: ignore[method-assign]
        await ours
        del here.relay.tell
        assert brief(await theirs) == WHOLE

    lived(story, instances=2)


def test_a_log_larger_than_a_message_comes_in_parts() -> None:
    many: tuple[Step, ...] = tuple(["x" * 20_000] * 19)
    assert limits.RELAY_MESSAGE_BYTES_MAX < 19 * 20_000

    async def story(house: House, here: Instance, there: Instance) -> None:
        watch = await here.say()
        whole = await followed(watch)
        await asyncio.sleep(0.01)
        began = house.clock.now()
        back = await followed(await there.turns.resume("s", watch.turn_id))
        assert [each.data for each in back] == [each.data for each in whole]
        assert len(back) == 21
        assert house.clock.now() - began < 0.1

    lived(story, many, instances=2)


def test_a_turn_whose_instance_died_is_lost_soon_and_runs_anew_under_its_key() -> None:
    async def story(house: House, here: Instance, there: Instance) -> None:
        heard: list[Entry] = []
        stop = there.turns.listen("s", heard.append)
        watch = await here.say(key="k")
        theirs = asyncio.create_task(followed(await there.turns.resume("s", watch.turn_id)))
        await asyncio.sleep(1.5)
        here.crash()
        with pytest.raises(TurnInFlight):
            await there.say(key="k", join=False)  # it may live
        began = house.clock.now()
        assert brief(await theirs) == [*WHOLE[:2], (3, "error: turn-lost")]
        assert house.clock.now() - began < 8
        with pytest.raises(TurnLost):
            await there.turns.resume("s", watch.turn_id, after=2)
        again = await there.say(key="k")
        assert not again.replayed
        anew = [(each + SEQS_PER_RUN, text) for each, text in WHOLE]
        assert brief(await followed(again)) == anew
        assert brief(heard) == [*WHOLE[:2], (3, "error: turn-lost"), *anew]
        assert await house.turns() == ["one two three"]
        stop()

    lived(story, instances=2)


def test_a_key_sent_to_two_instances_at_once_is_followed_on_both_though_its_holder_is_slow_to_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(house: House, here: Instance, there: Instance) -> None:
        find = here.conversations.find

        async def slow(turn_id: str) -> Any:
            await asyncio.sleep(4)
            return await find(turn_id)

        monkeypatch.setattr(here.conversations, "find", slow)
        ours = asyncio.create_task(here.say(key="k"))
        await asyncio.sleep(0.1)
        theirs = await there.say(key="k")
        assert theirs.replayed
        assert brief(await followed(theirs)) == WHOLE
        assert brief(await followed(await ours)) == WHOLE
        assert here.provider.calls == 1

    lived(story, instances=2)


def test_a_relay_that_was_away_and_forgot_the_leases_loses_no_turn() -> None:
    async def story(house: House, here: Instance, there: Instance) -> None:
        watch = await here.say(key="k")
        theirs = asyncio.create_task(followed(await there.turns.resume("s", watch.turn_id)))
        ours = asyncio.create_task(followed(watch))
        await asyncio.sleep(1)
        away = StoreDown(at=0.0, lasts=1e6, store="sessions")
        house.hub.leases["a"] = 0.0
        with here.faults.injected(away):
            with there.faults.injected(away):
                await asyncio.sleep(6)
            await asyncio.sleep(1.5)  # longer away from here than from there
        house.hub.leases["a"] = inf
        assert brief(await theirs) == brief(await ours)
        assert brief(await theirs)[-1] == (4, "done: soon late")

    lived(story, (5.0, "soon ", 5.0, "late"), instances=2)


def test_a_turn_whose_instance_died_after_writing_it_is_answered() -> None:
    async def story(house: House, here: Instance, there: Instance) -> None:
        watch = await here.say(key="k")
        ours = asyncio.create_task(followed(watch))
        theirs = asyncio.create_task(followed(await there.turns.resume("s", watch.turn_id)))
        while not await house.turns():  # noqa: ASYNC110 - a store tells nobody
            await asyncio.sleep(0.0001)
        here.relay.relay.vanish()
        assert brief(await theirs)[-1] == (5, "done: one two three")
        assert (await ours)[-1].data == (await theirs)[-1].data
        assert here.provider.calls == 1

    lived(story, instances=2)


def test_without_the_relay_turns_run_and_are_followed_where_they_are() -> None:
    async def story(house: House, here: Instance, there: Instance) -> None:
        for instance in (here, there):
            instance.relay.relay.vanish()  # to the others; to itself it is cut off
        watch = await here.say(key="k")
        assert brief(await followed(watch)) == WHOLE
        assert (await there.say(key="k", join=False)).replayed
        assert await here.turns.running("s") == ()
        assert here.provider.calls == 1

    lived(story, instances=2)


def test_two_instances_that_both_run_a_turn_tell_the_same_reply() -> None:
    async def story(house: House, here: Instance, there: Instance) -> None:
        there.relay.relay.vanish()
        watches = [await here.say(key="k"), await there.say(key="k")]
        told = await asyncio.gather(*map(followed, watches))
        assert here.provider.calls == 2
        assert len(await house.turns()) == 1
        first, second = (each[-1].frame for each in told)
        assert isinstance(first, Done)
        assert isinstance(second, Done)
        assert first.reply == second.reply
        assert first.reply.reply == "one two three"

    lived(story, SLOW, (4.0, "other"), instances=2)


@pytest.mark.parametrize(
    ("request_", "key", "grace", "told"),
    [
        (ChatRequest("hello"), None, False, [WHOLE[0], (2, "done: one two three")]),
        (ChatRequest("hello", stream=True), None, False, WHOLE),
        (ChatRequest("hello", "s"), None, False, WHOLE),
        (ChatRequest("hello"), "k", False, WHOLE),
        (ChatRequest("hello"), None, True, WHOLE),
    ],
)
def test_only_a_turn_that_nobody_can_know_of_is_kept_from_the_relay(
    request_: ChatRequest, key: str | None, grace: bool, told: list[tuple[int, str]]
) -> None:
    async def story(house: House, here: Instance) -> None:
        begun: list[str] = []
        begin = here.relay.begin

        def note(session_id: str, turn_id: str, address: str, message: bytes) -> None:
            begun.append(turn_id)
            begin(session_id, turn_id, address, message)

        here.relay.begin = note  # type: ignore[method-assign]
        watch = await here.turns.start(request_, key=key, create=True, grace=grace)
        assert brief(await followed(watch)) == told
        assert (await watch.reply()).reply == "one two three"
        assert begun == ([] if told != WHOLE else [watch.turn_id])

    lived(story)


# --- kept logs


def test_logs_are_kept_for_a_while_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        kept = KeptLogs()

        def add(number: int, size: int) -> None:
            log = TurnLog("s", str(number), "m")
            log.add(DeltaFrame(str(number), 1, "x" * size))
            kept.add(log)

        def names() -> list[int]:
            return [number for number in range(100) if kept.get(str(number)) is not None]

        for number in range(7):
            add(number, 10)
        assert names() == [2, 3, 4, 5, 6]
        add(7, 8_000)
        assert names() == [3, 4, 5, 6, 7]
        add(8, 8_000)
        assert names() == [8]
        add(9, 100_000)
        assert names() == []
        assert kept.size_bytes == 0
        add(10, 1)
        await asyncio.sleep(limits.LOG_SECONDS / 2)
        add(11, 1)
        await asyncio.sleep(limits.LOG_SECONDS / 2 - 0.1)
        assert names() == [10, 11]
        add(11, 1)
        await asyncio.sleep(0.2)
        assert names() == [11]
        await asyncio.sleep(limits.LOG_SECONDS)
        assert (len(kept), kept.size_bytes) == (0, 0)
        kept.close()

    monkeypatch.setattr(limits, "LOGS_MAX", 5)
    monkeypatch.setattr(limits, "LOGS_BYTES_MAX", 11_000)
    loop.run(story())


def test_an_error_that_another_instance_met_is_the_same_here() -> None:
    async def story(house: House, here: Instance, there: Instance) -> None:
        watch = await here.say()
        await followed(watch)
        errors: list[OrchestraError] = []
        for instance in (here, there):
            async with await instance.turns.resume("s", watch.turn_id) as again:
                with pytest.raises(ProviderFailed) as raised:
                    await again.reply()
                errors.append(raised.value)
        assert errors[0].detail == errors[1].detail == "it broke"

    lived(story, ("on", ProviderFailed("it broke")), instances=2)
