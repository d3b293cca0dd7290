"""The ``scbjax`` command: run studies, look at them, draw their figures.

`main` makes a command of the arguments (`parsing`) and calls it. Each command is a small dataclass
that tyro fills from the command line. What only one command needs of the engine is imported when it
is called, so that help and error messages come without waiting for JAX.
"""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import scbjax
from scbjax.base import StudyError
from scbjax.cli.exits import EXIT_BAD_INPUT, EXIT_INTERRUPTED, Stopped
from scbjax.cli.parsing import parse
from scbjax.cli.printing import note
from scbjax.sweep.engine.streams import steady_streams


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: the arguments; those of the process if left out.

    Returns:
        The exit status: 0, 2 for input that is wrong, 130 after Ctrl-C.

    >>> main(["--version"])
    scbjax ...
    0
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    with steady_streams() as (output, _):
        status = _run(arguments)
        output.flush()
        # The reader of a pipe such as `scbjax list | head` may go away when it has read enough.
        if isinstance(output.failure, OSError) and not isinstance(output.failure, BrokenPipeError):
            note(f"standard output can't be written: {output.failure.strerror}")
            return status or EXIT_BAD_INPUT
    return status


def _run(arguments: Sequence[str]) -> int:
    if arguments == ["--version"]:
        print(f"scbjax {scbjax.__version__}")
        return 0
    try:
        return parse(arguments)()
    except SystemExit as stop:  # help and completion were asked for and are printed
        return int(stop.code or 0)
    except Stopped as stopped:
        return _tell_stopped(stopped.out, arguments)
    except (StudyError, OSError) as error:
        if error.__cause__ is not None and os.environ.get("SCBJAX_TRACEBACK"):
            traceback.print_exception(error.__cause__)
        note(" ".join(str(error).split()))
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("\nscbjax: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _tell_stopped(out: Path, arguments: Sequence[str]) -> int:
    # As it was typed, since every option may be one that the rest depends on; but not anew.
    typed = [word for word in arguments if word != "--force"]
    print(f"stopped, with all that was done saved in {out}")
    print(f"continue with: {shlex.join(['scbjax', *typed])}")
    return EXIT_INTERRUPTED
