r"""Two modalities with something in common: learn one, keep what they share, learn the other.

A sample is of one modality, which has its own vocabulary of N tokens. Two kinds, ``task.shared``:

* ``"pattern"``: own transition matrices P_1 and P_2, with their own mu, and one Q, the query k of
  one vocabulary standing for the query k of the other. The learner has V_1, V_2 and one A;
* ``"transition"``, the other way round: own patterns Q_1 and Q_2, and one P. It has V, A_1, A_2.

In both it is eq. 2 on 2N tokens with V block-diagonal and columns, of A or of V, that are tied. The
transition matrix of 2N tokens, block-diagonal too, has no unique mu: any share of the modalities
makes one. Hence one modality a sample.

**After the other.** Modality 1 is learned from scratch, what is shared is kept, and what is new is
learned by the one step of Theorem 4.1, whose gradient is a mean over all samples so far, taken at
the start. By Lemma B.8 it is expected to be ``<A, Q>_mu (P - mu 1^T)`` for V_2 and ``<V - mu 1^T,
P - mu 1^T>_mu (Q - 1/T)`` for A_2, and the noise of a sample has a squared norm in proportion to
``|A|_mu^2`` or to ``|V - mu 1^T|_mu^2``. So for both

    n_2 ~ 1 / cos^2(what is kept, what is true),

flat in T once it is learned: Theorem 4.1 for a new pattern, its mirror image for a new transition
matrix. Their ends differ. A uniform A has ``1 / cos^2 = T |Q|_mu^2``, as weights are not negative:
nothing learned costs T. ``V = mu 1^T`` has a cosine of 0, and from it no sample teaches a pattern.

**How many, new transition matrix.** Recovered is a cosine of 0.95 between ``V - mu
1^T`` and ``P - mu 1^T``: noise across P of at most ``t = tan`` times the signal. A sample's noise
is the outer product of ``e_y - mu`` and of a vector that is isotropic in the mu-norm, so that it
has ``d = (N - 1) (tr L)^2 / tr L^2`` directions in effect, ``L = diag(mu) - mu mu^T``. One is P
itself. Each has the variance ``s^2 = c / (d <A, Q>_mu^2 K_P)`` in units of the signal, with ``c =
(1 - |mu|^2) (N - 1) |A|_mu^2``. What counts is the first n at which the error is small. A mean over
n samples is a Brownian motion at the time 1/n, so that this is its last exit from a ball:

    n_2 = (s^2 / t^2) X,      X chi-square with d - 3 degrees of freedom,

two fewer than the error after a number of samples that is fixed beforehand has.

**How many, new pattern.** A is rounded to its largest entries, which are right in column k when the
largest of N T noises of variance ``G / (n mu_k)`` is below the least signal ``q_k <D, P>_mu``, with
``D = V - mu 1^T`` and ``G = sum_x mu_x sum_y mu_y D_yx^2``, columns centred. With m the law of the
largest of N T normal numbers, ``n_2 = max_k m^2 G / (mu_k q_k^2 <D, P>_mu^2)``, a power of log T.

**From scratch, and mixed.** Preconditioned SGD (eq. 4) on all halves has the rate ``eta = c B / T``
over the signals. The drift of V from the start, of order 1/T, is then in the same proportion to the
noise for all T: one c is right for all, and samples grow as T. Mixed, each batch is of a modality
by the throw of a coin; what is shared is learned at all of them, and what is new at its own. As
long as ``eta n`` is small V has nothing but that drift to be found by: in as many samples of each
modality as alone if it is new, and half as many if it is shared. Then signals grow as ``exp(sqrt(2)
eta n)`` with n batches of each, for ``1 / sqrt 2`` as many. So mixed takes of each between ``1 /
sqrt 2`` and 1 of what it takes alone with a shared Q, and 1/2 to ``1 / sqrt 2`` with a shared P.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import scbjax
from scbjax.base import Parameter
from scbjax.experiments.modalities_theory import RECOVERED, pattern_samples, value_samples
from scbjax.experiments.of_parts import learning
from scbjax.experiments.parts_common import DECLARED, RATES, SPARSITY, of_static
from scbjax.experiments.scb_common import SPARSITY_FITS
from scbjax.lazily import Lazily
from scbjax.parameters import DEFAULTS
from scbjax.parts import Model, Observable, Source, Stage
from scbjax.values import Choice, Interval

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp

    from scbjax.sampling import AnyBatch, Sampler
    from scbjax.words import Seed
else:
    jax, jnp = Lazily("jax"), Lazily("jax.numpy")

LEVELS = 20  # shares of the runs, (i + 1/2) / 20, for which samples are predicted
_NEW = {"pattern": "value", "transition": "attention"}  # by what is shared
_NEVER = 1e9  # samples


# ------------------------------------------------------------------------------- tasks and samples


class ModalTask(NamedTuple):
    """Two sparse contextual bigrams of the same sizes; the second is asked about."""

    first: scbjax.Task
    second: scbjax.Task


class ModalBatch(NamedTuple):
    """B samples of each modality; ``coin``, in [0, 1), says which is learned, by its share."""

    first: AnyBatch
    second: AnyBatch
    coin: jax.Array


class ModalParams(NamedTuple):
    """V [1 or 2, N, N] and A [2 or 1, T, N]: one of what is shared, and two of what is not."""

    value: jax.Array
    attention: jax.Array

    def of(self, modality: jax.Array | int) -> scbjax.Params:
        """V and A of modality 0 or 1."""
        return scbjax.Params(*(array[_place(array, modality)] for array in self))

    def put(self, modality: jax.Array | int, params: scbjax.Params) -> ModalParams:
        """The same with another V and A of modality 0 or 1."""
        pairs = zip(self, params, strict=True)
        return ModalParams(*(a.at[_place(a, modality)].set(new) for a, new in pairs))

    @property
    def shares_pattern(self) -> bool:
        """Whether A is what the modalities share."""
        return len(self.attention) == 1


def _place(array: jax.Array, modality: jax.Array | int) -> jax.Array:
    return jnp.minimum(jnp.asarray(modality, jnp.int32), len(array) - 1)


def random_modalities(
    key: jax.Array,
    *,
    shared: str,
    correlation: jax.Array | float = 1.0,
    sparsity: int,
    skew: jax.Array | float = DEFAULTS["skew"],
    **sizes: Any,  # noqa: ANN401 - of random_task
) -> ModalTask:
    """Draws two modalities; the second is a task of :func:`scbjax.random_task`.

    Args:
        key: a PRNG key.
        shared: what both have in common, ``"pattern"`` or ``"transition"``.
        correlation: rho. The first has ``rho Q + (1 - rho) Q'`` or ``rho P + (1 - rho) P'`` of
            the second's Q or P and an independent draw; 1 is the same, and rho may be traced.
        sparsity: nonzeros in each column of Q and of Q'.
        skew: C of Assumption 2.1 (b).
        **sizes: ``num_tokens``, ``context_length`` and ``transition_signal``, as there.

    Example:
        >>> sizes = {"num_tokens": 3, "context_length": 9, "sparsity": 2}
        >>> task = random_modalities(jax.random.key(0), shared="pattern", **sizes)
        >>> [bool(jnp.array_equal(one, two)) for one, two in zip(task.first, task.second)]
        [False, False, True]
    """
    own, other = jax.random.split(key)
    given: dict[str, Any] = {"sparsity": sparsity, "skew": skew}
    second = scbjax.random_task(own, **given, **sizes)
    if shared == "transition":
        first = scbjax.related_task(other, second, correlation=correlation, **given)
        return ModalTask(first, second)
    first = scbjax.random_task(other, **given, **sizes)
    rho = jnp.asarray(correlation, second.pattern.dtype)
    pattern = rho * second.pattern + (1.0 - rho) * first.pattern
    return ModalTask(first._replace(pattern=pattern), second)


def prepare(task: ModalTask) -> tuple[Sampler, Sampler]:
    """The samplers of both modalities."""
    from scbjax.sampling import make_sampler

    return make_sampler(task.first), make_sampler(task.second)


def sample_modalities(seed: Seed, prepared: tuple[Sampler, Sampler], batch_size: int) -> ModalBatch:
    """Draws B samples of each modality, in the form that is fastest for a step, and the coin."""
    from scbjax.sampling import draw_step, fold_in

    first, second = (
        draw_step(fold_in(seed, number), sampler, batch_size)
        for number, sampler in enumerate(prepared)
    )
    coin = (fold_in(seed, 2).words[0] >> 8).astype(jnp.float32) / 2.0**24
    return ModalBatch(first, second, coin)


def start_modalities(task: ModalTask, shared: str) -> ModalParams:
    """The start: ``V = mu 1^T``, of each modality or of both, and uniform attention."""
    first, second = (scbjax.init_params(own) for own in task)
    if shared == "pattern":
        return ModalParams(jnp.stack([first.value, second.value]), second.attention[None])
    return ModalParams(second.value[None], jnp.stack([first.attention, second.attention]))


def squares(params: scbjax.Params, task: scbjax.Task) -> scbjax.Params:
    """``|V - mu 1^T|_mu^2`` and ``|A|_mu^2``; scalars."""
    mu = task.stationary
    params = params._replace(value=params.value - mu[:, None])
    return scbjax.Params(*(scbjax.mu_inner(array, array, mu) for array in params))


def cosines(params: scbjax.Params, task: scbjax.Task, rounded: int | None = None) -> scbjax.Params:
    """Cosines of ``V - mu 1^T`` to ``P - mu 1^T`` and of A to Q in the mu-inner product; scalars.

    Args:
        params: V and A; the cosine of ``V = mu 1^T`` is 0.
        task: P, mu and Q.
        rounded: keeps so many of the largest entries of each column of A; None for all.
    """
    mu = task.stationary
    if rounded is not None:
        from scbjax.model import keep_largest

        params = params._replace(attention=keep_largest(params.attention, rounded))
    base = scbjax.Params(mu[:, None], jnp.zeros_like(mu)[None, :])

    def cosine(own: jax.Array, true: jax.Array, zero: jax.Array) -> jax.Array:
        own, true = own - zero, true - zero
        norms = scbjax.mu_inner(own, own, mu) * scbjax.mu_inner(true, true, mu)
        share = scbjax.mu_inner(own, true, mu) / jnp.sqrt(jnp.where(norms > 0, norms, 1.0))
        # V mu = mu is kept up to rounding, of which nothing is to be read.
        return jnp.where(norms > 1e-12, share, 0.0)

    truth = scbjax.Params(task.transition, task.pattern)
    found: scbjax.Params = jax.tree.map(cosine, params, truth, base)
    return found


class Progress(NamedTuple):
    """Steps on each modality, and those on the second when V and the rounded A were recovered.

    int32 scalars; -1 for what never was.
    """

    first: jax.Array
    second: jax.Array
    value: jax.Array
    pattern: jax.Array

    def after(self, is_second: jax.Array, found: scbjax.Params) -> Progress:
        """What it is after one more step, to the cosines of modality 2."""
        own = is_second.astype(jnp.int32)
        second = self.second + own

        def first_time(before: jax.Array, cosine: jax.Array) -> jax.Array:
            meets = (before < 0) & (second > 0) & (cosine >= RECOVERED)
            return jnp.where(meets, second, before)

        value = first_time(self.value, found.value)
        pattern = first_time(self.pattern, found.attention)
        return Progress(self.first + 1 - own, second, value, pattern)


def _start_progress(*_: object) -> Progress:
    zero, never = jnp.zeros((), jnp.int32), jnp.full((), -1, jnp.int32)
    return Progress(zero, zero, never, never)


def _of(pair: ModalBatch | ModalTask, is_second: jax.Array) -> Any:  # noqa: ANN401 - of either
    """The samples, or the task, of one of the modalities."""
    return jax.tree.map(partial(jnp.where, is_second), pair.second, pair.first)


def modal_loss(params: ModalParams, batch: ModalBatch, share: jax.Array | float) -> jax.Array:
    """The loss (eq. 3) on the modality that the coin chooses, the second with this share; a scalar.

    Example:
        >>> sizes = {"num_tokens": 3, "context_length": 9, "sparsity": 2}
        >>> task = random_modalities(jax.random.key(0), shared="pattern", **sizes)
        >>> seed = scbjax.sampling.make_seed(jax.random.key(1))
        >>> batch = sample_modalities(seed, prepare(task), 4)
        >>> grads = jax.grad(modal_loss)(start_modalities(task, "pattern"), batch, 0.0)
        >>> grads.value.shape, bool(jnp.any(grads.value[1]))
        ((2, 3, 3), False)
    """
    from scbjax.losses import unchecked_loss

    is_second = batch.coin < share
    value: jax.Array = unchecked_loss(params.of(is_second), _of(batch, is_second))
    return value


def _step(
    static: Mapping[str, Any],
    params: ModalParams,
    progress: Progress,
    batch: ModalBatch,
    task: ModalTask,
    _: object,
    rates: Mapping[str, Any],
    __: object,
) -> tuple[tuple[jax.Array, scbjax.Params], ModalParams, Progress]:
    """A step of SGD, or one more batch for the one step on what is new."""
    from scbjax.losses import unchecked_loss

    averaged, new = jnp.asarray(rates["averaged"]), _NEW[static["shared"]]
    choose = partial(jax.tree.map, partial(jnp.where, averaged))
    is_second = batch.coin < rates["share"]
    own, now = _of(task, is_second), params.of(is_second)
    start = now._replace(**{new: getattr(scbjax.init_params(own), new)})
    at = choose(start, now)
    loss, grads = jax.value_and_grad(unchecked_loss)(at, _of(batch, is_second))
    # The one step is as long as leads to the truth if what is kept is true.
    kept = squares(now, own)
    inverse = jax.tree.map(lambda size: jnp.where(size > 0, 1.0 / size, 0.0), kept)
    lengths = choose((inverse.attention, inverse.value), (rates["value"], rates["attention"]))
    descent = scbjax.scb_sgd(own.stationary, *lengths)
    updates, _ = descent.update(grads, descent.init(at), at)
    # A run that has recovered both halves rests.
    rests = ~averaged & (jnp.minimum(progress.value, progress.pattern) >= 0)
    moved = jax.tree.map(lambda old, update: old + jnp.where(rests, 0.0, update), at, updates)
    before, latest = getattr(now, new), getattr(moved, new)
    mean = before + (latest - before) / (progress.second + 1).astype(before.dtype)
    moved = choose(now._replace(**{new: mean}), moved)
    params = params.put(is_second, moved)
    found = cosines(params.of(1), task.second, static["sparsity"])
    return (loss, grads), params, progress.after(is_second, found)


# ----------------------------------------------------------------------------- the learner's parts


def rates_of(
    task: ModalTask, values: Mapping[str, Any], *, batch_size: int, averaged: bool
) -> dict[str, Any]:
    """The rates of a stage: eta over the signals, ``eta = rate B / T``.

    With ``averaged`` of that in which what is new is learned after modality 1.
    """
    share = jnp.asarray(values["second_share"])
    own: scbjax.Task = _of(task, share > 0)
    idle = (share <= 0) & (values["first_until"] <= 0)
    eta = jnp.where(idle, 0.0, values["rate"]) * batch_size / own.context_length
    return {
        "value": eta / scbjax.pattern_signal(own),
        "attention": eta / scbjax.transition_signal(own),
        "share": jnp.ones_like(share) if averaged else share,
        "averaged": averaged,
    }


def _is_learned(view: scbjax.View) -> jax.Array:
    from scbjax.theory import signals

    value, attention = signals(view.params.of(0), view.task.first)
    signal = attention if view.params.shares_pattern else value
    until = view.values["first_until"]
    # A signal of nothing may be below zero by rounding.
    over: jax.Array = (view.values["second_share"] <= 0) & ((signal >= until) | (until <= 0))
    return over


def _source(static: Mapping[str, Any]) -> Source:
    from scbjax.sources import step_seeds

    sizes = of_static(static, "shared")

    def draw(key: jax.Array, values: Mapping[str, Any]) -> ModalTask:
        names = ("correlation", "skew", "transition_signal")
        traced: dict[str, Any] = {name: values.get(name) for name in names}
        return random_modalities(key, **sizes, **traced)

    return Source(draw, sample_modalities, prepare, step_seeds)


def _learner(source: Source, static: Mapping[str, Any], **given: Any) -> scbjax.Learner:  # noqa: ANN401
    from scbjax.moves import Move

    def init(_: jax.Array, task: ModalTask) -> ModalParams:
        return start_modalities(task, static["shared"])

    def loss(params: ModalParams, batch: ModalBatch, values: Mapping[str, Any]) -> jax.Array:
        return modal_loss(params, batch, values["second_share"])

    rates = partial(rates_of, batch_size=given["batch_size"])
    stages = (
        Stage("both, or the first", partial(rates, averaged=False), _is_learned),
        Stage("the second, what is shared kept", partial(rates, averaged=True)),
    )
    move = Move(_start_progress, partial(_step, static))
    return scbjax.learner(source, Model(init, loss), move, stages=stages, **given)


# -------------------------------------------------------------------------------- what is recorded


def _samples(steps: str, name: str, words: str) -> Observable:
    def compute(view: scbjax.View) -> jax.Array:
        count = getattr(view.state.opt_state, steps)
        each = view.samples // jnp.maximum(view.state.step, 1)
        return jnp.where(count < 0, -1, count * each)

    return Observable(compute, words, dtype="int32", name=name)


def _kept(view: scbjax.View) -> jax.Array:
    """The squared cosine to the truth of modality 2 of what both modalities have in common."""
    found = cosines(view.params.of(1), view.task.second)
    return (found.attention if view.params.shares_pattern else found.value) ** 2


def _predicted(view: scbjax.View) -> jax.Array:
    shares = (jnp.arange(LEVELS, dtype=jnp.float32) + 0.5) / LEVELS
    value, attention = view.params.of(1)
    if view.params.shares_pattern:
        found = value_samples(attention, view.task.second, shares)
    else:
        found = pattern_samples(value, view.task.second, shares)
    return jnp.where(found < _NEVER, found, _NEVER)


RECORD = (
    Observable(_kept, "squared cosine to modality 2 of what is shared", name="kept"),
    Observable(
        _predicted, "samples that the one step on what is new is predicted to take",
        dims=("level",), name="predicted",
    ),
    _samples("first", "samples_of_first", "samples of modality 1"),
    _samples("second", "samples_of_second", "samples of modality 2"),
    _samples("value", "samples_to_value", "samples of modality 2 until V is recovered; -1: never"),
    _samples("pattern", "samples_to_pattern", "the same for the rounded A"),
    "batch_loss",
    "stage",
)  # fmt: skip

PARAMETERS = (
    DECLARED["task.num_tokens"],
    DECLARED["task.context_length"],
    SPARSITY,
    DECLARED["task.skew"],
    DECLARED["task.transition_signal"],
    Parameter(
        "task.shared", str, "pattern", "static", "outer",
        "What the two modalities have in common: the pattern or the transition matrix",
        Choice(("pattern", "transition")),
    ),
    replace(
        DECLARED["transfer.correlation"],
        path="task.correlation", default=1.0, layer="outer",
        help="Share rho of what is shared: 1 is the same in both modalities, 0 independent",
    ),
    Parameter(
        "train.second_share", float, 0.0, "traced", "inner",
        "Share of the batches that are of modality 2 from the start; with 0 it comes after the "
        "other", Interval(0.0, 1.0),
    ),
    Parameter(
        "train.first_until", float, 0.3, "traced", "inner",
        "Modality 1 is learned until the signal of what is shared is this; 0 for not at all",
        Interval(0.0, 1.0),
    ),
    Parameter(
        "train.rate", float, 0.25, "traced", "inner",
        "Rate of SGD in units of B / T, over the signals", RATES, symbol="$c$",
    ),
)  # fmt: skip

EXPERIMENT = replace(
    learning(
        "modalities", _source, _learner,
        record=RECORD, parameters=PARAMETERS, lengths={"level": LEVELS},
    ),
    relations=(SPARSITY_FITS,),
)  # fmt: skip
"""One modality after another, both at once, or one alone."""
