"""The choice tape: the same choices again without the schedule that made them, and where a run first differs."""

import asyncio
import random

import msgspec
import pytest

from sim.entropy import Streams
from sim.loop import SimEnvironment, run
from sim.schedule import MODES, Fifo, Prioritised, Shuffled, schedule_of
from sim.tape import Choices, Divergence, End, OtherScenario, Plan, Recording, Tape, TapeBroken, code
from sim.world import rehearse


def taped(schedule, program, plan=None, seed=0):
    """Run a program on a noted schedule, and return what it returned and the recording."""
    recording = Recording(plan)
    env = SimEnvironment(schedule=recording.schedule(schedule, seed))
    recording.attach(env)
    return run(program(), env=env), recording


async def crossroads():
    """Let ten tasks and ten timers of one deadline tell their order."""
    seen = []

    async def walk(name):
        for step in range(3):
            seen.append((name, step))
            await asyncio.sleep(0)

    loop = asyncio.get_running_loop()
    for number in range(10):
        loop.call_at(1.0, seen.append, number)
    async with asyncio.TaskGroup() as group:
        for number in range(10):
            group.create_task(walk(number))
    await asyncio.sleep(2)
    return seen


def deviations(recording):
    return tuple((number, place) for number, place in enumerate(recording._log, 1) if place)


class TestChoices:
    @pytest.mark.parametrize("mode", MODES)
    def test_they_are_made_again_whatever_the_schedules_seed(self, mode):
        for seed in range(10):
            order, recording = taped(schedule_of(mode, seed, horizon=60), crossroads, seed=seed)
            other = schedule_of(mode, seed + 1000, horizon=60)
            again, replay = taped(other, crossroads, Plan(deviations(recording)), seed=seed)
            assert again == order
            assert deviations(replay) == deviations(recording)

    def test_fifo_has_none_and_the_others_have(self):
        counts = [len(deviations(taped(schedule_of(mode, 1), crossroads)[1])) for mode in MODES]
        assert counts[0] == 0
        assert min(counts[1:]) > 10

    def test_a_plan_without_choices_and_ties_is_the_order_of_creation(self):
        order, _ = taped(Shuffled(random.Random(1)), crossroads, Plan(ties_first=1, ties_last=0))
        assert [each for each in order if isinstance(each, int)] == list(range(10))
        assert order[:10] == [(number, 0) for number in range(10)]

    def test_ties_are_drawn_for_a_range_of_timers(self):
        orders = {
            tuple(each for each in taped(Fifo(), crossroads, Plan((), 4, 6), seed)[0] if isinstance(each, int))
            for seed in range(40)
        }
        assert len(orders) == 6  # of the three that are drawn
        assert {order[3:] for order in orders} == {(0, 1, 2, 6, 7, 8, 9)}

    def test_a_choice_that_cannot_be_made_is_passed_over(self):
        order, recording = taped(Fifo(), crossroads, Plan(((1, 500), (3, 2)), 1, 0))
        assert deviations(recording) == ((3, 2),)
        assert sorted(map(str, order)) == sorted(map(str, taped(Fifo(), crossroads)[0]))


class TestRuns:
    @pytest.mark.parametrize("mode", MODES)
    def test_a_replay_is_identical_and_records_the_same_tape(self, small, tmp_path, mode):
        first = Recording()
        run = rehearse(small(), seed=5, mode=mode, tape=first)
        assert run.mode == mode
        first.tape.write(tmp_path / "x.tape")
        tape = Tape.read(tmp_path / "x.tape")
        assert tape == first.tape
        replay = Recording.replaying(tape)
        again = rehearse(small(), seed=99, tape=replay)  # the tape's own seed and mode count
        assert (again.seed, again.mode) == (5, mode)
        assert replay.identical, replay.divergence
        assert again.journal.digest == run.journal.digest == rehearse(small(), seed=5, mode=mode).journal.digest
        assert replay.tape == tape
        assert bool(tape.plan.choices) == (mode != "faithful")

    def test_what_is_on_it(self, small):
        recording = Recording()
        run = rehearse(small(), seed=5, tape=recording)
        header = recording.tape.header
        assert (header.scenario, header.seed, header.door, header.mode) == ("small", 5, "orchestrator", "faithful")
        assert header.journal == run.journal.digest
        assert header.code == code()
        assert "name: small" in header.story
        assert {"provider", "arrivals", "orchestra"} <= set(recording.tape.draws)
        assert "schedule" not in recording.tape.draws

    def test_another_scenario_is_refused(self, small):
        recording = Recording()
        rehearse(small(), tape=recording)
        other = small("faults: [{store_down: {at: 1s, for: 1s, store: memories}}]")
        with pytest.raises(OtherScenario, match=r"'small'.*give the one it was recorded from"):
            rehearse(other, tape=Recording.replaying(recording.tape))

    def test_other_expectations_are_no_other_scenario(self, small):
        recording = Recording()
        rehearse(small(), tape=recording)
        replay = Recording.replaying(recording.tape)
        assert rehearse(small("expectations: [{always: accounted}]"), tape=replay).verdict.passed
        assert replay.identical

    def test_a_run_that_ends_in_an_error_leaves_its_tape(self, small):
        def watch(progress):
            if progress.virtual_seconds > 20:
                raise ZeroDivisionError

        first, second = Recording(), Recording()
        for recording in (first, second):
            with pytest.raises(ExceptionGroup):
                rehearse(small(), tape=recording, watch=watch)
        assert first.tape == second.tape
        assert 500 < len(first.tape.steps.marks) < 3000


class TestDivergence:
    @pytest.fixture
    def tape(self, small):
        recording = Recording()
        rehearse(small(), seed=5, mode="adversarial", tape=recording)
        return recording.tape

    def told(self, small, tape) -> Divergence:
        replay = Recording.replaying(tape)
        rehearse(small(), tape=replay)
        assert not replay.identical
        return replay.divergence

    def test_another_draw_names_its_stream(self, small, tape):
        marks = bytearray(tape.draws["provider"])
        marks[40] ^= 1
        draws = {**tape.draws, "provider": bytes(marks)}
        found = self.told(small, msgspec.structs.replace(tape, draws=draws))
        assert found.what == "stream 'provider', draw 41"
        assert found.on_tape == "another draw, or the same at another time"
        assert found.happened.endswith("was drawn")
        assert 0 < found.at < 40
        assert 0 < found.step < len(tape.steps.marks)

    def test_a_draw_more_is_found_where_it_is_made(self, small, tape, monkeypatch):
        """A change of the code: from 10 s on the stores draw once more."""
        whole = rehearse(small(), seed=5)
        assert whole.virtual_seconds > 30
        stream = Streams.stream

        def meddled(self, name):
            found = stream(self, name)
            if name == "stores.sessions" and not hasattr(found, "meddled"):
                found.meddled = draw = found.random
                found.random = lambda: (draw(), draw())[1] if asyncio.get_running_loop().time() > 10 else draw()
            return found

        monkeypatch.setattr(Streams, "stream", meddled)
        found = self.told(small, tape)
        assert found.what.startswith("stream 'stores.sessions', draw ")
        assert 10 < found.at < 12

    def test_another_step_says_how_many_were_ready(self, small, tape):
        marks = bytearray(tape.steps.marks)
        marks[700] ^= 1
        found = self.told(
            small, msgspec.structs.replace(tape, steps=msgspec.structs.replace(tape.steps, marks=bytes(marks)))
        )
        assert (found.step, found.what) == (701, "the loop's step 701")
        early, late = tape.steps.times[2:4]
        assert found.on_tape == f"{tape.steps.ready[700]} ready, between {early:.6f} s and {late:.6f} s"
        assert early <= found.at <= late
        assert " ready: " in found.happened

    def test_a_choice_that_cannot_be_made_is_named(self, small, tape):
        first = tape.plan.choices[0][0]
        plan = msgspec.structs.replace(tape.plan, choices=((first, 77), *tape.plan.choices[1:]))
        found = self.told(small, msgspec.structs.replace(tape, plan=plan))
        assert (found.what, found.on_tape) == (f"choice {first:,}", "place 77 taken")

    def test_a_choice_left_out_shows_at_the_steps_that_follow(self, small, tape):
        plan = msgspec.structs.replace(tape.plan, choices=tape.plan.choices[1:])
        assert "first divergence at step" in str(self.told(small, msgspec.structs.replace(tape, plan=plan)))

    def test_an_end_too_early(self, small, tape):
        marks = tape.steps.marks + b"x"
        steps = msgspec.structs.replace(tape.steps, marks=marks, ready=tape.steps.ready + b"x")
        found = self.told(small, msgspec.structs.replace(tape, steps=steps))
        assert (found.what, found.on_tape) == ("its end", f"{len(marks):,} steps")

    def test_the_journal_alone(self, small, tape):
        header = msgspec.structs.replace(tape.header, journal="0" * 64)
        assert self.told(small, msgspec.structs.replace(tape, header=header)).what == "the journal only"


class TestFile:
    @pytest.fixture
    def lines(self, small, tmp_path):
        recording = Recording()
        rehearse(small(), seed=5, mode="adversarial", tape=recording)
        recording.tape.write(tmp_path / "x.tape")
        return (tmp_path / "x.tape").read_bytes().splitlines(keepends=True)

    def refused(self, tmp_path, lines):
        (tmp_path / "y.tape").write_bytes(b"".join(lines))
        with pytest.raises(TapeBroken) as caught:
            Tape.read(tmp_path / "y.tape")
        return str(caught.value)

    def test_what_is_no_tape_is_refused_with_its_line(self, tmp_path, lines):
        assert "is cut off after line" in self.refused(tmp_path, lines[:-1])
        assert "y.tape: is no tape" in self.refused(tmp_path, [])
        assert "y.tape: is no tape" in self.refused(tmp_path, lines[1:])
        assert "line 2 is none of a tape" in self.refused(tmp_path, [lines[0], b'{"line":"what"}\n', *lines[1:]])
        assert "line 1 is none of a tape" in self.refused(tmp_path, [b"\xff\xfe", *lines])
        assert "is of format 7, this code reads 1" in self.refused(
            tmp_path, [lines[0].replace(b'"version":1', b'"version":7'), *lines[1:]]
        )

    def test_lines_that_contradict_each_other(self, tmp_path, lines):
        falling = msgspec.json.encode(Choices(((9, 1), (3, 1)))) + b"\n"
        end = msgspec.json.encode(End(len(lines))) + b"\n"
        assert "contradict" in self.refused(tmp_path, [lines[0], falling, *lines[1:-1], end])

    def test_many_choices_take_several_lines(self, tmp_path, lines, small):
        tape = Tape.read(tmp_path / "x.tape")
        many = msgspec.structs.replace(tape.plan, choices=tuple((number, 1) for number in range(1, 1202)))
        tape = msgspec.structs.replace(tape, plan=many)
        tape.write(tmp_path / "z.tape")
        assert Tape.read(tmp_path / "z.tape") == tape


class TestSchedules:
    def test_a_recorded_run_is_the_same_as_one_without_a_tape(self):
        for make in (lambda: Shuffled(random.Random(3)), lambda: Prioritised(random.Random(3), horizon=60)):
            assert taped(make(), crossroads)[0] == run(crossroads(), env=SimEnvironment(schedule=make()))

    def test_watched_streams_draw_the_same(self):
        class Told:
            env = SimEnvironment()

        def draws(streams):
            stream = streams.stream("a")
            inner = streams.fork("part").stream("a")
            return [
                *(stream.random(), stream.hex(8), stream.randrange(10**30), stream.gauss(0, 1), stream.choice("abc")),
                stream.sample(range(100), 5),
                inner.random(),
            ]

        recording = Recording()
        recording.env = Told.env
        assert draws(recording.streams(7)) == draws(Streams(7))
        assert set(recording._draws) == {"a", "part/a"}
        Told.env.loop.close()
