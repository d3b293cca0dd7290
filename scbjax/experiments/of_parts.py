"""Experiments made of the parts of a learner: what nearly everybody wants to sweep.

:func:`learning` puts a source and a learner (:func:`scbjax.learner`) into the engine's contract, so
that a study file, `--set` and axes reach what the parts are made with. Nothing is imported of JAX
before a program is made, so that such experiments are declared without it.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeAlias

from scbjax.base import (
    RECORD_EVERY,
    STEPS,
    Experiment,
    Functions,
    Keys,
    Parameter,
    SearchRules,
    StudyError,
    Tree,
    Variable,
    short_name,
)
from scbjax.parts import Observable, Source, with_values
from scbjax.recorded import OBSERVABLES, Record, as_record, record_name
from scbjax.values import INT32_MAX, Interval, Values

if TYPE_CHECKING:
    from scbjax.composition import Learner

Static: TypeAlias = Mapping[str, Any]
"""Values of static parameters by short name."""
Make: TypeAlias = Callable[..., "Learner"]
"""``(source, static, *, batch_size, record_every, record)`` to what `scbjax.learner` makes."""

BATCH_SIZE = Parameter(
    "train.batch_size", int, 64, "static", "outer", "Samples B of a step", Interval(1, INT32_MAX)
)


def learning(
    name: str,
    source: Source | Callable[[Static], Source],
    learner: Make,
    *,
    record: Record,
    parameters: tuple[Parameter, ...] = (),
    search: SearchRules | None = None,
    lengths: Mapping[str, int] | None = None,
) -> Experiment:
    """An experiment that trains a learner on what a source draws.

    Args:
        name: what studies call it.
        source: what is learned from, or a function of the static values that makes it.
        learner: a function of the source, the static values and, by keyword, ``batch_size``,
            ``record_every`` and ``record``, that makes the learner, handing the last three on to
            :func:`scbjax.learner`. The learner's ``values`` are a dictionary of the traced
            parameters by short name.
        record: what can be recorded, as for :func:`scbjax.learner`.
        parameters: what studies can set beside ``train.steps``, ``train.record_every`` and
            ``train.batch_size`` (64), any of which may be among them with another default.
        search: what searches need to know of it; they are refused where it is left out. What its
            rules name must be among the parameters and in the record: ``"samples"`` and
            ``"stage"`` are recorded of every learner that is asked for them.

        lengths: of dimensions of what is recorded that are the same whatever is set. Those of the
            others are found out by tracing, and a study can't sweep what is static of the learner
            and record them.

    Returns:
        The experiment.

    Raises:
        StudyError: the parts of the experiment don't fit together.
        ValueError: for what can't be recorded.

    Example:
        >>> import optax, scbjax
        >>> rate = Parameter("train.rate", float, 0.1, "traced", "inner", "Rate")
        >>> def make(source, static, **given):
        ...     return scbjax.learner(source, scbjax.linear_transformer(),
        ...         lambda task, values, _: optax.sgd(values["rate"]), **given)
        >>> source = scbjax.scb_source(num_tokens=3, context_length=20, sparsity=2)
        >>> own = learning("own", source, make, record=("batch_loss",), parameters=(rate,))
        >>> [parameter.path for parameter in own.parameters]
        ['train.steps', 'train.record_every', 'train.batch_size', 'train.rate']
    """
    given = {parameter.path for parameter in parameters}
    usual = tuple(p for p in (STEPS, RECORD_EVERY, BATCH_SIZE) if p.path not in given)
    own, whole = as_record(record), (*usual, *parameters)
    make = partial(_functions, source, learner, own)
    dims, known = {d for entry in own for d in _observable(entry).dims}, dict(lengths or {})
    static = tuple(p.path for p in parameters if p.kind == "static")
    return Experiment(
        name=name,
        parameters=whole,
        build=lambda fixed, _: make(_static(whole, fixed)),
        variables={record_name(entry): _variable(entry) for entry in own},
        dims={dim: Variable(dim) for dim in sorted(dims)},
        sizes=partial(_sizes, make, own, whole, known),
        size_paths=() if dims <= known.keys() else static,
        search=search,
    )


def _observable(entry: str | Observable) -> Observable:
    return OBSERVABLES[entry] if isinstance(entry, str) else entry


def _variable(entry: str | Observable) -> Variable:
    """What a dataset says of an entry of a record."""
    found = _observable(entry)
    words = found.long_name.rstrip(".") or record_name(entry).replace("_", " ")
    return Variable(words, found.symbol, found.units, found.dtype, found.dims)


def _static(parameters: tuple[Parameter, ...], values: Values) -> tuple[tuple[str, Any], ...]:
    """The static values by short name; where one is swept, its default stands for it."""
    static = (parameter for parameter in parameters if parameter.kind == "static")
    return tuple((p.short, values.get(p.path, p.default)) for p in static)


def _traced(values: Values) -> dict[str, Any]:
    return {short_name(path): value for path, value in values.items() if "." in path}


# By its arguments, so that the parts of a learner are the same objects for all that is compiled.
@lru_cache(maxsize=64)
def _functions(
    source: Source | Callable[[Static], Source],
    learner: Make,
    record: tuple[str | Observable, ...],
    static: tuple[tuple[str, Any], ...],
) -> Functions:
    """The functions of a program."""
    from scbjax.composition import Learner
    from scbjax.trajectories import is_finite

    values = dict(static)
    drawn_from = source if isinstance(source, Source) else source(values)
    sizes = {name: values[name] for name in ("batch_size", "record_every")}
    try:
        inspect.signature(learner).bind(drawn_from, values, **sizes, record=record)
    except TypeError as error:
        raise StudyError(
            "the function that makes the learner must take (source, static, *, batch_size, "
            f"record_every, record), or (source, static, **given): {error}"
        ) from None
    own = learner(drawn_from, values, **sizes, record=record)
    if not isinstance(own, Learner):
        raise StudyError(
            f"the function that makes the learner gives {type(own).__name__}; it must give what "
            "scbjax.learner makes"
        )

    def draw(keys: Keys, values: Values) -> Tree:
        return with_values(drawn_from.draw, keys.task, _traced(values))

    def start(keys: Keys, values: Values, task: Tree) -> Tree:
        return own.init(keys.start, task, _traced(values))

    def take_record(
        keys: Keys, values: Values, task: Tree, state: Tree, index: Tree
    ) -> tuple[Tree, Mapping[str, Tree]]:
        return own.take_record(keys.data, task, _traced(values), state, index)

    return Functions(draw, start, take_record, is_finite)


def _sizes(
    make: Callable[..., Functions],
    record: tuple[str | Observable, ...],
    parameters: tuple[Parameter, ...],
    known: Mapping[str, int],
    values: Values,
) -> dict[str, int]:
    """The lengths of the dimensions of what is recorded: those that its arrays turn out to have."""
    if all(dim in known for entry in record for dim in _observable(entry).dims):
        return dict(known)
    traced = frozenset(parameter.path for parameter in parameters if parameter.kind == "traced")
    return {**_traced_sizes(make, record, traced, _static(parameters, values)), **known}


# Asked of every chunk, and a learner takes seconds to be traced.
@lru_cache(maxsize=64)
def _traced_sizes(
    make: Callable[..., Functions],
    record: tuple[str | Observable, ...],
    traced: frozenset[str],
    static: tuple[tuple[str, Any], ...],
) -> Mapping[str, int]:
    import jax
    import jax.numpy as jnp

    from scbjax.keys import THREEFRY

    functions = make(static)
    keys = Keys(lambda _, stream: jax.random.key(stream, impl=THREEFRY))
    numbers = dict.fromkeys(traced, 1.0)  # shapes don't depend on them

    def first_record() -> Mapping[str, Tree]:
        task = functions.draw(keys, numbers)
        state = functions.start(keys, numbers, task)
        return functions.take_record(keys, numbers, task, state, jnp.int32(0))[1]

    shapes = jax.eval_shape(first_record)
    return {
        dim: length
        for entry in record
        for dim, length in zip(
            _observable(entry).dims, shapes[record_name(entry)].shape, strict=True
        )
    }
