"""What can be set of the paper's task and learner: each parameter is declared here, and only here.

Study files, `--set`, the checks of :class:`scbjax.settings.Settings`, datasets and documents read
these declarations. Nothing here imports JAX.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from scbjax.base import RECORD_EVERY, REQUIRED, STEPS, Parameter, Relation
from scbjax.values import FLOAT32_MAX, INT32_MAX, Choice, Interval

Attention = Literal["linear", "softmax"]
Optimizer = Literal["proximal", "sgd", "raw_sgd", "adam"]
Geometry = Literal["mu", "paper"]
L1Scaling = Literal["direct", "rate", "signal"]
SwitchOn = Literal["parameters", "truth", "step"]
Start = Literal["uniform", "transfer", "pretrained"]
Precision = Literal["highest", "high", "default"]
Generator = Literal["threefry-20", "threefry-13"]

PLAIN_OPTIMIZERS: tuple[Optimizer, ...] = ("raw_sgd", "adam")
"""Those without eq. 4: the only ones for attention maps that make column sums one by themselves."""
SIMULATED_OPTIMIZERS: tuple[Optimizer, ...] = ("proximal", "sgd", "raw_sgd")
"""Those that a simulation can take: steps that add up over the positions that it sums over."""

_SIZE = Interval(1, INT32_MAX)
_STEP = Interval(0, INT32_MAX)
_NONNEGATIVE = Interval(0.0, FLOAT32_MAX)
_POSITIVE = Interval(0.0, FLOAT32_MAX, above=True)
_UNBOUNDED = Interval(0.0, math.inf)

TASK = (
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

MODEL = (
    Parameter(
        "model.attention_map",
        str,
        "linear",
        "static",
        "inner",
        "What makes the attention A: linear, trained itself; softmax, over the positions of logits",
        Choice(get_args(Attention)),
    ),
)

TRAIN = (
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
        Choice(get_args(Optimizer)),
    ),
    Parameter(
        "train.geometry",
        str,
        "mu",
        "static",
        "inner",
        "Projector of eq. 4: orthogonal in the mu-inner product, or as the paper prints it",
        Choice(get_args(Geometry)),
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
        Choice(get_args(L1Scaling)),
    ),
    Parameter(
        "train.switch_on",
        str,
        "parameters",
        "static",
        "inner",
        "What ends stage 1: the signal read off the parameters, off the truth, or a step",
        Choice(get_args(SwitchOn)),
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
        Choice(get_args(Start)),
    ),
    Parameter(
        "train.precision",
        str,
        "highest",
        "static",
        "inner",
        "Matrix products of a step: highest, all digits; high or default, TF32 or bfloat16 factors "
        "where the device has them",
        Choice(get_args(Precision)),
    ),
    Parameter(
        "train.generator",
        str,
        "threefry-20",
        "static",
        "inner",
        "Random words of mini-batches: Threefry with the 20 rounds of JAX's keys, or with 13",
        Choice(get_args(Generator)),
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

TRANSFER = (
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

SAMPLES_ARE_COUNTED = (
    "train.steps = {} times train.batch_size = {} is more samples than "
    f"an int32 can count ({INT32_MAX})"
)
PRETRAINING_FITS = Relation(
    ("transfer.pretraining_steps", "train.record_every", "train.start"),
    lambda steps, every, start: start != "pretrained" or steps % every == 0,
    "transfer.pretraining_steps = {} is not a multiple of train.record_every = {}",
)

TOGETHER = (
    Relation(
        ("train.optimizer", "model.attention_map"),
        lambda optimizer, attention: attention == "linear" or optimizer in PLAIN_OPTIMIZERS,
        "train.optimizer = '{}' has no meaning with model.attention_map = '{}', "
        f"which needs {' or '.join(PLAIN_OPTIMIZERS)}",
        "a [[zip]] gives each map its own",
    ),
    Relation(
        ("train.start", "model.attention_map"),
        lambda start, attention: attention == "linear" or start == "uniform",
        "train.start = '{}' has no meaning with model.attention_map = '{}', which needs uniform",
    ),
    Relation(
        ("transfer.first_samples", "train.batch_size", "train.start"),
        lambda samples, batch, start: start == "uniform" or samples % batch == 0,
        "transfer.first_samples = {} is not a multiple of train.batch_size = {}",
    ),
    PRETRAINING_FITS,
    Relation(
        ("train.steps", "train.batch_size", "train.start", "transfer.first_samples"),
        lambda steps, batch, start, first: (
            steps * batch + (0 if start == "uniform" else first) <= INT32_MAX
        ),
        SAMPLES_ARE_COUNTED,
    ),
)
"""What the parameters of a learner have to fulfil together, in a study and in Python."""

DEFAULTS: Mapping[str, Any] = {
    parameter.short: parameter.default for parameter in (*TASK, *MODEL, *TRAIN, *TRANSFER)
}
"""What functions that take some of these as arguments give when they are left out."""
