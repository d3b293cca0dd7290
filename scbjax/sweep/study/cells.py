"""The cells of a search: what is searched one by one, with which runs, and whether it can be.

`scbjax.sweep.search` runs them. This much is here because a study is checked without NumPy.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeAlias

from scbjax.base import RECORD_EVERY, STEPS, SearchRules, StudyError
from scbjax.sweep.study.axes import Axis
from scbjax.sweep.study.definition import Study
from scbjax.sweep.study.fields import shown
from scbjax.values import INT32_MAX

Sizes: TypeAlias = tuple[int, int]
"""The size that makes problems harder, such as a context length, and the batch size."""


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
    rules = _rules(study)
    try:
        field = study.fields.find(study.base["search.field"])
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
    needed = {study.base["search.goal"], rules.samples, rules.stage}
    if missing := sorted(needed - set(study.variables)):
        raise StudyError(f"a search needs {', '.join(missing)} in record.variables")
    if study.snapshots:
        raise StudyError(
            f"record.snapshots must be empty in a search, got {shown(list(study.snapshots))}"
        )
    _check_schedules(study)


def _check_schedules(study: Study) -> None:
    smallest, rules = _smallest(study), _rules(study)
    read = {path for relation in rules.fit for path in relation.paths}
    sized = (rules.size, rules.batch_size, *sorted(read - {STEPS.path, RECORD_EVERY.path}))
    for row in study.combinations(sized):
        values = {**study.base, **dict(zip(sized, row, strict=True))}
        length, batch = values[rules.size], values[rules.batch_size]
        schedule = _schedule(study, (length, batch), smallest)
        if schedule[STEPS.path] * batch > INT32_MAX:
            raise StudyError(
                f"search.growth = {study.base['search.growth']} makes runs of more than "
                f"{INT32_MAX} samples at {rules.size} = {length}"
            )
        values |= schedule
        for relation in rules.fit:
            if wrong := relation.refusal([values[path] for path in relation.paths]):
                raise StudyError(
                    f"{wrong}, which the search makes it at {rules.size} = {length} and "
                    f"{rules.batch_size} = {batch}"
                )


def seed_axes(study: Study) -> tuple[Axis, ...]:
    """The axes whose points are repetitions."""
    return tuple(axis for axis in study.axes if _is_seed(study, axis))


def cell_axes(study: Study) -> tuple[Axis, ...]:
    """The axes whose points are searched one by one."""
    return tuple(axis for axis in study.axes if not _is_seed(study, axis))


def cells_of(study: Study) -> Iterator[Cell]:
    """The cells of a search.

    All runs of a search take the same number of records. Those with the smallest batch size and
    size take the steps that the study gives; the others as many as make the same number of samples,
    times the power of the size that the study asks for.
    """
    axes, smallest, rules = cell_axes(study), _smallest(study), _rules(study)
    for index, rows in enumerate(itertools.product(*(axis.values for axis in axes))):
        values = {
            path: value
            for axis, row in zip(axes, rows, strict=True)
            for path, value in zip(axis.fields, row, strict=True)
        }
        base = {**study.base, **values}
        base.update(_schedule(study, (base[rules.size], base[rules.batch_size]), smallest))
        base.update({path: f.default for path, f in study.fields.items() if f.table == "search"})
        yield Cell(
            index, values, replace(study, base=MappingProxyType(base), axes=seed_axes(study))
        )


def _schedule(study: Study, sizes: Sizes, smallest: Sizes) -> dict[str, int]:
    """Steps and record_every of the runs with some sizes, given the smallest of the study."""
    grown = (sizes[0] / smallest[0]) ** study.base["search.growth"]
    every = max(1, round(study.base[RECORD_EVERY.path] * grown * smallest[1] / sizes[1]))
    stretches = study.base[STEPS.path] // study.base[RECORD_EVERY.path]
    return {RECORD_EVERY.path: every, STEPS.path: every * stretches}


def _smallest(study: Study) -> Sizes:
    rules = _rules(study)
    length, batch = (
        min(value for (value,) in study.combinations((path,)))
        for path in (rules.size, rules.batch_size)
    )
    return length, batch


def _rules(study: Study) -> SearchRules:
    if study.experiment.search is None:
        name = study.experiment.name
        raise StudyError(f"search.field has no meaning for experiment {shown(name)}: leave it out")
    return study.experiment.search


def _is_seed(study: Study, axis: Axis) -> bool:
    return all(study.fields[path].kind == "data" for path in axis.fields)
