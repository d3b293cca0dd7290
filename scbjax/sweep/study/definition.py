"""A study as a value: every field of it checked, its axes, its text and its fingerprint.

`scbjax.sweep.study.files` makes such values of files and overrides.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from scbjax.base import Experiment
from scbjax.sweep.study.axes import Axis
from scbjax.sweep.study.fields import Fields, fields_of

DEFAULT_EXPERIMENT = "scb"
"""The experiment of a study that names none."""


@dataclass(frozen=True)
class Study:
    """A checked study.

    Attributes:
        name: stem of the study's file; safe as a file name.
        title: one line.
        question: what the study is to answer, in one line; may be empty.
        base: the value of every field that is not swept, by dotted path. A seed that the study
            leaves out is `None` and stands for the value of ``seed``.
        axes: the product of these is the sweep; the dataset's dimensions in order.
        experiment: what is run.
    """

    name: str
    title: str
    question: str
    base: Mapping[str, Any]
    axes: tuple[Axis, ...]
    experiment: Experiment

    @property
    def fields(self) -> Fields:
        """All that it can set."""
        return fields_of(self.experiment)

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
        """Whether the parameters at the end are kept."""
        return bool(self.base["record.final"])

    @property
    def truth(self) -> bool:
        """Whether what is to be learned is kept."""
        return bool(self.base["record.truth"])

    @property
    def snapshots(self) -> tuple[int, ...]:
        """Steps at which the parameters are kept."""
        return tuple(self.base["record.snapshots"])

    def combinations(self, paths: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
        """Yields the values that some fields take together, leaving out the axes of all others."""
        axes = self._axes_over(paths)
        for rows in itertools.product(*(axis.values for axis in axes)):
            values = dict(self.base)
            for axis, row in zip(axes, rows, strict=True):
                values.update(zip(axis.fields, row, strict=True))
            yield tuple(values[path] for path in paths)

    def count_combinations(self, paths: tuple[str, ...]) -> int:
        """How many `combinations` there are."""
        return math.prod(len(axis) for axis in self._axes_over(paths))

    def _axes_over(self, paths: tuple[str, ...]) -> list[Axis]:
        return [axis for axis in self.axes if set(axis.fields) & set(paths)]


def to_toml(study: Study) -> str:
    """Returns a study as TOML text with every default spelt out.

    The text reads back as the same study: ``parse_study(to_toml(study), study.name) == study``.
    """
    fields, name = study.fields, study.experiment.name
    lines = [f"title = {_toml(study.title)}", f"question = {_toml(study.question)}"]
    lines += [f"experiment = {_toml(name)}"] if name != DEFAULT_EXPERIMENT else []
    for table in ("", *fields.tables):
        lines += ["", f"[{table}]"] if table else []
        for path, value in study.base.items():
            if fields[path].table == table and value is not None:
                lines.append(f"{fields[path].short} = {_toml(value)}")
    lines += ["", "[axes]"]
    for axis in study.axes:
        if axis.is_zip:
            lines += ["", "[[zip]]", f"name = {_toml(axis.name)}"]
        for path, *column in zip(axis.fields, *axis.values, strict=True):
            lines.append(f'"{path}" = {_toml(column)}')
    return "\n".join(lines) + "\n"


def toml_text(text: str) -> str:
    """A text as TOML writes it, in double quotes.

    >>> toml_text("two words")
    '"two words"'
    """
    # JSON's escapes are TOML's, but TOML wants DEL escaped as well.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml(value: object) -> str:
    if isinstance(value, str):
        return toml_text(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(entry) for entry in value)}]"
    return repr(value)


def fingerprint(study: Study) -> str:
    """Returns a hexadecimal digest of what a study computes.

    Studies that differ only in name, title or question have the same fingerprint; another order of
    the axes is another layout of the results and another fingerprint. Fields at their default don't
    count, so that a field which a later version adds leaves the results of this one in use. The
    text of the file that an experiment was read from counts.
    """
    fields, experiment = study.fields, study.experiment
    content: dict[str, Any] = {
        "base": {
            path: value for path, value in study.base.items() if value != fields[path].default
        },
        "axes": [[axis.name, axis.fields, axis.values] for axis in study.axes],
    }
    if experiment.name != DEFAULT_EXPERIMENT or experiment.source:
        content["experiment"] = [experiment.name, experiment.source]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
