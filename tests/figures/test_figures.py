"""The figure scripts, on made-up datasets: what they draw, what they write and what they refuse."""

from __future__ import annotations

import importlib
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import _arms
import _curves
import _data
import _render
import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from made import ARM, build_noise, suited, with_matrices
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

Make = Callable[..., xr.Dataset]
Store = Callable[[str, xr.Dataset], Path]

FIGURES = Path(_render.__file__).parent
CURVES = ("quickstart", "fig1", "fig3", "fig6", "scale")
NAMES = (*CURVES, "fig2", "fig4", "projector", "simulation")
PANELS = {"quickstart": ("sparsity",), "scale": ("num_tokens",), "fig6": ("num_tokens",)}
# Not against the iteration; tested in files of their own.
RECOVERY = (
    "adaptive", "cheaper", "complexity", "embeddings", "factors", "few_shot", "fig5", "finite",
    "hierarchy", "lags", "maps", "modalities", "multihead", "multihead_scaling", "phase_rates",
    "phase_samples", "projector_tasks", "sequences", "sparsity", "stage1", "texts", "two_hop",
)  # fmt: skip
OTHERS = ("transfer", "transfer_correlation", *RECOVERY)


@pytest.fixture(params=NAMES)
def script(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(request.param)


@pytest.fixture(params=CURVES)
def curves(request: pytest.FixtureRequest) -> ModuleType:
    """Give a script that draws arms against iterations or samples."""
    return importlib.import_module(request.param)


@pytest.fixture(scope="module")
def maps_dataset(dataset: xr.Dataset) -> xr.Dataset:
    """Give a dataset with an arm of linear attention and two of softmax, and their matrices."""
    return with_matrices(dataset)


def run_script(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> int | str | None:
    """Run the script as a command in this process and return its exit status."""
    path = FIGURES / f"{script.__name__}.py"
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    return end.value.code


def panels(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.axison]


def line(axes: Axes, gid: str) -> NDArray[Any]:
    (found,) = (item for item in axes.lines if item.get_gid() == gid)
    return np.asarray(found.get_xydata())


def filled(axes: Axes, gid: str, steps: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read the lower and the upper edge of a band back from its outline."""
    (area,) = (item for item in axes.collections if item.get_gid() == gid)
    assert isinstance(area, PolyCollection)
    outline = np.asarray(area.get_paths()[0].vertices)[:, 1]
    return outline[1 : steps + 1], outline[steps + 2 : 2 * steps + 2][::-1]


def shown_texts(figure: Figure) -> list[Text]:
    return [item for item in figure.findobj(Text) if item.get_text()]


def texts(figure: Figure) -> list[str]:
    return [item.get_text() for item in shown_texts(figure)]


def below(figure: Figure) -> str:
    """All that is written below the panels, on one line."""
    return " ".join(figure.get_supxlabel().replace("\u00a0", " ").split())


@pytest.mark.parametrize(
    "script",
    [pytest.param(n, marks=() if n in ("fig1", "fig6") else pytest.mark.slow) for n in NAMES],
    indirect=True,
)
def test_files_are_publishable_and_equal_in_a_process_without_jax(
    script: ModuleType, dataset: xr.Dataset, store: Store, tmp_path: Path
) -> None:
    results = store(script.STUDY, suited(script, dataset))
    with mpl.rc_context({"font.size": 20, "lines.linewidth": 9, "savefig.dpi": 50}):
        here = script.draw(results, tmp_path / "here")
    png, pdf = (path.read_bytes() for path in here)
    assert [path.name for path in here] == [f"{script.__name__}.png", f"{script.__name__}.pdf"]
    assert int.from_bytes(png[16:20]) >= 200 * _render.DOUBLE_COLUMN
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    path = FIGURES / f"{script.__name__}.py"
    program = (
        f"import runpy, sys; sys.path.insert(0, {str(FIGURES)!r})\n"
        f"sys.argv[1:] = ['--results', {str(results)!r}, '--out', {str(tmp_path / 'there')!r}]\n"
        f"try: runpy.run_path({str(path)!r}, run_name='__main__')\n"
        "finally: print({'jax', 'scbjax', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", program]
    outcome = subprocess.run(command, capture_output=True, text=True, check=True)
    *there, imported = outcome.stdout.splitlines()
    assert imported == "set()"
    assert [Path(name).read_bytes() for name in there] == [png, pdf]


def test_a_missing_dataset_names_the_command_that_makes_it(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"`scbjax run {script.STUDY}` makes it"):
        script.draw(Path("results"), tmp_path)
    assert run_script(script, monkeypatch, "--results", "elsewhere", "--out", "out") == 2
    printed = capsys.readouterr()
    assert f"`scbjax run {script.STUDY} --out elsewhere/{script.STUDY}` makes it" in printed.err
    assert len(printed.err.splitlines()) == 1
    assert printed.out == ""
    assert not (tmp_path / "out").exists()


def test_a_missing_variable_is_named(
    script: ModuleType,
    dataset: xr.Dataset,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = store(script.STUDY, suited(script, dataset).drop_vars(script.VARIABLES[0]))
    assert run_script(script, monkeypatch, "--results", str(results), "--out", "out") == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert f"does not hold {script.VARIABLES[0]}," in sentence
    assert f"`scbjax run {script.STUDY} --out {results / script.STUDY} --force`" in sentence


def test_an_output_that_is_no_directory_is_one_clear_sentence(
    script: ModuleType, dataset: xr.Dataset, store: Store, tmp_path: Path
) -> None:
    results = store(script.STUDY, suited(script, dataset))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot write into .*file"):
        script.draw(results, tmp_path / "file")


def test_text_is_legible_and_the_legend_hides_no_panel(
    script: ModuleType, dataset: xr.Dataset, check_layout: Callable[[Figure], None]
) -> None:
    check_layout(script.plot(suited(script, dataset)))


def test_quickstart_draws_the_percentiles_of_the_dataset(dataset: xr.Dataset) -> None:
    script = importlib.import_module("quickstart")
    data = suited(script, dataset)
    figure = script.plot(data)
    steps = data.sizes["step"]
    for place, variable in ((0, "value_distance"), (4, "attention_distance")):
        axes = panels(figure)[place]
        sparsity = place % 3
        for arm in (0, 1):
            runs = data[variable].values[:, sparsity, arm]
            low, median, high = np.percentile(runs.astype(float), [10, 50, 90], axis=0)
            drawn = line(axes, f"median {arm}")
            np.testing.assert_allclose(drawn[:, 1], median)
            np.testing.assert_array_equal(drawn[:, 0], data["samples"].values[0, 0, arm])
            bottom, top = filled(axes, f"band {arm}", steps)
            np.testing.assert_allclose(bottom, low)
            np.testing.assert_allclose(top, high)


def test_quickstart_overlays_population_star_and_switch(dataset: xr.Dataset) -> None:
    script = importlib.import_module("quickstart")
    data = suited(script, dataset)
    axes = panels(script.plot(data))[1]
    runs = data.isel(sparsity=1)
    alpha = runs["population_alpha_value"].values[:, 0].astype(float)
    signal = runs["transition_signal"].values[:, 0].astype(float)
    np.testing.assert_allclose(
        line(axes, "population 0")[:, 1],
        np.median((1 - alpha) * np.sqrt(signal)[:, None], axis=0),
    )
    for arm in (0, 1):
        ((x, y),) = line(axes, f"rounded {arm}")
        assert x > data["samples"].values.max()
        np.testing.assert_allclose(
            y, np.median(runs["rounded_value_distance"].values[:, arm, -1].astype(float))
        )
    first = (runs["stage"].values == 2).argmax(axis=-1)
    samples = np.take_along_axis(runs["samples"].values, first[..., None], axis=-1)
    assert line(axes, "stage 1")[0, 0] == np.median(samples)


def test_the_end_of_stage_2_is_marked_for_the_arms_that_came_to_it(
    curves: ModuleType, dataset: xr.Dataset
) -> None:
    data = suited(curves, dataset).copy(deep=True)
    assert "end of stage 2" not in texts(curves.plot(data))
    for seed, start in enumerate((12, 14, 18)):
        data["stage"][{"seed": seed, ARM: 1, "step": slice(start, None)}] = 3
    figure = curves.plot(data)
    assert "end of stage 2" in texts(figure)
    x = data["samples"].values[0].reshape(-1, data.sizes["step"])[0]
    for axes in panels(figure):
        marks = [item for item in axes.lines if str(item.get_gid()).startswith("stage 2")]
        assert [item.get_gid() for item in marks] == ["stage 2 1"]
        expected = x[14] if curves.__name__ == "quickstart" else data["step"].values[14]
        assert line(axes, "stage 2 1")[0, 0] == expected


def test_a_rounded_distance_of_zero_is_shown_on_the_logarithmic_axis(dataset: xr.Dataset) -> None:
    script = importlib.import_module("quickstart")
    figure = script.plot(suited(script, dataset).sel(sparsity=[1]))
    axes = panels(figure)[1]
    assert line(axes, "rounded 0")[0, 1] == axes.get_ylim()[0]
    assert "0" in [item.get_text() for item in axes.texts]


@pytest.mark.parametrize("sparsities", [(3,), (2, 7), (1, 2, 3, 5, 8, 13)])
def test_quickstart_panels_follow_the_sparsities(
    make_dataset: Make, sparsities: tuple[int, ...]
) -> None:
    script = importlib.import_module("quickstart")
    figure = script.plot(make_dataset(sparsities=sparsities, seeds=2, steps=100))
    assert len(panels(figure)) == 2 * len(sparsities)
    titles = [axes.get_title() for axes in panels(figure) if axes.get_title()]
    assert titles == [f"sparsity {sparsity}" for sparsity in sparsities]


def test_quickstart_without_a_sparsity_axis(dataset: xr.Dataset) -> None:
    script = importlib.import_module("quickstart")
    figure = script.plot(suited(script, dataset).sel(sparsity=2, drop=True))
    assert len(panels(figure)) == 2


def test_one_run_has_no_band_and_claims_none(curves: ModuleType, dataset: xr.Dataset) -> None:
    figure = curves.plot(suited(curves, dataset).isel(seed=[0]))
    assert not any("%" in text for text in texts(figure))
    assert not [
        item for item in figure.findobj(PolyCollection) if str(item.get_gid()).startswith("band")
    ]


def test_diverged_runs_are_counted_by_arm(curves: ModuleType, dataset: xr.Dataset) -> None:
    data = suited(curves, dataset).copy(deep=True)
    last = data.sizes[ARM] - 1
    for name, values in data.data_vars.items():
        if values.dtype == np.float32 and "step" in values.dims:
            data[name][{"seed": 0, ARM: last, "step": slice(10, None)}] = np.nan
            data[name][{"seed": 1, ARM: last, "step": slice(15, None)}] = np.inf
    figure = curves.plot(data)
    label = _arms.arms_of(_data.tidy(data, PANELS.get(curves.__name__, ())))[last].label
    said = f"diverged, of 4 runs each: 2 {label}"
    assert said in below(figure)
    assert "mirrored" not in below(figure)
    for axes in panels(figure):
        assert np.isfinite(line(axes, f"median {last}")).all()


def test_mirrored_runs_are_counted_by_arm(
    curves: ModuleType, dataset: xr.Dataset, check_layout: Callable[[Figure], None]
) -> None:
    data = suited(curves, dataset).copy(deep=True)
    data["alpha_value"][{"seed": [0, 1, 2], ARM: 0, "step": -1}] = -0.3
    data["alpha_attention"][{"seed": [1, 2, 3], ARM: 0, "step": -1}] = -0.3
    data["alpha_attention"][{"seed": 1, ARM: 1, "step": -1}] = -0.3
    # Of each panel it says which arms they are, and of no other arm.
    figure = curves.plot(data)
    assert "mirrored, of 4 runs each: 2 proximal" in below(figure)
    assert "SGD" not in below(figure)
    drawn_in_panels = {"quickstart": 3, "scale": 2}.get(curves.__name__, 1)
    assert below(figure).count("mirrored") == drawn_in_panels
    check_layout(figure)


def test_an_arm_of_which_every_run_diverged_leaves_the_others_visible(
    curves: ModuleType, dataset: xr.Dataset
) -> None:
    data = suited(curves, dataset).copy(deep=True)
    for name, values in data.data_vars.items():
        if values.dtype == np.float32 and "step" in values.dims:
            data[name][{ARM: -1, "step": slice(8, 10)}] = 1e12
            data[name][{ARM: -1, "step": slice(10, None)}] = np.nan
    figure = curves.plot(data)
    figure.draw_without_rendering()
    assert "diverged, of 4 runs each: 4 " in below(figure)
    for axes in panels(figure):
        drawn = line(axes, "median 0")[:, 1]
        low, high = axes.get_ylim()
        assert low <= drawn.min()
        assert drawn.max() <= high < 1e6


@pytest.mark.parametrize("variable", ["alpha_value", "delta_attention"])
def test_fig3_draws_medians_and_the_population_path(dataset: xr.Dataset, variable: str) -> None:
    script = importlib.import_module("fig3")
    data = suited(script, dataset)
    axes = panels(script.plot(data))[list(script.NAMES).index(variable)]
    for arm in range(3):
        runs = data[variable].values[:, arm].astype(float)
        drawn = line(axes, f"median {arm}")
        np.testing.assert_allclose(drawn[:, 1], np.median(runs, axis=0))
        np.testing.assert_array_equal(drawn[:, 0], data["step"].values)
    population = [item for item in axes.lines if str(item.get_gid()).startswith("population")]
    if variable == "alpha_value":
        expected = np.median(data["population_alpha_value"].values[:, 2].astype(float), axis=0)
        assert len(population) == 2  # the arms at one rate share a path
        np.testing.assert_allclose(line(axes, "population 2")[:, 1], expected)
    else:
        assert population == []


def test_fig1_marks_the_switch_and_the_rounded_solutions(dataset: xr.Dataset) -> None:
    script = importlib.import_module("fig1")
    data = suited(script, dataset)
    for axes, name in zip(panels(script.plot(data)), ("value", "attention"), strict=True):
        stars = [line(axes, f"rounded {arm}")[0, 1] for arm in range(3)]
        final = data[f"rounded_{name}_distance"].values[..., -1].astype(float)
        np.testing.assert_allclose(stars, np.median(final, axis=0))
        first = data["step"].values[(data["stage"].values == 2).argmax(axis=-1)]
        assert line(axes, "stage 1")[0, 0] == np.median(first)


def main_setting(dataset: xr.Dataset) -> xr.Dataset:
    """Two settings side by side, as in the study of figures 1, 3 and 4: 3 arms and 5."""
    arms = dataset.sel(sparsity=2, drop=True)
    both = arms.isel({ARM: [0, 1, 2, 0, 0, 1, 2, 1]})
    return both.assign_coords(
        geometry=(ARM, ["paper"] * 3 + ["mu"] * 5),
        l1=(ARM, [1e-5, 1e-5, 1e-5, 1e-5, 1e-4, 1e-5, 1e-5, 1e-5]),
        learning_rate_2=(ARM, [0.005, 0.005, 0.001, 0.005, 0.005, 0.005, 0.001, 0.002]),
    )


@pytest.mark.parametrize("name", ["fig1", "fig3", "fig4"])
def test_settings_stand_side_by_side_and_an_arm_keeps_its_look(
    dataset: xr.Dataset, name: str
) -> None:
    script = importlib.import_module(name)
    figure = script.plot(main_setting(dataset))
    figure.draw_without_rendering()
    titles = [axes.get_title().splitlines()[0] for axes in panels(figure) if axes.get_title()]
    assert titles == ["as printed", "working settings: proximal steps", "working settings: SGD"]
    gid = "after" if name == "fig4" else "median"
    looks = {
        int(str(item.get_gid()).split()[-1]): item.get_color()
        for axes in panels(figure)
        for item in axes.lines
        if str(item.get_gid()).startswith(gid)
    }
    assert sorted(looks) == list(range(8))
    assert [looks[arm] for arm in (0, 1, 2)] == [looks[arm] for arm in (3, 5, 6)]
    assert len(set(looks.values())) == 5


def test_fig1_counts_samples_and_shows_the_refit_from_the_law(dataset: xr.Dataset) -> None:
    script = importlib.import_module("fig1")
    data = suited(script, dataset)
    figure = script.plot(data)
    axes = panels(figure)[0]
    (above,) = axes.child_axes
    figure.draw_without_rendering()
    scale = data["samples"].values.max() / data["step"].values[-1] / 1000
    np.testing.assert_allclose(above.get_xlim(), scale * np.array(axes.get_xlim()))
    expected = np.median(data["population_refit_distance"].values[..., -1].astype(float), axis=0)
    found = [line(axes, f"refit {arm}")[0, 1] for arm in range(3)]
    np.testing.assert_allclose(found, np.maximum(expected, axes.get_ylim()[0]))


def test_arms_whose_bands_would_blend_have_bars_side_by_side(make_dataset: Make) -> None:
    script = importlib.import_module("fig1")
    settings = (("proximal", 0.005), ("sgd", 0.005), ("sgd", 0.001), ("raw_sgd", 3e-4))
    arms = [SimpleNamespace(optimizer=name, learning_rate_2=rate) for name, rate in settings]
    data = make_dataset(arms, sparsities=(2,)).isel(sparsity=0, drop=True)
    figure = script.plot(data)
    figure.draw_without_rendering()
    assert not [item for item in figure.findobj(PolyCollection) if "band" in str(item.get_gid())]
    for axes, variable in zip(
        panels(figure), ("value_distance", "attention_distance"), strict=True
    ):
        places: list[float] = []
        for arm in range(4):
            runs = data[variable].values[:, arm].astype(float)
            np.testing.assert_allclose(line(axes, f"median {arm}")[:, 1], np.median(runs, axis=0))
            (bars,) = (item for item in axes.collections if item.get_gid() == f"bars {arm}")
            segments = np.array([path.vertices for path in bars.get_paths()])
            at = np.searchsorted(data["step"].values, segments[:, 0, 0])
            expected = np.percentile(runs[:, at], [10, 90], axis=0).T
            np.testing.assert_allclose(segments[:, :, 1], expected)
            places += segments[:, 0, 0].tolist()
        assert len(set(places)) > _curves.BARS
        # The medians are drawn again, larger, where there is room.
        (inset,) = (child for child in axes.child_axes if isinstance(child, Axes))
        for arm in range(4):
            np.testing.assert_array_equal(line(inset, f"median {arm}"), line(axes, f"median {arm}"))
    labels = texts(figure)
    assert "the same, where bands would blend" not in labels
    assert "median, 10\u201390% of 4 runs" in labels


def test_arms_stand_in_the_legend_in_the_order_of_their_numbers(dataset: xr.Dataset) -> None:
    script = importlib.import_module("fig1")
    (legend,) = script.plot(main_setting(dataset)).legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert [label for label in labels if "=" in label] == [
        "proximal, l1 = 1e-5",
        "proximal, l1 = 1e-4",
        "SGD, learning_rate_2 = 0.001",
        "SGD, learning_rate_2 = 0.002",
        "SGD, learning_rate_2 = 0.005",
    ]


def test_a_star_at_the_lower_edge_has_its_value(dataset: xr.Dataset) -> None:
    script = importlib.import_module("fig1")
    data = suited(script, dataset).copy(deep=True)
    data["population_refit_distance"][{ARM: 1}] = 3e-7
    axes = panels(script.plot(data))[0]
    low = axes.get_ylim()[0]
    assert low > 3e-7
    assert line(axes, "refit 1")[0, 1] == low
    assert line(axes, "refit 0")[0, 1] > low
    assert [item.get_text() for item in axes.texts] == ["3e-7"]


def test_scale_does_not_say_that_v_is_refitted(dataset: xr.Dataset) -> None:
    script = importlib.import_module("scale")
    labels = texts(script.plot(suited(script, dataset)))
    assert "$A$ rounded" in labels
    assert not any("refitted" in label for label in labels)


def test_fig4_pairs_medians_before_and_after_rounding(dataset: xr.Dataset) -> None:
    script = importlib.import_module("fig4")
    data = suited(script, dataset)
    for axes, field in zip(panels(script.plot(data)), ("value", "attention"), strict=True):
        for when, prefix in (("before", ""), ("after", "rounded_")):
            runs = data[f"{prefix}{field}_similarity"].values[..., -1].astype(float)
            found = [line(axes, f"{when} {arm}")[0, 1] for arm in range(3)]
            np.testing.assert_allclose(found, np.median(runs, axis=0))


def test_projector_draws_noise_against_length_spread_and_signal() -> None:
    script, noise_dataset = importlib.import_module("projector"), build_noise()
    left, middle, right, *_ = panels(script.plot(noise_dataset))
    usual = noise_dataset.isel(point=[0, 1, 2])
    for look in script.LOOKS:
        drawn = line(left, f"median {look.noise}")
        np.testing.assert_array_equal(drawn[:, 0], [250, 1000, 4000])
        runs = usual[look.noise].values[:, :, 0].astype(float)
        np.testing.assert_allclose(drawn[[0, 2], 1], np.median(runs, axis=0)[[0, 2]])
        np.testing.assert_allclose(
            line(left, f"exact {look.noise}")[:, 1],
            np.median(usual[look.exact].values[:, :, 0].astype(float), axis=0),
        )
    np.testing.assert_allclose(line(left, "drift")[:, 1], 1 / np.array([250, 1000, 4000]))
    drawn = line(right, "path alpha_attention_noise")
    np.testing.assert_allclose(drawn[:, 1], 2 * drawn[:, 0], rtol=1e-6)
    shown = drawn[drawn[:, 0] > script.SMALLEST]
    assert len(shown) == 5 * 2 * 2
    assert right.get_ylim()[0] <= shown[:, 1].min() < 2 * right.get_ylim()[0]
    # A small study that ends before there is a signal is drawn too, if with an empty panel.
    none = noise_dataset.assign(alpha_value=noise_dataset["alpha_value"] * 1e-6)
    script.plot(none).draw_without_rendering()
    (dots,) = (item for item in middle.collections if item.get_gid() == "ratios")
    at_length = noise_dataset.isel(point=[1, 3, 4], step=0)
    ratio = at_length["alpha_value_noise_paper"] / at_length["alpha_value_noise_mu"]
    spread = np.sqrt(3 * at_length["stationary_norm"].values - 1)
    np.testing.assert_allclose(
        np.asarray(dots.get_offsets()),
        np.stack([spread.ravel(), ratio.values.ravel().astype(float) ** 2], axis=1),
        rtol=1e-5,
    )
    assert len(line(right, "path alpha_value_noise_mu")) == 5 * 2 * 3


def as_sizes(dataset: xr.Dataset) -> xr.Dataset:
    """Give the panels of another study as those of figure 6."""
    return dataset.isel(sparsity=[0, 1]).rename(sparsity="num_tokens")


def test_fig6_has_a_column_for_each_vocabulary(dataset: xr.Dataset) -> None:
    script = importlib.import_module("fig6")
    data = as_sizes(dataset).assign_coords(num_tokens=[100, 500])
    figure = script.plot(data)
    titles = [axes.get_title() for axes in panels(figure) if axes.get_title()]
    assert titles == ["$N = 100$", "$N = 500$"]
    for place, axes in enumerate(panels(figure)):
        variable = list(script.NAMES)[place // 2]
        runs = data[variable].values[:, place % 2, 1].astype(float)
        np.testing.assert_allclose(line(axes, "median 1")[:, 1], np.median(runs, axis=0))
        assert not [item for item in axes.lines if str(item.get_gid()).startswith("real")]


@pytest.mark.parametrize("same", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_fig6_draws_real_runs_of_the_same_settings(
    dataset: xr.Dataset, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    script = importlib.import_module("fig6")
    simulated = as_sizes(dataset).assign_coords(num_tokens=[100, 500])
    real = simulated.isel(seed=[0], num_tokens=[1], drop=False).isel({ARM: [0]})
    if not same:
        real = real.assign_attrs(settings='{"train.batch_size": 7}')
    results = store("fig6", simulated)
    store("scale", real)
    drawn: list[Figure] = []
    plot = script.plot

    def keep(*datasets: xr.Dataset) -> Figure:
        drawn.append(plot(*datasets))
        return drawn[-1]

    monkeypatch.setattr(script, "plot", keep)
    script.draw(results, tmp_path / "out")
    (figure,) = drawn
    assert ("real mini-batches" in texts(figure)) == same
    columns = [[item.get_gid() for item in axes.lines] for axes in panels(figure)[:2]]
    assert ["real 0" in column for column in columns] == [False, same]
    if same:
        found = line(panels(figure)[1], "real 0")[:, 1]
        np.testing.assert_allclose(found, real["alpha_value"].values[0, 0, 0])


def shown_run(figure: Figure, data: xr.Dataset) -> int:
    """The run whose pattern is in the first panel."""
    (image,) = panels(figure)[0].images
    shown = np.asarray(image.get_array())
    (run,) = np.flatnonzero((data["pattern"].values[:, 0] == shown).all(axis=(1, 2)))
    return int(run)


def test_fig2_shows_the_matrices_of_one_run_on_one_scale(maps_dataset: xr.Dataset) -> None:
    figure = importlib.import_module("fig2").plot(maps_dataset)
    run = shown_run(figure, maps_dataset)
    heat_maps = [axes.images[0] for axes in panels(figure) if axes.images]
    for row, (truth, learned) in enumerate((("pattern", "attention"), ("transition", "value"))):
        images = heat_maps[4 * row : 4 * row + 4]
        for arm, image in enumerate(images[1:]):
            np.testing.assert_array_equal(image.get_array(), maps_dataset[learned].values[run, arm])
        np.testing.assert_array_equal(images[0].get_array(), maps_dataset[truth].values[run, 0])
        (limits,) = {image.get_clim() for image in images}
        shown = [np.asarray(image.get_array()) for image in images]
        assert limits == (min(0.0, np.min([a.min() for a in shown])), max(a.max() for a in shown))


def cosines(data: xr.Dataset, a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Run by run, with the weights mu of the columns."""
    found = []
    for first, second, mu in zip(a, b, data["stationary"].values[:, 0], strict=True):
        x, y = (matrix @ np.diag(np.sqrt(mu)) for matrix in (first, second))
        found.append((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y))
    return np.array(found)


def test_fig2_writes_the_cosines_of_all_runs(maps_dataset: xr.Dataset) -> None:
    data = maps_dataset
    figure = importlib.import_module("fig2").plot(data)
    titles = [axes.get_title().splitlines() for axes in panels(figure) if axes.images]
    assert titles[0] == ["truth, $Q$, one run of 4", "cosines: median [10\u201390%]"]
    assert [lines[0] for lines in titles[1:4]] == [
        "linear, proximal",
        "softmax, raw SGD",
        "softmax, Adam",
    ]
    for place, (learned, truth) in ((0, ("attention", "pattern")), (4, ("value", "transition"))):
        letter = "$Q$" if place == 0 else "$P$"
        linear = data[learned].values[:, 0]
        for arm in range(3):
            matrix = data[learned].values[:, arm]
            expected = {letter: cosines(data, matrix, data[truth].values[:, arm])}
            if arm:
                expected["linear"] = cosines(data, matrix, linear)
            lines = [line for line in titles[place + 1 + arm] if line.startswith("to ")]
            for line, (name, values) in zip(lines, expected.items(), strict=True):
                low, median, high = np.percentile(values, [10, 50, 90])
                assert line == f"to {name} {median:.3f} [{low:.3f}, {high:.3f}]"


def test_fig2_shows_the_run_in_the_middle(maps_dataset: xr.Dataset) -> None:
    attention = maps_dataset["attention"].values
    agreement = [cosines(maps_dataset, attention[:, arm], attention[:, 0]) for arm in (1, 2)]
    run = shown_run(importlib.import_module("fig2").plot(maps_dataset), maps_dataset)
    assert np.argsort(np.mean(agreement, axis=0))[2] == run  # of four: the upper median


def test_fig2_draws_the_loss_and_the_preconditioner(maps_dataset: xr.Dataset) -> None:
    figure = importlib.import_module("fig2").plot(maps_dataset)
    losses, gains = (axes for axes in panels(figure) if axes.get_xlabel() == "iteration")
    for arm in range(3):
        runs = maps_dataset.isel(arm=arm)
        expected = np.median(runs["excess_loss"].values.astype(float), axis=0)
        np.testing.assert_allclose(line(losses, f"median {arm}")[:, 1], expected, rtol=1e-6)
        drawn = [item for item in gains.lines if item.get_gid() == f"median {arm}"]
        for item, name in zip(drawn, ("support", "rest"), strict=True):
            values = runs[f"attention_gain_{name}"].values.astype(float)
            np.testing.assert_allclose(
                np.asarray(item.get_ydata()), np.median(values, axis=0), rtol=1e-6
            )
    labels = {item.get_text(): item.get_position()[1] for item in gains.texts}
    assert labels["on the support of $Q$"] > 1 > labels["off it"]


def test_fig2_of_one_run_claims_no_spread(maps_dataset: xr.Dataset) -> None:
    figure = importlib.import_module("fig2").plot(maps_dataset.isel(seed=[0]))
    assert not any("[" in text or "median" in text for text in texts(figure))


def test_every_figure_has_a_caption() -> None:
    captions = (FIGURES.parent / "docs" / "figures.md").read_text()
    scripts = [path.stem for path in FIGURES.glob("*.py") if not path.stem.startswith("_")]
    assert sorted(scripts) == sorted(NAMES + OTHERS)
    for name in scripts:
        assert f"figures/{name}.py" in captions
