"""Between the stages: thresholding, rounding, the mirror, signals and the refit of V."""

import functools
from collections.abc import Iterator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scbjax import stages, theory
from scbjax.losses import population_grad, population_loss
from scbjax.model import Params, init_params
from scbjax.sampling import Batch, sample_batch
from scbjax.task import Task

Array = np.ndarray

N, T, Q = 3, 12, 2


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


@pytest.fixture
def x64() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


class Numbers:
    """A task in float64 NumPy, with a stationary distribution that is far from uniform."""

    def __init__(self, seed: int, size: int = N, length: int = T, sparsity: int = Q) -> None:
        rng = np.random.default_rng(seed)
        self.p = rng.dirichlet(np.full(size, 0.5), size=size).T + 0.02
        self.p /= self.p.sum(axis=0)
        self.mu = np.linalg.solve(np.eye(size) - self.p + 1, np.ones(size))
        self.q = np.zeros((length, size))
        for column in self.q.T:
            support = rng.choice(length, sparsity, replace=False)
            column[support] = rng.uniform(0.5, 1.5, size=sparsity)
        self.q /= self.q.sum(axis=0)

    def inner(self, a: Array, b: Array) -> float:
        return float(np.trace(a @ np.diag(self.mu) @ b.T))

    def task(self) -> Task:
        return Task(*(jnp.asarray(array, float) for array in (self.p, self.mu, self.q)))

    def path_point(self, alpha_value: float, alpha_attention: float) -> tuple[Array, Array]:
        value = alpha_value * self.p + (1 - alpha_value) * self.mu[:, None]
        return value, alpha_attention * self.q + (1 - alpha_attention) / self.q.shape[0]

    def noise(self, seed: int) -> tuple[Array, Array]:
        """Random directions that keep the invariants and are orthogonal to the path."""
        rng = np.random.default_rng(seed)
        size, length = self.p.shape[0], self.q.shape[0]
        value = rng.normal(size=(size, size))
        value -= value.mean(axis=0, keepdims=True)
        value -= np.outer(value @ self.mu, np.ones(size))
        attention = rng.normal(size=(length, size))
        attention -= attention.mean(axis=0, keepdims=True)
        centred_p, centred_q = self.p - self.mu[:, None], self.q - 1 / length
        value -= self.inner(value, centred_p) / self.inner(centred_p, centred_p) * centred_p
        attention -= self.inner(attention, centred_q) / self.inner(centred_q, centred_q) * centred_q
        return value, attention


def to_params(pair: tuple[Array, Array]) -> Params:
    return Params(*(jnp.asarray(array, float) for array in pair))


# Thresholding and rounding.


@pytest.mark.usefixtures("x64")
def test_threshold_and_project_column_by_column(rng: np.random.Generator) -> None:
    attention, level = rng.normal(size=(T, N)), 0.7
    attention[:, 2] = -np.abs(attention[:, 2])  # nothing is kept: the column becomes uniform
    found = stages.threshold_and_project(jnp.asarray(attention), jnp.asarray(level))
    for column, before in zip(np.asarray(found).T, attention.T, strict=True):
        kept = [x if x >= level else 0.0 for x in before]
        expected = [x + (1 - sum(kept)) / T for x in kept]
        np.testing.assert_allclose(column, expected, rtol=1e-13)
    np.testing.assert_allclose(found[:, 2], 1 / T, rtol=1e-13)
    np.testing.assert_allclose(np.asarray(found).sum(axis=0), 1.0, rtol=1e-13)


@pytest.mark.usefixtures("x64")
def test_round_attention_column_by_column(rng: np.random.Generator) -> None:
    attention, level = rng.normal(size=(T, N)), 0.7
    found = np.asarray(stages.round_attention(jnp.asarray(attention), jnp.asarray(level)))
    for column, before in zip(found.T, attention.T, strict=True):
        kept = np.array([x if x >= level else 0.0 for x in before])
        np.testing.assert_allclose(column, kept / kept.sum(), rtol=1e-13)
    assert np.all(found >= 0)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([0.2, 0.3, 0.1, 0.0], [0.0, 1.0, 0.0, 0.0]),  # nothing reaches the level
        ([-3.0, -1.0, -2.0, -9.0], [0.0, 1.0, 0.0, 0.0]),  # nor here, with entries below zero
        ([0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]),
        ([0.5, -0.5, 0.5, 0.1], [0.5, 0.0, 0.5, 0.0]),  # an entry at the level is kept
        ([1.5, -0.5, 0.5, 0.1], [0.75, 0.0, 0.25, 0.0]),
    ],
)
def test_rounding_of_special_columns(column: list[float], expected: list[float]) -> None:
    other = [0.0, 0.0, 1.0, 1.0]
    attention = jnp.asarray(np.stack([column, other], axis=1), jnp.float32)
    found = stages.round_attention(attention, jnp.asarray(0.5))
    assert found[:, 0].tolist() == expected
    assert found[:, 1].tolist() == [0.0, 0.0, 0.5, 0.5]


@pytest.mark.parametrize("level", [0.0, -1.0])
def test_rounding_never_keeps_negative_entries(level: float) -> None:
    found = stages.round_attention(jnp.array([[0.5], [-0.25], [1.5]]), jnp.asarray(level))
    assert found.ravel().tolist() == [0.25, 0.0, 0.75]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_diverged_column_stays_visible_and_alone(bad: float) -> None:
    attention = np.full((4, 3), 0.25)
    attention[2, 1] = bad
    for cut in (stages.round_attention, stages.threshold_and_project):
        found = np.asarray(cut(jnp.asarray(attention), jnp.asarray(0.1)))
        if cut is stages.round_attention or not bad < 0:
            assert not np.any(np.isfinite(found[:, 1]))
        np.testing.assert_array_equal(found[:, [0, 2]], 0.25)


@pytest.mark.parametrize("sparsity", [1, 2, 5])
def test_rounding_level_is_a_share_of_one_over_sparsity(sparsity: int) -> None:
    task = Numbers(0, sparsity=sparsity).task()
    assert float(stages.rounding_level(task, 0.5)) == pytest.approx(0.5 / sparsity)
    assert float(stages.rounding_level(task, jnp.asarray(0.25))) == pytest.approx(0.25 / sparsity)


@pytest.mark.parametrize("sparsity", [1, 2, 4])
def test_rounding_recovers_the_pattern_from_a_noisy_path(
    rng: np.random.Generator, sparsity: int
) -> None:
    numbers = Numbers(3, sparsity=sparsity)
    noise = rng.uniform(-0.02, 0.02, size=(T, N)) / sparsity
    noise -= noise.mean(axis=0)
    attention = jnp.asarray(numbers.path_point(1.0, 0.9)[1] + noise, jnp.float32)
    found = stages.round_attention(attention, stages.rounding_level(numbers.task(), 0.25))
    np.testing.assert_array_equal(np.asarray(found) > 0, numbers.q > 0)
    np.testing.assert_allclose(found, numbers.q, atol=0.1 / sparsity)


# The mirror.


@pytest.mark.usefixtures("x64")
def test_mirror_is_an_involution_that_reflects_both_signals() -> None:
    numbers = Numbers(2)
    task = numbers.task()
    value, attention = numbers.path_point(0.3, -0.6)
    noise = numbers.noise(5)
    params = to_params((value + noise[0], attention + noise[1]))
    reflected = stages.mirror(params, task)
    np.testing.assert_allclose(theory.signals(params, task), (0.3, -0.6), rtol=1e-12)
    np.testing.assert_allclose(theory.signals(reflected, task), (-0.3, 0.6), rtol=1e-12)
    chex.assert_trees_all_close(stages.mirror(reflected, task), params, rtol=1e-13, atol=1e-14)
    expected = to_params(
        (numbers.path_point(-0.3, 0.6)[0] - noise[0], numbers.path_point(-0.3, 0.6)[1] - noise[1])
    )
    chex.assert_trees_all_close(reflected, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(reflected.value.sum(axis=0), 1.0, rtol=1e-12)
    np.testing.assert_allclose(reflected.value @ numbers.mu, numbers.mu, rtol=1e-12)
    np.testing.assert_allclose(reflected.attention.sum(axis=0), 1.0, rtol=1e-12)


@pytest.mark.parametrize("sparsity", [1, 2, 4])
@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_mirrored_attention_is_told_from_the_truth(
    rng: np.random.Generator, sparsity: int, alpha: float
) -> None:
    length = 200
    numbers = Numbers(4, length=length, sparsity=sparsity)
    noise = rng.normal(size=(length, N)) * 0.2 * alpha / sparsity / np.sqrt(length)
    for sign, expected in ((1.0, False), (-1.0, True)):
        attention = numbers.path_point(0.0, sign * alpha)[1] + noise
        assert bool(stages.is_mirrored(jnp.asarray(attention))) is expected


# Signals.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("alpha_value", "alpha_attention"), [(0.4, 0.7), (-0.4, -0.7), (1.2, -1)])
def test_signals_on_the_path_are_the_absolute_alphas(
    alpha_value: float, alpha_attention: float
) -> None:
    numbers = Numbers(6)
    params = to_params(numbers.path_point(alpha_value, alpha_attention))
    expected = (abs(alpha_value), abs(alpha_attention))
    np.testing.assert_allclose(
        stages.estimated_signals(params, numbers.task()), expected, rtol=1e-12
    )
    np.testing.assert_allclose(stages.true_signals(params, numbers.task()), expected, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_estimated_signals_count_the_noise_exactly() -> None:
    numbers = Numbers(7)
    alphas, scales = (0.4, -0.7), (0.3, 0.05)
    noise = [scale * array for scale, array in zip(scales, numbers.noise(8), strict=True)]
    value, attention = numbers.path_point(*alphas)
    params = to_params((value + noise[0], attention + noise[1]))
    k_p = numbers.inner(numbers.p, numbers.p) - numbers.mu @ numbers.mu
    k_q = numbers.inner(numbers.q, numbers.q) - 1 / T
    expected = (
        np.sqrt(alphas[0] ** 2 + numbers.inner(noise[0], noise[0]) / k_p),
        np.sqrt(alphas[1] ** 2 + numbers.inner(noise[1], noise[1]) / k_q),
    )
    found = stages.estimated_signals(params, numbers.task())
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert abs(expected[0] - 0.4) > 0.01
    np.testing.assert_allclose(
        stages.true_signals(params, numbers.task()), np.abs(alphas), rtol=1e-11
    )


def test_signals_of_the_initial_state_are_finite_and_small() -> None:
    for seed in range(5):
        task = Numbers(seed, length=500).task()
        params = init_params(task)
        # A float32 rounding error of |V|_mu^2 - |mu|^2, about 1e-7, goes through a square root.
        estimated = np.asarray(stages.estimated_signals(params, task))
        assert np.all((estimated >= 0) & (estimated < 2e-3))
        np.testing.assert_allclose(stages.true_signals(params, task), 0.0, atol=1e-5)


# The refit of V.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("seed", range(3))
def test_population_refit_minimises_the_expected_loss(rng: np.random.Generator, seed: int) -> None:
    numbers = Numbers(seed)
    task, attention = numbers.task(), jnp.asarray(rng.normal(size=(T, N)))
    value = stages.population_refit(attention, task)
    slope = population_grad(Params(value, attention), task).value
    np.testing.assert_allclose(slope, 0.0, atol=1e-12)
    best = float(population_loss(Params(value, attention), task))
    for _ in range(10):
        other = value + jnp.asarray(0.1 * rng.normal(size=(N, N)))
        assert float(population_loss(Params(other, attention), task)) > best


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0, -0.5])
def test_population_refit_stays_on_the_path(alpha: float) -> None:
    numbers = Numbers(9)
    k_q = numbers.inner(numbers.q, numbers.q) - 1 / T
    found = stages.population_refit(jnp.asarray(numbers.path_point(0.0, alpha)[1]), numbers.task())
    alpha_value = (alpha * k_q + 1 / T) / (alpha**2 * k_q + 1 / T)
    np.testing.assert_allclose(found, numbers.path_point(alpha_value, 0.0)[0], atol=1e-12)
    if alpha in (0.0, 1.0):  # it cannot tell the uniform attention from the right one
        np.testing.assert_allclose(found, numbers.p, atol=1e-12)


def sparse_attention(numbers: Numbers) -> Array:
    """Rounded columns that are right in one position and wrong in another."""
    attention = np.zeros_like(numbers.q)
    for k, column in enumerate(attention.T):
        right = np.flatnonzero(numbers.q[:, k])[0]
        wrong = np.flatnonzero(numbers.q[:, k] == 0)[k]
        column[[right, wrong]] = 0.7, 0.3
    return attention


@functools.partial(jax.jit, static_argnames=("num_samples", "support"))
def mapped_refits(
    attention: jax.Array, task: Task, keys: jax.Array, *, num_samples: int, support: int
) -> jax.Array:
    refit = functools.partial(stages.refit_value, num_samples=num_samples, support=support)
    return jax.vmap(refit, in_axes=(0, None, None))(keys, attention, task)


def refits(attention: Array, task: Task, keys: jax.Array, num_samples: int, support: int) -> Array:
    weights = jnp.asarray(attention, float)
    found = mapped_refits(weights, task, keys, num_samples=num_samples, support=support)
    return np.asarray(found, np.float64)


@functools.partial(jax.jit, static_argnames="num_samples")
def mapped_batches(task: Task, keys: jax.Array, *, num_samples: int) -> Batch:
    return jax.vmap(lambda key: sample_batch(key, task, num_samples))(keys)


def brute_force_refits(attention: Array, task: Task, keys: jax.Array, num_samples: int) -> Array:
    """Least squares on whole contexts, in float64 NumPy."""
    batches = mapped_batches(task, keys, num_samples=num_samples)
    eye = np.eye(N)
    values = []
    for tokens, query, label in zip(*map(np.asarray, batches), strict=True):
        attended = np.einsum("btn,bt->bn", eye[tokens], attention.T[query])
        values.append(np.linalg.lstsq(attended, eye[label], rcond=None)[0].T)
    return np.stack(values)


@pytest.mark.parametrize("support", [pytest.param(2, marks=pytest.mark.slow), 64])
def test_refit_has_the_law_of_a_refit_on_whole_contexts(support: int) -> None:
    numbers, num_samples, repeats = Numbers(10), 300, 400
    attention, task = sparse_attention(numbers), numbers.task()
    found = refits(
        attention, task, jax.random.split(jax.random.key(0), repeats), num_samples, support
    )
    expected = brute_force_refits(
        attention, task, jax.random.split(jax.random.key(1), repeats), num_samples
    )
    # Means of 400 repeats, nine entries: five standard errors are passed by chance once in 10^5.
    error = np.sqrt((found.var(axis=0) + expected.var(axis=0)) / repeats)
    assert np.all(np.abs(found.mean(axis=0) - expected.mean(axis=0)) < 5 * error)
    # The standard deviation of log(variance ratio) is sqrt(2 * 2 / repeats) = 0.1.
    assert np.all(np.abs(np.log(found.var(axis=0) / expected.var(axis=0))) < 0.5)


@pytest.mark.slow
def test_refit_converges_to_population_least_squares() -> None:
    numbers = Numbers(11)
    attention, task = sparse_attention(numbers), numbers.task()
    limit = np.asarray(stages.population_refit(jnp.asarray(attention, float), task))
    assert np.abs(limit - numbers.p).max() > 0.05  # a wrong attention is not fitted by P
    keys = jax.random.split(jax.random.key(2), 16)
    errors = [
        np.sqrt(np.mean((refits(attention, task, keys, size, 4) - limit) ** 2))
        for size in (1_000, 64_000)
    ]
    # 64 times the samples, an eighth of the error; 16 repeats of nine entries tell it to a tenth.
    np.testing.assert_allclose(errors[0] / errors[1], 8.0, rtol=0.3)


def test_refit_of_the_truth_finds_the_transition_matrix() -> None:
    numbers = Numbers(12, sparsity=3)
    keys = jax.random.split(jax.random.key(2), 16)
    found = refits(numbers.q, numbers.task(), keys, 64_000, 4).mean(axis=0)
    np.testing.assert_allclose(found, numbers.p, atol=0.01)


def test_refit_leaves_out_what_does_not_fit_the_support() -> None:
    numbers = Numbers(13)
    attention = sparse_attention(numbers)
    extra = attention.copy()
    extra[np.argmin(attention, axis=0), range(N)] = 0.01
    keys = jax.random.split(jax.random.key(4), 3)
    np.testing.assert_array_equal(
        refits(extra, numbers.task(), keys, 200, 2), refits(attention, numbers.task(), keys, 200, 2)
    )


def test_refit_of_one_sample_is_finite() -> None:
    numbers = Numbers(14)
    found = refits(numbers.q, numbers.task(), jax.random.split(jax.random.key(5), 20), 1, 4)
    assert np.all(np.isfinite(found))


@pytest.mark.slow
def test_refit_over_mapped_tasks_equals_single_refits() -> None:
    tasks = [Numbers(seed).task() for seed in range(3)]
    stacked: Task = jax.tree.map(lambda *leaves: jnp.stack(leaves), *tasks)
    keys = jax.random.split(jax.random.key(6), 3)

    def one(key: jax.Array, task: Task) -> jax.Array:
        return stages.refit_value(key, task.pattern, task, num_samples=500, support=T)

    found = jax.jit(jax.vmap(one))(keys, stacked)
    for index, task in enumerate(tasks):
        # Of entries that are about one: a small one has the rounding errors of the others.
        single = jax.jit(one)(keys[index], task)
        np.testing.assert_allclose(found[index], single, rtol=1e-4, atol=1e-6)
