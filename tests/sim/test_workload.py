"""Arrivals: a seeded open loop, and recorded traces."""

import subprocess
import sys
from itertools import islice, pairwise

import pytest

from sim.distributions import Constant, Exponential, Lognormal
from sim.entropy import Streams
from sim.forms import Unreadable
from sim.scenario import digest, entering, load, parse, write
from sim.workload import (
    TRACE_HEADER,
    ClosedLoop,
    OnOff,
    OpenLoop,
    Population,
    Recording,
    RetryBudget,
    TraceBroken,
    WebSockets,
    populations,
    read_trace,
)

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


def test_what_is_asked_does_not_change_with_how_many_come():
    slow = arrivals(OpenLoop(rate=1.0))
    fast = arrivals(OpenLoop(arrivals=OnOff(on=9.0, on_for=10.0, off_for=10.0)))
    same = min(len(slow), len(fast))
    assert same > 900
    assert [each._replace(at=0) for each in slow[:same]] == [each._replace(at=0) for each in fast[:same]]


def test_patience_is_drawn_for_each_turn():
    drawn = [each.patience_s for each in arrivals(OpenLoop(rate=10.0, patience=Exponential(20.0)))]
    assert sum(drawn) / len(drawn) == pytest.approx(20.0, rel=0.05)
    assert {each.patience_s for each in arrivals(OpenLoop(rate=1.0))} == {60.0}


def test_users_of_a_closed_loop_start_spread_and_think_before_they_go_on():
    load = ClosedLoop(users=10, think=Exponential(5.0), turns_per_session=3, start=20.0)
    chance = Streams(0).stream("x")
    starts = [next(load.visits(user, chance)).pause_s for user in range(10)]
    assert all(2.0 * user <= start < 2.0 * (user + 1) for user, start in enumerate(starts))
    visits = list(islice(load.visits(4, chance), 3000))
    thought = [each.pause_s for each in visits[1:]]
    assert sum(thought) / len(thought) == pytest.approx(5.0, rel=0.05)
    assert [each.turn.session for each in visits[:4]] == ["user-4/0"] * 3 + ["user-4/1"]
    assert {each.turn.user for each in visits} == {"user-4"}


def test_numbers_and_names_of_populations_do_not_meet():
    loads = (
        Population(name="public", open_loop=OpenLoop(rate=2.0)),
        Population(name="staff", closed_loop=ClosedLoop(users=3, think=Constant(1.0))),
        Population(name="apps", websockets=WebSockets(connections=5, rate=2.0)),
    )
    (public, first), (staff, second), (apps, third) = populations(loads)
    chance = Streams(0).stream("x")
    came = [
        *first.coming(100.0, chance, public),
        *(visit.turn for user in range(3) for visit in islice(second.visits(user, chance, staff), 30)),
        *(turn for _, turn in third.coming(100.0, chance, apps)),
    ]
    assert len(came) > 400
    assert len({each.number for each in came}) == len({each.message for each in came}) == len(came)
    users = [{each.user for each in came if each.user.startswith(name)} for name in ("public.", "staff.", "apps.")]
    assert sum(map(len, users)) == len({each.user for each in came})


def test_clients_with_websockets_chat_once_all_have_started():
    load = WebSockets(connections=5, rate=2.0, start=30.0)
    came = list(load.coming(100.0, Streams(0).stream("x")))
    assert len(came) == pytest.approx(140, rel=0.2)
    assert 30 <= came[0][1].at <= came[-1][1].at < 100
    assert {number for number, _ in came} == set(range(5))
    assert all(turn.session == turn.user == f"socket-{number}" for number, turn in came)
    assert list(WebSockets(connections=5).coming(100.0, Streams(0).stream("x"))) == []


def recording(tmp_path, **more):
    rows = [f"2023-11-16 18:15:{second:02}.0000000,{second + 1},7" for second in range(0, 50, 5)]
    (tmp_path / "trace.csv").write_text("\n".join([HEADER, *rows]))
    return Recording(file="trace.csv", **more).read(tmp_path)


def test_a_part_of_a_trace_is_replayed_faster_or_slower(tmp_path):
    replay = recording(tmp_path, speed=2.0, start=10.0, lasts=20.0)
    assert [(row.at, row.context_tokens) for row in replay.rows] == [(0.0, 11), (2.5, 16), (5.0, 21), (7.5, 26)]
    assert recording(tmp_path, speed=0.5).duration_s == 90.0
    assert (replay.source, replay.is_named, read_trace(tmp_path / "trace.csv").is_named) == ("trace.csv", True, False)


def test_a_scenario_names_its_trace_as_seen_from_its_own_folder(tmp_path, monkeypatch):
    recording(tmp_path)
    (tmp_path / "s.yaml").write_text(
        "name: r\nduration: 50s\nworkload:\n  replay: {file: trace.csv, from: 20s, patience: 9s}\n"
    )
    monkeypatch.chdir("/")
    story = load(tmp_path / "s.yaml")
    assert [row.at for row in story.workload.rows] == [0.0, 5.0, 10.0, 15.0, 20.0, 25.0]
    assert story.workload.patience == Constant(9.0)
    assert parse(write(story), folder=tmp_path) == story
    (tmp_path / "trace.csv").write_text(f"{HEADER}\n2023-11-16 18:15:46.0000000,1,1\n")
    assert digest(parse(write(story).replace("from: 20", "from: 0"), folder=tmp_path)) != digest(story)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("file: gone.csv", "workload.replay.file: gone.csv: cannot be read (No such file or directory)"),
        ("file: trace.csv, from: 2min", "workload.replay.file: trace.csv: lasts 45s, and has nothing in the part"),
        ("file: bad.csv", "workload.replay.file: bad.csv: row 2: has 1 of 3 columns"),
        ("file: trace.csv, speed: 0", "workload.replay.speed: 0 is out of bounds"),
        ("file: trace.csv, for: 0", "workload.replay.for: 0 is nothing of the trace"),
        ("speed: 2", "workload.replay: file is missing: add it"),
    ],
)
def test_a_trace_that_cannot_be_replayed_is_told_with_its_place(tmp_path, said, problem):
    recording(tmp_path)
    (tmp_path / "bad.csv").write_text(f"{HEADER}\n1\n")
    (tmp_path / "s.yaml").write_text(f"name: r\nduration: 50s\nworkload:\n  replay: {{{said}}}\n")
    with pytest.raises(Unreadable) as refused:
        load(tmp_path / "s.yaml")
    assert problem in str(refused.value)
    assert all(each.line == 4 for each in refused.value.problems)


@pytest.mark.parametrize(
    ("workload", "problem"),
    [
        ("{open_loop: {users: 3}}", "workload.open_loop: rate is missing: add it"),
        ("{open_loop: {rate: 1/s, arrivals: {daily: {mean: 1/s, swing: 10%}}}}", "open_loop.arrivals: says how many"),
        ("{open_loop: {arrivals: {modulated: {states: [{for: 1s}]}}}}", "states: 1 are out of bounds: write 2 to 20"),
        (
            "{open_loop: {arrivals: {modulated: {states: [{for: 1s}, {for: 0}]}}}}",
            "workload.open_loop.arrivals.modulated.states[1].for: 0 lasts no time",
        ),
        ("{open_loop: {arrivals: {modulated: {states: [{for: 1s}, {for: 2s}]}}}}", "states: no state has a rate"),
        ("{open_loop: {arrivals: {on_off: {on: 5/s, on_for: 0, off_for: 1s}}}}", "on_off.on_for: 0 lasts no time"),
        ("{open_loop: {arrivals: {profile: {rates: []}}}}", "profile.rates: 0 are out of bounds: write 1 to 168"),
        ("{open_loop: {arrivals: {profile: {rates: [5]}}}}", "workload.open_loop.arrivals.profile.rates[0]: '5' is no"),
        ("{open_loop: {arrivals: {daily: {mean: 1/s, swing: 110%}}}}", "daily.swing: 110% is out of bounds"),
        ("{open_loop: {rate: 1/s, stream: yes}}", "open_loop.stream: 'yes' is neither: write true or false"),
        ("{open_loop: {rate: 1/s, retries: {budget: 20}}}", "retries.budget: 20 is out of bounds"),
        ("{closed_loop: {users: 0, think: 1s}}", "closed_loop.users: 0 is out of bounds"),
        ("{closed_loop: {users: 2}}", "workload.closed_loop: think is missing: add it (from an answer"),
        ("{websockets: {connections: 2, ping_every: 0}}", "websockets.ping_every: 0 is no time"),
        ("{websockets: {connections: 2, retries: {wait: 0}}}", "websockets.retries.wait: 0 would try without a pause"),
        ("{websockets: {connections: 2}}", "door: WebSockets end at the service, not at the orchestrator: write `door"),
        ("[]", "workload: is empty: name at least one population"),
        ("[{name: a}]", "workload[0]: name one kind of clients, not none: one of open_loop, closed_loop, replay, web"),
        ("[{name: A b, open_loop: {rate: 1/s}}]", "workload[0].name: 'A b' is no name"),
        (
            "[{name: a, open_loop: {rate: 1/s}}, {name: a, open_loop: {rate: 1/s}}]",
            "workload[1].name: 'a' comes twice",
        ),
        ("[{open_loop: {rate: 1/s}}]", "workload[0]: name is missing"),
    ],
)
def test_what_is_wrong_with_a_population_names_the_field_and_the_cure(workload, problem):
    with pytest.raises(Unreadable) as refused:
        parse(f"name: w\nduration: 50s\nworkload: {workload}\n")
    assert problem in str(refused.value)


def test_who_has_no_connection_cannot_lose_it():
    fault = "faults: [{clients_disconnected: {at: 1s, for: 1s}}]\n"
    with pytest.raises(Unreadable, match=r"faults\[0\].clients_disconnected: nobody has a connection to lose"):
        parse(f"name: w\nduration: 50s\nworkload: {{open_loop: {{rate: 1/s}}}}\n{fault}")
    with pytest.raises(Unreadable, match=r"clients_disconnected.share: 0% cuts no connection"):
        parse(
            f"name: w\nduration: 50s\nworkload: {{open_loop: {{rate: 1/s}}}}\n{fault.replace('1s}', '1s, share: 0%}')}"
        )


def test_a_door_that_takes_no_websockets_is_refused_with_the_cure():
    story = parse("name: w\nduration: 5s\ndoor: service\nworkload: {websockets: {connections: 2}}\n")
    assert entering(story, "service") == story
    with pytest.raises(Unreadable, match=r"w at the door orchestrator: .*write `door: service`"):
        entering(story, "orchestrator")


def test_a_budget_bounds_retries_to_a_share_of_turns():
    budget = RetryBudget(0.2)
    assert [budget.take() for _ in range(12)] == [True] * 10 + [False] * 2
    for _ in range(9):
        budget.earn()
    assert [budget.take(), budget.take()] == [True, False]
    assert all(RetryBudget(None).take() for _ in range(1000))
