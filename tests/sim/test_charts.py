"""The charts draw the frames' own numbers: every artist is held against what the frame says."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from sim import charts
from sim.calibrate import calibrate
from sim.measures import COLUMNS
from sim.records import Call
from sim.statistics import mean
from sim.tune import AS_IT_IS

RATE, DOOR = "workload.open_loop.rate", "door"
AVAILABLE = {4.0: (1.0, 0.99, 1.0), 8.0: (0.9, 0.95, 0.85), 12.0: (0.6, 0.62, 0.58)}


@pytest.fixture
def swept():
    rows = []
    for point, (rate, shares) in enumerate(AVAILABLE.items()):
        for seed, share in enumerate(shares):
            numbers = dict.fromkeys(COLUMNS, 0.0)
            numbers |= {"availability": share, "p95": rate / 2 + seed, "goodput_per_second": rate * share}
            numbers |= {"level_normal_seconds": 100 * share, "level_limited_seconds": 100 * (1 - share)}
            rows.append({"point": point, "seed": seed, RATE: rate, "verdict": "PASSED", "error": "", **numbers})
    return pd.DataFrame(rows)


@pytest.fixture
def tried():
    """Trials 0 to 3: two of the front, one beaten, one that breaks a constraint; today's as well."""
    rows = [
        (AS_IT_IS, 0.90, 5.0, True, False),
        (0, 0.95, 4.0, True, True),
        (1, 0.91, 2.0, True, True),
        (2, 0.90, 4.5, True, False),
        (3, 0.99, 1.0, False, False),
    ]
    frame = pd.DataFrame(rows, columns=["trial", "availability", "p95", "feasible", "front"])
    return frame.assign(error="", availability_half_width=0.01, p95_half_width=9.0)


def summary(**rows):
    columns = ["unit", "first", "second", "difference", "low", "high", "verdict", "runs"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("measure")


COMPARED = summary(
    availability=("share", 0.8, 0.88, 0.08, 0.04, 0.12, "better", 10),
    p95=("seconds", 4.0, 5.0, 1.0, -0.4, 2.4, "no difference shown", 10),
    refusal_p95=("seconds", 1.0, 9.0, 8.0, 6.0, 10.0, "worse", 10),
    cost=("money", 0.0, 2.0, 2.0, 1.0, 3.0, "worse", 10),
)


def drawn(figure):
    FigureCanvasAgg(figure).draw()  # a bare figure's own canvas draws nothing
    return {axes.get_label(): axes for axes in figure.axes}


def bars(container):
    """The (low, high) of each error bar."""
    return [tuple(sorted(float(y) for _, y in segment)) for segment in container[2][-1].get_segments()]


def test_a_load_curve_is_the_mean_of_each_point_with_its_interval(swept):
    panels = drawn(charts.load_curve(swept, RATE))
    assert list(panels) == ["p95", "goodput_per_second", "availability"]
    container = panels["availability"].containers[0]
    assert container[0].get_xdata().tolist() == [4.0, 8.0, 12.0]
    estimates = [mean(shares) for shares in AVAILABLE.values()]
    np.testing.assert_allclose(container[0].get_ydata(), [each.value for each in estimates])
    wanted = [(max(each.low, 0), min(each.high, 1.0)) for each in estimates]  # no share is above one
    np.testing.assert_allclose(bars(container), wanted)
    assert wanted[0][1] == 1.0


def test_what_arrives_is_a_line_beside_goodput_where_the_rate_is_varied(swept):
    lines = {line.get_label(): line for line in drawn(charts.load_curve(swept, RATE))["goodput_per_second"].lines}
    assert lines["all that arrives"].get_xdata().tolist() == lines["all that arrives"].get_ydata().tolist()
    other = swept.rename(columns={RATE: "world.provider.capacity"})
    panels = drawn(charts.load_curve(other, "world.provider.capacity"))
    assert "all that arrives" not in [line.get_label() for line in panels["goodput_per_second"].lines]


def test_one_seed_is_drawn_without_an_interval(swept):
    container = drawn(charts.load_curve(swept[swept.seed == 0], RATE))["p95"].containers[0]
    assert all(low == high for low, high in bars(container))


def test_runs_with_an_error_are_left_out(swept):
    swept.loc[swept.seed == 2, ["error", "availability"]] = ["broken", 0.0]
    container = drawn(charts.load_curve(swept, RATE, ["availability"]))["availability"].containers[0]
    np.testing.assert_allclose(container[0].get_ydata(), [np.mean(shares[:2]) for shares in AVAILABLE.values()])


def two_doors(swept):
    second = swept.assign(point=swept.point + 3, p95=swept.p95 * 2)
    both = pd.concat([swept.assign(**{DOOR: "orchestrator"}), second.assign(**{DOOR: "service"})], ignore_index=True)
    columns = list(both.columns)
    return both[[*columns[:3], DOOR, *[name for name in columns[3:] if name != DOOR]]]


def test_another_path_gives_lines_of_their_own_which_differ_in_dash(swept):
    containers = drawn(charts.load_curve(two_doors(swept), RATE, ["p95"], by=DOOR))["p95"].containers
    assert [each.get_label() for each in containers] == ["door orchestrator", "door service"]
    assert [each[0].get_ydata().tolist() for each in containers] == [[3.0, 5.0, 7.0], [6.0, 10.0, 14.0]]
    assert len({each[0].get_linestyle() for each in containers}) == 2


def test_words_stand_in_order_on_their_axis(swept):
    frame = two_doors(swept)
    axes = drawn(charts.load_curve(frame[frame[RATE] == 8.0], DOOR, ["p95"]))["p95"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["orchestrator", "service"]
    assert axes.containers[0][0].get_ydata().tolist() == [5.0, 10.0]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"x": "nothing"}, f"nothing was not varied: take one of {RATE}, {DOOR}"),
        ({"x": RATE}, f"{DOOR} was varied as well: name it as `by`"),
    ],
)
def test_what_cannot_be_drawn_is_said(swept, arguments, wanted):
    with pytest.raises(charts.NothingToDraw, match=wanted):
        charts.load_curve(two_doors(swept), **arguments)


def test_no_run_is_nothing_to_draw(swept):
    with pytest.raises(charts.NothingToDraw, match="no run went on"):
        charts.load_curve(swept.assign(error="broken"), RATE)


def test_levels_are_stacked_to_the_whole_time(swept):
    axes = drawn(charts.time_in_levels(swept, RATE))["levels"]
    heights = {each.get_label(): [bar.get_height() for bar in each] for each in axes.containers}
    assert list(heights) == ["NORMAL", "LIMITED"]
    np.testing.assert_allclose(heights["NORMAL"], [np.mean(shares) for shares in AVAILABLE.values()])
    np.testing.assert_allclose(np.sum(list(heights.values()), axis=0), 1.0)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["4/s", "8/s", "12/s"]


def test_a_front_is_joined_what_breaks_a_constraint_is_hollow_and_today_is_marked(tried):
    axes = drawn(charts.pareto(tried, "p95", "availability"))["pareto"]
    lines = {line.get_label(): line for line in axes.lines}
    at = {name: list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for name, line in lines.items()}
    assert at["breaks a constraint"] == [(1.0, 0.99)]
    assert lines["breaks a constraint"].get_markerfacecolor() == "none"
    assert at["is beaten by another"] == [(4.5, 0.9)]
    assert at["as it is"] == [(5.0, 0.9)]
    joined = next(line for line in axes.lines if line.get_linestyle() == "--")
    assert joined.get_xdata().tolist() == [2.0, 4.0]
    assert [text.get_text() for text in axes.texts] == ["0", "1"]


def test_intervals_of_a_front_are_drawn_where_they_tell_points_apart(tried):
    container = drawn(charts.pareto(tried, "p95", "availability"))["pareto"].containers[0]
    across, along = ([np.ptp(each, axis=0) for each in bar.get_segments()] for bar in container[2])
    np.testing.assert_allclose(across, 0.0)  # 9 s, and all points lie within 4 s
    np.testing.assert_allclose(along, [(0.0, 0.02)] * 2)


def test_a_front_of_what_has_no_better_way_is_refused(tried):
    with pytest.raises(charts.NothingToDraw, match="openings has no better way"):
        charts.pareto(tried, "p95", "openings")


def test_differences_are_in_per_cent_of_the_first_with_a_word_each():
    axes = drawn(charts.differences(COMPARED, ("today", "other")))["differences"]
    assert [tick.get_text().split(" (")[0] for tick in axes.get_yticklabels()] == [
        "availability",
        "p95",
        "p95 of refusals",
    ]  # a cost of 0 has no per cent
    middles = [container[0].get_xdata()[0] for container in axes.containers]
    np.testing.assert_allclose(middles, [10.0, 25.0, charts.BEYOND_MAX])
    spans = [[x for x, _ in container[2][0].get_segments()[0]] for container in axes.containers]
    np.testing.assert_allclose(spans, [(5.0, 15.0), (-10.0, 60.0), (charts.BEYOND_MAX, charts.BEYOND_MAX)])
    words = [text.get_text().split("   ")[0] for text in axes.texts]
    assert words == ["better", "no difference shown", "worse"]
    looks = {(container[0].get_color(), container[0].get_marker()) for container in axes.containers}
    assert len(looks) == 3


def test_nothing_in_per_cent_is_nothing_to_draw():
    with pytest.raises(charts.NothingToDraw, match="every measure of the first is 0"):
        charts.differences(COMPARED.loc[["cost"]])


def test_fits_stand_on_what_was_recorded():
    chance = np.random.default_rng(1)
    first = chance.gamma(2, 0.2, 300)
    calls = [Call(float(at), float(took), float(took) + 1.0, 100, 51, False) for at, took in enumerate(first)]
    axes = drawn(charts.fits(calibrate(calls)))["time to first token, without its prompt"]
    records, chosen = axes.lines[:2]
    np.testing.assert_allclose(np.interp(0.5, records.get_ydata(), records.get_xdata()), np.median(first), rtol=0.02)
    assert chosen.get_label().startswith("gamma")
