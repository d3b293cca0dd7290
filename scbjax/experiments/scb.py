"""The paper's learner as an experiment: what can be set, what is recorded, and what must fit.

Nothing here imports JAX; :mod:`scbjax.experiments.scb_functions` holds what is computed.
"""

import math
from collections.abc import Mapping
from typing import Any

from scbjax.base import (
    FLOAT32_MAX,
    INT32_MAX,
    RECORD_EVERY,
    REQUIRED,
    STEPS,
    CheckedStudy,
    Choice,
    Experiment,
    Functions,
    Interval,
    Lowering,
    Parameter,
    Relation,
    SearchRules,
    StudyError,
    Values,
    Variable,
)
from scbjax.experiments.scb_cost import COST
from scbjax.experiments.scb_rates import likely_cause, rate_warnings
from scbjax.experiments.scb_record import DEFAULT_RECORD, RECORDABLE

_SIZE = Interval(1, INT32_MAX)
_STEP = Interval(0, INT32_MAX)
_NONNEGATIVE = Interval(0.0, FLOAT32_MAX)
_POSITIVE = Interval(0.0, FLOAT32_MAX, above=True)
_UNBOUNDED = Interval(0.0, math.inf)

_TASK = (
    Parameter(
        "task.num_tokens",
        int,
        REQUIRED,
        "static",
        "outer",
        "Vocabulary size N",
        Interval(2, INT32_MAX),
        symbol="$N$",
    ),
    Parameter(
        "task.context_length",
        int,
        REQUIRED,
        "static",
        "outer",
        "Context length T",
        _SIZE,
        symbol="$T$",
    ),
    Parameter(
        "task.tagged_positions",
        int,
        None,
        "static",
        "outer",
        "Positions that a simulation gives tokens to, the others being summed up; all if left out",
        _SIZE,
    ),
    Parameter(
        "task.sparsity",
        int,
        REQUIRED,
        "traced",
        "inner",
        "Nonzero weights in each column of Q, at most the context length",
        _SIZE,
        symbol="$Q$",
        draws=True,
    ),
    Parameter(
        "task.skew",
        float,
        2.0,
        "traced",
        "outer",
        "Constant C of Assumption 2.1 (b): mu in [1/(CN), C/N], weights of Q in [1/(CQ), C/Q]",
        Interval(1.0, FLOAT32_MAX),
        symbol="$C$",
        always_float32=True,
    ),
    Parameter(
        "task.transition_signal",
        float,
        None,
        "traced",
        "outer",
        "K_P, the signal of P, clipped to what mu allows; 1.1 |mu|^2 if left out",
        _POSITIVE,
        symbol="$K_P$",
        always_float32=True,
    ),
    Parameter(
        "task.dtype",
        str,
        "float32",
        "static",
        "outer",
        "Numbers that tasks, parameters and records are held in; what is drawn is the same in both",
        Choice(("float32", "float64")),
        sweepable=False,
    ),
)

_MODEL = (
    Parameter(
        "model.attention_map",
        str,
        "linear",
        "static",
        "inner",
        "What makes the attention A: linear, trained itself; softmax, over the positions of logits",
        Choice(("linear", "softmax")),
    ),
)

_TRAIN = (
    Parameter(
        "train.batch_size",
        int,
        REQUIRED,
        "static",
        "outer",
        "Fresh samples B in each step",
        _SIZE,
        symbol="$B$",
    ),
    STEPS,
    RECORD_EVERY,
    Parameter(
        "train.optimizer",
        str,
        "proximal",
        "static",
        "inner",
        "proximal (eq. 4 to 6), sgd (no l1, no thresholds), raw_sgd or adam (plain gradients)",
        Choice(("proximal", "sgd", "raw_sgd", "adam")),
    ),
    Parameter(
        "train.geometry",
        str,
        "mu",
        "static",
        "inner",
        "Projector of eq. 4: orthogonal in the mu-inner product, or as the paper prints it",
        Choice(("mu", "paper")),
    ),
    Parameter(
        "train.scale_rates",
        bool,
        True,
        "static",
        "inner",
        "Divide the rate of V by K_Q and that of A by K_P, as the theory does",
    ),
    Parameter(
        "train.l1_scaling",
        str,
        "direct",
        "static",
        "inner",
        "Threshold of eq. 6: l1, l1 times the rate of A, or l1 times eta times alpha_V",
        Choice(("direct", "rate", "signal")),
    ),
    Parameter(
        "train.switch_on",
        str,
        "parameters",
        "static",
        "inner",
        "What ends stage 1: the signal read off the parameters, off the truth, or a step",
        Choice(("parameters", "truth", "step")),
    ),
    Parameter(
        "train.flip",
        bool,
        True,
        "static",
        "inner",
        "Turn a mirrored solution over at the switch (decided by the sign of sum A^3)",
    ),
    Parameter(
        "train.start",
        str,
        "uniform",
        "static",
        "inner",
        "Where training starts: uniform attention, transfer of a related P, or of a pretrained V",
        Choice(("uniform", "transfer", "pretrained")),
    ),
    Parameter(
        "train.precision",
        str,
        "highest",
        "static",
        "inner",
        "Matrix products of a step: highest, all digits; high or default, TF32 or bfloat16 factors "
        "where the device has them",
        Choice(("highest", "high", "default")),
    ),
    Parameter(
        "train.generator",
        str,
        "threefry-20",
        "static",
        "inner",
        "Random words of mini-batches: Threefry with the 20 rounds of JAX's keys, or with 13",
        Choice(("threefry-20", "threefry-13")),
    ),
    Parameter(
        "train.refit_samples",
        int,
        4096,
        "static",
        "inner",
        "Fresh samples for the refit of V after rounding",
        _SIZE,
    ),
    Parameter(
        "train.refit_support",
        int,
        64,
        "static",
        "inner",
        "Positions per column that the refit after rounding looks at, at most",
        _SIZE,
    ),
    Parameter(
        "train.noise_samples",
        int,
        4096,
        "static",
        "inner",
        "Fresh samples in a record of the noise of the gradients, where that is recorded",
        _SIZE,
    ),
    Parameter(
        "train.learning_rate_1",
        float,
        0.02,
        "traced",
        "inner",
        "Rate eta of stage 1",
        _NONNEGATIVE,
        symbol=r"$\eta_1$",
    ),
    Parameter(
        "train.learning_rate_2",
        float,
        0.005,
        "traced",
        "inner",
        "Rate eta of stage 2",
        _NONNEGATIVE,
        symbol=r"$\eta_2$",
    ),
    Parameter(
        "train.learning_rate_3",
        float,
        0.005,
        "traced",
        "inner",
        "Rate eta of stage 3",
        _NONNEGATIVE,
        symbol=r"$\eta_3$",
    ),
    Parameter(
        "train.attention_rate_ratio",
        float,
        1.0,
        "traced",
        "inner",
        "Rate of A, or of the logits that make it, over that of V, before scale_rates",
        _NONNEGATIVE,
    ),
    Parameter(
        "train.l1",
        float,
        1e-4,
        "traced",
        "inner",
        "Weight lambda of the l1 norm",
        _NONNEGATIVE,
        symbol=r"$\lambda$",
    ),
    Parameter(
        "train.switch_level",
        float,
        0.1,
        "traced",
        "inner",
        "Signal that ends stage 1: estimated alpha_V, or the larger of the true ones",
        _UNBOUNDED,
    ),
    Parameter(
        "train.switch_step",
        int,
        INT32_MAX,
        "traced",
        "inner",
        "Step that ends stage 1 where switch_on is step",
        _STEP,
        symbol=r"$\tau$",
    ),
    Parameter(
        "train.threshold",
        float,
        0.25,
        "traced",
        "inner",
        "Weight that the end of stage 1 cuts at, as a share of alpha_V / Q; 0 cuts nothing",
        _NONNEGATIVE,
    ),
    Parameter(
        "train.stop_level",
        float,
        1.0,
        "traced",
        "inner",
        "Signal (alpha_V + alpha_A) / 2 that ends stage 2; inf for never",
        _UNBOUNDED,
    ),
    Parameter(
        "train.stop_step",
        int,
        INT32_MAX,
        "traced",
        "inner",
        "Step that ends stage 2 where switch_on is step",
        _STEP,
    ),
    Parameter(
        "train.rounding_level",
        float,
        0.25,
        "traced",
        "inner",
        "Weight that rounding cuts at, as a share of 1 / Q",
        _NONNEGATIVE,
    ),
)

_TRANSFER = (
    Parameter(
        "transfer.correlation",
        float,
        0.5,
        "traced",
        "inner",
        "Share rho of P in the related P_hat = rho P + (1 - rho) P', P' drawn with the same mu",
        Interval(0.0, 1.0),
        always_float32=True,
    ),
    Parameter(
        "transfer.theta",
        float,
        0.2,
        "traced",
        "inner",
        "Share theta of P_hat in V at the start: V = theta P_hat + (1 - theta) mu 1^T",
        Interval(0.0, 1.0),
    ),
    Parameter(
        "transfer.first_samples",
        int,
        4096,
        "static",
        "outer",
        "Samples of the first step, which moves A alone; a multiple of the batch size",
        _SIZE,
    ),
    Parameter(
        "transfer.first_rate",
        float,
        1.0,
        "traced",
        "inner",
        "Rate eta of the first step",
        _NONNEGATIVE,
    ),
    Parameter(
        "transfer.first_threshold",
        float,
        0.125,
        "traced",
        "inner",
        "Weight that the first step cuts at, as a share of theta / (Q N K_P); 0 cuts nothing",
        _NONNEGATIVE,
    ),
    Parameter(
        "transfer.pretraining_steps",
        int,
        1000,
        "static",
        "inner",
        "Steps of pretraining on the related task; a multiple of record_every",
        _SIZE,
    ),
    Parameter(
        "transfer.pretraining_batch_size",
        int,
        128,
        "static",
        "inner",
        "Samples in each step of pretraining",
        _SIZE,
    ),
)


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


def _variables() -> Mapping[str, Variable]:
    from scbjax.observe import OBSERVABLES

    return {
        name: Variable(entry.long_name, entry.symbol, entry.units, entry.dtype)
        for name, entry in OBSERVABLES.items()
    }


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
    parameters=(*_TASK, *_MODEL, *_TRAIN, *_TRANSFER),
    build=_build,
    variables=_variables,
    recordable=RECORDABLE,
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
