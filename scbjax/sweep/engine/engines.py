"""Where chunks are run: an engine gets a plan and the chunks to do, and yields their results."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

from scbjax.sweep.engine.chunks import Checkpoint, ChunkResult, Executor, Segment
from scbjax.sweep.engine.memory import Memory
from scbjax.sweep.plan.plans import Plan
from scbjax.sweep.plan.programs import Program


class Session(Protocol):
    """The run that an engine works for."""

    def checkpoint(self, index: int) -> Checkpoint | None:
        """Where a chunk was left by an earlier session, if it was begun."""

    def unfit(self, index: int, checkpoint: Checkpoint, reason: str) -> None:
        """Hears that the checkpoint of a chunk is of no use, and that it begins anew."""

    def compiling(self, program: Program) -> None:
        """Hears that a program is about to be compiled, which takes seconds."""

    def exceeding(self, program: Program, taken: Memory, block: int | None) -> None:
        """Hears of a program that takes more than the budget; see `Executor.run`."""

    def listen(self, segment: Segment) -> None:
        """Hears of every finished segment; ends the run by raising."""

    def stop_if_asked(self) -> None:
        """For engines that wait: ends the run by raising."""

    def say(self, text: str) -> None:
        """Tells the user something that must stay readable."""


class Engine(Protocol):
    """A way to run chunks."""

    def run(
        self, plan: Plan, indices: Sequence[int], session: Session
    ) -> Iterator[tuple[int, ChunkResult]]:
        """Runs the given chunks of a plan, and yields each with its index when it is finished.

        A chunk is a pure function of the plan and its index, so that chunks may run in any order
        and place, and again if one is lost.
        """


class LocalEngine:
    """Runs chunks one after the other on the devices of this process.

    Args:
        make_executor: what runs a chunk of a plan.
    """

    def __init__(self, make_executor: Callable[[Plan], Executor] = Executor) -> None:
        self._make_executor = make_executor

    def run(
        self, plan: Plan, indices: Sequence[int], session: Session
    ) -> Iterator[tuple[int, ChunkResult]]:
        """See :class:`Engine`."""
        executor = self._make_executor(plan)
        for index in indices:
            yield (
                index,
                executor.run(
                    index,
                    checkpoint=session.checkpoint(index),
                    unfit=partial(session.unfit, index),
                    listen=session.listen,
                    compiling=session.compiling,
                    exceeding=session.exceeding,
                ),
            )
