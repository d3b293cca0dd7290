"""A fit in one call: read, choose lags, fit, lay beside n-grams, resample."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from scbjax.fitting import baselines, bootstrap, moments as by_moments
from scbjax.fitting.em import Data, run_em
from scbjax.fitting.fitted import Fit, Options, Row, checked, row_of
from scbjax.fitting.mixtures import Mixture, log_likelihood, moved_inside, score
from scbjax.fitting.reading import Symbols, as_symbols
from scbjax.fitting.selection import select_lags
from scbjax.fitting.series import series_of, window_weights


def fit(
    tokens: Any,  # noqa: ANN401 - of many kinds
    *,
    names: Sequence[str] | None = None,
    tell: Callable[[str, float], None] = lambda *_: None,
    **options: Any,  # noqa: ANN401 - fields of Options
) -> Fit:
    """Fits a mixture over lags to a sequence.

    Args:
        tokens: integers from 0 [n], a text, a list of strings, or what
            :func:`scbjax.fitting.reading.read_symbols` gives.
        names: what integers stand for.
        tell: is called with what is being done and the share of the whole that is done.
        **options: the fields of :class:`Options`.

    Returns:
        The fit: probabilities of what comes next, scores, lags and their weights.

    Raises:
        StudyError: one sentence for data or options that do not fit.

    Example:
        >>> text = "to be or not to be that is the question " * 40
        >>> found = fit(text, model="scb", context=6, most_lags=3, resamples=0)
        >>> found.rows[-1].bits < found.rows[1].bits  # less than the bigram
        True
        >>> found.predict_proba(["to be "]).shape
        (1, 13)
    """
    own = checked(options)
    symbols = as_symbols(tokens, names)
    size = symbols.tokens.size
    last = size - round(own.held_out * size)
    series = series_of(symbols, own.context, 0, last)
    tell("counting pairs", 0.0)
    moments = by_moments.count_pairs(series, len(symbols.names))
    if own.smoothing is None:
        own = dataclasses.replace(own, smoothing=by_moments.smoothing_of(moments))
    smoothing = float(own.smoothing or 0.0)
    data = Data(series, moments, smoothing)
    mixture, tried = _model(symbols, data, own, last, tell)
    tell("n-grams", 0.7)
    first = last if last < size else 0
    looked = series_of(symbols, own.context, first)
    learned = float(np.asarray(log_likelihood(mixture, series), np.float64).sum())
    rows = [
        *_ngrams(symbols, own.context, first, last),
        row_of(mixture, score(mixture, looked), learned, float(moments.windows)),
    ]
    interval = np.full((mixture.lags.shape[0], 2), np.nan)
    if own.resamples:

        def told(done: int) -> None:
            tell(f"resample {done} of {own.resamples}", 0.75 + 0.25 * done / own.resamples)

        spread = bootstrap.block_bootstrap(
            mixture, series, moments.mu, smoothing=smoothing, resamples=own.resamples,
            level=own.level, seed=own.seed, tell=told,
        )  # fmt: skip
        interval = np.stack([spread.low, spread.high], axis=1)
    counts = int(series.weights.sum()), int(looked.weights.sum()) if last < size else 0
    return Fit(
        mixture,
        symbols.names,
        symbols.kind,
        np.asarray(moments.mu),
        tuple(rows),
        np.asarray(bootstrap.lag_weights(mixture, moments.mu)),
        interval,
        tried,
        spectrum_of(moments),
        counts,
        own,
    )


def _model(
    symbols: Symbols, data: Data, own: Options, last: int, tell: Callable[[str, float], None]
) -> tuple[Mixture, tuple[tuple[tuple[int, ...], float], ...]]:
    """The fit, and sets of lags that were tried on the way."""
    tried: tuple[tuple[tuple[int, ...], float], ...] = ()
    if isinstance(own.lags, str) and own.lags != "all":
        said = 0

        def told(text: str) -> None:
            nonlocal said
            said += 1
            tell(text, 0.4 * said / (said + own.most_lags))

        mixture, tried = select_lags(
            data, own.model, own.lags, heads=own.heads, most=own.most_lags, tell=told
        )
    else:
        lags = _given(own)
        mixture = _start(symbols, data, own, jnp.asarray(lags, jnp.int32), last)
    if own.polish:

        def polished(done: int, nats: float) -> None:
            bits = nats / np.log(2)
            tell(f"EM step {done}, {bits:.4f} bits a symbol", 0.4 + 0.3 * done / own.polish)

        mixture = run_em(mixture, data, own.polish, own.tolerance, polished)[0]
    return mixture, tried


def _given(own: Options) -> list[int]:
    """The lags that are asked for, all or those that are named."""
    if isinstance(own.lags, str):
        return list(range(1, own.context + 1))
    return sorted(set(own.lags))


def _start(symbols: Symbols, data: Data, own: Options, lags: jax.Array, last: int) -> Mixture:
    """Of EM, by squared error; what that projected onto the edge of the simplex moves inside."""
    if own.start == "descent":
        from scbjax.fitting.descent import fit_by_descent

        mixture = fit_by_descent(symbols, lags, last=last, seed=own.seed)
    else:
        mixture = by_moments.start_of(own.model, data.series, data.moments, lags, own.heads)
    # What is never said to happen costs without end when it does, and zeros stay zeros in EM.
    if own.polish:
        return moved_inside(mixture, data.moments.mu, 0.95)
    kept, mu = 0.99, data.moments.mu[None, :, None]
    return mixture._replace(matrices=kept * mixture.matrices + (1 - kept) * mu)


def _ngrams(symbols: Symbols, longest: int, first: int, last: int) -> list[Row]:
    """Of the same windows as the model's: those below ``last``, scored on those from ``first``."""
    places = np.flatnonzero(window_weights(symbols, longest))
    learned, looked = places[places < last], places[places >= first]
    rows = []
    for order, name in enumerate(baselines.NAMES, 1):
        model = baselines.count_ngrams(symbols, order, learned)
        told = baselines.information(model.log_likelihood, model.parameters, learned.size)
        scores = baselines.score_ngram(model, symbols, looked)
        rows.append(Row(name, model.parameters, *scores, *told))
    return rows


def spectrum_of(moments: by_moments.Moments) -> NDArray[Any]:
    """How SCB-like a sequence is: one matrix for all lags would leave one number, 1.

    The squared singular values of the whitened cross-moments, in the metric of mu, less what
    sampling noise adds to each, ``(N - 1)^2 / n`` over the lags; in parts of their sum.
    """
    effects = np.asarray(by_moments.whitened(moments), np.float64)
    mu = np.asarray(moments.mu, np.float64)
    flat = (
        effects * np.sqrt(mu) / np.sqrt(np.asarray(moments.scale, np.float64))[:, None]
    ).reshape(len(effects), -1)
    squares = np.linalg.svd(flat, compute_uv=False) ** 2
    noise = (len(mu) - 1) ** 2 / float(moments.windows)
    left = np.maximum(squares - noise, 0.0)
    shares: NDArray[Any] = left / max(float(left.sum()), 1e-300)
    return shares
