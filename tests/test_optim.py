"""The optimiser: optax's conventions, equations 4 to 6, and what they keep."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis.extra import numpy as hnp
from jax.typing import DTypeLike
from optax import GradientTransformationExtraArgs as Transform

from scbjax import optim
from scbjax.columns import step_rows
from scbjax.model import Params
from scbjax.parameters import Geometry

Array = np.ndarray
Tree = TypeVar("Tree", Params, jax.Array)

N, T = 3, 7
MU = np.array([0.2, 0.3, 0.5])
# float32 rounding of sums of at most T terms of order one, divided by the smallest mu.
RTOL, ATOL = 1e-5, 1e-6


class Case(NamedTuple):
    """A transformation under test: how to make it, with which numbers, and what it asks for."""

    factory: Callable[..., Transform]
    numbers: dict[str, Any]
    options: dict[str, str] = {}  # noqa: RUF012 - a NamedTuple's default, never written to
    needs_params: bool = False

    def make(self) -> Transform:
        return self.factory(**self.numbers, **self.options)


MU_ARG = {"stationary": jnp.asarray(MU, jnp.float32)}
RATES = {"learning_rate_value": 0.1, "learning_rate_attention": 0.2}
PROX = {"learning_rate": 0.1, "l1": 0.05}
CASES = {
    "scale_by_stationary": Case(optim.scale_by_stationary, MU_ARG),
    "project_columns": Case(optim.project_tangent, {}),
    "project_mu": Case(optim.project_tangent, MU_ARG, {"geometry": "mu"}),
    "project_paper": Case(optim.project_tangent, MU_ARG, {"geometry": "paper"}),
    "prox_direct": Case(optim.proximal_l1, PROX, {"threshold": "direct"}, needs_params=True),
    "prox_rate": Case(optim.proximal_l1, PROX, {"threshold": "rate"}, needs_params=True),
    "restore": Case(optim.restore_column_sums, {}, needs_params=True),
    "scb_proximal": Case(
        optim.scb_proximal, {**MU_ARG, **RATES, "l1": 0.05}, {"geometry": "mu"}, needs_params=True
    ),
    "scb_proximal_paper": Case(
        optim.scb_proximal,
        {**MU_ARG, **RATES, "l1": 0.05},
        {"geometry": "paper", "threshold": "rate"},
        needs_params=True,
    ),
    "scb_sgd": Case(optim.scb_sgd, {**MU_ARG, **RATES}),
    "keep_invariants": Case(optim.keep_invariants, MU_ARG, {"geometry": "mu"}, needs_params=True),
    "raw_sgd": Case(optim.raw_sgd, RATES),
}
WITH_NUMBERS = {name: case for name, case in CASES.items() if case.numbers}
WITH_RATE = {name: case for name, case in CASES.items() if set(case.numbers) - {"stationary"}}


def each(cases: dict[str, Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", list(cases.values()), ids=list(cases))


@pytest.fixture
def x64() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def trace_counter() -> None:
    # chex counts the traces of inner functions by their name, over all tests.
    chex.clear_trace_counter()


def random_params(seed: int, dtype: DTypeLike = jnp.float32) -> Params:
    rng = np.random.default_rng(seed)
    return Params(
        jnp.asarray(rng.normal(size=(N, N)), dtype), jnp.asarray(rng.normal(size=(T, N)), dtype)
    )


def gradients(count: int, dtype: DTypeLike = jnp.float32) -> list[Params]:
    return [random_params(100 + index, dtype) for index in range(count)]


def run(transform: Transform, grads: Sequence[Tree], params: Tree) -> tuple[Tree, optax.OptState]:
    """Parameters and state after a step with each of the gradients."""
    state = transform.init(params)
    for grad in grads:
        updates, state = transform.update(grad, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


# Conventions of optax.


@each(CASES)
def test_unknown_extra_arguments_are_accepted_without_retracing(case: Case) -> None:
    transform, params = case.make(), random_params(0)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(grads: Params, state: optax.OptState, params: Params) -> tuple[Params, optax.OptState]:
        updates, state = transform.update(grads, state, params, unexpected=jnp.ones(()), value=1.0)
        return optax.apply_updates(params, updates), state

    state = transform.init(params)
    expected, _ = run(transform, gradients(3), params)
    for grad in gradients(3):
        params, state = step(grad, state, params)
    chex.assert_trees_all_close(params, expected, rtol=RTOL, atol=ATOL)


@each(CASES)
def test_parameters_are_asked_for_by_name_where_they_are_needed(case: Case) -> None:
    transform, params = case.make(), random_params(0)
    state = transform.init(params)
    if case.needs_params:
        with pytest.raises(ValueError, match=r"needs the parameters: call update\(updates, state"):
            transform.update(params, state)
    else:
        with_params, _ = transform.update(params, state, params)
        without, _ = transform.update(params, state)
        chex.assert_trees_all_equal(without, with_params)


@each(WITH_NUMBERS)
def test_injected_hyperparameters_change_nothing(case: Case) -> None:
    params = random_params(0)
    injected = optax.inject_hyperparams(case.factory)(**case.numbers, **case.options)
    expected, state = run(case.make(), gradients(3), params)
    found, injected_state = run(injected, gradients(3), params)
    chex.assert_trees_all_close(found, expected, rtol=RTOL, atol=ATOL)
    chex.assert_trees_all_equal(injected_state.inner_state, state)
    assert set(injected_state.hyperparams) == set(case.numbers)


def check_dtypes(case: Case, dtype: DTypeLike) -> None:
    params, grads = random_params(0, dtype), gradients(2, dtype)
    transform = case.make()
    state = transform.init(params)
    update = jax.jit(transform.update)
    for grad in grads:
        updates, state = update(grad, state, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
        params = optax.apply_updates(params, updates)
    assert all(leaf.dtype == jnp.int32 for leaf in jax.tree.leaves(state))


@each(CASES)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_dtypes_are_kept(case: Case, dtype: DTypeLike) -> None:
    check_dtypes(case, dtype)


@each(CASES)
@pytest.mark.usefixtures("x64")
def test_double_precision_is_kept(case: Case) -> None:
    check_dtypes(case, jnp.float64)


@each(CASES)
def test_each_leaf_of_a_mixed_tree_keeps_its_dtype_and_value(case: Case) -> None:
    full, transform = random_params(0), case.make()
    mixed = Params(full.value, full.attention.astype(jnp.bfloat16))
    grads = gradients(1)[0]
    mixed_grads = Params(grads.value, grads.attention.astype(jnp.bfloat16))
    expected, _ = transform.update(grads, transform.init(full), full)
    updates, _ = transform.update(mixed_grads, transform.init(mixed), mixed)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, mixed)
    chex.assert_trees_all_equal(updates.value, expected.value)
    # bfloat16 has 8 significant bits; entries are of order one, up to 1 / min(mu).
    chex.assert_trees_all_close(
        updates.attention.astype(jnp.float32), expected.attention, rtol=0.02, atol=0.1
    )


@each(CASES)
def test_state_keeps_shape_and_dtype_under_scan(case: Case) -> None:
    transform, params = case.make(), random_params(0)
    grads = gradients(4)

    @jax.jit
    def scanned(params: Params, grads: Params) -> tuple[Params, optax.OptState]:
        def body(
            carry: tuple[Params, optax.OptState], grad: Params
        ) -> tuple[tuple[Params, optax.OptState], None]:
            updates, state = transform.update(grad, carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(body, (params, transform.init(params)), grads)[0]

    found, state = scanned(params, jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads))
    expected, expected_state = run(transform, grads, params)
    chex.assert_trees_all_close(found, expected, rtol=RTOL, atol=ATOL)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, transform.init(params))
    chex.assert_trees_all_equal(state, expected_state)


@each(CASES)
def test_multi_steps_applies_the_mean_gradient_once(case: Case) -> None:
    params, grads, every = random_params(0), gradients(3), 3
    # optax.MultiSteps itself mixes an int32 count into float32 arithmetic.
    with jax.numpy_dtype_promotion("standard"):
        accumulated = optax.MultiSteps(case.make(), every)
        state, update = accumulated.init(params), jax.jit(accumulated.update)
        for grad in grads[:-1]:
            updates, state = update(grad, state, params)
            chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, params))
        found, _ = update(grads[-1], state, params)
    mean = jax.tree.map(lambda *leaves: sum(leaves) / every, *grads)
    transform = case.make()
    expected, _ = transform.update(mean, transform.init(params), params)
    chex.assert_trees_all_close(found, expected, rtol=RTOL, atol=ATOL)


@each(WITH_RATE)
def test_schedules_are_read_at_the_number_of_updates_done(case: Case) -> None:
    def decay(number: float) -> Callable[[jax.Array], jax.Array]:
        return lambda count: number / (1.0 + count.astype(jnp.float32))

    numbers = {k: v if k == "stationary" else decay(v) for k, v in case.numbers.items()}
    params = expected = random_params(0)
    scheduled = case.factory(**numbers, **case.options)
    state = scheduled.init(params)
    for count, grad in enumerate(gradients(3)):
        updates, state = scheduled.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        now = {k: v if k == "stationary" else v / (1 + count) for k, v in case.numbers.items()}
        expected, _ = run(case.factory(**now, **case.options), [grad], expected)
        chex.assert_trees_all_close(params, expected, rtol=RTOL, atol=ATOL)


@each(CASES)
def test_masked_transforms_the_chosen_field_alone(case: Case) -> None:
    params, grads = random_params(0), gradients(1)[0]
    transform = case.make()
    full, _ = transform.update(grads, transform.init(params), params)
    masked = optax.masked(
        transform, lambda tree: jax.tree.map(lambda leaf: leaf.shape[0] == T, tree)
    )
    updates, _ = masked.update(grads, masked.init(params), params)
    chex.assert_trees_all_close(updates.attention, full.attention, rtol=RTOL, atol=ATOL)
    chex.assert_trees_all_equal(updates.value, grads.value)


@each(CASES)
def test_partition_gives_it_a_part_of_a_larger_tree(case: Case) -> None:
    params, grads = random_params(0), gradients(1)[0]
    transform = case.make()
    expected, _ = transform.update(grads, transform.init(params), params)
    parts = optax.partition(
        {"ours": transform, "other": optax.sgd(1.0)}, {"layer": "ours", "bias": "other"}
    )
    tree, tree_grads = {"layer": params, "bias": jnp.ones(2)}, {"layer": grads, "bias": jnp.ones(2)}
    updates, _ = parts.update(tree_grads, parts.init(tree), tree)
    chex.assert_trees_all_close(updates["layer"], expected, rtol=RTOL, atol=ATOL)
    assert updates["bias"].tolist() == [-1.0, -1.0]


@each(CASES)
def test_vmapped_and_jitted_updates_equal_single_ones(case: Case) -> None:
    transform = case.make()
    params = [random_params(seed) for seed in range(3)]
    stack = functools.partial(jax.tree.map, lambda *leaves: jnp.stack(leaves))
    states = stack(*[transform.init(p) for p in params])
    update = jax.jit(jax.vmap(transform.update))
    found, found_states = update(stack(*gradients(3)), states, stack(*params))
    pairs = [
        transform.update(g, transform.init(p), p) for g, p in zip(gradients(3), params, strict=True)
    ]
    chex.assert_trees_all_close(found, stack(*[pair[0] for pair in pairs]), rtol=RTOL, atol=ATOL)
    chex.assert_trees_all_equal(found_states, stack(*[pair[1] for pair in pairs]))


@pytest.mark.parametrize("factory", [optim.scb_proximal, optim.scb_sgd])
def test_rates_may_be_mapped(factory: Callable[..., Transform]) -> None:
    extra = {"l1": 0.05} if factory is optim.scb_proximal else {}
    params, grads = random_params(0), gradients(1)[0]

    def move(rate: jax.Array) -> Params:
        transform = factory(MU_ARG["stationary"], rate, 2.0 * rate, **extra)
        updates: Params = transform.update(grads, transform.init(params), params)[0]
        return updates

    rates = jnp.array([0.01, 0.1, 1.0])
    found = jax.jit(jax.vmap(move))(rates)
    for index, rate in enumerate([0.01, 0.1, 1.0]):
        expected = run(factory(MU_ARG["stationary"], rate, 2 * rate, **extra), [grads], params)[0]
        chex.assert_trees_all_close(
            jax.tree.map(lambda u, p, i=index: p + u[i], found, params),
            expected,
            rtol=RTOL,
            atol=ATOL,
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.project_tangent(MU_ARG["stationary"], "flat"), "geometry is 'flat'"),  # type: ignore[arg-type]
        (lambda: optim.proximal_l1(0.1, 0.1, "soft"), "threshold is 'soft'"),  # type: ignore[arg-type]
        (
            lambda: optim.scb_proximal(MU_ARG["stationary"], 0.1, 0.1, 0.1, geometry="flat"),  # type: ignore[arg-type]
            "geometry is 'flat'; it must be one of mu, paper",
        ),
        (
            lambda: optim.scb_proximal(MU_ARG["stationary"], 0.1, 0.1, 0.1, threshold="soft"),  # type: ignore[arg-type]
            "threshold is 'soft'; it must be one of direct, rate",
        ),
        (
            lambda: optim.scb_sgd(MU_ARG["stationary"], 0.1, 0.1, geometry="flat"),  # type: ignore[arg-type]
            "geometry is 'flat'",
        ),
        (
            lambda: optim.raw_sgd(0.1, 0.1).init({"value": jnp.ones(1), "bias": jnp.ones(1)}),
            "a parameter is named 'bias'; it must be named value or attention",
        ),
    ],
)
def test_unknown_options_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# Equation 4.


def right_projector(mu: Array, geometry: str) -> Array:
    if geometry == "paper":
        return np.asarray(np.eye(mu.size) - np.outer(mu, mu) / (mu @ mu))
    return np.eye(mu.size) - np.outer(mu, np.ones(mu.size))


def centring(size: int) -> Array:
    return np.asarray(np.eye(size) - 1 / size)


def random_mu(rng: np.random.Generator, size: int) -> Array:
    weights = rng.uniform(0.2, 1.8, size=size)
    return np.asarray(weights / weights.sum())


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("geometry", ["mu", "paper"])
@pytest.mark.parametrize("size", [2, 5])
def test_preconditioned_gradients_are_the_printed_products(
    rng: np.random.Generator, geometry: Geometry, size: int
) -> None:
    length, mu = 11, random_mu(rng, size)
    value, attention = rng.normal(size=(size, size)), rng.normal(size=(length, size))
    stationary = jnp.asarray(mu)
    scale = optim.scale_by_stationary(stationary)
    for grad, project, expected in (
        (
            value,
            optim.project_tangent(stationary, geometry),
            centring(size) @ value @ np.diag(1 / mu) @ right_projector(mu, geometry),
        ),
        (
            attention,
            optim.project_tangent(),
            np.stack([centring(length) @ attention[:, k] / mu[k] for k in range(size)], axis=1),
        ),
    ):
        chain = optax.chain(scale, project)
        found, _ = chain.update(jnp.asarray(grad), chain.init(None))
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("geometry", ["mu", "paper"])
def test_projector_is_orthogonal_in_its_own_inner_product(
    rng: np.random.Generator, geometry: Geometry
) -> None:
    mu = random_mu(rng, N)
    metric = np.diag(mu) if geometry == "mu" else np.eye(N)
    transform = optim.project_tangent(jnp.asarray(mu, jnp.float32), geometry)
    a = rng.normal(size=(N, N))
    once = np.asarray(transform.update(jnp.asarray(a, jnp.float32), transform.init(None))[0], float)
    twice = transform.update(jnp.asarray(once, jnp.float32), transform.init(None))[0]
    np.testing.assert_allclose(twice, once, rtol=RTOL, atol=ATOL)
    # The part taken away is orthogonal to every direction that keeps the invariants.
    basis = centring(N) @ rng.normal(size=(20, N, N)) @ right_projector(mu, "mu")
    products = np.einsum("sij,jk,ik->s", basis, metric, a - once)
    np.testing.assert_allclose(products, 0.0, atol=1e-5)
    other = np.eye(N) if geometry == "mu" else np.diag(mu)
    assert np.abs(np.einsum("sij,jk,ik->s", basis, other, a - once)).max() > 0.01


@hypothesis.given(
    grad=hnp.arrays(np.float32, (N, N), elements=st.floats(-10, 10, width=32)),
    weights=hnp.arrays(np.float64, N, elements=st.floats(0.2, 2.0)),
    geometry=st.sampled_from(["mu", "paper"]),
)
@hypothesis.settings(max_examples=50)
def test_projected_updates_keep_the_invariants(
    grad: Array, weights: Array, geometry: Geometry
) -> None:
    mu = weights / weights.sum()
    transform = optim.project_tangent(jnp.asarray(mu, jnp.float32), geometry)
    update = np.asarray(transform.update(jnp.asarray(grad), transform.init(None))[0], float)
    np.testing.assert_allclose(update.sum(axis=0), 0.0, atol=2e-5)
    np.testing.assert_allclose(update @ mu, 0.0, atol=2e-5)


# Equation 6, i and ii: the proximal step.


def scalar_prox(x: float, level: float) -> float:
    """argmin over z of (z - x)^2 / 2 + level |z|, case by case."""
    if x > level:
        return x - level
    if x < -level:
        return x + level
    return 0.0


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("threshold", ["direct", "rate"])
def test_proximal_step_equals_the_scalar_reference(
    rng: np.random.Generator, threshold: optim.Threshold
) -> None:
    rate, l1 = 0.3, 0.4
    params, grads = rng.normal(size=(4, 5)), rng.normal(size=(4, 5))
    transform = optim.proximal_l1(rate, l1, threshold)
    found, _ = run(transform, [jnp.asarray(grads)], jnp.asarray(params))
    level = l1 if threshold == "direct" else rate * l1
    expected = [
        [scalar_prox(p - rate * g, level) for p, g in zip(*rows, strict=True)]
        for rows in zip(params, grads, strict=True)
    ]
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-13, atol=1e-15)
    assert 0 < np.sum(np.asarray(found) == 0.0) < 20


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("threshold", ["direct", "rate"])
def test_fixed_point_meets_the_optimality_condition(
    rng: np.random.Generator, threshold: optim.Threshold
) -> None:
    factor = rng.normal(size=(12, 6))
    hessian, linear, rate = factor.T @ factor / 12, rng.normal(size=6), 0.2
    penalty = 0.6
    l1 = penalty if threshold == "rate" else rate * penalty
    transform = optim.proximal_l1(rate, l1, threshold)
    h, b = jnp.asarray(hessian), jnp.asarray(linear)

    def body(_: int, carry: tuple[jax.Array, optax.OptState]) -> tuple[jax.Array, optax.OptState]:
        x, state = carry
        updates, state = transform.update(h @ x - b, state, x)
        return optax.apply_updates(x, updates), state

    start = jnp.zeros(6)
    x = np.asarray(jax.lax.fori_loop(0, 4000, body, (start, transform.init(start)))[0])
    slope = hessian @ x - linear
    assert 0 < np.sum(x == 0) < 6
    np.testing.assert_allclose(slope[x != 0], -penalty * np.sign(x[x != 0]), atol=1e-10)
    assert np.all(np.abs(slope[x == 0]) <= penalty)


vectors = hnp.arrays(np.float64, 5, elements=st.floats(-5, 5))


@hypothesis.given(x=vectors, y=vectors, level=st.floats(0, 3))
@hypothesis.settings(max_examples=60)
def test_soft_threshold_is_nonexpansive(x: Array, y: Array, level: float) -> None:
    a, b = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    moved = np.asarray(optim.soft_threshold(a, level) - optim.soft_threshold(b, level), float)
    before = np.linalg.norm(np.asarray(a, float) - np.asarray(b, float))
    assert np.linalg.norm(moved) <= before * (1 + 1e-6) + 1e-5


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("threshold", ["direct", "rate"])
def test_without_l1_it_is_the_plain_step(threshold: optim.Threshold) -> None:
    params, grads = random_params(0, jnp.float64), gradients(4, jnp.float64)
    found, _ = run(optim.proximal_l1(0.3, 0.0, threshold), grads, params)
    expected, _ = run(optax.sgd(0.3), grads, params)
    chex.assert_trees_all_close(found, expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("jit", [True, False])
def test_thresholded_entries_are_exactly_zero_once_applied(dtype: DTypeLike, jit: bool) -> None:
    params, grads = random_params(0, dtype), gradients(1, dtype)[0]
    rate, l1 = 0.3, 0.7
    transform = optim.proximal_l1(rate, l1)

    def step(grads: Params, params: Params) -> Params:
        updates, _ = transform.update(grads, transform.init(params), params)
        return optax.apply_updates(params, updates)  # type: ignore[no-any-return]

    found = (jax.jit(step) if jit else step)(grads, params)
    for after, param, grad in zip(found, params, grads, strict=True):
        moved = np.asarray(param, float) - rate * np.asarray(grad, float)
        clear = np.abs(np.abs(moved) - l1) > 0.02  # the last bit of bfloat16 may go either way
        np.testing.assert_array_equal((np.asarray(after) == 0)[clear], (np.abs(moved) < l1)[clear])
        assert np.any(np.asarray(after) == 0)


def test_one_trace_serves_many_rates_and_lambdas() -> None:
    params, grads = random_params(0), gradients(1)[0]

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(rate: jax.Array, l1: jax.Array) -> Params:
        transform = optim.proximal_l1(rate, l1, "rate")
        updates: Params = transform.update(grads, transform.init(params), params)[0]
        return updates

    found = [step(jnp.asarray(rate), jnp.asarray(l1)) for rate in (0.1, 0.2) for l1 in (0.0, 2.0)]
    for one, rate, l1 in zip(found, (0.1, 0.1, 0.2, 0.2), (0.0, 2.0, 0.0, 2.0), strict=True):
        expected = run(optim.proximal_l1(rate, l1, "rate"), [grads], params)[0]
        chex.assert_trees_all_close(
            optax.apply_updates(params, one), expected, rtol=RTOL, atol=ATOL
        )


@pytest.mark.parametrize(("threshold", "shrunk"), [("direct", 0.25), ("rate", 0.125)])
def test_threshold_is_lambda_or_rate_times_lambda(
    threshold: optim.Threshold, shrunk: float
) -> None:
    transform = optim.proximal_l1(0.5, 0.25, threshold)
    params = jnp.array([2.0, -1.0])
    updates, state = transform.update(jnp.zeros(2), transform.init(params), params)
    assert updates.tolist() == [-shrunk, shrunk]
    assert state.count.dtype == jnp.int32
    assert int(state.count) == 1


def test_count_does_not_overflow() -> None:
    transform = optim.proximal_l1(0.1, 0.1)
    last = optim.ProximalL1State(jnp.asarray(2**31 - 1, jnp.int32))
    _, state = transform.update(jnp.zeros(1), last, jnp.zeros(1))
    assert int(state.count) == 2**31 - 1


# Equation 6, iii: column sums.


@pytest.mark.usefixtures("x64")
def test_restored_columns_are_the_euclidean_projection(rng: np.random.Generator) -> None:
    params, update = rng.normal(size=(T, N)), rng.normal(size=(T, N))
    transform = optim.restore_column_sums()
    found, _ = transform.update(jnp.asarray(update), transform.init(None), jnp.asarray(params))
    point, moved = np.asarray(params + found), params + update
    np.testing.assert_allclose(point.sum(axis=0), 1.0, rtol=1e-13)
    # Karush-Kuhn-Tucker system of: minimise |a - moved|^2 / 2 subject to 1^T a = 1.
    system = np.block([[np.eye(T), np.ones((T, 1))], [np.ones((1, T)), np.zeros((1, 1))]])
    solution = np.linalg.solve(system, np.vstack([moved, np.ones((1, N))]))
    np.testing.assert_allclose(point, solution[:T], rtol=1e-12, atol=1e-13)
    for column in range(N):
        other = rng.normal(size=(200, T))
        other += (1 - other.sum(axis=1, keepdims=True)) / T
        distances = np.linalg.norm(other - moved[:, column], axis=1)
        assert np.all(np.linalg.norm(point[:, column] - moved[:, column]) <= distances)


@pytest.mark.usefixtures("x64")
def test_thresholded_entries_share_one_background_after_the_chain() -> None:
    params = random_params(1, jnp.float64)
    l1 = 0.5
    transform = optax.chain(optim.proximal_l1(0.0, l1), optim.restore_column_sums())
    after = np.asarray(run(transform, [params], params)[0].attention)
    for column, before in zip(after.T, np.asarray(params.attention).T, strict=True):
        background = (1.0 - sum(scalar_prox(x, l1) for x in before)) / T
        cut = np.abs(before) <= l1
        assert cut.any()
        np.testing.assert_allclose(column[cut], background, rtol=1e-12)
        np.testing.assert_allclose(
            column[~cut] - background, [scalar_prox(x, l1) for x in before[~cut]], rtol=1e-12
        )


# The arms.


def reference_arm(
    params: tuple[Array, Array],
    grads: list[tuple[Array, Array]],
    mu: Array,
    *,
    rates: tuple[float, float],
    level: float | None,
    geometry: str,
) -> tuple[Array, Array]:
    """Equations 4 to 6 in NumPy, column by column; no thresholding and restoring without level."""
    value, attention = params
    size, length = value.shape[0], attention.shape[0]
    for grad_value, grad_attention in grads:
        direction = centring(size) @ grad_value @ np.diag(1 / mu) @ right_projector(mu, geometry)
        value = value - rates[0] * direction
        columns = []
        for k in range(size):
            column = attention[:, k] - rates[1] / mu[k] * (centring(length) @ grad_attention[:, k])
            if level is not None:
                column = np.array([scalar_prox(x, level) for x in column])
                column = column + (1 - column.sum()) / length
            columns.append(column)
        attention = np.stack(columns, axis=1)
    return value, attention


def on_invariants(rng: np.random.Generator, mu: Array, length: int) -> tuple[Array, Array]:
    size = mu.size
    value = mu[:, None] + centring(size) @ rng.normal(size=(size, size)) @ right_projector(mu, "mu")
    return value, 1 / length + centring(length) @ rng.normal(size=(length, size))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("geometry", ["mu", "paper"])
@pytest.mark.parametrize("arm", ["direct", "rate", "sgd"])
def test_arms_equal_the_equations_over_several_steps(
    rng: np.random.Generator, geometry: Geometry, arm: str
) -> None:
    size, length, rates, l1 = 4, 9, (0.05, 0.08), 0.3
    mu = random_mu(rng, size)
    start = on_invariants(rng, mu, length)
    grads = [(rng.normal(size=(size, size)), rng.normal(size=(length, size))) for _ in range(5)]
    stationary = jnp.asarray(mu)
    if arm == "sgd":
        level = None
        transform = optim.scb_sgd(stationary, *rates, geometry=geometry)
    else:
        threshold: optim.Threshold = "direct" if arm == "direct" else "rate"
        level = l1 if arm == "direct" else rates[1] * l1
        transform = optim.scb_proximal(
            stationary, *rates, l1, geometry=geometry, threshold=threshold
        )
    found, _ = run(
        transform,
        [Params(*map(jnp.asarray, grad)) for grad in grads],
        Params(*map(jnp.asarray, start)),
    )
    expected = reference_arm(start, grads, mu, rates=rates, level=level, geometry=geometry)
    np.testing.assert_allclose(found.value, expected[0], rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(found.attention, expected[1], rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(found.value.sum(axis=0), 1.0, rtol=1e-12)
    np.testing.assert_allclose(found.value @ mu, mu, rtol=1e-12)
    np.testing.assert_allclose(found.attention.sum(axis=0), 1.0, rtol=1e-12)


def test_raw_sgd_is_plain_sgd_with_two_rates() -> None:
    params, grads = random_params(0), gradients(2)
    found, _ = run(optim.raw_sgd(0.1, 0.4), grads, params)
    value, _ = run(optax.sgd(0.1), [g.value for g in grads], params.value)
    attention, _ = run(optax.sgd(0.4), [g.attention for g in grads], params.attention)
    chex.assert_trees_all_equal(found, Params(value, attention))


@pytest.mark.usefixtures("x64")
def test_adam_is_its_recursion_with_two_rates() -> None:
    params, grads = random_params(0, jnp.float64), gradients(4, jnp.float64)
    found, _ = run(optim.adam(0.1, 0.4), grads, params)
    for name, rate in (("value", 0.1), ("attention", 0.4)):
        expected = np.array(getattr(params, name))
        mean, square = np.zeros_like(expected), np.zeros_like(expected)
        for count, grad in enumerate((np.array(getattr(g, name)) for g in grads), start=1):
            mean, square = 0.9 * mean + 0.1 * grad, 0.999 * square + 0.001 * grad**2
            step = mean / (1 - 0.9**count) / (np.sqrt(square / (1 - 0.999**count)) + 1e-8)
            expected = expected - rate * step
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_proximal_arm_without_l1_is_the_sgd_arm(rng: np.random.Generator) -> None:
    mu = random_mu(rng, N)
    start = Params(*map(jnp.asarray, on_invariants(rng, mu, T)))
    grads = gradients(5, jnp.float64)
    proximal, _ = run(optim.scb_proximal(jnp.asarray(mu), 0.1, 0.2, 0.0), grads, start)
    sgd, _ = run(optim.scb_sgd(jnp.asarray(mu), 0.1, 0.2), grads, start)
    chex.assert_trees_all_close(proximal, sgd, rtol=1e-12, atol=1e-13)


# Where soft-thresholding is the exact proximal operator, and where it is not.


def constrained_prox(moved: Array, level: float) -> Array:
    """argmin of |z - moved|^2 / 2 + level |z|_1 over 1^T z = 1, by bisection on the multiplier."""
    low, high = -20.0, 20.0
    for _ in range(200):
        middle = (low + high) / 2
        point = np.array([scalar_prox(x - middle, level) for x in moved])
        low, high = (middle, high) if point.sum() > 1 else (low, middle)
    return point


@pytest.mark.usefixtures("x64")
def test_soft_threshold_is_exact_for_a_diagonal_metric(rng: np.random.Generator) -> None:
    mu, rate, l1 = random_mu(rng, N), 0.5, 0.3
    params, grads = rng.normal(size=(T, N)), rng.normal(size=(T, N))

    def objective(z: Array) -> Array:
        """The model that a proximal step in the metric diag(mu) minimises."""
        quadratic = (mu * (z - params) ** 2).sum(axis=(-2, -1)) / (2 * rate)
        linear, penalty = (grads * z).sum(axis=(-2, -1)), l1 * np.abs(z).sum(axis=(-2, -1))
        return np.asarray(quadratic + linear + penalty)

    columns = []
    for k in range(N):
        transform = optax.chain(
            optim.scale_by_stationary(jnp.asarray(mu[k : k + 1])),
            optim.proximal_l1(rate, l1 / mu[k], "rate"),
        )
        column = jnp.asarray(params[:, k : k + 1])
        updates, _ = transform.update(
            jnp.asarray(grads[:, k : k + 1]), transform.init(column), column
        )
        columns.append(np.asarray(column + updates)[:, 0])
    point = np.stack(columns, axis=1)
    assert 0 < np.sum(point == 0) < T * N
    nearby = point + rng.normal(size=(2000, T, N)) * rng.choice([1e-3, 0.1], size=(2000, 1, 1))
    assert np.all(objective(nearby) > objective(point))


@pytest.mark.usefixtures("x64")
def test_soft_threshold_then_restoring_is_not_the_exact_operator_of_the_projected_metric(
    rng: np.random.Generator,
) -> None:
    moved, level = rng.normal(size=T), 0.4
    moved += (1 - moved.sum()) / T

    def objective(z: Array) -> float:
        return float(((z - moved) ** 2).sum() / 2 + level * np.abs(z).sum())

    exact = constrained_prox(moved, level)
    np.testing.assert_allclose(exact.sum(), 1.0, rtol=1e-12)
    transform = optax.chain(optim.proximal_l1(0.0, level), optim.restore_column_sums())
    column = jnp.asarray(moved[:, None])
    updates, _ = transform.update(jnp.zeros_like(column), transform.init(column), column)
    printed = np.asarray(column + updates)[:, 0]
    np.testing.assert_allclose(printed.sum(), 1.0, rtol=1e-12)
    assert objective(printed) > objective(exact) + 1e-3
    assert np.sum(exact == 0) > 0
    assert np.sum(printed == 0) == 0


@pytest.mark.parametrize("l1", [None, 0.0, 0.05])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_step_by_rows_is_that_of_the_chain(
    l1: float | None, frozen: bool, rng: np.random.Generator
) -> None:
    """Samples that share a query add up; columns without a sample are thresholded as well."""
    params, mu = random_params(1), MU_ARG["stationary"]
    index = np.array([2, 0, 2, 2])
    samples = rng.normal(size=(4, T))
    whole = np.zeros((T, N))
    np.add.at(whole.T, index, samples)
    grads = Params(jnp.zeros((N, N)), jnp.asarray(whole, jnp.float32))
    chain = optim.scb_sgd(mu, 0.1, 0.2) if l1 is None else optim.scb_proximal(mu, 0.1, 0.2, l1)
    expected, _ = run(chain, [grads], params)
    rows = step_rows(
        params.attention.T,
        jnp.asarray(samples, jnp.float32),
        jnp.asarray(index),
        stationary=mu,
        learning_rate=0.2,
        l1=l1,
        frozen=jnp.asarray(frozen),
    )
    if frozen:
        np.testing.assert_array_equal(rows.T, params.attention)
    else:
        assert float(jnp.max(jnp.abs(expected.attention - params.attention))) > 0.1
        np.testing.assert_allclose(rows.T, expected.attention, rtol=RTOL, atol=ATOL)


# ------------------------------------------------------------------------ the invariants, kept


def start_params(length: int = 50) -> Params:
    """Where training starts: V = mu 1^T, A = 1 1^T / T."""
    value = jnp.broadcast_to(jnp.asarray(MU, jnp.float32)[:, None], (N, N))
    return Params(value, jnp.full((length, N), 1.0 / length, jnp.float32))


def check_invariants(params: Params, tolerance: float) -> None:
    value, attention = (np.asarray(array, float) for array in params)
    np.testing.assert_allclose(attention.sum(axis=0), 1.0, rtol=0, atol=tolerance)
    np.testing.assert_allclose(value.sum(axis=0), 1.0, rtol=0, atol=tolerance)
    np.testing.assert_allclose(value @ MU, MU, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ["scb_proximal", "scb_proximal_paper", "scb_sgd"])
def test_coarse_gradients_are_those_of_the_parameters_dtype(name: str, dtype: DTypeLike) -> None:
    """A step with rounded gradients is exactly that with the same numbers held in float32."""
    transform, params, rng = CASES[name].make(), start_params(), np.random.default_rng(1)
    draw = [jnp.asarray(rng.normal(size=leaf.shape), dtype) for leaf in params]
    coarse, same = Params(*draw), Params(*(leaf.astype(jnp.float32) for leaf in draw))
    moved, expected = (run(transform, [grads], params)[0] for grads in (coarse, same))
    chex.assert_trees_all_equal(moved, expected)
    assert float(jnp.max(jnp.abs(moved.attention - params.attention))) > 0.1
    check_invariants(moved, 2e-6)


def test_column_sums_are_restored_in_the_parameters_dtype() -> None:
    params = start_params().attention
    updates = jnp.asarray(np.random.default_rng(2).normal(size=params.shape), jnp.bfloat16)
    transform = optim.restore_column_sums()
    restored, _ = transform.update(updates, transform.init(params), params)
    assert restored.dtype == params.dtype
    sums = np.sum(np.asarray(optax.apply_updates(params, restored), float), axis=0)
    # What rounding does to a sum of these in float32; in bfloat16 it is thousands of times as much.
    rounding = np.finfo(np.float32).eps * np.abs(np.asarray(updates, float)).sum(axis=0).max()
    np.testing.assert_allclose(sums, 1.0, rtol=0, atol=rounding)


def test_rows_step_with_coarse_gradients() -> None:
    rng = np.random.default_rng(3)
    rows, index = start_params().attention.T, jnp.array([0, 2, 2])
    gradient = jnp.asarray(rng.normal(size=(3, rows.shape[1])), jnp.bfloat16)
    numbers = {"stationary": MU_ARG["stationary"], "learning_rate": 0.1, "l1": 0.01}
    found = step_rows(rows, gradient, index, **numbers)
    assert found.dtype == jnp.float32
    expected = step_rows(rows, gradient.astype(jnp.float32), index, **numbers)
    np.testing.assert_array_equal(found, expected)


OTHERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "momentum": lambda: optax.trace(0.9),
    "nesterov": lambda: optax.trace(0.9, nesterov=True),
    "adam": optax.scale_by_adam,
    "rms": optax.scale_by_rms,
    "clipped": lambda: optax.clip(0.1),
}


@pytest.mark.parametrize("geometry", optim.GEOMETRIES)
@pytest.mark.parametrize("name", list(OTHERS))
def test_any_optimiser_keeps_the_invariants_when_projected_last(
    name: str, geometry: Geometry
) -> None:
    mu, params = MU_ARG["stationary"], start_params()
    parts = (optim.scale_by_stationary(mu), OTHERS[name](), optax.scale_by_learning_rate(0.01))
    rng = np.random.default_rng(4)
    grads = [
        Params(*(jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for leaf in params))
        for _ in range(20)
    ]
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
        moved, _ = run(optax.chain(*parts, optim.keep_invariants(mu, geometry)), grads, params)
        left, _ = run(optax.chain(*parts), grads, params)
    check_invariants(moved, 1e-5)
    with pytest.raises(AssertionError):  # it is the projection that keeps them
        check_invariants(left, 1e-2)


def test_the_projection_keeps_what_meets_the_invariants() -> None:
    """Behind eq. 4 it changes nothing: the chain then is plain preconditioned descent."""
    mu, params = MU_ARG["stationary"], start_params()
    rng = np.random.default_rng(5)
    grads = [Params(*(jnp.asarray(rng.normal(size=a.shape), jnp.float32) for a in params))]
    expected, _ = run(optim.scb_sgd(mu, 0.1, 0.1), grads, params)
    chain = optax.chain(optim.scb_sgd(mu, 0.1, 0.1), optim.keep_invariants(mu))
    found, _ = run(chain, grads, params)
    chex.assert_trees_all_close(found, expected, rtol=0, atol=1e-6)
    late = optax.chain(
        optim.scale_by_stationary(mu), optax.scale_by_learning_rate(0.1), optim.keep_invariants(mu)
    )
    chex.assert_trees_all_close(run(late, grads, params)[0], expected, rtol=0, atol=1e-6)
