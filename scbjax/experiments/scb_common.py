"""What the paper's learner and its simulation declare alike; nothing here imports JAX."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from scbjax.base import Lowering, Relation, SearchRules, Variable
from scbjax.recorded import RECORDED
from scbjax.values import INT32_MAX, Values

# What parts of a task depend on, beside its seed.
OF_MU = frozenset({"task.num_tokens", "task.skew"})
OF_P = OF_MU | {"task.transition_signal"}
OF_Q = OF_MU | {"task.context_length", "task.sparsity"}

LIVE = "attention_distance"
"""What is shown while a run goes on."""

SPARSITY_FITS = Relation(
    ("task.sparsity", "task.context_length"),
    lambda sparsity, length: sparsity <= length,
    "task.sparsity = {} is larger than task.context_length = {}",
)
SWITCH_HAS_A_STEP = Relation(
    ("train.switch_on", "train.switch_step"),
    lambda switch_on, step: switch_on != "step" or step < INT32_MAX,
    "train.switch_on = '{}' needs a train.switch_step below {}",
)


def variables(names: Iterable[str]) -> dict[str, Variable]:
    """Some of what can be recorded, as a dataset describes it."""
    recorded = {name: RECORDED[name] for name in names}
    return {
        name: Variable(entry.long_name, entry.symbol, entry.units, entry.dtype, entry.dims)
        for name, entry in recorded.items()
    }


def constants(of_pattern: frozenset[str]) -> dict[str, Variable]:
    """What there is one number of for each task.

    Args:
        of_pattern: the parameters that Q depends on.
    """
    return {
        "transition_signal": Variable("signal of the transition matrix", "$K_P$", depends_on=OF_P),
        "pattern_signal": Variable(
            "signal of the attention pattern", "$K_Q$", depends_on=of_pattern
        ),
        "stationary_norm": Variable(
            "squared norm of the stationary distribution", r"$\|\mu\|^2$", depends_on=OF_MU
        ),
    }


# Preconditioned SGD is the proximal program with both thresholds at zero and without stage 3, so
# that the two arms of a comparison run in one program, on the same batches.
_SGD_AS_PROXIMAL: Mapping[str, Any] = {
    "train.optimizer": "proximal",
    "train.l1": 0.0,
    "train.threshold": 0.0,
    "train.stop_level": math.inf,
    "train.stop_step": INT32_MAX,
}


def _lowered(values: Values) -> dict[str, Any]:
    is_sgd = values.get("train.optimizer") == "sgd"
    return {**values, **_SGD_AS_PROXIMAL} if is_sgd else dict(values)


LOWERING = Lowering(frozenset({"train.optimizer"}), frozenset(_SGD_AS_PROXIMAL), _lowered)
"""Preconditioned SGD as an arm of the proximal program."""

SEARCH = SearchRules(
    size="task.context_length",
    batch_size="train.batch_size",
    samples="samples",
    stage="stage",
    goal="rounded_attention_distance",
)
"""What searches need to know of both."""
