"""What a page shows of a study, as arrays: read part by part, thinned, in few bytes.

Entries of matrices are float16. Zero, one and every sign are kept exactly, other numbers to one
part in 2048; what is beyond 65504 is infinite, which happens where a trajectory diverges.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from scbjax.exploring.choosing import (
    DIVERGED,
    STEP,
    Choice,
    Place,
    Shown,
    extras_of,
    points_along,
    steps_along,
)
from scbjax.exploring.opening import Results
from scbjax.exploring.thinning import Places, Shape, Sizes, evenly, largest_rows, thin

if TYPE_CHECKING:
    import xarray

Half = npt.NDArray[np.float16]
Single = npt.NDArray[np.float32]
_BEYOND: Final = 1.5
"""A colour scale goes up to so many times the largest entry of the truth: what is beyond it, of a
trajectory that diverges, has a colour of its own, and does not make all others look alike."""


@dataclass(frozen=True)
class MatrixData:
    """A matrix of all trajectories that are kept.

    Attributes:
        shown: which one.
        learned: at each frame, [trajectories, frames, rows, columns].
        truth: what it should become, [trajectories, rows, columns], NaN where that is not known.
        rows: places of the rows that are kept, [trajectories, rows].
        elsewhere: of the rows that are not, the largest weight, and the sum of all in the mean
            over columns, both in size; [trajectories, frames, 2].
        scale: ends of the colour scale, [trajectories, 2].
        row_names: of all rows; none where they are called 0, 1, 2 and so on.
        all_rows: how many there are.
        column_names: of the columns that are kept.
    """

    shown: Shown
    learned: Half
    truth: Half
    rows: npt.NDArray[np.int32]
    elsewhere: Single
    scale: Single
    row_names: tuple[str, ...]
    all_rows: int
    column_names: tuple[str, ...]


@dataclass(frozen=True)
class Gathered:
    """What a page shows of a study.

    Attributes:
        choice: what was chosen.
        there: how much there is of it.
        kept: how much of it is here.
        axes: the places that are kept along each axis.
        frame_places: the places of the frames that are kept among all of them.
        steps: of these frames.
        matrices: what is shown at each frame.
        record_steps: the steps of the points of the curves.
        names: what the curves are of, and what else is told at each step.
        curves: [trajectories, names, records].
        ranges: the ends of the vertical axis of each panel of curves.
        diverged_at: the step at which a trajectory diverged, -1 for none; [trajectories].
        records: how many records there are of a trajectory, [trajectories].
        all_records: how many a trajectory has when it is done.
    """

    choice: Choice
    there: Sizes
    kept: Sizes
    axes: Mapping[str, Places]
    frame_places: Places
    steps: tuple[int, ...]
    matrices: tuple[MatrixData, ...]
    record_steps: tuple[int, ...]
    names: tuple[str, ...]
    curves: Single
    ranges: tuple[tuple[float, float], ...]
    diverged_at: npt.NDArray[np.int32]
    records: npt.NDArray[np.int32]
    all_records: int


def sizes_of(results: Results, choice: Choice) -> Sizes:
    """How much there is of a study; of one that is not complete, along points that have begun."""
    frame, dims = results.frame, results.dims
    matrices = {
        s.matrix.learned: Shape(
            frame.sizes[s.dims[0]], frame.sizes[s.dims[1]], s.has_truth, s.matrix.by_weight
        )
        for s in choice.matrices
    }
    names = _names(results, choice)
    records = frame.sizes[STEP] if any(STEP in dims[name] for name in names) else 0
    axes = {axis: len(places) for axis, places in _begun(results, choice.axes).items()}
    return Sizes(axes, len(choice.steps), records, len(names), matrices)


def gather(results: Results, choice: Choice, budget: int) -> Gathered:
    """What a page shows of a study.

    Args:
        results: of the study.
        choice: what is shown of it.
        budget: bytes of all arrays.

    Raises:
        StudyError: the results can't be read, or not even one trajectory is within the budget.
    """
    there = sizes_of(results, choice)
    kept = thin(there, budget)
    begun = _begun(results, choice.axes)
    axes = {axis: begun[axis][evenly(there.axes[axis], kept.axes[axis])] for axis in choice.axes}
    at = evenly(there.frames, kept.frames)
    names = _names(results, choice)
    curves, record_places = _curves(results, choice, names, axes, at, kept.records)
    diverged = _diverged(results, choice.axes, axes)
    records, all_records = _records(results, choice.axes, axes, kept.trajectories)
    return Gathered(
        choice=choice,
        there=there,
        kept=kept,
        axes=axes,
        frame_places=at,
        steps=tuple(choice.steps[place] for place in at),
        matrices=tuple(
            _matrix(results, choice.axes, shown, axes, at, kept.matrices[shown.matrix.learned])
            for shown in choice.matrices
        ),
        record_steps=tuple(int(n) for n in np.asarray(_record_steps(results))[record_places]),
        names=names,
        curves=curves,
        ranges=tuple(
            range_of(curves[:, [names.index(name) for name in panel.names]], diverged < 0)
            for panel in choice.panels
        ),
        diverged_at=diverged,
        records=records,
        all_records=all_records,
    )


def _names(results: Results, choice: Choice) -> tuple[str, ...]:
    curves = [name for panel in choice.panels for name in panel.names]
    extras = [name for name in extras_of(results, choice.axes) if name not in curves]
    return (*curves, *extras)


def _begun(results: Results, axes: Sequence[str]) -> dict[str, Places]:
    """The places along each axis of which there is anything."""
    records = results.records
    if records is None:
        return {axis: np.arange(results.frame.sizes[axis]) for axis in axes}
    there = records > 0
    others = {axis: [dim for dim in there.dims if dim != axis] for axis in axes}
    return {
        axis: np.flatnonzero(there.any(others[axis]).to_numpy())
        if axis in there.dims
        else np.arange(results.frame.sizes[axis])
        for axis in axes
    }


# ----------------------------------------------------------------------------------- matrices


def _matrix(
    results: Results,
    order: Sequence[str],
    shown: Shown,
    axes: Mapping[str, Places],
    at: Places,
    shape: Shape,
) -> MatrixData:
    """A matrix of all trajectories that are kept, read along the first axis point by point."""
    sizes = [results.frame.sizes[dim] for dim in shown.dims]
    # The same tokens along rows and columns of V, and along the columns of A.
    columns = evenly(sizes[1], shape.columns)
    parts = [
        _thinned(learned[..., columns], truth[..., columns], shown, shape.rows)
        for learned, truth in _blocks(results, order, shown, axes, at)
    ]
    learned, truth, rows, elsewhere, scale = (
        np.concatenate(part) for part in zip(*parts, strict=True)
    )
    names = [points_along(results.frame, dim) for dim in shown.dims]
    return MatrixData(
        shown,
        learned,
        truth,
        rows,
        elsewhere,
        scale,
        () if names[0] == [str(row) for row in range(sizes[0])] else tuple(names[0]),
        sizes[0],
        tuple(names[1][column] for column in columns),
    )


def _blocks(
    results: Results,
    order: Sequence[str],
    shown: Shown,
    axes: Mapping[str, Places],
    at: Places,
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """A matrix [trajectories, frames, rows, columns] and its truth, for each point of an axis."""
    first = order[0] if order else None
    for place in axes[first] if first else (None,):
        keep = dict(axes) if first is None else {**axes, first: np.array([place])}
        counts = [len(keep[axis]) for axis in order]
        frames = _frames(results, [shown.places[n] for n in at], keep)
        learned = _arranged(frames, order, counts, ("frame", *shown.dims))
        truth = np.full((len(learned), *learned.shape[2:]), np.nan, learned.dtype)
        if shown.has_truth:
            name = shown.matrix.truth
            truth = _arranged(results.select([name], keep)[name], order, counts, shown.dims)
        yield learned, truth


def _frames(
    results: Results, places: Sequence[Place], keep: Mapping[str, Places]
) -> xarray.DataArray:
    """Frames of a matrix along a dimension ``frame``, whichever variables they stand in."""
    import xarray

    parts = []
    for variable in dict.fromkeys(place.variable for place in places):
        own = [place for place in places if place.variable == variable]
        if own[0].dim:
            index = np.array([place.index for place in own])
            part = results.select([variable], {**keep, own[0].dim: index})[variable]
            parts.append(part.drop_vars(own[0].dim, errors="ignore").rename({own[0].dim: "frame"}))
        else:
            parts.append(results.select([variable], keep)[variable].expand_dims("frame"))
    # The order of the places: snapshots first, and then the end.
    return parts[0] if len(parts) == 1 else xarray.concat(parts, "frame", coords="minimal")


def _arranged(
    array: xarray.DataArray, order: Sequence[str], counts: Sequence[int], own: Sequence[str]
) -> npt.NDArray[Any]:
    """An array as [trajectories, ...], also along axes that it does not have."""
    absent = {
        axis: count for axis, count in zip(order, counts, strict=True) if axis not in array.dims
    }
    bare = array.drop_vars([name for name in array.coords if name not in array.dims])
    bare = bare.drop_vars(list(bare.coords))
    found: npt.NDArray[Any] = bare.expand_dims(absent).transpose(*order, *own).to_numpy()
    return found.reshape(int(np.prod(counts, dtype=int)), *found.shape[len(order) :])


def _thinned(
    learned: npt.NDArray[Any], truth: npt.NDArray[Any], shown: Shown, most: int
) -> tuple[Half, Half, npt.NDArray[np.int32], Single, Single]:
    """The rows that are kept of each trajectory, and what is to be said of the others."""
    count, frames, rows, _ = learned.shape
    if shown.matrix.by_weight:
        pairs = zip(learned, truth, strict=True)
        places = np.array([largest_rows(own, right, most) for own, right in pairs])
    else:
        places = np.broadcast_to(evenly(rows, most), (count, min(rows, most)))
    elsewhere = np.zeros((count, frames, 2), np.float32)
    if places.shape[1] < rows:
        size = np.abs(learned.astype(np.float32))
        np.put_along_axis(size, places[:, None, :, None], 0.0, axis=2)
        elsewhere[..., 0] = size.max(axis=(2, 3))
        elsewhere[..., 1] = size.sum(axis=2).mean(axis=-1)
    learned = _half(np.take_along_axis(learned, places[:, None, :, None], axis=2))
    truth = _half(np.take_along_axis(truth, places[:, :, None], axis=1))
    # Of the numbers as they are kept: rounding moves none of them off the scale.
    scale = np.array([scale_of(own, right) for own, right in zip(learned, truth, strict=True)])
    return learned, truth, places.astype(np.int32), elsewhere, scale


def _half(array: npt.NDArray[Any]) -> Half:
    with np.errstate(over="ignore"):
        return array.astype(np.float16)


def scale_of(learned: npt.NDArray[Any], truth: npt.NDArray[Any]) -> Single:
    """The ends of the colour scale that a matrix and its truth share at all frames.

    From the least entry, or zero if that is less, to the largest one; but not beyond `_BEYOND`
    times the largest entry of the truth, or, below zero, half of that.

    Args:
        learned: the matrix at each frame.
        truth: what it should become; NaN where that is not known.

    Returns:
        Two numbers, the first below the second.
    """
    entries, right = learned[np.isfinite(learned)], truth[np.isfinite(truth)]
    low = min(0.0, float(entries.min(initial=0.0)))
    high = max(0.0, float(entries.max(initial=0.0)))
    if right.size and right.max() > 0:
        top = float(right.max())
        high = min(max(high, top), _BEYOND * top)
        low = max(low, -_BEYOND / 2 * top)
    return np.array([low, high if high > low else low + 1.0], np.float32)


# ------------------------------------------------------------------------------------- curves


def _record_steps(results: Results) -> list[int]:
    return steps_along(results.frame, STEP) if STEP in results.frame.dims else []


def _curves(
    results: Results,
    choice: Choice,
    names: Sequence[str],
    axes: Mapping[str, Places],
    at: Places,
    most: int,
) -> tuple[Single, Places]:
    """The curves [trajectories, names, records], and the places of the records that are kept.

    Those of the frames are among them, as far as there are records of them.
    """
    counts = [len(axes[axis]) for axis in choice.axes]
    trajectories = int(np.prod(counts, dtype=int))
    if not names:
        return np.zeros((trajectories, 0, 0), np.float32), np.zeros(0, int)
    steps = _record_steps(results)
    where = {step: place for place, step in enumerate(steps)}
    own = {where[step] for step in (choice.steps[n] for n in at) if step in where}
    places = np.array(sorted(own | set(evenly(len(steps), most).tolist())))
    dataset = results.select(list(names), {**axes, STEP: places})
    curves = [_arranged(dataset[name], choice.axes, counts, (STEP,)) for name in names]
    return np.stack([curve.astype(np.float32) for curve in curves], axis=1), places


def range_of(curves: npt.NDArray[Any], sound: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """The ends of the axis of some curves: of all trajectories, but those that diverged.

    Args:
        curves: [trajectories, ...].
        sound: which of them did not diverge.
    """
    some = curves[sound] if sound.any() else curves
    finite = some[np.isfinite(some)].astype(float)
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    low, high = min(0.0, low), max(0.0, high)
    room = 0.04 * (high - low) or 1.0
    return (low - room if low < 0 else low), high + room


def _diverged(
    results: Results, order: Sequence[str], axes: Mapping[str, Places]
) -> npt.NDArray[np.int32]:
    """At which step each trajectory diverged, or -1."""
    counts = [len(axes[axis]) for axis in order]
    if DIVERGED not in results.dims or not set(results.dims[DIVERGED]) <= set(order):
        return np.full(int(np.prod(counts, dtype=int)), -1, np.int32)
    array = _arranged(results.select([DIVERGED], axes)[DIVERGED], order, counts, ())
    steps: npt.NDArray[np.int32] = np.nan_to_num(array, nan=-1).astype(np.int32)
    return steps


def _records(
    results: Results, order: Sequence[str], axes: Mapping[str, Places], count: int
) -> tuple[npt.NDArray[np.int32], int]:
    """How many records there are of each trajectory, and how many there will be."""
    total = max(1, len(_record_steps(results)))
    if results.records is None:
        return np.full(count, total, np.int32), total
    own = {axis: places for axis, places in axes.items() if axis in results.records.dims}
    counts = [len(axes[axis]) for axis in order]
    array = _arranged(results.records.isel(own), order, counts, ())
    return array.astype(np.int32), total
