"""A fitted model: what it says of contexts, what it draws, and how it is told."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from scbjax.base import StudyError
from scbjax.fitting import baselines, selection
from scbjax.fitting.mixtures import (
    KINDS,
    Mixture,
    Scores,
    distribution,
    free_numbers,
    sample,
    score,
    tell,
)
from scbjax.fitting.reading import Symbols, as_symbols, encode, in_classes, renamed
from scbjax.fitting.series import series_of, window_weights
from scbjax.tables import brief, nearest
from scbjax.values import INT32_MAX

STARTS = ("moments", "descent")
MOST_CONTEXT = 1000
_DESCENT_MODEL = "scb"


@dataclasses.dataclass(frozen=True)
class Options:
    """How a fit is made.

    Attributes:
        model: ``mtd``, ``mtdg`` or ``scb``.
        heads: H, for mtd and scb.
        context: the longest lag that is looked at.
        lags: how lags are chosen (``all``, ``screening``, ``l1``, ``forward``, ``bic``), or which.
        most_lags: that may be chosen, at most.
        held_out: share of the sequence, at its end, that nothing is learned from.
        smoothing: samples by overall frequencies that are added to each column; None for what makes
            pairs at the strongest lag tell each other best.
        start: of EM where lags are given or ``all``: ``moments``, or ``descent`` of the learner.
        polish: steps of EM, at most; 0 for the start as it is.
        tolerance: nats a symbol by which the last step of EM must have raised the likelihood.
        resamples: for the intervals of weights; 0 for none.
        level: of the intervals.
        seed: of whatever is drawn.
    """

    model: str = "scb"
    heads: int = 1
    context: int = 32
    lags: str | Sequence[int] = "forward"
    most_lags: int = 8
    held_out: float = 0.1
    smoothing: float | None = None
    start: str = "moments"
    polish: int = 200
    tolerance: float = 1e-8
    resamples: int = 100
    level: float = 0.95
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Row:
    """A model in the table of a fit; what is held out is told in the first three numbers.

    Attributes:
        name: of the model.
        parameters: free numbers.
        bits: mean log-loss a symbol, in bits.
        brier: mean of ``sum_y (P(y) - 1[y])^2``.
        accuracy: share of symbols that were the likeliest.
        aic: of what was learned from.
        bic: of the same.
    """

    name: str
    parameters: int
    bits: float
    brier: float
    accuracy: float
    aic: float
    bic: float


class Predictions(NamedTuple):
    """What a fit says of the positions of a sequence, one after the other; [M] each.

    Attributes:
        positions: those with a whole context before them, from 0, among the symbols that were
            read: empty cells of a column and gaps of FASTA are not counted.
        symbols: what came, as names.
        probabilities: of what came.
        likeliest: what was most likely, as names.
        highest: the probability of that.
    """

    positions: NDArray[Any]
    symbols: list[str]
    probabilities: NDArray[Any]
    likeliest: list[str]
    highest: NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted model of a sequence.

    Attributes:
        mixture: weights, matrices and lags.
        names: the symbols.
        kind: how they were read.
        mu: how often they occur in what was learned from, [N].
        rows: the model and n-grams, the model last.
        weights: of the lags, [G]; for SCB in the mean over queries.
        interval: of the weights, [G, 2]; NaN where nothing was resampled.
        tried: sets of lags and their BIC, in the order in which they were tried.
        spectrum: squared singular values of what lags tell (whitened cross-moments, as a matrix lag
            x pair of symbols), less that of noise, in parts of their sum.
        counts: symbols learned from, and held out.
        options: how it was made.
    """

    mixture: Mixture
    names: tuple[str, ...]
    kind: str
    mu: NDArray[Any]
    rows: tuple[Row, ...]
    weights: NDArray[Any]
    interval: NDArray[Any]
    tried: tuple[tuple[tuple[int, ...], float], ...]
    spectrum: NDArray[Any]
    counts: tuple[int, int]
    options: Options

    def __repr__(self) -> str:
        """Sizes, not the arrays."""
        lags = ", ".join(map(str, self.lags[:8])) + (", ..." if len(self.lags) > 8 else "")
        return f"Fit({self.mixture.kind}, {len(self.names)} symbols, lags {lags})"

    @property
    def lags(self) -> tuple[int, ...]:
        """The lags of the model; 1 is the symbol just before the one that is told."""
        return tuple(int(lag) for lag in self.mixture.lags)

    @property
    def longest(self) -> int:
        """Symbols of a context that are needed."""
        return self.lags[-1]

    def predict_proba(self, contexts: Any) -> NDArray[Any]:  # noqa: ANN401 - texts or integers
        """``P(. | context)``, [B, N].

        Args:
            contexts: integers [B, d] in the order of time, the last column just before what is
                told; or texts or lists of symbols. d is at least the longest lag.

        Raises:
            StudyError: for a context that is too short, and for unknown symbols.
        """
        if isinstance(contexts, str):
            raise StudyError(f"contexts is one text; it must be a list of them: [{contexts!r}]")
        if isinstance(contexts, np.ndarray | jax.Array):
            tokens = np.asarray(contexts)
            if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
                raise StudyError(
                    f"contexts is {tokens.dtype} of shape {tokens.shape}; it must be integers "
                    "[B, d], or a list of texts"
                )
            as_symbols(tokens.ravel(), self.names)
        else:
            tokens = np.stack([self._context(each) for each in contexts])
        if tokens.shape[1] < self.longest:
            raise StudyError(_too_short(tokens.shape[1], self.longest))
        return np.asarray(distribution(self.mixture, jnp.asarray(tokens, jnp.int32)))

    def predict_along(self, given: Any) -> Predictions:  # noqa: ANN401 - as of scbjax.fit
        """What is said of each position of other data, by what stands before it there.

        Args:
            given: a text, symbols, integers, or what :func:`read_symbols` has read.

        Raises:
            StudyError: where no position has `longest` symbols before it, and for unknown symbols.
        """
        symbols = self.encoded(given, "the data")
        told = tell(self.mixture, series_of(symbols, self.longest))
        fits = np.flatnonzero(window_weights(symbols, self.longest))
        probability, likeliest, highest = (np.asarray(each)[fits] for each in told)
        return Predictions(
            fits,
            [self.names[n] for n in symbols.tokens[fits]],
            probability,
            [self.names[n] for n in likeliest],
            highest,
        )

    def _context(self, given: Any) -> NDArray[Any]:  # noqa: ANN401 - a text or symbols
        symbols = self.encoded(given).tokens
        if symbols.size < self.longest:
            raise StudyError(_too_short(symbols.size, self.longest))
        return symbols[-self.longest :]

    def encoded(self, given: Any, where: str = "the context") -> Symbols:  # noqa: ANN401
        """A text, or a list or array of symbols, by the names of this fit."""
        if isinstance(given, Symbols):
            return renamed(given, self.names, where)
        if isinstance(given, str):
            return encode([list(given)], self.kind, where=where, names=self.names)
        items = list(given)
        if items and all(isinstance(item, str) for item in items):
            items = in_classes(items, self.names, where)
            return encode([items], self.kind, where=where, names=self.names)
        return as_symbols(np.asarray(items), self.names)

    def sample(self, length: int, *, seed: int = 0, start: Any = None) -> list[str]:  # noqa: ANN401
        """Goes on by the model itself.

        Args:
            length: symbols to draw.
            seed: of the draws.
            start: a text or symbols to go on from; None for draws by overall frequencies.

        Returns:
            Names of symbols, without the start.
        """
        if start is None:
            random = np.random.default_rng(seed)
            law = np.asarray(self.mu, np.float64)
            tokens = random.choice(len(self.names), self.longest, p=law / law.sum())
        else:
            tokens = self._context(start)
        key = jax.random.key(seed)
        drawn = sample(self.mixture, key, jnp.asarray(tokens, jnp.int32), length)
        return [self.names[n] for n in np.asarray(drawn)]

    def score(self, given: Any) -> Row:  # noqa: ANN401 - as of scbjax.fit
        """Scores of other data by this fit; AIC and BIC are those of these data.

        Args:
            given: a text, symbols, integers, or what :func:`read_symbols` has read.
        """
        return row_of(self.mixture, *self._scores(self.mixture, given))

    def unigram(self, given: Any) -> Row:  # noqa: ANN401 - as of scbjax.fit
        """Scores of the overall frequencies of this fit, `mu`, at the positions that `score` tells.

        Args:
            given: as of `score`.
        """
        size = len(self.names)
        alike = jnp.broadcast_to(jnp.asarray(self.mu)[None, :, None], (1, size, size))
        ones = jnp.ones((1, 1, 1), alike.dtype)
        flat = Mixture(ones, alike, jnp.array([self.longest], jnp.int32))
        return _row("unigram", size - 1, *self._scores(flat, given))

    def _scores(self, mixture: Mixture, given: Any) -> tuple[Scores, float, float]:  # noqa: ANN401
        series = series_of(self.encoded(given, "the data"), self.longest)
        scores = score(mixture, series)
        loss, _, _, windows = _sums(scores)
        return scores, -loss, windows


def row_of(mixture: Mixture, scores: Scores, learned: float, windows: float) -> Row:
    """The scores of a model as a row.

    Args:
        mixture: the model.
        scores: of what it is looked at on.
        learned: its log-likelihood of what AIC and BIC are of, in nats.
        windows: of those.
    """
    heads, lags, _ = mixture.weights.shape
    numbers = free_numbers(mixture.kind, mixture.matrices.shape[-1], lags, heads)
    return _row(title_of(mixture), numbers, scores, learned, windows)


def _row(name: str, parameters: int, scores: Scores, learned: float, windows: float) -> Row:
    loss, brier, hits, count = _sums(scores)
    told = baselines.information(learned, parameters, windows)
    return Row(name, parameters, loss / count / math.log(2.0), brier / count, hits / count, *told)


def _sums(scores: Scores) -> list[float]:
    """Over chunks, in double precision."""
    return [float(np.asarray(each, np.float64).sum()) for each in scores]


def title_of(mixture: Mixture) -> str:
    """What a model is called."""
    heads = mixture.weights.shape[0]
    title = {"mtd": "MTD", "mtdg": "MTDg", "scb": "SCB"}[mixture.kind]
    return title if heads == 1 else f"{title}, {heads} heads"


def _too_short(length: int, longest: int) -> str:
    return f"the context has {length} symbols; the fit needs {longest}, its longest lag"


# ------------------------------------------------------------------------------------ the options

_WHOLE: Mapping[str, tuple[int, int]] = {
    "heads": (1, 64), "context": (1, MOST_CONTEXT), "most_lags": (1, 64), "polish": (0, 100_000),
    "resamples": (0, 100_000), "seed": (0, INT32_MAX),
}  # fmt: skip
_REAL: Mapping[str, tuple[float, float]] = {
    "held_out": (0.0, 0.9), "smoothing": (0.0, 1e9), "tolerance": (0.0, 1.0), "level": (0.5, 0.999),
}  # fmt: skip


def checked(options: Mapping[str, Any]) -> Options:
    """Options, or a sentence that names the one that is wrong."""
    known = [field.name for field in dataclasses.fields(Options)]
    for name, value in options.items():
        if name not in known:
            raise StudyError(f"no option is called {brief(name)}{nearest(name, known)}")
        for table, types, kind in (
            (_WHOLE, (int, np.integer), "an integer"),
            (_REAL, (int, float, np.integer, np.floating), "a number"),
        ):
            if name not in table or (name == "smoothing" and value is None):
                continue
            low, high = table[name]
            good = isinstance(value, types) and not isinstance(value, bool)
            if not good or not low <= value <= high:
                raise StudyError(
                    f"{name} = {brief(value)}; it must be {kind} between {low:g} and {high:g}"
                )
    own = Options(**options)
    for name, names in (("model", KINDS), ("start", STARTS)):
        value = getattr(own, name)
        if value not in names:
            allowed = nearest(str(value), names) or f" (known: {', '.join(names)})"
            raise StudyError(f"{name} = {brief(value)} is not known{allowed}")
    _check_lags(own)
    if own.heads > 1 and own.model == "mtdg":
        raise StudyError(
            f"heads = {own.heads} with model = 'mtdg', which has a matrix for each lag"
        )
    if own.start == "descent" and (own.model, own.heads, own.lags) != (_DESCENT_MODEL, 1, "all"):
        raise StudyError("start = 'descent' is for model = 'scb' with one head and lags = 'all'")
    return own


def _check_lags(own: Options) -> None:
    if isinstance(own.lags, str):
        if own.lags not in selection.METHODS:
            known = (
                nearest(own.lags, selection.METHODS) or f" (known: {', '.join(selection.METHODS)})"
            )
            raise StudyError(f"lags = {brief(own.lags)} is not known{known}")
        return
    if not len(own.lags):
        raise StudyError("lags is empty; at least one is needed")
    for lag in own.lags:
        if isinstance(lag, bool) or not isinstance(lag, int | np.integer):
            raise StudyError(f"lags has {brief(lag)}; lags are integers")
        if not 1 <= lag <= own.context:
            raise StudyError(f"lags has {lag}; it must be between 1 and context = {own.context}")
