"""One run at a time in a results directory: a lock that names its holder, and outlives no process.

Two things make it. The file ``OUT/lock`` says in JSON which process on which host writes to the
directory; and while that process lives, the system holds the file locked for it (``flock``), which
ends with the process however it ends. Where the file system can't do the latter, the file is
created by exactly one of those that try, and whether its holder lives is looked up.
"""

import contextlib
import errno
import json
import os
import platform
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from scbjax.base import StudyError
from scbjax.sweep.results.arrays import make_folder

LOCK_NAME = "lock"

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MAX_BYTES = 4096  # far more than a holder takes
_TRIES = 5  # a lock that its holder removes between two looks at it is tried again
_ENDED = {"Z", "X"}  # a process whose parent has not yet asked how it ended, and one that is going
_NOT_SUPPORTED = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL}


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Attributes:
        host: its host's name.
        pid: its number there.
        started: when it began, in clock ticks since the host was started; -1 where the system
            doesn't say. Numbers of processes are used again, these two together are not.
        boot: what tells one start of a host from all others; empty where the system doesn't say.
    """

    host: str
    pid: int
    started: int
    boot: str

    @classmethod
    def this_process(cls) -> "Holder":
        """The process that asks."""
        return cls(socket.gethostname(), os.getpid(), _start_time(os.getpid()), _boot_id())

    @property
    def is_gone(self) -> bool:
        """Whether it is sure that the process does not live any more.

        Of another host nothing is known; the same host under another ``boot`` was started anew.
        """
        if self.boot and self.boot == _boot_id():
            return not _lives(self.pid, self.started)
        if self.host != socket.gethostname():
            return False
        return bool(self.boot) or not _lives(self.pid, self.started)


class Lock:
    """A results directory that this process holds; see :func:`hold`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    def moved_to(self, out: Path) -> None:
        """Hears that the directory has another name."""
        self._path = out / LOCK_NAME

    def release(self) -> None:
        """Removes the lock, unless somebody else has removed it already."""
        if _is_at(self._descriptor, self._path):
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def check_system() -> None:
    """Makes sure that the system has the locks that runs need.

    Raises:
        StudyError: it has not.
    """
    try:
        import fcntl  # noqa: F401
    except ImportError:
        raise StudyError(
            f"studies can't be run on {platform.system()}, which has no flock to hold a results "
            "directory by; they can on Linux, on macOS, and on Windows in WSL"
        ) from None


@contextlib.contextmanager
def hold(out: Path, say: Callable[[str], None] = lambda _: None) -> Iterator[Lock]:
    """Holds a results directory while something is written there.

    Args:
        out: the directory; it is made if it is missing.
        say: hears of a lock that a dead process has left behind.

    Raises:
        StudyError: another run holds it, the lock can't be written, or the system has none.
    """
    check_system()
    path = out / LOCK_NAME
    try:
        make_folder(out)
        lock = _acquire(path, say)
    except OSError as error:
        raise StudyError(f"{path} can't be written: {error.strerror or error}") from None
    try:
        yield lock
    finally:
        lock.release()


def refuse_held_below(out: Path) -> None:
    """Makes sure that no run holds a directory below this one, such as a cell of a search.

    Raises:
        StudyError: a run does.
    """
    for path in sorted(out.glob(f"*/**/{LOCK_NAME}")):
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDWR)
            try:
                _refuse_live(path, descriptor)
            finally:
                os.close(descriptor)


def _acquire(path: Path, say: Callable[[str], None]) -> Lock:
    for _ in range(_TRIES):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            created = True
        except FileExistsError:
            created = False
            try:
                descriptor = os.open(path, os.O_RDWR)
            except FileNotFoundError:
                continue
        try:
            gone = _refuse_live(path, descriptor, created=created)
            if _is_at(descriptor, path):
                _write(descriptor)
                if gone is not None:
                    say(
                        f"takes over the lock that process {gone.pid} on {gone.host} "
                        f"left behind: it has ended"
                    )
                return Lock(path, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise StudyError(f"{path.parent} is being taken by other runs; try again")


def _refuse_live(path: Path, descriptor: int, *, created: bool = False) -> Holder | None:
    """Locks an open lock file; returns the dead process that has left it behind, if one has.

    Raises:
        StudyError: its holder lives, or may live.
    """
    locked = _flock(descriptor)
    content = os.pread(descriptor, _MAX_BYTES, 0)
    if not content and (locked or (created and locked is None)):
        return None  # just made, by this process or by one that ended before it could write
    holder = _read(content)
    if holder is None:
        if locked is False or not content:
            raise StudyError(f"{path.parent} is held by another run, which has just begun")
        raise StudyError(f"{path} can't be understood; remove it if no run writes there")
    if locked is False or not holder.is_gone:
        raise StudyError(_held(path, holder))
    return holder


def _held(path: Path, holder: Holder) -> str:
    who = f"{path.parent} is held by process {holder.pid} on {holder.host}"
    if holder.boot == _boot_id():
        return f"{who}, which is running there; wait for it, or choose another directory with --out"
    return f"{who}; remove {path} if that process is gone, or choose another directory with --out"


def _flock(descriptor: int) -> bool | None:
    """Whether the file is locked for this process now; None if the file system has no locks."""
    import fcntl  # which not every system has

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NOT_SUPPORTED:
            return None
        raise
    return True


def _write(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(Holder.this_process())).encode(), 0)


def _read(content: bytes) -> Holder | None:
    try:
        found = json.loads(content)
        return Holder(
            str(found["host"]), int(found["pid"]), int(found["started"]), str(found["boot"])
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one under a name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _lives(pid: int, started: int) -> bool:
    """Whether a process of this host lives, and is not a later one of the same number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass  # somebody else's; or no number of a process, of which nothing is known
    found = _status(pid)
    if found is None or started < 0:
        return True
    state, since = found
    return since == started and state not in _ENDED


def _start_time(pid: int) -> int:
    found = _status(pid)
    return -1 if found is None else found[1]


def _status(pid: int) -> tuple[str, int] | None:
    """A process's state and when it began, where Linux tells them."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name of the program stands in parentheses and may hold anything; after it come field 3,
    # the state, and with field 22 the start (proc_pid_stat(5)).
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""
