"""A trajectory split over devices: the same numbers, and only small sums sent between devices."""

import json
import os
import socket
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

# All of them look at what one process with many devices takes a minute to compute.
pytestmark = pytest.mark.slow

DEVICES, BATCH = 8, 7
NUM_TOKENS = (3, 40)
# In float64, where the order of sums shows in the last digits and a different draw does not.
COMMON = """
import json, re, sys
from functools import partial
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
import scbjax
from scbjax import sharding
from scbjax.sampling import sample_batch
from scbjax.paper import (advance, init, step)

def draw(num_tokens, context_length):
    return partial(scbjax.random_task, num_tokens=num_tokens, context_length=context_length,
                   sparsity=3, dtype=jnp.float64)

def settings(**changes):
    # Every stage has one record: boosting, proximal steps, V alone.
    defaults = dict(batch_size=BATCH, steps=6, record_every=2, switch_on="step", switch_step=2,
                    stop_step=4, refit_samples=32, refit_support=4, l1=1e-3, threshold=1e-4)
    return scbjax.Settings(**(defaults | changes))

def trajectory(key, task, settings):
    # Not train, which compiles what it records twice.
    return advance(key, task, settings, init(key, task, settings), 0, 3)

def listed(tree):
    return [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(tree)]

key, data = jax.random.key(0), jax.random.key(1)
report = {}
"""
ONE_HOST = """
SENDS = "all-gather|all-reduce|all-to-all|collective-permute|collective-broadcast|reduce-scatter"

def sent(compiled):
    found = re.findall(rf"= (.*?) ({SENDS})(?:-start)?\\(", compiled.as_text())
    shapes = [s for result, _ in found for s in re.findall(r"\\w+\\[([\\d,]*)\\]", result)]
    sizes = [int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes]
    return sorted({name for _, name in found}), sorted(sizes)

def split(function, *args):
    with sharding._use(sharding._mesh_of(jax.devices())):
        return jax.jit(function).lower(*args).compile()

def both(function, *args):
    return listed(jax.jit(function)(*args)), listed(sharding.over_positions(function)(*args))

drawn = sharding.over_positions(draw(3, 4096))(key)
task = jax.jit(draw(3, 4096))(key)
report["task"] = listed(task), listed(drawn)
compiled = split(trajectory, data, drawn, settings())
whole, found = jax.jit(trajectory)(data, task, settings()), compiled(data, drawn, settings())
report["trajectory"] = listed(whole), listed(found)
report["stages"] = found[1]["stage"].tolist()
held = drawn.pattern, found[0].params.attention
report["parts"] = [array.sharding.shard_shape(array.shape) for array in held]
report["trajectory sends"] = sent(compiled)

def one_step(key, task, settings):
    batch = sample_batch(key, task, settings.batch_size)
    return step(init(key, task, settings), batch, task, settings)[0].params

for num_tokens in NUM_TOKENS:
    shapes = [jax.eval_shape(draw(num_tokens, length), key) for length in (320, 640)]
    compiled = [split(one_step, data, shape, settings()) for shape in shapes]
    report[f"step sends {num_tokens}"] = [sent(c) for c in compiled]
    inputs = data, jax.jit(draw(num_tokens, 320))(key), settings()
    report[f"step {num_tokens}"] = listed(jax.jit(one_step)(*inputs)), listed(compiled[0](*inputs))
sort = lambda a: jnp.sort(sharding.split(a), axis=0)
report["sort sends"] = sent(split(sort, jnp.ones((320, 3))))

ties = jax.random.randint(key, (80, 3), 0, 4)
report["largest"] = both(partial(sharding.largest_rows, count=12), ties)
report["nth"] = both(partial(sharding.every_nth_row, stride=7), ties)
try:
    sharding.over_positions(draw(3, 100))(key)
except ValueError as error:
    report["error"] = str(error)
print(json.dumps(report))
"""


def processes(code: str, devices: int, *arguments: list[str]) -> list[str]:
    """What processes that run the code side by side print at last."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, *own],
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for own in arguments
    ]
    ended = [process.communicate() for process in running]
    for process, (_, errors) in zip(running, ended, strict=True):
        assert process.returncode == 0, errors
    return [output.splitlines()[-1] for output, _ in ended]


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    code = f"NUM_TOKENS, BATCH = {NUM_TOKENS}, {BATCH}\n{COMMON}{ONE_HOST}"
    (line,) = processes(code, DEVICES, [])
    found: dict[str, Any] = json.loads(line)
    return found


def assert_same(pair: tuple[list[Any], list[Any]]) -> None:
    for whole, split in zip(*pair, strict=True):
        np.testing.assert_allclose(split, whole, rtol=1e-9, atol=1e-12)


def test_the_same_task_is_drawn(report: dict[str, Any]) -> None:
    assert_same(report["task"])


def test_a_trajectory_through_all_stages_is_the_same(report: dict[str, Any]) -> None:
    assert report["stages"] == [2, 3, 3]
    assert_same(report["trajectory"])


@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
def test_a_step_is_the_same(report: dict[str, Any], num_tokens: int) -> None:
    assert_same(report[f"step {num_tokens}"])


def test_each_device_holds_its_part(report: dict[str, Any]) -> None:
    assert report["parts"] == [[4096 // DEVICES, 3]] * 2


def test_nothing_as_long_as_the_context_is_sent(report: dict[str, Any]) -> None:
    names, sizes = report["trajectory sends"]
    assert names == ["all-reduce"]
    # The largest are the entries that the background of each column is told from.
    assert max(sizes) == 1024 * 3


@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
def test_a_step_sends_sums_of_fixed_size(report: dict[str, Any], num_tokens: int) -> None:
    (names, sizes), longer = report[f"step sends {num_tokens}"]
    assert names == ["all-reduce"]
    assert max(sizes) <= BATCH * num_tokens + num_tokens**2
    assert longer == [names, sizes]


def test_sending_more_would_be_seen(report: dict[str, Any]) -> None:
    names, sizes = report["sort sends"]
    assert names != ["all-reduce"]
    assert sizes


@pytest.mark.parametrize("name", ["largest", "nth"])
def test_rows_are_found_across_devices(report: dict[str, Any], name: str) -> None:
    whole, split = report[name]
    assert whole == split


def test_lengths_that_cannot_be_split_are_refused(report: dict[str, Any]) -> None:
    assert report["error"] == (
        "context_length is 100; it must be a multiple of the number of devices, 8 "
        "(nearest: 96 and 104)"
    )


# Before anything else asks for devices.
JOIN = """
import sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[1]))
"""
TWO_HOSTS = """
chosen = settings(record=("attention_distance", "value_distance"))
task = sharding.over_positions(draw(3, 320))(key)
split = sharding.over_positions(trajectory)(data, task, chosen)
whole = jax.jit(trajectory)(data, jax.jit(draw(3, 320))(key), chosen)
report["held"] = len(split[0].params.attention.addressable_shards)
report["trajectory"] = [listed((state.params.value, kept)) for state, kept in (whole, split)]
print(json.dumps(report))
"""


def test_two_processes_share_a_trajectory() -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    lines = processes(f"BATCH = {BATCH}\n{JOIN}{COMMON}{TWO_HOSTS}", 2, ["0", port], ["1", port])
    for line in lines:
        found = json.loads(line)
        assert found["held"] == 2
        assert_same(found["trajectory"])
