"""One run at a time: who holds a directory, who is refused, and what the dead leave behind."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from scbjax.base import StudyError
from scbjax.sweep.engine.execute import run_search, run_study
from scbjax.sweep.engine.progress import SilentProgress
from scbjax.sweep.plan.plans import make_plan
from scbjax.sweep.results.lock import LOCK_NAME, Holder, hold
from scbjax.sweep.results.store import Manifest, Store
from scbjax.sweep.study.files import Study, parse_study

WAIT_SECONDS = 60.0
ME = Holder.this_process()

STUDY = """
[task]
num_tokens = 2
context_length = 6
sparsity = 1
[train]
batch_size = 4
steps = 2
record_every = 1
[record]
variables = ["value_distance", "rounded_attention_distance", "stage", "samples"]
[axes]
seed = [0, 1]
"""
SEARCH = '[search]\nfield = "learning_rate_1"\nfirst = 0.01\nlast = 1.0\n'

HOLD = """
import sys, time
from pathlib import Path
from scbjax.sweep.results.lock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def leave(out: Path, holder: Holder | str) -> Path:
    """A lock file that nobody has locked."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / LOCK_NAME
    path.write_text(holder if isinstance(holder, str) else json.dumps(asdict(holder)))
    return path


def taken_over(out: Path) -> list[str]:
    """What is said when the directory is taken, with who holds it then checked."""
    said: list[str] = []
    with hold(out, said.append):
        assert json.loads((out / LOCK_NAME).read_text())["pid"] == os.getpid()
    assert not (out / LOCK_NAME).exists()
    return said


def test_a_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(StudyError, match=r"can't be run on .* they can on Linux"), hold(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_is_refused_with_host_and_process(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    with hold(out):
        named = f"out is held by process {os.getpid()} on {socket.gethostname()}, .* --out"
        for _ in range(2):
            with pytest.raises(StudyError, match=named) as error, hold(out):
                pass
            assert "\n" not in str(error.value)
    assert taken_over(out) == []


def test_a_killed_process_leaves_a_lock_that_is_taken_over(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(StudyError, match=f"held by process {process.pid} on"), hold(tmp_path):
            pass
        process.kill()
        # Nobody has asked yet how it ended: it still has its number. Its files are open until the
        # last of its threads is gone.
        kernel, deadline = Path(f"/proc/{process.pid}"), time.monotonic() + WAIT_SECONDS
        while kernel.exists() and (
            ") Z " not in (kernel / "stat").read_text() or len(list(kernel.glob("task/*"))) > 1
        ):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        (said,) = taken_over(tmp_path)
    assert f"process {process.pid} on {socket.gethostname()} left behind" in said


@pytest.mark.skipif(ME.started < 0, reason="the system doesn't say when a process began")
def test_another_process_of_the_same_number_is_not_the_holder(tmp_path: Path) -> None:
    leave(tmp_path, ME)
    with pytest.raises(StudyError, match="is held by"), hold(tmp_path):
        pass
    leave(tmp_path, replace(ME, started=ME.started + 1))
    assert len(taken_over(tmp_path)) == 1


def test_another_host_is_believed_and_a_restarted_one_is_not(tmp_path: Path) -> None:
    path = leave(tmp_path, replace(ME, host="elsewhere", boot="1"))
    with pytest.raises(StudyError, match=f"on elsewhere; remove {path} if"), hold(tmp_path):
        pass
    leave(tmp_path, replace(ME, boot="1"))
    assert len(taken_over(tmp_path)) == 1


@pytest.mark.parametrize("content", ["[1]", "{", '{"host": 1}', "\x00", "[" * 4000])
def test_a_file_that_is_no_lock_is_left_alone(tmp_path: Path, content: str) -> None:
    path = leave(tmp_path, content)
    with pytest.raises(StudyError, match="lock can't be understood; remove it"), hold(tmp_path):
        pass
    assert path.read_text() == content


def test_a_lock_that_nobody_lived_to_fill_is_taken(tmp_path: Path) -> None:
    leave(tmp_path, "")
    assert taken_over(tmp_path) == []


def test_file_systems_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        hold(tmp_path),
        pytest.raises(StudyError, match=f"held by process {os.getpid()}"),
        hold(tmp_path),
    ):
        pass
    leave(tmp_path, replace(ME, started=ME.started + 1))
    assert len(taken_over(tmp_path)) == 1
    leave(tmp_path, "")  # made a moment ago, by a process that may be about to fill it
    with pytest.raises(StudyError, match="another run, which has just begun"), hold(tmp_path):
        pass


def test_of_many_that_try_at_once_one_is_inside(tmp_path: Path) -> None:
    """Threads try as processes do: what is locked is the open file."""
    inside, most, entered = 0, 0, 0
    count = threading.Lock()

    def attempt() -> None:
        nonlocal inside, most, entered
        for _ in range(60):
            try:
                with hold(tmp_path):
                    with count:
                        inside, entered = inside + 1, entered + 1
                        most = max(most, inside)
                    time.sleep(0.0005)
                    with count:
                        inside -= 1
            except StudyError:
                time.sleep(0.0002)

    leave(tmp_path, replace(ME, started=ME.started + 1))
    threads = [threading.Thread(target=attempt) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert entered > 10
    assert not (tmp_path / LOCK_NAME).exists()


def test_a_directory_that_cant_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match="lock can't be written"), hold(tmp_path / "file"):
        pass


# ---------------------------------------------------------------------------------------- of runs


def begin(study: Study, out: Path) -> dict[Path, bytes]:
    """A directory that a run of the study has begun; its files."""
    Store(out).write_manifest(Manifest.of(make_plan(study), {}))
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("force", [False, True])
def test_runs_leave_a_held_directory_alone(tmp_path: Path, force: bool) -> None:
    study, out = parse_study(STUDY, "study"), tmp_path / "out"
    before = begin(study, out)
    with hold(out), pytest.raises(StudyError, match="out is held by"):
        run_study(make_plan(study), out, progress=SilentProgress(), force=force)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("force", [False, True])
def test_searches_leave_a_held_directory_alone(tmp_path: Path, force: bool) -> None:
    study, out = parse_study(STUDY + SEARCH, "study"), tmp_path / "out"
    cell = out / "cell-0" / "round-0"
    before = begin(parse_study(STUDY, "study"), cell)
    held = [out, cell] if force else [out]
    for folder in held:
        with hold(folder), pytest.raises(StudyError, match=f"{folder} is held by"):
            run_search(study, out, create_progress=SilentProgress, force=force)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_search_is_refused_where_another_run_holds_a_cell(tmp_path: Path) -> None:
    study = parse_study(STUDY + SEARCH, "study")
    cell = tmp_path / "cell-0" / "round-0"
    with hold(cell), pytest.raises(StudyError, match="cell-0/round-0 is held by"):
        run_search(study, tmp_path, create_progress=SilentProgress)
    assert not (tmp_path / LOCK_NAME).exists()
