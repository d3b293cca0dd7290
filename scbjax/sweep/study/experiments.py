"""What a study is about: one of the library's experiments, or one of the user's own.

Those of the library are modules of `scbjax.experiments`. One of the user's own comes from Python,
or from a file that the user asks for; a study alone never makes anything run.
"""

from __future__ import annotations

import sys
import sysconfig
import textwrap
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import scbjax
from scbjax.base import Experiment, StudyError
from scbjax.sweep.study.fields import shown
from scbjax.sweep.study.own import own_experiment, own_experiments
from scbjax.tables import nearest

MAX_FILE_BYTES = 1 << 20
"""Such files are written by hand; what is larger is something else."""
_MOST_WORDS = 400  # of what an error says, in characters
_OF_OTHERS = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), *scbjax.__path__)


def load_experiments(path: Path) -> tuple[Experiment, ...]:
    """Runs a Python file of the user's, and gives the experiments that it defines.

    Args:
        path: of the file.

    Raises:
        StudyError: it can't be read or run, or defines none.
    """
    try:
        text = path.read_bytes()[: MAX_FILE_BYTES + 1].decode()
    except OSError as error:
        raise StudyError(f"{path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise StudyError(f"{path} is not a Python file: the text is not UTF-8") from None
    if len(text) > MAX_FILE_BYTES:
        raise StudyError(f"{path} is larger than {MAX_FILE_BYTES} bytes, too large for such a file")
    return experiments_in(text, str(path))


def experiments_in(text: str, name: str) -> tuple[Experiment, ...]:
    """The experiments that a Python text defines, with the text as their source.

    Args:
        text: is run, as a module of its own.
        name: what messages call it.

    Raises:
        StudyError: it fails, or defines none.
    """
    module = ModuleType(f"scbjax_experiment_{Path(name).stem}")
    module.__file__ = name
    sys.modules[module.__name__] = module  # where dataclasses look for their annotations
    try:
        exec(compile(text, name, "exec"), module.__dict__)  # noqa: S102 - what the user asked for
    except Exception as error:  # noqa: BLE001 - whatever the user's code raises
        raise StudyError(f"{name}{_line_of(error, name)}: {_told(error)}") from None
    found = {e.name: e for e in vars(module).values() if isinstance(e, Experiment)}
    if not found:
        raise StudyError(f"{name} defines no experiment: give it one, a scbjax.base.Experiment")
    return tuple(replace(experiment, source=text) for experiment in found.values())


def _line_of(error: Exception, name: str) -> str:
    """Where in a file an error came from."""
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == name]
    return f", line {lines[-1]}" if lines else ""


def _told(error: Exception) -> str:
    text = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return text if isinstance(error, StudyError) else f"{type(error).__name__}: {text}"


@contextmanager
def calling(experiment: Experiment) -> Iterator[None]:
    """Around calls of an experiment's functions: what fails in one of the user's is a sentence.

    In one of the library's own it is a mistake of the library, and stays what it is.

    Args:
        experiment: whose functions are called.

    Raises:
        StudyError: says what failed, and in which line; its cause is the error itself.
    """
    try:
        yield
    except (StudyError, MemoryError):
        raise
    except Exception as error:
        if _is_own(experiment) or type(error).__name__ == "JaxRuntimeError":  # of a device
            raise
        frames = traceback.extract_tb(error.__traceback__)
        users = [f for f in frames if f.lineno and not f.filename.startswith((*_OF_OTHERS, "<fro"))]
        where = f" ({users[-1].filename}, line {users[-1].lineno})" if users else ""
        said = textwrap.shorten(_told(error), _MOST_WORDS, placeholder=" ...")
        raise StudyError(
            f"experiment {shown(experiment.name)} fails{where}: {said}; with SCBJAX_TRACEBACK=1 in "
            "the environment the command shows all of it"
        ) from error


def _is_own(experiment: Experiment) -> bool:
    name = experiment.name
    return name in own_experiments() and own_experiment(name) is experiment


def find_experiment(name: object, given: Sequence[Experiment] = ()) -> Experiment:
    """The experiment of a name.

    Args:
        name: what a study calls it.
        given: those of the user, which come first.

    Raises:
        StudyError: there is none.
    """
    if not isinstance(name, str):
        raise StudyError(f"experiment must be a string, got {shown(name)}")
    for experiment in given:
        if experiment.name == name:
            return experiment
    own = own_experiments()
    if name in own:
        return own_experiment(name)
    known = [*own, *(experiment.name for experiment in given)]
    hint = nearest(name, known) or f" (experiments: {', '.join(known)})"
    raise StudyError(
        f"there is no experiment {shown(name)}{hint}; one of your own comes with --experiment FILE"
    )
