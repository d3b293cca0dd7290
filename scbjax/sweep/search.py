"""Searches: the value of one traced field with which a goal is reached with the fewest samples.

A study with a field ``search.field`` (such as ``learning_rate_1``) is run once for each combination
of its axes other than seeds, a *cell*, and several times over: the first round spreads values of
the field over the range given, each further one looks between the best value so far and its
neighbours. How good a value is, is the number of samples after which the share of the seeds asked
for has reached the goal.

Every cell and round is an ordinary study in a directory of its own, with its own resume and
checksums; rounds differ in traced numbers alone, so they are one program. The values of a round
follow from the results of those before, which makes a search that was interrupted go on where it
was. At the end all probes become one dataset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scbjax.base import short_name
from scbjax.sweep.study.axes import Axis
from scbjax.sweep.study.cells import Cell, cell_axes, cells_of, seed_axes
from scbjax.sweep.study.definition import Study

if TYPE_CHECKING:
    import xarray

SAMPLES_TO_GOAL = "samples_to_goal"
SAMPLES_TO_SWITCH = "samples_to_switch"

_DIGITS = 6  # of the values tried: fewer would not tell neighbours apart, more are not needed

Floats = npt.NDArray[np.float64]
Measure = Callable[[Study, Path], "xarray.Dataset"]


def first_values(first: float, last: float, points: int) -> tuple[float, ...]:
    """The values of the first round.

    >>> first_values(0.01, 1.0, 3)
    (0.01, 0.1, 1.0)
    """
    return _rounded(np.geomspace(first, last, points))


def first_studies(study: Study) -> list[Study]:
    """The studies of the first round, one a cell; those of later rounds cost the same."""
    path, points = study.fields.find(study.base["search.field"]).path, study.base["search.points"]
    values = first_values(study.base["search.first"], study.base["search.last"], points)
    return [_with_values(cell.study, path, values) for cell in cells_of(study)]


def next_values(tried: Sequence[float], costs: Sequence[float], points: int) -> tuple[float, ...]:
    """The values of a further round: half of them on each side of the best value so far.

    Where the best value is the least or the largest so far, that side reaches beyond it by the
    widest gap between values. Where no value reached the goal, the gaps between all of them are
    looked through.

    >>> next_values([0.01, 0.1, 1.0], [9.0, 5.0, 7.0], 4)
    (0.0215443, 0.0464159, 0.215443, 0.464159)
    """
    order = np.argsort(tried)
    logs, ranked = np.log(np.asarray(tried, float)[order]), np.asarray(costs, float)[order]
    if not np.isfinite(ranked).any():
        inside = np.linspace(logs[0], logs[-1], points * (len(logs) + 1) + 1)
        gaps = np.array([np.abs(logs - value).min() for value in inside])
        return _rounded(np.exp(np.sort(inside[np.argsort(-gaps, kind="stable")[:points]])))
    # Of several equally good values, the one in their middle.
    best = int(np.median(np.flatnonzero(ranked == ranked.min())))
    reach = np.diff(logs).max()
    low = logs[best - 1] if best else logs[0] - reach
    high = logs[best + 1] if best + 1 < len(logs) else logs[-1] + reach
    below, above = points // 2, points - points // 2
    left = np.linspace(low, logs[best], below + 2)[1:-1]
    right = np.linspace(logs[best], high, above + 2)[1:-1]
    return _rounded(np.exp(np.concatenate([left, right])))


def samples_to(samples: Floats, reached: npt.NDArray[np.bool_]) -> Floats:
    """Samples at the first record that has reached something; infinity where none has.

    Args:
        samples: [..., records].
        reached: [..., records].
    """
    first = np.argmax(reached, axis=-1)
    found: Floats = np.take_along_axis(samples, first[..., None], axis=-1)[..., 0]
    return np.where(reached.any(axis=-1), found, np.inf)


def cost_of(samples: Floats, share: float) -> Floats:
    """Samples after which a share of the runs has reached the goal.

    Args:
        samples: [runs, ...], infinity for runs that never do.
        share: in (0, 1].

    >>> cost_of(np.array([[300.0], [100.0], [np.inf], [200.0]]), 0.75).tolist()
    [300.0]
    """
    needed = math.ceil(share * len(samples) - 1e-9)
    found: Floats = np.sort(samples, axis=0)[needed - 1]
    return found


def search(study: Study, out: Path, measure: Measure) -> xarray.Dataset:
    """Runs all rounds of all cells.

    Args:
        study: the search.
        out: the results directory; cell c and round r are in ``out/cell-c/round-r``.
        measure: runs an ordinary study into a directory, or finds it done there, and returns its
            dataset. What it raises ends the search.

    Returns:
        The dataset: along the axes of the study and ``probe``, the values tried (under the name of
        the field), and for each seed ``samples_to_goal`` and ``samples_to_switch``; infinity for
        runs that did not come to it.
    """
    found = [
        _search_cell(study, cell, out / f"cell-{cell.index}", measure) for cell in cells_of(study)
    ]
    return _dataset(study, found)


@dataclass(frozen=True)
class _Probes:
    """What was tried in a cell: values [probes], samples [runs, probes]."""

    values: Floats
    to_goal: Floats
    to_switch: Floats


def _search_cell(study: Study, cell: Cell, out: Path, measure: Measure) -> _Probes:
    path, share = study.fields.find(study.base["search.field"]).path, study.base["search.share"]
    points = study.base["search.points"]
    values = first_values(study.base["search.first"], study.base["search.last"], points)
    rounds: list[_Probes] = []
    for number in range(study.base["search.rounds"]):
        if rounds:
            tried = np.concatenate([done.values for done in rounds])
            costs = np.concatenate([cost_of(done.to_goal, share) for done in rounds])
            values = next_values(list(tried), list(costs), points)
        dataset = measure(_with_values(cell.study, path, values), out / f"round-{number}")
        rounds.append(_probes(study, dataset, values))
    return _Probes(
        np.concatenate([done.values for done in rounds]),
        np.concatenate([done.to_goal for done in rounds], axis=1),
        np.concatenate([done.to_switch for done in rounds], axis=1),
    )


def _with_values(study: Study, path: str, values: Sequence[float]) -> Study:
    axis = Axis(short_name(path), (path,), tuple((value,) for value in values))
    base = {name: value for name, value in study.base.items() if name != path}
    return replace(study, base=MappingProxyType(base), axes=(*study.axes, axis))


def _probes(study: Study, dataset: xarray.Dataset, values: Sequence[float]) -> _Probes:
    """Reduces the dataset of a round, whose dimensions are seeds, the values and the step."""

    def flat(name: str) -> Floats:
        array = dataset[name].to_numpy().astype(np.float64)
        return array.reshape(-1, *array.shape[-2:])

    rules = study.experiment.search
    assert rules is not None  # or it would not have been read as a search
    samples = flat(rules.samples)
    goal, level = flat(study.base["search.goal"]), study.base["search.level"]
    rises = study.base["search.direction"] == "rises"
    return _Probes(
        np.asarray(values, np.float64),
        samples_to(samples, goal >= level if rises else goal <= level),
        samples_to(samples, flat(rules.stage) > 1),
    )


def _dataset(study: Study, found: Sequence[_Probes]) -> xarray.Dataset:
    import xarray

    from scbjax.sweep.results.dataset import axis_coords, study_attributes

    cells, seeds = cell_axes(study), seed_axes(study)
    cell_names, seed_names = ([axis.name for axis in axes] for axes in (cells, seeds))
    cell_shape, seed_shape = ([len(axis) for axis in axes] for axes in (cells, seeds))
    field = study.fields.find(study.base["search.field"])
    coords: dict[str, Any] = {}
    for axis in (*cells, *seeds):
        coords.update(axis_coords(study, axis))

    def runs(name: str) -> npt.NDArray[Any]:
        stacked = np.stack([getattr(probes, name) for probes in found])
        return stacked.reshape(*cell_shape, *seed_shape, stacked.shape[-1])

    values = np.stack([probes.values for probes in found])
    dims = (*cell_names, *seed_names, "probe")
    sign = ">=" if study.base["search.direction"] == "rises" else "<="
    goal = f"{study.base['search.goal']} {sign} {study.base['search.level']:g}"
    return xarray.Dataset(
        {
            field.short: (
                (*cell_names, "probe"),
                values.reshape(*cell_shape, -1),
                {"long_name": field.help, "units": "1", "field": field.path},
            ),
            SAMPLES_TO_GOAL: (
                dims,
                runs("to_goal"),
                {"long_name": f"samples until {goal}", "units": "samples"},
            ),
            SAMPLES_TO_SWITCH: (
                dims,
                runs("to_switch"),
                {"long_name": "samples until stage 1 ends", "units": "samples"},
            ),
        },
        coords=coords,
        attrs=study_attributes(study),
    )


def _rounded(values: Floats) -> tuple[float, ...]:
    return tuple(float(f"{value:.{_DIGITS}g}") for value in values)
