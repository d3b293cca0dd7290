"""Runs a study from its plan to its dataset: resumable, and interruptible at any moment."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scbjax.base import StudyError
from scbjax.sweep.engine.chunks import SEGMENT_SECONDS, Executor
from scbjax.sweep.engine.divergence import divergence_report
from scbjax.sweep.engine.engines import Engine, LocalEngine
from scbjax.sweep.engine.here import Place, here, provenance
from scbjax.sweep.engine.progress import Progress, counted, readable_seconds
from scbjax.sweep.engine.session import CHECKPOINT_SECONDS, Interrupted, Session, load_chunk
from scbjax.sweep.plan.plans import Layout, Plan, plan_with_layout
from scbjax.sweep.results.arrays import DamagedError
from scbjax.sweep.results.dataset import (
    gather,
    is_whole,
    read_dataset,
    save_dataset,
    write_dataset,
)
from scbjax.sweep.results.lock import hold, refuse_held_below
from scbjax.sweep.results.store import Manifest, Store
from scbjax.sweep.search import search
from scbjax.sweep.study.files import Study, fingerprint, to_toml

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class RunReport:
    """How a run ended.

    Attributes:
        out: the results directory.
        dataset: the dataset, if it is complete.
        interrupted: the run was stopped and can be continued.
        already_complete: there was nothing to do.
        run_seconds: time in the simulation, over all sessions.
        compile_seconds: time in the compiler, over all sessions.
        diverged: trajectories whose parameters left the finite range.
    """

    out: Path
    dataset: Path | None
    interrupted: bool = False
    already_complete: bool = False
    run_seconds: float = 0.0
    compile_seconds: float = 0.0
    diverged: int = 0


def run_study(
    plan: Plan,
    out: Path,
    *,
    progress: Progress,
    force: bool = False,
    segment_seconds: float = SEGMENT_SECONDS,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    engine: Engine | None = None,
    facts: Mapping[str, str] | None = None,
    owns_process: bool = True,
) -> RunReport:
    """Runs a study, or continues it where an earlier run stopped.

    The first SIGINT or SIGTERM ends the run after the present segment, with everything saved; the
    second ends at once, and nothing that was saved is damaged.

    Args:
        plan: what to run. A run that was begun goes on in the chunks it was cut into then.
        out: the results directory.
        progress: where to report to.
        force: move the results that are there aside, and start anew.
        segment_seconds: time between two looks at the clock and the signals.
        checkpoint_seconds: time between two checkpoints of a chunk.
        engine: where chunks run; this process if left out.
        facts: the `provenance` of where they run, if that is another process.
        owns_process: whether the second signal ends the process. If not, it goes to whoever would
            have heard it without the run: Ctrl-C then raises `KeyboardInterrupt`.

    Returns:
        How it ended. With the same plan, the dataset's variables are the same bit for bit, however
        often the run was interrupted.

    Raises:
        StudyError: the directory holds other results or is held by another run, or it can't be
            written.
    """
    store = Store(out)
    if engine is None:
        engine = LocalEngine(lambda plan: Executor(plan, segment_seconds=segment_seconds))
    try:
        if force and store.holds_results():
            progress.say(f"moved what was there to {_move_aside(store)}")
        with hold(out, progress.say):
            facts = provenance() if facts is None else facts
            plan = _open(store, plan, progress, facts)
            dataset = store.dataset_path(plan.study.name)
            if is_whole(dataset):
                return RunReport(out, dataset, already_complete=True)
            if dataset.exists():
                progress.say(f"{dataset} is damaged and is written again")
            for line in plan.study.experiment.warn(plan.study):
                progress.say(line)
            session = Session(plan, store, progress, checkpoint_seconds)
            with session.interruptible(owns_process=owns_process):
                todo = session.todo()
                for index, result in engine.run(session.plan, todo, session):
                    session.finish(plan.chunks[index], result)
            return _write(session, facts)
    except Interrupted:
        return RunReport(out, None, interrupted=True)
    finally:
        progress.close()


def run_search(
    study: Study,
    out: Path,
    *,
    create_progress: Callable[[], Progress],
    memory_bytes: int | None = None,
    force: bool = False,
    place: Place | None = None,
    owns_process: bool = True,
) -> RunReport:
    """Runs a search (`scbjax.sweep.search`), or continues it where an earlier run stopped.

    Args:
        study: the search.
        out: the results directory.
        create_progress: where to report to; each of the studies that a search consists of gets its
            own.
        memory_bytes: budget of a chunk, as for `plan_here`.
        force: move the results that are there aside, and start anew.
        place: where it runs; this process if left out.
        owns_process: as for `run_study`.

    Returns:
        How it ended, over all rounds.

    Raises:
        StudyError: as `run_study`, or the search does not fit together.
    """
    store = Store(out)
    progress = create_progress()
    place = here() if place is None else place
    try:
        if force and out.exists():
            progress.say(f"moved what was there to {_move_aside(store)}")
        with hold(out, progress.say):
            return _search_held(
                study, store, create_progress, memory_bytes, place, owns_process=owns_process
            )
    finally:
        progress.close()


def _search_held(
    study: Study,
    store: Store,
    create_progress: Callable[[], Progress],
    memory_bytes: int | None,
    place: Place,
    *,
    owns_process: bool,
) -> RunReport:
    """Runs a search in a directory that is held."""
    out, dataset = store.out, store.dataset_path(study.name)
    if is_whole(dataset):
        return _already_searched(study, out, dataset)
    reports: list[RunReport] = []

    def measure(part: Study, folder: Path) -> "xarray.Dataset":
        progress = create_progress()
        progress.say(f"{folder.relative_to(out)} of {out}")
        plan = place.plan(part, memory_bytes)
        reports.append(
            run_study(
                plan,
                folder,
                progress=progress,
                engine=place.engine,
                facts=place.facts,
                owns_process=owns_process,
            )
        )
        if reports[-1].dataset is None:
            raise Interrupted
        return read_dataset(reports[-1].dataset)

    try:
        found = search(study, out, measure)
    except Interrupted:
        return RunReport(out, None, interrupted=True)
    save_dataset(found.assign_attrs(place.facts), dataset)
    return RunReport(
        out,
        dataset,
        run_seconds=sum(report.run_seconds for report in reports),
        compile_seconds=sum(report.compile_seconds for report in reports),
        diverged=sum(report.diverged for report in reports),
    )


def _already_searched(study: Study, out: Path, dataset: Path) -> RunReport:
    known = str(read_dataset(dataset).attrs.get("fingerprint"))
    if known != fingerprint(study):
        raise StudyError(_foreign(Store(out), known, fingerprint(study)))
    return RunReport(out, dataset, already_complete=True)


def _move_aside(store: Store) -> Path:
    """Renames the directory and returns its new name, unless a run holds it or a part of it."""
    with hold(store.out) as lock:
        refuse_held_below(store.out)
        target = store.move_aside()
        lock.moved_to(target)
        return target


def _open(store: Store, plan: Plan, progress: Progress, facts: Mapping[str, str]) -> Plan:
    """Begins a run in the directory, or finds the one that is there; returns the plan to follow."""
    try:
        begun = _begun(store, plan)
    except DamagedError as error:
        progress.say(f"{store.manifest_path} is damaged and is written again: {error}")
        begun = None
    if begun is None:
        _refuse_foreign_chunks(store, plan.fingerprint)
        plan = _as_chunks_are(store, plan)
        store.write_experiment(plan.study.experiment.source)
        store.write_manifest(Manifest.of(plan, facts))
        return plan
    found, plan = begun
    changed = [name for name in facts if found.provenance.get(name) != facts[name]]
    if changed and not is_whole(store.dataset_path(plan.study.name)):
        progress.say(f"continues a run that was begun with other {', '.join(changed)}")
    return plan


def _begun(store: Store, plan: Plan) -> tuple[Manifest, Plan] | None:
    """The manifest in the directory and the plan that was begun by it, if there is one."""
    found = store.read_manifest()
    if found is None:
        return None
    if found.fingerprint != plan.fingerprint:
        if found.study == to_toml(plan.study) and plan.study.experiment.source:
            raise StudyError(
                f"{store.out} was begun with another version of the file of experiment "
                f"'{plan.study.experiment.name}', which is kept as {store.experiment_path}; "
                "choose another directory with --out, or move it aside with --force"
            )
        raise StudyError(_foreign(store, found.fingerprint, plan.fingerprint))
    return found, _with_layout(plan, found.layout)


def _with_layout(plan: Plan, layout: Layout) -> Plan:
    try:
        cut = plan_with_layout(plan.study, layout, device_count=plan.device_count)
    except StudyError as error:
        raise DamagedError(str(error)) from None
    # What trajectories take may have been measured for this plan.
    pairs = zip(cut.programs, plan.programs, strict=True)
    programs = tuple(replace(program, cost=own.cost) for program, own in pairs)
    return replace(cut, programs=programs, budget=plan.budget)


def _as_chunks_are(store: Store, plan: Plan) -> Plan:
    """The plan, cut as the chunks are that have lost their manifest, so that they are of use."""
    try:
        return _with_layout(plan, store.layout_of_chunks(plan))
    except DamagedError:
        return plan


def _refuse_foreign_chunks(store: Store, own: str) -> None:
    """Chunks that have lost their manifest are still somebody's results."""
    for fingerprint_found in store.fingerprints():
        if fingerprint_found != own:
            raise StudyError(_foreign(store, fingerprint_found, own))


def _foreign(store: Store, found: str, own: str) -> str:
    return (
        f"{store.out} holds the results of other settings (fingerprint {found[:8]}, "
        f"not {own[:8]}); choose another directory with --out, or move it aside with --force"
    )


def _write(session: Session, facts: Mapping[str, str]) -> RunReport:
    """Writes the dataset of a study whose chunks are all there."""
    plan, store = session.plan, session.store
    try:
        taken = [load_chunk(store, plan, chunk) for chunk in plan.chunks]
    except (FileNotFoundError, DamagedError) as error:
        raise StudyError(f"{store.out} was changed while the study ran: {error}") from None
    run_seconds = sum(float(times["run_seconds"]) for times in taken)
    compile_seconds = sum(float(times["compile_seconds"]) for times in taken)
    times = {"wall_seconds": run_seconds + compile_seconds, "compile_seconds": compile_seconds}
    written = write_dataset(plan, store, {**facts, **times})
    session.progress.say(
        f"{counted(plan.num_trajectories, 'trajectory')} in {readable_seconds(run_seconds)} "
        f"and {readable_seconds(compile_seconds)} of compilation"
    )
    constants = {name: gather(plan, store, name) for name in plan.study.experiment.constants}
    for line in divergence_report(plan, written.diverged_at, constants):
        session.progress.say(line)
    return RunReport(
        store.out,
        written.path,
        run_seconds=run_seconds,
        compile_seconds=compile_seconds,
        diverged=int(np.count_nonzero(written.diverged_at >= 0)),
    )
