"""What a compiled program takes against the budget: what is done, and what is said, if it is more.

A plan is made of estimates (:class:`scbjax.base.Cost`), since the compiler takes seconds; it is
asked once a program is compiled anyway, before any of its chunks runs.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from scbjax.sweep.plan.cost import readable_bytes
from scbjax.sweep.plan.plans import Plan
from scbjax.sweep.plan.programs import Program


class Memory(NamedTuple):
    """Bytes that a chunk takes over all its devices, as the compiler says.

    Attributes:
        kept: what it holds all the time: inputs, tasks, states and records.
        temporary: what it holds of the blocks that are worked on.
    """

    kept: int
    temporary: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.kept + self.temporary


def in_smaller_blocks(plan: Plan, index: int, taken: Memory) -> Plan | None:
    """The plan with the largest smaller blocks of a program that are likely to fit the budget.

    Chunks stay as they are: a block is a part of one, and temporaries are those of the blocks that
    devices work on. It follows from the arguments alone, so that all who run chunks of the plan, on
    devices of the same kind, come to the same.

    Args:
        plan: the plan.
        index: of the program.
        taken: what a chunk of it takes.

    Returns:
        The plan; None if there are no such blocks, or if they are settled.
    """
    if plan.budget is None or index in plan.settled:
        return None
    whole = plan.programs[index]
    for size in range(whole.block - 1, 0, -1):
        if whole.block % size == 0:
            smaller = plan.in_blocks(index, size)
            share = size * smaller.programs[index].devices / (whole.block * whole.devices)
            if taken.kept + share * taken.temporary <= plan.budget:
                return smaller
    return None


def told(program: Program, taken: Memory, budget: int, block: int | None) -> str:
    """One line on a program that takes more than the budget, and on what comes of it.

    Args:
        program: as it was compiled.
        taken: what it takes.
        budget: for a chunk, in bytes.
        block: outer points of the blocks that it is compiled in anew; None if it runs as it is.
    """
    head = (
        f"a chunk of program {program.index + 1} takes {readable_bytes(taken.total)}, says the "
        f"compiler; the estimate was {readable_bytes(program.memory_bytes)}, and the budget is "
        f"{readable_bytes(budget)}: "
    )
    if block is not None:
        return head + f"it is compiled anew in blocks of {block}, not {program.block} points"
    if program.chunk_shape == (1, 1):
        allowing = _as_option(taken.total, math.ceil)
        return head + f"it is one trajectory and runs as it is; --memory {allowing} allows it"
    one = program.cost.chunk_bytes(program.fixed, (1, 1), 1)  # with less there is no plan
    fitting = budget / taken.total * program.memory_bytes
    option = _as_option(fitting, math.floor) if fitting > one else _as_option(one, math.ceil)
    return head + f"it runs as it is; for smaller chunks, begin anew with --memory {option}"


def _as_option(size: float, rounded: Callable[[float], int]) -> str:
    """A size as --memory takes it, to two digits or more."""
    for unit, count in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= 10 * count:
            return f"{rounded(size / count)}{unit}"
    return f"{rounded(size)}B"
