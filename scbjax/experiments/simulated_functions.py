"""What an experiment with the simulated learner computes (:mod:`scbjax.simulation`)."""

from collections.abc import Mapping
from typing import Any

from scbjax import paper
from scbjax.base import Functions
from scbjax.experiments.scb_trajectories import Program, functions_of
from scbjax.simulation import Simulation
from scbjax.values import Values


def functions(fixed: Values, varying: Mapping[str, tuple[Any, ...]]) -> Functions:
    """The functions of a program.

    Args:
        fixed: the values that all its trajectories have.
        varying: the values of those that vary.
    """
    length, tagged = fixed["task.context_length"], fixed["task.tagged_positions"]
    # Where nothing is left out there is nothing to simulate: these are the very runs of `scb`.
    learner = paper if tagged == length else Simulation(length)
    return functions_of(Program.of(fixed, varying, learner, tagged))
