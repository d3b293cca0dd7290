"""A learner as a composition: a source, a model, an optimiser, stages, and what is recorded.

:func:`learner` makes pure functions of such parts (:mod:`scbjax.parts`). A step draws a batch of
the source, differentiates the model's loss, and lets the optimiser, any transformation of optax,
move the parameters. Which stage a trajectory is in is a number in its state; the rates of the stage
are chosen by it, so that under ``vmap`` every trajectory goes through the stages at its own pace.
Whether a stage is over is asked when a record is taken, every ``record_every`` steps.

Randomness: the mini-batch of step t depends on the key and on t alone, so that a trajectory can be
cut into segments anywhere between records and continued with bitwise the same result.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from scbjax.arguments import SIZES, as_integer, check_is, check_like, outline
from scbjax.base import Tree
from scbjax.keys import as_threefry
from scbjax.moves import Move, Optimizer, by_optimizer, check_optimizer
from scbjax.observables import View, observe_view
from scbjax.parts import Model, Observable, Source, Stage, Track, with_values
from scbjax.recorded import Record, as_record
from scbjax.sampling import Sampler
from scbjax.staging import ENDLESS, as_stages, end_stage, frozen_leaves, stage_rates
from scbjax.trajectories import (
    Loop,
    Trajectory,
    as_trajectory,
    count_records,
    in_stretches,
    record_at,
    run,
)

# Streams of a trajectory's key: mini-batches, fresh samples for the refit of V in records, the
# first step of a transfer, pretraining, the task of a source, and parameters that are drawn.
BATCHES, REFITS, FIRST_STEP, PRETRAINING, TASK, PARAMETERS = range(6)

# Parts go through `jax.jit` as what a program is compiled for: by their functions.
for _part in (Source, Model, Stage, Track, Observable):
    jax.tree_util.register_static(_part)


class LearnerState(NamedTuple):
    """What a trajectory carries from step to step.

    Attributes:
        params: the model's parameters.
        opt_state: the optimiser's state.
        stage: the number of the stage, from 1; int32.
        step: steps done, int32.
        batch_loss: loss of the last mini-batch, NaN before the first.
        tracked: what is carried beside them (:class:`scbjax.parts.Track`), ``()`` for nothing.
    """

    params: Tree
    opt_state: optax.OptState
    stage: jax.Array
    step: jax.Array
    batch_loss: jax.Array
    tracked: Tree = ()

    def __repr__(self) -> str:
        """Dtypes and shapes, not the arrays."""
        return outline(self)


class StepInfo(NamedTuple):
    """What a step tells beside the new state.

    Attributes:
        loss: mini-batch loss at the parameters before the step.
        rates: the rates of the step.
        grads: the mini-batch gradient.
    """

    loss: jax.Array
    rates: Tree
    grads: Tree

    def __repr__(self) -> str:
        """Dtypes and shapes, not the arrays."""
        return outline(self)


class Learner(NamedTuple):
    """Pure functions that train a model; made by :func:`learner`.

    In all of them ``task`` is what the source draws, and ``values`` is any pytree, of numbers that
    may be traced and mapped; the parts are given both.

    Attributes:
        init: ``(key, task, values)`` to the state before the first step.
        step: ``(state, batch, task, values)`` to the state and a :class:`StepInfo`.
        end_stage: ``(key, task, values, state)`` to the state, in the next stage if its own is
            over.
        observe: ``(key, task, values, state, done)`` to a record by names; ``done`` is the number
            of steps.
        advance: ``(key, task, values, state, start, num_records)`` to the state after so many
            stretches of ``record_every`` steps, and their records. ``start`` is the number of steps
            done, kept apart from the state so that a ``vmap`` over values leaves it, and with it
            the mini-batches, unbatched.
        take_record: ``(key, task, values, state, index)`` to the state at a record and that record.
        train: ``(key, task, values, steps, state=None, start=None)`` to a :class:`Trajectory`, from
            the beginning or from another's state, whose own number of steps is ``start`` if it is
            not given.
        loop: ``(key, task, values)`` to the :class:`Loop` of all that.
    """

    init: Callable[..., LearnerState]
    step: Callable[..., tuple[LearnerState, StepInfo]]
    end_stage: Callable[..., LearnerState]
    observe: Callable[..., dict[str, jax.Array]]
    advance: Callable[..., tuple[LearnerState, dict[str, jax.Array]]]
    take_record: Callable[..., tuple[LearnerState, dict[str, jax.Array]]]
    train: Callable[..., Trajectory]
    loop: Callable[..., Loop]


class Composition(NamedTuple):
    """What :func:`learner` was given, checked: the parts of a learner.

    Attributes:
        source: what is learned from.
        model: what is trained.
        move: how a step moves it.
        stages: in their order.
        record: what is recorded.
        track: what is carried along.
        view: ``(key, state, task, values, prepared)`` to what observables see.
        batch_size: B.
        record_every: steps between records.
        precision: of the matrix products of a step.
    """

    source: Source
    model: Model
    move: Move
    stages: tuple[Stage, ...]
    record: tuple[str | Observable, ...]
    track: Track | None
    view: Callable[..., View]
    batch_size: int
    record_every: int
    precision: str


def learner(
    source: Source,
    model: Model,
    optimizer: Optimizer | Move,
    *,
    batch_size: int,
    record_every: int,
    stages: Sequence[Stage] = ENDLESS,
    record: Record = ("batch_loss", "stage", "samples"),
    track: Track | None = None,
    view: Callable[..., View] | None = None,
    precision: str = "highest",
) -> Learner:
    """Makes a learner of its parts.

    Args:
        source: what is learned from, such as :func:`scbjax.scb_source` or :func:`scbjax.windows`.
        model: what is trained, such as :func:`scbjax.linear_transformer`.
        optimizer: a transformation of optax, or a function ``(task, values, rates)`` that makes
            one, where ``rates`` are those of the stage with schedules looked up; its state must
            have the same structure at all rates.
        batch_size: B, samples a step.
        record_every: steps between records.
        stages: a list that is gone through in order; the last one has no end.
        record: what to record, as for :func:`scbjax.observe`.
        track: what is carried along with a trajectory, for observables and ends of stages.
        view: ``(key, state, task, values, prepared)`` to what observables see; None for a
            :class:`scbjax.observables.View` of the model's readout.
        precision: of the matrix products of a step, see :class:`scbjax.Settings`.

    Returns:
        Pure functions; wrap them in ``jax.jit`` and ``jax.vmap`` as you like.

    Raises:
        TypeError: for a part that is something else.
        ValueError: for stages that don't fit together, and for what can't be recorded.

    Example:
        >>> from scbjax.models import linear_transformer
        >>> from scbjax.sources import scb_source
        >>> source = scb_source(num_tokens=3, context_length=50, sparsity=2)
        >>> own = learner(source, linear_transformer("softmax"),
        ...     lambda task, rate, _: optax.adam(rate), batch_size=16, record_every=5)
        >>> task = source.draw(jax.random.key(0))
        >>> trajectory = own.train(jax.random.key(1), task, 0.01, steps=10)
        >>> trajectory.records["samples"].tolist()
        [0, 80, 160]
    """
    check_is("source", source, Source, "such as scb_source makes")
    check_is("model", model, Model, "such as linear_transformer makes")
    if not isinstance(optimizer, Move):
        check_optimizer(optimizer, "(task, values, rates)")
        optimizer = by_optimizer(model, optimizer)
    parts = Composition(
        source=source,
        model=model,
        move=optimizer,
        stages=as_stages(stages),
        record=as_record(record),
        track=track,
        view=view or partial(view_of, model, as_integer("batch_size", batch_size, SIZES)),
        batch_size=as_integer("batch_size", batch_size, SIZES),
        record_every=as_integer("record_every", record_every, SIZES),
        precision=precision,
    )
    return Learner(
        init=partial(_init, parts),
        step=partial(_step, parts),
        end_stage=partial(_end_stage, parts),
        observe=partial(_observe, parts),
        advance=partial(_advance, parts),
        take_record=partial(_take_record, parts),
        train=partial(_train, parts),
        loop=partial(_loop, parts),
    )


def view_of(
    model: Model,
    batch_size: int,
    key: jax.Array,
    state: LearnerState,
    task: Tree,
    values: Tree,
    prepared: Tree,
    **more: Any,  # noqa: ANN401 - as View has it
) -> View:
    """What observables see of the state of a learner; ``more`` is for those of this library."""
    return View(
        key,
        with_values(model.readout, state.params, values),
        task,
        sampler=prepared if isinstance(prepared, Sampler) else None,
        batch_loss=state.batch_loss,
        stage=state.stage,
        samples=state.step * batch_size,
        state=state,
        values=values,
        loss=lambda batch: with_values(model.loss, state.params, batch, values),
        **more,
    )


# ------------------------------------------------------------------------------------ its functions


def _init(parts: Composition, key: jax.Array, task: Tree, values: Tree = None) -> LearnerState:
    key = as_threefry(key)
    params = with_values(parts.model.init, jax.random.fold_in(key, PARAMETERS), task, values)
    first = jnp.ones((), jnp.int32)
    rates = stage_rates(parts.stages, first, jnp.zeros((), jnp.int32), task, values)
    dtype = jnp.result_type(*jax.tree.leaves(params))
    return LearnerState(
        params=params,
        opt_state=parts.move.init(params, task, values, rates),
        stage=first,
        step=jnp.zeros((), jnp.int32),
        batch_loss=jnp.full((), jnp.nan, dtype),
        tracked=() if parts.track is None else parts.track.init(params, task, values),
    )


def _step(
    parts: Composition, state: LearnerState, batch: Tree, task: Tree, values: Tree = None
) -> tuple[LearnerState, StepInfo]:
    carried = state._replace(params=parts.move.to_carry(state.params))
    carried, info = _carried_step(parts, carried, batch, task, values)
    return carried._replace(params=parts.move.from_carry(carried.params)), info


def _carried_step(
    parts: Composition, state: LearnerState, batch: Tree, task: Tree, values: Tree
) -> tuple[LearnerState, StepInfo]:
    rates = stage_rates(parts.stages, state.stage, state.step, task, values)
    frozen = frozen_leaves(parts.stages, state.stage, state.params)
    # Part of what JAX knows a compiled program by, and reset at once: no state that outlives this.
    with jax.default_matmul_precision(parts.precision):
        (loss, grads), params, opt_state = parts.move.step(
            state.params, state.opt_state, batch, task, values, rates, frozen
        )
    tracked = state.tracked
    if parts.track is not None:
        tracked = parts.track.step(tracked, rates, task, values)
    state = state._replace(
        params=params,
        opt_state=opt_state,
        step=state.step + 1,
        batch_loss=loss.astype(state.batch_loss.dtype),
        tracked=tracked,
    )
    return state, StepInfo(loss, rates, grads)


def _end_stage(
    parts: Composition,
    key: jax.Array,
    task: Tree,
    values: Tree,
    state: LearnerState,
    prepared: Tree = None,
) -> LearnerState:
    if len(parts.stages) == 1:
        return state
    # Not folded with the step, which a map over values would batch, and the random words with it.
    own_key = jax.random.fold_in(as_threefry(key), REFITS)
    view = parts.view(own_key, state, task, values, prepared)
    ended: LearnerState = end_stage(parts.stages, state, view, task, values)
    return ended


def _observe(
    parts: Composition,
    key: jax.Array,
    task: Tree,
    values: Tree,
    state: LearnerState,
    done: jax.Array | int,
    prepared: Tree = None,
) -> dict[str, jax.Array]:
    own_key = jax.random.fold_in(jax.random.fold_in(as_threefry(key), REFITS), done)
    return observe_view(parts.view(own_key, state, task, values, prepared), parts.record)


def _loop(parts: Composition, key: jax.Array, task: Tree, values: Tree = None) -> Loop:
    """The parts of a trajectory."""
    key = as_threefry(key)
    prepared = parts.source.prepare(task)
    batches = jax.random.fold_in(key, BATCHES)
    keys = parts.source.keys
    key_of = partial(jax.random.fold_in, batches) if keys is None else keys(batches)

    def enter(state: LearnerState) -> LearnerState:
        return state._replace(params=parts.move.to_carry(state.params))

    def one_step(state: LearnerState, index: jax.Array) -> LearnerState:
        batch = parts.source.sample(key_of(index), prepared, parts.batch_size)
        return _carried_step(parts, state, batch, task, values)[0]

    def end_stretch(state: LearnerState) -> LearnerState:
        state = state._replace(params=parts.move.from_carry(state.params))
        return _end_stage(parts, key, task, values, state, prepared)

    def record(state: LearnerState, done: jax.Array) -> dict[str, jax.Array]:
        return _observe(parts, key, task, values, state, done, prepared)

    return Loop(one_step, end_stretch, record, enter)


def _advance(
    parts: Composition,
    key: jax.Array,
    task: Tree,
    values: Tree,
    state: LearnerState,
    start: jax.Array | int,
    num_records: int,
) -> tuple[LearnerState, dict[str, jax.Array]]:
    loop = _loop(parts, key, task, values)
    return in_stretches(loop, state, start, parts.record_every, num_records)


def _take_record(
    parts: Composition,
    key: jax.Array,
    task: Tree,
    values: Tree,
    state: LearnerState,
    index: jax.Array,
) -> tuple[LearnerState, dict[str, jax.Array]]:
    return record_at(_loop(parts, key, task, values), state, parts.record_every, index)


def _train(
    parts: Composition,
    key: jax.Array,
    task: Tree,
    values: Tree = None,
    *,
    steps: int,
    state: LearnerState | None = None,
    start: jax.Array | int | None = None,
) -> Trajectory:
    num_records = count_records(steps, parts.record_every)
    if state is None:
        state, start = _init(parts, key, task, values), 0
    elif start is None:  # given by a user, and not made a moment ago
        wanted = jax.eval_shape(partial(_init, parts), as_threefry(key), task, values)
        check_like("state", state, wanted, "this task and these parts")
    start = state.step if start is None else start
    loop = _loop(parts, key, task, values)
    state, records = run(loop, state, start, parts.record_every, num_records)
    return as_trajectory(state, records, start, parts.record_every)
