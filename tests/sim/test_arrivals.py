"""Arrival processes against theory: rates, how bunched counts are, the shape of a day; seeded, so they never flake."""

from itertools import pairwise
from math import exp
from random import Random
from statistics import fmean, pvariance

import pytest

from sim.arrivals import Daily, Modulated, OnOff, Poisson, Profile, State

BURSTS = OnOff(on=20.0, on_for=10.0, off=2.0, off_for=30.0)
STATES = Modulated(states=(State(rate=1.0, lasts=20.0), State(lasts=30.0), State(rate=10.0, lasts=10.0)))
WAVE = Daily(mean=4.0, swing=0.8, peak_at=250.0, period=1000.0)
HOURS = Profile(rates=(1.0, 8.0, 3.0, 4.0), each=125.0)
EVERY = [Poisson(5.0), BURSTS, STATES, WAVE, HOURS]


def times(process, duration_s, seed=0):
    return list(process.times(duration_s, Random(seed)))


def counts(process, window_s, windows, seed=0):
    found = [0] * windows
    for at in process.times(window_s * windows, Random(seed)):
        found[int(at // window_s)] += 1
    return found


def dispersion(process, window_s, windows):
    """Variance of counts by their mean: 1 of a Poisson process."""
    found = counts(process, window_s, windows)
    return pvariance(found) / fmean(found)


def dispersion_in_theory(bursts, window_s):
    """Of a process of two states (Heffes and Lucantoni, 1986; Fischer and Meier-Hellstern, 1993, section 3.3)."""
    leave_on, leave_off = 1 / bursts.on_for, 1 / bursts.off_for
    both = leave_on + leave_off
    mean = (bursts.on * leave_off + bursts.off * leave_on) / both
    limit = 2 * (bursts.on - bursts.off) ** 2 * leave_on * leave_off / (both**3 * mean)
    return 1 + limit * (1 - (1 - exp(-both * window_s)) / (both * window_s))


@pytest.mark.parametrize("process", EVERY, ids=lambda process: type(process).__name__)
def test_in_the_long_run_as_many_come_as_the_mean_rate_says(process):
    rates = [count / 1000 for count in counts(process, 1000.0, 40)]
    error = (pvariance(rates) / len(rates)) ** 0.5
    assert error < 0.05 * process.mean_rate
    assert abs(fmean(rates) - process.mean_rate) < 3 * error


@pytest.mark.parametrize("process", EVERY, ids=lambda process: type(process).__name__)
def test_they_come_in_order_within_the_duration_and_by_the_seed(process):
    came = times(process, 300.0)
    assert came == times(process, 300.0) != times(process, 300.0, seed=1)
    assert 0 < came[0] <= came[-1] < 300
    assert all(a < b for a, b in pairwise(came))


def test_mean_rates():
    assert BURSTS.mean_rate == pytest.approx((20 * 10 + 2 * 30) / 40)
    assert STATES.mean_rate == pytest.approx((1 * 20 + 10 * 10) / 60)
    assert (WAVE.mean_rate, HOURS.mean_rate) == (4.0, 4.0)


def test_counts_of_a_poisson_process_vary_as_much_as_their_mean():
    assert dispersion(Poisson(5.0), 10.0, 4000) == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("window_s", [1.0, 10.0, 60.0])
def test_bursts_bunch_counts_as_theory_says(window_s):
    measured = dispersion(BURSTS, window_s, round(60_000 / window_s))
    assert measured == pytest.approx(dispersion_in_theory(BURSTS, window_s), rel=0.12)
    assert measured > 3


def test_a_modulated_process_starts_in_its_stationary_distribution():
    """So the rate at the very start is the mean rate: no warm-up is due."""
    first = sum(len(times(STATES, 1.0, seed)) for seed in range(4000)) / 4000
    assert first == pytest.approx(STATES.mean_rate, rel=0.07)


def test_each_state_is_held_for_its_share_of_the_time():
    quiet = Modulated(states=(State(rate=0.001, lasts=5.0), State(rate=50.0, lasts=15.0)))
    busy = sum(count > 10 for count in counts(quiet, 0.5, 40_000)) / 40_000
    assert busy == pytest.approx(0.75, abs=0.03)


def test_a_day_has_its_peak_and_its_trough_where_they_were_asked_for():
    found = counts(WAVE, 100.0, 10 * 60)  # 60 days of ten parts
    by_part = [fmean(found[part::10]) / 100 for part in range(10)]
    expected = [fmean(WAVE.rate_at(100.0 * part + at) for at in range(100)) for part in range(10)]
    assert by_part == pytest.approx(expected, rel=0.08)
    assert (by_part.index(max(by_part)), by_part.index(min(by_part))) == (2, 7)


def test_a_profile_has_each_hours_rate_and_begins_again():
    found = counts(HOURS, 125.0, 4 * 80)
    assert [fmean(found[part::4]) / 125 for part in range(4)] == pytest.approx(HOURS.rates, rel=0.04)
    assert (HOURS.rate_at(499.9), HOURS.rate_at(500.0)) == (4.0, 1.0)


def test_thinned_arrivals_vary_within_an_hour_as_poisson_does():
    hours = counts(HOURS, 125.0, 4 * 300)
    assert pvariance(hours[1::4]) / fmean(hours[1::4]) == pytest.approx(1.0, abs=0.2)


def test_from_a_state_it_goes_to_any_other_not_to_the_next_in_the_list():
    """Between two bursts only the silent state is visited in a quarter of the cases, and never if states took turns."""
    states = Modulated(states=(State(rate=10.0, lasts=10.0), State(lasts=10.0), State(rate=500.0, lasts=10.0)))
    seconds = counts(states, 0.5, 16_000)
    between = "".join("C" if count > 100 else "." if count == 0 else "a" for count in seconds).split("C")
    visits = [each for each in between if len(each) > 4]
    assert len(visits) > 150
    assert sum("aaa" not in each for each in visits) / len(visits) == pytest.approx(0.25, abs=0.09)
