"""Peak memory of training, each case in a process of its own.

T = 5000 and B = 64. This library runs a sweep of S trajectories in one chunk through the executor,
and the planner's estimate stands beside; the peers run one trajectory. Each case is run twice in
its process: the first time compiles and loads what is needed, then the kernel's mark of the peak is
reset, and what counts is how far the second time rises above the memory that is in use then. The C
library is told to give back at once what is freed: what it kept for reuse would hide a part of the
second time's needs. One case is a whole study of 4096 trajectories with the default records and a
budget of 2 GiB, planned, run and stored as by `scbjax run`, with the C library as it is; for it and
all others the peak of the whole process is stored too, with Python, JAX and the compiler. On a
device with memory of its own its allocator's peak is measured, and peers are left out.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _measure import Payload, digits, in_process, run_script, say, use_every_core
from _pictures import colour_of, new_figure
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from scbjax.sweep.plan.plans import Plan

OURS = "scbjax"
STUDY = "scbjax, a study within 2 GiB"
# N, T, B, S.
SIZES = (
    (3, 5000, 64, 1),
    (3, 5000, 64, 32),
    (20, 5000, 64, 1),
    (20, 5000, 64, 32),
    (300, 5000, 64, 1),
    (300, 5000, 64, 8),
)
QUICK_SIZES = ((3, 2000, 32, 1), (3, 2000, 32, 2))
STUDY_SIZE, QUICK_STUDY_SIZE = (3, 5000, 64, 4096), (3, 100, 4, 64)
STUDY_MEMORY = 2 * 2**30
STEPS = 4
ONE_CHUNK = 2**40  # a budget that no case reaches
RESET_PEAK = "5"  # what proc(5) says that clear_refs takes for it
# Above it an array has pages of its own. A size that is set stays; the default one grows.
FREED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}


def measure(quick: bool) -> Payload:
    """Runs a process for each implementation and size."""
    import jax
    from _peers import available_peers

    sizes = QUICK_SIZES if quick else SIZES
    cases = [(OURS, size) for size in sizes]
    cases.append((STUDY, QUICK_STUDY_SIZE if quick else STUDY_SIZE))
    if jax.devices()[0].platform == "cpu":
        single = [size for size in sizes if size[3] == 1]
        cases += [(name, size) for name in available_peers() for size in single]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda case: _process(*case), cases))
    keys = ("num_tokens", "context_length", "batch_size", "trajectories")
    rows = []
    for (name, size), row in zip(cases, found, strict=True):
        planned = row["planned_bytes"]
        share = "" if planned is None else f", planned {planned / 2**20:.0f} MiB"
        process = f"{row['process_bytes'] / 2**20:.0f} MiB with the process"
        say(f"{name}, N, T, B, S = {size}: {row['bytes'] / 2**20:.1f} MiB, {process}{share}")
        rows.append({"name": name, **dict(zip(keys, size, strict=True)), **row})
    return {"steps": STEPS, "rows": rows}


def _process(name: str, size: tuple[int, ...]) -> Payload:
    environ = {} if name == STUDY else FREED_AT_ONCE
    return in_process(Path(__file__).name, "--worker", name, *map(str, size), environ=environ)


def work(
    name: str, num_tokens: int, context_length: int, batch_size: int, trajectories: int
) -> int:
    """What a process of its own does: trains, and prints its peak."""
    size = (num_tokens, context_length, batch_size, trajectories)
    if name == STUDY:
        use_every_core()
    cases = {OURS: _library_case, STUDY: _study_case}
    train, planned = cases[name](*size) if name in cases else _peer_case(name, *size)
    train()
    whole, before = peak_bytes(), _reset_peak()
    train()
    rise = peak_bytes() - before
    found = {"bytes": rise, "process_bytes": max(whole, before + rise), "planned_bytes": planned}
    print(json.dumps(found))
    return 0


def _plan(size: Sequence[int], **rest: Any) -> Plan:  # noqa: ANN401 - as plan_sweep takes it
    from _studies import plan_sweep

    num_tokens, context_length, batch_size, trajectories = size
    return plan_sweep(
        num_tokens=num_tokens,
        context_length=context_length,
        batch_size=batch_size,
        steps=STEPS,
        seeds=trajectories,
        **rest,
    )


def _library_case(*size: int) -> tuple[Callable[[], object], int | None]:
    """What trains a sweep, and the planner's estimate."""
    from scbjax.sweep.engine.chunks import Executor

    plan = _plan(size, memory_bytes=ONE_CHUNK)
    executor = Executor(plan)
    return lambda: executor.run(0), plan.memory_bytes


def _study_case(*size: int) -> tuple[Callable[[], object], int | None]:
    """What runs and stores a study as the command does, and the planner's estimate."""
    from scbjax.recorded import DEFAULT_RECORD
    from scbjax.sweep.engine.chunks import Executor
    from scbjax.sweep.engine.engines import LocalEngine
    from scbjax.sweep.engine.execute import run_study
    from scbjax.sweep.engine.progress import SilentProgress

    plan = _plan(size, memory_bytes=STUDY_MEMORY, record=DEFAULT_RECORD)
    executor = Executor(plan)  # kept, so that the second time compiles nothing

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            engine = LocalEngine(lambda _: executor)
            run_study(plan, Path(folder) / "out", progress=SilentProgress(), engine=engine)

    return run, plan.memory_bytes


def _peer_case(name: str, *size: int) -> tuple[Callable[[], object], int | None]:
    """What trains one trajectory of a peer, which has no estimate."""
    from _library import Size
    from _peers import PEERS, host_tasks

    ((task, rule, params),) = host_tasks(Size(*size))

    def train() -> None:
        peer = PEERS[name](task, rule, params, 0)
        for _ in range(STEPS):
            peer.step(peer.draw())
        peer.wait()

    return train, None


def _reset_peak() -> int:
    """Resets the mark of the peak; returns the bytes in use."""
    import jax

    gc.collect()
    if jax.devices()[0].platform != "cpu":
        return 0
    # What was freed but kept for reuse would hide what the second time needs.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text(RESET_PEAK, encoding="ascii")
    return _status_bytes("VmRSS")


def peak_bytes() -> int:
    """The most that this process, or its device, has held since the mark was reset."""
    import jax

    device = jax.devices()[0]
    if device.platform == "cpu":
        return _status_bytes("VmHWM")
    return int((device.memory_stats() or {})["peak_bytes_in_use"])


def _status_bytes(name: str) -> int:
    # Not ru_maxrss, which would also count the process that this one was forked from.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return int(lines[name].split()[0]) * 1024


def draw(payload: Payload) -> Figure:
    """Mebibytes of every case."""
    figure, (axes,) = new_figure(height=3.4)
    rows = payload["rows"][::-1]
    for place, row in enumerate(rows):
        size = row["bytes"] / 2**20
        axes.plot(size, place, "o", color=colour_of(row["name"]))
        axes.annotate(digits(size), (size, place), (4, 0), textcoords="offset points", va="center")
        if row["planned_bytes"] is not None:
            axes.plot([row["planned_bytes"] / 2**20] * 2, [place - 0.4, place + 0.4], color="black")
    labels = [f"{row['name']}, N = {row['num_tokens']}, S = {row['trajectories']}" for row in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.set(xscale="log", xlabel="MiB; black: the planner's estimate")
    axes.grid(visible=False)
    return figure


def _main() -> int:
    if sys.argv[1:2] != ["--worker"]:
        return run_script("memory", __doc__, measure, draw)
    parser = argparse.ArgumentParser()
    parser.add_argument("--worker")
    parser.add_argument("size", type=int, nargs=4)
    arguments = parser.parse_args()
    return work(arguments.worker, *arguments.size)


if __name__ == "__main__":
    sys.exit(_main())
