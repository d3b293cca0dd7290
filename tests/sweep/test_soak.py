"""An hour's sweep: memory stays flat, nothing is compiled twice, no file or handle is left.

The command itself runs a study of several programs in many chunks, segments and checkpoints
(soaked.py), and is watched from outside. It is not a part of `make test-slow`:

    python -m pytest -m soak -s tests/sweep/test_soak.py

takes an hour, or as many seconds as SCBJAX_SOAK_SECONDS says.
"""

import importlib.util
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import xarray
from numpy.typing import NDArray

SECONDS = float(os.environ.get("SCBJAX_SOAK_SECONDS", "3600"))
GROWTH = 0.02
"""What memory may grow by after the warm-up, as a share of itself."""
WARM_UP = 0.1
"""The first part of the time, and whatever it takes until a chunk of every program has ended."""
WINDOW = 0.2
"""Part of the rest that is its beginning, and part that is its end: their medians are compared."""
MOST_SAMPLES = 1200
MOST_SECONDS = 600
"""For compiling, and for ending."""
FEW_SEEDS = 24
MIB = 2**20

STUDY = """
title = "A study that takes as long as it has seeds"
[task]
num_tokens = 8
context_length = 50
sparsity = 2
[train]
steps = 8000
record_every = 50
[record]
variables = ["attention_distance", "value_distance", "nonzeros", "stage", "batch_loss"]
snapshots = [0, 4000]
truth = true
final = true
[axes]
seed = { range = [0, SEEDS] }
"""
AXES = """
optimizer = ["proximal", "sgd"]
batch_size = [8, 16]
generator = ["threefry-20", "threefry-13"]
"""
PROGRAMS = range(4)
MEMORY = "400kB"  # a budget that makes chunks of a few seconds
SCRIPT = Path(__file__).with_name("soaked.py")
CHUNK = re.compile(r"out/chunks/\d+\.npz")


class Sample(NamedTuple):
    """A process and its files at a moment.

    Attributes:
        time: seconds of the clock.
        memory: bytes in the memory and in the swap space.
        threads: of the process.
        descriptors: open files, sockets and the like.
        files: in its folder, without finished chunks.
        chunks: finished chunks.
    """

    time: float
    memory: int
    threads: int
    descriptors: int
    files: int
    chunks: int


def look(pid: int, folder: Path) -> Sample:
    """Samples a process; OSError or KeyError if it has ended."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    facts = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
    memory = 1024 * (int(facts["VmRSS"][0]) + int(facts["VmSwap"][0]))
    descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    names = list(names_in(folder))
    chunks = sum(CHUNK.fullmatch(name) is not None for name in names)
    return Sample(
        time.time(), memory, int(facts["Threads"][0]), descriptors, len(names) - chunks, chunks
    )


def names_in(folder: Path) -> Iterator[str]:
    """The files in a folder and below, relative to it."""
    for root, _, names in os.walk(folder):
        for name in names:
            yield (Path(root) / name).relative_to(folder).as_posix()


def watch(
    process: subprocess.Popen[str], folder: Path, interval: float, seconds: float = math.inf
) -> list[Sample]:
    """Samples a process until it ends, and asks it to (Ctrl-C) some seconds after its warm-up."""
    samples: list[Sample] = []
    begin, left = time.monotonic(), seconds
    end = math.inf
    while process.poll() is None:
        if left < math.inf and {line["program"] for line in lines_of(folder)} == set(PROGRAMS):
            end, left = time.monotonic() + left, math.inf
        if time.monotonic() > end:
            process.send_signal(signal.SIGINT)
            end = math.inf
        assert time.monotonic() - begin < SECONDS + MOST_SECONDS, "it does not end"
        try:
            samples.append(look(process.pid, folder))
        except (OSError, KeyError):  # it has just ended
            continue
        time.sleep(interval)
    return samples


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """What the process has told so far; the last line may not be whole yet."""
    events = folder / "events"
    text = events.read_text(encoding="utf-8") if events.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


# --------------------------------------------------------------------------------- judging growth


def ends(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The first and the last part of a series."""
    size = max(1, round(WINDOW * len(values)))
    return values[:size], values[-size:]


def growth(times: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """By what share a series grows, told twice: by medians of its ends, and by a fitted line.

    The line is that of Theil and Sen: its slope is the median over all pairs, which outliers and
    single jumps back do not move.
    """
    x, y = np.asarray(times, float), np.asarray(values, float)
    early, late = (float(np.median(part)) for part in ends(y))
    x, y = x[:: len(x) // 400 + 1], y[:: len(y) // 400 + 1]
    first, second = np.triu_indices(len(x), k=1)
    slope = float(np.median((y[second] - y[first]) / (x[second] - x[first])))
    return late / early - 1, slope * (x[-1] - x[0]) / early


def growing(samples: Sequence[Sample], told: Sequence[dict[str, Any]]) -> list[str]:
    """What grew after the warm-up, in words.

    Numbers that come and go are compared by the smallest that they get: what is lost is never given
    back.

    Args:
        samples: of the process, after the warm-up.
        told: what it said at the end of chunks, after the warm-up.
    """
    found = []
    memory = growth([s.time for s in samples], [s.memory for s in samples])
    objects = growth([line["time"] for line in told], [line["objects"] for line in told])
    for name, both in (("memory", memory), ("objects", objects)):
        if max(both) >= GROWTH:
            found.append(f"{name}: by {both[0]:.2%} from median to median, {both[1]:.2%} on a line")
    lows = {
        name: [getattr(s, name) for s in samples] for name in ("threads", "descriptors", "files")
    }
    lows |= {name: [line[name] for line in told] for name in ("arrays", "executables")}
    for name, values in lows.items():
        early, late = (int(part.min()) for part in ends(np.asarray(values)))
        if late > early:
            found.append(f"{name}: from {early} to {late}")
    if new := told[-1]["compilations"] - told[0]["compilations"]:
        found.append(f"compilations: {new} more after a chunk of every program had ended")
    return found


def after_warm_up(
    samples: Sequence[Sample], told: Sequence[dict[str, Any]]
) -> tuple[list[Sample], list[dict[str, Any]]]:
    """What was seen between the warm-up and the last chunk."""
    firsts = [[line["program"] for line in told].index(program) for program in PROGRAMS]
    number = max(firsts)
    begin, end = samples[0].time, told[-1]["time"]
    warm = max(begin + WARM_UP * (end - begin), told[number]["time"])
    return [s for s in samples if warm < s.time <= end], list(told[number:])


# ------------------------------------------------------------------------------------- the sweep


class Soak(NamedTuple):
    """A run of the command that has ended.

    Attributes:
        folder: everything that it wrote.
        status: its exit status.
        samples: of the process.
        told: by the process at the end of every chunk.
        said: its output.
    """

    folder: Path
    status: int
    samples: list[Sample]
    told: list[dict[str, Any]]
    said: str


def soak(
    folder: Path,
    seeds: int,
    interval: float,
    *,
    seconds: float = math.inf,
    leaks: Sequence[str] = (),
    axes: str = AXES,
) -> Soak:
    """Runs the study; everything that it writes goes below the folder."""
    (folder / "tmp").mkdir(parents=True)
    (folder / "soak.toml").write_text((STUDY + axes).replace("SEEDS", str(seeds)))
    events = folder / "events"
    command = [sys.executable, str(SCRIPT), str(events), ",".join(leaks)]
    command += ["run", str(folder / "soak.toml"), "--out", str(folder / "out"), "--no-figure"]
    command += ["--memory", MEMORY, "--compilation-cache", str(folder / "programs")]
    environ = {"JAX_PLATFORMS": "cpu", "TMPDIR": str(folder / "tmp"), "HOME": str(folder)}
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=said, text=True, env={**os.environ, **environ}
        )
        try:
            samples = watch(process, folder, interval, seconds)
        finally:
            process.kill()
            process.wait()
    text = (folder / "said").read_text()
    return Soak(folder, process.returncode, samples, lines_of(folder), text)


def seconds_of(done: Soak) -> float:
    """Seconds in the simulation, as the dataset has them."""
    with xarray.open_dataset(done.folder / "out" / "soak.nc", engine="h5netcdf") as dataset:
        return float(dataset.attrs["wall_seconds"]) - float(dataset.attrs["compile_seconds"])


def check_files(done: Soak) -> int:
    """Nothing but results may be left; returns the number of chunks."""
    names = set(names_in(done.folder))
    chunks = {name for name in names if CHUNK.fullmatch(name)}
    programs = {name for name in names if name.startswith("programs/")}
    kept = {"soak.toml", "events", "said", "out/manifest.json"}
    if done.status == 0:
        kept |= {"out/soak.nc", "out/soak.nc.sha256"}
    else:
        checkpoints = {name for name in names if name.startswith("out/checkpoints/")}
        assert len(checkpoints) <= 1, "that of the chunk that it was at"
        kept |= checkpoints
    assert names - chunks - programs == kept
    assert len(chunks) == len(done.told)
    return len(chunks)


# -------------------------------------------------------------------------- what finds leaks works


def steady(count: int = 500) -> tuple[list[Sample], list[dict[str, Any]]]:
    """A process that nothing is wrong with, and that is never twice the same."""
    rng = np.random.default_rng(0)
    memory = 5e8 * (1 + 0.05 * rng.standard_normal(count) + 0.3 * (rng.random(count) < 0.1))
    samples = [
        Sample(float(at), int(memory[at]), 20, 5 + at % 3, 10 + at % 4, at) for at in range(count)
    ]
    told = [
        {"time": at, "program": at % 4, "arrays": at % 2, "executables": 9, "compilations": 9}
        | {"objects": 10**6 + int(rng.integers(10**5))}
        for at in range(count)
    ]
    return samples, told


def test_what_comes_and_goes_is_no_growth() -> None:
    assert growing(*steady()) == []


@pytest.mark.parametrize("name", ["memory", "threads", "descriptors", "files"])
def test_growth_of_a_process_is_found_and_named(name: str) -> None:
    samples, told = steady()
    for at, sample in enumerate(samples):
        value = getattr(sample, name)
        lost = 1e-4 * at * value if name == "memory" else at // 100
        samples[at] = sample._replace(**{name: value + int(lost)})
    (found,) = growing(samples, told)
    assert found.startswith(name)


@pytest.mark.parametrize("name", ["objects", "arrays", "executables", "compilations"])
def test_growth_that_a_process_tells_of_is_found_and_named(name: str) -> None:
    samples, told = steady()
    for at, line in enumerate(told):
        line[name] += 200 * at if name == "objects" else at // 100
    (found,) = growing(samples, told)
    assert found.startswith(name)


@pytest.mark.parametrize("share", [0.025, -0.025])
def test_growth_is_that_of_a_line_and_of_a_jump(share: float) -> None:
    rng = np.random.default_rng(1)
    times = np.arange(1000.0)
    noise = 1 + 0.01 * rng.standard_normal(1000)
    line = growth(list(times), list(noise * (1 + share * times / 1000)))
    assert line[1] == pytest.approx(share, abs=0.003)
    # From the middle of the first fifth to the middle of the last.
    assert line[0] == pytest.approx((1 - WINDOW) * share, abs=0.003)
    jump = growth(list(times), list(noise * (1 + share * (times > 700))))
    assert jump[0] == pytest.approx(share, abs=0.003)


def test_the_warm_up_ends_when_every_program_has_ended_a_chunk() -> None:
    samples, told = steady(100)
    assert after_warm_up(samples, told) == (samples[10:], told[3:])
    for line in told[:50]:
        line["program"] = 0
    assert after_warm_up(samples, told) == (samples[54:], told[53:])


LEAKING = """
import os, sys, tempfile, threading, time
lost = []
print(flush=True)
for _ in range(40):
    if "leak" in sys.argv:
        lost.append((os.urandom(2**20), os.open(os.devnull, os.O_RDONLY)))
        tempfile.mkstemp()
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    time.sleep(0.02)
"""


@pytest.mark.parametrize("leaks", [True, False])
def test_a_real_process_is_sampled(tmp_path: Path, leaks: bool) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LEAKING, "leak" if leaks else ""],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()  # it has started
    samples = watch(process, tmp_path, 0.01)
    process.stdout.close()
    names = [line.partition(":")[0] for line in growing(samples, steady()[1])]
    assert names == (["memory", "threads", "descriptors", "files"] if leaks else [])
    assert len(samples) > 10
    # Numbers of the system itself, not only their growth: an interpreter and 40 MiB.
    grown = (max(sample.memory for sample in samples) - samples[0].memory) / MIB
    assert grown == pytest.approx(40 if leaks else 0, abs=10)
    assert samples[-1].files - samples[0].files in (range(30, 41) if leaks else [0])


def load_soaked() -> ModuleType:
    spec = importlib.util.spec_from_file_location("soaked", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_programs_take_turns() -> None:
    program_of = [0, 0, 0, 0, 1, 1, 2].__getitem__
    assert load_soaked().in_turns(range(7), program_of) == [0, 4, 1, 6, 2, 5, 3]


def test_the_command_tells_of_what_it_does(tmp_path: Path) -> None:
    """What `soaked.py` replaces is what the command uses."""
    done = soak(tmp_path / "run", 2, 0.1, leaks=["arrays"], axes="batch_size = [8]\n")
    assert done.status == 0, done.said
    assert done.told[-1].keys() >= {"segments", "compilations", "arrays", "objects"}
    check_files(done)


@pytest.mark.slow
def test_everything_that_a_sweep_could_lose_is_found(tmp_path: Path) -> None:
    leaks = list(load_soaked().LEAKS)
    done = soak(tmp_path / "run", 2 * FEW_SEEDS, 0.1, leaks=leaks)
    found = growing(*after_warm_up(done.samples, done.told))
    assert sorted(line.partition(":")[0] for line in found) == sorted([*leaks, "executables"])
    with pytest.raises(AssertionError, match="tmp/"):
        check_files(done)


# --------------------------------------------------------------------------------------- the hour


@pytest.mark.soak
def test_an_hour_of_a_sweep_leaves_nothing_behind(tmp_path: Path) -> None:
    """A short one runs to its end; a long one is asked to end when the time is over."""
    short = soak(tmp_path / "short", FEW_SEEDS, 1.0)
    assert short.status == 0, short.said
    check_files(short)
    # Many more than the time allows, even if the machine has more of it for us than just now.
    seeds = max(FEW_SEEDS, round(4 * FEW_SEEDS * SECONDS / seconds_of(short)))
    done = soak(tmp_path / "long", seeds, max(0.1, SECONDS / MOST_SAMPLES), seconds=SECONDS)
    assert done.status == 128 + signal.SIGINT, done.said
    chunks = check_files(done)
    assert chunks >= 4 * len(PROGRAMS)
    assert done.told[-1]["checkpoints"] > 0
    samples, told = after_warm_up(done.samples, done.told)
    print(f"\n{summary(done, samples, told)}")
    assert growing(samples, told) == []
    shutil.rmtree(done.folder)  # a few hundred MB that pytest would keep


def summary(done: Soak, samples: Sequence[Sample], told: Sequence[dict[str, Any]]) -> str:
    """What was counted, in a line."""
    by_median, on_line = growth([s.time for s in samples], [s.memory for s in samples])
    objects, _ = growth([line["time"] for line in told], [line["objects"] for line in told])
    first, last = told[0], told[-1]
    later = last["compilations"] - first["compilations"]
    ranges = {
        name: f"{min(column)} to {max(column)}"
        for name, column in zip(Sample._fields, zip(*samples, strict=True), strict=True)
    }
    counts = {
        "seconds": f"{done.samples[-1].time - done.samples[0].time:.0f}",
        "chunks": len(done.told),
        "segments": last["segments"],
        "checkpoints": last["checkpoints"],
        "samples": len(samples),
        "memory": f"{statistics.median(s.memory for s in samples) / MIB:.1f} MiB",
        "peak": f"{max(s.memory for s in done.samples) / MIB:.1f} MiB",
        "growth": f"{by_median:.2%} from median to median, {on_line:.2%} on a line",
        "Python objects": f"{objects:.2%}",
        "compilations": f"{first['compilations']}, then {later}",
        "executables": f"{first['executables']} to {last['executables']}",
        "arrays": f"{first['arrays']} to {last['arrays']}",
        "descriptors": ranges["descriptors"],
        "threads": ranges["threads"],
        "files beside chunks": ranges["files"],
    }
    return ", ".join(f"{name}: {count}" for name, count in counts.items())
