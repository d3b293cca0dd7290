"""Checks what the documents claim on tasks that nothing in the project was made or tuned on.

`make claims SEEDS=9900:9932` runs the studies that the claims of `claims.toml` are about with these
seeds (the last one is left out, as in Python), and prints claim by claim what came out, what is
stated, and whether the claim holds; the exit status is 1 if one does not. A claim is an interval,
95%, in which a number lies. What comes out of new tasks has an interval too, and the claim holds if
the two meet. Of true claims that are estimated from samples as large, about one in two hundred
fails by chance; few new tasks can only find out what is far off.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "figures"))

import fig2  # noqa: E402
import numpy as np  # noqa: E402
import stage1  # noqa: E402
import transfer  # noqa: E402
import xarray as xr  # noqa: E402
from _arms import arms_of  # noqa: E402
from _data import Values, tidy, with_all_axes  # noqa: E402
from _distances import FOUND, RECOVERED, SUCCESS  # noqa: E402
from _estimates import (  # noqa: E402
    Estimate,
    Interval,
    power_estimate,
    quantile_interval,
    share_interval,
)
from _numbers import Table, ranged, worded  # noqa: E402
from _runs import SIGNALS  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from scbjax.tables import nearest  # noqa: E402

CLAIMS: Final = Path(__file__).with_name("claims.toml")


@dataclass(frozen=True)
class Claim:
    """A number that the documents state, and how it is measured.

    Attributes:
        study: whose runs tell it.
        text: what is stated, as it stands in a document.
        measure: a name in `MEASURES`.
        low: lower end of the interval stated.
        high: upper end of it.
        where: the values of the study's axes that pick the runs; of samples to recovery, the way;
            of a table, the cells that pick the row.
        than: those of other runs of the same tasks, where two are compared.
        variable: what is measured of them; of a table, the column.
        share: the quantile that is stated.
        level: what runs have to be below.
        step: when it is measured; at the end if it is left out.
        table: how the title of a table of the study's figure begins.
    """

    study: str
    text: str
    measure: str
    low: float
    high: float
    where: Mapping[str, object] = field(default_factory=dict)
    than: Mapping[str, object] = field(default_factory=dict)
    variable: str = ""
    share: float = 0.5
    level: float = 0.0
    step: int | None = None
    table: str = ""

    @property
    def stated(self) -> Interval:
        """The interval stated."""
        return Interval(self.low, self.high)


@dataclass(frozen=True)
class Verdict:
    """What came out for a claim on new tasks."""

    claim: Claim
    found: Estimate

    @property
    def holds(self) -> bool:
        """Whether the stated interval and that of the new tasks meet; not if nothing came out."""
        came_out = np.isfinite(self.found.value)
        return bool(came_out) and self.claim.stated.meets(Interval(*self.found[1:]))

    def __str__(self) -> str:
        """Say it in two lines."""
        value, *ends = (f"{number:.4g}" for number in self.found)
        stated = " to ".join(f"{number:.4g}" for number in self.claim.stated)
        word = "holds" if self.holds else "FAILS"
        return (
            f"{word}  {self.claim.study}: {self.claim.text}\n"
            f"       stated {stated}; came out {value} ({' to '.join(ends)})"
        )


def read_claims(path: Path = CLAIMS) -> list[Claim]:
    """Read the claims of a file; a field that there is not is a TypeError that names it."""
    with path.open("rb") as stream:
        return [Claim(**entry) for entry in tomllib.load(stream)["claim"]]


def used_seeds(path: Path = CLAIMS) -> list[range]:
    """Seeds that studies, tuning or earlier looks have used."""
    with path.open("rb") as stream:
        return [range(*pair) for pair in tomllib.load(stream)["used_seeds"]]


# -------------------------------------------------------------------------------- measuring


def values_of(dataset: xr.Dataset, where: Mapping[str, object], name: str, claim: Claim) -> Values:
    """Give a variable of the runs [tasks] of one arm of a study.

    Args:
        dataset: of the study.
        where: the values of its axes.
        name: of the variable; `gain` is that of the mu-orthogonal projector at the start, and
            `cosine_to_linear` that of the attention at the end to the one of the linear map.
        claim: when it is measured.

    Raises:
        ValueError: no arm, or several, have these values.
    """
    if name == "gain":
        ratio = dataset["initial_noise_paper"] / dataset["initial_noise_mu"]
        dataset = dataset.assign(gain=ratio**2)
    data = tidy(dataset)
    if name == "cosine_to_linear":
        data = data.assign({name: (("arm", "run"), cosines_to_linear(data))})
    here = np.ones(data.sizes["arm"], bool)
    for axis, value in where.items():
        along = np.broadcast_to(data[axis].to_numpy(), here.shape)
        here &= np.isclose(along, value) if isinstance(value, float) else along == value
    if here.sum() != 1:
        raise ValueError(f"{here.sum()} arms of {claim.study} are {dict(where)}, not one")
    last = data[name].isel(arm=int(here.argmax()))
    if "step" in last.dims:
        last = last.isel(step=-1) if claim.step is None else last.sel(step=claim.step)
    return np.asarray(last.to_numpy(), float).ravel()


def cosines_to_linear(data: xr.Dataset) -> Values:
    """Give the cosines [arms, runs] of the attention to that of the linear map, as figure 2."""
    # A task's mu is stored once for all arms.
    mu = data["stationary"]
    data = data.assign(stationary=mu if "arm" in mu.dims else mu.expand_dims(arm=data.sizes["arm"]))
    arms = arms_of(data)
    linear = fig2.reference_of(data, arms)
    return np.stack([fig2.similarities(data, "attention", arm, linear) for arm in arms])


def share_of(hits: NDArray[np.bool_]) -> Estimate:
    """Give a share with its interval."""
    return Estimate(float(hits.mean()), *share_interval(int(hits.sum()), hits.size))


def found(claim: Claim, dataset: xr.Dataset) -> Estimate:
    """Share of the runs that are near P and Q once they are rounded."""
    near = [values_of(dataset, claim.where, name, claim) < level for name, level in FOUND.items()]
    return share_of(np.logical_and(*near))


def recovered(claim: Claim, dataset: xr.Dataset) -> Estimate:
    """Share of the runs within 0.1 of P and Q once they are rounded, which is said of larger N."""
    near = [values_of(dataset, claim.where, name, claim) < RECOVERED for name in FOUND]
    return share_of(np.logical_and(*near))


def mirrored(claim: Claim, dataset: xr.Dataset) -> Estimate:
    """Share of the runs with negative signals in both V and A."""
    signs = [values_of(dataset, claim.where, name, claim) < 0 for name in SIGNALS]
    return share_of(np.logical_and(*signs))


def quantile(claim: Claim, dataset: xr.Dataset) -> Estimate:
    """Give a quantile of the size of a variable over tasks, the median if no other is named."""
    sizes = np.abs(values_of(dataset, claim.where, claim.variable, claim))
    return Estimate(float(np.quantile(sizes, claim.share)), *quantile_interval(sizes, claim.share))


def below(claim: Claim, dataset: xr.Dataset) -> Estimate:
    """Share of the tasks with a variable below a level."""
    return share_of(values_of(dataset, claim.where, claim.variable, claim) < claim.level)


def above(claim: Claim, dataset: xr.Dataset) -> Estimate:
    """Share of the tasks with a variable above a level."""
    return share_of(values_of(dataset, claim.where, claim.variable, claim) > claim.level)


def power(claim: Claim, dataset: xr.Dataset) -> Estimate:
    """Power of T to which the samples grow that 90% of the runs need, at the best settings."""
    if "probe" in dataset.dims:  # a search for the best rate
        data = stage1.arranged(dataset)
        samples = data[stage1.GOAL].to_numpy()
        return stage1.power_of(stage1.lengths_of(data), samples, stage1.share_of(dataset))
    curve = curve_of(claim, dataset)
    return power_estimate(curve.lengths, curve.tried, SUCCESS)


def curve_of(claim: Claim, dataset: xr.Dataset) -> transfer.Curve:
    """Find the runs of one way to train among those of the study of transfers.

    Raises:
        ValueError: there are none.
    """
    curves = {curve.label: curve for curve in transfer.curves_of(dataset)}
    way = str(claim.where.get("way"))
    if way not in curves:
        raise ValueError(f"{claim.study} has no way {way!r}, but {', '.join(curves)}")
    return curves[way]


def nearer(claim: Claim, dataset: xr.Dataset) -> Estimate:
    """Share of the tasks on which one arm ends with a smaller variable than another."""
    one, other = (
        values_of(dataset, where, claim.variable, claim) for where in (claim.where, claim.than)
    )
    return share_of(one < other)


def tabled(claim: Claim, dataset: xr.Dataset) -> Estimate:
    """Give a number with its interval out of a table that `scbjax figure NAME --numbers` prints.

    Tables leave out what never came about, such as the samples until something that no run
    reached: then the number is NaN.

    Raises:
        ValueError: the figure of the study has no such table or column, or several such rows.
    """
    found = importlib.import_module(claim.study).tables(dataset)
    tables: list[Table] = [table for table in found if table.title.startswith(claim.table)]
    if len(tables) != 1:
        raise ValueError(f"{len(tables)} tables of {claim.study} begin with {claim.table!r}")
    columns, rows = list(tables[0].columns), tables[0].rows
    for name in (*claim.where, *ranged(claim.variable)):
        if name not in columns:
            raise ValueError(f"{claim.table!r} of {claim.study} has no column {name!r}")
    for name, value in claim.where.items():
        rows = [row for row in rows if worded(row[columns.index(name)]) == worded(value)]
    if len(rows) > 1:
        raise ValueError(f"{len(rows)} rows of {claim.table!r} are {dict(claim.where)}, not one")
    cells = [rows[0][columns.index(name)] if rows else np.nan for name in ranged(claim.variable)]
    # A text in the place of a number, such as "later", says that there is none.
    return Estimate(*(np.nan if isinstance(x, str) else float(np.asarray(x)) for x in cells))


MEASURES: Final[Mapping[str, Callable[[Claim, xr.Dataset], Estimate]]] = {
    measure.__name__: measure
    for measure in (found, recovered, mirrored, quantile, below, above, nearer, power, tabled)
}


def judge(claim: Claim, dataset: xr.Dataset) -> Verdict:
    """Measure what a claim states on the tasks of a dataset."""
    return Verdict(claim, MEASURES[claim.measure](claim, dataset))


# ---------------------------------------------------------------------------------- running


def read_seeds(text: str, used: Sequence[range]) -> range:
    """Read `first:last`, of which nothing may have been used.

    >>> read_seeds("9900:9932", [range(0, 100)])
    range(9900, 9932)
    """
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise ValueError(f"SEEDS must be first:last, as in 9900:9932, and is {text!r}")
    seeds = range(int(first), int(last))
    for known in used:
        both = range(max(seeds.start, known.start), min(seeds.stop, known.stop))
        if both:
            raise ValueError(
                f"seeds {both.start} to {both.stop - 1} have been used before; "
                "claims are checked on seeds that nothing was made or tuned on"
            )
    return seeds


def run_study(study: str, seeds: range, out: Path, *, small: bool) -> Path:
    """Run a study on these seeds, or go on with it; returns its dataset."""
    command = [sys.executable, "-m", "scbjax", "run", study, "--no-figure", "--out", str(out)]
    command += ["--set", f"axes.seed={{ range = [{seeds.start}, {seeds.stop}] }}"]
    if small:
        command += ["--small"]
    subprocess.run(command, check=True)
    return out / f"{study}.nc"


def check(claims: Sequence[Claim], datasets: Mapping[str, xr.Dataset]) -> int:
    """Print the verdict on every claim; 1 if one does not hold, 0 if all do."""
    verdicts = [judge(claim, datasets[claim.study]) for claim in claims]
    for verdict in verdicts:
        print(verdict)
    failed = sum(not verdict.holds for verdict in verdicts)
    print(f"{len(verdicts) - failed} of {len(verdicts)} claims hold")
    return int(failed > 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the studies and check the claims; 2 on bad input."""
    claims, used = read_claims(), used_seeds()
    known = list(dict.fromkeys(claim.study for claim in claims))
    arguments = read_arguments(known, argv)
    try:
        for study in arguments.studies:
            if study not in known:
                raise ValueError(f"no claim is about a study {study!r}{nearest(study, known)}")
        seeds = read_seeds(arguments.seeds, used)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    chosen = arguments.studies or known
    folder = arguments.results / f"{seeds.start}-{seeds.stop}{'-small' * arguments.small}"
    datasets = {}
    for study in chosen:
        path = run_study(study, seeds, folder / study, small=arguments.small)
        with xr.open_dataset(path, engine="h5netcdf") as stored:
            datasets[study] = with_all_axes(stored, stored.data_vars)
    return check([claim for claim in claims if claim.study in datasets], datasets)


def read_arguments(studies: Sequence[str], argv: Sequence[str] | None) -> Any:  # noqa: ANN401
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("seeds", metavar="FIRST:LAST", help="seeds; the last one is left out")
    parser.add_argument(
        "studies", nargs="*", metavar="STUDY",
        help=f"of {', '.join(studies)}; all if none is named",
    )  # fmt: skip
    parser.add_argument(
        "--results", type=Path, default=ROOT / "results" / "claims", help="where runs are kept"
    )
    parser.add_argument(
        "--small", action="store_true", help="run the studies small, on which claims need not hold"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
