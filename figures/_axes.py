"""Axes: their limits, their ticks, and a second one that counts samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import xarray as xr
from _arms import Arm
from _data import Values
from _runs import band, runs_of
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike

WIDE_RANGE: Final = 300.0  # labels at 1, 2 and 5 of more decades would touch
MAX_SHOWN: Final = 5.0  # no band stretches a linear axis further; signals end at 1
ROUNDING_ERROR: Final = float(np.finfo(np.float32).eps)  # a distance below it is 0


def log_axis(axes: Axes, limits: tuple[float, float]) -> None:
    """Make the y axis logarithmic, with plain numbers at 1, 2, 5 or, over a wide range, at 1."""
    axes.set(yscale="log", ylim=limits)
    wide = limits[1] / limits[0] > WIDE_RANGE
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def log_limits(
    drawn: Sequence[Values], *, floor: float = 1e-3, ceiling: float = np.inf
) -> tuple[float, float]:
    """Choose limits of a logarithmic axis for the positive values drawn, from floor to ceiling."""
    values = np.concatenate([np.ravel(item) for item in drawn])
    values = values[np.isfinite(values) & (values > ROUNDING_ERROR)]
    if values.size == 0:
        return floor, 1.0
    low, high = max(floor, 0.7 * float(values.min())), min(ceiling, 1.4 * float(values.max()))
    return low, max(high, 2 * low)


def linear_limits(drawn: Sequence[Values]) -> tuple[float, float]:
    """Choose limits of a linear axis for the runs drawn, as long as they stay near the truth.

    All bands are inside; a single run may stretch the axis to twice that, not more.

    Args:
        drawn: [runs, steps] each.
    """
    bands = np.concatenate([np.ravel(band(runs)) for runs in drawn])
    runs = np.concatenate([np.ravel(runs) for runs in drawn])
    if not np.isfinite(bands).any():
        return 0.0, 1.0
    low, high = np.clip([np.nanmin(bands), np.nanmax(bands)], -MAX_SHOWN, MAX_SHOWN)
    half = 0.5 * (high - low)
    runs = runs[np.isfinite(runs)]
    low, high = max(low - half, min(low, runs.min())), min(high + half, max(high, runs.max()))
    margin = 0.05 * (high - low) or 0.05
    return float(low - margin), float(high + margin)


def samples_above(axes: Axes, panel: xr.Dataset, arms: Sequence[Arm]) -> None:
    """Add an axis above the panel that tells the iterations in thousands of samples."""
    batch = {float(runs_of(panel, "samples", arm).max()) for arm in arms}
    each = max(batch) / float(panel["step"][-1]) / 1000

    def there(iterations: ArrayLike) -> Values:
        return np.asarray(iterations, float) * each

    def back(samples: ArrayLike) -> Values:
        return np.asarray(samples, float) / each

    above = axes.secondary_xaxis("top", functions=(there, back))
    # Beside the curves, where the rounded solutions stand, there are no samples.
    last = float(panel["step"][-1]) * each
    ticks = MaxNLocator(nbins=4, steps=[1, 2, 4, 5, 8, 10]).tick_values(0, last)
    above.set_xticks([tick for tick in ticks if tick <= last])
    above.set_xlabel("samples (thousands)", fontsize=7)


def thousands(axes: Axes) -> None:
    """Label the x axis in thousands."""
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}")
