"""A study on many machines: each chunk of its plan is a task of a Dask scheduler.

This process makes the plan, sends chunks to workers, and stores what comes back; workers need no
file of its. It has as many chunks under way as there are workers, so that one that joins late gets
work at once. The scheduler notices when a worker is lost and gives its chunk to another one; what a
lost worker sends later counts for nothing.
"""

import asyncio
import contextlib
import json
import math
import queue
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from distributed import Client, Future, KilledWorker
from distributed.comm import connect as open_connection, get_address_host
from distributed.security import Security

import scbjax
from scbjax.base import StudyError
from scbjax.costs import CACHE_BYTES
from scbjax.sweep.engine.backend import cpu_device_count, usable_cores
from scbjax.sweep.engine.chunks import ChunkResult, Segment
from scbjax.sweep.engine.engines import Session
from scbjax.sweep.engine.here import Place
from scbjax.sweep.engine.local_workers import local_workers
from scbjax.sweep.engine.memory import Memory
from scbjax.sweep.engine.progress import counted
from scbjax.sweep.engine.remote import (
    TOPIC,
    Facts,
    Order,
    Recipe,
    Setup,
    describe,
    kind_of,
    run_chunk,
)
from scbjax.sweep.plan.measured import cost_of
from scbjax.sweep.plan.plans import Plan, make_plan
from scbjax.sweep.study.fields import shown
from scbjax.sweep.study.files import Study

CONNECT_SECONDS = 20.0
"""Time that a scheduler has to answer."""
POLL_SECONDS = 1.0
"""Time between two looks at the workers that there are, and at whether to stop."""


@contextlib.contextmanager
def connect(
    scheduler: str | None, setup: Setup, say: Callable[[str], None] = lambda _: None
) -> Iterator[Place]:
    """Connects to the workers of a Dask scheduler, or starts some on this machine.

    Args:
        scheduler: its address; None for workers of this machine, which end with the context.
        setup: how workers start JAX.
        say: tells the user what is waited for.

    Returns:
        Where studies then run. Plans are made for the worker that answers first; others must have
        the same versions and devices.

    Raises:
        StudyError: there is no scheduler at the address, workers don't start, or they have another
            version of this library.
    """
    with contextlib.ExitStack() as stack:
        count, check = 1, _nothing_to_check
        if scheduler is None:
            local = stack.enter_context(local_workers(setup.cpu_devices))
            scheduler, count, check = local.address, local.count, local.check
            if cpu_device_count(setup.cpu_devices) is not None:  # the environment leaves it open
                devices = setup.cpu_devices or max(1, usable_cores() // count)
                setup = replace(setup, cpu_devices=devices)
        client = stack.enter_context(_connect(scheduler))
        facts = _ask(client, setup, _wait_for_workers(client, count, check, say))
        engine = DaskEngine(client, kind_of(facts.provenance), setup)
        yield Place(partial(_plan, facts), engine, facts.provenance)


def _nothing_to_check() -> None:
    """Workers that others have started may come at any time."""


async def _reach(scheduler: str) -> None:
    """Opens a connection to a scheduler and closes it again."""
    options = Security().get_connection_args("client")
    connection = await open_connection(scheduler, timeout=CONNECT_SECONDS, **options)
    await connection.close()


def _connect(scheduler: str) -> Client:
    try:
        # A client is made only where somebody answers: one that failed is closed by the garbage
        # collector, and if that happens while another one starts, each waits for the other. In a
        # thread of its own, because a notebook has a loop in this one.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, _reach(scheduler)).result()
        return Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise StudyError(f"no Dask scheduler answers at {shown(scheduler)}: {error}") from None


def _wait_for_workers(
    client: Client, count: int, check: Callable[[], None], say: Callable[[str], None]
) -> list[str]:
    """Waits until so many workers are there; returns their addresses."""
    waited = 0.0
    while len(found := list(client.nthreads())) < count:
        check()
        if waited == CONNECT_SECONDS:
            say("waiting for a worker")
        waited += POLL_SECONDS
        time.sleep(POLL_SECONDS)
    return found


def _ask(client: Client, setup: Setup, workers: Sequence[str]) -> Facts:
    """What there is in a worker."""
    sharing = Counter(map(get_address_host, workers))
    neighbours = {worker: sharing[get_address_host(worker)] for worker in workers}
    try:
        facts: Facts = client.submit(describe, setup, neighbours, pure=False).result()
    except ImportError as error:
        raise StudyError(f"the workers can't import what a run needs: {error}") from None
    theirs = json.loads(facts.provenance["versions"])["scbjax"]
    if theirs != scbjax.__version__:
        raise StudyError(f"the workers have scbjax {theirs}, and here is {scbjax.__version__}")
    return facts


def _plan(facts: Facts, study: Study, memory_bytes: int | None) -> Plan:
    """The plan of a study for a worker, as `plan_here` would make it there."""
    return make_plan(
        study,
        memory_bytes=facts.memory_bytes if memory_bytes is None else memory_bytes,
        device_count=facts.device_count,
        cache_bytes=CACHE_BYTES if facts.platform == "cpu" else None,
        measure=cost_of,
    )


# ------------------------------------------------------------------------------------- the engine


@dataclass(frozen=True)
class _Finished:
    """What has become of a chunk: its result, or the exception that its task ended with."""

    run: str
    index: int
    outcome: ChunkResult | Exception


class DaskEngine:
    """Runs chunks as tasks of a Dask scheduler; see `scbjax.sweep.engine.engines.Engine`.

    A chunk that was left in the middle is begun anew: checkpoints are for long trajectories in one
    process.

    Args:
        client: the connection to the scheduler.
        kind: what workers must have in common, of `scbjax.sweep.engine.here.provenance`.
        setup: how workers start JAX.
    """

    def __init__(self, client: Client, kind: Mapping[str, str], setup: Setup) -> None:
        self._client = client
        self._kind = kind
        self._setup = setup
        self._heard: queue.SimpleQueue[_Finished | dict[str, Any]] = queue.SimpleQueue()
        client.subscribe_topic(TOPIC, lambda event: self._heard.put(event[1]))

    def run(
        self, plan: Plan, indices: Sequence[int], session: Session
    ) -> Iterator[tuple[int, ChunkResult]]:
        """See :class:`scbjax.sweep.engine.engines.Engine`."""
        order = Order(uuid.uuid4().hex, Recipe.of(plan), self._kind, self._setup)
        waiting, futures = deque(indices), dict[int, Future]()
        board, crew = _Board(plan, session), _Crew(self._client, session)
        try:
            while waiting or futures:
                session.stop_if_asked()
                for _ in range(min(crew.size() - len(futures), len(waiting))):
                    index = waiting.popleft()
                    futures[index] = self._send(order, index)
                heard = self._next(order.run)
                if isinstance(heard, _Finished):
                    del futures[heard.index]
                    result = _result_of(heard)
                    board.finish(heard.index, result)
                    yield heard.index, result
                elif heard is not None:
                    board.note(heard)
            crew.look()  # a worker may have left since the last look
        finally:
            # Workers give up what nobody waits for, at the end of a segment.
            for future in futures.values():
                future.release()

    def _send(self, order: Order, index: int) -> Future:
        key = f"{TOPIC}-{order.run}-{index}"
        future = self._client.submit(run_chunk, order, index, key=key, pure=False)
        self._client.loop.add_callback(self._follow, order.run, index, future)
        return future

    async def _follow(self, run: str, index: int, future: Future) -> None:
        """Fetches a result as soon as it is there, without holding up the others."""
        try:
            outcome = await self._client.gather(future, asynchronous=True)
        except Exception as error:  # noqa: BLE001 - the thread that runs the study raises it
            outcome = error
        self._heard.put(_Finished(run, index, outcome))

    def _next(self, run: str) -> _Finished | dict[str, Any] | None:
        """What comes next of a run, or None if that takes long."""
        try:
            heard = self._heard.get(timeout=POLL_SECONDS)
        except queue.Empty:
            return None
        own = heard.run if isinstance(heard, _Finished) else heard["run"]
        return heard if own == run else None


def _result_of(finished: _Finished) -> ChunkResult:
    outcome, index = finished.outcome, finished.index
    if isinstance(outcome, KilledWorker):
        lost = outcome.allowed_failures + 1
        raise StudyError(
            f"chunk {index} was given up: {counted(lost, 'worker')} ended with it under way; "
            "if memory ran out, make chunks smaller with --memory"
        )
    if isinstance(outcome, CancelledError):
        raise StudyError(
            f"the connection to the scheduler was lost while chunk {index} ran; finished chunks "
            f"are saved, and the same command goes on from there"
        )
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


class _Board:
    """Makes segments of what workers report, so that each record is counted once."""

    def __init__(self, plan: Plan, session: Session) -> None:
        self._plan = plan
        self._session = session
        self._compiling: set[int] = set()
        self._exceeding: set[tuple[int, int | None]] = set()
        self._records: Counter[int] = Counter()
        self._metric = math.nan
        self._counted_at = time.monotonic()

    def note(self, message: Mapping[str, Any]) -> None:
        """Passes on that a worker compiles a program, what one takes, or that a segment ended."""
        if "program" not in message:
            self._metric = message["metric"]
            self._count(message["index"], message["records_done"], message["seconds"])
        elif "taken" in message:
            self._exceeds(message["program"], Memory(*message["taken"]), message["block"])
        elif message["program"] not in self._compiling:
            self._compiling.add(message["program"])
            self._session.compiling(self._plan.programs[message["program"]])

    def _exceeds(self, index: int, taken: Memory, block: int | None) -> None:
        """Passes on what all workers find that compile the program, once."""
        if (index, block) not in self._exceeding:
            self._exceeding.add((index, block))
            self._session.exceeding(self._plan.programs[index], taken, block)

    def finish(self, index: int, result: ChunkResult) -> None:
        """Counts what is left of a chunk: its last report may be late."""
        program = self._plan.programs[self._plan.chunks[index].program]
        self._count(index, program.num_records, result.run_seconds)

    def _count(self, index: int, records_done: int, seconds: float) -> None:
        """A chunk that is done again counts from where the lost worker was."""
        new = records_done - self._records[index]
        if new <= 0:
            return
        self._records[index] = records_done
        now = time.monotonic()
        # Workers' seconds overlap, and between two reports may lie a compilation.
        seconds, self._counted_at = min(seconds, now - self._counted_at), now
        chunk = self._plan.chunks[index]
        self._session.listen(Segment(chunk, new, records_done, seconds, self._metric, None))


class _Crew:
    """The workers that there are, and who comes and goes."""

    def __init__(self, client: Client, session: Session) -> None:
        self._client = client
        self._session = session
        self._workers: set[str] | None = None
        self._looked_at = -math.inf

    def size(self) -> int:
        """How many there are."""
        if time.monotonic() - self._looked_at >= POLL_SECONDS:
            self.look()
        return len(self._workers or ())

    def look(self) -> None:
        """Tells the user who has come or left since the last look."""
        # Where the scheduler is silent nothing is known: its end cancels what is under way.
        with contextlib.suppress(OSError, TimeoutError):
            self._compare()
        self._looked_at = time.monotonic()

    def _compare(self) -> None:
        found = set(self._client.nthreads(callback_timeout=CONNECT_SECONDS))
        before, self._workers = self._workers, found
        if before is None:
            return
        count = f"there {'is' if len(found) == 1 else 'are'} now {len(found)}"
        for address in sorted(before - found):
            self._session.say(f"the worker {address} has left; {count}")
        for address in sorted(found - before):
            self._session.say(f"the worker {address} has joined; {count}")
