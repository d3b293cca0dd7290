r"""Two look-ups: the query points to a token, and that token to the one that tells the label.

A two-hop SCB has two patterns. The query k picks a position ``t ~ q^(k)`` of Q, the token there,
``m = x_t``, picks a position ``s ~ r^(m)`` of R, and the label is one step of P from ``x_s``. So

    E[e_label | X, k] = P X R X q^(k),

which is quadratic in the context. Positions of Q and of R are disjoint here: the even ones and the
odd ones. Two learners, both linear in every one of their parameters:

* one layer (eq. 2):  ``V X a^(k)``;
* two layers:         ``V X A_2 h`` with ``h = X a_1^(k)``: the first attends by the query, the
  second by the tokens that the first has retrieved, as a distribution.

**What is learned, order by order.** Write ``X = mu 1^T + X~``, ``V = mu 1^T + V~`` and
``A_2 = a 1^T + A~``, with ``a = A_2 mu`` the pattern that is left when it is not known which token
points, and the same for the truth, ``R = r 1^T + R~``, ``r = R mu``. With the invariants of the
paper's algorithm, ``1^T V = 1^T``, ``V mu = mu`` and columns of A_1 and A_2 that sum to one,

    V X A_2 X a_1 = mu + V~ X~ a + V~ X~ A~ X~ a_1,

a sum of a term of one token and a term of pairs of tokens, which are uncorrelated. (Pairs of a
position with itself are a third term, of order 1/T, which the true patterns have none of;
:func:`excess_loss` has it.) So the loss above that of the truth is

    1/2 |V~ (x) a - P~ (x) r|^2  +  1/2 |V~ (x) A~ (x) A_1 - P~ (x) R~ (x) Q|^2,

in the mu-norms: the factorisation of a matrix, and of a tensor of order three with a factor in
common. The first is a one-hop SCB whose pattern does not depend on the query.

**One layer.** Linear in X as it is, it has the first term at most: ``V = P`` and ``a^(k) = r``
for every query is its best, and what is left is

    1/2 K_P K_R |Q|_mu^2,   K_P = |P~|_mu^2,   K_R = |R~|_mu^2 = |R|_mu^2 - |r|^2.

**From scratch.** Patterns are not negative, so that ``r`` cannot vanish; ``|r|^2`` is about
``|R|_mu^2 / N``. That is a stairway: V and a are learned first, as in stage 1 of a one-hop SCB, and
the loss comes down to that of one layer. From there on V is known, and A~ and A_1 are the factors
of a matrix, which is another saddle of order two. Uniform attention has an overlap of 1/T with what
is to be found, and so is on its way down from either. Nowhere is there a saddle of order three with
nothing to start from, as there is where averages tell nothing: with hidden permutations, samples
grow exponentially with the number of hops for any learner by statistical queries, unless easier
tasks are among them (Wang et al., arXiv 2505.23683).

**Samples.** With rates over the signals (:func:`rates_of`) the number of steps is a sum of
logarithms of T, one for each saddle, over the rates at which signals grow there:

    from scratch      log T / (eta g) + log T / (eta |Q|_mu),   g^2 = |r|^2 / (|r|^2 + K_R |Q|^2);
    after one hop     log T / eta + a number,

where one hop is the task ``(P, R)`` by itself, with the query in the place of the token that is
retrieved: it teaches V and A_2, with which A_1 is a linear regression. With eta in proportion to
``B / (T N)``, which is what the noise of ``2 T N`` attention weights asks for, both need
``T N log T`` samples, and one hop first saves a factor: for large T ``1/g + 1/|Q|``, which is 2.5
to 3 for N = 4 and Q = 2 and grows like the root of N, as the stairway gets lower; at the T of a
study, less.

**The path.** On ``V~ = v P~``, ``a = 1/T + b (r - 1/T)``, ``A~ = s R~``, ``A_1 = 1/T + f (Q -
1/T)`` the expected preconditioned gradients of both tasks are recursions of four numbers
(:func:`path_step`), up to the term of order 1/T. That term also pushes A_1 off the path, onto
positions of R, where a token would point to itself, for as long as V and a are not learned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import scbjax
from scbjax.base import Interval, Parameter, Relation
from scbjax.experiments.of_parts import learning
from scbjax.experiments.parts_common import (
    DECLARED,
    RATES,
    SPARSITY,
    of_static,
)
from scbjax.lazily import Lazily
from scbjax.parts import Model, Observable, Source, Stage, Track

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
    import optax

    from scbjax.moves import Move
else:
    jax, jnp, optax = Lazily("jax"), Lazily("jax.numpy"), Lazily("optax")

# Counter streams of one batch.
_TOKENS, _QUERIES, _FIRST, _SECOND, _LABELS, _EASY, _EASY_LABELS = range(7)
_GOAL = 0.5  # of the least loss of one layer


class HopTask(NamedTuple):
    """A two-hop SCB.

    Attributes:
        transition: P [N, N], column-stochastic.
        stationary: mu [N].
        first: Q [T, N], where a query points to; on even positions.
        second: R [T, N], where the token that is found there points to; on odd positions.
    """

    transition: jax.Array
    stationary: jax.Array
    first: jax.Array
    second: jax.Array


class HopParams(NamedTuple):
    """Parameters of both learners; that of one layer has ``second`` alone as its attention.

    Attributes:
        value: V [N, N].
        first: A_1 [T, N].
        second: A_2 [T, N].
    """

    value: jax.Array
    first: jax.Array
    second: jax.Array


class HopBatch(NamedTuple):
    """A mini-batch of B samples.

    Attributes:
        tokens: contexts [B, T], unsigned integers.
        query: [B] int32.
        label: after two hops, [B] int32.
        easy_label: after one hop by R from the query itself, [B] int32.
    """

    tokens: jax.Array
    query: jax.Array
    label: jax.Array
    easy_label: jax.Array


class HopConstants(NamedTuple):
    """What the loss on the path depends on, scalars: see the module's text.

    Attributes:
        transition: K_P.
        second: K_R.
        mean: ``|r|^2``.
        first: ``|Q|_mu^2``.
    """

    transition: jax.Array
    second: jax.Array
    mean: jax.Array
    first: jax.Array


# ------------------------------------------------------------------------------- tasks and samples


def random_hops(
    key: jax.Array,
    *,
    num_tokens: int,
    context_length: int,
    sparsity: int,
    transition_signal: jax.Array | float | None = None,
) -> HopTask:
    """Draws a two-hop SCB: P, mu and both patterns as :func:`scbjax.random_task` does.

    Args:
        key: a PRNG key.
        num_tokens: N.
        context_length: T.
        sparsity: nonzeros in each column of Q and of R, at most half of T.
        transition_signal: K_P; None for ``1.1 |mu|^2``.

    Example:
        >>> task = random_hops(jax.random.key(0), num_tokens=4, context_length=9, sparsity=2)
        >>> [int(jnp.sum(task.first[start::2] > 0)) for start in (0, 1)]
        [8, 0]
    """
    from scbjax.patterns import random_pattern

    first_key, second_key = jax.random.split(key)
    odd = context_length // 2
    task = scbjax.random_task(
        first_key,
        num_tokens=num_tokens,
        context_length=context_length - odd,
        sparsity=sparsity,
        transition_signal=transition_signal,
    )
    skew, dtype = 2.0, task.pattern.dtype
    pattern = random_pattern(second_key, (odd, num_tokens), sparsity, skew, sparsity, dtype)
    empty = jnp.zeros((context_length, num_tokens), dtype)
    return HopTask(
        task.transition,
        task.stationary,
        empty.at[::2].set(task.pattern),
        empty.at[1::2].set(pattern),
    )


def easy_task(task: HopTask) -> scbjax.Task:
    """The one-hop SCB that has the second look-up alone."""
    return scbjax.Task(task.transition, task.stationary, task.second)


def prepare(task: HopTask) -> Any:  # noqa: ANN401 - two samplers
    """The distribution functions of both patterns."""
    from scbjax.sampling import make_sampler

    return make_sampler(easy_task(task)._replace(pattern=task.first)), make_sampler(easy_task(task))


def sample_hops(seed: Any, prepared: Any, batch_size: int) -> HopBatch:  # noqa: ANN401
    """Draws a mini-batch; ``seed`` is that of the house (:func:`scbjax.sampling.make_seed`)."""
    from scbjax.inversion import draw_from_columns, entry_of
    from scbjax.sampling import draw_contexts, draw_positions, draw_tokens

    by_first, by_second = prepared
    table, (length, num_tokens) = by_first.token_table, by_first.pattern.shape
    tokens = draw_contexts(seed, _TOKENS, table, num_tokens, (batch_size, length))
    query = draw_tokens(seed, _QUERIES, table, num_tokens, (batch_size,)).astype(jnp.int32)
    rows = jnp.arange(batch_size, dtype=jnp.int32)

    def token_at(position: jax.Array) -> jax.Array:
        return entry_of(tokens, rows, position).astype(jnp.int32)

    pointer = token_at(draw_positions(seed, _FIRST, by_first, query))
    source = token_at(draw_positions(seed, _SECOND, by_second, pointer))
    easy = token_at(draw_positions(seed, _EASY, by_second, query))
    return HopBatch(
        tokens,
        query,
        draw_from_columns(seed, _LABELS, by_first.label_cdf, source),
        draw_from_columns(seed, _EASY_LABELS, by_first.label_cdf, easy),
    )


# ---------------------------------------------------------------------------- loss and its gradient


def hop_loss(params: HopParams, batch: HopBatch, direct: jax.Array | bool = False) -> jax.Array:
    """The mean over the batch of ``1/2 |e_label - V X A_2 h|^2``; a scalar.

    With ``r = (V g - e) / B``, ``g = X w``, ``w = A_2 h`` and ``h = X a_1``, the gradient, which is
    written out, is

        grad V = sum_b r g^T,   grad A_2 = sum_b (V^T r)[x] h^T,   grad a_1 = sum_b (A_2^T (V^T
        r)[x])[x]   over samples of a query,

    where ``u[x]`` [T] is ``u`` looked up at the tokens: one look-up for each layer.

    Args:
        params: V, A_1 and A_2.
        batch: tokens, query and label; its ``easy_label`` is not looked at.
        direct: whether h is the query itself, so that the second layer is a learner of one layer.

    Example:
        >>> task = random_hops(jax.random.key(0), num_tokens=4, context_length=8, sparsity=2)
        >>> batch = sample_hops(scbjax.sampling.make_seed(jax.random.key(1)), prepare(task), 16)
        >>> jax.grad(hop_loss)(start_hops(task), batch).first.shape
        (8, 4)
    """
    value: jax.Array = _differentiable()(params, batch, jnp.asarray(direct))
    return value


@cache
def _differentiable() -> Callable[..., jax.Array]:
    function = jax.custom_vjp(lambda *arguments: _forward(*arguments)[0])
    function.defvjp(_forward, _backward)
    return function


def _forward(params: HopParams, batch: HopBatch, direct: jax.Array) -> tuple[jax.Array, Any]:
    from scbjax.model import attend, sum_by_token
    from scbjax.task import product

    num_tokens, dtype = params.value.shape[0], params.value.dtype
    query = jax.nn.one_hot(batch.query, num_tokens, dtype=dtype)
    found = attend(params.first, batch.tokens, batch.query)
    found = jnp.where(direct, query, found)
    attended = sum_by_token(product(found, params.second.T), batch.tokens, num_tokens)
    target = jax.nn.one_hot(batch.label, num_tokens, dtype=dtype)
    error = product(attended, params.value.T) - target
    loss = 0.5 * jnp.sum(error**2) / batch.label.shape[0]
    return loss, (params, batch, direct, found, attended, error)


def _backward(kept: Any, cotangent: jax.Array) -> tuple[HopParams, None, None]:  # noqa: ANN401
    from scbjax.model import attend_transpose, look_up
    from scbjax.task import product

    params, batch, direct, found, attended, error = kept
    error = error * (cotangent / batch.label.shape[0])
    weights = look_up(product(error, params.value), batch.tokens)  # of w, [B, T]
    scores = jnp.where(direct, 0.0, product(weights, params.second))  # of h, [B, N]
    first = attend_transpose(scores, batch.tokens, batch.query)
    return HopParams(product(error.T, attended), first, product(weights.T, found)), None, None


# -------------------------------------------------------------------------------- in expectation


class _Centred(NamedTuple):
    """A two-layer learner that keeps the invariants, taken apart as in the module's text."""

    value: jax.Array  # V~ [N, N]
    first: jax.Array  # A_1 [T, N]
    mean: jax.Array  # a [T]
    second: jax.Array  # A~ [T, N]
    repeated: jax.Array  # u_s = E[A~_{s,x} V~_x], what a position adds to itself, [T, N]


def _centred(params: HopParams, mu: jax.Array) -> _Centred:
    mean = params.second @ mu
    value, second = params.value - mu[:, None], params.second - mean[:, None]
    return _Centred(value, params.first, mean, second, (second * mu[None, :]) @ value.T)


def _inner(one: _Centred, two: _Centred, mu: jax.Array) -> jax.Array:
    """``E <F - mu, G - mu>`` of the outputs of two learners, exactly.

    The parts of F that depend on no token, on one and on two are uncorrelated:

        sum_s a_1s u_s,
        V~_x a_s + a_1s (A~_{s,x} V~_x - u_s)               at every position s,
        a_1t A~_{s,x_t} V~_{x_s} + a_1s A~_{t,x_s} V~_{x_t}   at every pair t < s.
    """
    weighted = mu[None, :]
    products = jnp.sum(one.value * two.value, axis=0) * mu  # mu_x V~_x . W~_x, [N]
    size = jnp.sum(products)
    apart = jnp.sum(one.second * two.second * weighted, axis=1)  # E A~_s B~_s, [T]
    within = (one.second * two.second) @ products
    one_two = (one.second * weighted) @ two.value.T  # E A~_s W~, [T, N]
    two_one = (two.second * weighted) @ one.value.T
    own = jnp.sum(one.repeated * two.repeated, axis=1) + jnp.sum(one_two * two_one, axis=1)
    both = one.first * two.first  # [T, N]
    constant = (one.first.T @ one.repeated) * (two.first.T @ two.repeated)
    swapped = (two.first.T @ one_two) * (one.first.T @ two_one)
    by_query = (
        jnp.sum(constant + swapped, axis=1)
        + size * jnp.sum(one.mean * two.mean)
        + two.first.T @ (one.mean * (two.second @ products))
        + one.first.T @ (two.mean * (one.second @ products))
        + both.T @ (within - own - size * apart)
        + size * jnp.sum(apart) * jnp.sum(both, axis=0)
    )
    return jnp.sum(mu * by_query)


def excess_loss(params: HopParams, task: HopTask) -> jax.Array:
    """The expected two-hop loss of two layers above that of the truth; a scalar.

    Exact where ``1^T V = 1^T``, ``V mu = mu`` and columns of A_1 and A_2 sum to one, which the
    steps of this module keep.

    Example:
        >>> task = random_hops(jax.random.key(0), num_tokens=4, context_length=8, sparsity=2)
        >>> round(float(excess_loss(HopParams(task.transition, task.first, task.second), task)), 6)
        0.0
    """
    mu = task.stationary
    own = _centred(params, mu)
    truth = _centred(HopParams(task.transition, task.first, task.second), mu)
    inner = partial(_inner, mu=mu)
    return 0.5 * (inner(own, own) - 2.0 * inner(own, truth) + inner(truth, truth))


def one_layer_excess(params: HopParams, task: HopTask) -> jax.Array:
    """The same of one layer, ``V X a^(k)`` with the columns of ``second`` as its attention.

    Of the truth it meets the part of one token, ``P~_x r_s`` at position s.
    """
    mu = task.stationary
    value, transition = params.value - mu[:, None], task.transition - mu[:, None]
    truth = _centred(HopParams(task.transition, task.first, task.second), mu)
    size = scbjax.mu_inner(value, value, mu) * scbjax.mu_inner(params.second, params.second, mu)
    # With Q and R on positions of their own, truth.repeated meets no weight of Q.
    overlap = scbjax.mu_inner(value, transition, mu) * jnp.sum((params.second @ mu) * truth.mean)
    return 0.5 * (size - 2.0 * overlap + _inner(truth, truth, mu))


def constants(task: HopTask) -> HopConstants:
    """K_P, K_R, ``|r|^2`` and ``|Q|_mu^2`` of a task."""
    mu = task.stationary
    mean = jnp.sum((task.second @ mu) ** 2)
    return HopConstants(
        scbjax.transition_signal(easy_task(task)),
        scbjax.mu_inner(task.second, task.second, mu) - mean,
        mean,
        scbjax.mu_inner(task.first, task.first, mu),
    )


def one_layer_floor(task: HopTask) -> jax.Array:
    """The least excess loss of one layer, ``1/2 K_P K_R |Q|_mu^2``; a scalar."""
    own = constants(task)
    return 0.5 * own.transition * own.second * own.first


# ----------------------------------------------------------------------------- the population path


class HopPath(NamedTuple):
    """A point of the population path, scalars: see the module's text."""

    value: jax.Array  # v
    mean: jax.Array  # b
    second: jax.Array  # s
    first: jax.Array  # f


def _overlaps(at: HopPath, own: HopConstants, length: int) -> tuple[jax.Array, ...]:
    """``<a, r>``, ``|a|^2``, ``<A_1, Q>`` and ``|A_1|^2``."""
    mean, first = own.mean - 1.0 / length, own.first - 1.0 / length
    return (
        1.0 / length + at.mean * mean,
        1.0 / length + at.mean**2 * mean,
        1.0 / length + at.first * first,
        1.0 / length + at.first**2 * first,
    )


def path_step(
    at: HopPath, rates: Mapping[str, Any], own: HopConstants, length: int, easy: jax.Array | bool
) -> HopPath:
    """A step of expected preconditioned gradient descent on the path.

    With ``c = <A_1, Q>_mu`` and ``n = |A_1|_mu^2`` for two hops, and both 1 for one hop,

        v -= eta_V ((|a|^2 + s^2 K_R n) v - <a, r> - s K_R c)
        b -= eta_2 K_P (v^2 b - v)
        s -= eta_2 K_P (v^2 s n - v c)
        f -= eta_1 K_P K_R (v^2 s^2 f - v s)        for two hops alone.

    Args:
        at: the point.
        rates: ``value``, ``first`` and ``second``.
        own: the constants of the task.
        length: T.
        easy: whether the step is on one hop.
    """
    meets, size, overlap, square = _overlaps(at, own, length)
    overlap, square = jnp.where(easy, 1.0, overlap), jnp.where(easy, 1.0, square)
    v, b, s, f = at
    second = rates["second"] * own.transition
    first = jnp.where(easy, 0.0, rates["first"] * own.transition * own.second)
    pull = (size + s**2 * own.second * square) * v - meets - s * own.second * overlap
    return HopPath(
        v - rates["value"] * pull,
        b - second * (v**2 * b - v),
        s - second * (v**2 * s * square - v * overlap),
        f - first * (v**2 * s**2 * f - v * s),
    )


def path_excess(at: HopPath, own: HopConstants, length: int) -> jax.Array:
    """The excess loss at a point of the path, without the term of order 1/T; a scalar."""
    meets, size, overlap, square = _overlaps(at, own, length)
    v, _, s, _ = at
    of_one = v**2 * size - 2.0 * v * meets + own.mean
    of_two = v**2 * s**2 * square - 2.0 * v * s * overlap + own.first
    return 0.5 * own.transition * (of_one + own.second * of_two)


# ------------------------------------------------------------------------------ the learner's parts


def start_hops(task: HopTask) -> HopParams:
    """The start: ``V = mu 1^T`` and uniform attention in both layers."""
    value, attention = scbjax.init_params(easy_task(task))
    return HopParams(value, attention, attention)


def directions(grads: HopParams, stationary: jax.Array) -> HopParams:
    """Gradients in the mu-metric that keep the invariants (eq. 4, in both layers)."""
    from scbjax.optim import project_tangent, scale_by_stationary

    def pull(gradient: jax.Array, mu: jax.Array | None) -> jax.Array:
        chain = optax.chain(scale_by_stationary(stationary), project_tangent(mu))
        direction: jax.Array = chain.update(gradient, chain.init(gradient))[0]
        return direction

    value = pull(grads.value, stationary)
    return HopParams(value, pull(grads.first, None), pull(grads.second, None))


def rates_of(task: HopTask, values: Mapping[str, Any], *, one_hop: bool) -> dict[str, jax.Array]:
    """The rates of a stage, in the units of the theory: over the signal that drives a parameter.

    Args:
        task: the task, of which K_P, K_R, ``|r|^2`` and ``|Q|_mu^2`` are known.
        values: ``rate``, ``layers`` and ``easy_until``.
        one_hop: whether it is the stage of one-hop samples, if there is to be one.
    """
    own, rate = constants(task), values["rate"]
    easy = jnp.asarray(one_hop) & (values["easy_until"] < 1.0) & (values["layers"] == 2)
    told = own.mean + own.second * jnp.where(easy, 1.0, own.first)
    return {
        "value": rate / jnp.where(values["layers"] == 2, told, own.mean),
        "first": rate / (own.transition * own.second),
        "second": rate / own.transition,
        "easy": easy,
    }


def easy_share(params: HopParams, task: HopTask) -> jax.Array:
    """The excess loss on one-hop samples, over that of ``V = mu 1^T``; a scalar."""
    own, easy = constants(task), easy_task(task)
    start = 0.5 * own.transition * (own.second + own.mean)
    found = scbjax.excess_loss(scbjax.Params(params.value, params.second), easy)
    share: jax.Array = jnp.divide(found, start)
    return share


def _is_learned(view: scbjax.View) -> jax.Array:
    level = view.values["easy_until"]
    over: jax.Array = (level >= 1.0) | (easy_share(view.params, view.task) <= level)
    return over


STAGES = (
    Stage("one hop", partial(rates_of, one_hop=True), _is_learned),
    Stage("two hops", partial(rates_of, one_hop=False)),
)


def own_excess(params: HopParams, task: HopTask, layers: jax.Array) -> jax.Array:
    """The excess loss of the learner with so many layers, on two hops."""
    return jnp.where(layers == 2, excess_loss(params, task), one_layer_excess(params, task))


class HopProgress(NamedTuple):
    """What a trajectory keeps of its steps.

    Attributes:
        steps: done so far, int32.
        reached: the number of them when the loss was first at the goal; -1 before, int32.
    """

    steps: jax.Array
    reached: jax.Array

    def after(self, excess: jax.Array, task: HopTask) -> HopProgress:
        """What it is after one more step, to an excess loss; the goal is half of the floor."""
        steps = self.steps + 1
        meets = (self.reached < 0) & (excess <= _GOAL * one_layer_floor(task))
        return HopProgress(steps, jnp.where(meets, steps, self.reached))


def _start_progress(*_: object) -> HopProgress:
    return HopProgress(jnp.zeros((), jnp.int32), jnp.full((), -1, jnp.int32))


def _step(
    params: HopParams,
    progress: HopProgress,
    batch: HopBatch,
    task: HopTask,
    values: Mapping[str, Any],
    rates: Mapping[str, Any],
    _: object,
) -> tuple[tuple[jax.Array, HopParams], HopParams, HopProgress]:
    """A preconditioned step on the samples of the stage; asks after it whether the goal is met."""
    easy = rates["easy"]
    batch = batch._replace(label=jnp.where(easy, batch.easy_label, batch.label))
    direct = easy | (values["layers"] == 1)
    loss, grads = jax.value_and_grad(hop_loss)(params, batch, direct)
    turned = directions(grads, task.stationary)
    scales = HopParams(rates["value"], rates["first"], rates["second"])
    moved = jax.tree.map(lambda old, rate, turn: old - rate * turn, params, scales, turned)
    excess = own_excess(moved, task, values["layers"])
    return (loss, grads), moved, progress.after(excess, task)


class HopTrack(NamedTuple):
    """The population path beside a trajectory, and when it was first at the goal."""

    at: HopPath
    progress: HopProgress


def _track_start(params: HopParams, *_: object) -> HopTrack:
    zero = jnp.zeros((), params.value.dtype)
    return HopTrack(HopPath(zero, zero, zero, zero), _start_progress())


def _track_step(
    tracked: HopTrack, rates: Mapping[str, Any], task: HopTask, values: Mapping[str, Any]
) -> HopTrack:
    own, length = constants(task), task.first.shape[0]
    after = path_step(tracked.at, rates, own, length, rates["easy"])
    # One layer has V and a alone, of which V is not pulled by A~ = 0.
    both = values["layers"] == 2
    after = after._replace(
        second=jnp.where(both, after.second, 0.0), first=jnp.where(both, after.first, 0.0)
    )
    return HopTrack(after, tracked.progress.after(path_excess(after, own, length), task))


@cache
def _model() -> Model:
    def init(_: jax.Array, task: HopTask) -> HopParams:
        return start_hops(task)

    return Model(init, hop_loss)


@cache
def _move() -> Move:
    from scbjax.moves import Move

    return Move(_start_progress, _step)


def _source(static: Mapping[str, Any]) -> Source:
    from scbjax.sources import step_seeds

    sizes = of_static(static)

    def draw(key: jax.Array, values: Mapping[str, Any]) -> HopTask:
        return random_hops(key, **sizes, transition_signal=values["transition_signal"])

    return Source(draw, sample_hops, prepare, step_seeds)


def _learner(source: Source, _: Mapping[str, Any], **given: Any) -> scbjax.Learner:  # noqa: ANN401
    track = Track(_track_start, _track_step)
    return scbjax.learner(source, _model(), _move(), stages=STAGES, track=track, **given)


# -------------------------------------------------------------------------------- what is recorded


def _distance(name: str, truth: str) -> Callable[[scbjax.View], jax.Array]:
    def compute(view: scbjax.View) -> jax.Array:
        error = getattr(view.params, name) - getattr(view.task, truth)
        return jnp.sqrt(scbjax.mu_inner(error, error, view.task.stationary))

    return compute


def _excess(view: scbjax.View) -> jax.Array:
    return own_excess(view.params, view.task, view.values["layers"])


def _path_excess(view: scbjax.View) -> jax.Array:
    own = constants(view.task)
    return path_excess(view.state.tracked.at, own, view.task.first.shape[0])


def _samples_to_goal(progress: HopProgress, view: scbjax.View) -> jax.Array:
    each = view.samples // jnp.maximum(progress.steps, 1)
    return jnp.where(progress.reached < 0, -1, progress.reached * each)


RECORD = (
    Observable(
        _excess, "excess loss on two hops", r"$\mathcal{L} - \mathcal{L}^*$", name="excess"
    ),
    Observable(_path_excess, "excess loss of the population path", name="path_excess"),
    Observable(
        lambda view: one_layer_floor(view.task), "least excess loss of one layer", name="floor"
    ),
    Observable(
        lambda view: easy_share(view.params, view.task),
        "excess loss on one hop, over that of the start", name="easy_share",
    ),
    Observable(
        lambda view: _samples_to_goal(view.state.opt_state, view),
        "samples until the excess loss is half of the least of one layer; -1 for never",
        dtype="int32", name="samples_to_goal",
    ),
    Observable(
        lambda view: _samples_to_goal(view.state.tracked.progress, view),
        "the same on the population path", dtype="int32", name="path_samples_to_goal",
    ),
    Observable(
        _distance("value", "transition"), "distance of V to P", r"$\|V - P\|_\mu$",
        name="value_error",
    ),
    Observable(
        _distance("first", "first"), "distance of the first attention to Q",
        r"$\|A_1 - Q\|_\mu$", name="first_error",
    ),
    Observable(
        _distance("second", "second"), "distance of the second attention to R",
        r"$\|A_2 - R\|_\mu$", name="second_error",
    ),
    "batch_loss",
    "stage",
    "samples",
)  # fmt: skip

PARAMETERS = (
    DECLARED["task.num_tokens"],
    DECLARED["task.context_length"],
    SPARSITY,
    replace(DECLARED["task.transition_signal"], default=0.5),
    Parameter(
        "model.layers", int, 2, "traced", "inner", "Layers of the learner, 1 or 2", Interval(1, 2)
    ),
    Parameter(
        "train.easy_until", float, 1.0, "traced", "inner",
        "One-hop samples come first, until their excess loss is this share of that of the start; "
        "1 for none of them", Interval(0.0, 1.0, above=True),
    ),
    Parameter(
        "train.rate", float, 0.02, "traced", "inner",
        "Rate, over the signal that drives a parameter", RATES,
        symbol=r"$\eta$",
    ),
)  # fmt: skip

_RELATIONS = (
    Relation(
        ("task.sparsity", "task.context_length"),
        lambda sparsity, length: 2 * sparsity <= length,
        "task.sparsity = {} is larger than half of task.context_length = {}, of which each "
        "pattern has half of the positions",
    ),
    Relation(
        ("model.layers", "train.easy_until"),
        lambda layers, until: layers == 2 or until >= 1.0,
        "model.layers = {} has no use for one-hop samples, and train.easy_until = {} asks for them",
    ),
)

EXPERIMENT = replace(
    learning("hops", _source, _learner, record=RECORD, parameters=PARAMETERS),
    relations=_RELATIONS,
)
"""One layer and two on a task of two hops, from scratch and after one hop."""
