"""A trajectory: stretches of steps with a record at the end of each, of whatever does the steps.

A :class:`Loop` says how a state moves by a step, what is done before a record, and what a record
is. Cut anywhere between records and continued, a trajectory is bitwise the same.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scbjax.arguments import SIZES, as_integer, is_numeric, outline
from scbjax.base import NOT_DIVERGED, RECORDS_FIT

_NAMES_SHOWN = 4  # of what a trajectory has recorded
# The name of a record that no observable can have.
_FINITE = ""


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


class Loop(NamedTuple):
    """What a trajectory is made of; see :func:`in_stretches`.

    Attributes:
        one_step: the next state, of a state and the number of the step.
        end_stretch: what is done to the state before a record is taken.
        record: the record of a state, of it and the number of steps done.
        enter: the state as steps carry it, which ``end_stretch`` makes a plain state of again.
            Within a stretch: a state that is large is then not held in both forms between two.
    """

    one_step: Callable[[Any, jax.Array], Any]
    end_stretch: Callable[[Any], Any]
    record: Callable[[Any, jax.Array], dict[str, jax.Array]]
    enter: Callable[[Any], Any] = lambda state: state


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
        carry = loop.enter(carry[0]), carry[1]
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


def count_records(steps: int, record_every: int) -> int:
    """Stretches of ``record_every`` steps that ``steps`` steps make.

    Raises:
        ValueError: if they don't make whole ones.
    """
    steps = as_integer("steps", steps, SIZES)
    if refusal := RECORDS_FIT.refusal((steps, record_every), short=True):
        raise ValueError(refusal)
    return steps // record_every
