"""Arrivals: a seeded open loop, and recorded traces."""

import subprocess
import sys
from itertools import pairwise

import pytest

from sim.distributions import Constant, Exponential, Lognormal
from sim.entropy import Streams
from sim.workload import TRACE_HEADER, OpenLoop, TraceBroken, read_trace

HEADER = ",".join(TRACE_HEADER)
GOOD = f"{HEADER}\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"


def arrivals(load: OpenLoop, duration_s: float = 1000.0, seed: int = 0):
    return list(load.coming(duration_s, Streams(seed).stream("arrivals")))


def test_arrivals_come_at_the_rate_in_order_and_within_the_duration():
    came = arrivals(OpenLoop(rate=10.0))
    assert len(came) == pytest.approx(10_000, rel=0.04)
    assert all(a.at < b.at for a, b in pairwise(came))
    assert came[-1].at < 1000
    assert [each.number for each in came] == list(range(1, len(came) + 1))


def test_gaps_are_exponential():
    came = arrivals(OpenLoop(rate=10.0))
    gaps = [b.at - a.at for a, b in pairwise(came)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert deviation == pytest.approx(mean, rel=0.04)


def test_the_same_seed_gives_the_same_arrivals_and_another_others():
    load = OpenLoop(rate=5.0)
    assert arrivals(load) == arrivals(load)
    assert arrivals(load) != arrivals(load, seed=1)


def test_every_arrival_spends_as_many_draws_whatever_its_tokens():
    times = [
        [each.at for each in arrivals(OpenLoop(rate=5.0, context_tokens=tokens, generated_tokens=tokens))]
        for tokens in (Constant(1), Exponential(100), Lognormal(10, 1000))
    ]
    assert times[0] == times[1] == times[2]


def test_a_session_has_its_turns_and_belongs_to_one_user():
    sessions: dict[str, list] = {}
    for each in arrivals(OpenLoop(rate=5.0, users=10, turns_per_session=4)):
        sessions.setdefault(each.session, []).append(each)
    assert {len(turns) for turns in sessions.values()} <= {1, 2, 3, 4}
    assert sum(len(turns) == 4 for turns in sessions.values()) > len(sessions) - 11
    assert all(len({turn.user for turn in turns}) == 1 for turns in sessions.values())
    assert len({turns[0].user for turns in sessions.values()}) == 10


def test_messages_are_unique():
    messages = [each.message for each in arrivals(OpenLoop(rate=5.0))]
    assert len(set(messages)) == len(messages)


@pytest.mark.parametrize(
    ("distribution", "mean", "p95"),
    [(Constant(3.0), 3.0, 3.0), (Exponential(2.0), 2.0, 5.99), (Lognormal(1.0, 4.0), Lognormal(1.0, 4.0).mean, 4.0)],
)
def test_distributions_have_the_mean_and_the_percentile_they_say(distribution, mean, p95):
    chance = Streams(0).stream("x")
    drawn = sorted(distribution.draw(chance) for _ in range(40_000))
    assert sum(drawn) / len(drawn) == pytest.approx(mean, rel=0.03)
    assert drawn[int(0.95 * len(drawn))] == pytest.approx(p95, rel=0.03)
    assert distribution.mean == pytest.approx(mean)


def test_the_workload_is_light_enough_for_a_load_generator():
    heavy = "{'simpy', 'pandas', 'numpy', 'yaml', 'sanic', 'orchestra', 'asyncio'}"
    code = f"import sys, sim.workload; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def trace(tmp_path, text: str | bytes):
    path = tmp_path / "trace.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_trace(path)


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD.replace("\n", "\r\n"),
        "\ufeff" + GOOD,
        GOOD + "\n\n",
        GOOD.replace(",374", ", 374 "),
        GOOD.replace("900,", "900+00:00,").replace("690,", "690+00:00,"),
    ],
    ids=["plain", "crlf", "bom", "blank end", "spaces", "zone"],
)
def test_a_trace_is_read_to_its_seventh_digit(tmp_path, text):
    rows = trace(tmp_path, text).rows
    assert rows == ((0.0, 374, 44), (4.314579, 396, 109))


def test_a_trace_becomes_arrivals_of_sessions_of_their_own(tmp_path):
    came = list(trace(tmp_path, GOOD).coming(10.0, Streams(0).stream("arrivals")))
    assert [(each.at, each.context_tokens, each.generated_tokens) for each in came] == [
        (0, 374, 44),
        (4.314579, 396, 109),
    ]
    assert len({each.session for each in came}) == len({each.message for each in came}) == 2
    assert [each.user for each in came] == [None, None]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty: its first line must be TIMESTAMP,ContextTokens,GeneratedTokens"),
        ("\ufeff\r\n", "is empty"),
        (HEADER, "row 1: has a header and no rows"),
        (GOOD[len(HEADER) + 1 :], "row 1: the first line must be TIMESTAMP"),
        (GOOD.replace("396,109", "396"), "row 3: has 2 of 3 columns"),
        (GOOD.replace("396,109", "396,109,1"), "row 3: has 4 of 3 columns"),
        (GOOD.replace("374", "-1"), "row 2: ContextTokens '-1' is no count of tokens: write a whole number"),
        (GOOD.replace("374", "3.5"), "row 2: ContextTokens '3.5'"),
        (GOOD.replace("374", "٣"), "row 2: ContextTokens"),
        (GOOD.replace("374", ""), "row 2: ContextTokens ''"),
        (GOOD.replace("109", "99999999999"), "row 3: GeneratedTokens"),
        (GOOD.replace("109", "nan"), "row 3: GeneratedTokens 'nan'"),
        (GOOD.replace("18:15:50", "18:15:40"), "row 3: TIMESTAMP 2023-11-16 18:15:40.9951690 is before the row above"),
        (
            GOOD.replace("2023-11-16 18:15:50", "yesterday"),
            "row 3: TIMESTAMP 'yesterday.9951690' is no time: write it as",
        ),
        (GOOD.replace(".9951690", "."), "row 3: TIMESTAMP"),
        (GOOD.replace("690,", "690+00:00,"), "row 3: has a time zone where the first row has none"),
        (GOOD.replace("\n2023-11-16 18:15:50", "\n\n2023-11-16 18:15:50"), "row 3: has 0 of 3 columns"),
        (GOOD.replace("396", "3\0"), "row 3: contains a NUL"),
        (GOOD.encode("utf-16"), "row 1: is not UTF-8"),
        (GOOD.encode().replace(b"396", b"\xff"), "row 3: is not UTF-8"),
    ],
)
def test_a_broken_trace_is_refused_with_the_row_and_the_cure(tmp_path, text, says):
    with pytest.raises(TraceBroken) as caught:
        trace(tmp_path, text)
    assert str(caught.value).startswith("trace.csv: ")
    assert says in str(caught.value)


def test_the_recorded_hour_is_read_whole(pytestconfig):
    path = pytestconfig.rootpath.parent / "shared" / "data" / "azure_llm_2023_conv.csv"
    if not path.exists():
        pytest.skip("the Azure LLM trace is not here: the README says where to download it")
    rows = read_trace(path).rows
    assert len(rows) == 19_366
    assert rows[0] == (0.0, 374, 44)
    assert rows[-1].at == pytest.approx(3501.721937)
