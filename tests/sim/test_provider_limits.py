"""What a provider has beyond a plain queue: a bounded one, rate limits, cold starts, batching, prices, error mixes."""

import asyncio
import math

import pytest

from orchestra.errors import DeadlineExceeded, ProviderFailed, ProviderOverloaded
from orchestra.model import Message, Prompt
from sim.cold_start import ColdStart
from sim.distributions import Constant, Exponential
from sim.entropy import Streams
from sim.forms import Unreadable
from sim.injection import Faults
from sim.journal import ProviderCallEnded, ProviderCallOutlived
from sim.loop import SimEnvironment, run
from sim.provider import ModelledProvider, Price, ProviderModel, Tokens
from sim.provider_errors import SILENCE_S_MAX, ErrorMix, Luck
from sim.rate_limits import RateLimiter, RateLimits
from sim.scenario import parse

PROMPT = Prompt((Message("user", "arrival 7: hello"),))
TOKENS = Tokens(10, 11)


class Bench:
    """A provider whose calls take a second to their first token and one more to their end, and what it told."""

    def __init__(self, *, seed=0, cost=TOKENS, **model) -> None:
        self.env = SimEnvironment()
        self.faults = Faults()
        self.told = []
        default = {"first_token": Constant(1.0), "per_prompt_token": Constant(0.0), "per_token": Constant(0.1)}
        self.provider = ModelledProvider(
            self.env,
            ProviderModel(**{"capacity": 1, **default, **model}),
            Streams(seed).stream("provider"),
            self.faults,
            cost=lambda prompt: cost,
            record=self.told.append,
        )

    @property
    def ended(self) -> list[ProviderCallEnded]:
        return [each for each in self.told if isinstance(each, ProviderCallEnded)]

    async def ask(self, at: float = 0.0, give_up_at: float = math.inf) -> tuple[float, Exception | None]:
        """When an answer or a refusal came, and which."""
        await asyncio.sleep(at - self.env.now)
        try:
            async with asyncio.timeout_at(None if give_up_at == math.inf else give_up_at):
                async for _ in self.provider.complete(PROMPT):
                    pass
        except (ProviderFailed, ProviderOverloaded, DeadlineExceeded, TimeoutError) as error:
            return self.env.now, error
        return self.env.now, None

    def calls(self, *ats: float, give_up: dict[int, float] | None = None) -> list[tuple[float, Exception | None]]:
        async def main():
            gone = give_up or {}
            return await asyncio.gather(*(self.ask(at, gone.get(number, math.inf)) for number, at in enumerate(ats)))

        return run(main(), env=self.env)


# --- a bounded queue


@pytest.mark.parametrize(("queue_max", "refused"), [(0, 3), (1, 2), (2, 1), (3, 0)])
def test_who_finds_no_place_to_wait_in_is_refused_at_once_as_a_503(queue_max, refused):
    bench = Bench(queue_max=queue_max)
    ends = bench.calls(0.0, 0.1, 0.2, 0.3)
    errors = [(at, error) for at, error in ends if error is not None]
    assert len(errors) == refused
    for at, error in errors:
        assert isinstance(error, ProviderFailed)
        assert "(503)" in error.detail
        assert at < 0.31
    assert sum(each.outcome == "refused" for each in bench.ended) == refused
    assert all((each.seconds, each.prompt_tokens) == (0, 0) for each in bench.ended if each.outcome == "refused")


# --- rate limits


def test_a_bucket_lets_in_what_it_holds_and_then_its_rate():
    limiter = RateLimiter(RateLimits(requests=2.0, over=3.0))
    assert [limiter.admit(0.0, 1) for _ in range(6)] == [0.0] * 6
    assert limiter.admit(0.0, 1) == pytest.approx(0.5)
    assert limiter.admit(0.3, 1) == pytest.approx(0.2)
    assert limiter.admit(0.5, 1) == 0.0
    assert limiter.admit(100.0, 1) == 0.0
    assert [limiter.admit(100.0, 1) for _ in range(6)][4:] == [0.0, pytest.approx(0.5)]  # never more than its size


def test_a_call_takes_from_both_buckets_or_from_neither():
    limiter = RateLimiter(RateLimits(requests=1.0, tokens=100.0, over=2.0))
    assert limiter.admit(0.0, 150) == 0.0
    assert limiter.admit(0.0, 100) == pytest.approx(0.5)  # of 50 tokens left; the request that is left stays
    assert limiter.admit(0.0, 50) == 0.0
    assert limiter.admit(0.0, 1) == pytest.approx(1.0)  # no request is left, no token either: the longer wait


def test_a_call_that_is_larger_than_the_bucket_waits_until_it_is_full():
    limiter = RateLimiter(RateLimits(tokens=10.0, over=10.0))
    assert limiter.admit(0.0, 1000) == 0.0
    assert limiter.admit(5.0, 1000) == pytest.approx(5.0)
    assert limiter.admit(10.0, 1000) == 0.0


def test_who_comes_back_when_told_to_is_let_in_whatever_the_rounding():
    limiter = RateLimiter(RateLimits(requests=1 / 3, over=3.0))
    now = 0.0
    assert limiter.admit(now, 1) == 0.0
    for _ in range(1000):
        wait_s = limiter.admit(now, 1)
        assert wait_s == pytest.approx(3.0)
        now += wait_s
        assert limiter.admit(now, 1) == 0.0


def test_beyond_its_rate_limit_a_provider_answers_429_with_retry_after():
    bench = Bench(capacity=9, rate_limits=RateLimits(requests=1.0, over=2.0))
    (_, first), (_, second), (at, third), (_, fourth) = bench.calls(0.0, 0.0, 0.25, 1.0)
    assert (first, second, fourth) == (None, None, None)
    assert isinstance(third, ProviderOverloaded)
    assert third.retry_after_seconds == pytest.approx(0.75)
    assert at == pytest.approx(0.25)
    tokens = Bench(capacity=9, rate_limits=RateLimits(tokens=21.0, over=1.0))
    assert [error is None for _, error in tokens.calls(0.0, 0.5, 1.0)] == [True, False, True]


# --- cold starts


def test_a_cold_endpoint_keeps_all_waiting_until_it_is_ready():
    bench = Bench(capacity=9, cold_start=ColdStart(takes=10.0, after=30.0))
    ends = [at for at, _ in bench.calls(5.0, 9.0, 20.0, 51.9, 82.1)]
    # ready from 15 on; the call at 20 ends at 22, that at 51.9 finds it warm and ends at 53.9; at 82.1 it still is
    assert ends == pytest.approx([17.0, 17.0, 22.0, 53.9, 84.1])
    cold_again = Bench(capacity=9, cold_start=ColdStart(takes=10.0, after=30.0, begins="warm"))
    assert [at for at, _ in cold_again.calls(0.0, 32.1)] == pytest.approx([2.0, 44.1])
    stays = Bench(cold_start=ColdStart(takes=10.0))
    assert [at for at, _ in stays.calls(0.0, 2000.0)] == pytest.approx([12.0, 2002.0])


# --- batching


def test_in_a_batch_every_call_is_slower_the_more_there_are():
    """Four at once, in a batch of four that takes four times as long: each shares with all; alone, it takes 2 s."""
    bench = Bench(capacity=4, batch_slowdown=4.0)
    assert [at for at, _ in bench.calls(0.0, 0.0, 0.0, 0.0)] == pytest.approx([8.0] * 4)
    alone = Bench(capacity=4, batch_slowdown=4.0)
    assert [at for at, _ in alone.calls(0.0, 5.0)] == pytest.approx([2.0, 7.0])
    # the second comes when half of the first one's work is done: both halve, 1 left takes 2; then 1 left takes 1
    joined = Bench(capacity=4, batch_slowdown=4.0)
    assert [at for at, _ in joined.calls(0.0, 1.0)] == pytest.approx([3.0, 4.0])


def test_a_call_given_up_makes_the_others_quicker_unless_the_endpoint_goes_on_with_it():
    stops = Bench(capacity=4, batch_slowdown=4.0)
    assert stops.calls(0.0, 0.0, give_up={1: 1.0})[0][0] == pytest.approx(2.5)
    goes_on = Bench(capacity=4, batch_slowdown=4.0, abandoned="continues")
    assert goes_on.calls(0.0, 0.0, give_up={1: 1.0})[0][0] == pytest.approx(4.0)
    (outlived,) = [each for each in goes_on.told if isinstance(each, ProviderCallOutlived)]
    assert outlived.seconds == pytest.approx(3.0)
    assert goes_on.provider.busy == 0


# --- what is paid


def test_what_was_read_and_written_is_paid_for_whether_anybody_gets_it():
    price = Price(prompt=1.0, completion=10.0)
    bench = Bench(capacity=1, price=price, cost=Tokens(100, 1000), per_token=Constant(0.01))  # in two pieces of 4.995 s
    bench.calls(0.0, 0.1, 0.2, give_up={1: 5.0, 2: 18.0})
    answered, queued, dropped = sorted(bench.ended, key=lambda each: each.call)
    assert (answered.prompt_tokens, answered.completion_tokens, answered.cost) == (100, 1000, pytest.approx(10.1))
    assert (queued.prompt_tokens, queued.completion_tokens, queued.cost) == (0, 0, 0.0)
    assert (dropped.outcome, dropped.prompt_tokens, dropped.completion_tokens) == ("dropped", 100, 500)
    assert dropped.cost == pytest.approx(0.1 + 5.0)
    goes_on = Bench(price=price, abandoned="continues")
    goes_on.calls(0.0, give_up={0: 0.5})
    assert goes_on.ended[0].completion_tokens == 11


# --- how calls go wrong on an ordinary day


def test_errors_come_in_their_shares_as_the_real_adapter_raises_them():
    mix = ErrorMix(rate_limited=0.1, retry_after=7.0, failed=0.1, garbled=0.1, hangs=0.1, midstream=0.2)
    bench = Bench(capacity=2000, errors=mix, failure_rate=0.1)
    ends = bench.calls(*[0.0] * 2000)
    counts: dict[str, int] = {}
    for at, error in ends:
        name = "" if error is None else f"{type(error).__name__} {error.detail[:40]}"
        counts[name] = counts.get(name, 0) + 1
        if isinstance(error, ProviderOverloaded):
            assert (at, error.retry_after_seconds) == (0.0, 7.0)
        elif isinstance(error, DeadlineExceeded):
            assert at == pytest.approx(SILENCE_S_MAX)
        elif error is not None and "cut off" in error.detail:
            assert 1.0 < at < 2.0
        else:
            assert at == pytest.approx(2.0 if error is None else 1.0)
    # a tenth is refused; of those let in a tenth fails; of the others 1/9 each fails, is garbled, hangs, 2/9 break off
    shares = {name.partition(" ")[0]: 0 for name in counts}
    for name, number in counts.items():
        shares[name.partition(" ")[0]] += number / 2000
    assert shares["ProviderOverloaded"] == pytest.approx(0.1, abs=0.025)
    assert shares["DeadlineExceeded"] == pytest.approx(0.09, abs=0.025)
    assert shares["ProviderFailed"] == pytest.approx(0.09 + 0.09 + 0.09 + 0.18, abs=0.04)
    assert shares[""] == pytest.approx(0.36, abs=0.04)
    assert {each.outcome for each in bench.ended} == {"answered", "failed", "refused"}


def test_a_call_that_hangs_keeps_its_slot_until_its_caller_gives_up():
    bench = Bench(errors=ErrorMix(hangs=1.0), abandoned="continues")
    ends = bench.calls(0.0, 0.0, give_up={0: 30.0, 1: 40.0})
    assert [at for at, _ in ends] == pytest.approx([30.0, 40.0])
    assert [each.queued_seconds for each in bench.ended] == pytest.approx([0.0, 30.0])
    assert bench.provider.busy == 0


def test_one_draw_decides_many_questions_as_independent_draws_would():
    draws = [(number + 0.5) / 10_000 for number in range(10_000)]
    both = first = second = 0
    for draw in draws:
        luck = Luck(draw)
        one, other = luck.falls(0.3), luck.falls(0.5)
        first, second, both = first + one, second + other, both + (one and other)
        assert 0.0 <= luck.left < 1.0
    assert (first, second, both) == (3000, 5000, 1500)
    assert Luck(1 - 2**-53).falls(1.0)
    assert not Luck(0.0).falls(0.0)


# --- how it is written


WORLD = """
name: x
duration: 1min
workload: {open_loop: {rate: 1/s}}
world:
  provider:
"""


def test_every_part_of_the_model_can_be_written_in_a_scenario():
    text = """
    capacity: 8
    queue_max: 4
    batch_slowdown: 3
    rate_limits: {requests: 600/min, tokens: 90000/min, over: 10s}
    cold_start: {takes: 20s, after: 5min, begins: warm}
    errors: {rate_limited: 1%, retry_after: 2s, hangs: 0.5%}
    price: {prompt: 0.5, completion: 1.5}
"""
    model = parse(WORLD + text).world.provider
    assert model == ProviderModel(
        capacity=8,
        queue_max=4,
        batch_slowdown=3.0,
        rate_limits=RateLimits(requests=10.0, tokens=1500.0, over=10.0),
        cold_start=ColdStart(takes=20.0, after=300.0, begins="warm"),
        errors=ErrorMix(rate_limited=0.01, retry_after=2.0, hangs=0.005),
        price=Price(prompt=0.5, completion=1.5),
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("batch_slowdown: 0.5", "write 1 or more"),
        ("capacity: 1\n    batch_slowdown: 2", "a capacity of 1 has no batch"),
        ("rate_limits: {over: 1min}", "limits nothing"),
        ("rate_limits: {requests: 1/s, over: 0}", "0 lets nothing in"),
        ("errors: {failed: 60%, hangs: 50%}", "at most 100%"),
        ("errors: {}", "more than 0%"),
        ("errors: {failed: 1%, retry_after: 1s}", "sent with 429 only"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_cure(text, says):
    with pytest.raises(Unreadable, match=says):
        parse(f"{WORLD}    {text}\n")


def test_times_of_calls_do_not_depend_on_what_is_refused():
    """The n-th call takes as long whether others were turned away or not: all draws are made when it arrives."""

    def took(**model) -> dict[int, float]:
        bench = Bench(capacity=100, first_token=Exponential(1.0), **model)
        bench.calls(*[0.0] * 100)
        return {each.call: round(each.seconds, 9) for each in bench.ended if each.outcome == "answered"}

    free, limited = took(), took(rate_limits=RateLimits(requests=1.0, over=50.0))
    assert len(free) == 100
    assert len(limited) == 50
    assert limited == {call: free[call] for call in limited}
