r"""A cheaper stage 1: how many samples other ways than the paper's take to find the supports.

Stage 1 begins at V = mu 1^T and uniform A and is to find where to look. All methods here are asked
for the same: that in every column the true positions stand above all others in what the method has
at that number of samples, A or a score. What they take, with z_p the normal quantile of p:

**Sign by drift.** At the start a sample moves alpha_V by 1 / T in the mean, with a deviation sigma
(:func:`scbjax.noise.initial_noise`). Both signals then grow like e^tau, tau = eta times steps, and
so does the noise of the first steps. The sign of alpha_V, which decides between Q and its mirror
image, is right with probability Phi(z),

    z^2 = n / (T sigma)^2 sinh(tau)^2 / (tau (tau / 2 + sinh(2 tau) / 4)),

(:func:`drift_level`): n ~ z_p^2 (T sigma)^2. sigma falls as 1 / sqrt(T) with the mu-orthogonal
projector and tends to a constant with the printed one: n ~ T and n ~ T^2. No rate does better than
a small one, with which the signal does not grow before its sign is known. The same law holds for
momentum, which averages the same gradients, and for any scaling of entries that is the same all
along, Adam's after its first steps. Of batches of B(tau) the noise is int e^(-2 tau) / B: for a
given sum of them it is least with B ~ e^(-tau), batches that shrink; those that grow begin with
the noise that counts most. Steps know B / eta alone: growing batches are rates that fall.

**Sign by the data.** A mirrored A is told by its sum of cubes, so that the sign need not be right.
V must only point along +-P, which growth sees to: noise is the seed, and the part along P outgrows
the others. What is left is that the truth must lead in A, a sum of f = V~[o, x_t] over samples: n
mu_k (q_t K_P)^2 / v against 2 log T rivals (:func:`matched_level`), without a power of T.

**Screening.** The mean of (e_o - mu)(e_{x_t} - mu)^T over samples of query k is q_t (P diag(mu) -
mu mu^T). Off the support x_t and o are independent: Pearson's statistic (known margins) is
chi-squared with p = (N - 1)^2 degrees of freedom, on it the noncentrality is

    n mu_k q_t^2 phi^2,       phi^2 = sum_{o, x} (P[o, x] - mu_o)^2 mu_x / mu_o.

With the cut where T N chi-squared variables have delta exceedances, n ~ 2 log(T N / delta) / (mu_k
q_t^2 phi^2), and false positives are as rare as delta says. Nothing of P or Q is known to it.

**Spectral.** The same moments as one matrix, p rows and T N columns, have the rank 1 with singular
value sqrt(n phi^2 |Q|_mu^2) above unit noise. Its left vector is that of P from n > sqrt(p T N) /
(phi^2 |Q|_mu^2) on, with a cosine that is known (Benaych-Georges & Nadakuditi 2012), and scores
the moments with one degree of freedom in the place of p. The whole right vector, which is what
uniform A has grown to without reading supports, has a squared cosine of one half with Q only at
n ~ T N / (phi^2 |Q|_mu^2).

**Contexts that grow.** Windows of w of the T positions have w sigma_w ~ sqrt(w) for the mass of
Q within: where nothing tells which window, all T / w must be tried, and single positions are
screening. Where there are short contexts (T_0, the same P) V learns its sign on those, n ~ T_0,
and A on the long ones by the V of that: together as transfer, and no power of T.

**No method** has a column's support with probability r before n mu_k I_k = r log binom(T, Q) -
log 2, I_k what a label tells at most, H(mu) less its entropy given the context (Fano's inequality,
:func:`information_samples`).

What is recorded as expected is for a constant rate from V = mu 1^T; Adam counts as a small one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import scbjax
from scbjax.base import Parameter, Relation
from scbjax.experiments.cheaper_estimators import (
    chi_squared,
    joint_counts,
    leading_scores,
    significant,
    standardised,
)
from scbjax.experiments.cheaper_theory import (
    SHORT_FIRST,
    Tasks,
    dense_samples,
    expected_descent,
    expected_estimate,
    information_samples,
)
from scbjax.experiments.of_parts import learning
from scbjax.experiments.parts_common import DECLARED, RATES, SPARSITY, of_static
from scbjax.experiments.scb_common import SPARSITY_FITS
from scbjax.experiments.scb_cost import papers_cost
from scbjax.lazily import Lazily
from scbjax.parts import Model, Observable, Source
from scbjax.values import FLOAT32_MAX, INT32_MAX, Choice, Interval, Values

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
    import optax

    from scbjax.moves import Move
else:
    jax, jnp, optax = Lazily("jax"), Lazily("jax.numpy"), Lazily("optax")

DESCENTS = ("gradient", "momentum", "adam", "short_first")
ESTIMATORS = ("screening", "ranking", "spectral")
_DECAY = 0.9  # of momentum
_MOST_CONTEXTS = 2**16
_SHORT_STREAM = 1  # of the task's key


class Pair(NamedTuple):
    """A mini-batch of each of the two."""

    short: Any
    long: Any


class Reading(NamedTuple):
    """What a method has at a number of samples.

    Attributes:
        scores: [T, N], of which the true positions are to be the largest in every column; what the
            method has of Q, up to a scale and what sums to zero.
        signed: the same with the sign that drift and noise gave it.
        expected: (task, samples, values) to the probabilities, in theory, that the truth leads in
            the one and in the other.
        least: the samples without which no method finds the supports.
    """

    scores: jax.Array
    signed: jax.Array
    expected: Callable[..., tuple[jax.Array, jax.Array]]
    least: Callable[[scbjax.Task], jax.Array]


def _source(static: Mapping[str, Any]) -> Source:
    pairs = static["method"] == SHORT_FIRST
    batches = scbjax.sources.scb_batches(packed=static["method"] in DESCENTS)

    def draw(key: jax.Array) -> Tasks:
        from scbjax.patterns import random_pattern

        task = scbjax.random_task(key, **of_static(static))
        shape, count = (static["short_context"], static["num_tokens"]), static["sparsity"]
        own, dtype = jax.random.fold_in(key, _SHORT_STREAM), task.pattern.dtype
        pattern = random_pattern(own, shape, count, 2.0, count, dtype)
        return Tasks(task, task._replace(pattern=pattern))

    def prepare(tasks: Tasks) -> Any:  # noqa: ANN401 - samplers
        both = Pair(tasks.short, tasks.task)
        return Pair(*map(batches.prepare, both)) if pairs else batches.prepare(tasks.task)

    def sample(seed: Any, prepared: Any, batch_size: int) -> Any:  # noqa: ANN401 - of samplers
        from scbjax.sampling import fold_in

        if not pairs:
            return batches.sample(seed, prepared, batch_size)
        # Half of the samples are short: a step costs B all the same.
        sizes = (batch_size // 2, batch_size - batch_size // 2)
        parts = zip(prepared, sizes, strict=True)
        return Pair(
            *(batches.sample(fold_in(seed, n), own, size) for n, (own, size) in enumerate(parts))
        )

    return Source(draw, sample, prepare, batches.keys)


# ---------------------------------------------------------------------------------------- descents


def _loss(static: Mapping[str, Any]) -> Callable[[scbjax.Params, Any], jax.Array]:
    def loss(params: scbjax.Params, batch: Any) -> jax.Array:  # noqa: ANN401 - of the source
        from scbjax.losses import unchecked_loss

        if static["method"] != SHORT_FIRST:
            value: jax.Array = unchecked_loss(params, batch)
            return value
        length = static["short_context"]
        uniform = jnp.full((length, params.value.shape[0]), 1.0 / length, params.value.dtype)
        short = unchecked_loss(scbjax.Params(params.value, uniform), batch.short)
        held = params._replace(value=jax.lax.stop_gradient(params.value))
        both: jax.Array = short + unchecked_loss(held, batch.long)
        return both

    return loss


def random_direction(key: jax.Array, task: scbjax.Task) -> jax.Array:
    """A direction [N, N] that keeps the invariants of V, with the mu-norm of P - mu 1^T."""
    from scbjax.optim import project_tangent

    normal = jax.random.normal(key, task.transition.shape, task.transition.dtype)
    projection = project_tangent(task.stationary)
    direction, _ = projection.update(normal, projection.init(None))
    size = scbjax.mu_inner(direction, direction, task.stationary)
    scaled: jax.Array = direction * jnp.sqrt(scbjax.transition_signal(task) / size)
    return scaled


def descent_model(static: Mapping[str, Any]) -> Model:
    """V and A, at the paper's start or, with theta, off it in a random direction of V."""

    def init(key: jax.Array, tasks: Tasks, values: Mapping[str, jax.Array]) -> scbjax.Params:
        start = scbjax.init_params(tasks.task)
        return start._replace(
            value=start.value + values["theta"] * random_direction(key, tasks.task)
        )

    least = partial(information_samples, sparsity=static["sparsity"])

    def readout(params: scbjax.Params) -> Reading:
        apart = params.attention - 1.0 / params.attention.shape[0]
        upright = jnp.where(jnp.sum(apart**3) < 0, -1.0, 1.0)
        return Reading(upright * apart, apart, partial(expected_descent, static), least)

    return Model(init, _loss(static), readout)


def optimizer_of(static: Mapping[str, Any]) -> Callable[[Tasks, Any, Any], Any]:
    """Eq. 4 without l1, and what the method makes of the preconditioned gradient.

    The rate falls over the run by the factor ``batch_growth``, as B / eta grows by it.
    """
    from scbjax import optim
    from scbjax.algorithm import per_signal

    method, projector, steps = static["method"], static["projector"], static["steps"]

    def own() -> list[Any]:
        if method == "adam":
            return [optax.scale_by_adam()]
        if method == "momentum":  # in the long run, of the same rate
            return [optax.trace(_DECAY), optax.scale(1.0 - _DECAY)]
        return []

    def make(tasks: Tasks, values: Mapping[str, jax.Array], _: object) -> Any:  # noqa: ANN401
        task, mu = tasks.task, tasks.task.stationary
        rates = (
            # Adam's steps have the size of the rate: of A, whose entries are 1/T, as a share.
            (values["rate"], values["rate"] / task.context_length)
            if method == "adam"
            else (
                per_signal(values["rate"], scbjax.pattern_signal(task)),
                per_signal(values["rate"], scbjax.transition_signal(task)),
            )
        )

        def schedule(rate: jax.Array, count: jax.Array) -> jax.Array:
            fallen: jax.Array = values["batch_growth"] ** (-count.astype(rate.dtype) / steps)
            return -rate * fallen

        def chain(rate: jax.Array, *projection: Any) -> Any:  # noqa: ANN401 - of optax
            return optax.chain(
                optim.scale_by_stationary(mu),
                optim.project_tangent(*projection),
                *own(),
                optax.scale_by_schedule(partial(schedule, rate)),
            )

        parts = {"value": chain(rates[0], mu, projector), "attention": chain(rates[1])}
        moved = optax.partition(parts, lambda params: type(params)(*params._fields))
        return optax.chain(moved, optim.keep_invariants(mu, projector))

    return make


# -------------------------------------------------------------------------------------- estimators


def estimator(static: Mapping[str, Any]) -> tuple[Model, Move]:
    """A learner whose parameters are sums over the samples, and whose steps add to them."""
    from scbjax.moves import Move

    name, num_tokens = static["method"], static["num_tokens"]

    def init(_: jax.Array, tasks: Tasks) -> dict[str, jax.Array]:
        shape, mu = (static["context_length"], *[num_tokens] * 3), tasks.task.stationary
        return {"counts": jnp.zeros(shape, mu.dtype), "stationary": mu}

    def readout(params: Mapping[str, jax.Array], values: Mapping[str, jax.Array]) -> Reading:
        mu = params["stationary"]
        moments = standardised(params["counts"], mu)
        if name == "spectral":
            scores = leading_scores(moments) / jnp.sqrt(mu)[None, :]
        else:
            scores = chi_squared(moments)
        if name == "screening":
            scores = significant(scores, values["false_positives"]).astype(mu.dtype)
        expected = partial(expected_estimate, name, static["sparsity"])
        least = partial(information_samples, sparsity=static["sparsity"])
        return Reading(scores, scores, expected, least)

    def step(params: Any, state: Any, batch: Any, *_: object) -> Any:  # noqa: ANN401 - of Move
        counts = params["counts"]
        moved = {**params, "counts": counts + joint_counts(batch, num_tokens, counts.dtype)}
        return (jnp.zeros((), counts.dtype), ()), moved, state

    def no_loss(_: object, __: object) -> jax.Array:
        return jnp.zeros(())

    return Model(init, no_loss, readout), Move(lambda *_: (), step)


def _learner(source: Source, static: Mapping[str, Any], **given: Any) -> scbjax.Learner:  # noqa: ANN401
    if static["method"] in ESTIMATORS:
        return scbjax.learner(source, *estimator(static), **given)
    return scbjax.learner(source, descent_model(static), optimizer_of(static), **given)


# -------------------------------------------------------------------------------- what is recorded


def _found(name: str) -> Callable[[scbjax.View], jax.Array]:
    def read(view: scbjax.View) -> jax.Array:
        from scbjax.patterns import leads

        found = leads(getattr(view.params, name), view.task.task.pattern > 0)
        return found.astype(jnp.int32)

    return read


def _expected(place: int) -> Callable[[scbjax.View], jax.Array]:
    def read(view: scbjax.View) -> jax.Array:
        samples = view.samples.astype(view.task.task.pattern.dtype)
        expected: jax.Array = view.params.expected(view.task, samples, view.values)[place]
        return expected

    return read


def _false_positives(view: scbjax.View) -> jax.Array:
    wrong = (view.task.task.pattern == 0) & (view.params.scores > 0)
    return jnp.sum(wrong, dtype=jnp.int32)


def _similarity(view: scbjax.View) -> jax.Array:
    task, scores = view.task.task, view.params.scores
    own = scores - jnp.mean(scores, axis=0, keepdims=True)
    truth, mu = task.pattern - 1.0 / task.context_length, task.stationary
    size = scbjax.mu_inner(own, own, mu) * scbjax.mu_inner(truth, truth, mu)
    cosine = scbjax.mu_inner(own, truth, mu) / jnp.sqrt(jnp.where(size > 0, size, 1.0))
    return jnp.abs(cosine)


def _information(view: scbjax.View) -> jax.Array:
    least: jax.Array = view.params.least(view.task.task)
    return least


def _dense(view: scbjax.View) -> jax.Array:
    return dense_samples(view.task.task)


RECORD: tuple[str | Observable, ...] = (
    Observable(
        _found("scores"), "whether the truth leads in all columns, sign by the data",
        dtype="int32", name="found",
    ),
    Observable(
        _found("signed"), "the same with the sign that drift and noise gave",
        dtype="int32", name="found_signed",
    ),
    Observable(_expected(0), "probability of found, in theory", name="expected"),
    Observable(_expected(1), "probability of found_signed, in theory", name="expected_signed"),
    Observable(
        _false_positives, "null positions with a positive score", dtype="int32",
        name="false_positives",
    ),
    Observable(_similarity, "cosine of all scores with Q, up to sign", name="similarity"),
    Observable(
        _information, "samples below which no method has the supports in 9 of 10 runs",
        units="samples",
        name="information_samples",
    ),
    Observable(
        _dense, "samples for a squared cosine of one half, in theory", units="samples",
        name="dense_samples",
    ),
    "samples",
)  # fmt: skip

PARAMETERS = (
    DECLARED["task.num_tokens"],
    DECLARED["task.context_length"],
    SPARSITY,
    Parameter(
        "task.short_context", int, 16, "static", "outer",
        "Length T_0 of the short contexts, of 'short_first' alone", Interval(1, INT32_MAX),
        symbol="$T_0$",
    ),
    Parameter(
        "model.method", str, "gradient", "static", "outer",
        "How supports are found: steps on V and A, or from cross-moments",
        Choice((*DESCENTS, *ESTIMATORS)),
    ),
    Parameter(
        "model.projector", str, "mu", "static", "outer",
        "Right projector of V, as printed in eq. 4 or orthogonal in the mu-inner product",
        Choice(("mu", "paper")),
    ),
    Parameter(
        "model.false_positives", float, 0.05, "traced", "inner",
        "Expected number delta of null positions above the cut of 'screening'",
        Interval(0.0, FLOAT32_MAX, above=True), symbol=r"$\delta$",
    ),
    Parameter(
        "train.theta", float, 0.0, "traced", "inner",
        "Size of a random direction in V at the start, 1 for that of P - mu 1^T", RATES,
        symbol=r"$\theta$",
    ),
    Parameter(
        "train.rate", float, 0.02, "traced", "inner",
        "Rate eta, divided by K_Q for V and K_P for A; of Adam the size of a step", RATES,
        symbol=r"$\eta$",
    ),
    Parameter(
        "train.batch_growth", float, 1.0, "traced", "inner",
        "Factor by which B / eta grows over the run", Interval(0.0, FLOAT32_MAX, above=True),
    ),
)  # fmt: skip

_RELATIONS = (
    SPARSITY_FITS,
    Relation(
        ("task.sparsity", "task.short_context"),
        lambda sparsity, length: sparsity <= length,
        "task.sparsity = {} is larger than task.short_context = {}",
    ),
    Relation(
        ("train.batch_size", "model.method"),
        lambda size, method: method != SHORT_FIRST or size > 1,
        "train.batch_size = {} has no sample for one of two contexts, with model.method = '{}'",
    ),
    Relation(
        ("task.num_tokens", "task.sparsity"),
        lambda tokens, sparsity: tokens**sparsity <= _MOST_CONTEXTS,
        "task.num_tokens = {} to the power of task.sparsity = {} is more contexts than are gone "
        f"through for the information, {_MOST_CONTEXTS}",
    ),
)


def _more(values: Values) -> int:
    """Sums over samples are N^3 numbers a position, where A has N; beside them stands a batch's."""
    return 2 * (values["task.num_tokens"] ** 2 if values["model.method"] in ESTIMATORS else 1)


EXPERIMENT = replace(
    learning("cheaper", _source, _learner, record=RECORD, parameters=PARAMETERS),
    relations=_RELATIONS,
    cost=papers_cost("adam", _more),
)
"""Samples that stage 1 takes by several methods."""
