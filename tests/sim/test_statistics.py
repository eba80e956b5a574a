"""What a few random runs say about all: known answers, and intervals that hold the truth as often as they claim."""

import math

import numpy as np
import pytest

from sim import statistics
from sim.statistics import Estimate, Precision, batch_means, mean, mser5, paired, quantile, until


def share_that_holds(truth, experiment, times=1_000):
    """Tell how often the interval of `experiment`, given seeded chance, holds `truth`."""
    chance = np.random.default_rng(1)
    found = [experiment(chance) for _ in range(times)]
    return sum(each.low <= truth <= each.high for each in found) / times


def ar1(chance, count, memory=0.9, start=None):
    """Return a series in which each value remembers `memory` of the one before; its mean is 0."""
    noise = chance.standard_normal(count)
    series = np.empty(count)
    last = noise[0] / math.sqrt(1 - memory**2) if start is None else start
    for index, each in enumerate(noise):
        last = memory * last + each
        series[index] = last
    return series


class TestMean:
    def test_an_example_from_a_textbook(self):
        # Law, example 4.27: ten observations, 90 %: 1.34 +- 0.24
        found = mean([1.20, 1.50, 1.68, 1.89, 0.95, 1.49, 1.58, 1.55, 0.50, 1.09], 0.90)
        assert round(found.value, 2) == 1.34
        assert round(found.half_width, 2) == 0.24
        assert found.observations == 10

    def test_what_is_not_there_is_left_out(self):
        assert mean([1.0, math.nan, 3.0]) == mean([1.0, 3.0])
        assert mean([4.0]) == Estimate(4.0, -math.inf, math.inf, 0.95, 1)
        assert math.isnan(mean([math.nan]).value)
        assert mean([2.0, 2.0]).half_width == 0.0

    @pytest.mark.parametrize("confidence", [0.80, 0.95])
    def test_it_holds_the_truth_as_often_as_it_claims(self, confidence):
        share = share_that_holds(5.0, lambda chance: mean(chance.normal(5.0, 2.0, 6), confidence))
        assert share == pytest.approx(confidence, abs=0.02)


class TestQuantile:
    def test_bounds_are_order_statistics(self):
        found = quantile(np.arange(1, 101), 0.5)  # Hahn and Meeker, table A.15: the 40th and the 61st of 100
        assert (found.low, found.high) == (40, 61)
        assert found.value == 50.5

    def test_a_bound_that_no_observation_can_give_is_infinite(self):
        assert quantile(np.arange(367), 0.99).high == math.inf
        assert quantile(np.arange(368), 0.99).high == 367
        assert quantile([], 0.5).observations == 0

    def test_it_holds_the_truth_whatever_the_distribution(self):
        share = share_that_holds(-math.log(0.1), lambda chance: quantile(chance.exponential(size=60), 0.9))
        assert 0.94 <= share <= 0.99  # at least what is claimed: order statistics come in steps


class TestBatchMeans:
    def test_long_batches_hold_the_truth_and_short_ones_tell_that_they_are_short(self):
        long = [batch_means(ar1(np.random.default_rng(seed), 4_000)) for seed in range(200)]
        assert sum(each.estimate.low <= 0 <= each.estimate.high for each in long) >= 180
        assert abs(np.mean([each.correlation for each in long])) < 0.15
        short = [batch_means(ar1(np.random.default_rng(seed), 40)) for seed in range(200)]
        assert np.mean([each.correlation for each in short]) > 0.4

    def test_observations_taken_as_independent_would_claim_too_much(self):
        naive = [mean(ar1(np.random.default_rng(seed), 2_000)) for seed in range(200)]
        assert sum(each.low <= 0 <= each.high for each in naive) < 100

    def test_what_fills_no_batch_is_left_out_at_the_start(self):
        assert batch_means([99.0, 1, 3, 5, 7], batches=2).estimate.value == 4.0

    def test_too_little_is_refused(self):
        with pytest.raises(ValueError, match="39 observations are too few for 20 batches: make the run longer"):
            batch_means(range(39))


class TestMser5:
    def test_it_cuts_off_the_start_and_little_more(self):
        cuts = [mser5(ar1(np.random.default_rng(seed), 2_000, start=60.0)) for seed in range(50)]
        assert all(cut is not None and cut % 5 == 0 for cut in cuts)
        assert 15 <= np.median(cuts) <= 100  # 60 * 0.9**n is one standard deviation (2.3) at n = 31

    def test_a_run_in_equilibrium_keeps_nearly_all(self):
        cuts = [mser5(np.random.default_rng(seed).standard_normal(2_000)) for seed in range(20)]
        assert np.median([1_000 if cut is None else cut for cut in cuts]) <= 100

    def test_a_run_that_is_still_warming_up_cannot_tell(self):
        assert mser5(np.arange(200.0)) is None
        assert mser5([1.0] * 49) is None

    def test_an_exact_cut(self):
        assert mser5([100.0] * 10 + [1.0, 3.0] * 50) == 10


class TestPaired:
    def test_what_both_share_drops_out(self):
        chance = np.random.default_rng(3)
        luck = chance.normal(0, 10, 12)
        found = paired(luck, luck + 1 + chance.normal(0, 0.1, 12))
        assert found.difference.low > 0.9
        assert found.difference.high < 1.1
        assert found.correlation > 0.99
        assert found.variance_ratio > 1_000

    def test_exact_numbers(self):
        found = paired([1.0, 2.0, 3.0], [2.0, 2.0, 5.0])
        assert found.difference.value == 1.0
        assert found.difference.half_width == pytest.approx(4.302653 / math.sqrt(3))
        assert found.variance_ratio == pytest.approx((1 + 3) / 1)
        assert found.correlation == pytest.approx(3 / math.sqrt(2 * 6))

    def test_pairs_without_a_number_are_left_out_and_others_refused(self):
        assert paired([1, math.nan, 2], [2, 5, math.nan]).difference.observations == 1
        assert math.isnan(paired([1.0], [1.0]).variance_ratio)
        with pytest.raises(ValueError, match="3 and 2 runs are no pairs: run both policies on the same seeds"):
            paired([1, 2, 3], [1, 2])

    def test_policies_that_only_chance_tells_apart_are_called_different_as_rarely_as_promised(self):
        def experiment(chance):
            luck = chance.normal(10, 3, 10)
            return paired(luck + chance.normal(0, 0.1, 10), luck + chance.normal(0, 0.1, 10)).difference

        assert share_that_holds(0.0, experiment) == pytest.approx(0.95, abs=0.02)

    def test_equal_policies_differ_by_nothing(self):
        found = paired([1.0, 2.0], [1.0, 2.0])
        assert (found.difference.low, found.difference.high, found.variance_ratio) == (0.0, 0.0, math.inf)


def drawn(chance, centre=0.0, spread=1.0):
    return lambda runs: [chance.normal(centre, spread) for _ in runs]


class TestUntil:
    def test_it_stops_after_the_first_round_that_makes_the_interval_narrow_enough(self):
        found, seen = until(drawn(np.random.default_rng(4), 10, 2), Precision(0.5, relative=False))
        rounds = [10]
        while rounds[-1] < len(seen):
            rounds.append(rounds[-1] + rounds[-1] // 5)
        assert [mean(seen[:end]).half_width <= 0.5 for end in rounds] == [False] * (len(rounds) - 1) + [True]
        assert found == mean(seen)

    def test_runs_are_numbered_without_gaps(self):
        asked = []
        until(lambda runs: asked.extend(runs) or [float(run) for run in runs], Precision(0, relative=True), runs_max=30)
        assert asked == list(range(30))

    def test_never_before_the_least_and_never_beyond_the_most(self):
        assert len(until(lambda runs: [1.0] * len(runs), Precision(0.1, relative=True))[1]) == statistics.RUNS_MIN
        assert len(until(lambda runs: [1.0] * len(runs), Precision(0.1, relative=True), runs_max=7)[1]) == 7
        swinging = until(lambda runs: [run % 2 for run in runs], Precision(1e-9, relative=True), runs_max=25)
        assert len(swinging[1]) == 25
        assert len(until(lambda runs: [math.nan] * len(runs), Precision(1, relative=False), runs_max=12)[1]) == 12

    def test_a_relative_width_is_kept_against_the_true_mean(self):
        assert Precision(0.25, relative=True).reached(Estimate(10.0, 8.0, 12.0, 0.95, 9))
        assert not Precision(0.25, relative=True).reached(Estimate(10.0, 7.9, 12.1, 0.95, 9))

    def test_stopping_by_the_data_costs_little_coverage(self):
        wanted = Precision(0.3, relative=False)
        assert share_that_holds(0.0, lambda chance: until(drawn(chance), wanted)[0], times=300) >= 0.90
