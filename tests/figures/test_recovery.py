"""The figures of recovery (phase diagrams, complexity, sparsity, fig5) on made-up datasets."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import _shared
import numpy as np
import pytest
import xarray as xr

Store = Callable[[str, xr.Dataset], Path]

SEEDS = 10


def settings(**values: object) -> dict[str, str]:
    """The settings that a dataset carries."""
    return {"settings": json.dumps({f"train.{name}": value for name, value in values.items()})}


def phase_samples() -> xr.Dataset:
    """Seed s recovers at record s + 1, twice as late with the worse rate and at the larger T."""
    seeds, lengths, rates, step = np.arange(SEEDS), [100, 400], [0.01, 0.02], np.arange(41) * 5
    late = np.array([1, 2])[:, None] * np.array([2, 1])[None, :]
    done = 5 * (seeds[:, None, None] + 1) * late
    distance = np.where(step >= done[..., None], 0.05, 1.0)
    dims = ("seed", "context_length", "learning_rate_1", "step")
    samples = np.broadcast_to(step * 8, distance.shape)
    coords = {"seed": seeds, "context_length": lengths, "learning_rate_1": rates, "step": step}
    return xr.Dataset(
        {"rounded_attention_distance": (dims, distance), "samples": (dims, samples)},
        coords=coords,
        attrs=settings(batch_size=8),
    )


def phase_rates() -> xr.Dataset:
    """Recovery falls with the weight: seed s is recovered at the first s weights."""
    weights, rates = [1e-5, 1e-4, 1e-3], [0.01, 0.1]
    dims, shape = ("seed", "l1", "learning_rate_2", "step"), (SEEDS, 3, 2, 2)
    seed, weight = np.arange(SEEDS)[:, None, None, None], np.arange(3)[None, :, None, None]
    distance = np.broadcast_to(np.where(weight < seed, 0.01, np.nan), shape)
    coords = {"seed": np.arange(SEEDS), "l1": weights, "learning_rate_2": rates, "step": [0, 10]}
    names = ("rounded_attention_distance", "rounded_value_distance", "attention_distance")
    return xr.Dataset(
        dict.fromkeys(names, (dims, distance)),
        coords=coords,
        attrs=settings(batch_size=8, steps=10),
    )


def sparsity() -> xr.Dataset:
    """Distances grow with the sparsity; at the largest level no seed is recovered."""
    levels, step = np.arange(1, 6), np.arange(5) * 10
    dims, shape = ("seed", "sparsity", "step"), (SEEDS, 5, 5)
    distance = np.where(step >= 10 * np.minimum(levels, 4)[:, None], 0.021 * levels[:, None], 1.0)
    full = np.broadcast_to(distance, shape).copy()
    full[-1] = 0.5
    return xr.Dataset(
        {
            "attention_distance": (dims, 2 * full),
            "rounded_attention_distance": (dims, full),
            "pattern_signal": (dims[:-1], np.broadcast_to(1.0 / levels, shape[:-1])),
            "samples": (dims, np.broadcast_to(step * 8, shape)),
            "stage": (dims, np.ones(shape)),
        },
        coords={"seed": np.arange(SEEDS), "sparsity": levels, "step": step},
        attrs=settings(batch_size=8),
    )


def complexity() -> xr.Dataset:
    """Stage 1 takes T^1.5 N samples with the better batch size and rate, the rest 1000 Q."""
    lengths = np.array([100, 200, 400, 100, 100, 100, 100])
    tokens, level = np.array([3, 3, 3, 6, 12, 3, 3]), np.array([2, 2, 2, 2, 2, 4, 8])
    worse = np.array([1.0, 2.0])
    spread = np.linspace(1.0, 1.01, SEEDS)[None, None, None, :, None]
    shape = (7, 2, 2, SEEDS, 2)
    switch = (lengths**1.5 * tokens)[:, None, None, None, None] * spread
    switch = switch * worse[None, :, None, None, None] * worse[:, None, None] * worse
    goal = switch + 1000.0 * level[:, None, None, None, None]
    lost = np.zeros(shape, bool)
    lost[..., -2:, 0] = True  # two seeds of ten never recover with the faster rate
    lost[:, 1] |= (lengths > 200)[:, None, None, None]
    dims = ("size", "geometry", "batch_size", "seed", "probe")
    return xr.Dataset(
        {
            "samples_to_goal": (dims, np.where(lost, np.inf, goal)),
            "samples_to_switch": (dims, np.broadcast_to(switch, shape)),
            "learning_rate_1": (("size", "geometry", "batch_size", "probe"), np.ones((7, 2, 2, 2))),
        },
        coords={
            "context_length": ("size", lengths),
            "num_tokens": ("size", tokens),
            "sparsity": ("size", level),
            "geometry": ["mu", "paper"],
            "batch_size": [8, 32],
            "seed": np.arange(SEEDS),
        },
        attrs={"settings": json.dumps({"search.share": 0.9})},
    )


def fig5(dataset: xr.Dataset) -> xr.Dataset:
    """The shared dataset with a vocabulary in the place of the sparsity, and a loss."""
    data = dataset.rename({"sparsity": "num_tokens"})
    return data.assign(excess_loss=data["value_distance"] ** 2)


MADE: dict[str, Callable[[], xr.Dataset]] = {
    "phase_samples": phase_samples,
    "phase_rates": phase_rates,
    "sparsity": sparsity,
    "complexity": complexity,
}


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
    with _shared.house_style():
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
    with _shared.house_style():
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
    assert script.exponent(lengths, found["stage 1"]) == pytest.approx(1.5)
    assert script.exponent(lengths, found["after stage 1"]) == pytest.approx(0.0, abs=1e-9)
    lost = data.isel(size=rows, geometry=1)
    printed = script.costs(lost[script.GOAL].to_numpy(), lost[script.SWITCH].to_numpy(), 0.9)
    assert np.isnan(printed["total"][2])
    assert np.isnan(script.exponent(lengths, printed["total"]))
