"""Labels: what sets arms apart, settings and numbers in words, names of axes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import xarray

_SMALL: Final = 1e-3
_WRAPPED_LABEL: Final = 34


def fields_along(dataset: xarray.Dataset, axis: str) -> list[str]:
    """The fields that an axis varies: its own name or, for a zip, the coordinates along it."""
    return [str(name) for name, item in dataset.coords.items() if item.dims == (axis,)] or [axis]


def telling(dataset: xarray.Dataset, axis: str) -> list[str]:
    """As few fields of an axis as tell its points apart, the first ones of a zip before others."""
    told = fields_along(dataset, axis)
    for name in reversed(told):
        fewer = [other for other in told if other != name]
        columns = zip(*(column_of(dataset, other) for other in fewer), strict=True)
        if fewer and len(set(columns)) == dataset.sizes[axis]:
            told = fewer
    return told


def column_of(dataset: xarray.Dataset, field: str) -> list[Any]:
    """The values of a field along its axis; the places where the dataset names none."""
    if field not in dataset.coords:
        return list(range(dataset.sizes[field]))
    values: list[Any] = dataset[field].to_numpy().tolist()
    return values


def labels_of(
    dataset: xarray.Dataset,
    told: Mapping[str, Sequence[str]],
    places: Sequence[Mapping[str, int]],
) -> list[str]:
    """Labels of arms: what is told of each axis that has more than one point."""
    words = {
        axis: points_of(dataset, fields)
        for axis, fields in told.items()
        if fields and dataset.sizes[axis] > 1
    }
    return [", ".join(words[axis][place[axis]] for axis in words) for place in places]


def points_of(dataset: xarray.Dataset, fields: Sequence[str]) -> list[str]:
    """The points of an axis in words."""
    columns = [
        [_setting(dataset, field, value) for value in column_of(dataset, field)] for field in fields
    ]
    return [", ".join(row) for row in zip(*columns, strict=True)]


def _setting(dataset: xarray.Dataset, field: str, value: object) -> str:
    """A setting in words: a text as it is, a number with the field's symbol."""
    if isinstance(value, str):
        return plain(value)
    attrs = dataset[field].attrs if field in dataset.coords else {}
    return f"{attrs.get('symbol', plain(field))} = {worded(value)}"


def worded(value: object) -> str:
    """A number without needless digits.

    >>> worded(0.005), worded(3e-4), worded(20000)
    ('0.005', '3e-4', '20000')
    """
    if not isinstance(value, float):
        return str(value)
    if value == 0 or not np.isfinite(value) or abs(value) >= _SMALL:
        return f"{value:.6g}"
    mantissa, exponent = f"{value:.5e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def plain(text: str) -> str:
    """A text in which a dollar is a dollar, and does not begin a formula."""
    return text.replace("$", r"\$")


def titled(dataset: xarray.Dataset, name: str) -> str:
    """What a variable is, in words and with its symbol, on lines that fit beside a panel."""
    attrs = dataset[name].attrs
    words = plain(str(attrs.get("long_name", name.replace("_", " "))))
    # A formula has no blanks to be broken at; it goes with the last words.
    return "\n".join([*textwrap.wrap(words, _WRAPPED_LABEL), *filter(None, [attrs.get("symbol")])])
