"""``scbjax list`` and ``scbjax show``: studies, their settings and how they would be run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scbjax.base import STEPS, Parameter, StudyError
from scbjax.cli.options import (
    CpuDevices,
    ExperimentFile,
    Memory,
    Overrides,
    Precision,
    Small,
    StudyName,
    load_named,
    with_precision,
)
from scbjax.cli.printing import aligned, as_text, shortened
from scbjax.cli.starting import prepare_jax
from scbjax.sweep.engine.places import read_bytes
from scbjax.sweep.engine.progress import counted, readable_count, readable_seconds
from scbjax.sweep.study.cells import cells_of, is_search
from scbjax.sweep.study.files import Study, load_study
from scbjax.sweep.study.locating import find_studies, none_found
from scbjax.values import INT32_MAX

if TYPE_CHECKING:
    from scbjax.sweep.plan.plans import Measure, Plan

_MOST_ROWS = 100
"""So many rows of a table are all shown; of more, the first and the last."""


@dataclass(frozen=True)
class List:
    """List the studies with their size and estimated cost."""

    def __call__(self) -> int:
        """Runs the command; returns its exit status."""
        paths = find_studies()
        if not paths:
            raise StudyError(f"there are no studies to list: {none_found('sweeps')}")
        rows: list[tuple[str, ...]] = [("study", "runs", "tokens", "time", "title")]
        failures = []
        for path in paths:
            try:
                rows.append(_list_row(load_study(str(path), ())))
            except StudyError as error:
                failures.append(str(error))
        print("\n".join(aligned(rows)))
        if failures:
            raise StudyError("; ".join(failures))
        return 0


@dataclass(frozen=True)
class Show:
    """Show a study's resolved settings and how it would be run."""

    study: StudyName
    overrides: Overrides = ()
    memory: Memory = None
    cpu_devices: CpuDevices = "auto"
    precision: Precision = None
    small: Small = False
    experiment: ExperimentFile = None

    def __call__(self) -> int:
        """Runs the command; returns its exit status."""
        overrides = with_precision(self.overrides, self.precision)
        study = load_named(self.study, overrides, self.experiment, small=self.small)
        memory_bytes = read_bytes(self.memory)
        from scbjax.sweep.engine.backend import read_cpu_devices, usable_cores
        from scbjax.sweep.plan.plans import make_plan

        count = read_cpu_devices(self.cpu_devices) or usable_cores()

        if is_search(study):
            print("\n".join([*_describe_study(study), "", *_describe_search(study)]))
            return 0
        measure = _measurer(study, self.cpu_devices)
        plan = make_plan(study, memory_bytes=memory_bytes, device_count=count, measure=measure)
        print("\n".join([*_describe_study(study), "", *_describe_plan(plan)]))
        return 0


def _measurer(study: Study, cpu_devices: str) -> Measure:
    """What tells what trajectories take of which the experiment does not; with JAX if it must."""
    from scbjax.sweep.plan.programs import UNKNOWN

    if study.experiment.cost is not None:
        return lambda _: UNKNOWN
    prepare_jax(cpu_devices, None)
    from scbjax.sweep.plan.measured import cost_of

    return cost_of


def _list_row(study: Study) -> tuple[str, ...]:
    from scbjax.sweep.plan.plans import make_plan
    from scbjax.sweep.search import first_studies

    parts, rounds = [study], 1
    if is_search(study):
        parts, rounds = first_studies(study), study.base["search.rounds"]
    plans = [make_plan(part) for part in parts]
    count = rounds * sum(plan.num_trajectories for plan in plans)
    total = rounds * sum(plan.tokens for plan in plans)
    tokens = readable_count(total) if total else ""  # experiments need not say
    seconds = _told(study, rounds * sum(plan.seconds for plan in plans))
    return study.name, str(count), tokens, seconds, study.title


def _told(study: Study, seconds: float) -> str:
    """An estimate of a time; nothing where the experiment does not say what its steps take."""
    return "" if study.experiment.cost is None else f"~{readable_seconds(seconds)}"


def _describe_study(study: Study) -> list[str]:
    lines = [f"{study.name}: {study.title}", study.question, ""]
    values = {
        path: value
        for path, value in study.base.items()
        if value is not None and (is_search(study) or study.fields[path].table != "search")
    }
    lines += aligned(
        [(path, _field_text(study.fields[path], value)) for path, value in values.items()]
    )
    lines += ["", "axes"]
    for axis in study.axes:
        lines.append(f"  {axis.name}: {counted(len(axis), 'point')}")
        for path, column in zip(axis.fields, zip(*axis.values, strict=True), strict=True):
            texts = [_field_text(study.fields[path], value) for value in shortened(column, "...")]
            lines.append(f"    {path} = {', '.join(texts)}")
    return lines


def _field_text(field: Parameter, value: object) -> str:
    """A field's value; the number that no study comes to is never."""
    return "never" if field.default == value == INT32_MAX else as_text(value)


def _describe_plan(plan: Plan) -> list[str]:
    from scbjax.sweep.plan.cost import readable_bytes

    total = [
        ("trajectories", str(plan.num_trajectories)),
        ("programs", str(len(plan.programs))),
        ("chunks", str(len(plan.chunks))),
        ("CPU devices", str(max(program.devices for program in plan.programs))),
        ("memory", f"~{readable_bytes(plan.memory_bytes)}"),
        *([("tokens", readable_count(plan.tokens))] if plan.tokens else []),
    ]
    if time := _told(plan.study, plan.seconds):
        total.append(("time", f"{time} on two CPU cores, with compilation"))
    lines = ["plan", *(f"  {line}" for line in aligned(total))]
    if len(plan.programs) > 1:
        lines += ["", "programs", *_table(_program_rows(plan))]
    return lines


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of a table with its header, the middle of a long one left out."""
    header, *body = rows
    gap = ("...", *([""] * (len(header) - 1)))
    return [f"  {line}" for line in aligned([header, *shortened(body, gap, _MOST_ROWS)])]


def _describe_search(study: Study) -> list[str]:
    """What each cell of a search costs, all rounds together."""
    from scbjax.sweep.plan.plans import make_plan
    from scbjax.sweep.search import first_studies

    rounds = study.base["search.rounds"]
    plans = [make_plan(part) for part in first_studies(study)]
    cells = list(cells_of(study))
    names = tuple(cells[0].values)
    rows: list[tuple[str, ...]] = [(*names, "steps", "trajectories", "tokens", "time")]
    for cell, plan in zip(cells, plans, strict=True):
        rows.append(
            (
                *(as_text(cell.values[name]) for name in names),
                str(cell.study.base[STEPS.path]),
                str(rounds * plan.num_trajectories),
                readable_count(rounds * plan.tokens),
                _told(study, rounds * plan.seconds),
            )
        )
    total = _told(study, rounds * sum(plan.seconds for plan in plans))
    size = f"{counted(rounds, 'round')} in {counted(len(cells), 'cell')}"
    time = f", {total} on two CPU cores" if total else ""
    return [f"search: {size}{time}", *_table(rows)]


def _program_rows(plan: Plan) -> list[tuple[str, ...]]:
    """What tells the programs of a plan apart, and what each of them costs."""
    from scbjax.sweep.plan.cost import readable_bytes

    fields = plan.study.fields
    static = [
        path for path in fields if path not in plan.study.base and fields[path].kind == "static"
    ]
    rows: list[tuple[str, ...]] = [(*static, "trajectories", "chunks", "memory", "time")]
    for program in plan.programs:
        chunks = sum(chunk.program == program.index for chunk in plan.chunks)
        cost = (f"~{readable_bytes(program.memory_bytes)}", _told(plan.study, program.seconds))
        values = (str(program.fixed[path]) for path in static)
        rows.append((*values, str(program.positions.size), str(chunks), *cost))
    return rows
