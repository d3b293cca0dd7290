"""Mapping trajectories over devices: the same numbers, on as many devices as there are."""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scbjax import Settings, map_trajectories, random_task, train
from scbjax.singly import few_at_once, one_by_one
from scbjax.sweep.engine.backend import compiler_options, usable_cores

MANY = """
import sys
from scbjax.parallel import map_trajectories, use_all_cores
import jax, numpy as np
from tests.test_parallel import final_distance
print(use_all_cores() if sys.argv[1] == "auto" else jax.local_device_count())
keys = jax.random.split(jax.random.key(0), 7)
mapped = map_trajectories(final_distance, in_axes=(0, None))
found = mapped(keys, 1e-3)
assert len(found.sharding.device_set) == min(int(sys.argv[2]), jax.local_device_count()), found
print(repr(np.asarray(found).tolist()))
"""


def final_distance(key: jax.Array, l1: jax.Array | float) -> jax.Array:
    """A, B: a task and a few steps on it."""
    settings = Settings(batch_size=8, steps=8, record_every=4, record=("value_distance",), l1=l1)
    task = random_task(key, num_tokens=3, context_length=30, sparsity=2)
    return train(jax.random.fold_in(key, 1), task, settings).records["value_distance"][-1]


def one_after_the_other(keys: jax.Array, l1: float) -> list[float]:
    alone = jax.jit(final_distance)
    return [float(alone(key, l1)) for key in keys]


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_mapped_function_is_the_function_of_every_place(count: int) -> None:
    keys = jax.random.split(jax.random.key(0), count)
    mapped = map_trajectories(final_distance, in_axes=(0, None))
    expected = one_after_the_other(keys, 1e-3)
    np.testing.assert_allclose(mapped(keys, 1e-3), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(mapped)(keys, 1e-3), expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4])
def test_several_devices_share_the_axis(devices: int) -> None:
    """Seven places on two and on four devices: neither divides them."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, "-c", MANY, "given", str(devices)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    count, values = done.stdout.splitlines()
    assert int(count) == devices
    expected = one_after_the_other(jax.random.split(jax.random.key(0), 7), 1e-3)
    np.testing.assert_allclose(np.fromstring(values[1:-1], sep=","), expected, rtol=1e-5)


def test_all_cores_come_with_all_of_their_registers() -> None:
    """What `use_all_cores` makes of the flags of XLA, once; nothing where they have settled it."""
    option = "--xla_cpu_prefer_vector_width"
    expected = [f"{option}={width}" for width in compiler_options("cpu", {}).values()]
    text = "import os; from scbjax import use_all_cores; {}; print(os.environ.get('XLA_FLAGS', ''))"
    twice, late = "use_all_cores(), use_all_cores()", "import jax; jax.devices(); use_all_cores()"
    one = {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    for call, flags, found in (
        (twice, "--xla_dump_to=", ["--xla_dump_to=", *expected]),
        (twice, f"{option}=128", [f"{option}=128"]),
        (late, "", []),
    ):
        said = subprocess.run(
            [sys.executable, "-c", text.format(call)],
            env={**os.environ, **one, "XLA_FLAGS": flags},
            capture_output=True,
            text=True,
            check=True,
        )
        assert said.stdout.split() == found, call


@pytest.mark.parametrize("started", [False, True])
def test_cores_become_devices_only_before_jax_runs(started: bool) -> None:
    first = "import jax; jax.devices(); " if started else ""
    settled = ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")
    env = {name: value for name, value in os.environ.items() if name not in settled}
    done = subprocess.run(
        [sys.executable, "-c", first + "from scbjax import use_all_cores; print(use_all_cores())"],
        env={**env, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    if started and usable_cores() > 1:
        assert "use_all_cores() must be called before anything is computed" in done.stderr
        assert done.returncode == 1
    else:
        assert int(done.stdout) == usable_cores(), done.stderr


def test_what_cannot_be_mapped_is_said_in_a_sentence() -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    for axes, arguments, message in (
        ((1, None), (keys, 1e-3), "in_axes has 1; it must have 0 or None"),
        ((None, None), (keys[0], 1e-3), "at least one argument must be mapped"),
        ((0, 0), (keys, jnp.ones(2)), "leading axes of sizes 2, 3; they must agree"),
        ((0, 0), (keys, 1e-3), "a mapped argument holds a scalar; it must have a leading axis"),
        ((0,), (keys, 1e-3), "in_axes has 1 entries; there are 2 arguments"),
    ):
        with pytest.raises(ValueError, match=message):
            map_trajectories(final_distance, in_axes=axes)(*arguments)


def distance_at(rate: jax.Array | float, key: jax.Array) -> jax.Array:
    """Of a vocabulary that is mapped one trajectory after the other."""
    task = random_task(jax.random.key(0), num_tokens=40, context_length=60, sparsity=2)
    settings = Settings(
        batch_size=8, steps=4, record_every=2, record=("value_distance",), learning_rate_1=rate
    )
    distance: jax.Array = train(key, task, settings).records["value_distance"][-1]
    return distance


@pytest.mark.slow
def test_large_vocabularies_are_mapped_by_a_loop_and_keep_their_derivatives() -> None:
    keys, rates = jax.random.split(jax.random.key(1), 3), jnp.array([1e-3, 2e-3])
    grid = jax.jit(jax.vmap(jax.vmap(distance_at, (None, 0)), (0, None)))(rates, keys)
    alone = jax.jit(distance_at)
    expected = [[float(alone(rate, key)) for key in keys] for rate in rates]
    np.testing.assert_allclose(grid, expected, rtol=1e-5)

    slopes = jax.jit(jax.vmap(jax.grad(distance_at), (None, 0)))(1e-3, keys)
    forward = jax.jit(jax.jacfwd(lambda rate: jax.vmap(partial(distance_at, rate))(keys)))(1e-3)
    step = 1e-4
    both = [np.array([float(alone(1e-3 + s, key)) for key in keys]) for s in (-step, step)]
    np.testing.assert_allclose(slopes, (both[1] - both[0]) / (2 * step), rtol=0.05, atol=2e-3)
    np.testing.assert_allclose(forward, slopes, rtol=1e-3)


def test_one_by_one_maps_nested_axes_and_leaves_the_others() -> None:
    seen: list[tuple[int, ...]] = []

    def add(x: jax.Array, y: jax.Array) -> jax.Array:
        seen.append(x.shape)
        added: jax.Array = jax.lax.cond(x[0] > 1, lambda: x + y, lambda: x - y)
        return added

    single = one_by_one(add)
    x, y = jnp.arange(6.0).reshape(3, 2), jnp.array([10.0, 20.0])
    found = jax.vmap(jax.vmap(single, (None, 0)), (0, None))(x, y)
    expected = [[row + s if row[0] > 1 else row - s for s in y] for row in np.asarray(x)]
    np.testing.assert_array_equal(found, expected)
    text = str(jax.make_jaxpr(jax.vmap(single, (0, None)))(x, y[0]))
    assert "cond" in text  # a branch has stayed one
    assert "select_n" not in text
    assert set(seen) == {(2,)}


def loops_of(function: Callable[..., object], *arguments: jax.Array) -> list[int]:
    """The lengths of the loops of a function."""
    text = str(jax.make_jaxpr(function)(*arguments))
    return [int(length) for length in re.findall(r"\blength=(\d+)", text)]


@pytest.mark.parametrize(
    ("few", "size", "loops"),
    [(2, 6, [3]), (2, 5, [5]), (4, 6, [2]), (1, 3, [3]), (8, 6, []), (6, 6, [])],
)
def test_few_at_once_are_as_many_as_divide_the_axis(few: int, size: int, loops: list[int]) -> None:
    mapped = jax.vmap(few_at_once(lambda x, y: x + 2 * y, few))
    x, y = jnp.arange(float(size)), jnp.arange(float(size)) ** 2
    assert loops_of(mapped, x, y) == loops
    assert mapped(x, y).tolist() == [k + 2 * k**2 for k in range(size)]


def test_what_has_the_first_argument_in_common_is_mapped_at_once() -> None:
    """The draw of a key is made once for all that share it, and not in a loop."""
    function = few_at_once(lambda key, scale: scale * jax.random.normal(key), 1)
    keys, scales = jax.random.split(jax.random.key(0), 4), jnp.array([1.0, 2.0, 3.0])
    over_scales = jax.vmap(function, (None, 0))
    assert loops_of(over_scales, keys[0], scales) == []
    expected = [[scale * float(jax.random.normal(key)) for scale in scales] for key in keys]
    inner = jax.vmap(over_scales, (0, None))(keys, scales)
    outer = jax.vmap(jax.vmap(function, (0, None)), (None, 0))(keys, scales).T
    np.testing.assert_allclose(inner, expected, rtol=1e-6)
    np.testing.assert_allclose(outer, expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("num_tokens", "at_once"), [(10, 2), (20, 1)])
def test_large_batches_are_mapped_a_few_at_a_time(num_tokens: int, at_once: int) -> None:
    """The numbers of each trajectory alone, and a loop over pairs or over all."""

    def distance(key: jax.Array) -> jax.Array:
        task = random_task(key, num_tokens=num_tokens, context_length=5000, sparsity=2)
        settings = Settings(batch_size=64, steps=2, record_every=2, record=("value_distance",))
        return train(key, task, settings).records["value_distance"][-1]

    keys = jax.random.split(jax.random.key(2), 4)
    more = Counter(loops_of(jax.vmap(distance), keys)) - Counter(loops_of(distance, keys[0]))
    assert more[4 // at_once] == 1
    alone = jax.jit(distance)
    expected = [float(alone(key)) for key in keys]
    np.testing.assert_allclose(jax.jit(jax.vmap(distance))(keys), expected, rtol=1e-5)
