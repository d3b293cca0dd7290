"""Finding the figure scripts and drawing with them.

A script ``figures/NAME.py`` says in a constant ``STUDY`` whose dataset it reads, and has a function
``draw(results, out)`` that returns the files it wrote. The constant is read without running the
script, so that a missing dataset is noticed before matplotlib is loaded. It may have a function
``numbers(results)`` too, which returns as text what a caption quotes and no picture prints.

A study without a script has a default figure, :func:`scbjax.plot.plot_dataset`.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scbjax.base import StudyError
from scbjax.sweep.scripts.loading import find_script, find_scripts

FOLDER = "figures"
_KINDS = ("png", "pdf")
_DIGITS = "[0-9a-f]" * 8


def find_figures() -> dict[str, Path]:
    """Returns the figure scripts of the current directory and of the library, by name."""
    return find_scripts(FOLDER)


def find_figure(name: str) -> Path:
    """Returns the script of a figure.

    Raises:
        StudyError: no script has that name; the nearest one is suggested.
    """
    try:
        return find_script(FOLDER, name, "figure")
    except StudyError as error:
        link = " Any" if str(error).endswith("?") else "; any"
        raise StudyError(
            f"{error}{link} dataset is drawn by scbjax figure DATASET.nc, or by a script of your "
            f"own {FOLDER}/NAME.py, see CONTRIBUTING.md"
        ) from None


def study_of(script: Path) -> str:
    """Returns the name of the study that a figure script draws.

    Raises:
        StudyError: the script has no constant STUDY, or can't be read.
    """
    try:
        tree = ast.parse(script.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        raise StudyError(f"{script} can't be read: {error}") from None
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        if names == ["STUDY"] and isinstance(value := getattr(node, "value", None), ast.Constant):
            return str(value.value)
    raise StudyError(f"{script} doesn't say which study it draws: it has no constant STUDY")


def figures_of(study: str) -> dict[str, Path]:
    """Returns the scripts that draw a study, by name; those that can't be read are left out."""
    found = {}
    for name, script in find_figures().items():
        try:
            if study_of(script) == study:
                found[name] = script
        except StudyError:
            continue
    return found


def dataset_of(script: Path, results: Path) -> Path:
    """Returns the dataset that a figure script reads.

    Raises:
        StudyError: it isn't there; the sentence names the command that makes it.
    """
    study = study_of(script)
    path = results / study / f"{study}.nc"
    if path.is_file():
        return path
    out = "" if results == Path("results") else f" --out {results / study}"
    raise StudyError(f"{path} is missing; `scbjax run {study}{out}` makes it")


def find_dataset(name: str, results: Path) -> Path | None:
    """Returns the dataset that a name stands for, or `None` if it is the name of none.

    Args:
        name: a dataset, a folder with one in it, or a study in the results directory.
        results: the directory that holds the studies' directories.

    Raises:
        StudyError: it looks like a dataset, and there is none; or the folder has several.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir() and (found := _dataset_in(path)):
        return found
    if path.suffix == ".nc":
        raise StudyError(f"{path} is missing, or is no file")
    own = results / name / f"{name}.nc"
    return own if own.is_file() else None


def _dataset_in(folder: Path) -> Path | None:
    """The dataset of a folder: the one with its name, or the only one."""
    found = sorted(path for path in folder.glob("*.nc") if path.is_file())
    named = [path for path in found if path.stem == folder.resolve().name]
    if len(found) > 1 and not named:
        names = ", ".join(path.name for path in found)
        raise StudyError(f"{folder} holds several datasets; name one of them: {names}")
    return next(iter(named or found), None)


def newer_than(dataset: Path) -> Path | None:
    """Returns the newest dataset of the same study with other settings, if it is newer than this.

    A run of a study that was changed goes to ``NAME-<8 digits>``, beside what is there already.
    """
    results, name = dataset.parent.parent, dataset.stem
    others = {path: path.stat().st_mtime for path in results.glob(f"{name}-{_DIGITS}/{name}.nc")}
    newest = max(others, key=others.__getitem__, default=dataset)
    return newest if newest.stat().st_mtime > dataset.stat().st_mtime else None


def draw_figure(script: Path, results: Path, out: Path) -> list[Path]:
    """Draws a figure.

    Args:
        script: the figure's script.
        results: the directory that holds the studies' directories.
        out: where the pictures go; made if it does not exist.

    Returns:
        The files written.

    Raises:
        StudyError: the dataset is missing or unfit, or the pictures can't be written.
    """
    from scbjax.sweep.results.dataset import check_heaps

    check_heaps(dataset_of(script, results))
    try:
        paths: list[Path] = _load(script).draw(results, out)
    except (OSError, ValueError) as error:
        raise StudyError(f"figure {script.stem}: {error}") from None
    return paths


def numbers_of(script: Path, results: Path) -> str:
    """Returns the numbers behind a figure, as tables in Markdown; nothing is drawn.

    Args:
        script: the figure's script.
        results: the directory that holds the studies' directories.

    Raises:
        StudyError: the script gives no numbers, or the dataset is missing or unfit.
    """
    from scbjax.sweep.results.dataset import check_heaps

    check_heaps(dataset_of(script, results))
    numbers = getattr(_load(script), "numbers", None)
    if numbers is None:
        raise StudyError(f"figure {script.stem} gives no numbers: {script} has no function numbers")
    try:
        return str(numbers(results))
    except (OSError, ValueError) as error:
        raise StudyError(f"figure {script.stem}: {error}") from None


def draw_dataset(script: Path, dataset: Path, out: Path) -> list[Path]:
    """Draws a figure from a dataset that may lie anywhere, such as one of changed settings.

    Args:
        script: the figure's script.
        dataset: a dataset of the figure's study, under its own file name.
        out: where the pictures go; made if it does not exist.

    Returns:
        The files written.

    Raises:
        StudyError: as `draw_figure`.
    """
    # Scripts look for results/STUDY/STUDY.nc, whatever the directory of this dataset is called.
    with tempfile.TemporaryDirectory() as results:
        link = Path(results) / dataset.stem
        link.symlink_to(dataset.parent.resolve(), target_is_directory=True)
        try:
            return draw_figure(script, Path(results), out)
        except StudyError as error:
            raise StudyError(str(error).replace(str(link), str(dataset.parent))) from None


def draw_default(dataset: Path, out: Path, variables: Sequence[str] | None = None) -> list[Path]:
    """Draws the default figure of a dataset, which needs no script of its own, as PNG and PDF.

    Args:
        dataset: any dataset of a study.
        out: where the pictures go; made if it does not exist.
        variables: what is drawn, a panel each, and named in the names of the pictures; None for
            what suits most.

    Returns:
        The files written.

    Raises:
        StudyError: the dataset can't be read or has nothing to draw, or the pictures can't be
            written.
    """
    from scbjax.plot import plot_dataset
    from scbjax.sweep.results.dataset import read_dataset

    try:
        data = read_dataset(dataset, matrices=False)
        stem = "-".join([dataset.stem, *(variables or ())])
        paths = [out / f"{stem}.{kind}" for kind in _KINDS]
        for path in paths:
            plot_dataset(data, path, variables=variables)
    except StudyError as error:
        told = str(error).replace("the dataset", str(dataset), 1)
        raise StudyError(f"figure of {dataset.stem}: {told}") from None
    return paths


def _load(script: Path) -> Any:  # noqa: ANN401
    """Runs a script and returns its module."""
    spec = importlib.util.spec_from_file_location(f"scbjax_figure_{script.stem}", script)
    if spec is None or spec.loader is None:
        raise StudyError(f"{script} can't be loaded as a figure script")
    module: Any = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by its name, and find themselves nowhere if it is not there.
    sys.modules[spec.name] = module
    # The scripts import the helpers that stand beside them.
    sys.path.insert(0, str(script.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(script.parent))
    return module
