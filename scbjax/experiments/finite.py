r"""A finite data set, used again and again: where learners overfit, and what gives it back.

The paper draws fresh samples for every step. Here n samples are drawn once; a mini-batch is B of
them, with replacement, so that a step is B / n passes. Learners are those of `maps`: linear
attention with the paper's step, softmax, and softmax with an MLP in the place of V; from scratch,
or with the value path that a related task tells (Theorem 4.1): ``V = theta P_hat + (1 - theta) mu
1^T`` with ``P_hat = rho P + (1 - rho) P'``. An MLP starts at the same V: its output weights are
those of least squares on single tokens.

**What to expect.** Let V be P. Then the column a_k is a least-squares fit of the labels of the
``n mu_k`` samples with that query. With ``S = P~ diag(mu) P~^T``, ``K = tr S``, and the covariance
of the label given the context, ``C_k = diag(mu) - mu mu^T - |q_k|^2 S``, one entry of a_k has the
curvature K and the noise ``c_k = tr(S C_k)``, the same at every position, since tokens are
independent. So its variance is ``c_k / (K^2 n mu_k)``, and an attention with d free entries a
column has, above the least population loss,

    excess = d / (2 K n) sum_k c_k.

Fitted densely, d = T - 1; fitted on the true positions alone, as by who knows them, d = Q - 1. The
fit is the minimum of the training loss, so this is where many passes lead once ``n mu_k`` is well
above T; below, the training loss can be made zero. The l1 term is to lead from the first to about Q
log T of the second kind. Stopping early is to help as much as the start is near: entries that have
not moved yet have no noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import scbjax
from scbjax.base import Parameter, Relation
from scbjax.experiments import maps
from scbjax.experiments.of_parts import learning
from scbjax.experiments.parts_common import (
    DECLARED,
    SPARSITY,
    of_static,
)
from scbjax.lazily import Lazily
from scbjax.parts import Model, Observable, Source
from scbjax.values import INT32_MAX, Choice, Interval

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
else:
    jax, jnp = Lazily("jax"), Lazily("jax.numpy")

TEST_SAMPLES = 4096
_DATA, _TEST, _RELATED = 0, 1, 2  # streams of the task's key beside that of the task itself


class Data(NamedTuple):
    """A task, a related one, and samples of the task.

    Attributes:
        task: what is learned.
        related: P' [N, N], independent of P and with the same mu.
        samples: all that are there, of which the first ``size`` are learned from; a
            :class:`scbjax.Batch`.
        size: n, an int32 scalar.
        test: other samples, to look at what was learned.
    """

    task: scbjax.Task
    related: jax.Array
    samples: scbjax.Batch
    size: jax.Array
    test: scbjax.Batch

    @property
    def transition(self) -> jax.Array:
        """P."""
        return self.task.transition

    @property
    def pattern(self) -> jax.Array:
        """Q."""
        return self.task.pattern

    @property
    def stationary(self) -> jax.Array:
        """The stationary distribution mu."""
        return self.task.stationary


def draw(key: jax.Array, values: Mapping[str, jax.Array], static: Mapping[str, Any]) -> Data:
    """A task and its samples.

    Args:
        key: of the task. The first samples are the same whatever their number is.
        values: with ``samples``, n.
        static: the sizes of the task, and ``most_samples``.
    """
    from scbjax.sampling import draw_batch, fold_in, make_sampler, make_seed
    from scbjax.task import related_task

    task = scbjax.random_task(key, **of_static(static))
    related = related_task(
        jax.random.fold_in(key, _RELATED), task, correlation=0.0, sparsity=static["sparsity"]
    )
    sampler, seed = make_sampler(task), make_seed(key)
    samples = draw_batch(fold_in(seed, _DATA), sampler, static["most_samples"])
    test = draw_batch(fold_in(seed, _TEST), sampler, TEST_SAMPLES)
    size = jnp.asarray(values["samples"], jnp.int32)
    return Data(task, related.transition, samples, size, test)


def sample(key: jax.Array, data: Data, batch_size: int) -> scbjax.Batch:
    """B of the first n samples, with replacement."""
    chosen = jax.random.randint(key, (batch_size,), 0, data.size)
    return scbjax.Batch(*(part[chosen] for part in data.samples))


def start_value(data: Data, values: Mapping[str, jax.Array]) -> jax.Array:
    """V [N, N] at the start: ``theta P_hat + (1 - theta) mu 1^T``."""
    rho, theta, task = values["correlation"], values["theta"], data.task
    hat = rho * task.transition + (1.0 - rho) * data.related
    return theta * hat + (1.0 - theta) * task.stationary[:, None]


def model_of(static: Mapping[str, Any]) -> Model:
    """The learner of `maps` that the static values name, from the start of a transfer."""
    model = maps.model_of(static)

    def init(key: jax.Array, data: Data, values: Mapping[str, jax.Array]) -> dict[str, Any]:
        from scbjax.singly import one_by_one

        params = dict(model.init(key, data.task))
        value = start_value(data, values)
        if static["value_path"] == "linear":
            return {**params, "value": value.astype(params["value"].dtype)}
        own = params["value"]
        # What the hidden units make of single tokens, [width, N]: more units than tokens, so that
        # any V can be had from them.
        hidden = jax.nn.relu(own["hidden"] + own["bias"][:, None])
        output = (value - own["mean"][:, None]) @ one_by_one(jnp.linalg.pinv)(hidden)
        return {**params, "value": {**own, "output": output}}

    return Model(init, model.loss, model.readout)


def optimizer_of(static: Mapping[str, Any]) -> Callable[[Any, Any, Any], Any]:
    """The optimiser that the static values name."""
    make = maps.optimizer_of(static)
    return lambda data, values, rates: make(data.task, values, rates)


def dense_excess(task: scbjax.Task, samples: jax.Array | float) -> jax.Array:
    """Excess loss for each free entry of a column, ``sum_k c_k / (2 K n)`` of the module's text.

    Args:
        task: what is learned.
        samples: n.

    Returns:
        A scalar; T - 1 times it is the loss of a dense fit, Q - 1 times it that of who knows the
        true positions.
    """
    mu = task.stationary
    centred = task.transition - mu[:, None]
    spread = (centred * mu[None, :]) @ centred.T
    label = jnp.diag(mu) - jnp.outer(mu, mu)
    squares = jnp.sum(task.pattern**2, axis=0)  # of every query
    noise = jnp.sum(spread * label) - squares * jnp.sum(spread * spread)
    return jnp.sum(noise) / (2.0 * jnp.trace(spread) * jnp.asarray(samples, mu.dtype))


# -------------------------------------------------------------------------------- what is recorded


def _errors(output: jax.Array, label: jax.Array) -> jax.Array:
    target = jax.nn.one_hot(label, output.shape[1], dtype=output.dtype)
    return jnp.sum((output - target) ** 2, axis=1) / 2.0


def _true_errors(data: Data, batch: scbjax.Batch) -> jax.Array:
    """Squared errors of the true P and Q, half of them, [B]."""
    from scbjax.model import attend

    attended = attend(data.task.pattern, batch.tokens, batch.query)
    return _errors(attended @ data.task.transition.T, batch.label)


def _test_excess(view: scbjax.View) -> jax.Array:
    """Loss on other samples, less that of the truth on the same ones."""
    test = view.task.test
    return view.loss(test) - jnp.mean(_true_errors(view.task, test))


def _train_excess(view: scbjax.View) -> jax.Array:
    """Loss on the samples that are learned from, less that of the truth on the same ones.

    The samples behind the first n are weighed by zero: a mean over all would not be one over n.
    """
    data = view.task
    most = data.samples.label.shape[0]
    chosen = jnp.arange(most) % data.size  # each of the n as often as the others, or once more
    batch = scbjax.Batch(*(part[chosen] for part in data.samples))
    return view.loss(batch) - jnp.mean(_true_errors(data, batch))


def _entry_excess(view: scbjax.View) -> jax.Array:
    """What theory expects of each free entry of a column, :func:`dense_excess`."""
    return dense_excess(view.task.task, view.task.size)


RECORD = (
    Observable(_test_excess, "test loss above that of the truth", name="test_excess"),
    Observable(_train_excess, "training loss above that of the truth", name="train_excess"),
    Observable(_entry_excess, "expected excess loss of a free entry", name="entry_excess"),
    "attention_similarity",
    "attention_distance",
    "value_distance",
    "batch_loss",
)

_COUNT = Interval(1, INT32_MAX)
PARAMETERS = (
    DECLARED["task.num_tokens"],
    DECLARED["task.context_length"],
    SPARSITY,
    Parameter(
        "data.samples", int, 1000, "traced", "outer", "Samples n that there are", _COUNT,
        symbol="$n$",
    ),
    Parameter(
        "data.most_samples", int, 8192, "static", "outer",
        "Samples that are drawn, of which the first n are used", _COUNT, sweepable=False,
    ),
    replace(DECLARED["transfer.theta"], default=0.0, symbol=r"$\theta$"),
    replace(DECLARED["transfer.correlation"], always_float32=False, symbol=r"$\rho$"),
    *(
        replace(parameter, check=Choice(("linear", "softmax")), default="linear")
        if parameter.path == "model.attention_map"
        else parameter
        for parameter in maps.PARAMETERS
        if parameter.path.startswith(("model.", "train.")) and parameter.path != "train.data"
    ),
)  # fmt: skip

_RELATIONS = (
    Relation(
        ("data.samples", "data.most_samples"),
        lambda samples, most: samples <= most,
        "data.samples = {} is more than data.most_samples = {}",
    ),
    Relation(
        ("model.width", "model.value_path", "task.num_tokens"),
        lambda width, path, tokens: path == "linear" or width >= tokens,
        "model.width = {} with model.value_path = '{}' is less than task.num_tokens = {}: there "
        "are values V that so few hidden units can't begin with",
    ),
    *(r for r in maps.RELATIONS if not {"train.data", "record.variables"} & {*r.paths}),
)


def _source(static: Mapping[str, Any]) -> Source:
    return Source(lambda key, values: draw(key, values, static), sample)


def _learner(source: Source, static: Mapping[str, Any], **given: Any) -> scbjax.Learner:  # noqa: ANN401
    return scbjax.learner(source, model_of(static), optimizer_of(static), **given)


EXPERIMENT = replace(
    learning("finite", _source, _learner, record=RECORD, parameters=PARAMETERS),
    relations=_RELATIONS,
)
"""Learners on a finite data set."""
