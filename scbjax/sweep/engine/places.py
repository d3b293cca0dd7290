"""Where a study runs, and into which directory: what the command and Python have in common.

What JAX or Dask is needed for is imported when it is called, so that mistakes are reported at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from scbjax.base import StudyError
from scbjax.sweep.study.cells import is_search
from scbjax.sweep.study.fields import shown
from scbjax.tables import most_like

if TYPE_CHECKING:
    from scbjax.sweep.engine.execute import RunReport
    from scbjax.sweep.engine.here import Place
    from scbjax.sweep.engine.progress import Progress
    from scbjax.sweep.study.definition import Study

RESULTS = "results"
SMALL = "small"

_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i)?)?b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_MAX_DIGITS_OF_SIZE = 20


def checked_path(text: str) -> str:
    """Returns a path, once it is sure that it can be one.

    Raises:
        StudyError: it is empty, or holds a null character.
    """
    if not text or "\0" in text:
        raise StudyError(f"a path must not be empty or hold a null character, got {shown(text)}")
    return text


def existing(text: str, kind: str = "folder") -> Path:
    """Returns the path of results, which must be there.

    Args:
        text: the path.
        kind: what messages say that there is none of.

    Raises:
        StudyError: there is nothing; the nearest results directory is suggested.
    """
    path = Path(checked_path(text))
    if path.exists():
        return path
    places = [Path(RESULTS), Path(RESULTS) / SMALL, path.parent, Path()]
    runs = {run.parent for place in places for run in place.glob("*/manifest.json")}
    # What is alike may be the whole path or the name of the study alone.
    known = {name: run for run in sorted(runs) for name in (run.name, str(run))}
    found = most_like(text, known) or most_like(path.name, known)
    hint = f"; did you mean '{known[found]}'?" if found else ""
    raise StudyError(f"there is no {kind} {shown(text)}{hint}")


def check_out(out: Path) -> None:
    """Notices before JAX is loaded that nothing can be run into a results directory.

    Raises:
        StudyError: the system has no locks, or the directory can't be made or written.
    """
    from scbjax.sweep.results.lock import check_system

    check_system()
    check_writable(out)


def check_writable(out: Path) -> None:
    """Notices that a directory can't be made or written.

    Raises:
        StudyError: it can't.
    """
    place = out
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise StudyError(f"{out} can't be written: {place} is not a directory")
    if not os.access(place, os.W_OK | os.X_OK):
        raise StudyError(f"{out} can't be written: no permission to write in {place}")


def writable_folder(out: Path) -> Path:
    """Makes a directory, and those above it, before something is computed that goes there.

    Raises:
        StudyError: it can't be made or written.
    """
    check_writable(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # as on /proc, where permissions allow what the system refuses
        raise StudyError(f"{out} can't be written: {error.strerror or error}") from None
    return out


def read_bytes(text: str | None, option: str = "--memory") -> int | None:
    """Returns a size in bytes, or `None` for none.

    Args:
        text: a number with a unit of 1000 (kB, MB, GB, TB) or 1024 (KiB, MiB, GiB, TiB).
        option: what messages say that it was given to.

    Raises:
        StudyError: it isn't such a size.

    >>> read_bytes("2GiB"), read_bytes("1.5 MB")
    (2147483648, 1500000)
    """
    if text is None:
        return None
    found = _BYTES.fullmatch(text.strip()) if len(text) <= _MAX_DIGITS_OF_SIZE else None
    if found is None or not (size := _size(*found.groups(default=""))):
        raise StudyError(f"{option} must be a size such as 2GiB or 500MB, got {shown(text)}")
    return size


def _size(number: str, prefix: str, binary: str) -> int:
    return int(float(number) * (1024 if binary else 1000) ** _POWERS[prefix.lower()])


def start_jax(cpu_devices: int | None) -> None:
    """Starts JAX in this process.

    Args:
        cpu_devices: devices to make of the CPU; None for one for each usable core. JAX that runs
            already keeps those it has.

    Raises:
        StudyError: there is no device.
    """
    from scbjax.sweep.engine.backend import find_devices, make_cpu_devices

    make_cpu_devices(cpu_devices)
    find_devices()  # which fails with a sentence if there are none


def dask_place(
    scheduler: str | None,
    cpu_devices: int | None,
    compilation_cache: str | None,
    say: Callable[[str], None],
) -> AbstractContextManager[Place]:
    """The workers of a Dask scheduler, or new ones of this machine, as a place where studies run.

    Args:
        scheduler: its address; None for workers of this machine.
        cpu_devices: devices that each worker makes of the CPU.
        compilation_cache: where workers keep compiled programs.
        say: hears what is waited for.

    Raises:
        StudyError: Dask is not installed; when it is entered, as `connect` of the module cluster.
    """
    if find_spec("distributed") is None:
        raise StudyError(
            "--engine dask needs the package distributed, which is not installed: the extra dask "
            "of scbjax brings it, as in pip install 'scbjax[dask]'"
        )
    import jax

    # What this process computes is small, and a GPU is for the workers.
    jax.config.update("jax_platforms", "cpu")
    from scbjax.sweep.engine.cluster import connect
    from scbjax.sweep.engine.remote import Setup

    return connect(scheduler, Setup(cpu_devices, compilation_cache), say)


def run_into(
    study: Study,
    out: Path,
    place: Place,
    *,
    create_progress: Callable[[], Progress],
    memory_bytes: int | None = None,
    force: bool = False,
    owns_process: bool = True,
) -> RunReport:
    """Runs a study or a search into a directory, or continues it where an earlier run stopped.

    Args:
        study: what to run.
        out: the results directory.
        place: where it runs.
        create_progress: where to report to; each study of a search gets its own.
        memory_bytes: budget of a chunk, as for `scbjax.sweep.engine.here.plan_here`.
        force: move the results that are there aside, and start anew.
        owns_process: as for `scbjax.sweep.engine.execute.run_study`.

    Returns:
        How it ended.

    Raises:
        StudyError: as `scbjax.sweep.engine.execute.run_study` and `run_search`.
    """
    from scbjax.sweep.engine.execute import run_search, run_study

    if is_search(study):
        return run_search(
            study,
            out,
            create_progress=create_progress,
            memory_bytes=memory_bytes,
            force=force,
            place=place,
            owns_process=owns_process,
        )
    return run_study(
        place.plan(study, memory_bytes),
        out,
        progress=create_progress(),
        force=force,
        engine=place.engine,
        facts=place.facts,
        owns_process=owns_process,
    )
