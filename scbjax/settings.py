"""How a trajectory is trained, as values: one for each concern, and :class:`Settings` of them all.

What is not allowed is refused when a value is made.
"""

import dataclasses
import functools
import textwrap
from collections.abc import Collection, Iterable
from typing import Any, cast

import jax
import numpy as np

from scbjax.arguments import SIZES, Numbers, as_integer, check_is, check_number, numbers_of, what
from scbjax.base import RECORDS_FIT, REQUIRED, Relation
from scbjax.model import ATTENTION_MAPS, LINEAR, AttentionMap, as_attention_map
from scbjax.parameters import (
    MODEL,
    TOGETHER,
    TRAIN,
    TRANSFER,
    Generator,
    Geometry,
    L1Scaling,
    Optimizer,
    Precision,
    Start,
    SwitchOn,
)
from scbjax.recorded import DEFAULT_RECORD, Record, as_record
from scbjax.tables import brief, nearest
from scbjax.values import INT32_MAX, Choice

NEVER = INT32_MAX
"""A step number that no trajectory reaches."""

_TOGETHER = (RECORDS_FIT, *TOGETHER)

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
    name: numbers_of(parameter)
    for name, parameter in _DECLARED.items()
    if parameter.kind == "traced"
}


def _of(name: str) -> Any:  # noqa: ANN401 - as dataclasses.field
    """The field of a declared parameter: its default, and whether it is static."""
    parameter = _DECLARED[name]
    required = parameter.default is REQUIRED
    return dataclasses.field(
        default=dataclasses.MISSING if required else parameter.default,
        metadata={"static": parameter.kind == "static"},
    )


class _Checked:
    """What all values here have in common: a field that is not allowed can't be made."""

    def __post_init__(self) -> None:
        """Checks what is concrete, and makes plain Python values of static ones."""
        for field in dataclasses.fields(cast("Any", self)):
            value = _checked(field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        for relation, names in _relations_of(cast("Any", type(self))):
            if refusal := relation.refusal([_plain(getattr(self, n)) for n in names], short=True):
                raise ValueError(refusal)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps(_Checked):
    """How many steps a trajectory has, and the mini-batches that they see."""

    batch_size: int = _of("batch_size")
    steps: int = _of("steps")
    record_every: int = _of("record_every")
    generator: Generator = _of("generator")
    precision: Precision = _of("precision")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Descent(_Checked):
    """How a step moves the parameters: the arm, and how its rates and its l1 are scaled."""

    optimizer: Optimizer = _of("optimizer")
    attention_map: str | AttentionMap = _of("attention_map")
    geometry: Geometry = _of("geometry")
    scale_rates: bool = _of("scale_rates")
    l1_scaling: L1Scaling = _of("l1_scaling")
    attention_rate_ratio: float | jax.Array = _of("attention_rate_ratio")
    l1: float | jax.Array = _of("l1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Staging(_Checked):
    """The rates of the three stages, when they end, and what their ends do."""

    learning_rate_1: float | jax.Array = _of("learning_rate_1")
    learning_rate_2: float | jax.Array = _of("learning_rate_2")
    learning_rate_3: float | jax.Array = _of("learning_rate_3")
    switch_on: SwitchOn = _of("switch_on")
    switch_level: float | jax.Array = _of("switch_level")
    switch_step: int | jax.Array = _of("switch_step")
    stop_level: float | jax.Array = _of("stop_level")
    stop_step: int | jax.Array = _of("stop_step")
    flip: bool = _of("flip")
    threshold: float | jax.Array = _of("threshold")
    rounding_level: float | jax.Array = _of("rounding_level")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beginning(_Checked):
    """Where a trajectory starts, and what is learned before its first step (section 4)."""

    start: Start = _of("start")
    theta: float | jax.Array = _of("theta")
    first_samples: int = _of("first_samples")
    first_rate: float | jax.Array = _of("first_rate")
    first_threshold: float | jax.Array = _of("first_threshold")
    pretraining_steps: int = _of("pretraining_steps")
    pretraining_batch_size: int = _of("pretraining_batch_size")

    @property
    def samples_before(self) -> int:
        """Samples of the task that are used before the first step; pretraining uses none of it."""
        return 0 if self.start == "uniform" else self.first_samples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording(_Checked):
    """What is recorded, and the fresh samples that records of some quantities take.

    ``record`` is not declared in :mod:`scbjax.parameters`: it holds names of
    :data:`scbjax.OBSERVABLES` and observables of one's own as functions of a view or as
    :class:`scbjax.Observable`, in a list or in a dictionary by names
    (:func:`scbjax.recorded.as_record`).
    """

    record: Record = dataclasses.field(default=DEFAULT_RECORD, metadata={"static": True})
    refit_samples: int = _of("refit_samples")
    refit_support: int = _of("refit_support")
    noise_samples: int = _of("noise_samples")


CONCERNS = (Steps, Descent, Staging, Beginning, Recording)
"""The small values that settings consist of, each for one concern."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Recording, Beginning, Staging, Descent, Steps):
    """How a trajectory is trained: all concerns of this module in one value, given by name.

    A pytree whose leaves are the numbers that may be traced. A function that is about one concern
    takes the small value of that, such as :class:`Descent`; settings are one of each.

    Every parameter is declared in :mod:`scbjax.parameters`, with its default, what it may hold and
    what it means; ``help(Settings)`` lists them all. ``attention_map`` may also be an
    :class:`scbjax.AttentionMap` of one's own, which is compared by its functions.

    Concrete numbers are checked, of whatever kind they are (of Python, NumPy or JAX), and arrays of
    them by every entry; what is traced passes. None is let through as well, so that settings can be
    the ``in_axes`` of a map; the functions that train refuse it.

    Raises:
        ValueError: when made with a concrete value that is not allowed; the message names the
            field.

    Example:
        >>> Settings(batch_size=32, steps=100, record_every=10).optimizer
        'proximal'
        >>> Descent(l1=np.float32(-1))
        Traceback (most recent call last):
        ...
        ValueError: l1 is -1.0; it must be at least 0
    """


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


@functools.cache
def _relations_of(concern: type) -> tuple[tuple[Relation, tuple[str, ...]], ...]:
    """What the fields of a concern have to fulfil together, with their names."""
    own = {field.name for field in dataclasses.fields(concern)}
    short = {path: path.rpartition(".")[2] for each in _TOGETHER for path in each.paths}
    named = ((each, tuple(short[path] for path in each.paths)) for each in _TOGETHER)
    return tuple((each, names) for each, names in named if own.issuperset(names))


def _plain(value: Any) -> Any:  # noqa: ANN401 - of any kind
    """A field as a relation knows it: a map by its name, which one of one's own may have too."""
    if not isinstance(value, AttentionMap):
        return value
    return value.name if value == LINEAR or value.name != LINEAR.name else f"own {value.name}"


def _checked(name: str, value: Any) -> Any:  # noqa: ANN401 - of any kind
    """A field as it is held, if it may be held."""
    if name == "record":
        return as_record(value)
    if name == "attention_map":
        return as_attention_map(value)
    if name in _SIZES:
        return as_integer(name, value, SIZES)
    if name in _SWITCHES:
        return _as_switch(name, value)
    if name in _CHOICES:
        _check_choice(name, value, _CHOICES[name])
    elif value is not None:
        check_number(name, value, _NUMBERS[name])
    return value


def _as_switch(name: str, value: object) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} is {what(value)}; it must be True or False")
    return bool(value)


def _check_choice(name: str, value: object, choices: Collection[str]) -> None:
    if isinstance(value, str) and value in choices:
        return
    hint = nearest(value, choices) if isinstance(value, str) else ""
    raise ValueError(f"{name} is {brief(value)}; it must be one of {', '.join(choices)}{hint}")


def _listed(concern: type) -> str:
    """The parameters of a concern, one a paragraph, for its docstring."""
    lines = ["", "    Attributes:"]
    for field in dataclasses.fields(concern):
        if field.name not in _DECLARED:
            continue
        parameter = _DECLARED[field.name]
        how = "Static." if parameter.kind == "static" else f"Default {parameter.default}."
        text = f"{field.name}: {parameter.help}; {parameter.allowed}. {how}"
        lines += textwrap.wrap(text, 100, initial_indent=" " * 8, subsequent_indent=" " * 12)
    return "\n".join([*lines, "    "])


def _as_pytree(concern: type) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Registers a class with JAX; gives the names of its static and of its traced fields."""
    fields = dataclasses.fields(concern)
    static = tuple(f.name for f in fields if f.metadata.get("static"))
    traced = tuple(f.name for f in fields if not f.metadata.get("static"))

    def flatten(values: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:  # noqa: ANN401
        held = vars(values)
        return tuple(held[name] for name in traced), tuple(held[name] for name in static)

    def flatten_with_keys(values: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:  # noqa: ANN401
        leaves, structure = flatten(values)
        keys = (jax.tree_util.GetAttrKey(name) for name in traced)
        return tuple(zip(keys, leaves, strict=True)), structure

    def unflatten(structure: tuple[Any, ...], leaves: Iterable[Any]) -> Any:  # noqa: ANN401
        # Not checked: JAX and its users put axes, shapes and other things in the place of numbers.
        values: Any = object.__new__(concern)
        for name, value in zip((*static, *traced), (*structure, *leaves), strict=True):
            object.__setattr__(values, name, value)
        return values

    jax.tree_util.register_pytree_with_keys(concern, flatten_with_keys, unflatten, flatten)
    return static, traced


for _concern in CONCERNS:
    _concern.__doc__ = f"{(_concern.__doc__ or '').rstrip()}\n{_listed(_concern)}"
    _as_pytree(_concern)
Settings.__doc__ = f"{(Settings.__doc__ or '').rstrip()}\n{_listed(Settings)}"

STATIC_FIELDS: tuple[str, ...]
TRACED_FIELDS: tuple[str, ...]
STATIC_FIELDS, TRACED_FIELDS = _as_pytree(Settings)
