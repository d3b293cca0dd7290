"""What the pictures of the benchmarks share: sizes, colours and marks with a spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH: Final = 7.0  # inches, two columns
HEIGHT: Final = 2.6
# Colours of Okabe & Ito, one for each contender in all pictures.
COLOURS: Final[Mapping[str, str]] = {
    "scbjax": "#0072B2",
    "scbjax, all cores": "#56B4E9",
    "one random word a token": "#000000",
    "PyTorch, careful": "#D55E00",
    "PyTorch, plain": "#E69F00",
    "NumPy": "#009E73",
    "JAX, naive": "#CC79A7",
}
GREY: Final = "#777777"


def new_figure(panels: int = 1, height: float = HEIGHT) -> tuple[Figure, list[Axes]]:
    """A figure two columns wide with panels side by side."""
    figure = Figure(figsize=(WIDTH, height))
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def colour_of(name: str) -> str:
    """The colour of a contender, or of the one that is named before the comma."""
    return COLOURS.get(name) or COLOURS.get(name.partition(",")[0], GREY)


def draw_spread(
    axes: Axes,
    x: Sequence[float],
    values: Sequence[Mapping[str, float]],
    name: str,
    *,
    scale: float = 1.0,
    **look: Any,  # noqa: ANN401 - as matplotlib takes it
) -> None:
    """Draws medians with a bar from the smallest to the largest value.

    Args:
        axes: where to draw.
        x: where along the x axis.
        values: median, min and max for each.
        name: for the legend.
        scale: what values are multiplied with.
        **look: passed on to `Axes.errorbar`.
    """
    medians = [scale * value["median"] for value in values]
    below = [scale * (value["median"] - value["min"]) for value in values]
    above = [scale * (value["max"] - value["median"]) for value in values]
    axes.errorbar(
        x,
        medians,
        yerr=(below, above),
        **{
            "label": name,
            "color": colour_of(name),
            "marker": "o",
            "markersize": 3,
            "elinewidth": 0.8,
            **look,
        },
    )
