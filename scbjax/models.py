"""Models: what is trained, as values. The linear transformer, with any attention map.

A :class:`scbjax.parts.Model` is three functions, so that one's own is written down in a few lines;
``docs/examples/own_learner.py`` has one of several heads.
"""

from functools import cache
from typing import Any

import jax

from scbjax.losses import unchecked_loss
from scbjax.model import AttentionMap, Params, as_attention_map, map_attention, start_params
from scbjax.parts import Model
from scbjax.sampling import AnyBatch


def linear_transformer(attention_map: str | AttentionMap = "linear") -> Model:
    """The learner of eq. 2, from the paper's start, with the loss of eq. 3.

    Its gradient in V and A is written by hand (:mod:`scbjax.losses`); that of the map is JAX's.

    Args:
        attention_map: makes A of what is trained; a map, or a key of
            :data:`scbjax.model.ATTENTION_MAPS`.

    Returns:
        A model of parameters :class:`scbjax.Params` for tasks that have ``stationary`` [N] and
        ``context_length``, such as :class:`scbjax.Task` and :class:`scbjax.sources.Text`.

    Raises:
        ValueError: for an unknown map.

    Example:
        >>> from scbjax.task import random_task
        >>> task = random_task(jax.random.key(0), num_tokens=3, context_length=50, sparsity=2)
        >>> model = linear_transformer("softmax")
        >>> params = model.init(jax.random.key(1), task)
        >>> float(params.attention[0, 0]), round(float(model.readout(params).attention[0, 0]), 3)
        (0.0, 0.02)
    """
    return _linear_transformer(as_attention_map(attention_map))


# A model is known by its functions: made once for each map, so that it is the same one.
@cache
def _linear_transformer(attention_map: AttentionMap) -> Model:
    def init(_: jax.Array, task: Any) -> Params:  # noqa: ANN401 - see above
        return start_params(task.stationary, task.context_length, attention_map)

    def loss(params: Params, batch: AnyBatch) -> jax.Array:
        value: jax.Array = unchecked_loss(map_attention(params, attention_map), batch)
        return value

    def readout(params: Params) -> Params:
        return map_attention(params, attention_map)

    return Model(init, loss, readout)
