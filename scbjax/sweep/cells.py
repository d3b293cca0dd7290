"""The cells of a search: what is searched one by one, with which runs, and whether it can be.

`scbjax.sweep.search` runs them. This much is here because a study is checked without NumPy.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeAlias

from scbjax.sweep.axes import Axis
from scbjax.sweep.definition import Study, combinations
from scbjax.sweep.fields import FIELDS, INT32_MAX, StudyError, find_field, shown

_LENGTH, _BATCH, _STEPS, _EVERY = (
    "task.context_length",
    "train.batch_size",
    "train.steps",
    "train.record_every",
)

Sizes: TypeAlias = tuple[int, int]
"""Context length and batch size."""


@dataclass(frozen=True)
class Cell:
    """One combination of the axes that are neither seeds nor searched.

    Attributes:
        index: its place among the cells, in the order of the study's axes.
        values: the fields that it fixes, by dotted path.
        study: the study of the cell, with the axes of seeds alone.
    """

    index: int
    values: Mapping[str, Any]
    study: Study


def is_search(study: Study) -> bool:
    """Whether a study looks for the best value of a field."""
    return study.base["search.field"] is not None


def check_search(study: Study) -> None:
    """Checks what the fields of a search say together.

    Raises:
        StudyError: the field can't be searched, the range is empty, the goal isn't recorded, or
            runs of some size can't be.
    """
    try:
        field = find_field(study.base["search.field"])
    except StudyError as error:
        raise StudyError(f"search.field: {error}") from None
    first, last = study.base["search.first"], study.base["search.last"]
    if field.kind != "traced" or field.type is not float or field.layer != "inner":
        raise StudyError(
            f"search.field must be a number that only the learner sees, such as "
            f"train.learning_rate_1, got {shown(study.base['search.field'])}"
        )
    if any(field.path in axis.fields for axis in study.axes):
        raise StudyError(f"{field.path} is searched and is an axis as well; keep one of them")
    if first is None or last is None or not first < last:
        raise StudyError(
            f"search.first and search.last must be given, the first below the last, "
            f"got {shown(first)} and {shown(last)}"
        )
    needed = {study.base["search.goal"], "samples", "stage"}
    if missing := sorted(needed - set(study.variables)):
        raise StudyError(f"a search needs {', '.join(missing)} in record.variables")
    if study.snapshots:
        raise StudyError(
            f"record.snapshots must be empty in a search, got {shown(list(study.snapshots))}"
        )
    _check_schedules(study)


def _check_schedules(study: Study) -> None:
    smallest = _smallest(study)
    paths = (_LENGTH, _BATCH, "train.start", "transfer.pretraining_steps")
    for length, batch, start, pretraining in combinations(study, paths):
        schedule = _schedule(study, (length, batch), smallest)
        if schedule[_STEPS] * batch > INT32_MAX:
            raise StudyError(
                f"search.growth = {study.base['search.growth']} makes runs of more than "
                f"{INT32_MAX} samples at {_LENGTH} = {length}"
            )
        if start == "pretrained" and pretraining % schedule[_EVERY]:
            raise StudyError(
                f"transfer.pretraining_steps = {pretraining} is not a multiple of {_EVERY}, "
                f"which the search makes {schedule[_EVERY]} at {_LENGTH} = {length} "
                f"and {_BATCH} = {batch}"
            )


def seed_axes(study: Study) -> tuple[Axis, ...]:
    """The axes whose points are repetitions."""
    return tuple(axis for axis in study.axes if _is_seed(axis))


def cell_axes(study: Study) -> tuple[Axis, ...]:
    """The axes whose points are searched one by one."""
    return tuple(axis for axis in study.axes if not _is_seed(axis))


def cells_of(study: Study) -> Iterator[Cell]:
    """The cells of a search.

    All runs of a search take the same number of records. Those with the smallest batch size and
    context length take the steps that the study gives; the others as many as make the same number
    of samples, times the power of the context length that the study asks for.
    """
    axes, smallest = cell_axes(study), _smallest(study)
    for index, rows in enumerate(itertools.product(*(axis.values for axis in axes))):
        values = {
            path: value
            for axis, row in zip(axes, rows, strict=True)
            for path, value in zip(axis.fields, row, strict=True)
        }
        base = {**study.base, **values}
        base.update(_schedule(study, (base[_LENGTH], base[_BATCH]), smallest))
        base.update({path: FIELDS[path].default for path in base if FIELDS[path].table == "search"})
        yield Cell(
            index, values, replace(study, base=MappingProxyType(base), axes=seed_axes(study))
        )


def _schedule(study: Study, sizes: Sizes, smallest: Sizes) -> dict[str, int]:
    """Steps and record_every of the runs with some sizes, given the smallest of the study."""
    grown = (sizes[0] / smallest[0]) ** study.base["search.growth"]
    every = max(1, round(study.base[_EVERY] * grown * smallest[1] / sizes[1]))
    return {_EVERY: every, _STEPS: every * (study.base[_STEPS] // study.base[_EVERY])}


def _smallest(study: Study) -> Sizes:
    length, batch = (
        min(value for (value,) in combinations(study, (path,))) for path in (_LENGTH, _BATCH)
    )
    return length, batch


def _is_seed(axis: Axis) -> bool:
    return all(FIELDS[path].kind == "data" for path in axis.fields)
