"""Whole trajectories as users map them: ``vmap``, `scbjax.map_trajectories` and a sweep.

At several N, T = 5000 and B = 64, 32 trajectories (16 for N > 32) with the records of their start
and their end: plain `jax.jit(jax.vmap(scbjax.train))` on one device; the same compiled for the
registers that the processor has, as sweeps are, and as it is after `scbjax.use_all_cores()`; by
`jax.lax.map`, and with all trajectories in step, which `train` leaves to `vmap` only where several
fit into the cache of a core; `map_trajectories`
on all cores; the executor of sweeps on one device and on all; and, of the peers, the careful loop,
with as many steps. Sweeps draw their tasks too, which for N = 300 takes as long as half of the
steps; all others are given them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
from _library import Size, draw_tasks, settings_for
from _measure import Contender, Effort, Payload, race, ratio, run_script, say, speed, use_every_core
from _peers import available_peers, contender
from _pictures import draw_spread, new_figure
from _studies import plan_sweep
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

RECORD = ("value_distance", "stage")
PLAIN, LOOP, MAPPED = "jit(vmap(train))", "jit(lax.map(train))", "map_trajectories, all cores"
WIDE = "jit(vmap(train)), wide registers"
BATCHED = "jit(vmap(init, advance))"
SWEEP, SWEEP_CORES = "a sweep, one device", "a sweep, all cores"
CAREFUL = "PyTorch, careful"
SIZES = tuple(Size(n, 5000, 64, 8 if n > 32 else 32) for n in (3, 10, 20, 33, 100, 300))
QUICK_SIZES = (Size(3, 200, 8, 4), Size(40, 200, 8, 4))
# Long enough that the records of start and end cost next to nothing, and the tasks, which a sweep
# draws itself, little.
STEPS, LARGE_STEPS, QUICK_STEPS = 60, 200, 4
RATE = 1e-3  # at which nothing diverges for any N
# Colours of Okabe & Ito; one device full lines, all cores broken ones.
LOOKS: dict[str, dict[str, Any]] = {
    PLAIN: {"color": "#0072B2"},
    WIDE: {"color": "#0072B2", "marker": "D", "linestyle": ":"},
    BATCHED: {"color": "#009E73", "marker": "v"},
    LOOP: {"color": "#CC79A7", "marker": "s"},
    MAPPED: {"color": "#56B4E9", "linestyle": "--"},
    SWEEP: {"color": "#000000", "marker": "^"},
    SWEEP_CORES: {"color": "#000000", "marker": "^", "linestyle": "--"},
}
FEW = 4  # trajectories of a peer's loop, which cost the same each
EFFORT, QUICK_EFFORT = Effort(rounds=3, seconds=0.0), Effort(rounds=1, seconds=0.0)


def measure(quick: bool) -> Payload:
    """Times every size."""
    use_every_core()
    return {"sizes": [_measure_size(size, quick) for size in (QUICK_SIZES if quick else SIZES)]}


def _measure_size(size: Size, quick: bool) -> Payload:
    steps = QUICK_STEPS if quick else LARGE_STEPS if size.num_tokens > 32 else STEPS
    contenders = [*_ours(size, steps), *_sweeps(size, steps), *_peers(size, steps)]
    rows = race(contenders, QUICK_EFFORT if quick else EFFORT)
    for row in rows:
        say(f"N = {size.num_tokens}, {row['name']}: {speed(row['rate'])} million tokens/s")
    ratios = {row["name"]: ratio(rows, row["name"], SWEEP) for row in rows if row["name"] != SWEEP}
    return {**size._asdict(), "steps": steps, "rows": rows, "ratios": ratios}


def _ours(size: Size, steps: int) -> list[Contender]:
    """The ways to map `scbjax.train`; a unit is all trajectories."""
    import dataclasses

    import scbjax
    from scbjax.paper import advance, init
    from scbjax.sweep.engine.backend import compiler_options

    settings = dataclasses.replace(
        settings_for(size),
        steps=steps,
        record_every=steps,
        record=RECORD,
        learning_rate_1=RATE,
    )
    inputs = jax.random.split(jax.random.key(1), size.trajectories), draw_tasks(size)

    def one(key: Any, task: Any) -> Any:  # noqa: ANN401 - arrays
        return scbjax.train(key, task, settings).records

    def batched(key: Any, task: Any) -> Any:  # noqa: ANN401 - arrays
        start = init(key, task, settings)
        return advance(key, task, settings, start, 0, 1)[1]

    ways: dict[str, Callable[..., Any]] = {
        PLAIN: jax.jit(jax.vmap(one)),
        WIDE: jax.jit(jax.vmap(one), compiler_options=compiler_options("cpu")),
        BATCHED: jax.jit(jax.vmap(batched)),
        LOOP: jax.jit(lambda keys, tasks: jax.lax.map(lambda own: one(*own), (keys, tasks))),
        MAPPED: scbjax.map_trajectories(one),
    }

    def run_of(function: Callable[..., Any]) -> Callable[[int], None]:
        def run(count: int) -> None:
            for _ in range(count):
                jax.block_until_ready(function(*inputs))

        return run

    return [Contender(name, run_of(way), size.tokens * steps) for name, way in ways.items()]


def _sweeps(size: Size, steps: int) -> list[Contender]:
    """The same trajectories as the executor of sweeps runs them."""
    from scbjax.sweep.engine.chunks import Executor
    from scbjax.sweep.plan.plans import make_plan

    study = plan_sweep(
        num_tokens=size.num_tokens,
        context_length=size.context_length,
        batch_size=size.batch_size,
        steps=steps,
        seeds=size.trajectories,
        record=RECORD,
        rate=RATE,
    ).study

    def run_of(devices: int) -> Callable[[int], None]:
        plan = make_plan(study, device_count=devices)
        executor = Executor(plan)

        def run(count: int) -> None:
            for _ in range(count):
                for index in range(len(plan.chunks)):
                    executor.run(index)

        return run

    counts = {SWEEP: 1, SWEEP_CORES: jax.local_device_count()}
    return [Contender(name, run_of(n), size.tokens * steps) for name, n in counts.items()]


def _peers(size: Size, steps: int) -> list[Contender]:
    """The careful loop, if its library is installed; a unit is all steps of a few trajectories."""
    peers = available_peers()
    if CAREFUL not in peers:
        return []
    few = size._replace(trajectories=min(FEW, size.trajectories))
    loop = contender(CAREFUL, peers[CAREFUL], few)
    units = few.trajectories * steps
    return [Contender(CAREFUL, lambda count: loop.run(count * units), loop.work * units)]


def draw(payload: Payload) -> Figure:
    """Speeds of all contenders."""
    figure, (axes,) = new_figure(height=3.0)
    sizes = payload["sizes"]
    places = list(range(len(sizes)))
    for name in [row["name"] for row in sizes[0]["rows"]]:
        rates = [next(row["rate"] for row in size["rows"] if row["name"] == name) for size in sizes]
        draw_spread(axes, places, rates, name, scale=1e-6, **LOOKS.get(name, {}))
    axes.set(yscale="log", ylabel="million tokens per second", xlabel="vocabulary size N")
    axes.set_xticks(places, [str(size["num_tokens"]) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


if __name__ == "__main__":
    sys.exit(run_script("mapping", __doc__, measure, draw))
