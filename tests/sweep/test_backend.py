"""What the command sets up of JAX: CPU devices, and compiled programs for the next process."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from scbjax.base import StudyError
from scbjax.sweep.engine import backend
from scbjax.sweep.engine.backend import (
    compiler_options,
    cpu_device_count,
    machine_name,
    make_cpu_devices,
    read_cpu_devices,
    remove_oldest,
    usable_cores,
)

STUDY = """
title = "A title"
[task]
num_tokens = 3
context_length = 20
[train]
batch_size = 4
steps = 4
record_every = 2
[record]
variables = ["attention_distance"]
[axes]
seed = [0, 1]
sparsity = [1, 2]
"""

# Runs the command and prints what the cache of compiled programs was asked for.
SCRIPT = """
import sys
from collections import Counter
import jax
import jax.numpy as jnp
from scbjax.cli import main

events = Counter()
jax.monitoring.register_event_listener(lambda name, **_: events.update([name.split("/")[-1]]))
status = main(["run", "study.toml", *sys.argv[1:]])
print(status, events["cache_hits"], events["cache_misses"], jax.local_device_count())
"""


def run(folder: Path, *arguments: str, **environ: str) -> tuple[list[int], str]:
    """Status, programs found and not found in the cache, and devices; and what was said."""
    (folder / "study.toml").write_text(STUDY)
    dropped = ("JAX_", "XLA_")  # the user's own settings must not count
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env={**kept, "JAX_PLATFORMS": "cpu", **environ},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(word) for word in ran.stdout.splitlines()[-1].split()], ran.stderr


@pytest.mark.slow
def test_the_second_process_compiles_nothing_and_gets_the_same_bits(tmp_path: Path) -> None:
    import xarray

    home = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    (status, hits, misses, devices), _ = run(tmp_path, "--out", "first", **home)
    assert (status, hits, devices) == (0, 0, usable_cores())
    assert misses > 0
    again, said = run(tmp_path, "--out", "second", **home)
    assert again == [0, misses, 0, devices]
    assert "compiled programs" not in said
    with (
        xarray.open_dataset(tmp_path / "first" / "study.nc") as first,
        xarray.open_dataset(tmp_path / "second" / "study.nc") as second,
    ):
        assert first.equals(second)
        assert first.attrs["device"].startswith(f"{devices} x cpu")
        assert float(first.attention_distance.min()) > 0


COMPILE = """
import resource
import sys
import jax
import jax.numpy as jnp
from scbjax.sweep.engine.backend import keep_programs

keep_programs(sys.argv[1])
if limit := int(sys.argv[2]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
print(jax.jit(lambda x: jnp.cumsum(x))(jnp.arange(4.0)))
"""


def compile_into(folder: Path, limit: int = 0) -> str:
    """Compiles and keeps programs in a process of its own, whose files may have a largest size."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    ran = subprocess.run(
        [sys.executable, "-B", "-c", COMPILE, str(folder), str(limit)],
        env={**kept, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "[0. 1. 3. 6.]\n"
    return ran.stderr


def sizes_of(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("*/*-cache")}


@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_a_damaged_program_is_replaced(tmp_path: Path, kept: float) -> None:
    assert compile_into(tmp_path) == ""
    whole = sizes_of(tmp_path)
    assert whole
    for path in tmp_path.glob("*/*-cache"):
        path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert sizes_of(tmp_path) != whole
    said = compile_into(tmp_path).splitlines()
    assert all(line.endswith("a compiled program that is damaged") for line in said)
    assert {line.split()[2].split("/")[-1].rstrip(",") for line in said} == set(whole)
    assert set(sizes_of(tmp_path)) == set(whole)
    assert min(sizes_of(tmp_path).values()) > 0.9 * min(whole.values())
    assert compile_into(tmp_path) == ""


def test_a_full_disk_leaves_no_part_of_a_program(tmp_path: Path) -> None:
    said = compile_into(tmp_path, limit=512)
    assert sizes_of(tmp_path) == {}
    assert "scbjax: a compiled program is not kept: OSError: [Errno 27] File too large" in said
    assert "UserWarning" not in said
    assert compile_into(tmp_path) == ""
    assert sizes_of(tmp_path)


def test_other_warnings_are_shown_as_before(recwarn: pytest.WarningsRecorder) -> None:
    backend.mend_cache()
    backend.mend_cache()
    warnings.warn("something else", UserWarning, stacklevel=1)
    reading = "Error reading persistent compilation cache entry for 'jit_f': of its own"
    warnings.warn(reading, UserWarning, stacklevel=1)  # no damaged file explains it
    assert [str(found.message) for found in recwarn] == ["something else", reading]


@pytest.mark.slow
def test_programs_are_not_kept_where_they_should_not_or_can_not(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    home = {"XDG_CACHE_HOME": str(tmp_path / "file")}
    (status, hits, misses, devices), said = run(tmp_path, "--cpu-devices", "3", **home)
    assert (status, hits, misses, devices) == (0, 0, 0, 3)
    assert said.count("compiled programs are not kept") == 1
    assert str(tmp_path / "file") in said
    home = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    arguments = ("--compilation-cache", "off", "--force")
    assert run(tmp_path, *arguments, **home, **flags)[0] == [0, 0, 0, 2]
    assert not (tmp_path / "cache" / "scbjax").exists()


def test_the_programs_that_were_used_longest_ago_are_removed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    names = ["a/1-cache", "b/2-cache", "a/3-cache", "b/4-cache"]
    for age, name in enumerate(names):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (10**9 - age, 10**9 - age - 50))
    (tmp_path / "a" / "notes").write_bytes(bytes(1000))
    remove_oldest(tmp_path, 250)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*")}
    assert left == {"a/1-cache", "b/2-cache", "a/notes"}
    remove_oldest(tmp_path / "nowhere", 0)


def test_machines_with_other_processors_keep_their_programs_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def name_of(text: str) -> str:
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(backend, "_CPU_INFO", tmp_path / "cpuinfo")
        return machine_name()

    first = name_of("model\t: 1\nflags\t: sse avx\ncpu MHz\t: 2000\n")
    assert first == name_of("model\t: 1\nflags\t: sse avx\ncpu MHz\t: 2001\n" * 2)
    assert first != name_of("model\t: 1\nflags\t: sse avx avx512f\ncpu MHz\t: 2000\n")
    monkeypatch.setattr(backend, "_CPU_INFO", tmp_path / "none")
    assert machine_name() != first


@pytest.mark.parametrize(
    ("limit", "cores"), [("max 100000", 64), ("150000 100000", 2), ("100 100000", 1), ("", 64)]
)
def test_cores_are_those_that_the_container_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    (tmp_path / "cpu.max").write_text(limit)
    assert usable_cores(tmp_path / "cpu.max") == cores
    assert usable_cores(tmp_path / "none") == 64


def test_the_environment_settles_the_devices_unless_asked_otherwise() -> None:
    flags = {"XLA_FLAGS": "--a=1 --xla_force_host_platform_device_count=8"}
    assert cpu_device_count(None, {}) == usable_cores()
    assert cpu_device_count(None, {"XLA_FLAGS": "--a=1"}) == usable_cores()
    assert cpu_device_count(None, flags) is None
    assert cpu_device_count(None, {"JAX_NUM_CPU_DEVICES": "3"}) is None
    assert cpu_device_count(4, flags) == 4


def test_devices_stay_as_they_are_once_jax_runs() -> None:
    count = jax.local_device_count()
    make_cpu_devices(count + 1)
    assert jax.local_device_count() == count


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "two", "1025", "9" * 5000, "²"])
def test_bad_numbers_of_devices(text: str) -> None:
    with pytest.raises(StudyError, match="--cpu-devices must be auto or an integer from 1 to 1024"):
        read_cpu_devices(text)


def test_wide_registers_are_used_where_there_are_some(tmp_path: Path) -> None:
    wide, narrow = tmp_path / "wide", tmp_path / "narrow"
    wide.write_text("flags : avx2 avx512f avx512bw\n", encoding="utf-8")
    narrow.write_text("flags : avx2 avx512fancy\n", encoding="utf-8")
    option = "xla_cpu_prefer_vector_width"
    assert compiler_options("cpu", {}, wide) == {option: "512"}
    assert compiler_options("cpu", {}, narrow) == {}
    assert compiler_options("cpu", {}, tmp_path / "none") == {}
    assert compiler_options("cuda", {}, wide) == {}
    assert compiler_options("cpu", {"XLA_FLAGS": f"--{option}=256"}, wide) == {}


def test_compiler_knows_the_options(tmp_path: Path) -> None:
    wide = tmp_path / "wide"
    wide.write_text("flags : avx512f\n", encoding="utf-8")
    lowered = jax.jit(lambda x: 2 * x).lower(jnp.ones(3))
    compiled = lowered.compile(compiler_options=compiler_options("cpu", {}, wide))
    assert compiled(jnp.ones(3)).tolist() == [2, 2, 2]
