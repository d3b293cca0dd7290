"""What an engine sees of a run: chunks to do, checkpoints, what to report, and when to stop."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scbjax.sweep.engine.chunks import Checkpoint, ChunkResult, Segment
from scbjax.sweep.engine.mapped import live_metric
from scbjax.sweep.engine.memory import Memory, told
from scbjax.sweep.engine.progress import Meter, Progress, counted
from scbjax.sweep.plan.plans import Chunk, Plan
from scbjax.sweep.plan.programs import Program
from scbjax.sweep.results.arrays import DamagedError, Facts
from scbjax.sweep.results.dataset import (
    check_arrays,
)
from scbjax.sweep.results.store import Store
from scbjax.sweep.study.fields import shown

if TYPE_CHECKING:
    pass


CHECKPOINT_SECONDS = 30.0
"""Work that a crash may lose. A checkpoint costs a copy of the state to the disk."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):  # noqa: N818 - not an error
    """The user asked the run to stop, and it has saved what it had."""


class Session:
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


def _note_layout(store: Store, plan: Plan) -> None:
    """Writes down how a plan is cut now, before there are chunks of it; they say it as well."""
    with suppress(DamagedError):  # as a lost manifest, it is made anew of the chunks
        if (found := store.read_manifest()) is not None:
            store.write_manifest(replace(found, layout=plan.layout))
