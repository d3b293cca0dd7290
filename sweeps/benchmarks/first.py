"""How long a user waits for a first result: everything, in a new process.

The first snippet of README and small studies, each with an empty cache of compiled programs and
again with the one that it left: seconds on the clock, and what the process had of the processor.
Beside them what nobody can do without, JAX and one compiled addition, and the snippet as one writes
it in plain JAX (`_script`).
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import _script
import jax
from _measure import ROOT, Payload, digits, run_script, say
from _pictures import new_figure
from matplotlib.figure import Figure

import scbjax

SNIPPET = """
import jax, scbjax
task = scbjax.random_task(jax.random.key(0), num_tokens=3, context_length=200, sparsity=2)
settings = scbjax.Settings(
    batch_size=32, steps=800, record_every=100, record=("attention_distance", "stage"))
jax.block_until_ready(jax.jit(scbjax.train)(jax.random.key(1), task, settings))
"""
BATCH = """
import jax, scbjax
task = scbjax.random_task(jax.random.key(0), num_tokens=3, context_length=200, sparsity=2)
jax.block_until_ready(scbjax.sample_batch(jax.random.key(3), task, batch_size=32))
"""
DEFAULT = SNIPPET.replace(', record=("attention_distance", "stage")', "")
NOTHING = "import jax; jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0))"
PLAIN, README = "the first snippet in plain JAX", "README's first snippet"
CASES = {
    "JAX alone: one addition": ["-c", NOTHING],
    PLAIN: [_script.__file__],
    README: ["-c", SNIPPET],
    "the same with all default records": ["-c", DEFAULT],
    "a task and a mini-batch": ["-c", BATCH],
    "scbjax run quickstart (the demo)": ["-m", "scbjax", "run", "quickstart"],
    "scbjax run quickstart --small": ["-m", "scbjax", "run", "quickstart", "--small"],
    "scbjax run fig2 --small": ["-m", "scbjax", "run", "fig2", "--small"],
}
QUICK_CASES = ("JAX alone: one addition", "a task and a mini-batch")
ROUNDS = 3
LOOPS = "loops"
COLD, CACHED = "nothing compiled before", "again, with what was compiled"
CACHE_EVERYTHING = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def measure(quick: bool) -> Payload:
    """Times every case, in turns."""
    names = QUICK_CASES if quick else tuple(CASES)
    rows: dict[str, Payload] = {name: {"name": name, COLD: [], CACHED: []} for name in names}
    for _ in range(1 if quick else ROUNDS):
        for name in names:
            cache = Path(tempfile.mkdtemp())
            try:
                for kind in (COLD, CACHED):
                    rows[name][kind].append(_time(CASES[name], cache))
            finally:
                shutil.rmtree(cache)
    for row in rows.values():
        say(f"{row['name']}: {json.dumps(row[COLD])}")
    return {"rows": list(rows.values()), LOOPS: {} if quick else count_loops()}


def count_loops() -> dict[str, int]:
    """How many loops XLA compiles, each of which takes it milliseconds, however small it is."""
    key = jax.random.key(0)
    draw = partial(scbjax.random_task, num_tokens=3, context_length=200, sparsity=2)
    settings = scbjax.Settings(
        batch_size=32, steps=800, record_every=100, record=("attention_distance", "stage")
    )
    train = jax.jit(scbjax.train).lower(key, jax.eval_shape(draw, key), settings)
    programs = {PLAIN: [_script.train.lower(key)], README: [jax.jit(draw).lower(key), train]}
    return {
        name: sum((program.compile().as_text() or "").count(" fusion(") for program in those)
        for name, those in programs.items()
    }


def _time(arguments: list[str], cache: Path) -> dict[str, float]:
    """Seconds of a process, on the clock and of the processor."""
    environ = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache), **CACHE_EVERYTHING}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    folder = tempfile.mkdtemp()
    try:
        for part in ("sweeps", "figures"):
            Path(folder, part).symlink_to(ROOT / part)
        before, begin = _processor_seconds(), time.perf_counter()
        subprocess.run(
            [sys.executable, *arguments],
            check=True,
            cwd=folder,
            env={**environ, "PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, "processor_seconds": _processor_seconds() - before}
    finally:
        shutil.rmtree(folder)


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def draw(payload: Payload) -> Figure:
    """Seconds on the clock, with and without a cache of compiled programs."""
    figure, (axes,) = new_figure(height=3.0)
    rows = payload["rows"][::-1]
    looks = ((COLD, 0.2, "#0072B2"), (CACHED, -0.2, "#E69F00"))
    for kind, shift, colour in looks:
        seconds = [sorted(each["seconds"] for each in row[kind]) for row in rows]
        middles = [each[len(each) // 2] for each in seconds]
        places = [place + shift for place in range(len(rows))]
        axes.barh(places, middles, 0.36, color=colour, label=kind)
        for place, each, middle in zip(places, seconds, middles, strict=True):
            axes.plot([each[0], each[-1]], [place, place], color="black", linewidth=0.8)
            axes.annotate(
                digits(middle), (each[-1], place), (4, 0), textcoords="offset points", va="center"
            )
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set(xlabel="seconds")
    axes.grid(visible=False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


if __name__ == "__main__":
    sys.exit(run_script("first", __doc__, measure, draw))
