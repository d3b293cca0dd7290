"""What trajectories take in bytes and in seconds, as an experiment declares it for plans.

Nothing here imports JAX.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from scbjax.values import Values

CACHE_BYTES = 7 * 2**19
"""Temporaries of a block on a CPU: a core's second cache and a part of the third (measured at
T = 5000: with 3.5 MB, 4 trajectories at N = 3 and one from N = 20 on, steps are the fastest at
every N; with 8 MB they take a sixth longer at N = 20, and with 100 MB twice as long)."""


@dataclass(frozen=True)
class Cost:
    """What trajectories take, by the values that are fixed in their program.

    Bytes are those of one outer point where nothing else is said. They decide how a study is cut
    into chunks, and seconds what is said before and while it runs; results don't depend on them.
    They are a first guess: what a compiled chunk takes is compared with the budget before it runs.

    Attributes:
        shared_bytes: what the trajectories of an outer point share, such as a batch.
        kept_bytes: what a trajectory holds all the time: state, task and records.
        temporary_bytes: what a trajectory holds while it is worked on.
        step_bytes: what the steps of an outer point go through again and again, by the number of
            its inner points.
        run_seconds: time of a grid of (outer, inner) points on two CPU cores, once compiled.
        tokens: what a trajectory reads of its data.
        is_taken_singly: whether outer points are best taken one after the other on a CPU.
    """

    shared_bytes: Callable[[Values], int]
    kept_bytes: Callable[[Values], int]
    temporary_bytes: Callable[[Values], int]
    step_bytes: Callable[[Values, int], int]
    run_seconds: Callable[[Values, tuple[int, int]], float]
    tokens: Callable[[Values], int]
    is_taken_singly: Callable[[Values], bool]

    def block_bytes(self, values: Values, shape: tuple[int, int]) -> int:
        """Memory for the temporaries of the trajectories that are worked on together."""
        outer, inner = shape
        return outer * (self.shared_bytes(values) + inner * self.temporary_bytes(values))

    def chunk_bytes(self, values: Values, shape: tuple[int, int], block: int) -> int:
        """Estimated peak memory of a chunk that is run on one device, in bytes.

        Args:
            values: those that are fixed in the chunk's program.
            shape: points along the outer and the inner layer.
            block: outer points that are worked on at a time.
        """
        outer, inner = shape
        kept = outer * inner * self.kept_bytes(values)
        return kept + self.block_bytes(values, (block, inner))
