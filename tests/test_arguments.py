"""Arguments of public functions: a sentence that names them, in the place of a traceback."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import scbjax
from scbjax import losses, noise, paper, stages, starts, tagged, theory, transfer
from scbjax.arguments import SIZES, Numbers, as_integer, check_number
from scbjax.sampling import Batch, check_batch

KEY = jax.random.key(0)
N, T = 3, 20
TASK = scbjax.random_task(KEY, num_tokens=N, context_length=T, sparsity=2)
BATCH = scbjax.sample_batch(KEY, TASK, 4)
PARAMS = scbjax.init_params(TASK)
SETTINGS = scbjax.Settings(batch_size=4, steps=4, record_every=2, record=("stage",))
STATE = paper.init(KEY, TASK, SETTINGS)
SIMULATION = scbjax.Simulation(99)
OTHERS = tagged.draw_others(KEY, TASK.stationary, 4)
TASKS = jax.tree.map(lambda array: jnp.stack([array, array]), TASK)


# --------------------------------------------------------------------------------------- batches

OF_BATCHES: dict[str, Callable[[Batch], Any]] = {
    "loss": lambda batch: scbjax.loss(PARAMS, batch),
    "gradient": lambda batch: jax.grad(scbjax.loss)(PARAMS, batch),
    "sample_gradients": lambda batch: losses.sample_gradients(PARAMS, batch),
    "signal_gradients": lambda batch: noise.signal_gradients(PARAMS, batch, TASK),
    "step": lambda batch: paper.step(STATE, batch, TASK, SETTINGS),
    "simulated_step": lambda batch: SIMULATION.step(STATE, batch, OTHERS, TASK, SETTINGS),
    "simulated_gradient": lambda batch: SIMULATION.gradient(PARAMS, batch, OTHERS, TASK),
    "check_batch": lambda batch: check_batch(batch, TASK),
}
WRONG: dict[str, tuple[Batch, str]] = {
    "token": (
        BATCH._replace(tokens=BATCH.tokens.at[1, 2].set(N)),
        "batch.tokens[1, 2] is 3; it must be between 0 and N - 1 = 2",
    ),
    "negative": (
        BATCH._replace(tokens=BATCH.tokens.astype(jnp.int32).at[0, 0].set(-1)),
        "batch.tokens[0, 0] is -1; it must be between 0 and N - 1 = 2",
    ),
    "query": (
        BATCH._replace(query=BATCH.query.at[3].set(7)),
        "batch.query[3] is 7; it must be between 0 and N - 1 = 2",
    ),
    "label": (
        BATCH._replace(label=BATCH.label.at[2].set(-2)),
        "batch.label[2] is -2; it must be between 0 and N - 1 = 2",
    ),
}
MISSHAPEN: dict[str, tuple[Batch, str]] = {
    "float": (
        BATCH._replace(tokens=BATCH.tokens.astype(jnp.float32)),
        "batch.tokens is an array float32[4, 20]; it must be an integer",
    ),
    "length": (
        BATCH._replace(tokens=BATCH.tokens[:, 1:]),
        "batch.tokens has shape [4, 19]; it must be [B, T] with T = 20",
    ),
    "dimensions": (
        BATCH._replace(tokens=BATCH.tokens[0]),
        "batch.tokens has shape [20]; it must be [B, T] with T = 20",
    ),
    "samples": (BATCH._replace(query=BATCH.query[:3]), "batch.query has shape [3]; it must be [4]"),
    "label": (BATCH._replace(label=BATCH.label[:, None]), "batch.label has shape [4, 1]; it must"),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow if n.startswith("simulated") else ())
        for n in OF_BATCHES
    ],
)
def test_a_drawn_batch_is_right(name: str) -> None:
    OF_BATCHES[name](BATCH)
    OF_BATCHES[name](Batch(*(np.asarray(array) for array in BATCH)))  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", list(WRONG))
@pytest.mark.parametrize("name", list(OF_BATCHES))
def test_wrong_tokens_are_refused_on_the_host(name: str, wrong: str) -> None:
    batch, message = WRONG[wrong]
    # JAX may add lines of its own.
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}(\n|$)"):
        OF_BATCHES[name](batch)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("wrong", list(MISSHAPEN))
@pytest.mark.parametrize("name", list(OF_BATCHES))
def test_wrong_shapes_and_dtypes_are_refused_anywhere(name: str, wrong: str, traced: bool) -> None:
    batch, message = MISSHAPEN[wrong]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        (jax.jit(OF_BATCHES[name]) if traced else OF_BATCHES[name])(batch)


def test_a_batch_is_something_else() -> None:
    with pytest.raises(TypeError, match=r"^batch is a Params; it must be a Batch, such as"):
        scbjax.loss(PARAMS, PARAMS)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^params is a Batch; it must be a Params, such as"):
        scbjax.loss(BATCH, PARAMS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^params has value \[2, 3, 3\] and attention \[2, 20, 3"):
        scbjax.loss(jax.tree.map(lambda a: jnp.stack([a, a]), PARAMS), BATCH)


@pytest.mark.parametrize(
    "name",
    [
        "loss",
        "signal_gradients",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("gradient", "step", "simulated_step")),
    ],
)
def test_a_compiled_function_checks_where_a_user_switches_it_on(name: str) -> None:
    function = jax.jit(OF_BATCHES[name])
    checked = checkify.checkify(function, errors=checkify.user_checks)
    error, found = checked(BATCH)
    assert error.get() is None
    for array, expected in zip(
        jax.tree.leaves(found), jax.tree.leaves(function(BATCH)), strict=True
    ):
        np.testing.assert_allclose(array, expected, rtol=1e-6)
    for wrong, low, high in (("token", 0, N), ("negative", -1, N - 1), ("query", 0, 7)):
        batch = WRONG[wrong][0]
        jax.block_until_ready(function(batch))  # without a word
        error, _ = checked(batch)
        array = "query" if wrong == "query" else "tokens"
        own = getattr(batch, array)
        message = f"batch.{array} holds {max(low, int(own.min()))} to {min(high, int(own.max()))}"
        assert (error.get() or "").startswith(f"{message}; it must be between 0 and N - 1 = 2")


@pytest.mark.slow
def test_the_check_works_under_every_transformation() -> None:
    bad = WRONG["token"][0]
    both = jax.tree.map(
        lambda a, b: jnp.stack([a.astype(jnp.int32), b.astype(jnp.int32)]), BATCH, bad
    )

    def scanned(batches: Batch) -> jax.Array:
        def add(total: jax.Array, batch: Batch) -> tuple[jax.Array, None]:
            return total + jax.checkpoint(scbjax.loss)(PARAMS, batch), None

        return jax.lax.scan(add, jnp.zeros(()), batches)[0]

    def mapped(batches: Batch) -> jax.Array:
        return jax.vmap(scbjax.loss, in_axes=(None, 0))(PARAMS, batches)

    good = jax.tree.map(lambda array: jnp.stack([array, array]), BATCH)
    for function in (scanned, mapped, jax.jit(scanned), jax.jit(mapped)):
        function(both)  # without a word
        assert (checkify.checkify(function)(both)[0].get() or "").startswith("batch.tokens holds")
        assert checkify.checkify(function)(good)[0].get() is None


def test_contexts_of_predictions_are_checked() -> None:
    with pytest.raises(ValueError, match=r"^tokens\[1, 2\] is 3; it must be between 0 and N - 1"):
        scbjax.predict(PARAMS, WRONG["token"][0].tokens, BATCH.query)
    with pytest.raises(ValueError, match=r"^query\[3\] is 7; it must be between 0 and N - 1 = 2$"):
        scbjax.predict(PARAMS, BATCH.tokens, WRONG["query"][0].query)
    with pytest.raises(ValueError, match=r"^tokens has shape \[4, 19\]; it must be \[B, T\] with"):
        scbjax.predict(PARAMS, BATCH.tokens[:, 1:], BATCH.query)


# ------------------------------------------------------------------------- tasks, keys, settings

OF_TASKS: dict[str, Callable[[Any], Any]] = {
    "train": lambda task: scbjax.train(KEY, task, SETTINGS),
    "init": lambda task: paper.init(KEY, task, SETTINGS),
    "advance": lambda task: paper.advance(KEY, task, SETTINGS, STATE, 0, 1),
    "step": lambda task: paper.step(STATE, BATCH, task, SETTINGS),
    "observe_state": lambda task: paper.observe_state(KEY, task, SETTINGS, STATE, 0),
    "start_from": lambda task: starts.start_from(KEY, TASK, task, SETTINGS, STATE),
    "simulate": lambda task: scbjax.simulate(KEY, task, SETTINGS, context_length=99),
    "related_task": lambda task: scbjax.related_task(KEY, task, correlation=0.5),
    "check_task": scbjax.check_task,
    "sample_batch": lambda task: scbjax.sample_batch(KEY, task, 4),
    "init_params": scbjax.init_params,
    "population_loss": lambda task: scbjax.population_loss(PARAMS, task),
    "population_grad": lambda task: scbjax.population_grad(PARAMS, task),
    "excess_loss": lambda task: scbjax.excess_loss(PARAMS, task),
    "population_refit": lambda task: stages.population_refit(TASK.pattern, task),
    "refit_value": lambda task: scbjax.refit_value(
        KEY, TASK.pattern, task, num_samples=4, support=2
    ),
    "signal_noise": lambda task: noise.signal_noise(KEY, PARAMS, task, 4),
    "signal_gradients": lambda task: noise.signal_gradients(PARAMS, BATCH, task),
    "initial_noise": noise.initial_noise,
    "first_step": lambda task: transfer.first_step(
        KEY, PARAMS, task, 1.0, num_samples=4, batch_size=4
    ),
    "source_overlap": lambda task: scbjax.source_overlap(TASK.transition, task),
    "project_on_path": lambda task: theory.project_on_path(PARAMS, task),
    "path_point": lambda task: theory.path_point(jnp.ones(()), jnp.ones(()), task),
}


@pytest.mark.parametrize("name", list(OF_TASKS))
def test_what_is_no_task_is_refused(name: str) -> None:
    end = "it must be a Task, such as random_task draws$"
    for wrong, shown in ((3, "3"), (PARAMS, "a Params"), (tuple(TASK), "a tuple")):
        with pytest.raises(TypeError, match=f"^task is {shown}; {end}"):
            OF_TASKS[name](wrong)
    with pytest.raises(ValueError, match=r"^task has transition \[2, 3, 3\], .*: jax.vmap maps"):
        OF_TASKS[name](TASKS)
    with pytest.raises(
        ValueError, match=r"^task has .*, pattern \[20, 2\]; it must be a single ta"
    ):
        OF_TASKS[name](TASK._replace(pattern=TASK.pattern[:, :2]))


@pytest.mark.parametrize("function", [scbjax.train, paper.init])
def test_swapped_arguments_are_told(function: Callable[..., Any]) -> None:
    message = "task is a Settings and settings is a Task; the order of arguments is key, task, sett"
    with pytest.raises(TypeError, match=f"^{message}"):
        function(KEY, SETTINGS, TASK)
    with pytest.raises(TypeError, match=r"^settings is a dict; it must be a Settings$"):
        function(KEY, TASK, {})
    with pytest.raises(TypeError, match=r"^key is a Task; it must be a PRNG key"):
        function(TASK, TASK, SETTINGS)


def test_several_settings_are_for_vmap() -> None:
    many = scbjax.Settings(batch_size=4, steps=4, record_every=2, l1=jnp.array([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"^l1 is an array float32\[2\]; it must be a single numb"):
        scbjax.train(KEY, TASK, many)


def test_a_source_is_as_large_as_its_task() -> None:
    small = scbjax.random_task(KEY, num_tokens=N, context_length=T - 1, sparsity=2)
    settings = scbjax.Settings(
        batch_size=4, steps=4, record_every=2, start="transfer", first_samples=8
    )
    with pytest.raises(ValueError, match=r"^source has a pattern \[19, 3\]; it must be as large"):
        scbjax.train(KEY, TASK, settings, small)
    with pytest.raises(TypeError, match=r"^source is a Settings; it must be a Task"):
        scbjax.train(KEY, TASK, settings, settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_tokens": 2.5}, "num_tokens is 2.5; it must be an integer"),
        ({"num_tokens": "3"}, "num_tokens is '3'; it must be an integer"),
        ({"context_length": True}, "context_length is True; it must be an integer"),
        ({"sparsity": jnp.array(0)}, "sparsity is 0; it must be between 1 and context_length = 5"),
        ({"sparsity": np.int64(6)}, "sparsity is 6; it must be between 1 and context_length = 5"),
        ({"sparsity": 1.5}, "sparsity is 1.5; it must be an integer"),
        ({"skew": jnp.array(0.5)}, "skew is 0.5; it must be at least 1"),
        ({"skew": np.float32("nan")}, "skew is nan; it must be at least 1"),
        ({"skew": float("inf")}, "skew is inf; it must be finite"),
        ({"transition_signal": np.float32(-1)}, "transition_signal is -1.0; it must be above 0"),
        ({"transition_signal": 0}, "transition_signal is 0; it must be above 0"),
        ({"transition_signal": np.inf}, "transition_signal is inf; it must be finite"),
    ],
)
def test_tasks_have_numbers_of_any_kind_checked(changes: dict[str, Any], message: str) -> None:
    sizes = {"num_tokens": 3, "context_length": 5, "sparsity": 2, **changes}
    with pytest.raises(ValueError, match=f"^{message}$"):
        scbjax.random_task(KEY, **sizes)


@pytest.mark.parametrize("value", [np.float32(1.5), jnp.array(-0.5), float("nan")])
def test_correlations_are_shares(value: Any) -> None:  # noqa: ANN401 - of any kind
    with pytest.raises(ValueError, match=r"^correlation is .*; it must be between 0 and 1$"):
        scbjax.related_task(KEY, TASK, correlation=value)


@pytest.mark.parametrize("value", [0, 2.5, "99", True, None])
def test_simulations_have_a_length(value: Any) -> None:  # noqa: ANN401 - of any kind
    with pytest.raises(ValueError, match=rf"^context_length is {value!r}; it must be "):
        scbjax.Simulation(value)
    with pytest.raises(ValueError, match=rf"^context_length is {value!r}; it must be "):
        scbjax.simulate(KEY, TASK, SETTINGS, context_length=value)
    assert hash(scbjax.Simulation(np.int64(7))) == hash(scbjax.Simulation(7))  # type: ignore[arg-type]


def test_numbers_that_can_be_seen_are_looked_at_inside_jit_too() -> None:
    fixed = jnp.array(-1.0)

    def function(x: jax.Array) -> jax.Array:
        check_number("x", x, Numbers(0))
        check_number("fixed", fixed, Numbers(0))
        return x

    with pytest.raises(ValueError, match=r"^fixed is -1.0; it must be at least 0"):
        jax.jit(function)(-1.0)
    with pytest.raises(
        ValueError, match=r"^n is an array int32\[2\]; it must be a single integer$"
    ):
        as_integer("n", np.ones(2, np.int32), SIZES)


# ------------------------------------------------------------------------------------ how they look


def test_reprs_are_short_and_say_what_there_is() -> None:
    mixing = np.array([[0.75, 0.25], [0.25, 0.75]])
    task = scbjax.task_from_arrays(mixing, np.eye(2))
    # By hand: K_P = (0.75^2 + 0.25^2) - 1/2, K_Q = 1 - 1/2.
    assert repr(task) == "Task(num_tokens=2, context_length=2, K_P=0.125, K_Q=0.5, float32)"
    other = task._replace(transition=jnp.eye(2))
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), task, other)
    assert str(both) == (
        "Task(num_tokens=2, context_length=2, batch=[2], K_P=0.125 to 0.5, K_Q=0.5, float32)"
    )
    assert repr(jax.tree.map(lambda _: 0, task)) == "Task(transition=0, stationary=0, pattern=0)"
    params = "Params(value=float32[3, 3], attention=float32[20, 3])"
    assert repr(PARAMS) == params
    assert repr(BATCH) == "Batch(tokens=uint8[4, 20], query=int32[4], label=int32[4])"
    trajectory = jax.jit(scbjax.train)(KEY, TASK, SETTINGS)
    assert repr(trajectory) == (
        f"Trajectory(params={params}, records={{stage}}, steps=0 to 4 in 3 records, diverged_at=-1)"
    )
    assert repr(jax.eval_shape(lambda: trajectory)).endswith(
        "records={stage}, steps=int32[3], diverged_at=int32[])"
    )
    for shown in (STATE, paper.step(STATE, BATCH, TASK, SETTINGS)[1]):
        assert len(repr(shown).splitlines()) == 1
        assert "Array(" not in repr(shown)


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, jax.eval_shape])
def test_reprs_of_what_is_traced(transform: Callable[..., Any]) -> None:
    seen: list[str] = []

    def look(*values: Any) -> jax.Array:  # noqa: ANN401 - trees of arrays
        seen.extend(map(repr, values))
        return jnp.zeros(())

    values = (TASK, PARAMS, BATCH, STATE)
    if transform is jax.vmap:
        values = jax.tree.map(lambda array: jnp.stack([array, array]), values)
    if transform is jax.eval_shape:
        jax.eval_shape(look, *values)
    else:
        transform(look)(*values)
    assert seen[0] == "Task(num_tokens=3, context_length=20, float32)"
    assert seen[1] == "Params(value=float32[3, 3], attention=float32[20, 3])"
    assert "stage=int32[]" in seen[3]
