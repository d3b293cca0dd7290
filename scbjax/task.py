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
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32

from scbjax.arguments import (
    SIZES,
    Numbers,
    as_integer,
    check_is,
    check_number,
    is_numeric,
    is_traced,
    outline,
)
from scbjax.blocks import has_blocks
from scbjax.keys import as_threefry
from scbjax.once import compiled_quickly, level_for
from scbjax.sharding import WHOLE, Part, merge_largest, on_parts, split

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
# Largest deviation of a column sum from one that is put down to rounding in a user's float32
# matrix.
_SUM_TOLERANCE = 1e-4

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
    skew: float | jax.Array = 2.0,
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
    num_tokens = as_integer("num_tokens", num_tokens, _VOCABULARIES)
    context_length = as_integer("context_length", context_length, SIZES)
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
    skew: float | jax.Array = 2.0,
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
    check_number("correlation", correlation, _SHARES)
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


def task_from_arrays(transition: np.ndarray | jax.Array, pattern: np.ndarray | jax.Array) -> Task:
    """Makes a task of a user's own P and Q, after checking them (host side).

    Args:
        transition: ``P`` [N, N], entries >= 0, columns summing to 1, irreducible.
        pattern: ``Q`` [T, N], entries >= 0, columns summing to 1.

    Returns:
        The task; dtype float32, or float64 where JAX has it enabled and both arrays are float64.

    Raises:
        ValueError: naming the array, the column and what is wrong with it.

    Example:
        >>> task = task_from_arrays([[0.9, 0.2], [0.1, 0.8]], [[1.0, 0.0], [0.0, 1.0]])
        >>> (3 * task.stationary).round(4).tolist()
        [2.0, 1.0]
    """
    p, q = np.asarray(transition, dtype=float), np.asarray(pattern, dtype=float)
    if p.ndim != 2 or p.shape[0] != p.shape[1] or p.shape[0] < 2:
        raise ValueError(
            f"transition has shape {p.shape}; it must be square with at least 2 tokens"
        )
    if q.ndim != 2 or q.shape[1] != p.shape[0] or q.shape[0] < 1:
        raise ValueError(f"pattern has shape {q.shape}; it must be [context_length, {p.shape[0]}]")
    for name, array in (("transition", p), ("pattern", q)):
        _check_columns(name, array)
    if not _is_irreducible(p):
        raise ValueError(
            "transition is reducible; every token must be reachable from every other one"
        )
    p, q = p / p.sum(axis=0), q / q.sum(axis=0)
    size = p.shape[0]
    stationary = np.linalg.solve(np.eye(size) - p + 1.0, np.ones(size))
    both_double = all(getattr(a, "dtype", None) == np.float64 for a in (transition, pattern))
    dtype = jnp.float64 if both_double and jax.config.read("jax_enable_x64") else jnp.float32
    return Task(*(jnp.asarray(array, dtype) for array in (p, stationary, q)))


@dataclasses.dataclass(frozen=True)
class TaskReport:
    """Which parts of Assumption 2.1 a task meets, with the numbers. Made by :func:`check_task`.

    Attributes:
        num_tokens: N.
        context_length: T.
        sparsity: Q, the largest number of nonzeros in a column of the pattern.
        skew_stationary: the least C for which mu meets (b).
        skew_pattern: the least C for which the weights of the pattern meet (b).
        transition_signal: K_P.
        pattern_signal: K_Q.
        stationary_norm: ``|mu|^2``.
        column_error: largest deviation of a column sum of P or Q from 1.
        stationary_error: largest entry of ``|P mu - mu|``.
        sparse: (a) Q is at most a tenth of T.
        balanced: (b) holds with the constant that was asked for.
        nontrivial: (c) K_P >= ``|mu|^2``.
        long: (d) T >= (N Q)^10.
    """

    num_tokens: int
    context_length: int
    sparsity: int
    skew_stationary: float
    skew_pattern: float
    transition_signal: float
    pattern_signal: float
    stationary_norm: float
    column_error: float
    stationary_error: float
    sparse: bool
    balanced: bool
    nontrivial: bool
    long: bool

    def __str__(self) -> str:
        """One line for each part of the assumption."""

        def mark(holds: bool) -> str:
            return "holds" if holds else "fails"

        worst = max(self.skew_stationary, self.skew_pattern)
        ratio = self.transition_signal / self.stationary_norm
        share = self.context_length / float(self.num_tokens * self.sparsity) ** 10
        return "\n".join(
            (
                f"N = {self.num_tokens}, T = {self.context_length}, Q = {self.sparsity}",
                f"(a) {mark(self.sparse)}: Q / T = {self.sparsity / self.context_length:.3g}",
                f"(b) {mark(self.balanced)}: C = {worst:.3g}",
                f"(c) {mark(self.nontrivial)}: K_P / |mu|^2 = {ratio:.3g}",
                f"(d) {mark(self.long)}: T / (N Q)^10 = {share:.3g}",
            )
        )


# "Q << T" of Assumption 2.1 (a) read as: at most this share of the context.
_SPARSE_SHARE = 0.1
# Relative slack for float32 rounding in the comparisons of check_task.
_SLACK = 1e-5


def check_task(task: Task, *, skew: float = 2.0) -> TaskReport:
    """Says which parts of Assumption 2.1 hold for a task (host side, float64).

    Args:
        task: a single task (not a batch of them).
        skew: the constant C with which (b) is judged.

    Returns:
        A report whose ``str`` is a readable summary.

    Example:
        >>> task = random_task(jax.random.key(0), num_tokens=3, context_length=50, sparsity=2)
        >>> check_task(task).nontrivial
        True
    """
    check_one_task("task", task)
    p, mu, q = (np.asarray(array, dtype=float) for array in task)
    size, length = p.shape[0], q.shape[0]
    support = q > 0
    counts = support.sum(axis=0)
    sparsity = int(counts.max())
    signal = float((p**2 @ mu).sum() - mu @ mu)
    weights = np.where(support, q, np.nan) * counts
    skew_mu = float(max(np.max(mu) * size, 1.0 / (np.min(mu) * size)))
    skew_q = float(max(np.nanmax(weights), 1.0 / np.nanmin(weights)))
    return TaskReport(
        num_tokens=size,
        context_length=length,
        sparsity=sparsity,
        skew_stationary=skew_mu,
        skew_pattern=skew_q,
        transition_signal=signal,
        pattern_signal=float((q**2 @ mu).sum() - 1.0 / length),
        stationary_norm=float(mu @ mu),
        column_error=float(max(np.abs(p.sum(axis=0) - 1).max(), np.abs(q.sum(axis=0) - 1).max())),
        stationary_error=float(np.abs(p @ mu - mu).max()),
        sparse=sparsity <= _SPARSE_SHARE * length,
        balanced=max(skew_mu, skew_q) <= skew * (1 + _SLACK),
        nontrivial=bool(signal >= (mu @ mu) * (1 - _SLACK)),
        long=math.log(length) >= 10 * math.log(size * sparsity),
    )


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
    pattern = _random_pattern(key_pattern, shape, sparsity, skew, max_sparsity, dtype)
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
    pattern = _random_pattern(key_pattern, shape, sparsity, skew, max_sparsity, dtype)
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
_VOCABULARIES = Numbers(2, SIZES.high, whole=True)
_SKEWS, _SIGNALS, _SHARES = Numbers(1), Numbers(0, infinite=True), Numbers(0, 1)


def _check_numbers(skew: float | jax.Array, signal: float | jax.Array | None) -> None:
    check_number("skew", skew, _SKEWS)
    if signal is not None:
        check_number("transition_signal", signal, _SIGNALS)


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


def _check_columns(name: str, array: np.ndarray) -> None:
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} has an entry that is not finite")
    if np.any(array < 0):
        row, column = np.argwhere(array < 0)[0]
        raise ValueError(
            f"{name}[{row}, {column}] is {array[row, column]:.6g}; entries must not be negative"
        )
    sums = array.sum(axis=0)
    column = int(np.argmax(np.abs(sums - 1)))
    if abs(sums[column] - 1) > _SUM_TOLERANCE:
        raise ValueError(
            f"column {column} of {name} sums to {sums[column]:.6g}; every column must sum to 1"
        )


def _is_irreducible(transition: np.ndarray) -> bool:
    """Whether every state reaches every other: squaring the reachability relation log2(N) times."""
    reach = (transition > 0) | np.eye(transition.shape[0], dtype=bool)
    for _ in range(max(1, math.ceil(math.log2(transition.shape[0])))):
        reach = (reach.astype(float) @ reach.astype(float)) > 0
    return bool(reach.all())


def _shrink_to_box(
    point: jax.Array,
    centre: jax.Array,
    low: jax.Array,
    high: jax.Array,
    largest: float | jax.Array = 1.0,
) -> jax.Array:
    """Moves points of the simplex (last axis) towards the centre until they lie in [low, high]."""
    step = point - centre
    tiny = jnp.finfo(point.dtype).tiny
    room = jnp.where(
        step > 0,
        (high - centre) / jnp.maximum(step, tiny),
        (centre - low) / jnp.maximum(-step, tiny),
    )
    room = jnp.where(step == 0, jnp.inf, room)
    scale = jnp.minimum(jnp.min(room, axis=-1, keepdims=True), largest)
    return centre + jnp.minimum(scale, 1.0) * step


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
    point = _shrink_to_box(draw, centre, centre / skew, centre * skew, largest)
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
    return coupling + jnp.outer(rows, columns) / jnp.maximum(
        jnp.sum(rows), jnp.finfo(rows.dtype).tiny
    )


def _random_pattern(
    key: jax.Array,
    shape: tuple[int, int],
    sparsity: int | jax.Array,
    skew: float | jax.Array,
    max_sparsity: int,
    dtype: jax.typing.DTypeLike,
) -> jax.Array:
    """Columns with uniform supports, nested as the sparsity grows, and weights in [1/(CQ), C/Q]."""
    num_tokens = shape[1]
    key_position, key_weight = jax.random.split(key)
    positions = _random_positions(key_position, shape, max_sparsity)
    # A key of its own for every rank, so that the weights drawn do not depend on the static bound.
    ranks = jnp.arange(max_sparsity, dtype=jnp.int32)

    def draw_rank(rank: jax.Array) -> jax.Array:
        return jax.random.exponential(jax.random.fold_in(key_weight, rank), (num_tokens,), dtype)

    active = (ranks < sparsity)[None, :]
    draw = jnp.where(active, jax.vmap(draw_rank)(ranks).T, 0.0)
    size = jnp.asarray(sparsity, dtype)
    centre = jnp.where(active, 1.0 / size, 0.0)
    skew = jnp.asarray(skew, dtype)
    weights = _shrink_to_box(
        draw / jnp.sum(draw, axis=-1, keepdims=True), centre, centre / skew, centre * skew
    )
    weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    pattern = split(jnp.zeros(shape, dtype))
    return pattern.at[positions, jnp.arange(num_tokens)[:, None]].set(weights.astype(dtype))


def _random_positions(key: jax.Array, shape: tuple[int, int], count: int) -> jax.Array:
    """For each token, ``count`` of the positions in random order, [N, count].

    They are the rows of the largest entries of ``jax.random.uniform(key, (N, T)).T``. The scores of
    one token are drawn at a time: all of them at once would take four times the memory of Q.
    """
    context_length, num_tokens = shape
    seed = jax.random.key_data(key)  # a key of Threefry is its words
    counts = np.arange(num_tokens, dtype=np.uint64) * np.uint64(context_length)
    starts = tuple(jnp.asarray(w, jnp.uint32) for w in (counts >> 32, counts & 0xFFFFFFFF))

    def find(part: Part, seed: jax.Array) -> jax.Array:
        length = context_length // part.count
        first = part.index * length

        def of_token(start: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            high, low = start
            own = low + (first + jnp.arange(length, dtype=jnp.int32)).astype(jnp.uint32)
            counter = jnp.concatenate([high + (own < low).astype(jnp.uint32), own])
            drawn = threefry_2x32(seed, counter)
            bits = drawn[:length] ^ drawn[length:]
            # As many bits as float32 has, in which searches are fast.
            return jax.lax.top_k((bits >> 9).astype(jnp.float32), min(count, length))

        scores, rows = jax.lax.map(of_token, starts)
        return merge_largest(part, scores, rows + first, count)[1]

    positions: jax.Array = on_parts(find, (WHOLE,), WHOLE)(seed)
    return positions
