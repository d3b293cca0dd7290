"""The parts that a learner is made of: small values of pure functions. Without JAX.

A :class:`Source` says what is learned and draws mini-batches of it, a :class:`Model` has parameters
and a loss, a list of :class:`Stage` says how long it is trained at which rates, and what is looked
at is an :class:`Observable`. The optimiser is any transformation of optax.
:func:`scbjax.composition.learner` puts them together.

A part is what it is and not what it is called: two of them are the same if their functions are the
same objects. So programs that are compiled for one are never used for another, and a part is to be
made once, outside of what is called again and again.
"""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import jax


def unchanged(value: Any) -> Any:  # noqa: ANN401 - whatever it is given
    """What it is given: in the place of a function that has nothing to do."""
    return value


def with_values(function: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401 - its own
    """Calls a function of a part, which need not take the last of its arguments, the values.

    Args:
        function: it takes all of the arguments, or all but the last.
        arguments: what it is called with.

    Example:
        >>> with_values(lambda a, b: a + b, 1, 2), with_values(lambda a: a, 1, 2)
        (3, 1)
    """
    wanted = _required(function)
    return function(*arguments[: max(wanted, len(arguments) - 1)])


def _required(function: Callable[..., Any]) -> int:
    """How many arguments a function must be given by position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters)


class Source(NamedTuple):
    """What is learned from.

    Attributes:
        draw: a key to the task, what is to be learned: any pytree of arrays. In a sweep it may also
            take the values of traced parameters, by name: ``(key, values)``.
        sample: ``(key, prepared, batch_size)`` to a mini-batch, any pytree of arrays. Batches of
            different steps have keys of their own.
        prepare: a task to what ``sample`` needs of it, computed once for all steps.
        keys: the key of a trajectory to a function that gives each step, an int32 scalar, its own
            key; None for :func:`jax.random.fold_in`. Another generator may have seeds of its own.

    Example:
        >>> import jax
        >>> coin = Source(draw=jax.random.uniform,
        ...     sample=lambda key, share, size: jax.random.bernoulli(key, share, (size,)))
        >>> coin.sample(jax.random.key(1), coin.draw(jax.random.key(0)), 5).shape
        (5,)
    """

    draw: Callable[..., Any]
    sample: Callable[[Any, Any, int], Any]
    prepare: Callable[[Any], Any] = unchanged
    keys: Callable[["jax.Array"], Callable[["jax.Array"], Any]] | None = None


class Model(NamedTuple):
    """What is trained.

    Each function may take one argument more, the ``values`` that the learner is given: numbers that
    may be traced and swept.

    Attributes:
        init: ``(key, task)`` to the parameters before the first step, any pytree of arrays.
        loss: ``(params, batch)`` to a scalar, the mean over the batch. It is differentiated by
            :func:`jax.value_and_grad`; a gradient that is written by hand is a ``custom_vjp``.
        readout: parameters to what observables see as ``view.params``. Those of this library want V
            and A, as :class:`scbjax.Params`.
    """

    init: Callable[..., Any]
    loss: Callable[..., "jax.Array"]
    readout: Callable[..., Any] = unchanged


class Stage(NamedTuple):
    """A part of a trajectory with rates of its own. All stages of a list share one optimiser.

    Which stage a trajectory is in is a number in its state: under ``vmap`` each one goes through
    the stages at its own pace, and of the rates the number chooses scalars, so that no step is
    computed twice.

    Attributes:
        name: what it is called, in messages.
        rates: what the optimiser is made with in this stage: a pytree whose leaves are numbers,
            traced or not, or schedules, functions of the number of steps done alone; or a function
            ``(task, values)`` to such a tree. The same structure in all stages of a list.
        is_over: a function of the view (:class:`scbjax.observables.View`) to a boolean scalar,
            asked before each record; None for never, as in the last stage. ``view.key`` is the
            same each time.
        at_end: ``(state, task, values)`` to the state that the next stage begins with; None for no
            change.
        frozen: names of the parameters that stay as they are, fields of tuples or keys of
            dictionaries, such as ``("attention",)``.
    """

    name: str
    rates: Any = ()
    is_over: Callable[[Any], "jax.Array"] | None = None
    at_end: Callable[[Any, Any, Any], Any] | None = None
    frozen: tuple[str, ...] = ()


class Track(NamedTuple):
    """What a trajectory carries along beside its parameters, such as a running mean.

    Attributes:
        init: ``(params, task, values)`` to what is carried: any pytree of arrays.
        step: ``(tracked, rates, task, values)`` to the same after a step with these rates.
    """

    init: Callable[[Any, Any, Any], Any]
    step: Callable[[Any, Any, Any, Any], Any]


class Observable(NamedTuple):
    """One recorded quantity.

    Attributes:
        compute: a function of a :class:`scbjax.observables.View` that returns a scalar, or an array
            with the axes ``dims``.
        long_name: what it is, in words.
        symbol: the paper's symbol, as matplotlib mathtext.
        units: ``"1"`` for pure numbers.
        dtype: ``"float32"`` or ``"int32"``, as stored.
        default: whether it is recorded unless something else is asked for.
        dims: names of the axes of an array; none for a scalar.
        name: what its record is called where it stands in a list without one.
    """

    compute: Callable[[Any], "jax.Array"]
    long_name: str = ""
    symbol: str = ""
    units: str = "1"
    dtype: str = "float32"
    default: bool = True
    dims: tuple[str, ...] = ()
    name: str = ""
