"""Trajectories of the paper's task, whoever learns it: tasks, uniform starts, steps and records."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp

from scbjax.base import Functions, Keys, short_name
from scbjax.composition import LearnerState
from scbjax.settings import STATIC_FIELDS, TRACED_FIELDS, Settings
from scbjax.task import (
    Task,
    pattern_signal,
    random_task,
    stationary_norm,
    transition_signal,
)
from scbjax.trajectories import is_finite
from scbjax.values import Values

SPARSITY = "task.sparsity"


class Learner(Protocol):
    """What moves and records a trajectory: :mod:`scbjax.training` or a simulation of it."""

    def init(self, key: jax.Array, task: Task, settings: Settings) -> LearnerState:
        """The state before the first step."""

    def take_record(
        self, key: jax.Array, task: Task, settings: Settings, state: LearnerState, index: jax.Array
    ) -> tuple[LearnerState, dict[str, jax.Array]]:
        """One record, with the steps that lead to it."""


class Program(NamedTuple):
    """What is the same for all trajectories of a program.

    Attributes:
        fixed: values by dotted path.
        learner: what is trained.
        rows: positions that get tokens.
        max_sparsity: the largest Q among its trajectories.
    """

    fixed: Values
    learner: Learner
    rows: int
    max_sparsity: int

    @classmethod
    def of(
        cls, fixed: Values, varying: Mapping[str, tuple[Any, ...]], learner: Learner, rows: int
    ) -> "Program":
        """The program of values that are fixed and of those that vary."""
        sparsities = varying.get(SPARSITY) or (fixed[SPARSITY],)
        return cls(fixed, learner, rows, int(max(sparsities)))

    def settings(self, values: Values, record: tuple[str, ...] = ()) -> Settings:
        """The settings at a point: static ones from the program, the others from its values."""
        static = {short_name(path): value for path, value in self.fixed.items()}
        traced = {short_name(path): value for path, value in values.items()}
        return Settings(
            record=record,
            **{name: static[name] for name in STATIC_FIELDS if name in static},
            **{name: traced[name] for name in TRACED_FIELDS if name in traced},
        )

    def held(self, task: Task) -> Task:
        """A task in the numbers of the program."""
        return Task(*(array.astype(self.fixed["task.dtype"]) for array in task))


def functions_of(program: Program) -> Functions:
    """The functions of a program whose trajectories begin at uniform attention."""
    length = program.fixed["task.context_length"]
    return Functions(
        draw=partial(_draw_task, program),
        start=partial(uniform_start, program),
        take_record=partial(_take_record, program),
        is_finite=is_finite,
        constants=lambda task: {
            "transition_signal": transition_signal(task),
            "pattern_signal": pattern_signal(task, length),
            "stationary_norm": stationary_norm(task),
        },
        along_inner=cast("Any", Task)(None, None, 0),
    )


def _draw_task(program: Program, keys: Keys, values: Values) -> Task:
    """A task: drawn in float32, so that it is the same one whatever dtype it is held in."""
    values = in_float32(values)
    task = random_task(
        keys.task,
        num_tokens=program.fixed["task.num_tokens"],
        context_length=program.rows,
        sparsity=values[SPARSITY],
        skew=values["task.skew"],
        transition_signal=values.get("task.transition_signal"),
        max_sparsity=program.max_sparsity,
    )
    return program.held(task)


def uniform_start(program: Program, keys: Keys, values: Values, task: Task) -> LearnerState:
    """The start of one trajectory at uniform attention."""
    return program.learner.init(keys.start, task, program.settings(values))


def _take_record(
    program: Program, keys: Keys, values: Values, task: Task, state: LearnerState, index: jax.Array
) -> tuple[LearnerState, dict[str, jax.Array]]:
    """One record of one trajectory, with the steps that lead to it."""
    settings = program.settings(values, record=tuple(program.fixed["record.variables"]))
    return program.learner.take_record(keys.data, task, settings, state, index)


def in_float32(values: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The values with their numbers in float32."""
    return {
        name: value.astype(jnp.float32) if jnp.issubdtype(value.dtype, jnp.floating) else value
        for name, value in values.items()
    }
