"""Which lags a model has: an order in which they come in, and a number of them by BIC.

* ``screening``: the marginal test of every lag, by the largest first; those below the cut that one
  lag in a hundred sequences passes by chance are not asked for. Cheap, and right where the symbols
  of a context are independent; else it takes echoes of true lags for lags.
* ``l1``: the weights of MTD by squared error with a penalty; lags in the order in which they appear
  as it is let down.
* ``forward``: the squared error that a lag takes away from those that are chosen; the largest comes
  in.
* ``bic``: the same, but of the five largest the one with the best likelihood comes in, and at the
  end lags go out again for as long as that lowers BIC.

Every set of lags is fitted by EM from the fit of the set before, and that of the least
``BIC = p log n - 2 log L`` (Schwarz 1978) is taken. The search ends when two more lags have not
lowered it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scbjax.fitting.mixtures import Mixture, em_step, lengthened
from scbjax.fitting.moments import (
    Moments,
    conditional_tests,
    descend,
    start_mtd,
)
from scbjax.fitting.series import Series

METHODS = ("all", "screening", "l1", "forward", "bic")
_LEVEL = 0.01  # chance of a false lag by screening in a whole sequence
_ITERATIONS, _TOLERANCE = 40, 1e-5  # of EM for one set of lags; nats a symbol
_GROWTH, _LONGEST = 1.2, 8.0  # of lengthened steps
_PATIENCE = 2
_TRIED = 5
_PENALTIES = 40

Tell = Callable[[str], None]


class Data(NamedTuple):
    """What a model is fitted to.

    Attributes:
        series: the windows.
        moments: their pairs.
        smoothing: of EM.
    """

    series: Series
    moments: Moments
    smoothing: float


class Choice(NamedTuple):
    """Lags that were chosen.

    Attributes:
        mixture: the fit with them.
        lags: in increasing order.
        tried: sets of lags and their BIC, in the order in which they were tried.
    """

    mixture: Mixture
    lags: tuple[int, ...]
    tried: tuple[tuple[tuple[int, ...], float], ...]


def run_em(
    mixture: Mixture,
    data: Data,
    iterations: int,
    tolerance: float,
    tell: Callable[[int, float], None] = lambda *_: None,
) -> tuple[Mixture, float, int]:
    """Steps of EM until the log-likelihood of a symbol grows by less than a tolerance.

    Args:
        mixture: the start.
        data: what it is fitted to.
        iterations: at most.
        tolerance: nats a symbol.
        tell: is called with the number of steps and nats a symbol after each.

    Returns:
        The fit, its log-likelihood in nats, and the number of steps.
    """
    count, before, factor = float(data.moments.windows), -math.inf, 1.0
    best = mixture
    likelihood = -math.inf
    for done in range(1, iterations + 1):
        target, told = em_step(mixture, data.series, data.smoothing, data.moments.mu)
        terms = np.asarray(told, np.float64)
        now = float(terms.sum())
        if not now >= before:  # too long a step, NaN included: back to the plain one
            mixture, factor = best, 1.0
            continue
        gain, before, likelihood, best = now - before, now, float(terms[:-1].sum()), target
        tell(done, -likelihood / count)
        if gain < tolerance * count:
            return mixture, likelihood, done
        mixture = _lengthened(mixture, target, factor)
        factor = min(factor * _GROWTH, _LONGEST)
    return mixture, likelihood, iterations


_lengthened = jax.jit(lengthened)


def choose(
    data: Data,
    model: str,
    method: str,
    *,
    heads: int = 1,
    most: int = 8,
    tell: Tell = lambda _: None,
) -> Choice:
    """Chooses lags.

    Args:
        data: what is fitted.
        model: one of :data:`scbjax.fitting.mixtures.KINDS`.
        method: one of `METHODS`, not ``all``.
        heads: H.
        most: lags that may be chosen, at most.
        tell: is told of every set that was tried.
    """
    longest = data.series.longest
    most = min(most, longest)
    tried: list[tuple[tuple[int, ...], float]] = []
    best: tuple[float, Mixture, tuple[int, ...]] | None = None
    current: tuple[Mixture | None, tuple[int, ...]] = (None, ())
    order = _order(data, method, most)
    waited = 0
    while len(current[1]) < most and waited < _PATIENCE:
        found = []
        for lag in order(current[1]):
            start = _with_lag(current[0], lag, len(current[1]), data, model, heads, most)
            fitted = run_em(start, data, _ITERATIONS, _TOLERANCE)[:2]
            lags = (*current[1], lag)
            found.append((_bic(data, model, len(lags), heads, fitted[1]), fitted[0], lags))
            tried.append((tuple(sorted(lags)), found[-1][0]))
            tell(f"lags {', '.join(map(str, sorted(lags)))}: BIC {found[-1][0]:.0f}")
        if not found:
            break
        step = min(found, key=lambda each: each[0])
        current = (step[1], step[2])
        better = best is None or step[0] < best[0]
        best, waited = (step, 0) if better else (best, waited + 1)
    if best is None:  # nothing passes the screen: the strongest lag alone
        return choose(data, model, "forward", heads=heads, most=1, tell=tell)
    if method == "bic":
        best = _without_idle(best, data, model, heads, tried, tell)
    return Choice(_packed(best[1], best[2]), tuple(sorted(best[2])), tuple(tried))


def _order(data: Data, method: str, most: int) -> Callable[[tuple[int, ...]], Iterable[int]]:
    """A function of the lags that are chosen: which may come next."""
    if method in {"screening", "l1"}:
        ranked = screened(data.moments) if method == "screening" else by_penalty(data.moments)
        return lambda chosen: ranked[len(chosen) : len(chosen) + 1]
    tried = _TRIED if method == "bic" else 1

    def strongest(chosen: tuple[int, ...]) -> list[int]:
        lags = np.ones(most, np.int32)
        lags[: len(chosen)] = chosen
        kept = np.arange(most) < len(chosen)
        tests = np.array(_tests(data.moments, jnp.asarray(lags), jnp.asarray(kept))[1])
        tests[[lag - 1 for lag in chosen]] = -math.inf
        return [int(place) + 1 for place in np.argsort(-tests)[:tried] if tests[place] > -math.inf]

    return strongest


_tests = jax.jit(conditional_tests)


def screened(moments: Moments, level: float = _LEVEL) -> list[int]:
    """Lags whose marginal test passes, by the largest first.

    Args:
        moments: of pairs.
        level: chance of a false one where nothing depends on anything, over all lags.
    """
    none = jnp.ones(1, jnp.int32), jnp.zeros(1, bool)
    tests = _tests(moments, *none)[0]
    degrees = (moments.mu.shape[0] - 1) ** 2
    chance = np.asarray(jax.scipy.stats.chi2.sf(tests, degrees))
    ranked = np.argsort(-np.asarray(tests))
    return [int(place) + 1 for place in ranked if chance[place] < level / tests.shape[0]]


def by_penalty(moments: Moments) -> list[int]:
    """Lags in the order in which they appear on the path of an l1 penalty."""
    path = np.asarray(penalty_path(moments))  # [penalties, d]
    first = np.where((path > 0).any(axis=0), (path > 0).argmax(axis=0), len(path))
    ranked = np.lexsort((-path[-1], first))
    return [int(place) + 1 for place in ranked if first[place] < len(path)]


@jax.jit
def penalty_path(moments: Moments) -> jax.Array:
    """Weights of MTD for penalties from the largest that lets one in, [penalties, d].

    The matrix is that of the fit without a penalty.
    """
    length = moments.pairs.shape[0] - 1
    lags = jnp.arange(1, length + 1, dtype=jnp.int32)
    matrix = start_mtd(moments, lags).matrices[0] - moments.mu[:, None]
    covariance = moments.covariance
    between = jnp.abs(lags[:, None] - lags[None, :])
    curve = jnp.einsum("ya,sab,yb->s", matrix, covariance, matrix)[between]
    told = jnp.einsum("yx,gyx->g", matrix, covariance[1:])
    penalties = jnp.max(told) * jnp.geomspace(0.98, 0.01, _PENALTIES)
    path: jax.Array = jax.vmap(lambda l1: descend(curve, told, jnp.zeros(length), l1))(penalties)
    return path


def _with_lag(
    mixture: Mixture | None, lag: int, count: int, data: Data, model: str, heads: int, most: int
) -> Mixture:
    """The start of EM with one more lag, which takes an equal part of the weight."""
    moments = data.moments
    size = moments.mu.shape[0]
    alone = moments.pairs[lag] / moments.scale[None, :]
    alone = alone / jnp.maximum(jnp.sum(alone, axis=0, keepdims=True), 1e-12)
    if mixture is None:
        queries = size if model == "scb" else 1
        matrices = jnp.repeat(alone[None], most if model == "mtdg" else heads, axis=0)
        if heads > 1:  # heads that are equal stay equal
            # Powers of the entries: the first head as it is, others flatter.
            powers = 1.0 / (1.0 + jnp.arange(heads, dtype=alone.dtype))
            matrices = matrices ** powers[:, None, None]
            matrices = matrices / jnp.sum(matrices, axis=1, keepdims=True)
        weights = jnp.zeros((heads, most, queries), alone.dtype).at[:, 0].set(1.0 / heads)
        return Mixture(weights, matrices, jnp.ones(most, jnp.int32).at[0].set(lag))
    share = 1.0 / (count + 1)
    weights = (mixture.weights * (1 - share)).at[:, count].set(share / heads)
    matrices = mixture.matrices.at[count].set(alone) if model == "mtdg" else mixture.matrices
    return Mixture(weights, matrices, mixture.lags.at[count].set(lag))


def _without_idle(
    best: tuple[float, Mixture, tuple[int, ...]],
    data: Data,
    model: str,
    heads: int,
    tried: list[tuple[tuple[int, ...], float]],
    tell: Tell,
) -> tuple[float, Mixture, tuple[int, ...]]:
    """Lags go out for as long as that lowers BIC."""
    while len(best[2]) > 1:
        found = []
        for place in range(len(best[2])):
            lags = (*best[2][:place], *best[2][place + 1 :])
            start = _less(best[1], place, len(best[2]))
            fitted = run_em(start, data, _ITERATIONS, _TOLERANCE)[:2]
            found.append((_bic(data, model, len(lags), heads, fitted[1]), fitted[0], lags))
            tried.append((tuple(sorted(lags)), found[-1][0]))
            tell(f"lags {', '.join(map(str, sorted(lags)))}: BIC {found[-1][0]:.0f}")
        step = min(found, key=lambda each: each[0])
        if step[0] >= best[0]:
            return best
        best = step
    return best


def _less(mixture: Mixture, place: int, count: int) -> Mixture:
    """Without one of the lags, whose weight the others take."""
    order = jnp.asarray([*(n for n in range(mixture.lags.shape[0]) if n != place), place])
    weights = mixture.weights[:, order].at[:, count - 1 :].set(0.0)
    weights = weights / jnp.maximum(jnp.sum(weights, axis=(0, 1), keepdims=True), 1e-12)
    matrices = mixture.matrices[order] if mixture.kind == "mtdg" else mixture.matrices
    return Mixture(weights, matrices, mixture.lags[order])


def _bic(data: Data, model: str, lags: int, heads: int, log_likelihood: float) -> float:
    size = data.moments.mu.shape[0]
    matrices = lags if model == "mtdg" else heads
    queries = size if model == "scb" else 1
    free = matrices * size * (size - 1) + queries * (heads * lags - 1)
    return free * math.log(float(data.moments.windows)) - 2.0 * log_likelihood


def _packed(mixture: Mixture, lags: Sequence[int]) -> Mixture:
    """Only the lags that are there, in increasing order."""
    order = jnp.asarray(np.argsort(np.asarray(lags)))
    matrices = mixture.matrices[order] if mixture.kind == "mtdg" else mixture.matrices
    return Mixture(mixture.weights[:, order], matrices, mixture.lags[order])
