"""Files of plain arrays, written whole and read with their checksums.

A file appears under its name only when it is whole: it is written aside, synced and renamed.
"""

import contextlib
import errno
import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from scbjax.base import StudyError

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]
Facts: TypeAlias = Mapping[str, Any]

PARTIAL = ".{}.partial"  # a file that is being written
_META = "meta"  # the member of an npz file that holds its JSON description


class DamagedError(Exception):
    """A file is not what was written: truncated, altered, or of another kind."""


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A new file that appears under its name when it is whole, and not at all if something fails.

    Args:
        path: its name; missing directories are made, an existing file is replaced.

    Raises:
        StudyError: it can't be written.
    """
    aside = aside_of(path)
    try:
        make_folder(path.parent)
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise StudyError(f"{path} can't be written: {error.strerror or error}") from None
        raise


def aside_of(path: Path) -> Path:
    """Where a file is written before it gets its name."""
    return path.with_name(PARTIAL.format(path.name))


def sync_folder(folder: Path) -> None:
    """Makes a new name in it survive a power cut, where folders can be opened (not on Windows)."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system that can't
                raise
        finally:
            os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, so that they survive a power cut."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def open_regular(path: Path) -> IO[bytes]:
    """Opens a file to read, but no pipe or device, which may never end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file")
    return path.open("rb")


def write_arrays(path: Path, arrays: Arrays, facts: Facts) -> None:
    """Writes arrays and a JSON description as one npz file with a checksum, atomically."""
    meta = json.dumps({**facts, "sha256": _digest(arrays)})
    members = {**arrays, _META: np.frombuffer(meta.encode(), np.uint8)}
    with atomic_file(path) as file:
        np.savez(file, allow_pickle=False, **members)


def read_arrays(path: Path) -> tuple[Arrays, Facts]:
    """The arrays and the description in a file of :func:`write_arrays`, once the checksum holds.

    Raises:
        FileNotFoundError: it isn't there.
        DamagedError: it isn't what was written.
    """
    try:
        # Opened here: NumPy leaves the file open when it can't make sense of it.
        with open_regular(path) as file, np.load(file, allow_pickle=False) as members:
            _check_plain(members)
            arrays = {name: members[name] for name in members.files if name != _META}
            facts = json.loads(members[_META].tobytes())
            checksum = facts.pop("sha256")
    except (FileNotFoundError, DamagedError):
        raise
    # NumPy, zipfile and the parsers below them each have errors of their own for altered bytes.
    except Exception as error:  # noqa: BLE001
        raise DamagedError(f"{type(error).__name__}: {error}") from None
    if checksum != _digest(arrays):
        raise DamagedError("its checksum does not hold")
    return arrays, facts


def facts_in(path: Path) -> Facts:
    """The description in a file of :func:`write_arrays`; nothing if it can't be understood."""
    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as members:
            _check_plain(members)
            facts = json.loads(members[_META].tobytes())
    except Exception:  # noqa: BLE001 - as in read_arrays
        return {}
    return facts if isinstance(facts, dict) else {}


def _check_plain(members: Any) -> None:  # noqa: ANN401 - NumPy's file of arrays, which has no type
    # As written here; a compressed member may be a thousand times the size of its file.
    if any(info.compress_type != zipfile.ZIP_STORED for info in members.zip.infolist()):
        raise DamagedError("it has a compressed member")


def _digest(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()
