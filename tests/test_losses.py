"""The loss, its written-out gradient and its expectation, against independent derivations."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from scbjax import optim, theory
from scbjax.losses import excess_loss, loss, population_grad, population_loss
from scbjax.model import Params, init_params, map_attention, predict
from scbjax.parameters import Geometry
from scbjax.sampling import Batch, sample_batch
from scbjax.task import Task

Array = np.ndarray[Any, np.dtype[Any]]
Tree = TypeVar("Tree", Params, Batch)

# Programs that run for milliseconds: optimising them costs more than it saves.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
# Of float32 against float64, relative to the largest entry.
TOLERANCE = 1e-5
# Both sides of every switch between algorithms.
SIZES = [2, 3, 20, 40, 300]


@pytest.fixture
def x64() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def make_params(num_tokens: int, length: int, seed: int, dtype: str = "float32") -> Params:
    """V and A off the invariant set."""
    rng = np.random.default_rng([seed, num_tokens, length])
    value = rng.normal(size=(num_tokens, num_tokens)) / num_tokens**0.5
    attention = rng.normal(size=(length, num_tokens)) / length**0.5
    return Params(jnp.asarray(value, dtype), jnp.asarray(attention, dtype))


def make_batch(num_tokens: int, length: int, batch_size: int, seed: int = 0) -> Batch:
    """Tokens, queries and labels far from uniform; some queries repeat, some never come."""
    rng = np.random.default_rng([seed, num_tokens, length, batch_size])
    mu = rng.dirichlet(np.full(num_tokens, 0.7))
    tokens = rng.choice(num_tokens, (batch_size, length), p=mu)
    tokens[0] = num_tokens - 1
    query, label = rng.choice(num_tokens, (2, batch_size), p=mu)
    query[: batch_size // 3] = num_tokens - 1
    kind = jnp.uint8 if num_tokens <= 256 else jnp.uint16
    return Batch(*map(jnp.asarray, (tokens.astype(kind), query.astype("i4"), label.astype("i4"))))


def stack(trees: Sequence[Tree]) -> Tree:
    stacked: Tree = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    return stacked


def naive_loss(params: Params, batch: Batch) -> jax.Array:
    """Eq. 3 with the one-hot tensor written out, for JAX to differentiate."""
    one_hot = functools.partial(
        jax.nn.one_hot, num_classes=params.value.shape[0], dtype=params.value.dtype
    )
    output = jnp.einsum(
        "nm,btm,tk,bk->bn",
        params.value,
        one_hot(batch.tokens),
        params.attention,
        one_hot(batch.query),
        precision="highest",
    )
    return 0.5 * jnp.mean(jnp.sum((one_hot(batch.label) - output) ** 2, axis=1))


def check_close(got: Params, expected: Params, tolerance: float = TOLERANCE) -> None:
    for name, array, reference in zip(Params._fields, got, expected, strict=True):
        scale = float(np.abs(reference).max())
        assert scale > 0
        np.testing.assert_allclose(array, reference, rtol=0, atol=tolerance * scale, err_msg=name)


# The mini-batch loss


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_tokens", SIZES)
@pytest.mark.parametrize("batch_size", [7, 60])
def test_gradient_is_that_of_the_naive_loss(num_tokens: int, batch_size: int) -> None:
    batch = make_batch(num_tokens, 11, batch_size)
    exact = make_params(num_tokens, 11, 0, "float64")
    params = jax.tree.map(lambda array: array.astype(jnp.float32), exact)
    exact = jax.tree.map(lambda array: array.astype(jnp.float64), params)
    value, gradient = quick_jit(jax.value_and_grad(loss))(params, batch)
    expected, reference = quick_jit(jax.value_and_grad(naive_loss))(exact, batch)
    assert value.dtype == gradient.value.dtype == gradient.attention.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=TOLERANCE)
    check_close(gradient, reference)
    np.testing.assert_allclose(quick_jit(loss)(params, batch), expected, rtol=TOLERANCE)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_tokens", [3, 20])
def test_gradient_in_double_precision(num_tokens: int) -> None:
    batch, params = make_batch(num_tokens, 5, 30), make_params(num_tokens, 5, 1, "float64")
    gradient = quick_jit(jax.grad(loss))(params, batch)
    assert gradient.attention.dtype == jnp.float64
    check_close(gradient, quick_jit(jax.grad(naive_loss))(params, batch), 1e-14)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_tokens", [3, 20])
def test_second_derivatives_are_those_of_the_naive_loss(num_tokens: int) -> None:
    batch, params = make_batch(num_tokens, 5, 30), make_params(num_tokens, 5, 1, "float64")
    direction = make_params(num_tokens, 5, 2, "float64")

    def along(function: Any) -> Params:  # noqa: ANN401 - a loss
        gradient = jax.grad(lambda params: function(params, batch))
        found: Params = jax.jvp(gradient, (params,), (direction,))[1]
        return found

    check_close(along(loss), along(naive_loss), 1e-13)
    if num_tokens == 3:
        both = [jax.hessian(f)(params, batch) for f in (loss, naive_loss)]
        for found, expected in zip(*map(jax.tree.leaves, both), strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def softmax_loss(params: Params, batch: Batch) -> jax.Array:
    return loss(map_attention(params, "softmax"), batch)


def naive_softmax_loss(params: Params, batch: Batch) -> jax.Array:
    weights = jnp.exp(params.attention)
    attention = weights / jnp.sum(weights, axis=0, keepdims=True)
    return naive_loss(params._replace(attention=attention), batch)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_tokens", [3, 20])
def test_gradient_in_the_logits_of_softmax(num_tokens: int) -> None:
    batch, exact = make_batch(num_tokens, 11, 30), make_params(num_tokens, 11, 2, "float64")
    exact = exact._replace(attention=5.0 * exact.attention)
    gradient = quick_jit(jax.grad(softmax_loss))(exact, batch)
    expected = quick_jit(jax.grad(naive_softmax_loss))(exact, batch)
    check_close(gradient, expected, 1e-13)
    single = jax.tree.map(lambda array: array.astype(jnp.float32), exact)
    check_close(quick_jit(jax.grad(softmax_loss))(single, batch), expected)


@pytest.mark.usefixtures("x64")
def test_gradient_in_the_logits_under_vmap_over_learners() -> None:
    batch = make_batch(5, 11, 30)
    learners = [make_params(5, 11, seed, "float64") for seed in range(3)]
    found = quick_jit(jax.vmap(jax.grad(softmax_loss), (0, None)))(stack(learners), batch)
    reference = quick_jit(jax.grad(naive_softmax_loss))
    check_close(found, stack([reference(params, batch) for params in learners]), 1e-13)


def by_chain_rule(function: Callable[[Params, Batch], jax.Array]) -> Callable[..., Params]:
    """A gradient that comes from above with a factor, and from two uses of the loss."""

    def objective(params: Params, batch: Batch) -> jax.Array:
        moved = Params(2.0 * params.value, params.attention + 0.1)
        total: jax.Array = jnp.exp(3.0 * function(params, batch)) - function(moved, batch)
        return total

    return jax.grad(objective)


def in_scan(function: Callable[[Params, Batch], jax.Array]) -> Callable[..., Params]:
    """Plain gradient descent for a few steps, one sample left out of each."""

    def descend(params: Params, batch: Batch) -> Params:
        def body(params: Params, shift: jax.Array) -> tuple[Params, jax.Array]:
            rolled = jax.tree.map(lambda array: jnp.roll(array, shift, axis=0)[1:], batch)
            value, gradient = jax.value_and_grad(function)(params, rolled)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), value

        return jax.lax.scan(body, params, jnp.arange(4))[0]

    return descend


def with_remat(function: Callable[[Params, Batch], jax.Array]) -> Callable[..., Params]:
    """The gradient through two descent steps whose losses are recomputed (jax.checkpoint)."""

    def objective(params: Params, batch: Batch) -> jax.Array:
        once: Callable[[Params, Batch], jax.Array] = jax.checkpoint(function)
        return once(params, batch) + once(jax.tree.map(lambda p: 0.5 * p, params), batch)

    return jax.grad(objective)


def over_scanned_batches(function: Callable[[Params, Batch], jax.Array]) -> Callable[..., Params]:
    """The gradient of a sum of losses over a scan, with a checkpointed body."""

    def objective(params: Params, batch: Batch) -> jax.Array:
        def body(total: jax.Array, sample: Batch) -> tuple[jax.Array, None]:
            one = jax.tree.map(lambda array: array[None], sample)
            return total + function(params, one), None

        start = jnp.zeros((), params.value.dtype)
        total: jax.Array = jax.lax.scan(jax.checkpoint(body), start, batch)[0]
        return total

    return jax.grad(objective)


@pytest.mark.parametrize("num_tokens", [3, 20])
@pytest.mark.parametrize("use", [by_chain_rule, in_scan, with_remat, over_scanned_batches])
def test_gradient_under_transformations(
    use: Callable[[Callable[[Params, Batch], jax.Array]], Callable[..., Params]], num_tokens: int
) -> None:
    batch, params = make_batch(num_tokens, 6, 12), make_params(num_tokens, 6, 2)
    got = quick_jit(use(loss))(params, batch)
    check_close(got, quick_jit(use(naive_loss))(params, batch))


@pytest.mark.parametrize("num_tokens", [3, 20])
@pytest.mark.parametrize("in_axes", [(0, 0), (0, None), (None, 0)])
def test_gradient_under_vmap(num_tokens: int, in_axes: tuple[int | None, int | None]) -> None:
    params = [make_params(num_tokens, 6, seed if in_axes[0] == 0 else 0) for seed in range(3)]
    batches = [make_batch(num_tokens, 6, 8, seed if in_axes[1] == 0 else 0) for seed in range(3)]
    many_params = stack(params) if in_axes[0] == 0 else params[0]
    many_batches = stack(batches) if in_axes[1] == 0 else batches[0]
    mapped = jax.vmap(jax.value_and_grad(loss), in_axes=in_axes)
    values, gradients = quick_jit(mapped)(many_params, many_batches)
    reference = quick_jit(jax.value_and_grad(naive_loss))
    for index in range(3):
        value, gradient = reference(params[index], batches[index])
        np.testing.assert_allclose(values[index], value, rtol=TOLERANCE)
        check_close(Params(*(array[index] for array in gradients)), gradient)


def shapes_in(jaxpr: Any) -> Iterator[tuple[int, ...]]:  # noqa: ANN401 - jaxprs are untyped
    """Shapes of all values in a jaxpr and the jaxprs nested in it."""
    for equation in jaxpr.eqns:
        for variable in (*equation.invars, *equation.outvars):
            yield tuple(variable.aval.shape)
        for parameter in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from shapes_in(inner)


@pytest.mark.parametrize("num_tokens", [2, 3, 4, 5, 20, 40, 300])
def test_the_one_hot_tensor_is_never_formed(num_tokens: int) -> None:
    length, batch_size = 23, 19
    batch, params = make_batch(num_tokens, length, batch_size), make_params(num_tokens, length, 0)

    def forward(params: Params, batch: Batch) -> jax.Array:
        return predict(params, batch.tokens, batch.query)

    def largest(function: Callable[[Params, Batch], Any]) -> int:
        jaxpr = jax.make_jaxpr(function)(params, batch).jaxpr
        return max(int(np.prod(shape)) for shape in shapes_in(jaxpr))

    tensor = batch_size * length * num_tokens
    for function in (forward, loss, jax.grad(loss), jax.value_and_grad(loss)):
        assert largest(function) < tensor
        assert largest(jax.jit(function)) < tensor
    assert largest(naive_loss) >= tensor  # the search does find one


# The expectation

TINY = [(2, 3), (3, 2)]


def make_task(num_tokens: int, length: int, dtype: str = "float64", seed: int = 0) -> Task:
    """mu far from uniform; Q with a zero in every column."""
    rng = np.random.default_rng([seed, num_tokens, length])
    p = rng.dirichlet(np.full(num_tokens, 0.4), num_tokens).T * 0.9 + 0.1 / num_tokens
    mu = np.linalg.solve(np.eye(num_tokens) - p + 1, np.ones(num_tokens))
    q = rng.dirichlet(np.ones(length), num_tokens).T
    q[rng.integers(length, size=num_tokens), np.arange(num_tokens)] = 0
    return Task(*(jnp.asarray(array, dtype) for array in (p, mu, q / q.sum(axis=0))))


def enumerate_law(task: Task) -> Iterator[tuple[float, Array, int, Array]]:
    """Probability, one-hot context X [N, T], query and law of the label, for every outcome."""
    p, mu, q = (np.asarray(array) for array in task)
    size, length = len(mu), len(q)
    for context in itertools.product(range(size), repeat=length):
        one_hot = np.eye(size)[:, list(context)]
        for query in range(size):
            chance = float(np.prod(mu[list(context)]) * mu[query])
            yield chance, one_hot, query, p @ one_hot @ q[:, query]


def enumerated(params: Params, task: Task) -> tuple[float, Params, float]:
    """Expected loss, its gradient, and ``1/2 E |V X a - P X q|^2``, outcome by outcome."""
    v, a = (np.asarray(array) for array in params)
    total, excess = 0.0, 0.0
    grad_v, grad_a = np.zeros_like(v), np.zeros_like(a)
    for chance, one_hot, query, law in enumerate_law(task):
        attended = one_hot @ a[:, query]
        output = v @ attended
        excess += 0.5 * chance * float(np.sum((output - law) ** 2))
        for label, share in enumerate(law):
            error = output - np.eye(len(law))[label]
            total += 0.5 * chance * share * float(error @ error)
            grad_v += chance * share * np.outer(error, attended)
            grad_a[:, query] += chance * share * one_hot.T @ v.T @ error
    return total, Params(jnp.asarray(grad_v), jnp.asarray(grad_a)), excess


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("num_tokens", "length"), TINY)
def test_expectations_are_those_of_the_enumeration(num_tokens: int, length: int) -> None:
    task = make_task(num_tokens, length)
    truth = Params(task.transition, task.pattern)
    starts = [make_params(num_tokens, length, seed, "float64") for seed in range(4)]
    for params in (*starts, init_params(task), truth):
        total, gradient, excess = enumerated(params, task)
        assert float(quick_jit(population_loss)(params, task)) == pytest.approx(total, rel=1e-13)
        got = quick_jit(population_grad)(params, task)
        for array, reference in zip(got, gradient, strict=True):
            np.testing.assert_allclose(array, reference, atol=1e-14)
        value = float(quick_jit(excess_loss)(params, task))
        assert value == pytest.approx(excess, rel=1e-12, abs=1e-16)
        floor = float(quick_jit(population_loss)(truth, task))
        assert value == pytest.approx(total - floor, rel=1e-12, abs=1e-15)
    assert float(quick_jit(excess_loss)(truth, task)) == 0.0


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("num_tokens", "length"), [*TINY, (20, 7), (7, 30)])
def test_population_grad_is_the_gradient_of_the_losses(num_tokens: int, length: int) -> None:
    task, params = make_task(num_tokens, length), make_params(num_tokens, length, 1, "float64")
    got = quick_jit(population_grad)(params, task)
    check_close(got, quick_jit(jax.grad(population_loss))(params, task), 1e-13)
    check_close(got, quick_jit(jax.grad(excess_loss))(params, task), 1e-13)


@pytest.mark.usefixtures("x64")
def test_excess_loss_is_accurate_near_the_truth_in_single_precision() -> None:
    task = make_task(5, 50)
    rng = np.random.default_rng(3)
    near = Params(
        task.transition + 1e-5 * rng.normal(size=(5, 5)),
        task.pattern + 1e-6 * rng.normal(size=(50, 5)),
    )
    # Rounded to float32 first: the error that is measured is that of the formula alone.
    task, near = jax.tree.map(lambda array: array.astype(jnp.float32), (task, near))
    wide_task, wide = jax.tree.map(lambda array: array.astype(jnp.float64), (task, near))
    exact = float(quick_jit(excess_loss)(wide, wide_task))
    got = quick_jit(excess_loss)(near, task)
    assert got.dtype == jnp.float32
    assert exact < 1e-9
    assert float(got) == pytest.approx(exact, rel=1e-4)
    truth = Params(task.transition, task.pattern)
    difference = quick_jit(population_loss)(near, task) - quick_jit(population_loss)(truth, task)
    assert abs(float(difference) - exact) > 0.1 * exact  # the plain difference is all rounding


@pytest.mark.parametrize("num_tokens", [3, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("invariant", [True, False])
def test_mean_of_mini_batch_gradients_is_the_population_gradient(
    num_tokens: int, invariant: bool
) -> None:
    """Entry by entry and jointly, over 10^4 mini-batches."""
    count, batch_size, length = 10_000, 8, 5
    task = make_task(num_tokens, length, "float32")
    params = make_params(num_tokens, length, 4)
    if invariant:
        params = Params(*(0.1 * p + q for p, q in zip(params, init_params(task), strict=True)))
        params = to_invariant(params, task)

    def flatten(gradient: Params) -> jax.Array:
        return jnp.concatenate([gradient.value.ravel(), gradient.attention.ravel()])

    @jax.jit
    def gradients(keys: jax.Array) -> jax.Array:
        def draw(key: jax.Array) -> jax.Array:
            return flatten(jax.grad(loss)(params, sample_batch(key, task, batch_size)))

        found: jax.Array = jax.lax.map(draw, keys, batch_size=1000)
        return found

    draws = np.asarray(gradients(jax.random.split(jax.random.key(11), count)), np.float64)
    error = draws.mean(axis=0) - np.asarray(flatten(population_grad(params, task)))
    z = error / (draws.std(axis=0, ddof=1) / count**0.5)
    # With 24 or 500 entries, 0.2% or 3% of fresh keys would fail by chance; this one is fixed.
    assert np.abs(z).max() < 4
    # All entries together, on the directions that vary at all: false alarms 1 in 10^4.
    values, vectors = np.linalg.eigh(np.cov(draws.T))
    varying = values > 1e-6 * values.max()
    statistic = np.sum((error @ vectors[:, varying]) ** 2 / values[varying]) * count
    assert stats.chi2.sf(statistic, int(varying.sum())) > 1e-4
    assert varying.sum() > 0.5 * len(z)


def to_invariant(params: Params, task: Task) -> Params:
    """The nearby V and A with 1^T V = 1^T, V mu = mu and 1^T A = 1^T."""
    v, a = (np.asarray(array, np.float64) for array in params)
    mu = np.asarray(task.stationary, np.float64)
    v = v - mu[:, None]
    v = v - v.mean(axis=0)
    v = v - np.outer(v @ mu, np.ones(len(mu))) + mu[:, None]
    a = a + (1 - a.sum(axis=0)) / len(a)
    return Params(*(jnp.asarray(array, params.value.dtype) for array in (v, a)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("geometry", optim.GEOMETRIES)
def test_preconditioned_expectation_is_lemma_b8(geometry: Geometry) -> None:
    """On the invariant set; off it the lemma fails, so that the test can."""
    task = make_task(5, 7)
    raw = make_params(5, 7, 5, "float64")
    optimizer = optim.scb_sgd(task.stationary, 1.0, 1.0, geometry=geometry)

    @quick_jit
    def directions(params: Params) -> tuple[Params, Params]:
        gradient = population_grad(params, task)
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        return jax.tree.map(jnp.negative, updates), theory.expected_direction(params, task)

    for seed in range(3):
        noisy = jax.tree.map(lambda p, s=seed: p * (s + 1), raw)
        params = to_invariant(noisy, task)
        preconditioned, expected = directions(params)
        check_close(preconditioned, expected, 1e-13)
        np.testing.assert_allclose(expected.value @ task.stationary, 0, atol=1e-13)
    preconditioned, expected = directions(raw)
    assert np.abs(preconditioned.value - expected.value).max() > 1e-3


@pytest.mark.usefixtures("x64")
def test_one_over_mu_belongs_to_the_preconditioner_once() -> None:
    """Column k of the raw gradient has mu_k, the probability of its query, once.

    So the lines of Lemma B.8 follow where eq. 4 divides by mu_k, and not where an expectation given
    the query, which has no mu_k left, is divided by it too.
    """
    task = make_task(4, 6)
    mu = np.asarray(task.stationary)
    params = to_invariant(make_params(4, 6, 3, "float64"), task)
    raw = np.asarray(population_grad(params, task).attention)
    tangent = raw - raw.mean(axis=0)
    lemma = np.asarray(theory.expected_direction(params, task).attention)
    np.testing.assert_allclose(tangent / mu, lemma, rtol=1e-11, atol=1e-14)
    assert np.ptp(mu) > 0.05
    assert np.abs(tangent / mu**2 - lemma).max() > 0.5 * np.abs(lemma).max()
