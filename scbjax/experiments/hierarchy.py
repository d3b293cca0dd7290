r"""Hierarchy: positions in blocks (words, sentences), and an attention that finds blocks first.

The context is cut into M = T / L blocks of L positions. Column k of Q is a distribution over
blocks, H of which are active, times one within the block, with s active positions of each active
block: q_t = b_j w_t for position t of block j. Two learners of A start from the same V:

* ``flat``: A [T, N], trained by the steps of eqs. 4 to 6;
* ``two_level``: ``a_t = b_j w_t``. First w is 1/L and b [M, N] is trained: the entries of b are
  sums of A over blocks, and A stays linear in what is trained. Once the leading blocks stand out
  they are kept, and b is frozen; then w is trained within them, in which A is linear too.

Both move A by the same preconditioned step, up to a projection: on b a step of A has the metric
L / mu_k (``grad b`` is the mean of ``grad a`` over the block, and b the sum of a), on w it has
``1 / (mu_k b_j^2)``.

**What a sample tells.** V is ``theta P + (1 - theta) mu 1^T`` with a small theta, as where a
transfer begins (Theorem 4.1), and stays there. While A is near uniform, a sample with query k and
label o moves entry t of its column, against the mean of the column, by

    f(x_t, o) = D[o, x_t] - (D^T mu)[x_t],      D = V - mu 1^T,

whose mean is ``q_t K`` with ``K = <D, P>_mu`` and whose variance is v = sum_x mu_x Var_{o ~ mu}
D[o, x] where x_t is not the token that the label came from. Two positions are uncorrelated, since
``D mu = 0``. After n samples, n mu_k of them with query k, an entry stands out by

    z_position = sqrt(n mu_k) q_t K / sqrt(v),        the sum over its block by
    z_block    = sqrt(n mu_k) b_j K / sqrt(L v):

the signal of a block is that of its s positions together, its noise that of L of them.
For equal weights the ratio is ``z_block / z_position = s / sqrt(L)``, so that blocks take

    n_flat / n_block = (s / sqrt(L))^2 (c_T / c_M)^2

times fewer samples, where c are the levels of z that the truth must reach to lead. They differ
since a position has T rivals and a block M, and since s positions must lead and not one:
:func:`lead_probability` has the law, for N columns together (Gaussian sums). Without them the
ratio crosses 1 at ``s = sqrt(L)``; with them somewhat before that.

**What it does not tell.** Whoever wants the positions themselves gains the rivals only: within its
block a position has the same signal and the same noise as before, and L rivals in the place of T,
(c_T / c_L)^2 times fewer samples at most, and has paid for the blocks. And since A is linear in the
gradients, the sums over blocks of a flat A are those of b: what is gained is gained by what is
read off. (With l1, or where V is trained by what A finds, parametrisations differ.)

**The end of the first level** is read off the parameters: the noise of an entry of A is known,
``sqrt(sum eta_A^2 v / (B mu_k))``, that of b is sqrt(L) times larger, and the level is over when in
every column the H largest blocks stand out by ``switch_level`` of it. A wrong block, once kept, is
kept for good: the level must be above what M N null blocks reach in all looks. At 5, one of 768
passes it in one look with probability 2e-4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import scbjax
from scbjax.base import Parameter, Relation
from scbjax.experiments.hierarchy_theory import block_sums, predicted_switch, predictions
from scbjax.experiments.of_parts import learning
from scbjax.experiments.parts_common import (
    DECLARED,
    NO_L1,
    RATES,
)
from scbjax.experiments.scb_cost import papers_cost
from scbjax.lazily import Lazily
from scbjax.parts import Model, Observable, Source, Stage, Track
from scbjax.values import FLOAT32_MAX, INT32_MAX, Choice, Interval

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
    import optax
else:
    jax, jnp, optax = Lazily("jax"), Lazily("jax.numpy"), Lazily("optax")

NOT_YET = -1
"""In the place of a number of samples at which something was found, before it is."""
_FLAT, _TWO_LEVEL = "flat", "two_level"

# ---------------------------------------------------------------------------------------- the task


def hierarchical_pattern(
    key: jax.Array,
    *,
    num_tokens: int,
    context_length: int,
    block_length: int,
    active_blocks: int,
    block_sparsity: int,
    skew: jax.Array | float = 1.0,
) -> jax.Array:
    """Q [T, N]: a distribution over blocks times one within each of them.

    Args:
        key: a PRNG key.
        num_tokens: N.
        context_length: T, a multiple of L.
        block_length: L.
        active_blocks: H, blocks of a column with weight.
        block_sparsity: s, positions of such a block with weight.
        skew: C, weights of blocks and those within are in [1/(C H), C/H] and [1/(C s), C/s]; may be
            traced.

    Example:
        >>> pattern = hierarchical_pattern(jax.random.key(0), num_tokens=3, context_length=32,
        ...     block_length=8, active_blocks=1, block_sparsity=2)
        >>> sorted(block_sums(pattern, 8)[:, 0].tolist()), int((pattern[:, 0] > 0).sum())
        ([0.0, 0.0, 0.0, 1.0], 2)
    """
    from scbjax.patterns import random_pattern

    count, dtype = context_length // block_length, jnp.float32
    of_blocks, of_positions = jax.random.split(key)
    shape = (count, num_tokens)
    blocks = random_pattern(of_blocks, shape, active_blocks, skew, active_blocks, dtype)

    def within_block(own: jax.Array) -> jax.Array:
        size = (block_length, num_tokens)
        return random_pattern(own, size, block_sparsity, skew, block_sparsity, dtype)

    within = jax.lax.map(within_block, jax.random.split(of_positions, count))
    pattern: jax.Array = (blocks[:, None, :] * within).reshape(context_length, num_tokens)
    return pattern


def spread(blocks: jax.Array, within: jax.Array) -> jax.Array:
    """``a_t = b_j w_t``: A [T, N] from b [M, N] and w [T, N]."""
    parts = within.reshape(blocks.shape[0], -1, blocks.shape[1])
    return (blocks[:, None, :] * parts).reshape(within.shape)


def _source(static: Mapping[str, Any]) -> Source:
    names = ("num_tokens", "context_length", "block_length", "active_blocks", "block_sparsity")
    sizes = {name: static[name] for name in names}

    def draw(key: jax.Array, values: Mapping[str, jax.Array]) -> scbjax.Task:
        of_transition, of_pattern = jax.random.split(key)
        # P and mu do not depend on the context, so that the shortest one will do.
        task = scbjax.random_task(
            of_transition,
            num_tokens=static["num_tokens"],
            context_length=1,
            sparsity=1,
            skew=values["skew"],
        )
        pattern = hierarchical_pattern(of_pattern, **sizes, skew=values["weight_skew"])
        return task._replace(pattern=pattern)

    return scbjax.sources.scb_batches(packed=True)._replace(draw=draw)


# ------------------------------------------------------------------------------ the learner's parts


class Progress(NamedTuple):
    """What the optimiser carries: what has been found, and the noise of what was learned.

    Attributes:
        samples: used so far, int32.
        variance: of an entry of A by its noise, times mu_k.
        block_samples: when the true blocks first led in all columns, int32; -1 for not yet.
        position_samples: the same of the true positions.
        switch_samples: when the second level began; -1 for not yet.
    """

    samples: jax.Array
    variance: jax.Array
    block_samples: jax.Array
    position_samples: jax.Array
    switch_samples: jax.Array


def model_of(static: Mapping[str, Any]) -> Model:
    """V near its start, and A itself or blocks and what is within them."""
    is_flat, length = static["attention"] == _FLAT, static["block_length"]

    def init(_: jax.Array, task: scbjax.Task, values: Mapping[str, jax.Array]) -> dict[str, Any]:
        from scbjax.transfer import mix_value

        value = mix_value(task.transition, task.stationary, values["theta"])
        uniform = scbjax.init_params(task).attention
        if is_flat:
            return {"value": value, "attention": uniform}
        blocks = block_sums(uniform, length)
        return {"value": value, "blocks": blocks, "within": jnp.full_like(uniform, 1.0 / length)}

    def loss(params: Mapping[str, Any], batch: Any) -> jax.Array:  # noqa: ANN401 - of the source
        from scbjax.losses import unchecked_loss

        value: jax.Array = unchecked_loss(readout(params), batch)
        return value

    return Model(init, loss, readout)


def readout(params: Mapping[str, jax.Array]) -> scbjax.Params:
    """V and A of either learner."""
    if "attention" in params:
        return scbjax.Params(params["value"], params["attention"])
    return scbjax.Params(params["value"], spread(params["blocks"], params["within"]))


def block_step(
    stationary: jax.Array, rate: jax.Array, l1: jax.Array | float, block_length: int
) -> optax.GradientTransformationExtraArgs:
    """The step of eqs. 4 to 6 on b [M, N]: that of A, projected on what is constant in blocks."""
    from scbjax import optim

    return optax.chain(
        optax.scale(block_length),
        optim.scale_by_stationary(stationary),
        optim.project_tangent(),
        optim.proximal_l1(rate, l1 * block_length),
        optim.restore_column_sums(),
    )


def within_update(
    grads: jax.Array,
    params: Mapping[str, jax.Array],
    stationary: jax.Array,
    rate: jax.Array,
    l1: jax.Array | float,
) -> jax.Array:
    """What the step of eqs. 4 to 6 on A, within the blocks of positive b, adds to w [T, N].

    Columns of w keep their sum of one in each block; in blocks without weight nothing moves.
    """
    from scbjax import optim

    blocks, within = params["blocks"], params["within"]

    def of_block(grad: jax.Array, own: jax.Array, weight: jax.Array) -> jax.Array:
        lives = weight > 0
        safe = jnp.where(lives, weight, 1.0)[None, :]
        step = optax.chain(
            optim.scale_by_stationary(stationary),
            optim.project_tangent(),
            optim.proximal_l1(rate, l1 / safe),
            optim.restore_column_sums(),
        )
        update, _ = step.update(grad / safe**2, step.init(own), own)
        return jnp.where(lives[None, :], update, 0.0)

    parts = (blocks.shape[0], -1, blocks.shape[1])
    moved = jax.vmap(of_block)(grads.reshape(parts), within.reshape(parts), blocks)
    return moved.reshape(within.shape)


def optimizer_of(static: Mapping[str, Any]) -> Callable[[Any, Any, Any], Any]:
    """The preconditioned proximal steps on V and on A, or on b and w; see :class:`Progress`."""
    batch_size, length = static["batch_size"], static["block_length"]

    def make(task: scbjax.Task, values: Mapping[str, jax.Array], _: object) -> Any:  # noqa: ANN401
        from scbjax import optim
        from scbjax.algorithm import per_signal
        from scbjax.noise import entry_noise
        from scbjax.patterns import leads

        rate = per_signal(values["rate"], scbjax.transition_signal(task))
        of_value = per_signal(values["value_rate"], scbjax.pattern_signal(task))
        true, mu, l1 = task.pattern > 0, task.stationary, values["l1"]
        true_blocks = block_sums(task.pattern, length) > 0

        def init(_: Any) -> Progress:  # noqa: ANN401 - of optax
            zero, not_yet = jnp.zeros((), jnp.int32), jnp.full((), NOT_YET, jnp.int32)
            return Progress(zero, jnp.zeros((), mu.dtype), not_yet, not_yet, not_yet)

        def update(grads: Any, state: Progress, params: Any, **_: object) -> Any:  # noqa: ANN401
            now = readout(params)

            def first(at: jax.Array, found: jax.Array) -> jax.Array:
                return jnp.where((at == NOT_YET) & found, state.samples, at)

            sums = params.get("blocks")
            sums = block_sums(now.attention, length) if sums is None else sums
            state = state._replace(
                samples=state.samples + batch_size,
                variance=state.variance + rate**2 * entry_noise(now.value, mu) / batch_size,
                block_samples=first(state.block_samples, leads(sums, true_blocks)),
                position_samples=first(state.position_samples, leads(now.attention, true)),
            )
            if "attention" in params:
                step = optim.scb_proximal(mu, of_value, rate, l1)
                return step.update(grads, step.init(params), params)[0], state
            descent = optim.value_descent(mu, of_value)
            step = block_step(mu, rate, l1, length)
            updates = {
                "value": descent.update(grads["value"], descent.init(params["value"]))[0],
                "blocks": step.update(
                    grads["blocks"], step.init(params["blocks"]), params["blocks"]
                )[0],
                "within": within_update(grads["within"], params, mu, rate, l1),
            }
            return updates, state

        return optax.GradientTransformationExtraArgs(init, update)

    return make


def standing_out(
    blocks: jax.Array, variance: jax.Array, stationary: jax.Array, length: int, active: int
) -> jax.Array:
    """By how much noise the H largest entries of every column of b stand out, the least; a scalar.

    Args:
        blocks: b [M, N].
        variance: of an entry of A, times mu_k.
        stationary: mu [N].
        length: L.
        active: H.
    """
    least = jax.lax.top_k(blocks.T, active)[0][:, -1] - 1.0 / blocks.shape[0]
    noise = jnp.sqrt(length * variance / stationary)
    return jnp.min(jnp.where(noise > 0, least / jnp.where(noise > 0, noise, 1.0), 0.0))


def stages_of(static: Mapping[str, Any]) -> tuple[Stage, ...]:
    """One stage for the flat learner; blocks, and then what is within them, for the other."""
    if static["attention"] == _FLAT:
        return (Stage("flat"),)
    length, active = static["block_length"], static["active_blocks"]

    def is_over(view: scbjax.View) -> jax.Array:
        state = view.state
        blocks, variance = state.params["blocks"], state.opt_state.variance
        found = standing_out(blocks, variance, view.task.stationary, length, active)
        return jnp.asarray(found >= view.values["switch_level"])

    def at_end(state: Any, _: scbjax.Task, __: object) -> Any:  # noqa: ANN401 - of the learner
        from scbjax.model import keep_largest

        params = {**state.params, "blocks": keep_largest(state.params["blocks"], active)}
        progress = state.opt_state._replace(switch_samples=state.opt_state.samples)
        return state._replace(params=params, opt_state=progress)

    first = Stage("blocks", is_over=is_over, at_end=at_end, frozen=("within",))
    return first, Stage("within", frozen=("blocks",))


def _learner(source: Source, static: Mapping[str, Any], **given: Any) -> scbjax.Learner:  # noqa: ANN401
    parts = (source, model_of(static), optimizer_of(static))
    track = Track(partial(_predict, static), lambda predicted, *_: predicted)
    return scbjax.learner(*parts, stages=stages_of(static), track=track, **given)


def _predict(
    static: Mapping[str, Any], _: object, task: scbjax.Task, values: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """What theory says of a trajectory, found once and carried along."""
    length, active = static["block_length"], static["active_blocks"]
    return {
        **predictions(
            task,
            block_length=length,
            active_blocks=active,
            block_sparsity=static["block_sparsity"],
        ),
        "predicted_switch_samples": predicted_switch(task, values["switch_level"], length, active),
    }


# -------------------------------------------------------------------------------- what is recorded


def _progress(name: str) -> Callable[[scbjax.View], jax.Array]:
    def read(view: scbjax.View) -> jax.Array:
        found: jax.Array = getattr(view.state.opt_state, name)
        return found

    return read


def _prediction(name: str) -> Callable[[scbjax.View], jax.Array]:
    def read(view: scbjax.View) -> jax.Array:
        found: jax.Array = view.state.tracked[name]
        return found

    return read


_FOUND = {
    "block_samples": "samples at which the true blocks first led in all columns, -1 for not yet",
    "position_samples": "samples at which the true positions first led, -1 for not yet",
    "switch_samples": "samples at which the second level began, -1 for not yet",
}
_PREDICTED = {
    "predicted_block_samples": "samples at which half of the runs have the blocks, in theory",
    "predicted_position_samples": "samples for the positions among all, in theory",
    "predicted_within_samples": "samples for the positions within the true blocks, in theory",
    "predicted_switch_samples": "samples at which the true blocks stand out, in theory",
}
RECORD: tuple[str | Observable, ...] = (
    *(
        Observable(_progress(name), words, units="samples", dtype="int32", name=name)
        for name, words in _FOUND.items()
    ),
    *(
        Observable(_prediction(name), words, units="samples", name=name)
        for name, words in _PREDICTED.items()
    ),
    "alpha_attention",
    "attention_distance",
    "excess_loss",
    "stage",
    "samples",
)

_SIZE = Interval(1, INT32_MAX)
PARAMETERS = (
    DECLARED["task.num_tokens"],
    DECLARED["task.context_length"],
    Parameter(
        "task.block_length", int, 16, "static", "outer", "Positions L of a block", _SIZE,
        symbol="$L$",
    ),
    Parameter(
        "task.block_sparsity", int, 4, "static", "outer",
        "Positions s with weight in an active block, at most L", _SIZE, symbol="$s$",
    ),
    Parameter(
        "task.active_blocks", int, 1, "static", "outer",
        "Blocks H with weight in each column of Q, less than there are", _SIZE, symbol="$H$",
    ),
    replace(DECLARED["task.skew"], help="Constant C of mu, which is in [1/(CN), C/N]"),
    Parameter(
        "task.weight_skew", float, 1.0, "traced", "outer",
        "The same of the weights of blocks, and of those within a block",
        Interval(1.0, FLOAT32_MAX), always_float32=True,
    ),
    Parameter(
        "model.attention", str, _TWO_LEVEL, "static", "inner",
        "A trained itself, or blocks first and then what is within them",
        Choice((_FLAT, _TWO_LEVEL)),
    ),
    Parameter(
        "model.switch_level", float, 5.0, "traced", "inner",
        "Deviations of the noise by which blocks stand out when the second level begins", RATES,
    ),
    Parameter(
        "train.theta", float, 0.02, "traced", "inner",
        "Share of P in V at the start: V = theta P + (1 - theta) mu 1^T", Interval(0.0, 1.0),
        symbol=r"$\theta$",
    ),
    Parameter(
        "train.rate", float, 0.01, "traced", "inner", "Rate of A, divided by K_P", RATES,
        symbol=r"$\eta$",
    ),
    Parameter(
        "train.value_rate", float, 0.0, "traced", "inner",
        "Rate of V, divided by K_Q; 0 leaves it at its start", RATES,
    ),
    NO_L1,
)  # fmt: skip

_RELATIONS = (
    Relation(
        ("task.context_length", "task.block_length"),
        lambda context, block: context % block == 0,
        "task.context_length = {} is no multiple of task.block_length = {}",
    ),
    Relation(
        ("task.block_sparsity", "task.block_length"),
        lambda sparsity, length: sparsity <= length,
        "task.block_sparsity = {} is larger than task.block_length = {}",
    ),
    Relation(
        ("task.active_blocks", "task.context_length", "task.block_length"),
        lambda active, context, block: active < context // block,
        "task.active_blocks = {} leaves no block of task.context_length = {} over, in blocks of {}",
    ),
)


EXPERIMENT = replace(
    learning("hierarchy", _source, _learner, record=RECORD, parameters=PARAMETERS),
    relations=_RELATIONS,
    # A step is the paper's; with two levels w stands beside the A that is made of it.
    cost=papers_cost("proximal", lambda _: 2),
)
"""Blocks of positions: an attention of two levels beside a flat one."""
