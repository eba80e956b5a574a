"""A scenario changed at a path: what it means there, and what is refused in which words."""

import pytest

from sim.distributions import Constant, Exponential, Lognormal
from sim.paths import PathRefused, changed, plain
from sim.provider_faults import ProviderFailing, ProviderSlow
from sim.scenario import parse

STORY = """
name: story
duration: 60s
workload: {open_loop: {rate: 4/s, users: 20, generated_tokens: {lognormal: {median: 50, p95: 90}}}}
world: {provider: {capacity: 8, first_token: {exponential: {mean: 100ms}}, per_token: 5ms}}
settings: {guards: {unified: {breaker: {open_seconds: 3}}}}
faults:
  - {provider_slow: {at: 20s, for: 10s, factor: 3}}
  - {provider_failing: {at: 20s, for: 10s, rate: 10%}}
"""


@pytest.fixture
def story():
    return parse(STORY)


def test_values_are_read_with_their_units(story):
    found = changed(
        story,
        {
            "duration": "90s",
            "workload.open_loop.rate": "300/min",
            "workload.users": "7",
            "world.provider.capacity": "16",
            "world.provider.failure_rate": "2%",
            "world.provider.per_token": "{lognormal: {median: 10ms, p95: 30ms}}",
            "world.provider.first_token.exponential.mean": "250ms",
            "faults[0].factor": "5",
            "faults[1].provider_failing.for": "30s",
        },
    )
    assert (found.duration, found.workload.rate, found.workload.users) == (90.0, 5.0, 7)
    provider = found.world.provider
    assert (provider.capacity, provider.failure_rate) == (16, 0.02)
    assert (provider.per_token, provider.first_token) == (Lognormal(0.01, 0.03), Exponential(0.25))
    assert found.faults == (
        ProviderSlow(at=20, lasts=10, factor=5),
        ProviderFailing(at=20, lasts=30, rate=0.1),
    )
    assert story == parse(STORY)


def test_a_setting_is_written_with_or_without_its_first_word(story):
    found = changed(story, {"guards.unified.breaker.open_seconds": "30", "settings.guards.unified.fallbacks": "[]"})
    assert found.settings == {"guards.unified.breaker.open_seconds": 30, "guards.unified.fallbacks": ""}


def test_one_thing_may_take_the_place_of_another(story):
    found = changed(story, {"faults[0]": "{provider_failing: {at: 1s, for: 5s, rate: 1%}}"})
    assert found.faults[0] == ProviderFailing(at=1, lasts=5, rate=0.01)
    assert changed(story, {"world.provider.first_token": "1s"}).world.provider.first_token == Constant(1.0)


def test_values_that_only_fit_together_are_checked_together(story):
    both = {"workload.generated_tokens.median": "200", "workload.generated_tokens.p95": "300"}
    assert changed(story, both).workload.generated_tokens == Lognormal(200, 300)


def test_the_plain_number_is_that_in_base_units(story):
    for path, text, value in (
        ("workload.rate", "300/min", 5.0),
        ("world.provider.capacity", "16", 16),
        ("world.provider.per_token", "5ms", 0.005),
        ("world.provider.failure_rate", "2%", 0.02),
        ("guards.unified.breaker.open_seconds", "2.5", 2.5),
        ("world.provider.per_token", "{exponential: {mean: 1s}}", "{exponential: {mean: 1s}}"),
    ):
        assert plain(story, path, text) == value


@pytest.mark.parametrize(
    ("path", "text", "says"),
    [
        ("capacity", "16", "neither a scenario nor the settings have capacity"),
        ("world.provider.capacty", "16", "unknown key capacty: did you mean capacity?"),
        ("world.provider.capacity", "many", "'many' is no whole number"),
        ("world.provider.capacity", "0", "0 is out of bounds: write 1 to"),
        ("world.provider.capacity.now", "1", "is a single value, which has no now: leave that out"),
        ("world.provider", "16", "write a mapping here, with keys such as"),
        ("world.provider.first_token", "2", "2 has no unit: write 2s, 2ms or 2min"),
        ("world.provider.first_token.lognormal.median", "1s", "this scenario has exponential there, not lognormal"),
        ("workload.retries.wait", "1s", "wait stands in what this scenario leaves out: add that to its file first"),
        ("workload.open_loop.rate", "5", "'5' is no rate: write a number per s, min or h"),
        ("faults[2].factor", "5", "[2] is not in this scenario: write [0] to [1]"),
        ("faults.factor", "5", "factor is not in this scenario: write [0] to [1]"),
        ("faults[0].for", "50s", "ends at 70s, after the run's 60s: shorten it"),
        ("faults[0].factor", "1", "1 is out of bounds: write more than 1"),
        ("guards.unified.breaker.open_second", "1", "is no setting: did you mean guards.unified.breaker.open_seconds?"),
        ("guards.unified.breaker.open_seconds", "soon", "Input should be a valid number"),
        ("guards.unified.breaker.open_seconds", "{a: 1}", "is a table: name one key of it, and its value"),
        ("guards.unified.breaker.open_seconds", "[1", "'[1' is no value: write it as in a scenario's file"),
        ("settings", "1", "is a table: name one key of it, and its value"),
        ("redis_url", "x", "has no meaning in a simulated world: remove it"),
        ("world..provider", "1", "is no path: write keys with dots"),
        ("faults[x].factor", "1", "is no path: write keys with dots"),
        ("workload.rate", "", "'' is no value"),
    ],
)
def test_what_leads_nowhere_or_cannot_stand_is_refused_with_the_cure(story, path, text, says):
    with pytest.raises(PathRefused) as refused:
        changed(story, {path: text})
    assert says in str(refused.value)
    assert path.split(".")[-1].split("[")[0] in str(refused.value)


def test_one_of_several_workloads_is_named_by_its_place(story):
    several = parse(
        STORY.replace("workload: {", "workload:\n  - {name: a, ").replace(
            "}}}\nworld", "}}}\n  - {name: b, open_loop: {rate: 1/s}}\nworld"
        )
    )
    found = changed(several, {"workload[1].open_loop.rate": "9/s"})
    assert [each.open_loop.rate for each in found.workload] == [4.0, 9.0]
