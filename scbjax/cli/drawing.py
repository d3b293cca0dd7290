"""``scbjax figure``: figures, or the numbers behind them, alone or after a run."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from scbjax.base import StudyError
from scbjax.cli.exits import EXIT_BAD_INPUT
from scbjax.cli.options import Results, left_out
from scbjax.cli.printing import note
from scbjax.sweep.engine.places import RESULTS, checked_path, existing
from scbjax.sweep.study.fields import shown
from scbjax.sweep.study.locating import none_found

PICTURES = "figures/out"
DRAWING = tuple(
    f"matplotlib.{name}" for name in ("figure", "backends.backend_agg", "backends.backend_pdf")
)
"""Modules that a picture is drawn and written with."""


@dataclass(frozen=True)
class Figure:
    """Draw the figure of a study or a dataset, or all whose results are there."""

    name: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(
            metavar="NAME", help="A figure's name, all, or a dataset: a file, its folder, a study."
        ),
    ]
    results: Results = RESULTS
    out: Annotated[str, tyro.conf.arg(metavar="DIR", help="Where the pictures go.")] = PICTURES
    numbers: Annotated[
        bool, tyro.conf.arg(help="Print the numbers behind it as tables, and draw nothing.")
    ] = False
    variables: Annotated[
        str | None,
        left_out(
            metavar="NAME,NAME", help="Draw these variables of a dataset, a panel each, instead."
        ),
    ] = None

    def __call__(self) -> int:
        """Runs the command; returns its exit status."""
        from scbjax.sweep.scripts.figures import find_dataset, find_figure, find_figures

        results, out = Path(checked_path(self.results)), Path(checked_path(self.out))
        if self.variables is not None:
            return self._draw_variables(results, out)
        show = _print_numbers if self.numbers else partial(_draw, out=out)
        if self.name == "all":
            return _show_all(results, show)
        dataset = None if self.name in find_figures() else find_dataset(self.name, results)
        if dataset is None:
            _check_place(self.name)
            show(find_figure(self.name), results)
        elif self.numbers:
            raise StudyError(
                f"--numbers needs the name of a figure with a script, got {shown(self.name)}"
            )
        else:
            _draw_any(dataset, out)
        return 0

    def _draw_variables(self, results: Path, out: Path) -> int:
        from scbjax.sweep.scripts.figures import draw_default, find_dataset

        names = [name.strip() for name in str(self.variables).split(",")]
        if self.numbers or self.name == "all":
            other = "--numbers" if self.numbers else "all"
            raise StudyError(f"--variables draws one dataset, and does not go with {other}")
        dataset = find_dataset(self.name, results)
        if dataset is None:
            raise StudyError(f"{shown(self.name)} is no dataset, nor a study with one in {results}")
        _print_paths(draw_default(dataset, out, names))
        return 0


def _check_place(name: str) -> None:
    """Says what is wrong with the path of results, which is the name of no figure."""
    from scbjax.sweep.results.store import Store

    path = Path(checked_path(name))
    if path.name == name and not path.is_dir():
        return
    if not Store(existing(name, "figure, folder or dataset")).holds_results():
        raise StudyError(f"{shown(name)} holds no dataset to draw")
    raise StudyError(
        f"{shown(name)} has no dataset yet: its run is not complete; `scbjax status {name}` says "
        "how far it is"
    )


def _print_paths(paths: Sequence[Path]) -> None:
    for path in paths:
        print(path)


def tell_figures(study: str, dataset: Path, *, draw: bool) -> None:
    """Draws the figures of a study that is complete, and says how to draw them."""
    from scbjax.sweep.scripts.figures import figures_of

    usual = dataset.parent == Path(RESULTS) / study
    scripts = figures_of(study)
    if draw:
        try:
            _draw_any(dataset, Path(PICTURES) if usual else dataset.parent)
        except StudyError as error:
            if scripts:
                raise
            note(str(error))  # the study is complete, whether a default figure fits it or not
            draw = False
    again = "draw it again with:" if draw else "draw it with:"
    for name in scripts if dataset.parent.name == study else []:
        elsewhere = [] if usual else ["--results", str(dataset.parent.parent)]
        print(again, shlex.join(["scbjax", "figure", name, *elsewhere]))
    if not scripts:
        print(again, shlex.join(["scbjax", "figure", str(dataset)]))


def _draw_any(dataset: Path, out: Path) -> None:
    """Draws the figures of a dataset's study or, if it has none, the default one."""
    from scbjax.sweep.scripts.figures import draw_dataset, draw_default, figures_of

    scripts = figures_of(dataset.stem)
    for script in scripts.values():
        _print_paths(draw_dataset(script, dataset, out))
    if not scripts:
        _print_paths(draw_default(dataset, out))


def _draw(script: Path, results: Path, out: Path) -> None:
    """Draws a figure, and says if there is a newer dataset that it is not drawn from."""
    from scbjax.sweep.scripts.figures import draw_figure

    _print_paths(draw_figure(script, results, out))
    _tell_newer(script, results)


def _print_numbers(script: Path, results: Path) -> None:
    """Prints the numbers behind a figure under its name, as Markdown."""
    from scbjax.sweep.scripts.figures import numbers_of

    print(f"## {script.stem}\n\n{numbers_of(script, results)}\n")
    _tell_newer(script, results)


def _tell_newer(script: Path, results: Path) -> None:
    """Says if there is a newer dataset than the one that a figure reads."""
    from scbjax.sweep.scripts.figures import dataset_of, newer_than

    dataset = dataset_of(script, results)
    if newer := newer_than(dataset):
        note(f"{newer} has other settings and is newer than {dataset}, which was read")


def _show_all(results: Path, show: Callable[[Path, Path], None]) -> int:
    """Draws every figure whose dataset is there, or prints its numbers; says what is left out."""
    from scbjax.sweep.scripts.figures import FOLDER, dataset_of, find_figures

    left_out, failed = [], []
    scripts = find_figures()
    if not scripts:
        raise StudyError(f"there are no figures: {none_found(FOLDER)}")
    for script in scripts.values():
        try:
            dataset_of(script, results)
        except StudyError as error:
            left_out.append(str(error))
            continue
        try:
            show(script, results)
        except StudyError as error:
            failed.append(str(error))
    for reason in left_out:
        note(f"left out: {reason}")
    for reason in failed:
        note(reason)
    if len(left_out) == len(scripts):
        raise StudyError(f"no figure could be drawn from {results}")
    return EXIT_BAD_INPUT if failed else 0
