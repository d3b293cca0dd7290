"""This process as a place to run in: its plan, its memory, and what its results depend on."""

import json
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax

import scbjax
from scbjax.costs import CACHE_BYTES
from scbjax.keys import THREEFRY
from scbjax.sweep.engine.chunks import Executor
from scbjax.sweep.engine.engines import Engine, LocalEngine
from scbjax.sweep.plan import cost
from scbjax.sweep.plan.measured import cost_of
from scbjax.sweep.plan.plans import Plan, make_plan
from scbjax.sweep.study.files import Study


@dataclass(frozen=True)
class Place:
    """Where studies run.

    Attributes:
        plan: makes the plan of a study for it, as `plan_here` does for this process.
        engine: runs chunks there.
        facts: its `provenance`.
    """

    plan: Callable[[Study, int | None], Plan]
    engine: Engine
    facts: Mapping[str, str]


# What a dataset is written with; xarray asks for the last two where they are installed.
_WRITING = ("xarray", "h5netcdf", "dask.array", "distributed")


def here(ahead: Sequence[str] = ()) -> Place:
    """This process, as a place where studies run.

    Args:
        ahead: modules that it will need after a run, beside those that write the dataset: they are
            loaded while the compiler works.
    """
    executor = partial(Executor, ahead=(*_WRITING, *ahead))
    return Place(plan_here, LocalEngine(executor), provenance())


def plan_here(study: Study, memory_bytes: int | None = None) -> Plan:
    """The plan of a study for the devices of this process.

    Args:
        study: the study.
        memory_bytes: budget of a chunk over all devices; None for a share of what they have.

    Returns:
        The plan: in blocks for the cache on CPUs, and all at once on accelerators.

    Raises:
        StudyError: a single trajectory does not fit the budget.
    """
    devices = jax.local_devices()
    return make_plan(
        study,
        memory_bytes=device_memory_bytes() if memory_bytes is None else memory_bytes,
        device_count=len(devices),
        cache_bytes=CACHE_BYTES if devices[0].platform == "cpu" else None,
        measure=cost_of,
    )


def device_memory_bytes() -> int | None:
    """The share of their own memory that chunks use by default; None where devices have none."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if not all(stats):  # CPUs share the host's memory
        return None
    return int(cost.MEMORY_SHARE * sum(int(stat["bytes_limit"]) for stat in stats if stat))


def provenance() -> dict[str, str]:
    """What results depend on beside the study: versions, device, random numbers, commit."""
    names = ("scbjax", "jax", "jaxlib", "numpy", "optax")
    devices = jax.local_devices()
    kinds = sorted({f"{device.platform} {device.device_kind}" for device in devices})
    return {
        "versions": json.dumps(
            {"python": platform.python_version()} | {name: _version(name) for name in names}
        ),
        "device": f"{len(devices)} x {', '.join(kinds)}",
        "rng_implementation": f"{THREEFRY}, partitionable True",
        "git_commit": _git_commit(),
    }


def _version(name: str) -> str:
    if name == "scbjax":
        return scbjax.__version__
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def _git_commit() -> str:
    """The commit of the checkout that the library runs from, with a mark if it was changed."""
    checkout = Path(scbjax.__file__).parents[1]
    if not (checkout / ".git").exists():
        return "unknown"
    try:
        git = ["git", "-C", str(checkout)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, check=True)
        status = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.decode().strip() + ("-changed" if status.stdout.strip() else "")
