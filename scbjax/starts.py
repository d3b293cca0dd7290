"""Where a trajectory of the paper's learner starts that has a related task to start from."""

import dataclasses

import jax
import jax.numpy as jnp

from scbjax.algorithm import (
    per_signal,
)
from scbjax.arguments import check_is
from scbjax.composition import (
    FIRST_STEP,
    PRETRAINING,
    REFITS,
    LearnerState,
)
from scbjax.paper import advance, check_arguments, init
from scbjax.settings import (
    Settings,
)
from scbjax.stages import refit_value, round_attention, rounding_level
from scbjax.task import Task, check_one_task, transition_signal
from scbjax.theory import signals
from scbjax.transfer import first_step, keep_large, mix_value, on_tangent


def start_from(
    key: jax.Array, source: Task, task: Task, settings: Settings, state: LearnerState
) -> LearnerState:
    """The state from which a transfer goes on with stage 2 (section 4; :mod:`scbjax.transfer`).

    ``V = theta P_hat + (1 - theta) mu 1^T``, where P_hat is the transition matrix of the source or,
    with ``start="pretrained"``, what all three stages learn of it from samples; then one step on A
    with ``first_rate`` in place of eta, and its threshold. The noiseless recursion starts from the
    same signals: ``alpha_V = theta (<P_hat, P>_mu - |mu|^2) / K_P``, and alpha_A as after that
    step.

    Args:
        key: the trajectory's data key.
        source: the related task, with the stationary distribution and the sizes of the task.
        task: the task.
        settings: the settings.
        state: what :func:`init` gives.

    Returns:
        The state, in stage 2, with no step counted.

    Raises:
        TypeError: if an argument is something else than it is meant to be.
        ValueError: if it is several, or does not fit the others.
    """
    key = check_arguments(key, task, settings)
    _check_source(source, task)
    check_is("state", state, LearnerState, "such as init makes")
    known = source.transition
    if settings.start == "pretrained":
        known = _pretrained_value(jax.random.fold_in(key, PRETRAINING), source, settings)
    dtype = state.params.value.dtype
    theta = jnp.asarray(settings.theta, dtype)
    rate = jnp.asarray(settings.first_rate, dtype)
    rate = per_signal(rate, transition_signal(task)) if settings.scale_rates else rate
    with jax.default_matmul_precision(settings.precision):
        params = first_step(
            jax.random.fold_in(key, FIRST_STEP),
            state.params._replace(value=mix_value(known, task.stationary, theta)),
            task,
            rate,
            num_samples=settings.first_samples,
            batch_size=settings.batch_size,
            generator=settings.generator,
        )
    level = jnp.asarray(settings.first_threshold, dtype) * theta / task.num_tokens
    level = per_signal(rounding_level(task, level), transition_signal(task))
    alpha = signals(params, task)[0]
    return state._replace(
        params=params._replace(attention=keep_large(params.attention, level)),
        stage=jnp.full((), 2, jnp.int32),
        tracked=state.tracked._replace(population=(alpha, rate * transition_signal(task) * alpha)),
    )


def _check_source(source: Task, task: Task) -> None:
    check_one_task("source", source)
    if source.pattern.shape != task.pattern.shape:
        raise ValueError(
            f"source has a pattern {list(source.pattern.shape)}; "
            f"it must be as large as that of the task, {list(task.pattern.shape)}"
        )


def _pretrained_value(key: jax.Array, source: Task, settings: Settings) -> jax.Array:
    """V as three stages learn it from the source: refitted to the rounded attention."""
    settings = dataclasses.replace(
        settings,
        start="uniform",
        steps=settings.pretraining_steps,
        batch_size=settings.pretraining_batch_size,
        record=(),
    )
    state = init(key, source, settings)
    state, _ = advance(key, source, settings, state, 0, settings.steps // settings.record_every)
    share = jnp.asarray(settings.rounding_level, source.pattern.dtype)
    value = refit_value(
        jax.random.fold_in(key, REFITS),
        round_attention(state.params.attention, rounding_level(source, share)),
        source,
        num_samples=settings.refit_samples,
        support=settings.refit_support,
    )
    return on_tangent(value, source.stationary)
