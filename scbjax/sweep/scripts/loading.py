"""Finding scripts, those of figures and of benchmarks, by name."""

from __future__ import annotations

from pathlib import Path

from scbjax.base import StudyError
from scbjax.sweep.study.fields import shown
from scbjax.sweep.study.locating import none_found, search_path
from scbjax.tables import nearest


def find_scripts(folder: str) -> dict[str, Path]:
    """Returns the scripts of a folder in the current directory and of the library, by name.

    Names that begin with an underscore are helpers of the scripts.

    Args:
        folder: such as ``figures``.
    """
    found: dict[str, Path] = {}
    for place in search_path(folder):
        for path in sorted(place.glob("[!_]*.py")):
            found.setdefault(path.stem, path)
    return found


def find_script(folder: str, name: str, kind: str) -> Path:
    """Returns the script of a name.

    Args:
        folder: as for `find_scripts`.
        name: the script's name.
        kind: what error messages call such a script, ``figure`` or ``benchmark``.

    Raises:
        StudyError: no script has that name; the nearest one is suggested.
    """
    found = find_scripts(folder)
    if name in found:
        return found[name]
    known = f" ({kind}s: {', '.join(found)})" if found else f": {none_found(folder)}"
    raise StudyError(f"no {kind} is called {shown(name)}{nearest(name, found) or known}")
