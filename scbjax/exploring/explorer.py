"""Writing an explorer: from the results of a study to one HTML file."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scbjax.base import Experiment, StudyError
from scbjax.exploring import BUDGET
from scbjax.exploring.choosing import Choice, choose
from scbjax.exploring.gathering import Gathered, gather
from scbjax.exploring.opening import Results, attribute, opened_results
from scbjax.exploring.page import MARKER, check_bokeh, empty_size, make_page
from scbjax.exploring.thinning import thin
from scbjax.exploring.words import left_out
from scbjax.sweep.engine.places import checked_path, read_bytes
from scbjax.sweep.python import in_words_of_python
from scbjax.sweep.results.arrays import atomic_file
from scbjax.sweep.study.experiments import load_experiments
from scbjax.sweep.study.fields import shown

if TYPE_CHECKING:
    import xarray

_MOST_COMPRESSED: Final = 4
"""A browser holds so many times what the file would without compression, and no more."""
_SAFE: Final = 0.9  # other data may be compressed a little less
_HEAD: Final = 4096
"""Bytes at the start of a file in which a page says what made it."""
_OWN: Final = f'<meta name="generator" content="{MARKER}">'


def explore(
    what: xarray.Dataset | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    budget: int | str = BUDGET,
    force: bool = False,
    experiment: Experiment | str | os.PathLike[str] | None = None,
    results: str | os.PathLike[str] = "results",
    say: Callable[[str], None] | None = None,
) -> Path:
    """Writes an HTML file in which the snapshots of a study are watched step by step.

    The attention A and the value matrix V stand beside Q and P, with the recorded distances as
    curves; a trajectory is chosen by the points of the study's axes, and a step by a slider, which
    also plays. The file opens anywhere without a network. Data that would make it larger than
    allowed is left out by rule, and the page says what.

    Args:
        what: a dataset with snapshots (`record.snapshots` of a study), the path of one, a results
            directory, also of a run that is not complete, or the name of a study in `results`.
        out: the file; that of the dataset with ``-explore.html`` if it is left out.
        budget: bytes of the file, or a size such as ``"20MB"``.
        force: write the file also where there is another one that was not made by this function.
        experiment: the user's own, or its file, which is needed for a run of it that is not
            complete.
        results: the directory that holds the studies' directories.
        say: hears sentences of what was left out.

    Returns:
        The file.

    Raises:
        StudyError: there is nothing to explore, Bokeh is not installed, or the file can't be
            written; the text is one sentence.
    """
    with in_words_of_python():
        return write_page(
            what, out, budget=budget, force=force, experiment=experiment, results=results, say=say
        )


def write_page(
    what: xarray.Dataset | str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
    *,
    budget: int | str,
    force: bool,
    experiment: Experiment | str | os.PathLike[str] | None,
    results: str | os.PathLike[str],
    say: Callable[[str], None] | None,
) -> Path:
    """:func:`explore` as the command calls it: messages name its options."""
    check_bokeh()
    size = _read_budget(budget)
    experiments = _experiments(experiment)
    with opened_results(what, experiments, Path(results)) as found:
        choice = choose(found)
        path = _out(found, what, out)
        _check_free(path, force=force)
        data, page = _fitted(found, choice, size)
        for sentence in (*found.notes, *left_out(data)):
            if say is not None:
                say(sentence)
    with atomic_file(path) as file:
        file.write(page.encode())
    return path


def _fitted(found: Results, choice: Choice, size: int) -> tuple[Gathered, str]:
    """What is shown, and the page of it, which has at most a number of bytes.

    Bokeh compresses arrays, by how much is known when a page is made. Where that leaves room for
    what was left out, the page is made once more.
    """
    empty = empty_size()
    room = (size - empty) * 3 // 4  # four characters for three bytes, in base64
    data = gather(found, choice, room)
    page = make_page(found, data)
    written = max(1, len(page.encode()) - empty)
    more = min(_MOST_COMPRESSED, _SAFE * (size - empty) / written)
    if more > 1 and data.kept != thin(data.there, sys.maxsize):
        larger = gather(found, choice, int(more * data.kept.bytes))
        again = make_page(found, larger)
        if len(again.encode()) <= size:
            return larger, again
    return data, page


def _read_budget(budget: int | str) -> int:
    if isinstance(budget, int) and not isinstance(budget, bool) and budget > 0:
        return budget
    size = read_bytes(budget, "--budget") if isinstance(budget, str) else None
    if size is None:
        raise StudyError(
            f"budget must be a number of bytes above 0 or a size such as {BUDGET}, "
            f"got {shown(budget)}"
        )
    return size


def _experiments(given: Experiment | str | os.PathLike[str] | None) -> tuple[Experiment, ...]:
    if given is None:
        return ()
    if isinstance(given, Experiment):
        return (given,)
    return load_experiments(Path(checked_path(os.fspath(given))))


def _out(
    found: Results,
    what: xarray.Dataset | str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
) -> Path:
    """Where the page is written."""
    if out is not None:
        path = Path(checked_path(os.fspath(out)))
        return path / _name(found) if path.is_dir() else path
    if not isinstance(what, str | os.PathLike):
        return Path(_name(found))
    source = Path(found.source)
    return (source if source.is_dir() else source.parent) / _name(found)


def _name(found: Results) -> str:
    source = Path(found.source)
    stem = source.stem if source.suffix == ".nc" else attribute(found.frame, "name") or "study"
    return f"{stem}-explore.html"


def _check_free(path: Path, *, force: bool) -> None:
    """Refuses to write over what is no page of an explorer.

    Raises:
        StudyError: there is such a file, or a directory.
    """
    if path.is_dir():
        raise StudyError(f"{path} is a directory")
    if force or not path.exists():
        return
    try:
        with path.open("rb") as file:
            own = _OWN.encode() in file.read(_HEAD)
    except OSError as error:
        raise StudyError(f"{path} can't be read: {error.strerror}") from None
    if not own:
        raise StudyError(
            f"{path} exists and was not written by scbjax explore: choose another file with --out, "
            "or write over it with --force"
        )
