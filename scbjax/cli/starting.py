"""Starts JAX, or workers of Dask, as the options say."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from scbjax.cli.printing import note
from scbjax.sweep.engine.places import checked_path, dask_place, start_jax

if TYPE_CHECKING:
    from scbjax.sweep.engine.here import Place


def prepare_jax(cpu_devices: str, compilation_cache: str | None) -> None:
    """Starts JAX on as many devices of the CPU, with compiled programs kept in a folder."""
    from scbjax.sweep.engine.backend import keep_programs, read_cpu_devices

    count = read_cpu_devices(cpu_devices)
    told = keep_programs(None if compilation_cache is None else checked_path(compilation_cache))
    if told is not None:
        note(told)
    start_jax(count)


def dask_workers(
    scheduler: str | None, cpu_devices: str, compilation_cache: str | None
) -> AbstractContextManager[Place]:
    """Where a study runs in workers of Dask: those of a scheduler, or some of this machine."""
    from scbjax.sweep.engine.backend import read_cpu_devices

    folder = None if compilation_cache is None else checked_path(compilation_cache)
    return dask_place(scheduler, read_cpu_devices(cpu_devices), folder, note)
