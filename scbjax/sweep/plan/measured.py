"""What trajectories take of which the experiment does not say it: their compiler is asked.

One trajectory is compiled, and the compiler tells how much memory its temporaries take
(`Compiled.memory_analysis`); what is kept is the size of its state, its task and its records.
"""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from scbjax.base import Experiment
from scbjax.costs import Cost
from scbjax.sweep.engine.compiled import memory_of_one
from scbjax.sweep.plan.programs import UNKNOWN, Layer, Program


def cost_of(program: Program) -> Cost:
    """What the trajectories of a program take, measured."""
    columns = (*program.outer.columns.items(), *program.inner.columns.items())
    fixed = tuple(sorted(program.fixed.items()))
    kept, temporary = _measure(program.experiment, fixed, columns)
    return replace(
        UNKNOWN,
        kept_bytes=lambda _: kept,
        temporary_bytes=lambda _: temporary,
        step_bytes=lambda _, inner: inner * (kept + temporary),
    )


@lru_cache(maxsize=256)
def _measure(
    experiment: Experiment, fixed: tuple[tuple[str, Any], ...], columns: tuple[Any, ...]
) -> tuple[int, int]:
    """Bytes that a trajectory keeps, and those of its temporaries."""
    one = Layer(1, {path: column[:1] for path, column in columns})
    program = Program(0, experiment, dict(fixed), one, Layer(1, {}), np.zeros((1, 1), np.int64))
    return memory_of_one(program)
