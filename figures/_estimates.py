"""What a sample of tasks says of all tasks: intervals for shares, quantiles, extremes and powers.

Every interval of the figures, their tables and the texts that quote them has one level, 95%.

- A *share* of runs has the interval of Wilson (1927): the shares from which what was counted lies
  less than 1.96 standard errors away.
- A *median*, or another quantile, has an interval between two of the values, which holds whatever
  their law is: how many values lie below a quantile is binomial.
- An *extreme* belongs to its own sample. Of all tasks, a share of at least 0.05^(1/n) lies within
  the extreme of n, with 95% confidence (Wilks 1941).
- The *samples* that the best of several settings needs, their growth and its *power*: the interval
  resamples the tasks and chooses the settings anew for each resample, since which one is best is
  chance too.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]

LEVEL: Final = 0.95  # of every interval
NORMAL: Final = 1.959963984540054  # its quantile of the standard normal distribution
TAILS: Final = (100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2)  # percentiles of resamples
RESAMPLES: Final = 1000  # of the tasks
# What stands for infinity, and from where on it is meant, where percentiles are interpolated.
_BEYOND: Final = 1e200
_FAR: Final = 1e100


class Interval(NamedTuple):
    """From where to where something lies, with 95% confidence."""

    low: float
    high: float

    def meets(self, other: Interval) -> bool:
        """Tell whether some value lies in both.

        >>> Interval(0, 1).meets(Interval(1, 2)), Interval(0, 1).meets(Interval(2, 3))
        (True, False)
        """
        return self.low <= other.high and other.low <= self.high


def worded_interval(interval: tuple[float, float]) -> str:
    """Write an interval with two digits, for legends and titles; it may have no end.

    >>> worded_interval((0.914, 2.17)), worded_interval((0.92, math.inf))
    ('0.91 to 2.17', '0.92 and more')
    >>> worded_interval((-math.inf, 2.0)), worded_interval((-math.inf, math.inf))
    ('2.00 and less', 'anything')
    """
    low, high = map(_two_digits, interval)
    if math.isinf(low) and math.isinf(high):
        return "anything"
    if math.isinf(high):
        return f"{low:.2f} and more"
    return f"{high:.2f} and less" if math.isinf(low) else f"{low:.2f} to {high:.2f}"


class Estimate(NamedTuple):
    """A number that was fitted, and from where to where it lies."""

    value: float
    low: float
    high: float


def worded_power(fit: Estimate, letter: str = "T") -> str:
    """Write a fitted power with its interval, for a legend.

    >>> worded_power(Estimate(1.804, 0.919, math.inf))
    '$T^{1.80}$ (0.92 and more)'
    """
    return f"${letter}^{{{_two_digits(fit.value):.2f}}}$ ({worded_interval(fit[1:])})"


def _two_digits(value: float) -> float:
    """Round; adding zero takes the sign from a zero that had one."""
    return round(value, 2) + 0.0


def share_interval(hits: float, runs: int) -> Interval:
    """Interval of a share by Wilson's score: p with (hits / runs - p)^2 <= z^2 p (1 - p) / runs.

    Parts of a hit count as such: of a mean of shares it is an interval that is wide enough.

    >>> low, high = share_interval(32, 32)
    >>> round(low, 3), high
    (0.893, 1.0)
    """
    if not 0 <= hits <= runs or runs == 0:
        raise ValueError(f"{hits} of {runs} runs is no share")
    share, weight = hits / runs, NORMAL**2 / runs
    middle = (share + weight / 2) / (1 + weight)
    half = NORMAL * math.sqrt(share * (1 - share) / runs + weight / (4 * runs)) / (1 + weight)
    # The ends are exact where nothing or everything was hit.
    return Interval(
        0.0 if hits == 0 else middle - half,
        1.0 if hits == runs else middle + half,
    )


def quantile_interval(values: ArrayLike, share: float = 0.5) -> Interval:
    """Interval of a quantile, the median if no other is named, between two of the values.

    Args:
        values: one a task, in any order; infinity for what never came. NaN is left out.
        share: of all tasks that lies below the quantile.

    Returns:
        The interval; an end that no value of so few bounds is infinite.

    >>> quantile_interval(range(1, 101))
    Interval(low=40.0, high=61.0)
    >>> quantile_interval([1.0, 2.0, 3.0])
    Interval(low=-inf, high=inf)
    """
    ordered = np.sort(np.asarray(values, float).ravel())
    ordered = ordered[~np.isnan(ordered)]
    below = binomial(ordered.size, share)
    # The quantile is above the l-th value if at least l values are below it.
    low = int(np.searchsorted(below, (1 - LEVEL) / 2, side="right"))
    high = int(np.searchsorted(below, (1 + LEVEL) / 2, side="left")) + 1
    return Interval(
        float(ordered[low - 1]) if low > 0 else -math.inf,
        float(ordered[high - 1]) if high <= ordered.size else math.inf,
    )


def binomial(count: int, share: float) -> Values:
    """Give P(X <= k) for k = 0 .. count, X the number of hits among count of probability share.

    >>> binomial(2, 0.5)
    array([0.25, 0.75, 1.  ])
    """
    places = np.arange(count + 1)
    chosen = np.array(
        [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in places]
    )
    logs = chosen + places * math.log(share) + (count - places) * math.log1p(-share)
    sums = np.cumsum(np.exp(logs))
    return np.asarray(sums / sums[-1], float)


def within_extreme(runs: int) -> float:
    """Share of all tasks that lies, with 95% confidence, within the largest (or least) of `runs`.

    >>> round(within_extreme(32), 3), round(within_extreme(512), 3)
    (0.911, 0.994)
    """
    return float((1 - LEVEL) ** (1 / runs)) if runs else 0.0


# ----------------------------------------------------------------------------------- powers


def samples_for_share(samples: Values, share: float) -> Values:
    """Samples at which the share of the runs asked for has come to something.

    Args:
        samples: [..., runs], infinity for runs that never do.
        share: in (0, 1].
    """
    needed = int(np.ceil(share * samples.shape[-1] - 1e-9)) - 1
    found: Values = np.partition(samples, needed, axis=-1)[..., needed]
    return found


def least_samples(samples: Values, share: float) -> Values:
    """Samples with which the share of the runs recovers at the best of several settings.

    Args:
        samples: [points, settings, runs], infinity for runs that never do.
        share: in (0, 1].

    Returns:
        [points]; infinity where no setting is enough.
    """
    best: Values = samples_for_share(samples, share).min(axis=1)
    return best


def resampled_runs(runs: int, resamples: int = RESAMPLES, *, lost: int = 1) -> NDArray[np.int64]:
    """Draw runs with replacement, of those that there are and one more.

    The one more, number `runs`, stands for a run that never recovers (`and_one_lost`): resamples of
    runs that all recovered would take it for certain that every run does.

    Args:
        runs: how many there are.
        resamples: how many to draw.
        lost: how many more; 0 for a statistic that has no place for one.

    Returns:
        [resamples, runs]; the same in every process.
    """
    rng = np.random.default_rng(0)
    return rng.integers(runs + lost, size=(resamples, runs))


def and_one_lost(samples: Values, axis: int = -1) -> Values:
    """Put a run that never recovers behind the others: the axis of the runs gets one longer."""
    pad = [(0, 0)] * samples.ndim
    pad[axis] = (0, 1)
    return np.pad(samples.astype(float), pad, constant_values=np.inf)


def slope(x: Values, costs: Values) -> Values:
    """Fit costs ~ x^b, [..., points].

    Where some are infinite it is what it tends to as they grow: infinite too, with the sign of the
    side of x on which they are. NaN where they pull to neither, as all of them do.

    >>> x = np.array([1.0, 2.0, 4.0])
    >>> costs = [[3, 6, 12], [3, 6, np.inf], [np.inf, np.inf, 12], [np.inf] * 3]
    >>> slope(x, np.array(costs)).round(3).tolist()
    [1.0, inf, -inf, nan]
    """
    centred = np.log(x) - np.log(x).mean()
    lost = np.isinf(costs)
    logs = np.log(np.where(np.isfinite(costs), costs, np.where(lost, 1.0, np.nan)))
    slopes: Values = logs @ centred / (centred @ centred)
    pull = np.round(lost @ centred, 9)  # of those that pull to neither nothing is left but rounding
    limits = np.where(pull == 0, np.nan, np.copysign(np.inf, pull))
    return np.where(lost.any(axis=-1), limits, slopes)


def resampled_costs(samples: Values, share: float) -> Values:
    """Give the samples that the best setting needs in resamples of the tasks, one more run lost.

    Args:
        samples: until recovery [points, settings, runs]; the same tasks everywhere.
        share: of the runs that have to recover.

    Returns:
        [resamples, points], the settings chosen anew for each; infinity where none is enough.
    """
    drawn = and_one_lost(samples)[..., resampled_runs(samples.shape[-1])]
    # [points, settings, resamples, runs]
    costs: Values = samples_for_share(drawn, share).min(axis=1).T
    return costs


def power_estimate(x: Values, samples: Values, share: float) -> Estimate:
    """Fit a power of x to the samples that the best setting needs, with its interval.

    Args:
        x: [points].
        samples: until recovery [points, settings, runs]; the same tasks everywhere.
        share: of the runs that have to recover.

    Returns:
        The power and its interval over resampled tasks, for each of which the settings are chosen
        anew; NaN where no setting of a point is enough.
    """
    value = float(slope(x, least_samples(samples, share)))
    if not np.isfinite(value):
        return Estimate(np.nan, np.nan, np.nan)
    return Estimate(value, *interval_of(slope(x, resampled_costs(samples, share))))


def growth_estimate(samples: Values, share: float) -> Estimate:
    """Say how many times more samples the last point needs than the first, as a power is fitted.

    Args:
        samples: until recovery [points, settings, runs]; the same tasks everywhere.
        share: of the runs that have to recover.

    Returns:
        The ratio with its interval; NaN where no setting of one of the two is enough.
    """
    least = least_samples(samples, share)
    if not np.isfinite(least[[0, -1]]).all():
        return Estimate(np.nan, np.nan, np.nan)
    return Estimate(float(ratio(least)), *interval_of(ratio(resampled_costs(samples, share))))


def ratio(costs: Values) -> Values:
    """Divide the last of the costs [..., points] by the first; NaN if both are infinite.

    >>> ratio(np.array([[2.0, 3.0, 8.0], [2.0, 3.0, np.inf], [np.inf, 3.0, 8.0]])).tolist()
    [4.0, inf, 0.0]
    """
    with np.errstate(invalid="ignore"):  # of infinities
        grown: Values = costs[..., -1] / costs[..., 0]
    return grown


def cost_intervals(samples: Values, share: float) -> list[Interval]:
    """Give the interval of the samples that every point needs at its best setting.

    Args:
        samples: until recovery [points, settings, runs]; the same tasks everywhere.
        share: of the runs that have to recover.

    Returns:
        One for each point; infinite above where too many resamples have no setting that is enough.
    """
    return [cost_interval(drawn) for drawn in resampled_costs(samples, share).T]


def cost_interval(drawn: Values) -> Interval:
    """Interval of a cost from those of resamples, of which some may be infinite.

    Its ends are two of them, and nothing between two.

    >>> cost_interval(np.array([4.0, 1.0, np.inf, 2.0]))
    Interval(low=1.0, high=inf)
    """
    ordered = np.sort(drawn)
    low, high = (round(tail / 100 * (ordered.size - 1)) for tail in TAILS)
    return Interval(float(ordered[low]), float(ordered[high]))


def interval_of(drawn: Values) -> Interval:
    """Interval of a number from those of resamples, of which some may have none, or be infinite.

    >>> interval_of(np.array([1.0, 1.0, np.nan])), interval_of(np.array([1.0, 2.0, np.inf]))
    (Interval(low=1.0, high=1.0), Interval(low=1.05, high=inf))
    """
    drawn = drawn[~np.isnan(drawn)]
    if drawn.size == 0:
        return Interval(np.nan, np.nan)
    # Between a number and infinity lies infinity, which NumPy does not say.
    ends = np.percentile(np.clip(drawn, -_BEYOND, _BEYOND), TAILS)
    return Interval(
        *(float(end) if abs(end) < _FAR else math.copysign(math.inf, end) for end in ends)
    )
