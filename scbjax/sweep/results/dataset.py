"""The dataset of a finished study: one labelled netCDF file that xarray opens anywhere.

Dimensions are the axes of the study, in its order, and ``step``. Coordinates hold the real values
of the fields. Along them run the recorded variables; over the axes alone the step at which a
trajectory was found diverged (``diverged_at``, -1 for those that were not); and, if the study keeps
them, the final parameters, such as V and A (``value``, ``attention``), and their snapshots along
``snapshot`` (``value_snapshots``, ``attention_snapshots``).

What the task is has those axes alone that it depends on (:func:`axes_of`), such as ``seed`` and
``num_tokens``: constants, such as K_P (``transition_signal``), and, if the study keeps it, the task
itself, such as P (``transition``). xarray puts such variables and others together by the names of
their axes. Datasets of older versions have all axes throughout.
"""

import contextlib
import errno
import hashlib
import json
import mmap
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scbjax.base import RECORD_EVERY, STEPS, Experiment, StudyError, Variable, short_name
from scbjax.sweep.plan.plans import Chunk, Plan
from scbjax.sweep.results.arrays import Arrays, DamagedError, aside_of, atomic_file
from scbjax.sweep.results.store import Store
from scbjax.sweep.study.axes import Axis
from scbjax.sweep.study.fields import DRAWN, shown
from scbjax.sweep.study.files import Study, fingerprint, parse_study, to_toml

if TYPE_CHECKING:
    import xarray

Description = Mapping[str, str]
"""long_name, units and symbol of a variable."""

_LABELS_BYTES = 2**17
"""More than names, attributes and coordinates take in a file."""

_HEAP = b"GCOL\x01\0\0\0"
"""Begins a collection of the global heap of HDF5; its size follows."""
_LENGTH = struct.Struct("<Q")
_OBJECT = struct.Struct("<H6xQ")
"""The head of an object in it: its index, 0 for free space, and its size."""

_STEP = Variable("iteration", r"$\tau$")
_DIVERGED_AT = Variable(
    "step of the first record with parameters that are not finite, -1 for none",
    r"$\tau_\infty$",
    dtype="int32",
)


@dataclass(frozen=True)
class Written:
    """A dataset that has just been written.

    Attributes:
        path: the file.
        diverged_at: step at which each trajectory was found diverged, or -1; [trajectories].
    """

    path: Path
    diverged_at: npt.NDArray[np.int32]


def write_dataset(plan: Plan, store: Store, attributes: Mapping[str, Any]) -> Written:
    """Puts the finished chunks of a plan together, one variable at a time.

    Args:
        plan: the plan; all its chunks are in the store.
        store: the results directory.
        attributes: of the dataset, beside what the plan says.

    Raises:
        StudyError: the file can't be written.
    """
    study = plan.study
    path = store.dataset_path(study.name)
    with _dataset_file(path, store.chunk_bytes()) as aside:
        _write(frame_of(plan, attributes), aside, "w", {})
        for name, variable in variables_of(study).items():
            array = gather(plan, store, name)
            kept = axes_of(study, name)
            at = tuple(slice(None) if axis.name in kept else 0 for axis in study.axes)
            array = array.reshape(plan.shape + array.shape[1:])[at]
            dims = kept + variable.dims
            _write_variable(aside, dataset_name(plan, name), dims, array, variable)
    return Written(path, gather(plan, store, "diverged_at"))


def check_arrays(plan: Plan, chunk: Chunk, arrays: Arrays) -> None:
    """Raises a `DamagedError` if a chunk has other arrays than those that the dataset needs."""
    study, program = plan.study, plan.programs[chunk.program]
    variables = variables_of(study)
    sizes = {"step": program.num_records, "snapshot": len(study.snapshots)}
    if not all(sizes.keys() >= set(variable.dims) for variable in variables.values()):
        sizes |= study.experiment.sizes(program.fixed)
    expected = {
        name: (*chunk.shape, *(sizes[dim] for dim in variable.dims))
        for name, variable in variables.items()
    }
    for name in expected.keys() | arrays.keys():
        array = arrays.get(name)
        if array is None or array.shape != expected.get(name) or array.dtype.kind not in "fi":
            raise DamagedError(f"its {shown(name)} is not what the study records")


def variables_of(study: Study) -> dict[str, Variable]:
    """All that a dataset holds beside coordinates, with the dimensions after those of its axes."""
    experiment = study.experiment
    found: dict[str, Variable] = {}
    for name in study.variables:
        variable = experiment.variables[name]
        found[name] = replace(variable, dims=("step", *variable.dims))
    found |= experiment.constants
    found["diverged_at"] = _DIVERGED_AT
    if study.final:
        found |= {
            name: replace(variable, long_name=f"final {variable.long_name}")
            for name, variable in experiment.kept.items()
        }
    if study.truth:
        found |= experiment.truth
    if study.snapshots:
        found |= {
            f"{name}_snapshots": replace(variable, dims=("snapshot", *variable.dims))
            for name, variable in experiment.kept.items()
        }
    return found


def axes_of(study: Study, name: str) -> tuple[str, ...]:
    """The axes of a study along which a variable can vary, in their order.

    All of them, but for what the task is: that depends on the seed of the task and on a few fields.
    Where other fields are static, as a batch size is, each has a program of its own, and what they
    compute of one task may differ in the last bit. The dataset holds that of the first.

    Args:
        study: the study.
        name: of the variable, as :class:`scbjax.sweep.engine.chunks.ChunkResult` calls it.
    """
    of_task = _depends_on(study, name)
    if of_task is None:
        return tuple(axis.name for axis in study.axes)
    swept = {path for axis in study.axes for path in axis.fields}
    own_seed = "task_seed" in swept or study.base.get("task_seed") is not None
    paths = of_task | {"task_seed" if own_seed else "seed"}
    return tuple(axis.name for axis in study.axes if paths & set(axis.fields))


def _depends_on(study: Study, name: str) -> frozenset[str] | None:
    """Fields that a part of a task depends on, beside its seed; None for other variables."""
    parts = {**study.experiment.constants, **study.experiment.truth}
    return parts[name].depends_on if name in parts else None


def dataset_name(plan: Plan, name: str) -> str:
    """The name of a variable: another one where an axis asks for it and tasks may clip it."""
    fields = {short_name(path) for axis in plan.study.axes for path in axis.fields}
    return f"{DRAWN}{name}" if name in fields else name


def is_of_task(study: Study, name: str) -> bool:
    """Whether a variable of a dataset is a part of the task, and has only some of the axes."""
    return _depends_on(study, name.removeprefix(DRAWN)) is not None


def gather(plan: Plan, store: Store, name: str) -> npt.NDArray[Any]:
    """One array of all chunks, [trajectories, ...], in the order of the flattened grid.

    Args:
        plan: the plan; all its chunks are in the store, and are whole.
        store: the results directory.
        name: of the array, as :class:`scbjax.sweep.engine.chunks.ChunkResult` calls it.
    """
    gathered: npt.NDArray[Any] | None = None
    for chunk in plan.chunks:
        array = store.load_chunk_array(chunk, name)
        if gathered is None:
            gathered = np.empty((plan.num_trajectories, *array.shape[2:]), array.dtype)
        gathered[plan.positions(chunk)] = array
    assert gathered is not None
    return gathered


def frame_of(plan: Plan, attributes: Mapping[str, Any]) -> "xarray.Dataset":
    """The dataset without its variables."""
    import xarray

    study = plan.study
    experiment, every = study.experiment, study.base[RECORD_EVERY.path]
    steps = np.arange(0, study.base[STEPS.path] + 1, every, dtype=np.int32)
    coords: dict[str, Any] = {"step": ("step", steps, describe(_STEP))}
    for axis in study.axes:
        coords.update(axis_coords(study, axis))
    if study.snapshots:
        snapshots = np.asarray(study.snapshots, np.int32)
        coords["snapshot"] = ("snapshot", snapshots, describe(_STEP))
    used = {dim for variable in variables_of(study).values() for dim in variable.dims}
    own = [dim for dim in experiment.dims if dim in used]
    sizes = experiment.sizes(study.base) if own else {}
    for dim in own:
        places = np.arange(sizes[dim], dtype=np.int32)
        coords[dim] = (dim, places, describe(experiment.dims[dim]))
    described = {**study_attributes(study), "layout": json.dumps(plan.layout), **attributes}
    return xarray.Dataset(coords=coords, attrs=described)


def describe(variable: Variable) -> Description:
    """What a dataset says of a variable."""
    texts = {"long_name": variable.long_name, "units": variable.units}
    return {**texts, "symbol": variable.symbol} if variable.symbol else texts


def study_attributes(study: Study) -> dict[str, str]:
    """What a dataset says of its study: as a text that makes it again, and all settings in JSON."""
    settings = {path: _plain(value) for path, value in study.base.items()}
    return {
        "title": study.title,
        "question": study.question,
        "name": study.name,
        "study": to_toml(study),
        "settings": json.dumps(settings),
        "fingerprint": fingerprint(study),
        **({"experiment": study.experiment.source} if study.experiment.source else {}),
    }


def study_of(
    dataset: "xarray.Dataset", source: str, experiments: Sequence[Experiment] = ()
) -> Study:
    """The study that made a dataset, from the dataset's own attributes.

    Args:
        dataset: the dataset.
        source: what messages call it.
        experiments: as for `scbjax.sweep.study.files.load_study`.

    Raises:
        StudyError: the attributes don't hold a study.
    """
    texts = [dataset.attrs.get(name) for name in ("study", "name")]
    if not all(isinstance(text, str) for text in texts):
        raise StudyError(
            f"{source} has no attributes study and name: it is not a dataset of scbjax"
        )
    return parse_study(str(texts[0]), str(texts[1]), source=source, experiments=experiments)


def _plain(value: Any) -> Any:  # noqa: ANN401 - any value of a field
    """A field's value in strict JSON, which has no infinity."""
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


def axis_coords(study: Study, axis: Axis) -> Iterator[tuple[str, Any]]:
    """The coordinates along an axis, one for each of its fields, as xarray takes them."""
    for path, values in zip(axis.fields, zip(*axis.values, strict=True), strict=True):
        field = study.fields[path]
        attrs = {"long_name": field.help, "units": "1", "field": path}
        if field.symbol:
            attrs["symbol"] = field.symbol
        yield field.short, (axis.name, np.array(values), attrs)


def _write_variable(
    path: Path, name: str, dims: Sequence[str], array: npt.NDArray[Any], variable: Variable
) -> None:
    import xarray

    encoding: dict[str, Any] = {"_FillValue": None}
    if len(dims) > 1 and array.size and variable.dims and "step" not in variable.dims:
        encoding.update(zlib=True, complevel=4)  # A is mostly one background value a column
    dataset = xarray.Dataset({name: (tuple(dims), array, describe(variable))})
    _write(dataset, path, "a", {name: encoding})


def _write(dataset: "xarray.Dataset", path: Path, mode: Any, encoding: Mapping[str, Any]) -> None:  # noqa: ANN401
    dataset.to_netcdf(path, mode=mode, engine="h5netcdf", encoding=encoding)


@contextlib.contextmanager
def _dataset_file(path: Path, size: int) -> Iterator[Path]:
    """Where to write a dataset; it gets its name and a checksum once it is whole and on the disk.

    Args:
        path: its name.
        size: of its arrays, in bytes.

    Raises:
        StudyError: it can't be written.
    """
    aside = aside_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _find_room(aside, size + _LABELS_BYTES)
        yield aside
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        checksum = _checksum(aside)
        aside.replace(path)
    except (OSError, RuntimeError) as error:  # HDF5 fails with either when a disk is full
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise StudyError(f"{path} can't be written: {reason}") from None
    with atomic_file(checksum_path(path)) as file:
        file.write(f"{checksum}  {path.name}\n".encode())


def _find_room(path: Path, size: int) -> None:
    """Fails where a file of a size has no room; HDF5 would, and end the process when that exits."""
    with path.open("wb") as file:
        if not hasattr(os, "posix_fallocate"):  # not on macOS
            return
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:  # a file system that can't
                raise


def save_dataset(dataset: "xarray.Dataset", path: Path) -> None:
    """Writes a dataset that is in memory, atomically and with its checksum beside it.

    Raises:
        StudyError: the file can't be written.
    """
    with _dataset_file(path, dataset.nbytes) as aside:
        _write(dataset, aside, "w", {})


def read_dataset(path: Path, *, matrices: bool = True) -> "xarray.Dataset":
    """A dataset, in memory.

    Args:
        path: of the file.
        matrices: whether parameters and tasks are read too, which may be much more than all else.

    Raises:
        StudyError: it can't be read, or is no dataset.
    """
    with opened_dataset(path) as found, damage_told(path):
        return (found if matrices else found.drop_vars(_matrices(found))).load()


@contextlib.contextmanager
def opened_dataset(path: Path) -> Iterator["xarray.Dataset"]:
    """A dataset whose arrays are read as they are asked for, as long as it is open.

    What is read may turn out to be damaged: see :func:`damage_told`.

    Args:
        path: of the file.

    Raises:
        StudyError: it can't be read, or is no dataset.
    """
    import h5py
    import xarray

    if not path.is_file():
        raise StudyError(f"{path} is missing, or is no file")
    check_heaps(path)
    with contextlib.ExitStack() as stack:
        with damage_told(path):
            # h5netcdf leaves a file half open that is none, or whose root can't be read, and when
            # that is collected Python prints why it can't be closed.
            with h5py.File(path) as file:
                file.attrs.get("_nc3_strict")
            found = stack.enter_context(xarray.open_dataset(path, engine="h5netcdf"))
        yield found


@contextlib.contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """Says in a sentence of a `StudyError` that what is read of a dataset can't be."""
    try:
        yield
    # HDF5, h5netcdf and xarray each have errors of their own for altered bytes.
    except Exception as error:  # noqa: BLE001
        reason = " ".join(str(error).split())
        raise StudyError(f"{path} can't be read as a dataset: {reason}") from None


def _matrices(dataset: "xarray.Dataset") -> list[str]:
    """The variables that have dimensions of their own and no step: parameters and tasks."""
    axes = {dim for c in dataset.coords.values() if "field" in c.attrs for dim in c.dims}
    known = {*axes, "probe", "step"}
    return [
        str(name)
        for name, array in dataset.data_vars.items()
        if "step" not in array.dims and not known.issuperset(array.dims)
    ]


def check_heaps(path: Path) -> None:
    """Refuses a file that HDF5 would read without an end.

    A collection of the global heap is a list of objects, each with its size. HDF5 goes from one to
    the next (H5HG in its format specification, section III.E), and stays where it is at an entry of
    free space that says that it has no size.

    Raises:
        StudyError: a collection is damaged.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            ends = all(_heap_ends(view, start) for start in _places_of(view, _HEAP))
    except (OSError, ValueError):  # an empty file, or one that can't be read: its reader says so
        return
    if not ends:
        raise StudyError(f"{path} can't be read as a dataset: it has a damaged heap")


def _places_of(view: mmap.mmap, what: bytes) -> Iterator[int]:
    start = view.find(what)
    while start >= 0:
        yield start
        start = view.find(what, start + 1)


def _heap_ends(view: mmap.mmap, start: int) -> bool:
    """Whether a walk over the objects of the collection at a place comes to its end."""
    (size,) = _LENGTH.unpack_from(view, start + 8) if start + 16 <= len(view) else (0,)
    place, end = start + 16, start + size
    while place + _OBJECT.size <= min(end, len(view)):
        index, length = _OBJECT.unpack_from(view, place)
        # Free space counts its own head; the others are padded to eight bytes.
        place += length if index == 0 else _OBJECT.size + -(-length // 8) * 8
        if index == 0 and length == 0:
            return False
    return bool(place <= end <= len(view))


def is_whole(path: Path) -> bool:
    """Whether a dataset is there just as it was written."""
    try:
        noted = checksum_path(path).read_text().split()
        return noted == [_checksum(path), path.name]
    except (OSError, ValueError):
        return False


def checksum_path(path: Path) -> Path:
    """Where the checksum of a dataset is, in the format of ``sha256sum``."""
    return path.with_name(f"{path.name}.sha256")


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
