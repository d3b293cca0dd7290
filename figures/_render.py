"""From a study's dataset to a figure's files, and the command line of a figure script.

A figure is drawn from a stored dataset alone. `render` opens it, hands it to the script's `plot`
and writes the picture as PNG and PDF. Equal datasets give equal bytes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import matplotlib.style
import xarray as xr
from _data import check_finite, made_of, open_study
from matplotlib.figure import Figure

STYLE: Final = Path(__file__).resolve().parent / "scbjax.mplstyle"
SINGLE_COLUMN: Final = 3.3  # inches
DOUBLE_COLUMN: Final = 7.0  # inches

Plot = Callable[[xr.Dataset], Figure]
Draw = Callable[[Path, Path], list[Path]]
Numbers = Callable[[Path], str]


def house_style() -> AbstractContextManager[None]:
    """Apply the style of the figures, whatever the reader's own matplotlibrc says."""
    return matplotlib.style.context(["default", STYLE], after_reset=True)


def render(
    name: str, study: str, variables: Sequence[str], plot: Plot, results: Path, out: Path
) -> list[Path]:
    """Draw a figure from a study's dataset and write it as PNG and PDF.

    Args:
        name: file name without suffix.
        study: whose dataset is drawn.
        variables: what the figure reads of it.
        plot: makes the figure.
        results: the directory that holds the studies' directories.
        out: where the files go; made if it does not exist.

    Returns:
        The paths written.

    Raises:
        FileNotFoundError: no dataset.
        ValueError: a dataset that the figure cannot be drawn from, or a directory that cannot be
            written.
    """
    dataset = open_study(results, study, variables)
    check_finite(dataset, study)
    paths = [out / f"{name}.png", out / f"{name}.pdf"]
    with house_style():
        figure = made_of(dataset, study, plot)
        try:
            out.mkdir(parents=True, exist_ok=True)
            # No date and no version: they would change the bytes of the same picture.
            figure.savefig(paths[0], metadata={"Software": None})
            figure.savefig(
                paths[1], metadata=dict.fromkeys(("CreationDate", "Creator", "Producer"))
            )
        except OSError as error:
            raise ValueError(f"cannot write into {out}: {error.strerror}") from error
    return paths


def main(draw: Draw, description: str | None, numbers: Numbers | None = None) -> int:
    """Run a figure script: draw and print the paths, or print the numbers; 2 on bad input.

    Args:
        draw: writes the pictures.
        description: of the script, for `--help`.
        numbers: what `--numbers` prints, if the script has it.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="holds STUDY/STUDY.nc"
    )
    parser.add_argument("--out", type=Path, default=Path("figures/out"), help="where files go")
    if numbers is not None:
        parser.add_argument(
            "--numbers", action="store_true", help="print the numbers behind it, and draw nothing"
        )
    arguments = parser.parse_args()
    try:
        if numbers is not None and arguments.numbers:
            lines: Sequence[object] = [numbers(arguments.results)]
        else:
            lines = draw(arguments.results, arguments.out)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    for line in lines:
        print(line)
    return 0
