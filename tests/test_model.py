"""The forward pass against the formula written out with one-hot arrays in NumPy."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scbjax.model import (
    ATTENTION_MAPS,
    AttentionMap,
    Params,
    init_params,
    map_attention,
    predict,
    start_params,
    step_scale_of,
)
from scbjax.task import Task

Array = np.ndarray[Any, np.dtype[Any]]

# These programs run for milliseconds: optimising them costs more than it saves.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
# One output is a sum of T N products of numbers of order one, in float32.
TOLERANCE = 1e-5
# Both sides of every switch between algorithms: few tokens, more tokens than samples, 16 bits.
SIZES = [2, 3, 4, 5, 20, 33, 300]


class Case(NamedTuple):
    """V, A, contexts and queries, in float64 and int64."""

    value: Array
    attention: Array
    tokens: Array
    query: Array


def make_case(num_tokens: int, context_length: int, batch_size: int, seed: int = 0) -> Case:
    """Parameters off the invariant set; tokens and queries far from uniform."""
    rng = np.random.default_rng([seed, num_tokens, context_length, batch_size])
    mu = rng.dirichlet(np.full(num_tokens, 0.7))
    tokens = rng.choice(num_tokens, (batch_size, context_length), p=mu)
    query = rng.choice(num_tokens, batch_size, p=mu)
    query[: min(2, batch_size)] = num_tokens - 1
    tokens[0] = num_tokens - 1  # every position has the same token
    return Case(
        rng.normal(size=(num_tokens, num_tokens)) / num_tokens**0.5,
        rng.normal(size=(context_length, num_tokens)) / context_length**0.5,
        tokens,
        query,
    )


def naive_predict(case: Case) -> Array:
    """``V X a^(k)``, sample by sample: X is the one-hot matrix of a context."""
    one_hot = np.eye(len(case.value))
    rows = [
        case.value @ one_hot[:, tokens] @ case.attention[:, query]
        for tokens, query in zip(case.tokens, case.query, strict=True)
    ]
    return np.stack(rows)


def single(case: Case) -> Params:
    return Params(jnp.asarray(case.value, jnp.float32), jnp.asarray(case.attention, jnp.float32))


@pytest.fixture
def x64() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize("num_tokens", SIZES)
@pytest.mark.parametrize(("context_length", "batch_size"), [(13, 40), (1, 3), (6, 1)])
def test_predict_is_the_formula(num_tokens: int, context_length: int, batch_size: int) -> None:
    case = make_case(num_tokens, context_length, batch_size)
    dtype = np.uint8 if num_tokens <= 256 else np.uint16
    got = quick_jit(predict)(single(case), case.tokens.astype(dtype), case.query.astype(np.int32))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, naive_predict(case), atol=TOLERANCE)


@pytest.mark.parametrize("context_length", [2047, 2048])
def test_long_contexts_of_large_vocabularies_give_the_same(context_length: int) -> None:
    """On both sides of the length from which a CPU goes sample by sample; over learners as well."""
    cases = [make_case(40, context_length, 5, seed) for seed in range(2)]
    many = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(single(case) for case in cases))
    tokens = np.stack([case.tokens for case in cases]).astype(np.uint8)
    query = np.stack([case.query for case in cases]).astype(np.int32)
    got = quick_jit(jax.vmap(predict))(many, tokens, query)
    np.testing.assert_allclose(got, [naive_predict(case) for case in cases], atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int32])
def test_tokens_may_have_any_integer_type(dtype: type[np.integer[Any]]) -> None:
    for num_tokens in (3, 7):
        case = make_case(num_tokens, 5, 4)
        got = quick_jit(predict)(single(case), case.tokens.astype(dtype), case.query.astype(dtype))
        np.testing.assert_allclose(got, naive_predict(case), atol=TOLERANCE)


@pytest.mark.parametrize("num_tokens", [3, 20])
def test_predict_in_vmap_over_samples_and_over_learners(num_tokens: int) -> None:
    cases = [make_case(num_tokens, 6, 5, seed) for seed in range(3)]
    many = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(single(case) for case in cases))
    tokens = np.stack([case.tokens for case in cases]).astype(np.uint8)
    query = np.stack([case.query for case in cases]).astype(np.int32)
    got = quick_jit(jax.vmap(predict))(many, tokens, query)
    np.testing.assert_allclose(got, [naive_predict(case) for case in cases], atol=TOLERANCE)
    got = quick_jit(jax.vmap(predict, in_axes=(0, None, None)))(many, tokens[0], query[0])
    shared = [case._replace(tokens=cases[0].tokens, query=cases[0].query) for case in cases]
    np.testing.assert_allclose(got, [naive_predict(case) for case in shared], atol=TOLERANCE)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_tokens", [3, 20])
def test_predict_keeps_double_precision(num_tokens: int) -> None:
    case = make_case(num_tokens, 13, 8)
    params = Params(jnp.asarray(case.value), jnp.asarray(case.attention))
    got = quick_jit(predict)(params, case.tokens.astype(np.uint8), case.query)
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, naive_predict(case), atol=1e-14)


def test_contexts_of_another_length_are_refused() -> None:
    case = make_case(3, 5, 4)
    with pytest.raises(
        ValueError, match=r"^tokens has shape \[4, 4\]; it must be \[B, T\] with T = 5$"
    ):
        predict(single(case), jnp.asarray(case.tokens[:, :4]), jnp.asarray(case.query))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_start_predicts_the_stationary_law(dtype: jax.typing.DTypeLike) -> None:
    mu = np.array([0.2, 0.3, 0.5])
    task = Task(
        jnp.eye(3, dtype=dtype), jnp.asarray(mu, dtype), jnp.zeros((7, 3), dtype).at[2].set(1)
    )
    value, attention = init_params(task)
    assert value.dtype == attention.dtype == dtype
    np.testing.assert_allclose(value, np.tile(mu[:, None], 3), rtol=1e-6)
    np.testing.assert_allclose(attention, np.full((7, 3), 1 / 7), rtol=1e-6)
    case = make_case(3, 7, 4)
    out = quick_jit(predict)(Params(value, attention), case.tokens, case.query)
    np.testing.assert_allclose(out, np.tile(mu, (4, 1)), rtol=1e-6)


# Attention maps


def column_jacobian(name: str, column: Array) -> Array:
    """``da/dw`` of one column, by automatic differentiation."""

    def weights(parameter: jax.Array) -> jax.Array:
        return ATTENTION_MAPS[name].weights(parameter[:, None])[:, 0]

    return np.asarray(jax.jacobian(weights)(jnp.asarray(column)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", list(ATTENTION_MAPS))
def test_every_map_starts_uniform(name: str) -> None:
    task = Task(jnp.eye(2), jnp.array([0.25, 0.75]), jnp.zeros((5, 2)))
    start = init_params(task, name)
    assert start.attention.dtype == jnp.float64
    mapped = map_attention(start, name)
    np.testing.assert_allclose(mapped.attention, np.full((5, 2), 0.2), rtol=1e-15)
    assert mapped.value is start.value


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", list(ATTENTION_MAPS))
def test_the_gain_is_the_diagonal_of_the_preconditioner(name: str) -> None:
    parameter = np.random.default_rng(0).normal(size=(2, 7, 3))
    entry = ATTENTION_MAPS[name]
    uniform = column_jacobian(name, np.full(7, entry.start(7)))
    assert entry.gain is not None
    found = entry.gain(entry.weights(jnp.asarray(parameter)))
    assert found.shape == parameter.shape
    for row, matrix in zip(found, parameter, strict=True):
        for k, column in enumerate(matrix.T):
            jacobian = column_jacobian(name, column)
            expected = np.diag(jacobian @ jacobian.T) / np.diag(uniform @ uniform.T)
            np.testing.assert_allclose(row[:, k], expected, rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", list(ATTENTION_MAPS))
def test_at_the_start_a_map_rescales_what_keeps_column_sums(name: str) -> None:
    entry = ATTENTION_MAPS[name]
    jacobian = column_jacobian(name, np.full(7, entry.start(7)))
    tangent = np.eye(7) - 1 / 7
    expected = step_scale_of(entry, 7) * tangent
    np.testing.assert_allclose(tangent @ jacobian @ jacobian.T @ tangent, expected, atol=1e-15)


@pytest.mark.usefixtures("x64")
def test_softmax_is_its_formula_and_its_jacobian_diag_a_minus_aa() -> None:
    logits = 3 * np.random.default_rng(1).normal(size=(6, 2))
    weights = np.exp(logits) / np.exp(logits).sum(axis=0)
    found = map_attention(Params(jnp.eye(2), jnp.asarray(logits)), "softmax").attention
    np.testing.assert_allclose(found, weights, rtol=1e-14)
    shifted = map_attention(Params(jnp.eye(2), jnp.asarray(logits + 1000.0)), "softmax").attention
    np.testing.assert_allclose(shifted, weights, rtol=1e-11)
    for column, a in zip(logits.T, weights.T, strict=True):
        expected = np.diag(a) - np.outer(a, a)
        np.testing.assert_allclose(column_jacobian("softmax", column), expected, atol=1e-15)


@pytest.mark.parametrize("name", list(ATTENTION_MAPS))
@pytest.mark.parametrize("context_length", [2, 7, 300])
def test_the_scale_of_a_step_is_derived_where_it_is_not_given(
    name: str, context_length: int
) -> None:
    own = ATTENTION_MAPS[name]._replace(step_scale=None)
    found = step_scale_of(own, context_length)
    np.testing.assert_allclose(found, step_scale_of(name, context_length), rtol=1e-5)
    # Also in the midst of a program that is being traced.
    traced = jax.jit(lambda x: x * step_scale_of(own._replace(name="again"), context_length))
    np.testing.assert_allclose(traced(1.0), found, rtol=1e-6)


def test_a_single_position_has_no_step() -> None:
    assert step_scale_of(ATTENTION_MAPS["softmax"]._replace(step_scale=None), 1) == 1.0


@pytest.mark.parametrize(
    ("change", "kind", "sentence"),
    [
        ({"weights": lambda w: w.sum(0)}, ValueError, r"makes \[2\] of the shape \[5, 2\]"),
        ({"weights": lambda w: w[:-1]}, ValueError, r"makes \[4, 2\] of the shape \[5, 2\]"),
        ({"weights": lambda w: w**2}, ValueError, r"makes 0.04 of its start 0.2; .* 1 / T = 0.2"),
        ({"start": 0.2}, TypeError, r"start of attention_map 'own' is no function"),
    ],
)
def test_a_map_that_is_none_is_refused(
    change: dict[str, Any], kind: type[Exception], sentence: str
) -> None:
    own = ATTENTION_MAPS["linear"]._replace(name="own", **change)
    mu = jnp.array([0.5, 0.3, 0.2])
    with pytest.raises(kind, match=sentence):
        start_params(mu, 5, own)
    with pytest.raises(kind, match=sentence):  # also in the midst of a program
        jax.jit(lambda mu: start_params(mu, 5, own))(mu)


def test_a_map_is_its_functions() -> None:
    """Programs are compiled for the functions, whatever the map is called."""
    run = jax.jit(map_attention, static_argnums=1)
    params = Params(jnp.eye(2), jnp.ones((3, 2)))
    for factor in (2.0, 3.0):
        own = AttentionMap(functools.partial(jnp.multiply, factor), lambda _: 1.0, name="mine")
        assert float(run(params, own).attention[0, 0]) == factor


@pytest.mark.parametrize("wrong", ["softmx", 3, ["linear"], None])
def test_what_is_no_map_is_refused(wrong: Any) -> None:  # noqa: ANN401
    with pytest.raises(
        ValueError, match=r"^attention_map is .*; it must be one of linear, softmax,"
    ):
        map_attention(Params(jnp.eye(2), jnp.ones((3, 2))), wrong)
