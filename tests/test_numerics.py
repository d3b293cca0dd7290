"""What float32 costs: invariants over 10^5 steps, and float32 against float64 on the same draws."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray
from numpy.typing import NDArray

from scbjax.composition import LearnerState
from scbjax.paper import advance, init
from scbjax.sampling import draw_batch, fold_in, make_sampler, make_seed
from scbjax.settings import Settings
from scbjax.sweep.engine.execute import run_study
from scbjax.sweep.engine.progress import SilentProgress
from scbjax.sweep.plan.plans import make_plan
from scbjax.sweep.study.files import parse_study
from scbjax.task import Task, random_task

STEPS = 10**5
N, T, Q = 3, 30, 2
EPS = {"float32": 2.0**-23, "float64": 2.0**-52}


@pytest.fixture
def x64() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def held_in(task: Task, dtype: str) -> Task:
    return Task(*(array.astype(dtype) for array in task))


def draw_task() -> Task:
    task = random_task(jax.random.key(2), num_tokens=N, context_length=T, sparsity=Q)
    assert np.ptp(task.stationary) > 0.02
    return task


def broken(state: LearnerState, task: Task) -> dict[str, float]:
    """How far the three invariants are from where they hold, the largest entry of each."""
    value, attention = (np.asarray(array, np.float64) for array in state.params)
    mu = np.asarray(task.stationary, np.float64)
    mu = mu / mu.sum()
    return {
        "1^T V = 1^T": float(np.abs(value.sum(axis=0) - 1).max()),
        "V mu = mu": float(np.abs(value @ mu - mu).max()),
        "1^T A = 1^T": float(np.abs(attention.sum(axis=0) - 1).max()),
    }


@pytest.mark.usefixtures("x64")
def test_both_precisions_draw_the_same() -> None:
    task = draw_task()

    @jax.jit
    def draw(task: Task) -> Any:  # noqa: ANN401
        sampler, seed = make_sampler(task), make_seed(jax.random.key(3))
        return jax.lax.map(
            lambda index: draw_batch(fold_in(seed, index), sampler, 16), jnp.arange(200)
        )

    single, double = (draw(held_in(task, dtype)) for dtype in ("float32", "float64"))
    for name in single._fields:
        np.testing.assert_array_equal(getattr(single, name), getattr(double, name))
    assert len(np.unique(np.asarray(double.label))) == N


def trajectory(dtype: str, optimizer: str) -> tuple[LearnerState, dict[str, float]]:
    """A state after all steps, and the largest deviation of each invariant on the way."""
    task = held_in(draw_task(), dtype)
    settings = Settings(
        batch_size=8,
        steps=STEPS,
        record_every=1000,
        optimizer=optimizer,  # type: ignore[arg-type]
        record=(),
    )
    move = jax.jit(partial(advance, settings=settings, num_records=10))
    state = init(jax.random.key(0), task, settings)
    worst = broken(state, task)
    for start in range(0, STEPS, 10_000):
        state, _ = move(jax.random.key(4), task, state=state, start=start)
        worst = {name: max(worst[name], found) for name, found in broken(state, task).items()}
    return state, worst


def distance(one: jax.Array, other: jax.Array) -> float:
    first, second = (np.asarray(array, np.float64) for array in (one, other))
    return float(np.linalg.norm(first - second) / np.linalg.norm(second))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("optimizer", ["sgd", "proximal"])
def test_drift_over_many_steps(optimizer: str) -> None:
    """Rounding of a step is at most half a unit of each of N or T entries of size up to one."""
    states = {}
    for dtype, eps in EPS.items():
        states[dtype], worst = trajectory(dtype, optimizer)
        told = ", ".join(f"{name} {found:.1e}" for name, found in worst.items())
        print(f"\n{optimizer}, {dtype}, {STEPS} steps: {told}", end="")
        # The sum of mu in float32 is one up to rounding; that of a start is carried along.
        for name, found in worst.items():
            size = T if name == "1^T A = 1^T" else N
            assert found <= EPS["float32"] * size + eps * size * STEPS
    single, double = states["float32"].params, states["float64"].params
    for name in ("value", "attention"):
        apart = distance(getattr(single, name), getattr(double, name))
        print(f"\n{optimizer}, float32 against float64: {name} {apart:.1e}", end="")
        assert apart < 1


TEXT = """
[task]
num_tokens = 3
context_length = 50
[train]
batch_size = 8
steps = 40
record_every = 10
[record]
variables = ["alpha_value", "attention_distance", "samples"]
truth = true
final = true
[axes]
seed = [0, 1]
sparsity = [1, 4]
"""


def content(out: Path, dtype: str) -> dict[str, NDArray[Any]]:
    plan = make_plan(parse_study(TEXT, "study", (f"dtype={dtype}",)))
    report = run_study(plan, out / dtype, progress=SilentProgress())
    assert report.dataset is not None
    with xarray.open_dataset(report.dataset, engine="h5netcdf") as found:
        assert f'"task.dtype": "{dtype}"' in found.attrs["settings"]
        return {str(name): found[name].to_numpy() for name in found.data_vars}


@pytest.mark.slow
def test_a_study_in_float64_learns_the_same_tasks_from_the_same_draws(tmp_path: Path) -> None:
    single, double = (content(tmp_path, dtype) for dtype in ("float32", "float64"))
    assert not jax.config.read("jax_enable_x64")
    for name in ("transition", "stationary", "pattern", "samples"):
        np.testing.assert_array_equal(single[name], double[name])
    for name in ("alpha_value", "attention_distance", "value", "attention"):
        assert (single[name].dtype.name, double[name].dtype.name) == ("float32", "float64")
        # One other token would change a gradient by 1 / (B T): a thousand times as much.
        np.testing.assert_allclose(single[name], double[name], rtol=1e-5, atol=1e-6)
        assert (single[name] != double[name]).any()
