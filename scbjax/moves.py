"""How a step moves the parameters of a learner: by a transformation of optax, or another way."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from scbjax.arguments import what
from scbjax.base import Tree
from scbjax.parts import Model, with_values

Optimizer: TypeAlias = optax.GradientTransformation | Callable[[Any, Any, Any], Any]
"""A transformation of optax, or a function ``(task, values, rates)`` that makes one."""


class Move(NamedTuple):
    """How a step moves the parameters: by an optimiser (:func:`by_optimizer`), or another way.

    Attributes:
        init: ``(params, task, values, rates)`` to the optimiser's state.
        step: ``(params, opt_state, batch, task, values, rates, frozen)`` to the loss and its
            gradient, the new parameters and the optimiser's new state. ``frozen`` is a tree like
            the parameters of booleans.
        to_carry: parameters to what the loop over steps carries, on which ``step`` works; another
            order in memory, say.
        from_carry: the inverse.
    """

    init: Callable[..., optax.OptState]
    step: Callable[..., tuple[tuple[jax.Array, Tree], Tree, optax.OptState]]
    to_carry: Callable[[Tree], Tree] = lambda params: params
    from_carry: Callable[[Tree], Tree] = lambda params: params


def by_optimizer(model: Model, optimizer: Optimizer) -> Move:
    """A step of gradient descent: the gradient of the model's loss, and what optax makes of it.

    Args:
        model: the model.
        optimizer: a transformation of optax, or a function ``(task, values, rates)`` that makes one
            with a state of the same structure whatever the rates are. It is also given the loss as
            ``value``, the gradient as ``grad`` and the loss as a function as ``value_fn``, which
            some transformations want.

    Returns:
        The move.
    """

    def transform(*what_for: Any) -> optax.GradientTransformationExtraArgs:  # noqa: ANN401
        own = optimizer if is_transformation(optimizer) else optimizer(*what_for)
        if not is_transformation(own):
            raise TypeError(f"optimizer gives {what(own)}; it must give a transformation of optax")
        return optax.with_extra_args_support(own)

    def init(params: Tree, *what_for: Any) -> optax.OptState:  # noqa: ANN401
        with jax.numpy_dtype_promotion("standard"):
            return transform(*what_for).init(params)

    def step(
        params: Tree,
        opt_state: optax.OptState,
        batch: Tree,
        task: Tree,
        values: Tree,
        rates: Tree,
        frozen: Tree,
    ) -> tuple[tuple[jax.Array, Tree], Tree, optax.OptState]:
        def loss_of(params: Tree) -> jax.Array:
            value: jax.Array = with_values(model.loss, params, batch, values)
            return value

        loss, grads = jax.value_and_grad(loss_of)(params)
        extra = {"value": loss, "grad": grads, "value_fn": loss_of}
        # Optax mixes dtypes here and there, which strict promotion forbids.
        with jax.numpy_dtype_promotion("standard"):
            own = transform(task, values, rates)
            updates, opt_state = own.update(grads, opt_state, params, **extra)
            updates = jax.tree.map(_hold, frozen, updates)
            params = optax.apply_updates(params, updates)
        return (loss, grads), params, opt_state

    return Move(init, step)


def check_optimizer(optimizer: object, takes: str) -> None:
    """Refuses what is neither a transformation nor a function that makes one.

    Args:
        optimizer: what was given.
        takes: the arguments of such a function, for the sentence.

    Raises:
        TypeError: says what must be given.
    """
    if is_transformation(optimizer):
        return
    if not callable(optimizer):
        raise TypeError(
            f"optimizer is {what(optimizer)}; it must be a transformation of optax, or a function "
            f"of {takes} that makes one"
        )
    name = getattr(optimizer, "__name__", "")
    if str(getattr(optimizer, "__module__", "")).partition(".")[0] == "optax":
        raise TypeError(
            f"optimizer is the function optax.{name} itself; it must be what that gives, as in "
            f"optax.{name}(0.01)"
        )


def is_transformation(optimizer: object) -> bool:
    """Whether something is a transformation of optax."""
    return callable(getattr(optimizer, "init", None)) and callable(
        getattr(optimizer, "update", None)
    )


def _hold(frozen: jax.Array | bool, update: jax.Array) -> jax.Array:
    return update if frozen is False else jnp.where(frozen, jnp.zeros_like(update), update)
