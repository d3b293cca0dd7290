"""The paper's learner where contexts are too long to draw, as an experiment.

It has what a simulation (:mod:`scbjax.simulation`) has, and declares nothing else: the linear
attention, the uniform start, no Adam, the usual variables, and no matrices to keep, since most rows
of A and Q are left out. Nothing here imports JAX; :mod:`scbjax.experiments.simulated_functions`
holds what is computed.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from scbjax.base import REQUIRED, Experiment, Functions, Parameter, Relation
from scbjax.experiments.scb_common import (
    LIVE,
    LOWERING,
    OF_Q,
    SEARCH,
    SPARSITY_FITS,
    SWITCH_HAS_A_STEP,
    constants,
    variables,
)
from scbjax.experiments.scb_cost import COST, TAGGED
from scbjax.experiments.scb_rates import likely_cause, rate_warnings
from scbjax.parameters import SAMPLES_ARE_COUNTED, SIMULATED_OPTIMIZERS, TASK, TRAIN
from scbjax.recorded import DEFAULT_RECORD
from scbjax.values import INT32_MAX, Choice, Interval, Values

_TAGGED = Parameter(
    TAGGED,
    int,
    REQUIRED,
    "static",
    "outer",
    "Positions that get tokens, the others being summed up; with all of them contexts are real",
    Interval(1, INT32_MAX),
)
_LEFT_OUT = {"train.start", "train.noise_samples"}
# What the learner does of which a simulation has no choice.
_FIXED: Values = {"train.start": "uniform", "model.attention_map": "linear"}


def _as_simulated(parameter: Parameter) -> Parameter:
    """A parameter of the paper's learner, as a simulation has it."""
    if parameter.path != "train.optimizer":
        return parameter
    text = "proximal (eq. 4 to 6), sgd (no l1, no thresholds) or raw_sgd (plain gradients)"
    return replace(parameter, check=Choice(SIMULATED_OPTIMIZERS), help=text)


_RELATIONS = (
    SPARSITY_FITS,
    Relation(
        (TAGGED, "task.context_length"),
        lambda tagged, length: tagged <= length,
        "task.tagged_positions = {} is larger than task.context_length = {}",
    ),
    Relation(
        (TAGGED, "task.sparsity", "task.context_length"),
        lambda tagged, sparsity, length: tagged > sparsity or tagged == length,
        "task.tagged_positions = {} is not larger than task.sparsity = {}",
    ),
    SWITCH_HAS_A_STEP,
    Relation(
        ("train.steps", "train.batch_size"),
        lambda steps, batch: steps * batch <= INT32_MAX,
        SAMPLES_ARE_COUNTED,
    ),
)


def _build(fixed: Values, varying: Mapping[str, tuple[Any, ...]]) -> Functions:
    from scbjax.experiments.simulated_functions import functions

    return functions(fixed, varying)


EXPERIMENT = Experiment(
    name="simulated",
    parameters=(
        *TASK,
        _TAGGED,
        *(_as_simulated(p) for p in TRAIN if p.path not in _LEFT_OUT),
    ),
    build=_build,
    variables=variables(DEFAULT_RECORD),
    constants=constants(OF_Q | {_TAGGED.path}),
    live=LIVE,
    relations=_RELATIONS,
    warn=lambda study: rate_warnings(study, _FIXED),
    cause=lambda values, found: likely_cause({**_FIXED, **values}, found),
    dtype=lambda values: str(values.get("task.dtype", "float32")),
    lowering=LOWERING,
    cost=COST,
    search=SEARCH,
)
"""The learner of `scb`, with a few positions that stand for all of a context."""
