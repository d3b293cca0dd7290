"""Modules that are imported when something of them is first used.

What declares an experiment is read whenever studies are listed or checked, which is to take no
time; JAX takes a second. A module that both declares and computes imports it so:

    if TYPE_CHECKING:
        import jax.numpy as jnp
    else:
        jnp = Lazily("jax.numpy")
"""

from importlib import import_module
from typing import Any


class Lazily:
    """Stands for a module until something of it is used.

    Args:
        name: of the module.

    Example:
        >>> maths = Lazily("math")
        >>> maths.sqrt(4.0)
        2.0
    """

    def __init__(self, name: str) -> None:
        """Remembers the name; nothing is imported."""
        self._name = name

    def __getattr__(self, attribute: str) -> Any:  # noqa: ANN401 - whatever it is
        """What the module has of that name."""
        return getattr(import_module(self._name), attribute)
