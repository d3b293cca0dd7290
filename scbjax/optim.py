"""The paper's optimiser as optax transformations.

Ren, Wang & Lee (2024), eqs. 4 to 6, for parameters with fields ``value`` (V [N, N]) and
``attention`` (A [T, N]):

    V gradient:        (I - 1 1^T / N) g_V diag(1/mu) (I - mu mu^T / |mu|^2)             (eq. 4)
    a^(k) gradient:    (1 / mu_k) (I - 1 1^T / T) g_a                                    (eq. 4)
    V <- V - eta_V * (preconditioned gradient)                                           (eq. 5)
    A <- soft-threshold(A - eta_A * (preconditioned gradient)), then 1^T A = 1^T again   (eq. 6)

Each piece is a transformation of its own: :func:`scale_by_stationary` and :func:`project_tangent`
(eq. 4), :func:`proximal_l1` and :func:`restore_column_sums` (eq. 6). :func:`scb_proximal` and
:func:`scb_sgd` chain them into the two arms that the paper compares. This module knows arrays and
optax, and nothing of tasks.

With any other optimiser of optax in their midst, what comes last has to see to the invariants of
the algorithm, ``1^T V = 1^T``, ``V mu = mu`` and ``1^T A = 1^T``: momentum remembers and Adam
rescales, entry by entry, what had been projected before. :func:`keep_invariants` is for that:

    optax.chain(
        scale_by_stationary(mu),  # the diagonal part of eq. 4
        optax.scale_by_adam(),  # or optax.trace(0.9), or another one
        optax.scale_by_learning_rate(0.01),
        keep_invariants(mu),
    )

Gradients may be of another precision than the parameters, such as bfloat16: where ``update`` is
given the parameters, it computes in the wider of the two, and updates are in that.
"""

from typing import Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp
import optax

from scbjax.parameters import Geometry

Threshold = Literal["direct", "rate"]
GEOMETRIES: tuple[Geometry, ...] = get_args(Geometry)
THRESHOLDS: tuple[Threshold, ...] = get_args(Threshold)
# The fields of the parameters, which label the branches of optax.partition.
VALUE, ATTENTION = "value", "attention"


def scale_by_stationary(stationary: chex.Array) -> optax.GradientTransformationExtraArgs:
    r"""Divides column k of every gradient by :math:`\mu_k`: the diagonal preconditioner of eq. 4.

    For V this is ``g_V diag(1/mu)``, for A it is ``g_{a^(k)} / mu_k``: in both the last axis is the
    token that the column belongs to.

    Args:
        stationary: mu [N], positive.

    Returns:
        A stateless transformation for arrays whose last axis has length N.

    Example:
        >>> transform = scale_by_stationary(jnp.array([0.25, 0.75]))
        >>> updates, _ = transform.update(jnp.array([[1.0, 1.5]]), transform.init(None))
        >>> updates.tolist()
        [[4.0, 2.0]]
    """

    def divide(update: jax.Array) -> jax.Array:
        mu: jax.Array = stationary.astype(update.dtype)
        return update / mu.reshape((1,) * (update.ndim - 1) + (-1,))

    def update_fn(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        **extra: object,
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra
        return jax.tree.map(divide, _widened(updates, params)), state

    return optax.GradientTransformationExtraArgs(_empty_state, update_fn)


def project_tangent(
    stationary: chex.Array | None = None, geometry: Geometry = "mu"
) -> optax.GradientTransformationExtraArgs:
    r"""Projects updates D on the directions that keep column sums and, given mu, ``V mu`` (eq. 4).

    The left projector ``I - 1 1^T / rows`` removes the mean of every column. With ``stationary``
    the right projector follows, in one of two forms that keep the same invariants and have the same
    expectation:

    * ``"paper"``: ``D (I - mu mu^T / |mu|^2)``, as printed in eq. 4, orthogonal in the Euclidean
      inner product;
    * ``"mu"``: ``D (I - mu 1^T)``, orthogonal in the mu-inner product (ours). For non-uniform mu
      the printed form lets through sampling noise whose size does not fall with T, and this one
      does not.

    Args:
        stationary: mu [N] for updates of V; None for updates of A, which need no right projector.
        geometry: ``"mu"`` or ``"paper"``.

    Returns:
        A stateless transformation for matrices.

    Raises:
        ValueError: for an unknown geometry.

    Example:
        >>> mu = jnp.array([0.25, 0.75])
        >>> transform = project_tangent(mu)
        >>> updates, _ = transform.update(jnp.array([[1.0, 2.0], [0.0, 5.0]]), transform.init(None))
        >>> (updates @ mu).tolist(), updates.sum(axis=0).tolist()
        ([0.0, 0.0], [0.0, 0.0])
    """
    if geometry not in GEOMETRIES:
        raise ValueError(f"geometry is {geometry!r}; it must be one of {', '.join(GEOMETRIES)}")

    def project(update: jax.Array) -> jax.Array:
        update = update - jnp.mean(update, axis=0, keepdims=True)
        if stationary is None:
            return update
        mu = stationary.astype(update.dtype)[None, :]
        drift = jnp.sum(update * mu, axis=1, keepdims=True)
        return update - drift * (mu / jnp.sum(mu**2) if geometry == "paper" else jnp.ones_like(mu))

    def update_fn(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        **extra: object,
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra
        return jax.tree.map(project, _widened(updates, params)), state

    return optax.GradientTransformationExtraArgs(_empty_state, update_fn)


class ProximalL1State(NamedTuple):
    """State of :func:`proximal_l1`.

    Attributes:
        count: number of updates so far, an int32 scalar; the argument of schedules.
    """

    count: chex.Array


def soft_threshold(array: chex.Array, threshold: chex.Numeric) -> jax.Array:
    r"""``sign(x) max(|x| - threshold, 0)``, which minimises ``|z - x|^2 / 2 + threshold |z|_1``.

    Example:
        >>> soft_threshold(jnp.array([-2.0, 0.5, 3.0]), 1.0).tolist()
        [-1.0, 0.0, 2.0]
    """
    threshold = jnp.asarray(threshold).astype(array.dtype)
    return jnp.sign(array) * jnp.maximum(jnp.abs(array) - threshold, jnp.zeros((), array.dtype))


def proximal_l1(
    learning_rate: optax.ScalarOrSchedule,
    l1: optax.ScalarOrSchedule,
    threshold: Threshold = "direct",
) -> optax.GradientTransformationExtraArgs:
    r"""A gradient step followed by soft-thresholding, as an additive update (eq. 6, i and ii).

    For parameters p and incoming updates g it returns ``prox(p - learning_rate * g) - p``, to be
    applied with :func:`optax.apply_updates`; an entry that is thresholded becomes exactly zero. It
    takes the place of :func:`optax.scale_by_learning_rate` at the end of a chain.

    The threshold is ``l1`` itself with ``threshold="direct"``, the form printed in the paper, and
    ``learning_rate * l1`` with ``threshold="rate"``, the proximal operator of the textbooks.

    Soft-thresholding is the exact proximal operator of ``l1 |p|_1`` in the metric of the
    preconditioner only if that metric is diagonal (and then with a threshold for each entry,
    ``learning_rate * l1 / mu_k`` for column k). The preconditioner of eq. 4 also projects, so its
    exact operator would couple the entries of a column; the paper, and this transformation,
    threshold first and restore the column sums after (:func:`restore_column_sums`).

    Args:
        learning_rate: the step size; a number, a traced scalar or a schedule.
        l1: lambda >= 0; a number, a traced scalar or a schedule.
        threshold: ``"direct"`` or ``"rate"``.

    Returns:
        A transformation whose state counts the updates; ``params`` must be given to ``update``.

    Raises:
        ValueError: for an unknown ``threshold``, and in ``update`` when ``params`` is None.

    Example:
        >>> transform = proximal_l1(learning_rate=0.5, l1=0.25)
        >>> params = jnp.array([1.0, 0.25, -1.0])
        >>> updates, _ = transform.update(jnp.zeros(3), transform.init(params), params)
        >>> optax.apply_updates(params, updates).tolist()
        [0.75, 0.0, -0.75]
    """
    if threshold not in THRESHOLDS:
        raise ValueError(f"threshold is {threshold!r}; it must be one of {', '.join(THRESHOLDS)}")

    def init_fn(params: optax.Params) -> ProximalL1State:
        del params
        return ProximalL1State(jnp.zeros((), jnp.int32))

    def update_fn(
        updates: optax.Updates,
        state: ProximalL1State,
        params: optax.Params | None = None,
        **extra: object,
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra
        if params is None:
            raise ValueError(
                "proximal_l1 needs the parameters: call update(updates, state, params)"
            )
        rate = jnp.asarray(_value_at(learning_rate, state.count))
        level = jnp.asarray(_value_at(l1, state.count))
        level = rate * level if threshold == "rate" else level

        def move(update: jax.Array, param: jax.Array) -> jax.Array:
            param = param.astype(update.dtype)
            moved = param - rate.astype(update.dtype) * update
            return (soft_threshold(moved, level) - param).astype(update.dtype)

        updates = jax.tree.map(move, _widened(updates, params), params)
        return updates, ProximalL1State(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def restore_column_sums() -> optax.GradientTransformationExtraArgs:
    r"""Adds ``(1 - sum) / T`` to each entry of the columns that the update leads to (eq. 6, iii).

    This is the Euclidean projection of the updated columns onto the affine space ``1^T a = 1`` (not
    onto the simplex). Entries that the soft-threshold set to zero share the value ``(1 - sum) / T``
    afterwards.

    Returns:
        A stateless transformation for matrices; ``params`` must be given to ``update``.

    Raises:
        ValueError: in ``update``, when ``params`` is None.

    Example:
        >>> transform = restore_column_sums()
        >>> params = jnp.array([[0.5], [0.5]])
        >>> state = transform.init(params)
        >>> updates, _ = transform.update(jnp.array([[-0.5], [0.0]]), state, params)
        >>> optax.apply_updates(params, updates).tolist()
        [[0.25], [0.75]]
    """

    def restore(update: jax.Array, param: jax.Array) -> jax.Array:
        missing = 1.0 - jnp.sum(param.astype(update.dtype) + update, axis=0, keepdims=True)
        return (update + missing / param.shape[0]).astype(update.dtype)

    def update_fn(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        **extra: object,
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra
        if params is None:
            raise ValueError(
                "restore_column_sums needs the parameters: call update(updates, state, params)"
            )
        return jax.tree.map(restore, _widened(updates, params), params), state

    return optax.GradientTransformationExtraArgs(_empty_state, update_fn)


def keep_invariants(
    stationary: chex.Array, geometry: Geometry = "mu"
) -> optax.GradientTransformationExtraArgs:
    """Makes steps of any optimiser keep ``1^T V = 1^T``, ``V mu = mu`` and ``1^T A = 1^T``.

    To be put last, behind the learning rate: see the module's text. What V is moved by is projected
    (:func:`project_tangent`), what A is moved by is made to lead to column sums of one
    (:func:`restore_column_sums`), which a soft-threshold before it need not have kept.

    Args:
        stationary: mu [N].
        geometry: right projector of V, see :func:`project_tangent`.

    Returns:
        A stateless transformation of updates with fields ``value`` and ``attention``; ``params``
        must be given to ``update``.

    Raises:
        ValueError: for an unknown geometry, and in ``update`` when ``params`` is None.

    Example:
        >>> from scbjax.model import Params
        >>> mu = jnp.array([0.5, 0.5])
        >>> params = Params(jnp.full((2, 2), 0.5), jnp.full((4, 2), 0.25))
        >>> optimizer = optax.chain(optax.sgd(0.5, momentum=0.5), keep_invariants(mu))
        >>> gradient = Params(jnp.eye(2), jnp.eye(4, 2))
        >>> updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        >>> (params.attention + updates.attention).sum(axis=0).tolist()
        [1.0, 1.0]
        >>> (updates.value @ mu).tolist(), updates.value.sum(axis=0).tolist()
        ([0.0, 0.0], [0.0, 0.0])
    """
    return _by_field(project_tangent(stationary, geometry), restore_column_sums())


def value_descent(
    stationary: chex.Array, learning_rate: optax.ScalarOrSchedule, geometry: Geometry = "mu"
) -> optax.GradientTransformationExtraArgs:
    """Eqs. 4 and 5, for gradients of V alone: the part that all preconditioned arms share.

    Args:
        stationary: mu [N].
        learning_rate: eta_V.
        geometry: right projector, see :func:`project_tangent`.

    Returns:
        A transformation of matrices [N, N].
    """
    return optax.chain(
        scale_by_stationary(stationary),
        project_tangent(stationary, geometry),
        optax.scale_by_learning_rate(learning_rate),
    )


def scb_proximal(
    stationary: chex.Array,
    learning_rate_value: optax.ScalarOrSchedule,
    learning_rate_attention: optax.ScalarOrSchedule,
    l1: optax.ScalarOrSchedule,
    *,
    geometry: Geometry = "mu",
    threshold: Threshold = "direct",
) -> optax.GradientTransformationExtraArgs:
    """Preconditioned projected proximal descent, the paper's algorithm (eqs. 4 to 6).

    Args:
        stationary: mu [N].
        learning_rate_value: eta_V.
        learning_rate_attention: eta_A.
        l1: lambda.
        geometry: right projector of the V gradient, see :func:`project_tangent`.
        threshold: how lambda thresholds, see :func:`proximal_l1`.

    Returns:
        A transformation of gradients with fields ``value`` and ``attention``.

    Raises:
        ValueError: for an unknown geometry or threshold.

    Example:
        >>> from scbjax.model import Params
        >>> params = Params(jnp.full((2, 2), 0.5), jnp.full((4, 2), 0.25))
        >>> optimizer = scb_proximal(jnp.array([0.5, 0.5]), 0.1, 0.1, 1e-4)
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update(params, state, params)
        >>> updates.attention.shape
        (4, 2)
    """
    attention = optax.chain(
        scale_by_stationary(stationary),
        project_tangent(),
        proximal_l1(learning_rate_attention, l1, threshold),
        restore_column_sums(),
    )
    return _by_field(value_descent(stationary, learning_rate_value, geometry), attention)


def scb_sgd(
    stationary: chex.Array,
    learning_rate_value: optax.ScalarOrSchedule,
    learning_rate_attention: optax.ScalarOrSchedule,
    *,
    geometry: Geometry = "mu",
) -> optax.GradientTransformationExtraArgs:
    """Preconditioned, projected SGD: :func:`scb_proximal` without the l1 term.

    Args:
        stationary: mu [N].
        learning_rate_value: eta_V.
        learning_rate_attention: eta_A.
        geometry: right projector of the V gradient, see :func:`project_tangent`.

    Returns:
        A transformation of gradients with fields ``value`` and ``attention``.

    Raises:
        ValueError: for an unknown geometry.
    """
    attention = optax.chain(
        scale_by_stationary(stationary),
        project_tangent(),
        optax.scale_by_learning_rate(learning_rate_attention),
    )
    return _by_field(value_descent(stationary, learning_rate_value, geometry), attention)


def raw_sgd(
    learning_rate_value: optax.ScalarOrSchedule, learning_rate_attention: optax.ScalarOrSchedule
) -> optax.GradientTransformationExtraArgs:
    """Plain :func:`optax.sgd` on the raw gradients of V and A, each with its own rate."""
    return _by_field(optax.sgd(learning_rate_value), optax.sgd(learning_rate_attention))


def adam(
    learning_rate_value: optax.ScalarOrSchedule, learning_rate_attention: optax.ScalarOrSchedule
) -> optax.GradientTransformationExtraArgs:
    """:func:`optax.adam` on the raw gradients of V and A, each with its own rate."""
    both = _by_field(optax.adam(learning_rate_value), optax.adam(learning_rate_attention))

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra: object,
    ) -> tuple[optax.Updates, optax.OptState]:
        # Optax raises a decay to an integer power, which strict promotion forbids.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = both.update(updates, state, params, **extra)
        return updates, state

    return optax.GradientTransformationExtraArgs(both.init, update_fn)


def _by_field(
    value: optax.GradientTransformation, attention: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    # By the name of each leaf, not of the whole tree: under optax.masked or optax.partition V and A
    # may be a part of something larger.
    def label(path: tuple[object, ...], _: chex.Array) -> str:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        if name not in (VALUE, ATTENTION):
            raise ValueError(
                f"a parameter is named {name!r}; it must be named {VALUE} or {ATTENTION}"
            )
        return name

    def labels(params: optax.Params) -> optax.Params:
        return jax.tree_util.tree_map_with_path(label, params)

    return optax.partition({VALUE: value, ATTENTION: attention}, labels)


def _widened(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
    """Updates in the dtype of their parameters where that is the wider one."""
    if params is None:
        return updates

    def widen(update: jax.Array, param: jax.Array) -> jax.Array:
        wider = jnp.finfo(param.dtype).bits > jnp.finfo(update.dtype).bits
        return update.astype(param.dtype) if wider else update

    return jax.tree.map(widen, updates, params)


def _empty_state(params: optax.Params) -> optax.EmptyState:
    del params
    return optax.EmptyState()


def _value_at(number: optax.ScalarOrSchedule, count: chex.Array) -> chex.Numeric:
    return number(count) if callable(number) else number
