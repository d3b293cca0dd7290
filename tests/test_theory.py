"""The population recursion and the one-step identities, against direct computation."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scbjax import optim, theory
from scbjax.losses import loss, population_grad
from scbjax.model import Params
from scbjax.parameters import Geometry
from scbjax.sampling import sample_batch
from scbjax.task import Task
from scbjax.theory import Rates, StepPrediction

Array = np.ndarray[Any, np.dtype[Any]]

# These programs run for milliseconds: optimising them costs more than it saves.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
N, T = 4, 9


@pytest.fixture
def x64() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def inner(a: Array, b: Array, mu: Array) -> float:
    return float(np.trace(a @ np.diag(mu) @ b.T))


class Truth(NamedTuple):
    """A task in float64 NumPy."""

    p: Array
    mu: Array
    q: Array

    @property
    def k_p(self) -> float:
        return inner(self.p, self.p, self.mu) - float(self.mu @ self.mu)

    @property
    def k_q(self) -> float:
        return inner(self.q, self.q, self.mu) - 1 / len(self.q)

    def task(self, dtype: jax.typing.DTypeLike) -> Task:
        return Task(*(jnp.asarray(array, dtype) for array in self))


def make_truth(seed: int = 0) -> Truth:
    """A task with mu far from uniform."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(N, 0.4), N).T
    mu = np.linalg.solve(np.eye(N) - p + 1, np.ones(N))
    return Truth(p, mu, rng.dirichlet(np.full(T, 0.3), N).T)


def invariant_params(truth: Truth, seed: int, scale: float = 0.3) -> tuple[Array, Array]:
    """Random V and A with 1^T V = 1^T, V mu = mu and 1^T A = 1^T."""
    rng = np.random.default_rng([7, seed])
    noise = rng.normal(size=(N, N))
    noise -= noise.mean(axis=0)
    noise -= np.outer(noise @ truth.mu, np.ones(N))
    value = truth.mu[:, None] + 0.4 * (truth.p - truth.mu[:, None]) + scale * noise
    extra = rng.normal(size=(T, N))
    extra -= extra.mean(axis=0)
    return value, 1 / T + 0.3 * (truth.q - 1 / T) + scale * extra


# The population path


def numpy_path(rates: Array, k_p: float, k_q: float, length: float) -> Array:
    """Section 4 of the paper, step by step: [steps + 1, 2] from rates [steps, 2]."""
    path = [(0.0, 0.0)]
    for eta_v, eta_a in rates:
        v, a = path[-1]
        path.append(
            (
                v + eta_v * k_q * (1 - a * v) * a + eta_v * (1 - v) / length,
                a + eta_a * k_p * (1 - v * a) * v,
            )
        )
    return np.array(path)


def jax_path(
    rates: Array, k_p: float, k_q: float, length: int, dtype: str
) -> theory.PopulationPath:
    return theory.population_path(
        Rates(*(jnp.asarray(column, dtype) for column in rates.T)),
        transition_signal=k_p,
        pattern_signal=k_q,
        context_length=length,
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-4)])
def test_population_path_is_the_recursion(dtype: str, tolerance: float) -> None:
    rng = np.random.default_rng(0)
    rates = rng.uniform(0.01, 0.05, (600, 2)) / np.array([0.5, 0.3])
    expected = numpy_path(rates, 0.3, 0.5, 100)
    got = jax_path(rates, 0.3, 0.5, 100, dtype)
    assert got.alpha_value.dtype == got.alpha_attention.dtype == np.dtype(dtype)
    np.testing.assert_allclose(np.stack(got, axis=1), expected, rtol=tolerance, atol=0)
    assert expected[-1].min() > 0.9  # the path has left its linear part
    assert abs(np.diff(expected[200])).max() > 0.01  # and the two signals differ on it


@pytest.mark.usefixtures("x64")
def test_start_of_the_path_is_a_pair_of_hyperbolic_functions() -> None:
    # Far below alpha = 1 the recursion is linear: with eta_V = eta / K_Q and eta_A = eta / K_P,
    # alpha_V' = alpha_V + eta (alpha_A + 1 / (T K_Q)) and alpha_A' = alpha_A + eta alpha_V, whose
    # solution is sinh(eta t) / (T K_Q) and (cosh(eta t) - 1) / (T K_Q), up to O(eta^2 t).
    eta, steps, length, k_p, k_q = 1e-4, 40_000, 10**9, 0.4, 0.6
    rates = np.tile([eta / k_q, eta / k_p], (steps, 1))
    path = jax_path(rates, k_p, k_q, length, "float64")
    time = eta * np.arange(steps + 1)
    scale = 1 / (length * k_q)
    np.testing.assert_allclose(path.alpha_value, np.sinh(time) * scale, rtol=1e-3)
    np.testing.assert_allclose(
        path.alpha_attention[100:], (np.cosh(time[100:]) - 1) * scale, rtol=1e-3 + eta / time[100]
    )
    # With (1 +- eta)^t for the exponentials it is exact.
    powers = (1 + eta) ** np.arange(steps + 1), (1 - eta) ** np.arange(steps + 1)
    np.testing.assert_allclose(path.alpha_value, (powers[0] - powers[1]) / 2 * scale, rtol=1e-6)
    np.testing.assert_allclose(
        path.alpha_attention, (powers[0] + powers[1] - 2) / 2 * scale, rtol=1e-6, atol=1e-20
    )


@pytest.mark.usefixtures("x64")
def test_the_truth_is_the_fixed_point() -> None:
    one = jnp.ones(())
    after = theory.population_step(
        one, one, Rates(one, one), transition_signal=0.3, pattern_signal=0.7, context_length=5
    )
    assert [float(alpha) for alpha in after] == [1.0, 1.0]


# The projection on the path


@pytest.mark.usefixtures("x64")
def test_projection_is_orthogonal_and_complete() -> None:
    truth = make_truth()
    task = truth.task(jnp.float64)
    project = quick_jit(theory.project_on_path)
    for seed in range(5):
        value, attention = invariant_params(truth, seed)
        at = project(Params(jnp.asarray(value), jnp.asarray(attention)), task)
        d_v, d_a = np.asarray(at.delta_value), np.asarray(at.delta_attention)
        trivial = np.tile(truth.mu[:, None], N)
        for direction in (truth.p, trivial):
            assert inner(d_v, direction, truth.mu) == pytest.approx(0, abs=1e-14)
        for direction in (truth.q, np.ones((T, N))):
            assert inner(d_a, direction, truth.mu) == pytest.approx(0, abs=1e-14)
        alpha_v, alpha_a = float(at.alpha_value), float(at.alpha_attention)
        np.testing.assert_allclose(
            alpha_v * truth.p + (1 - alpha_v) * trivial + d_v, value, atol=1e-14
        )
        np.testing.assert_allclose(
            alpha_a * truth.q + (1 - alpha_a) / T + d_a, attention, atol=1e-14
        )
        # The same numbers from weighted least squares on the direction of the path.
        weights = np.sqrt(truth.mu)
        for alpha, array, end, start in (
            (alpha_v, value, truth.p, trivial),
            (alpha_a, attention, truth.q, np.full((T, N), 1 / T)),
        ):
            design = ((end - start) * weights).reshape(-1, 1)
            solution = np.linalg.lstsq(design, ((array - start) * weights).ravel(), rcond=None)[0]
            assert alpha == pytest.approx(solution[0], rel=1e-12)


@pytest.mark.usefixtures("x64")
def test_points_of_the_path_are_found_again() -> None:
    task = make_truth().task(jnp.float64)
    for alphas in ((0.0, 0.0), (1.0, 1.0), (0.3, -0.7), (1.4, 0.1)):
        point = theory.path_point(jnp.asarray(alphas[0]), jnp.asarray(alphas[1]), task)
        at = theory.project_on_path(point, task)
        np.testing.assert_allclose(at[:2], alphas, atol=1e-14)
        np.testing.assert_allclose(at.delta_value, 0, atol=1e-14)
        np.testing.assert_allclose(at.delta_attention, 0, atol=1e-14)
        np.testing.assert_allclose(theory.signals(point, task), alphas, atol=1e-14)


def test_a_task_without_signal_has_signal_zero() -> None:
    mu = jnp.array([0.2, 0.8])
    task = Task(jnp.broadcast_to(mu[:, None], (2, 2)), mu, jnp.full((3, 2), 1 / 3))
    params = Params(jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[1.0, 0.0]] * 3))
    assert [float(alpha) for alpha in theory.signals(params, task)] == [0.0, 0.0]


# The one-step identities (Lemmas C.5 and C.6)

SEEDS = 6
RATES = (0.7, 0.4)


class Step(NamedTuple):
    """A mini-batch step without l1: what was predicted, what came of it, and the noise."""

    predicted: StepPrediction
    actual: StepPrediction
    before: theory.PathProjection
    noise: Params


def measure(params: Params, task: Task) -> StepPrediction:
    at = theory.project_on_path(params, task)
    return StepPrediction(
        at.alpha_value,
        at.alpha_attention,
        jnp.sum(jnp.sum(at.delta_value**2, axis=0) * task.stationary),
        jnp.sum(jnp.sum(at.delta_attention**2, axis=0) * task.stationary),
    )


def take_step(key: jax.Array, params: Params, task: Task, geometry: Geometry) -> Step:
    gradient = jax.grad(loss)(params, sample_batch(key, task, 8))
    optimizer = optim.scb_sgd(task.stationary, *RATES, geometry=geometry)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    after = jax.tree.map(jnp.add, params, updates)
    expected = theory.expected_direction(params, task)
    noise = Params(
        -updates.value / RATES[0] - expected.value,
        -updates.attention / RATES[1] - expected.attention,
    )
    rates = Rates(*(jnp.asarray(rate, params.value.dtype) for rate in RATES))
    predicted = theory.predict_step(params, task, noise, rates)
    return Step(predicted, measure(after, task), theory.project_on_path(params, task), noise)


@functools.cache
def stepping(geometry: Geometry) -> Any:  # noqa: ANN401 - a compiled function
    return quick_jit(
        jax.vmap(functools.partial(take_step, geometry=geometry), in_axes=(0, 0, None))
    )


def run_steps(geometry: Geometry, dtype: jax.typing.DTypeLike) -> tuple[Step, Truth]:
    truth = make_truth(1)
    starts = [invariant_params(truth, seed) for seed in range(SEEDS)]
    params = Params(*(jnp.asarray(np.stack(part), dtype) for part in zip(*starts, strict=True)))
    keys = jax.random.split(jax.random.key(5), SEEDS)
    step: Step = stepping(geometry)(keys, params, truth.task(dtype))
    return step, truth


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("geometry", optim.GEOMETRIES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float64", 1e-13), pytest.param("float32", 1e-5, marks=pytest.mark.slow)],
)
def test_one_step_identities_hold_for_mini_batches(
    geometry: Geometry, dtype: str, tolerance: float
) -> None:
    step, _ = run_steps(geometry, dtype)
    for name, predicted, actual in zip(
        StepPrediction._fields, step.predicted, step.actual, strict=True
    ):
        assert predicted.dtype == np.dtype(dtype)
        scale = np.abs(actual).max()
        np.testing.assert_allclose(predicted, actual, atol=tolerance * scale, err_msg=name)
    # The noise is no trifle: without it the prediction would be far off.
    assert np.abs(np.asarray(step.noise.value)).max() > 0.1
    assert np.abs(np.asarray(step.noise.attention)).max() > 0.1


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("geometry", optim.GEOMETRIES)
def test_the_printed_remainder_of_v_lacks_the_cross_term(geometry: Geometry) -> None:
    step, truth = run_steps(geometry, "float64")
    eta = RATES[0]
    for seed in range(SEEDS):
        delta, noise, delta_a = (
            np.asarray(a[seed])
            for a in (step.before.delta_value, step.noise.value, step.before.delta_attention)
        )
        alpha_a = float(step.before.alpha_attention[seed])
        c = eta * (alpha_a**2 * truth.k_q + 1 / T + inner(delta_a, delta_a, truth.mu))
        printed = (
            (1 - c) ** 2 * inner(delta, delta, truth.mu)
            - eta**2 / truth.k_p * inner(noise, truth.p, truth.mu) ** 2
            + eta**2 * inner(noise, noise, truth.mu)
        )
        cross = -2 * eta * (1 - c) * inner(delta, noise, truth.mu)
        actual = float(step.actual.delta_value[seed])
        assert abs(printed - actual) > 1e-3 * actual
        assert printed + cross == pytest.approx(actual, rel=1e-12)


# The stability bound


def scale(truth: Truth, eta: float, ratio: float, scale_rates: bool) -> Rates:
    """eta_V and eta_A of one eta."""
    sizes = (truth.k_q, truth.k_p) if scale_rates else (1.0, 1.0)
    return Rates(jnp.asarray(eta / sizes[0]), jnp.asarray(eta * ratio / sizes[1]))


def bound_of(truth: Truth, ratio: float, scale_rates: bool) -> float:
    return float(
        theory.stable_rate(
            transition_signal=truth.k_p,
            pattern_signal=truth.k_q,
            context_length=len(truth.q),
            attention_rate_ratio=ratio,
            scale_rates=scale_rates,
        )
    )


@functools.partial(quick_jit, static_argnames="geometry")
def noiseless_step(params: Params, task: Task, rates: Rates, geometry: Geometry) -> Params:
    """Eqs. 4 and 5 with the expected gradient."""
    descent = optim.scb_sgd(task.stationary, *rates, geometry=geometry)
    updates, _ = descent.update(population_grad(params, task), descent.init(params), params)
    return Params(*(param + update for param, update in zip(params, updates, strict=True)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("ratio", "scale_rates", "geometry"),
    [(1.0, True, "mu"), (3.0, True, "paper"), (0.2, False, "mu"), (0.0, True, "mu")],
)
def test_sharpness_is_the_largest_eigenvalue_of_a_step(
    seed: int, ratio: float, scale_rates: bool, geometry: Geometry
) -> None:
    """Of its Jacobian, by differences, in all directions, also those that break the invariants."""
    truth, h = make_truth(seed), 1e-6
    rates, task = scale(truth, 1.0, ratio, scale_rates), truth.task("float64")
    start = np.concatenate([truth.p.ravel(), truth.q.ravel()])

    def move(flat: Array) -> Array:
        value, attention = flat[: N * N].reshape(N, N), flat[N * N :].reshape(T, N)
        params = Params(jnp.asarray(value), jnp.asarray(attention))
        moved = noiseless_step(params, task, rates, geometry)
        return np.concatenate([np.ravel(leaf) for leaf in moved])

    columns = [(move(start + h * e) - move(start - h * e)) / (2 * h) for e in np.eye(len(start))]
    eigenvalues = np.linalg.eigvals(np.eye(len(start)) - np.array(columns).T)
    assert abs(eigenvalues.imag).max() < 1e-4  # of an eigenvalue 0 that comes many times
    assert eigenvalues.real.min() > -1e-4
    found = theory.sharpness(
        rates, transition_signal=truth.k_p, pattern_signal=truth.k_q, context_length=T
    )
    assert float(found) == pytest.approx(eigenvalues.real.max(), rel=1e-6)
    assert 2 / bound_of(truth, ratio, scale_rates) == pytest.approx(float(found), rel=1e-12)


def distance_after(truth: Truth, rates: Rates, steps: int) -> float:
    """From the truth, of noiseless steps that begin near it."""
    rng, mu, task = np.random.default_rng(1), truth.mu, truth.task("float64")
    value, attention = rng.normal(size=(N, N)), rng.normal(size=(T, N))
    value -= value.mean(axis=0)
    value -= np.outer(value @ mu, np.ones(N))
    attention -= attention.mean(axis=0)
    params = Params(jnp.asarray(truth.p + 1e-3 * value), jnp.asarray(truth.q + 1e-3 * attention))
    for _ in range(steps):
        params = noiseless_step(params, task, rates, "mu")
    errors = params.value - truth.p, params.attention - truth.q
    return float(np.sqrt(sum(inner(np.asarray(error), np.asarray(error), mu) for error in errors)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale_rates", [True, False])
def test_steps_settle_at_the_truth_below_the_bound_only(seed: int, scale_rates: bool) -> None:
    truth = make_truth(seed)
    bound = bound_of(truth, 1.0, scale_rates)

    def after(share: float) -> float:
        return distance_after(truth, scale(truth, share * bound, 1.0, scale_rates), 400)

    assert after(0.95) < 1e-7
    assert after(1.05) > 0.01  # they go around the truth
    assert not after(2.0) < 0.01
    assert not (scale_rates and np.isfinite(after(2.0)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("length", [20, 5000])
def test_the_recursion_from_the_start_settles_below_the_bound_only(length: int) -> None:
    bound = float(
        theory.stable_rate(transition_signal=0.3, pattern_signal=0.45, context_length=length)
    )

    def last(share: float) -> Array:
        rates = np.full((3000, 2), share * bound) / np.array([0.45, 0.3])
        path = jax_path(rates, 0.3, 0.45, length, "float64")
        return np.array([path.alpha_value[-1], path.alpha_attention[-1]])

    np.testing.assert_allclose(last(0.95), 1, atol=0.01)
    assert abs(last(1.05) - 1).max() > 0.03
    assert not np.isfinite(last(2.0)).any()
