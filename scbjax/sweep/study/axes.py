"""The axes of a study: lists, ranges and log-ranges of field values, alone or zipped.

An axis is a list, ``{ range = [start, stop] }`` or ``{ range = [start, stop, step] }`` (integers,
without `stop`, as in Python), or ``{ log_range = [first, last, points] }`` (evenly spaced
logarithms, with both ends; rounded to integers where the field holds integers).
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from scbjax.base import Parameter, StudyError, short_name
from scbjax.sweep.study.fields import MAX_AXIS_POINTS, Fields, read_range, read_scalar, shown
from scbjax.values import FLOAT32_MAX, FLOAT32_TINY, Scalar

MAX_NAME = 200
"""Characters of a name: it becomes one of a dimension, or of a file with a little added."""
LOG_RANGE_DIGITS = 12
"""Significant digits of a log-range's points: 1e-4 and not 0.00010000000000000002."""

Table: TypeAlias = Mapping[str, Any]

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Axis:
    """One axis of a sweep.

    Attributes:
        name: the dimension's name in the dataset.
        fields: dotted paths of the fields that change along it; several for a zip.
        values: one row for each point, with one entry for each field.
    """

    name: str
    fields: tuple[str, ...]
    values: tuple[tuple[Scalar, ...], ...]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def is_zip(self) -> bool:
        """Whether the axis comes from a ``[[zip]]``: several fields, or a name of its own."""
        return len(self.fields) > 1 or self.name != short_name(self.fields[0])


def read_axes(fields: Fields, raw: object) -> list[Axis]:
    """Returns the axes of the table ``[axes]``; `StudyError` says what is wrong with one."""
    if not isinstance(raw, Mapping):
        raise StudyError(f"axes must be a table, got {shown(raw)}")
    axes = []
    for name, entry in _flattened(fields, raw):
        field = axis_field(fields, name)
        column = read_column(field, entry)
        axes.append(Axis(field.short, (field.path,), tuple((value,) for value in column)))
    return axes


def _flattened(fields: Fields, table: Table) -> Iterator[tuple[str, object]]:
    """Yields (path, value): TOML reads an unquoted ``train.l1`` as a table in a table."""
    for name, entry in table.items():
        if name in fields.tables and isinstance(entry, Mapping):
            yield from ((f"{name}.{short}", value) for short, value in entry.items())
        else:
            yield name, entry


def read_zips(fields: Fields, raw: object) -> list[Axis]:
    """Returns the axes of the tables ``[[zip]]``; `StudyError` says what is wrong with one."""
    if not isinstance(raw, list) or not all(isinstance(entry, Mapping) for entry in raw):
        raise StudyError(f"zip must be tables written as [[zip]], got {shown(raw)}")
    return [_read_zip(fields, entry) for entry in raw]


def _read_zip(fields: Fields, table: Table) -> Axis:
    columns: dict[str, tuple[Scalar, ...]] = {}
    own = {key: raw for key, raw in table.items() if key != "name"}
    for name, entry in _flattened(fields, own):
        field = axis_field(fields, name)
        if field.path in columns:
            raise StudyError(f"{field.path} is given twice in one zip")
        columns[field.path] = read_column(field, entry)
    if not columns:
        raise StudyError("a zip must hold at least one field")
    lengths = {path: len(column) for path, column in columns.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{path} has {length}" for path, length in lengths.items())
        raise StudyError(f"the lists of a zip must have the same length, but {counts}")
    name = _zip_name(fields, table["name"]) if "name" in table else _joined(columns)
    return Axis(name, tuple(columns), tuple(zip(*columns.values(), strict=True)))


def _joined(paths: Iterable[str]) -> str:
    return "_and_".join(short_name(path) for path in paths)


def without(axis: Axis, path: str) -> Axis | None:
    """Returns the axis without one of its fields, or nothing when no field is left.

    >>> axis = Axis("arm", ("train.l1", "seed"), ((1e-4, 0), (1e-3, 1)))
    >>> without(axis, "seed")
    Axis(name='arm', fields=('train.l1',), values=((0.0001,), (0.001,)))
    """
    kept = [i for i, field in enumerate(axis.fields) if field != path]
    if not kept:
        return None
    fields = tuple(axis.fields[i] for i in kept)
    name = _joined(fields) if axis.name == _joined(axis.fields) else axis.name
    return Axis(name, fields, tuple(tuple(row[i] for i in kept) for row in axis.values))


def pick(axis: Axis, raw: object) -> Axis:
    """Returns a zip with some of its lines alone, in the order asked for.

    Args:
        axis: the zip.
        raw: a list of the numbers of the lines, from 0.

    Raises:
        StudyError: it is no such list, or empty, or names a line twice or one that is not there.

    >>> axis = Axis("arm", ("train.l1", "seed"), ((1e-4, 0), (1e-3, 1), (1e-2, 2)))
    >>> pick(axis, [2, 0]).values
    ((0.01, 2), (0.0001, 0))
    """
    lines = raw if isinstance(raw, list) and all(type(line) is int for line in raw) else []
    if not lines or not set(lines) <= set(range(len(axis))):
        raise StudyError(
            f"zip {axis.name} must be a list of its lines, numbers from 0 to {len(axis) - 1}, "
            f"got {shown(raw)}"
        )
    if len(set(lines)) < len(lines):
        raise StudyError(f"zip {axis.name} has the same line twice: {shown(lines)}")
    return Axis(axis.name, axis.fields, tuple(axis.values[line] for line in lines))


def _zip_name(fields: Fields, name: object) -> str:
    if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name) or len(name) > MAX_NAME:
        raise StudyError(
            f"the name of a zip must be at most {MAX_NAME} letters, digits and _, not starting "
            f"with a digit, got {shown(name)}"
        )
    if name in fields.reserved:
        raise StudyError(f"a zip can't be called '{name}': the dataset uses that name")
    return name


def axis_field(fields: Fields, name: str) -> Parameter:
    """Returns the field of an axis; `StudyError` when there is none or it can't be swept."""
    field = fields.find(name)
    if not field.sweepable:
        raise StudyError(f"{field.path} can't be an axis: it holds for the study as a whole")
    return field


def read_column(field: Parameter, raw: object) -> tuple[Scalar, ...]:
    """Returns the values of a field along an axis.

    Args:
        field: the field.
        raw: a list, or a table with a range or log-range.

    Raises:
        StudyError: it is neither, empty, too long, or holds what the field doesn't allow.
    """
    if isinstance(raw, Mapping):
        raw = _read_range(field, raw)
    if not isinstance(raw, list):
        raise StudyError(
            f"axis {field.path} must be a list, {{ range = [start, stop] }} or "
            f"{{ log_range = [first, last, points] }}, got {shown(raw)}"
        )
    if not raw:
        raise StudyError(f"axis {field.path} is empty")
    if len(raw) > MAX_AXIS_POINTS:
        raise StudyError(
            f"axis {field.path} has {len(raw)} points; at most {MAX_AXIS_POINTS} fit in a study"
        )
    return tuple(read_scalar(field, value) for value in raw)


def _read_range(field: Parameter, table: Table) -> list[Any]:
    kinds = {"range": _range, "log_range": _log_range}
    if len(table) != 1 or not set(table) <= set(kinds):
        raise StudyError(
            f"axis {field.path} must hold either range or log_range, got {shown(dict(table))}"
        )
    ((kind, bounds),) = table.items()
    if not isinstance(bounds, list):
        raise StudyError(f"{kind} of axis {field.path} must be a list, got {shown(bounds)}")
    return kinds[kind](field, bounds)


def _range(field: Parameter, bounds: list[Any]) -> list[Any]:
    return list(read_range(f"axis {field.path}", bounds))


def _log_range(field: Parameter, bounds: list[Any]) -> list[Any]:
    sound = len(bounds) == 3 and all(type(bound) in {int, float} for bound in bounds)
    if not (
        sound
        and all(FLOAT32_TINY <= bound <= FLOAT32_MAX for bound in bounds)
        and type(bounds[2]) is int
        and 2 <= bounds[2] <= MAX_AXIS_POINTS
    ):
        raise StudyError(
            f"log_range of axis {field.path} must be [first, last, points], two numbers above 0 "
            f"that float32 holds and an integer from 2 to {MAX_AXIS_POINTS}, got {shown(bounds)}"
        )
    first, last, count = bounds
    ratio = math.log(last / first) / (count - 1)
    points = [float(f"{first * math.exp(ratio * i):.{LOG_RANGE_DIGITS}g}") for i in range(count)]
    return [round(point) for point in points] if field.type is int else points


def check_axes(axes: Sequence[Axis]) -> None:
    """Raises a `StudyError` if a field, a name or a point of an axis is given twice."""
    seen: set[str] = set()
    for axis in axes:
        for path in axis.fields:
            if path in seen:
                raise StudyError(f"axis {path} is given twice")
            seen.add(path)
    names = [axis.name for axis in axes]
    owners = {short_name(path): axis.name for axis in axes for path in axis.fields}
    for axis in axes:
        if names.count(axis.name) > 1 or owners.get(axis.name, axis.name) != axis.name:
            raise StudyError(f"the name '{axis.name}' is used for more than one axis or field")
    for axis in axes:
        _check_distinct(axis)


def _check_distinct(axis: Axis) -> None:
    seen = set()
    for row in axis.values:
        if row in seen:
            twice = ", ".join(f"{p} = {shown(v)}" for p, v in zip(axis.fields, row, strict=True))
            raise StudyError(f"axis {axis.name} has the same point twice: {twice}")
        seen.add(row)


def check_rounded(fields: Fields, axes: Sequence[Axis], dtype: str) -> None:
    """Raises a `StudyError` if two points of an axis are the same in what a study computes in.

    Args:
        fields: those of the study.
        axes: the axes, whose points differ as they were written.
        dtype: what the study computes in. Some fields are held in float32 whatever it is.
    """
    for axis in axes:
        rounded = [
            path
            for path in axis.fields
            if fields[path].type is float and (dtype == "float32" or fields[path].always_float32)
        ]
        if rounded:
            _check_distinct_in_float32(axis, rounded)


def _check_distinct_in_float32(axis: Axis, rounded: Sequence[str]) -> None:
    columns = [
        array("f", column).tolist() if path in rounded else column
        for path, column in zip(axis.fields, zip(*axis.values, strict=True), strict=True)
    ]
    seen: dict[tuple[Scalar, ...], tuple[Scalar, ...]] = {}
    for point, row in zip(zip(*columns, strict=True), axis.values, strict=True):
        first = seen.setdefault(point, row)
        if first is row:
            continue
        # Of a zip, the fields that tell the two apart as they were written.
        for path, one, other in zip(axis.fields, first, row, strict=True):
            if one != other:
                raise StudyError(
                    f"axis {axis.name} has two points that are the same in float32, which "
                    f"{path} is computed in: {shown(one)} and {shown(other)}; leave one out"
                )
