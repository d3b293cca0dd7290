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

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scbjax.fitting.baselines import information
from scbjax.fitting.em import Data, run_em
from scbjax.fitting.mixtures import Mixture, free_numbers
from scbjax.fitting.moments import Moments, conditional_tests, descend, start_mtd

METHODS = ("all", "screening", "l1", "forward", "bic")
_LEVEL = 0.01  # chance of a false lag by screening in a whole sequence
_ITERATIONS, _TOLERANCE = 40, 1e-5  # of EM for one set of lags; nats a symbol
_PATIENCE = 2
_TRIED = 5
_PENALTIES = 40

Tell = Callable[[str], None]


class Candidate(NamedTuple):
    """A set of lags that was tried: its BIC, the fit (with room for more lags), and the lags."""

    bic: float
    mixture: Mixture
    lags: tuple[int, ...]


class Selection(NamedTuple):
    """Lags that were selected.

    Attributes:
        mixture: the fit with them, lags in increasing order.
        tried: sets of lags and their BIC, in the order in which they were tried.
    """

    mixture: Mixture
    tried: tuple[tuple[tuple[int, ...], float], ...]


@dataclasses.dataclass(frozen=True)
class _Search:
    """What every set of lags is tried with, and the list of those that were."""

    data: Data
    model: str
    heads: int
    most: int
    tell: Tell
    tried: list[tuple[tuple[int, ...], float]] = dataclasses.field(default_factory=list)

    def fit(self, start: Mixture, lags: tuple[int, ...]) -> Candidate:
        """Fits a set of lags by EM."""
        mixture, likelihood, _ = run_em(start, self.data, _ITERATIONS, _TOLERANCE)
        size, windows = self.data.moments.mu.shape[0], float(self.data.moments.windows)
        numbers = free_numbers(self.model, size, len(lags), self.heads)
        bic = information(likelihood, numbers, windows)[1]
        self.tried.append((tuple(sorted(lags)), bic))
        self.tell(f"lags {', '.join(map(str, sorted(lags)))}: BIC {bic:.0f}")
        return Candidate(bic, mixture, lags)


def select_lags(
    data: Data,
    model: str,
    method: str,
    *,
    heads: int = 1,
    most: int = 8,
    tell: Tell = lambda _: None,
) -> Selection:
    """Selects lags.

    Args:
        data: what is fitted.
        model: one of :data:`scbjax.fitting.mixtures.KINDS`.
        method: one of `METHODS`, not ``all``.
        heads: H.
        most: lags that may be selected, at most.
        tell: is told of every set that was tried.
    """
    search = _Search(data, model, heads, min(most, data.series.longest), tell)
    best = _grown(search, _order(data, method, search.most))
    if best is None:  # nothing passes the screen: the strongest lag alone
        search = dataclasses.replace(search, most=1)
        best = _grown(search, _order(data, "forward", 1))
        assert best is not None  # there is a lag
    if method == "bic":
        best = _without_idle(search, best)
    order = np.argsort(best.lags)
    return Selection(_reordered(best.mixture, order), tuple(search.tried))


def _grown(search: _Search, order: Callable[[tuple[int, ...]], Iterable[int]]) -> Candidate | None:
    """The best set of lags, to which lags come one by one; None where none may come."""
    best: Candidate | None = None
    current: Candidate | None = None
    waited = 0
    while waited < _PATIENCE:
        before = () if current is None else current.lags
        following = order(before) if len(before) < search.most else ()
        found = [search.fit(_with_lag(current, lag, search), (*before, lag)) for lag in following]
        if not found:
            break
        current = min(found, key=lambda each: each.bic)
        better = best is None or current.bic < best.bic
        best, waited = (current, 0) if better else (best, waited + 1)
    return best


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


def _with_lag(before: Candidate | None, lag: int, search: _Search) -> Mixture:
    """The start of EM with one more lag, which takes an equal part of the weight."""
    moments = search.data.moments
    alone = moments.pairs[lag] / moments.scale[None, :]
    alone = alone / jnp.maximum(jnp.sum(alone, axis=0, keepdims=True), 1e-12)
    if before is None:
        return _alone(alone, lag, search)
    mixture, count = before.mixture, len(before.lags)
    share = 1.0 / (count + 1)
    weights = (mixture.weights * (1 - share)).at[:, count].set(share / search.heads)
    matrices = mixture.matrices.at[count].set(alone) if mixture.is_by_lag else mixture.matrices
    return Mixture(weights, matrices, mixture.lags.at[count].set(lag))


def _alone(matrix: jax.Array, lag: int, search: _Search) -> Mixture:
    """A mixture of one lag, with room for more that have no weight."""
    heads, size = search.heads, matrix.shape[0]
    matrices = jnp.repeat(matrix[None], search.most if search.model == "mtdg" else heads, axis=0)
    if heads > 1:  # heads that are equal stay equal: the first as it is, others flatter
        powers = 1.0 / (1.0 + jnp.arange(heads, dtype=matrix.dtype))
        matrices = matrices ** powers[:, None, None]
        matrices = matrices / jnp.sum(matrices, axis=1, keepdims=True)
    shape = (heads, search.most, size if search.model == "scb" else 1)
    weights = jnp.zeros(shape, matrix.dtype).at[:, 0].set(1.0 / heads)
    return Mixture(weights, matrices, jnp.ones(search.most, jnp.int32).at[0].set(lag))


def _without_idle(search: _Search, best: Candidate) -> Candidate:
    """Lags go out for as long as that lowers BIC."""
    while len(best.lags) > 1:
        found = [
            search.fit(_less(best, place), (*best.lags[:place], *best.lags[place + 1 :]))
            for place in range(len(best.lags))
        ]
        smaller = min(found, key=lambda each: each.bic)
        if smaller.bic >= best.bic:
            break
        best = smaller
    return best


def _less(candidate: Candidate, place: int) -> Mixture:
    """Without one of the lags, whose weight the others take; it stands behind them, with none."""
    places = range(candidate.mixture.lags.shape[0])
    mixture = _reordered(candidate.mixture, np.array([*(n for n in places if n != place), place]))
    weights = mixture.weights.at[:, len(candidate.lags) - 1 :].set(0.0)
    total = jnp.sum(weights, axis=(0, 1), keepdims=True)
    return mixture._replace(weights=weights / jnp.maximum(total, 1e-12))


def _reordered(mixture: Mixture, order: np.ndarray) -> Mixture:
    """The lags at these places, in this order."""
    matrices = mixture.matrices[order] if mixture.is_by_lag else mixture.matrices
    return Mixture(mixture.weights[:, order], matrices, mixture.lags[order])
