"""Inside `isolated` no reality leaks in, nothing stays behind, and a seed gives the same bytes in every process."""

# The lambdas look their function up when called, inside; naming it directly would keep what it was outside.
# ruff: noqa: PLW0108, SIM115, RUF012

import concurrent.futures
import datetime
import functools
import gc
import hashlib
import logging
import multiprocessing
import os
import queue
import random
import secrets
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import timeit
import types
import urllib.request
import uuid
from datetime import datetime as aliased_datetime
from pathlib import Path
from random import Random as AliasedRandom
from time import monotonic as aliased_monotonic
from time import time as aliased_time

import pytest

from sim.clock import EPOCH_UNIX_S, SimClock
from sim.entropy import Streams
from sim.isolation import Leak, isolated
from sim.loop import SimEnvironment, run

VIRTUAL_S = 7.5


def inside(function, *, seed=1, **options):
    """Call `function` at `VIRTUAL_S` of an isolated world, in a task."""
    env = SimEnvironment()

    async def main():
        await env.wait(env.timeout(VIRTUAL_S))
        return function()

    with isolated(Streams(seed), env, **options):
        return run(main(), env=env)


class Holder:
    """Holds a clock in each of the ways that code does."""

    attribute = time.monotonic
    static = staticmethod(time.monotonic)

    def __init__(self, positional=time.monotonic, *, keyword=time.monotonic):
        self.positional = positional
        self.keyword = keyword


class Slotted:
    __slots__ = ("clock", "empty")

    def __init__(self):
        self.clock = time.monotonic


def closure():
    clock = time.monotonic
    return lambda: clock()


HOLDER, SLOTTED, CLOSURE = Holder(), Slotted(), closure()
TABLE, LIST = {"clock": time.monotonic}, [time.monotonic]
PARTIAL, PARTIAL_OF = functools.partial(time.monotonic), functools.partial(lambda clock: clock(), time.monotonic)


class TestClocks:
    MONOTONIC = {
        "time.monotonic": lambda: time.monotonic(),
        "time.perf_counter": lambda: time.perf_counter(),
        "time.process_time": lambda: time.process_time(),
        "time.thread_time": lambda: time.thread_time(),
        "time.clock_gettime": lambda: time.clock_gettime(time.CLOCK_MONOTONIC),
        "time.monotonic_ns": lambda: time.monotonic_ns() / 1e9,
        "time.perf_counter_ns": lambda: time.perf_counter_ns() / 1e9,
        "time.process_time_ns": lambda: time.process_time_ns() / 1e9,
        "time.thread_time_ns": lambda: time.thread_time_ns() / 1e9,
        "time.clock_gettime_ns": lambda: time.clock_gettime_ns(time.CLOCK_MONOTONIC) / 1e9,
        "timeit.default_timer": lambda: timeit.default_timer(),
        "an alias": lambda: aliased_monotonic(),
        "a class attribute": lambda: HOLDER.attribute(),
        "a static method": lambda: HOLDER.static(),
        "an instance attribute": lambda: HOLDER.positional(),
        "another one": lambda: HOLDER.keyword(),
        "a default argument": lambda: Holder().positional(),
        "a default of a keyword": lambda: Holder().keyword(),
        "a slot": lambda: SLOTTED.clock(),
        "a closure": lambda: CLOSURE(),
        "a dictionary": lambda: TABLE["clock"](),
        "a list": lambda: LIST[0](),
        "a partial": lambda: PARTIAL(),
        "an argument of a partial": lambda: PARTIAL_OF(),
    }
    WALL = {
        "time.time": lambda: time.time(),
        "time.time_ns": lambda: time.time_ns() / 1e9,
        "time.clock_gettime": lambda: time.clock_gettime(time.CLOCK_REALTIME),
        "time.clock_gettime_ns": lambda: time.clock_gettime_ns(time.CLOCK_REALTIME) / 1e9,
        "an alias": lambda: aliased_time(),
        "datetime.now": lambda: datetime.datetime.now().timestamp(),
        "datetime.now(UTC)": lambda: datetime.datetime.now(datetime.UTC).timestamp(),
        "datetime.utcnow": lambda: datetime.datetime.utcnow().timestamp(),
        "datetime.today": lambda: datetime.datetime.today().timestamp(),
        "an alias of datetime": lambda: aliased_datetime.now().timestamp(),
        "a log record": lambda: logging.makeLogRecord({}).created,
    }
    TEXT = {
        "date.today": lambda: str(datetime.date.today()),
        "time.strftime": lambda: time.strftime("%Y-%m-%d"),
        "time.localtime": lambda: "{}-{:02}-{:02}".format(*time.localtime()[:3]),
        "time.gmtime": lambda: "{}-{:02}-{:02}".format(*time.gmtime()[:3]),
    }

    @pytest.mark.parametrize("name", MONOTONIC)
    def test_monotonic_time_is_the_loops(self, name):
        assert inside(self.MONOTONIC[name]) == pytest.approx(VIRTUAL_S)
        assert self.MONOTONIC[name]() != pytest.approx(VIRTUAL_S, abs=0.01)

    @pytest.mark.parametrize("name", WALL)
    @pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")
    def test_wall_time_is_the_epoch_plus_the_loops(self, name):
        assert inside(self.WALL[name]) == pytest.approx(EPOCH_UNIX_S + VIRTUAL_S, abs=1e-5)
        assert self.WALL[name]() > EPOCH_UNIX_S + 1000

    @pytest.mark.parametrize("name", TEXT)
    def test_dates_are_virtual(self, name):
        assert inside(self.TEXT[name]) == "2026-01-01"
        assert self.TEXT[name]() != "2026-01-01"

    def test_texts_of_now(self):
        assert inside(time.ctime) == inside(time.asctime) == "Thu Jan  1 00:00:07 2026"

    def test_given_times_are_converted_as_ever(self):
        def converted():
            return time.gmtime(0)[:6], time.localtime(0)[:6], time.strftime("%Y", time.gmtime(0)), time.ctime(0)

        assert inside(converted) == ((1970, 1, 1, 0, 0, 0), (1970, 1, 1, 0, 0, 0), "1970", "Thu Jan  1 00:00:00 1970")

    def test_the_time_zone_is_utc(self, monkeypatch):
        monkeypatch.setenv("TZ", "Asia/Kathmandu")
        time.tzset()
        try:
            assert inside(lambda: time.localtime().tm_hour) == 0
            assert inside(lambda: datetime.datetime.now().astimezone().utcoffset()) == datetime.timedelta()
            assert time.localtime(0).tm_min == 30
        finally:
            monkeypatch.undo()
            time.tzset()

    def test_datetime_keeps_its_identity_and_its_subclasses_theirs(self):
        class Mine(datetime.datetime):
            pass

        def made():
            return type(datetime.datetime.now()), type(Mine.now(datetime.UTC)), type(Mine.utcnow())

        assert inside(made) == (datetime.datetime, Mine, Mine)

    def test_log_records_count_from_the_start_of_the_world(self):
        assert inside(lambda: logging.makeLogRecord({}).created) == pytest.approx(EPOCH_UNIX_S + VIRTUAL_S)
        record = inside(lambda: logging.LogRecord("a", 1, "b", 1, "c", (), None))
        assert record.relativeCreated == pytest.approx(VIRTUAL_S * 1000, abs=0.01)

    def test_a_module_imported_inside_takes_the_stand_in_and_gives_it_back(self, tmp_path, monkeypatch):
        (tmp_path / "late_module.py").write_text("from time import monotonic as current\n")
        monkeypatch.syspath_prepend(tmp_path)

        def late():
            import late_module

            return late_module.current()

        assert inside(late) == pytest.approx(VIRTUAL_S)
        assert sys.modules.pop("late_module").current is time.monotonic
        assert not (tmp_path / "__pycache__").exists()

    def test_other_threads_keep_real_time(self):
        seen = []
        go, done = threading.Event(), threading.Event()

        def watchdog():
            go.wait(10)
            seen.extend((time.time(), datetime.datetime.now().timestamp(), random.SystemRandom().random()))
            done.set()

        thread = threading.Thread(target=watchdog)
        thread.start()
        with isolated(Streams(1), SimEnvironment()):
            go.set()
            while not done.is_set():
                pass
        thread.join()
        assert min(seen[:2]) > EPOCH_UNIX_S + 1000

    def test_the_clock_of_the_port_agrees(self):
        env = SimEnvironment()
        with isolated(Streams(1), env):
            env.run(until=3)
            assert SimClock(env.loop).now() == time.time() == EPOCH_UNIX_S + 3


class TestChance:
    DRAWS = {
        "random.random": lambda: random.random(),
        "random.choice": lambda: random.choice(range(10**9)),
        "random.seed without a seed": lambda: (random.seed(), random.random()),
        "a bare Random": lambda: random.Random().random(),
        "an alias of it": lambda: AliasedRandom().random(),
        "a reseeded Random": lambda: _reseeded().random(),
        "SystemRandom": lambda: random.SystemRandom().random(),
        "os.urandom": lambda: os.urandom(8),
        "os.getrandom": lambda: os.getrandom(8),
        "uuid4": lambda: uuid.uuid4(),
        "uuid1": lambda: uuid.uuid1(),
        "secrets.token_hex": lambda: secrets.token_hex(),
        "secrets.randbits": lambda: secrets.randbits(64),
        "secrets.choice": lambda: secrets.choice(range(10**9)),
        "secrets.SystemRandom": lambda: secrets.SystemRandom().getrandbits(64),
    }

    @pytest.mark.parametrize("name", DRAWS)
    def test_chance_comes_from_the_seed(self, name):
        draw = self.DRAWS[name]
        assert inside(draw, seed=1) == inside(draw, seed=1)
        assert inside(draw, seed=1) != inside(draw, seed=2)
        assert draw() != draw()

    def test_numpy(self):
        numpy = pytest.importorskip("numpy")
        import numpy.random  # noqa: F811

        for draw in (lambda: numpy.random.random(), lambda: numpy.random.default_rng().random()):
            assert inside(draw, seed=1) == inside(draw, seed=1)
            assert inside(draw, seed=1) != inside(draw, seed=2)

    def test_a_seeded_random_is_as_ever(self):
        assert inside(lambda: random.Random(5).random()) == random.Random(5).random()

    def test_the_callers_random_goes_on_where_it_was(self):
        random.seed(5)
        inside(random.random)
        after = random.random()
        random.seed(5)
        assert after == random.random()

    def test_it_draws_from_streams_of_its_own(self):
        streams, untouched = Streams(1), Streams(1)
        with isolated(streams, SimEnvironment()):
            random.random()
            uuid.uuid4()
        assert streams.stream("arrivals").random() == untouched.stream("arrivals").random()


def _reseeded():
    generator = random.Random(5)
    generator.seed()
    return generator


class TestTraps:
    LEAKS = {
        "time.sleep": lambda: time.sleep(1),
        "socket": lambda: socket.socket(),
        "socket.getaddrinfo": lambda: socket.getaddrinfo("localhost", 80),
        "socket.gethostbyname": lambda: socket.gethostbyname("localhost"),
        "socket, by urllib": lambda: urllib.request.urlopen("http://localhost:1/"),
        "socket, by a pair": lambda: socket.socketpair(),
        "Thread.start": lambda: threading.Thread(target=print).start(),
        "Thread.start, by an executor": lambda: concurrent.futures.ThreadPoolExecutor().submit(print),
        "Condition.wait": lambda: threading.Event().wait(1),
        "Condition.wait, by a queue": lambda: queue.Queue().get(),
        "Condition.wait, by a future": lambda: concurrent.futures.Future().result(),
        "subprocess.Popen": lambda: subprocess.run([sys.executable, "-V"], check=False),
        "os.system": lambda: os.system("true"),
        "os.fork": lambda: os.fork(),
        "os.fork, by multiprocessing": lambda: multiprocessing.get_context("fork").Process(target=print).start(),
        "os.posix_spawn": lambda: os.posix_spawn(sys.executable, [sys.executable], {}),
        "open": lambda: open("leak.txt", "w"),
        "open, to append": lambda: open("leak.txt", "a"),
        "open, to update": lambda: open(__file__, "r+"),
        "open, by pathlib": lambda: Path("leak.txt").write_text("x"),
        "open, by a descriptor": lambda: os.open("leak.txt", os.O_CREAT | os.O_WRONLY),
        "open, by a log handler": lambda: logging.FileHandler("leak.txt"),
        "open, by tempfile": lambda: tempfile.NamedTemporaryFile(),
        "os.mkdir": lambda: Path("leak").mkdir(),
        "os.remove": lambda: Path("leak.txt").unlink(),
        "os.rename": lambda: Path(__file__).rename("leak.txt"),
    }

    @pytest.mark.parametrize("name", LEAKS)
    def test_a_leak_raises_by_name_with_the_cure(self, name, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(Leak, match=rf"{name.split(',')[0]}.* leaks reality into the simulation; \w+"):
            inside(self.LEAKS[name])
        assert not list(tmp_path.iterdir())

    def test_a_swallowed_leak_is_raised_at_the_end(self):
        def swallow():
            try:
                time.sleep(1)
            except Exception:
                return "nothing happened"

        with pytest.raises(Leak, match=r"time\.sleep"):
            inside(swallow)

    def test_reading_is_allowed_and_so_are_the_paths_named(self, tmp_path):
        def read_and_write():
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "report.txt").write_text("fine")
            with open(os.devnull, "w") as nowhere:
                nowhere.write("x")
            return Path(__file__).read_text()[:3]

        assert inside(read_and_write, writable=[tmp_path]) == '"""'
        assert (tmp_path / "out" / "report.txt").read_text() == "fine"

    def test_a_wait_that_does_not_block_is_allowed(self):
        assert inside(lambda: threading.Semaphore(0).acquire(timeout=0)) is False
        assert inside(lambda: queue.Queue().qsize()) == 0

    def test_a_notebooks_output_may_wait_for_its_thread(self):
        output = types.ModuleType("ipykernel.iostream")
        exec("import threading\ndef flush(): return threading.Event().wait(0.001)", vars(output))
        assert inside(output.flush) is False

    def test_a_path_that_only_begins_alike_is_not_allowed(self, tmp_path):
        with pytest.raises(Leak):
            inside(lambda: (tmp_path / "report-2").write_text("x"), writable=[tmp_path / "report"])

    def test_outside_nothing_is_trapped(self, tmp_path):
        inside(time.time)
        (tmp_path / "fine").write_text("x")
        thread = threading.Thread(target=time.sleep, args=(0,))
        thread.start()
        thread.join()
        socket.socket().close()


class TestScope:
    def state(self):
        return (
            *(getattr(time, name) for name in ("time", "monotonic", "sleep", "localtime")),
            *(os.urandom, random._urandom, random.seed, aliased_time, aliased_monotonic),
            *(
                HOLDER.attribute,
                HOLDER.positional,
                SLOTTED.clock,
                LIST[0],
                TABLE["clock"],
                PARTIAL.func,
                PARTIAL_OF.args,
            ),
            *(Holder.__init__.__defaults__, Holder.__init__.__kwdefaults__, Holder.__dict__["static"].__func__),
            *(random.Random.seed, random.getstate(), threading.Thread.start, threading.Condition.wait),
            *(datetime.datetime.__dict__["now"], datetime.datetime.__dict__["utcnow"]),
            *(uuid._generate_time_safe, uuid._last_timestamp, sys.dont_write_bytecode, logging._startTime),
            *(gc.isenabled(), gc.get_freeze_count(), os.environ.get("TZ"), time.tzname),
        )

    def test_everything_is_restored(self):
        before = self.state()
        inside(time.time)
        assert self.state() == before

    def test_everything_is_restored_after_an_error(self):
        before = self.state()
        with pytest.raises(ZeroDivisionError):
            inside(lambda: 1 // 0)
        assert self.state() == before

    def test_a_second_time_is_as_good_as_the_first(self):
        for _ in range(3):
            assert inside(Holder().positional) == pytest.approx(VIRTUAL_S)
            assert inside(lambda: Holder().positional()) == pytest.approx(VIRTUAL_S)

    def test_nesting_is_refused(self):
        def nest():
            with isolated(Streams(1), SimEnvironment()):
                pass

        with pytest.raises(RuntimeError, match="nested"):
            inside(nest)

    def test_what_cannot_be_replaced_is_listed(self):
        hidden = iter(time.monotonic, None)
        with isolated(Streams(1), SimEnvironment()) as isolation:
            assert "builtins.callable_iterator" in isolation.unreplaced
        del hidden

    def test_a_stand_in_that_was_copied_is_harmless(self):
        kept = inside(lambda: time.monotonic)
        assert kept() == pytest.approx(time.monotonic(), abs=5)
        assert kept.__name__ == "monotonic"


PROGRAM = """
    import asyncio, datetime, hashlib, json, os, random, secrets, sys, time, uuid
    import simpy
    from sim.entropy import Streams
    from sim.isolation import isolated
    from sim.loop import SimEnvironment, run
    from sim.schedule import Fifo, Shuffled

    seed, schedule = int(sys.argv[1]), {"faithful": Fifo, "adversarial": Shuffled}[sys.argv[2]]
    streams = Streams(seed)
    env = SimEnvironment(schedule=schedule(streams.stream("schedule")))
    arrivals = streams.stream("arrivals")
    server = simpy.Resource(env, capacity=2)
    journal = []

    def note(*what):
        journal.append((env.now, *map(str, what)))

    async def client(number):
        note(number, uuid.uuid4(), uuid.uuid1(), random.random(), secrets.token_hex(4), os.urandom(2).hex())
        with server.request() as turn:
            await env.wait(turn)
            note(number, time.time(), time.monotonic(), datetime.datetime.now(), datetime.date.today(), time.ctime())
            await asyncio.sleep(random.Random().random())
        note(number, asyncio.current_task().get_name(), asyncio.current_task() in asyncio.all_tasks())

    async def racing(number):
        try:
            await asyncio.sleep(5)
        finally:
            note("racer", number)

    async def fail():
        await asyncio.sleep(1)
        raise LookupError

    async def main():
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(client(number))
                await asyncio.sleep(arrivals.expovariate(3))
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(20):
                    group.create_task(racing(number))
                group.create_task(fail())
        except* LookupError:
            note("failed")
        done, pending = await asyncio.wait([asyncio.create_task(racing(n)) for n in range(9)], timeout=1)
        for task in pending:
            note("pending", task.get_name())

    with isolated(streams, env):
        run(main(), env=env)
    print(len(journal), hashlib.sha256(json.dumps(journal).encode()).hexdigest())
"""


class TestDeterminism:
    @staticmethod
    def digest(hash_seed, seed, mode):
        environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(seed), mode]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @pytest.mark.parametrize("mode", ["faithful", "adversarial"])
    def test_a_seed_gives_the_same_journal_in_every_process(self, mode):
        first = self.digest(1, 42, mode)
        assert int(first.split()[0]) > 90
        assert self.digest(2, 42, mode) == first
        assert self.digest(1, 43, mode) != first

    def test_the_digest_is_one_of_the_whole_journal(self):
        assert len(self.digest(0, 1, "faithful").split()[1]) == hashlib.sha256().digest_size * 2
