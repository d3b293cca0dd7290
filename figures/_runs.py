"""What the runs of an arm say together: medians and bands, ends of stages, runs that were lost."""

from __future__ import annotations

import warnings
from typing import Any, Final

import numpy as np
import xarray as xr
from _arms import Arm
from _data import Values
from numpy.typing import ArrayLike

BAND: Final = (10.0, 50.0, 90.0)  # percentiles over runs: an 80% band around the median
SIGNALS: Final = ("alpha_value", "alpha_attention")


def band(values: Values) -> Values:
    """Percentiles over runs, of the runs that are finite at that step.

    Args:
        values: [runs, ...], such as [runs, steps].

    Returns:
        [3, ...]: 10th percentile, median, 90th percentile; NaN where no run is finite.
    """
    finite = or_nan(values)
    some = np.isfinite(finite).any(axis=0)
    result = np.full((len(BAND), *values.shape[1:]), np.nan)
    if some.any():
        result[:, some] = np.nanpercentile(finite[:, some], BAND, axis=0)
    return result


def or_nan(values: Values) -> Values:
    """Give the values with NaN in the places of those that are not finite."""
    return np.where(np.isfinite(values), values, np.nan)


def finite_of(values: ArrayLike) -> Values:
    """Give the values that are finite, as one row: those of runs that did not diverge."""
    every = np.asarray(values, float)
    return np.asarray(every[np.isfinite(every)])


def median(values: ArrayLike) -> float:
    """Median of the values that are finite, as `band` draws it; NaN where none is.

    >>> median([3.0, np.nan, 1.0, np.inf]), median([np.nan])
    (2.0, nan)
    """
    finite = finite_of(values)
    return float(np.median(finite)) if finite.size else np.nan


def nanmedian(values: ArrayLike, axis: int | None = None) -> Any:  # noqa: ANN401 - as NumPy
    """Median of the values that are numbers, infinity among them; NaN, with no warning, of none.

    >>> float(nanmedian([3.0, np.nan, np.inf])), float(nanmedian([np.nan]))
    (inf, nan)
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmedian(np.asarray(values, float), axis=axis)


def nanmean(values: ArrayLike, axis: int | None = None) -> Any:  # noqa: ANN401 - as NumPy
    """Mean of the values that are numbers; NaN, with no warning, of none.

    >>> float(nanmean([3.0, np.nan, 1.0])), float(nanmean([np.nan]))
    (2.0, nan)
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(np.asarray(values, float), axis=axis)


def largest(values: ArrayLike) -> float:
    """Largest of the values that are finite; NaN where none is."""
    finite = finite_of(values)
    return float(finite.max()) if finite.size else np.nan


def least(values: ArrayLike) -> float:
    """Least of the values that are finite; NaN where none is.

    >>> least([3.0, np.nan, 1.0]), largest([3.0, np.nan, 1.0])
    (1.0, 3.0)
    """
    return -largest(-np.asarray(values, float))


def count_diverged(panel: xr.Dataset, arm: Arm) -> int:
    """Count the runs of an arm with a value that is not finite."""
    values = panel.isel(arm=arm.index).to_dataarray().transpose("run", ...).to_numpy()
    finite = np.isfinite(values.reshape(len(values), -1))
    return int((~finite.all(axis=1)).sum())


def count_mirrored(panel: xr.Dataset, arm: Arm) -> int:
    """Count the runs of an arm that end with negative signals in both V and A.

    They are on the way to (2 mu 1^T - P, 2/T - Q), which has almost the loss of the truth.
    """
    ends = [runs_of(panel, name, arm)[:, -1] < 0 for name in SIGNALS]
    return int(np.logical_and(*ends).sum())


def stage_ends(x: Values, stage: Values, number: int) -> Values:
    """Tell where each run left a stage; the runs that never did are left out.

    Args:
        x: [steps].
        stage: [runs, steps].
        number: of the stage.
    """
    left = stage > number
    first = left.argmax(axis=1)[left.any(axis=1)]
    return np.asarray(x[first])


def runs_of(panel: xr.Dataset, variable: str, arm: Arm) -> Values:
    """Give a variable of an arm, [runs, steps] or, for a constant of the run, [runs]."""
    name = variable if variable in panel.data_vars else f"drawn_{variable}"
    return panel[name].isel(arm=arm.index).to_numpy().astype(float)


def population_of(panel: xr.Dataset, variable: str, arm: Arm) -> Values:
    """Give a variable of the population path [runs, steps] up to the end of stage 2.

    From the first step at which a run of the arm rounds its attention it is NaN: there the
    recursion jumps to the truth.
    """
    rounded = runs_of(panel, "stage", arm).max(axis=0) > 2
    return np.where(rounded, np.nan, runs_of(panel, variable, arm))


def horizontal(panel: xr.Dataset, arm: Arm, against: str) -> Values:
    """Give the values [steps] of the x axis: the iteration or the samples that were used by then.

    A run that stops early uses fewer samples from there on; the axis is that of the longest run.
    """
    if against == "step":
        return panel["step"].to_numpy().astype(float)
    longest: Values = runs_of(panel, against, arm).max(axis=0)
    return longest
