"""How a trajectory is trained, as a value: :class:`Settings`, with all that is checked of it."""

import dataclasses
import math
import textwrap
from collections.abc import Collection, Iterable
from typing import Any, Literal

import jax
import numpy as np

from scbjax import optim
from scbjax.arguments import INT32_MAX, SIZES, Numbers, as_integer, check_is, check_number, what
from scbjax.base import FLOAT32_MAX, REQUIRED, Choice, Interval, Parameter
from scbjax.model import ATTENTION_MAPS, LINEAR, AttentionMap, as_attention_map
from scbjax.observables import DEFAULT_RECORD, Record, as_record
from scbjax.parameters import MODEL, TRAIN, TRANSFER
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


def _numbers(parameter: Parameter) -> Numbers:
    """The numbers that a traced parameter may hold."""
    allowed, whole = parameter.check, parameter.type is int
    assert isinstance(allowed, Interval)
    if whole:
        return Numbers(allowed.low, allowed.high, whole=True)
    high = math.inf if allowed.high == FLOAT32_MAX else allowed.high
    return Numbers(allowed.low, high, infinite=allowed.high == math.inf)


_DECLARED = {parameter.short: parameter for parameter in (*MODEL, *TRAIN, *TRANSFER)}
del _DECLARED["correlation"]  # of the related task, not of the learner
_CHOICES: dict[str, Collection[str]] = {
    name: parameter.check.options
    for name, parameter in _DECLARED.items()
    if isinstance(parameter.check, Choice)
} | {"attention_map": ATTENTION_MAPS}
_SIZES = tuple(n for n, p in _DECLARED.items() if p.type is int and p.kind == "static")
_SWITCHES = tuple(name for name, parameter in _DECLARED.items() if parameter.type is bool)
_NUMBERS: dict[str, Numbers] = {
    name: _numbers(parameter) for name, parameter in _DECLARED.items() if parameter.kind == "traced"
}


def _of(name: str) -> Any:  # noqa: ANN401 - as dataclasses.field
    """The field of a declared parameter: its default, and whether it is static."""
    parameter = _DECLARED[name]
    required = parameter.default is REQUIRED
    return dataclasses.field(
        default=dataclasses.MISSING if required else parameter.default,
        metadata={"static": parameter.kind == "static"},
    )


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a trajectory is trained: a pytree whose leaves are the numbers that may be traced.

    Every parameter is declared in :mod:`scbjax.parameters`, with its default, what it may hold and
    what it means; ``help(Settings)`` lists them all. ``attention_map`` may also be an
    :class:`scbjax.AttentionMap` of one's own, which is compared by its functions. ``record`` is not
    declared there: it holds the observables to record, names of :data:`scbjax.OBSERVABLES` and
    one's own as functions of a view or as :class:`scbjax.Observable`, in a list or in a dictionary
    by names (:func:`scbjax.observables.as_record`).

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

    batch_size: int = _of("batch_size")
    steps: int = _of("steps")
    record_every: int = _of("record_every")
    optimizer: Optimizer = _of("optimizer")
    attention_map: str | AttentionMap = _of("attention_map")
    geometry: optim.Geometry = _of("geometry")
    scale_rates: bool = _of("scale_rates")
    l1_scaling: L1Scaling = _of("l1_scaling")
    switch_on: SwitchOn = _of("switch_on")
    flip: bool = _of("flip")
    record: Record = dataclasses.field(default=DEFAULT_RECORD, metadata={"static": True})
    refit_samples: int = _of("refit_samples")
    refit_support: int = _of("refit_support")
    noise_samples: int = _of("noise_samples")
    start: Start = _of("start")
    first_samples: int = _of("first_samples")
    pretraining_steps: int = _of("pretraining_steps")
    pretraining_batch_size: int = _of("pretraining_batch_size")
    precision: Precision = _of("precision")
    generator: Generator = _of("generator")
    learning_rate_1: float | jax.Array = _of("learning_rate_1")
    learning_rate_2: float | jax.Array = _of("learning_rate_2")
    learning_rate_3: float | jax.Array = _of("learning_rate_3")
    attention_rate_ratio: float | jax.Array = _of("attention_rate_ratio")
    l1: float | jax.Array = _of("l1")
    switch_level: float | jax.Array = _of("switch_level")
    switch_step: int | jax.Array = _of("switch_step")
    threshold: float | jax.Array = _of("threshold")
    stop_level: float | jax.Array = _of("stop_level")
    stop_step: int | jax.Array = _of("stop_step")
    rounding_level: float | jax.Array = _of("rounding_level")
    theta: float | jax.Array = _of("theta")
    first_rate: float | jax.Array = _of("first_rate")
    first_threshold: float | jax.Array = _of("first_threshold")

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


def _listed() -> str:
    """All parameters, one a paragraph, for the docstring."""
    lines = ["", "    Attributes:"]
    for name, parameter in _DECLARED.items():
        how = "Static." if parameter.kind == "static" else f"Default {parameter.default}."
        text = f"{name}: {parameter.help}; {parameter.allowed}. {how}"
        lines += textwrap.wrap(text, 100, initial_indent=" " * 8, subsequent_indent=" " * 12)
    return "\n".join([*lines, "    "])


Settings.__doc__ = (Settings.__doc__ or "") + _listed()

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
