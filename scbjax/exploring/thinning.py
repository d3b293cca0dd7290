"""How much of a study fits into a page: what is kept, so that a file stays within a size.

A page that holds everything of 10^4 trajectories would be no page any more. What is left out is
chosen by rule, evenly and with both ends of every axis kept, and is said in words (`left_out`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from scbjax.base import StudyError

Places = npt.NDArray[np.int_]

MAX_FRAMES: Final = 100
"""More frames than this are not told apart when they are played."""
MAX_RECORDS: Final = 200
"""Points of a curve: a panel has some 400 pixels."""
MAX_ROWS: Final = 48
"""Rows of a matrix: of more a row has too few pixels for the frame around an entry."""
MAX_COLUMNS: Final = 32
FEW_POINTS: Final = 8
"""Points of an axis that are kept as long as anything else can be thinned."""
FEW_FRAMES: Final = 25

_HALF, _SINGLE = 2, 4  # bytes of numbers of matrices, and of all others
_SHRINK: Final = 0.9  # at each turn: small, so that the size comes near the one allowed


@dataclass(frozen=True)
class Shape:
    """A matrix of each trajectory and frame.

    Attributes:
        rows: of it.
        columns: of it.
        has_truth: whether there is another one of the same shape for each trajectory.
        by_weight: whether rows are chosen by weight. Where they are not they are tokens, as columns
            are, and the same ones are kept of both.
    """

    rows: int
    columns: int
    has_truth: bool
    by_weight: bool


@dataclass(frozen=True)
class Sizes:
    """How much there is of a study, or how much of it is kept.

    Attributes:
        axes: points of each axis.
        frames: times at which there are matrices.
        records: times at which there are points of the curves.
        curves: variables along the step.
        matrices: by name.
    """

    axes: Mapping[str, int]
    frames: int
    records: int
    curves: int
    matrices: Mapping[str, Shape]

    @property
    def trajectories(self) -> int:
        """Points of the product of the axes."""
        return int(np.prod(list(self.axes.values()), dtype=np.int64))

    @property
    def bytes(self) -> int:
        """Of the arrays of a page."""
        # The records of the frames are kept as well.
        each = _SINGLE * (self.curves * (self.records + self.frames) + 2)
        for shape in self.matrices.values():
            cells = shape.rows * shape.columns
            each += _HALF * cells * (self.frames + shape.has_truth)
            each += _SINGLE * (shape.rows + 2 * self.frames + 2)
        return each * self.trajectories


def evenly(count: int, most: int) -> Places:
    """At most so many of the places 0, ..., count - 1: evenly spaced, both ends kept.

    >>> evenly(10, 4), evenly(3, 4)
    (array([0, 3, 6, 9]), array([0, 1, 2]))
    """
    if count <= most:
        return np.arange(count)
    return np.linspace(0, count - 1, most).round().astype(int)


def thin(sizes: Sizes, budget: int) -> Sizes:
    """How much of a study is kept, so that its arrays are within a number of bytes.

    What nobody could see goes first: frames above `MAX_FRAMES`, points of curves above
    `MAX_RECORDS`, rows above `MAX_ROWS` and columns above `MAX_COLUMNS`. Then the longest axis
    loses points, until each has `FEW_POINTS`; then there are fewer frames, down to `FEW_FRAMES`;
    then axes down to two points, frames down to two, and smaller matrices.

    Args:
        sizes: what there is.
        budget: bytes.

    Raises:
        StudyError: not even the least fits.
    """
    kept = replace(
        sizes,
        frames=min(sizes.frames, MAX_FRAMES),
        records=min(sizes.records, MAX_RECORDS),
        matrices={name: _limited(shape) for name, shape in sizes.matrices.items()},
    )
    while kept.bytes > budget:
        smaller = next(_smaller(kept), None)
        if smaller is None:
            raise StudyError(
                f"a page of one trajectory takes {kept.bytes} bytes of data, and {max(0, budget)} "
                "are left of the size allowed: allow more"
            )
        kept = smaller
    return kept


def _limited(shape: Shape, rows: int = MAX_ROWS, columns: int = MAX_COLUMNS) -> Shape:
    most = rows if shape.by_weight else columns
    return replace(shape, rows=min(shape.rows, most), columns=min(shape.columns, columns))


def _smaller(kept: Sizes) -> Iterator[Sizes]:
    """What is a little less, the best way first."""
    longest = max(kept.axes, key=kept.axes.__getitem__, default="")
    points = kept.axes.get(longest, 1)

    def shorter(least: int) -> Sizes:
        return replace(kept, axes={**kept.axes, longest: _less(points, least)})

    if points > FEW_POINTS:
        yield shorter(FEW_POINTS)
    if kept.frames > FEW_FRAMES:
        yield replace(kept, frames=_less(kept.frames, FEW_FRAMES))
    if points > 2:
        yield shorter(2)
    if kept.frames > 2:
        yield replace(kept, frames=_less(kept.frames, 2))
    for rows, columns in ((16, 16), (8, 8)):
        limited = {name: _limited(shape, rows, columns) for name, shape in kept.matrices.items()}
        if limited != dict(kept.matrices):
            yield replace(kept, matrices=limited)
    if points > 1:
        yield shorter(1)


def _less(count: int, least: int) -> int:
    return max(least, min(count - 1, int(count * _SHRINK)))


def largest_rows(
    learned: npt.NDArray[np.floating], truth: npt.NDArray[np.floating] | None, most: int
) -> Places:
    """The rows of a matrix that matter: where the truth is, and where the largest weights are.

    Args:
        learned: the matrix at each frame, [frames, rows, columns].
        truth: what it should become, [rows, columns], if that is known.
        most: rows to choose.

    Returns:
        Their places, ascending. Rows with an entry of the truth come before all others, larger
        entries first; then those with the largest weight at any frame.
    """
    rows = learned.shape[1]
    if rows <= most:
        return np.arange(rows)
    size = np.nan_to_num(np.abs(learned), nan=0.0).max(axis=(0, 2))
    right = np.zeros(rows) if truth is None else np.nan_to_num(truth, nan=0.0).max(axis=1)
    order = np.lexsort((-size, -right))
    return np.sort(order[:most])
