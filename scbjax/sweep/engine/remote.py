"""What a worker process does for a run on many machines: it starts JAX, and runs chunks.

Dask sends a function by its name, so that the same release of this library must be installed where
workers run. What comes with it is data: the text of the study and how it is cut, not code.
"""

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

import jax
from distributed import Reschedule, get_worker
from distributed.worker import WORKER_ANY_RUNNING

from scbjax.base import StudyError
from scbjax.sweep.engine.backend import (
    cpu_device_count,
    keep_programs,
    make_cpu_devices,
    usable_cores,
)
from scbjax.sweep.engine.chunks import ChunkResult, Executor, Segment
from scbjax.sweep.engine.here import device_memory_bytes, provenance
from scbjax.sweep.engine.memory import Memory
from scbjax.sweep.plan import cost
from scbjax.sweep.plan.plans import Layout, Plan, plan_with_layout
from scbjax.sweep.plan.programs import Program
from scbjax.sweep.study.definition import to_toml
from scbjax.sweep.study.experiments import experiments_in
from scbjax.sweep.study.files import parse_study
from scbjax.sweep.study.own import own_experiments

TOPIC = "scbjax"
"""Of the events by which workers report how far they are."""
KEPT_PLANS = 2
"""Plans whose compiled programs a worker keeps: the present one, and that of another client."""

# A worker with several threads is sent several chunks, each of which is meant to have all memory.
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Facts:
    """What a worker has: plans are made for it, and results depend on it.

    Attributes:
        platform: of its devices, such as ``"cpu"``.
        device_count: its devices.
        memory_bytes: memory for chunks.
        provenance: versions, device and random numbers, as in a dataset's attributes.
    """

    platform: str
    device_count: int
    memory_bytes: int
    provenance: Mapping[str, str]


@dataclass(frozen=True)
class Recipe:
    """A plan as it is sent.

    Attributes:
        name: of the study.
        study: its text.
        fingerprint: of the study.
        layout: how the programs are cut.
        devices: how many devices share a chunk of each program.
        device_count: devices that the plan was made for.
        experiment: the text of the file of an experiment of the user's; empty for the library's.
        budget: memory that a chunk may take, as the plan has it.
        settled: programs whose blocks stay as they are.
    """

    name: str
    study: str
    fingerprint: str
    layout: Layout
    devices: tuple[int, ...]
    device_count: int
    experiment: str = ""
    budget: int | None = None
    settled: frozenset[int] = frozenset()

    @classmethod
    def of(cls, plan: Plan) -> "Recipe":
        """The recipe of a plan.

        Raises:
            StudyError: its experiment is not in a file that could be sent.
        """
        experiment = plan.study.experiment
        if not experiment.source and experiment.name not in own_experiments():
            raise StudyError(
                f"experiment {experiment.name!r} was made in Python and can't be sent to workers; "
                "write it to a file and load that, or use the local engine"
            )
        return cls(
            name=plan.study.name,
            study=to_toml(plan.study),
            fingerprint=plan.fingerprint,
            layout=plan.layout,
            devices=tuple(program.devices for program in plan.programs),
            device_count=plan.device_count,
            experiment=experiment.source,
            budget=plan.budget,
            settled=plan.settled,
        )

    def plan(self) -> Plan:
        """The plan.

        Raises:
            StudyError: the text is that of another study.
        """
        source = self.experiment
        experiments = experiments_in(source, "the experiment's file") if source else ()
        study = parse_study(self.study, self.name, experiments=experiments)
        plan = plan_with_layout(study, self.layout, device_count=self.device_count)
        if plan.fingerprint != self.fingerprint:
            raise StudyError(
                f"the study has the fingerprint {plan.fingerprint[:8]} where it arrived, not "
                f"{self.fingerprint[:8]}: is scbjax there another version?"
            )
        shares = zip(plan.programs, self.devices, strict=True)
        programs = tuple(replace(p, devices=n) for p, n in shares)
        return replace(plan, programs=programs, budget=self.budget, settled=self.settled)


@dataclass(frozen=True)
class Order:
    """What all chunks of a run have in common.

    Attributes:
        run: a name for the run.
        recipe: its plan.
        kind: the part of `Facts.provenance` in which workers must agree.
        setup: how workers start JAX.
    """

    run: str
    recipe: Recipe
    kind: Mapping[str, str]
    setup: "Setup"


@dataclass(frozen=True)
class Setup:
    """How workers start JAX, which a worker does once.

    Attributes:
        cpu_devices: devices to make of the CPU; None for a number that suits.
        compilation_cache: where compiled programs are kept, as for `keep_programs`.
    """

    cpu_devices: int | None = None
    compilation_cache: str | None = None

    def start(self, suitable: int) -> None:
        """Sets up JAX, unless it runs already or the environment says how.

        Args:
            suitable: the number of CPU devices that suits.
        """
        settled = cpu_device_count(None) is None
        count = suitable if self.cpu_devices is None and not settled else self.cpu_devices
        _start(count, self.compilation_cache)


def describe(setup: Setup, neighbours: Mapping[str, int]) -> Facts:
    """Starts JAX in this worker, if it has not started yet, and says what there is.

    Args:
        setup: how to start it. Left open, a worker has a CPU device for each core that it may use,
            and no more than its part of the host's.
        neighbours: by the address of a worker, how many share its host, itself included.
    """
    sharing = neighbours.get(get_worker().address, 1)
    part = max(1, (os.cpu_count() or 1) // sharing)
    with _one_at_a_time:
        setup.start(min(usable_cores(), part))
        memory = device_memory_bytes() or cost.default_memory_bytes() // sharing
        devices = jax.local_devices()
        return Facts(devices[0].platform, len(devices), memory, provenance())


def kind_of(facts: Mapping[str, str]) -> dict[str, str]:
    """The part of a `provenance` that results depend on by more than rounding, or by rounding."""
    return {name: value for name, value in facts.items() if name != "git_commit"}


def run_chunk(order: Order, index: int) -> ChunkResult:
    """Runs one chunk as the task of a worker.

    Args:
        order: the run that it belongs to.
        index: its place in the plan.

    Raises:
        StudyError: this worker's results would differ from those of the others.
        Reschedule: nobody waits for it any longer.
    """
    worker = get_worker()
    key = worker.get_current_task()

    def tell(**message: Any) -> None:  # noqa: ANN401 - what msgpack can send
        worker.log_event(TOPIC, {"run": order.run, **message})

    def compiling(program: Program) -> None:
        tell(program=program.index)

    def exceeding(program: Program, taken: Memory, block: int | None) -> None:
        tell(program=program.index, taken=list(taken), block=block)

    def listen(segment: Segment) -> None:
        _check_wanted(worker, key)
        seconds, metric = segment.seconds, segment.metric
        tell(index=index, records_done=segment.records_done, seconds=seconds, metric=metric)

    with _one_at_a_time:
        _check_wanted(worker, key)
        order.setup.start(order.recipe.device_count)
        _check_kind(worker.address, order.kind)
        executor = _executor(order.recipe)
        return executor.run(index, listen=listen, compiling=compiling, exceeding=exceeding)


def _check_wanted(worker: Any, key: str) -> None:  # noqa: ANN401 - the package has no types for us
    """Gives up a chunk whose run was stopped, or which was given to another worker."""
    task = worker.state.tasks.get(key)
    if task is None or task.state == "cancelled" or worker.status not in WORKER_ANY_RUNNING:
        raise Reschedule


def _check_kind(address: str, kind: Mapping[str, str]) -> None:
    own = kind_of(_own_provenance())
    for name, value in kind.items():
        if own[name] != value:
            raise StudyError(
                f"the worker {address} differs from the one that the plan was made for in its "
                f"{name}: {own[name]}, not {value}; results would depend on who computes them"
            )


@cache
def _own_provenance() -> dict[str, str]:
    return provenance()


@lru_cache(maxsize=KEPT_PLANS)
def _executor(recipe: Recipe) -> Executor:
    return Executor(recipe.plan())


@lru_cache(maxsize=1)
def _start(cpu_devices: int | None, compilation_cache: str | None) -> None:
    keep_programs(compilation_cache)
    make_cpu_devices(cpu_devices)
