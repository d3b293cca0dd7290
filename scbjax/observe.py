"""What is recorded of a trajectory.

Each observable is a pure function of a :class:`View` of the learner's state; :data:`OBSERVABLES` is
the one table of them, with the names, units and symbols that results carry. Norms are mu-norms (see
:mod:`scbjax.task`).
"""

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scbjax.keys import as_threefry
from scbjax.losses import excess_loss
from scbjax.model import ATTENTION_MAPS, Params
from scbjax.noise import SignalNoise, initial_noise, signal_noise
from scbjax.sampling import Sampler
from scbjax.sharding import every_nth_row
from scbjax.stages import population_refit, refit_value, round_attention, rounding_level
from scbjax.tables import Registry
from scbjax.task import Task, mu_inner
from scbjax.theory import PathProjection, project_on_path

# Entries of A within this share of 1/T of the background of their column count as thresholded:
# additive updates leave rounding errors far below it.
_BACKGROUND_SHARE = 1e-3
# The background of a column is the median of at most this many of its entries, evenly spaced.
_BACKGROUND_PROBES = 1024
# Stream of the view's key for the samples of the noise; the key itself is the refit's.
_NOISE = 1


class View:
    """A state of the learner, with what several observables share computed once.

    Attributes:
        key: randomness for the refit of V and for the noise of a sample.
        params: V [N, N] and A [T, N], whatever the parameter that A is made of.
        task: the task being learned.
        attention_map: name of the map that makes A.
        batch_loss: the loss of the last mini-batch, at the parameters before its step.
        stage: 1, 2 or 3.
        samples: number of samples used so far.
        flipped: whether the sign flip at the end of stage 1 fired.
        population: (alpha_V, alpha_A) of the noiseless recursion at the same step.
        rounding_share: the level of rounding, times Q.
        refit_samples: fresh samples for the refit of V.
        refit_support: largest number of attention entries a column that the refit uses.
        noise_samples: fresh samples for the noise of a sample.
        sampler: that of the task, where it has been made already.
    """

    def __init__(
        self,
        key: jax.Array,
        params: Params,
        task: Task,
        *,
        attention_map: str = "linear",
        batch_loss: jax.Array,
        stage: jax.Array,
        samples: jax.Array,
        flipped: jax.Array,
        population: tuple[jax.Array, jax.Array],
        rounding_share: jax.Array | float,
        refit_samples: int,
        refit_support: int,
        noise_samples: int,
        sampler: Sampler | None = None,
    ) -> None:
        """Stores the state; nothing is computed before an observable asks for it."""
        self.key = key
        self.params = params
        self.task = task
        self.attention_map = attention_map
        self.batch_loss = batch_loss
        self.stage = stage
        self.samples = samples
        self.flipped = flipped
        self.population = population
        self.rounding_share = rounding_share
        self.refit_samples = refit_samples
        self.refit_support = refit_support
        self.noise_samples = noise_samples
        self.sampler = sampler

    @cached_property
    def projection(self) -> PathProjection:
        """The split of (V, A) along the population path."""
        return project_on_path(self.params, self.task)

    @cached_property
    def rounded_attention(self) -> jax.Array:
        """A [T, N] after rounding (stage 3)."""
        return round_attention(
            self.params.attention, rounding_level(self.task, self.rounding_share)
        )

    @cached_property
    def refitted_value(self) -> jax.Array:
        """V [N, N] fitted by least squares to fresh samples, for the rounded attention."""
        return refit_value(
            self.key,
            self.rounded_attention,
            self.task,
            num_samples=self.refit_samples,
            support=self.refit_support,
            sampler=self.sampler,
        )

    @cached_property
    def noise(self) -> SignalNoise:
        """Mean and deviation, over fresh samples, of the gradients of the signals."""
        key = jax.random.fold_in(as_threefry(self.key), _NOISE)
        return signal_noise(key, self.params, self.task, self.noise_samples, sampler=self.sampler)

    @cached_property
    def excess_loss(self) -> jax.Array:
        """The expected loss above that of the truth."""
        return excess_loss(self.params, self.task)

    @cached_property
    def nonzeros(self) -> jax.Array:
        """The entries of A that stand out from the background of their column."""
        return count_nonzeros(self.params.attention)

    @cached_property
    def attention_gain(self) -> jax.Array:
        """The diagonal of the preconditioner that the attention map amounts to, [T, N]."""
        return ATTENTION_MAPS[self.attention_map].gain(self.params.attention)

    def distance(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """``|a - b|_mu``."""
        return self.norm(a - b)

    def norm(self, a: jax.Array) -> jax.Array:
        """``|a|_mu``."""
        return jnp.sqrt(mu_inner(a, a, self.task.stationary))

    def similarity(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """Cosine of the angle between a and b in the mu-inner product; 0 if one of them is 0."""
        sizes = self.norm(a) * self.norm(b)
        tiny = jnp.finfo(sizes.dtype).tiny
        return mu_inner(a, b, self.task.stationary) / jnp.maximum(sizes, tiny)


def mean_where(values: jax.Array, chosen: jax.Array) -> jax.Array:
    """The mean of the chosen entries; 0 if there are none."""
    total = jnp.sum(jnp.where(chosen, values, 0.0))
    return total / jnp.maximum(jnp.sum(chosen), 1).astype(values.dtype)


def count_nonzeros(attention: jax.Array) -> jax.Array:
    """Counts the entries of A [T, N] that stand out from the background of their column (int32).

    After the soft-threshold and the restored column sum (eq. 6), all entries that were thresholded
    share one value, the background. It is found as the median of the column, of an evenly spaced
    part of it if T > 1024, which is exact wherever more than half of the entries were thresholded.
    Rounded columns have background 0.
    """
    return jnp.sum(stands_out(attention, attention.shape[0]), dtype=jnp.int32)


def stands_out(attention: jax.Array, context_length: int) -> jax.Array:
    """Which entries of A [R, N], rows of a context of length T, are not the column's background."""
    probes = every_nth_row(attention, max(1, attention.shape[0] // _BACKGROUND_PROBES))
    # The lower of the two middle entries, not their mean: the value of an actual entry.
    background = jnp.sort(probes, axis=0)[(probes.shape[0] - 1) // 2][None, :]
    return jnp.abs(attention - background) > _BACKGROUND_SHARE / context_length


class Observable(NamedTuple):
    """One recorded quantity.

    Attributes:
        compute: a function of a :class:`View` that returns a scalar.
        long_name: what it is, in words.
        symbol: the paper's symbol, as matplotlib mathtext.
        units: ``"1"`` for pure numbers.
        dtype: ``"float32"`` or ``"int32"``, as stored.
        default: whether it is recorded unless something else is asked for.
    """

    compute: Callable[[View], jax.Array]
    long_name: str
    symbol: str
    units: str = "1"
    dtype: str = "float32"
    default: bool = True


OBSERVABLES: Registry[Observable] = Registry(
    "observable",
    {
        "alpha_value": Observable(
            lambda v: v.projection.alpha_value, "signal in the value matrix", r"$\alpha_V$"
        ),
        "alpha_attention": Observable(
            lambda v: v.projection.alpha_attention, "signal in the attention matrix", r"$\alpha_A$"
        ),
        "delta_value": Observable(
            lambda v: v.norm(v.projection.delta_value),
            "value matrix off the population path",
            r"$\|\Delta_V\|_\mu$",
        ),
        "delta_attention": Observable(
            lambda v: v.norm(v.projection.delta_attention),
            "attention matrix off the population path",
            r"$\|\Delta_A\|_\mu$",
        ),
        "value_distance": Observable(
            lambda v: v.distance(v.params.value, v.task.transition),
            "distance of V to P",
            r"$\|V - P\|_\mu$",
        ),
        "attention_distance": Observable(
            lambda v: v.distance(v.params.attention, v.task.pattern),
            "distance of A to Q",
            r"$\|A - Q\|_\mu$",
        ),
        "value_similarity": Observable(
            lambda v: v.similarity(v.params.value, v.task.transition),
            "cosine similarity of V and P",
            r"$\cos_\mu(V, P)$",
        ),
        "attention_similarity": Observable(
            lambda v: v.similarity(v.params.attention, v.task.pattern),
            "cosine similarity of A and Q",
            r"$\cos_\mu(A, Q)$",
        ),
        "rounded_value_distance": Observable(
            lambda v: v.distance(v.refitted_value, v.task.transition),
            "distance of V to P, V refitted on fresh samples to the rounded A",
            r"$\|\hat V - P\|_\mu$",
        ),
        "rounded_attention_distance": Observable(
            lambda v: v.distance(v.rounded_attention, v.task.pattern),
            "distance of the rounded A to Q",
            r"$\|\hat A - Q\|_\mu$",
        ),
        "rounded_value_similarity": Observable(
            lambda v: v.similarity(v.refitted_value, v.task.transition),
            "cosine similarity of P and the V refitted on fresh samples to the rounded A",
            r"$\cos_\mu(\hat V, P)$",
        ),
        "rounded_attention_similarity": Observable(
            lambda v: v.similarity(v.rounded_attention, v.task.pattern),
            "cosine similarity of the rounded A and Q",
            r"$\cos_\mu(\hat A, Q)$",
        ),
        "excess_loss": Observable(
            lambda v: v.excess_loss,
            "expected loss above that of the truth",
            r"$L(V, A) - L(P, Q)$",
        ),
        "batch_loss": Observable(
            lambda v: v.batch_loss, "loss of the last mini-batch, before its step", r"$\ell$"
        ),
        "nonzeros": Observable(
            lambda v: v.nonzeros,
            "entries of A that stand out from the background of their column",
            r"$\|A\|_0$",
            units="count",
            dtype="int32",
        ),
        "stage": Observable(lambda v: v.stage, "stage of the algorithm", "stage", dtype="int32"),
        "flipped": Observable(
            lambda v: v.flipped.astype(jnp.int32),
            "whether the sign flip at the end of stage 1 fired",
            "flip",
            dtype="int32",
        ),
        "samples": Observable(
            lambda v: v.samples, "samples used so far", r"$\tau B$", units="samples", dtype="int32"
        ),
        "population_alpha_value": Observable(
            lambda v: v.population[0],
            "signal in V of the noiseless recursion",
            r"$\alpha_V$ (population)",
        ),
        "population_alpha_attention": Observable(
            lambda v: v.population[1],
            "signal in A of the noiseless recursion",
            r"$\alpha_A$ (population)",
        ),
        "population_refit_distance": Observable(
            lambda v: v.distance(population_refit(v.rounded_attention, v.task), v.task.transition),
            "distance of V to P, V fitted to the rounded A with the law of the task itself",
            r"$\|V^* - P\|_\mu$",
            default=False,
        ),
        "attention_gain_support": Observable(
            lambda v: mean_where(v.attention_gain, v.task.pattern > 0),
            "effective preconditioner of A relative to its start, mean over the support of Q",
            r"$(JJ^\top)_{tt}$ on $Q$",
            default=False,
        ),
        "attention_gain_rest": Observable(
            lambda v: mean_where(v.attention_gain, v.task.pattern == 0),
            "effective preconditioner of A relative to its start, mean off the support of Q",
            r"$(JJ^\top)_{tt}$ off $Q$",
            default=False,
        ),
        "alpha_value_noise_mu": Observable(
            lambda v: v.noise.deviation.value_mu,
            "deviation over samples of the gradient of alpha_V, mu geometry",
            r"$\sigma(\nabla \alpha_V)$, $\mu$",
            default=False,
        ),
        "alpha_value_noise_paper": Observable(
            lambda v: v.noise.deviation.value_paper,
            "deviation over samples of the gradient of alpha_V, projector as printed",
            r"$\sigma(\nabla \alpha_V)$, printed",
            default=False,
        ),
        "alpha_attention_noise": Observable(
            lambda v: v.noise.deviation.attention,
            "deviation over samples of the gradient of alpha_A",
            r"$\sigma(\nabla \alpha_A)$",
            default=False,
        ),
        "alpha_value_gradient_mu": Observable(
            lambda v: v.noise.mean.value_mu,
            "mean over samples of the gradient of alpha_V, mu geometry",
            r"$\nabla \alpha_V$, $\mu$",
            default=False,
        ),
        "alpha_value_gradient_paper": Observable(
            lambda v: v.noise.mean.value_paper,
            "mean over samples of the gradient of alpha_V, projector as printed",
            r"$\nabla \alpha_V$, printed",
            default=False,
        ),
        "alpha_attention_gradient": Observable(
            lambda v: v.noise.mean.attention,
            "mean over samples of the gradient of alpha_A",
            r"$\nabla \alpha_A$",
            default=False,
        ),
        "initial_noise_mu": Observable(
            lambda v: initial_noise(v.task, "mu"),
            "deviation over samples of the gradient of alpha_V at the start, mu geometry, exact",
            r"$\sigma_0(\nabla \alpha_V)$, $\mu$",
            default=False,
        ),
        "initial_noise_paper": Observable(
            lambda v: initial_noise(v.task, "paper"),
            "deviation over samples of the gradient of alpha_V at the start, as printed, exact",
            r"$\sigma_0(\nabla \alpha_V)$, printed",
            default=False,
        ),
    },
)
"""The table; a name stands for one observable for as long as the process lasts.

See :class:`scbjax.tables.Registry`."""

# What takes long, or is there for a comparison only, is recorded where it is named.
DEFAULT_RECORD: tuple[str, ...] = tuple(
    name for name, entry in OBSERVABLES.items() if entry.default
)


def observe(view: View, names: tuple[str, ...] = DEFAULT_RECORD) -> dict[str, jax.Array]:
    """Computes the named observables of a state.

    Args:
        view: the state.
        names: keys of :data:`OBSERVABLES`.

    Returns:
        A scalar for each name, float32 or int32 as the table says (float64 if the parameters are).
    """
    records = {}
    for name in names:
        value = OBSERVABLES[name].compute(view)
        records[name] = value.astype(jnp.int32) if OBSERVABLES[name].dtype == "int32" else value
    return records
