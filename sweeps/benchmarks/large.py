"""The sizes that the paper only simulated: time of a step and of a record, and peak memory.

N = 100 and 500 at T = 100000, and N = 500 at T = 1000000, with B = 64: one trajectory, in a process
of its own for each size. What a step costs follows from the difference between two runs of the
library's own executor, with many and with few steps between the same two records, of one variable
each; the rest is what the records cost. The peak is that of the whole process, with Python, JAX and
the compiler.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from _measure import Payload, digits, in_process, run_script, say
from _pictures import new_figure
from matplotlib.figure import Figure

# N, T, B.
SIZES = ((100, 100_000, 64), (500, 100_000, 64), (500, 1_000_000, 64))
QUICK_SIZES = ((40, 2000, 8), (50, 2000, 8))
KEYS = ("num_tokens", "context_length", "batch_size")
RECORDS = 2  # before the first step, and after the last
FEW, MANY = 1, 9  # steps


def measure(quick: bool) -> Payload:
    """Runs a process for each size, one after the other."""
    rows = []
    for size in QUICK_SIZES if quick else SIZES:
        row = in_process(Path(__file__).name, "--worker", *map(str, size))
        rows.append({**dict(zip(KEYS, size, strict=True)), **row})
        say(
            f"N, T, B = {size}: {digits(1e3 * row['step_seconds'])} ms a step, "
            f"{digits(1e3 * row['record_seconds'])} ms a record, "
            f"{row['peak_bytes'] / 2**30:.2f} GiB"
        )
    return {"records": RECORDS, "steps": [FEW, MANY], "rows": rows}


def work(num_tokens: int, context_length: int, batch_size: int) -> int:
    """What a process of its own does: trains, and prints what it took."""
    from memory import peak_bytes

    few, many = (_seconds(num_tokens, context_length, batch_size, steps) for steps in (FEW, MANY))
    step = (many - few) / (MANY - FEW)
    record = (few - FEW * step) / RECORDS
    found = {"step_seconds": step, "record_seconds": record, "peak_bytes": peak_bytes()}
    print(json.dumps(found))
    return 0


def _seconds(num_tokens: int, context_length: int, batch_size: int, steps: int) -> float:
    """Seconds of a run, without the compiler and without drawing the task."""
    from _studies import plan_sweep

    from scbjax.sweep.chunks import Executor

    plan = plan_sweep(
        num_tokens=num_tokens,
        context_length=context_length,
        batch_size=batch_size,
        steps=steps,
        seeds=1,
    )
    return Executor(plan).run(0).run_seconds


def draw(payload: Payload) -> Figure:
    """Milliseconds of a step and of a record, and the peak of memory."""
    figure, (times, memory) = new_figure(2, height=2.2)
    rows = payload["rows"]
    names = [f"N = {row['num_tokens']}, T = {row['context_length']:g}" for row in rows]
    for offset, key in ((-0.2, "step"), (0.2, "record")):
        places = [place + offset for place in range(len(rows))]
        times.bar(places, [1e3 * row[f"{key}_seconds"] for row in rows], 0.4, label=f"a {key}")
    times.set(yscale="log", ylabel="milliseconds")
    memory.bar(range(len(rows)), [row["peak_bytes"] / 2**30 for row in rows], 0.6)
    memory.set(yscale="log", ylabel="peak of memory, GiB")
    for axes in (times, memory):
        axes.set_xticks(range(len(rows)), names, rotation=15)
    times.legend()
    return figure


def _main() -> int:
    if sys.argv[1:2] != ["--worker"]:
        return run_script("large", __doc__, measure, draw)
    parser = argparse.ArgumentParser()
    parser.add_argument("--worker", nargs=3, type=int)
    return work(*parser.parse_args().worker)


if __name__ == "__main__":
    sys.exit(_main())
