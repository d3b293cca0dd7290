"""The sparse contextual bigram (SCB): what is to be learned, and random instances of it.

A task is a triple (P, mu, Q) as in Ren, Wang & Lee (2024), section 2. ``P`` is the
column-stochastic transition matrix, ``mu`` its stationary distribution (``P mu = mu``), and column
``k`` of ``Q`` is the distribution over context positions that the query token ``k`` attends to. A
label is drawn as

    Pr(x_o = n | x, x_{T+1} = k) = sum_t q_t^(k) P[n, x_t].            (eq. 1)

Shapes: N tokens, context length T. Norms are taken in the mu-inner product
``<A, B>_mu = Tr(A diag(mu) B^T)``.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scbjax.arguments import (
    Numbers,
    as_integer,
    check_is,
    check_number,
    is_numeric,
    is_traced,
    numbers_of,
    outline,
)
from scbjax.blocks import has_blocks
from scbjax.keys import as_threefry
from scbjax.once import compiled_quickly, level_for
from scbjax.parameters import DEFAULTS, TASK, TRANSFER
from scbjax.patterns import random_pattern, shrink_to_box
from scbjax.values import Interval

# |mu|^2 of a random task stays below this for N >= 3, so that K_P >= |mu|^2 (Assumption 2.1 (c)),
# which needs |mu|^2 <= 1/2 since K_P <= 1 - |mu|^2, is always within reach.
MAX_STATIONARY_NORM = 0.45
# Default K_P as a multiple of |mu|^2: Assumption 2.1 (c) with a margin for rounding.
DEFAULT_SIGNAL_RATIO = 1.1
# K_P is clipped to this share of its supremum 1 - |mu|^2, which only the identity reaches (and that
# is reducible).
MAX_SIGNAL_SHARE = 0.98

# Largest inverse temperature of the Sinkhorn path, with potentials truncated to [-3, 3]: exp(60)
# fits float32.
_MAX_INVERSE_TEMPERATURE = 10.0
_POTENTIAL_BOUND = 3.0
_SINKHORN_ITERATIONS = 60
# Halvings of an interval of length 2: the float32 limit.
_BISECTION_STEPS = 26

# Accelerators would otherwise use TF32 or bfloat16 inputs, too coarse for signals of size 1/T.
PRECISION = jax.lax.Precision.HIGHEST


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """The matrix product in full precision of the dtype, on every device.

    Within ``jax.default_matmul_precision(...)`` it has the precision that is named there. A step of
    training sets that to the ``precision`` of its :class:`scbjax.settings.Settings`.
    """
    chosen = getattr(jax.config, "jax_default_matmul_precision", None)
    return jnp.matmul(a, b, precision=PRECISION if chosen is None else None)


def solve(matrix: jax.Array, right: jax.Array) -> jax.Array:
    """The solution x [N, M] of ``matrix x = right``; differentiable, and safe under ``vmap``.

    A batch of LAPACK calls of jaxlib for CPUs (seen in 0.10) waits, on a thread of XLA's pool, for
    other threads of the same pool. Two such batches that run at the same time can hold all threads,
    and then wait for ever. So on CPUs the systems of a batch are solved one after the other.

    Args:
        matrix: [N, N].
        right: [N, M].
    """

    def solve_one(matrix: jax.Array, right: jax.Array) -> jax.Array:
        own: jax.Array = jnp.linalg.solve(matrix, right)
        return own

    own = jax.custom_batching.sequential_vmap(solve_one) if has_blocks() else solve_one
    # Derivatives are those of the equation, so that the loop over a batch needs none.
    solution: jax.Array = jax.lax.custom_linear_solve(
        lambda x: product(matrix, x),
        right,
        solve=lambda _, b: own(matrix, b),
        transpose_solve=lambda _, b: own(matrix.T, b),
    )
    return solution


class Task(NamedTuple):
    """A sparse contextual bigram.

    Attributes:
        transition: ``P`` [N, N], column-stochastic: ``P[n, m] = Pr(next = n | current = m)``.
        stationary: ``mu`` [N], with ``P mu = mu``.
        pattern: ``Q`` [T, N]; column ``k`` is a sparse distribution over positions, for query
            ``k``.
    """

    transition: jax.Array
    stationary: jax.Array
    pattern: jax.Array

    @property
    def num_tokens(self) -> int:
        """N, the size of the vocabulary."""
        return int(self.pattern.shape[-1])

    @property
    def context_length(self) -> int:
        """T, the number of context positions."""
        return int(self.pattern.shape[-2])

    def __repr__(self) -> str:
        """Sizes and signals, not the arrays."""
        if not all(
            getattr(array, "shape", ()) for array in self
        ):  # axes or specs in the places of arrays
            return f"Task({', '.join(f'{n}={outline(v)}' for n, v in self._asdict().items())})"
        parts = [f"num_tokens={self.num_tokens}, context_length={self.context_length}"]
        if np.ndim(self.stationary) > 1:
            parts.append(f"batch={list(self.stationary.shape[:-1])}")
        if all(map(is_numeric, self)):
            p, mu, q = (np.asarray(array).astype(float) for array in self)
            parts.append(f"K_P={_span(_norm(p, mu) - (mu**2).sum(axis=-1))}")
            parts.append(f"K_Q={_span(_norm(q, mu) - 1 / self.context_length)}")
        return f"Task({', '.join([*parts, str(self.pattern.dtype)])})"


def _norm(array: np.ndarray, stationary: np.ndarray) -> np.ndarray:
    """``|A|_mu^2`` of arrays [..., d, N], on the host."""
    norm: np.ndarray = ((array**2).sum(axis=-2) * stationary).sum(axis=-1)
    return norm


def _span(values: np.ndarray) -> str:
    """A number, or the range of several."""
    low, high = f"{np.min(values):.4g}", f"{np.max(values):.4g}"
    return low if low == high else f"{low} to {high}"


def mu_inner(a: jax.Array, b: jax.Array, stationary: jax.Array) -> jax.Array:
    """``<A, B>_mu = Tr(A diag(mu) B^T)`` for A, B of shape [d, N] and mu of shape [N]; a scalar.

    Example:
        >>> mu = jnp.array([0.25, 0.75])
        >>> float(mu_inner(jnp.eye(2), jnp.eye(2), mu))
        1.0
    """
    return jnp.sum(jnp.sum(a * b, axis=0) * stationary)


def transition_signal(task: Task) -> jax.Array:
    """``K_P = |P|_mu^2 - |mu|^2``: what P says beyond its stationary law; a scalar."""
    return mu_inner(task.transition, task.transition, task.stationary) - stationary_norm(task)


def pattern_signal(task: Task, context_length: int | None = None) -> jax.Array:
    """``K_Q = |Q|_mu^2 - 1/T``: how far the attention pattern is from uniform; a scalar.

    T is that of the task, or is given where the task has only some of the positions.
    """
    length = context_length or task.context_length
    return mu_inner(task.pattern, task.pattern, task.stationary) - 1.0 / length


def stationary_norm(task: Task) -> jax.Array:
    """``|mu|^2``, the squared Euclidean norm of the stationary distribution; a scalar."""
    return jnp.sum(task.stationary**2)


def pattern_sparsity(task: Task) -> jax.Array:
    """The sparsity Q: the largest number of nonzeros in a column of the pattern (int32)."""
    return jnp.max(jnp.sum(task.pattern != 0, axis=0, dtype=jnp.int32))


def random_task(
    key: jax.Array,
    *,
    num_tokens: int,
    context_length: int,
    sparsity: int | jax.Array,
    skew: float | jax.Array = DEFAULTS["skew"],
    transition_signal: float | jax.Array | None = None,
    max_sparsity: int | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Task:
    """Draws a task that meets Assumption 2.1 (b) and (c), without rejection.

    The stationary distribution is a flat Dirichlet draw shrunk towards uniform until every entry is
    in ``[1/(C N), C/N]`` (C is ``skew``) and, for N >= 3, ``|mu|^2 <= 0.45``. The transition matrix
    is ``J diag(1/mu)``, with a coupling J of mu with itself found on a one-parameter path of
    couplings by bisection so that ``K_P`` has the value asked for. Column supports of the pattern
    are uniform; their weights are Dirichlet draws shrunk into ``[1/(C Q), C/Q]``. Works under
    ``jit`` and ``vmap``; ``sparsity``, ``skew`` and ``transition_signal`` may be traced. The
    transition matrix does not depend on the sparsity, and supports are nested as the sparsity
    grows.

    Args:
        key: a PRNG key.
        num_tokens: N >= 2.
        context_length: T >= 1.
        sparsity: Q, nonzeros in each column of the pattern, between 1 and T.
        skew: the constant C >= 1 of Assumption 2.1 (b); 1 gives a uniform mu and equal weights.
        transition_signal: K_P; None stands for 1.1 |mu|^2. Clipped to at most 0.98 (1 - |mu|^2).
        max_sparsity: an upper bound of ``sparsity``, needed only to save work when ``sparsity`` is
            traced.
        dtype: floating dtype of the task.

    Returns:
        The task, with arrays of the given dtype.

    Raises:
        TypeError: if the key is no key.
        ValueError: for concrete numbers that are not allowed, and for several keys.

    Example:
        >>> task = random_task(jax.random.key(0), num_tokens=3, context_length=50, sparsity=2)
        >>> task.pattern.shape, int(pattern_sparsity(task))
        ((50, 3), 2)
    """
    key = as_threefry(key)
    num_tokens = as_integer("num_tokens", num_tokens, _NUMBERS["num_tokens"])
    context_length = as_integer("context_length", context_length, _NUMBERS["context_length"])
    _check_numbers(skew, transition_signal)
    max_sparsity = _check_sparsity(context_length, sparsity, max_sparsity)
    shape = (context_length, num_tokens)
    task: Task = _draw_task(key, shape, sparsity, skew, transition_signal, max_sparsity, dtype)
    return task


def related_task(
    key: jax.Array,
    task: Task,
    *,
    correlation: float | jax.Array,
    sparsity: int | jax.Array | None = None,
    skew: float | jax.Array = DEFAULTS["skew"],
    transition_signal: float | jax.Array | None = None,
    max_sparsity: int | None = None,
) -> Task:
    """Draws a task with the same stationary distribution and a related transition matrix.

    The transition matrix is ``rho P + (1 - rho) P'`` with rho the correlation and P' an independent
    draw: a mixture of couplings with the same marginals keeps mu stationary. Its K_P lies
    below the mean of those of P and P', weighted by rho and 1 - rho.

    Args:
        key: a PRNG key.
        task: the task to be related to.
        correlation: rho in [0, 1]; 1 returns the same P, 0 an independent one. May be traced.
        sparsity: draws a new pattern of this sparsity; None keeps the pattern of ``task``.
        skew: C for the weights of a new pattern.
        transition_signal: K_P of the independent part; None stands for that of ``task``.
        max_sparsity: as in :func:`random_task`.

    Returns:
        The related task.

    Raises:
        TypeError: if the key is no key, or the task no task.
        ValueError: for a concrete correlation outside [0, 1] or another concrete number that is not
            allowed, and for several keys or tasks.

    Example:
        >>> task = random_task(jax.random.key(0), num_tokens=3, context_length=50, sparsity=2)
        >>> same = related_task(jax.random.key(1), task, correlation=1.0)
        >>> bool(jnp.all(same.transition == task.transition))
        True
    """
    key = as_threefry(key)
    check_one_task("task", task)
    check_number("correlation", correlation, _NUMBERS["correlation"])
    _check_numbers(skew, transition_signal)
    if sparsity is not None:
        max_sparsity = _check_sparsity(task.context_length, sparsity, max_sparsity)
    related: Task = _draw_related(
        key, task, correlation, sparsity, skew, transition_signal, max_sparsity
    )
    return related


def stationary_distribution(transition: jax.Array) -> jax.Array:
    """The stationary distribution of an irreducible column-stochastic matrix [N, N]; shape [N].

    Solves ``(I - P + 1 1^T) mu = 1``, which holds for the mu with ``P mu = mu`` and ``1^T mu = 1``
    alone.

    Example:
        >>> (3 * stationary_distribution(jnp.array([[0.5, 1.0], [0.5, 0.0]]))).round(4).tolist()
        [2.0, 1.0]
    """
    size = transition.shape[-1]
    ones = jnp.ones((size,), transition.dtype)
    identity = jnp.eye(size, dtype=transition.dtype)
    solution: jax.Array = solve(identity - transition + 1.0, ones[:, None])[:, 0]
    return solution


# Compiled as a whole also where the caller compiles nothing: operation by operation a first draw
# takes four times as long, and every draw compiles its loops again.
@functools.partial(
    compiled_quickly,
    static_argnames=("shape", "max_sparsity", "dtype"),
    level=lambda _, shape, *__: level_for(shape[1]),
)
def _draw_task(
    key: jax.Array,
    shape: tuple[int, int],
    sparsity: int | jax.Array,
    skew: float | jax.Array,
    transition_signal: float | jax.Array | None,
    max_sparsity: int,
    dtype: jax.typing.DTypeLike,
) -> Task:
    """:func:`random_task`, with everything checked."""
    key_stationary, key_transition, key_pattern = jax.random.split(key, 3)
    stationary = _random_stationary(key_stationary, shape[1], skew, dtype)
    transition = _random_transition(key_transition, stationary, transition_signal)
    pattern = random_pattern(key_pattern, shape, sparsity, skew, max_sparsity, dtype)
    return Task(transition, stationary, pattern)


@functools.partial(
    compiled_quickly,
    static_argnames=("max_sparsity",),
    level=lambda _, task, *__: level_for(task.num_tokens),
)
def _draw_related(
    key: jax.Array,
    task: Task,
    correlation: float | jax.Array,
    sparsity: int | jax.Array | None,
    skew: float | jax.Array,
    signal: float | jax.Array | None,
    max_sparsity: int | None,
) -> Task:
    """:func:`related_task`, with everything checked."""
    key_transition, key_pattern = jax.random.split(key)
    signal = transition_signal(task) if signal is None else signal
    independent = _random_transition(key_transition, task.stationary, signal)
    transition = correlation * task.transition + (1.0 - correlation) * independent
    if sparsity is None or max_sparsity is None:
        return Task(transition, task.stationary, task.pattern)
    shape, dtype = (task.context_length, task.num_tokens), task.pattern.dtype
    pattern = random_pattern(key_pattern, shape, sparsity, skew, max_sparsity, dtype)
    return Task(transition, task.stationary, pattern)


def check_one_task(name: str, task: Task) -> None:
    """Raises an error if an argument is not a single task, with arrays that fit together.

    Args:
        name: of the argument.
        task: what it is; its arrays may be traced.

    Raises:
        TypeError: it is something else.
        ValueError: its arrays have other shapes than those of one task.

    Example:
        >>> check_one_task("task", 3)
        Traceback (most recent call last):
        ...
        TypeError: task is 3; it must be a Task, such as random_task draws
    """
    check_is(name, task, Task, "such as random_task draws")
    shapes = [tuple(np.shape(array)) for array in task]
    size, length = shapes[2][-1:], shapes[2][:-1]
    if len(length) == 1 and shapes[:2] == [size * 2, size]:
        return
    found = ", ".join(f"{n} {list(s)}" for n, s in zip(Task._fields, shapes, strict=True))
    several = ": jax.vmap maps a function over several" if len(shapes[1]) > 1 else ""
    raise ValueError(
        f"{name} has {found}; it must be a single task, with transition [N, N], stationary [N] "
        f"and pattern [T, N]{several}"
    )


# What arguments of this module may hold.
_NUMBERS = {p.short: numbers_of(p) for p in (*TASK, *TRANSFER) if isinstance(p.check, Interval)}


def _check_numbers(skew: float | jax.Array, signal: float | jax.Array | None) -> None:
    check_number("skew", skew, _NUMBERS["skew"])
    if signal is not None:
        check_number("transition_signal", signal, _NUMBERS["transition_signal"])


def _check_sparsity(
    context_length: int, sparsity: int | jax.Array, max_sparsity: int | None
) -> int:
    """Checks a sparsity, if it is concrete, and returns a static bound of it."""
    allowed = Numbers(1, context_length, whole=True)
    if max_sparsity is not None:
        max_sparsity = as_integer("max_sparsity", max_sparsity, allowed)
    check_number("sparsity", sparsity, dataclasses.replace(allowed, limit="context_length"))
    if is_traced(sparsity):
        return context_length if max_sparsity is None else max_sparsity
    sparsity = as_integer("sparsity", sparsity, allowed)
    if max_sparsity is not None and sparsity > max_sparsity:
        raise ValueError(
            f"sparsity is {sparsity}; it must be at most max_sparsity = {max_sparsity}"
        )
    return max_sparsity or sparsity


def _random_stationary(
    key: jax.Array, num_tokens: int, skew: float | jax.Array, dtype: jax.typing.DTypeLike
) -> jax.Array:
    draw = jax.random.exponential(key, (num_tokens,), dtype)
    draw = draw / jnp.sum(draw)
    centre = jnp.full((num_tokens,), 1.0 / num_tokens, dtype)
    skew = jnp.asarray(skew, dtype)
    largest = jnp.ones((), dtype)
    # With two tokens Assumption 2.1 (c) allows nothing but a permutation: mu stays free.
    if num_tokens >= 3:
        excess = MAX_STATIONARY_NORM - 1.0 / num_tokens
        largest = jnp.sqrt(
            excess / jnp.maximum(jnp.sum((draw - centre) ** 2), jnp.finfo(dtype).tiny)
        )
    point = shrink_to_box(draw, centre, centre / skew, centre * skew, largest)
    return point / jnp.sum(point)


def _random_transition(
    key: jax.Array, stationary: jax.Array, signal: float | jax.Array | None
) -> jax.Array:
    """A transition matrix with the given stationary distribution and K_P.

    Couplings J(s) of mu with itself: for s <= 1 the Sinkhorn scaling of exp(beta G), beta growing
    with s from 0 (J = mu mu^T, K_P = 0); for s > 1 a mixture with diag(mu) (P = I, K_P = 1 -
    |mu|^2). K_P is continuous in s and takes every value between, so bisection on its sign finds
    the one asked for.
    """
    norm = jnp.sum(stationary**2)
    ceiling = MAX_SIGNAL_SHARE * (1.0 - norm)
    wanted = (
        DEFAULT_SIGNAL_RATIO * norm if signal is None else jnp.asarray(signal, stationary.dtype)
    )
    wanted = jnp.clip(wanted, 0.0, ceiling)
    size = stationary.shape[0]
    potentials = jax.random.truncated_normal(
        key, -_POTENTIAL_BOUND, _POTENTIAL_BOUND, (size, size), stationary.dtype
    )

    def signal_at(position: jax.Array) -> jax.Array:
        coupling = _coupling(potentials, stationary, position)
        return jnp.sum(jnp.sum(coupling**2, axis=0) / stationary) - norm

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        found = signal_at(middle)
        return jnp.where(found < wanted, middle, low), jnp.where(found < wanted, high, middle)

    start = (jnp.zeros((), stationary.dtype), jnp.full((), 2.0, stationary.dtype))
    _, position = jax.lax.fori_loop(0, _BISECTION_STEPS, halve, start)
    transition = _coupling(potentials, stationary, position) / stationary[None, :]
    return transition / jnp.sum(transition, axis=0, keepdims=True)


def _coupling(potentials: jax.Array, stationary: jax.Array, position: jax.Array) -> jax.Array:
    """The coupling J(s) [N, N] of mu with itself at position s in [0, 2] of the path."""
    kernel = jnp.exp(jnp.minimum(position, 1.0) * _MAX_INVERSE_TEMPERATURE * potentials)

    def rows_for(columns: jax.Array) -> jax.Array:
        return stationary / product(kernel, columns)

    def scale(_: int, columns: jax.Array) -> jax.Array:
        return stationary / product(rows_for(columns), kernel)

    columns = jax.lax.fori_loop(0, _SINKHORN_ITERATIONS, scale, jnp.ones_like(stationary))
    coupling = _round_to_marginals(
        rows_for(columns)[:, None] * kernel * columns[None, :], stationary
    )
    mixture = jnp.maximum(position - 1.0, 0.0)
    return (1.0 - mixture) * coupling + mixture * jnp.diag(stationary)


def _round_to_marginals(coupling: jax.Array, marginal: jax.Array) -> jax.Array:
    """The nearby coupling with exact marginals (Altschuler, Weed & Rigollet 2017, algorithm 2)."""
    coupling = coupling * jnp.minimum(marginal / jnp.sum(coupling, axis=1), 1.0)[:, None]
    coupling = coupling * jnp.minimum(marginal / jnp.sum(coupling, axis=0), 1.0)[None, :]
    rows = jnp.maximum(marginal - jnp.sum(coupling, axis=1), 0.0)
    columns = jnp.maximum(marginal - jnp.sum(coupling, axis=0), 0.0)
    # Shares of a sum are at most one. The compiler may work out the rows twice, once for their sum
    # and with another rounding: a row that is left of 1e-8 and a sum of zero would give 1e22.
    total = jnp.maximum(jnp.sum(rows), jnp.finfo(rows.dtype).tiny)
    return coupling + jnp.outer(jnp.minimum(rows / total, 1.0), columns)
