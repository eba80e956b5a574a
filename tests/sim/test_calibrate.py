"""A model fitted to records finds again what they were drawn from, and says how well it fits."""

import math
import random

import numpy as np
import pytest

from sim.calibrate import DISTANCE_MAX, CannotFit, calibrate, fit
from sim.distributions import Constant, Empirical, Exponential, Gamma, Lognormal, Weibull
from sim.records import Call

READ, WRITTEN = Lognormal(400, 2000), Lognormal(130, 500)


def recorded(first_token, per_token, per_prompt_token, count=2000, seed=1):
    chance = random.Random(seed)
    calls, at = [], 0.0
    for _ in range(count):
        at += Exponential(0.2).draw(chance)
        read, written = (max(1, round(each.draw(chance))) for each in (READ, WRITTEN))
        first = first_token.draw(chance) + per_prompt_token * read
        rest = per_token.draw(chance) * (written - 1)
        calls.append(Call(at, first, first + rest, read, written, chance.random() < 0.05))
    return calls


def draws(distribution, count=3000, seed=2):
    chance = random.Random(seed)
    return np.array([distribution.draw(chance) for _ in range(count)])


@pytest.mark.parametrize(
    ("first_token", "per_token", "per_prompt_token"),
    [
        (Lognormal(0.35, 0.9), Lognormal(0.014, 0.022), 0.0002),
        (Gamma(2, 0.1), Weibull(3, 0.015), 0.0001),
        (Weibull(1.8, 0.3), Gamma(9, 0.002), 0.0),
    ],
)
def test_what_records_were_drawn_from_is_found_again(first_token, per_token, per_prompt_token):
    found = calibrate(recorded(first_token, per_token, per_prompt_token))
    assert type(found.model.first_token) is type(first_token)
    assert type(found.model.per_token) is type(per_token)
    assert found.model.first_token.mean == pytest.approx(first_token.mean, rel=0.05)
    assert found.model.per_token.mean == pytest.approx(per_token.mean, rel=0.02)
    assert found.model.per_prompt_token.mean == pytest.approx(per_prompt_token, abs=0.00002)
    assert found.model.failure_rate == pytest.approx(0.05, abs=0.015)
    assert found.first_token.chosen.p_value > 0.05
    assert found.per_token.chosen.distance < 0.03


@pytest.mark.parametrize("drawn", [Lognormal(2, 9), Gamma(0.5, 3), Weibull(0.7, 4), Exponential(3)])
def test_parameters_are_the_likeliest(drawn):
    fitted = fit("x", "s", draws(drawn, 20_000))
    (same,) = [each for each in fitted.tried if type(each.distribution) is type(drawn)]
    for name in drawn.__struct_fields__:
        assert getattr(same.distribution, name) == pytest.approx(getattr(drawn, name), rel=0.05)
    chosen = fitted.tried[0].distribution
    assert chosen.mean == pytest.approx(drawn.mean, rel=0.06)


def test_of_equals_the_one_with_fewer_parameters():
    assert fit("x", "s", draws(Exponential(3), seed=3)).chosen.family == "exponential"


def test_what_no_family_fits_is_drawn_from_the_records_themselves():
    two_humps = np.concatenate([draws(Lognormal(1, 1.1)), draws(Lognormal(10, 11), seed=3)])
    fitted = fit("x", "s", two_humps)
    assert fitted.tried[0].distance > DISTANCE_MAX
    assert fitted.tried[0].p_value == 0.01
    assert isinstance(fitted.chosen.distribution, Empirical)
    again = draws(fitted.chosen.distribution)
    assert np.quantile(again, [0.1, 0.4, 0.6, 0.9]) == pytest.approx(
        np.quantile(two_humps, [0.1, 0.4, 0.6, 0.9]), rel=0.02
    )


def test_the_p_value_is_uniform_where_the_family_is_right():
    """Tables for parameters that are known would give far too many near 1."""
    p_values = [fit("x", "s", draws(Gamma(2, 1), 150, seed=seed)) for seed in range(15)]
    gammas = [each.tried[0].p_value for each in p_values if each.tried[0].family == "gamma"]
    assert len(gammas) > 6
    assert 0.3 < np.mean(gammas) < 0.7


def test_one_value_is_a_constant():
    fitted = fit("x", "s", np.full(50, 0.2))
    assert fitted.chosen.distribution == Constant(pytest.approx(0.2))


def test_zeros_are_small_values():
    values = np.concatenate([np.zeros(10), draws(Exponential(1))])
    assert math.isfinite(fit("x", "s", values).tried[0].aic)


def test_how_busy_and_how_bursty_they_were():
    found = calibrate(recorded(Constant(1.0), Constant(0.0), 0.0))
    assert found.rate == pytest.approx(5, rel=0.1)
    assert 0.5 < found.dispersion < 1.6  # of 40 windows
    assert found.model.capacity == found.busiest
    bursts = [
        call._replace(at=math.floor(call.at / 60) * 60 + call.at % 60 / 6)
        for call in recorded(Constant(1.0), Constant(0.0), 0.0)
    ]
    assert calibrate(bursts).dispersion > 20
    timeless = calibrate([call._replace(at=None) for call in bursts])
    assert (timeless.busiest, timeless.rate, timeless.dispersion) == (None, None, None)


def test_calls_one_after_the_other_are_one_at_once():
    calls = [Call(float(number), 0.25, 1.0, 1, 2, False) for number in range(40)]
    assert calibrate(calls).busiest == 1
    assert calibrate([call._replace(seconds=1.25) for call in calls]).busiest == 2


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"failed": True}, "0 answered calls are too few to fit: record at least 30"),
        ({"first_token_seconds": 0.0}, "40 calls had their first token after 0 s"),
        ({"seconds": 0.1}, "40 calls ended before their first token"),
        ({"completion_tokens": 1}, "0 calls wrote more than one token"),
    ],
)
def test_what_records_cannot_say_is_refused(change, wanted):
    calls = [Call(None, 0.2 + number / 1000, 1.0, 100, 20, False)._replace(**change) for number in range(40)]
    with pytest.raises(CannotFit, match=wanted):
        calibrate(calls)
