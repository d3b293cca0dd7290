"""Functions that run once or a few times: compiled to be ready soon rather than to run fast.

A task is drawn, and the tables of a sampler are made, in a millisecond, by a hundred small loops
that XLA spends seconds on. On a CPU it can be told to spend less. That holds for what is called by
itself; inside of a larger program, whatever compiles that decides.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp

# The older of XLA's two ways to make machine code of a loop takes half of the time.
_EMITTERS = "xla_cpu_use_fusion_emitters"
_LEVEL = "xla_backend_optimization_level"
LIGHT, LIGHTEST = 1, 0
"""Levels of optimisation. The lightest is for arrays of a few numbers: what takes a millisecond
takes two to ten with it, and with the other no longer than without."""


_SMALL_VOCABULARY = 32


def level_for(num_tokens: int) -> int:
    """The level that suits functions of matrices of N by N numbers.

    >>> level_for(3), level_for(300)
    (0, 1)
    """
    return LIGHTEST if num_tokens <= _SMALL_VOCABULARY else LIGHT


def compiled_quickly(
    function: Callable[..., Any],
    static_argnames: Sequence[str] = (),
    level: Callable[..., int] = lambda *_, **__: LIGHT,
) -> Callable[..., Any]:
    """Like ``jax.jit``, with a compilation that is quick where the call is not part of another.

    Args:
        function: of arrays and static arguments.
        static_argnames: names of the static ones.
        level: which level of optimisation suits the arguments.

    Returns:
        The function. Results of both ways to compile it agree up to rounding.

    Example:
        >>> double = compiled_quickly(lambda x: 2 * x)
        >>> float(double(1.0)), float(jax.jit(double)(1.0))
        (2.0, 2.0)
    """
    jitted = partial(jax.jit, function, static_argnames=tuple(static_argnames))
    inside = jitted()
    alone = cache(lambda level: jitted(compiler_options=quick_options(level)))

    def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - those of the function
        if is_inside_program((args, kwargs)):
            return inside(*args, **kwargs)
        return alone(level(*args, **kwargs))(*args, **kwargs)

    return call


def is_inside_program(arguments: Any) -> bool:  # noqa: ANN401 - any tree
    """Whether a call is part of a program that is being traced: by its arguments, or its place."""
    leaves = [*jax.tree.leaves(arguments), jnp.zeros(())]
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


@cache
def quick_options(level: int = LIGHT) -> dict[str, bool | int]:
    """Options of a quick compilation, for ``compiler_options`` of JAX: as far as XLA knows them.

    >>> quick_options() if jax.default_backend() != "cpu" else {}
    {}
    """
    if jax.default_backend() != "cpu":
        return {}
    known: dict[str, bool | int] = {}
    for name, value in ((_LEVEL, level), (_EMITTERS, False)):
        try:
            jax.jit(lambda x: x).lower(0.0).compile(compiler_options={name: str(value)})
        except jax.errors.JaxRuntimeError:  # a release without that option
            continue
        known[name] = value
    return known
