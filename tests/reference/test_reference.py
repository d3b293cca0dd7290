"""The shipped studies still give what an earlier commit gave; what compares them can fail."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray as xr

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))

import reference  # noqa: E402
from reference import Chosen, Kept, choose, compare, take  # noqa: E402

from scbjax.sweep.study.locating import find_studies  # noqa: E402

KEPT, PROVENANCE = reference.read()
QUICK = "sparsity"
NEWER = {
    "adaptive",
    "cheaper",
    "embeddings",
    "factors",
    "few_shot",
    "finite",
    "hierarchy",
    "lags",
    "maps",
    "modalities",
    "multihead",
    "multihead_scaling",
    "projector_tasks",
    "sequences",
    "texts",
    "two_hop",
}
"""Studies that the commit did not have."""


def assert_as_kept(study: str, dtype: str, work: Path) -> None:
    """Fails if a study is another; skips where the compiler rounds tasks otherwise.

    A token goes by the last bit of mu: where that is another, some trajectories learn from others.
    """
    kept = json.loads(PROVENANCE["versions"])["jax"]
    if jax.__version__ != kept:
        pytest.skip(f"what is kept was drawn with JAX {kept}, this is {jax.__version__}")
    found = reference.compare_study(study, dtype, KEPT[study], work)
    assert all(one.holds for one in found), reference.told(study, dtype, found)


def test_a_study_is_what_it_was(tmp_path: Path) -> None:
    assert_as_kept(QUICK, "float32", tmp_path)


RUNS = [(study, dtype) for study in sorted(KEPT) for dtype in KEPT[study].dtypes]


@pytest.mark.slow
@pytest.mark.parametrize(("study", "dtype"), RUNS)
def test_every_study_is_what_it_was(tmp_path: Path, study: str, dtype: str) -> None:
    assert_as_kept(study, dtype, tmp_path)


def test_every_shipped_study_is_kept_that_the_commit_had() -> None:
    shipped = {path.stem for path in find_studies() if path.parent == ROOT / "sweeps"}
    assert shipped - NEWER == set(KEPT)
    assert PROVENANCE["git_commit"].startswith("a6814c4")
    assert reference.KEPT.stat().st_size < 300_000


@pytest.mark.parametrize("dtype", reference.DTYPES)
def test_few_numbers_are_held_to_rounding(dtype: str) -> None:
    numbers = loose = 0
    for kept in KEPT.values():
        source = kept.runs.get(dtype, {})
        found = [compare(name, source[name], kept, dtype) for name in source]
        assert all(one.holds for one in found)
        numbers += sum(one.off.size for one in found)
        loose += sum(one.loose for one in found)
    assert loose <= (0.15 if dtype == "float32" else 0.1) * numbers


# ------------------------------------------------------------------------------ how it compares


def made(seeds: int = 3, arms: int = 2) -> xr.Dataset:
    """A dataset in which every number tells where it stands."""
    steps = np.arange(0, 120, 10)
    shape = (seeds, arms, len(steps))
    number = np.arange(np.prod(shape), dtype=np.float64).reshape(shape) + 1
    return xr.Dataset(
        {
            "distance": (("seed", "arm", "step"), number),
            "stage": (("seed", "arm", "step"), number.astype(np.int32)),
            "pattern": (("seed", "position"), np.eye(seeds, 4)),
        },
        coords={
            "seed": 10 + np.arange(seeds),
            "l1": ("arm", 0.5 * np.arange(arms)),
            "step": steps,
        },
    )


def kept_of(dataset: xr.Dataset, rounding: float = 0.0) -> Kept:
    chosen = choose(dataset)
    single = take(dataset, chosen)
    double = {name: array * (1 + rounding) for name, array in single.items()}
    plain = {name: array.copy() for name, array in single.items()}
    runs = {"float32": single, "float64": double, "plain": plain}
    return Kept(chosen, runs, frozenset({"stage"}))


@pytest.mark.parametrize(("seeds", "arms"), [(3, 2), (40, 3), (2, 30), (1, 1)])
def test_every_point_of_every_axis_is_kept(seeds: int, arms: int) -> None:
    chosen = choose(made(seeds, arms))
    assert {row["seed"]["seed"] for row in chosen.trajectories} == set(range(10, 10 + seeds))
    assert {row["arm"]["l1"] for row in chosen.trajectories} == {0.5 * arm for arm in range(arms)}
    assert len(chosen.trajectories) <= max(reference.TRAJECTORIES, seeds, arms)
    assert chosen.along["step"][0] == 0
    assert chosen.along["step"][-1] == 110


def test_points_are_found_by_their_labels() -> None:
    dataset = made()
    chosen = choose(dataset)
    moved = dataset.isel(seed=[2, 0, 1], arm=[1, 0]).transpose("arm", "step", "seed", "position")
    longer = xr.concat([moved, moved.assign_coords(seed=moved.seed + 50)], "seed", join="exact")
    for other in (moved, longer):
        for name, array in take(dataset, chosen).items():
            np.testing.assert_array_equal(take(other, chosen)[name], array)
    first = chosen.trajectories[0]
    point = dataset.sel(seed=first["seed"]["seed"]).isel(arm=int(2 * first["arm"]["l1"]))
    expected = point.distance.sel(step=chosen.along["step"])
    np.testing.assert_array_equal(take(dataset, chosen)["distance"][0], expected)


@pytest.mark.parametrize(
    ("lose", "sentence"),
    [
        (lambda data: data.isel(seed=[0, 1]), "there is no point {'seed': 12} of the axis seed"),
        (lambda data: data.isel(step=slice(5)), "there is no step"),
        (lambda data: data.isel(arm=0, drop=True), "there is no axis arm any more"),
        (lambda data: data.expand_dims(batch=2), "there are axes that were not there: batch"),
    ],
)
def test_what_is_lost_is_told(lose: object, sentence: str) -> None:
    dataset = made()
    with pytest.raises(LookupError) as told:
        take(lose(dataset), choose(dataset))  # type: ignore[operator]
    assert sentence in str(told.value)


def test_a_matrix_that_is_changed_anywhere_is_noticed() -> None:
    dataset = made()
    kept = kept_of(dataset)
    for place in range(4):
        changed = dataset.copy(deep=True)
        changed.pattern[1, place] += 0.01
        assert not compare("pattern", take(changed, kept.chosen)["pattern"], kept, "float32").holds


@pytest.mark.parametrize("dtype", reference.DTYPES)
def test_differences_are_of_the_largest_number_on_the_trajectory(dtype: str) -> None:
    kept = kept_of(made())
    largest = kept.runs["float32"]["distance"].max(axis=1)
    for part, holds in ((0.9e-5, True), (1.1e-5, False)):
        new = kept.runs["float32"]["distance"].copy()
        new[:, 0] += part * largest
        found = compare("distance", new, kept, dtype)
        assert found.holds == holds
        assert found.loose == 0
        np.testing.assert_allclose(found.off.max(), part, rtol=1e-6)


@pytest.mark.parametrize("run", ["float64", "plain"])
def test_what_rounding_moves_is_held_to_rounding(run: str) -> None:
    """From the record on at which two runs of the commit differ, and in float32 alone."""
    kept = kept_of(made())
    name, record = "distance", 3
    single = kept.runs["float32"]
    kept.runs[run][name][1, record] *= 1 + 1e-3
    allowed = compare(name, single[name], kept, "float32").allowed
    assert (allowed[:, :record] == reference.RELATIVE).all()
    assert (allowed[[0, 2, 3, 4, 5]] == reference.RELATIVE).all()
    assert (allowed[1, record:] > 1e-4).all()
    new = single[name] * (1 + 1e-4)
    assert not compare(name, new, kept, "float32").holds  # the other trajectories
    new[[0, 2, 3, 4, 5]] = single[name][[0, 2, 3, 4, 5]]
    new[1, :record] = single[name][1, :record]
    assert compare(name, new, kept, "float32").holds
    assert not compare(name, new, kept, "float64").holds


def test_one_example_of_rounding_stands_for_all_trajectories() -> None:
    kept = kept_of(made())
    del kept.runs["float64"]
    single = kept.runs["float32"]["distance"]
    kept.runs["plain"]["distance"][1, 3] *= 1 + 1e-3
    allowed = compare("distance", single, kept, "float32").allowed
    assert (allowed[:, :3] == reference.RELATIVE).all()
    assert (allowed[:, 3:] > 1e-4).all()


def test_what_is_sensitive_is_held_to_rounding_in_float64_too() -> None:
    kept = replace(kept_of(made(), rounding=1e-3), is_sensitive=True)
    double = kept.runs["float64"]["distance"]
    assert (compare("distance", double, kept, "float64").allowed > 1e-4).any()


def test_counts_must_be_the_same() -> None:
    kept = kept_of(made(40, 3))
    new = kept.runs["float32"]["stage"].copy()
    new[-1, -1] += 1
    for dtype in reference.DTYPES:
        assert not compare("stage", new, kept, dtype).holds
        assert compare("stage", kept.runs["float32"]["stage"], kept, dtype).holds


def test_counts_that_rounding_moves_may_be_off_as_much_anywhere() -> None:
    kept = kept_of(made(40, 3))
    single = kept.runs["float32"]["stage"]
    kept.runs["plain"]["stage"][0, 2] += 1
    most = 4 / single[0].max()
    found = compare("stage", single, kept, "float32")
    np.testing.assert_allclose(found.allowed, most, rtol=1e-6)
    assert compare("stage", single, kept, "float64").allowed.max() == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_must_stay_so(value: float) -> None:
    kept = kept_of(made())
    odd = {name: array.copy() for name, array in kept.runs["float32"].items()}
    odd["distance"][2, 4] = value
    strange = replace(kept, runs=dict.fromkeys(reference.RUNS, odd))
    for dtype in reference.DTYPES:
        assert compare("distance", odd["distance"], strange, dtype).holds
        assert not compare("distance", kept.runs["float32"]["distance"], strange, dtype).holds
        assert not compare("distance", odd["distance"], kept, dtype).holds


def test_what_is_written_is_read(tmp_path: Path) -> None:
    kept = kept_of(made(), rounding=1e-3)
    reference.write({"study": kept}, {"git_commit": "0"}, tmp_path / "kept.npz")
    found, provenance = reference.read(tmp_path / "kept.npz")
    assert provenance == {"git_commit": "0"}
    assert found["study"].chosen == Chosen(kept.chosen.trajectories, kept.chosen.along)
    assert found["study"].integers == kept.integers
    assert found["study"].runs.keys() == kept.runs.keys()
    for run, arrays in kept.runs.items():
        for name, array in arrays.items():
            np.testing.assert_allclose(found["study"].runs[run][name], array, rtol=1e-7)
