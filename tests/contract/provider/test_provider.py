"""What every provider promises, the same for each implementation. To add one, add its way of running to `RUNNERS`."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from orchestra import limits
from orchestra.adapters.offline import OfflineProvider
from orchestra.adapters.openai import OpenAIProvider
from orchestra.model import Chunk, Delta, Finish, Message, Prompt, Recollection, Sampling
from orchestra.ports import Provider
from sim.clock import SimClock
from sim.entropy import Streams
from sim.faults import Faults
from sim.isolation import isolated
from sim.loop import SimEnvironment
from sim.loop import run as virtually
from sim.network import Network
from sim.openai_server import serving
from sim.provider import ModelledProvider, ProviderModel

Check = Callable[[Provider], Awaitable[None]]


def on_offline(check: Check, _: Any) -> None:
    asyncio.run(check(OfflineProvider()))


def on_openai(check: Check, openai_server: Any) -> None:
    async def main() -> None:
        async with openai_server() as server:
            await check(server.provider())

    asyncio.run(main())


def on_modelled(check: Check, _: Any) -> None:
    env = SimEnvironment()
    provider = ModelledProvider(env, ProviderModel(capacity=2), Streams(0).stream("provider"), Faults())
    virtually(check(provider), env=env)


def on_wired(check: Check, _: Any) -> None:
    """The real adapter, bytes on the simulated network, and the modelled provider behind them."""
    streams = Streams(0)
    env = SimEnvironment()
    network = Network(env, streams)
    modelled = ModelledProvider(env, ProviderModel(capacity=2), streams.stream("provider"), Faults())

    async def main() -> None:
        async with AsyncExitStack() as stack:
            with network.on("llm"):
                await stack.enter_async_context(serving(modelled))
            adapter = OpenAIProvider(
                base_url="http://llm/v1",
                key="k",
                model="m",
                timeout_seconds=60,
                first_token_seconds=30,
                connections_max=50,
                clock=SimClock(env.loop),
            )
            await check(adapter)
            await adapter.aclose()
            await asyncio.sleep(1)  # what is closed reaches the other side
        assert (modelled.busy, modelled.queued) == (0, 0)

    with isolated(streams, env):
        virtually(main(), env=env)


RUNNERS = {"offline": on_offline, "openai": on_openai, "modelled": on_modelled, "wired": on_wired}


@pytest.fixture(params=RUNNERS)
def run(request: pytest.FixtureRequest, openai_server: Any) -> Callable[[Check], None]:
    """Run a check, a coroutine function of a provider, the way the implementation needs it."""
    return lambda check: RUNNERS[request.param](check, openai_server)


PROMPT = Prompt((Message("user", "My name is Ada and I sail on Lake Geneva"),))


async def read(provider: Provider, prompt: Prompt = PROMPT) -> list[Chunk]:
    return [chunk async for chunk in provider.complete(prompt)]


def test_an_answer_is_pieces_of_text_then_one_finish(run):
    async def check(provider: Provider) -> None:
        *pieces, last = await read(provider)
        assert pieces
        assert all(isinstance(each, Delta) and each.text for each in pieces)
        assert isinstance(last, Finish)
        assert last.reason == "stop"
        assert last.model
        assert last.usage.prompt_tokens > 0
        assert last.usage.completion_tokens > 0
        assert 0 < len(provider.name) <= 32

    run(check)


def test_a_whole_conversation_with_recalled_memories_is_answered(run):
    prompt = Prompt(
        (
            Message("system", "Be brief."),
            Message("user", "Grüezi, ich heiße Zoë 🌊"),
            Message("assistant", "Hello Zoë"),
            Message("user", "Where do I sail?"),
        ),
        (Recollection("I sail\non Lake Geneva </recalled>", 0.5), Recollection("日本語", -0.1)),
    )

    async def check(provider: Provider) -> None:
        *pieces, last = await read(provider, prompt)
        text = "".join(each.text for each in pieces if isinstance(each, Delta))
        assert isinstance(last, Finish)
        assert limits.text_fault(text) is None
        assert len(text) <= limits.REPLY_CHARS_MAX

    run(check)


def test_an_answer_may_be_drawn_in_every_way_there_is(run):
    drawn = Sampling(0.0, 1.0, 4096, ("\n\n\n",), 7, 2.0, -2.0)

    async def check(provider: Provider) -> None:
        *pieces, last = await read(provider, Prompt(PROMPT.messages, sampling=drawn))
        assert pieces
        assert isinstance(last, Finish)

    run(check)


def test_the_same_provider_answers_one_call_after_another(run):
    async def check(provider: Provider) -> None:
        for _ in range(3):
            assert isinstance((await read(provider))[-1], Finish)

    run(check)


def test_concurrent_calls_each_end(run):
    async def check(provider: Provider) -> None:
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(read(provider)) for _ in range(20)]
        for call in calls:
            assert [isinstance(each, Finish) for each in call.result()].count(True) == 1

    run(check)


def test_a_call_closed_in_the_middle_gives_nothing_more_and_harms_no_other(run):
    async def check(provider: Provider) -> None:
        call = provider.complete(PROMPT)
        assert isinstance(await anext(call), Delta)
        await call.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(call)
        assert isinstance((await read(provider))[-1], Finish)

    run(check)


def test_a_cancelled_reader_ends_cancelled_and_harms_no_other(run):
    async def check(provider: Provider) -> None:
        begun = asyncio.Event()

        async def reader() -> None:
            async for _ in provider.complete(PROMPT):
                begun.set()
                await asyncio.Event().wait()

        task = asyncio.ensure_future(reader())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert isinstance((await read(provider))[-1], Finish)

    run(check)


def test_a_call_never_begun_can_be_closed(run):
    async def check(provider: Provider) -> None:
        await provider.complete(PROMPT).aclose()

    run(check)
