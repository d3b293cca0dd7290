"""Checks of arguments: one clear sentence, naming the argument, in the place of a traceback.

What is traced has no value yet and passes; its type, dtype and shape are known and are checked. A
number is checked whether it is one of Python, NumPy or JAX, and an array of them by every entry.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scbjax.base import Parameter
from scbjax.tables import brief
from scbjax.values import FLOAT32_MAX, INT32_MAX, Interval


@dataclasses.dataclass(frozen=True)
class Numbers:
    """The numbers that an argument may hold.

    Attributes:
        low: the least.
        high: the largest; infinity is allowed only where ``infinite`` says so.
        whole: whether they are integers.
        infinite: whether infinity is one of them.
        limit: what the largest is called, for messages.
        above: whether the least itself is left out.
    """

    low: float
    high: float = math.inf
    whole: bool = False
    infinite: bool = False
    limit: str = ""
    above: bool = False

    @property
    def kind(self) -> str:
        """What they are, as the end of the sentence "it must be ..."."""
        return "an integer" if self.whole else "a number"

    def wanted(self, value: float) -> str:
        """What a number that is not allowed would have to be."""
        if self.high not in {math.inf, INT32_MAX}:
            limit = f"{self.limit} = " if self.limit else ""
            return f"between {self.low:g} and {limit}{self.high:.10g}"
        if value > self.high:
            return f"at most {self.high:.0f}"
        if value == math.inf:
            return "finite"
        return f"{'above' if self.above else 'at least'} {self.low:g}"


def numbers_of(parameter: Parameter) -> Numbers:
    """The numbers that a declared parameter may hold.

    Example:
        >>> numbers_of(Parameter("steps", int, 1, "traced", "inner", "", Interval(1, 9)))
        Numbers(low=1, high=9, whole=True, infinite=False, limit='', above=False)
    """
    allowed, whole = parameter.check, parameter.type is int
    assert isinstance(allowed, Interval)
    # As an argument a number may be larger than float32 holds: float64 is allowed there.
    high = math.inf if allowed.high == FLOAT32_MAX and not whole else allowed.high
    infinite = not whole and allowed.high == math.inf
    return Numbers(allowed.low, high, whole=whole, infinite=infinite, above=allowed.above)


SIZES = Numbers(1, INT32_MAX, whole=True)
"""Numbers of things of which there must be one."""


def is_traced(value: object) -> bool:
    """Whether a value is not known yet: a tracer of JAX, or what stands for shape and dtype alone.

    Example:
        >>> is_traced(jnp.ones(3)), is_traced(jax.ShapeDtypeStruct((), jnp.float32))
        (False, True)
    """
    if isinstance(value, jax.core.Tracer | jax.ShapeDtypeStruct):
        return True
    return isinstance(value, jax.Array) and not value.is_fully_addressable


def what(value: object) -> str:
    """What a value is, in a few words of a message.

    Example:
        >>> what(3), what(None), what(jnp.ones((2, 3))), what(print)
        ('3', 'None', 'an array float32[2, 3]', 'a function')
    """
    if value is None or isinstance(value, bool | int | float | str):
        return brief(value)
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is not None and shape is not None:
        return f"an array {dtype}{list(shape)}" if shape else f"a scalar {dtype}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if callable(value) and not hasattr(value, "_fields"):
        return "a function"
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def is_numeric(value: object) -> bool:
    """Whether a value is an array of concrete numbers, also one of dimension 0.

    Example:
        >>> is_numeric(jnp.ones(3)), is_numeric(3.0), is_numeric(jax.random.key(0))
        (True, False, False)
    """
    if not isinstance(value, jax.Array | np.ndarray | np.generic) or is_traced(value):
        return False
    return not jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def outline(value: object) -> str:
    """What a value is on one line: arrays by dtype and shape, numbers as they are.

    Example:
        >>> outline({"a": jnp.ones((2, 3))}), outline(jnp.int32(4)), outline((None, 0.5))
        ('{a: float32[2, 3]}', '4', '(None, 0.5)')
    """
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is not None and shape is not None:
        known = not shape and is_numeric(value)
        return str(np.asarray(value).item()) if known else f"{dtype}{list(shape)}"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        entries = zip(value._fields, value, strict=True)
        return f"{type(value).__name__}({', '.join(f'{n}={outline(v)}' for n, v in entries)})"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(outline, value))})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {outline(entry)}' for key, entry in value.items())}}}"
    return brief(value)


def check_is(name: str, value: object, kind: type, how: str = "") -> None:
    """Raises a `TypeError` if an argument is something else than it is meant to be.

    Args:
        name: of the argument.
        value: what it is.
        kind: the class that it must be of.
        how: a hint how to make one, after a comma.

    Example:
        >>> check_is("task", 3, dict, "as {} is")
        Traceback (most recent call last):
        ...
        TypeError: task is 3; it must be a dict, as {} is
    """
    if not isinstance(value, kind):
        end = f", {how}" if how else ""
        raise TypeError(f"{name} is {what(value)}; it must be a {kind.__name__}{end}")


def check_number(name: str, value: Any, allowed: Numbers) -> None:  # noqa: ANN401 - it is looked at
    """Raises a `ValueError` if a concrete number, or an entry of an array, is not allowed.

    Example:
        >>> check_number("rates", jnp.array([0.1, -2.0]), Numbers(0))
        Traceback (most recent call last):
        ...
        ValueError: rates[1] is -2.0; it must be at least 0
        >>> check_number("steps", 8.5, SIZES)
        Traceback (most recent call last):
        ...
        ValueError: steps is 8.5; it must be an integer
    """
    if not _is_number(value, allowed):
        extra = ", not a schedule" if callable(value) else ""
        raise ValueError(f"{name} is {what(_plain(value))}; it must be {allowed.kind}{extra}")
    if is_traced(value):
        return
    floats = _as_floats(value)
    from_low = floats > allowed.low if allowed.above else floats >= allowed.low
    right = from_low & (floats <= allowed.high)  # NaN is neither
    if not allowed.infinite:
        right &= np.isfinite(floats)
    if not np.all(right):
        place = tuple(int(number) for number in np.argwhere(~right)[0])
        at = f"[{', '.join(map(str, place))}]" if place else ""
        entry = _plain(np.asarray(value)[place] if place else value)
        raise ValueError(
            f"{name}{at} is {brief(entry)}; it must be {allowed.wanted(floats[place])}"
        )


def as_integer(name: str, value: Any, allowed: Numbers) -> int:  # noqa: ANN401 - it is looked at
    """A concrete integer as one of Python's, after :func:`check_number`.

    Raises:
        ValueError: also for what is traced, or an array of several.

    Example:
        >>> as_integer("steps", np.int64(8), SIZES)
        8
    """
    check_number(name, value, allowed)
    if is_traced(value):
        raise ValueError(f"{name} is traced; it must be a plain integer, on which shapes depend")
    if np.ndim(value):
        raise ValueError(f"{name} is {what(value)}; it must be a single integer")
    return int(value)


def _is_number(value: Any, allowed: Numbers) -> bool:  # noqa: ANN401 - it is looked at
    if isinstance(value, int | float) and not isinstance(value, np.generic):
        return not isinstance(value, bool) and (isinstance(value, int) or not allowed.whole)
    if not isinstance(value, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
        return False
    real = jnp.issubdtype(value.dtype, jnp.floating) and not allowed.whole
    return bool(real or jnp.issubdtype(value.dtype, jnp.integer))


def _as_floats(value: Any) -> np.ndarray:  # noqa: ANN401 - any number or array of numbers
    try:
        return np.asarray(float(value) if isinstance(value, int) else value).astype(float)
    except OverflowError:  # integers of Python have no end
        return np.asarray(math.inf if value > 0 else -math.inf)


def _plain(value: Any) -> Any:  # noqa: ANN401 - any value
    """A scalar of NumPy or JAX as one of Python, which messages show as it is written."""
    if is_traced(value) or not isinstance(value, jax.Array | np.ndarray | np.generic):
        return value
    prng = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    return value if np.ndim(value) or prng else np.asarray(value).item()


def check_like(name: str, tree: Any, wanted: Any, whose: str) -> None:  # noqa: ANN401 - any trees
    """Refuses a tree of other parts, shapes or dtypes than another one has.

    Args:
        name: of the argument.
        tree: what was given.
        wanted: a tree of arrays, or of their shapes, as it must be.
        whose: whose tree that is, for the sentence.

    Raises:
        ValueError: says where the two differ first.

    Example:
        >>> check_like("state", {"a": jnp.zeros(2)}, {"a": jnp.zeros(3)}, "this task")
        Traceback (most recent call last):
        ...
        ValueError: state['a'] has shape [2]; that of this task has [3]
    """
    own, other = (dict(jax.tree_util.tree_flatten_with_path(each)[0]) for each in (tree, wanted))
    for path in (*other, *own):
        place = f"{name}{jax.tree_util.keystr(path)}"
        if path not in own:
            raise ValueError(f"{name} has no {place}; that of {whose} has one")
        if path not in other:
            raise ValueError(f"{place} is too much; that of {whose} has none")
        here, there = own[path], other[path]
        if np.shape(here) != np.shape(there):
            shapes = [list(np.shape(each)) for each in (here, there)]
            raise ValueError(f"{place} has shape {shapes[0]}; that of {whose} has {shapes[1]}")
        dtypes = [jnp.result_type(each) for each in (here, there)]
        if dtypes[0] != dtypes[1]:
            raise ValueError(f"{place} is {dtypes[0]}; that of {whose} is {dtypes[1]}")
