"""Which matrices and which curves of a study are shown, and what is said where there are none."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from scbjax.base import RECORD_EVERY, STEPS, StudyError
from scbjax.exploring.opening import Results, attribute
from scbjax.sweep.study.locating import find_studies
from scbjax.sweep.study.own import own_experiment, own_experiments

if TYPE_CHECKING:
    import xarray

STEP: Final = "step"
_SNAPSHOT: Final = "snapshot"
SAMPLES: Final = "samples"
STAGE: Final = "stage"
DIVERGED: Final = "diverged_at"
FEW_FRAMES: Final = 20
"""So many snapshots are suggested where there are none."""
MAX_PANELS: Final = 3
_LEGEND: Final = 44  # characters


@dataclass(frozen=True)
class Matrix:
    """A matrix that is learned, and what it should become.

    Attributes:
        learned: its name in a dataset, without ``_snapshots``.
        truth: the name of what it should become.
        symbols: of the two.
        rows: what a row is.
        columns: what a column is.
        by_weight: where there are too many rows, those of the largest weights matter.
    """

    learned: str
    truth: str
    symbols: tuple[str, str]
    rows: str
    columns: str
    by_weight: bool


MATRICES: Final = (
    Matrix(
        "attention", "pattern", ("A", "Q"), "position", "query token", by_weight=True,
    ),
    Matrix(
        "value", "transition", ("V", "P"), "token predicted", "token attended to",
        by_weight=False,
    ),
)  # fmt: skip

FAMILIES: Final[Mapping[str, Mapping[str, str]]] = {
    "distance": {
        "attention_distance": "A to Q",
        "value_distance": "V to P",
        "rounded_attention_distance": "rounded A to Q",
        "rounded_value_distance": "refitted V to P",
    },
    "cosine": {
        "attention_similarity": "A and Q",
        "value_similarity": "V and P",
        "rounded_attention_similarity": "rounded A and Q",
        "rounded_value_similarity": "refitted V and P",
    },
    "loss": {"excess_loss": "above that of the truth"},
}
"""What is drawn together, in one panel each, as far as it was recorded, and what it is called."""
_LEFT_TO_THE_END: Final = (SAMPLES, STAGE, "flipped")


@dataclass(frozen=True)
class Place:
    """Where a frame of a matrix stands: in a variable, along its dimension of time."""

    variable: str
    dim: str = ""
    index: int = 0


@dataclass(frozen=True)
class Shown:
    """A matrix that is shown.

    Attributes:
        matrix: which one.
        dims: its own two dimensions.
        places: where its frames stand, in the order of the steps.
        has_truth: whether what it should become is in the dataset.
    """

    matrix: Matrix
    dims: tuple[str, str]
    places: tuple[Place, ...]
    has_truth: bool


@dataclass(frozen=True)
class Panel:
    """Curves that share an axis.

    Attributes:
        label: of that axis.
        names: of the variables.
        words: what each of them is called.
    """

    label: str
    names: tuple[str, ...]
    words: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """What is shown of a study.

    Attributes:
        axes: what is chosen from: the dimensions of the matrices beside time, rows and columns.
        steps: of the frames, ascending.
        matrices: what is shown at each of them, one or two.
        panels: the curves.
    """

    axes: tuple[str, ...]
    steps: tuple[int, ...]
    matrices: tuple[Shown, ...]
    panels: tuple[Panel, ...]


def choose(results: Results) -> Choice:
    """What is shown of a study.

    Args:
        results: of the study.

    Raises:
        StudyError: there are no snapshots; the sentence says how to record them.
    """
    frame, dims = results.frame, results.dims
    places = {m.learned: found for m in MATRICES if (found := _places(m.learned, frame, dims))}
    steps = sorted(set.intersection(*map(set, places.values()))) if places else []
    if not steps or not any(len(found) > 1 for found in places.values()):
        raise StudyError(_without_snapshots(results))
    shown, axes = [], list[str]()
    for matrix in MATRICES:
        if matrix.learned in places:
            own = [places[matrix.learned][step] for step in steps]
            *outer, rows, columns = (dim for dim in dims[own[0].variable] if dim != own[0].dim)
            truth = dims.get(matrix.truth, ())
            has_truth = {rows, columns} <= set(truth) <= {*outer, rows, columns}
            shown.append(Shown(matrix, (rows, columns), tuple(own), has_truth))
            axes += [dim for dim in outer if dim not in axes]
    return Choice(tuple(axes), tuple(steps), tuple(shown), tuple(_panels(results, axes)))


def _places(
    name: str, frame: xarray.Dataset, dims: Mapping[str, tuple[str, ...]]
) -> dict[int, Place]:
    """Where a matrix stands at which step: along the steps, or in snapshots and at the end."""
    own = dims.get(name, ())
    if STEP in own:
        return {step: Place(name, STEP, n) for n, step in enumerate(steps_along(frame, STEP))}
    found = {}
    kept = f"{name}_snapshots"
    if _SNAPSHOT in dims.get(kept, ()):
        steps = steps_along(frame, _SNAPSHOT)
        found = {step: Place(kept, _SNAPSHOT, n) for n, step in enumerate(steps)}
    if found and set(own) == set(dims[kept]) - {_SNAPSHOT} and STEP in frame.dims:
        found.setdefault(steps_along(frame, STEP)[-1], Place(name))
    return found


def steps_along(frame: xarray.Dataset, dim: str) -> list[int]:
    """The steps along a dimension of time: its coordinate, or numbers from 0."""
    if dim not in frame.coords:
        return list(range(frame.sizes[dim]))
    return [int(step) for step in frame[dim].to_numpy()]


def _panels(results: Results, axes: Sequence[str]) -> list[Panel]:
    """The curves: of the families that were recorded, or else the first few of what was."""
    curves = [
        name for name, own in results.dims.items() if STEP in own and set(own) <= {STEP, *axes}
    ]
    panels = []
    for label, names in FAMILIES.items():
        if found := [name for name in names if name in curves]:
            panels.append(Panel(label, tuple(found), tuple(names[name] for name in found)))
    if not panels:
        others = sorted(curves, key=lambda name: name in _LEFT_TO_THE_END)
        panels = [Panel(_plain(name), (name,), (_words(results, name),)) for name in others]
    return panels[:MAX_PANELS]


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _words(results: Results, name: str) -> str:
    """What a variable is, in words that fit below a panel."""
    words = str(results.describe(name).get("long_name") or _plain(name))
    return textwrap.shorten(words, _LEGEND, placeholder=" ...")


def extras_of(results: Results, axes: Sequence[str]) -> tuple[str, ...]:
    """What is told beside the curves, if it was recorded: the samples used, and the stage."""
    of_trajectories = {STEP, *axes}
    return tuple(
        name
        for name in (SAMPLES, STAGE)
        if STEP in (own := results.dims.get(name, ())) and set(own) <= of_trajectories
    )


def _without_snapshots(results: Results) -> str:
    """Says that there are none, and how they are recorded."""
    start = f"{results.source} has no snapshots of A and V to explore"
    settings = settings_of(results.frame)
    if "record.snapshots" not in settings:
        return f"{start}: a study records them with snapshots and truth in its table [record]"
    experiment = _experiment_of(results.frame)
    if experiment not in own_experiments() and experiment:
        return (
            f"{start}: an experiment of one's own has them where it keeps both, in "
            "record.snapshots, or where it records observables called attention and value"
        )
    if experiment and not _keeps(experiment):
        return f"{start}: the experiment '{experiment}' keeps no matrices"
    steps, every = settings.get(STEPS.path, 0), settings.get(RECORD_EVERY.path, 0)
    if not (type(steps) is int and type(every) is int and steps > 0 and every > 0):
        return f"{start}: a study records them with snapshots and truth in its table [record]"
    between = every * max(1, round(steps / every / FEW_FRAMES))
    name = attribute(results.frame, "name") or "STUDY"
    study = name if name in {path.stem for path in find_studies()} else f"{name}.toml"
    snapshots = f"record.snapshots={{range=[0, {steps + 1}, {between}]}}"
    return (
        f"{start}; record them with: scbjax run {study} --set '{snapshots}' "
        f"--set record.final=true --set record.truth=true --out results/{name}-snapshots"
    )


def settings_of(frame: xarray.Dataset) -> Mapping[str, object]:
    """What all trajectories have in common, by dotted path."""
    try:
        found = json.loads(attribute(frame, "settings") or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _experiment_of(frame: xarray.Dataset) -> str:
    """The name of the experiment that a study is about, from its text."""
    import tomllib

    try:
        return str(tomllib.loads(attribute(frame, "study")).get("experiment", "scb"))
    except tomllib.TOMLDecodeError:
        return ""


def _keeps(experiment: str) -> bool:
    """Whether one of the library's own experiments keeps the matrices."""
    return {matrix.learned for matrix in MATRICES} <= own_experiment(experiment).kept.keys()


def points_along(frame: xarray.Dataset, dim: str) -> list[str]:
    """What the places along a dimension are called: its coordinate, or numbers from 0."""
    if dim in frame.coords and frame[dim].dims == (dim,):
        return [str(value) for value in frame[dim].to_numpy().tolist()]
    return [str(place) for place in np.arange(frame.sizes[dim])]
