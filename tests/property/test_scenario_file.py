"""What is written of a scenario is read as the same scenario, whatever its numbers and texts are."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from sim.distributions import Constant, Empirical, Exponential, Gamma, Lognormal, Weibull
from sim.expectations import Expectation
from sim.faults import ProviderFailing, ProviderSlow, StoreDown
from sim.provider import ProviderModel
from sim.quantities import COUNT, DURATION, RATE, SHARE, Comparison, spelt
from sim.scenario import Scenario, WorldModel, digest, load, parse, replaying, write
from sim.workload import (
    ClosedLoop,
    Daily,
    Modulated,
    OnOff,
    OpenLoop,
    Population,
    Profile,
    Replay,
    Retries,
    Row,
    State,
    WebSockets,
)

FILES = sorted((Path(__file__).parents[2] / "chaos" / "scenarios").glob("*.yaml"))
positive = st.floats(1e-6, 1e5)
share = st.floats(0, 1)
text = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=60).map(str.strip).filter(bool)
spread = (
    st.builds(Constant, st.floats(0, 1e5))
    | st.builds(Exponential, positive)
    | st.tuples(positive, st.floats(1, 10)).map(lambda pair: Lognormal(pair[0], pair[0] * pair[1]))
    | st.builds(Gamma, st.floats(0.01, 1e4), positive)
    | st.builds(Weibull, st.floats(0.01, 1e4), positive)
    | st.lists(positive, min_size=2, max_size=5).map(lambda values: Empirical(tuple(sorted(values))))
)
retries = st.builds(
    Retries,
    attempts=st.integers(2, 100),
    wait=st.floats(0.001, 100),
    style=st.sampled_from(["naive", "polite"]),
    budget=st.none() | share,
)
rate = st.floats(1e-3, 1e5)
some_time = st.floats(0.001, 1e5)
state = st.builds(State, rate=rate, lasts=some_time)
process = (
    st.builds(OnOff, on=rate, on_for=some_time, off_for=some_time, off=st.none() | rate)
    | st.builds(Modulated, states=st.lists(state, min_size=2, max_size=4).map(tuple))
    | st.builds(Daily, mean=rate, swing=share, peak_at=st.floats(0, 1e5), period=some_time)
    | st.builds(Profile, rates=st.lists(rate, min_size=1, max_size=4).map(tuple), each=some_time)
)
asking = {"context_tokens": spread, "generated_tokens": spread, "patience": positive.map(Exponential)}
requests = {**asking, "retries": st.none() | retries, "stream": st.booleans()}
open_loop = st.builds(OpenLoop, rate=rate, users=st.integers(1, 1_000_000), **requests) | st.builds(
    OpenLoop, arrivals=process, **requests
)
closed_loop = st.builds(ClosedLoop, users=st.integers(1, 10_000), think=spread, **requests)
websockets = st.builds(
    WebSockets,
    connections=st.integers(1, 10_000),
    rate=st.none() | rate,
    ping_every=st.none() | some_time,
    reads=st.none() | rate,
    retries=retries.map(lambda made: structs.replace(made, budget=None)),
    **asking,
)
several = st.fixed_dictionaries({}, optional={"open_loop": open_loop, "closed_loop": closed_loop}).map(
    lambda kinds: tuple(Population(name=kind.replace("_", "-"), **{kind: made}) for kind, made in kinds.items())
)
workload = open_loop | closed_loop | websockets | several.filter(bool)
within = {"at": st.floats(0, 100), "lasts": st.floats(0.001, 100)}
faults = st.lists(
    st.builds(ProviderSlow, **within, factor=st.floats(1.001, 10_000))
    | st.builds(ProviderFailing, **within, rate=st.floats(1e-9, 1))
    | st.builds(StoreDown, **within, store=st.sampled_from(["sessions", "conversations", "memories"])),
    max_size=3,
)
bound = st.builds(Comparison, st.sampled_from(["<", "<=", "==", ">=", ">"]), share)
expectations = st.lists(
    st.builds(Expectation, always=st.sampled_from(["accounted", "durable"]))
    | st.builds(Expectation, always=st.just("run"), success_rate=bound, p95=bound, retry_amplification=bound),
    max_size=3,
)
settings = st.fixed_dictionaries(
    {},
    optional={
        "turn_seconds_max": st.integers(60, 100) | st.floats(60, 100),
        "guards.unified.retry.attempts_max": st.integers(1, 5),
        "guards.unified.breaker.open_seconds": st.floats(0.001, 10),
    },
)
scenario = st.builds(
    Scenario,
    name=text,
    description=st.just("") | text,
    duration=st.floats(200, 2_592_000),
    workload=workload,
    door=st.just("service"),
    world=st.builds(WorldModel, provider=st.builds(ProviderModel, capacity=st.integers(1, 500), first_token=spread)),
    settings=settings,
    faults=faults.map(tuple),
    expectations=expectations.map(tuple),
)


@given(scenario)
def test_what_is_written_is_read_again(made):
    assert parse(write(made)) == made


@given(st.floats(0, 2_592_000), st.floats(1e-6, 1e5), share, st.floats(0, 1e300))
def test_every_number_has_a_text_that_reads_as_just_that(seconds, per_second, part, number):
    for value, quantity in ((seconds, DURATION), (per_second, RATE), (part, SHARE), (number, COUNT)):
        assert quantity.read(spelt(value, quantity)) == value


@pytest.mark.parametrize(
    ("value", "quantity", "written"),
    [
        (0.0, DURATION, "0"),
        (90.0, DURATION, "90s"),
        (180.0, DURATION, "3min"),
        (DURATION.read("350ms"), DURATION, "350ms"),
        (7200.0, DURATION, "2h"),
        (8.0, RATE, "8/s"),
        (5 / 60, RATE, "5/min"),
        (0.07, SHARE, "7%"),
        (6.0, COUNT, "6"),
    ],
)
def test_numbers_are_written_as_people_do(value, quantity, written):
    assert spelt(value, quantity) == written


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_stories_of_this_project_survive(file):
    story = load(file)
    assert parse(write(story)) == story


def test_a_trace_is_not_a_file():
    with pytest.raises(ValueError, match="replay"):
        write(replaying(Replay("trace.csv", (Row(0.0, 1, 1),))))


def test_a_digest_is_of_what_happens_not_of_what_is_expected():
    story = load(FILES[0])
    assert digest(structs.replace(story, description="other words", expectations=())) == digest(story)
    assert digest(structs.replace(story, duration=story.duration / 2)) != digest(story)
    assert digest(structs.replace(story, faults=())) != digest(story)
    traces = [replaying(Replay("trace.csv", (Row(0.0, tokens, 1),))) for tokens in (1, 2)]
    assert digest(traces[0]) != digest(traces[1])
