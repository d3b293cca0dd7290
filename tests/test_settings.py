"""Settings: what is checked of them, of whatever kind the numbers are, and what is let through."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import scbjax
from scbjax import algorithm
from scbjax.parameters import MODEL, TRAIN, TRANSFER
from scbjax.settings import (
    CONCERNS,
    NEVER,
    STATIC_FIELDS,
    TRACED_FIELDS,
    Descent,
    Settings,
    check_settings,
)
from scbjax.task import random_task

BASE: dict[str, Any] = {"batch_size": 8, "steps": 8, "record_every": 4}
SIZES = [
    field.name
    for field in dataclasses.fields(Settings)
    if field.name in STATIC_FIELDS and field.type is int
]
STEPS, LEVELS = ("switch_step", "stop_step"), ("switch_level", "stop_level")
SHARES = ("theta",)
RATES = [name for name in TRACED_FIELDS if name not in STEPS]
# A number as each of the kinds that it may come in.
KINDS: dict[str, Callable[[Any], Any]] = {
    "python": lambda value: value,
    "numpy": lambda value: (np.float32 if isinstance(value, float) else np.int64)(value),
    "numpy_array": np.array,
    "jax": jnp.array,
    "short": lambda value: jnp.array(value, "bfloat16" if isinstance(value, float) else "int16"),
}
each_kind = pytest.mark.parametrize("kind", list(KINDS))


def made(**changes: Any) -> Settings:  # noqa: ANN401 - of any kind
    return Settings(**{**BASE, **changes})


def structure(settings: Settings) -> object:
    return jax.tree.structure(settings)


def refused(message: str, **changes: Any) -> None:  # noqa: ANN401 - of any kind
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        made(**changes)


def test_the_lists_of_this_file_are_complete() -> None:
    assert len(SIZES) == 9
    assert len(RATES) + len(STEPS) == len(TRACED_FIELDS)


def test_each_parameter_is_of_one_concern() -> None:
    declared = {parameter.short for parameter in (*MODEL, *TRAIN, *TRANSFER)} - {"correlation"}
    held = [field.name for concern in CONCERNS for field in dataclasses.fields(concern)]
    assert sorted(held) == sorted(declared | {"record"})
    assert {field.name for field in dataclasses.fields(Settings)} == set(held)


@pytest.mark.parametrize("concern", CONCERNS)
def test_settings_are_a_value_of_each_concern(concern: type) -> None:
    settings = made(l1=0.25, theta=0.5, threshold=0.125)
    assert isinstance(settings, concern)
    own = {f.name: getattr(settings, f.name) for f in dataclasses.fields(concern)}
    leaves = jax.tree.leaves(concern(**own))
    traced = [name for name in own if name in TRACED_FIELDS]
    assert leaves == [own[name] for name in traced]
    for name in traced:
        assert name in (concern.__doc__ or "")


def test_a_function_of_one_concern_needs_that_alone() -> None:
    """Rates and threshold of a step, mapped over the l1 of a descent without any settings."""
    task = random_task(jax.random.key(0), num_tokens=3, context_length=20, sparsity=2)
    rates = algorithm.StageRates(0.5, moves=True, shrinks=True)
    params = scbjax.init_params(task)
    descent = Descent(l1_scaling="rate", l1=jnp.array([0.0, 0.25]), attention_rate_ratio=2.0)
    axes = jax.tree.map(lambda leaf: 0 if jnp.ndim(leaf) else None, descent)

    def threshold(descent: Descent) -> jax.Array:
        eta = algorithm.step_rates(rates, task, descent, jnp.float32).attention
        return algorithm.step_threshold(rates, eta, params, task, descent)

    found = jax.vmap(threshold, in_axes=(axes,))(descent)
    eta = 0.5 * 2.0 / float(scbjax.transition_signal(task))
    np.testing.assert_allclose(found, [0.0, 0.25 * eta], rtol=1e-6)


@each_kind
@pytest.mark.parametrize("name", RATES)
def test_numbers_out_of_range_are_refused(name: str, kind: str) -> None:
    must = "between 0 and 1" if name in SHARES else "at least 0"
    refused(f"{name} is -1.0; it must be {must}", **{name: KINDS[kind](-1.0)})
    refused(f"{name} is nan; it must be {must}", **{name: KINDS[kind](float("nan"))})
    infinite = {name: KINDS[kind](float("inf"))}
    if name in LEVELS:
        assert np.isinf(getattr(made(**infinite), name))
    else:
        refused(f"{name} is inf; it must be {must if name in SHARES else 'finite'}", **infinite)
    assert getattr(made(**{name: KINDS[kind](0.5)}), name) == 0.5


@each_kind
@pytest.mark.parametrize("name", STEPS)
def test_steps_out_of_range_are_refused(name: str, kind: str) -> None:
    refused(f"{name} is -1; it must be at least 0", **{name: KINDS[kind](-1)})
    refused(f"{name} is 8.5; it must be an integer", **{name: KINDS[kind](8.5)})
    assert getattr(made(**{name: KINDS[kind](8)}), name) == 8


@each_kind
@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_positive_integers(name: str, kind: str) -> None:
    refused(f"{name} is 0; it must be at least 1", **{name: KINDS[kind](0)})
    refused(f"{name} is 8.5; it must be an integer", **{name: KINDS[kind](8.5)})
    refused(f"{name} is 8.0; it must be an integer", **{name: KINDS[kind](8.0)})
    settings = made(**{name: KINDS[kind](8)})
    assert type(getattr(settings, name)) is int
    assert getattr(settings, name) == 8
    assert structure(settings) == structure(made(**{name: 8}))


@pytest.mark.parametrize("value", ["8", True, np.True_, None, [8], (8,), 8j, "é", int])
@pytest.mark.parametrize("name", [*SIZES, *TRACED_FIELDS])
def test_what_is_no_number_is_refused(name: str, value: object) -> None:
    if value is None and name in TRACED_FIELDS:  # in_axes of a map
        assert getattr(made(l1=None), "l1") is None  # noqa: B009
        return
    kind = "a number" if name in RATES else "an integer"
    with pytest.raises(ValueError, match=rf"^{name} is .*; it must be {kind}"):
        made(**{name: value})


def test_too_large_numbers_are_refused() -> None:
    refused("batch_size is 2147483648; it must be at most 2147483647", batch_size=2**31)
    refused("switch_step is 2147483648; it must be at most 2147483647", switch_step=2**31)
    refused("l1 is 1000000", l1=10**400)
    refused("l1 is -100000", l1=-(10**400))
    assert made(stop_step=NEVER).stop_step == NEVER


def test_a_batch_of_numbers_is_checked_by_every_entry() -> None:
    refused("l1[2] is -1.0; it must be at least 0", l1=jnp.array([0.0, 1.0, -1.0]))
    refused("stop_step[1, 0] is -3; it must be at least 0", stop_step=np.array([[1, 2], [-3, 4]]))
    rates = jnp.array([0.1, 0.2])
    settings = made(learning_rate_1=rates)
    assert settings.learning_rate_1 is rates
    with pytest.raises(ValueError, match=r"^learning_rate_1 is an array float32\[2\]; .*a single"):
        check_settings(settings)


def test_a_schedule_is_no_rate() -> None:
    schedule = optax.constant_schedule(0.1)
    message = "learning_rate_2 is a function; it must be a number, not a schedule"
    refused(message, learning_rate_2=schedule)


@pytest.mark.parametrize("name", ["flip", "scale_rates"])
def test_switches_are_true_or_false(name: str) -> None:
    for value in (1, "yes", None, jnp.array(True)):
        with pytest.raises(ValueError, match=rf"^{name} is .*; it must be True or False$"):
            made(**{name: value})
    assert getattr(made(**{name: np.False_}), name) is False


def test_names_get_the_nearest() -> None:
    refused(
        "optimizer is 'proximl'; it must be one of proximal, sgd, raw_sgd, adam; "
        "did you mean 'proximal'?",
        optimizer="proximl",
    )
    refused("geometry is 3; it must be one of mu, paper", geometry=3)
    refused("attention_map is ['linear']; it must be one of linear", attention_map=["linear"])
    refused("record has 'stag'; did you mean 'stage'?", record=("stag",))
    refused("record has 3; it must name observables: alpha_value", record=(3,))


def test_a_record_is_a_tuple_of_names() -> None:
    refused("record is 'stage'; it must be a tuple of names, such as ('stage',)", record="stage")
    refused("record is None; it must be a tuple of names", record=None)
    settings = made(record=["stage", "samples"])
    assert settings.record == ("stage", "samples")
    hash(structure(settings))  # what compiled programs are known by


def test_traced_numbers_pass_and_traced_sizes_do_not() -> None:
    def make(l1: jax.Array) -> jax.Array:
        return jnp.asarray(made(l1=l1, stop_step=jnp.int32(3)).l1)

    assert jax.jit(make)(-1.0) == -1.0
    assert jax.vmap(make)(jnp.array([-1.0, 2.0])).tolist() == [-1.0, 2.0]
    with pytest.raises(ValueError, match=r"^steps is traced; it must be a plain integer"):
        jax.jit(lambda steps: Settings(batch_size=8, steps=steps, record_every=4).l1)(8)


def test_trees_of_other_things_are_not_checked() -> None:
    """JAX puts axes, shapes and objects of its own in the places of numbers."""
    settings = made()
    for leaf in ("x", -1, None, object(), (1, 2)):
        tree = jax.tree.map(lambda _: leaf, settings)  # noqa: B023
        assert tree.l1 == leaf
        assert tree.batch_size == settings.batch_size
    names = [str(path[0]) for path, _ in jax.tree_util.tree_leaves_with_path(settings)]
    assert names == [f".{name}" for name in TRACED_FIELDS]


def test_functions_check_what_they_are_given_once_more() -> None:
    settings = made()
    with pytest.raises(ValueError, match=r"^learning_rate_1 is -1.0; it must be at least 0$"):
        check_settings(jax.tree.map(lambda _: -1.0, dataclasses.replace(settings, stop_step=0)))
    with pytest.raises(ValueError, match=r"^l1 is None; it must be a number$"):
        check_settings(made(l1=None))
    with pytest.raises(TypeError, match=r"^settings is a dict; it must be a Settings$"):
        check_settings(BASE)  # type: ignore[arg-type]
