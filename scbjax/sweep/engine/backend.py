"""What the command sets up of JAX before JAX starts: its CPU devices, and compiled programs kept.

The library itself sets nothing when it is imported. What the user has chosen by an environment
variable of JAX stays as it is, unless an option of the command says otherwise.
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import platform
import re
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scbjax.base import StudyError
from scbjax.sweep.study.fields import shown

if TYPE_CHECKING:
    import jax

MAX_CPU_DEVICES = 1024
"""Far above any number of cores; each device costs threads."""
CACHE_BYTES = 2**30
"""Size of the folder of compiled programs from which on the oldest are removed. A program takes
about a megabyte."""
OFF = "off"

_CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")
_CPU_INFO = Path("/proc/cpuinfo")
_VECTOR_WIDTH = "xla_cpu_prefer_vector_width"
_CACHE_WARNING = re.compile(
    r"Error (?P<done>reading|writing) persistent compilation cache entry for '(?P<name>[^']+)'"
)
_ZSTANDARD = b"\x28\xb5\x2f\xfd"  # what such a file begins with (RFC 8878)
_PLATFORMS = "JAX_PLATFORMS"
_NO_DEVICE = "JAX finds no device to run on: "
_PROBE = """
import json, sys
from scbjax.sweep.engine.backend import find_devices
from scbjax.base import StudyError
try:
    devices = find_devices()
except StudyError as error:
    sys.exit(str(error))
print(json.dumps([devices[0].platform, len(devices)]))
"""


def usable_cores(cgroup_limit: Path = _CGROUP_LIMIT) -> int:
    """Cores that this process may use: those of its affinity, within the limit of its container.

    Args:
        cgroup_limit: the file that holds the container's quota and period, if there is one.

    >>> 1 <= usable_cores() <= os.cpu_count()
    True
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:  # other systems than Linux
        cores = os.cpu_count() or 1
    try:
        quota, period = cgroup_limit.read_text(encoding="ascii").split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no container, or no limit ("max")
        return cores


def read_cpu_devices(text: str) -> int | None:
    """Returns a number of CPU devices, or `None` for "auto".

    Raises:
        StudyError: it is neither.

    >>> read_cpu_devices("2"), read_cpu_devices("auto")
    (2, None)
    """
    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_CPU_DEVICES):
        raise StudyError(
            f"--cpu-devices must be auto or an integer from 1 to {MAX_CPU_DEVICES}, "
            f"got {shown(text)}"
        )
    return int(text)


def cpu_device_count(asked: int | None, environ: Mapping[str, str] = os.environ) -> int | None:
    """How many devices to make of the CPU.

    XLA runs small kernels one after the other, each on one core. With a device for each core,
    trajectories run side by side; what one device alone works on still uses all threads.

    Args:
        asked: the number that the user asked for; None for one for each usable core.
        environ: the environment.

    Returns:
        The number, or None if the environment has settled it.
    """
    if asked is not None:
        return asked
    settled = "JAX_NUM_CPU_DEVICES" in environ
    settled |= "--xla_force_host_platform_device_count" in environ.get("XLA_FLAGS", "")
    return None if settled else usable_cores()


def make_cpu_devices(asked: int | None) -> None:
    """Makes devices of the CPU (see `cpu_device_count`), unless JAX has started already."""
    count = cpu_device_count(asked)
    if count is not None:
        _set_cpu_devices(count)


def _set_cpu_devices(count: int) -> bool:
    """Sets their number; returns whether it could be: JAX keeps those that it has started with."""
    import jax

    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        return False
    return True


def find_devices() -> list[jax.Device]:
    """Starts JAX and returns its devices.

    Raises:
        StudyError: there are none.
    """
    import jax

    try:
        return jax.devices()
    except RuntimeError as error:
        raise StudyError(_NO_DEVICE + str(error)) from None
    except AssertionError:
        # JAX passes over CUDA where it sees no NVIDIA GPU, and then asserts that something is left.
        asked = shown(getattr(jax.config, "jax_platforms", None))
        raise StudyError(
            f"{_NO_DEVICE}this machine has none of {_PLATFORMS} = {asked}; "
            f"leave it out to take what is there, or set it to cpu"
        ) from None


def probe_devices() -> tuple[str, int]:
    """The platform and the number of devices, found by a process that does not keep them.

    Raises:
        StudyError: there are none.
    """
    if os.environ.get(_PLATFORMS) == "cpu":
        return "cpu", 1
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run(
        [sys.executable, "-c", _PROBE], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise StudyError(_NO_DEVICE + last.removeprefix(_NO_DEVICE))
    platform_name, count = json.loads(done.stdout.splitlines()[-1])
    return platform_name, count


def compiler_options(
    platform_name: str, environ: Mapping[str, str] = os.environ, cpu_info: Path = _CPU_INFO
) -> dict[str, str | bool]:
    """Options for compiling a sweep's programs, for ``compile(compiler_options=...)`` of JAX.

    XLA uses half of the registers of a processor that has AVX-512, which some of the older ones
    would slow down their clock for. A step with a small vocabulary is arithmetic in registers.

    Args:
        platform_name: of the devices that the program is for, such as ``"cpu"``.
        environ: the environment, whose ``XLA_FLAGS`` may have settled it.
        cpu_info: the file in which Linux describes the processors.

    >>> compiler_options("gpu")
    {}
    """
    if platform_name != "cpu" or _VECTOR_WIDTH in environ.get("XLA_FLAGS", ""):
        return {}
    try:
        wide = "avx512f" in cpu_info.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return {}
    return {_VECTOR_WIDTH: "512"} if wide else {}


def use_wide_registers() -> None:
    """Has all that this process compiles use the registers that its processor has.

    A flag of XLA, which is read when JAX starts: after that, or where `XLA_FLAGS` has settled it,
    nothing is changed.
    """
    options = compiler_options("cpu")
    if options and not _has_started():
        flags = (f"--{name}={value}" for name, value in options.items())
        os.environ["XLA_FLAGS"] = " ".join([*os.environ.get("XLA_FLAGS", "").split(), *flags])


def _has_started() -> bool:
    """Whether JAX runs, which it says where a number of devices is changed too late."""
    import jax

    count = getattr(jax.config, "jax_num_cpu_devices", -1)
    has_started = not _set_cpu_devices(count + 2)
    if not has_started:
        _set_cpu_devices(count)
    return has_started


def keep_programs(asked: str | None) -> str | None:
    """Lets JAX keep what it compiles in a folder, so that the next process need not compile it.

    Args:
        asked: the folder, or "off"; None for that of ``JAX_COMPILATION_CACHE_DIR``, or else
            ``scbjax`` in the user's folder for such things (``$XDG_CACHE_HOME`` or ``~/.cache``;
            ``~/Library/Caches`` on macOS), which platformdirs knows.

    Returns:
        A note for the user if programs are not kept although they should be.
    """
    import jax
    import platformdirs

    mend_cache()
    if asked == OFF:
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    if asked is None and os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return None
    try:
        folder = _cache_folder(
            platformdirs.user_cache_path("scbjax") if asked is None else Path(asked)
        )
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
        return f"compiled programs are not kept: {error}"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # By default JAX leaves out what took less than a second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return None


def mend_cache() -> None:
    """Removes programs that can't be read when JAX warns of them, in the place of its warning.

    A disk that is full, or a power cut, leaves the beginning of a program under its name. JAX would
    warn of it in every process, compile again, and never replace it.
    """
    shown_before = warnings.showwarning
    if isinstance(shown_before, _Mender):
        return
    warnings.showwarning = _Mender(shown_before)


class _Mender:
    """Shows warnings, but for those that it has removed the cause of.

    Args:
        show: what shows the others.
    """

    def __init__(self, show: Callable[..., None]) -> None:
        self._show = show

    def __call__(self, message: Warning | str, *details: Any, **more: Any) -> None:  # noqa: ANN401
        found = _CACHE_WARNING.match(str(message))
        removed = [] if found is None else _remove_damaged(found["name"])
        if found is None or not removed:
            self._show(message, *details, **more)
            return
        for path in removed:
            print(f"scbjax: removed {path}, a compiled program that is damaged", file=sys.stderr)
        if found["done"] == "writing":
            reason = str(message).partition(": ")[2]
            print(f"scbjax: a compiled program is not kept: {reason}", file=sys.stderr)


def _remove_damaged(name: str) -> list[Path]:
    """Removes the programs of a name in JAX's cache that are not whole; returns their files."""
    import jax

    folder = getattr(jax.config, "jax_compilation_cache_dir", None)
    if not folder:
        return []
    damaged = [
        path for path in Path(folder).glob(f"{glob.escape(name)}*-cache") if not _is_whole(path)
    ]
    for path in damaged:
        path.unlink(missing_ok=True)
    return damaged


def _is_whole(program: Path) -> bool:
    """Whether a compiled program can be unpacked, as far as can be told here."""
    try:
        content = program.read_bytes()
    except OSError:
        return True  # gone, or of somebody else
    if content.startswith(_ZSTANDARD):
        return _is_whole_zstandard(content)
    try:
        zlib.decompress(content)
    except zlib.error:
        return False
    return True


def _is_whole_zstandard(content: bytes) -> bool:
    """Whether it can be unpacked by the package that JAX uses for that where it is installed."""
    try:
        import zstandard
    except ImportError:
        return True
    try:
        zstandard.ZstdDecompressor().decompress(content)
    except zstandard.ZstdError:
        return False
    return True


def _cache_folder(root: Path) -> Path:
    """The folder for this machine's programs, with room in it."""
    folder = root / machine_name()
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"no permission to write in {folder}")
    remove_oldest(root, CACHE_BYTES)
    return folder


def machine_name() -> str:
    """A name for machines that can run each other's programs.

    A home directory may be shared by machines with other processors, and a program for the CPU may
    hold instructions that only some of them have.
    """
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    telling = ("vendor_id", "cpu family", "model", "model name", "flags", "Features")
    found = sorted({line for line in lines if line.partition(":")[0].strip() in telling})
    digest = hashlib.sha256("\n".join([*found, platform.processor()]).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:12]}"


def remove_oldest(root: Path, most_bytes: int) -> None:
    """Removes the programs that were used longest ago until the others are within a size.

    JAX has such a limit too, but it needs a package that JAX does not install.

    Args:
        root: holds a folder of programs for each kind of machine.
        most_bytes: the size.
    """
    files = []
    for path in root.glob("*/*-cache"):
        try:
            status = path.stat()
        except OSError:  # another process has just removed it
            continue
        files.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    size = 0
    for _, own, path in sorted(files, reverse=True):
        size += own
        if size > most_bytes:
            path.unlink(missing_ok=True)
