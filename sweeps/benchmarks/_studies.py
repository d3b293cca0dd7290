"""Sweeps as benchmarks run them: a study in memory, through the planner and the executor."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from _measure import Payload

if TYPE_CHECKING:
    from scbjax.sweep.plan.plans import Plan

STUDY = """
title = "A benchmark"
[task]
num_tokens = {num_tokens}
{length}
sparsity = 2
[train]
batch_size = {batch_size}
steps = {steps}
record_every = {steps}
{rate}
[record]
variables = {record}
[axes]
seed = {{ range = [0, {seeds}] }}
{arms}
{lengths}
"""


def plan_sweep(
    *,
    num_tokens: int,
    context_length: int | Sequence[int],
    batch_size: int,
    steps: int,
    seeds: int,
    arms: int = 1,
    memory_bytes: int | None = None,
    record: Sequence[str] = ("attention_distance",),
    rate: float | None = None,
) -> Plan:
    """The plan of a study on the devices of this process.

    Args:
        num_tokens: N.
        context_length: T; each of several values is a program of its own.
        batch_size: B.
        steps: steps of each trajectory.
        seeds: tasks with mini-batches of their own.
        arms: l1 weights that share the mini-batches of each seed.
        memory_bytes: the planner's budget.
        record: the variables that are recorded, before the first step and after the last.
        rate: that of the first stage; None for the default.
    """
    from scbjax.sweep.engine.here import plan_here
    from scbjax.sweep.study.files import parse_study

    weights = [1e-6 * (arm + 1) for arm in range(arms)]
    is_single = isinstance(context_length, int)
    text = STUDY.format(
        num_tokens=num_tokens,
        length=f"context_length = {context_length}" if is_single else "",
        batch_size=batch_size,
        steps=steps,
        rate="" if rate is None else f"learning_rate_1 = {rate}",
        seeds=seeds,
        record=list(record),
        arms=f"l1 = {weights}" if arms > 1 else "",
        lengths="" if is_single else f"context_length = {context_length}",
    )
    study = parse_study(text, "benchmark")
    return plan_here(study, memory_bytes=memory_bytes)


def run_sweep(plan: Plan, *, least_seconds: float = 0.0, most_times: int = 1) -> Payload:
    """Runs all chunks of a plan on the devices of this process; nothing is stored.

    Args:
        plan: what is run.
        least_seconds: a plan that takes less is run again, until this much time is spent.
        most_times: so many times at most.

    Returns:
        Chunks, programs compiled, the planner's estimate of the memory, and seconds: in the
        compiler, in steps (the median of all times), and from the first chunk to the last.
    """
    from scbjax.sweep.engine.chunks import Executor

    executor, compiled = Executor(plan), list[int]()
    begin = time.perf_counter()
    results = [
        executor.run(chunk.index, compiling=lambda program: compiled.append(program.index))
        for chunk in plan.chunks
    ]
    seconds = time.perf_counter() - begin
    compiling = sum(result.compile_seconds for result in results)
    taken = [sum(result.run_seconds for result in results)]
    while sum(taken) < least_seconds and len(taken) < most_times:
        taken.append(sum(executor.run(chunk.index).run_seconds for chunk in plan.chunks))
    return {
        "trajectories": plan.num_trajectories,
        "chunks": len(plan.chunks),
        "compiled": compiled,
        "planned_bytes": plan.memory_bytes,
        "compile_seconds": compiling,
        "run_seconds": statistics.median(taken),
        "times": len(taken),
        "seconds": seconds,
    }
