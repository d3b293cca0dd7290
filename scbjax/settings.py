"""How a trajectory is trained, as a value: :class:`Settings`, with all that is checked of it."""

import dataclasses
from collections.abc import Collection, Iterable
from typing import Any, Literal, get_args

import jax
import numpy as np

from scbjax import optim
from scbjax.arguments import INT32_MAX, SIZES, Numbers, as_integer, check_is, check_number, what
from scbjax.model import ATTENTION_MAPS, LINEAR, AttentionMap, as_attention_map
from scbjax.observables import DEFAULT_RECORD, Record, as_record
from scbjax.sampling import Generator
from scbjax.tables import brief, nearest

Optimizer = Literal["proximal", "sgd", "raw_sgd", "adam"]
L1Scaling = Literal["direct", "rate", "signal"]
SwitchOn = Literal["parameters", "truth", "step"]
Start = Literal["uniform", "transfer", "pretrained"]
Precision = Literal["highest", "high", "default"]

NEVER = INT32_MAX
"""A step number that no trajectory reaches."""

PLAIN_OPTIMIZERS: tuple[Optimizer, ...] = ("raw_sgd", "adam")
"""Those without eq. 4: the only ones for attention maps that make column sums one by themselves."""

_CHOICES: dict[str, Collection[str]] = {
    "optimizer": get_args(Optimizer),
    "attention_map": ATTENTION_MAPS,
    "geometry": optim.GEOMETRIES,
    "l1_scaling": get_args(L1Scaling),
    "switch_on": get_args(SwitchOn),
    "start": get_args(Start),
    "precision": get_args(Precision),
    "generator": get_args(Generator),
}
_SIZES = (
    "batch_size",
    "steps",
    "record_every",
    "refit_samples",
    "refit_support",
    "noise_samples",
    "first_samples",
    "pretraining_steps",
    "pretraining_batch_size",
)
_SWITCHES = ("scale_rates", "flip")
_NOT_NEGATIVE, _LEVEL = Numbers(0), Numbers(0, infinite=True)
_STEP = Numbers(0, NEVER, whole=True)
_NUMBERS: dict[str, Numbers] = {
    "learning_rate_1": _NOT_NEGATIVE,
    "learning_rate_2": _NOT_NEGATIVE,
    "learning_rate_3": _NOT_NEGATIVE,
    "attention_rate_ratio": _NOT_NEGATIVE,
    "l1": _NOT_NEGATIVE,
    "switch_level": _LEVEL,
    "switch_step": _STEP,
    "threshold": _NOT_NEGATIVE,
    "stop_level": _LEVEL,
    "stop_step": _STEP,
    "rounding_level": _NOT_NEGATIVE,
    "theta": _NOT_NEGATIVE,
    "first_rate": _NOT_NEGATIVE,
    "first_threshold": _NOT_NEGATIVE,
}


def _static(default: Any = dataclasses.MISSING) -> Any:  # noqa: ANN401 - as dataclasses.field
    return dataclasses.field(default=default, metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a trajectory is trained: a pytree whose leaves are the numbers that may be traced.

    Attributes:
        batch_size: B, samples a step. Static.
        steps: number of steps, a multiple of ``record_every``. Static.
        record_every: steps between records; stages are examined then too. Static.
        optimizer: ``"proximal"``; ``"sgd"``, preconditioned and projected without l1 and without
            thresholding or rounding; ``"raw_sgd"``, plain gradients; or ``"adam"``, Adam on plain
            gradients. Static.
        attention_map: ``"linear"``, or ``"softmax"`` with ``"raw_sgd"`` or ``"adam"``, see
            :data:`scbjax.model.ATTENTION_MAPS`; or an :class:`scbjax.AttentionMap` of one's own
            with these two. Held as the map, which is compared by its functions. Static.
        geometry: right projector of the V gradient, see :func:`scbjax.optim.project_tangent`.
            Static.
        scale_rates: whether eta_V = eta / K_Q and eta_A = eta / K_P, as in the theory, or both are
            eta. Static.
        l1_scaling: the threshold of a step: ``"direct"``, lambda itself as printed; ``"rate"``,
            eta_A lambda, the textbook proximal operator; ``"signal"``, lambda eta_2 times the
            estimated alpha_V, free of scale. Static.
        switch_on: what ends a stage: ``"parameters"``, signals estimated without the truth;
            ``"truth"``, alpha_V and alpha_A; ``"step"``, a step number. Static.
        flip: whether a mirrored solution is reflected at the end of stage 1. Static.
        record: the observables to record: names of :data:`scbjax.OBSERVABLES`, and one's own as
            functions of a view or as :class:`scbjax.Observable`, in a list or in a dictionary by
            names (:func:`scbjax.observables.as_record`). Static.
        refit_samples: fresh samples for the refit of V in records. Static.
        refit_support: largest number of attention entries a column that the refit uses. Static.
        noise_samples: fresh samples for the noise of a sample in records. Static.
        start: ``"uniform"``, the paper's initialisation; ``"transfer"``, the transition matrix of a
            related task handed over, and one step on A; ``"pretrained"``, the same with the V that
            was learned from samples of that task. Static; see :func:`start_from`.
        first_samples: samples of that one step, a multiple of ``batch_size``. Static.
        pretraining_steps: steps of pretraining, a multiple of ``record_every``. Static.
        pretraining_batch_size: samples of each of them. Static.
        precision: of the matrix products of a step: ``"highest"``, all digits of the dtype on every
            device; ``"high"`` or ``"default"``, for which accelerators may round the factors to
            TF32 or bfloat16, and CPUs do nothing. Records don't depend on it. Static.
        generator: of the random words of mini-batches: ``"threefry-20"``, that of JAX's keys, or
            ``"threefry-13"``, with fewer rounds and less margin. Static.
        learning_rate_1: eta in stage 1.
        learning_rate_2: eta in stage 2.
        learning_rate_3: eta in stage 3.
        attention_rate_ratio: what eta is multiplied by for A, or for the parameter of another
            attention map, with any optimizer and in any stage. ``first_rate`` is not.
        l1: lambda, used in stage 2.
        switch_level: signal at which stage 1 ends: the larger of the two for ``"truth"``, that of V
            for ``"parameters"``.
        switch_step: step at which stage 1 ends, for ``switch_on="step"``.
        threshold: entries below ``threshold * signal / Q`` are cut at the end of stage 1; 0 cuts
            nothing.
        stop_level: mean of the two signals at which stage 2 ends; infinity for never.
        stop_step: step at which stage 2 ends, for ``switch_on="step"``.
        rounding_level: entries of at least ``rounding_level / Q`` survive rounding.
        theta: share of the related task's matrix in V at the start of a transfer.
        first_rate: eta of the one step on A.
        first_threshold: entries of size up to ``first_threshold * theta / (Q N K_P)`` are cut after
            that step.

    Concrete numbers are checked, of whatever kind they are (of Python, NumPy or JAX), and arrays of
    them by every entry; what is traced passes. None is let through as well, so that settings can be
    the ``in_axes`` of a map; the functions that train refuse it.

    Raises:
        ValueError: when made with a concrete value that is not allowed; the message names the
            field.

    Example:
        >>> Settings(batch_size=32, steps=100, record_every=10).optimizer
        'proximal'
        >>> Settings(batch_size=32, steps=100, record_every=10, l1=np.float32(-1))
        Traceback (most recent call last):
        ...
        ValueError: l1 is -1.0; it must be at least 0
    """

    batch_size: int = _static()
    steps: int = _static()
    record_every: int = _static()
    optimizer: Optimizer = _static("proximal")
    attention_map: str | AttentionMap = _static("linear")
    geometry: optim.Geometry = _static("mu")
    scale_rates: bool = _static(True)
    l1_scaling: L1Scaling = _static("direct")
    switch_on: SwitchOn = _static("parameters")
    flip: bool = _static(True)
    record: Record = _static(DEFAULT_RECORD)
    refit_samples: int = _static(4096)
    refit_support: int = _static(64)
    noise_samples: int = _static(4096)
    start: Start = _static("uniform")
    first_samples: int = _static(4096)
    pretraining_steps: int = _static(1000)
    pretraining_batch_size: int = _static(128)
    precision: Precision = _static("highest")
    generator: Generator = _static("threefry-20")
    learning_rate_1: float | jax.Array = 0.02
    learning_rate_2: float | jax.Array = 0.005
    learning_rate_3: float | jax.Array = 0.005
    attention_rate_ratio: float | jax.Array = 1.0
    l1: float | jax.Array = 1e-4
    switch_level: float | jax.Array = 0.1
    switch_step: int | jax.Array = NEVER
    threshold: float | jax.Array = 0.25
    stop_level: float | jax.Array = 1.0
    stop_step: int | jax.Array = NEVER
    rounding_level: float | jax.Array = 0.25
    theta: float | jax.Array = 0.2
    first_rate: float | jax.Array = 1.0
    first_threshold: float | jax.Array = 0.125

    def __post_init__(self) -> None:
        """Checks what is concrete, and makes plain Python values of static ones."""
        for name in _SIZES:
            object.__setattr__(self, name, as_integer(name, getattr(self, name), SIZES))
        for name in _SWITCHES:
            object.__setattr__(self, name, _as_switch(name, getattr(self, name)))
        object.__setattr__(self, "record", as_record(self.record))
        object.__setattr__(self, "attention_map", as_attention_map(self.attention_map))
        _check_choices(self)
        for name, allowed in _NUMBERS.items():
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), allowed)
        _check_counts(self)

    @property
    def samples_before(self) -> int:
        """Samples of the task that are used before the first step; pretraining uses none of it."""
        return 0 if self.start == "uniform" else self.first_samples


def check_settings(settings: Settings) -> None:
    """Raises an error if what a function got as its settings can't be trained with.

    Args:
        settings: of one trajectory.

    Raises:
        TypeError: it is something else.
        ValueError: a number in it is not allowed, is missing, or is several.
    """
    check_is("settings", settings, Settings)
    for name, allowed in _NUMBERS.items():
        value = getattr(settings, name)
        check_number(name, value, allowed)
        if np.shape(value):
            raise ValueError(
                f"{name} is {what(value)}; it must be a single number: jax.vmap maps a function "
                "over several"
            )


def _as_switch(name: str, value: object) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} is {what(value)}; it must be True or False")
    return bool(value)


def _check_choices(settings: Settings) -> None:
    for name, choices in _CHOICES.items():
        if name != "attention_map":  # which may be an object
            _check_choice(name, getattr(settings, name), choices)
    attention_map = as_attention_map(settings.attention_map)
    if attention_map != LINEAR:
        condition = f"with attention_map = {attention_map.name!r} it must be"
        _check_choice("optimizer", settings.optimizer, PLAIN_OPTIMIZERS, condition)
        _check_choice("start", settings.start, ("uniform",), condition)


def _check_choice(
    name: str, value: object, choices: Collection[str], must: str = "it must be"
) -> None:
    if isinstance(value, str) and value in choices:
        return
    hint = nearest(value, choices) if isinstance(value, str) else ""
    raise ValueError(f"{name} is {brief(value)}; {must} one of {', '.join(choices)}{hint}")


def _check_counts(settings: Settings) -> None:
    multiples = {"steps": "record_every"}
    if settings.start != "uniform":
        multiples["first_samples"] = "batch_size"
    if settings.start == "pretrained":
        multiples["pretraining_steps"] = "record_every"
    for name, unit in multiples.items():
        count, size = getattr(settings, name), getattr(settings, unit)
        if count % size:
            raise ValueError(f"{name} is {count}; it must be a multiple of {unit} = {size}")
    if settings.samples_before + settings.steps * settings.batch_size > NEVER:
        raise ValueError(
            f"steps times batch_size is {settings.steps * settings.batch_size}; "
            f"it must be at most {NEVER - settings.samples_before}"
        )


STATIC_FIELDS: tuple[str, ...] = tuple(
    f.name for f in dataclasses.fields(Settings) if f.metadata.get("static")
)
TRACED_FIELDS: tuple[str, ...] = tuple(
    f.name for f in dataclasses.fields(Settings) if not f.metadata.get("static")
)


def _flatten(settings: Settings) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    leaves = tuple(getattr(settings, name) for name in TRACED_FIELDS)
    return leaves, tuple(getattr(settings, name) for name in STATIC_FIELDS)


def _flatten_with_keys(settings: Settings) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    leaves, static = _flatten(settings)
    keys = (jax.tree_util.GetAttrKey(name) for name in TRACED_FIELDS)
    return tuple(zip(keys, leaves, strict=True)), static


def _unflatten(static: tuple[Any, ...], leaves: Iterable[Any]) -> Settings:
    # Not checked: JAX and its users put axes, shapes and other things in the places of numbers.
    settings = object.__new__(Settings)
    values = zip((*STATIC_FIELDS, *TRACED_FIELDS), (*static, *leaves), strict=True)
    for name, value in values:
        object.__setattr__(settings, name, value)
    return settings


jax.tree_util.register_pytree_with_keys(Settings, _flatten_with_keys, _unflatten, _flatten)
