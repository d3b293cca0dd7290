"""The fields of a study: the one table that loading, overrides, planning and documentation read.

Each field names one number, switch or choice of a study by its dotted path (``train.l1``), says
what it may hold, and how a sweep over it is run:

* ``static``: it changes shapes or the program, so each value costs a compilation;
* ``traced``: it is an array inside one program, so many values share a compilation;
* ``data``: a seed, folded into a random key;
* ``run``: it holds for the study as a whole and can't be swept.

The layer says where the planner vmaps: ``outer`` fields change the stationary distribution, the
transition matrix or the tokens; ``inner`` fields leave them alone, so trajectories that differ only
there see the same batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

from scbjax.tables import brief, nearest as nearest  # noqa: PLC0414 - others find it here

Scalar: TypeAlias = bool | int | float | str
FieldValue: TypeAlias = Scalar | tuple[str, ...] | tuple[int, ...] | None
Kind: TypeAlias = Literal["static", "traced", "data", "run"]
Layer: TypeAlias = Literal["outer", "inner"]

INT32_MAX = 2**31 - 1
FLOAT32_MAX = (2 - 2**-23) * 2.0**127
FLOAT32_TINY = 2.0**-126

DEFAULT_RECORD: tuple[str, ...] = (
    "alpha_value",
    "alpha_attention",
    "delta_value",
    "delta_attention",
    "value_distance",
    "attention_distance",
    "value_similarity",
    "attention_similarity",
    "rounded_value_distance",
    "rounded_attention_distance",
    "rounded_value_similarity",
    "rounded_attention_similarity",
    "excess_loss",
    "batch_loss",
    "nonzeros",
    "stage",
    "flipped",
    "samples",
    "population_alpha_value",
    "population_alpha_attention",
)
"""What is recorded unless a study says otherwise: `scbjax.observables.DEFAULT_RECORD`."""

NOISE_RECORD: tuple[str, ...] = (
    "alpha_value_noise_mu",
    "alpha_value_noise_paper",
    "alpha_attention_noise",
    "alpha_value_gradient_mu",
    "alpha_value_gradient_paper",
    "alpha_attention_gradient",
)
"""Variables for which fresh contexts are drawn in every record."""

RECORDABLE: tuple[str, ...] = (
    *DEFAULT_RECORD,
    "population_refit_distance",
    "attention_gain_support",
    "attention_gain_rest",
    *NOISE_RECORD,
    "initial_noise_mu",
    "initial_noise_paper",
)
"""Names of `scbjax.observables.OBSERVABLES`, repeated so that studies are checked without JAX."""


class StudyError(ValueError):
    """Something is wrong with what the user asked for; its text is one sentence for the user."""


@dataclass(frozen=True)
class Interval:
    """The numbers from `low` to `high`, with `low` itself left out when `above` is set."""

    low: float
    high: float
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self) -> str:
        if self.high in (FLOAT32_MAX, math.inf):
            return f"{'above' if self.above else 'of at least'} {self.low:g}"
        if self.above:
            return f"above {self.low:g} and at most {self.high:g}"
        return f"from {self.low} to {self.high}"


@dataclass(frozen=True)
class Choice:
    """A closed list of names."""

    options: tuple[str, ...]

    def __contains__(self, value: str) -> bool:
        return value in self.options

    def __str__(self) -> str:
        return "one of " + ", ".join(f"'{option}'" for option in self.options)


Check: TypeAlias = Interval | Choice | None


class Required:
    """The default of a field that has none: a study must give it."""

    def __repr__(self) -> str:
        return "required"


REQUIRED = Required()


@dataclass(frozen=True)
class Field:
    """One field of a study.

    Attributes:
        path: dotted path in a study file; the last component is its short name.
        type: `int`, `float`, `bool` or `str`; of each entry where `many` is set.
        default: the value of a study that doesn't give it; `None` leaves the choice to the library.
        kind: how a sweep over it is run (see the module's text).
        layer: on which side of the sampler it is vmapped (see the module's text).
        help: what it is, in one line.
        check: the values that are allowed; `None` allows every value of the type.
        many: the field holds a list.
        sweepable: it may be an axis.
    """

    path: str
    type: type
    default: FieldValue | Required
    kind: Kind
    layer: Layer
    help: str
    check: Check = None
    many: bool = False
    sweepable: bool = True

    @property
    def short(self) -> str:
        """The last component of the path, which names the axis over this field."""
        return self.path.rpartition(".")[2]

    @property
    def table(self) -> str:
        """The table of the study file that the field stands in; empty at the top level."""
        return self.path.rpartition(".")[0]

    @property
    def allowed(self) -> str:
        """What the field may hold, as the end of a sentence 'it must be ...'."""
        if isinstance(self.check, Choice):
            return str(self.check)
        finite = isinstance(self.check, Interval) and self.check.high == FLOAT32_MAX
        noun = {int: "an integer", bool: "true or false", str: "a string"}.get(
            self.type, "a finite number" if finite else "a number"
        )
        return noun if self.check is None else f"{noun} {self.check}"


_SIZE = Interval(1, INT32_MAX)
_SEED = Interval(0, INT32_MAX)
_NONNEGATIVE = Interval(0.0, FLOAT32_MAX)
_POSITIVE = Interval(0.0, FLOAT32_MAX, above=True)
_UNBOUNDED = Interval(0.0, math.inf)

_SEEDS = (
    Field(
        "seed", int, 0, "data", "outer", "Seed of the task, the initial state and the data", _SEED
    ),
    Field(
        "task_seed", int, None, "data", "outer", "Seed of the task alone; `seed` if left out", _SEED
    ),
    Field(
        "data_seed",
        int,
        None,
        "data",
        "outer",
        "Seed of the batches alone; `seed` if left out",
        _SEED,
    ),
    Field(
        "init_seed",
        int,
        None,
        "data",
        "inner",
        "Seed of the initial state alone; `seed` if left out",
        _SEED,
    ),
    Field(
        "root_seed",
        int,
        0,
        "run",
        "outer",
        "Root that every other seed is folded into",
        _SEED,
        sweepable=False,
    ),
)

_TASK = (
    Field(
        "task.num_tokens",
        int,
        REQUIRED,
        "static",
        "outer",
        "Vocabulary size N",
        Interval(2, INT32_MAX),
    ),
    Field("task.context_length", int, REQUIRED, "static", "outer", "Context length T", _SIZE),
    Field(
        "task.tagged_positions",
        int,
        None,
        "static",
        "outer",
        "Positions that a simulation gives tokens to, the others being summed up; all if left out",
        _SIZE,
    ),
    Field(
        "task.sparsity",
        int,
        REQUIRED,
        "traced",
        "inner",
        "Nonzero weights in each column of Q, at most the context length",
        _SIZE,
    ),
    Field(
        "task.skew",
        float,
        2.0,
        "traced",
        "outer",
        "Constant C of Assumption 2.1 (b): mu in [1/(CN), C/N], weights of Q in [1/(CQ), C/Q]",
        Interval(1.0, FLOAT32_MAX),
    ),
    Field(
        "task.transition_signal",
        float,
        None,
        "traced",
        "outer",
        "K_P, the signal of P, clipped to what mu allows; 1.1 |mu|^2 if left out",
        _POSITIVE,
    ),
    Field(
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
    Field(
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
    Field(
        "train.batch_size", int, REQUIRED, "static", "outer", "Fresh samples B in each step", _SIZE
    ),
    Field(
        "train.steps",
        int,
        REQUIRED,
        "static",
        "outer",
        "Steps of a trajectory",
        _SIZE,
        sweepable=False,
    ),
    Field(
        "train.record_every",
        int,
        REQUIRED,
        "static",
        "outer",
        "Steps between two records; divides the number of steps",
        _SIZE,
        sweepable=False,
    ),
    Field(
        "train.optimizer",
        str,
        "proximal",
        "static",
        "inner",
        "proximal (eq. 4 to 6), sgd (no l1, no thresholds), raw_sgd or adam (plain gradients)",
        Choice(("proximal", "sgd", "raw_sgd", "adam")),
    ),
    Field(
        "train.geometry",
        str,
        "mu",
        "static",
        "inner",
        "Projector of eq. 4: orthogonal in the mu-inner product, or as the paper prints it",
        Choice(("mu", "paper")),
    ),
    Field(
        "train.scale_rates",
        bool,
        True,
        "static",
        "inner",
        "Divide the rate of V by K_Q and that of A by K_P, as the theory does",
    ),
    Field(
        "train.l1_scaling",
        str,
        "direct",
        "static",
        "inner",
        "Threshold of eq. 6: l1, l1 times the rate of A, or l1 times eta times alpha_V",
        Choice(("direct", "rate", "signal")),
    ),
    Field(
        "train.switch_on",
        str,
        "parameters",
        "static",
        "inner",
        "What ends stage 1: the signal read off the parameters, off the truth, or a step",
        Choice(("parameters", "truth", "step")),
    ),
    Field(
        "train.flip",
        bool,
        True,
        "static",
        "inner",
        "Turn a mirrored solution over at the switch (decided by the sign of sum A^3)",
    ),
    Field(
        "train.start",
        str,
        "uniform",
        "static",
        "inner",
        "Where training starts: uniform attention, transfer of a related P, or of a pretrained V",
        Choice(("uniform", "transfer", "pretrained")),
    ),
    Field(
        "train.precision",
        str,
        "highest",
        "static",
        "inner",
        "Matrix products of a step: highest, all digits; high or default, TF32 or bfloat16 factors "
        "where the device has them",
        Choice(("highest", "high", "default")),
    ),
    Field(
        "train.generator",
        str,
        "threefry-20",
        "static",
        "inner",
        "Random words of mini-batches: Threefry with the 20 rounds of JAX's keys, or with 13",
        Choice(("threefry-20", "threefry-13")),
    ),
    Field(
        "train.refit_samples",
        int,
        4096,
        "static",
        "inner",
        "Fresh samples for the refit of V after rounding",
        _SIZE,
    ),
    Field(
        "train.refit_support",
        int,
        64,
        "static",
        "inner",
        "Positions per column that the refit after rounding looks at, at most",
        _SIZE,
    ),
    Field(
        "train.noise_samples",
        int,
        4096,
        "static",
        "inner",
        "Fresh samples in a record of the noise of the gradients, where that is recorded",
        _SIZE,
    ),
    Field(
        "train.learning_rate_1", float, 0.02, "traced", "inner", "Rate eta of stage 1", _NONNEGATIVE
    ),
    Field(
        "train.learning_rate_2",
        float,
        0.005,
        "traced",
        "inner",
        "Rate eta of stage 2",
        _NONNEGATIVE,
    ),
    Field(
        "train.learning_rate_3",
        float,
        0.005,
        "traced",
        "inner",
        "Rate eta of stage 3",
        _NONNEGATIVE,
    ),
    Field(
        "train.attention_rate_ratio",
        float,
        1.0,
        "traced",
        "inner",
        "Rate of A, or of the logits that make it, over that of V, before scale_rates",
        _NONNEGATIVE,
    ),
    Field("train.l1", float, 1e-4, "traced", "inner", "Weight lambda of the l1 norm", _NONNEGATIVE),
    Field(
        "train.switch_level",
        float,
        0.1,
        "traced",
        "inner",
        "Signal that ends stage 1: estimated alpha_V, or the larger of the true ones",
        _UNBOUNDED,
    ),
    Field(
        "train.switch_step",
        int,
        INT32_MAX,
        "traced",
        "inner",
        "Step that ends stage 1 where switch_on is step",
        _SEED,
    ),
    Field(
        "train.threshold",
        float,
        0.25,
        "traced",
        "inner",
        "Weight that the end of stage 1 cuts at, as a share of alpha_V / Q; 0 cuts nothing",
        _NONNEGATIVE,
    ),
    Field(
        "train.stop_level",
        float,
        1.0,
        "traced",
        "inner",
        "Signal (alpha_V + alpha_A) / 2 that ends stage 2; inf for never",
        _UNBOUNDED,
    ),
    Field(
        "train.stop_step",
        int,
        INT32_MAX,
        "traced",
        "inner",
        "Step that ends stage 2 where switch_on is step",
        _SEED,
    ),
    Field(
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
    Field(
        "transfer.correlation",
        float,
        0.5,
        "traced",
        "inner",
        "Share rho of P in the related P_hat = rho P + (1 - rho) P', P' drawn with the same mu",
        Interval(0.0, 1.0),
    ),
    Field(
        "transfer.theta",
        float,
        0.2,
        "traced",
        "inner",
        "Share theta of P_hat in V at the start: V = theta P_hat + (1 - theta) mu 1^T",
        Interval(0.0, 1.0),
    ),
    Field(
        "transfer.first_samples",
        int,
        4096,
        "static",
        "outer",
        "Samples of the first step, which moves A alone; a multiple of the batch size",
        _SIZE,
    ),
    Field(
        "transfer.first_rate",
        float,
        1.0,
        "traced",
        "inner",
        "Rate eta of the first step",
        _NONNEGATIVE,
    ),
    Field(
        "transfer.first_threshold",
        float,
        0.125,
        "traced",
        "inner",
        "Weight that the first step cuts at, as a share of theta / (Q N K_P); 0 cuts nothing",
        _NONNEGATIVE,
    ),
    Field(
        "transfer.pretraining_steps",
        int,
        1000,
        "static",
        "inner",
        "Steps of pretraining on the related task; a multiple of record_every",
        _SIZE,
    ),
    Field(
        "transfer.pretraining_batch_size",
        int,
        128,
        "static",
        "inner",
        "Samples in each step of pretraining",
        _SIZE,
    ),
)

_RECORD = (
    Field(
        "record.variables",
        str,
        DEFAULT_RECORD,
        "run",
        "inner",
        "What is recorded",
        Choice(RECORDABLE),
        many=True,
        sweepable=False,
    ),
    Field(
        "record.final",
        bool,
        False,
        "run",
        "inner",
        "Keep the final V and A",
        sweepable=False,
    ),
    Field(
        "record.truth",
        bool,
        False,
        "run",
        "inner",
        "Keep P, mu and Q of every task",
        sweepable=False,
    ),
    Field(
        "record.snapshots",
        int,
        (),
        "run",
        "inner",
        "Steps at which V and A are kept; multiples of record_every",
        Interval(0, INT32_MAX),
        many=True,
        sweepable=False,
    ),
)

_SEARCH = tuple(
    Field(f"search.{name}", kind, default, "run", "inner", text, check, sweepable=False)
    for name, kind, default, text, check in (
        (
            "field",
            str,
            None,
            "Look for the best value of this number; the study is an ordinary one if left out",
            None,
        ),
        ("first", float, None, "Lower end of the range that is looked through first", _POSITIVE),
        ("last", float, None, "Upper end of it", _POSITIVE),
        ("points", int, 4, "Values in each round, evenly spaced logarithms", Interval(3, 64)),
        ("rounds", int, 3, "Rounds; each looks more closely around the best value", Interval(1, 9)),
        (
            "goal",
            str,
            "rounded_attention_distance",
            "What has to come to the level; the best value needs the fewest samples for that",
            Choice(RECORDABLE),
        ),
        (
            "direction",
            str,
            "falls",
            "Whether the goal is reached when it falls to the level or when it rises to it",
            Choice(("falls", "rises")),
        ),
        ("level", float, 0.1, "The level", _NONNEGATIVE),
        (
            "share",
            float,
            0.9,
            "Share of the seeds that have to reach the goal",
            Interval(0.0, 1.0, above=True),
        ),
        (
            "growth",
            float,
            0.0,
            "Samples that a run may use grow as T to this power, from those of the smallest T",
            Interval(0.0, 4.0),
        ),
    )
)

FIELDS: Mapping[str, Field] = MappingProxyType(
    {
        field.path: field
        for field in (*_SEEDS, *_TASK, *_MODEL, *_TRAIN, *_TRANSFER, *_RECORD, *_SEARCH)
    }
)
"""Every field of a study by its dotted path."""

TABLES: tuple[str, ...] = tuple(dict.fromkeys(f.table for f in FIELDS.values() if f.table))
"""The tables of a study file that hold fields."""

_SHORT: Mapping[str, str] = MappingProxyType({field.short: path for path, field in FIELDS.items()})
# Those of searches are few users' and would make the list of all twice as hard to read.
_COMMON = [field.short for field in FIELDS.values() if field.table != "search"]


def shown(value: object) -> str:
    """Returns a value as one short line of an error message.

    >>> shown([1, 2])
    '[1, 2]'
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    return brief(value)


def find_field(name: str) -> Field:
    """Returns the field of a dotted path or short name.

    Args:
        name: such as ``train.l1`` or ``l1``.

    Raises:
        StudyError: no field has that name; the nearest one is suggested.

    >>> find_field("l1").path
    'train.l1'
    """
    path = name if name in FIELDS else _SHORT.get(name)
    if path is not None:
        return FIELDS[path]
    if name in TABLES:
        raise StudyError(f"{name} is a table; name one of its fields, such as {_in_table(name)[0]}")
    table, _, short = name.rpartition(".")
    if short in _SHORT:
        hint = f"; did you mean '{_SHORT[short]}'?"
    else:
        hint = nearest(name, [*FIELDS, *_SHORT] if not table else FIELDS)
    known = _in_table(table) if table in TABLES else _COMMON
    raise StudyError(f"unknown field {shown(name)}{hint or f' (fields: {_listed(known)})'}")


def _in_table(table: str) -> list[str]:
    return [path for path, field in FIELDS.items() if field.table == table]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def read_value(field: Field, raw: object) -> FieldValue:
    """Returns the value of a field as its own type.

    Args:
        field: the field.
        raw: what a study file or an override gave; for a list field, a list.

    Returns:
        The value; an integer becomes a float where the field holds floats.

    Raises:
        StudyError: the value has the wrong type or lies outside what the field allows.

    >>> read_value(find_field("l1"), 1)
    1.0
    """
    if not field.many:
        return read_scalar(field, raw)
    if not isinstance(raw, list | tuple):
        raise StudyError(f"{field.path} must be a list, got {shown(raw)}")
    values = tuple(read_scalar(field, entry) for entry in raw)
    if len(set(values)) < len(values):
        raise StudyError(f"{field.path} must not repeat an entry, got {shown(raw)}")
    return values  # type: ignore[return-value]


def read_scalar(field: Field, raw: object) -> Scalar:
    """Returns one value, or one entry of a list, as the field's own type; see `read_value`."""
    value = _as_type(field, raw)
    if isinstance(field.check, Interval) and not isinstance(value, str):
        allowed = value in field.check
        if allowed and isinstance(value, float) and 0 < abs(value) < FLOAT32_TINY:
            raise StudyError(
                f"{field.path} must be zero or at least {FLOAT32_TINY:.2g} in size, "
                f"the smallest float32 number, got {shown(raw)}"
            )
    else:
        allowed = not isinstance(field.check, Choice) or value in field.check.options
    if allowed:
        return value
    raise _not_allowed(field, raw)


def _as_type(field: Field, raw: object) -> Scalar:
    # bool is a subclass of int in Python, but a study that writes `steps = true` is mistaken.
    if field.type is float and isinstance(raw, int | float) and not isinstance(raw, bool):
        try:
            return float(raw)
        except OverflowError:
            raise _not_allowed(field, raw) from None
    if isinstance(raw, bool | int | str) and type(raw) is field.type:
        return raw
    raise _not_allowed(field, raw)


def _not_allowed(field: Field, raw: object) -> StudyError:
    hint = ""
    if isinstance(field.check, Choice) and isinstance(raw, str):
        hint = nearest(raw, field.check.options)
        if hint and field.check.options == RECORDABLE:  # the list would bury the suggestion
            return StudyError(f"{field.path} can't hold {shown(raw)}{hint}")
    elif isinstance(raw, list) and field.sweepable:
        hint = f"; to sweep it, give axes.{field.short} a list"
    subject = f"each entry of {field.path}" if field.many else field.path
    return StudyError(f"{subject} must be {field.allowed}, got {shown(raw)}{hint}")


def field_table() -> str:
    """Returns the table of all fields in Markdown, for the documentation."""
    rows = [
        "| field | holds | default | sweep | meaning |",
        "|---|---|---|---|---|",
    ]
    for field in FIELDS.values():
        sweep = field.kind if field.sweepable else "no"
        holds = field.allowed
        if field.many:
            holds = "a list of variables" if field.type is str else f"a list, each {holds}"
        meaning = field.help.replace("|", r"\|")
        rows.append(f"| `{field.path}` | {holds} | {_default_text(field)} | {sweep} | {meaning} |")
    return "\n".join(rows) + "\n"


def _default_text(field: Field) -> str:
    if isinstance(field.default, Required):
        return "required"
    if isinstance(field.default, tuple):
        return "the usual ones" if field.default else "none"
    return "" if field.default is None else shown(field.default)
