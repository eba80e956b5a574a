"""One turn of the real orchestrator, in virtual time, on the modelled ports that the rehearsals use."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from orchestra import compose, limits
from orchestra.adapters.embedding import HashingEmbedder
from orchestra.adapters.inprocess import InProcessFleet, InProcessMemories
from orchestra.adapters.inprocess_relay import InProcessHub
from orchestra.adapters.offline import OfflineProvider
from orchestra.chat.orchestrator import ChatOrchestrator, Sink
from orchestra.chat.sessions import Sessions
from orchestra.chat.trimming import MESSAGE_TOKENS
from orchestra.config import Settings
from orchestra.engines.apology import TEXT
from orchestra.errors import (
    BreakerOpen,
    DeadlineExceeded,
    InvalidRequest,
    Maintenance,
    OrchestraError,
    Overloaded,
    PayloadTooLarge,
    ProviderFailed,
    SessionUnknown,
    StoreUnavailable,
)
from orchestra.events import (
    BreakerChanged,
    CallFinished,
    CallRetried,
    Event,
    FellBack,
    LevelChanged,
    StoreFinished,
    TurnFinished,
    TurnStarted,
    UnexpectedError,
)
from orchestra.model import (
    ChatReply,
    ChatRequest,
    Chunk,
    Delta,
    Finish,
    Given,
    Message,
    Prompt,
    Recollection,
    Sampling,
)
from orchestra.ports import MemoryStore, Ports, Provider
from orchestra.resilience.degradation import Degradation, Level
from orchestra.resilience.monitor import HealthMonitor
from sim import loop
from sim.clock import SimClock
from sim.distributions import Constant
from sim.entropy import Streams
from sim.faults import Fault, Faults, ProviderFailing, ProviderSlow, StoreDown, StoreName
from sim.provider import ModelledProvider, ProviderModel
from sim.stores import ModelledConversations, ModelledMemories, ModelledSessions, Wire

T = TypeVar("T")
PROVIDER = ProviderModel(
    capacity=4, first_token=Constant(1.0), per_prompt_token=Constant(0.0), per_token=Constant(0.1), failure_rate=0.0
)
FOREVER = {"at": 0.0, "lasts": 3600.0}
BARE = {"unified": {"fallbacks": (), "retry": {"attempts_max": 1}, "breaker": {"failures_max": 3}}}
"""Guards in which every failure of the provider comes out at once."""


class House:
    """An orchestra on modelled ports: a provider of about two seconds a call, stores of a millisecond an operation."""

    def __init__(
        self,
        env: loop.SimEnvironment,
        provider: Provider | None = None,
        memories: MemoryStore | None = None,
        alternate: Provider | None = None,
        **settings: Any,
    ) -> None:
        self.env = env
        self.faults = Faults()
        self.events: list[Event] = []
        streams = Streams(7)
        clock = SimClock(env.loop)

        def wire(store: StoreName) -> Wire:
            return Wire(store, Constant(0.001), streams.stream(store), self.faults)

        self.provider = ModelledProvider(env, PROVIDER, streams.stream("provider"), self.faults)
        self.conversations = ModelledConversations(wire("conversations"))
        self.ports = Ports(
            clock=clock,
            entropy=streams.stream("orchestra"),
            sessions=ModelledSessions(clock, wire("sessions")),
            conversations=self.conversations,
            memories=memories or ModelledMemories(wire("memories")),
            embedder=HashingEmbedder(),
            provider=provider or self.provider,
            hook=self.events.append,
            fleet=InProcessFleet(clock),
            relay=InProcessHub().join("test"),
            alternate=alternate,
            offline=OfflineProvider(),
        )
        self.container = compose.build(self.ports, Settings(**settings))

    async def say(
        self, message: str, *, seconds_max: float | None = None, sink: Sink | None = None, **more: Any
    ) -> ChatReply:
        async with self.container.create_scope() as scope:
            orchestrator = await scope.resolve(ChatOrchestrator)
            return await orchestrator.handle_chat(ChatRequest(message, **more), seconds_max=seconds_max, sink=sink)

    async def latch(self, level: Level) -> None:
        (await self.container.resolve(Degradation)).latch(level, "test")

    async def fail(self) -> None:
        raise ProviderFailed("test")

    @property
    def levels(self) -> list[str]:
        return [change.after for change in self.told(LevelChanged)]

    def told(self, kind: type[T]) -> list[T]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def outcomes(self) -> list[tuple[str, str]]:
        return [(event.outcome, event.error) for event in self.told(TurnFinished)]


def rehearsed(
    story: Callable[[House], Awaitable[None]],
    *faults: Fault,
    provider: Provider | None = None,
    memories: MemoryStore | None = None,
    **settings: Any,
) -> None:
    """Live through `story` in virtual time, with `faults` in force throughout."""
    env = loop.SimEnvironment()
    house = House(env, provider, memories, **settings)

    async def lived() -> None:
        with ExitStack() as stack:
            for fault in faults:
                stack.enter_context(house.faults.injected(fault))
            await story(house)

    loop.run(lived(), env=env)
    assert house.provider.busy == house.provider.queued == 0
    assert len(house.told(TurnStarted)) == len(
        [each for each in house.told(TurnFinished) if each.error not in ("overloaded", "maintenance")]
    )


def test_a_reply_is_given_once_the_turn_is_durable() -> None:
    async def story(house: House) -> None:
        reply = await house.say("hello")
        (turn,) = await house.conversations.turns(reply.session_id)
        assert (turn.id, turn.message, turn.reply, turn.number) == (reply.turn_id, "hello", reply.reply, 1)
        stored = await house.ports.sessions.load(reply.session_id)
        assert stored
        assert stored.version == 1
        assert reply.degraded == ()
        (finished,) = house.told(TurnFinished)
        assert finished.outcome == "answered"
        assert finished.turn_id == reply.turn_id
        assert finished.first_token_seconds == pytest.approx(1.001, abs=1e-3)
        assert finished.seconds > finished.first_token_seconds

    rehearsed(story)


def test_a_turn_recalls_what_its_owner_said_elsewhere() -> None:
    async def story(house: House) -> None:
        first = await house.say("I sail on Lake Geneva", user_id="ada")
        second = await house.say("Where do I sail?", user_id="ada")
        assert second.session_id != first.session_id
        assert [each.text for each in second.recalled] == ["I sail on Lake Geneva"]
        third = await house.say("Where do I sail?", user_id="bob")
        assert third.recalled == ()

    rehearsed(story)


def test_history_is_not_recalled_twice() -> None:
    async def story(house: House) -> None:
        first = await house.say("I sail on Lake Geneva", user_id="ada")
        second = await house.say("Where do I sail?", session_id=first.session_id, user_id="ada")
        assert second.recalled == ()

    rehearsed(story)


def test_a_command_needs_neither_provider_nor_memory() -> None:
    async def story(house: House) -> None:
        reply = await house.say("/help me")
        assert reply.engine == "commands"
        assert [call.target for call in house.told(CallFinished)] == ["commands"]
        assert (await house.conversations.turns(reply.session_id))[0].engine == "commands"

    rehearsed(story, ProviderFailing(**FOREVER, rate=1.0), StoreDown(**FOREVER, store="memories"))


def test_without_memory_a_turn_is_answered_and_says_so() -> None:
    async def story(house: House) -> None:
        reply = await house.say("hello", user_id="ann")
        assert reply.degraded == ("memory",)
        (turn,) = await house.conversations.turns(reply.session_id)
        assert turn.degraded == ("memory",)

    rehearsed(story, StoreDown(**FOREVER, store="memories"))


def test_an_answer_that_needs_no_memory_is_not_degraded_where_it_cannot_be_remembered() -> None:
    async def story(house: House) -> None:
        assert (await house.say("hello")).degraded == ()
        assert house.told(TurnFinished)[-1].degraded == ("memory",)

    rehearsed(story, StoreDown(**FOREVER, store="memories"))


def test_memory_is_not_asked_for_what_the_history_says() -> None:
    """Of a session without a user, it holds the session's own turns; a user's are of other sessions, too."""

    async def story(house: House) -> None:
        first = await house.say("hello")
        await house.say("hello again", session_id=first.session_id)
        assert [call.target for call in house.told(CallFinished)].count("memory") == 2  # to remember
        await house.say("hello", user_id="ann")
        assert [call.target for call in house.told(CallFinished)].count("memory") == 4

    rehearsed(story)


def test_without_the_store_of_record_nothing_is_acknowledged_and_the_error_says_what_is_unknown() -> None:
    async def story(house: House) -> None:
        with pytest.raises(StoreUnavailable, match="may be durable or not: ask again with the same key") as failure:
            await house.say("hello")
        assert failure.value.retryable
        assert "try again" not in failure.value.detail
        assert house.outcomes == [("failed", "store-unavailable")]

    rehearsed(story, StoreDown(**FOREVER, store="conversations"))


def test_a_durable_turn_is_answered_while_the_session_store_is_away() -> None:
    async def story(house: House) -> None:
        with house.faults.injected(StoreDown(**FOREVER, store="sessions")):
            reply = await house.say("hello")
            assert reply.degraded == ("session",)
            [finished] = house.told(TurnFinished)
            assert (finished.outcome, finished.degraded) == ("answered", ("session",))
            assert [each.error for each in house.told(StoreFinished) if each.target == "sessions"] == [
                "store-unavailable"
            ]
            [turn] = await house.conversations.turns(reply.session_id)
            assert (turn.message, turn.degraded) == ("hello", ())
            with pytest.raises(StoreUnavailable):
                await house.say("and then?", session_id=reply.session_id)
        again = await house.say("and now?", session_id=reply.session_id)
        assert again.degraded == ()
        stored = await house.ports.sessions.load(reply.session_id)
        assert [each.content for each in stored.messages if each.role == "user"] == ["hello", "and now?"]

    rehearsed(story)


def ideographs(tokens: int) -> str:
    return "\u6f22" * tokens


def test_a_prompt_is_within_the_limit_with_its_new_message() -> None:
    provider = Listening()

    async def story(house: House) -> None:
        first = await house.say(ideographs(60_000))
        await house.say(ideographs(30_000), session_id=first.session_id)
        assert [counted_messages(each) for each in provider.asked] == [60_004, 90_013]
        await house.say(ideographs(9_000), session_id=first.session_id)
        assert len(provider.asked[-1].messages) == 5
        await house.say(ideographs(9_000), session_id=first.session_id)
        assert len(provider.asked[-1].messages) == 5, "the first exchange made room"
        whole = limits.SESSION_TOKENS_MAX - MESSAGE_TOKENS
        reply = await house.say(ideographs(whole), session_id=first.session_id)
        assert counted_messages(provider.asked[-1]) == limits.SESSION_TOKENS_MAX
        assert len(provider.asked[-1].messages) == 1
        assert reply.degraded == ("history",), "no later prompt has it"
        assert (await house.conversations.latest(first.session_id, limit=1))[0].degraded == ("history",)
        with pytest.raises(PayloadTooLarge, match="100001 tokens") as refused:
            await house.say(ideographs(whole + 1), session_id=first.session_id)
        assert refused.value.field == "$.message"
        last = await house.say("still there?", session_id=first.session_id)
        assert last.degraded == ()
        assert all(counted_messages(each) <= limits.SESSION_TOKENS_MAX for each in provider.asked)

    rehearsed(story, provider=provider)


def test_a_session_that_many_turns_wait_for_leaves_room_for_others() -> None:
    async def story(house: House) -> None:
        first = await house.say("hello")
        asked = [asyncio.create_task(house.say(f"turn {n}", session_id=first.session_id)) for n in range(40)]
        await asyncio.sleep(0)
        others = await asyncio.gather(*(house.say("hello", user_id=f"u{n}") for n in range(2)))
        assert len(others) == 2
        results = await asyncio.gather(*asked, return_exceptions=True)
        answered = 1 + limits.SESSION_WAITING_MAX
        assert [type(result) for result in results] == [ChatReply] * answered + [Overloaded] * (40 - answered)
        assert all("wait for their answers" in each.detail for each in results[answered:])
        assert all(each.retry_after_seconds == 1 for each in results[answered:])
        assert not (await house.container.resolve(Sessions))._locks._locks

    rehearsed(story, turns_inflight_max=20)


def test_a_failing_provider_opens_its_breaker_and_then_turns_are_shed() -> None:
    async def story(house: House) -> None:
        for _ in range(3):
            with pytest.raises(ProviderFailed):
                await house.say("hello")
        before = house.env.now
        with pytest.raises(BreakerOpen) as rejection:
            await house.say("hello")
        assert house.env.now - before < 0.1
        assert rejection.value.retry_after_seconds == pytest.approx(5, abs=1)
        assert house.outcomes == [("failed", "provider-failed")] * 3 + [("shed", "breaker-open")]
        assert [(change.breaker, change.after) for change in house.told(BreakerChanged)] == [("unified", "OPEN")]

    rehearsed(story, ProviderFailing(**FOREVER, rate=1.0), guards=BARE)


def test_an_open_breaker_closes_once_the_provider_is_well() -> None:
    async def story(house: House) -> None:
        with house.faults.injected(ProviderFailing(**FOREVER, rate=1.0)):
            for _ in range(3):
                with pytest.raises(ProviderFailed):
                    await house.say("hello")
        await asyncio.sleep(6)
        for _ in range(2):
            await house.say("hello")
        assert [change.after for change in house.told(BreakerChanged)] == ["OPEN", "HALF_OPEN", "CLOSED"]

    rehearsed(story, guards=BARE)


def test_a_provider_that_gives_no_first_token_in_time_has_failed() -> None:
    async def story(house: House) -> None:
        with pytest.raises(DeadlineExceeded, match="within 20 s"):
            await house.say("hello")
        assert house.env.now == pytest.approx(20, abs=0.1)
        (call,) = (call for call in house.told(CallFinished) if call.target == "unified")
        assert (call.outcome, call.error) == ("failure", "deadline-exceeded")

    rehearsed(story, ProviderSlow(**FOREVER, factor=30), guards=BARE)


@pytest.mark.parametrize(("seconds_max", "outcome"), [(None, "failure"), (2.0, "dropped")])
def test_a_turn_ends_at_its_own_deadline_or_at_its_callers(seconds_max: float | None, outcome: str) -> None:
    async def story(house: House) -> None:
        with pytest.raises(DeadlineExceeded):
            await house.say("hello", seconds_max=seconds_max)
        assert house.env.now == pytest.approx(seconds_max or 3, abs=0.1)
        (call,) = (call for call in house.told(CallFinished) if call.target == "unified")
        assert (call.outcome, call.error) == (outcome, "deadline-exceeded"), "what a caller shortens says nothing"
        assert house.outcomes == [("failed", "deadline-exceeded")]

    rehearsed(story, ProviderSlow(**FOREVER, factor=30), turn_seconds_max=3, store_seconds_max=3)


def test_a_caller_cannot_lengthen_the_turn() -> None:
    async def story(house: House) -> None:
        with pytest.raises(DeadlineExceeded):
            await house.say("hello", seconds_max=60)
        assert house.env.now == pytest.approx(3, abs=0.1)
        assert [call.outcome for call in house.told(CallFinished) if call.target == "unified"] == ["failure"]

    rehearsed(story, ProviderSlow(**FOREVER, factor=30), turn_seconds_max=3, store_seconds_max=3)


# --- the flow of the "Error Handling Flow" diagram, branch by branch


def test_an_invalid_request_is_answered_by_an_error_before_anything_is_done() -> None:
    async def story(house: House) -> None:
        with pytest.raises(InvalidRequest):
            await house.say("   ")
        assert house.events == []

    rehearsed(story)


def test_an_error_is_tried_again_and_the_retry_succeeds() -> None:
    async def story(house: House) -> None:
        failing = ProviderFailing(**FOREVER, rate=1.0)
        with house.faults.injected(failing):
            turn = asyncio.create_task(house.say("hello"))
            await asyncio.sleep(1.05)
        assert (await turn).engine == "unified"
        assert [each.attempt for each in house.told(CallRetried)] == [2]
        assert house.outcomes == [("answered", "")]

    rehearsed(story)


def test_an_error_that_stays_is_logged_measured_and_answered_by_an_error() -> None:
    async def story(house: House) -> None:
        with pytest.raises(ProviderFailed):
            await house.say("hello")
        assert house.outcomes == [("failed", "provider-failed")]
        (call,) = (call for call in house.told(CallFinished) if call.target == "unified")
        assert (call.outcome, call.attempts) == ("failure", 3)

    rehearsed(story, ProviderFailing(**FOREVER, rate=1.0))


def test_an_open_circuit_leads_to_the_fallback_and_that_to_a_success() -> None:
    async def story(house: House) -> None:
        guards = await house.container.resolve(compose.Guards)
        guards["unified"].breaker.force_open("test")
        reply = await house.say("hello")
        assert (reply.engine, reply.finish_reason, reply.degraded) == ("apology", "apology", ("unified",))
        assert reply.reply == TEXT
        assert [(each.target, each.fallback, each.error) for each in house.told(FellBack)] == [
            ("unified", "apology", "breaker-open")
        ]
        assert house.outcomes == [("shed", "")], "an apology is no answer"
        (turn,) = await house.conversations.turns(reply.session_id)
        assert (turn.reply, turn.engine) == (TEXT, "apology")

    rehearsed(story)


# --- fallbacks


def test_an_apology_is_no_part_of_what_the_model_is_told() -> None:
    async def story(house: House) -> None:
        guard = (await house.container.resolve(compose.Guards))["unified"]
        guard.breaker.force_open("test")
        first = await house.say("hello")
        guard.breaker.reset("test")
        await house.say("hello again", session_id=first.session_id)
        stored = await house.ports.sessions.load(first.session_id)
        assert stored
        assert [each.content for each in stored.messages if each.role == "user"] == ["hello again"]
        assert stored.version == 2
        assert len(await house.conversations.turns(first.session_id)) == 2, "what the user saw is kept"

    rehearsed(story)


def test_a_provider_that_uses_up_the_turn_is_no_fault_of_the_alternate() -> None:
    async def story(house: House) -> None:
        for _ in range(5):
            with pytest.raises(DeadlineExceeded):
                await house.say("hello")
        guard = (await house.container.resolve(compose.Guards))["alternate"]
        assert guard.breaker.state == "CLOSED"
        assert guard.breaker.describe().calls == 0

    rehearsed(
        story,
        ProviderSlow(**FOREVER, factor=1000),
        alternate=Planted(Delta("from the second"), Finish("stop", "second")),
        turn_seconds_max=10,
        guards={"unified": {"retry": {"attempts_max": 1}, "breaker": {"failures_max": 1000}}},
    )


def test_the_same_question_is_answered_from_the_cache() -> None:
    async def story(house: House) -> None:
        first = await house.say("why?")
        with house.faults.injected(ProviderFailing(**FOREVER, rate=1.0)):
            again = await house.say("why?")
            assert (again.engine, again.reply, again.degraded) == ("cache", first.reply, ("unified",))
            assert again.session_id != first.session_id
            with pytest.raises(ProviderFailed):
                await house.say("why not?")
        assert house.outcomes == [("answered", ""), ("answered", ""), ("failed", "provider-failed")]

    rehearsed(story)


@pytest.mark.parametrize(
    ("fallbacks", "engine", "model"),
    [
        (("alternate", "offline"), "alternate", "second"),
        (("offline", "alternate"), "offline", "offline"),
        (("cache", "apology", "alternate"), "alternate", "second"),
    ],
)
def test_the_next_in_the_chain_answers(fallbacks: tuple[str, ...], engine: str, model: str) -> None:
    async def story(house: House) -> None:
        reply = await house.say("hello")
        assert (reply.engine, reply.model, reply.degraded) == (engine, model, ("unified",))
        assert house.told(TurnFinished)[0].engine == engine

    rehearsed(
        story,
        ProviderFailing(**FOREVER, rate=1.0),
        alternate=Planted(Delta("from the second"), Finish("stop", "second")),
        guards={"unified": {"fallbacks": fallbacks}},
    )


def test_an_answer_that_breaks_off_falls_back_on_nobody() -> None:
    async def story(house: House) -> None:
        with pytest.raises(ProviderFailed):
            await house.say("hello")

    rehearsed(
        story,
        provider=Planted(Delta("half an ans"), then=ProviderFailed("torn")),
        alternate=Planted(Delta("from the second"), Finish("stop", "second")),
    )


# --- features and levels


def test_without_the_memory_feature_a_turn_says_so() -> None:
    async def story(house: House) -> None:
        await house.latch(Level.ESSENTIAL)
        reply = await house.say("I like tea", user_id="u")
        assert reply.degraded == ("memory",)
        assert house.told(CallFinished)[0].target == "unified", "memory was not asked"
        await house.latch(Level.LIMITED)
        assert (await house.say("What do I like?", user_id="u")).recalled == (), "nor was anything remembered"

    rehearsed(story)


@pytest.mark.parametrize(("level", "streamed"), [(Level.LIMITED, True), (Level.ESSENTIAL, False)])
def test_a_streaming_request_under_essential_is_answered_whole(level: Level, streamed: bool) -> None:
    async def story(house: House) -> None:
        await house.latch(level)
        pieces: list[str] = []

        async def sink(text: str) -> None:
            pieces.append(text)

        reply = await house.say("hello", sink=sink, stream=True)
        assert ("".join(pieces) == reply.reply) is streamed
        assert ("streaming" in reply.degraded) is not streamed
        assert (len(pieces) > 1) is streamed
        whole = await house.say("hello", sink=sink)
        assert "streaming" not in whole.degraded, "who asked for no pieces misses none"

    rehearsed(story)


def test_in_emergency_no_external_api_is_called() -> None:
    async def story(house: House) -> None:
        first = await house.say("hello")
        await house.latch(Level.EMERGENCY)
        calls = len(house.told(CallFinished))
        reply = await house.say("hello")
        assert (reply.engine, reply.degraded) == ("cache", ("memory", "unified"))
        assert (await house.say("hello again", session_id=first.session_id)).engine == "apology"
        assert len(house.told(CallFinished)) == calls, "nobody was called"
        assert (await house.say("/help")).engine == "commands"

    rehearsed(story)


def test_in_maintenance_new_turns_are_refused_and_nothing_is_touched() -> None:
    async def story(house: House) -> None:
        await house.latch(Level.MAINTENANCE)
        for message in ("hello", "/help"):
            with pytest.raises(Maintenance) as refusal:
                await house.say(message)
            assert refusal.value.retry_after_seconds == 30
        assert house.outcomes == [("shed", "maintenance")] * 2
        assert house.told(TurnStarted) == house.told(CallFinished) == house.told(StoreFinished) == []

    rehearsed(story)


def test_probes_go_on_in_emergency_and_bring_the_provider_back() -> None:
    async def story(house: House) -> None:
        await house.container.resolve(HealthMonitor)
        guard = (await house.container.resolve(compose.Guards))["unified"]
        with (
            house.faults.injected(ProviderFailing(**FOREVER, rate=1.0)),
            house.faults.injected(StoreDown(**FOREVER, store="conversations")),
        ):
            for _ in range(3):
                with pytest.raises(ProviderFailed):
                    await guard.call("c", house.fail)
            await asyncio.sleep(60)
            assert house.levels == ["LIMITED", "ESSENTIAL", "EMERGENCY", "MAINTENANCE"]
            assert guard.breaker.state != "CLOSED"
        await asyncio.sleep(300)
        assert guard.breaker.state == "CLOSED", "a canary proved it"
        assert house.levels[4:] == ["EMERGENCY", "ESSENTIAL", "LIMITED", "NORMAL"]
        assert (await house.say("hello")).engine == "unified"

    rehearsed(story, guards=BARE)


def test_a_provider_that_hangs_in_emergency_opens_its_breaker_by_canaries_alone() -> None:
    async def story(house: House) -> None:
        await house.latch(Level.EMERGENCY)
        breaker = (await house.container.resolve(compose.Guards))["unified"].breaker
        await house.container.resolve(HealthMonitor)
        await asyncio.sleep(61)  # 20 s each to the first item that does not come, and 10 s of pause
        assert (breaker.state, breaker.describe().consecutive_failures) == ("CLOSED", 2)
        await asyncio.sleep(20)
        assert breaker.state == "OPEN"
        ends = [(call.outcome, call.error) for call in house.told(CallFinished)]
        assert ends == [("failure", "deadline-exceeded")] * 3

    rehearsed(story, ProviderSlow(**FOREVER, factor=1000.0), guards=BARE)


def test_a_canary_hangs_up_at_the_first_word_and_is_a_success() -> None:
    async def story(house: House) -> None:
        await house.latch(Level.EMERGENCY)
        breaker = (await house.container.resolve(compose.Guards))["unified"].breaker
        await house.container.resolve(HealthMonitor)
        await asyncio.sleep(5)
        assert (breaker.describe().calls, breaker.describe().failures) == (1, 0)
        [call] = house.told(CallFinished)
        assert (call.correlation_id, call.outcome) == (compose.CANARY, "success")
        assert call.seconds == pytest.approx(1.0, abs=0.01), "the first token's time, and not the answer's"

    rehearsed(story)


def test_turns_beyond_the_bound_are_shed_at_once() -> None:
    async def story(house: House) -> None:
        results = await asyncio.gather(*(house.say(f"hello {n}") for n in range(5)), return_exceptions=True)
        assert [type(result) for result in results] == [ChatReply] * 3 + [Overloaded] * 2
        await house.say("there is room again")
        assert sorted(house.outcomes) == [("answered", "")] * 4 + [("shed", "overloaded")] * 2

    rehearsed(story, turns_inflight_max=3)


@pytest.mark.parametrize(
    ("share", "before_end_seconds"),
    [(0.0, -0.0005), (0.2, 0), (0.7, 0), (1.0, 0.0015), (1.0, 0.0005)],
    ids=["session", "first token", "answer", "conversation write", "session write"],
)
def test_a_cancelled_turn_gives_everything_back(share: float, before_end_seconds: float) -> None:
    async def story(house: House) -> None:
        first = await house.say("hello")
        await house.say("never mind", session_id=first.session_id)
        after_seconds = house.told(TurnFinished)[-1].seconds * share - before_end_seconds
        begun = asyncio.create_task(house.say("never mind", session_id=first.session_id))
        await asyncio.sleep(after_seconds)
        begun.cancel()
        with pytest.raises(asyncio.CancelledError):
            await begun
        assert house.outcomes[-1] == ("failed", "cancelled")
        assert not house.told(BreakerChanged)
        later = await house.say("still there?", session_id=first.session_id)
        messages = [turn.message for turn in await house.conversations.turns(later.session_id)]
        assert messages[0] == "hello"
        assert messages[-1] == "still there?"
        stored = await house.ports.sessions.load(later.session_id)
        assert stored
        assert [message.content for message in stored.messages if message.role == "user"] == messages

    rehearsed(story, turns_inflight_max=1)


def test_turns_of_one_session_see_each_other() -> None:
    async def story(house: House) -> None:
        first = await house.say("turn 0")
        await asyncio.gather(*(house.say(f"turn {n}", session_id=first.session_id) for n in range(1, 6)))
        turns = await house.conversations.turns(first.session_id)
        assert [turn.message for turn in turns] == [f"turn {n}" for n in range(6)]
        assert [turn.number for turn in turns] == list(range(1, 7))

    rehearsed(story)


HEARD = "ok"


class Listening:
    """A provider that keeps what it was asked."""

    name = "listening"
    external = False

    def __init__(self) -> None:
        self.asked: list[Prompt] = []

    async def complete(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        self.asked.append(prompt)
        yield Delta(HEARD)
        yield Finish("stop", "m")


def counted_messages(prompt: Prompt) -> int:
    return sum(limits.estimated_tokens(each.content) + MESSAGE_TOKENS for each in prompt.messages)


class Planted:
    """A provider with a defect planted on purpose: no model of one, for no real one may do this."""

    name = "planted"
    external = True

    def __init__(self, *chunks: Chunk, then: Exception | None = None) -> None:
        self._chunks = chunks
        self._then = then

    async def complete(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        for chunk in self._chunks:
            yield chunk
        if self._then:
            raise self._then


def test_an_answer_without_an_end_was_cut_off() -> None:
    async def story(house: House) -> None:
        with pytest.raises(ProviderFailed, match="cut off"):
            await house.say("hello")
        assert house.outcomes == [("failed", "provider-failed")]

        (call,) = (call for call in house.told(CallFinished) if call.target == "unified")
        assert call.outcome == "failure", "its breaker knows"

    rehearsed(story, provider=Planted(Delta("half an ans")))


def test_a_defect_is_told_to_the_log_and_not_to_the_client() -> None:
    async def story(house: House) -> None:
        with pytest.raises(OrchestraError) as failure:
            await house.say("hello")
        assert type(failure.value) is OrchestraError
        assert "secret" not in failure.value.detail
        (defect,) = house.told(UnexpectedError)
        assert "ValueError: a secret detail" in defect.traceback
        assert house.outcomes == [("failed", "internal")]

    rehearsed(story, provider=Planted(Delta("a"), then=ValueError("a secret detail")))


class PlantedMemories(InProcessMemories):
    """A memory store with a defect planted on purpose."""

    async def recall(self, owner: str, embedding: tuple[float, ...], *, limit: int) -> tuple[Recollection, ...]:
        raise ValueError("a defect of recall")


def test_a_defect_in_memory_costs_the_memory_and_not_the_turn() -> None:
    async def story(house: House) -> None:
        reply = await house.say("hello", user_id="ann")
        assert reply.degraded == ("memory",)
        (defect,) = house.told(UnexpectedError)
        assert "a defect of recall" in defect.traceback
        assert house.outcomes == [("answered", "")]

    rehearsed(story, memories=PlantedMemories())


def test_a_shed_turn_names_its_session() -> None:
    async def story(house: House) -> None:
        first = await house.say("hello")
        running = asyncio.create_task(house.say("long", session_id=first.session_id))
        await asyncio.sleep(0.1)
        with pytest.raises(Overloaded):
            await house.say("hello", session_id=first.session_id)
        assert house.told(TurnFinished)[-1].session_id == first.session_id
        await running

    rehearsed(story, turns_inflight_max=1)


def test_an_empty_answer_is_an_answer() -> None:
    async def story(house: House) -> None:
        assert (await house.say("hello")).reply == ""

    rehearsed(story, provider=Planted(Finish("content_filter", "planted")))


@pytest.mark.parametrize(
    ("request_", "error", "field"),
    [
        (ChatRequest(""), InvalidRequest, "$.message"),
        (ChatRequest(" \n"), InvalidRequest, "$.message"),
        (ChatRequest("a\0"), InvalidRequest, "$.message"),
        (ChatRequest("a\ud800"), InvalidRequest, "$.message"),
        (ChatRequest("a" * 100_001), PayloadTooLarge, "$.message"),
        (ChatRequest("a", session_id="no/slash"), InvalidRequest, "$.session_id"),
        (ChatRequest("a", session_id=""), InvalidRequest, "$.session_id"),
        (ChatRequest("a", user_id="x" * 129), InvalidRequest, "$.user_id"),
    ],
)
def test_an_invalid_request_is_no_turn(request_: ChatRequest, error: type[OrchestraError], field: str) -> None:
    async def story(house: House) -> None:
        async with house.container.create_scope() as scope:
            orchestrator = await scope.resolve(ChatOrchestrator)
            with pytest.raises(error) as refusal:
                await orchestrator.handle_chat(request_)
        assert refusal.value.field == field
        assert house.events == []

    rehearsed(story)


def test_an_unknown_session_is_a_failed_turn() -> None:
    async def story(house: House) -> None:
        with pytest.raises(SessionUnknown):
            await house.say("hello", session_id="nobody")
        assert house.outcomes == [("failed", "session-unknown")]

    rehearsed(story)


def test_ports_are_the_givers_to_close() -> None:
    async def story(house: House) -> None:
        await house.say("hello")
        await house.container.dispose()
        other = compose.build(replace(house.ports), Settings())
        async with other.create_scope() as scope:
            orchestrator = await scope.resolve(ChatOrchestrator)
            assert (await orchestrator.handle_chat(ChatRequest("hello"))).reply

    rehearsed(story)


GIVEN = Given((Message("system", "Be brief."), Message("user", "I sail"), Message("assistant", "Where?")))


class Noting(ModelledProvider):
    """Notes what it is asked."""

    def __init__(self, env: loop.SimEnvironment) -> None:
        super().__init__(env, PROVIDER, Streams(7).stream("provider"), Faults())
        self.asked: list[Prompt] = []

    def complete(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        self.asked.append(prompt)
        return super().complete(prompt)


async def give(house: House, given: Given, message: str, user_id: str | None = None) -> ChatReply:
    orchestrator = await house.container.resolve(ChatOrchestrator)
    return await orchestrator.handle_chat(ChatRequest(message, user_id=user_id), given=given)


def test_a_turn_may_begin_with_what_its_client_gives() -> None:
    async def lived(house: House, provider: Noting) -> None:
        given = Given(GIVEN.messages, Sampling(temperature=0.5))
        reply = await give(house, given, "On a lake")
        assert provider.asked == [Prompt((*GIVEN.messages, Message("user", "On a lake")), (), given.sampling)]
        again = await house.say("What else?", session_id=reply.session_id)
        assert [each.content for each in provider.asked[1].messages] == [
            "On a lake",  # what was given is the client's to keep
            reply.reply,
            "What else?",
        ]
        assert provider.asked[1].sampling == Sampling()
        turns = await house.conversations.turns(reply.session_id)
        assert [(each.number, each.id) for each in turns] == [(1, reply.turn_id), (2, again.turn_id)]

    env = loop.SimEnvironment()
    provider = Noting(env)
    house = House(env, provider)
    loop.run(lived(house, provider), env=env)


def test_a_given_history_has_memory_only_with_a_user() -> None:
    async def story(house: House) -> None:
        reply = await give(house, GIVEN, "On Lake Geneva")
        assert reply.degraded == ()
        assert [call.target for call in house.told(CallFinished)] == ["unified"]
        reply = await give(house, GIVEN, "On Lake Geneva", "ada")
        assert reply.degraded == ("memory",)

    rehearsed(story, StoreDown(**FOREVER, store="memories"))


def test_no_cached_answer_crosses_histories_or_ways_to_draw() -> None:
    async def story(house: House) -> None:
        plain = Given(())
        first = await give(house, plain, "why?")
        await give(house, GIVEN, "how?")
        with house.faults.injected(ProviderFailing(**FOREVER, rate=1.0)):
            assert (await give(house, plain, "why?")).reply == first.reply
            for given, message in (
                (Given((), Sampling(seed=1)), "why?"),
                (GIVEN, "why?"),
                (GIVEN, "how?"),
                (plain, "how?"),
            ):
                with pytest.raises(ProviderFailed):
                    await give(house, given, message)

    once = {"unified": {"fallbacks": ("cache",), "retry": {"attempts_max": 1}, "breaker": {"failures_max": 50}}}
    rehearsed(story, guards=once)


def test_a_session_deleted_under_a_turn_stays_deleted_and_so_does_what_memory_was_told() -> None:
    async def story(house: House) -> None:
        first = await house.say("I live in Rome", user_id="ada")
        running = asyncio.create_task(house.say("I like figs", user_id="ada", session_id=first.session_id))
        await asyncio.sleep(1)
        sessions = await house.container.resolve(Sessions)
        await sessions.delete(first.session_id, "ada", "c")
        with pytest.raises(SessionUnknown):
            await running
        assert await house.conversations.turns(first.session_id) == ()
        for question in ("I live in Rome", "I like figs"):
            embedding = await house.ports.embedder.embed(question)
            assert await house.ports.memories.recall("user:ada", embedding, limit=9) == ()

    rehearsed(story)
