"""A default figure for the dataset of any study.

What was recorded against samples, the distances to the truth first: an arm (a combination of the
axes that are not seeds) has a colour, its line is the median over seeds, and a band or bars hold
80% of them. Runs that diverged are left out, and counted in words. A study with a story to tell
deserves a script of its own in ``figures/``; this one is for a first look.

matplotlib and xarray are imported when a function is called.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scbjax.base import StudyError
from scbjax.plot.arranging import arrange
from scbjax.plot.choosing import choose
from scbjax.plot.curves import draw_curves
from scbjax.plot.rows import draw_rows
from scbjax.plot.style import STYLE

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

# Nothing that changes while the picture does not: no date, no version.
_METADATA: Final[Mapping[str, Mapping[str, None]]] = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    ".svg": {"Date": None, "Creator": None},
}


def plot_dataset(
    dataset: xarray.Dataset | str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    variables: Sequence[str] | None = None,
) -> Figure:
    """Draws a default figure of the dataset of any study.

    Each panel has one variable, against the samples that were used (where `samples` was not
    recorded: iterations times batch size). Lines are medians over seeds; up to two arms have bands
    from the 10th to the 90th percentile, up to twelve have bars of that length. Many arms are
    spread over columns where one of the axes is short enough. What has no records over time, such
    as the dataset of a search, is drawn with a row for each arm; of a search, at the best value
    tried.

    Args:
        dataset: a dataset that the engine wrote, or its path.
        path: where the figure is written, if it is to be; the suffix says the format.
        variables: what is drawn, at most four; the distances to the truth if left out or, where
            none was recorded, the first few of what was.

    Returns:
        The figure.

    Raises:
        StudyError: the dataset can't be read, has nothing to draw or lacks a variable, or the
            file can't be written.
    """
    import matplotlib.style

    if isinstance(dataset, str | os.PathLike):
        from scbjax.sweep.results.dataset import read_dataset

        dataset = read_dataset(Path(dataset), matrices=False)
    names = choose(dataset, variables)
    data = arrange(dataset, names)
    with matplotlib.style.context(["default", dict(STYLE)], after_reset=True):
        timed = "step" in dataset[names[0]].dims
        figure = draw_curves(data, names) if timed else draw_rows(data, names)
        if path is not None:
            _save(figure, Path(path))
    return figure


def _save(figure: Figure, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            # A title in a script that the font lacks is drawn as boxes, and that is no error.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure.savefig(path, metadata=_METADATA.get(path.suffix.lower(), {}))
    except OSError as error:
        raise StudyError(f"{path} can't be written: {error.strerror or error}") from None
    except ValueError as error:
        raise StudyError(f"{path} can't be written: {' '.join(str(error).split())}") from None
