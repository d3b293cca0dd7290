"""Random, related and user-made tasks: what Assumption 2.1 asks for, on many draws."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import ArrayLike
from scipy import stats

from scbjax import task as tasks
from scbjax.assumptions import check_task, task_from_arrays
from scbjax.task import Task, random_task, related_task

Array = np.ndarray[Any, np.dtype[Any]]

DRAWS = 200
LENGTH = 40
SIZES: dict[str, Any] = {"num_tokens": 3, "context_length": 5, "sparsity": 2}
# An entry is the result of some ten float32 operations on numbers of its own size; sums over a
# column add a few units in the last place.
ROUNDING = 2e-6
# False alarms of a statistical test: one in a million runs (and the keys are fixed).
FALSE_ALARM = 1e-6


# These programs run for milliseconds: optimising them costs more than it saves.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def numpy_task(task: Task) -> tuple[Array, Array, Array]:
    p, mu, q = (np.asarray(array, np.float64) for array in task)
    return p, mu, q


def signal(p: Array, mu: Array) -> Array:
    """K_P of a batch of transition matrices, by its definition as a trace."""
    diagonal = mu[..., None] * np.eye(mu.shape[-1])
    square = np.trace(p @ diagonal @ np.swapaxes(p, -1, -2), axis1=-2, axis2=-1)
    return np.asarray(square - np.sum(mu**2, axis=-1))


@functools.cache
def drawing(num_tokens: int) -> Callable[..., Task]:
    """One compiled program for many tasks, each with its own sparsity and skew."""

    def draw(key: jax.Array, sparsity: jax.Array, skew: jax.Array) -> Task:
        return random_task(
            key, num_tokens=num_tokens, context_length=LENGTH, sparsity=sparsity, skew=skew
        )

    return quick_jit(jax.vmap(draw))


def draw_many(
    num_tokens: int, seed: int, sparsity: ArrayLike, skew: ArrayLike
) -> tuple[Array, Array, Array]:
    """P, mu and Q of many random tasks."""
    batch = drawing(num_tokens)(
        jax.random.split(jax.random.key(seed), DRAWS),
        jnp.asarray(np.broadcast_to(sparsity, DRAWS), jnp.int32),
        jnp.asarray(np.broadcast_to(skew, DRAWS), jnp.float32),
    )
    return numpy_task(batch)


@functools.cache
def draw_with_signal(num_tokens: int) -> Callable[..., Task]:
    def draw(key: jax.Array, wanted: jax.Array) -> Task:
        return random_task(
            key, num_tokens=num_tokens, context_length=5, sparsity=1, transition_signal=wanted
        )

    return quick_jit(jax.vmap(draw))


@pytest.fixture
def x64() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="module")
def task() -> Task:
    rng = np.random.default_rng(3)
    return task_from_arrays(rng.dirichlet(np.ones(4), 4).T, rng.dirichlet(np.full(20, 0.1), 4).T)


# Random tasks


@pytest.mark.parametrize("num_tokens", [3, 5, pytest.param(20, marks=pytest.mark.slow)])
def test_random_tasks_meet_the_assumption(num_tokens: int) -> None:
    skew = 2.0
    sparsity = np.arange(DRAWS) % 9 + 1
    p, mu, q = draw_many(num_tokens, 0, sparsity, skew)
    assert p.shape == (DRAWS, num_tokens, num_tokens)
    assert q.shape == (DRAWS, LENGTH, num_tokens)
    assert p.min() >= 0
    assert q.min() >= 0
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=ROUNDING)
    np.testing.assert_allclose(q.sum(axis=1), 1, atol=ROUNDING)
    np.testing.assert_allclose(mu.sum(axis=1), 1, atol=ROUNDING)
    np.testing.assert_allclose(np.einsum("anm,am->an", p, mu), mu, atol=ROUNDING)
    assert np.array_equal((q > 0).sum(axis=1), np.tile(sparsity[:, None], num_tokens))
    norm = np.sum(mu**2, axis=1)
    assert np.all(signal(p, mu) >= norm)
    np.testing.assert_allclose(signal(p, mu), 1.1 * norm, rtol=1e-4)
    slack = 1 + ROUNDING
    assert mu.min() >= 1 / (skew * num_tokens) / slack
    assert mu.max() <= skew / num_tokens * slack
    weights = np.where(q > 0, q * sparsity[:, None, None], 1.0)
    assert weights.min() >= 1 / skew / slack
    assert weights.max() <= skew * slack
    assert np.all(np.abs(mu * num_tokens - 1).max(axis=1) > 0.01)  # not uniform
    assert len(np.unique(p[:, 0, 0])) == DRAWS


@pytest.mark.parametrize("num_tokens", [2, 3, 7])
def test_tasks_that_are_drawn_alone_are_those_of_a_program(num_tokens: int) -> None:
    """Each way to compile rounds in its own way, and none of them may matter."""
    keys = jax.random.split(jax.random.key(9), DRAWS)
    sizes: dict[str, Any] = {
        "num_tokens": num_tokens,
        "context_length": LENGTH,
        "sparsity": 2,
    }
    together = jax.jit(jax.vmap(lambda key: random_task(key, **sizes)))(keys)
    alone = [random_task(key, **sizes) for key in keys]
    for number, task in enumerate(alone):
        np.testing.assert_allclose(task.transition.sum(axis=0), 1.0, atol=ROUNDING)
        np.testing.assert_allclose(
            task.transition @ task.stationary, task.stationary, atol=ROUNDING
        )
        for found, expected in zip(task, together, strict=True):
            np.testing.assert_allclose(found, expected[number], atol=1e-5)
    related = [related_task(keys[0], task, correlation=0.5) for task in alone]
    for task in related:
        np.testing.assert_allclose(task.transition.sum(axis=0), 1.0, atol=ROUNDING)


@pytest.mark.parametrize("num_tokens", [2, 3, 20])
def test_transition_signal_is_what_was_asked_for_or_the_most_that_mu_allows(
    num_tokens: int,
) -> None:
    wanted = np.linspace(-0.1, 1.2, DRAWS)
    keys = jax.random.split(jax.random.key(1), DRAWS)
    p, mu, _ = numpy_task(draw_with_signal(num_tokens)(keys, jnp.asarray(wanted, jnp.float32)))
    ceiling = 0.98 * (1 - np.sum(mu**2, axis=1))
    assert np.sum(wanted > ceiling) > DRAWS / 8  # both sides are visited
    assert np.sum(wanted < ceiling) > DRAWS / 8
    np.testing.assert_allclose(signal(p, mu), np.clip(wanted, 0, ceiling), atol=ROUNDING * 5)
    np.testing.assert_allclose(np.einsum("anm,am->an", p, mu), mu, atol=ROUNDING)


def test_two_tokens_get_the_largest_signal_there_is() -> None:
    p, mu, _ = draw_many(2, 2, 2, 3.0)
    np.testing.assert_allclose(signal(p, mu), 0.98 * (1 - np.sum(mu**2, axis=1)), rtol=1e-4)
    np.testing.assert_allclose(np.einsum("anm,am->an", p, mu), mu, atol=ROUNDING)
    assert mu.min() < 0.2  # nothing but the box holds mu back
    assert mu.min() >= 1 / 6 * (1 - ROUNDING)


def test_skewed_stationary_distributions_leave_room_for_the_signal() -> None:
    p, mu, _ = draw_many(3, 3, 1, 50.0)
    norm = np.sum(mu**2, axis=1)
    assert norm.max() <= 0.45 * (1 + ROUNDING)
    assert np.mean(norm > 0.45 * (1 - ROUNDING)) > 0.05  # the bound is at work
    np.testing.assert_allclose(signal(p, mu), 1.1 * norm, rtol=1e-4)


def test_skew_one_is_uniform() -> None:
    p, mu, q = draw_many(3, 4, 4, 1.0)
    np.testing.assert_allclose(mu, 1 / 3, rtol=ROUNDING)
    np.testing.assert_allclose(q[q > 0], 1 / 4, rtol=ROUNDING)
    np.testing.assert_allclose(p.sum(axis=2), 1, atol=ROUNDING)


def test_traced_skew_bounds_each_task_by_its_own() -> None:
    skew = np.linspace(1.05, 4, DRAWS)
    _, mu, q = draw_many(5, 5, 3, skew)
    spread = np.maximum(mu.max(axis=1) * 5, 1 / (mu.min(axis=1) * 5))
    assert np.all(spread <= skew * (1 + ROUNDING))
    assert np.mean(spread >= skew * 0.99) > 0.5  # the box is what limits most flat draws
    weights = np.where(q > 0, 3 * q, 1.0).reshape(DRAWS, -1)
    spread = np.maximum(weights.max(axis=1), 1 / weights.min(axis=1))
    assert np.all(spread <= skew * (1 + ROUNDING))


def test_a_single_position_is_attended_to_by_every_query() -> None:
    draw = functools.partial(random_task, num_tokens=3, context_length=1, sparsity=1)
    assert np.array_equal(quick_jit(draw)(jax.random.key(6)).pattern, np.ones((1, 3)))


def test_pattern_of_traced_and_concrete_sparsity_is_the_same_and_supports_are_nested() -> None:
    key, length = jax.random.key(7), 12
    levels = range(1, length + 1)

    def draw(sparsity: int | jax.Array, max_sparsity: int | None = None) -> Task:
        return random_task(
            key,
            num_tokens=3,
            context_length=length,
            sparsity=sparsity,
            max_sparsity=max_sparsity,
            transition_signal=0.3,
        )

    # out_axes None holds only if transition and stationary do not depend on the sparsity.
    axes = Task(None, None, 0)  # type: ignore[arg-type]
    p, mu, traced = numpy_task(quick_jit(jax.vmap(draw, out_axes=axes))(jnp.array(levels)))
    bounded = quick_jit(lambda sparsity: draw(sparsity, 5).pattern)(jnp.int32(4))
    np.testing.assert_allclose(bounded, traced[3], rtol=ROUNDING)
    for sparsity in (2, length):
        concrete = quick_jit(functools.partial(draw, sparsity))()
        np.testing.assert_allclose(concrete.pattern, traced[sparsity - 1], rtol=ROUNDING)
        np.testing.assert_allclose(concrete.transition, p, atol=ROUNDING)
        np.testing.assert_allclose(concrete.stationary, mu, atol=ROUNDING)
    support = traced > 0
    assert np.array_equal(support.sum(axis=1), np.tile(np.array(levels)[:, None], 3))
    assert np.all(support[:-1] <= support[1:])


def test_supports_are_uniform_and_independent_between_columns() -> None:
    count, length, sparsity = 2000, 10, 3

    def draw(key: jax.Array) -> jax.Array:
        return random_task(key, num_tokens=3, context_length=length, sparsity=sparsity).pattern

    support = np.asarray(quick_jit(jax.vmap(draw))(jax.random.split(jax.random.key(8), count))) > 0
    share = sparsity / length
    # Sampling without replacement: the covariance of a column's indicators has one eigenvalue,
    # share (1 - share) T / (T - 1), on the complement of the constants.
    scale = count * share * (1 - share) * length / (length - 1)
    for column in range(3):
        hits = support[:, :, column].sum(axis=0)
        statistic = np.sum((hits - count * share) ** 2) / scale
        assert stats.chi2.sf(statistic, length - 1) > FALSE_ALARM
    common = np.sum(support[:, :, 0] & support[:, :, 1], axis=1)
    law = stats.hypergeom(length, sparsity, sparsity)
    expected = count * law.pmf(np.arange(sparsity + 1))
    assert stats.chisquare(np.bincount(common, minlength=4), expected).pvalue > FALSE_ALARM


@pytest.mark.usefixtures("x64")
def test_double_precision_is_kept() -> None:
    draw = functools.partial(random_task, **SIZES, dtype=jnp.float64)
    task = quick_jit(draw)(jax.random.key(9))
    assert {array.dtype.name for array in task} == {"float64"}
    p, mu, q = numpy_task(task)
    np.testing.assert_allclose(p.sum(axis=0), 1, atol=1e-14)
    np.testing.assert_allclose(q.sum(axis=0), 1, atol=1e-14)
    np.testing.assert_allclose(p @ mu, mu, atol=1e-14)
    np.testing.assert_allclose(signal(p, mu), 1.1 * mu @ mu, rtol=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_tokens": 1}, "num_tokens is 1; it must be at least 2"),
        ({"num_tokens": -3}, "num_tokens is -3; it must be at least 2"),
        ({"context_length": 0}, "context_length is 0; it must be at least 1"),
        ({"sparsity": 0}, "sparsity is 0; it must be between 1 and context_length = 5"),
        ({"sparsity": 6}, "sparsity is 6; it must be between 1 and context_length = 5"),
        ({"skew": 0.5}, "skew is 0.5; it must be at least 1"),
        ({"skew": float("nan")}, "skew is nan; it must be at least 1"),
        ({"max_sparsity": 0}, "max_sparsity is 0; it must be between 1 and 5"),
        ({"max_sparsity": 6}, "max_sparsity is 6; it must be between 1 and 5"),
        ({"max_sparsity": 1}, "sparsity is 2; it must be at most max_sparsity = 1"),
    ],
)
def test_sizes_out_of_range_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        random_task(jax.random.key(0), **{**SIZES, **changed})


# Related tasks


def relate(key: jax.Array, task: Task, correlation: jax.Array) -> Task:
    return related_task(key, task, correlation=correlation, transition_signal=0.3)


relating = quick_jit(jax.vmap(relate))


def relate_many(
    keys: jax.Array, transitions: jax.Array, task: Task, correlation: ArrayLike
) -> Task:
    """Related tasks of many tasks that differ in their transition matrix alone."""
    many = jax.tree.map(lambda a: jnp.broadcast_to(a[None], (DRAWS, *a.shape)), task)
    many = many._replace(transition=jnp.broadcast_to(transitions, many.transition.shape))
    related: Task = relating(
        keys, many, jnp.asarray(np.broadcast_to(correlation, DRAWS), jnp.float32)
    )
    return related


def test_related_task_keeps_mu_and_mixes_the_transitions(task: Task) -> None:
    share = np.linspace(0, 1, DRAWS)
    same_key = jnp.broadcast_to(jax.random.key(1), (DRAWS,))
    related = relate_many(same_key, task.transition, task, share)
    p, mu, q = numpy_task(task)
    mixed = np.asarray(related.transition, np.float64)
    assert np.array_equal(related.stationary, np.broadcast_to(mu, (DRAWS, 4)))
    assert np.array_equal(related.pattern, np.broadcast_to(q, (DRAWS, 20, 4)))
    np.testing.assert_allclose(mixed @ mu, np.tile(mu, (DRAWS, 1)), atol=ROUNDING)
    np.testing.assert_allclose(mixed.sum(axis=1), 1, atol=ROUNDING)
    assert np.array_equal(mixed[-1], p)
    expected = share[:, None, None] * p + (1 - share)[:, None, None] * mixed[0]
    np.testing.assert_allclose(mixed, expected, atol=ROUNDING)
    got = signal(mixed, np.tile(mu, (DRAWS, 1)))
    np.testing.assert_allclose(got[0], 0.3, rtol=1e-4)
    # K_P is convex along the mixture, strictly.
    assert np.all(got[1:-1] < (1 - share[1:-1]) * got[0] + share[1:-1] * got[-1])


def test_correlation_zero_is_independent_of_the_first_task(task: Task) -> None:
    keys = jax.random.split(jax.random.key(2), (3, DRAWS))
    first = relate_many(keys[0], task.transition, task, 0.0).transition
    trivial = jnp.broadcast_to(task.stationary[:, None], (4, 4))
    assert np.array_equal(first, relate_many(keys[0], trivial, task, 0.0).transition)
    independent = relate_many(keys[1], first, task, 0.0).transition
    half = relate_many(keys[1], first, task, 0.5).transition
    for row, column in ((0, 0), (1, 2), (3, 0)):
        x, y, z = (np.asarray(p[:, row, column]) for p in (first, independent, half))
        assert stats.ks_2samp(x, y).pvalue > FALSE_ALARM
        assert stats.pearsonr(x, y).pvalue > FALSE_ALARM
        # Half of one and half of another of the same variance: correlation 1 / sqrt(2), here
        # within four standard errors (1 - r^2) / sqrt(n).
        assert abs(stats.pearsonr(x, z).statistic - 0.5**0.5) < 4 * 0.5 / DRAWS**0.5


def test_related_task_with_a_new_pattern_and_the_signal_of_the_first(task: Task) -> None:
    def relate(key: jax.Array) -> tuple[Task, Task]:
        same = related_task(key, task, correlation=1.0, sparsity=5)
        return same, related_task(key, task, correlation=0.0, sparsity=5)

    (same_p, _, same_q), (p, mu, q) = map(numpy_task, quick_jit(relate)(jax.random.key(4)))
    assert np.array_equal(same_p, task.transition)
    assert np.array_equal((q > 0).sum(axis=0), [5] * 4)
    assert np.array_equal(same_q, q)
    np.testing.assert_allclose(signal(p, mu), tasks.transition_signal(task), rtol=1e-4)
    with pytest.raises(ValueError, match=r"^sparsity is 21; it must be between 1 and context_len"):
        related_task(jax.random.key(4), task, correlation=1.0, sparsity=21)


@pytest.mark.parametrize("correlation", [-0.1, 1.5, float("nan")])
def test_correlation_out_of_range_is_refused(task: Task, correlation: float) -> None:
    with pytest.raises(
        ValueError, match=f"^correlation is {correlation}; it must be between 0 and 1$"
    ):
        related_task(jax.random.key(0), task, correlation=correlation)


# A user's own matrices


@pytest.mark.parametrize("size", [2, 3, 17])
def test_stationary_distribution_is_the_perron_vector(size: int) -> None:
    p = np.random.default_rng(size).dirichlet(np.full(size, 0.3), (6, size)).swapaxes(1, 2)
    found = jax.vmap(tasks.stationary_distribution)(jnp.asarray(p, jnp.float32))
    for matrix, mu in zip(p, found, strict=True):
        values, vectors = np.linalg.eig(matrix)
        leading = np.real(vectors[:, np.argmax(np.real(values))])
        np.testing.assert_allclose(mu, leading / leading.sum(), rtol=1e-3, atol=1e-5)


def test_task_from_arrays_solves_for_mu_and_normalises() -> None:
    rng = np.random.default_rng(1)
    p, q = rng.dirichlet(np.ones(4), 4).T, rng.dirichlet(np.ones(6), 4).T
    task = task_from_arrays((p * (1 + 5e-5)).astype(np.float32), q)
    values, vectors = np.linalg.eig(p)
    leading = np.real(vectors[:, np.argmax(np.real(values))])
    assert {array.dtype.name for array in task} == {"float32"}
    np.testing.assert_allclose(task.stationary, leading / leading.sum(), rtol=1e-6)
    np.testing.assert_allclose(task.transition, p, rtol=1e-6)
    np.testing.assert_allclose(task.pattern, q, rtol=1e-6)
    assert task.num_tokens == 4
    assert task.context_length == 6


@pytest.mark.usefixtures("x64")
def test_task_from_arrays_keeps_double_precision_if_both_have_it() -> None:
    p, q = np.array([[0.9, 0.2], [0.1, 0.8]]), np.array([[0.3, 1.0], [0.7, 0.0]])
    task = task_from_arrays(p, q)
    assert task.stationary.dtype == np.float64
    np.testing.assert_allclose(task.stationary, [2 / 3, 1 / 3], rtol=1e-15)
    assert task_from_arrays(p, q.astype(np.float32)).stationary.dtype == np.float32


def test_task_from_arrays_takes_a_long_cycle_but_not_a_broken_one() -> None:
    size = 37
    cycle = np.roll(np.eye(size), 1, axis=0)  # periodic, but every token reaches every other
    uniform = np.full((2, size), 0.5)
    np.testing.assert_allclose(task_from_arrays(cycle, uniform).stationary, 1 / size, rtol=1e-5)
    cycle[:, 5] = np.eye(size)[5]  # token 5 is absorbing
    with pytest.raises(ValueError, match=r"^transition is reducible; every token must be"):
        task_from_arrays(cycle, uniform)


GOOD_P, GOOD_Q = [[0.9, 0.2], [0.1, 0.8]], [[0.3, 1.0], [0.7, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("p", "q", "message"),
    [
        ([[0.5, 0.5]], GOOD_Q, r"transition has shape \(1, 2\); it must be square with at least 2"),
        ([[1.0]], [[1.0]], r"transition has shape \(1, 1\); it must be square with at least 2 tok"),
        ([1.0, 0.0], GOOD_Q, r"transition has shape \(2,\); it must be square"),
        (GOOD_P, [[1.0, 0.0, 1.0]], r"pattern has shape \(1, 3\); it must be \[context_length, 2]"),
        (GOOD_P, [1.0, 0.0], r"pattern has shape \(2,\); it must be \[context_length, 2]"),
        (GOOD_P, np.zeros((0, 2)), r"pattern has shape \(0, 2\); it must be \[context_length, 2]"),
        ([[0.9, np.nan], [0.1, 0.8]], GOOD_Q, "transition has an entry that is not finite"),
        (GOOD_P, [[np.inf, 1.0], [0.0, 0.0]], "pattern has an entry that is not finite"),
        (
            [[1.1, 0.2], [-0.1, 0.8]],
            GOOD_Q,
            r"transition\[1, 0] is -0.1; entries must not be negative",
        ),
        (GOOD_P, [[1.0, 1.5], [0, -0.5]], r"pattern\[1, 1] is -0.5; entries must not be negative"),
        (
            [[0.9, 0.2], [0.1, 0.7]],
            GOOD_Q,
            "column 1 of transition sums to 0.9; every column must sum to 1",
        ),
        (GOOD_P, [[1.2, 1.0]], "column 0 of pattern sums to 1.2; every column must sum to 1"),
        (np.eye(2), GOOD_Q, "transition is reducible; every token must be reachable from every"),
    ],
)
def test_task_from_arrays_names_what_is_wrong(p: ArrayLike, q: ArrayLike, message: str) -> None:
    task_from_arrays(np.asarray(GOOD_P), np.asarray(GOOD_Q))
    with pytest.raises(ValueError, match=f"^{message}"):
        task_from_arrays(np.asarray(p), np.asarray(q))


# Norms and the report


def test_norms_are_traces() -> None:
    rng = np.random.default_rng(2)
    mu = rng.dirichlet(np.ones(5))
    a, b = rng.normal(size=(2, 7, 5))
    got = tasks.mu_inner(*(jnp.asarray(x, jnp.float32) for x in (a, b, mu)))
    np.testing.assert_allclose(got, np.trace(a @ np.diag(mu) @ b.T), rtol=1e-5)
    p, q = rng.dirichlet(np.ones(5), 5).T, rng.dirichlet(np.full(9, 0.2), 5).T
    task = Task(*(jnp.asarray(x, jnp.float32) for x in (p, mu, q)))
    p_signal = np.trace(p @ np.diag(mu) @ p.T) - mu @ mu
    np.testing.assert_allclose(tasks.transition_signal(task), p_signal, rtol=1e-5)
    q_signal = np.trace(q @ np.diag(mu) @ q.T) - 1 / 9
    np.testing.assert_allclose(tasks.pattern_signal(task), q_signal, rtol=1e-5)
    np.testing.assert_allclose(tasks.stationary_norm(task), mu @ mu, rtol=1e-6)


def test_pattern_sparsity_is_that_of_the_fullest_column() -> None:
    pattern = jnp.array([[0.5, 1.0], [0.25, 0.0], [0.25, 0.0]])
    task = Task(jnp.eye(2), jnp.array([0.5, 0.5]), pattern)
    assert int(tasks.pattern_sparsity(task)) == 3


def test_report_on_a_hand_made_task() -> None:
    p = np.array([[0.8, 0.4], [0.2, 0.6]])  # mu = (2/3, 1/3)
    q = np.zeros((40, 2))
    q[[3, 7], [0, 0]] = 0.9, 0.1
    q[5, 1] = 1.0
    task = task_from_arrays(p, q)
    report = check_task(task, skew=5.0)
    assert (report.num_tokens, report.context_length, report.sparsity) == (2, 40, 2)
    assert report.skew_stationary == pytest.approx(1.5, rel=1e-6)  # 1 / (2 * 1/3)
    assert report.skew_pattern == pytest.approx(5.0, rel=1e-6)  # 1 / (2 * 0.1)
    k_p = 2 / 3 * (0.64 + 0.04) + 1 / 3 * (0.16 + 0.36) - 5 / 9
    assert report.transition_signal == pytest.approx(k_p, rel=1e-5)
    assert report.stationary_norm == pytest.approx(5 / 9, rel=1e-6)
    assert report.pattern_signal == pytest.approx(2 / 3 * 0.82 + 1 / 3 - 1 / 40, rel=1e-6)
    assert report.column_error < 1e-6
    assert report.stationary_error < 1e-6
    assert (report.sparse, report.balanced, report.nontrivial, report.long) == (
        True,
        True,
        False,
        False,
    )
    assert not check_task(task, skew=4.9).balanced
    lines = str(report).splitlines()
    assert lines[0] == "N = 2, T = 40, Q = 2"
    assert lines[1:] == [
        "(a) holds: Q / T = 0.05",
        "(b) holds: C = 5",
        f"(c) fails: K_P / |mu|^2 = {k_p / (5 / 9):.3g}",
        f"(d) fails: T / (N Q)^10 = {40 / 4**10:.3g}",
    ]


def test_report_measures_what_is_not_a_task() -> None:
    p = np.array([[0.8, 0.4], [0.2, 0.65]])
    task = Task(*(jnp.asarray(x, jnp.float32) for x in (p, [0.5, 0.5], np.full((4, 2), 0.25))))
    report = check_task(task)
    assert report.column_error == pytest.approx(0.05, rel=1e-5)
    assert report.stationary_error == pytest.approx(0.1, rel=1e-5)
    assert not report.sparse


@pytest.mark.parametrize(("context_length", "long"), [(1023, False), (1024, True)])
def test_length_is_judged_against_the_tenth_power(context_length: int, long: bool) -> None:
    q = np.zeros((context_length, 2))
    q[0] = 1
    p = np.array([[0.01, 0.99], [0.99, 0.01]])
    assert check_task(task_from_arrays(p, q)).long is long  # (N Q)^10 = 2^10


def test_nontrivial_is_judged_against_the_norm() -> None:
    mu = np.array([0.5, 0.3, 0.2])
    norm = 0.38
    for ratio, holds in ((0.99, False), (1.01, True)):
        # K_P of a mixture of the identity with the trivial transition is share^2 (1 - |mu|^2).
        share = np.sqrt(ratio * norm / (1 - norm))
        p = share * np.eye(3) + (1 - share) * mu[:, None]
        assert check_task(task_from_arrays(p, np.eye(3))).nontrivial is holds
