"""What a page says in words: axes and their points, what is shown, what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from scbjax.exploring.choosing import Choice, settings_of
from scbjax.exploring.gathering import Gathered
from scbjax.exploring.opening import attribute
from scbjax.exploring.thinning import Sizes
from scbjax.plot.labels import column_of, fields_along, telling, worded

if TYPE_CHECKING:
    import xarray

_TOLD: Final = {
    "task.num_tokens": "N",
    "task.context_length": "T",
    "task.sparsity": "Q",
    "train.batch_size": "batch size",
    "train.optimizer": "optimizer",
}
"""Settings that stand below the title, where they hold for the whole study."""


def axis_title(frame: xarray.Dataset, axis: str) -> str:
    """What an axis is called: its name, with its unit if it has one."""
    name = axis.replace("_", " ")
    units = frame[axis].attrs.get("units", "1") if axis in frame.coords else "1"
    return name if units in {"1", ""} else f"{name} ({units})"


def axis_description(frame: xarray.Dataset, axis: str) -> str | None:
    """What the field of an axis is, if the dataset says so."""
    attrs = frame[axis].attrs if axis in frame.coords else {}
    return str(attrs["long_name"]) if attrs.get("long_name") else None


def axis_points(frame: xarray.Dataset, axis: str) -> list[str]:
    """The points of an axis in words.

    Of a zip these are the texts that differ, and as few numbers as tell the points apart.
    """
    fields = fields_along(frame, axis) if axis in frame.dims else [axis]
    if fields == [axis]:
        return [worded(value) for value in column_of(frame, axis)]
    texts = [name for name in fields if frame[name].dtype.kind in "OUS"]
    texts = [name for name in texts if len(set(column_of(frame, name))) > 1]
    apart = len(set(zip(*(column_of(frame, name) for name in texts), strict=True)))
    told = [] if apart == frame.sizes[axis] else telling(frame, axis)
    columns = [
        [_setting(name, value) for value in column_of(frame, name)]
        for name in fields
        if name in {*texts, *told}
    ]
    return [", ".join(row) for row in zip(*columns, strict=True)]


def _setting(field: str, value: object) -> str:
    """A setting in words: a text speaks for itself."""
    return value if isinstance(value, str) else f"{field.replace('_', ' ')} {worded(value)}"


def title_of(frame: xarray.Dataset) -> str:
    """The title of a study, or its name."""
    return attribute(frame, "title") or attribute(frame, "name") or "A study"


def facts_of(frame: xarray.Dataset) -> str:
    """What all trajectories have in common, on one line."""
    settings = settings_of(frame)
    told = [f"{name} = {settings[path]}" for path, name in _TOLD.items() if path in settings]
    name = attribute(frame, "name")
    return ", ".join([*([f"study {name}"] if name else []), *told])


def left_out(data: Gathered) -> list[str]:
    """What of a study is not in the page, in sentences; nothing if all of it is."""
    there, kept = data.there, data.kept
    sentences = []
    axes = [
        f"{kept.axes[axis]} of {count} points of {axis.replace('_', ' ')}"
        for axis, count in there.axes.items()
        if kept.axes[axis] < count
    ]
    if axes:
        sentences.append(
            f"Of {there.trajectories} trajectories {kept.trajectories} are kept: "
            f"{_listed(axes)}, evenly chosen."
        )
    if kept.frames < there.frames:
        sentences.append(
            f"Of {there.frames} steps with matrices {kept.frames} are kept, evenly chosen."
        )
    if 0 < len(data.record_steps) < there.records:
        sentences.append(
            f"The curves have {len(data.record_steps)} of {there.records} points, evenly chosen."
        )
    return [*sentences, *_matrices_left_out(data.choice, there, kept)]


def _matrices_left_out(choice: Choice, there: Sizes, kept: Sizes) -> list[str]:
    """Which rows and columns of the matrices are not shown."""
    sentences = []
    for shown in choice.matrices:
        matrix, name = shown.matrix, shown.matrix.learned
        all_of, some = there.matrices[name], kept.matrices[name]
        letter = matrix.symbols[0]
        if some.rows < all_of.rows and matrix.by_weight:
            first = f"where {matrix.symbols[1]} is not zero, then " if shown.has_truth else ""
            sentences.append(
                f"Of the {all_of.rows} rows of {letter} ({matrix.rows}s) {some.rows} are shown, "
                f"chosen for each trajectory: {first}those with the largest weights at any step "
                "shown. What the others hold is said below the picture."
            )
        elif some.rows < all_of.rows:
            sentences.append(
                f"Of the {all_of.rows} rows of {letter} {some.rows} are shown, evenly chosen."
            )
        if some.columns < all_of.columns:
            sentences.append(
                f"Of the {all_of.columns} columns of {letter} {some.columns} are shown, evenly "
                "chosen."
            )
    return sentences


def _listed(parts: Sequence[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
