"""The ``scbjax`` command: run studies, look at them, draw their figures.

Each command is a small dataclass that tyro fills from the command line and that is then called.
What only one command needs is imported when it is called, so that help and error messages come
without waiting for JAX.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import tyro

import scbjax
from scbjax.sweep.fields import StudyError, nearest, shown
from scbjax.sweep.study import Study, find_studies, load_study, search_path

if TYPE_CHECKING:
    from scbjax.sweep.plan import Plan

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
"""What a shell reports of a process that SIGINT ended: 128 + 2."""

RESULTS = Path("results")
PICTURES = Path("figures") / "out"

_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)}
_UNITS |= {f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", start=1)}

StudyName: TypeAlias = Annotated[
    tyro.conf.Positional[str], tyro.conf.arg(metavar="STUDY", help="Name or path of a study file.")
]
Overrides: TypeAlias = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(
        name="set",
        metavar="FIELD=VALUE",
        help="Set a field (train.steps=2000) or an axis (axes.l1=[1e-4, 1e-3]); may be repeated.",
    ),
]
Memory: TypeAlias = Annotated[
    str, tyro.conf.arg(metavar="SIZE", help="Memory for one chunk, such as 2GiB; empty: by itself.")
]


@dataclass(frozen=True)
class Run:
    """Run a study, or continue it, and draw its figure."""

    study: StudyName
    overrides: Overrides = ()
    out: Annotated[
        str, tyro.conf.arg(metavar="DIR", help="Where results go; empty: results/STUDY.")
    ] = ""
    memory: Memory = ""
    force: Annotated[bool, tyro.conf.arg(help="Start anew over results of other settings.")] = False
    figure: Annotated[bool, tyro.conf.arg(help="Don't draw the study's figure.")] = True

    def __call__(self) -> int:
        """Runs the study; see the class."""
        study = load_study(self.study, self.overrides)
        return 0


@dataclass(frozen=True)
class List:
    """List the studies with their title and estimated cost."""

    def __call__(self) -> int:
        """Prints the list; see the class."""
        return 0


Command: TypeAlias = (
    Annotated[Run, tyro.conf.subcommand("run")] | Annotated[List, tyro.conf.subcommand("list")]
)
DESCRIPTION = "Train linear transformers on sparse contextual bigrams, in sweeps."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: the arguments; those of the process by default.

    Returns:
        The exit status: 0, 2 for input that is wrong, 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        return _parse(arguments)()
    except StudyError as error:
        print(f"scbjax: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT


def _parse(arguments: Sequence[str]) -> Run | List:
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return tyro.cli(
                Command,
                prog="scbjax",
                description=DESCRIPTION,
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise StudyError(_one_line(message.getvalue())) from None

def _one_line(text: str) -> str:
    return text

if __name__=="__main__": sys.exit(main())
