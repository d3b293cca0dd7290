"""Compares the shipped studies, at their small size, with what an earlier commit made of them.

``python tests/reference/reference.py freeze CHECKOUT`` runs all studies of a checkout of that
commit in float32, as they are, in float64, and in float32 on a processor that rounds otherwise, and
keeps a sample of the datasets beside this file. ``python tests/reference/reference.py compare
[STUDY ...]`` runs those of this checkout in float32 and in float64, prints how far each is off, and
exits with 1 if one is another. Studies that the commit did not have are left out; searches, of
which counts are kept, and what is `LEFT_OUT` are run in float32 alone.

Numbers may differ by 1e-5 of the largest one of the same variable on the same trajectory. In
float64 all are held to that, but for what is `SENSITIVE`. In float32 rounding alone moves some by
more. How far is measured: by the largest distance of the commit's float32 from its two other runs,
which learn the same tasks from the same draws. Such numbers are held to four times that distance,
from the first record on at which that is more; `compare` prints for each study how many they are.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

ROOT: Final = Path(__file__).resolve().parents[2]
KEPT: Final = Path(__file__).with_name("small.npz")
DTYPES: Final = ("float32", "float64")
RUNS: Final = {
    "float32": ("float32", ""),
    "float64": ("float64", ""),
    # An x86 processor of 2008, which has no fused products, rounds everything otherwise.
    "plain": ("float32", "--xla_cpu_max_isa=SSE4_2"),
}
"""What is run of a study to be kept: dtype and flags of XLA, by a name. The first two are compared
with, the difference between the first and the others tells what rounding does."""

LEFT_OUT: Final = frozenset({("fig6", "float64"), ("simulation", "plain")})
"""What the commit had wrong: a simulation's columns of A that are flat up to rounding, as at the
start, had a direction by it. In all other runs the sums of these were exact and gave none."""

SENSITIVE: Final = frozenset({"fig1", "projector", "scale", "transfer", "transfer_correlation"})
"""Held to rounding in float64 too. Tasks are drawn in float32 also where they are learned in
float64, and what is rounded in them shows where signals stay so small that they are differences of
numbers thousands of times as large (raw_sgd of fig1, few steps, few samples), and where noise feeds
itself, whatever it begins with (sweeps/scale.toml)."""

ABOUT: Final = "about"  # the member of the file that describes the others
MOST_RECORDS: Final = 12
TRAJECTORIES: Final = 32

_ALONG: Final = ("step", "snapshot", "probe")  # dimensions of which some points are kept
_INSIDE: Final = ("token_out", "token_in", "position", "query")  # those of matrices
_LABELS: Final = (*_ALONG, *_INSIDE)

Floats = NDArray[np.float64]


# ------------------------------------------------------------------------------------- running


def run_small(study: str, run: str, work: Path, checkout: Path = ROOT) -> xr.Dataset:
    """The dataset of a study at its small size, on one CPU device.

    Args:
        study: its name.
        run: a name in `RUNS`.
        work: where results go; what is complete there is not run again.
        checkout: whose study and library it is.
    """
    dtype, flags = RUNS[run]
    out = work / run / study
    path = out / f"{study}.nc"
    if not path.exists():
        command = [sys.executable, "-m", "scbjax", "run", study, "--small", "--no-figure"]
        command += ["--set", f"dtype={dtype}", "--out", str(out), "--cpu-devices", "1"]
        environment = {**os.environ, "PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu"}
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {flags}".strip()
        options = ["--compilation-cache", "off"]  # what is read back would hide what is compiled
        done = subprocess.run(
            [*command, *options], cwd=checkout, env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{study} in {dtype} was not run: {done.stderr.strip()}")
    with xr.open_dataset(path, engine="h5netcdf") as stored:
        return stored.load()


# ------------------------------------------------------------------------------- what is kept


@dataclass(frozen=True)
class Chosen:
    """Which points of a dataset are kept.

    Attributes:
        trajectories: labels along the axes, by axis and coordinate, of each trajectory.
        along: labels, or numbers where a dimension has none, along each other dimension.
    """

    trajectories: list[dict[str, dict[str, Any]]]
    along: dict[str, list[int]]


def choose(dataset: xr.Dataset) -> Chosen:
    """A few trajectories, which hold every point of every axis, and a few records of them."""
    axes = [str(dim) for dim in dataset.sizes if dim not in _LABELS]
    sizes = [dataset.sizes[axis] for axis in axes]
    rows = list(itertools.product(*map(range, sizes)))
    if len(rows) > TRAJECTORIES:
        count, rng = max(TRAJECTORIES, *sizes), np.random.default_rng(0)
        columns = [
            np.concatenate([rng.permutation(size) for _ in range(-(-count // size))])[:count]
            for size in sizes
        ]
        rows = [*dict.fromkeys(zip(*(column.tolist() for column in columns), strict=True))]
    along = {
        dim: dataset[dim].values[_spread(dataset.sizes[dim])].tolist()
        for dim in _ALONG
        if dim in dataset.sizes
    }
    labels = [
        {axis: _labels(dataset, axis, index) for axis, index in zip(axes, row, strict=True)}
        for row in rows
    ]
    return Chosen(labels, along)


def _spread(size: int) -> list[int]:
    """Some of so many places, with both ends."""
    return sorted({round(place) for place in np.linspace(0, size - 1, MOST_RECORDS)})


def _labels(dataset: xr.Dataset, axis: str, index: int) -> dict[str, Any]:
    """The coordinates of a point of an axis."""
    return {
        str(name): coordinate.values[index].item()
        for name, coordinate in dataset.coords.items()
        if coordinate.dims == (axis,)
    }


def _find(dataset: xr.Dataset, axis: str, labels: Mapping[str, Any]) -> int:
    """The place of a point along an axis."""
    if axis not in dataset.sizes:
        raise LookupError(f"there is no axis {axis} any more")
    for index in range(dataset.sizes[axis]):
        here = _labels(dataset, axis, index)
        if all(here.get(name) == value for name, value in labels.items()):
            return index
    raise LookupError(f"there is no point {dict(labels)} of the axis {axis} any more")


def take(dataset: xr.Dataset, chosen: Chosen) -> dict[str, Floats]:
    """The variables at the points chosen, [trajectory] or [trajectory, record].

    A matrix is kept as one number: the sum of its entries with weights that differ.

    Raises:
        LookupError: the dataset has lost a point.
    """
    axes = list(chosen.trajectories[0])
    if extra := set(dataset.sizes) - {*axes, *_LABELS}:
        raise LookupError(f"there are axes that were not there: {', '.join(map(str, extra))}")
    places = {
        axis: xr.DataArray(
            [_find(dataset, axis, labels[axis]) for labels in chosen.trajectories],
            dims="trajectory",
        )
        for axis in axes
    }
    for dim, labels in chosen.along.items():
        if missing := set(labels) - set(dataset[dim].values.tolist()):
            raise LookupError(f"there is no {dim} {min(missing)} any more")
        places[dim] = xr.DataArray(np.searchsorted(dataset[dim].values, labels), dims=dim)
    return {
        str(name): _numbers(variable.isel(places, missing_dims="ignore"))
        for name, variable in dataset.data_vars.items()
    }


def _numbers(variable: xr.DataArray) -> Floats:
    """One variable at the points chosen; without an axis, the same number for each trajectory."""
    inside = [dim for dim in variable.dims if dim in _INSIDE]
    outside = [dim for dim in variable.dims if dim not in {*_INSIDE, "trajectory"}]
    if "trajectory" not in variable.dims:
        variable = variable.expand_dims("trajectory")
    array = variable.transpose("trajectory", *outside, *inside).to_numpy().astype(np.float64)
    if not inside:
        return array
    array = array.reshape(*array.shape[: 1 + len(outside)], -1)
    # Above zero, so that what sums up to one does not cancel.
    return np.asarray(array @ (1.5 + 0.5 * np.cos(np.arange(array.shape[-1]))))


# ---------------------------------------------------------------------------- keeping and reading


@dataclass(frozen=True)
class Kept:
    """What is kept of a study.

    Attributes:
        chosen: the points.
        runs: the variables, to seven digits, by the names of `RUNS`; of a search the first alone.
        integers: the variables that count something.
        is_sensitive: whether it is one of those that are `SENSITIVE`.
    """

    chosen: Chosen
    runs: dict[str, dict[str, Floats]]
    integers: frozenset[str]
    is_sensitive: bool = False

    @property
    def dtypes(self) -> tuple[str, ...]:
        """In which it is compared."""
        return tuple(dtype for dtype in DTYPES if dtype in self.runs)


def write(kept: Mapping[str, Kept], provenance: Mapping[str, str], path: Path = KEPT) -> None:
    """Keeps the samples of studies in a file.

    Args:
        kept: by the names of the studies.
        provenance: what they were made with.
        path: of the file.
    """
    members, studies = {}, {}
    for study, one in kept.items():
        flat = [
            np.concatenate([array.ravel() for array in run.values()]) for run in one.runs.values()
        ]
        members[study] = np.stack(flat).astype(np.float32)
        studies[study] = {
            "trajectories": one.chosen.trajectories,
            "along": one.chosen.along,
            "runs": list(one.runs),
            "shapes": {name: array.shape for name, array in one.runs["float32"].items()},
            "integers": sorted(one.integers),
        }
    about = json.dumps({"provenance": provenance, "studies": studies})
    members[ABOUT] = np.frombuffer(about.encode(), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, allow_pickle=False, **members)


def read(path: Path = KEPT) -> tuple[dict[str, Kept], dict[str, str]]:
    """What `write` has kept, and its provenance."""
    with np.load(path, allow_pickle=False) as members:
        about = json.loads(members[ABOUT].tobytes())
        kept = {
            study: Kept(
                Chosen(facts["trajectories"], facts["along"]),
                {
                    run: _unpack(numbers, facts["shapes"])
                    for run, numbers in zip(facts["runs"], members[study], strict=True)
                },
                frozenset(facts["integers"]),
                study in SENSITIVE,
            )
            for study, facts in about["studies"].items()
        }
    return kept, about["provenance"]


def _unpack(flat: NDArray[np.float32], shapes: Mapping[str, Sequence[int]]) -> dict[str, Floats]:
    ends = np.cumsum([np.prod(shape, dtype=int) for shape in shapes.values()])
    parts = np.split(flat.astype(np.float64), ends[:-1])
    return {
        name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def runs_of(study: str, dataset: xr.Dataset) -> tuple[str, ...]:
    """Which of `RUNS` are kept of a study."""
    if "probe" in dataset.sizes:
        return ("float32",)
    return tuple(run for run in RUNS if (study, run) not in LEFT_OUT)


def freeze(checkout: Path, work: Path, path: Path = KEPT) -> None:
    """Runs all studies of a checkout and keeps a sample of them.

    Args:
        checkout: of the commit.
        work: where results go.
        path: of the file that is written.
    """
    kept: dict[str, Kept] = {}
    provenance: dict[str, str] = {}
    for study in sorted(found.stem for found in (checkout / "sweeps").glob("*.toml")):
        single = run_small(study, "float32", work, checkout)
        chosen = choose(single)
        taken = {
            run: take(run_small(study, run, work, checkout), chosen)
            for run in runs_of(study, single)
        }
        integers = frozenset(
            str(name) for name, variable in single.data_vars.items() if variable.dtype.kind in "iu"
        )
        kept[study] = Kept(chosen, taken, integers, study in SENSITIVE)
        provenance = {
            name: str(single.attrs[name])
            for name in ("git_commit", "versions", "device", "rng_implementation")
            if name in single.attrs
        } or provenance
        print(study)
    write(kept, provenance, path)


# ------------------------------------------------------------------------------------ comparing

RELATIVE: Final = 1e-5
"""What may differ, of the largest number of the same variable on the same trajectory: the others on
it come from sums with terms of that size, and some of them, such as a signal at the start, are
nothing but the rounding of those."""
ROUNDINGS: Final = 4.0
"""In float32, two programs that compute the same may be off by rounding in opposite directions, and
what is kept of a trajectory are examples of what rounding does to it."""


@dataclass(frozen=True)
class Comparison:
    """How a variable of a study compares with what is kept.

    Attributes:
        name: of the variable.
        off: the differences, of the largest number on the trajectory, [trajectory, ...].
        allowed: what they may be, in the same unit.
    """

    name: str
    off: Floats
    allowed: Floats

    @property
    def holds(self) -> bool:
        """Whether the variable is what it was."""
        return bool(np.all(self.off <= self.allowed))

    @property
    def loose(self) -> int:
        """How many of the numbers are held to what rounding alone does to them."""
        return int(np.sum(self.allowed > RELATIVE))


def compare(name: str, new: Floats, kept: Kept, dtype: str) -> Comparison:
    """Compares a variable with what is kept of it.

    Args:
        name: of the variable.
        new: it, as `take` gives it.
        kept: of the study.
        dtype: that the study was run in.

    Raises:
        LookupError: it has another shape.
    """
    old = kept.runs[dtype][name]
    if new.shape != old.shape:
        raise LookupError(f"{name} has the shape {new.shape} and had {old.shape}")
    scale = _scale(old)
    allowed = np.full(old.shape, 0.0 if name in kept.integers else RELATIVE)
    if dtype == "float32" or kept.is_sensitive:
        allowed = np.maximum(allowed, ROUNDINGS * _rounding(name, kept))
    return Comparison(name, _off(new, old, scale), allowed)


def _scale(old: Floats) -> Floats:
    """The largest number on each trajectory, [trajectory, 1 ...]."""
    finite = np.where(np.isfinite(old), np.abs(old), 0.0)
    return np.asarray(finite.max(axis=tuple(range(1, old.ndim)), keepdims=True))


def _rounding(name: str, kept: Kept) -> Floats:
    """How far rounding has moved a variable up to each record, in the unit of its scale."""
    old = kept.runs["float32"][name]
    others = [run[name] for label, run in kept.runs.items() if label != "float32"]
    moved = [_off(other, old, _scale(old)) for other in others]
    most = np.max(moved, axis=0) if moved else np.zeros(old.shape)
    if name in kept.integers:
        # A threshold that one trajectory crosses otherwise, at one record, any may at any other.
        return np.full(old.shape, np.max(most, initial=0.0))
    if len(moved) == 1:  # a single example says too little of a trajectory
        most = np.broadcast_to(np.max(most, axis=0), old.shape)
    return np.asarray(np.maximum.accumulate(most, axis=-1) if old.ndim > 1 else most)


def _off(one: Floats, other: Floats, scale: Floats) -> Floats:
    """Differences in a unit; infinity where one of the two is no number, or another infinity."""
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore", divide="ignore"):
        off = np.where(same, 0.0, np.abs(one - other) / scale)
    return np.where(np.isnan(off), np.inf, off)


def compare_study(
    study: str, dtype: str, kept: Kept, work: Path, checkout: Path = ROOT
) -> list[Comparison]:
    """Runs a study and compares its variables, those that it has and had.

    Args:
        study: its name.
        dtype: to run it in.
        kept: what is kept of it.
        work: where results go.
        checkout: whose study and library it is.

    Raises:
        LookupError: it has lost a point or a variable, or has other axes.
    """
    found, names = take(run_small(study, dtype, work, checkout), kept.chosen), kept.runs[dtype]
    if lost := names.keys() - found.keys():
        raise LookupError(f"there is no {', '.join(sorted(lost))} any more")
    return [compare(name, found[name], kept, dtype) for name in names]


def told(study: str, dtype: str, found: Sequence[Comparison]) -> str:
    """One line on a study."""
    worst = max(found, key=lambda one: float(np.max(one.off - one.allowed)))
    largest = max(found, key=lambda one: float(np.max(one.off)))
    numbers, loose = sum(one.off.size for one in found), sum(one.loose for one in found)
    most = max(float(np.max(one.allowed)) for one in found)
    held = f", {loose} of them held to rounding ({most:.0e} at most)" if loose else ""
    line = f"{study:22}{dtype}  {numbers} numbers{held}, "
    line += f"largest difference {np.max(largest.off):.1e} ({largest.name})"
    if worst.holds:
        return f"{line}: equal"
    return f"{line}: ANOTHER ({', '.join(one.name for one in found if not one.holds)})"


def compare_all(studies: Sequence[str], work: Path, checkout: Path = ROOT) -> int:
    """Prints how every study compares; 1 if one is another, 0 if none is."""
    kept, provenance = read()
    print(f"compared with commit {provenance['git_commit']}, {provenance['versions']}")
    failed = 0
    for study in studies:
        for dtype in kept[study].dtypes:
            try:
                found = compare_study(study, dtype, kept[study], work, checkout)
            except LookupError as error:
                failed += 1
                print(f"{study:22}{dtype}  ANOTHER: {error}")
                continue
            failed += not all(one.holds for one in found)
            print(told(study, dtype, found))
    return int(failed > 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Freezes or compares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="where runs are kept, if they are to be")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("freeze").add_argument("checkout", type=Path)
    names = sorted(read()[0]) if KEPT.exists() else []
    commands.add_parser("compare").add_argument(
        "studies", nargs="*", metavar="STUDY", choices=[*names, []], help=", ".join(names)
    )
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        work = (asked.work or Path(folder)).resolve()
        if asked.command == "freeze":
            freeze(asked.checkout.resolve(), work)
            return 0
        return compare_all(asked.studies or names, work)


if __name__ == "__main__":
    raise SystemExit(main())
