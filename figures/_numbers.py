"""The numbers behind a figure, as tables: what a caption quotes and no picture prints.

A figure script's `numbers(results)` reads the dataset that its picture is drawn from, and gives the
tables as text in Markdown. `scbjax figure NAME --numbers` prints it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import _arms
import _runs
import numpy as np
import xarray as xr
from _arms import GEOMETRY_NAMES, OPTIMIZER_NAMES, Arm, columns_of
from _data import Values, check_finite, made_of, open_study, setting, tidy
from _estimates import quantile_interval
from _runs import runs_of

MISSING = "-"
RUNS = ("arm", "run")
MOST_NAMED = 6  # arms of which runs are left out


@dataclass(frozen=True)
class Table:
    """A table of numbers.

    Attributes:
        title: what it shows, and of what.
        columns: their names.
        rows: texts, and numbers to be written with four digits.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]

    def __str__(self) -> str:
        """Write the table in Markdown, with its title above it.

        >>> print(Table("Share of runs", ("T", "share"), [(1000, 2 / 3), (2000, np.nan)]))
        **Share of runs**
        <BLANKLINE>
        | T | share |
        |---|---|
        | 1000 | 0.6667 |
        | 2000 | - |
        """
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        texts = [[worded(cell) for cell in line] for line in lines]
        ruled = [f"| {' | '.join(line)} |".replace("| --- ", "|---") for line in texts]
        ruled[1] = "|" + "---|" * len(self.columns)
        return "\n".join([f"**{self.title}**", "", *ruled])


def worded(cell: object) -> str:
    """Write a cell: text as it is, counts in full, other numbers with four digits.

    >>> worded("T"), worded(16384), worded(0.123456), worded(float("nan"))
    ('T', '16384', '0.1235', '-')
    """
    if isinstance(cell, str):
        return cell
    number = float(np.asarray(cell))
    if np.isnan(number):
        return MISSING
    return f"{number:.0f}" if number.is_integer() else f"{number:.4g}"


def tabulate(
    study: str,
    variables: Sequence[str],
    tables: Callable[[xr.Dataset], Sequence[Table]],
    results: Path,
) -> str:
    """Read a study's dataset, as `render` does for a picture, and write tables of it.

    Args:
        study: whose dataset is read.
        variables: what the tables need of it.
        tables: makes them.
        results: the directory that holds the studies' directories.

    Returns:
        The tables in Markdown.

    Raises:
        FileNotFoundError: no dataset.
        ValueError: a dataset that lacks what the tables need.
    """
    dataset = open_study(results, study, variables)
    check_finite(dataset, study)
    return "\n\n".join([*map(str, made_of(dataset, study, tables)), *left_out(dataset)])


def left_out(dataset: xr.Dataset) -> list[str]:
    """Say how many runs of which arms diverged, if any did: no median or extreme is of those.

    A median at a step is of the runs that are finite there, as the one that is drawn. Counts and
    shares are of all runs; one that diverged has found nothing.

    Args:
        dataset: what the tables are made of.
    """
    data = tidy(dataset)
    bad = xr.DataArray(np.zeros([data.sizes[name] for name in RUNS], bool), dims=RUNS)
    for item in data.data_vars.values():
        if item.dtype.kind == "f":
            # Without steps, infinity is what a search says of runs that never came to its goal.
            wrong = item.isnull() if "step" not in item.dims else ~xr.apply_ufunc(np.isfinite, item)
            # Parts of an array may have no number, such as means over none; a run has some.
            wrong = wrong.all([name for name in item.dims if name not in {*RUNS, "step"}])
            bad |= wrong.any([name for name in wrong.dims if name not in RUNS])
    counts = bad.sum("run").to_numpy()
    if not counts.any():
        return []
    hit = [(name, count) for name, count in zip(arm_names(data), counts, strict=True) if count]
    parts = [f"{count} of {name}" if name else "" for name, count in hit[:MOST_NAMED]]
    if len(hit) > MOST_NAMED:
        parts.append(f"the others of {len(hit) - MOST_NAMED} more arms")
    of = f": {'; '.join(parts)}" if any(parts) else ""
    return [f"{counts.sum()} of {bad.size} runs diverged; medians and extremes leave them out{of}."]


def arm_names(data: xr.Dataset) -> list[str]:
    """Name the arms of a tidy dataset, of which there may be many, by what tells them apart."""
    fields = {str(name): item for name, item in data.coords.items() if item.dims == ("arm",)}
    told = {name: item.to_numpy().tolist() for name, item in fields.items()}
    for name in reversed(list(told)):
        fewer = [values for other, values in told.items() if other != name]
        if len(set(zip(*fewer, strict=True))) == len(set(zip(*told.values(), strict=True))):
            del told[name]
    names = {**OPTIMIZER_NAMES, **GEOMETRY_NAMES}
    texts = [
        [
            names.get(value, value)
            if isinstance(value, str)
            else f"{fields[name].attrs.get('symbol', name)} = {_arms.worded(value)}"
            for value in values
        ]
        for name, values in told.items()
    ]
    return [", ".join(row) for row in zip(*texts, strict=True)] or [""] * data.sizes["arm"]


def by_settings(data: xr.Dataset) -> list[tuple[str, Arm]]:
    """Give the arms of a tidy dataset with the name of the settings that they were run with."""
    return [(column.settings, arm) for column in columns_of(data) for arm in column.arms]


def last(data: xr.Dataset, variable: str, arm: Arm) -> Values:
    """Give a variable of every run of an arm at the last record, [runs]."""
    values: Values = runs_of(data, variable, arm)[:, -1]
    return values


def sgd_beside(data: xr.Dataset, arm: Arm) -> Arm | None:
    """Find the arm of SGD with the settings of a proximal arm; None where the study has none.

    Of several weights of the l1 norm, which SGD does not have, any will do.
    """
    fields = ("geometry", "learning_rate_1", "learning_rate_2", "batch_size", "attention_map")
    told = [name for name in fields if name in data.coords and data[name].dims == ("arm",)]
    for _, other in by_settings(data):
        alike = all(data[name][arm.index] == data[name][other.index] for name in told)
        if arm.optimizer == "proximal" and other.optimizer == "sgd" and alike:
            return other
    return None


def runs_in(data: xr.Dataset) -> str:
    """Say how many runs a median is of: `32 runs`."""
    return f"{data.sizes['run']} runs"


def batch(dataset: xr.Dataset) -> int:
    """Give the batch size that all arms of a study have."""
    return int(str(setting(dataset, "batch_size")))


def ranged(*names: str) -> list[str]:
    """Name the columns of numbers that have an interval.

    >>> ranged("share")
    ['share', 'share, from', 'share, to']
    """
    return [text for name in names for text in (name, f"{name}, from", f"{name}, to")]


def intervals_table(
    what: str,
    labels: Sequence[str],
    names: Sequence[str],
    rows: Sequence[tuple[Sequence[object], Sequence[Values]]],
) -> Table:
    """Tabulate medians over tasks, each with its 95% interval.

    Args:
        what: the medians are of.
        labels: columns that say what a row is.
        names: of the numbers.
        rows: what each is, and the values [tasks] of every number.
    """
    told = [
        [
            *label,
            *(number for x in values for number in (_runs.median(x), *quantile_interval(x))),
        ]
        for label, values in rows
    ]
    return Table(f"{what}: medians with 95% intervals", (*labels, *ranged(*names)), told)
