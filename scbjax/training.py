"""One learning trajectory as a pure function of (key, task, settings).

The three stages of Ren, Wang & Lee (2024), section 3: boost the signal without l1, take proximal
steps, round the attention and train V alone. The stage is part of the state and changes by
arithmetic, not by Python branches, so that every trajectory under ``vmap`` goes through its stages
at its own pace. Whether a stage is over is decided when a record is taken, every ``record_every``
steps.

Randomness: the mini-batch of step t depends on the key and on t alone, so that a trajectory can be
cut into segments anywhere between records and continued with bitwise the same result.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from scbjax.algorithm import (
    TRACK,
    Tracked,
    end_boosting,
    end_proximal,
    move_of,
    per_signal,
    step_rates,
    step_threshold,
    three_stages,
    transformation,
)
from scbjax.arguments import check_is, outline, what
from scbjax.composition import (
    FIRST_STEP,
    PRETRAINING,
    REFITS,
    TASK,
    Learner,
    LearnerState,
    learner,
    view_of,
)
from scbjax.keys import as_threefry
from scbjax.model import Params, init_params
from scbjax.models import linear_transformer
from scbjax.observables import DEFAULT_RECORD, Record, View
from scbjax.parts import Model, Source, Stage, with_values
from scbjax.sampling import POSITION_MAJOR_LIMIT, AnyBatch, Sampler, check_batch
from scbjax.settings import (
    NEVER as NEVER,
    PLAIN_OPTIMIZERS as PLAIN_OPTIMIZERS,
    STATIC_FIELDS as STATIC_FIELDS,
    TRACED_FIELDS as TRACED_FIELDS,
    Descent,
    L1Scaling as L1Scaling,
    Optimizer as Optimizer,
    Precision as Precision,
    Recording,
    Settings as Settings,
    Start as Start,
    SwitchOn as SwitchOn,
    check_settings,
)
from scbjax.singly import one_by_one
from scbjax.sources import scb_batches
from scbjax.stages import refit_value, round_attention, rounding_level
from scbjax.staging import stage_rates
from scbjax.task import Task, check_one_task, transition_signal
from scbjax.theory import Rates, signals
from scbjax.trajectories import Trajectory as Trajectory
from scbjax.transfer import first_step, keep_large, mix_value, on_tangent


class State(NamedTuple):
    """What a trajectory carries from step to step.

    Attributes:
        params: V [N, N] and A [T, N], or the parameter of another attention map.
        opt_state: the optimiser's state.
        stage: 1, 2 or 3, int32.
        step: steps done, int32.
        flipped: whether the sign flip fired, boolean.
        population: (alpha_V, alpha_A) of the noiseless preconditioned recursion with the same
            rates; that of A times the ``step_scale`` of the attention map.
        batch_loss: loss of the last mini-batch, NaN before the first.
    """

    params: Params
    opt_state: optax.OptState
    stage: jax.Array
    step: jax.Array
    flipped: jax.Array
    population: tuple[jax.Array, jax.Array]
    batch_loss: jax.Array

    def __repr__(self) -> str:
        """Dtypes and shapes, not the arrays."""
        return outline(self)


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
    _check_order(task, settings)
    check_one_task("task", task)
    check_settings(settings)
    return as_threefry(key)


def _check_order(task: object, settings: object) -> None:
    if any(isinstance(*pair) for pair in ((task, Settings), (settings, Task))):
        raise TypeError(
            f"task is {what(task)} and settings is {what(settings)}; "
            "the order of arguments is key, task, settings"
        )


def _check_source(source: Task, task: Task) -> None:
    check_one_task("source", source)
    if source.pattern.shape != task.pattern.shape:
        raise ValueError(
            f"source has a pattern {list(source.pattern.shape)}; "
            f"it must be as large as that of the task, {list(task.pattern.shape)}"
        )


def init(key: jax.Array, task: Task, settings: Settings) -> State:
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
    return _outer(_learner(task, settings).init(key, task, settings))


def start_from(key: jax.Array, source: Task, task: Task, settings: Settings, state: State) -> State:
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
    check_is("state", state, State, "such as init makes")
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
        population=(alpha, rate * transition_signal(task) * alpha),
    )


def step(state: State, batch: AnyBatch, task: Task, settings: Settings) -> tuple[State, Info]:
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
    check_is("state", state, State, "such as init makes")
    check_one_task("task", task)
    check_batch(batch, task)
    check_settings(settings)
    after, info = _learner(task, settings).step(_inner(state), batch, task, settings)
    return _outer(after), Info(info.loss, *step_sizes(state, task, settings), info.grads)


def step_sizes(
    state: State, task: Task, settings: Settings, signal: jax.Array | None = None
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


def next_stage(state: State, task: Task, settings: Settings) -> State:
    """Ends stage 1 or 2 if it is over, with what that does to the parameters.

    Ending stage 1: the sign flip (if set and the solution is mirrored), then threshold-and-project.
    Ending stage 2: rounding; the noiseless recursion then has alpha_A = 1. Stage 2 ends for the
    proximal arm only: the arms without l1 have no stage 3. For plain gradients the end of stage 1
    changes the rate and nothing else.

    Raises:
        TypeError: if an argument is something else than it is meant to be.
        ValueError: if it is several, or the settings hold a number that is not allowed.
    """
    check_is("state", state, State, "such as init makes")
    check_one_task("task", task)
    check_settings(settings)
    # No end of a stage draws anything.
    own = _learner(task, settings).end_stage(jax.random.key(0), task, settings, _inner(state))
    return _outer(own)


def advance(
    key: jax.Array,
    task: Task,
    settings: Settings,
    state: State,
    start: jax.Array | int,
    num_records: int,
) -> tuple[State, dict[str, jax.Array]]:
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
    own = _learner(task, settings)
    after, records = own.advance(key, task, settings, _inner(state), start, num_records)
    return _outer(after), records


def take_record(
    key: jax.Array, task: Task, settings: Settings, state: State, index: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
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
    own = _learner(task, settings)
    after, record = own.take_record(key, task, settings, _inner(state), index)
    return _outer(after), record


def _learner(task: Task, settings: Settings) -> Learner:
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
        state=_outer(state),
        values=settings,
        loss=lambda batch: model.loss(state.params, batch),
        **_view_options(settings),
    )


def _inner(state: State) -> LearnerState:
    """A state as the composition has it."""
    tracked = Tracked(state.flipped, state.population)
    parts = (state.params, state.opt_state, state.stage, state.step, state.batch_loss)
    return LearnerState(*parts, tracked)


def _outer(state: LearnerState) -> State:
    """The inverse of :func:`_inner`."""
    return State(
        params=state.params,
        opt_state=state.opt_state,
        stage=state.stage,
        step=state.step,
        flipped=state.tracked.flipped,
        population=state.tracked.population,
        batch_loss=state.batch_loss,
    )


def stored(state: State, task: Task, settings: Settings) -> State:
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
    state: State,
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
    own = _learner(task, settings)
    return own.observe(key, task, settings, _inner(state), start, prepared=sampler)


def _view_options(settings: Settings) -> dict[str, Any]:
    """What the settings say of how a state is looked at."""
    return {
        "attention_map": settings.attention_map,
        "rounding_share": settings.rounding_level,
        "refit_samples": settings.refit_samples,
        "refit_support": settings.refit_support,
        "noise_samples": settings.noise_samples,
    }


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
    rates, l1 and the other numbers may be traced and mapped. On a CPU, ``vmap`` takes
    trajectories with N > 32 one after the other, which is twice as fast; reverse-mode derivatives
    are then taken inside of it, ``vmap(grad(...))``. Keys of any kind are turned into those of
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
        check_is("state", state, State, "that of a trajectory with the same settings")
    elif settings.start != "uniform" and source is None:
        raise ValueError(f"start is {settings.start!r}; it needs a source, a related task")
    own = _train if task.num_tokens <= POSITION_MAJOR_LIMIT else _train_singly
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
    _check_order(task, settings)
    if record is not None or steps is not None:
        check_is("settings", settings, Settings)
    if record is not None:
        settings = dataclasses.replace(settings, record=record)
    return settings if steps is None else dataclasses.replace(settings, steps=steps)


def _train(
    key: jax.Array, task: Task, settings: Settings, source: Task | None, state: State | None
) -> Trajectory:
    """:func:`train`, with everything checked."""
    if state is None:
        state = init(key, task, settings)
        if source is not None and settings.start != "uniform":
            state = start_from(key, source, task, settings, state)
        start: jax.Array | int = 0
    else:
        start = state.step
    own = _learner(task, settings)
    trajectory: Trajectory = own.train(
        key, task, settings, steps=settings.steps, state=_inner(state), start=start
    )
    return trajectory._replace(state=_outer(trajectory.state))


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
    elif hasattr(optimizer, "update") or not callable(optimizer):
        making = optimizer
    else:
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
        **_view_options(settings),
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
