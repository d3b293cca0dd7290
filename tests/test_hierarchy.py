"""Blocks of positions: steps against NumPy, the theory against Monte Carlo and SciPy."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, special

import scbjax
from scbjax.base import StudyError
from scbjax.experiments import hierarchy, hierarchy_theory
from scbjax.experiments.hierarchy import spread
from scbjax.experiments.hierarchy_theory import block_sums
from scbjax.model import keep_largest
from scbjax.once import LIGHTEST, compiled_quickly
from scbjax.patterns import leads
from scbjax.sweep.study.files import load_study

Array = np.ndarray
SIZES = {
    "num_tokens": 3,
    "context_length": 48,
    "block_length": 8,
    "active_blocks": 2,
    "block_sparsity": 3,
}
VALUES = {"skew": 2.0, "weight_skew": 1.7, "theta": 0.3, "rate": 0.2, "value_rate": 0.1, "l1": 0.0}
STATIC = {**SIZES, "batch_size": 5}


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


@cache
def drawer(active_blocks: int) -> Callable[..., scbjax.Task]:
    source = hierarchy._source({**SIZES, "active_blocks": active_blocks})
    return compiled_quickly(source.draw, level=lambda *_: LIGHTEST)


def task_of(seed: int = 0, active_blocks: int = 2) -> scbjax.Task:
    """A task with blocks, mu not uniform."""
    values = {name: jnp.asarray(value) for name, value in VALUES.items()}
    return drawer(active_blocks)(jax.random.key(seed), values)


def in_numpy(task: scbjax.Task) -> tuple[Array, Array, Array]:
    p, mu, q = (np.asarray(array, np.float64) for array in task)
    return p, mu, q


def random_params(attention: str, seed: int = 1) -> dict[str, jax.Array]:
    """Parameters off the start, that keep the invariants."""
    task, rng = task_of(), np.random.default_rng(seed)
    model = hierarchy.model_of({**STATIC, "attention": attention})
    values = {name: jnp.asarray(value) for name, value in VALUES.items()}
    params = dict(model.init(jax.random.key(0), task, values))
    if attention == "flat":
        noise = rng.normal(size=params["attention"].shape) * 0.01
        params["attention"] += jnp.asarray(noise - noise.mean(axis=0), jnp.float32)
        return params
    noise = rng.normal(size=params["blocks"].shape) * 0.05
    params["blocks"] += jnp.asarray(noise - noise.mean(axis=0), jnp.float32)
    noise = rng.normal(size=(6, 8, 3)) * 0.05
    noise -= noise.mean(axis=1, keepdims=True)
    params["within"] += jnp.asarray(noise.reshape(48, 3), jnp.float32)
    return params


def soft(x: Array, level: float | Array) -> Array:
    return np.asarray(np.sign(x) * np.maximum(np.abs(x) - level, 0.0))


# ---------------------------------------------------------------------------------------- the task


def test_patterns_have_their_blocks_and_positions() -> None:
    _, mu, q = in_numpy(task_of())
    assert mu.max() - mu.min() > 0.05
    assert np.allclose(q.sum(axis=0), 1.0, atol=1e-6)
    parts = q.reshape(6, 8, 3)
    blocks = parts.sum(axis=1)
    np.testing.assert_allclose(block_sums(jnp.asarray(q), 8), blocks, rtol=1e-6)
    assert ((blocks > 0).sum(axis=0) == 2).all()
    inside = (parts > 0).sum(axis=1)
    assert set(inside.ravel().tolist()) == {0, 3}
    skew = VALUES["weight_skew"]
    for weights, count in ((blocks, 2), (parts / np.where(blocks > 0, blocks, 1)[:, None], 3)):
        some = weights[weights > 0]
        assert some.min() >= 1 / (skew * count) - 1e-6
        assert some.max() <= skew / count + 1e-6
        assert np.ptp(some) > 0.01


def test_patterns_differ_by_column_and_block_and_take_any_block() -> None:
    many = np.stack([in_numpy(task_of(seed))[2].reshape(6, 8, 3) for seed in range(4)])
    assert (many.sum(axis=2) > 0).any(axis=(0, 2)).all()
    supports = {tuple(block.nonzero()[0]) for one in many for block in one[..., 0] if block.any()}
    assert len(supports) > 4


def test_blocks_and_what_is_within_make_the_attention() -> None:
    rng = np.random.default_rng(0)
    b, w = rng.normal(size=(6, 3)), rng.normal(size=(48, 3))
    found = spread(jnp.asarray(b, jnp.float32), jnp.asarray(w, jnp.float32))
    np.testing.assert_allclose(found, np.repeat(b, 8, axis=0) * w, rtol=1e-5)


# --------------------------------------------------------------------------------------- the steps


def test_loss_and_gradient_are_those_of_plain_jax() -> None:
    """One-hot contexts, einsum and autodiff: the snippet of the benchmark."""
    task, params = task_of(), random_params("two_level")
    batch = scbjax.sample_batch(jax.random.key(3), task, 7)
    model = hierarchy.model_of({**STATIC, "attention": "two_level"})

    def plain(params: Mapping[str, jax.Array]) -> jax.Array:
        attention = jnp.repeat(params["blocks"], 8, axis=0) * params["within"]
        context = jax.nn.one_hot(batch.tokens, 3)  # [B, T, N]
        attended = jnp.einsum("btn,tb->bn", context, attention[:, batch.query])
        error = attended @ params["value"].T - jax.nn.one_hot(batch.label, 3)
        return 0.5 * jnp.mean(jnp.sum(error**2, axis=1))

    expected, slopes = compiled_quickly(jax.value_and_grad(plain))(params)
    found, grads = compiled_quickly(jax.value_and_grad(model.loss))(params, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for name, grad in grads.items():
        np.testing.assert_allclose(grad, slopes[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("l1", [0.0, 0.004])
def test_a_step_on_blocks_is_that_of_a_attention_averaged_over_blocks(l1: float) -> None:
    """From a constant within blocks: eqs. 4 to 6, the gradient projected on such A."""
    rng, (_, mu, _) = np.random.default_rng(2), in_numpy(task_of())
    b = rng.dirichlet(np.ones(6), 3).T
    g, rate = rng.normal(size=(48, 3)), 0.03
    mean = np.repeat(g.reshape(6, 8, 3).mean(axis=1), 8, axis=0) / mu
    moved = soft(np.repeat(b, 8, axis=0) / 8 - rate * (mean - mean.mean(axis=0)), l1)
    moved += (1 - moved.sum(axis=0)) / 48
    with double_precision():
        step = hierarchy.block_step(jnp.asarray(mu), jnp.asarray(rate), l1, 8)
        grad = jax.grad(lambda b: jnp.sum(jnp.repeat(b, 8, axis=0) / 8 * g))(jnp.asarray(b))
        update, _ = step.update(grad, step.init(jnp.asarray(b)), jnp.asarray(b))
    np.testing.assert_allclose(
        b + np.asarray(update), moved.reshape(6, 8, 3).sum(axis=1), rtol=1e-9
    )


@pytest.mark.parametrize("l1", [0.0, 0.004])
def test_a_step_within_blocks_is_that_of_a_on_their_positions(l1: float) -> None:
    rng, (_, mu, _) = np.random.default_rng(3), in_numpy(task_of())
    b = np.zeros((6, 3))
    for column, rows in enumerate(([0, 4], [1, 2], [5, 3])):
        b[rows, column] = 0.3, 0.7
    w = rng.dirichlet(np.ones(8), (6, 3)).transpose(0, 2, 1)
    g, rate = rng.normal(size=(6, 8, 3)), 0.03
    pulled = g / mu
    moved = b[:, None] * w - rate * (pulled - pulled.mean(axis=1, keepdims=True))
    moved = soft(moved, l1)
    moved += (b - moved.sum(axis=1))[:, None] / 8
    expected = np.where(b[:, None] > 0, moved, 0.0).reshape(48, 3)
    with double_precision():
        params = {"blocks": jnp.asarray(b), "within": jnp.asarray(w.reshape(48, 3))}
        grads = jax.grad(lambda w: jnp.sum(spread(params["blocks"], w) * g.reshape(48, 3)))(
            params["within"]
        )
        update = hierarchy.within_update(grads, params, jnp.asarray(mu), jnp.asarray(rate), l1)
        found = spread(params["blocks"], params["within"] + update)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    still = np.repeat(b == 0, 8, axis=0)
    assert not np.asarray(update)[still].any()


@cache
def stepper(attention: str) -> Callable[..., Any]:
    static = {**STATIC, "attention": attention}

    def step(task: scbjax.Task, values: Any, params: Any, batch: scbjax.Batch) -> Any:  # noqa: ANN401
        optimizer = hierarchy.optimizer_of(static)(task, values, ())
        grads = jax.grad(hierarchy.model_of(static).loss)(params, batch)
        return optimizer.update(grads, optimizer.init(params), params)

    return compiled_quickly(step, level=lambda *_: LIGHTEST)


def step_of(attention: str, params: dict[str, jax.Array], batch: scbjax.Batch) -> Any:  # noqa: ANN401
    values = {name: jnp.asarray(value) for name, value in VALUES.items()}
    return stepper(attention)(task_of(), values, params, batch)


def test_the_sums_over_blocks_of_the_flat_attention_are_the_other_s_blocks() -> None:
    """After a step from the same A and V: A is linear in the gradients, and so are its sums."""
    batch = scbjax.sample_batch(jax.random.key(3), task_of(), 5)
    values = {name: jnp.asarray(value) for name, value in VALUES.items()}
    start = {
        attention: hierarchy.model_of({**STATIC, "attention": attention}).init(
            jax.random.key(0), task_of(), values
        )
        for attention in ("flat", "two_level")
    }
    (flat, progress), (two, other) = (step_of(name, start[name], batch) for name in start)
    np.testing.assert_allclose(block_sums(flat["attention"], 8), two["blocks"], atol=2e-6)
    np.testing.assert_allclose(flat["value"], two["value"], atol=1e-6)
    assert float(jnp.abs(two["blocks"]).max()) > 1e-3
    # The noise of an entry of A after it, times mu.
    p, mu, q = in_numpy(task_of())
    d = 0.3 * (p - mu[:, None])
    rate = 0.2 / (((p**2) * mu).sum() - (mu**2).sum())
    v = sum(mu[x] * (mu @ (d[:, x] - mu @ d[:, x]) ** 2) for x in range(3))
    assert float(progress.variance) == pytest.approx(rate**2 * v / 5, rel=1e-4)
    assert float(other.variance) == float(progress.variance)
    assert int(progress.samples) == 5
    assert q.shape == (48, 3)


@pytest.mark.parametrize("attention", ["flat", "two_level"])
def test_what_leads_is_noted_once(attention: str) -> None:
    task = task_of()
    batch = scbjax.sample_batch(jax.random.key(3), task, 5)
    params = random_params(attention)
    _, state = step_of(attention, params, batch)
    assert (int(state.block_samples), int(state.position_samples)) == (-1, -1)
    if attention == "flat":
        params["attention"] = task.pattern
    else:
        params["blocks"] = block_sums(task.pattern, 8)
        params["within"] = task.pattern / jnp.repeat(jnp.maximum(params["blocks"], 1e-9), 8, axis=0)
    _, state = step_of(attention, params, batch)
    assert (int(state.block_samples), int(state.position_samples)) == (0, 0)


def test_rows_lead_only_in_all_columns() -> None:
    weights = jnp.array([[3.0, 1.0], [2.0, 2.0], [1.0, 0.0]])
    true = jnp.array([[True, False], [True, True], [False, False]])
    assert bool(leads(weights, true))
    assert not bool(leads(weights, true.at[2, 1].set(True)))
    assert not bool(leads(weights.at[0, 1].set(2.0), true))  # a tie is no lead
    assert bool(leads(weights, jnp.ones_like(true)))


def test_blocks_are_kept_once_they_stand_out() -> None:
    rng, (_, mu, _) = np.random.default_rng(5), in_numpy(task_of())
    b = rng.dirichlet(np.ones(6), 3).T
    variance = 2e-4
    second = np.sort(b, axis=0)[-2]
    expected = ((second - 1 / 6) / np.sqrt(8 * variance / mu)).min()
    blocks, noise, law = (jnp.asarray(x, jnp.float32) for x in (b, variance, mu))
    found = hierarchy.standing_out(blocks, noise, law, 8, 2)
    assert float(found) == pytest.approx(expected, rel=1e-4)
    assert float(hierarchy.standing_out(blocks, jnp.zeros(()), law, 8, 2)) == 0.0
    kept = np.where(b >= second, b, 0.0)
    np.testing.assert_allclose(keep_largest(blocks, 2), kept / kept.sum(axis=0), rtol=1e-5)


# --------------------------------------------------------------------------------------- the theory


def test_what_a_sample_adds_has_the_moments_of_the_theory() -> None:
    """Gradients of single samples at the start: means and variances of positions and of blocks."""
    task = task_of()
    p, mu, q = in_numpy(task)
    v0 = scbjax.transfer.mix_value(task.transition, task.stationary, 1.0)
    params = scbjax.Params(v0, jnp.zeros_like(task.pattern))  # h = 0: the limit of a long context
    count = 40_000
    batch = scbjax.sample_batch(jax.random.key(9), task, count)
    _, grads = scbjax.losses.sample_gradients(params, batch)
    # V h is mu at the start, and 0 here, which changes nothing but a function of the token; and
    # what depends on the label alone goes with the mean over the positions.
    shift = (p.T @ mu)[np.asarray(batch.tokens)] + mu[np.asarray(batch.label)][:, None]
    score = -np.asarray(grads.attention, np.float64) * count - shift + mu @ mu
    query = np.asarray(batch.query)
    weights = np.asarray(jax.lax.top_k(task.pattern.T, 6)[0])
    own = hierarchy_theory.contest(task, jnp.asarray(weights), 42, 1)
    mean, v, second = (float(x) for x in (own.mean, own.variance, own.second))
    for k in range(3):
        mine = score[query == k]
        error = 5 / np.sqrt(len(mine))
        np.testing.assert_allclose(mine.mean(axis=0), q[:, k] * mean, atol=error * np.sqrt(v))
        expected = v + q[:, k] * (second - v) - (q[:, k] * mean) ** 2
        np.testing.assert_allclose(mine.var(axis=0), expected, rtol=2 * error)
        sums, b = mine.reshape(-1, 6, 8).sum(axis=2), q[:, k].reshape(6, 8).sum(axis=1)
        of_sums = 8 * v + b * (second - v) - (b * mean) ** 2
        np.testing.assert_allclose(sums.mean(axis=0), b * mean, atol=error * np.sqrt(8 * v))
        np.testing.assert_allclose(sums.var(axis=0), of_sums, rtol=2 * error)


def moments(task: scbjax.Task) -> tuple[float, float, float, Array]:
    """K, v and the second moment at the source, by loops."""
    p, mu, _ = in_numpy(task)
    mean = v = second = 0.0
    for x in range(3):
        centred = p[:, x] - mu - mu @ (p[:, x] - mu)
        mean += mu[x] * (p[:, x] @ centred)
        second += mu[x] * (p[:, x] @ centred**2)
        v += mu[x] * (mu @ centred**2)
    return mean, v, second, mu


def lead_by_quadrature(
    task: scbjax.Task, weights: Array, rivals: int, length: int, samples: float
) -> float:
    """The probability that true rows lead, by quadrature over the largest of the rivals."""
    mean, v, second, mu = moments(task)
    whole = 1.0
    for k in range(3):
        z = np.sqrt(samples * mu[k]) * weights[k] * mean / np.sqrt(length * v)
        more = weights[k] * (second - v) - (weights[k] * mean) ** 2
        r = np.sqrt(1 + more / (length * v))

        def inside(x: float, z: Array = z, r: Array = r) -> float:
            density = np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)
            density *= rivals * special.ndtr(x) ** (rivals - 1)
            return float(density * np.prod(special.ndtr((z - x) / r)))

        whole *= integrate.quad(inside, -6, 9, limit=200)[0]
    return whole


@pytest.mark.parametrize("level", ["blocks", "positions"])
def test_the_probability_to_lead_and_its_median_are_those_of_quadrature(level: str) -> None:
    task = task_of()
    _, _, q = in_numpy(task)
    if level == "blocks":
        length, rows, name = 8, q.reshape(6, 8, 3).sum(axis=1), "predicted_block_samples"
    else:
        length, rows, name = 1, q, "predicted_position_samples"
    count = int((rows[:, 0] > 0).sum())
    weights = np.sort(rows, axis=0)[-count:].T
    rivals = len(rows) - count
    own = hierarchy_theory.contest(task, jnp.asarray(weights, jnp.float32), rivals, length)

    def exact(samples: float) -> float:
        return lead_by_quadrature(task, weights, rivals, length, samples)

    probability = compiled_quickly(partial(hierarchy_theory.lead_probability, own))
    median = optimize.brentq(lambda n: exact(np.exp(n)) - 0.5, 2, 12, xtol=1e-4)
    for samples in np.exp(median) * np.array([0.3, 1.0, 2.5]):
        found = float(probability(jnp.asarray(samples, jnp.float32)))
        assert found == pytest.approx(exact(samples), abs=5e-3)
    sizes = {name: SIZES[name] for name in ("block_length", "active_blocks", "block_sparsity")}
    predicted = compiled_quickly(lambda task: hierarchy_theory.predictions(task, **sizes))(task)
    assert float(predicted[name]) == pytest.approx(np.exp(median), rel=0.01)


def test_without_rivals_of_other_number_the_ratio_is_that_of_the_noise() -> None:
    """As many rivals, one true row, and equal weights: n_flat / n_block = s^2 / L exactly."""
    task = task_of()
    mean, v, _, mu = (jnp.asarray(x, jnp.float32) for x in moments(task))
    until = {}
    for weight, length in ((1 / 3, 1), (1.0, 8)):
        weights = jnp.full((3, 1), weight)
        # With the variance of a null row throughout.
        second = v + weight * mean**2
        own = hierarchy_theory.Contest(weights, 20, length, mean, v, second, mu)
        until[length] = float(
            hierarchy_theory.samples_until(partial(hierarchy_theory.lead_probability, own))
        )
    assert until[1] / until[8] == pytest.approx(9 / 8, rel=1e-3)


def test_the_end_of_the_first_level_is_predicted() -> None:
    task = task_of()
    mean, v, _, mu = moments(task)
    b = in_numpy(task)[2].reshape(6, 8, 3).sum(axis=1)

    def share(log_samples: float) -> float:
        z = np.sqrt(np.exp(log_samples) * mu) * (b - 1 / 6) * mean / np.sqrt(8 * v)
        return float(np.prod(special.ndtr((z - 4.0)[b > 0])) - 0.5)

    expected = np.exp(optimize.brentq(share, 0, 15))
    found = float(hierarchy_theory.predicted_switch(task, jnp.asarray(4.0), 8, 2))
    assert found == pytest.approx(expected, rel=1e-3)


# ----------------------------------------------------------------------------------- the experiment


def test_the_small_study_is_one_of_seconds() -> None:
    study = load_study("hierarchy", small=True)
    assert study.experiment.name == "hierarchy"
    assert study.num_trajectories <= 20
    whole = load_study("hierarchy")
    assert whole.num_trajectories == 22 * 32


STUDY: dict[str, Any] = {
    "experiment": "hierarchy",
    "task": {"num_tokens": 3, "context_length": 64, "block_length": 8, "block_sparsity": 4},
    "train": {"steps": 240, "record_every": 4, "batch_size": 16},
}


def check_run(found: Any, *, two_levels: bool) -> None:  # noqa: ANN401 - a dataset
    end = found.isel(step=-1)
    blocks, positions, switch = (
        end[f"{name}_samples"].to_numpy() for name in ("block", "position", "switch")
    )
    assert not (found.diverged_at >= 0).any()
    assert (blocks > 0).all()
    assert (positions > blocks).all()
    # Once found, a number stays.
    first = found.position_samples.to_numpy()
    assert ((np.diff(first, axis=-1) >= 0) | (first[..., :-1] == -1)).all()
    assert np.median(positions) < 3 * float(end.predicted_position_samples.median())
    if two_levels:
        assert (switch > 0).all()
        assert (positions > switch).all()
        assert 0.4 < np.median(switch / end.predicted_switch_samples.to_numpy()) < 2
        later = found.stage.to_numpy() == 2
        assert ((later.sum(axis=-1) * 4 * 16) == 240 * 16 - switch + 64).all()
    else:
        assert (switch == -1).all()


@pytest.mark.slow
def test_two_levels_learn_through_the_engine() -> None:
    found = scbjax.sweep.run(STUDY, axes={"seed": range(3)}, progress=False)
    check_run(found, two_levels=True)


@pytest.mark.slow
def test_a_flat_attention_learns_the_same_task_from_the_same_batches() -> None:
    zipped = [{"name": "arm", "attention": ["flat", "two_level"]}]
    found = scbjax.sweep.run({**STUDY, "zip": zipped}, axes={"seed": range(3)}, progress=False)
    check_run(found.isel(arm=0), two_levels=False)
    ends = found.block_samples.isel(step=-1).transpose("arm", "seed").to_numpy()
    switch = found.switch_samples.isel(step=-1, arm=1).to_numpy()
    early = ends[0] < switch
    assert early.any()
    np.testing.assert_array_equal(ends[0][early], ends[1][early])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task.block_length": 7},
            "task.context_length = 64 is no multiple of task.block_length = 7",
        ),
        (
            {"task.block_sparsity": 9},
            "task.block_sparsity = 9 is larger than task.block_length = 8",
        ),
        (
            {"task.active_blocks": 8},
            "task.active_blocks = 8 leaves no block of task.context_length = 64 over, in blocks of",
        ),
        ({"model.attention": "three_level"}, "model.attention must be one of 'flat', 'two_level'"),
        ({"train.theta": 1.5}, "train.theta must be a number from 0.0 to 1.0, got 1.5"),
        ({"task.block_length": 0}, "task.block_length must be an integer"),
    ],
)
def test_what_has_no_meaning_is_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=re.escape(message)):
        scbjax.sweep.run(STUDY, set=changes, axes={"seed": range(2)}, progress=False)
