"""The figures of transfer, on made-up datasets: what is counted, fitted, binned and drawn."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import _distances
import _render
import numpy as np
import pytest
import transfer
import transfer_correlation
import xarray as xr
from made import EXPONENTS, RUNS, correlations, scaling
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from scbjax.sweep.scripts.figures import draw_dataset

Store = Callable[[str, xr.Dataset], Path]


FIGURES: dict[ModuleType, Callable[[], xr.Dataset]] = {
    transfer: lambda: scaling(EXPONENTS),
    transfer_correlation: correlations,
}


@pytest.fixture(params=FIGURES, ids=lambda script: str(script.__name__))
def script(request: pytest.FixtureRequest) -> ModuleType:
    found: ModuleType = request.param
    return found


def panels(figure: Figure) -> list[Axes]:
    return list(figure.axes)


def line(axes: Axes, gid: str) -> NDArray[Any]:
    (found,) = (item for item in axes.lines if item.get_gid() == gid)
    return np.asarray(found.get_xydata())


def texts(figure: Figure) -> list[Text]:
    return [item for item in figure.findobj(Text) if item.get_text()]


def test_recovery_is_the_first_record_at_which_both_distances_are_small() -> None:
    values: dict[str, Any] = {
        "samples": [0, 10, 20, 30],
        "rounded_attention_distance": [[0.5, 0.05, 0.05, 0.5], [0.05, 0.5, 0.05, 0.05]],
        "rounded_value_distance": [[0.5, 0.5, 0.09, 0.05], [0.5, 0.05, 0.1, np.nan]],
    }
    dataset = xr.Dataset(
        {name: (("run", "step"), np.broadcast_to(value, (2, 4))) for name, value in values.items()}
    )
    np.testing.assert_array_equal(_distances.samples_to_recovery(dataset), [20.0, np.inf])


def test_growth_is_drawn_as_the_dataset_has_it() -> None:
    dataset = scaling(EXPONENTS)
    figure = transfer.plot(dataset)
    left, right = panels(figure)
    samples = _distances.samples_to_recovery(dataset).to_numpy()
    names = ("from scratch", "from scratch, sign flip", "transfer", "transfer, SGD")
    for place, label in enumerate(names):
        runs = samples[3 * place : 3 * place + 3]
        np.testing.assert_array_equal(
            line(left, f"cost {label}")[:, 1], np.sort(runs, axis=1)[:, int(0.9 * RUNS) - 1]
        )
    drawn = line(right, "share from scratch 4000")
    middle = np.sort(samples[1])[4]
    assert drawn[drawn[:, 0] == middle, 1].max() >= 0.5
    assert drawn[-1, 1] == 1.0
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[0].startswith("from scratch: $T^{1.0")
    assert labels[1].startswith("from scratch, sign flip: $T^{0.3")
    assert labels[2].startswith("transfer: $T^{")
    guide = line(left, "theorem")
    np.testing.assert_allclose(guide[-1, 1] / guide[0, 1], np.log(16000) / np.log(1000), rtol=1e-9)


def test_the_command_draws_what_has_dataclasses(store: Store, tmp_path: Path) -> None:
    """It loads scripts by their paths, and a dataclass looks for its module under its name."""
    results = store(transfer.STUDY, scaling(EXPONENTS))
    dataset = results / transfer.STUDY / f"{transfer.STUDY}.nc"
    paths = draw_dataset(Path(transfer.__file__), dataset, tmp_path / "out")
    assert sorted(path.suffix for path in paths) == [".pdf", ".png"]
    assert all(path.stat().st_size for path in paths)


def test_of_several_settings_the_cheapest_is_drawn() -> None:
    dataset = scaling(EXPONENTS)
    worse = dataset.isel(arm=[1]).copy(deep=True)
    worse["samples"] = 3 * worse["samples"]
    both = xr.concat([worse, dataset], dim="arm")
    for found, expected in zip(transfer.curves_of(both), transfer.curves_of(dataset), strict=True):
        np.testing.assert_array_equal(found.samples, expected.samples)


def test_runs_that_never_recover_leave_the_rest_visible() -> None:
    dataset = scaling(EXPONENTS)
    dataset["rounded_value_distance"][{"arm": 2}] = 0.7
    figure = transfer.plot(dataset)
    figure.draw_without_rendering()
    cost = line(panels(figure)[0], "cost from scratch")[:, 1]
    assert np.isinf(cost[2])
    assert np.isfinite(cost[:2]).all()


def test_a_study_in_which_no_run_recovers_is_drawn() -> None:
    dataset = scaling(EXPONENTS)
    dataset["rounded_value_distance"][:] = 0.7
    figure = transfer.plot(dataset)
    figure.draw_without_rendering()
    assert np.isinf(line(panels(figure)[0], "cost transfer")[:, 1]).all()


def test_the_context_length_has_to_vary_with_the_start() -> None:
    dataset = scaling(EXPONENTS).drop_vars("start")
    with pytest.raises(ValueError, match="needs context_length, start, optimizer, flip to"):
        transfer.plot(dataset)


def test_shares_and_medians_are_those_of_the_bins() -> None:
    dataset = correlations()
    figure = transfer_correlation.plot(dataset)
    left, right = panels(figure)
    overlap = dataset["alpha_value"].isel(arm=1, step=0).to_numpy().ravel() / 0.2
    samples = _distances.samples_to_recovery(dataset).isel(arm=1).to_numpy().ravel()
    edges = transfer_correlation.EDGES
    bins = [(overlap >= low) & (overlap < high) for low, high in pairwise(edges)]
    bins = [here for here in bins if here.sum() >= transfer_correlation.FEWEST]
    label = r"$\theta$ = 0.2"
    drawn = line(left, f"share {label}")
    # The line is broken where no pair of tasks has an overlap.
    ends = [(overlap[here].max(), overlap[there].min()) for here, there in pairwise(bins)]
    gaps = sum(high - low > transfer_correlation.GAP for low, high in ends)
    assert gaps == np.isnan(drawn[:, 0]).sum() == np.isnan(drawn[:, 1]).sum() > 0
    drawn = drawn[np.isfinite(drawn[:, 0])]
    np.testing.assert_allclose(drawn[:, 0], [overlap[here].mean() for here in bins])
    np.testing.assert_allclose(drawn[:, 1], [np.isfinite(samples[here]).mean() for here in bins])
    assert drawn[0, 1] < 0.5 < drawn[-1, 1]
    medians = np.array([np.median(samples[here]) for here in bins])
    np.testing.assert_allclose(line(right, f"median {label}")[:, 1], medians[np.isfinite(medians)])
    assert line(left, "condition")[0, 0] == pytest.approx(0.9)


def test_more_values_of_theta_than_colours_are_refused() -> None:
    dataset = correlations()
    many = xr.concat(
        [
            dataset.isel(arm=[0]).assign_coords(theta=("arm", [theta]))
            for theta in np.linspace(0.1, 0.9, 6)
        ],
        dim="arm",
    )
    with pytest.raises(ValueError, match="6 values of theta and the figure can tell 5 apart"):
        transfer_correlation.plot(many)


def test_text_is_legible_and_the_legend_hides_no_panel(
    script: ModuleType, check_layout: Callable[[Figure], None]
) -> None:
    check_layout(script.plot(FIGURES[script]()))


@pytest.mark.slow
def test_files_come_from_the_dataset_alone(
    script: ModuleType, store: Store, tmp_path: Path
) -> None:
    results = store(script.STUDY, FIGURES[script]())
    here = script.draw(results, tmp_path / "here")
    assert [path.suffix for path in here] == [".png", ".pdf"]
    path = Path(_render.__file__).parent / f"{script.__name__}.py"
    arguments = ["--results", str(results), "--out", str(tmp_path / "there")]
    command = [sys.executable, str(path), *arguments]
    outcome = subprocess.run(command, capture_output=True, text=True, check=True)
    there = [Path(name) for name in outcome.stdout.split()]
    assert [path.read_bytes() for path in there] == [path.read_bytes() for path in here]
    with pytest.raises(FileNotFoundError, match=rf"`scbjax run {script.STUDY}"):
        script.draw(tmp_path, tmp_path)


def test_what_is_left_out_or_moved_is_said_above_the_panels() -> None:
    left, right = panels(transfer.plot(scaling(EXPONENTS)))
    assert "ways side by side" in left.get_title()
    assert right.get_title().splitlines()[0] == "from scratch and transfer only"
    few = {way: power for way, power in EXPONENTS.items() if way[1:] != ("sgd", True)}
    few = {way: power for way, power in few.items() if way != ("uniform", "proximal", True)}
    (_, alone) = panels(transfer.plot(scaling(few)))
    assert "only" not in alone.get_title()
