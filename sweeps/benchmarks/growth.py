"""How the cost of a step grows with T, N, B and S, one at a time, with the fitted exponent.

Around T = 5000, N = 3, B = 64, S = 32 for T, B and S; N grows with S = 4, which keeps A small. The
exponent is the slope of a line through logarithms, over the upper half of the sizes: below it,
costs that do not grow take a part.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from _library import Size, library
from _measure import Effort, Payload, digits, race, run_script, say
from _pictures import draw_spread, new_figure
from matplotlib.figure import Figure

BASE, QUICK_BASE = Size(3, 5000, 64, 32), Size(3, 100, 4, 2)
# For each field: what else differs from the base, and its values.
SERIES: dict[str, tuple[dict[str, int], tuple[int, ...]]] = {
    "context_length": ({}, (625, 1250, 2500, 5000, 10000, 20000)),
    "num_tokens": ({"trajectories": 4}, (2, 4, 5, 10, 30, 100, 300, 1000)),
    "batch_size": ({}, (8, 16, 32, 64, 128, 256)),
    "trajectories": ({}, (1, 2, 4, 8, 16, 32, 64, 128)),
}
QUICK_SERIES: dict[str, tuple[dict[str, int], tuple[int, ...]]] = {
    "context_length": ({}, (50, 100, 200)),
    "num_tokens": ({}, (3, 40)),
}
NAMES = {
    "context_length": "context length T",
    "num_tokens": "vocabulary size N",
    "batch_size": "batch size B",
    "trajectories": "trajectories S",
}
SYMBOLS = {"context_length": "T", "num_tokens": "N", "batch_size": "B", "trajectories": "S"}
EFFORT, QUICK_EFFORT = Effort(rounds=5, seconds=0.2), Effort(rounds=2, seconds=0.01)


def measure(quick: bool) -> Payload:
    """Times one series for each field."""
    base = QUICK_BASE if quick else BASE
    found = {}
    for field, (other, values) in (QUICK_SERIES if quick else SERIES).items():
        sizes = [base._replace(**{**other, field: value}) for value in values]
        contenders = [library(size, name=str(getattr(size, field))) for size in sizes]
        rows = race(contenders, QUICK_EFFORT if quick else EFFORT)
        seconds = [
            size.tokens / row["rate"]["median"] for row, size in zip(rows, sizes, strict=True)
        ]
        exponent = fit_exponent(values, seconds)
        say(f"{SYMBOLS[field]} = {values}: exponent {exponent:.2f}")
        found[field] = {
            "base": {**base._asdict(), **other},
            "values": list(values),
            "rows": rows,
            "step_seconds": seconds,
            "exponent": exponent,
        }
    return {"series": found}


def fit_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of log(seconds) against log(size), by least squares over the upper half.

    >>> round(fit_exponent([1, 10, 100, 1000], [7.0, 7.1, 20.0, 2000.0]), 6)
    2.0
    """
    half = len(sizes) // 2
    slope, _ = np.polyfit(np.log(sizes[half:]), np.log(seconds[half:]), 1)
    return float(slope)


def draw(payload: Payload) -> Figure:
    """Milliseconds of a step against each size."""
    series = payload["series"]
    figure, panels = new_figure(len(series), height=2.2)
    for axes, (field, found) in zip(panels, series.items(), strict=True):
        times = [
            {
                key: 1e3 * median * row["rate"]["median"] / row["rate"][other]
                for key, other in (("median", "median"), ("min", "max"), ("max", "min"))
            }
            for row, median in zip(found["rows"], found["step_seconds"], strict=True)
        ]
        draw_spread(axes, found["values"], times, "scbjax")
        axes.set(xscale="log", yscale="log", xlabel=NAMES[field])
        axes.set_title(f"exponent {digits(found['exponent'])}")
    panels[0].set_ylabel("milliseconds per step")
    return figure


if __name__ == "__main__":
    sys.exit(run_script("growth", __doc__, measure, draw))
