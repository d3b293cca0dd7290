"""Sequences: against exact chains, dense linear algebra in float64, SciPy and plain JAX."""

import itertools
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

import scbjax
from scbjax.base import StudyError
from scbjax.experiments import sequences_moments, sequences_task, sequences_theory
from scbjax.experiments.sequences_moments import Moving
from scbjax.experiments.sequences_task import SequenceTask, chain_task
from scbjax.sweep.study.files import load_study

Array = np.ndarray
NUM_TOKENS, CONTEXT = 3, 7


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def random_chain(
    seed: int, slow: float, lags: str = "fixed", context: int = CONTEXT, tokens: int = NUM_TOKENS
) -> SequenceTask:
    drawn = scbjax.random_task(
        jax.random.key(seed),
        num_tokens=tokens,
        context_length=context,
        sparsity=2,
        dtype=jnp.float64,
    )
    return chain_task(drawn, slow, lags)


def numpy_of(task: SequenceTask) -> tuple[Array, Array, Array]:
    return np.asarray(task.transition), np.asarray(task.stationary), np.asarray(task.pattern)


def circular(seed: int, length: int = 400) -> tuple[Array, Array]:
    """A correlated sequence that closes on itself, and its windows [n, T], newest token first."""
    rng = np.random.default_rng(seed)
    tokens = rng.choice(NUM_TOKENS, length, p=[0.5, 0.3, 0.2])
    copied = rng.random(length) < 0.6
    tokens = np.where(copied, np.roll(tokens, 3), tokens)
    return tokens, np.stack([np.roll(tokens, lag) for lag in range(1, CONTEXT + 1)], axis=1)


def found_in(tokens: Array, windows: Array) -> Moving:
    seen = jnp.asarray(np.bincount(tokens, minlength=NUM_TOKENS) * 1.0)
    return sequences_moments.moments(jnp.asarray(counts_of(tokens, windows)), seen)


def counts_of(labels: Array, windows: Array) -> Array:
    counts = np.zeros((windows.shape[1], NUM_TOKENS, NUM_TOKENS))
    for label, window in zip(labels, windows, strict=True):
        counts[np.arange(len(window)), label, window] += 1
    return counts


# ---------------------------------------------------------------------------------------- the chain


@pytest.mark.parametrize("slow", [0.0, 0.15, 0.9])
@pytest.mark.parametrize("tokens", [3, 6])
def test_p_is_stochastic_reversible_keeps_mu_and_has_the_eigenvalue(
    slow: float, tokens: int
) -> None:
    for seed in range(4):
        task = random_chain(seed, slow, tokens=tokens)
        transition, mu, _ = numpy_of(task)
        flow = transition * mu
        assert np.ptp(mu) > 0.05
        np.testing.assert_allclose(flow, flow.T, atol=1e-12)
        np.testing.assert_allclose(transition.sum(axis=0), 1.0)
        assert transition.min() >= -1e-12
        values = np.sort(np.linalg.eigvals(transition).real)
        np.testing.assert_allclose(values[:-1], task.eigenvalues, atol=1e-7)
        assert values[-2] == pytest.approx(slow, abs=1e-7)
        # Modes and eigenvalues are P.
        modes, white = np.asarray(task.modes), np.asarray(task.modes).T / mu
        np.testing.assert_allclose(modes * values[:-1] @ white + mu[:, None], transition, atol=1e-7)


def exact_law(task: SequenceTask) -> tuple[dict[tuple[int, ...], float], Array]:
    """The stationary law of the last three tokens, oldest first, by repeated steps of the chain."""
    transition, _, pattern = numpy_of(task)
    size = len(transition)
    law = np.full((size,) * 3, size**-3.0)
    step = np.zeros((size,) * 4)
    for a, b, c in itertools.product(range(size), repeat=3):
        step[a, b, c] = transition[:, [c, b, a]] @ pattern[:, c]
    for _ in range(2000):
        law = np.einsum("abc,abcd->bcd", law, step)
    return {state: float(law[state]) for state in np.ndindex(law.shape)}, law.sum(axis=(0, 1))


def test_fixed_lags_keep_mu_and_lags_by_query_do_not() -> None:
    distances = []
    for seed in range(4):
        for lags in ("fixed", "query"):
            task = random_chain(seed, 0.8, lags, context=3)
            distances.append(np.abs(exact_law(task)[1] - numpy_of(task)[1]).sum() / 2)
    np.testing.assert_allclose(distances[::2], 0.0, atol=1e-12)
    assert max(distances[1::2]) > 0.005


@pytest.mark.parametrize("lags", ["fixed", "query"])
def test_a_grown_sequence_has_the_law_of_the_chain(lags: str) -> None:
    task, length = random_chain(5, 0.7, lags, context=3), 200_000
    last = jnp.zeros(3, jnp.int32)
    grown = np.asarray(sequences_task.grow(jax.random.key(3), task, last, length, 2))
    exact, single = exact_law(task)
    places, seen = np.arange(3, len(grown)), np.zeros((NUM_TOKENS,) * 4)
    np.add.at(seen, tuple(grown[places - back] for back in (3, 2, 1, 0)), 1)
    frequencies = seen.sum(axis=(0, 1, 2)) / length
    np.testing.assert_allclose(frequencies, single, atol=0.01)
    transition, _, pattern = numpy_of(task)
    for state in exact:
        law = transition[:, list(state[::-1])] @ pattern[:, state[-1]]
        total = seen[state].sum()
        error = np.abs(seen[state] / total - law)
        assert (error < 5 * np.sqrt(law * (1 - law) / total) + 1e-9).all()
    joint = seen.sum(axis=3) / length
    np.testing.assert_allclose(joint.ravel(), list(exact.values()), atol=0.01)


def test_the_shift_of_mu_is_that_of_the_exact_chain_to_first_order() -> None:
    for seed in range(3):
        task, errors = random_chain(seed, 0.6, "query", context=3), []
        mean = task.pattern @ task.stationary
        for part in (0.1, 0.05):
            pattern = part * task.pattern + (1 - part) * mean[:, None]
            own = task._replace(pattern=pattern)
            moved = exact_law(own)[1] - numpy_of(own)[1]
            predicted = np.asarray(
                sequences_theory.shift(sequences_theory.expected(own, "sequence"), own)
            )
            assert np.abs(predicted).max() > 1e-5
            errors.append(np.abs(moved - predicted).max() / part)
        assert errors[1] < 0.6 * errors[0] + 1e-7  # what is left is of second order


# -------------------------------------------------------------------------------------- the moments


def test_counts_by_fourier_transforms_are_those_by_hand() -> None:
    tokens = np.random.default_rng(0).integers(0, NUM_TOKENS, 60)
    windows = np.stack([tokens[i - CONTEXT : i][::-1] for i in range(CONTEXT, 60)])
    expected = counts_of(tokens[CONTEXT:], windows)
    found = sequences_task.lag_counts(jnp.asarray(tokens), CONTEXT, NUM_TOKENS, jnp.float64)
    np.testing.assert_array_equal(found, expected)
    batch = scbjax.Batch(
        jnp.asarray(windows, jnp.uint8), jnp.zeros(53, jnp.int32), jnp.asarray(tokens[CONTEXT:])
    )
    contexts = sequences_task.context_counts(batch, NUM_TOKENS, jnp.float64)
    np.testing.assert_array_equal(contexts, expected)
    # As it is written in plain JAX.
    label, hot = jax.nn.one_hot(tokens[CONTEXT:], 3), jax.nn.one_hot(windows, 3)
    np.testing.assert_array_equal(jnp.einsum("bn,btm->tnm", label, hot), expected)


def test_moments_are_those_of_the_whitened_tokens() -> None:
    tokens, windows = circular(1)
    found = found_in(tokens, windows)
    mean = np.bincount(tokens) / len(tokens)
    white = np.asarray(sequences_task.whitening(jnp.asarray(mean)))
    np.testing.assert_allclose(white @ mean, 0.0, atol=1e-12)
    np.testing.assert_allclose(white * mean @ white.T, np.eye(2), atol=1e-12)
    seen = white.T[tokens]
    np.testing.assert_allclose(found.mean, mean)
    for lag in range(1, CONTEXT + 1):
        whole = seen.T @ white.T[np.roll(tokens, lag)] / len(tokens)
        np.testing.assert_allclose(found.whole[lag - 1], whole, atol=1e-12)


def test_the_autocovariance_of_the_shortest_sequence_is_positive() -> None:
    """Counted block by block, the first tokens with the lags that they have."""
    tokens = np.random.default_rng(4).integers(0, NUM_TOKENS, 36)
    counts = np.zeros((CONTEXT, NUM_TOKENS, NUM_TOKENS))
    whole = np.concatenate([np.zeros(CONTEXT, int), tokens])
    for block in range(0, 36, 4):
        own = jnp.asarray(whole[block : block + CONTEXT + 4])
        counts += np.asarray(
            sequences_task.lag_counts(own, CONTEXT, 3, jnp.float64, CONTEXT - block)
        )
    for lag in range(1, CONTEXT + 1):
        by_hand = np.zeros((NUM_TOKENS, NUM_TOKENS))
        np.add.at(by_hand, (tokens[lag:], tokens[:-lag]), 1)
        np.testing.assert_array_equal(counts[lag - 1], by_hand)
    found = sequences_moments.moments(jnp.asarray(counts), jnp.asarray(np.bincount(tokens) * 1.0))
    rows = jnp.concatenate([jnp.eye(2)[None], found.whole[:-1]])
    assert np.linalg.eigvalsh(sequences_moments._toeplitz(rows)).min() > 0


def test_yule_walker_is_the_regression_on_windows() -> None:
    """On a circle the Gram matrix of the windows is the Toeplitz matrix."""
    tokens, windows = circular(2)
    found = found_in(tokens, windows)
    white = np.asarray(sequences_task.whitening(found.mean)).T
    inputs, labels = white[windows].reshape(len(tokens), -1), white[tokens]
    weights = np.linalg.lstsq(inputs, labels, rcond=None)[0]
    left = np.cov(labels - inputs @ weights, rowvar=False, bias=True)
    inverse = np.linalg.inv(inputs.T @ inputs / len(tokens))
    expected = []
    for lag in range(CONTEXT):
        own = slice(2 * lag, 2 * lag + 2)
        middle = weights[own].T @ np.linalg.inv(inverse[own, own]) @ weights[own]
        expected.append((len(tokens) - 2 * CONTEXT) * np.trace(np.linalg.inv(left) @ middle))
    np.testing.assert_allclose(sequences_moments.yule_walker(found), expected, rtol=1e-8)
    pearson = len(tokens) * np.array([(labels.T @ white[w] / len(tokens)) ** 2 for w in windows.T])
    np.testing.assert_allclose(
        sequences_moments.marginal(found), pearson.sum(axis=(1, 2)), rtol=1e-8
    )


def plain_loss(
    value: jax.Array, attention: jax.Array, tokens: jax.Array, label: jax.Array
) -> jax.Array:
    """One step of stage 1 as it is written in plain JAX: one-hot windows, autodiff."""
    hot = jax.nn.one_hot(tokens, value.shape[0], dtype=value.dtype)  # [B, T, N]
    error = jax.nn.one_hot(label, value.shape[0], dtype=value.dtype) - jnp.einsum(
        "nm,btm,t->bn", value, hot, attention
    )
    return jnp.mean(jnp.sum(error**2, axis=1)) / 2


@pytest.mark.slow
def test_two_steps_are_those_of_gradient_descent() -> None:
    tokens, windows = circular(3)
    found = found_in(tokens, windows)
    half, plain, newton = sequences_moments.two_steps(found)
    mu, label, context = found.mean, jnp.asarray(tokens), jnp.asarray(windows)
    start, uniform = mu[:, None] * jnp.ones((1, 3)), jnp.full(CONTEXT, 1 / CONTEXT)
    gradient = jax.grad(plain_loss)(start, uniform, context, label)
    batch = scbjax.Batch(context.astype(jnp.uint8), jnp.zeros_like(label), label)
    params = scbjax.Params(start, uniform[:, None] * jnp.ones((1, 3)))
    np.testing.assert_allclose(jax.grad(scbjax.loss)(params, batch).value, gradient, atol=1e-10)
    value = half @ sequences_task.whitening(mu)
    step = -gradient / mu[None, :]
    step = step - (step @ mu)[:, None]  # the projector of the mu geometry
    np.testing.assert_allclose(value, step, atol=1e-12)
    small = 1e-6
    there = jax.grad(plain_loss, 1)(start + small * value, uniform, context, label)
    np.testing.assert_allclose(plain, -there / small, rtol=1e-4, atol=1e-9)
    curvature = jax.hessian(plain_loss, 1)(value, uniform, context, label)
    curvature = curvature / jnp.trace(curvature) * CONTEXT
    np.testing.assert_allclose(newton, np.linalg.solve(curvature, plain), rtol=1e-6, atol=1e-12)


# --------------------------------------------------------------------------------- what is expected


def autocorrelation(value: float, weights: Array, count: int) -> Array:
    """Yule-Walker's equations solved for rho(0 .. T), and the recursion from there on."""
    size = len(weights)
    matrix, right = np.eye(size + 1), np.zeros(size + 1)
    right[0] = 1.0
    for lag in range(1, size + 1):
        for h in range(1, size + 1):
            matrix[lag, abs(lag - h)] -= value * weights[h - 1]
    rho = list(np.linalg.solve(matrix, right))
    while len(rho) < count:
        rho.append(value * sum(w * rho[-h] for h, w in enumerate(weights, 1)))
    return np.array(rho)


def test_what_is_expected_is_that_of_the_recursion() -> None:
    task = random_chain(8, 0.7)
    own, weights = sequences_theory.expected(task, "sequence"), numpy_of(task)[2][:, 0]
    far = 400
    rho = [autocorrelation(float(v), weights, far) for v in task.eigenvalues]
    both = [np.concatenate([r[:0:-1], r]) for r in rho]  # from 1 - far
    for i, j in itertools.product(range(2), repeat=2):
        window = np.full(CONTEXT, 1 / CONTEXT)
        mean = np.convolve(np.convolve(both[j], window), window)[CONTEXT - 1 : 1 - CONTEXT]
        pull_noise = both[i] @ mean
        if i == j:
            # A token k after the end of a window: lags k + 1 to k + T; k from -reach to reach.
            middle, reach = far - 1 + CONTEXT, far - 1 - CONTEXT
            ahead = np.convolve(both[i], window)[middle - reach : middle + reach + 1]
            pull_noise += ahead @ ahead[::-1]
        np.testing.assert_allclose(own.pull_noise[i, j], pull_noise, rtol=1e-6)
        for lag in range(1, CONTEXT + 1):
            bartlett = both[i] @ both[j]
            if i == j:
                bartlett += sum(
                    both[i][far - 1 + k + lag] * both[i][far - 1 + k - lag]
                    for k in range(lag - far + 1, far - lag)
                )
            np.testing.assert_allclose(own.noise[lag - 1, i, j], bartlett, rtol=1e-6)
    np.testing.assert_allclose(
        own.moment, np.stack([r[1 : CONTEXT + 1] for r in rho], 1), atol=1e-9
    )
    np.testing.assert_allclose(own.time, [b.sum() for b in both], rtol=1e-6)
    effect = np.zeros(CONTEXT)
    for value, r in zip(task.eigenvalues, rho, strict=True):
        inverse = np.linalg.inv(scipy.linalg.toeplitz(r[:CONTEXT]))
        left = 1 - value * weights @ r[1 : CONTEXT + 1]
        effect += (value * weights) ** 2 / (left * np.diag(inverse))
    np.testing.assert_allclose(own.effect, effect, rtol=1e-8)
    # With what is expected for moments, the statistic is the effect of as many windows.
    whole = jax.vmap(jnp.diag)(own.moment)
    found = Moving(task.stationary, whole, jnp.asarray(1014.0))
    np.testing.assert_allclose(
        sequences_moments.yule_walker(found), 1000 * effect, rtol=1e-6, atol=1e-6
    )


def test_cross_moments_of_the_exact_chain_are_the_expected_ones() -> None:
    task = random_chain(9, 0.8, context=3)
    law, _ = exact_law(task)
    transition, mu, pattern = numpy_of(task)
    joint = np.zeros((3, NUM_TOKENS, NUM_TOKENS))
    for state, weight in law.items():
        after = transition[:, list(state[::-1])] @ pattern[:, 0]
        for lag in range(1, 4):
            joint[lag - 1][:, state[-lag]] += weight * after
    modes = np.asarray(task.modes) / mu[:, None]
    found = np.einsum("ni,gnm,mi->gi", modes, joint - np.outer(mu, mu), modes)
    np.testing.assert_allclose(
        sequences_theory.expected(task, "sequence").moment, found, atol=1e-10
    )


def test_thresholds_and_chances_are_those_of_scipy() -> None:
    for context, freedom in ((200, 4), (50, 1), (1000, 9), (200, 25)):
        exact = scipy.stats.chi2.isf(sequences_moments.LEVEL / context, freedom)
        assert sequences_moments.threshold(context, freedom) == pytest.approx(exact, rel=1e-9)
    task = random_chain(10, 0.5)
    own, level = (
        sequences_theory.expected(task, "sequence"),
        sequences_moments.threshold(CONTEXT, 4),
    )
    windows = jnp.asarray(3000.0)
    signal = (3000 - 2 * CONTEXT) * np.asarray(own.effect)
    exact = scipy.stats.ncx2.sf(level, 4, np.maximum(signal, 1e-9))
    assert np.ptp(exact) > 0.3
    np.testing.assert_allclose(
        sequences_theory.chance_whitened(own, windows, level), exact, atol=0.02
    )
    rng = np.random.default_rng(0)
    mean = np.asarray(jax.vmap(jnp.diag)(own.moment))
    drawn = rng.normal(mean, np.sqrt(np.asarray(own.noise) / 3000), (20_000, *mean.shape))
    exact = (3000 * (drawn**2).sum(axis=(2, 3)) > level).mean(axis=0)
    np.testing.assert_allclose(
        sequences_theory.chance_marginal(own, windows, level), exact, atol=0.03
    )


def test_the_expected_cosine_is_that_of_v_and_p() -> None:
    task = random_chain(11, 0.8)
    own = sequences_theory.expected(task, "sequence")
    transition, mu, _ = numpy_of(task)
    modes = np.asarray(task.modes)
    rng = np.random.default_rng(1)
    noise = rng.normal(0, np.sqrt(np.asarray(own.pull_noise) / 500), (20_000, 2, 2))
    pulled = modes @ (np.diag(np.asarray(own.pull)) + noise) @ modes.T / mu  # V~
    excess = transition - mu[:, None]
    inner = np.einsum("snm,nm,m->s", pulled, excess, mu).mean()
    length = np.einsum("snm,m->s", pulled**2, mu).mean() * (excess**2 @ mu).sum()
    found = sequences_theory.expected_cosine(own, task, jnp.asarray(500.0))
    assert float(found) == pytest.approx(inner / np.sqrt(length), rel=0.01)


# ------------------------------------------------------------------------------- through the engine

STUDY = {
    "experiment": "sequences",
    "task": {"num_tokens": 3, "context_length": 20, "sparsity": 2},
    "train": {"steps": 12, "record_every": 4},
}


@pytest.mark.slow
def test_a_small_sweep_finds_the_lags() -> None:
    jax.config.update("jax_enable_x64", False)
    axes = {"seed": range(3), "slow": (0.2, 0.8)}
    found = scbjax.sweep.run(STUDY, axes=axes, progress=False)
    assert found.samples.isel(seed=0, slow=0).values.tolist() == [0, 512, 2048, 8192]
    end = found.sel(slow=0.8).isel(step=-1)
    assert (end.whitened_missed == 0).all()
    assert end.whitened_false.sum() <= 2
    assert (end.marginal_false > 1).all()
    assert (end.newton_hits == 1).all()


@pytest.mark.slow
def test_records_in_between_change_nothing_and_contexts_have_no_false_lags() -> None:
    jax.config.update("jax_enable_x64", False)
    axes = {"seed": range(3), "slow": (0.2, 0.8), "data": ("sequence", "independent")}
    often = scbjax.sweep.run(STUDY, axes=axes, progress=False).isel(step=-1)
    once = scbjax.sweep.run(STUDY, set={"train.record_every": 6}, axes=axes, progress=False)
    for name in ("marginal_false", "whitened_missed", "total_variation"):
        np.testing.assert_array_equal(once[name].isel(step=-1), often[name])
    contexts = often.sel(data="independent", slow=0.8)
    assert contexts.marginal_false.sum() <= 2
    assert (contexts.marginal_missed == 0).all()


def test_the_small_form_of_the_study_loads() -> None:
    study = load_study("sequences", small=True)
    assert study.base["train.steps"] <= 14


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task.slow": 1.5}, "task.slow must be a number from 0.0 to 0.95, got 1.5"),
        ({"task.sparsity": 30}, "task.sparsity = 30 is larger than task.context_length = 20"),
        ({"train.steps": 40}, "train.steps must be an integer from 1 to 34, got 40"),
        ({"task.data": "text"}, "task.data must be one of 'sequence', 'independent', got 'text'"),
    ],
)
def test_what_has_no_meaning_is_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=re.escape(message)):
        scbjax.sweep.run(STUDY, set=changes, axes={"seed": range(2)}, progress=False)
