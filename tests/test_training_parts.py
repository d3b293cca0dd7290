"""`train` with parts of one's own, and trajectories that are continued."""

import dataclasses
import functools
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import scbjax
from scbjax.composition import LearnerState
from scbjax.model import LINEAR, AttentionMap
from scbjax.observables import View
from scbjax.parts import Model, Observable
from scbjax.settings import Settings
from scbjax.sources import scb_source, windows
from scbjax.task import Task, pattern_signal, random_task, transition_signal
from scbjax.training import train
from scbjax.trajectories import Trajectory

# These programs run for milliseconds: optimising them costs more than it saves.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
change = dataclasses.replace
KEY = jax.random.key(3)
SETTINGS = Settings(
    batch_size=16,
    steps=40,
    record_every=10,
    learning_rate_1=0.05,
    learning_rate_2=0.05,
    learning_rate_3=0.02,
    l1=1e-3,
    record=("attention_distance", "value_distance", "stage", "batch_loss"),
)


@functools.cache
def make_task(num_tokens: int = 3) -> Task:
    draw = functools.partial(random_task, num_tokens=num_tokens, context_length=40, sparsity=2)
    task: Task = quick_jit(draw)(jax.random.key(0))
    return task


def own_train(settings: Settings = SETTINGS, **parts: Any) -> Trajectory:  # noqa: ANN401 - as `train`
    task = parts.pop("task", make_task())
    trajectory: Trajectory = quick_jit(lambda key, settings: train(key, task, settings, **parts))(
        KEY, settings
    )
    return trajectory


# --------------------------------------------------------------------------------------- continuing


@pytest.mark.parametrize("optimizer", ["proximal", pytest.param("adam", marks=pytest.mark.slow)])
def test_a_continued_trajectory_is_bitwise_one_long_one(optimizer: Any) -> None:  # noqa: ANN401
    """Through all stages, which end at steps 20 and 40 (the proximal arm's)."""
    settings = change(
        SETTINGS, optimizer=optimizer, switch_on="step", switch_step=15, stop_step=35, steps=60,
        record=("rounded_value_distance", "stage", "samples", "population_alpha_attention"),
    )  # fmt: skip
    run = quick_jit(train, static_argnames="steps")
    whole, state, parts = run(KEY, make_task(), settings), None, []
    for steps in (20, 20, 20):
        part = run(KEY, make_task(), settings, state=state, steps=steps)
        state = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), part.state)
        parts.append(part)
    chex.assert_trees_all_equal(state, whole.state)
    assert [part.steps.tolist() for part in parts] == [[0, 10, 20], [20, 30, 40], [40, 50, 60]]
    assert whole.records["stage"].max() == (3 if optimizer == "proximal" else 2)
    for name, record in whole.records.items():
        joined = [np.asarray(parts[0].records[name])]
        joined += [np.asarray(part.records[name])[1:] for part in parts[1:]]
        np.testing.assert_array_equal(np.concatenate(joined), record)


@pytest.mark.slow
def test_a_continued_transfer_needs_its_source_no_more() -> None:
    task = make_task()
    source = quick_jit(functools.partial(scbjax.related_task, correlation=0.9))(KEY, task)
    settings = change(SETTINGS, start="transfer", first_samples=64)
    run = quick_jit(train, static_argnames="steps")
    first = run(KEY, task, settings, source, steps=20)
    second = run(KEY, task, settings, state=first.state, steps=20)
    whole = run(KEY, task, settings, source)
    chex.assert_trees_all_equal(second.state, whole.state)


@pytest.mark.slow
def test_trajectories_in_a_map_are_continued_in_a_map() -> None:
    run = quick_jit(jax.vmap(train, in_axes=(0, None, None)))
    keys = jax.random.split(KEY, 2)
    first = run(keys, make_task(), change(SETTINGS, steps=20))

    def go_on(key: jax.Array, state: Any) -> Trajectory:  # noqa: ANN401 - a state
        return train(key, make_task(), SETTINGS, state=state, steps=20)

    second = quick_jit(jax.vmap(go_on))(keys, first.state)
    chex.assert_trees_all_close(second.state, run(keys, make_task(), SETTINGS).state, rtol=1e-5)
    assert second.steps.tolist() == [[20, 30, 40]] * 2


# -------------------------------------------------------------------------- optimisers of one's own


@pytest.mark.slow
@pytest.mark.parametrize("num_tokens", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_an_optimiser_of_ones_own_sees_the_same_batches(num_tokens: int) -> None:
    """The paper's step, made of its transformation, is the paper's arm in its first stage."""
    task = make_task(num_tokens)
    settings = change(
        SETTINGS, switch_level=float("inf"), l1=0.0, learning_rate_1=0.1 / num_tokens**2
    )

    def own(task: Task, settings: Settings) -> optax.GradientTransformation:
        eta = settings.learning_rate_1
        rates = eta / pattern_signal(task), eta / transition_signal(task)
        return scbjax.scb_proximal(task.stationary, *rates, l1=settings.l1)

    found = own_train(settings, task=task, optimizer=own)
    wanted = own_train(settings, task=task)
    assert found.diverged_at == -1
    chex.assert_trees_all_close(found.params, wanted.params, rtol=1e-5)
    chex.assert_trees_all_close(found.records, wanted.records, rtol=1e-5)
    assert isinstance(found.state, LearnerState)


def test_a_transformation_is_one_stage_without_an_end() -> None:
    """What the settings say of later stages and of their ends is not its."""
    settings = change(SETTINGS, switch_level=0.0)
    found = own_train(settings, optimizer=optax.sgd(0.05))
    plain = change(SETTINGS, optimizer="raw_sgd", scale_rates=False, switch_level=float("inf"))
    chex.assert_trees_all_close(found.params, own_train(plain).params, rtol=1e-5)
    assert found.records["stage"].tolist() == [1] * 5


@pytest.mark.slow
def test_the_rate_of_an_optimiser_is_mapped() -> None:
    def final(rate: jax.Array) -> jax.Array:
        records = train(KEY, make_task(), SETTINGS, optimizer=optax.adam(rate)).records
        return records["attention_distance"][-1]

    rates = [1e-4, 1e-3, 1e-2]
    found = quick_jit(jax.vmap(final))(jnp.array(rates))
    alone = [
        own_train(optimizer=optax.adam(rate)).records["attention_distance"][-1] for rate in rates
    ]
    np.testing.assert_allclose(found, alone, rtol=1e-5)
    assert len({*np.asarray(found)}) == 3


@pytest.mark.slow
def test_everything_that_is_usually_recorded_can_be() -> None:
    settings = change(SETTINGS, record=scbjax.recorded.DEFAULT_RECORD)
    records = own_train(settings, optimizer=optax.adam(1e-3)).records
    assert set(records) == set(scbjax.recorded.DEFAULT_RECORD)
    assert not np.any(records["flipped"])
    assert np.all(np.isnan(records["population_alpha_value"]))  # of the paper's steps, not of these


@pytest.mark.slow
def test_own_optimisers_are_continued_bitwise() -> None:
    whole = own_train(optimizer=optax.adam(1e-3))
    first = own_train(optimizer=optax.adam(1e-3), steps=10)
    second = own_train(optimizer=optax.adam(1e-3), steps=30, state=first.state)
    chex.assert_trees_all_equal(second.state, whole.state)


# ---------------------------------------------------------------------------------- maps as objects


def scaled(factor: float) -> AttentionMap:
    """Maps that differ by what they do and not by their name."""
    return AttentionMap(lambda w: factor * w, lambda length: 1 / (factor * length), name="scaled")


@pytest.mark.slow
def test_maps_of_one_name_are_not_taken_for_one_another() -> None:
    """A step on W is one on A with the rate times the square of the factor."""
    settings = change(
        SETTINGS, optimizer="raw_sgd", scale_rates=False, switch_level=float("inf"), steps=10
    )
    run = quick_jit(train)  # one cache of programs for all of them
    for factor in (2.0, 0.5):
        own = change(settings, attention_map=scaled(factor), attention_rate_ratio=factor**-2)
        found, wanted = (run(KEY, make_task(), value) for value in (own, settings))
        attention = factor * found.params.attention
        np.testing.assert_allclose(attention, wanted.params.attention, rtol=1e-4)
        names = ("attention_distance", "value_distance")
        for name in names:
            np.testing.assert_allclose(found.records[name], wanted.records[name], rtol=1e-4)


def test_a_name_is_held_as_its_map() -> None:
    assert SETTINGS.attention_map is LINEAR
    assert repr(change(SETTINGS, optimizer="adam", attention_map=scaled(2.0)).attention_map) == (
        "AttentionMap('scaled')"
    )
    with pytest.raises(ValueError, match="attention_map = 'scaled', which needs raw_sgd"):
        change(SETTINGS, attention_map=scaled(2.0))
    with pytest.raises(ValueError, match="attention_map = 'own linear', which needs raw_sgd"):
        change(SETTINGS, attention_map=scaled(2.0)._replace(name="linear"))


# -------------------------------------------------------------------------------------- observables


@pytest.mark.slow
def test_observables_of_ones_own_stand_beside_ours() -> None:
    def entropy(view: View) -> jax.Array:
        """Entropy of |A|, by query."""
        weights = jnp.abs(view.params.attention) + 1e-9
        weights = weights / jnp.sum(weights, axis=0, keepdims=True)
        return -jnp.sum(weights * jnp.log(weights), axis=0)

    by_query = Observable(entropy, dims=("query",), name="entropy")
    found = own_train(record=("attention_distance", by_query))
    assert found.records["entropy"].shape == (5, 3)
    np.testing.assert_allclose(found.records["entropy"][0], np.log(40), rtol=1e-5)
    ours = own_train()
    np.testing.assert_allclose(
        found.records["attention_distance"], ours.records["attention_distance"], rtol=1e-6
    )
    named = own_train(record={"mean": lambda view: jnp.mean(entropy(view)), "d": "value_distance"})
    assert set(named.records) == {"mean", "d"}
    np.testing.assert_allclose(
        named.records["mean"], np.mean(found.records["entropy"], axis=1), rtol=1e-5
    )
    np.testing.assert_allclose(named.records["d"], ours.records["value_distance"], rtol=1e-6)


@pytest.mark.slow
def test_settings_hold_observables_of_ones_own() -> None:
    settings = change(SETTINGS, record={"largest": lambda view: jnp.max(view.params.attention)})
    found = quick_jit(train)(KEY, make_task(), settings)
    np.testing.assert_array_equal(found.records["largest"][-1], jnp.max(found.params.attention))


@pytest.mark.slow
def test_a_view_has_the_state_the_settings_and_the_loss() -> None:
    batch = scbjax.sample_batch(KEY, make_task(), 8)
    record = {
        "step": lambda view: view.state.step,
        "eta": lambda view: jnp.asarray(view.values.learning_rate_1),
        "loss": lambda view: view.loss(batch),
    }
    for parts in ({}, {"optimizer": optax.sgd(0.01)}):
        found = own_train(record=record, **parts)
        assert found.records["step"].tolist() == [0, 10, 20, 30, 40]
        np.testing.assert_allclose(found.records["eta"], 0.05, rtol=1e-6)
        loss = scbjax.loss(found.params, batch)
        np.testing.assert_allclose(found.records["loss"][-1], loss, rtol=1e-5)


# ------------------------------------------------------------------------------- sources and models


def bigram_text(size: int = 4000) -> np.ndarray:
    rng = np.random.default_rng(0)
    tokens = [0]
    for _ in range(size):
        tokens.append((tokens[-1] + rng.choice(3, p=[0.8, 0.15, 0.05])) % 5)
    return np.array(tokens)


def test_a_source_stands_in_the_place_of_the_task() -> None:
    """On a text of bigrams with the query in front: the best V and A are known."""
    source = windows(bigram_text(), context_length=6, query_first=True)
    settings = Settings(
        batch_size=32,
        steps=1500,
        record_every=500,
        optimizer="adam",
        scale_rates=False,
        learning_rate_1=0.01,
    )
    found = own_train(settings, task=source, record=("batch_loss", scbjax.held_out_loss))
    transition = np.zeros((5, 5))
    for token in range(5):
        transition[(token + np.arange(3)) % 5, token] = [0.8, 0.15, 0.05]
    best = (1 - (0.8**2 + 0.15**2 + 0.05**2)) / 2
    # The deviation of a mean of 1024 losses of size one.
    assert abs(float(found.records["held_out_loss"][-1]) - best) < 0.05
    assert float(found.records["held_out_loss"][0]) > best + 0.2
    learned = found.params.value * found.params.attention[0][None, :].mean()
    np.testing.assert_allclose(learned, transition, atol=0.1)
    plain = own_train(change(settings, steps=500), task=source)
    assert set(plain.records) == {"batch_loss", "stage", "samples"}


@pytest.mark.parametrize("optimizer", ["proximal", "sgd", "raw_sgd", "adam"])
def test_each_arm_trains_on_a_source(optimizer: Any) -> None:  # noqa: ANN401
    """With the rate of stage 1 throughout; against optax alone where that is the same."""
    source = windows(bigram_text(500), context_length=6)
    settings = change(
        SETTINGS, optimizer=optimizer, scale_rates=False, learning_rate_1=0.01, record=("stage",)
    )
    found = own_train(settings, task=source)
    assert found.diverged_at == -1
    task = source.draw(KEY)
    attention = optax.adam(0.01) if optimizer == "adam" else optax.sgd(0.01)
    arms = {
        "proximal": scbjax.scb_proximal(task.stationary, 0.01, 0.01, 1e-3),
        "sgd": scbjax.scb_sgd(task.stationary, 0.01, 0.01),
        "raw_sgd": attention,
        "adam": attention,
    }
    wanted = own_train(settings, task=source, optimizer=arms[optimizer])
    chex.assert_trees_all_close(found.params, wanted.params, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_source_of_tasks_is_the_task_that_it_draws() -> None:
    source = scb_source(num_tokens=3, context_length=40, sparsity=2)
    found = own_train(task=source)
    task = source.draw(jax.random.fold_in(KEY, scbjax.composition.TASK))
    chex.assert_trees_all_close(found.records, own_train(task=task).records, rtol=1e-4)


def heads() -> Model:
    def init(key: jax.Array, task: Any) -> Any:  # noqa: ANN401 - trees
        size, length = task.num_tokens, task.context_length
        return {
            "v": jnp.ones((2, size, size)) / size / 2,
            "w": jax.random.normal(key, (2, length, size)),
        }

    def loss(params: Any, batch: Any) -> jax.Array:  # noqa: ANN401 - trees
        own = scbjax.Params(params["v"], jax.nn.softmax(params["w"], axis=1))
        predict = jax.vmap(scbjax.predict, in_axes=(0, None, None))
        error = jnp.sum(predict(own, batch.tokens, batch.query), axis=0)
        error = error - jax.nn.one_hot(batch.label, error.shape[1])
        return jnp.mean(jnp.sum(error**2, axis=1)) / 2

    return Model(init, loss)


@pytest.mark.parametrize("of_text", [False, True])
def test_a_model_of_ones_own_is_trained(of_text: bool) -> None:
    task = windows(bigram_text(), context_length=6, query_first=True) if of_text else make_task()
    settings = change(SETTINGS, steps=400, record_every=100, record=("batch_loss",))
    found = own_train(settings, task=task, model=heads(), optimizer=optax.adam(0.03))
    losses = np.asarray(found.records["batch_loss"])[1:]
    assert losses[-1] < 0.9 * losses[0]
    assert found.params["v"].shape[0] == 2


# ---------------------------------------------------------------------------------- what is refused


def refused(error: type[Exception], message: str, *arguments: Any, **parts: Any) -> None:  # noqa: ANN401
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        train(KEY, *arguments, **parts)


def test_parts_that_do_not_fit_are_refused() -> None:
    task, text = make_task(), windows(bigram_text(200), context_length=6)
    sgd, plain = optax.sgd(0.1), change(SETTINGS, scale_rates=False)
    refused(ValueError, "scale_rates is True; it must be False for a source", text, SETTINGS)
    refused(
        ValueError, "l1_scaling is 'signal'; it must be direct or rate", text,
        change(plain, l1_scaling="signal"),
    )  # fmt: skip
    refused(
        ValueError, "optimizer is None; with a model of one's own", task, SETTINGS, model=heads()
    )
    refused(
        ValueError, "start is 'transfer'; with an optimizer, a model or a source", task,
        change(SETTINGS, start="transfer", first_samples=16), optimizer=sgd,
    )  # fmt: skip
    refused(TypeError, "optimizer is 'adam'; it must be a transf", task, SETTINGS, optimizer="adam")
    refused(TypeError, "model is 3; it must be a Model", task, SETTINGS, model=3, optimizer=sgd)
    refused(TypeError, "task is 3; it must be a Task", 3, SETTINGS, optimizer=sgd)
    refused(TypeError, "settings is 3; it must be a Settings", task, 3, steps=4)
    refused(ValueError, "steps = 15 is not a multiple of rec", task, SETTINGS, steps=15)
    refused(ValueError, "record has 'stge'; did you mean 'stage'", task, SETTINGS, record=("stge",))


def test_what_can_not_be_recorded_is_named() -> None:
    text = windows(bigram_text(200), context_length=6)
    plain = change(SETTINGS, scale_rates=False)
    message = "record has 'attention_distance'; where there are no P and Q it must be one of batch"
    refused(ValueError, message, text, plain)
    message = "record has 'attention_distance'; where there are no V and A it must be one of batch"
    refused(ValueError, message, make_task(), SETTINGS, model=heads(), optimizer=optax.sgd(0.1))


def test_states_of_other_learners_are_refused() -> None:
    task, sgd = make_task(), optax.sgd(0.1)
    ours, own = own_train(steps=10).state, own_train(steps=10, optimizer=sgd).state
    counts = "state.opt_state.inner_states['attention'].inner_state[2].count"
    refused(
        ValueError, f"state has no {counts}; that of this task and these settings has one", task,
        SETTINGS, state=own,
    )  # fmt: skip
    refused(
        ValueError, f"{counts} is too much; that of this task and these parts has none", task,
        SETTINGS, state=ours, optimizer=sgd,
    )  # fmt: skip
    refused(
        TypeError, "state is a Params; it must be a LearnerState", task, SETTINGS,
        state=own.params, optimizer=sgd,
    )  # fmt: skip
