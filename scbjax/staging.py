"""What lists of stages do: rates by the number of a stage, frozen parameters, and ends.

The number of the stage is a part of the state and traced; whatever depends on it is chosen by it.
"""

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from scbjax.arguments import check_is, what
from scbjax.base import Tree
from scbjax.observables import View
from scbjax.parts import Stage
from scbjax.tables import nearest

ENDLESS = (Stage("endless"),)
"""The plainest list of stages."""


def as_stages(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """A list of stages, if it is one: the last has no end, all others have.

    Raises:
        TypeError: for what is no stage.
        ValueError: for ends that are missing or too many.
    """
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


def frozen_leaves(stages: tuple[Stage, ...], stage: jax.Array, params: Tree) -> Tree:
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
