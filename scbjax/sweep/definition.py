"""A study as a value: every field of it checked, its axes, its text and its fingerprint.

`scbjax.sweep.study` makes such values of files and overrides.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from scbjax.sweep.axes import Axis
from scbjax.sweep.fields import FIELDS, TABLES


@dataclass(frozen=True)
class Study:
    """A checked study.

    Attributes:
        name: stem of the study's file; safe as a file name.
        title: one line.
        question: what the study is to answer, in one line; may be empty.
        base: the value of every field of `FIELDS` that is not swept, by dotted path. A seed that
            the study leaves out is `None` and stands for the value of ``seed``.
        axes: the product of these is the sweep; the dataset's dimensions in order.
    """

    name: str
    title: str
    question: str
    base: Mapping[str, Any]
    axes: tuple[Axis, ...]

    @property
    def num_trajectories(self) -> int:
        """Number of points of the whole sweep; 1 without axes."""
        return math.prod(len(axis) for axis in self.axes)

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of what is recorded."""
        return tuple(self.base["record.variables"])

    @property
    def final(self) -> bool:
        """Whether the final V and A are kept."""
        return bool(self.base["record.final"])

    @property
    def truth(self) -> bool:
        """Whether P, mu and Q are kept."""
        return bool(self.base["record.truth"])

    @property
    def snapshots(self) -> tuple[int, ...]:
        """Steps at which V and A are kept."""
        return tuple(self.base["record.snapshots"])


def combinations(study: Study, paths: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    """Yields the values that some fields take together, leaving out the axes of all others."""
    axes = [axis for axis in study.axes if set(axis.fields) & set(paths)]
    for rows in itertools.product(*(axis.values for axis in axes)):
        values = dict(study.base)
        for axis, row in zip(axes, rows, strict=True):
            values.update(zip(axis.fields, row, strict=True))
        yield tuple(values[path] for path in paths)


def to_toml(study: Study) -> str:
    """Returns a study as TOML text with every default spelt out.

    The text reads back as the same study: ``parse_study(to_toml(study), study.name) == study``.
    """
    lines = [f"title = {_toml(study.title)}", f"question = {_toml(study.question)}"]
    for table in ("", *TABLES):
        lines += ["", f"[{table}]"] if table else []
        for path, value in study.base.items():
            if FIELDS[path].table == table and value is not None:
                lines.append(f"{FIELDS[path].short} = {_toml(value)}")
    lines += ["", "[axes]"]
    for axis in study.axes:
        if axis.is_zip:
            lines += ["", "[[zip]]", f"name = {_toml(axis.name)}"]
        for path, *column in zip(axis.fields, *axis.values, strict=True):
            lines.append(f'"{path}" = {_toml(column)}')
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, str):
        # JSON's escapes are TOML's, but TOML wants DEL escaped as well.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(entry) for entry in value)}]"
    return repr(value)


def fingerprint(study: Study) -> str:
    """Returns a hexadecimal digest of what a study computes.

    Studies that differ only in name, title or question have the same fingerprint; another order of
    the axes is another layout of the results and another fingerprint. Fields at their default don't
    count, so that a field which a later version adds leaves the results of this one in use.
    """
    content = {
        "base": {
            path: value for path, value in study.base.items() if value != FIELDS[path].default
        },
        "axes": [[axis.name, axis.fields, axis.values] for axis in study.axes],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
