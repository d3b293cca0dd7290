"""A fit as a figure: which lags, how well, which positions each symbol attends to, how SCB-like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from scbjax.plot.style import COLOURS, STYLE, WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scbjax.fitting.fitted import Fit

_MOST_NAMES = 32  # that can be read along an axis
_MOST_LAGS = 40
_HEIGHT = 4.6
_PANEL, _ROW = 1.65, 0.085  # inches: a panel, and a row of it that has its symbol beside it
_SHOWN = 10  # components of the spectrum


def draw_fit(fit: Fit) -> Figure:
    """Draws a fit.

    Args:
        fit: the fit.

    Returns:
        A figure of matplotlib with four panels: weights of lags with intervals; bits a symbol of
        the model and of n-grams; weights of lags by query, or the matrix of the strongest lag; and
        the spectrum of the whitened cross-moments.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(rc=cast("Any", dict(STYLE))):
        lower = max(_PANEL, _ROW * _matrix_rows(fit))
        figure = Figure(figsize=(WIDTH, _HEIGHT + lower - _PANEL), layout="constrained")
        axes = figure.subplots(2, 2, width_ratios=(1.5, 1.0), height_ratios=(_PANEL, lower))
        _draw_weights(axes[0, 0], fit)
        _draw_bits(axes[0, 1], fit)
        if fit.mixture.kind == "scb":
            _draw_queries(axes[1, 0], fit)
        else:
            _draw_matrix(axes[1, 0], fit)
        _draw_spectrum(axes[1, 1], fit)
    return figure


def _draw_weights(axes: Axes, fit: Fit) -> None:
    from matplotlib.ticker import MaxNLocator

    lags, low, high = np.array(fit.lags), fit.interval[:, 0], fit.interval[:, 1]
    axes.vlines(lags, 0.0, fit.weights, color=COLOURS[0], linewidth=1.2)
    axes.plot(lags, fit.weights, "o", color=COLOURS[0], markersize=3.5)
    if np.isfinite(low).all():
        errors = np.abs(np.stack([fit.weights - low, high - fit.weights]))
        axes.errorbar(
            lags, fit.weights, errors, fmt="none", ecolor="black", elinewidth=0.8, capsize=2
        )
        level = f", {100 * fit.options.level:g}% intervals"
    else:
        level = ""
    axes.set_xlim(0.3, max(fit.options.context, fit.longest) + 0.7)
    axes.set_ylim(0.0, None)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="lag (1 = the symbol just before)", ylabel="weight", title=f"lags{level}")


def _draw_bits(axes: Axes, fit: Fit) -> None:
    rows = fit.rows[::-1]
    bits = [row.bits for row in rows]
    colours = [COLOURS[1] if row is fit.rows[-1] else "#9a9a9a" for row in rows]
    axes.barh(range(len(rows)), bits, color=colours, height=0.6)
    for place, each in enumerate(bits):
        axes.text(each, place, f" {each:.3f}", va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_xlim(0.0, 1.22 * max(bits))
    axes.grid(visible=False, axis="y")
    told = "held out" if fit.counts[1] else "of what was learned from"
    axes.set(xlabel="bits a symbol", title=f"log-loss, {told}")


def _matrix_rows(fit: Fit) -> int:
    """Rows of the matrix that is drawn: lags for weights by query, else symbols."""
    if fit.mixture.kind == "scb":
        return min(len(fit.lags), _MOST_LAGS)
    return len(_frequent(fit))


def _frequent(fit: Fit) -> np.ndarray:
    """The most frequent symbols, in their order."""
    kept = np.argsort(-fit.mu, kind="stable")[:_MOST_NAMES]
    return np.sort(kept)


def _draw_queries(axes: Axes, fit: Fit) -> None:
    shown = _frequent(fit)
    weights = np.asarray(fit.mixture.weights).sum(axis=0)[:_MOST_LAGS, shown]
    image = axes.imshow(weights, aspect="auto", cmap="cividis", vmin=0.0, interpolation="nearest")
    _label(axes, fit.lags[: len(weights)], [_visible(fit.names[n]) for n in shown])
    axes.set(xlabel="query (the symbol just before)", ylabel="lag", title="weight by query")
    axes.figure.colorbar(image, ax=axes, label="weight", pad=0.01)


def _draw_matrix(axes: Axes, fit: Fit) -> None:
    shown = _frequent(fit)
    strongest = int(np.argmax(fit.weights))
    by_lag = fit.mixture.kind == "mtdg"
    weights = np.asarray(fit.mixture.weights)[:, strongest, 0]
    place = strongest if by_lag else int(np.argmax(weights))
    matrix = np.asarray(fit.mixture.matrices)[place][np.ix_(shown, shown)]
    image = axes.imshow(matrix, aspect="auto", cmap="cividis", vmin=0.0, interpolation="nearest")
    names = [_visible(fit.names[n]) for n in shown]
    _label(axes, names, names)
    which = f"lag {fit.lags[strongest]}" if by_lag or len(fit.lags) == 1 else "all lags"
    axes.set(xlabel="symbol at the lag", ylabel="next symbol", title=f"P, {which}")
    axes.figure.colorbar(image, ax=axes, label="probability", pad=0.01)


def _label(axes: Axes, rows: Sequence[Any], columns: Sequence[str]) -> None:
    axes.grid(visible=False)
    axes.set_yticks(range(len(rows)), [str(row) for row in rows])
    axes.set_xticks(range(len(columns)), columns)
    longest = max((len(name) for name in columns), default=1)
    if longest * len(columns) > 48:  # characters that fit side by side
        axes.tick_params(axis="x", labelrotation=90)
    small = max(3.5, 7.0 - 0.1 * max(0, len(rows) - 10))
    axes.tick_params(axis="y", labelsize=small)
    axes.tick_params(axis="x", labelsize=max(5.0, 7.0 - 0.06 * max(0, len(columns) - 10)))


def _visible(name: str) -> str:
    """A symbol as it can be read on an axis: short, and blanks as signs."""
    if name == " ":
        return "␣"
    text = name.encode("unicode_escape").decode() if not name.isprintable() else name
    # A dollar would begin a formula.
    return (text if len(text) <= 10 else text[:9] + "…").replace("$", r"\$")


def _draw_spectrum(axes: Axes, fit: Fit) -> None:
    from matplotlib.ticker import MaxNLocator

    shares = fit.spectrum[:_SHOWN]
    axes.bar(range(1, len(shares) + 1), shares, color=COLOURS[2], width=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(
        xlabel="component", ylabel="share", ylim=(0, 1),
        title=f"one matrix for all lags: {100 * shares[0]:.0f}%",
    )  # fmt: skip
