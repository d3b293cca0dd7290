"""The paper's learner as an experiment: what can be set, what is recorded, and what must fit.

Nothing here imports JAX; :mod:`scbjax.experiments.scb_functions` holds what is computed.
"""

import math
from collections.abc import Mapping
from typing import Any

from scbjax.base import (
    INT32_MAX,
    RECORD_EVERY,
    CheckedStudy,
    Experiment,
    Functions,
    Lowering,
    Relation,
    SearchRules,
    StudyError,
    Values,
    Variable,
)
from scbjax.experiments.scb_cost import COST
from scbjax.experiments.scb_rates import likely_cause, rate_warnings
from scbjax.parameters import MODEL, TASK, TRAIN, TRANSFER
from scbjax.recorded import DEFAULT_RECORD, RECORDED

_ATTENTION_RELATIONS = (
    Relation(
        ("train.optimizer", "model.attention_map"),
        lambda optimizer, attention: attention == "linear" or optimizer in ("raw_sgd", "adam"),
        "train.optimizer = '{}' has no meaning with model.attention_map = '{}', "
        "which needs raw_sgd or adam; a [[zip]] gives each map its own",
    ),
    Relation(
        ("train.start", "model.attention_map"),
        lambda start, attention: attention == "linear" or start == "uniform",
        "train.start = '{}' has no meaning with model.attention_map = '{}', which needs uniform",
    ),
)
_RELATIONS = (
    Relation(
        ("task.sparsity", "task.context_length"),
        lambda sparsity, length: sparsity <= length,
        "task.sparsity = {} is larger than task.context_length = {}",
    ),
    Relation(
        ("task.tagged_positions", "task.sparsity", "task.context_length"),
        lambda tagged, sparsity, length: tagged is None or tagged > sparsity or tagged >= length,
        "task.tagged_positions = {} is not larger than task.sparsity = {}",
    ),
    Relation(
        ("train.start", "task.tagged_positions", "task.context_length"),
        lambda start, tagged, length: start == "uniform" or tagged is None or tagged >= length,
        "train.start = '{}' has no simulation; leave out task.tagged_positions = {}",
    ),
    Relation(
        ("model.attention_map", "task.tagged_positions", "task.context_length"),
        lambda attention, tagged, length: (
            attention == "linear" or tagged is None or tagged >= length
        ),
        "model.attention_map = '{}' has no simulation; leave out task.tagged_positions = {}",
    ),
    Relation(
        ("train.optimizer", "task.tagged_positions", "task.context_length"),
        lambda optimizer, tagged, length: optimizer != "adam" or tagged is None or tagged >= length,
        "train.optimizer = '{}' has no simulation; leave out task.tagged_positions = {}",
    ),
    Relation(
        ("record.variables", "task.tagged_positions", "task.context_length"),
        lambda names, tagged, length: (
            tagged is None or tagged >= length or set(names) <= set(DEFAULT_RECORD)
        ),
        "record.variables asks for more than a simulation has, the variables that are recorded by "
        "default; leave out task.tagged_positions = {1}",
    ),
    Relation(
        ("transfer.first_samples", "train.batch_size", "train.start"),
        lambda samples, batch, start: start == "uniform" or samples % batch == 0,
        "transfer.first_samples = {} is not a multiple of train.batch_size = {}",
    ),
    Relation(
        ("transfer.pretraining_steps", "train.record_every", "train.start"),
        lambda steps, every, start: start != "pretrained" or steps % every == 0,
        "transfer.pretraining_steps = {} is not a multiple of train.record_every = {}",
    ),
    Relation(
        ("train.switch_on", "train.switch_step"),
        lambda switch_on, step: switch_on != "step" or step < INT32_MAX,
        "train.switch_on = '{}' needs a train.switch_step below {}",
    ),
    *_ATTENTION_RELATIONS,
    Relation(
        ("train.steps", "train.batch_size", "train.start", "transfer.first_samples"),
        lambda steps, batch, start, first: (
            steps * batch + (0 if start == "uniform" else first) <= INT32_MAX
        ),
        "train.steps = {} times train.batch_size = {} is more samples than "
        f"an int32 can count ({INT32_MAX})",
    ),
)


def _check_kept(study: CheckedStudy) -> None:
    """Matrices are kept of all positions, which a simulation leaves most of out."""
    base = study.base
    if not (base["record.final"] or base["record.truth"] or base["record.snapshots"]):
        return
    tagged = base.get("task.tagged_positions", 0)
    if tagged is not None:
        raise StudyError(
            "record.final, record.truth and record.snapshots need all positions, but "
            "task.tagged_positions "
            + (f"= {tagged} leaves most of them out" if tagged else "is an axis")
        )


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


def _sizes(values: Values) -> dict[str, int]:
    tokens, length = values["task.num_tokens"], values["task.context_length"]
    return {"token_out": tokens, "token_in": tokens, "position": length, "query": tokens}


def _pretraining_fits(values: Values, record_every: int) -> str:
    steps = values["transfer.pretraining_steps"]
    if values["train.start"] != "pretrained" or steps % record_every == 0:
        return ""
    return f"transfer.pretraining_steps = {steps} is not a multiple of {RECORD_EVERY.path}"


def _build(fixed: Values, varying: Mapping[str, tuple[Any, ...]]) -> Functions:
    from scbjax.experiments.scb_functions import functions

    return functions(fixed, varying)


# What parts of a task depend on, beside its seed.
_OF_MU = frozenset({"task.num_tokens", "task.skew"})
_OF_P = _OF_MU | {"task.transition_signal"}
_OF_Q = _OF_MU | {"task.context_length", "task.tagged_positions", "task.sparsity"}
_TOKENS, _POSITIONS = ("token_out", "token_in"), ("position", "query")

EXPERIMENT = Experiment(
    name="scb",
    parameters=(*TASK, *MODEL, *TRAIN, *TRANSFER),
    build=_build,
    variables={
        name: Variable(entry.long_name, entry.symbol, entry.units, entry.dtype, entry.dims)
        for name, entry in RECORDED.items()
    },
    default_record=DEFAULT_RECORD,
    constants={
        "transition_signal": Variable("signal of the transition matrix", "$K_P$", depends_on=_OF_P),
        "pattern_signal": Variable("signal of the attention pattern", "$K_Q$", depends_on=_OF_Q),
        "stationary_norm": Variable(
            "squared norm of the stationary distribution", r"$\|\mu\|^2$", depends_on=_OF_MU
        ),
    },
    kept={
        "value": Variable("value matrix", "$V$", dims=_TOKENS),
        "attention": Variable("attention matrix", "$A$", dims=_POSITIONS),
    },
    truth={
        "transition": Variable("transition matrix", "$P$", dims=_TOKENS, depends_on=_OF_P),
        "stationary": Variable(
            "stationary distribution", r"$\mu$", dims=("token_in",), depends_on=_OF_MU
        ),
        "pattern": Variable("attention pattern", "$Q$", dims=_POSITIONS, depends_on=_OF_Q),
    },
    dims={
        "token_out": Variable("row of V, the token predicted", "$n$"),
        "token_in": Variable("column of V, the token attended to", "$m$"),
        "position": Variable("position in the context", "$t$"),
        "query": Variable("query token", "$k$"),
    },
    sizes=_sizes,
    size_paths=("task.num_tokens", "task.context_length"),
    live="attention_distance",
    relations=_RELATIONS,
    check=_check_kept,
    warn=rate_warnings,
    cause=likely_cause,
    dtype=lambda values: str(values.get("task.dtype", "float32")),
    lowering=Lowering(frozenset({"train.optimizer"}), frozenset(_SGD_AS_PROXIMAL), _lowered),
    cost=COST,
    search=SearchRules(
        size="task.context_length",
        batch_size="train.batch_size",
        samples="samples",
        stage="stage",
        goal="rounded_attention_distance",
        multiples=_pretraining_fits,
        reads=("train.start", "transfer.pretraining_steps"),
    ),
)
"""The sparse contextual bigram and its one-layer linear transformer."""
