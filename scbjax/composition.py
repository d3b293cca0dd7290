"""A learner as a composition: a source, a model, an optimiser, stages, and what is recorded.

:func:`learner` makes pure functions of such parts (:mod:`scbjax.parts`). A step draws a batch of
the source, differentiates the model's loss, and lets the optimiser, any transformation of optax,
move the parameters. Which stage a trajectory is in is a number in its state; the rates of the stage
are chosen by it, so that under ``vmap`` every trajectory goes through the stages at its own pace.
Whether a stage is over is asked when a record is taken, every ``record_every`` steps.

Randomness: the mini-batch of step t depends on the key and on t alone, so that a trajectory can be
cut into segments anywhere between records and continued with bitwise the same result.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from scbjax.arguments import SIZES, as_integer, check_is, is_numeric, outline, what
from scbjax.base import NOT_DIVERGED, Tree
from scbjax.keys import as_threefry
from scbjax.observables import Observable, Record, View, as_record, observe_view
from scbjax.parts import Model, Source, Stage, Track
from scbjax.sampling import Sampler
from scbjax.tables import nearest

# Streams of a trajectory's key: mini-batches, fresh samples for the refit of V in records, the
# first step of a transfer, pretraining, the task of a source, and parameters that are drawn.
BATCHES, REFITS, FIRST_STEP, PRETRAINING, TASK, PARAMETERS = range(6)
_NAMES_SHOWN = 4  # of what a trajectory has recorded
# The name of a record that no observable can have.
_FINITE = ""

Optimizer: TypeAlias = optax.GradientTransformation | Callable[[Any, Any, Any], Any]
"""A transformation of optax, or a function ``(task, values, rates)`` that makes one."""

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


class Trajectory(NamedTuple):
    """A finished trajectory.

    Attributes:
        state: the final state, from which ``train(..., state=trajectory.state)`` goes on.
        records: an array [records] for each observable, [records, ...] for one with axes of its
            own; the first entry is the initial state.
        steps: the step numbers of the records, int32 [records].
        diverged_at: step of the first record at which the parameters were not finite, -1 if they
            were at all of them; int32. What is recorded from then on means nothing.
    """

    state: Any
    records: dict[str, jax.Array]
    steps: jax.Array
    diverged_at: jax.Array

    @property
    def params(self) -> Any:  # noqa: ANN401 - those of the model
        """The final parameters: V and A, or the parameter that another map makes A of."""
        return self.state.params

    def __repr__(self) -> str:
        """How long it is and what is recorded, not the arrays."""
        names = list(self.records)
        if len(names) > _NAMES_SHOWN:
            names = [*names[:_NAMES_SHOWN], f"{len(names) - _NAMES_SHOWN} more"]
        steps = outline(self.steps)
        if is_numeric(self.steps) and self.steps.ndim == 1:
            steps = f"{self.steps[0]} to {self.steps[-1]} in {self.steps.size} records"
        return (
            f"Trajectory(params={outline(getattr(self.state, 'params', self.state))}, "
            f"records={{{', '.join(names)}}}, steps={steps}, "
            f"diverged_at={outline(self.diverged_at)})"
        )


# -------------------------------------------------------------------------------- steps and records


class Loop(NamedTuple):
    """What a trajectory is made of; see :func:`in_stretches`.

    Attributes:
        one_step: the next state, of a state and the number of the step.
        end_stretch: what is done to the state before a record is taken.
        record: the record of a state, of it and the number of steps done.
    """

    one_step: Callable[[Any, jax.Array], Any]
    end_stretch: Callable[[Any], Any]
    record: Callable[[Any, jax.Array], dict[str, jax.Array]]


def in_stretches(
    loop: Loop,
    state: Any,  # noqa: ANN401 - what the loop carries
    start: jax.Array | int,
    record_every: int,
    num_records: int,
    *,
    initial: bool = False,
) -> tuple[Any, dict[str, jax.Array]]:
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
    loop: Loop,
    state: Any,  # noqa: ANN401 - what the loop carries
    record_every: int,
    index: jax.Array,
) -> tuple[Any, dict[str, jax.Array]]:
    """One record: the first is that of the start, and all others follow a stretch of steps.

    Args:
        loop: what is done.
        state: the state at the record before; for the first one, the start.
        record_every: steps of a stretch; static.
        index: the number of the record, from 0.

    Returns:
        The state at the record, and the record by names.
    """
    carry = (state, jnp.maximum(index - 1, 0) * record_every)
    (state, _), record = _stretch(loop, carry, record_every, index > 0)
    return state, record


def _stretch(
    loop: Loop, carry: tuple[Any, jax.Array], record_every: int, moves: jax.Array | None
) -> tuple[tuple[Any, jax.Array], dict[str, jax.Array]]:
    """Steps from a state and the number of steps done, and the record of where they lead.

    Unless ``moves`` says that none are taken; None is for always.
    """

    # The number of the step is counted along, not read off a list: that would grow with the steps.
    def count_step(carry: tuple[Any, jax.Array], _: None) -> tuple[tuple[Any, jax.Array], None]:
        state, index = carry
        return (loop.one_step(state, index), index + 1), None

    def move(carry: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        (state, done), _ = jax.lax.scan(count_step, carry, None, length=record_every)
        return loop.end_stretch(state), done

    carry = move(carry) if moves is None else jax.lax.cond(moves, move, lambda c: c, carry)
    return carry, loop.record(*carry)


def run(
    loop: Loop,
    state: Any,  # noqa: ANN401 - what the loop carries
    start: jax.Array | int,
    record_every: int,
    num_records: int,
) -> tuple[Any, dict[str, jax.Array]]:
    """All stretches of a trajectory, with the record of the initial state in front.

    Beside what the loop records, the records say whether the parameters were finite; they are for
    :func:`as_trajectory`.
    """

    def record(state: Any, done: jax.Array) -> dict[str, jax.Array]:  # noqa: ANN401
        return {**loop.record(state, done), _FINITE: is_finite(state)}

    recorded = loop._replace(record=record)
    return in_stretches(recorded, state, start, record_every, num_records, initial=True)


def is_finite(state: Any) -> jax.Array:  # noqa: ANN401 - of any learner
    """Whether all parameters of a state are finite; a boolean."""
    floats = [a for a in jax.tree.leaves(state.params) if jnp.issubdtype(a.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(array)) for array in floats]))


def as_trajectory(
    state: Any,  # noqa: ANN401 - of any learner
    records: dict[str, jax.Array],
    start: jax.Array | int,
    record_every: int,
) -> Trajectory:
    """The trajectory that ends in a state, given the records of :func:`run`."""
    finite = records[_FINITE]
    steps = jnp.arange(finite.shape[0], dtype=jnp.int32) * record_every
    steps = steps if isinstance(start, int) and not start else steps + jnp.asarray(start, jnp.int32)
    records = {name: record for name, record in records.items() if name != _FINITE}
    diverged_at = jnp.where(jnp.all(finite), NOT_DIVERGED, steps[jnp.argmin(finite)])
    return Trajectory(state, records, steps, diverged_at)


# -------------------------------------------------------------------------------------- the learner


class Move(NamedTuple):
    """How a step moves the parameters: by an optimiser (:func:`by_optimizer`), or another way.

    Attributes:
        init: ``(params, task, values, rates)`` to the optimiser's state.
        step: ``(params, opt_state, batch, task, values, rates, frozen)`` to the loss and its
            gradient, the new parameters and the optimiser's new state. ``frozen`` is a tree like
            the parameters of booleans.
        to_carry: parameters to what the loop over steps carries, on which ``step`` works; another
            order in memory, say.
        from_carry: the inverse.
    """

    init: Callable[..., optax.OptState]
    step: Callable[..., tuple[tuple[jax.Array, Tree], Tree, optax.OptState]]
    to_carry: Callable[[Tree], Tree] = lambda params: params
    from_carry: Callable[[Tree], Tree] = lambda params: params


def by_optimizer(model: Model, optimizer: Optimizer) -> Move:
    """A step of gradient descent: the gradient of the model's loss, and what optax makes of it.

    Args:
        model: the model.
        optimizer: a transformation of optax, or a function ``(task, values, rates)`` that makes one
            with a state of the same structure whatever the rates are. It is also given the loss as
            ``value``, the gradient as ``grad`` and the loss as a function as ``value_fn``, which
            some transformations want.

    Returns:
        The move.
    """

    def transform(*what_for: Any) -> optax.GradientTransformationExtraArgs:  # noqa: ANN401
        own = optimizer if _is_transformation(optimizer) else optimizer(*what_for)
        if not _is_transformation(own):
            raise TypeError(f"optimizer gives {what(own)}; it must give a transformation of optax")
        return optax.with_extra_args_support(own)

    def init(params: Tree, *what_for: Any) -> optax.OptState:  # noqa: ANN401
        with jax.numpy_dtype_promotion("standard"):
            return transform(*what_for).init(params)

    def step(
        params: Tree,
        opt_state: optax.OptState,
        batch: Tree,
        task: Tree,
        values: Tree,
        rates: Tree,
        frozen: Tree,
    ) -> tuple[tuple[jax.Array, Tree], Tree, optax.OptState]:
        loss, grads = jax.value_and_grad(model.loss)(params, batch)
        extra = {"value": loss, "grad": grads, "value_fn": lambda params: model.loss(params, batch)}
        # Optax mixes dtypes here and there, which strict promotion forbids.
        with jax.numpy_dtype_promotion("standard"):
            own = transform(task, values, rates)
            updates, opt_state = own.update(grads, opt_state, params, **extra)
            updates = jax.tree.map(_hold, frozen, updates)
            params = optax.apply_updates(params, updates)
        return (loss, grads), params, opt_state

    return Move(init, step)


def _is_transformation(optimizer: object) -> bool:
    return callable(getattr(optimizer, "init", None)) and callable(
        getattr(optimizer, "update", None)
    )


def _hold(frozen: jax.Array | bool, update: jax.Array) -> jax.Array:
    return update if frozen is False else jnp.where(frozen, jnp.zeros_like(update), update)


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


ENDLESS = (Stage("endless"),)
"""The plainest list of stages."""


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
        if not (callable(optimizer) or _is_transformation(optimizer)):
            raise TypeError(
                f"optimizer is {what(optimizer)}; it must be a transformation of optax, or a "
                "function of (task, values, rates) that makes one"
            )
        optimizer = by_optimizer(model, optimizer)
    parts = Composition(
        source=source,
        model=model,
        move=optimizer,
        stages=_as_stages(stages),
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


def _as_stages(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    if isinstance(stages, Stage) or not isinstance(stages, tuple | list) or not stages:
        raise ValueError(f"stages is {what(stages)}; it must be a list of stages, one at least")
    for number, stage in enumerate(stages):
        check_is(f"stages[{number}]", stage, Stage)
        check_is(f"stages[{number}].frozen", stage.frozen, tuple, 'as in ("attention",)')
    if stages[-1].is_over is not None:
        raise ValueError(
            f"the stage {stages[-1].name!r} is the last one and has an end; is_over must be None"
        )
    for stage in stages[:-1]:
        if stage.is_over is None:
            raise ValueError(
                f"the stage {stage.name!r} has no end, and others follow; is_over must be a "
                "function of a view"
            )
    return tuple(stages)


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
        model.readout(state.params),
        task,
        sampler=prepared if isinstance(prepared, Sampler) else None,
        batch_loss=state.batch_loss,
        stage=state.stage,
        samples=state.step * batch_size,
        state=state,
        values=values,
        loss=lambda batch: model.loss(state.params, batch),
        **more,
    )


# ------------------------------------------------------------------------------------ its functions


def _init(parts: Composition, key: jax.Array, task: Tree, values: Tree = None) -> LearnerState:
    key = as_threefry(key)
    params = parts.model.init(jax.random.fold_in(key, PARAMETERS), task)
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


def stage_rates(
    stages: tuple[Stage, ...], stage: jax.Array, step: jax.Array, task: Tree, values: Tree
) -> Tree:
    """The rates of the stage with this number, with schedules looked up at a step."""
    trees = [_rates_of(own, task, values) for own in stages]
    structures: list[Any] = [jax.tree.structure(tree) for tree in trees]
    for own, structure in zip(stages, structures, strict=True):
        if structure != structures[0]:
            raise ValueError(
                f"the stage {own.name!r} has the rates {structure}; they must be of the same "
                f"structure as those of {stages[0].name!r}, {structures[0]}"
            )

    def choose(*rates: Any) -> Any:  # noqa: ANN401 - numbers or schedules
        looked_up = [rate(step) if callable(rate) else rate for rate in rates]
        return _of_stage(looked_up, stage)

    # Schedules mix the step, an integer, with floats, which strict promotion forbids.
    with jax.numpy_dtype_promotion("standard"):
        return jax.tree.map(choose, *trees)


def _rates_of(stage: Stage, task: Tree, values: Tree) -> Tree:
    """The rates of a stage, schedules as they are; a function of one argument is a schedule."""
    if not callable(stage.rates) or len(inspect.signature(stage.rates).parameters) == 1:
        return stage.rates
    return stage.rates(task, values)


def _of_stage(numbers: Sequence[Any], stage: jax.Array) -> Any:  # noqa: ANN401 - of any kind
    """The number that belongs to a stage."""
    if len(numbers) == 1:
        return jnp.asarray(numbers[0])
    return jnp.stack([jnp.asarray(number) for number in numbers])[stage - 1]


def _frozen(stages: tuple[Stage, ...], stage: jax.Array, params: Tree) -> Tree:
    """Which parameters stay as they are, a tree like theirs; False where none ever does."""
    paths, structure = jax.tree_util.tree_flatten_with_path(params)
    names = [{jax.tree_util.keystr((key,), simple=True) for key in path} for path, _ in paths]
    known = set().union(*names)
    for own in stages:
        unknown = [name for name in own.frozen if name not in known]
        if unknown:
            raise ValueError(
                f"the stage {own.name!r} has frozen {own.frozen!r}; it must be a tuple of names "
                f"of parameters: {', '.join(sorted(known))}{nearest(unknown[0], known)}"
            )
    flags = [[not leaf.isdisjoint(own.frozen) for own in stages] for leaf in names]
    chosen = [_of_stage(own, stage) if any(own) else False for own in flags]
    return jax.tree.unflatten(structure, chosen)


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
    frozen = _frozen(parts.stages, state.stage, state.params)
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


def end_stage(
    stages: tuple[Stage, ...],
    state: Any,  # noqa: ANN401 - anything with a stage
    view: View,
    task: Tree,
    values: Tree,
) -> Any:  # noqa: ANN401 - the same
    """The state in the next stage, if its own is over, with what that does to it."""
    over = [
        (state.stage == number) & own.is_over(view)
        for number, own in enumerate(stages, 1)
        if own.is_over is not None
    ]
    ended = state._replace(stage=state.stage + sum(is_over.astype(jnp.int32) for is_over in over))
    for is_over, own in zip(over, stages, strict=False):
        if own.at_end is not None:
            # A branch for a single trajectory, to which the ends of stages cost nothing until they
            # come; under vmap both sides are computed.
            end = partial(_at_end, own, task, values)
            ended = jax.lax.cond(is_over, end, lambda state: state, ended)
    return ended


def _at_end(stage: Stage, task: Tree, values: Tree, state: Any) -> Any:  # noqa: ANN401
    assert stage.at_end is not None
    return stage.at_end(state, task, values)


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
    """The parts of a trajectory, on states as they are carried."""
    key = as_threefry(key)
    prepared = parts.source.prepare(task)
    batches = jax.random.fold_in(key, BATCHES)
    keys = parts.source.keys
    key_of = partial(jax.random.fold_in, batches) if keys is None else keys(batches)

    def uncarried(state: LearnerState) -> LearnerState:
        return state._replace(params=parts.move.from_carry(state.params))

    def one_step(state: LearnerState, index: jax.Array) -> LearnerState:
        batch = parts.source.sample(key_of(index), prepared, parts.batch_size)
        return _carried_step(parts, state, batch, task, values)[0]

    def end_stretch(state: LearnerState) -> LearnerState:
        state = _end_stage(parts, key, task, values, uncarried(state), prepared)
        return state._replace(params=parts.move.to_carry(state.params))

    def record(state: LearnerState, done: jax.Array) -> dict[str, jax.Array]:
        return _observe(parts, key, task, values, uncarried(state), done, prepared)

    return Loop(one_step, end_stretch, record)


def _advance(
    parts: Composition,
    key: jax.Array,
    task: Tree,
    values: Tree,
    state: LearnerState,
    start: jax.Array | int,
    num_records: int,
) -> tuple[LearnerState, dict[str, jax.Array]]:
    run_from = partial(in_stretches, _loop(parts, key, task, values))
    return _carried(parts, run_from, state, start, parts.record_every, num_records)


def _take_record(
    parts: Composition,
    key: jax.Array,
    task: Tree,
    values: Tree,
    state: LearnerState,
    index: jax.Array,
) -> tuple[LearnerState, dict[str, jax.Array]]:
    run_from = partial(record_at, _loop(parts, key, task, values))
    return _carried(parts, run_from, state, parts.record_every, index)


def _carried(
    parts: Composition,
    function: Callable[..., tuple[LearnerState, dict[str, jax.Array]]],
    state: LearnerState,
    *arguments: Any,  # noqa: ANN401 - what the function takes besides
) -> tuple[LearnerState, dict[str, jax.Array]]:
    """A function of a state as the loop carries it, as one of the state itself."""
    state = state._replace(params=parts.move.to_carry(state.params))
    state, records = function(state, *arguments)
    return state._replace(params=parts.move.from_carry(state.params)), records


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
    start = state.step if start is None else start
    run_from = partial(run, _loop(parts, key, task, values))
    state, records = _carried(parts, run_from, state, start, parts.record_every, num_records)
    return as_trajectory(state, records, start, parts.record_every)


def count_records(steps: int, record_every: int) -> int:
    """Stretches of ``record_every`` steps that ``steps`` steps make.

    Raises:
        ValueError: if they don't make whole ones.
    """
    steps = as_integer("steps", steps, SIZES)
    if steps % record_every:
        raise ValueError(
            f"steps is {steps}; it must be a multiple of record_every = {record_every}"
        )
    return steps // record_every
