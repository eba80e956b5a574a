"""The modelled provider: a queue of the kind that theory knows, and no slot that leaks."""

import asyncio

import pytest

from orchestra.errors import ProviderFailed
from orchestra.model import Delta, Finish, Message, Prompt, Recollection
from sim.distributions import Constant, Distribution, Exponential
from sim.entropy import Streams
from sim.faults import Faults, ProviderFailing, ProviderSlow
from sim.journal import ProviderCallEnded, ProviderCallOutlived, ProviderCallStarted
from sim.loop import SimEnvironment, run
from sim.provider import PIECE_S, ModelledProvider, Plan, ProviderModel, Tokens, _pieces, tokens_of

PROMPT = Prompt((Message("user", "arrival 7: hello"),))


ONE_S, NO_TIME = Constant(1.0), Constant(0.0)


class Bench:
    """A provider, what it told, and the faults that it asks."""

    def __init__(
        self,
        capacity: int = 1,
        first: Distribution = ONE_S,
        prompt: Distribution = NO_TIME,
        each: Distribution = NO_TIME,
        failure_rate: float = 0.0,
        cost=lambda prompt: Tokens(10, 11),
        abandoned="stops",
    ) -> None:
        self.env = SimEnvironment()
        self.faults = Faults()
        self.told = []
        model = ProviderModel(
            capacity=capacity,
            first_token=first,
            per_prompt_token=prompt,
            per_token=each,
            failure_rate=failure_rate,
            abandoned=abandoned,
        )
        self.provider = ModelledProvider(
            self.env, model, Streams(0).stream("provider"), self.faults, cost=cost, record=self.told.append
        )

    @property
    def ended(self) -> list[ProviderCallEnded]:
        return [each for each in self.told if isinstance(each, ProviderCallEnded)]

    async def ask(self, prompt: Prompt = PROMPT) -> list:
        return [(self.env.now, chunk) async for chunk in self.provider.complete(prompt)]

    def run(self, main):
        return run(main, env=self.env)


def test_a_calls_time_follows_from_its_tokens():
    bench = Bench(first=Constant(1.0), prompt=Constant(0.1), each=Constant(0.2))
    (first_at, first), (last_at, last), (_, finish) = bench.run(bench.ask())
    assert first_at == pytest.approx(1.0 + 10 * 0.1)
    assert last_at == pytest.approx(2.0 + 10 * 0.2)
    assert isinstance(first, Delta)
    assert isinstance(last, Delta)
    assert isinstance(finish, Finish)
    assert (finish.usage.prompt_tokens, finish.usage.completion_tokens) == (10, 11)


def test_calls_beyond_the_capacity_wait_their_turn():
    bench = Bench(capacity=2)

    async def main():
        return await asyncio.gather(*(bench.ask() for _ in range(5)))

    ends = [answer[-1][0] for answer in bench.run(main())]
    assert ends == pytest.approx([1, 1, 2, 2, 3])
    assert [each.queued_seconds for each in bench.ended] == pytest.approx([0, 0, 1, 1, 2])


@pytest.mark.parametrize(
    ("moment", "way"),
    [("queued", "cancel"), ("served", "cancel"), ("between pieces", "cancel"), ("between pieces", "close")],
)
def test_a_call_that_is_left_gives_its_slot_back_at_once(moment, way):
    bench = Bench(each=Constant(0.1))
    after = {"queued": 0.5, "served": 0.5, "between pieces": 1.5}[moment]

    async def read() -> None:
        answer = bench.provider.complete(PROMPT)
        try:
            await anext(answer)
            if way == "close":
                await asyncio.sleep(0.5)
                return
            await anext(answer)
        finally:
            await answer.aclose()

    async def main() -> float:
        holder = asyncio.ensure_future(bench.ask()) if moment == "queued" else None
        task = asyncio.ensure_future(read())
        if way == "cancel":
            await asyncio.sleep(after)
            task.cancel()
        await asyncio.wait([task])
        assert bench.provider.queued == 0
        assert bench.provider.busy == (1 if holder else 0)
        await bench.ask()
        return bench.env.now

    ended = bench.run(main())
    assert ended == pytest.approx(4.0 if moment == "queued" else after + 2.0)
    assert [each.outcome for each in bench.ended].count("dropped") == 1


@pytest.mark.parametrize(
    ("left_after", "failure_rate", "freed_at"),
    [(0.5, 0.0, 2.0), (1.5, 0.0, 2.0), (0.5, 1.0, 1.0)],
)
def test_an_endpoint_may_finish_what_nobody_waits_for(left_after, failure_rate, freed_at):
    """The call takes two seconds, or fails after one; the next one gets its slot then, not when its caller left."""
    bench = Bench(each=Constant(0.1), failure_rate=failure_rate, abandoned="continues")

    async def main() -> None:
        task = asyncio.ensure_future(bench.ask())
        await asyncio.sleep(left_after)
        task.cancel()
        await asyncio.wait([task])
        assert bench.provider.busy == 0  # nothing is owed to anybody
        await asyncio.gather(bench.ask(), return_exceptions=True)

    bench.run(main())
    assert bench.ended[1].queued_seconds == pytest.approx(freed_at - left_after)
    (outlived,) = [each for each in bench.told if isinstance(each, ProviderCallOutlived)]
    assert outlived.call == 1
    assert (outlived.at, outlived.seconds) == pytest.approx((left_after, freed_at - left_after))
    met = [each for each in bench.told if isinstance(each, ProviderCallStarted)][1]
    assert (met.queued, met.serving) == (0, 1)


def test_an_endpoint_that_finishes_what_it_began_forgets_who_left_the_queue():
    bench = Bench(abandoned="continues")

    async def main() -> None:
        first, second = (asyncio.ensure_future(bench.ask()) for _ in range(2))
        await asyncio.sleep(0.5)
        second.cancel()
        await asyncio.wait([second])
        assert (bench.provider.busy, bench.provider.queued) == (1, 0)
        await first

    bench.run(main())
    assert not [each for each in bench.told if isinstance(each, ProviderCallOutlived)]


def test_a_share_of_calls_fails_when_their_first_token_is_due():
    bench = Bench(capacity=1000, failure_rate=0.3)

    async def main():
        return await asyncio.gather(*(bench.ask() for _ in range(1000)), return_exceptions=True)

    answers = bench.run(main())
    failed = [answer for answer in answers if isinstance(answer, ProviderFailed)]
    assert len(failed) == pytest.approx(300, abs=45)
    assert {round(each.seconds, 6) for each in bench.ended if each.outcome == "failed"} == {1.0}


def test_a_provider_may_always_fail():
    bench = Bench(failure_rate=1.0)
    with pytest.raises(ProviderFailed):
        bench.run(bench.ask())


def test_faults_slow_down_and_fail_calls_that_start_meanwhile():
    bench = Bench(capacity=1000)

    async def main():
        with bench.faults.injected(ProviderSlow(at=0, lasts=1, factor=5)) as slow:
            assert (await bench.ask())[-1][0] == pytest.approx(5.0)
        with bench.faults.injected(ProviderFailing(at=0, lasts=1, rate=0.6)) as failing:
            answers = await asyncio.gather(*(bench.ask() for _ in range(1000)), return_exceptions=True)
        return slow.touched, failing.touched, sum(isinstance(each, ProviderFailed) for each in answers)

    slow, failing, failed = bench.run(main())
    assert slow == 1
    assert failing == failed == pytest.approx(600, abs=50)


def test_a_fault_does_not_reshuffle_the_times_of_other_calls():
    def times(fault: bool) -> list[float]:
        bench = Bench(first=Exponential(1.0), failure_rate=0.1)

        async def main():
            with bench.faults.injected(ProviderFailing(at=0, lasts=1, rate=0.5 if fault else 0.0)):
                await asyncio.gather(*(bench.ask() for _ in range(100)), return_exceptions=True)

        bench.run(main())
        return [round(each.seconds - each.queued_seconds, 9) for each in bench.ended]

    assert times(True) == times(False)


def test_a_plan_knows_messages_and_estimates_others():
    plan = Plan()
    plan.add("arrival 7: hello", Tokens(374, 44))
    assert plan(PROMPT) == Tokens(374, 44)
    history = Prompt((Message("user", "x" * 400), *PROMPT.messages[:0], Message("user", "y" * 400)))
    assert plan(history) == tokens_of(history)
    assert tokens_of(history).prompt == 202
    recalled = Prompt(history.messages, (Recollection("z" * 400, 0.5),))
    assert tokens_of(recalled).prompt == 303


def test_a_long_answer_gives_signs_of_life_and_loses_no_letter() -> None:
    for seconds, count in ((0.0, 1), (5.0, 1), (5.001, 2), (60.0, 12), (600.0, 120)):
        pieces = _pieces(" a text of thirty-one letters.", seconds)
        assert len(pieces) == count
        assert "".join(piece.text for piece in pieces) == " a text of thirty-one letters."
        assert sum(piece.seconds for piece in pieces) == pytest.approx(seconds)
        assert max(piece.seconds for piece in pieces) <= PIECE_S
