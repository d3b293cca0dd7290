"""Sweeps: typed studies, their plan, its execution and the labelled dataset that comes out.

`run` runs a study from Python, as the command ``scbjax run`` does, and `load` opens a result; what
is wrong with either is a `StudyError`. The names are looked up on first use (PEP 562), and JAX is
imported when a study is run.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scbjax.base import StudyError as StudyError
    from scbjax.sweep.python import load as load, run as run

_MODULE_OF = {
    "StudyError": "scbjax.base",
    "load": "scbjax.sweep.python",
    "run": "scbjax.sweep.python",
}

__all__ = ["StudyError", "load", "run"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    """Import the module that defines the name, when the name is first used."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the lazy names too, for tab completion."""
    return sorted({*globals(), *__all__})
