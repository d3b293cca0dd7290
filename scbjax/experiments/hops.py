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
from scbjax.base import Parameter, Relation
from scbjax.experiments.hops_model import (
    HopBatch,
    HopParams,
    HopTask,
    easy_task,
    hop_loss,
    prepare,
    random_hops,
    sample_hops,
    start_hops,
)
from scbjax.experiments.hops_theory import (
    HopPath,
    constants,
    excess_loss,
    one_layer_excess,
    one_layer_floor,
    path_excess,
    path_step,
)
from scbjax.experiments.of_parts import learning
from scbjax.experiments.parts_common import (
    DECLARED,
    RATES,
    SPARSITY,
    of_static,
)
from scbjax.lazily import Lazily
from scbjax.parts import Model, Observable, Source, Stage, Track
from scbjax.values import Interval

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
    import optax

    from scbjax.moves import Move
else:
    jax, jnp, optax = Lazily("jax"), Lazily("jax.numpy"), Lazily("optax")

# Counter streams of one batch.
_GOAL = 0.5  # of the least loss of one layer


# ------------------------------------------------------------------------------ the learner's parts


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
