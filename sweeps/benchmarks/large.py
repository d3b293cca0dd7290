"""The sizes that the paper only simulated: time of a run and of its steps, and peak memory.

N = 100 and 500 at T = 100000, and N = 500 at T = 1000000, with B = 64: one trajectory, in a process
of its own for each size, run by the library's own executor with the records of `sweeps/scale.toml`
every 50 steps: 1000 steps, and 60 at the largest size. The run's time is measured whole; that of a
step, which includes its share of a record, over each segment of the run that begins after a record.
The peak is that of the whole process, with Python, JAX and the compiler.

Then one trajectory of N = 20 and T = 100000, on one device and split over all of them, in turns.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from _measure import (
    ROOT,
    Contender,
    Payload,
    digits,
    effort,
    in_process,
    race,
    ratio,
    run_script,
    say,
    spread,
    use_every_core,
)
from _pictures import colour_of, draw_spread, new_figure
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from scbjax.sweep.engine.chunks import Segment

STUDY = ROOT / "sweeps" / "scale.toml"


class Run(NamedTuple):
    """A trajectory: N, T, B, its steps, and how often records are taken."""

    num_tokens: int
    context_length: int
    batch_size: int
    steps: int
    record_every: int


RUNS = (
    Run(100, 100_000, 64, 1000, 50),
    Run(500, 100_000, 64, 1000, 50),
    Run(500, 1_000_000, 64, 60, 10),
)
QUICK_RUNS = (Run(40, 2000, 8, 20, 4), Run(50, 2000, 8, 20, 4))
# With the rates of the study a batch of 64 is too small for stage 1 to end by anything but noise.
RATES = ("learning_rate_1=0.001", "learning_rate_2=0.001")
# N, T, B of the trajectory that is split.
SPLIT, QUICK_SPLIT = (20, 100_000, 64), (5, 800, 8)
SPLIT_STEPS = 10  # in a call
ONE_DEVICE, ALL_DEVICES = "one device", "split over all"


def measure(quick: bool) -> Payload:
    """Runs a process for each size, one after the other."""
    rows = []
    for run in QUICK_RUNS if quick else RUNS:
        row = in_process(Path(__file__).name, "--worker", *map(str, run))
        rows.append({**run._asdict(), **row})
        say(
            f"N, T, B = {run[:3]}: {digits(row['seconds'])} s for {run.steps} steps, "
            f"{digits(1e3 * row['step_seconds']['median'])} ms a step, "
            f"{row['peak_bytes'] / 2**30:.2f} GiB"
        )
    return {"rows": rows, "split": _split(*(QUICK_SPLIT if quick else SPLIT), quick=quick)}


def work(run: Run) -> int:
    """What a process of its own does: trains, and prints what it took."""
    use_every_core()
    from memory import peak_bytes

    from scbjax.sweep.engine.chunks import Executor
    from scbjax.sweep.engine.here import plan_here
    from scbjax.sweep.study.files import load_study

    axes = [f"axes.num_tokens=[{run.num_tokens}]", *RATES]
    fields = [f"{name}={value}" for name, value in run._asdict().items() if name != "num_tokens"]
    plan = plan_here(load_study(STUDY, [*axes, *fields]))
    segments: list[Segment] = []
    result = Executor(plan).run(0, listen=segments.append)
    found = {
        "seconds": result.run_seconds,
        "compile_seconds": result.compile_seconds,
        # The first segment begins with the record of the initial state, and touches new memory.
        "step_seconds": spread([s.seconds / s.records / run.record_every for s in segments[1:]]),
        "segments": len(segments),
        "peak_bytes": peak_bytes(),
    }
    print(json.dumps(found))
    return 0


# ------------------------------------------------------------------ one trajectory on many devices


def _split(num_tokens: int, context_length: int, batch_size: int, *, quick: bool) -> Payload:
    """Steps of one trajectory on one device, and split over all, in turns."""
    import jax

    from scbjax.settings import Settings
    from scbjax.sharding import over_positions
    from scbjax.task import random_task

    settings = Settings(
        batch_size=batch_size, steps=SPLIT_STEPS, record_every=SPLIT_STEPS, record=("stage",)
    )
    draw = partial(random_task, num_tokens=num_tokens, context_length=context_length, sparsity=2)
    contenders = [_trajectory(ONE_DEVICE, jax.jit, draw, settings)]
    if len(jax.devices()) > 1:
        contenders.append(_trajectory(ALL_DEVICES, over_positions, draw, settings))
    rows = race(contenders, effort(quick))
    for row in rows:
        say(f"one trajectory, {row['name']}: {digits(1e3 / row['rate']['median'])} ms a step")
    return {
        "num_tokens": num_tokens,
        "context_length": context_length,
        "batch_size": batch_size,
        "devices": len(jax.devices()),
        "rows": rows,
        "ratio": ratio(rows, ALL_DEVICES, ONE_DEVICE),
    }


def _trajectory(name: str, compile_it: Any, draw: Any, settings: Any) -> Contender:  # noqa: ANN401
    """A unit is ten steps and a record of one number; the state is kept between calls."""
    import jax

    from scbjax.paper import advance, init

    task = compile_it(draw)(jax.random.key(0))
    move = compile_it(partial(advance, num_records=1))
    held = [compile_it(init)(jax.random.key(1), task, settings)]

    def run(count: int) -> None:
        for _ in range(count):
            held[0], _ = move(jax.random.key(1), task, settings, held[0], held[0].step)
        jax.block_until_ready(held[0])

    return Contender(name, run, SPLIT_STEPS)


def draw(payload: Payload) -> Figure:
    """Milliseconds of a step, and the peak of memory."""
    figure, (times, memory) = new_figure(2, height=2.2)
    rows = payload["rows"]
    names = [f"N = {row['num_tokens']}\nT = {row['context_length']:,}" for row in rows]
    places = range(len(rows))
    # Points: a bar has no length on a logarithmic axis.
    steps = [row["step_seconds"] for row in rows]
    draw_spread(times, places, steps, "scbjax", scale=1e3, linestyle="")
    times.set(yscale="log", ylabel="milliseconds per step")
    peaks = [row["peak_bytes"] / 2**30 for row in rows]
    memory.plot(places, peaks, "o", color=colour_of("scbjax"), markersize=4)
    memory.set(yscale="log", ylabel="peak of memory, GiB")
    for axes, values in (times, [1e3 * step["median"] for step in steps]), (memory, peaks):
        axes.set_xticks(places, names)
        axes.margins(x=0.15, y=0.15)
        for place, value in zip(places, values, strict=True):
            axes.annotate(
                digits(value), (place, value), (6, 0), textcoords="offset points", va="center"
            )
    return figure


def _main() -> int:
    if sys.argv[1:2] != ["--worker"]:
        return run_script("large", __doc__, measure, draw)
    parser = argparse.ArgumentParser()
    parser.add_argument("--worker", nargs=len(Run._fields), type=int)
    return work(Run(*parser.parse_args().worker))


if __name__ == "__main__":
    sys.exit(_main())
