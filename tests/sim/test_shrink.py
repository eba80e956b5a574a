"""Shrinking: what is left fails in the same way, and is small."""

import pytest

from sim.expectations import Expectation
from sim.faults import ProviderFailing
from sim.scenario import parse, write
from sim.shrink import NotFailing, ddmin, shrink
from sim.tape import Plan, Recording
from sim.verdict import Status
from sim.world import World, rehearse

FAULTS = """
faults:
  - provider_slow: {at: 5s, for: 4s, factor: 2}
  - provider_failing: {at: 10s, for: 16s, rate: 90%}
  - store_down: {at: 30s, for: 4s, store: memories}
expectations:
  - {always: accounted}
  - {always: run, success_rate: ">= 99%"}
"""


class TestDdmin:
    @pytest.mark.parametrize("needed", [(), (3,), (0, 99), (17, 18, 55), tuple(range(0, 100, 9))])
    def test_just_what_is_needed_is_left(self, needed):
        tried = []

        def fails(part):
            tried.append(part)
            return set(needed) <= set(part)

        assert ddmin(tuple(range(100)), fails) == needed
        assert len(tried) < 400

    def test_one_alone_and_none(self):
        assert ddmin((), lambda part: True) == ()
        assert ddmin((1,), lambda part: part == (1,)) == (1,)
        assert ddmin((1,), lambda part: True) == ()


class TestStory:
    def test_one_short_fault_and_what_it_breaks_are_left(self, small):
        found = shrink(small(FAULTS), seed=1, mode="adversarial", runs_max=60)
        (fault,) = found.scenario.faults
        assert isinstance(fault, ProviderFailing)
        assert fault.lasts <= 2
        assert [each.always for each in found.scenario.expectations] == ["run"]
        assert found.scenario.duration <= 20
        assert not found.exhausted
        assert found.runs <= 25

    def test_an_order_that_does_not_matter_is_fifo(self, small):
        found = shrink(small(FAULTS), seed=1, mode="adversarial", runs_max=60)
        assert found.tape.plan == Plan((), 1, 0)
        assert found.tape.header.mode == "faithful"
        assert any("deviations from FIFO" in each for each in found.removed)

    def test_what_is_left_is_a_file_and_a_tape_that_fail_again(self, small):
        found = shrink(small(FAULTS), seed=1, runs_max=60)
        replay = Recording.replaying(found.tape)
        run = rehearse(parse(write(found.scenario)), tape=replay)
        assert replay.identical
        assert run.verdict.status is Status.FAILED

    def test_the_same_twice(self, small):
        assert shrink(small(FAULTS), seed=1, runs_max=12) == shrink(small(FAULTS), seed=1, runs_max=12)

    def test_it_is_bounded(self, small):
        found = shrink(small(FAULTS), seed=1, runs_max=3)
        assert found.exhausted
        assert found.runs == 3

    def test_what_passes_is_refused(self, small):
        with pytest.raises(NotFailing, match="small passes with seed 1"):
            shrink(small("expectations: [{always: accounted}]"), seed=1)


class TestOrder:
    @pytest.fixture
    def fragile(self, small, monkeypatch):
        """A world that breaks if its third arrival's task runs ahead of one made before it, as FIFO never has it."""
        live = World._story

        async def story(self, clients):
            import asyncio

            ran = []

            async def mark(name):
                ran.append(name)

            async with asyncio.TaskGroup() as group:
                for name in range(6):
                    group.create_task(mark(name))
            if ran.index(4) < ran.index(1):
                raise AssertionError("4 before 1")
            await live(self, clients)

        monkeypatch.setattr(World, "_story", story)
        return small()

    def failing_seed(self, fragile):
        for seed in range(20):
            try:
                rehearse(fragile, seed=seed, mode="adversarial")
            except (AssertionError, ExceptionGroup):
                return seed
        raise AssertionError("no seed fails")

    def test_one_deviation_is_left_of_all(self, fragile):
        rehearse(fragile)
        found = shrink(fragile, seed=self.failing_seed(fragile), mode="adversarial")
        assert len(found.tape.plan.choices) == 1
        assert found.tape.plan.ties_last == 0
        assert found.tape.header.mode == "adversarial"

    def test_a_tie_is_found(self, small, monkeypatch):
        """Two of three hundred timers have one deadline; broken if the later one comes first."""
        live = World._story

        async def story(self, clients):
            import asyncio

            loop = asyncio.get_running_loop()
            ran = []
            for number in range(300):
                loop.call_at(1.0 if number in (100, 200) else 1.0 + number * 1e-4 + 1e-5, ran.append, number)
            await asyncio.sleep(2)
            if ran[:2] == [200, 100]:
                raise AssertionError
            await live(self, clients)

        monkeypatch.setattr(World, "_story", story)
        scenario = small()
        for seed in range(20):
            try:
                rehearse(scenario, seed=seed)
            except (AssertionError, ExceptionGroup):
                break
        found = shrink(scenario, seed=seed)
        assert found.tape.plan.ties_first == found.tape.plan.ties_last
        assert found.tape.header.mode == "faithful"


def test_expectations_that_name_a_fault_keep_it(small):
    story = small(
        "faults:\n  - provider_failing: {at: 10s, for: 10s, rate: 90%}\n"
        "  - store_down: {at: 25s, for: 5s, store: memories}\n"
        'expectations: [{during: provider_failing, success_rate: ">= 99%"}]'
    )
    found = shrink(story, seed=1, runs_max=40)
    assert len(found.scenario.faults) == 1
    assert found.scenario.expectations == story.expectations
    assert isinstance(found.scenario.expectations[0], Expectation)
