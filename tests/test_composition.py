"""Learners of parts: against loops in float64 NumPy, on data that is not the library's own."""

import functools
import re
from collections.abc import Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scbjax import composition
from scbjax.composition import Learner, LearnerState, learner
from scbjax.models import linear_transformer
from scbjax.moves import Move
from scbjax.observables import View
from scbjax.parts import Model, Observable, Source, Stage, Track
from scbjax.sources import scb_source
from scbjax.trajectories import Trajectory

Array = np.ndarray

# These programs run for milliseconds: optimising them costs more than it saves.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# Regression on random inputs: y = w x, learned by w = a + b with two parameters of one's own.
D, B, EVERY = 3, 8, 2


def draw(key: jax.Array) -> dict[str, jax.Array]:
    return {"weights": jax.random.normal(key, (D,))}


def prepare(task: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {"doubled": 2 * task["weights"]}


def sample(key: jax.Array, prepared: dict[str, jax.Array], size: int) -> tuple[jax.Array, ...]:
    inputs = jax.random.normal(key, (size, D))
    return inputs, jnp.sum(inputs * prepared["doubled"][None, :], axis=1) / 2


def init(key: jax.Array, task: Any) -> dict[str, jax.Array]:  # noqa: ANN401
    return {"a": 0.1 * jax.random.normal(key, task["weights"].shape), "b": jnp.zeros(D)}


def loss(params: dict[str, jax.Array], batch: tuple[jax.Array, ...]) -> jax.Array:
    inputs, target = batch
    error = jnp.sum(inputs * (params["a"] + 2 * params["b"])[None, :], axis=1) - target
    return jnp.mean(error**2) / 2


SOURCE = Source(draw, sample, prepare)
MODEL = Model(init, loss, readout=lambda params: params["a"] + 2 * params["b"])
TASK = draw(jax.random.key(5))
KEY = jax.random.key(7)


def regression(optimizer: Any, **options: Any) -> Learner:  # noqa: ANN401 - as `learner`
    own: dict[str, Any] = {"batch_size": B, "record_every": EVERY, **options}
    return learner(SOURCE, MODEL, optimizer, **own)


def batches(count: int) -> Iterator[tuple[Array, Array]]:
    """The batches of the first steps, each drawn by its own key, in float64."""
    stream = jax.random.fold_in(KEY, composition.BATCHES)
    for step in range(count):
        batch = sample(jax.random.fold_in(stream, step), prepare(TASK), B)
        yield tuple(np.asarray(array, np.float64) for array in batch)  # type: ignore[misc]


def gradients(a: Array, b: Array, batch: tuple[Array, Array]) -> tuple[float, Array, Array]:
    inputs, target = batch
    error = inputs @ (a + 2 * b) - target
    gradient = inputs.T @ error / len(target)
    return float(error @ error / 2 / len(target)), gradient, 2 * gradient


def start() -> tuple[Array, Array]:
    params = init(jax.random.fold_in(KEY, composition.PARAMETERS), TASK)
    return np.asarray(params["a"], np.float64), np.asarray(params["b"], np.float64)


def assert_params(found: Any, a: Array, b: Array) -> None:  # noqa: ANN401 - a tree
    np.testing.assert_allclose(found["a"], a, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["b"], b, rtol=1e-5, atol=1e-6)


def train(own: Learner, values: Any, steps: int) -> Trajectory:  # noqa: ANN401 - any tree
    trajectory: Trajectory = quick_jit(own.train, static_argnames="steps")(
        KEY, TASK, values, steps=steps
    )
    return trajectory


def test_a_model_s_functions_may_take_the_values() -> None:
    """A ridge of a traced weight, from a start at a traced place, swept by a map."""

    def init_at(key: jax.Array, task: Any, values: Any) -> dict[str, jax.Array]:  # noqa: ANN401
        params = init(key, task)
        return {**params, "b": params["b"] + values["at"]}

    def ridged(params: dict[str, jax.Array], batch: Any, values: Any) -> jax.Array:  # noqa: ANN401
        penalty: jax.Array = values["ridge"] * jnp.sum(params["b"] ** 2) / 2
        return loss(params, batch) + penalty

    def scaled(params: dict[str, jax.Array], values: dict[str, jax.Array]) -> jax.Array:
        return values["at"] * params["b"]

    seen = Observable(lambda view: jnp.sum(view.params), name="seen")
    own = learner(
        *(SOURCE, Model(init_at, ridged, scaled), optax.sgd(0.1)),
        batch_size=B, record_every=EVERY, record=("batch_loss", seen),
    )  # fmt: skip
    values = {"at": jnp.array([0.0, 0.5]), "ridge": jnp.array([2.0, 3.0])}
    found = quick_jit(jax.vmap(lambda values: own.train(KEY, TASK, values, steps=4)))(values)
    for index, (at, ridge) in enumerate([(0.0, 2.0), (0.5, 3.0)]):
        a, b = start()
        b = b + at
        for batch in batches(4):
            last, for_a, for_b = gradients(a, b, batch)
            last += ridge * float(b @ b) / 2
            a, b = a - 0.1 * for_a, b - 0.1 * (for_b + ridge * b)
        assert_params(jax.tree.map(lambda leaf, index=index: leaf[index], found.params), a, b)
        np.testing.assert_allclose(found.records["batch_loss"][index, -1], last, rtol=1e-5)
        np.testing.assert_allclose(
            found.records["seen"][index, -1], at * b.sum(), rtol=1e-4, atol=1e-6
        )


def test_a_learner_of_parts_is_its_loop() -> None:
    """Momentum made of a traced value, on a model and a source of which nothing is known."""
    own = regression(
        lambda _, rate, rates: optax.sgd(rate * rates, momentum=0.5),
        stages=[Stage("only", rates=2.0)],
        record=("batch_loss", "samples", "stage"),
    )
    found = train(own, 0.05, 6)
    (a, b), losses = start(), []
    trace: list[Any] = [0.0, 0.0]
    for batch in batches(6):
        value, *grads = gradients(a, b, batch)
        trace = [grad + 0.5 * old for grad, old in zip(grads, trace, strict=True)]
        a, b = a - 0.1 * trace[0], b - 0.1 * trace[1]
        losses.append(value)
    assert_params(found.params, a, b)
    np.testing.assert_allclose(found.records["batch_loss"][1:], losses[1::2], rtol=1e-4)
    assert np.isnan(found.records["batch_loss"][0])
    assert found.records["samples"].tolist() == [0, 2 * B, 4 * B, 6 * B]
    assert found.records["stage"].tolist() == [1, 1, 1, 1]
    assert found.steps.tolist() == [0, 2, 4, 6]
    assert int(found.state.step) == 6
    assert found.diverged_at == -1


def test_a_schedule_is_of_the_step_of_the_trajectory_through_all_stages() -> None:
    decay = optax.exponential_decay(0.2, 1, 0.5)
    stages = [
        Stage("first", {"rate": decay}, is_over=lambda view: view.state.step >= 2),
        Stage("second", {"rate": 0.01}, is_over=lambda view: view.state.step >= 4),
        Stage("third", lambda _, values: {"rate": lambda step: values / (1.0 + step)}),
    ]
    own = regression(lambda _, __, rates: optax.sgd(rates["rate"]), stages=stages)
    rates = [0.2, 0.1, 0.01, 0.01, 0.3 / 5, 0.3 / 6]
    a, b = start()
    for rate, batch in zip(rates, batches(6), strict=True):
        _, one, other = gradients(a, b, batch)
        a, b = a - rate * one, b - rate * other
    found = train(own, 0.3, 6)
    assert_params(found.params, a, b)
    assert found.records["stage"].tolist() == [1, 2, 3, 3]
    # A schedule of the optimiser itself counts on through the stages in the same way.
    counted = train(regression(optax.sgd(decay), stages=stages), 0.3, 6)
    alone = train(
        regression(lambda _, __, rate: optax.sgd(rate), stages=[Stage("", decay)]), 0.3, 6
    )
    chex.assert_trees_all_close(counted.params, alone.params, rtol=1e-6)


def test_what_is_frozen_in_a_stage_stays_bit_for_bit() -> None:
    """Whatever the optimiser makes of it: Adam would move it by its memory."""
    stages = [
        Stage("both", is_over=lambda view: view.state.step >= 2),
        Stage("b alone", is_over=lambda view: view.state.step >= 4, frozen=("a",)),
        Stage("both again"),
    ]
    own = regression(optax.adam(0.1), stages=stages)
    after = [train(own, None, steps).params for steps in (2, 4, 6)]
    chex.assert_trees_all_equal(after[0]["a"], after[1]["a"])
    for one, other, name in ((0, 1, "b"), (1, 2, "a"), (1, 2, "b")):
        assert float(jnp.min(jnp.abs(after[one][name] - after[other][name]))) > 1e-3


def own_pace() -> Learner:
    """Stages that end by the parameters, and an end that moves them."""

    def halve(state: LearnerState, _: Any, rate: jax.Array) -> LearnerState:  # noqa: ANN401
        return state._replace(params=jax.tree.map(lambda leaf: leaf / 2 + rate, state.params))

    def is_near(view: View) -> jax.Array:
        near: jax.Array = jnp.sum((view.params - view.task["weights"]) ** 2) < view.values * 10
        return near

    stages = [
        Stage("far", (1.0,), is_near, halve),
        Stage("near", (0.5,), lambda view: view.state.step >= 10, frozen=("b",)),
        Stage("still", (0.0,)),
    ]
    return regression(
        lambda _, rate, rates: optax.sgd(rate * rates[0]),
        stages=stages,
        record={"stage": "stage", "squares": lambda view: jnp.sum(view.params**2)},
    )


def own_pace_in_numpy(rate: float, steps: int) -> tuple[Array, Array, list[int]]:
    weights = np.asarray(TASK["weights"], np.float64)
    (a, b), stage, seen = start(), 1, [1]
    for step, batch in enumerate(batches(steps), 1):
        _, one, other = gradients(a, b, batch)
        factor = rate * (1.0, 0.5, 0.0)[stage - 1]
        a, b = a - factor * one, b - factor * other * (stage != 2)
        if step % EVERY == 0:
            if stage == 1 and np.sum((a + 2 * b - weights) ** 2) < rate * 10:
                stage, a, b = 2, a / 2 + rate, b / 2 + rate
            elif stage == 2 and step >= 10:
                stage = 3
            seen.append(stage)
    return a, b, seen


def test_each_trajectory_goes_through_the_stages_at_its_own_pace() -> None:
    own, rates, steps = own_pace(), [0.01, 0.03, 0.1], 16
    found = quick_jit(jax.vmap(lambda rate: own.train(KEY, TASK, rate, steps=steps)))(
        jnp.array(rates)
    )
    paces = set()
    for lane, rate in enumerate(rates):
        a, b, stages = own_pace_in_numpy(rate, steps)
        assert_params(jax.tree.map(lambda leaf, i=lane: leaf[i], found.params), a, b)
        assert found.records["stage"][lane].tolist() == stages
        squares = np.sum((a + 2 * b) ** 2)
        np.testing.assert_allclose(found.records["squares"][lane, -1], squares, rtol=1e-4)
        paces.add(tuple(stages))
    assert len(paces) == 3


def test_stages_choose_numbers_and_compute_no_step_twice() -> None:
    calls: list[str] = []

    def counted_loss(params: Any, batch: Any) -> jax.Array:  # noqa: ANN401 - trees
        calls.append("loss")
        return loss(params, batch)

    def optimizer(*_: Any) -> optax.GradientTransformation:  # noqa: ANN401 - trees
        calls.append("optimizer")
        return optax.sgd(0.1)

    stages = [Stage(str(n), (float(n),), lambda view: view.batch_loss < 0) for n in range(4)]
    own = learner(
        SOURCE,
        Model(init, counted_loss),
        optimizer,
        stages=[*stages, Stage("last", (5.0,))],
        batch_size=B,
        record_every=EVERY,
    )
    state = own.init(KEY, TASK)
    batch = sample(KEY, prepare(TASK), B)
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    calls.clear()
    jax.eval_shape(jax.vmap(lambda state: own.step(state, batch, TASK)[0]), many)
    assert sorted(calls) == ["loss", "optimizer"]


@pytest.mark.parametrize("cuts", [(1, 3), (3, 1)])
def test_a_trajectory_that_is_continued_is_bitwise_one_long_one(cuts: tuple[int, int]) -> None:
    own = own_pace()
    whole = train(own, 0.05, 16)
    state, parts = None, []
    for count in cuts:
        steps = count * 4
        part = quick_jit(own.train, static_argnames="steps")(
            KEY, TASK, 0.05, steps=steps, state=state
        )
        state = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), part.state)
        parts.append(part)
    chex.assert_trees_all_equal(state, whole.state)
    joined = [*parts[0].steps.tolist(), *parts[1].steps.tolist()[1:]]
    assert joined == whole.steps.tolist()
    for name, record in whole.records.items():
        both = np.concatenate([parts[0].records[name], parts[1].records[name][1:]])
        np.testing.assert_array_equal(both, record)


def test_records_one_by_one_and_in_segments_are_those_of_a_trajectory() -> None:
    own = own_pace()
    whole = train(own, 0.05, 8)
    advance = quick_jit(own.advance, static_argnums=5)
    state, _ = advance(KEY, TASK, 0.05, own.init(KEY, TASK, 0.05), 0, 2)
    state, later = advance(KEY, TASK, 0.05, state, 4, 2)
    chex.assert_trees_all_close(state, whole.state, rtol=1e-5)
    np.testing.assert_allclose(later["squares"], whole.records["squares"][3:], rtol=1e-5)
    state, take = own.init(KEY, TASK, 0.05), quick_jit(own.take_record)
    for index in range(5):
        state, record = take(KEY, TASK, 0.05, state, jnp.asarray(index))
        np.testing.assert_allclose(record["squares"], whole.records["squares"][index], rtol=1e-5)
    again = own.observe(KEY, TASK, 0.05, state, 8)
    np.testing.assert_allclose(again["squares"], whole.records["squares"][-1], rtol=1e-5)


def test_what_is_tracked_goes_along() -> None:
    """The sum of the rates, from a start of its own, seen by an observable."""
    track = Track(
        init=lambda _, __, values: jnp.asarray(values),
        step=lambda total, rates, *_: total + rates,
    )
    stages = [Stage("one", 1.0, lambda view: view.state.step >= 4), Stage("two", 10.0)]
    own = regression(
        optax.sgd(0.01), stages=stages, track=track, record={"sum": lambda v: v.state.tracked}
    )
    assert train(own, 0.5, 8).records["sum"].tolist() == [0.5, 2.5, 4.5, 24.5, 44.5]


def test_a_move_of_ones_own_works_on_what_is_carried() -> None:
    """The parameters backwards, moved by hand: as by gradient descent."""

    def backwards(params: Any) -> Any:  # noqa: ANN401 - a tree
        return jax.tree.map(lambda leaf: leaf[::-1], params)

    def step(params: Any, opt_state: Any, batch: Any, *_: Any) -> Any:  # noqa: ANN401 - trees
        value, grads = jax.value_and_grad(loss)(backwards(params), batch)
        moved = jax.tree.map(lambda p, g: p - 0.1 * g[::-1], params, grads)
        return (value, grads), moved, opt_state + 1

    move = Move(lambda *_: jnp.zeros((), jnp.int32), step, backwards, backwards)
    found, wanted = train(regression(move), None, 6), train(regression(optax.sgd(0.1)), None, 6)
    chex.assert_trees_all_close(found.params, wanted.params, rtol=1e-6)
    assert int(found.state.opt_state) == 6


def test_optimisers_that_look_at_the_loss_get_it() -> None:
    """Polyak's step is the loss over the squared gradient; a line search evaluates the loss."""
    found = train(regression(optax.polyak_sgd(max_learning_rate=10.0)), None, 2)
    a, b = start()
    for batch in batches(2):
        value, one, other = gradients(a, b, batch)
        rate = value / (one @ one + other @ other)
        a, b = a - rate * one, b - rate * other
    assert_params(found.params, a, b)
    search = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5))
    trajectory = train(regression(search), None, 8)
    assert float(trajectory.records["batch_loss"][-1]) < 0.1


def test_the_learner_of_the_paper_without_its_optimiser_is_plain_descent() -> None:
    """The composition on the SCB against the trajectory of the library with plain gradients."""
    from scbjax.settings import Settings
    from scbjax.training import train as train_paper

    source = scb_source(num_tokens=3, context_length=40, sparsity=2)
    task = source.draw(jax.random.key(0))
    own = learner(
        source,
        linear_transformer(),
        optax.sgd(0.05),
        batch_size=16,
        record_every=10,
        record=("attention_distance", "batch_loss"),
    )
    settings = Settings(
        batch_size=16,
        steps=20,
        record_every=10,
        optimizer="raw_sgd",
        scale_rates=False,
        switch_level=float("inf"),
        learning_rate_1=0.05,
        record=("attention_distance", "batch_loss"),
    )
    found = quick_jit(own.train, static_argnames="steps")(KEY, task, None, steps=20)
    wanted = quick_jit(train_paper)(KEY, task, settings)
    chex.assert_trees_all_close(found.params, wanted.params, rtol=1e-5)
    chex.assert_trees_all_close(found.records, wanted.records, rtol=1e-5)


def test_the_batches_stay_unbatched_under_a_map_over_values() -> None:
    own = own_pace()
    rates = jnp.linspace(0.01, 0.1, 7)
    jaxpr = jax.make_jaxpr(jax.vmap(lambda rate: own.train(KEY, TASK, rate, steps=4)))(rates)
    keys = [
        variable.aval.shape
        for equation in equations(jaxpr)
        for variable in equation.outvars
        if jnp.issubdtype(variable.aval.dtype, jnp.unsignedinteger)
    ]
    assert any(B in shape for shape in keys)
    assert not any(7 in shape for shape in keys)


def equations(jaxpr: Any) -> Iterator[Any]:  # noqa: ANN401
    """All equations of a jaxpr and of those inside it."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from equations(inner)


def test_a_diverged_trajectory_says_when() -> None:
    found = train(regression(optax.sgd(1e15)), None, 12)
    assert 0 < int(found.diverged_at) < 12


def constant(number: float, _: Any, __: Any, size: int) -> jax.Array:  # noqa: ANN401
    return jnp.full((size,), number)


def test_parts_go_through_jit_as_what_they_are() -> None:
    """A source is no argument of numbers: two with other functions are two programs."""

    @jax.jit
    def first_batch(source: Source, key: jax.Array) -> jax.Array:
        batch: jax.Array = source.sample(key, (), 2)
        return batch

    for number in (1.0, 2.0):
        source = Source(draw, functools.partial(constant, number))
        assert first_batch(source, KEY).tolist() == [number, number]


# ---------------------------------------------------------------------------------- what is refused


def end(_: View) -> jax.Array:
    return jnp.asarray(True)


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (
            ValueError,
            "stages is a tuple; it must be a list of stages, one at least",
            {"stages": ()},
        ),
        (
            ValueError,
            "the stage 'a' is the last one and has an end",
            {"stages": [Stage("a", (), end)]},
        ),
        (ValueError, "the stage 'a' has no end, and others follow", {"stages": [Stage("a")] * 2}),
        (TypeError, "stages[0] is 'a'; it must be a Stage", {"stages": ["a"]}),
        (
            TypeError,
            "stages[0].frozen is 'b'; it must be a tuple",
            {"stages": [Stage("a", frozen="b")]},  # type: ignore[arg-type]
        ),
        (ValueError, "batch_size is 0; it must be at least 1", {"batch_size": 0}),
        (ValueError, "record_every is 2.5; it must be an integer", {"record_every": 2.5}),
        (ValueError, "record has 'stag'; did you mean 'stage'?", {"record": ("stag",)}),
        (TypeError, "optimizer is 3; it must be a transformation of optax", {"optimizer": 3}),
    ],
)
def test_parts_that_are_none_are_refused(
    error: type[Exception], message: str, options: dict[str, Any]
) -> None:
    options = {"optimizer": optax.sgd(0.1), **options}
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        regression(**options)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            [Stage("one", (1.0,), end), Stage("two", (1.0, 2.0))],
            "the stage 'two' has the rates PyTreeDef((*, *)); they must be of the same structure",
        ),
        ([Stage("one", frozen=("aa",))], "the stage 'one' has frozen ('aa',); it must be a tuple"),
    ],
)
def test_stages_that_do_not_fit_are_refused(stages: list[Stage], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        train(regression(optax.sgd(0.1), stages=stages), None, 2)


def test_steps_are_whole_stretches() -> None:
    with pytest.raises(ValueError, match=r"^steps = 5 is not a multiple of record_every = 2$"):
        regression(optax.sgd(0.1)).train(KEY, TASK, None, steps=5)


def test_what_makes_no_optimiser_is_named() -> None:
    with pytest.raises(TypeError, match=r"^optimizer gives 3; it must give a transformation"):
        regression(lambda *_: 3).init(KEY, TASK)


def test_an_array_needs_names_for_its_axes() -> None:
    def both(view: View) -> jax.Array:
        parameters: jax.Array = view.params
        return parameters

    with pytest.raises(
        ValueError, match=r"^record 'both' has shape \[3\]; its dims must name each"
    ):
        train(regression(optax.sgd(0.1), record=[both]), None, 2)
    named = Observable(both, dims=("input",), name="both")
    found = train(regression(optax.sgd(0.1), record=[named]), None, 4)
    assert found.records["both"].shape == (3, D)
    np.testing.assert_array_equal(found.records["both"][-1], MODEL.readout(found.params))
