"""A cheaper stage 1: steps and estimators against NumPy, the theory against SciPy and sampling."""

import itertools
import math
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import scbjax
from scbjax.base import StudyError
from scbjax.chances import chi_squared_quantile
from scbjax.experiments import cheaper, cheaper_estimators, cheaper_theory
from scbjax.noise import initial_noise
from scbjax.once import LIGHTEST, compiled_quickly
from scbjax.sweep.study.files import load_study

Array = np.ndarray
STATIC: dict[str, Any] = {
    "num_tokens": 3,
    "context_length": 40,
    "sparsity": 2,
    "short_context": 8,
    "method": "gradient",
    "projector": "mu",
    "batch_size": 6,
    "steps": 10,
}
VALUES = {"rate": 0.2, "batch_growth": 4.0, "theta": 0.0, "false_positives": 0.5}


@cache
def drawer(context_length: int) -> Callable[[jax.Array], cheaper_theory.Tasks]:
    draw = cheaper._source({**STATIC, "context_length": context_length}).draw
    return compiled_quickly(draw, level=lambda *_: LIGHTEST)


def tasks_of(seed: int = 0, context_length: int = 40) -> cheaper_theory.Tasks:
    return drawer(context_length)(jax.random.key(seed))


def in_numpy(task: scbjax.Task) -> tuple[Array, Array, Array]:
    p, mu, q = (np.asarray(array, np.float64) for array in task)
    assert np.ptp(mu) > 0.05
    return p, mu, q


def values_of(**changes: float) -> dict[str, jax.Array]:
    return {name: jnp.asarray(value) for name, value in {**VALUES, **changes}.items()}


def one_hots(batch: scbjax.Batch) -> tuple[Array, Array, Array]:
    """One-hot contexts [B, T, N], queries and labels [B, N]."""
    tokens, query, label = (np.asarray(part) for part in batch)
    return np.eye(3)[tokens], np.eye(3)[query], np.eye(3)[label]


# ------------------------------------------------------------------------------------------- tasks


@pytest.mark.slow
def test_short_contexts_have_the_chain_of_the_long_ones() -> None:
    tasks = tasks_of()
    assert tasks.short.pattern.shape == (8, 3)
    np.testing.assert_array_equal(tasks.short.transition, tasks.task.transition)
    assert (np.asarray(tasks.short.pattern > 0).sum(axis=0) == 2).all()
    source = cheaper._source({**STATIC, "method": "short_first"})
    assert source.keys is not None
    keys = source.keys

    def sample(tasks: cheaper_theory.Tasks) -> cheaper.Pair:
        pair: cheaper.Pair = source.sample(
            keys(jax.random.key(1))(jnp.int32(0)), source.prepare(tasks), 31
        )
        return pair

    pair = compiled_quickly(sample, level=lambda *_: LIGHTEST)(tasks)
    assert pair.short.label.shape == (15,)
    assert pair.long.label.shape == (16,)
    assert not np.array_equal(pair.short.label, pair.long.label[:15])


def test_a_random_start_keeps_the_invariants_and_has_its_size() -> None:
    task = tasks_of().task
    p, mu, _ = in_numpy(task)
    first, other = (
        np.asarray(cheaper.random_direction(jax.random.key(seed), task), np.float64)
        for seed in (0, 1)
    )
    np.testing.assert_allclose(first @ mu, 0.0, atol=1e-6)
    np.testing.assert_allclose(first.sum(axis=0), 0.0, atol=1e-6)
    size = ((p - mu[:, None]) ** 2 * mu).sum()
    assert (first**2 * mu).sum() == pytest.approx(size, rel=1e-4)
    assert abs((first * other * mu).sum()) < 0.99 * size


# ------------------------------------------------------------------------------------------- steps


def plain_gradient(params: scbjax.Params, batch: scbjax.Batch) -> tuple[Array, Array]:
    """Of the loss, from one-hot tensors in float64."""
    contexts, query, label = one_hots(batch)
    value, attention = (np.asarray(part, np.float64) for part in params)
    attended = np.einsum("btn,tk,bk->bn", contexts, attention, query)
    error = (attended @ value.T - label) / len(label)
    own = np.einsum("bn,nm,btm,bk->tk", error, value, contexts, query)
    return error.T @ attended, own


@pytest.mark.parametrize(("method", "projector"), [("gradient", "paper"), ("momentum", "mu")])
def test_steps_are_those_of_eq_4_with_rates_that_fall(method: str, projector: str) -> None:
    """Two of them, from off the start."""
    static = {**STATIC, "method": method, "projector": projector}
    tasks, values = tasks_of(), values_of()
    p, mu, q = in_numpy(tasks.task)
    k_p = ((p - mu[:, None]) ** 2 * mu).sum()
    k_q = ((q - 1 / 40) ** 2 * mu).sum()
    start = cheaper.descent_model(static).init(jax.random.key(0), tasks, values_of(theta=0.3))
    batches = [scbjax.sample_batch(jax.random.key(n), tasks.task, 6) for n in (1, 2)]
    optimizer = cheaper.optimizer_of(static)(tasks, values, ())

    def step(params: scbjax.Params, state: Any, batch: scbjax.Batch) -> Any:  # noqa: ANN401
        grads = jax.grad(cheaper._loss(static))(params, batch)
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(grads, state, params)

    run = compiled_quickly(step, level=lambda *_: LIGHTEST)
    params, state = start, optimizer.init(start)
    expected = [np.asarray(part, np.float64) for part in start]
    memory = [np.zeros((3, 3)), np.zeros((40, 3))]
    for number, batch in enumerate(batches):
        updates, state = run(params, state, batch)
        grads = plain_gradient(scbjax.Params(*map(jnp.asarray, expected)), batch)
        right = (
            np.outer(mu, mu) / (mu**2).sum() if projector == "paper" else np.outer(mu, np.ones(3))
        )
        v = (grads[0] - grads[0].mean(axis=0)) / mu @ (np.eye(3) - right)
        a = (grads[1] - grads[1].mean(axis=0)) / mu
        fall = 4.0 ** (-number / 10)
        for place, (own, signal) in enumerate(((v, k_q), (a, k_p))):
            memory[place] = 0.9 * memory[place] + own
            move = 0.1 * memory[place] if method == "momentum" else own
            expected[place] = expected[place] - 0.2 * fall / signal * move
        params = jax.tree.map(jnp.add, params, updates)
        for found, other in zip(params, expected, strict=True):
            np.testing.assert_allclose(found, other, rtol=1e-3, atol=2e-5)


def test_adam_keeps_the_invariants_and_steps_by_its_rate() -> None:
    static, tasks = {**STATIC, "method": "adam"}, tasks_of()
    start = cheaper.descent_model(static).init(jax.random.key(0), tasks, values_of(theta=0.3))
    optimizer = cheaper.optimizer_of(static)(tasks, values_of(rate=0.01), ())
    batch = scbjax.sample_batch(jax.random.key(1), tasks.task, 6)
    grads = jax.grad(cheaper._loss(static))(start, batch)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(grads, optimizer.init(start), start)
    np.testing.assert_allclose(updates.attention.sum(axis=0), 0.0, atol=1e-6)
    np.testing.assert_allclose(updates.value @ tasks.task.stationary, 0.0, atol=1e-6)
    # Adam's first step is the rate times a sign, which for A is divided by T.
    assert 0.3 < np.median(np.abs(updates.attention)) * 40 / 0.01 < 2.0
    assert 0.3 < np.abs(np.asarray(updates.value)).max() / 0.01 < 4.0


def test_loss_and_gradient_of_short_contexts_are_those_of_plain_jax() -> None:
    """One-hot contexts, einsum and autodiff: the snippet of the benchmark."""
    static = {**STATIC, "method": "short_first"}
    tasks = tasks_of()
    params = cheaper.descent_model(static).init(jax.random.key(0), tasks, values_of(theta=0.3))
    short, long = (
        scbjax.sample_batch(jax.random.key(n), task, 6)
        for n, task in enumerate((tasks.short, tasks.task))
    )

    def plain(params: scbjax.Params) -> jax.Array:
        def loss(value: jax.Array, attention: jax.Array, batch: scbjax.Batch) -> jax.Array:
            contexts = jax.nn.one_hot(batch.tokens, 3)
            attended = jnp.einsum("btn,tb->bn", contexts, attention[:, batch.query])
            error = attended @ value.T - jax.nn.one_hot(batch.label, 3)
            return 0.5 * jnp.mean(jnp.sum(error**2, axis=1))

        held = jax.lax.stop_gradient(params.value)
        uniform = jnp.full((8, 3), 1 / 8)
        return loss(params.value, uniform, short) + loss(held, params.attention, long)

    pair = cheaper.Pair(short, long)
    expected, slopes = compiled_quickly(jax.value_and_grad(plain))(params)
    found, grads = compiled_quickly(jax.value_and_grad(cheaper._loss(static)))(params, pair)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(grads.value, slopes.value, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grads.attention, slopes.attention, rtol=1e-4, atol=1e-6)


# -------------------------------------------------------------------------------------- estimators


def test_moments_are_those_of_one_hot_tensors() -> None:
    task = tasks_of().task
    _, mu, _ = in_numpy(task)
    batch = scbjax.sample_batch(jax.random.key(5), task, 50)
    contexts, query, label = one_hots(batch)
    counts = cheaper_estimators.joint_counts(batch, 3, jnp.float32)
    np.testing.assert_array_equal(counts, np.einsum("btx,bk,bo->txko", contexts, query, label))
    centred = np.einsum("btx,bk,bo->txko", contexts - mu, query, label - mu)
    scale = np.sqrt(query.sum(axis=0))[:, None] * np.sqrt(mu) * np.sqrt(mu)[:, None, None]
    found = cheaper_estimators.standardised(counts, task.stationary)
    np.testing.assert_allclose(found, centred / scale, rtol=1e-3, atol=1e-4)


def expected_counts(task: scbjax.Task, samples: float) -> Array:
    """The mean of the counts [T, x, k, o], by the law of the task."""
    p, mu, q = in_numpy(task)
    joint = p * mu  # [o, x]
    apart = np.outer(mu, mu)
    law = (
        q[:, None, :, None] * joint.T[None, :, None]
        + (1 - q)[:, None, :, None] * apart[None, :, None]
    )
    return np.asarray(samples * mu[:, None] * law)


def test_the_mean_moments_are_of_rank_one_and_have_the_noncentrality() -> None:
    task = tasks_of().task
    p, mu, q = in_numpy(task)
    counts = jnp.asarray(expected_counts(task, 3000.0), jnp.float32)
    moments = cheaper_estimators.standardised(counts, task.stationary)
    direction = (p - mu[:, None]).T * np.sqrt(mu)[:, None] / np.sqrt(mu)  # [x, o]
    size = np.sqrt(3000 * mu) * q
    np.testing.assert_allclose(
        moments, size[:, None, :, None] * direction[None, :, None], atol=2e-3 * size.max()
    )
    squared = (direction**2).sum()
    assert float(cheaper_theory.association(task)) == pytest.approx(squared, rel=1e-4)
    np.testing.assert_allclose(
        cheaper_estimators.chi_squared(moments), size**2 * squared, rtol=1e-2, atol=1e-2
    )
    scores = cheaper_estimators.leading_scores(moments)
    np.testing.assert_allclose(scores, size * np.sqrt(squared), atol=2e-3 * size.max())


def test_scores_are_those_of_the_leading_singular_vector() -> None:
    rng = np.random.default_rng(0)
    moments = rng.normal(size=(20, 3, 3, 3))
    moments[7] += 4.0
    flat = moments.transpose(1, 3, 0, 2).reshape(9, 60)
    left, singular, _ = np.linalg.svd(flat, full_matrices=False)
    expected = (left[:, 0] @ flat).reshape(20, 3)
    expected *= np.sign((expected**3).sum())
    assert singular[0] > 1.2 * singular[1]
    found = cheaper_estimators.leading_scores(jnp.asarray(moments, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    other = cheaper_estimators.leading_scores(jnp.asarray(-moments, jnp.float32))
    np.testing.assert_allclose(other, found, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("delta", [0.05, 3.0])
def test_the_cut_has_so_many_false_positives_in_the_mean(delta: float) -> None:
    level = stats.chi2.isf(delta / 120, 4)
    statistic = np.full((40, 3), 1.0)
    statistic[3, 1], statistic[5, 2] = level * 1.001, level * 0.999
    found = np.asarray(cheaper_estimators.significant(jnp.asarray(statistic, jnp.float32), delta))
    assert found[3, 1]
    assert found.sum() == 1
    tail = jnp.asarray(delta / 120, jnp.float32)
    assert float(chi_squared_quantile(tail, 4)) == pytest.approx(level, rel=1e-3)


@pytest.mark.slow
def test_off_the_support_the_statistic_is_chi_squared() -> None:
    task = tasks_of(3, context_length=300).task
    batch = scbjax.sample_batch(jax.random.key(0), task, 3000)
    counts = cheaper_estimators.joint_counts(batch, 3, jnp.float32)
    found = np.asarray(
        cheaper_estimators.chi_squared(cheaper_estimators.standardised(counts, task.stationary))
    )
    null = found[np.asarray(task.pattern) == 0]
    # About 900 of them: four standard errors, and what the cells' counts are short of Gaussian.
    assert np.mean(null) == pytest.approx(4.0, abs=4 * math.sqrt(8 / null.size))
    assert np.var(null) == pytest.approx(8.0, rel=0.3)
    assert found[np.asarray(task.pattern) > 0].min() > 10.0


# ------------------------------------------------------------------------------------- the theory


@pytest.mark.parametrize("growth", [0.02, 1.0, 7.0])
@pytest.mark.parametrize("projector", ["mu", "paper"])
def test_the_sign_has_the_level_of_the_growing_signal(growth: float, projector: Any) -> None:  # noqa: ANN401
    """Drift and noise of dx = y dt + drift dt + noise dW, dy = x dt, by quadrature."""
    task, samples = tasks_of().task, 700.0
    sigma = float(initial_noise(task, projector))
    window = growth / samples
    mean = integrate.quad(lambda t: np.cosh(growth - t) / 40, 0, growth)[0]
    variance = integrate.quad(lambda t: np.cosh(growth - t) ** 2 * window * sigma**2, 0, growth)[0]
    found = cheaper_theory.drift_level(task, jnp.asarray(samples), jnp.asarray(growth), projector)
    assert float(found) == pytest.approx(mean / np.sqrt(variance), rel=2e-3)
    if growth < 0.1:
        assert float(found) == pytest.approx(np.sqrt(samples) / (40 * sigma), rel=1e-3)


@pytest.mark.parametrize("projector", ["mu", "paper"])
def test_the_noise_of_v_is_that_of_single_samples(projector: Any) -> None:  # noqa: ANN401
    task = tasks_of(1, context_length=300).task
    _, mu, _ = in_numpy(task)
    contexts, _, label = one_hots(scbjax.sample_batch(jax.random.key(2), task, 4000))
    attended = contexts.mean(axis=1)
    error = mu - label
    right = np.outer(mu, mu) / (mu**2).sum() if projector == "paper" else np.outer(mu, np.ones(3))
    rows = attended / mu @ (np.eye(3) - right)
    energy = (error**2).sum(axis=1) * (rows**2 * mu).sum(axis=1)
    expected, spread = energy.mean(), energy.std() / np.sqrt(len(energy))
    found = float(cheaper_theory.noise_energy(task, projector))
    assert found == pytest.approx(expected, abs=4 * spread + 0.01 * expected)


def test_what_counts_for_a_is_that_of_quadrature() -> None:
    task, samples, growth = tasks_of().task, 500.0, 2.5
    p, mu, _ = in_numpy(task)
    found = np.asarray(
        cheaper_theory.lead_levels(task, jnp.asarray(samples), jnp.asarray(growth), "paper")
    )
    window, sigma = growth / samples, float(initial_noise(task, "paper"))
    total = float(cheaper_theory.noise_energy(task, "paper")) / ((p - mu[:, None]) ** 2 * mu).sum()
    for place in (0, 20, len(found) - 1):
        g = stats.norm.ppf((place + 0.5) / len(found))

        def path(t: float, g: float = g) -> float:
            return float(
                np.sinh(t) / 40 + g * sigma * np.sqrt(window * (t / 2 + np.sinh(2 * t) / 4))
            )

        whole = integrate.quad(path, 0, growth)[0]
        energy = integrate.quad(
            lambda t: path(t) ** 2 + (total - sigma**2) * window * t, 0, growth
        )[0]
        assert found[place] == pytest.approx(whole / np.sqrt(growth * energy), rel=5e-3)


def test_the_cosine_of_the_left_vector_is_that_of_random_matrices() -> None:
    task = tasks_of(2, context_length=300).task
    p, mu, q = in_numpy(task)
    phi = ((p - mu[:, None]) ** 2 * mu / mu[:, None]).sum()
    size = (q**2 * mu).sum()
    rng, weakest = np.random.default_rng(0), np.sqrt(4 * 900) / (phi * size)
    for share in (2.0, 6.0):
        samples = share * weakest
        cosines = []
        for _ in range(200):
            noise = rng.normal(size=(4, 900))
            noise[0, 0] += np.sqrt(samples * phi * size)
            cosines.append(np.linalg.svd(noise, full_matrices=False)[0][0, 0] ** 2)
        found = float(cheaper_theory.left_cosine(task, jnp.asarray(samples)))
        # Four rows are not many: the limit is met up to terms of 1 / 4 of what is missing to one.
        assert found == pytest.approx(np.mean(cosines), abs=0.35 * (1 - found))
    assert float(cheaper_theory.left_cosine(task, jnp.asarray(0.9 * weakest))) == 0.0


def test_the_information_is_that_of_all_contexts() -> None:
    task = tasks_of().task
    p, mu, q = in_numpy(task)
    needed = []
    for k in range(3):
        first, second = np.flatnonzero(q[:, k])
        told = -(mu * np.log(mu)).sum()
        for x, y in itertools.product(range(3), repeat=2):
            law = q[first, k] * p[:, x] + q[second, k] * p[:, y]
            told += mu[x] * mu[y] * (law * np.log(law)).sum()
        needed.append((0.9 * math.log(math.comb(40, 2)) - math.log(2)) / (mu[k] * told))
    found = float(cheaper_theory.information_samples(task, 2))
    assert found == pytest.approx(max(needed), rel=1e-3)


@pytest.mark.parametrize("method", ["screening", "ranking", "spectral"])
def test_the_share_that_finds_supports_is_as_expected(method: str) -> None:
    """Gaussian moments of the law's mean, in NumPy."""
    task = tasks_of(4)
    p, mu, q = in_numpy(task.task)
    direction = ((p - mu[:, None]).T * np.sqrt(mu)[:, None] / np.sqrt(mu)).ravel()
    null = np.linalg.svd(np.sqrt(mu)[None])[2][1:]
    basis = np.einsum("ax,bo->abxo", null, null).reshape(4, 9)
    rng, hits = np.random.default_rng(0), []
    for samples in (500.0, 1200.0, 3000.0):
        mean = np.sqrt(samples * mu)[None, :, None] * q[:, :, None] * (basis @ direction)
        found = 0
        for _ in range(200):
            drawn = mean + rng.normal(size=mean.shape)
            scores = (drawn**2).sum(axis=2)
            if method == "spectral":
                left = np.linalg.svd(drawn.reshape(-1, 4).T, full_matrices=False)[0][:, 0]
                scores = drawn @ left
                scores = scores * np.sign((scores**3).sum()) / np.sqrt(mu)
            if method == "screening":
                scores = (stats.chi2.sf(scores, 4) * 120 <= 0.5) * 1.0
            least = np.where(q > 0, scores, np.inf).min(axis=0)
            most = np.where(q > 0, -np.inf, scores).max(axis=0)
            found += bool((least > most).all())
        expected = cheaper_theory.expected_estimate(
            method, 2, task, jnp.asarray(samples), values_of()
        )
        hits.append((found / 200, float(expected[0])))
    assert hits[0][0] < 0.7
    assert hits[-1][0] > 0.5
    shares, expected_shares = np.array(hits).T
    np.testing.assert_allclose(shares, expected_shares, atol=0.12)


# ----------------------------------------------------------------------------------- the experiment


def test_the_small_study_is_one_of_seconds() -> None:
    study = load_study("cheaper", small=True)
    assert study.experiment.name == "cheaper"
    assert study.num_trajectories <= 12
    assert load_study("cheaper").num_trajectories >= 100 * 32


STUDY: dict[str, Any] = {
    "experiment": "cheaper",
    "task": {"num_tokens": 3, "context_length": 48, "sparsity": 2, "short_context": 8},
    "train": {"steps": 60, "record_every": 10, "batch_size": 80},
}


def run(method: str, **more: Any) -> Any:  # noqa: ANN401 - a dataset
    changes = {"model.method": method, **more}
    return scbjax.sweep.run(STUDY, set=changes, axes={"seed": range(4)}, progress=False)


@pytest.mark.parametrize(
    "method",
    ["gradient", "momentum", "adam", "short_first", "screening", "ranking", "spectral"],
)
@pytest.mark.slow
def test_supports_are_found_through_the_engine(method: str) -> None:
    found = run(method, **({"train.rate": 0.001} if method == "adam" else {}))
    assert not (found.diverged_at >= 0).any()
    assert (found.found.isel(step=0) == 0).all()
    assert float(found.found.isel(step=-1).mean()) >= 0.75
    assert float(found.expected.isel(step=-1).mean()) > 0.75
    # Adam's steps have one size, which levels the weights of Q.
    assert float(found.similarity.isel(step=-1).mean()) > (0.7 if method == "adam" else 0.8)
    assert (found.samples == found.step * 80).all()
    if method == "screening":
        assert float(found.false_positives.isel(step=-1).mean()) <= 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.method": "newton"}, "model.method must be one of 'gradient', 'momentum'"),
        ({"task.sparsity": 49}, "task.sparsity = 49 is larger than task.context_length = 48"),
        ({"model.false_positives": 0.0}, "model.false_positives must be a finite number above 0"),
        (
            {"model.method": "short_first", "task.short_context": 1},
            "task.sparsity = 2 is larger than task.short_context = 1",
        ),
        (
            {"model.method": "short_first", "train.batch_size": 1},
            "train.batch_size = 1 has no sample for one of two contexts",
        ),
    ],
)
def test_what_has_no_meaning_is_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=re.escape(message)):
        scbjax.sweep.run(STUDY, set=changes, axes={"seed": range(2)}, progress=False)
