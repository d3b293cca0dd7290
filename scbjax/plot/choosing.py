"""Which variables of a dataset are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from scbjax.base import StudyError
from scbjax.plot.arranging import MATRICES, PROBE, seeds_of
from scbjax.tables import nearest

if TYPE_CHECKING:
    import xarray


DISTANCES: Final = (
    "value_distance",
    "attention_distance",
    "rounded_value_distance",
    "rounded_attention_distance",
)
"""What is drawn where it was recorded; otherwise the first few of the other records are."""
MAX_PANELS: Final = 4

_LAST: Final = frozenset({"samples", "stage", "flipped"})
"""Drawn only where nothing else was recorded."""
_CONSTANTS: Final = frozenset(
    {"transition_signal", "pattern_signal", "stationary_norm", "diverged_at"}
)


def choose(dataset: xarray.Dataset, variables: Sequence[str] | None) -> list[str]:
    """The variables that are drawn: all of them along the step, or none."""
    if variables is not None:
        return _checked(dataset, variables)
    usable = [str(name) for name in dataset.data_vars if _is_drawable(dataset, str(name))]
    timed = [name for name in usable if "step" in dataset[name].dims]
    others = [
        name
        for name in usable
        # What a search tried has no seeds: its runs are what is drawn.
        if PROBE not in dataset[name].dims or set(dataset[name].dims) & set(seeds_of(dataset))
    ]
    choices: tuple[list[str], ...] = (
        [name for name in DISTANCES if name in timed],
        [name for name in timed if name not in _LAST],
        timed,
        [name for name in others if name.removeprefix("drawn_") not in _CONSTANTS],
        [name for name in others if name != "diverged_at"],
    )
    for names in choices:
        if names:
            return names[:MAX_PANELS]
    raise StudyError("the dataset has nothing to draw: no variable is a number for each run")


def _checked(dataset: xarray.Dataset, variables: Sequence[str]) -> list[str]:
    if isinstance(variables, str):
        raise StudyError(f"variables must be a sequence of names, got {variables!r}")
    names = list(dict.fromkeys(variables))
    if not 1 <= len(names) <= MAX_PANELS:
        raise StudyError(f"variables must be 1 to {MAX_PANELS} names, got {len(names)}")
    for name in names:
        if name not in dataset.data_vars:
            known = [str(own) for own in dataset.data_vars]
            near = nearest(name, known) or f" (it holds {', '.join(known)})"
            raise StudyError(f"the dataset does not hold {name!r}{near}")
        if not _is_drawable(dataset, name):
            raise StudyError(f"{name} can't be drawn: {_why_not(dataset, name)}")
    if len({"step" in dataset[name].dims for name in names}) > 1:
        raise StudyError(f"{', '.join(names)} can't be drawn together: not all are along the step")
    return names


def _why_not(dataset: xarray.Dataset, name: str) -> str:
    own = [str(dim) for dim in dataset[name].dims if dim in MATRICES]
    if not own:
        return "it is not a number for each run"
    return f"it has the dimension {', '.join(own)}; record a scalar of it beside the array"


def _is_drawable(dataset: xarray.Dataset, name: str) -> bool:
    return dataset[name].dtype.kind in "fiub" and not MATRICES & set(dataset[name].dims)
