"""Finding the benchmarks and running them, each in a process of its own.

A benchmark is a script ``sweeps/benchmarks/NAME.py``; names that begin with an underscore are
helpers. A fresh process keeps what one of them compiles and allocates out of the figures of the
next.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from scbjax.base import StudyError
from scbjax.sweep.scripts.loading import find_script, find_scripts

FOLDER = "sweeps/benchmarks"


def find_benchmarks() -> dict[str, Path]:
    """Returns the benchmark scripts of the current directory and of the library, by name."""
    return find_scripts(FOLDER)


def find_benchmark(name: str) -> Path:
    """Returns the script of a benchmark.

    Raises:
        StudyError: no script has that name; the nearest one is suggested.
    """
    return find_script(FOLDER, name, "benchmark")


def summary_of(script: Path) -> str:
    """Returns the first line of a script's docstring."""
    docstring = ast.get_docstring(ast.parse(script.read_bytes()))
    return (docstring or "").partition("\n")[0]


def run_benchmark(script: Path, arguments: Sequence[str]) -> None:
    """Runs a benchmark; it prints as it goes, and ends by naming the files it wrote.

    Raises:
        StudyError: it failed; what it had to say is on the screen.
    """
    done = subprocess.run([sys.executable, str(script), *arguments], check=False)
    if done.returncode:
        raise StudyError(f"benchmark {script.stem} failed with status {done.returncode}")
