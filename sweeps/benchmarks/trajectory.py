"""A whole trajectory at the paper's main setting, in seconds.

N = 3, Q = 2, T = 5000, B = 64, 1000 steps. This library records its default observables every 10
steps, which the peers do not do; the other contender of its own records none. Compiling is apart.
"""

from __future__ import annotations

import sys
import time

import jax
from _library import L1, OURS, Size, draw_tasks
from _measure import Contender, Effort, Payload, digits, race, ratio, run_script, say
from _peers import available_peers, make_peers
from _pictures import colour_of, new_figure
from matplotlib.figure import Figure

from scbjax.recorded import DEFAULT_RECORD
from scbjax.settings import Settings
from scbjax.sweep.engine.backend import compiler_options
from scbjax.training import train

SIZE, STEPS, EVERY = Size(3, 5000, 64, 1), 1000, 10
QUICK_SIZE, QUICK_STEPS = Size(3, 200, 8, 1), 20
ROUNDS = 3
BARE = f"{OURS}, without records"


def measure(quick: bool) -> Payload:
    """Times all contenders."""
    size, steps = (QUICK_SIZE, QUICK_STEPS) if quick else (SIZE, STEPS)
    contenders = [
        _ours(OURS, size, steps, EVERY, DEFAULT_RECORD),
        _ours(BARE, size, steps, steps, ()),
        *(_peer(name, size, steps) for name in available_peers()),
    ]
    # A unit is a whole trajectory, which is long enough.
    rows = race(contenders, Effort(ROUNDS, seconds=0.0))
    for row in rows:
        say(f"{row['name']}: {digits(1 / row['rate']['median'])} s")
    ratios = {name.name: ratio(rows, OURS, name.name) for name in contenders[1:]}
    return {**size._asdict(), "steps": steps, "record_every": EVERY, "rows": rows, "ratios": ratios}


def _ours(name: str, size: Size, steps: int, every: int, record: tuple[str, ...]) -> Contender:
    settings = Settings(
        batch_size=size.batch_size, steps=steps, record_every=every, record=record, l1=L1
    )
    task = jax.tree.map(lambda leaf: leaf[0], draw_tasks(size))
    begin = time.perf_counter()
    lowered = jax.jit(train).lower(jax.random.key(0), task, settings)
    options = compiler_options(jax.devices()[0].platform)
    compiled = lowered.compile(compiler_options=options)
    notes = {"compile_seconds": time.perf_counter() - begin}

    def run(count: int) -> None:
        for seed in range(count):
            jax.block_until_ready(compiled(jax.random.key(seed), task, settings))

    return Contender(name, run, 1.0, notes)


def _peer(name: str, size: Size, steps: int) -> Contender:
    (peer,) = make_peers(available_peers()[name], size)

    def run(count: int) -> None:
        for _ in range(count * steps):
            peer.step(peer.draw())
        peer.wait()

    return Contender(name, run, 1.0)


def draw(payload: Payload) -> Figure:
    """Seconds of all contenders."""
    figure, (axes,) = new_figure(height=2.2)
    rows = payload["rows"][::-1]
    seconds = [1 / row["rate"]["median"] for row in rows]
    colours = [colour_of(row["name"].partition(", without")[0]) for row in rows]
    # Points: a bar has no length on a logarithmic axis.
    axes.scatter(seconds, range(len(rows)), color=colours, zorder=3)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.margins(y=0.15)
    for place, (row, value) in enumerate(zip(rows, seconds, strict=True)):
        low, high = 1 / row["rate"]["max"], 1 / row["rate"]["min"]
        axes.plot([low, high], [place, place], color="black", linewidth=0.8)
        axes.annotate(digits(value), (high, place), (4, 0), textcoords="offset points", va="center")
    axes.set(xscale="log", xlabel=f"seconds for {payload['steps']} steps")
    axes.grid(visible=False)
    return figure


if __name__ == "__main__":
    sys.exit(run_script("trajectory", __doc__, measure, draw))
