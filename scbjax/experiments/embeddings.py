r"""Continuous embeddings: tokens as vectors of d numbers, and what V then has to undo.

A token n is a vector ``e_n`` in R^d, the columns of E [d, N]; the learner reads ``E X a`` in the
place of ``X a``. Beside it stands a coordinate that is always one, and in which V starts as mu: the
paper's start ``mu 1^T``, which its invariants keep. So what is trained is V [N, d] on centred
embeddings ``E - E mu 1^T`` (E from here on),

    F(x, k; V, A) = mu + V E X a^(k),

and ``V mu = mu`` holds by itself. The loss of (V, A) is that of ``mu 1^T + V E`` [N, N] and A, so
that contexts are read as those of one-hot tokens are: a gradient G [N, N] in ``V E`` gives ``G
E^T`` in V and ``V^T G`` in E, and nothing has the size of batch, context and d. The query stays
one-hot: it chooses a column of A, and columns of different queries must be free of one another to
be those of Q. An embedded query would ask the same of Q that embedded tokens ask of P.

**Modes.** With ``E diag(mu)^(1/2) = sum_i s_i u_i v_i^T`` the embedding's covariance ``S = E
diag(mu) E^T`` has the eigenvalues ``s_i^2``, and the rows of ``V E`` are made of ``r <= min(d,
N - 1)`` directions of tokens, the modes. Let ``P - mu 1^T`` have the part ``p_i = (P - mu 1^T)
diag(mu)^(1/2) v_i`` in mode i. The expected loss above that of the truth is (i.i.d. contexts)

    1/2 sum_i |V u_i s_i (x) A - p_i (x) Q|_mu^2  +  1/2 (K_P - sum_i |p_i|^2) |Q|_mu^2,

and its last term is out of reach. By gradient steps of rate eta on V, times ``S^(-power)``, what V
has of a mode stays ``V u_i s_i = w_i p_i``, and with ``A = alpha Q + (1 - alpha) / T`` (eq. 4 on A)

    w_i   += eta_V (s_i^2 / s_1^2)^(1 - power) (<A, Q> - |A|^2 w_i),
    alpha += eta_A (sum_i w_i |p_i|^2 - alpha sum_i w_i^2 |p_i|^2),

where rates are in units of the largest eigenvalue, the largest that a plain step can stand. That is
exact (:func:`path_step`), for any embedding.

**Plain steps** (power 0): a mode waits in proportion to ``s_1^2 / s_i^2``: with A = Q for ``ln(2) /
2`` of that until half of its loss is gone, in units of ``1 / eta``. For random embeddings
eigenvalues fill ``(1 -+ sqrt(gamma))^2``, ``gamma = min(d / N, N / d)`` (Marchenko & Pastur 1967),
so that the largest is ``kappa = ((1 + sqrt(gamma)) / (1 - sqrt(gamma)))^2`` times the smallest: a
pole at d = N. There the smallest of N is of order ``1 / N^2`` of the largest (Edelman 1988) and
varies from one embedding to the next. Columns that are correlated, ``rho^|m - n|``, multiply that
by up to ``((1 + rho) / (1 - rho))^2``. Orthogonal ones have the eigenvalues of mu, and no pole.

A takes over part of what V lacks: up to terms in eta and 1/T the recursion keeps

    alpha^2 sum_i |p_i|^2 = sum_i |p_i|^2 w_i^2 (s_1^2 / s_i^2)^(1 - power),

and ends at ``w_i = 1 / alpha``, so that ``alpha^4`` is the mean of ``s_1^2 / s_i^2``, for random
embeddings ``(1 + sqrt(gamma)) / (1 - sqrt(gamma)) = sqrt(kappa)``. With ``|A|^2`` so much larger
the slowest mode takes between ``kappa^(3/4)`` and kappa.

**Preconditioned steps** (power 1) multiply by the pseudo-inverse of ``S = E diag(mu) E^T - E mu
mu^T E^T`` (of embeddings that are not centred): all modes are alike, ``w_i = alpha_V``, and what is
left is the paper's recursion with ``sum_i |p_i|^2`` in the place of K_P. For d >= N - 1 it is the
paper's learner. For d < N - 1 random embeddings reach ``d / (N - 1)`` of K_P.

**Learned embeddings.** ``V E`` of rank d is best on the d largest singular directions of ``(P - mu
1^T) diag(mu)^(1/2)`` (Eckart & Young 1936): what is out of reach falls from ``1 - d / (N - 1)`` to
the sum of the other squared singular values over K_P.

**Rank.** Modes come from the singular values of ``E diag(mu)^(1/2)``, not from the eigenvalues of
S, whose rounding errors are those of squares. No more than ``min(d, N - 1)`` can be there, and of
those a singular value counts if it is above ``max(d, N)`` rounding errors of the largest, the usual
rule. The step divides by ``s_i^2`` and reading multiplies by ``s_i`` what the gradient had
multiplied by it, so that errors grow by ``s_1 / s_i`` and not by its square.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import scbjax
from scbjax.base import Parameter, Relation
from scbjax.experiments.embeddings_modes import (
    Modes,
    centre,
    inverse_power,
    mode_signals,
    modes_of,
    parts_of,
    random_embedding,
    rank_floor,
)
from scbjax.experiments.of_parts import learning
from scbjax.experiments.parts_common import (
    DATA,
    DECLARED,
    RATES,
    SAMPLES_ARE_DRAWN,
    SPARSITY,
    drawn_as,
    of_static,
    without,
)
from scbjax.experiments.scb_common import SPARSITY_FITS
from scbjax.lazily import Lazily
from scbjax.parts import Model, Observable, Source, Track
from scbjax.values import INT32_MAX, Choice, Interval

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
    import optax
else:
    jax, jnp, optax = Lazily("jax"), Lazily("jax.numpy"), Lazily("optax")

KINDS = ("orthogonal", "random", "learned")

# --------------------------------------------------------------------------------------- the theory


class Path(NamedTuple):
    """The expected trajectory, in modes, and what it is made of.

    Attributes:
        modes: those of the embeddings at the start.
        signals: ``|p_i|^2`` [r].
        weights: w [r], how much of each mode V has.
        attention: alpha, how much of Q the attention has.
        floor: share of K_P that no embedding of d numbers reaches.
    """

    modes: Modes
    signals: jax.Array
    weights: jax.Array
    attention: jax.Array
    floor: jax.Array


def path_step(path: Path, task: scbjax.Task, values: Mapping[str, Any]) -> Path:
    """A step of the recursion in the module's text.

    Args:
        path: where it is.
        task: what is learned.
        values: ``rate``, ``attention_rate_ratio`` and ``power``.
    """
    from scbjax.algorithm import per_signal

    pattern = scbjax.pattern_signal(task)
    reach = jnp.sum(path.signals)
    w, alpha, uniform = path.weights, path.attention, 1.0 / task.context_length
    overlap, size = alpha * pattern + uniform, alpha**2 * pattern + uniform
    speed = inverse_power(path.modes, values["power"]) * path.modes.sizes**2
    value_rate = per_signal(values["rate"], pattern)
    attention_rate = per_signal(values["rate"] * values["attention_rate_ratio"], reach)
    pull = jnp.sum(w * path.signals) - alpha * jnp.sum(w**2 * path.signals)
    return path._replace(
        weights=w + value_rate * speed * (overlap - size * w),
        attention=alpha + attention_rate * pull,
    )


def _start_path(params: Mapping[str, Any], task: scbjax.Task, _: object) -> Path:
    modes = modes_of(params["embedding"], task.stationary)
    signals = mode_signals(task, modes)
    zero = jnp.zeros_like(signals)
    floor = rank_floor(task, params["embedding"].shape[0])
    return Path(modes, signals, zero, jnp.zeros((), signals.dtype), floor)


def left_of_modes(path: Path, task: scbjax.Task) -> jax.Array:
    """Share of the loss of each mode that is left on the path, [r]."""
    uniform = 1.0 / task.context_length
    pattern = scbjax.pattern_signal(task)
    whole = pattern + uniform
    overlap = path.attention * pattern + uniform
    size = path.attention**2 * pattern + uniform
    w = path.weights
    return 1.0 + (w**2 * size - 2.0 * w * overlap) / whole


# ------------------------------------------------------------------------------ the learner's parts


def model_of(static: Mapping[str, Any]) -> Model:
    """V [N, d] behind embeddings E [d, N], which stand among the parameters, and A."""
    kind, dim = static["embedding"], static["embedding_dim"]

    def init(key: jax.Array, task: scbjax.Task, values: Mapping[str, Any]) -> dict[str, Any]:
        mu = task.stationary
        shape = (dim, task.num_tokens)
        drawn = random_embedding(key, kind, shape, values["correlation"], mu.dtype)
        return {
            "value": jnp.zeros((task.num_tokens, dim), mu.dtype),
            "attention": scbjax.init_params(task).attention,
            "embedding": centre(drawn, mu),
            "mean": mu,
        }

    return Model(init, embedded_loss, as_one_hot)


def as_one_hot(params: Mapping[str, Any]) -> scbjax.Params:
    """``mu 1^T + V E`` and A: the parameters of the same function of one-hot tokens."""
    from scbjax.task import product

    value = params["mean"][:, None] + product(params["value"], params["embedding"])
    return scbjax.Params(value, params["attention"])


def embedded_loss(params: Mapping[str, Any], batch: Any) -> jax.Array:  # noqa: ANN401 - two kinds
    """The loss of a mini-batch, or the expected one of a task."""
    from scbjax.losses import population_loss, unchecked_loss

    if isinstance(batch, scbjax.Task):
        return population_loss(as_one_hot(params), batch)
    value: jax.Array = unchecked_loss(as_one_hot(params), batch)
    return value


class DescentState(NamedTuple):
    """State of :func:`descent`.

    Attributes:
        modes: of the embeddings.
        value_rate: eta_V.
        attention_rate: eta_A.
        embedding_rate: of the embeddings.
    """

    modes: Modes
    value_rate: jax.Array
    attention_rate: jax.Array
    embedding_rate: jax.Array


def descent(
    task: scbjax.Task, values: Mapping[str, Any], *, learned: bool = False
) -> optax.GradientTransformationExtraArgs:
    r"""Steps on V times ``S^(-power)``, on A as in eq. 4, and on E if it is learned.

    For gradients and parameters with the keys ``value``, ``attention``, ``embedding`` and ``mean``.
    Rates are in the units of the theory: ``eta_V = rate / K_Q``, ``eta_A = rate ratio / sum_i
    |p_i|^2``, and for E ``rate ratio s_1^2 / (K_Q sum_i |p_i|^2)``, in which a mode of average
    weight moves by about the ratio while V moves by one.

    Args:
        task: what is learned; of it mu, and the two signals.
        values: ``rate``, ``attention_rate_ratio``, ``embedding_rate_ratio`` and ``power``, from 0
            (plain) to 1 (preconditioned).
        learned: whether E is trained; its modes are found anew in each step.
    """
    from scbjax.algorithm import per_signal
    from scbjax.optim import project_tangent, scale_by_stationary
    from scbjax.task import product

    mu = task.stationary
    attention_step = optax.chain(scale_by_stationary(mu), project_tangent())

    def init(params: Mapping[str, Any]) -> DescentState:
        modes = modes_of(params["embedding"], mu)
        pattern, reach = scbjax.pattern_signal(task), jnp.sum(mode_signals(task, modes))
        value_rate = per_signal(values["rate"], pattern)
        each = per_signal(values["rate"], reach)
        ratios = values["attention_rate_ratio"], values["embedding_rate_ratio"]
        of_embedding = per_signal(each, pattern) * ratios[1] * modes.sizes[0] ** 2
        return DescentState(modes, value_rate, each * ratios[0], of_embedding)

    def update(grads: Any, state: Any, params: Any = None, **_: object) -> Any:  # noqa: ANN401
        if learned:
            state = state._replace(modes=modes_of(params["embedding"], mu))
        u = state.modes.directions
        scale = inverse_power(state.modes, values["power"])
        value = product(product(grads["value"], u) * scale[None, :], u.T)
        value = value - jnp.mean(value, axis=0, keepdims=True)
        attention, _ = attention_step.update(grads["attention"], (optax.EmptyState(),) * 2)
        moved = jnp.zeros_like(grads["embedding"])
        if learned:
            moved = -state.embedding_rate * centre(grads["embedding"] / mu[None, :], mu)
        return {
            "value": -state.value_rate * value,
            "attention": -state.attention_rate * attention,
            "embedding": moved,
            "mean": jnp.zeros_like(mu),
        }, state

    return optax.GradientTransformationExtraArgs(init, update)


def _track() -> Track:
    def step(path: Path, _: object, task: scbjax.Task, values: Mapping[str, Any]) -> Path:
        return path_step(path, task, values)

    return Track(_start_path, step)


def _source(static: Mapping[str, Any]) -> Source:
    sizes = of_static(static)

    def draw(key: jax.Array, values: Mapping[str, Any]) -> scbjax.Task:
        # Zero stands for what a task has of its own.
        signal = values["transition_signal"]
        return scbjax.random_task(key, transition_signal=signal, **sizes)

    source = scbjax.scb_source(**sizes)._replace(draw=draw)
    return drawn_as(source, static["data"])


def _learner(source: Source, static: Mapping[str, Any], **given: Any) -> scbjax.Learner:  # noqa: ANN401
    learned = static["embedding"] == "learned"

    def optimizer(task: scbjax.Task, values: Mapping[str, Any], _: object) -> Any:  # noqa: ANN401
        return descent(task, values, learned=learned)

    return scbjax.learner(source, model_of(static), optimizer, track=_track(), **given)


# -------------------------------------------------------------------------------- what is recorded


def _there(path: Path) -> jax.Array:
    return path.modes.sizes > 0


def left_of_loss(params: scbjax.Params, task: scbjax.Task, path: Path) -> jax.Array:
    """Share of the loss of each mode that is left, [r].

    ``|V u_i s_i (x) A - p_i (x) Q|^2``, in the mu-norm, over ``|p_i|^2 |Q|^2``, where it starts.
    """
    from scbjax.task import mu_inner

    mu = task.stationary
    found = parts_of(params.value - mu[:, None], path.modes, mu)
    wanted = parts_of(task.transition - mu[:, None], path.modes, mu)
    whole = mu_inner(task.pattern, task.pattern, mu)
    size = mu_inner(params.attention, params.attention, mu) / whole
    overlap = mu_inner(params.attention, task.pattern, mu) / whole
    crossed = size * jnp.sum(found**2, axis=0) - 2.0 * overlap * jnp.sum(found * wanted, axis=0)
    return 1.0 + crossed / jnp.where(_there(path), path.signals, 1.0)


def _slowest(view: scbjax.View) -> jax.Array:
    path = view.state.tracked
    left = left_of_loss(view.params, view.task, path)
    return jnp.max(jnp.where(_there(path), left, -jnp.inf))


def _slowest_on_path(view: scbjax.View) -> jax.Array:
    path = view.state.tracked
    return jnp.max(jnp.where(_there(path), left_of_modes(path, view.task), -jnp.inf))


def _excess_share(view: scbjax.View) -> jax.Array:
    from scbjax.losses import excess_loss
    from scbjax.task import mu_inner

    task = view.task
    whole = mu_inner(task.pattern, task.pattern, task.stationary) * scbjax.transition_signal(task)
    share: jax.Array = 2.0 * excess_loss(view.params, task) / whole
    return share


def _out_of_reach(view: scbjax.View) -> jax.Array:
    return 1.0 - jnp.sum(view.state.tracked.signals) / scbjax.transition_signal(view.task)


def _condition(view: scbjax.View) -> jax.Array:
    sizes = view.state.tracked.modes.sizes
    ratio: jax.Array = sizes[0] / jnp.min(jnp.where(sizes > 0, sizes, jnp.inf))
    return ratio**2


RECORD = (
    Observable(_slowest, "share of its loss that the slowest mode has left", name="slowest_mode"),
    Observable(_slowest_on_path, "the same, of the recursion", name="slowest_mode_on_path"),
    Observable(_excess_share, "excess loss, of what it is at the start", name="excess_share"),
    Observable(_out_of_reach, "share of $K_P$ that the embeddings miss", name="out_of_reach"),
    Observable(
        lambda view: view.state.tracked.floor, "share of $K_P$ that any embeddings miss",
        name="rank_floor",
    ),
    Observable(_condition, "condition number of the covariance of the embeddings",
        r"$\lambda_1 / \lambda_r$", name="condition"),
    "excess_loss",
    "attention_distance",
    "value_distance",
    "batch_loss",
    "samples",
)  # fmt: skip

_SIZE = Interval(1, INT32_MAX)
PARAMETERS = (
    DECLARED["task.num_tokens"],
    DECLARED["task.context_length"],
    SPARSITY,
    DECLARED["task.transition_signal"],
    DATA,
    Parameter(
        "model.embedding", str, "random", "static", "inner",
        "Embeddings of tokens; learned ones start as random ones", Choice(KINDS),
    ),
    Parameter(
        "model.embedding_dim", int, 64, "static", "inner", "Numbers d of an embedding", _SIZE,
        symbol="$d$",
    ),
    Parameter(
        "model.correlation", float, 0.0, "traced", "inner",
        "Correlation of the random embeddings of two tokens that follow each other",
        Interval(-0.999, 0.999), symbol=r"$\rho$",
    ),
    Parameter(
        "train.power", float, 1.0, "traced", "inner",
        "Power of the inverse covariance that steps on V are multiplied by: 0 plain, "
        "1 preconditioned", Interval(0.0, 1.0),
    ),
    Parameter("train.rate", float, 0.1, "traced", "inner", "Rate", RATES, symbol=r"$\eta$"),
    DECLARED["train.attention_rate_ratio"],
    Parameter(
        "train.embedding_rate_ratio", float, 0.1, "traced", "inner",
        "Rate of learned embeddings, in units of that of V", RATES,
    ),
)  # fmt: skip

_RELATIONS = (
    Relation(
        ("model.correlation", "model.embedding"),
        lambda correlation, kind: correlation == 0.0 or kind != "orthogonal",
        "model.correlation = {} has no meaning with model.embedding = '{}'",
    ),
    SAMPLES_ARE_DRAWN,
    SPARSITY_FITS,
)

_LEARNING = learning("embeddings", _source, _learner, record=RECORD, parameters=PARAMETERS)
EXPERIMENT = replace(
    _LEARNING,
    relations=_RELATIONS,
    default_record=without(_LEARNING.variables, "samples"),
)
"""Continuous embeddings of tokens."""
