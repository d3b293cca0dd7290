"""Runs a study from its plan to its dataset: resumable, and interruptible at any moment."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scbjax.base import StudyError
from scbjax.sweep.engine.chunks import SEGMENT_SECONDS, Checkpoint, ChunkResult, Executor, Segment
from scbjax.sweep.engine.divergence import divergence_report
from scbjax.sweep.engine.engines import Engine, LocalEngine
from scbjax.sweep.engine.here import Place, here, provenance
from scbjax.sweep.engine.mapped import live_metric
from scbjax.sweep.engine.memory import Memory, told
from scbjax.sweep.engine.progress import Meter, Progress, counted, readable_seconds
from scbjax.sweep.plan.programs import Chunk, Layout, Plan, Program, plan_with_layout
from scbjax.sweep.results.arrays import DamagedError, Facts
from scbjax.sweep.results.dataset import (
    check_arrays,
    gather,
    is_whole,
    read_dataset,
    save_dataset,
    write_dataset,
)
from scbjax.sweep.results.lock import hold, refuse_held_below
from scbjax.sweep.results.store import Manifest, Store
from scbjax.sweep.search import search
from scbjax.sweep.study.fields import shown
from scbjax.sweep.study.files import Study, fingerprint, to_toml

if TYPE_CHECKING:
    import xarray


CHECKPOINT_SECONDS = 30.0
"""Work that a crash may lose. A checkpoint costs a copy of the state to the disk."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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


class Interrupted(Exception):  # noqa: N818 - not an error
    """The user asked the run to stop, and it has saved what it had."""


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
            session = _Session(plan, store, progress, checkpoint_seconds)
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


def _note_layout(store: Store, plan: Plan) -> None:
    """Writes down how a plan is cut now, before there are chunks of it; they say it as well."""
    with suppress(DamagedError):  # as a lost manifest, it is made anew of the chunks
        if (found := store.read_manifest()) is not None:
            store.write_manifest(replace(found, layout=plan.layout))


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


class _Session:
    """One run of the command: what is done, what it takes, and whether it is to stop."""

    def __init__(
        self, plan: Plan, store: Store, progress: Progress, checkpoint_seconds: float
    ) -> None:
        self.plan = plan
        self.store = store
        self.progress = progress
        self._checkpoint_seconds = checkpoint_seconds
        self._saved_at = time.monotonic()
        self._stop = threading.Event()
        self._chunks_left = 0
        work = sum(program.seconds for program in plan.programs)
        self._meter = Meter(plan.num_trajectories, work)

    def todo(self) -> list[int]:
        """The chunks that are not on the disk; says what an earlier run has left."""
        if removed := self.store.remove_unfinished():
            files = counted(removed, "file")
            self.progress.say(f"removed {files} that an earlier run was about to write")
        todo = []
        for chunk in self.plan.chunks:
            try:
                load_chunk(self.store, self.plan, chunk)
            except FileNotFoundError:
                todo.append(chunk.index)
            except DamagedError as error:
                self.progress.say(f"chunk {chunk.index} is damaged and is done again: {error}")
                todo.append(chunk.index)
            else:
                self.store.forget_checkpoint(chunk)
                self._meter.skip(*self._share(chunk, 1.0))
        if done := len(self.plan.chunks) - len(todo):
            self.progress.say(f"found {done} of {counted(len(self.plan.chunks), 'chunk')} done")
        self.progress.show(self._meter.reading())
        self._chunks_left = len(todo)
        self.plan = replace(self.plan, settled=self._settled(todo))
        return todo

    def _settled(self, todo: list[int]) -> frozenset[int]:
        """Programs of which something is on the disk, all of which is to be in the same blocks."""
        left = set(todo)
        return frozenset(
            chunk.program
            for chunk in self.plan.chunks
            if chunk.index not in left or self._has_checkpoint(chunk)
        )

    def _has_checkpoint(self, chunk: Chunk) -> bool:
        try:
            self.store.load_checkpoint(self.plan, chunk)
        except (FileNotFoundError, DamagedError):
            return False
        return True

    def checkpoint(self, index: int) -> Checkpoint | None:
        """Where a chunk was left, if it was."""
        chunk = self.plan.chunks[index]
        try:
            arrays, facts = self.store.load_checkpoint(self.plan, chunk)
            found = Checkpoint(dict(arrays), int(facts["records"]), float(facts["run_seconds"]))
        except FileNotFoundError:
            return None
        except (DamagedError, KeyError, OverflowError, TypeError, ValueError) as error:
            self._leave_out(index, error)
            return None
        self._meter.skip(*self._share(chunk, self._part(chunk, found)))
        records = counted(self._program(chunk).num_records, "record")
        self.progress.say(f"chunk {index} goes on after {found.records} of {records}")
        return found

    def unfit(self, index: int, checkpoint: Checkpoint, reason: str) -> None:
        """Says that a checkpoint can't be used."""
        chunk = self.plan.chunks[index]
        self._meter.skip(*self._share(chunk, -self._part(chunk, checkpoint)))
        self._leave_out(index, reason)

    def _leave_out(self, index: int, reason: object) -> None:
        self.progress.say(f"the checkpoint of chunk {index} is damaged and is left out: {reason}")

    def say(self, text: str) -> None:
        """Tells the user something that must stay readable."""
        self.progress.say(text)

    def compiling(self, program: Program) -> None:
        """Explains why nothing moves."""
        count = len(self.plan.programs)
        which = f"program {program.index + 1} of {count}" if count > 1 else "the program"
        self.progress.wait(f"compiling {which}")

    def exceeding(self, program: Program, taken: Memory, block: int | None) -> None:
        """Says that a chunk takes more than the budget, and what comes of it."""
        if block is not None:
            self._settle(program.index, block)
        self.progress.say(told(program, taken, self.plan.budget or 0, block))

    def _settle(self, index: int, block: int) -> None:
        """Goes on with a program in the blocks that it is run in."""
        if self.plan.programs[index].block != block:
            self.plan = self.plan.in_blocks(index, block)
            _note_layout(self.store, self.plan)

    def listen(self, segment: Segment) -> None:
        """Shows a segment's progress, saves it when it is time to, and stops when told to."""
        chunk, program = segment.chunk, self._program(segment.chunk)
        trajectories, work = self._share(chunk, segment.records / program.num_records)
        steps = trajectories * program.num_steps
        tokens = trajectories * program.cost.tokens(program.fixed)
        self._meter.add(
            seconds=segment.seconds,
            trajectories=trajectories,
            work=work,
            steps=steps,
            tokens=tokens,
        )
        study = self.plan.study
        metric = live_metric(study.experiment, study.variables), segment.metric
        self.progress.show(self._meter.reading(metric))
        if segment.records_done == program.num_records:
            return
        stop = self._stop.is_set()
        due = time.monotonic() - self._saved_at >= self._checkpoint_seconds
        if segment.checkpoint is not None and (stop or due):
            self._save(chunk, segment.checkpoint())
        if stop:
            raise Interrupted

    def stop_if_asked(self) -> None:
        """Ends the run by raising if the user has asked for it."""
        if self._stop.is_set():
            raise Interrupted

    def finish(self, chunk: Chunk, result: ChunkResult) -> None:
        """Keeps a finished chunk."""
        facts = {"run_seconds": result.run_seconds, "compile_seconds": result.compile_seconds}
        self._settle(chunk.program, result.block)
        self.store.save_chunk(self.plan, chunk, result.arrays, facts)
        self._saved_at = time.monotonic()
        self._chunks_left -= 1
        if self._stop.is_set() and self._chunks_left:
            raise Interrupted

    @contextmanager
    def interruptible(self, *, owns_process: bool = True) -> Iterator[None]:
        """Lets the first signal ask for an orderly stop, and the second one end at once."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may handle signals
            return

        before: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}

        def stop(number: int, _: object) -> None:
            signal.signal(number, signal.SIG_DFL if owns_process else before[number])
            self._stop.set()
            self.progress.say("stopping after this segment; once more to stop at once")

        for number in _SIGNALS:
            signal.signal(number, stop)
        try:
            yield
        finally:
            for number in _SIGNALS:
                signal.signal(number, before[number])

    def _program(self, chunk: Chunk) -> Program:
        return self.plan.programs[chunk.program]

    def _share(self, chunk: Chunk, part: float) -> tuple[float, float]:
        """Trajectories and work that a part of a chunk counts for."""
        return chunk.size * part, self.plan.seconds_of(chunk) * part

    def _part(self, chunk: Chunk, checkpoint: Checkpoint) -> float:
        return checkpoint.records / self._program(chunk).num_records

    def _save(self, chunk: Chunk, found: Checkpoint) -> None:
        facts = {"records": found.records, "run_seconds": found.run_seconds}
        self.store.save_checkpoint(self.plan, chunk, found.arrays, facts)
        self._saved_at = time.monotonic()


def load_chunk(store: Store, plan: Plan, chunk: Chunk) -> Facts:
    """What is known of a finished chunk, once it is sure that it can become part of the dataset.

    Raises:
        FileNotFoundError: it isn't there.
        DamagedError: it is there, and isn't this chunk of this plan as it was written.
    """
    arrays, facts = store.load_chunk(plan, chunk)
    check_arrays(plan, chunk, arrays)
    for name in ("run_seconds", "compile_seconds"):
        if type(facts.get(name)) not in {int, float}:
            raise DamagedError(f"its {name} is {shown(facts.get(name))}")
    return facts


def _write(session: _Session, facts: Mapping[str, str]) -> RunReport:
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
