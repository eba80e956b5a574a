"""Faults of providers: each does what it says, counts what it changed, and leaves all other calls as they were."""

import asyncio
from collections import Counter

import pytest

from orchestra.errors import DeadlineExceeded, ProviderFailed, ProviderOverloaded
from orchestra.model import Delta, Message, Prompt
from sim.distributions import Constant, Exponential
from sim.entropy import Streams
from sim.faults import kind_of
from sim.forms import Unreadable
from sim.injection import Faults
from sim.journal import ProviderCallEnded
from sim.loop import SimEnvironment, run
from sim.provider import ModelledProvider, ProviderModel, Tokens
from sim.provider_errors import SILENCE_S_MAX, ErrorMix
from sim.provider_faults import (
    ProviderBlackout,
    ProviderErrors,
    ProviderFailing,
    ProviderFlapping,
    ProviderGray,
    ProviderMidstream,
    ProviderRateLimited,
    ProviderSlow,
)
from sim.scenario import parse

TOKENS = Tokens(10, 11)
ALL_DAY = {"at": 0.0, "lasts": 1000.0}


class Bench:
    """A provider under faults, asked by many; a call takes a second to its first token and one more to its end."""

    def __init__(self, *faults, which="main", seed=0, **model) -> None:
        self.env = SimEnvironment()
        self.told = []
        self.deltas: dict[int, int] = {}
        self.injections = []
        self._faults = faults
        self._ledger = Faults()
        default = {"first_token": Constant(1.0), "per_prompt_token": Constant(0.0), "per_token": Constant(0.1)}
        self._provider = ModelledProvider(
            self.env,
            ProviderModel(**{"capacity": 100_000, **default, **model}),
            Streams(seed).stream("provider"),
            self._ledger,
            cost=lambda prompt: TOKENS,
            record=self.told.append,
            which=which,
        )

    @property
    def touched(self) -> list[int]:
        return [each.touched for each in self.injections]

    @property
    def outcomes(self) -> Counter[str]:
        return Counter(each.outcome for each in self.told if isinstance(each, ProviderCallEnded))

    @property
    def seconds(self) -> dict[int, float]:
        return {each.call: round(each.seconds, 6) for each in self.told if isinstance(each, ProviderCallEnded)}

    async def _hold(self, fault) -> None:
        await asyncio.sleep(fault.at - self.env.now)
        async with self._ledger.in_force(fault) as injection:
            self.injections.append(injection)
            await asyncio.sleep(fault.lasts)

    async def _ask(self, number: int, at: float, conversation: str) -> Exception | None:
        await asyncio.sleep(at - self.env.now)
        prompt = Prompt((Message("user", conversation), Message("user", "and now?")))
        try:
            async for chunk in self._provider.complete(prompt):
                self.deltas[number] = self.deltas.get(number, 0) + isinstance(chunk, Delta)
        except (ProviderFailed, ProviderOverloaded, DeadlineExceeded) as error:
            return error
        return None

    def calls(self, *ats: float, talk=lambda number: f"arrival {number}") -> list[Exception | None]:
        async def main():
            holding = [asyncio.ensure_future(self._hold(fault)) for fault in self._faults]
            await asyncio.sleep(0)
            answers = await asyncio.gather(*(self._ask(number, at, talk(number)) for number, at in enumerate(ats)))
            await asyncio.gather(*holding)
            return answers

        return run(main(), env=self.env)


def test_in_a_blackout_whoever_comes_is_refused_at_once_and_who_was_there_is_not():
    bench = Bench(ProviderBlackout(at=10.0, lasts=10.0))
    answers = bench.calls(9.0, 10.5, 15.0, 20.5)
    assert [each is None for each in answers] == [True, False, False, True]
    assert isinstance(answers[1], ProviderFailed)
    assert "connection to the provider failed" in answers[1].detail
    assert bench.touched == [2]
    assert [bench.seconds[call] for call in (2, 3)] == [0.0, 0.0]
    assert bench.outcomes == {"answered": 2, "refused": 2}


def test_a_silent_blackout_is_waited_through_for_as_long_as_a_client_would():
    bench = Bench(ProviderBlackout(**ALL_DAY, how="hangs"), capacity=1)
    answers = bench.calls(1.0, 1.0)
    assert all(isinstance(each, DeadlineExceeded) for each in answers)
    assert set(bench.seconds.values()) == {SILENCE_S_MAX}  # both: whom nobody hears takes no slot
    assert bench.touched == [2]


def test_a_flapping_provider_is_away_in_the_first_part_of_each_period():
    bench = Bench(ProviderFlapping(at=10.0, lasts=30.0, period=10.0, down=0.3))
    ats = (9.9, 10.1, 12.9, 13.1, 19.9, 20.1, 22.9, 23.1, 39.9, 40.1)
    away = [each is not None for each in bench.calls(*ats)]
    assert away == [False, True, True, False, False, True, True, False, False, False]
    assert bench.touched == [4]


def test_a_gray_failure_slows_some_calls_and_no_other():
    calm, gray = Bench(), Bench(ProviderGray(**ALL_DAY, share=0.3, factor=10.0))
    for bench in (calm, gray):
        assert not any(bench.calls(*[1.0] * 1000))
    slow = [call for call, seconds in gray.seconds.items() if seconds == 20.0]
    assert set(gray.seconds.values()) == {2.0, 20.0}
    assert set(calm.seconds.values()) == {2.0}
    assert len(slow) == gray.injections[0].touched == pytest.approx(300, abs=45)


def test_a_gray_failure_of_conversations_stays_with_them():
    def slow_ones(seed: int) -> set[int]:
        bench = Bench(ProviderGray(**ALL_DAY, share=0.25, factor=10.0, of="conversations"), seed=seed)
        bench.calls(*[float(number) for number in range(400)], talk=lambda number: f"arrival {number % 40}: hello")
        calls = {call: (call - 1) % 40 for call, seconds in bench.seconds.items() if seconds > 2.0}
        assert Counter(calls.values()) == dict.fromkeys(set(calls.values()), 10)
        return set(calls.values())

    assert 4 <= len(slow_ones(0)) <= 17
    assert slow_ones(0) == slow_ones(0) != slow_ones(1)


def test_answers_break_off_after_some_pieces():
    bench = Bench(ProviderMidstream(**ALL_DAY, rate=0.5), per_token=Constant(2.0))  # twenty seconds of writing
    answers = bench.calls(*[1.0] * 1000)
    broken = [number for number, each in enumerate(answers) if each is not None]
    assert len(broken) == bench.injections[0].touched == pytest.approx(500, abs=50)
    assert all("cut off" in answers[number].detail for number in broken)
    pieces = Counter(bench.deltas[number] for number in broken)
    assert set(pieces) == {1, 2, 3, 4}  # the first token always came, the last piece never
    assert min(pieces.values()) > 80  # and anywhere between is as likely
    written = {each.completion_tokens for each in bench.told if getattr(each, "outcome", "") == "failed"}
    assert written == set(range(1, 9)) | {1}
    assert {bench.deltas[number] for number in range(1000) if number not in broken} == {5}


def test_a_mix_of_errors_counts_what_each_call_suffers_once():
    mix = ErrorMix(rate_limited=0.2, retry_after=3.0, failed=0.2, garbled=0.1, midstream=0.1)
    bench = Bench(ProviderErrors(**ALL_DAY, mix=mix))
    answers = bench.calls(*[1.0] * 1000)
    bad = [each for each in answers if each is not None]
    limited = [each for each in bad if isinstance(each, ProviderOverloaded)]
    assert bench.touched == [len(bad)]
    assert len(bad) == pytest.approx(600, abs=50)
    assert len(limited) == pytest.approx(200, abs=40)
    assert {each.retry_after_seconds for each in limited} == {3.0}


def test_a_rate_limit_in_force_lets_through_what_it_says_and_ends_with_its_time():
    bench = Bench(ProviderRateLimited(at=10.0, lasts=10.0, requests=1.0, over=2.0))
    ats = [10.1 + 0.25 * number for number in range(39)]
    answers = bench.calls(5.0, 5.0, 5.0, *ats, 20.5, 20.5, 20.5)
    during = answers[3:42]
    assert not any(answers[:3] + answers[42:])
    assert sum(each is None for each in during) == 2 + 9  # the bucket, and one a second
    assert bench.touched == [28]
    assert all(0 < each.retry_after_seconds <= 1 for each in during if each is not None)


def test_a_fault_of_one_provider_is_none_of_the_other():
    faults = [
        ProviderSlow(**ALL_DAY, factor=2.0, provider="alternate"),
        ProviderBlackout(**ALL_DAY, provider="alternate"),
    ]
    main, alternate = Bench(*faults), Bench(*faults, which="alternate")
    assert main.calls(1.0) == [None]
    assert main.touched == [0, 0]
    assert isinstance(alternate.calls(1.0)[0], ProviderFailed)
    assert alternate.touched == [0, 1]  # who was refused cannot be slow
    (ended,) = [each for each in alternate.told if isinstance(each, ProviderCallEnded)]
    assert ended.provider == "alternate"


EVERY = [
    (ProviderSlow(**ALL_DAY, factor=3.0), "provider_slow", "provider 3x slower"),
    (
        ProviderGray(**ALL_DAY, share=0.2, factor=3.0, of="conversations"),
        "provider_gray",
        "provider 3x slower for 20% of conversations",
    ),
    (ProviderFailing(**ALL_DAY, rate=0.5), "provider_failing", "provider failing 50%"),
    (ProviderMidstream(**ALL_DAY, rate=0.5), "provider_midstream", "provider breaking off 50%"),
    (
        ProviderErrors(**ALL_DAY, mix=ErrorMix(rate_limited=0.1, hangs=0.05)),
        "provider_errors",
        "provider with 10% rate limited, 5% hangs",
    ),
    (ProviderBlackout(**ALL_DAY, provider="alternate"), "provider_blackout", "alternate unreachable"),
    (ProviderBlackout(**ALL_DAY, how="hangs"), "provider_blackout", "provider silent"),
    (ProviderFlapping(**ALL_DAY, period=90.0), "provider_flapping", "provider flapping, 50% of each 90s down"),
    (
        ProviderRateLimited(**ALL_DAY, requests=0.5, tokens=5.0),
        "provider_rate_limited",
        "provider limited to 30 calls/min and 300 tokens/min",
    ),
]


@pytest.mark.parametrize(("fault", "kind", "what"), EVERY, ids=lambda each: each if isinstance(each, str) else "")
def test_a_fault_leaves_all_calls_that_it_does_not_hit_as_they_were(fault, kind, what):
    """Common random numbers: who is answered under the fault, and is not slow, takes as long as without it."""
    del kind, what
    model = {"first_token": Exponential(1.0), "failure_rate": 0.1, "which": fault.provider}
    calm, hit = Bench(**model), Bench(fault, **model)
    ats = [1.0 + number for number in range(200)]
    calm.calls(*ats)
    hit.calls(*ats)
    slowed = fault.factor if isinstance(fault, ProviderSlow | ProviderGray) else 1.0
    answered = {each.call for each in hit.told if getattr(each, "outcome", "") == "answered"}
    for call in answered:
        ratio = hit.seconds[call] / calm.seconds[call]
        assert any(ratio == pytest.approx(factor, rel=1e-4, abs=1e-4) for factor in (1.0, slowed))
    assert hit.injections[0].touched > 0


@pytest.mark.parametrize(("fault", "kind", "what"), EVERY, ids=lambda each: each if isinstance(each, str) else "")
def test_faults_say_what_they_are(fault, kind, what):
    assert (kind_of(fault), fault.what, list(fault.problems())) == (kind, what, [])


STORY = "name: x\nduration: 10min\nworkload: {open_loop: {rate: 1/s}}\nfaults:\n"


def test_every_fault_can_be_written_in_a_scenario():
    text = """
  - provider_slow: {at: 1min, for: 1min, factor: 2}
  - provider_gray: {at: 1min, for: 1min, factor: 2, share: 10%, of: conversations}
  - provider_midstream: {at: 1min, for: 1min, rate: 5%}
  - provider_errors: {at: 1min, for: 1min, mix: {failed: 10%, hangs: 1%}}
  - provider_blackout: {at: 1min, for: 1min, how: hangs}
  - provider_flapping: {at: 1min, for: 1min, period: 10s, down: 30%}
  - provider_rate_limited: {at: 1min, for: 1min, requests: 60/min}
"""
    faults = parse(STORY + text).faults
    span = {"at": 60.0, "lasts": 60.0}
    assert faults == (
        ProviderSlow(**span, factor=2.0),
        ProviderGray(**span, factor=2.0, share=0.1, of="conversations"),
        ProviderMidstream(**span, rate=0.05),
        ProviderErrors(**span, mix=ErrorMix(failed=0.1, hangs=0.01)),
        ProviderBlackout(**span, how="hangs"),
        ProviderFlapping(**span, period=10.0, down=0.3),
        ProviderRateLimited(**span, requests=1.0),
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("provider_gray: {at: 0, for: 1min, factor: 1, share: 10%}", "write more than 1"),
        ("provider_gray: {at: 0, for: 1min, factor: 2, share: 0%}", "makes nobody slow"),
        ("provider_midstream: {at: 0, for: 1min, rate: 0%}", "breaks nothing off"),
        ("provider_flapping: {at: 0, for: 1min, period: 2min}", "at most `for`"),
        ("provider_flapping: {at: 0, for: 1min, period: 10s, down: 100%}", "write less, or provider_blackout"),
        ("provider_flapping: {at: 0, for: 1min, period: 10s, down: 0%}", "is no outage"),
        ("provider_rate_limited: {at: 0, for: 1min}", "limits nothing"),
        ("provider_errors: {at: 0, for: 1min, mix: {failed: 90%, hangs: 20%}}", "at most 100%"),
        ("provider_blackout: {at: 0, for: 0}", "0 lasts no time"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_cure(text, says):
    with pytest.raises(Unreadable, match=says):
        parse(f"{STORY}  - {text}\n")
