"""Keys of every kind: a trajectory depends on its own key, whatever it is mapped together with."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scbjax
from scbjax import noise, paper, sampling, starts, tagged, transfer
from scbjax.keys import THREEFRY, as_threefry
from scbjax.sweep.engine.mapped import keys_of

# Programs that run for milliseconds: optimising them costs more than it saves.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
IMPLS = ("threefry2x32", "rbg", "unsafe_rbg")
TASK = scbjax.random_task(
    jax.random.key(0, impl=THREEFRY), num_tokens=3, context_length=20, sparsity=2
)
SETTINGS = scbjax.Settings(batch_size=4, steps=4, record_every=2, record=("stage",))
TRANSFER = scbjax.Settings(
    batch_size=4, steps=2, record_every=2, record=("stage",), start="transfer", first_samples=8
)
PARAMS = scbjax.init_params(TASK)
STATE = paper.init(jax.random.key(0), TASK, SETTINGS)


def words(key: jax.Array) -> list[int]:
    found: list[int] = jax.random.key_data(key).tolist()
    return found


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("impl", IMPLS)
def test_every_kind_becomes_threefry(impl: str, old: bool) -> None:
    make = jax.random.PRNGKey if old else jax.random.key
    key = make(5, impl=impl)
    got = as_threefry(key)
    assert str(jax.random.key_impl(got)) == THREEFRY
    assert got.shape == ()
    if impl == THREEFRY:
        assert words(got) == [0, 5]
        return
    # By hand: the first two words, then the others folded in.
    data = jnp.asarray(key) if old else jax.random.key_data(key)
    expected = jax.random.wrap_key_data(data[:2], impl=THREEFRY)
    for word in data[2:]:
        expected = jax.random.fold_in(expected, word)
    assert words(got) == words(expected)


def test_every_word_counts() -> None:
    base = np.array([1, 2, 3, 4], np.uint32)
    seen = {tuple(words(as_threefry(jnp.asarray(base))))}
    for place in range(4):
        changed = base.copy()
        changed[place] += 1
        seen.add(tuple(words(as_threefry(jnp.asarray(changed)))))
    assert len(seen) == 5


# Public functions of a key, and of nothing else that varies.
OF_KEYS: dict[str, Callable[[jax.Array], Any]] = {
    "random_task": lambda key: scbjax.random_task(key, num_tokens=3, context_length=20, sparsity=2),
    "related_task": lambda key: scbjax.related_task(key, TASK, correlation=0.5, sparsity=1),
    "sample_batch": lambda key: scbjax.sample_batch(key, TASK, 3),
    "make_seed": sampling.make_seed,
    "train": lambda key: scbjax.train(key, TASK, SETTINGS).params,
    "simulate": lambda key: scbjax.simulate(key, TASK, SETTINGS, context_length=99).params,
    "start_from": lambda key: starts.start_from(key, TASK, TASK, TRANSFER, STATE).params,
    "advance": lambda key: paper.advance(key, TASK, SETTINGS, STATE, 0, 1)[0].params,
    "observe_state": lambda key: paper.observe_state(
        key,
        TASK,
        scbjax.Settings(
            batch_size=4,
            steps=4,
            record_every=2,
            record=("rounded_value_distance", "alpha_value_gradient_mu"),
            refit_samples=16,
            noise_samples=8,
        ),
        STATE,
        0,
    ),
    "first_step": lambda key: transfer.first_step(
        key, PARAMS, TASK, 1.0, num_samples=8, batch_size=4
    ),
    "refit_value": lambda key: scbjax.refit_value(
        key, TASK.pattern, TASK, num_samples=16, support=2
    ),
    "signal_noise": lambda key: noise.signal_noise(key, PARAMS, TASK, 8),
    "draw_others": lambda key: tagged.draw_others(key, TASK.stationary, 4),
}
# The seed 3 of two batches of keys: what it is mapped with must not matter.
TOGETHER, PLACE = (0, 3, 7), 1


QUICKLY = ("train", "random_task", "sample_batch")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICKLY else pytest.mark.slow) for name in OF_KEYS],
)
def test_mapped_keys_give_what_each_gives_alone(name: str) -> None:
    function, mapped = quick_jit(OF_KEYS[name]), quick_jit(jax.vmap(OF_KEYS[name]))
    keys = [jax.random.key(seed, impl="rbg") for seed in TOGETHER]
    own = function(keys[PLACE])
    for order in ((0, 1, 2), (1, 2, 0)):
        got = mapped(jnp.stack([keys[index] for index in order]))
        for all_of_them, alone in zip(jax.tree.leaves(got), jax.tree.leaves(own), strict=True):
            found = all_of_them[order.index(PLACE)]
            if jnp.issubdtype(alone.dtype, jnp.integer):
                np.testing.assert_array_equal(found, alone)
            else:  # the order of sums may differ under vmap
                np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-5)
    other = jax.tree.leaves(function(keys[0]))
    assert any(
        not np.array_equal(a, b) for a, b in zip(other, jax.tree.leaves(own), strict=True)
    ), "the key is not used"


@pytest.mark.parametrize("name", list(OF_KEYS))
def test_what_is_no_key_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=r"^key is 0; it must be a PRNG key, such as jax.random.k"):
        OF_KEYS[name](0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^key is an array float32\[2\]; it must be a PRNG key"):
        OF_KEYS[name](jnp.ones(2))
    with pytest.raises(ValueError, match=r"^key is an array of keys of shape \(3,\); it must be a"):
        OF_KEYS[name](jax.random.split(jax.random.key(0), 3))


NUMBERS = """
import json, sys
import numpy as np
from pathlib import Path
from scbjax.sweep.engine.execute import run_study
from scbjax.sweep.plan.plans import make_plan
from scbjax.sweep.engine.progress import SilentProgress
from scbjax.sweep.study.files import parse_study
import jax, xarray

TEXT = '''
[task]
num_tokens = 3
context_length = 20
sparsity = 2
[train]
batch_size = 4
steps = 4
record_every = 2
refit_samples = 16
[record]
variables = ["alpha_value", "rounded_value_distance", "batch_loss"]
'''
found = {"impl": str(jax.random.key_impl(jax.random.key(0)))}
for seeds in ([0, 1, 2, 3, 4, 5], [3, 1]):
    study = parse_study(TEXT, "x", [f"axes.seed={seeds}"])
    report = run_study(make_plan(study), Path(sys.argv[1]) / str(len(seeds)),
                       progress=SilentProgress())
    data = xarray.open_dataset(report.dataset, engine="h5netcdf").sel(seed=[1, 3])
    names = ("alpha_value", "rounded_value_distance", "batch_loss", "transition_signal")
    found[str(len(seeds))] = {
        name: np.nan_to_num(data[name].transpose("seed", ...).values).tolist() for name in names
    }
print(json.dumps(found))
"""


def numbers_under(impl: str, folder: str, **settings: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", NUMBERS, folder],
        env={**os.environ, "JAX_DEFAULT_PRNG_IMPL": impl, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("impl") == impl
    return found


def test_keys_of_a_study_are_made_of_seeds_under_any_generator() -> None:
    values = {"root_seed": np.int32(1), "seed": np.int32(3), "task_seed": np.int32(4)}
    for part in ("task", "data", "start"):
        expected = words(getattr(keys_of(values), part))
        for impl in IMPLS:
            with jax.default_prng_impl(impl):
                assert words(getattr(keys_of(values), part)) == expected


@pytest.mark.slow
def test_seeds_of_a_study_mean_the_same_under_any_generator(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folders = [str(tmp_path_factory.mktemp(name)) for name in ("threefry", "rbg", "old")]
    threefry = numbers_under("threefry2x32", folders[0])
    rbg = numbers_under("rbg", folders[1])
    assert rbg == threefry
    # What Threefry itself draws is another setting of JAX's.
    assert numbers_under("rbg", folders[2], JAX_THREEFRY_PARTITIONABLE="0") == threefry
    assert rbg["6"] == rbg["2"]
    first, second = rbg["6"]["transition_signal"]
    assert first != second
