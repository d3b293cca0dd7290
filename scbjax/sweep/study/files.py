"""Studies: TOML files that say what is swept, read into typed and checked values.

A study file holds a title and a question, the tables ``[task]``, ``[model]``, ``[train]``,
``[transfer]`` and ``[record]`` with the fields of `scbjax.sweep.study.fields`, and what is swept:
``[axes]`` for a product of axes, and one ``[[zip]]`` for each group of fields that change
together::

    title = "Proximal steps against SGD"

    [task]
    num_tokens = 3
    context_length = 1000

    [train]
    batch_size = 64
    steps = 1000
    record_every = 20

    [axes]
    seed = { range = [0, 8] }
    sparsity = [1, 2, 4, 8]

    [[zip]]
    name = "arm"
    optimizer = ["proximal", "sgd"]
    learning_rate_2 = [0.005, 0.001]

Whatever is wrong with a file or an override is a `StudyError` whose text is one sentence. Nothing
here imports JAX.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from scbjax.base import (
    RECORD_EVERY,
    RECORDS_FIT,
    STEPS,
    Experiment,
    Parameter,
    Required,
    StudyError,
)
from scbjax.sweep.study.axes import (
    Axis,
    axis_field,
    check_axes,
    check_rounded,
    pick,
    read_axes,
    read_column,
    read_zips,
    without,
)
from scbjax.sweep.study.cells import check_search, is_search
from scbjax.sweep.study.definition import DEFAULT_EXPERIMENT, Study, fingerprint, to_toml
from scbjax.sweep.study.experiments import calling, find_experiment
from scbjax.sweep.study.fields import Fields, fields_of, read_value, shown
from scbjax.sweep.study.locating import BYTE_ORDER_MARK, check_name, locate, read_text
from scbjax.tables import nearest

__all__ = [
    "Axis",
    "Study",
    "StudyError",
    "fingerprint",
    "load_study",
    "parse_study",
    "to_toml",
]
MAX_TRAJECTORIES = 10_000_000
"""The plan is held in host memory."""
_BARE_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_TEXTS = ("title", "question")
_EXPERIMENT = "experiment"
_SMALL = "small"

Table: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class _Draft:
    """What a file and the overrides said, each value checked by itself, defaults not filled in."""

    experiment: Experiment
    texts: Mapping[str, str]
    values: Mapping[str, Any]
    axes: tuple[Axis, ...]

    @property
    def fields(self) -> Fields:
        return fields_of(self.experiment)


def load_study(
    path_or_name: str | Path,
    overrides: Sequence[str] = (),
    *,
    small: bool = False,
    say: Callable[[str], None] = lambda _: None,
    experiments: Sequence[Experiment] = (),
    origin: str = "--set",
) -> Study:
    """Reads and checks a study.

    Args:
        path_or_name: path of a study file, or the name of one in ``sweeps/``.
        overrides: settings such as ``train.steps=2000``, ``l1=1e-4`` or ``axes.l1=[1e-4, 1e-3]``;
            a single value for a field that is an axis takes the axis away, and a list or a range
            replaces it; the last one wins.
        small: take the study's own small size, a list of overrides called ``small``, first.
        say: hears of an override that was taken for one of an axis.
        experiments: those that the study may name beside the library's own. If there is just one,
            a study that names none is about it.
        origin: what messages say before an override.

    Returns:
        The study.

    Raises:
        StudyError: the file or an override is wrong; the text is one sentence.
    """
    path = locate(str(path_or_name))
    text = read_text(path)
    return parse_study(
        text,
        path.stem,
        overrides,
        source=str(path),
        small=small,
        say=say,
        experiments=experiments,
        origin=origin,
    )


def parse_study(
    text: str,
    name: str,
    overrides: Sequence[str] = (),
    *,
    source: str = "study",
    small: bool = False,
    say: Callable[[str], None] = lambda _: None,
    experiments: Sequence[Experiment] = (),
    origin: str = "--set",
) -> Study:
    """Reads and checks a study from TOML text; see `load_study`.

    Args:
        text: the TOML text.
        name: the study's name.
        overrides: as for `load_study`.
        source: what error messages call the text.
        small: as for `load_study`.
        say: as for `load_study`.
        experiments: as for `load_study`.
        origin: as for `load_study`.

    Raises:
        StudyError: the text or an override is wrong.
    """
    check_name(name)
    table = _parse_toml(text, source)
    try:
        draft = _read_document(table, experiments)
        smaller = _read_small(table)
    except StudyError as error:
        raise StudyError(f"{source}: {error}") from None
    if small and not smaller:
        raise StudyError(f"{source} has no small size: give it a list of overrides called {_SMALL}")
    given = [(f"{source}: {_SMALL}", override) for override in smaller if small]
    for place, override in [*given, *((origin, override) for override in overrides)]:
        try:
            meant = _meant(draft, override)
            if meant != override:
                say(f"{place} {shown(override)} is taken for {meant}, as that is an axis already")
            draft = _override(draft, meant)
        except StudyError as error:
            raise StudyError(f"{place} {shown(override)}: {error}") from None
    try:
        return _resolve(draft, name)
    except StudyError as error:
        changed = f" with {shown(', '.join(overrides))}" if overrides else ""
        raise StudyError(f"{source}{changed}: {error}") from None


def _parse_toml(text: str, source: str) -> Table:
    if _has_surrogates(text):
        raise StudyError(f"{source}: the text is not Unicode")
    # Some editors mark a file as UTF-8 by a first character that is no text. TOML's newlines are \n
    # and \r\n; tomllib refuses any other carriage return.
    try:
        return tomllib.loads(text.removeprefix(BYTE_ORDER_MARK).replace("\r\n", "\n"))
    except tomllib.TOMLDecodeError as error:
        reason, _, place = str(error).partition(" (at ")
        found = re.match(r"line (\d+)", place)
        line = int(found[1]) if found else max(1, len(text.splitlines()))
        raise StudyError(f"{source}, line {line}: not valid TOML: {reason}") from None
    except (ValueError, RecursionError) as error:
        kind = "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"
        raise StudyError(f"{source}: not valid TOML: {kind}") from None


def _has_surrogates(text: str) -> bool:
    """Whether there are bytes in it that are no text, as the command line may have them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _read_document(document: Table, experiments: Sequence[Experiment]) -> _Draft:
    own = experiments[0].name if len(experiments) == 1 else DEFAULT_EXPERIMENT
    experiment = find_experiment(document.get(_EXPERIMENT, own), experiments)
    fields = fields_of(experiment)
    values: dict[str, Any] = {}
    for key, raw in document.items():
        if key in fields.tables:
            values.update(_read_table(fields, key, raw))
        elif key in fields:
            values[key] = read_value(fields[key], raw)
        elif key not in (*_TEXTS, _EXPERIMENT, _SMALL, "axes", "zip"):
            raise _unknown_key(fields, key, raw)
    axes = (
        *read_axes(fields, document.get("axes", {})),
        *read_zips(fields, document.get("zip", [])),
    )
    for path in (path for axis in axes for path in axis.fields):
        if path in values:
            raise StudyError(f"{path} has a single value and is an axis as well; keep one of them")
    check_axes(axes)
    texts = {key: _read_line(key, document[key]) for key in _TEXTS if key in document}
    return _Draft(experiment, texts, values, axes)


def _read_small(document: Table) -> tuple[str, ...]:
    """The overrides that make a study small."""
    raw = document.get(_SMALL, [])
    if not isinstance(raw, list) or not all(isinstance(entry, str) for entry in raw):
        raise StudyError(
            f"{_SMALL} must be a list of overrides such as 'steps=40', got {shown(raw)}"
        )
    return tuple(raw)


def _unknown_key(fields: Fields, key: str, raw: object) -> StudyError:
    if isinstance(raw, Mapping):
        names = [*fields.tables, "axes", "zip"]
        hint = nearest(key, names) or f" (tables: {', '.join(names)})"
        return StudyError(f"unknown table {shown(key)}{hint}")
    try:
        path = fields.find(key).path
    except StudyError as error:
        return error
    table = path.rpartition(".")[0]
    return StudyError(f"{key} belongs in the table [{table}], not at the top of the file")


def _read_line(key: str, raw: object) -> str:
    if not isinstance(raw, str):
        raise StudyError(f"{key} must be a string, got {shown(raw)}")
    line = " ".join(raw.split())
    # A terminal would obey them, and a netCDF file can't hold all of them.
    if any(character < " " for character in line):
        raise StudyError(f"{key} must not hold control characters, got {shown(line)}")
    return line


def _read_table(fields: Fields, table: str, raw: object) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise StudyError(f"{table} must be a table, got {shown(raw)}")
    values = {}
    for key, entry in raw.items():
        field = _field_in(fields, table, key)
        values[field.path] = read_value(field, entry)
    return values


def _field_in(fields: Fields, table: str, key: str) -> Parameter:
    path = f"{table}.{key}"
    return fields[path] if path in fields else fields.find(path)


def _override(draft: _Draft, override: str) -> _Draft:
    name, equals, text = override.partition("=")
    name, text = name.strip(), text.strip()
    if _has_surrogates(override):
        raise StudyError("an override must be Unicode text")
    if not equals or not name or not text:
        raise StudyError("an override must be NAME=VALUE, such as train.steps=2000")
    raw = _override_value(text)
    if name in _TEXTS:
        return replace(draft, texts={**draft.texts, name: _read_line(name, raw)})
    if name.startswith("axes."):
        return _override_axis(draft, axis_field(draft.fields, name.removeprefix("axes.")), raw)
    if name.startswith("zip."):
        return _override_zip(draft, name.removeprefix("zip."), raw)
    field = draft.fields.find(name)
    value = read_value(field, raw)
    return replace(
        draft,
        values={**draft.values, field.path: value},
        axes=tuple(kept for axis in draft.axes if (kept := without(axis, field.path))),
    )


def _meant(draft: _Draft, override: str) -> str:
    """The override, as one of an axis if it gives many values for a field that is an axis."""
    name, _, text = override.partition("=")
    axes = {axis.fields[0] for axis in draft.axes if not axis.is_zip}
    try:
        is_axis = draft.fields.find(name.strip()).path in axes
        many = is_axis and isinstance(_override_value(text.strip()), list | dict)
    except StudyError:
        return override
    return f"axes.{override.strip()}" if many else override


def _override_value(text: str) -> object:
    """Returns the value of an override: TOML, or a bare word that stands for a string."""
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        table = {}
    if set(table) == {"value"}:
        return table["value"]
    if _BARE_WORD.fullmatch(text):
        return text
    raise StudyError(f"{shown(text)} is not a TOML value: a number, true, false, 'text' or a list")


def _override_axis(draft: _Draft, field: Parameter, raw: object) -> _Draft:
    for axis in draft.axes:
        if axis.is_zip and field.path in axis.fields:
            raise StudyError(f"{field.path} is part of the zip '{axis.name}' and no axis by itself")
    column = read_column(field, raw)
    new = Axis(field.short, (field.path,), tuple((value,) for value in column))
    products = [axis for axis in draft.axes if not axis.is_zip]
    if new.fields in [axis.fields for axis in products]:
        products = [new if axis.fields == new.fields else axis for axis in products]
    else:
        products.append(new)
    axes = (*products, *(axis for axis in draft.axes if axis.is_zip))
    check_axes(axes)
    values = {path: value for path, value in draft.values.items() if path != field.path}
    return replace(draft, values=values, axes=axes)


def _override_zip(draft: _Draft, name: str, raw: object) -> _Draft:
    names = [axis.name for axis in draft.axes if axis.is_zip]
    if name not in names:
        known = nearest(name, names) or (f" (zips: {', '.join(names)})" if names else "")
        raise StudyError(f"there is no zip {shown(name)}{known}")
    axes = tuple(
        pick(axis, raw) if axis.is_zip and axis.name == name else axis for axis in draft.axes
    )
    return replace(draft, axes=axes)


def _resolve(draft: _Draft, name: str) -> Study:
    # Products come first, as in a file, so that a study reads back with its axes in the same order.
    axes = tuple(sorted(draft.axes, key=lambda axis: axis.is_zip))
    check_axes(axes)
    swept = {path for axis in axes for path in axis.fields}
    base: dict[str, Any] = {}
    for path, field in draft.fields.items():
        if path in draft.values:
            base[path] = draft.values[path]
        elif path not in swept:
            if isinstance(field.default, Required):
                raise StudyError(f"{path} is missing: set it in [{field.table}] or as an axis")
            base[path] = field.default
    check_rounded(draft.fields, axes, draft.experiment.dtype(base))
    base["record.snapshots"] = tuple(sorted(base["record.snapshots"]))
    title, question = draft.texts.get("title") or name, draft.texts.get("question", "")
    study = Study(name, title, question, MappingProxyType(base), axes, draft.experiment)
    _check_study(study)
    return study


def _check_study(study: Study) -> None:
    if study.num_trajectories > MAX_TRAJECTORIES:
        raise StudyError(
            f"the axes make {study.num_trajectories} trajectories; "
            f"at most {MAX_TRAJECTORIES} fit in a study"
        )
    for relation in (RECORDS_FIT, *study.experiment.relations):
        for values in study.combinations(relation.paths):
            if refusal := relation.refusal(values):
                raise StudyError(refusal)
    if not study.variables:
        raise StudyError("record.variables is empty; name at least one variable")
    with calling(study.experiment):
        study.experiment.check(study)
    _check_kept(study)
    if is_search(study):
        check_search(study)
        return
    for path in ("search.first", "search.last"):
        if study.base[path] is not None:
            raise StudyError(f"{path} = {study.base[path]} needs a search.field to look for")


def _check_kept(study: Study) -> None:
    experiment = study.experiment
    for path, kinds in (
        ("record.final", experiment.kept),
        ("record.truth", experiment.truth),
        ("record.snapshots", experiment.kept),
    ):
        # Every study can ask for matrices; that there are none is to be said.
        if study.base[path] and not kinds:
            raise StudyError(
                f"{path} has nothing to keep: experiment = '{experiment.name}' declares no "
                "matrices of its own"
            )
    steps, every = study.base[STEPS.path], study.base[RECORD_EVERY.path]
    for step in study.snapshots:
        if step > steps or step % every:
            raise StudyError(
                f"record.snapshots must be multiples of {RECORD_EVERY.path} = {every} "
                f"up to {STEPS.path} = {steps}, got {step}"
            )
    variables = study.experiment.variables
    own = [name for name in study.variables if variables[name].dims]
    what, hint = "record.final, record.truth and record.snapshots need matrices", ""
    if own:
        what = f"{own[0]} needs arrays"
        lengths = ", ".join(f"'{dim}': ..." for dim in variables[own[0]].dims)
        hint = f"; where that does not change it, learning(..., lengths={{{lengths}}}) says so"
    if own or study.final or study.truth or study.snapshots:
        for path in study.experiment.size_paths:
            if path not in study.base:
                raise StudyError(f"{what} of one shape, but {path} is an axis{hint}")
