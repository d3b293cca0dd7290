"""What diverged in a run, and the likely cause where the experiment knows one."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from scbjax.base import short_name
from scbjax.sweep.engine.progress import counted
from scbjax.sweep.plan.plans import Plan
from scbjax.values import Values

MAX_POINTS_TOLD = 8
"""The dataset tells of the others."""


def divergence_report(
    plan: Plan,
    diverged_at: npt.NDArray[np.int32],
    constants: Mapping[str, npt.NDArray[Any]],
) -> list[str]:
    """What diverged: how many, and for the first of them the point, the step and the likely cause.

    Args:
        plan: the plan.
        diverged_at: step of the first record at which the parameters were not finite, or -1;
            [trajectories], in the order of the flattened grid.
        constants: those of the experiment, likewise, by name.

    Returns:
        The lines; none if nothing diverged.
    """
    places = np.flatnonzero(diverged_at >= 0)
    if not places.size:
        return []
    places = places[np.argsort(diverged_at[places], kind="stable")]
    share = f"{places.size} of {counted(plan.num_trajectories, 'trajectory')}"
    whose = "its" if places.size == 1 else "their"
    lines = [f"{share} diverged; {whose} records from then on are NaN:"]
    for place in places[:MAX_POINTS_TOLD]:
        own, values = _point(plan, int(place))
        where = ", ".join(f"{name} = {value}" for name, value in own.items()) or "the only one"
        line = f"  {where}: by step {diverged_at[place]}"
        if cause := plan.study.experiment.cause:
            own_constants = {name: float(array[place]) for name, array in constants.items()}
            line += f"; {cause(values, own_constants)}"
        lines.append(line)
    if places.size > MAX_POINTS_TOLD:
        rest = places.size - MAX_POINTS_TOLD
        lines.append(f"  and {rest} more, which the variable diverged_at of the dataset tells")
    return lines


def _point(plan: Plan, place: int) -> tuple[dict[str, Any], Values]:
    """The coordinates of a trajectory by short name, and the values of all its fields."""
    own, values = {}, dict(plan.study.base)
    rows = np.unravel_index(place, plan.shape) if plan.shape else ()
    for axis, row in zip(plan.study.axes, rows, strict=True):
        for path, value in zip(axis.fields, axis.values[int(row)], strict=True):
            own[short_name(path)] = values[path] = value
    return own, values
