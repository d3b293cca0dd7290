"""Sparse contextual bigrams learned by linear transformers, in JAX.

The public names of the core can be imported from here. They are looked up on first use (PEP 562),
so `import scbjax` costs nothing and does not import JAX. A function that shares the name of its
module stays there: `scbjax.loss.loss`, `scbjax.train.train`.

Example:
    >>> import scbjax
    >>> "random_task" in scbjax.__all__
    True
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "task": (
        "Task",
        "TaskReport",
        "check_task",
        "pattern_signal",
        "random_task",
        "related_task",
        "task_from_arrays",
        "transition_signal",
    ),
    "sampling": ("Batch", "sample_batch"),
    "model": ("Params", "init_params", "predict"),
    "loss": ("excess_loss", "population_grad", "population_loss"),
    "optim": (
        "project_tangent",
        "proximal_l1",
        "restore_column_sums",
        "scale_by_stationary",
        "scb_proximal",
        "scb_sgd",
    ),
    "theory": ("population_path", "population_step"),
    "train": ("Info", "Settings", "State", "Trajectory"),
    "stages": (),
    "observe": (),
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = ["__version__"]
__all__ += [*_EXPORTS, *_MODULE_OF]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    """Import the module that is `name`, or that defines it, when the name is first used."""
    if name in _EXPORTS:
        return import_module(f"{__name__}.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the lazy names too, for tab completion."""
    return sorted({*globals(), *__all__})
