"""Scenario files: what is read from them, and how what is wrong with them is told."""

import contextlib
import json

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestra.policies import BreakerPolicy, GuardPolicy
from sim.distributions import Constant, Exponential, Lognormal
from sim.expectations import Expectation
from sim.faults import ProviderFailing, ProviderSlow, StoreDown
from sim.forms import BYTES_MAX, DEPTH_MAX, PROBLEMS_MAX, Unreadable
from sim.quantities import (
    Comparison,
    comparison,
    count,
    duration,
    rate,
    share,
    show_count,
    show_duration,
    show_factor,
    show_share,
)
from sim.scenario import load, parse, replaying, schema, settings_of
from sim.workload import OpenLoop, Replay, Retries, Row

WHOLE = """\
name: everything
description: all that a file may say
duration: 1min 30s
workload:
  open_loop:
    rate: 300/min
    users: 7
    turns_per_session: 2
    context_tokens: {constant: 10}
    generated_tokens: {exponential: {mean: 5}}
    patience: 20s
    retries: {attempts: 4, wait: 250ms, style: polite}
world:
  provider:
    capacity: 3
    first_token: {lognormal: {median: 100ms, p95: 1s}}
    per_prompt_token: 0.1ms
    per_token: {exponential: {mean: 10ms}}
    failure_rate: 2.5%
    abandoned: continues
  stores: {latency: {lognormal: {median: 1ms, p95: 2ms}}}
settings:
  turn_seconds_max: 70.5
  log_level: error
  guards: {unified: {fallbacks: [cache, apology], breaker: {failures_max: 3}}, memory: {retry: {attempts_max: 1}}}
faults:
  - provider_slow: {at: 10s, for: 5s, factor: 2.5}
  - provider_failing: {at: 10s, for: 5s, rate: 60%}
  - store_down: {at: 0, for: 90s, store: memories}
expectations:
  - {before: fault, success_rate: ">= 99%"}
  - {during: provider_slow, within: 3s, breaker: unified opens}
  - {after: fault, within: 5s, p95: < 5s, failures: <= 3}
  - {always: accounted}
  - {always: levels_in_order}
  - {always: run, breaker: closed}
  - {after: fault, goodput: ">= 90%", retry_amplification: "<= 1.5", level: at most ESSENTIAL}
"""
LEAST = "name: least\nduration: 1s\nworkload: {open_loop: {rate: 1/s}}\n"


def refused(text: str) -> list[str]:
    with pytest.raises(Unreadable) as caught:
        parse(text, "s.yaml")
    return str(caught.value).splitlines()


def test_everything_that_a_file_may_say_is_read_with_its_units():
    it = parse(WHOLE)
    assert it.duration == 90
    assert it.workload == OpenLoop(
        rate=5.0,
        users=7,
        turns_per_session=2,
        context_tokens=Constant(10),
        generated_tokens=Exponential(5),
        patience=Constant(20.0),
        retries=Retries(attempts=4, wait=0.25, style="polite"),
    )
    assert it.world.provider.first_token == Lognormal(0.1, 1.0)
    assert it.world.provider.per_prompt_token == Constant(0.0001)
    assert it.world.provider.failure_rate == 0.025
    assert it.world.provider.abandoned == "continues"
    assert it.settings == {
        "turn_seconds_max": 70.5,
        "log_level": "error",
        "guards.unified.fallbacks": "cache,apology",
        "guards.unified.breaker.failures_max": 3,
        "guards.memory.retry.attempts_max": 1,
    }
    chosen = settings_of(it.settings)
    assert chosen.turn_seconds_max == 70.5
    assert chosen.guards.unified.fallbacks == ("cache", "apology")
    assert chosen.guards.unified.breaker == BreakerPolicy(failures_max=3)
    assert (chosen.guards.memory.retry.attempts_max, chosen.guards.alternate) == (1, GuardPolicy())
    assert it.faults == (
        ProviderSlow(at=10, lasts=5, factor=2.5),
        ProviderFailing(at=10, lasts=5, rate=0.6),
        StoreDown(at=0, lasts=90, store="memories"),
    )
    assert it.expectations[2] == Expectation(
        after="fault", within=5, p95=Comparison("<", 5), failures=Comparison("<=", 3)
    )


def test_the_least_file_has_sensible_defaults():
    it = parse(LEAST)
    assert it.faults == it.expectations == ()
    assert it.world.provider.capacity > 1
    assert (it.workload.retries, it.world.provider.abandoned) == (None, "stops")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: a\nname: b\n" + LEAST[12:], "line 2, column 1: name: comes twice, first on line 1"),
        (LEAST + "fault: []", "line 4, column 1: fault: unknown key: did you mean faults?"),
        (LEAST.replace("1s", "1"), "line 2, column 11: duration: 1 has no unit: write 1s"),
        (LEAST.replace("1s", "-1s"), "duration: -1s is negative"),
        (LEAST.replace("1s", "0"), "duration: 0 leaves no time"),
        (LEAST.replace("1s", ".nan"), ".nan"),
        (LEAST.replace("1s", "900h"), "longer than 30 days"),
        (LEAST.replace("1s", "1:30"), "'1:30' is no duration"),
        (LEAST.replace("1/s", "5"), "workload.open_loop.rate: '5' is no rate"),
        (LEAST.replace("1/s", "-5/s"), "negative"),
        (LEAST.replace("1/s", "0/s"), "out of bounds"),
        (LEAST.replace("open_loop", "open_lop"), "workload.open_lop: unknown: did you mean open_loop?"),
        (LEAST.replace("{open_loop: {rate: 1/s}}", "12"), "workload: write a mapping with exactly one of these keys"),
        (LEAST.replace("1/s}", "1/s, users: 1.5}"), "users: '1.5' is no whole number"),
        (LEAST.replace("1/s}", "1/s, users: 0}"), "users: 0 is out of bounds"),
        (LEAST.replace("1/s}", "1/s, patience: 0}"), "patience: 0 is out of bounds"),
        (LEAST.replace("1/s}", "1/s, context_tokens: -3}"), "-3 is negative"),
        (LEAST.replace("1/s}", "1/s, retries: {attempts: 1}}"), "retries.attempts: 1 is out of bounds: write 2 to 100"),
        (LEAST.replace("1/s}", "1/s, retries: {wait: 1}}"), "retries.wait: 1 has no unit"),
        (
            LEAST.replace("1/s}", "1/s, retries: {style: rude}}"),
            "retries.style: 'rude' is unknown: known are naive, polite",
        ),
        (LEAST + "world: {provider: {abandoned: stop}}", "abandoned: 'stop' is unknown: did you mean stops?"),
        (LEAST.replace("1/s}", "1/s, context_tokens: {lognormal: {median: 2, p95: 1}}}"), "p95: is below the median"),
        (LEAST.replace("1/s}", "1/s, context_tokens: {exponential: {mean: 0}}}"), "mean: 0 is out of bounds"),
        (LEAST.replace("least", "' '"), "name: is empty"),
        (LEAST.replace("least", "x" * 2001), "at most 2000"),
        (LEAST.replace("least", ""), "name: has no value"),
        (LEAST.replace("least", "[a]"), "name: write a single value"),
        ("duration: 1s", "name is missing: add it (short, for reports)"),
        (LEAST + "faults: 3", "faults: write a list"),
        (LEAST + "faults: [" + "{}," * 201 + "]", "has 201 items"),
        (LEAST + "faults: [{store_down: {at: 0, for: 1s, store: redis}}]", "'redis' is unknown: known are sessions"),
        (LEAST + "faults: [{store_down: {at: 2s, for: 1s, store: memories}}]", "faults[0].store_down.at: 2s is after"),
        (LEAST + "faults: [{store_down: {at: 0, for: 2s, store: memories}}]", "for: ends at 2s, after the run's 1s"),
        (LEAST + "faults: [{store_down: {at: 0, for: 0s, store: memories}}]", "0 lasts no time"),
        (LEAST + "faults: [{provider_slow: {at: 0, for: 1s, factor: 1}}]", "factor: 1 is out of bounds"),
        (LEAST + "faults: [{provider_failing: {at: 0, for: 1s, rate: 0%}}]", "0% makes nothing fail"),
        (LEAST + "faults: [{provider_failing: {at: 0, for: 1s, rate: 60}}]", "did you mean 60%?"),
        (
            LEAST + "settings: {log_levl: error}",
            "line 4, column 22: settings.log_levl: is no setting: did you mean log_level?",
        ),
        (
            LEAST + "settings:\n  guards:\n    unified:\n      breaker: {failure_max: 3}",
            "line 7, column 30: settings.guards.unified.breaker.failure_max: is no setting: "
            "did you mean guards.unified.breaker.failures_max?",
        ),
        (
            LEAST + "settings:\n  guards:\n    unified: {breaker: {probes_max: 0}}",
            "line 6, column 37: settings.guards.unified.breaker.probes_max: Input should be greater than or equal to 1",
        ),
        (
            LEAST + "settings: {guards: {memory: {breaker: {open_seconds: 90}}}}",
            "settings.guards.memory.breaker: open_seconds is above open_seconds_max",
        ),
        (LEAST + "settings: {guards: {memory: 3}}", "settings.guards.memory: is a table of settings: write its keys"),
        (LEAST + "settings: {guards: {memory: [3]}}", "settings.guards.memory: is a table of settings: write its keys"),
        (
            LEAST + "settings: {log_level: {error: 1}}",
            "settings.log_level.error: is no setting: did you mean log_level?",
        ),
        (LEAST + "settings: {guards: {unified: {fallbacks: [prayer]}}}", "settings.guards.unified.fallbacks.0: Input"),
        (LEAST + "settings: {guards: {unified: {fallbacks: [[cache]]}}}", "fallbacks[0]: write a single value"),
        (LEAST + "settings: {guards.unified.retry.attempts_max: 1}", "a key is one word: write what follows the dot"),
        (
            LEAST + "settings: {alternate_url: 'http://x'}",
            "settings.alternate_url: has no meaning in a simulated world",
        ),
        (LEAST + "settings: {port: 3}", "settings.port: has no meaning in a simulated world"),
        (LEAST + "settings: {store_seconds_max: -1}", "settings.store_seconds_max: Input should be greater than 0"),
        (LEAST + "settings: {store_seconds_max: .inf}", "not a finite decimal number"),
        (LEAST + "settings: {store_seconds_max: 99}", "settings: store_seconds_max and turn_seconds_max"),
        (LEAST + "settings: 3", "settings: write a mapping"),
        (LEAST + "expectations: [{always: acounted}]", "'acounted' is unknown: write run, accounted"),
        (LEAST + "expectations: [{always: accounted, p95: < 1s}]", "accounted stands alone"),
        (
            LEAST + "expectations: [{before: fault, p95: < 1s}]",
            "before: this scenario has no faults: add one, or expect it `always`",
        ),
        (LEAST + "expectations: [{p95: < 1s}]", "name one window, not none"),
        (LEAST + "expectations: [{always: run, before: fault, p95: < 1s}]", "not before and always"),
        (LEAST + "expectations: [{always: run}]", "expects nothing"),
        (LEAST + "expectations: [{always: run, breaker: melts}]", "'melts' is unknown"),
        (LEAST + "expectations: [{always: run, level: at least}]", "level: 'at least' is unknown: write `at least`"),
        (LEAST + "expectations: [{always: run, level: below NORMAL}]", "and one of NORMAL, LIMITED, ESSENTIAL"),
        (LEAST + "expectations: [{always: accounted, level: NORMAL}]", "accounted stands alone"),
        (LEAST + "expectations: [{always: run, p95: 5s}]", "'5s' is no bound"),
        (LEAST + "expectations: [{always: run, p95: < 5}]", "5 has no unit"),
        (LEAST + "expectations:\n  - always: run\n    p95: > 5s", "needs quotes"),
        ("name: &a x\nb: *a", "line 1, column 7: the anchor &a is not supported"),
        ("name: !!python/object:os.system x", "the tag tag:yaml.org,2002:python/object:os.system is not supported"),
        ("name: x\n---\nname: y", "line 2, column 1: a second document"),
        ("name:\n\t- x", "line 2, column 1: a tab cannot indent"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
        ("a: [1", "is not closed"),
        ("a: @b", "in quotes"),
        ("a: \x07", "line 1, column 4: the character U+0007"),
        ("[" * 50, f"at most {DEPTH_MAX} levels"),
        ("- a", "line 1, column 1: write a mapping here"),
        ("", "line 1, column 1: the file is empty"),
        ("# only a comment", "the file is empty"),
        ("? [a]\n: b", "a key must be a plain word"),
        ("<<: {a: b}", "<<: unknown key"),
    ],
)
def test_what_is_wrong_is_told_with_place_path_and_cure(text, says):
    lines = refused(text)
    assert any(says in line for line in lines), lines
    assert all(line.startswith("s.yaml: line ") for line in lines)


def test_all_that_is_wrong_is_told_at_once_in_the_order_of_the_file():
    lines = refused(WHOLE.replace("7", "x").replace("60%", "600%").replace("99%", "99").replace("error", "loud"))
    places = [line.split(": ")[2] for line in lines]
    assert places == [
        "workload.open_loop.users",
        "settings.turn_seconds_max",
        "settings.log_level",
        "faults[1].provider_failing.rate",
        "expectations[0].success_rate",
    ]


def test_many_problems_are_cut_short():
    lines = refused(LEAST + "".join(f"k{n}: 1\n" for n in range(100)))
    assert len(lines) == PROBLEMS_MAX + 1
    assert lines[-1].endswith("and 80 more")


def test_a_billion_laughs_is_refused_before_it_unfolds():
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    assert "not supported" in refused("a0: &a0 [lol]\n" + "\n".join(levels))[0]


def test_files_are_read_as_utf_8_with_or_without_a_mark_and_bounded(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + LEAST.replace("least", "größte").replace("\n", "\r\n").encode())
    assert load(path).name == "größte"
    path.write_bytes(LEAST.replace("least", "größte").encode("latin-1"))
    with pytest.raises(Unreadable, match="line 1, column 9: this is not UTF-8"):
        load(path)
    path.write_bytes(b"#" * (BYTES_MAX + 1))
    with pytest.raises(Unreadable, match="are too many"):
        load(path)
    with pytest.raises(Unreadable, match=r"cannot be read \(No such file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(Unreadable, match=r"cannot be read \(Is a directory"):
        load(tmp_path)


@given(
    st.text(alphabet=st.characters(codec="utf-8"), max_size=200) | st.text("{}[]:,-&*!|>'\"%@` \n\tab1", max_size=60)
)
def test_whatever_the_text_it_is_read_or_refused(text):
    with contextlib.suppress(Unreadable):  # and nothing else
        parse(text)


def test_the_schema_is_one_and_takes_what_the_reader_takes():
    it = json.loads(json.dumps(schema()))
    jsonschema.Draft202012Validator.check_schema(it)
    validator = jsonschema.Draft202012Validator(it)
    for text in (WHOLE, LEAST):
        assert list(validator.iter_errors(yaml.safe_load(text))) == []


@pytest.mark.parametrize(
    "more",
    [
        "fault: []",
        "faults: [{store_down: {at: 0, for: 1s, store: redis}}]",
        "faults: [{store_down: {at: 0, for: 5, store: memories}}]",
        "settings: {port: 3}",
        "expectations: [{always: run, p95: 5s}]",
        "world: {provider: {capacity: 0}}",
        "world: {provider: {failure_rate: 2}}",
        "world: {provider: {per_token: {lognormal: {median: 1s}}}}",
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(more):
    refused(LEAST + more)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(LEAST + more), schema())


def test_the_shipped_scenarios_are_valid(pytestconfig):
    files = sorted((pytestconfig.rootpath / "chaos" / "scenarios").glob("*.yaml"))
    assert files
    jsonschema.Draft202012Validator.check_schema(schema())
    validator = jsonschema.Draft202012Validator(schema())
    for path in files:
        load(path)
        validator.validate(yaml.safe_load(path.read_text()))


def test_a_trace_takes_the_place_of_the_workload():
    trace = Replay("t.csv", (Row(0.0, 1, 1), Row(99.5, 1, 1)))
    it = replaying(trace, parse(WHOLE))
    assert (it.duration, it.workload.rows, it.workload.patience) == (100.0, trace.rows, Constant(20.0))
    assert it.workload.retries.attempts == 4
    assert replaying(trace).expectations
    with pytest.raises(Unreadable, match=r"everything with the trace t.csv: .*faults\[0\].provider_slow.at"):
        replaying(Replay("t.csv", (Row(0.0, 1, 1),)), parse(WHOLE))


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (duration, "1h 2min 3s 4ms 5us", 3723.004005),
        (duration, "1.5s", 1.5),
        (duration, "0", 0.0),
        (rate, "90/min", 1.5),
        (rate, "36 / h", 0.01),
        (share, "99.5%", 0.995),
        (share, "0.25", 0.25),
        (count, "1e3", 1000.0),
    ],
)
def test_quantities_are_read(read, text, value):
    assert read(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "s", "5m", "5 s 3", "1e3s", "٣s", "5sec", "nan", "∞"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match=r"no duration|finite"):
        duration(text)


@pytest.mark.parametrize("text", ["101%", "-1%", "nan", "inf%", "x", "1.01"])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(ValueError, match=r"share|finite"):
        share(text)


def test_a_bound_holds_or_not_and_nan_keeps_none():
    assert comparison("<= 5s", duration).holds(5)
    assert not comparison("< 5s", duration).holds(5)
    assert comparison("==0%", share).holds(0)
    assert not any(comparison(f"{sign} 1", count).holds(float("nan")) for sign in ("<", "<=", "==", ">=", ">"))


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (show_duration(0), "0s"),
        (show_duration(0.0000125), "12us"),
        (show_duration(0.35), "350ms"),
        (show_duration(4.25), "4.2s"),
        (show_duration(12.4), "12s"),
        (show_duration(90), "90s"),
        (show_duration(600), "10min"),
        (show_duration(3661), "1h 1min 1s"),
        (show_duration(float("nan")), "-"),
        (show_factor(1.423), "1.42x"),
        (show_factor(float("nan")), "-"),
        (show_share(0.99999), "99.99%"),
        (show_share(0.5), "50%"),
        (show_share(1.0), "100%"),
        (show_share(0.000001), "0.01%"),
        (show_count(12345), "12,345"),
        (show_count(float("nan")), "-"),
    ],
)
def test_numbers_are_shown_for_a_reader(shown, text):
    assert shown == text
