"""What a trajectory costs: bytes and seconds, estimated from its sizes without JAX.

The constants are fits to measurements on two CPU cores in float32; other devices need other
seconds, and about the same bytes.
"""

import math
import os
from collections.abc import Mapping
from typing import Any

# Share of the host's memory that chunks use by default: the rest is for the compiler, for results
# on their way to the disk and for everybody else.
MEMORY_SHARE = 0.5

_FLOAT = 4  # bytes of a float32 or int32

# Arrays of the size of A [T, N] that are alive at the peak of a step: A itself, Q and its
# distribution function, the optimizer's copies, the gradient and the update.
_ATTENTION_COPIES = 8
# Bytes per token of a batch: the random word and the token for each outer point; look-ups of a
# weight and of a gradient for each trajectory.
_OUTER_BYTES_PER_TOKEN = 9
_INNER_BYTES_PER_TOKEN = 8

COMPILE_SECONDS = 8.0
"""Compilation of one program."""

# Seconds per token: drawing it (for each outer point), and learning from it (for each trajectory).
_DRAW_SECONDS = 5e-9
_LEARN_SECONDS = 5e-9
# Seconds per entry of A and step, for the preconditioner, the proximal step and the projection.
_UPDATE_SECONDS = 5e-9


def tokens_per_trajectory(values: Mapping[str, Any]) -> int:
    """Context tokens that one trajectory reads: B T in each step."""
    return int(values["train.steps"]) * _tokens_per_step(values)


def _tokens_per_step(values: Mapping[str, Any]) -> int:
    return int(values["train.batch_size"]) * int(values["task.context_length"])


def _attention_size(values: Mapping[str, Any]) -> int:
    return int(values["task.context_length"]) * int(values["task.num_tokens"])


def outer_bytes(values: Mapping[str, Any]) -> int:
    """Memory for what the trajectories of one outer point share: the batch."""
    return _OUTER_BYTES_PER_TOKEN * _tokens_per_step(values)


def trajectory_bytes(values: Mapping[str, Any]) -> int:
    """Memory for one trajectory: its state, its temporaries and its records."""
    records = int(values["train.steps"]) // int(values["train.record_every"]) + 1
    size = _FLOAT * len(values["record.variables"]) * records
    size += _ATTENTION_COPIES * _FLOAT * _attention_size(values)
    return size + _INNER_BYTES_PER_TOKEN * _tokens_per_step(values)


def chunk_bytes(values: Mapping[str, Any], shape: tuple[int, int]) -> int:
    """Estimated peak memory of a chunk, in bytes over all devices.

    Args:
        values: the fields that are fixed in the chunk's program, by dotted path.
        shape: points along the outer and the inner layer.
    """
    outer, inner = shape
    return outer * (outer_bytes(values) + inner * trajectory_bytes(values))


def run_seconds(values: Mapping[str, Any], shape: tuple[int, int]) -> float:
    """Estimated time of a grid of (outer, inner) trajectories on two CPU cores, once compiled."""
    outer, inner = shape
    tokens, entries = _tokens_per_step(values), _attention_size(values)
    learn = inner * (_LEARN_SECONDS * tokens + _UPDATE_SECONDS * entries)
    return int(values["train.steps"]) * outer * (_DRAW_SECONDS * tokens + learn)


def default_memory_bytes() -> int:
    """The default budget for chunks: a share of the memory that the host has, used or not.

    The total, not what happens to be free: the same study on the same machine is cut the same way.
    """
    return int(MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def readable_bytes(size: float) -> str:
    """A number of bytes for people.

    >>> readable_bytes(3 * 2**30)
    '3.0 GiB'
    """
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(int(math.log(max(size, 1), 1024)), len(units) - 1)
    return f"{size / 1024**power:.{0 if power == 0 else 1}f} {units[power]}"
