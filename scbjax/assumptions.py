"""Tasks judged: those of a user's own P and Q, and which parts of Assumption 2.1 hold."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from scbjax.parameters import DEFAULTS
from scbjax.task import Task, check_one_task

# Largest deviation of a column sum from one that is put down to rounding in a user's float32
# matrix.
_SUM_TOLERANCE = 1e-4


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


def check_task(task: Task, *, skew: float = DEFAULTS["skew"]) -> TaskReport:
    """Says which parts of Assumption 2.1 hold for a task (host side, float64).

    Args:
        task: a single task (not a batch of them).
        skew: the constant C with which (b) is judged.

    Returns:
        A report whose ``str`` is a readable summary.

    Example:
        >>> from scbjax.task import random_task
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
