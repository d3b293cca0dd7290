"""What experiments made of parts declare alike, beside the paper's; nothing here imports JAX."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from scbjax.base import Parameter, Relation
from scbjax.parameters import TASK, TRAIN, TRANSFER
from scbjax.parts import Source
from scbjax.values import FLOAT32_MAX, Choice, Interval

DECLARED: Mapping[str, Parameter] = {p.path: p for p in (*TASK, *TRAIN, *TRANSFER)}
"""The parameters of the paper's learner, by path."""

RATES = Interval(0.0, FLOAT32_MAX)

SPARSITY = replace(DECLARED["task.sparsity"], kind="static", layer="outer", draws=False)
"""Of sources that draw all tasks of a program with one number of nonzeros."""

DATA = Parameter(
    "train.data", str, "fresh", "static", "outer",
    "Gradients: of fresh mini-batches, or expected ones (population)",
    Choice(("fresh", "population")),
)  # fmt: skip
OPTIMIZER = Parameter(
    "train.optimizer", str, "sgd", "static", "inner",
    "sgd, adam, or the paper's preconditioned step in the metric of the map",
    Choice(("sgd", "adam", "preconditioned")),
)  # fmt: skip
RATE_OF_VALUE = Parameter(
    "train.rate", float, 0.1, "traced", "inner", "Rate of V", RATES, symbol=r"$\eta$"
)
NO_L1 = replace(DECLARED["train.l1"], default=0.0)

SAMPLES_ARE_DRAWN = Relation(
    ("record.variables", "train.data"),
    lambda names, data: data == "fresh" or "samples" not in names,
    "record.variables has samples, of which train.data = '{1}' uses none",
)


def drawn_as(source: Source, data: str) -> Source:
    """A source, or one whose batches are the task itself, of which a loss knows the expectation.

    Args:
        source: draws tasks and mini-batches.
        data: the value of :data:`DATA`.
    """
    # A step has no samples then, and no noise.
    return source if data == "fresh" else Source(source.draw, lambda _, task, __: task)


def of_static(static: Mapping[str, Any], *more: str) -> dict[str, Any]:
    """The sizes of a task among the static values, and others by name."""
    return {name: static[name] for name in ("num_tokens", "context_length", "sparsity", *more)}


def without(names: Iterable[str], *others: str) -> tuple[str, ...]:
    """What is recorded unless a study says otherwise: all but what some learners do not have."""
    return tuple(name for name in names if name not in others)
