"""What stands above and below the panels: the legend, and which runs diverged or are mirrored."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Final

import xarray as xr
from _arms import LOOKS, Arm
from _curves import MAX_BANDS, POPULATION_LOOK, STAGE_COLOUR
from _runs import count_diverged, count_mirrored
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

CHARACTER: Final = 0.066  # inches, of a line of text
LINE: Final = 0.14  # inches, from one to the next
REAL_LOOK: Final[Mapping[str, Any]] = {"marker": "o", "markersize": 2.4, "linestyle": ""}


def note_findings(
    figure: FigureBase, panels: Sequence[tuple[str, xr.Dataset, Sequence[Arm]]], below: str = ""
) -> None:
    """Write below the panels how many runs of which arms diverged or are mirrored.

    A run that diverged is in the figure until it did.

    Args:
        figure: the figure, or a part of it.
        panels: title, tidy dataset with dimensions arm, run and step, and arms of each.
        below: what stands there already, such as the name of the x axis of all panels.
    """
    whole = figure.get_figure(root=True)
    assert whole is not None
    lines = [below] if below else []
    for name, panel, arms in panels:
        for finding, count in (("diverged", count_diverged), ("mirrored", count_mirrored)):
            counts = {arm.label: count(panel, arm) for arm in arms}
            # What belongs together is not to be torn apart at the end of a line.
            parts = [f"{n} {label}".replace(" ", "\u00a0") for label, n in counts.items() if n]
            if parts:
                where = f"{name}: " * bool(name)
                text = f"{where}{finding}, of {panel.sizes['run']} runs each: {'; '.join(parts)}"
                lines += textwrap.wrap(text, int(whole.get_figwidth() / CHARACTER))
    figure.supxlabel("\n".join(lines), fontsize=8)
    # Constrained layout takes the room of these lines from the panels.
    whole.set_figheight(whole.get_figheight() + LINE * max(0, len(lines) - bool(below)))


def in_order(arm: Arm) -> tuple[int, list[float]]:
    """Give the place of an arm in a legend: by its optimizer, and then by the numbers it has."""
    numbers = re.findall(r"= ([\d.e-]+)", arm.label)
    return list(LOOKS).index(arm.optimizer), [float(number) for number in numbers]


def extras() -> dict[str, tuple[str, Line2D]]:
    """Give the label and the look of what a figure may draw beside its arms."""
    grey = "#666666"
    star: dict[str, Any] = {"color": grey, "linestyle": "", "marker": "*", "markersize": 7.5}
    hollow: dict[str, Any] = {**star, "markersize": 6.5, "markerfacecolor": "white"}
    return {
        "population": ("population path", Line2D([], [], **POPULATION_LOOK)),
        "real": ("real mini-batches", Line2D([], [], color=grey, **REAL_LOOK)),
        "rounded": (r"$A$ rounded, $V$ refitted", Line2D([], [], **star)),
        "rounded alone": (r"$A$ rounded", Line2D([], [], **star)),
        "refit": (r"$V$ from the law itself", Line2D([], [], **hollow)),
    }


def add_legend(
    figure: Figure,
    data: xr.Dataset,
    arms: Sequence[Arm],
    *extra: str,
    panels: Sequence[int] | None = None,
) -> None:
    """Put one legend above the panels: the arms, the band, the ends of the stages and extras.

    Args:
        figure: the figure.
        data: the tidy dataset that it shows.
        arms: names and looks.
        *extra: of "population", "real", "rounded", "rounded alone" (without a refitted V) and
            "refit", those that the figure draws.
        panels: how many arms each panel has; all of them if left out.
    """
    panels = panels or [len(arms)]
    grey: dict[str, Any] = {"color": "#666666"}
    entries: dict[str, Any] = {
        arm.label: Line2D([], [], color=arm.colour, linestyle=arm.linestyle)
        for arm in sorted(arms, key=in_order)
    }
    if (runs := data.sizes["run"]) > 1:
        label = f"median, 10\u201390% of {runs} runs"
        bar = Line2D([], [], **grey, linestyle="", marker="|", markersize=9, markeredgewidth=1.1)
        line = Line2D([], [], **grey)
        shapes: list[Any] = [(Patch(color="#cccccc"), line)] * (min(panels) <= MAX_BANDS)
        shapes += [(bar, line)] * (max(panels) > MAX_BANDS)
        entries |= dict(zip([label, "the same, where bands would blend"], shapes, strict=False))
    entries |= {label: look for name, (label, look) in extras().items() if name in extra}
    if (data["stage"] > 1).any():
        entries["end of stage 1"] = Line2D([], [], color=STAGE_COLOUR, linewidth=0.8)
    if (data["stage"] > 2).any():
        entries["end of stage 2"] = Line2D([], [], **grey, linestyle="", marker="v", markersize=4.5)
    for rows in range(1, len(entries) + 1):
        columns = -(-len(entries) // rows)
        legend = figure.legend(
            entries.values(), entries.keys(), loc="outside upper center", ncols=columns
        )
        if legend.get_window_extent().width <= figure.bbox.width or columns == 1:
            break
        legend.remove()
