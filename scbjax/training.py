"""One learning trajectory as a pure function of (key, task, settings): :func:`train`.

The paper's learner (:mod:`scbjax.paper`), from any of its starts, or one with an optimiser, a model
or a source of one's own, which has a single stage.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from scbjax.algorithm import (
    transformation,
)
from scbjax.arguments import check_is, check_like
from scbjax.composition import (
    TASK,
    Learner,
    LearnerState,
    learner,
    view_of,
)
from scbjax.costs import CACHE_BYTES
from scbjax.footprint import step_bytes
from scbjax.keys import as_threefry
from scbjax.model import Params
from scbjax.models import linear_transformer
from scbjax.moves import check_optimizer, is_transformation
from scbjax.observables import View
from scbjax.paper import (
    check_arguments,
    check_order,
    init,
    learner_of,
    view_options,
)
from scbjax.parts import Model, Source, Stage, with_values
from scbjax.recorded import DEFAULT_RECORD, Record
from scbjax.sampling import POSITION_MAJOR_LIMIT
from scbjax.settings import (
    Descent,
    Recording,
    Settings,
    check_settings,
)
from scbjax.singly import few_at_once, one_by_one
from scbjax.sources import scb_batches
from scbjax.starts import start_from
from scbjax.task import Task, check_one_task
from scbjax.theory import Rates
from scbjax.trajectories import Trajectory

# Where more trajectories than this fit into the cache of a core, ``vmap`` is as fast with all.
_MOST_AT_ONCE = 2


def train(
    key: jax.Array,
    task: Task | Source,
    settings: Settings,
    source: Task | None = None,
    *,
    optimizer: optax.GradientTransformation | Callable[[Any, Settings], Any] | None = None,
    model: Model | None = None,
    record: Record | None = None,
    state: Any = None,  # noqa: ANN401 - that of a trajectory
    steps: int | None = None,
) -> Trajectory:
    """Trains the linear transformer on a task, from the start that the settings name.

    Pure; wrap it in ``jax.jit`` and ``jax.vmap`` as you like. ``settings`` is a pytree, so that
    rates, l1 and the other numbers may be traced and mapped. On a CPU, ``vmap`` takes trajectories
    with N > 32 one after the other, and one or two at a time those of which no more fit into the
    cache of a core, such as at N = 10, T = 5000 and B = 64; reverse-mode derivatives are then taken
    inside of it, ``vmap(grad(...))``. Keys of any kind are turned into those of
    Threefry (:func:`scbjax.keys.as_threefry`), so that a trajectory depends on its own key alone
    and not on those that it is mapped together with. Steps that are too large make the parameters
    infinite and then NaN: nothing stops, and ``diverged_at`` of the trajectory says when.

    With an optimiser, a model or a source of one's own there is one stage, which does not end: the
    mini-batches are the same, and of the settings hold what is said of those, of records and of the
    first rate. :func:`scbjax.learner` makes learners with stages of one's own.

    Args:
        key: a PRNG key for the mini-batches.
        task: the task, or a source that draws what is to be learned, such as
            :func:`scbjax.windows`.
        settings: the settings.
        source: for a transfer, the related task, as from :func:`scbjax.task.related_task`.
        optimizer: a transformation of optax, or a function ``(task, settings)`` that makes one, in
            the place of the paper's. ``jax.jit`` takes no functions as arguments: put it around a
            function of the key that calls this one.
        model: what is trained in the place of the linear transformer; it needs an optimizer.
        record: what to record, in the place of ``settings.record``.
        state: the state of a trajectory with the same key, task and settings, to go on from: what
            comes out is bitwise what one long trajectory gives.
        steps: how many steps to take, in the place of ``settings.steps``.

    Returns:
        The trajectory, with ``steps / record_every + 1`` records.

    Raises:
        TypeError: if an argument is something else than it is meant to be.
        ValueError: for a transfer without a source, for several keys, tasks or numbers in the place
            of one, and for a number that is not allowed.

    Example:
        >>> from scbjax.task import random_task
        >>> task = random_task(jax.random.key(0), num_tokens=3, context_length=50, sparsity=2)
        >>> record = ("value_distance", "stage")
        >>> settings = Settings(batch_size=32, steps=40, record_every=20, record=record)
        >>> trajectory = jax.jit(train)(jax.random.key(1), task, settings)
        >>> trajectory.steps.tolist(), trajectory.records["value_distance"].shape
        ([0, 20, 40], (3,))
        >>> more = train(jax.random.key(1), task, settings, state=trajectory.state, steps=20)
        >>> more.steps.tolist()
        [40, 60]
    """
    settings = changed(settings, task, record, steps)
    if optimizer is not None or model is not None or isinstance(task, Source):
        return _train_own(key, task, settings, optimizer, model, state)
    key = check_arguments(key, task, settings)
    if state is not None:
        check_is("state", state, LearnerState, "that of a trajectory with the same settings")
        wanted = jax.eval_shape(init, key, task, settings)
        check_like("state", state, wanted, "this task and these settings")
    elif settings.start != "uniform" and source is None:
        raise ValueError(f"start is {settings.start!r}; it needs a source, a related task")
    own = _mapped(task, settings)
    trajectory: Trajectory = own(key, task, settings, source, state)
    return trajectory


def changed(
    settings: Settings, task: Task | Source, record: Record | None, steps: int | None
) -> Settings:
    """The settings with another record and number of steps, where they are given.

    Args:
        settings: the settings.
        task: the task, which may have been given in their place.
        record: what to record, or None.
        steps: how many steps to take, or None.
    """
    check_order(task, settings)
    if record is not None or steps is not None:
        check_is("settings", settings, Settings)
    if record is not None:
        settings = dataclasses.replace(settings, record=record)
    return settings if steps is None else dataclasses.replace(settings, steps=steps)


def _train(
    key: jax.Array, task: Task, settings: Settings, source: Task | None, state: LearnerState | None
) -> Trajectory:
    """:func:`train`, with everything checked."""
    if state is None:
        state = init(key, task, settings)
        if source is not None and settings.start != "uniform":
            state = start_from(key, source, task, settings, state)
        start: jax.Array | int = 0
    else:
        start = state.step
    own = learner_of(task, settings)
    trajectory: Trajectory = own.train(
        key, task, settings, steps=settings.steps, state=state, start=start
    )
    return trajectory


def _mapped(task: Task, settings: Settings) -> Callable[..., Trajectory]:
    """:func:`_train`, as ``vmap`` is to map it on a CPU."""
    if task.num_tokens > POSITION_MAJOR_LIMIT:
        return _train_singly
    each = step_bytes(
        task.num_tokens,
        task.context_length,
        settings.batch_size,
        float_bytes=task.stationary.dtype.itemsize,
    )
    fitting = CACHE_BYTES // each
    return _train if fitting > _MOST_AT_ONCE else few_at_once(_train, max(1, fitting))


_train_singly = one_by_one(_train)


def _train_own(
    key: jax.Array,
    task: Task | Source,
    settings: Settings,
    optimizer: Any,  # noqa: ANN401 - see `train`
    model: Model | None,
    state: Any,  # noqa: ANN401 - see `train`
) -> Trajectory:
    """:func:`train` with parts of one's own."""
    key = as_threefry(key)
    check_settings(settings)
    if settings.start != "uniform":
        raise ValueError(
            f"start is {settings.start!r}; with an optimizer, a model or a source of one's own it "
            "must be uniform"
        )
    if model is not None and optimizer is None:
        raise ValueError("optimizer is None; with a model of one's own it must be given")
    if model is not None:
        check_is("model", model, Model, "such as linear_transformer makes")
    if isinstance(task, Source):
        batches, task = task, with_values(task.draw, jax.random.fold_in(key, TASK), settings)
        if optimizer is None and isinstance(task, Task):
            return train(key, task, settings, state=state)
    else:
        check_one_task("task", task)
        batches = scb_batches(settings.generator, packed=model is None)
    if state is not None:
        check_is("state", state, LearnerState, "that of a trajectory with the same parts")
    own = _own_learner(batches, task, settings, optimizer, model)
    return own.train(key, task, settings, steps=settings.steps, state=state)


def _own_learner(
    batches: Source,
    task: Any,  # noqa: ANN401 - whatever the source draws
    settings: Settings,
    optimizer: Any,  # noqa: ANN401 - see `train`
    model: Model | None,
) -> Learner:
    """One stage, with an optimiser or a model of one's own."""
    model = linear_transformer(settings.attention_map) if model is None else model
    if optimizer is None:
        _check_unscaled(settings)
        making: Any = _single_arm
    else:
        check_optimizer(optimizer, "(task, settings)")
        making = optimizer
        if not is_transformation(optimizer):
            making = lambda task, settings, _: optimizer(task, settings)  # noqa: E731

    return learner(
        batches,
        model,
        making,
        batch_size=settings.batch_size,
        record_every=settings.record_every,
        stages=(Stage("endless", rates=lambda _, settings: settings.learning_rate_1),),
        record=_own_record(settings, task, model),
        view=partial(_own_view, model),
        precision=settings.precision,
    )


def _own_view(
    model: Model,
    key: jax.Array,
    state: LearnerState,
    task: Any,  # noqa: ANN401 - whatever the source draws
    settings: Settings,
    prepared: Any,  # noqa: ANN401 - whatever the source makes of it
) -> View:
    return view_of(
        *(model, settings.batch_size, key, state, task, settings, prepared),
        # What the paper's algorithm does beside its steps does not happen.
        flipped=jnp.zeros((), bool),
        population=(jnp.full_like(state.batch_loss, jnp.nan),) * 2,
        **view_options(settings),
    )


def _check_unscaled(descent: Descent) -> None:
    if descent.scale_rates:
        raise ValueError(
            "scale_rates is True; it must be False for a source of one's own, which has no signals "
            "K_P and K_Q"
        )
    if descent.l1_scaling == "signal" and descent.optimizer == "proximal":
        raise ValueError(
            "l1_scaling is 'signal'; it must be direct or rate for a source of one's own, which "
            "has no signals"
        )


def _single_arm(task: Any, descent: Descent, rate: jax.Array) -> Any:  # noqa: ANN401
    """The arm that the settings name, at one rate throughout."""
    attention = rate * jnp.asarray(descent.attention_rate_ratio)
    l1 = jnp.asarray(descent.l1)
    l1 = l1 * attention if descent.l1_scaling == "rate" else l1
    return transformation(task, descent, Rates(rate, attention), l1)


# What can be recorded of any learner, by names of ours.
_OF_ANY = ("batch_loss", "stage", "samples")


def _own_record(recording: Recording, task: Any, model: Model) -> Record:  # noqa: ANN401
    """What is recorded of a learner that may have no V and A, or no P and Q to compare them to."""
    key = jax.random.key(0)

    def first_readout(task: Any) -> Any:  # noqa: ANN401
        params = with_values(model.init, key, task, recording)
        return with_values(model.readout, params, recording)

    params = jax.eval_shape(first_readout, task)
    if isinstance(task, Task) and isinstance(params, Params):
        return recording.record
    if recording.record == DEFAULT_RECORD:
        return _OF_ANY
    lacking = "P and Q" if isinstance(params, Params) else "V and A"
    for entry in recording.record:
        if isinstance(entry, str) and entry not in _OF_ANY:
            raise ValueError(
                f"record has {entry!r}; where there are no {lacking} it must be one of "
                f"{', '.join(_OF_ANY)}, or a function of a view"
            )
    return recording.record
