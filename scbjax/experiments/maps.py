r"""Attention maps on the same parameters: what changes when A is not trained itself.

A learner of the SCB whose attention is made of a parameter W [T, N], column by column:

* ``linear``: ``a = w``;
* ``entmax``: ``a_t = [1 + e (w_t - c)]_+^(1/e)`` with ``e = alpha - 1`` and the c for which a sums
  to one (Peters, Niculae & Martins 2019): softmax at alpha = 1, sparsemax (the Euclidean projection
  onto the simplex, Martins & Astudillo 2016) at alpha = 2, and for any alpha above 1 with exact
  zeros. ``softmax`` and ``sparsemax`` are these two;
* ``relu``: ``a_t = [w_t]_+ / sum [w]_+``.

**The metric of a map.** With ``s_t = a_t^(2 - alpha)``, ``S = sum s``, the Jacobian of entmax is
``J = diag(s) - s s^T / S``. A gradient step on W moves A by ``-eta J J^T g``: entries move at a
speed ``s_t^2``, ``1 / T^(2 (2 - alpha))`` at the uniform start. Dividing the gradient of W by s
twice (and by mu, and taking the mean over the support off it) undoes that: the preconditioned step
moves A as the paper's linear one does, for as long as entries stay positive.

**Time to leave the plateau.** Near the start let v be the signal of V and p the weight of a true
position, in units in which the rates are one. Population gradients give ``v' = p`` (the signal in
V grows by the mass that A has on the support) and ``p' = p^(2 (2 - alpha)) v`` (the metric above,
times the signal that V already has). Hence ``v dv = p^(1 - 2 (2 - alpha)) dp``, so
``v ~ p^(alpha - 1)`` once p is above 1/T, and

    t = int dp / (p^(2 (2 - alpha)) v) ~ int_{1/T} p^(alpha - 3) dp ~ T^(2 - alpha)

for alpha below 2, and log T for alpha = 2 and for the linear map, where both signals grow
exponentially. Softmax (alpha = 1) waits for T steps, entmax with alpha = 1.5 for sqrt T.

**Weights that die.** Where alpha > 1, a position whose weight is zero has no gradient: it comes
back only if the threshold c falls. At the start its w is ``T^(1 - alpha) / (alpha - 1)`` above the
threshold, 1/T for sparsemax, and the noise of a step moves it by ``eta s |v| sqrt(mu_k / B)``. So
the share of true positions that die grows with the rate, and for a given rate with T. Plain steps
on softmax, whose weights are never zero, kill none; steps in the metric above do, since it moves
small weights as far as the linear map does, and what rounds to zero has no gradient either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import scbjax
from scbjax.base import Parameter, Relation
from scbjax.experiments.of_parts import learning
from scbjax.experiments.parts_common import (
    DATA,
    DECLARED,
    NO_L1,
    OPTIMIZER,
    RATE_OF_VALUE,
    SAMPLES_ARE_DRAWN,
    SPARSITY,
    drawn_as,
    of_static,
    without,
)
from scbjax.experiments.scb_common import SPARSITY_FITS
from scbjax.lazily import Lazily
from scbjax.parts import Model, Observable, Source
from scbjax.values import INT32_MAX, Choice, Interval

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
    import optax
else:
    jax, jnp, optax = Lazily("jax"), Lazily("jax.numpy"), Lazily("optax")

MAPS = ("linear", "softmax", "entmax", "sparsemax", "relu")
_ALPHA = {"softmax": 1.0, "sparsemax": 2.0}
_STEPS_TO_NORMALISE = 40  # Newton's; three to ten are taken
_SERIES = 0.5  # up to where a series is more exact than the formula
_LEAST_SHARE = 1e-3  # of a uniform weight, for a weight to be moved
_BINS = 4  # of the weights of true positions, by their size

# ---------------------------------------------------------------------------------------- the maps


def entmax(logits: jax.Array, alpha: jax.Array | float) -> jax.Array:
    """Entmax of columns: W [..., T, N] to weights of the same shape that sum to one.

    The normaliser is found by Newton's method on a p-norm, which is convex in c and nearly linear:
    a few passes over the positions, from the left and never past the root.

    Args:
        logits: W.
        alpha: from 1 (softmax) to 2 (sparsemax), both included; may be traced.

    Raises:
        ValueError: for an alpha that is known and is not from 1 to 2. Below 1 the sum of powers has
            no zeros and its tails are heavier than those of softmax, and the p-norm above is no
            norm; above 2 the Jacobian has no bound.

    Example:
        >>> entmax(jnp.array([[0.0], [0.5], [1.0]]), 2.0).ravel().tolist()
        [0.0, 0.25, 0.75]
    """
    from scbjax.arguments import Numbers, check_number

    try:
        check_number("alpha", alpha, Numbers(1.0, 2.0))
    except ValueError as error:
        reason = "below 1 no weight is ever zero, above 2 the derivative has no bound"
        raise ValueError(f"{error}: {reason}") from None
    weights: jax.Array = _entmax()(logits, jnp.asarray(alpha, logits.dtype))
    return weights


@cache
def _entmax() -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Entmax, with its derivative in both arguments."""
    function = jax.custom_jvp(_weights)

    @function.defjvp
    def _jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:  # noqa: ANN401
        (logits, alpha), (move, change) = primals, tangents
        weights = function(logits, alpha)
        speed = _speed(weights, alpha)
        along = speed * move + _alpha_slope(weights, alpha) * change
        total = jnp.sum(speed, axis=-2, keepdims=True)
        return weights, along - speed * (jnp.sum(along, axis=-2, keepdims=True) / total)

    return function


def _excess(alpha: jax.Array) -> jax.Array:
    """``alpha - 1``, or a number of no effect where that is zero."""
    return jnp.maximum(alpha - 1.0, jnp.asarray(1e-20, alpha.dtype))


def _power(shifted: jax.Array, excess: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``u = [1 + e z]_+`` and ``u^(1/e)``."""
    inside = excess * shifted
    alive = inside > -1.0
    log = jnp.log1p(jnp.where(alive, inside, 0.0))
    return jnp.where(alive, 1.0 + inside, 0.0), jnp.where(alive, jnp.exp(log / excess), 0.0)


def _weights(logits: jax.Array, alpha: jax.Array) -> jax.Array:
    excess = _excess(alpha)
    logits = logits - jnp.max(logits, axis=-2, keepdims=True)

    def newton(carry: tuple[jax.Array, jax.Array, jax.Array]) -> Any:  # noqa: ANN401
        shift, _, count = carry
        base, powers = _power(logits - shift, excess)
        total = jnp.sum(powers, axis=-2, keepdims=True)
        slope = jnp.sum(
            jnp.where(powers > 0, powers / jnp.where(powers > 0, base, 1.0), 0.0),
            axis=-2,
            keepdims=True,
        )
        height = jnp.expm1(excess * jnp.log(total)) / excess
        step = height / (total ** (excess - 1.0) * slope)
        return shift + step, jnp.max(jnp.abs(step) / (1.0 + shift)), count + 1

    def goes_on(carry: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        _, moved, count = carry
        return (moved > jnp.finfo(logits.dtype).eps) & (count < _STEPS_TO_NORMALISE)

    # Zero is where the largest weight is one: the root is to the right of it.
    shift = jnp.zeros_like(logits[..., :1, :])
    start = (shift, jnp.asarray(jnp.inf, logits.dtype), jnp.zeros((), jnp.int32))
    shift = jax.lax.while_loop(goes_on, newton, start)[0]
    powers = _power(logits - shift, excess)[1]
    return powers / jnp.sum(powers, axis=-2, keepdims=True)


def _speed(weights: jax.Array, alpha: jax.Array | float) -> jax.Array:
    """``s = a^(2 - alpha)``, zero where a is."""
    alive = weights > 0
    return jnp.where(alive, jnp.where(alive, weights, 1.0) ** (2.0 - alpha), 0.0)


def _alpha_slope(weights: jax.Array, alpha: jax.Array) -> jax.Array:
    """The derivative of ``[1 + e z]_+^(1/e)`` in e at a fixed z, of the weights themselves.

    ``a L^2 h(e L)`` with ``L = log a`` and ``h(u) = (1 - exp(-u) - u) / u^2``.
    """
    alive = weights > 0
    log = jnp.log(jnp.where(alive, weights, 1.0))
    product = (alpha - 1.0) * log
    near = jnp.abs(product) < _SERIES
    far = jnp.where(near, 1.0, product)
    terms = jnp.zeros_like(product)
    for factor in range(14, 1, -1):  # -1/2 + u/6 - u^2/24 + .., by Horner's rule
        terms = (1.0 + terms) * jnp.where(near, product, 0.0) / -(factor + 1.0)
    series = -0.5 * (1.0 + terms)
    slope = jnp.where(near, series, (-jnp.expm1(-far) - far) / far**2)
    return jnp.where(alive, weights * log**2 * slope, 0.0)


def relu_weights(parameter: jax.Array) -> jax.Array:
    """``[w]_+ / sum [w]_+`` for columns of W [..., T, N]; uniform where nothing is positive."""
    positive = jnp.maximum(parameter, 0.0)
    total = jnp.sum(positive, axis=-2, keepdims=True)
    uniform = 1.0 / parameter.shape[-2]
    return jnp.where(total > 0, positive / jnp.where(total > 0, total, 1.0), uniform)


def map_weights(name: str, parameter: jax.Array, alpha: jax.Array | float) -> jax.Array:
    """A of W [..., T, N], by the name of a map in :data:`MAPS`."""
    if name == "linear":
        return parameter
    if name == "relu":
        return relu_weights(parameter)
    if name == "softmax":  # which needs no search for its normaliser
        return jax.nn.softmax(parameter, axis=-2)
    return entmax(parameter, _ALPHA.get(name, alpha))


# ------------------------------------------------------------------------------ the learner's parts


def model_of(static: Mapping[str, Any]) -> Model:
    """V, or an MLP in its place, and W behind a map; alpha is a value that may be swept."""
    name, is_mlp = static["attention_map"], static["value_path"] == "mlp"

    def init(key: jax.Array, task: scbjax.Task) -> dict[str, Any]:
        # Every entry of W is the same: 1/T for the maps that keep it so, and any number for others.
        uniform = scbjax.init_params(task, "linear" if name in ("linear", "relu") else "softmax")
        if not is_mlp:
            return uniform._asdict()
        width, num_tokens, dtype = static["width"], task.num_tokens, task.stationary.dtype
        first, bias = jax.random.split(key)
        value = {
            "hidden": jax.random.normal(first, (width, num_tokens), dtype),
            "bias": jax.random.normal(bias, (width,), dtype),
            "output": jnp.zeros((num_tokens, width), dtype),
            "mean": task.stationary,
        }
        return {"value": value, "attention": uniform.attention}

    def readout(params: Mapping[str, Any], values: Mapping[str, Any]) -> scbjax.Params:
        attention = map_weights(name, params["attention"], values["alpha"])
        value = params["value"]
        return scbjax.Params(linear_part(value) if is_mlp else value, attention)

    def loss(params: Mapping[str, Any], batch: Any, values: Mapping[str, Any]) -> jax.Array:  # noqa: ANN401
        from scbjax.losses import population_loss, unchecked_loss

        attention = map_weights(name, params["attention"], values["alpha"])
        if is_mlp:
            return _mlp_loss(params["value"], attention, batch)
        both = scbjax.Params(params["value"], attention)
        if isinstance(batch, scbjax.Task):
            return population_loss(both, batch)
        value: jax.Array = unchecked_loss(both, batch)
        return value

    return Model(init, loss, readout)


def mlp_output(value: Mapping[str, jax.Array], attended: jax.Array) -> jax.Array:
    """``mean + U relu(W h + b)`` for rows h = X a [B, N]: the value path with a hidden layer."""
    hidden = jax.nn.relu(attended @ value["hidden"].T + value["bias"][None, :])
    return value["mean"][None, :] + hidden @ value["output"].T


def linear_part(value: Mapping[str, jax.Array]) -> jax.Array:
    """What an MLP makes of single tokens, [N, N]: its V, where attention is on one position."""
    eye = jnp.eye(value["mean"].shape[0], dtype=value["mean"].dtype)
    return mlp_output(value, eye).T


def _mlp_loss(value: Mapping[str, jax.Array], attention: jax.Array, batch: Any) -> jax.Array:  # noqa: ANN401
    from scbjax.model import attend

    attended = attend(attention, batch.tokens, batch.query)
    output = mlp_output(value, attended)
    target = jax.nn.one_hot(batch.label, output.shape[1], dtype=output.dtype)
    return jnp.mean(jnp.sum((output - target) ** 2, axis=1)) / 2.0


def preconditioned(
    name: str,
    task: scbjax.Task,
    rate: jax.Array,
    attention_rate: jax.Array,
    alpha: jax.Array | float = 1.0,
    l1: jax.Array | float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """The paper's step on V, and on A through the metric of its map (see the module's text).

    For gradients and parameters with the keys ``value`` and ``attention``, W of a map of the entmax
    family or linear. To first order in the rate, A moves by ``-attention_rate / mu_k`` times its
    gradient, less the mean over the positions of its column whose weights are positive.

    Args:
        name: of the map; of those in :data:`MAPS` all but ``relu``.
        task: what is learned; only mu is used.
        rate: eta_V.
        attention_rate: eta_A.
        alpha: of ``entmax``.
        l1: threshold of eq. 6, for the linear map, whose step is the paper's
            (:func:`scbjax.scb_proximal`).
    """
    from scbjax.optim import scb_proximal, value_descent

    if name == "linear":
        return scb_proximal(task.stationary, rate, attention_rate, l1)
    value, order = value_descent(task.stationary, rate), _ALPHA.get(name, alpha)

    def direction(gradient: jax.Array, parameter: jax.Array) -> jax.Array:
        weights = map_weights(name, parameter, alpha)
        # Weights far below uniform ones stay as they are: their gradients are all rounding.
        lives = weights > _LEAST_SHARE / weights.shape[-2]
        speed = jnp.where(lives, _speed(weights, order), 1.0)
        pulled = jnp.where(lives, gradient / speed, 0.0) / task.stationary[None, :]
        count = jnp.sum(lives, axis=0, keepdims=True, dtype=weights.dtype)
        count = jnp.maximum(count, 1.0)
        centred = pulled - jnp.sum(pulled, axis=0, keepdims=True) / count
        return jnp.where(lives, centred / speed, 0.0)

    def init(params: Any) -> Any:  # noqa: ANN401 - of optax
        return value.init(params["value"])

    def update(grads: Any, state: Any, params: Any, **_: object) -> Any:  # noqa: ANN401
        moved, state = value.update(grads["value"], state, params["value"])
        turned = direction(grads["attention"], params["attention"])
        return {"value": moved, "attention": -attention_rate * turned}, state

    return optax.GradientTransformationExtraArgs(init, update)


def optimizer_of(static: Mapping[str, Any]) -> Callable[[Any, Any, Any], Any]:
    """The optimiser that the static values name, as :func:`scbjax.learner` takes it."""
    from scbjax.algorithm import per_signal

    def make(task: scbjax.Task, values: Mapping[str, jax.Array], _: object) -> Any:  # noqa: ANN401
        rate, ratio = values["rate"], values["attention_rate_ratio"]
        if static["optimizer"] == "preconditioned":
            # In the units of the theory, as the paper's arms.
            value = per_signal(rate, scbjax.pattern_signal(task))
            attention = per_signal(rate * ratio, scbjax.transition_signal(task))
            name, alpha = static["attention_map"], values["alpha"]
            return preconditioned(name, task, value, attention, alpha, values["l1"])
        kind = optax.sgd if static["optimizer"] == "sgd" else optax.adam
        parts = {"value": kind(rate), "attention": kind(rate * ratio)}
        return optax.partition(parts, {"value": "value", "attention": "attention"})

    return make


def _source(static: Mapping[str, Any]) -> Source:
    source = scbjax.scb_source(packed=static["value_path"] == "linear", **of_static(static))
    return drawn_as(source, static["data"])


def _learner(source: Source, static: Mapping[str, Any], **given: Any) -> scbjax.Learner:  # noqa: ANN401
    return scbjax.learner(source, model_of(static), optimizer_of(static), **given)


# -------------------------------------------------------------------------------- what is recorded


def _support_mass(view: scbjax.View) -> jax.Array:
    """Mean attention on the true positions."""
    mass = jnp.sum(jnp.where(view.task.pattern > 0, view.params.attention, 0.0), axis=0)
    return jnp.sum(view.task.stationary * mass)


def _off_support(view: scbjax.View) -> jax.Array:
    """Mean attention off the true positions, in absolute value."""
    off = jnp.where(view.task.pattern > 0, 0.0, jnp.abs(view.params.attention))
    return jnp.sum(view.task.stationary * jnp.sum(off, axis=0))


def _dead(view: scbjax.View) -> jax.Array:
    """Share of the true positions whose attention is exactly zero or below."""
    true = view.task.pattern > 0
    dead = true & (view.params.attention <= 0)
    return jnp.sum(dead, dtype=jnp.float32) / jnp.sum(true, dtype=jnp.float32)


def _nonzeros(view: scbjax.View) -> jax.Array:
    """Positions of a column with attention above zero, a mean over columns."""
    return jnp.mean(jnp.sum(view.params.attention > 0, axis=0, dtype=jnp.float32))


def _kept_by_size(view: scbjax.View) -> jax.Array:
    """Attention over the true weight, by the size of that weight."""
    pattern, attention = view.task.pattern, view.params.attention
    true = pattern > 0
    counts = jnp.sum(true, axis=0, dtype=pattern.dtype)[None, :]
    # Weights are between 1/(2Q) and 2/Q: bins of equal width in their logarithm.
    place = jnp.floor((jnp.log2(jnp.where(true, pattern, 1.0) * counts) + 1.0) / 2.0 * _BINS)
    place = jnp.clip(place, 0, _BINS - 1)
    chosen = true[None] & (place[None] == jnp.arange(_BINS, dtype=place.dtype)[:, None, None])
    share = jnp.where(true, attention / jnp.where(true, pattern, 1.0), 0.0)
    total = jnp.sum(jnp.where(chosen, share[None], 0.0), axis=(1, 2))
    return total / jnp.sum(chosen, axis=(1, 2), dtype=total.dtype)


RECORD = (
    "attention_distance",
    "attention_similarity",
    "value_distance",
    "excess_loss",
    Observable(_support_mass, "attention on the true positions", name="support_mass"),
    Observable(_off_support, "attention off the true positions", name="off_support"),
    Observable(_dead, "share of true positions with no attention", name="dead_share"),
    Observable(_nonzeros, "positions with attention, a column", name="attended"),
    Observable(
        _kept_by_size, "attention over the true weight", r"$a/q$", dims=("weight_bin",),
        name="kept_by_size",
    ),
    "batch_loss",
    "samples",
)  # fmt: skip

_SIZE = Interval(1, INT32_MAX)
PARAMETERS = (
    DECLARED["task.num_tokens"],
    DECLARED["task.context_length"],
    SPARSITY,
    DATA,
    Parameter(
        "model.attention_map", str, "softmax", "static", "inner", "What makes A of W", Choice(MAPS)
    ),
    Parameter(
        "model.alpha", float, 1.5, "traced", "inner", "alpha of entmax", Interval(1.0, 2.0),
        symbol=r"$\alpha$",
    ),
    Parameter(
        "model.value_path", str, "linear", "static", "inner",
        "V, or an MLP with a hidden layer in its place", Choice(("linear", "mlp")),
    ),
    Parameter("model.width", int, 64, "static", "inner", "Hidden units of the MLP", _SIZE),
    OPTIMIZER,
    RATE_OF_VALUE,
    DECLARED["train.attention_rate_ratio"],
    NO_L1,
)  # fmt: skip

RELATIONS = (
    Relation(
        ("train.optimizer", "model.attention_map"),
        lambda optimizer, name: optimizer != "preconditioned" or name != "relu",
        "train.optimizer = '{}' has no meaning with model.attention_map = '{}', whose Jacobian "
        "is not symmetric",
    ),
    Relation(
        ("train.optimizer", "model.value_path"),
        lambda optimizer, path: optimizer != "preconditioned" or path == "linear",
        "train.optimizer = '{}' has no meaning with model.value_path = '{}'",
    ),
    Relation(
        ("train.data", "model.value_path"),
        lambda data, path: data == "fresh" or path == "linear",
        "train.data = '{}' has no closed form with model.value_path = '{}'",
    ),
    Relation(
        ("record.variables", "model.value_path"),
        lambda names, path: path == "linear" or "excess_loss" not in names,
        "record.variables has excess_loss, which has no closed form with model.value_path = '{1}'",
    ),
    SAMPLES_ARE_DRAWN,
    SPARSITY_FITS,
)

_LEARNING = learning(
    "maps",
    _source,
    _learner,
    record=RECORD,
    parameters=PARAMETERS,
    lengths={"weight_bin": _BINS},
)
EXPERIMENT = replace(
    _LEARNING,
    relations=RELATIONS,
    default_record=without(_LEARNING.variables, "excess_loss", "samples"),
)
"""Attention maps side by side."""
