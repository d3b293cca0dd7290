r"""N-grams to lay a fit beside: unigram, bigram, trigram, smoothed by interpolated Kneser-Ney.

With counts c and a discount D a order (Ney, Essen & Kneser 1994: ``D = n_1 / (n_1 + 2 n_2)``, of
the numbers of n-grams that occur once and twice),

    P(y | h) = max(c(h, y) - D, 0) / c(h) + D N(h) / c(h) P(y | h'),

where h' is h without its oldest symbol, N(h) the number of different symbols after h, and counts of
the lower orders are numbers of different symbols before (Kneser & Ney 1995). Below the unigram is
the uniform distribution, so that nothing has the probability zero.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scbjax.fitting.reading import Symbols

Array = NDArray[Any]
NAMES = ("unigram", "bigram", "trigram")
_CELLS = 1 << 22  # probabilities that are made at a time


@dataclasses.dataclass(frozen=True)
class Level:
    """Counts of one order, sorted by history: of each n-gram, and of each history.

    Attributes:
        keys: ``history * N + symbol``.
        counts: of the keys.
        discount: D.
    """

    keys: Array
    counts: Array
    discount: float

    def rows(self, histories: Array, size: int, lower: Array) -> Array:
        """``P(. | h)`` of histories, [U, N], from those of the shorter ones."""
        first = np.searchsorted(self.keys, histories * size)
        last = np.searchsorted(self.keys, (histories + 1) * size)
        length = last - first
        row = np.repeat(np.arange(histories.size), length)
        place = np.arange(row.size) - np.repeat(np.cumsum(length) - length, length) + first[row]
        counts = self.counts[place].astype(float)
        total = np.bincount(row, counts, histories.size)
        law = (
            np.where(total > 0, self.discount * length / np.maximum(total, 1.0), 1.0)[:, None]
            * lower
        )
        law[row, self.keys[place] % size] += np.maximum(counts - self.discount, 0.0) / total[row]
        return law


@dataclasses.dataclass(frozen=True)
class NGram:
    """A smoothed n-gram model.

    Attributes:
        levels: from the unigram on.
        size: N.
        log_likelihood: of what it was counted on, by its plain frequencies, in nats.
        parameters: free numbers of those.
    """

    levels: tuple[Level, ...]
    size: int
    log_likelihood: float
    parameters: int

    @property
    def order(self) -> int:
        """Symbols of an n-gram."""
        return len(self.levels)

    def law(self, histories: Array) -> Array:
        """``P(. | h)`` of histories of ``order - 1`` symbols, as numbers in base N: [U, N]."""
        law = np.full((histories.size, self.size), 1.0 / self.size)
        for order, level in enumerate(self.levels):
            law = level.rows(histories % self.size**order, self.size, law)
        return law


def count_ngrams(symbols: Symbols, order: int, places: Array) -> NGram:
    """Counts the n-grams whose last symbols are at some places.

    Args:
        symbols: the sequence.
        order: 1 for unigrams, and so on.
        places: with at least ``order - 1`` symbols of their records before them.
    """
    size = len(symbols.names)
    keys, counts = np.unique(_keys(symbols, places, order, size), return_counts=True)
    levels: list[Level] = []
    for level in range(order, 0, -1):
        if level < order:  # how many different symbols stand before
            keys, counts = np.unique(keys % size**level, return_counts=True)
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        discount = once / (once + 2 * twice) if once else 0.5
        levels.append(Level(keys, counts, min(discount, 0.99)))
    free = size ** (order - 1) * (size - 1)
    return NGram(tuple(levels[::-1]), size, _log_likelihood(levels[0], size), free)


def _log_likelihood(level: Level, size: int) -> float:
    _, inverse = np.unique(level.keys // size, return_inverse=True)
    total = np.bincount(inverse, level.counts)
    return float(np.sum(level.counts * np.log(level.counts / total[inverse])))


def score_ngram(model: NGram, symbols: Symbols, places: Array) -> tuple[float, float, float]:
    """Means of log-loss in bits, Brier score and accuracy over places of a sequence."""
    size = model.size
    keys = _keys(symbols, places, model.order, size)
    histories, inverse = np.unique(keys // size, return_inverse=True)
    sums = np.zeros(3)
    order = np.argsort(inverse, kind="stable")
    bounds = np.searchsorted(inverse[order], np.arange(histories.size + 1))
    step = max(1, _CELLS // size)
    for start in range(0, histories.size, step):
        law = model.law(histories[start : start + step])
        stop = min(start + step, histories.size)
        mine = order[bounds[start] : bounds[stop]]
        row, label = inverse[mine] - start, keys[mine] % size
        told = law[row, label]
        sums += (
            -np.log2(told).sum(),
            ((law**2).sum(axis=1)[row] - 2 * told + 1).sum(),
            (law.argmax(axis=1)[row] == label).sum(),
        )
    bits, brier, accuracy = (float(each) for each in sums / places.size)
    return bits, brier, accuracy


def _keys(symbols: Symbols, places: Array, order: int, size: int) -> Array:
    """N-grams as numbers in base N, the oldest symbol first."""
    keys = np.zeros(places.size, np.int64)
    for lag in range(order - 1, -1, -1):
        keys = keys * size + symbols.tokens[places - lag]
    return keys


def information(log_likelihood: float, parameters: int, count: float) -> tuple[float, float]:
    """AIC and BIC of a log-likelihood in nats.

    Args:
        log_likelihood: of the fit.
        parameters: free numbers.
        count: samples.
    """
    deviance = -2.0 * log_likelihood
    return deviance + 2.0 * parameters, deviance + parameters * math.log(count)
