"""The start of a transfer: against NumPy and Lemma B.8, under maps, and from a pretrained V."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scbjax.composition import FIRST_STEP, LearnerState
from scbjax.model import Params, init_params
from scbjax.paper import init
from scbjax.sampling import Batch, draw_batch, fold_in, make_sampler, make_seed
from scbjax.settings import NEVER, Settings
from scbjax.starts import start_from
from scbjax.task import (
    Task,
    mu_inner,
    pattern_signal,
    random_task,
    related_task,
    transition_signal,
)
from scbjax.training import train
from scbjax.transfer import first_step, keep_large, mix_value, on_tangent, source_overlap
from scbjax.words import Seed

Array = np.ndarray

N, T, Q, B = 3, 40, 2, 16
RECORD = (
    "alpha_value",
    "alpha_attention",
    "stage",
    "samples",
    "population_alpha_value",
    "population_alpha_attention",
)
SETTINGS = Settings(
    batch_size=B,
    steps=20,
    record_every=10,
    record=RECORD,
    start="transfer",
    first_samples=6 * B,
    theta=0.3,
    first_threshold=0.2,
    pretraining_batch_size=64,
    pretraining_steps=500,
    learning_rate_1=0.05,
    refit_support=8,
)
change = dataclasses.replace
run = jax.jit(train)


@functools.cache
def make_task(seed: int = 0) -> Task:
    # A low K_P: with a high one, transition matrices of one mu are all alike.
    draw = functools.partial(
        random_task, num_tokens=N, context_length=T, sparsity=Q, transition_signal=0.25
    )
    task: Task = jax.jit(draw)(jax.random.key(seed))
    assert float(jnp.max(task.stationary) / jnp.min(task.stationary)) > 1.2
    return task


@functools.cache
def make_source(correlation: float = 0.4) -> Task:
    source: Task = draw_source(make_task(), correlation)
    return source


@jax.jit
def draw_source(task: Task, correlation: jax.Array) -> Task:
    return related_task(jax.random.key(52), task, correlation=correlation, sparsity=Q)


@jax.jit
def start(key: jax.Array, source: Task, task: Task, settings: Settings) -> LearnerState:
    return start_from(key, source, task, settings, init(key, task, settings))


def in_numpy(*arrays: jax.Array) -> list[Array]:
    return [np.asarray(array, np.float64) for array in arrays]


def reference_step(
    value: Array, task: Task, batch: tuple[Array, Array, Array], eta: float
) -> Array:
    """Equations 3 and 4 for A from one-hot contexts, from uniform attention."""
    tokens, query, label = batch
    (mu,) = in_numpy(task.stationary)
    eye = np.eye(N)
    contexts = eye[tokens]
    error = contexts.mean(axis=1) @ value.T - eye[label]
    scores = np.einsum("btn,bn->bt", contexts, error @ value)
    grad = scores.T @ (eye[query] / mu) / len(label)
    moved: Array = 1 / T - eta * (grad - grad.mean(axis=0))
    return moved


def samples_of(key: jax.Array, task: Task, pieces: int) -> tuple[Array, Array, Array]:
    seed = make_seed(jax.random.fold_in(key, FIRST_STEP))
    tokens, query, label = map(np.asarray, draw_pieces(jnp.arange(pieces), seed, task))
    return tokens.reshape(-1, T), query.ravel(), label.ravel()


@jax.jit
def draw_pieces(indices: jax.Array, seed: Seed, task: Task) -> Batch:
    def draw(index: jax.Array) -> Batch:
        return draw_batch(fold_in(seed, index), make_sampler(task), B)

    batches: Batch = jax.lax.map(draw, indices)
    return batches


@pytest.mark.parametrize(("scale_rates", "first_rate"), [(True, 0.8), (False, 3.0)])
def test_start_equals_the_equations(scale_rates: bool, first_rate: float) -> None:
    key, task, source = jax.random.key(1), make_task(), make_source()
    settings = change(SETTINGS, scale_rates=scale_rates, first_rate=first_rate)
    found = start(key, source, task, settings)
    p, mu, _, p_hat = in_numpy(*task, source.transition)
    value = 0.3 * p_hat + 0.7 * np.outer(mu, np.ones(N))
    np.testing.assert_allclose(found.params.value, value, atol=1e-6)

    k_p = float(np.trace(p @ np.diag(mu) @ p.T) - mu @ mu)
    eta, level = (first_rate / k_p if scale_rates else first_rate), 0.2 * 0.3 / (Q * N * k_p)
    moved = reference_step(value, task, samples_of(key, task, 6), eta)
    kept = np.where(np.abs(moved) <= level, 0.0, moved)
    assert 0.2 < np.mean(kept == 0) < 0.98
    assert np.any(kept < 0)
    # No entry so near the level that float32 could put it on the other side.
    assert np.min(np.abs(np.abs(moved) - level)) > 1e-6
    kept = kept + (1 - kept.sum(axis=0)) / T
    np.testing.assert_allclose(found.params.attention, kept, rtol=1e-5, atol=1e-6)

    alpha = (np.trace(value @ np.diag(mu) @ p.T) - mu @ mu) / k_p
    np.testing.assert_allclose(found.tracked.population, (alpha, eta * k_p * alpha), rtol=1e-5)
    assert (int(found.stage), int(found.step), bool(found.tracked.flipped)) == (2, 0, False)


def test_first_step_lands_on_the_path_in_expectation() -> None:
    task, source = make_task(), make_source()
    value = mix_value(source.transition, task.stationary, 0.5)
    params = init_params(task)._replace(value=value)
    step = functools.partial(first_step, num_samples=4 * B, batch_size=B)
    keys = jax.random.split(jax.random.key(2), 2000)
    found = jax.jit(jax.vmap(step, (0, None, None, None)))(keys, params, task, 1.5)
    assert np.all(np.asarray(found.value) == np.asarray(value))
    draws = np.asarray(found.attention, np.float64)
    p, mu, q, v = in_numpy(*task, value)
    # Lemma B.8: E grad_a = -K_VP (q - 1/T) at uniform attention.
    signal = 1.5 * (np.trace(v @ np.diag(mu) @ p.T) - mu @ mu)
    expected = 1 / T + signal * (q - 1 / T)
    error = draws.std(axis=0) / np.sqrt(len(draws))
    assert np.max(np.abs(draws.mean(axis=0) - expected) / error) < 5
    assert np.all((expected[q > 0] - 1 / T) / error[q > 0] > 10)
    np.testing.assert_allclose(draws.sum(axis=1), 1.0, atol=1e-5)


def test_overlap_is_that_of_the_theorem() -> None:
    task, source = make_task(), make_source()
    p, mu, _, p_hat = in_numpy(*task, source.transition)
    expected = np.trace(p_hat @ np.diag(mu) @ p.T) - mu @ mu
    np.testing.assert_allclose(source_overlap(source.transition, task), expected, rtol=1e-5)
    records = run(jax.random.key(0), task, SETTINGS, source).records
    share = expected / float(transition_signal(task))
    np.testing.assert_allclose(records["alpha_value"][0], 0.3 * share, rtol=1e-4)


def test_threshold_keeps_sums_and_large_entries_of_both_signs() -> None:
    rng = np.random.default_rng(0)
    attention = rng.normal(size=(T, N))
    attention[3] = [0.5, -0.5, 0.25]  # at the level is cut
    attention += (1 - attention.sum(axis=0)) / T
    level = float(np.float32(attention[3, 0]))
    found = np.asarray(keep_large(jnp.asarray(attention, jnp.float32), level), np.float64)
    large = np.abs(np.asarray(attention, np.float32)) > level
    assert not large[3, 0]
    assert np.any(large & (attention < 0))
    lost = np.sum(np.where(large, 0, attention), axis=0) / T
    np.testing.assert_allclose(found, np.where(large, attention, 0) + lost, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=0), 1.0, atol=1e-5)


def test_a_fitted_value_is_brought_to_the_invariants() -> None:
    rng = np.random.default_rng(1)
    mu = make_task().stationary
    fitted = jnp.asarray(rng.normal(size=(N, N)), jnp.float32)
    found = on_tangent(fitted, mu)
    np.testing.assert_allclose(np.asarray(found).sum(axis=0), 1.0, atol=1e-6)
    np.testing.assert_allclose(found @ mu, mu, atol=1e-6)
    np.testing.assert_allclose(on_tangent(found, mu), found, atol=1e-6)
    # The nearest point: what was taken away is orthogonal to all that meets the invariants.
    other = on_tangent(jnp.asarray(rng.normal(size=(N, N)), jnp.float32), mu)
    assert abs(float(mu_inner(fitted - found, other - found, mu))) < 1e-5


# Trajectories.


def test_records_begin_after_the_first_step() -> None:
    task, source, key = make_task(), make_source(), jax.random.key(3)
    found = run(key, task, SETTINGS, source)
    begun = start(key, source, task, SETTINGS)
    records = found.records
    np.testing.assert_array_equal(records["samples"], 6 * B + np.arange(3) * 10 * B)
    np.testing.assert_array_equal(records["stage"], 2)
    alpha = mu_inner(begun.params.attention, task.pattern, task.stationary) - 1 / T
    np.testing.assert_allclose(
        records["alpha_attention"][0], alpha / pattern_signal(task), rtol=1e-4
    )
    for index, name in enumerate(("value", "attention")):
        np.testing.assert_allclose(
            records[f"population_alpha_{name}"][0], begun.tracked.population[index], rtol=1e-6
        )


MAPPED: dict[str, list[float]] = {
    "theta": [0.1, 0.2, 0.4],
    "first_threshold": [0.0, 0.2, 0.5],
    "first_rate": [1.0, 0.8, 0.5],
}


def test_start_under_vmap_equals_single_ones() -> None:
    task, key = make_task(), jax.random.key(4)
    correlations = [0.0, 0.4, 1.0]
    columns = {name: jnp.array(values) for name, values in MAPPED.items()}

    def one(correlation: jax.Array, numbers: dict[str, jax.Array]) -> Params:
        source = draw_source(task, correlation)
        settings = change(SETTINGS, **numbers)
        begun = start_from(key, source, task, settings, init(key, task, settings))
        params: Params = begun.params
        return params

    found = jax.jit(jax.vmap(one))(jnp.array(correlations), columns)
    for lane, correlation in enumerate(correlations):
        settings = change(SETTINGS, **{name: values[lane] for name, values in MAPPED.items()})
        single = start(key, make_source(correlation), task, settings).params
        for together, alone in zip(found, single, strict=True):
            np.testing.assert_allclose(together[lane], alone, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def pretrained() -> LearnerState:
    settings = change(SETTINGS, start="pretrained")
    state: LearnerState = start(jax.random.key(5), make_source(), make_task(), settings)
    return state


def test_pretraining_learns_what_would_be_handed_over(pretrained: LearnerState) -> None:
    task, source = make_task(), make_source()
    p, mu, _, p_hat = in_numpy(*task, source.transition)
    (value,) = in_numpy(pretrained.params.value)
    base = np.outer(mu, np.ones(N))
    learned = base + (value - base) / 0.3
    error = np.sqrt(np.trace((learned - p_hat) @ np.diag(mu) @ (learned - p_hat).T))
    # 4096 samples leave about 0.02; before training it is the norm of P_hat - mu 1^T.
    assert 1e-4 < error < 0.06 < 0.2 * np.sqrt(float(transition_signal(source)))
    assert np.sqrt(np.trace((learned - p) @ np.diag(mu) @ (learned - p).T)) > 3 * error
    np.testing.assert_allclose(value.sum(axis=0), 1.0, atol=1e-6)
    np.testing.assert_allclose(value @ mu, mu, atol=1e-6)


def test_pretraining_uses_no_samples_of_the_task(pretrained: LearnerState) -> None:
    settings = change(SETTINGS, start="pretrained")
    assert settings.samples_before == SETTINGS.samples_before == 6 * B
    assert change(SETTINGS, start="uniform").samples_before == 0
    assert (int(pretrained.stage), int(pretrained.step)) == (2, 0)


@pytest.mark.slow
def test_transfer_recovers_a_long_pattern_with_few_samples() -> None:
    """From scratch, with more samples, noise gives a part of the runs the wrong sign; here none."""
    record = ("rounded_attention_distance", "rounded_value_distance", "alpha_value", "samples")
    settings = Settings(
        batch_size=16,
        steps=700,
        record_every=100,
        record=record,
        start="transfer",
        stop_level=0.9,
        refit_support=8,
        flip=False,
    )

    @functools.partial(jax.jit, static_argnums=1)
    def learn(seed: jax.Array, settings: Settings) -> dict[str, jax.Array]:
        def one(seed: jax.Array) -> dict[str, jax.Array]:
            key = jax.random.fold_in(jax.random.key(0), seed)
            task = random_task(key, num_tokens=3, context_length=16_000, sparsity=2, skew=1.3)
            source = related_task(jax.random.fold_in(key, 1), task, correlation=0.5)
            return train(jax.random.fold_in(key, 2), task, settings, source).records

        return jax.vmap(one)(seed)

    seeds = jnp.arange(32)
    transferred = learn(seeds, settings)
    scratch = learn(seeds, change(settings, start="uniform", steps=1500))
    assert int(transferred["samples"][0, -1]) <= int(scratch["samples"][0, -1])
    recovers, learns = (
        np.logical_and(*(np.asarray(run[name])[:, -1] < 0.1 for name in record[:2]))
        for run in (transferred, scratch)
    )
    assert np.mean(recovers) >= 0.9
    assert np.mean(learns) <= 0.85
    # At least half of the runs that are lost have gone the wrong way.
    assert np.mean(np.asarray(scratch["alpha_value"])[~learns, -1] < 0) >= 0.5


# What is refused.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": "warm"}, "start is 'warm'; it must be one of uniform, transfer, pretrained"),
        ({"first_samples": 0}, "first_samples is 0; it must be at least 1"),
        ({"first_samples": 50}, "^first_samples = 50 is not a multiple of batch_size = 16"),
        (
            {"start": "pretrained", "pretraining_steps": 25},
            "^pretraining_steps = 25 is not a multiple of record_every = 10",
        ),
        (
            {"steps": NEVER // B // 10 * 10, "first_samples": 10 * B},
            f"^steps = .* times batch_size = {B} is more samples than an int32 can count",
        ),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        change(SETTINGS, **changes)


def test_a_transfer_needs_a_source() -> None:
    with pytest.raises(ValueError, match="start is 'transfer'; it needs a source, a related task"):
        train(jax.random.key(0), make_task(), SETTINGS)


def test_samples_of_the_first_step_come_in_whole_batches() -> None:
    with pytest.raises(ValueError, match="num_samples is 50; it must be a multiple of batch_size"):
        first_step(
            jax.random.key(0),
            init_params(make_task()),
            make_task(),
            1.0,
            num_samples=50,
            batch_size=B,
        )
