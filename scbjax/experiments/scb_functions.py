"""What an experiment with the paper's learner computes: training on mini-batches of contexts."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from scbjax import paper
from scbjax.base import Functions, Keys
from scbjax.composition import LearnerState
from scbjax.experiments.scb_trajectories import (
    SPARSITY,
    Program,
    functions_of,
    in_float32,
    uniform_start,
)
from scbjax.model import map_attention
from scbjax.starts import start_from
from scbjax.task import Task, related_task
from scbjax.values import Values

_SOURCE_STREAM = 3  # of the seed of the task


def functions(fixed: Values, varying: Mapping[str, tuple[Any, ...]]) -> Functions:
    """The functions of a program.

    Args:
        fixed: the values that all its trajectories have.
        varying: the values of those that vary.
    """
    program = Program.of(fixed, varying, paper, fixed["task.context_length"])
    attention_map = fixed["model.attention_map"]
    return functions_of(program)._replace(
        start=partial(_start, program),
        kept=lambda state: map_attention(state.params, attention_map)._asdict(),
        truth=lambda task: task._asdict(),
    )


def _start(program: Program, keys: Keys, values: Values, task: Task) -> LearnerState:
    """The start of one trajectory: uniform, or that of a transfer."""
    state = uniform_start(program, keys, values, task)
    if program.fixed["train.start"] == "uniform":
        return state
    source = _draw_source(program, keys, values, task)
    return start_from(keys.data, source, task, program.settings(values), state)


def _draw_source(program: Program, keys: Keys, values: Values, task: Task) -> Task:
    """The related task of a transfer, with a pattern of its own, drawn in float32 like all."""
    values = in_float32(values)
    source = related_task(
        keys.more(_SOURCE_STREAM),
        Task(*in_float32(task._asdict()).values()),
        correlation=values["transfer.correlation"],
        sparsity=values[SPARSITY],
        skew=values["task.skew"],
        max_sparsity=program.max_sparsity,
    )
    return program.held(source)
