"""Adaptive sparsity: against enumeration and Monte Carlo in NumPy, closed forms and plain JAX."""

import itertools
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import scbjax
from scbjax.base import StudyError
from scbjax.experiments import adaptive, adaptive_learner, adaptive_noise
from scbjax.experiments.adaptive_learner import Candidates, Progress
from scbjax.losses import population_grad, sample_gradients
from scbjax.sweep.study.files import load_study

Array = np.ndarray
STATIC = {"num_tokens": 4, "context_length": 20, "sparsity": 3, "candidates": 1}
DRAWN = {"skew": 3.0, "weight_skew": 1.5, "transition_signal": 0.4, "alignment": 1.0}
VALUES = {
    "rate": 0.2,
    "level": 0.7,
    "adapt": 1.0,
    "path_ratio": 2.0,
    "path_steps": 8.0,
    "candidate_ratio": 1.5,
    "value_bound": 0.9,
    "relax": 1.0,
    "memory": 3.0,
}
B = 16


@pytest.fixture(scope="module")
def task() -> scbjax.Task:
    drawn: scbjax.Task = jax.jit(partial(adaptive.draw_task, STATIC))(jax.random.key(0), DRAWN)
    return drawn


@pytest.fixture(scope="module")
def params(task: scbjax.Task) -> scbjax.Params:
    """V and A that keep the invariants, and are on no path."""
    mu = task.stationary
    drift = jax.random.normal(jax.random.key(1), (4, 4))
    drift = drift - drift.mean(axis=0, keepdims=True)
    drift = drift - (drift @ mu)[:, None]
    value = mu[:, None] + 0.6 * (task.transition - mu[:, None]) + 0.1 * drift
    rest = jax.random.normal(jax.random.key(2), task.pattern.shape)
    attention = 0.7 * task.pattern + 0.3 / 20 + 0.02 * (rest - rest.mean(axis=0, keepdims=True))
    return scbjax.Params(value, attention)


def test_columns_have_other_sizes_and_frequent_queries_the_large_ones(task: scbjax.Task) -> None:
    mu, q = np.asarray(task.stationary, float), np.asarray(task.pattern, float)
    sizes = (q > 0).sum(axis=0)
    assert sorted(sizes) == [1, 1, 2, 3]
    assert (np.diff(sizes[np.argsort(mu)]) >= 0).all()
    np.testing.assert_allclose(q.sum(axis=0), 1.0, rtol=1e-5)
    scaled = (q * sizes)[q > 0]
    assert scaled.min() >= 1 / 1.5 - 1e-5
    assert scaled.max() <= 1.5 + 1e-5
    np.testing.assert_allclose(task.transition @ task.stationary, mu, atol=1e-6)


def test_sizes_at_random_have_nothing_to_do_with_frequencies() -> None:
    mu = jnp.arange(1.0, 11.0) / 55.0
    keys = jax.random.split(jax.random.key(0), 200)
    draw = jax.jit(jax.vmap(lambda key: adaptive.column_sizes(key, mu, 8, 0.0)))
    sizes = np.asarray(draw(keys))
    assert (np.sort(sizes, axis=1) == 1 + np.arange(10) * 8 // 10).all()
    # The mean of 200 draws of a size of deviation 2.2.
    assert np.abs(sizes.mean(axis=0) - sizes.mean()).max() < 4 * 2.2 / np.sqrt(200)


def by_enumeration(params: scbjax.Params, task: scbjax.Task) -> Array:
    """``s_k^2`` from the moments of the residual over all contexts of the support's positions."""
    p, mu, q = (np.asarray(x, float) for x in task)
    v, a = (np.asarray(x, float) for x in params)
    spread = (v - mu[:, None]) * mu @ (v - mu[:, None]).T
    found = []
    for k in range(len(mu)):
        moment = np.zeros((len(mu), len(mu)))
        for context in itertools.product(range(len(mu)), repeat=len(q)):
            chance = mu[list(context)].prod()
            hot = np.eye(len(mu))[:, list(context)]
            label, output = p @ hot @ q[:, k], v @ hot @ a[:, k]
            moment += chance * (
                np.diag(label)
                - np.outer(label, output)
                - np.outer(output, label)
                + np.outer(output, output)
            )
        found.append((spread * moment).sum())
    return np.array(found)


def test_the_noise_has_the_variance_of_all_contexts(
    task: scbjax.Task, params: scbjax.Params
) -> None:
    # A context of four positions, so that 256 contexts are all.
    pattern = jnp.array([[0.5, 1.0, 0, 0], [0.5, 0, 0.3, 0], [0, 0, 0.7, 1.0], [0, 0, 0, 0]])
    attention = 0.8 * pattern + 0.05 + 0.02 * jnp.array([[1.0], [-1.0], [2.0], [-2.0]])
    short, own = task._replace(pattern=pattern), params._replace(attention=attention)
    found = np.asarray(adaptive_noise.noise_of(own, short)) ** 2
    np.testing.assert_allclose(found, by_enumeration(own, short), rtol=2e-5)
    # Where nothing is attended to and the start has no signal, it is the learner's unit.
    blind = own._replace(attention=jnp.zeros_like(attention))
    unit = float(adaptive_noise.noise_unit(own.value, task.stationary))
    np.testing.assert_allclose(adaptive_noise.noise_of(blind, short), unit, rtol=1e-5)


def test_gradients_of_samples_have_that_deviation(task: scbjax.Task, params: scbjax.Params) -> None:
    params = params._replace(attention=0.8 * task.pattern + 0.2 / 20)
    batch = scbjax.sample_batch(jax.random.key(3), task, 20000)
    grads = np.asarray(sample_gradients(params, batch)[1].attention, float) * 20000
    grads = grads - grads.mean(axis=1, keepdims=True)
    expected = np.asarray(adaptive_noise.noise_of(params, task))
    for k in range(4):
        own = grads[np.asarray(batch.query) == k][:, np.asarray(task.pattern[:, k]) == 0]
        # Centring takes 1/20 of the variance.
        assert own.std() / np.sqrt(1 - 1 / 20) == pytest.approx(expected[k], rel=0.03)


@pytest.mark.parametrize(
    ("level", "drift", "decay"),
    [(1.5, 0.0, 0.3), (2.0, 1.6, 0.2), (0.5, 0.4, 0.7), (3.0, 3.4, 0.1)],
)
def test_the_chain_is_zero_as_often_as_when_simulated(
    level: float, drift: float, decay: float
) -> None:
    rng = np.random.default_rng(0)
    entry = np.zeros(100_000)
    for _ in range(80):
        raw = (1 - decay) * entry + drift + rng.normal(size=entry.size)
        entry = np.sign(raw) * np.maximum(np.abs(raw) - level, 0)
    share = (entry == 0).mean()
    found = float(adaptive_noise.zero_share(*(jnp.asarray(x) for x in (level, drift, decay))))
    assert found == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / entry.size) + 3e-4)


@pytest.mark.parametrize(("level", "drift"), [(2.0, 0.0), (1.0, 1.7), (4.0, 8.0)])
def test_the_chain_without_memory_is_one_normal_draw(level: float, drift: float) -> None:
    found = adaptive_noise.zero_share(jnp.asarray(level), jnp.asarray(drift), jnp.asarray(1.0))
    expected = norm.cdf(level - drift) - norm.cdf(-level - drift)
    assert float(found) == pytest.approx(expected, abs=2e-5)


def test_thresholds_have_the_formula(task: scbjax.Task, params: scbjax.Params) -> None:
    mu, v = np.asarray(task.stationary, float), np.asarray(params.value, float)
    away = v - mu[:, None]
    square = np.trace((away * mu) @ away.T @ (np.diag(mu) - np.outer(mu, mu)))

    def at(adapt: float) -> Array:
        return np.asarray(
            adaptive_learner.thresholds(
                2.0, params.value, task.stationary, jnp.asarray(0.3), 64.0, adapt
            )
        )

    np.testing.assert_allclose(at(1.0), 2 * 0.3 * np.sqrt(square / (64 * mu)), rtol=1e-5)
    np.testing.assert_allclose(at(0.0), 2 * 0.3 * np.sqrt(square * 4 / 64), rtol=1e-5)
    np.testing.assert_allclose(at(0.5), np.sqrt(at(0.0) * at(1.0)), rtol=1e-5)


def test_a_path_falls_to_its_end_and_stays() -> None:
    found = [
        adaptive_learner.levels_at(VALUES, 2, jnp.int32(step)).tolist() for step in (0, 4, 8, 99)
    ]
    np.testing.assert_allclose(found[0], [1.4, 1.4 / 1.5], rtol=1e-6)
    np.testing.assert_allclose(found[1], [0.7 * 2**0.5, 0.7 * 2**0.5 / 1.5], rtol=1e-6)
    np.testing.assert_allclose(found[2], [0.7, 0.7 / 1.5], rtol=1e-6)
    assert found[3] == found[2]


def test_one_threshold_is_the_step_of_the_paper_s_arm(
    task: scbjax.Task, params: scbjax.Params
) -> None:
    grads = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(5), leaf.shape), params)
    optimizer = scbjax.scb_proximal(task.stationary, 0.1, 0.02, 0.09)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    found, support = adaptive_learner.proximal_step(
        params.attention, grads.attention, task.stationary, jnp.asarray(0.02), jnp.full(4, 0.09)
    )
    np.testing.assert_allclose(found, params.attention + updates.attention, atol=2e-7)
    for column, own, rest in zip(
        found.T, support.T, adaptive_learner.background(found, support), strict=True
    ):
        assert 0 < np.asarray(own).mean() < 1
        np.testing.assert_allclose(column[~own], rest, atol=1e-7)


def in_plain_jax(
    params: scbjax.Params, batch: scbjax.Batch, task: scbjax.Task, lambdas: jax.Array
) -> tuple[jax.Array, scbjax.Params, scbjax.Params]:
    """Loss, gradient and parameters after a step, with one-hot tokens and automatic derivatives."""
    mu, (length, size) = task.stationary, params.attention.shape
    hot = jax.nn.one_hot(batch.tokens, size)
    query, label = jax.nn.one_hot(batch.query, size), jax.nn.one_hot(batch.label, size)

    def loss(params: scbjax.Params) -> jax.Array:
        attended = jnp.einsum("btn,tk,bk->bn", hot, params.attention, query)
        return 0.5 * jnp.mean(jnp.sum((attended @ params.value.T - label) ** 2, axis=1))

    value, grads = jax.value_and_grad(loss)(params)
    g = grads.value / mu[None, :]
    g = g - g.mean(axis=0, keepdims=True)
    g = g - (g @ mu)[:, None]
    rate = VALUES["rate"]
    moved_value = params.value - rate / scbjax.pattern_signal(task) * g
    k_v = jnp.sum(jnp.diag(moved_value @ jnp.diag(mu) @ moved_value.T)) - jnp.sum(mu**2)
    shrink = jnp.minimum(
        1.0, jnp.sqrt(VALUES["value_bound"] * scbjax.transition_signal(task) / k_v)
    )
    moved_value = shrink * moved_value + (1.0 - shrink) * mu[:, None]
    g = grads.attention / mu[None, :]
    moved = params.attention - rate / scbjax.transition_signal(task) * (
        g - g.mean(axis=0, keepdims=True)
    )
    kept = jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - lambdas[None, :], 0.0)
    attention = kept + (1.0 - kept.sum(axis=0, keepdims=True)) / length
    return value, grads, scbjax.Params(moved_value, attention)


def candidates_of(params: scbjax.Params, count: int) -> Candidates:
    value, attention = (jnp.broadcast_to(p[None], (count, *p.shape)) for p in params)
    return Candidates(value, attention, jnp.zeros((count, 4)))


def progress_at(step: int, count: int) -> Progress:
    support = jnp.ones((count, 20, 4), bool)
    return Progress(jnp.int32(step), jnp.asarray(float(B)), support)


def test_a_step_is_that_of_plain_jax(task: scbjax.Task, params: scbjax.Params) -> None:
    batch = scbjax.sample_batch(jax.random.key(6), task, B)
    rate = VALUES["rate"] / scbjax.transition_signal(task)
    level = 0.7 * 2 ** (1 - 5 / 8)
    lambdas = adaptive_learner.thresholds(level, params.value, task.stationary, rate, float(B), 1.0)
    loss, grads, moved = jax.jit(in_plain_jax)(params, batch, task, lambdas)
    (found, own), after, progress = jax.jit(adaptive_learner.step_candidates)(
        candidates_of(params, 1), progress_at(5, 1), batch, task, VALUES
    )
    assert float(found) == pytest.approx(float(loss), rel=1e-5)
    np.testing.assert_allclose(own.value[0], grads.value, atol=1e-6)
    np.testing.assert_allclose(own.attention[0], grads.attention, atol=1e-6)
    np.testing.assert_allclose(after.value[0], moved.value, atol=2e-6)
    np.testing.assert_allclose(after.attention[0], moved.attention, atol=2e-6)
    assert int(progress.step) == 6
    assert 0 < np.asarray(progress.support).mean() < 1


def test_v_is_projected_on_the_bound_and_left_alone_within(
    task: scbjax.Task, params: scbjax.Params
) -> None:
    mu = task.stationary
    signal = float(scbjax.transition_signal(task._replace(transition=params.value)))
    same = adaptive_learner.bounded(params.value, mu, jnp.asarray(1.01 * signal))
    np.testing.assert_allclose(same, params.value, atol=1e-7)
    found = adaptive_learner.bounded(params.value, mu, jnp.asarray(0.49 * signal))
    expected = 0.7 * np.asarray(params.value) + 0.3 * np.asarray(mu)[:, None]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_losses_of_queries_are_means_over_their_samples(
    task: scbjax.Task, params: scbjax.Params
) -> None:
    batch = scbjax.sample_batch(jax.random.key(7), task, B)
    found, count = adaptive_learner.losses_by_query(params, batch)
    v, a = (np.asarray(x, float) for x in params)
    losses: list[list[float]] = [[] for _ in range(4)]
    for context, k, label in zip(*(np.asarray(x) for x in batch), strict=True):
        error = v @ np.eye(4)[:, context] @ a[:, k] - np.eye(4)[label]
        losses[k].append(float(error @ error) / 2)
    assert count.tolist() == [len(own) for own in losses]
    expected = np.array([np.mean(own) if own else 0.0 for own in losses])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_relaxing_gives_back_what_l1_takes_where_noise_is_none(task: scbjax.Task) -> None:
    """At the fixed point ``(K_VP q - lambda / eta_A) / K_V`` of weights that survive."""
    mu, value = task.stationary, 1.05 * task.transition - 0.05 * task.stationary[:, None]
    rate, support = 1.0, task.pattern > 0
    k_p = float(scbjax.transition_signal(task))
    k_v, k_vp = 1.05**2 * k_p, 1.05 * k_p
    shrinkage = jnp.array([0.015, 0.02, 0.025, 0.015])
    shrunk = jnp.where(support, (k_vp * task.pattern - shrinkage[None]) / k_v, 0.0)
    attention = shrunk + (1 - shrunk.sum(axis=0, keepdims=True)) / 20
    found = adaptive_learner.relaxed(
        scbjax.Params(value, attention), support, mu, shrinkage
    ).attention
    unshrunk = task.pattern / 1.05
    expected = unshrunk + (1 - unshrunk.sum(axis=0, keepdims=True)) / 20
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # And it is a fixed point: the expected step and the threshold undo each other.
    grads = population_grad(scbjax.Params(value, attention), task)
    moved, kept = adaptive_learner.proximal_step(
        attention, grads.attention, mu, jnp.asarray(rate), rate * shrinkage
    )
    np.testing.assert_array_equal(kept, support)
    above = moved - adaptive_learner.background(moved, kept)[None]
    # But for the background, by which all entries stand higher before they are thresholded.
    rest = adaptive_learner.background(attention, support)
    lifted = (1 - rate * k_v) * rest + rate * (k_v - k_vp) / 20
    np.testing.assert_allclose(above, jnp.where(support, shrunk + lifted[None], 0.0), atol=2e-6)


def test_a_query_takes_the_candidate_with_the_least_running_loss(
    task: scbjax.Task, params: scbjax.Params
) -> None:
    step = jax.jit(adaptive_learner.step_candidates)
    state, progress = candidates_of(params, 3), progress_at(0, 3)
    expected = np.zeros((3, 4))
    for index in range(4):
        batch = scbjax.sample_batch(jax.random.key(index), task, B)
        rate = VALUES["rate"] / scbjax.transition_signal(task)
        levels = adaptive_learner.levels_at(VALUES, 3, jnp.int32(index))
        for m in range(3):
            own = scbjax.Params(state.value[m], state.attention[m])
            lambdas = adaptive_learner.thresholds(
                levels[m], own.value, task.stationary, rate, float(B), VALUES["adapt"]
            )
            own = adaptive_learner.relaxed(
                own, progress.support[m], task.stationary, lambdas / rate
            )
            fresh, count = adaptive_learner.losses_by_query(own, batch)
            change = (np.asarray(fresh) - expected[m]) / min(index + 1, VALUES["memory"])
            expected[m] += np.where(np.asarray(count) > 0, change, 0.0)
        _, state, progress = step(state, progress, batch, task, VALUES)
    np.testing.assert_allclose(state.losses, expected, rtol=1e-4, atol=1e-6)
    best = expected.argmin(axis=0)
    readout = adaptive_learner.model_of({**STATIC, "candidates": 3}).readout(state)
    for k in range(4):
        np.testing.assert_array_equal(readout.attention[:, k], state.attention[best[k], :, k])
    np.testing.assert_array_equal(readout.value, state.value[expected.sum(axis=1).argmin()])


STUDY = {
    "experiment": "adaptive",
    "task": {"num_tokens": 4, "context_length": 20, "sparsity": 3},
    "train": {"steps": 40, "record_every": 20, "batch_size": 4096, "rate": 0.25},
}


@pytest.mark.slow
def test_a_small_sweep_finds_supports_and_knows_how_well() -> None:
    names = ("false_positives", "false_negatives", "queries_recovered", "recovery_expected")
    study = {**STUDY, "record": {"variables": [*names, "noise_level", "column_size"]}}
    axes = {"seed": range(6), "level": (1.0, 4.0)}
    found = scbjax.sweep.run(study, axes=axes, progress=False).isel(step=-1)
    few, many = (found.sel(level=level) for level in (4.0, 1.0))
    assert float(few.queries_recovered.mean()) > 0.8
    assert float(many.false_positives.mean()) > 10 * float(few.false_positives.mean())
    wrong = (found.false_positives + found.false_negatives) > 0
    np.testing.assert_allclose((~wrong).mean("query"), found.queries_recovered, atol=1e-6)
    assert float(few.recovery_expected.mean()) > 0.3 > float(many.recovery_expected.mean())
    # s_k is smaller than the unit that the learner knows, most for the sparsest queries.
    assert (few.noise_level > 4.0).all()


def test_the_study_s_small_form_is_one() -> None:
    study = load_study("adaptive", small=True)
    assert study.experiment.name == "adaptive"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task.sparsity": 12, "task.context_length": 10},
            "task.sparsity = 12 is larger than task.context_length = 10",
        ),
        ({"task.sparsity": 40}, "task.sparsity must be an integer from 1 to 16, got 40"),
        ({"train.adapt": 1.5}, "train.adapt must be a number from 0.0 to 1.0, got 1.5"),
        (
            {"train.path_ratio": 0.5},
            "train.path_ratio must be a finite number of at least 1, got 0.5",
        ),
        ({"train.candidates": 0}, "train.candidates must be an integer from 1"),
    ],
)
def test_what_has_no_meaning_is_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=re.escape(message)):
        scbjax.sweep.run(STUDY, set=changes, axes={"seed": range(2)}, progress=False)
