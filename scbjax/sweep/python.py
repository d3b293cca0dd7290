"""Sweeps from Python: a study in, a labelled dataset out, the same bits as those of the command.

The names are those of the package: `scbjax.sweep.run` and `scbjax.sweep.load`.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scbjax.base import Experiment, StudyError, short_name
from scbjax.sweep.engine.places import (
    check_out,
    checked_path,
    dask_place,
    existing,
    read_bytes,
    run_into,
    start_jax,
)
from scbjax.sweep.engine.progress import Progress, SilentProgress, create_progress
from scbjax.sweep.study.definition import Study, toml_text
from scbjax.sweep.study.experiments import load_experiments
from scbjax.sweep.study.fields import MAX_AXIS_POINTS, shown
from scbjax.sweep.study.files import load_study, parse_study
from scbjax.sweep.study.locating import check_name
from scbjax.sweep.study.own import own_experiments
from scbjax.tables import nearest
from scbjax.values import Values

if TYPE_CHECKING:
    import xarray

    from scbjax.sweep.engine.engines import Engine
    from scbjax.sweep.engine.here import Place

__all__ = ["load", "run"]

ENGINES = ("local", "dask")
NAME = "study"
"""Of a study that is no file, as its dataset has it."""

_OPTION = re.compile(r"(?<!\S)--([a-z][a-z-]*)")


def run(
    study: Values | str | os.PathLike[str] | Experiment,
    *,
    axes: Values | None = None,
    set: Values | None = None,  # noqa: A002 - the word that the command has for it
    experiment: Experiment | str | os.PathLike[str] | None = None,
    small: bool = False,
    name: str | None = None,
    out: str | os.PathLike[str] | None = None,
    engine: str | Engine = "local",
    scheduler: str | None = None,
    memory: int | str | None = None,
    cpu_devices: int | str = "auto",
    progress: bool = True,
    force: bool = False,
) -> xarray.Dataset:
    """Runs a study, as ``scbjax run`` does, and returns its dataset.

    JAX makes a CPU device of every core, as `scbjax.use_all_cores` does, if nothing has been
    computed yet; later it keeps those it has. Ctrl-C ends the run after the present segment, and a
    second time at once, by a `KeyboardInterrupt`.

    Args:
        study: a dictionary of the shape of a study file, the path of one, the name of one in
            ``sweeps/``, or an experiment, of which all is left at its default. Where a file has a
            list, ranges, tuples and arrays of one dimension will do.
        axes: axes to add or to replace, such as ``{"seed": range(16), "l1": [0, 1e-4]}``.
        set: fields to set, such as ``{"train.steps": 2000}``, and ``"zip.NAME"`` for the lines of
            a zip to keep; a field that was an axis no longer is one. What ``axes`` says comes
            after it.
        experiment: one of your own (`scbjax.base.Experiment`) that the study is about, or the
            Python file that defines it, which is run.
        small: take the study's own small size, before anything else is set.
        name: of the study; that of its file, or ``"study"``, if it is left out.
        out: the results directory, in which a run that was stopped goes on, and one that is
            complete is read. If it is left out, nothing is kept but what is returned.
        engine: ``"local"`` for this process, ``"dask"`` for the workers of Dask, or an engine
            (`scbjax.sweep.engine.engines.Engine`) that runs chunks made for this process.
        scheduler: address of a Dask scheduler; None for workers of this machine.
        memory: budget of a chunk, in bytes or as ``"2GiB"``; None for a share of what devices have.
        cpu_devices: devices that JAX makes of the CPU; ``"auto"`` for one for each usable core.
        progress: whether to show it: a widget in notebooks, a bar on terminals, lines elsewhere.
        force: start anew, and move aside what ``out`` holds.

    Returns:
        The dataset, in memory: along the axes and ``step`` the variables that were recorded, in the
        dtype of the study (float32 unless it says otherwise). With the same settings, devices and
        versions they are the same bits as those of the command.

    Raises:
        StudyError: something is wrong with what was asked for; the text is one sentence.
        KeyboardInterrupt: the run was stopped; what was done is in ``out``, if that was given.

    Example:
        >>> study = {
        ...     "task": {"num_tokens": 2, "context_length": 6, "sparsity": 1},
        ...     "train": {"batch_size": 4, "steps": 4, "record_every": 2},
        ... }
        >>> dataset = run(study, axes={"seed": range(3), "l1": (0, 1e-3)}, progress=False)
        >>> sorted(dataset.sizes.items())
        [('l1', 2), ('seed', 3), ('step', 3)]
    """
    say = _note if progress else _keep_quiet
    with in_words_of_python(), contextlib.ExitStack() as stack:
        about = study if isinstance(study, Experiment) else experiment
        what = {} if isinstance(study, Experiment) else study
        resolved = _read(what, axes, set, _experiments(about), small=small, name=name, say=say)
        budget = _read_memory(memory)
        folder = Path(stack.enter_context(_folder(out)))
        check_out(folder)
        place = stack.enter_context(_place(engine, scheduler, cpu_devices, say))
        report = run_into(
            resolved,
            folder,
            place,
            create_progress=create_progress if progress else _create_silent,
            memory_bytes=budget,
            force=force,
            owns_process=False,
        )
        if report.dataset is None:
            kept = (
                "nothing is kept, as there is no out" if out is None else f"{out} has what it did"
            )
            raise KeyboardInterrupt(f"the run was stopped; {kept}")
        from scbjax.sweep.results.dataset import read_dataset

        return read_dataset(report.dataset)


def load(path: str | os.PathLike[str]) -> xarray.Dataset:
    """Opens the result of a study that is complete.

    Args:
        path: of its dataset, or of the results directory that holds it.

    Returns:
        The dataset, in memory.

    Raises:
        StudyError: there is none, it is damaged, or the run is not complete; the sentence says what
            is missing.
    """
    with in_words_of_python():
        found = existing(os.fspath(path), "folder or dataset")
        from scbjax.sweep.results.dataset import checksum_path, is_whole, read_dataset

        dataset = _dataset_of(found) if found.is_dir() else found
        if checksum_path(dataset).exists() and not is_whole(dataset):
            raise StudyError(
                f"{dataset} is damaged: its checksum does not hold; running the study again "
                "writes it anew"
            )
        return read_dataset(dataset)


# ----------------------------------------------------------------------------- what is asked for


def _read(
    study: Values | str | os.PathLike[str],
    axes: Values | None,
    fields: Values | None,
    experiments: tuple[Experiment, ...],
    *,
    small: bool,
    name: str | None,
    say: Callable[[str], None],
) -> Study:
    """The study with all that is to be set, checked."""
    axes, fields = ({} if given is None else given for given in (axes, fields))
    overrides = [*_overrides("set", fields), *_overrides("axes", axes)]
    for key in axes:
        if any(_same_field(key, other) for other in fields):
            raise StudyError(f"{key} is in set and in axes; keep one of them")
    if name is not None:
        check_name(name)
    if isinstance(study, Mapping):
        text = _document(study)
        return parse_study(
            text,
            name or NAME,
            overrides,
            small=small,
            say=say,
            experiments=experiments,
            origin="the setting",
        )
    if not isinstance(study, str | os.PathLike):
        raise StudyError(
            f"study must be a dictionary, a path or the name of a study, got {shown(study)}"
        )
    found = load_study(
        os.fspath(study),
        overrides,
        small=small,
        say=say,
        experiments=experiments,
        origin="the setting",
    )
    return found if name is None else replace(found, name=name)


def _experiments(given: object) -> tuple[Experiment, ...]:
    """The experiments that a study may be about, beside the library's own."""
    if given is None:
        return ()
    if isinstance(given, Experiment):
        return (given,)
    if isinstance(given, str) and given in own_experiments():
        raise StudyError(
            f"experiment is {shown(given)}, one of the library's, which a study names itself: "
            f'{{"experiment": "{given}", ...}}'
        )
    if isinstance(given, str | os.PathLike):
        return load_experiments(Path(checked_path(os.fspath(given))))
    raise StudyError(
        f"experiment must be a scbjax.base.Experiment or the path of a Python file, "
        f"got {shown(given)}"
    )


def _same_field(key: str, other: str) -> bool:
    return short_name(key) == short_name(other.removeprefix("axes."))


def _overrides(argument: str, values: object) -> Iterator[str]:
    """Overrides as the command has them."""
    if not isinstance(values, Mapping):
        example = "{'l1': [0, 1e-4]}" if argument == "axes" else "{'l1': 1e-4}"
        raise StudyError(f"{argument} must be a dictionary such as {example}, got {shown(values)}")
    for key, value in values.items():
        if not isinstance(key, str) or "=" in key:
            raise StudyError(f"{argument} must name fields, got {shown(key)}")
        yield f"{'axes.' if argument == 'axes' else ''}{key}={_toml(value, key)}"


def _read_memory(memory: int | str | None) -> int | None:
    if isinstance(memory, int) and not isinstance(memory, bool) and memory > 0:
        return memory
    if memory is None or isinstance(memory, str):
        return read_bytes(memory)
    raise StudyError(
        f"memory must be a number of bytes above 0 or a size such as 2GiB, got {shown(memory)}"
    )


def _document(study: Values) -> str:
    """A study file in which every table is in line.

    >>> print(_document({"task": {"sparsity": 2}, "axes": {"seed": range(3)}}))
    "task" = {"sparsity" = 2}
    "axes" = {"seed" = [0, 1, 2]}
    """
    return "\n".join(f"{_key(key, NAME)} = {_toml(value, key)}" for key, value in study.items())


def _toml(value: object, where: str) -> str:
    """A value of Python as TOML, which reads back as the value that a study file would have.

    Args:
        value: the value.
        where: it stands, for messages.

    >>> _toml((True, np.float32(1e-3), {"range": [0, 3]}), "x")
    '[true, 0.001, {"range" = [0, 3]}]'
    """
    if isinstance(value, str):
        return toml_text(value)
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | float | np.integer | np.floating):
        # The shortest decimal that is this number in its own precision: 1e-4 also in float32.
        return str(value) if isinstance(value, np.generic) else repr(value)
    if isinstance(value, Mapping):
        pairs = (
            f"{_key(key, where)} = {_toml(entry, f'{where}.{key}')}" for key, entry in value.items()
        )
        return f"{{{', '.join(pairs)}}}"
    entries = _entries(value, where)
    return f"[{', '.join(_toml(entry, where) for entry in entries)}]"


def _entries(value: object, where: str) -> Sequence[Any]:
    """The entries of a list, or of what may stand for one."""
    if not isinstance(value, list | tuple | range):
        if value is None:
            raise StudyError(f"{where} is None; leave it out, or give it a value")
        if not hasattr(value, "__array__"):
            kind = type(value).__name__
            raise StudyError(
                f"{where} must be a number, a text, true or false, a list of these, a range or an "
                f"array, got {shown(value)} of type {kind}"
                + "; functions of your own go into an experiment (scbjax.learning)"
                * callable(value)
            )
        array = np.asarray(value)
        if array.ndim > 1 or array.dtype.kind not in "biufU":
            raise StudyError(
                f"{where} must be an array of numbers or texts with one dimension, got one of "
                f"shape {array.shape} and type {array.dtype}"
            )
        value = list(array[None] if array.ndim == 0 else array)
    if len(value) > MAX_AXIS_POINTS:
        raise StudyError(
            f"{where} has {len(value)} points; at most {MAX_AXIS_POINTS} fit in a study"
        )
    return value


def _key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise StudyError(f"{where} has {shown(key)} in the place of a name")
    return toml_text(key)


# ------------------------------------------------------------------------------- where it is run


@contextlib.contextmanager
def _folder(out: str | os.PathLike[str] | None) -> Iterator[str]:
    """The results directory, or one that is removed however the run ends."""
    if out is not None:
        yield checked_path(os.fspath(out))
        return
    with tempfile.TemporaryDirectory(prefix="scbjax-", ignore_cleanup_errors=True) as folder:
        yield folder


def _place(
    engine: str | Engine,
    scheduler: str | None,
    cpu_devices: int | str,
    say: Callable[[str], None],
) -> contextlib.AbstractContextManager[Place]:
    from scbjax.sweep.engine.backend import read_cpu_devices

    count = read_cpu_devices(str(cpu_devices))
    if scheduler is not None and engine != "dask":
        raise StudyError(f"scheduler {shown(scheduler)} is only for engine 'dask'")
    if engine == "dask":
        return dask_place(scheduler, count, None, say)
    if isinstance(engine, str) and engine not in ENGINES:
        known = nearest(engine, ENGINES) or f" (engines: {', '.join(ENGINES)})"
        raise StudyError(f"no engine is called {shown(engine)}{known}")
    start_jax(count)
    from scbjax.sweep.engine.here import here

    place = here()
    if not isinstance(engine, str):
        place = replace(place, engine=engine)
    return contextlib.nullcontext(place)


# -------------------------------------------------------------------------------- what is opened


def _dataset_of(folder: Path) -> Path:
    """The dataset in a results directory, which must be complete."""
    from scbjax.sweep.results.store import Store, advance, status
    from scbjax.sweep.scripts.figures import find_dataset

    if Store(folder).manifest_path.exists():
        found = status(folder)
        if found.dataset is not None:
            return found.dataset
        gone = advance(found)
        share = "" if gone is None else f", {100 * gone.fraction:.0f}% of the work"
        raise StudyError(
            f"{folder} is not complete: {found.chunks_done} of {found.manifest.num_chunks} chunks "
            f"are done{share}; running the study again goes on from there"
        )
    dataset = find_dataset(str(folder), folder)
    if dataset is not None:
        return dataset
    rounds = len(list(folder.glob("cell-*/round-*/*.nc")))
    if (folder / "cell-0").is_dir():
        raise StudyError(
            f"{folder} is not complete: {rounds} rounds of a search are done; running it again "
            "goes on from there"
        )
    raise StudyError(f"{folder} holds no results: there is no manifest.json in it, and no dataset")


# -------------------------------------------------------------------------------- what is said


@contextlib.contextmanager
def in_words_of_python() -> Iterator[None]:
    """Names arguments as they are called here: ``out`` for ``--out``."""
    try:
        yield
    except StudyError as error:
        text = _OPTION.sub(lambda option: option[1].replace("-", "_"), str(error))
        raise StudyError(text) from None


def _create_silent() -> Progress:
    return SilentProgress()


def _note(text: str) -> None:
    print(f"scbjax: {text}", file=sys.stderr)


def _keep_quiet(_: str) -> None:
    pass
