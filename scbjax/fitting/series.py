"""Symbols as windows: which symbol is told from which, with a weight each, in chunks of a scan."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from scbjax.base import StudyError
from scbjax.fitting.reading import Symbols

CHUNK = 1 << 15
"""Windows of a chunk: what a pass over lags keeps of them fits the cache of a core."""

Out = TypeVar("Out")


class Series(NamedTuple):
    """Windows of a sequence: position t is told from the ``longest`` symbols before it.

    Attributes:
        tokens: [m + longest], with zeros before the first and behind the last.
        weights: of the m positions, 0 where no window fits; m is a multiple of the chunk.
    """

    tokens: jax.Array
    weights: jax.Array

    @property
    def longest(self) -> int:
        """The longest lag there is."""
        return int(self.tokens.shape[-1] - self.weights.shape[-1])


class Chunk(NamedTuple):
    """Windows of a part of a series: label, weight, and the tokens at any lag."""

    tokens: jax.Array
    weights: jax.Array

    @property
    def label(self) -> jax.Array:
        """What is told, [L] int32."""
        return self.at(jnp.zeros((), jnp.int32))

    def at(self, lag: jax.Array) -> jax.Array:
        """The symbols at a lag, [L] int32."""
        size = self.weights.shape[0]
        start = self.tokens.shape[0] - size - lag
        return jax.lax.dynamic_slice(self.tokens, (start,), (size,)).astype(jnp.int32)


def series_of(
    symbols: Symbols,
    longest: int,
    first: int = 0,
    last: int | None = None,
    dtype: Any = None,  # noqa: ANN401
) -> Series:
    """The windows whose labels are at positions ``first <= t < last`` of a sequence.

    Symbols before ``first`` are looked at and not told.

    Args:
        symbols: the sequence.
        longest: the longest lag.
        first: of the positions that are told.
        last: one behind them.
        dtype: of weights, and so of all that is summed; None for float32.

    Raises:
        StudyError: if no window fits.

    Example:
        >>> from scbjax.fitting.reading import as_symbols
        >>> series = series_of(as_symbols("abcabc"), 2)
        >>> float(series.weights.sum()), series.longest
        (4.0, 2)
    """
    size = symbols.tokens.size
    last = size if last is None else min(last, size)
    weights = window_weights(symbols, longest)[first:last]
    if not weights.any():
        records = len(symbols.starts)
        raise StudyError(
            f"{size} symbols{f' in {records} records' * (records > 1)} have no window of {longest} "
            f"symbols and the one behind them: {longest + 1} in a row are needed"
        )
    chunk = min(CHUNK, 1 << math.ceil(math.log2(weights.size)))
    padded = -(-weights.size // chunk) * chunk
    tokens = np.zeros(padded + longest, symbols.tokens.dtype)
    begin = max(first - longest, 0)
    tokens[longest - (first - begin) : longest + weights.size] = symbols.tokens[begin:last]
    kept = np.zeros(padded, np.float32 if dtype is None else dtype)
    kept[: weights.size] = weights
    return Series(jnp.asarray(tokens), jnp.asarray(kept))


def window_weights(symbols: Symbols, longest: int) -> NDArray[np.bool_]:
    """Which positions have ``longest`` symbols of their own record before them, [n]."""
    starts = np.asarray(symbols.starts)
    place = np.arange(symbols.tokens.size)
    own = starts[np.searchsorted(starts, place, side="right") - 1]
    fits: NDArray[np.bool_] = place - own >= longest
    return fits


def over_chunks(
    series: Series, function: Callable[[Chunk], tuple[Out, Any]], size: int = CHUNK
) -> tuple[Out, Any]:
    """Sums what a function gives of the chunks, first entry, and stacks the second.

    Args:
        series: the windows.
        function: of a chunk.
        size: windows of a chunk, a power of two.
    """
    count = series.weights.shape[0]
    size = min(size, count)

    def part(start: jax.Array) -> tuple[Out, Any]:
        tokens = jax.lax.dynamic_slice(series.tokens, (start,), (size + series.longest,))
        weights = jax.lax.dynamic_slice(series.weights, (start,), (size,))
        return function(Chunk(tokens, weights))

    def step(total: Out, start: jax.Array) -> tuple[Out, Any]:
        added, rest = part(start)
        return jax.tree.map(jnp.add, total, added), rest

    shapes = jax.eval_shape(part, jnp.zeros((), jnp.int32))[0]
    zero = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes)
    starts = jnp.arange(0, count, size, dtype=jnp.int32)
    return jax.lax.scan(step, zero, starts)
