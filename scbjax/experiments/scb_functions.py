"""What an experiment with the paper's learner computes: tasks, starts, steps and records.

Training on real contexts, or a simulation of it where only tagged positions get tokens
(:mod:`scbjax.simulation`).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp

from scbjax import training
from scbjax.base import Functions, Keys, Values, short_name
from scbjax.experiments.scb_cost import rows
from scbjax.model import map_attention
from scbjax.settings import STATIC_FIELDS, TRACED_FIELDS, Settings
from scbjax.simulation import Simulation
from scbjax.task import (
    Task,
    pattern_signal,
    random_task,
    related_task,
    stationary_norm,
    transition_signal,
)
from scbjax.training import State, start_from
from scbjax.trajectories import is_finite

_SPARSITY = "task.sparsity"
_SOURCE_STREAM = 3  # of the seed of the task


class _Learner(Protocol):
    """What moves and records a trajectory: :mod:`scbjax.training` or a simulation of it."""

    def init(self, key: jax.Array, task: Task, settings: Settings) -> State: ...

    def take_record(
        self, key: jax.Array, task: Task, settings: Settings, state: State, index: jax.Array
    ) -> tuple[State, dict[str, jax.Array]]: ...


class _Program(NamedTuple):
    """What is the same for all trajectories of a program.

    Attributes:
        fixed: values by dotted path.
        max_sparsity: the largest Q among them.
    """

    fixed: Values
    max_sparsity: int

    @property
    def learner(self) -> _Learner:
        length: int = self.fixed["task.context_length"]
        return training if rows(self.fixed) == length else Simulation(length)

    def settings(self, values: Values, record: tuple[str, ...] = ()) -> Settings:
        """The settings at a point: static ones from the program, the others from its values."""
        static = {short_name(path): value for path, value in self.fixed.items()}
        traced = {short_name(path): value for path, value in values.items()}
        return Settings(
            record=record,
            **{name: static[name] for name in STATIC_FIELDS if name in static},
            **{name: traced[name] for name in TRACED_FIELDS if name in traced},
        )


def functions(fixed: Values, varying: Mapping[str, tuple[Any, ...]]) -> Functions:
    """The functions of a program.

    Args:
        fixed: the values that all its trajectories have.
        varying: the values of those that vary.
    """
    sparsities = varying.get(_SPARSITY) or (fixed[_SPARSITY],)
    program = _Program(fixed, int(max(sparsities)))
    length, attention_map = fixed["task.context_length"], fixed["model.attention_map"]
    return Functions(
        draw=partial(_draw_task, program),
        start=partial(_start, program),
        take_record=partial(_take_record, program),
        is_finite=is_finite,
        constants=lambda task: {
            "transition_signal": transition_signal(task),
            "pattern_signal": pattern_signal(task, length),
            "stationary_norm": stationary_norm(task),
        },
        kept=lambda state: map_attention(state.params, attention_map)._asdict(),
        truth=lambda task: task._asdict(),
        along_inner=cast("Any", Task)(None, None, 0),
    )


def _draw_task(program: _Program, keys: Keys, values: Values) -> Task:
    """A task: drawn in float32, so that it is the same one whatever dtype it is held in."""
    values = _in_float32(values)
    task = random_task(
        keys.task,
        num_tokens=program.fixed["task.num_tokens"],
        context_length=rows(program.fixed),
        sparsity=values[_SPARSITY],
        skew=values["task.skew"],
        transition_signal=values.get("task.transition_signal"),
        max_sparsity=program.max_sparsity,
    )
    return _held(program, task)


def _start(program: _Program, keys: Keys, values: Values, task: Task) -> State:
    """The start of one trajectory: uniform, or that of a transfer."""
    settings = program.settings(values)
    state = program.learner.init(keys.start, task, settings)
    if program.fixed["train.start"] == "uniform":
        return state
    source = _draw_source(program, keys, values, task)
    return start_from(keys.data, source, task, settings, state)


def _draw_source(program: _Program, keys: Keys, values: Values, task: Task) -> Task:
    """The related task of a transfer, with a pattern of its own; see :func:`_draw_task`."""
    values = _in_float32(values)
    source = related_task(
        keys.more(_SOURCE_STREAM),
        Task(*_in_float32(task._asdict()).values()),
        correlation=values["transfer.correlation"],
        sparsity=values[_SPARSITY],
        skew=values["task.skew"],
        max_sparsity=program.max_sparsity,
    )
    return _held(program, source)


def _take_record(
    program: _Program, keys: Keys, values: Values, task: Task, state: State, index: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """One record of one trajectory, with the steps that lead to it."""
    settings = program.settings(values, record=tuple(program.fixed["record.variables"]))
    return program.learner.take_record(keys.data, task, settings, state, index)


def _held(program: _Program, task: Task) -> Task:
    return Task(*(array.astype(program.fixed["task.dtype"]) for array in task))


def _in_float32(values: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return {
        name: value.astype(jnp.float32) if jnp.issubdtype(value.dtype, jnp.floating) else value
        for name, value in values.items()
    }
