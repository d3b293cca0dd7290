"""Fits by proximal steps on mini-batches: this library's own learner on windows of a sequence."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

import scbjax
from scbjax.fitting.mixtures import Mixture
from scbjax.fitting.moments import columns_on_simplex
from scbjax.fitting.reading import Symbols

_BATCH = 256


def fit_by_descent(
    symbols: Symbols,
    lags: jax.Array,
    *,
    last: int,
    steps: int = 2000,
    rate: float = 0.1,
    l1: float = 1e-4,
    seed: int = 0,
) -> Mixture:
    """SCB by preconditioned projected proximal descent on squared error, from ``V = mu 1^T``.

    Columns of V and A are then projected onto the simplex.

    Args:
        symbols: the sequence, one record.
        lags: all of 1 to T, in this order.
        last: one behind the last symbol that is learned from.
        steps: of mini-batches of 256 windows.
        rate: of V; that of A is a tenth of it, over T.
        l1: lambda.
        seed: of mini-batches.
    """
    length = lags.shape[0]
    source = scbjax.windows(
        symbols.tokens[:last],
        context_length=length,
        num_tokens=len(symbols.names),
        query_first=True,
        held_out=0.0,
    )

    def optimizer(task: scbjax.Text, *_: object) -> optax.GradientTransformationExtraArgs:
        return scbjax.scb_proximal(task.stationary, rate, rate / (10.0 * length), l1)

    own = scbjax.learner(
        source, scbjax.linear_transformer(), optimizer, batch_size=_BATCH, record_every=steps
    )
    task = source.draw(jax.random.key(seed))
    params = jax.jit(lambda key: own.train(key, task, steps=steps).params)(jax.random.key(seed))
    # Position 0 is the query, lag 1; the others are in the order of time: lags T, .., 2.
    attention = jnp.concatenate([params.attention[:1], params.attention[:0:-1]])
    return Mixture(
        columns_on_simplex(attention)[None], columns_on_simplex(params.value)[None], lags
    )
