"""Rates that cannot work are told before a run, and what diverged after it, with the cause."""

import math

import jax
import numpy as np
import pytest

from scbjax.experiments.scb_rates import rate_warnings
from scbjax.keys import THREEFRY
from scbjax.settings import Settings
from scbjax.sweep.engine.chunks import Executor
from scbjax.sweep.engine.divergence import MAX_POINTS_TOLD, divergence_report
from scbjax.sweep.plan.plans import make_plan
from scbjax.sweep.study.files import Study, parse_study
from scbjax.task import random_task
from scbjax.training import train

TEXT = """
[task]
num_tokens = 3
context_length = 50
sparsity = 2
[train]
batch_size = 8
steps = 40
record_every = 10
[axes]
seed = { range = [0, 6] }
"""
# With K_Q at most 1 - 1/T the matrix of a step at eta = 1 is [[1 + 1/49, 1], [1, 1]].
BOUND = 2 / np.linalg.eigvalsh([[1 + 1 / 49, 1.0], [1.0, 1.0]])[-1]
# With A slower than V. The eigenvalues are real; newer releases of NumPy give them as complex.
SLOW_BOUND = 2 / np.linalg.eigvals([[1 + 1 / 49, 1.0], [0.1, 0.1]]).real.max()


def make(*overrides: str) -> Study:
    return parse_study(TEXT, "study", overrides)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ([], {}),
        (["learning_rate_2=0.98"], {}),
        (["learning_rate_2=1.0"], {"learning_rate_2 = 1": BOUND}),
        (["axes.learning_rate_2=[3.5, 0.01, 2]"], {"learning_rate_2 = 2, 3.5": BOUND}),
        (["learning_rate_2=2", "optimizer='sgd'"], {"learning_rate_2 = 2": BOUND}),
        (["learning_rate_2=2", "attention_rate_ratio=0.1"], {"learning_rate_2 = 2": SLOW_BOUND}),
        # Stage 2 never comes.
        (["learning_rate_2=2", "switch_level=inf"], {}),
        (["learning_rate_2=2", "switch_on='step'", "switch_step=40"], {}),
        (
            ["learning_rate_2=2", "switch_on='step'", "switch_step=5"],
            {"learning_rate_2 = 2": BOUND},
        ),
        # In stage 1 the rate counts if it can last, or if it is not looked at in time.
        (["learning_rate_1=2", "record_every=1"], {}),
        (["learning_rate_1=2", "record_every=4"], {"learning_rate_1 = 2": BOUND}),
        (["learning_rate_1=2", "switch_level=inf"], {"learning_rate_1 = 2": BOUND}),
        (["learning_rate_1=2", "switch_on='step'", "switch_step=2"], {}),
        (
            ["learning_rate_1=2", "switch_on='step'", "switch_step=20"],
            {"learning_rate_1 = 2": BOUND},
        ),
        (["learning_rate_1=2", "transfer.first_samples=8", "start='transfer'"], {}),
        # V alone: eta (1 + 1 / 49) below 2.
        (["learning_rate_3=1.9"], {}),
        (["learning_rate_3=2"], {"learning_rate_3 = 2": 2 / (1 + 1 / 49)}),
        (["learning_rate_3=2", "stop_level=inf"], {}),
        (["learning_rate_3=2", "optimizer='sgd'"], {}),
        # |Q|_mu^2 is at least 1/2, and V alone needs eta |Q|_mu^2 below 2.
        (["scale_rates=false", "learning_rate_2=3.9"], {}),
        (["scale_rates=false", "learning_rate_2=5"], {"learning_rate_2 = 5": 4.0}),
        # No bound is known.
        (["learning_rate_2=1e9", "optimizer='adam'"], {}),
        (["learning_rate_2=1e9", "optimizer='raw_sgd'", "attention_map='softmax'"], {}),
    ],
    ids=str,
)
def test_rates_that_cannot_work_are_named(overrides: list[str], named: dict[str, float]) -> None:
    lines = rate_warnings(make(*overrides))
    assert len(lines) == len(named)
    for line, (start, bound) in zip(lines, named.items(), strict=True):
        assert line.startswith(f"warning: {start} cannot work: ")
        assert f"settle at (P, Q) below {bound:.3g} only" in line


def test_rates_of_a_simulation_are_those_of_the_learner() -> None:
    overrides = ["axes.learning_rate_2=[0.1, 2.5]", "tagged_positions=10"]
    study = parse_study(f'experiment = "simulated"\n{TEXT}', "study", overrides)
    assert study.experiment.warn(study) == rate_warnings(make(overrides[0])) != []
    assert report(study, {3: 30, 8: 20}) == report(make(overrides[0]), {3: 30, 8: 20})


def test_a_study_too_large_to_look_through_is_not() -> None:
    many = ", ".join(str(2 + index) for index in range(200))
    assert (
        rate_warnings(make(f"axes.learning_rate_1=[{many}]", f"axes.learning_rate_2=[{many}]"))
        == []
    )


def report(study: Study, diverged: dict[int, int]) -> list[str]:
    """With signals that grow from trajectory to trajectory."""
    count = study.num_trajectories
    diverged_at = np.full(count, -1, np.int32)
    for place, step in diverged.items():
        diverged_at[place] = step
    k_q = np.linspace(0.1, 0.5, count)
    constants = {"transition_signal": np.full(count, 0.3), "pattern_signal": k_q}
    return divergence_report(make_plan(study), diverged_at, constants)


def test_nothing_is_said_where_nothing_diverged() -> None:
    assert report(make(), {}) == []


def test_the_first_to_diverge_are_told_with_point_step_and_cause() -> None:
    study = make("axes.learning_rate_2=[0.1, 2.5]")
    head, first, second = report(study, {3: 30, 8: 20})
    assert head == "2 of 12 trajectories diverged; their records from then on are NaN:"
    noise = "noise, as its rates are below the stability bound; try a larger batch"
    assert first == f"  seed = 4, learning_rate_2 = 0.1: by step 20; likely cause: {noise}"
    k_q = np.linspace(0.1, 0.5, 12)[3]
    bound = 2 / np.linalg.eigvalsh([[1 + 1 / (50 * k_q), 1.0], [1.0, 1.0]])[-1]
    cause = f"learning_rate_2 = 2.5 is above the stability bound {bound:.3g} of its task"
    assert second == f"  seed = 1, learning_rate_2 = 2.5: by step 30; likely cause: {cause}"
    assert not math.isclose(bound, BOUND, rel_tol=0.01)


def test_learners_without_a_bound_are_told_apart() -> None:
    for override in ("optimizer='raw_sgd'", "optimizer='adam'"):
        (line,) = report(make(override, "learning_rate_2=50"), {0: 0})[1:]
        assert "its rates; no stability bound is known for its optimizer" in line


def test_a_few_are_told_and_the_others_counted() -> None:
    study = make("axes.data_seed=[1, 2]")
    lines = report(study, dict.fromkeys(range(12), 10))
    assert len(lines) == MAX_POINTS_TOLD + 2
    assert lines[-1] == "  and 4 more, which the variable diverged_at of the dataset tells"


def test_a_study_of_one_trajectory_has_no_coordinates() -> None:
    text = TEXT.partition("[axes]")[0]
    lines = report(parse_study(text, "study"), {0: 10})
    assert lines[1].startswith("  the only one: by step 10; ")


def test_a_trajectory_and_its_sweep_agree_on_when_it_diverged() -> None:
    rates = (0.01, 3.0, 1e30)
    study = make(
        "optimizer='raw_sgd'", "record.variables=['stage']", f"axes.learning_rate_1={list(rates)}"
    )
    plan = make_plan(study)
    assert len(plan.chunks) == 1
    arrays = Executor(plan).run(0).arrays
    names = [axis.name for axis in study.axes]
    found = arrays["diverged_at"].reshape(-1)[
        np.argsort(plan.positions(plan.chunks[0]).reshape(-1))
    ]
    found = found.reshape(plan.shape)
    if names != ["seed", "learning_rate_1"]:
        found = found.T

    @jax.jit
    def alone(seed: jax.Array, rate: jax.Array) -> jax.Array:
        roots = (jax.random.fold_in(jax.random.key(0, impl=THREEFRY), n) for n in (0, 2))
        task_key, data_key = (jax.random.fold_in(root, seed) for root in roots)
        task = random_task(task_key, num_tokens=3, context_length=50, sparsity=2)
        settings = Settings(
            batch_size=8,
            steps=40,
            record_every=10,
            optimizer="raw_sgd",
            record=("stage",),
            learning_rate_1=rate,
        )
        return train(data_key, task, settings).diverged_at

    expected = [[int(alone(np.int32(s), np.float32(r))) for r in rates] for s in range(6)]
    np.testing.assert_array_equal(found, expected)
    assert {*found[:, 0]} == {-1}
    assert {*found[:, 2]} == {10}
