"""The paper's learner as pure functions of (key, task, settings), and its state.

The three stages of Ren, Wang & Lee (2024), section 3: boost the signal without l1, take proximal
steps, round the attention and train V alone. The stage is part of the state and changes by
arithmetic, not by Python branches, so that every trajectory under ``vmap`` goes through its stages
at its own pace. Whether a stage is over is decided when a record is taken, every ``record_every``
steps.

Randomness: the mini-batch of step t depends on the key and on t alone, so that a trajectory can be
cut into segments anywhere between records and continued with bitwise the same result.
"""

from typing import Any, NamedTuple

import jax

from scbjax.algorithm import (
    TRACK,
    end_boosting,
    end_proximal,
    move_of,
    step_rates,
    step_threshold,
    three_stages,
)
from scbjax.arguments import check_is, outline, what
from scbjax.composition import (
    Learner,
    LearnerState,
    learner,
)
from scbjax.keys import as_threefry
from scbjax.model import Params, init_params
from scbjax.models import linear_transformer
from scbjax.observables import View
from scbjax.parts import Model
from scbjax.sampling import AnyBatch, Sampler, check_batch
from scbjax.settings import (
    Descent,
    Settings,
    check_settings,
)
from scbjax.sources import scb_batches
from scbjax.staging import stage_rates
from scbjax.task import Task, check_one_task
from scbjax.theory import Rates


class Info(NamedTuple):
    """What a step tells beside the new state.

    Attributes:
        loss: mini-batch loss at the parameters before the step.
        rates: eta_V and eta_A of the step.
        l1: the threshold of the step.
        grads: the raw mini-batch gradient.
    """

    loss: jax.Array
    rates: Rates
    l1: jax.Array
    grads: Params

    def __repr__(self) -> str:
        """Dtypes and shapes, not the arrays."""
        return outline(self)


def check_arguments(key: jax.Array, task: Task, settings: Settings) -> jax.Array:
    """Checks what a trajectory is made of, and gives the key as one of Threefry.

    Raises:
        TypeError: if an argument is something else than it is meant to be.
        ValueError: if it is several, or the settings hold a number that is not allowed.
    """
    check_order(task, settings)
    check_one_task("task", task)
    check_settings(settings)
    return as_threefry(key)


def check_order(task: object, settings: object) -> None:
    """Raises a TypeError where task and settings stand in each other's place."""
    if any(isinstance(*pair) for pair in ((task, Settings), (settings, Task))):
        raise TypeError(
            f"task is {what(task)} and settings is {what(settings)}; "
            "the order of arguments is key, task, settings"
        )


def init(key: jax.Array, task: Task, settings: Settings) -> LearnerState:
    """The state before the first step: ``V = mu 1^T``, ``A = 1 1^T / T``, stage 1.

    Args:
        key: a PRNG key; the initialisation is deterministic and does not use it.
        task: the task.
        settings: the settings.

    Returns:
        The state.

    Raises:
        TypeError: if an argument is something else than it is meant to be.
        ValueError: if it is several, or the settings hold a number that is not allowed.
    """
    key = check_arguments(key, task, settings)
    return learner_of(task, settings).init(key, task, settings)


def step(
    state: LearnerState, batch: AnyBatch, task: Task, settings: Settings
) -> tuple[LearnerState, Info]:
    """One step of the optimiser on one mini-batch; the stage stays what it is.

    Args:
        state: the state.
        batch: the mini-batch.
        task: the task; only mu, the norms K_P and K_Q and the shapes are used.
        settings: the settings.

    Returns:
        The new state, and what the step looked like.

    Raises:
        TypeError: if an argument is something else than it is meant to be.
        ValueError: if it is several, or does not fit the others; for a batch see
            :func:`scbjax.sampling.check_batch`.
    """
    check_is("state", state, LearnerState, "such as init makes")
    check_one_task("task", task)
    check_batch(batch, task)
    check_settings(settings)
    after, info = learner_of(task, settings).step(state, batch, task, settings)
    return after, Info(info.loss, *step_sizes(state, task, settings), info.grads)


def step_sizes(
    state: LearnerState, task: Task, settings: Settings, signal: jax.Array | None = None
) -> tuple[Rates, jax.Array]:
    """eta_V, eta_A and the l1 threshold of the next step, by the stage that the state is in.

    Args:
        state: the state.
        task: the task; only mu, K_P and K_Q are used.
        settings: the settings.
        signal: K_Q, if it is not that of the task.
    """
    stages = three_stages(settings, end_boosting, end_proximal)
    own = stage_rates(stages, state.stage, state.step, task, settings)
    rates = step_rates(own, task, settings, state.params.value.dtype, signal)
    return rates, step_threshold(own, rates.attention, state.params, task, settings)


def next_stage(state: LearnerState, task: Task, settings: Settings) -> LearnerState:
    """Ends stage 1 or 2 if it is over, with what that does to the parameters.

    Ending stage 1: the sign flip (if set and the solution is mirrored), then threshold-and-project.
    Ending stage 2: rounding; the noiseless recursion then has alpha_A = 1. Stage 2 ends for the
    proximal arm only: the arms without l1 have no stage 3. For plain gradients the end of stage 1
    changes the rate and nothing else.

    Raises:
        TypeError: if an argument is something else than it is meant to be.
        ValueError: if it is several, or the settings hold a number that is not allowed.
    """
    check_is("state", state, LearnerState, "such as init makes")
    check_one_task("task", task)
    check_settings(settings)
    # No end of a stage draws anything.
    return learner_of(task, settings).end_stage(jax.random.key(0), task, settings, state)


def advance(
    key: jax.Array,
    task: Task,
    settings: Settings,
    state: LearnerState,
    start: jax.Array | int,
    num_records: int,
) -> tuple[LearnerState, dict[str, jax.Array]]:
    """Runs ``num_records * record_every`` steps with a record at the end of each stretch.

    Args:
        key: the trajectory's data key, the same for all its segments.
        task: the task.
        settings: the settings.
        state: the state after ``start`` steps.
        start: number of steps done. Kept apart from the state so that a ``vmap`` over settings
            leaves it, and with it the mini-batches, unbatched: all learners then share each batch
            and its random bits are drawn once.
        num_records: number of records to take; static.

    Returns:
        The new state, and an array [num_records] for each observable.
    """
    key = check_arguments(key, task, settings)
    own = learner_of(task, settings)
    after, records = own.advance(key, task, settings, state, start, num_records)
    return after, records


def take_record(
    key: jax.Array, task: Task, settings: Settings, state: LearnerState, index: jax.Array
) -> tuple[LearnerState, dict[str, jax.Array]]:
    """One record: the first is that of the start, and all others follow a stretch of steps.

    Args:
        key: the trajectory's data key.
        task: the task.
        settings: the settings.
        state: the state at the record before; for the first one, the start.
        index: the number of the record, from 0.

    Returns:
        The state at the record, and the record by names.
    """
    key = check_arguments(key, task, settings)
    own = learner_of(task, settings)
    after, record = own.take_record(key, task, settings, state, index)
    return after, record


def learner_of(task: Task, settings: Settings) -> Learner:
    """The paper's learner as a composition: see :mod:`scbjax.algorithm`."""
    return learner(
        scb_batches(settings.generator, packed=True),
        _model(settings),
        move_of(task, settings),
        batch_size=settings.batch_size,
        record_every=settings.record_every,
        stages=three_stages(settings, end_boosting, end_proximal),
        record=settings.record,
        track=TRACK,
        view=_view,
        precision=settings.precision,
    )


def _model(descent: Descent) -> Model:
    """The linear transformer, of tasks that are checked."""

    def init(_: jax.Array, task: Task) -> Params:
        return init_params(task, descent.attention_map)

    return linear_transformer(descent.attention_map)._replace(init=init)


def _view(
    key: jax.Array, state: LearnerState, task: Task, settings: Settings, sampler: Sampler | None
) -> View:
    """What observables see of a state, and what decides whether a stage is over."""
    model = linear_transformer(settings.attention_map)
    return View(
        key,
        model.readout(state.params),
        task,
        sampler=sampler,
        batch_loss=state.batch_loss,
        stage=state.stage,
        samples=settings.samples_before + state.step * settings.batch_size,
        flipped=state.tracked.flipped,
        population=state.tracked.population,
        state=state,
        values=settings,
        loss=lambda batch: model.loss(state.params, batch),
        **view_options(settings),
    )


def stored(state: LearnerState, task: Task, settings: Settings) -> LearnerState:
    """The state as loops over steps carry it, and, applied to that, the state itself.

    For large vocabularies A is carried as its transpose, column by column in memory, since a step
    reads and writes the columns of its queries. In a compiled loop the transposes around a step
    cancel.
    """
    return state._replace(params=move_of(task, settings).to_carry(state.params))


def observe_state(
    key: jax.Array,
    task: Task,
    settings: Settings,
    state: LearnerState,
    start: jax.Array | int,
    sampler: Sampler | None = None,
) -> dict[str, jax.Array]:
    """The record of a state: a scalar for each observable that the settings name.

    Args:
        key: the trajectory's data key.
        task: the task.
        settings: the settings.
        state: the state after ``start`` steps.
        start: number of steps done.
        sampler: that of the task, where it has been made already.

    Returns:
        Scalars by name.
    """
    key = check_arguments(key, task, settings)
    own = learner_of(task, settings)
    return own.observe(key, task, settings, state, start, prepared=sampler)


def view_options(settings: Settings) -> dict[str, Any]:
    """What the settings say of how a state is looked at."""
    return {
        "attention_map": settings.attention_map,
        "rounding_share": settings.rounding_level,
        "refit_samples": settings.refit_samples,
        "refit_support": settings.refit_support,
        "noise_samples": settings.noise_samples,
    }
