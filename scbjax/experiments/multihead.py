r"""Several heads: a mixture of H sparse contextual bigrams, and learners with H' heads.

A label follows ``sum_h w_h P_h X q_h^(k)``: a head h is drawn with probability w_h ~ h^-beta, then
a position from its pattern, then a step of its own transition matrix. All P_h keep mu, and the
supports of the heads are disjoint, query by query. The learner is ``F = sum_j V_j X a_j^(k)``.

**The identity.** Tokens are i.i.d., so with ``P~ = P - mu 1^T``, ``U_j = V_j - (V_j mu) 1^T``, and
where ``sum_j (1^T a_j) V_j mu = mu``, which preconditioned steps keep,

    excess loss = 1/2 |C - sum_j U_j (x) a_j|^2,        C = sum_h w_h P~_h (x) q_h,

in mu-norms: learning is a factorisation of the cross-moment C [N x N, T x N], and heads are its
rank. What an optimum of H' heads leaves is half the sum of the squares of the singular values of C
behind the H'-th. If all P_h are equal, C has rank one and one head suffices. If both the P~_h and
the q_h are orthogonal, the singular values are ``sigma_h = w_h |P~_h| |q_h|``.

**Linear attention identifies a span.** For any R [H, H] with an inverse and ``R 1 = 1``, which
keeps column sums, ``a_j = sum_h R_jh q_h`` with ``U = R^-T (w P~)`` gives the same output. From a
small start, heads that are trained together grow along the singular vectors of C, each by a share
that the start has drawn: R is as good as a random rotation. Heads trained *one after the other*
fit a residual of rank one less each time (deflation; Eckart & Young 1936): they come to the
singular vectors themselves, which are the q_h where the q_h are orthogonal and the products of the
``w_h P~_h`` small against the differences of their squares. So deflation identifies heads of
different weights, and of equal weights as little as a start at random.

**What l1 adds.** With disjoint supports and column sums of one, ``|a_j|_1 = sum_h |R_jh| >= 1``,
and it is 1 for every R without negative entries: l1 makes R nonnegative, and no permutation. A map
onto the simplex does the same by itself, and ``U = R^-T (w P~)`` has no such constraint. So neither
the loss nor the map identifies the heads: *how* a map moves does. A plain gradient step on the
logits of a softmax moves a weight at a speed of its square (:mod:`scbjax.experiments.maps`), so
that what a head attends to already wins: heads become pure. Of different weights several may take
the strongest, and a weak one be left over, for as long as nobody comes to it. The preconditioned
step in the metric of the map takes that away, and leaves mixtures.

**Heads that begin equal stay equal**: their gradients are equal, and they do what one head does.

**The scaling law.** Where both factors of a mode have grown from a small start, its strength s
follows ``ds/dt = 2 g s (1 - s / sigma)``, ``g = sigma sqrt(eta_V eta_A)``, so

    s(t) = sigma / (1 + (sigma / s_0 - 1) exp(-2 g t)):

a step at ``t = log(sigma / s_0) / (2 g) ~ 1 / w_h``. Modes are learned one after the other, and the
excess loss is half the sum of the squares of those that are not yet: a staircase. For
``w_h ~ h^-beta`` and infinitely many heads, ``h ~ t^(1/beta)`` are learned at time t, and what is
left, ``sum over h > t^(1/beta) of h^(-2 beta)``, falls as ``t^(-(2 beta - 1) / beta)``; with few
heads it falls faster, since the tail ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import scbjax
from scbjax.base import Functions, Parameter, Relation, Variable
from scbjax.experiments.maps import map_weights, preconditioned
from scbjax.experiments.multihead_model import (
    HeadsTask,
    centred,
    heads_excess_loss,
    heads_loss,
    heads_population_loss,
    heads_source,
    inner_products,
)
from scbjax.experiments.of_parts import learning
from scbjax.experiments.parts_common import (
    DATA,
    DECLARED,
    NO_L1,
    OPTIMIZER,
    RATE_OF_VALUE,
    RATES,
    SAMPLES_ARE_DRAWN,
    SPARSITY,
    drawn_as,
    of_static,
    without,
)
from scbjax.lazily import Lazily
from scbjax.parts import Model, Observable, Source
from scbjax.values import INT32_MAX, Choice, Interval, Values

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
    import optax
else:
    jax, jnp, optax = Lazily("jax"), Lazily("jax.numpy"), Lazily("optax")

MAPS = ("linear", "softmax", "sparsemax")

# ------------------------------------------------------------------------------ the learner's parts


def signals(task: HeadsTask) -> tuple[jax.Array, jax.Array]:
    """``K_P = |P_h|^2 - |mu|^2`` and ``K_Q = |Q_h|^2 - 1/T``, each a mean over the true heads."""
    mu = task.stationary
    both = (jnp.sum(x**2 * mu[None, None, :], axis=(1, 2)) for x in (task.transition, task.pattern))
    transition, pattern = (jnp.mean(x) for x in both)
    return transition - jnp.sum(mu**2), pattern - 1.0 / task.context_length


def is_trained(heads: jax.Array, head_steps: jax.Array, count: jax.Array, size: int) -> jax.Array:
    """Which of ``size`` heads a step moves, as booleans [size].

    Args:
        heads: H', those that there are.
        head_steps: steps that each of them is trained alone, one after the other; from then on, or
            from the beginning if it is 0, all H' are.
        count: steps that were done before.
        size: of the arrays.

    Example:
        >>> is_trained(2, 10, 15, 4).tolist(), is_trained(2, 10, 20, 4).tolist()
        ([False, True, False, False], [True, True, False, False])
    """
    index = jnp.arange(size, dtype=jnp.int32)
    alone = jnp.asarray(count) // jnp.maximum(head_steps, 1)
    one_by_one = (jnp.asarray(head_steps) > 0) & (alone < heads)
    return (index < heads) & (~one_by_one | (index == alone))


def model_of(static: Mapping[str, Any]) -> Model:
    """H' heads, V_j and W_j behind a map, in arrays of ``max_heads``; those above H' stay flat."""
    size, name = static["max_heads"], static["attention_map"]

    def init(key: jax.Array, task: HeadsTask, values: Mapping[str, Any]) -> dict[str, jax.Array]:
        mu, length = task.stationary, task.context_length
        of_value, of_attention = jax.random.split(key)
        noise = jax.random.normal(of_value, (size, *task.transition.shape[1:]), mu.dtype)
        noise = centred(noise - jnp.mean(noise, axis=1, keepdims=True), mu)
        spread = jax.random.normal(of_attention, (size, *task.pattern.shape[1:]), mu.dtype)
        spread = spread - jnp.mean(spread, axis=1, keepdims=True)
        there = (jnp.arange(size, dtype=jnp.int32) < values["heads"]).astype(mu.dtype)
        there = there[:, None, None]
        # Where all are trained together they begin at random, in the units of the truth.
        scale = jnp.where(values["head_steps"] > 0, 0.0, values["start_scale"]) * there
        k_p, k_q = signals(task)
        noise, spread = (
            x
            * (
                scale
                * jnp.sqrt(k)
                * jax.lax.rsqrt(jnp.sum(x**2 * mu[None, None, :], axis=(1, 2), keepdims=True))
            )
            for x, k in ((noise, k_p), (spread, k_q))
        )
        even = there * mu[None, :, None] / jnp.asarray(values["heads"], mu.dtype)
        uniform = 1.0 / length if name == "linear" else 0.0
        # By how much the map multiplies a small change of W that sums to zero, at uniform A.
        slope = 1.0 / length if name == "softmax" else 1.0
        return {"value": even + noise, "attention": uniform + spread / slope}

    def readout(params: Mapping[str, jax.Array]) -> scbjax.Params:
        return scbjax.Params(params["value"], map_weights(name, params["attention"], 1.0))

    def loss(params: Mapping[str, jax.Array], batch: Any) -> jax.Array:  # noqa: ANN401
        both = readout(params)
        if isinstance(batch, HeadsTask):
            return heads_population_loss(both, batch)
        return heads_loss(both, batch)

    return Model(init, loss, readout)


def optimizer_of(static: Mapping[str, Any]) -> Callable[[Any, Any, Any], Any]:
    """The optimiser that the static values name, for the heads that a step trains."""
    from scbjax.algorithm import per_signal

    def make(task: HeadsTask, values: Mapping[str, jax.Array], _: object) -> Any:  # noqa: ANN401
        rate, ratio = values["rate"], values["attention_rate_ratio"]
        if static["optimizer"] == "preconditioned":
            k_p, k_q = signals(task)
            name, both = static["attention_map"], (per_signal(rate, k_q), per_signal(rate, k_p))
            own = preconditioned(
                name,
                cast("Any", task),  # of which mu is used
                both[0],
                both[1] * ratio,
                1.0,
                values["l1"],
            )
            return _some_heads(_over_heads(own), values)
        kind = optax.sgd if static["optimizer"] == "sgd" else optax.adam
        parts = {"value": kind(rate), "attention": kind(rate * ratio)}
        return _some_heads(
            optax.partition(parts, {"value": "value", "attention": "attention"}), values
        )

    return make


def _over_heads(own: Any) -> optax.GradientTransformationExtraArgs:  # noqa: ANN401
    """A transformation of matrices as one of all heads' [H', ...], whose state they share."""

    def of_one(grads: Any, state: Any, params: Any) -> Any:  # noqa: ANN401
        return own.update(grads, state, params)

    each = jax.vmap(of_one, in_axes=(0, None, 0), out_axes=(0, None))

    def init(params: Any) -> Any:  # noqa: ANN401
        return own.init(jax.tree.map(lambda leaf: leaf[0], params))

    def update(grads: Any, state: Any, params: Any, **_: object) -> Any:  # noqa: ANN401
        return each(grads, state, params)

    return optax.GradientTransformationExtraArgs(init, update)


def _some_heads(
    own: Any,  # noqa: ANN401 - a transformation
    values: Mapping[str, jax.Array],
) -> optax.GradientTransformationExtraArgs:
    """A transformation that moves the heads of :func:`is_trained` alone; it counts its steps."""

    def init(params: Any) -> Any:  # noqa: ANN401
        return own.init(params), jnp.zeros((), jnp.int32)

    def update(grads: Any, state: Any, params: Any, **_: object) -> Any:  # noqa: ANN401
        inner, count = state
        updates, inner = own.update(grads, inner, params)
        size = grads["value"].shape[0]
        moves = is_trained(values["heads"], values["head_steps"], count, size)[:, None, None]
        updates = jax.tree.map(lambda u: jnp.where(moves, u, jnp.zeros_like(u)), updates)
        return updates, (inner, count + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def _source(static: Mapping[str, Any]) -> Source:
    return drawn_as(heads_source(**of_static(static, "true_heads")), static["data"])


def _learner(source: Source, static: Mapping[str, Any], **given: Any) -> scbjax.Learner:  # noqa: ANN401
    return scbjax.learner(source, model_of(static), optimizer_of(static), **given)


# -------------------------------------------------------------------------------- what is recorded


def _centred_attention(attention: jax.Array) -> jax.Array:
    return attention - jnp.mean(attention, axis=1, keepdims=True)


def _attention_products(view: scbjax.View) -> jax.Array:
    own = _centred_attention(view.params.attention)
    return inner_products(own, own, view.task.stationary)


def _attention_overlap(view: scbjax.View) -> jax.Array:
    own, true = (_centred_attention(x) for x in (view.params.attention, view.task.pattern))
    return inner_products(own, true, view.task.stationary)


def _value_products(view: scbjax.View) -> jax.Array:
    own = centred(view.params.value, view.task.stationary)
    return inner_products(own, own, view.task.stationary)


def _value_overlap(view: scbjax.View) -> jax.Array:
    mu = view.task.stationary
    return inner_products(centred(view.params.value, mu), centred(view.task.transition, mu), mu)


def _truth(task: HeadsTask) -> dict[str, jax.Array]:
    mu = task.stationary
    transition, pattern = centred(task.transition, mu), _centred_attention(task.pattern)
    return {
        "head_weights": task.weights,
        "transition_products": inner_products(transition, transition, mu),
        "pattern_products": inner_products(pattern, pattern, mu),
    }


RECORD = (
    Observable(
        lambda view: heads_excess_loss(view.params, view.task),
        "loss in expectation, above that of the truth", r"$L - L^*$", name="heads_excess_loss",
    ),
    Observable(
        _attention_products, "inner products of the heads' attention, less its mean",
        dims=("own_head", "other_own_head"), name="attention_products",
    ),
    Observable(
        _attention_overlap, "inner products of the heads' attention with the patterns",
        dims=("own_head", "head"), name="attention_overlap",
    ),
    Observable(
        _value_products, "inner products of the heads' values",
        dims=("own_head", "other_own_head"), name="value_products",
    ),
    Observable(
        _value_overlap, "inner products of the heads' values with the transition matrices",
        dims=("own_head", "head"), name="value_overlap",
    ),
    "batch_loss",
    "samples",
)  # fmt: skip

_COUNT = Interval(1, INT32_MAX)
PARAMETERS = (
    DECLARED["task.num_tokens"],
    DECLARED["task.context_length"],
    replace(SPARSITY, help="Nonzero weights in each column of each Q_h"),
    Parameter("task.true_heads", int, 4, "static", "outer", "Heads H of the task", _COUNT),
    Parameter(
        "task.decay", float, 0.0, "traced", "outer",
        "Power of the weights of the heads, h to the minus it; 0 for equal weights",
        Interval(0.0, 100.0), symbol=r"$\beta$",
    ),
    Parameter(
        "task.correlation", float, 0.0, "traced", "outer",
        "Share of the first P_h in the others; 1 makes them equal",
        Interval(0.0, 1.0), symbol=r"$\rho$",
    ),
    DATA,
    Parameter(
        "model.heads", int, 4, "traced", "inner", "Heads H' of the learner", _COUNT, symbol="$H'$"
    ),
    Parameter(
        "model.max_heads", int, 8, "static", "inner", "Heads that there is room for", _COUNT
    ),
    Parameter(
        "model.attention_map", str, "softmax", "static", "inner", "What makes A of W", Choice(MAPS)
    ),
    OPTIMIZER,
    RATE_OF_VALUE,
    DECLARED["train.attention_rate_ratio"],
    NO_L1,
    Parameter(
        "train.start_scale", float, 0.1, "traced", "inner",
        "Size of V_j and A_j at a random start, in that of the truth; 0 for heads that are equal",
        RATES,
    ),
    Parameter(
        "train.head_steps", int, 0, "traced", "inner",
        "Steps that each head is trained alone, one after the other; 0 for all together",
        Interval(0, INT32_MAX),
    ),
)  # fmt: skip

_RELATIONS = (
    Relation(
        ("model.heads", "model.max_heads"),
        lambda heads, size: heads <= size,
        "model.heads = {} is larger than model.max_heads = {}",
    ),
    Relation(
        ("task.true_heads", "task.sparsity", "task.context_length"),
        lambda heads, sparsity, length: heads * sparsity <= length,
        "task.true_heads = {} times task.sparsity = {} is larger than task.context_length = {}, "
        "and supports are disjoint",
    ),
    Relation(
        ("train.l1", "model.attention_map", "train.optimizer"),
        lambda l1, name, optimizer: l1 == 0 or (name, optimizer) == ("linear", "preconditioned"),
        "train.l1 = {} has no meaning with model.attention_map = '{}' and train.optimizer = '{}'",
    ),
    SAMPLES_ARE_DRAWN,
)

_SIZE_PATHS = ("task.true_heads", "model.max_heads")
_DRAWS = frozenset(p.path for p in PARAMETERS if p.table == "task")
_LEARNING = learning("multihead", _source, _learner, record=RECORD, parameters=PARAMETERS)


def _build(fixed: Values, varying: Mapping[str, tuple[Any, ...]]) -> Functions:
    return _LEARNING.build(fixed, varying)._replace(truth=_truth)


def _sizes(values: Values) -> dict[str, int]:
    true, own = (int(str(values[path])) for path in _SIZE_PATHS)
    return {"head": true, "other_head": true, "own_head": own, "other_own_head": own}


EXPERIMENT = replace(
    _LEARNING,
    build=_build,
    relations=_RELATIONS,
    default_record=without(_LEARNING.variables, "samples"),
    dims={**_LEARNING.dims, "other_head": Variable("another head of the task")},
    sizes=_sizes,
    size_paths=_SIZE_PATHS,
    truth={
        "head_weights": Variable("weights of the heads", "$w$", dims=("head",), depends_on=_DRAWS),
        "transition_products": Variable(
            "inner products of the transition matrices, less their mean",
            dims=("head", "other_head"), depends_on=_DRAWS,
        ),
        "pattern_products": Variable(
            "inner products of the patterns, less their mean",
            dims=("head", "other_head"), depends_on=_DRAWS,
        ),
    },
)  # fmt: skip
"""A mixture of sparse contextual bigrams, learned by several heads."""
