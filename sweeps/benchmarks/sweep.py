"""A sweep: S = 1 to 4096 trajectories through the planner and the executor, within 2 GiB.

N = 3, T = 5000, B = 64, a few steps each. Two kinds of axes: seeds, each with its own task and
mini-batches, and l1 weights that share the mini-batches of one seed. On a CPU both with one device,
whose kernels use the cores one after the other or together as XLA sees fit, and with a device for
each core. The processes of the two take turns. Ratios to a single trajectory are taken process by
process; what takes less than a second is run several times in each. A size that would take longer
than its time budget, by the time of the size before, is left out and said to be.

Then a mixed grid, three values of T by 8 seeds by 8 l1 weights, cut into several chunks: programs,
and how often XLA was called.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from _measure import Payload, digits, in_process, run_script, say, spread
from _pictures import COLOURS, new_figure
from _studies import plan_sweep, run_sweep
from matplotlib.figure import Figure

MEMORY = 2 * 2**30
SIZE = {"num_tokens": 3, "context_length": 5000, "batch_size": 64, "steps": 5}
QUICK_SIZE = {"num_tokens": 3, "context_length": 100, "batch_size": 4, "steps": 4}
SEEDS, QUICK_SEEDS = (1, 8, 64, 512, 4096), (1, 4)
ARMS, QUICK_ARMS = (1, 2, 4, 8, 16), (1, 4)
ROUNDS, QUICK_ROUNDS = 3, 1
BUDGET_SECONDS = 60.0
"""For one size in one process."""
REPEATED: dict[str, Any] = {"least_seconds": 1.0, "most_times": 30}
# Three programs, of 8 seeds by 8 l1 weights each, in chunks that hold only some of the seeds.
GRID_LENGTHS, QUICK_GRID_LENGTHS = [1000, 2000, 3000], [40, 60, 80]
GRID_SIDE = 8
COMPILATION = "/jax/core/compile/backend_compile_duration"
"""What JAX calls its event at the end of each compilation."""


def measure(quick: bool) -> Payload:
    """Runs processes with one and with all devices in turns."""
    import jax

    counts = sorted({1, os.cpu_count() or 1}) if jax.devices()[0].platform == "cpu" else [1]
    found: dict[int, list[Payload]] = {count: [] for count in counts}
    flags = ["--quick"] if quick else []
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(QUICK_ROUNDS if quick else ROUNDS):
            for count, taken in found.items():
                arguments = ("--worker", str(count), *flags)
                environ = {"JAX_COMPILATION_CACHE_DIR": cache}
                taken.append(in_process(Path(__file__).name, *arguments, environ=environ))
    series: list[Payload] = [
        {"devices": count, "axis": axis, "rows": _merge([payload[axis] for payload in taken])}
        for count, taken in found.items()
        for axis in ("seeds", "arms")
    ]
    for one in series:
        for row in one["rows"]:
            say(f"{one['devices']} devices, {row['trajectories']} {one['axis']}: {_told(row)}")
    grid = in_process(Path(__file__).name, "--grid", *flags)
    points = f"{len(grid['lengths'])} x {GRID_SIDE**2}"
    say(f"a grid of {points} points: {len(grid['compiled'])} programs")
    size = QUICK_SIZE if quick else SIZE
    return {**size, "memory_bytes": MEMORY, "series": series, "grid": grid}


def _told(row: Payload) -> str:
    if "left_out" in row:
        return str(row["left_out"])
    return f"{digits(row['run_seconds']['median'])} s in {row['chunks']} chunks"


def _merge(rounds: list[list[Payload]]) -> list[Payload]:
    """One row for each size, with the spread over rounds."""
    rows = []
    ones = [rows[0]["run_seconds"] for rows in rounds]
    for same in zip(*rounds, strict=True):
        done = [row for row in same if "left_out" not in row]
        pairs = zip(same, ones, strict=True)
        times = [row["run_seconds"] / one for row, one in pairs if "left_out" not in row]
        if not done:
            rows.append(same[0])
            continue
        seconds = [row["run_seconds"] for row in done]
        # Later rounds find their programs in a cache of compiled programs.
        compiling = max(row["compile_seconds"] for row in done)
        rows.append(
            {
                **done[0],
                "seconds": [row["seconds"] for row in done],
                "run_seconds": {"all": seconds, **spread(seconds)},
                "times_one": {"all": times, **spread(times)},
                "compile_seconds": compiling,
            }
        )
    return rows


def work(devices: int, quick: bool) -> int:
    """What a process of its own does: all sizes on the given number of devices."""
    import jax

    if devices > 1:
        jax.config.update("jax_num_cpu_devices", devices)
    size = QUICK_SIZE if quick else SIZE
    print(
        json.dumps(
            {
                "seeds": _run_sizes(size, "seeds", QUICK_SEEDS if quick else SEEDS),
                "arms": _run_sizes(size, "arms", QUICK_ARMS if quick else ARMS),
            }
        )
    )
    return 0


def _run_sizes(size: Payload, axis: str, values: tuple[int, ...]) -> list[Payload]:
    rows: list[Payload] = []
    expected = 0.0
    for index, value in enumerate(values):
        if expected > BUDGET_SECONDS:
            reason = f"left out: about {digits(expected)} s, more than {BUDGET_SECONDS:.0f} s"
            rows.append({"trajectories": value, "left_out": reason})
        else:
            points: dict[str, Any] = {"seeds": 1, axis: value}
            plan = plan_sweep(**size, **points, memory_bytes=MEMORY)
            rows.append(run_sweep(plan, **REPEATED))
            expected = rows[-1]["seconds"] - rows[-1]["compile_seconds"]
        expected *= values[min(index + 1, len(values) - 1)] / value
    return rows


def count_programs(quick: bool) -> int:
    """What the last process does: a mixed grid, and the compilations that it takes."""
    import jax

    lengths = QUICK_GRID_LENGTHS if quick else GRID_LENGTHS
    size = QUICK_SIZE if quick else SIZE
    traced = {"seeds": GRID_SIDE, "arms": GRID_SIDE}
    grid: dict[str, Any] = {**size, "context_length": lengths, **traced}
    whole = plan_sweep(**grid)
    # Half of what the largest program would like to have: all are cut.
    plan = plan_sweep(**grid, memory_bytes=whole.programs[0].memory_bytes // 2)
    compilations: list[float] = []

    def listen(event: str, duration_secs: float, **_: object) -> None:
        if event == COMPILATION:
            compilations.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    found = run_sweep(plan)
    print(json.dumps({**found, "lengths": lengths, "compilations": compilations}))
    return 0


def draw(payload: Payload) -> Figure:
    """Seconds per trajectory and step, against the number of trajectories."""
    figure, panels = new_figure(2)
    titles = {"seeds": "seeds, each with its own batches", "arms": "l1 weights on shared batches"}
    for axes, (axis, title) in zip(panels, titles.items(), strict=True):
        for one in (one for one in payload["series"] if one["axis"] == axis):
            rows = [row for row in one["rows"] if "left_out" not in row]
            sizes = [row["trajectories"] for row in rows]
            per = [1e3 / row["trajectories"] / payload["steps"] for row in rows]
            curve = {
                key: [row["run_seconds"][key] * p for row, p in zip(rows, per, strict=True)]
                for key in ("median", "min", "max")
            }
            name = "scbjax" if one["devices"] == 1 else "scbjax, all cores"
            label = f"{one['devices']} device{'s' if one['devices'] > 1 else ''}"
            axes.fill_between(sizes, curve["min"], curve["max"], color=COLOURS[name], alpha=0.2)
            axes.plot(sizes, curve["median"], "o-", markersize=3, color=COLOURS[name], label=label)
        axes.set(xscale="log", yscale="log", xlabel="trajectories S", title=title)
        axes.legend()
    panels[0].set_ylabel("ms per trajectory and step")
    return figure


def _main() -> int:
    if sys.argv[1:2] not in (["--worker"], ["--grid"]):
        return run_script("sweep", __doc__, measure, draw)
    parser = argparse.ArgumentParser()
    parser.add_argument("--worker", type=int)
    parser.add_argument("--grid", action="store_true")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.grid:
        return count_programs(arguments.quick)
    return work(arguments.worker, arguments.quick)


if __name__ == "__main__":
    sys.exit(_main())
