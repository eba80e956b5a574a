"""The plots draw the journal's own numbers: every artist is held against what the journal says."""

import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from orchestra.events import BreakerChanged, CallFinished, CallRetried, FellBack, OperatorActed
from sim import ink, plots
from sim.evidence import Evidence
from sim.journal import (
    ClientArrived,
    ClientFinished,
    FaultEnded,
    FaultStarted,
    Journal,
    ProviderCallEnded,
    ProviderCallOutlived,
    ProviderCallStarted,
    RunStarted,
)
from sim.measures import percentile
from sim.scenario import parse
from sim.world import rehearse

STORY = """
name: a small brownout
duration: 90s
workload: {open_loop: {rate: 6/s, users: 30, generated_tokens: 50, context_tokens: 100, patience: 30s}}
world:
  provider: {capacity: 8, first_token: {exponential: {mean: 200ms}}, per_prompt_token: 0.1ms, per_token: 5ms}
settings: {guards: {unified: {breaker: {open_seconds: 4, failures_max: 3}}}}
faults:
  - provider_slow: {at: 20s, for: 40s, factor: 4}
  - provider_failing: {at: 40s, for: 20s, rate: 90%}
"""
CAPACITY = 8


@pytest.fixture(scope="module")
def run():
    return rehearse(parse(STORY), seed=1)


@pytest.fixture(scope="module")
def journal(run):
    return run.journal


@pytest.fixture(scope="module")
def panels(run):
    return axes_of(plots.timeline(run))


def axes_of(figure: Figure) -> SimpleNamespace:
    return SimpleNamespace(**{axes.get_label(): axes for axes in figure.axes})


def of(journal, kind):
    return [entry for entry in journal if isinstance(entry, kind)]


def steps_of(axes):
    """The filled steps of a panel by label: heights above their baselines."""
    data = {patch.get_label(): patch.get_data() for patch in axes.patches if hasattr(patch, "get_data")}
    return {label: each.values - each.baseline for label, each in data.items()}, next(iter(data.values())).edges


def extents(collection):
    """The (start, end) of every bar of a `broken_barh`."""
    return [(box.x0, box.x1) for path in collection.get_paths() for box in [path.get_extents()]]


def rendered(figure):
    FigureCanvasAgg(figure).draw()  # a bare figure's own canvas draws nothing
    return figure


def test_a_run_fills_all_panels(panels):
    assert list(vars(panels)) == ["faults", "turns", "latency", "breakers", "levels", "helped", "provider"]
    titles = [axes.get_title("left") for axes in vars(panels).values()]
    assert titles == [
        "Faults",
        "Turns that arrived in each 1s, by how they ended",
        "Latency of the answered turns, by when they arrived",
        "Circuit breakers",
        "Degradation level",
        "Retries, hedges and fallbacks in each 1s",
        "Calls at the provider, the most at once in each 1s",
    ]


def test_turns_stand_in_the_bucket_in_which_they_arrived(panels, journal):
    counts, edges = steps_of(panels.turns)
    arrived = {entry.arrival: entry.at for entry in of(journal, ClientArrived)}
    assert edges.tolist() == list(range(91))
    assert list(counts) == ["answered", "failed", "shed"]
    for outcome, drawn in counts.items():
        expected = [0] * 90
        for entry in of(journal, ClientFinished):
            expected[int(arrived[entry.arrival])] += entry.outcome == outcome
        assert drawn.tolist() == expected
        assert sum(expected) > 0


def test_outcomes_are_stacked_so_that_their_top_is_all_arrivals(panels, journal):
    top = max((patch for patch in panels.turns.patches if hasattr(patch, "get_data")), key=lambda p: p.get_label())
    assert top.get_label() == "shed"
    assert top.get_data().values.sum() == len(of(journal, ClientArrived))


def test_latency_is_that_of_answered_turns_and_has_gaps_where_there_are_none(panels, journal):
    lines = {line.get_label(): line.get_ydata() for line in panels.latency.lines}
    assert list(lines) == ["p95", "p50"]
    arrived = {entry.arrival: entry.at for entry in of(journal, ClientArrived)}
    seconds = [[] for _ in range(90)]
    for entry in of(journal, ClientFinished):
        if entry.outcome == "answered":
            seconds[int(arrived[entry.arrival])].append(entry.seconds)
    for name, q in (("p50", 0.5), ("p95", 0.95)):
        np.testing.assert_allclose(lines[name], [percentile(each, q) for each in seconds])
    assert np.isnan(lines["p50"]).any()
    assert panels.latency.get_yscale() == "log"


def test_each_breaker_has_a_lane_without_gaps(panels, journal):
    names = [tick.get_text() for tick in panels.breakers.get_yticklabels()]
    assert names == ["unified", "memory"]
    bars = {each.get_label(): extents(each) for each in panels.breakers.collections}
    changes = [change for change in of(journal, BreakerChanged) if change.breaker == "unified"]
    ends = [change.at for change in changes[1:]] + [90.0]
    for state in ("CLOSED", "HALF_OPEN", "OPEN"):
        expected = [(c.at, end) for c, end in zip(changes, ends, strict=True) if c.after == state]
        drawn = bars[f"0 {state}"]
        if state == "CLOSED":
            expected = [(0.0, changes[0].at), *expected]
        np.testing.assert_allclose(drawn, expected)
        assert len(drawn) > 0
    assert bars["1 CLOSED"] == [(0.0, 90.0)]


def test_provider_load_is_exact_and_never_above_capacity(panels, journal):
    loads, edges = steps_of(panels.provider)
    assert loads["served"].max() == CAPACITY
    together = loads["served"] + loads["queued"]
    for entry in of(journal, ProviderCallStarted):  # each tells what it met: itself comes on top
        assert together[int(entry.at)] >= entry.serving + entry.queued + 1
    assert together.max() == max(entry.serving + entry.queued + 1 for entry in of(journal, ProviderCallStarted))
    assert loads["queued"].max() > 0
    assert len(edges) == 91


def test_a_queue_stands_where_calls_wait_and_calls_in_it_are_not_served():
    journal = Journal([RunStarted(0.0, "x", 0, "orchestrator", 10.0, {})])
    for call, (came, queued_s, left) in enumerate([(1.0, 0.0, 3.0), (1.5, 1.5, 5.5), (2.0, 2.5, 4.5)]):
        journal.record(ProviderCallEnded(left, call, "answered", queued_s, left - came, 1, 1))
    loads, _ = steps_of(axes_of(plots.timeline(journal)).provider)
    assert loads["served"].tolist() == [0, 1, 1, 1, 1, 1, 0, 0, 0, 0]  # the third was dropped while it waited
    assert loads["queued"].tolist() == [0, 1, 2, 1, 1, 0, 0, 0, 0, 0]


def test_faults_are_named_and_shaded_through_all_panels(panels, journal):
    spans = [(20.0, 60.0), (40.0, 60.0)]
    assert [(entry.at) for entry in of(journal, FaultStarted)] == [20.0, 40.0]
    for axes in vars(panels).values():
        shades = [patch for patch in axes.patches if not hasattr(patch, "get_data")]
        assert [(shade.get_x(), shade.get_x() + shade.get_width()) for shade in shades] == spans
    assert [text.get_text() for text in panels.faults.texts] == ["provider 4x slower", "provider failing 90%"]
    assert [extents(each)[0] for each in panels.faults.collections] == spans


def test_time_is_written_as_clocks_are(panels):
    axis = panels.provider.xaxis
    assert [axis.get_major_formatter()(value) for value in (0, 30, 90)] == ["0:00", "0:30", "1:30"]
    assert ink.clock(3723) == "1:02:03"
    assert panels.provider.get_xlim() == (0, 90)


def test_the_heading_says_what_happened(run):
    heading = plots.timeline(run).get_suptitle()
    count = run.verdict.accounting
    assert heading == (
        f"a small brownout: {count.answered:,} of {count.arrivals:,} turns answered, "
        f"{count.failed:,} failed, {count.shed:,} shed"
    )
    assert plots.timeline(run, heading=False).get_suptitle() == ""


def test_curves_end_at_the_success_rate_of_their_phase(run):
    figure = plots.answered_within(run)
    lines = {line.get_label().split(":")[0]: line for line in figure.axes[0].lines}
    evidence = Evidence(run.journal)
    assert list(lines) == ["before the faults", "during the faults", "after the faults"]
    for name in ("before", "during", "after"):
        turns = evidence.turns(evidence.window(name, "fault"))
        answered = sorted(turn.seconds for turn in turns if turn.outcome == "answered")
        times, shares = lines[plots.WORDS[name]].get_data()
        assert shares[-1] == pytest.approx(len(answered) / len(turns))
        middle = np.searchsorted(times, percentile(answered, 0.5))
        assert shares[middle] == pytest.approx(0.5 * len(answered) / len(turns), abs=0.02)


STEPS = [(20.0, "NORMAL", "LIMITED"), (40.0, "LIMITED", "ESSENTIAL"), (90.0, "ESSENTIAL", "LIMITED")]
HELP = [
    *(CallRetried(at, "c", "unified", 2, 0.1, "provider-failed") for at in (21.2, 21.4, 22.0)),
    FellBack(22.5, "c", "unified", "apology", "breaker-open"),
    OperatorActed(30.0, "level", "latch", "a drill"),
]


def test_levels_have_a_lane_without_gaps_which_says_for_how_long_and_who_acted(story):
    axes = axes_of(plots.timeline(story(turns=[(1.0, "answered", 1.0)], levels=STEPS, more=HELP))).levels
    bars = {each.get_label(): extents(each) for each in axes.collections}
    assert {level: drawn for level, drawn in bars.items() if drawn} == {
        "NORMAL": [(0.0, 20.0)],
        "LIMITED": [(20.0, 40.0), (90.0, 100.0)],
        "ESSENTIAL": [(40.0, 90.0)],
    }
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["NORMAL 20s", "LIMITED 30s", "ESSENTIAL 50s"]
    assert [line.get_xdata().tolist() for line in axes.lines] == [[30.0]]


def test_calls_that_were_retried_or_answered_by_another_are_counted_in_each_part(story):
    counts, edges = steps_of(axes_of(plots.timeline(story(turns=[(1.0, "answered", 1.0)], more=HELP))).helped)
    assert {
        name: {int(edges[part]): int(drawn[part]) for part in np.flatnonzero(drawn)} for name, drawn in counts.items()
    } == {
        "apology instead": {22: 1},
        "retried": {21: 2, 22: 1},
    }


def test_attempts_are_drawn_over_the_turns_where_clients_asked_again(story):
    turns = [(10.2, "answered", 1.0), (10.4, "failed", 1.0)]
    counts, _ = steps_of(axes_of(plots.timeline(story(turns=turns, retries=[(10.9, 2), (12.0, 2)]))).turns)
    assert counts["attempts"][10:13].tolist() == [3, 0, 1]
    assert "attempts" not in steps_of(axes_of(plots.timeline(story(turns=turns))).turns)[0]


def test_a_call_that_outlives_its_caller_is_served_to_its_own_end():
    journal = Journal([RunStarted(0.0, "x", 0, "orchestrator", 10.0, {})])
    journal.record(ProviderCallEnded(3.0, 1, "dropped", 0.0, 2.0, 1, 0))
    journal.record(ProviderCallOutlived(3.0, 1, 2.5))
    loads, _ = steps_of(axes_of(plots.timeline(journal)).provider)
    assert loads["served"].tolist() == [0, 1, 1, 1, 1, 1, 0, 0, 0, 0]


def test_goodput_and_amplification_of_several_runs_stand_on_one_axis_of_time(story):
    well = story(turns=[(float(at), "answered", 1.5) for at in range(90)], fault=(20.0, 40.0))
    ill = story(turns=[(float(at), "failed", 1.5) for at in range(90)], fault=(20.0, 40.0), retries=[(12.0, 12)])
    panels = axes_of(rendered(plots.goodput({"well": well, "ill": ill})))
    assert list(vars(panels)) == ["goodput", "amplification"]
    drawn = {line.get_label(): line.get_ydata()[:3] for line in panels.goodput.lines}
    np.testing.assert_allclose(drawn["well"], [4 / 5, 1, 1])  # the last answer to who came in a part comes in the next
    np.testing.assert_allclose(drawn["ill"], [0, 0, 0])
    drawn = {line.get_label(): line.get_ydata()[:4] for line in panels.amplification.lines}
    np.testing.assert_allclose(drawn["well"], [1, 1, 1, 1])
    np.testing.assert_allclose(drawn["ill"], [1, 1, 6 / 5, 1])
    for axes in vars(panels).values():
        assert [(shade.get_x(), shade.get_x() + shade.get_width()) for shade in axes.patches] == [(20.0, 40.0)]


def test_the_heat_map_holds_every_turn_once_answered_by_its_latency_others_above(run, journal):
    drawn = axes_of(rendered(plots.latency_heat(run)))
    (mesh,) = (each for each in drawn.latency_heat.collections if hasattr(each, "get_coordinates"))
    rows = mesh.get_coordinates()[:, 0, 1]
    held = np.ma.filled(mesh.get_array().reshape(len(rows) - 1, -1), 0)
    took = [entry.seconds for entry in of(journal, ClientFinished) if entry.outcome == "answered"]
    assert held.sum(axis=1).tolist() == np.histogram(took, rows)[0].tolist()
    assert held.sum() == len(took)
    unanswered, edges = steps_of(drawn.unanswered)
    assert sum(next(iter(unanswered.values()))) == len(of(journal, ClientFinished)) - len(took) > 0
    assert len(edges) <= plots.HEAT_PARTS_MAX + 1


def test_a_run_without_faults_has_no_fault_panel_and_one_curve(story):
    calm = story(turns=[(at, "answered", 0.5) for at in range(50)])
    assert [axes.get_label() for axes in plots.timeline(calm).axes] == ["turns", "latency", "provider"]
    (line,) = plots.answered_within(calm).axes[0].lines
    assert line.get_label() == "whole run: 100% answered"


def test_a_turn_at_the_very_end_is_drawn(story):
    counts, _ = steps_of(axes_of(plots.timeline(story(turns=[(100.0, "answered", 1.0)]))).turns)
    assert counts["answered"][-1] == 1


@pytest.mark.parametrize("entries", [(), (RunStarted(0.0, "cut off", 0, "orchestrator", 60.0, {}),)])
def test_a_journal_with_nothing_in_it_is_drawn_empty(entries):
    journal = Journal(entries)
    assert rendered(plots.timeline(journal)).axes
    assert rendered(plots.answered_within(journal)).axes
    assert rendered(plots.latency_heat(journal)).axes


def test_a_fault_that_never_ended_is_drawn_to_the_end(story):
    journal = story(turns=[(1.0, "shed", 0.1)], finished=False)
    journal.record(FaultStarted(10.0, 0, "store_down", "sessions store down"))
    figure = rendered(plots.timeline(journal))
    assert extents(axes_of(figure).faults.collections[0]) == [(10.0, 100.0)]


def test_nobody_answered_is_no_error(story):
    figure = plots.answered_within(story(turns=[(1.0, "shed", 0.1), (2.0, "failed", 9.0)]))
    assert rendered(figure).axes[0].lines[0].get_ydata().tolist() == [0.0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [r"$\frac{1$", "_under^score_", "\n\n", "x" * 500, "\N{SNOWMAN}"])
def test_names_from_files_are_text_and_nothing_else(name):
    journal = Journal(
        [
            RunStarted(0.0, name, 0, "orchestrator", 10.0, {}),
            FaultStarted(1.0, 0, "store_down", name),
            BreakerChanged(2.0, name, "CLOSED", "OPEN", name),
            FaultEnded(3.0, 0, "store_down", 1),
        ]
    )
    assert rendered(plots.timeline(journal)).axes


def test_what_is_drawn_is_bounded():
    journal = Journal([RunStarted(0.0, "long", 0, "orchestrator", 86_400.0, {})])
    for number in range(2_000):
        at = number * 43.0
        journal.record(ClientArrived(at, number, "", "", 1, 1))
        journal.record(ClientFinished(at + 1, number, "", "answered", "", 1.0))
        journal.record(CallFinished(at, "", f"engine {number % 50}", "success", "", 0.1))
        journal.record(FaultStarted(at, number, "store_down", "a store down"))
        journal.record(FaultEnded(at + 1, number, "store_down", 1))
    figure = plots.timeline(journal)
    panels = axes_of(figure)
    counts, _ = steps_of(panels.turns)
    assert counts["answered"].sum() == 2_000
    assert len(counts["answered"]) <= plots.BUCKETS_MAX
    assert len(panels.breakers.get_yticks()) == len(panels.faults.texts) == plots.LANES_MAX
    assert "1992 more" in panels.faults.get_title("left")
    assert len(panels.faults.patches) == ink.SHADES_MAX
    assert figure.get_figheight() < 16
    rendered(plots.latency_heat(journal))
    assert len(plots.answered_within(journal).axes[0].lines[0].get_xdata()) <= plots.CURVE_POINTS + 1


def test_figures_may_be_drawn_in_threads(run):
    with ThreadPoolExecutor(2) as threads:
        figures = list(threads.map(lambda source: rendered(plots.timeline(source)), [run, run.journal]))
    assert [len(figure.axes) for figure in figures] == [7, 7]


def test_pyplot_and_its_global_state_are_never_imported():
    code = "import sys, sim.plots, sim.report; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_narrow_figure_keeps_legends_off_the_titles(run):
    figure = rendered(plots.timeline(run, width=4.6))
    for axes in figure.axes:
        if axes.get_legend() is not None:
            title = axes._left_title.get_window_extent()
            assert not axes.get_legend().get_window_extent().overlaps(title)
            assert title.x1 < figure.bbox.x1
    assert math.isclose(figure.get_figwidth(), 4.6)


def test_two_runs_are_compared_by_who_was_answered_and_how_late_with_gaps_where_nobody_was(story):
    well = story(turns=[(float(at), "answered", 1.5) for at in range(90)], fault=(20.0, 40.0))
    turns = [(float(at), "failed" if 40 <= at < 60 else "answered", 3.0) for at in range(90)]
    panels = axes_of(rendered(plots.compared({"well": well, "ill": story(turns=turns)})))
    assert list(vars(panels)) == ["availability", "p95"]
    answered, p95 = ({line.get_label(): line for line in axes.lines} for axes in vars(panels).values())
    middle = answered["ill"].get_xdata()
    down = (middle > 40) & (middle < 60)
    assert set(answered["ill"].get_ydata()[down]) == {0.0}
    assert set(answered["ill"].get_ydata()[(middle < 40) & (middle > 0)]) == {1.0}
    assert np.isnan(p95["ill"].get_ydata()[down]).all()
    assert set(p95["ill"].get_ydata()[middle < 40]) == {3.0}
    assert set(p95["well"].get_ydata()[middle < 40]) == {1.5}
    assert answered["well"].get_linestyle() != answered["ill"].get_linestyle()
    shades = [(each.get_x(), each.get_x() + each.get_width()) for each in panels.p95.patches]
    assert shades == [(20.0, 40.0)]
