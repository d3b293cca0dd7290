"""How benchmarks measure, and what a measurement is stored with.

Contenders are timed in turns (A B C, A B C, ...), so that a machine that gets slower while it is
measured slows all of them, and ratios are taken turn by turn. Compiling and the first call, which
warms caches up, are timed apart. A benchmark is a script with `measure`, which returns what is
stored as JSON, and `draw`, which makes a picture of what was stored.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

ROOT: Final = Path(__file__).resolve().parents[2]
IN_CHECKOUT: Final = (ROOT / "docs" / "benchmarks").is_dir()
"""Scripts that a wheel carries have no documents to write to; they write where they are run."""
RUNS: Final = (ROOT if IN_CHECKOUT else Path()) / "results" / "benchmarks"
STORED: Final = ROOT / "docs" / "benchmarks" if IN_CHECKOUT else RUNS
TRIED: Final = RUNS / "quick"  # quick runs must not replace what is published
PACKAGES: Final = ("jax", "jaxlib", "optax", "numpy", "scbjax", "torch")

Payload: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        rounds: turns that every contender gets.
        seconds: length that a timed call is made to have; 0 for one unit, however long it is.
    """

    rounds: int
    seconds: float


FULL: Final = Effort(rounds=7, seconds=0.4)
QUICK: Final = Effort(rounds=2, seconds=0.01)


@dataclass(frozen=True)
class Contender:
    """Something to be timed.

    Attributes:
        name: what it is called in tables.
        run: does a number of units of work and waits for them.
        work: what one unit is worth, such as the tokens of a step.
        notes: stored with its timing, such as the seconds that it took to compile.
    """

    name: str
    run: Callable[[int], object]
    work: float
    notes: Mapping[str, Any] = field(default_factory=dict)


def effort(quick: bool) -> Effort:
    """How long to measure."""
    return QUICK if quick else FULL


def race(contenders: Sequence[Contender], effort: Effort) -> list[Payload]:
    """Times contenders in turns.

    Returns:
        For each of them its name, notes, units in a call, the first call's seconds, the seconds of
        every call, and the rate in work per second: median, min and max.
    """
    counts, firsts = [], []
    for contender in contenders:
        firsts.append(_timed(contender, 1))
        counts.append(_calibrate(contender, effort.seconds) if effort.seconds else 1)
    seconds: list[list[float]] = [[] for _ in contenders]
    for _ in range(effort.rounds):
        for taken, contender, count in zip(seconds, contenders, counts, strict=True):
            taken.append(_timed(contender, count))
    return [
        {
            "name": contender.name,
            **contender.notes,
            "units": count,
            "work": count * contender.work,
            "first_call_seconds": first,
            "seconds": taken,
            "rate": spread([count * contender.work / second for second in taken]),
        }
        for contender, count, first, taken in zip(contenders, counts, firsts, seconds, strict=True)
    ]


def _timed(contender: Contender, count: int) -> float:
    start = time.perf_counter()
    contender.run(count)
    return time.perf_counter() - start


def _calibrate(contender: Contender, seconds: float) -> int:
    """Units that take about the given time; the calls that find out also warm up."""
    count = 1
    while (taken := _timed(contender, count)) < seconds / 4:
        count *= 4
    return max(1, round(count * seconds / taken))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, min and max."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(rows: Sequence[Payload], name: str, other: str) -> dict[str, float] | None:
    """How many times the rate of another contender one has, turn by turn; None if one is absent."""
    found = {row["name"]: row for row in rows}
    if name not in found or other not in found:
        return None
    rates = [
        [row["work"] / second for second in row["seconds"]] for row in (found[name], found[other])
    ]
    return spread([ours / theirs for ours, theirs in zip(*rates, strict=True)])


# ---------------------------------------------------------------------------- where it was measured


def use_every_core() -> None:
    """Makes a device of each core, as the command does; before anything else of JAX.

    What asks for no device runs on the first one, as ever.
    """
    from scbjax.sweep.engine.backend import make_cpu_devices

    make_cpu_devices(None)


def environment() -> Payload:
    """Device, processors and versions, and how busy the machine was before."""
    import jax

    from scbjax.keys import THREEFRY
    from scbjax.settings import Settings

    device = jax.devices()[0]
    return {
        "device": device_name(),
        "platform": device.platform,
        "jax_devices": len(jax.devices()),
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "system": platform.system(),
        "versions": {name: _version(name) for name in PACKAGES},
        "precision": Settings.precision,
        "random_numbers": THREEFRY,
        "commit": _commit(),
        "taken": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }


def device_name() -> str:
    """What JAX runs on: the kind of accelerator, or the processor and the number of its cores."""
    import jax

    device = jax.devices()[0]
    if device.platform != "cpu":
        return str(device.device_kind)
    return f"{_processor()}, {os.cpu_count()} cores"


def folder_name(device: str) -> str:
    """A device's name as the name of a folder.

    >>> folder_name("NVIDIA H100 80GB HBM3")
    'nvidia-h100-80gb-hbm3'
    """
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), flags=re.MULTILINE)
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    if not IN_CHECKOUT:  # what is installed may lie in the checkout of something else
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


# --------------------------------------------------------------------------------- a script's main


def say(text: str) -> None:
    """Prints at once, so that a slow benchmark shows how far it is."""
    print(text, flush=True)


def speed(rate: Mapping[str, float]) -> str:
    """A rate in million a second, with its spread.

    >>> speed({"median": 2.5e6, "min": 2e6, "max": 3e6})
    '2.50 (2.00 to 3.00)'
    """
    median, low, high = (digits(rate[key] / 1e6) for key in ("median", "min", "max"))
    return f"{median} ({low} to {high})"


def digits(value: float) -> str:
    """Three significant digits, without an exponent.

    >>> digits(1234.5), digits(12.345), digits(0.012345)
    ('1234', '12.3', '0.0123')
    """
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    places = 2 - int(f"{value:e}".partition("e")[2])
    return f"{value:.{places}f}"


def run_script(
    name: str,
    doc: str | None,
    measure: Callable[[bool], Payload],
    draw: Callable[[Payload], Any],
    argv: Sequence[str] | None = None,
) -> int:
    """The main function of a benchmark: measures, stores, draws.

    Args:
        name: of the benchmark and its files.
        doc: its docstring.
        measure: takes whether to be quick; returns what is stored.
        draw: makes a figure of what was stored.
        argv: the arguments; those of the process if left out.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help=f"where files go, if not {STORED}/DEVICE")
    parser.add_argument("--quick", action="store_true", help="small and few: shows that it runs")
    arguments = parser.parse_args(argv)
    use_every_core()
    surroundings = environment()
    say(f"{name}: on {surroundings['device']}")
    payload = {
        "benchmark": name,
        "quick": arguments.quick,
        "environment": surroundings,
        **measure(arguments.quick),
    }
    default = (TRIED if arguments.quick else STORED) / folder_name(surroundings["device"])
    out: Path = arguments.out or default
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    path.write_text(json.dumps(payload, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    say(str(path))
    say(str(render(draw, path)))
    return 0


def render(draw: Callable[[Payload], Any], path: Path) -> Path:
    """Draws the picture of a stored measurement beside it."""
    import matplotlib.style

    picture = path.with_suffix(".png")
    style = ROOT / "figures" / "scbjax.mplstyle"
    with matplotlib.style.context(["default", style], after_reset=True):
        figure = draw(json.loads(path.read_text(encoding="utf-8")))
        # No version of matplotlib: it would change the bytes of the same picture.
        figure.savefig(picture, metadata={"Software": None})
    return picture


def in_process(script: str, *arguments: str, environ: Mapping[str, str] | None = None) -> Payload:
    """Runs a script of this folder in a process of its own and returns the JSON it prints last."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **(environ or {})}
    )
    if ran.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {ran.stderr.strip()[-2000:]}")
    printed: Payload = json.loads(ran.stdout.splitlines()[-1])
    return printed
