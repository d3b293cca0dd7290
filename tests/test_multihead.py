"""Several heads: against sums over all contexts, plain JAX, Monte Carlo and singular values."""

import functools
import importlib
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import xarray

import scbjax
from scbjax.base import StudyError
from scbjax.experiments import multihead, multihead_model
from scbjax.experiments.multihead import is_trained
from scbjax.experiments.multihead_model import (
    HeadsTask,
    heads_excess_loss,
    heads_loss,
    heads_population_loss,
    random_heads,
)

Array = np.ndarray
FIGURES = Path(__file__).resolve().parents[1] / "figures"
N, T = 4, 5
SIZES = {"true_heads": 2, "num_tokens": N, "context_length": T, "sparsity": 2}
_draw = jax.jit(functools.partial(random_heads, **SIZES))  # type: ignore[arg-type]
SOURCE = multihead_model.heads_source(**SIZES)


def in_double(tree: Any) -> Any:  # noqa: ANN401 - any tree
    return jax.tree.map(lambda leaf: np.asarray(leaf, float), tree)


def make_task(seed: int = 0, decay: float = 0.7, correlation: float = 0.0) -> HeadsTask:
    """Of one size, so that drawing is compiled once."""
    task: HeadsTask = _draw(jax.random.key(seed), decay=decay, correlation=correlation)
    return task


def make_batch(task: HeadsTask, count: int) -> scbjax.Batch:
    assert SOURCE.keys is not None
    seed = SOURCE.keys(jax.random.key(7))(jnp.int32(3))
    batch: scbjax.Batch = jax.jit(SOURCE.sample, static_argnums=2)(
        seed, SOURCE.prepare(task), count
    )
    return batch


def make_params(task: HeadsTask, heads: int, seed: int = 1) -> scbjax.Params:
    """No invariant holds of them."""
    rng = np.random.default_rng(seed)
    value, attention = (
        jnp.asarray(rng.normal(size=(heads, *x.shape[1:])), jnp.float32)
        for x in (task.transition, task.pattern)
    )
    return scbjax.Params(value, attention)


def outputs(params: Any, hot: Array, query: int) -> Array:  # noqa: ANN401 - of any arrays
    """``sum_j V_j X a_j`` of a context [T, N], in plain loops."""
    total = np.zeros(hot.shape[1])
    for value, attention in zip(*params, strict=True):
        total += value @ hot.T @ attention[:, query]
    return total


def over_contexts(task: HeadsTask, params: Any) -> tuple[float, float]:  # noqa: ANN401
    """The loss and the excess loss in expectation: sums over all contexts, queries and labels."""
    transition, mu, pattern, weights = in_double(task)
    truth = (weights[:, None, None] * transition, pattern)
    loss = excess = 0.0
    length, size = pattern.shape[1:]
    for context in itertools.product(range(size), repeat=length):
        hot, chance = np.eye(size)[list(context)], np.prod(mu[list(context)])
        for query in range(size):
            output, label = (outputs(of, hot, query) for of in (in_double(params), truth))
            error = ((output[None] - np.eye(size)) ** 2).sum(axis=1)
            loss += chance * mu[query] * (label @ error) / 2
            excess += chance * mu[query] * ((output - label) ** 2).sum() / 2
    return float(loss), float(excess)


def plain_loss(params: scbjax.Params, batch: scbjax.Batch) -> jax.Array:
    """The loss as one writes it first: one-hot contexts, einsum, and JAX's own derivative."""
    size = params.value.shape[-1]
    hot = jax.nn.one_hot(batch.tokens, size)  # [B, T, N]
    weights = params.attention[:, :, batch.query]  # [H', T, B]
    output = jnp.einsum("jnm,btm,jtb->bn", params.value, hot, weights, precision="highest")
    error = output - jax.nn.one_hot(batch.label, size)
    return jnp.mean(jnp.sum(error**2, axis=1)) / 2.0


# ----------------------------------------------------------------------------------------- the task


def test_a_task_is_what_is_asked_for() -> None:
    task = in_double(make_task(3, decay=1.5))
    assert task.transition.shape == (2, N, N)
    np.testing.assert_allclose(task.transition.sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(task.transition @ task.stationary, [task.stationary] * 2, rtol=1e-4)
    assert np.ptp(task.stationary) > 0.01
    np.testing.assert_allclose(task.pattern.sum(axis=1), 1.0, rtol=1e-5)
    assert ((task.pattern > 0).sum(axis=1) == 2).all()
    assert ((task.pattern > 0).sum(axis=0) <= 1).all()  # disjoint
    power = np.arange(1, 3) ** -1.5
    np.testing.assert_allclose(task.weights, power / power.sum(), rtol=1e-5)
    # Columns have supports, and heads weights and matrices, of their own.
    assert len({tuple(np.flatnonzero(column)) for column in task.pattern[0].T}) > 1
    assert np.abs(task.transition[0] - task.transition[1]).max() > 0.05
    assert np.abs(np.sort(task.pattern[0], axis=0) - np.sort(task.pattern[1], axis=0)).max() > 0.01


def test_the_correlation_makes_transition_matrices_equal() -> None:
    apart, half, same = (make_task(correlation=rho).transition for rho in (0.0, 0.5, 1.0))
    np.testing.assert_allclose(half[1], (apart[0] + apart[1]) / 2, atol=1e-6)
    np.testing.assert_allclose(same[1], same[0], atol=1e-6)
    assert np.abs(np.asarray(apart[1] - apart[0])).max() > 0.05


def test_batches_follow_the_law() -> None:
    """Of the label with the query and the token at each position: counts of 200000 samples."""
    task, count = make_task(4), 200_000
    tokens, query, label = (np.asarray(x) for x in make_batch(task, count))
    transition, mu, pattern, weights = in_double(task)
    tolerance = 5 * math.sqrt(0.25 / count)
    for drawn in (*tokens.T, query):
        np.testing.assert_allclose(np.bincount(drawn, minlength=N) / count, mu, atol=tolerance)
    expected = np.zeros((N, N, T, N))
    for k, t in itertools.product(range(N), range(T)):
        mixed = weights * pattern[:, t, k]
        joint = np.einsum("h,hnm->nm", mixed, transition)
        joint += (1 - mixed.sum()) * mu[:, None]  # from another position
        expected[:, k, t] = joint * mu[None, :] * mu[k]
    found = np.zeros_like(expected)
    for t in range(T):
        np.add.at(found[:, :, t], (label, query, tokens[:, t]), 1 / count)
    np.testing.assert_allclose(found, expected, atol=5 * math.sqrt(expected.max() / count))
    # It would not be so if the positions, or the matrices of the heads, were interchanged.
    assert np.abs(expected - expected.mean(axis=2, keepdims=True)).max() > 0.01


# ----------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("heads", [1, 3])
def test_expected_losses_are_sums_over_all_contexts(heads: int) -> None:
    task = make_task()
    params = make_params(task, heads)
    loss, excess = over_contexts(task, params)
    assert float(heads_population_loss(params, task)) == pytest.approx(loss, rel=1e-4)
    assert float(heads_excess_loss(params, task)) == pytest.approx(excess, rel=1e-4)


def test_the_truth_has_no_excess_loss_and_no_gradient() -> None:
    task = make_task()
    truth = scbjax.Params(task.weights[:, None, None] * task.transition, task.pattern)
    assert 0.0 <= float(heads_excess_loss(truth, task)) < 1e-12
    for leaf in jax.grad(heads_population_loss)(truth, task):
        np.testing.assert_allclose(leaf, 0.0, atol=2e-6)


def test_the_gradient_of_a_batch_is_that_of_plain_jax() -> None:
    task = make_task(2)
    batch, params = make_batch(task, 32), make_params(task, 3)
    found, expected = (
        jax.jit(jax.value_and_grad(f))(params, batch) for f in (heads_loss, plain_loss)
    )
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for a, b in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)


def test_the_expected_gradient_is_the_mean_of_those_of_batches() -> None:
    task = make_task(5)
    batch, params = make_batch(task, 200_000), make_params(task, 3)
    expected = jax.jit(jax.grad(heads_population_loss))(params, task)
    found = jax.jit(jax.grad(heads_loss))(params, batch)
    for a, b in zip(found, expected, strict=True):
        scale = float(jnp.max(jnp.abs(b)))
        assert float(jnp.min(jnp.abs(b))) < 0.5 * scale  # not all alike
        np.testing.assert_allclose(a, b, atol=0.03 * scale)


# ------------------------------------------------------------------------------ what heads identify


@pytest.mark.parametrize("matrix", [[[1.7, -0.7], [-0.4, 1.4]], [[0.7, 0.3], [0.2, 0.8]]])
def test_the_loss_identifies_a_span_alone_also_on_the_simplex(matrix: list[list[float]]) -> None:
    """``A -> R A`` with ``R 1 = 1``; the second R leaves attention on the simplex."""
    task, mix = make_task(), jnp.asarray(matrix)
    value = jnp.einsum(
        "hj,hnm->jnm", jnp.linalg.inv(mix), task.weights[:, None, None] * task.transition
    )
    mixed = scbjax.Params(value, jnp.einsum("jh,htk->jtk", mix, task.pattern))
    np.testing.assert_allclose(mixed.attention.sum(axis=1), 1.0, rtol=1e-5)
    assert (float(mixed.attention.min()) >= 0) == (min(map(min, matrix)) >= 0)
    assert 0.0 <= float(heads_excess_loss(mixed, task)) < 1e-11


def test_what_few_heads_leave_is_the_singular_values_behind() -> None:
    """The best of one head, from the singular vectors of C, has the loss of the second value."""
    task = make_task(6)
    transition, mu, pattern, weights = in_double(task)
    root = np.sqrt(mu)
    left = np.stack([((p - mu[:, None]) * root).ravel() for p in transition])
    right = np.stack([(q * root).ravel() for q in pattern])
    u, sizes, v = np.linalg.svd((weights[:, None] * left).T @ right)
    attention = (v[0].reshape(pattern.shape[1:]) / root).copy()
    sums = attention.sum(axis=0)
    np.testing.assert_allclose(sums, sums[0], rtol=1e-5)  # as any row of the span has them
    value = sizes[0] * sums[0] * u[:, 0].reshape(N, N) / root + mu[:, None]
    best = scbjax.Params(*(jnp.asarray(x, jnp.float32)[None] for x in (value, attention / sums[0])))
    assert float(heads_excess_loss(best, task)) == pytest.approx(
        (sizes[1:] ** 2).sum() / 2, rel=1e-3
    )
    # The values follow from the products that a dataset has.
    truth = in_double(multihead._truth(task))
    gram = truth["pattern_products"] + 1 / T
    root_of = np.linalg.cholesky(gram)
    moment = root_of.T @ (np.outer(weights, weights) * truth["transition_products"]) @ root_of
    np.testing.assert_allclose(np.linalg.eigvalsh(moment)[::-1], sizes[:2] ** 2, rtol=1e-3)


STUDY: dict[str, Any] = {
    "experiment": "multihead",
    "task": {"num_tokens": N, "context_length": 12, "sparsity": 1, "true_heads": 2, "decay": 2.0},
    "model": {"attention_map": "linear", "max_heads": 2},
    "record": {"truth": True},
    "train": {
        "steps": 600,
        "record_every": 200,
        "data": "population",
        "optimizer": "preconditioned",
        "rate": 0.3,
    },
}


@pytest.fixture(scope="module")
def swept() -> xarray.Dataset:
    """Heads that begin equal, at random, and that are trained one after the other."""
    arms = {"name": "arm", "start_scale": [0.0, 0.1, 0.1], "head_steps": [0, 0, 200]}
    axes = {"seed": range(4), "heads": [1, 2], "correlation": [0.0, 1.0]}
    found = scbjax.sweep.run({**STUDY, "zip": [arms]}, axes=axes, progress=False)
    return found.transpose("correlation", "arm", "heads", "seed", "step", ...)


@pytest.mark.slow
def test_linear_heads_leave_what_theory_says(swept: xarray.Dataset) -> None:
    loss = swept.heads_excess_loss.values
    start, (apart, equal) = loss[..., 0], loss[..., -1]
    one, two = apart[1]
    assert (two < 1e-2 * one).all()  # as many heads as there are
    np.testing.assert_allclose(apart[0, 1], apart[0, 0], rtol=0.02)  # equal heads: as one
    assert (equal[:, 0] < 2e-3 * start[1, :, 0]).all()  # equal P_h: one is enough
    # One head leaves the second singular value.
    truth = swept.isel(correlation=0)
    weights, p, q = (
        truth[name].transpose("seed", ...).values.astype(float)
        for name in ("head_weights", "transition_products", "pattern_products")
    )
    root = np.linalg.cholesky(q + 1 / 12)
    moment = np.swapaxes(root, 1, 2) @ (weights[:, :, None] * p * weights[:, None, :]) @ root
    np.testing.assert_allclose(one, np.linalg.eigvalsh(moment)[:, 0] / 2, rtol=0.02)


@pytest.mark.slow
def test_heads_one_after_the_other_find_patterns_of_different_weights(
    swept: xarray.Dataset,
) -> None:
    of_two = swept.isel(correlation=0, heads=1, arm=[1, 2])
    own, true = (
        np.diagonal(of_two[name].transpose(..., *dims).values, axis1=-2, axis2=-1)
        for name, dims in (
            ("attention_products", ("own_head", "other_own_head")),
            ("pattern_products", ("head", "other_head")),
        )
    )
    assert (own[1, :, 1, 1] < 1e-8).all()  # the second one waits for its turn
    sizes = np.sqrt(own[:, :, -1, :, None] * true[:, None, :])
    cosines = np.abs(of_two.attention_overlap.isel(step=-1).values) / sizes
    straight, crossed = (np.trace(c, axis1=-2, axis2=-1) / 2 for c in (cosines, cosines[..., ::-1]))
    pairs = np.maximum(straight, crossed)
    assert (pairs[1] > 0.98).all()
    assert np.median(pairs[0]) < 0.95


def test_heads_are_trained_in_turn() -> None:
    def shown(step: int, head_steps: int = 7, heads: int = 2) -> str:
        trained = is_trained(jnp.int32(heads), jnp.int32(head_steps), jnp.int32(step), 3)
        return "".join("+" if one else "-" for one in trained.tolist())

    assert [shown(step) for step in (0, 6, 7, 13, 14)] == ["+--", "+--", "-+-", "-+-", "++-"]
    assert [shown(step, 0, 3) for step in (0, 100)] == ["+++", "+++"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["softmax", "sparsemax"])
@pytest.mark.parametrize("data", ["fresh", "population"])
def test_heads_on_the_simplex_learn(name: str, data: str) -> None:
    found = scbjax.sweep.run(
        STUDY,
        axes={"seed": range(4)},
        progress=False,
        set={
            "model.heads": 2,
            "model.attention_map": name,
            "train.data": data,
            "train.optimizer": "adam",
            "train.rate": 0.01,
            "train.attention_rate_ratio": 5.0,
            "train.steps": 1000,
            "train.record_every": 500,
        },
    )
    start, end = (found.heads_excess_loss.isel(step=at).values for at in (0, -1))
    learned = end < 0.3 * start
    # A sparse map may lose true positions, and what has no weight has no gradient.
    assert learned.all() if name == "softmax" else learned.any()


# ----------------------------------------------------------------------------------- the figures


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    monkeypatch.syspath_prepend(str(FIGURES))
    return importlib.import_module("multihead"), importlib.import_module("multihead_scaling")


def test_heads_are_matched_as_scipy_matches_them(scripts: tuple[Any, Any]) -> None:
    cosines = np.random.default_rng(0).random((20, 6, 4))
    for own in (1, 3, 4, 6):  # the others are nothing
        several = np.where(np.arange(6)[:, None] < own, cosines, 0.0)
        expected = [c[scipy.optimize.linear_sum_assignment(-c)].sum() for c in several]
        np.testing.assert_allclose(scripts[0].matched(several), expected)


def test_spans_have_the_principal_angles_of_scipy(scripts: tuple[Any, Any]) -> None:
    rng = np.random.default_rng(1)
    true, rest = rng.normal(size=(3, 9)), rng.normal(size=(2, 9))
    own = np.concatenate([true[:1] + 2 * true[1:2], rest, np.zeros((1, 9))])
    found = scripts[0].span_cosines(own @ own.T, own @ true.T, true @ true.T)
    angles = scipy.linalg.subspace_angles(own[:3].T, true.T)
    np.testing.assert_allclose(np.sort(found), np.sort(np.cos(angles)), atol=1e-6)
    cosines = scripts[0].cosines_of(own @ own.T, own @ true.T, true @ true.T)
    assert (cosines[-1] == 0).all()
    shown = abs(own[1] @ true[2]) / np.linalg.norm(own[1]) / np.linalg.norm(true[2])
    assert cosines[1, 2] == pytest.approx(shown)


def test_predictions_are_those_of_the_moment_itself(scripts: tuple[Any, Any]) -> None:
    task = make_task(8)
    transition, mu, pattern, weights = in_double(task)
    root = np.sqrt(mu)
    left = np.stack([((p - mu[:, None]) * root).ravel() for p in transition])
    right = np.stack([(q * root).ravel() for q in pattern])
    _, sizes, v = np.linalg.svd((weights[:, None] * left).T @ right)
    truth = in_double(multihead._truth(task))
    arrays = weights, truth["transition_products"], truth["pattern_products"]
    modes = scripts[0].modes_of(*arrays, T)
    np.testing.assert_allclose(modes.sizes, sizes[:2], rtol=1e-3)
    np.testing.assert_allclose(np.abs(modes.mixtures @ right), np.abs(v[:2]), atol=2e-3)
    gram = truth["pattern_products"] + 1 / T
    np.testing.assert_allclose(scripts[1].mode_sizes(*arrays[:2], gram), sizes[:2], rtol=1e-3)
    centred = (pattern - pattern.mean(axis=1, keepdims=True)) * root
    flat = centred.reshape(2, -1)
    own = modes.mixtures @ flat
    cosines = np.abs(own @ flat.T) / np.outer(*(np.linalg.norm(x, axis=1) for x in (own, flat)))
    best = max(np.trace(cosines), np.trace(cosines[::-1])) / 2
    together, in_turn, loss = scripts[0].predict(modes, 2)
    assert in_turn == pytest.approx(best, rel=1e-4)
    assert 0.6 < together < 1.0
    assert loss == 0.0
    assert scripts[0].predict(modes, 1)[2] == pytest.approx(sizes[1] ** 2 / 2, rel=2e-3)


def test_a_mode_grows_as_the_differential_equation_says(scripts: tuple[Any, Any]) -> None:
    """Of one head, by the recursion of its two factors from a balanced start."""
    rate, scale, sizes = 0.01, 1e-2, np.array([1.0])
    values = {
        "train.rate": rate, "train.start_scale": scale, "model.heads": 1,
        "task.num_tokens": 3, "task.context_length": 5,
    }  # fmt: skip
    steps = np.arange(0, 1500, 50)
    dataset = xarray.Dataset(coords={"step": steps}, attrs={"settings": json.dumps(values)})
    names = ("head_weights", "transition_products", "pattern_products")
    task = xarray.Dataset(
        {
            name: (("head", "other_head")[: x.ndim], x)
            for name, x in zip(names, (sizes, np.eye(1), np.eye(1)), strict=True)
        }
    )
    found = scripts[1].predict(dataset, task)
    start = scale**2 / 4 * (1 / 4 + 1 / 12)
    factors, losses = np.full(2, math.sqrt(start)), []
    for step in range(1500):
        if step % 50 == 0:
            losses.append(0.5 * (1 - factors.prod()) ** 2)
        factors = factors + rate * (1 - factors.prod()) * factors[::-1]
    np.testing.assert_allclose(found.loss, losses, rtol=0.1, atol=1e-4)
    assert scripts[1].slope_between(steps[1:], steps[1:] ** -1.5, np.linspace(50, 1700, 12)) == (
        pytest.approx(-1.5, abs=0.02)
    )


@pytest.mark.parametrize("study", ["multihead", "multihead_scaling"])
def test_the_studies_load(study: str) -> None:
    from scbjax.sweep.study.files import load_study

    for small in (False, True):
        assert load_study(study, small=small).experiment.name == "multihead"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.heads": 3}, "model.heads = 3 is larger than model.max_heads = 2"),
        ({"task.sparsity": 7}, "task.true_heads = 2 times task.sparsity = 7 is larger than task"),
        (
            {"train.l1": 1e-4, "model.attention_map": "softmax"},
            "train.l1 = 0.0001 has no meaning with model.attention_map = 'softmax'",
        ),
        ({"task.correlation": 1.5}, "task.correlation must be a number from 0.0 to 1.0, got 1.5"),
        ({"model.attention_map": "relu"}, "model.attention_map must be one of 'linear'"),
        (
            {"record.variables": ["samples"]},
            "samples, of which train.data = 'population' uses none",
        ),
    ],
)
def test_what_has_no_meaning_is_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=re.escape(message)):
        scbjax.sweep.run(STUDY, set={"model.heads": 2, **changes}, progress=False)
