"""Study files: which there are, which one a name stands for, and their text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import scbjax
from scbjax.base import StudyError
from scbjax.sweep.study.axes import MAX_NAME
from scbjax.sweep.study.fields import shown
from scbjax.tables import nearest

MAX_FILE_BYTES = 1 << 20
"""Study files are written by hand; what is larger is something else."""

_SAFE_NAME = re.compile(r"[A-Za-z0-9_-]+")
BYTE_ORDER_MARK = "\ufeff"


def search_path(folder: str) -> list[Path]:
    """Returns where a folder is looked for: in the current directory, then with the library.

    Args:
        folder: such as ``sweeps`` or ``figures``.

    Returns:
        The existing folders.
    """
    found = [place / folder for place in dict.fromkeys((Path.cwd(), shipped()))]
    return [place for place in found if place.is_dir()]


def shipped() -> Path:
    """Returns the folder that holds ``sweeps`` and ``figures`` of the library itself.

    A wheel carries copies of them within the package; a checkout has them beside it.
    """
    package = Path(scbjax.__file__).resolve().parent
    copies = package / "_shipped"
    return copies if copies.is_dir() else package.parent


def find_studies() -> list[Path]:
    """Returns the study files of the current directory and of the library, sorted by name."""
    found: dict[str, Path] = {}
    for folder in search_path("sweeps"):
        for path in folder.glob("*.toml"):
            found.setdefault(path.stem, path)
    return [found[name] for name in sorted(found)]


def locate(given: str) -> Path:
    """The file that a path or the name of a study stands for."""
    if "\0" in given:
        raise StudyError(f"a study's path must not hold a null character, got {shown(given)}")
    if given.endswith(".toml") or "/" in given or "\\" in given:
        return Path(given)
    found = {path.stem: path for path in find_studies()}
    if given in found:
        return found[given]
    with suppress(OSError):  # a name that is too long for a file
        if given and Path(given).exists():
            return Path(given)
    raise StudyError(f"no study is called {shown(given)}{_hint(given, found)}")


def _hint(given: str, found: Mapping[str, Path]) -> str:
    """How an error ends about a study that was not found."""
    with suppress(OSError):
        if given and Path(f"{given}.toml").is_file():
            return f"; did you mean the file '{given}.toml'?"
    if not found:
        return f": {none_found('sweeps')}, or name a study file, such as my_study.toml"
    return nearest(given, found) or f" (studies: {', '.join(found)})"


def none_found(folder: str) -> str:
    """What to say where nothing is found, not even what comes with the library.

    Args:
        folder: such as ``sweeps`` or ``figures``.
    """
    return (
        f"there is no folder '{folder}' with any here, and the one that comes with scbjax is "
        "missing: install scbjax again"
    )


def read_text(path: Path) -> str:
    """The text of a study file, once it is sure that it can be one."""
    try:
        if path.is_dir():
            raise StudyError(f"{path} is a directory, not a study file")
        if path.exists() and not path.is_file():
            raise StudyError(f"{path} is not a regular file")
        if path.exists() and path.suffix != ".toml":
            raise StudyError(f"{path} is not a study file: its name must end in .toml")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise StudyError(f"{path} does not exist") from None
    except OSError as error:
        raise StudyError(f"{path} can't be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise StudyError(f"{path} is larger than {MAX_FILE_BYTES} bytes, too large for a study")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise StudyError(f"{path}, line {line}: the text is not UTF-8") from None


def check_name(name: str) -> str:
    """Returns a study's name, once it is sure that it names a file and no other place.

    Raises:
        StudyError: it doesn't.
    """
    if not _SAFE_NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise StudyError(
            f"a study's name becomes a file name and must consist of at most {MAX_NAME} letters, "
            f"digits, _ and -, got {shown(name)}"
        )
    return name
