"""The figures of recovery (phase diagrams, complexity, sparsity, fig5) on made-up datasets."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import _render
import numpy as np
import pytest
import xarray as xr
from made import MADE, SEEDS, build_noise, complexity, fig5, phase_rates, phase_samples, sparsity
from matplotlib.figure import Figure

Store = Callable[[str, xr.Dataset], Path]


def load(name: str) -> ModuleType:
    """A figure script as a module."""
    return importlib.import_module(name)


@pytest.mark.parametrize("name", [*MADE, "fig5"])
def test_files_are_written_and_repeat(
    name: str, dataset: xr.Dataset, store: Store, tmp_path: Path
) -> None:
    """PNG and PDF, and the same bytes again where chance is involved."""
    script = load(name)
    results = store(script.STUDY, fig5(dataset) if name == "fig5" else MADE[name]())
    first = [path.read_bytes() for path in script.draw(results, tmp_path / "one")]
    if name == "complexity":  # whose intervals are of resampled seeds
        again = [path.read_bytes() for path in script.draw(results, tmp_path / "two")]
        assert first == again
    assert first[0].startswith(b"\x89PNG")
    assert first[1].startswith(b"%PDF")


def test_the_best_rate_counts_and_the_frontier_is_where_most_have_recovered() -> None:
    """With rate 0.02, nine of ten seeds recover by record 9 at T = 100, by record 18 at 400."""
    script, data = load("phase_samples"), phase_samples()
    share = script.best_share(data)
    samples = data["step"].to_numpy() * 8
    assert share[0, 5] == pytest.approx(0.5)
    assert share[1, 10] == pytest.approx(0.5)
    assert script.frontier(share, samples).tolist() == [9 * 40, 18 * 40]
    assert np.isnan(script.frontier(share[:, :5], samples[:5])).all()


def test_shares_of_recovered_seeds_and_what_diverged_is_not_recovered() -> None:
    """Seed s is recovered where fewer than s weights are smaller; NaN counts as lost."""
    script, data = load("phase_rates"), phase_rates()
    with _render.house_style():
        figure = script.plot(data)
    shares = np.asarray(figure.axes[0].collections[0].get_array()).reshape(2, 3)
    assert shares == pytest.approx(np.array([[0.9, 0.8, 0.7]] * 2))


def test_samples_needed_are_those_of_the_first_recovered_record() -> None:
    """The seed that never recovers is left out, not counted as fast."""
    script, data = load("sparsity"), sparsity()
    recovered = data["rounded_attention_distance"].to_numpy() < script.RECOVERED
    needed = script.samples_needed(recovered, data["samples"].to_numpy().astype(float))
    assert np.isnan(needed[:, 4]).all()
    assert needed[0, :4].tolist() == [80.0, 160.0, 240.0, 320.0]
    assert np.isnan(needed[-1]).all()
    assert np.isfinite(needed[:-1, :4]).all()


def test_the_start_of_a_sparsity_is_the_distance_of_the_uniform_attention() -> None:
    script, data = load("sparsity"), sparsity()
    with _render.house_style():
        distances = script.plot(data).axes[1]
    (start,) = (line for line in distances.lines if line.get_gid() == "start")
    assert start.get_xdata() == pytest.approx(data["sparsity"].to_numpy())
    assert start.get_ydata() == pytest.approx(data["sparsity"].to_numpy() ** -0.5)


def test_complexity_takes_the_best_batch_size_and_rate_and_fits_exponents() -> None:
    """The faster rate loses two seeds of ten, so the slower one counts; exponents are recovered."""
    script = load("complexity")
    data = complexity().transpose("size", "geometry", "batch_size", "seed", "probe")
    rows = script.rows_of(data, "context_length")
    assert data["context_length"].to_numpy()[rows].tolist() == [100, 200, 400]
    part = data.isel(size=rows, geometry=0)
    goal, switch = (part[name].to_numpy() for name in (script.GOAL, script.SWITCH))
    found = script.costs(goal, switch, 0.9)
    lengths = np.array([100.0, 200.0, 400.0])
    stage = 2 * 3 * lengths**1.5 * np.linspace(1.0, 1.01, SEEDS)[8]
    assert found["stage 1"] == pytest.approx(stage)
    assert found["total"] == pytest.approx(stage + 2000.0)
    assert found["after stage 1"] == pytest.approx([2000.0] * 3)
    powers = {name: script.power_of(lengths, found[name], [found[name]] * 2) for name in found}
    assert powers["stage 1"] == pytest.approx([1.5] * 3)
    assert powers["after stage 1"] == pytest.approx([0.0] * 3, abs=1e-9)
    lost = data.isel(size=rows, geometry=1)
    printed = script.costs(lost[script.GOAL].to_numpy(), lost[script.SWITCH].to_numpy(), 0.9)
    assert np.isposinf(printed["total"][2])
    assert np.isnan(script.power_of(lengths, printed["total"], [found["total"]])).all()
    # Where a tenth of the resamples lose the largest size, there is no end above.
    drawn_anew = [found["total"]] * 9 + [printed["total"]]
    wide = script.power_of(lengths, found["total"], drawn_anew)
    assert np.isposinf(wide.high)
    assert np.isfinite(wide.low)


def drawn(name: str, data: xr.Dataset) -> Figure:
    """A figure with its layout done, in the house style."""
    with _render.house_style():
        figure: Figure = load(name).plot(data)
        figure.draw_without_rendering()
    return figure


def test_powers_stand_apart_and_the_axis_of_samples_has_several_labels() -> None:
    data = complexity()
    # All lines of a panel end at nearly the same height.
    data["samples_to_switch"] = data["samples_to_goal"] * 0.5
    figure = drawn("complexity", data)
    for axes in figure.axes:
        legend = axes.get_legend()
        assert legend is not None
        texts = legend.get_texts()
        boxes = [item.get_window_extent() for item in texts]
        assert len(boxes) >= 3
        for index, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:index])
            assert box.y0 >= axes.bbox.y1  # above the lines
            assert not any(box.overlaps(other.bbox) for other in figure.axes)
            assert box.x1 <= figure.bbox.width
        assert min(float(item.get_fontsize()) for item in texts) >= 7
    first = figure.axes[0]
    low, high = first.get_ylim()
    shown = [place for place in first.get_yticks() if low <= place <= high]
    assert len(shown) >= 3


def test_the_colour_bar_of_distances_has_labels_and_holds_all_of_them() -> None:
    data = phase_rates()
    spread = np.geomspace(0.1, 1.9, 6).reshape(3, 2)[None, :, :, None]
    data["attention_distance"] = (
        data["attention_distance"].dims,
        np.broadcast_to(spread, data["attention_distance"].shape),
    )
    figure = drawn("phase_rates", data)
    mesh = figure.axes[1].collections[0]
    assert mesh.norm.vmin == pytest.approx(0.1)
    assert mesh.norm.vmax == pytest.approx(1.9)
    assert len(np.unique(np.asarray(mesh.get_facecolor()), axis=0)) == 6
    bar = figure.axes[-1]
    labels = [item.get_text() for item in bar.get_yticklabels() if item.get_text()]
    assert {"0.1", "0.2", "0.5", "1"} <= set(labels)


def test_every_line_of_the_sparsity_is_named_and_labels_do_not_touch() -> None:
    figure = drawn("sparsity", sparsity())
    (legend,) = figure.legends
    labels = [item.get_text() for item in legend.get_texts()]
    assert any(r"where $\hat A$ is $A$ rounded" in label for label in labels)
    assert any(r"below it (0.1) $\hat A$ is recovered" in label for label in labels)
    assert len(labels) == len(figure.axes[1].lines) == 4
    boxes = [axes.yaxis.label.get_window_extent() for axes in figure.axes]
    for left, right in pairwise(boxes):
        assert left.x1 < right.x0
    for axes, box in zip(figure.axes, boxes, strict=True):
        assert box.height <= axes.bbox.height
    box = legend.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width


def test_labels_of_the_projector_are_inside_the_figure_and_say_size() -> None:
    figure = drawn("projector", build_noise())
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    assert "size of the expectation, $1/T$" in [item.get_text() for item in legend.get_texts()]
    outlines = [axes.yaxis.label.get_window_extent() for axes in figure.axes if axes.get_ylabel()]
    for index, outline in enumerate(outlines):
        assert not any(outline.overlaps(other) for other in outlines[:index])
