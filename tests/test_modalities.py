"""Two modalities: against a learner of 2N tokens by autodiff, NumPy, Monte Carlo and SciPy."""

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import xarray as xr

import scbjax
from scbjax.base import StudyError
from scbjax.experiments import modalities, modalities_theory
from scbjax.experiments.modalities import ModalBatch, ModalParams, ModalTask
from scbjax.losses import population_grad
from scbjax.sampling import Batch, fold_in, make_seed
from scbjax.theory import path_point

Array = np.ndarray
KINDS = ("pattern", "transition")
TOKENS, LENGTH = 5, 12  # more than four tokens are not packed


@cache
def make_task(shared: str, correlation: float = 1.0) -> ModalTask:
    return modalities.random_modalities(
        jax.random.key(3), shared=shared, correlation=correlation, num_tokens=TOKENS,
        context_length=LENGTH, sparsity=2, transition_signal=0.4,
    )  # fmt: skip


def longer(task: scbjax.Task, length: int) -> scbjax.Task:
    """The same with positions that nothing points to."""
    return task._replace(pattern=jnp.pad(task.pattern, ((0, length - LENGTH), (0, 0))))


prepare = cache(lambda shared: jax.jit(modalities.prepare)(make_task(shared)))
sample = jax.jit(modalities.sample_modalities, static_argnums=2)


def make_batch(seed: int, shared: str, size: int = 6) -> ModalBatch:
    batch: ModalBatch = sample(fold_in(make_seed(jax.random.key(0)), seed), prepare(shared), size)
    return batch


def moved_from_start(task: ModalTask, shared: str) -> ModalParams:
    start = modalities.start_modalities(task, shared)
    keys = iter(jax.random.split(jax.random.key(8), 2))
    return ModalParams(*(a + 0.1 * jax.random.normal(next(keys), a.shape) for a in start))


def inner(a: Any, b: Any, mu: Any) -> float:  # noqa: ANN401 - of either library
    return float(np.sum(np.asarray(a, float) * np.asarray(b, float) * np.asarray(mu, float)))


# ------------------------------------------------------------------------------- tasks and samples


@pytest.mark.parametrize("shared", KINDS)
def test_what_is_shared_is_shared(shared: str) -> None:
    first, second = make_task(shared)
    mixed = make_task(shared, 0.25).first
    assert np.array_equal(first.pattern, second.pattern) == (shared == "pattern")
    assert np.array_equal(first.transition, second.transition) == (shared == "transition")
    assert np.array_equal(first.stationary, second.stationary) == (shared == "transition")
    alone = make_task(shared, 0.0).first
    name = "pattern" if shared == "pattern" else "transition"
    expected = 0.25 * getattr(second, name) + 0.75 * getattr(alone, name)
    np.testing.assert_allclose(getattr(mixed, name), expected, atol=1e-6)
    assert abs(np.ptp(second.stationary)) > 0.05
    for task in (first, second, mixed, alone):
        np.testing.assert_allclose(task.transition @ task.stationary, task.stationary, atol=1e-5)
        np.testing.assert_allclose(task.pattern.sum(axis=0), 1.0, rtol=1e-5)


@pytest.mark.slow
def test_batches_are_of_their_modalities_and_coins_are_even() -> None:
    batch = make_batch(1, "pattern", 10_000)
    for own, law in zip(batch[:2], make_task("pattern"), strict=True):
        assert isinstance(own, Batch)
        for tokens in (own.tokens, own.query):
            found = np.bincount(np.asarray(tokens).ravel(), minlength=TOKENS)
            np.testing.assert_allclose(found / found.sum(), law.stationary, atol=0.02)
    coins = np.array([make_batch(number, "pattern").coin for number in range(100)])
    assert coins.min() >= 0
    assert coins.max() < 1
    # Three standard errors.
    assert np.mean(coins < 0.5) == pytest.approx(0.5, abs=0.15)


# ------------------------------------------------------------------------------- loss and its step


def plain_loss(params: ModalParams, batch: Batch, second: bool) -> jax.Array:
    """One learner of 2N tokens: V is block-diagonal, and what is shared is tied."""
    values = jnp.broadcast_to(params.value, (2, TOKENS, TOKENS))
    attentions = jnp.broadcast_to(params.attention, (2, *params.attention.shape[1:]))
    value = jax.scipy.linalg.block_diag(*values)
    attention = jnp.concatenate(list(attentions), axis=1)
    offset = TOKENS * second
    hot = jax.nn.one_hot(np.asarray(batch.tokens).astype(int) + offset, 2 * TOKENS)
    attended = jnp.einsum("btn,tb->bn", hot, attention[:, batch.query + offset])
    target = jax.nn.one_hot(batch.label + offset, 2 * TOKENS)
    return 0.5 * jnp.mean(jnp.sum((attended @ value.T - target) ** 2, axis=1))


@pytest.mark.parametrize("shared", KINDS)
@pytest.mark.parametrize("second", [False, True])
def test_the_loss_is_that_of_a_block_diagonal_learner(shared: str, second: bool) -> None:
    task = make_task(shared)
    params, batch = moved_from_start(task, shared), make_batch(3, shared)
    found = jax.value_and_grad(modalities.modal_loss)(params, batch, float(second))
    expected = jax.value_and_grad(plain_loss)(params, batch[int(second)], second)
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-5)
    for name in ("value", "attention"):
        np.testing.assert_allclose(
            getattr(found[1], name), getattr(expected[1], name), rtol=1e-4, atol=1e-6
        )


@cache
def compiled_step(shared: str) -> Callable[..., Any]:
    static = {"shared": shared, "sparsity": 2}

    def step(params: ModalParams, done: jax.Array, batch: ModalBatch, rates: Any) -> ModalParams:  # noqa: ANN401
        progress = modalities._start_progress()._replace(second=done)
        task = make_task(shared)
        return modalities._step(static, params, progress, batch, task, None, rates, None)[1]

    return jax.jit(step)


def take_step(
    shared: str, params: ModalParams, seed: int, *, second: bool, averaged: bool, done: int = 0
) -> tuple[ModalParams, ModalBatch]:
    """One step after so many on modality 2."""
    batch = make_batch(seed, shared)
    told = {"value": 0.3, "attention": 0.2, "share": float(second), "averaged": averaged}
    rates = {name: jnp.asarray(number) for name, number in told.items()}
    return compiled_step(shared)(params, jnp.asarray(done, jnp.int32), batch, rates), batch


@pytest.mark.parametrize("shared", KINDS)
@pytest.mark.parametrize("second", [False, True])
def test_a_step_is_that_of_the_paper_on_one_modality(shared: str, second: bool) -> None:
    task = make_task(shared)
    params = moved_from_start(task, shared)
    after, batch = take_step(shared, params, 4, second=second, averaged=False)
    own = params.of(int(second))
    grads = jax.grad(plain_loss)(params, batch[int(second)], second).of(int(second))
    mu = np.asarray(task[int(second)].stationary)
    value = np.asarray(grads.value) / mu
    value = value - value.mean(axis=0)
    value = value - (value @ mu)[:, None]
    attention = np.asarray(grads.attention) / mu
    attention = attention - attention.mean(axis=0)
    np.testing.assert_allclose(after.of(int(second)).value, own.value - 0.3 * value, atol=2e-5)
    np.testing.assert_allclose(
        after.of(int(second)).attention, own.attention - 0.2 * attention, atol=2e-5
    )
    new = "value" if shared == "pattern" else "attention"
    np.testing.assert_array_equal(getattr(after, new)[1 - second], getattr(params, new)[1 - second])


@pytest.mark.parametrize("shared", KINDS)
def test_the_one_step_has_the_mean_gradient_of_all_batches(shared: str) -> None:
    task = make_task(shared)
    start = modalities.start_modalities(task, shared)
    own, mu = task.second, np.asarray(task.second.stationary)
    kept = "attention" if shared == "pattern" else "value"
    truth = scbjax.Params(own.transition, own.pattern)
    params = start.put(1, start.of(1)._replace(**{kept: getattr(truth, kept)}))
    begin, total = params, np.zeros(())
    for done in range(3):
        params, batch = take_step(shared, params, done, second=True, averaged=True, done=done)
        grads = jax.grad(plain_loss)(begin, batch.second, True).of(1)
        turned = np.asarray(grads.value if shared == "pattern" else grads.attention) / mu
        total = total + turned - turned.mean(axis=0)
    if shared == "pattern":
        total = total - (total @ mu)[:, None]
        expected = mu[:, None] - total / 3 / inner(own.pattern, own.pattern, mu)
        np.testing.assert_allclose(params.value[1], expected, atol=1e-4)
    else:
        excess = own.transition - mu[:, None]
        expected = 1 / LENGTH - total / 3 / inner(excess, excess, mu)
        np.testing.assert_allclose(params.attention[1], expected, atol=1e-4)
    np.testing.assert_array_equal(getattr(params, kept), getattr(begin, kept))
    new = "value" if shared == "pattern" else "attention"
    np.testing.assert_array_equal(getattr(params, new)[0], getattr(begin, new)[0])


def test_mixed_signals_grow_by_the_root_of_two_faster() -> None:
    """By expected steps, half of them on each modality, from a point far above 1/T."""
    length, small, rate = 20_000, 0.01, 0.01
    task = ModalTask(*(longer(own, length) for own in make_task("pattern")))
    ends = []
    for own in task:
        # Of the growing mode: V at half of the steps, A at all.
        params = path_point(jnp.asarray(small / np.sqrt(2)), jnp.asarray(small), own)
        k_p, k_q = scbjax.transition_signal(own), scbjax.pattern_signal(own)
        step = scbjax.scb_sgd(own.stationary, 0.5 * rate / k_q, 0.5 * rate / k_p)
        grads = population_grad(params, own)
        ends.append(step.update(grads, step.init(params), params)[0])
    attention = ends[0].attention + ends[1].attention
    mu = task.second.stationary
    gained = inner(attention, task.second.pattern, mu) / float(scbjax.pattern_signal(task.second))
    # Of a step; a modality has every other one.
    assert 2 * gained / small == pytest.approx(np.sqrt(2) * rate, rel=0.02)
    excess = task.second.transition - mu[:, None]
    gained = inner(ends[1].value, excess, mu) / float(scbjax.transition_signal(task.second))
    assert 2 * gained / (small / np.sqrt(2)) == pytest.approx(np.sqrt(2) * rate, rel=0.02)


# ------------------------------------------------------------------------------------- predictions


def test_cosines_are_those_of_the_mu_inner_product() -> None:
    task = make_task("pattern").second
    p, mu, q = (np.asarray(array, float) for array in task)
    rng = np.random.default_rng(0)
    value = p + 0.1 * rng.normal(size=p.shape)
    attention = q + 0.1 * rng.normal(size=q.shape)
    params = scbjax.Params(jnp.asarray(value), jnp.asarray(attention))
    found = modalities.cosines(params, task)
    pairs = ((value - mu[:, None], p - mu[:, None]), (attention, q))
    for cosine, (own, true) in zip(found, pairs, strict=True):
        norms = np.sqrt(inner(own, own, mu) * inner(true, true, mu))
        assert float(cosine) == pytest.approx(inner(own, true, mu) / norms, rel=1e-4)
    kept = np.where(attention >= np.sort(attention, axis=0)[-2], np.maximum(attention, 0), 0)
    kept = kept / kept.sum(axis=0)
    expected = inner(kept, q, mu) / np.sqrt(inner(kept, kept, mu) * inner(q, q, mu))
    rounded = modalities.cosines(params, task, 2).attention
    assert float(rounded) == pytest.approx(expected, rel=1e-4)
    start = modalities.cosines(scbjax.init_params(task), task)
    assert float(start.value) == 0.0
    # A uniform A: 1 / cos^2 = T |Q|^2.
    assert float(start.attention) ** -2 == pytest.approx(LENGTH * inner(q, q, mu), rel=1e-4)


def test_chi_square_quantiles_are_near_scipy_s() -> None:
    shares = np.linspace(0.05, 0.95, 7)
    for freedom in (5.0, 9.5, 30.0):
        found = modalities_theory.chi_square(jnp.asarray(shares), jnp.asarray(freedom))
        np.testing.assert_allclose(found, scipy.stats.chi2.ppf(shares, freedom), rtol=0.02)


def running(task: scbjax.Task, runs: int, samples: int) -> tuple[Array, Array, Array]:
    """Tokens [runs, samples, T], queries and labels, as integers."""
    batch = scbjax.sample_batch(jax.random.key(5), task, runs * samples)
    tokens, query, label = (np.asarray(array).astype(int) for array in batch)
    return tokens.reshape(runs, samples, -1), query.reshape(runs, -1), label.reshape(runs, -1)


def first_times(met: Array, sizes: Array) -> Array:
    return np.where(met.any(axis=1), sizes[met.argmax(axis=1)], np.inf)


@pytest.mark.slow
def test_samples_to_a_new_transition_matrix_have_the_predicted_law() -> None:
    """By Monte Carlo in float64: running means of single gradients, one after the other."""
    task = make_task("pattern").second
    p, mu, q = (np.asarray(array, float) for array in task)
    # What is kept is half wrong.
    attention = 0.5 * q + 0.5 * np.asarray(make_task("transition").first.pattern, float)
    runs, count = 200, 1500
    tokens, query, label = running(task, runs, count)
    weights = attention.T[query]  # [runs, samples, T]
    attended = np.stack([np.sum(weights * (tokens == n), axis=2) for n in range(TOKENS)], axis=2)
    left = np.eye(TOKENS)[label] - mu
    right = attended / mu
    steps = np.einsum("rsn,rsm->rsnm", left, right)
    steps = steps - (steps @ mu)[..., None]
    sums = np.cumsum(steps, axis=1)
    excess = p - mu[:, None]
    along = np.einsum("rsnm,nm,m->rs", sums, excess, mu)
    size = np.einsum("rsnm,rsnm,m->rs", sums, sums, mu)
    cosine = along / np.sqrt(size * inner(excess, excess, mu))
    found = first_times(cosine >= modalities_theory.RECOVERED, np.arange(1, count + 1))
    shares = jnp.asarray([0.25, 0.5, 0.75])
    told = modalities_theory.value_samples(jnp.asarray(attention), task, shares)
    # Ten percent is two standard errors of the median; the rest is for a law that is not normal.
    np.testing.assert_allclose(np.quantile(found, shares), told, rtol=0.2)
    # What is measured after a number of samples that is fixed has two degrees of freedom more.
    assert np.median(found) < 0.95 * np.median(told) * 11 / 9


def new_pattern() -> tuple[scbjax.Task, Array, Array]:
    """A task, a V that is wrong in part, and what it has beyond mu, its columns centred."""
    task = longer(make_task("transition").second, 40)
    p, mu, _ = (np.asarray(array, float) for array in task)
    value = 0.7 * p + 0.3 * np.asarray(make_task("transition", 0.0).first.transition, float)
    excess = value - mu[:, None]
    return task, value, excess - mu @ excess


def test_samples_to_a_new_pattern_have_the_formula() -> None:
    task, value, centred = new_pattern()
    p, mu, q = (np.asarray(array, float) for array in task)
    shares = jnp.asarray([0.1, 0.5, 0.9])
    found = np.asarray(modalities_theory.pattern_samples(jnp.asarray(value), task, shares))
    excess = value - mu[:, None]
    noise = np.einsum("x,y,yx->", mu, mu, centred**2)
    signal = inner(excess, p - mu[:, None], mu)
    level = scipy.stats.norm.isf(-np.expm1(np.log(shares) / (40 * TOKENS)))
    least = np.array([column[column > 0].min() for column in q.T])
    expected = level**2 * np.max(noise / (mu * least**2)) / signal**2
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.slow
def test_samples_to_a_new_pattern_are_about_the_predicted_ones() -> None:
    """By samples: the first of a few numbers of them at which all supports are right."""
    task, value, centred = new_pattern()
    q, told = np.asarray(task.pattern), modalities_theory.pattern_samples
    median = float(told(jnp.asarray(value), task, jnp.asarray([0.5]))[0])
    runs, count = 60, int(4 * median)
    tokens, query, label = running(task, runs, count)
    pulls = np.stack([centred[label[r][:, None], tokens[r]] for r in range(runs)])
    right = []
    sizes = np.geomspace(median / 4, count, 12).astype(int)
    for size in sizes:
        columns = [
            np.stack([np.sum(pulls[r, :size][query[r, :size] == k], axis=0) for r in range(runs)])
            for k in range(TOKENS)
        ]
        supports = [
            np.isin(np.argsort(-column, axis=1)[:, :2], np.flatnonzero(q[:, k])).all(axis=1)
            for k, column in enumerate(columns)
        ]
        right.append(np.all(supports, axis=0))
    ratio = np.median(first_times(np.stack(right, axis=1), sizes)) / median
    # The own noise of the true positions is left out.
    assert 0.7 < ratio < 2.0


# ------------------------------------------------------------------------------------- the study

STUDY: dict[str, Any] = {
    "experiment": "modalities",
    "task": {"num_tokens": 3, "context_length": 24, "sparsity": 1, "transition_signal": 0.5},
    "train": {"batch_size": 8, "steps": 300, "record_every": 30},
    "zip": [
        {
            "name": "arm",
            "second_share": [1.0, 0.5, 0.0, 0.0],
            "first_until": [0.3, 0.3, 0.3, 0.0],
            "rate": [0.25, 0.25, 0.25, 0.25],
        }
    ],
}


def check_run(found: xr.Dataset, new: str) -> None:
    last = found.isel(step=-1)
    first, second = last.samples_of_first, last.samples_of_second
    assert (first + second == 2400).all()
    assert (first.isel(arm=0) == 0).all()
    assert ((first.isel(arm=1) > 800) & (first.isel(arm=1) < 1600)).all()
    assert (last.stage.isel(arm=[0, 1]) == 1).all()
    assert (last.stage.isel(arm=[2, 3]) == 2).all()
    assert (last[new].isel(arm=2) > 0).all()
    assert (last[new] % 8 == 0).where(last[new] > 0, True).all()
    # After the other, what is shared stays as it is and little is needed.
    kept = found.kept.isel(arm=2).where(found.stage.isel(arm=2) == 2)
    np.testing.assert_allclose(kept.max("step") - kept.min("step"), 0.0, atol=1e-6)
    assert float(last[new].isel(arm=2).median()) < float(last[new].isel(arm=0).median())
    alone = last[["samples_to_value", "samples_to_pattern"]].isel(arm=0)
    assert (alone.to_dataarray() > 0).sum() >= 6
    law = last.predicted.transpose("arm", "seed", "level").to_numpy()
    assert (np.diff(law, axis=2) >= 0).all()


@pytest.mark.parametrize("shared", KINDS)
def test_the_experiment_is_traced(shared: str) -> None:
    static = {"num_tokens": 3, "context_length": 24, "sparsity": 1, "shared": shared}
    source = modalities._source(static)
    learner = modalities._learner(
        source, static, batch_size=8, record_every=2, record=modalities.RECORD
    )
    values = dict.fromkeys(("second_share", "first_until", "rate", "correlation"), 0.5)
    values |= {"skew": 2.0, "transition_signal": 0.4}

    def run(key: jax.Array) -> Any:  # noqa: ANN401
        return learner.train(key, source.draw(key, values), values, steps=6)

    found = jax.eval_shape(run, jax.random.key(0))
    assert found.state.params.value.shape == (1 + (shared == "pattern"), 3, 3)
    assert found.state.params.attention.shape == (1 + (shared == "transition"), 24, 3)
    assert found.records["predicted"].shape == (4, modalities.LEVELS)
    assert found.records["samples_to_value"].dtype == jnp.int32


@pytest.mark.slow  # compiled for some ten seconds
def test_a_small_sweep_carries_a_pattern_over() -> None:
    found = scbjax.sweep.run(STUDY, axes={"seed": range(4)}, progress=False)
    check_run(found, "samples_to_value")
    # Nothing learned leaves A as it was.
    own = found.isel(arm=3, step=-1)
    uniform = own.kept
    assert (uniform < 0.2).all()
    assert (own.samples_of_first == 240).all()


@pytest.mark.slow  # compiled anew
def test_a_small_sweep_carries_a_transition_matrix_over() -> None:
    found = scbjax.sweep.run(
        STUDY, set={"task.shared": "transition"}, axes={"seed": range(4)}, progress=False
    )
    check_run(found, "samples_to_pattern")
    # From V = mu 1^T no pattern is learned.
    own = found.isel(arm=3, step=-1)
    assert (own.samples_to_pattern == -1).all()
    assert (own.kept == 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task.shared": "mu"}, "task.shared must be one of 'pattern', 'transition', got 'mu'"),
        ({"task.correlation": 1.5}, "task.correlation must be a number from 0.0 to 1.0"),
        ({"task.sparsity": 30}, "task.sparsity = 30 is larger than task.context_length = 24"),
    ],
)
def test_what_has_no_meaning_is_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=re.escape(message)):
        scbjax.sweep.run(STUDY, set=changes, axes={"seed": range(2)}, progress=False)
