"""Attention maps: against bisection in float64, SciPy, closed forms and finite differences."""

import contextlib
import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

import scbjax
from scbjax.base import StudyError
from scbjax.experiments import maps
from scbjax.experiments.maps import entmax, map_weights, relu_weights
from scbjax.losses import population_grad

Array = np.ndarray
ALPHAS = (1.0, 1.0 + 1e-9, 1.0 + 1e-4, 1.25, 1.5, 1.999, 2.0)


@contextlib.contextmanager
def double_precision(on: bool = True) -> Iterator[None]:
    jax.config.update("jax_enable_x64", on)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Any:  # noqa: ANN401
    with double_precision(request.param == "float64"):
        yield request.param


def by_bisection(column: Array, alpha: float) -> Array:
    """Entmax of one column in float64; at alpha = 1, SciPy's softmax."""
    if alpha == 1.0:
        return np.asarray(scipy.special.softmax(column))
    excess = alpha - 1.0

    def power(shift: float) -> Array:
        base = np.maximum(excess * (column - shift), -1.0)
        with np.errstate(divide="ignore"):
            return np.asarray(np.exp(np.log1p(base) / excess))

    low = column.max() - 1e-6
    high = column.max() + (1 - len(column) ** -excess) / excess + 1e-6
    shift = scipy.optimize.brentq(lambda c: power(c).sum() - 1.0, low, high, xtol=1e-15)
    return power(shift)


def by_sorting(column: Array) -> Array:
    """Sparsemax, the projection onto the simplex, by sorting."""
    ordered = np.sort(column)[::-1]
    sums = np.cumsum(ordered) - 1.0
    count = np.flatnonzero(ordered * np.arange(1, len(column) + 1) > sums)[-1] + 1
    projected: Array = np.maximum(column - sums[count - 1] / count, 0.0)
    return projected


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_entmax_is_the_root(alpha: float, scale: float, dtype: str) -> None:
    logits = scale * np.random.default_rng(3).normal(size=(300, 4)).astype(dtype)
    found = jax.jit(entmax)(jnp.asarray(logits), jnp.asarray(alpha, dtype))
    assert found.dtype == dtype
    held = 1.0 if alpha < 1.0 + 1e-7 and dtype == "float32" else float(np.asarray(alpha, dtype))
    expected = np.stack([by_bisection(column.astype(float), held) for column in logits.T], axis=1)
    tolerance = 1e-10 if dtype == "float64" else 2e-5
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * 0.1)
    np.testing.assert_allclose(found.sum(axis=0), 1.0, rtol=1e-6)


def test_sparsemax_is_the_projection_onto_the_simplex(dtype: str) -> None:
    logits = np.random.default_rng(0).normal(size=(200, 3)).astype(dtype)
    expected = np.stack([by_sorting(column.astype(float)) for column in logits.T], axis=1)
    found = np.asarray(map_weights("sparsemax", jnp.asarray(logits), 1.3))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(found == 0, expected == 0)


@pytest.mark.parametrize("name", maps.MAPS)
def test_every_map_starts_at_uniform_attention(name: str) -> None:
    model = maps.model_of({"attention_map": name, "value_path": "linear"})
    for length in (2, 1000):
        task = scbjax.random_task(
            jax.random.key(0), num_tokens=3, context_length=length, sparsity=2
        )
        params = model.readout(model.init(jax.random.key(1), task), {"alpha": jnp.asarray(1.5)})
        np.testing.assert_allclose(params.attention, 1.0 / length, rtol=1e-5)
        np.testing.assert_allclose(params.value, jnp.tile(task.stationary[:, None], 3))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_derivatives_are_those_of_finite_differences(alpha: float) -> None:
    rng = np.random.default_rng(1)
    with double_precision():
        logits, move = (jnp.asarray(rng.normal(size=(40, 3))) for _ in range(2))
        weigh = jnp.asarray(rng.normal(size=(40, 3)))
        _, slope = jax.jvp(lambda x: entmax(x, alpha), (logits,), (move,))
        step = 1e-6
        ends = (entmax(logits + sign * step * move, alpha) for sign in (1, -1))
        np.testing.assert_allclose(slope, (next(ends) - next(ends)) / (2 * step), atol=1e-8)
        # The gradient is that of the transpose.
        pulled = jax.grad(lambda x: jnp.sum(weigh * entmax(x, alpha)))(logits)
        np.testing.assert_allclose(jnp.sum(pulled * move), jnp.sum(weigh * slope), rtol=1e-10)

        def at(order: float) -> float:
            return float(jnp.sum(weigh * entmax(logits, order)))

        # Second-order differences, from one side at the ends.
        h = 1e-4
        if alpha < 1.0 + h:
            expected = (-3 * at(alpha) + 4 * at(alpha + h) - at(alpha + 2 * h)) / (2 * h)
        elif alpha > 2.0 - h:
            expected = (3 * at(alpha) - 4 * at(alpha - h) + at(alpha - 2 * h)) / (2 * h)
        else:
            expected = (at(alpha + h) - at(alpha - h)) / (2 * h)
        found = jax.grad(lambda order: jnp.sum(weigh * entmax(logits, order)))(alpha)
        assert float(found) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0])
def test_derivatives_are_finite_at_the_start_and_far_from_it(alpha: float) -> None:
    """In float32, under vmap, where most weights are zero and where all are equal."""
    logits = jnp.stack([jnp.zeros((50, 3)), 1e4 * jax.random.normal(jax.random.key(0), (50, 3))])

    def loss(logits: jax.Array, alpha: jax.Array) -> jax.Array:
        return jnp.sum(entmax(logits, alpha) ** 2)

    both = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1)), in_axes=(0, None)))
    for found in both(logits, jnp.asarray(alpha)):
        assert bool(jnp.all(jnp.isfinite(found)))


@pytest.mark.parametrize("alpha", [0.5, 2.5, math.nan])
def test_alphas_out_of_range_are_refused(alpha: float) -> None:
    with pytest.raises(
        ValueError, match=r"alpha is .*; it must be between 1 and 2: below 1 no weight"
    ):
        entmax(jnp.zeros((3, 1)), alpha)


def test_relu_weights_have_a_derivative_where_nothing_is_positive() -> None:
    rows = jnp.array([[1.0, -1.0], [3.0, -2.0]])
    assert relu_weights(rows).tolist() == [[0.25, 0.5], [0.75, 0.5]]
    slope = jax.grad(lambda w: jnp.sum(relu_weights(w) * jnp.arange(4.0).reshape(2, 2)))(rows)
    # d/dw_1 of w_2 / (w_1 + w_2) weighted by 0 and 2: -2 w_2 / 16 and 2 w_1 / 16.
    np.testing.assert_allclose(slope, [[-6 / 16, 0.0], [2 / 16, 0.0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "alpha"), [("linear", 1.0), ("softmax", 1.0), ("entmax", 1.5), ("sparsemax", 2.0)]
)
def test_the_preconditioned_step_moves_attention_as_the_linear_one(name: str, alpha: float) -> None:
    """To first order in the rate, from weights that are all positive."""
    with double_precision():
        task = scbjax.random_task(jax.random.key(0), num_tokens=3, context_length=12, sparsity=3)
        task = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), task)
        noise = 0.01 * jax.random.normal(jax.random.key(1), (12, 3), jnp.float64)
        noise = noise - noise.mean(axis=0, keepdims=True)  # columns of the linear map sum to one
        parameter = (1 / 12 if name == "linear" else 0.0) + noise
        value = task.stationary[:, None] + 0.3 * (task.transition - task.stationary[:, None])
        attention = map_weights(name, parameter, alpha)
        assert float(attention.min()) > 0
        grads = population_grad(scbjax.Params(value, attention), task)
        (pulled,) = jax.vjp(lambda w: map_weights(name, w, alpha), parameter)[1](grads.attention)
        rate = 1e-7
        step = maps.preconditioned(name, task, jnp.asarray(0.0), jnp.asarray(rate), alpha)
        params = {"value": value, "attention": parameter}
        updates, _ = step.update(
            {"value": grads.value, "attention": pulled}, step.init(params), params
        )
        moved = map_weights(name, parameter + updates["attention"], alpha) - attention
        centred = grads.attention - grads.attention.mean(axis=0, keepdims=True)
        expected = -rate * centred / task.stationary[None, :]
        np.testing.assert_allclose(moved, expected, rtol=1e-3, atol=1e-6 * rate)


def test_the_linear_map_with_the_preconditioned_step_is_the_paper_s_arm() -> None:
    task = scbjax.random_task(jax.random.key(0), num_tokens=3, context_length=30, sparsity=3)
    params = scbjax.init_params(task)
    grads = jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), params
    )
    ours = maps.preconditioned("linear", task, jnp.asarray(0.1), jnp.asarray(0.2), l1=0.01)
    paper = scbjax.scb_proximal(task.stationary, 0.1, 0.2, 0.01)
    expected, _ = paper.update(grads, paper.init(params), params)
    found, _ = ours.update(grads._asdict(), ours.init(params._asdict()), params._asdict())
    np.testing.assert_allclose(found["value"], expected.value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["attention"], expected.attention, rtol=1e-4, atol=1e-6)


def test_what_is_recorded_has_the_formulas() -> None:
    task = scbjax.random_task(jax.random.key(2), num_tokens=3, context_length=30, sparsity=4)
    attention = jax.nn.softmax(jax.random.normal(jax.random.key(3), (30, 3)), axis=0)
    attention = jnp.where(attention < 0.02, 0.0, attention)
    names = {entry.name: entry for entry in maps.RECORD if not isinstance(entry, str)}
    found = scbjax.observe(scbjax.Params(task.transition, attention), task, tuple(names.values()))
    mu, true, a = (np.asarray(x, float) for x in (task.stationary, task.pattern > 0, attention))
    q = np.asarray(task.pattern, float)
    assert float(found["support_mass"]) == pytest.approx(float(mu @ (a * true).sum(0)), rel=1e-5)
    assert float(found["off_support"]) == pytest.approx(
        float(mu @ (a * (1 - true)).sum(0)), rel=1e-5
    )
    dead = sum(1 for t, k in np.argwhere(true) if a[t, k] <= 0) / true.sum()
    assert dead > 0
    assert float(found["dead_share"]) == pytest.approx(dead)
    assert float(found["attended"]) == pytest.approx((a > 0).sum(0).mean())
    # Weights are between 1/(2Q) and 2/Q, both included.
    edges = np.geomspace(0.5, 2.0, maps._BINS + 1) / 4
    edges[[0, -1]] *= 1 - 1e-5, 1 + 1e-5
    for index, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = (q > low) & (q <= high)
        mean = (a[inside] / q[inside]).mean() if inside.any() else np.nan
        np.testing.assert_allclose(found["kept_by_size"][index], mean, rtol=1e-5)


def test_an_mlp_takes_the_place_of_v() -> None:
    static = {"attention_map": "softmax", "value_path": "mlp", "width": 5}
    task = scbjax.random_task(jax.random.key(0), num_tokens=3, context_length=20, sparsity=2)
    model, values = maps.model_of(static), {"alpha": jnp.asarray(1.5)}
    params = model.init(jax.random.key(1), task)
    params["value"]["output"] = jax.random.normal(jax.random.key(2), (3, 5))
    batch = scbjax.sample_batch(jax.random.key(3), task, 7)
    hot = np.eye(3)[np.asarray(batch.tokens)]
    weights = np.full((20, 3), 1 / 20)
    total = 0.0
    for context, query, label in zip(hot, np.asarray(batch.query), batch.label, strict=True):
        attended = context.T @ weights[:, query]
        value = {name: np.asarray(leaf, float) for name, leaf in params["value"].items()}
        hidden = np.maximum(value["hidden"] @ attended + value["bias"], 0.0)
        output = value["mean"] + value["output"] @ hidden
        total += ((output - np.eye(3)[int(label)]) ** 2).sum() / 2
    assert float(model.loss(params, batch, values)) == pytest.approx(total / 7, rel=1e-5)


@pytest.mark.slow
def test_a_small_sweep_learns_with_every_map() -> None:
    study = {
        "experiment": "maps",
        "task": {"num_tokens": 3, "context_length": 20, "sparsity": 2},
        "record": {"variables": ["excess_loss"]},
        "train": {"steps": 200, "record_every": 50, "data": "population", "rate": 0.5},
        "zip": [
            {
                "name": "arm",
                "attention_map": ["linear", "softmax", "entmax", "sparsemax", "relu"],
                "attention_rate_ratio": [0.05, 20.0, 2.0, 0.3, 0.1],
            }
        ],
    }
    found = scbjax.sweep.run(study, axes={"seed": range(4)}, progress=False)
    start, end = (found.excess_loss.isel(step=at).median("seed") for at in (0, -1))
    assert (end < 0.7 * start).all()
    assert not (found.diverged_at >= 0).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task.num_tokens": 1}, "task.num_tokens must be an integer from 2 to 2147483647, got 1"),
        ({"task.sparsity": 30}, "task.sparsity = 30 is larger than task.context_length = 20"),
        ({"model.alpha": 0.5}, "model.alpha must be a number from 1.0 to 2.0, got 0.5"),
        (
            {"train.optimizer": "preconditioned", "model.attention_map": "relu"},
            "train.optimizer = 'preconditioned' has no meaning with model.attention_map = 'relu'",
        ),
        (
            {"model.value_path": "mlp", "record.variables": ["excess_loss"]},
            "excess_loss, which has no closed form with model.value_path = 'mlp'",
        ),
        ({"record.final": True}, "record.final has nothing to keep: experiment = 'maps' declares"),
        (
            {"train.data": "population", "record.variables": ["samples"]},
            "samples, of which train.data = 'population' uses none",
        ),
    ],
)
def test_what_has_no_meaning_is_one_sentence(changes: dict[str, Any], message: str) -> None:
    study = {
        "experiment": "maps",
        "task": {"num_tokens": 3, "context_length": 20, "sparsity": 2},
        "train": {"steps": 2, "record_every": 1},
    }
    with pytest.raises(StudyError, match=re.escape(message)):
        scbjax.sweep.run(study, set=changes, axes={"seed": range(2)}, progress=False)
