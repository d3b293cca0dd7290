"""Quick compilation: chosen where a call stands alone, and without a trace in what comes out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scbjax import once, random_task, related_task, sample_batch
from scbjax.task import Task


@pytest.mark.parametrize("num_tokens", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_tasks_are_the_same_however_they_are_compiled(num_tokens: int) -> None:
    def draw(key: jax.Array) -> Task:
        return random_task(key, num_tokens=num_tokens, context_length=30, sparsity=3)

    key = jax.random.key(4)
    for alone, inside in zip(draw(key), jax.jit(draw)(key), strict=True):
        np.testing.assert_allclose(alone, inside, rtol=2e-5, atol=1e-7)
    task = draw(key)

    def relate(key: jax.Array) -> Task:
        return related_task(key, task, correlation=0.5)

    for alone, inside in zip(relate(key), jax.jit(relate)(key), strict=True):
        np.testing.assert_allclose(alone, inside, rtol=2e-5, atol=1e-7)
    drawn = sample_batch(key, task, 64), jax.jit(lambda key: sample_batch(key, task, 64))(key)
    for own, other in zip(*drawn, strict=True):
        np.testing.assert_array_equal(own, other)


def test_calls_inside_of_programs_are_theirs() -> None:
    """Options of the compiler belong to whole programs: JAX refuses them elsewhere."""
    levels: list[int] = []

    def level(*_: Any) -> int:  # noqa: ANN401
        levels.append(once.LIGHT)
        return once.LIGHT

    double = once.compiled_quickly(lambda x: 2.0 * x, level=level)
    constant = np.float32(3.0)
    assert float(double(constant)) == 6.0
    assert len(levels) == 1
    inside = (
        lambda: jax.jit(double)(constant),
        lambda: float(jax.jit(lambda x: x * double(constant))(jnp.ones(()))),
        lambda: jax.vmap(double)(jnp.full(2, 3.0))[0],
        lambda: 3.0 * float(jax.grad(double)(constant)),
        lambda: jax.lax.map(lambda _: double(constant), jnp.arange(2))[0],
    )
    assert [float(each()) for each in inside] == [6.0] * 5
    assert len(levels) == 1


def test_unknown_options_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(once, "_EMITTERS", "xla_no_such_option")
    once.quick_options.cache_clear()
    assert once.quick_options(1) == {"xla_backend_optimization_level": 1}
    once.quick_options.cache_clear()
