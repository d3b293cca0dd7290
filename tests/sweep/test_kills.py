"""Nothing is lost when processes are killed, interrupted, or run out of disk: the command itself.

Each test starts ``scbjax run`` as a process, with checkpoints a thousand times as often as usual,
lets something happen to it, runs it again, and compares the bytes of every variable with those of a
run that nothing happened to. Compiled programs are kept between processes.
"""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import xarray

from scbjax.sweep.plan.plans import make_plan
from scbjax.sweep.study.files import parse_study

KILLS = 50
STARTING_SHARE = 0.1
"""Of the kills: while the process is still starting."""
WAIT_SECONDS = 300.0

STUDY = """
title = "A study of four chunks"
[task]
num_tokens = 2
context_length = 20
sparsity = 1
[train]
batch_size = 4
steps = 4000
record_every = 20
[record]
variables = ["value_distance", "stage"]
final = true
[axes]
seed = { range = [0, 8] }
"""
OFTEN = [str(Path(__file__).with_name("often.py")), "0.02", "0.03"]
"""The command, with a segment every 20 ms and a checkpoint every 30."""


@dataclass(frozen=True)
class Command:
    """Starts the command in a folder of its own.

    Attributes:
        folder: with the study, and the compiled programs.
        content: the bytes of every variable, after a run that nothing happened to.
        seconds: how long such a run takes from its first file to its end.
        memory: budget in bytes that makes four chunks.
    """

    folder: Path
    content: dict[str, bytes]
    seconds: float
    memory: int

    def start(self, out: Path, **options: Any) -> subprocess.Popen[str]:  # noqa: ANN401
        arguments = ["--out", str(out), "--no-figure", "--cpu-devices", "1"]
        arguments += ["--memory", f"{self.memory}B"]
        cache = ["--compilation-cache", str(self.folder / "programs")]
        return subprocess.Popen(
            [
                sys.executable,
                *OFTEN,
                "run",
                str(self.folder / "kept.toml"),
                *arguments,
                *cache,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            **options,
        )

    def fail(self, out: Path, **options: Any) -> str:  # noqa: ANN401
        """Runs it when it can't succeed; returns the one line that it says."""
        process = self.start(out, **options)
        said = process.communicate(timeout=WAIT_SECONDS)[1]
        assert process.returncode == 2, said
        assert "Traceback" not in said
        return said.splitlines()[-1]

    def finish(self, out: Path) -> str:
        """Runs it to the end and compares; returns what it said."""
        process = self.start(out)
        said = process.communicate(timeout=WAIT_SECONDS)[1]
        assert process.returncode == 0, said
        assert content_of(out) == self.content
        assert [path.name for path in out.rglob("*") if path.name.startswith(".")] == []
        return said


def content_of(out: Path) -> dict[str, bytes]:
    with xarray.open_dataset(out / "kept.nc", engine="h5netcdf") as found:
        return {str(name): found[name].to_numpy().tobytes() for name in found.variables}


def wait_until_begun(process: subprocess.Popen[str], out: Path) -> bool:
    """Waits until the process holds the directory; returns whether it still runs."""
    while process.poll() is None:
        try:
            if json.loads((out / "lock").read_bytes())["pid"] == process.pid:
                return True
        except (OSError, ValueError, KeyError):
            pass
        time.sleep(0.005)
    return False


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    folder = tmp_path_factory.mktemp("kills")
    (folder / "kept.toml").write_text(STUDY)
    (program,) = make_plan(parse_study(STUDY, "kept")).programs
    first = Command(folder, {}, 0.0, program.cost.chunk_bytes(program.fixed, (2, 1), 1))
    first.start(folder / "compiling").communicate(timeout=WAIT_SECONDS)
    process = first.start(folder / "whole")
    begun, start = wait_until_begun(process, folder / "whole"), time.monotonic()
    said = process.communicate(timeout=WAIT_SECONDS)[1]
    assert process.returncode == 0, said
    assert begun
    assert len(list((folder / "whole" / "chunks").iterdir())) == 4
    content = content_of(folder / "whole")
    return replace(first, content=content, seconds=time.monotonic() - start)


def kill_once(command: Command, out: Path, rng: random.Random) -> str | None:
    """Starts or continues the study and kills it at a random moment; None if it had ended."""
    process = command.start(out)
    starting = rng.random() < STARTING_SHARE
    moment = rng.random()
    if starting:
        time.sleep(moment)
    elif wait_until_begun(process, out):
        time.sleep(moment * command.seconds)
    process.kill()
    process.communicate(timeout=WAIT_SECONDS)
    if process.returncode == 0:
        return None
    assert process.returncode == -signal.SIGKILL
    if starting:
        return "starting"
    if list(out.rglob(".*.partial")):
        return "writing a file"
    return "between files"


def test_a_killed_run_goes_on_from_its_checkpoint(command: Command, tmp_path: Path) -> None:
    """Usually there is a checkpoint every half a minute, which this run does not last."""
    process = command.start(tmp_path)
    while process.poll() is None and not list(tmp_path.glob("checkpoints/*.npz")):
        time.sleep(0.005)
    process.kill()
    process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == -signal.SIGKILL
    command.finish(tmp_path)


@pytest.mark.slow
def test_kills_at_random_moments(command: Command, tmp_path: Path) -> None:
    rng, begun = random.Random(20240), time.monotonic()
    moments: Counter[str] = Counter()
    studies = 0
    while moments.total() < KILLS:
        out = tmp_path / f"out-{studies}"
        while moments.total() < KILLS:
            moment = kill_once(command, out, rng)
            if moment is None:
                break
            moments[moment] += 1
        command.finish(out)
        studies += 1
    seconds = time.monotonic() - begun
    told = ", ".join(f"{count} {moment}" for moment, count in sorted(moments.items()))
    print(
        f"\nkills survived: {moments.total()} ({told}) in {studies} studies; differences found: 0"
    )
    print(f"seconds: {seconds:.0f}")
    assert moments["writing a file"] + moments["between files"] > KILLS / 2


@pytest.mark.slow
def test_power_cuts_that_damage_the_newest_file(command: Command, tmp_path: Path) -> None:
    """After a kill the newest file is cut short or overwritten, and one of no name is left."""
    rng = random.Random(7)
    found: Counter[str] = Counter()
    for number in range(6):
        out = tmp_path / f"out-{number}"
        while not list(out.glob("chunks/[0-9]*")):
            kill_once(command, out, rng)
        newest = max(out.rglob("*.*"), key=lambda path: path.stat().st_mtime_ns)
        content = newest.read_bytes()
        kept = content[: rng.randrange(len(content))]
        newest.write_bytes(kept if number % 2 else kept + rng.randbytes(len(content) - len(kept)))
        (out / "chunks" / ".00003.npz.partial").write_bytes(b"half")
        said = command.finish(out)
        assert "that an earlier run was about to write" in said
        assert "damaged" in said or newest.name.startswith(".")
        found[newest.parent.name if newest.suffix == ".npz" else newest.name] += 1
    print(f"\npower cuts survived: {found.total()}, damaged: {dict(found)}; differences found: 0")


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_interrupts(command: Command, tmp_path: Path, times: int) -> None:
    out = tmp_path / "out"
    process = command.start(out)
    assert wait_until_begun(process, out)
    while not (out / "checkpoints").is_dir():
        time.sleep(0.005)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.001)
    printed, said = process.communicate(timeout=WAIT_SECONDS)
    assert "Traceback" not in said
    if process.returncode == 130:
        assert "continue with: scbjax run" in printed
    else:  # the second comes while the first is still under way, or too late
        assert (process.returncode, times) == (-signal.SIGINT, 2)
    assert not (out / "kept.nc").exists()
    command.finish(out)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """Mounts a file system of a size, where that is allowed; says whether it was."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    allowed = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield allowed
    finally:
        if allowed:
            subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk(command: Command, tmp_path: Path) -> None:
    """A tmpfs that is too small for what a run writes; or else a limit of the size of a file."""
    kinds: Counter[str] = Counter()
    for kilobytes in (4, 16, 32, 48, 96, 128):
        folder, size = tmp_path / str(kilobytes), kilobytes * 1024
        with small_disk(folder, size) as mounted:
            if mounted:
                said = command.fail(folder / "out")
                assert "can't be written: " in said
                assert "No space left on device" in said
                subprocess.run(["mount", "-o", "remount,size=9m", str(folder)], check=True)
            else:
                limit = (size // 4, size // 4)
                said = command.fail(
                    folder / "out",
                    preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
                )
                assert "can't be written: " in said
            command.finish(folder / "out")
        kinds["tmpfs" if mounted else "RLIMIT_FSIZE"] += 1
        print(f"\n{kilobytes} kB: {said.partition(' can')[0]}", end="")
    print(f"\nfull disks survived: {kinds.total()} ({', '.join(kinds)}); differences found: 0")


@pytest.mark.slow
def test_a_directory_that_may_not_be_written(command: Command, tmp_path: Path) -> None:
    """Refused before JAX is loaded. To root only a disk that is mounted so forbids anything."""
    folder = tmp_path / "disk"
    with small_disk(folder, 9 * 2**20) as mounted:
        if not mounted and os.geteuid() == 0:
            pytest.skip("root may write everywhere, and nothing may be mounted here")
        (folder / "out").mkdir()
        mount = ["mount", "-o", "remount,ro", str(folder)]
        (folder / "out").chmod(0o555)
        subprocess.run(mount if mounted else ["true"], check=True)
        said = command.fail(folder / "out")
        assert f"{folder}/out can't be written: no permission to write in {folder}/out" in said
        mount[2] = "remount,rw"
        subprocess.run(mount if mounted else ["true"], check=True)
        (folder / "out").chmod(0o755)
        command.finish(folder / "out")
