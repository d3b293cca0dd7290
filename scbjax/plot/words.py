"""What stands above and below the panels: what is drawn, what is left out, the legend."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from scbjax.plot.arranging import Arm, Data
from scbjax.plot.labels import plain
from scbjax.plot.style import ROW

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_BANDS: Final = 2
"""More bands than this in a panel blend into each other; bars side by side do not."""
MAX_BARS: Final = 12
MAX_NAMED: Final = 12
"""More arms than this are named in part: a legend is no place for a table."""
_WRAPPED: Final = 115  # characters of a line over the whole width
_MOST_COUNTED: Final = 3  # arms whose diverged runs are counted one by one


def evenly(arms: list[Arm], most: int) -> list[Arm]:
    """Some of many arms, from the first to the last at even distances."""
    if len(arms) <= most:
        return arms
    return [arms[place] for place in np.linspace(0, len(arms) - 1, most).round().astype(int)]


def spread_in_words(
    data: Data, arms: Sequence[Arm], axis: str | None, *, rows: bool = False
) -> str:
    """What the lines and the bands, bars or rows are."""
    if data.runs == 1:
        return "one run an arm" if len(data.arms) > 1 else "one run"
    together = len(arms) if axis is None else len(arms) // data.dataset.sizes[axis]
    spread = f"median of {data.runs} runs"
    if rows or together <= MAX_BARS:
        shape = "band" if together <= MAX_BANDS and not rows else "bars"
        return f"{spread}, {shape}: 10\u201390% of them"
    return f"{spread} (the spread of so many arms is not drawn)"


def tell(figure: Figure, data: Data, arms: Sequence[Arm], *, spread: str) -> None:
    """Puts the title, what is drawn and what is left out above the panels, the arms below."""
    named = list({arm.label: arm for arm in arms}.values())
    if len(named) > MAX_NAMED:
        spread += f"; {MAX_NAMED} of {len(named)} arms are named"
        named = evenly(named, MAX_NAMED)
    title = plain(str(data.dataset.attrs.get("title", data.dataset.attrs.get("name", ""))))
    lines = [line for text in (title, spread, _losses(data)) for line in _wrapped(text)]
    figure.suptitle("\n".join(lines), fontsize=8)
    if len(named) > 1:
        _legend(figure, named)
    figure.set_figheight(figure.get_figheight() + ROW * max(0, len(lines) - 2))


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WRAPPED)


def _losses(data: Data) -> str:
    """How many runs are left out, and of which arms; nothing if none is."""
    counts = data.left_out.sum(axis=1)
    if not counts.any():
        return ""
    total = f"{counts.sum()} of {data.left_out.size} runs diverged and are left out"
    if len(data.arms) == 1:
        return total
    hit = [(arm.label, count) for arm, count in zip(data.arms, counts, strict=True) if count]
    parts = [f"{count} of {label}" for label, count in hit[:_MOST_COUNTED]]
    if len(hit) > _MOST_COUNTED:
        parts.append(f"the others of {len(hit) - _MOST_COUNTED} more arms")
    return f"{total}: {'; '.join(parts)}"


def _legend(figure: Figure, arms: Sequence[Arm]) -> None:
    """Names the arms below the panels, in as many columns as there is room for."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=arm.colour, linestyle=arm.dashes, label=arm.label) for arm in arms
    ]
    for columns in range(min(len(arms), 6), 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            rows = -(-len(arms) // columns)
            figure.set_figheight(figure.get_figheight() + ROW * (rows - 1))
            return
        legend.remove()
