"""A modelled provider behind bytes: what unmodified clients meet of its queue, its limits and its faults."""

import asyncio
from contextlib import AsyncExitStack, nullcontext

import httpx2
import openai
import pytest

from orchestra.adapters.openai import OpenAIProvider
from orchestra.errors import OrchestraError, ProviderFailed
from orchestra.limits import RETRY_AFTER_SECONDS_MAX
from orchestra.model import Delta, Finish, Message, Prompt, Usage
from sim.clock import SimClock
from sim.distributions import Constant, Exponential
from sim.entropy import Streams
from sim.faults import Faults
from sim.journal import ProviderCallEnded
from sim.openai_server import serving
from sim.provider import ModelledProvider, ProviderModel, Tokens
from sim.provider_errors import ErrorMix
from sim.provider_faults import ProviderBlackout
from sim.rate_limits import RateLimits

ONE_WAY_S = 0.01
ROUND_TRIP_S = 2 * ONE_WAY_S
TEXT = "A modelled answer to 'go'."
ASKED = {"model": "m", "messages": [{"role": "user", "content": "go"}]}
PROMPT = Prompt((Message("user", "go"),))
BLACKOUT = {"at": 0.0, "lasts": 100.0}


def now():
    return asyncio.get_running_loop().time()


class Bench:
    """A provider behind a server on the host ``llm``; a call takes a second to its first token and one to its end."""

    def __init__(self, network, latency=None, **model):
        self.network = network
        self.told = []
        self.faults = Faults()
        self._stack = AsyncExitStack()
        default = {"first_token": Constant(1.0), "per_prompt_token": Constant(0.0), "per_token": Constant(0.1)}
        self.model = ModelledProvider(
            network.env,
            ProviderModel(**{**default, **model}),
            Streams(3).stream("provider"),
            self.faults,
            cost=lambda prompt: Tokens(10, 11),
            record=self.told.append,
        )
        network.wire("localhost", "llm", latency=latency or Constant(ONE_WAY_S))

    async def __aenter__(self):
        with self.network.on("llm"):
            await self._stack.enter_async_context(serving(self.model))
        return self

    async def __aexit__(self, *_):
        await asyncio.sleep(1)  # what is closed reaches the other side
        await self._stack.aclose()

    def adapter(self, timeout_seconds=30):
        provider = OpenAIProvider(
            base_url="http://llm/v1",
            key="",
            model="m",
            timeout_seconds=timeout_seconds,
            first_token_seconds=timeout_seconds,
            connections_max=100,
            clock=SimClock(asyncio.get_running_loop()),
        )
        self._stack.push_async_callback(provider.aclose)
        return provider

    def client(self, **options):
        client = openai.AsyncOpenAI(base_url="http://llm/v1", api_key="k", **options)
        self._stack.push_async_callback(client.close)
        return client

    @property
    def outcomes(self):
        return [each.outcome for each in self.told if isinstance(each, ProviderCallEnded)]


async def kinds(provider):
    """Return what one call gives, or how it fails, and after how long."""
    began = now()
    text, last = "", None
    try:
        async for chunk in provider.complete(PROMPT):
            text += chunk.text if isinstance(chunk, Delta) else ""
            last = chunk if isinstance(chunk, Finish) else last
    except OrchestraError as error:
        return text, type(error).__name__, error.retry_after_seconds, now() - began
    return text, last.reason, last.usage, now() - began


class TestAnswers:
    def test_the_openai_client_streams(self, networked):
        async def story(network):
            async with Bench(network) as bench:
                stream = await bench.client().chat.completions.create(
                    **ASKED, stream=True, stream_options={"include_usage": True}
                )
                return [(now(), each) async for each in stream]

        came = networked(story)
        assert "".join(each.choices[0].delta.content or "" for _, each in came if each.choices) == TEXT
        assert [each.choices[0].finish_reason for _, each in came if each.choices][-1] == "stop"
        usage = came[-1][1].usage
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (10, 11, 21)
        # connecting is one round trip, asking and answering another
        assert came[0][0] == pytest.approx(1 + 2 * ROUND_TRIP_S, abs=0.001)
        assert came[-1][0] == pytest.approx(2 + 2 * ROUND_TRIP_S, abs=0.001)

    def test_an_answer_that_is_no_stream_comes_whole(self, networked):
        async def story(network):
            async with Bench(network) as bench:
                return await bench.client().chat.completions.create(**ASKED), now()

        answer, at = networked(story)
        assert answer.choices[0].message.content == TEXT
        assert answer.usage.total_tokens == 21
        assert at == pytest.approx(2 + 2 * ROUND_TRIP_S, abs=0.001)

    def test_what_is_sent_is_the_same_to_the_byte_in_every_run(self, networked):
        async def story(network):
            async with Bench(network, latency=Exponential(0.01)), httpx2.AsyncClient(timeout=None) as client:

                async def ask():
                    async with client.stream(
                        "POST", "http://llm/v1/chat/completions", json={**ASKED, "stream": True}
                    ) as response:
                        return response.headers.multi_items(), [(now(), each) async for each in response.aiter_raw()]

                return await asyncio.gather(*(ask() for _ in range(3)))

        first = networked(story)
        assert first == networked(story)
        assert first != networked(story, seed=2)
        headers, pieces = first[0]
        assert ("transfer-encoding", "chunked") in [(name.lower(), value) for name, value in headers]
        assert b"".join(piece for _, piece in pieces).endswith(b'"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')

    def test_calls_queue(self, networked):
        async def story(network):
            async with Bench(network, capacity=1) as bench:
                provider = bench.adapter()

                async def ask():
                    return (await kinds(provider))[-1]

                return await asyncio.gather(*(ask() for _ in range(3)))

        assert sorted(networked(story)) == pytest.approx([2, 4, 6], abs=0.1)

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            (b"{", "truncated"),
            (b'{"model": "m"}', "messages"),
            (b'{"model": "m", "messages": []}', "messages is empty"),
            (b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": "hot"}', "temperature"),
        ],
    )
    def test_what_is_no_request_is_refused(self, networked, body, says):
        async def story(network):
            async with Bench(network) as bench, httpx2.AsyncClient() as client:
                answer = await client.post("http://llm/v1/chat/completions", content=body)
                return answer.status_code, answer.json()["error"]["message"], bench.told

        status, message, told = networked(story)
        assert (status, told) == (400, [])
        assert says in message


MIXES = {
    "nothing": {},
    "500": {"errors": ErrorMix(failed=1.0)},
    "503": {"capacity": 1, "queue_max": 0},
    "429": {"errors": ErrorMix(rate_limited=1.0)},
    "429 with retry after": {"errors": ErrorMix(rate_limited=1.0, retry_after=1.5)},
    "429 with much": {"errors": ErrorMix(rate_limited=1.0, retry_after=1e6)},
    "garbled": {"errors": ErrorMix(garbled=1.0)},
    "midstream": {"errors": ErrorMix(midstream=1.0)},
    "refused": {"fault": ProviderBlackout(**BLACKOUT, how="refuses")},
}


class TestFaults:
    @pytest.mark.parametrize("mix", MIXES)
    def test_the_adapter_meets_over_the_wire_what_the_model_says_without_one(self, networked, mix):
        fault = MIXES[mix].get("fault")
        model = {name: value for name, value in MIXES[mix].items() if name != "fault"}

        async def story(network, wired):
            async with Bench(network, **model) as bench:
                provider = bench.adapter() if wired else bench.model
                with bench.faults.injected(fault) if fault else nullcontext():
                    busy = asyncio.ensure_future(kinds(provider))
                    await asyncio.sleep(0.5)
                    result = await kinds(provider), await busy
                return result, bench.outcomes

        (wired, outcomes), (plain, same_outcomes) = (
            networked(lambda network, wired=wired: story(network, wired)) for wired in (True, False)
        )
        assert outcomes == same_outcomes
        for (text, how, more, seconds), (same_text, same_how, same_more, same_seconds) in zip(
            wired, plain, strict=True
        ):
            assert (text, how, more) == (same_text, same_how, same_more)
            assert seconds == pytest.approx(same_seconds + ROUND_TRIP_S, abs=ROUND_TRIP_S + 0.001)
        if mix == "429 with much":
            assert wired[0][2] == RETRY_AFTER_SECONDS_MAX

    def test_a_garbled_answer_is_a_success_that_is_no_completion(self, networked):
        async def story(network):
            async with Bench(network, errors=ErrorMix(garbled=1.0)), httpx2.AsyncClient() as client:
                answer = await client.post("http://llm/v1/chat/completions", json={**ASKED, "stream": True})
                return answer.status_code, answer.headers["content-type"].partition(";")[0]

        assert networked(story) == (200, "text/html")

    def test_a_silent_provider_costs_the_clients_deadline_and_the_call_is_dropped(self, networked):
        async def story(network):
            async with Bench(network, errors=ErrorMix(hangs=1.0)) as bench:
                found = await kinds(bench.adapter(timeout_seconds=5))
                await asyncio.sleep(1)
                return found[1], round(found[3], 2), bench.outcomes, bench.model.busy

        assert networked(story) == ("DeadlineExceeded", 5, ["dropped"], 0)

    def test_the_openai_client_waits_as_it_is_told_and_tries_again(self, networked):
        async def story(network):
            limits = RateLimits(requests=1 / 20, over=20)
            async with Bench(network, rate_limits=limits) as bench:
                client = bench.client(max_retries=1)
                for _ in range(2):
                    await client.chat.completions.create(**ASKED)
                return now(), bench.outcomes

        at, outcomes = networked(story)
        assert outcomes == ["answered", "refused", "answered"]
        assert 22 <= at < 24  # at 20 s a second call is let in; the client adds some jitter, and no more

    def test_the_openai_client_meets_errors_by_their_status(self, networked):
        async def story(network):
            met = []
            for errors in (ErrorMix(failed=1.0), ErrorMix(rate_limited=1.0), ErrorMix(midstream=1.0)):
                async with Bench(network, errors=errors) as bench:
                    try:
                        stream = await bench.client(max_retries=0).chat.completions.create(**ASKED, stream=True)
                        async for _ in stream:
                            pass
                    except Exception as error:
                        met.append((type(error).__name__, getattr(error, "status_code", None)))
            return met

        assert networked(story) == [
            ("InternalServerError", 500),
            ("RateLimitError", 429),
            ("APIConnectionError", None),
        ]


class TestAborts:
    @pytest.mark.parametrize("begun", [False, True])
    def test_a_client_that_goes_away_frees_its_slot(self, networked, begun):
        async def story(network):
            async with Bench(network, capacity=1) as bench:
                call = bench.adapter().complete(PROMPT)
                if begun:
                    await anext(call)
                    await call.aclose()
                else:
                    waiting = asyncio.ensure_future(anext(call))
                    await asyncio.sleep(0.5)
                    busy = bench.model.busy
                    assert busy == 1
                    waiting.cancel()
                    await asyncio.wait((waiting,))
                await asyncio.sleep(ROUND_TRIP_S)
                return bench.outcomes, bench.model.busy

        assert networked(story) == (["dropped"], 0)

    def test_a_reset_network_is_a_failed_call(self, networked):
        async def story(network):
            async with Bench(network) as bench:
                call = bench.adapter().complete(PROMPT)
                await anext(call)
                with network.reset("llm", None), pytest.raises(ProviderFailed):
                    await anext(call)
                await asyncio.sleep(ROUND_TRIP_S)
                return bench.outcomes, bench.model.busy

        assert networked(story) == (["dropped"], 0)

    def test_calls_under_way_are_aborted_when_the_server_stops(self, networked):
        async def story(network):
            bench = Bench(network)
            async with bench:
                waiting = asyncio.ensure_future(kinds(bench.adapter()))
            return (await waiting)[1], bench.outcomes, bench.model.busy

        assert networked(story)[1:] == (["dropped"], 0)

    def test_usage_is_what_the_model_counted(self, networked):
        async def story(network):
            async with Bench(network) as bench:
                return (await kinds(bench.adapter()))[2]

        assert networked(story) == Usage(10, 11)
