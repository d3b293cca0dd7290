"""The paper's algorithm as parts of a learner: its arms, its stages, and what goes along with them.

Ren, Wang & Lee (2024), section 3, in a list of stages (:func:`three_stages`):

    1. boost the signal, without l1; then reflect a mirrored solution, and threshold A;
    2. proximal steps with l1; then round A;
    3. V alone, A frozen.

All arms of a comparison (:func:`arm`) go through such a list with the same rates. Those without l1
have no third stage and cut nothing; plain gradients change their rate and nothing else. A transfer
begins with the second stage.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from scbjax import optim
from scbjax.columns import step_rows
from scbjax.composition import LearnerState
from scbjax.losses import unchecked_gradients
from scbjax.model import Params, step_scale_of, sum_by_query
from scbjax.models import linear_transformer
from scbjax.moves import Move, by_optimizer
from scbjax.observables import View
from scbjax.parameters import PLAIN_OPTIMIZERS
from scbjax.parts import Stage, Track
from scbjax.sampling import POSITION_MAJOR_LIMIT, AnyBatch, Batch
from scbjax.settings import Descent, Settings, Staging
from scbjax.stages import (
    estimated_signals,
    is_mirrored,
    mirror,
    round_attention,
    rounding_level,
    threshold_and_project,
    true_signals,
)
from scbjax.task import Task, pattern_signal, transition_signal
from scbjax.theory import Rates, population_step

# A signal counts as none where it is no larger than what rounding leaves of a sum of ones.
_SIGNAL_ROUNDING = 4.0

End = Callable[[Any, Task, Settings], Any]
"""What the end of a stage does to a state: ``(state, task, settings)`` to the state."""


class StageRates(NamedTuple):
    """The numbers of a stage.

    Attributes:
        rate: eta, in the units of the settings.
        moves: whether A is trained.
        shrinks: whether l1 acts on it.
    """

    rate: Any
    moves: Any
    shrinks: Any


class Tracked(NamedTuple):
    """What a trajectory carries beside parameters and optimiser.

    Attributes:
        flipped: whether the sign flip fired, boolean.
        population: (alpha_V, alpha_A) of the noiseless preconditioned recursion with the same
            rates; that of A times the ``step_scale`` of the attention map.
    """

    flipped: jax.Array
    population: tuple[jax.Array, jax.Array]


# --------------------------------------------------------------------------------- rates of a step


def step_rates(
    rates: StageRates,
    task: Task,
    descent: Descent,
    dtype: jax.typing.DTypeLike,
    signal: jax.Array | None = None,
) -> Rates:
    """eta_V and eta_A of a step.

    Args:
        rates: those of the stage.
        task: the task; only K_P and K_Q are used.
        descent: which arm, and how its rates are scaled.
        dtype: of the parameters.
        signal: K_Q, if it is not that of the task.
    """
    rate = jnp.asarray(rates.rate, dtype)
    attention = rate * jnp.asarray(descent.attention_rate_ratio, dtype)
    value = rate
    if descent.scale_rates:
        value = per_signal(rate, pattern_signal(task) if signal is None else signal)
        attention = per_signal(attention, transition_signal(task))
    return Rates(value, jnp.where(rates.moves, attention, 0.0))


def step_threshold(
    rates: StageRates, attention: jax.Array, params: Params, task: Task, descent: Descent
) -> jax.Array:
    """The l1 threshold of a step, given eta_A."""
    dtype = params.value.dtype
    l1 = jnp.asarray(descent.l1, dtype)
    if descent.l1_scaling == "rate":
        l1 = l1 * attention
    elif descent.l1_scaling == "signal":
        l1 = l1 * jnp.asarray(rates.rate, dtype) * estimated_signals(params, task)[0]
    return jnp.where(rates.shrinks, l1, 0.0)


def per_signal(rate: jax.Array, signal: jax.Array) -> jax.Array:
    """``rate / K``, or the rate itself where there is nothing to learn (K not above rounding)."""
    floor = _SIGNAL_ROUNDING * float(jnp.finfo(signal.dtype).eps)
    return jnp.where(signal > floor, rate / jnp.maximum(signal, floor), rate)


# ----------------------------------------------------------------------------------------- the arms


def transformation(
    task: Any,  # noqa: ANN401 - anything with mu
    descent: Descent,
    rates: Rates,
    l1: jax.Array,
) -> optax.GradientTransformationExtraArgs:
    """The transformation of optax that the descent names, at given rates."""
    both = (rates.value, rates.attention)
    if descent.optimizer == "proximal":
        return optim.scb_proximal(task.stationary, *both, l1, geometry=descent.geometry)
    if descent.optimizer == "sgd":
        return optim.scb_sgd(task.stationary, *both, geometry=descent.geometry)
    return optim.adam(*both) if descent.optimizer == "adam" else optim.raw_sgd(*both)


def arm(task: Task, descent: Descent, rates: StageRates) -> optax.GradientTransformationExtraArgs:
    """The arm that the descent names, at the rates of a stage.

    The threshold may depend on the parameters, so that the transformation is made where they are
    known; its state has the same structure at all of them.
    """

    def at(params: Params) -> optax.GradientTransformationExtraArgs:
        own = step_rates(rates, task, descent, params.value.dtype)
        l1 = step_threshold(rates, own.attention, params, task, descent)
        return transformation(task, descent, own, l1)

    def init_fn(params: Params) -> optax.OptState:
        return at(params).init(params)

    def update_fn(
        updates: Params,
        state: optax.OptState,
        params: Params,
        **extra: Any,  # noqa: ANN401 - as optax
    ) -> tuple[Params, optax.OptState]:
        moved: tuple[Params, optax.OptState] = at(params).update(updates, state, params, **extra)
        return moved

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def move_of(task: Task, descent: Descent) -> Move:
    """How a step of an arm moves the parameters: for large vocabularies, column by column."""
    if goes_by_columns(task, descent):
        return Move(_init_columns, _step_columns, _transposed, _transposed)
    return by_optimizer(linear_transformer(descent.attention_map), arm)


def goes_by_columns(task: Task, descent: Descent) -> bool:
    """Whether a step adds the gradient of each sample to the column of A that it asks for."""
    return task.num_tokens > POSITION_MAJOR_LIMIT and descent.optimizer not in PLAIN_OPTIMIZERS


def _transposed(params: Params) -> Params:
    """A as loops over steps carry it, or back: column by column in memory.

    A step reads and writes the columns of its queries. In a compiled loop the transposes around a
    step cancel.
    """
    return params._replace(attention=params.attention.T)


def _value_descent(
    task: Task, descent: Descent, rate: jax.Array
) -> optax.GradientTransformationExtraArgs:
    return optim.value_descent(task.stationary, rate, descent.geometry)


def _init_columns(params: Params, task: Task, descent: Descent, _: StageRates) -> optax.OptState:
    return _value_descent(task, descent, jnp.zeros(())).init(params.value)


def _step_columns(
    carried: Params,
    opt_state: optax.OptState,
    batch: AnyBatch,
    task: Task,
    descent: Descent,
    rates: StageRates,
    frozen: Params,
) -> tuple[tuple[jax.Array, Params], Params, optax.OptState]:
    """Like a step of :func:`arm`; A goes its own way, in as few passes over it as can be."""
    assert isinstance(batch, Batch)  # there are no tuples of so large a vocabulary
    params = _transposed(carried)
    own = step_rates(rates, task, descent, params.value.dtype)
    l1 = step_threshold(rates, own.attention, params, task, descent)
    value, grads = unchecked_gradients(params, batch)
    updates, opt_state = _value_descent(task, descent, own.value).update(grads.value, opt_state)
    rows = step_rows(
        carried.attention,
        grads.attention,
        batch.query,
        stationary=task.stationary,
        learning_rate=own.attention,
        l1=l1 if descent.optimizer == "proximal" else None,
        frozen=frozen.attention,
    )
    whole = sum_by_query(grads.attention, batch.query, task.num_tokens)
    moved = Params(params.value + updates, rows)
    return (value, grads._replace(attention=whole)), moved, opt_state


# --------------------------------------------------------------------------------------- the stages


def three_stages(descent: Descent, boosted: End, converged: End) -> tuple[Stage, ...]:
    """The stages of an arm.

    Args:
        descent: which arm; only what is static decides.
        boosted: what the end of stage 1 does to a state.
        converged: what the end of stage 2 does.

    Returns:
        Three stages for the proximal arm, two for the others.
    """
    names = ("boosting", "proximal", "value")
    rates = [partial(_stage_rates, number) for number in (1, 2, 3)]
    plain = descent.optimizer in PLAIN_OPTIMIZERS
    first = Stage(names[0], rates[0], partial(_is_over, 1), None if plain else boosted)
    if descent.optimizer != "proximal":
        return first, Stage(names[1], rates[1])
    second = Stage(names[1], rates[1], partial(_is_over, 2), converged)
    return first, second, Stage(names[2], rates[2], frozen=("attention",))


def _stage_rates(number: int, _: Task, staging: Staging) -> StageRates:
    rate = (staging.learning_rate_1, staging.learning_rate_2, staging.learning_rate_3)
    return StageRates(rate[number - 1], moves=number != 3, shrinks=number == 2)


def _is_over(number: int, view: View) -> jax.Array:
    """Whether stage 1 or 2 ends, by the strengths of both signals or by the step."""
    settings: Staging = view.values
    if settings.switch_on == "step":
        last = settings.switch_step if number == 1 else settings.stop_step
        return jnp.asarray(view.state.step >= last)
    value, attention = strengths(view, settings)
    if number == 2:
        return jnp.asarray((value + attention) / 2 >= settings.stop_level)
    strongest = value if settings.switch_on == "parameters" else jnp.maximum(value, attention)
    return jnp.asarray(strongest >= settings.switch_level)


def strengths(view: View, staging: Staging) -> tuple[jax.Array, jax.Array]:
    """The signals in V and A by which stages end, off the truth or off the parameters; scalars."""
    return view.true_signals if staging.switch_on == "truth" else view.estimated_signals


def end_boosting(state: LearnerState, task: Task, settings: Settings) -> LearnerState:
    """The end of stage 1: the sign flip, if a solution is mirrored, and threshold-and-project."""
    params: Params = state.params
    flips = is_mirrored(params.attention) if settings.flip else jnp.zeros((), bool)
    params = _where(flips, mirror(params, task), params)
    if settings.optimizer == "proximal":
        threshold = jnp.asarray(settings.threshold, params.attention.dtype)
        read = true_signals if settings.switch_on == "truth" else estimated_signals
        level = rounding_level(task, threshold * read(params, task)[0])
        cut = threshold_and_project(params.attention, level)
        params = params._replace(attention=jnp.where(threshold > 0, cut, params.attention))
    tracked = state.tracked._replace(flipped=state.tracked.flipped | flips)
    return state._replace(params=params, tracked=tracked)


def end_proximal(state: LearnerState, task: Task, staging: Staging) -> LearnerState:
    """The end of stage 2: rounding; the noiseless recursion then has alpha_A = 1."""
    share = jnp.asarray(staging.rounding_level, state.params.attention.dtype)
    rounded = round_attention(state.params.attention, rounding_level(task, share))
    alpha_value, alpha_attention = state.tracked.population
    tracked = state.tracked._replace(population=(alpha_value, jnp.ones_like(alpha_attention)))
    return state._replace(params=state.params._replace(attention=rounded), tracked=tracked)


def _where(condition: jax.Array, yes: Params, no: Params) -> Params:
    chosen: Params = jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
    return chosen


# ---------------------------------------------------------------------------------- what goes along


def _start_tracking(params: Params, _: Task, __: Descent) -> Tracked:
    zero = jnp.zeros((), params.value.dtype)
    return Tracked(jnp.zeros((), bool), (zero, zero))


def _track_step(tracked: Tracked, rates: StageRates, task: Task, descent: Descent) -> Tracked:
    own = step_rates(rates, task, descent, tracked.population[0].dtype)
    scale = step_scale_of(descent.attention_map, task.context_length)
    population = population_step(
        *tracked.population,
        own._replace(attention=own.attention * scale),
        transition_signal=transition_signal(task),
        pattern_signal=pattern_signal(task),
        context_length=task.context_length,
    )
    return tracked._replace(population=population)


TRACK = Track(_start_tracking, _track_step)
"""Whether the solution was reflected, and the noiseless recursion at the same rates."""
