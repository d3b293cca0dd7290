"""One training step in bfloat16 against float32: what it saves, and what it costs in digits.

At the sizes of the benchmark of a step, on one device, from the same tokens. *Stored*: V and A are
carried from step to step in bfloat16, and a step computes in float32. *Throughout*: a step computes
in bfloat16 as well. Each is compared with eqs. 3 to 6 in float64, from parameters that bfloat16 has
exactly, before it is timed. Studies compute in float32 or float64 and know no bfloat16.
"""

from __future__ import annotations

import math
import sys
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from _agreement import OWN_TOLERANCE, largest_error, reference_gradient, reference_step
from _library import SINGLE, Held, Size, held_in, library, settings_for, start, step_in
from _measure import Payload, effort, race, ratio, run_script, say, speed
from _peers import HostBatch, Values, host_tasks
from _pictures import draw_spread, new_figure
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from step import CHECKED_SAMPLES, QUICK_SIZES, SIZES

from scbjax.composition import LearnerState
from scbjax.losses import loss
from scbjax.model import Params
from scbjax.sampling import Batch, sample_batch
from scbjax.task import Task

FLOAT32, STORED, THROUGHOUT = "float32", "bfloat16, stored", "bfloat16, throughout"
PRECISIONS: Final = {
    FLOAT32: SINGLE,
    STORED: Held("bfloat16", "float32"),
    THROUGHOUT: Held("bfloat16", "bfloat16"),
}
HALF_UNIT: Final = 2.0**-8  # what rounding to the eight digits of bfloat16 changes a number by
# Largest errors of the gradient and of V and A, relative to the largest entry. Storing rounds once.
# Throughout, a gradient is a sum of a few rounded products; to V and A no error is allowed for: the
# sums over T positions that keep 1^T A = 1^T lose what is below a half unit of them, and what that
# comes to is stored and shown.
ALLOWED: Final = {
    FLOAT32: (OWN_TOLERANCE, OWN_TOLERANCE),
    STORED: (OWN_TOLERANCE, OWN_TOLERANCE + HALF_UNIT),
    THROUGHOUT: (8 * HALF_UNIT, math.inf),
}


def measure(quick: bool) -> Payload:
    """Checks, then times, every size."""
    return {"sizes": [_measure_size(size, quick) for size in (QUICK_SIZES if quick else SIZES)]}


def _measure_size(size: Size, quick: bool) -> Payload:
    checked = size._replace(batch_size=min(size.batch_size, CHECKED_SAMPLES), trajectories=1)
    errors = {name: check(name, held, checked) for name, held in PRECISIONS.items()}
    rows = race(
        [library(size, name=name, held=held) for name, held in PRECISIONS.items()], effort(quick)
    )
    for row in rows:
        say(f"N = {size.num_tokens}, {row['name']}: {speed(row['rate'])} million tokens/s")
    return {
        **size._asdict(),
        "errors": errors,
        "rows": rows,
        "ratios": {name: ratio(rows, name, FLOAT32) for name in PRECISIONS},
    }


def check(name: str, held: Held, size: Size) -> dict[str, float]:
    """Compares a step in a precision with float64.

    Returns:
        Largest errors: of ``gradient`` and ``parameters``, relative to the largest entry, and of
        ``update``, relative to the largest change that the step makes.

    Raises:
        RuntimeError: one of the first two is above what is allowed.
    """
    ((task, rule, _),) = host_tasks(size)
    jax_task, settings = Task(*map(jnp.asarray, task)), settings_for(size)
    batch = sample_batch(jax.random.key(3), jax_task, size.batch_size)
    state = start(jax_task, settings)
    # Numbers that both have: what is compared is the step and not the start.
    state = state._replace(params=held_in(held_in(state.params, "bfloat16"), held.params))
    params = _float64(state.params.value), _float64(state.params.attention)
    gradient = reference_gradient(
        params, HostBatch(*(np.asarray(array).astype(np.int64) for array in batch))
    )
    exact = reference_step(params, gradient, task, rule)
    found, after = _step(held, state, batch, jax_task, size)
    changed = [right - before for right, before in zip(exact, params, strict=True)]
    moved = [array - before for array, before in zip(after, params, strict=True)]
    errors = {
        "gradient": largest_error(found, gradient),
        "parameters": largest_error(after, exact),
        "update": largest_error(moved, changed),
    }
    for part, allowed in zip(errors, ALLOWED[name], strict=False):
        if not errors[part] <= allowed:
            raise RuntimeError(f"{name}: {part} off by {errors[part]:.1g} at {size}")
    return errors


def _step(
    held: Held, state: LearnerState, batch: Batch, task: Task, size: Size
) -> tuple[list[Values], list[Values]]:
    """The gradient, and the parameters after a step."""

    @jax.jit
    def both(state: LearnerState) -> tuple[Params, Params]:
        gradient = jax.grad(loss)(held_in(state.params, held.step), batch)
        return gradient, step_in(held, state, batch, task, settings_for(size)).params

    gradient, after = both(state)
    assert {array.dtype.name for array in after} == {held.params}
    return [_float64(array) for array in gradient], [_float64(array) for array in after]


def _float64(array: Any) -> Values:  # noqa: ANN401 - of any floating dtype
    return np.asarray(array, np.float64)


def draw(payload: Payload) -> Figure:
    """Speeds, and errors of a step."""
    figure, (left, right) = new_figure(2)
    sizes = payload["sizes"]
    places = list(range(len(sizes)))
    for index, (name, colour) in enumerate(
        zip(PRECISIONS, ("#0072B2", "#009E73", "#D55E00"), strict=True)
    ):
        rates = [size["rows"][index]["rate"] for size in sizes]
        draw_spread(left, places, rates, name, scale=1e-6, color=colour)
        right.plot(
            places,
            [size["errors"][name]["parameters"] for size in sizes],
            color=colour,
            marker="o",
            markersize=3,
        )
    left.set(yscale="log", ylabel="million tokens per second")
    right.set(yscale="log", ylabel="error of V and A after a step")
    for axes in (left, right):
        axes.set_xticks(places, [str(size["num_tokens"]) for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("vocabulary size N")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=3)
    return figure


if __name__ == "__main__":
    sys.exit(run_script("precision", __doc__, measure, draw))
