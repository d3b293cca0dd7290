"""The library's own experiments: modules of `scbjax.experiments`, found by their names."""

from __future__ import annotations

import importlib
import pkgutil

from scbjax.base import Experiment

_OWN = "scbjax.experiments"
_CONSTANT = "EXPERIMENT"


def own_experiments() -> list[str]:
    """The names of the library's experiments."""
    package = importlib.import_module(_OWN)
    modules = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in modules if "_" not in name)


def own_experiment(name: str) -> Experiment:
    """One of the library's experiments.

    Args:
        name: one of `own_experiments`.
    """
    found: Experiment = getattr(importlib.import_module(f"{_OWN}.{name}"), _CONSTANT)
    return found
