r"""Real sequences: bits a symbol against the length of the context, by every model of a fit.

A trajectory takes a block of a sequence at a random place, holds a part of it out, also at a random
place, starts a mixture of all lags up to d by squared error and runs EM on the rest: its steps are
those of EM. Beside it stand the unigram, bigram and trigram of the same symbols, smoothed by
interpolated Kneser-Ney. The first 64 symbols of a block are only looked at, so that all contexts
are told the same.

**What can be expected.**

* *Longer contexts cost.* A model of k free numbers, fitted to n symbols by the largest likelihood,
  loses on held-out symbols about what it gains on its own by fitting their noise, k / (2 n ln 2)
  bits each (Akaike 1974): the gap of held-out and learned bits is k / (n ln 2). A lag brings one
  number to MTD, N to SCB, and N (N - 1) + 1 to MTDg, whose bits must turn up first; smoothing takes
  a part of that away.
* *A mixture is a sum.* With columns on the simplex every model says a convex combination of what
  single lags say. Where the symbol before tells most, one matrix for all lags can only spread the
  weight away from it, so that MTD and SCB stay near the bigram however long the context is, and no
  mixture reaches a trigram that knows of pairs. A head more is one more matrix: SCB with H heads is
  a factorisation of rank H of the lags' matrices.
* *Periods.* Hourly temperatures repeat after 24: bits fall at d = 24, and not before. Codons have
  three bases: if their frame shows, lag 3 takes bits away that lags 1 and 2 do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from scbjax.base import (
    RECORD_EVERY,
    STEPS,
    Experiment,
    Functions,
    Keys,
    Parameter,
    Relation,
    StudyError,
    Variable,
    in_turn,
)
from scbjax.experiments.parts_common import DECLARED
from scbjax.fitting.reading import SAMPLES
from scbjax.lazily import Lazily
from scbjax.values import FLOAT32_MAX, Choice, Interval, Values

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp

    from scbjax.fitting.mixtures import Mixture
    from scbjax.fitting.moments import Moments
    from scbjax.fitting.series import Series
else:
    jax, jnp = Lazily("jax"), Lazily("jax.numpy")

NGRAMS: Final = ("unigram", "bigram", "trigram")
LONGEST: Final = 64
"""Symbols before the first that is told: of the longest context."""
_HELD_OUT = 8  # one symbol of so many
_KEPT = 0.95  # of the start, beside even weights and columns
_FACTOR = 1.6  # of over-relaxed steps of EM: what plain ones find at once is left 0.6 times off


class Block(NamedTuple):
    """A part of a sequence.

    Attributes:
        tokens: [LONGEST + n].
        learned: weights of the n symbols that a fit is made to; a multiple of a chunk of a series.
        held_out: the same of those that it is scored on.
    """

    tokens: jax.Array
    learned: jax.Array
    held_out: jax.Array

    def series(self, context: int) -> Series:
        """The windows that are learned from, with a context."""
        from scbjax.fitting.series import Series

        return Series(self.tokens[LONGEST - context :], self.learned)


class Drawn(NamedTuple):
    """A block, and the counts of pairs of what is learned from."""

    block: Block
    moments: Moments


def cut_block(key: jax.Array, tokens: jax.Array, fits: jax.Array, length: int) -> Block:
    """A block at a random place, a part of which is held out at a random place.

    Args:
        key: a PRNG key.
        tokens: of the whole sequence, [n] of uint8 or uint16.
        fits: which of them have ``LONGEST`` symbols of their own record before them, [n] of bools.
        length: of the block, without the first ``LONGEST``.

    Example:
        >>> block = cut_block(jax.random.key(0), jnp.arange(200) % 7, jnp.ones(200, bool), 128)
        >>> float(block.learned.sum()), float(block.held_out.sum())
        (112.0, 16.0)
    """
    place_key, held_key = jax.random.split(key)
    first = jax.random.randint(place_key, (), 0, tokens.shape[0] - LONGEST - length + 1, jnp.int32)
    part = length // _HELD_OUT
    start = jax.random.randint(held_key, (), 0, length - part + 1, jnp.int32)
    inside = jax.lax.dynamic_slice(fits, (first + LONGEST,), (length,)).astype(jnp.float32)
    place = jnp.arange(length, dtype=jnp.int32)
    held = ((place >= start) & (place < start + part)).astype(jnp.float32)
    cut = jax.lax.dynamic_slice(tokens, (first,), (LONGEST + length,))
    return Block(cut, inside * (1.0 - held), inside * held)


# ------------------------------------------------------------------------------------------ models


def start_of(series: Series, moments: Moments, model: str, heads: int) -> Mixture:
    """The start of EM by squared error, with all lags, moved off the edges of the simplex."""
    from scbjax.fitting import moments as by_moments
    from scbjax.fitting.mixtures import moved_inside

    lags = jnp.arange(1, series.longest + 1, dtype=jnp.int32)
    mixture = by_moments.start_of(model, series, moments, lags, heads)
    return moved_inside(mixture, moments.mu, _KEPT)


def mean_bits(mixture: Mixture, block: Block, context: int) -> tuple[jax.Array, jax.Array]:
    """Bits a symbol, of those that were learned from and of those that were held out."""
    from scbjax.fitting.mixtures import chunk_probability
    from scbjax.fitting.series import over_chunks

    found = over_chunks(
        block.series(context), lambda chunk: ((), chunk_probability(mixture, chunk))
    )[1].ravel()
    told = block.learned + block.held_out > 0  # others may look over the end of a record
    bits = -jnp.log2(jnp.where(told, jnp.maximum(found, jnp.finfo(found.dtype).tiny), 1.0))
    learned, held_out = (
        jnp.sum(weights * bits) / jnp.sum(weights) for weights in (block.learned, block.held_out)
    )
    return learned, held_out


# ----------------------------------------------------------------------------------------- n-grams


def kneser_ney(counts: jax.Array) -> jax.Array:
    """``P(y | h)`` of an n-gram by interpolated Kneser-Ney (see `scbjax.fitting.baselines`).

    Args:
        counts: of n-grams, floats [N, .., N], the symbol that is told last.

    Returns:
        Probabilities of the same shape.
    """
    size = counts.shape[-1]
    once, twice = (jnp.sum(counts == number).astype(counts.dtype) for number in (1.0, 2.0))
    found = once / jnp.maximum(once + 2.0 * twice, 1.0)
    discount = jnp.minimum(jnp.where(once > 0, found, 0.5), 0.99)
    if counts.ndim == 1:
        lower = jnp.full(size, 1.0 / size, counts.dtype)
    else:  # in how many different symbols before it an n-gram occurs
        lower = kneser_ney(jnp.sum(counts > 0, axis=0).astype(counts.dtype))[None]
    total = jnp.sum(counts, axis=-1, keepdims=True)
    different = jnp.sum(counts > 0, axis=-1, keepdims=True).astype(counts.dtype)
    safe = jnp.maximum(total, 1.0)
    left = jnp.where(total > 0, discount * different / safe, 1.0)
    law: jax.Array = jnp.maximum(counts - discount, 0.0) / safe + left * lower
    return law


def ngram_bits(block: Block, size: int, order: int) -> jax.Array:
    """Held-out bits a symbol of an n-gram.

    Args:
        block: the symbols.
        size: N.
        order: 1 for unigrams.
    """
    length = block.learned.shape[0]
    cells = jnp.zeros(length, jnp.int32)
    for lag in range(order - 1, -1, -1):
        seen = jax.lax.dynamic_slice(block.tokens, (LONGEST - lag,), (length,))
        cells = cells * size + seen.astype(jnp.int32)
    counts = jax.ops.segment_sum(block.learned, cells, size**order)
    law = kneser_ney(counts.reshape((size,) * order)).ravel()
    told = block.held_out * jnp.log2(jnp.where(block.held_out > 0, law[cells], 1.0))
    bits: jax.Array = -jnp.sum(told) / jnp.sum(block.held_out)
    return bits


# -------------------------------------------------------------------------------- what is recorded

VARIABLES: Mapping[str, Variable] = {
    "held_out_bits": Variable("log-loss of held-out symbols", units="bits"),
    "learned_bits": Variable("log-loss of the symbols that were learned from", units="bits"),
    "main_lag": Variable("the lag of the largest weight", dtype="int32"),
    "main_weight": Variable("weight of that lag, all heads, mean over queries"),
}
OF_BLOCK: Final = frozenset({"task.data", "task.symbols"})
CONSTANTS: Mapping[str, Variable] = {
    **{
        f"{name}_bits": Variable(
            f"held-out log-loss of the {name}", units="bits", depends_on=OF_BLOCK
        )
        for name in NGRAMS
    },
    "expected_gap": Variable(
        "held-out less learned bits by theory, k / (n ln 2)", units="bits",
        depends_on=OF_BLOCK | {"task.context_length", "train.model", "train.heads"},
    ),
}  # fmt: skip

PARAMETERS = (
    Parameter(
        "task.data", str, "english", "static", "outer",
        "The sequence: english (letters of the text that comes with Python), temperatures "
        "(hourly, six classes) or brca1 (bases)",
        Choice(SAMPLES),
    ),
    Parameter(
        "task.symbols", int, 32768, "static", "outer",
        "Symbols n of a block that are told: a power of two", Interval(256, 1 << 20),
    ),
    Parameter(
        "train.model", str, "mtd", "static", "outer", "The model: mtd, mtdg or scb",
        Choice(("mtd", "mtdg", "scb")),
    ),
    Parameter(
        "train.heads", int, 1, "static", "outer", "Heads H, of mtd and scb", Interval(1, 8)
    ),
    replace(
        DECLARED["task.context_length"], default=16, check=Interval(1, LONGEST),
        help="The longest lag d that is looked at",
    ),
    Parameter(
        "train.smoothing", float, 10.0, "traced", "inner",
        "Pseudo-samples of every column, and of the weights", Interval(0.0, FLOAT32_MAX),
    ),
    replace(STEPS, default=60, help="Steps of EM"),
    RECORD_EVERY,
)  # fmt: skip

HEADS_OF_ONE_MATRIX = Relation(
    ("train.model", "train.heads"),
    lambda model, heads: model != "mtdg" or heads == 1,
    "train.model = '{}' has a matrix for each lag, and no heads (train.heads = {})",
)
POWER_OF_TWO = Relation(
    ("task.symbols",),
    lambda symbols: symbols & (symbols - 1) == 0,
    "task.symbols = {} must be a power of two",
)


def _build(fixed: Values, _: Mapping[str, tuple[Any, ...]]) -> Functions:
    """The functions of a program."""
    from scbjax.fitting.em import relaxed_steps
    from scbjax.fitting.mixtures import free_numbers
    from scbjax.fitting.moments import count_pairs
    from scbjax.fitting.reading import read_sample
    from scbjax.fitting.series import window_weights

    symbols = read_sample(fixed["task.data"])
    size, length = len(symbols.names), fixed["task.symbols"]
    if symbols.tokens.size < LONGEST + length:
        raise StudyError(
            f"task.symbols = {length}; {fixed['task.data']} has {symbols.tokens.size} symbols, and "
            f"{LONGEST} of them are only looked at"
        )
    context, every = fixed["task.context_length"], fixed["train.record_every"]
    model, heads = fixed["train.model"], fixed["train.heads"]
    tokens, fits = jnp.asarray(symbols.tokens), jnp.asarray(window_weights(symbols, LONGEST))
    numbers = float(free_numbers(model, size, context, heads))

    def draw(keys: Keys, _: Values) -> Drawn:
        block = cut_block(keys.task, tokens, fits, length)
        return Drawn(block, count_pairs(block.series(context), size))

    def start(_: Keys, __: Values, drawn: Drawn) -> Mixture:
        return start_of(drawn.block.series(context), drawn.moments, model, heads)

    def advance(_: Keys, values: Values, drawn: Drawn, state: Mixture, __: jax.Array) -> Mixture:
        series, smoothing = drawn.block.series(context), values["train.smoothing"]
        mu = drawn.moments.mu
        return relaxed_steps(state, series, smoothing, mu, factor=_FACTOR, count=every)[0]

    def record(
        _: Keys, __: Values, drawn: Drawn, state: Mixture, ___: jax.Array
    ) -> dict[str, jax.Array]:
        learned, held_out = mean_bits(state, drawn.block, context)
        by_lag = jnp.mean(jnp.sum(state.weights, axis=0), axis=1)
        return {
            "held_out_bits": held_out,
            "learned_bits": learned,
            "main_lag": jnp.argmax(by_lag).astype(jnp.int32) + 1,
            "main_weight": jnp.max(by_lag),
        }

    def constants(drawn: Drawn) -> dict[str, jax.Array]:
        block = drawn.block
        bits = {f"{name}_bits": ngram_bits(block, size, n) for n, name in enumerate(NGRAMS, 1)}
        return {**bits, "expected_gap": numbers / (jnp.sum(block.learned) * jnp.log(2.0))}

    def is_finite(state: Mixture) -> jax.Array:
        return jnp.isfinite(jnp.sum(state.weights)) & jnp.isfinite(jnp.sum(state.matrices))

    return Functions(draw, start, in_turn(advance, record, every), is_finite, constants)


EXPERIMENT = Experiment(
    name="texts",
    parameters=PARAMETERS,
    build=_build,
    variables=VARIABLES,
    constants=CONSTANTS,
    live="held_out_bits",
    relations=(HEADS_OF_ONE_MATRIX, POWER_OF_TWO),
)
"""Mixtures over lags on sequences of the world, by the length of the context."""
