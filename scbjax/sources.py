"""Sources: what mini-batches are drawn of. Sparse contextual bigrams, and windows of a sequence.

A :class:`scbjax.parts.Source` is a few functions. :func:`scb_source` makes one that draws a task of
the paper and its samples (:mod:`scbjax.sampling`), :func:`windows` one that cuts contexts out of an
array of integers, such as the characters of a text.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scbjax.arguments import SIZES, Numbers, as_integer, check_number, is_traced, outline, what
from scbjax.parameters import DEFAULTS, Generator
from scbjax.parts import Source
from scbjax.sampling import (
    Batch,
    draw_batch,
    draw_step,
    fold_in,
    make_sampler,
    make_seed,
    token_dtype,
)
from scbjax.task import Task, random_task
from scbjax.words import Seed

_HELD_OUT = 1024  # windows that a record of the held-out loss is a mean of
_SHARES = Numbers(0, 1)


def scb_source(
    *,
    generator: Generator = DEFAULTS["generator"],
    packed: bool = False,
    **sizes: Any,  # noqa: ANN401 - arguments of random_task
) -> Source:
    """The sparse contextual bigram: tasks of :func:`scbjax.task.random_task`, samples of eq. 1.

    Args:
        generator: of the random words of mini-batches, see :class:`scbjax.settings.Settings`.
        packed: whether batches come as they are drawn, several tokens in a number where there are
            at most four, which the loss of this library takes as well and faster.
        **sizes: of the tasks, as for :func:`scbjax.task.random_task`.

    Returns:
        The source. Its batches are those of :func:`scbjax.train` with the same key.

    Example:
        >>> source = scb_source(num_tokens=3, context_length=50, sparsity=2)
        >>> task = source.draw(jax.random.key(0))
        >>> key = source.keys(jax.random.key(1))(0)
        >>> source.sample(key, source.prepare(task), 8)
        Batch(tokens=uint8[8, 50], query=int32[8], label=int32[8])
    """
    return scb_batches(generator, packed=packed)._replace(draw=partial(random_task, **sizes))


def scb_batches(generator: Generator = DEFAULTS["generator"], *, packed: bool = False) -> Source:
    """Like :func:`scb_source`, of tasks that are there already: it draws none."""

    def draw(_: jax.Array) -> Task:
        raise ValueError("the task is given; this source draws none")

    return Source(
        draw=draw,
        sample=draw_step if packed else draw_batch,
        prepare=make_sampler,
        keys=partial(step_seeds, generator=generator),
    )


def step_seeds(
    key: jax.Array, generator: Generator = DEFAULTS["generator"]
) -> Callable[[jax.Array | int], Seed]:
    """A function of a step that gives the seed of its batch: the ``keys`` of a source.

    Args:
        key: the key of a trajectory.
        generator: what turns seeds into random words.
    """
    return partial(fold_in, make_seed(key, generator))


@dataclasses.dataclass(frozen=True)
class Text:
    """A sequence of tokens in two parts, and how contexts are cut out of it: a pytree.

    Attributes:
        tokens: the part to learn from, unsigned integers [n].
        held_out: the part behind it, to look at what was learned; [m].
        stationary: how often each token occurs in the first part, [N], counted once more so that
            none is zero.
        context_length: T; static.
        query_first: whether position 0 of the context holds the query; static.
    """

    tokens: jax.Array
    held_out: jax.Array
    stationary: jax.Array
    context_length: int
    query_first: bool

    @property
    def num_tokens(self) -> int:
        """N, the size of the vocabulary."""
        return int(self.stationary.shape[-1])

    def __repr__(self) -> str:
        """Sizes, not the arrays."""
        return (
            f"Text(tokens={outline(self.tokens)}, held_out={outline(self.held_out)}, "
            f"num_tokens={self.num_tokens}, context_length={self.context_length})"
        )


jax.tree_util.register_dataclass(
    Text,
    data_fields=["tokens", "held_out", "stationary"],
    meta_fields=["context_length", "query_first"],
)


def windows(
    tokens: Any,  # noqa: ANN401 - any array or list of integers
    *,
    context_length: int,
    num_tokens: int | None = None,
    query_first: bool = False,
    held_out: float = 0.1,
) -> Source:
    """Contexts of T tokens, cut out of a sequence at random places: the next token is the label.

    A sample is T + 2 neighbours of the sequence: the context, the query behind it, and the label
    behind that. With ``query_first`` it is T + 1 of them: the query stands at position 0 of the
    context, and before it in the sequence come the T - 1 tokens of the other positions, in their
    order. Every place at which a window fits is as likely as any other.

    Args:
        tokens: the sequence, integers [n] from 0 to N - 1, of NumPy, JAX or Python.
        context_length: T.
        num_tokens: N; None for one more than the largest token.
        query_first: whether the query is also the first token of the context, so that a model can
            attend to it.
        held_out: share of the sequence, at its end, that no batch is cut out of.

    Returns:
        A source whose task is a :class:`Text` and whose batches are :class:`scbjax.Batch`.

    Raises:
        ValueError: for tokens out of range, and for a sequence in whose parts no window fits.

    Example:
        >>> text = "to be or not to be that is the question " * 50
        >>> letters = sorted(set(text))
        >>> source = windows([letters.index(c) for c in text], context_length=8)
        >>> task = source.draw(jax.random.key(0))
        >>> task
        Text(tokens=uint8[1800], held_out=uint8[200], num_tokens=13, context_length=8)
        >>> source.sample(jax.random.key(1), source.prepare(task), 4)
        Batch(tokens=uint8[4, 8], query=int32[4], label=int32[4])
    """
    context_length = as_integer("context_length", context_length, SIZES)
    check_number("held_out", held_out, _SHARES)
    sequence = _as_tokens(tokens, num_tokens)
    size = int(sequence.max()) + 1 if num_tokens is None else int(num_tokens)
    kept = round(float(held_out) * sequence.size)
    first = sequence.size - kept
    for name, count in (("to learn from", first), ("held out", kept)):
        if count < _width(context_length, query_first) and (count or name != "held out"):
            raise ValueError(
                f"tokens has {count} {name}; there must be at least "
                f"{_width(context_length, query_first)} of them, for one window"
            )
    counts = np.bincount(sequence[:first], minlength=size) + 1.0
    dtype = token_dtype(size)
    text = (sequence[:first].astype(dtype), sequence[first:].astype(dtype))
    stationary = (counts / counts.sum()).astype(np.float32)

    def draw(_: jax.Array) -> Text:
        first, last, law = (jnp.asarray(array) for array in (*text, stationary))
        return Text(first, last, law, context_length, bool(query_first))

    return Source(draw=draw, sample=sample_windows)


def sample_windows(key: jax.Array, text: Text, batch_size: int, *, held_out: bool = False) -> Batch:
    """Draws windows of a text.

    Args:
        key: a PRNG key.
        text: the text.
        batch_size: B, the number of windows.
        held_out: whether they are cut out of the part that is held out.

    Returns:
        The batch: tokens [B, T], query [B], label [B].

    Raises:
        ValueError: if nothing is held out.
    """
    sequence = text.held_out if held_out else text.tokens
    width = _width(text.context_length, text.query_first)
    places = sequence.shape[0] - width + 1
    if places < 1:
        raise ValueError("held_out is 0; it must be larger, for windows of what is held out")
    start = jax.random.randint(key, (batch_size,), 0, places, jnp.int32)
    found = sequence[start[:, None] + jnp.arange(width, dtype=jnp.int32)[None, :]]
    context, query, label = found[:, :-2], found[:, -2], found[:, -1]
    if text.query_first:
        context = jnp.concatenate([query[:, None], context], axis=1)
    return Batch(context, query.astype(jnp.int32), label.astype(jnp.int32))


def held_out_loss(view: Any) -> jax.Array:  # noqa: ANN401 - a View, which stands on a higher floor
    """The loss on 1024 windows of the part that was held out.

    Args:
        view: of a state of training on :func:`windows`.

    Returns:
        A scalar.
    """
    loss: jax.Array = view.loss(sample_windows(view.key, view.task, _HELD_OUT, held_out=True))
    return loss


def _width(context_length: int, query_first: bool) -> int:
    """Neighbours that make a sample."""
    return context_length + (1 if query_first else 2)


def _as_tokens(tokens: Any, num_tokens: int | None) -> np.ndarray:  # noqa: ANN401 - it is looked at
    """A sequence of tokens on the host, int64 [n]."""
    if is_traced(tokens):
        raise ValueError("tokens is traced; it must be an array of integers that is known")
    array = np.asarray(tokens)
    if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"tokens is {what(array)}; it must be an array of integers [n]")
    largest = SIZES.high
    if num_tokens is not None:
        largest = as_integer("num_tokens", num_tokens, Numbers(2, SIZES.high, whole=True)) - 1
    limit = "" if num_tokens is None else "num_tokens - 1"
    check_number("tokens", array, Numbers(0, largest, whole=True, limit=limit))
    return array.astype(np.int64)
