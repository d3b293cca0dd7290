"""Contexts as tuples: the same as token by token, which other tests hold against the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scbjax import sampling, tuples
from scbjax.losses import loss
from scbjax.model import Params
from scbjax.sampling import AnyBatch, Batch, PackedBatch
from scbjax.task import Task

# Lengths that do and do not fill their tuples, and one that is worked on in several blocks.
SIZES = ((3, 1), (4, 6), (2, 17), (3, 1025))


def make_task(num_tokens: int, length: int) -> Task:
    """Any columns will do, and a stationary distribution that is far from uniform."""
    rng = np.random.default_rng([num_tokens, length])
    sizes = (num_tokens, num_tokens), (num_tokens,), (length, num_tokens)
    transition, stationary, pattern = (rng.gamma(0.5, size=size) + 1e-3 for size in sizes)
    arrays = (array / array.sum(axis=0) for array in (transition, stationary, pattern))
    return Task(*(jnp.asarray(array, jnp.float32) for array in arrays))


@jax.jit
def draw(task: Task, key: jax.Array) -> tuple[AnyBatch, Batch]:
    """A mini-batch as a step has it, and token by token."""
    sampler, seed = sampling.make_sampler(task), sampling.make_seed(key)
    return sampling.draw_step(seed, sampler, 40), sampling.draw_batch(seed, sampler, 40)


@pytest.mark.parametrize(("num_tokens", "length"), SIZES)
def test_tuples_hold_the_batch_that_is_drawn_without_them(num_tokens: int, length: int) -> None:
    packed, plain = draw(make_task(num_tokens, length), jax.random.key(length))
    assert isinstance(packed, PackedBatch)
    assert np.array_equal(packed.query, plain.query)
    assert np.array_equal(packed.label, plain.label)
    bits, count = tuples.tuple_shape(num_tokens)
    words = np.asarray(packed.tuples, np.int64)
    assert words.shape == (-(-length // count), 40)
    for position in range(length):
        row, place = divmod(position, count)
        token = words[row] // 2 ** (bits * (count - 1 - place)) % 2**bits
        assert np.array_equal(token, plain.tokens[:, position])


def test_larger_vocabularies_have_no_tuples() -> None:
    assert isinstance(draw(make_task(5, 17), jax.random.key(0))[0], Batch)


@pytest.mark.parametrize(("num_tokens", "length"), SIZES)
def test_loss_and_gradient_are_those_of_single_tokens(num_tokens: int, length: int) -> None:
    """In float64 NumPy from the tokens alone, off the invariant set."""
    packed, plain = draw(make_task(num_tokens, length), jax.random.key(length))
    rng = np.random.default_rng(length)
    value = rng.normal(size=(num_tokens, num_tokens)) / num_tokens**0.5
    attention = rng.normal(size=(length, num_tokens)) / length**0.5
    params = Params(jnp.asarray(value, jnp.float32), jnp.asarray(attention, jnp.float32))
    found, grads = jax.jit(jax.value_and_grad(loss))(params, packed)
    tokens, query, label = (np.asarray(array) for array in plain)
    one_hot = np.eye(num_tokens)
    attended = np.einsum("btn,tb->bn", one_hot[tokens], attention[:, query])
    error = (attended @ value.T - one_hot[label]) / len(label)
    assert found == pytest.approx(0.5 * len(label) * np.sum(error**2), rel=1e-5)
    spread = np.einsum("btn,bn->tb", one_hot[tokens], error @ value)
    np.testing.assert_allclose(grads.value, error.T @ attended, atol=2e-6)
    np.testing.assert_allclose(grads.attention, spread @ one_hot[query], atol=2e-6)


@pytest.mark.slow
def test_learners_that_share_a_batch_share_its_tuples() -> None:
    packed, plain = draw(make_task(3, 17), jax.random.key(1))
    params = Params(
        jax.random.normal(jax.random.key(2), (4, 3, 3)),
        jax.random.normal(jax.random.key(3), (4, 17, 3)),
    )
    grads = jax.vmap(jax.grad(loss), in_axes=(0, None))
    for got, expected in zip(grads(params, packed), grads(params, plain), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)
