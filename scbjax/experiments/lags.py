r"""Which method finds the lags of a chain, how often: chains with known answers for `scbjax fit`.

A chain is drawn from one of the models of :mod:`scbjax.fitting` with two symbols and a few known
lags, and its lags are chosen from its first n symbols, by the model that it was drawn from. Every
method gives an order of lags, of which the first g = 1, .., 5 are fitted by EM, and the g of the
least BIC is taken, as `scbjax fit` does.

**What can be expected.** Let a lag add a share s of the variance of the next symbol to what the
other lags tell. Its test (:func:`scbjax.fitting.moments.conditional_tests`) has the mean
``1 + n s`` and, where s = 0, the law of chi-square with one degree for N = 2, so that the largest
of d false ones is about ``2 log d``, and a true lag stands out by its rank once ``n s > 2 log d``.
BIC takes a lag in if twice the gain of log-likelihood, about ``n s``, is larger than ``log n`` for
each number that it brings: one for MTD, three for MTDg (a matrix of two columns, and a weight), two
for SCB. The largest gain of d - G false lags exceeds that with a chance of about ``1 - (1 -
P(chi2_k > k log n))^(d - G)`` for k numbers, which goes to zero slowly: for MTD and d = 100 it is
0.57 at n = 1000 and 0.21 at n = 10000, an upper bound, since weights are not negative and half of
the false lags have no gain. Screening ranks what lags tell by themselves: echoes of a true lag come
before a weaker true one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from scbjax.base import (
    RECORD_EVERY,
    STEPS,
    Experiment,
    Functions,
    Keys,
    Parameter,
    Relation,
    Variable,
    in_turn,
)
from scbjax.experiments.parts_common import DECLARED
from scbjax.lazily import Lazily
from scbjax.values import Choice, Interval, Values

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp

    from scbjax.fitting.mixtures import Mixture
    from scbjax.fitting.moments import Moments
    from scbjax.fitting.series import Series
else:
    jax, jnp = Lazily("jax"), Lazily("jax.numpy")

SYMBOLS = 2
BATCH = 1000
"""Symbols that each step adds to those that lags are chosen from."""
METHODS = ("screening", "l1", "forward")
CASES: Mapping[str, tuple[int, ...]] = {"1,15,30": (1, 15, 30), "1,5": (1, 5)}
_MOST = 5  # lags that are tried at once
_MOST_STEPS = 16
_ITERATIONS = 30  # steps of EM for a set of lags
_FACTOR = 1.9  # of overrelaxed steps of EM
_BURN_IN = 10  # contexts
_SMOOTHING = 0.1


class Chain(NamedTuple):
    """A sequence and what it was drawn from.

    Attributes:
        tokens: [d + n], the first d of them as context of the first symbol that is told.
        lags: which are true, [d] of bools; lag 1 first.
    """

    tokens: jax.Array
    lags: jax.Array


class Found(NamedTuple):
    """Lags that were chosen: how many false ones, and how many true ones are missing; int32."""

    false: jax.Array
    missed: jax.Array


def random_chain(key: jax.Array, model: str, lags: tuple[int, ...]) -> Mixture:
    """A mixture of two symbols: clear columns, and no weight below a third of an equal one.

    Args:
        key: a PRNG key.
        model: ``mtd``, ``mtdg`` or ``scb``.
        lags: of it.

    Example:
        >>> random_chain(jax.random.key(0), "mtdg", (1, 5))
        Mixture(mtdg, 2 symbols, 2 lags, 1 heads)
    """
    from scbjax.fitting.mixtures import Mixture

    weight_key, low_key, high_key, turn_key = jax.random.split(key, 4)
    count, queries = len(lags), SYMBOLS if model == "scb" else 1
    weights = jax.random.uniform(weight_key, (1, count, queries), minval=0.5, maxval=1.5)
    matrices = count if model == "mtdg" else 1
    low = jax.random.uniform(low_key, (matrices,), minval=0.05, maxval=0.4)
    high = jax.random.uniform(high_key, (matrices,), minval=0.6, maxval=0.95)
    turned = jax.random.bernoulli(turn_key, 0.5, (matrices,))
    after = jnp.stack([jnp.where(turned, high, low), jnp.where(turned, low, high)], axis=1)
    return Mixture(
        weights / jnp.sum(weights, axis=1, keepdims=True),
        jnp.stack([after, 1.0 - after], axis=1),
        jnp.asarray(lags, jnp.int32),
    )


def grow(key: jax.Array, mixture: Mixture, context: int, length: int) -> jax.Array:
    """A sequence of the mixture, after a burn-in of ten contexts; [context + length] uint8."""
    from scbjax.fitting.mixtures import sample

    first, then = jax.random.split(key)
    start = jax.random.randint(first, (context,), 0, SYMBOLS, jnp.int32)
    drawn = sample(mixture, then, start, (_BURN_IN + 1) * context + length)
    grown: jax.Array = drawn[_BURN_IN * context :].astype(jnp.uint8)
    return grown


def ranked(method: str, moments: Moments) -> jax.Array:
    """The first five lags in the order of a method, [5] int32."""
    from scbjax.fitting.moments import conditional_tests
    from scbjax.fitting.selection import penalty_path

    none = jnp.ones(_MOST, jnp.int32), jnp.zeros(_MOST, bool)
    if method == "screening":
        return jax.lax.top_k(conditional_tests(moments, *none)[0], _MOST)[1].astype(jnp.int32) + 1
    if method == "l1":
        path = penalty_path(moments)
        first = jnp.where(jnp.any(path > 0, axis=0), jnp.argmax(path > 0, axis=0), path.shape[0])
        early = -first.astype(path.dtype) + path[-1]  # weights are less than one
        return jax.lax.top_k(early, _MOST)[1].astype(jnp.int32) + 1

    def add(carry: tuple[jax.Array, jax.Array], place: jax.Array) -> tuple[Any, None]:
        lags, kept = carry
        gains = conditional_tests(moments, lags, kept)[1]
        gains = gains.at[lags - 1].add(jnp.where(kept, -jnp.inf, 0.0))
        new = jnp.argmax(gains).astype(jnp.int32) + 1
        return (lags.at[place].set(new), kept.at[place].set(True)), None

    places = jnp.arange(_MOST, dtype=jnp.int32)
    (lags, _), _ = jax.lax.scan(add, none, places)
    return lags


def chosen(
    model: str, lags: jax.Array, series: Series, moments: Moments
) -> tuple[jax.Array, jax.Array]:
    """How many of ranked lags the least BIC takes, and BIC of each number, [5].

    Args:
        model: ``mtd``, ``mtdg`` or ``scb``.
        lags: in their order, [5].
        series: the windows.
        moments: of their pairs.
    """
    from scbjax.fitting.em import relaxed_steps
    from scbjax.fitting.mixtures import Mixture, free_numbers

    queries = SYMBOLS if model == "scb" else 1
    alone = moments.pairs[lags] / moments.scale[None, None, :]
    alone = alone / jnp.maximum(jnp.sum(alone, axis=1, keepdims=True), 1e-12)
    matrices = alone if model == "mtdg" else alone[:1]
    places = jnp.arange(_MOST, dtype=jnp.int32)
    smoothing = jnp.asarray(_SMOOTHING, series.weights.dtype)

    def fitted(count: jax.Array) -> jax.Array:
        weights = jnp.where(places < count, 1.0, 0.0)
        weights = weights / jnp.sum(weights)
        start = jnp.broadcast_to(weights[None, :, None], (1, _MOST, queries))
        _, told = relaxed_steps(
            Mixture(start, matrices, lags), series, smoothing, moments.mu,
            factor=_FACTOR, count=_ITERATIONS,
        )  # fmt: skip
        likelihood = told[-1]
        free = free_numbers(model, SYMBOLS, count.astype(likelihood.dtype))
        bic: jax.Array = free * jnp.log(moments.windows) - 2.0 * likelihood
        return bic

    bics = jax.lax.map(fitted, places + 1)
    return jnp.argmin(bics).astype(jnp.int32) + 1, bics


def choose(model: str, method: str, series: Series, moments: Moments, true: jax.Array) -> Found:
    """The lags that a method takes, against the true ones [d]."""
    lags = ranked(method, moments)
    count, _ = chosen(model, lags, series, moments)
    taken = jnp.zeros(true.shape, bool).at[lags - 1].max(jnp.arange(_MOST) < count)
    return Found(jnp.sum(taken & ~true, dtype=jnp.int32), jnp.sum(~taken & true, dtype=jnp.int32))


def false_by_bic(count: jax.Array, false: jax.Array, numbers: int) -> jax.Array:
    """The chance that BIC takes the best of the false lags, as in the module's text.

    Args:
        count: n, symbols.
        false: lags that there are beside the true ones.
        numbers: that a lag brings.

    Example:
        >>> false = jnp.asarray(98.0)
        >>> [round(float(false_by_bic(jnp.asarray(n), false, 1)), 2) for n in (1e3, 1e4)]
        [0.57, 0.21]
    """
    each = jax.scipy.stats.chi2.sf(numbers * jnp.log(jnp.maximum(count, 2.0)), numbers)
    chance: jax.Array = 1.0 - (1.0 - each) ** false
    return chance


# -------------------------------------------------------------------------------- what is recorded

VARIABLES: Mapping[str, Variable] = {
    "samples": Variable("symbols that lags are chosen from", "$n$", dtype="int32"),
    **{
        f"{method}_{what}": Variable(f"{words} by {method}", dtype="int32")
        for method in METHODS
        for what, words in (("false", "false lags taken"), ("missed", "true lags not taken"))
    },
    "false_by_bic": Variable("chance that BIC takes a false lag, by theory"),
}

PARAMETERS = (
    replace(DECLARED["task.context_length"], help="Contexts d: the longest lag that is looked at"),
    Parameter(
        "task.model", str, "mtd", "static", "outer",
        "What chains are drawn from, and fitted by: mtd, mtdg or scb",
        Choice(("mtd", "mtdg", "scb")),
    ),
    Parameter(
        "task.lags", str, "1,15,30", "static", "outer", "The true lags", Choice(tuple(CASES))
    ),
    replace(
        STEPS, check=Interval(1, _MOST_STEPS),
        help="Steps: each adds 1000 symbols to those that lags are chosen from",
    ),
    RECORD_EVERY,
)  # fmt: skip

LAGS_FIT = Relation(
    ("task.lags", "task.context_length"),
    lambda lags, context: CASES[lags][-1] <= context,
    "task.lags = '{}' has a lag that is longer than task.context_length = {}",
)


def _build(fixed: Values, _: Mapping[str, tuple[Any, ...]]) -> Functions:
    """The functions of a program."""
    context, model = fixed["task.context_length"], fixed["task.model"]
    lags, steps = CASES[fixed["task.lags"]], fixed["train.steps"]
    every = fixed["train.record_every"]
    padded = 1 << math.ceil(math.log2(BATCH * steps))

    def draw(keys: Keys, _: Values) -> Chain:
        key, other = jax.random.split(keys.task)
        tokens = grow(other, random_chain(key, model, lags), context, BATCH * steps)
        true = jnp.zeros(context, bool).at[jnp.asarray(lags, jnp.int32) - 1].set(True)
        return Chain(tokens, true)

    def start(*_: object) -> jax.Array:
        return jnp.zeros((), jnp.int32)

    def advance(_: Keys, __: Values, ___: Chain, state: jax.Array, ____: jax.Array) -> jax.Array:
        moved: jax.Array = state + every
        return moved

    def record(
        _: Keys, __: Values, chain: Chain, state: jax.Array, ___: jax.Array
    ) -> dict[str, jax.Array]:
        return observe(chain, jnp.maximum(state * BATCH, 10 * context), model, padded)

    def is_finite(_: jax.Array) -> jax.Array:
        return jnp.asarray(True)

    return Functions(draw, start, in_turn(advance, record, every), is_finite)


def observe(chain: Chain, count: jax.Array, model: str, padded: int) -> dict[str, jax.Array]:
    """All that is recorded of the first symbols of a chain.

    Args:
        chain: the sequence.
        count: n, symbols that are told.
        model: of the fit.
        padded: symbols of the series, a power of two.
    """
    from scbjax.fitting.mixtures import free_numbers
    from scbjax.fitting.moments import count_pairs
    from scbjax.fitting.series import Series

    context = chain.lags.shape[0]
    length = padded + context - chain.tokens.shape[0]
    tokens = jnp.pad(chain.tokens, (0, length))
    weights = (jnp.arange(padded, dtype=jnp.int32) < count).astype(jnp.float32)
    series = Series(tokens, weights)
    moments = count_pairs(series, SYMBOLS)
    recorded = {"samples": count.astype(jnp.int32)}
    for method in METHODS:
        found = choose(model, method, series, moments, chain.lags)
        recorded[f"{method}_false"] = found.false
        recorded[f"{method}_missed"] = found.missed
    false = jnp.sum(~chain.lags).astype(jnp.float32)
    numbers = free_numbers(model, SYMBOLS, 2) - free_numbers(model, SYMBOLS, 1)
    recorded["false_by_bic"] = false_by_bic(count.astype(jnp.float32), false, numbers)
    return recorded


EXPERIMENT = Experiment(
    name="lags",
    parameters=PARAMETERS,
    build=_build,
    variables=VARIABLES,
    live="forward_missed",
    relations=(LAGS_FIT,),
)
"""Lags of chains with known answers, by each method of `scbjax fit`."""
