"""Blocks against the whole at once, at sizes that blocks do not divide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scbjax import blocks

SHAPES = [(1, 1), (3, 2), (21, 64), (1999, 40), (61, 4096)]


@pytest.fixture(params=[True, False], ids=["blocks", "whole"], autouse=True)
def _either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "has_blocks", lambda: request.param)


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_every_row_is_filled(rows: int, width: int) -> None:
    made: list[int] = []

    def make(first: jax.Array, count: int) -> jax.Array:
        made.append(count)
        return jnp.broadcast_to(3 * (first + jnp.arange(count))[:, None], (count, width))

    array = blocks.fill(make, (rows, width), jnp.int32, width)
    assert np.array_equal(array, np.broadcast_to(3 * np.arange(rows)[:, None], (rows, width)))
    # More than one block even of a small array.
    assert (max(made) < rows) == (blocks.has_blocks() and rows > 1)


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_sums_are_those_of_each_class(rows: int, width: int) -> None:
    rng = np.random.default_rng(rows)
    classes = rng.integers(0, 5, (rows, width)).astype(np.uint8)
    # Whole numbers: sums are exact in any order.
    source, by_column = rng.integers(-4, 5, (rows, 3)), rng.integers(-4, 5, (3, width))
    arrays = jnp.asarray(source, jnp.float32), jnp.asarray(by_column, jnp.float32)
    sums = blocks.sum_by_class(
        lambda part: part @ arrays[1], arrays[0], jnp.asarray(classes), num_classes=5
    )
    weights = source @ by_column
    for n in range(1, 5):
        assert np.array_equal(sums[n - 1], np.where(classes == n, weights, 0).sum(axis=0))
