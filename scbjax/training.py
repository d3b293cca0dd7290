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
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from scbjax import optim
from scbjax.arguments import check_is, is_numeric, outline, what
from scbjax.keys import as_threefry
from scbjax.losses import unchecked_gradients, unchecked_loss
from scbjax.model import ATTENTION_MAPS, Params, init_params, map_attention, sum_by_query
from scbjax.observe import View, observe
from scbjax.sampling import (
    POSITION_MAJOR_LIMIT,
    AnyBatch,
    Batch,
    Sampler,
    check_batch,
    draw_step,
    fold_in,
    make_sampler,
    make_seed,
)
from scbjax.settings import (
    NEVER as NEVER,
    PLAIN_OPTIMIZERS as PLAIN_OPTIMIZERS,
    STATIC_FIELDS as STATIC_FIELDS,
    TRACED_FIELDS as TRACED_FIELDS,
    L1Scaling as L1Scaling,
    Optimizer as Optimizer,
    Precision as Precision,
    Settings as Settings,
    Start as Start,
    SwitchOn as SwitchOn,
    check_settings,
)
from scbjax.singly import one_by_one
from scbjax.stages import (
    estimated_signals,
    is_mirrored,
    mirror,
    refit_value,
    round_attention,
    rounding_level,
    threshold_and_project,
    true_signals,
)
from scbjax.task import Task, check_one_task, pattern_signal, transition_signal
from scbjax.theory import Rates, population_step, signals
from scbjax.transfer import first_step, keep_large, mix_value, on_tangent

# Streams of a trajectory's key: mini-batches, fresh samples for the refit of V in records, the
# first step of a transfer, and pretraining.
_BATCHES, _REFITS, _FIRST_STEP, _PRETRAINING = range(4)
_NAMES_SHOWN = 4  # of what a trajectory has recorded
# The name of a record that no observable can have.
_FINITE = ""

NOT_DIVERGED = -1
"""In the place of the step at which a trajectory diverged, where it did not."""


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


class Trajectory(NamedTuple):
    """A finished trajectory.

    Attributes:
        params: the final V and A, or the parameter of another attention map
            (:func:`scbjax.model.map_attention` makes A of it).
        records: an array [records] for each observable; the first entry is the initial state.
        steps: the step numbers of the records, int32 [records].
        diverged_at: step of the first record at which the parameters were not finite, -1 if they
            were at all of them; int32. What is recorded from then on means nothing.
    """

    params: Params
    records: dict[str, jax.Array]
    steps: jax.Array
    diverged_at: jax.Array

    def __repr__(self) -> str:
        """How long it is and what is recorded, not the arrays."""
        names = list(self.records)
        if len(names) > _NAMES_SHOWN:
            names = [*names[:_NAMES_SHOWN], f"{len(names) - _NAMES_SHOWN} more"]
        steps = outline(self.steps)
        if is_numeric(self.steps) and self.steps.ndim == 1:
            steps = f"0 to {self.steps[-1]} in {self.steps.size} records"
        return (
            f"Trajectory(params={outline(self.params)}, records={{{', '.join(names)}}}, "
            f"steps={steps}, diverged_at={outline(self.diverged_at)})"
        )


def check_arguments(key: jax.Array, task: Task, settings: Settings) -> jax.Array:
    """Checks what a trajectory is made of, and gives the key as one of Threefry.

    Raises:
        TypeError: if an argument is something else than it is meant to be.
        ValueError: if it is several, or the settings hold a number that is not allowed.
    """
    if any(isinstance(*pair) for pair in ((task, Settings), (settings, Task))):
        raise TypeError(
            f"task is {what(task)} and settings is {what(settings)}; "
            "the order of arguments is key, task, settings"
        )
    check_one_task("task", task)
    check_settings(settings)
    return as_threefry(key)


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
    check_arguments(key, task, settings)
    params = init_params(task, settings.attention_map)
    zero_rates = Rates(jnp.zeros(()), jnp.zeros(()))
    if _goes_by_columns(task, settings):
        opt_state = _value_optimizer(task, settings, zero_rates).init(params.value)
    else:
        opt_state = _optimizer(task, settings, zero_rates, jnp.zeros(())).init(params)
    zero = jnp.zeros((), params.value.dtype)
    return State(
        params=params,
        opt_state=opt_state,
        stage=jnp.ones((), jnp.int32),
        step=jnp.zeros((), jnp.int32),
        flipped=jnp.zeros((), bool),
        population=(zero, zero),
        batch_loss=jnp.full((), jnp.nan, params.value.dtype),
    )


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
        known = _pretrained_value(jax.random.fold_in(key, _PRETRAINING), source, settings)
    dtype = state.params.value.dtype
    theta = jnp.asarray(settings.theta, dtype)
    rate = jnp.asarray(settings.first_rate, dtype)
    rate = _per_signal(rate, transition_signal(task)) if settings.scale_rates else rate
    with jax.default_matmul_precision(settings.precision):
        params = first_step(
            jax.random.fold_in(key, _FIRST_STEP),
            state.params._replace(value=mix_value(known, task.stationary, theta)),
            task,
            rate,
            num_samples=settings.first_samples,
            batch_size=settings.batch_size,
            generator=settings.generator,
        )
    level = jnp.asarray(settings.first_threshold, dtype) * theta / task.num_tokens
    level = _per_signal(rounding_level(task, level), transition_signal(task))
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
    return _step(state, batch, task, settings)


def _step(state: State, batch: AnyBatch, task: Task, settings: Settings) -> tuple[State, Info]:
    """:func:`step`, with everything checked."""
    rates, l1 = step_sizes(state, task, settings)
    move = _move_columns if _goes_by_columns(task, settings) else _move
    # Part of what JAX knows a compiled program by, and reset at once: no state that outlives this.
    with jax.default_matmul_precision(settings.precision):
        (value, grads), params, opt_state = move(state, batch, task, settings, rates, l1)
    state = state._replace(
        params=params,
        opt_state=opt_state,
        step=state.step + 1,
        population=population_step(
            *state.population,
            rates._replace(attention=rates.attention * _step_scale(task, settings)),
            transition_signal=transition_signal(task),
            pattern_signal=pattern_signal(task),
            context_length=task.context_length,
        ),
        batch_loss=value,
    )
    return state, Info(value, rates, l1, grads)


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
    signal = pattern_signal(task) if signal is None else signal
    dtype = state.params.value.dtype
    learning_rates = (settings.learning_rate_1, settings.learning_rate_2, settings.learning_rate_3)
    rate = jnp.stack([jnp.asarray(r, dtype) for r in learning_rates])[state.stage - 1]
    value = _per_signal(rate, signal) if settings.scale_rates else rate
    attention = rate * jnp.asarray(settings.attention_rate_ratio, dtype)
    attention = (
        _per_signal(attention, transition_signal(task)) if settings.scale_rates else attention
    )
    attention = jnp.where(state.stage == 3, 0.0, attention)
    l1 = jnp.asarray(settings.l1, dtype)
    if settings.l1_scaling == "rate":
        l1 = l1 * attention
    elif settings.l1_scaling == "signal":
        l1 = l1 * rate * estimated_signals(state.params, task)[0]
    return Rates(value, attention), jnp.where(state.stage == 2, l1, 0.0)


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
    params = map_attention(state.params, settings.attention_map)
    strengths = _signals(params, task, settings)
    ends = (partial(end, task=task, settings=settings) for end in (_end_boosting, _end_proximal))
    return end_stage(state, settings, strengths, *ends)


def end_stage(
    state: State,
    settings: Settings,
    strengths: tuple[jax.Array, jax.Array],
    end_boosting: Callable[[State], State],
    end_proximal: Callable[[State], State],
) -> State:
    """Ends stage 1 or 2 if it is over, given what each end does; see :func:`next_stage`.

    Args:
        state: the state.
        settings: the settings.
        strengths: the strengths of both signals, scalars.
        end_boosting: what the end of stage 1 does to the state, apart from its stage.
        end_proximal: the same for stage 2.
    """
    over = stage_is_over(state, settings, *strengths)
    if settings.optimizer != "proximal":
        over = over & (state.stage == 1)
    ended = state._replace(stage=state.stage + over.astype(jnp.int32))
    if settings.optimizer in PLAIN_OPTIMIZERS:
        return ended
    ends = {1: end_boosting, 2: end_proximal}
    if settings.optimizer != "proximal":
        del ends[2]
    for stage, end in ends.items():
        # A branch for a single trajectory, to which the ends of stages cost nothing until they
        # come; under vmap both sides are computed.
        ended = jax.lax.cond(over & (state.stage == stage), end, lambda state: state, ended)
    return ended


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
    loop = _loop(key, task, settings)
    state, records = in_stretches(
        loop, stored(state, task, settings), start, settings.record_every, num_records
    )
    return stored(state, task, settings), records


def take_record(
    key: jax.Array, task: Task, settings: Settings, state: State, index: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """:func:`record_at`, given the key of the trajectory's data, its task and its settings."""
    loop = _loop(key, task, settings)
    state, record = record_at(loop, stored(state, task, settings), settings, index)
    return stored(state, task, settings), record


class Loop(NamedTuple):
    """What a trajectory is made of; see :func:`in_stretches`.

    Attributes:
        one_step: the next state, of a state and the number of the step.
        end_stretch: what is done to the state before a record is taken.
        record: the record of a state, of it and the number of steps done.
    """

    one_step: Callable[[State, jax.Array], State]
    end_stretch: Callable[[State], State]
    record: Callable[[State, jax.Array], dict[str, jax.Array]]


def _loop(key: jax.Array, task: Task, settings: Settings) -> Loop:
    """The parts of a trajectory, on states as they are stored."""
    sampler = make_sampler(task)
    seed = make_seed(jax.random.fold_in(key, _BATCHES), settings.generator)

    def one_step(state: State, index: jax.Array) -> State:
        batch = draw_step(fold_in(seed, index), sampler, settings.batch_size)
        state = _step(stored(state, task, settings), batch, task, settings)[0]
        return stored(state, task, settings)

    def end_stretch(state: State) -> State:
        return stored(next_stage(stored(state, task, settings), task, settings), task, settings)

    def record(state: State, done: jax.Array) -> dict[str, jax.Array]:
        return observe_state(key, task, settings, stored(state, task, settings), done, sampler)

    return Loop(one_step, end_stretch, record)


def in_stretches(
    loop: Loop,
    state: State,
    start: jax.Array | int,
    record_every: int,
    num_records: int,
    *,
    initial: bool = False,
) -> tuple[State, dict[str, jax.Array]]:
    """Stretches of steps, each ended by a record.

    Args:
        loop: what is done.
        state: the state after ``start`` steps.
        start: number of steps done.
        record_every: steps of a stretch; static.
        num_records: number of stretches; static.
        initial: whether the state itself is recorded first. In the same loop as the other records:
            they take most of the time that compilation takes, and what is recorded of a start that
            the compiler knows would be worked out by it.

    Returns:
        The new state, and the records in a row.
    """
    moves = jnp.arange(num_records + 1) > 0 if initial else None
    (state, _), records = jax.lax.scan(
        lambda carry, moves: _stretch(loop, carry, record_every, moves),
        (state, jnp.asarray(start, jnp.int32)),
        moves,
        length=num_records + initial,
    )
    return state, records


def record_at(
    loop: Loop, state: State, settings: Settings, index: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """One record: the first is that of the start, and all others follow a stretch of steps.

    Args:
        loop: what is done.
        state: the state at the record before; for the first one, the start.
        settings: the settings.
        index: the number of the record, from 0.

    Returns:
        The state at the record, and scalars by name.
    """
    every = settings.record_every
    carry = (state, jnp.maximum(index - 1, 0) * every)
    (state, _), record = _stretch(loop, carry, every, index > 0)
    return state, record


def _stretch(
    loop: Loop, carry: tuple[State, jax.Array], record_every: int, moves: jax.Array | None
) -> tuple[tuple[State, jax.Array], dict[str, jax.Array]]:
    """Steps from a state and the number of steps done, and the record of where they lead.

    Unless ``moves`` says that none are taken; None is for always.
    """

    # The number of the step is counted along, not read off a list: that would grow with the steps.
    def count_step(carry: tuple[State, jax.Array], _: None) -> tuple[tuple[State, jax.Array], None]:
        state, index = carry
        return (loop.one_step(state, index), index + 1), None

    def move(carry: tuple[State, jax.Array]) -> tuple[State, jax.Array]:
        (state, done), _ = jax.lax.scan(count_step, carry, None, length=record_every)
        return loop.end_stretch(state), done

    carry = move(carry) if moves is None else jax.lax.cond(moves, move, lambda c: c, carry)
    return carry, loop.record(*carry)


def stored(state: State, task: Task, settings: Settings) -> State:
    """The state as loops over steps carry it, and, applied to that, the state itself.

    For large vocabularies A is carried as its transpose, column by column in memory, since a step
    reads and writes the columns of its queries. In a compiled loop the transposes around a step
    cancel.
    """
    if not _goes_by_columns(task, settings):
        return state
    return state._replace(params=state.params._replace(attention=state.params.attention.T))


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
    view = View(
        jax.random.fold_in(jax.random.fold_in(key, _REFITS), start),
        map_attention(state.params, settings.attention_map),
        task,
        attention_map=settings.attention_map,
        batch_loss=state.batch_loss,
        stage=state.stage,
        samples=settings.samples_before + state.step * settings.batch_size,
        flipped=state.flipped,
        population=state.population,
        rounding_share=settings.rounding_level,
        refit_samples=settings.refit_samples,
        refit_support=settings.refit_support,
        noise_samples=settings.noise_samples,
        sampler=sampler,
    )
    return observe(view, settings.record)


def train(key: jax.Array, task: Task, settings: Settings, source: Task | None = None) -> Trajectory:
    """Trains the linear transformer on a task, from the start that the settings name.

    Pure; wrap it in ``jax.jit`` and ``jax.vmap`` as you like. ``settings`` is a pytree, so that
    rates, l1 and the other numbers may be traced and mapped. On a CPU, ``vmap`` takes
    trajectories with N > 32 one after the other, which is twice as fast; reverse-mode derivatives
    are then taken inside of it, ``vmap(grad(...))``. Keys of any kind are turned into those of
    Threefry (:func:`scbjax.keys.as_threefry`), so that a trajectory depends on its own key alone
    and not on those that it is mapped together with. Steps that are too large make the parameters
    infinite and then NaN: nothing stops, and ``diverged_at`` of the trajectory says when.

    Args:
        key: a PRNG key for the mini-batches.
        task: the task.
        settings: the settings.
        source: for a transfer, the related task, as from :func:`scbjax.task.related_task`.

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
    """
    key = check_arguments(key, task, settings)
    if settings.start != "uniform" and source is None:
        raise ValueError(f"start is {settings.start!r}; it needs a source, a related task")
    own = _train if task.num_tokens <= POSITION_MAJOR_LIMIT else _train_singly
    trajectory: Trajectory = own(key, task, settings, source)
    return trajectory


def _train(key: jax.Array, task: Task, settings: Settings, source: Task | None) -> Trajectory:
    """:func:`train`, with everything checked."""
    state = init(key, task, settings)
    if source is not None and settings.start != "uniform":
        state = start_from(key, source, task, settings, state)
    loop = _loop(key, task, settings)
    state, records = run(loop, stored(state, task, settings), settings)
    return as_trajectory(stored(state, task, settings), records, settings)


_train_singly = one_by_one(_train)


def run(loop: Loop, state: State, settings: Settings) -> tuple[State, dict[str, jax.Array]]:
    """All stretches of a trajectory, with the record of the initial state in front.

    Beside what the loop records, the records say whether the parameters were finite.
    """

    def record(state: State, done: jax.Array) -> dict[str, jax.Array]:
        finite = [jnp.all(jnp.isfinite(array)) for array in state.params]
        return {**loop.record(state, done), _FINITE: jnp.all(jnp.stack(finite))}

    every = settings.record_every
    return in_stretches(
        loop._replace(record=record), state, 0, every, settings.steps // every, initial=True
    )


def as_trajectory(state: State, records: dict[str, jax.Array], settings: Settings) -> Trajectory:
    """The trajectory that ends in a state, given the records of :func:`run`."""
    steps = jnp.arange(settings.steps // settings.record_every + 1, dtype=jnp.int32)
    steps = steps * settings.record_every
    finite = records[_FINITE]
    records = {name: record for name, record in records.items() if name != _FINITE}
    diverged_at = jnp.where(jnp.all(finite), NOT_DIVERGED, steps[jnp.argmin(finite)])
    return Trajectory(state.params, records, steps, diverged_at)


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
        jax.random.fold_in(key, _REFITS),
        round_attention(state.params.attention, rounding_level(source, share)),
        source,
        num_samples=settings.refit_samples,
        support=settings.refit_support,
    )
    return on_tangent(value, source.stationary)


def _goes_by_columns(task: Task, settings: Settings) -> bool:
    """Whether a step adds the gradient of each sample to the column of A that it asks for."""
    return task.num_tokens > POSITION_MAJOR_LIMIT and settings.optimizer not in PLAIN_OPTIMIZERS


def _move(
    state: State,
    batch: AnyBatch,
    task: Task,
    settings: Settings,
    rates: Rates,
    l1: jax.Array,
) -> tuple[tuple[jax.Array, Params], Params, optax.OptState]:
    """The loss and its gradient; the parameters after the step; and the optimiser's state."""
    value, grads = jax.value_and_grad(_mapped_loss)(state.params, batch, settings.attention_map)
    optimizer = _optimizer(task, settings, rates, l1)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    frozen = state.stage == 3
    updates = updates._replace(attention=jnp.where(frozen, 0.0, updates.attention))
    return (value, grads), optax.apply_updates(state.params, updates), opt_state


def _move_columns(
    state: State,
    batch: AnyBatch,
    task: Task,
    settings: Settings,
    rates: Rates,
    l1: jax.Array,
) -> tuple[tuple[jax.Array, Params], Params, optax.OptState]:
    """Like :func:`_move`; A goes its own way, in as few passes over it as can be."""
    assert isinstance(batch, Batch)  # there are no tuples of so large a vocabulary
    value, grads = unchecked_gradients(state.params, batch)
    optimizer = _value_optimizer(task, settings, rates)
    updates, opt_state = optimizer.update(grads.value, state.opt_state)
    rows = optim.step_rows(
        state.params.attention.T,
        grads.attention,
        batch.query,
        stationary=task.stationary,
        learning_rate=rates.attention,
        l1=l1 if settings.optimizer == "proximal" else None,
        frozen=state.stage == 3,
    )
    whole = sum_by_query(grads.attention, batch.query, task.num_tokens)
    params = Params(state.params.value + updates, rows.T)
    return (value, grads._replace(attention=whole)), params, opt_state


def _value_optimizer(
    task: Task, settings: Settings, rates: Rates
) -> optax.GradientTransformationExtraArgs:
    return optim.value_descent(task.stationary, rates.value, settings.geometry)


def _mapped_loss(params: Params, batch: AnyBatch, attention_map: str) -> jax.Array:
    return unchecked_loss(map_attention(params, attention_map), batch)


def _step_scale(task: Task, settings: Settings) -> float:
    return ATTENTION_MAPS[settings.attention_map].step_scale(task.context_length)


def _optimizer(
    task: Task, settings: Settings, rates: Rates, l1: jax.Array
) -> optax.GradientTransformationExtraArgs:
    """The arm's transformation at one step; its state has the same structure at all rates."""
    geometry = settings.geometry
    both = (task.stationary, rates.value, rates.attention)
    if settings.optimizer == "proximal":
        return optim.scb_proximal(*both, l1, geometry=geometry)
    if settings.optimizer == "sgd":
        return optim.scb_sgd(*both, geometry=geometry)
    if settings.optimizer == "adam":
        return optim.adam(rates.value, rates.attention)
    return optim.raw_sgd(rates.value, rates.attention)


def _per_signal(rate: jax.Array, signal: jax.Array) -> jax.Array:
    """``rate / K``, or the rate itself where there is nothing to learn (K not above rounding)."""
    floor = 4.0 * float(jnp.finfo(signal.dtype).eps)
    return jnp.where(signal > floor, rate / jnp.maximum(signal, floor), rate)


def stage_is_over(
    state: State, settings: Settings, value: jax.Array, attention: jax.Array
) -> jax.Array:
    """Whether the stage that the state is in ends, given the strengths of both signals."""
    if settings.switch_on == "step":
        first, second = state.step >= settings.switch_step, state.step >= settings.stop_step
    else:
        strongest = value if settings.switch_on == "parameters" else jnp.maximum(value, attention)
        first, second = (
            strongest >= settings.switch_level,
            (value + attention) / 2 >= settings.stop_level,
        )
    return ((state.stage == 1) & first) | ((state.stage == 2) & second)


def _signals(params: Params, task: Task, settings: Settings) -> tuple[jax.Array, jax.Array]:
    return (
        true_signals(params, task)
        if settings.switch_on == "truth"
        else estimated_signals(params, task)
    )


def _end_boosting(state: State, task: Task, settings: Settings) -> State:
    params = state.params
    flips = is_mirrored(params.attention) if settings.flip else jnp.zeros((), bool)
    params = _where(flips, mirror(params, task), params)
    if settings.optimizer == "proximal":
        threshold = jnp.asarray(settings.threshold, params.attention.dtype)
        level = rounding_level(task, threshold * _signals(params, task, settings)[0])
        cut = threshold_and_project(params.attention, level)
        params = params._replace(attention=jnp.where(threshold > 0, cut, params.attention))
    return state._replace(params=params, flipped=state.flipped | flips)


def _end_proximal(state: State, task: Task, settings: Settings) -> State:
    share = jnp.asarray(settings.rounding_level, state.params.attention.dtype)
    rounded = round_attention(state.params.attention, rounding_level(task, share))
    population = (state.population[0], jnp.ones_like(state.population[1]))
    return state._replace(params=state.params._replace(attention=rounded), population=population)


def _where(condition: jax.Array, yes: Params, no: Params) -> Params:
    chosen: Params = jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
    return chosen
