"""Sweeps as benchmarks run them: a study in memory, through the planner and the executor."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from _measure import Payload

if TYPE_CHECKING:
    from scbjax.sweep.plan import Plan

STUDY = """
title = "A benchmark"
[task]
num_tokens = {num_tokens}
context_length = {context_length}
sparsity = 2
[train]
batch_size = {batch_size}
steps = {steps}
record_every = {steps}
[record]
variables = ["attention_distance"]
[axes]
seed = {{ range = [0, {seeds}] }}
{arms}
"""


def plan_sweep(
    *,
    num_tokens: int,
    context_length: int,
    batch_size: int,
    steps: int,
    seeds: int,
    arms: int = 1,
    memory_bytes: int | None = None,
) -> Plan:
    """The plan of a study on the devices of this process.

    Args:
        num_tokens: N.
        context_length: T.
        batch_size: B.
        steps: steps of each trajectory.
        seeds: tasks with mini-batches of their own.
        arms: l1 weights that share the mini-batches of each seed.
        memory_bytes: the planner's budget.

    """
    from scbjax.sweep.execute import plan_here
    from scbjax.sweep.study import parse_study

    weights = [1e-6 * (arm + 1) for arm in range(arms)]
    text = STUDY.format(
        num_tokens=num_tokens,
        context_length=context_length,
        batch_size=batch_size,
        steps=steps,
        seeds=seeds,
        arms=f"l1 = {weights}" if arms > 1 else "",
    )
    study = parse_study(text, "benchmark")
    return plan_here(study, memory_bytes=memory_bytes)


def run_sweep(plan: Plan) -> Payload:
    """Runs all chunks of a plan on the devices of this process; nothing is stored.

    Returns:
        Chunks, the planner's estimate of the memory, and seconds: in the compiler, in steps, and
        from the first chunk to the last.
    """
    from scbjax.sweep.chunks import Executor

    executor = Executor(plan)
    begin = time.perf_counter()
    results = [executor.run(chunk.index) for chunk in plan.chunks]
    return {
        "trajectories": plan.num_trajectories,
        "chunks": len(plan.chunks),
        "planned_bytes": plan.memory_bytes,
        "compile_seconds": sum(result.compile_seconds for result in results),
        "run_seconds": sum(result.run_seconds for result in results),
        "seconds": time.perf_counter() - begin,
    }
