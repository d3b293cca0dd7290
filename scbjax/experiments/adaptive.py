r"""Adaptive sparsity: queries that attend to different numbers of positions, and how much l1 each.

Column k of Q has Q_k nonzeros, and the learner does not know how many. It is the paper's proximal
step (eqs. 4 to 6) on V and A, from the uniform start, with a threshold ``lambda_k`` for each column
of A. A position counts as found where its entry is not thresholded to zero before the column sum is
restored.

**The noise of a step.** Let ``r = V X a - e_label``, ``S_V = (V - mu 1^T) diag(mu) (V - mu
1^T)^T``, and x_t the token of a position off the support. It is independent of r (but for its own
small weight), so that its preconditioned gradient, the mean of ``(V^T r)[x_t] - r^T mu`` over the
samples of query k, of which there are about B mu_k, has the variance ``s_k^2 / (B mu_k)`` with

    s_k^2 = Tr(S_V R_k),   R_k = diag(mu) - mu mu^T + |a|^2 S_V - <q, a> (C + C^T),
    C = (P - mu 1^T) diag(mu) (V - mu 1^T)^T.

Before anything is attended to, R_k is ``diag(mu) - mu mu^T``, which is also its bound along the
population path. A learner knows the unit ``s(V)^2 = Tr(S_V (diag(mu) - mu mu^T))``. A step moves an
entry by noise of deviation ``sigma_k = eta_A s_k / sqrt(B mu_k)``, and true entries q by ``eta_A
(K_VP q - K_V a)`` in the mean (Lemma B.8), at first by ``eta q`` times the signal in V.

**One column is one Markov chain.** In units of sigma_k an entry less the background m of its column
(what restoring the sum adds to every entry) is ``x' = S_kappa((1 - rho) x + drift + noise)``, S the
soft threshold, ``kappa = lambda_k / sigma_k``, ``rho = eta_A K_V``, and, in units of sigma_k,
``drift = eta_A K_VP q + (1 - rho) m + eta_A (K_V - K_VP) / T``. Hence:

* *False positives* depend on kappa: on ``lambda sqrt(mu_k)``, all queries on one curve, near
  ``2 Phi(-kappa)`` where that is small (:func:`zero_share` is the curve). None of N T entries is
  nonzero for kappa = ``sqrt(2 log(N T))`` and a little more.
* *False negatives* depend on ``lambda_k / (eta_A K_VP q)``: on ``lambda Q_k``; below one the entry
  lives at ``(K_VP q - lambda / eta_A) / K_V``, above one it dies.
* *The window.* ``kappa sigma_k < lambda_k < eta_A K_VP q_min`` needs ``B mu_k > (kappa s_k / (K_P
  q_min))^2`` samples of query k in a step. The rate cancels: a smaller one does not help, as each
  step is thresholded by itself. With one lambda the rarest query and the smallest weight of any
  query share a window, ``B > kappa^2 max_k (s_k^2 / mu_k) / (K_P min q)^2``; with ``lambda_k ~
  sqrt(1 / (B mu_k))`` each query needs its own, ``B > kappa^2 max_k (s_k^2 / (mu_k q_min,k^2)) /
  K_P^2``. The two differ most, by mu_max / mu_min, if it is the frequent queries that attend to
  many positions, and least if it is the rare ones.
* *Until then l1 does nothing.* Where all entries of a column are above lambda, thresholding moves
  all of them and restoring the sum moves them back: a column is sparse only from ``(1 - alpha_A) /
  T < lambda`` on. So there is no first stage without l1 here.

**V must not grow.** The loss knows the product of V and A alone, and l1 acts on A: A shrinks, V
grows, and all of the above is overtaken. The paper stops early; here V is projected on ``K_V <=
K_P`` after each step (ours; the algorithm knows K_P, by which its rates are scaled), so that
supports can be looked at where they have settled. Entries then live at ``q - lambda / (eta_A
K_P)``.

**Four learners.** One threshold, in units of the noise of a query of frequency 1/N (``adapt`` = 0);
a threshold a query (``adapt`` = 1); a path of thresholds from large to small, each warm-started
where the last one ended (``path_ratio`` > 1); and several thresholds side by side, of which each
query takes the one with the least loss on batches that were not learned from yet
(``candidates`` > 1). The last threshold of a path decides which entries are zero, so that a path
needs the window that one lambda needs. Held-out loss by itself chooses thresholds that are too
small (Meinshausen & Buhlmann 2006 show it of the lasso): shrinkage costs ``K_P Q_k (lambda / (eta_A
K_P))^2 / 2`` of it, more than false positives that are small. Of the estimate without its known
shrinkage, ``a + sign(a) lambda / (eta_A K_V)`` where a is not zero (``relax`` = 1, after the
relaxed lasso of Meinshausen 2007), a false positive costs at least as much as shrinkage did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, NamedTuple

import scbjax
from scbjax.base import Parameter
from scbjax.experiments.adaptive_learner import (
    Candidates,
    Progress,
    background,
    best_candidates,
    chosen,
    levels_at,
    model_of,
    rates_of,
    step_candidates,
    thresholds,
)
from scbjax.experiments.adaptive_noise import noise_of, zero_share
from scbjax.experiments.of_parts import learning
from scbjax.experiments.parts_common import (
    DECLARED,
    SPARSITY,
)
from scbjax.experiments.scb_common import SPARSITY_FITS
from scbjax.lazily import Lazily
from scbjax.parts import Observable, Source
from scbjax.values import FLOAT32_MAX, INT32_MAX, Interval

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
else:
    jax, jnp = Lazily("jax"), Lazily("jax.numpy")

_STREAM = 7  # of a task's key, for its supports
_MOST = 16  # nonzeros of a column

# ----------------------------------------------------------------------------------------- the task


def column_sizes(
    key: jax.Array, stationary: jax.Array, largest: int, alignment: jax.Array | float
) -> jax.Array:
    """Q_k [N] int32, evenly from 1 to ``largest``, one of them for every token.

    Args:
        key: a PRNG key.
        stationary: mu [N].
        largest: the largest of them.
        alignment: 1 gives the largest to the most frequent tokens, 0 deals them out at random.
    """
    num_tokens = stationary.shape[0]
    ranks = jnp.argsort(jnp.argsort(stationary)).astype(stationary.dtype) / num_tokens
    chance = jax.random.uniform(key, (num_tokens,), stationary.dtype)
    place = jnp.argsort(jnp.argsort(alignment * ranks + (1.0 - alignment) * chance))
    sizes: jax.Array = 1 + (place.astype(jnp.int32) * largest) // num_tokens
    return sizes


def draw_task(static: Mapping[str, Any], key: jax.Array, values: Mapping[str, Any]) -> scbjax.Task:
    """A task of :func:`scbjax.random_task` with another number of nonzeros in every column of Q."""
    from scbjax.patterns import random_pattern

    num_tokens, length, largest = (static[n] for n in ("num_tokens", "context_length", "sparsity"))
    task = scbjax.random_task(
        key,
        num_tokens=num_tokens,
        context_length=length,
        sparsity=1,
        skew=values["skew"],
        transition_signal=values["transition_signal"],
    )
    dtype = task.stationary.dtype
    sizes_key, pattern_key = jax.random.split(jax.random.fold_in(key, _STREAM))
    sizes = column_sizes(sizes_key, task.stationary, largest, values["alignment"])

    def column(own: jax.Array, size: jax.Array) -> jax.Array:
        pattern = random_pattern(own, (length, 1), size, values["weight_skew"], largest, dtype)
        return pattern[:, 0]

    keys = jax.random.split(pattern_key, num_tokens)
    return task._replace(pattern=jax.vmap(column, out_axes=1)(keys, sizes))


# -------------------------------------------------------------------------------------- the learner


def _source(static: Mapping[str, Any]) -> Source:
    from scbjax.sources import scb_batches

    return scb_batches()._replace(draw=partial(draw_task, dict(static)))


def _learner(source: Source, static: Mapping[str, Any], **given: Any) -> scbjax.Learner:  # noqa: ANN401
    from scbjax.moves import Move

    def init(params: Candidates, *_: object) -> Progress:
        size = jnp.asarray(given["batch_size"], params.value.dtype)
        return Progress(jnp.zeros((), jnp.int32), size, jnp.ones(params.attention.shape, bool))

    return scbjax.learner(source, model_of(static), Move(init, step_candidates), **given)


# --------------------------------------------------------------------------------- what is recorded


class Column(NamedTuple):
    """What theory takes to say what becomes of the entries of each column; [N] each.

    Attributes:
        lambdas: thresholds lambda_k.
        noise: sigma_k, the deviation of a step.
        drift: of an entry off the support, before it is divided by sigma_k.
        pull: eta_A K_VP, what a weight of one adds to that.
        decay: rho.
    """

    lambdas: jax.Array
    noise: jax.Array
    drift: jax.Array
    pull: jax.Array
    decay: jax.Array


def _once(function: Callable[[scbjax.View], Any]) -> Callable[[scbjax.View], Any]:
    """What several observables share of a view, computed once for it, as views do of their own."""
    name = f"_adaptive_{function.__name__}"

    @wraps(function)
    def of_view(view: scbjax.View) -> Any:  # noqa: ANN401 - the function's own
        if name not in vars(view):
            vars(view)[name] = function(view)
        return vars(view)[name]

    return of_view


@_once
def columns_of(view: scbjax.View) -> Column:
    """The numbers of the candidate that each query takes."""
    from scbjax.task import mu_inner

    params, task, values = view.state.params, view.task, view.values
    mu, rate = task.stationary, rates_of(task, values)[1]
    progress = view.state.opt_state
    levels = levels_at(values, params.value.shape[0], progress.step).astype(mu.dtype)

    def one(value: jax.Array, attention: jax.Array, support: jax.Array, level: jax.Array) -> Column:
        own = mu_inner(value, value, mu) - jnp.sum(mu**2)
        truth = mu_inner(value, task.transition, mu) - jnp.sum(mu**2)
        rest = background(attention, support)
        drift = (1.0 - rate * own) * rest + rate * (own - truth) / attention.shape[0]
        noise = rate * noise_of(scbjax.Params(value, attention), task)
        noise = noise / jnp.sqrt(progress.batch_size * mu)
        lambdas = thresholds(level, value, mu, rate, progress.batch_size, values["adapt"])
        same = jnp.ones_like(mu)
        return Column(lambdas, noise, drift, rate * truth * same, rate * own * same)

    all_of_them = jax.vmap(one)(params.value, params.attention, progress.support, levels)
    best = best_candidates(params)
    return Column(*(chosen(array, best) for array in all_of_them))


def _support(view: scbjax.View) -> jax.Array:
    """Which entries of A [T, N] the last threshold left."""
    return chosen(view.state.opt_state.support, best_candidates(view.state.params))


def _sizes(view: scbjax.View) -> jax.Array:
    """Q_k [N]."""
    return jnp.sum(view.task.pattern > 0, axis=0, dtype=view.task.pattern.dtype)


def _false_positives(view: scbjax.View) -> jax.Array:
    """Share of the positions off the support of Q that are not zero, [N]."""
    wrong = jnp.sum(_support(view) & (view.task.pattern == 0), axis=0, dtype=jnp.float32)
    share: jax.Array = wrong / jnp.maximum(view.task.context_length - _sizes(view), 1.0)
    return share


def _false_negatives(view: scbjax.View) -> jax.Array:
    """Share of the positions on the support of Q that are zero, [N]."""
    lost = jnp.sum(~_support(view) & (view.task.pattern > 0), axis=0, dtype=jnp.float32)
    return lost / _sizes(view)


def _queries_recovered(view: scbjax.View) -> jax.Array:
    """Share of the queries whose support is found exactly."""
    same = jnp.all(_support(view) == (view.task.pattern > 0), axis=0)
    return jnp.mean(same.astype(jnp.float32))


def _noise_level(view: scbjax.View) -> jax.Array:
    """``lambda_k / sigma_k`` [N]."""
    columns = columns_of(view)
    level: jax.Array = columns.lambdas / _positive(columns.noise)
    return level


def _weight_level(view: scbjax.View) -> jax.Array:
    """``lambda_k Q_k / (eta_A K_VP)`` [N]."""
    columns = columns_of(view)
    level: jax.Array = columns.lambdas * _sizes(view) / _positive(columns.pull)
    return level


def _positive(array: jax.Array) -> jax.Array:
    return jnp.maximum(array, jnp.finfo(array.dtype).tiny)


def false_positive_theory(columns: Column) -> jax.Array:
    """Share of the positions off the support that the chain has nonzero, [N]."""
    noise = _positive(columns.noise)
    zeros = jax.vmap(zero_share)(columns.lambdas / noise, columns.drift / noise, columns.decay)
    return 1.0 - zeros


def false_negative_theory(columns: Column, pattern: jax.Array, largest: int) -> jax.Array:
    """How often each of the ``largest`` weights of a column is zero, [largest, N]; 0 for none."""
    noise = _positive(columns.noise)
    weights = jax.lax.top_k(pattern.T, largest)[0].T
    drift = (columns.drift[None] + columns.pull[None] * weights) / noise[None]
    over_queries = jax.vmap(zero_share)
    zeros = jax.vmap(over_queries, in_axes=(None, 0, None))(
        columns.lambdas / noise, drift, columns.decay
    )
    return jnp.where(weights > 0, zeros, 0.0)


@_once
def _expected(view: scbjax.View) -> tuple[jax.Array, jax.Array]:
    """By the chain: false positives a position [N], and how often each weight is zero [.., N]."""
    columns, largest = columns_of(view), min(_MOST, view.task.context_length)
    lost = false_negative_theory(columns, view.task.pattern, largest)
    return false_positive_theory(columns), lost


def _false_negatives_expected(view: scbjax.View) -> jax.Array:
    return jnp.sum(_expected(view)[1], axis=0) / _sizes(view)


def _recovery_expected(view: scbjax.View) -> jax.Array:
    """The chance that no entry is wrong, if entries were independent."""
    below_one = 1.0 - float(jnp.finfo(view.task.pattern.dtype).eps)
    wrong, lost = (jnp.minimum(share, below_one) for share in _expected(view))
    off = view.task.context_length - _sizes(view)
    return jnp.exp(jnp.sum(off * jnp.log1p(-wrong)) + jnp.sum(jnp.log1p(-lost)))


_A_QUERY = ("query",)
RECORD = (
    Observable(
        _false_positives, "false positives a position", dims=_A_QUERY, name="false_positives"
    ),
    Observable(
        _false_negatives, "false negatives a position", dims=_A_QUERY, name="false_negatives"
    ),
    Observable(
        lambda view: _expected(view)[0], "false positives of the chain", dims=_A_QUERY,
        name="false_positives_expected",
    ),
    Observable(
        _false_negatives_expected, "false negatives of the chain", dims=_A_QUERY,
        name="false_negatives_expected",
    ),
    Observable(
        _noise_level, "threshold over the noise of a step", r"$\lambda_k / \sigma_k$",
        dims=_A_QUERY, name="noise_level",
    ),
    Observable(
        _weight_level, "threshold over the step of a mean weight",
        r"$\lambda_k Q_k / (\eta_A K_{VP})$", dims=_A_QUERY, name="weight_level",
    ),
    Observable(
        lambda view: view.task.stationary, "frequency of a query", r"$\mu_k$", dims=_A_QUERY,
        name="frequency",
    ),
    Observable(_sizes, "nonzeros of a column", "$Q_k$", dims=_A_QUERY, name="column_size"),
    Observable(_queries_recovered, "queries with the exact support", name="queries_recovered"),
    Observable(_recovery_expected, "chance of all supports by the chain", name="recovery_expected"),
    "attention_distance",
    "value_distance",
    "excess_loss",
    "batch_loss",
    "samples",
)  # fmt: skip

_POSITIVE = Interval(0.0, FLOAT32_MAX, above=True)
_RATIO, _SHARE = Interval(1.0, FLOAT32_MAX), Interval(0.0, 1.0)
PARAMETERS = (
    DECLARED["task.num_tokens"],
    DECLARED["task.context_length"],
    replace(
        SPARSITY,
        help="The largest number of nonzeros of a column of Q; they go evenly from 1 to it",
        check=Interval(1, _MOST),
    ),
    replace(DECLARED["task.skew"], help="Constant C of mu: in [1/(CN), C/N]"),
    Parameter(
        "task.weight_skew", float, 2.0, "traced", "outer",
        "Constant C of the weights of Q: in [1/(C Q_k), C/Q_k]", _RATIO,
    ),
    replace(DECLARED["task.transition_signal"], default=0.5),
    Parameter(
        "task.alignment", float, 0.0, "traced", "outer",
        "1 where frequent queries attend to many positions, 0 at random", _SHARE,
    ),
    Parameter("train.rate", float, 0.1, "traced", "inner", "Rate eta", _POSITIVE, symbol=r"$\eta$"),
    Parameter(
        "train.level", float, 5.0, "traced", "inner",
        "Threshold in units of the noise of a step: the largest candidate, at the end of the path",
        Interval(0.0, FLOAT32_MAX), symbol=r"$\kappa$",
    ),
    Parameter(
        "train.adapt", float, 1.0, "traced", "inner",
        "1 for a threshold a query, by its frequency; 0 for one threshold", _SHARE,
    ),
    Parameter(
        "train.path_ratio", float, 1.0, "traced", "inner",
        "Largest threshold of the path over the last; 1 for no path", _RATIO,
    ),
    Parameter(
        "train.path_steps", float, 100.0, "traced", "inner", "Steps of the path", _POSITIVE
    ),
    Parameter(
        "train.value_bound", float, 1.0, "traced", "inner",
        "Largest K_V over K_P that V is projected on", _POSITIVE,
    ),
    Parameter(
        "train.candidates", int, 1, "static", "inner",
        "Thresholds side by side, of which each query takes that with the least held-out loss",
        Interval(1, INT32_MAX),
    ),
    Parameter(
        "train.candidate_ratio", float, 1.5, "traced", "inner",
        "Threshold of a candidate over the next", _RATIO,
    ),
    Parameter(
        "train.relax", float, 1.0, "traced", "inner",
        "Share of the shrinkage that is given back before the held-out loss", _SHARE,
    ),
    Parameter(
        "train.memory", float, 20.0, "traced", "inner", "Steps that the held-out loss is a mean of",
        _RATIO,
    ),
)  # fmt: skip

EXPERIMENT = replace(
    learning("adaptive", _source, _learner, record=RECORD, parameters=PARAMETERS),
    relations=(SPARSITY_FITS,),
    # Of what is static, queries are all that records have an axis of.
    size_paths=("task.num_tokens",),
)
"""Queries of different sparsity, and thresholds for each."""
