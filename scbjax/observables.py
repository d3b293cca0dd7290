"""What is recorded of a trajectory, or of parameters and a task by themselves.

Each observable is a pure function of a :class:`View` of the learner's state; :data:`OBSERVABLES` is
the table of ours, with the names, units and symbols that results carry. One's own stand beside
them: functions of a view, by a name of their own. Norms are mu-norms (see :mod:`scbjax.task`).
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scbjax.arguments import what
from scbjax.keys import as_threefry
from scbjax.losses import excess_loss
from scbjax.model import AttentionMap, Params, as_attention_map, check_params, map_attention
from scbjax.noise import SignalNoise, initial_noise, signal_noise
from scbjax.parameters import DEFAULTS, Geometry
from scbjax.recorded import DEFAULT_RECORD, OBSERVABLES, Record, as_record, record_name
from scbjax.sampling import Sampler
from scbjax.sharding import every_nth_row
from scbjax.stages import (
    estimated_signals,
    population_refit,
    refit_value,
    round_attention,
    rounding_level,
    true_signals,
)
from scbjax.tables import nearest
from scbjax.task import Task, check_one_task, mu_inner
from scbjax.theory import PathProjection, project_on_path

# Entries of A within this share of 1/T of the background of their column count as thresholded:
# additive updates leave rounding errors far below it.
_BACKGROUND_SHARE = 1e-3
# The background of a column is the median of at most this many of its entries, evenly spaced.
_BACKGROUND_PROBES = 1024
# Stream of the view's key for the samples of the noise; the key itself is the refit's.
_NOISE = 1
# What a view of a trajectory has, and where it comes from otherwise: nowhere.
_OF_TRAINING = (
    "batch_loss",
    "stage",
    "samples",
    "flipped",
    "population",
    "state",
    "values",
    "loss",
)


class View:
    """A state of the learner, with what several observables share computed once.

    Attributes:
        key: randomness for the refit of V and for the noise of a sample, and for what one's own
            observables draw.
        params: what the model's readout makes of the parameters; for the linear transformer V
            [N, N] and A [T, N], whatever the parameter that A is made of.
        task: what is being learned.
        attention_map: the map that makes A.
        rounding_share: the level of rounding, times Q.
        refit_samples: fresh samples for the refit of V.
        refit_support: largest number of attention entries a column that the refit uses.
        noise_samples: fresh samples for the noise of a sample.
        sampler: that of the task, where it has been made already.
        batch_loss: the loss of the last mini-batch, at the parameters before its step. This and
            what follows is there for a state of training only, ``flipped`` and ``population`` for
            one of the paper's algorithm only.
        stage: the number of the stage, from 1.
        samples: number of samples used so far.
        flipped: whether the sign flip at the end of stage 1 fired.
        population: (alpha_V, alpha_A) of the noiseless recursion at the same step.
        state: the whole state.
        values: the settings, or whatever values a learner is called with.
        loss: the model's loss at the parameters, a function of a batch.
    """

    batch_loss: jax.Array
    stage: jax.Array
    samples: jax.Array
    flipped: jax.Array
    population: tuple[jax.Array, jax.Array]
    state: Any
    values: Any
    loss: Callable[[Any], jax.Array]

    def __init__(
        self,
        key: jax.Array,
        params: Any,  # noqa: ANN401 - what a readout makes
        task: Any,  # noqa: ANN401 - what a source draws
        *,
        attention_map: str | AttentionMap = "linear",
        rounding_share: jax.Array | float = DEFAULTS["rounding_level"],
        refit_samples: int = DEFAULTS["refit_samples"],
        refit_support: int = DEFAULTS["refit_support"],
        noise_samples: int = DEFAULTS["noise_samples"],
        sampler: Sampler | None = None,
        **training: Any,  # noqa: ANN401 - what is known of a state of training
    ) -> None:
        """Stores the state; nothing is computed before an observable asks for it."""
        self.key = key
        self.params = params
        self.task = task
        self.attention_map = as_attention_map(attention_map)
        self.rounding_share = rounding_share
        self.refit_samples = refit_samples
        self.refit_support = refit_support
        self.noise_samples = noise_samples
        self.sampler = sampler
        unknown = sorted(set(training) - set(_OF_TRAINING))
        if unknown:
            hint = nearest(unknown[0], _OF_TRAINING)
            raise TypeError(f"a view has no {unknown[0]!r}{hint}")
        vars(self).update(training)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - it isn't there
        if name in _OF_TRAINING:
            raise ValueError(f"there is no {name} here: it is known of a state of training alone")
        if hasattr(type(self), name):  # a property that asked for what this task doesn't have
            raise AttributeError(f"a view of {what(self.task)} has no {name}")
        if name != "params" and hasattr(self.params, name):
            raise AttributeError(f"a view has no {name!r}; it is view.params.{name}")
        raise AttributeError(f"a view has no {name!r}{nearest(name, dir(type(self)))}")

    @cached_property
    def projection(self) -> PathProjection:
        """The split of (V, A) along the population path."""
        return project_on_path(self.params, self.task)

    @cached_property
    def estimated_signals(self) -> tuple[jax.Array, jax.Array]:
        """The strengths of both signals as told without P and Q."""
        return estimated_signals(self.params, self.task)

    @cached_property
    def true_signals(self) -> tuple[jax.Array, jax.Array]:
        """``|alpha_V|`` and ``|alpha_A|``, read off the truth."""
        return true_signals(self.params, self.task)

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
        gain = self.attention_map.gain
        if gain is None:
            raise ValueError(
                f"the attention map {self.attention_map.name!r} has no gain, which the observables "
                "attention_gain_support and attention_gain_rest are made of"
            )
        return gain(self.params.attention)

    @cached_property
    def population_refit(self) -> jax.Array:
        """V [N, N] fitted to the rounded attention with the law of the task itself."""
        return population_refit(self.rounded_attention, self.task)

    @cached_property
    def gain_on_support(self) -> jax.Array:
        """The mean of :attr:`attention_gain` over the support of Q."""
        return mean_where(self.attention_gain, self.task.pattern > 0)

    @cached_property
    def gain_off_support(self) -> jax.Array:
        """The mean of :attr:`attention_gain` off the support of Q."""
        return mean_where(self.attention_gain, self.task.pattern == 0)

    @property
    def flips(self) -> jax.Array:
        """1 if the sign flip fired, 0 if not; int32."""
        return self.flipped.astype(jnp.int32)

    def initial_noise(self, geometry: Geometry) -> jax.Array:
        """The deviation over samples of the gradient of alpha_V at the start, exact."""
        return initial_noise(self.task, geometry)

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


# What a trajectory alone knows.
_OF_TRAJECTORIES = (
    "batch_loss",
    "stage",
    "flipped",
    "samples",
    "population_alpha_value",
    "population_alpha_attention",
)
BARE_RECORD: tuple[str, ...] = tuple(
    entry for entry in DEFAULT_RECORD if entry not in _OF_TRAJECTORIES
)


def observe_view(view: View, record: Record = DEFAULT_RECORD) -> dict[str, jax.Array]:
    """Computes the observables of a state.

    Args:
        view: the state.
        record: what to record, as for :func:`as_record`.

    Returns:
        By name, scalars or arrays with the axes ``dims``: float32 or int32 as the table says
        (float64 if the parameters are), and one's own as they come.

    Raises:
        ValueError: for an array whose axes have no names.
    """
    records = {}
    for entry in as_record(record):
        observable = OBSERVABLES[entry] if isinstance(entry, str) else entry
        value = jnp.asarray(observable.compute(view))
        if value.ndim != len(observable.dims):
            raise ValueError(
                f"record {record_name(entry)!r} has shape {list(value.shape)}; its dims must name "
                f"each axis, and are {observable.dims}"
            )
        own = observable.dtype == "int32"
        records[record_name(entry)] = value.astype(jnp.int32) if own else value
    return records


def observe(
    params: Params,
    task: Task,
    record: Record = BARE_RECORD,
    *,
    key: jax.Array | None = None,
    attention_map: str | AttentionMap = "linear",
    rounding_level: jax.Array | float = DEFAULTS["rounding_level"],
    refit_samples: int = DEFAULTS["refit_samples"],
    refit_support: int = DEFAULTS["refit_support"],
    noise_samples: int = DEFAULTS["noise_samples"],
) -> dict[str, jax.Array]:
    """Computes observables of parameters and a task, without a trajectory.

    Args:
        params: V [N, N], and A [T, N] or the parameter of another attention map.
        task: the task.
        record: what to compute, as ``record`` of :class:`scbjax.Settings`: names of
            :data:`OBSERVABLES`, observables and functions of a :class:`View`, or a dictionary of
            these. What a trajectory alone knows (``"stage"``, ``"samples"``, ..) is not there.
        key: a PRNG key for the fresh samples of a refit and of the noise; None for that of seed 0.
        attention_map: the map that makes A.
        rounding_level: entries of at least ``rounding_level / Q`` survive rounding.
        refit_samples: fresh samples for the refit of V.
        refit_support: largest number of attention entries a column that the refit uses.
        noise_samples: fresh samples for the noise of a sample.

    Returns:
        By name, a scalar, or an array for an observable that has axes of its own.

    Raises:
        TypeError: if an argument is something else than it is meant to be.
        ValueError: for unknown names, for what a trajectory alone knows, and for shapes that don't
            fit.

    Example:
        >>> from scbjax.model import init_params
        >>> from scbjax.task import random_task
        >>> task = random_task(jax.random.key(0), num_tokens=3, context_length=50, sparsity=2)
        >>> found = observe(init_params(task), task, ("alpha_value", "attention_similarity"))
        >>> {name: round(float(value), 3) + 0.0 for name, value in found.items()}
        {'alpha_value': 0.0, 'attention_similarity': 0.195}
        >>> observe(init_params(task), task, {"sum": lambda view: view.params.value.sum()})
        {'sum': Array(3., dtype=float32)}
    """
    check_one_task("task", task)
    sizes = check_params("params", params)
    if sizes != (task.num_tokens, task.context_length):
        raise ValueError(
            f"params has value {list(np.shape(params.value))} and attention "
            f"{list(np.shape(params.attention))}; they must be as large as the task's transition "
            f"{list(np.shape(task.transition))} and pattern {list(np.shape(task.pattern))}"
        )
    view = View(
        as_threefry(jax.random.key(0) if key is None else key),
        map_attention(params, attention_map),
        task,
        attention_map=attention_map,
        rounding_share=rounding_level,
        refit_samples=refit_samples,
        refit_support=refit_support,
        noise_samples=noise_samples,
    )
    return observe_view(view, record)
