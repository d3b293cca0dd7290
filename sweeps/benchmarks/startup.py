"""What one waits for before anything runs: imports, the command, and the compiler.

Every measurement is a process of its own, in turns. Compiling is that of a whole trajectory at the
paper's main setting, with an empty cache of compiled programs and with one that has it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _measure import Contender, Effort, Payload, digits, in_process, race, run_script, say
from _pictures import GREY, new_figure
from matplotlib.figure import Figure

EFFORT, QUICK_EFFORT = Effort(rounds=3, seconds=0.0), Effort(rounds=1, seconds=0.0)
COLD, CACHED = "compile a trajectory", "the same, cached"
COMMANDS = {
    "python": ["-c", "pass"],
    "import numpy": ["-c", "import numpy"],
    "import jax": ["-c", "import jax"],
    "import scbjax": ["-c", "import scbjax"],
    "scbjax.train, with JAX": ["-c", "import scbjax; scbjax.train"],
    "scbjax --help": ["-m", "scbjax", "--help"],
    "scbjax list": ["-m", "scbjax", "list"],
    "scbjax show fig1": ["-m", "scbjax", "show", "fig1"],
}
QUICK_COMMANDS = ("python", "scbjax --help")
# Programs that take less are not cached by default.
CACHE_EVERYTHING = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def measure(quick: bool) -> Payload:
    """Times processes and compilations."""
    effort = QUICK_EFFORT if quick else EFFORT
    names = QUICK_COMMANDS if quick else tuple(COMMANDS)
    rows = race([Contender(name, _process(COMMANDS[name]), 1.0) for name in names], effort)
    compiled: dict[str, list[float]] = {COLD: [], CACHED: []}
    for _ in range(1 if quick else effort.rounds):
        for name, seconds in zip(compiled, _compile_twice(), strict=True):
            compiled[name].append(seconds)
    for row in rows:
        say(f"{row['name']}: {digits(1 / row['rate']['median'])} s")
    return {"rows": rows, "compile_seconds": compiled}


def _process(arguments: list[str]) -> Callable[[int], None]:
    def run(count: int) -> None:
        for _ in range(count):
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)

    return run


def _compile_twice() -> tuple[float, float]:
    """Seconds in two processes that share a cache which is empty at first."""
    cache = tempfile.mkdtemp()
    environ = {"JAX_COMPILATION_CACHE_DIR": cache, **CACHE_EVERYTHING}
    try:
        first, second = (
            in_process(Path(__file__).name, "--compile", environ=environ)["seconds"] for _ in "ab"
        )
    finally:
        shutil.rmtree(cache)
    return first, second


def compile_once() -> int:
    """What a process of its own does: compiles a trajectory and prints how long that took."""
    import jax

    from scbjax.settings import Settings
    from scbjax.task import random_task
    from scbjax.training import train

    task = random_task(jax.random.key(0), num_tokens=3, context_length=5000, sparsity=2)
    settings = Settings(batch_size=64, steps=1000, record_every=10)
    begin = time.perf_counter()
    jax.jit(train).lower(jax.random.key(0), task, settings).compile()
    print(json.dumps({"seconds": time.perf_counter() - begin}))
    return 0


def draw(payload: Payload) -> Figure:
    """Seconds of everything."""
    figure, (axes,) = new_figure()
    seconds = {row["name"]: row["seconds"] for row in payload["rows"]}
    seconds.update(payload["compile_seconds"])
    for place, (name, values) in enumerate(reversed(seconds.items())):
        middle = sorted(values)[len(values) // 2]
        axes.barh([name], [middle], 0.6, color=GREY if name not in (COLD, CACHED) else "#0072B2")
        axes.plot([min(values), max(values)], [place, place], color="black", linewidth=0.8)
        axes.annotate(
            digits(middle), (max(values), place), (4, 0), textcoords="offset points", va="center"
        )
    axes.set(xlabel="seconds")
    axes.grid(visible=False)
    return figure


if __name__ == "__main__":
    if sys.argv[1:] == ["--compile"]:
        sys.exit(compile_once())
    sys.exit(run_script("startup", __doc__, measure, draw))
