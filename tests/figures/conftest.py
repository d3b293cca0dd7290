"""Made-up datasets in the layout that studies are stored in: the figures need no more than that."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

# The scripts, and the makers of datasets that stand beside the tests.
sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "figures"), str(Path(__file__).parent)]

from made import ARM  # noqa: E402

CONTEXT_LENGTH = 1000
BATCH_SIZE = 32
SWITCH_LEVEL = 0.1
SYMBOLS = {
    "value_distance": r"$|V - P|_\mu$",
    "attention_distance": r"$|A - Q|_\mu$",
    "alpha_value": r"$\alpha_V$",
    "alpha_attention": r"$\alpha_A$",
    "delta_value": r"$|\Delta_V|_\mu$",
    "delta_attention": r"$|\Delta_A|_\mu$",
}

NAMES = (
    "alpha_value",
    "alpha_attention",
    "delta_value",
    "delta_attention",
    "value_distance",
    "attention_distance",
    "rounded_value_distance",
    "rounded_attention_distance",
    "population_refit_distance",
    "value_similarity",
    "attention_similarity",
    "rounded_value_similarity",
    "rounded_attention_similarity",
    "population_alpha_value",
    "population_alpha_attention",
    "stage",
    "samples",
)

Make = Callable[..., xr.Dataset]
Store = Callable[[str, xr.Dataset], Path]


class ArmSettings(NamedTuple):
    """What tells the arms of the made-up study apart."""

    optimizer: str
    learning_rate_2: float


ARMS = (ArmSettings("proximal", 0.005), ArmSettings("sgd", 0.005), ArmSettings("sgd", 0.001))


def simulate(
    arm: ArmSettings, sparsity: int, seed: int, steps: int, every: int
) -> dict[str, NDArray[Any]]:
    """Run the population recursion with noise on top: curves of a plausible shape."""
    rng = np.random.default_rng([seed, sparsity])
    transition_signal = 0.3 + 0.1 * rng.random()
    pattern_signal = (0.8 + 0.4 * rng.random()) / sparsity
    alphas = np.zeros((2, 2))  # with noise, without
    spread = np.zeros(2)
    rows = []
    stage = 1
    for step in range(steps + 1):
        noisy, path = alphas
        if step % every == 0:
            distance = np.hypot((1 - noisy) * np.sqrt([transition_signal, pattern_signal]), spread)
            rounded = [0.01 * (1 + rng.random()), 0.02 * (1 + rng.random())]
            if sparsity == 1:
                rounded[1] = 0.0  # one position at weight 1 is exact once it is found
            signals = [transition_signal, pattern_signal]
            similar = [*np.cos(distance / signals), *(1 - np.array(rounded))]
            finds = [*rounded, 0.5 * rounded[0], *similar]
            rows.append([*noisy, *spread, *distance, *finds, *path, stage, BATCH_SIZE * step])
        rate = 0.02 if stage == 1 else arm.learning_rate_2
        push = (1 - alphas.prod(axis=1, keepdims=True)) * alphas[:, ::-1]
        alphas = alphas + rate * (push + (1 - alphas) / CONTEXT_LENGTH)
        alphas[0] += 0.004 * rate * rng.standard_normal(2)
        stage = 2 if alphas[0].max() > SWITCH_LEVEL else stage
        decay = 0.004 if arm.optimizer == "proximal" and stage == 2 else 0.0005
        spread = (1 - decay) * spread + rate * np.array([0.05, 0.3]) * rng.random(2)
    table = np.array(rows)
    run: dict[str, NDArray[Any]] = {
        name: table[:, column].astype(np.int32 if name in {"stage", "samples"} else np.float32)
        for column, name in enumerate(NAMES)
    }
    run["flipped"] = np.arange(len(table)) * 0 + (seed % 2)
    run["transition_signal"] = np.array(transition_signal, np.float32)
    run["pattern_signal"] = np.array(pattern_signal, np.float32)
    return run


def build(
    arms: Sequence[ArmSettings] = ARMS,
    *,
    seeds: int = 4,
    sparsities: Sequence[int] = (1, 2, 4),
    steps: int = 1000,
    every: int = 50,
) -> xr.Dataset:
    """Make a dataset over (seed, sparsity, arm, step)."""
    grid = [
        [[simulate(arm, sparsity, seed, steps, every) for arm in arms] for sparsity in sparsities]
        for seed in range(seeds)
    ]
    variables = {}
    for name in grid[0][0][0]:
        values = np.array([[[run[name] for run in row] for row in block] for block in grid])
        dims = ("seed", "sparsity", ARM, "step")[: values.ndim]
        variables[name] = (dims, values, {"symbol": SYMBOLS[name]} if name in SYMBOLS else {})
    return xr.Dataset(
        variables,
        coords={
            "seed": list(range(seeds)),
            "sparsity": list(sparsities),
            "optimizer": (ARM, [arm.optimizer for arm in arms]),
            "learning_rate_2": (
                ARM,
                [arm.learning_rate_2 for arm in arms],
                {"symbol": r"$\eta_2$"},
            ),
            "step": list(range(0, steps + 1, every)),
        },
        attrs={"settings": json.dumps({"train.batch_size": BATCH_SIZE})},
    )


@pytest.fixture(scope="session")
def make_dataset() -> Make:
    """Give the maker of datasets: arms, seeds, sparsities, steps, every."""
    return build


@pytest.fixture(scope="session")
def dataset() -> xr.Dataset:
    """Give a dataset with three arms, four seeds and three sparsities."""
    return build()


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    """Set the house style, which the scripts leave to `render`."""
    from _render import house_style

    with house_style():
        yield


@pytest.fixture(scope="session")
def check_layout() -> Callable[[Figure], None]:
    """Give a check that text is legible and the legend hides no panel."""
    from _render import DOUBLE_COLUMN

    def check(figure: Figure) -> None:
        figure.draw_without_rendering()
        assert figure.get_figwidth() == DOUBLE_COLUMN
        shown = [item for item in figure.findobj(Text) if item.get_text()]
        assert min(float(item.get_fontsize()) for item in shown) >= 7
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width
        for axes in figure.axes:
            if axes.axison:
                taken = axes.get_tightbbox()
                assert taken is not None
                assert not taken.overlaps(box)

    return check


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Write a dataset where a study leaves it; returns the results directory."""

    def write(study: str, dataset: xr.Dataset) -> Path:
        directory = tmp_path / "results" / study
        directory.mkdir(parents=True)
        dataset.to_netcdf(directory / f"{study}.nc", engine="h5netcdf")
        return tmp_path / "results"

    return write
