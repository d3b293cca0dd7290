"""How much memory chunks may take, and what trajectories take of which nobody has said it."""

import math
import os

# Share of the host's memory that chunks use by default: the rest is for the compiler, for results
# on their way to the disk and for everybody else.
MEMORY_SHARE = 0.5

COMPILE_SECONDS = 7.0
"""Compilation of one program."""


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
