r"""Sequences that a model goes on with from its own output: tokens depend on one another.

The context of a position is the T tokens before it; row g - 1 of Q is the weight of lag g. With one
column q for all queries the next token is one step of P from the token at a lag drawn from q (a
mixture transition distribution, Raftery 1985), and mu stays what it is: every ``x_{n-g}`` has the
law mu, hence so has a step of P from it. With lags that depend on the last token, the token at a
lag is not independent of the query that chose the lag, and mu is kept no longer (:func:`shift`).
Learners use the frequencies that they have seen.

**Autocorrelation.** Let l be a left eigenvector of P with the eigenvalue r, and ``s_n = l[x_n]``
centred. Then ``E[s_{n+1} | past] = r sum_g q_g s_{n+1-g}``, an autoregression of order T:

    rho(g) = r sum_h q_h rho(g - h),   spectrum f(w) ~ 1 / |1 - r sum_h q_h exp(-i w h)|^2.

P here is reversible, ``P = b (a 1 + (1 - a) P' P'*) + (1 - b) mu 1^T`` for a random P' and its
reversal P'*. So all eigenvalues are real and none is negative; a and b are such that the largest is
the one asked for. Modes do not mix: in their basis, whitened so that tokens have covariance 1,
cross-moments are diagonal, ``rho_i(g)`` for each of the d = N - 1 modes.

**False lags.** The gradient in A at V is ``-tr(V~^T C(g))``: q convolved with the autocorrelation.
``rho(g)`` is not zero where two true lags differ by g, or add up to g, and so on. There it is at
most r times its largest at a true lag, so that nothing is false for r = 0, and for r > 0 all of it
passes any threshold with enough samples. The noise of a moment has the variance ``sum_k rho_i(k)
rho_j(k) / n`` (Bartlett 1946, who has a second term where i = j). Whitening, ``Phi = (C(1) .. C(T))
R^{-1}`` with the autocovariance R of a window (Yule-Walker), gives ``Phi(g) = q_g P~`` and nothing
else. R^{-1} of an autoregression is known, so the signal of a lag over its noise is

    n sum_i r_i^2 q_g^2 / (1 + r_i^2 |q|^2)   against   n sum_i r_i^2 q_g^2   of i.i.d. contexts:

a whitened window is worth at least half of an i.i.d. one, however slow P is, once there are many
more than the T d that the fit takes, and it costs one token instead of T + 1.

**Stage 1.** From uniform attention V is pulled by the mean over lags: ``sum_{g <= T} rho(g) / T``
instead of ``r / T``, for all lags tell of P, the false ones too. Its noise is ``mean_w f^2 |A(w)|^2
/ n`` (A the transform of a window) instead of ``1 / (n T)``. Both grow with r: more windows are
needed than i.i.d. ones, but not as many times more as there are tokens in the autocorrelation time
``sum_k rho(k)``. So it is of the order of T windows either way, which are T tokens or T^2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import scbjax
from scbjax.base import (
    RECORD_EVERY,
    STEPS,
    Experiment,
    Functions,
    Keys,
    Parameter,
    Variable,
    in_turn,
)
from scbjax.experiments.parts_common import DECLARED, SPARSITY
from scbjax.experiments.scb_common import SPARSITY_FITS
from scbjax.experiments.sequences_moments import (
    marginal,
    moments,
    threshold,
    two_steps,
    yule_walker,
)
from scbjax.experiments.sequences_task import (
    SequenceTask,
    chain_task,
    context_counts,
    grow,
    lag_counts,
    whitening,
)
from scbjax.experiments.sequences_theory import (
    Drawn,
    Expected,
    chance_marginal,
    chance_whitened,
    expected,
    expected_cosine,
    shift,
)
from scbjax.lazily import Lazily
from scbjax.values import Choice, Interval, Values

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
else:
    jax, jnp = Lazily("jax"), Lazily("jax.numpy")

BLOCK = 128
"""Windows that are looked at in one go; records come at whole numbers of blocks."""
_MOST_STEPS = 34  # beyond, counts are no longer exact in float32
_BURN_IN = 50  # context lengths, before the first window
_SLOWEST = 0.95  # of which nothing is left by then: r^256 < 1e-5


class Moments(NamedTuple):
    """What a learner keeps of the windows that it has seen.

    Attributes:
        last: the T newest tokens, [T] int32; of i.i.d. contexts none are kept, and it stays.
        counts: windows with label n and token m at lag g, [T, N, N].
        seen: how often each token was seen, over what makes its sum n, [N].
    """

    last: jax.Array
    counts: jax.Array
    seen: jax.Array


# -------------------------------------------------------------------------------- what is recorded


def _lags_found(passed: jax.Array, true: jax.Array) -> tuple[jax.Array, jax.Array]:
    """False lags and missed ones, int32 scalars."""
    return (
        jnp.sum(passed & ~true, dtype=jnp.int32),
        jnp.sum(~passed & true, dtype=jnp.int32),
    )


def _exact(chances: jax.Array, true: jax.Array) -> jax.Array:
    """The chance that the true lags pass and no others, if lags are independent."""
    return jnp.exp(jnp.sum(jnp.log(jnp.maximum(jnp.where(true, chances, 1.0 - chances), 1e-30))))


def _hits(score: jax.Array, true: jax.Array, sparsity: int) -> jax.Array:
    """Share of the largest scores that are at true lags."""
    _, chosen = jax.lax.top_k(score, sparsity)
    return jnp.mean(true[chosen], dtype=score.dtype)


def observe(
    task: SequenceTask, own: Expected, state: Moments, data: str, sparsity: int
) -> dict[str, jax.Array]:
    """All that is recorded, given what is expected."""
    found = moments(state.counts, state.seen)
    context, size = own.moment.shape
    level, true = threshold(context, size * size), jnp.max(task.pattern, axis=1) > 0
    value, plain, newton = two_steps(found)
    # The autocovariance of i.i.d. contexts is that of their tokens: nothing is left to whiten.
    whitened = yule_walker(found) if data == "sequence" else marginal(found)
    by_marginal = chance_marginal(own, found.windows, level)
    by_whitened = chance_whitened(own, found.windows, level) if data == "sequence" else by_marginal
    falsely, missed = _lags_found(marginal(found) > level, true)
    falsely_whitened, missed_whitened = _lags_found(whitened > level, true)
    truth = (task.transition - task.stationary[:, None]) * jnp.sqrt(task.stationary)[None, :]
    seen = whitening(found.mean) * jnp.sqrt(found.mean)[None, :]
    aligned = jnp.sum((value @ seen) * truth)
    lengths = jnp.sqrt(jnp.sum(value**2) * jnp.sum(truth**2))
    limit = jnp.sum((task.sizes * own.pull)[None, :] * own.moment, axis=1)
    spread = jnp.sqrt(jnp.sum(task.modes**2 * own.time[None, :], axis=1))
    return {
        "samples": jnp.round(found.windows).astype(jnp.int32),
        "marginal_false": falsely,
        "marginal_missed": missed,
        "marginal_false_expected": jnp.sum(jnp.where(true, 0.0, by_marginal)),
        "marginal_exact_expected": _exact(by_marginal, true),
        "whitened_false": falsely_whitened,
        "whitened_missed": missed_whitened,
        "whitened_exact_expected": _exact(by_whitened, true),
        "gradient_hits": _hits(plain, true, sparsity),
        "newton_hits": _hits(newton if data == "sequence" else plain, true, sparsity),
        "gradient_hits_limit": _hits(limit, true, sparsity),
        "value_cosine": aligned / jnp.maximum(lengths, 1e-12),
        "value_cosine_expected": expected_cosine(own, task, found.windows),
        "correlation_time": own.time[-1],
        "total_variation": jnp.sum(jnp.abs(found.mean - task.stationary)) / 2.0,
        "total_variation_shift": jnp.sum(jnp.abs(shift(own, task))) / 2.0,
        "total_variation_noise": jnp.sum(spread)
        / jnp.sqrt(2.0 * jnp.pi * jnp.maximum(found.windows, 1.0)),
    }


VARIABLES: Mapping[str, Variable] = {
    "samples": Variable("windows seen", "$n$", dtype="int32"),
    "marginal_false": Variable("false lags that pass by their cross-moments", dtype="int32"),
    "marginal_missed": Variable("true lags that do not pass by their cross-moments", dtype="int32"),
    "marginal_false_expected": Variable("expected number of false lags by cross-moments"),
    "marginal_exact_expected": Variable("expected chance of the true lags alone, cross-moments"),
    "whitened_false": Variable("false lags that pass once whitened", dtype="int32"),
    "whitened_missed": Variable("true lags that do not pass once whitened", dtype="int32"),
    "whitened_exact_expected": Variable("expected chance of the true lags alone, whitened"),
    "gradient_hits": Variable("share of true lags among the largest of the gradient in A"),
    "newton_hits": Variable("share of true lags among the largest of the Newton step on A"),
    "gradient_hits_limit": Variable("share of true lags in the gradient of endless data"),
    "value_cosine": Variable("cosine of V after a step from uniform attention to P"),
    "value_cosine_expected": Variable("expected cosine of V to P"),
    "correlation_time": Variable("integrated autocorrelation time of the slowest mode, in tokens"),
    "total_variation": Variable("total variation between the frequencies of tokens and mu"),
    "total_variation_shift": Variable("the same that lags by query make, to first order"),
    "total_variation_noise": Variable("the same that noise alone makes, expected"),
}

PARAMETERS = (
    DECLARED["task.num_tokens"],
    DECLARED["task.context_length"],
    SPARSITY,
    Parameter(
        "task.slow", float, 0.5, "traced", "outer",
        "The largest eigenvalue of P but one", Interval(0.0, _SLOWEST), symbol="$r$",
    ),
    Parameter(
        "task.lags", str, "fixed", "static", "outer",
        "Whether lags are the same for all queries or depend on the last token (query)",
        Choice(("fixed", "query")),
    ),
    Parameter(
        "task.data", str, "sequence", "static", "outer",
        "Windows of one sequence that the model goes on with, or independent contexts",
        Choice(("sequence", "independent")),
    ),
    replace(
        STEPS, check=Interval(1, _MOST_STEPS),
        help="Steps: step i comes to 2^(i / 2) blocks of 128 windows",
    ),
    RECORD_EVERY,
)  # fmt: skip


def _build(fixed: Values, _: Mapping[str, tuple[Any, ...]]) -> Functions:
    """The functions of a program."""
    num_tokens, context = fixed["task.num_tokens"], fixed["task.context_length"]
    sparsity, every = fixed["task.sparsity"], fixed["train.record_every"]
    data, lags = fixed["task.data"], fixed["task.lags"]
    ends = [0, *(round(2 ** (i / 2)) for i in range(1, fixed["train.steps"] + 1))]
    sizes = {"num_tokens": num_tokens, "context_length": context, "sparsity": sparsity}

    def draw(keys: Keys, values: Values) -> Drawn:
        task = chain_task(scbjax.random_task(keys.task, **sizes), values["task.slow"], lags)
        return task, expected(task, data)

    def block(key: jax.Array, task: SequenceTask, state: Moments, index: jax.Array) -> Moments:
        dtype = task.transition.dtype
        if data == "independent":
            counts = context_counts(_contexts(key, task, index), num_tokens, dtype)
            seen = jnp.sum(counts, axis=(0, 1)) / context
            return Moments(state.last, state.counts + counts, state.seen + seen)
        grown = grow(jax.random.fold_in(key, index), task, state.last, BLOCK, sparsity)
        counts = lag_counts(grown, context, num_tokens, dtype, context - BLOCK * index)
        seen = jnp.sum(jax.nn.one_hot(grown[context:], num_tokens, dtype=dtype), axis=0)
        return Moments(grown[-context:], state.counts + counts, state.seen + seen)

    def start(keys: Keys, _: Values, drawn: Drawn) -> Moments:
        task = drawn[0]
        first, then = jax.random.split(keys.start)
        logits = jnp.log(task.stationary)
        last = jax.random.categorical(first, logits, shape=(context,)).astype(jnp.int32)
        empty = jnp.zeros((context, num_tokens, num_tokens), task.transition.dtype)
        if data == "sequence":
            last = grow(then, task, last, _BURN_IN * context, sparsity)[-context:]
        return Moments(last, empty, empty[0, 0])

    def advance(keys: Keys, _: Values, drawn: Drawn, state: Moments, step: jax.Array) -> Moments:
        reached = jnp.asarray(ends, jnp.int32)
        add = partial(block, keys.data, drawn[0])
        moved: Moments = jax.lax.fori_loop(
            reached[step], reached[step + every], lambda i, own: add(own, i), state
        )
        return moved

    def record(
        _: Keys, __: Values, drawn: Drawn, state: Moments, ___: jax.Array
    ) -> dict[str, jax.Array]:
        return observe(*drawn, state, data, sparsity)

    def is_finite(state: Moments) -> jax.Array:
        return jnp.all(jnp.isfinite(state.counts))

    return Functions(draw, start, in_turn(advance, record, every), is_finite)


def _contexts(key: jax.Array, task: SequenceTask, index: jax.Array) -> scbjax.Batch:
    """A block of i.i.d. contexts, the label by the lags of the chain."""
    from scbjax.sampling import draw_batch, fold_in, make_sampler, make_seed

    own = scbjax.Task(task.transition, task.stationary, task.pattern)
    return draw_batch(fold_in(make_seed(key), index), make_sampler(own), BLOCK)


EXPERIMENT = Experiment(
    name="sequences",
    parameters=PARAMETERS,
    build=_build,
    variables=VARIABLES,
    live="samples",
    relations=(SPARSITY_FITS,),
)
"""Which lags tell the next token of a sequence, by cross-moments, whitened, and by two steps."""
