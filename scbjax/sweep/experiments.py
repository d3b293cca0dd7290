"""What a study is about: one of the library's experiments, or one of the user's own.

Those of the library are modules of `scbjax.experiments`. One of the user's own comes from Python,
or from a file that the user asks for; a study alone never makes anything run.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence

from scbjax.base import Experiment, StudyError
from scbjax.sweep.fields import shown
from scbjax.tables import nearest

_OWN = "scbjax.experiments"
_CONSTANT = "EXPERIMENT"


def own_experiments() -> list[str]:
    """The names of the library's experiments."""
    package = importlib.import_module(_OWN)
    modules = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in modules if "_" not in name)


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
        found: Experiment = getattr(importlib.import_module(f"{_OWN}.{name}"), _CONSTANT)
        return found
    known = [*own, *(experiment.name for experiment in given)]
    hint = nearest(name, known) or f" (experiments: {', '.join(known)})"
    raise StudyError(
        f"there is no experiment {shown(name)}{hint}; one of your own comes with --experiment FILE"
    )
