"""Intervals against SciPy's, against exact enumeration, and against worlds whose truth is known."""

from __future__ import annotations

import doctest
import math

import _estimates
import numpy as np
import pytest
from _estimates import Interval
from numpy.typing import NDArray
from scipy import stats

Values = NDArray[np.float64]
SHARE = 0.9


@pytest.mark.parametrize(("hits", "runs"), [(0, 32), (1, 4), (9, 32), (31, 32), (32, 32), (7, 512)])
def test_the_interval_of_a_share_is_wilsons(hits: int, runs: int) -> None:
    theirs = stats.binomtest(hits, runs).proportion_ci(_estimates.LEVEL, method="wilson")
    ours = _estimates.share_interval(hits, runs)
    assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize("runs", [16, 32, 64, 512])
def test_the_interval_of_a_share_covers_at_its_level(runs: int) -> None:
    """Exact: the probability of every count, summed over those whose interval holds the truth."""
    truths = np.linspace(0.05, 0.95, 181)
    found = [_estimates.share_interval(hits, runs) for hits in range(runs + 1)]
    holds = np.array([[low <= truth <= high for low, high in found] for truth in truths])
    likely = stats.binom.pmf(np.arange(runs + 1), runs, truths[:, None])
    covered = (holds * likely).sum(axis=1)
    assert covered.mean() == pytest.approx(0.95, abs=0.012)
    assert covered.min() > 0.88


@pytest.mark.parametrize(("hits", "runs"), [(5, 4), (-1, 4), (0, 0)])
def test_what_is_no_share_is_refused(hits: int, runs: int) -> None:
    with pytest.raises(ValueError, match="is no share"):
        _estimates.share_interval(hits, runs)


def test_the_binomial_law_is_scipys() -> None:
    for count, share in ((1, 0.5), (32, 0.1), (512, 0.9)):
        expected = stats.binom.cdf(np.arange(count + 1), count, share)
        np.testing.assert_allclose(_estimates.binomial(count, share), expected, atol=1e-10)


@pytest.mark.parametrize(("runs", "share"), [(16, 0.5), (32, 0.5), (64, 0.1), (512, 0.1)])
def test_the_interval_of_a_quantile_covers_whatever_the_law(runs: int, share: float) -> None:
    """Two peaks far apart, one of them with three tenths of the tasks, and a long tail."""
    rng = np.random.default_rng(runs)
    few = rng.random((4000, runs)) < 0.3
    values = np.where(few, rng.random(few.shape), 100 + rng.standard_exponential(few.shape) ** 3)
    truth = share / 0.3 if share < 0.3 else 100 - np.log1p((0.3 - share) / 0.7) ** 3
    ends = [_estimates.quantile_interval(sample, share) for sample in values]
    covered = np.mean([low <= truth <= high for low, high in ends])
    below = np.mean([high < truth for _, high in ends])
    above = np.mean([low > truth for low, _ in ends])
    assert covered > 0.94
    assert max(below, above) < 0.035
    assert covered < 0.99 or runs < 32


def test_the_ends_of_a_quantiles_interval_are_the_narrowest_that_do() -> None:
    """For 32 values and the median: one place further in, a tail would be more than 2.5%."""
    low, high = _estimates.quantile_interval(np.arange(1, 33))
    law = stats.binom(32, 0.5)
    assert law.cdf(low - 1) <= 0.025 < law.cdf(low)
    assert law.sf(high - 1) <= 0.025 < law.sf(high - 2)


def test_an_extreme_holds_what_it_says_it_holds() -> None:
    rng = np.random.default_rng(3)
    share = _estimates.within_extreme(32)
    largest = rng.random((20_000, 32)).max(axis=1)  # the share of all tasks that is below it
    assert np.mean(largest >= share) == pytest.approx(0.95, abs=0.005)
    assert math.isclose(share**32, 0.05)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 2.0), (0.75, 3.0), (0.76, np.inf)])
def test_samples_for_a_share_of_the_runs(share: float, expected: float) -> None:
    assert _estimates.samples_for_share(np.array([3.0, np.inf, 1.0, 2.0]), share) == expected


def test_a_power_and_its_interval_are_those_of_the_law() -> None:
    rng = np.random.default_rng(2)
    x = np.array([1000.0, 2000.0, 4000.0, 8000.0])
    need = np.tile(7 * x[:, None, None] ** 1.2, (1, 2, 30))
    need[:, 1] *= 3
    power, low, high = _estimates.power_estimate(
        x, need * np.exp(0.2 * rng.standard_normal(need.shape)), SHARE
    )
    assert low < power < high
    assert low < 1.2 < high
    assert 0.03 < high - low < 0.5
    np.testing.assert_allclose(_estimates.power_estimate(x, need[:, :1], SHARE), 1.2, rtol=1e-9)
    never = np.where(np.arange(30) < 10, np.inf, need)
    assert np.isnan(_estimates.power_estimate(x, never, SHARE)).all()


def world(rng: np.random.Generator, runs: int) -> tuple[Values, Values]:
    """Five lengths, three batch sizes: a small one is cheap, but a part of its runs never recovers.

    With the smallest size a little more than the 90% asked for recover, so that a sample of tasks
    often shows fewer. The samples needed are proportional to the length.
    """
    lengths = np.array([1000.0, 2000.0, 4000.0, 8000.0, 16000.0])
    batches, recover = np.array([1.0, 2.0, 4.0]), np.array([0.92, 0.985, 1.0])
    spread = np.exp(0.25 * rng.standard_normal((5, 3, runs)))
    need = 5 * lengths[:, None, None] * batches[:, None] * spread
    found: Values = np.where(rng.random(need.shape) < recover[:, None], need, np.inf)
    return lengths, found


def test_the_interval_of_a_power_covers_with_the_choice_of_settings_and_not_without() -> None:
    rng = np.random.default_rng(7)
    holds, narrow = [], []
    for _ in range(100):
        lengths, samples = world(rng, 32)
        low, high = _estimates.power_estimate(lengths, samples, SHARE)[1:]
        holds.append(low <= 1 <= high)
        # The settings that were best for this sample, as if they had been known beforehand.
        best = _estimates.samples_for_share(samples, SHARE).argmin(axis=1)
        chosen = samples[np.arange(5), best][:, None]
        slopes = _estimates.slope(lengths, _estimates.resampled_costs(chosen, SHARE))
        # And as if a length at which they don't do said nothing.
        low, high = np.percentile(slopes[np.isfinite(slopes)], _estimates.TAILS)
        narrow.append(low <= 1 <= high)
    assert np.mean(holds) >= 0.93
    assert np.mean(narrow) < 0.9


def test_a_power_has_no_end_where_the_longest_context_is_barely_recovered() -> None:
    lengths = np.array([1000.0, 2000.0, 4000.0])
    need = np.tile(lengths[:, None, None], (1, 1, 40))
    need[-1, 0, :7] = np.inf  # 82.5% of them recover
    power, low, high = _estimates.power_estimate(lengths, need, 0.8)
    assert (round(power, 9), round(low, 9), high) == (1, 1, np.inf)
    power, low, high = _estimates.power_estimate(lengths, need[::-1], 0.8)
    assert (round(power, 9), low, round(high, 9)) == (-1, -np.inf, -1)
    ratio, low, high = _estimates.growth_estimate(need, 0.8)
    assert (ratio, low, high) == (4, 4, np.inf)


def test_growth_and_samples_needed_are_those_of_the_law() -> None:
    """The cheapest setting of the world recovers 92%: 90% of its runs need what 0.9 / 0.92 do."""
    rng = np.random.default_rng(11)
    at = stats.norm.ppf(SHARE / 0.92)
    grown, needed = [], []
    for _ in range(100):
        lengths, samples = world(rng, 32)
        _, low, high = _estimates.growth_estimate(samples, SHARE)
        grown.append(low <= 16 <= high)
        truth = 5 * lengths * np.exp(0.25 * at)
        ends = _estimates.cost_intervals(samples, SHARE)
        needed += [a <= b <= c for (a, c), b in zip(ends, truth, strict=True)]
    assert np.mean(grown) >= 0.93
    assert np.mean(needed) >= 0.93


def test_growth_without_spread_is_the_ratio_and_without_recovery_none() -> None:
    samples = np.full((3, 1, 40), 2.0) * np.array([1, 5, 3])[:, None, None]
    assert _estimates.growth_estimate(samples, SHARE) == (3, 3, 3)
    assert _estimates.cost_intervals(samples, SHARE) == [(2, 2), (10, 10), (6, 6)]
    samples[0] = np.inf
    assert np.isnan(_estimates.growth_estimate(samples, SHARE)).all()
    assert _estimates.cost_intervals(samples, SHARE)[0] == (np.inf, np.inf)


def test_samples_needed_have_no_upper_end_where_a_tenth_is_lost() -> None:
    """Of 30 runs with 3 lost: in about a third of the resamples more than 3 are."""
    samples = np.where(np.arange(30) < 3, np.inf, 4.0)[None, None]
    assert _estimates.least_samples(samples, SHARE) == 4
    assert _estimates.cost_intervals(samples, SHARE) == [(4, np.inf)]


def test_a_resample_may_lose_a_run_though_all_were_found() -> None:
    picks = _estimates.resampled_runs(8)
    assert picks.max() == 8
    assert np.mean(picks == 8) == pytest.approx(1 / 9, abs=0.01)
    np.testing.assert_array_equal(_estimates.and_one_lost(np.ones((1, 2))), [[1, 1, np.inf]])
    assert _estimates.and_one_lost(np.ones((2, 3, 4)), axis=1).shape == (2, 4, 4)


def test_intervals_meet_where_some_value_lies_in_both() -> None:
    assert Interval(0.2, 0.5).meets(Interval(0.4, 0.9))
    assert not Interval(0.2, 0.5).meets(Interval(0.51, 0.9))
    assert not Interval(0.51, 0.9).meets(Interval(0.2, 0.5))


def test_examples_run() -> None:
    assert doctest.testmod(_estimates).failed == 0
