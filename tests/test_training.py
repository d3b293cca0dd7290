"""The trajectory: steps against NumPy, stages, segments, maps over seeds and settings, a recipe."""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scbjax import (
    composition,
    losses,
    paper,
    recorded,
    sampling,
    stages,
    starts,
    theory,
)
from scbjax.algorithm import Tracked
from scbjax.composition import LearnerState
from scbjax.model import Params, map_attention
from scbjax.paper import advance, init, next_stage, step
from scbjax.parameters import Generator, Precision
from scbjax.sampling import Batch, sample_batch
from scbjax.settings import NEVER, STATIC_FIELDS, TRACED_FIELDS, Settings
from scbjax.task import (
    Task,
    pattern_signal,
    product,
    random_task,
    transition_signal,
)
from scbjax.training import train
from scbjax.trajectories import Trajectory

Array = np.ndarray

N, T, Q, B = 3, 40, 2, 16
MANY = 40  # tokens: steps go another way than with few
RECORD = (
    "alpha_value",
    "alpha_attention",
    "delta_value",
    "stage",
    "flipped",
    "samples",
    "batch_loss",
    "population_alpha_value",
    "population_alpha_attention",
)
# Rates at which these small tasks go through all stages in 80 steps.
LEAST = {"theta": "between 0 and 1"}  # a share
QUICK = Settings(
    batch_size=B,
    steps=80,
    record_every=4,
    record=RECORD,
    learning_rate_1=0.05,
    learning_rate_2=0.05,
    learning_rate_3=0.02,
    l1=1e-3,
)
change = dataclasses.replace
run = jax.jit(train)
one_step = jax.jit(step)
end_stage = jax.jit(next_stage)
draw_batch = jax.jit(sample_batch, static_argnums=2)


@pytest.fixture
def x64() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@functools.cache
def make_task(seed: int = 0, length: int = T, sparsity: int = Q, num_tokens: int = N) -> Task:
    draw = functools.partial(
        random_task, num_tokens=num_tokens, context_length=length, sparsity=sparsity
    )
    task: Task = jax.jit(draw)(jax.random.key(seed))
    assert float(jnp.max(task.stationary) / jnp.min(task.stationary)) > 1.2
    return task


def draw(seed: int, task: Task) -> Batch:
    batch: Batch = draw_batch(jax.random.key(seed), task, B)
    return batch


def assert_close(found: object, expected: object, relative: float) -> None:
    """Every array within a share of its own largest entry."""

    def check(a: jax.Array, b: jax.Array) -> None:
        scale = float(np.nanmax(np.abs(np.asarray(b, np.float64)), initial=1e-3))
        np.testing.assert_allclose(a, b, rtol=0, atol=relative * scale)

    jax.tree.map(check, found, expected)


# One step.


class Numbers(NamedTuple):
    """A task and a state in float64 NumPy."""

    p: Array
    mu: Array
    q: Array
    v: Array
    a: Array

    def inner(self, x: Array, y: Array) -> float:
        return float(np.trace(x @ np.diag(self.mu) @ y.T))

    @property
    def k_p(self) -> float:
        return self.inner(self.p, self.p) - float(self.mu @ self.mu)

    @property
    def k_q(self) -> float:
        return self.inner(self.q, self.q) - 1 / len(self.q)

    def path_point(self, alpha_value: float, alpha_attention: float) -> tuple[Array, Array]:
        value = alpha_value * self.p + (1 - alpha_value) * self.mu[:, None]
        return value, alpha_attention * self.q + (1 - alpha_attention) / self.q.shape[0]


def to_numbers(task: Task, params: Params) -> Numbers:
    return Numbers(*(np.asarray(array, np.float64) for array in (*task, *params)))


def naive_loss_and_gradients(numbers: Numbers, batch: Batch) -> tuple[float, Array, Array]:
    """Equation 3 on one-hot contexts."""
    tokens, query, label = map(np.asarray, batch)
    eye = np.eye(len(numbers.mu))
    contexts = eye[tokens]
    attended = np.einsum("btn,bt->bn", contexts, numbers.a.T[query])
    error = attended @ numbers.v.T - eye[label]
    value = error.T @ attended / len(label)
    per_sample = np.einsum("btn,bn->bt", contexts, error @ numbers.v)
    attention = per_sample.T @ eye[query] / len(label)
    return float((error**2).sum() / 2 / len(label)), value, attention


def reference_step(
    numbers: Numbers, batch: Batch, rates: tuple[float, float], level: float
) -> tuple[Array, Array]:
    """Equations 4 to 6 with the projector that is orthogonal in the mu-inner product."""
    _, grad_value, grad_attention = naive_loss_and_gradients(numbers, batch)
    eye, size = np.eye(len(numbers.mu)), len(numbers.mu)
    right = eye - np.outer(numbers.mu, np.ones(size))
    direction = (eye - 1 / size) @ grad_value @ np.diag(1 / numbers.mu) @ right
    moved = grad_attention / numbers.mu
    moved = numbers.a - rates[1] * (moved - moved.mean(axis=0))
    moved = np.sign(moved) * np.clip(np.abs(moved) - level, 0, None)
    moved = moved + (1 - moved.sum(axis=0)) / moved.shape[0]
    return numbers.v - rates[0] * direction, moved


def noisy_state(task: Task, stage: int, settings: Settings) -> LearnerState:
    """A state on the invariant set but off the path."""
    rng = np.random.default_rng(stage)
    start = init(jax.random.key(0), task, settings)
    numbers = to_numbers(task, start.params)
    value, attention = numbers.path_point(0.4, 0.6)
    noise = rng.normal(size=value.shape) * 0.1
    noise -= noise.mean(axis=0)
    noise -= np.outer(noise @ numbers.mu, np.ones(task.num_tokens))
    attention_noise = rng.normal(size=attention.shape) * 0.01
    attention_noise -= attention_noise.mean(axis=0)
    params = (value + noise, attention + attention_noise)
    return start._replace(
        params=Params(*(jnp.asarray(array, jnp.float32) for array in params)),
        stage=jnp.asarray(stage, jnp.int32),
        step=jnp.asarray(7, jnp.int32),
    )


@pytest.mark.parametrize("l1_scaling", ["direct", "rate", "signal"])
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("num_tokens", [N, MANY])
def test_step_equals_the_equations(
    num_tokens: int,
    l1_scaling: Any,  # noqa: ANN401
    stage: int,
) -> None:
    task = make_task(num_tokens=num_tokens)
    settings = change(QUICK, l1_scaling=l1_scaling, l1=0.5 if l1_scaling != "direct" else 0.004)
    state = noisy_state(task, stage, settings)
    batch = draw(1, task)
    after, info = one_step(state, batch, task, settings)
    numbers = to_numbers(task, state.params)
    rate = (0.05, 0.05, 0.02)[stage - 1]
    rates = (rate / numbers.k_q, rate / numbers.k_p if stage < 3 else 0.0)
    size = numbers.inner(numbers.v, numbers.v) - numbers.mu @ numbers.mu
    scale = {"direct": 1.0, "rate": rates[1], "signal": rate * np.sqrt(size / numbers.k_p)}
    level = float(settings.l1) * scale[l1_scaling] if stage == 2 else 0.0
    value, attention = reference_step(numbers, batch, rates, level)
    if stage == 3:
        attention = numbers.a
    np.testing.assert_allclose(after.params.value, value, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(after.params.attention, attention, rtol=2e-5, atol=1e-6)
    loss, *grads = naive_loss_and_gradients(numbers, batch)
    np.testing.assert_allclose(info.rates, rates, rtol=1e-5)
    np.testing.assert_allclose(info.l1, level, rtol=1e-5)
    np.testing.assert_allclose([info.loss, after.batch_loss], loss, rtol=1e-5)
    for found, expected in zip(info.grads, grads, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)
    assert (int(after.step), int(after.stage), bool(after.tracked.flipped)) == (8, stage, False)


def test_rates_need_not_be_scaled() -> None:
    settings = change(QUICK, scale_rates=False)
    task = make_task()
    rates, _ = paper.step_sizes(noisy_state(task, 1, settings), task, settings)
    np.testing.assert_allclose(rates, 0.05, rtol=1e-6)


def test_geometry_reaches_the_optimiser() -> None:
    task = make_task()
    batch = draw(1, task)
    numbers = to_numbers(task, noisy_state(task, 1, QUICK).params)
    found = {
        geometry: one_step(
            noisy_state(task, 1, QUICK), batch, task, change(QUICK, geometry=geometry)
        )[0].params.value
        for geometry in ("mu", "paper")
    }
    _, grad, _ = naive_loss_and_gradients(numbers, batch)
    mu = numbers.mu
    paper = np.eye(N) - np.outer(mu, mu) / (mu @ mu)
    direction = (np.eye(N) - 1 / N) @ grad @ np.diag(1 / mu) @ paper
    expected = numbers.v - 0.05 / numbers.k_q * direction
    np.testing.assert_allclose(found["paper"], expected, rtol=2e-5, atol=1e-6)
    assert float(jnp.max(jnp.abs(found["mu"] - found["paper"]))) > 1e-3


def test_raw_sgd_is_plain_gradient_descent() -> None:
    task = make_task()
    settings = change(QUICK, optimizer="raw_sgd", scale_rates=False)
    state = noisy_state(task, 1, settings)
    for index in range(3):
        numbers = to_numbers(task, state.params)
        batch = draw(index, task)
        state, _ = one_step(state, batch, task, settings)
        _, value, attention = naive_loss_and_gradients(numbers, batch)
        np.testing.assert_allclose(state.params.value, numbers.v - 0.05 * value, atol=1e-6)
        np.testing.assert_allclose(state.params.attention, numbers.a - 0.05 * attention, atol=1e-6)


SOFTMAX = change(
    QUICK,
    optimizer="raw_sgd",
    attention_map="softmax",
    scale_rates=False,
    learning_rate_1=0.5,
    attention_rate_ratio=40.0,
    switch_level=float("inf"),
)


def softmax_state(task: Task, scale: float) -> LearnerState:
    """Off the path in V, and with logits of the given size, in the dtype of the task."""
    rng = np.random.default_rng(11)
    start = init(jax.random.key(0), task, SOFTMAX)
    value = start.params.value + jnp.asarray(
        0.2 * rng.normal(size=(N, N)), start.params.value.dtype
    )
    logits = jnp.asarray(scale * rng.normal(size=(T, N)), value.dtype)
    return start._replace(params=Params(value, logits))


def test_softmax_logits_descend_by_the_jacobian_of_softmax() -> None:
    task = make_task()
    state, batch = softmax_state(task, 1.5), draw(2, task)
    after, info = one_step(state, batch, task, SOFTMAX)
    numbers = to_numbers(task, state.params)
    weights = np.exp(numbers.a) / np.exp(numbers.a).sum(axis=0)
    loss, value, attention = naive_loss_and_gradients(numbers._replace(a=weights), batch)
    columns = zip(weights.T, attention.T, strict=True)
    logits = np.stack([(np.diag(a) - np.outer(a, a)) @ g for a, g in columns], axis=1)
    np.testing.assert_allclose(info.loss, loss, rtol=1e-5)
    np.testing.assert_allclose(after.params.value, numbers.v - 0.5 * value, atol=1e-6)
    np.testing.assert_allclose(after.params.attention, numbers.a - 20 * logits, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_near_uniform_softmax_steps_are_linear_steps_with_a_rescaled_rate() -> None:
    """The preconditioner ``(diag(a) - a a^T)^2`` is ``(I - 1 1^T / T) / T^2`` up to ``O(|w|)``."""
    task = jax.tree.map(lambda array: array.astype(jnp.float64), make_task())
    batch, deviations = draw(3, task), []
    for scale in (1e-3, 1e-4):
        state = softmax_state(task, scale)
        before = map_attention(state.params, "softmax")
        # The rate of W, 20 at the size of 1e-3, shrinks too: the claim is about small steps.
        settings = change(SOFTMAX, attention_rate_ratio=4e4 * scale)
        after, _ = one_step(state, batch, task, settings)
        moved = map_attention(after.params, "softmax").attention - before.attention
        _, _, gradient = naive_loss_and_gradients(to_numbers(task, before), batch)
        linear = -0.5 * 4e4 * scale / T**2 * (gradient - gradient.mean(axis=0))
        deviations.append(np.abs(moved - linear).max() / np.abs(linear).max())
    assert deviations[0] < 0.1
    assert deviations[1] == pytest.approx(deviations[0] / 10, rel=0.1)


@pytest.mark.slow
def test_what_is_seen_of_softmax_is_the_attention() -> None:
    task, key = make_task(), jax.random.key(3)
    record = ("attention_distance", "rounded_attention_distance", "attention_gain_support", "stage")
    settings = change(SOFTMAX, record=record, switch_level=0.3, learning_rate_2=0.5, steps=240)
    trajectory = run(key, task, settings)
    mapped = map_attention(trajectory.params, "softmax")
    numbers = to_numbers(task, mapped)
    assert numbers.a.min() > 0
    np.testing.assert_allclose(numbers.a.sum(axis=0), 1.0, rtol=1e-5)
    distance = np.sqrt(numbers.inner(numbers.a - numbers.q, numbers.a - numbers.q))
    records = trajectory.records
    np.testing.assert_allclose(records["attention_distance"][-1], distance, rtol=1e-5)
    assert distance < 0.5 * records["attention_distance"][0]
    rounded = np.where(numbers.a >= 0.25 / Q, numbers.a, 0.0)
    rounded /= rounded.sum(axis=0)
    expected = np.sqrt(numbers.inner(rounded - numbers.q, rounded - numbers.q))
    np.testing.assert_allclose(records["rounded_attention_distance"][-1], expected, rtol=1e-4)
    assert float(records["attention_gain_support"][-1]) > 2
    assert int(records["stage"][0]) == 1
    assert int(records["stage"][-1]) == 2


def test_a_stage_of_softmax_ends_by_the_signal_of_its_attention() -> None:
    task = make_task()
    settings = change(SOFTMAX, switch_on="truth", switch_level=0.5)
    for alpha, stage in ((0.45, 1), (0.55, 2)):
        _, attention = to_numbers(task, init(jax.random.key(0), task, QUICK).params).path_point(
            0.0, alpha
        )
        state = init(jax.random.key(0), task, settings)
        logits = jnp.asarray(np.log(attention), jnp.float32)
        state = state._replace(params=state.params._replace(attention=logits))
        after = end_stage(state, task, settings)
        assert int(after.stage) == stage
        chex.assert_trees_all_equal(after.params, state.params)


def test_the_recursion_of_softmax_has_the_rescaled_rate() -> None:
    task = make_task()
    tracked = Tracked(jnp.zeros((), bool), (jnp.asarray(0.3), jnp.asarray(0.2)))
    state = softmax_state(task, 0.1)._replace(tracked=tracked)
    after, _ = one_step(state, draw(0, task), task, SOFTMAX)
    numbers = to_numbers(task, state.params)
    expected = 0.2 + 20 / T**2 * numbers.k_p * (1 - 0.06) * 0.3
    np.testing.assert_allclose(after.tracked.population[1], expected, rtol=1e-6)


@pytest.mark.parametrize("optimizer", ["proximal", "sgd", "raw_sgd", "adam"])
@pytest.mark.parametrize("scale_rates", [True, False])
def test_the_rate_of_the_attention_is_its_ratio_times_that_of_the_value(
    optimizer: Any,  # noqa: ANN401
    scale_rates: bool,
) -> None:
    task = make_task()
    settings = change(QUICK, optimizer=optimizer, scale_rates=scale_rates, attention_rate_ratio=3.0)
    state = noisy_state(task, 2, settings)
    rates, l1 = paper.step_sizes(state, task, change(settings, l1_scaling="rate"))
    numbers = to_numbers(task, state.params)
    scales = (numbers.k_q, numbers.k_p) if scale_rates else (1.0, 1.0)
    np.testing.assert_allclose(rates, (0.05 / scales[0], 0.15 / scales[1]), rtol=1e-5)
    np.testing.assert_allclose(l1, 1e-3 * 0.15 / scales[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("optimizer", "attention_map"),
    [
        ("proximal", "linear"),
        pytest.param("sgd", "linear", marks=pytest.mark.slow),
        pytest.param("raw_sgd", "linear", marks=pytest.mark.slow),
        pytest.param("adam", "linear", marks=pytest.mark.slow),
        ("adam", "softmax"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.usefixtures("x64")
def test_state_keeps_its_types(optimizer: Any, attention_map: str, dtype: str) -> None:  # noqa: ANN401
    settings = change(
        QUICK, optimizer=optimizer, attention_map=attention_map, record=recorded.DEFAULT_RECORD
    )
    key = jax.random.key(0)
    draw = functools.partial(
        random_task, num_tokens=N, context_length=T, sparsity=Q, dtype=jnp.dtype(dtype)
    )
    task = jax.eval_shape(draw, key)
    state = jax.eval_shape(init, key, task, settings)
    batch = jax.eval_shape(lambda key, task: sample_batch(key, task, B), key, task)
    after, _ = jax.eval_shape(step, state, batch, task, settings)
    later = jax.eval_shape(next_stage, after, task, settings)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after, later)
    assert {leaf.dtype.name for leaf in state.params} == {dtype}
    trajectory = jax.eval_shape(train, key, task, settings)
    for name, record in trajectory.records.items():
        kind = recorded.OBSERVABLES[name].dtype
        assert record.dtype == (dtype if kind == "float32" else kind), name


@pytest.mark.parametrize("function", ["init", "step", "train"])
def test_functions_are_pure(function: str) -> None:
    task, key = make_task(), jax.random.key(0)
    state, batch = noisy_state(task, 2, QUICK), draw(0, task)
    call: dict[str, Callable[[], Any]] = {
        "init": lambda: jax.make_jaxpr(init)(key, task, QUICK),
        "step": lambda: jax.make_jaxpr(step)(state, batch, task, QUICK),
        "train": lambda: jax.make_jaxpr(train)(key, task, QUICK),
    }
    with jax.checking_leaks():
        jaxpr = call[function]()
    # Checks of a batch that is the caller's own, which `checkify` alone makes something of.
    checks = {"ErrorEffect"} if function == "step" else set()
    assert {type(effect).__name__ for effect in jaxpr.effects} == checks


# Precision.


def shapes_of_a_task(num_tokens: int = N) -> Task:
    draw = functools.partial(
        random_task, num_tokens=num_tokens, context_length=T, sparsity=Q, max_sparsity=Q
    )
    shapes: Task = jax.eval_shape(draw, jax.random.key(0))
    return shapes


def precisions(function: Callable[..., Any], *arguments: object) -> set[str]:
    """The precisions of the factors of all matrix products in a lowered program."""
    text = jax.jit(function).lower(*arguments).as_text()
    found = re.findall(r"stablehlo.dot_general.*precision = \[(\w+), (\w+)\]", text)
    assert len(found) == text.count("stablehlo.dot_general ") > 0
    return {name for pair in found for name in pair}


@pytest.mark.parametrize("num_tokens", [N, 40])
@pytest.mark.parametrize("elsewhere", [None, "high"])
def test_products_of_a_step_have_the_precision_of_the_settings(
    elsewhere: str | None, num_tokens: int
) -> None:
    """Whatever holds outside, which a step leaves as it is."""
    task = shapes_of_a_task(num_tokens)
    batch = jax.eval_shape(lambda task: draw(0, task), task)
    state = jax.eval_shape(init, jax.random.key(0), task, QUICK)
    for precision in get_args(Precision):
        settings = dataclasses.replace(QUICK, precision=precision)
        with jax.default_matmul_precision(elsewhere) if elsewhere else contextlib.nullcontext():
            assert precisions(step, state, batch, task, settings) == {precision.upper()}
            assert getattr(jax.config, "jax_default_matmul_precision", "") == elsewhere
    assert precisions(step, state, batch, task, QUICK) == {"HIGHEST"}


def test_records_and_products_outside_of_steps_have_all_digits_unless_asked() -> None:
    task, key = shapes_of_a_task(), jax.random.key(0)
    record = ("rounded_value_distance",)
    settings = dataclasses.replace(QUICK, precision="default", record=record)
    state = jax.eval_shape(init, key, task, settings)
    observed = functools.partial(paper.observe_state, key)
    assert precisions(observed, task, settings, state, 0) == {"HIGHEST"}
    with jax.default_matmul_precision("high"):
        # The fresh samples of the refit are drawn with all digits even then.
        assert precisions(observed, task, settings, state, 0) == {"HIGH", "HIGHEST"}


@pytest.mark.slow
def test_the_generator_that_is_asked_for_draws_the_batches() -> None:
    """Of steps and of the first one of a transfer: against batches drawn with its rounds."""
    task, key = make_task(), jax.random.key(0)
    settings = dataclasses.replace(
        QUICK, generator="threefry-13", record_every=1, steps=1, first_samples=4 * B
    )
    start = jax.jit(init)(key, task, settings)
    start_from = jax.jit(starts.start_from)
    stepped, _ = jax.jit(advance, static_argnums=5)(key, task, settings, start, 0, 1)
    moved = {"steps": stepped.params, "first": start_from(key, task, task, settings, start).params}
    for generator in get_args(Generator):
        seed = sampling.make_seed(jax.random.fold_in(key, composition.BATCHES), generator)
        batch = sampling.draw_batch(sampling.fold_in(seed, 0), sampling.make_sampler(task), B)
        own = dataclasses.replace(settings, generator=generator)
        expected = {
            "steps": jax.jit(step)(start, batch, task, settings)[0].params,
            "first": start_from(key, task, task, own, start).params,
        }
        for name, params in moved.items():
            pairs = zip(params, expected[name], strict=True)
            close = all(np.allclose(*pair, rtol=1e-5, atol=1e-7) for pair in pairs)
            assert close == (generator == "threefry-13"), name


def test_what_is_drawn_has_all_digits_even_when_asked_for_less() -> None:
    def batch(task: Task) -> Batch:
        with jax.default_matmul_precision("default"):
            return draw(0, task)

    assert precisions(batch, shapes_of_a_task()) == {"HIGHEST"}


@pytest.mark.slow
@pytest.mark.parametrize("bits", [pytest.param(10, marks=pytest.mark.slow), 7])
def test_factors_of_fewer_bits_change_the_gradient(
    monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    """What TF32 (10 bits) and bfloat16 (7) would do: half a last digit, 2^-(bits + 1), for each.

    Of both factors, in ``r = V h - e`` and in ``r^T h``: first-order error analysis bounds it.
    """

    def rounded(array: jax.Array) -> jax.Array:
        exponent = jnp.exp2(jnp.floor(jnp.log2(jnp.abs(array) + 1e-30)))
        mantissa: jax.Array = jnp.round(array / exponent * 2**bits) / 2**bits
        return mantissa * exponent

    task = make_task()
    params, batch = init(jax.random.key(0), task, QUICK).params, draw(0, task)
    exact = jax.jit(jax.grad(losses.loss))(params, batch).value
    monkeypatch.setattr(losses, "product", lambda a, b: product(rounded(a), rounded(b)))
    inexact = jax.jit(jax.grad(losses.loss))(params, batch).value
    _, residuals = losses._forward(params, batch)
    attended, error = jnp.abs(residuals.attended), jnp.abs(residuals.error)
    terms = (error + attended @ jnp.abs(params.value).T).T @ attended / len(batch.label)
    share = jnp.abs(inexact - exact) / (2 * 2.0 ** -(bits + 1) * terms)
    assert 0.05 < jnp.max(share) <= 1.01  # the rest is of second order


# Between stages.


def at(alpha_value: float, alpha_attention: float, stage: int, task: Task) -> LearnerState:
    start = init(jax.random.key(0), task, QUICK)
    point = to_numbers(task, start.params).path_point(alpha_value, alpha_attention)
    return start._replace(
        params=Params(*(jnp.asarray(array, jnp.float32) for array in point)),
        stage=jnp.asarray(stage, jnp.int32),
    )


@pytest.mark.parametrize(
    ("switch_on", "alphas", "over"),
    [
        ("truth", (0.11, 0.02), True),
        ("truth", (0.02, 0.11), True),
        ("truth", (-0.11, 0.02), True),
        ("truth", (0.09, 0.09), False),
        ("parameters", (0.11, 0.02), True),
        ("parameters", (-0.11, 0.02), True),
        ("parameters", (0.02, 0.11), False),
        ("parameters", (0.09, 0.5), False),
    ],
)
def test_signals_end_the_first_stage(
    switch_on: Any,  # noqa: ANN401
    alphas: tuple[float, float],
    over: bool,
) -> None:
    task = make_task()
    settings = change(QUICK, switch_on=switch_on, switch_level=0.1, stop_level=0.0)
    after = end_stage(at(*alphas, stage=1, task=task), task, settings)
    # The second stage would be over too, and waits for the next record.
    assert int(after.stage) == 1 + over
    if not over:
        chex.assert_trees_all_equal(after.params, at(*alphas, stage=1, task=task).params)


@pytest.mark.parametrize("switch_on", ["truth", "parameters"])
@pytest.mark.parametrize(("alphas", "over"), [((0.99, 0.83), True), ((0.99, 0.79), False)])
def test_mean_of_the_signals_ends_the_second_stage(
    switch_on: Any,  # noqa: ANN401
    alphas: tuple[float, float],
    over: bool,
) -> None:
    task = make_task()
    settings = change(QUICK, switch_on=switch_on, stop_level=0.9)
    after = end_stage(at(*alphas, stage=2, task=task), task, settings)
    assert int(after.stage) == 2 + over
    if over:
        np.testing.assert_array_equal(after.params.attention == 0, task.pattern == 0)
        np.testing.assert_allclose(after.params.attention, task.pattern, atol=0.1)
        assert float(after.tracked.population[1]) == 1.0
    else:
        chex.assert_trees_all_equal(after.params, at(*alphas, stage=2, task=task).params)


def test_step_numbers_end_the_stages() -> None:
    task = make_task()
    settings = change(QUICK, switch_on="step", switch_step=5, stop_step=9)
    found = []
    for count, stage in ((4, 1), (5, 1), (6, 1), (8, 2), (9, 2), (100, 1), (100, 3)):
        state = at(0.9, 0.9, stage=stage, task=task)._replace(step=jnp.asarray(count, jnp.int32))
        found.append(int(end_stage(state, task, settings).stage))
    assert found == [1, 2, 2, 2, 3, 2, 3]


@pytest.mark.parametrize("switch_on", ["truth", "parameters"])
def test_end_of_boosting_flips_then_thresholds(switch_on: Any) -> None:  # noqa: ANN401
    task = make_task()
    settings = change(QUICK, switch_on=switch_on, threshold=0.05)
    state = noisy_state(task, 1, settings)
    mirrored = state._replace(params=stages.mirror(state.params, task))
    numbers = to_numbers(task, state.params)
    if switch_on == "truth":
        signal = (numbers.inner(numbers.v, numbers.p) - numbers.mu @ numbers.mu) / numbers.k_p
    else:
        size = numbers.inner(numbers.v, numbers.v) - numbers.mu @ numbers.mu
        signal = np.sqrt(size / numbers.k_p)
    # A level amid the noise, so that another signal would keep other entries.
    level = 0.05 * signal / Q
    kept = np.where(numbers.a >= level, numbers.a, 0.0)
    assert np.sum((numbers.a > 0.8 * level) & (numbers.a < 1.25 * level)) > 10
    expected = kept + (1 - kept.sum(axis=0)) / T
    for start, flipped in ((state, False), (mirrored, True)):
        after = end_stage(start, task, settings)
        assert bool(after.tracked.flipped) is flipped
        np.testing.assert_allclose(after.params.value, numbers.v, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(after.params.attention, expected, rtol=1e-5, atol=1e-6)
    uncut = end_stage(mirrored, task, change(settings, threshold=0.0))
    np.testing.assert_allclose(uncut.params.attention, numbers.a, rtol=1e-5, atol=1e-6)


def test_the_flip_is_an_option_and_needs_a_mirrored_state_at_the_switch() -> None:
    task = make_task()
    mirrored = at(-0.5, -0.5, stage=1, task=task)
    settings = change(QUICK, threshold=0.0)
    off = end_stage(mirrored, task, change(settings, flip=False))
    assert (int(off.stage), bool(off.tracked.flipped)) == (2, False)
    chex.assert_trees_all_equal(off.params, mirrored.params)
    early = end_stage(mirrored, task, change(settings, switch_level=0.9))
    assert (int(early.stage), bool(early.tracked.flipped)) == (1, False)
    chex.assert_trees_all_equal(early.params, mirrored.params)
    later = end_stage(at(-0.5, -0.5, stage=2, task=task), task, settings)
    assert not bool(later.tracked.flipped)


@pytest.mark.parametrize("optimizer", ["sgd", "raw_sgd", "adam"])
def test_arms_without_l1_are_neither_cut_nor_rounded(optimizer: Any) -> None:  # noqa: ANN401
    task = make_task()
    settings = change(QUICK, optimizer=optimizer, stop_level=0.0)
    for alphas, stage in (((0.5, 0.5), 1), ((0.9, 0.9), 2)):
        state = at(*alphas, stage=stage, task=task)
        after = end_stage(state, task, settings)
        assert int(after.stage) == 2
        chex.assert_trees_all_equal(after.params, state.params)
    after = end_stage(at(-0.5, -0.5, stage=1, task=task), task, settings)
    assert bool(after.tracked.flipped) is (optimizer == "sgd")


def test_third_stage_freezes_the_attention() -> None:
    task = make_task()
    state = end_stage(
        noisy_state(task, 2, QUICK), task, change(QUICK, stop_level=0.0, rounding_level=0.2)
    )
    assert int(state.stage) == 3
    zeros = np.asarray(state.params.attention) == 0
    assert zeros.sum() >= (T - Q) * N - 3
    after = state
    for index in range(3):
        after, _ = one_step(after, draw(index, task), task, QUICK)
    np.testing.assert_array_equal(after.params.attention, state.params.attention)
    assert float(jnp.max(jnp.abs(after.params.value - state.params.value))) > 1e-3


# Trajectories.


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["proximal", "sgd"])
def test_many_tokens_are_learned_step_by_step(optimizer: Any) -> None:  # noqa: ANN401
    """The loop carries A in an order of its own in memory; what comes out is that of its steps."""
    task, key = make_task(num_tokens=MANY), jax.random.key(3)
    settings = change(QUICK, optimizer=optimizer, record_every=2, record=("attention_distance",))
    settings = change(settings, stop_level=np.inf)
    start = noisy_state(task, 2, settings)
    found, records = segment(key, task, settings, start, 0, num_records=1)
    state, seed = start, sampling.make_seed(jax.random.fold_in(key, 0))
    for index in range(2):
        sampler, own = sampling.make_sampler(task), sampling.fold_in(seed, index)
        batch = sampling.draw_batch(own, sampler, B)
        state, _ = one_step(state, batch, task, settings)
    assert_close(found, state, 1e-5)
    distance = state.params.attention - task.pattern
    expected = jnp.sqrt(jnp.sum(jnp.sum(distance**2, axis=0) * task.stationary))
    np.testing.assert_allclose(records["attention_distance"], expected[None], rtol=1e-5)


def first(condition: Array) -> int:
    """Index of the first record at which a condition holds; it must hold somewhere, not at 0."""
    assert not condition[0]
    assert condition.any()
    return int(np.argmax(condition))


@pytest.mark.parametrize("switch_on", ["truth", "parameters"])
def test_stages_end_at_the_first_record_at_which_their_condition_holds(
    switch_on: Any,  # noqa: ANN401
) -> None:
    task, key = make_task(), jax.random.key(2)

    def signals(trajectory: Trajectory) -> tuple[Array, Array]:
        """What the switch of stage 1, and the end of stage 2, look at."""
        records = {name: np.asarray(r, np.float64) for name, r in trajectory.records.items()}
        value, attention = np.abs(records["alpha_value"]), np.abs(records["alpha_attention"])
        if switch_on == "truth":
            return np.maximum(value, attention), (value + attention) / 2
        return np.sqrt(value**2 + records["delta_value"] ** 2 / float(k_p)), np.array([])

    k_p = transition_signal(task)
    base = change(QUICK, switch_on=switch_on, switch_level=0.15, stop_level=float("inf"))
    never = run(key, task, change(base, switch_level=float("inf")))
    assert np.all(np.asarray(never.records["stage"]) == 1)
    switch = first(signals(never)[0] >= 0.15)
    switched = run(key, task, base)
    expected = np.where(np.arange(21) < switch, 1, 2)
    np.testing.assert_array_equal(switched.records["stage"], expected)
    np.testing.assert_array_equal(switched.steps, np.arange(21) * 4)
    if switch_on == "truth":
        # Only records of stage 2 after its first, which the switch itself has changed, may end it.
        later = (signals(switched)[1] >= 0.5) & (np.arange(21) > switch)
        stop = first(later)
        stopped = run(key, task, change(base, stop_level=0.5))
        np.testing.assert_array_equal(stopped.records["stage"], expected + (np.arange(21) >= stop))


BY_STEP = change(QUICK, steps=40, record_every=10, switch_on="step", switch_step=11, stop_step=25)


def recursion(task: Task, trajectory: Trajectory, settings: Settings) -> Array:
    """The population recursion in float64, with the rates of the recorded stages."""
    k_p, k_q = float(transition_signal(task)), float(pattern_signal(task))
    rates = (settings.learning_rate_1, settings.learning_rate_2, settings.learning_rate_3)
    stage_of = np.asarray(trajectory.records["stage"])
    alpha_v = alpha_a = 0.0
    path = [(alpha_v, alpha_a)]
    for record in range(1, len(stage_of)):
        for _ in range(settings.record_every):
            stage = int(stage_of[record - 1])
            eta = float(rates[stage - 1])
            eta_v, eta_a = eta / k_q, eta / k_p if stage < 3 else 0.0
            missing = 1 - alpha_v * alpha_a
            alpha_v, alpha_a = (
                alpha_v + eta_v * (k_q * missing * alpha_a + (1 - alpha_v) / T),
                alpha_a + eta_a * k_p * missing * alpha_v,
            )
        if stage_of[record] == 3 and stage_of[record - 1] == 2:
            alpha_a = 1.0
        path.append((alpha_v, alpha_a))
    return np.array(path)


def test_records_of_a_run_through_all_stages() -> None:
    task, key = make_task(), jax.random.key(3)
    found = run(key, task, BY_STEP)
    records = found.records
    assert set(records) == set(RECORD)
    np.testing.assert_array_equal(found.steps, [0, 10, 20, 30, 40])
    assert found.steps.dtype == jnp.int32
    np.testing.assert_array_equal(records["stage"], [1, 1, 2, 3, 3])
    np.testing.assert_array_equal(records["samples"], np.arange(5) * 10 * B)
    assert np.isnan(records["batch_loss"][0])
    assert np.all(np.isfinite(records["batch_loss"][1:]))
    np.testing.assert_allclose([records["alpha_value"][0], records["delta_value"][0]], 0, atol=1e-5)
    population = np.stack(
        [records["population_alpha_value"], records["population_alpha_attention"]], axis=1
    )
    np.testing.assert_allclose(population, recursion(task, found, BY_STEP), rtol=1e-5)
    alphas = theory.signals(found.params, task)
    np.testing.assert_allclose(
        alphas, [records["alpha_value"][-1], records["alpha_attention"][-1]], rtol=1e-4
    )
    assert np.sum(np.asarray(found.params.attention) == 0) >= (T - 8) * N


def test_population_recursion_in_one_stage_is_that_of_theory() -> None:
    task = make_task()
    settings = change(BY_STEP, switch_step=NEVER)
    found = run(jax.random.key(3), task, settings)
    rates = theory.Rates(
        jnp.full(40, 0.05) / pattern_signal(task), jnp.full(40, 0.05) / transition_signal(task)
    )
    path = theory.population_path(
        rates,
        transition_signal=float(transition_signal(task)),
        pattern_signal=float(pattern_signal(task)),
        context_length=T,
    )
    for name, expected in zip(("value", "attention"), path, strict=True):
        np.testing.assert_allclose(
            found.records[f"population_alpha_{name}"], expected[::10], rtol=1e-5
        )


def test_the_key_decides() -> None:
    task = make_task()
    once, again, other = (run(jax.random.key(seed), task, BY_STEP) for seed in (4, 4, 5))
    chex.assert_trees_all_equal(once, again)
    assert float(jnp.max(jnp.abs(once.params.value - other.params.value))) > 1e-3


segment = jax.jit(advance, static_argnames="num_records")


@pytest.mark.parametrize("cuts", [(1, 3), (3, 1), (1, 1, 1, 1)])
def test_a_run_cut_into_segments_is_bitwise_the_same(cuts: tuple[int, ...]) -> None:
    task, key = make_task(), jax.random.key(3)
    whole = run(key, task, BY_STEP)
    state, start, parts = init(key, task, BY_STEP), 0, []
    for count in cuts:
        # As if read back from disk.
        state = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), state)
        state, records = segment(key, task, BY_STEP, state, start, num_records=count)
        start += count * BY_STEP.record_every
        assert int(state.step) == start
        parts.append(records)
    chex.assert_trees_all_equal(state.params, whole.params)
    for name in RECORD:
        joined = np.concatenate([np.asarray(part[name]) for part in parts])
        np.testing.assert_array_equal(joined, whole.records[name][1:])


def test_batches_depend_on_the_key_and_the_step_number_alone() -> None:
    task, key = make_task(), jax.random.key(6)
    still = change(BY_STEP, learning_rate_1=0.0, switch_step=NEVER)
    state = init(key, task, still)

    def losses(key: jax.Array, start: int) -> list[float]:
        records = segment(key, task, still, state, start, num_records=3)[1]
        return [float(loss) for loss in records["batch_loss"]]

    early, late = losses(key, 0), losses(key, 10)
    assert early[1:] == late[:-1]
    assert len({*early, *late, *losses(jax.random.key(7), 0)}) == 7


@pytest.mark.slow
def test_every_record_refits_on_samples_of_its_own() -> None:
    task, key = make_task(), jax.random.key(6)
    settings = change(QUICK, record=("rounded_value_distance",), refit_samples=100)
    state = noisy_state(task, 2, settings)
    record = jax.jit(paper.observe_state)
    distances = [
        float(record(key, task, settings, state, start)["rounded_value_distance"])
        for start, key in ((0, key), (4, key), (0, jax.random.key(7)), (0, key))
    ]
    assert len({*distances}) == 3
    assert distances[0] == distances[3]


# Maps.


@pytest.mark.slow
def test_seeds_and_sparsities_under_vmap_equal_single_runs() -> None:
    settings = change(QUICK, steps=60, record_every=6)
    sparsities = jnp.array([1, 2, 4, 8], jnp.int32)

    def one(seed: jax.Array, sparsity: jax.Array) -> Trajectory:
        key = jax.random.fold_in(jax.random.key(0), seed)
        task = random_task(key, num_tokens=N, context_length=T, sparsity=sparsity, max_sparsity=8)
        return train(jax.random.fold_in(key, 1), task, settings)

    traces = []

    @jax.jit
    def grid(seeds: jax.Array) -> Trajectory:
        traces.append(seeds)
        return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(seeds, sparsities)

    grid(jnp.arange(8, 16))
    found = grid(jnp.arange(8))
    assert len(traces) == 1
    single = jax.jit(one)
    for seed in range(8):
        for index, sparsity in enumerate(sparsities):
            lane: Trajectory = jax.tree.map(lambda leaf, s=seed, i=index: leaf[s, i], found)
            # Sums in another order, 1e-7 each, grow with the signal from 1/T to 1: below 1e-4.
            assert_close(lane, single(jnp.asarray(seed), sparsity), 1e-4)
    stage = np.asarray(found.records["stage"])
    assert set(stage.ravel()) >= {1, 2}
    assert len(np.unique(stage.sum(axis=-1))) > 3  # every lane switches at its own record


LANES = 3


MAPPED = ("learning_rate_1", "l1", "switch_level")


def lanes(settings: Settings) -> Settings:
    """In-axes of a map over the fields of MAPPED alone."""
    axes: dict[str, Any] = dict.fromkeys(TRACED_FIELDS) | dict.fromkeys(MAPPED, 0)
    return change(settings, **axes)


mapped_run = jax.jit(jax.vmap(train, in_axes=(None, None, lanes(QUICK))))


def mapped(**values: list[float]) -> Settings:
    return change(QUICK, **{name: jnp.array(value) for name, value in values.items()})


@pytest.mark.slow
def test_mapped_settings_equal_separate_runs() -> None:
    task, key = make_task(), jax.random.key(8)
    values = {
        "learning_rate_1": [0.03, 0.05, 0.07],
        "l1": [0.0, 1e-3, 3e-3],
        "switch_level": [0.1, 0.2, 0.3],
    }
    found = mapped_run(key, task, mapped(**values))
    for index in range(LANES):
        settings = change(QUICK, **{name: value[index] for name, value in values.items()})
        lane: Trajectory = jax.tree.map(lambda leaf, i=index: leaf[i], found)
        assert_close(lane, run(key, task, settings), 1e-4)
    assert len({tuple(row) for row in np.asarray(found.records["alpha_value"])}) == LANES


def test_a_diverged_lane_does_not_touch_its_neighbours() -> None:
    task, key = make_task(), jax.random.key(8)
    rest = {"l1": [1e-3] * LANES, "switch_level": [0.15] * LANES}
    sound = mapped_run(key, task, mapped(learning_rate_1=[0.05, 0.05, 0.05], **rest))
    found = mapped_run(key, task, mapped(learning_rate_1=[0.05, 1e20, 0.05], **rest))
    assert not np.any(np.isfinite(found.params.value[1]))
    assert np.all(np.isnan(found.records["alpha_value"][1, -5:]))
    for index in (0, 2):
        chex.assert_trees_all_equal(
            *(jax.tree.map(lambda leaf, i=index: leaf[i], tree) for tree in (found, sound))
        )


def equations(jaxpr: Any) -> Iterator[Any]:  # noqa: ANN401
    """All equations of a jaxpr and of those inside it."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from equations(inner)


def random_word_shapes(function: Callable[..., Any], *arguments: object) -> list[tuple[int, ...]]:
    """Shapes of all arrays of random words and of tokens: what is unsigned, or a key."""
    return [
        variable.aval.shape
        for equation in equations(jax.make_jaxpr(function)(*arguments))
        for variable in equation.outvars
        if jnp.issubdtype(variable.aval.dtype, jnp.unsignedinteger)
        or jnp.issubdtype(variable.aval.dtype, jax.dtypes.prng_key)
    ]


@pytest.mark.slow
def test_the_sampler_stays_unbatched_under_a_map_over_settings() -> None:
    # 7 lanes: a number that is no other size, nor half of one, here.
    width, task = 7, make_task(length=23)
    settings = change(
        QUICK,
        batch_size=11,
        steps=2,
        record_every=2,
        record=("stage", "rounded_value_distance"),
        refit_samples=17,
        refit_support=5,
    )
    axes, key = lanes(settings), jax.random.key(0)
    learners = change(settings, **{name: jnp.linspace(0.1, 0.2, width) for name in MAPPED})
    states = jax.eval_shape(jax.vmap(init, in_axes=(None, None, axes)), key, task, learners)

    def go_on(state: LearnerState, settings: Settings) -> LearnerState:
        return advance(key, task, settings, state, 2, 1)[0]

    for shapes in (
        random_word_shapes(jax.vmap(train, in_axes=(None, None, axes)), key, task, learners),
        random_word_shapes(jax.vmap(go_on, in_axes=(0, axes)), states, learners),
    ):
        # 23 tokens of 11 contexts, six in a tuple.
        assert any(4 in shape and 11 in shape for shape in shapes)
        assert not any(width in shape for shape in shapes)
    per_seed = random_word_shapes(
        jax.vmap(train, in_axes=(0, None, None)),
        jax.random.split(jax.random.key(0), width),
        task,
        settings,
    )
    assert any({width, 4, 11} <= set(shape) for shape in per_seed)


# Long runs.

LONG = Settings(
    batch_size=16, steps=1000, record_every=100, record=("stage", "alpha_value", "alpha_attention")
)


@pytest.fixture(scope="module")
def long_runs() -> dict[str, Trajectory]:
    task, key = make_task(length=200), jax.random.key(9)
    return {
        "proximal": run(key, task, LONG),
        "sgd": run(key, task, change(LONG, optimizer="sgd", stop_level=0.5)),
        "lowered": run(
            key,
            task,
            change(LONG, l1=0.0, threshold=0.0, stop_level=float("inf"), stop_step=NEVER),
        ),
    }


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["proximal", "sgd"])
def test_invariants_hold_after_a_thousand_steps(long_runs: dict[str, Trajectory], arm: str) -> None:
    task, params = make_task(length=200), long_runs[arm].params
    value, attention = (np.asarray(array, np.float64) for array in params)
    mu = np.asarray(task.stationary, np.float64)
    assert int(long_runs[arm].records["stage"][-1]) >= 2
    np.testing.assert_allclose(value.sum(axis=0), 1.0, atol=1e-5)
    np.testing.assert_allclose(value @ mu, mu, atol=1e-5)
    np.testing.assert_allclose(attention.sum(axis=0), 1.0, atol=1e-5)


def test_sgd_is_the_proximal_arm_without_l1_and_without_cuts(
    long_runs: dict[str, Trajectory],
) -> None:
    # The additive update p + ((p - eta g) - p) rounds differently: 1e-7 a step, grown by training.
    # What the two carry along of the optimiser is of two kinds; everything else is the same.
    for part in ("params", "records", "diverged_at"):
        found, expected = (getattr(long_runs[arm], part) for arm in ("lowered", "sgd"))
        assert_close(found, expected, 1e-5)
    records = long_runs["sgd"].records
    # The signals passed stop_level, which ends nothing without l1.
    assert (float(records["alpha_value"][-1]) + float(records["alpha_attention"][-1])) / 2 > 0.5
    assert np.all(np.asarray(records["stage"]) <= 2)


@pytest.mark.slow
def test_the_recipe_recovers_every_task() -> None:
    settings = Settings(
        batch_size=32,
        steps=1000,
        record_every=100,
        record=("rounded_value_distance", "rounded_attention_distance", "stage"),
        learning_rate_1=0.02,
        learning_rate_2=0.005,
        l1=1e-4,
    )

    @jax.jit
    @jax.vmap
    def recipe(seed: jax.Array) -> dict[str, jax.Array]:
        key = jax.random.fold_in(jax.random.key(0), seed)
        task = random_task(key, num_tokens=3, context_length=500, sparsity=2)
        return train(jax.random.fold_in(key, 1), task, settings).records

    records = recipe(jnp.arange(8))
    for name in ("rounded_value_distance", "rounded_attention_distance"):
        final = np.asarray(records[name])[:, -1]
        assert np.all(final < 0.1), (name, final)
        assert np.all(np.asarray(records[name])[:, 0] > 0.1)
    assert np.all(np.asarray(records["stage"])[:, -1] >= 2)


# Settings.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"optimizer": "sdg"},
            "optimizer is 'sdg'; it must be one of proximal, sgd, raw_sgd, adam",
        ),
        ({"attention_map": "tanh"}, "attention_map is 'tanh'; it must be one of linear, softmax"),
        *[
            (
                {"attention_map": "softmax", "optimizer": name},
                f"^optimizer = '{name}' has no meaning with attention_map = 'softmax', which",
            )
            for name in ("proximal", "sgd")
        ],
        *[
            (
                {"attention_map": "softmax", "optimizer": "adam", "start": name},
                f"^start = '{name}' has no meaning with attention_map = 'softmax', which",
            )
            for name in ("transfer", "pretrained")
        ],
        ({"geometry": "flat"}, "geometry is 'flat'; it must be one of mu, paper"),
        ({"l1_scaling": "none"}, "l1_scaling is 'none'; it must be one of direct, rate, signal"),
        ({"switch_on": "loss"}, "switch_on is 'loss'; it must be one of parameters, truth, step"),
        *[
            ({name: 0}, f"{name} is 0; it must be at least 1")
            for name in ("batch_size", "steps", "record_every", "refit_samples", "refit_support")
        ],
        *[
            ({name: value}, f"{name} is {value}; it must be {LEAST.get(name, 'at least 0')}")
            for name in sorted(TRACED_FIELDS)
            for value in ((-1,) if name.endswith("_step") else (-1, float("nan")))
        ],
        ({"steps": 81}, "^steps = 81 is not a multiple of record_every = 4$"),
        (
            {"steps": 2**28},
            f"^steps = {2**28} times batch_size = 16 is more samples than an int32 can count",
        ),
        ({"record": ("stage", "accuracy")}, "record has 'accuracy'; it must name observables"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        change(QUICK, **changes)


def test_settings_are_a_pytree_of_what_may_be_traced() -> None:
    def structure(settings: Settings) -> object:
        return jax.tree.structure(settings)

    leaves, definition = jax.tree.flatten(QUICK)
    assert leaves == [getattr(QUICK, name) for name in TRACED_FIELDS]
    assert jax.tree.unflatten(definition, leaves) == QUICK
    assert structure(change(QUICK, l1=1.0)) == structure(QUICK)
    assert structure(change(QUICK, batch_size=8)) != structure(QUICK)
    fields = {field.name for field in dataclasses.fields(Settings)}
    assert fields == {*STATIC_FIELDS, *TRACED_FIELDS}
    with pytest.raises(dataclasses.FrozenInstanceError):
        QUICK.l1 = 1.0  # type: ignore[misc]


# ------------------------------------------------------------------------------------ divergence

# Rates that are too large: after a few steps V and A are no numbers any more.
WILD = change(
    QUICK,
    optimizer="raw_sgd",
    learning_rate_1=30.0,
    scale_rates=False,
    steps=8,
    record_every=1,
    record=("stage",),
)


def first_step_not_finite(key: jax.Array, task: Task, settings: Settings) -> int:
    """Record by record, and looked at on the host."""
    go_on = jax.jit(advance, static_argnums=5)
    state = init(key, task, settings)
    for start in range(0, settings.steps, settings.record_every):
        state, _ = go_on(key, task, settings, state, start, 1)
        if not all(np.all(np.isfinite(array)) for array in state.params):
            return start + settings.record_every
    return -1


def test_a_trajectory_says_when_it_diverged() -> None:
    task, key = make_task(), jax.random.key(3)
    calm, wild = run(key, task, change(WILD, learning_rate_1=0.01)), run(key, task, WILD)
    assert calm.diverged_at == -1
    assert calm.diverged_at.dtype == jnp.int32
    expected = first_step_not_finite(key, task, WILD)
    assert 1 < expected < WILD.steps  # neither at once nor at the end
    assert wild.diverged_at == expected
    assert set(calm.records) == {"stage"}


@pytest.mark.slow
def test_each_of_many_trajectories_says_when_it_diverged() -> None:
    task, key = make_task(), jax.random.key(3)
    rates = [0.01, 30.0, 1e30]
    many = jax.tree.map(lambda _: None, WILD)
    lane = change(many, learning_rate_1=0)
    mapped = jax.jit(jax.vmap(train, in_axes=(None, None, lane)))
    found = mapped(key, task, change(WILD, learning_rate_1=jnp.array(rates)))
    alone = [int(run(key, task, change(WILD, learning_rate_1=rate)).diverged_at) for rate in rates]
    assert found.diverged_at.tolist() == alone
    assert alone[0] == -1
    assert alone[1] > alone[2] > 0


def test_a_start_that_is_none_has_diverged_at_once() -> None:
    task = make_task()
    broken = task._replace(stationary=task.stationary * jnp.nan)
    assert run(jax.random.key(0), broken, WILD).diverged_at == 0


def test_a_state_of_something_else_is_refused() -> None:
    task, key = make_task(), jax.random.key(0)
    state = train(key, task, QUICK).state
    other = random_task(jax.random.key(1), num_tokens=N, context_length=T + 1, sparsity=Q)
    with pytest.raises(ValueError, match=r"state.params.attention has shape .*; that of this task"):
        train(key, other, QUICK, state=state)
    with pytest.raises(ValueError, match=r"state has no state.opt_state.*; that of this task"):
        train(key, task, change(QUICK, optimizer="adam"), state=state)
    with pytest.raises(ValueError, match=r"state.opt_state.* is too much|state has no state.opt"):
        train(key, task, QUICK, optimizer=optax.adam(0.01), state=state)


@pytest.mark.parametrize(
    ("optimizer", "sentence"),
    [
        (optax.adam, r"the function optax.adam itself; it must be what that gives"),
        ("adam", r"optimizer is 'adam'; .* or a function of \(task, settings\) that makes one"),
    ],
)
def test_an_optimizer_that_is_none_is_refused(optimizer: Any, sentence: str) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match=sentence):
        train(jax.random.key(0), make_task(), QUICK, optimizer=optimizer)
