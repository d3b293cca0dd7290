"""The default figure: of every kind of dataset that the engine writes, and what it says of them."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

import scbjax
from scbjax.base import StudyError
from scbjax.plot import plot_dataset
from scbjax.plot.choosing import DISTANCES
from scbjax.plot.curves import MAX_DRAWN
from scbjax.plot.words import MAX_NAMED

SEEDS, STEPS = 5, 11
COUNTED = "samples, as iterations times batch size"
ROOT = Path(__file__).resolve().parents[1]


def build(axes: dict[str, list[Any]], names: tuple[str, ...] = ("value_distance",)) -> xr.Dataset:
    """A study over axes and seeds, whose arms fall at rates of their own."""
    shape = (SEEDS, *map(len, axes.values()), STEPS)
    rng = np.random.default_rng(0)
    speed = 1 + np.arange(np.prod(shape[1:-1], dtype=int)).reshape(*shape[1:-1], 1)
    fall = np.exp(-0.1 * np.minimum(speed, 20) * np.arange(STEPS)) * rng.uniform(0.9, 1.1, shape)
    dims = ("seed", *axes, "step")
    settings = json.dumps({"train.batch_size": 8})
    return xr.Dataset(
        dict.fromkeys(names, (dims, fall)),
        coords={"seed": range(SEEDS), "step": np.arange(STEPS) * 10, **axes},
        attrs={"title": "A study of $5", "settings": settings},
    )


def panels(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.axison]


def words(figure: Figure) -> str:
    """All that is written above the panels."""
    return figure.get_suptitle()


def curve(axes: Axes, arm: int) -> NDArray[Any]:
    (found,) = (line for line in axes.lines if line.get_gid() == f"median {arm}")
    return np.asarray(found.get_xydata())


def named(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def drawn(figure: Figure) -> Figure:
    """Lay a figure out, with nothing above or below its edges and no text over another panel."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.draw_without_rendering()
    ticks = [label for axes in figure.axes for label in axes.get_yticklabels(which="both")]
    ticks += [label for axes in figure.axes for label in axes.get_xticklabels(which="both")]
    for text in figure.findobj(Text):
        assert float(text.get_fontsize()) >= 7
        # Labels of ticks outside a panel are made, and not drawn.
        if text.get_text() and text not in ticks:
            box = text.get_window_extent()
            assert -1 <= box.y0 <= box.y1 <= figure.bbox.height + 1
            assert -1 <= box.x0 <= box.x1 <= figure.bbox.width + 1
    for legend in figure.legends:
        for axes in panels(figure):
            taken = axes.get_tightbbox()
            assert taken is not None
            assert not taken.overlaps(legend.get_window_extent())
    return figure


def test_medians_of_every_arm_against_samples() -> None:
    data = build({"l1": [1e-4, 1e-3]})
    figure = drawn(plot_dataset(data))
    (axes,) = panels(figure)
    for arm in range(2):
        found = curve(axes, arm)
        expected = np.median(data["value_distance"].values[:, arm], axis=0)
        np.testing.assert_allclose(found[:, 1], expected)
        np.testing.assert_array_equal(found[:, 0], np.arange(STEPS) * 80)
        (band,) = (item for item in axes.collections if item.get_gid() == f"band {arm}")
        outline = np.asarray(band.get_paths()[0].vertices)[:, 1]
        low, high = np.percentile(data["value_distance"].values[:, arm], [10, 90])
        assert outline.min() <= low < high <= outline.max()
    assert named(figure) == ["l1 = 1e-4", "l1 = 0.001"]
    assert axes.get_xlabel() == "samples"
    assert (
        words(figure) == f"A study of \\$5\nmedian of 5 runs, band: 10\u201390% of them; {COUNTED}"
    )


def test_recorded_samples_are_the_axis_and_batch_sizes_differ() -> None:
    data = build({"batch_size": [8, 4000]})
    (axes,) = panels(plot_dataset(data))
    np.testing.assert_array_equal(curve(axes, 1)[:, 0], np.arange(STEPS) * 40000)
    assert axes.get_xlabel() == "thousand samples"
    # All runs but one stop at step 50; the axis is that of the longest.
    used = np.minimum(np.arange(STEPS) * 10, 50) * np.array([[8], [4000]])
    data["samples"] = data["value_distance"].dims, np.stack([used] * SEEDS)
    data["samples"][{"seed": 2, "batch_size": 1}] = data["step"].values * 4000
    (axes,) = panels(plot_dataset(data))
    np.testing.assert_array_equal(curve(axes, 1)[:, 0], np.arange(STEPS) * 40000)
    assert curve(axes, 0)[-1, 0] == 400
    assert axes.get_xlabel() == "thousand samples"
    (axes,) = panels(plot_dataset(build({"l1": [0.0]}).assign_attrs(settings="{")))
    assert axes.get_xlabel() == "iteration"


def test_diverged_runs_are_left_out_and_counted_in_words() -> None:
    data = build({"optimizer": ["proximal", "sgd"]})
    clean = np.median(data["value_distance"].values[[0, 1, 4], 1], axis=0)
    data["value_distance"][{"seed": 2, "optimizer": 1, "step": slice(3, None)}] = np.nan
    data["diverged_at"] = (("seed", "optimizer"), np.full((SEEDS, 2), -1))
    # Found diverged by the engine, if not seen in what is drawn.
    data["diverged_at"][{"seed": 3, "optimizer": 1}] = 40
    figure = drawn(plot_dataset(data))
    (axes,) = panels(figure)
    np.testing.assert_allclose(curve(axes, 1)[:, 1], clean)
    assert words(figure).splitlines()[-1] == "2 of 10 runs diverged and are left out: 2 of sgd"


def test_an_arm_or_a_study_that_diverged_altogether_is_said_without_a_warning() -> None:
    data = build({"l1": [0.0, 1.0]})
    data["value_distance"][{"l1": 1}] = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = drawn(plot_dataset(data))
        assert "5 of 10 runs diverged and are left out: 5 of l1 = 1" in words(figure)
        data["value_distance"][:] = np.nan
        figure = drawn(plot_dataset(data))
    (axes,) = panels(figure)
    assert [text.get_text() for text in axes.texts] == ["all runs diverged"]
    assert "10 of 10 runs diverged" in words(figure)


def test_distances_come_first_and_the_rest_where_there_are_none() -> None:
    every = (*reversed(DISTANCES), "stage", "alpha_value", "samples")
    figure = plot_dataset(build({}, every))
    assert [axes.get_ylabel() for axes in panels(figure)] == [
        name.replace("_", " ") for name in DISTANCES
    ]
    figure = plot_dataset(build({}, ("stage", "samples", "alpha_value")))
    assert [axes.get_ylabel() for axes in panels(figure)] == ["alpha value"]
    figure = plot_dataset(build({}, ("stage",)))
    assert [axes.get_ylabel() for axes in panels(figure)] == ["stage"]
    figure = plot_dataset(build({}, every), variables=["stage"])
    assert [axes.get_ylabel() for axes in panels(figure)] == ["stage"]


def test_a_single_seed_claims_no_spread() -> None:
    figure = drawn(plot_dataset(build({"l1": [0.0, 1.0]}).isel(seed=[0])))
    assert words(figure).splitlines()[-1] == f"one run an arm; {COUNTED}"
    assert not panels(figure)[0].collections
    alone = drawn(plot_dataset(build({}).isel(seed=0)))
    assert words(alone).splitlines()[-1] == f"one run; {COUNTED}"
    assert named(alone) == []


def test_several_arms_have_bars_side_by_side() -> None:
    data = build({"l1": [1e-4, 2e-4, 3e-4]})
    figure = drawn(plot_dataset(data))
    (axes,) = panels(figure)
    places: list[set[float]] = []
    for arm in range(3):
        (bars,) = (item for item in axes.collections if item.get_gid() == f"bars {arm}")
        segments = np.array([path.vertices for path in bars.get_paths()])
        low, high = np.percentile(data["value_distance"].values[:, arm], [10, 90], axis=0)
        here = (segments[:, 0, 0] / 80).astype(int)
        np.testing.assert_allclose(segments[:, :, 1], np.stack([low, high], axis=1)[here])
        places.append(set(segments[:, 0, 0]))
    assert len(places[0] | places[1] | places[2]) > len(places[0])
    assert "bars: 10\u201390% of them" in words(figure)


def test_arms_of_two_axes_are_spread_over_columns() -> None:
    data = build({"sparsity": [1, 2, 4, 8], "optimizer": ["proximal", "sgd"]}, DISTANCES[:2])
    figure = drawn(plot_dataset(data))
    grid = np.array(panels(figure)).reshape(2, 4)
    assert [axes.get_title() for axes in grid[0]] == [f"sparsity = {n}" for n in (1, 2, 4, 8)]
    assert named(figure) == ["proximal", "sgd"]
    for column, axes in enumerate(grid[1]):
        values = data["attention_distance"].values[:, column, 1]
        np.testing.assert_allclose(curve(axes, 2 * column + 1)[:, 1], np.median(values, axis=0))
    looks = [[line.get_color() for line in axes.lines] for axes in grid.flat]
    assert all(look == looks[0] for look in looks)
    low, high = grid[0, 0].get_ylim()
    medians = np.median(data["value_distance"].values, axis=0)
    assert low < medians.min() < medians.max() < high


def test_a_legend_of_many_arms_is_capped_and_says_so() -> None:
    data = build({"l1": list(np.geomspace(1e-6, 1e-2, 40)), "init_seed": [0, 1]})
    figure = drawn(plot_dataset(data))
    assert len(named(figure)) == MAX_NAMED
    assert named(figure)[0] == "l1 = 1e-6"
    assert named(figure)[-1] == "l1 = 0.01"
    assert "median of 10 runs (the spread of so many arms is not drawn); " in words(figure)
    assert " ".join(words(figure).split()).endswith("; 12 of 40 arms are named")
    assert len({tuple(line.get_color()) for line in panels(figure)[0].lines}) == 40


def test_of_very_many_arms_some_are_drawn_and_the_others_counted() -> None:
    data = build({"l1": list(np.arange(300.0)), "sparsity": [1, 2, 3, 4, 5]})
    data["value_distance"][{"l1": 7, "sparsity": 0, "seed": 0, "step": -1}] = np.nan
    figure = plot_dataset(data)
    lines = panels(figure)[0].lines
    assert len(lines) == MAX_DRAWN
    assert [lines[place].get_gid() for place in (0, -1)] == ["median 0", "median 1499"]
    said = " ".join(words(figure).split())
    assert "100 of 1500 arms are drawn" in said
    assert said.endswith("1 of 7500 runs diverged and are left out: 1 of l1 = 7, sparsity = 1")


def test_a_zip_is_named_by_the_fields_that_tell_its_points_apart() -> None:
    data = build({"arm": [0, 1, 2]}).drop_vars("arm")
    data = data.assign_coords(
        optimizer=("arm", ["proximal", "sgd", "sgd"]),
        learning_rate_2=("arm", [0.005, 0.005, 3e-4], {"symbol": r"$\eta_2$"}),
        batch_size=("arm", [8, 8, 16]),
    )
    assert named(plot_dataset(data)) == [
        r"proximal, $\eta_2$ = 0.005",
        r"sgd, $\eta_2$ = 0.005",
        r"sgd, $\eta_2$ = 3e-4",
    ]


def test_constants_need_not_have_all_axes() -> None:
    """Neither the constants of a task nor what is recorded of it has to vary along every axis."""
    data = build({"l1": [0.0, 1.0]})
    samples = ("step", np.arange(STEPS) * 100)
    few = data.assign(samples=samples, diverged_at=("seed", [-1, -1, 7, -1, -1]))
    figure = drawn(plot_dataset(few))
    assert curve(panels(figure)[0], 1)[-1, 0] == 1000
    assert "2 of 10 runs diverged" in words(figure)


def test_a_variable_is_drawn_once_for_an_axis_that_only_others_have() -> None:
    data = build({"rate": [0.1, 0.2], "head": [0, 1, 2]}, ("entropy", "batch_loss"))
    data["batch_loss"] = data["batch_loss"].isel(head=0, drop=True).copy()
    # A run of which a single head is not finite is left out with that head alone.
    data["entropy"][0, 0, 0, 5:] = np.nan
    figure = drawn(plot_dataset(data))
    entropy, loss = panels(figure)
    gids = [[line.get_gid() for line in axes.lines] for axes in (entropy, loss)]
    assert gids == [[f"median {arm}" for arm in range(6)], ["median 1", "median 3"]]
    for rate, arm in enumerate((1, 3)):
        expected = np.median(data["batch_loss"].isel(rate=rate), axis=0)
        np.testing.assert_allclose(curve(loss, arm)[:, 1], expected, rtol=1e-12)
    assert "batch loss has one line for every head" in " ".join(words(figure).split())
    assert "entropy has" not in words(figure)


def test_an_axis_that_not_all_variables_have_is_not_spread_over_columns() -> None:
    data = build({"rate": [0.1, 0.2, 0.3, 0.4, 0.5], "head": [0, 1]}, ("entropy", "batch_loss"))
    assert len(panels(plot_dataset(data))) == 4
    data["batch_loss"] = data["batch_loss"].isel(head=0, drop=True)
    entropy, loss = panels(plot_dataset(data))
    assert (len(entropy.lines), len(loss.lines)) == (10, 5)


def test_arms_with_other_samples_are_told_apart_by_every_variable() -> None:
    data = build({"batch_size": [4, 8]}, ("entropy", "batch_loss"))
    data["batch_loss"] = data["batch_loss"].isel(batch_size=0, drop=True)
    _, loss = panels(plot_dataset(data))
    assert [line.get_gid() for line in loss.lines] == ["median 0", "median 1"]
    assert curve(loss, 1)[-1, 0] == 2 * curve(loss, 0)[-1, 0]


def test_a_dataset_without_records_has_a_row_for_each_arm() -> None:
    final = build({"l1": [1e-4, 1e-3]}).isel(step=-1, drop=True)
    figure = drawn(plot_dataset(final.rename(value_distance="transition_signal")))
    (axes,) = panels(figure)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["l1 = 1e-4", "l1 = 0.001"]
    medians = np.median(final["value_distance"].values, axis=0)
    np.testing.assert_allclose([np.asarray(line.get_xdata())[0] for line in axes.lines], medians)


def test_a_search_is_drawn_at_the_best_of_the_values_tried() -> None:
    goal = np.array([[[400.0, 100.0]] * SEEDS, [[np.inf, np.inf]] * SEEDS, [[50.0, 90.0]] * SEEDS])
    goal[2, :2, 0] = np.inf  # two of five never come to it with the first value
    data = xr.Dataset(
        {
            "learning_rate_1": (("context_length", "probe"), [[0.1, 0.2]] * 3),
            "samples_to_goal": (("context_length", "seed", "probe"), goal),
        },
        coords={"context_length": [100, 200, 400], "seed": range(SEEDS)},
        attrs={"settings": json.dumps({"search.share": 0.6})},
    )
    figure = drawn(plot_dataset(data))
    (axes,) = panels(figure)
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "context_length = 100, learning_rate_1 = 0.2",
        "context_length = 200",
        "context_length = 400, learning_rate_1 = 0.1",
    ]
    assert [np.asarray(line.get_xdata())[0] for line in axes.lines] == [100, 50]
    assert [text.get_text() for text in axes.texts] == ["5 of 5 never", "2 of 5 never"]
    assert words(figure).endswith("at the best of the values tried")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (["nothing"], "does not hold 'nothing' \\(it holds value_distance\\)"),
        ("stage", "must be a sequence of names, got 'stage'"),
        ([], "must be 1 to 4 names, got 0"),
    ],
)
def test_a_variable_that_cant_be_drawn_is_one_sentence(variables: Any, said: str) -> None:  # noqa: ANN401
    with pytest.raises(StudyError, match=said):
        plot_dataset(build({"l1": [0.0]}), variables=variables)


def test_a_dataset_with_nothing_to_draw_is_one_sentence() -> None:
    matrices = xr.Dataset({"value": (("seed", "token_out", "token_in"), np.ones((2, 3, 3)))})
    with pytest.raises(StudyError, match="nothing to draw"):
        plot_dataset(matrices)


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_files_are_read_and_written_and_equal_datasets_give_equal_bytes(
    tmp_path: Path, suffix: str
) -> None:
    source = tmp_path / "mine.nc"
    build({"l1": [0.0, 1.0]}).to_netcdf(source, engine="h5netcdf")
    first, second = (tmp_path / "new" / f"{name}.{suffix}" for name in "ab")
    plot_dataset(source, first)
    plot_dataset(str(source), str(second))
    assert first.read_bytes() == second.read_bytes() != b""


def test_what_cant_be_written_or_read_is_one_sentence(tmp_path: Path) -> None:
    data = build({"l1": [0.0]})
    with pytest.raises(StudyError, match=r"x\.xyz can't be written: Format 'xyz' is not supported"):
        plot_dataset(data, tmp_path / "x.xyz")
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match="can't be written"):
        plot_dataset(data, tmp_path / "file" / "x.png")
    with pytest.raises(StudyError, match=r"none\.nc is missing"):
        plot_dataset(tmp_path / "none.nc")


def test_matplotlib_is_imported_by_a_figure_only_and_a_users_settings_stay() -> None:
    code = (
        "import sys, scbjax.plot\n"
        "assert not {'matplotlib', 'xarray', 'jax'} & set(sys.modules)\n"
        "import numpy, xarray, matplotlib\n"
        "matplotlib.rcParams['font.size'] = 31\n"
        "scbjax.plot_dataset(xarray.Dataset({'loss': ('step', numpy.ones(3))}))\n"
        "assert matplotlib.rcParams['font.size'] == 31\n"
        "assert not {'matplotlib.pyplot', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert scbjax.plot_dataset is plot_dataset
