"""Random words: Threefry-2x32 in counter mode, from the seed of a mini-batch.

Words come from Threefry-2x32 (Salmon, Moraes, Dror & Shaw 2011), the generator behind JAX's default
keys, in counter mode: with 20 rounds as there, or with 13, the fewest for which its authors publish
known answers. It is written out here because, as plain arithmetic, it is compiled into one loop,
and a token can be computed from its place alone.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

WORD = jnp.uint32
WORD_BITS = 32
_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA
_GROUP = 4  # rounds between two additions of the key


@dataclass(frozen=True)
class Seed:
    """What all random words of a mini-batch come from: a pytree with one array.

    Attributes:
        words: the key of the generator, [2] uint32.
        rounds: those of Threefry; static.
    """

    words: jax.Array
    rounds: int = 20


jax.tree_util.register_dataclass(Seed, data_fields=["words"], meta_fields=["rounds"])


def threefry(
    words: jax.Array, high: jax.Array, low: jax.Array, rounds: int = 20
) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32: two random words for each counter ``(high, low)``, elementwise.

    Args:
        words: the generator's key, [2] uint32.
        high: first counter word, uint32.
        low: second counter word, uint32, of the same shape.
        rounds: how often the words are mixed.

    Returns:
        Two arrays of words of that shape.

    Example:
        >>> zero = jnp.zeros((), jnp.uint32)
        >>> [hex(int(word)) for word in threefry(jnp.zeros(2, jnp.uint32), zero, zero)]
        ['0x6b200159', '0x99ba4efe']
    """
    keys = (words[0], words[1], words[0] ^ words[1] ^ WORD(_PARITY))
    x, y = high + keys[0], low + keys[1]
    for number in range(rounds):
        rotation = _ROTATIONS[number % len(_ROTATIONS)]
        x = x + y
        y = x ^ ((y << WORD(rotation)) | (y >> WORD(WORD_BITS - rotation)))
        group, last = divmod(number, _GROUP)
        if last == _GROUP - 1:
            x = x + keys[(group + 1) % 3]
            y = y + keys[(group + 2) % 3] + WORD(group + 1)
    return x, y


def word_pair(seed: Seed, stream: int, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Two arrays of words, each with half (rounded up) of the leading axis of the shape."""
    half = (-(-shape[0] // 2), *shape[1:])
    return words_of(seed, stream, jax.lax.iota(WORD, int(np.prod(half))).reshape(half))


def counter_of(first: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Numbers of the entries of an array, row by row, that begins with row ``first``."""
    width = math.prod(shape[1:])
    own = jax.lax.iota(WORD, math.prod(shape)).reshape(shape)
    counter: jax.Array = own + first.astype(WORD) * WORD(width)
    return counter


def words_of(seed: Seed, stream: int, counter: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two words for each counter of a stream of a seed."""
    return threefry(seed.words, counter, jnp.full(counter.shape, stream, WORD), seed.rounds)
