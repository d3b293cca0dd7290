"""What happens between the stages of the paper's algorithm (Ren, Wang & Lee 2024, section 3).

Stage 1 boosts the signal without l1 until it reaches a level; then the attention is thresholded and
its columns are put back on the affine space of sum one. Stage 2 runs proximal steps. Then the
attention is rounded and frozen, and V is trained, or fitted by least squares, alone (stage 3).
Everything here is a pure function of arrays and works inside ``scan`` and under ``vmap``.
"""

import jax
import jax.numpy as jnp

from scbjax.inversion import draw_from_columns
from scbjax.model import Params, attend_part
from scbjax.sampling import (
    Sampler,
    draw_contexts,
    draw_positions,
    draw_tokens,
    make_sampler,
    make_seed,
)
from scbjax.sharding import largest_rows
from scbjax.task import (
    Task,
    check_one_task,
    mu_inner,
    pattern_signal,
    pattern_sparsity,
    product,
    solve,
    stationary_norm,
    transition_signal,
)
from scbjax.theory import ratio, signals

# Ridge of the least-squares refit, relative to the mean eigenvalue of the Gram matrix: keeps a
# column that saw no sample finite, and is far below the sampling error at any number of samples
# that fits in memory.
_RIDGE = 1e-6


def estimated_signals(params: Params, task: Task) -> tuple[jax.Array, jax.Array]:
    """``sqrt(K_V / K_P)`` and ``sqrt(K_A / K_Q)``: the signals as told without P and Q; scalars.

    On the population path these are ``|alpha_V|`` and ``|alpha_A|``; off it they also count the
    noise (``K_V = alpha_V^2 K_P + |Delta_V|_mu^2``). Of the task, only mu and the two norms K_P and
    K_Q are used, which the paper's step sizes take as known.
    """
    mu = task.stationary
    value = mu_inner(params.value, params.value, mu) - stationary_norm(task)
    attention = mu_inner(params.attention, params.attention, mu) - 1.0 / task.context_length
    return (
        jnp.sqrt(ratio(jnp.maximum(value, 0.0), transition_signal(task))),
        jnp.sqrt(ratio(jnp.maximum(attention, 0.0), pattern_signal(task))),
    )


def true_signals(params: Params, task: Task) -> tuple[jax.Array, jax.Array]:
    """``|alpha_V|`` and ``|alpha_A|``, read off the truth; scalars."""
    alpha_value, alpha_attention = signals(params, task)
    return jnp.abs(alpha_value), jnp.abs(alpha_attention)


def is_mirrored(attention: jax.Array) -> jax.Array:
    """Whether A [T, N] is near the mirrored solution ``2/T - Q``; a boolean.

    Decided by the sign of the sum of cubes, which the largest entries dominate.
    """
    return jnp.sum(attention**3) < 0


def mirror(params: Params, task: Task, context_length: int | None = None) -> Params:
    """Reflects (V, A) through the initial point: ``V <- 2 mu 1^T - V``, ``A <- 2/T - A``.

    The loss is almost even under this reflection when the signal is small, so gradient descent from
    the symmetric start can follow ``(2 mu 1^T - P, 2/T - Q)`` instead of the truth; both signals
    change sign here. T is that of the task if it is not given.
    """
    length = context_length or task.context_length
    return Params(2.0 * task.stationary[:, None] - params.value, 2.0 / length - params.attention)


def threshold_and_project(attention: jax.Array, level: jax.Array) -> jax.Array:
    """``a_t <- a_t 1{a_t >= level} + (1 - kept sum) / T`` for every column of A [T, N].

    Example:
        >>> attention = jnp.array([[0.75], [0.125], [0.0625], [0.0625]])
        >>> threshold_and_project(attention, jnp.array(0.5)).ravel().tolist()
        [0.8125, 0.0625, 0.0625, 0.0625]
    """
    # Not `attention >= level`: a column with NaN would come out as a sound one.
    kept = jnp.where(attention < level, 0.0, attention)
    return kept + (1.0 - jnp.sum(kept, axis=0, keepdims=True)) / attention.shape[0]


def round_attention(
    attention: jax.Array, level: jax.Array, each: jax.Array | None = None
) -> jax.Array:
    """Keeps ``a_t >= level`` and divides every column of A [T, N] by its sum (start of stage 3).

    A column in which nothing reaches the level keeps its largest entry. In the sum a row counts
    ``each`` [T, N] times, if that is given.

    Example:
        >>> round_attention(jnp.array([[0.6], [0.2], [0.1]]), jnp.array(0.2)).ravel().tolist()
        [0.75, 0.25, 0.0]
    """
    keep = (attention >= level) & (attention > 0)
    rows = jnp.arange(attention.shape[0])[:, None]
    # Not argmax, which devices that share the positions would not do each for itself.
    reached = attention == jnp.max(attention, axis=0, keepdims=True)
    first = jnp.min(jnp.where(reached, rows, rows.shape[0]), axis=0, keepdims=True)
    largest = rows == first
    kept = jnp.where(keep, attention, 0.0)
    kept = jnp.where(jnp.any(keep, axis=0), kept, largest.astype(attention.dtype))
    counted = kept if each is None else each * kept
    rounded = kept / jnp.sum(counted, axis=0, keepdims=True)
    # Comparisons with NaN are false: without this a diverged column would come out as a one-hot
    # vector.
    return jnp.where(jnp.all(jnp.isfinite(attention), axis=0), rounded, jnp.nan)


def rounding_level(task: Task, share: jax.Array | float) -> jax.Array:
    """``share / Q``: the level of :func:`round_attention` for a task of sparsity Q; a scalar."""
    return share / pattern_sparsity(task).astype(task.pattern.dtype)


def population_refit(attention: jax.Array, task: Task) -> jax.Array:
    """The V [N, N] that minimises the expected loss for a given A [T, N] (the paper's star).

    ``V = E[e_{x_o} h^T] E[h h^T]^{-1}`` with the moments of :mod:`scbjax.losses`. For A on the
    population path it is the point of the path with

        alpha_V = (alpha_A K_Q + 1/T) / (alpha_A^2 K_Q + 1/T),

    which is P for the right A and for the uniform A alike: it does not tell how well A is known.
    :func:`refit_value`, from samples, does.
    """
    check_one_task("task", task)
    mu = task.stationary
    sums = jnp.sum(attention, axis=0)
    overlap = mu_inner(attention, task.pattern, mu)
    size = mu_inner(attention, attention, mu)
    mean = jnp.outer(mu, mu)
    cross = overlap * task.transition * mu[None, :] + (jnp.sum(mu * sums) - overlap) * mean
    gram = size * jnp.diag(mu) + (jnp.sum(mu * sums**2) - size) * mean
    value: jax.Array = solve(gram, cross.T).T
    return value


def refit_value(
    key: jax.Array,
    attention: jax.Array,
    task: Task,
    *,
    num_samples: int,
    support: int,
    sampler: Sampler | None = None,
) -> jax.Array:
    """Least-squares fit of V [N, N] to fresh samples, for a rounded attention A [T, N].

    Only the ``support`` largest entries of each column are used. Tokens are i.i.d., so those at
    other positions need not be drawn, except the one that the label came from: a sample costs
    ``support + 1`` tokens instead of T.

    Args:
        key: a PRNG key.
        attention: a sparse A; at most ``support`` nonzeros a column, or the smallest of them are
            left out.
        task: the task that the samples are drawn from.
        num_samples: number of fresh samples.
        support: largest number of entries used in a column (cut to T).
        sampler: that of the task, where it has been made already.

    Returns:
        ``V`` minimising the mean of ``|e_{x_o} - V X a|^2`` over the samples, with a ridge of 1e-6.
    """
    check_one_task("task", task)
    context_length, num_tokens = attention.shape
    weights, positions = largest_rows(attention, min(support, context_length))
    sampler = make_sampler(task) if sampler is None else sampler
    seed, table = make_seed(key), sampler.token_table
    query = draw_tokens(seed, 0, table, num_tokens, (num_samples,)).astype(jnp.int32)
    tokens = draw_contexts(seed, 1, table, num_tokens, (num_samples, positions.shape[0]))
    elsewhere = draw_tokens(seed, 2, table, num_tokens, (num_samples,)).astype(jnp.int32)
    position = draw_positions(seed, 3, sampler, query)
    here = positions.T[query] == position[:, None]
    found = jnp.sum(jnp.where(here, tokens.astype(jnp.int32), 0), axis=1, dtype=jnp.int32)
    source = jnp.where(jnp.any(here, axis=1), found, elsewhere)
    label = draw_from_columns(seed, 4, sampler.label_cdf, source)
    attended = attend_part(weights, tokens, query)
    labels = jnp.arange(num_tokens, dtype=label.dtype)
    target = (label[:, None] == labels[None, :]).astype(attended.dtype)
    gram = product(attended.T, attended)
    ridge = _RIDGE * jnp.trace(gram) / num_tokens
    gram = gram + ridge * jnp.eye(num_tokens, dtype=gram.dtype)
    value: jax.Array = solve(gram, product(attended.T, target)).T
    return value
