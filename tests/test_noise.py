"""Gradients of the signals, sample by sample, against eq. 4 in full and against counting."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scbjax import noise
from scbjax.model import Params, init_params
from scbjax.parameters import Geometry
from scbjax.sampling import Batch, sample_batch
from scbjax.task import Task, random_task
from scbjax.theory import expected_direction, path_point

Array = np.ndarray

N, Q = 3, 2
GEOMETRIES: tuple[Geometry, ...] = ("mu", "paper")


def make_task(seed: int, length: int) -> Task:
    return random_task(
        jax.random.key(seed), num_tokens=N, context_length=length, sparsity=Q, skew=3.0
    )


def matrices(task: Task) -> tuple[Array, Array, Array]:
    p, mu, q = (np.asarray(array, float) for array in task)
    return p, mu, q


def explicit(v: Array, a: Array, task: Task, tokens: Array, query: int, label: int) -> list[float]:
    """Eq. 4 for one sample with every matrix in full, then the inner products with P and Q."""
    p, mu, q = matrices(task)
    length = len(tokens)
    x = np.eye(N)[tokens].T
    error = v @ x @ a[:, query] - np.eye(N)[label]
    left = np.eye(N) - np.ones((N, N)) / N
    rights = (
        np.eye(N) - np.outer(mu, np.ones(N)),
        np.eye(N) - np.outer(mu, mu) / (mu @ mu),
    )
    gradient = np.outer(error, x @ a[:, query])
    k_p = np.trace(p @ np.diag(mu) @ p.T) - mu @ mu
    k_q = np.trace(q @ np.diag(mu) @ q.T) - 1 / length
    found = []
    for right in rights:
        direction = left @ gradient @ np.diag(1 / mu) @ right
        found.append(np.trace(direction @ np.diag(mu) @ p.T) / k_p)
    columns = np.zeros((length, N))
    columns[:, query] = x.T @ v.T @ error / mu[query]
    columns = (np.eye(length) - np.ones((length, length)) / length) @ columns
    found.append(np.trace(columns @ np.diag(mu) @ q.T) / k_q)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_every_sample_has_the_gradient_of_eq_4(seed: int) -> None:
    task = make_task(seed, 12)
    rng = np.random.default_rng(seed)
    # Nowhere near the set that the steps keep to.
    params = Params(
        jnp.asarray(rng.normal(size=(N, N)), jnp.float32),
        jnp.asarray(rng.normal(size=(12, N)), jnp.float32),
    )
    batch = sample_batch(jax.random.key(seed), task, 40)
    found = np.stack(noise.signal_gradients(params, batch, task), axis=1)
    v, a = (np.asarray(array, float) for array in params)
    samples = zip(*(np.asarray(array) for array in batch), strict=True)
    expected = np.array([explicit(v, a, task, *sample) for sample in samples])
    scale = np.abs(expected).max(axis=0)
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-5)


def every_sample(task: Task) -> tuple[Batch, Array]:
    """All contexts, queries and labels there are, and the probability of each (eq. 1)."""
    p, mu, q = matrices(task)
    length = task.context_length
    samples = np.array(list(itertools.product(range(N), repeat=length + 2)))
    tokens, query, label = samples[:, :length], samples[:, -2], samples[:, -1]
    chances = (q[:, query].T * p[label[:, None], tokens]).sum(axis=1)
    chances *= mu[query] * mu[tokens].prod(axis=1)
    batch = Batch(jnp.asarray(tokens, jnp.uint8), jnp.asarray(query), jnp.asarray(label))
    return batch, chances


@pytest.mark.parametrize("length", [2, 4])
def test_noise_at_the_start_is_that_of_all_samples_there_are(length: int) -> None:
    task = make_task(length, length)
    batch, chances = every_sample(task)
    assert chances.sum() == pytest.approx(1.0, abs=1e-6)
    gradients = noise.signal_gradients(init_params(task), batch, task)
    for gradient, geometry in zip(gradients, GEOMETRIES, strict=False):
        values = np.asarray(gradient, float)
        mean = chances @ values
        assert mean == pytest.approx(-1 / length, abs=1e-5)
        deviation = np.sqrt(chances @ (values - mean) ** 2)
        found = noise.initial_noise(task, geometry)
        assert float(found) == pytest.approx(deviation, rel=1e-4)
    # V h does not tell the tokens apart yet: there is nothing to learn for A.
    np.testing.assert_allclose(gradients.attention, 0.0, atol=1e-5)


def test_noise_at_the_start_falls_with_t_in_the_mu_geometry_alone() -> None:
    short, long = make_task(5, 1000), make_task(5, 64000)
    p, mu, _ = matrices(long)
    falling = [float(noise.initial_noise(task, "mu")) for task in (short, long)]
    assert falling[0] / falling[1] == pytest.approx(8.0, rel=2e-3)
    constant = p @ (mu - mu**2 / (mu @ mu))
    spread = np.sqrt(mu @ constant**2 - (mu @ constant) ** 2)
    limit = spread / (np.trace(p @ np.diag(mu) @ p.T) - mu @ mu)
    assert float(noise.initial_noise(long, "paper")) == pytest.approx(limit, rel=1e-3)
    assert limit > 10 * falling[1]


def test_the_geometries_are_one_where_mu_is_uniform() -> None:
    task = random_task(jax.random.key(0), num_tokens=N, context_length=200, sparsity=Q, skew=1.0)
    found = [float(noise.initial_noise(task, "mu")), float(noise.initial_noise(task, "paper"))]
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert found[0] > 0.01


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_measured_means_and_deviations_are_the_expected_ones(
    alpha: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, task = 20000, make_task(1, 30)
    # Several pieces, the last of them cut.
    monkeypatch.setattr(noise, "_PIECE_TOKENS", 7000 * task.context_length + 11)
    params = path_point(jnp.asarray(alpha), jnp.asarray(alpha), task)
    measure = jax.jit(noise.signal_noise, static_argnums=3)
    found = measure(jax.random.key(2), params, task, count)
    p, mu, q = matrices(task)
    k_p = np.trace(p @ np.diag(mu) @ p.T) - mu @ mu
    k_q = np.trace(q @ np.diag(mu) @ q.T) - 1 / 30
    direction = expected_direction(params, task)
    value = np.trace(np.asarray(direction.value) @ np.diag(mu) @ p.T) / k_p
    attention = np.trace(np.asarray(direction.attention) @ np.diag(mu) @ q.T) / k_q
    for mean, deviation, expected in zip(
        found.mean, found.deviation, (value, value, attention), strict=True
    ):
        assert abs(float(mean) - expected) <= 5 * float(deviation) / np.sqrt(count) + 1e-6
    if alpha == 0.0:
        for deviation, geometry in zip(found.deviation, GEOMETRIES, strict=False):
            exact = float(noise.initial_noise(task, geometry))
            # Tails like a Gaussian's or lighter: the relative error of a deviation is 1/sqrt(2n).
            assert float(deviation) == pytest.approx(exact, rel=5 / np.sqrt(2 * count))
