r"""Transfer: a start from what is known of a related task (Ren, Wang & Lee 2024, section 4).

A related task has the same stationary distribution mu and another transition matrix
:math:`\hat P`. Learning a task (P, mu, Q) then starts at

    V = theta P_hat + (1 - theta) mu 1^T,      A = 1_T 1_N^T / T,

and takes one preconditioned gradient step on A alone, with samples of its own. By Lemma B.8 its
expectation is

    A = Q alpha + (1 - alpha) 1_T 1_N^T / T,      alpha = eta_A theta (<P_hat, P>_mu - |mu|^2),

a point of the population path. Entries of size at most Theta(theta / (N K_P)) are set to zero, what
a column has lost is put back evenly, and the algorithm goes on with its second stage: the first,
whose samples grow with T, is skipped (Theorem 4.1). The step size is 1 in the units of the theory,
``eta_A = 1 / K_P``, for which an entry of the pattern comes to at least ``theta q / (N K_P)`` under
the theorem's condition ``<P_hat, P>_mu - |mu|^2 >= |mu|^2``.
"""

import jax
import jax.numpy as jnp
import optax

from scbjax import optim
from scbjax.arguments import SIZES, as_integer
from scbjax.losses import unchecked_loss
from scbjax.model import Params
from scbjax.parameters import DEFAULTS, Generator
from scbjax.sampling import draw_step, fold_in, make_sampler, make_seed
from scbjax.task import Task, check_one_task, mu_inner, stationary_norm


def source_overlap(transition: jax.Array, task: Task) -> jax.Array:
    """``<P_hat, P>_mu - |mu|^2``, which Theorem 4.1 wants to be at least ``|mu|^2``; a scalar.

    Args:
        transition: P_hat [N, N], with the stationary distribution of the task.
        task: the task that is to be learned.

    Example:
        >>> from scbjax.task import random_task, transition_signal
        >>> task = random_task(jax.random.key(0), num_tokens=3, context_length=50, sparsity=2)
        >>> bool(source_overlap(task.transition, task) == transition_signal(task))
        True
    """
    check_one_task("task", task)
    return mu_inner(transition, task.transition, task.stationary) - stationary_norm(task)


def mix_value(transition: jax.Array, stationary: jax.Array, theta: jax.Array | float) -> jax.Array:
    """``V = theta P_hat + (1 - theta) mu 1^T`` [N, N].

    Example:
        >>> mix_value(jnp.eye(2), jnp.array([0.25, 0.75]), 0.5).tolist()
        [[0.625, 0.125], [0.375, 0.875]]
    """
    theta = jnp.asarray(theta).astype(transition.dtype)
    return theta * transition + (1.0 - theta) * stationary[:, None]


def first_step(
    key: jax.Array,
    params: Params,
    task: Task,
    rate: jax.Array | float,
    *,
    num_samples: int,
    batch_size: int,
    generator: Generator = DEFAULTS["generator"],
) -> Params:
    """One preconditioned, projected gradient step on A [T, N] alone, V staying as it is (eq. 4).

    Args:
        key: a PRNG key for the samples.
        params: V and A before the step.
        task: the task that the samples are drawn from.
        rate: eta_A.
        num_samples: samples of the step, a multiple of ``batch_size``.
        batch_size: samples that are drawn at a time, so that memory does not grow with their
            number.
        generator: of the random words of the samples.

    Returns:
        V, and A after the step.

    Raises:
        ValueError: if ``num_samples`` is not a positive multiple of ``batch_size``.
    """
    check_one_task("task", task)
    batch_size = as_integer("batch_size", batch_size, SIZES)
    num_samples = as_integer("num_samples", num_samples, SIZES)
    if num_samples % batch_size:
        raise ValueError(
            f"num_samples is {num_samples}; it must be a multiple of batch_size = {batch_size}"
        )
    sampler, seed = make_sampler(task), make_seed(key, generator)
    pieces = num_samples // batch_size

    def add(total: Params, index: jax.Array) -> tuple[Params, None]:
        batch = draw_step(fold_in(seed, index), sampler, batch_size)
        grads = jax.grad(unchecked_loss)(params, batch)
        return jax.tree.map(jnp.add, total, grads), None

    zero = jax.tree.map(jnp.zeros_like, params)
    total, _ = jax.lax.scan(add, zero, jnp.arange(pieces, dtype=jnp.int32))
    grads = jax.tree.map(lambda grad: grad / pieces, total)
    optimizer = optim.scb_sgd(task.stationary, 0.0, rate)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    moved: Params = optax.apply_updates(params, updates)
    return params._replace(attention=moved.attention)


def keep_large(attention: jax.Array, level: jax.Array | float) -> jax.Array:
    """Zeroes every ``|a_t| <= level`` of A [T, N] and gives what a column lost to all its entries.

    Example:
        >>> attention = jnp.array([[0.75], [0.25], [-0.125], [0.125]])
        >>> keep_large(attention, 0.125).ravel().tolist()
        [0.75, 0.25, 0.0, 0.0]
        >>> keep_large(attention, 0.25).ravel().tolist()
        [0.8125, 0.0625, 0.0625, 0.0625]
    """
    level = jnp.asarray(level).astype(attention.dtype)
    kept = jnp.where(jnp.abs(attention) <= level, 0.0, attention)
    lost = jnp.sum(attention, axis=0, keepdims=True) - jnp.sum(kept, axis=0, keepdims=True)
    return kept + lost / attention.shape[0]


def on_tangent(value: jax.Array, stationary: jax.Array) -> jax.Array:
    """The V [N, N] nearest to a fitted one in the mu-norm with ``1^T V = 1^T`` and ``V mu = mu``.

    A fit to samples meets these invariants of the algorithm up to its error.
    """
    base = stationary[:, None]
    projection = optim.project_tangent(stationary)
    update, _ = projection.update(value - base, projection.init(value))
    nearest: jax.Array = base + update
    return nearest
