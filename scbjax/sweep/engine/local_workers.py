"""A Dask scheduler in this process, with worker processes of this machine.

On GPUs a worker is started for each device, and sees no other. On CPUs a worker gets a few cores: a
process of its own compiles its own programs and holds its own memory, which a worker for each core
would multiply; and where a study has several programs, workers run them side by side, which the
devices of one process can't.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import dask.config
from distributed import LocalCluster

from scbjax.base import StudyError
from scbjax.sweep.engine.backend import probe_devices, usable_cores

CORES_PER_WORKER = 4
"""Of a CPU. So many are kept busy by trajectories of one program that are split over them."""
DEATH_SECONDS = 60
"""Time after which a worker ends whose scheduler is gone, as when this process was killed."""
END_SECONDS = 5.0
"""Time that a worker has to end when it is told to."""

_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class LocalWorkers:
    """Workers that were started.

    Attributes:
        address: of their scheduler.
        count: number of workers.
        check: raises a `StudyError` if all of them have ended.
    """

    address: str
    count: int
    check: Callable[[], None]


@contextlib.contextmanager
def local_workers(cpu_devices: int | None) -> Iterator[LocalWorkers]:
    """Starts a scheduler and workers, and ends them with the context.

    Args:
        cpu_devices: devices that each worker makes of the CPU, if it was said.
    """
    environments = worker_environments(*probe_devices(), usable_cores(), cpu_devices)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        # Where the scheduler has its lock files, which it leaves behind.
        stack.enter_context(dask.config.set({"temporary-directory": folder}))
        scheduler = stack.enter_context(
            LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0")
        )
        address: str = scheduler.scheduler_address
        running = [
            stack.enter_context(_worker(address, folder, environment))
            for environment in environments
        ]

        def check() -> None:
            if all(worker.poll() is not None for worker in running):
                raise StudyError("the worker processes ended before they began; they say why above")

        yield LocalWorkers(address, len(running), check)


def worker_environments(
    platform: str,
    device_count: int,
    cores: int,
    cpu_devices: int | None,
    environ: Mapping[str, str] = os.environ,
) -> list[dict[str, str]]:
    """What each worker on this machine is to have in its environment beside what is there.

    Args:
        platform: of the devices that JAX finds here.
        device_count: number of these.
        cores: that this process may use.
        cpu_devices: devices that each worker makes of the CPU, if it was said.
        environ: the environment.

    >>> worker_environments("gpu", 2, 16, None, {"CUDA_VISIBLE_DEVICES": "2,3"})
    [{'CUDA_VISIBLE_DEVICES': '2'}, {'CUDA_VISIBLE_DEVICES': '3'}]
    >>> worker_environments("cpu", 1, 16, None, {})
    [{}, {}, {}, {}]
    """
    if platform == "gpu":
        named = environ.get(_VISIBLE)
        devices = named.split(",") if named else [str(n) for n in range(device_count)]
        return [{_VISIBLE: device} for device in devices[:device_count]]
    if platform == "cpu":
        return [{} for _ in range(max(1, cores // (cpu_devices or CORES_PER_WORKER)))]
    return [{}]  # the cores of a TPU belong to one process


@contextlib.contextmanager
def _worker(
    scheduler: str, folder: str, environment: Mapping[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    """A worker process, and its nanny that starts it again if it dies."""
    options = {
        "--nworkers": "1",
        "--nthreads": "1",
        "--memory-limit": "0",  # the planner sees to that; else Dask would pause a worker at 80%
        "--death-timeout": str(DEATH_SECONDS),
        "--local-directory": folder,
    }
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "distributed.cli.dask_worker", scheduler, "--no-dashboard"),
            *(word for option in options.items() for word in option),
        ],
        env={"DASK_LOGGING__DISTRIBUTED": "error", **os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for this process to answer
    )
    try:
        yield process
    finally:
        _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)
    # The worker itself may outlast its nanny.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
