"""The helpers of the figure scripts: layout, arms, statistics, limits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import _arms
import _axes
import _curves
import _data
import _distances
import _runs
import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

Make = Callable[..., xr.Dataset]


def test_tidy_puts_seeds_into_runs_and_the_rest_into_arms(dataset: xr.Dataset) -> None:
    tidy = _data.tidy(dataset, ["sparsity"])
    assert tidy["value_distance"].dims == ("arm", "run", "sparsity", "step")
    assert tidy["transition_signal"].dims == ("arm", "run", "sparsity")
    np.testing.assert_array_equal(
        tidy["value_distance"][1, 3, 2], dataset["value_distance"].values[3, 2, 1]
    )
    assert list(tidy["optimizer"].values) == ["proximal", "sgd", "sgd"]


def test_tidy_stacks_several_seed_axes_and_several_arm_axes() -> None:
    values = np.arange(2 * 3 * 2 * 2 * 4.0).reshape(2, 3, 2, 2, 4)
    product = xr.Dataset(
        {"alpha_value": (("task_seed", "data_seed", "optimizer", "l1", "step"), values)},
        coords={
            "optimizer": ["proximal", "sgd"],
            "l1": ("l1", [1e-5, 1e-3], {"symbol": r"$\lambda$"}),
            "step": range(4),
        },
    )
    tidy = _data.tidy(product)
    assert dict(tidy.sizes) == {"arm": 4, "run": 6, "step": 4}
    np.testing.assert_array_equal(tidy["alpha_value"][2, 5], values[1, 2, 1, 0])
    assert [arm.label for arm in _arms.arms_of(tidy)] == [
        r"proximal, $\lambda$ = 1e-5",
        r"proximal, $\lambda$ = 0.001",
        r"SGD, $\lambda$ = 1e-5",
        r"SGD, $\lambda$ = 0.001",
    ]


def test_tidy_takes_axes_that_are_called_arm_or_run(dataset: xr.Dataset) -> None:
    named = dataset.rename_dims(optimizer_and_learning_rate_2="arm").rename(sparsity="run")
    tidy = _data.tidy(named)
    assert dict(tidy["stage"].sizes) == {"arm": 9, "run": 4, "step": 21}
    assert list(tidy["optimizer"].values[:4]) == ["proximal", "sgd", "sgd", "proximal"]


def test_tidy_finds_a_panel_field_inside_a_zip(dataset: xr.Dataset) -> None:
    zipped = dataset.rename_dims(sparsity="level").drop_indexes("sparsity")
    zipped = zipped.assign_coords(threshold=("level", [0.3, 0.2, 0.1]))
    tidy = _data.tidy(zipped, ["sparsity"])
    assert tidy["value_distance"].dims == ("arm", "run", "sparsity", "step")
    assert list(tidy["sparsity"].values) == [1, 2, 4]
    assert len(_arms.arms_of(tidy)) == 3


def test_tidy_gives_a_single_trajectory_every_dimension(dataset: xr.Dataset) -> None:
    single = dataset.isel(seed=0, sparsity=0, optimizer_and_learning_rate_2=0, drop=True)
    tidy = _data.tidy(single, ["sparsity"])
    assert tidy["stage"].dims == ("arm", "run", "sparsity", "step")
    assert [arm.label for arm in _arms.arms_of(tidy)] == ["proximal"]


def test_an_optimizer_that_is_not_swept_is_read_from_the_settings(dataset: xr.Dataset) -> None:
    single = dataset.isel(optimizer_and_learning_rate_2=1, drop=True)
    single.attrs["settings"] = '{"train.optimizer": "sgd"}'
    (arm,) = _arms.arms_of(_data.tidy(single, ["sparsity"]))
    assert (arm.label, arm.colour) == ("SGD", _arms.LOOKS["sgd"][0][0])


def test_an_arm_looks_the_same_whatever_it_is_compared_with(dataset: xr.Dataset) -> None:
    three = _arms.arms_of(_data.tidy(dataset, ["sparsity"]))
    two = _arms.arms_of(
        _data.tidy(dataset.isel(optimizer_and_learning_rate_2=[1, 0]), ["sparsity"])
    )
    looks = {(arm.colour, str(arm.linestyle)) for arm in three}
    assert len(looks) == 3
    assert [(arm.colour, arm.linestyle) for arm in two] == [
        (three[1].colour, three[1].linestyle),
        (three[0].colour, three[0].linestyle),
    ]
    assert [arm.label for arm in three] == [
        "proximal",
        r"SGD, $\eta_2$ = 0.005",
        r"SGD, $\eta_2$ = 0.001",
    ]
    assert [arm.label for arm in two] == ["SGD", "proximal"]


def test_attention_maps_have_looks_of_their_own_and_are_named() -> None:
    values = np.arange(3 * 2 * 4 * 5.0).reshape(3, 2, 4, 5)
    stored = xr.Dataset(
        {"attention": (("arm", "seed", "position", "query"), values)},
        coords={
            "seed": [0, 1],
            "optimizer": ("arm", ["proximal", "raw_sgd", "adam"]),
            "attention_map": ("arm", ["linear", "softmax", "softmax"]),
            "learning_rate_1": ("arm", [0.02, 1.0, 0.003]),
        },
    )
    tidy = _data.tidy(stored)
    assert tidy["attention"].dims == ("arm", "run", "position", "query")
    arms = _arms.arms_of(tidy)
    assert [arm.label for arm in arms] == ["linear, proximal", "softmax, raw SGD", "softmax, Adam"]
    assert len({(arm.colour, str(arm.linestyle)) for arm in arms}) == 3
    assert arms[0].colour == _arms.LOOKS["proximal"][0][0]
    softmax = _arms.arms_of(_data.tidy(stored.isel(arm=[1, 2])))
    assert [(arm.label, arm.colour) for arm in softmax] == [
        (arm.label, arm.colour) for arm in arms[1:]
    ]


def test_more_arms_than_looks_is_one_clear_sentence() -> None:
    many = xr.Dataset(
        {"stage": (("l1", "step"), np.ones((7, 2)))}, coords={"l1": np.arange(7.0), "step": [0, 1]}
    )
    with pytest.raises(ValueError, match=r"7 arms with optimizer proximal.*--set l1=0\.0"):
        _arms.arms_of(_data.tidy(many))


def test_what_a_task_is_gets_all_axes_of_its_study(make_dataset: Make, tmp_path: Path) -> None:
    """It is stored along those that it depends on; older datasets have all of them anyway."""
    old = make_dataset(sparsities=(1, 2), steps=100)
    axes = old["transition_signal"].dims
    others = [axis for axis in axes if axis != "seed"]
    signal = old["transition_signal"].isel(dict.fromkeys(others, 0), drop=True)
    whole = signal.broadcast_like(old["stage"].isel(step=0, drop=True)).transpose(*axes)
    old, new = (old.assign(transition_signal=values) for values in (whole, signal))
    assert new["transition_signal"].dims == ("seed",)
    names = ["transition_signal", "pattern_signal", "stage"]
    opened = {}
    for name, dataset in (("old", old), ("new", new)):
        (tmp_path / name).mkdir()
        dataset.to_netcdf(tmp_path / name / f"{name}.nc", engine="h5netcdf")
        opened[name] = _data.open_study(tmp_path, name, names)
        alone = _data.open_study(tmp_path, name, ["transition_signal"])
        assert alone["transition_signal"].dims == axes
    xr.testing.assert_identical(opened["old"], opened["new"])
    assert opened["new"]["stage"].dims == (*axes, "step")


def test_a_swept_constant_of_the_task_is_read_as_it_was_drawn(
    make_dataset: Make, tmp_path: Path
) -> None:
    stored = make_dataset(sparsities=(2,), steps=100).isel(sparsity=0, drop=True)
    stored = stored.rename(transition_signal="drawn_transition_signal")
    stored = stored.expand_dims(transition_signal=[0.2, 0.4])
    (tmp_path / "fig1").mkdir()
    stored.to_netcdf(tmp_path / "fig1" / "fig1.nc", engine="h5netcdf")
    opened = _data.open_study(tmp_path, "fig1", ["transition_signal", "stage"])
    tidy = _data.tidy(opened.isel(optimizer_and_learning_rate_2=[0]))
    arms = _arms.arms_of(tidy)
    assert [arm.label for arm in arms] == [
        "proximal, transition_signal = 0.2",
        "proximal, transition_signal = 0.4",
    ]
    np.testing.assert_array_equal(
        _runs.runs_of(tidy, "transition_signal", arms[1]),
        stored["drawn_transition_signal"].values[1, :, 0],
    )


def test_band_is_the_percentiles_of_the_finite_runs() -> None:
    values = np.random.default_rng(0).normal(size=(9, 5))
    values[0, 2], values[1, 2], values[:, 4] = np.nan, np.inf, np.nan
    band = _runs.band(values)
    np.testing.assert_array_equal(band[:, 0], np.percentile(values[:, 0], [10, 50, 90]))
    np.testing.assert_array_equal(band[:, 2], np.percentile(values[2:, 2], [10, 50, 90]))
    assert np.isnan(band[:, 4]).all()


def test_a_run_that_diverged_in_several_variables_is_counted_once(dataset: xr.Dataset) -> None:
    data = dataset.sel(sparsity=2, drop=True).copy(deep=True)
    data["value_distance"][{"seed": 1, "step": slice(3, 5)}] = np.nan
    data["alpha_value"][{"seed": 1, "step": 9}] = np.nan
    data["alpha_value"][{"seed": 3, "optimizer_and_learning_rate_2": 2, "step": -1}] = -np.inf
    tidy = _data.tidy(data)
    assert [_runs.count_diverged(tidy, arm) for arm in _arms.arms_of(tidy)] == [1, 1, 2]


def test_stage_ends_leave_out_runs_that_stay_in_stage_1() -> None:
    x = np.array([0.0, 10.0, 20.0, 30.0, 40.0])
    stage = np.array([[1.0, 1, 2, 2, 3], [1, 1, 1, 1, 1], [1, 2, 2, 2, 2]])
    np.testing.assert_array_equal(_runs.stage_ends(x, stage, 1), [20.0, 10.0])


def test_population_distance_is_the_norm_of_what_is_left_of_the_signal() -> None:
    rng = np.random.default_rng(1)
    joint = rng.random((3, 3))
    transition = joint / joint.sum(axis=0)
    values, vectors = np.linalg.eig(transition)
    mu = np.real(vectors[:, np.argmax(np.real(values))])
    mu = mu / mu.sum()
    start, alpha = np.outer(mu, np.ones(3)), np.array([[0.0, 0.4, 1.0, 1.2]])
    signal = (transition**2 @ mu).sum() - (mu**2).sum()
    expected = [np.sqrt((((1 - a) * (start - transition)) ** 2 @ mu).sum()) for a in alpha[0]]
    np.testing.assert_allclose(
        _distances.population_distance(alpha, np.array([signal])), expected, rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1, 0.5, 0.0, np.nan], (0.07, 0.7)),
        ([1e-9, 1.0], (0.7, 1.4)),
        ([1e-5, 1.0], (1e-3, 1.4)),
        ([0.1, 1e8], (0.07, 20.0)),
        ([0.0, np.nan], (1e-3, 1.0)),
    ],
)
def test_log_limits(values: list[float], expected: tuple[float, float]) -> None:
    limits = _axes.log_limits([np.array(values)], ceiling=20.0)
    np.testing.assert_allclose(limits, expected)


def test_arms_that_share_a_population_path_show_it_once(dataset: xr.Dataset) -> None:
    arms = _arms.arms_of(_data.tidy(dataset, ["sparsity"]))
    axes = Figure().subplots()
    x, path = np.arange(3.0), np.array([0.0, 0.5, 1.0])
    _curves.draw_population(axes, [x] * 3, [path, path.copy(), 0.5 * path], arms)
    assert [line.get_gid() for line in axes.lines] == ["population 0", "population 2"]


def test_the_population_path_ends_where_the_first_run_rounds(dataset: xr.Dataset) -> None:
    data = dataset.sel(sparsity=2, drop=True).copy(deep=True)
    for seed, start in enumerate((20, 12, 10)):
        data["stage"][
            {"seed": seed, "optimizer_and_learning_rate_2": 0, "step": slice(start, None)}
        ] = 3
    tidy = _data.tidy(data)
    first, second, _ = _arms.arms_of(tidy)
    path = _runs.population_of(tidy, "population_alpha_value", first)
    np.testing.assert_array_equal(np.isfinite(path).all(axis=0), np.arange(21) < 10)
    axes = Figure().subplots()
    paths = [path[0], tidy["population_alpha_value"].values[1, 0]]
    _curves.draw_population(axes, [np.arange(21.0)] * 2, paths, [first, second])
    assert [line.get_gid() for line in axes.lines] == ["population 1"]


@pytest.mark.parametrize("content", [b"", b"not a dataset"])
def test_a_broken_file_is_one_clear_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "fig1").mkdir()
    (tmp_path / "fig1" / "fig1.nc").write_bytes(content)
    with pytest.raises(ValueError, match=r"fig1\.nc cannot be read.*`scbjax run fig1 --out"):
        _data.open_study(tmp_path, "fig1", ["stage"])


def test_an_interval_without_an_upper_end_stops_in_an_arrow_head() -> None:
    axes = Figure().subplots()
    costs, ends = np.array([2.0, 3.0, np.inf]), np.array([[1.0, 2.0, 4.0], [5.0, np.inf, np.inf]])
    _curves.draw_ranges(axes, np.arange(3.0), costs, ends, "black")
    (bars,) = axes.collections
    assert isinstance(bars, LineCollection)
    segments = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert segments == [[1.0, 5.0], [2.0, 3.0 * _curves.OPEN]]
    (heads,) = axes.lines
    assert np.asarray(heads.get_xydata()).tolist() == [[1.0, 3.0 * _curves.OPEN]]
